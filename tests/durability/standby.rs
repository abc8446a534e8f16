//! Commits of a process that does not replicate the database: the one that does is asked.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use replvfs_tests::peer::SqlPeer;
use replvfs_tests::{Scratch, flush, open, pragma_number, status, use_wal};
use rusqlite::{Connection, ErrorCode};

use super::{NEVER, rows_elsewhere, rows_here};

/// An owner that uploads nothing unless somebody waits.
const LAZY: &str = "&flush_interval=1h";

fn owner(scratch: &Scratch) -> SqlPeer {
    let mut owner = SqlPeer::start(&scratch.uri_with(LAZY));
    owner.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    owner
}

fn socket(scratch: &Scratch) -> PathBuf {
    scratch.file("app.db-replvfs-sock")
}

fn is_owner(connection: &Connection) -> bool {
    status(connection)["owner"] == true
}

#[test]
fn a_commit_of_another_process_returns_when_it_is_in_the_store() {
    let scratch = Scratch::in_memory();
    let mut owner = owner(&scratch);
    let standby = open(&scratch.uri_with(NEVER)).unwrap();
    for expected in 1..=10 {
        let sql = "INSERT INTO t(b) VALUES(randomblob(5000))";
        standby.execute_batch(sql).unwrap();
        assert!(!is_owner(&standby));
        assert_eq!(rows_elsewhere(&scratch), 2 * expected - 1);
        owner.sql(sql);
    }
    // What nobody waits for comes along, and a flush or a wait is the owner's, too.
    flush(&standby);
    assert_eq!(rows_elsewhere(&scratch), 20);
    owner.sql("INSERT INTO t(b) VALUES(1)");
    let waited: u64 = standby
        .query_row("PRAGMA replvfs_wait=3", [], |row| row.get::<_, String>(0))
        .unwrap()
        .parse()
        .unwrap();
    assert!(waited > 3, "{waited}");
    // A large one, a checkpoint, and what restarts the WAL.
    standby
        .execute_batch(
            "BEGIN; INSERT INTO t(b) VALUES(randomblob(9000000)); INSERT INTO t(b) VALUES(1); COMMIT;
             PRAGMA wal_checkpoint; DELETE FROM t WHERE a < 5",
        )
        .unwrap();
    assert_eq!(rows_elsewhere(&scratch), 19);
    owner.end();
    standby.execute_batch("INSERT INTO t(b) VALUES(2)").unwrap();
    assert_eq!(rows_elsewhere(&scratch), 20);
    assert!(is_owner(&standby));
    drop(standby);
    assert!(!socket(&scratch).exists());
}

/// Many threads of two processes, each commit of which waits.
#[test]
fn many_wait_at_once() {
    const THREADS: usize = 8;
    let scratch = Scratch::in_memory();
    let mut owner = owner(&scratch);
    let uri = scratch.uri_with(NEVER);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let standby = open(&uri).unwrap();
                standby.busy_timeout(Duration::from_secs(60)).unwrap();
                for _ in 0..10 {
                    standby.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
                }
            });
        }
        owner.sql("PRAGMA busy_timeout=60000; PRAGMA replvfs_durability=remote");
        for _ in 0..10 {
            owner.sql("INSERT INTO t(b) VALUES(1)");
        }
    });
    assert_eq!(rows_elsewhere(&scratch), 10 * (THREADS as i64 + 1));
    owner.end();
}

#[test]
fn when_the_owner_ends_those_who_wait_take_over() {
    for killed in [true, false] {
        let scratch = Scratch::in_memory();
        let mut owner = owner(&scratch);
        owner.sql("INSERT INTO t(b) VALUES('the owner'); PRAGMA replvfs_flush");
        let uri = scratch.uri_with(NEVER);
        let here = open(&scratch.uri_with(LAZY)).unwrap();
        assert_eq!(rows_here(&here), 1);
        owner.signal("-STOP");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let standby = open(&uri).unwrap();
                    standby.busy_timeout(Duration::from_secs(60)).unwrap();
                    standby.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
                });
            }
            // All are committed here, and wait for one that does not answer.
            while rows_here(&here) < 5 {
                std::thread::yield_now();
            }
            assert_eq!(rows_elsewhere(&scratch), 1);
            match killed {
                true => owner.kill(),
                false => {
                    owner.signal("-CONT");
                    owner.end();
                }
            }
        });
        assert_eq!(rows_elsewhere(&scratch), 5);
        assert_eq!(status(&here)["discontinuities"], 0);
    }
}

#[test]
fn an_owner_that_does_not_answer_is_an_error_in_time() {
    let scratch = Scratch::in_memory();
    let owner = owner(&scratch);
    let standby = open(&scratch.uri_with(&format!("{NEVER}&timeout=300ms"))).unwrap();
    standby.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
    owner.signal("-STOP");
    for done in 2..=3 {
        let error = standby.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure), "{error}");
        assert_eq!(rows_here(&standby), done);
    }
    let refused = standby
        .query_row("PRAGMA replvfs_flush", [], |_| Ok(()))
        .unwrap_err()
        .to_string();
    assert!(refused.contains("another process replicates"), "{refused}");
    owner.signal("-CONT");
    while standby.execute_batch("INSERT INTO t(b) VALUES(1)").is_err() {}
    assert_eq!(rows_elsewhere(&scratch), rows_here(&standby));
    owner.end();
}

