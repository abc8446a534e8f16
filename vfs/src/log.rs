//! The segment log: committed transactions in memory, in order, between the commit that wrote them and
//! the upload that makes them safe.
//!
//! Owns the numbering of transactions and the acknowledged txid. Leaves to the capture what a commit is,
//! and to the replica when and how to upload.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use crate::host::Replica;
use crate::snapshot::Snapshot;
use crate::transaction::Transaction;
use crate::types::{Position, Txid, UnixMillis};

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
    /// Nothing came before it in this process. Its txid is 0.
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
    /// Consecutive transactions of one page size, at least one.
    Transactions(Vec<Transaction>),
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
    Transaction(Transaction),
}

#[derive(Debug, Default)]
struct Inner {
    queue: VecDeque<Item>,
    wal_bytes: u64,
    /// Bases in the queue.
    bases: usize,
    last: Option<Txid>,
    acked: Option<Txid>,
    failure: Option<String>,
    /// Wake the replica when this many bytes wait.
    armed: Option<u64>,
}

impl Inner {
    fn due(&self, wal_bytes: u64) -> bool {
        // A base holds locks until it is read, so what stands before it is not to be waited for either.
        !self.queue.is_empty() && (self.wal_bytes >= wal_bytes || self.bases > 0)
    }
}

/// The log of one database. All methods may be called from any thread, and none waits but [`Log::wait_acked`].
#[derive(Debug, Default)]
pub struct Log {
    inner: Mutex<Inner>,
    acknowledged: Condvar,
    /// The capture must bring a base before it may log anything more.
    base_wanted: AtomicBool,
    replica: OnceLock<Weak<dyn Replica>>,
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

    pub(crate) fn connect(&self, replica: &Arc<dyn Replica>) {
        // Connected once, by the open that made both; a second call would be the same replica.
        let _ = self.replica.set(Arc::downgrade(replica));
    }

    fn push(&self, item: Item, wal_bytes: u64) {
        let wake = {
            let mut inner = self.lock();
            match &item {
                Item::Base(base) => inner.last = Some(base.txid),
                Item::Transaction(transaction) => inner.last = Some(transaction.txid),
            }
            if inner.failure.is_some() {
                return;
            }
            inner.bases += usize::from(matches!(item, Item::Base(_)));
            inner.queue.push_back(item);
            inner.wal_bytes += wal_bytes;
            let due = inner.armed.is_some_and(|armed| inner.due(armed));
            if due {
                inner.armed = None;
            }
            due
        };
        if wake && let Some(replica) = self.replica.get().and_then(Weak::upgrade) {
            replica.wake();
        }
    }

    /// Appends a base. From here on transactions follow it.
    #[doc(hidden)]
    pub fn push_base(&self, base: Base) {
        self.base_wanted.store(false, Ordering::Release);
        self.push(Item::Base(Box::new(base)), 0);
    }

    /// Appends a transaction, whose txid is the one after [`Log::last_txid`].
    #[doc(hidden)]
    pub fn push_transaction(&self, transaction: Transaction) {
        let wal_bytes = transaction.wal_bytes();
        self.push(Item::Transaction(transaction), wal_bytes);
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

    /// What waits to be taken.
    pub fn pending(&self) -> Pending {
        let inner = self.lock();
        Pending {
            items: inner.queue.len(),
            wal_bytes: inner.wal_bytes,
        }
    }

    /// Takes the oldest item: a base alone, or transactions until their WAL bytes pass `wal_bytes` (at least one).
    pub fn take(&self, wal_bytes: u64) -> Option<Batch> {
        let mut inner = self.lock();
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(item) = inner.queue.pop_front() {
            match item {
                Item::Base(base) if taken.is_empty() => {
                    inner.bases -= 1;
                    return Some(Batch::Base(base));
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
        (!taken.is_empty()).then_some(Batch::Transactions(taken))
    }

    /// The newest captured transaction; `None` before the first base.
    pub fn last_txid(&self) -> Option<Txid> {
        self.lock().last
    }

    /// The newest transaction that is known to be restorable from the store.
    pub fn acked(&self) -> Option<Txid> {
        self.lock().acked
    }

    /// Everything up to `txid` is restorable from the store. Wakes whoever waits for it. Never goes back, and does nothing
    /// after [`Log::fail`].
    pub fn acknowledge(&self, txid: Txid) {
        let mut inner = self.lock();
        debug_assert!(
            Some(txid) <= inner.last,
            "acknowledged a transaction that was never logged"
        );
        if inner.failure.is_none() && inner.acked < Some(txid) {
            inner.acked = Some(txid);
            self.acknowledged.notify_all();
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
            inner.wal_bytes = 0;
            inner.bases = 0;
            self.acknowledged.notify_all();
            std::mem::take(&mut inner.queue)
        };
        // Bases and WAL ranges close files when they go: not under the lock.
        drop(dropped);
    }

    /// Why replication stopped, if it did.
    pub fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// Waits until `txid` is acknowledged, the log has failed, or the time is over; `true` if it is acknowledged.
    pub fn wait_acked(&self, txid: Txid, timeout: Duration) -> bool {
        let inner = self.lock();
        let (inner, _) = self
            .acknowledged
            .wait_timeout_while(inner, timeout, |inner| {
                inner.acked < Some(txid) && inner.failure.is_none()
            })
            .unwrap_or_else(PoisonError::into_inner);
        inner.acked >= Some(txid)
    }

    /// Asks the capture for a new base at the next opportunity: an image could not be made from the last one.
    pub fn request_base(&self) {
        self.base_wanted.store(true, Ordering::Release);
    }

    /// Whether a base is wanted.
    pub fn base_wanted(&self) -> bool {
        self.base_wanted.load(Ordering::Acquire)
    }
}
