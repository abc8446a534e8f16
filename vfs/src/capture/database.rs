//! A database of this process, and its connections.

use std::ffi::CString;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use libsqlite3_sys as ffi;

use super::commit::Synced;
use super::continuity::Fingerprint;
use super::kept::Kept;
use super::mirror::Mirror;
use super::pin::Pin;
use super::refusal::WriteState;
use super::rollback::RollbackState;
use super::settle::Known;
use super::strict::StrictState;
use crate::base::{BaseVfs, FileRef, IndexRegion};
use crate::buffer::Budget;
use crate::host::{Aside, Durability, Host, Replica};
use crate::log::Log;
use crate::snapshot::Shared;
use crate::spill::Spill;
use crate::transaction::{Counted, WalRange, WalReader};
use crate::types::{PageSize, Position, Salts, Txid};

/// Why what is committed through a connection is not this database's any more.
pub(super) const MOVED: &str = "the database file was renamed or replaced while a connection has it open";

/// One database that is open in this process through the shim.
pub(crate) struct Database {
    pub(crate) path: PathBuf,
    pub(crate) c_path: CString,
    /// Those of the first connection's URI: handles of our own are opened with them.
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) vfs: BaseVfs,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) log: Arc<Log>,
    pub(crate) replica: Arc<dyn Replica>,
    /// Bytes of one transaction, or of a snapshot's copies, that may be held in memory; and those that are carried over a restart of the
    /// WAL at most.
    pub(crate) memory: u64,
    /// Bytes of all transactions in the process.
    pub(crate) budget: Arc<Budget>,
    /// Bytes up to which a base is read at once.
    pub(crate) read_at_once: u64,
    pub(super) capture: Mutex<Capture>,
    /// Open connections.
    pub(super) connections: AtomicUsize,
    /// Those with a WAL open.
    pub(super) wal_connections: AtomicUsize,
    /// Connections that are about to ask for the file for themselves.
    pub(super) making_way: AtomicUsize,
    /// While the file is locked without a connection. Those that are about to ask for it wait for that.
    pub(super) settling: Mutex<()>,
    /// What keeps the WAL.
    pub(super) pin: Mutex<Option<Pin>>,
    /// Whether its slot is held, and has been ever since the cursor was proved; and how many connections hold a file lock.
    pub(super) kept: Kept,
    /// Which time the pin has stepped aside for another process, while it has; else 0. Changed under the lock of `capture`.
    pub(super) aside: AtomicU64,
    /// The cursor must be proved again: for a while no connection of this process held a lock.
    pub(super) unverified: AtomicBool,
    /// The snapshots that are being read, if any.
    pub(super) snapshots: Mutex<Vec<Weak<Shared>>>,
    /// One of them depends on copies of what is overwritten.
    pub(super) copying: AtomicBool,
    /// Parts of the WAL that are still to be read for the log.
    ranges: Arc<AtomicUsize>,
    reader: Mutex<Weak<WalReader>>,
    /// Where pages go for which there is no room in memory, and where it ends.
    shared_file: Mutex<(Weak<File>, u64)>,
    /// Connections that ask for the EXCLUSIVE lock, or have it. Changed under the lock of `snapshots`.
    pub(super) wanting: AtomicUsize,
}

