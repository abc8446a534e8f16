//! Segments against a model: the transactions that went in.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use replvfs_vfs::types::{PageSize, Pgno, Position, Salts, Txid, UnixMillis};

use super::*;
use crate::format::Key;

/// A transaction as it goes in and comes out.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    header: TransactionHeader,
    pages: Vec<(u32, Vec<u8>)>,
}

fn position(frame: u32) -> Position {
    Position {
        salts: Salts(11, 12),
        frame,
        checksum: [frame ^ 0x55, 14],
    }
}

fn header(page_size: u32, transactions: &[Model]) -> SegmentHeader {
    SegmentHeader {
        generation: Generation(2),
        page_size: PageSize::new(page_size).unwrap(),
        first: Txid(100),
        last: Txid(99 + transactions.len() as u64),
        start: position(7),
        end: transactions.last().unwrap().header.end,
        previous: ObjectHash([9; 32]),
    }
}

fn write(header: SegmentHeader, transactions: &[Model]) -> Result<(Vec<u8>, Sealed), FormatError> {
    let mut writer = SegmentWriter::new(Vec::new(), header, 1)?;
    for transaction in transactions {
        writer.begin(transaction.header)?;
        for (number, page) in &transaction.pages {
            writer.page(Pgno::new(*number).unwrap(), page)?;
        }
    }
    writer.finish()
}

fn read(object: &[u8]) -> Result<(SegmentHeader, Vec<Model>), FormatError> {
    let index = SegmentIndex::from_object(object)?;
    let (first, last) = (index.header().first, index.header().last);
    Ok((*index.header(), read_range(object, &index, first..=last)?))
}

fn read_range(
    object: &[u8],
    index: &SegmentIndex,
    range: std::ops::RangeInclusive<Txid>,
) -> Result<Vec<Model>, FormatError> {
    let mut transactions: Vec<Model> = Vec::new();
    let mut loads = index.blocks_of(range.clone());
    let load = |block: usize| -> Result<Bytes, FormatError> {
        assert_eq!(Some(block), loads.next());
        let range = index.block_range(block);
        Ok(Bytes::copy_from_slice(
            &object[range.start as usize..range.end as usize],
        ))
    };
    SegmentReader::new()?.for_each(index, range.clone(), load, |step| {
        match step {
            Step::Begin(entry) => {
                assert_eq!(entry.txid.0, range.start().0.max(100) + transactions.len() as u64);
                transactions.push(Model {
                    header: entry.header,
                    pages: Vec::new(),
                });
            }
            Step::Page(pgno, page) => transactions.last_mut().unwrap().pages.push((pgno.get(), page.to_vec())),
        }
        Ok::<(), FormatError>(())
    })?;
    assert_eq!(loads.next(), None);
    Ok(transactions)
}

