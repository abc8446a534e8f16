//! What the pipeline asks of the world beside the store: the wall clock, random numbers, threads that may block, and disks.
//!
//! Owns nothing. It is one place so that tests can be that world: the simulator (`pipeline/simulator`) runs many machines on one thread, where
//! one seed decides everything. Time that passes is tokio's, and `select!` is `biased` in the pipeline, since it draws numbers of its own else.

use std::fs::File;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

pub(crate) fn wall_clock() -> SystemTime {
    #[cfg(any(test, feature = "testing"))]
    if let Some(world) = simulated::world() {
        return world.wall_clock();
    }
    SystemTime::now()
}

/// A moment, by a clock that may stand still while the machine sleeps, and by one that may be set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment(Instant, SystemTime);

impl Moment {
    pub(crate) fn now() -> Moment {
        Moment(Instant::now(), wall_clock())
    }

    /// How long ago it was by the clock that has gone further.
    pub(crate) fn age(self) -> Duration {
        let by_date = wall_clock().duration_since(self.1).unwrap_or_default();
        self.0.elapsed().max(by_date)
    }

    /// So long ago by each of them.
    #[cfg(test)]
    pub(crate) fn ago(by_clock: Duration, by_date: Duration) -> Option<Moment> {
        let Moment(clock, date) = Moment::now();
        Some(Moment(clock.checked_sub(by_clock)?, date.checked_sub(by_date)?))
    }
}

/// Fills `bytes` with random ones.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), getrandom::Error> {
    #[cfg(any(test, feature = "testing"))]
    if let Some(world) = simulated::world() {
        world.random(bytes);
        return Ok(());
    }
    getrandom::fill(bytes)
}

/// A random number for what does not depend on it: 0 if the system gives none.
pub(crate) fn random_number() -> u32 {
    let mut bytes = [0; 4];
    match random(&mut bytes) {
        Ok(()) => u32::from_ne_bytes(bytes),
        Err(_) => 0,
    }
}

/// What was written to the file so far is on the disk.
pub(crate) fn synced(_file: &File) {
    #[cfg(any(test, feature = "testing"))]
    if let Some(world) = simulated::world() {
        world.synced(_file);
    }
}

/// Runs `work` on a thread that may block. It goes on when nobody waits for its result any more.
pub(crate) fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Blocking<T> {
    #[cfg(any(test, feature = "testing"))]
    if simulated::world().is_some() {
        return Blocking::Done(Some(work()));
    }
    Blocking::Running(tokio::task::spawn_blocking(work))
}

/// The result of [`blocking()`].
#[derive(Debug)]
pub(crate) enum Blocking<T> {
    Running(JoinHandle<T>),
    /// In a simulation, where there is one order of events.
    #[cfg(any(test, feature = "testing"))]
    Done(Option<T>),
}

impl<T> Unpin for Blocking<T> {}

impl<T> Future for Blocking<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Blocking::Running(handle) => Pin::new(handle).poll(context),
            #[cfg(any(test, feature = "testing"))]
            Blocking::Done(result) => result.take().map_or(Poll::Pending, |result| Poll::Ready(Ok(result))),
        }
    }
}

/// How many threads may work at the same time.
pub(crate) fn parallelism() -> usize {
    #[cfg(any(test, feature = "testing"))]
    if simulated::world().is_some() {
        return 1;
    }
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// What is read in a task, for work on a thread that may block.
pub(crate) fn queue<T>(len: usize) -> (mpsc::Sender<T>, mpsc::Receiver<T>) {
    #[cfg(any(test, feature = "testing"))]
    if simulated::world().is_some() {
        return mpsc::channel(1 << 20);
    }
    mpsc::channel(len)
}

/// The next one, on that thread. `None`: there are no more.
pub(crate) fn next<T>(queue: &mut mpsc::Receiver<T>) -> Option<T> {
    #[cfg(any(test, feature = "testing"))]
    if simulated::world().is_some() {
        return queue.try_recv().ok();
    }
    queue.blocking_recv()
}

/// What another thread is working on, on a thread that may block. `None`: it died.
pub(crate) fn waited<T>(result: oneshot::Receiver<T>) -> Option<T> {
    #[cfg(any(test, feature = "testing"))]
    if simulated::world().is_some() {
        let mut result = result;
        return result.try_recv().ok();
    }
    result.blocking_recv().ok()
}

/// Work on a thread that may block, and a task that fills its queue.
pub(crate) async fn fed<T: Send + 'static, F: Future>(
    work: impl FnOnce() -> T + Send + 'static,
    fill: F,
) -> (Result<T, JoinError>, F::Output) {
    #[cfg(any(test, feature = "testing"))]
    if simulated::world().is_some() {
        let filled = fill.await;
        return (blocking(work).await, filled);
    }
    futures::join!(blocking(work), fill)
}

