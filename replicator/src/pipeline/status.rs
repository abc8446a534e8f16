//! What `PRAGMA replvfs_status` tells. Owns what is remembered only to be shown, and the form of the JSON: members are added, never changed.

use std::sync::{Mutex, PoisonError};

use replvfs_vfs::types::{Txid, UnixMillis};
use serde_json::json;

use super::image::Counts;
use super::shared::{Shared, now};
use crate::format::Generation;
use crate::store::Fencing;

#[derive(Debug, Default)]
pub(super) struct Status(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    generation: Option<Generation>,
    uploading: Uploading,
    /// Since when something waits in the log.
    waiting_since: Option<UnixMillis>,
    image: Image,
    /// Another image is being made, on which nothing depends.
    another: Option<Source>,
    last_image: Option<LastImage>,
    trouble: Option<Trouble>,
    discontinuities: u64,
    diverged: bool,
    fenced: bool,
}

/// What was taken from the log and is not in the store.
#[derive(Debug, Default, Clone, Copy)]
struct Uploading {
    wal_bytes: u64,
    oldest: Option<UnixMillis>,
}

/// Where the image that the generation needs is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Image {
    #[default]
    None,
    Making,
    Stored,
}

/// What an image is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Database,
    Replica,
}

/// The newest image that this process has made.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastImage {
    pub(super) txid: Txid,
    pub(super) taken_at: UnixMillis,
    pub(super) counts: Counts,
    pub(super) source: Source,
}

#[derive(Debug, Clone)]
struct Trouble {
    message: String,
    at: UnixMillis,
    over: bool,
}

impl Status {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn generation(&self, generation: Generation) {
        self.change(|state| state.generation = Some(generation));
    }

    pub(super) fn image(&self, image: Image) {
        self.change(|state| state.image = image);
    }

    /// One that is due is being made, or not any more.
    pub(super) fn making_another(&self, making: Option<Source>) {
        self.change(|state| state.another = making);
    }

    /// An image is in the store.
    pub(super) fn stored(&self, image: LastImage) {
        self.change(|state| {
            state.image = Image::Stored;
            state.last_image = Some(image);
        });
    }

    /// An image is being made that needs this process to replicate the database. What is made of the replica goes on without.
    pub(super) fn is_making_image(&self) -> bool {
        self.change(|state| state.image == Image::Making || state.another == Some(Source::Database))
    }

    /// Nothing that anything depends on is on its way to the store.
    pub(super) fn is_at_rest(&self) -> bool {
        self.change(|state| state.image != Image::Making && state.uploading.wal_bytes == 0)
    }

    /// Something waits in the log, or nothing any more.
    pub(super) fn waits(&self, waits: bool) {
        self.change(|state| state.waiting_since = waits.then(|| state.waiting_since.unwrap_or_else(now)));
    }

    pub(super) fn uploading(&self, wal_bytes: u64, oldest: Option<UnixMillis>) {
        self.change(|state| state.uploading = Uploading { wal_bytes, oldest });
    }

    /// A part of the history will be missing.
    pub(super) fn discontinuity(&self) {
        self.change(|state| state.discontinuities += 1);
    }

    /// Another writer has this process's turn.
    pub(super) fn fenced(&self) {
        self.change(|state| state.fenced = true);
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.change(|state| state.fenced)
    }

    pub(super) fn diverged(&self) {
        self.change(|state| state.diverged = true);
    }

    /// Whether this is news.
    pub(super) fn trouble(&self, message: &str) -> bool {
        self.change(|state| {
            let known = state
                .trouble
                .as_ref()
                .is_some_and(|last| !last.over && last.message == message);
            state.trouble = Some(Trouble {
                message: message.to_owned(),
                at: now(),
                over: false,
            });
            !known
        })
    }

    /// Whether there was any.
    pub(super) fn trouble_is_over(&self) -> bool {
        self.change(|state| match &mut state.trouble {
            Some(trouble) if !trouble.over => {
                trouble.over = true;
                true
            }
            _ => false,
        })
    }

    /// The trouble that lasts.
    pub(super) fn current_trouble(&self) -> Option<String> {
        self.change(|state| {
            state
                .trouble
                .as_ref()
                .filter(|trouble| !trouble.over)
                .map(|trouble| trouble.message.clone())
        })
    }
}

pub(super) fn report(shared: &Shared) -> String {
    let log = &shared.log;
    // Without the database the numbers are those of this process's own past.
    let owner = !shared.is_standby();
    let (last, acked) = (log.last_txid().filter(|_| owner && log.is_settled()), log.acked());
    let waiting = log.pending();
    let behind = last.map_or(0, |_| log.unacked());
    let fencing = match shared.store.fencing() {
        Fencing::Enforced => "enforced",
        Fencing::BestEffort => "best-effort",
    };
    let (memory_bytes, wal_bytes) = (log.memory_bytes(), log.pinned_wal_bytes());
    shared.status.change(|state| {
        let since = state.uploading.oldest.or(state.waiting_since).filter(|_| behind > 0);
        let behind_ms = since.map_or(0, |since| (now().0 - since.0).max(0));
        let held_bytes = waiting.wal_bytes + state.uploading.wal_bytes;
        json!({
            "replica": shared.store.replica(),
            "owner": owner,
            "generation": state.generation.map(|generation| generation.0),
            "txid": last.map(|txid| txid.0),
            "acked": acked.map(|txid| txid.0),
            "pending_transactions": behind,
            "pending_bytes": held_bytes,
            "pending_seconds": behind_ms / 1000,
            "image": match state.image {
                Image::None => "none",
                Image::Making => "making",
                Image::Stored => "stored",
            },
            "making_image": state.image == Image::Making || state.another.is_some(),
            "last_image": state.last_image.map(|last| json!({
                "txid": last.txid.0,
                "taken_at": rfc3339(last.taken_at),
                "chunks": last.counts.chunks,
                "chunks_read": last.counts.read,
                "chunks_sent": last.counts.sent,
                "made_of": match last.source {
                    Source::Database => "database",
                    Source::Replica => "replica",
                },
            })),
            "pinned": log.is_pinned(),
            "memory_bytes": memory_bytes,
            "wal_bytes": wal_bytes,
            "suspended": log.is_suspended(),
            "discontinuities": state.discontinuities,
            "diverged": state.diverged,
            "fenced": state.fenced,
            "refuses_writes": shared.refusal.refuses(),
            "fencing": fencing,
            "last_error": state.trouble.as_ref().map(|trouble| json!({
                "message": trouble.message,
                "at": rfc3339(trouble.at),
                "over": trouble.over,
            })),
            "failed": log.failure(),
        })
        .to_string()
    })
}

fn rfc3339(at: UnixMillis) -> Option<String> {
    jiff::Timestamp::from_millisecond(at.0).ok().map(|at| at.to_string())
}
