//! Other processes on the same database: plain SQLite, and a second one with replvfs.
//!
//! The other process is this test program once more, which runs the test `other_process` and does what its environment says.
#![allow(missing_docs)]

use replvfs_tests::peer::{self, SqlPeer as Other};
use replvfs_tests::{Scratch, compare_pages, flush, open, plain_image, pragma_number, restore_txid, status, use_wal};
use rusqlite::Connection;

#[test]
fn other_process() {
    peer::run_sql();
}

fn newest_is(scratch: &Scratch, truth: &[u8]) {
    let out = scratch.file("restored.db");
    restore_txid(&scratch.replica(), &out, None);
    compare_pages(truth, &std::fs::read(&out).unwrap()).unwrap();
    std::fs::remove_file(&out).unwrap();
}

#[test]
fn commits_of_a_plain_process_are_part_of_the_history() {
    let scratch = Scratch::new();
    let connection = scratch.open();
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    let mut other = Other::start(&format!("file:{}", scratch.database().display()));
    let mut expected = 0;
    let base = pragma_number(&connection, "replvfs_txid").unwrap();
    for round in 0..6 {
        for _ in 0..round {
            other.sql("INSERT INTO t(b) VALUES(randomblob(6000))");
            expected += 1;
        }
        other.sql("BEGIN; INSERT INTO t(b) VALUES('rolled back'); ROLLBACK");
        // Passive ones move pages, and leave the WAL as it is.
        other.sql("PRAGMA wal_checkpoint(PASSIVE)");
        connection
            .execute("INSERT INTO t(b) VALUES(randomblob(3000))", [])
            .unwrap();
        expected += 1;
        assert_eq!(pragma_number(&connection, "replvfs_txid"), Some(base + expected));
    }
    // Without a write of ours, asking is enough.
    other.sql("INSERT INTO t(b) VALUES('the last')");
    expected += 1;
    flush(&connection);
    assert_eq!(pragma_number(&connection, "replvfs_acked"), Some(base + expected));
    assert_eq!(status(&connection)["generation"], 1);
    newest_is(&scratch, &plain_image(&scratch.database()));
    for txid in base..=base + expected {
        let out = scratch.file("restored.db");
        restore_txid(&scratch.replica(), &out, Some(txid));
        let rows: i64 = Connection::open(&out)
            .unwrap()
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows as u64, txid - base);
        std::fs::remove_file(&out).unwrap();
    }
    other.end();
}

#[test]
fn a_plain_process_cannot_take_frames_away_unseen() {
    for restart in ["PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA wal_checkpoint(RESTART)"] {
        let scratch = Scratch::new();
        let connection = scratch.open();
        use_wal(&connection);
        connection
            .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES(1)")
            .unwrap();
        flush(&connection);
        let mut other = Other::start(&format!("file:{}", scratch.database().display()));
        other.sql("INSERT INTO t(b) VALUES(randomblob(50000))");
        other.sql(restart);
        other.sql("INSERT INTO t(b) VALUES(randomblob(500))");
        connection.execute_batch("INSERT INTO t(b) VALUES(2)").unwrap();
        flush(&connection);
        let newest = pragma_number(&connection, "replvfs_txid").unwrap();
        assert_eq!(status(&connection)["generation"], 1, "{restart}");
        newest_is(&scratch, &plain_image(&scratch.database()));
        // Each commit of the other one is a transaction of its own.
        for rows in 1..=4 {
            let out = scratch.file("earlier.db");
            restore_txid(&scratch.replica(), &out, Some(newest - 4 + rows));
            let found: i64 = Connection::open(&out)
                .unwrap()
                .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
                .unwrap();
            assert_eq!(found as u64, rows);
            std::fs::remove_file(&out).unwrap();
        }
        other.end();
    }
}

