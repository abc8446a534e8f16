//! One committed transaction: its frames, in memory or still in the WAL, or the pages that went into the database file, and the
//! check that they are the ones that were committed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::BaseFile;
use crate::buffer::Buffer;
use crate::pages::Pages;
use crate::types::{PageSize, Pgno, Position, Txid, UnixMillis};
use crate::wal::{FRAME_HEADER_BYTES, Scan, frame_bytes, frame_offset};

/// How much of a transaction is read back from the WAL at once.
const READ_BACK_BYTES: u64 = 256 << 10;
/// How much of a WAL is copied at once.
const COPIED_BYTES: usize = 1 << 20;

/// A committed transaction.
#[derive(Debug)]
pub struct Transaction {
    /// Its number.
    pub txid: Txid,
    /// When it was seen to commit.
    pub committed_at: UnixMillis,
    /// Bytes a page.
    pub page_size: PageSize,
    /// Pages in the database after it.
    pub page_count: u32,
    /// The place in the WAL before its first frame: that of the transaction before it, or frame 0 after a restart of the WAL.
    /// [`Position::NONE`] in a rollback-journal mode, where there is no WAL.
    pub start: Position,
    /// The place in the WAL behind its commit frame; [`Position::NONE`] as well.
    pub end: Position,
    /// It is in the log before it is committed: it may be put into the store only after [`Log::offer`](crate::log::Log::offer).
    pub held: bool,
    /// Whether the WAL's checksums are over big-endian words.
    pub(crate) big_endian: bool,
    pub(crate) frames: Frames,
}

/// Where a transaction's frames are.
#[derive(Debug)]
pub(crate) enum Frames {
    /// The bytes of the WAL from the first frame to the last.
    Memory(Buffer),
    /// Too large for that.
    Range(Arc<WalRange>),
    /// No frames: the pages as they were in the database file when it was committed there.
    Pages(Pages),
}

/// Why the frames of a transaction cannot be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes are not those that were committed.
    #[error("frame {frame} of the WAL is not the one that was committed")]
    Chain {
        /// The first frame that does not fit.
        frame: u32,
    },
    /// The same of a transaction that was not written to a WAL.
    #[error("the pages of a transaction are not those that were committed, or cannot be read back")]
    Pages,
    /// The WAL could not be read back.
    #[error("reading the WAL back failed with SQLite code {code}")]
    Io {
        /// The extended result code.
        code: i32,
    },
}

impl Transaction {
    /// A transaction from the bytes of its frames, for tests of what consumes the log.
    #[doc(hidden)]
    #[must_use]
    pub fn for_test(
        txid: Txid,
        page_size: PageSize,
        page_count: u32,
        pages: &[(Pgno, Vec<u8>)],
        start: Position,
    ) -> Transaction {
        let mut bytes = Vec::new();
        let mut sum = start.checksum;
        for (index, (pgno, page)) in pages.iter().enumerate() {
            let commit = if index + 1 == pages.len() { page_count } else { 0 };
            let mut head = Vec::with_capacity(FRAME_HEADER_BYTES);
            head.extend_from_slice(&pgno.get().to_be_bytes());
            head.extend_from_slice(&commit.to_be_bytes());
            sum = crate::wal::checksum(false, &head, sum);
            sum = crate::wal::checksum(false, page, sum);
            for word in [start.salts.0, start.salts.1, sum[0], sum[1]] {
                head.extend_from_slice(&word.to_be_bytes());
            }
            bytes.extend_from_slice(&head);
            bytes.extend_from_slice(page);
        }
        let frame = start.frame + u32::try_from(pages.len()).unwrap_or(u32::MAX);
        Transaction {
            txid,
            committed_at: UnixMillis(0),
            page_size,
            page_count,
            start,
            end: Position {
                salts: start.salts,
                frame,
                checksum: sum,
            },
            held: false,
            big_endian: false,
            frames: Frames::Memory(Buffer::new(bytes, None)),
        }
    }

