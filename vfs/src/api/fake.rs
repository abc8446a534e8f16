//! A SQLite of Rust for Miri, which runs no C: its allocator, its file names, and a VFS underneath whose files are in memory. It tells nothing of what SQLite
//! does, but whose memory is whose.
#![allow(clippy::unwrap_used, clippy::missing_safety_doc)]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::sync::atomic::AtomicU32;
use std::sync::{LazyLock, Mutex};

use super::*;

/// Words of a region of the wal-index.
const REGION_WORDS: usize = 32_768 / 4;

/// One file, by its name. Never freed.
struct Content {
    bytes: Mutex<Vec<u8>>,
    index: Vec<AtomicU32>,
}

static FILES: LazyLock<Mutex<HashMap<CString, &'static Content>>> = LazyLock::new(Mutex::default);
/// The name of the database that belongs to the name of a WAL.
static DATABASES: LazyLock<Mutex<HashMap<usize, AtomicPtr<c_char>>>> = LazyLock::new(Mutex::default);
static BASE: LazyLock<AtomicPtr<ffi::sqlite3_vfs>> = LazyLock::new(|| AtomicPtr::new(Box::leak(Box::new(base()))));
static REGISTERED: Mutex<Vec<AtomicPtr<ffi::sqlite3_vfs>>> = Mutex::new(Vec::new());

/// The VFS that was registered last under this name.
pub(crate) fn registered(name: &CStr) -> *mut ffi::sqlite3_vfs {
    let all = REGISTERED.lock().unwrap();
    let named = all.iter().map(|vfs| vfs.load(Ordering::Relaxed));
    // SAFETY: a registered VFS has a name.
    let mut named = named.filter(|vfs| unsafe { CStr::from_ptr((**vfs).zName) } == name);
    named.next_back().unwrap()
}

/// From here on `wal` is the name that the pager of `database` made for its WAL.
pub(crate) fn belongs(wal: &CStr, database: &CStr) {
    let database = AtomicPtr::new(database.as_ptr().cast_mut());
    DATABASES.lock().unwrap().insert(wal.as_ptr().addr(), database);
}

pub(crate) fn api() -> SqliteApi {
    // SAFETY: it is never called: with this version there is nothing to report.
    let log = unsafe { std::mem::transmute::<unsafe extern "C" fn(c_int, *const c_char), LogFn>(log) };
    SqliteApi {
        free,
        malloc64,
        vfs_find,
        vfs_register,
        vfs_unregister,
        uri_parameter,
        uri_key,
        compileoption_used,
        log,
        create_filename,
        free_filename,
        filename_database,
        version: 3_054_000,
    }
}

unsafe extern "C" fn log(_: c_int, _: *const c_char) {}

fn layout(bytes: u64) -> Layout {
    Layout::from_size_align(usize::try_from(bytes).unwrap() + 8, 8).unwrap()
}

unsafe extern "C" fn malloc64(bytes: u64) -> *mut c_void {
    // SAFETY: the layout is not empty, and begins with room for its length.
    unsafe {
        let block = alloc(layout(bytes));
        block.cast::<u64>().write(bytes);
        block.add(8).cast()
    }
}

unsafe extern "C" fn free(block: *mut c_void) {
    // SAFETY: of malloc64.
    unsafe {
        let block = block.cast::<u8>().sub(8);
        dealloc(block, layout(block.cast::<u64>().read()));
    }
}

unsafe extern "C" fn vfs_find(name: *const c_char) -> *mut ffi::sqlite3_vfs {
    match name.is_null() {
        true => BASE.load(Ordering::Relaxed),
        false => std::ptr::null_mut(),
    }
}

unsafe extern "C" fn vfs_register(vfs: *mut ffi::sqlite3_vfs, _: c_int) -> c_int {
    REGISTERED.lock().unwrap().push(AtomicPtr::new(vfs));
    ffi::SQLITE_OK
}

unsafe extern "C" fn vfs_unregister(_: *mut ffi::sqlite3_vfs) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn uri_parameter(_: *const c_char, _: *const c_char) -> *const c_char {
    std::ptr::null()
}

unsafe extern "C" fn uri_key(_: *const c_char, _: c_int) -> *const c_char {
    std::ptr::null()
}

unsafe extern "C" fn compileoption_used(_: *const c_char) -> c_int {
    0
}

unsafe extern "C" fn create_filename(
    database: *const c_char,
    _: *const c_char,
    _: *const c_char,
    _: c_int,
    _: *mut *const c_char,
) -> *const c_char {
    // SAFETY: a string.
    unsafe { CStr::from_ptr(database) }.to_owned().into_raw()
}

unsafe extern "C" fn free_filename(name: *const c_char) {
    // SAFETY: of create_filename.
    drop(unsafe { CString::from_raw(name.cast_mut()) });
}

unsafe extern "C" fn filename_database(wal: *const c_char) -> *const c_char {
    let databases = DATABASES.lock().unwrap();
    databases.get(&wal.addr()).unwrap().load(Ordering::Relaxed)
}

/// What its `sqlite3_file` points to.
#[repr(C)]
struct File {
    methods: *const ffi::sqlite3_io_methods,
    content: *const Content,
}

/// # Safety
///
/// `file` is open.
unsafe fn content<'a>(file: *mut ffi::sqlite3_file) -> &'a Content {
    // SAFETY: as promised; contents are never freed.
    unsafe { &*(*file.cast::<File>()).content }
}

