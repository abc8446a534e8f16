//! Segments and spans: decoding never panics and never hands out what was not written; what was written comes back.

use std::io::{Cursor, Write};

use arbitrary::Arbitrary;
use replvfs::format::{
    BLOCK_BYTES, FormatError, Generation, Key, ObjectHash, SegmentHeader, SegmentIndex, SegmentReader, SegmentWriter,
    Step, TransactionHeader,
};
use replvfs_vfs::types::{PageSize, Pgno, Position, Txid, UnixMillis};

use crate::{kind, memory, mended, read};

/// A segment as the sealer could write it, and damage to it.
#[derive(Arbitrary, Debug)]
struct Written {
    page_size_log: u8,
    first: u64,
    transactions: Vec<Transaction>,
    damage: Option<(u32, u8)>,
}

/// A span of two segments as a merger could write it, and damage to it.
#[derive(Arbitrary, Debug)]
struct Merged {
    transactions: Vec<Transaction>,
    damage: Option<(u32, u8)>,
}

#[derive(Arbitrary, Debug)]
struct Transaction {
    committed_at: i64,
    page_count: u32,
    pages: Vec<(u32, u8)>,
}

type Pages = Vec<(Txid, Pgno, Vec<u8>)>;

/// A short object may name 16,777,216 pages (`FORMAT.md`): their numbers, while they move to twice the room, and a block.
const INDEX_BYTES: usize = 3 * 4 * (16 << 20) + 4 * BLOCK_BYTES;

/// 0: an object as a store could return it. 1: the same with checksums that fit. 2: a segment that is written. 4: the changes in a block. Else: a span.
pub fn run(data: &[u8]) {
    match kind(data) {
        (0, object) => drop(bounded(object)),
        (1, object) => {
            let mut object = object.to_vec();
            mended::segment(&mut object);
            drop(bounded(&object));
        }
        (2, bytes) => {
            if let Some(input) = read::<Written>(bytes) {
                written(input.page_size_log, input.first, &input.transactions, input.damage);
            }
        }
        (4, bytes) => changes(bytes),
        (_, bytes) => {
            if let Some(input) = read::<Merged>(bytes) {
                merged(&input.transactions, input.damage);
            }
        }
    }
}

/// Pages of a hostile object are looked at, not kept: there may be gigabytes.
fn bounded(object: &[u8]) -> Result<(), FormatError> {
    memory::within(INDEX_BYTES + 16 * object.len(), || {
        let index = SegmentIndex::from_object(object)?;
        agrees(&index, object);
        // Blocks of zeros are 1 MiB each in a few bytes.
        let blocks = index.block_count().min(64);
        let mut reader = SegmentReader::new()?;
        for block in 0..blocks {
            let range = index.block_range(block);
            let stored = &object[range.start as usize..range.end as usize];
            let raw = reader.block(&index, block, stored)?;
            assert!(raw.len() == index.raw_len(block) && raw.len() <= BLOCK_BYTES);
        }
        Ok(())
    })
}

/// What a forger would put in the place of a page's versions. If it is accepted, the pages that it comes to can be written.
fn changes(bytes: &[u8]) {
    let Some((count, content)) = bytes.split_first() else {
        return;
    };
    let count = usize::from(count % 16) + 1;
    let versions = |pages: &[u8]| {
        let transactions: Vec<_> = pages.chunks_exact(PAGE).map(<[u8]>::to_vec).collect();
        versions_of_one_page(&transactions)
    };
    let object = mended::block(&versions(&vec![1; count * PAGE]), content).expect("a segment of one block");
    memory::within(INDEX_BYTES + 16 * object.len(), || {
        let fits = (1..=count * PAGE).contains(&content.len());
        let index = SegmentIndex::from_object(&object);
        assert_eq!(index.is_ok(), fits);
        let Ok(index) = index else { return };
        let stored = |object: &[u8], index: &SegmentIndex| {
            let range = index.block_range(0);
            object[range.start as usize..range.end as usize].to_vec()
        };
        let mut reader = SegmentReader::new().expect("there is memory");
        let block = stored(&object, &index);
        let read = reader.take_block(&index, 0, &block);
        // Both readings of the format come to the same.
        let pages = match (read, mended::pages_of(&block, content.len(), PAGE, count)) {
            (Ok(pages), Some(again)) if pages == again => pages,
            // Not because of the checksum, which nobody could make fit.
            (Err(error), None) if !error.to_string().contains("CRC-32") => return,
            (read, again) => panic!("{read:?}, and {again:?}"),
        };
        let object = versions(&pages);
        let index = SegmentIndex::from_object(&object).expect("it was just written");
        let read = reader.block(&index, 0, &stored(&object, &index));
        assert!(read.expect("it was just written") == pages);
    });
}

