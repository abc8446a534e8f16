//! What the task of a database and the threads of the application share: the ways to wake it, and its status.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use replvfs_vfs::log::Log;
use replvfs_vfs::types::UnixMillis;
use serde_json::json;
use tokio::sync::Notify;

use crate::format::Generation;
use crate::store::{Fencing, Store};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) log: Arc<Log>,
    pub(super) store: Store,
    /// The database, as it is shown to people.
    pub(super) database: String,
    /// Wakes the task.
    pub(super) wake: Notify,
    /// Ends a pause before the store is asked again.
    pub(super) hurry: Notify,
    waiting: AtomicUsize,
    /// Another process replicates the database.
    standby: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    generation: Option<Generation>,
    /// WAL bytes that were taken from the log and are not in the store.
    uploading_bytes: u64,
    image: Image,
    trouble: Option<Trouble>,
}

/// Where the image that the generation needs is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Image {
    #[default]
    None,
    Making,
    Stored,
}

#[derive(Debug, Clone)]
struct Trouble {
    message: String,
    at: UnixMillis,
    over: bool,
}

/// Counts somebody who waits for the upload, for as long as it lives.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a Shared);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

pub(super) fn now() -> UnixMillis {
    let since_epoch = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

impl Shared {
    pub(super) fn new(log: Arc<Log>, store: Store, database: String) -> Shared {
        Shared {
            log,
            store,
            database,
            wake: Notify::new(),
            hurry: Notify::new(),
            waiting: AtomicUsize::new(0),
            standby: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes the task seal and upload at once.
    pub(super) fn wait_for_upload(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.wake.notify_one();
        self.hurry.notify_waiters();
        Waiting(self)
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Whether another process replicates the database, as far as is known.
    pub(super) fn is_standby(&self) -> bool {
        self.standby.load(Ordering::Acquire)
    }

    pub(super) fn standby(&self, standby: bool) {
        if self.standby.swap(standby, Ordering::AcqRel) != standby {
            let what = if standby {
                "another process replicates it"
            } else {
                "this process replicates it now"
            };
            tracing::info!(database = %self.database, "{what}");
        }
    }

    pub(super) fn generation_began(&self, generation: Generation) {
        self.change(|state| state.generation = Some(generation));
    }

    pub(super) fn image(&self, image: Image) {
        self.change(|state| state.image = image);
    }

    pub(super) fn uploading(&self, wal_bytes: u64) {
        self.change(|state| state.uploading_bytes = wal_bytes);
    }

    /// Something does not work now, and is tried again. Logged when it is not what was said last.
    pub(super) fn trouble(&self, message: &str) {
        let news = self.change(|state| {
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
        });
        if news {
            tracing::warn!(database = %self.database, "{message}; replication goes on as soon as this works");
        }
    }

    /// The store answers.
    pub(super) fn trouble_is_over(&self) {
        let was_there = self.change(|state| match &mut state.trouble {
            Some(trouble) if !trouble.over => {
                trouble.over = true;
                true
            }
            _ => false,
        });
        if was_there {
            tracing::info!(database = %self.database, "the replica answers again");
        }
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

    /// Ends replication of the database in this process, loudly.
    pub(super) fn fail(&self, reason: &str) {
        tracing::error!(database = %self.database, replica = self.store.replica(), "replication stopped: {reason}");
        self.log.fail(reason.to_owned());
        self.hurry.notify_waiters();
    }

    pub(super) fn status(&self) -> String {
        let (last, acked) = (self.log.last_txid(), self.log.acked());
        let waiting = self.log.pending();
        let behind = last.map_or(0, |last| last.0 - acked.map_or(0, |acked| acked.0).min(last.0));
        let fencing = match self.store.fencing() {
            Fencing::Enforced => "enforced",
            Fencing::BestEffort => "best-effort",
        };
        self.change(|state| {
            json!({
                "replica": self.store.replica(),
                "owner": !self.is_standby(),
                "generation": state.generation.map(|generation| generation.0),
                "txid": last.map(|txid| txid.0),
                "acked": acked.map(|txid| txid.0),
                "pending_transactions": behind,
                "pending_bytes": waiting.wal_bytes + state.uploading_bytes,
                "image": match state.image {
                    Image::None => "none",
                    Image::Making => "making",
                    Image::Stored => "stored",
                },
                "fencing": fencing,
                "last_error": state.trouble.as_ref().map(|trouble| json!({
                    "message": trouble.message,
                    "at": rfc3339(trouble.at),
                    "over": trouble.over,
                })),
                "failed": self.log.failure(),
            })
            .to_string()
        })
    }
}

fn rfc3339(at: UnixMillis) -> Option<String> {
    jiff::Timestamp::from_millisecond(at.0).ok().map(|at| at.to_string())
}
