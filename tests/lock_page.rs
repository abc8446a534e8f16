//! A database that grows past 1 GiB, where SQLite keeps its file locks: that page has no content, and is not stored.
//! Pages of 512 bytes put it at number 2,097,153, those of 65,536 at 16,385; every transaction on the way is larger than what is kept in memory.
//! What is restored is compared, and so is what is read without restoring it.
#![allow(missing_docs)]

use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;

use replvfs::image::make;
use replvfs::store::{Store, StoreOptions};
use replvfs_tests::{
    Scratch, block_on, check_integrity, flush, long_tests, open, pragma_number, restore_txid, use_wal,
};
use rusqlite::Connection;

#[test]
fn a_database_grows_past_the_lock_page() {
    if !long_tests("a database past 1 GiB") {
        return;
    }
    for page_size in [512, 4096, 65_536] {
        grows_past_it(page_size);
    }
}

fn grows_past_it(page_size: i64) {
    let scratch = Scratch::new();
    let connection = open(&scratch.uri_with("&timeout=10m")).unwrap();
    connection
        .execute_batch(&format!(
            "PRAGMA page_size={page_size}; PRAGMA synchronous=OFF; PRAGMA cache_size=-8000;"
        ))
        .unwrap();
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
        .unwrap();
    let mut marks = Vec::new();
    for n in 0..17 {
        connection
            .execute("INSERT INTO t(b) VALUES(zeroblob(66000000))", [])
            .unwrap();
        connection
            .execute("INSERT INTO t(b) VALUES(randomblob(100000))", [])
            .unwrap();
        if n == 15 {
            marks.push(pragma_number(&connection, "replvfs_txid").unwrap());
        }
    }
    let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    assert!(
        pages > 0x4000_0000 / page_size + 100,
        "only {pages} pages: the lock page was not reached"
    );
    connection
        .execute("UPDATE t SET b = randomblob(2000) WHERE a % 2 = 0 AND a > 28", [])
        .unwrap();
    // Into pages that these had: of rows before the lock page, and of the last one, which is behind it.
    connection
        .execute("INSERT INTO t(b) VALUES(randomblob(250000))", [])
        .unwrap();
    flush(&connection);
    let newest = pragma_number(&connection, "replvfs_acked");
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();

    let out = scratch.file("restored.db");
    restore_txid(&scratch.replica(), &out, None);
    // Compared by another process, as closing a database file in this one would drop SQLite's locks.
    let copy = scratch.file("copy.db");
    assert!(
        Command::new("cp")
            .arg("--sparse=always")
            .arg(scratch.database())
            .arg(&copy)
            .status()
            .unwrap()
            .success()
    );
    let (mut left, mut right) = (File::open(&copy).unwrap(), File::open(&out).unwrap());
    assert_eq!(left.metadata().unwrap().len(), right.metadata().unwrap().len());
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let read = left.read(&mut a).unwrap();
        if read == 0 {
            break;
        }
        right.read_exact(&mut b[..read]).unwrap();
        assert!(
            a[..read] == b[..read],
            "the restored file differs within the MiB at {at}"
        );
        at += read;
    }
    std::fs::remove_file(&copy).unwrap();
    let replica = scratch.replica();
    if scratch.images(1).last().copied() != newest {
        let store = Store::open(&replica, &StoreOptions::default()).unwrap();
        block_on(make(&store, None, scratch.path())).unwrap();
    }
    // Of that image, and of an older one and the log since: only the last row is not there yet.
    read_from_both_sides(&replica, "", &out, 32..=35);
    let before = newest.unwrap() - 1;
    read_from_both_sides(&replica, &format!("&txid={before}"), &out, 32..=34);
    check_integrity(&out);
    std::fs::remove_file(&out).unwrap();

    // And a state before the lock page was reached.
    restore_txid(&scratch.replica(), &out, marks.first().copied());
    check_integrity(&out);
}

/// The rows around the lock page, out of the replica and out of the restored file: the zeros of row 33 begin before it and end behind it, and each of their pages
/// says where the next one is.
fn read_from_both_sides(replica: &str, parameters: &str, restored: &Path, rows: RangeInclusive<i64>) {
    let remote = open(&format!("file:app.db?vfs=replvfs-remote&replica={replica}{parameters}")).unwrap();
    let local = open(&format!("file:{}?immutable=1", restored.display())).unwrap();
    let content = |connection: &Connection, row: i64| -> Vec<u8> {
        connection
            .query_row("SELECT b FROM t WHERE a = ?1", [row], |row| row.get(0))
            .unwrap()
    };
    for row in rows {
        let (left, right) = (content(&local, row), content(&remote, row));
        assert!(left == right, "{parameters}: row {row} differs");
    }
}
