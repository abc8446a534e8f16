//! Restores against a model: the database after every transaction, kept beside the replica that is made of it.
#![allow(clippy::unwrap_used)]

mod branches;
mod older;
mod pruned;
mod spans;
mod strays;

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use replvfs_vfs::types::{Pgno, Position, Salts};

use super::*;
use crate::format::{
    CHUNK_BYTES, ChunkHash, ChunkName, DatabaseId, FORMAT_VERSION, GenerationMeta, Manifest, ObjectHash, Parent,
    ReplicaMeta, Seal, SegmentHeader, SegmentWriter, TransactionHeader, encode_chunk,
};
use crate::history::path::{Listing, LogPath};
use crate::history::{HistoryError, LogEntry};
use crate::store::{Body, StoreOptions};

pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A replica in a folder, and what must come out of it.
pub(crate) struct Replica {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) generation: Generation,
    /// When its generations were begun: of two replicas that are else the same.
    pub(crate) begun: UnixMillis,
    page_size: PageSize,
    database: Vec<Vec<u8>>,
    pub(crate) txid: u64,
    frame: u32,
    previous: ObjectHash,
    /// The database after each transaction of each generation.
    pub(crate) states: BTreeMap<(u64, u64), Vec<u8>>,
    pub(crate) random: Random,
}

/// In memory where that is possible: the real disk's syncs mean nothing here.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn position(frame: u32) -> Position {
    Position {
        salts: Salts(1, 2),
        frame,
        checksum: [frame, 3],
    }
}

/// A transaction commits at ten times its number, the image after it is taken five later.
pub(crate) fn committed_at(txid: u64) -> UnixMillis {
    UnixMillis(10 * txid as i64)
}

impl Replica {
    pub(crate) async fn new(page_size: u32, pages: usize, seed: u64) -> Replica {
        let folder = scratch();
        let store = Store::open(&format!("fs://{}", folder.path().display()), &StoreOptions::default()).unwrap();
        let mut replica = Replica {
            folder,
            store,
            generation: Generation(0),
            begun: UnixMillis(0),
            page_size: PageSize::new(page_size).unwrap(),
            database: Vec::new(),
            txid: 0,
            frame: 0,
            previous: ObjectHash([0; 32]),
            states: BTreeMap::new(),
            random: Random(seed | 1),
        };
        let meta = ReplicaMeta {
            format: FORMAT_VERSION,
            database_id: DatabaseId([7; 16]),
        };
        replica.put(Key::Replica, meta.to_bytes().unwrap()).await;
        (0..pages).for_each(|at| {
            let page = replica.random_page(at);
            replica.database.push(page);
        });
        replica
    }

    pub(crate) async fn put(&self, key: Key, bytes: Vec<u8>) {
        self.store.create(&key, Body::Bytes(Bytes::from(bytes))).await.unwrap();
    }

    pub(crate) fn path(&self, key: Key) -> PathBuf {
        self.folder.path().join(key.path())
    }

    fn random_page(&mut self, at: usize) -> Vec<u8> {
        let mut page = vec![0; self.page_size.as_usize()];
        for _ in 0..4 {
            let (place, byte) = (self.random.below(page.len() as u64), self.random.below(256));
            page[place as usize] = byte as u8;
        }
        if at == 0 {
            page[16..18].copy_from_slice(&(self.page_size.get() as u16).to_be_bytes());
        }
        page
    }

    fn note(&mut self) {
        self.states
            .insert((self.generation.0, self.txid), self.database.concat());
    }

    pub(crate) async fn begin_generation(&mut self, parent: Option<Parent>) {
        self.generation = self.generation.next();
        let meta = GenerationMeta {
            format: FORMAT_VERSION,
            generation: self.generation,
            parent,
            page_size: self.page_size.get(),
            writer: "test".to_owned(),
            created_at: self.begun,
            first_image: Txid(self.txid),
        };
        let bytes = meta.to_bytes().unwrap();
        self.previous = GenerationMeta::root(&bytes);
        self.put(Key::Generation(self.generation), bytes).await;
        self.note();
    }

