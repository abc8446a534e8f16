//! Reading a segment or a span, from its whole bytes or from ranges of them. Owns all checks of what is in one object; leaves the
//! fetching, and how the object fits to its neighbours, to the caller.

use std::io::Read;
use std::ops::{Range, RangeInclusive};

use bytes::Bytes;
use replvfs_vfs::types::{Pgno, Txid, UnixMillis};
use zstd::bulk::Decompressor;

use super::super::seal::SEAL_MAGIC;
use super::super::wire::{Fields, check_crc};
use super::super::{Key, ObjectHash};
use super::{
    BLOCK_LEN, Block, FOOTER_LEN, FormatError, HEADER_LEN, Kind, MERGED_LEN, MergedSegment, SPAN_FOOTER_LEN,
    SegmentHeader, TRANSACTION_LEN, TransactionEntry, TransactionHeader, WINDOW_LOG_MAX, block_crc, changes,
    pages_per_block, span::check_merged,
};

const FOOTER: &str = "footer";
const BLOCKS: &str = "block table";
const TRANSACTIONS: &str = "transaction table";
const INDEX: &str = "page index";
const MERGED: &str = "segment table";

/// The end of a segment or a span: says where the tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFooter {
    kind: Kind,
    header: SegmentHeader,
    blocks: Table,
    transactions: Table,
    index: Table,
    index_len: u64,
    /// Of a segment: nothing, right before the footer.
    merged: Table,
    object_len: u64,
}

/// A table's place, number of entries and CRC-32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Table {
    offset: u64,
    count: u64,
    crc: u32,
}

impl SegmentFooter {
    /// The length of a segment's in bytes.
    pub const LEN: usize = FOOTER_LEN;
    /// The length of a span's, which is longer.
    pub const MAX_LEN: usize = SPAN_FOOTER_LEN;

    /// Decodes the footer at the end of `end`, the last bytes of an object that is `object_len` bytes long.
    ///
    /// # Errors
    ///
    /// [`FormatError::Damaged`] when there is no footer or when it contradicts itself, [`FormatError::Version`] and
    /// [`FormatError::Seal`] for what another release wrote, or for a seal.
    pub fn parse(end: &[u8], object_len: u64) -> Result<SegmentFooter, FormatError> {
        let (rest, magic) = end
            .split_last_chunk::<8>()
            .ok_or_else(|| FormatError::damaged(FOOTER, "the object is too short"))?;
        if *magic == SEAL_MAGIC {
            return Err(FormatError::Seal);
        }
        let kind = [Kind::Segment, Kind::Span]
            .into_iter()
            .find(|kind| *magic == kind.magic());
        let Some(kind) = kind else {
            return Err(FormatError::damaged(
                FOOTER,
                "the object does not end like a segment: it may be cut off",
            ));
        };
        let start = rest.len().checked_sub(kind.footer_len() - 8);
        let checked = start
            .and_then(|start| rest.get(start..))
            .ok_or_else(|| FormatError::damaged(FOOTER, "the object is too short"))?;
        let mut fields = Fields::checked(checked, FOOTER)?;
        let header = SegmentHeader::decode_fields(&mut fields, kind, FOOTER)?;
        let blocks = Table {
            offset: fields.u64()?,
            count: fields.u64()?,
            crc: fields.u32()?,
        };
        let transactions = Table {
            offset: fields.u64()?,
            count: fields.u64()?,
            crc: fields.u32()?,
        };
        let (index_offset, index_len) = (fields.u64()?, fields.u64()?);
        let index = Table {
            offset: index_offset,
            count: fields.u64()?,
            crc: fields.u32()?,
        };
        let merged = match kind {
            Kind::Segment => Table {
                offset: index_offset.saturating_add(index_len),
                count: 0,
                crc: 0,
            },
            Kind::Span => Table {
                offset: fields.u64()?,
                count: fields.u64()?,
                crc: fields.u32()?,
            },
        };
        let footer = SegmentFooter {
            kind,
            header,
            blocks,
            transactions,
            index,
            index_len,
            merged,
            object_len: fields.u64()?,
        };
        footer.check(object_len)?;
        Ok(footer)
    }

