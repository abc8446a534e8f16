//! What keeps the WAL until everything in it is in the store: a handle of our own with a SHARED lock on the database and a WAL read lock whose
//! mark says that it reads nothing from the WAL.
//!
//! Such a lock lets checkpoints write everything back and readers come and go, but no process can restart, truncate or delete the WAL:
//! for that SQLite wants all read locks, or the database file, for itself. Owns the handle; `restart` decides when it steps aside.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use libsqlite3_sys as ffi;

use super::continuity::is_wal_beside;
use super::database::{Capture, Database};
use super::restart::is_at;
use crate::base::{BaseFile, Code, FIRST_READ_SLOT, FileRef, IndexRegion, WRITE_SLOT};
use crate::host::FlushError;
use crate::log::Capturing;
use crate::types::Salts;
use crate::wal::READ_MARK_NOT_USED;

pub(super) const SHARED_LOCK: i32 = ffi::SQLITE_SHM_LOCK | ffi::SQLITE_SHM_SHARED;
pub(super) const SHARED_UNLOCK: i32 = ffi::SQLITE_SHM_UNLOCK | ffi::SQLITE_SHM_SHARED;
pub(super) const EXCLUSIVE_LOCK: i32 = ffi::SQLITE_SHM_LOCK | ffi::SQLITE_SHM_EXCLUSIVE;
pub(super) const EXCLUSIVE_UNLOCK: i32 = ffi::SQLITE_SHM_UNLOCK | ffi::SQLITE_SHM_EXCLUSIVE;

/// In this order: readers try the first ones first, and a recovery that finds the last one in use returns `SQLITE_BUSY` for all it has
/// done (`walIndexRecover`).
const SLOTS: [i32; 4] = [3, 2, 4, 1];

#[derive(Debug)]
pub(crate) struct Pin {
    pub(super) file: BaseFile,
    /// Of `file`: not used after it is unmapped.
    pub(super) region: IndexRegion,
    /// Opened when it is first read.
    wal: Option<BaseFile>,
    /// The `xShmLock` slot that is held SHARED.
    slot: Option<i32>,
}

impl Pin {
    /// SHARED on the database and the wal-index mapped, but no slot yet.
    fn open(database: &Database) -> Result<Pin, Code> {
        let mut file = database.vfs.open_database(&database.c_path, &database.parameters)?;
        file.lock_shared()?;
        // Under that lock nobody closes as the last one. Who has, has removed the wal-index, which would be made anew here and left behind.
        if database.wal_connections.load(Ordering::Acquire) == 0 && !is_wal_beside(&database.path) {
            file.unlock();
            return Err(Code(ffi::SQLITE_CANTOPEN));
        }
        let mapped = file.map_index();
        if let Ok(Some(region)) = mapped {
            return Ok(Pin {
                file,
                region,
                wal: None,
                slot: None,
            });
        }
        // Even a mapping that failed may have joined the shared memory, which a close alone does not leave.
        file.unmap_index();
        file.unlock();
        mapped.and(Err(Code(ffi::SQLITE_IOERR_SHMMAP)))
    }

    pub(super) fn take_slot(&mut self) -> bool {
        if self.slot.is_some() {
            return true;
        }
        for index in SLOTS {
            let slot = FIRST_READ_SLOT + index;
            if self.file.shm_lock(slot, EXCLUSIVE_LOCK).is_err() {
                continue;
            }
            let mark = usize::try_from(index).unwrap_or(0);
            self.region.set_read_mark(mark, READ_MARK_NOT_USED);
            let _ = self.file.shm_lock(slot, EXCLUSIVE_UNLOCK);
            if self.file.shm_lock(slot, SHARED_LOCK).is_err() {
                continue;
            }
            if self.region.read_mark(mark) == READ_MARK_NOT_USED {
                self.slot = Some(slot);
                return true;
            }
            // A reader was faster: with its mark the lock would hold back checkpoints.
            let _ = self.file.shm_lock(slot, SHARED_UNLOCK);
        }
        false
    }

    /// Nobody writes at this moment, nor checkpoints but passively.
    pub(super) fn is_write_free(&mut self) -> bool {
        let is_free = self.file.shm_lock(WRITE_SLOT, EXCLUSIVE_LOCK).is_ok();
        if is_free {
            let _ = self.file.shm_lock(WRITE_SLOT, EXCLUSIVE_UNLOCK);
        }
        is_free
    }

