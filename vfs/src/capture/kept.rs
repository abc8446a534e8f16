//! What keeps the database as it is known: the pin's slot, and the file locks of connections.
//!
//! Owns the answers to three questions that threads ask without a lock in common: whether the slot is held, whether it has been ever since the cursor was proved, and
//! who was the last one to let go.

use std::sync::atomic::Ordering;

use crate::sync::{AtomicU64, AtomicUsize, fence};

#[derive(Debug, Default)]
pub(super) struct Kept {
    /// How often the slot was taken or let go: odd while it is held. Changed under the pin's lock.
    turns: AtomicU64,
    /// During which of them the cursor was proved; 0 for none. Changed under the lock of `capture`.
    proved: AtomicU64,
    /// Connections that hold any file lock.
    holders: AtomicUsize,
}

/// A time in which the slot is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Time(u64);

impl Kept {
    /// Whether the slot is held.
    pub(super) fn is_held(&self) -> bool {
        self.time().is_some()
    }

    /// The time in which it is held now. To be asked for before what is proved is looked at: a proof that begins in one time and ends in another is of neither.
    pub(super) fn time(&self) -> Option<Time> {
        let turns = self.turns.load(Ordering::Acquire);
        (!turns.is_multiple_of(2)).then_some(Time(turns))
    }

    /// The slot was taken. Under the pin's lock.
    pub(super) fn hold(&self) {
        if !self.is_held() {
            self.turns.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The slot is about to be let go, or was lost; with it ends what was proved. Under the pin's lock. `true` when no connection has a lock either.
    pub(super) fn let_go(&self) -> bool {
        if self.is_held() {
            self.turns.fetch_add(1, Ordering::AcqRel);
        }
        // Against the one in `holder_goes`: of two that let go at once, one sees the other.
        fence(Ordering::SeqCst);
        self.holders() == 0
    }

    /// The cursor was proved in that time.
    pub(super) fn prove(&self, time: Time) {
        self.proved.store(time.0, Ordering::Release);
    }

    /// Nothing is proved any more. Whether it was.
    pub(super) fn forget_proof(&self) -> bool {
        let was = self.is_unbroken();
        self.proved.store(0, Ordering::Release);
        was
    }

    /// Whether the slot has been held ever since the cursor was proved: nobody but this process can have restarted the WAL.
    pub(super) fn is_unbroken(&self) -> bool {
        let proved = self.proved.load(Ordering::Acquire);
        self.time() == Some(Time(proved))
    }

    pub(super) fn holders(&self) -> usize {
        self.holders.load(Ordering::Acquire)
    }

    /// A connection has got its first file lock.
    pub(super) fn holder_comes(&self) {
        self.holders.fetch_add(1, Ordering::AcqRel);
    }

    /// It is about to let its last one go. `true` when it was the last connection, and the slot is not held either.
    pub(super) fn holder_goes(&self) -> bool {
        let is_last = self.holders.fetch_sub(1, Ordering::AcqRel) == 1;
        fence(Ordering::SeqCst);
        is_last && !self.is_held()
    }
}

#[cfg(all(loom, test))]
mod interleavings;