    /// Lengths and offsets that follow from others must be what they follow to.
    fn check(&self, object_len: u64) -> Result<(), FormatError> {
        let damaged = |problem: &str| Err(FormatError::damaged(FOOTER, problem));
        if self.object_len != object_len {
            return damaged(&format!(
                "the object has {object_len} bytes, and should have {}",
                self.object_len
            ));
        }
        if self.header.transaction_count() != Some(self.transactions.count) {
            return damaged("the number of transactions is not that of the header");
        }
        let Ok(pages) = u32::try_from(self.index.count) else {
            return damaged("there are too many pages");
        };
        if !self.kind.may_have(pages.into(), self.transactions.count, object_len) {
            return damaged("it has more pages or transactions than an object of its length may have");
        }
        let per_block = pages_per_block(self.header.page_size);
        if self.blocks.count != u64::from(pages.div_ceil(per_block)) {
            return damaged("the number of blocks is not that of the pages");
        }
        // A zstd frame that compresses nothing is this much longer than its content, at most.
        let index_max = u64::from(pages) * 4 + u64::from(pages) / 16 + 1024;
        let blocks_len = self.blocks.count.checked_mul(BLOCK_LEN as u64);
        let transactions_len = self.transactions.count.checked_mul(TRANSACTION_LEN as u64);
        let merged_len = self.merged.count.checked_mul(MERGED_LEN as u64);
        let (Some(blocks_len), Some(transactions_len), Some(merged_len)) = (blocks_len, transactions_len, merged_len)
        else {
            return damaged("its tables are too long");
        };
        let after = |offset: u64, len: u64| offset.checked_add(len);
        let contiguous = self.blocks.offset >= HEADER_LEN as u64
            && after(self.blocks.offset, blocks_len) == Some(self.transactions.offset)
            && after(self.transactions.offset, transactions_len) == Some(self.index.offset)
            && self.index_len <= index_max
            && after(self.index.offset, self.index_len) == Some(self.merged.offset)
            && after(self.merged.offset, merged_len).and_then(|at| after(at, self.kind.footer_len() as u64))
                == Some(object_len);
        if contiguous {
            Ok(())
        } else {
            damaged("its tables are not where they belong")
        }
    }

    /// Where in the object all tables are, one after another, up to the footer.
    #[must_use]
    pub fn tables(&self) -> Range<u64> {
        self.blocks.offset..self.object_len - self.kind.footer_len() as u64
    }

    /// What the segment says of itself.
    #[must_use]
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// The name that the object says it has.
    #[must_use]
    pub fn key(&self) -> Key {
        key_of(self.kind, &self.header)
    }
}

fn key_of(kind: Kind, header: &SegmentHeader) -> Key {
    match kind {
        Kind::Segment => Key::Log(header.generation, header.first),
        Kind::Span => Key::Span(header.generation, header.first, header.last),
    }
}

/// The tables of a segment or a span, all checked against each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentIndex {
    kind: Kind,
    header: SegmentHeader,
    pub(super) blocks: Vec<Block>,
    transactions: Vec<TransactionEntry>,
    pages: Vec<Pgno>,
    merged: Vec<MergedSegment>,
}

