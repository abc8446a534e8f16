//! A VFS over another one: the structure, and the methods that pass everything to the VFS underneath.

use std::ffi::{c_char, c_int, c_void};

use libsqlite3_sys as ffi;

use crate::base::BaseVfs;

/// `xOpen`.
pub(crate) type OpenFn =
    unsafe extern "C" fn(*mut ffi::sqlite3_vfs, *const c_char, *mut ffi::sqlite3_file, c_int, *mut c_int) -> c_int;

/// What the data behind one of our structures begins with, so that a method can find the VFS underneath without knowing more: these types
/// are `repr(C)`, and a [`BaseVfs`] is their first field.
///
/// # Safety
///
/// Just that.
pub(crate) unsafe trait Over {}

/// The data behind one of our structures.
///
/// # Safety
///
/// `vfs` was made by [`structure`] with an `A`, which still lives.
pub(crate) unsafe fn app<'a, A: Over>(vfs: *mut ffi::sqlite3_vfs) -> &'a A {
    // SAFETY: as promised by the caller.
    unsafe { &*(*vfs).pAppData.cast::<A>() }
}

/// # Safety
///
/// `vfs` is one of our structures.
unsafe fn base_of(vfs: *mut ffi::sqlite3_vfs) -> *mut ffi::sqlite3_vfs {
    // SAFETY: all our data begins with it: see `Over`.
    unsafe { (*(*vfs).pAppData.cast::<BaseVfs>()).raw }
}

/// Our structure over a base: with a method wherever the base has one. `file_size` bytes are what SQLite gives each file.
pub(crate) fn structure<A: Over>(
    base: &ffi::sqlite3_vfs,
    name: *const c_char,
    app: *mut A,
    file_size: usize,
    open: OpenFn,
) -> ffi::sqlite3_vfs {
    let two = base.iVersion >= 2;
    let three = base.iVersion >= 3;
    ffi::sqlite3_vfs {
        iVersion: base.iVersion.min(3),
        szOsFile: c_int::try_from(file_size).unwrap_or(c_int::MAX),
        mxPathname: base.mxPathname,
        pNext: std::ptr::null_mut(),
        zName: name,
        pAppData: app.cast(),
        xOpen: Some(open),
        xDelete: base.xDelete.is_some().then_some(delete),
        xAccess: base.xAccess.is_some().then_some(access),
        xFullPathname: base.xFullPathname.is_some().then_some(full_pathname),
        xDlOpen: base.xDlOpen.is_some().then_some(dl_open),
        xDlError: base.xDlError.is_some().then_some(dl_error),
        xDlSym: base.xDlSym.is_some().then_some(dl_sym),
        xDlClose: base.xDlClose.is_some().then_some(dl_close),
        xRandomness: base.xRandomness.is_some().then_some(randomness),
        xSleep: base.xSleep.is_some().then_some(sleep),
        xCurrentTime: base.xCurrentTime.is_some().then_some(current_time),
        xGetLastError: base.xGetLastError.is_some().then_some(get_last_error),
        xCurrentTimeInt64: (two && base.xCurrentTimeInt64.is_some()).then_some(current_time_int64),
        xSetSystemCall: (three && base.xSetSystemCall.is_some()).then_some(set_system_call),
        xGetSystemCall: (three && base.xGetSystemCall.is_some()).then_some(get_system_call),
        xNextSystemCall: (three && base.xNextSystemCall.is_some()).then_some(next_system_call),
    }
}

type Symbol = Option<unsafe extern "C" fn(*mut ffi::sqlite3_vfs, *mut c_void, *const c_char)>;

/// One method: its arguments, its result, and what it gives when the base has none (it is not registered then).
macro_rules! forward {
    ($name:ident, $method:ident, ($($argument:ident: $type:ty),*) -> $result:ty, $missing:expr) => {
        unsafe extern "C" fn $name(vfs: *mut ffi::sqlite3_vfs $(, $argument: $type)*) -> $result {
            // SAFETY: one of our structures; SQLite's arguments are passed on as they came.
            unsafe {
                let base = base_of(vfs);
                match (*base).$method {
                    Some(method) => method(base $(, $argument)*),
                    None => $missing,
                }
            }
        }
    };
}

forward!(delete, xDelete, (name: *const c_char, sync: c_int) -> c_int, ffi::SQLITE_IOERR_DELETE);
forward!(access, xAccess, (name: *const c_char, flags: c_int, result: *mut c_int) -> c_int, ffi::SQLITE_IOERR_ACCESS);
forward!(full_pathname, xFullPathname, (name: *const c_char, room: c_int, out: *mut c_char) -> c_int, ffi::SQLITE_CANTOPEN);
forward!(dl_open, xDlOpen, (name: *const c_char) -> *mut c_void, std::ptr::null_mut());
forward!(dl_error, xDlError, (room: c_int, out: *mut c_char) -> (), ());
forward!(dl_sym, xDlSym, (library: *mut c_void, name: *const c_char) -> Symbol, None);
forward!(dl_close, xDlClose, (library: *mut c_void) -> (), ());
forward!(randomness, xRandomness, (amount: c_int, out: *mut c_char) -> c_int, 0);
forward!(sleep, xSleep, (microseconds: c_int) -> c_int, 0);
forward!(current_time, xCurrentTime, (out: *mut f64) -> c_int, ffi::SQLITE_ERROR);
forward!(get_last_error, xGetLastError, (room: c_int, out: *mut c_char) -> c_int, 0);
forward!(current_time_int64, xCurrentTimeInt64, (out: *mut i64) -> c_int, ffi::SQLITE_ERROR);
forward!(set_system_call, xSetSystemCall, (name: *const c_char, call: ffi::sqlite3_syscall_ptr) -> c_int, ffi::SQLITE_NOTFOUND);
forward!(get_system_call, xGetSystemCall, (name: *const c_char) -> ffi::sqlite3_syscall_ptr, None);
forward!(next_system_call, xNextSystemCall, (name: *const c_char) -> *const c_char, std::ptr::null());