    /// WAL bytes of the transaction, frame headers included; what they would be, for one that was not written to a WAL.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        let frames = match &self.frames {
            Frames::Pages(pages) => pages.count(),
            Frames::Memory(_) | Frames::Range(_) => u64::from(self.end.frame.saturating_sub(self.start.frame)),
        };
        frames * frame_bytes(self.page_size)
    }

    /// Bytes of its frames in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        match &self.frames {
            Frames::Memory(bytes) => bytes.len() as u64,
            Frames::Range(_) => 0,
            Frames::Pages(pages) => pages.memory_bytes(),
        }
    }

    /// Calls `visit` with the newest version of every page that the transaction wrote, in ascending page order,
    /// after every frame was checked against the checksum chain from `start` to `end`, or every page against the checksum that was taken at
    /// the commit. The lock page is never among them, nor is a page beyond `page_count`. May read the WAL file: blocks.
    ///
    /// # Errors
    ///
    /// [`FrameError`] when the frames are not the ones that were committed, or cannot be read; else what `visit` returns.
    pub fn for_each_page<E: From<FrameError>>(
        &self,
        mut visit: impl FnMut(Pgno, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Frames::Pages(pages) = &self.frames {
            return pages.for_each(self.page_count, visit);
        }
        let mut window = Window::new(self);
        let newest = self.check(&mut window)?;
        if !window.is_whole {
            // Pages are visited in their own order, not in that of the frames.
            window.largest = 1;
        }
        for (pgno, number) in newest {
            let frame = self.frame(number, &mut window)?;
            visit(pgno, &frame[FRAME_HEADER_BYTES..])?;
        }
        Ok(())
    }

    /// Walks all frames, and tells the newest frame of each page.
    fn check(&self, window: &mut Window) -> Result<BTreeMap<Pgno, u32>, FrameError> {
        let mut scan = Scan::from_position(self.start, self.page_size, self.big_endian);
        let mut newest = BTreeMap::new();
        let mut last = None;
        for number in self.start.frame + 1..=self.end.frame {
            let frame = self.frame(number, window)?;
            let (pgno, _, commit) = scan
                .step(frame)
                .map_err(|error| FrameError::Chain { frame: error.frame })?;
            newest.insert(pgno, number);
            last = commit;
        }
        let ends_here = last.is_some_and(|commit| commit.page_count == self.page_count);
        if scan.position() != self.end || !ends_here {
            return Err(FrameError::Chain { frame: self.end.frame });
        }
        let lock_page = self.page_size.lock_page();
        newest.retain(|pgno, _| pgno.get() <= self.page_count && *pgno != lock_page);
        Ok(newest)
    }

    /// One frame: where it is in memory, or in the window, which is read from there on if it does not have it.
    fn frame<'a>(&'a self, number: u32, window: &'a mut Window) -> Result<&'a [u8], FrameError> {
        let length = FRAME_HEADER_BYTES + self.page_size.as_usize();
        let (bytes, first) = match &self.frames {
            Frames::Memory(bytes) => (&**bytes, self.start.frame + 1),
            Frames::Range(range) => {
                if !window.has(number) {
                    let count = window.largest.min(self.end.frame + 1 - number);
                    window.bytes.resize(count as usize * length, 0);
                    window.frames = 0..0;
                    range.read(&mut window.bytes, frame_offset(number, self.page_size))?;
                    window.frames = number..number + count;
                }
                (window.bytes.as_slice(), window.frames.start)
            }
            Frames::Pages(_) => return Err(FrameError::Pages),
        };
        let at = (number - first) as usize * length;
        bytes.get(at..at + length).ok_or(FrameError::Chain { frame: number })
    }
}

/// Frames of one transaction that were read back together.
struct Window {
    bytes: Vec<u8>,
    /// The numbers of those frames.
    frames: Range<u32>,
    /// How many are read together.
    largest: u32,
    /// All of the transaction fits.
    is_whole: bool,
}

