//! A small replica as replvfs writes one, always the same: what the targets `replica` damages, and what the first files of the corpus are made of.

use std::collections::BTreeMap;
use std::io::Cursor;

use replvfs::format::{
    ChunkName, DatabaseId, FORMAT_VERSION, Generation, GenerationMeta, Key, Manifest, ObjectHash, Parent, ReplicaMeta,
    Seal, SegmentHeader, SegmentWriter, TransactionHeader, encode_chunk,
};
use replvfs_vfs::types::{PageSize, Pgno, Position, Salts, Txid, UnixMillis};

const PAGE: usize = 512;

/// Objects by their names, and the database as of each transaction of each generation.
#[derive(Debug, Default)]
pub struct Specimen {
    /// In the order in which they were put there.
    pub objects: Vec<(Key, Vec<u8>)>,
    /// For each segment one that could have been in its place, but follows from something else.
    pub strays: Vec<(Key, Vec<u8>)>,
    /// Which content a transaction of a generation has.
    pub states: BTreeMap<(u64, u64), Vec<u8>>,
}

/// A transaction: its pages, and those of the database after it.
type Commit = (Vec<(u32, Vec<u8>)>, u32);

struct Writer {
    made: Specimen,
    generation: Generation,
    page_size: PageSize,
    database: Vec<u8>,
    txid: u64,
    /// With which the generation began.
    begun: u64,
    previous: ObjectHash,
}

/// Two generations: images, segments, a span, a seal, a database that grows and shrinks.
#[must_use]
pub fn replica() -> Specimen {
    let mut writer = Writer {
        made: Specimen::default(),
        generation: Generation(0),
        page_size: PageSize::new(PAGE as u32).expect("a page size"),
        database: page(0).into_iter().chain(page(1)).chain(page(2)).collect(),
        txid: 0,
        begun: 0,
        previous: ObjectHash([0; 32]),
    };
    let meta = ReplicaMeta {
        format: FORMAT_VERSION,
        database_id: DatabaseId([7; 16]),
    };
    writer.put(Key::Replica, meta.to_bytes().expect("a replica"));
    writer.begin(None);
    writer.image();
    let first = writer.segment(&[(&[2], 3), (&[1, 4], 5)]);
    let second = writer.segment(&[(&[], 5)]);
    writer.span(&[first, second]);
    writer.image();
    writer.segment(&[(&[5, 7], 7), (&[2], 3), (&[3, 6], 6)]);
    writer.seal();
    let parent = Parent {
        generation: writer.generation,
        txid: Txid(writer.txid),
    };
    writer.begin(Some(parent));
    writer.image();
    // Pages that are written again in their block are stored as changes.
    writer.segment(&[(&[1, 2, 3], 6), (&[2, 3, 4], 6), (&[1, 3], 6)]);
    writer.segment(&[(&[6, 9], 9)]);
    // The newest is never merged: there are two before it.
    writer.segment(&[(&[2, 8], 9)]);
    writer.made
}

fn page(number: u64) -> Vec<u8> {
    let mut page: Vec<u8> = (0..PAGE as u64 / 8)
        .flat_map(|at| if at < 24 { number * 1000 + at / 5 } else { at / 5 }.to_le_bytes())
        .collect();
    if number == 0 {
        page[16..18].copy_from_slice(&(PAGE as u16).to_be_bytes());
    }
    page
}

fn position(frame: u64) -> Position {
    Position {
        salts: Salts(1, 2),
        frame: frame as u32,
        checksum: [frame as u32, 3],
    }
}

/// A transaction commits at ten times its number, the image after it is taken five later.
fn committed_at(txid: u64) -> UnixMillis {
    UnixMillis(10 * txid as i64)
}

impl Writer {
    fn put(&mut self, key: Key, bytes: Vec<u8>) {
        self.made.objects.push((key, bytes));
    }

    fn note(&mut self) {
        self.made
            .states
            .insert((self.generation.0, self.txid), self.database.clone());
    }

    fn begin(&mut self, parent: Option<Parent>) {
        self.generation = self.generation.next();
        self.begun = self.txid;
        let meta = GenerationMeta {
            format: FORMAT_VERSION,
            generation: self.generation,
            parent,
            page_size: self.page_size.get(),
            writer: "replvfs".to_owned(),
            created_at: committed_at(self.txid),
            first_image: Txid(self.txid),
        };
        let bytes = meta.to_bytes().expect("a generation");
        self.previous = GenerationMeta::root(&bytes);
        self.put(Key::Generation(self.generation), bytes);
        self.note();
    }

