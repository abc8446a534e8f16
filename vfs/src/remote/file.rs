//! The methods of a remote database's file.

use std::ffi::{CStr, c_char, c_int, c_void};

use libsqlite3_sys as ffi;

use super::page_one::{PageOne, VERSION};
use super::{Remote, RemoteError, View};
use crate::api::SqliteApi;
use crate::fork::Process;
use crate::guard::guard;
use crate::shim::not_opened;
use crate::types::Pgno;

/// Version 1: there is neither shared memory nor a mapping.
pub(super) static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// What SQLite's `sqlite3_file` pointer points to.
#[repr(C)]
pub(super) struct RemoteFile {
    /// First, as `sqlite3_file` has it.
    methods: *const ffi::sqlite3_io_methods,
    /// `None` when it is closed.
    open: Option<Box<Open>>,
}

struct Open {
    remote: Box<dyn Remote>,
    api: SqliteApi,
    /// The name of the VFS.
    vfs: String,
    /// For messages.
    name: String,
    page_one: PageOne,
    is_reading: bool,
    /// One page.
    scratch: Vec<u8>,
    /// A child of `fork()` has a copy that is not its own.
    process: Process,
}

/// What a file is made of.
pub(super) struct Opened {
    pub(super) remote: Box<dyn Remote>,
    /// The name of the VFS.
    pub(super) vfs: String,
    /// The name of the database.
    pub(super) name: String,
}

impl RemoteFile {
    /// Makes the block an open file.
    ///
    /// # Safety
    ///
    /// `file` is a block that SQLite allocated with our `szOsFile`.
    pub(super) unsafe fn write(file: *mut ffi::sqlite3_file, opened: Opened, api: SqliteApi) {
        let open = Open {
            remote: opened.remote,
            api,
            vfs: opened.vfs,
            name: opened.name,
            page_one: PageOne::default(),
            is_reading: false,
            scratch: Vec::new(),
            process: Process::current(),
        };
        // SAFETY: the block is ours to initialise, and aligned to 8 by SQLite's allocator.
        unsafe {
            file.cast::<RemoteFile>().write(RemoteFile {
                methods: &raw const METHODS,
                open: Some(Box::new(open)),
            });
        }
    }
}

/// Runs a callback on an open file of this process; `missing` where it is none, or where it panics.
///
/// # Safety
///
/// `file` was made by [`RemoteFile::write`], and SQLite uses it from one thread at a time.
unsafe fn on(
    file: *mut ffi::sqlite3_file,
    callback: &'static str,
    missing: c_int,
    body: impl FnOnce(&mut Open) -> c_int,
) -> c_int {
    // SAFETY: as promised by the caller; no callback is called from within another one.
    let file = unsafe { &mut *file.cast::<RemoteFile>() };
    match file.open.as_deref_mut().filter(|open| open.process.is_current()) {
        Some(open) => guard(callback, || body(open)).unwrap_or(missing),
        None => missing,
    }
}

impl Open {
    /// A statement fails with a code that says little: the reason goes to the logs.
    fn failed(&self, code: c_int, error: &RemoteError) -> c_int {
        let message = format!("reading {}: {error}", self.name);
        crate::failure!(code = code, ; "{message}");
        // Without a lock SQLite reads the header, while it opens the database.
        if !self.is_reading {
            not_opened(&message);
        }
        code
    }

    fn read(&mut self, buffer: &mut [u8], offset: u64) -> c_int {
        let view = self.remote.view();
        let page_size = u64::from(view.page_size.get());
        let end = page_size * u64::from(view.page_count);
        let there = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let there = there.min(buffer.len());
        let (wanted, beyond) = buffer.split_at_mut(there);
        beyond.fill(0);
        let mut at = offset;
        let mut rest = wanted;
        while !rest.is_empty() {
            let number = u32::try_from(at / page_size + 1).ok().and_then(Pgno::new);
            let skip = usize::try_from(at % page_size).unwrap_or(0);
            let (now, later) = rest.split_at_mut(rest.len().min(view.page_size.as_usize() - skip));
            let done = match number {
                Some(number) => self.read_in_page(view, number, skip, now),
                None => Err(RemoteError(format!("there is no page at byte {at}"))),
            };
            if let Err(error) = done {
                return self.failed(ffi::SQLITE_IOERR_READ, &error);
            }
            at += now.len() as u64;
            rest = later;
        }
        match beyond.is_empty() {
            true => ffi::SQLITE_OK,
            false => ffi::SQLITE_IOERR_SHORT_READ,
        }
    }

    /// Bytes of one page.
    fn read_in_page(&mut self, view: View, number: Pgno, skip: usize, out: &mut [u8]) -> Result<(), RemoteError> {
        let size = view.page_size.as_usize();
        let is_whole = out.len() == size;
        if is_whole {
            self.remote.read(number, out)?;
            if number.get() == 1 {
                self.page_one.show(view, out, true);
            }
            return Ok(());
        }
        self.scratch.resize(size, 0);
        self.remote.read(number, &mut self.scratch)?;
        if number.get() == 1 {
            self.show_part(view, skip, out.len());
        }
        let part = self.scratch.get(skip..).and_then(|page| page.get(..out.len()));
        out.copy_from_slice(part.ok_or_else(|| RemoteError("a part of a page that is none".to_owned()))?);
        Ok(())
    }

    /// The scratch page is page 1, of which a part is wanted.
    fn show_part(&mut self, view: View, skip: usize, len: usize) {
        let compared = (VERSION.start, VERSION.len());
        if (skip, len) != compared {
            return self.page_one.show(view, &mut self.scratch, false);
        }
        if let Some(place) = self.scratch.get_mut(VERSION)
            && let Ok(stored) = <[u8; 16]>::try_from(&*place)
        {
            place.copy_from_slice(&self.page_one.version(view, stored));
        }
    }

