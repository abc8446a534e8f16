//! Writing a segment as a stream. Owns the order of calls and what makes a segment whole; keeps one block and the tables
//! in memory, however large the segment becomes.

use std::io::Write;

use replvfs_vfs::types::{Pgno, Txid};
use zstd::bulk::Compressor;

use super::super::wire::{Sink, put_crc, put_position};
use super::changes::Changes;
use super::{
    BLOCK_LEN, Block, FOOTER_LEN, FormatError, HEADER_LEN, Kind, MERGED_LEN, MergedSegment, ObjectHash, SegmentHeader,
    TRANSACTION_LEN, TransactionEntry, TransactionHeader, pages_per_block,
};

const PART: &str = "segment";

/// Encodes one segment: [`begin`](Self::begin) for each transaction, [`page`](Self::page) for each of its pages.
///
/// After an error the output is not a segment, and the writer must be dropped.
pub struct SegmentWriter<W: Write> {
    sink: Sink<W>,
    pub(super) kind: Kind,
    pub(super) header: SegmentHeader,
    level: i32,
    compressor: Compressor<'static>,
    /// Of the block that is begun: its pages, their numbers, and the CRC-32 of the pages as they came.
    raw: Vec<u8>,
    numbers: Vec<u32>,
    crc: crc32fast::Hasher,
    changes: Changes,
    stored: Vec<u8>,
    block_bytes: usize,
    blocks: Vec<Block>,
    pub(super) transactions: Vec<TransactionEntry>,
    /// Of a span.
    pub(super) merged: Vec<MergedSegment>,
    /// The last transaction of the segment that was ended last.
    pub(super) ended: Option<Txid>,
    /// Page numbers as the index has them: each as its distance from the one before in its transaction.
    distances: Vec<u8>,
    page_total: u32,
    last_page: u32,
}

impl<W: Write> std::fmt::Debug for SegmentWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentWriter")
            .field("header", &self.header)
            .field("transactions", &self.transactions.len())
            .field("pages", &self.page_total)
            .finish_non_exhaustive()
    }
}

/// A finished segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// What the next segment has to name as its predecessor.
    pub hash: ObjectHash,
    /// Length of the object in bytes.
    pub len: u64,
}

impl<W: Write> SegmentWriter<W> {
    /// Starts a segment that is to have the transactions `header.first..=header.last`. `level` is zstd's.
    ///
    /// # Errors
    ///
    /// [`FormatError::Refused`] for a header that no reader accepts, or when `out` cannot be written to.
    pub fn new(out: W, header: SegmentHeader, level: i32) -> Result<Self, FormatError> {
        let count = header.transaction_count().filter(|count| u32::try_from(*count).is_ok());
        if header.first == Txid::ZERO || header.last.0 == u64::MAX || count.is_none() {
            let problem = format!("transactions {}..={} are no segment", header.first, header.last);
            return Err(FormatError::refused(PART, problem));
        }
        SegmentWriter::start(out, Kind::Segment, header, level)
    }

    pub(super) fn start(out: W, kind: Kind, header: SegmentHeader, level: i32) -> Result<Self, FormatError> {
        let mut sink = Sink::new(out);
        sink.write_all(&header.encode(kind)).map_err(FormatError::Io)?;
        let block_bytes = pages_per_block(header.page_size) as usize * header.page_size.as_usize();
        Ok(SegmentWriter {
            sink,
            kind,
            header,
            level,
            compressor: Compressor::new(level).map_err(FormatError::Compression)?,
            raw: Vec::new(),
            numbers: Vec::new(),
            crc: crc32fast::Hasher::new(),
            changes: Changes::default(),
            stored: Vec::new(),
            block_bytes,
            blocks: Vec::new(),
            transactions: Vec::new(),
            merged: Vec::new(),
            ended: None,
            distances: Vec::new(),
            page_total: 0,
            last_page: 0,
        })
    }

