//! A default VFS that fails on demand: SQLite's own, with two methods of the WAL's file replaced.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

use replvfs_vfs::ffi;

/// What fails the next time that this thread does it to a WAL.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `xSync`.
    Sync,
    /// `xWrite` of a page (not of a header), after so many of them.
    Page(u32),
}

thread_local! {
    static NEXT: Cell<Option<Fault>> = const { Cell::new(None) };
}

struct Methods(ffi::sqlite3_io_methods);
// SAFETY: function pointers and a number.
unsafe impl Send for Methods {}
// SAFETY: as above.
unsafe impl Sync for Methods {}

struct Base(*mut ffi::sqlite3_vfs);
// SAFETY: a registered VFS.
unsafe impl Send for Base {}
// SAFETY: as above.
unsafe impl Sync for Base {}

static REAL: OnceLock<Methods> = OnceLock::new();
static FAULTY: OnceLock<Methods> = OnceLock::new();
static BASE: OnceLock<Base> = OnceLock::new();

pub(crate) fn fail_next(fault: Fault) {
    NEXT.set(Some(fault));
}

pub(crate) fn heal() {
    NEXT.set(None);
}

/// Whether the fault is still to come.
pub(crate) fn is_due() -> bool {
    NEXT.get().is_some()
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    if NEXT.get() == Some(Fault::Sync) {
        NEXT.set(None);
        return ffi::SQLITE_IOERR_FSYNC;
    }
    // SAFETY: SQLite's arguments, for a file of the real methods.
    unsafe { REAL.get().unwrap().0.xSync.unwrap()(file, flags) }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, data: *const c_void, amount: c_int, offset: i64) -> c_int {
    if let Some(Fault::Page(left)) = NEXT.get()
        && amount > 32
    {
        NEXT.set(left.checked_sub(1).map(Fault::Page));
        if left == 0 {
            return ffi::SQLITE_FULL;
        }
    }
    // SAFETY: as above.
    unsafe { REAL.get().unwrap().0.xWrite.unwrap()(file, data, amount, offset) }
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite's arguments are passed on; the file's methods are a structure of the real VFS.
    unsafe {
        let base = BASE.get().unwrap().0;
        let code = (*base).xOpen.unwrap()(base, name, file, flags, out_flags);
        if code == ffi::SQLITE_OK && flags & ffi::SQLITE_OPEN_WAL != 0 {
            let real = REAL.get_or_init(|| Methods(*(*file).pMethods));
            let faulty = FAULTY.get_or_init(|| {
                Methods(ffi::sqlite3_io_methods {
                    xSync: Some(sync),
                    xWrite: Some(write),
                    ..real.0
                })
            });
            (*file).pMethods = &raw const faulty.0;
        }
        code
    }
}

pub(crate) fn register_default() {
    // SAFETY: the structure and its name are leaked.
    unsafe {
        let base = ffi::sqlite3_vfs_find(std::ptr::null());
        assert!(BASE.set(Base(base)).is_ok());
        let vfs = Box::leak(Box::new(ffi::sqlite3_vfs {
            zName: c"faults".as_ptr(),
            pNext: std::ptr::null_mut(),
            xOpen: Some(open),
            ..*base
        }));
        assert_eq!(ffi::sqlite3_vfs_register(vfs, 1), ffi::SQLITE_OK);
    }
}