    fn unlock(&mut self) {
        if std::mem::take(&mut self.is_reading) {
            self.remote.end();
        }
    }

    /// Answers `SQLITE_FCNTL_PRAGMA`.
    ///
    /// # Safety
    ///
    /// `arguments` is the array of that control: the place for a result, the name, the value or null.
    unsafe fn pragma(&mut self, arguments: *mut *mut c_char) -> c_int {
        // SAFETY: as promised by the caller; name and value are NUL-terminated strings.
        let (name, value) = unsafe {
            let value = *arguments.add(2);
            (
                CStr::from_ptr(*arguments.add(1)).to_string_lossy().to_ascii_lowercase(),
                (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned()),
            )
        };
        let Some(name) = name.strip_prefix("replvfs_") else {
            return ffi::SQLITE_NOTFOUND;
        };
        let answer = self.remote.pragma(name, value.as_deref());
        let answer = answer.unwrap_or_else(|| Err(RemoteError(format!("there is no PRAGMA replvfs_{name} here"))));
        let (code, text) = match answer {
            Ok(text) => (ffi::SQLITE_OK, text),
            Err(error) => (ffi::SQLITE_ERROR, error.0),
        };
        // SAFETY: the first place is SQLite's to take and free.
        unsafe { *arguments = self.api.mprintf(&text) };
        code
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: an open file of ours, which SQLite closes once.
    let closed = unsafe { &mut *file.cast::<RemoteFile>() };
    closed.methods = std::ptr::null();
    if let Some(mut open) = closed.open.take() {
        if open.process.is_current() {
            let _ = guard("remote xClose", || {
                open.unlock();
                drop(open);
            });
        } else {
            std::mem::forget(open);
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, buffer: *mut c_void, amount: c_int, offset: i64) -> c_int {
    let (Ok(amount), Ok(offset)) = (usize::try_from(amount), u64::try_from(offset)) else {
        return ffi::SQLITE_IOERR_READ;
    };
    // SAFETY: an open file of ours; SQLite gives amount writable bytes, which need not have a value.
    unsafe {
        buffer.cast::<u8>().write_bytes(0, amount);
        let buffer = std::slice::from_raw_parts_mut(buffer.cast::<u8>(), amount);
        on(file, "remote xRead", ffi::SQLITE_IOERR_READ, |open| {
            open.read(buffer, offset)
        })
    }
}

unsafe extern "C" fn write(_: *mut ffi::sqlite3_file, _: *const c_void, _: c_int, _: i64) -> c_int {
    ffi::SQLITE_READONLY
}

unsafe extern "C" fn truncate(_: *mut ffi::sqlite3_file, _: i64) -> c_int {
    ffi::SQLITE_READONLY
}

unsafe extern "C" fn sync(_: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    // SAFETY: an open file of ours, and SQLite's place for the answer.
    unsafe {
        on(file, "remote xFileSize", ffi::SQLITE_IOERR_FSTAT, |open| {
            let view = open.remote.view();
            // At most 65,536 times 2^32.
            *size = i64::from(view.page_size.get()) * i64::from(view.page_count);
            ffi::SQLITE_OK
        })
    }
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    if level > ffi::SQLITE_LOCK_SHARED {
        return ffi::SQLITE_READONLY;
    }
    // SAFETY: an open file of ours.
    unsafe {
        on(file, "remote xLock", ffi::SQLITE_IOERR_LOCK, |open| {
            if open.is_reading || level == ffi::SQLITE_LOCK_NONE {
                return ffi::SQLITE_OK;
            }
            match open.remote.begin() {
                Ok(_) => {
                    open.is_reading = true;
                    ffi::SQLITE_OK
                }
                Err(error) => open.failed(ffi::SQLITE_IOERR_LOCK, &error),
            }
        })
    }
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: an open file of ours.
    unsafe {
        on(file, "remote xUnlock", ffi::SQLITE_OK, |open| {
            if level == ffi::SQLITE_LOCK_NONE {
                open.unlock();
            }
            ffi::SQLITE_OK
        })
    }
}

unsafe extern "C" fn check_reserved_lock(_: *mut ffi::sqlite3_file, result: *mut c_int) -> c_int {
    // SAFETY: SQLite's place for the answer: nobody writes.
    unsafe { *result = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, op: c_int, argument: *mut c_void) -> c_int {
    match op {
        // SAFETY: an open file of ours; for this control SQLite passes the array that `pragma` wants.
        ffi::SQLITE_FCNTL_PRAGMA => unsafe {
            // Never "not found" for what was not understood: SQLite would go on without a word.
            on(file, "remote xFileControl", ffi::SQLITE_ERROR, |open| {
                open.pragma(argument.cast())
            })
        },
        // SAFETY: an open file of ours; for this control SQLite passes a place for a string that it frees.
        ffi::SQLITE_FCNTL_VFSNAME => unsafe {
            on(file, "remote xFileControl", ffi::SQLITE_NOTFOUND, |open| {
                *argument.cast::<*mut c_char>() = open.api.mprintf(&open.vfs);
                ffi::SQLITE_OK
            })
        },
        _ => ffi::SQLITE_NOTFOUND,
    }
}

unsafe extern "C" fn sector_size(_: *mut ffi::sqlite3_file) -> c_int {
    0
}

unsafe extern "C" fn device_characteristics(_: *mut ffi::sqlite3_file) -> c_int {
    0
}
