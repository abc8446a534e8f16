//! The SQLite functions that we call, in one table: filled by the linker, or by the host that loads the
//! extension. Nothing else in this crate names a SQLite function.

#[cfg(test)]
pub(crate) mod fake;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use libsqlite3_sys as ffi;

/// The oldest SQLite that has every function of the table (`sqlite3_create_filename`, 3.32.0).
const OLDEST: c_int = 3_032_000;

/// `sqlite3_log` of the table that was used last, for messages from threads that know no connection.
static LOG: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

type LogFn = unsafe extern "C" fn(c_int, *const c_char, ...);

/// Where SQLite's functions come from. Cheap to copy.
#[derive(Clone, Copy)]
pub struct SqliteApi {
    free: unsafe extern "C" fn(*mut c_void),
    malloc64: unsafe extern "C" fn(u64) -> *mut c_void,
    vfs_find: unsafe extern "C" fn(*const c_char) -> *mut ffi::sqlite3_vfs,
    vfs_register: unsafe extern "C" fn(*mut ffi::sqlite3_vfs, c_int) -> c_int,
    vfs_unregister: unsafe extern "C" fn(*mut ffi::sqlite3_vfs) -> c_int,
    uri_parameter: unsafe extern "C" fn(*const c_char, *const c_char) -> *const c_char,
    uri_key: unsafe extern "C" fn(*const c_char, c_int) -> *const c_char,
    compileoption_used: unsafe extern "C" fn(*const c_char) -> c_int,
    log: LogFn,
    create_filename:
        unsafe extern "C" fn(*const c_char, *const c_char, *const c_char, c_int, *mut *const c_char) -> *const c_char,
    free_filename: unsafe extern "C" fn(*const c_char),
    filename_database: unsafe extern "C" fn(*const c_char) -> *const c_char,
    version: c_int,
}

impl std::fmt::Debug for SqliteApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteApi")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// The host's SQLite cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct ApiError(pub String);

/// Places in `struct sqlite3_api_routines` (`sqlite3ext.h`), counted in pointers. The structure only ever grows at its end.
mod slot {
    pub(super) const FREE: usize = 58;
    pub(super) const LIBVERSION_NUMBER: usize = 67;
    pub(super) const VFS_FIND: usize = 141;
    pub(super) const VFS_REGISTER: usize = 142;
    pub(super) const VFS_UNREGISTER: usize = 143;
    pub(super) const COMPILEOPTION_USED: usize = 161;
    pub(super) const LOG: usize = 167;
    pub(super) const URI_PARAMETER: usize = 189;
    pub(super) const MALLOC64: usize = 197;
    pub(super) const URI_KEY: usize = 245;
    pub(super) const FILENAME_DATABASE: usize = 246;
    pub(super) const CREATE_FILENAME: usize = 249;
    pub(super) const FREE_FILENAME: usize = 250;
}

impl SqliteApi {
    /// The SQLite that this program is linked with.
    #[cfg(feature = "linked")]
    #[must_use]
    pub fn linked() -> SqliteApi {
        /// The binding in `libsqlite3-sys` takes the parameters as `*mut`; SQLite only reads them.
        unsafe extern "C" fn create_filename(
            database: *const c_char,
            journal: *const c_char,
            wal: *const c_char,
            count: c_int,
            parameters: *mut *const c_char,
        ) -> *const c_char {
            // SAFETY: the caller keeps sqlite3_create_filename's contract.
            unsafe { ffi::sqlite3_create_filename(database, journal, wal, count, parameters.cast()) }
        }
        /// As above: `sqlite3_free_filename` takes `*mut` in bindings for older SQLites, and `*const` in newer ones.
        unsafe extern "C" fn free_filename(name: *const c_char) {
            // SAFETY: the caller keeps sqlite3_free_filename's contract.
            unsafe { ffi::sqlite3_free_filename(name.cast_mut() as _) }
        }
        // SAFETY: sqlite3_libversion_number has no preconditions.
        let version = unsafe { ffi::sqlite3_libversion_number() };
        SqliteApi {
            free: ffi::sqlite3_free,
            malloc64: ffi::sqlite3_malloc64,
            vfs_find: ffi::sqlite3_vfs_find,
            vfs_register: ffi::sqlite3_vfs_register,
            vfs_unregister: ffi::sqlite3_vfs_unregister,
            uri_parameter: ffi::sqlite3_uri_parameter,
            uri_key: ffi::sqlite3_uri_key,
            compileoption_used: ffi::sqlite3_compileoption_used,
            log: ffi::sqlite3_log,
            create_filename,
            free_filename,
            filename_database: ffi::sqlite3_filename_database,
            version,
        }
    }

