//! What is in a replica: its generations, their images and logs. Owns finding the way from an image to a target, and the
//! rule that damage is an error and never an older database. Leaves writing the database to [`restore`](crate::restore).

pub(crate) mod believed;
mod beside;
mod branches;
mod error;
pub(crate) mod find;
pub(crate) mod images;
mod older;
mod overview;
pub(crate) mod path;
mod plan;
pub(crate) mod stray;
pub(crate) mod walk;

use std::ops::RangeInclusive;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join;
use replvfs_vfs::types::{Txid, UnixMillis};

pub use error::{HistoryError, LeftOut};
pub use overview::{Count, Moment, Objects, Reach};
pub use plan::Plan;

use crate::format::{
    FormatError, Generation, GenerationMeta, Key, MAX_META_BYTES, ObjectHash, ReplicaMeta, SegmentIndex,
};
use crate::store::Store;
use path::{Listing, LogPath};
use walk::{SegmentEnd, Walk, fetch_end, read, segment_end, size};

/// A chunk that no image names is not deleted before it is older than this, by the store's clock; and an image whose chunks could have become that old
/// while it was made is looked at again.
pub(crate) const GRACE: Duration = Duration::from_secs(24 * 60 * 60);
/// No chunk is deleted because of a look at the manifests that is longer ago than this.
pub(crate) const SURVEYED: Duration = Duration::from_secs(5 * 60);

/// Requests at the same time when many small objects are read.
const PARALLEL: usize = 16;

/// Generations that are looked at for the newest state: the newest ones may have no image yet.
const NEWEST: usize = beside::LOOK_BACK + 4;

/// Which state of the database is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Target {
    /// The last one.
    #[default]
    Newest,
    /// The one after this transaction.
    Txid(Txid),
    /// The one at this time: see [`History::plan`] for what that means when clocks jump.
    At(UnixMillis),
}

/// How much of it is read.
struct Extent {
    /// With the log of the newest generation.
    with_log: bool,
    /// So many of the newest generations.
    generations: usize,
}

impl Default for Extent {
    fn default() -> Extent {
        Extent {
            with_log: false,
            generations: usize::MAX,
        }
    }
}

/// The history in a replica, as it was when it was opened.
#[derive(Debug)]
pub struct History {
    store: Store,
    meta: ReplicaMeta,
    generations: Vec<GenerationHistory>,
    left_out: LeftOut,
    warnings: Vec<String>,
}

/// One generation: what it says of itself, and its images as far as a listing shows them.
#[derive(Clone, Debug)]
pub struct GenerationHistory {
    meta: GenerationMeta,
    root: ObjectHash,
    images: Vec<Txid>,
    /// Its log, where that was listed with the images.
    log: Option<Listing>,
}

impl GenerationHistory {
    /// What it says of itself.
    #[must_use]
    pub fn meta(&self) -> &GenerationMeta {
        &self.meta
    }

    /// The transactions of its images, ascending. Without one it cannot be restored from.
    #[must_use]
    pub fn images(&self) -> &[Txid] {
        &self.images
    }

    pub(crate) fn root(&self) -> ObjectHash {
        self.root
    }

    fn number(&self) -> Generation {
        self.meta.generation
    }
}

/// A transaction in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The generation that it belongs to.
    pub generation: Generation,
    /// Its number.
    pub txid: Txid,
    /// When it was seen to commit.
    pub committed_at: UnixMillis,
    /// Pages in the database after it.
    pub page_count: u32,
    /// Pages that it wrote.
    pub pages: u32,
    /// The segment or the span that it is read from.
    pub segment: Key,
    /// The length of that object, which may hold other transactions too.
    pub stored_bytes: u64,
}

impl History {
    /// Reads what the replica is, and lists its generations and their images.
    ///
    /// # Errors
    ///
    /// [`HistoryError::NoReplica`] when there is none; others when the store fails, or when the newest generation
    /// cannot be read. An older one that cannot be read is left out, which [`warnings`](Self::warnings) tell.
    pub async fn open(store: &Store) -> Result<History, HistoryError> {
        History::read(store, Extent::default()).await
    }