    /// An image of the present state.
    pub(crate) async fn image(&self) {
        self.image_of(self.txid).await;
    }

    pub(crate) async fn image_of(&self, txid: u64) {
        let state = &self.states[&(self.generation.0, txid)];
        let mut chunks = Vec::new();
        for raw in state.chunks(CHUNK_BYTES) {
            let (hash, stored) = encode_chunk(raw, 1).unwrap();
            // As each making of an image draws one.
            let name = ChunkName { hash, token: txid };
            self.put(Key::Chunk(name), stored).await;
            chunks.push(name);
        }
        let manifest = Manifest {
            generation: self.generation,
            txid: Txid(txid),
            page_size: self.page_size,
            page_count: (state.len() / self.page_size.as_usize()) as u32,
            taken_at: UnixMillis(committed_at(txid).0 + 5),
            position: position(self.frame),
            chunks,
        };
        self.put(Key::Image(self.generation, Txid(txid)), manifest.encode().unwrap())
            .await;
    }

    /// The pages that one random commit writes. Grows and shrinks the database.
    fn commit(&mut self) -> (TransactionHeader, BTreeMap<u32, Vec<u8>>) {
        let count = self.database.len();
        let count = match self.random.below(4) {
            0 => 1 + self.random.below(count as u64) as usize,
            1 => count + 1 + self.random.below(9) as usize,
            _ => count,
        };
        // What a grown file has and nobody wrote is zeros.
        self.database.truncate(count);
        self.database.resize(count, vec![0; self.page_size.as_usize()]);
        let mut pages = BTreeMap::new();
        for _ in 0..self.random.below(5) {
            let at = self.random.below(count as u64) as usize;
            let page = self.random_page(at);
            self.database[at].clone_from(&page);
            pages.insert(at as u32 + 1, page);
        }
        (self.next(), pages)
    }

    fn next(&mut self) -> TransactionHeader {
        self.txid += 1;
        self.frame += 1;
        let page_count = self.database.len() as u32;
        self.note();
        TransactionHeader {
            committed_at: committed_at(self.txid),
            page_count,
            end: position(self.frame),
        }
    }

    /// A segment of random commits.
    pub(crate) async fn segment(&mut self, transactions: usize) -> Key {
        let start = position(self.frame);
        let commits: Vec<_> = (0..transactions).map(|_| self.commit()).collect();
        self.seal(start, &commits).await
    }

    async fn seal(&mut self, start: Position, commits: &[(TransactionHeader, BTreeMap<u32, Vec<u8>>)]) -> Key {
        let header = SegmentHeader {
            generation: self.generation,
            page_size: self.page_size,
            first: Txid(self.txid + 1 - commits.len() as u64),
            last: Txid(self.txid),
            start,
            end: position(self.frame),
            previous: self.previous,
        };
        let mut writer = SegmentWriter::new(Vec::new(), header, 1).unwrap();
        for (transaction, pages) in commits {
            writer.begin(*transaction).unwrap();
            pages
                .iter()
                .for_each(|(number, page)| writer.page(Pgno::new(*number).unwrap(), page).unwrap());
        }
        let (bytes, sealed) = writer.finish().unwrap();
        self.previous = sealed.hash;
        let key = Key::Log(self.generation, header.first);
        self.put(key, bytes).await;
        key
    }

    /// Another writer takes over.
    pub(crate) async fn end_generation(&mut self) -> Key {
        let seal = Seal {
            generation: self.generation,
            slot: Txid(self.txid).next(),
            previous: self.previous,
            sealed_at: UnixMillis(0),
            token: [5; 16],
        };
        let key = Key::Log(self.generation, seal.slot);
        self.put(key, seal.encode()).await;
        key
    }

    pub(crate) async fn restore(&self, target: Target) -> Result<(Restored, Vec<u8>), RestoreError> {
        self.restore_with(RestoreOptions {
            target,
            ..RestoreOptions::default()
        })
        .await
    }