#[test]
fn one_process_replicates_and_the_next_takes_over() {
    let scratch = Scratch::new();
    let mut owner = Other::start(&scratch.uri_with("&flush_interval=10ms"));
    owner.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES('owner')");
    owner.sql("PRAGMA replvfs_flush");

    let connection = open(&scratch.uri_with("&flush_interval=10ms")).unwrap();
    connection.execute_batch("INSERT INTO t(b) VALUES('standby')").unwrap();
    assert_eq!(status(&connection)["owner"], false);
    // The owner is asked.
    flush(&connection);
    newest_is(&scratch, &plain_image(&scratch.database()));
    connection.execute_batch("INSERT INTO t(b) VALUES('unasked')").unwrap();
    // The owner sees to it.
    owner.sql("PRAGMA replvfs_flush");
    newest_is(&scratch, &plain_image(&scratch.database()));

    owner.end();
    // Each commit is an occasion to take over; the base comes with the transaction after it.
    let mut tries = 0;
    while status(&connection)["owner"] == false {
        connection
            .execute_batch("INSERT INTO t(b) VALUES(randomblob(2000))")
            .unwrap();
        tries += 1;
        assert!(tries < 100_000, "nobody took over");
    }
    connection
        .execute_batch("INSERT INTO t(b) VALUES('the new owner')")
        .unwrap();
    flush(&connection);
    newest_is(&scratch, &plain_image(&scratch.database()));
}

/// The owner is killed, and nobody tells those who write without replvfs.
#[test]
fn when_the_owner_is_killed_another_process_takes_over_beside_plain_writers() {
    let scratch = Scratch::new();
    let uri = scratch.uri_with("&flush_interval=10ms");
    let mut owner = Other::start(&uri);
    owner.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    owner.sql("PRAGMA replvfs_flush");
    let standby = open(&uri).unwrap();
    standby.execute_batch("INSERT INTO t(b) VALUES('standby')").unwrap();
    let mut plain = Other::start(&format!("file:{}", scratch.database().display()));
    let mut expected = 1;
    let mut write = |writer: &mut Other| {
        for _ in 0..5 {
            writer.sql("INSERT INTO t(b) VALUES(randomblob(6000))");
            expected += 1;
        }
    };
    write(&mut owner);
    write(&mut plain);
    owner.sql("INSERT INTO t(b) VALUES('the last words')");
    owner.kill();
    write(&mut plain);
    while status(&standby)["owner"] == false {
        std::thread::yield_now();
    }
    write(&mut plain);
    expected += 1;
    flush(&standby);
    let now = status(&standby);
    assert_eq!(
        (&now["generation"], &now["discontinuities"]),
        (&1.into(), &0.into()),
        "{now}"
    );
    newest_is(&scratch, &plain_image(&scratch.database()));
    let newest = pragma_number(&standby, "replvfs_txid").unwrap();
    for back in 0..=expected {
        let out = scratch.file("earlier.db");
        restore_txid(&scratch.replica(), &out, Some(newest - back));
        let found: i64 = Connection::open(&out)
            .unwrap()
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(found as u64, expected - back);
        std::fs::remove_file(&out).unwrap();
    }
    plain.end();
}

/// Nothing tells a standby that the owner was killed. It is about to restart the WAL, in which there is what is in no store yet.
#[test]
fn a_standby_takes_over_before_it_restarts_the_wal() {
    let scratch = Scratch::new();
    // Nobody looks by himself.
    let uri = scratch.uri_with("&flush_interval=1h");
    let mut owner = Other::start(&uri);
    owner.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    owner.sql("PRAGMA replvfs_flush");
    let standby = open(&uri).unwrap();
    standby
        .execute_batch("PRAGMA wal_autocheckpoint=1; INSERT INTO t(b) VALUES('standby')")
        .unwrap();
    for _ in 0..5 {
        owner.sql("INSERT INTO t(b) VALUES('the last words')");
    }
    assert_eq!(status(&standby)["owner"], false);
    owner.kill();
    for _ in 0..20 {
        standby.execute_batch("INSERT INTO t(b) VALUES('after')").unwrap();
    }
    assert_eq!(status(&standby)["owner"], true);
    flush(&standby);
    let now = status(&standby);
    assert_eq!(
        (&now["generation"], &now["discontinuities"]),
        (&1.into(), &0.into()),
        "{now}"
    );
    let newest = pragma_number(&standby, "replvfs_txid").unwrap();
    for back in 0..=26 {
        let out = scratch.file("earlier.db");
        restore_txid(&scratch.replica(), &out, Some(newest - back));
        let found: i64 = Connection::open(&out)
            .unwrap()
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(found as u64, 26 - back);
        std::fs::remove_file(&out).unwrap();
    }
}

