//! A consistent view of the database file at one position, for the image that a history starts from.
//!
//! Owns the handle that reads, and what keeps others from overwriting what is still to be read: a WAL read lock, or,
//! under a connection that has the file for itself, copies of the pages that it is about to overwrite.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libsqlite3_sys as ffi;

use crate::base::{BaseFile, Code, FIRST_READ_SLOT, FileRef, IndexRegion};
use crate::types::{PageSize, Pgno, Position};
use crate::wal::{FRAME_HEADER_BYTES, HEADER_BYTES, Scan, WalHeader, frame_bytes, frame_offset};

/// Frames that are indexed under one hold of the lock, so that a connection that wants the file is not kept waiting.
const FRAMES_A_STEP: u32 = 256;

/// Why a snapshot cannot be read any more.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SnapshotError {
    /// A connection took the file for itself, or the file changed underneath. The log will bring a new base.
    #[error("the snapshot was given up: {0}")]
    GivenUp(&'static str),
    /// The base VFS failed.
    #[error("reading {what} failed with SQLite code {code}")]
    Io {
        /// Which file.
        what: &'static str,
        /// The extended result code.
        code: i32,
    },
    /// The WAL is not what the wal-index says.
    #[error("the WAL does not lead to the position that the wal-index names: {0}")]
    Damaged(String),
}

/// The database as it was at its base's position. Holds a read lock on the database until it is dropped,
/// so it is to be read soon and dropped.
#[derive(Debug)]
pub struct Snapshot {
    page_size: PageSize,
    page_count: u32,
    shared: Arc<Shared>,
}

impl Snapshot {
    /// Of whole pages in memory, for tests of what consumes the log.
    #[doc(hidden)]
    #[must_use]
    pub fn for_test(page_size: PageSize, bytes: Vec<u8>) -> Snapshot {
        Snapshot {
            page_size,
            page_count: u32::try_from(bytes.len() / page_size.as_usize()).unwrap_or(u32::MAX),
            shared: Arc::new(Shared {
                state: Mutex::new(State::Loaded(bytes)),
                changed: Condvar::new(),
                yields: AtomicBool::new(false),
            }),
        }
    }

    /// Bytes a page.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Pages in the database. 0 for an empty file.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        self.page_count
    }

    /// Reads consecutive pages. `buffer` is a whole number of pages, all of them inside the database. To be called in
    /// ascending order, each page once: pages that were read are protected no longer.
    /// The lock page reads as zeros. Blocks on file I/O.
    ///
    /// # Errors
    ///
    /// See [`SnapshotError`]. After one, the snapshot is of no more use.
    pub fn read_pages(&mut self, first: Pgno, buffer: &mut [u8]) -> Result<(), SnapshotError> {
        self.index_wal()?;
        let page_bytes = self.page_size.as_usize();
        let count = u32::try_from(buffer.len() / page_bytes).unwrap_or(u32::MAX);
        debug_assert!(first.get() + count - 1 <= self.page_count);
        let mut state = self.shared.lock();
        let database_error = |code: Code| SnapshotError::Io {
            what: "the database file",
            code: code.0,
        };
        let wal_error = |code: Code| SnapshotError::Io {
            what: "the WAL",
            code: code.0,
        };
        match &mut *state {
            State::Marked(files) => {
                files
                    .database
                    .read(buffer, self.page_size.offset_of(first))
                    .map_err(database_error)?;
                for (pgno, page) in (first.get()..).zip(buffer.chunks_exact_mut(page_bytes)) {
                    let Some(frame) = files.frames.get(&pgno) else { continue };
                    let wal = files
                        .wal
                        .as_mut()
                        .ok_or(SnapshotError::Damaged("it is not there".into()))?;
                    let offset = frame_offset(*frame, self.page_size) + FRAME_HEADER_BYTES as u64;
                    if !wal.read(page, offset).map_err(wal_error)? {
                        return Err(SnapshotError::Damaged(format!("frame {frame} is cut off")));
                    }
                }
            }
            State::Copied(files) => {
                files
                    .database
                    .read(buffer, self.page_size.offset_of(first))
                    .map_err(database_error)?;
                for (pgno, page) in (first.get()..).zip(buffer.chunks_exact_mut(page_bytes)) {
                    if let Some(copy) = files.copies.remove(&pgno) {
                        files.copied_bytes -= copy.len() as u64;
                        page.copy_from_slice(&copy);
                    }
                }
                files.read_up_to = first.get() + count - 1;
            }
            State::Loaded(bytes) => {
                let at = (first.get() - 1) as usize * page_bytes;
                buffer.copy_from_slice(&bytes[at..at + buffer.len()]);
            }
            State::Done => return Err(SnapshotError::GivenUp("it was read before")),
            State::GivenUp(reason) => return Err(SnapshotError::GivenUp(reason)),
        }
        let lock_page = self.page_size.lock_page().get();
        if (first.get()..first.get() + count).contains(&lock_page) {
            let at = (lock_page - first.get()) as usize * page_bytes;
            buffer[at..at + page_bytes].fill(0);
        }
        Ok(())
    }

    /// Reads a database of up to `limit` bytes now, and lets its handles and locks go.
    pub(crate) fn load_up_to(&mut self, limit: u64) -> Result<(), SnapshotError> {
        let bytes = u64::from(self.page_count) * u64::from(self.page_size.get());
        if bytes > limit {
            return Ok(());
        }
        let mut buffer = vec![0; bytes as usize]; // at most limit, which is far smaller than an address space
        if let (Some(first), false) = (Pgno::new(1), buffer.is_empty()) {
            self.read_pages(first, &mut buffer)?;
        }
        *self.shared.lock() = State::Loaded(buffer);
        Ok(())
    }

    /// Finds the newest frame of every page up to the mark, a step at a time.
    fn index_wal(&mut self) -> Result<(), SnapshotError> {
        loop {
            let mut state = self.shared.lock();
            let State::Marked(files) = &mut *state else {
                return Ok(());
            };
            if files.index_step(self.page_size)? {
                return Ok(());
            }
        }
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.shared.finish(State::Done);
    }
}

