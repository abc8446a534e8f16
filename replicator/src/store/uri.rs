//! From a replica's URI to an OpenDAL operator.
//!
//! Owns the schemes, what each part of their URIs means, and the form of a URI that may be shown. Credentials are
//! OpenDAL's to find, in the environment and in profiles. Nothing here talks to a network.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use opendal::{Operator, services};
use percent_encoding::percent_decode_str;

use super::StoreError;
use super::error::Action;
use super::keys::StoreKeys;
use super::service::{self, Opened};

/// The schemes that this build can open.
pub const SCHEMES: &[&str] = &[
    "fs",
    "memory",
    #[cfg(feature = "s3")]
    "s3",
    #[cfg(feature = "azblob")]
    "azblob",
    #[cfg(feature = "gcs")]
    "gcs",
    #[cfg(feature = "gcs")]
    "gs",
    #[cfg(feature = "webdav")]
    "webdav",
    #[cfg(feature = "webdav")]
    "webdav+http",
    #[cfg(feature = "sftp")]
    "sftp",
    #[cfg(feature = "ftp")]
    "ftp",
    #[cfg(feature = "ftp")]
    "ftps",
];

/// A store without layers, and what to call it.
pub(super) struct Replica {
    pub(super) opened: Opened,
    pub(super) replica: String,
    pub(super) place: String,
}

/// The same for all ways to write a replica's URI, as far as that can be told. No part of it is secret.
pub(super) fn place_of(operator: &Operator) -> String {
    let info = operator.info();
    let root = info.root();
    // Two folders may be one by a symbolic link. One that cannot be looked at is taken by its name.
    let folder = (info.scheme() == "fs")
        .then(|| std::fs::canonicalize(&*root).ok())
        .flatten();
    match folder {
        Some(folder) => format!("fs://{}", folder.display()),
        None => format!("{}://{}{root}", info.scheme(), info.name()),
    }
}

/// The URI without its query and without user information: fit for logs, errors and status.
#[must_use]
pub fn redacted(uri: &str) -> String {
    let bare = |text: &str| text.split(['?', '#']).next().unwrap_or_default().to_owned();
    let Some((scheme, rest)) = split_scheme(uri) else {
        // Without one, whatever is before an `@` may be credentials.
        return if uri.contains('@') { "…".to_owned() } else { bare(uri) };
    };
    if may_split_a_password(rest) {
        return format!("{scheme}://…");
    }
    let rest = &bare(rest);
    let end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

/// What is before the first `://`, if that can be a scheme: where the scheme was forgotten it stands in a parameter, as an endpoint's, with secrets before it.
fn split_scheme(uri: &str) -> Option<(&str, &str)> {
    let is_of_scheme = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '+' | '-' | '.');
    uri.split_once("://")
        .filter(|(scheme, _)| !scheme.is_empty() && scheme.chars().all(is_of_scheme))
}

/// Whether what comes after `://` may be credentials with a `/` or a `?` in them, as the keys of S3 have: where such a URI
/// would be cut, is in the middle of the secret.
fn may_split_a_password(rest: &str) -> bool {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, after) = rest.split_at(end);
    authority.contains([':', '@']) && after.contains('@')
}

pub(super) struct Parts {
    pub(super) scheme: String,
    /// Before an `@`.
    pub(super) user: Option<String>,
    pub(super) authority: String,
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
}

/// What is wrong with a replica that nobody has opened yet, as far as its URI and its keys tell.
pub(crate) fn check(uri: &str) -> Result<(), StoreError> {
    let replica = redacted(uri);
    let parts = split(uri).map_err(|reason| StoreError::setup(&replica, reason))?;
    match parts.scheme.as_str() {
        "fs" => folder_of(&parts, &replica).map(drop),
        "memory" => refuse_query(&parts, &replica),
        other => match service::of(other) {
            Some(service) => service.check(&parts, &replica),
            None => Err(unknown_scheme(&replica, other)),
        },
    }
}

/// The scheme of a URI, in lower case; nothing where there is none.
pub(crate) fn scheme_of(uri: &str) -> String {
    split_scheme(uri).map_or(String::new(), |(scheme, _)| scheme.to_ascii_lowercase())
}

/// Whether stores of this scheme can be told something besides their place.
pub(crate) fn takes_keys(scheme: &str) -> bool {
    !matches!(scheme, "fs" | "memory")
}