    pub(super) fn release_slot(&mut self) {
        if let Some(slot) = self.slot.take() {
            let _ = self.file.shm_lock(slot, SHARED_UNLOCK);
        }
    }

    /// The WAL, for reading. Not to be used after the pin.
    pub(super) fn wal(&mut self, database: &Database) -> Option<FileRef> {
        if self.wal.is_none() {
            self.wal = database.vfs.open_wal(&database.c_path).ok();
        }
        self.wal.as_ref().map(BaseFile::as_ref)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // The order of SQLite's own readers: read lock, wal-index, file lock; BaseFile closes.
        self.release_slot();
        self.file.unmap_index();
        self.file.unlock();
    }
}

impl Database {
    pub(super) fn pin_lock(&self) -> MutexGuard<'_, Option<Pin>> {
        self.pin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the WAL from now on, if this process replicates. Called while a connection has a WAL open. What does not work now is
    /// tried again with the next write lock or flush tick.
    pub(super) fn take_pin(&self) {
        if self.kept.is_held() || !self.replica.owns() || self.log.is_suspended() {
            return;
        }
        let mut pin = self.pin_lock();
        // A connection that waits for the file for itself has had it dropped under this lock, and so has a log that failed.
        if self.making_way.load(Ordering::Acquire) > 0 || self.log.failure().is_some() {
            return;
        }
        if pin.is_none() {
            match Pin::open(self) {
                Ok(opened) => *pin = Some(opened),
                Err(Code(code)) => {
                    tracing::debug!(database = %self.path.display(), code, "the WAL cannot be pinned now");
                    return;
                }
            }
        }
        if let Some(pin) = pin.as_mut()
            && pin.take_slot()
        {
            self.kept.hold();
        }
    }

    /// A connection with a WAL and without a pin: worth another try.
    pub(crate) fn lacks_pin(&self) -> bool {
        !self.kept.is_held() && self.replica.owns()
    }

    /// Whether a connection's file was renamed or replaced: the pin is on another one by now.
    pub(super) fn is_of_another_file(&self, region: IndexRegion) -> bool {
        self.kept.is_held() && self.pin_lock().as_ref().is_some_and(|pin| !pin.region.is(region))
    }

    /// Lets the WAL, and the database file, go.
    pub(crate) fn drop_pin(&self) {
        let dropped = {
            let mut pin = self.pin_lock();
            let dropped = pin.take();
            // Before the locks go.
            if dropped.is_some() && self.kept.let_go() {
                self.unverified.store(true, Ordering::Release);
            }
            dropped
        };
        drop(dropped);
    }

    /// In a child of `fork()`: see `State::close_inherited` of the shim. The calls to the base VFS change its memory alone, since this process has
    /// none of the locks that they let go.
    pub(crate) fn close_inherited(&self) {
        if let Ok(mut pin) = self.pin.try_lock() {
            drop(pin.take());
        }
        if let Ok(snapshots) = self.snapshots.try_lock() {
            for shared in snapshots.iter().filter_map(Weak::upgrade) {
                shared.try_give_up("it is the parent's");
                // Its other owners are threads that are not here.
                std::mem::forget(shared);
            }
        }
    }

    /// All that was committed is judged. Where the cursor is at the wal-index while the WAL is kept, only those can restart it from here on whom the pin lets.
    pub(super) fn is_proved(&self, capture: &Capture, region: IndexRegion) {
        // Before the look at the wal-index.
        let Some(time) = self.kept.time().filter(|_| !self.is_aside()) else {
            return;
        };
        // Of a cursor that is to be proved again it is not asked yet.
        if self.kept.is_unbroken() || self.unverified.load(Ordering::Acquire) {
            return;
        }
        let there = capture.cursor.zip(region.header());
        if there.is_some_and(|(cursor, header)| is_at(cursor.position, header.position)) {
            self.kept.prove(time);
        }
    }

    /// The pin, while its slot is held.
    pub(super) fn held<'a>(&self, guard: &'a mut MutexGuard<'_, Option<Pin>>) -> Option<&'a mut Pin> {
        guard.as_mut().filter(|_| self.kept.is_held())
    }

