//! Whether the database file is what this process knows it to be, where there is no WAL; and bases there.
//!
//! In a rollback-journal mode nobody can write as long as any connection of this process has a lock on the file. Between two
//! transactions it usually has none, so the file as it was left is compared with what the next lock finds. Every SQLite that
//! writes moves the change counter in the header, in each of these modes, once it has the lock.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};

use libsqlite3_sys as ffi;

use super::attach::Found;
use super::continuity::{Fingerprint, is_wal_beside};
use super::database::{Capture, Connection, ConnectionState, Cursor, Database, MOVED};
use super::header::DatabaseHeader;
use crate::base::{Code, FileRef};
use crate::log::Wanted;
use crate::snapshot::Snapshot;
use crate::types::Position;

/// Why a base is not read where it would keep other processes from writing.
const AWAY: &str = "the store does not answer, and other processes could not write as long as the image waits for it";

/// The database file as this process left it, or found it, while nobody could write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    header: DatabaseHeader,
    print: Fingerprint,
}

impl Known {
    pub(super) fn with(header: DatabaseHeader, path: &Path) -> Option<Known> {
        Fingerprint::of(path).map(|print| Known { header, print })
    }
}

impl Database {
    /// The connection has a lock on the database file and no WAL: proves the cursor, and takes a base if one is wanted. Whether the cursor is
    /// where the database is.
    pub(crate) fn settle(&self, state: &mut ConnectionState) -> bool {
        let mut capture = self.capture();
        if let (None, false, Some(file)) = (state.wal, state.rollback.is_writing(), state.file) {
            // SAFETY: the connection's file, on its thread.
            match unsafe { DatabaseHeader::read(file) } {
                // SQLite opens a WAL that is beside the file whatever its header says: the connection does so next.
                Ok(Some(header)) if !header.is_wal() && is_wal_beside(&self.path) => return false,
                // SAFETY: as above; it has a lock (caller). Where WAL mode is left the header still says it.
                Ok(Some(header)) if !header.is_wal() || (state.strict.begins && !is_wal_beside(&self.path)) => unsafe {
                    self.settle_file(&mut capture, file, header)
                },
                // The connection will open the WAL next. As long as there is none, the file is all.
                Ok(Some(_)) if capture.cursor.is_some() && self.is_left_behind(&capture) => return true,
                // An empty file has nothing to log.
                _ => {}
            }
        }
        capture.cursor.is_some() && !self.unverified.load(Ordering::Acquire)
    }

    fn is_left_behind(&self, capture: &Capture) -> bool {
        let left_behind = capture.left_behind.is_some() && !is_wal_beside(&self.path);
        left_behind && capture.left_behind == Fingerprint::of(&self.path)
    }

    /// # Safety
    ///
    /// `file` is an open database file of a connection that has a lock on it, on its thread.
    unsafe fn settle_file(&self, capture: &mut Capture, file: FileRef, header: DatabaseHeader) {
        let proved = capture.cursor.is_none()
            || !self.unverified.load(Ordering::Acquire)
            || Known::with(header, &self.path).is_some_and(|now| is_known(capture, &now));
        if !proved || self.log.base_wanted() {
            // SAFETY: as promised by the caller.
            if unsafe { self.file_has_moved(capture, file) } {
                return;
            }
            // The connection is about to play the journal back, and lets go of EXCLUSIVE after that. With RESERVED somebody is writing it.
            // SAFETY: as above.
            if self.vfs.journal_is_hot(&self.c_path) && !unsafe { file.is_reserved() } {
                return;
            }
        }
        if self.unverified.swap(false, Ordering::AcqRel) && !proved {
            self.break_history(
                capture,
                "it was written by a process that does not replicate, or while this process did not have it open",
            );
        }
        let (wanted, question) = self.log.wanted();
        if let Wanted::Resume(resume) = wanted {
            self.resume_file(capture, resume, question, header);
        }
        if self.log.base_wanted() {
            match self.file_base(header) {
                Ok(found) => {
                    self.log_base(capture, found, question);
                    capture.known = Known::with(header, &self.path);
                }
                Err(reason) => self.no_base(capture, reason),
            }
        }
    }

    /// A connection is about to write to the file: the last opportunity to compare it.
    ///
    /// # Safety
    ///
    /// As for [`Database::settle_file`].
    pub(super) unsafe fn prove_file(&self, capture: &mut Capture, file: FileRef) {
        if capture.cursor.is_none() || !self.unverified.swap(false, Ordering::AcqRel) {
            return;
        }
        // SAFETY: as promised by the caller.
        let header = unsafe { DatabaseHeader::read(file) };
        let now = header.ok().flatten().and_then(|header| Known::with(header, &self.path));
        if !now.is_some_and(|now| is_known(capture, &now)) {
            self.break_history(
                capture,
                "it may have been written while this process did not have it open",
            );
        }
    }

    /// # Safety
    ///
    /// `file` is an open database file of a connection, on its thread.
    pub(super) unsafe fn file_has_moved(&self, capture: &mut Capture, file: FileRef) -> bool {
        // SAFETY: as promised by the caller.
        let moved = unsafe { file.has_moved() };
        if moved {
            capture.trouble = Some(MOVED.into());
        }
        moved
    }

    /// The same as [`Database::settle`] for a connection that may have no lock: it is given one meanwhile.
    pub(super) fn settle_unlocked(&self, state: &mut ConnectionState) -> bool {
        let (none, shared) = (ffi::SQLITE_LOCK_NONE, ffi::SQLITE_LOCK_SHARED);
        let Some(file) = state.file else { return false };
        if state.file_lock != none {
            return self.settle(state);
        }
        // SAFETY: the connection's file, on its thread. Its pager has no lock, and takes none before this returns.
        if unsafe { file.lock(shared) }.is_err() {
            return false;
        }
        self.count_holder(none, shared);
        state.file_lock = shared;
        let settled = self.settle(state);
        self.leave_file(state, || ());
        // SAFETY: as above.
        unsafe { file.unlock(none) };
        settled
    }

