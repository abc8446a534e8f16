//! OpenDAL's operator for WebDAV.

use opendal::Configurator;
use opendal::services::WebdavConfig;

use super::StoreError;
use super::service::{Opened, Options, Service};

pub(super) const SERVICE: Service = Service {
    authority: "server",
    form: "webdav://<user>@<server>/<path>",
    known: "username, password, token and disable_create_dir",
    takes_user: true,
    knows,
    open,
};

fn knows(key: &str) -> bool {
    matches!(key, "username" | "password" | "token" | "disable_create_dir")
}

fn open(mut options: Options<'_>) -> Result<Opened, StoreError> {
    if let Some(user) = options.user.take() {
        options.keys.entry("username".to_owned()).or_insert(user);
    }
    let protocol = if options.scheme == "webdav" { "https" } else { "http" };
    let at = format!("{protocol}://{}", options.authority);
    let mut config: WebdavConfig = options.config()?;
    config.endpoint = Some(at.clone());
    config.root = Some(options.path.clone());
    Ok(Opened::new(options.operator(config.into_builder())?, at))
}
