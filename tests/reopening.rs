//! Programs that open a connection for each piece of work, and close it again: one history, one image.
#![allow(missing_docs)]

use replvfs::format::Generation;
use replvfs::history::Target;
use replvfs::restore::RestoreOptions;
use replvfs_tests::{Scratch, flush, open, pragma_number, restore_txid, restore_with, status, use_wal};
use replvfs_vfs::types::Txid;
use rusqlite::Connection;

#[test]
fn a_connection_for_each_write_makes_one_history() {
    let scratch = Scratch::new();
    {
        let connection = scratch.open();
        use_wal(&connection);
        connection
            .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
            .unwrap();
    }
    for n in 1..=40_u64 {
        let connection = scratch.open();
        assert!(
            !scratch.file("app.db-wal").exists(),
            "the last close removes the WAL, as without replvfs"
        );
        connection
            .execute("INSERT INTO t(b) VALUES(randomblob(1000))", [])
            .unwrap();
        assert_eq!(pragma_number(&connection, "replvfs_txid"), Some(n + 1));
        if n % 10 == 0 {
            // Some only read.
            drop(connection);
            let reader = scratch.open();
            let rows: i64 = reader
                .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
                .unwrap();
            assert_eq!(rows as u64, n);
        }
    }
    let connection = scratch.open();
    connection.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
    flush(&connection);
    assert_eq!(status(&connection)["generation"], 1);
    for txid in 1..=41 {
        let out = scratch.file("restored.db");
        restore_txid(&scratch.replica(), &out, Some(txid));
        let restored = Connection::open(&out).unwrap();
        let rows: i64 = restored
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows as u64, txid - 1);
        drop(restored);
        std::fs::remove_file(&out).unwrap();
    }
}

#[test]
fn what_plain_sqlite_writes_between_is_noticed() {
    let scratch = Scratch::new();
    for n in 0..20_i64 {
        let connection = scratch.open();
        use_wal(&connection);
        connection
            .execute_batch("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)")
            .unwrap();
        connection.execute("INSERT INTO t(b) VALUES('ours')", []).unwrap();
        drop(connection);
        // At once, so that the clock of the file system has hardly ticked; without a change of the file's size.
        let plain = Connection::open(scratch.database()).unwrap();
        plain.execute("UPDATE t SET b = 'them' || ?1", [n % 10]).unwrap();
        drop(plain);
        let connection = open(&scratch.uri()).unwrap();
        let truth: String = connection
            .query_row("SELECT group_concat(b) FROM t", [], |row| row.get(0))
            .unwrap();
        flush(&connection);
        drop(connection);
        let out = scratch.file("restored.db");
        restore_txid(&scratch.replica(), &out, None);
        let restored = Connection::open(&out).unwrap();
        let there: String = restored
            .query_row("SELECT group_concat(b) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(there, truth, "round {n}");
        drop(restored);
        std::fs::remove_file(&out).unwrap();
    }
}

/// A backup of the files is put back, with what replvfs remembers beside them. The replica is ahead of it.
#[test]
fn an_older_copy_in_the_databases_place_is_a_divergence() {
    let scratch = Scratch::new();
    let write = |text: &str, rows: i64| {
        let connection = scratch.open();
        use_wal(&connection);
        connection
            .execute_batch("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)")
            .unwrap();
        for _ in 0..rows {
            connection.execute("INSERT INTO t(b) VALUES(?1)", [text]).unwrap();
        }
        flush(&connection);
        (pragma_number(&connection, "replvfs_txid").unwrap(), status(&connection))
    };
    let content = |txid: Option<u64>, generation: Option<u64>| {
        let out = scratch.file("restored.db");
        let options = RestoreOptions {
            target: txid.map_or(Target::Newest, |txid| Target::Txid(Txid(txid))),
            generation: generation.map(Generation),
            ..RestoreOptions::default()
        };
        restore_with(&scratch.replica(), &out, &options).unwrap();
        let content: String = Connection::open(&out)
            .unwrap()
            .query_row("SELECT group_concat(b) FROM t", [], |row| row.get(0))
            .unwrap();
        std::fs::remove_file(&out).unwrap();
        content
    };
    let (old, _) = write("old", 2);
    let files = ["app.db", "app.db-replvfs"];
    for file in files {
        std::fs::copy(scratch.file(file), scratch.file(&format!("{file}.backup"))).unwrap();
    }
    let (lost, before) = write("lost", 3);
    assert_eq!((&before["generation"], &before["diverged"]), (&1.into(), &false.into()));
    for file in files {
        std::fs::copy(scratch.file(&format!("{file}.backup")), scratch.file(file)).unwrap();
    }
    let (new, after) = write("new", 1);
    assert_eq!(
        (&after["generation"], &after["discontinuities"], &after["diverged"]),
        (&2.into(), &1.into(), &true.into()),
        "{after}"
    );
    assert!(new > lost, "a number stands for two states");
    assert_eq!(content(None, None), "old,old,new");
    assert_eq!(content(Some(old), None), "old,old");
    // The new generation does not come after it.
    assert_eq!(content(Some(lost), Some(1)), "old,old,lost,lost,lost");
}

fn writes(connection: &Connection, text: &str, rows: i64) {
    for _ in 0..rows {
        connection.execute("INSERT INTO t(b) VALUES(?1)", [text]).unwrap();
    }
}

fn newest_content(scratch: &Scratch) -> String {
    let out = scratch.file("restored.db");
    restore_txid(&scratch.replica(), &out, None);
    let content = content_of(&Connection::open(&out).unwrap());
    std::fs::remove_file(&out).unwrap();
    content
}

fn content_of(connection: &Connection) -> String {
    connection
        .query_row("SELECT group_concat(b) FROM t", [], |row| row.get(0))
        .unwrap()
}

const RARELY: &str = "&flush_interval=1h";

fn with_ten(scratch: &Scratch) -> u64 {
    let connection = open(&scratch.uri_with(RARELY)).unwrap();
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    writes(&connection, "old", 10);
    flush(&connection);
    pragma_number(&connection, "replvfs_acked").unwrap()
}

fn restore_in_place(scratch: &Scratch, txid: u64) {
    scratch.delete_database();
    let options = RestoreOptions {
        target: Target::Txid(Txid(txid)),
        resumable: true,
        ..RestoreOptions::default()
    };
    restore_with(&scratch.replica(), &scratch.database(), &options).unwrap();
}

/// The numbers begin at a lower one again. What was acknowledged of the history that was left says nothing of them.
#[test]
fn what_was_acknowledged_before_an_older_state_was_restored_says_nothing_of_what_comes_after_it() {
    for asks_first in [false, true] {
        let scratch = Scratch::new();
        let before = with_ten(&scratch);
        restore_in_place(&scratch, before - 5);
        let connection = open(&scratch.uri_with(RARELY)).unwrap();
        if asks_first {
            assert_eq!(content_of(&connection), "old,old,old,old,old");
        }
        writes(&connection, "new", 2);
        let number = pragma_number(&connection, "replvfs_txid").unwrap();
        assert!(
            number < before,
            "{number} is new: this test is of numbers that came before"
        );
        let acked = pragma_number(&connection, "replvfs_acked");
        assert!(
            acked < Some(number),
            "{number} is not in the store, and {acked:?} is acknowledged"
        );
        flush(&connection);
        assert_eq!(newest_content(&scratch), "old,old,old,old,old,new,new");
        assert!(pragma_number(&connection, "replvfs_acked") >= Some(number));
    }
}

/// A database of which nobody remembers anything, and a replica in which nothing is.
#[test]
fn what_was_acknowledged_in_a_replica_that_was_emptied_says_nothing() {
    let scratch = Scratch::new();
    let before = with_ten(&scratch);
    for entry in std::fs::read_dir(scratch.file("replica")).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => std::fs::remove_dir_all(path).unwrap(),
            false => std::fs::remove_file(path).unwrap(),
        }
    }
    std::fs::remove_file(scratch.file("app.db-replvfs")).unwrap();
    let connection = open(&scratch.uri_with(RARELY)).unwrap();
    assert_eq!(content_of(&connection).split(',').count(), 10);
    flush(&connection);
    assert_eq!(
        newest_content(&scratch).split(',').count(),
        10,
        "{before} was acknowledged"
    );
    assert!(pragma_number(&connection, "replvfs_txid") <= pragma_number(&connection, "replvfs_acked"));
}

