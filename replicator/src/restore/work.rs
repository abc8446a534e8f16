//! What a restore has at once: bytes in memory, and threads that decompress. Owns both bounds; leaves the order of things to its callers.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::RestoreError;
use crate::format::Key;
use crate::outside;

/// Bytes that one permit stands for.
const PERMIT_BYTES: usize = 1024;

/// Bytes of decompressed pages that are in memory together.
const RAW_BYTES: usize = 32 << 20;

/// Room in memory, and threads.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    room: Arc<Semaphore>,
    threads: Arc<Semaphore>,
}

impl Work {
    pub(crate) fn new() -> Work {
        let threads = outside::parallelism();
        Work {
            room: Arc::new(Semaphore::new(RAW_BYTES / PERMIT_BYTES)),
            // While one waits for the disk another one can go on.
            threads: Arc::new(Semaphore::new(threads + 1)),
        }
    }

    /// Waits until so many bytes may be taken; `None` never comes, since nobody closes it.
    pub(crate) async fn room(&self, bytes: usize) -> Option<Room> {
        let permits = bytes.div_ceil(PERMIT_BYTES).min(RAW_BYTES / PERMIT_BYTES);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX); // bounded in the line above
        let permits = Arc::clone(&self.room).acquire_many_owned(permits).await;
        permits.ok().map(Room)
    }

    /// Begins work on a thread of its own, as soon as there is one. Its result can be waited for with or without a runtime.
    pub(crate) async fn begin<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Pending<T> {
        let thread = Arc::clone(&self.threads).acquire_owned().await.ok();
        let (sender, receiver) = oneshot::channel();
        drop(outside::blocking(move || {
            // Whoever waits for it may have given up.
            let _ = sender.send(work());
            drop(thread);
        }));
        Pending(receiver)
    }
}

/// The right to have bytes in memory.
#[derive(Debug)]
pub(crate) struct Room(OwnedSemaphorePermit);

impl Room {
    /// What it takes of all there is. For a small block that is more than its bytes.
    pub(super) fn bytes(&self) -> usize {
        self.0.num_permits() * PERMIT_BYTES
    }
}

/// The result of work that was begun.
#[derive(Debug)]
pub(crate) struct Pending<T>(oneshot::Receiver<T>);

impl<T> Pending<T> {
    /// Waits on a thread that may block.
    pub(super) fn wait(self, key: Key) -> Result<T, RestoreError> {
        outside::waited(self.0).ok_or_else(|| died(key))
    }

    /// Waits in a task.
    pub(crate) async fn done(self, key: Key) -> Result<T, RestoreError> {
        self.0.await.map_err(|_| died(key))
    }
}

fn died(key: Key) -> RestoreError {
    let problem = "it panicked".to_owned();
    RestoreError::Task { key, problem }
}
