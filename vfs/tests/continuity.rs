//! Where the log could go on as if nothing had happened: what others did, what failed, what was given up.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod collector;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use collector::faults::{self, Fault};
use collector::{Collector, open, plain, plain_image, txid, with_table};
use replvfs_vfs::log::Continuity;
use replvfs_vfs::types::Txid;
use rusqlite::Connection;

const INSERT: &str = "INSERT INTO t(b) VALUES(randomblob(20000))";

fn count(connection: &Connection) -> i64 {
    connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap()
}

/// The newest state in the log is the one that SQLite has.
fn assert_current(connection: &Connection, path: &Path) {
    let last = txid(connection);
    let states = Collector::of(path).states(last);
    assert!(
        states[&last] == plain_image(path),
        "transaction {last} is not what SQLite has"
    );
    assert_eq!(Collector::of(path).wrong(), Vec::<String>::new());
}

#[test]
fn another_process_commits_before_our_last_close() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    Collector::of(&path).states(1);
    plain(&path).execute_batch(INSERT).unwrap();
    drop(ours);
    let ours = open(&path);
    ours.execute_batch(INSERT).unwrap();
    assert_current(&ours, &path);
    assert_eq!(txid(&ours), 3);
    assert_eq!(Collector::of(&path).bases(), [(0, Continuity::First)]);
}

#[test]
fn another_process_writes_while_only_an_idle_connection_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    plain(&path)
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
        .unwrap();
    let idle = open(&path);
    let reader = open(&path);
    count(&reader);
    Collector::of(&path).states(0);
    drop(reader);
    let other = plain(&path);
    other.execute_batch(INSERT).unwrap();
    drop(other);
    idle.execute_batch(INSERT).unwrap();
    assert_current(&idle, &path);
}

#[test]
fn a_base_that_continues_does_not_swallow_what_another_process_committed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    Collector::of(&path).states(1);
    plain(&path).execute_batch(INSERT).unwrap();
    Collector::of(&path).log().request_base();
    assert_eq!(count(&ours), 1);
    ours.execute_batch(INSERT).unwrap();
    assert_current(&ours, &path);
    assert_eq!(txid(&ours), 3);
}

#[test]
fn a_second_base_leaves_the_copies_of_the_first_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    plain(&path)
        .execute_batch(
            "PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB); INSERT INTO t(b) VALUES(randomblob(10000))",
        )
        .unwrap();
    let before = plain_image(&path);
    let mut ours = open(&path);
    let collector = Collector::of(&path);
    collector.pause();
    ours.execute_batch("PRAGMA locking_mode=EXCLUSIVE; UPDATE t SET b=randomblob(10000)")
        .unwrap();
    collector.log().request_base();
    ours.execute_batch("UPDATE t SET b=randomblob(10000); PRAGMA wal_checkpoint")
        .unwrap();
    collector.resume();
    let truth = ours.serialize("main").unwrap().to_vec();
    let last = txid(&ours);
    let states = collector.states(last);
    assert!(states[&last] == truth);
    assert!(states[&0] == before, "the first base was torn");
    assert_eq!(collector.wrong(), Vec::<String>::new());
}

#[test]
fn every_snapshot_makes_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    let collector = Collector::of(&path);
    collector.states(1);
    collector.pause();
    collector.close_within(Duration::ZERO);
    for _ in 0..2 {
        collector.log().request_base();
        count(&ours);
    }
    ours.execute_batch("PRAGMA journal_mode=DELETE").unwrap();
    collector.resume();
}

#[test]
fn a_snapshot_that_outgrows_its_memory_is_followed_by_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    plain(&path)
        .execute_batch(
            "PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB); INSERT INTO t(b) VALUES(randomblob(100000))",
        )
        .unwrap();
    let ours = open(&path);
    let collector = Collector::of(&path);
    collector.pause();
    ours.execute_batch("PRAGMA locking_mode=EXCLUSIVE; UPDATE t SET b=randomblob(100000); PRAGMA wal_checkpoint")
        .unwrap();
    assert!(collector.log().base_wanted(), "the log was to bring a new base");
    collector.resume();
}

