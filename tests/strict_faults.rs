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

/// `LATER` is EXCLUSIVE that is asked for with the WAL in use already, where there is a wal-index.
fn in_wal_mode(locking: &str) -> (Scratch, Arc<Run>, Connection) {
    vfs::register();
    let scratch = Scratch::in_memory();
    let run = Arc::new(Run::default());
    vfs::assign(&scratch.path().canonicalize().unwrap(), &run);
    let uri = scratch
        .uri_with("&flush_interval=1h&durability=strict&timeout=60s")
        .replace("vfs=replvfs&", "vfs=probe-replvfs&");
    let connection = open(&uri).unwrap();
    let first = locking.replace("LATER", "NORMAL");
    connection
        .execute_batch(&format!(
            "PRAGMA locking_mode={first}; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0;
             CREATE TABLE t(a INTEGER PRIMARY KEY, b)"
        ))
        .unwrap();
    if locking == "LATER" {
        connection
            .execute_batch("PRAGMA locking_mode=EXCLUSIVE; SELECT * FROM t")
            .unwrap();
    }
    insert(&connection, 0).unwrap();
    (scratch, run, connection)
}

/// What another process would find after a crash.
fn crashed(scratch: &Scratch) -> BTreeSet<i64> {
    let folder = scratch.file("crashed");
    std::fs::create_dir(&folder).unwrap();
    for suffix in ["", "-wal"] {
        let name = format!("app.db{suffix}");
        std::fs::copy(scratch.file(&name), folder.join(&name)).unwrap();
    }
    rows_in(&folder.join("app.db"))
}

/// Its frame is in the WAL, and nothing but the wal-index in memory says that it was rolled back.
#[test]
fn a_commit_that_failed_behind_its_frame_is_not_recovered() {
    let faults = [
        ("NORMAL", Site::Connection(Method::Sync, Kind::Wal, 0)),
        ("LATER", Site::Connection(Method::Sync, Kind::Wal, 0)),
    ];
    let syncs = ["NORMAL", "EXCLUSIVE", "LATER"].map(|locking| {
        let (_scratch, run, connection) = in_wal_mode(locking);
        run.arm(None);
        insert(&connection, 1).unwrap();
        let own = run.own_calls();
        let sync = own.iter().rposition(|call| *call == (Method::Sync, Kind::Wal));
        (locking, Site::Own(sync.expect("the sync of the commit frame") as u32))
    });
    for (locking, site) in faults.into_iter().chain(syncs) {
        let what = format!("{locking} {site:?}");
        let (scratch, run, connection) = in_wal_mode(locking);
        run.arm(Some(Fault {
            site,
            effect: 0,
            lasting: false,
            everywhere: false,
        }));
        insert(&connection, 1).expect_err(&what);
        assert_eq!(run.struck(), Some((Method::Sync, Kind::Wal)), "{what}");
        run.heal();
        assert_eq!(crashed(&scratch), [0].into(), "{what}");
        insert(&connection, 2).unwrap();
        assert_eq!(rows_of(&connection), [0, 2].into(), "{what}");
        assert_eq!(restored(&scratch, Target::Newest), Some([0, 2].into()), "{what}");
    }
}

/// The same where the wal-index cannot grow.
#[test]
fn a_commit_for_which_the_index_has_no_room_is_not_recovered() {
    for locking in ["NORMAL", "LATER"] {
        let (scratch, run, connection) = in_wal_mode(locking);
        // The first part of the index has room for 4062 frames.
        connection
            .execute_batch("UPDATE t SET b = randomblob(16600000)")
            .unwrap();
        run.arm(Some(Fault {
            site: Site::Connection(Method::ShmMap, Kind::Main, 0),
            effect: 0,
            lasting: false,
            everywhere: false,
        }));
        let failed = (1..100).find(|row| insert(&connection, *row).is_err());
        let failed = failed.expect("an index that grows");
        assert_eq!(run.struck(), Some((Method::ShmMap, Kind::Main)), "{locking}");
        run.heal();
        let committed: BTreeSet<_> = (0..failed).collect();
        assert_eq!(rows_of(&connection), committed, "{locking}");
        assert_eq!(crashed(&scratch), committed, "{locking}");
        // Who keeps the file for itself cannot bring an image out of so long a WAL.
        connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .unwrap();
        insert(&connection, failed + 1).unwrap();
    }
}

/// The journals of a transaction over several databases are ended one after the other.
#[test]
fn every_journal_of_a_transaction_is_ended_durably() {
    for second in ["strict", "async"] {
        vfs::register();
        let scratches = [Scratch::in_memory(), Scratch::in_memory()];
        let runs = scratches.each_ref().map(|scratch| {
            let run = Arc::new(Run::default());
            vfs::assign(&scratch.path().canonicalize().unwrap(), &run);
            run
        });
        // Without a file for the main database there is no super-journal.
        let connection = open("file::memory:").unwrap();
        for (name, scratch, level) in [("a", &scratches[0], "strict"), ("b", &scratches[1], second)] {
            let uri = scratch
                .uri_with(&format!("&flush_interval=1h&durability={level}&timeout=60s"))
                .replace("vfs=replvfs&", "vfs=probe-replvfs&");
            connection
                .execute_batch(&format!("ATTACH '{uri}' AS {name}; CREATE TABLE {name}.t(a)"))
                .unwrap();
        }
        runs.iter().for_each(|run| run.arm(None));
        connection
            .execute_batch("BEGIN; INSERT INTO a.t VALUES(2); INSERT INTO b.t VALUES(2); COMMIT")
            .unwrap();
        assert_eq!(runs[0].ended_journals(), [true], "{second}");
        assert_eq!(runs[1].ended_journals(), [second == "strict"], "{second}");
    }
}
