//! What the owner does for its replica now and then: merges segments, and deletes what is out of the window.
//!
//! Owns when. It begins when a segment was stored, never by a timer, and only while this process replicates the database: when that ends, so does what
//! runs, and nothing begins any more. Nobody waits for it, and what goes wrong is a warning: the next time it is tried again.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::shared::now;
use crate::config::Retention;
use crate::history::list_generations;
use crate::merge::{MergeError, MergeOptions, merge_next};
use crate::prune::{GRACE, PruneError, PruneOptions, prune};
use crate::store::Store;

/// A database that is written so seldom that segments do not add up is looked after as often as this.
const AT_LEAST: Duration = Duration::from_secs(60 * 60);
/// Requests at a time: the store's limit is for segments and images, too.
const PARALLEL: usize = 3;

/// How often, and how. The defaults are right for all but tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    /// So many segments from one time to the next.
    pub(crate) segments: u64,
    /// So many segments become a span.
    pub(crate) pieces: usize,
    pub(crate) grace: Duration,
    /// Segments that a span stands for are deleted without it.
    pub(crate) merged_at_once: bool,
    /// In place of what is set. With this one also `Forever` is looked after.
    pub(crate) retention: Option<Retention>,
}

impl Default for Rule {
    fn default() -> Rule {
        Rule {
            segments: 64,
            pieces: MergeOptions::default().pieces,
            grace: GRACE,
            merged_at_once: false,
            retention: None,
        }
    }
}

/// The rule for one database.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    pub(super) rule: Rule,
    /// `None`: never.
    pub(super) retention: Option<Retention>,
}

impl Schedule {
    pub(super) fn new(rule: Rule, set: Retention) -> Schedule {
        let set = Some(set).filter(|set| *set != Retention::Forever);
        let retention = rule.retention.or(set);
        Schedule { rule, retention }
    }
}

/// Counts, and keeps what runs. It ends when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    state: Mutex<State>,
    /// What went wrong the last time.
    problem: Arc<Mutex<Option<String>>>,
}

#[derive(Debug, Default)]
struct State {
    turn: Turn,
    segments: u64,
    /// When the last one began, or the first segment was stored.
    since: Option<Instant>,
    running: Option<JoinHandle<()>>,
}

/// Whether this process may look after the replica.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Turn {
    #[default]
    NotNow,
    Now,
    Never,
}

impl State {
    fn abort(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Upkeep {
    /// This process replicates the database from here on. To be called before anybody else can know.
    pub(super) fn begin(&self) {
        let mut state = lock(&self.state);
        if state.turn == Turn::NotNow {
            state.turn = Turn::Now;
        }
    }

    /// A segment was stored. May begin to work in the background.
    pub(super) fn stored(&self, schedule: &Schedule, store: &Store, database: &str) {
        let Some(retention) = schedule.retention else { return };
        let rule = schedule.rule;
        let mut state = lock(&self.state);
        state.segments += 1;
        let since = *state.since.get_or_insert_with(Instant::now);
        let is_running = state.running.as_ref().is_some_and(|running| !running.is_finished());
        let is_due = state.segments >= rule.segments || since.elapsed() >= AT_LEAST;
        if is_running || !is_due || state.turn != Turn::Now {
            return;
        }
        state.segments = 0;
        state.since = Some(Instant::now());
        let (store, database, problem) = (store.clone(), database.to_owned(), Arc::clone(&self.problem));
        state.running = Some(tokio::spawn(async move {
            let done = AssertUnwindSafe(work(&rule, retention, &store, &database))
                .catch_unwind()
                .await;
            let now = match done {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("it panicked, which is a bug in replvfs".to_owned()),
            };
            let mut problem = lock(&problem);
            if let Some(now) = now.as_ref().filter(|now| problem.as_ref() != Some(*now)) {
                tracing::warn!(
                    database,
                    replica = store.replica(),
                    "looking after the replica failed, and is tried again later: {now}"
                );
            }
            *problem = now;
        }));
    }

    /// This process does not replicate the database any more. What runs ends where it waits next; nothing begins before [`begin`](Self::begin).
    /// To be called before another process can replicate it.
    pub(super) fn pause(&self) {
        let mut state = lock(&self.state);
        if state.turn == Turn::Now {
            state.turn = Turn::NotNow;
        }
        state.abort();
    }

    /// The same for good.
    pub(super) fn end(&self) {
        let mut state = lock(&self.state);
        state.turn = Turn::Never;
        state.abort();
    }

    #[cfg(test)]
    pub(super) fn problem(&self) -> Option<String> {
        lock(&self.problem).clone()
    }

    #[cfg(test)]
    pub(super) fn backdate(&self, by: Duration) {
        let mut state = lock(&self.state);
        state.since = state.since.and_then(|since| since.checked_sub(by));
    }

    #[cfg(test)]
    pub(super) fn is_running(&self) -> bool {
        let state = lock(&self.state);
        state.running.as_ref().is_some_and(|running| !running.is_finished())
    }
}

#[derive(Debug, thiserror::Error)]
enum UpkeepError {
    #[error(transparent)]
    Merge(#[from] MergeError),
    #[error(transparent)]
    Prune(#[from] PruneError),
}

async fn work(rule: &Rule, retention: Retention, store: &Store, database: &str) -> Result<(), UpkeepError> {
    let options = MergeOptions {
        pieces: rule.pieces,
        parallel: PARALLEL,
        ..MergeOptions::default()
    };
    // Older generations were merged while they were written.
    if let Some(newest) = list_generations(store).await.map_err(MergeError::from)?.last() {
        let mut last = None;
        while let Some(span) = merge_next(store, *newest, &options).await? {
            // A store that lists late shows it the next time.
            if last.replace(span.key) == Some(span.key) {
                break;
            }
        }
    }
    let options = PruneOptions {
        retention,
        grace: rule.grace,
        merged_at_once: rule.merged_at_once,
        parallel: PARALLEL,
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
