//! Several threads write at once, others checkpoint and read: every transaction is one step of a counter, so each restored state
//! can be checked on its own.
#![allow(missing_docs)]

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use replvfs_tests::{Scratch, flush, open, pragma_number, restore_txid, use_wal};
use rusqlite::Connection;

const WRITERS: usize = 4;
const COMMITS: i64 = 60;

#[test]
fn concurrent_writers_make_one_history() {
    let scratch = Scratch::new();
    let uri = scratch.uri_with("&flush_interval=10ms&segment_size=64KiB");
    let first = open(&uri).unwrap();
    use_wal(&first);
    first
        .execute_batch(
            "CREATE TABLE counter(n INTEGER); INSERT INTO counter VALUES(0);
             CREATE TABLE entry(n INTEGER PRIMARY KEY, writer INTEGER, body BLOB);",
        )
        .unwrap();
    let base = pragma_number(&first, "replvfs_txid").unwrap();
    let start = Barrier::new(WRITERS + 1);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (uri, start) = (&uri, &start);
                scope.spawn(move || {
                    start.wait();
                    for n in 0..COMMITS {
                        // Every other thread opens a connection for each of its transactions.
                        let connection = open(uri).unwrap();
                        write(&connection, writer, n);
                    }
                })
            })
            .collect();
        let checkpointer = scope.spawn(|| {
            let connection = open(&uri).unwrap();
            connection.busy_timeout(Duration::from_secs(60)).unwrap();
            start.wait();
            while !done.load(Ordering::Acquire) {
                for mode in ["PASSIVE", "RESTART", "TRUNCATE", "FULL"] {
                    // Busy is an answer here, not an error.
                    let _ = connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()));
                }
            }
        });
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Release);
        checkpointer.join().unwrap();
    });
    flush(&first);
    let last = pragma_number(&first, "replvfs_txid").unwrap();
    assert_eq!(last - base, WRITERS as u64 * COMMITS as u64);
    for txid in base..=last {
        let out = scratch.file("restored.db");
        restore_txid(&scratch.replica(), &out, Some(txid));
        let restored = Connection::open(&out).unwrap();
        let (n, rows, highest): (i64, i64, Option<i64>) = restored
            .query_row(
                "SELECT (SELECT n FROM counter), count(*), max(n) FROM entry",
                [],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .unwrap();
        let expected = (txid - base) as i64;
        assert_eq!(
            (n, rows, highest.unwrap_or(0)),
            (expected, expected, expected),
            "txid {txid}"
        );
        if txid % 16 == 0 {
            let answer: String = restored
                .query_row("PRAGMA integrity_check", [], |row| row.get(0))
                .unwrap();
            assert_eq!(answer, "ok");
        }
        drop(restored);
        std::fs::remove_file(&out).unwrap();
    }
}

/// As on plain SQLite: the WAL grows beside the reader, nobody is told to wait, and when the reader has ended the WAL starts again.
#[test]
fn a_long_reader_holds_up_no_writer() {
    let scratch = Scratch::in_memory();
    let uri = scratch.uri_with("&flush_interval=10ms");
    let (writer, reader) = (open(&uri).unwrap(), open(&uri).unwrap());
    use_wal(&writer);
    writer.busy_timeout(Duration::ZERO).unwrap();
    writer
        .execute_batch(
            "PRAGMA wal_autocheckpoint=20; CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES(0)",
        )
        .unwrap();
    flush(&writer);
    let rows = |connection: &Connection| {
        let rows: i64 = connection
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        rows
    };
    let wal_bytes = || std::fs::metadata(scratch.file("app.db-wal")).unwrap().len();
    reader.execute_batch("BEGIN").unwrap();
    assert_eq!(rows(&reader), 1);
    for n in 0..400 {
        writer.execute("INSERT INTO t(b) VALUES(randomblob(3000))", []).unwrap();
        if n % 100 == 99 {
            // What it does of its own accord holds nobody up either.
            flush(&writer);
        }
    }
    assert_eq!(rows(&reader), 1);
    let beside_the_reader = wal_bytes();
    assert!(beside_the_reader > 400 * 3000);
    reader.execute_batch("COMMIT").unwrap();
    flush(&writer);
    for _ in 0..200 {
        writer.execute("INSERT INTO t(b) VALUES(randomblob(3000))", []).unwrap();
    }
    // But for the commits before the next checkpoint.
    assert!(
        wal_bytes() < beside_the_reader + 60 * 3000,
        "the WAL did not start again"
    );
    let busy: i64 = writer
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
        .unwrap();
    assert_eq!((busy, wal_bytes()), (0, 0));
    flush(&writer);
    let out = scratch.file("restored.db");
    restore_txid(&scratch.replica(), &out, None);
    assert_eq!(rows(&Connection::open(&out).unwrap()), 601);
}

fn write(connection: &Connection, writer: usize, n: i64) {
    connection.busy_timeout(Duration::from_secs(60)).unwrap();
    connection
        .execute_batch("BEGIN IMMEDIATE; UPDATE counter SET n = n + 1")
        .unwrap();
    connection
        .execute(
            "INSERT INTO entry SELECT n, ?1, randomblob(?2) FROM counter",
            [writer as i64, (n * 997) % 9000],
        )
        .unwrap();
    connection.execute_batch("COMMIT").unwrap();
}