impl Window {
    fn new(transaction: &Transaction) -> Window {
        let frames = transaction.end.frame.saturating_sub(transaction.start.frame);
        let fit = (READ_BACK_BYTES / frame_bytes(transaction.page_size)).max(1);
        let largest = u32::try_from(fit).unwrap_or(u32::MAX);
        Window {
            bytes: Vec::new(),
            frames: 0..0,
            largest,
            is_whole: frames <= largest,
        }
    }

    fn has(&self, number: u32) -> bool {
        self.frames.contains(&number)
    }
}

/// An open WAL that several ranges are read from.
#[derive(Debug)]
pub(crate) struct WalReader(Mutex<BaseFile>);

impl WalReader {
    pub(crate) fn new(wal: BaseFile) -> Arc<WalReader> {
        Arc::new(WalReader(Mutex::new(wal)))
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), FrameError> {
        let mut wal = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match wal.read(buffer, offset) {
            Ok(true) => Ok(()),
            Ok(false) => Err(FrameError::Io {
                code: libsqlite3_sys::SQLITE_IOERR_SHORT_READ,
            }),
            Err(code) => Err(FrameError::Io { code: code.0 }),
        }
    }
}

/// Frames that are read from the WAL when they are needed. As long as one lives, the WAL must keep them.
#[derive(Debug)]
pub(crate) struct WalRange {
    first_byte: u64,
    end_byte: u64,
    source: Mutex<Source>,
}

#[derive(Debug)]
enum Source {
    Wal {
        reader: Arc<WalReader>,
        _needed: Counted,
    },
    /// The range stands in a file of our own, from this byte on.
    Copy(Arc<File>, u64),
    Lost(i32),
}

/// Counts the ranges that a WAL is needed for.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub(crate) fn new(count: &Arc<AtomicUsize>) -> Counted {
        count.fetch_add(1, Ordering::AcqRel);
        Counted(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl WalRange {
    pub(crate) fn in_wal(wal: Arc<WalReader>, first_byte: u64, end_byte: u64, counted: Counted) -> Arc<WalRange> {
        Arc::new(WalRange {
            first_byte,
            end_byte,
            source: Mutex::new(Source::Wal {
                reader: wal,
                _needed: counted,
            }),
        })
    }

    /// The bytes of a WAL from `first_byte` on, which stand in `file` from byte `at` on.
    pub(crate) fn in_file(file: Arc<File>, at: u64, first_byte: u64, end_byte: u64) -> Arc<WalRange> {
        Arc::new(WalRange {
            first_byte,
            end_byte,
            source: Mutex::new(Source::Copy(file, at)),
        })
    }

    fn source(&self) -> MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), FrameError> {
        let io = |code| FrameError::Io { code };
        if offset < self.first_byte || offset + buffer.len() as u64 > self.end_byte {
            return Err(io(libsqlite3_sys::SQLITE_IOERR_READ));
        }
        match &*self.source() {
            Source::Wal { reader, .. } => reader.read(buffer, offset),
            Source::Copy(file, at) => file
                .read_exact_at(buffer, at + (offset - self.first_byte))
                .map_err(|_| io(libsqlite3_sys::SQLITE_IOERR_READ)),
            Source::Lost(code) => Err(io(*code)),
        }
    }

    fn is_in_wal(&self) -> bool {
        matches!(*self.source(), Source::Wal { .. })
    }

    /// The WAL may go: the range was copied.
    fn moved_to(&self, file: &Arc<File>, at: u64) {
        *self.source() = Source::Copy(Arc::clone(file), at);
    }

    /// The WAL goes, and the range could not be copied: reading it fails later, and the history says so.
    pub(crate) fn lose(&self) {
        let mut source = self.source();
        if matches!(*source, Source::Wal { .. }) {
            *source = Source::Lost(libsqlite3_sys::SQLITE_IOERR_WRITE);
        }
    }
}

impl Transaction {
    /// Where its frames stand in the WAL: the first byte, and the one behind the last.
    fn extent(&self) -> (u64, u64) {
        let first = frame_offset(self.start.frame + 1, self.page_size);
        (first, first + self.wal_bytes())
    }