/// Only who replicates has a history to lose: what the owner does to the WAL, or somebody through a rollback journal, is no news from a standby.
#[test]
fn a_standby_does_not_warn_of_what_others_do() {
    let scratch = Scratch::new();
    let owner = scratch.open();
    use_wal(&owner);
    owner.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)").unwrap();
    flush(&owner);
    let mut standby = Other::start(&scratch.uri());
    for mode in ["wal", "delete"] {
        standby.sql("INSERT INTO t(b) VALUES('standby')");
        flush(&owner);
        owner
            .execute_batch(&format!(
                "PRAGMA wal_checkpoint(TRUNCATE); INSERT INTO t(b) VALUES('in mode {mode}')"
            ))
            .unwrap();
        standby.sql("INSERT INTO t(b) VALUES('standby')");
        assert_eq!(standby.log(), "[]", "in mode {mode}");
        if mode == "wal" {
            assert_eq!(status(&owner)["discontinuities"], 0);
            standby.end();
            owner.query_row("PRAGMA journal_mode=DELETE", [], |_| Ok(())).unwrap();
            standby = Other::start(&scratch.uri());
        }
    }
    flush(&owner);
    assert_eq!(status(&owner)["owner"], true);
    newest_is(&scratch, &plain_image(&scratch.database()));
}

/// Numbers are those of whoever replicates the database. One of this process's own past is lower, and would be acknowledged at once when the
/// database comes back to it.
#[test]
fn a_process_that_gave_the_database_away_has_no_numbers_for_its_commits() {
    let scratch = Scratch::new();
    let uri = scratch.uri_with("&flush_interval=1h");
    let first = open(&uri).unwrap();
    use_wal(&first);
    first
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES('ours')")
        .unwrap();
    flush(&first);
    let before = pragma_number(&first, "replvfs_txid").unwrap();
    drop(first);
    let mut owner = Other::start(&uri);
    for _ in 0..20 {
        owner.sql("INSERT INTO t(b) VALUES('theirs')");
    }
    owner.sql("PRAGMA replvfs_flush");
    let standby = open(&uri).unwrap();
    for _ in 0..5 {
        standby.execute_batch("INSERT INTO t(b) VALUES('ours')").unwrap();
        assert_eq!(pragma_number(&standby, "replvfs_txid"), None);
        let now = status(&standby);
        assert!(now["owner"] == false && now["txid"].is_null(), "{now}");
    }
    owner.kill();
    while status(&standby)["owner"] == false {
        standby.execute_batch("INSERT INTO t(b) VALUES('ours')").unwrap();
    }
    standby.execute_batch("INSERT INTO t(b) VALUES('ours')").unwrap();
    let newest = pragma_number(&standby, "replvfs_txid").unwrap();
    assert!(newest > before + 25, "{newest}, and it was {before}");
    assert!(pragma_number(&standby, "replvfs_acked") < Some(newest));
    flush(&standby);
    newest_is(&scratch, &plain_image(&scratch.database()));
}

/// POSIX drops all locks of a process on a file when the process closes any descriptor of it. Images, other connections, flushes and closes
/// all open and close files.
#[test]
fn locks_outlive_what_replvfs_opens_and_closes() {
    for mode in ["WAL", "DELETE"] {
        let scratch = Scratch::new();
        let writer = scratch.open();
        writer
            .execute_batch(&format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES(randomblob(3000000))"
            ))
            .unwrap();
        let mut plain = Other::start(&format!("file:{}", scratch.database().display()));
        for round in 0..5 {
            writer
                .execute_batch("BEGIN IMMEDIATE; INSERT INTO t(b) VALUES('ours')")
                .unwrap();
            let reader = scratch.open();
            let rows: i64 = reader
                .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
                .unwrap();
            assert_eq!(rows, 1 + 2 * round);
            flush(&reader);
            drop(reader);
            plain.sql("PRAGMA busy_timeout=0");
            let refused = plain.run("INSERT INTO t(b) VALUES('theirs')");
            plain.sql("PRAGMA busy_timeout=60000");
            assert!(
                refused.contains("locked"),
                "{mode}: another process wrote into a transaction: {refused}"
            );
            writer.execute_batch("COMMIT").unwrap();
            plain.sql("INSERT INTO t(b) VALUES('theirs')");
        }
        flush(&writer);
        newest_is(&scratch, &plain_image(&scratch.database()));
        plain.end();
    }
}

