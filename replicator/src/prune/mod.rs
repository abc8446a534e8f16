//! Deleting what no restore inside of the retention window needs.
//!
//! Owns the order in which it is done, each deletion durable before one that relies on it. It may be stopped at any place, and run beside
//! writers, readers, mergers and other pruners: what is left is whole.

mod plan;
mod survey;

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use replvfs_vfs::types::UnixMillis;

pub use plan::{Deletion, Reason};

use crate::config::Retention;
use crate::format::Key;
use crate::history::HistoryError;
use crate::store::{Store, StoreError};

/// How long what is not needed any more stays, for those who read or write it at that moment.
pub const GRACE: Duration = crate::history::GRACE;

/// Deletions at a time of what has no order among itself.
const PARALLEL: usize = 8;
/// Requests at a time to look at what is there.
const SURVEY_PARALLEL: usize = 16;

/// What is kept, and from when on.
#[derive(Debug, Clone)]
pub struct PruneOptions {
    /// How far the window reaches back. With [`Retention::Forever`] only what is there twice or named by nothing is deleted. Default: 7 days.
    pub retention: Retention,
    /// How long objects stay that are not needed any more. Less than [`GRACE`], the default, is safe only when nobody reads or writes meanwhile.
    pub grace: Duration,
    /// The time. What the store has is believed where it is earlier.
    pub now: UnixMillis,
    /// Only says what would be deleted.
    pub dry_run: bool,
    /// Requests at the same time. At least 1. Default: 16.
    pub parallel: usize,
    /// For tests: segments that a span stands for stay no longer than that one is there.
    #[doc(hidden)]
    pub merged_at_once: bool,
}

impl PruneOptions {
    /// The defaults, at this time.
    #[must_use]
    pub fn at(now: UnixMillis) -> PruneOptions {
        PruneOptions {
            retention: Retention::For(Duration::from_secs(7 * 24 * 60 * 60)),
            grace: GRACE,
            now,
            dry_run: false,
            parallel: SURVEY_PARALLEL,
            merged_at_once: false,
        }
    }
}

/// What [`prune`] did.
#[derive(Debug, Clone, Default)]
pub struct Pruned {
    /// What was deleted, or would be, in that order.
    pub deletions: Vec<Deletion>,
    /// What a user should know.
    pub warnings: Vec<String>,
}

impl Pruned {
    /// The bytes of what was deleted, or would be.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.deletions.iter().map(|deletion| deletion.len).sum()
    }
}

/// Why not everything was deleted. What was deleted before was not needed.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// What is in the replica cannot be told.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The store failed, or does not allow deletions.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Deletes what is out of the window, or says what that would be.
///
/// # Errors
///
/// When the store fails or refuses a deletion: nothing is deleted after that one.
pub async fn prune(store: &Store, options: &PruneOptions) -> Result<Pruned, PruneError> {
    prune_beside(store, options, async || {}).await
}

/// The same with something that happens while the replica is looked at.
async fn prune_beside(
    store: &Store,
    options: &PruneOptions,
    meanwhile: impl AsyncFnOnce(),
) -> Result<Pruned, PruneError> {
    let (survey, warnings) = survey::survey(store, options.parallel.max(1), meanwhile).await?;
    let deletions = plan::plan(&survey, options);
    #[cfg(test)]
    let deletions = broken_for_test(deletions);
    if !options.dry_run {
        delete(store, options.parallel, &deletions).await?;
    }
    Ok(Pruned { deletions, warnings })
}

async fn delete(store: &Store, parallel: usize, deletions: &[Deletion]) -> Result<(), StoreError> {
    let is_chunk = |deletion: &&Deletion| matches!(deletion.key, Key::Chunk(_));
    // Each is gone before the next one goes: slots in this order are what fences.
    for deletion in deletions.iter().filter(|deletion| !is_chunk(deletion)) {
        store.delete(&deletion.key).await?;
    }
    let chunks: Vec<Key> = deletions.iter().filter(is_chunk).map(|deletion| deletion.key).collect();
    futures::stream::iter(chunks)
        .map(|key| async move { store.delete(&key).await })
        .buffer_unordered(parallel.clamp(1, PARALLEL))
        .try_collect()
        .await
}

#[cfg(test)]
fn broken_for_test(mut deletions: Vec<Deletion>) -> Vec<Deletion> {
    use crate::outside::simulated::{Rule, is_broken};
    if is_broken(Rule::Ascending) {
        deletions.reverse();
    }
    deletions
}

#[cfg(test)]
mod tests;
