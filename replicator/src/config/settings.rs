//! From names and values to the settings of one database. Pure: the environment is passed in.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use opendal::Operator;

use super::beneath::Beneath;
use super::parse::{self, DURATION_FORMS, SIZE_FORMS, show_duration, show_size};
use super::placeholder::fill_in;
use super::{Config, ConfigError, Durability, OnFenced, OnTimeout, Restore, Retention};
use crate::pipeline::upkeep::Rule;
use crate::store::{StoreKeys, redacted};

pub(super) const NAMES: &[&str] = &[
    "replica",
    "durability",
    "timeout",
    "on_timeout",
    "flush_interval",
    "segment_size",
    "memory_limit",
    "metrics",
    "wal_limit",
    "close_timeout",
    "restore",
    "on_fenced",
    "retention",
];

/// SQLite's own URI parameters, <https://www.sqlite.org/uri.html> and those that its Unix VFS looks for.
const SQLITE_NAMES: &[&str] = &[
    "vfs",
    "mode",
    "cache",
    "immutable",
    "psow",
    "nolock",
    "modeof",
    "readonly_shm",
    "8_3_names",
];

/// In bytes, for the whole process.
pub(super) const MEMORY_LIMIT: u64 = 64 * MIB;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const MS: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What one source says; `None` where it says nothing.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) replica: Option<String>,
    pub(crate) durability: Option<Durability>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) on_timeout: Option<OnTimeout>,
    pub(crate) flush_interval: Option<Duration>,
    pub(crate) segment_size: Option<u64>,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) wal_limit: Option<u64>,
    pub(crate) close_timeout: Option<Duration>,
    pub(crate) restore: Option<Restore>,
    pub(crate) on_fenced: Option<OnFenced>,
    pub(crate) retention: Option<Retention>,
}

/// A replica's URI may carry credentials in its query.
impl std::fmt::Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Given")
            .field("replica", &self.replica.as_deref().map(redacted))
            .field("durability", &self.durability)
            .field("timeout", &self.timeout)
            .field("on_timeout", &self.on_timeout)
            .field("flush_interval", &self.flush_interval)
            .field("segment_size", &self.segment_size)
            .field("memory_limit", &self.memory_limit)
            .field("metrics", &self.metrics)
            .field("wal_limit", &self.wal_limit)
            .field("close_timeout", &self.close_timeout)
            .field("restore", &self.restore)
            .field("on_fenced", &self.on_fenced)
            .field("retention", &self.retention)
            .finish()
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Uri(uri, keys) => f.debug_tuple("Uri").field(&redacted(uri)).field(keys).finish(),
            Target::Operator(operator) => f.debug_tuple("Operator").field(operator).finish(),
        }
    }
}

/// Where the history goes.
#[derive(Clone)]
pub(crate) enum Target {
    /// To a URI, with the database's name already in it; and what else its store is to be told.
    Uri(String, StoreKeys),
    /// To the program's own operator.
    Operator(Operator),
}

/// Everything that the replication of one database needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) target: Target,
    pub(crate) timeout: Duration,
    pub(crate) durability: Durability,
    pub(crate) on_timeout: OnTimeout,
    pub(crate) flush_interval: Duration,
    pub(crate) segment_size: u64,
    pub(crate) close_timeout: Duration,
    pub(crate) wal_limit: u64,
    pub(crate) restore: Restore,
    pub(crate) on_fenced: OnFenced,
    pub(crate) retention: Retention,
    pub(crate) upkeep: Rule,
    /// With the defaults filled in, for comparison with a later connection.
    pub(super) effective: Given,
}

/// Where a value was found, for its error.
#[derive(Clone, Copy)]
pub(super) enum Source {
    Uri,
    /// Whose errors have a place before them.
    File,
    Environment,
}

impl Source {
    fn name(self, parameter: &str) -> String {
        match self {
            Source::Uri => format!("the URI parameter {parameter}"),
            Source::File => parameter.to_owned(),
            Source::Environment => variable_name(parameter),
        }
    }
}

pub(super) fn variable_name(parameter: &str) -> String {
    format!("REPLVFS_{}", parameter.to_ascii_uppercase())
}

fn fail<T>(text: String) -> Result<T, ConfigError> {
    Err(ConfigError(text))
}

impl Given {
    fn from_uri(parameters: &[(String, String)]) -> Result<Given, ConfigError> {
        let mut given = Given::default();
        let mut seen: Vec<&str> = Vec::new();
        for (name, value) in parameters {
            if is_sqlite_parameter(name) {
                continue;
            }
            if seen.contains(&name.as_str()) {
                return fail(format!(
                    "the URI parameter {name} is given twice: leave one of them out"
                ));
            }
            seen.push(name);
            if name == "memory_limit" {
                return fail(format!(
                    "memory_limit={value} in a URI: the limit is for the whole process; set it in the program or as \
                     REPLVFS_MEMORY_LIMIT"
                ));
            }
            if name == "metrics" {
                return fail(
                    "metrics in a URI: the endpoint is the whole process's; set it in the program or as REPLVFS_METRICS".to_owned(),
                );
            }
            given.set(Source::Uri, name, value)?;
        }
        Ok(given)
    }

