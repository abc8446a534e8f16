//! What can be set, from where, and within which bounds.
//!
//! Owns the names, the defaults, the precedence (URI, then program, then file, then environment), and the sentence for everything that is not
//! understood or not built yet: nothing is ignored in silence. Leaves to the [`store`](crate::store) what a replica's URI
//! means.
//!
//! `parse` (durations and sizes) → `settings` (names and values) → `file` (the file of `REPLVFS_CONFIG`) and `pattern` (the paths in it) → `beneath` (what
//! is said of a database apart from its URI) → `explain` (the same for people) and `named` (what is said of a replica, by its name).

mod beneath;
mod explain;
mod file;
mod named;
pub(crate) mod parse;
mod pattern;
mod placeholder;
pub(crate) mod settings;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use opendal::Operator;

use crate::logs::Filter;
use crate::pipeline::due::Rule;
use crate::pipeline::upkeep;
pub(crate) use beneath::Beneath;
pub use explain::{Checked, CheckedTable, Explained, Matched, Setting, Source, check_file, check_text};
use file::File;
pub use file::FileError;
pub use named::NameError;
pub(crate) use placeholder::replica_of;
pub(crate) use settings::{
    Given, Settings, Target, durability_of, is_immutable, is_sqlite_parameter, is_true, of_ours,
};

/// A duration as settings have it: a whole number with `ms`, `s`, `m`, `h` or `d`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    parse::duration(text)
}

/// A setting that cannot be used: which, from where, and what is accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub(crate) String);

pub use replvfs_vfs::host::Durability;

/// What becomes of a commit that waits for the store, when that does not answer within `timeout`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnTimeout {
    /// The statement fails with `SQLITE_IOERR`. The transaction stays, and is uploaded as soon as the store is back.
    #[default]
    Error,
    /// It returns as if nothing was, and the log says so. What has been confirmed is told by `PRAGMA replvfs_acked`.
    Continue,
}

/// What is done when a database is opened and its file does not have what the replica has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Restore {
    /// Nothing: a new generation starts from the local file.
    Never,
    /// A file that is missing or empty is restored before the open returns. When the store does not answer, the open fails.
    #[default]
    IfMissing,
    /// The same; and a file that is older than its replica, and has nothing that the replica has not, is brought up to date before the open returns.
    /// The store is asked whenever a process opens the database for the first time; when it does not answer, the open fails.
    IfBehind,
}

/// What is done when another writer took the replica over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnFenced {
    /// The database goes on locally, without replication, and says so.
    #[default]
    Continue,
    /// Write transactions are refused with `SQLITE_READONLY`, in all processes of the machine that say the same; reads go on. And a database whose
    /// replica was continued by another writer while it was closed is fenced when it is opened, where it would begin a generation of its own
    /// otherwise. For machines that relieve each other.
    Stop,
}

/// How long history is kept. Default: 7 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retention {
    /// For ever. Needs no right to delete in the store: nothing is deleted, and nothing merged, since what was merged would then be there twice.
    Forever,
    /// Every state of this time back from now can be restored. What is older is deleted now and then by the process that replicates the database. Needs
    /// the right to delete; without it there is a warning, and replication goes on.
    For(Duration),
}

impl Default for Retention {
    fn default() -> Retention {
        Retention::For(Duration::from_secs(7 * 24 * 60 * 60))
    }
}

