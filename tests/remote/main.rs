//! Reading a replica without restoring it: every state is what a restore of it gives, states are seen whole and in order, and requests are few.
#![allow(missing_docs)]

mod beside;
mod border;
mod faults;
mod follow;
mod requests;
mod travel;

use std::path::Path;

use replvfs_tests::{Rng, Scratch, flush, open, plain_image, pragma_number, restore_txid, use_wal};
use rusqlite::Connection;

/// The URI of a remote connection.
pub(crate) fn remote_uri(replica: &str, parameters: &str) -> String {
    format!("file:app.db?vfs=replvfs-remote&replica={replica}{parameters}")
}

pub(crate) fn remote(scratch: &Scratch, parameters: &str) -> Connection {
    let uri = remote_uri(&scratch.replica(), parameters);
    open(&uri).unwrap_or_else(|error| panic!("{uri}: {error}; {:?}", replvfs::last_open_error()))
}

/// Every page, as SQLite reads it.
pub(crate) fn pages(connection: &mut Connection) -> Vec<u8> {
    let mut pages = connection.serialize("main").expect("reading every page").to_vec();
    without_formats(&mut pages);
    pages
}

/// A remote database is never in WAL mode.
fn without_formats(pages: &mut [u8]) {
    if let Some(formats) = pages.get_mut(18..20) {
        formats.fill(1);
    }
}

pub(crate) fn restored(scratch: &Scratch, txid: u64) -> Vec<u8> {
    let out = scratch.file(&format!("restored-{txid}"));
    restore_txid(&scratch.replica(), &out, Some(txid));
    let mut pages = std::fs::read(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    without_formats(&mut pages);
    pages
}

pub(crate) fn number(connection: &Connection, sql: &str) -> i64 {
    connection
        .query_row(sql, [], |row| row.get(0))
        .unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// What a random writer does next.
fn step(connection: &Connection, rng: &mut Rng) {
    let rows = 1 + rng.below(60);
    let blob = 1 + rng.below(3000);
    let sql = match rng.below(10) {
        0..=4 => format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO t(b) SELECT randomblob({blob}) FROM n"
        ),
        5 | 6 => format!("UPDATE t SET b = zeroblob({blob}) WHERE a % {rows} = 0"),
        7 => "DELETE FROM t WHERE a % 2 = 0".to_owned(),
        8 => format!("CREATE TABLE IF NOT EXISTS other{rows}(x); INSERT INTO other{rows} VALUES(randomblob({blob}))"),
        _ => "DELETE FROM t; VACUUM".to_owned(),
    };
    connection.execute_batch(&sql).unwrap();
}

fn every_state(page_size: u32, auto_vacuum: u8, wal: bool, seed: u64) {
    let scratch = Scratch::in_memory();
    let connection = scratch.open();
    connection
        .execute_batch(&format!(
            "PRAGMA page_size = {page_size}; PRAGMA auto_vacuum = {auto_vacuum}; CREATE TABLE t(a INTEGER PRIMARY KEY, b)"
        ))
        .unwrap();
    if wal {
        use_wal(&connection);
    }
    let mut rng = Rng::new(seed);
    for round in 0..60 {
        step(&connection, &mut rng);
        if round % 7 == 0 {
            flush(&connection);
        }
    }
    flush(&connection);
    let last = pragma_number(&connection, "replvfs_acked").unwrap();
    let travelling = remote(&scratch, "&page_cache=4MiB");
    assert_eq!(
        number(&travelling, "SELECT count(*) FROM t"),
        number(&connection, "SELECT count(*) FROM t")
    );
    let mut seen = 0;
    for txid in 0..=last {
        let Some(expected) = restorable(&scratch, txid) else {
            continue;
        };
        seen += 1;
        let mut fixed = remote(&scratch, &format!("&txid={txid}"));
        assert!(
            pages(&mut fixed) == expected,
            "page size {page_size}, seed {seed}: txid {txid}"
        );
        assert_eq!(pragma_number(&fixed, "replvfs_txid"), Some(txid));
        travelling
            .execute_batch(&format!("PRAGMA replvfs_txid = {txid}"))
            .unwrap();
        let tables = "SELECT count(*) FROM sqlite_schema";
        assert_eq!(number(&travelling, tables), number(&fixed, tables), "txid {txid}");
        if number(&fixed, "SELECT count(*) FROM sqlite_schema WHERE name = 't'") == 1 {
            let rows = "SELECT sum(length(b)) + count(*) FROM t";
            let sum = |connection: &Connection| connection.query_row(rows, [], |row| row.get::<_, Option<i64>>(0));
            assert_eq!(sum(&travelling), sum(&fixed), "txid {txid}");
        }
    }
    assert!(seen > 40, "{seen} of {last}");
    let mut newest = remote(&scratch, "");
    connection.close().unwrap();
    let mut plain = plain_image(&scratch.database());
    without_formats(&mut plain);
    assert!(pages(&mut newest) == plain);
}

/// `None` for what no image is before: the txid that stands for what a history began with.
fn restorable(scratch: &Scratch, txid: u64) -> Option<Vec<u8>> {
    let oldest = oldest(&scratch.replica());
    (txid >= oldest).then(|| restored(scratch, txid))
}

fn oldest(replica: &str) -> u64 {
    let folder = replica.strip_prefix("fs://").unwrap();
    let images = Path::new(folder).join("gen/0000000000000001/image");
    let names = std::fs::read_dir(images).unwrap();
    let numbers = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    numbers
        .map(|name| u64::from_str_radix(&name, 16).unwrap())
        .min()
        .unwrap()
}

#[test]
fn every_state_reads_as_it_is_restored() {
    every_state(4096, 0, true, 1);
    every_state(512, 2, true, 2);
    every_state(65_536, 0, true, 3);
    every_state(1024, 1, false, 4);
}

#[test]
fn sqlite_has_all_its_ways_to_read() {
    let scratch = Scratch::in_memory();
    let connection = scratch.open();
    use_wal(&connection);
    connection
        .execute_batch(
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b, c);
             CREATE INDEX by_b ON t(b);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
             INSERT INTO t SELECT i, (i * 7919) % 20011, json_object('i', i, 'odd', i % 2) FROM n;
             CREATE VIRTUAL TABLE words USING fts5(body);
             INSERT INTO words SELECT 'row ' || a || CASE a % 100 WHEN 0 THEN ' hundred' ELSE '' END FROM t",
        )
        .unwrap();
    flush(&connection);
    let remote = remote(&scratch, "&page_cache=4MiB");
    for sql in [
        "SELECT count(*) FROM t",
        "SELECT sum(a * b) FROM t",
        "SELECT a FROM t WHERE b = 4711",
        "SELECT count(*) FROM words WHERE words MATCH 'hundred'",
        "SELECT sum(c ->> 'odd') FROM t",
        // Does not fit into the sorter's memory, so a temporary file is used.
        "SELECT a FROM (SELECT a, row_number() OVER (ORDER BY c || c || c || b) AS r FROM t) WHERE r = 12345",
        "SELECT count(*) FROM (SELECT sum(b) OVER (PARTITION BY a % 10 ORDER BY b) FROM t)",
        "SELECT count(*) FROM t x JOIN t y ON x.a = y.b",
    ] {
        let small = |connection: &Connection| {
            connection
                .execute_batch("PRAGMA cache_size = 20; PRAGMA temp_store = FILE")
                .unwrap();
            number(connection, sql)
        };
        assert_eq!(small(&remote), small(&connection), "{sql}");
    }
    let check: String = remote
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok");
    remote
        .execute_batch(
            "CREATE TEMP TABLE mine AS SELECT * FROM t WHERE a < 10; INSERT INTO mine SELECT * FROM t WHERE a = 77",
        )
        .unwrap();
    assert_eq!(number(&remote, "SELECT count(*) FROM mine"), 10);
}

