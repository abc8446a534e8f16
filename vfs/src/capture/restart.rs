//! When a WAL may be restarted, what is carried over, and what is written down of its end.
//!
//! Owns the rule that a frame leaves the WAL only when it is in the store or in the spill file, and its one exception, `wal_limit`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::continuity::Fingerprint;
use super::database::{Capture, Connection, Cursor, Database};
use super::pin::{EXCLUSIVE_LOCK, EXCLUSIVE_UNLOCK, Pin};
use crate::base::{CHECKPOINT_SLOT, FIRST_READ_SLOT, FileRef, WRITE_SLOT};
use crate::resume::{Left, Mark, Next};
use crate::spill::{self, Spill};
use crate::transaction::Transaction;
use crate::types::{Position, Salts, Txid};
use crate::wal::{HEADER_BYTES, IndexHeader, WalHeader, restarted};

/// Frames that SQLite's default `wal_autocheckpoint` leaves in a WAL.
pub(super) const ORDINARY_FRAMES: u32 = 1000;
/// So much is always carried over, be memory_limit ever so small.
const CARRIED_AT_ONCE: u64 = 256 << 10;
/// And this part of the WAL, so that one which has grown comes to an end.
const CARRIED_PART: u64 = 4;
const ALL_READERS: (i32, i32) = (FIRST_READ_SLOT + 1, 4);

/// Whether the wal-index is where the cursor is. As long as a WAL has no frames its header keeps the checksum of the one before.
pub(super) fn is_at(cursor: Position, header: Position) -> bool {
    let same = (cursor.salts, cursor.frame) == (header.salts, header.frame);
    same && (header.frame == 0 || cursor.checksum == header.checksum)
}

impl Database {
    /// A connection asks for all read locks, to restart the WAL; it has the WRITE lock. If that is all right the pin has stepped aside on
    /// return, until [`Database::after_restart`].
    pub(crate) fn before_restart(&self, connection: &Connection) -> bool {
        let state = connection.lock();
        if state.checkpointing {
            self.give_images_up("a checkpoint restarts the WAL");
        }
        let mut capture = self.capture();
        let header = state.region.and_then(|region| region.header());
        if !self.may_restart(&mut capture, header, state.checkpointing) {
            if state.checkpointing {
                self.replica.hurry();
            }
            return false;
        }
        // Also where replication has ended, as long as the pin is there.
        if let Some(pin) = self.pin_lock().as_mut() {
            pin.release_slot();
        }
        let asks = state.checkpointing && !state.unanswered && !self.replica.owns();
        drop((capture, state));
        if asks {
            self.ask_aside(connection);
        }
        true
    }

    /// The request's locks went down, or were not given.
    pub(crate) fn after_restart(&self, connection: &Connection) {
        self.aside_is_over(connection);
        if let Some(pin) = self.held(&mut self.pin_lock()) {
            self.keep_again(pin);
        }
    }

    /// `header`: of the wal-index.
    pub(super) fn may_restart(&self, capture: &mut Capture, header: Option<IndexHeader>, checkpoints: bool) -> bool {
        if !self.replica.owns() && self.replica.take_over() {
            // Its owner has just died, and nobody has looked yet whether all of this WAL is in the store.
            self.take_pin();
            return false;
        }
        if !self.replica.owns() || self.log.failure().is_some() || self.log.is_suspended() {
            return !self.holds_wal();
        }
        let Some(header) = header else {
            return !self.holds_wal();
        };
        let wal_bytes = header.wal_bytes();
        let safe = match (self.log.unstored_bytes(), capture.cursor) {
            (Some(0), _) => true,
            // As long as the history has not begun, or after a break, no process could go on from the WAL anyway.
            (None, _) | (Some(_), None) => !self.holds_wal(),
            (Some(_), Some(cursor)) if !is_at(cursor.position, header.position) => false,
            (Some(_), Some(_)) => {
                // A checkpoint that was asked for succeeds as on plain SQLite, however much there is to carry.
                let (whole, again) = if checkpoints {
                    (self.replica.wal_limit(), self.replica.wal_limit())
                } else {
                    let small = (wal_bytes / CARRIED_PART).max(CARRIED_AT_ONCE);
                    (self.memory.max(small), (self.memory / 2).max(small))
                };
                self.carry_over(capture, whole, again)
            }
        };
        if !safe && wal_bytes > self.replica.wal_limit() {
            self.give_up_backlog(capture, wal_bytes);
            return !self.holds_wal();
        }
        safe
    }

