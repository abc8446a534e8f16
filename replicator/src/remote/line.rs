//! Where each page of each state is stored: in a chunk of an image, or in a block of the log behind it.
//!
//! Owns the index of one generation's log from one image on, which only ever grows: what was said of a state stays right. Leaves reading pages to
//! `blocks`, and which state is wanted to `replica`.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use replvfs_vfs::types::{PageSize, Pgno, Txid, UnixMillis};

use crate::format::{
    CHUNK_BYTES, ChunkName, DatabaseId, Generation, GenerationMeta, Key, Manifest, ObjectHash, SegmentIndex,
};
use crate::history::path::LogPath;
use crate::history::walk::{SegmentEnd, Walk, fetch_end, follows};
use crate::history::{HistoryError, Plan, Target, read_meta};
use crate::store::Store;

/// Ends of segments and spans that are read at the same time.
const PARALLEL: usize = 16;

/// Which generation of which replica, by more than its name: of a replica that was deleted and begun anew another one has that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) database: DatabaseId,
    /// The hash of its `generation.json`.
    pub(super) root: ObjectHash,
}

/// A generation from one image on.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) origin: Origin,
    pub(super) manifest: Manifest,
    log: RwLock<Log>,
    /// Held by whoever reads on.
    growing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Log {
    pieces: Vec<Arc<SegmentIndex>>,
    /// Ascending by transaction.
    versions: HashMap<Pgno, Vec<Version>>,
    /// Of the transactions after the image, in order.
    states: Vec<Moment>,
    /// After which transactions the database had less pages than before, and how many.
    shrunk: Vec<(Txid, u32)>,
    /// What goes on behind the last transaction names this as its predecessor, where that is known.
    hash: Option<ObjectHash>,
    is_sealed: bool,
}

/// The way along a log, as it was listed.
pub(super) struct Way {
    start: Txid,
    path: LogPath,
    /// What the piece at its start names as its predecessor, where that is known.
    previous: Option<ObjectHash>,
    /// Who is on that way already.
    begun: Option<Walk<SegmentEnd>>,
}

impl Way {
    fn unlisted(start: Txid) -> Way {
        Way {
            start,
            path: LogPath::default(),
            previous: None,
            begun: None,
        }
    }

    /// That of a plan, and a walk that was begun before it was made.
    pub(super) fn new(plan: &Plan, begun: Option<Begun>) -> Way {
        let begun = begun.filter(|begun| {
            let is_same = begun.generation == plan.generation && begun.start == plan.start && begun.path == plan.path;
            is_same && begun.next == plan.manifest.txid.next()
        });
        Way {
            start: plan.start,
            path: plan.path.clone(),
            previous: plan.previous,
            begun: begun.map(|begun| begun.walk),
        }
    }

    /// Where it begins for who knows all before `next`, and who goes along.
    fn walk(self, store: &Store, generation: Generation, next: Txid, until: Txid) -> (Txid, Walk<SegmentEnd>) {
        let (at, path) = behind(self.start, self.path, next);
        let begun = self.begun.filter(|_| until == Txid(u64::MAX));
        let walk = begun.unwrap_or_else(|| Walk::new(store, generation, path, until, PARALLEL, fetch_end));
        (at, walk)
    }
}

/// What is left of a path for who knows all before `next`.
fn behind(start: Txid, mut path: LogPath, next: Txid) -> (Txid, LogPath) {
    if path.pieces.iter().any(|piece| piece.first == next) {
        path.pieces.retain(|piece| piece.first >= next);
        return (next, path);
    }
    (start, path)
}

/// A walk along a generation's log from an image on, before its manifest was read.
pub(super) struct Begun {
    generation: Generation,
    start: Txid,
    path: LogPath,
    /// The transaction behind the image.
    next: Txid,
    walk: Walk<SegmentEnd>,
}

impl Begun {
    pub(super) fn new(store: &Store, (generation, image, start, path): (Generation, Txid, Txid, LogPath)) -> Begun {
        let next = image.next();
        let (_, left) = behind(start, path.clone(), next);
        Begun {
            walk: Walk::new(store, generation, left, Txid(u64::MAX), PARALLEL, fetch_end),
            generation,
            start,
            path,
            next,
        }
    }

