//! What is not chosen is opened by the VFS underneath: its methods, its locks, its mappings, and no file of ours.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;

use replvfs_tests::{flush, sqlite_log, status};
use rusqlite::{Connection, OpenFlags, ffi};

use super::{assert_replicated, place, with_rows};

/// A file's methods, by the file control that tells the file.
fn methods(connection: &Connection, schema: &str, which: c_int) -> *const c_void {
    let schema = CString::new(schema).unwrap();
    let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
    // SAFETY: an open connection, and a place for the pointer that these controls give.
    let code =
        unsafe { ffi::sqlite3_file_control(connection.handle(), schema.as_ptr(), which, (&raw mut file).cast()) };
    assert_eq!(code, ffi::SQLITE_OK);
    // SAFETY: SQLite's file, as long as the connection is open.
    unsafe { (*file).pMethods.cast() }
}

/// The names of the VFSes that have the file.
fn vfs_of(connection: &Connection, schema: &str) -> String {
    let schema = CString::new(schema).unwrap();
    let mut name: *mut c_char = std::ptr::null_mut();
    // SAFETY: an open connection, and a place for the text that this control gives, which is freed once.
    unsafe {
        let which = ffi::SQLITE_FCNTL_VFSNAME;
        let code = ffi::sqlite3_file_control(connection.handle(), schema.as_ptr(), which, (&raw mut name).cast());
        assert_eq!(code, ffi::SQLITE_OK);
        let text = CStr::from_ptr(name).to_str().unwrap().to_owned();
        ffi::sqlite3_free(name.cast());
        text
    }
}

fn assert_passed(connection: &Connection, schema: &str) {
    assert_eq!(vfs_of(connection, schema), "unix", "{schema}");
    let asked = connection.query_row(&format!("PRAGMA {schema}.replvfs_status"), [], |_| Ok(()));
    assert_eq!(asked, Err(rusqlite::Error::QueryReturnedNoRows), "{schema}");
}

