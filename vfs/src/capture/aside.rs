//! A checkpoint of a process that stands by restarts the WAL: the process that replicates steps aside for it.
//!
//! Owns the time in which the pin's slot is not held though replication goes on. The other process has the WRITE lock all that time, so nothing is committed, and what
//! is committed was captured before. It tells which salts the WAL has then: if they are new the cursor goes on at its start, where else a WAL with other salts proves nothing. Without
//! that word (it died) the cursor stays, and what is found next is judged as ever.

use std::sync::atomic::Ordering;

use super::database::{Capture, Connection, Cursor, Database};
use super::kept::Time;
use super::pin::Pin;
use super::restart::is_at;
use crate::host::AskedAside;
use crate::types::{Position, Salts};

/// In the process that stands by.
impl Database {
    /// The pin of another process would refuse what a checkpoint is about to ask for.
    pub(super) fn ask_aside(&self, connection: &Connection) {
        // Without a lock of ours: the other process may take a moment.
        let asked = self.replica.ask_aside();
        let mut state = connection.lock();
        match asked {
            AskedAside::Aside(aside) => state.asked = Some(aside),
            AskedAside::No => {}
            AskedAside::Silent => state.unanswered = true,
        }
    }

    /// The request's locks went down, and WRITE is still held; or they were not given.
    pub(super) fn aside_is_over(&self, connection: &Connection) {
        let (asked, region) = {
            let mut state = connection.lock();
            (state.asked.take(), state.region)
        };
        if let Some(aside) = asked {
            let header = region.and_then(|region| region.header());
            aside.over(header.map(|header| header.position.salts));
        }
    }
}

/// In the process that replicates.
impl Database {
    /// The pin's slot is free for another process, until [`Database::come_back`] with the number that is returned.
    pub(super) fn step_aside_for_another(&self) -> Option<u64> {
        self.end_aside();
        let mut capture = self.capture();
        let header = {
            let mut guard = self.pin_lock();
            let pin = self.held(&mut guard)?;
            // The question may have come too late, or be about a file that has the name no more. What is held back here is a transaction of the one that has the
            // WRITE lock, so that is not who asks; and it is not to be carried over.
            if pin.is_write_free() || self.log.is_holding() {
                return None;
            }
            let (region, wal) = (pin.region, pin.wal(self)?);
            if self.wants_attention() || !self.sync_with(&mut capture, region, wal) {
                return None;
            }
            // The wal-index is mapped as long as the pin is there.
            region.header()?
        };
        let cursor = capture.cursor?;
        if !is_at(cursor.position, header.position) {
            return None;
        }
        if !self.may_restart(&mut capture, Some(header), true) {
            self.replica.hurry();
            return None;
        }
        self.give_images_up("a checkpoint of another process restarts the WAL");
        let mut guard = self.pin_lock();
        let pin = self.held(&mut guard)?;
        let was_unbroken = self.kept.forget_proof();
        capture.aside_times += 1;
        capture.aside_at = Some((cursor.position, was_unbroken));
        self.aside.store(capture.aside_times, Ordering::Release);
        pin.release_slot();
        Some(capture.aside_times)
    }

    /// The pin's slot is taken again. With the salts that the WAL has when the other process is done, before which nothing was committed.
    pub(super) fn come_back_from(&self, which: u64, now: Option<Salts>) {
        let mut capture = self.capture();
        if self.aside.load(Ordering::Acquire) == which {
            self.take_slot_again(&mut capture, now);
        }
    }

    /// The other process is not there any more, though nobody says so: it had the WRITE lock.
    pub(super) fn is_left_by_who_asked(&self, which: u64) -> bool {
        if self.aside.load(Ordering::Acquire) != which {
            return true;
        }
        self.pin_lock().as_mut().is_none_or(Pin::is_write_free)
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

    fn take_slot_again(&self, capture: &mut Capture, now: Option<Salts>) {
        let was = capture.aside_at.take();
        self.aside.store(0, Ordering::Release);
        let mut guard = self.pin_lock();
        let Some(pin) = self.held(&mut guard) else {
            return;
        };
        // It stays that one under the pin's lock.
        let time = if self.keep_again(pin) { self.kept.time() } else { None };
        let (Some((at, was_unbroken)), Some(cursor), Some(header)) = (was, capture.cursor, pin.region.header()) else {
            return;
        };
        // What was told is of another file, or there was another restart since.
        if now != Some(header.position.salts) || at != cursor.position {
            return;
        }
        if header.position.salts == at.salts {
            // Nothing was restarted.
            if let Some(time) = time
                && was_unbroken
                && is_at(at, header.position)
            {
                self.kept.prove(time);
            }
        } else if header.position.salts.0 == at.salts.0.wrapping_add(1) {
            self.goes_on_in(capture, pin, (cursor, header.position), time);
        }
    }

    /// The cursor goes on at the start of the WAL that the wal-index tells of.
    fn goes_on_in(&self, capture: &mut Capture, pin: &Pin, (cursor, there): (Cursor, Position), time: Option<Time>) {
        if cursor.position.frame > 0 {
            capture.ended = Some(cursor.position);
        }
        let position = Position {
            salts: there.salts,
            frame: 0,
            checksum: [0, 0],
        };
        capture.cursor = Some(Cursor { position, ..cursor });
        let Some(time) = time.filter(|_| there.frame == 0) else {
            return;
        };
        self.kept.prove(time);
        // SAFETY: the pin's file, under its lock.
        let print = unsafe { self.leave(capture, pin.file.as_ref()) };
        // If this process was kept from running, nobody has waited for it, and somebody may have changed the file before it was looked at. To do so they commit first,
        // in this WAL, which is kept.
        let is_left = pin
            .region
            .header()
            .is_some_and(|header| is_at(position, header.position));
        if let Some(print) = print.filter(|_| is_left) {
            capture.held = Some(print);
            let end = capture.ended.unwrap_or(position);
            self.note_file(capture, end, print);
        }
    }
}
