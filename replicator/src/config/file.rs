//! The file that `REPLVFS_CONFIG` names: settings for all databases at its top, and a `[[database]]` table for each path or glob.
//!
//! Owns what may stand in it, which table is for a database, and where in the file an error is. Leaves what a value means to `settings`. Nothing of the
//! file is in an error but names of keys and the values of our own settings: what a parser quotes could be a secret. For the same reason nothing is
//! read with serde.

use std::fs;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::parse::{DURATION_FORMS, SIZE_FORMS};
use super::pattern::{Pattern, spellings};
use super::placeholder::{fill_in, tells_apart, tells_folders_apart};
use super::settings::{Given, NAMES, Source};
use crate::store::{SCHEMES, StoreKeys, check, known_keys, redacted, scheme_of, takes_key, takes_keys};

/// Far more than thousands of databases take.
const LONGEST_BYTES: u64 = 1 << 20;
/// More errors than that are of one mistake.
const MOST_ERRORS: usize = 100;

/// What is wrong with a configuration file, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {text}", file.display(), position.map(|(line, column)| format!(":{line}:{column}")).unwrap_or_default())]
pub struct FileError {
    file: PathBuf,
    position: Option<(usize, usize)>,
    text: String,
}

impl FileError {
    /// Where it is: a line and a column, both from 1, the column in characters. `None` when it is the file itself.
    #[must_use]
    pub fn position(&self) -> Option<(usize, usize)> {
        self.position
    }

    /// What is wrong, without where.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    fn of_file(file: &Path, text: String) -> FileError {
        FileError {
            file: file.to_owned(),
            position: None,
            text,
        }
    }
}

/// A file that was understood.
#[derive(Default)]
pub(super) struct File {
    pub(super) path: PathBuf,
    /// For databases of which no table says otherwise.
    pub(super) everywhere: Said,
    pub(super) tables: Vec<Table>,
}

/// A `[[database]]` table.
pub(super) struct Table {
    pub(super) line: usize,
    pub(super) pattern: Pattern,
    pub(super) said: Said,
}

/// What one part of the file says.
#[derive(Default)]
pub(super) struct Said {
    pub(super) given: Given,
    /// In the order of the file.
    pub(super) store: Vec<Key>,
    /// Of what is given.
    lines: Vec<(&'static str, usize)>,
}

/// A key of a store. Its value may be a secret.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) line: usize,
    value: String,
}

impl Said {
    pub(super) fn line_of(&self, name: &str) -> Option<usize> {
        self.lines
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, line)| *line)
    }
}

/// What the store of a database is told, by its table and by the top of the file.
#[derive(Default)]
pub(crate) struct Keys {
    of_table: Vec<Key>,
    everywhere: Vec<Key>,
}

impl Keys {
    pub(super) fn of(table: &Said, everywhere: &Said) -> Keys {
        Keys {
            of_table: table.store.clone(),
            everywhere: everywhere.store.clone(),
        }
    }

    /// Those for a replica. A folder takes none: it need not have those that are for every database.
    pub(crate) fn for_replica(&self, uri: &str) -> StoreKeys {
        let pairs = self.which(uri).map(|key| (key.name.clone(), key.value.clone()));
        StoreKeys::new(pairs)
    }

    /// The same, with the weaker ones first.
    pub(super) fn which(&self, uri: &str) -> impl Iterator<Item = &Key> {
        let everywhere = takes_keys(&scheme_of(uri)).then_some(&self.everywhere);
        everywhere.into_iter().flatten().chain(&self.of_table)
    }

    /// Refuses what would be ignored.
    pub(super) fn none_for(&self, what: &str) -> Result<(), String> {
        match self.of_table.first() {
            None => Ok(()),
            Some(key) => Err(format!(
                "{} is set in [database.store], and {what} goes before it: leave it out",
                key.name
            )),
        }
    }
}

impl File {
    /// Reads a file, and all of what is wrong with it.
    pub(super) fn read(path: &Path) -> Result<File, Vec<FileError>> {
        let text = read_text(path).map_err(|why| vec![FileError::of_file(path, why)])?;
        File::parse(path, &text)
    }

