//! `durability=remote`: a commit that has returned is in the store, whatever becomes of the machine.
#![allow(missing_docs)]

mod corners;
mod standby;

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Wake};
use std::thread::Thread;
use std::time::Duration;

use replvfs::config::{Durability, OnTimeout};
use replvfs::{Config, Replication, Txid};
use replvfs_tests::weather::{FaultyStore, Storm, Trouble};
use replvfs_tests::{Scratch, flush, open, pragma_number, restore_txid, status, use_wal};
use rusqlite::{Connection, ErrorCode};

/// So late that nothing is uploaded but for who waits.
const NEVER: &str = "&flush_interval=1h&durability=remote";

fn rows(path: &std::path::Path) -> i64 {
    let restored = Connection::open(path).unwrap();
    restored
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap()
}

/// What another machine would have.
fn rows_elsewhere(scratch: &Scratch) -> i64 {
    let out = scratch.file("elsewhere.db");
    restore_txid(&scratch.replica(), &out, None);
    let rows = rows(&out);
    std::fs::remove_file(out).unwrap();
    rows
}

/// The process that a test starts beside itself.
#[test]
fn other_process() {
    replvfs_tests::peer::run_sql();
}

#[test]
fn a_commit_that_has_returned_is_in_the_store() {
    for locking in ["NORMAL", "EXCLUSIVE"] {
        for journal in ["WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"] {
            let scratch = Scratch::in_memory();
            let connection = open(&scratch.uri_with(NEVER)).unwrap();
            connection
                .execute_batch(&format!(
                    "PRAGMA locking_mode={locking}; PRAGMA journal_mode={journal}; CREATE TABLE t(a INTEGER PRIMARY KEY, b)"
                ))
                .unwrap();
            assert_eq!(rows_elsewhere(&scratch), 0, "{locking} {journal}");
            for expected in 1..=5 {
                connection
                    .execute_batch("INSERT INTO t(b) VALUES(randomblob(5000))")
                    .unwrap();
                assert_eq!(rows_elsewhere(&scratch), expected, "{locking} {journal}");
            }
            connection
                .execute_batch("BEGIN; INSERT INTO t(b) VALUES(1); INSERT INTO t(b) VALUES(2); COMMIT; PRAGMA wal_checkpoint(TRUNCATE)")
                .unwrap();
            connection.execute_batch("DELETE FROM t WHERE a = 1").unwrap();
            assert_eq!(rows_elsewhere(&scratch), 6, "{locking} {journal}");
            assert_eq!(status(&connection)["generation"], 1, "{locking} {journal}");
        }
    }
}

/// Each connection says for itself whether its commits wait, by its URI or at any time.
#[test]
fn one_unimportant_write_need_not_wait() {
    let scratch = Scratch::in_memory();
    let connection = open(&scratch.uri_with(NEVER)).unwrap();
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    let level = |connection: &Connection, set: &str| -> String {
        connection
            .query_row(&format!("PRAGMA replvfs_durability{set}"), [], |row| row.get(0))
            .unwrap()
    };
    assert_eq!(level(&connection, ""), "remote");
    assert_eq!(level(&connection, "=async"), "async");
    connection.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
    assert_eq!(rows_elsewhere(&scratch), 0);
    let txid = pragma_number(&connection, "replvfs_txid").unwrap();
    let other = open(&scratch.uri_with("&flush_interval=1h&durability=async")).unwrap();
    let third = open(&scratch.uri()).unwrap();
    assert_eq!(
        (level(&other, ""), level(&third, "")),
        ("async".into(), "remote".into())
    );
    other.execute_batch("INSERT INTO t(b) VALUES(2)").unwrap();
    assert_eq!(rows_elsewhere(&scratch), 0);
    assert!(pragma_number(&other, "replvfs_acked") < Some(txid));
    assert_eq!(level(&other, "='REMOTE'"), "remote");
    other.execute_batch("INSERT INTO t(b) VALUES(3)").unwrap();
    assert_eq!(rows_elsewhere(&scratch), 3);
    let waited: String = connection
        .query_row(&format!("PRAGMA replvfs_wait={txid}"), [], |row| row.get(0))
        .unwrap();
    assert!(waited.parse::<u64>().unwrap() > txid, "{waited}");
    for wrong in [
        "replvfs_durability=best",
        "replvfs_wait",
        "replvfs_wait=soon",
        "replvfs_flush=1",
    ] {
        let refused = connection
            .query_row(&format!("PRAGMA {wrong}"), [], |_| Ok(()))
            .unwrap_err();
        assert!(
            refused.to_string().contains(wrong.split('=').next().unwrap()),
            "{refused}"
        );
    }
}

/// A database of its own, in a store that fails on demand.
fn with_a_faulty_store(name: &str, on_timeout: OnTimeout, timeout: Duration) -> (Scratch, FaultyStore, String) {
    let (scratch, store) = (Scratch::in_memory(), FaultyStore::new(true));
    let config = Config::default()
        .vfs_name(name)
        .operator(store.faulty.clone())
        .durability(Durability::Remote)
        .on_timeout(on_timeout)
        .flush_interval(Duration::from_secs(3600))
        .timeout(timeout);
    replvfs::register(config).unwrap();
    let uri = format!("file:{}?vfs={name}", scratch.database().display());
    let connection = open(&uri).unwrap();
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    (scratch, store, uri)
}

