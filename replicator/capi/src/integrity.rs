//! SQLite's own look at a file that nobody else has.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;
use std::ptr::{null, null_mut};

use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use replvfs_vfs::ffi;

/// What stands for something else in a path of a URI.
const NOT_IN_PATHS: &AsciiSet = &CONTROLS.add(b'%').add(b'?').add(b'#').add(b' ');

/// With so many lines of a report at most.
const CHECK: &CStr = c"PRAGMA integrity_check(5)";

/// Whether the file is a sound database. Nothing is written to it, and nothing appears beside it.
///
/// # Errors
///
/// The first lines of SQLite's report.
pub(crate) fn integrity_check(path: &Path) -> Result<(), String> {
    let connection = Connection::open(path)?;
    let lines = connection.rows(CHECK)?;
    match lines.as_slice() {
        [line] if line == "ok" => Ok(()),
        [] => Err("the check has no result".to_owned()),
        lines => Err(lines.join("; ")),
    }
}

/// Not null, and closed when it is dropped.
struct Connection(*mut ffi::sqlite3);

impl Connection {
    fn open(path: &Path) -> Result<Connection, String> {
        // Immutable: no locks, no journal, and no WAL, whose mode the file may be in.
        let path = percent_encode(path.as_os_str().as_encoded_bytes(), NOT_IN_PATHS);
        let uri = CString::new(format!("file:{path}?immutable=1")).map_err(|error| error.to_string())?;
        let flags = ffi::SQLITE_OPEN_READONLY | ffi::SQLITE_OPEN_URI | ffi::SQLITE_OPEN_NOMUTEX;
        let mut raw = null_mut();
        // SAFETY: a text, and a place for the connection, which is there after a failure too.
        let code = unsafe { ffi::sqlite3_open_v2(uri.as_ptr(), &raw mut raw, flags, null()) };
        if raw.is_null() {
            return Err("there is no memory for a connection".to_owned());
        }
        Connection(raw).unless_failed(code)
    }

    /// The first column of all rows.
    fn rows(&self, sql: &CStr) -> Result<Vec<String>, String> {
        let mut raw = null_mut();
        // SAFETY: an open connection, a text, and a place for the statement, which is null after a failure.
        let code = unsafe { ffi::sqlite3_prepare_v2(self.0, sql.as_ptr(), -1, &raw mut raw, null_mut()) };
        let statement = Statement(raw);
        self.succeeded(code)?;
        let mut rows = Vec::new();
        loop {
            // SAFETY: a prepared statement of the connection, which only this thread uses.
            match unsafe { ffi::sqlite3_step(statement.0) } {
                // SAFETY: it stands on a row, and the text is copied before the next step.
                ffi::SQLITE_ROW => rows.push(unsafe { text(ffi::sqlite3_column_text(statement.0, 0).cast()) }),
                ffi::SQLITE_DONE => return Ok(rows),
                code => self.succeeded(code)?,
            }
        }
    }

    fn unless_failed(self, code: c_int) -> Result<Connection, String> {
        self.succeeded(code).map(|()| self)
    }

    fn succeeded(&self, code: c_int) -> Result<(), String> {
        if code == ffi::SQLITE_OK {
            return Ok(());
        }
        // SAFETY: a connection; the text is copied before the next call.
        let message = unsafe { text(ffi::sqlite3_errmsg(self.0)) };
        Err(format!("it cannot be read: {message}"))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; its statements are finalized.
        unsafe { ffi::sqlite3_close(self.0) };
    }
}

/// Null, or finalized when it is dropped.
struct Statement(*mut ffi::sqlite3_stmt);

impl Drop for Statement {
    fn drop(&mut self) {
        // SAFETY: finalized once; null is allowed.
        unsafe { ffi::sqlite3_finalize(self.0) };
    }
}

/// # Safety
///
/// `raw` is null or a text.
unsafe fn text(raw: *const c_char) -> String {
    if raw.is_null() {
        return String::new();
    }
    // SAFETY: not null, so it is a text.
    unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned()
}
