//! A default VFS that fails on demand: SQLite's own, with two methods of the database's files replaced.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

use replvfs_vfs::ffi;

/// What fails the next time that this thread does it to a database, its WAL or its journal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `xSync`.
    Sync,
    /// `xWrite` of a page (not of a header), after so many of them.
    Page(u32),
    /// `xWrite` of the WAL's header.
    Header,
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

/// What a file of a database has behind its methods' place: unix has others for files that are locked.
struct Kind {
    flag: c_int,
    real: OnceLock<Methods>,
    faulty: OnceLock<Methods>,
    sync: unsafe extern "C" fn(*mut ffi::sqlite3_file, c_int) -> c_int,
    write: unsafe extern "C" fn(*mut ffi::sqlite3_file, *const c_void, c_int, i64) -> c_int,
}

const fn kind<const INDEX: usize>(flag: c_int) -> Kind {
    Kind {
        flag,
        real: OnceLock::new(),
        faulty: OnceLock::new(),
        sync: sync::<INDEX>,
        write: write::<INDEX>,
    }
}

static KINDS: [Kind; 3] = [
    kind::<0>(ffi::SQLITE_OPEN_WAL),
    kind::<1>(ffi::SQLITE_OPEN_MAIN_DB),
    kind::<2>(ffi::SQLITE_OPEN_MAIN_JOURNAL),
];
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

unsafe extern "C" fn sync<const KIND: usize>(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    if NEXT.get() == Some(Fault::Sync) {
        NEXT.set(None);
        return ffi::SQLITE_IOERR_FSYNC;
    }
    // SAFETY: SQLite's arguments, for a file of the real methods.
    unsafe { KINDS[KIND].real.get().unwrap().0.xSync.unwrap()(file, flags) }
}

unsafe extern "C" fn write<const KIND: usize>(
    file: *mut ffi::sqlite3_file,
    data: *const c_void,
    amount: c_int,
    offset: i64,
) -> c_int {
    if let Some(Fault::Page(left)) = NEXT.get()
        && amount > 32
    {
        NEXT.set(left.checked_sub(1).map(Fault::Page));
        if left == 0 {
            return ffi::SQLITE_FULL;
        }
    }
    if NEXT.get() == Some(Fault::Header) && (KINDS[KIND].flag, offset) == (ffi::SQLITE_OPEN_WAL, 0) {
        NEXT.set(None);
        return ffi::SQLITE_FULL;
    }
    // SAFETY: as above.
    unsafe { KINDS[KIND].real.get().unwrap().0.xWrite.unwrap()(file, data, amount, offset) }
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
        let kind = KINDS.iter().find(|kind| flags & kind.flag != 0);
        if let Some(kind) = kind.filter(|_| code == ffi::SQLITE_OK) {
            let real = kind.real.get_or_init(|| Methods(*(*file).pMethods));
            let faulty = kind.faulty.get_or_init(|| {
                Methods(ffi::sqlite3_io_methods {
                    xSync: Some(kind.sync),
                    xWrite: Some(kind.write),
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
