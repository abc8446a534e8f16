//! All interleavings of those who prove, who pin and who hold, beside another process.
#![allow(clippy::unwrap_used, clippy::panic)]

use loom::sync::{Arc, Mutex};
use loom::thread;

use super::Kept;
use crate::sync::AtomicBool;
use std::sync::atomic::Ordering;

/// What other processes see: the slot, and how often one of them has restarted the WAL.
#[derive(Default)]
struct Wal {
    is_kept: bool,
    restarts: u32,
}

/// With the slot held.
fn pinned() -> Arc<(Kept, Mutex<Wal>)> {
    let kept = Kept::default();
    kept.hold();
    let wal = Wal {
        is_kept: true,
        restarts: 0,
    };
    Arc::new((kept, Mutex::new(wal)))
}

fn drop_pin((kept, wal): &(Kept, Mutex<Wal>)) {
    kept.let_go();
    wal.lock().unwrap().is_kept = false;
}

fn take_pin((kept, wal): &(Kept, Mutex<Wal>)) {
    wal.lock().unwrap().is_kept = true;
    kept.hold();
}

/// Another process restarts the WAL, if it may.
fn restart((_, wal): &(Kept, Mutex<Wal>)) {
    let mut wal = wal.lock().unwrap();
    if !wal.is_kept {
        wal.restarts += 1;
    }
}

/// The cursor is where the WAL is, as long as that was not restarted.
fn prove((kept, wal): &(Kept, Mutex<Wal>)) {
    let Some(time) = kept.time() else { return };
    if wal.lock().unwrap().restarts == 0 {
        kept.prove(time);
    }
}

/// Whoever trusts it takes what is in a WAL for all that was written.
fn what_is_unbroken_was_not_restarted((kept, wal): &(Kept, Mutex<Wal>)) {
    if kept.is_unbroken() {
        assert_eq!(
            wal.lock().unwrap().restarts,
            0,
            "its WAL was restarted by another process"
        );
    }
}

/// The slot goes while a connection proves the cursor.
#[test]
fn loom_a_proof_does_not_outlive_the_slot() {
    loom::model(|| {
        let shared = pinned();
        let (proving, dropping) = (Arc::clone(&shared), Arc::clone(&shared));
        let proving = thread::spawn(move || prove(&proving));
        let dropping = thread::spawn(move || {
            drop_pin(&dropping);
            restart(&dropping);
        });
        proving.join().unwrap();
        dropping.join().unwrap();
        what_is_unbroken_was_not_restarted(&shared);
    });
}

/// It goes, and is taken again: what was proved before is proved no more.
#[test]
fn loom_a_proof_is_not_of_the_next_time() {
    loom::model(|| {
        let shared = pinned();
        let (proving, dropping) = (Arc::clone(&shared), Arc::clone(&shared));
        let proving = thread::spawn(move || prove(&proving));
        let dropping = thread::spawn(move || {
            drop_pin(&dropping);
            restart(&dropping);
            take_pin(&dropping);
        });
        proving.join().unwrap();
        dropping.join().unwrap();
        what_is_unbroken_was_not_restarted(&shared);
    });
}

/// The pin and the last connection let go at once: one of them finds that nobody holds anything any more.
#[test]
fn loom_one_of_the_last_two_notices() {
    loom::model(|| {
        let shared = Arc::new((Kept::default(), AtomicBool::new(false)));
        shared.0.hold();
        shared.0.holder_comes();
        let (unpinning, leaving) = (Arc::clone(&shared), Arc::clone(&shared));
        let unpinning = thread::spawn(move || {
            if unpinning.0.let_go() {
                unpinning.1.store(true, Ordering::Release);
            }
        });
        let leaving = thread::spawn(move || {
            if leaving.0.holder_goes() {
                leaving.1.store(true, Ordering::Release);
            }
        });
        unpinning.join().unwrap();
        leaving.join().unwrap();
        assert!(
            shared.1.load(Ordering::Acquire),
            "the cursor is trusted though nobody keeps the database"
        );
    });
}