    fn image(&mut self) {
        let (hash, stored) = encode_chunk(&self.database, 1).expect("a chunk");
        let name = ChunkName { hash, token: self.txid };
        self.put(Key::Chunk(name), stored);
        let manifest = Manifest {
            generation: self.generation,
            txid: Txid(self.txid),
            page_size: self.page_size,
            page_count: (self.database.len() / PAGE) as u32,
            taken_at: UnixMillis(committed_at(self.txid).0 + 5),
            position: position(self.txid),
            chunks: vec![name],
        };
        self.put(
            Key::Image(self.generation, Txid(self.txid)),
            manifest.encode().expect("a manifest"),
        );
    }

    fn commit(&mut self, (pages, count): (&[u32], u32)) -> Commit {
        self.txid += 1;
        self.database.resize(count as usize * PAGE, 0);
        let mut written = Vec::new();
        for number in pages.iter().copied().filter(|number| *number <= count) {
            let page = match number {
                1 => page(0),
                _ => page(self.txid * 100 + u64::from(number)),
            };
            self.database[(number as usize - 1) * PAGE..][..PAGE].copy_from_slice(&page);
            written.push((number, page));
        }
        self.note();
        (written, count)
    }

    /// What the transactions of the segment that was begun after `before` are.
    fn segment(&mut self, commits: &[(&[u32], u32)]) -> (SegmentHeader, Vec<Commit>, ObjectHash) {
        let before = self.txid;
        let commits: Vec<_> = commits.iter().map(|commit| self.commit(*commit)).collect();
        let header = SegmentHeader {
            generation: self.generation,
            page_size: self.page_size,
            first: Txid(before + 1),
            last: Txid(self.txid),
            start: position(before),
            end: position(self.txid),
            previous: self.previous,
        };
        let (key, (bytes, hash)) = (
            Key::Log(self.generation, header.first),
            segment(header, before, &commits),
        );
        self.previous = hash;
        self.put(key, bytes);
        // Who begins at an image has nothing to compare with; as long as that is there no slot behind it becomes free.
        let image = Key::Image(self.generation, Txid(before));
        if before == self.begun || self.made.objects.iter().all(|(key, _)| *key != image) {
            let other = SegmentHeader {
                previous: ObjectHash([9; 32]),
                ..header
            };
            let theirs: Vec<_> = commits
                .iter()
                .map(|(_, count)| (vec![(2, page(999))], *count))
                .collect();
            self.made.strays.push((key, segment(other, before, &theirs).0));
        }
        (header, commits, hash)
    }

    fn span(&mut self, segments: &[(SegmentHeader, Vec<Commit>, ObjectHash)]) {
        let header = SegmentHeader {
            last: Txid(0),
            ..segments[0].0
        };
        let mut writer = SegmentWriter::span(Cursor::new(Vec::new()), header, 1).expect("a header");
        for (header, commits, hash) in segments {
            write(&mut writer, header.first.0 - 1, commits);
            writer.merged(*hash).expect("it has transactions");
        }
        let (object, header, _) = writer.finish_span().expect("two segments");
        let key = Key::Span(header.generation, header.first, header.last);
        self.put(key, object.into_inner());
    }

    fn seal(&mut self) {
        let seal = Seal {
            generation: self.generation,
            slot: Txid(self.txid + 1),
            previous: self.previous,
            sealed_at: committed_at(self.txid),
            token: [5; 16],
        };
        self.put(Key::Log(self.generation, seal.slot), seal.encode());
    }
}

fn segment(header: SegmentHeader, before: u64, commits: &[Commit]) -> (Vec<u8>, ObjectHash) {
    let mut writer = SegmentWriter::new(Vec::new(), header, 1).expect("a header");
    write(&mut writer, before, commits);
    let (bytes, sealed) = writer.finish().expect("a segment");
    (bytes, sealed.hash)
}

fn write<W: std::io::Write>(writer: &mut SegmentWriter<W>, before: u64, commits: &[Commit]) {
    for ((pages, page_count), txid) in commits.iter().zip(before + 1..) {
        let header = TransactionHeader {
            committed_at: committed_at(txid),
            page_count: *page_count,
            end: position(txid),
        };
        writer.begin(header).expect("a transaction");
        for (number, page) in pages {
            writer.page(Pgno::new(*number).expect("a page"), page).expect("a page");
        }
    }
}
