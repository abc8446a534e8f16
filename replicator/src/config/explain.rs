//! Settings for people: what a file is good for, and where each value of a database comes from. No secret is shown.

use std::fmt;
use std::path::Path;

use super::file::{File, FileError, Said};
use super::parse::{show_duration, show_size};
use super::pattern::spellings;
use super::settings::{Given, MEMORY_LIMIT, NAMES, Settings, Target};
use super::{Beneath, Config, ConfigError, OnFenced, OnTimeout, Restore, Retention};
use crate::store::{Store, StoreError, StoreOptions, redacted};

const DAY_SECONDS: u64 = 24 * 3600;

/// A configuration file without errors.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Its `[[database]]` tables, in their order.
    pub tables: Vec<CheckedTable>,
}

/// A `[[database]]` table.
#[derive(Debug, Clone)]
pub struct CheckedTable {
    /// Where it begins, from 1.
    pub line: usize,
    /// As it is written: of one database, or a glob.
    pub path: String,
}

/// Reads a configuration file, and nothing else: no variable of the environment, and no store.
///
/// # Errors
///
/// All that is wrong with it, in the order of the file. There is one at least.
pub fn check_file(path: &Path) -> Result<Checked, Vec<FileError>> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let file = File::read(&path)?;
    let tables = file.tables.iter().map(|table| CheckedTable {
        line: table.line,
        path: table.pattern.shown().to_owned(),
    });
    Ok(Checked {
        tables: tables.collect(),
    })
}

/// What is wrong with the text of a configuration file, for fuzzing.
#[doc(hidden)]
#[must_use]
pub fn check_text(text: &str) -> Vec<FileError> {
    File::parse(Path::new("/replvfs.toml"), text).err().unwrap_or_default()
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// From the program's [`Config`].
    Program,
    /// From this line of the file.
    File(usize),
    /// From a variable of the environment.
    Environment,
    /// From nowhere.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Program => f.write_str("program"),
            Source::File(line) => write!(f, "file, line {line}"),
            Source::Environment => f.write_str("environment"),
            Source::Default => f.write_str("default"),
        }
    }
}

/// A setting of a database. The value has no secret in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// As files and URIs name it; `store.` and the name for a key of the store, which has `…` for a value.
    pub name: String,
    /// As it would be written.
    pub value: String,
    /// Where it comes from.
    pub source: Source,
}

/// The table that is for a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matched {
    /// Of the file, from 1.
    pub line: usize,
    /// As it is written there.
    pub path: String,
}

/// The settings that a database has whose URI says nothing.
#[derive(Debug, Clone)]
pub struct Explained {
    /// The table of the file.
    pub table: Option<Matched>,
    /// The settings, in the order of the documentation, and then the store's keys.
    pub settings: Vec<Setting>,
    /// Its replica, without what may be secret; `None` when it is not replicated.
    pub replica: Option<String>,
    target: Option<Target>,
}

impl Explained {
    /// The database's replica, for reading. Nothing is made, and nothing is asked yet. `None` when it has none.
    ///
    /// # Errors
    ///
    /// When the replica cannot be opened with these settings.
    pub fn open_store(&self) -> Result<Option<Store>, StoreError> {
        self.store(&StoreOptions {
            retries: 1,
            ..StoreOptions::reading()
        })
    }

    pub(super) fn store(&self, options: &StoreOptions) -> Result<Option<Store>, StoreError> {
        match &self.target {
            None => Ok(None),
            Some(Target::Uri(uri, keys)) => Store::open_with(uri, keys, options).map(Some),
            Some(Target::Operator(operator)) => Ok(Some(Store::from_operator(operator.clone()))),
        }
    }
}

impl Config {
    /// What the database at an absolute path gets from this configuration, the file and the environment of this process, as they are now. It
    /// need not exist, and is not touched.
    ///
    /// # Errors
    ///
    /// When a setting is wrong.
    pub fn explain(&self, database: &Path) -> Result<Explained, ConfigError> {
        let config = self.clone().with_environment(|name| std::env::var_os(name))?;
        config.explained(database)
    }