#[derive(Debug, Default)]
pub(super) struct Capture {
    /// Up to here everything is in the log; `None` until there is a base.
    pub(super) cursor: Option<Cursor>,
    /// There has been a base.
    pub(super) started: bool,
    /// The database changed unseen since the last transaction.
    pub(super) broken: bool,
    /// The file at the last close, while it is to be found again.
    pub(super) left_behind: Option<Fingerprint>,
    /// The newest one that was found again.
    pub(super) held: Option<Fingerprint>,
    /// The end of the WAL that was restarted, until the next one's header is written.
    pub(super) ended: Option<Position>,
    /// The salts that were noted as those of the WAL after it.
    pub(super) noted: Option<Salts>,
    /// The number after which a base comes that could not be proved to continue what is known.
    pub(super) unproved: Option<Txid>,
    /// The newest transaction was another process's: ours may be doing nothing, and restart no WAL.
    pub(super) foreign: bool,
    /// How often the pin has stepped aside for another process; while it has, where the cursor was then, and whether nobody can have restarted the WAL before.
    pub(super) aside_times: u64,
    pub(super) aside_at: Option<(Position, bool)>,
    /// What was carried over restarts of the WAL, and may be needed after this process.
    pub(super) spill: Option<Spill>,
    /// The file as it was left without a WAL.
    pub(super) known: Option<Known>,
    /// Why the last attempt to take a base failed.
    pub(super) trouble: Option<String>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor {
    pub(super) position: Position,
    /// Known once the WAL has a header.
    pub(super) page_size: Option<PageSize>,
    pub(super) big_endian: bool,
}

/// What the shim knows of a connection: its main database file and its WAL.
pub(crate) struct Connection {
    pub(crate) database: Arc<Database>,
    pub(crate) state: Mutex<ConnectionState>,
    /// Its barriers can publish a commit: it has the write lock, or the file for itself. Readers, whose barriers cannot, take no lock for
    /// them.
    publishes: AtomicBool,
    /// It has a read lock of the WAL.
    pub(super) reading: AtomicBool,
    /// What it wrote without a WAL is in the file, and the next question for its length tells whether it goes on.
    pub(super) may_finish: AtomicBool,
    /// That its write transactions are refused was said.
    pub(super) told: AtomicBool,
    /// When its commits return: a [`Durability`].
    durability: AtomicU8,
}

pub(crate) struct ConnectionState {
    /// The database file.
    pub(crate) file: Option<FileRef>,
    /// `SQLITE_LOCK_*` that it holds on the database file.
    pub(crate) file_lock: i32,
    /// It holds the WAL's write lock.
    pub(crate) writing: bool,
    /// Its WAL, while it has one open.
    pub(crate) wal: Option<FileRef>,
    /// The wal-index, while it has one mapped. Without it a WAL connection is in heap mode.
    pub(crate) region: Option<IndexRegion>,
    pub(crate) mirror: Mirror,
    /// The WAL's committed part was too large to copy; not to be tried again before the WAL restarts.
    pub(crate) too_large: bool,
    /// It has the CHECKPOINT lock.
    pub(crate) checkpointing: bool,
    /// The process that replicates does not answer: it is not asked again for this checkpoint.
    pub(super) unanswered: bool,
    /// Another process keeps no WAL until it is told, since this connection restarts it.
    pub(super) asked: Option<Box<dyn Aside>>,
    /// A PRAGMA was seen that ends WAL mode.
    pub(crate) leaving_wal: bool,
    /// A PRAGMA was seen after which there is no journal.
    pub(crate) without_journal: bool,
    /// A PRAGMA was seen that keeps the journal in memory.
    pub(crate) journal_in_memory: bool,
    /// A PRAGMA was seen that takes the file for this connection alone.
    pub(crate) taking_exclusive: bool,
    /// The upload was waited for, in vain, before the file was taken to be closed.
    pub(crate) waited: bool,
    /// The WAL stays behind at close, with all that is in it.
    pub(crate) keeps_wal: bool,
    /// What it does while it has no WAL.
    pub(crate) rollback: RollbackState,
    pub(crate) writes: WriteState,
    /// What it is about to commit, with `durability=strict`.
    pub(crate) strict: StrictState,
}

// SAFETY: the file and region pointers are used only by the thread that SQLite lets use the connection, under the mutex.
unsafe impl Send for ConnectionState {}

impl ConnectionState {
    pub(super) fn new(database: &Database, file: Option<FileRef>) -> ConnectionState {
        ConnectionState {
            file,
            file_lock: ffi::SQLITE_LOCK_NONE,
            writing: false,
            wal: None,
            region: None,
            mirror: Mirror::new(database.memory, &database.budget),
            too_large: false,
            checkpointing: false,
            unanswered: false,
            asked: None,
            leaving_wal: false,
            without_journal: false,
            journal_in_memory: false,
            taking_exclusive: false,
            waited: false,
            keeps_wal: false,
            rollback: RollbackState::default(),
            writes: WriteState::default(),
            strict: StrictState::default(),
        }
    }

    /// It has got the CHECKPOINT lock, or is about to let it go.
    pub(crate) fn checkpoints(&mut self, checkpointing: bool) {
        self.checkpointing = checkpointing;
        self.unanswered = false;
    }

    /// It can commit: it has the WAL's write lock, or the file for itself.
    pub(crate) fn can_publish(&self) -> bool {
        self.writing || self.is_exclusive()
    }

