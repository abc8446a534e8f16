//! Ends a generation before another one begins: a seal in its next free slot, after which no segment can get in.
//!
//! Owns finding that slot. Whoever wrote the generation finds the seal with his next upload, and is fenced. What he had put there before stays
//! a part of it: a slot has one winner, decided by the store.

use replvfs_vfs::types::Txid;

use super::Stopped;
use super::attach::end_of;
use super::generation::{Ended, overwrites, random};
use super::shared::now;
use super::turn::{self, Before, Turn};
use super::uploader::Uploader;
use crate::format::{Generation, Key, ObjectHash, Seal};
use crate::history::find::{Found, find as find_segment};
use crate::history::stray::is_stray;
use crate::history::walk::size;
use crate::history::{HistoryError, load_generation};
use crate::store::Body;

/// Where the next segment of a log would be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tail {
    pub(super) generation: Generation,
    pub(super) slot: Txid,
    /// What it would follow.
    pub(super) previous: ObjectHash,
    pub(super) before: Before,
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

/// What came of an attempt to end a generation.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sealing {
    Done(Ended),
    /// There is no such generation.
    Nothing,
    /// It is not the newest one any more.
    Overtaken,
}

/// Seals a generation. `known`: where this process would go on writing, if it wrote that generation.
pub(super) async fn seal(uploader: &Uploader, generation: Generation, known: Option<Tail>) -> Result<Sealing, Stopped> {
    let mut known = known.filter(|tail| tail.generation == generation);
    loop {
        let told = match known.take() {
            Some(tail) => Ok(Some(tail)),
            // What it cannot read it does not end.
            None => uploader.until_sure(|| find(uploader, generation)).await?,
        };
        let tail = match told {
            Ok(Some(tail)) => tail,
            Ok(None) => return Ok(Sealing::Nothing),
            Err(error) => return Ok(Sealing::Done(cannot(uploader, generation, &error))),
        };
        match behind(uploader, tail).await? {
            Ok(Some(ended)) => return Ok(Sealing::Done(ended)),
            Err(error) => return Ok(Sealing::Done(cannot(uploader, generation, &error))),
            // The first slot is given up to a newer generation only.
            Ok(None) if tail.slot == tail.before.first => return Ok(Sealing::Overtaken),
            // While this process slept the log went on, and what it had found was deleted.
            Ok(None) => {}
        }
    }
}

/// Seals the generation in the first slot from `tail` on that is free. `None` when the history had gone past that slot.
async fn behind(uploader: &Uploader, mut tail: Tail) -> Result<Result<Option<Ended>, HistoryError>, Stopped> {
    let store = &uploader.shared().store;
    let generation = tail.generation;
    loop {
        match create(uploader, tail).await? {
            Turn::Ours => return Ok(Ok(Some(tail.ended()))),
            Turn::Over(_) => return Ok(Ok(None)),
            Turn::Another => {}
        }
        // What is there may be a stray, behind which nothing is ended.
        let is_stray = uploader.until_told(|| is_stray(store, generation, tail.slot)).await?;
        match is_stray {
            Ok(true) => return Ok(Ok(None)),
            Ok(false) => {}
            Err(error) => return Ok(Err(error)),
        }
        let told = uploader
            .until_told(|| async {
                Ok(match find_segment(store, generation, tail.slot).await? {
                    Some(Found::Segment(segment)) => Some(Tail {
                        generation,
                        slot: segment.last().next(),
                        previous: segment.hash(store).await?,
                        before: Before {
                            slot: Some(tail.slot),
                            ..tail.before
                        },
                    }),
                    Some(Found::Seal) => None,
                    // A store that shows late what it has: it is asked again.
                    None => Some(tail),
                })
            })
            .await?;
        match told {
            Ok(Some(next)) => tail = next,
            Ok(None) => return Ok(Ok(Some(tail.ended()))),
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// Looks once more, when the next generation has begun, whether the seal is in its slot: a server that keeps to a condition only when nobody else asks may have let
/// the writer's segment take its place. Then the seal is put behind that.
pub(super) async fn is_still_sealed(uploader: &Uploader, ended: Ended) -> Result<(), Stopped> {
    let store = &uploader.shared().store;
    let (Some(generation), Some(slot), true) = (ended.generation, ended.slot, turn::may_overwrite(store)) else {
        return Ok(());
    };
    let len = uploader.until_told(|| size(store, Key::Log(generation, slot))).await?;
    if len.is_ok_and(|len| len.is_some_and(|len| len != Seal::LEN as u64)) {
        overwrites(uploader);
        seal(uploader, generation, None).await?;
    }
    Ok(())
}

/// Puts a seal into the slot.
pub(super) async fn create(uploader: &Uploader, tail: Tail) -> Result<Turn, Stopped> {
    let seal = Seal {
        generation: tail.generation,
        slot: tail.slot,
        previous: tail.previous,
        sealed_at: now(),
        token: random(uploader)?,
    };
    let body = Body::Bytes(seal.encode().into());
    turn::take(uploader, (tail.generation, tail.slot), tail.before, &body).await
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
        before: Before {
            first: end.first,
            slot: end.stored.slot,
            content: None,
        },
    }))
}

/// A history that is damaged at its end must not keep the database from being replicated.
fn cannot(uploader: &Uploader, generation: Generation, error: &HistoryError) -> Ended {
    let shared = uploader.shared();
    replvfs_vfs::warning!(
        database = shared.database, replica = shared.store.replica();
        "generation {generation} cannot be ended, so that another process that may still write it is not kept out of it: {error}"
    );
    Ended {
        generation: Some(generation),
        slot: None,
    }
}
