//! Scripts by chance: two connections through replvfs, one that knows nothing of it, everything that moves the WAL or the locks.
//! Whenever the capture says that it captures, the newest state in the log must be the one that SQLite has.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod collector;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use collector::faults::{self, Fault};
use collector::{Collector, Dice, open, plain};
use rusqlite::Connection;

/// One thing that an application may do. Most may fail for good reasons (a lock); what happened then is what counts.
fn act(dice: &mut Dice, connection: &Connection) -> String {
    let size = [0, 10, 3000, 30_000, 150_000][dice.roll(5) as usize];
    let sql = match dice.roll(26) {
        0..=4 => format!("INSERT INTO t(b) VALUES(randomblob({size}))"),
        5 => format!("UPDATE t SET b=randomblob({size}) WHERE a%3=0"),
        6 => "DELETE FROM t WHERE a%2=0".into(),
        7 => format!("BEGIN; INSERT INTO t(b) VALUES(randomblob({size})); UPDATE t SET b=zeroblob({size}); ROLLBACK"),
        8 => format!(
            "BEGIN; INSERT INTO t(b) VALUES(randomblob({size})); SAVEPOINT s; UPDATE t SET b=randomblob({size}); ROLLBACK TO s; INSERT INTO t(b) VALUES(7); COMMIT"
        ),
        9 => "PRAGMA wal_checkpoint(PASSIVE)".into(),
        10 => "PRAGMA wal_checkpoint(RESTART)".into(),
        11 => "PRAGMA wal_checkpoint(TRUNCATE)".into(),
        12 => "PRAGMA locking_mode=EXCLUSIVE".into(),
        13 | 14 => "PRAGMA locking_mode=NORMAL; SELECT count(*) FROM t".into(),
        15 => "PRAGMA journal_mode=DELETE".into(),
        16 | 17 => "PRAGMA journal_mode=WAL".into(),
        18 => "VACUUM".into(),
        19 => "BEGIN IMMEDIATE; COMMIT".into(),
        20 => "PRAGMA journal_size_limit=1000; PRAGMA wal_autocheckpoint=3".into(),
        21 => format!(
            "PRAGMA journal_mode={}",
            ["TRUNCATE", "PERSIST", "MEMORY"][dice.roll(3) as usize]
        ),
        22 => format!("PRAGMA page_size={}; VACUUM", 512 << dice.roll(5)),
        23 => "PRAGMA incremental_vacuum(3)".into(),
        24 => format!("PRAGMA cache_size={}", [2, 5, 100][dice.roll(3) as usize]),
        _ => "SELECT count(*) FROM t".into(),
    };
    let done = connection.execute_batch(&sql);
    if !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
    match done {
        Ok(()) => sql,
        Err(error) => format!("{sql}: {error}"),
    }
}

fn prepared(connection: Connection) -> Connection {
    connection.busy_timeout(std::time::Duration::ZERO).unwrap();
    for pragma in ["cache_size=5", "wal_autocheckpoint=20", "synchronous=FULL"] {
        // Some of them read the database, which somebody may have locked.
        let _ = connection.execute_batch(&format!("PRAGMA {pragma}"));
    }
    connection
}

/// Compares the newest state in the log with SQLite's; `false` when there is none to compare.
fn is_right(connection: &mut Connection, collector: &Collector, script: &str) -> bool {
    // Somebody may have it locked.
    let readable = connection.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
    if readable.is_err() || connection.execute_batch("PRAGMA replvfs_flush").is_err() {
        return false;
    }
    let newest = |connection: &mut Connection| {
        let last = collector::txid(connection);
        let mut truth = connection.serialize("main").unwrap().to_vec();
        if !is(connection, "journal_mode", "wal") {
            // A page that was freed may be in the connection's cache with a content that was never written.
            let mut file = std::fs::read(connection.path().unwrap()).unwrap();
            file.truncate(truth.len());
            truth = file;
        }
        (last, truth, collector.settled())
    };
    let (mut last, mut truth, mut states) = newest(connection);
    assert_eq!(collector.wrong(), Vec::<String>::new(), "{script}");
    if states.get(&last).is_some_and(|state| *state != truth)
        && is(connection, "locking_mode", "exclusive")
        && !is(connection, "journal_mode", "wal")
    {
        // A transaction that spilled and was rolled back leaves other bytes in pages that nobody uses, which are a part of the next commit.
        connection.execute_batch("PRAGMA user_version=1").unwrap();
        connection.execute_batch("PRAGMA user_version=0").unwrap();
        (last, truth, states) = newest(connection);
    }
    // A base that was given up leaves the states behind it to the next base.
    let state = states.get(&last);
    assert!(
        state.is_none_or(|state| *state == truth),
        "transaction {last} is wrong: {script}"
    );
    state.is_some()
}

fn is(connection: &Connection, pragma: &str, value: &str) -> bool {
    let found = connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, String>(0));
    found.is_ok_and(|found| found == value)
}

