//! From a snapshot to an image in the store: the chunks that are not there yet, then the manifest that names them all.
//!
//! Runs beside the uploads of segments. Owns the bound on what is read ahead of the store: when the store does not answer, the
//! reading stalls. Leaves to [`images`](super::images) when an image is due, to [`basis`] what it is made after, and to the task what it is good for.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use replvfs_vfs::log::Base;
use replvfs_vfs::snapshot::{Snapshot, SnapshotError};
use replvfs_vfs::types::{PageSize, Pgno, Position, Txid, UnixMillis};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::JoinError;

use super::Stopped;
use super::basis::{self, Basis, Wanted};
use super::images::{Sent, Ticket};
use super::replay::{Replay, ReplayError};
use super::status::Source;
use super::uploader::{Owner, Uploader};
use crate::format::{CHUNK_BYTES, ChunkHash, ChunkName, FormatError, Key, Manifest, encode_chunk};
use crate::history::walk::Task;
use crate::outside;
use crate::store::Body;

/// Encoded chunks between the reader and the uploads, each about [`CHUNK_BYTES`] at most.
const READ_AHEAD: usize = 12;
const UPLOADS_AT_ONCE: usize = 4;
/// Questions without content.
const LOOKS_AT_ONCE: usize = 16;
/// zstd's: an image is made once and read in an emergency, but making it holds a lock on the database.
pub(crate) const LEVEL: i32 = 1;

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// The manifest is in the store.
    Stored(Counts),
    /// The snapshot could not be read to its end; whoever has it for a reason of its own has asked for another base.
    GivenUp,
    /// It will not come to its end, for another reason.
    Failed,
}

/// How many chunks an image has, how many of them were read for it, and how many were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) chunks: usize,
    pub(super) read: usize,
    pub(super) sent: usize,
}

/// A state of the database, to make an image of.
#[derive(Debug)]
pub(super) struct State {
    pub(super) txid: Txid,
    pub(super) position: Position,
    pub(super) taken_at: UnixMillis,
    pub(super) page_size: PageSize,
    pub(super) page_count: u32,
    pub(super) pages: Pages,
}

/// Where its pages are read.
#[derive(Debug)]
pub(super) enum Pages {
    Snapshot(Snapshot),
    /// In the image before it and the log, by way of a file in that folder.
    Replica(PathBuf),
}

impl State {
    pub(super) fn source(&self) -> Source {
        match self.pages {
            Pages::Snapshot(_) => Source::Database,
            Pages::Replica(_) => Source::Replica,
        }
    }
}

