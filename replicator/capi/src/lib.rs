//! replvfs as a C library. The documentation for its users is in `include/replvfs.h`.
//!
//! Owns the crossing from C: pointers, texts, panics. What is done is the crate `replvfs`'s.

use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use replvfs::{Config, Replication, Txid};

const OK: c_int = 0;
const ERROR: c_int = 1;
const IOERR: c_int = 10;
const NOTFOUND: c_int = 12;
const MISUSE: c_int = 21;

type Failed = (c_int, String);

/// Registers the VFSes `replvfs` and `replvfs-remote`, once.
///
/// # Safety
///
/// `error` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn replvfs_register(error: *mut *mut c_char) -> c_int {
    static REGISTERED: Mutex<bool> = Mutex::new(false);

    let register = || {
        let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
        if !*registered {
            replvfs::register(Config::default()).map_err(|error| (ERROR, error.to_string()))?;
            *registered = true;
        }
        Ok(())
    };
    // SAFETY: as promised by the caller.
    unsafe { run(error, register) }
}

/// Uploads what is committed in a database, and waits until it can be restored.
///
/// # Safety
///
/// `database` is null or a text; `error` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn replvfs_flush(database: *const c_char, error: *mut *mut c_char) -> c_int {
    // SAFETY: as promised by the caller.
    unsafe {
        run(error, || {
            let flushed = replication(database)?.flush();
            flushed.map(|_| ()).map_err(|error| (IOERR, error.to_string()))
        })
    }
}

/// Waits until a transaction can be restored.
///
/// # Safety
///
/// As for [`replvfs_flush`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn replvfs_wait(database: *const c_char, txid: u64, error: *mut *mut c_char) -> c_int {
    // SAFETY: as promised by the caller.
    unsafe {
        run(error, || {
            let waited = replication(database)?.wait(Txid(txid));
            waited.map(|_| ()).map_err(|error| (IOERR, error.to_string()))
        })
    }
}

/// The status of a database's replication; null when it has none in this process.
///
/// # Safety
///
/// `database` is null or a text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn replvfs_status_json(database: *const c_char) -> *mut c_char {
    // SAFETY: as promised by the caller.
    let status = catch_unwind(|| unsafe { replication(database) }.map(|replication| replication.status()));
    match status {
        Ok(Ok(status)) => into_c(status),
        Ok(Err(_)) | Err(_) => std::ptr::null_mut(),
    }
}

/// # Safety
///
/// `database` is null or a text.
unsafe fn replication(database: *const c_char) -> Result<Replication, Failed> {
    if database.is_null() {
        return Err((MISUSE, "replvfs: the database's path is NULL".to_owned()));
    }
    // SAFETY: not null, so it is a text.
    let path = OsStr::from_bytes(unsafe { CStr::from_ptr(database) }.to_bytes());
    Replication::of(path).ok_or_else(|| {
        let path = path.to_string_lossy();
        let message =
            format!("replvfs: {path} is not open in this process with vfs=replvfs and a replica: open it first");
        (NOTFOUND, message)
    })
}

/// # Safety
///
/// `error` is null or may be written to.
unsafe fn run(error: *mut *mut c_char, body: impl FnOnce() -> Result<(), Failed>) -> c_int {
    let (code, message) = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => (OK, None),
        Ok(Err((code, message))) => (code, Some(message)),
        Err(_panic) => (ERROR, Some("replvfs: a panic, which is a bug in replvfs".to_owned())),
    };
    if !error.is_null() {
        // SAFETY: not null, so the caller lets us write there.
        unsafe { *error = message.map_or(std::ptr::null_mut(), into_c) };
    }
    code
}

/// The version of this library.
#[unsafe(no_mangle)]
pub extern "C" fn replvfs_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// Frees a text of this library.
///
/// # Safety
///
/// `text` is null, or came from this library and was not freed yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn replvfs_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: texts of this library are made by into_c, and the caller frees each once.
        drop(unsafe { CString::from_raw(text) });
    }
}

/// A text for the caller to free with `replvfs_free`.
fn into_c(text: String) -> *mut c_char {
    CString::new(text.replace('\0', " ")).map_or(std::ptr::null_mut(), CString::into_raw)
}
