//! `durability=strict`: nobody sees a transaction before it is in the store, and one that does not get there is rolled back.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use replvfs::Config;
use replvfs::config::{Durability, OnFenced};
use replvfs::history::Target;
use replvfs::store::Store;
use replvfs_tests::peer::{SqlPeer, run_sql};
use replvfs_tests::weather::{FaultyStore, Storm, Trouble};
use replvfs_tests::{Scratch, check_integrity, open, pragma_number, restore_from, restore_txid, status};
use replvfs_vfs::log::{Batch, Log, Withdrawn};
use replvfs_vfs::transaction::Transaction;
use replvfs_vfs::types::{PageSize, Pgno, Position, Txid};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use tracing_subscriber::layer::SubscriberExt;

const JOURNALS: [&str; 5] = ["WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY"];
const LOCKINGS: [&str; 2] = ["NORMAL", "EXCLUSIVE"];
/// So late that nothing is uploaded but for who waits.
const NEVER: Duration = Duration::from_secs(3600);

/// `LATER` is EXCLUSIVE that is asked for with the WAL in use already: there is a wal-index, and no lock of it is taken any more.
fn every_mode() -> impl Iterator<Item = (&'static str, &'static str)> {
    let modes = LOCKINGS
        .iter()
        .flat_map(|locking| JOURNALS.iter().map(|journal| (*locking, *journal)));
    modes.chain([("LATER", "WAL")])
}

/// A database of its own, in a store that fails on demand.
struct World {
    scratch: Scratch,
    store: FaultyStore,
    name: String,
}

impl World {
    fn new(name: &str) -> World {
        World::with(name, Duration::from_millis(300), OnFenced::Continue)
    }

    fn with(name: &str, timeout: Duration, on_fenced: OnFenced) -> World {
        let world = World {
            scratch: Scratch::in_memory(),
            store: FaultyStore::new(true),
            name: name.to_ascii_lowercase(),
        };
        world.register(&world.name, timeout, on_fenced);
        world
    }

    /// Another process to this store would have this.
    fn register(&self, name: &str, timeout: Duration, on_fenced: OnFenced) {
        let config = Config::default()
            .vfs_name(name)
            .operator(self.store.faulty.clone())
            .durability(Durability::Strict)
            .on_fenced(on_fenced)
            .flush_interval(NEVER)
            .timeout(timeout);
        replvfs::register(config).unwrap();
    }

    fn uri(&self) -> String {
        format!("file:{}?vfs={}", self.scratch.database().display(), self.name)
    }

    fn open(&self) -> Connection {
        open(&self.uri()).unwrap()
    }

    fn open_in(&self, locking: &str, journal: &str) -> Connection {
        let connection = self.open();
        prepare(&connection, locking, journal);
        connection
    }

    fn storm(&self, at: usize, trouble: Trouble) {
        self.store.weather.storm(Some(Storm {
            at,
            trouble,
            lasting: true,
        }));
    }

    fn wait_for_the_storm(&self) {
        while !self.store.weather.has_struck() {
            std::thread::yield_now();
        }
    }

    fn restore(&self, txid: Option<u64>) -> Option<BTreeSet<i64>> {
        let store = Store::from_operator(self.store.healthy.clone());
        let out = self.scratch.file("elsewhere.db");
        let target = txid.map_or(Target::Newest, |txid| Target::Txid(Txid(txid)));
        let restored = restore_from(&store, target, &out).ok()?;
        check_integrity(&out);
        let rows = rows_in(&out);
        std::fs::remove_file(out).unwrap();
        // A transaction that is in another generation alone comes with a warning.
        (txid.is_none() || restored.warnings.is_empty()).then_some(rows)
    }

    /// Every state that the newest history has.
    fn history(&self, newest: u64) -> Vec<BTreeSet<i64>> {
        (0..=newest).filter_map(|txid| self.restore(Some(txid))).collect()
    }
}

fn prepare(connection: &Connection, locking: &str, journal: &str) {
    if locking == "LATER" {
        prepare(connection, "NORMAL", journal);
        return connection
            .execute_batch("PRAGMA locking_mode=EXCLUSIVE; SELECT count(*) FROM t")
            .unwrap();
    }
    connection
        .execute_batch(&format!(
            "PRAGMA locking_mode={locking}; PRAGMA journal_mode={journal}; CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)"
        ))
        .unwrap();
}

fn rows_of(connection: &Connection) -> BTreeSet<i64> {
    // The first states of a history have no table.
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .unwrap();
    if tables == 0 {
        return BTreeSet::new();
    }
    let mut all = connection.prepare("SELECT a FROM t").unwrap();
    let rows = all.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

fn plain(path: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags_and_vfs(path, flags, c"unix").unwrap()
}

fn rows_in(path: &Path) -> BTreeSet<i64> {
    rows_of(&plain(path))
}

fn insert(connection: &Connection, row: i64) -> rusqlite::Result<()> {
    connection.execute_batch(&format!("INSERT INTO t VALUES({row}, randomblob(3000))"))
}

/// What is on the disk now, as a crash would leave it.
fn crash_image(world: &World, folder: &str) -> PathBuf {
    let folder = world.scratch.file(folder);
    std::fs::create_dir(&folder).unwrap();
    for suffix in ["", "-wal", "-journal", "-replvfs"] {
        let name = format!("app.db{suffix}");
        if world.scratch.file(&name).exists() {
            std::fs::copy(world.scratch.file(&name), folder.join(&name)).unwrap();
        }
    }
    folder.join("app.db")
}

fn is_an_io_error(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure)
}

