//! What the owner does for its replica now and then: merges segments, and deletes what is out of the window.
//!
//! Owns when. It begins when a segment was stored, never by a timer, and only while this process replicates the database: when that ends, so does what
//! runs, and nothing begins any more. Nobody waits for it, and what goes wrong is a warning: the next time it is tried again. Merging and deleting need
//! nothing of each other, so either goes on when the other one fails.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use replvfs_vfs::notice::later;
use replvfs_vfs::types::Txid;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::shared::now;
use crate::config::Retention;
use crate::format::Generation;
use crate::history::list_generations;
use crate::merge::{MergeError, MergeOptions, merge_generation};
use crate::metrics::DatabaseMetrics;
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
    /// Nothing is deleted before so long after the last time. What is to be deleted has stayed for a day, and to find it all chunks are listed: that of a large
    /// database, every minute or so, would cost more than its segments.
    pub(crate) deletes_every: Duration,
    /// Segments that a span stands for are deleted without it.
    pub(crate) merged_at_once: bool,
    /// After a time that took long, so many times as long passes until the next: under a load that never ends it would run all the time otherwise.
    pub(crate) rests: u32,
    /// What took no longer than this needs no rest.
    pub(crate) long: Duration,
    /// In place of what is set. With this one also `Forever` is looked after.
    pub(crate) retention: Option<Retention>,
}

