//! A transaction that is in the log before it is committed (`durability=strict`): at most one, and nothing else waits beside it.
//!
//! Owns what becomes of it. It is *finished* when it was committed, *withdrawn* when nothing of it can be in the store, and *abandoned* when it may be: then
//! its number is not used again, and the history goes on with a base, marked as broken.

use std::sync::Arc;
use std::time::Duration;

use super::{Inner, Item, Log};
use crate::transaction::Transaction;
use crate::types::Txid;

/// The one that is not committed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    txid: Txid,
    /// From here on it may be in the store.
    offered: bool,
}

/// What came of waiting for a transaction that is not committed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// It is in the store.
    Acknowledged,
    /// It is not in the log any more, nor in the store: it may be proposed again.
    Gone,
    /// Nobody knows yet.
    Waiting,
}

/// What came of taking back a transaction that was not committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withdrawn {
    /// Too late: it is in the store, and is to be committed.
    Acknowledged,
    /// It never was.
    Cleanly,
    /// It may be in the store, now or later.
    Abandoned,
}

impl Inner {
    /// What is cleared away may have been on its way to the store. What has arrived is committed in a moment, and known to be there.
    pub(super) fn clear_held(&mut self) {
        let acked = self.acked;
        if let Some(held) = self.held.take_if(|held| acked < Some(held.txid))
            && held.offered
        {
            self.forsake_number(held.txid);
        }
    }

    fn forsake_number(&mut self, txid: Txid) {
        self.abandoned = Some(txid);
        self.last = self.last.max(Some(txid));
    }

    fn holds(&self, txid: Txid) -> bool {
        self.held.is_some_and(|held| held.txid == txid)
    }

    /// Takes it out of the queue, or of what was taken.
    #[must_use]
    fn remove_held(&mut self, txid: Txid) -> Option<Item> {
        self.held = None;
        let is_it = |item: &Item| item.transaction().is_some_and(|transaction| transaction.txid == txid);
        if let Some(at) = self.queue.iter().position(is_it) {
            let item = self.queue.remove(at)?;
            let bytes = item.transaction().map_or(0, |transaction| transaction.wal_bytes());
            self.wal_bytes = self.wal_bytes.saturating_sub(bytes);
            return Some(item);
        }
        let at = self.taken.iter().position(|transaction| transaction.txid == txid)?;
        let transaction = self.taken.remove(at)?;
        self.taken_bytes = self.taken_bytes.saturating_sub(transaction.wal_bytes());
        Some(Item::Transaction(transaction))
    }
}

impl Log {
    /// Appends a transaction that is not committed yet, and gives it the number after [`Log::last_txid`], which stays what it is until
    /// [`Log::finish`]. Until then nothing else can be appended. The transaction comes back when it cannot be appended now: something before it is not in the
    /// store, or the capture is asked for something.
    #[doc(hidden)]
    #[allow(clippy::result_large_err, reason = "it is given back to be tried again")]
    pub fn push_tentative(&self, mut transaction: Transaction) -> Result<Txid, Transaction> {
        let (txid, wake) = {
            let mut inner = self.lock();
            let is_alone = inner.queue.len() == inner.urgent && inner.taken.is_empty() && inner.held.is_none();
            let is_stored = inner.last.is_some() && inner.acked >= inner.last;
            if !inner.is_open() || !inner.settled || !is_alone || !is_stored || self.base_wanted() {
                return Err(transaction);
            }
            let txid = inner.last.unwrap_or_default().next();
            transaction.txid = txid;
            transaction.held = true;
            let bytes = transaction.wal_bytes();
            inner.held = Some(Held { txid, offered: false });
            inner.queue.push_back(Item::Transaction(transaction.into()));
            inner.wal_bytes += bytes;
            inner.pushed_bytes += bytes;
            inner.pushed += 1;
            (txid, inner.is_to_wake())
        };
        if wake && let Some(replica) = self.replica() {
            replica.wake();
        }
        Ok(txid)
    }

    /// Waits until it is known what becomes of the transaction, the log has failed, or the time is over.
    pub fn wait_tentative(&self, txid: Txid, timeout: Duration) -> Awaited {
        let inner = self.wait(timeout, |inner| inner.holds(txid) && inner.acked < Some(txid));
        match (inner.holds(txid), inner.acked >= Some(txid)) {
            (false, _) => Awaited::Gone,
            (true, true) => Awaited::Acknowledged,
            (true, false) => Awaited::Waiting,
        }
    }