    /// Takes the slot of a pin that had stepped aside, if it can be had.
    pub(super) fn keep_again(&self, pin: &mut Pin) -> bool {
        let is_held = pin.take_slot();
        if !is_held {
            self.kept.let_go();
        }
        is_held
    }
}

impl Capturing for Database {
    fn is_pinned(&self) -> bool {
        self.kept.is_held()
    }

    fn is_to_be_watched(&self) -> bool {
        self.is_pinned() || self.wal_connections.load(Ordering::Acquire) > 0 && self.replica.owns()
    }

    fn wal_bytes(&self) -> u64 {
        let pin = self.pin_lock();
        let header = pin.as_ref().and_then(|pin| pin.region.header());
        header.map_or(0, |header| header.wal_bytes())
    }

    fn wal_bytes_now(&self) -> Option<u64> {
        let pin = self.pin.try_lock().ok()?;
        let header = pin.as_ref().and_then(|pin| pin.region.header());
        Some(header.map_or(0, |header| header.wal_bytes()))
    }

    fn has_news(&self) -> bool {
        if self.connections.load(Ordering::Acquire) == 0 || !self.kept.is_held() {
            return true; // Something to take or to let go.
        }
        if self.is_aside() {
            return false;
        }
        let Ok(capture) = self.capture.try_lock() else {
            return false; // A connection of this process is at work there.
        };
        if self.wants_attention() || capture.spill.is_some() || self.has_image_business() {
            return true;
        }
        let Some(cursor) = capture.cursor else { return false };
        let Ok(pin) = self.pin.try_lock() else { return false };
        pin.as_ref().is_some_and(|pin| {
            let restartable = |frame: u32| pin.region.backfilled() == frame && self.log.unstored_bytes() == Some(0);
            pin.region.header().is_some_and(|header| {
                header.position.salts != cursor.position.salts
                    || header.position.frame != cursor.position.frame
                    || capture.foreign
                        && header.position.frame > super::restart::ORDINARY_FRAMES
                        && restartable(header.position.frame)
            })
        })
    }

    fn let_writers_by(&self) {
        self.give_up_held();
        self.give_images_up("the store does not answer, and the WAL is not kept for an image that is merely due");
    }

    fn attend(self: Arc<Self>) -> Result<(), FlushError> {
        self.attend_alone()
    }

    fn step_aside(&self) -> Option<u64> {
        self.step_aside_for_another()
    }

    fn is_alone_aside(&self, which: u64) -> bool {
        self.is_left_by_who_asked(which)
    }

    fn come_back(&self, which: u64, now: Option<Salts>) {
        self.come_back_from(which, now);
    }

    fn look(&self) {
        if self.log.failure().is_some() {
            return self.drop_pin(); // Nothing that is in the WAL is waited for any more.
        }
        if self.connections.load(Ordering::Acquire) == 0 {
            let mut capture = self.capture();
            if self.log.unstored_bytes().is_none_or(|bytes| bytes == 0) {
                self.forget_spill(&mut capture);
                self.drop_pin();
            }
            return;
        }
        if !self.has_wal() {
            return;
        }
        self.take_pin();
        let mut capture = self.capture();
        if self.log.unstored_bytes() == Some(0) {
            self.forget_spill(&mut capture);
        }
        let mut guard = self.pin_lock();
        let Some(pin) = self.held(&mut guard) else {
            return;
        };
        let past_limit = self.look_through(&mut capture, pin);
        drop(guard);
        if let Some(wal_bytes) = past_limit {
            self.give_up_backlog(&mut capture, wal_bytes);
        }
    }
}

impl Database {
    /// The bytes of a WAL that could go, but for a store that does not answer, when they are past `wal_limit`.
    fn look_through(&self, capture: &mut Capture, pin: &mut Pin) -> Option<u64> {
        if self.is_aside() {
            return None;
        }
        let region = pin.region;
        let wal = pin.wal(self)?;
        if self.wants_attention() {
            self.attach_shared(capture, region, wal);
        }
        self.sync_with(capture, region, wal);
        self.attend_images(capture, region, wal);
        self.restart_for_others(capture, pin)
    }
}