    /// A base that is read from the database file, at a time when it is whole and nobody can write.
    fn file_base(&self, header: DatabaseHeader) -> Result<Found, String> {
        let failed = |what: &'static str| move |Code(code): Code| format!("{what} failed with SQLite code {code}");
        let page_size = header
            .page_size()
            .ok_or("the database header names a page size that SQLite does not have")?;
        let mut file = self
            .vfs
            .open_database(&self.c_path, &self.parameters)
            .map_err(failed("opening the database again"))?;
        let bytes = file.size().map_err(failed("asking for the database's size"))?;
        let page_count = header.page_count(bytes, page_size);
        let (mut snapshot, shared) = Snapshot::copied(file, page_size, page_count, HashMap::new(), self.memory);
        snapshot
            .load_up_to(self.read_at_once)
            .map_err(|error| error.to_string())?;
        if !shared.is_loaded() && self.replica.is_away() {
            return Err(AWAY.into());
        }
        Ok(Found {
            cursor: Cursor {
                position: Position::NONE,
                page_size: Some(page_size),
                big_endian: false,
            },
            header: None,
            snapshot,
            shared,
        })
    }

    /// A connection is about to ask for the EXCLUSIVE file lock. It has SHARED at least, which keeps others from writing, and copies what it
    /// overwrites: the locks of our own would only be in its way.
    pub(crate) fn release_file(&self, state: &mut ConnectionState) {
        let snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut state.rollback.wants_file, true) {
            self.wanting.fetch_add(1, Ordering::AcqRel);
        }
        for shared in snapshots.iter().filter_map(Weak::upgrade) {
            shared.release();
        }
    }

    /// It did not get it, or is about to let it go.
    pub(crate) fn file_not_wanted(&self, state: &mut ConnectionState) {
        let _snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut state.rollback.wants_file) {
            self.wanting.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// A connection is about to let its last lock go: from here on locks of our own protect what is still being read. `step_down` takes the
    /// connection's lock to SHARED, beside which there is room for ours.
    pub(crate) fn leave_file(&self, state: &mut ConnectionState, step_down: impl FnOnce()) {
        let snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = snapshots.iter().filter_map(Weak::upgrade);
        let reading: Vec<Arc<_>> = reading.filter(|shared| shared.is_copied()).collect();
        if !reading.is_empty() {
            step_down();
        }
        let away = !reading.is_empty() && self.replica.is_away();
        // Who asks for EXCLUSIVE has a lock, and needs ours to be gone.
        if self.wanting.load(Ordering::Acquire) == 0 {
            for shared in &reading {
                let reason = if away {
                    AWAY
                } else if !shared.hold() && self.kept.holders() <= 1 {
                    // Another connection's PENDING refuses it; that one comes here as well.
                    "the database file could not be locked"
                } else {
                    continue;
                };
                shared.give_up(reason);
                self.log.request_base();
            }
        }
        self.count_holder(state.file_lock, ffi::SQLITE_LOCK_NONE);
        state.file_lock = ffi::SQLITE_LOCK_NONE;
        // The last reference may close a file.
        drop(snapshots);
    }

    /// A connection is about to close, and has no lock any more. If it is the last one and there is no WAL, it is written down how the file is left.
    pub(crate) fn leave_without_wal(&self, connection: &Connection) {
        if self.connections.load(Ordering::Acquire) > 1 || !self.replica.owns() || self.log.base_wanted() {
            return;
        }
        // Before the store was asked the numbers are not final, and nothing can be noted. The close waits for the upload anyway.
        if !self.log.is_settled() && self.capture().known.is_some() {
            self.replica.drain();
        }
        let state = connection.lock();
        let (None, Some(file)) = (state.wal, state.file) else {
            return;
        };
        let mut capture = self.capture();
        if capture.cursor.is_none() || capture.known.is_none() {
            return;
        }
        // SAFETY: the connection's file, on its thread. Its pager uses it no more. With the lock nobody can write.
        if unsafe { file.lock(ffi::SQLITE_LOCK_SHARED) }.is_err() {
            return;
        }
        // SAFETY: as above.
        let header = unsafe { DatabaseHeader::read(file) }.ok().flatten();
        let header = header.filter(|header| !header.is_wal());
        let now = header.and_then(|header| Known::with(header, &self.path));
        if let Some(header) = header
            && now == capture.known
            // SAFETY: as above.
            && let Some(print) = unsafe { self.leave(&capture, file) }
        {
            capture.held = Some(print);
            capture.known = Known::with(header, &self.path);
            self.note_file(&mut capture, Position::NONE, print);
        }
        // SAFETY: as above.
        unsafe { file.unlock(ffi::SQLITE_LOCK_NONE) };
    }

    /// What keeps other processes from writing for as long as the store does not answer.
    pub(super) fn give_up_held(&self) {
        let snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        let reading: Vec<Arc<_>> = snapshots.iter().filter_map(Weak::upgrade).collect();
        for shared in reading.iter().filter(|shared| shared.is_held()) {
            shared.give_up(AWAY);
            self.log.request_base();
        }
        drop(snapshots);
    }
}

fn is_known(capture: &Capture, now: &Known) -> bool {
    match (&capture.known, &capture.left_behind) {
        (Some(known), _) => known == now,
        (None, Some(left_behind)) => *left_behind == now.print,
        (None, None) => false,
    }
}