    async fn restore_with(&self, options: RestoreOptions) -> Result<(Restored, Vec<u8>), RestoreError> {
        let folder = scratch();
        let out = folder.path().join("out.db");
        let result = restore(&self.store, &out, &options).await;
        let left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        match result {
            Ok(restored) => {
                assert_eq!(left, std::slice::from_ref(&out));
                let bytes = std::fs::read(&out).unwrap();
                assert_eq!(restored.bytes, bytes.len() as u64);
                Ok((restored, bytes))
            }
            Err(error) => {
                assert_eq!(left, [] as [PathBuf; 0], "left behind after: {error}");
                Err(error)
            }
        }
    }

    pub(crate) async fn check(&self, target: Target, generation: u64, txid: u64) {
        let (restored, bytes) = self
            .restore(target)
            .await
            .unwrap_or_else(|error| panic!("{target}: {error}"));
        assert_eq!((restored.generation.0, restored.txid.0), (generation, txid), "{target}");
        assert!(bytes == self.states[&(generation, txid)], "{target}: other content");
    }

    /// The error when an object is not what it was; the truth is acceptable too, if `or_truth`.
    async fn check_refused(&self, key: Key, or_truth: bool) {
        match self.restore(Target::Newest).await {
            Ok((_, bytes)) => assert!(
                or_truth && bytes == self.states[&(self.generation.0, self.txid)],
                "{key}"
            ),
            Err(error) => assert!(
                error.to_string().contains(&key.path()),
                "{key} is not named in: {error}"
            ),
        }
    }
}

#[tokio::test]
async fn every_transaction_of_random_histories_can_be_restored() {
    for (seed, page_size, pages) in [(1, 512, 3), (2, 4096, 300), (3, 1024, 2100)] {
        let mut replica = Replica::new(page_size, pages, seed * 7919).await;
        replica.begin_generation(None).await;
        replica.image().await;
        for segment in 0..7 {
            let transactions = 1 + replica.random.below(4) as usize;
            replica.segment(transactions).await;
            if segment == 3 {
                replica.image().await;
            }
            if segment == 5 && transactions > 1 {
                // In the middle of a segment.
                replica.image_of(replica.txid - 1).await;
            }
        }
        for txid in 0..=replica.txid {
            replica.check(Target::Txid(Txid(txid)), 1, txid).await;
            replica
                .check(Target::At(UnixMillis(committed_at(txid).0 + 5)), 1, txid)
                .await;
        }
        replica.check(Target::Newest, 1, replica.txid).await;
        replica.check(Target::At(UnixMillis(i64::MAX)), 1, replica.txid).await;
    }
}

