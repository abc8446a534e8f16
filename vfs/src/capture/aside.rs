//! A checkpoint of a process that stands by restarts the WAL: the process that replicates steps aside for it.
//!
//! Owns the time in which the pin's slot is not held though replication goes on. The other process has the WRITE lock all that time, so nothing is committed, and what
//! is committed was captured before. It tells which salts it has given the WAL: with them the cursor goes on at its start, where else a WAL with other salts proves nothing. Without
//! that word (it died, or has nothing restarted) the cursor stays, and what is found next is judged as ever.

use std::sync::atomic::Ordering;

use super::database::{Capture, Connection, Cursor, Database};
use super::pin::{EXCLUSIVE_LOCK, EXCLUSIVE_UNLOCK};
use crate::base::WRITE_SLOT;
use crate::host::Aside;
use crate::types::{Position, Salts};

/// What a connection of a process that stands by keeps while the other one has stepped aside.
pub(super) struct Asked {
    aside: Box<dyn Aside>,
    /// Of the WAL that it is about to restart.
    before: Option<Salts>,
}

/// In the process that stands by.
impl Database {
    /// The pin of another process would refuse what a checkpoint is about to ask for.
    pub(super) fn ask_aside(&self, connection: &Connection) {
        let before = salts(connection);
        // Without a lock of ours: the other process may take a moment.
        let aside = self.replica.ask_aside();
        connection.lock().asked = aside.map(|aside| Asked { aside, before });
    }

    /// The request's locks went down, and WRITE is still held; or they were not given.
    pub(super) fn aside_is_over(&self, connection: &Connection) {
        let Some(Asked { aside, before }) = connection.lock().asked.take() else {
            return;
        };
        let now = salts(connection);
        aside.over(now.filter(|_| before.is_some() && now != before));
    }
}

fn salts(connection: &Connection) -> Option<Salts> {
    let region = connection.lock().region?;
    region.header().map(|header| header.position.salts)
}

/// In the process that replicates.
impl Database {
    /// The pin's slot is free for another process, until [`Database::come_back`] with the number that is returned.
    pub(super) fn step_aside_for_another(&self) -> Option<u64> {
        self.end_aside();
        self.give_images_up("a checkpoint of another process restarts the WAL");
        let mut capture = self.capture();
        let region = {
            let mut guard = self.pin_lock();
            let pin = guard.as_mut().filter(|_| self.pinned.load(Ordering::Acquire))?;
            // The question may have come too late, or be about a file that has the name no more.
            if pin.file.shm_lock(WRITE_SLOT, EXCLUSIVE_LOCK).is_ok() {
                let _ = pin.file.shm_lock(WRITE_SLOT, EXCLUSIVE_UNLOCK);
                return None;
            }
            let (region, wal) = (pin.region, pin.wal(self)?);
            if self.wants_attention() || !self.sync_with(&mut capture, region, wal) {
                return None;
            }
            region
        };
        let (cursor, header) = (capture.cursor?, region.header()?);
        if !super::restart::is_at(cursor.position, header.position) {
            return None;
        }
        if !self.may_restart(&mut capture, Some(region), true) {
            self.replica.hurry();
            return None;
        }
        let mut guard = self.pin_lock();
        let pin = guard.as_mut().filter(|_| self.pinned.load(Ordering::Acquire))?;
        self.unbroken.store(false, Ordering::Release);
        capture.aside_times += 1;
        capture.aside_at = Some(cursor.position);
        self.aside.store(capture.aside_times, Ordering::Release);
        pin.release_slot();
        Some(capture.aside_times)
    }

    /// The pin's slot is taken again. With the salts of the WAL that the other process has begun, if it has, before which nothing else was committed.
    pub(super) fn come_back_from(&self, which: u64, restarted: Option<Salts>) {
        let mut capture = self.capture();
        if self.aside.load(Ordering::Acquire) == which {
            self.take_slot_again(&mut capture, restarted);
        }
    }

    /// Whoever got the WRITE lock meanwhile: the other process is gone.
    pub(super) fn end_aside(&self) {
        if self.is_aside() {
            self.take_slot_again(&mut self.capture(), None);
        }
    }

    /// Nothing is to be judged by what the wal-index says.
    pub(super) fn is_aside(&self) -> bool {
        self.aside.load(Ordering::Acquire) != 0
    }

    fn take_slot_again(&self, capture: &mut Capture, restarted: Option<Salts>) {
        let at = capture.aside_at.take();
        self.aside.store(0, Ordering::Release);
        let mut guard = self.pin_lock();
        let Some(pin) = guard.as_mut().filter(|_| self.pinned.load(Ordering::Acquire)) else {
            return;
        };
        let is_held = pin.take_slot();
        if !is_held {
            self.slot_released();
        }
        let (Some(salts), Some(cursor), Some(header)) = (restarted, capture.cursor, pin.region.header()) else {
            return;
        };
        // What was told is of another file, or there was another restart since.
        let follows = salts.0 == cursor.position.salts.0.wrapping_add(1);
        if header.position.salts != salts || at != Some(cursor.position) || !follows {
            return;
        }
        if cursor.position.frame > 0 {
            capture.ended = at;
        }
        let position = Position {
            salts,
            frame: 0,
            checksum: [0, 0],
        };
        capture.cursor = Some(Cursor { position, ..cursor });
        if header.position.frame > 0 || !is_held {
            return;
        }
        self.unbroken.store(true, Ordering::Release);
        // SAFETY: the pin's file, under its lock.
        if let Some(print) = unsafe { self.leave(capture, pin.file.as_ref()) } {
            capture.held = Some(print);
            let end = capture.ended.unwrap_or(position);
            self.note_file(capture, end, print);
        }
    }
}
