//! replvfs as a C library. The documentation for its users is in `include/replvfs.h`.
//!
//! Owns the crossing from C: pointers, texts, panics, and what is an error by which code. What is done is the crate `replvfs`'s.

mod integrity;
mod restore;

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_uint};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use replvfs::{Config, Replication, Txid};

const OK: c_int = 0;
const ERROR: c_int = 1;
const IOERR: c_int = 10;
const CORRUPT: c_int = 11;
const NOTFOUND: c_int = 12;
const CANTOPEN: c_int = 14;
const MISUSE: c_int = 21;

/// A code, and what to do about it.
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
    let status = catch_unwind(|| unsafe { replication(database) }.map(|replication| into_c(replication.status())));
    match status {
        Ok(Ok(status)) => status,
        Ok(Err(_)) | Err(_) => std::ptr::null_mut(),
    }
}

/// Restores a state of a database to a file.
///
/// # Safety
///
/// `replica`, `path` and `at` are null or texts; `restored` and `error` are null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn replvfs_restore(
    replica: *const c_char,
    path: *const c_char,
    at: *const c_char,
    txid: i64,
    flags: c_uint,
    restored: *mut u64,
    error: *mut *mut c_char,
) -> c_int {
    // SAFETY: as promised by the caller.
    unsafe {
        run(error, || {
            let wanted = restore::Wanted {
                replica: utf8(replica, "the replica")?.ok_or_else(|| is_null("the replica"))?,
                path: self::path(path).ok_or_else(|| is_null("the path to restore to"))?,
                at: utf8(at, "the time")?,
                txid,
                flags,
            };
            let txid = restore::restore(&wanted)?;
            if !restored.is_null() {
                *restored = txid.0;
            }
            Ok(())
        })
    }
}

/// Waits until what is committed in all databases of the process can be restored.
///
/// # Safety
///
/// `error` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn replvfs_shutdown(timeout_ms: u32, error: *mut *mut c_char) -> c_int {
    let timeout = Duration::from_millis(timeout_ms.into());
    let shutdown = || replvfs::shutdown(timeout).map_err(|error| (IOERR, error.to_string()));
    // SAFETY: as promised by the caller.
    unsafe { run(error, shutdown) }
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

/// # Safety
///
/// `database` is null or a text.
unsafe fn replication(database: *const c_char) -> Result<Replication, Failed> {
    // SAFETY: as promised by the caller.
    let path = unsafe { path(database) }.ok_or_else(|| is_null("the database's path"))?;
    Replication::of(path).ok_or_else(|| {
        let path = path.display();
        let message =
            format!("replvfs: {path} is not open in this process with vfs=replvfs and a replica: open it first");
        (NOTFOUND, message)
    })
}

/// A path is any bytes.
///
/// # Safety
///
/// `text` is null or a text, for as long as the result is used.
unsafe fn path<'a>(text: *const c_char) -> Option<&'a Path> {
    // SAFETY: not null, so it is a text.
    (!text.is_null()).then(|| Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(text) }.to_bytes())))
}

/// # Safety
///
/// As for [`path`].
unsafe fn utf8<'a>(text: *const c_char, name: &str) -> Result<Option<&'a str>, Failed> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, so it is a text.
    let text = unsafe { CStr::from_ptr(text) }.to_str();
    text.map(Some)
        .map_err(|_| (MISUSE, format!("replvfs: {name} is not UTF-8")))
}

fn is_null(name: &str) -> Failed {
    (MISUSE, format!("replvfs: {name} is NULL"))
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

/// A text for the caller to free with `replvfs_free`.
fn into_c(text: String) -> *mut c_char {
    CString::new(text.replace('\0', " ")).map_or(std::ptr::null_mut(), CString::into_raw)
}
