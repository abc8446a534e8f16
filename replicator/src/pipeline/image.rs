//! From a snapshot to an image in the store: chunks first, then the manifest that names them.
//!
//! Runs beside the uploads of segments. Owns the bound on what is read ahead of the store: when the store does not answer, the
//! reading stalls. Leaves to the task when an image is due and what it is good for.

use std::collections::HashSet;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use replvfs_vfs::log::Base;
use replvfs_vfs::snapshot::{Snapshot, SnapshotError};
use replvfs_vfs::types::Pgno;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::Stopped;
use super::uploader::{Backoff, Owner, Uploader};
use crate::format::{CHUNK_BYTES, ChunkHash, FormatError, Generation, Key, Manifest, encode_chunk};
use crate::outside;
use crate::store::Body;

/// Encoded chunks between the reader and the uploads, each about [`CHUNK_BYTES`] at most.
const READ_AHEAD: usize = 12;
const UPLOADS_AT_ONCE: usize = 4;
/// zstd's: an image is made once and read in an emergency, but making it holds a lock on the database.
const LEVEL: i32 = 1;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// The manifest is in the store.
    Stored,
    /// The snapshot could not be read to its end, and a new base was asked for.
    GivenUp,
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("nobody uploads what is read")]
    Abandoned,
}

type Chunk = (ChunkHash, Bytes);

/// Makes the image of `base`. `shared_chunks` tells whether the replica may have chunks already.
pub(super) async fn make(
    uploader: &Uploader,
    base: Base,
    generation: Generation,
    shared_chunks: bool,
) -> Result<Made, Stopped> {
    let shared = uploader.shared();
    let Base {
        txid,
        position,
        taken_at,
        snapshot,
        ..
    } = base;
    let (page_size, page_count) = (snapshot.page_size(), snapshot.page_count());
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    // The snapshot goes with the reader: its lock is let go as soon as all is read.
    let reader = outside::blocking(move || read(snapshot, &sender));
    let uploads = stream::unfold(receiver, |mut receiver: mpsc::Receiver<Chunk>| async move {
        let chunk = receiver.recv().await?;
        Some((chunk, receiver))
    });
    uploads
        .map(|(hash, stored)| upload(uploader, hash, stored, shared_chunks))
        .buffer_unordered(UPLOADS_AT_ONCE)
        .try_collect::<()>()
        .await?;
    let chunks = match reader.await {
        Ok(Ok(chunks)) => chunks,
        Ok(Err(ReadError::Snapshot(SnapshotError::GivenUp(reason)))) => {
            // Whoever gave it up has asked for another base already.
            tracing::debug!(database = %shared.database, reason, "an image was given up; another will be made");
            return Ok(Made::GivenUp);
        }
        Ok(Err(error)) => {
            shared.trouble(&format!("making an image of {}: {error}", shared.database));
            Backoff::new().pause(shared).await?;
            shared.log.request_base();
            return Ok(Made::GivenUp);
        }
        Err(stopped) => {
            shared.fail(&format!(
                "an image could not be made, which is a bug in replvfs: {stopped}"
            ));
            return Err(Stopped);
        }
    };
    let manifest = Manifest {
        generation,
        txid,
        page_size,
        page_count,
        taken_at,
        position,
        chunks,
    };
    store_manifest(uploader, &manifest).await
}

async fn store_manifest(uploader: &Uploader, manifest: &Manifest) -> Result<Made, Stopped> {
    let shared = uploader.shared();
    let key = Key::Image(manifest.generation, manifest.txid);
    let bytes = match manifest.encode() {
        Ok(bytes) => bytes,
        Err(error) => {
            shared.fail(&format!("{key}: {error}"));
            return Err(Stopped);
        }
    };
    match uploader.create(key, &Body::Bytes(bytes.into())).await? {
        Owner::Us => Ok(Made::Stored),
        Owner::Another if has_same_pages(uploader, key, manifest).await? => Ok(Made::Stored),
        Owner::Another => {
            shared.fail(&format!(
                "{key} in the replica {} is from another writer of the same generation: give each database a replica of its own",
                shared.store.replica()
            ));
            Err(Stopped)
        }
    }
}

/// Whether the image in the store is one that was made of the same state at another time: a base may be asked for twice.
async fn has_same_pages(uploader: &Uploader, key: Key, ours: &Manifest) -> Result<bool, Stopped> {
    let store = &uploader.shared().store;
    let limit = Manifest::max_bytes(ours.page_size);
    let bytes = uploader.until_answered(|| store.read_up_to(&key, limit)).await?;
    let theirs = Manifest::decode(&bytes).ok();
    Ok(theirs.is_some_and(|theirs| {
        (theirs.generation, theirs.txid, theirs.page_size) == (ours.generation, ours.txid, ours.page_size)
            && (theirs.page_count, &theirs.chunks) == (ours.page_count, &ours.chunks)
    }))
}

async fn upload(uploader: &Uploader, hash: ChunkHash, stored: Bytes, may_be_there: bool) -> Result<(), Stopped> {
    let key = Key::Chunk(hash);
    // Asking costs a request and saves sending the content: right only where chunks are likely to be shared.
    if may_be_there {
        let store = &uploader.shared().store;
        let there = uploader
            .until_answered(|| async {
                match store.size(&key).await {
                    Ok(_) => Ok(true),
                    Err(error) if error.is_not_found() => Ok(false),
                    Err(error) => Err(error),
                }
            })
            .await?;
        if there {
            return Ok(());
        }
    }
    uploader.create_named_by_content(key, &Body::Bytes(stored)).await
}

/// Waits where there is no room. `false` when nobody takes chunks any more.
fn hand_over(uploads: &mpsc::Sender<Chunk>, chunk: Chunk) -> bool {
    match uploads.try_send(chunk) {
        Ok(()) => true,
        Err(TrySendError::Full(chunk)) => uploads.blocking_send(chunk).is_ok(),
        Err(TrySendError::Closed(_)) => false,
    }
}

/// Reads all pages in order, and sends each chunk that was not sent before.
fn read(mut snapshot: Snapshot, uploads: &mpsc::Sender<Chunk>) -> Result<Vec<ChunkHash>, ReadError> {
    let page_bytes = snapshot.page_size().as_usize();
    let pages_a_chunk = u32::try_from(CHUNK_BYTES / page_bytes).unwrap_or(1);
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut hashes = Vec::new();
    let mut sent = HashSet::new();
    let mut done = 0;
    while done < snapshot.page_count() {
        let pages = pages_a_chunk.min(snapshot.page_count() - done);
        let raw = &mut buffer[..pages as usize * page_bytes];
        let Some(first) = Pgno::new(done + 1) else {
            return Err(ReadError::Abandoned);
        };
        snapshot.read_pages(first, raw)?;
        let (hash, stored) = encode_chunk(raw, LEVEL)?;
        if sent.insert(hash) && !hand_over(uploads, (hash, stored.into())) {
            return Err(ReadError::Abandoned);
        }
        hashes.push(hash);
        done += pages;
    }
    Ok(hashes)
}
