//! A default VFS over SQLite's own for Unix that puts on tape what is done to the databases that have one.
//!
//! Owns no files: everything goes to the real disk, and the tape is written beside. Readers, locks and shared memory pass it by.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use replvfs_vfs::ffi;

use super::disk::Event;
use super::tape::Tape;

pub(crate) const NAME: &str = "recorder";

struct Pointer<T>(*mut T);
// SAFETY: a registered VFS, or a table of methods: neither is changed.
unsafe impl<T> Send for Pointer<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Pointer<T> {}

struct Methods(ffi::sqlite3_io_methods);
// SAFETY: function pointers and a number.
unsafe impl Send for Methods {}
// SAFETY: as above.
unsafe impl Sync for Methods {}

/// An open file that is on a tape.
#[derive(Clone)]
struct Open {
    tape: Arc<Tape>,
    inode: usize,
    /// SQLite syncs the folder with the first sync of a journal or WAL that it opened to make it if need be.
    sync_folder: bool,
    real: &'static Methods,
}

static BASE: OnceLock<Pointer<ffi::sqlite3_vfs>> = OnceLock::new();
static TAPES: Mutex<Vec<Arc<Tape>>> = Mutex::new(Vec::new());
static FILES: Mutex<Option<HashMap<usize, Open>>> = Mutex::new(None);
/// The real methods by their address, with ours for them.
static TABLES: Mutex<Option<HashMap<usize, Table>>> = Mutex::new(None);

type Table = (&'static Methods, &'static Methods);

/// Records what is done to a database from now on, until the tape is taken out.
pub(crate) fn insert(tape: Arc<Tape>) {
    TAPES.lock().unwrap_or_else(PoisonError::into_inner).push(tape);
}

/// Ends the recording of files that are opened from now on. Open ones keep their tape.
pub(crate) fn eject(database: &Path) {
    let mut tapes = TAPES.lock().unwrap_or_else(PoisonError::into_inner);
    tapes.retain(|tape| tape.database() != database);
}

/// The tape of a file by its path, and what follows the database's name in it.
fn tape_of(path: &str) -> Option<(Arc<Tape>, String)> {
    let tapes = TAPES.lock().unwrap_or_else(PoisonError::into_inner);
    tapes.iter().find_map(|tape| {
        let suffix = path.strip_prefix(tape.database().to_str()?)?;
        ["", "-wal", "-journal"]
            .contains(&suffix)
            .then(|| (Arc::clone(tape), suffix.to_owned()))
    })
}

fn opened(file: *mut ffi::sqlite3_file) -> Open {
    let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let known = files.as_ref().and_then(|files| files.get(&file.addr()));
    known.expect("a file with our methods is known").clone()
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, data: *const c_void, amount: c_int, offset: i64) -> c_int {
    let open = opened(file);
    // SAFETY: SQLite gives amount readable bytes.
    let bytes = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), usize::try_from(amount).unwrap()) };
    let event = Event::Write {
        inode: open.inode,
        offset: u64::try_from(offset).unwrap(),
        data: bytes.into(),
    };
    let mut code = ffi::SQLITE_OK;
    open.tape.change(event, || {
        // SAFETY: SQLite's arguments, for a file of these methods.
        code = unsafe { open.real.0.xWrite.unwrap()(file, data, amount, offset) };
        code == ffi::SQLITE_OK
    });
    code
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, len: i64) -> c_int {
    let open = opened(file);
    let event = Event::Resize {
        inode: open.inode,
        len: u64::try_from(len).unwrap(),
    };
    let mut code = ffi::SQLITE_OK;
    open.tape.change(event, || {
        // SAFETY: as above.
        code = unsafe { open.real.0.xTruncate.unwrap()(file, len) };
        code == ffi::SQLITE_OK
    });
    code
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    let open = opened(file);
    let event = Event::Sync {
        inode: open.inode,
        folder: open.sync_folder,
    };
    let mut code = ffi::SQLITE_OK;
    open.tape.change(event, || {
        // SAFETY: as above.
        code = unsafe { open.real.0.xSync.unwrap()(file, flags) };
        code == ffi::SQLITE_OK
    });
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(open) = files.as_mut().and_then(|files| files.get_mut(&file.addr())) {
        open.sync_folder = false;
    }
    code
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let open = opened(file);
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(files) = files.as_mut() {
        files.remove(&file.addr());
    }
    drop(files);
    // SAFETY: as above; the file is closed once.
    unsafe { open.real.0.xClose.unwrap()(file) }
}

