//! The file in which chunks of an image are put together out of the replica: chunks of the image before it, and what the log says since, over them.
//!
//! Owns what of the log is written to it, in order, and how much room it may take. It has no name, so it is gone with the process. Each page is at
//! its place in the database; chunks that are not wanted are holes. Blocks, so it is used on threads for that; leaves reading the store to
//! [`replay`](super::replay).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use replvfs_vfs::types::{PageSize, Pgno, Position, Txid};

use super::replay::ReplayError;
use crate::format::{CHUNK_BYTES, Key, Manifest, ObjectHash, SegmentIndex, SegmentReader, TransactionEntry};
use crate::history::HistoryError;
use crate::history::walk::{check_place, follows};

/// Never more than this part of what the disk has left is taken, nor, of a large database, than this part of that.
const SHARE: u64 = 4;

/// A file in that folder, and how many chunks it may have: `room` bytes of them, or more of a large database.
pub(super) fn create(folder: &Path, database: u64, room: u64) -> Result<(File, usize), ReplayError> {
    let file = tempfile::tempfile_in(folder)?;
    let disk = rustix::fs::fstatvfs(&file).map_err(io::Error::from)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let room = room.max(database / SHARE).min(free / SHARE);
    match usize::try_from(room / CHUNK_BYTES as u64).unwrap_or(usize::MAX) {
        0 => Err(ReplayError::NoRoom),
        chunks => Ok((file, chunks)),
    }
}

/// What a chunk of the new image is to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It is put together.
    Wanted,
    /// It is, or was, at another time.
    NotNow,
    /// Nothing has touched it.
    Same,
}

/// What each chunk of the new image is.
#[derive(Debug)]
pub(super) struct Roles(Vec<Role>);

impl Roles {
    /// `same`: whether nothing has touched it, of each. `part`: those that are put together now.
    pub(super) fn new(same: &[bool], part: &[usize]) -> Roles {
        let role = |same: &bool| if *same { Role::Same } else { Role::NotNow };
        let mut roles: Vec<Role> = same.iter().map(role).collect();
        for chunk in part {
            if let Some(role @ Role::NotNow) = roles.get_mut(*chunk) {
                *role = Role::Wanted;
            }
        }
        Roles(roles)
    }
}

/// Puts a chunk to its place.
pub(super) fn write_chunk(file: &File, chunk: usize, raw: &[u8]) -> io::Result<()> {
    file.write_all_at(raw, chunk as u64 * CHUNK_BYTES as u64)
}

/// A chunk as it is now.
pub(super) fn read_chunk(file: &File, chunk: usize, raw: &mut [u8]) -> io::Result<()> {
    file.read_exact_at(raw, chunk as u64 * CHUNK_BYTES as u64)
}

/// Writes the log over the chunks, piece by piece.
pub(super) struct Writing {
    file: Arc<File>,
    roles: Roles,
    page_size: PageSize,
    pages_a_chunk: u32,
    /// The last transaction to be written.
    until: Txid,
    /// Where it is: the state after this one is in the file, and what it says of itself.
    last: Txid,
    position: Position,
    page_count: u32,
    /// What the next segment must name as its predecessor, where that is known.
    previous: Option<ObjectHash>,
    reader: SegmentReader,
    /// In the piece that is being written: the next page.
    entry: usize,
    page: usize,
}

impl Writing {
    /// The file has the wanted chunks of the image `before`, and no length yet.
    pub(super) fn new(file: Arc<File>, before: &Manifest, roles: Roles, until: Txid) -> Result<Writing, ReplayError> {
        file.set_len(before.database_len())?;
        let key = Key::Image(before.generation, before.txid);
        Ok(Writing {
            file,
            roles,
            page_size: before.page_size,
            pages_a_chunk: CHUNK_BYTES as u32 / before.page_size.get(),
            until,
            last: before.txid,
            position: before.position,
            page_count: before.page_count,
            previous: None,
            reader: SegmentReader::new().map_err(HistoryError::format(key))?,
            entry: 0,
            page: 0,
        })
    }