    /// The frames, if they are in memory.
    pub(crate) fn frames_in_memory(&self) -> Option<&[u8]> {
        match &self.frames {
            Frames::Memory(bytes) => Some(bytes),
            Frames::Range(_) | Frames::Pages(_) => None,
        }
    }

    /// Writes the frames to `file` from byte `at` on.
    pub(crate) fn copy_frames(&self, file: &File, at: u64) -> io::Result<()> {
        match &self.frames {
            Frames::Memory(bytes) => file.write_all_at(bytes, at),
            Frames::Pages(_) => Err(io::Error::other("it was not written through a WAL")),
            Frames::Range(range) => {
                let (first, end) = self.extent();
                let mut buffer = vec![0; usize::try_from(end - first).unwrap_or(COPIED_BYTES).min(COPIED_BYTES)];
                let mut offset = first;
                while offset < end {
                    let part = usize::try_from(end - offset).unwrap_or(buffer.len()).min(buffer.len());
                    range.read(&mut buffer[..part], offset).map_err(io::Error::other)?;
                    file.write_all_at(&buffer[..part], at + (offset - first))?;
                    offset += part as u64;
                }
                Ok(())
            }
        }
    }

    /// It has frames as a WAL has them: only those can be carried over.
    pub(crate) fn is_from_wal(&self) -> bool {
        !matches!(self.frames, Frames::Pages(_))
    }

    /// Its frames are still to be read from the WAL.
    pub(crate) fn needs_wal(&self) -> bool {
        matches!(&self.frames, Frames::Range(range) if range.is_in_wal())
    }

    /// Frames that were to be read from the WAL are read from the copy from now on.
    pub(crate) fn frames_moved_to(&self, file: &Arc<File>, at: u64) {
        if let Frames::Range(range) = &self.frames {
            range.moved_to(file, at);
        }
    }

    /// Its frames can be had as they stand in a WAL.
    pub(crate) fn frames_in_file(file: Arc<File>, at: u64, start: Position, wal_bytes: u64, size: PageSize) -> Frames {
        let first = frame_offset(start.frame + 1, size);
        Frames::Range(WalRange::in_file(file, at, first, first + wal_bytes))
    }

    /// See [`WalRange::lose`].
    pub(crate) fn lose_frames(&self) {
        if let Frames::Range(range) = &self.frames {
            range.lose();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read back in parts, and what is read back at once, in an order that is not that of the frames.
    #[test]
    fn frames_that_are_read_back_are_those_in_memory() {
        let size = PageSize::new(4096).unwrap();
        let several = 3 * READ_BACK_BYTES / frame_bytes(size);
        for count in [1, 5, several] {
            let numbers = (1..=u32::try_from(count).unwrap()).rev();
            let pages: Vec<_> = numbers
                .map(|number| (Pgno::new(number).unwrap(), number.to_le_bytes().repeat(1024)))
                .collect();
            let page_count = u32::try_from(count).unwrap();
            let start = Position {
                frame: 7,
                ..Position::default()
            };
            let mut transaction = Transaction::for_test(Txid(1), size, page_count, &pages, start);
            let read = |transaction: &Transaction| {
                let mut read = Vec::new();
                transaction
                    .for_each_page(|pgno, page| {
                        read.push((pgno, page.to_vec()));
                        Ok::<(), FrameError>(())
                    })
                    .map(|()| read)
            };
            let expected: Vec<_> = pages.iter().rev().cloned().collect();
            assert_eq!(read(&transaction).unwrap(), expected);
            let file = Arc::new(tempfile::tempfile().unwrap());
            transaction.copy_frames(&file, 100).unwrap();
            let wal_bytes = transaction.wal_bytes();
            transaction.frames = Transaction::frames_in_file(Arc::clone(&file), 100, start, wal_bytes, size);
            assert_eq!(read(&transaction).unwrap(), expected);
            file.write_all_at(&[0xee], 100 + wal_bytes - 1).unwrap();
            let frame = 7 + page_count;
            assert_eq!(read(&transaction).unwrap_err(), FrameError::Chain { frame });
        }
    }
}
