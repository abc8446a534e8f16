//! The `sqlite3_vfs` structure: opening files, and the methods that only forward.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicPtr, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, TryLockError, Weak};

use libsqlite3_sys as ffi;

use super::file::{REAL_OFFSET, ShimFile};
use super::{database_file, wal_file};
use crate::api::{SqliteApi, report};
use crate::base::{BaseVfs, FileRef};
use crate::buffer::Budget;
use crate::capture::{Connection, Database, Opening, ends_confirmed, has_ended, is_ok};
use crate::fork::{self, Process};
use crate::guard::guard;
use crate::held::DatabaseFile;
use crate::host::{Host, OpenError, OpenRequest, Replica};
use crate::log::Log;
use crate::over::{OpenFn, Over, app, structure};

/// Releases before this one can corrupt a database when a checkpoint meets a restart of the WAL
/// (<https://www.sqlite.org/wal.html#walresetbug>).
const WAL_RESET_FIXED: i32 = 3_051_003;

/// How a VFS is registered.
pub struct Registration {
    /// The VFS's name, without NUL.
    pub name: String,
    /// Whether databases that name no VFS use it, too, by a second name with `-default` behind it.
    pub make_default: bool,
    /// Bytes that one open transaction may take in memory before it is read back from the WAL instead; and the pages that are
    /// kept for a snapshot.
    pub transaction_memory: u64,
    /// Bytes that all committed and open transactions of the process may take in memory together; what is beyond stays in the WAL until it
    /// is uploaded.
    pub memory: u64,
    /// Bytes up to which a database is read at once, on the application's thread, when a history starts: that takes less time than
    /// anybody would wait for the locks that a slower reading holds.
    pub read_at_once: u64,
    /// Who replicates.
    pub host: Arc<dyn Host>,
}

/// The VFS could not be registered.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct RegisterError(pub String);

