//! Where capturing starts: proof that the cursor still holds after the last close, and bases.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use libsqlite3_sys as ffi;

use super::commit::last_commit_in;
use super::continuity::Fingerprint;
use super::database::{Capture, ConnectionState, Cursor, Database};
use super::pin::{EXCLUSIVE_LOCK, EXCLUSIVE_UNLOCK, SHARED_LOCK, SHARED_UNLOCK};
use crate::base::{BaseFile, Code, FIRST_READ_SLOT, FileRef, IndexRegion};
use crate::log::{Base, Continuity, Question, Wanted};
use crate::snapshot::{Marked, Shared, Snapshot, WalPages};
use crate::types::{PageSize, Position};
use crate::wal::{HEADER_BYTES, IndexHeader, READ_MARK_NOT_USED, Scan, WalHeader};

/// Read locks that a reader may use with a mark of its own: slot 0 always means "nothing from the WAL".
const MARKS: [usize; 4] = [1, 2, 3, 4];
/// The header may move on while a mark is taken; a writer that is that fast lets us try again at its next lock.
const ATTEMPTS: usize = 100;

/// What a base is made of.
pub(super) struct Found {
    pub(super) cursor: Cursor,
    /// The wal-index header that the mark was taken at.
    pub(super) header: Option<IndexHeader>,
    pub(super) snapshot: Snapshot,
    pub(super) shared: Arc<Shared>,
}

impl Database {
    /// Proves the cursor, and takes a base if one is wanted. Called with a connection that has a WAL read or write lock, or has
    /// the file for itself; the state of the database is thus settled up to the wal-index header.
    pub(crate) fn attach(&self, state: &mut ConnectionState) {
        let Some(wal) = state.wal else { return };
        if state.too_large {
            return;
        }
        {
            let mut capture = self.capture();
            if let Some(file) = state.file
                // SAFETY: the connection's file, on its thread.
                && unsafe { self.file_has_moved(&mut capture, file) }
            {
                // The handles of our own would be on another database than the connection.
                return;
            }
            capture.known = None;
        }
        match state.region {
            Some(region) if !state.is_exclusive() => {
                if self.is_of_another_file(region) {
                    self.drop_pin();
                }
                self.take_pin();
                self.attach_shared(&mut self.capture(), region, wal);
            }
            _ => self.attach_exclusive(state, wal),
        }
    }

    /// Under a WAL read or write lock, or the pin.
    pub(super) fn attach_shared(&self, capture: &mut Capture, region: IndexRegion, wal: FileRef) {
        let Some(header) = region.header().filter(|_| !self.is_aside()) else {
            return;
        };
        let question = match self.log.wanted() {
            (Wanted::Resume(resume), question) => {
                self.resume(capture, resume, question, &header, wal);
                question
            }
            (_, question) => {
                self.verify(capture, &header, wal);
                question
            }
        };
        // What happened while nothing kept the WAL is judged before the cursor counts as proved: a base that is wanted would hide it.
        if !self.kept.is_unbroken() {
            self.catch_up(capture, &header, wal);
        }
        if capture.cursor.is_none() {
            // A base is of a later state.
            match self.kept.time() {
                Some(time) => self.kept.prove(time),
                None => drop(self.kept.forget_proof()),
            }
        } else {
            self.is_proved(capture, region);
        }
        let found = self.log.base_wanted().then(|| self.mark(region));
        self.settle_base(capture, found, question, Some(wal));
    }

    fn attach_exclusive(&self, state: &mut ConnectionState, wal: FileRef) {
        let mut capture = self.capture();
        let (wanted, question) = self.log.wanted();
        if wanted != Wanted::Base || self.unverified.load(Ordering::Acquire) {
            let header = match state.region {
                Some(region) => region.header(),
                None => recovered(wal),
            };
            let Some(header) = header else { return };
            match wanted {
                Wanted::Resume(resume) => self.resume(&mut capture, resume, question, &header, wal),
                Wanted::Base | Wanted::Nothing => self.verify(&mut capture, &header, wal),
            }
            if !self.log.base_wanted() {
                capture.trouble = None;
                return;
            }
        }
        let pages = match self.committed_pages(&mut capture, state, wal) {
            Ok(Some(pages)) => pages,
            Ok(None) => return,
            Err(reason) => {
                capture.trouble = Some(reason);
                return;
            }
        };
        let found = self.log.base_wanted().then(|| self.copy(pages));
        self.settle_base(&mut capture, found, question, None);
    }