    /// The transaction that is to come next.
    pub(super) fn next(&self) -> Txid {
        self.last.next()
    }

    /// The first step of a piece: it must be what follows. `own`: the hash of a segment, where it is known.
    pub(super) fn begin(&mut self, key: Key, index: &SegmentIndex, own: Option<ObjectHash>) -> Result<(), ReplayError> {
        check_place(key, index.key())?;
        let header = index.header();
        let follows = |previous| follows(header, index.merged(), self.next(), previous);
        let follows = self.previous.is_none_or(follows);
        if !(header.first..=header.last).contains(&self.next()) || header.page_size != self.page_size || !follows {
            return Err(ReplayError::Chain(key));
        }
        self.previous = index.chain_hash().or(own);
        // They are numbered without a gap.
        let before = self.next().0 - header.first.0;
        (self.entry, self.page) = (usize::try_from(before).unwrap_or(usize::MAX), 0);
        Ok(())
    }

    /// The blocks of the piece that have wanted pages, ascending.
    pub(super) fn blocks(&self, index: &SegmentIndex) -> Vec<usize> {
        let mut blocks = Vec::new();
        for entry in index.transactions().iter().filter(|entry| self.is_due(entry)) {
            let numbers = index.pages_of(entry).unwrap_or_default();
            for (slot, pgno) in (entry.first_slot..).zip(numbers) {
                let (block, _) = index.place_of(slot);
                if blocks.last() != Some(&block) && self.role(*pgno).1 == Some(Role::Wanted) {
                    blocks.push(block);
                }
            }
        }
        blocks
    }

    fn is_due(&self, entry: &TransactionEntry) -> bool {
        entry.txid > self.last && entry.txid <= self.until
    }

    /// `None` for what is behind the end of the new image.
    fn role(&self, pgno: Pgno) -> (usize, Option<Role>) {
        let chunk = ((pgno.get() - 1) / self.pages_a_chunk) as usize;
        (chunk, self.roles.0.get(chunk).copied())
    }

    /// Goes through the piece up to the end of these blocks, whose bytes in the object are `stored`.
    pub(super) fn write(
        &mut self,
        key: Key,
        index: &SegmentIndex,
        blocks: Range<usize>,
        stored: &[u8],
    ) -> Result<(), ReplayError> {
        let start = index.block_range(blocks.start).start;
        for block in blocks {
            let Range { start: from, end } = index.block_range(block);
            let bytes = stored.get((from - start) as usize..(end - start) as usize);
            let raw = self.reader.take_block(index, block, bytes.unwrap_or_default());
            let raw = raw.map_err(HistoryError::format(key))?;
            self.go(key, index, block + 1, Some((block, &raw)))?;
        }
        Ok(())
    }

    /// The last step of a piece: what follows the last of its wanted pages.
    pub(super) fn end(&mut self, key: Key, index: &SegmentIndex) -> Result<(), ReplayError> {
        self.go(key, index, usize::MAX, None)
    }

    /// Goes on to the pages in block `end`. The wanted ones before that are in `raw`.
    fn go(
        &mut self,
        key: Key,
        index: &SegmentIndex,
        end: usize,
        raw: Option<(usize, &[u8])>,
    ) -> Result<(), ReplayError> {
        while let Some(entry) = index.transactions().get(self.entry) {
            if entry.txid > self.until {
                break;
            }
            if entry.txid > self.last {
                self.begin_transaction(entry)?;
            }
            let numbers = index.pages_of(entry).unwrap_or_default();
            while let Some(pgno) = numbers.get(self.page) {
                let (block, at) = index.place_of(entry.first_slot + self.page as u32); // fewer than it has pages
                if block >= end {
                    return Ok(());
                }
                self.page += 1;
                match self.role(*pgno) {
                    (_, None | Some(Role::NotNow)) => {}
                    (chunk, Some(Role::Same)) => {
                        let txid = entry.txid;
                        return Err(ReplayError::Unnoted { txid, chunk });
                    }
                    (_, Some(Role::Wanted)) => {
                        let raw = raw.filter(|(number, _)| *number == block);
                        let page = raw.and_then(|(_, raw)| raw.get(at..at + self.page_size.as_usize()));
                        let page = page.ok_or(ReplayError::Chain(key))?;
                        self.file.write_all_at(page, self.page_size.offset_of(*pgno))?;
                    }
                }
            }
            (self.entry, self.page) = (self.entry + 1, 0);
        }
        Ok(())
    }