thread_local! {
    static OPEN_ERROR: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Why the newest open on this thread was refused by us, if it was. SQLite itself only says "unable to open database file".
#[must_use]
pub fn last_open_error() -> Option<String> {
    OPEN_ERROR.with(|error| error.borrow().clone())
}

/// Another open begins on this thread.
pub(crate) fn opening() {
    OPEN_ERROR.with(|error| *error.borrow_mut() = None);
}

/// An open fails behind `xOpen`: this is why.
pub(crate) fn not_opened(reason: &str) {
    OPEN_ERROR.with(|error| *error.borrow_mut() = Some(reason.to_owned()));
}

/// A registered VFS. Never freed: SQLite has no way to tell when the last user of a VFS is gone.
#[repr(C)]
struct Vfs {
    base: BaseVfs,
    memory: u64,
    memory_of_all: u64,
    read_at_once: u64,
    /// Of this process; replaced, and never freed, in a child of `fork()`.
    state: AtomicPtr<State>,
    /// The one that was registered before.
    before: *const Vfs,
}

/// The one that was registered last.
static NEWEST: AtomicPtr<Vfs> = AtomicPtr::new(std::ptr::null_mut());
/// While another one is added.
static ADDING: Mutex<()> = Mutex::new(());

// SAFETY: `repr(C)`, and the base is first.
unsafe impl Over for Vfs {}

struct State {
    process: Process,
    host: Arc<dyn Host>,
    budget: Arc<Budget>,
    /// By the full path, as the base VFS resolved it. Databases stay when they are closed: the next open goes on where they were.
    databases: Mutex<HashMap<CString, Arc<Database>>>,
    /// Held, one for each path, while it is opened; those that are not replicated are not kept.
    openings: Mutex<HashMap<CString, Arc<Mutex<()>>>>,
    /// By the address of the name that the main file was opened with.
    connections: Mutex<HashMap<usize, Weak<Connection>>>,
}

/// Registers the VFS, over the one that is the default now. It stays for the life of the process.
///
/// # Errors
///
/// When a VFS of that name exists, or SQLite refuses.
pub fn register(api: SqliteApi, registration: Registration) -> Result<(), RegisterError> {
    let name = CString::new(registration.name.as_str())
        .map_err(|_| RegisterError("a VFS name cannot have a NUL in it".into()))?;
    let mut default_name = name.clone().into_bytes();
    default_name.extend_from_slice(b"-default");
    // There is no NUL in it.
    let default_name = CString::new(default_name).unwrap_or_default();
    for name in [Some(&name), registration.make_default.then_some(&default_name)] {
        let Some(name) = name else { continue };
        if !api.vfs_find(Some(name)).is_null() {
            return Err(RegisterError(format!(
                "a VFS named {} is registered already",
                name.to_string_lossy()
            )));
        }
    }
    if api.is_single_threaded() {
        return Err(RegisterError(
            "this SQLite was built with SQLITE_THREADSAFE=0; replvfs uploads from threads of its own, and needs one with mutexes".into(),
        ));
    }
    let base = api.vfs_find(None);
    if base.is_null() {
        return Err(RegisterError("SQLite has no default VFS to wrap".into()));
    }
    fork::watch();
    api.use_for_reports();
    if api.version_number() < WAL_RESET_FIXED {
        report(
            ffi::SQLITE_NOTICE,
            "replvfs: this SQLite is older than 3.51.3, which fixes a rare corruption when a checkpoint meets a WAL reset; consider an update",
        );
    }
    let _alone = ADDING.lock().unwrap_or_else(PoisonError::into_inner);
    let added: *mut Vfs = Box::leak(Box::new(Vfs {
        base: BaseVfs { raw: base, api },
        memory: registration.transaction_memory,
        memory_of_all: registration.memory,
        read_at_once: registration.read_at_once,
        state: AtomicPtr::new(State::leak(registration.host, registration.memory)),
        before: NEWEST.load(Ordering::Acquire),
    }));
    let asked = structure_over(base, &name, added, open::<false>);
    // SAFETY: the structure, its name and its data are leaked, so they live as long as the process.
    match unsafe { api.vfs_register(asked, false) } {
        ffi::SQLITE_OK => {}
        code => return Err(not_taken(code)),
    }
    if registration.make_default {
        let by_default = structure_over(base, &default_name, added, open::<true>);
        // SAFETY: as above.
        let code = unsafe { api.vfs_register(by_default, true) };
        if !is_ok(code) {
            // Both or none. SAFETY: just registered, and leaked.
            unsafe { api.vfs_unregister(asked) };
            return Err(not_taken(code));
        }
    }
    NEWEST.store(added, Ordering::Release);
    Ok(())
}

fn not_taken(code: c_int) -> RegisterError {
    RegisterError(format!("sqlite3_vfs_register failed with code {code}"))
}

/// Leaked, with a copy of its name.
fn structure_over(base: *mut ffi::sqlite3_vfs, name: &CStr, app: *mut Vfs, open: OpenFn) -> *mut ffi::sqlite3_vfs {
    // SAFETY: base is a registered VFS.
    let like = unsafe { *base };
    let file_size = usize::try_from(like.szOsFile).unwrap_or(0) + REAL_OFFSET;
    let name = name.to_owned().into_raw();
    let mut structure = structure(&like, name, app, file_size, open);
    structure.xDelete = like.xDelete.is_some().then_some(delete);
    Box::leak(Box::new(structure))
}

/// All of ours, the newest first.
fn registered() -> impl Iterator<Item = &'static Vfs> {
    // SAFETY: VFSes are leaked, and nobody has one for himself once it is in the list.
    let at = |known: *mut Vfs| unsafe { known.cast_const().as_ref() };
    std::iter::successors(at(NEWEST.load(Ordering::Acquire)), move |vfs| at(vfs.before.cast_mut()))
}

