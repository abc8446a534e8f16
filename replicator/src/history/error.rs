//! Why a history cannot be read, or does not contain what is asked for. Names the object, and says what can be done.

use replvfs_vfs::types::UnixMillis;

use super::Target;
use crate::format::{FormatError, Generation, Key};
use crate::store::StoreError;

/// Why a history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// There is no `replvfs.json`.
    #[error("there is no replica here ({} is missing): check the URI", Key::Replica)]
    NoReplica,
    /// No generation has an image.
    #[error("the replica has no image yet, so there is nothing to restore{left_out}")]
    Empty {
        /// What could not be read.
        left_out: LeftOut,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object cannot be decoded.
    #[error("{key} cannot be used: {error}")]
    Format {
        /// The object.
        key: Key,
        /// What is wrong with it.
        error: FormatError,
    },
    /// An object that others depend on is not there.
    #[error(
        "{key} is missing, but {needed_by} is there, which needs it: the history is broken at this place; give a target \
         before it, or another generation"
    )]
    Missing {
        /// The object that should be there.
        key: Key,
        /// The object that says so.
        needed_by: Key,
    },
    /// A generation goes on behind its end.
    #[error(
        "{key} is a seal, which ends the generation, but {behind} is behind it: the history is broken at this place"
    )]
    Sealed {
        /// The seal.
        key: Key,
        /// What should not be there.
        behind: Key,
    },
    /// An object says that it is another one.
    #[error("{key} cannot be used: it says that it is {found}")]
    Misplaced {
        /// Where it was found.
        key: Key,
        /// What it says.
        found: String,
    },
    /// The generation cannot be restored from.
    #[error("generation {generation} {problem}{left_out}")]
    Generation {
        /// The one that was asked for.
        generation: Generation,
        /// What is wrong with it.
        problem: &'static str,
        /// What could not be read.
        left_out: LeftOut,
    },
    /// The target is before or after everything that there is.
    #[error("{target} is not in the history: {range}{left_out}")]
    NotInHistory {
        /// What was asked for.
        target: Target,
        /// What there is.
        range: String,
        /// What could not be read.
        left_out: LeftOut,
    },
    /// A background task died.
    #[error("reading {key} failed: its task died ({problem}); this is a bug of replvfs")]
    Task {
        /// The object.
        key: Key,
        /// How.
        problem: String,
    },
}

/// Generations that were left out since they are damaged. Shows as nothing when there are none.
#[derive(Debug, Clone, Default)]
pub struct LeftOut(pub(super) Vec<String>);

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|warning| write!(f, "; {warning}"))
    }
}

impl HistoryError {
    /// Whatever is read again says the same.
    pub(crate) fn is_of_another_release(&self) -> bool {
        matches!(
            self,
            HistoryError::Format {
                error: FormatError::Version { .. } | FormatError::Seal,
                ..
            }
        )
    }

    pub(crate) fn format(key: Key) -> impl FnOnce(FormatError) -> HistoryError {
        move |error| HistoryError::Format { key, error }
    }
}

/// RFC 3339 where the calendar reaches.
pub(super) fn show_time(time: UnixMillis) -> String {
    match jiff::Timestamp::from_millisecond(time.0) {
        Ok(time) => time.to_string(),
        Err(_) => format!("{} ms since 1970", time.0),
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Newest => f.write_str("the newest transaction"),
            Target::Txid(txid) => write!(f, "transaction {txid}"),
            Target::At(time) => f.write_str(&show_time(*time)),
        }
    }
}