/// The database may be on a file system of its own, and the folder for temporary files may be small, or not there.
#[test]
fn the_folder_for_temporary_files_is_not_needed() {
    for mode in ["WAL", "DELETE"] {
        let scratch = Scratch::in_memory();
        let uri = scratch.uri_with("&flush_interval=10ms");
        let start = || Other::start_with(&uri, &[("TMPDIR", "/proc/nowhere"), ("SQLITE_TMPDIR", "/proc/nowhere")]);
        let mut process = start();
        process.sql(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b)"
        ));
        // Larger than the memory for one transaction.
        process.sql("INSERT INTO t(b) VALUES(randomblob(900000))");
        process.sql("UPDATE t SET b = randomblob(2000000)");
        process.sql("PRAGMA replvfs_flush");
        let truth = plain_image(&scratch.database());
        process.end();
        newest_is(&scratch, &truth);
        // And restored, at the next opening.
        scratch.delete_database();
        std::fs::remove_file(scratch.file("app.db-replvfs")).unwrap();
        let mut process = start();
        process.sql("INSERT INTO t(b) VALUES('restored')");
        process.sql("PRAGMA replvfs_flush");
        newest_is(&scratch, &plain_image(&scratch.database()));
        process.end();
        let restored = restore_txid(&scratch.replica(), &scratch.file("restored.db"), None);
        assert_eq!(restored.generation.0, 1, "{mode}: something found no room");
    }
}

/// Two databases with one replica by mistake. Nothing keeps two machines apart yet, so a restore has to say it.
/// A new file that is given the replica of another ends the history of that one, and the process that wrote it says so.
#[test]
fn a_writer_that_was_replaced_is_fenced() {
    let scratch = Scratch::new();
    let connection = scratch.open();
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES('first')")
        .unwrap();
    flush(&connection);
    let elsewhere = scratch.file("elsewhere.db");
    let mut other = Other::start(&format!(
        "file:{}?vfs=replvfs&replica={}&restore=never",
        elsewhere.display(),
        scratch.replica()
    ));
    other.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES('second')");
    other.sql("PRAGMA replvfs_flush");
    let restore = |name: &str| restore_txid(&scratch.replica(), &scratch.file(name), None);
    let restored = restore("before.db");
    assert_eq!((restored.generation.0, restored.warnings.len()), (2, 0));
    let acked = pragma_number(&connection, "replvfs_acked");
    connection.execute_batch("INSERT INTO t VALUES('first again')").unwrap();
    let fenced = connection
        .query_row("PRAGMA replvfs_flush", [], |_| Ok(()))
        .unwrap_err();
    assert!(fenced.to_string().contains("another writer"), "{fenced}");
    assert_eq!(pragma_number(&connection, "replvfs_acked"), acked);
    assert_eq!(status(&connection)["fenced"], true);
    // The application goes on.
    connection.execute_batch("INSERT INTO t VALUES('and again')").unwrap();
    other.sql("INSERT INTO t VALUES('second again'); PRAGMA replvfs_flush");
    assert_eq!(restore("after.db").generation.0, 2);
    other.end();
}