/// Copies of the methods of a file, as they are and with ours in them.
///
/// # Safety
///
/// `methods` is a table of the base VFS.
unsafe fn table(methods: *const ffi::sqlite3_io_methods) -> Table {
    let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    *tables.get_or_insert_default().entry(methods.addr()).or_insert_with(|| {
        // SAFETY: as promised by the caller; the base VFS's tables are static.
        let real = unsafe { *methods };
        let ours = ffi::sqlite3_io_methods {
            xClose: Some(close),
            xWrite: Some(write),
            xTruncate: Some(truncate),
            xSync: Some(sync),
            ..real
        };
        (Box::leak(Box::new(Methods(real))), Box::leak(Box::new(Methods(ours))))
    })
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let base = BASE.get().unwrap().0;
    // SAFETY: SQLite's arguments are passed on; the base is a registered VFS.
    let real_open = || unsafe { (*base).xOpen.unwrap()(base, name, file, flags, out_flags) };
    // SAFETY: a name is a string.
    let path = (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_str().unwrap());
    let Some((path, (tape, suffix))) = path.and_then(|path| Some((path, tape_of(path)?))) else {
        return real_open();
    };
    let mut code = ffi::SQLITE_OK;
    let inode = tape.open(&suffix, || {
        let created = !Path::new(path).exists();
        code = real_open();
        (code == ffi::SQLITE_OK).then_some(created)
    });
    if let Some(inode) = inode {
        // SAFETY: the file was just opened by the base VFS.
        let (real, ours) = unsafe { table((*file).pMethods) };
        let open = Open {
            tape,
            inode,
            sync_folder: flags & ffi::SQLITE_OPEN_CREATE != 0 && !suffix.is_empty(),
            real,
        };
        let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
        files.get_or_insert_default().insert(file.addr(), open);
        // SAFETY: as above; the table is leaked.
        unsafe { (*file).pMethods = &raw const ours.0 };
    }
    code
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, name: *const c_char, sync_folder: c_int) -> c_int {
    let base = BASE.get().unwrap().0;
    // SAFETY: SQLite's arguments are passed on; the base is a registered VFS.
    let real_delete = || unsafe { (*base).xDelete.unwrap()(base, name, sync_folder) };
    // SAFETY: a name is a string.
    let path = unsafe { CStr::from_ptr(name) }.to_str().unwrap();
    let Some((tape, suffix)) = tape_of(path) else {
        return real_delete();
    };
    let mut code = ffi::SQLITE_OK;
    tape.delete(&suffix, sync_folder & 1 != 0, || {
        code = real_delete();
        code == ffi::SQLITE_OK
    });
    code
}

/// Makes it the default.
pub(crate) fn register() {
    // SAFETY: the structure and its name are leaked. Methods that are not ours ignore the structure that they are called with, or use its
    // pAppData, which is the base's.
    unsafe {
        let base = ffi::sqlite3_vfs_find(std::ptr::null());
        assert!(BASE.set(Pointer(base)).is_ok());
        let vfs = Box::leak(Box::new(ffi::sqlite3_vfs {
            zName: c"recorder".as_ptr(),
            pNext: std::ptr::null_mut(),
            xOpen: Some(open),
            xDelete: Some(delete),
            ..*base
        }));
        assert_eq!(ffi::sqlite3_vfs_register(vfs, 1), ffi::SQLITE_OK);
    }
}