#[tokio::test]
async fn an_image_in_the_middle_of_a_segment_is_enough() {
    let mut replica = Replica::new(512, 3, 5).await;
    replica.begin_generation(None).await;
    replica.segment(6).await;
    replica.image_of(3).await;
    for txid in 3..=6 {
        replica.check(Target::Txid(Txid(txid)), 1, txid).await;
    }
    let error = replica.restore(Target::Txid(Txid(2))).await.unwrap_err();
    assert!(
        matches!(error, RestoreError::History(HistoryError::NotInHistory { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn a_target_outside_of_the_history_is_named_with_what_there_is() {
    let mut replica = Replica::new(512, 3, 6).await;
    replica.begin_generation(None).await;
    replica.image().await;
    replica.segment(4).await;
    let text = replica.restore(Target::Txid(Txid(5))).await.unwrap_err().to_string();
    assert!(
        text.contains("transaction 5 is not in the history") && text.contains(" is 4"),
        "{text}"
    );
    let text = replica
        .restore(Target::At(UnixMillis(4)))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("1970-01-01T00:00:00.004Z") && text.contains("taken at 1970-01-01T00:00:00.005Z"),
        "{text}"
    );
}

#[tokio::test]
async fn a_clock_that_was_set_back_hides_no_later_transaction() {
    let mut replica = Replica::new(512, 3, 7).await;
    replica.begin_generation(None).await;
    replica.image().await;
    let start = position(replica.frame);
    let mut commits: Vec<_> = (0..4).map(|_| replica.commit()).collect();
    commits[1].0.committed_at = UnixMillis(1_000);
    replica.seal(start, &commits).await;
    // Transactions 1..=4 at 10, 1000, 30, 40.
    replica.check(Target::At(UnixMillis(10)), 1, 1).await;
    replica.check(Target::At(UnixMillis(35)), 1, 3).await;
    replica.check(Target::At(UnixMillis(1_000)), 1, 4).await;
}

/// The only chunk of the image of a small state.
fn chunk_of(state: &[u8], txid: u64) -> Key {
    let hash = ChunkHash::of(state);
    Key::Chunk(ChunkName { hash, token: txid })
}

#[tokio::test]
async fn a_missing_object_is_named() {
    let mut replica = Replica::new(512, 3, 8).await;
    replica.begin_generation(None).await;
    replica.image().await;
    let mut keys = Vec::new();
    for _ in 0..4 {
        keys.push(replica.segment(2).await);
    }
    let state = &replica.states[&(1, 0)];
    keys.push(chunk_of(state, 0));
    keys.push(Key::Generation(Generation(1)));
    keys.push(Key::Replica);
    // Without the last segment its transactions are not there either; only a seal tells that they were.
    let last = std::fs::read(replica.path(keys[3])).unwrap();
    std::fs::remove_file(replica.path(keys[3])).unwrap();
    let (restored, _) = replica.restore(Target::Newest).await.unwrap();
    assert_eq!(restored.txid, Txid(6));
    std::fs::write(replica.path(keys[3]), last).unwrap();
    replica.end_generation().await;
    for key in keys {
        let bytes = std::fs::read(replica.path(key)).unwrap();
        std::fs::remove_file(replica.path(key)).unwrap();
        replica.check_refused(key, false).await;
        std::fs::write(replica.path(key), bytes).unwrap();
    }
    replica.check(Target::Newest, 1, 8).await;
    // Before the gap all is well.
    std::fs::remove_file(replica.path(Key::Log(Generation(1), Txid(5)))).unwrap();
    replica.check(Target::Txid(Txid(4)), 1, 4).await;
    for target in [
        Target::Txid(Txid(5)),
        Target::Txid(Txid(7)),
        Target::At(UnixMillis(1_000)),
    ] {
        let error = replica.restore(target).await.unwrap_err();
        assert!(
            matches!(error, RestoreError::History(HistoryError::Missing { .. })),
            "{target}: {error}"
        );
    }
}

#[tokio::test]
async fn any_damage_gives_the_truth_or_names_the_object() {
    let mut replica = Replica::new(512, 3, 9).await;
    replica.begin_generation(None).await;
    replica.image().await;
    replica.segment(2).await;
    replica.segment(1).await;
    replica.end_generation().await;
    let listed = replica.store.list("").await.unwrap();
    assert!(listed.len() >= 7);
    for (key, _) in listed {
        let path = replica.path(key);
        let truth = std::fs::read(&path).unwrap();
        for at in 0..truth.len() {
            let mut damaged = truth.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(&path, &damaged).unwrap();
            replica.check_refused(key, true).await;
            if at % 3 == 0 || at + 9 > truth.len() {
                std::fs::write(&path, &truth[..at]).unwrap();
                replica.check_refused(key, true).await;
            }
        }
        std::fs::write(&path, &truth).unwrap();
    }
    replica.check(Target::Newest, 1, 3).await;
}

#[tokio::test]
async fn a_replaced_segment_breaks_the_chain() {
    let mut replica = Replica::new(512, 3, 10).await;
    let mut other = Replica::new(512, 3, 21).await;
    for replica in [&mut replica, &mut other] {
        replica.begin_generation(None).await;
        replica.image().await;
        for _ in 0..3 {
            replica.segment(2).await;
        }
    }
    let key = Key::Log(Generation(1), Txid(3));
    std::fs::copy(other.path(key), replica.path(key)).unwrap();
    let error = replica.restore(Target::Newest).await.unwrap_err();
    assert!(matches!(error, RestoreError::Chain { .. }), "{error}");
    assert!(error.to_string().contains(&key.path()), "{error}");
    // Neither is a seal right that follows something else, nor anything behind one.
    let mut foreign = Replica::new(512, 3, 10).await;
    foreign.begin_generation(None).await;
    foreign.image().await;
    foreign.segment(2).await;
    foreign.previous = ObjectHash([1; 32]);
    let seal = foreign.end_generation().await;
    let error = foreign.restore(Target::Newest).await.unwrap_err();
    assert!(matches!(error, RestoreError::Chain { .. }), "{error}");
    assert!(error.to_string().contains(&seal.path()), "{error}");
    foreign.txid += 2;
    foreign.segment(1).await;
    let error = foreign.restore(Target::Newest).await.unwrap_err();
    assert!(
        matches!(error, RestoreError::History(HistoryError::Sealed { .. })),
        "{error}"
    );
    assert!(error.to_string().contains(&seal.path()), "{error}");
    // Under another name it does not even count as that segment.
    std::fs::copy(replica.path(Key::Log(Generation(1), Txid(1))), replica.path(key)).unwrap();
    let error = replica.restore(Target::Newest).await.unwrap_err();
    assert!(
        matches!(error, RestoreError::History(HistoryError::Misplaced { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_at_the_target_stays_unless_forced() {
    let mut replica = Replica::new(512, 3, 12).await;
    replica.begin_generation(None).await;
    replica.image().await;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("app.db");
    for name in ["app.db", "app.db-wal", "app.db-journal", "app.db-shm"] {
        let path = folder.path().join(name);
        std::fs::write(&path, "mine").unwrap();
        let error = restore(&replica.store, &out, &RestoreOptions::default())
            .await
            .unwrap_err();
        assert!(
            matches!(error, RestoreError::Exists { .. } | RestoreError::Leftover { .. }),
            "{error}"
        );
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        std::fs::remove_file(&path).unwrap();
    }
    for name in ["app.db", "app.db-wal", "app.db-shm"] {
        std::fs::write(folder.path().join(name), "mine").unwrap();
    }
    let forced = RestoreOptions {
        force: true,
        ..RestoreOptions::default()
    };
    let secret = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&out, secret).unwrap();
    restore(&replica.store, &out, &forced).await.unwrap();
    assert_eq!(std::fs::read(&out).unwrap(), replica.states[&(1, 0)]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&out).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "whoever could not read it still cannot");
    let error = restore(&replica.store, folder.path(), &forced).await.unwrap_err();
    assert!(matches!(error, RestoreError::File { .. }), "{error}");
}

#[tokio::test]
async fn generations_follow_each_other() {
    let mut replica = Replica::new(512, 3, 13).await;
    replica.begin_generation(None).await;
    replica.image().await;
    replica.segment(6).await;
    replica.end_generation().await;
    // The second writer left at 4: what the first one wrote after that is a branch of its own.
    replica.txid = 4;
    replica
        .begin_generation(Some(Parent {
            generation: Generation(1),
            txid: Txid(4),
        }))
        .await;
    replica.image().await;
    replica.segment(4).await;
    replica.check(Target::Newest, 2, 8).await;
    let (restored, _) = replica.restore(Target::Newest).await.unwrap();
    assert!(
        restored.warnings[0].contains("transactions 5 to 6 of generation 0000000000000001 are not in"),
        "{:?}",
        restored.warnings
    );
    for txid in 0..=8u64 {
        let generation = if txid < 4 { 1 } else { 2 };
        replica.check(Target::Txid(Txid(txid)), generation, txid).await;
    }
    let options = |txid| RestoreOptions {
        target: Target::Txid(Txid(txid)),
        generation: Some(Generation(1)),
        ..RestoreOptions::default()
    };
    let (restored, bytes) = replica.restore_with(options(6)).await.unwrap();
    assert_eq!((restored.generation, &bytes), (Generation(1), &replica.states[&(1, 6)]));
    assert!(replica.restore_with(options(7)).await.is_err());
    replica.check(Target::At(UnixMillis(44)), 1, 4).await;
    replica.check(Target::At(UnixMillis(50)), 2, 5).await;

    // A third one has no image yet.
    replica
        .begin_generation(Some(Parent {
            generation: Generation(2),
            txid: Txid(8),
        }))
        .await;
    let (restored, _) = replica.restore(Target::Newest).await.unwrap();
    assert_eq!(restored.generation, Generation(2));
    assert!(
        restored.warnings[0].contains("0000000000000003 has no image"),
        "{:?}",
        restored.warnings
    );
}

#[tokio::test]
async fn segments_larger_than_memory_allows_are_read_by_blocks() {
    let mut replica = Replica::new(4096, 5000, 14).await;
    replica.begin_generation(None).await;
    replica.image().await;
    let start = position(replica.frame);
    let mut commits = Vec::new();
    for part in 0..3 {
        let mut pages = BTreeMap::new();
        for at in (part..5000).step_by(if part == 2 { 50 } else { 2 }) {
            let mut page = vec![0; 4096];
            page.chunks_exact_mut(8).for_each(|bytes| {
                replica.random.below(1);
                bytes.copy_from_slice(&replica.random.0.to_le_bytes());
            });
            page[16..18].copy_from_slice(&4096u16.to_be_bytes());
            replica.database[at].clone_from(&page);
            pages.insert(at as u32 + 1, page);
        }
        commits.push((replica.next(), pages));
    }
    let large = replica.seal(start, &commits).await;
    assert!(std::fs::metadata(replica.path(large)).unwrap().len() > log::WHOLE_BYTES);
    replica.segment(2).await;
    for txid in 1..=5 {
        replica.check(Target::Txid(Txid(txid)), 1, txid).await;
    }
    let truth = std::fs::read(replica.path(large)).unwrap();
    for at in [0, 50, 200, truth.len() / 2, truth.len() - 300, truth.len() - 1] {
        let mut damaged = truth.clone();
        damaged[at] ^= 4;
        std::fs::write(replica.path(large), damaged).unwrap();
        replica.check_refused(large, false).await;
    }
    std::fs::write(replica.path(large), &truth[..truth.len() - 1]).unwrap();
    replica.check_refused(large, false).await;
}

#[tokio::test]
async fn another_page_size_in_the_file_is_refused() {
    let mut replica = Replica::new(512, 3, 15).await;
    replica.database[0][16..18].copy_from_slice(&1024u16.to_be_bytes());
    replica.begin_generation(None).await;
    replica.image().await;
    let error = replica.restore(Target::Newest).await.unwrap_err();
    assert!(matches!(error, RestoreError::PageSize { found: 1024, .. }), "{error}");
}

#[tokio::test]
async fn an_empty_database_is_an_empty_file() {
    let mut replica = Replica::new(512, 0, 16).await;
    replica.begin_generation(None).await;
    replica.image().await;
    replica.check(Target::Newest, 1, 0).await;
}

#[tokio::test]
async fn the_log_lists_transactions() {
    let mut replica = Replica::new(512, 3, 17).await;
    replica.begin_generation(None).await;
    replica.image().await;
    replica.segment(3).await;
    replica.segment(2).await;
    let history = History::open(&replica.store).await.unwrap();
    let mut entries: Vec<LogEntry> = Vec::new();
    history
        .transactions(Generation(1), Txid(2)..=Txid(4), |entry| entries.push(entry))
        .await
        .unwrap();
    let listed: Vec<_> = entries
        .iter()
        .map(|entry| (entry.txid.0, entry.committed_at, entry.segment))
        .collect();
    let segment = |first| Key::Log(Generation(1), Txid(first));
    let expected: Vec<_> = [(2, 1), (3, 1), (4, 4)]
        .map(|(txid, first)| (txid, committed_at(txid), segment(first)))
        .into();
    assert_eq!(listed, expected);
    assert_eq!(
        entries[0].stored_bytes,
        std::fs::metadata(replica.path(segment(1))).unwrap().len()
    );
    assert!(
        history
            .transactions(Generation(9), Txid(0)..=Txid(4), |_| ())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn the_highest_number_of_a_generation_ends_the_search_for_newer_ones() {
    let mut replica = Replica::new(512, 3, 18).await;
    replica.begin_generation(None).await;
    replica.image().await;
    let meta = GenerationMeta {
        format: FORMAT_VERSION,
        generation: Generation(u64::MAX),
        parent: None,
        page_size: 512,
        writer: String::new(),
        created_at: UnixMillis(0),
        first_image: Txid(0),
    };
    replica
        .put(Key::Generation(meta.generation), meta.to_bytes().unwrap())
        .await;
    let search = History::open(&replica.store);
    let history = tokio::time::timeout(std::time::Duration::from_secs(20), search)
        .await
        .expect("it ends")
        .unwrap();
    assert_eq!(history.generations().len(), 2);
    replica.check(Target::Newest, 1, 0).await;
}

/// Listings are hints: some stores show late what they have, and lose entries.
#[tokio::test]
async fn a_log_that_is_not_listed_is_asked_for_by_name() {
    let mut replica = Replica::new(512, 3, 19).await;
    replica.begin_generation(None).await;
    replica.image().await;
    replica.segment(4).await;
    replica.segment(4).await;
    replica.image_of(6).await;
    replica.image_of(4).await;
    let history = History::open(&replica.store).await.unwrap();
    let found = &history.generations()[0];
    for (image, start) in [(0, 1), (4, 5), (6, 1)] {
        let bytes = std::fs::read(replica.path(Key::Image(Generation(1), Txid(image)))).unwrap();
        let manifest = Manifest::decode(&bytes).unwrap();
        let nothing = Listing::default();
        let (found_start, _) = history.path_at(found, &nothing, manifest.txid.next()).await.unwrap();
        assert_eq!(found_start, Txid(start));
    }
    let mut plan = history.plan(Target::Newest, None).await.unwrap();
    assert_eq!(plan.manifest.txid, Txid(6));
    (plan.start, plan.path) = (Txid(1), LogPath::default());
    let pages = PageFile {
        file: Arc::new(tempfile::tempfile().unwrap()),
        path: PathBuf::new(),
        page_size: replica.page_size,
        digests: None,
    };
    let report = Arc::new(Reporter::new(None, &plan));
    let applier = Applier::new(pages, plan.manifest.page_count, (Txid(6), UnixMillis(0)));
    let (applier, _) = log::apply_log(&replica.store, &plan, applier, &report).await.unwrap();
    assert_eq!(applier.last.0, Txid(8));
}

/// The store may send more than it announced.
#[tokio::test]
async fn an_object_that_is_too_long_is_refused() {
    let mut replica = Replica::new(512, 3, 20).await;
    replica.begin_generation(None).await;
    replica.image().await;
    let chunk = chunk_of(&replica.states[&(1, 0)], 0);
    for key in [chunk, Key::Image(Generation(1), Txid(0))] {
        let truth = std::fs::read(replica.path(key)).unwrap();
        std::fs::write(replica.path(key), [truth.clone(), vec![0; 1 << 20]].concat()).unwrap();
        replica.check_refused(key, false).await;
        std::fs::write(replica.path(key), truth).unwrap();
    }
    replica.check(Target::Newest, 1, 0).await;
}

#[tokio::test]
async fn nobody_else_reads_what_is_restored_beside_a_database() {
    use std::os::unix::fs::PermissionsExt;
    let mut replica = Replica::new(512, 3, 17).await;
    replica.begin_generation(None).await;
    replica.image().await;
    let place = replica.folder.path().join("app.db");
    std::fs::write(&place, b"a database").unwrap();
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o600)).unwrap();
    let history = History::open(&replica.store).await.unwrap();
    let plan = history.plan(Target::Newest, None).await.unwrap();
    let aside = restore_aside(&replica.store, &place, &history, &plan, Arc::new(|_| ()))
        .await
        .unwrap();
    let mode = std::fs::metadata(aside.target.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