/// The replication of the database at this full path, if a connection of this process has opened it through a VFS of ours.
#[must_use]
pub fn replica_of(path: &Path) -> Option<Arc<dyn Replica>> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    registered().find_map(|vfs| {
        let databases = vfs.state().databases.lock().unwrap_or_else(PoisonError::into_inner);
        databases.get(&path).map(|database| Arc::clone(&database.replica))
    })
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync_folder: c_int) -> c_int {
    // SAFETY: SQLite's names are NUL-terminated.
    let journal = (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) });
    let ends = guard("xDelete", || journal.is_some_and(ends_confirmed)).unwrap_or(false);
    // SAFETY: one of our structures; SQLite's arguments are passed on, and the base VFS is registered.
    let code = unsafe {
        let base = app::<Vfs>(vfs).base.raw;
        match (*base).xDelete {
            Some(delete) => delete(base, name, sync_folder | c_int::from(ends)),
            None => ffi::SQLITE_IOERR_DELETE,
        }
    };
    if let (true, true, Some(journal)) = (ends, is_ok(code), journal) {
        let _ = guard("xDelete", || has_ended(journal));
    }
    code
}

/// `xOpen` of the VFS that a database names, or of the default VFS.
unsafe extern "C" fn open<const BY_DEFAULT: bool>(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: one of our structures.
    let app = unsafe { app::<Vfs>(vfs) };
    // SAFETY: SQLite's block for the file; without methods it will not be closed if we fail.
    unsafe { (*file).pMethods = std::ptr::null() };
    let writable_database = ffi::SQLITE_OPEN_MAIN_DB | ffi::SQLITE_OPEN_READWRITE;
    if !name.is_null() && flags & writable_database == writable_database {
        // SAFETY: for a main database SQLite passes a sqlite3_filename.
        let decided = guard("xOpen", || unsafe { app.connection(name, BY_DEFAULT) });
        return match decided {
            Some(Ok(Some(connection))) => {
                let connection = Arc::new(connection);
                let opened = Arc::clone(&connection);
                // SAFETY: SQLite's arguments are passed on, with our part of the block before the base's.
                let code =
                    unsafe { app.open_wrapped(name, file, flags, out_flags, &database_file::METHODS, connection) };
                if is_ok(code) {
                    // SAFETY: just opened.
                    opened.lock().file = Some(unsafe { ShimFile::of(file).real() });
                    app.remember(name, &opened);
                }
                code
            }
            // SAFETY: SQLite's arguments are passed on as they came.
            Some(Ok(None)) => unsafe { app.open_in_place(name, file, flags, out_flags) },
            Some(Err(error)) => {
                refuse(name, &error.0);
                ffi::SQLITE_CANTOPEN
            }
            None => {
                refuse(name, "a panic in replvfs; this is a bug");
                ffi::SQLITE_CANTOPEN
            }
        };
    }
    if !name.is_null() && flags & ffi::SQLITE_OPEN_WAL != 0 {
        // SAFETY: for a WAL SQLite passes the name that its pager made.
        let connection = unsafe { app.connection_of_wal(name) };
        if let Some(connection) = connection {
            // SAFETY: SQLite's arguments are passed on, with our part of the block before the base's.
            let code = unsafe {
                app.open_wrapped(
                    name,
                    file,
                    flags,
                    out_flags,
                    &wal_file::METHODS,
                    Arc::clone(&connection),
                )
            };
            if is_ok(code) {
                // SAFETY: just opened.
                let real = unsafe { ShimFile::of(file).real() };
                wal_file::observe("wal xOpen", &connection, || connection.wal_opened(real));
            }
            return code;
        }
    }
    // SAFETY: SQLite's arguments are passed on as they came.
    unsafe { app.open_in_place(name, file, flags, out_flags) }
}

