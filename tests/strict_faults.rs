//! `durability=strict` above a disk that fails: a transaction that is in the store and that SQLite rolls back after all is in no state that follows.
#![allow(missing_docs)]
// What is not asked of the faults here is asked by their own tests.
#![allow(dead_code)]

#[path = "io_faults/plan.rs"]
mod plan;
#[path = "io_faults/vfs.rs"]
mod vfs;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use plan::{Fault, Kind, Method, Run, Site};
use replvfs::history::Target;
use replvfs_tests::{Scratch, open, pragma_number, status, try_restore};
use replvfs_vfs::types::Txid;
use rusqlite::{Connection, OpenFlags};

fn rows_of(connection: &Connection) -> BTreeSet<i64> {
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

fn rows_in(path: &Path) -> BTreeSet<i64> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    rows_of(&Connection::open_with_flags_and_vfs(path, flags, c"unix").unwrap())
}

fn restored(scratch: &Scratch, target: Target) -> Option<BTreeSet<i64>> {
    let out = scratch.file("elsewhere.db");
    let restored = try_restore(&scratch.replica(), target, &out).ok()?;
    let rows = rows_in(&out);
    std::fs::remove_file(out).unwrap();
    (target == Target::Newest || restored.warnings.is_empty()).then_some(rows)
}

fn insert(connection: &Connection, row: i64) -> rusqlite::Result<()> {
    connection.execute_batch(&format!("INSERT INTO t VALUES({row}, randomblob(3000))"))
}

/// A database whose second commit meets the fault. `site` may look at the calls of a commit that met none.
fn live(locking: &str, journal: &str, site: impl Fn(&Run) -> Site) {
    vfs::register();
    let scratch = Scratch::in_memory();
    let run = Arc::new(Run::default());
    vfs::assign(&scratch.path().canonicalize().unwrap(), &run);
    let uri = scratch
        .uri_with("&flush_interval=1h&durability=strict&timeout=60s")
        .replace("vfs=replvfs&", "vfs=probe-replvfs&");
    let connection = open(&uri).unwrap();
    connection
        .execute_batch(&format!(
            "PRAGMA locking_mode={locking}; PRAGMA journal_mode={journal}; PRAGMA synchronous=FULL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)"
        ))
        .unwrap();
    insert(&connection, 0).unwrap();
    run.arm(None);
    insert(&connection, 1).unwrap();
    let site = site(&run);
    let what = format!("{locking} {journal} {site:?}");
    let effect = if matches!(site, Site::Own(_)) { 1 } else { 0 };
    run.arm(Some(Fault {
        site,
        effect,
        lasting: false,
        everywhere: false,
    }));
    insert(&connection, 2).expect_err(&what);
    assert!(run.struck().is_some(), "{what}");
    run.heal();
    // It was in the store, and nothing says otherwise before the next image.
    assert_eq!(rows_of(&connection), [0, 1].into(), "{what}");
    insert(&connection, 3).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(rows_of(&connection), [0, 1, 3].into(), "{what}");
    assert_eq!(restored(&scratch, Target::Newest), Some([0, 1, 3].into()), "{what}");
    let newest = pragma_number(&connection, "replvfs_txid").unwrap();
    assert_eq!(pragma_number(&connection, "replvfs_acked"), Some(newest), "{what}");
    let history: Vec<_> = (0..=newest)
        .filter_map(|txid| restored(&scratch, Target::Txid(Txid(txid))))
        .collect();
    assert!(history.iter().all(|rows| !rows.contains(&2)), "{what}: {history:?}");
    assert_eq!(status(&connection)["generation"], 2, "{what}");
    drop(connection);
    assert_eq!(rows_in(&scratch.database()), [0, 1, 3].into(), "{what}");
}

fn first(method: Method, kind: Kind) -> impl Fn(&Run) -> Site {
    move |_| Site::Connection(method, kind, 0)
}

#[test]
fn the_commit_frame_cannot_be_written() {
    for locking in ["NORMAL", "EXCLUSIVE"] {
        live(locking, "WAL", |run| {
            let own = run.own_calls();
            let write = own.iter().rposition(|call| *call == (Method::Write, Kind::Wal));
            Site::Own(write.expect("the header of the commit frame") as u32)
        });
    }
}

#[test]
fn the_wal_cannot_be_synced() {
    for locking in ["NORMAL", "EXCLUSIVE"] {
        live(locking, "WAL", first(Method::Sync, Kind::Wal));
    }
}

#[test]
fn the_database_cannot_be_synced() {
    for locking in ["NORMAL", "EXCLUSIVE"] {
        live(locking, "DELETE", first(Method::Sync, Kind::Main));
    }
}

#[test]
fn the_journal_cannot_be_ended() {
    live("NORMAL", "DELETE", first(Method::Delete, Kind::Journal));
    live("NORMAL", "TRUNCATE", first(Method::Truncate, Kind::Journal));
}

/// Else it would be gone after a power failure, and nothing tell that it was confirmed.
#[test]
fn what_is_confirmed_is_on_the_disk() {
    vfs::register();
    let scratch = Scratch::in_memory();
    let run = Arc::new(Run::default());
    vfs::assign(&scratch.path().canonicalize().unwrap(), &run);
    let uri = scratch
        .uri_with("&flush_interval=1h&durability=strict&timeout=60s")
        .replace("vfs=replvfs&", "vfs=probe-replvfs&");
    let connection = open(&uri).unwrap();
    connection
        .execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    insert(&connection, 0).unwrap();
    run.arm(None);
    insert(&connection, 1).unwrap();
    let own = run.own_calls();
    let last = |method| own.iter().rposition(|call| *call == (method, Kind::Wal));
    assert!(last(Method::Write).is_some(), "the header of the commit frame: {own:?}");
    assert!(last(Method::Sync) > last(Method::Write), "{own:?}");
}
