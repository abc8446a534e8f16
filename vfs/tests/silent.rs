//! Where a hole in the history could look like none, and where replication could be felt by the application.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod collector;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use collector::faults::{self, Fault};
use collector::{Collector, beside, copied, open, plain, plain_image, prepare, txid, with_table};
use replvfs_vfs::resume::{Fingerprint, Next, Resume};
use rusqlite::Connection;

const INSERT: &str = "INSERT INTO t(b) VALUES(randomblob(2000))";

fn truncate(connection: &Connection) -> i64 {
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
        .unwrap()
}

/// Opens the database with what is remembered of it: the newest state that it says to continue must be what SQLite has.
fn assert_no_hole(path: &Path, resume: Resume, state: Vec<u8>) {
    prepare(path, resume, state);
    let ours = open(path);
    ours.execute_batch("SELECT count(*) FROM t").unwrap();
    ours.execute_batch("CREATE TABLE u(x)").unwrap();
    let last = txid(&ours);
    let collector = Collector::of(path);
    let states = collector.states(last);
    assert!(
        states[&last] == plain_image(path),
        "transaction {last} is not what SQLite has; resumed: {}",
        collector.did_resume()
    );
}

#[test]
fn what_is_committed_after_a_failure_is_not_vouched_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    let collector = Collector::of(&path);
    let known = collector.states(1)[&1].clone();
    collector.log().fail("for this test".into());
    ours.execute_batch(INSERT).unwrap();
    assert_eq!(truncate(&ours), 0);
    let noted = collector.resume_point().unwrap().left.map(|left| left.next);
    let now = Fingerprint::of(&path);
    assert!(
        !matches!(noted, Some(Next::File(file)) if Some(file) == now),
        "the file is noted to be the state after transaction 1"
    );
    ours.execute_batch("CREATE TABLE v(x)").unwrap();
    let copy = dir.path().join("copy.db");
    copied(&path, &copy);
    assert_no_hole(&copy, collector.resume_point().unwrap(), known);
}

/// A restart of the WAL that was never written to: the old WAL's header still stands in the file.
#[test]
fn an_old_header_under_a_restarted_index_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    let collector = Collector::of(&path);
    let known = collector.states(1)[&1].clone();
    collector.keeps(true);
    assert_eq!(truncate(&ours), 0);
    ours.execute_batch(INSERT).unwrap();
    collector.settled();
    let resume = collector.resume_point().unwrap();
    assert!(matches!(resume.left.map(|left| left.next), Some(Next::Wal(_))));
    let copy = dir.path().join("copy.db");
    copied(&path, &copy);
    let other = plain(&copy);
    other.execute_batch(INSERT).unwrap();
    other.query_row("PRAGMA wal_checkpoint", [], |_| Ok(())).unwrap();
    faults::fail_next(Fault::Header);
    other.execute_batch(INSERT).unwrap_err();
    assert!(!faults::is_due());
    assert_no_hole(&copy, resume, known);
}

/// The owner's handles are on the old file, names lead to the new one.
#[test]
fn the_wal_of_a_file_that_took_the_place_is_not_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    let collector = Collector::of(&path);
    collector.settled();
    let other = plain(&path);
    other
        .execute_batch("INSERT INTO t(b) VALUES(randomblob(5000000))")
        .unwrap();
    other.query_row("PRAGMA wal_checkpoint", [], |_| Ok(())).unwrap();
    collector.keeps(true);
    collector.log().look();
    collector.settled();
    drop(other);
    for suffix in ["", "-wal", "-shm"] {
        std::fs::rename(beside(&path, suffix), dir.path().join(format!("old.db{suffix}"))).unwrap();
    }
    let new = plain(&path);
    new.execute_batch(
        "PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB); INSERT INTO t(b) VALUES(1)",
    )
    .unwrap();
    let before = std::fs::metadata(beside(&path, "-wal")).unwrap().len();
    collector.store_up_to(2);
    collector.log().look();
    assert_eq!(std::fs::metadata(beside(&path, "-wal")).unwrap().len(), before);
    drop(ours);
}

#[test]
fn a_file_that_took_the_place_is_not_noted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let another = dir.path().join("another.db");
    plain(&another)
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB); INSERT INTO t(b) VALUES(7)")
        .unwrap();
    let ours = with_table(&path);
    ours.execute_batch(INSERT).unwrap();
    let collector = Collector::of(&path);
    collector.states(2);
    std::fs::rename(&another, &path).unwrap();
    truncate(&ours);
    let left = collector.resume_point().unwrap().left;
    assert!(
        !matches!(left.map(|left| left.next), Some(Next::File(file)) if Some(file) == Fingerprint::of(&path)),
        "another database is noted to be the state after transaction 2"
    );
}

#[test]
fn a_lone_connection_is_never_told_that_the_database_is_locked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    ours.busy_timeout(std::time::Duration::ZERO).unwrap();
    let collector = Collector::of(&path);
    collector.settled();
    for _ in 0..20 {
        ours.execute_batch("INSERT INTO t(b) VALUES(zeroblob(5000000))")
            .unwrap();
        collector.settled();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                collector.log().look();
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                ours.execute_batch("BEGIN IMMEDIATE; COMMIT").unwrap();
            }
        });
    }
}

/// A look that began before the last close, and goes on after it, opens nothing anew.
#[test]
fn no_wal_index_is_left_behind_a_close() {
    for _ in 0..100 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let ours = with_table(&path);
        let collector = Collector::of(&path);
        collector.settled();
        let closed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !closed.load(Ordering::Acquire) {
                    collector.log().look();
                }
            });
            drop(ours);
            closed.store(true, Ordering::Release);
        });
        collector.log().look();
        assert!(!beside(&path, "-wal").exists());
        assert!(!beside(&path, "-shm").exists());
    }
}