/// What a failed sync rolled back still stands in the WAL with valid checksums.
#[test]
fn a_transaction_whose_sync_failed_is_not_captured_by_the_next_commit() {
    for mode in ["heap", "exclusive"] {
        for request in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            let mut ours = open(&path);
            let (before, after) = if mode == "heap" {
                ("EXCLUSIVE", "EXCLUSIVE")
            } else {
                ("NORMAL", "EXCLUSIVE")
            };
            ours.execute_batch(&format!(
                "PRAGMA locking_mode={before}; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
                 CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB); PRAGMA locking_mode={after}; {INSERT}"
            ))
            .unwrap();
            let collector = Collector::of(&path);
            collector.states(2);
            faults::fail_next(Fault::Sync);
            ours.execute_batch(INSERT).unwrap_err();
            assert!(!faults::is_due());
            assert_eq!(count(&ours), 1);
            if request {
                collector.log().request_base();
            }
            ours.execute_batch("BEGIN IMMEDIATE; COMMIT").unwrap();
            assert_eq!(txid(&ours), 2, "{mode} {request}");
            ours.execute_batch("DELETE FROM t").unwrap();
            let truth = ours.serialize("main").unwrap().to_vec();
            assert_eq!(txid(&ours), 3, "{mode} {request}");
            let states = collector.states(3);
            assert!(states[&3] == truth, "{mode} {request}");
            assert_eq!(collector.wrong(), Vec::<String>::new(), "{mode} {request}");
            assert!(collector.bases().iter().all(|base| base.1 != Continuity::Broken));
        }
    }
}

#[test]
fn a_transaction_whose_write_failed_is_not_captured_by_the_next_commit() {
    for mode in ["heap", "shared"] {
        for pages in 0..6 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            let mut ours = open(&path);
            if mode == "heap" {
                ours.execute_batch("PRAGMA locking_mode=EXCLUSIVE").unwrap();
            }
            ours.execute_batch(&format!(
                "PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB); {INSERT}"
            ))
            .unwrap();
            faults::fail_next(Fault::Page(pages));
            ours.execute_batch(INSERT).unwrap_err();
            assert!(!faults::is_due());
            ours.execute_batch("BEGIN IMMEDIATE; COMMIT").unwrap();
            assert_eq!(txid(&ours), 2);
            ours.execute_batch("DELETE FROM t").unwrap();
            let truth = ours.serialize("main").unwrap().to_vec();
            assert_eq!(txid(&ours), 3);
            assert!(Collector::of(&path).states(3)[&3] == truth);
        }
    }
}

#[test]
fn a_connection_whose_file_was_replaced_brings_no_base() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let old = with_table(&path);
    old.execute_batch(INSERT).unwrap();
    old.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    Collector::of(&path).states(2);
    for suffix in ["", "-wal", "-shm"] {
        std::fs::rename(
            dir.path().join(format!("app.db{suffix}")),
            dir.path().join(format!("old.db{suffix}")),
        )
        .unwrap();
    }
    let new = with_table(&path);
    new.execute_batch(INSERT).unwrap();
    assert_current(&new, &path);
    new.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    let last = txid(&new);
    Collector::of(&path).log().request_base();
    count(&old);
    old.execute_batch("DELETE FROM t").unwrap();
    assert_eq!(
        Collector::of(&path).log().last_txid(),
        Some(Txid(last)),
        "what the old file's connection does is not of this database"
    );
    let number = old.query_row("PRAGMA replvfs_txid", [], |row| row.get::<_, String>(0));
    assert_eq!(number.unwrap(), "");
    old.execute_batch("PRAGMA replvfs_flush").unwrap_err();
    new.execute_batch(INSERT).unwrap();
    assert_current(&new, &path);
}

/// A WAL that is too large to be copied is not compared with the log when a connection in heap mode opens it.
#[test]
fn a_large_wal_of_another_process_is_not_skipped_in_heap_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    ours.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
    Collector::of(&path).states(2);
    drop(ours);
    let other = plain(&path);
    other
        .set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .unwrap();
    other
        .execute_batch("PRAGMA wal_autocheckpoint=0; INSERT INTO t(b) VALUES(randomblob(200000))")
        .unwrap();
    drop(other);
    let mut ours = open(&path);
    ours.execute_batch("PRAGMA locking_mode=EXCLUSIVE; PRAGMA wal_autocheckpoint=1")
        .unwrap();
    for _ in 0..4 {
        ours.execute_batch("INSERT INTO t(b) VALUES(2)").unwrap();
    }
    let last = txid(&ours);
    let truth = ours.serialize("main").unwrap().to_vec();
    let collector = Collector::of(&path);
    assert!(collector.states(last)[&last] == truth);
    assert!(collector.bases().iter().any(|base| base.1 == Continuity::Broken));
}

