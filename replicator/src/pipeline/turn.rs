//! Whether a slot was this process's turn when it got it.
//!
//! Owns the question that goes with each segment and each seal. Slots fence because they are taken for ever, but those that no restore needs any
//! more are deleted, and a writer that slept finds its own free again. They are deleted in ascending order, and the newest segment never: so
//! where a slot was deleted, the one before it is gone, too. A generation's first slot is deleted only after the next generation has begun;
//! as long as it stays, what follows the second slot tells that the second was taken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use replvfs_vfs::types::Txid;
use tokio::time::Instant;

use super::Stopped;
use super::fenced::fenced;
use super::uploader::{Owner, Uploader};
use crate::format::{Generation, Key};
use crate::outside;
#[cfg(test)]
use crate::outside::simulated::{Rule, is_broken};
use crate::store::{Body, Store, StoreError};

/// An answer that is older than this when the object is there is asked for again: the process may have slept between the two.
const FRESH: Duration = Duration::from_secs(1);

/// What comes before a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Before {
    /// The first slot of the generation.
    pub(super) first: Txid,
    /// The slot before. `None` in the first one, and where it is not known.
    pub(super) slot: Option<Txid>,
}

/// What came of an attempt to put something into a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is there, and it was our turn.
    Ours,
    /// Something else is.
    Another,
    /// It may be there, but the history had gone past that slot. Why, in words.
    Over(String),
}

/// Creates the object of a slot, and asks beside that whether it is this process's turn.
pub(super) async fn take(
    uploader: &Uploader,
    (generation, slot): (Generation, Txid),
    before: Before,
    body: &Body,
) -> Result<Turn, Stopped> {
    let store = &uploader.shared().store;
    let key = Key::Log(generation, slot);
    uploader
        .until_answered(|| async {
            let asked = Asked::now();
            // Both to their ends: an upload that is dropped half-way may leave something behind.
            let (owner, over) = futures::join!(uploader.try_create(key, body), is_over(store, key, before));
            let (owner, mut over) = (owner?, over?);
            if owner == Owner::Us && over.is_none() && asked.is_long_ago() {
                over = is_over(store, key, before).await?;
            }
            Ok(match (owner, over) {
                (Owner::Another, _) => Turn::Another,
                (Owner::Us, Some(why)) => Turn::Over(why),
                (Owner::Us, None) => Turn::Ours,
            })
        })
        .await
}

/// When a question was asked. Not every clock goes on while a machine sleeps, and not every one is set when it wakes up.
struct Asked(Instant, SystemTime);

impl Asked {
    fn now() -> Asked {
        Asked(Instant::now(), outside::wall_clock())
    }

    fn is_long_ago(&self) -> bool {
        let by_date = outside::wall_clock().duration_since(self.1);
        self.0.elapsed() > FRESH || by_date.is_ok_and(|since| since > FRESH)
    }
}

async fn is_over(store: &Store, key: Key, before: Before) -> Result<Option<String>, StoreError> {
    let Key::Log(generation, slot) = key else {
        return Ok(None);
    };
    #[cfg(test)]
    if is_broken(Rule::Predecessor) {
        return Ok(None);
    }
    match before.slot {
        Some(previous) => {
            let previous_key = Key::Log(generation, previous);
            let behind = async {
                match previous == before.first {
                    true => what_is_behind(store, key).await,
                    false => Ok(None),
                }
            };
            let (there, behind) = futures::try_join!(exists(store, &previous_key), behind)?;
            let gone = || format!("{previous_key}, which it follows, was deleted");
            Ok(if there { behind } else { Some(gone()) })
        }
        None => {
            let behind = async {
                match slot == before.first {
                    true => Ok(None),
                    false => what_is_behind(store, key).await,
                }
            };
            let (begun, behind) = futures::try_join!(next_has_begun(store, generation), behind)?;
            Ok(if begun {
                Some("another generation has begun".to_owned())
            } else {
                behind
            })
        }
    }
}

async fn what_is_behind(store: &Store, key: Key) -> Result<Option<String>, StoreError> {
    let Key::Log(generation, _) = key else {
        return Ok(None);
    };
    let behind = store.list_behind(&Key::log_prefix(generation), &key).await?;
    let first = behind.first();
    Ok(first.map(|found| format!("{}, which is behind it, is there already", found.key)))
}

async fn next_has_begun(store: &Store, generation: Generation) -> Result<bool, StoreError> {
    // There is no number behind the highest.
    Ok(generation.next() > generation && exists(store, &Key::Generation(generation.next())).await?)
}

async fn exists(store: &Store, key: &Key) -> Result<bool, StoreError> {
    match store.size(key).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether no generation has begun after this one, whose image is in the store now: what is acknowledged is a part of the newest history.
pub(super) async fn is_newest(
    uploader: &Uploader,
    generation: Generation,
    current: &AtomicBool,
) -> Result<bool, Stopped> {
    let shared = uploader.shared();
    let begun = uploader
        .until_answered(|| next_has_begun(&shared.store, generation))
        .await?;
    if !current.load(Ordering::Acquire) {
        return Ok(false); // By this process itself, if at all.
    }
    if begun {
        return Err(fenced(
            shared,
            Key::Generation(generation.next()),
            "another generation has begun",
        )
        .await);
    }
    Ok(true)
}