/// What the snapshot and the shim both hold.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Nothing depends on it: it is given up at once where it is in somebody's way.
    yields: AtomicBool,
}

#[derive(Debug)]
enum State {
    Marked(Box<Marked>),
    Copied(Box<Copied>),
    /// All of it, in memory: no handle, no lock.
    Loaded(Vec<u8>),
    Done,
    GivenUp(&'static str),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, end: State) {
        let mut state = self.lock();
        if matches!(*state, State::Marked(_) | State::Copied(_) | State::Loaded(_)) {
            *state = end;
        }
        self.changed.notify_all();
    }

    /// Lets the locks go now. The reader is told why.
    pub(crate) fn give_up(&self, reason: &'static str) {
        self.finish(State::GivenUp(reason));
    }

    pub(crate) fn let_yield(&self) {
        self.yields.store(true, Ordering::Release);
    }

    /// Whether nothing depends on it.
    pub(crate) fn yields(&self) -> bool {
        self.yields.load(Ordering::Acquire)
    }

    /// The same, unless somebody is at it.
    pub(crate) fn try_give_up(&self, reason: &'static str) {
        if let Ok(mut state) = self.state.try_lock()
            && matches!(*state, State::Marked(_) | State::Copied(_))
        {
            *state = State::GivenUp(reason);
        }
    }

    /// Waits until the snapshot was read, or the time is over.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let state = self.lock();
        let busy = |state: &mut State| matches!(state, State::Marked(_) | State::Copied(_));
        let (state, _) = self
            .changed
            .wait_timeout_while(state, timeout, busy)
            .unwrap_or_else(PoisonError::into_inner);
        !matches!(*state, State::Marked(_) | State::Copied(_))
    }

    /// Whether it was read to its end.
    pub(crate) fn is_loaded(&self) -> bool {
        matches!(*self.lock(), State::Loaded(_))
    }

    /// Whether it depends on copies, not on a lock.
    pub(crate) fn is_copied(&self) -> bool {
        matches!(*self.lock(), State::Copied(_))
    }

    /// Keeps other processes from writing to the file, if it is read without a WAL lock. `false` when that is refused.
    pub(crate) fn hold(&self) -> bool {
        let mut state = self.lock();
        let State::Copied(files) = &mut *state else { return true };
        files.held = files.held || files.database.lock_shared().is_ok();
        files.held
    }

    /// Whether [`Shared::hold`] keeps other processes from writing.
    pub(crate) fn is_held(&self) -> bool {
        matches!(&*self.lock(), State::Copied(files) if files.held)
    }

    /// Undoes [`Shared::hold`]: somebody else keeps them.
    pub(crate) fn release(&self) {
        if let State::Copied(files) = &mut *self.lock()
            && std::mem::take(&mut files.held)
        {
            files.database.unlock();
        }
    }

    /// Called before bytes of the database file are overwritten or cut off by the connection that has it for itself.
    /// `false` when the snapshot had to be given up for that.
    ///
    /// # Safety
    ///
    /// `file` is that connection's open file, on its thread.
    pub(crate) unsafe fn before_change(&self, file: FileRef, from: u64, to: u64) -> bool {
        let mut state = self.lock();
        let State::Copied(files) = &mut *state else { return true };
        let page_bytes = u64::from(files.page_size.get());
        let first = u32::try_from(from / page_bytes + 1).unwrap_or(u32::MAX);
        let last = u32::try_from(to.div_ceil(page_bytes))
            .unwrap_or(u32::MAX)
            .min(files.page_count);
        let mut trouble = None;
        for pgno in first.max(files.read_up_to + 1)..=last {
            if files.copies.contains_key(&pgno) {
                continue;
            }
            let mut page = vec![0; files.page_size.as_usize()].into_boxed_slice();
            // SAFETY: as promised by the caller.
            let read = unsafe { file.read(&mut page, u64::from(pgno - 1) * page_bytes) };
            files.copied_bytes += page_bytes;
            if read.is_err() || files.copied_bytes > files.limit {
                trouble = Some("the connection overwrote more pages than memory_limit allows to keep");
                break;
            }
            files.copies.insert(pgno, page);
        }
        if let Some(reason) = trouble {
            *state = State::GivenUp(reason);
            self.changed.notify_all();
        }
        trouble.is_none()
    }
}