const PAGE: usize = 512;

/// A segment of transactions that each write the first page.
fn versions_of_one_page(versions: &[Vec<u8>]) -> Vec<u8> {
    let header = SegmentHeader {
        generation: Generation(1),
        page_size: PageSize::new(PAGE as u32).expect("a page size"),
        first: Txid(1),
        last: Txid(versions.len() as u64),
        start: Position::default(),
        end: Position::default(),
        previous: ObjectHash::of(b"before"),
    };
    let mut writer = SegmentWriter::new(Vec::new(), header, 1).expect("a header that is in order");
    for version in versions {
        let head = TransactionHeader {
            committed_at: UnixMillis(0),
            page_count: 1,
            end: Position::default(),
        };
        writer.begin(head).expect("not more transactions than announced");
        let first = Pgno::new(1).expect("a page number");
        writer.page(first, version).expect("a page that is in order");
    }
    writer.finish().expect("all transactions are there").0
}

/// What an index says of itself fits together, and into its object.
fn agrees(index: &SegmentIndex, object: &[u8]) {
    let header = index.header();
    assert!(header.first.0 >= 1 && header.first <= header.last);
    let transactions = index.transactions();
    assert_eq!(transactions.len() as u64, header.last.0 - header.first.0 + 1);
    let mut slot = 0;
    for (entry, txid) in transactions.iter().zip(header.first.0..) {
        assert_eq!((entry.txid, entry.first_slot), (Txid(txid), slot));
        let pages = index.pages_of(entry).expect("it is one of them");
        assert_eq!(pages.len(), entry.pages as usize);
        assert!(pages.is_sorted_by(|one, next| one < next), "pages ascend");
        let is_page = |page: &Pgno| page.get() <= entry.header.page_count && *page != header.page_size.lock_page();
        assert!(pages.iter().all(is_page));
        slot += entry.pages;
    }
    assert_eq!(index.pages().len(), slot as usize);
    let (mut end, mut raw) = (SegmentIndex::START_LEN, 0);
    for block in 0..index.block_count() {
        let range = index.block_range(block);
        assert!(range.start == end && range.end > end && range.end <= object.len() as u64);
        (end, raw) = (range.end, raw + index.raw_len(block) as u64);
    }
    assert_eq!(raw, u64::from(slot) * u64::from(header.page_size.get()));
    for segment in index.merged() {
        let (_, last) = index.merged_at(segment.first).expect("it is one of them");
        assert!(segment.first <= last.txid && last.txid <= header.last);
    }
    let name = index.key();
    assert_eq!(Key::parse(&name.path()), Some(name));
}

/// Reads a whole object, checking what holds for every object that is accepted.
fn whole(object: &[u8]) -> Result<(SegmentHeader, Pages), FormatError> {
    let index = SegmentIndex::from_object(object)?;
    let header = *index.header();
    agrees(&index, object);
    let mut pages = Pages::new();
    let mut current = None;
    let load = |block: usize| {
        let range = index.block_range(block);
        let (start, end) = (range.start as usize, range.end as usize);
        Ok::<_, FormatError>(
            object
                .get(start..end)
                .expect("a block lies inside its object")
                .to_vec()
                .into(),
        )
    };
    SegmentReader::new()?.for_each(&index, header.first..=header.last, load, |step| {
        match step {
            Step::Begin(entry) => {
                let expected = current.map_or(header.first, |(txid, _): (Txid, Option<Pgno>)| txid.next());
                assert_eq!(entry.txid, expected, "transactions are consecutive");
                current = Some((entry.txid, None));
            }
            Step::Page(pgno, page) => {
                let (txid, last) = current.as_mut().expect("a transaction begins before its pages");
                assert!(last.is_none_or(|last| last < pgno), "pages ascend");
                assert_eq!(page.len(), header.page_size.as_usize());
                assert_ne!(pgno, header.page_size.lock_page());
                *last = Some(pgno);
                pages.push((*txid, pgno, page.to_vec()));
            }
        }
        Ok(())
    })?;
    assert_eq!(
        current.map(|(txid, _)| txid),
        Some(header.last),
        "no transaction is missing"
    );
    Ok((header, pages))
}

