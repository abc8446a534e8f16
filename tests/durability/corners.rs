//! Where nobody looks: an owner that only has the database open, answers that never end, a patience without end, threads side by side.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use replvfs::Replication;
use replvfs_tests::peer::SqlPeer;
use replvfs_tests::{Scratch, flush, open, status, use_wal};
use rusqlite::Connection;

use super::{NEVER, rows_elsewhere, rows_here};

const LAZY: &str = "&flush_interval=1h";

/// A replicated database with one empty table, which nobody has open.
fn made(scratch: &Scratch) {
    let mut maker = SqlPeer::start(&scratch.uri_with(LAZY));
    maker.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    maker.end();
}

/// A pool opens connections ahead of their use: such an owner has read nothing, and no lock of the WAL.
#[test]
fn an_owner_that_has_read_nothing_answers() {
    let scratch = Scratch::in_memory();
    made(&scratch);
    let mut owner = SqlPeer::start(&scratch.uri_with(LAZY));
    let standby = open(&scratch.uri_with(&format!("{NEVER}&timeout=3s"))).unwrap();
    for expected in 1..=3 {
        standby.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
        assert_eq!(status(&standby)["owner"], false);
        assert_eq!(rows_elsewhere(&scratch), expected);
    }
    // It goes on as any other.
    owner.sql("INSERT INTO t(b) VALUES(2); PRAGMA replvfs_flush");
    assert_eq!(rows_elsewhere(&scratch), 4);
    standby.execute_batch("DELETE FROM t").unwrap();
    drop(standby);
    owner.sql("PRAGMA journal_mode=DELETE; PRAGMA replvfs_flush");
    assert_eq!(rows_elsewhere(&scratch), 0);
    owner.end();
}

/// The locks of who waits without a connection are never in the way of the process's own connections, which may be the only ones there are and
/// expect no `SQLITE_BUSY`.
#[test]
fn who_waits_without_a_connection_is_in_nobodys_way() {
    for journal in ["DELETE", "TRUNCATE", "PERSIST"] {
        let scratch = Scratch::in_memory();
        let connection = open(&scratch.uri_with(LAZY)).unwrap();
        connection.busy_timeout(Duration::ZERO).unwrap();
        connection
            .execute_batch(&format!(
                "PRAGMA journal_mode={journal}; CREATE TABLE t(a INTEGER PRIMARY KEY, b)"
            ))
            .unwrap();
        let replication = Replication::of(scratch.database()).unwrap();
        let (stop, flushed) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let done = replication.flush().is_ok();
                        flushed.fetch_or(done, Ordering::Relaxed);
                    }
                });
            }
            let mut written = 0;
            let mut failed = None;
            while failed.is_none() && (written < 1000 || !flushed.load(Ordering::Relaxed)) {
                failed = connection.execute_batch("INSERT INTO t(b) VALUES(1)").err();
                written += 1;
            }
            stop.store(true, Ordering::Relaxed);
            assert!(failed.is_none(), "{journal}, after {written}: {failed:?}");
        });
        replication.flush().unwrap();
        assert_eq!(rows_elsewhere(&scratch), rows_here(&connection), "{journal}");
    }
}

#[test]
fn a_patience_without_end_is_no_panic() {
    let scratch = Scratch::in_memory();
    let mut owner = SqlPeer::start(&scratch.uri_with(LAZY));
    owner.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    let connection = open(&scratch.uri_with(LAZY)).unwrap();
    let patient = Replication::of(scratch.database()).unwrap().with_timeout(Duration::MAX);
    connection.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
    patient.flush().unwrap();
    assert_eq!(rows_elsewhere(&scratch), 1);
    owner.end();
    connection.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
    patient.flush().unwrap();
    assert_eq!(rows_elsewhere(&scratch), 2);
}

/// Whoever is at the other end, `timeout` is kept.
#[test]
fn an_answer_that_does_not_end_is_not_waited_for() {
    let scratch = Scratch::in_memory();
    made(&scratch);
    let lock = File::options()
        .write(true)
        .open(scratch.file("app.db-replvfs-lock"))
        .unwrap();
    lock.lock().unwrap();
    let listener = UnixListener::bind(scratch.file("app.db-replvfs-sock")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                while stream.write_all(b"x").is_ok() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
    });
    let (told, result) = channel();
    let uri = scratch.uri_with(&format!("{NEVER}&timeout=300ms"));
    std::thread::spawn(move || {
        let standby = open(&uri).unwrap();
        let _ = told.send(standby.execute_batch("INSERT INTO t(b) VALUES(1)").is_err());
    });
    // 300 ms, and what a busy machine needs.
    assert!(result.recv_timeout(Duration::from_secs(20)).expect("it waits on"));
}

/// With WAL what comes later in SQLite's order is committed before the first one is waited for.
#[test]
fn over_two_databases_with_wals_both_stay() {
    let (scratch, store, uri) = super::with_a_faulty_store("both-stay", replvfs::config::OnTimeout::Error, super::SOON);
    let connection = open(&uri).unwrap();
    let other = scratch.file("other.db");
    let plain = Connection::open(&other).unwrap();
    use_wal(&plain);
    plain.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)").unwrap();
    connection
        .execute("ATTACH ?1 AS other", [format!("file:{}?vfs=unix", other.display())])
        .unwrap();
    store.weather.storm(super::storm(replvfs_tests::weather::Trouble::Hang));
    connection
        .execute_batch("BEGIN; INSERT INTO main.t(b) VALUES(1); INSERT INTO other.t(b) VALUES(1); COMMIT")
        .unwrap_err();
    assert_eq!((rows_here(&connection), rows_here(&plain)), (1, 1));
    store.weather.clear_up_and_lose_connections();
}

/// The pin stays behind a connection that has closed its WAL while another process has it open.
#[test]
fn a_flush_of_who_has_read_nothing_sees_what_others_commit() {
    let scratch = Scratch::in_memory();
    let first = open(&scratch.uri_with(LAZY)).unwrap();
    use_wal(&first);
    first
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES(1)")
        .unwrap();
    let second = open(&scratch.uri_with(LAZY)).unwrap();
    let plain = Connection::open(scratch.database()).unwrap();
    assert_eq!(rows_here(&plain), 1);
    flush(&first);
    drop(first);
    for expected in 2..=4 {
        plain.execute_batch("INSERT INTO t(b) VALUES(2)").unwrap();
        flush(&second);
        assert_eq!(rows_elsewhere(&scratch), expected);
    }
    assert_eq!(rows_here(&second), 4);
    flush(&second);
    assert_eq!(rows_elsewhere(&scratch), 4);
}
