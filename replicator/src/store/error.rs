//! What can go wrong with the object store, told in one line that a user can act on.
//!
//! Owns the wording, and that no query string, credential or user name gets into it. Leaves to the pipeline
//! how long a failed call is repeated.

use std::error::Error as _;
use std::fmt;
use std::io;

/// A call to the store that failed: what was done, to what, why, and what helps.
#[derive(Debug, Clone)]
pub struct StoreError(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    action: Action,
    object: Option<String>,
    replica: String,
    cause: Cause,
    reason: String,
}

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Open,
    Create,
    Read,
    Stat,
    List,
    Delete,
}

impl Action {
    fn verb(self) -> &'static str {
        match self {
            Action::Open => "opening",
            Action::Create => "creating",
            Action::Read => "reading",
            Action::Stat => "looking up",
            Action::List => "listing",
            Action::Delete => "deleting",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    NotFound,
    Denied,
    Setup,
    Other,
}

impl StoreError {
    /// The URI, or something else that only the user can change.
    pub(super) fn setup(replica: &str, reason: impl Into<String>) -> StoreError {
        StoreError(Box::new(Inner {
            action: Action::Open,
            object: None,
            replica: replica.to_owned(),
            cause: Cause::Setup,
            reason: reason.into(),
        }))
    }

    pub(super) fn from_opendal(action: Action, object: Option<&str>, replica: &str, error: &opendal::Error) -> Self {
        let (cause, mut reason) = explain_opendal(error);
        if matches!(action, Action::Create | Action::List) && cause == Cause::NotFound {
            reason = format!(
                "the server says that there is no such place ({}); correct the replica, or look after what is between here and the store",
                detail(error)
            );
        }
        reason.push_str(refusal(action, cause));
        StoreError(Box::new(Inner {
            action,
            object: object.map(str::to_owned),
            replica: replica.to_owned(),
            cause,
            reason,
        }))
    }

    pub(super) fn from_io(action: Action, object: Option<&str>, replica: &str, error: &io::Error) -> Self {
        let (cause, advice) = match error.kind() {
            io::ErrorKind::NotFound => (Cause::NotFound, ""),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                (Cause::Denied, "; check the folder's owner and permissions")
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (Cause::Other, "; make room there"),
            io::ErrorKind::NotADirectory => (Cause::Setup, "; a part of the path is a file, name a folder"),
            io::ErrorKind::Unsupported => (Cause::Setup, ""),
            _ => (Cause::Other, ""),
        };
        StoreError(Box::new(Inner {
            action,
            object: object.map(str::to_owned),
            replica: replica.to_owned(),
            cause,
            reason: format!("{}{advice}{}", scrub(&error.to_string()), refusal(action, cause)),
        }))
    }

    /// OpenDAL quotes what it cannot understand, and that may be the secret, under another key than it is meant for.
    #[allow(dead_code)] // In a build without any service.
    pub(super) fn without(mut self, values: &[String]) -> StoreError {
        for value in values.iter().filter(|value| !value.is_empty()) {
            let quoted = [format!("'{value}'"), format!("\"{value}\""), format!("`{value}`")];
            for quoted in quoted {
                self.0.reason = self.0.reason.replace(&quoted, "…");
            }
            // As long as no word is.
            if value.len() >= 8 {
                self.0.reason = self.0.reason.replace(value, "…");
            }
        }
        self
    }

    /// What was asked for is not allowed.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.0.cause == Cause::Denied
    }

    /// The object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.0.cause == Cause::NotFound
    }

    /// Trying again does not help until somebody changes the configuration, the permissions or the store.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.0.cause != Cause::Other
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        match &inner.object {
            Some(object) => write!(
                f,
                "{} {object} in the replica {}: {}",
                inner.action.verb(),
                inner.replica,
                inner.reason
            ),
            None => write!(
                f,
                "{} the replica {}: {}",
                inner.action.verb(),
                inner.replica,
                inner.reason
            ),
        }
    }
}

impl std::error::Error for StoreError {}

/// What else helps where only deleting is not allowed.
fn refusal(action: Action, cause: Cause) -> &'static str {
    match (action, cause) {
        (Action::Delete, Cause::Denied) => {
            "; deleting is not allowed there: allow it, or set retention=forever, which needs no such right"
        }
        _ => "",
    }
}

/// Codes of S3 that come with a status which says something else, and what helps.
const TOLD_BY_CODE: &[(&str, &str)] = &[
    ("ExpiredToken", EXPIRED),
    ("TokenRefreshRequired", EXPIRED),
    ("InvalidToken", EXPIRED),
    (
        "RequestTimeTooSkewed",
        "the clock of this machine and that of the store are too far apart, so it refuses all requests; set the clock",
    ),
];
const EXPIRED: &str = "the credentials have expired; renew them: a profile or the machine's role is read again within five minutes, what was given \
     with the replica or in the environment when the program is started again";