fn models(page_size: u32) -> impl Strategy<Value = Vec<Model>> {
    let transaction = (
        any::<i64>(),
        1u32..6000,
        any::<u32>(),
        proptest::collection::btree_map(1u32..6000, (any::<u8>(), any::<u16>()), 0..40),
    );
    // Of few pages most are written again and again.
    let most = prop_oneof![Just(6000u32), Just(9)];
    (most, proptest::collection::vec(transaction, 1..12)).prop_map(move |(most, transactions)| {
        let model = |(time, page_count, frame, pages): (i64, u32, u32, BTreeMap<u32, (u8, u16)>)| {
            let pages: BTreeMap<u32, _> = pages
                .into_iter()
                .map(|(number, how)| (number % most + 1, how))
                .collect();
            let page = |(number, (fill, at)): (u32, (u8, u16))| {
                let mut page = vec![if most < 6000 { 5 } else { fill }; page_size as usize];
                page[usize::from(at) % page_size as usize] = !fill;
                (number, page)
            };
            Model {
                header: TransactionHeader {
                    committed_at: UnixMillis(time),
                    page_count,
                    end: position(frame),
                },
                pages: pages
                    .into_iter()
                    .filter(|(number, _)| *number <= page_count)
                    .map(page)
                    .collect(),
            }
        };
        transactions.into_iter().map(model).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_goes_in_comes_out(page_size in prop_oneof![Just(512u32), Just(4096), Just(65_536)], seed in models(512), from in 0u64..12, len in 0u64..12) {
        // The same pages at another size, so that some segments have many blocks.
        let mut transactions = seed;
        for page in transactions.iter_mut().flat_map(|transaction| &mut transaction.pages) {
            page.1.resize(page_size as usize, 3);
        }
        let header = header(page_size, &transactions);
        let (object, sealed) = write(header, &transactions).unwrap();
        prop_assert_eq!(sealed, Sealed { hash: ObjectHash::of(&object), len: object.len() as u64 });
        prop_assert_eq!(read(&object).unwrap(), (header, transactions.clone()));

        let index = SegmentIndex::from_object(&object).unwrap();
        let range = Txid(100 + from)..=Txid(100 + from + len);
        let wanted: Vec<Model> = transactions.into_iter().skip(from as usize).take(len as usize + 1).collect();
        prop_assert_eq!(read_range(&object, &index, range).unwrap(), wanted);
    }

    #[test]
    fn damage_is_an_error(transactions in models(512), at in any::<prop::sample::Index>(), mask in 1u8.., from_end in any::<bool>()) {
        let (object, _) = write(header(512, &transactions), &transactions).unwrap();
        let mut damaged = object.clone();
        let at = at.index(if from_end { object.len().min(800) } else { object.len() });
        let at = if from_end { object.len() - 1 - at } else { at };
        damaged[at] ^= mask;
        prop_assert!(read(&damaged).is_err());
        prop_assert!(read(&object[..at]).is_err());
    }

    #[test]
    fn noise_is_an_error(noise in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(read(&noise).is_err());
    }
}

fn small() -> Vec<Model> {
    let transaction = |n: u32, numbers: &[u32]| Model {
        header: TransactionHeader {
            committed_at: UnixMillis(1000 + i64::from(n)),
            page_count: 9,
            end: position(n),
        },
        pages: numbers
            .iter()
            .map(|number| (*number, vec![*number as u8; 512]))
            .collect(),
    };
    vec![transaction(1, &[1, 3, 9]), transaction(2, &[]), transaction(3, &[2])]
}

/// The same with a page that is written three times.
fn rewritten() -> Vec<Model> {
    let mut transactions = small();
    for (at, transaction) in transactions.iter_mut().enumerate() {
        let mut page = vec![7; 512];
        page[100 * at..100 * at + 30].fill(at as u8);
        transaction.pages.retain(|(number, _)| *number != 1);
        transaction.pages.insert(0, (1, page));
    }
    transactions
}

#[test]
fn every_changed_bit_and_every_cut_of_a_small_segment_is_noticed() {
    for (transactions, changes) in [(small(), false), (rewritten(), true)] {
        let (object, _) = write(header(512, &transactions), &transactions).unwrap();
        let index = SegmentIndex::from_object(&object).unwrap();
        assert_eq!(index.has_changes(0), changes);
        for at in 0..object.len() {
            assert!(read(&object[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut damaged = object.clone();
                damaged[at] ^= 1 << bit;
                assert!(read(&damaged).is_err(), "byte {at}, bit {bit}");
            }
        }
        assert!(read(&[object.as_slice(), &[0]].concat()).is_err());
        assert!(read(&[&[0], object.as_slice()].concat()).is_err());
    }
}

/// What is in a block is believed only if it is its pages, or changes that come to them.
#[test]
fn a_forged_block_is_refused_even_with_fitting_checksums() {
    let transactions = rewritten();
    let pages: Vec<u8> = transactions
        .iter()
        .flat_map(|transaction| &transaction.pages)
        .flat_map(|(_, page)| page.clone())
        .collect();
    let (object, _) = write(header(512, &transactions), &transactions).unwrap();
    let mut index = SegmentIndex::from_object(&object).unwrap();
    let mut read = |content: &[u8], said: usize| {
        let stored = zstd::bulk::compress(content, 1).unwrap();
        let block = &mut index.blocks[0];
        let crc = block_crc(&pages, &stored);
        (block.stored_len, block.content_len, block.crc) = (stored.len() as u32, said as u32, crc);
        let mut reader = SegmentReader::new().unwrap();
        let read = reader.block(&index, 0, &stored).map(<[u8]>::to_vec);
        read.map_err(|error| error.to_string())
    };
    assert!(read(&pages, pages.len()).unwrap() == pages);
    let mut whole = 5u32.to_le_bytes().to_vec();
    whole.extend_from_slice(&[0; 5]);
    whole.extend_from_slice(&pages);
    // As long as the pages or longer: changes are never that.
    let refused = [
        read(&whole, pages.len()),
        read(&pages, pages.len() - 1),
        read(&pages[1..], pages.len() - 1),
        read(&[], 0),
    ];
    for refused in refused {
        let error = refused.unwrap_err();
        assert!(!error.contains("CRC-32"), "{error}");
    }
}

/// zstd decompresses them as if they were one.
#[test]
fn several_frames_in_the_place_of_a_block_are_refused() {
    let transactions = rewritten();
    let (object, _) = write(header(512, &transactions), &transactions).unwrap();
    let mut index = SegmentIndex::from_object(&object).unwrap();
    let pages = vec![5; index.raw_len(0)];
    let frame = |content: &[u8]| zstd::bulk::compress(content, 1).unwrap();
    let (one, other) = pages.split_at(700);
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0].to_vec();
    let mut read = |stored: Vec<u8>| {
        let crc = block_crc(&pages, &stored);
        index.blocks[0] = Block {
            offset: 0,
            stored_len: stored.len() as u32,
            content_len: pages.len() as u32,
            crc,
        };
        let read = SegmentReader::new().unwrap().take_block(&index, 0, &stored);
        read.map_err(|error| error.to_string())
    };
    assert!(read(frame(&pages)).unwrap() == pages);
    for stored in [
        [frame(one), frame(other)].concat(),
        [skippable.clone(), frame(&pages)].concat(),
        [frame(&pages), skippable].concat(),
        [frame(&pages), vec![0]].concat(),
    ] {
        let error = read(stored).unwrap_err();
        assert!(error.contains("one zstd frame"), "{error}");
    }
}

/// An encoder that is wrong, or a processor: everything fits but the pages.
#[test]
fn a_block_that_comes_to_other_pages_is_refused() {
    let transactions = rewritten();
    let (object, _) = write(header(512, &transactions), &transactions).unwrap();
    let mut index = SegmentIndex::from_object(&object).unwrap();
    assert!(index.has_changes(0));
    let range = index.block_range(0);
    let stored = &object[range.start as usize..range.end as usize];
    let mut reader = SegmentReader::new().unwrap();
    let mut pages = reader.take_block(&index, 0, stored).unwrap();
    for at in [0, pages.len() / 2, pages.len() - 1] {
        pages[at] ^= 1;
        index.blocks[0].crc = block_crc(&pages, stored);
        let error = reader.block(&index, 0, stored).unwrap_err().to_string();
        assert!(error.contains("CRC-32"), "{error}");
        pages[at] ^= 1;
    }
    index.blocks[0].crc = block_crc(&pages, stored);
    assert!(reader.block(&index, 0, stored).unwrap() == pages);
}

/// A forger can make all checksums fit; what is said must still be possible.
#[test]
fn numbers_that_cannot_be_are_refused_even_with_fitting_checksums() {
    let transactions = small();
    let (object, _) = write(header(512, &transactions), &transactions).unwrap();
    let footer_at = object.len() - FOOTER_LEN;
    for field in (HEADER_FIELDS_LEN..FOOTER_LEN - 12).step_by(4) {
        for value in [1u32, 0x7fff_ffff, u32::MAX] {
            let mut forged = object.clone();
            let at = footer_at + field;
            let old = u32::from_le_bytes(forged[at..at + 4].try_into().unwrap());
            forged[at..at + 4].copy_from_slice(&old.wrapping_add(value).to_le_bytes());
            let crc = crc32fast::hash(&forged[footer_at..footer_at + FOOTER_LEN - 12]);
            forged[footer_at + FOOTER_LEN - 12..footer_at + FOOTER_LEN - 8].copy_from_slice(&crc.to_le_bytes());
            assert!(read(&forged).is_err(), "footer field at {field}");
        }
    }
}

#[test]
fn the_writer_refuses_what_no_reader_accepts() {
    let refused = |result: Result<_, FormatError>| assert!(matches!(result, Err(FormatError::Refused { .. })));
    let ok = small();
    let mut wrong = header(512, &ok);
    wrong.last = Txid(103);
    refused(write(wrong, &ok));
    wrong.last = Txid(101);
    refused(write(wrong, &ok));
    wrong.last = Txid(99);
    refused(write(wrong, &ok));
    let mut wrong = header(512, &ok);
    wrong.end = position(77);
    refused(write(wrong, &ok));
    for pages in [
        vec![(10, vec![0; 512])],
        vec![(2, vec![0; 511])],
        vec![(2, vec![0; 512]), (2, vec![0; 512])],
    ] {
        let mut transactions = small();
        transactions[1].pages = pages;
        refused(write(header(512, &ok), &transactions));
    }
    let lock_page = PageSize::new(65_536).unwrap().lock_page().get();
    let header_of = TransactionHeader {
        committed_at: UnixMillis(0),
        page_count: u32::MAX,
        end: position(1),
    };
    let transactions = [Model {
        header: header_of,
        pages: vec![(lock_page, vec![0; 65_536])],
    }];
    refused(write(header(65_536, &transactions), &transactions));
}

#[test]
fn a_seal_in_the_slot_is_named() {
    let seal = [b"replvfsE".as_slice(), &[0; 300], b"replvfsE"].concat();
    assert!(matches!(read(&seal), Err(FormatError::Seal)));
}

/// The segments of a span have `lens` transactions each.
fn write_span(transactions: &[Model], lens: &[usize]) -> Result<(Vec<u8>, SegmentHeader), FormatError> {
    let header = SegmentHeader {
        last: Txid(0),
        end: Position::default(),
        ..header(512, transactions)
    };
    let mut writer = SegmentWriter::span(std::io::Cursor::new(Vec::new()), header, 1)?;
    let mut rest = transactions.iter();
    for (at, len) in lens.iter().enumerate() {
        for transaction in rest.by_ref().take(*len) {
            writer.begin(transaction.header)?;
            for (number, page) in &transaction.pages {
                writer.page(Pgno::new(*number).unwrap(), page)?;
            }
        }
        writer.merged(ObjectHash([at as u8; 32]))?;
    }
    let (out, header, len) = writer.finish_span()?;
    let object = out.into_inner();
    assert_eq!(len, object.len() as u64);
    Ok((object, header))
}

#[test]
fn a_span_is_its_segments() {
    let transactions = small();
    let (object, said) = write_span(&transactions, &[2, 1]).unwrap();
    let expected = header(512, &transactions);
    assert_eq!(said, expected);
    assert_eq!(read(&object).unwrap(), (expected, transactions.clone()));
    let index = SegmentIndex::from_object(&object).unwrap();
    assert_eq!(index.key(), Key::Span(Generation(2), Txid(100), Txid(102)));
    let merged = |first, hash| MergedSegment {
        first: Txid(first),
        hash: ObjectHash([hash; 32]),
    };
    assert_eq!(index.merged(), [merged(100, 0), merged(102, 1)]);
    assert_eq!(index.chain_hash(), Some(ObjectHash([1; 32])));
    let at = |slot| {
        let (segment, last) = index.merged_at(Txid(slot))?;
        Some((segment, last.txid.0, last.header.end))
    };
    assert_eq!(at(100), Some((merged(100, 0), 101, transactions[1].header.end)));
    assert_eq!(at(102), Some((merged(102, 1), 102, transactions[2].header.end)));
    assert_eq!([at(99), at(101), at(103)], [None; 3]);

    let (object, _) = write(expected, &transactions).unwrap();
    let index = SegmentIndex::from_object(&object).unwrap();
    assert_eq!(index.key(), Key::Log(Generation(2), Txid(100)));
    assert_eq!((index.merged(), index.chain_hash()), (&[][..], None));
}

#[test]
fn every_changed_bit_and_every_cut_of_a_small_span_is_noticed() {
    let (object, _) = write_span(&small(), &[2, 1]).unwrap();
    for at in 0..object.len() {
        assert!(read(&object[..at]).is_err(), "cut at {at}");
        for bit in 0..8 {
            let mut damaged = object.clone();
            damaged[at] ^= 1 << bit;
            assert!(read(&damaged).is_err(), "byte {at}, bit {bit}");
        }
    }
    assert!(read(&[object.as_slice(), &[0]].concat()).is_err());
    assert!(read(&[&[0], object.as_slice()].concat()).is_err());
}

#[test]
fn a_forged_span_is_refused_even_with_fitting_checksums() {
    let (object, _) = write_span(&small(), &[1, 1, 1]).unwrap();
    let footer_len = Kind::Span.footer_len();
    let footer_at = object.len() - footer_len;
    let sign = |forged: &mut [u8]| {
        let crc = crc32fast::hash(&forged[footer_at..footer_at + footer_len - 12]);
        forged[footer_at + footer_len - 12..footer_at + footer_len - 8].copy_from_slice(&crc.to_le_bytes());
    };
    for field in (HEADER_FIELDS_LEN..footer_len - 12).step_by(4) {
        for value in [1u32, 0x7fff_ffff, u32::MAX] {
            let mut forged = object.clone();
            let at = footer_at + field;
            let old = u32::from_le_bytes(forged[at..at + 4].try_into().unwrap());
            forged[at..at + 4].copy_from_slice(&old.wrapping_add(value).to_le_bytes());
            sign(&mut forged);
            assert!(read(&forged).is_err(), "footer field at {field}");
        }
    }
    // The first txids in the segment table.
    for firsts in [
        [101u64, 101, 102],
        [100, 100, 102],
        [100, 102, 101],
        [100, 101, 103],
        [99, 101, 102],
    ] {
        let mut forged = object.clone();
        let table_at = footer_at - 3 * MERGED_LEN;
        for (at, first) in firsts.iter().enumerate() {
            forged[table_at + at * MERGED_LEN..][..8].copy_from_slice(&first.to_le_bytes());
        }
        let crc = crc32fast::hash(&forged[table_at..footer_at]);
        forged[footer_at + 196..footer_at + 200].copy_from_slice(&crc.to_le_bytes());
        sign(&mut forged);
        assert!(read(&forged).is_err(), "{firsts:?}");
    }
}

#[test]
fn the_writer_refuses_what_is_no_span() {
    let transactions = small();
    for lens in [&[3][..], &[2], &[1, 1], &[0, 3], &[3, 0], &[]] {
        let written = write_span(&transactions, lens);
        // What is in no segment is left out by the helper when the segments are fewer than the transactions.
        if lens == [1, 1] {
            assert_eq!(written.unwrap().1.last, Txid(101));
        } else {
            assert!(matches!(written, Err(FormatError::Refused { .. })), "{lens:?}");
        }
    }
    let mut writer = SegmentWriter::span(std::io::Cursor::new(Vec::new()), header(512, &transactions), 1).unwrap();
    for transaction in &transactions {
        writer.begin(transaction.header).unwrap();
        if transaction != transactions.last().unwrap() {
            writer.merged(ObjectHash([1; 32])).unwrap();
        }
    }
    let unfinished = writer.finish_span();
    assert!(matches!(unfinished, Err(FormatError::Refused { .. })));
}
