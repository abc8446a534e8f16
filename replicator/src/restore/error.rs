//! Why a restore did not happen. In all cases the target is as it was.

use std::io;
use std::path::PathBuf;

use replvfs_vfs::types::PageSize;

use crate::format::{FormatError, Key};
use crate::history::HistoryError;

/// Why a database was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The history cannot be read, or does not contain the target.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// There is something at the target.
    #[error("{} exists: choose another path, or restore with force to replace it", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// A file that belongs to another database would be taken for part of the restored one.
    #[error(
        "{} exists: SQLite would take it for part of the restored database and damage that; move it away if it is of no \
         database, or restore with force to remove it",
        path.display()
    )]
    Leftover {
        /// The file.
        path: PathBuf,
    },
    /// Something with files failed.
    #[error("cannot {action} {}: {error}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// An object is damaged.
    #[error("{key} cannot be used: {error}; nothing was restored: try another target, before or after it")]
    Format {
        /// The object.
        key: Key,
        /// What is wrong with it.
        error: FormatError,
    },
    /// A segment names another predecessor.
    #[error(
        "{key} does not follow from {previous}: one of them was replaced or changed; nothing was restored: try a target \
         before it"
    )]
    Chain {
        /// The segment.
        key: Key,
        /// What stands before it.
        previous: Key,
    },
    /// The pages are of another size than the replica says.
    #[error(
        "the restored database says that its page size is {found}, but {key} says {expected}: nothing was restored; the \
         image or a segment after it was made of another file"
    )]
    PageSize {
        /// The image that was restored from.
        key: Key,
        /// In the file's header.
        found: u32,
        /// In the replica.
        expected: PageSize,
    },
    /// [`RestoreOptions::check`](super::RestoreOptions::check) found fault with the file.
    #[error(
        "what was restored is what was replicated, but it is no sound database: {problem}; nothing was restored: try a target before it"
    )]
    Check {
        /// What it found.
        problem: String,
    },
    /// A background task died.
    #[error("restoring {key} failed: its task died ({problem}); this is a bug of replvfs")]
    Task {
        /// The object.
        key: Key,
        /// How.
        problem: String,
    },
}

impl RestoreError {
    pub(crate) fn format(key: Key) -> impl FnOnce(FormatError) -> RestoreError {
        move |error| RestoreError::Format { key, error }
    }
}
