//! One object of each kind, as version 1 of the format wrote it: today's reader must read it, and today's writer must
//! write it again. What zstd makes of the same bytes may differ between its releases, so compressed parts are compared
//! by their content, and all else byte for byte.
//!
//! `REPLVFS_BLESS=1 cargo test -p replvfs --test golden` writes the files anew: only ever for a new format version, once there is a release that has this one.
#![allow(clippy::unwrap_used)]

use std::io::Cursor;
use std::path::PathBuf;

use bytes::Bytes;
use replvfs::format::{
    CHUNK_BYTES, ChunkHash, ChunkName, DatabaseId, FORMAT_VERSION, FormatError, Generation, GenerationMeta, Key,
    LocalState, Manifest, MergedSegment, ObjectHash, Parent, Place, ReplicaMeta, STATE_SLOT_BYTES, Seal, SegmentFooter,
    SegmentHeader, SegmentIndex, SegmentReader, SegmentWriter, Step, TransactionHeader, decode_chunk, encode_chunk,
};
use replvfs_vfs::resume::{Fingerprint, Left, Mark, Next};
use replvfs_vfs::types::{PageSize, Pgno, Position, Salts, Txid, UnixMillis};

fn golden(name: &str, written: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("REPLVFS_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, written).unwrap();
    }
    std::fs::read(&path).unwrap()
}

fn replica_meta() -> ReplicaMeta {
    let id = std::array::from_fn(|at| 0x10 + at as u8);
    ReplicaMeta {
        format: FORMAT_VERSION,
        database_id: DatabaseId(id),
    }
}

fn generation_meta() -> GenerationMeta {
    GenerationMeta {
        format: FORMAT_VERSION,
        generation: Generation(0x2a),
        parent: Some(Parent {
            generation: Generation(0x29),
            txid: Txid(99),
        }),
        page_size: 512,
        writer: "replvfs 0.1.0 on golden".to_owned(),
        created_at: UnixMillis(1_700_000_000_123),
        first_image: Txid(99),
    }
}

fn position(frame: u32) -> Position {
    Position {
        salts: Salts(0x0102_0304, 0x0506_0708),
        frame,
        checksum: [0x1111_0000 + frame, 0x2222_0000 + frame],
    }
}

fn page(seed: u32) -> Vec<u8> {
    (0..128u32)
        .flat_map(|at| (seed * 1000 + at / 3).to_le_bytes())
        .collect()
}

#[test]
fn json() {
    let written = replica_meta().to_bytes().unwrap();
    let read = golden("replvfs.json", &written);
    assert_eq!(read, written);
    assert_eq!(ReplicaMeta::from_bytes(&read).unwrap(), replica_meta());

    let written = generation_meta().to_bytes().unwrap();
    let read = golden("generation.json", &written);
    assert_eq!(read, written);
    assert_eq!(GenerationMeta::from_bytes(&read).unwrap(), generation_meta());
}

#[test]
fn seal() {
    let seal = Seal {
        generation: Generation(0x2a),
        slot: Txid(103),
        previous: ObjectHash(std::array::from_fn(|at| at as u8)),
        sealed_at: UnixMillis(1_700_000_002_000),
        token: std::array::from_fn(|at| 0xf0 + at as u8),
    };
    let written = seal.encode();
    let read = golden("seal", &written);
    assert_eq!(read, written);
    assert_eq!(Seal::decode(&read).unwrap(), seal);
}

#[test]
fn state() {
    let mark = |txid, frame| Mark {
        txid: Txid(txid),
        position: position(frame),
    };
    let print = Fingerprint {
        device: 2049,
        inode: 1_234_567,
        size: 40_960,
        modified_ns: (1_700_000_000, 123_456_789),
        changed_ns: (1_700_000_001, 5),
    };
    let mut states =
        [(Next::Wal(Salts(0x0506_0708, 0x090a_0b0c)), 6), (Next::File(print), 7)].map(|(next, sequence)| LocalState {
            sequence,
            replica: "s3://bucket/app".to_owned(),
            place: Place::of("s3://bucket/app"),
            database_id: replica_meta().database_id,
            generation: Generation(0x2a),
            page_size: PageSize::new(512).unwrap(),
            stored: mark(102, 20),
            slot: Some(Txid(100)),
            previous: ObjectHash::of(b"the segment"),
            left: Some(Left {
                mark: mark(103, 21),
                next,
            }),
            if_wal: None,
            fenced: false,
            unfinished: None,
            restored: None,
        });
    let written: Vec<u8> = states.iter().flat_map(|state| state.to_slot().unwrap()).collect();
    let read = golden("state", &written);
    assert_eq!(read, written);
    assert_eq!(LocalState::from_file(&read).unwrap().unwrap(), states[1]);
    assert_eq!(LocalState::from_slot(&read[..STATE_SLOT_BYTES]).unwrap(), states[0]);
    // A generation that has just begun.
    states[0].slot = None;
    states[0].left = None;
    let written = states[0].to_slot().unwrap();
    assert_eq!(golden("state-begun", &written), written);
    assert_eq!(LocalState::from_file(&written).unwrap().unwrap(), states[0]);
    // One that waits for its WAL.
    states[1].if_wal = Some(Salts(0x0a0b_0c0d, 0x0102_0304));
    let written = states[1].to_slot().unwrap();
    assert_eq!(golden("state-if-wal", &written), written);
}

