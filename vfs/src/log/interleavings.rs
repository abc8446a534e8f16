//! All interleavings of those who commit, who upload, and who wait. Time does not pass here: who is not told waits for ever, and that is found.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use loom::sync::Notify;
use loom::thread::{self, JoinHandle};

use super::*;
use crate::host::FlushError;
use crate::types::{PageSize, Pgno};

const FOR_EVER: Duration = Duration::MAX;

fn size() -> PageSize {
    PageSize::new(512).unwrap()
}

fn transaction() -> Transaction {
    let pages = [(Pgno::new(1).unwrap(), vec![7; 512])];
    Transaction::for_test(Txid::ZERO, size(), 1, &pages, Position::NONE)
}

fn base(txid: u64, continuity: Continuity) -> Base {
    Base {
        txid: Txid(txid),
        position: Position::NONE,
        taken_at: UnixMillis(0),
        continuity,
        snapshot: Snapshot::for_test(size(), vec![0; 512]),
    }
}

/// With a base that was taken, and numbers that are not final.
fn begun() -> Arc<Log> {
    let log = Log::new();
    assert!(log.answer_for_test(Ok(base(0, Continuity::First))));
    assert!(matches!(log.take(u64::MAX), Some(Batch::Base(_))));
    log
}

/// With a base that is in the store.
fn stored() -> Arc<Log> {
    let log = begun();
    log.settle(0);
    log.acknowledge(Txid::ZERO);
    log
}

fn beside(log: &Arc<Log>, run: impl FnOnce(&Log) + 'static) -> JoinHandle<()> {
    let log = Arc::clone(log);
    thread::spawn(move || run(&log))
}

fn taken(log: &Log) -> Vec<Arc<Transaction>> {
    match log.take(u64::MAX) {
        Some(Batch::Transactions(taken)) => taken,
        None => Vec::new(),
        other => panic!("{other:?}"),
    }
}

/// A task that does nothing but being woken.
struct Sleeper(Notify);

impl Replica for Sleeper {
    fn wake(&self) {
        self.0.notify();
    }
    fn flush(&self, _: &mut dyn FnMut() -> Result<(), FlushError>) -> Result<Option<Txid>, FlushError> {
        Ok(None)
    }
    fn wait(&self, _: Txid, _: &mut dyn FnMut() -> Result<(), FlushError>) -> Result<Option<Txid>, FlushError> {
        Ok(None)
    }
    fn owns(&self) -> bool {
        true
    }
    fn take_over(&self) -> bool {
        true
    }
    fn is_away(&self) -> bool {
        false
    }
    fn drain(&self) -> bool {
        true
    }
    fn left(&self, _: &crate::resume::Left) -> bool {
        true
    }
    fn closed(&self) {}
    fn wal_limit(&self) -> u64 {
        u64::MAX
    }
    fn close_timeout(&self) -> Duration {
        FOR_EVER
    }
    fn hurry(&self) {}
    fn status(&self) -> String {
        String::new()
    }
}

/// The store has answered that there are five transactions already, while somebody commits.
#[test]
fn loom_numbers_follow_each_other_while_they_become_final() {
    loom::model(|| {
        let log = begun();
        let committing = beside(&log, |log| {
            log.push_next(transaction());
            log.push_next(transaction());
        });
        log.settle(5);
        committing.join().unwrap();
        let numbers: Vec<_> = taken(&log).iter().map(|transaction| transaction.txid.0).collect();
        assert_eq!(numbers, [6, 7]);
        assert_eq!(log.last_txid(), Some(Txid(7)));
    });
}

/// The same while a base is taken, which has its number from before.
#[test]
fn loom_a_base_has_a_number_of_now() {
    loom::model(|| {
        let log = begun();
        log.request_base();
        let capturing = beside(&log, |log| {
            let question = log.wanted().1;
            let last = log.last_txid().unwrap();
            log.push_base(base(last.next().0, Continuity::Broken), question);
        });
        log.settle(5);
        capturing.join().unwrap();
        match log.take(u64::MAX) {
            Some(Batch::Base(base)) => assert_eq!((base.txid, log.last_txid()), (Txid(6), Some(Txid(6)))),
            other => {
                assert!(other.is_none() && log.base_wanted(), "it is to be taken once more");
                assert_eq!(log.last_txid(), Some(Txid(5)));
            }
        }
    });
}