    /// The same for who goes on with [`plan`](Self::plan): the log of the newest generation is listed together with its images.
    pub(crate) async fn open_to_plan(store: &Store) -> Result<History, HistoryError> {
        let extent = Extent {
            with_log: true,
            ..Extent::default()
        };
        History::read(store, extent).await
    }

    /// The same for who wants the newest state and nothing else: what the other generations are is not read, but for a few that may be written yet.
    pub(crate) async fn open_newest(store: &Store) -> Result<History, HistoryError> {
        let extent = Extent {
            with_log: true,
            generations: NEWEST,
        };
        let history = History::read(store, extent).await?;
        match history.generations.iter().any(|found| !found.images.is_empty()) {
            true => Ok(history),
            false => History::open_to_plan(store).await,
        }
    }

    /// Three rounds of requests wait for each other: what there is, what it is, and what the caller reads then.
    async fn read(store: &Store, extent: Extent) -> Result<History, HistoryError> {
        let (meta, listed) = join(read_meta(store, Key::Replica), listed_generations(store)).await;
        let bytes = meta?.ok_or(HistoryError::NoReplica)?;
        let meta = ReplicaMeta::from_bytes(&bytes).map_err(HistoryError::format(Key::Replica))?;
        let mut listed = listed?;
        let last = listed.last().copied();
        let with_log = extent.with_log;
        let load_all = |numbers: Vec<Generation>, with_log_of: Option<Generation>| {
            let load = move |number| async move {
                let with_log = with_log_of == Some(number);
                (number, load(store, number, with_log).await)
            };
            futures::stream::iter(numbers)
                .map(load)
                .buffered(PARALLEL)
                .collect::<Vec<_>>()
        };
        let wanted = listed.split_off(listed.len().saturating_sub(extent.generations));
        let (found, mut read) = join(
            with_unlisted(store, [listed, wanted.clone()].concat()),
            load_all(wanted.clone(), last.filter(|_| with_log)),
        )
        .await;
        let mut found = found?;
        let newest = found.last().copied();
        let oldest = wanted.first().copied().filter(|_| extent.generations < usize::MAX);
        found.retain(|number| !wanted.contains(number) && oldest.is_none_or(|oldest| *number > oldest));
        read.extend(load_all(found, newest.filter(|_| with_log)).await);
        read.sort_by_key(|(number, _)| *number);
        let mut history = History {
            store: store.clone(),
            meta,
            generations: Vec::new(),
            left_out: LeftOut::default(),
            warnings: Vec::new(),
        };
        for (number, loaded) in read {
            match loaded {
                Ok(Some(generation)) => history.generations.push(generation),
                Ok(None) => {}
                Err(error) if Some(number) == newest => return Err(error),
                Err(error @ HistoryError::Store(_)) => return Err(error),
                Err(error) => history
                    .left_out
                    .0
                    .push(format!("generation {number} was left out: {error}")),
            }
        }
        history.warnings.clone_from(&history.left_out.0);
        for generation in history
            .generations
            .iter()
            .rev()
            .take_while(|generation| generation.images.is_empty())
        {
            history.warnings.push(format!(
                "generation {} has no image yet: it cannot be restored from, and an older one is taken instead",
                generation.number()
            ));
        }
        Ok(history)
    }

    /// What the replica says of itself.
    #[must_use]
    pub fn meta(&self) -> &ReplicaMeta {
        &self.meta
    }

    /// Its generations in the order of history.
    #[must_use]
    pub fn generations(&self) -> &[GenerationHistory] {
        &self.generations
    }

    /// What a user should know before believing that this is everything.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The last transaction of generation `to` that is also in the history of `from`, which follows from it: the highest number there is, if they
    /// are one and the same. `None` when it does not follow.
    pub(crate) fn leads_back(&self, from: Generation, to: Generation) -> Option<Txid> {
        let (mut at, mut common) = (from, Txid(u64::MAX));
        while at != to {
            let parent = self.generation(at).ok()?.meta.parent?;
            if parent.generation >= at {
                return None;
            }
            common = common.min(parent.txid);
            at = parent.generation;
        }
        Some(common)
    }