/// How replvfs is registered, and the settings of the databases that do not say otherwise in their URI.
///
/// ```
/// # use std::time::Duration;
/// let config = replvfs::Config::default()
///     .replica("s3://bucket/{name}")
///     .flush_interval(Duration::from_secs(2));
/// ```
///
/// What is not set here is taken from the file that `REPLVFS_CONFIG` names (see [`config_file`](Config::config_file)), then from the environment
/// (`REPLVFS_REPLICA`, `REPLVFS_FLUSH_INTERVAL`, …; read when replvfs is registered), and what is not there either has the default given below.
#[derive(Debug, Clone)]
pub struct Config {
    pub(crate) vfs_name: String,
    make_default: Option<bool>,
    pub(crate) operator: Option<Operator>,
    /// What the program says.
    given: Given,
    /// What the environment says, once it was read.
    environment: Given,
    file: Option<PathBuf>,
    /// What the file said of it when replvfs was registered: it is for the process.
    memory_limit_of_file: Option<u64>,
    metrics_of_file: Option<SocketAddr>,
    log_filter: Option<Filter>,
    pub(crate) upkeep: upkeep::Rule,
    pub(crate) images: Rule,
    pub(crate) timeouts: Option<(Duration, Duration)>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            vfs_name: "replvfs".to_owned(),
            make_default: None,
            operator: None,
            given: Given::default(),
            environment: Given::default(),
            file: None,
            memory_limit_of_file: None,
            metrics_of_file: None,
            log_filter: None,
            upkeep: upkeep::Rule::default(),
            images: Rule::default(),
            timeouts: None,
        }
    }
}

impl Config {
    /// The same as [`Config::default`].
    #[must_use]
    pub fn new() -> Config {
        Config::default()
    }

    /// The name for `vfs=` in URIs. Default: `replvfs`.
    #[must_use]
    pub fn vfs_name(mut self, name: impl Into<String>) -> Config {
        self.vfs_name = name.into();
        self
    }

    /// Whether databases that name no VFS are replicated, too, where a replica is set for them; all others are passed through, as if replvfs was not there.
    /// Default: what `REPLVFS_DEFAULT` says, or false.
    ///
    /// A replica that is for every database needs `{name}` or `{path}` in it then, and there can be no operator: whichever database is opened first would have it, a
    /// temporary one of some library as well as the one that is meant. This VFS is named as [`vfs_name`](Config::vfs_name) with `-default` behind it; a
    /// database that is opened with `vfs=replvfs` still needs a replica.
    #[must_use]
    pub fn make_default(mut self, yes: bool) -> Config {
        self.make_default = Some(yes);
        self
    }

    /// A TOML file with settings for all databases, and for those that its `[[database]]` tables name. Default: what `REPLVFS_CONFIG` names, or none.
    ///
    /// It is read when replvfs is registered, and again whenever the first connection of the process to a database is opened.
    #[must_use]
    pub fn config_file(mut self, path: impl Into<PathBuf>) -> Config {
        self.file = Some(path.into());
        self
    }

    /// Where the history goes: `s3://bucket/prefix?region=…`, `fs:///absolute/folder`, `memory://name`. `{name}` stands for the database's file
    /// name, `{path}` for its full path; without them there can be one database only. No default.
    #[must_use]
    pub fn replica(mut self, uri: impl Into<String>) -> Config {
        self.given.replica = Some(uri.into());
        self
    }

    /// A ready operator in place of a replica's URI, for one database. It is used as it is: see
    /// [`Store::from_operator`](crate::store::Store::from_operator). A `replica` in a database's URI goes before it.
    #[must_use]
    pub fn operator(mut self, operator: Operator) -> Config {
        self.operator = Some(operator);
        self
    }

    /// When a commit returns: of connections that say nothing else in their URI, or by `PRAGMA replvfs_durability`. Default: [`Durability::Async`].
    #[must_use]
    pub fn durability(mut self, level: Durability) -> Config {
        self.given.durability = Some(level);
        self
    }

    /// What becomes of a commit that waits longer than `timeout`. Default: [`OnTimeout::Error`].
    #[must_use]
    pub fn on_timeout(mut self, on_timeout: OnTimeout) -> Config {
        self.given.on_timeout = Some(on_timeout);
        self
    }