    /// The replica is about to put the transaction, which it has taken, into the store. `false`: it must not, since it was taken back. Its number may be
    /// another one's by now.
    pub fn offer(&self, transaction: &Arc<Transaction>) -> bool {
        let mut inner = self.lock();
        let is_gone = !inner.taken.iter().any(|taken| Arc::ptr_eq(taken, transaction));
        let failed = inner.failure.is_some() || is_gone;
        match &mut inner.held {
            Some(held) if held.txid == transaction.txid && !failed => {
                held.offered = true;
                true
            }
            _ => false,
        }
    }

    /// The replica will not put it into the store, nor has it: it may be proposed again.
    pub fn decline(&self) {
        let dropped = {
            let mut inner = self.lock();
            let held = inner.held;
            self.tell();
            held.and_then(|held| inner.remove_held(held.txid))
        };
        drop(dropped);
    }

    /// Takes a transaction back that is not going to be committed.
    pub fn withdraw(&self, txid: Txid) -> Withdrawn {
        let (result, dropped) = {
            let mut inner = self.lock();
            match inner.held {
                Some(held) if held.txid == txid && inner.acked >= Some(txid) => (Withdrawn::Acknowledged, None),
                Some(held) if held.txid == txid && held.offered => {
                    (Withdrawn::Abandoned, self.abandon_in(&mut inner, txid))
                }
                Some(held) if held.txid == txid => (Withdrawn::Cleanly, inner.remove_held(txid)),
                _ if inner.abandoned == Some(txid) => (Withdrawn::Abandoned, None),
                _ => (Withdrawn::Cleanly, None),
            }
        };
        drop(dropped);
        result
    }

    /// The transaction was committed.
    pub(crate) fn finish(&self, txid: Txid) {
        let mut inner = self.lock();
        if inner.holds(txid) {
            inner.held = None;
            inner.last = inner.last.max(Some(txid));
            self.tell();
        }
    }

    /// It is in the store, and was not committed after all.
    pub(crate) fn abandon(&self, txid: Txid) {
        let dropped = {
            let mut inner = self.lock();
            if inner.holds(txid) {
                self.abandon_in(&mut inner, txid)
            } else {
                None
            }
        };
        drop(dropped);
    }

    #[must_use]
    fn abandon_in(&self, inner: &mut Inner, txid: Txid) -> Option<Item> {
        let dropped = inner.remove_held(txid);
        inner.forsake_number(txid);
        if !inner.suspended {
            inner.resume = None;
            inner.question += 1;
            inner.dropping = true;
            self.ask(inner);
        }
        self.tell();
        dropped
    }

    /// As the capture does when it was committed.
    #[doc(hidden)]
    pub fn finish_for_test(&self, txid: Txid) {
        self.finish(txid);
    }

    /// As the capture does when it was not.
    #[doc(hidden)]
    pub fn abandon_for_test(&self, txid: Txid) {
        self.abandon(txid);
    }

    /// The transaction that may be in the store and was not committed, if it is the newest number but for bases.
    pub fn abandoned(&self) -> Option<Txid> {
        self.lock().abandoned
    }

    /// One is in the log that is not committed yet.
    pub(crate) fn is_holding(&self) -> bool {
        self.lock().held.is_some()
    }

    /// What is captured has no numbers now.
    pub(crate) fn is_dropping(&self) -> bool {
        self.lock().dropping
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Base, Batch, Continuity};
    use crate::snapshot::Snapshot;
    use crate::types::{PageSize, Pgno, Position};

    const NOW: Duration = Duration::ZERO;

    fn size() -> PageSize {
        PageSize::new(512).unwrap()
    }

    fn transaction(txid: u64) -> Transaction {
        let pages = [(Pgno::new(1).unwrap(), vec![7; 512])];
        Transaction::for_test(Txid(txid), size(), 1, &pages, Position::NONE)
    }

    fn base(txid: u64, continuity: Continuity) -> Base {
        Base {
            txid: Txid(txid),
            position: Position::NONE,
            taken_at: crate::types::UnixMillis(0),
            continuity,
            snapshot: Snapshot::for_test(size(), vec![0; 512]),
        }
    }

    /// With a base that is in the store.
    fn log() -> Arc<Log> {
        let log = Log::new();
        assert!(log.answer_for_test(Ok(base(0, Continuity::First))));
        log.settle(0);
        assert!(matches!(log.take(u64::MAX), Some(Batch::Base(_))));
        log.acknowledge(Txid::ZERO);
        log
    }