/// Tells why an open fails through every channel that there is.
pub(crate) fn refuse(name: *const c_char, reason: &str) {
    // SAFETY: the name that SQLite asked to open.
    let path = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let message = format!("cannot open {path}: {reason}");
    crate::failure!(code = ffi::SQLITE_CANTOPEN, ; "{message}");
    OPEN_ERROR.with(|error| *error.borrow_mut() = Some(message));
}

impl State {
    fn leak(host: Arc<dyn Host>, memory: u64) -> *mut State {
        Box::leak(Box::new(State {
            process: Process::current(),
            host,
            budget: Budget::new(memory),
            databases: Mutex::default(),
            openings: Mutex::default(),
            connections: Mutex::default(),
        }))
    }
}

impl State {
    /// Closes the handles of ours that the parent had open. SQLite knows its locks by the file's inode, in memory that a child inherits, while it has
    /// none of the locks: as long as such a handle is open, SQLite takes no real ones here. Nothing is waited for: what a thread of the
    /// parent was at stays as it is.
    fn close_inherited(&self) {
        let databases = match self.databases.try_lock() {
            Ok(databases) => databases,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        for database in databases.values() {
            database.close_inherited();
        }
    }

    /// Of a database that is not replicated: a program may open any number of those. Who waits for this opening has it still.
    fn forget_opening(&self, path: &CStr, opening: &Arc<Mutex<()>>) {
        let mut openings = self.openings.lock().unwrap_or_else(PoisonError::into_inner);
        // The map's, and the caller's.
        if Arc::strong_count(opening) <= 2 {
            openings.remove(path);
        }
    }
}

impl Vfs {
    /// What belongs to this process.
    fn state(&self) -> &'static State {
        let known = self.state.load(Ordering::Acquire);
        // SAFETY: states are leaked.
        let state: &'static State = unsafe { &*known };
        if state.process.is_current() {
            return state;
        }
        let new = State::leak(state.host.after_fork(), self.memory_of_all);
        let now = match self
            .state
            .compare_exchange(known, new, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => {
                state.close_inherited();
                new
            }
            Err(other) => other,
        };
        // SAFETY: as above.
        unsafe { &*now }
    }

    /// The connection of a main file; `None` when it is not to be replicated.
    ///
    /// # Safety
    ///
    /// `name` is what SQLite passed to `xOpen` for a main database.
    unsafe fn connection(&self, name: *const c_char, by_default: bool) -> Result<Option<Connection>, OpenError> {
        opening();
        // SAFETY: as promised by the caller.
        let (c_path, parameters) = unsafe { (CStr::from_ptr(name).to_owned(), self.base.api.uri_parameters(name)) };
        let path = PathBuf::from(OsStr::from_bytes(c_path.to_bytes()));
        let file = DatabaseFile::new(self.base, &c_path, &parameters);
        let request = OpenRequest {
            path: &path,
            uri_parameters: &parameters,
            by_default,
            file: &file,
        };
        let state = self.state();
        let databases = || state.databases.lock().unwrap_or_else(PoisonError::into_inner);
        // The host may ask the store for a database that is missing: only those wait who want the same one.
        let opening = {
            let mut openings = state.openings.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(openings.entry(c_path.clone()).or_default())
        };
        let _alone = opening.lock().unwrap_or_else(PoisonError::into_inner);
        let known = databases().get(&c_path).map(Arc::clone);
        if let Some(database) = known {
            let durability = database.replica.durability(&parameters);
            // Counted before the host is told: see `Database::connection_closed`.
            let connection = Connection::new(Arc::clone(&database), durability);
            fence(Ordering::SeqCst);
            if let Err(refused) = state.host.reopen(&request, &database.replica) {
                drop(connection);
                database.connection_closed();
                return Err(refused);
            }
            return Ok(Some(connection));
        }
        let log = Log::new();
        let Some(replica) = state.host.open(&request, &log)? else {
            state.forget_opening(&c_path, &opening);
            return Ok(None);
        };
        let durability = replica.durability(&parameters);
        let opening = Opening {
            path: path.clone(),
            c_path: c_path.clone(),
            parameters: parameters.clone(),
            vfs: self.base,
            host: Arc::clone(&state.host),
            memory: self.memory,
            budget: Arc::clone(&state.budget),
            read_at_once: self.read_at_once,
        };
        let database = Database::new(opening, log, replica);
        databases().insert(c_path, Arc::clone(&database));
        Ok(Some(Connection::new(database, durability)))
    }

