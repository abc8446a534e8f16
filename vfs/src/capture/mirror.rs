//! What a connection has written to the WAL since the cursor: the very bytes of the file, from one frame on.
//!
//! Spilled pages, pages written again in place, writes in two parts, frames after a `ROLLBACK TO`: all are writes somewhere inside
//! this image, so none of them is a special case.

use std::sync::Arc;

use crate::buffer::{self, Budget, Buffer, Charge};
use crate::types::PageSize;
use crate::wal::{HEADER_BYTES, WalHeader, frame_offset};

#[derive(Debug)]
pub(crate) struct Mirror {
    /// The WAL header, if this connection wrote it.
    header: Option<WalHeader>,
    /// Offset in the WAL of `bytes[0]`.
    start: u64,
    bytes: Vec<u8>,
    /// Something is missing: the WAL itself has to be read.
    incomplete: bool,
    limit: u64,
    charge: Charge,
    /// What the last transaction took, to allocate the next at once.
    expected: usize,
}

impl Mirror {
    pub(crate) fn new(limit: u64, budget: &Arc<Budget>) -> Mirror {
        Mirror {
            header: None,
            start: 0,
            bytes: Vec::new(),
            incomplete: false,
            limit,
            charge: Charge::nothing(budget),
            expected: 0,
        }
    }

    /// Notes a write that the base VFS has done.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 {
            let head = data.first_chunk::<HEADER_BYTES>();
            self.header = head.and_then(WalHeader::decode);
            self.clear();
            self.incomplete = data.len() != HEADER_BYTES;
            return;
        }
        if self.incomplete {
            return;
        }
        if self.bytes.is_empty() {
            self.start = offset;
            let room = self.expected.max(data.len());
            if self.bytes.capacity() == 0 {
                self.bytes = buffer::take(room);
            } else {
                self.bytes.reserve(room);
            }
        }
        let at = offset.checked_sub(self.start).and_then(|at| usize::try_from(at).ok());
        match at {
            Some(at) if at <= self.bytes.len() && self.has_room((at + data.len()) as u64) => {
                let inside = data.len().min(self.bytes.len() - at);
                self.bytes[at..at + inside].copy_from_slice(&data[..inside]);
                self.bytes.extend_from_slice(&data[inside..]);
            }
            _ => self.give_up(),
        }
    }

    fn has_room(&mut self, bytes: u64) -> bool {
        bytes <= self.limit && self.charge.cover(bytes)
    }

    /// From here on, until the next [`Mirror::clear`], the WAL has to be read instead.
    pub(crate) fn give_up(&mut self) {
        self.incomplete = true;
        self.bytes = Vec::new();
        self.charge.clear();
    }

    /// Forgets what was written: it was committed, or rolled back.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.charge.clear();
        self.incomplete = false;
    }

    /// Nothing was written since it was cleared.
    pub(crate) fn is_empty(&self) -> bool {
        !self.incomplete && self.bytes.is_empty()
    }

    /// The WAL header, if this connection wrote the one with these salts.
    pub(crate) fn header(&self) -> Option<&WalHeader> {
        self.header.as_ref()
    }

    /// The frames from `first` on, as far as they were written; `None` when the WAL has to be read.
    pub(crate) fn frames(&self, first: u32, page_size: PageSize) -> Option<&[u8]> {
        let complete = !self.incomplete && (self.bytes.is_empty() || self.start == frame_offset(first, page_size));
        complete.then_some(self.bytes.as_slice())
    }

    /// Takes `length` bytes of frames from `first` on out of the mirror, and clears it.
    pub(crate) fn take(&mut self, first: u32, length: u64, page_size: PageSize) -> Option<Buffer> {
        let length = usize::try_from(length).ok()?;
        let there = self.frames(first, page_size).is_some_and(|bytes| bytes.len() >= length);
        let taken = there.then(|| {
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.truncate(length);
            self.expected = length;
            Buffer::new(bytes, Some(self.charge.split(length as u64)))
        });
        self.clear();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size() -> PageSize {
        PageSize::new(512).unwrap()
    }

    #[test]
    fn rewrites_inside_and_writes_in_parts_give_the_bytes_of_the_file() {
        let mut mirror = Mirror::new(1 << 20, &Budget::new(1 << 21));
        let at = frame_offset(3, size());
        mirror.write(at, &[1; 24]);
        mirror.write(at + 24, &[2; 200]);
        mirror.write(at + 224, &[3; 312]);
        mirror.write(at + 536, &[4; 24]);
        mirror.write(at + 24, &[5; 512]);
        let bytes = mirror.take(3, 536, size()).unwrap();
        assert_eq!(&bytes[..24], &[1; 24]);
        assert_eq!(&bytes[24..], &[5; 512]);
        assert!(mirror.frames(4, size()).unwrap().is_empty());
    }

    #[test]
    fn a_hole_a_write_before_the_start_and_the_limit_are_not_papered_over() {
        for writes in [
            vec![(560, 24), (600, 512)],
            vec![(560, 24), (32, 24)],
            vec![(32, 1000), (1032, 25)],
        ] {
            let mut mirror = Mirror::new(1024, &Budget::new(1 << 20));
            for (offset, len) in writes {
                mirror.write(offset, &vec![7; len]);
            }
            assert!(mirror.frames(1, size()).is_none());
            assert!(mirror.frames(2, size()).is_none());
            mirror.clear();
            mirror.write(32, &[7; 24]);
            assert_eq!(mirror.frames(1, size()).unwrap(), &[7; 24]);
        }
    }

    #[test]
    fn frames_are_not_given_for_another_place() {
        let mut mirror = Mirror::new(1 << 20, &Budget::new(1 << 21));
        mirror.write(frame_offset(2, size()), &[7; 536]);
        assert!(mirror.take(1, 536, size()).is_none());
        assert!(
            mirror.take(2, 536, size()).is_none(),
            "a refused take must not leave bytes behind"
        );
    }
}