/// Whether stores of this scheme know a key. Those that are not built in know all.
pub(crate) fn takes_key(scheme: &str, key: &str) -> bool {
    match service::of(scheme) {
        Some(service) => (service.knows)(key),
        None => takes_keys(scheme) && !key.is_empty(),
    }
}

/// Some keys that stores of this scheme know, in words.
pub(crate) fn known_keys(scheme: &str) -> &'static str {
    service::of(scheme).map_or("those of OpenDAL", |service| service.known)
}

fn unknown_scheme(replica: &str, scheme: &str) -> StoreError {
    service::unknown_scheme(replica, scheme, SCHEMES)
}

pub(super) fn open(uri: &str, keys: &StoreKeys, create: bool) -> Result<Replica, StoreError> {
    let replica = redacted(uri);
    let mut parts = split(uri).map_err(|reason| StoreError::setup(&replica, reason))?;
    let besides: Vec<_> = keys.besides(&parts.query).cloned().collect();
    parts.query.extend(besides);
    let (opened, place) = match parts.scheme.as_str() {
        "fs" => {
            let operator = open_folder(&parts, &replica, create)?;
            let place = place_of(&operator);
            (Opened::new(operator, ""), place)
        }
        "memory" => {
            let operator = open_memory(&parts, &replica)?;
            (Opened::new(operator, ""), format!("memory://{}", memory_name(&parts)))
        }
        other => match service::of(other) {
            Some(service) => {
                let opened = service.open(parts, &replica)?;
                let place = place_of(&opened.operator);
                let at = match opened.at.is_empty() {
                    true => String::new(),
                    false => format!("?{}", opened.at),
                };
                (opened, place + &at)
            }
            None => return Err(unknown_scheme(&replica, other)),
        },
    };
    Ok(Replica { opened, replica, place })
}

fn split(uri: &str) -> Result<Parts, String> {
    let Some((scheme, rest)) = split_scheme(uri) else {
        return Err("a replica is a URI such as s3://bucket/prefix, or fs:///absolute/path for a folder".to_owned());
    };
    if rest.contains('#') && !may_split_a_password(rest) {
        return Err("a '#' in a replica's URI is to be written as %23".to_owned());
    }
    let (location, query) = rest.split_once('?').unwrap_or((rest, ""));
    let end = location.find('/').unwrap_or(location.len());
    let (authority, path) = location.split_at(end);
    let scheme = scheme.to_ascii_lowercase();
    let takes_user = service::of(&scheme).is_some_and(|service| service.takes_user);
    let (user, authority) = match authority.rsplit_once('@') {
        Some((user, host)) if takes_user && !user.contains(':') && !may_split_a_password(rest) => {
            (Some(decode(user)?), host)
        }
        None if !may_split_a_password(rest) => (None, authority),
        _ if takes_user => {
            return Err(
                "no password is taken from the part before '@'; set it in [store] of the configuration file".to_owned(),
            );
        }
        _ => {
            return Err(
                "credentials are not taken from the part before '@'; set them in the environment or in a profile"
                    .to_owned(),
            );
        }
    };
    Ok(Parts {
        scheme,
        user,
        authority: authority.to_owned(),
        path: decode(path)?,
        query: query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((key.to_ascii_lowercase(), decode(value)?))
            })
            .collect::<Result<_, String>>()?,
    })
}

fn decode(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| "its %-escapes do not make UTF-8".to_owned())?;
    if decoded.contains('\0') {
        return Err("it contains a NUL".to_owned());
    }
    Ok(decoded.into_owned())
}

fn refuse_query(parts: &Parts, replica: &str) -> Result<(), StoreError> {
    match parts.query.first() {
        None => Ok(()),
        Some((key, _)) => Err(StoreError::setup(
            replica,
            format!("{}:// takes no parameters, but {key} is given", parts.scheme),
        )),
    }
}

/// The folder of an `fs://` replica.
fn folder_of(parts: &Parts, replica: &str) -> Result<PathBuf, StoreError> {
    refuse_query(parts, replica)?;
    if !parts.authority.is_empty() {
        return Err(StoreError::setup(
            replica,
            format!(
                "fs:// needs an absolute path; write fs:///{}{}",
                parts.authority, parts.path
            ),
        ));
    }
    let root = PathBuf::from(&parts.path);
    if root.parent().is_none() || parts.path.split('/').any(|part| part == ".." || part == ".") {
        return Err(StoreError::setup(
            replica,
            "fs:// needs the absolute path of a folder below the root, without . and ..",
        ));
    }
    Ok(root)
}