    /// Everything that is not in the store is in the spill file afterwards, which grows to `whole` bytes at most. Of what was carried over before
    /// no more than `again` is written once more.
    fn carry_over(&self, capture: &mut Capture, whole: u64, again: u64) -> bool {
        let Some(unstored) = self.log.unstored_bytes() else {
            return false;
        };
        // Counted before anything is looked at: with a store that does not answer this is asked for at every commit.
        let since = |spill: &Spill| self.log.pushed_bytes().saturating_sub(spill.covers);
        if capture.spill.as_ref().map_or(unstored, since).min(unstored) > whole {
            return false;
        }
        let (last, there) = capture
            .spill
            .as_ref()
            .map_or((Txid::ZERO, 0), |spill| (spill.last(), spill.bytes()));
        let Some(mut missing) = self.log.unstored_after(last, whole) else {
            return false;
        };
        if !missing.iter().all(|transaction| transaction.is_from_wal()) {
            // What was written through a rollback journal is in memory alone until it is in the store, so nothing could go on from what
            // follows it either.
            self.rescue_ranges();
            return true;
        }
        let bytes: u64 = missing.iter().map(|transaction| transaction.wal_bytes()).sum();
        if self.log.oldest_unstored() > Some(last) {
            // What it holds is in the store by now.
            if !capture
                .spill
                .as_mut()
                .is_some_and(|spill| spill.begin_again(&self.path, whole))
            {
                capture.spill = None;
            }
        } else if there + bytes > whole {
            // A part of it may be.
            missing = match self.log.unstored_after(Txid::ZERO, again) {
                Some(missing) => missing,
                None => return false,
            };
            capture.spill = None;
        }
        match self.write_spill(capture, &missing) {
            Ok(()) => true,
            Err(error) => {
                crate::warning!(database = self.path.display(); "transactions cannot be carried over a restart of the WAL, which grows instead: {error}");
                capture.spill = None;
                false
            }
        }
    }

    fn write_spill(&self, capture: &mut Capture, missing: &[Arc<Transaction>]) -> std::io::Result<()> {
        let spill = match &mut capture.spill {
            Some(spill) => spill,
            none => none.insert(Spill::create(&self.path)?),
        };
        spill.append(missing)?;
        spill.covers = self.log.pushed_bytes();
        spill.publish()
    }

    /// All that was carried over is in the store.
    pub(super) fn forget_spill(&self, capture: &mut Capture) {
        if let Some(spill) = capture.spill.take() {
            spill.remove();
        }
    }

    /// The store does not answer, and the WAL has reached its limit: the history will have a discontinuity.
    pub(super) fn give_up_backlog(&self, capture: &mut Capture, wal_bytes: u64) {
        self.warn(&format!(
            "the WAL has {wal_bytes} bytes that are not in the replica, and wal_limit is {}: they will not be there one by one. As soon as the \
             replica answers, the history goes on with a new image",
            self.replica.wal_limit()
        ));
        capture.cursor = None;
        capture.broken = capture.started;
        // What is on its way to the store was read from the WAL when it was sealed. It stays referred to until the store answers, and must not
        // keep the WAL for so long.
        for transaction in self.log.unstored_after(Txid::ZERO, u64::MAX).unwrap_or_default() {
            if transaction.needs_wal() {
                transaction.lose_frames();
            }
        }
        self.log.suspend();
        self.forget_spill(capture);
        self.give_snapshots_up("wal_limit was reached");
        self.drop_pin();
    }

