//! When a WAL may be restarted, what is carried over, and what is written down of its end.
//!
//! Owns the rule that a frame leaves the WAL only when it is in the store or in the spill file, and its one exception, `wal_limit`.

use std::sync::atomic::Ordering;

use super::continuity::Fingerprint;
use super::database::{Capture, Connection, ConnectionState, Cursor, Database};
use super::pin::{EXCLUSIVE_LOCK, EXCLUSIVE_UNLOCK, Pin};
use crate::base::{CHECKPOINT_SLOT, FIRST_READ_SLOT, WRITE_SLOT};
use crate::resume::{Left, Mark, Next};
use crate::spill::{self, Spill};
use crate::types::{Position, Salts, Txid};
use crate::wal::{HEADER_BYTES, IndexHeader, WalHeader, restarted};

/// Frames that SQLite's default `wal_autocheckpoint` leaves in a WAL.
pub(super) const ORDINARY_FRAMES: u32 = 1000;
/// So much is always carried over: it is written faster than a pause would be noticed.
const CARRIED_AT_ONCE: u64 = 256 << 10;
/// Else no more than this part of the WAL, so that carrying over is a small part of what writing costs.
const CARRIED_PART: u64 = 4;
const ALL_READERS: (i32, i32) = (FIRST_READ_SLOT + 1, 4);

/// Whether the wal-index is where the cursor is. As long as a WAL has no frames its header keeps the checksum of the one before.
fn is_at(cursor: Position, header: Position) -> bool {
    let same = (cursor.salts, cursor.frame) == (header.salts, header.frame);
    same && (header.frame == 0 || cursor.checksum == header.checksum)
}

impl Database {
    /// A connection asks for all read locks, to restart the WAL; it has the WRITE lock. If that is all right the pin has stepped aside on
    /// return, until [`Database::after_restart`].
    pub(crate) fn before_restart(&self, connection: &Connection) -> bool {
        let state = connection.lock();
        let mut capture = self.capture();
        if !self.may_restart(&mut capture, &state) {
            if state.checkpointing {
                self.replica.hurry();
            }
            return false;
        }
        if let Some(pin) = self.pin_lock().as_mut() {
            pin.release_slot();
        }
        true
    }

    /// The request's locks went down, or were not given.
    pub(crate) fn after_restart(&self) {
        if let Some(pin) = self.pin_lock().as_mut()
            && self.pinned.load(Ordering::Acquire)
            && !pin.take_slot()
        {
            self.slot_released();
        }
    }