impl SegmentIndex {
    /// Decodes the bytes at [`SegmentFooter::tables`].
    ///
    /// # Errors
    ///
    /// [`FormatError::Damaged`] when they are not what the footer says, or contradict each other.
    pub fn parse(footer: &SegmentFooter, tables: &[u8]) -> Result<SegmentIndex, FormatError> {
        let section = |from: u64, to: u64, part: &'static str, crc: u32| {
            let from = usize::try_from(from - footer.blocks.offset).ok();
            let to = usize::try_from(to - footer.blocks.offset).ok();
            let bytes = from.zip(to).and_then(|(from, to)| tables.get(from..to));
            let bytes = bytes.ok_or_else(|| FormatError::damaged(part, "it is cut off"))?;
            check_crc(bytes, crc, part)?;
            Ok(bytes)
        };
        let (blocks, transactions, index) = (&footer.blocks, &footer.transactions, &footer.index);
        let (merged, end) = (&footer.merged, footer.tables().end);
        let block_bytes = section(blocks.offset, transactions.offset, BLOCKS, blocks.crc)?;
        let transaction_bytes = section(transactions.offset, index.offset, TRANSACTIONS, transactions.crc)?;
        let index_bytes = section(index.offset, merged.offset, INDEX, index.crc)?;
        let merged = match footer.kind {
            Kind::Segment => Vec::new(),
            Kind::Span => decode_merged(footer, section(merged.offset, end, MERGED, merged.crc)?)?,
        };
        let transactions = decode_transactions(footer, transaction_bytes)?;
        Ok(SegmentIndex {
            kind: footer.kind,
            header: footer.header,
            blocks: decode_blocks(footer, block_bytes)?,
            pages: decode_pages(footer, &transactions, index_bytes)?,
            transactions,
            merged,
        })
    }

    /// Decodes the tables of a whole object, and checks that its start agrees with them.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse), [`SegmentFooter::parse`] and [`check_start`](Self::check_start).
    pub fn from_object(object: &[u8]) -> Result<SegmentIndex, FormatError> {
        let footer = SegmentFooter::parse(object, object.len() as u64)?;
        let tables = usize::try_from(footer.blocks.offset)
            .ok()
            .and_then(|from| object.get(from..));
        let index = SegmentIndex::parse(
            &footer,
            tables.ok_or_else(|| FormatError::damaged(FOOTER, "it is cut off"))?,
        )?;
        index.check_start(object)?;
        Ok(index)
    }

    /// Checks that the object starts (at least [`START_LEN`](Self::START_LEN) bytes) as its footer says.
    ///
    /// # Errors
    ///
    /// [`FormatError::Damaged`] when it does not.
    pub fn check_start(&self, start: &[u8]) -> Result<(), FormatError> {
        if start.get(..HEADER_LEN) == Some(self.header.encode(self.kind).as_slice()) {
            Ok(())
        } else {
            Err(FormatError::damaged("header", "it is not that of the footer"))
        }
    }

    /// Bytes before the first block.
    pub const START_LEN: u64 = HEADER_LEN as u64;

    /// What the segment says of itself.
    #[must_use]
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// The name that the object says it has.
    #[must_use]
    pub fn key(&self) -> Key {
        key_of(self.kind, &self.header)
    }

    /// The segments that a span stands for, at least two, ascending; of a segment nothing.
    #[must_use]
    pub fn merged(&self) -> &[MergedSegment] {
        &self.merged
    }

    /// The hash that what comes next has to name as its predecessor: for a span that of its last segment. `None` for a segment, which
    /// does not know its own.
    #[must_use]
    pub fn chain_hash(&self) -> Option<ObjectHash> {
        self.merged.last().map(|last| last.hash)
    }

    /// The segment that begins with `slot`, of those that a span stands for, and the last of its transactions.
    #[must_use]
    pub fn merged_at(&self, slot: Txid) -> Option<(MergedSegment, &TransactionEntry)> {
        self.merged_holding(slot).filter(|(segment, _)| segment.first == slot)
    }

    /// The segment that has this transaction, of those that a span stands for, and the last of its transactions.
    #[must_use]
    pub fn merged_holding(&self, txid: Txid) -> Option<(MergedSegment, &TransactionEntry)> {
        if txid > self.header.last {
            return None;
        }
        let behind = self.merged.partition_point(|segment| segment.first <= txid);
        let at = behind.checked_sub(1)?;
        let last = match self.merged.get(behind) {
            Some(next) => next.first.0 - 1, // not the first, and they ascend
            None => self.header.last.0,
        };
        let entry = usize::try_from(last - self.header.first.0).ok()?;
        Some((*self.merged.get(at)?, self.transactions.get(entry)?))
    }

    /// Its transactions in order, at least one.
    #[must_use]
    pub fn transactions(&self) -> &[TransactionEntry] {
        &self.transactions
    }

    /// The numbers of all pages in storage order: those of the first transaction, ascending, then those of the next.
    #[must_use]
    pub fn pages(&self) -> &[Pgno] {
        &self.pages
    }

    /// The numbers of the pages that one of its transactions wrote, ascending; `None` for an entry that is another segment's.
    #[must_use]
    pub fn pages_of(&self, entry: &TransactionEntry) -> Option<&[Pgno]> {
        let first = entry.first_slot as usize;
        self.pages.get(first..first + entry.pages as usize)
    }

    /// In which block a slot is, and from which byte of its pages on.
    #[must_use]
    pub fn place_of(&self, slot: u32) -> (usize, usize) {
        let per_block = pages_per_block(self.header.page_size);
        let at = (slot % per_block) as usize * self.header.page_size.as_usize();
        ((slot / per_block) as usize, at)
    }

    /// Raw bytes of a block's pages; 0 for a block that is not there.
    #[must_use]
    pub fn raw_len(&self, block: usize) -> usize {
        self.pages_in(block) * self.header.page_size.as_usize()
    }

    /// Whether a block has what changes of its pages, instead of them.
    pub(super) fn has_changes(&self, block: usize) -> bool {
        let content_len = self.blocks.get(block).map(|block| block.content_len as usize);
        content_len.is_some_and(|len| len < self.raw_len(block))
    }

    fn pages_in(&self, block: usize) -> usize {
        let per_block = pages_per_block(self.header.page_size) as usize;
        self.pages
            .len()
            .saturating_sub(block.saturating_mul(per_block))
            .min(per_block)
    }

    /// How many blocks there are.
    #[must_use]
    pub fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Where in the object a block is; an empty range for a block that is not there.
    #[must_use]
    pub fn block_range(&self, block: usize) -> Range<u64> {
        self.blocks
            .get(block)
            .map_or(0..0, |block| block.offset..block.offset + u64::from(block.stored_len))
    }

    /// The blocks that hold pages of these transactions.
    #[must_use]
    pub fn blocks_of(&self, transactions: RangeInclusive<Txid>) -> Range<usize> {
        let mut entries = self
            .transactions
            .iter()
            .filter(|entry| entry.pages > 0 && transactions.contains(&entry.txid));
        let Some(first) = entries.next() else {
            return 0..0;
        };
        let last = entries.next_back().unwrap_or(first);
        let per_block = pages_per_block(self.header.page_size);
        let end = (last.first_slot + last.pages).div_ceil(per_block);
        (first.first_slot / per_block) as usize..end as usize
    }
}