/// Handles that hold a WAL read lock.
#[derive(Debug)]
pub(crate) struct Marked {
    pub(crate) database: BaseFile,
    pub(crate) wal: Option<BaseFile>,
    /// The `xShmLock` slot that is held SHARED.
    pub(crate) slot: i32,
    pub(crate) position: Position,
    scan: Option<Scan>,
    /// Newest frame of each page, up to where the scan is.
    frames: HashMap<u32, u32>,
    /// Frames of the transaction that the scan is in.
    open: Vec<(u32, u32)>,
}

impl Marked {
    pub(crate) fn new(database: BaseFile, wal: Option<BaseFile>, slot: i32, position: Position) -> Marked {
        debug_assert!(slot >= FIRST_READ_SLOT);
        Marked {
            database,
            wal,
            slot,
            position,
            scan: None,
            frames: HashMap::new(),
            open: Vec::new(),
        }
    }

    /// `true` when all is indexed.
    fn index_step(&mut self, page_size: PageSize) -> Result<bool, SnapshotError> {
        let target = self.position.frame;
        if target == 0 {
            return Ok(true);
        }
        let wal = self
            .wal
            .as_mut()
            .ok_or_else(|| SnapshotError::Damaged("it is not there".into()))?;
        let wal_error = |code: Code| SnapshotError::Io {
            what: "the WAL",
            code: code.0,
        };
        let scan = match &mut self.scan {
            Some(scan) => scan,
            none => {
                let mut head = [0; HEADER_BYTES];
                wal.read(&mut head, 0).map_err(wal_error)?;
                let header = WalHeader::decode(&head)
                    .filter(|header| header.salts == self.position.salts && header.page_size == page_size)
                    .ok_or_else(|| SnapshotError::Damaged("its header has other salts".into()))?;
                none.insert(Scan::from_header(&header))
            }
        };
        let first = scan.position().frame + 1;
        if first > target {
            return Ok(true);
        }
        let count = FRAMES_A_STEP.min(target - first + 1);
        let mut bytes = vec![0; count as usize * scan.frame_bytes()];
        wal.read(&mut bytes, frame_offset(first, page_size))
            .map_err(wal_error)?;
        for frame in bytes.chunks_exact(scan.frame_bytes()) {
            let (pgno, _, commit) = scan
                .step(frame)
                .map_err(|error| SnapshotError::Damaged(error.to_string()))?;
            self.open.push((pgno.get(), scan.position().frame));
            if commit.is_some() {
                self.frames.extend(self.open.drain(..));
            }
        }
        let position = scan.position();
        if position.frame == target && (position != self.position || !self.open.is_empty()) {
            return Err(SnapshotError::Damaged(format!(
                "frame {target} is not the commit that it names"
            )));
        }
        Ok(position.frame == target)
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        // The order of SQLite's own readers: read lock, wal-index, file lock; BaseFile closes.
        let _ = self
            .database
            .shm_lock(self.slot, ffi::SQLITE_SHM_UNLOCK | ffi::SQLITE_SHM_SHARED);
        self.database.unmap_index();
        self.database.unlock();
    }
}