#[test]
fn a_flush_brings_what_another_process_did_in_a_rollback_journal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    Collector::of(&path).states(1);
    ours.execute_batch("PRAGMA replvfs_flush").unwrap();
    drop(ours);
    let ours = open(&path);
    let other = plain(&path);
    other.execute_batch("PRAGMA journal_mode=DELETE").unwrap();
    other.execute_batch(INSERT).unwrap();
    assert_eq!(count(&ours), 1);
    ours.execute_batch("PRAGMA replvfs_flush").unwrap();
    assert_current(&ours, &path);
    drop(other);
    ours.execute_batch("PRAGMA journal_mode=WAL; DELETE FROM t").unwrap();
    ours.execute_batch("PRAGMA replvfs_flush").unwrap();
    assert_current(&ours, &path);
}

/// The connection that flushes need not have read anything. It could have.
#[test]
fn a_flush_of_a_connection_that_has_read_nothing_brings_what_another_process_committed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    assert_eq!(count(&ours), 0);
    let fresh = open(&path);
    let collector = Collector::of(&path);
    collector.states(1);
    for rows in 1..=2 {
        plain(&path).execute_batch(INSERT).unwrap();
        fresh.execute_batch("PRAGMA replvfs_flush").unwrap();
        assert_eq!(
            collector.log().last_txid(),
            Some(Txid(1 + rows)),
            "the flush came before it"
        );
        assert!(collector.states(1 + rows)[&(1 + rows)] == plain_image(&path));
    }
    assert_eq!(count(&fresh), 2);
}

/// A writer may stand still for as long as it likes before it has written both copies of the wal-index's header. What was committed before was read.
#[test]
fn a_flush_in_the_middle_of_another_commit_brings_what_was_committed_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let (ours, reader) = (with_table(&path), open(&path));
    let collector = Collector::of(&path);
    collector.states(1);
    let index = dir.path().join("app.db-shm");
    let index = std::fs::File::options().read(true).write(true).open(index).unwrap();
    let spoil = |copies: &[u64]| {
        let mut header = [0; 96];
        index.read_exact_at(&mut header, 0).unwrap();
        copies
            .iter()
            .for_each(|copy| index.write_all_at(&[0xff; 8], copy * 48 + 40).unwrap());
        header
    };
    let mend = |header: [u8; 96]| index.write_all_at(&header, 0).unwrap();
    for (txid, copy) in [(2, 1), (3, 0)] {
        plain(&path).execute_batch(INSERT).unwrap();
        assert_eq!(count(&reader), txid as i64 - 1);
        let header = spoil(&[copy]);
        ours.execute_batch("PRAGMA replvfs_flush").unwrap();
        assert_eq!(collector.log().last_txid(), Some(Txid(txid)), "copy {copy}");
        mend(header);
        assert_current(&ours, &path);
    }
    plain(&path).execute_batch(INSERT).unwrap();
    assert_eq!(count(&reader), 3);
    let header = spoil(&[0, 1]);
    for flushing in [&ours, &open(&path)] {
        let refused = flushing.execute_batch("PRAGMA replvfs_flush").unwrap_err().to_string();
        assert!(refused.contains("another connection is writing it"), "{refused}");
    }
    mend(header);
    ours.execute_batch("PRAGMA replvfs_flush").unwrap();
    assert_eq!(collector.log().last_txid(), Some(Txid(4)));
    assert_current(&ours, &path);
}

#[test]
fn a_wal_too_large_to_be_copied_is_no_obstacle_once_the_lock_is_shared() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    ours.execute_batch("PRAGMA wal_autocheckpoint=0; INSERT INTO t(b) VALUES(randomblob(200000))")
        .unwrap();
    let collector = Collector::of(&path);
    collector.states(2);
    ours.execute_batch(&format!("PRAGMA locking_mode=EXCLUSIVE; {INSERT}"))
        .unwrap();
    collector.log().request_base();
    ours.execute_batch(INSERT).unwrap();
    assert!(collector.log().base_wanted(), "the WAL was copied after all");
    ours.execute_batch(&format!("PRAGMA locking_mode=NORMAL; {INSERT}"))
        .unwrap();
    count(&ours);
    assert!(!collector.log().base_wanted());
    assert_current(&ours, &path);
}

/// A process died while it wrote the wal-index header, and the WAL's content is gone: SQLite recovers to an empty WAL.
#[test]
fn a_recovery_that_finds_less_than_was_committed_is_no_restart() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    // Until the base was read, nothing is checkpointed.
    Collector::of(&path).states(1);
    ours.query_row("PRAGMA wal_checkpoint", [], |_| Ok(())).unwrap();
    ours.execute_batch(INSERT).unwrap();
    Collector::of(&path).states(2);
    let file = |name: &str| {
        std::fs::OpenOptions::new()
            .write(true)
            .open(dir.path().join(name))
            .unwrap()
    };
    file("app.db-shm").write_all_at(&[0xff; 8], 48).unwrap();
    file("app.db-wal").set_len(0).unwrap();
    ours.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
    assert_eq!(count(&ours), 1, "SQLite lost the first row");
    assert_current(&ours, &path);
}

