//! The `sqlite3_vfs` structure of remote databases: main databases are remote, all other files are those of the VFS underneath.

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use libsqlite3_sys as ffi;

use super::file::{Opened, RemoteFile};
use super::{RemoteHost, RemoteRequest};
use crate::api::SqliteApi;
use crate::base::BaseVfs;
use crate::fork::{self, Process};
use crate::guard::guard;
use crate::host::OpenError;
use crate::over::{Over, app, structure};
use crate::shim::{RegisterError, opening, refuse};

/// How a VFS for remote databases is registered.
pub struct RemoteRegistration {
    /// The VFS's name, without NUL.
    pub name: String,
    /// Who has the pages.
    pub host: Arc<dyn RemoteHost>,
}

/// A registered VFS. Never freed: SQLite has no way to tell when the last user of a VFS is gone.
#[repr(C)]
struct RemoteVfs {
    base: BaseVfs,
    name: String,
    /// Of this process; replaced, and never freed, in a child of `fork()`.
    state: AtomicPtr<State>,
}

// SAFETY: `repr(C)`, and the base is first.
unsafe impl Over for RemoteVfs {}

struct State {
    process: Process,
    host: Arc<dyn RemoteHost>,
}

impl State {
    fn leak(host: Arc<dyn RemoteHost>) -> *mut State {
        Box::leak(Box::new(State {
            process: Process::current(),
            host,
        }))
    }
}

impl RemoteVfs {
    /// What belongs to this process.
    fn state(&self) -> &'static State {
        let known = self.state.load(Ordering::Acquire);
        // SAFETY: states are leaked.
        let state: &'static State = unsafe { &*known };
        if state.process.is_current() {
            return state;
        }
        let new = State::leak(state.host.after_fork());
        let exchanged = self
            .state
            .compare_exchange(known, new, Ordering::AcqRel, Ordering::Acquire);
        let now = match exchanged {
            Ok(_) => new,
            Err(other) => other,
        };
        // SAFETY: as above.
        unsafe { &*now }
    }

    /// # Safety
    ///
    /// `name` is what SQLite passed to `xOpen` for a main database.
    unsafe fn open(&self, name: *const c_char) -> Result<Opened, OpenError> {
        opening();
        // SAFETY: as promised by the caller.
        let (path, parameters) = unsafe { (CStr::from_ptr(name), self.base.api.uri_parameters(name)) };
        let path = path.to_string_lossy();
        let request = RemoteRequest {
            name: &path,
            uri_parameters: &parameters,
        };
        let remote = self.state().host.open(&request)?;
        Ok(Opened {
            remote,
            vfs: self.name.clone(),
            name: path.into_owned(),
        })
    }
}

/// A VFS that was registered just now.
#[derive(Debug)]
#[must_use]
pub struct Registered {
    api: SqliteApi,
    vfs: *mut ffi::sqlite3_vfs,
}

impl Registered {
    /// Takes it back: nobody finds it any more, and its name is free. Connections that have found it already go on.
    pub fn take_back(self) {
        // SAFETY: `register` made and leaked it, and SQLite has taken it.
        unsafe { self.api.vfs_unregister(self.vfs) };
    }

    /// It stays for the life of the process.
    pub fn stay(self) {}
}