    fn begin_transaction(&mut self, entry: &TransactionEntry) -> io::Result<()> {
        let page_count = entry.header.page_count;
        if page_count < self.page_count {
            self.cut_off(page_count)?;
        }
        (self.last, self.position, self.page_count) = (entry.txid, entry.header.end, page_count);
        Ok(())
    }

    /// What is cut off is zeros, if it comes back without being written.
    fn cut_off(&self, page_count: u32) -> io::Result<()> {
        let len = u64::from(page_count) * u64::from(self.page_size.get());
        if self.file.metadata()?.len() > len {
            self.file.set_len(len)?;
        }
        Ok(())
    }

    /// The file has the wanted chunks as they are in this state.
    pub(super) fn finish(self, position: Position, page_count: u32) -> Result<(), ReplayError> {
        if (self.last, self.position, self.page_count) != (self.until, position, page_count) {
            return Err(ReplayError::Elsewhere);
        }
        Ok(self
            .file
            .set_len(u64::from(page_count) * u64::from(self.page_size.get()))?)
    }
}

#[cfg(test)]
mod tests {
    use replvfs_vfs::transaction::Transaction;
    use replvfs_vfs::types::UnixMillis;

    use super::*;
    use crate::format::{ChunkHash, ChunkName, Generation};
    use crate::pipeline::sealer;
    use crate::store::Body;

    /// 16 in a chunk.
    const PAGE: usize = 65_536;
    const PAGES: u32 = 48;

    fn page_size() -> PageSize {
        PageSize::new(PAGE as u32).expect("a page size")
    }

    fn before() -> Manifest {
        let name = ChunkName {
            hash: ChunkHash([0; 32]),
            token: 0,
        };
        Manifest {
            generation: Generation(1),
            txid: Txid(4),
            page_size: page_size(),
            page_count: PAGES,
            taken_at: UnixMillis(0),
            position: Position::default(),
            chunks: vec![name; 3],
        }
    }

    /// From transaction 5 on: the page count after it, and the pages that it wrote, each full of its own number. One segment.
    fn segment(transactions: &[(u32, &[u32])]) -> (Vec<u8>, SegmentIndex, Position) {
        let mut start = Position::default();
        let transactions: Vec<_> = (5..)
            .zip(transactions)
            .map(|(txid, (page_count, pages))| {
                let content = |page: &u32| (Pgno::new(*page).expect("a page"), vec![txid as u8; PAGE]);
                let pages: Vec<_> = pages.iter().map(content).collect();
                let transaction = Transaction::for_test(Txid(txid), page_size(), *page_count, &pages, start);
                start = transaction.end;
                Arc::new(transaction)
            })
            .collect();
        let root = ObjectHash([0; 32]);
        let segment = sealer::seal(&transactions, Generation(1), root, Path::new("/tmp")).expect("a segment");
        let Body::Bytes(object) = segment.body else {
            panic!("it is small");
        };
        let index = SegmentIndex::from_object(&object).expect("a segment");
        (object.to_vec(), index, start)
    }