/// It holds locks until it is read.
#[test]
fn a_base_behind_transactions_is_due() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    let collector = Collector::of(&path);
    collector.settled();
    collector.pause();
    ours.execute_batch(INSERT).unwrap();
    collector.log().request_base();
    count(&ours);
    assert!(!collector.log().base_wanted());
    assert!(collector.log().arm(u64::MAX));
    collector.resume();
    assert_current(&ours, &path);
}

/// A connection that has the WAL for itself, but only now: no barrier, no lock of the WAL tells what is in it.
#[test]
fn heap_mode_begins_after_another_process_has_committed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let first = with_table(&path);
    first.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
    Collector::of(&path).states(2);
    let mut ours = open(&path);
    ours.busy_timeout(Duration::ZERO).unwrap();
    ours.execute_batch("PRAGMA locking_mode=EXCLUSIVE").unwrap();
    // It gets as far as the SHARED lock.
    ours.execute_batch("SELECT count(*) FROM t").unwrap_err();
    let other = plain(&path);
    other.execute_batch(INSERT).unwrap();
    drop((first, other));
    assert_eq!(count(&ours), 2);
    ours.execute_batch("PRAGMA replvfs_flush").unwrap();
    let truth = ours.serialize("main").unwrap().to_vec();
    let last = txid(&ours);
    assert!(Collector::of(&path).states(last)[&last] == truth);
}

fn look(collector: &Collector) {
    assert!(collector.log().is_to_be_watched() && collector.log().has_news());
    collector.log().look();
}

fn commits(connection: &Connection, path: &Path, rows: i64) {
    connection.execute_batch(&format!("{INSERT}; {INSERT}")).unwrap();
    assert_eq!(count(connection), rows + 2);
    assert_current(connection, path);
}

#[test]
fn an_image_that_is_due_is_the_newest_state_and_nothing_else_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    let collector = Collector::of(&path);
    commits(&ours, &path, 0);
    plain(&path).execute_batch(INSERT).unwrap();
    collector.log().request_image();
    look(&collector);
    assert_eq!((collector.images(1), collector.log().image_wanted()), (1, false));
    commits(&ours, &path, 3);
    // Behind a restart of the WAL, before the next one's first frame.
    ours.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    collector.log().request_image();
    look(&collector);
    assert_eq!(collector.images(2), 2);
    commits(&ours, &path, 5);
    assert_eq!(collector.bases(), [(0, Continuity::First)]);
}

#[test]
fn an_image_that_is_due_is_in_nobodys_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    let collector = Collector::of(&path);
    commits(&ours, &path, 0);
    // Long enough for the test to fail by it, if anybody waited.
    collector.close_within(Duration::from_secs(600));
    for way in 0..3 {
        collector.pause();
        collector.log().request_image();
        look(&collector);
        match way {
            0 => {
                ours.execute_batch(INSERT).unwrap();
                let busy: i64 = ours
                    .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
                    .unwrap();
                assert_eq!(busy, 0, "its read lock was in the way of a checkpoint");
            }
            1 => {
                collector.log().let_writers_by();
            }
            _ => ours
                .execute_batch("PRAGMA journal_mode=DELETE; PRAGMA journal_mode=WAL")
                .unwrap(),
        }
        collector.resume();
        assert_eq!(collector.images(way + 1), 0, "way {way}");
        assert!(!collector.log().base_wanted(), "the history was disturbed");
        ours.execute_batch(INSERT).unwrap();
        assert_current(&ours, &path);
    }
    assert_eq!(collector.bases(), [(0, Continuity::First)]);
}

#[test]
fn an_image_that_is_due_and_not_had_leaves_the_end_of_the_wal_noted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    let collector = Collector::of(&path);
    commits(&ours, &path, 0);
    collector.log().request_image();
    ours.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    ours.execute_batch(INSERT).unwrap();
    drop(ours);
    let last = collector.log().last_txid();
    let left = collector.resume_point().and_then(|resume| resume.left);
    assert_eq!(left.map(|left| left.mark.txid), last);
    let ours = open(&path);
    ours.execute_batch(INSERT).unwrap();
    assert_current(&ours, &path);
    assert_eq!(collector.bases(), [(0, Continuity::First)]);
}
