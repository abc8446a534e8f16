//! replvfs as a loadable extension of SQLite: `.load libreplvfs` in the `sqlite3` shell, `load_extension` in Python.
//!
//! With `REPLVFS_DEFAULT=1` in the environment the databases that it opens from then on need not name it. With `REPLVFS_LOG=warn` what it has to say is on
//! standard error: many hosts give no access to SQLite's error log, and none to `tracing`.
//!
//! Owns the entry point, and nothing else. Every function of SQLite comes from the table of the host that loads
//! it; a SQLite of its own would have locks and memory of its own.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use replvfs::Config;
use replvfs_vfs::api::SqliteApi;
use replvfs_vfs::ffi;

/// The extension was loaded, and is not unloaded with the connection that loaded it: a VFS stays for the life of
/// the process. Known to SQLite since 3.14.
const OK_LOAD_PERMANENTLY: c_int = ffi::SQLITE_OK | (1 << 8);

/// Two threads that load the extension at once would both find the VFS missing.
static LOADING: Mutex<()> = Mutex::new(());

/// SQLite calls this when the extension is loaded. Registers the VFSes `replvfs` and `replvfs-remote` with the host's SQLite, once a process:
/// loading it again, on whatever connection, succeeds and does nothing.
///
/// # Safety
///
/// As SQLite calls it: `error` is null or may be written to, `routines` is the host's table of functions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_replvfs_init(
    _db: *mut ffi::sqlite3,
    error: *mut *mut c_char,
    routines: *const ffi::sqlite3_api_routines,
) -> c_int {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the table that SQLite passed.
        let api = unsafe { SqliteApi::from_extension(routines) }.map_err(|error| error.to_string())?;
        load(api)
    }));
    let message = match outcome {
        Ok(Ok(())) => return OK_LOAD_PERMANENTLY,
        Ok(Err(message)) => message,
        Err(_panic) => "replvfs: internal error while it was loaded".to_owned(),
    };
    if !error.is_null() && !routines.is_null() {
        // SAFETY: the table that SQLite passed, and its place for a message.
        unsafe { *error = mprintf(routines, &message) };
    }
    ffi::SQLITE_ERROR
}

fn load(api: SqliteApi) -> Result<(), String> {
    let _one_at_a_time = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    // A second load, or a program that registered replvfs itself.
    if !api.vfs_find(Some(c"replvfs")).is_null() {
        return Ok(());
    }
    replvfs::register_with(api, Config::default()).map_err(|error| error.to_string())
}

/// A copy of `text` in the host's memory, for SQLite to free. Works where [`SqliteApi`] refuses the host as too old.
///
/// # Safety
///
/// `routines` is the host's table of functions.
unsafe fn mprintf(routines: *const ffi::sqlite3_api_routines, text: &str) -> *mut c_char {
    /// The place of `mprintf` in `struct sqlite3_api_routines`, counted in pointers.
    const MPRINTF: usize = 69;
    type Function = unsafe extern "C" fn(*const c_char, ...) -> *mut c_char;

    let Ok(text) = CString::new(text.replace('\0', " ")) else {
        return std::ptr::null_mut();
    };
    let format: &CStr = c"%s";
    // SAFETY: the table has had sqlite3_mprintf at this place since extensions exist.
    unsafe {
        let function = *routines.cast::<*const c_void>().add(MPRINTF);
        if function.is_null() {
            return std::ptr::null_mut();
        }
        std::mem::transmute::<*const c_void, Function>(function)(format.as_ptr(), text.as_ptr())
    }
}
