//! Points in time.

use replvfs_tests::{Scratch, flush, open, pragma_number, use_wal};
use rusqlite::Connection;

use super::{number, remote, remote_uri};

/// A row with each transaction, from a known one on. Returns the writer and the txid at which there is one row.
fn rows(scratch: &Scratch, count: u64) -> (Connection, u64) {
    let connection = scratch.open();
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY)")
        .unwrap();
    flush(&connection);
    let first = pragma_number(&connection, "replvfs_txid").unwrap() + 1;
    for _ in 0..count {
        connection.execute_batch("INSERT INTO t DEFAULT VALUES").unwrap();
    }
    flush(&connection);
    (connection, first)
}

fn text(connection: &Connection, sql: &str) -> Result<String, String> {
    connection
        .query_row(sql, [], |row| row.get(0))
        .map_err(|error| error.to_string())
}

#[test]
fn one_connection_goes_back_and_forth() {
    let scratch = Scratch::in_memory();
    let (writer, first) = rows(&scratch, 20);
    let remote = remote(&scratch, "");
    let count = || number(&remote, "SELECT count(*) FROM t");
    assert_eq!(count(), 20);
    for (txid, expected) in [
        (first, 1),
        (first + 9, 10),
        (first + 3, 4),
        (first + 19, 20),
        (first, 1),
    ] {
        assert_eq!(
            text(&remote, &format!("PRAGMA replvfs_txid = {txid}")),
            Ok(txid.to_string())
        );
        assert_eq!(count(), expected);
        assert_eq!(pragma_number(&remote, "replvfs_txid"), Some(txid));
    }
    writer.execute_batch("INSERT INTO t DEFAULT VALUES").unwrap();
    flush(&writer);
    assert_eq!(count(), 1, "a fixed point");
    text(&remote, "PRAGMA replvfs_at = 'latest'").unwrap();
    assert_eq!(count(), 21);
    // By time: that of the last transaction is its own.
    let now = text(&remote, "PRAGMA replvfs_at").unwrap();
    text(&remote, &format!("PRAGMA replvfs_at = '{now}'")).unwrap();
    assert_eq!(count(), 21);
}

#[test]
fn a_schema_that_was_another_is_seen_as_it_was() {
    let scratch = Scratch::in_memory();
    let (writer, first) = rows(&scratch, 3);
    writer
        .execute_batch("ALTER TABLE t ADD COLUMN b DEFAULT 7; INSERT INTO t(b) VALUES(8)")
        .unwrap();
    flush(&writer);
    let remote = remote(&scratch, "");
    assert_eq!(number(&remote, "SELECT sum(b) FROM t"), 29);
    let mut prepared = remote.prepare("SELECT count(*) FROM t").unwrap();
    text(&remote, &format!("PRAGMA replvfs_txid = {first}")).unwrap();
    assert_eq!(prepared.query_row([], |row| row.get::<_, i64>(0)), Ok(1));
    let error = text(&remote, "SELECT b FROM t").unwrap_err();
    assert!(error.contains("no such column"), "{error}");
    text(&remote, "PRAGMA replvfs_at = latest").unwrap();
    assert_eq!(number(&remote, "SELECT sum(b) FROM t"), 29);
}

#[test]
fn not_within_a_transaction() {
    let scratch = Scratch::in_memory();
    let (_writer, first) = rows(&scratch, 3);
    let remote = remote(&scratch, "");
    remote.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
    let error = text(&remote, &format!("PRAGMA replvfs_txid = {first}")).unwrap_err();
    assert!(error.contains("sees one state"), "{error}");
    assert_eq!(number(&remote, "SELECT count(*) FROM t"), 3);
    remote.execute_batch("COMMIT").unwrap();
    text(&remote, &format!("PRAGMA replvfs_txid = {first}")).unwrap();
    assert_eq!(number(&remote, "SELECT count(*) FROM t"), 1);
}

#[test]
fn two_points_in_time_beside_each_other() {
    let scratch = Scratch::in_memory();
    let (_writer, first) = rows(&scratch, 20);
    let remote = remote(&scratch, &format!("&txid={}", first + 11));
    let then = remote_uri(&scratch.replica(), &format!("&txid={}", first + 4));
    remote.execute_batch(&format!("ATTACH '{then}' AS earlier")).unwrap();
    let changed = "SELECT group_concat(a) FROM (SELECT a FROM main.t EXCEPT SELECT a FROM earlier.t)";
    assert_eq!(text(&remote, changed), Ok("6,7,8,9,10,11,12".to_owned()));
    text(&remote, &format!("PRAGMA earlier.replvfs_txid = {}", first + 9)).unwrap();
    assert_eq!(text(&remote, changed), Ok("11,12".to_owned()));
}

#[test]
fn what_is_not_there_is_said() {
    let scratch = Scratch::in_memory();
    let (_writer, first) = rows(&scratch, 3);
    for (parameters, named) in [
        ("&txid=99999".to_owned(), "transaction 99999 is not in the history"),
        (
            "&at=2001-01-01T00:00:00Z".to_owned(),
            "2001-01-01T00:00:00Z is not in the history",
        ),
        ("&txid=3&follow=1s".to_owned(), "follow goes on from the newest state"),
        ("&page_cache=1".to_owned(), "out of bounds"),
        ("&flush_interval=1s".to_owned(), "not a URI parameter"),
    ] {
        assert!(
            open(&remote_uri(&scratch.replica(), &parameters)).is_err(),
            "{parameters}"
        );
        let error = replvfs::last_open_error().unwrap();
        assert!(error.contains(named), "{parameters}: {error}");
    }
    let nowhere = remote_uri(&scratch.replica_named("nothing"), "");
    assert!(open(&nowhere).is_err());
    let error = replvfs::last_open_error().unwrap();
    assert!(error.contains("nothing"), "{error}");
    let remote = remote(&scratch, "");
    for (pragma, named) in [
        ("replvfs_txid = 99999", "not in the history"),
        ("replvfs_at = noon", "noon is not a time"),
        ("replvfs_flush", "no PRAGMA replvfs_flush here"),
        ("replvfs_status = 1", "takes no value"),
    ] {
        let error = text(&remote, &format!("PRAGMA {pragma}")).unwrap_err();
        assert!(error.contains(named), "{pragma}: {error}");
    }
    assert_eq!(number(&remote, "SELECT count(*) FROM t"), 3);
    text(&remote, &format!("PRAGMA replvfs_txid = {first}")).unwrap();
}
