//! A database of its own in a store that fails on demand, and what is asked of it after each failure.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use replvfs::Config;
use replvfs::config::{Durability, OnFenced, Restore};
use replvfs::history::Target;
use replvfs::store::Store;
use replvfs_tests::weather::{FaultyStore, Storm, Trouble};
use replvfs_tests::{Scratch, check_integrity, open, pragma_number, restore_from, status};
use replvfs_vfs::types::Txid;
use rusqlite::{Connection, ErrorCode, OpenFlags};

pub(crate) const JOURNALS: [&str; 5] = ["WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY"];
pub(crate) const LOCKINGS: [&str; 2] = ["NORMAL", "EXCLUSIVE"];
/// So late that nothing is uploaded but for who waits.
pub(crate) const NEVER: Duration = Duration::from_secs(3600);

/// `LATER` is EXCLUSIVE that is asked for with the WAL in use already: there is a wal-index, and no lock of it is taken any more.
pub(crate) fn every_mode() -> impl Iterator<Item = (&'static str, &'static str)> {
    let modes = LOCKINGS
        .iter()
        .flat_map(|locking| JOURNALS.iter().map(|journal| (*locking, *journal)));
    modes.chain([("LATER", "WAL")])
}

/// A database of its own, in a store that fails on demand.
pub(crate) struct World {
    pub(crate) scratch: Scratch,
    pub(crate) store: FaultyStore,
    pub(crate) name: String,
}

impl World {
    pub(crate) fn new(name: &str) -> World {
        World::with(name, Duration::from_millis(600), OnFenced::Continue)
    }

    pub(crate) fn with(name: &str, timeout: Duration, on_fenced: OnFenced) -> World {
        let world = World {
            scratch: Scratch::in_memory(),
            store: FaultyStore::new(true),
            name: name.to_ascii_lowercase(),
        };
        world.register(&world.name, timeout, on_fenced);
        world
    }

    /// Another process to this store would have this.
    pub(crate) fn register(&self, name: &str, timeout: Duration, on_fenced: OnFenced) {
        let config = Config::default()
            .vfs_name(name)
            .operator(self.store.faulty.clone())
            .durability(Durability::Strict)
            .on_fenced(on_fenced)
            // An open asks nothing of the store.
            .restore(Restore::Never)
            .flush_interval(NEVER)
            .timeout(timeout);
        replvfs::register(config).unwrap();
    }

    pub(crate) fn uri(&self) -> String {
        format!("file:{}?vfs={}", self.scratch.database().display(), self.name)
    }

    pub(crate) fn open(&self) -> Connection {
        open(&self.uri()).unwrap()
    }

    pub(crate) fn open_in(&self, locking: &str, journal: &str) -> Connection {
        let connection = self.open();
        prepare(&connection, locking, journal);
        connection
    }

    pub(crate) fn storm(&self, at: usize, trouble: Trouble) {
        self.store.weather.storm(Some(Storm {
            at,
            trouble,
            lasting: true,
        }));
    }

    pub(crate) fn wait_for_the_storm(&self) {
        while !self.store.weather.has_struck() {
            std::thread::yield_now();
        }
    }

    pub(crate) fn restore(&self, txid: Option<u64>) -> Option<BTreeSet<i64>> {
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
    pub(crate) fn history(&self, newest: u64) -> Vec<BTreeSet<i64>> {
        (0..=newest).filter_map(|txid| self.restore(Some(txid))).collect()
    }
}

pub(crate) fn prepare(connection: &Connection, locking: &str, journal: &str) {
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

pub(crate) fn rows_of(connection: &Connection) -> BTreeSet<i64> {
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

pub(crate) fn plain(path: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags_and_vfs(path, flags, c"unix").unwrap()
}

pub(crate) fn rows_in(path: &Path) -> BTreeSet<i64> {
    rows_of(&plain(path))
}

pub(crate) fn insert(connection: &Connection, row: i64) -> rusqlite::Result<()> {
    connection.execute_batch(&format!("INSERT INTO t VALUES({row}, randomblob(3000))"))
}

/// What is on the disk now, as a crash would leave it.
pub(crate) fn crash_image(world: &World, folder: &str) -> PathBuf {
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

pub(crate) fn is_an_io_error(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure)
}

/// The rows of the database, of a crash, and of each state of the history, after a commit that failed and one that did not.
pub(crate) fn goes_on(world: &World, connection: &Connection, what: &str) {
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
