//! Two VFSes around the one that is tested: a *probe* above it, which sees what SQLite calls, and a *faulty* one below, which fails.
//!
//! A call that reaches the faulty VFS while the probe is in the same call of the same file was made by SQLite, through
//! whatever stands between. Every other one was made by replvfs itself. Owns telling the two apart; leaves to `plan` what is to fail.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, Once};

use libsqlite3_sys as ffi;

use crate::plan::{Call, Effect, How, Kind, Method, Run, Slot};

/// The probe over the faulty VFS alone.
pub(crate) const PLAIN: &str = "probe-plain";
/// The probe over replvfs over the faulty VFS.
pub(crate) const REPLICATED: &str = "probe-replvfs";

/// The runs, by the folder of their database.
static RUNS: LazyLock<Mutex<HashMap<PathBuf, Arc<Run>>>> = LazyLock::new(Mutex::default);

thread_local! {
    /// What SQLite is calling on this thread, and what shall become of it. Taken by the faulty VFS.
    static CALLING: Cell<Option<(Method, Kind, Option<Effect>)>> = const { Cell::new(None) };
}

/// Calls for files in `folder`, which is a canonical path, belong to `run` from now on.
pub(crate) fn assign(folder: &Path, run: &Arc<Run>) {
    RUNS.lock().unwrap().insert(folder.to_owned(), Arc::clone(run));
}

/// Registers all of it, once in the process.
pub(crate) fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: looking for the default VFS, which is SQLite's own.
        let unix = unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) };
        let faulty = register_over(unix, c"faulty", Role::Faulty, true);
        register_over(faulty, c"probe-plain", Role::Probe, false);
        replvfs_tests::register();
        // SAFETY: looking for a VFS by name.
        let replvfs = unsafe { ffi::sqlite3_vfs_find(c"replvfs".as_ptr()) };
        assert!(!replvfs.is_null());
        register_over(replvfs, c"probe-replvfs", Role::Probe, false);
    });
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Probe,
    Faulty,
}

struct Layer {
    inner: *mut ffi::sqlite3_vfs,
    role: Role,
}

fn register_over(
    inner: *mut ffi::sqlite3_vfs,
    name: &'static CStr,
    role: Role,
    default: bool,
) -> *mut ffi::sqlite3_vfs {
    let layer = Box::leak(Box::new(Layer { inner, role }));
    // SAFETY: inner is registered; the new structure and its data are leaked.
    unsafe {
        let vfs = Box::leak(Box::new(ffi::sqlite3_vfs {
            iVersion: 2,
            szOsFile: (*inner).szOsFile + REAL_OFFSET as c_int,
            pNext: std::ptr::null_mut(),
            zName: name.as_ptr(),
            pAppData: std::ptr::from_mut(layer).cast(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_pathname),
            xDlOpen: None,
            xDlError: None,
            xDlSym: None,
            xDlClose: None,
            xRandomness: Some(randomness),
            xSleep: Some(sleep),
            xCurrentTime: Some(current_time),
            xGetLastError: Some(get_last_error),
            xCurrentTimeInt64: Some(current_time_int64),
            ..*inner
        }));
        assert_eq!(ffi::sqlite3_vfs_register(vfs, c_int::from(default)), ffi::SQLITE_OK);
        vfs
    }
}

/// # Safety
///
/// `vfs` is one that [`register_over`] made.
unsafe fn layer<'a>(vfs: *mut ffi::sqlite3_vfs) -> &'a Layer {
    // SAFETY: as promised by the caller; the data is leaked.
    unsafe { &*(*vfs).pAppData.cast::<Layer>() }
}

#[repr(C)]
struct File {
    methods: *const ffi::sqlite3_io_methods,
    inner: *mut ffi::sqlite3_file,
    role: Role,
    kind: Kind,
    /// Opened by SQLite, not by replvfs.
    connection: bool,
    run: Option<Arc<Run>>,
}

/// `WAL_READ_LOCK(0)`, whose mark is always 0, and `WAL_READ_LOCK(1)`.
const FIRST_READER: c_int = 3;
const FIRST_MARK: c_int = 4;

const REAL_OFFSET: usize = size_of::<File>().next_multiple_of(16);

struct Methods(ffi::sqlite3_io_methods);
// SAFETY: function pointers and a number.
unsafe impl Sync for Methods {}

/// Without xFetch: what is mapped is read past everybody.
static METHODS: Methods = Methods(ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
});

fn run_of(name: *const c_char) -> Option<Arc<Run>> {
    if name.is_null() {
        return None;
    }
    // SAFETY: SQLite's names are NUL-terminated.
    let name = unsafe { CStr::from_ptr(name) };
    let folder = Path::new(OsStr::from_bytes(name.to_bytes())).parent()?;
    RUNS.lock().unwrap().get(folder).cloned()
}

fn kind_of_name(name: *const c_char) -> Kind {
    if name.is_null() {
        return Kind::Other;
    }
    // SAFETY: as above.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    match name {
        name if name.ends_with(b"-wal") => Kind::Wal,
        name if name.ends_with(b"-journal") => Kind::Journal,
        name if name.ends_with(b".db") => Kind::Main,
        _ => Kind::Other,
    }
}