impl From<Base> for State {
    fn from(base: Base) -> State {
        State {
            txid: base.txid,
            position: base.position,
            taken_at: base.taken_at,
            page_size: base.snapshot.page_size(),
            page_count: base.snapshot.page_count(),
            pages: Pages::Snapshot(base.snapshot),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("chunk {0} was changed, though nothing that was logged did it")]
    Unlike(usize),
    #[error("nobody uploads what is read")]
    Abandoned,
}

type Chunk = (ChunkHash, Bytes);

/// Makes the image of a state.
pub(super) async fn make(uploader: &Uploader, state: State, ticket: &Ticket) -> Result<Made, Stopped> {
    let shared = uploader.shared();
    let State {
        txid,
        position,
        taken_at,
        page_size,
        page_count,
        ..
    } = state;
    let wanted = Wanted {
        generation: ticket.generation,
        parent: ticket.parent,
        txid,
        page_count,
    };
    let basis = find_basis(uploader, wanted, ticket).await?;
    let key = basis.key.filter(|_| !basis.names.is_empty());
    let passed_over = basis.passed_over;
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    let reader = read(uploader, state, basis, ticket, sender);
    let uploads = stream::unfold(receiver, |mut receiver: mpsc::Receiver<Chunk>| async move {
        let chunk = receiver.recv().await?;
        Some((chunk, receiver))
    });
    uploads
        .map(|(hash, stored)| upload(uploader, &ticket.sent, hash, stored))
        .buffer_unordered(UPLOADS_AT_ONCE)
        .try_collect::<()>()
        .await?;
    let (chunks, counts) = match outcome(uploader, reader.await)? {
        Ok(read) => read,
        Err(made) => return Ok(made),
    };
    if let Some(key) = key
        && !is_there(uploader, key).await?
    {
        tracing::debug!(database = %shared.database, "{key} was deleted while an image was made after it; another will be made");
        return Ok(Made::Failed);
    }
    let manifest = Manifest {
        generation: ticket.generation,
        txid,
        page_size,
        page_count,
        taken_at,
        position,
        chunks,
    };
    let gone = match store_manifest(uploader, &manifest).await? {
        None => {
            let gone = what_is_gone(uploader, &manifest, key, ticket).await?;
            match gone {
                // What was sent for one that was given up may be lost as well.
                None if passed_over => missing_chunk(uploader, &manifest).await?,
                gone => gone,
            }
        }
        // By a making of which only this is known.
        Some(theirs) => missing_chunk(uploader, &theirs).await?,
    };
    match gone {
        None => Ok(Made::Stored(counts)),
        Some(gone) => {
            ticket.sent.lose();
            withdraw(uploader, Key::Image(ticket.generation, txid), gone).await
        }
    }
}

type Read = (Vec<ChunkName>, Counts);

/// What came of the reading: all names, or what there is instead of an image.
fn outcome(
    uploader: &Uploader,
    read: Result<Result<Read, ReadError>, JoinError>,
) -> Result<Result<Read, Made>, Stopped> {
    let shared = uploader.shared();
    match read {
        Ok(Ok(read)) => Ok(Ok(read)),
        Ok(Err(ReadError::Snapshot(SnapshotError::GivenUp(reason)))) => {
            tracing::debug!(database = %shared.database, reason, "an image was given up; another will be made");
            Ok(Err(Made::GivenUp))
        }
        Ok(Err(error @ ReadError::Unlike(_))) => {
            shared.fail(&format!("{error}, which is a bug in replvfs"));
            Err(Stopped)
        }
        Ok(Err(error)) => {
            shared.trouble(&format!("making an image of {}: {error}", shared.database));
            Ok(Err(Made::Failed))
        }
        Err(stopped) => {
            shared.fail(&format!(
                "an image could not be made, which is a bug in replvfs: {stopped}"
            ));
            Err(Stopped)
        }
    }
}

/// A chunk that is not there any more. Whoever lists manifests from now on sees the image; who did before has seen the basis. Where that is gone, or
/// the making has taken so long that its own chunks may have been deleted, all are looked for as soon as nobody deletes who listed before. That the basis
/// is gone tells nothing: it may have been deleted because of this image, and then nothing but this image is left.
async fn what_is_gone(
    uploader: &Uploader,
    manifest: &Manifest,
    basis: Option<Key>,
    ticket: &Ticket,
) -> Result<Option<Key>, Stopped> {
    let mut is_certain = true;
    if let Some(basis) = basis {
        if basis == Key::Image(manifest.generation, manifest.txid) {
            // Of the same state: that something is there by that name tells nothing.
            return missing_chunk(uploader, manifest).await;
        }
        is_certain = is_there(uploader, basis).await?;
    }
    if is_certain && ticket.sent.age() < ticket.rule.slow {
        return Ok(None);
    }
    tokio::time::sleep(ticket.rule.settle).await;
    missing_chunk(uploader, manifest).await
}

/// A chunk that the manifest names and that is not in the store.
async fn missing_chunk(uploader: &Uploader, manifest: &Manifest) -> Result<Option<Key>, Stopped> {
    let names: HashSet<ChunkName> = manifest.chunks.iter().copied().collect();
    let looks = stream::iter(names).map(|name| async move {
        let key = Key::Chunk(name);
        let there = is_there(uploader, key).await?;
        Ok((!there).then_some(key))
    });
    let looks = looks.buffer_unordered(LOOKS_AT_ONCE);
    looks
        .try_filter_map(|missing| async move { Ok(missing) })
        .boxed()
        .try_next()
        .await
}

/// An image that is not whole must not stay: another one would be made after it. Nobody has deleted anything because of it, however late this is.
async fn withdraw(uploader: &Uploader, key: Key, gone: Key) -> Result<Made, Stopped> {
    let shared = uploader.shared();
    replvfs_vfs::warning!(
        database = shared.database;
        "{gone} was deleted while the image {key} was made, which relies on it; the image is withdrawn, and another will be made"
    );
    uploader.until_answered(|| shared.store.delete(&key)).await?;
    Ok(Made::Failed)
}

type Reader = Pin<Box<dyn Future<Output = Result<Result<Read, ReadError>, JoinError>> + Send>>;

/// Begins to read what is to be read of a state, and to hand over what is to be sent.
fn read(uploader: &Uploader, state: State, mut basis: Basis, ticket: &Ticket, uploads: mpsc::Sender<Chunk>) -> Reader {
    let naming = Naming::new(std::mem::take(&mut basis.names), ticket, uploads);
    match state.pages {
        Pages::Snapshot(snapshot) => {
            let check = ticket.rule.check;
            // The snapshot goes with the reader: its lock is let go as soon as all is read.
            let reading = Reading { basis, check, naming };
            Box::pin(outside::blocking(move || reading.read(snapshot)))
        }
        Pages::Replica(folder) => {
            let replay = Replay {
                uploader: uploader.clone(),
                generation: ticket.generation,
                txid: state.txid,
                position: state.position,
                page_size: state.page_size,
                page_count: state.page_count,
                folder,
                room: ticket.rule.room,
                check: ticket.rule.check,
            };
            Box::pin(Task(tokio::spawn(async move {
                let (names, naming) = replay.read(basis, naming).await?;
                let counts = naming.counts(names.len());
                Ok((names, counts))
            })))
        }
    }
}

/// One that cannot be used is as none: everything is read and sent.
async fn find_basis(uploader: &Uploader, wanted: Wanted, ticket: &Ticket) -> Result<Basis, Stopped> {
    let shared = uploader.shared();
    let find = || basis::find(&shared.store, wanted, ticket.known_from, ticket.touched.clone());
    match uploader.until_told(find).await? {
        Ok(basis) => Ok(basis),
        Err(error) => {
            replvfs_vfs::warning!(database = shared.database; "an image is made of all pages, since the one before it cannot be used: {error}");
            Ok(Basis::default())
        }
    }
}

async fn is_there(uploader: &Uploader, key: Key) -> Result<bool, Stopped> {
    let store = &uploader.shared().store;
    uploader.until_answered(|| store.has(&key)).await
}

/// The one that was there already, if it is not this one.
async fn store_manifest(uploader: &Uploader, manifest: &Manifest) -> Result<Option<Manifest>, Stopped> {
    let shared = uploader.shared();
    let key = Key::Image(manifest.generation, manifest.txid);
    let bytes = match manifest.encode() {
        Ok(bytes) => bytes,
        Err(error) => {
            shared.fail(&format!("{key}: {error}"));
            return Err(Stopped);
        }
    };
    if uploader.create(key, &Body::Bytes(bytes.into())).await? == Owner::Us {
        return Ok(None);
    }
    let theirs = with_same_pages(uploader, key, manifest).await?;
    if theirs.is_none() {
        shared.fail(&format!(
            "{key} in the replica {} is from another writer of the same generation: give each database a replica of its own",
            shared.store.replica()
        ));
        return Err(Stopped);
    }
    Ok(theirs)
}

/// The image in the store, if it is one that was made of the same state at another time: a base may be asked for twice.
async fn with_same_pages(uploader: &Uploader, key: Key, ours: &Manifest) -> Result<Option<Manifest>, Stopped> {
    let store = &uploader.shared().store;
    let limit = Manifest::max_bytes(ours.page_size);
    let bytes = uploader.until_answered(|| store.read_up_to(&key, limit)).await?;
    let theirs = Manifest::decode(&bytes).ok();
    Ok(theirs.filter(|theirs| theirs.has_same_pages(ours)))
}

/// The token is this making's: whatever is there under the name can only be an attempt of its own.
async fn upload(uploader: &Uploader, sent: &Sent, hash: ChunkHash, stored: Bytes) -> Result<(), Stopped> {
    let token = sent.token;
    let key = Key::Chunk(ChunkName { hash, token });
    uploader.create_once(key, &Body::Bytes(stored)).await?;
    sent.add(hash);
    Ok(())
}

/// Gives chunks their names, and hands over those that are not in the store.
#[derive(Debug)]
pub(super) struct Naming {
    /// What the basis names.
    known: HashMap<ChunkHash, ChunkName>,
    sent: Arc<Sent>,
    on_their_way: HashSet<ChunkHash>,
    uploads: mpsc::Sender<Chunk>,
    counts: Counts,
}

impl Naming {
    fn new(known: HashMap<ChunkHash, ChunkName>, ticket: &Ticket, uploads: mpsc::Sender<Chunk>) -> Naming {
        Naming {
            known,
            sent: Arc::clone(&ticket.sent),
            on_their_way: HashSet::new(),
            uploads,
            counts: Counts::default(),
        }
    }

