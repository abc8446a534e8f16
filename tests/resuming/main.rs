//! Processes that end, or are killed at random, and start again: the history goes on in one generation, without another image, and every
//! transaction can be restored.
//!
//! The process is this test program once more, which runs the test `writer` and does what its environment says.
#![allow(missing_docs)]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use replvfs_tests::{Scratch, check_integrity, flush, open, pragma_number, restore_txid, status, use_wal};
use rusqlite::Connection;

const URI: &str = "REPLVFS_TEST_RESUMING";
const STOP_AFTER: &str = "REPLVFS_TEST_RESUMING_STOP_AFTER";
const MODE: &str = "REPLVFS_TEST_RESUMING_MODE";
const LEAK: &str = "REPLVFS_TEST_RESUMING_LEAK";

/// Appends rows that number themselves, and tells each when it is committed.
#[test]
fn writer() {
    let Ok(uri) = std::env::var(URI) else { return };
    let rows: u64 = std::env::var(STOP_AFTER).unwrap().parse().unwrap();
    let connection = open(&uri).unwrap();
    match std::env::var(MODE) {
        Ok(mode) => connection
            .execute_batch(&format!("PRAGMA journal_mode={mode}"))
            .unwrap(),
        Err(_) => use_wal(&connection),
    }
    connection
        .execute_batch("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    for _ in 0..rows {
        connection
            .execute("INSERT INTO t(b) VALUES(randomblob(abs(random()) % 6000))", [])
            .unwrap();
        println!("\ncommitted {}", connection.last_insert_rowid());
    }
    match std::env::var(LEAK).as_deref() {
        Ok("forgotten") => std::mem::forget(connection),
        Ok("in a transaction") => {
            connection
                .execute_batch("PRAGMA cache_size=5; BEGIN; INSERT INTO t(b) VALUES(randomblob(200000))")
                .unwrap();
            std::mem::forget(connection);
        }
        Ok("exit") => std::process::exit(0),
        _ => {}
    }
}

fn command(scratch: &Scratch, rows: u64) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "writer", "--nocapture", "--quiet"])
        .env(URI, scratch.uri_with("&flush_interval=10ms"))
        .env(STOP_AFTER, rows.to_string())
        .stdout(Stdio::piped());
    command
}

fn start(scratch: &Scratch, rows: u64) -> Child {
    command(scratch, rows).spawn().unwrap()
}

/// Reads what the process committed, and kills it when it has committed so many rows.
fn run(scratch: &Scratch, rows: u64, kill_after: Option<u64>) {
    let mut process = start(scratch, rows);
    let mut seen = 0;
    for line in BufReader::new(process.stdout.take().unwrap()).lines() {
        seen += u64::from(line.unwrap().starts_with("committed "));
        if kill_after == Some(seen) {
            process.kill().unwrap();
        }
    }
    let ended = process.wait().unwrap();
    assert!(ended.success() || kill_after.is_some(), "{ended}");
}

fn rows_in(path: &std::path::Path) -> u64 {
    let connection = Connection::open(path).unwrap();
    let rows: i64 = connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap();
    rows as u64
}

fn objects(scratch: &Scratch, generation: u64, kind: &str) -> usize {
    let folder = scratch.file("replica").join(format!("gen/{generation:016x}/{kind}"));
    std::fs::read_dir(folder).map_or(0, |entries| entries.count())
}

/// Each transaction is one more row than the one before, from the one that made the table.
fn every_row_can_be_restored(scratch: &Scratch, rows: u64, newest: u64) {
    for back in 0..rows.min(60) {
        let out = scratch.file("restored.db");
        restore_txid(&scratch.replica(), &out, Some(newest - back));
        assert_eq!(rows_in(&out), rows - back);
        std::fs::remove_file(&out).unwrap();
    }
    let out = scratch.file("restored.db");
    restore_txid(&scratch.replica(), &out, None);
    check_integrity(&out);
    assert_eq!(rows_in(&out), rows);
    std::fs::remove_file(&out).unwrap();
}

fn one_generation_has_it_all(scratch: &Scratch) {
    let connection = open(&scratch.uri_with("&flush_interval=10ms")).unwrap();
    let rows: i64 = connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap();
    flush(&connection);
    let newest = pragma_number(&connection, "replvfs_txid").unwrap();
    let status = status(&connection);
    assert_eq!(
        (&status["generation"], &status["discontinuities"], &status["diverged"]),
        (&1.into(), &0.into(), &false.into()),
        "{status}"
    );
    drop(connection);
    assert_eq!((objects(scratch, 1, "image"), objects(scratch, 2, "image")), (1, 0));
    every_row_can_be_restored(scratch, rows as u64, newest);
}

#[test]
fn a_process_that_is_killed_goes_on_in_its_generation() {
    let scratch = Scratch::new();
    run(&scratch, 20, None);
    for round in 0..12_u64 {
        run(&scratch, 1000, Some(1 + round * 7 % 23));
    }
    one_generation_has_it_all(&scratch);
}