    pub(super) fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Result<Given, ConfigError> {
        let mut given = Given::default();
        for name in NAMES {
            let Some(value) = variable(&variable_name(name)) else {
                continue;
            };
            match value.into_string() {
                Ok(value) => given.set(Source::Environment, name, &value)?,
                Err(_) => return fail(format!("{} is not UTF-8", variable_name(name))),
            }
        }
        Ok(given)
    }

    pub(super) fn set(&mut self, source: Source, name: &str, value: &str) -> Result<(), ConfigError> {
        let at = source.name(name);
        match name {
            "replica" if value.is_empty() => return fail(format!("{at} is empty: give a URI such as s3://bucket/app")),
            "replica" => self.replica = Some(value.to_owned()),
            "durability" => match ["async", "remote", "strict"]
                .contains(&value)
                .then(|| Durability::from_name(value))
            {
                Some(level) => self.durability = level,
                None => {
                    return fail(format!(
                        "{at}={value} is not understood: this version accepts async, remote and strict"
                    ));
                }
            },
            "on_timeout" => {
                self.on_timeout = Some(match value {
                    "error" => OnTimeout::Error,
                    "continue" => OnTimeout::Continue,
                    _ => {
                        return fail(format!("{at}={value} is not understood: write error or continue"));
                    }
                });
            }
            "restore" => {
                self.restore = Some(match value {
                    "if-missing" => Restore::IfMissing,
                    "never" => Restore::Never,
                    "if-behind" => Restore::IfBehind,
                    _ => {
                        return fail(format!(
                            "{at}={value} is not understood: this version accepts if-missing, if-behind and never"
                        ));
                    }
                });
            }
            "on_fenced" => {
                self.on_fenced = Some(match value {
                    "continue" => OnFenced::Continue,
                    "stop" => OnFenced::Stop,
                    _ => {
                        return fail(format!(
                            "{at}={value} is not understood: this version accepts continue and stop"
                        ));
                    }
                });
            }
            "retention" if value == "forever" => self.retention = Some(Retention::Forever),
            "retention" => match parse::duration(value) {
                Some(length) => self.retention = Some(Retention::For(length)),
                None => {
                    return fail(format!(
                        "{at}={value} is neither forever nor a duration: write {DURATION_FORMS}"
                    ));
                }
            },
            "timeout" => self.timeout = Some(read_duration(&at, value)?),
            "flush_interval" => self.flush_interval = Some(read_duration(&at, value)?),
            "close_timeout" => self.close_timeout = Some(read_duration(&at, value)?),
            "segment_size" => self.segment_size = Some(read_size(&at, value)?),
            "memory_limit" => self.memory_limit = Some(read_size(&at, value)?),
            "wal_limit" => self.wal_limit = Some(read_size(&at, value)?),
            "metrics" => match value.parse() {
                Ok(address) => self.metrics = Some(address),
                Err(_) => {
                    return fail(format!(
                        "{at}={value} is not an address with a port: write 127.0.0.1:9464, or 0.0.0.0:9464 for all networks of the machine"
                    ));
                }
            },
            _ => {
                return fail(format!(
                    "{name} is not a URI parameter of replvfs or SQLite; replvfs has {}",
                    NAMES.join(", ")
                ));
            }
        }
        self.check_one(&at, name)
    }

    /// Checks all bounds.
    pub(super) fn check(&self, place: &str) -> Result<(), ConfigError> {
        NAMES
            .iter()
            .try_for_each(|name| self.check_one(&format!("{name} in {place}"), name))
    }

    fn check_one(&self, at: &str, name: &str) -> Result<(), ConfigError> {
        match name {
            "timeout" => bound(at, self.timeout, (MS, HOUR), show_duration),
            "flush_interval" => bound(at, self.flush_interval, (10 * MS, HOUR), show_duration),
            "close_timeout" => bound(at, self.close_timeout, (Duration::ZERO, 10 * MINUTE), show_duration),
            "retention" => {
                let length = match self.retention {
                    Some(Retention::For(length)) => Some(length),
                    Some(Retention::Forever) | None => None,
                };
                bound(at, length, (MINUTE, CENTURY), show_duration)
            }
            "segment_size" => bound(at, self.segment_size, (64 * KIB, 256 * MIB), show_size),
            "memory_limit" => bound(at, self.memory_limit, (MIB, TIB), show_size),
            "wal_limit" => bound(at, self.wal_limit, (MIB, TIB), show_size),
            _ => Ok(()),
        }
    }