#[test]
fn a_commit_that_has_returned_is_in_the_store() {
    for (locking, journal) in every_mode() {
        let scratch = Scratch::in_memory();
        let connection = open(&scratch.uri_with("&flush_interval=1h&durability=strict")).unwrap();
        prepare(&connection, locking, journal);
        let elsewhere = || {
            let out = scratch.file("elsewhere.db");
            restore_txid(&scratch.replica(), &out, None);
            let rows = rows_in(&out);
            std::fs::remove_file(out).unwrap();
            rows
        };
        assert_eq!(elsewhere(), BTreeSet::new(), "{locking} {journal}");
        for row in 1..=4 {
            insert(&connection, row).unwrap();
            assert_eq!(elsewhere(), (1..=row).collect(), "{locking} {journal}");
        }
        // Spilled, rolled back in part, written again, and more than is kept in memory.
        connection
            .execute_batch(
                "PRAGMA cache_size=5; BEGIN; INSERT INTO t SELECT value, randomblob(3000) FROM generate_series(100, 300);
                 SAVEPOINT s; UPDATE t SET b = randomblob(2500); ROLLBACK TO s; UPDATE t SET b = randomblob(2000) WHERE a % 3 = 0; COMMIT"
                    .replace(
                        "SELECT value, randomblob(3000) FROM generate_series(100, 300)",
                        "WITH RECURSIVE n(v) AS (VALUES(100) UNION ALL SELECT v + 1 FROM n WHERE v < 300) SELECT v, randomblob(3000) FROM n",
                    )
                    .as_str(),
            )
            .unwrap();
        assert_eq!(elsewhere().len(), 205, "{locking} {journal}");
        connection
            .execute_batch("BEGIN; UPDATE t SET b = 1; ROLLBACK; PRAGMA wal_checkpoint(TRUNCATE)")
            .unwrap();
        connection.execute_batch("DELETE FROM t WHERE a >= 100").unwrap();
        assert_eq!(elsewhere(), (1..=4).collect(), "{locking} {journal}");
        connection.execute_batch("VACUUM").unwrap();
        insert(&connection, 5).unwrap();
        assert_eq!(elsewhere(), (1..=5).collect(), "{locking} {journal}");
        assert_eq!(status(&connection)["generation"], 1, "{locking} {journal}");
        assert_eq!(status(&connection)["discontinuities"], 0, "{locking} {journal}");
    }
}

/// Without `SQLITE_IOCAP_POWERSAFE_OVERWRITE` SQLite repeats the commit frame up to the next sector, and syncs in the middle of it.
#[test]
fn frames_that_are_repeated_follow_what_was_confirmed() {
    for locking in LOCKINGS {
        for page_size in [512, 4096] {
            let scratch = Scratch::in_memory();
            let connection = open(&scratch.uri_with("&flush_interval=1h&durability=strict&psow=0")).unwrap();
            connection
                .execute_batch(&format!("PRAGMA page_size={page_size}; PRAGMA synchronous=FULL"))
                .unwrap();
            prepare(&connection, locking, "WAL");
            for row in 1..=5 {
                insert(&connection, row).unwrap();
                let out = scratch.file("elsewhere.db");
                restore_txid(&scratch.replica(), &out, None);
                assert_eq!(rows_in(&out), (1..=row).collect(), "{locking} {page_size}");
                std::fs::remove_file(out).unwrap();
            }
            let newest = pragma_number(&connection, "replvfs_txid").unwrap();
            assert!(newest > 6, "no frame was repeated");
            assert_eq!(status(&connection)["generation"], 1, "{locking} {page_size}");
        }
    }
}

/// What others have committed before goes first, and what they commit after one that was rolled back is not lost.
#[test]
fn those_that_do_not_wait_are_in_order() {
    for journal in JOURNALS {
        let world = World::new(&format!("mixed-{journal}"));
        let strict = world.open_in("NORMAL", journal);
        let other = world.open();
        other.execute_batch("PRAGMA replvfs_durability=async").unwrap();
        insert(&other, 1).unwrap();
        insert(&strict, 2).unwrap();
        assert_eq!(world.restore(None), Some([1, 2].into()), "{journal}");
        insert(&other, 3).unwrap();
        world.storm(0, Trouble::Hang);
        // What is before it is not there, so it is not even tried.
        let error = insert(&strict, 4).unwrap_err();
        assert!(is_an_io_error(&error), "{journal}: {error}");
        insert(&other, 5).unwrap();
        world.store.weather.clear_up_and_lose_connections();
        insert(&strict, 6).unwrap();
        assert_eq!(world.restore(None), Some([1, 2, 3, 5, 6].into()), "{journal}");
        assert_eq!(status(&strict)["generation"], 1, "{journal}");
        world.storm(0, Trouble::Hang);
        let error = insert(&strict, 7).unwrap_err();
        assert!(is_an_io_error(&error), "{journal}: {error}");
        insert(&other, 8).unwrap();
        world.store.weather.clear_up_and_lose_connections();
        insert(&strict, 9).unwrap();
        assert_eq!(world.restore(None), Some([1, 2, 3, 5, 6, 8, 9].into()), "{journal}");
        assert_eq!(rows_of(&other), [1, 2, 3, 5, 6, 8, 9].into(), "{journal}");
    }
}