    fn may_restart(&self, capture: &mut Capture, state: &ConnectionState) -> bool {
        if !self.replica.owns() || self.log.failure().is_some() || self.log.is_suspended() {
            return !self.holds_wal();
        }
        let Some(header) = state.region.and_then(|region| region.header()) else {
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
                let (limit, whole) = if state.checkpointing {
                    (self.replica.wal_limit(), self.replica.wal_limit())
                } else {
                    ((wal_bytes / CARRIED_PART).max(CARRIED_AT_ONCE), self.memory)
                };
                self.carry_over(capture, limit, whole)
            }
        };
        if !safe && wal_bytes > self.replica.wal_limit() {
            self.give_up_backlog(capture, wal_bytes);
            return !self.holds_wal();
        }
        safe
    }

    /// Everything that is not in the store is in the spill file afterwards, which grows by `limit` bytes and to `whole` at most.
    fn carry_over(&self, capture: &mut Capture, limit: u64, whole: u64) -> bool {
        let Some(unstored) = self.log.unstored_bytes() else {
            return false;
        };
        let (last, there) = capture
            .spill
            .as_ref()
            .map_or((Txid::ZERO, 0), |spill| (spill.last(), spill.bytes()));
        let Some(missing) = self.log.unstored_after(last, limit) else {
            return false;
        };
        let bytes: u64 = missing.iter().map(|transaction| transaction.wal_bytes()).sum();
        if there + bytes > whole || self.log.oldest_unstored() > Some(last) {
            // What it holds is in the store by now, at least in part: begin anew with what is not.
            if unstored > whole / 2 {
                return false;
            }
            capture.spill = None;
        }
        match self.write_spill(capture) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(database = %self.path.display(), %error, "transactions cannot be carried over a restart of the WAL; it grows instead");
                capture.spill = None;
                false
            }
        }
    }

    fn write_spill(&self, capture: &mut Capture) -> std::io::Result<()> {
        let spill = match &mut capture.spill {
            Some(spill) => spill,
            none => none.insert(Spill::create(&self.path)?),
        };
        for transaction in self.log.unstored_after(spill.last(), u64::MAX).unwrap_or_default() {
            spill.append(&transaction)?;
        }
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
        if self.holds_wal() && self.write_spill(&mut capture).is_err() {
            for transaction in self.log.unstored_after(Txid::ZERO, u64::MAX).unwrap_or_default() {
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
        if !self.replica.owns() || !self.log.is_settled() || self.log.is_suspended() {
            return false;
        }
        let Some(txid) = self.log.last_txid() else { return false };
        let mark = Mark { txid, position: end };
        let noted = self.replica.left(&Left { mark, next });
        if !noted {
            tracing::warn!(
                database = %self.path.display(),
                "where the WAL ends cannot be written down: after a crash the history would go on with a new image"
            );
        }
        noted
    }

    /// The WAL was cut to nothing, by a checkpoint or by a connection that has the file for itself.
    pub(crate) fn wal_truncated(&self) {
        let mut capture = self.capture();
        if self.wants_attention() {
            return; // It is not even known yet what was in it.
        }
        let Some(cursor) = capture.cursor else { return };
        let end = capture.ended.unwrap_or(cursor.position);
        if let Some(file) = Fingerprint::leave(&self.path, self.host.now(), capture.held) {
            capture.held = Some(file);
            self.note_file(&mut capture, end, file);
        }
    }

    /// Restarts a WAL that the pin keeps only other processes from restarting (`walRestartHdr`, as `wal_checkpoint(TRUNCATE)` does it).
    /// `Some` with its bytes when it may not go yet, and is larger than `wal_limit`.
    pub(super) fn restart_for_others(&self, capture: &mut Capture, pin: &mut Pin) -> Option<u64> {
        let cursor = capture.cursor?;
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
            if !pin.take_slot() {
                self.slot_released();
            }
            let _ = pin.file.shm_lock(CHECKPOINT_SLOT, EXCLUSIVE_UNLOCK);
        }
        let _ = pin.file.shm_lock(WRITE_SLOT, EXCLUSIVE_UNLOCK);
        None
    }

    fn restart_now(&self, capture: &mut Capture, pin: &mut Pin, cursor: Cursor) {
        let bytes = restarted(&pin.region.header_bytes(0), self.vfs.random());
        let Some(header) = IndexHeader::decode(&bytes) else {
            return;
        };
        let region = pin.region;
        region.restart(&mut pin.file, &bytes);
        let mut wal = self.path.clone().into_os_string();
        wal.push("-wal");
        // A WAL carries no locks, so it may be opened and closed by its name.
        if let Err(error) = std::fs::OpenOptions::new()
            .write(true)
            .open(wal)
            .and_then(|wal| wal.set_len(0))
        {
            tracing::debug!(database = %self.path.display(), %error, "the WAL was restarted, but not cut");
        }
        capture.cursor = Some(Cursor {
            position: header.position,
            ..cursor
        });
        capture.ended = Some(cursor.position);
        if let Some(file) = Fingerprint::leave(&self.path, self.host.now(), capture.held) {
            capture.held = Some(file);
            self.note_file(capture, cursor.position, file);
        }
    }

    /// The next process begins without what was carried over by one before.
    pub(super) fn remove_stale_spill(&self) {
        let _ = std::fs::remove_file(spill::path_for(&self.path));
    }
}
