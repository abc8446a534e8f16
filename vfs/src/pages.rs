//! The pages of a transaction that was not written to a WAL: each with its number, in ascending order, in memory or in a file
//! without a name.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::buffer::{self, Buffer, Charge};
use crate::transaction::FrameError;
use crate::types::{PageSize, Pgno};

const NUMBER_BYTES: usize = 4;
/// How much of a file is read at once.
const READ_BYTES: usize = 256 << 10;

/// Pages with their numbers, and what proves that they are still the same.
#[derive(Debug)]
pub(crate) struct Pages {
    source: Source,
    page_size: PageSize,
    count: u64,
    crc: u32,
}

#[derive(Debug)]
enum Source {
    Memory(Buffer),
    /// From this byte on.
    File(Arc<File>, u64),
}

impl Pages {
    pub(crate) fn memory_bytes(&self) -> u64 {
        match &self.source {
            Source::Memory(bytes) => bytes.len() as u64,
            Source::File(..) => 0,
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Checks all of it, then calls `visit` with each page.
    pub(crate) fn for_each<E: From<FrameError>>(
        &self,
        page_count: u32,
        mut visit: impl FnMut(Pgno, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.check(page_count)?;
        self.walk(|number, page, _| visit(number, page))
    }

    fn check(&self, page_count: u32) -> Result<(), FrameError> {
        let lock_page = self.page_size.lock_page();
        let mut last = 0;
        let mut crc = crc32fast::Hasher::new();
        self.walk(|number, _, record| {
            let fits = number.get() > last && number.get() <= page_count && number != lock_page;
            last = number.get();
            crc.update(record);
            if fits { Ok(()) } else { Err(FrameError::Pages) }
        })?;
        if crc.finalize() == self.crc {
            Ok(())
        } else {
            Err(FrameError::Pages)
        }
    }

    fn walk<E: From<FrameError>>(&self, mut visit: impl FnMut(Pgno, &[u8], &[u8]) -> Result<(), E>) -> Result<(), E> {
        let length = record_bytes(self.page_size);
        let mut records = |bytes: &[u8]| {
            for record in bytes.chunks_exact(length) {
                let (number, page) = record.split_first_chunk().ok_or(FrameError::Pages)?;
                let number = Pgno::new(u32::from_le_bytes(*number)).ok_or(FrameError::Pages)?;
                visit(number, page, record)?;
            }
            Ok(())
        };
        match &self.source {
            Source::Memory(bytes) => records(bytes),
            Source::File(file, first) => {
                let a_time = (READ_BYTES / length).max(1) as u64;
                let mut buffer = vec![0; a_time as usize * length];
                let mut at = 0;
                while at < self.count {
                    let part = &mut buffer[..(self.count - at).min(a_time) as usize * length];
                    file.read_exact_at(part, first + at * length as u64)
                        .map_err(|_| FrameError::Pages)?;
                    records(part)?;
                    at += a_time;
                }
                Ok(())
            }
        }
    }
}

fn record_bytes(page_size: PageSize) -> usize {
    NUMBER_BYTES + page_size.as_usize()
}

/// Takes pages in ascending order. Past `limit` bytes they go to a file.
pub(crate) struct Collector {
    bytes: Vec<u8>,
    file: Option<BufWriter<File>>,
    limit: u64,
    page_size: PageSize,
    count: u64,
    crc: crc32fast::Hasher,
}

impl Collector {
    /// For up to `expected` pages.
    pub(crate) fn new(page_size: PageSize, expected: u64, limit: u64) -> Collector {
        let bytes = expected.saturating_mul(record_bytes(page_size) as u64).min(limit);
        Collector {
            bytes: buffer::take(usize::try_from(bytes).unwrap_or(0)),
            file: None,
            limit,
            page_size,
            count: 0,
            crc: crc32fast::Hasher::new(),
        }
    }

    /// A page, and where a file comes from if there is no room for it.
    pub(crate) fn push(
        &mut self,
        number: Pgno,
        page: &[u8],
        spill: impl FnOnce() -> io::Result<File>,
    ) -> io::Result<()> {
        debug_assert_eq!(page.len(), self.page_size.as_usize());
        let head = number.get().to_le_bytes();
        self.crc.update(&head);
        self.crc.update(page);
        self.count += 1;
        if self.file.is_none() && self.count * record_bytes(self.page_size) as u64 > self.limit {
            let mut file = BufWriter::with_capacity(1 << 20, spill()?);
            file.write_all(&std::mem::take(&mut self.bytes))?;
            self.file = Some(file);
        }
        match &mut self.file {
            Some(file) => {
                file.write_all(&head)?;
                file.write_all(page)
            }
            None => {
                self.bytes.extend_from_slice(&head);
                self.bytes.extend_from_slice(page);
                Ok(())
            }
        }
    }

    /// Ends it; what is in memory goes to a file that others share when there is no room in the budget.
    pub(crate) fn finish(
        self,
        mut charge: Charge,
        share: impl FnOnce(&[u8]) -> io::Result<(Arc<File>, u64)>,
    ) -> io::Result<Pages> {
        let source = match self.file {
            Some(file) => {
                let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
                Source::File(Arc::new(file), 0)
            }
            None if charge.cover(self.bytes.len() as u64) => {
                let charge = charge.split(self.bytes.len() as u64);
                Source::Memory(Buffer::new(self.bytes, Some(charge)))
            }
            None => {
                let (file, at) = share(&self.bytes)?;
                Source::File(file, at)
            }
        };
        Ok(Pages {
            source,
            page_size: self.page_size,
            count: self.count,
            crc: self.crc.finalize(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(limit: u64, numbers: &[u32]) -> Pages {
        let size = PageSize::new(512).unwrap();
        let mut collector = Collector::new(size, numbers.len() as u64, limit);
        for number in numbers {
            let page = [*number as u8; 512];
            collector
                .push(Pgno::new(*number).unwrap(), &page, tempfile::tempfile)
                .unwrap();
        }
        let charge = Charge::nothing(&buffer::Budget::new(1 << 30));
        collector.finish(charge, |_| unreachable!()).unwrap()
    }

    fn read(pages: &Pages, page_count: u32) -> Result<Vec<(u32, u8)>, FrameError> {
        let mut read = Vec::new();
        pages.for_each(page_count, |number, page| {
            assert!(page.iter().all(|byte| *byte == page[0]));
            read.push((number.get(), page[0]));
            Ok::<_, FrameError>(())
        })?;
        Ok(read)
    }

    #[test]
    fn memory_and_file_give_the_same() {
        let numbers: Vec<u32> = (1..250).chain([2000, 2001]).collect();
        let expected: Vec<(u32, u8)> = numbers.iter().map(|number| (*number, *number as u8)).collect();
        for limit in [0, 516 * 7, u64::MAX] {
            let pages = collected(limit, &numbers);
            assert_eq!(matches!(pages.source, Source::File(..)), limit < u64::MAX);
            assert_eq!(pages.count(), 251);
            assert_eq!(read(&pages, 2001).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_not_what_went_in_is_never_visited() {
        let size = PageSize::new(512).unwrap();
        let lock_page = size.lock_page().get();
        assert!(read(&collected(u64::MAX, &[1, 5]), 4).is_err(), "behind the end");
        assert!(
            read(&collected(u64::MAX, &[lock_page]), u32::MAX).is_err(),
            "the lock page"
        );
        assert!(read(&collected(u64::MAX, &[5, 4]), 9).is_err(), "not in order");
        let pages = collected(0, &[1, 2, 3]);
        let Source::File(file, _) = &pages.source else {
            panic!("not in a file")
        };
        file.write_all_at(&[9], 600).unwrap();
        assert!(read(&pages, 3).is_err(), "other bytes");
        file.write_all_at(&[2], 600).unwrap();
        assert_eq!(read(&pages, 3).unwrap().len(), 3);
        file.set_len(1500).unwrap();
        assert!(read(&pages, 3).is_err(), "cut off");
    }
}
