//! The rollback-journal modes: what is a transaction there, what goes on when the mode changes, and what others did meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod collector;

use std::path::Path;
use std::time::Duration;

use collector::faults::{self, Fault};
use collector::{Collector, open, plain, txid};
use replvfs_vfs::log::Continuity;
use rusqlite::{Connection, MAIN_DB};

const MODES: [&str; 5] = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"];
const INSERT: &str = "INSERT INTO t(b) VALUES(randomblob(20000))";

/// In the mode, with a table. The first commit is the base, the table's in most modes.
fn with_table(path: &Path, pragmas: &str) -> Connection {
    let connection = open(path);
    connection
        .execute_batch(&format!("{pragmas}; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)"))
        .unwrap();
    Collector::of(path).states(txid(&connection));
    connection
}

/// The database file, whose locks nobody outside this process looks at.
fn file(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn assert_current(connection: &Connection, path: &Path) {
    let last = txid(connection);
    let states = Collector::of(path).states(last);
    assert!(states[&last] == file(path), "transaction {last} is not the file");
    assert_eq!(Collector::of(path).wrong(), Vec::<String>::new());
}

fn is_busy(result: rusqlite::Result<()>) -> bool {
    result.is_err_and(|error| error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy))
}

#[test]
fn each_commit_is_a_transaction_in_every_mode() {
    for mode in MODES {
        for locking in ["NORMAL", "EXCLUSIVE"] {
            let what = format!("{mode} {locking}");
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            let pragmas = format!("PRAGMA locking_mode={locking}; PRAGMA journal_mode={mode}; PRAGMA auto_vacuum=2");
            let connection = with_table(&path, &pragmas);
            let first = txid(&connection);
            let mut truth = vec![file(&path)];
            for n in 0..12_i64 {
                connection
                    .execute("INSERT INTO t(b) VALUES(randomblob(?1))", [n * 1500])
                    .unwrap();
                truth.push(file(&path));
            }
            for sql in [
                "UPDATE t SET b=randomblob(9000) WHERE a%2=0",
                "DELETE FROM t WHERE a%3=0",
                "PRAGMA incremental_vacuum(7)",
                "VACUUM",
            ] {
                connection.execute_batch(sql).unwrap();
                truth.push(file(&path));
            }
            connection.execute_batch("BEGIN IMMEDIATE; COMMIT").unwrap();
            if mode != "OFF" {
                connection.execute_batch("BEGIN; DELETE FROM t; ROLLBACK").unwrap();
            }
            let last = first + truth.len() as u64 - 1;
            assert_eq!(txid(&connection), last, "{what}");
            let states = Collector::of(&path).states(last);
            for (n, image) in (first..).zip(&truth) {
                assert!(states[&n] == *image, "{what}: txid {n}");
            }
            assert_eq!(Collector::of(&path).bases(), [(0, Continuity::First)], "{what}");
        }
    }
}

/// 64 KiB is what a transaction may have in memory here.
#[test]
fn transactions_larger_than_memory_and_spills_are_whole() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let connection = with_table(&path, &format!("PRAGMA journal_mode={mode}; PRAGMA cache_size=5"));
        for _ in 0..3 {
            connection
                .execute_batch(
                    "BEGIN; INSERT INTO t(b) VALUES(randomblob(500000)); UPDATE t SET b=randomblob(300000); COMMIT",
                )
                .unwrap();
            assert_current(&connection, &path);
        }
        assert_eq!(txid(&connection), 3);
        // What was spilled is the file's content, undone or not.
        connection
            .execute_batch("BEGIN; INSERT INTO t(b) VALUES(randomblob(500000)); ROLLBACK")
            .unwrap();
        assert_current(&connection, &path);
    }
}

#[test]
fn a_history_goes_through_all_modes_without_a_new_base() {
    let modes = ["WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let connection = with_table(&path, "PRAGMA journal_mode=DELETE");
    let mut wanted = 0;
    let mut is_wal = false;
    for from in modes {
        for to in modes {
            for mode in [from, to] {
                connection
                    .execute_batch(&format!("PRAGMA journal_mode={mode}"))
                    .unwrap();
                wanted += u64::from(is_wal != (mode == "WAL"));
                is_wal = mode == "WAL";
                for _ in 0..2 {
                    connection.execute_batch(INSERT).unwrap();
                    wanted += 1;
                    let truth = collector::plain_image(&path);
                    assert_eq!(txid(&connection), wanted, "{from} {to}");
                    let states = Collector::of(&path).states(wanted);
                    assert!(states[&wanted] == truth, "{from} {to}: txid {wanted}");
                }
            }
        }
    }
    assert_eq!(Collector::of(&path).bases(), [(0, Continuity::First)]);
    assert_eq!(Collector::of(&path).wrong(), Vec::<String>::new());
}

#[test]
fn the_history_goes_on_after_the_last_close() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        drop(with_table(&path, &format!("PRAGMA journal_mode={mode}")));
        for n in 1..4 {
            let connection = open(&path);
            connection
                .execute_batch(&format!("PRAGMA journal_mode={mode}; {INSERT}"))
                .unwrap();
            assert_eq!(txid(&connection), n);
            assert_current(&connection, &path);
        }
        assert_eq!(Collector::of(&path).bases(), [(0, Continuity::First)], "{mode}");
    }
}