/// Runs SQL for another test, if it is told to.
#[test]
fn other_process() {
    run_sql();
}

#[test]
fn another_process_cannot_have_it() {
    for journal in ["WAL", "DELETE"] {
        let scratch = Scratch::in_memory();
        let mut owner = SqlPeer::start(&scratch.uri_with("&flush_interval=1h"));
        owner.sql(&format!(
            "PRAGMA journal_mode={journal}; CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES(1, 1)"
        ));
        // From here on it is known who replicates the database.
        owner.sql("PRAGMA replvfs_flush");
        let standby = open(&scratch.uri_with("&flush_interval=1h&durability=strict")).unwrap();
        standby.busy_timeout(Duration::from_secs(60)).unwrap();
        let refused = insert(&standby, 2).unwrap_err();
        assert!(standby.is_autocommit());
        let code = refused.sqlite_error_code();
        assert!(
            code == Some(ErrorCode::SystemIoFailure) || code == Some(ErrorCode::ReadOnly),
            "{journal}: {refused}"
        );
        assert_eq!(rows_of(&standby), [1].into(), "{journal}");
        owner.sql("INSERT INTO t VALUES(3, 1)");
        assert_eq!(rows_of(&standby), [1, 3].into(), "{journal}");
        owner.end();
        // Now it is this one.
        insert(&standby, 4).unwrap();
        let out = scratch.file("elsewhere.db");
        restore_txid(&scratch.replica(), &out, None);
        assert_eq!(rows_in(&out), [1, 3, 4].into(), "{journal}");
    }
}

#[test]
fn nobody_sees_it_before() {
    for journal in ["WAL", "DELETE", "TRUNCATE", "PERSIST"] {
        let world = World::with(
            &format!("unseen-{journal}"),
            Duration::from_secs(60),
            OnFenced::Continue,
        );
        let connection = world.open_in("NORMAL", journal);
        insert(&connection, 1).unwrap();
        world.storm(0, Trouble::Hang);
        std::thread::scope(|scope| {
            let commits = scope.spawn(|| {
                let connection = world.open();
                insert(&connection, 2)
            });
            world.wait_for_the_storm();
            for other in [plain(&world.scratch.database()), world.open()] {
                other.busy_timeout(Duration::ZERO).unwrap();
                let seen = other.query_row("SELECT group_concat(a) FROM t", [], |row| row.get::<_, String>(0));
                match (journal, seen) {
                    ("WAL", seen) => assert_eq!(seen.unwrap(), "1"),
                    (_, seen) => assert_eq!(
                        seen.unwrap_err().sqlite_error_code(),
                        Some(ErrorCode::DatabaseBusy),
                        "{journal}"
                    ),
                }
                let busy = other.execute_batch("BEGIN IMMEDIATE").unwrap_err();
                assert_eq!(busy.sqlite_error_code(), Some(ErrorCode::DatabaseBusy), "{journal}");
            }
            // Nor would anybody after a crash.
            let image = crash_image(&world, "crashed");
            assert_eq!(rows_in(&image), [1].into(), "{journal}");
            assert!(!commits.is_finished());
            world.store.weather.clear_up_and_lose_connections();
            commits.join().unwrap().unwrap();
        });
        assert_eq!(rows_of(&connection), [1, 2].into(), "{journal}");
        assert_eq!(world.restore(None), Some([1, 2].into()), "{journal}");
    }
}