fn open_folder(parts: &Parts, replica: &str, create: bool) -> Result<Operator, StoreError> {
    let root = folder_of(parts, replica)?;
    let io = |error: std::io::Error| StoreError::from_io(Action::Open, None, replica, &error);
    if create {
        make_folder(&root).map_err(io)?;
    } else if !std::fs::metadata(&root).map_err(io)?.is_dir() {
        return Err(io(std::io::ErrorKind::NotADirectory.into()));
    }
    // Without lossy conversion: the path came in as UTF-8.
    Operator::new(services::Fs::default().root(&parts.path))
        .map_err(|error| StoreError::from_opendal(Action::Open, None, replica, &error))
}

/// Makes the folder and the missing ones above it durably, with the permissions that the process's umask leaves: a replica is
/// as readable as the databases that the same process creates.
fn make_folder(folder: &Path) -> std::io::Result<()> {
    match std::fs::create_dir(folder) {
        Ok(()) => super::folder::sync_parent(folder),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            if std::fs::metadata(folder)?.is_dir() {
                Ok(())
            } else {
                Err(std::io::ErrorKind::NotADirectory.into())
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => match folder.parent() {
            Some(parent) => {
                make_folder(parent)?;
                make_folder(folder)
            }
            None => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// Memory replicas by name, so that whoever restores in this process finds what was written in it.
static MEMORY: LazyLock<Mutex<HashMap<String, Operator>>> = LazyLock::new(Mutex::default);

fn open_memory(parts: &Parts, replica: &str) -> Result<Operator, StoreError> {
    refuse_query(parts, replica)?;
    let name = memory_name(parts);
    if name.is_empty() {
        return Err(StoreError::setup(replica, "it has no name; write memory://<name>"));
    }
    let mut stores = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(operator) = stores.get(&name) {
        return Ok(operator.clone());
    }
    let operator = Operator::new(services::Memory::default())
        .map_err(|error| StoreError::from_opendal(Action::Open, None, replica, &error))?;
    stores.insert(name, operator.clone());
    Ok(operator)
}

fn memory_name(parts: &Parts) -> String {
    let name = format!("{}{}", parts.authority, parts.path);
    name.trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_uris_carry_no_secret() {
        for (uri, shown) in [
            ("s3://b/p?secret_access_key=x", "s3://b/p"),
            ("s3://me:pw@b/p#x", "s3://b/p"),
            ("fs:///a/b", "fs:///a/b"),
            ("nonsense?x", "nonsense"),
            ("fs:///a/me@host", "fs:///a/me@host"),
            ("s3://b/me@host", "s3://b/me@host"),
            ("s3://me:p/w@b/p", "s3://…"),
            ("s3://me:p?w@b/p", "s3://…"),
            ("s3://me:p#w@b/p", "s3://…"),
            ("b/p?secret_access_key=x&endpoint=http://h", "b/p"),
            ("s3:/b/p#secret_access_key=x&endpoint=http://h", "s3:/b/p"),
            ("me:pw@b/p?endpoint=http://h", "…"),
            (" s3://me:pw@b/p", "…"),
            ("s3://me:p@w/x@b/p", "s3://…"),
        ] {
            assert_eq!(redacted(uri), shown);
        }
    }

    #[test]
    fn wrong_uris_say_what_is_right() {
        for (uri, says) in [
            ("/var/backup", "fs:///absolute/path"),
            (
                "b/x?secret_access_key=a_secret_value&endpoint=http://h",
                "fs:///absolute/path",
            ),
            ("://b/x", "fs:///absolute/path"),
            ("gopher://host/x", "this build has fs://, memory://"),
            #[cfg(not(feature = "ftp"))]
            (
                "ftp://host/x",
                "no ftp://: build with the feature `ftp`; it has fs://, memory://",
            ),
            #[cfg(not(feature = "gcs"))]
            ("gs://bucket/x", "no gs://: build with the feature `gcs`"),
            ("fs://relative/path", "write fs:///relative/path"),
            ("fs:///", "below the root"),
            ("fs:///a/../b", "without . and .."),
            ("fs:///tmp/x?a=1", "takes no parameters, but a is given"),
            ("fs:///tmp/%ff", "UTF-8"),
            ("fs:///tmp/%00", "NUL"),
            ("memory://", "memory://<name>"),
            ("s3://u:secret@b/x", "environment or in a profile"),
            ("s3://u:x/secret@b/x", "environment or in a profile"),
            ("s3://u:x?secret@b/x", "environment or in a profile"),
            ("s3://u:x#secret@b/x", "environment or in a profile"),
            ("s3://b/x#frag", "%23"),
            #[cfg(feature = "s3")]
            ("s3:///x", "no bucket"),
            #[cfg(feature = "s3")]
            ("s3://b/x?regoin=eu", "regoin is not a parameter"),
            #[cfg(feature = "s3")]
            ("s3://b/x?bucket=eu", "bucket is not a parameter"),
            #[cfg(feature = "s3")]
            ("s3://b/x?region=eu&region=us", "given twice"),
            #[cfg(feature = "azblob")]
            ("azblob:///x", "no container"),
            #[cfg(feature = "azblob")]
            (
                "azblob://c/x?encryption_key=secret",
                "encryption_key is not a parameter",
            ),
            #[cfg(feature = "azblob")]
            ("azblob://c/x?account_name=a&account_key=a_secret_value", "base64"),
            #[cfg(feature = "gcs")]
            ("gs://b/x?credential=a_secret_value", "not a service account's JSON"),
            #[cfg(feature = "sftp")]
            ("sftp://u:secret@h/x", "no password is taken"),
            #[cfg(feature = "sftp")]
            ("sftp://u:a/secret@h/x", "no password is taken"),
            #[cfg(feature = "sftp")]
            ("sftp://u@h", "no folder"),
            #[cfg(feature = "sftp")]
            ("sftp://-oProxyCommand=x/x", "begins with '-'"),
            #[cfg(feature = "sftp")]
            ("sftp://h/x?user=-oProxyCommand=x", "begins with '-'"),
            #[cfg(feature = "sftp")]
            ("sftp://h/x?known_hosts_strategy=a_secret_value", "known_hosts"),
            #[cfg(feature = "ftp")]
            ("ftp://h/x%0d%0aDELE%20y", "control character"),
            #[cfg(feature = "ftp")]
            ("ftp://h/x?password=a%0asecret", "control character"),
            #[cfg(feature = "webdav")]
            ("webdav:///x", "no server"),
            #[cfg(feature = "webdav")]
            ("webdav://h/x?endpoint=http://other", "endpoint is not a parameter"),
        ] {
            let error = open(uri, &StoreKeys::default(), true)
                .map(|_| ())
                .expect_err(uri)
                .to_string();
            assert!(error.contains(says), "{uri}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[cfg(feature = "s3")]
    #[test]
    fn s3_takes_bucket_prefix_and_parameters() {
        let opened = open(
            "s3://bucket/a%20b/c?region=eu-central-1&endpoint=http://127.0.0.1:1",
            &StoreKeys::default(),
            true,
        )
        .map_err(|error| error.to_string());
        let operator = opened.expect("opens without a network").opened.operator;
        assert_eq!(operator.info().name(), "bucket");
        assert_eq!(operator.info().root(), "/a b/c/");
        assert!(operator.info().capability().write_with_if_not_exists);
    }

    /// Two databases of a process never get one place.
    #[cfg(all(
        feature = "sftp",
        feature = "ftp",
        feature = "webdav",
        feature = "azblob",
        feature = "gcs"
    ))]
    #[test]
    fn places_are_told_apart() {
        let place = |uri: &str| match open(uri, &StoreKeys::default(), true) {
            Ok(replica) => replica.place,
            Err(error) => panic!("{uri}: {error}"),
        };
        let uris = [
            "ftp://a:1/x",
            "ftp://b:1/x",
            "ftp://a:2/x",
            "ftps://a:1/x",
            "webdav://a/x",
            "webdav://b/x",
            "webdav+http://a/x",
            "azblob://c/x?account_name=a",
            "azblob://c/x?account_name=b",
            "gs://b/x",
            "gs://b/y",
        ];
        let places: std::collections::HashSet<String> = uris.iter().map(|uri| place(uri)).collect();
        assert_eq!(places.len(), uris.len(), "{places:?}");
        assert_eq!(place("gs://b/x"), place("gcs://b/x/"));
        assert_eq!(place("ftp://me@a:1/x"), place("ftp://a:1/x?user=you"));
    }
}
