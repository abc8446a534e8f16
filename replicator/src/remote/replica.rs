//! One replica as all connections of a process read it: its lines, what is newest, and who looks for what is new.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use replvfs_vfs::types::Txid;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::blocks::Blocks;
use super::line::{Line, State};
use crate::format::{Key, Manifest};
use crate::history::walk::size;
use crate::history::{History, HistoryError, Target};
use crate::store::Store;

/// Asking for the next slot is all that a follower does, but for this: as often it looks at the whole replica, for images that are nearer, segments that
/// were merged before it came to them, and generations that began without a seal before them.
const LOOK: Duration = Duration::from_secs(5 * 60);

/// Shared by all connections.
#[derive(Debug)]
pub(super) struct Replica {
    store: Store,
    runtime: Handle,
    blocks: Blocks,
    lines: Mutex<Vec<Weak<Line>>>,
    newest: Mutex<Newest>,
    /// How often the connections that follow want to be told; the task ends with the last of them.
    wishes: Mutex<Wishes>,
    /// Another wish.
    wished: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Newest {
    state: Option<State>,
    /// When the whole replica was looked at.
    looked: Option<Instant>,
    /// Why what is new cannot be had.
    problem: Option<String>,
}

#[derive(Debug, Default)]
struct Wishes {
    every: Vec<Weak<Duration>>,
    is_running: bool,
}

/// As long as it lives, what is new is looked for.
#[derive(Debug)]
pub(super) struct Following {
    _every: Arc<Duration>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Replica {
    pub(super) fn new(store: Store, runtime: Handle, page_cache: u64) -> Replica {
        Replica {
            blocks: Blocks::new(store.clone(), runtime.clone(), page_cache),
            store,
            runtime,
            lines: Mutex::default(),
            newest: Mutex::default(),
            wishes: Mutex::default(),
            wished: Arc::default(),
        }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(super) fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// The state after the newest transaction that was seen, without asking the store.
    pub(super) fn published(&self) -> Option<State> {
        lock(&self.newest).state.clone()
    }

    /// The state that a target names, as the store has it now.
    pub(super) async fn state_at(&self, target: Target) -> Result<State, HistoryError> {
        let history = History::open(&self.store).await?;
        let plan = history.plan(target, None).await?;
        for warning in &plan.warnings {
            tracing::warn!(replica = self.store.replica(), "{warning}");
        }
        let line = self.line(plan.manifest);
        let until = plan.last.unwrap_or(Txid(u64::MAX));
        line.grow(&self.store, Some((plan.start, plan.path)), until).await?;
        State::new(&line, plan.last.unwrap_or_else(|| line.last()))
    }

    /// The same state, found again: what it was read from may have been merged since. All that look at it from now on see it there.
    pub(super) async fn again(&self, state: &State) -> Result<State, HistoryError> {
        let (generation, txid) = state.order();
        let history = History::open(&self.store).await?;
        let plan = history.plan(Target::Txid(txid), Some(generation)).await?;
        let line = Arc::new(Line::new(plan.manifest));
        line.grow(&self.store, Some((plan.start, plan.path)), txid).await?;
        let mut lines = lock(&self.lines);
        lines.retain(|known| known.upgrade().is_some_and(|known| !Arc::ptr_eq(&known, &state.line)));
        lines.push(Arc::downgrade(&line));
        drop(lines);
        let found = State::new(&line, txid)?;
        let mut newest = lock(&self.newest);
        if newest
            .state
            .as_ref()
            .is_some_and(|newest| newest.order() == found.order())
        {
            newest.state = Some(found.clone());
        }
        Ok(found)
    }

    /// One line for all that begin with the same image.
    fn line(&self, manifest: Manifest) -> Arc<Line> {
        let mut lines = lock(&self.lines);
        lines.retain(|line| line.strong_count() > 0);
        // Of a replica that was deleted and begun anew another image may have that name.
        let same = |line: &Arc<Line>| line.manifest == manifest;
        if let Some(known) = lines.iter().filter_map(Weak::upgrade).find(same) {
            return known;
        }
        let line = Arc::new(Line::new(manifest));
        lines.push(Arc::downgrade(&line));
        line
    }

    /// Asks the store for what is new, with one request if nothing is.
    pub(super) async fn look(&self) -> Result<State, HistoryError> {
        let looked = self.try_look().await;
        let mut newest = lock(&self.newest);
        let now = looked.as_ref().err().map(ToString::to_string);
        if let Some(problem) = now.as_ref().filter(|now| newest.problem.as_ref() != Some(*now)) {
            let replica = self.store.replica();
            tracing::warn!(
                replica,
                "what is new in the replica cannot be read, and is tried again: {problem}"
            );
        }
        newest.problem = now;
        looked
    }

    async fn try_look(&self) -> Result<State, HistoryError> {
        let (known, looked) = {
            let newest = lock(&self.newest);
            (newest.state.clone(), newest.looked)
        };
        let Some(known) = known.filter(|_| looked.is_some_and(|at| at.elapsed() < LOOK)) else {
            return self.look_at_all().await;
        };
        let line = &known.line;
        if line.is_sealed() {
            // Until the next one has begun there is nothing else to ask for.
            let next = Key::Generation(line.generation().next());
            return match size(&self.store, next).await? {
                Some(_) => self.look_at_all().await,
                None => Ok(known),
            };
        }
        line.grow(&self.store, None, Txid(u64::MAX)).await?;
        Ok(self.publish(State::new(line, line.last())?))
    }

    async fn look_at_all(&self) -> Result<State, HistoryError> {
        let state = self.state_at(Target::Newest).await?;
        lock(&self.newest).looked = Some(Instant::now());
        Ok(self.publish(state))
    }

    /// Never goes back.
    fn publish(&self, state: State) -> State {
        let mut newest = lock(&self.newest);
        match &newest.state {
            Some(known) if known.order() > state.order() => known.clone(),
            _ => {
                newest.state = Some(state.clone());
                state
            }
        }
    }

    /// From here on what is new is looked for as often as this, or more often.
    pub(super) fn follow(self: &Arc<Self>, every: Duration) -> Following {
        let every = Arc::new(every);
        let mut wishes = lock(&self.wishes);
        wishes.every.push(Arc::downgrade(&every));
        if !std::mem::replace(&mut wishes.is_running, true) {
            self.runtime.spawn(run(Arc::downgrade(self)));
        }
        drop(wishes);
        self.wished.notify_one();
        Following { _every: every }
    }

    /// How long until the next look. `None`: nobody follows, and the task that asked ends.
    fn pause(&self) -> Option<Duration> {
        let mut wishes = lock(&self.wishes);
        wishes.every.retain(|every| every.strong_count() > 0);
        let shortest = wishes.every.iter().filter_map(Weak::upgrade).map(|every| *every).min();
        wishes.is_running = shortest.is_some();
        shortest
    }

    /// For `PRAGMA replvfs_status`.
    pub(super) fn describe(&self, status: &mut serde_json::Map<String, serde_json::Value>) {
        let counts = self.blocks.counts();
        let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        status.insert("replica".into(), self.store.replica().into());
        status.insert("cache_hits".into(), count(&counts.hits).into());
        status.insert("cache_misses".into(), count(&counts.misses).into());
        status.insert("fetched".into(), count(&counts.fetched).into());
        status.insert("fetched_bytes".into(), count(&counts.fetched_bytes).into());
        status.insert("cache_bytes".into(), self.blocks.bytes().into());
        let newest = lock(&self.newest);
        status.insert("last_error".into(), newest.problem.clone().into());
    }
}

async fn run(replica: Weak<Replica>) {
    loop {
        let Some(pause) = replica.upgrade().and_then(|replica| replica.pause()) else {
            return;
        };
        let Some(wished) = replica.upgrade().map(|replica| Arc::clone(&replica.wished)) else {
            return;
        };
        // Whoever follows from now on may want it sooner. The replica and its cache are not kept for a pause.
        let sooner = tokio::time::timeout(pause, wished.notified()).await.is_ok();
        if sooner {
            continue;
        }
        let Some(here) = replica.upgrade() else { return };
        // Its error is noted, and the next time is soon.
        let _ = here.look().await;
    }
}