    fn settle_base(
        &self,
        capture: &mut Capture,
        found: Option<Result<Found, String>>,
        question: Question,
        wal: Option<FileRef>,
    ) {
        let settled = found.map(|found| {
            let mut found = found?;
            found
                .snapshot
                .load_up_to(self.read_at_once)
                .map_err(|error| error.to_string())?;
            Ok(found)
        });
        match settled {
            None => capture.trouble = None,
            Some(Ok(found)) => {
                if let (Some(header), Some(wal)) = (&found.header, wal) {
                    // What others committed before the mark are transactions of their own, not a part of this base's.
                    self.catch_up(capture, header, wal);
                }
                self.log_base(capture, found, question);
            }
            Some(Err(reason)) => self.no_base(capture, reason),
        }
    }

    pub(super) fn no_base(&self, capture: &mut Capture, reason: String) {
        if capture.trouble.as_ref() != Some(&reason) {
            crate::warning!(database = self.path.display(); "no image could be started: {reason}");
        }
        capture.trouble = Some(reason);
    }

    /// The pages that the WAL of a connection in exclusive locking mode has for the database. `None`: not now.
    fn committed_pages(
        &self,
        capture: &mut Capture,
        state: &mut ConnectionState,
        wal: FileRef,
    ) -> Result<Option<WalPages>, String> {
        // Behind what is committed there may be a transaction that was rolled back after its commit frame was written.
        let committed = match state.region {
            Some(region) => {
                let Some(header) = region.header() else { return Ok(None) };
                self.prove(capture, &header, wal);
                Some(header.position)
            }
            None if self.unverified.load(Ordering::Acquire) => None,
            None => capture.cursor.map(|cursor| cursor.position),
        };
        // SAFETY: the connection's WAL, on its thread.
        match unsafe { WalPages::read(wal, self.memory, committed) } {
            Ok(Some(pages)) => Ok(Some(pages.unless_restarted(state.region))),
            Ok(None) => {
                state.too_large = true;
                Err("the WAL is larger than memory_limit, and a connection in exclusive locking mode has it".into())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Brings a cursor that is proved, or is proved now, to where the wal-index is.
    pub(super) fn prove(&self, capture: &mut Capture, header: &IndexHeader, wal: FileRef) {
        self.verify(capture, header, wal);
        self.catch_up(capture, header, wal);
    }

    /// After the last close of this process: is the database still where the log ends?
    fn verify(&self, capture: &mut Capture, header: &IndexHeader, wal: FileRef) {
        if !self.unverified.swap(false, Ordering::AcqRel) {
            return;
        }
        let left_behind = capture.left_behind.take();
        let Some(cursor) = capture.cursor else { return };
        let now = header.position;
        if now.salts == cursor.position.salts && cursor.position.frame > 0 {
            return self.catch_up(capture, header, wal);
        }
        let same_file = left_behind.is_some() && left_behind == Fingerprint::of(&self.path);
        if same_file && now.frame == 0 {
            capture.held = left_behind;
            // What is noted next still follows on the end of the WAL that is gone.
            capture.ended = capture.ended.or(Some(cursor.position));
            capture.cursor = Some(Cursor {
                position: now,
                ..cursor
            });
        } else {
            self.break_history(
                capture,
                "it may have been written while this process did not have it open",
            );
        }
    }

    pub(super) fn log_base(&self, capture: &mut Capture, found: Found, question: Question) {
        let known = capture.unproved.or_else(|| self.log.last_txid());
        // It is abandoned in the log first, and then here.
        let is_abandoned = |last| self.log.abandoned() == Some(last);
        let (continuity, txid) = match known {
            Some(last) if capture.broken || is_abandoned(last) => (Continuity::Broken, last.next()),
            Some(last) => (Continuity::Continued, last),
            None => (Continuity::First, crate::types::Txid::ZERO),
        };
        let base = Base {
            txid,
            position: found.cursor.position,
            taken_at: self.host.now(),
            continuity,
            snapshot: found.snapshot,
        };
        let copying = found.shared.is_copied();
        {
            let mut snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
            snapshots.retain(|snapshot| snapshot.strong_count() > 0);
            snapshots.push(Arc::downgrade(&found.shared));
        }
        if copying {
            self.copying.store(true, Ordering::Release);
        }
        if !self.log.push_base(base, question) {
            return; // Something else is asked for meanwhile.
        }
        capture.cursor = Some(found.cursor);
        capture.started = true;
        capture.broken = false;
        capture.unproved = None;
        capture.trouble = None;
    }

    /// A base that is protected by a WAL read lock, as a reader takes it (`walTryBeginRead`).
    pub(super) fn mark(&self, region: IndexRegion) -> Result<Found, String> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |Code(code): Code| format!("{what} failed with SQLite code {code}")
        };
        let mut file = self
            .vfs
            .open_database(&self.c_path, &self.parameters)
            .map_err(failed("opening the database again"))?;
        file.lock_shared().map_err(failed("locking the database"))?;
        // The connection's own region is mapped as long as its handle, which outlives this call; ours as long as ours.
        let mapped = file.map_index();
        if !matches!(mapped, Ok(Some(_))) {
            // Even a mapping that failed may have joined the shared memory, which a close alone does not leave.
            file.unmap_index();
            file.unlock();
            mapped.map_err(failed("mapping the wal-index"))?;
            return Err("the VFS underneath has no shared memory".into());
        }
        let taken = (0..ATTEMPTS).find_map(|_| take_mark(&mut file, region));
        let Some((slot, header)) = taken else {
            file.unmap_index();
            file.unlock();
            return Err("every WAL read lock is in use, or commits come too fast to see one".into());
        };
        let wal = if header.position.frame > 0 {
            self.vfs.open_wal(&self.c_path).ok()
        } else {
            None
        };
        // From here on the guard lets everything go.
        let mut files = Marked::new(file, wal, slot, header.position);
        let page_size = match header.page_size.filter(|_| header.position.frame > 0) {
            Some(size) => size,
            None => page_size_of(&mut files.database)?,
        };
        let page_count = match header.page_count {
            0 => pages_in(&mut files.database, page_size)?,
            count => count,
        };
        let cursor = Cursor {
            position: header.position,
            page_size: Some(page_size),
            big_endian: header.big_endian,
        };
        let (snapshot, shared) = Snapshot::marked(files, page_size, page_count);
        Ok(Found {
            cursor,
            header: Some(header),
            snapshot,
            shared,
        })
    }

    /// A base under a connection that has the file for itself.
    fn copy(&self, wal: WalPages) -> Result<Found, String> {
        let mut file = self
            .vfs
            .open_database(&self.c_path, &self.parameters)
            .map_err(|Code(code)| format!("opening the database again failed with SQLite code {code}"))?;
        let page_size = match wal.header.filter(|_| wal.page_count.is_some()) {
            Some(header) => header.page_size,
            None => page_size_of(&mut file)?,
        };
        let page_count = match wal.page_count {
            Some(count) => count,
            None => pages_in(&mut file, page_size)?,
        };
        let big_endian = wal.header.is_some_and(|header| header.big_endian);
        let cursor = Cursor {
            position: wal.position,
            page_size: wal.header.map(|header| header.page_size),
            big_endian,
        };
        let (snapshot, shared) = Snapshot::copied(file, page_size, page_count, wal.pages, self.memory);
        Ok(Found {
            cursor,
            header: None,
            snapshot,
            shared,
        })
    }

    /// A connection is about to ask for the EXCLUSIVE file lock, which our own SHARED locks would refuse it. To be followed by
    /// [`Database::way_was_made`].
    pub(crate) fn make_way(&self, state: &mut ConnectionState) {
        self.making_way.fetch_add(1, Ordering::AcqRel);
        drop(self.settling.lock().unwrap_or_else(PoisonError::into_inner));
        self.release_file(state);
        let own = usize::from(state.file_lock != ffi::SQLITE_LOCK_NONE);
        if self.kept.holders() > own {
            return; // Another connection refuses it anyway.
        }
        self.give_images_up("a connection wants the database file for itself");
        let mut patience = self.replica.close_timeout();
        if state.wal.is_some() && !state.taking_exclusive {
            // The last close, or the end of WAL mode: afterwards the WAL is gone. What is asked for by then nobody else would give.
            if (self.replica.owns() || self.replica.take_over()) && self.wants_attention() {
                self.attach(state);
            }
            if !self.replica.drain() {
                state.waited = true;
                patience = Duration::ZERO;
            }
        }
        self.end_snapshots(false, patience, "a connection wanted the database file for itself");
        self.drop_pin();
    }

    /// The lock was given, or not.
    pub(crate) fn way_was_made(&self, state: &ConnectionState) {
        self.making_way.fetch_sub(1, Ordering::AcqRel);
        if state.wal.is_some() && !state.is_exclusive() {
            self.take_pin();
        }
    }

    /// A connection is about to delete its WAL: whether it has to stay, for what is not in the store.
    pub(crate) fn keeps_wal(&self, state: &mut ConnectionState) -> bool {
        if state.wal.is_none() || !state.is_exclusive() || !self.replica.owns() {
            return false;
        }
        if !state.waited && self.replica.drain() || self.log.unstored_bytes() == Some(0) {
            return false;
        }
        if state.leaving_wal {
            // A WAL beside a database in another mode would be taken for its newest part.
            self.before_wal_is_lost();
            return false;
        }
        // Before the history has begun nothing could go on from the WAL.
        let begun = self.log.unstored_bytes().is_some() || self.log.wanted().0 != Wanted::Base;
        let stays =
            begun && self.log.failure().is_none() && !self.log.is_suspended() && self.capture().cursor.is_some();
        state.keeps_wal = stays;
        stays
    }

    /// What depends on copies comes to its end.
    pub(super) fn end_copies(&self, reason: &'static str) {
        self.end_snapshots(true, self.replica.close_timeout(), reason);
        self.copying.store(false, Ordering::Release);
    }

    /// All that may still be read: a second base can be asked for while the first is.
    pub(super) fn reading(&self) -> Vec<Arc<Shared>> {
        let snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        snapshots.iter().filter_map(Weak::upgrade).collect()
    }

    /// Waits for the readers of one kind of snapshot, and then gives up what is left of them.
    fn end_snapshots(&self, copied: bool, mut patience: Duration, reason: &'static str) {
        let reading = self.reading();
        let mut left = reading.iter().filter(|shared| shared.is_copied() == copied).peekable();
        if left.peek().is_none() {
            return;
        }
        for shared in left {
            if shared.yields() {
                shared.give_up(reason);
            } else if !shared.wait(patience) {
                patience = Duration::ZERO;
                shared.give_up(reason);
                self.log.request_base();
            }
        }
    }

    /// Nothing is read any more from any of them.
    pub(super) fn give_snapshots_up(&self, reason: &'static str) {
        for shared in self.reading() {
            shared.give_up(reason);
        }
    }

    /// Bytes of the database file are about to be overwritten or cut off.
    ///
    /// # Safety
    ///
    /// `file` is an open database file of a connection, on its thread.
    pub(crate) unsafe fn before_change(&self, file: FileRef, from: u64, to: u64) {
        if !self.copying.load(Ordering::Acquire) {
            return;
        }
        let reading = self.reading();
        if reading.is_empty() {
            self.copying.store(false, Ordering::Release);
        }
        for shared in reading {
            // SAFETY: as promised by the caller.
            if !unsafe { shared.before_change(file, from, to) } {
                self.log.request_base();
            }
        }
    }

    /// A connection was closed; after the last one the replica may hold the thread until the log is in the store.
    pub(crate) fn connection_closed(&self) {
        if self.connections.load(Ordering::Acquire) == 0 {
            self.unverified.store(true, Ordering::Release);
            // Before the replica lets another process take over, whose spill file it would be then.
            self.replica.drain();
            if self.log.unstored_bytes().is_none_or(|bytes| bytes == 0) {
                let mut capture = self.capture();
                self.forget_spill(&mut capture);
                drop(capture);
                self.drop_pin();
            }
            loop {
                self.replica.closed();
                // One that was opened meanwhile was counted before that was told, which may have been before this.
                fence(Ordering::SeqCst);
                if self.connections.load(Ordering::Acquire) == 0 {
                    break;
                }
                self.replica.opened();
                // And may be closed by now, which was told before that.
                fence(Ordering::SeqCst);
                if self.connections.load(Ordering::Acquire) > 0 {
                    break;
                }
            }
        }
    }
}

/// Takes a read lock whose mark is the header's mxFrame. `None` when the header moved meanwhile, or no slot was free.
fn take_mark(file: &mut BaseFile, region: IndexRegion) -> Option<(i32, IndexHeader)> {
    let header = region.header()?;
    let wanted = header.position.frame;
    let slot_of = |index: usize| FIRST_READ_SLOT + i32::try_from(index).unwrap_or(0);
    let equal = MARKS.into_iter().find(|index| region.read_mark(*index) == wanted);
    let index = equal.or_else(|| {
        MARKS.into_iter().find(|index| {
            let free = file.shm_lock(slot_of(*index), EXCLUSIVE_LOCK).is_ok();
            if free {
                region.set_read_mark(*index, wanted);
                let _ = file.shm_lock(slot_of(*index), EXCLUSIVE_UNLOCK);
            }
            free
        })
    });
    // A smaller mark protects more than is needed.
    let index = index.or_else(|| {
        let usable = MARKS.into_iter().filter(|index| {
            let mark = region.read_mark(*index);
            mark != READ_MARK_NOT_USED && mark <= wanted
        });
        usable.max_by_key(|index| region.read_mark(*index))
    })?;
    let mark = region.read_mark(index);
    if mark > wanted || file.shm_lock(slot_of(index), SHARED_LOCK).is_err() {
        return None;
    }
    if region.read_mark(index) != mark || region.header() != Some(header) {
        let _ = file.shm_lock(slot_of(index), SHARED_UNLOCK);
        return None;
    }
    Some((slot_of(index), header))
}

/// What a recovery finds in a WAL that no wal-index tells of.
fn recovered(wal: FileRef) -> Option<IndexHeader> {
    let mut head = [0; HEADER_BYTES];
    // SAFETY: the connection's WAL, on its thread.
    let whole = unsafe { wal.read(&mut head, 0).ok()? };
    let header = WalHeader::decode(&head).filter(|_| whole);
    let commit = match header {
        Some(header) => last_commit_in(wal, Scan::from_header(&header)).ok()?,
        None => None,
    };
    Some(IndexHeader {
        position: match (commit, header) {
            (Some(commit), _) => commit.position,
            (None, Some(header)) => Position {
                checksum: [0, 0],
                ..header.position()
            },
            (None, None) => Position::default(),
        },
        page_size: header.map(|header| header.page_size),
        page_count: commit.map_or(0, |commit| commit.page_count),
        big_endian: header.is_some_and(|header| header.big_endian),
    })
}

/// From the database header, bytes 16 and 17. An empty file gets SQLite's default; it has no pages to which that matters.
fn page_size_of(file: &mut BaseFile) -> Result<PageSize, String> {
    let mut head = [0; 100];
    let whole = file
        .read(&mut head, 0)
        .map_err(|Code(code)| format!("reading the database failed with SQLite code {code}"))?;
    let field = u16::from_be_bytes([head[16], head[17]]);
    let size = if whole {
        PageSize::from_header_field(field)
    } else {
        PageSize::new(4096)
    };
    size.ok_or_else(|| format!("the database header names a page size of {field}, which SQLite does not have"))
}

fn pages_in(file: &mut BaseFile, page_size: PageSize) -> Result<u32, String> {
    let size = file
        .size()
        .map_err(|Code(code)| format!("asking for the database's size failed with SQLite code {code}"))?;
    u32::try_from(size.div_ceil(u64::from(page_size.get()))).map_err(|_| "the database file is too large".into())
}