/// The rows of the database, of a crash, and of each state of the history, after a commit that failed and one that did not.
fn goes_on(world: &World, connection: &Connection, what: &str) {
    assert!(connection.is_autocommit(), "{what}");
    assert_eq!(rows_of(connection), [1].into(), "{what}");
    assert_eq!(rows_in(&crash_image(world, "crashed")), [1].into(), "{what}");
    world.store.weather.clear_up_and_lose_connections();
    insert(connection, 3).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(rows_of(connection), [1, 3].into(), "{what}");
    let check: String = connection
        .query_row("PRAGMA quick_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(check, "ok", "{what}");
    assert_eq!(world.restore(None), Some([1, 3].into()), "{what}");
    let newest = pragma_number(connection, "replvfs_txid").unwrap();
    assert_eq!(pragma_number(connection, "replvfs_acked"), Some(newest), "{what}");
    let history = world.history(newest);
    assert!(history.iter().all(|rows| !rows.contains(&2)), "{what}: {history:?}");
    assert!(history.contains(&[1].into()), "{what}: {history:?}");
    assert_eq!(status(connection)["discontinuities"], 0, "{what}");
}

#[test]
fn what_the_store_does_not_take_is_rolled_back() {
    for (locking, journal) in every_mode() {
        for trouble in [Trouble::Hang, Trouble::Temporary, Trouble::Permanent] {
            let what = format!("{locking} {journal} {trouble:?}");
            let world = World::new(&format!("refused-{locking}-{journal}-{trouble:?}"));
            let connection = world.open_in(locking, journal);
            insert(&connection, 1).unwrap();
            world.storm(0, trouble);
            for _ in 0..2 {
                let error = insert(&connection, 2).unwrap_err();
                assert!(is_an_io_error(&error), "{what}: {error}");
            }
            goes_on(&world, &connection, &what);
            drop(connection);
            assert_eq!(rows_in(&world.scratch.database()), [1, 3].into(), "{what}");
        }
    }
}

/// The object is there, and nobody was told.
#[test]
fn an_upload_that_landed_unnoticed_is_left_aside() {
    for (locking, journal) in every_mode() {
        let what = format!("{locking} {journal}");
        let world = World::new(&format!("landed-{locking}-{journal}"));
        let connection = world.open_in(locking, journal);
        insert(&connection, 1).unwrap();
        world.storm(1, Trouble::Lost);
        let error = insert(&connection, 2).unwrap_err();
        assert!(is_an_io_error(&error), "{what}: {error}");
        assert_eq!(world.store.weather.calls()[..2], ["write", "close"], "{what}");
        assert_eq!(world.restore(None), Some([1, 2].into()), "{what}: it did not land");
        goes_on(&world, &connection, &what);
    }
}

/// An answer that is lost once is no trouble.
#[test]
fn an_upload_whose_answer_is_lost_once_is_found() {
    for journal in JOURNALS {
        for at in 0..6 {
            let world = World::with(
                &format!("found-{journal}-{at}"),
                Duration::from_secs(60),
                OnFenced::Continue,
            );
            let connection = world.open_in("NORMAL", journal);
            insert(&connection, 1).unwrap();
            world.store.weather.storm(Some(Storm {
                at,
                trouble: Trouble::Lost,
                lasting: false,
            }));
            insert(&connection, 2).unwrap();
            assert_eq!(world.restore(None), Some([1, 2].into()), "{journal} {at}");
            assert_eq!(status(&connection)["generation"], 1, "{journal} {at}");
        }
    }
}

/// As if it had been killed between the upload and the commit frame: another process finds the files, and what is in the store.
#[test]
fn a_process_that_dies_before_the_frame_goes_on_without_it() {
    for journal in ["WAL", "DELETE"] {
        for on_fenced in [OnFenced::Continue, OnFenced::Stop] {
            for landed in [true, false] {
                let what = format!("{journal} {on_fenced:?} landed: {landed}");
                let name = format!("killed-{journal}-{on_fenced:?}-{landed}");
                let world = World::with(&name, NEVER, on_fenced);
                let connection = world.open_in("NORMAL", journal);
                insert(&connection, 1).unwrap();
                match landed {
                    true => world.storm(1, Trouble::Lost),
                    false => world.storm(0, Trouble::Hang),
                }
                // It waits for ever: nothing comes of it any more.
                std::thread::spawn(move || {
                    let _ = insert(&connection, 2);
                });
                world.wait_for_the_storm();
                if landed {
                    // It asks again, and hangs then.
                    world.storm(0, Trouble::Hang);
                    world.wait_for_the_storm();
                }
                world.store.weather.clear_up();
                let image = crash_image(&world, "crashed");
                let next = name.clone() + "-next";
                world.register(&next.to_ascii_lowercase(), Duration::from_secs(60), on_fenced);
                let uri = format!(
                    "file:{}?vfs={}&restore=if-behind",
                    image.display(),
                    next.to_ascii_lowercase()
                );
                let connection = open(&uri).unwrap();
                assert_eq!(rows_of(&connection), [1].into(), "{what}");
                insert(&connection, 3).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(rows_of(&connection), [1, 3].into(), "{what}");
                assert_eq!(world.restore(None), Some([1, 3].into()), "{what}");
                let newest = pragma_number(&connection, "replvfs_txid").unwrap();
                let history = world.history(newest);
                assert!(history.iter().all(|rows| !rows.contains(&2)), "{what}: {history:?}");
                assert_eq!(status(&connection)["diverged"], false, "{what}");
                assert_eq!(status(&connection)["fenced"], false, "{what}");
            }
        }
    }
}

/// As another program has left it, with row 1 in it.
fn left_behind(world: &World, journal: &str) {
    let before = Connection::open(world.scratch.database()).unwrap();
    let mode = format!("PRAGMA journal_mode={journal}; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    before.execute_batch(&mode).unwrap();
    insert(&before, 1).unwrap();
}

/// How it is left, and what is made of it then.
fn every_beginning() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let left = ["WAL", "DELETE"].into_iter();
    left.flat_map(|left| every_mode().map(move |(locking, journal)| (left, locking, journal)))
}

/// The store has not told yet how the history goes on, and no image is there.
#[test]
fn the_first_transaction_waits_for_the_image_that_it_needs() {
    for (left, locking, journal) in every_beginning() {
        let what = format!("{left} {locking} {journal}");
        let name = format!("first-{left}-{locking}-{journal}");
        let world = World::with(&name, Duration::from_secs(60), OnFenced::Continue);
        left_behind(&world, left);
        world.storm(0, Trouble::Hang);
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                let connection = world.open_in(locking, journal);
                insert(&connection, 2).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(world.restore(None), Some([1, 2].into()), "{what}");
                assert_eq!(
                    pragma_number(&connection, "replvfs_acked"),
                    pragma_number(&connection, "replvfs_txid")
                );
            });
            world.wait_for_the_storm();
            world.store.weather.clear_up_and_lose_connections();
            first.join().unwrap();
        });
    }
}

