//! What is said of a database apart from its URI: by the program, the file, the environment, in this order.

use std::path::{Path, PathBuf};

use super::file::{File, FileError, Keys, Said};
use super::settings::Given;
use super::{Config, ConfigError};

/// What goes beneath a URI.
pub(crate) struct Beneath {
    pub(crate) given: Given,
    pub(crate) store: Keys,
    /// The table that is for the database.
    pub(super) table: Option<Place>,
}

/// Where in a file.
pub(super) struct Place {
    pub(super) file: PathBuf,
    pub(super) line: usize,
    /// The path as it is written there.
    pub(super) path: String,
}

impl Beneath {
    /// Whether a table of the file is for the database.
    pub(crate) fn has_table(&self) -> bool {
        self.table.is_some()
    }

    /// An error of the table that is for the database.
    pub(super) fn at_table(&self, why: &str) -> ConfigError {
        ConfigError(match &self.table {
            Some(place) => format!("{}:{}: {why}", place.file.display(), place.line),
            None => why.to_owned(),
        })
    }
}

impl Config {
    /// The file, read now.
    pub(super) fn read_file(&self) -> Result<Option<File>, ConfigError> {
        let Some(path) = &self.file else {
            return Ok(None);
        };
        File::read(path).map(Some).map_err(|errors| one_of(&errors))
    }

    /// Of the database at a path; of none in particular when it is not absolute. Reads the file.
    pub(crate) fn beneath(&self, path: &Path) -> Result<Beneath, ConfigError> {
        let file = self.read_file()?.unwrap_or_default();
        Ok(self.beneath_in(&file, path))
    }

    pub(super) fn beneath_in(&self, file: &File, path: &Path) -> Beneath {
        let table = file.table_of(path);
        let none = Said::default();
        let of_table = table.map_or(&none, |table| &table.said);
        let given = self.given.clone().or(of_table.given.clone());
        Beneath {
            given: given.or(file.everywhere.given.clone()).or(self.environment.clone()),
            store: Keys::of(of_table, &file.everywhere),
            table: table.map(|table| Place {
                file: file.path.clone(),
                line: table.line,
                path: table.pattern.shown().to_owned(),
            }),
        }
    }
}

/// The first error, since an open has room for one.
fn one_of(errors: &[FileError]) -> ConfigError {
    let first = errors.first().map(ToString::to_string).unwrap_or_default();
    ConfigError(match errors.len() {
        0 | 1 => first,
        all => format!("{first} (and {} more: see replvfs check-config)", all - 1),
    })
}
