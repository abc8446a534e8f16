//! A replica that refuses write transactions: none gets through, none is half, and everything else goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod collector;

use std::path::{Path, PathBuf};

use collector::{Collector, beside, copied, open};
use rusqlite::{Connection, ErrorCode, ffi};

const MODES: [&str; 6] = ["WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"];
/// How a connection comes to have the file for itself, or not.
const LOCKINGS: [&str; 3] = ["NORMAL", "EXCLUSIVE", "LATER"];

/// With 20 rows, and a few pages that stay in memory.
fn with_rows(path: &Path, mode: &str, locking: &str) -> Connection {
    let connection = open(path);
    let before = if locking == "LATER" { "NORMAL" } else { locking };
    connection
        .execute_batch(&format!(
            "PRAGMA locking_mode={before}; PRAGMA journal_mode={mode}; PRAGMA cache_size=10;
             CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 20) INSERT INTO t SELECT i, zeroblob(3000) FROM n"
        ))
        .unwrap();
    if locking == "LATER" {
        connection
            .execute_batch("PRAGMA locking_mode=EXCLUSIVE; UPDATE t SET b=b WHERE a=1")
            .unwrap();
    }
    connection
}

/// How many rows there are, and what is in them.
fn content(connection: &Connection) -> (i64, i64) {
    let checked: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(checked, "ok");
    connection
        .query_row(
            "SELECT count(*), total(length(b)+(b<>zeroblob(3000))) FROM t",
            [],
            |row| Ok((row.get(0)?, row.get::<_, f64>(1)? as i64)),
        )
        .unwrap()
}

const ROWS: (i64, i64) = (20, 60_000);

fn is_refused(result: rusqlite::Result<()>) -> bool {
    result.is_err_and(|error| error.sqlite_error_code() == Some(ErrorCode::ReadOnly))
}

/// What somebody finds who comes after this process was killed.
fn left_behind(path: &Path, folder: &Path) -> (i64, i64) {
    let copy: PathBuf = folder.join("copy.db");
    for suffix in ["", "-wal", "-journal"] {
        let _ = std::fs::remove_file(beside(&copy, suffix));
    }
    copied(path, &copy);
    if beside(path, "-journal").exists() {
        let status = std::process::Command::new("cp")
            .arg(beside(path, "-journal"))
            .arg(beside(&copy, "-journal"))
            .status();
        assert!(status.unwrap().success());
    }
    content(&Connection::open(&copy).unwrap())
}

fn in_all_modes(test: impl Fn(&str, &Connection, &Path)) {
    for mode in MODES {
        for locking in LOCKINGS {
            let what = format!("{mode}, {locking}");
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            let connection = with_rows(&path, mode, locking);
            test(&what, &connection, &path);
            // Nothing of what was refused is on disk either.
            let now = content(&connection);
            assert_eq!(left_behind(&path, dir.path()), now, "{what}: after a crash");
            drop(connection);
            assert_eq!(
                content(&Connection::open(&path).unwrap()),
                now,
                "{what}: after the close"
            );
        }
    }
}

/// More than once: it stays refused after a rollback, too.
fn assert_all_refused(what: &str, connection: &Connection) {
    let before = content(connection);
    for sql in [
        "INSERT INTO t(b) VALUES(zeroblob(3000))",
        "BEGIN IMMEDIATE; UPDATE t SET b=zeroblob(7); COMMIT",
        "UPDATE t SET b=randomblob(3000)",
        "DELETE FROM t",
        "INSERT INTO t(b) VALUES(randomblob(900000))",
        "BEGIN; INSERT INTO t(b) VALUES(randomblob(900000)); DELETE FROM t WHERE a<10; COMMIT",
        "CREATE TABLE other(a)",
        "VACUUM",
        "INSERT OR FAIL INTO t(a, b) SELECT a+100, randomblob(60000) FROM t",
    ] {
        assert!(is_refused(connection.execute_batch(sql)), "{what}: {sql}");
        if !connection.is_autocommit() {
            // Some begin without a lock, and fail in the middle: then nothing of it can be committed.
            let committed = connection.execute_batch("COMMIT");
            assert!(committed.is_err() || connection.is_autocommit(), "{what}: {sql}");
            let _ = connection.execute_batch("ROLLBACK");
        }
        assert_eq!(content(connection), before, "{what}: {sql}");
    }
}

#[test]
fn write_transactions_are_refused_and_reads_go_on() {
    in_all_modes(|what, connection, path| {
        Collector::of(path).refuse();
        assert_eq!(content(connection), ROWS, "{what}");
        assert_all_refused(what, connection);
        assert_eq!(content(connection), ROWS, "{what}");
    });
}