/// The same when the store is away for longer than anybody waits.
#[test]
fn a_transaction_without_an_image_to_go_on_from_is_rolled_back() {
    for (left, locking, journal) in every_beginning() {
        let what = format!("{left} {locking} {journal}");
        let name = format!("early-{left}-{locking}-{journal}");
        let world = World::with(&name, Duration::from_millis(100), OnFenced::Continue);
        left_behind(&world, left);
        world.storm(0, Trouble::Temporary);
        let connection = world.open();
        // Changing the mode may need a transaction as well.
        let modes = format!("PRAGMA locking_mode={locking}; PRAGMA journal_mode={journal}");
        let modes = modes.replace("LATER", "NORMAL");
        let _ = connection.execute_batch(&modes);
        for _ in 0..2 {
            let error = insert(&connection, 2).unwrap_err();
            assert!(is_an_io_error(&error), "{what}: {error}");
            assert_eq!(rows_of(&connection), [1].into(), "{what}");
        }
        world.store.weather.clear_up_and_lose_connections();
        connection
            .execute_batch(&modes)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        insert(&connection, 3).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(rows_of(&connection), [1, 3].into(), "{what}");
        assert_eq!(world.restore(None), Some([1, 3].into()), "{what}");
    }
}

/// What is written next is not taken for the end of what another process has begun.
#[test]
fn the_first_transaction_behind_a_hot_journal_is_held_back() {
    for locking in LOCKINGS {
        let world = World::new(&format!("hot-{locking}"));
        left_behind(&world, "DELETE");
        let dying = plain(&world.scratch.database());
        dying
            .execute_batch("PRAGMA cache_size=1; PRAGMA cache_spill=1; BEGIN; UPDATE t SET b = randomblob(3001)")
            .unwrap();
        dying
            .execute_batch("WITH n(n) AS (VALUES(10) UNION ALL SELECT n + 1 FROM n LIMIT 80) INSERT INTO t SELECT n, randomblob(3000) FROM n")
            .unwrap();
        let image = crash_image(&world, "crashed");
        drop(dying);
        assert!(image.with_extension("db-journal").exists());
        let uri = format!("file:{}?vfs={}", image.display(), world.name);
        let connection = open(&uri).unwrap();
        prepare(&connection, locking, "DELETE");
        insert(&connection, 2).unwrap();
        assert_eq!(rows_of(&connection), [1, 2].into(), "{locking}");
        world.storm(0, Trouble::Hang);
        for row in 3..6 {
            let error = insert(&connection, row).unwrap_err();
            assert!(is_an_io_error(&error), "{locking}: {error}");
            assert_eq!(rows_of(&connection), [1, 2].into(), "{locking}");
        }
    }
}

#[test]
fn a_switch_of_modes_is_confirmed() {
    let world = World::new("switching");
    let connection = world.open_in("NORMAL", "WAL");
    let mut rows = BTreeSet::new();
    for (row, journal) in (1..).zip(["DELETE", "WAL", "PERSIST", "TRUNCATE", "WAL"]) {
        connection
            .execute_batch(&format!("PRAGMA journal_mode={journal}"))
            .unwrap();
        insert(&connection, row).unwrap();
        rows.insert(row);
        assert_eq!(world.restore(None).as_ref(), Some(&rows), "{journal}");
    }
    assert_eq!(status(&connection)["generation"], 1);
    assert_eq!(status(&connection)["discontinuities"], 0);
}

#[test]
fn it_needs_a_journal() {
    let world = World::new("without-journal");
    let connection = world.open();
    let refused = connection
        .query_row("PRAGMA journal_mode=OFF", [], |_| Ok(()))
        .unwrap_err();
    assert!(refused.to_string().contains("needs a journal"), "{refused}");
    connection
        .execute_batch("PRAGMA replvfs_durability=async; PRAGMA journal_mode=OFF")
        .unwrap();
    let refused = connection
        .query_row("PRAGMA replvfs_durability=strict", [], |_| Ok(()))
        .unwrap_err();
    assert!(refused.to_string().contains("needs a journal"), "{refused}");
}

