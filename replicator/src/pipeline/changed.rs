//! Which chunks of an image were touched since another one. Pure: owns the rule that whatever is not known to be untouched is touched.

use replvfs_vfs::types::{PageSize, Pgno, Txid};

use crate::format::{CHUNK_BYTES, Manifest, SegmentIndex};

/// What consecutive transactions have done to the database, in chunks: a bit each, and how short it was between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Touched {
    page_size: PageSize,
    /// A bit a chunk, the first one lowest.
    chunks: Vec<u64>,
    /// The smallest page count after any of the transactions: what was behind it was cut off, and if it is there again, has other pages.
    shortest: u32,
    /// Raw bytes of the pages that were written, each time that they were.
    bytes: u64,
    /// Bytes of the segments, as far as that was told.
    stored: u64,
}

impl Touched {
    pub(super) fn nothing(page_size: PageSize) -> Touched {
        Touched {
            page_size,
            chunks: Vec::new(),
            shortest: u32::MAX,
            bytes: 0,
            stored: 0,
        }
    }

    /// By the transactions of a segment behind `after`.
    pub(super) fn by(index: &SegmentIndex, after: Txid) -> Touched {
        let mut touched = Touched::nothing(index.header().page_size);
        for entry in index.transactions().iter().filter(|entry| entry.txid > after) {
            touched.begin(entry.header.page_count);
            let first = entry.first_slot as usize;
            let pages = index.pages().get(first..first + entry.pages as usize);
            pages.unwrap_or_default().iter().for_each(|pgno| touched.page(*pgno));
        }
        touched
    }

    /// A transaction that leaves the database with so many pages.
    pub(super) fn begin(&mut self, page_count: u32) {
        self.shortest = self.shortest.min(page_count);
    }

    /// It wrote this page.
    pub(super) fn page(&mut self, pgno: Pgno) {
        let chunk = (pgno.get() - 1) / pages_a_chunk(self.page_size);
        let (word, bit) = (chunk as usize / 64, chunk % 64);
        if self.chunks.len() <= word {
            self.chunks.resize(word + 1, 0);
        }
        self.chunks[word] |= 1 << bit;
        self.bytes += u64::from(self.page_size.get());
    }

    /// The transactions are in the store with so many bytes.
    pub(super) fn in_bytes(self, stored: u64) -> Touched {
        Touched { stored, ..self }
    }