    /// The connection whose pager opens this WAL, known by the block that holds all names of a pager.
    ///
    /// `sqlite3_database_file_object` would tell the file, but only for names that a pager made: another VFS above ours makes its own, and
    /// for those it reads memory that is nobody's.
    ///
    /// # Safety
    ///
    /// `name` is a `sqlite3_filename`.
    unsafe fn connection_of_wal(&self, name: *const c_char) -> Option<Arc<Connection>> {
        // SAFETY: as promised by the caller.
        let database = unsafe { self.base.api.filename_database(name) };
        let connections = self.state().connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.get(&database.addr()).and_then(Weak::upgrade)
    }

    /// Remembers a connection by the name that its pager opened it with, as long as it is open.
    fn remember(&self, name: *const c_char, connection: &Arc<Connection>) {
        let mut connections = self.state().connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|_, connection| connection.strong_count() > 0);
        connections.insert(name.addr(), Arc::downgrade(connection));
    }

    /// # Safety
    ///
    /// The arguments are those of our `xOpen`.
    unsafe fn open_wrapped(
        &self,
        name: *const c_char,
        file: *mut ffi::sqlite3_file,
        flags: c_int,
        out_flags: *mut c_int,
        methods: &'static super::file::Methods,
        connection: Arc<Connection>,
    ) -> c_int {
        // SAFETY: the block is our szOsFile long, which is the base's behind our own part.
        unsafe {
            let real = ShimFile::place_of_real(file);
            (*real).pMethods = std::ptr::null();
            let code = self.open_in_place(name, real, flags, out_flags);
            if !is_ok(code) {
                // What failed to open may still want to be closed.
                if let Some(close) = (*real).pMethods.as_ref().and_then(|methods| methods.xClose) {
                    close(real);
                }
                return code;
            }
            let version = (*real).pMethods.as_ref().map_or(1, |methods| methods.iVersion);
            ShimFile::write(file, methods.like(version), FileRef(real).0, connection);
            code
        }
    }

    /// # Safety
    ///
    /// The arguments are those of our `xOpen`, `file` at least the base's `szOsFile` long.
    unsafe fn open_in_place(
        &self,
        name: *const c_char,
        file: *mut ffi::sqlite3_file,
        flags: c_int,
        out_flags: *mut c_int,
    ) -> c_int {
        // SAFETY: as promised by the caller; the base VFS is registered.
        unsafe {
            match (*self.base.raw).xOpen {
                Some(open) => open(self.base.raw, name, file, flags, out_flags),
                None => ffi::SQLITE_CANTOPEN,
            }
        }
    }
}

/// Bytes of captured pages that are in the memory of this process.
#[must_use]
pub fn captured_memory() -> u64 {
    registered().map(|vfs| vfs.state().budget.used()).sum()
}

/// The replication of every database that this process has opened through a VFS of ours, with the database's full path; also of those that are closed.
#[must_use]
pub fn replicas() -> Vec<(PathBuf, Arc<dyn Replica>)> {
    let mut replicas = Vec::new();
    for vfs in registered() {
        let databases = vfs.state().databases.lock().unwrap_or_else(PoisonError::into_inner);
        replicas.extend(databases.iter().map(|(path, database)| {
            let path = Path::new(OsStr::from_bytes(path.to_bytes()));
            (path.to_owned(), Arc::clone(&database.replica))
        }));
    }
    replicas
}
