//! A wrapped file: our structure, with the base VFS's file behind it in the same block of memory.

use std::ffi::c_int;
use std::sync::Arc;

use libsqlite3_sys as ffi;

use crate::base::FileRef;
use crate::capture::Connection;
use crate::fork::Process;

/// What SQLite's `sqlite3_file` pointer points to.
#[repr(C)]
pub(super) struct ShimFile {
    /// First, as `sqlite3_file` has it.
    methods: *const ffi::sqlite3_io_methods,
    /// The base VFS's file.
    real: *mut ffi::sqlite3_file,
    /// Of this file, or of the database that this WAL belongs to.
    connection: Option<Arc<Connection>>,
    /// A child of `fork()` has a copy that is not its own.
    process: Process,
}

/// Offset of the base VFS's file.
pub(super) const REAL_OFFSET: usize = size_of::<ShimFile>().next_multiple_of(16);

impl ShimFile {
    /// Where the base VFS's file goes in a block that SQLite allocated with our `szOsFile`.
    ///
    /// # Safety
    ///
    /// `file` is such a block.
    pub(super) unsafe fn place_of_real(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
        // SAFETY: the block is REAL_OFFSET bytes longer than the base VFS's file.
        unsafe { file.byte_add(REAL_OFFSET) }
    }

    /// Makes the block a wrapped file.
    ///
    /// # Safety
    ///
    /// As for [`ShimFile::place_of_real`]; `real` is open there.
    pub(super) unsafe fn write(
        file: *mut ffi::sqlite3_file,
        methods: *const ffi::sqlite3_io_methods,
        real: *mut ffi::sqlite3_file,
        connection: Arc<Connection>,
    ) {
        // SAFETY: the block is ours to initialise, and aligned to 8 by SQLite's allocator.
        unsafe {
            file.cast::<ShimFile>().write(ShimFile {
                methods,
                real,
                connection: Some(connection),
                process: Process::current(),
            })
        }
    }

    /// The wrapped file behind a pointer that SQLite passes to one of our methods.
    ///
    /// # Safety
    ///
    /// `file` was made by [`ShimFile::write`] and not closed; the reference is not kept beyond the call, nor used
    /// after [`ShimFile::take_connection`].
    pub(super) unsafe fn of<'a>(file: *mut ffi::sqlite3_file) -> &'a ShimFile {
        // SAFETY: as promised by the caller. Several of these references live at once in one call, so none is exclusive.
        unsafe { &*file.cast::<ShimFile>() }
    }

    pub(super) fn real(&self) -> FileRef {
        FileRef(self.real)
    }

    /// `None` also in a child of `fork()`: what its parent replicates is none of its business.
    pub(super) fn connection(&self) -> Option<&Arc<Connection>> {
        self.connection.as_ref().filter(|_| self.process.is_current())
    }

    /// After the close: SQLite must see a file without methods, and the connection goes.
    ///
    /// # Safety
    ///
    /// As for [`ShimFile::of`], with no reference of that left.
    pub(super) unsafe fn take_connection(file: *mut ffi::sqlite3_file) -> Option<Arc<Connection>> {
        // SAFETY: as promised by the caller; SQLite uses a file from one thread at a time.
        unsafe {
            let file = &mut *file.cast::<ShimFile>();
            file.methods = std::ptr::null();
            let connection = file.connection.take();
            if !file.process.is_current() {
                std::mem::forget(connection);
                return None;
            }
            connection
        }
    }
}

/// Calls a method of the base VFS's file; the code is for a method that it does not have.
macro_rules! forward {
    ($file:expr, $method:ident, $missing:expr $(, $argument:expr)*) => {{
        let real = $crate::shim::file::ShimFile::of($file).real().0;
        match (*(*real).pMethods).$method {
            Some(method) => method(real $(, $argument)*),
            None => $missing,
        }
    }};
}
pub(super) use forward;

/// The methods that do nothing but forward, alike for databases and WALs.
pub(super) mod forwarded {
    use std::ffi::{c_int, c_void};

    use super::ffi;

    pub(in crate::shim) unsafe extern "C" fn read(
        file: *mut ffi::sqlite3_file,
        buffer: *mut c_void,
        amount: c_int,
        offset: i64,
    ) -> c_int {
        // SAFETY: SQLite's arguments are passed on as they came.
        unsafe { forward!(file, xRead, ffi::SQLITE_IOERR_READ, buffer, amount, offset) }
    }

