//! A consistent view of the database file at one position, for the image that a history starts from.

use crate::types::{PageSize, Pgno};

/// Why a snapshot cannot be read any more.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A connection took the file for itself, or the file changed underneath. The log will bring a new base.
    #[error("the snapshot was given up: {0}")]
    GivenUp(&'static str),
    /// The base VFS failed.
    #[error("reading {what} failed with SQLite code {code}")]
    Io {
        /// Which file, and where.
        what: String,
        /// The extended result code.
        code: i32,
    },
    /// The file is not what its header says.
    #[error("the database file is damaged: {0}")]
    Damaged(String),
}

/// The database as it was at its base's position. Holds a read lock on the database until it is dropped,
/// so it is to be read soon and dropped.
#[derive(Debug)]
pub struct Snapshot {
    page_size: PageSize,
    page_count: u32,
}

impl Snapshot {
    /// Bytes a page.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Pages in the database. 0 for an empty file.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        self.page_count
    }

    /// Reads consecutive pages. `buffer` is a whole number of pages, all of them inside the database.
    /// The lock page reads as zeros. Blocks on file I/O.
    ///
    /// # Errors
    ///
    /// See [`SnapshotError`]. After one, the snapshot is of no more use.
    pub fn read_pages(&mut self, _first: Pgno, _buffer: &mut [u8]) -> Result<(), SnapshotError> {
        Err(SnapshotError::GivenUp("not built"))
    }
}