    /// Pure, but for the folder in the path.
    pub(super) fn parse(path: &Path, text: &str) -> Result<File, Vec<FileError>> {
        let (document, errors) = DeTable::parse_recoverable(text);
        let mut reader = Reader {
            path,
            text,
            errors: Vec::new(),
        };
        for error in errors {
            let why = match error.message() {
                "duplicate key" => "the same key is there before: leave one of them out".to_owned(),
                message => format!("this is not TOML: {message}"),
            };
            reader.fail(error.span().map_or(text.len(), |span| span.start), why);
        }
        if !reader.errors.is_empty() {
            return Err(reader.into_errors());
        }
        let file = reader.document(document.get_ref());
        match reader.errors.is_empty() {
            true => Ok(file),
            false => Err(reader.into_errors()),
        }
    }

    /// The table that is for the database at a path: one with just that path, or else the first with a glob that matches.
    pub(super) fn table_of(&self, database: &Path) -> Option<&Table> {
        if self.tables.is_empty() || !database.is_absolute() {
            return None;
        }
        let spellings = spellings(database);
        let first = |glob: bool| {
            let mut tables = self.tables.iter().filter(move |table| table.pattern.is_glob() == glob);
            tables.find(|table| table.pattern.matches(&spellings))
        };
        first(false).or_else(|| first(true))
    }

    pub(super) fn metrics(&self) -> Option<SocketAddr> {
        self.everywhere.given.metrics
    }

    pub(super) fn memory_limit(&self) -> Option<u64> {
        self.everywhere.given.memory_limit
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    let why = |error: io::Error| {
        format!("the configuration file cannot be read ({error}): correct its name (REPLVFS_CONFIG) or its permissions")
    };
    // Whatever else has a name could keep us waiting for ever.
    if !fs::metadata(path).map_err(why)?.is_file() {
        return Err("the configuration file is no file: correct its name (REPLVFS_CONFIG)".to_owned());
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(why)?;
    file.take(LONGEST_BYTES + 1).read_to_end(&mut bytes).map_err(why)?;
    if bytes.len() as u64 > LONGEST_BYTES {
        return Err("the configuration file is larger than 1 MiB: is it another file?".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "the configuration file is not UTF-8: is it another file?".to_owned())
}

/// Goes on behind an error, so that all of them are told at once.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    errors: Vec<FileError>,
}

/// What of a table is only known when all of it was read.
#[derive(Default)]
struct Open<'a> {
    said: Said,
    path: Option<(usize, &'a str)>,
    replica_at: Option<usize>,
    store_at: Vec<(String, usize)>,
}

impl<'a> Reader<'a> {
    fn document(&mut self, document: &DeTable<'_>) -> File {
        let mut top = Open::default();
        let mut databases = Vec::new();
        for (key, value) in document {
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("database", DeValue::Array(items)) => databases.extend(items.iter()),
                ("database", _) => self.fail(
                    key.span().start,
                    "a database's table is written [[database]], in two brackets".to_owned(),
                ),
                ("path", _) => self.fail(
                    key.span().start,
                    "path is a key of [[database]] tables: write [[database]] in a line above it".to_owned(),
                ),
                _ => self.entry(&mut top, key, value, "at the top of the file"),
            }
        }
        self.check_top(&top);
        let mut file = File {
            path: self.path.to_owned(),
            everywhere: top.said,
            tables: Vec::new(),
        };
        for database in databases {
            self.table(&mut file, database);
        }
        file
    }

    fn table(&mut self, file: &mut File, database: &Spanned<DeValue<'_>>) {
        let at = database.span().start;
        let DeValue::Table(entries) = database.get_ref() else {
            let why = "this is no table: write [[database]], and its keys below".to_owned();
            return self.fail(at, why);
        };
        let mut open = Open::default();
        for (key, value) in entries {
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("path", DeValue::String(path)) => open.path = Some((value.span().start, path)),
                ("path", other) => self.fail(value.span().start, not_a_string("path", other)),
                (name @ ("memory_limit" | "metrics"), _) => self.fail(
                    key.span().start,
                    format!("{name} is for the whole process: write it at the top of the file"),
                ),
                _ => self.entry(&mut open, key, value, "in a [[database]] table"),
            }
        }
        let Some((path_at, path)) = open.path else {
            // What was said of it already.
            if !entries.iter().any(|(key, _)| key.get_ref() == "path") {
                self.fail(
                    at,
                    "this table has no path: add path = \"/srv/app.db\", or a glob".to_owned(),
                );
            }
            return;
        };
        let base = self.path.parent().unwrap_or(Path::new("/"));
        match Pattern::parse(path, base) {
            Err(why) => self.fail(path_at, why),
            Ok(pattern) => {
                self.check_table(file, &open, &pattern, path_at);
                let line = self.position(at).0;
                let said = open.said;
                file.tables.push(Table { line, pattern, said });
            }
        }
    }

