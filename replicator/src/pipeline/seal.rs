//! Ends a generation before another one begins: a seal in its next free slot, after which no segment can get in.
//!
//! Owns finding that slot. Whoever wrote the generation finds the seal with his next upload, and is fenced. What he had put there before stays
//! a part of it: a slot has one winner, decided by the store.

use replvfs_vfs::types::Txid;

use super::Stopped;
use super::attach::end_of;
use super::generation::{Ended, random};
use super::shared::now;
use super::uploader::{Owner, Uploader};
use crate::format::{Generation, Key, ObjectHash, Seal};
use crate::history::find::{Found, find as find_segment};
use crate::history::{HistoryError, load_generation};
use crate::store::Body;

/// Where the next segment of a log would be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tail {
    pub(super) generation: Generation,
    pub(super) slot: Txid,
    /// What it would follow.
    pub(super) previous: ObjectHash,
}

impl Tail {
    pub(super) fn key(&self) -> Key {
        Key::Log(self.generation, self.slot)
    }

    /// The generation, once a seal is in the slot.
    pub(super) fn ended(&self) -> Ended {
        Ended {
            generation: Some(self.generation),
            slot: Some(self.slot),
        }
    }
}

/// Seals a generation. `known`: where this process would go on writing, if it wrote that generation. `None` where there is none.
pub(super) async fn seal(
    uploader: &Uploader,
    generation: Generation,
    known: Option<Tail>,
) -> Result<Option<Ended>, Stopped> {
    let store = &uploader.shared().store;
    let known = known.filter(|tail| tail.generation == generation);
    let told = match known {
        Some(tail) => Ok(Some(tail)),
        None => uploader.until_told(|| find(uploader, generation)).await?,
    };
    let mut tail = match told {
        Ok(Some(tail)) => tail,
        Ok(None) => return Ok(None),
        Err(error) => return Ok(Some(cannot(uploader, generation, &error))),
    };
    loop {
        if create(uploader, tail).await? == Owner::Us {
            return Ok(Some(tail.ended()));
        }
        let told = uploader
            .until_told(|| async {
                Ok(match find_segment(store, generation, tail.slot).await? {
                    Some(Found::Segment(segment)) => Some(Tail {
                        generation,
                        slot: segment.last().next(),
                        previous: segment.hash(store).await?,
                    }),
                    Some(Found::Seal) => None,
                    // A store that shows late what it has: it is asked again.
                    None => Some(tail),
                })
            })
            .await?;
        match told {
            Ok(Some(next)) => tail = next,
            Ok(None) => return Ok(Some(tail.ended())),
            Err(error) => return Ok(Some(cannot(uploader, generation, &error))),
        }
    }
}

/// Puts a seal into the slot. [`Owner::Another`] when something else is in it.
pub(super) async fn create(uploader: &Uploader, tail: Tail) -> Result<Owner, Stopped> {
    let seal = Seal {
        generation: tail.generation,
        slot: tail.slot,
        previous: tail.previous,
        sealed_at: now(),
        token: random(uploader)?,
    };
    uploader.create(tail.key(), &Body::Bytes(seal.encode().into())).await
}

async fn find(uploader: &Uploader, generation: Generation) -> Result<Option<Tail>, HistoryError> {
    let store = &uploader.shared().store;
    let Some(found) = load_generation(store, generation).await? else {
        return Ok(None);
    };
    let end = end_of(store, &found).await?;
    Ok(Some(Tail {
        generation,
        slot: end.stored.mark.txid.next(),
        previous: end.stored.previous,
    }))
}

/// A history that is damaged at its end must not keep the database from being replicated.
fn cannot(uploader: &Uploader, generation: Generation, error: &HistoryError) -> Ended {
    let shared = uploader.shared();
    tracing::warn!(
        database = %shared.database,
        replica = shared.store.replica(),
        "generation {generation} cannot be ended, so that another process that may still write it is not kept out of it: {error}"
    );
    Ended {
        generation: Some(generation),
        slot: None,
    }
}
