//! SQLite's automatic checkpoints wait while the store is behind, up to a bound; checkpoints that somebody asks for never do.
#![allow(missing_docs)]

use std::ffi::CString;
use std::path::Path;
use std::ptr;

use libsqlite3_sys as ffi;
use replvfs::Config;
use replvfs::history::Target;
use replvfs::store::Store;
use replvfs_tests::weather::{FaultyStore, Storm, Trouble};
use replvfs_tests::{fast_folder, flush, open, restore_from};
use rusqlite::Connection;
use tempfile::TempDir;

/// SQLite's default `wal_autocheckpoint`.
const ORDINARY: u32 = 1000;
/// Of a page, with its header in the WAL.
const FRAME_BYTES: u64 = 4096 + 24;
/// What may wait at most.
const MOST_BYTES: u64 = 16 << 20;

/// A writer whose store can be sent away.
struct Writer {
    connection: Connection,
    store: FaultyStore,
    folder: TempDir,
}

impl Writer {
    fn new(name: &str) -> Writer {
        let (folder, store) = (fast_folder(), FaultyStore::new(true));
        let name = format!("replvfs-automatic-{name}");
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
        self.store.weather.storm(Some(Storm {
            at: 0,
            trouble: Trouble::Temporary,
            lasting: true,
        }));
    }

    /// A transaction of a page or two.
    fn commit(&self) {
        self.connection
            .execute("INSERT INTO t(b) VALUES (randomblob(3000))", [])
            .unwrap();
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

/// Until there is as much as it may be; then one checkpoint does it all, and it begins anew.
#[test]
fn they_wait_while_the_store_is_away() {
    let writer = Writer::new("wait");
    writer.send_store_away();
    let (mut checkpoints, mut last) = (0, 0);
    let mut most = 0;
    while writer.frames().0 < 11_000 {
        writer.commit();
        let (frames, backfilled) = writer.frames();
        most = most.max(u64::from(frames - backfilled) * FRAME_BYTES);
        checkpoints += u32::from(backfilled != last);
        last = backfilled;
    }
    // The first ones tell that they are automatic.
    assert!(
        (3..=5).contains(&checkpoints),
        "{checkpoints} checkpoints, the last of {last} frames"
    );
    assert!(most <= MOST_BYTES + 4 * FRAME_BYTES, "{most} bytes");
    assert!(most > MOST_BYTES / 2, "{most} bytes");
}

#[test]
fn the_next_one_comes_when_the_store_is_back() {
    let writer = Writer::new("back");
    writer.send_store_away();
    writer.fill(2 * ORDINARY);
    let (frames, backfilled) = writer.frames();
    assert!(backfilled < ORDINARY + 100, "{backfilled} of {frames}");
    writer.store.weather.clear_up();
    flush(&writer.connection);
    writer.commit();
    let (frames, backfilled) = writer.frames();
    assert!(
        frames > 2 * ORDINARY && backfilled == frames,
        "{backfilled} of {frames}"
    );
    // Which leaves nothing in the WAL that the next commit would have to keep.
    writer.commit();
    assert!(writer.frames().0 < 10);
    flush(&writer.connection);
    let rows = |connection: &Connection| connection.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
    let restored = restored(&writer);
    assert_eq!(rows(&restored).unwrap(), rows(&writer.connection).unwrap());
}

fn restored(writer: &Writer) -> Connection {
    let out = writer.folder.path().join("restored.db");
    let store = Store::from_operator(writer.store.healthy.clone());
    restore_from(&store, Target::Newest, &out).unwrap();
    open_plain(&out)
}

fn open_plain(path: &Path) -> Connection {
    Connection::open(path).unwrap()
}

#[test]
fn one_that_is_asked_for_is_done() {
    let writer = Writer::new("asked");
    writer.send_store_away();
    writer.fill(2 * ORDINARY);
    for mode in ["PASSIVE", "FULL"] {
        writer.commit();
        let (frames, backfilled) = writer.frames();
        assert!(backfilled < frames, "{mode}: {backfilled} of {frames}");
        let frames = i32::try_from(frames).unwrap();
        assert_eq!(writer.by_pragma(mode), (0, frames, frames), "{mode}");
    }
    for mode in [ffi::SQLITE_CHECKPOINT_PASSIVE, ffi::SQLITE_CHECKPOINT_FULL] {
        writer.commit();
        let (frames, backfilled) = writer.frames();
        assert!(backfilled < frames, "{mode}: {backfilled} of {frames}");
        let frames = i32::try_from(frames).unwrap();
        assert_eq!(writer.checkpoint(mode), (ffi::SQLITE_OK, frames, frames), "{mode}");
    }
    writer.commit();
    assert_eq!(
        writer.checkpoint(ffi::SQLITE_CHECKPOINT_TRUNCATE),
        (ffi::SQLITE_OK, 0, 0)
    );
}

/// A program that turned them off, and checkpoints by the function now and then, right behind a commit.
#[test]
fn without_automatic_ones_none_is_taken_for_one() {
    let writer = Writer::new("own");
    writer.connection.execute_batch("PRAGMA wal_autocheckpoint=0").unwrap();
    writer.send_store_away();
    writer.fill(ORDINARY);
    for round in 0..10 {
        (0..3).for_each(|_| writer.commit());
        let (frames, backfilled) = writer.frames();
        assert!(backfilled < frames);
        let frames = i32::try_from(frames).unwrap();
        let done = writer.checkpoint(ffi::SQLITE_CHECKPOINT_PASSIVE);
        assert_eq!(done, (ffi::SQLITE_OK, frames, frames), "round {round}");
    }
    // By PRAGMA it is known for what it is, also behind each commit.
    for round in 0..10 {
        writer.commit();
        let frames = i32::try_from(writer.frames().0).unwrap();
        assert_eq!(writer.by_pragma("PASSIVE"), (0, frames, frames), "round {round}");
    }
}
