//! Deleting what no restore inside of the retention window needs.
//!
//! Owns the order in which it is done, each deletion durable before one that relies on it. It may be stopped at any place, and run beside
//! writers, readers, mergers and other pruners: what is left is whole.

mod age;
mod names;
mod plan;
mod survey;

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use replvfs_vfs::types::UnixMillis;

pub use plan::{Deletion, Reason};

use crate::config::Retention;
use crate::format::Key;
use crate::history::{HistoryError, SURVEYED};
use crate::outside::Moment;
use crate::store::{Store, StoreError};
use plan::Survey;

/// How long what is not needed any more stays, for those who read or write it at that moment.
pub const GRACE: Duration = crate::history::GRACE;

/// Deletions at a time of what has no order among itself.
const PARALLEL: usize = 8;
/// Requests at a time to look at what is there.
const SURVEY_PARALLEL: usize = 16;
/// Chunks between two looks at the clock.
const CHUNKS_AT_ONCE: usize = 64;

/// What is kept, and from when on.
#[derive(Debug, Clone)]
pub struct PruneOptions {
    /// How far the window reaches back. With [`Retention::Forever`] only what is there twice or named by nothing is deleted. Where nothing was stored for
    /// longer than about a day, that counts as a day. Default: 7 days.
    pub retention: Retention,
    /// How long objects stay that are not needed any more. Less than [`GRACE`], the default, is safe only when nobody reads or writes meanwhile.
    pub grace: Duration,
    /// The time. What is newest in the store is believed where it is earlier.
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
            retention: Retention::default(),
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
    /// A listing may lack something, and what is in no listing would be taken for unneeded.
    #[error(
        "nothing is deleted in the replica {0}: listings over FTP may lack something that is there, and what that needs would be deleted; \
         set retention=forever, or replicate to another kind of store"
    )]
    Listing(String),
}

/// Deletes what is out of the window, or says what that would be.
///
/// A second call finds more: the chunks that only images named which the first one deleted. For each chunk (1 MiB of the database) that the images
/// name it takes about 40 bytes of memory, as many for each object of the logs, and at most 50 MiB for the chunks that it deletes.
///
/// # Errors
///
/// When the store fails or refuses a deletion: nothing is deleted after that one. On FTP always: see [`PruneError::Listing`].
pub async fn prune(store: &Store, options: &PruneOptions) -> Result<Pruned, PruneError> {
    prune_beside(store, options, async || {}).await
}

/// The same with something that happens while the replica is looked at.
async fn prune_beside(
    store: &Store,
    options: &PruneOptions,
    meanwhile: impl AsyncFnOnce(),
) -> Result<Pruned, PruneError> {
    if !store.lists_everything() {
        return Err(PruneError::Listing(store.replica().to_owned()));
    }
    let since = Moment::now();
    let (mut survey, mut warnings) = survey::survey(store, options, meanwhile).await?;
    let deletions = plan::plan(&survey, options);
    if !options.dry_run {
        warnings.extend(delete(store, &deletions, options, (&mut survey, since)).await?);
    }
    Ok(Pruned { deletions, warnings })
}

/// Returns what a user should know. The store has been looked at `since` then.
async fn delete(
    store: &Store,
    deletions: &[Deletion],
    options: &PruneOptions,
    (survey, mut since): (&mut Survey, Moment),
) -> Result<Vec<String>, PruneError> {
    let is_chunk = |deletion: &&Deletion| matches!(deletion.key, Key::Chunk(_));
    // Each is gone before the next one goes: slots in this order are what fences.
    for deletion in deletions.iter().filter(|deletion| !is_chunk(deletion)) {
        store.delete(&deletion.key).await?;
    }
    let mut warnings = Vec::new();
    let chunks: Vec<Key> = deletions.iter().filter(is_chunk).map(|deletion| deletion.key).collect();
    for some in chunks.chunks(CHUNKS_AT_ONCE) {
        if since.age() > SURVEYED {
            // An image may have come that took very long to make, and names what nothing named.
            since = Moment::now();
            warnings = survey::look_again(store, survey).await?;
            if !warnings.is_empty() {
                break;
            }
        }
        let mut unnamed = some.to_vec();
        unnamed.retain(|key| matches!(key, Key::Chunk(name) if !survey.named.contain(name)));
        futures::stream::iter(unnamed)
            .map(|key| async move { store.delete(&key).await })
            .buffer_unordered(options.parallel.clamp(1, PARALLEL))
            .try_collect::<()>()
            .await?;
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests;
