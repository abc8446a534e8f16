//! Transactions into the file, in order. Owns what a batch of them comes to: of each page only its last version is written, and what a
//! transaction cut off is zeros if a later one grows the file again. Leaves reading and decompressing to [`log`](super::log).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use replvfs_vfs::types::{Pgno, Txid, UnixMillis};

use super::RestoreError;
use super::pages::PageFile;
use super::work::Room;
use crate::format::{FormatError, Key, SegmentIndex};

/// Room that a batch takes, but for its last block. Whoever reads must have the rest, or each would wait for the other.
pub(super) const BATCH_BYTES: usize = 16 << 20;

/// Pages that follow each other are written together, up to this many bytes.
const WRITE_BYTES: usize = 1 << 20;

/// The pages of a block, and the right to have them in memory.
#[derive(Debug)]
pub(super) struct RawBlock {
    pub(super) raw: Vec<u8>,
    pub(super) room: Option<Room>,
}

/// Applies transactions, one segment after another.
#[derive(Debug)]
pub(super) struct Applier {
    pub(super) pages: PageFile,
    /// Pages in the database.
    pub(super) page_count: u32,
    /// The last transaction that was applied, and its time.
    pub(super) last: (Txid, UnixMillis),
    /// Pages in the file.
    file_count: u32,
    /// The fewest pages that the database had since the last batch was written.
    lowest_count: u32,
    blocks: Vec<RawBlock>,
    bytes: usize,
    /// Where the last version of each page is: the block, and the byte in it.
    latest: BTreeMap<Pgno, (usize, usize)>,
}

impl Applier {
    pub(super) fn new(pages: PageFile, page_count: u32, last: (Txid, UnixMillis)) -> Applier {
        Applier {
            pages,
            page_count,
            last,
            file_count: page_count,
            lowest_count: page_count,
            blocks: Vec::new(),
            bytes: 0,
            latest: BTreeMap::new(),
        }
    }

    /// Applies those transactions of a segment that are in `range`. `next` gives the pages of each block of
    /// [`SegmentIndex::blocks_of`] once, ascending. Some of it may wait for [`write`](Self::write).
    pub(super) fn apply(
        &mut self,
        key: Key,
        index: &SegmentIndex,
        range: &RangeInclusive<Txid>,
        mut next: impl FnMut(usize) -> Result<RawBlock, RestoreError>,
    ) -> Result<(), RestoreError> {
        let page_bytes = self.pages.page_size.as_usize();
        let too_short = |part| {
            let problem = "it is too short".to_owned();
            RestoreError::format(key)(FormatError::Damaged { part, problem })
        };
        let mut loaded = None;
        let entries = index.transactions().iter();
        for entry in entries.filter(|entry| range.contains(&entry.txid)) {
            self.begin(entry.header.page_count);
            self.last = (entry.txid, entry.header.committed_at);
            let numbers = index.pages_of(entry).ok_or_else(|| too_short("page index"))?;
            for (slot, pgno) in (entry.first_slot..).zip(numbers) {
                let (block, at) = index.place_of(slot);
                if loaded != Some(block) {
                    self.take(next(block)?)?;
                    loaded = Some(block);
                }
                let len = self.blocks.last().map_or(0, |block| block.raw.len());
                if at + page_bytes > len {
                    return Err(too_short("block"));
                }
                self.latest.insert(*pgno, (self.blocks.len() - 1, at));
            }
        }
        Ok(())
    }

    fn begin(&mut self, page_count: u32) {
        if page_count < self.page_count {
            if let Some(first) = Pgno::new(page_count.saturating_add(1)) {
                drop(self.latest.split_off(&first));
            }
            self.lowest_count = self.lowest_count.min(page_count);
        }
        self.page_count = page_count;
    }

    fn take(&mut self, block: RawBlock) -> Result<(), RestoreError> {
        if self.bytes >= BATCH_BYTES {
            self.write()?;
        }
        self.bytes += block.room.as_ref().map_or(block.raw.len(), Room::bytes);
        self.blocks.push(block);
        Ok(())
    }

    /// Brings the file to the last transaction that was applied.
    pub(super) fn write(&mut self) -> Result<(), RestoreError> {
        if self.lowest_count < self.file_count {
            self.set_page_count(self.lowest_count)?;
        }
        if self.page_count != self.file_count {
            self.set_page_count(self.page_count)?;
        }
        self.lowest_count = self.page_count;
        let page_bytes = self.pages.page_size.as_usize();
        let mut together: Vec<u8> = Vec::new();
        let mut run: Option<(Pgno, u64)> = None;
        for (pgno, (block, at)) in &self.latest {
            let block = self.blocks.get(*block).map_or(&[][..], |block| &block.raw);
            let page = block.get(*at..at + page_bytes).unwrap_or_default(); // checked when it was noted
            match run {
                Some((first, next)) if next == u64::from(pgno.get()) && together.len() < WRITE_BYTES => {
                    run = Some((first, next + 1));
                }
                before => {
                    if let Some((first, _)) = before {
                        self.pages.write_pages(first, &together)?;
                    }
                    together.clear();
                    run = Some((*pgno, u64::from(pgno.get()) + 1));
                }
            }
            together.extend_from_slice(page);
        }
        if let Some((first, _)) = run {
            self.pages.write_pages(first, &together)?;
        }
        self.latest.clear();
        self.blocks.clear();
        self.bytes = 0;
        Ok(())
    }

    fn set_page_count(&mut self, page_count: u32) -> Result<(), RestoreError> {
        self.pages.set_page_count(page_count)?;
        self.file_count = page_count;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use futures::FutureExt;
    use replvfs_vfs::types::PageSize;

    use super::super::work::Work;
    use super::*;

    /// Or whoever reads waits for room, and the batch for what is read: for ever.
    #[test]
    fn a_batch_of_small_blocks_leaves_room_for_the_next_one() {
        for bytes in [1, 512, 1024, 1025, 4096, 1 << 20] {
            let work = Work::new();
            let pages = PageFile {
                file: Arc::new(tempfile::tempfile().unwrap()),
                path: std::path::PathBuf::new(),
                page_size: PageSize::new(512).unwrap(),
                digests: None,
            };
            let mut applier = Applier::new(pages, 0, (Txid(0), UnixMillis(0)));
            for block in 0..70_000_000 / bytes.max(512) {
                let room = work.room(bytes).now_or_never();
                let room = room.unwrap_or_else(|| panic!("no room for block {block} of {bytes} bytes"));
                let raw = vec![0; bytes];
                applier.take(RawBlock { raw, room }).unwrap();
            }
        }
    }
}