/// Takes one call on its way: the probe asks the plan and passes the answer to the faulty VFS, which does what it says. The second
/// part of the result tells whether it was SQLite's own.
fn pass(
    role: Role,
    run: Option<&Arc<Run>>,
    (method, kind): (Method, Kind),
    (at, amount): (i64, i64),
    mine: bool,
    real: impl Fn(How) -> c_int,
) -> (c_int, bool) {
    let Some(run) = run else {
        return (real(How::Done), mine);
    };
    if role == Role::Probe {
        let effect = run.connection_call(method, kind);
        CALLING.set(Some((method, kind, effect)));
        let code = real(How::Done);
        CALLING.set(None);
        run.trace(Call {
            method,
            kind,
            at,
            amount,
            code,
        });
        return (code, true);
    }
    if (method, kind) == (Method::Delete, Kind::Journal) {
        run.journal_ends(at != 0);
    }
    let calling = CALLING
        .get()
        .filter(|calling| mine && (calling.0, calling.1) == (method, kind));
    let effect = match calling {
        Some((_, _, effect)) => {
            CALLING.set(None);
            effect
        }
        None => run.own_call(method, kind),
    };
    let code = match effect {
        None => real(How::Done),
        Some(Effect { code, how: How::Not }) => code,
        Some(Effect { code, how }) => {
            real(how);
            code
        }
    };
    (code, calling.is_some())
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let kind = match flags {
        flags if flags & ffi::SQLITE_OPEN_MAIN_DB != 0 => Kind::Main,
        flags if flags & ffi::SQLITE_OPEN_WAL != 0 => Kind::Wal,
        flags if flags & ffi::SQLITE_OPEN_MAIN_JOURNAL != 0 => Kind::Journal,
        _ => Kind::Other,
    };
    let run = run_of(name);
    // SAFETY: a structure of ours; the block is our szOsFile long, which is the inner one's behind our own part; SQLite's arguments
    // are passed on.
    unsafe {
        (*file).pMethods = std::ptr::null();
        let layer = layer(vfs);
        let inner = file.byte_add(REAL_OFFSET);
        (*inner).pMethods = std::ptr::null();
        let (code, connection) = pass(layer.role, run.as_ref(), (Method::Open, kind), (0, 0), true, |_| {
            (*layer.inner).xOpen.unwrap()(layer.inner, name, inner, flags, out_flags)
        });
        if code == ffi::SQLITE_OK {
            file.cast::<File>().write(File {
                methods: &raw const METHODS.0,
                inner,
                role: layer.role,
                kind,
                connection,
                run,
            });
        }
        code
    }
}

/// One method of a file.
///
/// # Safety
///
/// `file` is an open file of ours.
unsafe fn on_file(
    file: *mut ffi::sqlite3_file,
    method: Method,
    (at, amount): (i64, i64),
    real: impl Fn(*mut ffi::sqlite3_file, &ffi::sqlite3_io_methods, How) -> c_int,
) -> c_int {
    // SAFETY: as promised by the caller; the inner file is open as long as ours.
    let (this, methods) = unsafe {
        let this = &*file.cast::<File>();
        (this, &*(*this.inner).pMethods)
    };
    pass(
        this.role,
        this.run.as_ref(),
        (method, this.kind),
        (at, amount),
        this.connection,
        |how| real(this.inner, methods, how),
    )
    .0
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite's arguments, for an open file of ours, which nobody uses after this.
    unsafe {
        let code = on_file(file, Method::Close, (0, 0), |inner, methods, _| {
            methods.xClose.unwrap()(inner)
        });
        let this = &mut *file.cast::<File>();
        this.methods = std::ptr::null();
        drop(this.run.take());
        code
    }
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, buffer: *mut c_void, amount: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite's arguments, for an open file of ours; what is zeroed is inside the buffer.
    unsafe {
        on_file(file, Method::Read, (offset, amount.into()), |inner, methods, how| {
            let code = methods.xRead.unwrap()(inner, buffer, amount, offset);
            if how == How::Half {
                let whole = amount as usize;
                buffer
                    .byte_add(whole / 2)
                    .cast::<u8>()
                    .write_bytes(0, whole - whole / 2);
            }
            code
        })
    }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, data: *const c_void, amount: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite's arguments, for an open file of ours.
    unsafe {
        on_file(file, Method::Write, (offset, amount.into()), |inner, methods, how| {
            let amount = if how == How::Half { amount / 2 } else { amount };
            methods.xWrite.unwrap()(inner, data, amount, offset)
        })
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    // SAFETY: SQLite's arguments, for an open file of ours.
    unsafe {
        on_file(file, Method::Sync, (0, 0), |inner, methods, _| {
            if (*file.cast::<File>()).role == Role::Faulty {
                // No power fails in these tests.
                return ffi::SQLITE_OK;
            }
            methods.xSync.unwrap()(inner, _flags)
        })
    }
}

unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, offset: c_int, n: c_int, flags: c_int) -> c_int {
    let slot = match (offset, n, flags & ffi::SQLITE_SHM_EXCLUSIVE != 0) {
        (FIRST_READER.., _, false) => Slot::Reader,
        (FIRST_MARK.., 1, true) => Slot::Mark,
        _ => Slot::One,
    };
    let what = match slot {
        Slot::One => (i64::from(offset), i64::from(n << 8 | flags)),
        _ => (0, 0),
    };
    let method = if flags & ffi::SQLITE_SHM_UNLOCK == 0 {
        Method::ShmLock(slot)
    } else {
        Method::ShmUnlock(slot)
    };
    // SAFETY: SQLite's arguments, for an open file of ours.
    unsafe {
        on_file(file, method, what, |inner, methods, _| {
            methods.xShmLock.unwrap()(inner, offset, n, flags)
        })
    }
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, op: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: SQLite's arguments, for an open file of ours.
    unsafe {
        on_file(file, Method::FileControl(op), (0, 0), |inner, methods, _| {
            methods.xFileControl.unwrap()(inner, op, argument)
        })
    }
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    // SAFETY: as above.
    unsafe {
        on_file(file, Method::ShmBarrier, (0, 0), |inner, methods, _| {
            methods.xShmBarrier.unwrap()(inner);
            ffi::SQLITE_OK
        });
    }
}