fn written(page_size_log: u8, first: u64, transactions: &[Transaction], damage: Option<(u32, u8)>) {
    let page_size = PageSize::new(512 << (page_size_log % 8)).expect("a page size");
    let first = Txid(first % (1 << 60) + 1);
    let transactions = &transactions[..transactions.len().min(64)];
    if transactions.is_empty() {
        return;
    }
    let last = Txid(first.0 + transactions.len() as u64 - 1);
    let end_of = |txid: Txid| Position {
        frame: (txid.0 - first.0 + 1) as u32,
        ..Position::default()
    };
    let header = SegmentHeader {
        generation: Generation(1),
        page_size,
        first,
        last,
        start: Position::default(),
        end: end_of(last),
        previous: ObjectHash::of(b"before"),
    };

    let mut writer = SegmentWriter::new(Vec::new(), header, 1).expect("a header that is in order");
    let mut expected = Pages::new();
    let mut txid = first;
    for transaction in transactions {
        write(&mut writer, page_size, transaction, (txid, end_of(txid)), &mut expected);
        txid = txid.next();
    }
    let (object, sealed) = writer.finish().expect("all transactions are there");
    assert_eq!(sealed.hash, ObjectHash::of(&object));
    check(object, damage, (header, expected));
}

fn merged(transactions: &[Transaction], damage: Option<(u32, u8)>) {
    let page_size = PageSize::new(512).expect("a page size");
    let transactions = &transactions[..transactions.len().min(64)];
    if transactions.len() < 2 {
        return;
    }
    let header = SegmentHeader {
        generation: Generation(1),
        page_size,
        first: Txid(1),
        last: Txid(0),
        start: Position::default(),
        end: Position::default(),
        previous: ObjectHash::of(b"before"),
    };
    let mut writer = SegmentWriter::span(Cursor::new(Vec::new()), header, 1).expect("a header that is in order");
    let mut expected = Pages::new();
    for (transaction, txid) in transactions.iter().zip(1u32..) {
        let place = Position {
            frame: txid,
            ..Position::default()
        };
        write(
            &mut writer,
            page_size,
            transaction,
            (Txid(txid.into()), place),
            &mut expected,
        );
        if txid == 1 || txid as usize == transactions.len() {
            writer
                .merged(ObjectHash([txid as u8; 32]))
                .expect("it has a transaction");
        }
    }
    let (object, header, _) = writer.finish_span().expect("two segments");
    check(object.into_inner(), damage, (header, expected));
}

fn write<W: Write>(
    writer: &mut SegmentWriter<W>,
    page_size: PageSize,
    transaction: &Transaction,
    (txid, end): (Txid, Position),
    expected: &mut Pages,
) {
    let page_count = transaction.page_count.max(1);
    let head = TransactionHeader {
        committed_at: UnixMillis(transaction.committed_at),
        page_count,
        end,
    };
    writer.begin(head).expect("not more transactions than announced");
    let mut pages: Vec<(Pgno, u8)> = transaction
        .pages
        .iter()
        .take(64)
        .filter_map(|(number, fill)| Some((Pgno::new(number % page_count + 1)?, *fill)))
        .filter(|(pgno, _)| *pgno != page_size.lock_page())
        .collect();
    pages.sort_unstable();
    pages.dedup_by_key(|(pgno, _)| *pgno);
    for (pgno, fill) in pages {
        // What differs from the version before is a part of it, or nothing, or all.
        let (size, fill_from) = (page_size.as_usize(), usize::from(fill) * 31);
        let mut page = vec![pgno.get() as u8; size];
        page[fill_from % size..]
            .iter_mut()
            .take(fill_from % 700)
            .for_each(|byte| *byte = fill);
        writer.page(pgno, &page).expect("a page that is in order");
        expected.push((txid, pgno, page));
    }
}

fn check(mut object: Vec<u8>, damage: Option<(u32, u8)>, (header, expected): (SegmentHeader, Pages)) {
    match damage.map(|(at, mask)| (at as usize % object.len(), mask)) {
        Some((at, mask)) if mask != 0 => {
            object[at] ^= mask;
            // A flipped byte is found, or it is none that matters.
            if let Ok((found, pages)) = whole(&object) {
                assert_eq!((found, pages), (header, expected));
            }
        }
        _ => assert_eq!(whole(&object).expect("it was just written"), (header, expected)),
    }
}
