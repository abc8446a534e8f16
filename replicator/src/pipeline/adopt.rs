//! A slot that was this process's turn holds something else already. Is it what an earlier process of this database had uploaded, and got no
//! answer for, or perhaps had on its way until now?
//!
//! Owns the proof: the segment follows what this process's own would follow, and each of its transactions ends at the position in the WAL
//! where our transaction with that number ends. Positions contain the cumulative checksum, so equal ones mean equal content. What was
//! not written through a WAL proves nothing.

use std::sync::Arc;

use replvfs_vfs::transaction::Transaction;
use replvfs_vfs::types::Position;

use super::local::Stored;
use super::turn;
use crate::format::{Key, ObjectHash, SegmentIndex};
use crate::history::HistoryError;
use crate::history::find::hash_of;
use crate::history::stray::is_stray;
use crate::history::walk::{SegmentEnd, Slot, slot_end};
#[cfg(any(test, feature = "testing"))]
use crate::outside::simulated::{Rule, is_broken};
use crate::store::Store;

/// What is in the slot.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing any more.
    Nothing,
    /// A segment that would follow, if its transactions are ours.
    Segment(Box<SegmentEnd>),
    /// A seal that nothing follows: that of a writer who did not come to begin another generation, or of an earlier process.
    Sealed,
    /// Something else, in words.
    Foreign(String),
}

/// What a seal is to a process that was not to find one.
pub(super) const SEAL: &str = "it is the seal of a writer that has taken over";

async fn is_past(store: &Store, key: Key) -> Result<bool, HistoryError> {
    match key {
        Key::Log(generation, slot) => is_stray(store, generation, slot).await,
        _ => Ok(false),
    }
}

/// Looks into a slot. `previous` is what a segment in it has to follow.
pub(super) async fn look(store: &Store, key: Key, previous: ObjectHash) -> Result<Found, HistoryError> {
    match slot_end(store, key).await {
        Ok(None) => Ok(Found::Nothing),
        Ok(Some(_)) if is_past(store, key).await? => Ok(Found::Foreign("the history has gone past it".to_owned())),
        Ok(Some(Slot::Seal(seal))) if turn::next_has_begun(store, seal.generation).await? => {
            Ok(Found::Foreign(SEAL.to_owned()))
        }
        Ok(Some(Slot::Seal(_))) => Ok(Found::Sealed),
        Ok(Some(Slot::Segment(end))) if end.index.header().previous != previous => {
            Ok(Found::Foreign("it follows from something else".to_owned()))
        }
        Ok(Some(Slot::Segment(end))) => Ok(Found::Segment(Box::new(end))),
        Err(error @ HistoryError::Store(_)) => Err(error),
        Err(error) => Ok(Found::Foreign(error.to_string())),
    }
}

/// Whether the first of `ours` are the transactions of the segment, all of them.
///
/// # Errors
///
/// Why not, in words.
pub(super) fn prove(index: &SegmentIndex, ours: &[Arc<Transaction>]) -> Result<(), String> {
    let theirs = index.transactions();
    if ours.len() < theirs.len() {
        return Err("it goes on beyond what was committed here".to_owned());
    }
    #[cfg(any(test, feature = "testing"))]
    if is_broken(Rule::Compare) {
        return Ok(());
    }
    for (theirs, ours) in theirs.iter().zip(ours) {
        let end = theirs.header.end;
        let same = theirs.txid == ours.txid
            && end == ours.end
            && end != Position::default()
            && theirs.header.page_count == ours.page_count
            && index.header().page_size == ours.page_size;
        if !same {
            return Err(format!("transaction {} in it is not the one here", theirs.txid));
        }
    }
    Ok(())
}

/// What is stored once the segment counts as ours.
pub(super) async fn stored(store: &Store, key: Key, end: &SegmentEnd) -> Result<Stored, HistoryError> {
    let header = end.index.header();
    Ok(Stored {
        mark: replvfs_vfs::resume::Mark {
            txid: header.last,
            position: header.end,
        },
        slot: Some(header.first),
        previous: hash_of(store, key, end.len).await?,
    })
}