#[test]
fn image() {
    let raw: Vec<u8> = (0..5).flat_map(page).collect();
    let (hash, written) = encode_chunk(&raw, 3).unwrap();
    assert_eq!(hash, ChunkHash::of(&raw));
    assert_eq!(decode_chunk(hash, raw.len(), &golden("chunk", &written)).unwrap(), raw);

    let manifest = Manifest {
        generation: Generation(0x2a),
        txid: Txid(99),
        page_size: PageSize::new(512).unwrap(),
        page_count: (CHUNK_BYTES / 512) as u32 + 5,
        taken_at: UnixMillis(1_700_000_000_456),
        position: position(7),
        chunks: vec![
            ChunkName {
                hash: ChunkHash::of(b"first"),
                token: 0x0123_4567_89ab_cdef,
            },
            ChunkName { hash, token: 8 },
        ],
    };
    let written = manifest.encode().unwrap();
    let read = golden("manifest", &written);
    assert_eq!(read, written);
    assert_eq!(Manifest::decode(&read).unwrap(), manifest);
}

fn segment_header() -> SegmentHeader {
    SegmentHeader {
        generation: Generation(0x2a),
        page_size: PageSize::new(512).unwrap(),
        first: Txid(100),
        last: Txid(102),
        start: position(7),
        end: position(20),
        previous: GenerationMeta::root(&generation_meta().to_bytes().unwrap()),
    }
}

/// Commit time, page count, last frame, page numbers.
const TRANSACTIONS: [(i64, u32, u32, &[u32]); 3] = [
    (1_700_000_001_000, 2100, 10, &[1, 2, 3, 2100]),
    (1_700_000_000_900, 1, 11, &[]),
    (1_700_000_002_000, 70_000, 20, &[1, 400, 401, 69_999, 70_000]),
];

type Read = Vec<(TransactionHeader, Vec<(u32, Vec<u8>)>)>;

fn transactions() -> Read {
    let model = |(time, page_count, frame, numbers): (i64, u32, u32, &[u32])| {
        let header = TransactionHeader {
            committed_at: UnixMillis(time),
            page_count,
            end: position(frame),
        };
        (
            header,
            numbers.iter().map(|number| (*number, page(number + frame))).collect(),
        )
    };
    TRANSACTIONS.map(model).to_vec()
}

fn read_segment(object: &[u8]) -> Read {
    let index = SegmentIndex::from_object(object).unwrap();
    assert_eq!(*index.header(), segment_header());
    let mut read: Read = Vec::new();
    let load = |block| {
        let range = index.block_range(block);
        Ok::<_, FormatError>(Bytes::copy_from_slice(
            &object[range.start as usize..range.end as usize],
        ))
    };
    let visit = |step: Step<'_>| {
        match step {
            Step::Begin(entry) => read.push((entry.header, Vec::new())),
            Step::Page(pgno, page) => read.last_mut().unwrap().1.push((pgno.get(), page.to_vec())),
        }
        Ok(())
    };
    SegmentReader::new()
        .unwrap()
        .for_each(&index, Txid(0)..=Txid(u64::MAX), load, visit)
        .unwrap();
    read
}

