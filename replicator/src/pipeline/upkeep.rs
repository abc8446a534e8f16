//! What the owner does for its replica now and then: merges segments, and deletes what is out of the window.
//!
//! Owns when. It begins when a segment was stored, never by a timer, and ends with the ownership. Nobody waits for it, and what goes wrong is a
//! warning: the next time it is tried again.

use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::shared::now;
use crate::config::Retention;
use crate::history::list_generations;
use crate::merge::{MergeError, MergeOptions, merge_next};
use crate::prune::{PruneError, PruneOptions, prune};
use crate::store::Store;

/// A database that is written so seldom that segments do not add up is looked after as often as this.
const AT_LEAST: Duration = Duration::from_secs(60 * 60);

/// How often, and what is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    /// So many segments from one time to the next.
    pub(super) segments: u64,
    pub(super) retention: Retention,
    pub(super) grace: Duration,
}

/// Counts, and keeps what runs. It ends when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Upkeep(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    segments: u64,
    /// The end of the last one, or when the first segment was stored.
    since: Option<Instant>,
    running: Option<JoinHandle<()>>,
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

impl Upkeep {
    /// A segment was stored. May begin to work in the background.
    pub(super) fn stored(&self, schedule: &Schedule, store: &Store, database: &str) {
        if schedule.retention == Retention::Forever {
            return;
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.segments += 1;
        let since = *state.since.get_or_insert_with(Instant::now);
        let is_running = state.running.as_ref().is_some_and(|running| !running.is_finished());
        let is_due = state.segments >= schedule.segments || since.elapsed() >= AT_LEAST;
        if is_running || !is_due {
            return;
        }
        state.segments = 0;
        state.since = Some(Instant::now());
        let (schedule, store, database) = (*schedule, store.clone(), database.to_owned());
        state.running = Some(tokio::spawn(async move {
            let done = AssertUnwindSafe(work(&schedule, &store, &database))
                .catch_unwind()
                .await;
            match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(
                    database,
                    replica = store.replica(),
                    "looking after the replica failed, and is tried again later: {error}"
                ),
                Err(_) => tracing::error!(
                    database,
                    "looking after the replica panicked, which is a bug in replvfs"
                ),
            }
        }));
    }

    /// This process does not replicate the database any more, or not now.
    pub(super) fn stop(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = state.running.take() {
            running.abort();
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum UpkeepError {
    #[error(transparent)]
    Merge(#[from] MergeError),
    #[error(transparent)]
    Prune(#[from] PruneError),
}

async fn work(schedule: &Schedule, store: &Store, database: &str) -> Result<(), UpkeepError> {
    // Older generations were merged while they were written.
    if let Some(newest) = list_generations(store).await.map_err(MergeError::from)?.last() {
        let mut last = None;
        while let Some(span) = merge_next(store, *newest, &MergeOptions::default()).await? {
            // A store that lists late shows it the next time.
            if last.replace(span.key) == Some(span.key) {
                break;
            }
        }
    }
    let options = PruneOptions {
        retention: schedule.retention,
        grace: schedule.grace,
        ..PruneOptions::at(now())
    };
    let done = prune(store, &options).await?;
    for warning in &done.warnings {
        tracing::warn!(database, replica = store.replica(), "{warning}");
    }
    if !done.deletions.is_empty() {
        tracing::debug!(
            database,
            objects = done.deletions.len(),
            bytes = done.bytes(),
            "what is out of the window was deleted"
        );
    }
    Ok(())
}