    /// Starts the next transaction; the first one has the txid `header.first`.
    ///
    /// # Errors
    ///
    /// [`FormatError::Refused`] when the segment has all its transactions.
    pub fn begin(&mut self, transaction: TransactionHeader) -> Result<(), FormatError> {
        let txid = match self.transactions.last() {
            Some(last) => last.txid.next(),
            None => self.header.first,
        };
        if txid > self.header.last {
            let problem = format!("transaction {txid} comes after its last one, {}", self.header.last);
            return Err(FormatError::refused(PART, problem));
        }
        self.last_page = 0;
        self.transactions.push(TransactionEntry {
            txid,
            header: transaction,
            pages: 0,
            first_slot: self.page_total,
        });
        Ok(())
    }

    /// Adds a page to the transaction that was begun last: pages in ascending order, never the lock page.
    ///
    /// # Errors
    ///
    /// [`FormatError::Refused`] for a page that cannot be in this transaction, [`FormatError::Io`] when the output fails.
    pub fn page(&mut self, pgno: Pgno, page: &[u8]) -> Result<(), FormatError> {
        let page_size = self.header.page_size;
        let Some(transaction) = self.transactions.last_mut() else {
            return Err(FormatError::refused(PART, "a page comes before the first transaction"));
        };
        let (number, count) = (pgno.get(), transaction.header.page_count);
        let problem = if page.len() != page_size.as_usize() {
            Some(format!("has {} bytes, not {page_size}", page.len()))
        } else if number > count {
            Some(format!("is beyond the {count} pages of the database"))
        } else if pgno == page_size.lock_page() {
            Some("is the lock page".to_owned())
        } else if number <= self.last_page {
            Some(format!("comes after page {}", self.last_page))
        } else {
            None
        };
        if let Some(problem) = problem {
            let problem = format!("page {pgno} of transaction {} {problem}", transaction.txid);
            return Err(FormatError::refused(PART, problem));
        }
        self.page_total = self
            .page_total
            .checked_add(1)
            .ok_or_else(|| FormatError::refused(PART, format!("it has more than {} pages", u32::MAX)))?;
        transaction.pages += 1;
        self.distances
            .extend_from_slice(&(number - self.last_page).to_le_bytes());
        self.last_page = number;
        self.numbers.push(number);
        self.raw.extend_from_slice(page);
        self.crc.update(page);
        if self.raw.len() >= self.block_bytes {
            self.end_block()
        } else {
            Ok(())
        }
    }

    /// Writes what is left: the last block, the tables and the footer.
    ///
    /// # Errors
    ///
    /// [`FormatError::Refused`] when the transactions do not lead to the header's last one and its end,
    /// [`FormatError::Io`] when the output fails.
    pub fn finish(mut self) -> Result<(W, Sealed), FormatError> {
        let last = self.transactions.last().map(|last| (last.txid, last.header.end));
        if last != Some((self.header.last, self.header.end)) {
            let problem = format!(
                "its transactions do not end at {}, where its header says",
                self.header.last
            );
            return Err(FormatError::refused(PART, problem));
        }
        if !self.raw.is_empty() {
            self.end_block()?;
        }
        let footer = self.write_tables()?;
        self.sink.write_all(&footer).map_err(FormatError::Io)?;
        let (out, hash, len) = self.sink.finish()?;
        Ok((out, Sealed { hash, len }))
    }

    fn end_block(&mut self) -> Result<(), FormatError> {
        let page_size = self.header.page_size.as_usize();
        let changes = self.changes.encode(&self.raw, page_size, &self.numbers);
        let content = changes.unwrap_or(&self.raw);
        self.stored.clear();
        self.stored.reserve(zstd::zstd_safe::compress_bound(content.len()));
        self.compressor
            .compress_to_buffer(content, &mut self.stored)
            .map_err(FormatError::Compression)?;
        let mut crc = std::mem::take(&mut self.crc);
        crc.update(&self.stored);
        self.blocks.push(Block {
            offset: self.sink.written(),
            // Both are a little over 1 MiB at most.
            stored_len: self.stored.len() as u32,
            content_len: content.len() as u32,
            crc: crc.finalize(),
        });
        self.raw.clear();
        self.numbers.clear();
        self.sink.write_all(&self.stored).map_err(FormatError::Io)
    }

