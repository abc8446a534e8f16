//! OpenDAL's operator for SFTP, which starts the program `ssh` of OpenSSH: what that reads, `~/.ssh/config` and the agent, counts here too.

use opendal::Configurator;
use opendal::services::SftpConfig;

use super::StoreError;
use super::service::{Opened, Options, Service};

pub(super) const SERVICE: Service = Service {
    authority: "server",
    form: "sftp://<user>@<server>/<absolute path>",
    known: "user, key and known_hosts_strategy",
    takes_user: true,
    knows,
    open,
};

/// Each is a process and a login; servers refuse more than a few that come together.
pub(super) const MOST_AT_ONCE: usize = 4;

fn knows(key: &str) -> bool {
    matches!(key, "user" | "key" | "known_hosts_strategy")
}

fn open(mut options: Options<'_>) -> Result<Opened, StoreError> {
    if let Some(user) = options.user.take() {
        options.keys.entry("user".to_owned()).or_insert(user);
    }
    if options.path.trim_matches('/').is_empty() {
        return Err(options.refused(format!("it names no folder; write {}", SERVICE.form)));
    }
    if options.keys.get("user").is_some_and(|user| user.starts_with('-')) {
        return Err(options.refused("no user begins with '-'"));
    }
    let mut config: SftpConfig = options.config()?;
    let at = format!("ssh://{}", options.authority);
    config.endpoint = Some(at.clone());
    config.root = Some(options.path.clone());
    Ok(Opened::new(options.operator(config.into_builder())?, at))
}
