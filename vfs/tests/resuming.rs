//! The process dies at any moment, with any part of its transactions in the store: the next one goes on where the store's history ends,
//! transaction by transaction. And the WAL is as long as on plain SQLite meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod collector;

use std::path::{Path, PathBuf};

use collector::{Collector, Dice, copied, open, plain, prepare};
use replvfs_vfs::resume::{Fingerprint, Left, Next, Resume};
use rusqlite::Connection;

/// What is on the disk when the process dies now, in a folder of its own.
fn dead(path: &Path, collector: &Collector) -> (tempfile::TempDir, PathBuf, Option<Resume>) {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("app.db");
    copied(path, &copy);
    let resume = collector.resume_point().map(|resume| {
        let left = resume.left.map(|left| match left.next {
            Next::File(file) if Fingerprint::of(path) == Some(file) => Left {
                next: Next::File(Fingerprint::of(&copy).unwrap()),
                ..left
            },
            _ => left,
        });
        Resume { left, ..resume }
    });
    (dir, copy, resume)
}

fn act(dice: &mut Dice, connection: &Connection) -> String {
    let size = [0, 10, 3000, 30_000, 150_000][dice.roll(5) as usize];
    let sql = match dice.roll(16) {
        0..=5 => format!("INSERT INTO t(b) VALUES(randomblob({size}))"),
        6 => format!("UPDATE t SET b=randomblob({size}) WHERE a%3=0"),
        7 => "DELETE FROM t WHERE a%2=0".into(),
        8 => format!("BEGIN; INSERT INTO t(b) VALUES(randomblob({size})); UPDATE t SET b=zeroblob({size}); ROLLBACK"),
        9 => "PRAGMA wal_checkpoint(PASSIVE)".into(),
        10 => "PRAGMA wal_checkpoint(RESTART)".into(),
        11 => "PRAGMA wal_checkpoint(TRUNCATE)".into(),
        12 => "VACUUM".into(),
        13 => "PRAGMA journal_size_limit=1000; PRAGMA wal_autocheckpoint=3".into(),
        _ => "PRAGMA wal_autocheckpoint=20; SELECT count(*) FROM t".into(),
    };
    match connection.execute_batch(&sql) {
        Ok(()) => sql,
        Err(error) => format!("{sql}: {error}"),
    }
}

fn connect(path: &Path, exclusive: bool) -> Connection {
    let connection = open(path);
    if exclusive {
        connection.execute_batch("PRAGMA locking_mode=EXCLUSIVE").unwrap();
    }
    connection
        .execute_batch("PRAGMA journal_mode=WAL; PRAGMA cache_size=5; PRAGMA wal_autocheckpoint=20; CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b BLOB)")
        .unwrap();
    connection
}

/// Dies, and goes on; the number of transactions that were taken up again.
fn die(path: &Path, script: &[String], exclusive: bool) -> u64 {
    let collector = Collector::of(path);
    let known = collector.settled();
    let (_dir, copy, resume) = dead(path, &collector);
    let resume = resume.expect("something was stored");
    let stored = resume.stored.txid.0;
    let context = format!("{resume:?} after {script:#?}");
    prepare(&copy, resume, known[&stored].clone());
    let mut next = open(&copy);
    if exclusive {
        next.execute_batch("PRAGMA locking_mode=EXCLUSIVE").unwrap();
    }
    next.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))
        .unwrap();
    if exclusive {
        next.execute_batch("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b BLOB); INSERT INTO t(b) VALUES(1)")
            .unwrap();
    }
    let last: String = next.query_row("PRAGMA replvfs_txid", [], |row| row.get(0)).unwrap();
    let flushed = next.execute_batch("PRAGMA replvfs_flush");
    let last: u64 = last.parse().unwrap_or_else(|_| panic!("{flushed:?} {context}"));
    let truth = next.serialize("main").unwrap().to_vec();
    let resumed = Collector::of(&copy);
    let states = resumed.settled();
    assert_eq!(resumed.wrong(), Vec::<String>::new(), "{context}");
    assert!(resumed.did_resume(), "it did not go on: {context}");
    assert_eq!(resumed.bases(), [], "{context}");
    assert!(states[&last] == truth, "transaction {last}: {context}");
    for (txid, state) in known.iter().filter(|(txid, _)| **txid > stored) {
        assert!(states.get(txid) == Some(state), "transaction {txid}: {context}");
    }
    last - stored
}

fn run(seed: u64, exclusive: bool) -> u64 {
    let mut dice = Dice(seed);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut connections = [Some(connect(&path, exclusive)), None];
    let mut stranger = None;
    let collector = Collector::of(&path);
    collector.settled();
    collector.keeps(true);
    let mut script = vec![format!("seed {seed} exclusive {exclusive}")];
    let mut taken_up = 0;
    for _ in 0..50 {
        let which = if exclusive { 0 } else { dice.roll(2) as usize };
        match dice.roll(12) {
            0 => {
                connections[which] = None;
                script.push(format!("close {which}"));
            }
            // What strangers do while no connection of ours is open may be anything.
            1 if !exclusive && connections.iter().any(Option::is_some) => {
                let stranger = stranger.get_or_insert_with(|| {
                    let stranger = plain(&path);
                    stranger.busy_timeout(std::time::Duration::ZERO).unwrap();
                    stranger
                });
                script.push(format!("stranger: {}", act(&mut dice, stranger)));
                collector.log().look();
            }
            2 if connections.iter().any(Option::is_some) => stranger = None,
            3 | 4 => {
                let newest = collector.settled().keys().max().copied().unwrap_or(0);
                let up_to = newest.saturating_sub(dice.roll(6));
                collector.store_up_to(up_to.max(collector.resume_point().map_or(0, |resume| resume.stored.txid.0)));
                collector.log().look();
                script.push(format!("stored {up_to}"));
            }
            5 => taken_up += die(&path, &script, exclusive),
            _ => {
                let connection = connections[which].get_or_insert_with(|| connect(&path, exclusive));
                script.push(format!("{which}: {}", act(&mut dice, connection)));
            }
        }
    }
    taken_up + die(&path, &script, exclusive)
}

#[test]
fn the_next_process_goes_on_where_the_store_is() {
    let rounds = std::env::var("REPLVFS_RESUME_ROUNDS").map_or(20, |rounds| rounds.parse().unwrap());
    let first = std::env::var("REPLVFS_RESUME_SEED").map_or(0, |seed| seed.parse().unwrap());
    let taken_up: u64 = (first..first + rounds).map(|seed| run(seed, false)).sum();
    assert!(taken_up > rounds, "only {taken_up} transactions were taken up");
}

#[test]
fn the_next_process_goes_on_after_one_that_had_the_file_for_itself() {
    let taken_up: u64 = (0..10).map(|seed| run(seed, true)).sum();
    assert!(taken_up > 10, "only {taken_up} transactions were taken up");
}