    /// The other's transactions as well.
    pub(super) fn merge(&mut self, other: &Touched) {
        if self.chunks.len() < other.chunks.len() {
            self.chunks.resize(other.chunks.len(), 0);
        }
        for (mine, theirs) in self.chunks.iter_mut().zip(&other.chunks) {
            *mine |= theirs;
        }
        self.shortest = self.shortest.min(other.shortest);
        self.bytes += other.bytes;
        self.stored += other.stored;
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn stored(&self) -> u64 {
        self.stored
    }

    fn has(&self, chunk: usize) -> bool {
        self.chunks
            .get(chunk / 64)
            .is_some_and(|word| word >> (chunk % 64) & 1 == 1)
    }

    /// Whether a chunk of the database, which has `page_count` pages after all of the transactions, is still the one in the image that was
    /// before all of them.
    pub(super) fn leaves(&self, before: &Manifest, page_count: u32, chunk: usize) -> bool {
        let pages = u64::from(pages_a_chunk(self.page_size));
        let first = chunk as u64 * pages;
        let end = |count: u32| (first + pages).min(u64::from(count));
        before.page_size == self.page_size
            && chunk < before.chunks.len()
            && !self.has(chunk)
            && end(page_count) == end(before.page_count)
            && end(page_count) <= u64::from(self.shortest)
    }
}

fn pages_a_chunk(page_size: PageSize) -> u32 {
    CHUNK_BYTES as u32 / page_size.get()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use replvfs_vfs::transaction::Transaction;
    use replvfs_vfs::types::{Position, UnixMillis};

    use super::*;
    use crate::format::{ChunkHash, ChunkName, Generation, ObjectHash};
    use crate::pipeline::sealer;
    use crate::store::Body;

    fn page_size() -> PageSize {
        PageSize::new(65_536).expect("a page size")
    }

    /// With pages of 64 KiB, 16 in a chunk.
    fn image(page_count: u32) -> Manifest {
        let name = |n: u32| ChunkName {
            hash: ChunkHash::of(&n.to_le_bytes()),
            token: 0,
        };
        Manifest {
            generation: Generation(1),
            txid: Txid(0),
            page_size: page_size(),
            page_count,
            taken_at: UnixMillis(0),
            position: Position::default(),
            chunks: (0..page_count.div_ceil(16)).map(name).collect(),
        }
    }

    /// Page count after it, pages.
    fn touched(transactions: &[(u32, &[u32])]) -> Touched {
        let mut touched = Touched::nothing(page_size());
        for (page_count, pages) in transactions {
            touched.begin(*page_count);
            pages
                .iter()
                .for_each(|page| touched.page(Pgno::new(*page).expect("a page")));
        }
        touched
    }

    fn left(touched: &Touched, before: u32, now: u32) -> Vec<usize> {
        let before = image(before);
        (0..8).filter(|chunk| touched.leaves(&before, now, *chunk)).collect()
    }

    #[test]
    fn what_no_transaction_wrote_is_left() {
        assert_eq!(left(&touched(&[]), 40, 40), [0, 1, 2]);
        assert_eq!(left(&touched(&[(40, &[17])]), 40, 40), [0, 2]);
        assert_eq!(left(&touched(&[(40, &[16]), (40, &[33, 40])]), 40, 40), [1]);
        let mut both = touched(&[(40, &[1])]);
        both.merge(&touched(&[(40, &[40])]));
        assert_eq!((left(&both, 40, 40), both.bytes()), (vec![1], 2 * 65_536));
    }

    #[test]
    fn the_last_chunk_is_another_when_it_has_another_length() {
        assert_eq!(left(&touched(&[(41, &[41])]), 40, 41), [0, 1]);
        // Even if nobody had written to it.
        assert_eq!(left(&touched(&[(41, &[])]), 40, 41), [0, 1]);
        assert_eq!(left(&touched(&[(39, &[])]), 40, 39), [0, 1]);
        assert_eq!(left(&touched(&[(50, &[49, 50])]), 48, 50), [0, 1, 2]);
        assert_eq!(left(&touched(&[(32, &[])]), 40, 32), [0, 1]);
    }

    #[test]
    fn what_was_cut_off_between_is_not_what_it_was() {
        assert_eq!(left(&touched(&[(20, &[]), (40, &[])]), 40, 40), [0]);
        assert_eq!(left(&touched(&[(16, &[]), (48, &[])]), 48, 48), [0]);
        let mut later = touched(&[(1, &[])]);
        later.merge(&touched(&[(40, &[])]));
        assert!(left(&later, 40, 40).is_empty());
    }

    /// SQLite writes each page of a file that grows, so only transactions made by hand tell whether it counts how short the file was between.
    #[test]
    fn a_segment_tells_how_short_the_database_was() {
        let mut start = Position::default();
        let transactions: Vec<_> = (1..)
            .zip([48, 20, 48])
            .map(|(txid, page_count)| {
                let first = (Pgno::new(1).expect("a page"), vec![7; 65_536]);
                let transaction = Transaction::for_test(Txid(txid), page_size(), page_count, &[first], start);
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
        for touched in [
            segment.touched,
            Touched::by(&index, Txid::ZERO),
            Touched::by(&index, Txid(1)),
        ] {
            assert!(left(&touched, 48, 48).is_empty(), "{touched:?}");
        }
        assert_eq!(left(&Touched::by(&index, Txid(2)), 48, 48), [1, 2]);
    }

    #[test]
    fn an_image_with_other_pages_tells_nothing() {
        let before = Manifest {
            page_size: PageSize::new(512).expect("a page size"),
            ..image(40)
        };
        assert!(!touched(&[]).leaves(&before, 40, 0));
    }
}
