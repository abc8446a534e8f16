//! The border to C, and what an application may do around it: panics, async runtimes, parameters that take locks away, attached files.

use replvfs::format::{Generation, Key, Manifest};
use replvfs::{Config, Txid};
use replvfs_tests::{Scratch, flush, open, use_wal};
use replvfs_vfs::{REMOTE_CALLBACKS, inject_panic};
use rusqlite::{Connection, ErrorCode};

use super::{number, pages, remote, remote_uri, restored};

/// A replica of 30 rows.
fn thirty_rows() -> (Scratch, Connection) {
    let scratch = Scratch::in_memory();
    let writer = scratch.open();
    use_wal(&writer);
    writer
        .execute_batch(
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30)
             INSERT INTO t SELECT i, randomblob(3000) FROM n",
        )
        .unwrap();
    flush(&writer);
    (scratch, writer)
}

/// Everything that makes SQLite call back.
fn exercise(uri: &str) -> rusqlite::Result<i64> {
    let connection = open(uri)?;
    connection.query_row("PRAGMA replvfs_txid", [], |_| Ok(()))?;
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    let sum = connection.query_row("SELECT count(*) FROM t WHERE length(b) = 3000", [], |row| row.get(0))?;
    connection.close().map_err(|(_, error)| error)?;
    Ok(sum)
}

#[test]
fn a_panic_in_a_callback_never_reaches_the_application() {
    let (scratch, _writer) = thirty_rows();
    let uri = remote_uri(&scratch.replica(), "");
    for callback in REMOTE_CALLBACKS {
        inject_panic(Some(callback));
        let result = exercise(&uri);
        assert!(!inject_panic(None), "{callback} was never called, so nothing was shown");
        let code = result.as_ref().err().and_then(rusqlite::Error::sqlite_error_code);
        match *callback {
            "remote xUnlock" | "remote xClose" => assert_eq!(result, Ok(30), "{callback}"),
            "remote xOpen" | "remote xFullPathname" => assert_eq!(code, Some(ErrorCode::CannotOpen), "{result:?}"),
            // An answer that is missing would be taken for one.
            "remote xFileControl" => assert!(result.is_err()),
            _ => assert_eq!(code, Some(ErrorCode::SystemIoFailure), "{callback}: {result:?}"),
        }
        assert_eq!(exercise(&uri), Ok(30), "after {callback}");
    }
}

#[test]
fn a_connection_may_be_used_inside_of_a_runtime() {
    let (scratch, _writer) = thirty_rows();
    let uri = remote_uri(&scratch.replica(), "&follow=10ms&page_cache=4MiB");
    let one = tokio::runtime::Builder::new_current_thread().build().unwrap();
    one.block_on(async { assert_eq!(exercise(&uri), Ok(30)) });
    let several = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    several.block_on(async {
        let tasks: Vec<_> = (0..8)
            .map(|n| {
                let uri = uri.clone();
                match n % 2 {
                    0 => tokio::spawn(async move { exercise(&uri) }),
                    _ => tokio::task::spawn_blocking(move || exercise(&uri)),
                }
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap(), Ok(30));
        }
    });
}

#[test]
fn locks_cannot_be_taken_away() {
    let (scratch, _writer) = thirty_rows();
    for parameter in ["nolock=1", "immutable=1"] {
        let uri = remote_uri(&scratch.replica(), &format!("&{parameter}"));
        assert!(open(&uri).is_err());
        let refused = replvfs::last_open_error().unwrap();
        assert!(
            refused.contains(&format!("{parameter} takes away the locks")),
            "{refused}"
        );
    }
    let kept = remote(&scratch, "");
    kept.execute_batch("PRAGMA locking_mode = EXCLUSIVE").unwrap();
    assert_eq!(number(&kept, "SELECT count(*) FROM t"), 30);
    let error = kept
        .query_row("PRAGMA replvfs_at = latest", [], |_| Ok(()))
        .unwrap_err();
    assert!(error.to_string().contains("sees one state"), "{error}");
}