/// One that has begun may end, or is refused. What it has spilled into the file is undone where it is rolled back.
#[test]
fn a_transaction_in_the_middle_is_never_half() {
    for end in ["COMMIT", "ROLLBACK"] {
        for spill in [false, true] {
            in_all_modes(|what, connection, path| {
                if end == "ROLLBACK" && what.starts_with("OFF") {
                    return; // Without a journal nothing can be rolled back.
                }
                let what = format!("{what}, {end}, {spill}");
                connection.execute_batch("BEGIN; UPDATE t SET b=zeroblob(9)").unwrap();
                if spill {
                    connection
                        .execute_batch("INSERT INTO t SELECT a+20, zeroblob(60000) FROM t")
                        .unwrap();
                }
                let written = content(connection);
                Collector::of(path).refuse();
                let ended = connection.execute_batch(end);
                let now = content(connection);
                match (end, &ended) {
                    ("COMMIT", Ok(())) => assert_eq!(now, written, "{what}"),
                    ("COMMIT", Err(_)) => assert!(is_refused(ended), "{what}"),
                    _ => ended.unwrap(),
                }
                assert!(now == written || now == ROWS, "{what}: {now:?}");
                assert!(connection.is_autocommit(), "{what}");
                assert_all_refused(&what, connection);
            });
        }
    }
}

/// At whichever of its questions a connection is told: between the lock and the first write, and between any two of them.
#[test]
fn whenever_it_is_told_no_transaction_is_half() {
    for spill in [false, true] {
        for questions in [0, 1, 2, 3, 4, 5, 6, 7, 20, 50] {
            in_all_modes(|what, connection, path| {
                let what = format!("{what}, {spill}, after {questions}");
                Collector::of(path).refuse_after(questions);
                let ended = connection.execute_batch(if spill {
                    "BEGIN; UPDATE t SET b=zeroblob(9); INSERT INTO t SELECT a+20, zeroblob(9000) FROM t; COMMIT"
                } else {
                    "UPDATE t SET b=zeroblob(9) WHERE a=7"
                });
                let is_open = !connection.is_autocommit();
                if is_open {
                    let _ = connection.execute_batch("ROLLBACK");
                }
                let now = content(connection);
                match ended {
                    Ok(()) => assert_ne!(now, ROWS, "{what}"),
                    Err(error) => {
                        assert!(is_refused(Err(error)), "{what}");
                        assert_eq!(now, ROWS, "{what}");
                    }
                }
                Collector::of(path).refuse();
                assert!(is_refused(connection.execute_batch("DELETE FROM t")), "{what}");
            });
        }
    }
}

/// The pages of the first one are in its file already, and synced, when the second one refuses.
#[test]
fn a_commit_of_two_databases_is_undone_in_both() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"] {
        for locking in LOCKINGS {
            let what = format!("{mode}, {locking}");
            let dir = tempfile::tempdir().unwrap();
            let (first, second) = (dir.path().join("app.db"), dir.path().join("second.db"));
            drop(with_rows(&second, mode, "NORMAL"));
            let connection = with_rows(&first, mode, locking);
            connection
                .execute_batch(&format!(
                    "ATTACH '{}' AS second; PRAGMA second.journal_mode={mode};
                     BEGIN; UPDATE main.t SET b=randomblob(60000); INSERT INTO second.t(b) VALUES('new')",
                    second.display()
                ))
                .unwrap();
            Collector::of(&first).refuse();
            Collector::of(&second).refuse();
            assert!(is_refused(connection.execute_batch("COMMIT")), "{what}");
            if !connection.is_autocommit() {
                connection.execute_batch("ROLLBACK").unwrap();
            }
            assert_eq!(content(&connection), ROWS, "{what}");
            assert_eq!(left_behind(&first, dir.path()), ROWS, "{what}");
            assert_all_refused(&what, &connection);
            drop(connection);
            for path in [&first, &second] {
                assert_eq!(content(&Connection::open(path).unwrap()), ROWS, "{what}");
            }
        }
    }
}

/// SQLite cuts the file when the transaction is committed already.
#[test]
fn what_is_cut_off_behind_a_commit_does_not_fail_it() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"] {
        for locking in LOCKINGS {
            let what = format!("{mode}, {locking}");
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            let before = open(&path);
            before
                .execute_batch("PRAGMA auto_vacuum=FULL; CREATE TABLE first(a)")
                .unwrap();
            drop(before);
            let connection = with_rows(&path, mode, locking);
            connection
                .execute_batch(
                    "BEGIN; UPDATE t SET b=zeroblob(60000); DELETE FROM t WHERE a>2; UPDATE t SET b=zeroblob(9)",
                )
                .unwrap();
            let written = content(&connection);
            Collector::of(&path).refuse();
            connection
                .execute_batch("COMMIT")
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(content(&connection), written, "{what}");
            let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
            let len = std::fs::metadata(&path).unwrap().len();
            assert_eq!(len, pages as u64 * 4096, "{what}");
            assert_all_refused(&what, &connection);
        }
    }
}