    pub(in crate::shim) unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
        // SAFETY: as above.
        unsafe { forward!(file, xSync, ffi::SQLITE_IOERR_FSYNC, flags) }
    }

    pub(in crate::shim) unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
        // SAFETY: as above.
        unsafe { forward!(file, xFileSize, ffi::SQLITE_IOERR_FSTAT, size) }
    }

    pub(in crate::shim) unsafe extern "C" fn check_reserved_lock(
        file: *mut ffi::sqlite3_file,
        result: *mut c_int,
    ) -> c_int {
        // SAFETY: as above.
        unsafe { forward!(file, xCheckReservedLock, ffi::SQLITE_IOERR_CHECKRESERVEDLOCK, result) }
    }

    pub(in crate::shim) unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
        // SAFETY: as above.
        unsafe { forward!(file, xSectorSize, 0) }
    }

    pub(in crate::shim) unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
        // SAFETY: as above.
        unsafe { forward!(file, xDeviceCharacteristics, 0) }
    }

    pub(in crate::shim) unsafe extern "C" fn fetch(
        file: *mut ffi::sqlite3_file,
        offset: i64,
        amount: c_int,
        pages: *mut *mut c_void,
    ) -> c_int {
        // SAFETY: as above.
        unsafe { forward!(file, xFetch, ffi::SQLITE_OK, offset, amount, pages) }
    }

    pub(in crate::shim) unsafe extern "C" fn unfetch(
        file: *mut ffi::sqlite3_file,
        offset: i64,
        page: *mut c_void,
    ) -> c_int {
        // SAFETY: as above.
        unsafe { forward!(file, xUnfetch, ffi::SQLITE_OK, offset, page) }
    }

    pub(in crate::shim) unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
        // SAFETY: as above.
        unsafe { forward!(file, xLock, ffi::SQLITE_OK, level) }
    }

    pub(in crate::shim) unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
        // SAFETY: as above.
        unsafe { forward!(file, xUnlock, ffi::SQLITE_OK, level) }
    }

    pub(in crate::shim) unsafe extern "C" fn file_control(
        file: *mut ffi::sqlite3_file,
        op: c_int,
        argument: *mut c_void,
    ) -> c_int {
        // SAFETY: as above.
        unsafe { forward!(file, xFileControl, ffi::SQLITE_NOTFOUND, op, argument) }
    }

    pub(in crate::shim) unsafe extern "C" fn shm_map(
        file: *mut ffi::sqlite3_file,
        region: c_int,
        size: c_int,
        extend: c_int,
        memory: *mut *mut c_void,
    ) -> c_int {
        // SAFETY: as above.
        unsafe { forward!(file, xShmMap, ffi::SQLITE_IOERR_SHMMAP, region, size, extend, memory) }
    }

    pub(in crate::shim) unsafe extern "C" fn shm_lock(
        file: *mut ffi::sqlite3_file,
        offset: c_int,
        n: c_int,
        flags: c_int,
    ) -> c_int {
        // SAFETY: as above.
        unsafe { forward!(file, xShmLock, ffi::SQLITE_IOERR_SHMLOCK, offset, n, flags) }
    }

    pub(in crate::shim) unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
        // SAFETY: as above.
        unsafe { forward!(file, xShmBarrier, ()) }
    }

    pub(in crate::shim) unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
        // SAFETY: as above.
        unsafe { forward!(file, xShmUnmap, ffi::SQLITE_OK, delete) }
    }
}

/// One table of methods for each version that the base file may have: SQLite asks the version what it may call.
pub(super) struct Methods(pub(super) [ffi::sqlite3_io_methods; 3]);

impl Methods {
    pub(super) const fn new(latest: ffi::sqlite3_io_methods) -> Methods {
        Methods([
            ffi::sqlite3_io_methods { iVersion: 1, ..latest },
            ffi::sqlite3_io_methods { iVersion: 2, ..latest },
            ffi::sqlite3_io_methods { iVersion: 3, ..latest },
        ])
    }

    /// The table for a base file of this version.
    pub(super) fn like(&'static self, version: c_int) -> *const ffi::sqlite3_io_methods {
        let index = usize::try_from(version.clamp(1, 3) - 1).unwrap_or(0);
        &raw const self.0[index]
    }
}