/// Their journals name a super-journal, by the name of the main database: only an absolute one is found from another folder.
#[test]
fn attached_files_are_written_together() {
    let (scratch, _writer) = thirty_rows();
    let remote = remote(&scratch, "");
    let main: String = remote
        .query_row("SELECT file FROM pragma_database_list WHERE name = 'main'", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(
        std::path::Path::new(&main),
        std::env::current_dir().unwrap().join("app.db")
    );
    for name in ["one", "two"] {
        let file = scratch.file(&format!("{name}.db"));
        remote
            .execute_batch(&format!(
                "ATTACH 'file:{}?vfs=unix' AS {name}; CREATE TABLE {name}.copy(a)",
                file.display()
            ))
            .unwrap();
    }
    let both = "BEGIN; INSERT INTO one.copy SELECT a FROM t; INSERT INTO two.copy SELECT a FROM t;";
    remote
        .execute_batch(&format!("{both} COMMIT; {both} ROLLBACK"))
        .unwrap();
    drop(remote);
    for name in ["one", "two"] {
        let plain = Connection::open(scratch.file(&format!("{name}.db"))).unwrap();
        assert_eq!(number(&plain, "SELECT count(*) FROM copy"), 30);
    }
}

#[test]
fn who_cannot_register_both_registers_none() {
    let config = || Config::default().vfs_name("replvfs-both");
    let memory = || -> *mut libsqlite3_sys::sqlite3_vfs {
        // SAFETY: a copy of a registered VFS, with a name of its own, is one; both are leaked.
        unsafe {
            let base = libsqlite3_sys::sqlite3_vfs_find(std::ptr::null());
            Box::leak(Box::new(libsqlite3_sys::sqlite3_vfs {
                zName: c"replvfs-both".as_ptr(),
                pNext: std::ptr::null_mut(),
                ..*base
            }))
        }
    };
    let other = memory();
    // SAFETY: see above.
    unsafe {
        assert_eq!(
            libsqlite3_sys::sqlite3_vfs_register(other, 0),
            libsqlite3_sys::SQLITE_OK
        );
    }
    for _ in 0..2 {
        let error = replvfs::register(config()).unwrap_err().to_string();
        assert!(
            error.contains("a VFS named replvfs-both is registered already"),
            "{error}"
        );
        // SAFETY: a name.
        let found = unsafe { libsqlite3_sys::sqlite3_vfs_find(c"replvfs-both-remote".as_ptr()) };
        assert!(found.is_null());
    }
    // SAFETY: it is registered.
    unsafe {
        assert_eq!(libsqlite3_sys::sqlite3_vfs_unregister(other), libsqlite3_sys::SQLITE_OK);
    }
    replvfs::register(config()).unwrap();
}

#[test]
fn the_vfs_says_its_name() {
    let (scratch, _writer) = thirty_rows();
    let remote = remote(&scratch, "");
    let mut name: *mut std::ffi::c_char = std::ptr::null_mut();
    // SAFETY: an open connection; the place is for a string, which is freed as SQLite wants it.
    let name = unsafe {
        let code = libsqlite3_sys::sqlite3_file_control(
            remote.handle(),
            c"main".as_ptr(),
            libsqlite3_sys::SQLITE_FCNTL_VFSNAME,
            (&raw mut name).cast(),
        );
        assert_eq!(code, libsqlite3_sys::SQLITE_OK);
        let text = std::ffi::CStr::from_ptr(name).to_str().unwrap().to_owned();
        libsqlite3_sys::sqlite3_free(name.cast());
        text
    };
    assert_eq!(name, "replvfs-remote");
}

#[test]
fn all_page_sizes_with_bytes_that_extensions_reserve() {
    for shift in 9..=16 {
        let scratch = Scratch::in_memory();
        let writer = scratch.open();
        writer
            .execute_batch(&format!("PRAGMA page_size = {}", 1 << shift))
            .unwrap();
        let mut reserved: std::ffi::c_int = 32;
        // SAFETY: an open connection, and a place for a number.
        let code = unsafe {
            libsqlite3_sys::sqlite3_file_control(
                writer.handle(),
                c"main".as_ptr(),
                libsqlite3_sys::SQLITE_FCNTL_RESERVE_BYTES,
                (&raw mut reserved).cast(),
            )
        };
        assert_eq!(code, libsqlite3_sys::SQLITE_OK);
        use_wal(&writer);
        writer
            .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES(randomblob(100000))")
            .unwrap();
        flush(&writer);
        let txid = replvfs_tests::pragma_number(&writer, "replvfs_acked").unwrap();
        let mut remote = remote(&scratch, "");
        assert_eq!(number(&remote, "PRAGMA page_size"), 1 << shift);
        assert_eq!(number(&remote, "SELECT length(b) FROM t"), 100_000);
        let read = pages(&mut remote);
        assert_eq!(read[20], 32);
        assert!(read == restored(&scratch, txid), "{}", 1 << shift);
    }
}

/// No writer makes an image of one, but others may.
#[test]
fn a_database_without_pages() {
    let (scratch, writer) = thirty_rows();
    writer.close().unwrap();
    let txid = Txid(scratch.images(1)[0]);
    let path = scratch.file("replica").join(Key::Image(Generation(1), txid).path());
    let image = Manifest::decode(&std::fs::read(&path).unwrap()).unwrap();
    let empty = Manifest {
        page_count: 0,
        chunks: Vec::new(),
        ..image
    };
    std::fs::write(&path, empty.encode().unwrap()).unwrap();
    let remote = remote(&scratch, &format!("&txid={txid}"));
    assert_eq!(number(&remote, "SELECT count(*) FROM sqlite_schema"), 0);
    assert_eq!(number(&remote, "PRAGMA page_count"), 0);
    let answer: String = remote
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(answer, "ok");
}