fn beside(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_file_without_a_replica_has_the_methods_of_the_vfs_underneath() {
    let (_alone, place) = place();
    for (mode, files) in [
        ("DELETE", &["x.db"][..]),
        ("TRUNCATE", &["x.db", "x.db-journal"]),
        ("WAL", &["x.db", "x.db-shm", "x.db-wal"]),
    ] {
        let folder = place.file("plain").join(mode);
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("x.db");
        let write = |uri: String| {
            let connection = Connection::open(uri).unwrap();
            connection.pragma_update(None, "mmap_size", 1 << 20).unwrap();
            connection.pragma_update(None, "journal_mode", mode).unwrap();
            connection
                .execute_batch("CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES (1)")
                .unwrap();
            connection
        };
        let ours = write(path.display().to_string());
        assert_passed(&ours, "main");
        let theirs = write(format!("file:{}?vfs=unix", path.display()));
        for which in [ffi::SQLITE_FCNTL_FILE_POINTER, ffi::SQLITE_FCNTL_JOURNAL_POINTER] {
            let of = |connection| methods(connection, "main", which);
            assert_eq!(of(&ours), of(&theirs), "{mode} {which}");
        }
        assert_eq!(beside(&folder), files.iter().map(|name| (*name).to_owned()).collect());
        drop((ours, theirs));
    }
    assert!(!place.file("replicas/x.db").exists());
}

#[test]
fn files_of_every_other_kind_pass_through() {
    let (_alone, place) = place();
    let folder = place.file("plain/kinds");
    std::fs::create_dir(&folder).unwrap();
    let spill = "PRAGMA temp_store=FILE; PRAGMA cache_size=5; CREATE TABLE t(x); \
        INSERT INTO t SELECT randomblob(2000) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<200) SELECT i FROM n); \
        SELECT count(*) FROM (SELECT x FROM t ORDER BY x)";
    // Temporary, in memory, in shared memory.
    for name in [
        "",
        ":memory:",
        "file:shared?mode=memory&cache=shared",
        "file:/m?vfs=memdb",
    ] {
        Connection::open(name).unwrap().execute_batch(spill).unwrap();
    }
    let main = with_rows(&folder.join("main.db"), 10);
    main.execute_batch(&format!(
        "{}; CREATE TEMP TABLE u AS SELECT * FROM t; VACUUM; VACUUM INTO '{}'; ATTACH '{}' AS one; CREATE TABLE one.t(x)",
        spill.replace("TABLE t(", "TABLE big(").replace("INTO t ", "INTO big ").replace("FROM t ", "FROM big "),
        folder.join("vacuumed.db").display(),
        folder.join("attached.db").display(),
    ))
    .unwrap();
    assert_passed(&main, "main");
    assert_passed(&main, "one");
    let mut copy = Connection::open(folder.join("backup.db")).unwrap();
    rusqlite::backup::Backup::new(&main, &mut copy)
        .unwrap()
        .step(-1)
        .unwrap();
    assert_passed(&copy, "main");
    drop((main, copy));
    for parameters in [
        "mode=ro",
        "immutable=1",
        "nolock=1",
        "speed=1&timeout=soon&segment_size=x",
        "vfs=replvfs-default",
    ] {
        let uri = format!("file:{}?{parameters}", folder.join("attached.db").display());
        let connection = Connection::open(uri).unwrap();
        assert_passed(&connection, "main");
        connection.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
    }
    let names = ["attached.db", "backup.db", "main.db", "vacuumed.db"];
    assert_eq!(beside(&folder), names.map(str::to_owned).into());
    for name in names {
        assert!(!place.file("replicas").join(name).exists());
    }
}

#[test]
fn attached_databases_are_chosen_each_for_itself() {
    let (_alone, place) = place();
    let (plain, chosen) = (place.file("plain/beside.db"), place.file("chosen/beside.db"));
    for (main, attached, passing) in [(&plain, &chosen, "main"), (&chosen, &plain, "other")] {
        let connection = with_rows(main, 2);
        connection
            .execute("ATTACH ?1 AS other", [attached.to_str().unwrap()])
            .unwrap();
        connection
            .execute_batch("PRAGMA other.journal_mode=WAL; CREATE TABLE IF NOT EXISTS other.t(x); BEGIN; INSERT INTO main.t VALUES (1); INSERT INTO other.t VALUES (2); COMMIT")
            .unwrap();
        assert_passed(&connection, passing);
        let replicated = if passing == "main" { "other" } else { "main" };
        connection
            .query_row(&format!("PRAGMA {replicated}.replvfs_flush"), [], |_| Ok(()))
            .unwrap();
        assert_replicated(place, &chosen, &place.replica("beside.db"));
    }
}

/// Whoever says replvfs means to be replicated.
#[test]
fn by_its_name_the_vfs_still_needs_a_replica() {
    let (_alone, place) = place();
    let plain = place.file("plain/named.db");
    let by_uri = || Connection::open(format!("file:{}?vfs=replvfs", plain.display()));
    let by_name = || Connection::open_with_flags_and_vfs(&plain, OpenFlags::default(), "replvfs");
    for open in [&by_uri as &dyn Fn() -> _, &by_name] {
        let error = open().map(|_| ()).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::CannotOpen));
        let logged = format!("{:?}", sqlite_log());
        assert!(
            logged.contains("no replica is set") && logged.contains("REPLVFS_CONFIG"),
            "{logged}"
        );
    }
    assert!(!plain.exists());
    // And a database that is chosen is one, whichever of the names it is opened by.
    let path = place.file("chosen/named.db");
    let one = with_rows(&path, 2);
    let two = Connection::open(format!(
        "file:{}?vfs=replvfs&replica={}",
        path.display(),
        place.replica("named.db")
    ))
    .unwrap();
    two.execute_batch("INSERT INTO t VALUES (3)").unwrap();
    assert_eq!(status(&one)["database_id"], status(&two)["database_id"]);
    flush(&one);
    assert_replicated(place, &path, &place.replica("named.db"));
    let unknown = Connection::open(format!("file:{}?vfs=replvfs&speed=1", path.display()));
    assert!(unknown.is_err());
    Connection::open(format!("file:{}?speed=1", path.display())).unwrap();
}

#[test]
fn what_was_replicated_before_is_passed_through_with_a_warning() {
    let (_alone, place) = place();
    let path = place.file("plain/before.db");
    std::fs::write(place.file("plain/before.db-replvfs"), "").unwrap();
    let connection = with_rows(&path, 1);
    assert_passed(&connection, "main");
    let logged = format!("{:?}", sqlite_log());
    assert!(
        logged.contains("before.db was replicated before, and is not now"),
        "{logged}"
    );
}