/// As fast as it goes: within one tick of the clock that stamps files, and without a change of the file's size.
#[test]
fn what_another_process_commits_between_two_transactions_is_noticed() {
    for mode in ["DELETE", "PERSIST", "MEMORY"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let pragmas = format!("PRAGMA journal_mode={mode}; PRAGMA synchronous=OFF");
        let ours = with_table(&path, &pragmas);
        ours.execute_batch("INSERT INTO t VALUES(1, -1)").unwrap();
        let other = plain(&path);
        other.execute_batch(&pragmas).unwrap();
        for n in 0..50 {
            other.execute_batch(&format!("UPDATE t SET b={n}")).unwrap();
            if n % 2 == 0 {
                ours.execute_batch("PRAGMA replvfs_flush").unwrap();
                assert_current(&ours, &path);
            }
            ours.execute_batch(&format!("UPDATE t SET b={n}+1000")).unwrap();
            assert_current(&ours, &path);
        }
        let broken = Collector::of(&path)
            .bases()
            .into_iter()
            .filter(|base| base.1 == Continuity::Broken);
        assert_eq!(broken.count(), 50, "{mode}");
    }
}

#[test]
fn what_another_process_changed_to_wal_and_back_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path, "PRAGMA journal_mode=DELETE");
    for back in ["DELETE", "WAL"] {
        let other = plain(&path);
        other
            .execute_batch(&format!(
                "PRAGMA journal_mode=WAL; {INSERT}; PRAGMA journal_mode={back}"
            ))
            .unwrap();
        drop(other);
        ours.execute_batch(INSERT).unwrap();
        let last = txid(&ours);
        assert!(Collector::of(&path).states(last)[&last] == collector::plain_image(&path));
    }
    let broken = Collector::of(&path)
        .bases()
        .into_iter()
        .filter(|base| base.1 == Continuity::Broken);
    assert_eq!(broken.count(), 2);
}

/// A snapshot that is still being read has a lock of its own, which is in nobody's way in this process.
#[test]
fn writers_of_this_process_do_not_meet_the_lock_of_a_snapshot() {
    for mode in MODES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        plain(&path)
            .execute_batch(
                "CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB); INSERT INTO t(b) VALUES(randomblob(30000)), (randomblob(30000))",
            )
            .unwrap();
        let before = file(&path);
        let connections: Vec<Connection> = (0..3).map(|_| open(&path)).collect();
        let collector = Collector::of(&path);
        collector.pause();
        for connection in &connections {
            connection.busy_timeout(Duration::ZERO).unwrap();
            connection
                .execute_batch(&format!("PRAGMA journal_mode={mode}"))
                .unwrap();
        }
        let count = |connection: &Connection| {
            let sql = "SELECT count(*) FROM t";
            connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap()
        };
        assert_eq!(count(&connections[0]), 2);
        assert!(!collector.log().base_wanted(), "{mode}: no snapshot was taken");
        // Others have to wait, as for any reader.
        let other = plain(&path);
        other.busy_timeout(Duration::ZERO).unwrap();
        assert!(
            is_busy(other.execute_batch("DELETE FROM t")),
            "{mode}: nothing protects the snapshot"
        );
        for (n, connection) in connections.iter().enumerate() {
            connection
                .execute_batch("UPDATE t SET b=zeroblob(9000) WHERE a=1; INSERT INTO t(b) VALUES(7)")
                .unwrap();
            assert!(
                is_busy(other.execute_batch("DELETE FROM t")),
                "{mode}: not protected again"
            );
            count(&connections[(n + 1) % 3]);
        }
        drop(connections);
        assert!(
            is_busy(other.execute_batch("DELETE FROM t")),
            "{mode}: not after the last close"
        );
        collector.resume();
        let last = collector.log().last_txid().unwrap().0;
        let states = collector.states(last);
        assert!(states[&0] == before, "{mode}: the base was torn");
        assert!(states[&last] == file(&path), "{mode}");
        other.execute_batch("DELETE FROM t").unwrap();
    }
}

