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

use replvfs_vfs::types::Txid;

use super::Stopped;
use super::fenced::fenced;
use super::uploader::{Owner, Uploader};
use crate::format::{Generation, Key, ObjectHash};
use crate::history::HistoryError;
use crate::history::find::hash_of;
use crate::history::walk::size;
use crate::store::{Body, Fencing, Store, StoreError};

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
    if uploader.create(key, body).await? == Owner::Another {
        return Ok(Turn::Another);
    }
    let over = uploader.until_answered(|| is_over(store, key, before)).await?;
    Ok(over.map_or(Turn::Ours, Turn::Over))
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

async fn is_over(store: &Store, key: Key, before: Before) -> Result<Option<String>, StoreError> {
    let Key::Log(generation, slot) = key else {
        return Ok(None);
    };
    let Some(previous) = before.slot else {
        let behind = async {
            match slot == before.first {
                true => Ok(None),
                false => what_is_behind(store, key).await,
            }
        };
        let (begun, behind) = futures::try_join!(next_has_begun(store, generation), behind)?;
        return Ok(if begun {
            Some("another generation has begun".to_owned())
        } else {
            behind
        });
    };
    let previous_key = Key::Log(generation, previous);
    let behind = async {
        match previous == before.first {
            true => what_is_behind(store, key).await,
            false => Ok(None),
        }
    };
    let (len, behind) = futures::try_join!(store.size_if_there(&previous_key), behind)?;
    if let Some(len) = len {
        // It costs nothing to look at its length, also where the store was never seen to overwrite.
        return Ok(match before.content() {
            Some(content) if content.len != len => {
                store.condition_is_ignored();
                Some(replaced(generation, content))
            }
            _ => behind,
        });
    }
    let is_over = is_not_the_newest(store, key).await?;
    Ok(is_over.then(|| format!("{previous_key}, which it follows, was deleted")))
}

/// What is before the slot was deleted. When the object in the slot is the newest segment, and something else has what is before, that was in order.
///
/// A listing that shows late what there is can hide what is behind; a span that has the slot tells it all the same. An image behind the slot tells nothing:
/// a state may have an image before its segments are uploaded, and that image be why the slot before was deleted.
async fn is_not_the_newest(store: &Store, key: Key) -> Result<bool, StoreError> {
    let Key::Log(generation, slot) = key else {
        return Ok(false);
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
            return Ok(true);
        }
        // An image may be ahead of the log: of what was committed, and waits for its turn to be uploaded.
        let has_all_before = |last: Txid| last.next() >= slot;
        return Ok(!images.chain(spans).any(has_all_before));
    }
    Ok(true)
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