/// From the commit to the task, to the store, and back.
#[test]
fn loom_who_waits_for_the_store_is_told() {
    loom::model(|| {
        let log = stored();
        let task = Arc::new(Sleeper(Notify::new()));
        let replica: Arc<dyn Replica> = task.clone();
        log.connect(&replica);
        let uploading = beside(&log, move |log| {
            while !log.arm(0) {
                task.0.wait();
            }
            for transaction in taken(log) {
                log.stored(transaction.txid);
                log.acknowledge(transaction.txid);
            }
        });
        log.push_next(transaction());
        assert!(log.wait_acked(Txid(1), FOR_EVER));
        uploading.join().unwrap();
        assert_eq!(log.pending().items, 0);
    });
}

/// Two that commit share an upload, or not: both are told.
#[test]
fn loom_all_that_wait_are_told() {
    loom::model(|| {
        let log = stored();
        log.push_next(transaction());
        log.push_next(transaction());
        let one = beside(&log, |log| assert!(log.wait_acked(Txid(1), FOR_EVER)));
        let two = beside(&log, |log| assert!(log.wait_acked(Txid(2), FOR_EVER)));
        log.acknowledge(Txid(1));
        log.acknowledge(Txid(2));
        one.join().unwrap();
        two.join().unwrap();
    });
}

/// What ends a wait for nothing: a failure, and a question that the one who waits may have to answer.
#[test]
fn loom_nobody_waits_in_vain() {
    loom::model(|| {
        let log = stored();
        log.push_next(transaction());
        let failing = beside(&log, |log| log.fail("the store is gone".to_owned()));
        assert!(!log.wait_acked(Txid(1), FOR_EVER));
        failing.join().unwrap();
    });
    loom::model(|| {
        let log = stored();
        log.push_next(transaction());
        let (asked, _) = log.asked();
        let asking = beside(&log, Log::request_base);
        assert!(!log.wait_acked_or_asked(Txid(1), asked, FOR_EVER));
        assert!(log.base_wanted(), "it is told before it can see what is wanted");
        asking.join().unwrap();
    });
    loom::model(|| {
        let log = begun();
        let settling = beside(&log, |log| log.settle(0));
        assert!(log.wait_settled(FOR_EVER));
        settling.join().unwrap();
    });
}

/// `durability=strict`: who takes a transaction back, and who puts it into the store, agree on what it is.
#[test]
fn loom_what_is_taken_back_is_not_in_the_store_or_known_to_be() {
    loom::model(|| {
        let log = stored();
        let txid = log.push_tentative(transaction()).unwrap();
        let uploading = beside(&log, move |log| {
            let taken = taken(log);
            if taken.first().is_some_and(|transaction| log.offer(transaction)) {
                log.acknowledge(txid);
            }
        });
        let withdrawn = log.withdraw(txid);
        uploading.join().unwrap();
        let (acked, last) = (log.acked(), log.last_txid());
        match withdrawn {
            Withdrawn::Cleanly => assert_eq!((acked, last, log.abandoned()), (Some(Txid(0)), Some(Txid(0)), None)),
            Withdrawn::Abandoned => assert_eq!((acked, last, log.abandoned()), (Some(Txid(0)), Some(txid), Some(txid))),
            Withdrawn::Acknowledged => {
                log.finish(txid);
                assert_eq!((log.acked(), log.last_txid()), (Some(txid), Some(txid)));
            }
        }
    });
}

/// The same where all that is captured is dropped meanwhile.
#[test]
fn loom_what_is_dropped_is_told_to_who_holds_a_commit_back() {
    for declines in [true, false] {
        loom::model(move || {
            let log = stored();
            let txid = log.push_tentative(transaction()).unwrap();
            let dropping = beside(&log, move |log| match declines {
                true => log.decline(),
                false => log.suspend(),
            });
            let uploading = beside(&log, |log| {
                let taken = taken(log);
                let offered = taken.first().is_some_and(|transaction| log.offer(transaction));
                assert!(!offered || log.abandoned().is_none() || log.abandoned() == Some(Txid(1)));
            });
            assert_eq!(log.wait_tentative(txid, FOR_EVER), Awaited::Gone);
            dropping.join().unwrap();
            uploading.join().unwrap();
        });
    }
}

/// Another history begins while somebody commits: nothing of the old one is in the log after that.
#[test]
fn loom_nothing_of_a_history_gets_into_another() {
    loom::model(|| {
        let log = stored();
        let question = log.wanted().1;
        let committing = beside(&log, move |log| {
            log.push_next(transaction());
            log.push_base(base(1, Continuity::Continued), question);
        });
        log.begin_anew();
        let asked = log.asked().0;
        committing.join().unwrap();
        assert_eq!(log.pending().items, 0);
        assert_eq!((log.acked(), log.asked().0), (None, asked));
        assert!(log.base_wanted(), "the answer to an older question is none");
    });
}
