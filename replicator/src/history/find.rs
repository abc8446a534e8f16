//! A segment by its slot, wherever it is: there, or inside a span that it was merged into.
//!
//! Owns that question alone. Who asks it follows the log of a history that may have been merged meanwhile.

use replvfs_vfs::types::{Position, Txid};

use super::HistoryError;
use super::path::Listing;
use super::walk::{SegmentEnd, Slot, fetch_end, read_range, slot_end};
use crate::format::{Generation, Key, MergedSegment, ObjectHash, SegmentIndex, TransactionEntry};
use crate::store::Store;

/// Bytes that are hashed at a time.
const PART_BYTES: u64 = 4 << 20;

/// What is, or was, in a slot.
#[derive(Debug)]
pub(crate) enum Found {
    Segment(Box<FoundSegment>),
    Seal,
}

/// A segment, and the object that it is read from.
#[derive(Debug)]
pub(crate) struct FoundSegment {
    key: Key,
    len: u64,
    index: SegmentIndex,
    /// Of a span, which of its segments it is.
    merged: Option<(MergedSegment, TransactionEntry)>,
}

impl FoundSegment {
    fn in_slot(key: Key, end: SegmentEnd) -> FoundSegment {
        FoundSegment {
            key,
            len: end.len,
            index: end.index,
            merged: None,
        }
    }

    fn in_span(key: Key, end: SegmentEnd, slot: Txid) -> Option<FoundSegment> {
        let (segment, last) = end.index.merged_at(slot)?;
        Some(FoundSegment {
            merged: Some((segment, *last)),
            ..FoundSegment::in_slot(key, end)
        })
    }

    /// Its object is not there any more, or was not seen.
    pub(crate) fn is_merged(&self) -> bool {
        self.merged.is_some()
    }

    pub(crate) fn first(&self) -> Txid {
        self.merged
            .map_or(self.index.header().first, |(segment, _)| segment.first)
    }

    pub(crate) fn last(&self) -> Txid {
        self.merged.map_or(self.index.header().last, |(_, last)| last.txid)
    }

    /// The place in the WAL before it, where that is known: not inside a span.
    pub(crate) fn start(&self) -> Option<Position> {
        (!self.is_merged()).then_some(self.index.header().start)
    }

    /// The hash of what it follows, where that is known: of a span's first segment.
    pub(super) fn previous(&self) -> Option<ObjectHash> {
        let header = self.index.header();
        (self.first() == header.first).then_some(header.previous)
    }

    /// The place in the WAL behind it.
    pub(crate) fn end(&self) -> Position {
        self.merged.map_or(self.index.header().end, |(_, last)| last.header.end)
    }

    pub(crate) fn transactions(&self) -> impl Iterator<Item = &TransactionEntry> {
        let range = self.first()..=self.last();
        let entries = self.index.transactions().iter();
        entries.filter(move |entry| range.contains(&entry.txid))
    }

    /// The hash of its object. Of one in its slot all of it is read.
    pub(crate) async fn hash(&self, store: &Store) -> Result<ObjectHash, HistoryError> {
        match self.merged {
            Some((segment, _)) => Ok(segment.hash),
            None => hash_of(store, self.key, self.len).await,
        }
    }
}

/// What is in a slot, or was there before it was merged. `None` when there is neither.
pub(crate) async fn find(store: &Store, generation: Generation, slot: Txid) -> Result<Option<Found>, HistoryError> {
    let key = Key::Log(generation, slot);
    match slot_end(store, key).await? {
        Some(Slot::Segment(end)) => return Ok(Some(Found::Segment(Box::new(FoundSegment::in_slot(key, end))))),
        Some(Slot::Seal(_)) => return Ok(Some(Found::Seal)),
        None => {}
    }
    Ok(find_merged(store, generation, slot)
        .await?
        .map(|found| Found::Segment(Box::new(found))))
}

/// The same for what was merged: in which span it is.
pub(super) async fn find_merged(
    store: &Store,
    generation: Generation,
    slot: Txid,
) -> Result<Option<FoundSegment>, HistoryError> {
    let listing = Listing::new(store.list(&Key::span_prefix(generation)).await?);
    let holds = |first: Txid, last: Txid| (first..=last).contains(&slot);
    for span in listing.spans.iter().filter(|span| holds(span.first, span.reach())) {
        let key = span.key(generation);
        if let Some(end) = fetch_end(store.clone(), key, span.len).await?
            && let Some(found) = FoundSegment::in_span(key, end, slot)
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The hash of a whole object.
pub(crate) async fn hash_of(store: &Store, key: Key, len: u64) -> Result<ObjectHash, HistoryError> {
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    while at < len {
        let end = (at + PART_BYTES).min(len);
        let part = read_range(store, key, at..end).await?;
        hasher.update(&part.ok_or(HistoryError::Missing { key, needed_by: key })?);
        at = end;
    }
    Ok(ObjectHash(*hasher.finalize().as_bytes()))
}
