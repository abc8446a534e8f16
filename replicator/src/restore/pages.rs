//! Pages into the file. Owns offsets, the file's length and the lock page's hole; blocks, so it runs on threads for that. Leaves to
//! [`apply`](super::apply) which pages.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use replvfs_vfs::types::{PageSize, Pgno};

use super::RestoreError;
use super::digests::Digests;

/// The database while it is being written.
#[derive(Debug, Clone)]
pub(super) struct PageFile {
    pub(super) file: Arc<File>,
    /// For errors.
    pub(super) path: PathBuf,
    pub(super) page_size: PageSize,
    /// Gets what would be written, where only that is wanted.
    pub(super) digests: Option<Digests>,
}

impl PageFile {
    /// A database of which only digests are kept.
    pub(super) fn digests(page_size: PageSize) -> Result<(PageFile, Digests), RestoreError> {
        let path = std::env::temp_dir();
        let digests = Digests::new(page_size).map_err(|error| RestoreError::File {
            action: "create a file in",
            path: path.clone(),
            error,
        })?;
        let pages = PageFile {
            file: digests.file(),
            path,
            page_size,
            digests: Some(digests.clone()),
        };
        Ok((pages, digests))
    }

    pub(super) fn set_page_count(&self, page_count: u32) -> Result<(), RestoreError> {
        if let Some(digests) = &self.digests {
            let set = digests.set_page_count(page_count);
            return set.map_err(|error| self.failed("write to a file in", error));
        }
        let len = u64::from(page_count) * u64::from(self.page_size.get());
        self.file
            .set_len(len)
            .map_err(|error| self.failed("set the length of", error))
    }

    /// Bytes that start at a page; those of the lock page, and nothing but zeros, are left as a hole.
    pub(super) fn write_chunk(&self, offset: u64, raw: &[u8]) -> Result<(), RestoreError> {
        for range in without_lock_page(self.page_size, offset, raw.len()) {
            let part = raw.get(range.clone()).unwrap_or_default();
            if !is_zero(part) {
                self.write(offset + range.start as u64, part)?;
            }
        }
        Ok(())
    }

    /// Pages that follow each other.
    pub(super) fn write_pages(&self, first: Pgno, bytes: &[u8]) -> Result<(), RestoreError> {
        self.write(self.page_size.offset_of(first), bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        if let Some(digests) = &self.digests {
            let first = u32::try_from(offset / u64::from(self.page_size.get()) + 1).ok();
            let put = first.and_then(Pgno::new).map(|first| digests.put(first, bytes));
            return put
                .unwrap_or(Ok(()))
                .map_err(|error| self.failed("write to a file in", error));
        }
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

/// Whether there is nothing else in it.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    // Compared as memory is, which takes a tenth of looking at byte after byte.
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|part| ZEROS.starts_with(part))
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
            digests: None,
        };
        pages.set_page_count(2_097_153 + 2).unwrap();
        pages.write_chunk(1 << 30, &[7; 3 * 512]).unwrap();
        let mut read = [9; 4 * 512];
        read_at(&pages.file, (1 << 30) - 512, &mut read).unwrap();
        assert_eq!(read[..1024], [0; 1024]);
        assert_eq!(read[1024..], [7; 1024]);
    }
}
