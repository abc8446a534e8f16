//! Memory for the frames of transactions, used again: a commit allocates, a thread of the replica frees, and between the two an allocator
//! gives pages back to the system and asks for them anew. Those page faults cost a small commit more than its copy.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

/// Bytes that the process keeps at most.
const KEPT_BYTES: usize = 16 << 20;
/// A larger buffer is rare, and its faults are few beside its work.
const LARGEST_BYTES: usize = 256 << 10;

struct Kept {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept {
    buffers: Vec::new(),
    bytes: 0,
});

/// Without waiting: in a child of `fork()` it may be locked for ever.
fn try_kept() -> Option<MutexGuard<'static, Kept>> {
    match KEPT.try_lock() {
        Ok(kept) => Some(kept),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// An empty vector with room for `capacity` bytes.
pub(crate) fn take(capacity: usize) -> Vec<u8> {
    let kept = try_kept().and_then(|mut kept| {
        let buffer = kept.buffers.pop();
        kept.bytes -= buffer.as_ref().map_or(0, Vec::capacity);
        buffer
    });
    let mut buffer = kept.unwrap_or_default();
    buffer.reserve(capacity);
    buffer
}

/// How many bytes all frames in memory may take together.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Arc<Budget> {
        Arc::new(Budget {
            limit,
            used: AtomicU64::new(0),
        })
    }

    /// In bytes.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn try_take(&self, bytes: u64) -> bool {
        let more = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok()
    }
}

/// A part of the budget, given back when it goes.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Charge {
    /// Grows are of this size, so that few writes ask.
    const STEP: u64 = 64 << 10;

    pub(crate) fn nothing(budget: &Arc<Budget>) -> Charge {
        Charge {
            budget: Arc::clone(budget),
            bytes: 0,
        }
    }

    /// Makes it cover `bytes`, if the budget has room.
    pub(crate) fn cover(&mut self, bytes: u64) -> bool {
        if bytes <= self.bytes {
            return true;
        }
        let wanted = bytes.next_multiple_of(Charge::STEP);
        let grown = self.budget.try_take(wanted - self.bytes);
        if grown {
            self.bytes = wanted;
        }
        grown
    }

    /// Takes `bytes` of it for a buffer, and gives the rest back.
    pub(crate) fn split(&mut self, bytes: u64) -> Charge {
        let part = Charge {
            budget: Arc::clone(&self.budget),
            bytes: bytes.min(self.bytes),
        };
        self.bytes -= part.bytes;
        self.clear();
        part
    }

    pub(crate) fn clear(&mut self) {
        if self.bytes > 0 {
            self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
            self.bytes = 0;
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Frames in memory. Their memory is kept for others when they go.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    _charge: Option<Charge>,
}

impl Buffer {
    pub(crate) fn new(bytes: Vec<u8>, charge: Option<Charge>) -> Buffer {
        Buffer { bytes, _charge: charge }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.bytes);
        let capacity = buffer.capacity();
        buffer.clear();
        if capacity == 0 || capacity > LARGEST_BYTES {
            return;
        }
        if let Some(mut kept) = try_kept()
            && kept.bytes + capacity <= KEPT_BYTES
        {
            kept.bytes += capacity;
            kept.buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_comes_back_empty() {
        let many: Vec<Buffer> = (0..300).map(|_| Buffer::new(vec![7; 100 << 10], None)).collect();
        drop(many);
        assert!(KEPT.lock().unwrap().bytes <= KEPT_BYTES);
        let buffer = take(64);
        assert!(buffer.is_empty() && buffer.capacity() >= 64);
    }

    #[test]
    fn charges_stay_within_the_budget_and_come_back() {
        let budget = Budget::new(200 << 10);
        let mut one = Charge::nothing(&budget);
        assert!(one.cover(1) && one.cover(64 << 10) && one.cover(100 << 10));
        let mut two = Charge::nothing(&budget);
        assert!(!two.cover(100 << 10), "three steps are taken of three");
        let part = one.split(10);
        assert_eq!(budget.used.load(Ordering::Relaxed), 10);
        assert!(two.cover(100 << 10));
        drop((one, two, part));
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }
}