fn decode_blocks(footer: &SegmentFooter, bytes: &[u8]) -> Result<Vec<Block>, FormatError> {
    let page_size = footer.header.page_size;
    let block_bytes = u64::from(pages_per_block(page_size)) * u64::from(page_size.get());
    let mut raw_left = footer.index.count * u64::from(page_size.get());
    let mut offset = HEADER_LEN as u64;
    let mut blocks = Vec::with_capacity(bytes.len() / BLOCK_LEN);
    for entry in bytes.chunks_exact(BLOCK_LEN) {
        let mut fields = Fields::new(entry, BLOCKS);
        let block = Block {
            offset: fields.u64()?,
            stored_len: fields.u32()?,
            content_len: fields.u32()?,
            crc: fields.u32()?,
        };
        let raw_len = raw_left.min(block_bytes);
        let stored_max = zstd::zstd_safe::compress_bound(block.content_len as usize) as u64;
        let fits = block.offset == offset
            && (1..=raw_len).contains(&u64::from(block.content_len))
            && (1..=stored_max).contains(&u64::from(block.stored_len));
        if !fits {
            return Err(FormatError::damaged(
                BLOCKS,
                format!("block {} is not where it belongs", blocks.len()),
            ));
        }
        raw_left -= raw_len;
        offset += u64::from(block.stored_len);
        blocks.push(block);
    }
    if offset != footer.blocks.offset {
        return Err(FormatError::damaged(
            BLOCKS,
            "the blocks do not end where the tables begin",
        ));
    }
    Ok(blocks)
}

