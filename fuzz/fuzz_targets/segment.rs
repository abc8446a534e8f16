//! Segments and spans: decoding never panics and never hands out what was not written; what was written comes back.

#![no_main]

use std::io::{Cursor, Write};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use replvfs::format::{
    FormatError, Generation, ObjectHash, SegmentHeader, SegmentIndex, SegmentReader, SegmentWriter, Step,
    TransactionHeader,
};
use replvfs_vfs::types::{PageSize, Pgno, Position, Txid, UnixMillis};

#[derive(Arbitrary, Debug)]
enum Input {
    /// An object as a store could return it.
    Object(Vec<u8>),
    /// A segment as the sealer could write it, and damage to it.
    Written {
        page_size_log: u8,
        first: u64,
        transactions: Vec<Transaction>,
        damage: Option<(u32, u8)>,
    },
    /// A span of two segments as a merger could write it, and damage to it.
    Merged {
        transactions: Vec<Transaction>,
        damage: Option<(u32, u8)>,
    },
}

#[derive(Arbitrary, Debug)]
struct Transaction {
    committed_at: i64,
    page_count: u32,
    pages: Vec<(u32, u8)>,
}

type Pages = Vec<(Txid, Pgno, Vec<u8>)>;

fuzz_target!(|input: Input| match input {
    Input::Object(object) => {
        let _ = read(&object);
    }
    Input::Written {
        page_size_log,
        first,
        transactions,
        damage,
    } => {
        written(page_size_log, first, &transactions, damage);
    }
    Input::Merged { transactions, damage } => merged(&transactions, damage),
});

/// Reads a whole object, checking what holds for every object that is accepted.
fn read(object: &[u8]) -> Result<(SegmentHeader, Pages), FormatError> {
    let index = SegmentIndex::from_object(object)?;
    let header = *index.header();
    for segment in index.merged() {
        let (_, last) = index.merged_at(segment.first).expect("it is one of them");
        assert!(segment.first <= last.txid && last.txid <= header.last);
    }
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
        let page = vec![fill; page_size.as_usize()];
        writer.page(pgno, &page).expect("a page that is in order");
        expected.push((txid, pgno, page));
    }
}

fn check(mut object: Vec<u8>, damage: Option<(u32, u8)>, (header, expected): (SegmentHeader, Pages)) {
    match damage.map(|(at, mask)| (at as usize % object.len(), mask)) {
        Some((at, mask)) if mask != 0 => {
            object[at] ^= mask;
            // A flipped byte is found, or it is none that matters.
            if let Ok((found, pages)) = read(&object) {
                assert_eq!((found, pages), (header, expected));
            }
        }
        _ => assert_eq!(read(&object).expect("it was just written"), (header, expected)),
    }
}
