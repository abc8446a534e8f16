//! What this machine remembers of a database's replication, and who of its processes may write it down: the lock and the state file.
//!
//! Owns the rule that whoever gets the lock reads the file first: when it is not what this process itself wrote last, another one has
//! replicated the database meanwhile, and the history is taken up from where the file says. Leaves to the log what the database has to prove, and
//! to the task what the store has to say. Local file I/O only; may be called from any thread.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use replvfs_vfs::notice::later;
use replvfs_vfs::resume::{Left, Mark};
use replvfs_vfs::types::{PageSize, Txid};

use super::owner::{self, Ownership};
use crate::format::{DatabaseId, Generation, LocalState, ObjectHash, Place, Unfinished};
use crate::local_state::{self, StateError};
use crate::store::Store;

/// The database's files of ours.
#[derive(Debug)]
pub(super) struct Local {
    lock_file: PathBuf,
    state_file: PathBuf,
    place: Place,
    replica: String,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    ownership: Option<Ownership>,
    file: Option<File>,
    /// What this process read or wrote last.
    known: Option<LocalState>,
    /// That of the newest state in the file, whosever it is.
    sequence: u64,
    /// The newest note, as long as there is no state to keep it in.
    left: Option<Left>,
    /// It is in the store, and not committed yet.
    held: Option<Stored>,
    /// The database file is new: what the state beside it said then is of another one.
    is_new: bool,
    before: Option<LocalState>,
    tenure: u64,
    epoch: u64,
    /// What was captured since this process was the owner is not in the log any more.
    has_forgotten: bool,
}

/// What came of an attempt to become the owner.
#[derive(Debug)]
pub(super) enum Taken {
    /// Another process is.
    No,
    /// This process was already.
    Still,
    /// Nobody else has noted anything meanwhile, and this process has forgotten nothing: the history goes on as it was.
    Again,
    /// From here on it goes on from what the state says, or anew.
    From(Option<Box<LocalState>>),
}

/// What the task takes up.
#[derive(Debug, Clone)]
pub(super) struct Start {
    /// Changes whenever there is something to take up.
    pub(super) epoch: u64,
    pub(super) known: Option<LocalState>,
    /// The database file was missing or empty when it was opened.
    pub(super) is_new: bool,
}

/// Why a state could not be had, in a sentence.
pub(super) type Problem = String;

impl Local {
    pub(super) fn new(database: &Path, store: &Store) -> Local {
        Local {
            lock_file: owner::lock_file(database),
            state_file: local_state::state_file(database),
            place: Place::of(store.place()),
            replica: store.replica().to_owned(),
            inner: Mutex::default(),
        }
    }