#[test]
fn the_wal_that_others_write_is_restarted_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    let collector = Collector::of(&path);
    collector.settled();
    let other = plain(&path);
    other
        .execute_batch("INSERT INTO t(b) VALUES(zeroblob(5000000))")
        .unwrap();
    collector.log().look();
    collector.settled();
    // It does not wait for who is at work there at this moment.
    let mut looks = 0..1_000_000;
    while !collector.log().has_news() {
        assert!(looks.next().is_some(), "nobody looks");
        std::thread::yield_now();
    }
    collector.log().look();
    assert_eq!(std::fs::metadata(beside(&path, "-wal")).unwrap().len(), 0);
    drop(ours);
}

/// `wal_limit` holds where the WAL itself stays short, too.
#[test]
fn what_is_carried_over_in_exclusive_mode_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = open(&path);
    ours.execute_batch("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=20; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
        .unwrap();
    let collector = Collector::of(&path);
    collector.settled();
    collector.keeps(true);
    let limit = 1 << 20;
    collector.limit_wal(limit);
    let mut largest = 0;
    for _ in 0..60 {
        // Larger than what is kept in memory.
        ours.execute_batch("INSERT INTO t(b) VALUES(randomblob(100000))")
            .unwrap();
        collector.settled();
        let spill = std::fs::metadata(beside(&path, "-replvfs-spill")).map_or(0, |meta| meta.len());
        largest = largest.max(spill);
    }
    assert!(largest <= 2 * limit, "{largest} bytes");
    assert!(collector.log().is_suspended());
}

/// A WAL that cannot restart costs a checkpoint with each commit.
#[test]
fn a_writer_restarts_its_wal_with_the_first_request_and_a_next_process_has_it_all() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path);
    ours.execute_batch("PRAGMA wal_autocheckpoint=10").unwrap();
    let collector = Collector::of(&path);
    collector.settled();
    collector.keeps(true);
    let spill = beside(&path, "-replvfs-spill");
    let mut inodes = Vec::new();
    for round in 0..4 {
        for _ in 0..30 {
            ours.execute_batch("INSERT INTO t(b) VALUES(randomblob(20))").unwrap();
            collector.settled();
        }
        let wal = std::fs::metadata(beside(&path, "-wal")).unwrap().len();
        assert!(wal < 14 * 4120, "{wal} bytes");
        inodes.push(std::fs::metadata(&spill).unwrap().ino());
        let copy = dir.path().join(format!("copy{round}.db"));
        copied(&path, &copy);
        let resume = collector.resume_point().unwrap();
        assert!(resume.left.is_some_and(|left| left.mark.txid > resume.stored.txid));
        let state = collector.states(resume.stored.txid.0)[&resume.stored.txid.0].clone();
        prepare(&copy, resume, state);
        drop(open(&copy));
        let reopened = open(&copy);
        reopened
            .execute_batch("SELECT count(*) FROM t; CREATE TABLE u(x)")
            .unwrap();
        let last = txid(&reopened);
        assert!(
            Collector::of(&copy).states(last)[&last] == plain_image(&copy),
            "round {round}"
        );
        assert!(Collector::of(&copy).did_resume(), "round {round}");
        if round % 2 == 1 {
            collector.store_up_to(txid(&ours));
        }
    }
    assert_eq!(
        inodes[..2],
        inodes[2..],
        "another file was made though nobody needed the first"
    );
    assert_eq!(collector.bases().len(), 1);
}

#[test]
fn what_is_carried_over_is_as_private_as_the_database() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    std::fs::write(&path, b"").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let ours = with_table(&path);
    let collector = Collector::of(&path);
    collector.settled();
    collector.keeps(true);
    ours.execute_batch(INSERT).unwrap();
    assert_eq!(truncate(&ours), 0);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&beside(&path, "-wal")), 0o600);
    assert_eq!(mode(&beside(&path, "-replvfs-spill")), 0o600);
}

/// Without the promise that a write spoils nothing around it, SQLite repeats the commit frame up to the next sector.
#[test]
fn a_commit_frame_that_is_repeated_counts_alike_before_and_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    drop(with_table(&path));
    let flags = rusqlite::OpenFlags::default() | rusqlite::OpenFlags::SQLITE_OPEN_URI;
    let ours = Connection::open_with_flags(format!("file:{}?vfs=replvfs&psow=0", path.display()), flags).unwrap();
    ours.execute_batch("PRAGMA synchronous=FULL; INSERT INTO t(b) VALUES(1)")
        .unwrap();
    let collector = Collector::of(&path);
    collector.settled();
    collector.keeps(true);
    for value in 2..6 {
        ours.execute_batch(&format!("INSERT INTO t(b) VALUES({value})"))
            .unwrap();
    }
    let known = collector.settled();
    let last = txid(&ours);
    let resume = collector.resume_point().unwrap();
    let copy = dir.path().join("copy.db");
    copied(&path, &copy);
    prepare(&copy, resume, known[&resume.stored.txid.0].clone());
    let next = open(&copy);
    next.execute_batch("SELECT count(*) FROM t").unwrap();
    assert_eq!(txid(&next), last);
    let states = Collector::of(&copy).settled();
    for (txid, state) in known.iter().filter(|(txid, _)| **txid > resume.stored.txid.0) {
        assert!(states.get(txid) == Some(state), "transaction {txid}");
    }
}