    fn taken(log: &Log) -> Arc<Transaction> {
        match log.take(u64::MAX) {
            Some(Batch::Transactions(mut taken)) => taken.pop().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn its_number_counts_when_it_is_committed() {
        let log = log();
        assert_eq!(log.push_tentative(transaction(0)).unwrap(), Txid(1));
        assert_eq!(log.last_txid(), Some(Txid::ZERO));
        assert_eq!(log.wait_tentative(Txid(1), NOW), Awaited::Waiting);
        assert!(log.offer(&taken(&log)));
        log.acknowledge(Txid(1));
        assert_eq!(log.wait_tentative(Txid(1), NOW), Awaited::Acknowledged);
        assert_eq!(log.last_txid(), Some(Txid::ZERO));
        log.finish(Txid(1));
        assert_eq!((log.last_txid(), log.acked()), (Some(Txid(1)), Some(Txid(1))));
        assert_eq!(log.abandoned(), None);
    }

    /// Nothing of it can be in the store before it is offered, and what was taken back is not offered.
    #[test]
    fn what_was_not_offered_is_withdrawn_without_a_trace() {
        let log = log();
        let txid = log.push_tentative(transaction(0)).unwrap();
        let first = taken(&log);
        assert_eq!(log.withdraw(txid), Withdrawn::Cleanly);
        assert_eq!((log.last_txid(), log.abandoned()), (Some(Txid::ZERO), None));
        assert!(!log.offer(&first));
        // Its number is the next one's, and its body is not.
        assert_eq!(log.push_tentative(transaction(0)).unwrap(), txid);
        assert!(!log.offer(&first));
        assert!(log.offer(&taken(&log)));
    }

    #[test]
    fn what_was_offered_and_taken_back_leaves_its_number_behind() {
        let log = log();
        let txid = log.push_tentative(transaction(0)).unwrap();
        assert!(log.offer(&taken(&log)));
        assert_eq!(log.withdraw(txid), Withdrawn::Abandoned);
        assert_eq!((log.last_txid(), log.abandoned()), (Some(txid), Some(txid)));
        assert!(log.base_wanted());
        log.acknowledge(txid);
        assert_eq!(log.acked(), Some(Txid::ZERO), "nobody committed it");
        assert!(log.push_tentative(transaction(0)).is_err(), "a base comes first");
        assert!(log.answer_for_test(Ok(base(2, Continuity::Broken))));
        assert!(matches!(log.take(u64::MAX), Some(Batch::Base(_))));
        log.acknowledge(Txid(2));
        assert_eq!(log.push_tentative(transaction(0)).unwrap(), Txid(3));
    }

    #[test]
    fn it_is_alone() {
        let log = log();
        log.push_transaction(transaction(1));
        assert!(
            log.push_tentative(transaction(0)).is_err(),
            "one before it is not stored"
        );
        let before = taken(&log);
        log.acknowledge(Txid(1));
        log.stored(Txid(1));
        drop(before);
        assert_eq!(log.push_tentative(transaction(0)).unwrap(), Txid(2));
        assert!(log.push_tentative(transaction(0)).is_err(), "another one is held");
        assert!(!log.push_image(base(1, Continuity::Continued)));
        log.push_transaction(transaction(2));
        assert!(
            log.failure().is_some(),
            "it was captured while another one has the write lock"
        );
    }

    /// The moment between the store's yes and the commit frame.
    #[test]
    fn what_has_arrived_stays_while_all_else_is_dropped() {
        let log = log();
        let txid = log.push_tentative(transaction(0)).unwrap();
        assert!(log.offer(&taken(&log)));
        log.acknowledge(txid);
        log.suspend();
        assert_eq!(log.abandoned(), None);
        log.finish(txid);
        assert_eq!((log.last_txid(), log.acked()), (Some(txid), Some(txid)));

        let log = self::log();
        let txid = log.push_tentative(transaction(0)).unwrap();
        assert!(log.offer(&taken(&log)));
        log.suspend();
        assert_eq!(log.abandoned(), Some(txid));
    }

    #[test]
    fn what_is_declined_may_be_proposed_again() {
        let log = log();
        let txid = log.push_tentative(transaction(0)).unwrap();
        drop(taken(&log));
        log.decline();
        assert_eq!(log.wait_tentative(txid, NOW), Awaited::Gone);
        assert_eq!(log.withdraw(txid), Withdrawn::Cleanly);
        assert_eq!(log.push_tentative(transaction(0)).unwrap(), txid);
    }
}