fn decode_transactions(footer: &SegmentFooter, bytes: &[u8]) -> Result<Vec<TransactionEntry>, FormatError> {
    let mut transactions = Vec::with_capacity(bytes.len() / TRANSACTION_LEN);
    let mut txid = footer.header.first;
    let mut slot = 0u32;
    for entry in bytes.chunks_exact(TRANSACTION_LEN) {
        let mut fields = Fields::new(entry, TRANSACTIONS);
        let committed_at = UnixMillis(fields.i64()?);
        let page_count = fields.u32()?;
        let pages = fields.u32()?;
        let end = fields.position()?;
        if pages > page_count {
            let problem = format!("transaction {txid} has {pages} of {page_count} pages");
            return Err(FormatError::damaged(TRANSACTIONS, problem));
        }
        let header = TransactionHeader {
            committed_at,
            page_count,
            end,
        };
        transactions.push(TransactionEntry {
            txid,
            header,
            pages,
            first_slot: slot,
        });
        slot = slot
            .checked_add(pages)
            .ok_or_else(|| FormatError::damaged(TRANSACTIONS, "the transactions have too many pages"))?;
        txid = txid.next();
    }
    if u64::from(slot) != footer.index.count {
        return Err(FormatError::damaged(
            TRANSACTIONS,
            "the pages of the transactions do not add up",
        ));
    }
    if transactions.last().map(|last| last.header.end) != Some(footer.header.end) {
        return Err(FormatError::damaged(
            TRANSACTIONS,
            "it does not end where the header says",
        ));
    }
    Ok(transactions)
}

fn decode_merged(footer: &SegmentFooter, bytes: &[u8]) -> Result<Vec<MergedSegment>, FormatError> {
    let mut merged: Vec<MergedSegment> = Vec::with_capacity(bytes.len() / MERGED_LEN);
    for entry in bytes.chunks_exact(MERGED_LEN) {
        let mut fields = Fields::new(entry, MERGED);
        merged.push(MergedSegment {
            first: Txid(fields.u64()?),
            hash: ObjectHash(fields.array()?),
        });
    }
    check_merged(&footer.header, &merged).map_err(|problem| FormatError::damaged(MERGED, problem))?;
    Ok(merged)
}

/// Grows with what is decompressed, not with what is announced.
fn decode_pages(
    footer: &SegmentFooter,
    transactions: &[TransactionEntry],
    bytes: &[u8],
) -> Result<Vec<Pgno>, FormatError> {
    let damaged = |problem: String| FormatError::damaged(INDEX, problem);
    let unreadable = |error: std::io::Error| FormatError::damaged(INDEX, format!("it cannot be decompressed: {error}"));
    let mut decoder = zstd::stream::read::Decoder::with_buffer(bytes).map_err(FormatError::Compression)?;
    decoder
        .window_log_max(WINDOW_LOG_MAX)
        .map_err(FormatError::Compression)?;
    let mut distances = std::io::BufReader::with_capacity(16 * 1024, decoder.single_frame());
    let lock_page = footer.header.page_size.lock_page();
    let mut pages = Vec::new();
    for transaction in transactions {
        let mut number = 0u32;
        for _ in 0..transaction.pages {
            let mut distance = [0; 4];
            distances.read_exact(&mut distance).map_err(unreadable)?;
            let next = number
                .checked_add(u32::from_le_bytes(distance))
                .filter(|next| *next > number);
            let page = next
                .filter(|next| *next <= transaction.header.page_count)
                .and_then(Pgno::new)
                .filter(|page| *page != lock_page)
                .ok_or_else(|| damaged(format!("a page number of transaction {} cannot be", transaction.txid)))?;
            number = page.get();
            pages.push(page);
        }
    }
    if distances.read(&mut [0]).map_err(unreadable)? != 0 {
        return Err(damaged("it has more pages than the transactions".to_owned()));
    }
    if !distances.into_inner().finish().is_empty() {
        return Err(damaged("something follows its zstd frame".to_owned()));
    }
    Ok(pages)
}

/// What [`SegmentReader::for_each`] comes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A transaction begins.
    Begin(&'a TransactionEntry),
    /// A page of that transaction.
    Page(Pgno, &'a [u8]),
}

/// Decompresses the blocks of segments, one at a time.
pub struct SegmentReader {
    decompressor: Decompressor<'static>,
    /// Of a block that is stored as [`changes`].
    content: Vec<u8>,
    raw: Vec<u8>,
}

impl std::fmt::Debug for SegmentReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentReader").finish_non_exhaustive()
    }
}

