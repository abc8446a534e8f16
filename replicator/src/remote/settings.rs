//! From the parameters of a URI to how a remote database is read. Pure: the environment was read before.

use std::time::Duration;

use replvfs_vfs::types::{Txid, UnixMillis};

use crate::config::parse::{self, DURATION_FORMS, SIZE_FORMS, show_duration, show_size};
use crate::config::{is_sqlite_parameter, is_true, replica_of};
use crate::history::Target;
use crate::time::At;

const NAMES: &str = "replica, at, txid, follow, page_cache and timeout";
const MIB: u64 = 1 << 20;
/// A block and what it is decompressed from, for each of a few readers.
const PAGE_CACHE: (u64, u64) = (4 * MIB, 1 << 40);
const FOLLOW: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(3600));
const TIMEOUT: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(3600));

/// How one connection reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// `None`: that of the program.
    pub(super) replica: Option<String>,
    pub(super) target: Target,
    /// How often is asked for what is new; `None` for never.
    pub(super) follow: Option<Duration>,
    /// Bytes of pages that are kept in memory, for all connections to the replica.
    pub(super) page_cache: u64,
    /// How long a page may take.
    pub(super) timeout: Duration,
}

impl Settings {
    /// Every parameter is understood, or an error: a sentence that says what to do.
    pub(super) fn from_uri(
        name: &str,
        parameters: &[(String, String)],
        timeout: Option<Duration>,
    ) -> Result<Settings, String> {
        let mut settings = Settings {
            replica: None,
            target: Target::Newest,
            follow: None,
            page_cache: 64 * MIB,
            timeout: timeout.unwrap_or(Duration::from_secs(30)),
        };
        let mut seen: Vec<&str> = Vec::new();
        for (parameter, value) in parameters {
            if is_sqlite_parameter(parameter) {
                refuse_unlocked(parameters, parameter)?;
                continue;
            }
            if seen.contains(&parameter.as_str()) {
                return Err(format!(
                    "the URI parameter {parameter} is given twice: leave one of them out"
                ));
            }
            seen.push(parameter);
            settings.set(name, parameter, value)?;
        }
        if settings.follow.is_some() && settings.target != Target::Newest {
            return Err("follow goes on from the newest state: leave out at, txid or follow".to_owned());
        }
        if seen.contains(&"at") && seen.contains(&"txid") {
            return Err("at and txid both say which state is wanted: leave one of them out".to_owned());
        }
        Ok(settings)
    }

