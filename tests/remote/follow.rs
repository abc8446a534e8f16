//! New transactions become visible between read transactions, whole and in order.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use replvfs_tests::{Scratch, flush, use_wal};
use rusqlite::Connection;

use super::{number, remote};

const NEVER: Duration = Duration::from_secs(120);

/// Waits until the connection sees so many rounds.
fn until(connection: &Connection, rounds: i64) {
    let since = Instant::now();
    while number(connection, "SELECT max(round) FROM t") < rounds {
        assert!(since.elapsed() < NEVER, "round {rounds} is never seen");
    }
}

fn start(scratch: &Scratch) -> Connection {
    let writer = scratch.open();
    use_wal(&writer);
    writer
        .execute_batch(
            "CREATE TABLE t(a INTEGER PRIMARY KEY, round, b); CREATE TABLE u(round); INSERT INTO u VALUES(0)",
        )
        .unwrap();
    write(&writer, 0);
    flush(&writer);
    writer
}

/// Every row of both tables is of one round.
fn write(writer: &Connection, round: i64) {
    let sql = format!(
        "BEGIN;
         UPDATE t SET round = {round}, b = randomblob(300);
         INSERT INTO t(round, b) VALUES({round}, randomblob(5000));
         DELETE FROM t WHERE a % 5 = {} % 5 AND a < {round};
         UPDATE u SET round = {round};
         COMMIT",
        round
    );
    writer.execute_batch(&sql).unwrap();
}

#[test]
fn every_state_that_is_seen_was_committed_and_none_comes_back() {
    let scratch = Scratch::in_memory();
    let writer = start(&scratch);
    let done = AtomicBool::new(false);
    let seen: [AtomicI64; 3] = Default::default();
    std::thread::scope(|scope| {
        let readers: Vec<_> = seen
            .iter()
            .map(|seen| {
                let (scratch, done) = (&scratch, &done);
                scope.spawn(move || {
                    let reader = remote(scratch, "&follow=10ms&page_cache=4MiB");
                    let (mut last, mut states) = (-1, 0);
                    while !done.load(Ordering::Acquire) || last < 300 {
                        let transaction = reader.unchecked_transaction().unwrap();
                        let round = number(&transaction, "SELECT round FROM u");
                        assert!(round >= last, "{round} after {last}");
                        let (rounds, least) = (
                            number(&transaction, "SELECT max(round) FROM t"),
                            number(&transaction, "SELECT min(round) FROM t"),
                        );
                        assert_eq!((rounds, least), (round, round));
                        states += i64::from(round > last);
                        last = round;
                        seen.store(round, Ordering::Release);
                        drop(transaction);
                    }
                    let check: String = reader
                        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
                        .unwrap();
                    assert_eq!(check, "ok");
                    states
                })
            })
            .collect();
        for round in 1..=300 {
            write(&writer, round);
            if round % 3 == 0 {
                flush(&writer);
            }
            // Now and then they have come as far.
            let since = Instant::now();
            while round % 60 == 0 && seen.iter().any(|seen| seen.load(Ordering::Acquire) < round) {
                assert!(since.elapsed() < NEVER, "{seen:?} of {round}");
                std::thread::yield_now();
            }
        }
        flush(&writer);
        done.store(true, Ordering::Release);
        for reader in readers {
            assert!(reader.join().unwrap() >= 5);
        }
    });
}

#[test]
fn a_reader_keeps_its_state_as_long_as_it_reads() {
    let scratch = Scratch::in_memory();
    let writer = start(&scratch);
    let (long, short) = (remote(&scratch, "&follow=10ms"), remote(&scratch, "&follow=10ms"));
    let transaction = long.unchecked_transaction().unwrap();
    assert_eq!(number(&transaction, "SELECT max(round) FROM t"), 0);
    for round in 1..=20 {
        write(&writer, round);
        flush(&writer);
        until(&short, round);
        assert_eq!(number(&transaction, "SELECT max(round) FROM t"), 0);
        assert_eq!(number(&transaction, "SELECT round FROM u"), 0);
    }
    drop(transaction);
    assert_eq!(number(&long, "SELECT max(round) FROM t"), 20);
}

#[test]
fn it_follows_into_another_generation() {
    let scratch = Scratch::in_memory();
    let writer = start(&scratch);
    let reader = remote(&scratch, "&follow=10ms");
    until(&reader, 0);
    writer.close().unwrap();
    // What is written while nobody replicates is a new generation, with pages of another size.
    let plain = Connection::open(scratch.database()).unwrap();
    plain
        .execute_batch(
            "PRAGMA journal_mode = DELETE; PRAGMA page_size = 1024; VACUUM; ALTER TABLE u ADD COLUMN more DEFAULT 5",
        )
        .unwrap();
    plain.close().unwrap();
    let writer = scratch.open();
    write(&writer, 1);
    flush(&writer);
    until(&reader, 1);
    assert_eq!(number(&reader, "SELECT more FROM u"), 5);
    assert_eq!(number(&reader, "PRAGMA page_size"), 1024);
    let check: String = reader
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
}