/// Then the file is longer than the database, and a rollback cuts it.
#[test]
fn a_file_that_grows_in_chunks_is_rolled_back() {
    in_all_modes(|what, connection, path| {
        if what.starts_with("OFF") {
            return; // Without a journal nothing can be rolled back.
        }
        let mut chunk: std::ffi::c_int = 1 << 20;
        // SAFETY: the connection is open, and used by this thread alone; for this control the argument is an int.
        let code = unsafe {
            let argument = (&raw mut chunk).cast();
            ffi::sqlite3_file_control(
                connection.handle(),
                c"main".as_ptr(),
                ffi::SQLITE_FCNTL_CHUNK_SIZE,
                argument,
            )
        };
        assert_eq!(code, ffi::SQLITE_OK, "{what}");
        connection
            .execute_batch("BEGIN; UPDATE t SET b=zeroblob(60000); ROLLBACK")
            .unwrap();
        connection
            .execute_batch("BEGIN IMMEDIATE; UPDATE t SET b=zeroblob(9) WHERE a=7")
            .unwrap();
        Collector::of(path).refuse();
        assert!(is_refused(connection.execute_batch("COMMIT")), "{what}");
        assert!(connection.is_autocommit(), "{what}");
        assert_eq!(content(connection), ROWS, "{what}");
        assert_all_refused(what, connection);
    });
}

/// Where nothing but the writes themselves tells where a transaction begins.
#[test]
fn after_a_spill_that_was_rolled_back_everything_is_refused() {
    in_all_modes(|what, connection, path| {
        if what.starts_with("OFF") {
            return;
        }
        connection
            .execute_batch("BEGIN; UPDATE t SET b=randomblob(60000); ROLLBACK")
            .unwrap();
        Collector::of(path).refuse();
        assert_all_refused(what, connection);
        assert_eq!(content(connection), ROWS, "{what}");
    });
}

#[test]
fn checkpoints_and_further_connections_work() {
    for locking in LOCKINGS {
        for checkpoint in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            let connection = with_rows(&path, "WAL", locking);
            Collector::of(&path).refuse();
            let (busy, log, done): (i64, i64, i64) = connection
                .query_row(&format!("PRAGMA wal_checkpoint({checkpoint})"), [], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })
                .unwrap();
            assert_eq!(busy, 0, "{locking} {checkpoint}");
            // What is read at that moment keeps a passive one from going on.
            assert!(
                done == log || checkpoint == "PASSIVE" && done < log,
                "{locking} {checkpoint}: {done} of {log}"
            );
            assert_eq!(content(&connection), ROWS, "{locking} {checkpoint}");
            assert_all_refused(&format!("{locking} {checkpoint}"), &connection);
            if locking == "NORMAL" {
                let second = open(&path);
                assert_eq!(content(&second), ROWS);
                assert_all_refused("a second connection", &second);
            }
        }
    }
}

/// A process was killed, and the one that finds its files refuses writes from the first moment on.
#[test]
fn what_a_crash_left_is_recovered() {
    for mode in ["WAL", "DELETE", "TRUNCATE", "PERSIST"] {
        for locking in ["NORMAL", "EXCLUSIVE"] {
            let what = format!("{mode} {locking}");
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            let connection = with_rows(&path, mode, "NORMAL");
            // Spilled, so that there are frames behind the last commit, or a journal that is hot.
            connection
                .execute_batch("BEGIN; UPDATE t SET b=randomblob(60000)")
                .unwrap();
            let crashed = dir.path().join("crashed.db");
            copied(&path, &crashed);
            if mode != "WAL" {
                std::fs::copy(beside(&path, "-journal"), beside(&crashed, "-journal")).unwrap();
            }
            let found = open(&crashed);
            Collector::of(&crashed).refuse();
            found.pragma_update(None, "locking_mode", locking).unwrap();
            assert_eq!(content(&found), ROWS, "{what}");
            assert_all_refused(&what, &found);
            drop(found);
            assert_eq!(content(&Connection::open(&crashed).unwrap()), ROWS, "{what}");
        }
    }
}

#[test]
fn the_journal_mode_stays() {
    for (from, to) in [("WAL", "DELETE"), ("DELETE", "WAL")] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let connection = with_rows(&path, from, "NORMAL");
        let version = std::fs::read(&path).unwrap()[18];
        Collector::of(&path).refuse();
        let changed = connection.query_row(&format!("PRAGMA journal_mode={to}"), [], |_| Ok(()));
        assert!(is_refused(changed), "{from} to {to}");
        assert_eq!(content(&connection), ROWS);
        assert_all_refused(from, &connection);
        drop(connection);
        assert_eq!(std::fs::read(&path).unwrap()[18], version, "{from} to {to}");
        assert_eq!(content(&Connection::open(&path).unwrap()), ROWS);
    }
}
