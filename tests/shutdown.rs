//! `replvfs::shutdown`: what a program has committed is in the replicas when it ends, or it is told what is not.
#![allow(missing_docs)]

use std::path::Path;
use std::time::{Duration, Instant};

use replvfs::history::Target;
use replvfs::store::Store;
use replvfs::{Config, ShutdownError, shutdown};
use replvfs_tests::peer::SqlPeer;
use replvfs_tests::weather::{FaultyStore, Storm, Trouble};
use replvfs_tests::{Scratch, open, restore_from, status, use_wal};
use rusqlite::Connection;

/// Nothing is uploaded by itself.
const LAZY: &str = "&flush_interval=1h";
/// Longer than any test.
const LONG: Duration = Duration::from_secs(100);
/// A patience for who waits in vain.
const SOON: Duration = Duration::from_millis(300);

#[test]
fn other_process() {
    replvfs_tests::peer::run_sql();
}

/// One after the other, since it is about all databases of the process; and they stay to the end, since those that are closed count.
#[test]
fn a_program_ends() {
    let _databases = [
        what_is_open_is_uploaded_at_once_and_goes_on(),
        what_was_closed_before_its_store_answered_is_waited_for(),
        what_could_not_be_confirmed_is_told_for_each_database(),
        what_another_process_replicates_is_asked_for_there(),
        what_is_left_in_a_wal_is_told(),
    ];
    shutdown(LONG).unwrap();
}

fn with_rows(uri: &str, rows: u32) -> Connection {
    let connection = open(uri).unwrap();
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY)")
        .unwrap();
    insert(&connection, rows);
    connection
}

fn insert(connection: &Connection, rows: u32) {
    for _ in 0..rows {
        connection.execute_batch("INSERT INTO t DEFAULT VALUES").unwrap();
    }
}

fn rows_in(store: &Store, folder: &Path) -> u32 {
    let out = folder.join("restored.db");
    let _ = std::fs::remove_file(&out);
    restore_from(store, Target::Newest, &out).unwrap();
    let restored = Connection::open(&out).unwrap();
    restored
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap()
}

fn databases(error: &ShutdownError) -> Vec<&Path> {
    error.unfinished.iter().map(|one| one.database.as_path()).collect()
}

/// A database in a store that fails on demand.
fn in_a_faulty_store(name: &str) -> (Scratch, FaultyStore, String) {
    let (scratch, store) = (Scratch::in_memory(), FaultyStore::new(true));
    let config = Config::default()
        .vfs_name(name)
        .operator(store.faulty.clone())
        .flush_interval(Duration::from_millis(10))
        .close_timeout(Duration::ZERO);
    replvfs::register(config).unwrap();
    let uri = format!("file:{}?vfs={name}", scratch.database().display());
    (scratch, store, uri)
}

fn hangs() -> Option<Storm> {
    Some(Storm::lasting(Trouble::Hang))
}

fn what_is_open_is_uploaded_at_once_and_goes_on() -> Vec<Scratch> {
    let (one, two) = (Scratch::in_memory(), Scratch::in_memory());
    let first = with_rows(&one.uri_with(LAZY), 3);
    let second = with_rows(&two.uri_with(LAZY), 5);
    // Neither has a file, nor anything committed, yet.
    let unused = Scratch::in_memory();
    let _unused = unused.open();
    for more in 0..3 {
        insert(&first, 1);
        insert(&second, 1);
        shutdown(LONG).unwrap();
        assert_eq!(rows_in(&one.store(), one.path()), 4 + more);
        assert_eq!(rows_in(&two.store(), two.path()), 6 + more);
    }
    insert(&first, 1);
    assert_ne!(rows_in(&one.store(), one.path()), 7);
    drop(first);
    drop(second);
    shutdown(Duration::ZERO).unwrap();
    assert_eq!(rows_in(&one.store(), one.path()), 7);
    vec![one, two, unused]
}

fn what_was_closed_before_its_store_answered_is_waited_for() -> Vec<Scratch> {
    let (scratch, store, uri) = in_a_faulty_store("closed");
    let connection = with_rows(&uri, 2);
    shutdown(LONG).unwrap();
    store.weather.storm(hangs());
    insert(&connection, 1);
    drop(connection);
    let begun = Instant::now();
    let error = shutdown(SOON).unwrap_err();
    assert!(begun.elapsed() >= SOON);
    assert_eq!(databases(&error), [scratch.database()]);
    assert!(error.to_string().contains("it is closed"), "{error}");
    let world = Store::from_operator(store.healthy.clone());
    assert_eq!(rows_in(&world, scratch.path()), 2);
    store.weather.clear_up_and_lose_connections();
    shutdown(LONG).unwrap();
    assert_eq!(rows_in(&world, scratch.path()), 3);
    vec![scratch]
}

fn what_could_not_be_confirmed_is_told_for_each_database() -> Vec<Scratch> {
    let (scratch, store, uri) = in_a_faulty_store("open");
    let well = Scratch::in_memory();
    let other = with_rows(&well.uri_with(LAZY), 1);
    let connection = with_rows(&uri, 1);
    shutdown(LONG).unwrap();
    store.weather.storm(hangs());
    insert(&connection, 1);
    insert(&other, 1);
    let error = shutdown(SOON).unwrap_err();
    assert_eq!(databases(&error), [scratch.database()]);
    assert!(error.to_string().contains("was not in the replica"), "{error}");
    assert_eq!(rows_in(&well.store(), well.path()), 2);
    store.weather.clear_up_and_lose_connections();
    shutdown(LONG).unwrap();
    assert_eq!(rows_in(&Store::from_operator(store.healthy.clone()), scratch.path()), 2);
    vec![well, scratch]
}

fn what_another_process_replicates_is_asked_for_there() -> Vec<Scratch> {
    let scratch = Scratch::in_memory();
    let mut owner = SqlPeer::start(&scratch.uri_with(LAZY));
    owner.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY)");
    let standby = open(&scratch.uri_with(LAZY)).unwrap();
    insert(&standby, 2);
    assert_eq!(status(&standby)["owner"], false);
    shutdown(LONG).unwrap();
    assert_eq!(rows_in(&scratch.store(), scratch.path()), 2);
    insert(&standby, 1);
    drop(standby);
    shutdown(LONG).unwrap();
    assert_eq!(rows_in(&scratch.store(), scratch.path()), 3);
    owner.end();
    // There is no WAL any more, and who ended it has uploaded it.
    shutdown(LONG).unwrap();
    vec![scratch]
}

/// The other process is killed before it has uploaded it.
fn what_is_left_in_a_wal_is_told() -> Vec<Scratch> {
    let scratch = Scratch::in_memory();
    let mut owner = SqlPeer::start(&scratch.uri_with(LAZY));
    owner.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY); PRAGMA replvfs_flush");
    let standby = open(&scratch.uri_with(LAZY)).unwrap();
    insert(&standby, 2);
    assert_eq!(status(&standby)["owner"], false);
    drop(standby);
    owner.kill();
    let error = shutdown(LONG).unwrap_err();
    assert_eq!(databases(&error), [scratch.database()]);
    assert_eq!(rows_in(&scratch.store(), scratch.path()), 0);
    // Whoever opens it goes on with what is there.
    let again = scratch.open();
    insert(&again, 1);
    shutdown(LONG).unwrap();
    assert_eq!(rows_in(&scratch.store(), scratch.path()), 3);
    vec![scratch]
}