#[test]
fn a_reader_of_this_process_refuses_a_writer_as_ever_and_the_snapshot_stays_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    plain(&path)
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB); INSERT INTO t(b) VALUES(randomblob(30000)), (1)")
        .unwrap();
    let before = file(&path);
    let (reader, writer) = (open(&path), open(&path));
    writer.busy_timeout(Duration::ZERO).unwrap();
    let collector = Collector::of(&path);
    collector.pause();
    let mut select = reader.prepare("SELECT a FROM t").unwrap();
    let mut rows = select.query([]).unwrap();
    assert!(rows.next().unwrap().is_some());
    writer.execute_batch("BEGIN; DELETE FROM t").unwrap();
    assert!(is_busy(writer.execute_batch("COMMIT")));
    drop(rows);
    writer.execute_batch("COMMIT").unwrap();
    collector.resume();
    let states = collector.states(1);
    assert!(states[&0] == before);
    assert!(states[&1] == file(&path));
}

#[test]
fn a_snapshot_ends_when_the_database_goes_into_wal_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path, "PRAGMA journal_mode=DELETE");
    let collector = Collector::of(&path);
    collector.settled();
    collector.pause();
    collector.close_within(Duration::ZERO);
    collector.log().request_base();
    ours.execute_batch(INSERT).unwrap();
    assert!(!collector.log().base_wanted());
    ours.execute_batch("PRAGMA journal_mode=WAL").unwrap();
    assert!(
        collector.log().base_wanted(),
        "nothing protects it from a checkpoint of another process"
    );
    ours.execute_batch(INSERT).unwrap();
    collector.resume();
    let last = txid(&ours);
    assert!(collector.states(last)[&last] == collector::plain_image(&path));
}

#[test]
fn a_new_page_size_is_a_new_base() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path, "PRAGMA page_size=1024; PRAGMA journal_mode=DELETE");
    for (n, size) in (1..).zip([512, 8192, 65536, 4096]) {
        ours.execute_batch(&format!("{INSERT}; PRAGMA page_size={size}; VACUUM"))
            .unwrap();
        assert_current(&ours, &path);
        assert_eq!(Collector::of(&path).bases().len(), n + 1);
    }
    let bases = Collector::of(&path).bases();
    assert!(bases[1..].iter().all(|base| base.1 == Continuity::Broken), "{bases:?}");
}

#[test]
fn a_backup_into_the_database_is_a_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut ours = with_table(&path, "PRAGMA journal_mode=DELETE");
    ours.execute_batch("INSERT INTO t(b) VALUES(randomblob(200000))")
        .unwrap();
    for rows in [3, 40, 1] {
        let source_path = dir.path().join(format!("source-{rows}.db"));
        let source = plain(&source_path);
        source
            .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
            .unwrap();
        for _ in 0..rows {
            source.execute_batch(INSERT).unwrap();
        }
        ours.restore(MAIN_DB, &source_path, None::<fn(rusqlite::backup::Progress)>)
            .unwrap();
        assert_current(&ours, &path);
    }
    assert_eq!(Collector::of(&path).bases(), [(0, Continuity::First)]);
}

#[test]
fn a_file_that_is_longer_than_its_database_is_taken_as_its_header_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut ours = open(&path);
    let mut chunk: std::ffi::c_int = 256 << 10;
    // SAFETY: the control takes an int.
    let code = unsafe {
        replvfs_vfs::ffi::sqlite3_file_control(
            ours.handle(),
            c"main".as_ptr(),
            replvfs_vfs::ffi::SQLITE_FCNTL_CHUNK_SIZE,
            (&raw mut chunk).cast(),
        )
    };
    assert_eq!(code, 0);
    ours.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
        .unwrap();
    for sql in [
        INSERT,
        "INSERT INTO t(b) VALUES(randomblob(700000))",
        "DELETE FROM t; VACUUM",
    ] {
        ours.execute_batch(sql).unwrap();
        let truth = ours.serialize(MAIN_DB).unwrap().to_vec();
        assert!(truth.len() < file(&path).len());
        let last = txid(&ours);
        assert!(Collector::of(&path).states(last)[&last] == truth, "{sql}");
    }
}

#[test]
fn a_connection_whose_file_was_replaced_adds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let old = with_table(&path, "PRAGMA journal_mode=DELETE");
    std::fs::rename(&path, dir.path().join("old.db")).unwrap();
    let new = open(&path);
    new.execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
        .unwrap();
    assert_current(&new, &path);
    let last = txid(&new);
    // SQLite itself refuses.
    old.execute_batch(INSERT).unwrap_err();
    assert_eq!(
        txid(&new),
        last,
        "what the old file's connection does is not of this database"
    );
    new.execute_batch(INSERT).unwrap();
    assert_current(&new, &path);
    old.execute_batch("PRAGMA replvfs_flush").unwrap_err();
}