    /// How long a flush, or a commit with [`Durability::Remote`], waits for the store. 1 ms to 1 h. Default: 30 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Config {
        self.given.timeout = Some(timeout);
        self
    }

    /// A busy database uploads once in this time. 10 ms to 1 h. Default: 500 ms.
    #[must_use]
    pub fn flush_interval(mut self, interval: Duration) -> Config {
        self.given.flush_interval = Some(interval);
        self
    }

    /// WAL bytes after which a segment is uploaded without waiting for the interval. 64 KiB to 256 MiB. Default: 4 MiB. Such segments begin 250 ms apart, or when
    /// twice as many bytes wait (8 MiB at most, if `bytes` is not more), and have up to four times as many (16 MiB) where the store took long: under a heavy load they are larger, not more.
    #[must_use]
    pub fn segment_size(mut self, bytes: u64) -> Config {
        self.given.segment_size = Some(bytes);
        self
    }

    /// Memory for captured pages in the whole process, in bytes. 1 MiB to 1 TiB. Default: 64 MiB.
    ///
    /// In this version it bounds a single transaction: one that outgrows a quarter of it is read back from the WAL. What waits for a store
    /// that does not answer is not bounded yet.
    #[must_use]
    pub fn memory_limit(mut self, bytes: u64) -> Config {
        self.given.memory_limit = Some(bytes);
        self
    }

    /// Where the process shows its metrics to Prometheus, at `http://…/metrics`, as soon as it replicates a database or reads a replica. Port 0: any that is free,
    /// which a line of the log tells. No default: no port is opened.
    ///
    /// It takes the crate's feature `prometheus`; without it registering fails. What is counted is shown there then, and does not get into a recorder of the
    /// program's own.
    #[must_use]
    pub fn metrics(mut self, address: impl Into<SocketAddr>) -> Config {
        self.given.metrics = Some(address.into());
        self
    }

    /// How far the WAL of a database may grow because its content is not uploaded yet, in bytes. 1 MiB to 1 TiB. Default: 1 GiB.
    ///
    /// Past it the WAL is let go, and the history has a gap, which the next image closes.
    #[must_use]
    pub fn wal_limit(mut self, bytes: u64) -> Config {
        self.given.wal_limit = Some(bytes);
        self
    }

    /// How long closing a database waits for the upload of its last transactions. 0 to 10 min. Default: 5 s.
    #[must_use]
    pub fn close_timeout(mut self, timeout: Duration) -> Config {
        self.given.close_timeout = Some(timeout);
        self
    }

    /// What is done when the file does not have what the replica has. Default: [`Restore::IfMissing`].
    #[must_use]
    pub fn restore(mut self, restore: Restore) -> Config {
        self.given.restore = Some(restore);
        self
    }

    /// What is done when another writer took over. Default: [`OnFenced::Continue`].
    #[must_use]
    pub fn on_fenced(mut self, on_fenced: OnFenced) -> Config {
        self.given.on_fenced = Some(on_fenced);
        self
    }

    /// How long history is kept. 1 min to 100 years, or for ever. Default: 7 days.
    #[must_use]
    pub fn retention(mut self, retention: Retention) -> Config {
        self.given.retention = Some(retention);
        self
    }

    /// How often the owner looks after its replica, of how many segments a span is made, how long what is not needed stays, and how long history is
    /// kept, with no least time: for tests. It is looked after for ever, too.
    #[doc(hidden)]
    #[must_use]
    pub fn upkeep_for_tests(mut self, segments: u64, pieces: usize, grace: Duration, retention: Retention) -> Config {
        self.upkeep = upkeep::Rule {
            segments,
            pieces,
            grace,
            deletes_every: Duration::ZERO,
            retention: Some(retention),
            ..self.upkeep
        };
        self.images.grace = grace;
        self
    }

    /// Segments that a span stands for are deleted at once, for tests in which nobody else reads meanwhile.
    #[doc(hidden)]
    #[must_use]
    pub fn delete_merged_at_once_for_tests(mut self) -> Config {
        self.upkeep.merged_at_once = true;
        self
    }

    /// When images are due, for tests: when a restore has as much to do as to fetch so many bytes, or by age; and so long after one was given up. `check` reads what is believed to be
    /// unchanged all the same, and stops replication where it is not.
    #[doc(hidden)]
    #[must_use]
    pub fn images_for_test(mut self, least: u64, age: Duration, pause: Duration, check: bool) -> Config {
        self.images = Rule {
            least,
            part: 32,
            age,
            pause,
            check,
            ..self.images
        };
        self
    }

    /// Bytes of the temporary file of an image that is made out of the replica, for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn image_room_for_test(mut self, bytes: u64) -> Config {
        self.images.room = bytes;
        self
    }

    /// How long a request to a replica's store may take, without content and with it, for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn store_timeouts_for_test(mut self, request: Duration, transfer: Duration) -> Config {
        self.timeouts = Some((request, transfer));
        self
    }

    /// Adds what only the environment says, and checks everything.
    pub(crate) fn with_environment(
        mut self,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Config, ConfigError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        self.environment = Given::from_environment(set)?;
        if self.operator.is_some() && self.given.replica.is_some() {
            return Err(ConfigError(
                "both replica and operator are set in the program: set one of them".to_owned(),
            ));
        }
        self.given.check("the program")?;
        if self.vfs_name.is_empty() || self.vfs_name.contains('\0') {
            return Err(ConfigError(
                "vfs_name is empty or contains a NUL: name it, for example, replvfs".to_owned(),
            ));
        }
        if self.make_default.is_none() {
            self.make_default = set("REPLVFS_DEFAULT")
                .map(|value| settings::yes_or_no("REPLVFS_DEFAULT", &value))
                .transpose()?;
        }
        if self.is_default() {
            self.leaves_databases_apart()?;
        }
        // The program may change its folder before a database is opened.
        let file = self.file.take().or_else(|| set("REPLVFS_CONFIG").map(PathBuf::from));
        self.file = file.map(|file| std::path::absolute(&file).unwrap_or(file));
        let file = self.read_file()?;
        self.memory_limit_of_file = file.as_ref().and_then(File::memory_limit);
        self.metrics_of_file = file.as_ref().and_then(File::metrics);
        self.log_filter = set("REPLVFS_LOG").map(|value| Filter::parse(&value)).transpose()?;
        Ok(self)
    }

    /// Whether databases that name no VFS are looked at.
    pub(crate) fn is_default(&self) -> bool {
        self.make_default.unwrap_or_default()
    }

    /// In bytes, for the whole process.
    pub(crate) fn memory_limit_bytes(&self) -> u64 {
        let said = self.given.memory_limit.or(self.memory_limit_of_file);
        said.or(self.environment.memory_limit).unwrap_or(settings::MEMORY_LIMIT)
    }

    /// Where metrics are shown.
    pub(crate) fn metrics_address(&self) -> Option<SocketAddr> {
        let said = self.given.metrics.or(self.metrics_of_file);
        said.or(self.environment.metrics)
    }

    /// What is written to standard error.
    pub(crate) fn log_filter(&self) -> Option<&Filter> {
        self.log_filter.as_ref()
    }

    /// One replica for whatever is opened would get the history of one database, and be restored as another.
    fn leaves_databases_apart(&self) -> Result<(), ConfigError> {
        let why = "replvfs is the default VFS, for every database that the process opens";
        if self.operator.is_some() {
            return Err(ConfigError(format!(
                "an operator is set, which is one replica, and {why}: set a replica with {{name}} in it"
            )));
        }
        for (place, given) in [
            ("in the program", &self.given),
            ("as REPLVFS_REPLICA", &self.environment),
        ] {
            let Some(replica) = given.replica.as_deref().filter(|uri| !placeholder::tells_apart(uri)) else {
                continue;
            };
            return Err(ConfigError(format!(
                "the replica {} is set {place}, and {why}: put {{name}} into it, which stands for the database's file name, or {{path}}, or name the database in a \
                 file for REPLVFS_CONFIG",
                crate::store::redacted(replica)
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
