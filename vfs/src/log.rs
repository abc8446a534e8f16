//! The segment log: committed transactions in memory, in order, between the commit that wrote them and
//! the upload that makes them safe.
//!
//! Owns the numbering of transactions and the acknowledged txid. Leaves to the capture what a commit is,
//! and to the replica when and how to upload.

mod capturing;
#[cfg(all(loom, test))]
mod interleavings;
mod tentative;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError, Weak};
use std::time::Duration;

use crate::host::Replica;
use crate::resume::Resume;
use crate::snapshot::Snapshot;
use crate::sync::{AtomicBool, Condvar, Mutex, MutexGuard, wait_while};
use crate::transaction::Transaction;
use crate::types::{Position, Txid, UnixMillis};
pub use capturing::Capturing;
use tentative::Held;
pub use tentative::{Awaited, Withdrawn};

/// Where a history, or a part of it, starts: the whole database at one txid.
#[derive(Debug)]
pub struct Base {
    /// The transaction whose state this is.
    pub txid: Txid,
    /// Its place in the WAL; [`Position::NONE`] without one.
    pub position: Position,
    /// When it was taken.
    pub taken_at: UnixMillis,
    /// How it follows what the log held before.
    pub continuity: Continuity,
    /// The content.
    pub snapshot: Snapshot,
}

/// How a [`Base`] follows the transactions before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continuity {
    /// Nothing came before it, as far as this machine knows. Its txid is 0.
    First,
    /// It is the state after the transaction with its own txid: an earlier base could not be read to its end.
    Continued,
    /// The database changed in ways that were not captured. Its txid is one more than that of the transaction before it, and
    /// stands for all of these changes.
    Broken,
}

/// What the replica takes out of the log, in order.
#[derive(Debug)]
pub enum Batch {
    /// A new base: an image is due.
    Base(Box<Base>),
    /// What [`Log::request_image`] asked for: the state after the transaction before it, [`Continuity::Continued`]. Nothing depends on it, and whoever
    /// is in its way gives it up.
    Image(Box<Base>),
    /// The database was found to go on from what [`Log::resume_from`] named: transactions follow the one with this number.
    Resumed(Txid),
    /// Consecutive transactions of one page size, at least one. The log keeps them too, until [`Log::stored`].
    Transactions(Vec<Arc<Transaction>>),
}

/// What the log wants from the capture before any transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Nothing,
    Base,
    /// Proof that the database goes on from there; without one, a base that is marked broken.
    Resume(Resume),
}

/// Identifies what was wanted: an answer to an older question is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Question(u64);

/// The log in numbers, as of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Numbers {
    /// The newest captured transaction, if it is known to be the newest.
    pub last: Option<Txid>,
    /// The newest that can be restored from the store.
    pub acked: Option<Txid>,
    /// See [`Log::unacked`].
    pub unacked: u64,
    /// WAL bytes of the transactions that are not known to be in the store.
    pub wal_bytes: u64,
    /// When the oldest transaction was committed that is not known to be in the store.
    pub oldest: Option<UnixMillis>,
    /// Transactions that were captured since the log was made.
    pub captured: u64,
    /// Their WAL bytes.
    pub captured_bytes: u64,
    /// What is captured is dropped, since too much would have to be kept.
    pub is_suspended: bool,
    /// Replication has ended.
    pub has_failed: bool,
}

/// What is waiting in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pending {
    /// Transactions and bases that were not taken yet.
    pub items: usize,
    /// Their WAL bytes.
    pub wal_bytes: u64,
}

#[derive(Debug)]
enum Item {
    Base(Box<Base>),
    Image(Box<Base>),
    Resumed(Txid),
    Transaction(Arc<Transaction>),
}

impl Item {
    /// The replica is to look at it at once: a base holds locks until it is read.
    fn is_urgent(&self) -> bool {
        self.transaction().is_none()
    }