    /// The name of a chunk that may be another one than it was. Blocks while the store is behind.
    pub(super) fn name(&mut self, raw: &[u8]) -> Result<ChunkName, ReadError> {
        self.counts.read += 1;
        let hash = ChunkHash::of(raw);
        if let Some(name) = self.known.get(&hash) {
            return Ok(*name);
        }
        if self.on_their_way.insert(hash) && !self.sent.has(hash) {
            let (_, stored) = encode_chunk(raw, LEVEL)?;
            self.counts.sent += 1;
            if !hand_over(&self.uploads, (hash, stored.into())) {
                return Err(ReadError::Abandoned);
            }
        }
        let token = self.sent.token;
        Ok(ChunkName { hash, token })
    }

    /// A chunk that nothing has touched has the name that it had.
    pub(super) fn compare(chunk: usize, name: ChunkName, raw: &[u8]) -> Result<(), ReadError> {
        match name.hash == ChunkHash::of(raw) {
            true => Ok(()),
            false => Err(ReadError::Unlike(chunk)),
        }
    }

    /// Of an image with so many chunks.
    fn counts(&self, chunks: usize) -> Counts {
        Counts { chunks, ..self.counts }
    }
}

/// Goes through the pages in order, on the blocking pool.
struct Reading {
    basis: Basis,
    check: bool,
    naming: Naming,
}

impl Reading {
    /// The names of all chunks, after those that are not in the store were sent.
    fn read(mut self, mut snapshot: Snapshot) -> Result<Read, ReadError> {
        let page_bytes = snapshot.page_size().as_usize();
        let pages_a_chunk = u32::try_from(CHUNK_BYTES / page_bytes).unwrap_or(1);
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut chunks = Vec::new();
        let mut done = 0;
        while done < snapshot.page_count() {
            let pages = pages_a_chunk.min(snapshot.page_count() - done);
            let Some(first) = Pgno::new(done + 1) else {
                return Err(ReadError::Abandoned);
            };
            done += pages;
            let untouched = self.basis.untouched(chunks.len());
            if let Some(name) = untouched.filter(|_| !self.check) {
                chunks.push(name);
                continue;
            }
            let raw = &mut buffer[..pages as usize * page_bytes];
            snapshot.read_pages(first, raw)?;
            if let Some(name) = untouched {
                Naming::compare(chunks.len(), name, raw)?;
                chunks.push(name);
                continue;
            }
            chunks.push(self.naming.name(raw)?);
        }
        let counts = self.naming.counts(chunks.len());
        Ok((chunks, counts))
    }
}

/// Waits where there is no room. `false` when nobody takes chunks any more.
fn hand_over(uploads: &mpsc::Sender<Chunk>, chunk: Chunk) -> bool {
    match uploads.try_send(chunk) {
        Ok(()) => true,
        Err(TrySendError::Full(chunk)) => uploads.blocking_send(chunk).is_ok(),
        Err(TrySendError::Closed(_)) => false,
    }
}