    /// The SQLite of the host that loads the extension.
    ///
    /// # Errors
    ///
    /// When the host's SQLite is too old, or its table lacks a function.
    ///
    /// # Safety
    ///
    /// `routines` is the pointer that SQLite passed to the extension's entry point.
    #[allow(
        clippy::missing_transmute_annotations,
        reason = "each entry becomes what its field is declared as"
    )]
    pub unsafe fn from_extension(routines: *const ffi::sqlite3_api_routines) -> Result<SqliteApi, ApiError> {
        if routines.is_null() {
            return Err(ApiError("the host gave no table of SQLite's functions".into()));
        }
        let table = routines.cast::<*const c_void>();
        // SAFETY: the version function has been in the table since 3.3.13, and loading extensions at all is of that age.
        let version = unsafe {
            let function = *table.add(slot::LIBVERSION_NUMBER);
            if function.is_null() {
                return Err(ApiError("the host's SQLite does not tell its version".into()));
            }
            std::mem::transmute::<*const c_void, unsafe extern "C" fn() -> c_int>(function)()
        };
        if version < OLDEST {
            return Err(ApiError(format!(
                "replvfs needs SQLite 3.32.0 or newer; this program has {}.{}.{}",
                version / 1_000_000,
                version / 1000 % 1000,
                version % 1000
            )));
        }
        /// One entry of the table as the function that `sqlite3ext.h` declares there.
        macro_rules! entry {
            ($slot:ident) => {{
                // SAFETY: the table of this version is longer than every slot used here (checked above).
                let function = unsafe { *table.add(slot::$slot) };
                if function.is_null() {
                    return Err(ApiError(format!(
                        "the host's SQLite was built without the function in slot {} of its extension table",
                        slot::$slot
                    )));
                }
                // SAFETY: the slot holds a function of just this signature in every release since it was added.
                unsafe { std::mem::transmute(function) }
            }};
        }
        Ok(SqliteApi {
            free: entry!(FREE),
            malloc64: entry!(MALLOC64),
            vfs_find: entry!(VFS_FIND),
            vfs_register: entry!(VFS_REGISTER),
            vfs_unregister: entry!(VFS_UNREGISTER),
            uri_parameter: entry!(URI_PARAMETER),
            uri_key: entry!(URI_KEY),
            compileoption_used: entry!(COMPILEOPTION_USED),
            log: entry!(LOG),
            create_filename: entry!(CREATE_FILENAME),
            free_filename: entry!(FREE_FILENAME),
            filename_database: entry!(FILENAME_DATABASE),
            version,
        })
    }

    /// `sqlite3_libversion_number` of the SQLite behind the table.
    #[must_use]
    pub fn version_number(&self) -> i32 {
        self.version
    }

    /// Whether SQLite was built without mutexes. Threads beside the application's may not use such a one. (That a program switched them
    /// off with `SQLITE_CONFIG_SINGLETHREAD` cannot be seen.)
    #[must_use]
    pub fn is_single_threaded(&self) -> bool {
        // SAFETY: a NUL-terminated name.
        unsafe { (self.compileoption_used)(c"THREADSAFE=0".as_ptr()) != 0 }
    }

    /// A copy of `text` that SQLite may free with `sqlite3_free`, as `sqlite3_mprintf("%s")` gives it. Null without memory.
    /// Text behind a NUL is cut.
    #[must_use]
    pub fn mprintf(&self, text: &str) -> *mut c_char {
        let bytes = text.as_bytes();
        let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        // SAFETY: the block has room for len bytes and the NUL, and nobody else knows it yet.
        unsafe {
            let block = (self.malloc64)(len as u64 + 1).cast::<u8>();
            if !block.is_null() {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), block, len);
                *block.add(len) = 0;
            }
            block.cast()
        }
    }

    /// Frees what SQLite allocated.
    ///
    /// # Safety
    ///
    /// `block` came from SQLite's allocator, and nobody uses it any more.
    pub unsafe fn free(&self, block: *mut c_void) {
        // SAFETY: as promised by the caller.
        unsafe { (self.free)(block) }
    }

    /// `sqlite3_vfs_find`; `None` names the default VFS.
    #[must_use]
    pub fn vfs_find(&self, name: Option<&CStr>) -> *mut ffi::sqlite3_vfs {
        // SAFETY: a NUL-terminated name or null, as sqlite3_vfs_find takes it.
        unsafe { (self.vfs_find)(name.map_or(std::ptr::null(), CStr::as_ptr)) }
    }

    /// # Safety
    ///
    /// `vfs` stays valid for the rest of the process.
    pub(crate) unsafe fn vfs_register(&self, vfs: *mut ffi::sqlite3_vfs, make_default: bool) -> c_int {
        // SAFETY: as promised by the caller.
        unsafe { (self.vfs_register)(vfs, c_int::from(make_default)) }
    }

    /// # Safety
    ///
    /// `vfs` was registered, and stays valid for the rest of the process: a connection may have found it before.
    pub(crate) unsafe fn vfs_unregister(&self, vfs: *mut ffi::sqlite3_vfs) {
        // SAFETY: as promised by the caller. It fails for nothing.
        unsafe { (self.vfs_unregister)(vfs) };
    }

    /// All parameters of a file name that SQLite passed to `xOpen`, in their order.
    ///
    /// # Safety
    ///
    /// `name` is such a pointer, and the open that it was passed to has not returned.
    pub(crate) unsafe fn uri_parameters(&self, name: *const c_char) -> Vec<(String, String)> {
        let mut parameters = Vec::new();
        for index in 0.. {
            // SAFETY: name is a sqlite3_filename (caller); the returned strings live as long as it does.
            let (key, value) = unsafe {
                let key = (self.uri_key)(name, index);
                if key.is_null() {
                    break;
                }
                (CStr::from_ptr(key), (self.uri_parameter)(name, key))
            };
            let value = if value.is_null() {
                String::new()
            } else {
                // SAFETY: a NUL-terminated string inside the file name's block.
                unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned()
            };
            parameters.push((key.to_string_lossy().into_owned(), value));
        }
        parameters
    }

    /// The name of the database that the name of a WAL belongs to: the very pointer that the database was opened with, if both are
    /// from one pager.
    ///
    /// # Safety
    ///
    /// `wal_name` is a `sqlite3_filename` that was passed to `xOpen` with `SQLITE_OPEN_WAL`.
    pub(crate) unsafe fn filename_database(&self, wal_name: *const c_char) -> *const c_char {
        // SAFETY: as promised by the caller.
        unsafe { (self.filename_database)(wal_name) }
    }

    /// A file name of our own with the parameters of another, as `xOpen` wants it.
    pub(crate) fn filename(&self, path: &CStr, parameters: &[(String, String)]) -> Option<Filename> {
        let mut strings = Vec::with_capacity(parameters.len() * 2);
        for (key, value) in parameters {
            strings.push(CString::new(key.as_str()).ok()?);
            strings.push(CString::new(value.as_str()).ok()?);
        }
        let mut pointers: Vec<*const c_char> = strings.iter().map(|string| string.as_ptr()).collect();
        let count = c_int::try_from(parameters.len()).ok()?;
        // SAFETY: all strings are NUL-terminated and live through the call, which copies them.
        let name =
            unsafe { (self.create_filename)(path.as_ptr(), c"".as_ptr(), c"".as_ptr(), count, pointers.as_mut_ptr()) };
        (!name.is_null()).then_some(Filename { api: *self, name })
    }

    /// Makes this table the one that [`report`] speaks through.
    pub(crate) fn use_for_reports(&self) {
        LOG.store(self.log as *mut c_void, Ordering::Release);
    }
}

