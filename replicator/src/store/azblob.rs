//! OpenDAL's operator for Azure Blob Storage.
//!
//! Owns which of OpenDAL's keys may be given. What it signs with shows no credential that it was given. It logs the headers that it signs, though, and the key of
//! `encryption_key` would be among them: that one is not taken.

use opendal::Configurator;
use opendal::services::AzblobConfig;

use super::StoreError;
use super::service::{Opened, Options, Service, has_field};

pub(super) const SERVICE: Service = Service {
    authority: "container",
    form: "azblob://<container>/<prefix>?account_name=…",
    known: "account_name, account_key, sas_token, endpoint and OpenDAL's others but encryption keys",
    takes_user: false,
    knows,
    open,
};

/// Further names that OpenDAL takes for the fields of its configuration.
const ALIASES: &[&str] = &[
    "azure_storage_endpoint",
    "azure_endpoint",
    "azure_storage_account_name",
    "azure_storage_account_key",
    "azure_storage_access_key",
    "azure_storage_master_key",
    "access_key",
    "master_key",
    "azure_storage_sas_key",
    "azure_storage_sas_token",
    "sas_key",
];

fn knows(key: &str) -> bool {
    let is_other = matches!(key, "container" | "root" | "batch_max_operations") || key.starts_with("encryption_");
    !is_other && (ALIASES.contains(&key) || has_field(&AzblobConfig::default(), key))
}

fn open(mut options: Options<'_>) -> Result<Opened, StoreError> {
    options.keys.insert("container".to_owned(), options.authority.clone());
    options.keys.insert("root".to_owned(), options.path.clone());
    let mut config: AzblobConfig = options.config()?;
    if config.endpoint.is_none() {
        let account = config.account_name.clone();
        let account = account.or_else(|| std::env::var("AZURE_STORAGE_ACCOUNT_NAME").ok());
        config.endpoint = match account {
            Some(account) => Some(format!("https://{account}.blob.core.windows.net")),
            None => {
                return Err(options.refused(
                    "it names no account; add ?account_name=<account>, or endpoint=<its address>, to the replica",
                ));
            }
        };
    }
    let at = config.endpoint.clone().unwrap_or_default();
    Ok(Opened::new(options.operator(config.into_builder())?, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_opendal() {
        for key in ["endpoint", "account_name", "account_key", "sas_token", "skip_signature"]
            .iter()
            .chain(ALIASES)
        {
            assert!(knows(key), "{key}");
            // OpenDAL passes over what it does not know.
            let pairs = [
                ((*key).to_owned(), "x".to_owned()),
                ("container".to_owned(), "c".to_owned()),
            ];
            let set = AzblobConfig::from_iter(pairs);
            let plain = AzblobConfig::from_iter([("container".to_owned(), "c".to_owned())]);
            assert!(set.is_err() || set.ok() != plain.ok(), "{key}");
        }
        for key in [
            "container",
            "root",
            "encryption_key",
            "encryption_algorithm",
            "nonsense",
        ] {
            assert!(!knows(key), "{key}");
        }
    }
}
