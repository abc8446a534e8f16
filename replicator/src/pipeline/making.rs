//! An image on its way: the task that makes it, and what follows from its end.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use replvfs_vfs::transaction::Transaction;
use replvfs_vfs::types::Txid;
use tokio::task::JoinHandle;

use super::image::{self, Made, Pages, State};
use super::images::{Due, Images, Ticket};
use super::progress::Progress;
use super::shared::Shared;
use super::status::{Image, LastImage, Source};
use super::turn::is_newest;
use super::uploader::{Backoff, Uploader};
use super::{Stopped, generation};
use crate::format::{Generation, ObjectHash};
use crate::history::images::manifest_at;

/// The making of an image. Ends with its owner.
#[derive(Debug)]
pub(super) struct Making {
    task: JoinHandle<()>,
    /// Its generation is still the one that this process writes. What runs on another thread may be ahead of the end.
    current: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

impl Drop for Making {
    fn drop(&mut self) {
        self.current.store(false, Ordering::Release);
        self.task.abort();
        self.shared.status.making_another(None);
    }
}

/// Who makes images, and who is told of them.
#[derive(Debug, Clone)]
pub(super) struct Maker {
    pub(super) uploader: Uploader,
    pub(super) progress: Arc<Progress>,
    pub(super) images: Arc<Images>,
    /// See [`is_newest`].
    pub(super) named: Option<(Generation, ObjectHash)>,
    /// For temporary files.
    pub(super) folder: PathBuf,
}

impl Maker {
    /// Begins to make the image of the state after all that was told to [`Images::logged`]. `due`: nothing depends on it.
    pub(super) fn begin(&self, state: impl Into<State>, due: bool) -> Result<Option<Making>, Stopped> {
        let state = state.into();
        let token = u64::from_ne_bytes(generation::random(&self.uploader)?);
        let Some(ticket) = self.images.make(token) else {
            return Ok(None);
        };
        let shared = Arc::clone(self.uploader.shared());
        if due {
            shared.status.making_another(Some(state.source()));
        } else {
            shared.status.image(Image::Making);
        }
        let current = Arc::new(AtomicBool::new(true));
        let (maker, writes) = (self.clone(), Arc::clone(&current));
        let task = tokio::spawn(async move { maker.make(state, ticket, due, &writes).await });
        Ok(Some(Making { task, current, shared }))
    }

    async fn make(self, state: State, ticket: Ticket, due: bool, current: &AtomicBool) {
        let shared = self.uploader.shared();
        let (txid, taken_at, generation) = (state.txid, state.taken_at, ticket.generation);
        let source = state.source();
        let making = image::make(&self.uploader, state, &ticket);
        match AssertUnwindSafe(making).catch_unwind().await {
            Err(_) => shared.fail("making an image panicked, which is a bug in replvfs"),
            Ok(Ok(Made::Stored(counts))) => {
                let is_ours = match source {
                    Source::Database => is_newest(&self.uploader, generation, self.named, current)
                        .await
                        .is_ok_and(|is_newest| is_newest),
                    // It says nothing that the log has not said. Whether this process still writes it shows elsewhere.
                    Source::Replica => current.load(Ordering::Acquire),
                };
                if !is_ours {
                    return;
                }
                self.images.stored(&ticket, txid, taken_at);
                let of = &shared.meters.of;
                of.images.increment(1);
                of.image_chunks.increment(counts.chunks as u64);
                of.image_chunks_sent.increment(counts.sent as u64);
                of.last_image.set(taken_at.0 as f64 / 1000.0);
                tracing::info!(
                    database = %shared.database,
                    replica = shared.store.replica(),
                    generation = generation.0,
                    txid = txid.0,
                    chunks = counts.chunks,
                    chunks_sent = counts.sent,
                    "an image is in the replica"
                );
                shared.status.stored(LastImage {
                    txid,
                    taken_at,
                    counts,
                    source,
                });
                if source == Source::Database {
                    // What came before and could not be uploaded is in it.
                    shared.log.stored(txid);
                    self.progress.image(generation, txid);
                }
            }
            Ok(made) => {
                self.images.given_up(&ticket);
                if !due && !self.progress.has_image() {
                    shared.status.image(Image::None);
                } else {
                    shared.status.image(Image::Stored);
                }
                if !due && matches!(made, Ok(Made::Failed)) && Backoff::new().pause(shared).await.is_ok() {
                    shared.log.request_base();
                }
            }
        }
        shared.status.making_another(None);
        // It may have been what kept the task from letting go of the database.
        shared.wake.notify_one();
    }

    /// A segment was stored, of which this is the last transaction: asks for another image if it is due. What is returned is to be made one of, since
    /// nobody would answer.
    pub(super) async fn look(&self, last: Option<&Arc<Transaction>>) -> Result<Option<State>, Stopped> {
        let shared = self.uploader.shared();
        if let Some((generation, txid)) = self.images.unknown() {
            self.learn(generation, txid).await?;
        }
        let Some(due) = self.images.due().filter(|_| self.progress.has_image()) else {
            return Ok(None);
        };
        // Only a WAL that is kept lets a state be read beside its writers.
        if due == Due::Now && shared.log.is_pinned() {
            shared.log.request_image();
            return Ok(None);
        }
        Ok(last.map(|last| State {
            txid: last.txid,
            position: last.end,
            taken_at: last.committed_at,
            page_size: last.page_size,
            page_count: last.page_count,
            pages: Pages::Replica(self.folder.clone()),
        }))
    }

    /// When the newest image of an earlier process was taken.
    async fn learn(&self, generation: Generation, txid: Txid) -> Result<(), Stopped> {
        let store = &self.uploader.shared().store;
        let told = self
            .uploader
            .until_told(|| manifest_at(store, generation, txid))
            .await?;
        // One that cannot be read is worth no more than none.
        let manifest = told.ok().flatten();
        self.images.learned(txid, manifest.map(|manifest| manifest.taken_at));
        Ok(())
    }
}