/// Methods whose arguments are of no interest but for the trace.
macro_rules! methods {
    ($($name:ident, $x:ident, $method:ident, ($($argument:ident: $type:ty),*), $what:expr;)*) => {$(
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $argument: $type)*) -> c_int {
            // SAFETY: SQLite's arguments, for an open file of ours.
            unsafe {
                on_file(file, Method::$method, $what, |inner, methods, _| methods.$x.unwrap()(inner $(, $argument)*))
            }
        }
    )*};
}

methods! {
    truncate, xTruncate, Truncate, (size: i64), (size, 0);
    file_size, xFileSize, FileSize, (size: *mut i64), (0, 0);
    lock, xLock, Lock, (level: c_int), (level.into(), 0);
    unlock, xUnlock, Unlock, (level: c_int), (level.into(), 0);
    check_reserved_lock, xCheckReservedLock, CheckReservedLock, (answer: *mut c_int), (0, 0);
    shm_map, xShmMap, ShmMap, (region: c_int, size: c_int, extend: c_int, memory: *mut *mut c_void), (region.into(), extend.into());
    shm_unmap, xShmUnmap, ShmUnmap, (delete: c_int), (delete.into(), 0);
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: an open file of ours.
    unsafe {
        let inner = (*file.cast::<File>()).inner;
        (*(*inner).pMethods).xSectorSize.unwrap()(inner)
    }
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: an open file of ours.
    unsafe {
        let inner = (*file.cast::<File>()).inner;
        (*(*inner).pMethods).xDeviceCharacteristics.unwrap()(inner)
    }
}

/// Methods of the VFS that take a name.
macro_rules! named {
    ($($name:ident, $x:ident, $method:ident, ($($argument:ident: $type:ty),*), $what:expr;)*) => {$(
        unsafe extern "C" fn $name(vfs: *mut ffi::sqlite3_vfs, path: *const c_char $(, $argument: $type)*) -> c_int {
            // SAFETY: a structure of ours; SQLite's arguments are passed on.
            unsafe {
                let layer = layer(vfs);
                let what = (Method::$method, kind_of_name(path));
                pass(layer.role, run_of(path).as_ref(), what, $what, true, |_| {
                    (*layer.inner).$x.unwrap()(layer.inner, path $(, $argument)*)
                }).0
            }
        }
    )*};
}

named! {
    delete, xDelete, Delete, (sync: c_int), (sync.into(), 0);
    access, xAccess, Access, (flags: c_int, answer: *mut c_int), (flags.into(), 0);
    full_pathname, xFullPathname, FullPathname, (room: c_int, out: *mut c_char), (0, 0);
}

/// Nobody waits: what is busy stays so, as long as one thread does everything.
unsafe extern "C" fn sleep(_: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    microseconds
}

macro_rules! forwarded {
    ($($name:ident, $x:ident, ($($argument:ident: $type:ty),*);)*) => {$(
        unsafe extern "C" fn $name(vfs: *mut ffi::sqlite3_vfs $(, $argument: $type)*) -> c_int {
            // SAFETY: a structure of ours; SQLite's arguments are passed on.
            unsafe {
                let inner = layer(vfs).inner;
                (*inner).$x.unwrap()(inner $(, $argument)*)
            }
        }
    )*};
}

forwarded! {
    randomness, xRandomness, (amount: c_int, out: *mut c_char);
    current_time, xCurrentTime, (out: *mut f64);
    get_last_error, xGetLastError, (room: c_int, out: *mut c_char);
    current_time_int64, xCurrentTimeInt64, (out: *mut i64);
}