    /// The WAL is about to be overwritten by a connection that has the file for itself, and asks nobody.
    pub(crate) fn before_wal_is_lost(&self) {
        let mut capture = self.capture();
        if self.log.unstored_bytes() == Some(0) && !self.holds_wal() {
            return;
        }
        let limit = self.replica.wal_limit();
        let settled = self.log.unstored_bytes().is_some() && capture.cursor.is_some();
        if settled && self.carry_over(&mut capture, limit, limit) {
            return;
        }
        if let Some(unstored) = self.log.unstored_bytes().filter(|bytes| settled && *bytes > limit) {
            return self.give_up_backlog(&mut capture, unstored);
        }
        if self.holds_wal() {
            self.rescue_ranges();
        }
    }

    /// Copies what is still to be read from the WAL, for this process alone.
    fn rescue_ranges(&self) {
        let file = self.spill_file().map(Arc::new);
        let mut at = 0;
        for transaction in self.log.unstored_after(Txid::ZERO, u64::MAX).unwrap_or_default() {
            if !transaction.needs_wal() {
                continue;
            }
            let copied = file.as_ref().is_ok_and(|file| {
                let copied = transaction.copy_frames(file, at).is_ok();
                if copied {
                    transaction.frames_moved_to(file, at);
                }
                copied
            });
            if copied {
                at += transaction.wal_bytes();
            } else {
                crate::failure!(database = self.path.display(); "a large transaction could not be copied before the WAL was overwritten");
                transaction.lose_frames();
            }
        }
    }

    /// The header of a new WAL is about to be written, with these salts.
    pub(crate) fn wal_begins(&self, header: &[u8]) {
        let Some(header) = header.first_chunk::<HEADER_BYTES>().and_then(WalHeader::decode) else {
            return;
        };
        let mut capture = self.capture();
        self.note_wal(&mut capture, header.salts);
    }

    /// Writes down that the WAL with these salts follows on what was captured last.
    pub(super) fn note_wal(&self, capture: &mut Capture, salts: Salts) {
        let Some(cursor) = capture.cursor else { return };
        if capture.noted == Some(salts) || self.wants_attention() {
            return;
        }
        let end = capture.ended.unwrap_or(cursor.position);
        if self.note(end, Next::Wal(salts)) {
            capture.noted = Some(salts);
        }
    }

    /// Writes down that there is no WAL any more, and the database file is all. Called while nobody else can write to it.
    pub(super) fn note_file(&self, capture: &mut Capture, end: Position, file: Fingerprint) {
        capture.noted = None;
        self.note(end, Next::File(file));
    }

    fn note(&self, end: Position, next: Next) -> bool {
        // What is dropped has no number: the newest one would be said to be the state of what came after it.
        let drops = self.log.is_suspended() || self.log.is_dropping() || self.log.failure().is_some();
        if !self.replica.owns() || !self.log.is_settled() || drops {
            return false;
        }
        let Some(txid) = self.log.last_txid() else { return false };
        let mark = Mark { txid, position: end };
        let noted = self.replica.left(&Left { mark, next });
        if !noted {
            crate::warning!(
                database = self.path.display();
                "where the WAL ends cannot be written down: after a crash the history would go on with a new image"
            );
        }
        noted
    }

    /// The WAL was cut to nothing, by a checkpoint or by a connection that has the file for itself.
    pub(crate) fn wal_truncated(&self, file: Option<FileRef>) {
        let mut capture = self.capture();
        if self.wants_attention() {
            return; // It is not even known yet what was in it.
        }
        let Some(cursor) = capture.cursor else { return };
        let end = capture.ended.unwrap_or(cursor.position);
        // SAFETY: the connection's file, on its thread.
        if let Some(print) = file.and_then(|file| unsafe { self.leave(&capture, file) }) {
            capture.held = Some(print);
            self.note_file(&mut capture, end, print);
        }
    }