/// A patience for who waits in vain.
const SOON: Duration = Duration::from_millis(500);

fn rows_here(connection: &Connection) -> i64 {
    connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap()
}

fn storm(trouble: Trouble) -> Option<Storm> {
    Some(Storm::lasting(trouble))
}

/// SQLite has no word for "committed here, and not there"; the connection goes on.
#[test]
fn what_cannot_be_confirmed_in_time_is_an_error_and_stays() {
    for (name, trouble) in [("hangs", Trouble::Hang), ("refuses", Trouble::Temporary)] {
        for journal in ["WAL", "DELETE", "PERSIST"] {
            let (scratch, store, uri) = with_a_faulty_store(&format!("{name}-{journal}"), OnTimeout::Error, SOON);
            let connection = open(&uri).unwrap();
            connection
                .execute_batch(&format!("PRAGMA journal_mode={journal}; INSERT INTO t(b) VALUES(0)"))
                .unwrap();
            store.weather.storm(storm(trouble));
            for done in 1..=2 {
                let error = connection.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap_err();
                assert_eq!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure), "{error}");
                assert!(connection.is_autocommit());
                assert_eq!(rows_here(&connection), 1 + done, "{journal}");
            }
            let txid = pragma_number(&connection, "replvfs_txid").unwrap();
            assert!(pragma_number(&connection, "replvfs_acked") < Some(txid));
            store.weather.clear_up_and_lose_connections();
            while pragma_number(&connection, "replvfs_acked") < Some(txid) {
                std::thread::yield_now();
            }
            connection.execute_batch("INSERT INTO t(b) VALUES(2)").unwrap();
            assert_eq!(rows_here(&connection), 4);
            assert_eq!(pragma_number(&connection, "replvfs_acked"), Some(txid + 1));
            assert_eq!(status(&connection)["discontinuities"], 0, "{journal}");
            drop((connection, scratch));
        }
    }
}

#[test]
fn with_continue_a_commit_returns_when_the_time_is_over() {
    let (_scratch, store, uri) = with_a_faulty_store("goes-on", OnTimeout::Continue, SOON);
    let connection = open(&uri).unwrap();
    store.weather.storm(storm(Trouble::Hang));
    connection.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
    let txid = pragma_number(&connection, "replvfs_txid").unwrap();
    assert!(pragma_number(&connection, "replvfs_acked") < Some(txid));
    store.weather.clear_up_and_lose_connections();
    flush(&connection);
    assert_eq!(pragma_number(&connection, "replvfs_acked"), Some(txid));
}

/// While one upload is on its way the others gather, and go together.
#[test]
fn those_that_wait_share_an_upload() {
    const WRITERS: usize = 16;
    let (_scratch, store, uri) = with_a_faulty_store("gather", OnTimeout::Error, Duration::from_secs(30));
    let connection = open(&uri).unwrap();
    let before = pragma_number(&connection, "replvfs_txid").unwrap();
    store.weather.storm(storm(Trouble::Hang));
    let begin = Barrier::new(WRITERS);
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                let writer = open(&uri).unwrap();
                begin.wait();
                writer.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
            });
        }
        // All are committed here, though the first one waits.
        while rows_here(&connection) < WRITERS as i64 {
            std::thread::yield_now();
        }
        store.weather.clear_up_and_lose_connections();
    });
    let newest = before + WRITERS as u64;
    assert_eq!(pragma_number(&connection, "replvfs_acked"), Some(newest));
    let segments = store.weather.traffic().puts;
    assert!(segments <= 3, "{segments} uploads for {WRITERS} commits");
}

/// SQLite commits those with a super-journal, and takes no error after that.
#[test]
fn a_transaction_over_two_databases_is_confirmed_or_refused() {
    for journal in ["WAL", "DELETE", "PERSIST"] {
        let scratch = Scratch::in_memory();
        let connection = open(&scratch.uri_with(NEVER)).unwrap();
        let other = format!(
            "file:{}?vfs=replvfs&replica={}{NEVER}",
            scratch.file("other.db").display(),
            scratch.replica_named("other-replica")
        );
        connection.execute("ATTACH ?1 AS other", [&other]).unwrap();
        connection
            .execute_batch(&format!(
                "PRAGMA main.journal_mode={journal}; PRAGMA other.journal_mode={journal};
                 CREATE TABLE main.t(a INTEGER PRIMARY KEY, b); CREATE TABLE other.t(a INTEGER PRIMARY KEY, b)"
            ))
            .unwrap();
        let both = "BEGIN; INSERT INTO main.t(b) VALUES(1); INSERT INTO other.t(b) VALUES(1); COMMIT";
        let count = |database: &str| -> i64 {
            connection
                .query_row(&format!("SELECT count(*) FROM {database}.t"), [], |row| row.get(0))
                .unwrap()
        };
        if journal == "WAL" {
            connection.execute_batch(both).unwrap();
        } else {
            let refused = connection.execute_batch(both).unwrap_err();
            assert_eq!(refused.sqlite_error_code(), Some(ErrorCode::Unknown), "{refused}");
            let _ = connection.execute_batch("ROLLBACK");
            assert_eq!((count("main"), count("other")), (0, 0), "{journal}");
            connection
                .execute_batch("PRAGMA main.replvfs_durability=async; PRAGMA other.replvfs_durability=async")
                .unwrap();
            connection.execute_batch(both).unwrap();
            connection
                .execute_batch("PRAGMA main.replvfs_flush; PRAGMA other.replvfs_flush")
                .unwrap();
        }
        assert_eq!((count("main"), count("other")), (1, 1), "{journal}");
        assert_eq!(rows_elsewhere(&scratch), 1, "{journal}");
        let out = scratch.file("other-elsewhere.db");
        restore_txid(&scratch.replica_named("other-replica"), &out, None);
        assert_eq!(rows(&out), 1, "{journal}");
    }
}