impl SegmentReader {
    /// A reader for any number of segments.
    ///
    /// # Errors
    ///
    /// [`FormatError::Compression`] when there is no memory for it.
    pub fn new() -> Result<SegmentReader, FormatError> {
        let decompressor = Decompressor::new().map_err(FormatError::Compression)?;
        Ok(SegmentReader {
            decompressor,
            content: Vec::new(),
            raw: Vec::new(),
        })
    }

    /// The pages in a block, whose bytes in the object are `stored`.
    ///
    /// # Errors
    ///
    /// [`FormatError::Damaged`] when the bytes are not that block.
    pub fn block(&mut self, index: &SegmentIndex, block: usize, stored: &[u8]) -> Result<&[u8], FormatError> {
        const PART: &str = "block";
        let damaged = |problem: &str| FormatError::damaged(PART, format!("number {block}: {problem}"));
        let expected = index
            .blocks
            .get(block)
            .ok_or_else(|| damaged("there is no such block"))?;
        if stored.len() as u64 != u64::from(expected.stored_len) {
            return Err(damaged("it has another length than it should"));
        }
        // Several frames, one behind the other, would be decompressed as if they were one.
        if zstd::zstd_safe::find_frame_compressed_size(stored) != Ok(stored.len()) {
            return Err(damaged("it is not one zstd frame"));
        }
        let content_len = expected.content_len as usize;
        let has_changes = index.has_changes(block);
        let content = if has_changes { &mut self.content } else { &mut self.raw };
        content.clear();
        content.reserve_exact(content_len);
        self.decompressor
            .decompress_to_buffer(stored, content)
            .map_err(|error| damaged(&format!("it cannot be decompressed: {error}")))?;
        if content.len() != content_len {
            return Err(damaged("its content has another length than it should"));
        }
        if has_changes {
            let page_size = index.header.page_size.as_usize();
            changes::apply(&self.content, page_size, index.pages_in(block), &mut self.raw).map_err(damaged)?;
        }
        // Of the pages as they came to the writer: what made them smaller is not to be believed.
        if block_crc(&self.raw, stored) != expected.crc {
            return Err(damaged("its CRC-32 does not match"));
        }
        Ok(&self.raw)
    }

    /// The same for whoever keeps the pages.
    ///
    /// # Errors
    ///
    /// As [`block`](Self::block).
    pub fn take_block(&mut self, index: &SegmentIndex, block: usize, stored: &[u8]) -> Result<Vec<u8>, FormatError> {
        self.block(index, block, stored)?;
        Ok(std::mem::take(&mut self.raw))
    }

    /// Goes through those of the segment's transactions that are in `range`, and through all their pages, in order.
    /// `load` gives the stored bytes of a block; it is asked for each block of [`SegmentIndex::blocks_of`] once, ascending.
    ///
    /// # Errors
    ///
    /// What [`block`](Self::block), `load` and `visit` return.
    pub fn for_each<E: From<FormatError>>(
        &mut self,
        index: &SegmentIndex,
        range: RangeInclusive<Txid>,
        mut load: impl FnMut(usize) -> Result<Bytes, E>,
        mut visit: impl FnMut(Step<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let page_size = index.header.page_size.as_usize();
        let per_block = pages_per_block(index.header.page_size) as usize;
        let mut loaded = None;
        for transaction in index.transactions.iter().filter(|entry| range.contains(&entry.txid)) {
            visit(Step::Begin(transaction))?;
            let first = transaction.first_slot as usize;
            let numbers = index
                .pages
                .get(first..first + transaction.pages as usize)
                .ok_or_else(|| FormatError::damaged(INDEX, "it is too short"))?;
            for (slot, pgno) in (first..).zip(numbers) {
                let block = slot / per_block;
                if loaded != Some(block) {
                    let stored = load(block)?;
                    self.block(index, block, &stored)?;
                    loaded = Some(block);
                }
                let at = slot % per_block * page_size;
                let page = self
                    .raw
                    .get(at..at + page_size)
                    .ok_or_else(|| FormatError::damaged("block", format!("number {block}: it is too short")))?;
                visit(Step::Page(*pgno, page))?;
            }
        }
        Ok(())
    }
}
