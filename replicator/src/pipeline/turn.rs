//! Whether a slot was this process's turn when it got it.
//!
//! Owns the question that goes with each segment and each seal. Slots fence because they are taken for ever, but those that no restore needs any
//! more are deleted, and a writer that slept finds its own free again. They are deleted in ascending order, and the newest segment never: so
//! where a slot was deleted, the one before it is gone, too, and something is behind it. A generation's first slot is deleted only after the next generation has begun;
//! as long as it stays, what follows the second slot tells that the second was taken.
//!
//! Only what is asked after the object was there proves anything: between two requests a machine can be halted for days, and no clock of its own
//! tells. The monotonic one of Linux stands still while it sleeps, and all of them while a virtual machine does not run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use replvfs_vfs::types::Txid;

use super::Stopped;
use super::fenced::fenced;
use super::generation::META_BYTES;
use super::uploader::{Backoff, LOOKS, Owner, Uploader};
use crate::format::{Generation, GenerationMeta, Key, ObjectHash};
use crate::history::HistoryError;
use crate::history::find::hash_of;
use crate::history::walk::size;
use crate::outside::Moment;
use crate::store::{Body, Fencing, Store, StoreError};

/// Where the store does not keep writers apart, an upload that took longer may have landed behind others of another writer.
const AT_ONCE: Duration = Duration::from_secs(2);

/// What comes before a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Before {
    /// The first slot of the generation.
    pub(super) first: Txid,
    /// The slot before. `None` in the first one, and where it is not known.
    pub(super) slot: Option<Txid>,
    /// What this process has put into a slot at last.
    pub(super) content: Option<Content>,
}

/// What was put into a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) slot: Txid,
    pub(super) hash: ObjectHash,
    /// In bytes.
    pub(super) len: u64,
}