/// The world as a test makes it, for the thread that the test runs on.
#[cfg(any(test, feature = "testing"))]
pub(crate) mod simulated {
    use std::cell::{Cell, RefCell};
    use std::fs::File;
    use std::rc::Rc;
    use std::time::SystemTime;

    pub(crate) trait World {
        fn wall_clock(&self) -> SystemTime;
        fn random(&self, bytes: &mut [u8]);
        fn synced(&self, file: &File);
    }

    /// A rule of the protocol that a test may break, to see that it is noticed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Rule {
        /// Objects are created on condition that they do not exist.
        Condition,
        /// A seal that loses its slot is put behind what has it.
        SealBehindWinner,
        /// An object counts when the store has said so.
        AnswerFirst,
        /// A generation is sealed before the next one begins.
        Seal,
        /// Who found the replica empty looks whether it still was, when he has begun.
        StillEmpty,
        /// What is in a slot is compared before it counts as one's own.
        Compare,
        /// A chunk that is named stays.
        Named,
        /// What is young stays.
        Young,
        /// A transaction that was rolled back is in no history that goes on.
        LeaveAside,
    }

    thread_local! {
        static WORLD: RefCell<Option<Rc<dyn World>>> = const { RefCell::new(None) };
        static BROKEN: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    pub(crate) fn world() -> Option<Rc<dyn World>> {
        WORLD.with_borrow(Option::clone)
    }

    pub(crate) fn set_world(world: Option<Rc<dyn World>>) {
        WORLD.set(world);
    }

    #[cfg(test)]
    pub(crate) fn breaks(rule: Option<Rule>) {
        BROKEN.set(rule);
    }

    pub(crate) fn is_broken(rule: Rule) -> bool {
        BROKEN.get() == Some(rule)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use super::simulated::World;
    use super::*;

    struct Still;

    impl World for Still {
        fn wall_clock(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + Duration::from_secs(7)
        }

        fn random(&self, bytes: &mut [u8]) {
            bytes.fill(1);
        }

        fn synced(&self, _: &File) {}
    }

    /// A thread that may block cannot wait for time to pass where time passes only when nothing is under way.
    #[test]
    fn work_in_a_simulated_world_begins_when_all_of_its_queue_is_there() {
        simulated::set_world(Some(Rc::new(Still)));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (sender, mut receiver) = queue(1);
        let work = move || std::iter::from_fn(|| next(&mut receiver)).sum::<u64>();
        let fill = async move {
            for number in 1..=10 {
                tokio::time::sleep(Duration::from_secs(number)).await;
                sender.send(number).await.unwrap();
            }
        };
        let (sum, ()) = runtime.block_on(fed(work, fill));
        simulated::set_world(None);
        assert_eq!(sum.unwrap(), 55);
    }

    #[test]
    fn a_simulated_world_decides_everything() {
        simulated::set_world(Some(Rc::new(Still)));
        assert_eq!(wall_clock(), Still.wall_clock());
        assert_eq!(random_number(), 0x0101_0101);
        let here = std::thread::current().id();
        let there = blocking(|| std::thread::current().id());
        assert!(matches!(there, Blocking::Done(Some(thread)) if thread == here));
        simulated::set_world(None);
        assert_ne!(wall_clock(), Still.wall_clock());
    }
}