/// The number of one that was taken back is used again, perhaps while the first one is still being sealed.
#[test]
fn one_that_was_taken_back_is_not_offered_as_the_next() {
    let tentative = |value: u8| {
        let pages = [(Pgno::new(1).unwrap(), vec![value; 512])];
        Transaction::for_test(Txid::ZERO, PageSize::new(512).unwrap(), 1, &pages, Position::default())
    };
    let log = Log::new();
    assert!(log.answer_for_test(Err(Txid(1))));
    assert!(matches!(log.take(1), Some(Batch::Resumed(Txid(1)))));
    log.acknowledge(Txid(1));
    let take = || match log.take(1) {
        Some(Batch::Transactions(taken)) => taken.into_iter().next().unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(log.push_tentative(tentative(1)).ok(), Some(Txid(2)));
    let first = take();
    assert_eq!(log.withdraw(Txid(2)), Withdrawn::Cleanly);
    assert_eq!(log.push_tentative(tentative(2)).ok(), Some(Txid(2)));
    assert!(!log.offer(&first), "it would be in the store in place of the next one");
    let second = take();
    assert!(log.offer(&second));
    assert!(!log.offer(&first));
    assert_eq!(log.withdraw(Txid(2)), Withdrawn::Abandoned);
}

/// Does something while it is said that a transaction is rolled back.
struct Meanwhile(std::thread::ThreadId, Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Meanwhile {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        if std::thread::current().id() == self.0
            && *event.metadata().level() == tracing::Level::WARN
            && let Some(act) = self.1.lock().unwrap().take()
        {
            act();
        }
    }
}

/// A reader may bring the image that an abandoned transaction makes necessary before the connection that has abandoned it goes on.
#[test]
fn an_image_that_comes_at_once_has_a_number_of_its_own() {
    let world = World::new("at-once");
    let connection = world.open_in("NORMAL", "WAL");
    insert(&connection, 1).unwrap();
    let reader = world.open();
    assert_eq!(rows_of(&reader), [1].into());
    world.storm(0, Trouble::Hang);
    let seen = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&seen);
    let meanwhile = Meanwhile(
        std::thread::current().id(),
        Mutex::new(Some(Box::new(move || {
            *noted.lock().unwrap() = Some(rows_of(&reader));
        }))),
    );
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(meanwhile)).unwrap();
    let error = insert(&connection, 2).unwrap_err();
    assert!(is_an_io_error(&error), "{error}");
    assert_eq!(*seen.lock().unwrap(), Some([1].into()));
    goes_on(&world, &connection, "at once");
}

/// `PRAGMA journal_mode` without a name is for all databases, and says so to the main one only.
#[test]
fn a_journal_that_is_switched_off_for_all_is_missed() {
    let world = World::new("attached-off");
    let connection = world.open_in("NORMAL", "DELETE");
    insert(&connection, 1).unwrap();
    let all = open("file::memory:").unwrap();
    all.execute_batch(&format!("ATTACH '{}' AS a; PRAGMA journal_mode=OFF", world.uri()))
        .unwrap();
    for _ in 0..2 {
        let error = insert(&all, 2).unwrap_err();
        assert!(is_an_io_error(&error), "{error}");
        assert_eq!(rows_of(&connection), [1].into(), "{error}");
    }
    all.execute_batch("PRAGMA a.journal_mode=DELETE").unwrap();
    world.storm(0, Trouble::Hang);
    let error = insert(&all, 2).unwrap_err();
    assert!(is_an_io_error(&error), "{error}");
    drop(all);
    goes_on(&world, &connection, "attached");
}

/// The image of a database that is not read at once waits for the store to answer, which nobody asks after the upload was given up.
#[test]
fn a_large_database_goes_on_after_the_store_was_away() {
    for (locking, journal) in every_mode() {
        let what = format!("{locking} {journal}");
        let world = World::new(&format!("large-{locking}-{journal}"));
        let connection = world.open_in(locking, journal);
        connection
            .execute_batch("INSERT INTO t VALUES(1, randomblob(3000000))")
            .unwrap();
        world.storm(0, Trouble::Temporary);
        let error = insert(&connection, 2).unwrap_err();
        assert!(is_an_io_error(&error), "{what}: {error}");
        world.store.weather.clear_up_and_lose_connections();
        let flush = || connection.query_row("PRAGMA replvfs_flush", [], |_| Ok(()));
        // Who keeps the file for itself brings the image with its next write.
        let is_over = || status(&connection)["last_error"]["over"] == true;
        let has_answered = (0..30).any(|_| flush().is_ok() || is_over());
        assert!(has_answered, "{what}: {}", status(&connection));
        goes_on(&world, &connection, &what);
    }
}

/// Its last page is one that was freed again, so SQLite asks how long the file is, as it does when it rolls back.
#[test]
fn what_grows_behind_one_that_was_rolled_back_is_held_back() {
    for journal in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"] {
        let world = World::new(&format!("grows-{journal}"));
        let connection = world.open_in("EXCLUSIVE", journal);
        insert(&connection, 1).unwrap();
        connection
            .execute_batch(
                "PRAGMA cache_size=2; BEGIN; UPDATE t SET b = randomblob(100000); ROLLBACK; PRAGMA cache_size=2000",
            )
            .unwrap();
        world.storm(0, Trouble::Temporary);
        let grows = "BEGIN; INSERT INTO t VALUES(2, 1), (4, zeroblob(200000)); DELETE FROM t WHERE a = 4; COMMIT";
        connection.execute_batch(grows).expect_err(journal);
        goes_on(&world, &connection, journal);
    }
}