    /// Calls `visit` for the transactions of a generation that are in `range` and after its oldest image, in order: what is before that
    /// cannot be restored, and may be on its way out. Reads only the ends of segments and spans.
    ///
    /// # Errors
    ///
    /// [`HistoryError::Generation`] when there is no such generation; others when the store fails, or a segment in the
    /// range is damaged or missing.
    pub async fn transactions(
        &self,
        generation: Generation,
        range: RangeInclusive<Txid>,
        mut visit: impl FnMut(LogEntry),
    ) -> Result<(), HistoryError> {
        let found = self.generation(generation)?;
        let listing = self.listing(found).await?;
        let oldest = match found.images.first() {
            Some(image) => image.next(),
            // Its images may have been deleted, and then its log from the beginning on.
            None => found.meta.first_image.next().max(listing.oldest().unwrap_or_default()),
        };
        let range = oldest.max(*range.start())..=*range.end();
        let (start, path) = self.path_at(found, &listing, *range.start()).await?;
        let mut next = *range.start();
        self.visit_ends(found, start, path, *range.end(), |segment, end| {
            let wanted = next..=*range.end();
            next = end.index.header().last.next().max(next);
            for entry in end
                .index
                .transactions()
                .iter()
                .filter(|entry| wanted.contains(&entry.txid))
            {
                visit(LogEntry {
                    generation,
                    txid: entry.txid,
                    committed_at: entry.header.committed_at,
                    page_count: entry.header.page_count,
                    pages: entry.pages,
                    segment,
                    stored_bytes: end.len,
                });
            }
        })
        .await
        .map(|_| ())
    }

    /// Calls `visit` with the pieces of a generation's log from the one that holds `first` up to the one that holds `stop`. Returns the last transaction of
    /// them, or the one before `first`.
    pub(crate) async fn visit_from(
        &self,
        generation: &GenerationHistory,
        first: Txid,
        stop: Txid,
        mut visit: impl FnMut(Key, &SegmentIndex),
    ) -> Result<Txid, HistoryError> {
        let listing = self.listing(generation).await?;
        let (start, path) = self.path_at(generation, &listing, first).await?;
        let visit = |key, end: &SegmentEnd| visit(key, &end.index);
        let after = self.visit_ends(generation, start, path, stop, visit).await?;
        Ok(Txid(after.max(first).0.saturating_sub(1)))
    }

    /// Reads the ends of the pieces from `start` on, up to the one that holds `stop`. They may have transactions in common. Returns the transaction after
    /// the last one that was read.
    async fn visit_ends(
        &self,
        generation: &GenerationHistory,
        start: Txid,
        path: LogPath,
        stop: Txid,
        mut visit: impl FnMut(Key, &SegmentEnd),
    ) -> Result<Txid, HistoryError> {
        let mut walk = Walk::new(&self.store, generation.number(), path, stop, PARALLEL, fetch_end);
        let mut next = start;
        while next <= stop {
            let Some((key, end)) = walk.piece(next).await? else {
                break;
            };
            visit(key, &end);
            next = end.index.header().last.next();
        }
        Ok(next)
    }

    async fn listing(&self, generation: &GenerationHistory) -> Result<Listing, HistoryError> {
        list_log(&self.store, generation.number()).await
    }

    /// See [`path_at`].
    pub(crate) async fn path_at(
        &self,
        generation: &GenerationHistory,
        listing: &Listing,
        after: Txid,
    ) -> Result<(Txid, LogPath), HistoryError> {
        let meta = generation.meta();
        path_at(&self.store, (meta.generation, meta.first_image), listing, after).await
    }

    pub(crate) fn generation(&self, number: Generation) -> Result<&GenerationHistory, HistoryError> {
        let found = self.generations.iter().find(|generation| generation.number() == number);
        found.ok_or_else(|| HistoryError::Generation {
            generation: number,
            problem: "is not in the replica",
            left_out: self.left_out.clone(),
        })
    }
}

