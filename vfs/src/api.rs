//! The SQLite functions that we call, in one table: filled by the linker, or by the host that loads the extension.

use libsqlite3_sys as ffi;

/// Where SQLite's functions come from. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct SqliteApi {}

/// The host's SQLite cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct ApiError(pub String);

impl SqliteApi {
    /// The SQLite that this program is linked with.
    #[cfg(feature = "linked")]
    #[must_use]
    pub fn linked() -> SqliteApi {
        SqliteApi {}
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
    pub unsafe fn from_extension(_routines: *const ffi::sqlite3_api_routines) -> Result<SqliteApi, ApiError> {
        Err(ApiError(String::new()))
    }
}