fn run(seed: u64, path: &Path) -> usize {
    let mut dice = Dice(seed);
    let mut ours = [Some(prepared(open(path))), None];
    let mut other = None;
    let mut script = Vec::new();
    let mut checked = 0;
    let collector = Collector::of(path);
    let _ = ours[0].as_ref().unwrap().execute_batch(&format!(
        "PRAGMA auto_vacuum={}; PRAGMA journal_mode={}; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)",
        dice.roll(3),
        ["WAL", "WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY"][dice.roll(6) as usize]
    ));
    for _ in 0..40 {
        let which = dice.roll(2) as usize;
        match dice.roll(20) {
            0 => {
                ours[which] = None;
                script.push(format!("close {which}"));
            }
            1 => {
                other = None;
                script.push("close other".into());
            }
            2 => {
                collector.log().request_base();
                script.push("request a base".into());
            }
            19 => {
                collector.log().request_image();
                // As the replica does once an interval.
                if collector.log().is_to_be_watched() && collector.log().has_news() {
                    collector.log().look();
                }
                script.push("request an image".into());
            }
            3 => {
                let fault = if dice.roll(2) == 0 {
                    Fault::Sync
                } else {
                    Fault::Page(dice.roll(8) as u32)
                };
                faults::fail_next(fault);
                let connection = ours[which].get_or_insert_with(|| prepared(open(path)));
                script.push(format!("{which} with a fault: {}", act(&mut dice, connection)));
                faults::heal();
            }
            4..=6 => {
                let connection = other.get_or_insert_with(|| prepared(plain(path)));
                script.push(format!("other: {}", act(&mut dice, connection)));
            }
            _ => {
                let connection = ours[which].get_or_insert_with(|| prepared(open(path)));
                script.push(format!("{which}: {}", act(&mut dice, connection)));
            }
        }
        for (which, connection) in ours.iter_mut().enumerate() {
            if dice.roll(3) != 0 {
                continue;
            }
            let Some(connection) = connection else { continue };
            script.push(format!("look through {which}"));
            checked += usize::from(is_right(connection, &collector, &format!("seed {seed}: {script:#?}")));
        }
    }
    checked
}

#[test]
fn what_is_captured_is_what_sqlite_has() {
    let seeds = std::env::var("REPLVFS_SEEDS").ok();
    let (first, count) = match seeds.as_deref().and_then(|seeds| seeds.split_once('+')) {
        Some((first, count)) => (first.parse().unwrap(), count.parse().unwrap()),
        None => (0, 60),
    };
    let mut checked = 0;
    for seed in first..first + count {
        let dir = tempfile::tempdir().unwrap();
        checked += run(seed, &dir.path().join("app.db"));
    }
    assert!(checked as u64 > count * 3, "only {checked} states were compared");
}

#[test]
fn threads_that_open_write_and_close_at_once() {
    for round in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let first = open(&path);
        first
            .execute_batch(&format!(
                "PRAGMA journal_mode={}; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)",
                if round < 4 { "WAL" } else { "DELETE" }
            ))
            .unwrap();
        let collector = Collector::of(&path);
        if round % 2 == 0 {
            drop(first);
        }
        let ended = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let (log, ended) = (collector.log(), &ended);
            scope.spawn(move || {
                while ended.load(Ordering::Acquire) < 4 {
                    if log.is_to_be_watched() && log.has_news() {
                        log.look();
                    }
                    std::thread::yield_now();
                }
            });
            for thread in 0..4_u64 {
                let (path, collector) = (&path, &collector);
                scope.spawn(move || {
                    let mut dice = Dice(thread + round * 10);
                    let mut connection = None;
                    for _ in 0..60 {
                        let connect = || {
                            // One of them is a stranger in every other round.
                            let stranger = thread == 0 && round % 4 >= 2;
                            let connection = if stranger { plain(path) } else { open(path) };
                            connection.busy_timeout(std::time::Duration::from_secs(20)).unwrap();
                            connection
                        };
                        let used = connection.get_or_insert_with(connect);
                        let sql = match dice.roll(10) {
                            // A stranger would wait for the pin, with the write lock in its hand.
                            0 if thread == 0 && round >= 2 => {
                                "PRAGMA busy_timeout=0; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA busy_timeout=20000"
                            }
                            0 => "PRAGMA wal_checkpoint(TRUNCATE)",
                            1 => "SELECT count(*) FROM t",
                            2 => "INSERT INTO t(b) VALUES(randomblob(150000))",
                            3 => "DELETE FROM t WHERE a%3=0",
                            4 => "PRAGMA wal_checkpoint",
                            _ => "INSERT INTO t(b) VALUES(randomblob(2000))",
                        };
                        let _ = used.execute_batch(sql);
                        match dice.roll(12) {
                            0 | 1 => connection = None,
                            2 => collector.log().request_base(),
                            3 => collector.log().request_image(),
                            _ => {}
                        }
                    }
                    ended.fetch_add(1, Ordering::AcqRel);
                });
            }
        });
        let mut last = open(&path);
        last.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
        last.execute_batch("PRAGMA replvfs_flush").unwrap();
        collector.settled();
        // A range that a stranger's restart took away is noticed when it is read.
        last.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
        let txid = collector::txid(&last);
        let truth = last.serialize("main").unwrap().to_vec();
        assert!(collector.settled()[&txid] == truth, "round {round}");
        assert_eq!(collector.wrong(), Vec::<String>::new(), "round {round}");
    }
}