/// The next transaction does not wait, and is open when the image is asked for.
#[test]
fn no_image_is_taken_in_the_middle_of_what_follows() {
    for journal in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"] {
        let world = World::new(&format!("middle-{journal}"));
        let connection = world.open_in("EXCLUSIVE", journal);
        connection
            .execute_batch(
                "WITH n(n) AS (VALUES(1) UNION ALL SELECT n + 1 FROM n LIMIT 1000) INSERT INTO t SELECT n, 1 || hex(zeroblob(1500)) FROM n",
            )
            .unwrap();
        world.storm(0, Trouble::Temporary);
        insert(&connection, 2000).expect_err(journal);
        connection
            .execute_batch(
                "PRAGMA replvfs_durability=async; PRAGMA cache_size=2; BEGIN; UPDATE t SET b = 2 || hex(zeroblob(1500))",
            )
            .unwrap();
        world.store.weather.clear_up_and_lose_connections();
        for _ in 0..3 {
            let _ = connection.query_row("PRAGMA replvfs_flush", [], |_| Ok(()));
        }
        let store = Store::from_operator(world.store.healthy.clone());
        let out = world.scratch.file("elsewhere.db");
        restore_from(&store, Target::Newest, &out).unwrap();
        check_integrity(&out);
        let is_open = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        let open: i64 = plain(&out)
            .query_row("SELECT count(*) FROM t WHERE b LIKE '2%'", [], is_open)
            .unwrap();
        assert_eq!(open, 0, "{journal}");
        std::fs::remove_file(out).unwrap();
        connection
            .execute_batch("ROLLBACK; UPDATE t SET b = 3 WHERE a = 1; PRAGMA replvfs_durability=strict")
            .unwrap();
        insert(&connection, 2001).unwrap();
        assert_eq!(world.restore(None), Some(rows_of(&connection)), "{journal}");
    }
}

/// Behind an error SQLite begins anew, and asks how long the file is, as it does when it rolls back.
#[test]
fn what_follows_an_error_behind_one_that_was_rolled_back_is_held_back() {
    for journal in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"] {
        let world = World::new(&format!("error-{journal}"));
        let connection = world.open_in("EXCLUSIVE", journal);
        insert(&connection, 1).unwrap();
        world.storm(0, Trouble::Temporary);
        insert(&connection, 2).expect_err(journal);
        // From MEMORY to WAL it goes without a journal, which is refused at the first page.
        let _ = connection.execute_batch("PRAGMA journal_mode=MEMORY; PRAGMA journal_mode=WAL");
        insert(&connection, 2).expect_err(journal);
        goes_on(&world, &connection, journal);
    }
}

/// It is committed in the first one, with a WAL, and `COMMIT_PHASETWO` comes to none of them.
#[test]
fn what_follows_one_that_failed_in_the_second_database_is_held_back() {
    for (locking, journal) in every_mode() {
        let what = format!("{locking} {journal}");
        let worlds = ["a", "b"].map(|name| World::new(&format!("second-{name}-{locking}-{journal}")));
        let connection = open("file::memory:").unwrap();
        for (name, world) in ["a", "b"].iter().zip(&worlds) {
            drop(world.open_in("NORMAL", "DELETE"));
            connection
                .execute_batch(&format!("ATTACH '{}' AS {name}", world.uri()))
                .unwrap();
            let modes = format!("PRAGMA {name}.locking_mode={locking}; PRAGMA {name}.journal_mode={journal};");
            connection.execute_batch(&modes.replace("LATER", "NORMAL")).unwrap();
            connection
                .execute_batch(&format!("INSERT INTO {name}.t VALUES(1, 1)"))
                .unwrap();
            if locking == "LATER" {
                connection
                    .execute_batch(&format!("PRAGMA {name}.locking_mode=EXCLUSIVE; SELECT * FROM {name}.t"))
                    .unwrap();
            }
        }
        let rows = || {
            let mut all = connection.prepare("SELECT a FROM a.t").unwrap();
            let rows = all.query_map([], |row| row.get(0)).unwrap();
            rows.map(Result::unwrap).collect::<BTreeSet<i64>>()
        };
        worlds[1].storm(0, Trouble::Temporary);
        connection
            .execute_batch("BEGIN; INSERT INTO a.t VALUES(2, 1); INSERT INTO b.t VALUES(2, 1); COMMIT")
            .expect_err(&what);
        let before = rows();
        worlds[0].storm(0, Trouble::Temporary);
        connection
            .execute_batch("INSERT INTO a.t VALUES(3, 1)")
            .expect_err(&what);
        assert_eq!(rows(), before, "{what}");
        worlds
            .iter()
            .for_each(|world| world.store.weather.clear_up_and_lose_connections());
        connection
            .execute_batch("INSERT INTO a.t VALUES(4, 1); INSERT INTO b.t VALUES(4, 1)")
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(worlds[0].restore(None), Some(rows()), "{what}");
        assert_eq!(worlds[1].restore(None), Some([1, 4].into()), "{what}");
    }
}