/// Where to begin to read a log that is to go on at `after`, and with which pieces: with the one that holds that transaction or begins
/// with it. What is not listed is asked for by name: the slot of that transaction, and else the first one of the generation, which
/// the others follow from.
pub(crate) async fn path_at(
    store: &Store,
    (number, first_image): (Generation, Txid),
    listing: &Listing,
    after: Txid,
) -> Result<(Txid, LogPath), HistoryError> {
    let path = believed::path(store, number, listing, after).await?;
    if let Some(start) = path.start {
        let before = match path.pieces.first() {
            Some(seal) if seal.is_seal() => before_seal(store, number, listing, seal.first).await?,
            _ => None,
        };
        return Ok(before.unwrap_or((start, path)));
    }
    let first = first_image.next().min(after);
    let is_there = |slot| async move { Ok::<_, HistoryError>(size(store, Key::Log(number, slot)).await?.is_some()) };
    let from_first = first < after && !is_there(after).await? && is_there(first).await?;
    Ok((if from_first { first } else { after }, path))
}

/// The path that begins with what stands right before a seal: who goes on from there has to name its hash.
async fn before_seal(
    store: &Store,
    generation: Generation,
    listing: &Listing,
    seal: Txid,
) -> Result<Option<(Txid, LogPath)>, HistoryError> {
    let Some(last) = seal.0.checked_sub(1) else {
        return Ok(None);
    };
    let path = believed::path(store, generation, listing, Txid(last)).await?;
    let Some(piece) = path.pieces.first().filter(|piece| piece.first < seal) else {
        return Ok(None);
    };
    let start = piece.first;
    // The state before the seal may be an image, after which nothing of the log is needed.
    let end = match segment_end(store, piece.key(generation)).await {
        Err(error @ HistoryError::Store(_)) => return Err(error),
        end => end.ok().flatten(),
    };
    let adjoins = end.is_some_and(|end| end.index.header().last.next() == seal);
    Ok(adjoins.then_some((start, path)))
}

/// What is listed of a generation's log. A segment that is deleted between the two requests was merged before: its span is in the second one.
pub(crate) async fn list_log(store: &Store, generation: Generation) -> Result<Listing, HistoryError> {
    let mut listed = store.list(&Key::log_prefix(generation)).await?;
    listed.extend(store.list(&Key::span_prefix(generation)).await?);
    Ok(Listing::new(listed))
}

/// The slots alone, ascending, with the lengths of what is in them.
pub(crate) async fn list_slots(store: &Store, generation: Generation) -> Result<Vec<(Txid, u64)>, HistoryError> {
    Ok(Listing::new(store.list(&Key::log_prefix(generation)).await?).slots)
}

/// All generations of which anything is there, ascending.
pub(crate) async fn list_generations(store: &Store) -> Result<Vec<Generation>, HistoryError> {
    with_unlisted(store, listed_generations(store).await?).await
}

/// Those that are listed, ascending.
async fn listed_generations(store: &Store) -> Result<Vec<Generation>, HistoryError> {
    let folders = store.list_folders(Key::generations_prefix()).await?;
    let mut listed: Vec<Generation> = folders.iter().filter_map(|name| Generation::parse(name)).collect();
    listed.sort_unstable();
    Ok(listed)
}

/// A store may list late what it has: what was begun right before or after one that it shows is found by name.
async fn with_unlisted(store: &Store, mut found: Vec<Generation>) -> Result<Vec<Generation>, HistoryError> {
    let is_there = async |number| Ok::<_, HistoryError>(size(store, Key::Generation(number)).await?.is_some());
    found.sort_unstable();
    let mut before = 0;
    for listed in found.clone() {
        let between = (before + 1..listed.0).rev().map(Generation);
        for number in between {
            if !is_there(number).await? {
                break;
            }
            found.push(number);
        }
        before = listed.0;
    }
    found.sort_unstable();
    let mut newest = found.last().copied().unwrap_or(Generation(0));
    // Nothing follows the highest number, whose next is itself.
    while newest.next() > newest && is_there(newest.next()).await? {
        newest = newest.next();
        found.push(newest);
    }
    Ok(found)
}