    /// No other process can touch the database.
    pub(crate) fn is_exclusive(&self) -> bool {
        self.file_lock >= ffi::SQLITE_LOCK_EXCLUSIVE
    }
}

impl Connection {
    pub(crate) fn new(database: Arc<Database>, durability: Durability) -> Connection {
        database.connections.fetch_add(1, Ordering::AcqRel);
        let state = ConnectionState::new(&database, None);
        Connection {
            database,
            state: Mutex::new(state),
            publishes: AtomicBool::new(false),
            reading: AtomicBool::new(false),
            may_finish: AtomicBool::new(false),
            told: AtomicBool::new(false),
            durability: AtomicU8::new(durability as u8),
        }
    }

    pub(crate) fn durability(&self) -> Durability {
        const LEVELS: [Durability; 3] = [Durability::Async, Durability::Remote, Durability::Strict];
        let is_it = |level: &Durability| *level as u8 == self.durability.load(Ordering::Relaxed);
        LEVELS.into_iter().find(is_it).unwrap_or_default()
    }

    pub(crate) fn set_durability(&self, level: Durability) {
        self.durability.store(level as u8, Ordering::Relaxed);
    }

    /// Whether a barrier of it is worth a look.
    pub(crate) fn publishes(&self) -> bool {
        self.publishes.load(Ordering::Relaxed)
    }