#[test]
fn a_process_that_ends_goes_on_in_its_generation() {
    let scratch = Scratch::new();
    for rows in [5, 1, 30, 2] {
        run(&scratch, rows, None);
    }
    one_generation_has_it_all(&scratch);
}

/// Without a WAL it is the file as it was left that proves where it is.
#[test]
fn a_process_that_ends_goes_on_in_its_generation_without_a_wal() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"] {
        let scratch = Scratch::new();
        let run = |rows| {
            let ended = command(&scratch, rows).env(MODE, mode).output().unwrap();
            assert!(ended.status.success());
        };
        for rows in [5, 1, 0, 30, 2] {
            run(rows);
        }
        one_generation_has_it_all(&scratch);
        run(3);
        // One who reads only changes nothing.
        let plain = Connection::open(scratch.database()).unwrap();
        let rows: i64 = plain.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 41);
        drop(plain);
        one_generation_has_it_all(&scratch);
        let plain = Connection::open(scratch.database()).unwrap();
        plain.execute_batch("UPDATE t SET b = 1 WHERE a = 41").unwrap();
        drop(plain);
        let connection = scratch.open();
        flush(&connection);
        let status = status(&connection);
        assert_eq!(
            (&status["generation"], &status["discontinuities"]),
            (&2.into(), &1.into()),
            "{mode}"
        );
    }
}

/// Programs that never close what they opened, and end without waiting for the upload.
#[test]
fn a_process_that_leaks_its_connection_goes_on_in_its_generation() {
    let scratch = Scratch::new();
    run(&scratch, 20, None);
    for _ in 0..4 {
        for leak in ["forgotten", "exit", "in a transaction"] {
            let mut process = command(&scratch, 7).env(LEAK, leak).spawn().unwrap();
            let mut output = String::new();
            std::io::Read::read_to_string(&mut process.stdout.take().unwrap(), &mut output).unwrap();
            assert!(process.wait().unwrap().success(), "{output}");
        }
    }
    one_generation_has_it_all(&scratch);
    // Not before: plain SQLite would move the WAL into the database.
    assert_eq!(rows_in(&scratch.database()), 20 + 4 * 3 * 7);
}

#[test]
fn a_database_that_was_lost_is_there_when_it_is_opened() {
    let scratch = Scratch::new();
    run(&scratch, 10, None);
    for rows in [11, 12] {
        scratch.delete_database();
        std::fs::remove_file(scratch.file("app.db-replvfs")).unwrap();
        run(&scratch, 1, None);
        assert_eq!(rows_in(&scratch.database()), rows);
    }
    one_generation_has_it_all(&scratch);
}

#[test]
fn processes_that_start_together_restore_once() {
    let scratch = Scratch::new();
    run(&scratch, 30, None);
    scratch.delete_database();
    let mut processes: Vec<Child> = (0..4).map(|_| start(&scratch, 0)).collect();
    for process in &mut processes {
        let mut output = String::new();
        std::io::Read::read_to_string(&mut process.stdout.take().unwrap(), &mut output).unwrap();
        assert!(process.wait().unwrap().success(), "{output}");
    }
    assert_eq!(rows_in(&scratch.database()), 30);
    one_generation_has_it_all(&scratch);
}

/// A file that is restored appears before the note of what it is.
#[test]
fn a_process_that_starts_while_another_restores_waits_for_its_note() {
    let scratch = Scratch::new();
    run(&scratch, 30, None);
    let (note, away) = (scratch.file("app.db-replvfs"), scratch.file("away"));
    std::fs::rename(&note, &away).unwrap();
    let lock = scratch.file("app.db-replvfs-lock");
    let restoring = File::options().read(true).write(true).open(lock).unwrap();
    rustix::fs::fcntl_lock(&restoring, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let mut process = command(&scratch, 0)
        .env("REPLVFS_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let waits = lines.any(|line| line.contains("waiting for it"));
    std::fs::rename(&away, &note).unwrap();
    drop(restoring);
    lines.for_each(drop);
    assert!(process.wait().unwrap().success());
    assert!(waits);
    one_generation_has_it_all(&scratch);
}

#[test]
fn what_plain_sqlite_wrote_between_is_one_discontinuity() {
    let scratch = Scratch::new();
    run(&scratch, 5, None);
    let plain = Connection::open(scratch.database()).unwrap();
    plain.execute_batch("INSERT INTO t(b) VALUES('plain')").unwrap();
    drop(plain);
    run(&scratch, 3, None);
    let connection = scratch.open();
    let rows: i64 = connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap();
    flush(&connection);
    assert_eq!((rows, &status(&connection)["generation"]), (9, &2.into()));
    drop(connection);
    let out = scratch.file("restored.db");
    restore_txid(&scratch.replica(), &out, None);
    assert_eq!(rows_in(&out), 9);
}