    pub(super) async fn begin(&mut self) {
        self.walk.begin().await;
    }
}

/// A page as one transaction wrote it.
#[derive(Clone, Copy, Debug)]
struct Version {
    txid: Txid,
    piece: u32,
    slot: u32,
}

/// What is known of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) page_count: u32,
    pub(super) at: UnixMillis,
}

/// Where a page of a state is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Nowhere: it is all zeros.
    Nowhere,
    /// At this byte of a block's pages.
    In(Source, usize),
}

/// What is fetched at once.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Chunk(Chunk),
    /// Of a segment or span, in the generation with this root.
    Block(Arc<SegmentIndex>, usize, ObjectHash),
}

/// A chunk of an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub(super) name: ChunkName,
    pub(super) raw_len: usize,
    pub(super) page_size: PageSize,
    /// That needs it.
    pub(super) image: Key,
}

/// The name of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum SourceId {
    Chunk(ChunkName),
    /// The root of its generation is with it: of a replica that was deleted and begun anew another block may have the same place.
    Block(Key, usize, ObjectHash),
}

impl Source {
    pub(super) fn id(&self) -> SourceId {
        match self {
            Source::Chunk(chunk) => SourceId::Chunk(chunk.name),
            Source::Block(index, block, root) => SourceId::Block(index.key(), *block, *root),
        }
    }

    pub(super) fn page_size(&self) -> PageSize {
        match self {
            Source::Chunk(chunk) => chunk.page_size,
            Source::Block(index, ..) => index.header().page_size,
        }
    }
}