/// What has returned is here and there, and what failed is nowhere, whatever the store does.
#[test]
fn whatever_the_store_does() {
    use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
    let seconds = replvfs_tests::number("REPLVFS_STRICT_SECONDS").unwrap_or(2);
    let modes = [
        ("NORMAL", "WAL"),
        ("NORMAL", "DELETE"),
        ("EXCLUSIVE", "WAL"),
        ("EXCLUSIVE", "DELETE"),
        ("LATER", "WAL"),
        ("NORMAL", "PERSIST"),
    ];
    std::thread::scope(|outer| {
        for (locking, journal) in modes {
            outer.spawn(move || {
                let what = format!("{locking} {journal}");
                let world = World::with(
                    &format!("stress-{locking}-{journal}"),
                    Duration::from_millis(60),
                    OnFenced::Continue,
                );
                let connection = world.open_in(locking, journal);
                insert(&connection, 0).unwrap();
                let (stop, next) = (AtomicBool::new(false), AtomicI64::new(1));
                let ok = Mutex::new(BTreeSet::from([0_i64]));
                let failed = Mutex::new(BTreeSet::new());
                let seed = AtomicI64::new(what.len() as i64 * 7919 + std::process::id() as i64);
                let random = |n: i64| {
                    let x = seed.fetch_add(0x9E3779B9, Ordering::Relaxed) as u64;
                    let x = (x ^ (x >> 15)).wrapping_mul(0x2545F4914F6CDD1D);
                    ((x >> 33) as i64) % n
                };
                let write = |connection: &Connection| {
                    let row = next.fetch_add(1, Ordering::Relaxed);
                    let size = if random(4) == 0 { 400_000 } else { 3000 };
                    let done = connection.execute_batch(&format!("INSERT INTO t VALUES({row}, randomblob({size}))"));
                    match done {
                        Ok(()) => {
                            ok.lock().unwrap().insert(row);
                        }
                        Err(error) => {
                            if !connection.is_autocommit() {
                                let _ = connection.execute_batch("ROLLBACK");
                            }
                            failed.lock().unwrap().insert((row, error.to_string()));
                        }
                    }
                };
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            let trouble =
                                [Trouble::Hang, Trouble::Lost, Trouble::Temporary, Trouble::Lost][random(4) as usize];
                            world.store.weather.storm(Some(Storm {
                                at: random(6) as usize,
                                trouble,
                                lasting: random(2) == 0,
                            }));
                            std::thread::sleep(Duration::from_millis(random(150) as u64));
                            world.store.weather.clear_up_and_lose_connections();
                            std::thread::sleep(Duration::from_millis(random(120) as u64));
                        }
                    });
                    if locking == "NORMAL" {
                        scope.spawn(|| {
                            let other = world.open();
                            other.busy_timeout(Duration::from_millis(200)).unwrap();
                            while !stop.load(Ordering::Relaxed) {
                                write(&other);
                            }
                        });
                        scope.spawn(|| {
                            let reader = world.open();
                            while !stop.load(Ordering::Relaxed) {
                                let _ = reader.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
                                std::thread::sleep(Duration::from_millis(1));
                            }
                        });
                    }
                    let end = std::time::Instant::now() + Duration::from_secs(seconds);
                    connection.busy_timeout(Duration::from_millis(200)).unwrap();
                    while std::time::Instant::now() < end {
                        write(&connection);
                    }
                    stop.store(true, Ordering::Relaxed);
                });
                world.store.weather.clear_up_and_lose_connections();
                connection.busy_timeout(Duration::from_secs(20)).unwrap();
                let mut tries = 0;
                let last = loop {
                    let row = next.fetch_add(1, Ordering::Relaxed);
                    tries += 1;
                    match insert(&connection, row) {
                        Ok(()) => break row,
                        Err(error) if tries > 100 => panic!("{what}: {error} {}", status(&connection)),
                        Err(_) => {}
                    }
                };
                let mut ok = ok.into_inner().unwrap();
                ok.insert(last);
                let here = rows_of(&connection);
                let failed = failed.into_inner().unwrap();
                let odd: Vec<_> = here.symmetric_difference(&ok).collect();
                let why: Vec<_> = failed.iter().filter(|(row, _)| odd.contains(&row)).collect();
                assert!(odd.is_empty(), "{what} here: {odd:?} {why:?}");
                let there = world.restore(None).unwrap();
                let odd: Vec<_> = there.symmetric_difference(&ok).collect();
                assert!(odd.is_empty(), "{what} there: {odd:?}");
                let newest = pragma_number(&connection, "replvfs_txid").unwrap();
                for txid in (0..=newest).rev().take(60) {
                    if let Some(rows) = world.restore(Some(txid)) {
                        assert!(
                            rows.is_subset(&ok),
                            "{what} {txid}: {:?}",
                            rows.difference(&ok).collect::<Vec<_>>()
                        );
                    }
                }
            });
        }
    });
}
