//! An object in a slot that was free again: what a writer put there that had slept, and that did not come to learn that the history had gone past it.
//!
//! Owns telling it from the history. Slots are deleted in ascending order and the newest segment never, so of a log everything is there from one
//! slot on, or in spans: what does not lead on to that is no part of it.

use replvfs_vfs::types::Txid;

use super::HistoryError;
use super::find::{find_merged, hash_of};
use super::path::{Listing, Piece};
use super::walk::{Slot, slot_end};
use crate::format::{Generation, Key, ObjectHash};
use crate::store::Store;

/// Whether what is in a slot is no part of the history. One request where nothing is behind it; else the segment is read to its end.
///
/// A generation's first slot stays when what followed it is gone, and may look like a stray then.
pub(crate) async fn is_stray(store: &Store, generation: Generation, slot: Txid) -> Result<bool, HistoryError> {
    let key = Key::Log(generation, slot);
    let found = slot_end(store, key).await?;
    // Only after it was seen: a slot that was deleted has something behind it at any time.
    if found.is_none() || store.list_behind(&Key::log_prefix(generation), &key).await?.is_empty() {
        return Ok(false);
    }
    let Some(Slot::Segment(end)) = found else {
        // Nothing gets in behind a seal.
        return Ok(true);
    };
    let hash = hash_of(store, key, end.len).await?;
    if let Some(merged) = find_merged(store, generation, slot).await? {
        return Ok(merged.hash(store).await? != hash);
    }
    let next = end.index.header().last.next();
    Ok(followed(store, generation, next).await? != Some(hash))
}

/// What the segment or the seal in a slot follows, wherever it is; `None` where that is not known.
async fn followed(store: &Store, generation: Generation, slot: Txid) -> Result<Option<ObjectHash>, HistoryError> {
    match slot_end(store, Key::Log(generation, slot)).await? {
        Some(Slot::Segment(end)) => Ok(Some(end.index.header().previous)),
        Some(Slot::Seal(seal)) => Ok(Some(seal.previous)),
        None => Ok(find_merged(store, generation, slot)
            .await?
            .and_then(|found| found.previous())),
    }
}

/// The strays among what is listed and not on a path. All of them are before the first slot from which on everything is there.
pub(crate) async fn strays(
    store: &Store,
    generation: Generation,
    first: Txid,
    listing: &Listing,
    path: &[Piece],
) -> Result<Vec<Key>, HistoryError> {
    let mut found = Vec::new();
    for (slot, _) in listing.slots.iter().filter(|(slot, _)| *slot != first) {
        let is_read = path.iter().any(|piece| piece.last.is_none() && piece.first == *slot);
        if is_read || !is_stray(store, generation, *slot).await? {
            break;
        }
        found.push(Key::Log(generation, *slot));
    }
    Ok(found)
}