/// The owner would have to read a file that the commit has for itself.
#[test]
fn through_a_rollback_journal_only_the_owner_can_wait() {
    for journal in ["DELETE", "PERSIST", "TRUNCATE"] {
        let scratch = Scratch::in_memory();
        let mut owner = SqlPeer::start(&scratch.uri_with(LAZY));
        owner.sql(&format!(
            "PRAGMA journal_mode={journal}; CREATE TABLE t(a INTEGER PRIMARY KEY, b); PRAGMA replvfs_flush"
        ));
        let standby = open(&scratch.uri_with(NEVER)).unwrap();
        let refused = standby.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap_err();
        assert_eq!(refused.sqlite_error_code(), Some(ErrorCode::ReadOnly), "{refused}");
        assert_eq!(rows_here(&standby), 0);
        standby
            .execute_batch("PRAGMA replvfs_durability=async; INSERT INTO t(b) VALUES(1)")
            .unwrap();
        // Nobody has the file for himself any more.
        flush(&standby);
        assert_eq!(rows_elsewhere(&scratch), 1, "{journal}");
        owner.sql("INSERT INTO t(b) VALUES(2)");
        owner.end();
        standby
            .execute_batch("PRAGMA replvfs_durability=remote; INSERT INTO t(b) VALUES(3)")
            .unwrap();
        assert_eq!(rows_elsewhere(&scratch), 3, "{journal}");
    }
}

#[test]
fn a_file_that_was_renamed_is_not_confirmed() {
    let scratch = Scratch::in_memory();
    let mut owner = owner(&scratch);
    let standby = open(&scratch.uri_with(NEVER)).unwrap();
    standby.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
    let (there, away) = (scratch.database(), scratch.file("away.db"));
    std::fs::rename(&there, &away).unwrap();
    std::fs::copy(&away, &there).unwrap();
    let error = standby.execute_batch("INSERT INTO t(b) VALUES(2)").unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure), "{error}");
    std::fs::rename(&away, &there).unwrap();
    standby.execute_batch("INSERT INTO t(b) VALUES(3)").unwrap();
    assert_eq!(rows_elsewhere(&scratch), 3);
    owner.sql("INSERT INTO t(b) VALUES(4)");
    owner.end();
}

/// The process that is asked knows nothing but the name, where by now another file is.
#[test]
fn what_is_committed_in_another_file_is_not_confirmed() {
    let scratch = Scratch::in_memory();
    let first = owner(&scratch);
    let standby = open(&scratch.uri_with(NEVER)).unwrap();
    standby.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
    first.kill();
    let (there, away) = (scratch.database(), scratch.file("away.db"));
    std::fs::rename(&there, &away).unwrap();
    std::fs::copy(&away, &there).unwrap();
    for beside in ["-wal", "-shm"] {
        let beside = |path: &std::path::Path| PathBuf::from(format!("{}{beside}", path.display()));
        std::fs::rename(beside(&there), beside(&away)).unwrap();
    }
    let mut second = SqlPeer::start(&scratch.uri_with(LAZY));
    second.sql("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES(2)");
    let error = standby.execute_batch("INSERT INTO t(b) VALUES(3)").unwrap_err();
    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure), "{error}");
    second.end();
}

#[test]
fn a_long_path_is_no_obstacle() {
    let scratch = Scratch::in_memory();
    let folder = scratch.file(&"long".repeat(30));
    std::fs::create_dir(&folder).unwrap();
    let uri = |parameters: &str| {
        let database = folder.join("app.db");
        format!(
            "file:{}?vfs=replvfs&replica={}{parameters}",
            database.display(),
            scratch.replica()
        )
    };
    let mut owner = SqlPeer::start(&uri(LAZY));
    owner.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    let standby = open(&uri(NEVER)).unwrap();
    standby.execute_batch("INSERT INTO t(b) VALUES(1)").unwrap();
    assert!(!is_owner(&standby));
    assert_eq!(rows_elsewhere(&scratch), 1);
    owner.end();
}

/// Whoever may write beside the database may also say what is no question.
#[test]
fn what_is_no_question_does_no_harm() {
    let scratch = Scratch::in_memory();
    let owner = open(&scratch.uri_with(LAZY)).unwrap();
    use_wal(&owner);
    owner
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES(1)")
        .unwrap();
    let mut answers = Vec::new();
    let long = "x".repeat(1 << 20);
    let mut silent = Vec::new();
    for question in [
        "",
        "\n",
        "replvfs 2 flush 1000\n",
        "replvfs 1 flush -1\n",
        "replvfs 1 flush 1 1\n",
        &long,
    ] {
        let mut stream = UnixStream::connect(socket(&scratch)).unwrap();
        // Much is not read to its end.
        let _ = stream.write_all(question.as_bytes());
        if question.is_empty() {
            silent.push(stream);
            continue;
        }
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answers.push(String::from_utf8(answer).unwrap());
    }
    assert!(
        answers[..4].iter().all(|answer| answer.contains("another version")),
        "{answers:?}"
    );
    assert_eq!(answers[4], "");
    let mut standby = SqlPeer::start(&scratch.uri_with(NEVER));
    standby.sql("INSERT INTO t(b) VALUES(2)");
    assert_eq!(rows_elsewhere(&scratch), 2);
    let acked = pragma_number(&owner, "replvfs_acked");
    let mut stream = UnixStream::connect(socket(&scratch)).unwrap();
    stream.write_all(b"replvfs 1 wait 99999 1\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("replvfs 1 no transaction 99999"), "{answer}");
    assert_eq!(pragma_number(&owner, "replvfs_acked"), acked);
    standby.end();
}