    /// This one where it says something, `weaker` elsewhere.
    pub(super) fn or(self, weaker: Given) -> Given {
        Given {
            replica: self.replica.or(weaker.replica),
            durability: self.durability.or(weaker.durability),
            timeout: self.timeout.or(weaker.timeout),
            on_timeout: self.on_timeout.or(weaker.on_timeout),
            flush_interval: self.flush_interval.or(weaker.flush_interval),
            segment_size: self.segment_size.or(weaker.segment_size),
            memory_limit: self.memory_limit.or(weaker.memory_limit),
            metrics: self.metrics.or(weaker.metrics),
            wal_limit: self.wal_limit.or(weaker.wal_limit),
            close_timeout: self.close_timeout.or(weaker.close_timeout),
            restore: self.restore.or(weaker.restore),
            on_fenced: self.on_fenced.or(weaker.on_fenced),
            retention: self.retention.or(weaker.retention),
        }
    }
}

#[cfg(feature = "testing")]
pub(crate) fn for_fuzzing(path: &Path, parameters: &[(String, String)]) -> Result<(), ConfigError> {
    Settings::resolve(&Config::default(), path, parameters).map(drop)
}

impl Settings {
    /// `None` when no replica is set anywhere. Reads the configuration file, if there is one.
    pub(crate) fn resolve(
        config: &Config,
        path: &Path,
        parameters: &[(String, String)],
    ) -> Result<Option<Settings>, ConfigError> {
        Settings::over(config, config.beneath(path)?, path, parameters)
    }

    /// For a database that names no VFS. Nothing of its URI is looked at as long as no replica is set, but what asks for one; and
    /// what is neither SQLite's nor ours is the program's own, which SQLite ignores as well.
    pub(crate) fn resolve_default(
        config: &Config,
        path: &Path,
        parameters: &[(String, String)],
    ) -> Result<Option<Settings>, ConfigError> {
        let beneath = config.beneath(path)?;
        let asks = |name: &str| parameters.iter().any(|(known, _)| known == name);
        let waits = durability_of(parameters).is_some_and(|level| level != Durability::Async);
        if beneath.given.replica.is_none() && !asks("replica") && !waits && beneath.table.is_none() {
            return Ok(None);
        }
        Settings::over(config, beneath, path, &of_ours(parameters))
    }

    pub(super) fn over(
        config: &Config,
        beneath: Beneath,
        path: &Path,
        parameters: &[(String, String)],
    ) -> Result<Option<Settings>, ConfigError> {
        refuse_nolock(parameters)?;
        let uri = Given::from_uri(parameters)?;
        let target = match (&uri.replica, &config.operator, &beneath.given.replica) {
            (None, Some(operator), _) => {
                beneath
                    .store
                    .none_for("the program's operator")
                    .map_err(|why| beneath.at_table(&why))?;
                Target::Operator(operator.clone())
            }
            (Some(replica), _, _) | (None, None, Some(replica)) => {
                let replica = fill_in(replica, path)?;
                let keys = beneath.store.for_replica(&replica);
                Target::Uri(replica, keys)
            }
            (None, None, None) if uri.durability.unwrap_or_default() != Durability::Async => {
                let level = uri.durability.unwrap_or_default().name();
                return fail(format!(
                    "durability={level} has no replica to wait for: add replica=s3://bucket/app (or another store) to the URI"
                ));
            }
            (None, None, None) if beneath.table.is_some() => {
                return Err(beneath.at_table("this table is for the database, and no replica is set in it or anywhere else: add replica = \"s3://bucket/app\" (or another store)"));
            }
            (None, None, None) => return Ok(None),
        };
        let mut effective = uri.or(beneath.given);
        effective.replica = match &target {
            Target::Uri(uri, _) => Some(uri.clone()),
            Target::Operator(_) => None,
        };
        Ok(Some(Settings {
            target,
            timeout: *effective.timeout.get_or_insert(30 * 1000 * MS),
            durability: *effective.durability.get_or_insert_default(),
            on_timeout: *effective.on_timeout.get_or_insert_default(),
            flush_interval: *effective.flush_interval.get_or_insert(500 * MS),
            segment_size: *effective.segment_size.get_or_insert(4 * MIB),
            close_timeout: *effective.close_timeout.get_or_insert(5 * 1000 * MS),
            restore: *effective.restore.get_or_insert_default(),
            on_fenced: *effective.on_fenced.get_or_insert_default(),
            retention: *effective.retention.get_or_insert_default(),
            upkeep: config.upkeep,
            wal_limit: *effective.wal_limit.get_or_insert(GIB),
            effective,
        }))
    }