/// A file name made with `sqlite3_create_filename`.
pub(crate) struct Filename {
    api: SqliteApi,
    name: *const c_char,
}

impl Filename {
    pub(crate) fn as_ptr(&self) -> *const c_char {
        self.name
    }
}

impl Drop for Filename {
    fn drop(&mut self) {
        // SAFETY: the name came from sqlite3_create_filename, and is freed once.
        unsafe { (self.api.free_filename)(self.name) }
    }
}

// SAFETY: the block is only read, and SQLite's allocator may be used from any thread.
unsafe impl Send for Filename {}
// SAFETY: as above.
unsafe impl Sync for Filename {}

/// Tells the host's error log (`sqlite3_log`). Nothing happens before a VFS is registered. May be called from any thread.
///
/// `code` is a SQLite result code, such as `SQLITE_CANTOPEN` or `SQLITE_WARNING`.
pub fn report(code: i32, message: &str) {
    let log = LOG.load(Ordering::Acquire);
    if log.is_null() {
        return;
    }
    let Ok(message) = CString::new(message.replace('\0', " ")) else {
        return;
    };
    // SAFETY: only use_for_reports stores here, and it stores a LogFn.
    let log = unsafe { std::mem::transmute::<*mut c_void, LogFn>(log) };
    // SAFETY: a constant format with one string.
    unsafe { log(code, c"%s".as_ptr(), message.as_ptr()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// As many functions as a table can have, none of which may be called.
    type Table = [*const c_void; 300];

    unsafe extern "C" fn of_2020() -> c_int {
        3_031_001
    }

    unsafe extern "C" fn of_2021() -> c_int {
        3_035_004
    }

    fn refusal(table: &Table) -> String {
        // SAFETY: a table with a version, and nothing else that is looked at.
        unsafe { SqliteApi::from_extension(table.as_ptr().cast()) }
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_host_that_is_too_old_or_lacks_a_function_is_refused() {
        // SAFETY: no table at all is an answer.
        let none = unsafe { SqliteApi::from_extension(std::ptr::null()) };
        assert!(none.unwrap_err().to_string().contains("no table"));
        let mut table: Table = [std::ptr::null(); 300];
        assert!(refusal(&table).contains("does not tell its version"));
        table[slot::LIBVERSION_NUMBER] = of_2020 as *const c_void;
        assert_eq!(
            refusal(&table),
            "replvfs needs SQLite 3.32.0 or newer; this program has 3.31.1"
        );
        table[slot::LIBVERSION_NUMBER] = of_2021 as *const c_void;
        assert!(refusal(&table).contains("slot 58"), "{}", refusal(&table));
    }
}
