//! The methods of a wrapped database file.

use std::ffi::{c_int, c_void};

use libsqlite3_sys as ffi;

use super::file::{Methods, ShimFile, forward, forwarded};
use super::pragma;
use super::wal_file::{asked, is_refusing, observe, refuses};
use crate::base::{CHECKPOINT_SLOT, FIRST_READ_SLOT, FileRef, IndexRegion, WRITE_SLOT};
use crate::capture::{Connection, is_ok};
use crate::guard::guard;

/// Written once, by us; SQLite only reads it.
pub(super) static METHODS: Methods = Methods::new(ffi::sqlite3_io_methods {
    iVersion: 3,
    xClose: Some(close),
    xRead: Some(forwarded::read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(forwarded::sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(forwarded::check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(forwarded::sector_size),
    xDeviceCharacteristics: Some(forwarded::device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: Some(forwarded::fetch),
    xUnfetch: Some(forwarded::unfetch),
});

/// `WAL_READ_LOCK(1)` to `WAL_READ_LOCK(4)` at once: SQLite takes them only to restart or reset the WAL.
const RESTART_SLOTS: (c_int, c_int) = (FIRST_READ_SLOT + 1, 4);

/// The connection of an open file of ours.
///
/// # Safety
///
/// `file` is one, and the reference is not kept beyond the callback.
unsafe fn connection<'a>(file: *mut ffi::sqlite3_file) -> Option<&'a Connection> {
    // SAFETY: as promised by the caller.
    unsafe { ShimFile::of(file).connection().map(AsRef::as_ref) }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite closes a file once, and it is one of ours.
    if let Some(connection) = unsafe { connection(file) } {
        // SAFETY: as above.
        unsafe { let_go("xClose", file, connection, ffi::SQLITE_LOCK_NONE) };
        observe("xClose", connection, || {
            connection.database.leave_without_wal(connection)
        });
    }
    // SAFETY: as above.
    let code = unsafe { forward!(file, xClose, ffi::SQLITE_OK) };
    // SAFETY: as above; nothing uses the file after this.
    if let Some(connection) = unsafe { ShimFile::take_connection(file) } {
        let _ = guard("xClose end", || {
            let database = std::sync::Arc::clone(&connection.database);
            drop(connection);
            database.connection_closed();
        });
    }
    code
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, data: *const c_void, amount: c_int, offset: i64) -> c_int {
    // SAFETY: an open file of ours.
    if let Some(connection) = unsafe { connection(file) } {
        // SAFETY: as above.
        let real = unsafe { ShimFile::of(file).real() };
        // A write that is let through and not noted would be half a transaction.
        let refusing = is_refusing(connection);
        // SAFETY: the connection's own file, on its thread; SQLite gives amount readable bytes.
        let is_refused = || unsafe {
            let data = std::slice::from_raw_parts(data.cast::<u8>(), usize::try_from(amount).unwrap_or(0));
            connection.refuses_change(real, offset, data)
        };
        if refusing && asked("xWrite", connection, is_refused) {
            return ffi::SQLITE_READONLY;
        }
        if guard("xWrite", || connection.lacks_journal()) != Some(false) {
            return ffi::SQLITE_IOERR_WRITE;
        }
        observe("xWrite", connection, || {
            before_change(connection, real, refusing, offset, Some(offset + i64::from(amount)))
        });
    }
    // SAFETY: SQLite's arguments are passed on as they came.
    unsafe { forward!(file, xWrite, ffi::SQLITE_IOERR_WRITE, data, amount, offset) }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    // SAFETY: an open file of ours.
    if let Some(connection) = unsafe { connection(file) } {
        // SAFETY: as above.
        let real = unsafe { ShimFile::of(file).real() };
        let refusing = is_refusing(connection);
        if refusing && asked("xTruncate", connection, || connection.keeps_length()) {
            // An error would be the rollback's, which has to succeed.
            return ffi::SQLITE_OK;
        }
        observe("xTruncate", connection, || {
            before_change(connection, real, refusing, size, None)
        });
    }
    // SAFETY: SQLite's arguments are passed on as they came.
    unsafe { forward!(file, xTruncate, ffi::SQLITE_IOERR_TRUNCATE, size) }
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    // SAFETY: an open file of ours.
    if let Some(connection) = unsafe { connection(file) } {
        observe("xFileSize", connection, || {
            connection.asks_for_size();
            if connection.is_strict() {
                connection.lock().rollback.asks_for_size();
            }
        });
    }
    // SAFETY: SQLite's arguments are passed on as they came.
    unsafe { forward!(file, xFileSize, ffi::SQLITE_IOERR_FSTAT, size) }
}

/// The bytes `from..to` are about to be overwritten; `None`: to be cut off. `refusing`: what is no part of a transaction that began before is not.
fn before_change(connection: &Connection, real: FileRef, refusing: bool, from: i64, to: Option<i64>) {
    let database = &connection.database;
    let (Ok(from), Ok(to)) = (u64::try_from(from), to.map(u64::try_from).transpose()) else {
        return; // The base VFS refuses it.
    };
    connection.before_strict_write();
    // SAFETY: the connection's own file, on its thread (the callers).
    unsafe { database.before_change(real, from, to.unwrap_or(i64::MAX as u64)) };
    let mut state = connection.lock();
    if state.wal.is_none() {
        if !refusing {
            state.writes.wrote_file();
        }
        // SAFETY: as above.
        unsafe { database.rollback_write(&mut state, real, from, to) };
    }
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: an open file of ours.
    let connection = unsafe { connection(file) };
    if let Some(connection) = connection
        && level == ffi::SQLITE_LOCK_RESERVED
        && (refuses("xLock", connection, || connection.refuses())
            || asked("xLock", connection, || connection.refuses_journal()))
    {
        return ffi::SQLITE_READONLY;
    }
    if let Some(connection) = connection
        && level == ffi::SQLITE_LOCK_EXCLUSIVE
    {
        observe("xLock", connection, || {
            connection.database.make_way(&mut connection.lock())
        });
    }
    // SAFETY: SQLite's arguments are passed on as they came.
    let code = unsafe { forward!(file, xLock, ffi::SQLITE_OK, level) };
    if let Some(connection) = connection {
        observe("xLock", connection, || {
            let (mut state, database) = (connection.lock(), &connection.database);
            if !is_ok(code) {
                if level == ffi::SQLITE_LOCK_EXCLUSIVE && !state.is_exclusive() {
                    database.file_not_wanted(&mut state);
                }
            } else if level > state.file_lock {
                database.count_holder(state.file_lock, level);
                if level == ffi::SQLITE_LOCK_EXCLUSIVE && state.wal.is_none() {
                    let plays_back = database.plays_back(state.file_lock);
                    state.writes.takes_file(plays_back);
                }
                state.file_lock = level;
                connection.locks_changed(&state);
                if level == ffi::SQLITE_LOCK_SHARED && state.wal.is_none() && database.wants_attention() {
                    database.settle(&mut state);
                }
            }
        });
    }
    if let Some(connection) = connection
        && level == ffi::SQLITE_LOCK_EXCLUSIVE
    {
        observe("xLock", connection, || {
            connection.database.way_was_made(&connection.lock())
        });
    }
    code
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: an open file of ours.
    let connection = unsafe { connection(file) };
    if let Some(connection) = connection {
        // SAFETY: as above.
        unsafe { let_go("xUnlock", file, connection, level) };
    }
    // SAFETY: SQLite's arguments are passed on as they came.
    let code = unsafe { forward!(file, xUnlock, ffi::SQLITE_OK, level) };
    if let Some(connection) = connection
        && is_ok(code)
        && level == ffi::SQLITE_LOCK_SHARED
        && connection.database.wants_attention()
    {
        // A hot journal was played back: now the file is whole.
        observe("xUnlock", connection, || {
            let mut state = connection.lock();
            if state.wal.is_none() {
                connection.database.settle(&mut state);
            }
        });
    }
    code
}

/// Before the connection's lock goes down to `level`.
///
/// # Safety
///
/// `file` is an open file of ours.
unsafe fn let_go(callback: &'static str, file: *mut ffi::sqlite3_file, connection: &Connection, level: c_int) {
    observe(callback, connection, || {
        lock_goes_down(connection, level, || {
            // SAFETY: a step on the way that SQLite takes as well; where the lock is no higher, nothing happens.
            unsafe { forward!(file, xUnlock, ffi::SQLITE_OK, ffi::SQLITE_LOCK_SHARED) };
        })
    });
}

/// The connection still holds its lock, and is about to let go of some of it.
fn lock_goes_down(connection: &Connection, level: c_int, step_down: impl FnOnce()) {
    let mut state = connection.lock();
    if level >= state.file_lock {
        return;
    }
    if state.is_exclusive() {
        connection
            .database
            .leave_exclusive(&mut state, level == ffi::SQLITE_LOCK_NONE);
        connection.database.file_not_wanted(&mut state);
        // With a read lock the WAL need not be copied.
        state.too_large = false;
    }
    if level == ffi::SQLITE_LOCK_NONE {
        connection.database.leave_file(&mut state, step_down);
    }
    state.file_lock = level;
    state.writes.ended();
    connection.locks_changed(&state);
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, op: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: an open file of ours.
    let connection = unsafe { connection(file) };
    if let Some(connection) = connection
        && op == ffi::SQLITE_FCNTL_PRAGMA
    {
        // SAFETY: for this control SQLite passes the array that the function expects.
        let answered = guard("xFileControl", || unsafe {
            pragma::answer(connection, argument.cast())
        });
        match answered {
            Some(Some(code)) => return code,
            Some(None) => {}
            None => return ffi::SQLITE_ERROR,
        }
    }
    // The name of a super-journal: once that is gone SQLite takes no error any more.
    if let Some(connection) = connection
        && op == ffi::SQLITE_FCNTL_SYNC
        && !argument.is_null()
        && guard("xFileControl", || connection.refuses_super_journal()) != Some(false)
    {
        return ffi::SQLITE_ERROR;
    }
    if let Some(connection) = connection
        && op == ffi::SQLITE_FCNTL_SYNC
        && guard("xFileControl", || connection.may_commit()) != Some(true)
    {
        return ffi::SQLITE_IOERR;
    }
    // SAFETY: for this control the argument is an int.
    let asked = op == ffi::SQLITE_FCNTL_PERSIST_WAL && !argument.is_null() && unsafe { *argument.cast::<c_int>() } < 0;
    // SAFETY: SQLite's arguments are passed on as they came.
    let code = unsafe { forward!(file, xFileControl, ffi::SQLITE_NOTFOUND, op, argument) };
    let Some(connection) = connection else { return code };
    match op {
        ffi::SQLITE_FCNTL_COMMIT_PHASETWO => {
            observe("xFileControl", connection, || {
                connection.journal_ended();
                let mut state = connection.lock();
                match (state.wal, state.region) {
                    (Some(_), None) => connection.database.heap_commit(&mut state),
                    (Some(_), Some(_)) => {}
                    (None, _) => connection.database.rollback_commit(&mut state),
                }
                state.writes.ended();
            });
            // It is committed here. In WAL mode the next one writes meanwhile.
            if !matches!(guard("xFileControl", || connection.is_confirmed()), Some(true)) {
                return ffi::SQLITE_IOERR;
            }
        }
        ffi::SQLITE_FCNTL_SYNC => observe("xFileControl", connection, || connection.synced()),
        ffi::SQLITE_FCNTL_VFSNAME if !argument.is_null() => {
            // SAFETY: for this control the argument is a char**.
            observe("xFileControl", connection, || unsafe {
                pragma::prefix_vfs_name(connection, argument.cast(), code)
            });
            return ffi::SQLITE_OK;
        }
        ffi::SQLITE_FCNTL_PERSIST_WAL if !argument.is_null() => {
            // SAFETY: for this control the argument is an int: -1 asks, and after the base VFS it is the answer.
            let answer = unsafe { &mut *argument.cast::<c_int>() };
            observe("xFileControl", connection, || {
                if asked && connection.database.keeps_wal(&mut connection.lock()) {
                    *answer = 1;
                }
            });
        }
        _ => {}
    }
    code
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    size: c_int,
    extend: c_int,
    memory: *mut *mut c_void,
) -> c_int {
    // SAFETY: SQLite's arguments are passed on as they came.
    let code = unsafe { forward!(file, xShmMap, ffi::SQLITE_IOERR_SHMMAP, region, size, extend, memory) };
    // The wal-index cannot grow: what is being committed is rolled back.
    let is_mapped = is_ok(code) || code & 0xff == ffi::SQLITE_READONLY;
    // SAFETY: an open file of ours.
    if let (Some(connection), false) = (unsafe { connection(file) }, is_mapped) {
        observe("xShmMap", connection, || {
            let mut state = connection.lock();
            connection.database.take_back(&mut state);
        });
    }
    // Whatever the code: SQLite keeps a pointer that comes with an error, and does not ask for it again.
    // SAFETY: an open file of ours; memory is where the base VFS wrote the pointer, null before.
    if let (Some(connection), true) = (unsafe { connection(file) }, region == 0) {
        observe("xShmMap", connection, || {
            // SAFETY: as above; the region is forgotten at xShmUnmap.
            connection.lock().region = unsafe { IndexRegion::new(*memory) };
        });
    }
    code
}

unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, offset: c_int, n: c_int, flags: c_int) -> c_int {
    // SAFETY: an open file of ours.
    let connection = unsafe { connection(file) };
    let locks = flags & ffi::SQLITE_SHM_LOCK != 0;
    let exclusive = flags & ffi::SQLITE_SHM_EXCLUSIVE != 0;
    let write_lock = exclusive && offset == WRITE_SLOT;
    let restart = exclusive && (offset, n) == RESTART_SLOTS;
    if let Some(connection) = connection {
        if write_lock && locks && refuses("xShmLock", connection, || connection.refuses_wal_lock()) {
            return ffi::SQLITE_READONLY;
        }
        if !exclusive && !locks && offset >= FIRST_READ_SLOT {
            connection.reads(false);
        }
        if restart && locks {
            let allowed = guard("xShmLock", || connection.database.before_restart(connection));
            if allowed == Some(false) {
                return ffi::SQLITE_BUSY;
            }
        }
        if exclusive && offset == CHECKPOINT_SLOT && !locks {
            observe("xShmLock", connection, || connection.lock().checkpoints(false));
        }
        if write_lock && !locks {
            observe("xShmLock", connection, || {
                let mut state = connection.lock();
                state.writing = false;
                state.writes.ended();
                connection.locks_changed(&state);
                state.mirror.clear();
                connection.database.take_back(&mut state);
            });
        }
    }
    // SAFETY: SQLite's arguments are passed on as they came.
    let code = unsafe { forward!(file, xShmLock, ffi::SQLITE_IOERR_SHMLOCK, offset, n, flags) };
    if let Some(connection) = connection
        && restart
        && !(locks && is_ok(code))
    {
        observe("xShmLock", connection, || connection.database.after_restart(connection));
    }
    if let Some(connection) = connection
        && locks
        && is_ok(code)
    {
        if exclusive && offset == CHECKPOINT_SLOT {
            observe("xShmLock", connection, || connection.lock().checkpoints(true));
        } else if write_lock {
            observe("xShmLock", connection, || {
                let mut state = connection.lock();
                state.writing = true;
                connection.locks_changed(&state);
                connection.database.write_lock_taken(&mut state);
            });
        } else if !exclusive && offset >= FIRST_READ_SLOT {
            connection.reads(true);
            if connection.database.wants_attention() {
                observe("xShmLock", connection, || {
                    connection.database.attach(&mut connection.lock())
                });
            }
        }
    }
    code
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    // SAFETY: SQLite's arguments are passed on as they came.
    unsafe { forward!(file, xShmBarrier, ()) };
    // SAFETY: an open file of ours.
    if let Some(connection) = unsafe { connection(file) } {
        if !connection.publishes() {
            return;
        }
        observe("xShmBarrier", connection, || {
            connection.database.barrier(&mut connection.lock())
        });
    }
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: an open file of ours.
    if let Some(connection) = unsafe { connection(file) } {
        observe("xShmUnmap", connection, || connection.lock().region = None);
    }
    // SAFETY: SQLite's arguments are passed on as they came.
    unsafe { forward!(file, xShmUnmap, ffi::SQLITE_OK, delete) }
}
