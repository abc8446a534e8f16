//! The capture on its own: real SQLite above, a collector instead of a store below. What the log holds must be what SQLite
//! committed, transaction by transaction.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod collector;

use collector::{Collector, open, plain_image, txid};

#[test]
fn commits_are_numbered_from_one_and_each_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let connection = open(&path);
    connection
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
        .unwrap();
    assert_eq!(txid(&connection), 1);
    let mut truth = vec![plain_image(&path)];
    for n in 0..20_i64 {
        connection
            .execute("INSERT INTO t(b) VALUES(randomblob(?1))", [n * 1000])
            .unwrap();
        assert_eq!(txid(&connection) as i64, n + 2);
        truth.push(plain_image(&path));
    }
    connection.execute_batch("BEGIN; DELETE FROM t; ROLLBACK").unwrap();
    assert_eq!(txid(&connection), 21);
    let states = Collector::of(&path).states(21);
    for (index, image) in truth.iter().enumerate() {
        assert!(states[&(index as u64 + 1)] == *image, "txid {}", index + 1);
    }
}

#[test]
fn heap_mode_is_captured() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut connection = open(&path);
    connection
        .execute_batch(
            "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)",
        )
        .unwrap();
    for n in 0..20_i64 {
        connection
            .execute("INSERT INTO t(b) VALUES(randomblob(?1))", [n * 1000])
            .unwrap();
        if n % 7 == 3 {
            connection.execute_batch("PRAGMA wal_checkpoint(RESTART)").unwrap();
        }
    }
    assert_eq!(txid(&connection), 21);
    let truth = connection.serialize("main").unwrap().to_vec();
    let states = Collector::of(&path).states(21);
    assert!(states[&21] == truth);
}