#[test]
fn segment() {
    let mut writer = SegmentWriter::new(Vec::new(), segment_header(), 3).unwrap();
    for (header, pages) in transactions() {
        writer.begin(header).unwrap();
        pages
            .iter()
            .for_each(|(number, page)| writer.page(Pgno::new(*number).unwrap(), page).unwrap());
    }
    let (written, sealed) = writer.finish().unwrap();
    assert_eq!(sealed.hash, ObjectHash::of(&written));
    let read = golden("segment", &written);
    assert_eq!(read_segment(&read), transactions());
    assert_eq!(read_segment(&written), transactions());

    // The header, the transaction table and the ends of the footer have nothing of zstd in them.
    let fixed = |object: &[u8]| {
        let footer = &object[object.len() - SegmentFooter::LEN..];
        let number = |at: usize| u64::from_le_bytes(footer[at..at + 8].try_into().unwrap()) as usize;
        let table = &object[number(132)..number(152)];
        (
            object[..116].to_vec(),
            table.to_vec(),
            footer[..112].to_vec(),
            number(120),
            number(140),
            number(168),
            footer[192..].to_vec(),
        )
    };
    assert_eq!(fixed(&read), fixed(&written));
}

/// Pages that are written again, of which the block has what changes.
#[test]
fn segment_of_changes() {
    let changed = |number: u32, frame: u32| {
        let mut page = page(number);
        // Two places, so that something is kept before, between and behind them.
        let at = frame as usize * 10;
        page[at..at + 5].copy_from_slice(&[frame as u8; 5]);
        page[400..403].copy_from_slice(b"new");
        (number, page)
    };
    let transactions: Read = [
        (10, vec![(1, page(1)), (2, page(2))]),
        (11, vec![changed(1, 11), (2, page(2))]),
        (20, vec![changed(1, 20), (3, page(3))]),
    ]
    .map(|(frame, pages)| {
        let header = TransactionHeader {
            committed_at: UnixMillis(1_700_000_001_000 + i64::from(frame)),
            page_count: 3,
            end: position(frame),
        };
        (header, pages)
    })
    .to_vec();
    let mut writer = SegmentWriter::new(Vec::new(), segment_header(), 1).unwrap();
    for (header, pages) in &transactions {
        writer.begin(*header).unwrap();
        pages
            .iter()
            .for_each(|(number, page)| writer.page(Pgno::new(*number).unwrap(), page).unwrap());
    }
    let (written, _) = writer.finish().unwrap();
    let read = golden("segment-of-changes", &written);
    for object in [&read, &written] {
        assert!(read_segment(object) == transactions);
        // The content's length in the first entry of the block table, which is where the footer says.
        let number = |at: usize, len: usize| {
            let mut bytes = [0; 8];
            bytes[..len].copy_from_slice(&object[at..at + len]);
            u64::from_le_bytes(bytes) as usize
        };
        let content = number(number(object.len() - SegmentFooter::LEN + 112, 8) + 12, 4);
        assert!(content > 3 * 512 && content < 4 * 512, "{content}");
    }
}

#[test]
fn span() {
    let merged = [(100, b"one"), (102, b"two")].map(|(first, object)| MergedSegment {
        first: Txid(first),
        hash: ObjectHash::of(object),
    });
    let mut writer = SegmentWriter::span(Cursor::new(Vec::new()), segment_header(), 3).unwrap();
    for ((header, pages), ends) in transactions().into_iter().zip([None, Some(merged[0]), Some(merged[1])]) {
        writer.begin(header).unwrap();
        pages
            .iter()
            .for_each(|(number, page)| writer.page(Pgno::new(*number).unwrap(), page).unwrap());
        ends.iter().for_each(|ends| writer.merged(ends.hash).unwrap());
    }
    let (written, header, len) = writer.finish_span().unwrap();
    let written = written.into_inner();
    assert_eq!((header, len), (segment_header(), written.len() as u64));
    let read = golden("span", &written);
    assert_eq!(read_segment(&read), transactions());
    assert_eq!(read_segment(&written), transactions());
    for object in [&read, &written] {
        let index = SegmentIndex::from_object(object).unwrap();
        assert_eq!(index.merged(), merged);
        assert_eq!(index.key(), Key::Span(Generation(0x2a), Txid(100), Txid(102)));
    }

    let fixed = |object: &[u8]| {
        let footer = &object[object.len() - 220..];
        let number = |at: usize| u64::from_le_bytes(footer[at..at + 8].try_into().unwrap()) as usize;
        assert_eq!(number(180) + 2 * 40, object.len() - 220);
        (
            object[..116].to_vec(),
            object[number(132)..number(152)].to_vec(),
            object[number(180)..object.len() - 220].to_vec(),
            footer[..112].to_vec(),
            [number(120), number(140), number(168), number(188)],
            footer[196..200].to_vec(),
            footer[212..].to_vec(),
        )
    };
    assert_eq!(fixed(&read), fixed(&written));
}
