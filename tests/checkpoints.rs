//! What checkpoints answer while the store is away, and what they leave: what they do without replvfs.
#![allow(missing_docs)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr;

use libsqlite3_sys as ffi;
use replvfs::Config;
use replvfs_tests::weather::{FaultyStore, Storm, Trouble};
use replvfs_tests::{fast_folder, flush, open};
use rusqlite::Connection;
use tempfile::TempDir;

/// SQLite's default `wal_autocheckpoint`.
const ORDINARY: u32 = 1000;

/// A writer whose store can be sent away.
struct Writer {
    connection: Connection,
    store: FaultyStore,
    folder: TempDir,
}

impl Writer {
    fn new(name: &str) -> Writer {
        let (folder, store) = (fast_folder(), FaultyStore::new(true));
        let name = format!("replvfs-checkpoints-{name}");
        let config = Config::default().vfs_name(&name).operator(store.faulty.clone());
        replvfs::register(config).unwrap();
        let file = folder.path().join("app.db");
        let connection = open(&format!(
            "file:{}?vfs={name}&restore=never&close_timeout=0s",
            file.display()
        ))
        .unwrap();
        connection
            .execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
            .unwrap();
        flush(&connection);
        Writer {
            connection,
            store,
            folder,
        }
    }

    fn send_store_away(&self) {
        self.store.weather.storm(Some(Storm::lasting(Trouble::Temporary)));
    }

    /// A transaction of a page or two.
    fn commit(&self) {
        self.connection
            .execute("INSERT INTO t(b) VALUES (randomblob(3000))", [])
            .unwrap();
    }

    /// A few of them; the frames in the WAL behind them, not all of which are in the database file.
    fn commits(&self) -> i32 {
        (0..3).for_each(|_| self.commit());
        let (frames, backfilled) = self.frames();
        assert!(backfilled < frames, "{backfilled} of {frames}");
        i32::try_from(frames).unwrap()
    }

    fn fill(&self, frames: u32) {
        while self.frames().0 < frames {
            self.commit();
        }
    }

    /// Those in the WAL, and those of them that are in the database file: `mxFrame` and `nBackfill` of the wal-index
    /// (<https://sqlite.org/walformat.html>).
    fn frames(&self) -> (u32, u32) {
        let index = std::fs::read(self.folder.path().join("app.db-shm")).unwrap();
        let number = |at: usize| u32::from_ne_bytes(index[at..at + 4].try_into().unwrap());
        (number(16), number(96))
    }

    /// By the function, right behind whatever was done before. What it answers, and the frames in the WAL and those checkpointed.
    fn checkpoint(&self, mode: i32) -> (i32, i32, i32) {
        let (mut log, mut done) = (-2, -2);
        let main = CString::new("main").unwrap();
        // SAFETY: an open connection, used by this thread.
        let code = unsafe {
            ffi::sqlite3_wal_checkpoint_v2(
                self.connection.handle(),
                main.as_ptr(),
                mode,
                ptr::from_mut(&mut log),
                ptr::from_mut(&mut done),
            )
        };
        (code, log, done)
    }

    fn by_pragma(&self, mode: &str) -> (i32, i32, i32) {
        let pragma = format!("PRAGMA wal_checkpoint({mode})");
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        self.connection.query_row(&pragma, [], row).unwrap()
    }
}

/// SQLite's own, behind each commit that leaves 1000 frames or more.
#[test]
fn automatic_ones_are_done() {
    let writer = Writer::new("own");
    writer.send_store_away();
    writer.fill(ORDINARY);
    for round in 0..3000 {
        writer.commit();
        let (frames, backfilled) = writer.frames();
        // It may have been restarted: what the store has not was carried over.
        assert!(
            frames < ORDINARY || backfilled == frames,
            "round {round}: {backfilled} of {frames}"
        );
    }
}

/// What a hook answers becomes the answer to the statement, whose commit is done.
#[test]
fn a_hook_that_checkpoints_gets_no_error() {
    unsafe extern "C" fn checkpoint(
        _: *mut c_void,
        connection: *mut ffi::sqlite3,
        name: *const c_char,
        frames: c_int,
    ) -> c_int {
        match u32::try_from(frames) {
            // SAFETY: SQLite's arguments, on its thread.
            Ok(ORDINARY..) => unsafe { ffi::sqlite3_wal_checkpoint(connection, name) },
            _ => ffi::SQLITE_OK,
        }
    }
    let writer = Writer::new("hook");
    // SAFETY: an open connection, used by this thread; the hook needs nothing.
    unsafe { ffi::sqlite3_wal_hook(writer.connection.handle(), Some(checkpoint), ptr::null_mut()) };
    writer.send_store_away();
    writer.fill(ORDINARY);
    (0..300).for_each(|_| writer.commit());
}

#[test]
fn those_that_are_asked_for_are_done() {
    let writer = Writer::new("asked");
    writer.connection.execute_batch("PRAGMA wal_autocheckpoint=0").unwrap();
    writer.send_store_away();
    writer.fill(ORDINARY);
    for round in 0..30 {
        for mode in [ffi::SQLITE_CHECKPOINT_PASSIVE, ffi::SQLITE_CHECKPOINT_FULL] {
            let frames = writer.commits();
            let done = writer.checkpoint(mode);
            assert_eq!(done, (ffi::SQLITE_OK, frames, frames), "round {round}, mode {mode}");
        }
        for mode in ["PASSIVE", "FULL"] {
            let frames = writer.commits();
            assert_eq!(writer.by_pragma(mode), (0, frames, frames), "round {round}, {mode}");
        }
    }
    // These carry over what the store has not, and so does a restart of which there is no sign but that it is done.
    for round in 0..3 {
        writer.commits();
        let done = writer.checkpoint(ffi::SQLITE_CHECKPOINT_TRUNCATE);
        assert_eq!(done, (ffi::SQLITE_OK, 0, 0), "round {round}");
        writer.commits();
        assert_eq!(writer.by_pragma("TRUNCATE"), (0, 0, 0), "round {round}");
    }
}
