//! Another VFS above ours, as the multiplexor is: it opens files under names that it made itself.
#![allow(clippy::unwrap_used, missing_docs)]

mod collector;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

use replvfs_vfs::ffi;

/// SQLite's own test of the multiplexor crashed here: `sqlite3_database_file_object` reads the pager's address from before a name, and
/// before such a name there is none.
#[test]
fn a_wal_with_a_name_that_no_pager_made_is_opened_as_any_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let connection = collector::open(&path);
    connection
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a)")
        .unwrap();
    // The unix VFS gives a WAL the permissions of its database.
    std::fs::write(dir.path().join("other.db"), b"").unwrap();
    let name = CString::new(dir.path().join("other.db-wal").as_os_str().as_bytes()).unwrap();
    let flags = ffi::SQLITE_OPEN_WAL | ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_CREATE;
    // SAFETY: the VFS is registered for the life of the process; the name is a sqlite3_filename and outlives the file; the memory is
    // aligned, zeroed and szOsFile bytes long.
    unsafe {
        let vfs = ffi::sqlite3_vfs_find(c"replvfs".as_ptr());
        assert!(!vfs.is_null());
        let mut memory = vec![0_u64; ((*vfs).szOsFile as usize).div_ceil(8)];
        let file = memory.as_mut_ptr().cast::<ffi::sqlite3_file>();
        let filename = ffi::sqlite3_create_filename(name.as_ptr(), c"".as_ptr(), c"".as_ptr(), 0, std::ptr::null_mut());
        let open = (*vfs).xOpen.unwrap();
        assert_eq!(open(vfs, filename, file, flags, std::ptr::null_mut()), ffi::SQLITE_OK);
        let methods = &*(*file).pMethods;
        assert_eq!(
            methods.xWrite.unwrap()(file, b"frames".as_ptr().cast(), 6, 0),
            ffi::SQLITE_OK
        );
        assert_eq!(methods.xClose.unwrap()(file), ffi::SQLITE_OK);
        ffi::sqlite3_free_filename(filename);
    }
    connection.execute_batch("INSERT INTO t VALUES(1)").unwrap();
    assert_eq!(collector::Collector::of(&path).states(2).len(), 3);
}
