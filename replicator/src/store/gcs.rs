//! OpenDAL's operator for Google Cloud Storage.
//!
//! Owns which of OpenDAL's keys may be given, and that those which are secret stay so: what OpenDAL signs with writes a service account that was given, with its
//! private key, into the log at the level of debugging. So it gets that from a provider of ours, which has nothing to show.

use std::fmt;

use opendal::Configurator;
use opendal::services::GcsConfig;
use reqsign_core::{Context, ProvideCredential};
use reqsign_google::{Credential, StaticCredentialProvider};

use super::StoreError;
use super::service::{Opened, Options, Service, has_field};

pub(super) const SERVICE: Service = Service {
    authority: "bucket",
    form: "gcs://<bucket>/<prefix>",
    known: "credential, credential_path, token, endpoint and OpenDAL's others",
    takes_user: false,
    knows,
    open,
};

/// Further names that OpenDAL takes for the fields of its configuration.
const ALIASES: &[&str] = &[
    "google_service_account",
    "google_service_account_path",
    "service_account_path",
    "google_service_account_key",
    "service_account_key",
    "google_application_credentials",
    "google_skip_signature",
];

/// What OpenDAL asks for without being told otherwise.
const SCOPE: &str = "https://www.googleapis.com/auth/devstorage.read_write";

fn knows(key: &str) -> bool {
    !matches!(key, "bucket" | "root" | "allow_anonymous")
        && (ALIASES.contains(&key) || has_field(&GcsConfig::default(), key))
}

fn open(mut options: Options<'_>) -> Result<Opened, StoreError> {
    options.keys.insert("bucket".to_owned(), options.authority.clone());
    options.keys.insert("root".to_owned(), options.path.clone());
    let mut config: GcsConfig = options.config()?;
    let at = config.endpoint.clone().unwrap_or_default();
    let scope = config.scope.clone().unwrap_or_else(|| SCOPE.to_owned());
    let keys = match config.credential.take() {
        Some(credential) => match StaticCredentialProvider::from_base64(credential) {
            Ok(keys) => Some(Keys(keys.with_scope(scope))),
            // OpenDAL would go on with whatever else it finds.
            Err(_) => return Err(options.refused("credential is not a service account's JSON in base64")),
        },
        None => None,
    };
    let mut builder = config.into_builder();
    if let Some(keys) = keys {
        builder = builder.credential_provider(keys);
    }
    Ok(Opened::new(options.operator(builder)?, at))
}

/// A service account that was given with the replica.
struct Keys(StaticCredentialProvider);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the service account that was given with the replica")
    }
}

impl ProvideCredential for Keys {
    type Credential = Credential;

    async fn provide_credential(&self, context: &Context) -> reqsign_core::Result<Option<Credential>> {
        // Its errors quote what they cannot understand.
        let provided = self.0.provide_credential(context).await;
        provided
            .map_err(|_| reqsign_core::Error::credential_invalid("the service account that was given cannot be used"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_opendal_and_not_shown() {
        for key in ALIASES
            .iter()
            .chain(&["credential", "token", "skip_signature", "endpoint"])
        {
            assert!(knows(key), "{key}");
            let set = GcsConfig::from_iter([((*key).to_owned(), "true".to_owned())]);
            assert!(set.is_ok_and(|set| set != GcsConfig::default()), "{key}");
        }
        for key in ["bucket", "root", "nonsense"] {
            assert!(!knows(key), "{key}");
        }
        let keys = Keys(StaticCredentialProvider::new("hunter2"));
        assert!(!format!("{keys:?}").contains("hunter2"));
    }
}