/// `None` for a generation of which nothing is there that we know.
pub(crate) async fn load_generation(
    store: &Store,
    number: Generation,
) -> Result<Option<GenerationHistory>, HistoryError> {
    load(store, number, false).await
}

async fn load(store: &Store, number: Generation, with_log: bool) -> Result<Option<GenerationHistory>, HistoryError> {
    let key = Key::Generation(number);
    // Names are listed in their order: the log before the spans that its segments may be merged into, as in `list_log`.
    let prefix = match with_log {
        true => Key::generation_prefix(number),
        false => Key::image_prefix(number),
    };
    let (listed, bytes) = join(store.list(&prefix), read_meta(store, key)).await;
    let listed = listed?;
    let mut images: Vec<Txid> = Vec::new();
    for (key, _) in &listed {
        if let Key::Image(_, txid) = key {
            images.push(*txid);
        }
    }
    images.sort_unstable();
    let log = with_log.then(|| Listing::new(listed));
    let bytes = match bytes? {
        // It may have been stored just before what is listed.
        None if !images.is_empty() => read_meta(store, key).await?,
        bytes => bytes,
    };
    let Some(bytes) = bytes else {
        let needed_by = match images.first() {
            Some(txid) => Some(Key::Image(number, *txid)),
            None => list_slots(store, number)
                .await?
                .first()
                .map(|(first, _)| Key::Log(number, *first)),
        };
        return needed_by.map_or(Ok(None), |needed_by| Err(HistoryError::Missing { key, needed_by }));
    };
    let meta = GenerationMeta::from_bytes(&bytes).map_err(HistoryError::format(key))?;
    if meta.generation != number {
        return Err(HistoryError::Misplaced {
            key,
            found: Key::Generation(meta.generation).path(),
        });
    }
    if images.is_empty() && size(store, Key::Image(number, meta.first_image)).await?.is_some() {
        images.push(meta.first_image);
    }
    Ok(Some(GenerationHistory {
        root: GenerationMeta::root(&bytes),
        meta,
        images,
        log,
    }))
}

/// One of the JSON objects; `None` when it is not there.
pub(crate) async fn read_meta(store: &Store, key: Key) -> Result<Option<bytes::Bytes>, HistoryError> {
    let bytes = read(store, key, MAX_META_BYTES as u64).await?;
    if bytes.as_ref().is_some_and(|bytes| bytes.len() > MAX_META_BYTES) {
        let problem = format!("it is longer than {MAX_META_BYTES} bytes");
        return Err(HistoryError::format(key)(FormatError::Damaged {
            part: "JSON",
            problem,
        }));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::{Body, StoreOptions};

    /// Who was not shown the generation before the one that he began took the replica for empty.
    #[tokio::test]
    async fn a_generation_that_is_not_listed_yet_is_found_beside_one_that_is() {
        let store = Store::open("memory://history-unlisted", &StoreOptions::default()).unwrap();
        for number in [1, 2, 3, 4, 7] {
            let body = Body::Bytes(bytes::Bytes::from_static(b"{}"));
            store.create(&Key::Generation(Generation(number)), body).await.unwrap();
        }
        for (listed, all) in [
            (vec![], vec![1, 2, 3, 4]),
            (vec![3], vec![1, 2, 3, 4]),
            (vec![4, 1], vec![1, 2, 3, 4]),
            (vec![7, 2], vec![1, 2, 7]),
            (vec![u64::MAX], vec![u64::MAX]),
        ] {
            let listed = listed.into_iter().map(Generation).collect();
            let found = with_unlisted(&store, listed).await.unwrap();
            assert_eq!(found, all.into_iter().map(Generation).collect::<Vec<_>>());
        }
    }
}