    fn number(&mut self, txid: Txid) {
        if let Item::Transaction(transaction) = self
            && let Some(transaction) = Arc::get_mut(transaction)
        {
            transaction.txid = txid;
        }
    }

    fn transaction(&self) -> Option<&Arc<Transaction>> {
        match self {
            Item::Transaction(transaction) => Some(transaction),
            Item::Base(_) | Item::Image(_) | Item::Resumed(_) => None,
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    queue: VecDeque<Item>,
    wal_bytes: u64,
    /// Items in the queue that are no transactions.
    urgent: usize,
    /// Those among them that nothing depends on.
    images: usize,
    /// Transactions that were taken, and are not known to be in the store.
    taken: VecDeque<Arc<Transaction>>,
    taken_bytes: u64,
    /// WAL bytes of all transactions ever pushed.
    pushed_bytes: u64,
    /// How many those are.
    pushed: u64,
    /// The newest that is committed.
    last: Option<Txid>,
    acked: Option<Txid>,
    held: Option<Held>,
    /// It may be in the store, and was rolled back here.
    abandoned: Option<Txid>,
    /// What is up to here is not waited for: the history was taken up behind it.
    taken_up: Txid,
    /// Txids are final: the store was asked how the history goes on, or the database proved to continue it.
    settled: bool,
    resume: Option<Resume>,
    question: u64,
    /// How often the capture was asked for something.
    asked: u64,
    /// What is captured is dropped until the capture answers.
    dropping: bool,
    /// What is captured is dropped until the replica calls [`Log::capture_again`].
    suspended: bool,
    failure: Option<String>,
    /// Wake the replica when this many bytes wait.
    armed: Option<u64>,
}

impl Inner {
    fn due(&self, wal_bytes: u64) -> bool {
        // What stands before a base is not to be waited for either.
        !self.queue.is_empty() && (self.wal_bytes >= wal_bytes || self.urgent > 0)
    }

    /// Empties the queue. Bases and ranges of the WAL close files when they go: not under the lock.
    #[must_use]
    fn clear(&mut self) -> (VecDeque<Item>, VecDeque<Arc<Transaction>>) {
        self.clear_held();
        self.wal_bytes = 0;
        self.taken_bytes = 0;
        self.urgent = 0;
        self.images = 0;
        (std::mem::take(&mut self.queue), std::mem::take(&mut self.taken))
    }

    /// Whether the replica is to be told of what was appended.
    fn is_to_wake(&mut self) -> bool {
        let due = self.armed.is_some_and(|armed| self.due(armed));
        if due {
            self.armed = None;
        }
        due
    }

    fn is_open(&self) -> bool {
        self.failure.is_none() && !self.dropping && !self.suspended
    }
}

/// The log of one database. All methods may be called from any thread, and none waits but those called `wait_…`, [`Log::look`] and
/// [`Log::let_writers_by`].
#[derive(Default)]
pub struct Log {
    inner: Mutex<Inner>,
    /// Notified when `acked`, `settled`, `asked` or `failure` change.
    progress: Condvar,
    /// The capture must bring a base, or prove that it can do without, before it may log anything more.
    base_wanted: AtomicBool,
    /// An image is due. The capture goes on without one.
    image_wanted: AtomicBool,
    replica: OnceLock<Weak<dyn Replica>>,
    capturing: OnceLock<Weak<dyn Capturing>>,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

impl Log {
    /// An empty log. The first thing that it wants is a base.
    #[must_use]
    pub fn new() -> Arc<Log> {
        let log = Log::default();
        log.base_wanted.store(true, Ordering::Release);
        Arc::new(log)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that can panic runs under this lock; a poisoned one holds a consistent queue.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[doc(hidden)]
    pub fn connect(&self, replica: &Arc<dyn Replica>) {
        // Connected once, by the open that made both; a second call would be the same replica.
        let _ = self.replica.set(Arc::downgrade(replica));
    }

    /// `false` when it was dropped. A transaction without a number gets the next one.
    fn push(&self, mut item: Item, txid: Option<Txid>, wal_bytes: u64, answers: Option<Question>) -> bool {
        let wake = {
            let mut inner = self.lock();
            let Some(txid) = txid.or_else(|| inner.last.map(Txid::next)) else {
                return false;
            };
            item.number(txid);
            if inner.held.is_some() {
                // It comes next, or not at all, and who is about to commit it has the write lock.
                if matches!(item, Item::Transaction(_)) {
                    let bug = "a transaction was captured beside one that was not committed, which is a bug in replvfs";
                    inner.failure.get_or_insert_with(|| bug.to_owned());
                    self.tell();
                }
                return false;
            }
            match answers {
                Some(Question(question)) if question != inner.question || inner.suspended => return false,
                Some(_) => {
                    // A base is a state of its own.
                    let before = u64::from(!matches!(item, Item::Resumed(_)));
                    inner.taken_up = Txid(txid.0.saturating_sub(before));
                    inner.resume = None;
                    inner.dropping = false;
                    self.base_wanted.store(false, Ordering::Release);
                }
                None if !inner.is_open() => return false,
                None => {}
            }
            inner.last = Some(txid);
            if inner.failure.is_some() {
                return false;
            }
            if matches!(item, Item::Resumed(_)) {
                inner.settled = true;
                self.tell();
            }
            inner.urgent += usize::from(item.is_urgent());
            inner.images += usize::from(matches!(item, Item::Image(_)));
            inner.pushed += u64::from(item.transaction().is_some());
            inner.queue.push_back(item);
            inner.wal_bytes += wal_bytes;
            inner.pushed_bytes += wal_bytes;
            inner.is_to_wake()
        };
        if wake && let Some(replica) = self.replica() {
            replica.wake();
        }
        true
    }

    fn replica(&self) -> Option<Arc<dyn Replica>> {
        self.replica.get().and_then(Weak::upgrade)
    }

    /// Whoever waits for something looks whether it has come.
    fn tell(&self) {
        self.progress.notify_all();
        if let Some(replica) = self.replica() {
            replica.progressed();
        }
    }

    /// What must come before any transaction. Costs no lock when nothing is wanted.
    pub(crate) fn wanted(&self) -> (Wanted, Question) {
        if !self.base_wanted() {
            return (Wanted::Nothing, Question(0));
        }
        let inner = self.lock();
        let wanted = inner.resume.map_or(Wanted::Base, Wanted::Resume);
        (wanted, Question(inner.question))
    }

    /// Appends a base. From here on transactions follow it. `false` when something else is wanted by now.
    pub(crate) fn push_base(&self, base: Base, answers: Question) -> bool {
        let txid = base.txid;
        self.push(Item::Base(Box::new(base)), Some(txid), 0, Some(answers))
    }

    /// Appends what an image is made of, which has the newest transaction as its last. `false` when it is of no use by now.
    #[doc(hidden)]
    pub fn push_image(&self, base: Base) -> bool {
        let txid = base.txid;
        if !self.image_wanted.swap(false, Ordering::AcqRel) || self.base_wanted() || self.last_txid() != Some(txid) {
            return false;
        }
        self.push(Item::Image(Box::new(base)), Some(txid), 0, None)
    }

    /// The database goes on from the transaction that was asked for. `false` when something else is wanted by now.
    pub(crate) fn push_resumed(&self, txid: Txid, answers: Question) -> bool {
        self.push(Item::Resumed(txid), Some(txid), 0, Some(answers))
    }

    /// What the capture is asked for: nothing, a base, or proof that the database goes on from there.
    #[doc(hidden)]
    pub fn wanted_for_test(&self) -> Option<Option<Resume>> {
        match self.wanted().0 {
            Wanted::Nothing => None,
            Wanted::Base => Some(None),
            Wanted::Resume(resume) => Some(Some(resume)),
        }
    }

    /// The answer to whatever is asked now.
    #[doc(hidden)]
    pub fn answer_for_test(&self, answer: Result<Base, Txid>) -> bool {
        let question = self.wanted().1;
        match answer {
            Ok(base) => self.push_base(base, question),
            Err(resumed) => self.push_resumed(resumed, question),
        }
    }

    /// Appends a transaction, whose txid is the one after [`Log::last_txid`].
    #[doc(hidden)]
    pub fn push_transaction(&self, transaction: Transaction) {
        let (txid, wal_bytes) = (transaction.txid, transaction.wal_bytes());
        self.push(Item::Transaction(Arc::new(transaction)), Some(txid), wal_bytes, None);
    }

    /// The same, and gives it that number, which [`Log::settle`] may move at any time. Without a number before it, it is dropped.
    pub(crate) fn push_next(&self, transaction: Transaction) {
        let wal_bytes = transaction.wal_bytes();
        self.push(Item::Transaction(Arc::new(transaction)), None, wal_bytes, None);
    }

    /// Asks for one [`Replica::wake`] when a base waits, or when transactions of at least
    /// `wal_bytes` WAL bytes do; `0` means any. Returns `true` at once, and arms nothing, when that is already so.
    /// The newest call counts.
    pub fn arm(&self, wal_bytes: u64) -> bool {
        let mut inner = self.lock();
        let due = inner.due(wal_bytes);
        inner.armed = (!due).then_some(wal_bytes);
        due
    }

    /// What waits to be taken. An image that was asked for does not count: nobody has to wait for it.
    pub fn pending(&self) -> Pending {
        let inner = self.lock();
        Pending {
            items: inner.queue.len() - inner.images,
            wal_bytes: inner.wal_bytes,
        }
    }

    /// Takes the oldest item: a base or a resumption alone, or transactions until their WAL bytes pass `wal_bytes` (at least one).
    pub fn take(&self, wal_bytes: u64) -> Option<Batch> {
        let mut inner = self.lock();
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(item) = inner.queue.pop_front() {
            match item {
                Item::Base(base) if taken.is_empty() => {
                    inner.urgent -= 1;
                    return Some(Batch::Base(base));
                }
                Item::Image(base) if taken.is_empty() => {
                    inner.urgent -= 1;
                    inner.images -= 1;
                    return Some(Batch::Image(base));
                }
                Item::Resumed(txid) if taken.is_empty() => {
                    inner.urgent -= 1;
                    return Some(Batch::Resumed(txid));
                }
                Item::Transaction(transaction) if taken.is_empty() || bytes < wal_bytes => {
                    bytes += transaction.wal_bytes();
                    taken.push(transaction);
                }
                item => {
                    inner.queue.push_front(item);
                    break;
                }
            }
        }
        inner.wal_bytes = inner.wal_bytes.saturating_sub(bytes);
        inner.taken_bytes += bytes;
        inner.taken.extend(taken.iter().cloned());
        (!taken.is_empty()).then_some(Batch::Transactions(taken))
    }

    /// Transactions up to this one are in the store, though perhaps not restorable before an image is. Nothing on this machine has to
    /// keep them any more.
    pub fn stored(&self, txid: Txid) {
        let dropped: Vec<_> = {
            let mut inner = self.lock();
            let count = inner.taken.partition_point(|transaction| transaction.txid <= txid);
            let dropped: Vec<_> = inner.taken.drain(..count).collect();
            let bytes: u64 = dropped.iter().map(|transaction| transaction.wal_bytes()).sum();
            inner.taken_bytes = inner.taken_bytes.saturating_sub(bytes);
            dropped
        };
        drop(dropped);
    }

    /// Forgets what was captured: another process replicates it.
    pub fn forget(&self) {
        let dropped = self.lock().clear();
        self.tell();
        drop(dropped);
    }

    /// Forgets what was captured, and what is captured until there is a base: the history begins with that one. Nothing is acknowledged of it.
    pub fn begin_anew(&self) {
        let dropped = {
            let mut inner = self.lock();
            inner.resume = None;
            inner.settled = false;
            inner.acked = None;
            if !inner.suspended {
                inner.question += 1;
                inner.dropping = true;
                self.ask(&mut inner);
            }
            let dropped = inner.clear();
            inner.abandoned = None;
            dropped
        };
        drop(dropped);
    }

    /// WAL bytes of the transactions that are not known to be in the store; `None` as long as numbers may change.
    pub(crate) fn unstored_bytes(&self) -> Option<u64> {
        let inner = self.lock();
        let waits = inner.taken.len() + inner.queue.len() - inner.urgent > 0;
        // One that only cut pages off has no bytes.
        inner
            .settled
            .then_some((inner.wal_bytes + inner.taken_bytes).max(u64::from(waits)))
    }

    /// WAL bytes of all transactions that were ever appended, so that two calls tell what came between.
    pub(crate) fn pushed_bytes(&self) -> u64 {
        self.lock().pushed_bytes
    }

    /// The oldest transaction that is not known to be in the store.
    pub(crate) fn oldest_unstored(&self) -> Option<Txid> {
        let inner = self.lock();
        let taken = inner.taken.front().map(|transaction| transaction.txid);
        taken.or_else(|| {
            inner
                .queue
                .iter()
                .find_map(Item::transaction)
                .map(|transaction| transaction.txid)
        })
    }

    /// The transactions behind `txid` that are not known to be in the store, in order; `None` when they have more than `limit` WAL bytes,
    /// which is found out without looking at them all.
    pub(crate) fn unstored_after(&self, txid: Txid, limit: u64) -> Option<Vec<Arc<Transaction>>> {
        let inner = self.lock();
        let queued = inner.queue.iter().filter_map(Item::transaction);
        let newest_first = inner.taken.iter().chain(queued).rev();
        let (mut bytes, mut found) = (0, Vec::new());
        for transaction in newest_first.take_while(|transaction| transaction.txid > txid) {
            bytes += transaction.wal_bytes();
            if bytes > limit {
                return None;
            }
            found.push(Arc::clone(transaction));
        }
        found.reverse();
        Some(found)
    }

    /// Asks the capture to go on from a known transaction. What was captured before is forgotten, and so is what is captured until it has
    /// answered: with [`Batch::Resumed`], or, when the database cannot be proved to go on from there, with a base that is
    /// [`Continuity::Broken`] and has the txid after the newest that `resume` names. What was acknowledged may be of a history that was left:
    /// until [`Log::acknowledge`] is called again, nothing is.
    pub fn resume_from(&self, resume: Resume) {
        let dropped = {
            let mut inner = self.lock();
            inner.resume = Some(resume);
            inner.question += 1;
            inner.dropping = true;
            inner.settled = false;
            inner.acked = None;
            self.ask(&mut inner);
            let dropped = inner.clear();
            inner.abandoned = None;
            dropped
        };
        drop(dropped);
    }

    /// Numbers everything in the log higher by `by`, since the store already has transactions with these numbers, and makes the numbers
    /// final. Does nothing when they are final.
    pub fn settle(&self, by: u64) {
        let mut inner = self.lock();
        if inner.settled {
            return;
        }
        inner.settled = true;
        if by > 0 {
            // An answer that is on its way has a number from before.
            inner.question += 1;
            inner.last = inner.last.map(|last| Txid(last.0 + by));
            inner.taken_up.0 += by;
            for item in &mut inner.queue {
                match item {
                    Item::Base(base) | Item::Image(base) => base.txid.0 += by,
                    Item::Resumed(txid) => txid.0 += by,
                    Item::Transaction(transaction) => {
                        if let Some(transaction) = Arc::get_mut(transaction) {
                            transaction.txid.0 += by;
                        }
                    }
                }
            }
        }
        self.tell();
    }

    /// Whether txids are final.
    pub fn is_settled(&self) -> bool {
        self.lock().settled
    }

    /// Waits until txids are final, the log has failed, or the time is over; `true` if they are final.
    pub fn wait_settled(&self, timeout: Duration) -> bool {
        self.wait(timeout, |inner| !inner.settled).settled
    }

    /// The same, but no longer than until the capture was asked more often than `asked` times.
    pub fn wait_settled_or_asked(&self, asked: u64, timeout: Duration) -> bool {
        let waits = |inner: &Inner| !inner.settled && inner.asked == asked;
        self.wait(timeout, waits).settled
    }

    /// Waits until the capture was asked more often than `asked` times, the log has failed, or the time is over; `true` if it was asked.
    pub fn wait_asked(&self, asked: u64, timeout: Duration) -> bool {
        self.wait(timeout, |inner| inner.asked == asked).asked > asked
    }

    fn wait(&self, timeout: Duration, waits: impl Fn(&Inner) -> bool) -> MutexGuard<'_, Inner> {
        let inner = self.lock();
        let waits = |inner: &mut Inner| inner.failure.is_none() && waits(inner);
        wait_while(&self.progress, inner, timeout, waits)
    }

    /// Nothing more is kept for a store that does not answer: what was captured is dropped, and so is what follows.
    #[doc(hidden)]
    pub fn suspend(&self) {
        let dropped = {
            let mut inner = self.lock();
            inner.suspended = true;
            self.tell();
            inner.clear()
        };
        drop(dropped);
    }

    /// Captured transactions were dropped, and still are, since the WAL had reached `wal_limit`.
    pub fn is_suspended(&self) -> bool {
        self.lock().suspended
    }

    /// The store answers again: asks for a base, from which the history goes on. Does nothing when the log is not suspended.
    pub fn capture_again(&self) {
        let mut inner = self.lock();
        if std::mem::take(&mut inner.suspended) {
            inner.question += 1;
            self.ask(&mut inner);
        }
    }

    fn ask(&self, inner: &mut Inner) {
        inner.asked += 1;
        self.base_wanted.store(true, Ordering::Release);
        self.tell();
    }

    /// How often the capture was asked for a base or a proof, and whether that was answered: whoever waits for the upload may have to do that.
    pub fn asked(&self) -> (u64, bool) {
        let inner = self.lock();
        (inner.asked, !self.base_wanted())
    }

    /// Bytes of the transactions that are kept in memory.
    pub fn memory_bytes(&self) -> u64 {
        let inner = self.lock();
        let queued = inner.queue.iter().filter_map(Item::transaction);
        inner
            .taken
            .iter()
            .chain(queued)
            .map(|transaction| transaction.memory_bytes())
            .sum()
    }

    /// The store answers again: whoever waits for the upload is to look whether something is asked for, which could not be given before.
    pub fn remind(&self) {
        let mut inner = self.lock();
        if self.base_wanted() {
            self.ask(&mut inner);
        }
    }

    /// The newest captured transaction; `None` before the first base.
    pub fn last_txid(&self) -> Option<Txid> {
        self.lock().last
    }

    /// The same if everything that this process has committed until now is in it: `None` as long as numbers may change, and as long as what is
    /// captured is dropped.
    pub fn final_txid(&self) -> Option<Txid> {
        let inner = self.lock();
        inner.last.filter(|_| inner.settled && inner.is_open())
    }

    /// Whether what is captured is kept, by numbers that are final; then how often anything of it was dropped. As long as that stays the same, all that was captured
    /// since is in the log, and numbers are of one history.
    pub fn standing(&self) -> Option<u64> {
        let inner = self.lock();
        (inner.settled && inner.is_open()).then_some(inner.question)
    }

    /// The newest transaction that is known to be restorable from the store.
    pub fn acked(&self) -> Option<Txid> {
        self.lock().acked
    }

    /// All that is told in numbers. Does not look at each of what waits.
    pub fn numbers(&self) -> Numbers {
        let inner = self.lock();
        let known = inner.acked.unwrap_or_default().max(inner.taken_up);
        let last = inner.last.filter(|_| inner.settled);
        let oldest = inner
            .taken
            .front()
            .or_else(|| inner.queue.iter().find_map(Item::transaction));
        Numbers {
            last,
            acked: inner.acked,
            unacked: last.map_or(0, |last| last.0.saturating_sub(known.0)),
            wal_bytes: inner.wal_bytes + inner.taken_bytes,
            oldest: oldest.map(|transaction| transaction.committed_at),
            captured: inner.pushed,
            captured_bytes: inner.pushed_bytes,
            is_suspended: inner.suspended,
            has_failed: inner.failure.is_some(),
        }
    }

    /// How many of the captured transactions cannot be restored from the store yet. Not those in whose place a base stands: that one counts, unless it is
    /// the first of all.
    pub fn unacked(&self) -> u64 {
        let inner = self.lock();
        let known = inner.acked.unwrap_or_default().max(inner.taken_up);
        inner.last.map_or(0, |last| last.0.saturating_sub(known.0))
    }

    /// Everything up to `txid` is restorable from the store. Wakes whoever waits for it. Does nothing after [`Log::fail`], nor when more is
    /// restorable: it goes back only where the history is taken up again, by [`Log::resume_from`] or [`Log::begin_anew`].
    pub fn acknowledge(&self, txid: Txid) {
        let mut inner = self.lock();
        debug_assert!(
            Some(txid) <= inner.last || inner.held.is_some(),
            "acknowledged a transaction that was never logged"
        );
        // What it stands for is not what was committed here.
        let is_abandoned = inner.abandoned.is_some_and(|abandoned| txid <= abandoned);
        if inner.failure.is_none() && !is_abandoned && inner.acked < Some(txid) {
            inner.acked = Some(txid);
            self.tell();
        }
    }

    /// Replication of this database cannot go on in this process: waiters are told `reason`, and captured transactions are
    /// dropped from now on, so that memory stays bounded. The first reason stays.
    pub fn fail(&self, reason: String) {
        let dropped = {
            let mut inner = self.lock();
            if inner.failure.is_none() {
                inner.failure = Some(reason);
            }
            self.tell();
            inner.clear()
        };
        drop(dropped);
        if let Some(replica) = self.replica() {
            replica.wake(); // It lets go of what it holds for this database.
        }
    }

    /// Why replication stopped, if it did.
    pub fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// Waits until `txid` is acknowledged, the log has failed, or the time is over; `true` if it is acknowledged.
    pub fn wait_acked(&self, txid: Txid, timeout: Duration) -> bool {
        self.wait(timeout, |inner| inner.acked < Some(txid)).acked >= Some(txid)
    }

    /// The same, but no longer than until the capture was asked more often than `asked` times.
    pub fn wait_acked_or_asked(&self, txid: Txid, asked: u64, timeout: Duration) -> bool {
        let waits = |inner: &Inner| inner.acked < Some(txid) && inner.asked == asked;
        self.wait(timeout, waits).acked >= Some(txid)
    }

    /// Asks the capture for a new base at the next opportunity: an image could not be made from the last one.
    pub fn request_base(&self) {
        let mut inner = self.lock();
        if !inner.suspended {
            self.ask(&mut inner);
        }
    }

    /// An image is due: a state of the database is welcome when it can be had beside everything else that goes on. What is captured goes on
    /// as ever meanwhile, and if there is no answer nothing is missing.
    pub fn request_image(&self) {
        self.image_wanted.store(true, Ordering::Release);
    }

    /// Whether an image is due.
    pub fn image_wanted(&self) -> bool {
        self.image_wanted.load(Ordering::Acquire)
    }

    /// Whether a base is wanted, or proof that none is needed.
    pub fn base_wanted(&self) -> bool {
        self.base_wanted.load(Ordering::Acquire)
    }
}