fn base() -> ffi::sqlite3_vfs {
    ffi::sqlite3_vfs {
        iVersion: 1,
        szOsFile: c_int::try_from(size_of::<File>()).unwrap(),
        mxPathname: 512,
        pNext: std::ptr::null_mut(),
        zName: c"fake".as_ptr(),
        pAppData: std::ptr::null_mut(),
        xOpen: Some(open),
        xDelete: None,
        xAccess: Some(access),
        xFullPathname: None,
        xDlOpen: None,
        xDlError: None,
        xDlSym: None,
        xDlClose: None,
        xRandomness: None,
        xSleep: None,
        xCurrentTime: None,
        xGetLastError: None,
        xCurrentTimeInt64: None,
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
    }
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 3,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(takes_a_number),
    xFileSize: Some(file_size),
    xLock: Some(takes_a_number),
    xUnlock: Some(takes_a_number),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(is_nothing),
    xDeviceCharacteristics: Some(is_nothing),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(takes_a_number),
    xFetch: Some(fetch),
    xUnfetch: Some(unfetch),
};

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let mut files = FILES.lock().unwrap();
    // SAFETY: a string, a block of szOsFile bytes, and a place for a number or none.
    unsafe {
        let name = CStr::from_ptr(name).to_owned();
        if flags & ffi::SQLITE_OPEN_CREATE == 0 && !files.contains_key(&name) {
            return ffi::SQLITE_CANTOPEN;
        }
        let content = *files.entry(name).or_insert_with(|| {
            Box::leak(Box::new(Content {
                bytes: Mutex::default(),
                index: (0..REGION_WORDS).map(|_| AtomicU32::new(0)).collect(),
            }))
        });
        file.cast::<File>().write(File {
            methods: &raw const METHODS,
            content,
        });
        if !out_flags.is_null() {
            *out_flags = flags;
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn access(_: *mut ffi::sqlite3_vfs, name: *const c_char, _: c_int, result: *mut c_int) -> c_int {
    // SAFETY: a string, and a place for a number.
    unsafe { *result = c_int::from(FILES.lock().unwrap().contains_key(CStr::from_ptr(name))) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: an open file; who closes twice finds nothing.
    unsafe {
        (*file.cast::<File>()).content = std::ptr::null();
        (*file).pMethods = std::ptr::null();
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, buffer: *mut c_void, amount: c_int, offset: i64) -> c_int {
    let (amount, offset) = (usize::try_from(amount).unwrap(), usize::try_from(offset).unwrap());
    // SAFETY: an open file, and room for so many bytes.
    unsafe {
        let bytes = content(file).bytes.lock().unwrap();
        let there = bytes.get(offset..).unwrap_or_default();
        let got = there.len().min(amount);
        buffer.cast::<u8>().write_bytes(0, amount);
        std::ptr::copy_nonoverlapping(there.as_ptr(), buffer.cast(), got);
        match got < amount {
            true => ffi::SQLITE_IOERR_SHORT_READ,
            false => ffi::SQLITE_OK,
        }
    }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, data: *const c_void, amount: c_int, offset: i64) -> c_int {
    let (amount, offset) = (usize::try_from(amount).unwrap(), usize::try_from(offset).unwrap());
    // SAFETY: an open file, and so many bytes.
    unsafe {
        let data = std::slice::from_raw_parts(data.cast::<u8>(), amount);
        let mut bytes = content(file).bytes.lock().unwrap();
        let len = bytes.len().max(offset + amount);
        bytes.resize(len, 0);
        bytes[offset..offset + amount].copy_from_slice(data);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: an open file.
    let bytes = unsafe { &content(file).bytes };
    bytes.lock().unwrap().truncate(usize::try_from(size).unwrap());
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    // SAFETY: an open file, and a place for a number.
    unsafe { *size = i64::try_from(content(file).bytes.lock().unwrap().len()).unwrap() };
    ffi::SQLITE_OK
}

/// `xSync`, `xLock`, `xUnlock` and `xShmUnmap`: of an open file all are fine.
unsafe extern "C" fn takes_a_number(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: an open file.
    let _ = unsafe { content(file) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn is_nothing(_: *mut ffi::sqlite3_file) -> c_int {
    0
}

unsafe extern "C" fn check_reserved_lock(_: *mut ffi::sqlite3_file, result: *mut c_int) -> c_int {
    // SAFETY: a place for a number.
    unsafe { *result = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(_: *mut ffi::sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    _: c_int,
    _: c_int,
    out: *mut *mut c_void,
) -> c_int {
    assert_eq!(region, 0);
    // SAFETY: an open file, and a place for a pointer.
    unsafe { *out = content(file).index.as_ptr().cast_mut().cast() };
    ffi::SQLITE_OK
}

unsafe extern "C" fn shm_lock(_: *mut ffi::sqlite3_file, _: c_int, _: c_int, _: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn shm_barrier(_: *mut ffi::sqlite3_file) {}

unsafe extern "C" fn fetch(_: *mut ffi::sqlite3_file, _: i64, _: c_int, pages: *mut *mut c_void) -> c_int {
    // SAFETY: a place for a pointer.
    unsafe { *pages = std::ptr::null_mut() };
    ffi::SQLITE_OK
}

unsafe extern "C" fn unfetch(_: *mut ffi::sqlite3_file, _: i64, _: *mut c_void) -> c_int {
    ffi::SQLITE_OK
}
