//! One replica as all connections of a process read it: its lines, what is newest, and who looks for what is new.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::future::join;
use replvfs_vfs::notice::later;
use replvfs_vfs::types::Txid;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::blocks::Blocks;
use super::line::{Begun, Line, Origin, State, Way};
use crate::format::{Generation, Key, Manifest};
use crate::history::walk::size;
use crate::history::{History, HistoryError, Plan, Target};
use crate::metrics::Metrics;
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
    pub(super) fn new(store: Store, runtime: Handle, page_cache: u64, metrics: &Metrics) -> Replica {
        Replica {
            blocks: Blocks::new(store.clone(), runtime.clone(), page_cache, metrics),
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
        let history = match target {
            Target::Newest => History::open_newest(&self.store).await?,
            _ => History::open_to_plan(&self.store).await?,
        };
        let ahead = history.newest_path().filter(|_| target == Target::Newest);
        let ahead = ahead.filter(|(generation, image, ..)| !self.knows(*generation, *image));
        let mut begun = ahead.map(|ahead| Begun::new(&self.store, ahead));
        let begin = async {
            if let Some(begun) = &mut begun {
                begun.begin().await;
            }
        };
        let (plan, ()) = join(history.plan(target, None), begin).await;
        let plan = plan?;
        for warning in &plan.warnings {
            replvfs_vfs::warning!(replica = self.store.replica(); "{warning}");
        }
        let way = Way::new(&plan, begun);
        let line = self.line(origin(&history, &plan)?, plan.manifest);
        line.grow(&self.store, Some(way), plan.last.unwrap_or(Txid(u64::MAX)))
            .await?;
        State::new(&line, plan.last.unwrap_or_else(|| line.last()))
    }

    /// The same state, found again: what it was read from may have been merged since. All that look at it from now on see it there.
    pub(super) async fn again(&self, state: &State) -> Result<State, HistoryError> {
        let (generation, txid) = state.order();
        let history = History::open_to_plan(&self.store).await?;
        let plan = history.plan(Target::Txid(txid), Some(generation)).await?;
        let way = Way::new(&plan, None);
        let line = Arc::new(Line::new(origin(&history, &plan)?, plan.manifest));
        line.grow(&self.store, Some(way), txid).await?;
        let found = State::new(&line, txid)?;
        let mut lines = lock(&self.lines);
        lines.retain(|known| known.upgrade().is_some_and(|known| !Arc::ptr_eq(&known, &state.line)));
        lines.push(Arc::downgrade(&line));
        drop(lines);
        let mut newest = lock(&self.newest);
        if let Some(known) = &newest.state
            && known.order() == found.order()
            && known.is_kin(&found)
        {
            newest.state = Some(found.clone());
        }
        Ok(found)
    }

    /// One line for all that begin with the same image of the same generation.
    fn line(&self, origin: Origin, manifest: Manifest) -> Arc<Line> {
        let mut lines = lock(&self.lines);
        lines.retain(|line| line.strong_count() > 0);
        let same = |line: &Arc<Line>| line.origin == origin && line.manifest == manifest;
        if let Some(known) = lines.iter().filter_map(Weak::upgrade).find(same) {
            return known;
        }
        let line = Arc::new(Line::new(origin, manifest));
        lines.push(Arc::downgrade(&line));
        line
    }

    fn knows(&self, generation: Generation, image: Txid) -> bool {
        let lines = lock(&self.lines);
        let mut known = lines.iter().filter_map(Weak::upgrade);
        known.any(|line| (line.generation(), line.manifest.txid) == (generation, image))
    }

    /// What is newest for who opens: [`look`](Self::look), and beside it a look whether the replica is still the one that is known. A follower notices that from
    /// what follows, and one that was deleted and begun anew may have nothing there.
    pub(super) async fn look_to_open(&self) -> Result<State, HistoryError> {
        let Some(known) = self.published() else {
            return self.look().await;
        };
        let (looked, is_same) = join(self.look(), known.line.is_there_yet(&self.store)).await;
        match is_same? {
            true => looked,
            false => self.look_at_all().await,
        }
    }

    /// Asks the store for what is new, with one request if nothing is.
    pub(super) async fn look(&self) -> Result<State, HistoryError> {
        let looked = self.try_look().await;
        let _later = later();
        let mut newest = lock(&self.newest);
        let now = looked.as_ref().err().map(ToString::to_string);
        if let Some(problem) = now.as_ref().filter(|now| newest.problem.as_ref() != Some(*now)) {
            let replica = self.store.replica();
            replvfs_vfs::warning!(
                replica = replica;
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
        match line.grow(&self.store, None, Txid(u64::MAX)).await {
            Ok(()) => Ok(self.publish(State::new(line, line.last())?, None)),
            // Of another replica that has the place now.
            Err(HistoryError::Misplaced { .. }) if !line.is_there_yet(&self.store).await? => self.look_at_all().await,
            Err(error) => Err(error),
        }
    }

    async fn look_at_all(&self) -> Result<State, HistoryError> {
        let begun = Instant::now();
        let state = self.state_at(Target::Newest).await?;
        Ok(self.publish(state, Some(begun)))
    }

    /// Never goes back, as long as the replica is the same one; another one is seen by who `looked` at all of it last.
    fn publish(&self, state: State, looked: Option<Instant>) -> State {
        let mut newest = lock(&self.newest);
        let known = newest.state.clone().filter(|known| match known.is_kin(&state) {
            true => known.order() > state.order(),
            false => looked.is_none_or(|looked| newest.looked.is_some_and(|at| at > looked)),
        });
        newest.looked = newest.looked.max(looked);
        known.unwrap_or_else(|| {
            newest.state = Some(state.clone());
            state
        })
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

fn origin(history: &History, plan: &Plan) -> Result<Origin, HistoryError> {
    Ok(Origin {
        database: history.meta().database_id,
        root: history.generation(plan.generation)?.root(),
    })
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