impl Default for Rule {
    fn default() -> Rule {
        Rule {
            segments: 64,
            pieces: MergeOptions::default().pieces,
            grace: GRACE,
            // Less than an hour, or every second look would be too early.
            deletes_every: AT_LEAST / 2,
            merged_at_once: false,
            rests: 3,
            long: Duration::from_millis(100),
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
    memory: Arc<Mutex<Memory>>,
}

/// What is known from one time to the next.
#[derive(Debug, Default)]
struct Memory {
    /// What went wrong the last time.
    problems: Vec<Problem>,
    /// What a user was told the last time.
    warnings: Vec<String>,
    /// The generation before the newest one that has nothing left to merge.
    merged: Option<Generation>,
    /// When it was begun the last time to delete what is out of the window, and that came to its end.
    deleted: Option<Instant>,
    /// Nothing begins before.
    rests_until: Option<Instant>,
    /// How often a user was told that something went wrong.
    told: usize,
}

/// The kind of what is not allowed.
const DENIED: &str = "denied";

#[derive(Debug, Clone)]
struct Problem {
    text: String,
    /// Which of several things it is: what stays the same is told once.
    kind: String,
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

    /// A segment was stored, `last` of which is its last transaction. May begin to work in the background.
    pub(super) fn stored(
        &self,
        schedule: &Schedule,
        last: Txid,
        store: &Store,
        (database, metrics): (&str, &Arc<DatabaseMetrics>),
    ) {
        let Some(retention) = schedule.retention else { return };
        let rule = schedule.rule;
        let mut state = lock(&self.state);
        state.segments = match state.since {
            Some(_) => state.segments + 1,
            // Processes that are too short for it take turns: which number it is nearly always tells how much the one before had left over.
            None if last.0.is_multiple_of(rule.segments.max(1)) => rule.segments,
            None => last.0 % rule.segments.max(1),
        };
        let since = *state.since.get_or_insert_with(Instant::now);
        let is_running = state.running.as_ref().is_some_and(|running| !running.is_finished());
        let is_due = state.segments >= rule.segments || since.elapsed() >= AT_LEAST;
        if is_running || !is_due || state.turn != Turn::Now || lock(&self.memory).rests() {
            return;
        }
        state.segments = 0;
        state.since = Some(Instant::now());
        let (store, database, memory) = (store.clone(), database.to_owned(), Arc::clone(&self.memory));
        let metrics = Arc::clone(metrics);
        let begun = Instant::now();
        state.running = Some(tokio::spawn(async move {
            let done = AssertUnwindSafe(work(&rule, retention, (&store, &database), &memory, &metrics))
                .catch_unwind()
                .await;
            let (problems, warnings) = done.unwrap_or_else(|_| {
                let text = "it panicked, which is a bug in replvfs".to_owned();
                (
                    vec![Problem {
                        kind: text.clone(),
                        text,
                    }],
                    Vec::new(),
                )
            });
            metrics.upkeep_errors.increment(problems.len() as u64);
            let _later = later();
            let took = begun.elapsed();
            if took >= rule.long {
                lock(&memory).rests_until = Instant::now().checked_add(took * rule.rests);
            }
            lock(&memory).tell(problems, warnings, &database, store.replica());
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
        let memory = lock(&self.memory);
        let texts: Vec<&str> = memory.problems.iter().map(|problem| problem.text.as_str()).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }

    #[cfg(test)]
    pub(super) fn told(&self) -> usize {
        lock(&self.memory).told
    }

    #[cfg(test)]
    pub(super) fn backdate(&self, by: Duration) {
        let mut state = lock(&self.state);
        state.since = state.since.and_then(|since| since.checked_sub(by));
        let mut memory = lock(&self.memory);
        memory.deleted = memory.deleted.and_then(|at| at.checked_sub(by));
        memory.rests_until = memory.rests_until.and_then(|at| at.checked_sub(by));
    }

    #[cfg(test)]
    pub(super) fn is_running(&self) -> bool {
        let state = lock(&self.state);
        state.running.as_ref().is_some_and(|running| !running.is_finished())
    }
}

impl Memory {
    fn rests(&self) -> bool {
        self.rests_until.is_some_and(|until| Instant::now() < until)
    }

    /// What was told the last time is not told again.
    fn tell(&mut self, problems: Vec<Problem>, warnings: Vec<String>, database: &str, replica: &str) {
        let known = |problem: &Problem| self.problems.iter().any(|before| before.kind == problem.kind);
        for problem in problems.iter().filter(|problem| !known(problem)) {
            self.told += 1;
            let text = &problem.text;
            replvfs_vfs::warning!(
                database = database, replica = replica;
                "looking after the replica failed, and is tried again later: {text}"
            );
        }
        for warning in warnings.iter().filter(|warning| !self.warnings.contains(warning)) {
            replvfs_vfs::warning!(database = database, replica = replica; "{warning}");
        }
        (self.problems, self.warnings) = (problems, warnings);
    }
}

async fn work(
    rule: &Rule,
    retention: Retention,
    (store, database): (&Store, &str),
    memory: &Mutex<Memory>,
    metrics: &DatabaseMetrics,
) -> (Vec<Problem>, Vec<String>) {
    let mut problems = Vec::new();
    // What was merged would be there twice.
    let may_delete = lock(memory).problems.iter().all(|problem| problem.kind != DENIED);
    if may_delete && let Err(error) = merge(rule, store, memory).await {
        let text = error.to_string();
        problems.push(Problem {
            kind: text.clone(),
            text,
        });
    }
    {
        let memory = lock(memory);
        if memory.deleted.is_some_and(|at| at.elapsed() < rule.deletes_every) {
            return (problems, memory.warnings.clone());
        }
    }
    let begun = Instant::now();
    let options = PruneOptions {
        retention,
        grace: rule.grace,
        merged_at_once: rule.merged_at_once,
        parallel: PARALLEL,
        ..PruneOptions::at(now())
    };
    let done = match prune(store, &options).await {
        Ok(done) => {
            lock(memory).deleted = Some(begun);
            done
        }
        Err(error) => {
            lock(memory).deleted = None;
            // Which object it was to begin with changes, and says nothing.
            let is_denied = match &error {
                PruneError::Store(error) => error.is_denied(),
                PruneError::Listing(_) => true,
                PruneError::History(_) => false,
            };
            let text = error.to_string();
            let kind = if is_denied { DENIED.to_owned() } else { text.clone() };
            problems.push(Problem { text, kind });
            return (problems, Vec::new());
        }
    };
    if !done.deletions.is_empty() {
        metrics.pruned.increment(done.deletions.len() as u64);
        metrics.pruned_bytes.increment(done.bytes());
        tracing::info!(
            database,
            replica = store.replica(),
            objects = done.deletions.len(),
            bytes = done.bytes(),
            "what is out of the window was deleted"
        );
    }
    (problems, done.warnings)
}

/// The newest generation, and once the one before: it was ended with segments that had not been merged. Older ones had their turn then.
async fn merge(rule: &Rule, store: &Store, memory: &Mutex<Memory>) -> Result<(), MergeError> {
    let generations = list_generations(store).await?;
    let mut latest = generations.iter().rev();
    let newest = match latest.next() {
        Some(newest) => merge_all(rule, store, *newest).await,
        None => Ok(()),
    };
    if let Some(before) = latest.next().filter(|before| lock(memory).merged != Some(**before)) {
        match merge_all(rule, store, *before).await {
            Ok(()) | Err(MergeError::NoGeneration(_)) => lock(memory).merged = Some(*before),
            Err(error) => return newest.and(Err(error)),
        }
    }
    newest
}

async fn merge_all(rule: &Rule, store: &Store, generation: Generation) -> Result<(), MergeError> {
    let options = MergeOptions {
        pieces: rule.pieces,
        parallel: PARALLEL,
        ..MergeOptions::default()
    };
    merge_generation(store, generation, &options).await
}
