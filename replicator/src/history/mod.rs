//! What is in a replica: its generations, their images and logs. Owns finding the way from an image to a target, and the
//! rule that damage is an error and never an older database. Leaves writing the database to [`restore`](crate::restore).

mod error;
mod plan;
pub(crate) mod walk;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use futures::StreamExt;
use replvfs_vfs::types::{Txid, UnixMillis};

pub use error::{HistoryError, LeftOut};
pub use plan::Plan;

use crate::format::{FormatError, Generation, GenerationMeta, Key, MAX_META_BYTES, ObjectHash, ReplicaMeta};
use crate::store::Store;
use walk::{Listed, SegmentEnd, Walk, fetch_end, read, size};

/// Requests at the same time when many small objects are read.
const PARALLEL: usize = 16;

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

/// The history in a replica, as it was when it was opened.
#[derive(Debug)]
pub struct History {
    store: Store,
    meta: ReplicaMeta,
    generations: Vec<GenerationHistory>,
    left_out: LeftOut,
    warnings: Vec<String>,
}

/// One generation, as far as a listing shows it.
#[derive(Clone, Debug)]
pub struct GenerationHistory {
    meta: GenerationMeta,
    root: ObjectHash,
    images: Vec<Txid>,
    slots: Vec<Listed>,
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

    /// The slots of its log that were listed, ascending, with the lengths of their objects.
    #[must_use]
    pub fn slots(&self) -> &[(Txid, u64)] {
        &self.slots
    }

    fn number(&self) -> Generation {
        self.meta.generation
    }

    /// The last listed slot that starts at or before `txid`.
    fn slot_of(&self, txid: Txid) -> Option<Txid> {
        let after = self.slots.partition_point(|(first, _)| *first <= txid);
        Some(self.slots.get(after.checked_sub(1)?)?.0)
    }

    fn listed_from(&self, slot: Txid) -> Vec<Listed> {
        self.slots.iter().copied().filter(|(first, _)| *first >= slot).collect()
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
    /// The segment that holds it.
    pub segment: Key,
    /// The length of that segment, which may hold other transactions too.
    pub stored_bytes: u64,
}

/// What a listing shows of a generation.
#[derive(Default)]
struct Found {
    meta_len: Option<u64>,
    images: Vec<Txid>,
    slots: Vec<Listed>,
}

impl History {
    /// Reads what the replica is, and lists what is in it.
    ///
    /// # Errors
    ///
    /// [`HistoryError::NoReplica`] when there is none; others when the store fails, or when the newest generation
    /// cannot be read. An older one that cannot be read is left out, which [`warnings`](Self::warnings) tell.
    pub async fn open(store: &Store) -> Result<History, HistoryError> {
        let bytes = match size(store, Key::Replica).await? {
            Some(len) => read_meta(store, Key::Replica, len).await?,
            None => None,
        };
        let bytes = bytes.ok_or(HistoryError::NoReplica)?;
        let meta = ReplicaMeta::from_bytes(&bytes).map_err(HistoryError::format(Key::Replica))?;
        let found = list(store).await?;
        let newest = found.keys().next_back().copied();
        let read = futures::stream::iter(found)
            .map(|(number, found)| async move { (number, load_generation(store, number, found).await) })
            .buffered(PARALLEL);
        let read: Vec<_> = read.collect().await;
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
                Err(error @ HistoryError::Store { .. }) => return Err(error),
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

    /// Calls `visit` for the transactions of a generation that are in `range`, in order. Reads only the ends of
    /// segments.
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
        let oldest = found
            .slots
            .first()
            .map_or(found.meta.first_image.next(), |(first, _)| *first);
        let start = found.slot_of(*range.start()).unwrap_or(oldest);
        self.visit_ends(found, start, *range.end(), |segment, end| {
            for entry in end
                .index
                .transactions()
                .iter()
                .filter(|entry| range.contains(&entry.txid))
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

    /// Reads the ends of the segments from the slot `start` on, up to the one that holds `stop`. Returns the slot after
    /// the last one that was read.
    async fn visit_ends(
        &self,
        generation: &GenerationHistory,
        start: Txid,
        stop: Txid,
        mut visit: impl FnMut(Key, &SegmentEnd),
    ) -> Result<Txid, HistoryError> {
        let listed = generation.listed_from(start);
        let mut walk = Walk::new(&self.store, generation.number(), listed, stop, PARALLEL, fetch_end);
        let mut slot = start;
        while slot <= stop {
            let Some(end) = walk.slot(slot).await? else {
                break;
            };
            visit(Key::Log(generation.number(), slot), &end);
            slot = end.index.header().last.next();
        }
        Ok(slot)
    }

    fn generation(&self, number: Generation) -> Result<&GenerationHistory, HistoryError> {
        let found = self.generations.iter().find(|generation| generation.number() == number);
        found.ok_or_else(|| HistoryError::Generation {
            generation: number,
            problem: "is not in the replica",
            left_out: self.left_out.clone(),
        })
    }
}

async fn list(store: &Store) -> Result<BTreeMap<Generation, Found>, HistoryError> {
    let prefix = Key::generations_prefix();
    let listed = store
        .list(prefix)
        .await
        .map_err(|error| HistoryError::store(prefix, error))?;
    let mut found: BTreeMap<Generation, Found> = BTreeMap::new();
    for (key, len) in listed {
        match key {
            Key::Generation(generation) => found.entry(generation).or_default().meta_len = Some(len),
            Key::Image(generation, txid) => found.entry(generation).or_default().images.push(txid),
            Key::Log(generation, first) => found.entry(generation).or_default().slots.push((first, len)),
            Key::Replica | Key::Chunk(_) => {}
        }
    }
    for generation in found.values_mut() {
        generation.images.sort_unstable();
        generation.slots.sort_unstable();
    }
    // A store may list late what it has: what was begun since is found by name.
    let mut next = found.keys().next_back().map_or(Generation(1), |newest| newest.next());
    while let Some(len) = size(store, Key::Generation(next)).await? {
        found.entry(next).or_default().meta_len = Some(len);
        next = next.next();
    }
    Ok(found)
}

/// `None` for a generation of which nothing is there.
async fn load_generation(
    store: &Store,
    number: Generation,
    found: Found,
) -> Result<Option<GenerationHistory>, HistoryError> {
    let Found {
        meta_len,
        mut images,
        slots,
    } = found;
    let key = Key::Generation(number);
    let len = match meta_len {
        Some(len) => Some(len),
        None => size(store, key).await?,
    };
    let bytes = match len {
        Some(len) => read_meta(store, key, len).await?,
        None => None,
    };
    let Some(bytes) = bytes else {
        let image = images.first().map(|txid| Key::Image(number, *txid));
        let needed_by = image.or_else(|| slots.first().map(|(first, _)| Key::Log(number, *first)));
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
        slots,
    }))
}

async fn read_meta(store: &Store, key: Key, len: u64) -> Result<Option<bytes::Bytes>, HistoryError> {
    if len > MAX_META_BYTES as u64 {
        let problem = format!("it is longer than {MAX_META_BYTES} bytes");
        return Err(HistoryError::format(key)(FormatError::Damaged {
            part: "JSON",
            problem,
        }));
    }
    read(store, key).await
}