/// As long as the store has not answered nothing is known to be acknowledged, but what the history was taken up from does not wait for anything.
#[test]
fn what_the_history_is_taken_up_from_is_not_said_to_wait() {
    let scratch = Scratch::new();
    let before = with_ten(&scratch);
    restore_in_place(&scratch, before - 5);
    let generations = scratch.file("replica/gen");
    std::fs::rename(&generations, scratch.file("away")).unwrap();
    std::fs::write(&generations, b"no folder").unwrap();
    let connection = open(&scratch.uri_with(RARELY)).unwrap();
    assert_eq!(content_of(&connection).split(',').count(), 5);
    for waiting in 0..=2 {
        let now = status(&connection);
        assert_eq!(
            (&now["txid"], &now["acked"], &now["pending_transactions"]),
            (
                &(before - 5 + waiting).into(),
                &serde_json::Value::Null,
                &waiting.into()
            ),
            "{now}"
        );
        writes(&connection, "new", 1);
    }
    std::fs::remove_file(&generations).unwrap();
    std::fs::rename(scratch.file("away"), &generations).unwrap();
    flush(&connection);
    let now = status(&connection);
    assert_eq!(
        (&now["txid"], &now["pending_transactions"]),
        (&now["acked"], &0.into()),
        "{now}"
    );
    assert_eq!(newest_content(&scratch), content_of(&connection));
}

/// Programs remove a folder right after the last close, and tests of programs all the more.
#[test]
fn a_database_that_is_closed_makes_no_file_again() {
    let scratch = Scratch::new();
    let often = "flush_interval=10ms";
    let clock = open(&scratch.uri_with(&format!("&{often}"))).unwrap();
    clock.execute_batch("CREATE TABLE t(a)").unwrap();
    for round in 0..20 {
        let folder = scratch.file(&format!("folder-{round}"));
        std::fs::create_dir(&folder).unwrap();
        let (database, replica) = (folder.join("app.db"), scratch.replica_named(&format!("of-{round}")));
        let connection = open(&format!(
            "file:{}?vfs=replvfs&replica={replica}&{often}",
            database.display()
        ))
        .unwrap();
        if round % 2 == 0 {
            use_wal(&connection);
        }
        connection.execute_batch("CREATE TABLE t(a)").unwrap();
        drop(connection);
        for file in std::fs::read_dir(&folder).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
        // An interval that begins now is over.
        clock.execute_batch("INSERT INTO t VALUES(1)").unwrap();
        let written = pragma_number(&clock, "replvfs_txid");
        while pragma_number(&clock, "replvfs_acked") < written {
            std::thread::yield_now();
        }
        std::fs::remove_dir(&folder).unwrap();
    }
}
