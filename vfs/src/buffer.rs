//! Memory for the frames of transactions, used again: a commit allocates, a thread of the replica frees, and between the two an allocator
//! gives pages back to the system and asks for them anew. Those page faults cost a small commit more than its copy.

use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

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

/// An empty vector with room for `capacity` bytes.
pub(crate) fn take(capacity: usize) -> Vec<u8> {
    let kept = {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let buffer = kept.buffers.pop();
        kept.bytes -= buffer.as_ref().map_or(0, Vec::capacity);
        buffer
    };
    let mut buffer = kept.unwrap_or_default();
    buffer.reserve(capacity);
    buffer
}

/// Frames in memory. Their memory is kept for others when they go.
#[derive(Debug)]
pub(crate) struct Buffer(pub(crate) Vec<u8>);

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.0);
        let capacity = buffer.capacity();
        buffer.clear();
        if capacity == 0 || capacity > LARGEST_BYTES {
            return;
        }
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + capacity <= KEPT_BYTES {
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
        let many: Vec<Buffer> = (0..300).map(|_| Buffer(vec![7; 100 << 10])).collect();
        drop(many);
        assert!(KEPT.lock().unwrap().bytes <= KEPT_BYTES);
        let buffer = take(64);
        assert!(buffer.is_empty() && buffer.capacity() >= 64);
    }
}
