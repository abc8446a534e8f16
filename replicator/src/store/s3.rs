//! OpenDAL's operator for S3 and what speaks its protocol.
//!
//! Owns which of OpenDAL's keys may be given, and that those which are secret stay so: what OpenDAL signs with writes static credentials into the
//! log, at the level of debugging. So it gets them from a provider of ours, which has nothing to show.

use std::fmt;
use std::time::Duration;

use opendal::Configurator;
use opendal::services::S3Config;
use reqsign_aws_v4::{Credential, DefaultCredentialProvider};
use reqsign_core::time::Timestamp;
use reqsign_core::{Context, ProvideCredential, ProvideCredentialChain};

use super::StoreError;
use super::service::{Opened, Options, Service, has_field};

pub(super) const SERVICE: Service = Service {
    authority: "bucket",
    form: "s3://<bucket>/<prefix>",
    known: "region, endpoint, profile and OpenDAL's others",
    takes_user: false,
    knows,
    open,
};

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

fn knows(key: &str) -> bool {
    !matches!(key, "bucket" | "root") && (ALIASES.contains(&key) || has_field(&S3Config::default(), key))
}

fn open(mut options: Options<'_>) -> Result<Opened, StoreError> {
    let endpoint = options.keys.iter().find(|(key, _)| key.contains("endpoint"));
    let at = endpoint.map_or(String::new(), |(_, endpoint)| endpoint.trim_end_matches('/').to_owned());
    options.keys.insert("bucket".to_owned(), options.authority.clone());
    options.keys.insert("root".to_owned(), options.path.clone());
    let mut config: S3Config = options.config()?;
    let keys = take_keys(&mut config, options.replica)?;
    let anew = (keys.is_none() && config.role_arn.is_none()).then(|| Anew(default_provider(&config)));
    let mut builder = config.into_builder();
    if let Some(keys) = keys {
        builder = builder.credential_provider_chain(ProvideCredentialChain::new().push(keys));
    }
    if let Some(anew) = anew {
        builder = builder.credential_provider_chain(ProvideCredentialChain::new().push(anew));
    }
    Ok(Opened::new(options.operator(builder)?, at))
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

/// What OpenDAL would ask for credentials: the environment, a profile, the machine's role.
fn default_provider(config: &S3Config) -> DefaultCredentialProvider {
    let mut builder = DefaultCredentialProvider::builder();
    if config.disable_config_load {
        builder = builder.no_env().no_profile();
    } else if let Some(profile) = config.profile.as_deref().filter(|profile| !profile.is_empty()) {
        builder = builder.with_profile(profile);
    }
    if config.disable_ec2_metadata {
        builder = builder.no_imds();
    }
    builder.build()
}

/// What signs keeps credentials that do not say when they end for as long as the process lives. Somebody may put others into a profile's file: so these are asked for
/// again every five minutes. It asks two minutes before they end.
const GOOD_FOR: Duration = Duration::from_secs(7 * 60);

#[derive(Debug)]
struct Anew<P>(P);

impl<P: ProvideCredential<Credential = Credential>> ProvideCredential for Anew<P> {
    type Credential = Credential;

    async fn provide_credential(&self, context: &Context) -> reqsign_core::Result<Option<Credential>> {
        let found = self.0.provide_credential(context).await?;
        Ok(found.map(|credential| Credential {
            expires_in: credential.expires_in.or_else(|| Some(Timestamp::now() + GOOD_FOR)),
            ..credential
        }))
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

    #[tokio::test]
    async fn credentials_that_do_not_say_when_they_end_are_asked_for_again() {
        use reqsign_core::SigningCredential;
        let keys = |expires_in| {
            Anew(Keys(Credential {
                access_key_id: "id".to_owned(),
                secret_access_key: "secret".to_owned(),
                session_token: None,
                expires_in,
            }))
        };
        let given = |expires_in| async move {
            keys(expires_in)
                .provide_credential(&Context::new())
                .await
                .unwrap()
                .unwrap()
        };
        let credential = given(None).await;
        assert!(credential.is_valid());
        assert!(!credential.is_valid_at(Timestamp::now() + GOOD_FOR));
        let hour = Timestamp::now() + Duration::from_secs(3600);
        assert_eq!(given(Some(hour)).await.expires_in, Some(hour));
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
