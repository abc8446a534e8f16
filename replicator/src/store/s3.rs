//! OpenDAL's operator for S3 and what speaks its protocol.
//!
//! Owns which of OpenDAL's keys may be given, and that those which are secret stay so: what OpenDAL signs with writes static credentials into the
//! log, at the level of debugging. So it gets them from a provider of ours, which has nothing to show.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use opendal::services::S3Config;
use opendal::{Configurator, Operator};
use reqsign_aws_v4::Credential;
use reqsign_core::{Context, ProvideCredential, ProvideCredentialChain};

use super::StoreError;
use super::error::Action;
use super::uri::Parts;

/// Further names that OpenDAL takes for the fields of its configuration.
const ALIASES: &[&str] = &[
    "aws_endpoint",
    "aws_endpoint_url",
    "endpoint_url",
    "aws_region",
    "aws_profile",
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "aws_token",
    "token",
    "aws_server_side_encryption",
    "aws_sse_kms_key_id",
    "aws_sse_customer_key_base64",
    "aws_virtual_hosted_style_request",
    "virtual_hosted_style_request",
    "aws_checksum_algorithm",
    "aws_request_payer",
    "request_payer",
];

/// Whether OpenDAL's configuration of S3 has a field of this name that is not in the other parts of a URI.
pub(super) fn knows(key: &str) -> bool {
    static FIELDS: LazyLock<serde_json::Value> =
        LazyLock::new(|| serde_json::to_value(S3Config::default()).unwrap_or_default());
    (FIELDS.get(key).is_some() || ALIASES.contains(&key)) && key != "bucket" && key != "root"
}

pub(super) fn unknown_key(replica: &str, key: &str) -> StoreError {
    StoreError::setup(
        replica,
        format!("{key} is not a parameter of s3://; known are region, endpoint, profile and OpenDAL's others"),
    )
}

pub(super) fn open(parts: Parts, replica: &str) -> Result<Operator, StoreError> {
    if parts.authority.is_empty() {
        return Err(StoreError::setup(
            replica,
            "it names no bucket; write s3://<bucket>/<prefix>",
        ));
    }
    let mut options = HashMap::new();
    for (key, value) in parts.query {
        if !knows(&key) {
            return Err(unknown_key(replica, &key));
        }
        if options.insert(key.clone(), value).is_some() {
            return Err(StoreError::setup(
                replica,
                format!("the parameter {key} is given twice"),
            ));
        }
    }
    let values: Vec<String> = options.values().cloned().collect();
    options.insert("bucket".to_owned(), parts.authority);
    options.insert("root".to_owned(), parts.path);
    let failed = |error: opendal::Error| StoreError::from_opendal(Action::Open, None, replica, &error).without(&values);
    let mut config = <S3Config as Configurator>::from_iter(options).map_err(failed)?;
    let keys = take_keys(&mut config, replica)?;
    let mut builder = config.into_builder();
    if let Some(keys) = keys {
        builder = builder.credential_provider_chain(ProvideCredentialChain::new().push(keys));
    }
    // OpenDAL gets its HTTP client this way when it is built without its process constructor. Idempotent.
    opendal::install_default();
    Operator::new(builder).map_err(failed)
}

/// Credentials that were given with the replica.
struct Keys(Credential);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the keys that were given with the replica")
    }
}

impl ProvideCredential for Keys {
    type Credential = Credential;

    async fn provide_credential(&self, _: &Context) -> reqsign_core::Result<Option<Credential>> {
        Ok(Some(self.0.clone()))
    }
}

/// Takes the credentials out of a configuration, if there are any.
fn take_keys(config: &mut S3Config, replica: &str) -> Result<Option<Keys>, StoreError> {
    let session_token = config.session_token.take();
    let (access_key_id, secret_access_key) = match (config.access_key_id.take(), config.secret_access_key.take()) {
        (None, None) if session_token.is_none() => return Ok(None),
        (Some(id), Some(secret)) => (id, secret),
        _ => {
            return Err(StoreError::setup(
                replica,
                "access_key_id and secret_access_key belong together, with a session_token or without one; set both, or none of them",
            ));
        }
    };
    // OpenDAL would leave out the role: our provider stands for all of its own.
    if config.role_arn.is_some() {
        return Err(StoreError::setup(
            replica,
            "role_arn and access_key_id are both set; leave the keys to the environment or to a profile",
        ));
    }
    Ok(Some(Keys(Credential {
        access_key_id,
        secret_access_key,
        session_token,
        expires_in: None,
    })))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn error(query: &[(&str, &str)]) -> String {
        let config = query
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let mut config = <S3Config as Configurator>::from_iter(config).unwrap();
        take_keys(&mut config, "s3://b").map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn half_of_the_keys_is_an_error_and_a_role_beside_them() {
        for query in [
            &[("access_key_id", "x")][..],
            &[("secret_access_key", "x")],
            &[("session_token", "x")],
        ] {
            assert!(error(query).contains("belong together"), "{query:?}");
        }
        let role = [
            ("aws_access_key_id", "x"),
            ("aws_secret_access_key", "y"),
            ("role_arn", "z"),
        ];
        assert!(error(&role).contains("leave the keys to the environment"));
    }

    #[test]
    fn keys_are_taken_and_not_shown() {
        let pairs = [
            ("access_key_id", "id"),
            ("secret_access_key", "hunter2"),
            ("session_token", "token"),
        ];
        let pairs = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut config = <S3Config as Configurator>::from_iter(pairs).unwrap();
        let keys = take_keys(&mut config, "s3://b").unwrap().unwrap();
        assert_eq!(keys.0.secret_access_key, "hunter2");
        assert_eq!(config.secret_access_key, None);
        assert!(!format!("{keys:?}").contains("hunter2"));
    }
}