    /// As [`Fingerprint::leave`], of the database that `file` has open: by now the name may lead to another. `None` also with a hot journal.
    ///
    /// # Safety
    ///
    /// `file` is open, and used by this thread alone.
    pub(super) unsafe fn leave(&self, capture: &Capture, file: FileRef) -> Option<Fingerprint> {
        if !self.replica.owns() {
            return None; // It sets a time stamp, and the owner's note is of another.
        }
        if self.vfs.journal_is_hot(&self.c_path) {
            return None;
        }
        let print = Fingerprint::leave(&self.path, self.host.now(), capture.held)?;
        // SAFETY: as promised by the caller.
        (!unsafe { file.has_moved() }).then_some(print)
    }

    /// The WAL by its name, to be cut, if it is the one with these salts: the files may have been renamed, and others stand there now. It carries no
    /// locks, so it may be opened and closed by its name.
    fn wal_with(&self, salts: Salts) -> Option<File> {
        let mut path = self.path.clone().into_os_string();
        path.push("-wal");
        let file = File::options().read(true).write(true).open(path).ok()?;
        let mut head = [0; HEADER_BYTES];
        file.read_exact_at(&mut head, 0).ok()?;
        WalHeader::decode(&head)
            .is_some_and(|header| header.salts == salts)
            .then_some(file)
    }

    /// Restarts a WAL that the pin keeps only other processes from restarting (`walRestartHdr`, as `wal_checkpoint(TRUNCATE)` does it). Not
    /// where a connection of this process wrote last: it restarts the WAL itself, and if it is alone with the database it may not expect to find
    /// it locked, or changed since it began to read.
    /// `Some` with its bytes when it may not go yet, and is larger than `wal_limit`.
    pub(super) fn restart_for_others(&self, capture: &mut Capture, pin: &mut Pin) -> Option<u64> {
        let cursor = capture.cursor.filter(|_| capture.foreign)?;
        let region = pin.region;
        let header = region.header()?;
        let due = |header: &IndexHeader| {
            header.position == cursor.position
                && header.position.frame > ORDINARY_FRAMES
                && region.backfilled() == header.position.frame
        };
        if !due(&header) {
            return None;
        }
        if self.log.unstored_bytes() != Some(0) {
            return Some(header.wal_bytes()).filter(|bytes| *bytes > self.replica.wal_limit());
        }
        if pin.file.shm_lock(WRITE_SLOT, EXCLUSIVE_LOCK).is_err() {
            return None;
        }
        // Under the WRITE lock nobody commits.
        if region.header().as_ref().is_some_and(due) && pin.file.shm_lock(CHECKPOINT_SLOT, EXCLUSIVE_LOCK).is_ok() {
            pin.release_slot();
            let (first, count) = ALL_READERS;
            if pin.file.shm_lock_many(first, count, EXCLUSIVE_LOCK).is_ok() {
                self.restart_now(capture, pin, cursor);
                let _ = pin.file.shm_lock_many(first, count, EXCLUSIVE_UNLOCK);
            }
            self.keep_again(pin);
            let _ = pin.file.shm_lock(CHECKPOINT_SLOT, EXCLUSIVE_UNLOCK);
        }
        let _ = pin.file.shm_lock(WRITE_SLOT, EXCLUSIVE_UNLOCK);
        None
    }

    fn restart_now(&self, capture: &mut Capture, pin: &mut Pin, cursor: Cursor) {
        let bytes = restarted(&pin.region.header_bytes(0), self.vfs.random());
        let Some((header, wal)) = IndexHeader::decode(&bytes).zip(self.wal_with(cursor.position.salts)) else {
            return;
        };
        let region = pin.region;
        region.restart(&mut pin.file, &bytes);
        if let Err(error) = wal.set_len(0) {
            tracing::debug!(database = %self.path.display(), %error, "the WAL was restarted, but not cut");
        }
        capture.cursor = Some(Cursor {
            position: header.position,
            ..cursor
        });
        capture.ended = Some(cursor.position);
        // SAFETY: the pin's file, under its lock.
        if let Some(print) = unsafe { self.leave(capture, pin.file.as_ref()) } {
            capture.held = Some(print);
            self.note_file(capture, cursor.position, print);
        }
    }

    /// The next process begins without what was carried over by one before.
    pub(super) fn remove_stale_spill(&self) {
        let _ = std::fs::remove_file(spill::path_for(&self.path));
    }
}
