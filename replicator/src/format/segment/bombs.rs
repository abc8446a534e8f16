//! Objects that are right in everything but how much they are: a few bytes that would become gigabytes.
#![allow(clippy::unwrap_used)]

use std::io::Write;

use replvfs_vfs::types::{PageSize, Txid, UnixMillis};

use super::*;

const BLOCKS: u32 = 1000;

/// Transactions of 1000 blocks of zeros each, of pages 1 and later, with fitting checksums.
fn bomb(kind: Kind, transactions: u32) -> Vec<u8> {
    let page_size = PageSize::new(512).unwrap();
    let end = replvfs_vfs::types::Position::NONE;
    let header = SegmentHeader {
        generation: Generation(1),
        page_size,
        first: Txid(1),
        last: Txid(transactions.into()),
        start: end,
        end,
        previous: ObjectHash([0; 32]),
    };
    let mut object = header.encode(kind);
    let zeros = vec![0; BLOCK_BYTES];
    let block = zstd::bulk::compress(&zeros, 1).unwrap();
    let crc = block_crc(&zeros, &block);
    let mut blocks = Vec::new();
    for _ in 0..transactions * BLOCKS {
        blocks.extend_from_slice(&(object.len() as u64).to_le_bytes());
        for field in [block.len() as u32, BLOCK_BYTES as u32, crc] {
            blocks.extend_from_slice(&field.to_le_bytes());
        }
        object.extend_from_slice(&block);
    }
    let pages = BLOCKS * pages_per_block(page_size);
    let mut table = Vec::new();
    let mut index = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    for _ in 0..transactions {
        table.extend_from_slice(&UnixMillis(0).0.to_le_bytes());
        table.extend_from_slice(&[pages.to_le_bytes(), pages.to_le_bytes()].concat());
        put_position(&mut table, end);
        index.write_all(&1u32.to_le_bytes().repeat(pages as usize)).unwrap();
    }
    let index = index.finish().unwrap();
    let mut merged = Vec::new();
    for first in [1u64, 2] {
        merged.extend_from_slice(&first.to_le_bytes());
        merged.extend_from_slice(&[0; 32]);
    }
    let mut footer = Vec::new();
    header.put_fields(kind, &mut footer);
    let total = u64::from(transactions) * u64::from(pages);
    let tables = [
        (blocks, vec![u64::from(transactions * BLOCKS)]),
        (table, vec![transactions.into()]),
        (index.clone(), vec![index.len() as u64, total]),
        (merged, vec![2]),
    ];
    let count = if kind == Kind::Span { 4 } else { 3 };
    for (bytes, numbers) in tables.iter().take(count) {
        for number in [&[object.len() as u64][..], numbers].concat() {
            footer.extend_from_slice(&number.to_le_bytes());
        }
        footer.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
        object.extend_from_slice(bytes);
    }
    footer.extend_from_slice(&((object.len() + kind.footer_len()) as u64).to_le_bytes());
    put_crc(&mut footer);
    footer.extend_from_slice(&kind.magic());
    object.extend_from_slice(&footer);
    object
}

/// The end of the object is enough, so that nothing is read of it, and nothing decompressed.
#[test]
fn what_would_not_fit_into_memory_is_refused_by_its_footer() {
    for (kind, fits, does_not) in [(Kind::Segment, 8, 9), (Kind::Span, 2, 3)] {
        let object = bomb(kind, fits);
        let index = SegmentIndex::from_object(&object).unwrap();
        assert_eq!(index.pages().len(), fits as usize * 2_048_000);
        let object = bomb(kind, does_not);
        assert!(object.len() < 2 << 20);
        let refused = SegmentFooter::parse(&object, object.len() as u64).unwrap_err();
        assert!(refused.to_string().contains("more pages"), "{refused}");
        assert!(SegmentIndex::from_object(&object).is_err());
    }
}

#[test]
fn the_bounds_are_those_of_the_format() {
    let (free, most) = (PAGES_OF_ANY_LENGTH, u64::from(u32::MAX));
    for (pages, len, may) in [
        (free, 500, true),
        (free + 1, 500, false),
        (free + 1, free + 1, true),
        (most, most, true),
        (most, most - 1, false),
    ] {
        assert_eq!(Kind::Segment.may_have(pages, 1, len), may, "{pages} in {len}");
    }
    for (pages, transactions, may) in [
        (4 << 20, 1 << 20, true),
        ((4 << 20) + 1, 2, false),
        (2, (1 << 20) + 1, false),
    ] {
        assert_eq!(
            Kind::Span.may_have(pages, transactions, most),
            may,
            "{pages}, {transactions}"
        );
    }
}