    fn set(&mut self, name: &str, parameter: &str, value: &str) -> Result<(), String> {
        match parameter {
            "replica" if value.is_empty() => {
                return Err("the URI parameter replica is empty: give a URI such as s3://bucket/app".to_owned());
            }
            "replica" => self.replica = Some(replica_of(value, name)?),
            "at" => self.target = Target::At(time(value).map_err(|problem| format!("the URI parameter at={problem}"))?),
            "txid" => {
                self.target = Target::Txid(txid(value).map_err(|problem| format!("the URI parameter txid={problem}"))?)
            }
            "follow" => self.follow = Some(duration("follow", value, FOLLOW)?),
            "timeout" => self.timeout = duration("timeout", value, TIMEOUT)?,
            "page_cache" => {
                let size = parse::size(value)
                    .ok_or_else(|| format!("the URI parameter page_cache={value} is not a size: write {SIZE_FORMS}"))?;
                self.page_cache = bounded("page_cache", size, PAGE_CACHE, show_size)?;
            }
            _ => {
                return Err(format!(
                    "{parameter} is not a URI parameter of SQLite or of remote databases; these have {NAMES}"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(feature = "testing")]
pub(crate) fn for_fuzzing(name: &str, parameters: &[(String, String)]) -> Result<(), String> {
    Settings::from_uri(name, parameters, None).map(drop)
}

/// With these SQLite does not say when it reads.
fn refuse_unlocked(parameters: &[(String, String)], name: &str) -> Result<(), String> {
    if ["nolock", "immutable"].contains(&name) && is_true(parameters, name) {
        return Err(format!(
            "{name}=1 takes away the locks by which a read transaction sees one state: leave it out"
        ));
    }
    Ok(())
}

/// A moment, as `replvfs restore --at` takes it.
pub(super) fn time(text: &str) -> Result<UnixMillis, String> {
    let at: At = text
        .parse()
        .map_err(|problem| format!("{text} is not a time: {problem}"))?;
    if let Some(note) = at.note() {
        tracing::info!(at = text, "{note}");
    }
    Ok(at.time)
}

pub(super) fn txid(text: &str) -> Result<Txid, String> {
    text.parse()
        .map(Txid)
        .map_err(|_| format!("{text} is not the number of a transaction: replvfs log shows those that there are"))
}

fn duration(name: &str, value: &str, bounds: (Duration, Duration)) -> Result<Duration, String> {
    let length = parse::duration(value)
        .ok_or_else(|| format!("the URI parameter {name}={value} is not a duration: write {DURATION_FORMS}"))?;
    bounded(name, length, bounds, show_duration)
}

fn bounded<T: PartialOrd + Copy>(
    name: &str,
    value: T,
    (least, most): (T, T),
    show: impl Fn(T) -> String,
) -> Result<T, String> {
    if value < least || value > most {
        return Err(format!(
            "the URI parameter {name}={} is out of bounds: from {} to {} is accepted",
            show(value),
            show(least),
            show(most)
        ));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn settings(text: &str) -> Result<Settings, String> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pairs: Vec<(String, String)> = pairs
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Settings::from_uri("app.db", &pairs, None)
    }

    #[test]
    fn what_is_said_and_what_is_not() {
        let plain = settings("vfs=replvfs-remote&replica=memory://x&mode=ro").unwrap();
        assert_eq!(plain.replica.as_deref(), Some("memory://x"));
        assert_eq!((plain.target, plain.follow), (Target::Newest, None));
        assert_eq!((plain.page_cache, plain.timeout), (64 << 20, Duration::from_secs(30)));
        let all = settings("replica=s3://b/{name}&follow=2s&page_cache=8MiB&timeout=5s").unwrap();
        assert_eq!(all.replica.as_deref(), Some("s3://b/app.db"));
        assert_eq!((all.follow, all.page_cache), (Some(Duration::from_secs(2)), 8 << 20));
        assert_eq!(all.timeout, Duration::from_secs(5));
        assert_eq!(settings("nolock=0&immutable=no").unwrap().target, Target::Newest);
        assert_eq!(settings("txid=17").unwrap().target, Target::Txid(Txid(17)));
        let at = settings("at=1970-01-01T00:00:01.5Z").unwrap();
        assert_eq!(at.target, Target::At(UnixMillis(1500)));
        let day = settings("at=1970-01-02").unwrap();
        assert_eq!(day.target, Target::At(UnixMillis(86_400_000)));
        let Target::At(ago) = settings("at=5 minutes ago").unwrap().target else {
            panic!("a time");
        };
        let now = jiff::Timestamp::now().as_millisecond();
        assert!((0..60_000).contains(&(now - 5 * 60_000 - ago.0)), "{ago:?}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("replica=", "replica is empty"),
            ("replica=a&replica=b", "given twice"),
            ("at=yesterday", "at=yesterday is not a time"),
            ("at=5 minutes", "say 5 minutes ago"),
            ("txid=-1", "txid=-1 is not the number"),
            ("txid=1&at=1970-01-01T00:00:01Z", "both say"),
            ("txid=1&follow=1s", "follow goes on"),
            ("follow=1", "is not a duration"),
            ("follow=1ms", "from 10ms to 1h"),
            ("page_cache=1MiB", "from 4MiB to 1TiB"),
            ("page_cache=many", "is not a size"),
            ("timeout=0s", "out of bounds"),
            ("nolock=1", "nolock=1 takes away the locks"),
            ("immutable=on", "immutable=1 takes away the locks"),
            ("flush_interval=1s", "is not a URI parameter"),
        ] {
            let error = settings(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
