//! A database that was there before: its first image is what it was when replication began, while writers and checkpoints go on.
#![allow(missing_docs)]

use replvfs_tests::{Scratch, compare_pages, flush, open, plain_image, pragma_number, restore_txid};
use rusqlite::Connection;

/// A database of some 30 MiB with a WAL left beside it, as a process that died leaves it.
fn existing(scratch: &Scratch, with_wal: bool) {
    let plain = Connection::open(scratch.database()).unwrap();
    plain
        .execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=0;
             CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 3000)
             INSERT INTO t(b) SELECT randomblob(10000) FROM n; PRAGMA wal_checkpoint(TRUNCATE);",
        )
        .unwrap();
    if with_wal {
        plain
            .execute_batch("UPDATE t SET b = randomblob(9000) WHERE a % 10 = 0")
            .unwrap();
        // Left open on purpose, so that nothing checkpoints at close; the file handles go with the process.
        std::mem::forget(plain);
    }
}

fn the_first_image_is_exact(with_wal: bool) {
    let scratch = Scratch::new();
    existing(&scratch, with_wal);
    let before = plain_image(&scratch.database());
    let connection = open(&scratch.uri_with("&flush_interval=10ms")).unwrap();
    let rows: i64 = connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 3000);
    assert_eq!(
        pragma_number(&connection, "replvfs_txid"),
        Some(0),
        "reading starts the history"
    );
    let mut truth = vec![(0, before)];
    for n in 0..12 {
        connection
            .execute("UPDATE t SET b = randomblob(8000) WHERE a % 100 = ?1", [n])
            .unwrap();
        truth.push((
            pragma_number(&connection, "replvfs_txid").unwrap(),
            plain_image(&scratch.database()),
        ));
        let _ = connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
    }
    connection
        .execute_batch("DELETE FROM t WHERE a > 100; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    let last = pragma_number(&connection, "replvfs_txid").unwrap();
    assert_eq!(last, 14);
    truth.push((last, plain_image(&scratch.database())));
    flush(&connection);
    for (txid, image) in &truth {
        let out = scratch.file("restored.db");
        restore_txid(&scratch.replica(), &out, Some(*txid));
        compare_pages(image, &std::fs::read(&out).unwrap()).unwrap_or_else(|error| panic!("txid {txid}: {error}"));
        std::fs::remove_file(&out).unwrap();
    }
}

#[test]
fn of_a_database_that_was_closed() {
    the_first_image_is_exact(false);
}

#[test]
fn of_a_database_with_a_wal_beside_it() {
    the_first_image_is_exact(true);
}

#[test]
fn without_any_write_there_is_an_image_too() {
    let scratch = Scratch::new();
    existing(&scratch, false);
    let before = plain_image(&scratch.database());
    let connection = scratch.open();
    connection.query_row("SELECT max(a) FROM t", [], |_| Ok(())).unwrap();
    flush(&connection);
    let out = scratch.file("restored.db");
    let restored = restore_txid(&scratch.replica(), &out, None);
    assert_eq!(restored.txid.0, 0);
    compare_pages(&before, &std::fs::read(&out).unwrap()).unwrap();
}

#[test]
fn closing_at_once_still_leaves_everything_in_the_store() {
    let scratch = Scratch::new();
    existing(&scratch, false);
    {
        let connection = open(&scratch.uri_with("&close_timeout=60s")).unwrap();
        connection
            .execute_batch("INSERT INTO t(b) VALUES('last words')")
            .unwrap();
    }
    assert!(
        !scratch.file("app.db-wal").exists(),
        "SQLite removes the WAL at the last close, as without replvfs"
    );
    assert!(!scratch.file("app.db-shm").exists());
    let after = plain_image(&scratch.database());
    let out = scratch.file("restored.db");
    assert_eq!(restore_txid(&scratch.replica(), &out, None).txid.0, 1);
    compare_pages(&after, &std::fs::read(&out).unwrap()).unwrap();
}

#[test]
fn a_flush_that_no_image_can_come_of_says_so_at_once() {
    let scratch = Scratch::new();
    existing(&scratch, false);
    // As long as no generation can be begun, the snapshot is not read.
    std::fs::create_dir(scratch.file("replica")).unwrap();
    let in_the_way = scratch.file("replica").join("gen");
    std::fs::write(&in_the_way, "").unwrap();
    let connection = open(&scratch.uri_with("&timeout=10s")).unwrap();
    connection
        .execute_batch(
            "PRAGMA locking_mode=EXCLUSIVE; PRAGMA wal_autocheckpoint=1; UPDATE t SET b = randomblob(10000) WHERE a % 10 = 0",
        )
        .unwrap();
    // The checkpoint overwrote more than was kept of it, and the WAL is larger than what is copied for another.
    let refused = connection
        .query_row("PRAGMA replvfs_flush", [], |_| Ok(()))
        .unwrap_err();
    assert!(
        refused.to_string().contains("WAL is larger than memory_limit"),
        "{refused}"
    );
    std::fs::remove_file(in_the_way).unwrap();
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    connection.execute_batch("INSERT INTO t(b) VALUES('small')").unwrap();
    flush(&connection);
    restore_txid(&scratch.replica(), &scratch.file("restored.db"), None);
}
