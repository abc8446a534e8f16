//! The methods of a wrapped `-wal` file.

use std::ffi::{c_int, c_void};

use libsqlite3_sys as ffi;

use super::file::{Methods, ShimFile, forward, forwarded};
use crate::capture::{Connection, is_ok};
use crate::guard::guard;
use crate::wal::HEADER_BYTES;

/// Written once, by us; SQLite only reads it.
pub(super) static METHODS: Methods = Methods::new(ffi::sqlite3_io_methods {
    iVersion: 3,
    xClose: Some(close),
    xRead: Some(forwarded::read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(forwarded::file_size),
    xLock: Some(forwarded::lock),
    xUnlock: Some(forwarded::unlock),
    xCheckReservedLock: Some(forwarded::check_reserved_lock),
    xFileControl: Some(forwarded::file_control),
    xSectorSize: Some(forwarded::sector_size),
    xDeviceCharacteristics: Some(forwarded::device_characteristics),
    xShmMap: Some(forwarded::shm_map),
    xShmLock: Some(forwarded::shm_lock),
    xShmBarrier: Some(forwarded::shm_barrier),
    xShmUnmap: Some(forwarded::shm_unmap),
    xFetch: Some(forwarded::fetch),
    xUnfetch: Some(forwarded::unfetch),
});

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes a file once, and it is one of ours.
    let connection = unsafe { ShimFile::of(file).connection().cloned() };
    if let Some(connection) = &connection {
        observe("wal xClose", connection, || connection.wal_closed());
    }
    // SAFETY: as above.
    let code = unsafe { forward!(file, xClose, ffi::SQLITE_OK) };
    // SAFETY: as above; nothing uses the file after this.
    drop(unsafe { ShimFile::take_connection(file) });
    code
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, data: *const c_void, amount: c_int, offset: i64) -> c_int {
    // SAFETY: an open file of ours.
    let connection = unsafe { ShimFile::of(file).connection() };
    if let Some(connection) = connection {
        if refuses("wal xWrite", connection, || connection.refuses_wal_write(offset)) {
            return ffi::SQLITE_READONLY;
        }
        // SAFETY: SQLite gives amount readable bytes.
        let head = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), usize::try_from(amount).unwrap_or(0)) };
        if offset == 0 || connection.database.wants_attention() {
            observe("wal xWrite", connection, || before_write(connection, offset, head));
        }
        if connection.is_strict() {
            let mut forward = |bytes: &[u8], at: u64| -> c_int {
                let (Ok(amount), Ok(at)) = (c_int::try_from(bytes.len()), i64::try_from(at)) else {
                    return ffi::SQLITE_IOERR_WRITE;
                };
                // SAFETY: the same file, on its thread; bytes has amount of them.
                unsafe { forward!(file, xWrite, ffi::SQLITE_IOERR_WRITE, bytes.as_ptr().cast(), amount, at) }
            };
            match guard("wal xWrite", || connection.holds_back(offset, head, &mut forward)) {
                Some(None) => {}
                Some(Some(code)) => return code,
                // Whatever was to be confirmed is not.
                None => {
                    let _ = guard("fail", || {
                        connection
                            .database
                            .fail("a panic in wal xWrite; this is a bug in replvfs")
                    });
                    return ffi::SQLITE_IOERR_WRITE;
                }
            }
        }
    }
    // SAFETY: SQLite's arguments are passed on as they came.
    let code = unsafe { forward!(file, xWrite, ffi::SQLITE_IOERR_WRITE, data, amount, offset) };
    if let (Some(connection), Ok(length), Ok(offset)) = (connection, usize::try_from(amount), u64::try_from(offset)) {
        // SAFETY: SQLite gives amount readable bytes.
        let data = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length) };
        observe("wal xWrite", connection, || {
            let mut state = connection.lock();
            if is_ok(code) {
                connection.database.wrote_wal(&mut state, offset);
                state.writes.wrote_wal(offset);
                state.mirror.write(offset, data);
            } else {
                // SQLite rolls the transaction back. Its frames may stand in the file, the commit frame among them.
                state.mirror.clear();
                connection.database.take_back(&mut state);
            }
        });
    }
    code
}

fn before_write(connection: &Connection, offset: i64, data: &[u8]) {
    let mut state = connection.lock();
    if offset == 0 && state.is_exclusive() {
        connection.database.before_wal_is_lost();
    }
    if state.is_exclusive() && connection.database.wants_attention() {
        connection.database.attach(&mut state);
    }
    if offset == 0 {
        state.too_large = false;
        connection.database.wal_begins(data);
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: SQLite's arguments are passed on as they came.
    let code = unsafe { forward!(file, xSync, ffi::SQLITE_IOERR_FSYNC, flags) };
    if is_ok(code) {
        return code;
    }
    // SAFETY: an open file of ours.
    if let Some(connection) = unsafe { ShimFile::of(file).connection() } {
        // SQLite rolls back a transaction whose frames are all in the file, valid to whoever looks at them alone.
        observe("wal xSync", connection, || {
            let mut state = connection.lock();
            state.mirror.clear();
            connection.database.take_back(&mut state);
        });
    }
    code
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: an open file of ours.
    if let Some(connection) = unsafe { ShimFile::of(file).connection() }
        && size < HEADER_BYTES as i64
    {
        let keeps = guard("wal xTruncate", || {
            let state = connection.lock();
            if state.is_exclusive() && !state.keeps_wal {
                connection.database.before_wal_is_lost();
            }
            state.keeps_wal
        });
        if keeps == Some(true) {
            // journal_size_limit would empty the WAL that has just been kept.
            return ffi::SQLITE_OK;
        }
        // SAFETY: SQLite's arguments are passed on as they came.
        let code = unsafe { forward!(file, xTruncate, ffi::SQLITE_IOERR_TRUNCATE, size) };
        if is_ok(code) {
            observe("wal xTruncate", connection, || {
                let file = connection.lock().file;
                connection.database.wal_truncated(file);
            });
        }
        return code;
    }
    // SAFETY: SQLite's arguments are passed on as they came.
    unsafe { forward!(file, xTruncate, ffi::SQLITE_IOERR_TRUNCATE, size) }
}

/// Whether write transactions are refused, asked once for all that depends on the answer.
pub(super) fn is_refusing(connection: &Connection) -> bool {
    connection.database.replica.refuses_writes()
}

/// As [`asked`], where write transactions are refused.
pub(super) fn refuses(callback: &'static str, connection: &Connection, body: impl FnOnce() -> bool) -> bool {
    is_refusing(connection) && asked(callback, connection, body)
}

/// As [`observe`], for a question that is answered "no" when it cannot be told.
pub(super) fn asked(callback: &'static str, connection: &Connection, body: impl FnOnce() -> bool) -> bool {
    let mut answer = false;
    observe(callback, connection, || answer = body());
    answer
}

/// Runs replication's part of a callback. If it panics, SQLite goes on, and replication of this database does not.
pub(super) fn observe(callback: &'static str, connection: &Connection, body: impl FnOnce()) {
    if guard(callback, body).is_none() {
        let _ = guard("fail", || {
            connection
                .database
                .fail(&format!("a panic in {callback}; this is a bug in replvfs"))
        });
    }
}
