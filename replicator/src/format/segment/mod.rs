//! Segments: consecutive transactions, sealed into one object; and spans, which are consecutive segments as one object. Owns the
//! layout that the writer and the reader share, which is: header, blocks of compressed pages, block table, transaction table,
//! page index, in a span the segment table, footer.

mod changes;
mod reader;
mod span;
mod writer;

#[cfg(test)]
mod bombs;
#[cfg(test)]
mod tests;

pub use reader::{SegmentFooter, SegmentIndex, SegmentReader, Step};
pub use writer::{Sealed, SegmentWriter};

use replvfs_vfs::types::{PageSize, Position, Txid, UnixMillis};

use super::wire::{Fields, POSITION_LEN, put_crc, put_position};
use super::{FORMAT_VERSION, FormatError, Generation, ObjectHash};

/// The pages of a block have at most this many bytes before compression.
pub const BLOCK_BYTES: usize = 1 << 20;

/// No span has more pages, or transactions: its tables have to fit into memory, of whoever makes it and of whoever reads it.
pub(crate) const SPAN_PAGES: u64 = 4 << 20;
pub(crate) const SPAN_TRANSACTIONS: u64 = 1 << 20;

/// A segment of more pages is at least a byte a page long. Page numbers that follow each other compress to nothing, and so do pages of zeros, which SQLite
/// does not write by the million: without a bound a short object could name more pages than fit into memory.
const PAGES_OF_ANY_LENGTH: u64 = 16 << 20;

/// No window of an index's zstd frame is larger, so that a reader's memory is bounded.
pub(super) const WINDOW_LOG_MAX: u32 = 23;

/// What the object is, which its magic number tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Segment,
    Span,
}

impl Kind {
    fn magic(self) -> [u8; 8] {
        match self {
            Kind::Segment => *b"replvfsS",
            Kind::Span => *b"replvfsP",
        }
    }

    /// Whether an object of this length may have so many.
    fn may_have(self, pages: u64, transactions: u64, object_len: u64) -> bool {
        match self {
            Kind::Segment => pages <= PAGES_OF_ANY_LENGTH || pages <= object_len,
            Kind::Span => pages <= SPAN_PAGES && transactions <= SPAN_TRANSACTIONS,
        }
    }

    fn footer_len(self) -> usize {
        match self {
            Kind::Segment => FOOTER_LEN,
            Kind::Span => SPAN_FOOTER_LEN,
        }
    }
}

/// Header fields before the CRC-32; the footer starts with a copy of them.
const HEADER_FIELDS_LEN: usize = 8 + 4 + 4 + 3 * 8 + 2 * POSITION_LEN + 32;
const HEADER_LEN: usize = HEADER_FIELDS_LEN + 4;
const BLOCK_LEN: usize = 8 + 4 + 4 + 4;
const TRANSACTION_LEN: usize = 8 + 4 + 4 + POSITION_LEN;
const MERGED_LEN: usize = 8 + 32;
/// A segment's.
const FOOTER_LEN: usize = HEADER_FIELDS_LEN + 2 * (8 + 8 + 4) + (8 + 8 + 8 + 4) + 8 + 4 + 8;
const SPAN_FOOTER_LEN: usize = FOOTER_LEN + 8 + 8 + 4;

/// What a segment says of itself as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The generation that it belongs to.
    pub generation: Generation,
    /// Bytes a page.
    pub page_size: PageSize,
    /// Its first transaction, which is also its slot in the log.
    pub first: Txid,
    /// Its last transaction.
    pub last: Txid,
    /// The place in the WAL before the first transaction.
    pub start: Position,
    /// The place in the WAL behind the last transaction.
    pub end: Position,
    /// The hash of the segment before, or of `generation.json` if this is the generation's first.
    pub previous: ObjectHash,
}

/// A segment that a span stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergedSegment {
    /// Its first transaction: the slot that it is, or was, in.
    pub first: Txid,
    /// Of its object.
    pub hash: ObjectHash,
}

/// What a segment says of one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionHeader {
    /// When it was seen to commit.
    pub committed_at: UnixMillis,
    /// Pages in the database after it.
    pub page_count: u32,
    /// The place in the WAL behind it.
    pub end: Position,
}

/// A transaction in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionEntry {
    /// Its number.
    pub txid: Txid,
    /// What is known of it.
    pub header: TransactionHeader,
    /// How many pages it wrote.
    pub pages: u32,
    /// The slot of the first of them in the segment's storage order, from 0.
    pub first_slot: u32,
}

/// Where a block stands, and what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    offset: u64,
    stored_len: u32,
    /// Of what is compressed: less than the block's pages when they are stored as [`changes`].
    content_len: u32,
    /// Of the pages, then of the stored bytes.
    crc: u32,
}

/// Of a block, by its pages and its stored bytes.
fn block_crc(pages: &[u8], stored: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(pages);
    crc.update(stored);
    crc.finalize()
}

fn pages_per_block(page_size: PageSize) -> u32 {
    (BLOCK_BYTES as u32 / page_size.get()).max(1)
}

impl SegmentHeader {
    /// How many transactions the segment must have.
    fn transaction_count(&self) -> Option<u64> {
        self.last.0.checked_sub(self.first.0)?.checked_add(1)
    }

    fn put_fields(&self, kind: Kind, out: &mut Vec<u8>) {
        out.extend_from_slice(&kind.magic());
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&self.page_size.get().to_le_bytes());
        for number in [self.generation.0, self.first.0, self.last.0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put_position(out, self.start);
        put_position(out, self.end);
        out.extend_from_slice(&self.previous.0);
    }

    fn encode(&self, kind: Kind) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN);
        self.put_fields(kind, &mut out);
        put_crc(&mut out);
        out
    }

    /// The caller has checked the CRC-32.
    fn decode_fields(fields: &mut Fields<'_>, kind: Kind, part: &'static str) -> Result<SegmentHeader, FormatError> {
        if fields.array()? != kind.magic() {
            return Err(FormatError::damaged(
                part,
                "it does not say of the object what its end does",
            ));
        }
        fields.version()?;
        let page_size = fields.page_size()?;
        let header = SegmentHeader {
            page_size,
            generation: Generation(fields.u64()?),
            first: Txid(fields.u64()?),
            last: Txid(fields.u64()?),
            start: fields.position()?,
            end: fields.position()?,
            previous: ObjectHash(fields.array()?),
        };
        // Whoever reads on asks for the slot after the last one.
        if header.first == Txid::ZERO || header.last.0 == u64::MAX || header.transaction_count().is_none() {
            return Err(FormatError::damaged(
                part,
                format!("transactions {}..={}", header.first, header.last),
            ));
        }
        Ok(header)
    }
}
