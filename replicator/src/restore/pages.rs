//! Pages into the file. Owns offsets, the file's length and the lock page's hole; blocks, so it runs on threads for that.

use std::fs::File;
use std::io;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use replvfs_vfs::types::{PageSize, Pgno, Txid, UnixMillis};

use super::RestoreError;
use crate::format::{FormatError, Key, SegmentIndex, SegmentReader, Step};

/// The database while it is being written.
#[derive(Debug, Clone)]
pub(super) struct PageFile {
    pub(super) file: Arc<File>,
    /// For errors.
    pub(super) path: PathBuf,
    pub(super) page_size: PageSize,
}

impl PageFile {
    pub(super) fn set_page_count(&self, page_count: u32) -> Result<(), RestoreError> {
        let len = u64::from(page_count) * u64::from(self.page_size.get());
        self.file
            .set_len(len)
            .map_err(|error| self.failed("set the length of", error))
    }

    /// Bytes that start at a page; those of the lock page, and nothing but zeros, are left as a hole.
    pub(super) fn write_chunk(&self, offset: u64, raw: &[u8]) -> Result<(), RestoreError> {
        for range in without_lock_page(self.page_size, offset, raw.len()) {
            let part = raw.get(range.clone()).unwrap_or_default();
            if part.iter().any(|byte| *byte != 0) {
                self.write(offset + range.start as u64, part)?;
            }
        }
        Ok(())
    }

    fn write_page(&self, page: Pgno, bytes: &[u8]) -> Result<(), RestoreError> {
        self.write(self.page_size.offset_of(page), bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        write_at(&self.file, offset, bytes).map_err(|error| self.failed("write to", error))
    }

    /// The page size that the file's header says.
    pub(super) fn header_page_size(&self) -> Result<u16, RestoreError> {
        let mut field = [0; 2];
        read_at(&self.file, 16, &mut field).map_err(|error| self.failed("read", error))?;
        Ok(u16::from_be_bytes(field))
    }

    fn failed(&self, action: &'static str, error: io::Error) -> RestoreError {
        RestoreError::File {
            action,
            path: self.path.clone(),
            error,
        }
    }
}

#[cfg(unix)]
fn write_at(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(unix)]
fn read_at(file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_at(file: &File, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        offset += written as u64;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(windows)]
fn read_at(file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
        read if read == bytes.len() => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The parts of a range of the file that are outside of the lock page, relative to its start.
fn without_lock_page(page_size: PageSize, offset: u64, len: usize) -> [Range<usize>; 2] {
    let relative = |at: u64| usize::try_from(at.saturating_sub(offset)).map_or(len, |at| at.min(len));
    let lock_page = page_size.offset_of(page_size.lock_page());
    [
        0..relative(lock_page),
        relative(lock_page + u64::from(page_size.get()))..len,
    ]
}

/// Applies transactions, one segment after another.
#[derive(Debug)]
pub(super) struct Applier {
    pub(super) pages: PageFile,
    /// Pages in the file.
    pub(super) page_count: u32,
    /// The last transaction that is in the file, and its time.
    pub(super) last: (Txid, UnixMillis),
    reader: SegmentReader,
}

impl Applier {
    pub(super) fn new(pages: PageFile, page_count: u32, last: (Txid, UnixMillis)) -> Result<Applier, FormatError> {
        Ok(Applier {
            pages,
            page_count,
            last,
            reader: SegmentReader::new()?,
        })
    }

    /// Applies those transactions of a segment that are in `range`.
    pub(super) fn apply(
        &mut self,
        key: Key,
        index: &SegmentIndex,
        range: RangeInclusive<Txid>,
        mut load: impl FnMut(usize) -> Result<Bytes, RestoreError>,
    ) -> Result<(), RestoreError> {
        let Applier {
            pages,
            page_count,
            last,
            reader,
        } = self;
        let visit = |step: Step<'_>| match step {
            Step::Begin(entry) => {
                let count = entry.header.page_count;
                // At once, so that what a transaction cut off is zeros if a later one grows the file again.
                if count != *page_count {
                    pages.set_page_count(count)?;
                    *page_count = count;
                }
                *last = (entry.txid, entry.header.committed_at);
                Ok(())
            }
            Step::Page(page, bytes) => Ok(pages.write_page(page, bytes)?),
        };
        reader
            .for_each(index, range, |block| load(block).map_err(Failed::Restore), visit)
            .map_err(|failed| failed.at(key))
    }
}

/// An error on the way out of the reader.
enum Failed {
    Format(FormatError),
    Restore(RestoreError),
}

impl From<FormatError> for Failed {
    fn from(error: FormatError) -> Failed {
        Failed::Format(error)
    }
}

impl From<RestoreError> for Failed {
    fn from(error: RestoreError) -> Failed {
        Failed::Restore(error)
    }
}

impl Failed {
    fn at(self, key: Key) -> RestoreError {
        match self {
            Failed::Format(error) => RestoreError::Format { key, error },
            Failed::Restore(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::format::CHUNK_BYTES;

    #[test]
    fn the_lock_page_is_left_out_at_every_page_size() {
        const LOCK: u64 = 1 << 30;
        for shift in 9..=16 {
            let page_size = PageSize::new(1 << shift).unwrap();
            let size = page_size.as_usize();
            // The chunk that begins with the lock page, and those around it.
            let chunk = CHUNK_BYTES as u64;
            assert_eq!(
                without_lock_page(page_size, LOCK - chunk, CHUNK_BYTES),
                [0..CHUNK_BYTES, CHUNK_BYTES..CHUNK_BYTES]
            );
            assert_eq!(
                without_lock_page(page_size, LOCK, CHUNK_BYTES),
                [0..0, size..CHUNK_BYTES]
            );
            assert_eq!(without_lock_page(page_size, LOCK, size), [0..0, size..size]);
            assert_eq!(
                without_lock_page(page_size, LOCK + chunk, CHUNK_BYTES),
                [0..0, 0..CHUNK_BYTES]
            );
            assert_eq!(
                without_lock_page(page_size, LOCK - size as u64, 3 * size),
                [0..size, 2 * size..3 * size]
            );
        }
        assert_eq!(PageSize::new(512).unwrap().lock_page().get(), 2_097_153);
    }

    #[test]
    fn a_sparse_file_has_zeros_at_the_lock_page() {
        let page_size = PageSize::new(512).unwrap();
        let file = tempfile::tempfile().unwrap();
        let pages = PageFile {
            file: Arc::new(file),
            path: PathBuf::new(),
            page_size,
        };
        pages.set_page_count(2_097_153 + 2).unwrap();
        pages.write_chunk(1 << 30, &[7; 3 * 512]).unwrap();
        let mut read = [9; 4 * 512];
        read_at(&pages.file, (1 << 30) - 512, &mut read).unwrap();
        assert_eq!(read[..1024], [0; 1024]);
        assert_eq!(read[1024..], [7; 1024]);
    }
}