    /// Whether the state says that another machine has taken over. What is wrong with one that cannot be read is told when it counts.
    pub(super) fn is_noted_as_fenced(&self) -> bool {
        let noted = local_state::read(&self.state_file).ok().flatten();
        noted.is_some_and(|state| state.fenced && state.place == self.place)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database file is missing or empty. To be called before the first [`take`](Self::take).
    pub(super) fn is_new(&self) {
        // What cannot be read now is told when it counts.
        let before = local_state::read(&self.state_file).ok().flatten();
        let mut inner = self.lock();
        inner.is_new = true;
        inner.before = before;
    }

    /// Tries to become the owner, if that is `wanted`, which is asked while this process cannot [let go](Self::release); else `None`. Never waits. `taken` is called
    /// before anybody else can ask.
    ///
    /// # Errors
    ///
    /// When the lock cannot be had, or the state is not for this release: this process is no owner then.
    pub(super) fn take(
        &self,
        wanted: impl FnOnce() -> bool,
        taken: impl FnOnce(&Taken),
    ) -> Result<Option<Taken>, Problem> {
        let _later = later();
        let mut inner = self.lock();
        if inner.ownership.is_some() {
            return Ok(Some(Taken::Still));
        }
        if !wanted() {
            return Ok(None);
        }
        let ownership = Ownership::take(&self.lock_file)
            .map_err(|error| format!("locking {} failed: {error}", self.lock_file.display()))?;
        let Some(ownership) = ownership else {
            return Ok(Some(Taken::No));
        };
        let found = match local_state::read(&self.state_file) {
            Ok(found) => found,
            Err(error) if error.is_damage() => {
                replvfs_vfs::warning!(; "{error}; going on as if it was not there");
                None
            }
            Err(error @ StateError::Format { .. }) => {
                return Err(format!("{error} to go on with this database, or remove the file"));
            }
            Err(error) => return Err(error.to_string()),
        };
        if let Some(found) = &found {
            inner.sequence = inner.sequence.max(found.sequence);
        }
        // Another process may have made the file since, and replicated it.
        inner.is_new &= found == inner.before;
        let found = found.filter(|found| found.place == self.place && !inner.is_new);
        let has_forgotten = std::mem::take(&mut inner.has_forgotten);
        let result = if inner.tenure > 0 && found == inner.known && !has_forgotten {
            Taken::Again
        } else {
            inner.known.clone_from(&found);
            inner.left = None;
            inner.epoch += 1;
            Taken::From(found.map(Box::new))
        };
        inner.ownership = Some(ownership);
        inner.tenure += 1;
        taken(&result);
        self.keep_without_its_wal(&mut inner);
        Ok(Some(result))
    }

    /// A state that counts because of the WAL beside the database must count when that is gone, too.
    fn keep_without_its_wal(&self, inner: &mut Inner) {
        let Some(mut state) = inner.known.clone().filter(|state| state.if_wal.is_some()) else {
            return;
        };
        // The WAL has its name for good before that is relied on.
        let folder = self.state_file.parent().unwrap_or(Path::new("."));
        if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
            replvfs_vfs::warning!(; "syncing {} failed: {error}", folder.display());
            return;
        }
        state.if_wal = None;
        if let Err(problem) = self.write(inner, state) {
            replvfs_vfs::warning!(; "{problem}");
        }
    }

    /// Lets another process be the owner, if `decide` says so, during which nobody can take it. What is noted is made durable first.
    pub(super) fn release(&self, decide: impl FnOnce() -> bool) {
        let _later = later();
        let mut inner = self.lock();
        if inner.ownership.is_none() || !decide() {
            return;
        }
        if let Some(file) = inner.file.take()
            && let Err(error) = local_state::sync(&file)
        {
            replvfs_vfs::warning!(; "syncing {} failed: {error}", self.state_file.display());
        }
        inner.ownership = None;
    }

    pub(super) fn owns(&self) -> bool {
        self.lock().ownership.is_some()
    }

    /// Another process is the owner: what this one captures is dropped by `forget`, during which nobody can take the lock. If the other one dies before
    /// it has noted any of that, nothing else tells that it has to be captured again.
    pub(super) fn forget(&self, forget: impl FnOnce()) {
        let mut inner = self.lock();
        if inner.ownership.is_none() {
            inner.has_forgotten = true;
            forget();
        }
    }

    /// The lock's file stays when a database is closed. Where that cannot be told, taking it says why.
    pub(super) fn is_there(&self) -> bool {
        self.lock_file.try_exists().unwrap_or(true)
    }

    /// How often this process became the owner.
    pub(super) fn tenure(&self) -> u64 {
        self.lock().tenure
    }

    pub(super) fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    pub(super) fn start(&self) -> Start {
        let inner = self.lock();
        Start {
            epoch: inner.epoch,
            known: inner.known.clone(),
            is_new: inner.is_new,
        }
    }

    /// A generation is being written from here on. Blocks until that is on disk; the lock is free meanwhile.
    pub(super) fn begun(&self, identity: Identity, stored: Stored) -> Result<(), Problem> {
        let mut inner = self.lock();
        let left = inner.known.as_ref().and_then(|known| known.left).or(inner.left.take());
        inner.is_new = false;
        inner.held = None;
        let state = LocalState {
            sequence: 0,
            replica: self.replica.clone(),
            place: self.place,
            database_id: identity.database_id,
            generation: identity.generation,
            page_size: identity.page_size,
            stored: stored.mark,
            slot: stored.slot,
            previous: stored.previous,
            left: left.filter(|left| left.mark.txid >= stored.mark.txid),
            if_wal: None,
            fenced: false,
            unfinished: None,
            restored: Some(false),
        };
        self.write_synced(inner, state)
    }