    pub(super) fn explained(&self, database: &Path) -> Result<Explained, ConfigError> {
        // As SQLite resolves it, so that {name} is what it will be.
        let database = &spellings(database).pop().unwrap_or_else(|| database.to_owned());
        let file = self.read_file()?.unwrap_or_default();
        let beneath = self.beneath_in(&file, database);
        let table = beneath.table.as_ref().map(|place| Matched {
            line: place.line,
            path: place.path.clone(),
        });
        let settings = Settings::over(self, self.beneath_in(&file, database), database, &[])?;
        let (target, effective) = match settings {
            Some(settings) => (Some(settings.target), settings.effective),
            None => (None, beneath.given.clone()),
        };
        let of_table = table
            .as_ref()
            .and_then(|_| file.table_of(database))
            .map(|table| &table.said);
        let source = |name: &str| self.source_of(name, of_table, &file.everywhere);
        let mut all: Vec<Setting> = NAMES
            .iter()
            .filter_map(|name| {
                let value = effective.shown(name).or_else(|| default_of(name))?;
                let (name, source) = ((*name).to_owned(), source(name));
                Some(Setting { name, value, source })
            })
            .collect();
        if let Some(Target::Uri(uri, _)) = &target {
            all.extend(keys(&beneath, uri));
        }
        let replica = match &target {
            Some(Target::Uri(uri, _)) => Some(redacted(uri)),
            Some(Target::Operator(operator)) => Some(Store::from_operator(operator.clone()).replica().to_owned()),
            None => None,
        };
        Ok(Explained {
            table,
            settings: all,
            replica,
            target,
        })
    }

    fn source_of(&self, name: &str, table: Option<&Said>, everywhere: &Said) -> Source {
        let line = table
            .and_then(|table| table.line_of(name))
            .or_else(|| everywhere.line_of(name));
        match line {
            _ if self.given.shown(name).is_some() => Source::Program,
            Some(line) => Source::File(line),
            None if self.environment.shown(name).is_some() => Source::Environment,
            None => Source::Default,
        }
    }
}

fn keys(beneath: &Beneath, uri: &str) -> Vec<Setting> {
    let mut all: Vec<Setting> = Vec::new();
    for key in beneath.store.which(uri) {
        let name = format!("store.{}", key.name);
        all.retain(|known| known.name != name);
        all.push(Setting {
            name,
            value: "…".to_owned(),
            source: Source::File(key.line),
        });
    }
    all
}

fn default_of(name: &str) -> Option<String> {
    (name == "memory_limit").then(|| show_size(MEMORY_LIMIT))
}

impl Given {
    /// A value as it would be written, without what may be secret.
    fn shown(&self, name: &str) -> Option<String> {
        match name {
            "replica" => self.replica.as_deref().map(redacted),
            "durability" => self.durability.map(|level| level.name().to_owned()),
            "timeout" => self.timeout.map(show_duration),
            "on_timeout" => self.on_timeout.map(|value| {
                let name = match value {
                    OnTimeout::Error => "error",
                    OnTimeout::Continue => "continue",
                };
                name.to_owned()
            }),
            "flush_interval" => self.flush_interval.map(show_duration),
            "segment_size" => self.segment_size.map(show_size),
            "memory_limit" => self.memory_limit.map(show_size),
            "metrics" => self.metrics.map(|address| address.to_string()),
            "wal_limit" => self.wal_limit.map(show_size),
            "close_timeout" => self.close_timeout.map(show_duration),
            "restore" => self.restore.map(|value| {
                let name = match value {
                    Restore::Never => "never",
                    Restore::IfMissing => "if-missing",
                    Restore::IfBehind => "if-behind",
                };
                name.to_owned()
            }),
            "on_fenced" => self.on_fenced.map(|value| {
                let name = match value {
                    OnFenced::Continue => "continue",
                    OnFenced::Stop => "stop",
                };
                name.to_owned()
            }),
            "retention" => self.retention.map(|value| match value {
                Retention::Forever => "forever".to_owned(),
                Retention::For(length) => match length.as_secs() {
                    seconds if length.subsec_nanos() == 0 && seconds.is_multiple_of(DAY_SECONDS) => {
                        format!("{}d", seconds / DAY_SECONDS)
                    }
                    _ => show_duration(length),
                },
            }),
            _ => None,
        }
    }
}