fn explain_opendal(error: &opendal::Error) -> (Cause, String) {
    use opendal::ErrorKind;
    let detail = detail(error);
    if let Some((_, what)) = TOLD_BY_CODE.iter().find(|(code, _)| detail.contains(code)) {
        return (Cause::Other, format!("{what} ({detail})"));
    }
    match error.kind() {
        ErrorKind::NotFound => (Cause::NotFound, "it does not exist".to_owned()),
        ErrorKind::PermissionDenied => (
            Cause::Denied,
            format!("access is denied ({detail}); check the credentials and what they are allowed to do"),
        ),
        ErrorKind::ConfigInvalid if detail.contains("NoSuchBucket") => (
            Cause::Setup,
            "the bucket does not exist; create it, or correct the replica".to_owned(),
        ),
        ErrorKind::ConfigInvalid if detail.contains("region is missing") => (
            Cause::Setup,
            "no region is known; add ?region=<region> to the replica or set AWS_REGION".to_owned(),
        ),
        ErrorKind::ConfigInvalid => (Cause::Setup, format!("{detail}; correct the replica's URI")),
        ErrorKind::Unsupported => (Cause::Setup, format!("the store cannot do this ({detail})")),
        _ if detail.contains("timeout reached") => {
            (Cause::Other, format!("the store does not answer in time ({detail})"))
        }
        ErrorKind::RateLimited => (Cause::Other, format!("the store asks for fewer requests ({detail})")),
        // What OpenDAL's fs makes of a path that leads through a file.
        ErrorKind::NotADirectory => (Cause::Setup, "a part of the path is a file; name a folder".to_owned()),
        _ => (Cause::Other, detail),
    }
}

/// The message and its sources, each once. OpenDAL's own `Display` adds URLs and response headers, which have no place
/// in a user's log.
fn detail(error: &opendal::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    if !error.message().is_empty() {
        parts.push(error.message().to_owned());
    }
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        source = cause.source();
    }
    if parts.is_empty() {
        return error.kind().to_string();
    }
    scrub(&parts.join(": "))
}

/// Drops user information and query strings from whatever looks like a URL, and bounds the length.
fn scrub(text: &str) -> String {
    const LONGEST_CHARS: usize = 400;
    let words = text.split_whitespace().map(|word| {
        let Some(scheme_end) = word.find("://").map(|at| at + 3) else {
            return word.to_owned();
        };
        let (head, rest) = word.split_at(scheme_end);
        let authority_end = rest.find('/').unwrap_or(rest.len());
        let rest = match rest[..authority_end].rfind('@') {
            Some(at) => &rest[at + 1..],
            None => rest,
        };
        let Some(query) = rest.find('?') else {
            return format!("{head}{rest}");
        };
        let tail = rest[query..].trim_start_matches(|c: char| !matches!(c, ')' | '"' | '\'' | '>'));
        format!("{head}{}{tail}", &rest[..query])
    });
    let text = words.collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(LONGEST_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_what_may_be_secret() {
        assert_eq!(
            scrub("error for url (http://me:pw@host:9000/b/k?X-Amz-Signature=abc) refused"),
            "error for url (http://host:9000/b/k) refused"
        );
        assert_eq!(scrub("plain words stay"), "plain words stay");
        assert!(scrub(&"é".repeat(1000)).chars().count() <= 401);
    }

    #[test]
    fn a_missing_bucket_and_a_denial_say_what_to_do() {
        let missing = opendal::Error::new(opendal::ErrorKind::ConfigInvalid, "S3Error { code: \"NoSuchBucket\" }");
        let error = StoreError::from_opendal(Action::Create, Some("replvfs.json"), "s3://b/p", &missing);
        assert_eq!(
            error.to_string(),
            "creating replvfs.json in the replica s3://b/p: the bucket does not exist; create it, or correct the replica"
        );
        assert!(error.is_permanent() && !error.is_not_found());
        let denied = opendal::Error::new(opendal::ErrorKind::PermissionDenied, "AccessDenied");
        let error = StoreError::from_opendal(Action::List, None, "s3://b/p", &denied);
        assert!(error.to_string().contains("check the credentials"), "{error}");
        let error = StoreError::from_opendal(Action::Delete, Some("chunk/x"), "s3://b/p", &denied);
        assert!(
            error.is_denied() && error.to_string().contains("retention=forever"),
            "{error}"
        );
        for (kind, code, says) in [
            (
                opendal::ErrorKind::Unexpected,
                "ExpiredToken",
                "credentials have expired",
            ),
            (
                opendal::ErrorKind::PermissionDenied,
                "RequestTimeTooSkewed",
                "set the clock",
            ),
        ] {
            let error = opendal::Error::new(kind, format!("S3Error {{ code: \"{code}\" }}"));
            let error = StoreError::from_opendal(Action::Delete, Some("chunk/x"), "s3://b/p", &error);
            assert!(error.to_string().contains(says) && !error.is_denied(), "{error}");
        }
        let passing = opendal::Error::new(opendal::ErrorKind::Unexpected, "reset").set_temporary();
        assert!(!StoreError::from_opendal(Action::Read, None, "s3://b", &passing).is_permanent());
    }
}
