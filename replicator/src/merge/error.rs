//! Why nothing can be merged. Names the object.

use std::io;

use crate::format::{FormatError, Generation, Key};
use crate::history::HistoryError;
use crate::store::StoreError;

/// Why merging failed. Nothing is lost: segments stay until a span has taken their place.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// There is no such generation.
    #[error("generation {0} is not in the replica")]
    NoGeneration(Generation),
    /// The log cannot be read.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A segment or a span cannot be decoded.
    #[error("{key} cannot be merged: {error}")]
    Format {
        /// The object.
        key: Key,
        /// What is wrong with it.
        error: FormatError,
    },
    /// Neighbours that do not belong together.
    #[error(
        "{key} cannot be merged: it does not follow from {previous}, which is before it; one of the two is another history's"
    )]
    Chain {
        /// The object.
        key: Key,
        /// The one before it.
        previous: Key,
    },
    /// What was made is not what it was made of.
    #[error(
        "{key} was not stored: read back, it was not what its segments are ({problem}); this machine's memory or disk may be failing"
    )]
    NotTheSame {
        /// The span.
        key: Key,
        /// What was found.
        problem: String,
    },
    /// Somebody else has stored another one under the same name.
    #[error(
        "{0} is in the store already, and does not have the segments that it stands for: it is damaged, and should be deleted"
    )]
    Differs(Key),
    /// The temporary file failed.
    #[error("the temporary file of a span failed: {0}")]
    Temporary(#[from] io::Error),
    /// A background task died.
    #[error("merging failed: a task died ({0}); this is a bug of replvfs")]
    Task(String),
}

impl MergeError {
    pub(super) fn format(key: Key) -> impl Fn(FormatError) -> MergeError {
        move |error| match error {
            FormatError::Io(error) => MergeError::Temporary(error),
            error => MergeError::Format { key, error },
        }
    }
}