    /// A segment is in the store. To be called before anything is told that it need not be kept any more.
    pub(super) fn stored(&self, stored: Stored) -> Result<(), Problem> {
        let mut inner = self.lock();
        let Some(mut state) = inner.known.clone() else {
            return Ok(());
        };
        state.stored = stored.mark;
        state.slot = stored.slot;
        state.previous = stored.previous;
        state.restored = Some(false);
        state.unfinished = None;
        // What ended before it is not needed to find what follows it.
        state.left = state.left.filter(|left| left.mark.txid >= stored.mark.txid);
        self.write(&mut inner, state)
    }

    /// A segment is about to be put into the store whose transaction is not committed yet.
    pub(super) fn unfinished(&self, unfinished: Unfinished, durably: bool) -> Result<(), Problem> {
        let mut inner = self.lock();
        inner.held = None;
        let Some(mut state) = inner.known.clone() else {
            return Ok(());
        };
        state.unfinished = Some(unfinished).filter(|unfinished| unfinished.slot > state.stored.txid);
        match durably {
            true => self.write_synced(inner, state),
            false => self.write(&mut inner, state),
        }
    }

    /// It is there. That is noted when it is committed: a process that comes before has to know that it may not be.
    pub(super) fn hold(&self, stored: Stored) {
        self.lock().held = Some(stored);
    }

    /// It is committed.
    pub(super) fn finished(&self) -> Result<(), Problem> {
        let held = self.lock().held.take();
        held.map_or(Ok(()), |stored| self.stored(stored))
    }

    /// Another machine has taken over. No process of this one goes on by itself. Blocks until that is on disk.
    pub(super) fn fenced(&self) -> Result<(), Problem> {
        let inner = self.lock();
        let Some(mut state) = inner.known.clone() else {
            return Ok(());
        };
        state.fenced = true;
        self.write_synced(inner, state)
    }

    /// A WAL ends: remembered without a sync.
    pub(super) fn left(&self, left: &Left) -> Result<(), Problem> {
        let mut inner = self.lock();
        if inner.ownership.is_none() {
            return Err("another process replicates the database".to_owned());
        }
        let Some(mut state) = inner.known.clone() else {
            // Without a generation a new process starts with an image of everything.
            inner.left = Some(*left);
            return Ok(());
        };
        if left.mark.txid < state.stored.txid {
            return Err("what is stored is newer".to_owned());
        }
        state.left = Some(*left);
        self.write(&mut inner, state)
    }

    /// As [`write`](Self::write), until it is on disk. The lock is free while that is waited for.
    fn write_synced(&self, mut inner: MutexGuard<'_, Inner>, state: LocalState) -> Result<(), Problem> {
        self.write(&mut inner, state)?;
        let file = inner.file.as_ref().map(File::try_clone);
        drop(inner);
        let synced = file.map_or(Ok(()), |file| file.and_then(|file| local_state::sync(&file)));
        synced.map_err(|error| self.failed(&error))
    }

    fn write(&self, inner: &mut Inner, mut state: LocalState) -> Result<(), Problem> {
        if inner.ownership.is_none() {
            return Err("another process replicates the database".to_owned());
        }
        state.sequence = inner.sequence + 1;
        let opened = match inner.file.take() {
            Some(file) => Ok(file),
            None => local_state::open(&self.state_file),
        };
        let file = opened.map_err(|error| self.failed(&error))?;
        let written = local_state::write(&file, &state);
        inner.file = Some(file);
        written.map_err(|error| self.failed(&error))?;
        inner.sequence = state.sequence;
        inner.known = Some(state);
        Ok(())
    }

    fn failed(&self, error: &std::io::Error) -> Problem {
        format!(
            "writing {} failed: {error}; a restart may need a new image",
            self.state_file.display()
        )
    }
}

/// What changes with a generation only.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    pub(super) database_id: DatabaseId,
    pub(super) generation: Generation,
    pub(super) page_size: PageSize,
}

/// The newest transaction in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) mark: Mark,
    pub(super) slot: Option<Txid>,
    pub(super) previous: ObjectHash,
}
