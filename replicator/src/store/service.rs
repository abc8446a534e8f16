//! The services of OpenDAL that a replica's URI can name, besides folders and memory: which of them this build has, and which of their keys may be given.
//!
//! Owns what is the same for all of them. Leaves to a module each what a URI's parts mean there, and that its secrets stay secret.

use std::collections::HashMap;

use opendal::Operator;
#[cfg(any(
    feature = "s3",
    feature = "azblob",
    feature = "gcs",
    feature = "sftp",
    feature = "ftp",
    feature = "webdav"
))]
use opendal::{Builder, Configurator};

use super::StoreError;
#[allow(unused_imports)] // In a build without any of them.
use super::error::Action;
use super::uri::Parts;

/// A service that is built in.
pub(super) struct Service {
    /// What comes between `://` and the first `/`, in words.
    pub(super) authority: &'static str,
    /// How its URIs are written.
    pub(super) form: &'static str,
    /// Some of its keys.
    pub(super) known: &'static str,
    /// Whether a user's name may stand before an `@`.
    pub(super) takes_user: bool,
    /// Whether it has a key of this name that is not in the other parts of a URI.
    pub(super) knows: fn(&str) -> bool,
    /// Makes the operator. The options have known names, each once.
    pub(super) open: fn(Options<'_>) -> Result<Opened, StoreError>,
}

/// An operator without layers, and what else is needed where it cannot do everything.
pub(super) struct Opened {
    pub(super) operator: Operator,
    /// Which of several places of the same name it is: an endpoint, or nothing.
    pub(super) at: String,
    #[cfg(feature = "ftp")]
    pub(super) control: Option<super::ftp::Control>,
}

impl Opened {
    #[allow(dead_code)] // In a build without any of them.
    pub(super) fn new(operator: Operator, at: impl Into<String>) -> Opened {
        Opened {
            operator,
            at: at.into(),
            #[cfg(feature = "ftp")]
            control: None,
        }
    }
}

/// A scheme, and whether it is built in.
struct Kind {
    scheme: &'static str,
    feature: &'static str,
    service: Option<&'static Service>,
}

macro_rules! kind {
    ($scheme:literal, $feature:literal, $module:ident) => {
        Kind {
            scheme: $scheme,
            feature: $feature,
            #[cfg(feature = $feature)]
            service: Some(&super::$module::SERVICE),
            #[cfg(not(feature = $feature))]
            service: None,
        }
    };
}

static KINDS: &[Kind] = &[
    kind!("s3", "s3", s3),
    kind!("azblob", "azblob", azblob),
    kind!("gcs", "gcs", gcs),
    kind!("gs", "gcs", gcs),
    kind!("webdav", "webdav", webdav),
    kind!("webdav+http", "webdav", webdav),
    kind!("sftp", "sftp", sftp),
    kind!("ftp", "ftp", ftp),
    kind!("ftps", "ftp", ftp),
];

/// The service of a scheme, if it is built in.
pub(super) fn of(scheme: &str) -> Option<&'static Service> {
    KINDS.iter().find(|kind| kind.scheme == scheme)?.service
}

pub(super) fn unknown_scheme(replica: &str, scheme: &str, known: &[&str]) -> StoreError {
    let known = known.join("://, ");
    let reason = match KINDS.iter().find(|kind| kind.scheme == scheme) {
        Some(kind) => format!(
            "this build has no {scheme}://: build with the feature `{}`; it has {known}://",
            kind.feature
        ),
        None => format!("the scheme {scheme}:// is not known; this build has {known}://"),
    };
    StoreError::setup(replica, reason)
}

/// What a replica's URI and the keys beside it say.
#[cfg_attr(
    not(all(feature = "ftp", feature = "sftp", feature = "webdav", feature = "s3")),
    allow(dead_code, reason = "each service needs some of it")
)]
pub(super) struct Options<'a> {
    pub(super) scheme: String,
    pub(super) user: Option<String>,
    pub(super) authority: String,
    pub(super) path: String,
    pub(super) keys: HashMap<String, String>,
    /// As it may be shown.
    pub(super) replica: &'a str,
}

impl Service {
    /// What is wrong with a URI, as far as it tells by itself.
    pub(super) fn check(&self, parts: &Parts, replica: &str) -> Result<(), StoreError> {
        let scheme = &parts.scheme;
        if parts.authority.is_empty() {
            return Err(StoreError::setup(
                replica,
                format!("it names no {}; write {}", self.authority, self.form),
            ));
        }
        // Some protocols have a command a line, and what begins with a dash may be an option of a program.
        let user = parts.user.as_deref().unwrap_or_default();
        if parts.path.contains(char::is_control) || user.contains(char::is_control) {
            return Err(StoreError::setup(replica, "it contains a control character"));
        }
        if parts.authority.starts_with('-') || user.starts_with('-') {
            return Err(StoreError::setup(
                replica,
                format!("neither a user nor a {} begins with '-'", self.authority),
            ));
        }
        match parts.query.iter().find(|(key, _)| !(self.knows)(key)) {
            Some((key, _)) => Err(StoreError::setup(
                replica,
                format!("{key} is not a parameter of {scheme}://; known are {}", self.known),
            )),
            None => Ok(()),
        }
    }

    pub(super) fn open(&self, parts: Parts, replica: &str) -> Result<Opened, StoreError> {
        self.check(&parts, replica)?;
        let mut keys = HashMap::new();
        for (key, value) in parts.query {
            if value.contains(char::is_control) {
                return Err(StoreError::setup(
                    replica,
                    format!("the parameter {key} contains a control character"),
                ));
            }
            if keys.insert(key.clone(), value).is_some() {
                return Err(StoreError::setup(
                    replica,
                    format!("the parameter {key} is given twice"),
                ));
            }
        }
        (self.open)(Options {
            scheme: parts.scheme,
            user: parts.user,
            authority: parts.authority,
            path: parts.path,
            keys,
            replica,
        })
    }
}

#[cfg(any(
    feature = "s3",
    feature = "azblob",
    feature = "gcs",
    feature = "sftp",
    feature = "ftp",
    feature = "webdav"
))]
impl Options<'_> {
    /// What OpenDAL makes of the keys. Its errors quote values, so none of these gets into ours.
    pub(super) fn config<C: Configurator>(&self) -> Result<C, StoreError> {
        C::from_iter(self.keys.clone()).map_err(|error| self.failed(&error))
    }

    pub(super) fn operator(&self, builder: impl Builder) -> Result<Operator, StoreError> {
        // OpenDAL gets its HTTP client this way when it is built without its process constructor. Idempotent.
        opendal::install_default();
        Operator::new(builder).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &opendal::Error) -> StoreError {
        let values: Vec<String> = self.keys.values().cloned().collect();
        StoreError::from_opendal(Action::Open, None, self.replica, error).without(&values)
    }

    #[allow(dead_code)] // Not by all of them.
    pub(super) fn refused(&self, reason: impl Into<String>) -> StoreError {
        StoreError::setup(self.replica, reason)
    }
}

/// Whether OpenDAL's configuration of a service has a field of this name.
#[cfg(any(feature = "s3", feature = "azblob", feature = "gcs"))]
pub(super) fn has_field(config: &impl serde::Serialize, key: &str) -> bool {
    let fields = serde_json::to_value(config).unwrap_or_default();
    fields.get(key).is_some()
}