    /// Checks what a further connection to the same database says in its URI. What it does not say is as it was.
    pub(crate) fn agree(&self, path: &Path, parameters: &[(String, String)]) -> Result<(), ConfigError> {
        refuse_nolock(parameters)?;
        let mut uri = Given::from_uri(parameters)?;
        if let Some(replica) = &mut uri.replica {
            *replica = fill_in(replica, path)?;
        }
        let ours = &self.effective;
        let differing = [
            ("replica", uri.replica.is_some() && uri.replica != ours.replica),
            ("timeout", differs(uri.timeout, ours.timeout)),
            ("on_timeout", differs(uri.on_timeout, ours.on_timeout)),
            ("flush_interval", differs(uri.flush_interval, ours.flush_interval)),
            ("segment_size", differs(uri.segment_size, ours.segment_size)),
            ("wal_limit", differs(uri.wal_limit, ours.wal_limit)),
            ("close_timeout", differs(uri.close_timeout, ours.close_timeout)),
            ("restore", differs(uri.restore, ours.restore)),
            ("on_fenced", differs(uri.on_fenced, ours.on_fenced)),
            ("retention", differs(uri.retention, ours.retention)),
        ];
        match differing.iter().find(|(_, differs)| *differs) {
            None => Ok(()),
            Some((name, _)) => fail(format!(
                "this process already replicates {} with another {name}: give all its connections the same, or leave it out \
                 after the first",
                path.display()
            )),
        }
    }
}

fn differs<T: PartialEq>(theirs: Option<T>, ours: Option<T>) -> bool {
    theirs.is_some() && theirs != ours
}

/// What a connection's URI says of when its commits return. The parameters have been checked.
pub(crate) fn durability_of(parameters: &[(String, String)]) -> Option<Durability> {
    let (_, value) = parameters.iter().find(|(name, _)| name == "durability")?;
    Durability::from_name(value)
}

/// `immutable=1` promises that nobody changes the file, so there is nothing to replicate, and SQLite takes no locks.
pub(crate) fn is_immutable(parameters: &[(String, String)]) -> bool {
    is_true(parameters, "immutable")
}

fn refuse_nolock(parameters: &[(String, String)]) -> Result<(), ConfigError> {
    if is_true(parameters, "nolock") {
        return fail(
            "nolock=1 takes away the locks that a replicated copy needs to be consistent: leave it out, or use another VFS"
                .to_owned(),
        );
    }
    Ok(())
}

/// Not ours to understand.
pub(crate) fn is_sqlite_parameter(name: &str) -> bool {
    // Database drivers pass their own parameters through, by convention with an underscore before them.
    SQLITE_NAMES.contains(&name) || name.starts_with('_')
}

/// What of a URI is addressed to SQLite or to replvfs.
pub(crate) fn of_ours(parameters: &[(String, String)]) -> Vec<(String, String)> {
    let known = |name: &str| NAMES.contains(&name) || is_sqlite_parameter(name);
    parameters.iter().filter(|(name, _)| known(name)).cloned().collect()
}

/// The value of a variable that is a switch.
pub(super) fn yes_or_no(variable: &str, value: &std::ffi::OsStr) -> Result<bool, ConfigError> {
    match value.to_str().map(str::to_ascii_lowercase).as_deref() {
        Some("1" | "yes" | "true" | "on") => Ok(true),
        Some("0" | "no" | "false" | "off") => Ok(false),
        _ => fail(format!(
            "{variable}={} is not understood: write 1 or 0",
            value.to_string_lossy()
        )),
    }
}

/// As `sqlite3_uri_boolean` reads it.
pub(crate) fn is_true(parameters: &[(String, String)], name: &str) -> bool {
    parameters
        .iter()
        .find(|(key, _)| key == name)
        .is_some_and(|(_, value)| {
            ["1", "yes", "true", "on"]
                .iter()
                .any(|word| value.eq_ignore_ascii_case(word))
                || value.parse::<i64>().is_ok_and(|number| number != 0)
        })
}

fn read_duration(at: &str, value: &str) -> Result<Duration, ConfigError> {
    parse::duration(value).ok_or_else(|| ConfigError(format!("{at}={value} is not a duration: write {DURATION_FORMS}")))
}

fn read_size(at: &str, value: &str) -> Result<u64, ConfigError> {
    parse::size(value).ok_or_else(|| ConfigError(format!("{at}={value} is not a size: write {SIZE_FORMS}")))
}

fn bound<T: PartialOrd + Copy>(
    at: &str,
    value: Option<T>,
    (least, most): (T, T),
    show: impl Fn(T) -> String,
) -> Result<(), ConfigError> {
    match value {
        Some(value) if value < least || value > most => fail(format!(
            "{at}={} is out of bounds: from {} to {} is accepted",
            show(value),
            show(least),
            show(most)
        )),
        _ => Ok(()),
    }
}