    pub(crate) fn wal_opened(&self, wal: FileRef) {
        let mut state = self.lock();
        state.writes.ended();
        self.database.wal_opened(&mut state, wal);
        self.database.wal_connections.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn wal_closed(&self) {
        let mut state = self.lock();
        self.database.roll_back_confirmed(&mut state);
        if state.wal.take().is_some() {
            self.database.wal_connections.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// To be called when its locks have changed, on its thread.
    pub(crate) fn locks_changed(&self, state: &ConnectionState) {
        self.publishes
            .store(state.writing || state.is_exclusive(), Ordering::Relaxed);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, ConnectionState> {
        // Only poisoned by a panic that has already failed the log; what SQLite does goes on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.database.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a database is opened with.
pub(crate) struct Opening {
    pub(crate) path: PathBuf,
    pub(crate) c_path: CString,
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) vfs: BaseVfs,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) memory: u64,
    pub(crate) budget: Arc<Budget>,
    pub(crate) read_at_once: u64,
}

impl Database {
    pub(crate) fn new(opening: Opening, log: Arc<Log>, replica: Arc<dyn Replica>) -> Arc<Database> {
        log.connect(&replica);
        let database = Arc::new(Database {
            path: opening.path,
            c_path: opening.c_path,
            parameters: opening.parameters,
            vfs: opening.vfs,
            host: opening.host,
            log,
            replica,
            memory: opening.memory,
            budget: opening.budget,
            read_at_once: opening.read_at_once,
            capture: Mutex::default(),
            connections: AtomicUsize::new(0),
            wal_connections: AtomicUsize::new(0),
            making_way: AtomicUsize::new(0),
            settling: Mutex::default(),
            pin: Mutex::default(),
            kept: Kept::default(),
            aside: AtomicU64::new(0),
            unverified: AtomicBool::new(false),
            snapshots: Mutex::default(),
            copying: AtomicBool::new(false),
            ranges: Arc::default(),
            reader: Mutex::default(),
            shared_file: Mutex::default(),
            wanting: AtomicUsize::new(0),
        });
        let capturing: Weak<Database> = Arc::downgrade(&database);
        database.log.connect_capture(capturing);
        database
    }

    pub(super) fn capture(&self) -> MutexGuard<'_, Capture> {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a connection has a WAL open, or the pin has: of one that has closed it the pin may stay.
    pub(super) fn has_wal(&self) -> bool {
        self.wal_connections.load(Ordering::Acquire) > 0 || self.kept.is_held()
    }

    /// A base is wanted, or the cursor is to be proved.
    pub(crate) fn wants_attention(&self) -> bool {
        self.log.base_wanted() || self.unverified.load(Ordering::Acquire)
    }

    /// Trouble that the user should know of.
    pub(super) fn warn(&self, message: &str) {
        crate::warning!(database = self.path.display(); "{message}");
    }

    /// A panic or an impossible state on our side: nothing is acknowledged from here on.
    pub(crate) fn fail(&self, message: &str) {
        crate::failure!(database = self.path.display(); "replication stopped: {message}");
        self.log.fail(message.to_owned());
    }

    /// The database changed in a way that is not in the log.
    pub(super) fn break_history(&self, capture: &mut Capture, reason: &str) {
        // Who stands by has no history. That its cursor is lost is what comes of the owner's work.
        if capture.cursor.take().is_some() && self.replica.owns() {
            self.warn(&format!("{reason}; the history goes on with a new image"));
        }
        capture.broken = capture.started;
        self.log.request_base();
    }

    /// Why it is not certain that all which is committed is captured; `None` when it is. `synced`: what came of looking for it, just now.
    pub(crate) fn not_capturing(&self, synced: Synced) -> Option<String> {
        let capture = self.capture();
        if let Some(failure) = self.log.failure() {
            return Some(failure);
        }
        if capture.cursor.is_some() {
            let reason = match synced {
                Synced::Behind => {
                    Some("another connection is writing it, or what it has written cannot be read; try again")
                }
                Synced::Elsewhere => Some(MOVED),
                Synced::Proved | Synced::Unproved => None,
            };
            if let Some(reason) = reason {
                return Some(reason.into());
            }
            // Others may have written meanwhile.
            let unproved = synced == Synced::Unproved && self.unverified.load(Ordering::Acquire);
            return unproved.then(|| {
                capture.trouble.clone().unwrap_or_else(|| {
                    "nothing was read from the database since it was opened again, or another connection is writing it; read a table, and try again".into()
                })
            });
        }
        Some(capture.trouble.clone().unwrap_or_else(|| {
            "nothing was read from the database yet, or it is empty, or another connection is writing it; read a table, and try again".into()
        }))
    }

    /// Why no base can come from a connection that is alone with the database: to wait for one would be in vain.
    pub(crate) fn no_base_from(&self, connection: &Connection) -> Option<String> {
        let stuck = connection.lock().too_large && self.log.base_wanted() && self.log.acked() < self.log.last_txid();
        let trouble = stuck.then(|| self.capture().trouble.clone())??;
        Some(format!("{trouble}; use PRAGMA wal_checkpoint(TRUNCATE), then write"))
    }

    /// A part of the WAL that is read when it is needed.
    pub(super) fn wal_range(&self, first_byte: u64, end_byte: u64) -> Option<Arc<WalRange>> {
        let mut known = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let reader = match known.upgrade() {
            Some(reader) => reader,
            None => {
                let reader = WalReader::new(self.vfs.open_wal(&self.c_path).ok()?);
                *known = Arc::downgrade(&reader);
                reader
            }
        };
        Some(WalRange::in_wal(
            reader,
            first_byte,
            end_byte,
            Counted::new(&self.ranges),
        ))
    }

    /// Frames in the WAL are still to be read for the log.
    pub(crate) fn holds_wal(&self) -> bool {
        self.ranges.load(Ordering::Acquire) > 0
    }

    /// Puts pages for which there is no room in memory behind those of others, in a file that lives as long as any of them is needed.
    pub(super) fn share_file(&self, bytes: &[u8]) -> std::io::Result<(Arc<File>, u64)> {
        const LARGEST: u64 = 64 << 20;
        let mut shared = self.shared_file.lock().unwrap_or_else(PoisonError::into_inner);
        let known = shared.0.upgrade().filter(|_| shared.1 < LARGEST);
        let (file, at) = match known {
            Some(file) => (file, shared.1),
            None => (Arc::new(self.spill_file()?), 0),
        };
        file.write_all_at(bytes, at)?;
        *shared = (Arc::downgrade(&file), at + bytes.len() as u64);
        Ok((file, at))
    }

    /// A file without a name, beside the database: there must be room for its WAL there anyway.
    pub(super) fn spill_file(&self) -> std::io::Result<std::fs::File> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let mut name = self.path.clone().into_os_string();
        name.push(format!(
            "-replvfs-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&name)?;
        std::fs::remove_file(&name)?;
        Ok(file)
    }

    /// A connection got or lost its first file lock.
    pub(crate) fn count_holder(&self, before: i32, after: i32) {
        let none = ffi::SQLITE_LOCK_NONE;
        if before == none && after != none {
            self.kept.holder_comes();
        } else if before != none && after == none && self.kept.holder_goes() {
            // Connections that are open but hold nothing keep nobody from deleting the WAL. The pin does.
            self.unverified.store(true, Ordering::Release);
        }
    }
}