/// An executor that is nobody's: each wake is a turn.
fn poll_here<T>(work: impl Future<Output = T>) -> T {
    struct Turn(Thread);
    impl Wake for Turn {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut work = pin!(work);
    let waker = Arc::new(Turn(std::thread::current())).into();
    loop {
        match work.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => return done,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// For who has no connection at hand, or an executor on which nobody may wait.
#[test]
fn a_program_waits_without_a_connection() {
    let scratch = Scratch::in_memory();
    assert!(Replication::of(scratch.database()).is_none());
    let connection = open(&scratch.uri_with("&flush_interval=1h")).unwrap();
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    let link = scratch.file("link.db");
    std::os::unix::fs::symlink(scratch.database(), &link).unwrap();
    let replication = Replication::of(&link).unwrap();
    let insert = || connection.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
    insert();
    let txid = Txid(pragma_number(&connection, "replvfs_txid").unwrap());
    assert_eq!(replication.flush().unwrap(), Some(txid));
    assert_eq!((replication.acked(), rows_elsewhere(&scratch)), (Some(txid), 1));
    assert_eq!(replication.wait(txid).unwrap(), Some(txid));
    insert();
    let next = Txid(txid.0 + 1);
    // Nothing hurries the upload.
    let impatient = replication.clone().with_timeout(Duration::from_millis(50));
    let refused = impatient.wait(next).unwrap_err().to_string();
    assert!(refused.contains("was not in the replica"), "{refused}");
    let wait = replication.wait_async(next);
    let flushed = poll_here(replication.flush_async());
    assert_eq!(flushed.unwrap(), Some(next));
    assert_eq!(poll_here(wait).unwrap(), Some(next));
    insert();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    // On a thread that must not wait for another executor.
    runtime.block_on(async { replication.flush().unwrap() });
    assert_eq!(rows_elsewhere(&scratch), 3);
    // What other processes commit is captured, too.
    let plain = Connection::open(scratch.database()).unwrap();
    plain.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
    replication.flush().unwrap();
    assert_eq!(rows_elsewhere(&scratch), 4);
    let status: serde_json::Value = serde_json::from_str(&replication.status()).unwrap();
    assert_eq!(status["pending_transactions"], 0);
    connection.execute_batch("PRAGMA journal_mode=DELETE").unwrap_err();
    drop(plain);
    connection
        .execute_batch("PRAGMA journal_mode=DELETE; INSERT INTO t(b) VALUES(1)")
        .unwrap();
    replication.flush().unwrap();
    assert_eq!(rows_elsewhere(&scratch), 5);
}

/// At the end of a program all is closed, and what is to be gone is removed.
#[test]
fn a_program_waits_for_what_it_has_closed() {
    let scratch = Scratch::new();
    let connection = open(&scratch.uri()).unwrap();
    use_wal(&connection);
    connection.execute_batch("CREATE TABLE t(a)").unwrap();
    let txid = Txid(pragma_number(&connection, "replvfs_txid").unwrap());
    let replication = Replication::of(scratch.database()).unwrap();
    drop(connection);
    let left = beside(&scratch);
    assert_eq!(replication.flush().unwrap(), Some(txid));
    assert_eq!(poll_here(replication.wait_async(txid)).unwrap(), Some(txid));
    assert_eq!(beside(&scratch), left);
    // What others write is seen by a connection only.
    let plain = Connection::open(scratch.database()).unwrap();
    plain.execute_batch("INSERT INTO t VALUES(1)").unwrap();
    let refused = replication.flush().unwrap_err().to_string();
    assert!(refused.contains("a WAL is beside it"), "{refused}");
    drop(plain);
    for name in left {
        std::fs::remove_file(scratch.database().with_file_name(name)).unwrap();
    }
    let refused = replication.flush().unwrap_err().to_string();
    assert!(
        refused.contains("nobody has") && refused.contains("are gone"),
        "{refused}"
    );
    assert_eq!(beside(&scratch).len(), 0);
}

fn beside(scratch: &Scratch) -> BTreeSet<String> {
    let files = std::fs::read_dir(scratch.database().parent().unwrap()).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("app.db")).collect()
}