impl Before {
    /// What this process has put into the slot before.
    fn content(&self) -> Option<Content> {
        self.content.filter(|content| Some(content.slot) == self.slot)
    }
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

/// Creates the object of a slot, and asks then whether it was this process's turn.
pub(super) async fn take(
    uploader: &Uploader,
    (generation, slot): (Generation, Txid),
    before: Before,
    body: &Body,
) -> Result<Turn, Stopped> {
    let store = &uploader.shared().store;
    let key = Key::Log(generation, slot);
    if let (Fencing::BestEffort, Some(content)) = (store.fencing(), before.content()) {
        let was_replaced = uploader.until_told(|| is_replaced(store, generation, content)).await?;
        if was_replaced.unwrap_or(false) {
            return Ok(Turn::Over(replaced(generation, content)));
        }
    }
    let begun = Moment::now();
    if uploader.create(key, body).await? == Owner::Another {
        return Ok(Turn::Another);
    }
    let took = begun.age();
    let mut backoff = Backoff::new();
    let mut looks = 1;
    loop {
        match uploader.until_answered(|| is_over(store, key, before, took)).await? {
            Past::No => return Ok(Turn::Ours),
            // A store, or what is before it, may deny for a moment what it has.
            Past::Perhaps(why) if looks < LOOKS => {
                looks += 1;
                uploader
                    .shared()
                    .trouble(&format!("{key}: {why}, and nothing says by whom"));
                backoff.pause(uploader.shared()).await?;
            }
            Past::Yes(why) | Past::Perhaps(why) => return Ok(Turn::Over(why)),
        }
    }
}

/// Whether the history has gone past a slot.
enum Past {
    No,
    /// What comes before it is not to be seen, and that is all.
    Perhaps(String),
    /// Why, in words.
    Yes(String),
}

impl From<Option<String>> for Past {
    fn from(why: Option<String>) -> Past {
        why.map_or(Past::No, Past::Yes)
    }
}

/// Where the store does not keep two writers apart, both may have been told that the slot before is theirs. The one whose object is not there any more notices it here,
/// and stops before more is stored that nothing leads to.
async fn is_replaced(store: &Store, generation: Generation, content: Content) -> Result<bool, HistoryError> {
    let key = Key::Log(generation, content.slot);
    match size(store, key).await? {
        // Deleted in order, or not: that is asked later.
        None => Ok(false),
        Some(len) if len != content.len => Ok(true),
        Some(len) => Ok(hash_of(store, key, len).await? != content.hash),
    }
}

fn replaced(generation: Generation, content: Content) -> String {
    format!(
        "{}, which it follows, was replaced by another writer, and the store does not keep writers apart",
        Key::Log(generation, content.slot)
    )
}

async fn is_over(store: &Store, key: Key, before: Before, took: Duration) -> Result<Past, StoreError> {
    let Key::Log(generation, slot) = key else {
        return Ok(Past::No);
    };
    let Some(previous) = before.slot else {
        let (begun, behind) = futures::try_join!(
            next_has_begun(store, generation),
            behind_if(slot != before.first, store, key)
        )?;
        return Ok(if begun {
            Past::Yes(NEXT.to_owned())
        } else {
            behind.into()
        });
    };
    let previous_key = Key::Log(generation, previous);
    let may_be_replaced = store.fencing() == Fencing::BestEffort;
    let begun = async {
        match may_be_replaced {
            // The seal that was in this slot may have been.
            true => next_has_begun(store, generation).await,
            false => Ok(false),
        }
    };
    let found = async {
        match store.look(&previous_key).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    };
    let looks_behind = previous == before.first || may_be_replaced && took > AT_ONCE;
    let (found, behind, begun) = futures::try_join!(found, behind_if(looks_behind, store, key), begun)?;
    if begun {
        return Ok(Past::Yes(NEXT.to_owned()));
    }
    let Some((len, is_called_otherwise)) = found else {
        let why = format!("{previous_key}, which it follows, was deleted");
        return Ok(match is_not_the_newest(store, key).await? {
            Newest::Yes => Past::No,
            Newest::No => Past::Yes(why),
            Newest::Unknown => Past::Perhaps(why),
        });
    };
    // It costs nothing to look at its length, and at what the store calls it, also where the store was never seen to overwrite.
    if let Some(content) = before.content() {
        let is_other = content.len != len
            || is_called_otherwise
                && match is_replaced(store, generation, content).await {
                    Err(HistoryError::Store(error)) => return Err(error),
                    told => told.unwrap_or(false),
                };
        if is_other {
            store.condition_is_ignored();
            return Ok(Past::Yes(replaced(generation, content)));
        }
    }
    Ok(behind.into())
}

const NEXT: &str = "another generation has begun";

async fn behind_if(wanted: bool, store: &Store, key: Key) -> Result<Option<String>, StoreError> {
    match wanted {
        true => what_is_behind(store, key).await,
        false => Ok(None),
    }
}

/// Whether the object in a slot is the newest segment.
enum Newest {
    Yes,
    No,
    /// Nothing has come after it, and nothing has what was before it.
    Unknown,
}

/// What is before the slot was deleted. When the object in the slot is the newest segment, and something else has what is before, that was in order.
///
/// A listing that shows late what there is can hide what is behind; a span that has the slot tells it all the same. An image behind the slot tells nothing:
/// a state may have an image before its segments are uploaded, and that image be why the slot before was deleted.
async fn is_not_the_newest(store: &Store, key: Key) -> Result<Newest, StoreError> {
    let Key::Log(generation, slot) = key else {
        return Ok(Newest::Yes);
    };
    let behind = what_is_behind(store, key);
    if let (false, None) = futures::try_join!(next_has_begun(store, generation), behind)? {
        let (images, spans) = (Key::image_prefix(generation), Key::span_prefix(generation));
        let (images, spans) = futures::try_join!(store.list(&images), store.list(&spans))?;
        let ends = |key| match key {
            Key::Image(_, last) | Key::Span(_, _, last) => Some(last),
            _ => None,
        };
        let images = images.into_iter().filter_map(|(key, _)| ends(key));
        let spans: Vec<Txid> = spans.into_iter().filter_map(|(key, _)| ends(key)).collect();
        // The newest segment is never merged. A span that has this slot is of one that something followed.
        if spans.iter().any(|last| *last >= slot) {
            return Ok(Newest::No);
        }
        // An image may be ahead of the log: of what was committed, and waits for its turn to be uploaded.
        let has_all_before = |last: Txid| last.next() >= slot;
        return Ok(match images.chain(spans).any(has_all_before) {
            true => Newest::Yes,
            false => Newest::Unknown,
        });
    }
    Ok(Newest::No)
}

async fn what_is_behind(store: &Store, key: Key) -> Result<Option<String>, StoreError> {
    let Key::Log(generation, _) = key else {
        return Ok(None);
    };
    let behind = store.list_behind(&Key::log_prefix(generation), &key).await?;
    let first = behind.first();
    Ok(first.map(|found| format!("{}, which is behind it, is there already", found.key)))
}

pub(super) async fn next_has_begun(store: &Store, generation: Generation) -> Result<bool, StoreError> {
    // There is no number behind the highest.
    Ok(generation.next() > generation && store.has(&Key::Generation(generation.next())).await?)
}

/// Whether no generation has begun after this one, whose image is in the store now, and nobody else has its number: what is acknowledged is a part of the newest
/// history. `named`: what this process has named itself, and the hash of it.
pub(super) async fn is_newest(
    uploader: &Uploader,
    generation: Generation,
    named: Option<(Generation, ObjectHash)>,
    current: &AtomicBool,
) -> Result<bool, Stopped> {
    let shared = uploader.shared();
    let store = &shared.store;
    let root = named.filter(|(of, _)| *of == generation && may_overwrite(store));
    let (begun, is_anothers) = uploader
        .until_answered(|| async {
            let is_anothers = async {
                match root {
                    Some((_, root)) => is_named_otherwise(store, generation, root).await,
                    None => Ok(false),
                }
            };
            futures::try_join!(next_has_begun(store, generation), is_anothers)
        })
        .await?;
    if !current.load(Ordering::Acquire) {
        return Ok(false); // By this process itself, if at all.
    }
    if begun {
        return Err(fenced(shared, Key::Generation(generation.next()), NEXT).await);
    }
    if is_anothers {
        store.condition_is_ignored();
        let why = "another writer has taken it, and the store does not keep writers apart";
        return Err(fenced(shared, Key::Generation(generation), why).await);
    }
    Ok(true)
}

/// Its word that two writers are kept apart is no proof.
pub(super) fn may_overwrite(store: &Store) -> bool {
    store.is_remote() || store.fencing() == Fencing::BestEffort
}

async fn is_named_otherwise(store: &Store, generation: Generation, root: ObjectHash) -> Result<bool, StoreError> {
    match store.read_up_to(&Key::Generation(generation), META_BYTES).await {
        Ok(bytes) => Ok(GenerationMeta::root(&bytes) != root),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}