    /// The file after all of them, over chunks that are full of ones.
    fn written(
        transactions: &[(u32, &[u32])],
        same: &[bool],
        part: &[usize],
        page_count: u32,
    ) -> Result<Arc<File>, ReplayError> {
        let (object, index, end) = segment(transactions);
        let (file, _) = create(Path::new("/tmp"), 0, 1 << 20)?;
        let file = Arc::new(file);
        for chunk in part {
            write_chunk(&file, *chunk, &vec![1; CHUNK_BYTES])?;
        }
        let last = Txid(4 + transactions.len() as u64);
        let mut writing = Writing::new(Arc::clone(&file), &before(), Roles::new(same, part), last)?;
        let key = index.key();
        writing.begin(key, &index, None)?;
        for block in writing.blocks(&index) {
            let Range { start, end } = index.block_range(block);
            writing.write(key, &index, block..block + 1, &object[start as usize..end as usize])?;
        }
        writing.end(key, &index)?;
        writing.finish(end, page_count)?;
        Ok(file)
    }

    /// The first byte of each page of a chunk.
    fn pages(file: &File, chunk: usize) -> Vec<u8> {
        let mut raw = vec![9; CHUNK_BYTES];
        read_chunk(file, chunk, &mut raw).expect("a chunk");
        raw.chunks(PAGE).map(|page| page[0]).collect()
    }

    #[test]
    fn the_last_version_of_each_page_is_written() {
        let file = written(&[(48, &[1, 2]), (48, &[2, 17, 40])], &[false; 3], &[0, 2], 48).expect("written");
        assert_eq!(pages(&file, 0)[..4], [5, 6, 1, 1]);
        assert_eq!(pages(&file, 1), [0; 16], "at another time");
        assert_eq!(pages(&file, 2)[6..9], [1, 6, 1]);
    }

    #[test]
    fn what_was_cut_off_is_zeros_when_it_comes_back() {
        let file = written(&[(20, &[1]), (48, &[1, 22])], &[false; 3], &[1, 2], 48).expect("written");
        assert_eq!(pages(&file, 1), [1, 1, 1, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(pages(&file, 2), [0; 16]);
    }

    #[test]
    fn a_chunk_that_was_believed_to_be_the_same_is_not_taken_over() {
        let same = [false, true, false];
        let error = written(&[(48, &[1, 17])], &same, &[0], 48).expect_err("chunk 1 is another one");
        assert!(
            matches!(
                error,
                ReplayError::Unnoted {
                    txid: Txid(5),
                    chunk: 1
                }
            ),
            "{error}"
        );
        assert!(written(&[(48, &[1, 33])], &same, &[0], 48).is_ok());
    }

    #[test]
    fn a_log_that_leads_elsewhere_makes_no_image() {
        let error = written(&[(40, &[1])], &[false; 3], &[0], 48).expect_err("it has 40 pages");
        assert!(matches!(error, ReplayError::Elsewhere), "{error}");
    }

    #[test]
    fn a_piece_must_follow() {
        let (_, index, _) = segment(&[(48, &[1])]);
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        let image = Manifest {
            txid: Txid(5),
            ..before()
        };
        let mut writing = Writing::new(file, &image, Roles::new(&[false; 3], &[0]), Txid(9)).expect("a file");
        let error = writing.begin(index.key(), &index, None).expect_err("6 is next");
        assert!(matches!(error, ReplayError::Chain(_)), "{error}");
    }

    #[test]
    fn a_full_disk_is_left_alone() {
        let (_, chunks) = create(Path::new("/tmp"), 1 << 40, 0).expect("a file");
        let disk = rustix::fs::statvfs("/tmp").expect("a disk");
        let free = disk.f_bavail * disk.f_frsize;
        assert!(
            chunks as u64 * (CHUNK_BYTES as u64) < free / 2,
            "{chunks} chunks of {free} bytes"
        );
        let error = create(Path::new("/tmp"), 100, 100).expect_err("there is no room for a chunk");
        assert!(matches!(error, ReplayError::NoRoom), "{error}");
    }
}