#[test]
fn nothing_can_be_written() {
    let scratch = Scratch::in_memory();
    let connection = scratch.open();
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        .unwrap();
    flush(&connection);
    let remote = remote(&scratch, "");
    for sql in [
        "INSERT INTO t VALUES(2)",
        "CREATE TABLE u(a)",
        "VACUUM",
        "PRAGMA user_version = 7",
    ] {
        let error = remote.execute_batch(sql).unwrap_err();
        assert_eq!(
            error.sqlite_error_code(),
            Some(rusqlite::ErrorCode::ReadOnly),
            "{sql}: {error}"
        );
    }
    let mode: String = remote
        .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
        .unwrap();
    assert_eq!(mode, "delete");
    assert_eq!(number(&remote, "SELECT count(*) FROM t"), 1);
}

#[test]
fn a_file_of_the_same_name_on_this_machine_means_nothing() {
    let scratch = Scratch::in_memory();
    let connection = scratch.open();
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES(1)")
        .unwrap();
    flush(&connection);
    let local = scratch.file("local.db");
    for suffix in ["", "-journal", "-wal"] {
        std::fs::write(format!("{}{suffix}", local.display()), "something else").unwrap();
    }
    let uri = format!(
        "file:{}?vfs=replvfs-remote&replica={}",
        local.display(),
        scratch.replica()
    );
    assert_eq!(number(&open(&uri).unwrap(), "SELECT a FROM t"), 1);
    for suffix in ["", "-journal", "-wal"] {
        let kept = std::fs::read(format!("{}{suffix}", local.display())).unwrap();
        assert_eq!(kept, b"something else");
    }
}