    /// Returns the footer that describes them.
    fn write_tables(&mut self) -> Result<Vec<u8>, FormatError> {
        let mut footer = Vec::with_capacity(self.kind.footer_len());
        self.header.put_fields(self.kind, &mut footer);
        let put = |footer: &mut Vec<u8>, numbers: &[u64], crc: u32| {
            numbers
                .iter()
                .for_each(|number| footer.extend_from_slice(&number.to_le_bytes()));
            footer.extend_from_slice(&crc.to_le_bytes());
        };

        let offset = self.sink.written();
        let mut table = Vec::with_capacity(self.blocks.len() * BLOCK_LEN);
        for block in &self.blocks {
            table.extend_from_slice(&block.offset.to_le_bytes());
            [block.stored_len, block.content_len, block.crc]
                .iter()
                .for_each(|field| table.extend_from_slice(&field.to_le_bytes()));
        }
        self.sink.write_all(&table).map_err(FormatError::Io)?;
        put(
            &mut footer,
            &[offset, self.blocks.len() as u64],
            crc32fast::hash(&table),
        );

        let offset = self.sink.written();
        let mut table = Vec::with_capacity(self.transactions.len() * TRANSACTION_LEN);
        for TransactionEntry { header, pages, .. } in &self.transactions {
            table.extend_from_slice(&header.committed_at.0.to_le_bytes());
            table.extend_from_slice(&header.page_count.to_le_bytes());
            table.extend_from_slice(&pages.to_le_bytes());
            put_position(&mut table, header.end);
        }
        self.sink.write_all(&table).map_err(FormatError::Io)?;
        put(
            &mut footer,
            &[offset, self.transactions.len() as u64],
            crc32fast::hash(&table),
        );

        let offset = self.sink.written();
        let crc = self.write_index()?;
        put(
            &mut footer,
            &[offset, self.sink.written() - offset, u64::from(self.page_total)],
            crc,
        );

        if self.kind == Kind::Span {
            let offset = self.sink.written();
            let mut table = Vec::with_capacity(self.merged.len() * MERGED_LEN);
            for MergedSegment { first, hash } in &self.merged {
                table.extend_from_slice(&first.0.to_le_bytes());
                table.extend_from_slice(&hash.0);
            }
            self.sink.write_all(&table).map_err(FormatError::Io)?;
            put(
                &mut footer,
                &[offset, self.merged.len() as u64],
                crc32fast::hash(&table),
            );
        }

        let len = self.sink.written() + self.kind.footer_len() as u64;
        let (pages, transactions) = (self.page_total, self.transactions.len());
        if !self.kind.may_have(pages.into(), transactions as u64, len) {
            let problem = format!("{pages} pages and {transactions} transactions are too many for its {len} bytes");
            return Err(FormatError::refused(PART, problem));
        }
        footer.extend_from_slice(&len.to_le_bytes());
        put_crc(&mut footer);
        footer.extend_from_slice(&self.kind.magic());
        Ok(footer)
    }

    fn write_index(&mut self) -> Result<u32, FormatError> {
        self.sink.take_crc();
        let mut encoder =
            zstd::stream::write::Encoder::new(&mut self.sink, self.level).map_err(FormatError::Compression)?;
        encoder.window_log(20).map_err(FormatError::Compression)?;
        encoder
            .set_pledged_src_size(Some(self.distances.len() as u64))
            .map_err(FormatError::Compression)?;
        encoder.write_all(&self.distances).map_err(FormatError::Io)?;
        encoder.finish().map_err(FormatError::Io)?;
        Ok(self.sink.take_crc())
    }
}

const _: () = assert!(HEADER_LEN == 116 && FOOTER_LEN == 200 && BLOCK_LEN == 20 && TRANSACTION_LEN == 36);