/// Without a WAL nothing tells what another process did, but that it did something.
#[test]
fn commits_of_a_plain_process_through_a_rollback_journal_are_noticed() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"] {
        let scratch = Scratch::new();
        let connection = scratch.open();
        connection
            .execute_batch(&format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES(1)"
            ))
            .unwrap();
        flush(&connection);
        let mut other = Other::start(&format!("file:{}", scratch.database().display()));
        other.sql(&format!("PRAGMA journal_mode={mode}"));
        for generation in 2..5 {
            other.sql("UPDATE t SET b=randomblob(3000)");
            // Without a read or a write of ours, asking is enough.
            flush(&connection);
            assert_eq!(status(&connection)["generation"], generation, "{mode}");
            newest_is(&scratch, &plain_image(&scratch.database()));
            connection.execute_batch("INSERT INTO t(b) VALUES(2)").unwrap();
            flush(&connection);
            newest_is(&scratch, &plain_image(&scratch.database()));
        }
        other.end();
    }
}

/// It dies in the middle of a transaction that is in the database file already, in part.
#[test]
fn a_hot_journal_of_a_killed_process_is_rolled_back_before_the_history_goes_on() {
    for (killed_has_replvfs, open_before) in [(true, false), (false, false), (false, true)] {
        let scratch = Scratch::new();
        let uri = if killed_has_replvfs {
            scratch.uri_with("")
        } else {
            format!("file:{}", scratch.database().display())
        };
        let mut other = Other::start(&uri);
        other.sql("PRAGMA journal_mode=DELETE; PRAGMA cache_size=5; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
        other.sql("INSERT INTO t(b) VALUES(randomblob(300000))");
        if killed_has_replvfs {
            other.sql("PRAGMA replvfs_flush");
        }
        let committed = plain_image(&scratch.database());
        let before = open_before.then(|| {
            let connection = scratch.open();
            flush(&connection);
            connection
        });
        other.sql("BEGIN; UPDATE t SET b=randomblob(300000); INSERT INTO t(b) VALUES(randomblob(300000))");
        let torn = std::fs::read(scratch.database()).unwrap();
        assert_ne!(torn.len(), committed.len(), "nothing was spilled");
        other.kill();

        let connection = before.unwrap_or_else(|| scratch.open());
        let rows: i64 = connection
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 1);
        flush(&connection);
        newest_is(&scratch, &committed);
        connection.execute_batch("INSERT INTO t(b) VALUES(7)").unwrap();
        flush(&connection);
        newest_is(&scratch, &plain_image(&scratch.database()));
    }
}

/// A base that waits for the store has a lock on the file, where there is no WAL.
#[test]
fn a_store_that_is_away_keeps_no_other_process_from_committing() {
    for mode in ["WAL", "DELETE"] {
        let scratch = Scratch::new();
        let connection = scratch.open();
        connection
            .execute_batch(&format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b);
                 INSERT INTO t(b) VALUES(randomblob(3000000))"
            ))
            .unwrap();
        flush(&connection);
        let mut other = Other::start(&format!("file:{}", scratch.database().display()));
        let generations = scratch.file("replica/gen");
        std::fs::rename(&generations, scratch.file("away")).unwrap();
        std::fs::write(&generations, b"no folder").unwrap();
        // Nobody can tell what this was, so that a base is taken at the next read.
        other.sql("INSERT INTO t(b) VALUES(1)");
        let rows: i64 = connection
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 2);
        other.sql("PRAGMA busy_timeout=5000");
        assert_eq!(other.run("INSERT INTO t(b) VALUES(2)"), "ok", "{mode}");
        std::fs::remove_file(&generations).unwrap();
        std::fs::rename(scratch.file("away"), &generations).unwrap();
        flush(&connection);
        newest_is(&scratch, &plain_image(&scratch.database()));
        other.end();
    }
}

#[test]
fn whoever_closes_last_leaves_no_wal() {
    for _ in 0..15 {
        let scratch = Scratch::new();
        let mut all: Vec<Other> = (0..3)
            .map(|_| Other::start(&scratch.uri_with("&flush_interval=10ms")))
            .collect();
        all[0].sql("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
        for other in &mut all {
            other.sql("SELECT * FROM t");
        }
        for other in all {
            other.end();
        }
        for beside in ["app.db-wal", "app.db-shm"] {
            assert!(!scratch.file(beside).exists(), "{beside}");
        }
        newest_is(&scratch, &plain_image(&scratch.database()));
    }
}