    /// One key that can be at the top and in a table.
    fn entry(
        &mut self,
        open: &mut Open<'_>,
        key: &Spanned<impl AsRef<str>>,
        value: &Spanned<DeValue<'_>>,
        place: &str,
    ) {
        let (at, name) = (key.span().start, key.get_ref().as_ref());
        if name == "store" {
            return self.store(open, at, value);
        }
        let Some(name) = NAMES.iter().find(|known| **known == name) else {
            return self.fail(at, unknown(name, place));
        };
        let text = match (value.get_ref(), *name) {
            (DeValue::String(text), _) if text.is_empty() => {
                return self.fail(at, format!("{name} is empty: give it a value, or leave it out"));
            }
            (DeValue::String(text), _) => text.to_string(),
            (DeValue::Integer(number), "segment_size" | "memory_limit" | "wal_limit") => {
                match u64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) => number.to_string(),
                    Err(_) => return self.fail(at, format!("{name} is not a size: write {SIZE_FORMS}")),
                }
            }
            (other, _) => return self.fail(value.span().start, not_a_string(name, other)),
        };
        if let Err(error) = open.said.given.set(Source::File, name, &text) {
            return self.fail(at, error.0);
        }
        if *name == "replica" {
            open.replica_at = Some(value.span().start);
        }
        let line = self.position(at).0;
        open.said.lines.push((name, line));
    }

    fn store(&mut self, open: &mut Open<'_>, at: usize, value: &Spanned<DeValue<'_>>) {
        let DeValue::Table(entries) = value.get_ref() else {
            let why = "store is a table of keys for the object store: write [database.store], or [store] at the top"
                .to_owned();
            return self.fail(at, why);
        };
        for (key, value) in entries {
            let (at, name) = (key.span().start, key.get_ref().to_ascii_lowercase());
            let text = match value.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Boolean(yes) => yes.to_string(),
                DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
                other => {
                    let why = format!("{name} is {}: write a string, true, false or a number", kind(other));
                    self.fail(value.span().start, why);
                    continue;
                }
            };
            if text.contains('\0') {
                self.fail(value.span().start, format!("{name} contains a NUL"));
                continue;
            }
            if open.said.store.iter().any(|known| known.name == name) {
                self.fail(at, format!("{name} is given twice: leave one of them out"));
                continue;
            }
            open.store_at.push((name.clone(), at));
            let line = self.position(at).0;
            let value = text;
            open.said.store.push(Key { name, line, value });
        }
    }

    fn check_top(&mut self, top: &Open<'_>) {
        let replica = top.said.given.replica.as_deref();
        if let (Some(replica), Some(at)) = (replica, top.replica_at) {
            self.check_replica(replica, at);
            if !tells_apart(replica) {
                let why = format!(
                    "the replica {} is at the top of the file, for every database: put {{name}} into it, which stands for the database's file name, or write it \
                     in a [[database]] table",
                    redacted(replica)
                );
                self.fail(at, why);
            }
        }
        if let Some(replica) = replica.filter(|replica| takes_keys(&scheme_of(replica))) {
            self.check_keys(replica, top);
        }
    }

    /// What would lead two databases to one replica: that of the first would be restored as the second, or ended by it.
    fn check_table(&mut self, file: &File, table: &Open<'_>, pattern: &Pattern, path_at: usize) {
        if let Some(other) = file.tables.iter().find(|other| other.pattern.is_same_path(pattern)) {
            let why = format!(
                "the table of line {} has the same path: leave one of them out",
                other.line
            );
            self.fail(path_at, why);
        }
        if let (Some(replica), Some(at)) = (table.said.given.replica.as_deref(), table.replica_at) {
            self.check_replica(replica, at);
            let same = |other: &&Table| other.said.given.replica.as_deref() == Some(replica);
            if pattern.is_glob() && !tells_apart(replica) {
                let why = format!(
                    "the path is a glob, and the databases would share the replica {}: put {{name}} into it, which stands for the database's file name",
                    redacted(replica)
                );
                self.fail(at, why);
            } else if !tells_apart(replica)
                && let Some(other) = file.tables.iter().find(same)
            {
                let why = format!(
                    "the replica {} is that of line {} already: give each database its own",
                    redacted(replica),
                    other.said.line_of("replica").unwrap_or(other.line)
                );
                self.fail(at, why);
            }
        }
        let replica = table.said.given.replica.as_deref();
        let replica = replica.or(file.everywhere.given.replica.as_deref());
        if replica.is_some_and(|replica| !tells_folders_apart(replica)) && pattern.is_over_folders() {
            let why = "the path is for several folders, and databases of the same name in them would share a replica: put {path} into the replica, which stands for \
                       the database's full path, or write a [[database]] table for each folder";
            self.fail(path_at, why.to_owned());
        }
        if let Some(replica) = replica {
            self.check_keys(replica, table);
        }
    }

    fn check_replica(&mut self, replica: &str, at: usize) {
        let filled = fill_in(replica, Path::new("/name")).map_err(|error| error.to_string());
        if let Err(why) = filled.and_then(|uri| check(&uri).map_err(|error| error.to_string())) {
            self.fail(at, why);
        }
    }

    fn check_keys(&mut self, replica: &str, open: &Open<'_>) {
        let scheme = scheme_of(replica);
        for (name, at) in &open.store_at {
            if !takes_keys(&scheme) {
                self.fail(
                    *at,
                    format!("{name} is set, and {scheme}:// takes no parameters: leave it out"),
                );
            } else if !takes_key(&scheme, name) {
                self.fail(
                    *at,
                    format!(
                        "{name} is not a key of {scheme}:// stores; known are {}",
                        known_keys(&scheme)
                    ),
                );
            }
        }
    }

    fn fail(&mut self, at: usize, text: String) {
        let position = Some(self.position(at));
        let file = self.path.to_owned();
        // One line, whatever a key was named.
        let text = text.replace(char::is_control, " ");
        if self.errors.len() < MOST_ERRORS {
            self.errors.push(FileError { file, position, text });
        }
    }

    /// Line and column of a byte.
    fn position(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |end| end + 1);
        (line, before[start..].chars().count() + 1)
    }

    fn into_errors(mut self) -> Vec<FileError> {
        self.errors.sort_by_key(|error| error.position);
        self.errors.dedup();
        self.errors
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn not_a_string(name: &str, value: &DeValue<'_>) -> String {
    let write = match name {
        "timeout" | "flush_interval" | "close_timeout" | "retention" => {
            format!("write {DURATION_FORMS}, in quotes")
        }
        "segment_size" | "memory_limit" | "wal_limit" => format!("write {SIZE_FORMS}, in quotes"),
        _ => "write a text in quotes".to_owned(),
    };
    format!("{name} is {}: {write}", kind(value))
}

fn unknown(name: &str, place: &str) -> String {
    let folded = name.to_ascii_lowercase().replace('-', "_");
    if SCHEMES
        .iter()
        .any(|scheme| takes_keys(scheme) && takes_key(scheme, &folded))
    {
        return format!(
            "{name} is not a setting of replvfs: a key of the object store goes into [database.store], or [store] at the top"
        );
    }
    let near = NAMES.iter().find(|known| **known == folded || is_near(known, &folded));
    match near {
        Some(known) => format!("{name} is not known {place}: is {known} meant?"),
        None => format!("{name} is not known {place}: there are {} and store", NAMES.join(", ")),
    }
}

/// Whether one letter too many, too few, or another one makes the difference.
fn is_near(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let same = one.iter().zip(other).take_while(|(one, other)| one == other).count();
    let (one, other) = (&one[same..], &other[same..]);
    let rest = |bytes: &[u8]| bytes.get(1..).map(<[u8]>::to_vec);
    rest(one).as_deref() == Some(other) || rest(other).as_deref() == Some(one) || rest(one) == rest(other)
}

#[cfg(test)]
mod tests;