/// Registers the VFS; files that are no main databases go to the one that is the default now.
///
/// # Errors
///
/// When a VFS of that name exists, or SQLite refuses.
pub fn register(api: SqliteApi, registration: RemoteRegistration) -> Result<Registered, RegisterError> {
    let name = CString::new(registration.name.as_str())
        .map_err(|_| RegisterError("a VFS name cannot have a NUL in it".into()))?;
    if !api.vfs_find(Some(&name)).is_null() {
        return Err(RegisterError(format!(
            "a VFS named {} is registered already",
            registration.name
        )));
    }
    let base = api.vfs_find(None);
    if base.is_null() {
        return Err(RegisterError("SQLite has no default VFS for temporary files".into()));
    }
    fork::watch();
    api.use_for_reports();
    let app = Box::leak(Box::new(RemoteVfs {
        base: BaseVfs { raw: base, api },
        name: registration.name,
        state: AtomicPtr::new(State::leak(registration.host)),
    }));
    // SAFETY: base is a registered VFS.
    let like = unsafe { *base };
    let file_size = usize::try_from(like.szOsFile).unwrap_or(0).max(size_of::<RemoteFile>());
    let vfs = Box::leak(Box::new(ffi::sqlite3_vfs {
        xFullPathname: Some(full_pathname),
        xAccess: Some(access),
        ..structure(&like, name.into_raw(), app, file_size, open)
    }));
    // SAFETY: the structure, its name and its data are leaked, so they live as long as the process.
    match unsafe { api.vfs_register(vfs, false) } {
        ffi::SQLITE_OK => Ok(Registered { api, vfs }),
        code => Err(RegisterError(format!("sqlite3_vfs_register failed with code {code}"))),
    }
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: one of our structures.
    let app = unsafe { app::<RemoteVfs>(vfs) };
    // SAFETY: SQLite's block for the file; without methods it will not be closed if we fail.
    unsafe { (*file).pMethods = std::ptr::null() };
    if name.is_null() || flags & ffi::SQLITE_OPEN_MAIN_DB == 0 {
        // SAFETY: SQLite's arguments are passed on as they came.
        return unsafe {
            match (*app.base.raw).xOpen {
                Some(open) => open(app.base.raw, name, file, flags, out_flags),
                None => ffi::SQLITE_CANTOPEN,
            }
        };
    }
    // SAFETY: for a main database SQLite passes a sqlite3_filename.
    let opened = guard("remote xOpen", || unsafe { app.open(name) });
    match opened {
        Some(Ok(opened)) => {
            // SAFETY: the block is our szOsFile long; the place for the flags is null or SQLite's.
            unsafe {
                RemoteFile::write(file, opened, app.base.api);
                if !out_flags.is_null() {
                    let writable = ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_CREATE;
                    *out_flags = flags & !writable | ffi::SQLITE_OPEN_READONLY;
                }
            }
            ffi::SQLITE_OK
        }
        Some(Err(error)) => {
            refuse(name, &error.0);
            ffi::SQLITE_CANTOPEN
        }
        None => {
            refuse(name, "a panic in replvfs; this is a bug");
            ffi::SQLITE_CANTOPEN
        }
    }
}

/// A name is made absolute and else stays as it is: it is not one of this machine's files, so no links are followed. SQLite derives the name of a
/// super-journal from it, when a transaction writes several attached files, and their journals have to name that one from any folder.
unsafe extern "C" fn full_pathname(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    room: c_int,
    out: *mut c_char,
) -> c_int {
    let made = guard("remote xFullPathname", || {
        // SAFETY: SQLite gives a string.
        let name = unsafe { CStr::from_ptr(name) }.to_bytes_with_nul();
        let mut full = Vec::new();
        if !name.starts_with(b"/") {
            full.extend_from_slice(std::env::current_dir().ok()?.as_os_str().as_bytes());
            full.push(b'/');
        }
        full.extend_from_slice(name);
        (full.len() <= usize::try_from(room).unwrap_or(0)).then_some(full)
    });
    let Some(Some(full)) = made else {
        return ffi::SQLITE_CANTOPEN;
    };
    // SAFETY: SQLite gives a place of `room` bytes, which was compared.
    unsafe { std::ptr::copy_nonoverlapping(full.as_ptr().cast(), out, full.len()) };
    ffi::SQLITE_OK
}

/// A remote database has neither a journal nor a WAL, whatever lies under such a name on this machine.
unsafe extern "C" fn access(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    flags: c_int,
    result: *mut c_int,
) -> c_int {
    // SAFETY: one of our structures, and SQLite's arguments.
    unsafe {
        let is_beside = !name.is_null() && {
            let name = CStr::from_ptr(name).to_bytes();
            name.ends_with(b"-journal") || name.ends_with(b"-wal")
        };
        if is_beside {
            *result = 0;
            return ffi::SQLITE_OK;
        }
        let base = app::<RemoteVfs>(vfs).base.raw;
        match (*base).xAccess {
            Some(access) => access(base, name, flags, result),
            None => ffi::SQLITE_IOERR_ACCESS,
        }
    }
}