/// A handle under a connection that has the file for itself, or where there is no WAL: it has no lock as long as that connection has.
#[derive(Debug)]
pub(crate) struct Copied {
    database: BaseFile,
    page_size: PageSize,
    page_count: u32,
    /// Pages that are not in the file any more, or not yet: from the WAL at the base's position, or overwritten since.
    copies: HashMap<u32, Box<[u8]>>,
    copied_bytes: u64,
    limit: u64,
    /// Pages up to here were read.
    read_up_to: u32,
    /// The handle has a SHARED lock.
    held: bool,
}

impl Snapshot {
    pub(crate) fn marked(files: Marked, page_size: PageSize, page_count: u32) -> (Snapshot, Arc<Shared>) {
        Snapshot::new(State::Marked(Box::new(files)), page_size, page_count)
    }

    /// `copies` are the pages that stand in the WAL.
    pub(crate) fn copied(
        database: BaseFile,
        page_size: PageSize,
        page_count: u32,
        copies: HashMap<u32, Box<[u8]>>,
        limit: u64,
    ) -> (Snapshot, Arc<Shared>) {
        let copied_bytes = copies.len() as u64 * u64::from(page_size.get());
        let files = Copied {
            database,
            page_size,
            page_count,
            copies,
            copied_bytes,
            limit,
            read_up_to: 0,
            held: false,
        };
        Snapshot::new(State::Copied(Box::new(files)), page_size, page_count)
    }

    fn new(state: State, page_size: PageSize, page_count: u32) -> (Snapshot, Arc<Shared>) {
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            yields: AtomicBool::new(false),
        });
        (
            Snapshot {
                page_size,
                page_count,
                shared: Arc::clone(&shared),
            },
            shared,
        )
    }
}

/// The committed pages of a WAL, read through the connection that has the file for itself.
pub(crate) struct WalPages {
    /// Behind the last commit; `None` when the WAL has no valid header.
    pub(crate) header: Option<WalHeader>,
    pub(crate) position: Position,
    pub(crate) page_count: Option<u32>,
    pub(crate) pages: HashMap<u32, Box<[u8]>>,
}

impl WalPages {
    /// The pages up to `committed`; where that is not known, up to the last commit frame that the chain reaches, as SQLite's
    /// recovery does it. `None` when the pages are more than `limit` bytes.
    ///
    /// # Safety
    ///
    /// `wal` is that connection's open WAL, on its thread.
    pub(crate) unsafe fn read(
        wal: FileRef,
        limit: u64,
        committed: Option<Position>,
    ) -> Result<Option<WalPages>, SnapshotError> {
        let io = |code: Code| SnapshotError::Io {
            what: "the WAL",
            code: code.0,
        };
        let mut head = [0; HEADER_BYTES];
        // SAFETY: as promised by the caller.
        let whole = unsafe { wal.read(&mut head, 0).map_err(io)? };
        let mut found = WalPages {
            header: None,
            position: Position::default(),
            page_count: None,
            pages: HashMap::new(),
        };
        let Some(header) = WalHeader::decode(&head).filter(|_| whole) else {
            return Ok(Some(found));
        };
        found.header = Some(header);
        found.position = header.position();
        // With other salts nothing was committed since the header was written.
        let last = committed.map(|committed| (committed.frame, committed.salts == header.salts));
        let last = last.map(|(frame, same)| if same { frame } else { 0 });
        let mut scan = Scan::from_header(&header);
        let mut open: Vec<(u32, Box<[u8]>)> = Vec::new();
        let mut frame = vec![0; scan.frame_bytes()];
        let mut at = HEADER_BYTES as u64;
        let mut bytes = 0;
        // SAFETY: as promised by the caller.
        while last != Some(scan.position().frame) && unsafe { wal.read(&mut frame, at).map_err(io)? } {
            let Ok((pgno, page, commit)) = scan.step(&frame) else {
                break;
            };
            open.push((pgno.get(), page.into()));
            if let Some(commit) = commit {
                found.pages.extend(open.drain(..));
                found.position = commit.position;
                found.page_count = Some(commit.page_count);
            }
            at += frame_bytes(header.page_size);
            bytes += u64::from(header.page_size.get());
            if bytes > limit {
                return Ok(None);
            }
        }
        if last.is_some_and(|last| last > 0) && Some(found.position) != committed {
            return Err(SnapshotError::Damaged("it ends before".into()));
        }
        Ok(Some(found))
    }

    /// A WAL that the wal-index calls restarted still holds its old frames: all of them are in the database file.
    pub(crate) fn unless_restarted(self, region: Option<IndexRegion>) -> WalPages {
        match region.and_then(|region| region.header()) {
            Some(header) if header.position.frame == 0 => WalPages {
                header: None,
                position: header.position,
                page_count: None,
                pages: HashMap::new(),
            },
            _ => self,
        }
    }
}