impl Line {
    pub(super) fn new(origin: Origin, manifest: Manifest) -> Line {
        Line {
            origin,
            manifest,
            log: RwLock::default(),
            growing: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn generation(&self) -> Generation {
        self.manifest.generation
    }

    pub(super) fn page_size(&self) -> PageSize {
        self.manifest.page_size
    }

    fn read(&self) -> RwLockReadGuard<'_, Log> {
        self.log.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Log> {
        self.log.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last transaction that is known.
    pub(super) fn last(&self) -> Txid {
        Txid(self.manifest.txid.0 + self.read().states.len() as u64)
    }

    /// Whether another generation goes on from here.
    pub(super) fn is_sealed(&self) -> bool {
        self.read().is_sealed
    }

    /// `None` for a transaction before the image, or one that is not known.
    pub(super) fn moment(&self, txid: Txid) -> Option<Moment> {
        let behind = txid.0.checked_sub(self.manifest.txid.0)?;
        let Some(at) = behind.checked_sub(1) else {
            return Some(Moment {
                page_count: self.manifest.page_count,
                at: self.manifest.taken_at,
            });
        };
        self.read().states.get(usize::try_from(at).ok()?).copied()
    }

    /// Where a page of the state after a known transaction is. The page is one of that state.
    pub(super) fn place(&self, txid: Txid, page: Pgno) -> Place {
        if page == self.page_size().lock_page() {
            return Place::Nowhere;
        }
        let log = self.read();
        let versions = log.versions.get(&page).map_or(&[][..], Vec::as_slice);
        let newest = versions.partition_point(|version| version.txid <= txid);
        let version = newest.checked_sub(1).and_then(|at| versions.get(at));
        let since = version.map_or(self.manifest.txid, |version| version.txid);
        // What was cut off since reads as zeros when the file has grown again.
        let later = log.shrunk.partition_point(|(at, _)| *at <= since);
        let later = log.shrunk.get(later..).unwrap_or_default();
        let was_cut = later
            .iter()
            .take_while(|(at, _)| *at <= txid)
            .any(|(_, count)| *count < page.get());
        if was_cut {
            return Place::Nowhere;
        }
        let Some(version) = version else {
            return self.in_image(page);
        };
        match log.pieces.get(version.piece as usize) {
            Some(piece) => {
                let (block, at) = piece.place_of(version.slot);
                Place::In(Source::Block(Arc::clone(piece), block, self.origin.root), at)
            }
            None => Place::Nowhere, // versions are only added with their piece
        }
    }

    fn in_image(&self, page: Pgno) -> Place {
        if page.get() > self.manifest.page_count {
            return Place::Nowhere;
        }
        let offset = self.page_size().offset_of(page);
        let (chunk, at) = (offset / CHUNK_BYTES as u64, offset % CHUNK_BYTES as u64);
        let (Ok(chunk), Ok(at)) = (usize::try_from(chunk), usize::try_from(at)) else {
            return Place::Nowhere;
        };
        match self.manifest.chunks.get(chunk) {
            Some(name) => {
                let found = Chunk {
                    name: *name,
                    raw_len: self.manifest.chunk_len(chunk),
                    page_size: self.page_size(),
                    image: Key::Image(self.manifest.generation, self.manifest.txid),
                };
                Place::In(Source::Chunk(found), at)
            }
            None => Place::Nowhere, // a manifest has a chunk for each page
        }
    }

    /// Reads the log on, at most to the piece that has `until`. What is listed is read ahead; without a way the next slots are asked for by name, with one
    /// request if nothing is there.
    ///
    /// # Errors
    ///
    /// Also when what is there does not follow from what is known, and then nothing of it is known afterwards.
    pub(super) async fn grow(&self, store: &Store, way: Option<Way>, until: Txid) -> Result<(), HistoryError> {
        let _alone = self.growing.lock().await;
        let next = self.last().next();
        if next > until || self.is_sealed() {
            return Ok(());
        }
        // What the way was listed for was asked which generation it is just before.
        let is_opening = way.is_some() && next == self.manifest.txid.next();
        let way = way
            .filter(|way| way.start <= next)
            .unwrap_or_else(|| Way::unlisted(next));
        let (start, first) = (way.start, way.previous);
        let (mut at, mut walk) = way.walk(store, self.generation(), next, until);
        let mut previous = first.filter(|_| at == start);
        while at <= until {
            let Some((key, end)) = walk.piece(at).await? else {
                break;
            };
            let (header, known) = (*end.index.header(), self.last().next());
            // A way that began before what is known meets that in the middle of a piece.
            let met = self.read().hash.filter(|_| at <= known && known <= header.last);
            let links = [previous.map(|hash| (at, hash)), met.map(|hash| (known, hash))];
            let mut links = links.into_iter().flatten().peekable();
            let is_proved = is_opening || header.last < known || links.peek().is_some();
            let is_broken = links.any(|(slot, hash)| !follows(&header, end.index.merged(), slot, hash));
            if is_broken || !is_proved && !self.is_there_yet(store).await? {
                return Err(HistoryError::Misplaced {
                    key,
                    found: "one that does not follow from what was read before: it is damaged, or the replica was deleted and begun anew"
                        .to_owned(),
                });
            }
            at = header.last.next();
            previous = end.hash();
            self.add(key, end)?;
        }
        if let Some(seal) = walk.seal() {
            if previous.or(self.read().hash).is_some_and(|hash| hash != seal.previous) {
                return Err(HistoryError::Misplaced {
                    key: Key::Log(seal.generation, seal.slot),
                    found: "a seal that does not follow from what was read before".to_owned(),
                });
            }
            self.write().is_sealed = true;
        }
        Ok(())
    }

    /// Whether the generation is still the one that the line was begun with.
    pub(super) async fn is_there_yet(&self, store: &Store) -> Result<bool, HistoryError> {
        let found = read_meta(store, Key::Generation(self.generation())).await?;
        Ok(found.is_some_and(|bytes| GenerationMeta::root(&bytes) == self.origin.root))
    }

    fn add(&self, key: Key, end: SegmentEnd) -> Result<(), HistoryError> {
        let hash = end.hash();
        let index = Arc::new(end.index);
        if index.header().page_size != self.page_size() {
            return Err(HistoryError::Misplaced {
                key,
                found: format!("a segment with pages of {} bytes", index.header().page_size),
            });
        }
        let mut log = self.write();
        let mut known = Txid(self.manifest.txid.0 + log.states.len() as u64);
        let piece = u32::try_from(log.pieces.len()).unwrap_or(u32::MAX);
        for entry in index.transactions() {
            if entry.txid <= known {
                continue;
            }
            if entry.txid != known.next() {
                return Err(HistoryError::Misplaced {
                    key,
                    found: format!("transaction {} behind {known}", entry.txid),
                });
            }
            let before = log
                .states
                .last()
                .map_or(self.manifest.page_count, |state| state.page_count);
            if entry.header.page_count < before {
                log.shrunk.push((entry.txid, entry.header.page_count));
            }
            log.states.push(Moment {
                page_count: entry.header.page_count,
                at: entry.header.committed_at,
            });
            for (slot, page) in (entry.first_slot..).zip(index.pages_of(entry).unwrap_or_default()) {
                log.versions.entry(*page).or_default().push(Version {
                    txid: entry.txid,
                    piece,
                    slot,
                });
            }
            known = entry.txid;
        }
        if index.header().last == known {
            log.hash = hash;
        }
        log.pieces.push(index);
        Ok(())
    }
}

/// A line, and a known transaction of it.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) line: Arc<Line>,
    pub(super) txid: Txid,
    pub(super) moment: Moment,
}

impl State {
    pub(super) fn new(line: &Arc<Line>, txid: Txid) -> Result<State, HistoryError> {
        let moment = line.moment(txid).ok_or_else(|| HistoryError::NotInHistory {
            target: Target::Txid(txid),
            range: format!(
                "the newest transaction of generation {} is {}",
                line.generation(),
                line.last()
            ),
            left_out: crate::history::LeftOut::default(),
        })?;
        Ok(State {
            line: Arc::clone(line),
            txid,
            moment,
        })
    }

    /// In the order of history.
    pub(super) fn order(&self) -> (Generation, Txid) {
        (self.line.generation(), self.txid)
    }

    /// Whether both are states of one replica: not when it was deleted and begun anew between them.
    pub(super) fn is_kin(&self, other: &State) -> bool {
        let (ours, theirs) = (&self.line, &other.line);
        ours.origin.database == theirs.origin.database
            && (ours.generation() != theirs.generation() || ours.origin.root == theirs.origin.root)
    }

    pub(super) fn place(&self, page: Pgno) -> Place {
        self.line.place(self.txid, page)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use bytes::Bytes;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;
    use replvfs_vfs::types::Position;

    use super::*;
    use crate::format::{ChunkHash, SegmentFooter, SegmentHeader, SegmentWriter, TransactionEntry, TransactionHeader};

    const PAGE: u32 = 65_536;
    const IMAGE: u64 = 7;
    const ORIGIN: Origin = Origin {
        database: DatabaseId([3; 16]),
        root: ObjectHash([4; 32]),
    };

    /// What a transaction does: pages in the database afterwards, and those that it writes, as far as they are in it.
    type Commit = (u32, std::collections::BTreeSet<u32>);

    /// Where a page's content comes from.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum From {
        Zeros,
        Image,
        Transaction(u64),
    }

    fn manifest(page_count: u32) -> Manifest {
        let hash = ChunkHash([1; 32]);
        let chunks = (0..page_count.div_ceil(16)).map(|token| ChunkName {
            hash,
            token: token.into(),
        });
        Manifest {
            generation: Generation(1),
            txid: Txid(IMAGE),
            page_size: PageSize::new(PAGE).unwrap(),
            page_count,
            taken_at: UnixMillis(5),
            position: Position::NONE,
            chunks: chunks.collect(),
        }
    }

    /// One segment that begins with this transaction.
    fn segment(first: u64, commits: &[Commit]) -> (Key, SegmentEnd) {
        let header = SegmentHeader {
            generation: Generation(1),
            page_size: PageSize::new(PAGE).unwrap(),
            first: Txid(first),
            last: Txid(first + commits.len() as u64 - 1),
            start: Position::NONE,
            end: Position::NONE,
            previous: ObjectHash([0; 32]),
        };
        let mut writer = SegmentWriter::new(Vec::new(), header, 1).unwrap();
        for (txid, (page_count, pages)) in (first..).zip(commits) {
            let header = TransactionHeader {
                committed_at: UnixMillis(txid as i64 * 100),
                page_count: *page_count,
                end: Position::NONE,
            };
            writer.begin(header).unwrap();
            for page in pages.iter().filter(|page| *page <= page_count) {
                let content = vec![txid as u8; PAGE as usize];
                writer.page(Pgno::new(*page).unwrap(), &content).unwrap();
            }
        }
        let (object, _) = writer.finish().unwrap();
        let (len, object) = (object.len() as u64, Bytes::from(object));
        let footer = SegmentFooter::parse(&object, len).unwrap();
        let tail = object.slice(footer.tables().start as usize..);
        let index = SegmentIndex::parse(&footer, &tail).unwrap();
        let object = Some(object);
        let end = SegmentEnd {
            len,
            index,
            tail,
            object,
        };
        (end.index.key(), end)
    }

    fn from(line: &Line, txid: u64, page: u32) -> From {
        match line.place(Txid(txid), Pgno::new(page).unwrap()) {
            Place::Nowhere => From::Zeros,
            Place::In(Source::Chunk(chunk), at) => {
                assert_eq!(
                    (chunk.name.token, at as u32),
                    (u64::from((page - 1) / 16), (page - 1) % 16 * PAGE)
                );
                From::Image
            }
            Place::In(Source::Block(index, block, _), at) => {
                let slot = block as u32 * 16 + at as u32 / PAGE;
                assert_eq!(index.pages()[slot as usize].get(), page);
                let wrote = |entry: &&TransactionEntry| entry.first_slot <= slot;
                From::Transaction(index.transactions().iter().rev().find(wrote).unwrap().txid.0)
            }
        }
    }

    fn commits() -> impl Strategy<Value = Vec<Vec<Commit>>> {
        vec(vec((1..40_u32, btree_set(1..40_u32, 0..6)), 1..5), 1..6)
    }

    proptest! {
        /// The model is the file itself, of which each page remembers who wrote it: what is cut off is gone, and what is added is zeros.
        #[test]
        fn each_page_of_each_state_is_where_it_was_written_last(image in 0..40_u32, segments in commits()) {
            let line = Line::new(ORIGIN, manifest(image));
            let mut file = vec![From::Image; image as usize];
            let mut states = vec![file.clone()];
            for commits in &segments {
                let first = line.last().0 + 1;
                let (key, end) = segment(first, commits);
                line.add(key, end).unwrap();
                for (txid, (page_count, pages)) in (first..).zip(commits) {
                    file.resize(*page_count as usize, From::Zeros);
                    for page in pages.iter().filter(|page| *page <= page_count) {
                        file[*page as usize - 1] = From::Transaction(txid);
                    }
                    states.push(file.clone());
                }
            }
            for (txid, state) in (IMAGE..).zip(&states) {
                let moment = line.moment(Txid(txid)).unwrap();
                prop_assert_eq!(moment.page_count as usize, state.len());
                for (page, expected) in (1..).zip(state) {
                    prop_assert_eq!(from(&line, txid, page), *expected, "page {} of {}", page, txid);
                }
            }
            prop_assert_eq!(line.moment(Txid(IMAGE - 1)), None);
            prop_assert_eq!(line.moment(line.last().next()), None);
        }
    }

    #[test]
    fn what_is_known_is_not_added_twice_and_nothing_is_left_out() {
        let line = Line::new(ORIGIN, manifest(3));
        let commit = |page| (3, [page].into());
        let add = |first, commits: &[Commit]| {
            let (key, end) = segment(first, commits);
            line.add(key, end).map_err(|error| error.to_string())
        };
        add(IMAGE + 1, &[commit(1), commit(2)]).unwrap();
        // A span may have begun before.
        add(IMAGE + 1, &[commit(1), commit(2), commit(3)]).unwrap();
        assert_eq!(line.last(), Txid(IMAGE + 3));
        assert_eq!(from(&line, IMAGE + 3, 1), From::Transaction(IMAGE + 1));
        assert_eq!(from(&line, IMAGE + 3, 3), From::Transaction(IMAGE + 3));
        let error = add(IMAGE + 5, &[commit(1)]).unwrap_err();
        assert!(error.contains("transaction 12 behind 10"), "{error}");
        assert_eq!(line.last(), Txid(IMAGE + 3));
    }
}