/// Without a journal file SQLite does not look whether its own is still the database. What is committed there is nobody's.
#[test]
fn what_is_committed_in_a_file_that_was_renamed_has_no_number() {
    for mode in ["MEMORY", "OFF"] {
        for replaced in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            let old = with_table(&path, &format!("PRAGMA journal_mode={mode}"));
            let last = txid(&old);
            std::fs::rename(&path, dir.path().join("old.db")).unwrap();
            if replaced {
                std::fs::copy(dir.path().join("old.db"), &path).unwrap();
            }
            old.execute_batch(INSERT).unwrap();
            let number = || old.query_row("PRAGMA replvfs_txid", [], |row| row.get::<_, String>(0));
            assert_eq!(number().unwrap(), "", "{mode}, {replaced}: it was {last} before");
            old.execute_batch("PRAGMA replvfs_flush").unwrap_err();
        }
    }
}

/// The journal of a process that died in the middle: what it is played back to is the database.
#[test]
fn a_hot_journal_is_played_back_before_anything_is_taken() {
    for known in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let ours = known.then(|| with_table(&path, "PRAGMA journal_mode=DELETE"));
        let other = plain(&path);
        if !known {
            other
                .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
                .unwrap();
        }
        other.execute_batch(&format!("{INSERT}; {INSERT}")).unwrap();
        let whole = file(&path);
        other
            .execute_batch("PRAGMA cache_size=3; BEGIN; UPDATE t SET b=randomblob(20000)")
            .unwrap();
        let (torn, journal) = (file(&path), file(&dir.path().join("app.db-journal")));
        assert!(torn != whole, "nothing was spilled");
        other.execute_batch("ROLLBACK").unwrap();
        drop(other);
        // As if it had been killed there.
        std::fs::write(&path, torn).unwrap();
        std::fs::write(dir.path().join("app.db-journal"), journal).unwrap();
        let ours = ours.unwrap_or_else(|| open(&path));
        ours.execute_batch("SELECT count(*) FROM t").unwrap();
        assert!(file(&path) == whole, "SQLite did not roll it back");
        ours.execute_batch("PRAGMA replvfs_flush").unwrap();
        assert_current(&ours, &path);
        let collector = Collector::of(&path);
        for (txid, state) in collector.states(txid(&ours)) {
            assert!(
                txid == 0 && known || state == whole,
                "txid {txid} is not what was ever committed"
            );
        }
        ours.execute_batch(INSERT).unwrap();
        assert_current(&ours, &path);
    }
}

#[test]
fn a_flush_in_the_middle_of_a_transaction_vouches_for_what_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let ours = with_table(&path, "PRAGMA journal_mode=DELETE; PRAGMA cache_size=3");
    ours.execute_batch(INSERT).unwrap();
    let committed = file(&path);
    ours.execute_batch("BEGIN; INSERT INTO t(b) VALUES(randomblob(100000)); PRAGMA replvfs_flush")
        .unwrap();
    assert!(file(&path) != committed, "nothing was spilled");
    Collector::of(&path).log().request_base();
    ours.execute_batch("PRAGMA replvfs_status").unwrap();
    assert_eq!(txid(&ours), 1);
    assert!(Collector::of(&path).states(1)[&1] == committed);
    ours.execute_batch("COMMIT; PRAGMA replvfs_flush").unwrap();
    assert_current(&ours, &path);
}

/// SQLite may go on with a page that it wrote and did not sync.
#[test]
fn a_switch_to_wal_that_fails_half_way_is_what_sqlite_makes_of_it() {
    let faults = (0..4).map(Fault::Page).chain([Fault::Sync]);
    for (fault, locking) in faults.flat_map(|fault| [(fault, "NORMAL"), (fault, "EXCLUSIVE")]) {
        for mode in MODES {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("app.db");
            let pragmas = format!("PRAGMA locking_mode={locking}; PRAGMA journal_mode={mode}; PRAGMA synchronous=FULL");
            let mut ours = with_table(&path, &pragmas);
            ours.execute_batch(INSERT).unwrap();
            faults::fail_next(fault);
            let _ = ours.execute_batch("PRAGMA journal_mode=WAL");
            faults::heal();
            for _ in 0..2 {
                ours.execute_batch("SELECT count(*) FROM t; PRAGMA replvfs_flush")
                    .unwrap();
                let last = txid(&ours);
                let truth = ours.serialize(MAIN_DB).unwrap().to_vec();
                let states = Collector::of(&path).states(last);
                assert!(states[&last] == truth, "{mode} {locking}");
                ours.execute_batch(INSERT).unwrap();
            }
            assert_eq!(Collector::of(&path).wrong(), Vec::<String>::new());
        }
    }
}
