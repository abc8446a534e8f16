//! A panic of ours in any callback: the application's database goes on as if nothing had been, and replication says that it does not.
#![allow(missing_docs)]

use std::time::{Duration, Instant};

use replvfs_tests::{Scratch, open, use_wal};
use replvfs_vfs::{CALLBACKS, inject_panic};
use rusqlite::Connection;

/// Everything that makes SQLite call back: opens, commits, spills, checkpoints, mode switches, a close.
fn exercise(scratch: &Scratch) -> rusqlite::Result<i64> {
    let connection = open(&scratch.uri_with("&close_timeout=1s&timeout=1s"))?;
    connection.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(a); PRAGMA cache_size=2;")?;
    for _ in 0..5 {
        connection.execute_batch("INSERT INTO t SELECT randomblob(5000)")?;
    }
    connection
        .execute_batch("PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t VALUES(1); PRAGMA journal_size_limit=0;")?;
    let _ = connection.query_row("PRAGMA replvfs_txid", [], |_| Ok(()));
    connection.execute_batch("DELETE FROM t WHERE rowid % 2 = 0; VACUUM; PRAGMA journal_mode=DELETE; INSERT INTO t VALUES(2); PRAGMA journal_mode=WAL; INSERT INTO t VALUES(3);")?;
    let rows = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
    connection.close().map_err(|(_, error)| error)?;
    Ok(rows)
}

#[test]
fn a_panic_in_a_callback_never_reaches_the_application() {
    for callback in CALLBACKS {
        let scratch = Scratch::new();
        inject_panic(Some(callback));
        let result = exercise(&scratch);
        assert!(!inject_panic(None), "{callback} was never called, so nothing was shown");
        match *callback {
            // Refused, clearly: unreplicated without a word would be worse.
            "xOpen" => assert!(result.is_err()),
            // A PRAGMA of ours, or the notice of a commit.
            "xFileControl" => {}
            _ => assert_eq!(result.unwrap(), 5, "{callback}"),
        }
        // SQLite alone finds a sound database.
        let plain = Connection::open(scratch.database()).unwrap();
        let answer: String = plain.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(answer, "ok", "{callback}");
    }
}

#[test]
fn after_a_panic_nothing_is_acknowledged_any_more() {
    let scratch = Scratch::new();
    let connection = scratch.open();
    use_wal(&connection);
    connection.execute_batch("CREATE TABLE t(a)").unwrap();
    replvfs_tests::flush(&connection);
    inject_panic(Some("xShmBarrier"));
    connection.execute_batch("INSERT INTO t VALUES(1)").unwrap();
    assert!(!inject_panic(None));
    connection.execute_batch("INSERT INTO t VALUES(2)").unwrap();
    let error = connection
        .query_row("PRAGMA replvfs_flush", [], |_| Ok(()))
        .unwrap_err();
    assert!(error.to_string().contains("panic"), "{error}");
    let acked: String = connection
        .query_row("PRAGMA replvfs_acked", [], |row| row.get(0))
        .unwrap();
    assert_eq!(acked, "1");
    let rows: i64 = connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 2);
    // The WAL is not kept any more: whoever wants to restart it can.
    let plain = Connection::open(scratch.database()).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while plain
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))
        .unwrap()
        != 0
    {
        assert!(Instant::now() < end, "the WAL is still kept");
        std::thread::yield_now();
    }
}
