//! An image that is made out of the replica, where no state of the database can be read beside its writers: what the image before it has of the chunks
//! that were touched since, and what the log in the store says of them.
//!
//! Owns that nothing of the database is read for it, and what of the store is in memory at a time. Leaves to [`basis`](super::basis) which chunks
//! those are, to [`scratch`] what becomes of them. Every request is repeated until the store answers.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use replvfs_vfs::types::{PageSize, Position, Txid};

use super::Stopped;
use super::basis::Basis;
use super::image::{Naming, ReadError};
use super::scratch::{self, Roles, Writing};
use super::uploader::{Backoff, Uploader};
use crate::format::{
    CHUNK_BYTES, ChunkName, Generation, Key, Manifest, ObjectHash, SegmentIndex, decode_chunk, max_chunk_bytes,
};
use crate::history::walk::{Fetch, Walk, fetch_end, read, read_range};
use crate::history::{HistoryError, believed};
use crate::outside;
use crate::store::Store;

/// Chunks that are read at the same time. One takes up to two of [`CHUNK_BYTES`] in memory.
const LOADS_AT_ONCE: usize = 4;
/// Pieces of the log up to this length are read whole, and some ahead; of larger ones so many bytes at a time.
const WHOLE_BYTES: u64 = 1 << 20;
const RANGE_BYTES: u64 = 4 << 20;
const AHEAD: usize = 3;

/// Why no image can be made of what is in the replica.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplayError {
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error("the temporary file for its chunks failed: {0}")]
    File(#[from] io::Error),
    #[error("the disk of the database has no room for any part of it")]
    NoRoom,
    #[error("its generation has no image any more that it could be made after")]
    NoBasis,
    #[error("{0} does not follow from what is before it in the log")]
    Chain(Key),
    #[error("the log in the replica leads to another state than the one that was logged")]
    Elsewhere,
    #[error("transaction {txid} wrote to chunk {chunk}, and that was not noted, which is a bug in replvfs")]
    Unnoted { txid: Txid, chunk: usize },
    #[error("{0}, which is a bug in replvfs")]
    Died(#[from] tokio::task::JoinError),
    #[error("replication of the database has ended")]
    Ended,
}

impl From<Stopped> for ReplayError {
    fn from(_: Stopped) -> ReplayError {
        ReplayError::Ended
    }
}

/// The state after a transaction whose segment is in the store.
#[derive(Debug, Clone)]
pub(super) struct Replay {
    pub(super) uploader: Uploader,
    pub(super) generation: Generation,
    pub(super) txid: Txid,
    pub(super) position: Position,
    pub(super) page_size: PageSize,
    pub(super) page_count: u32,
    /// For the temporary file.
    pub(super) folder: PathBuf,
    /// Bytes that this may have.
    pub(super) room: u64,
    /// Reads what is believed to be unchanged all the same.
    pub(super) check: bool,
}

/// The names of all chunks, and what it took.
type Named = (Vec<Option<ChunkName>>, Naming);

impl Replay {
    /// The names of all chunks, after those that are not in the store were handed over.
    pub(super) async fn read(self, basis: Basis, mut naming: Naming) -> Result<(Vec<ChunkName>, Naming), ReadError> {
        let count = self.len().div_ceil(CHUNK_BYTES as u64) as usize; // at most 2^32 pages of 2^16 bytes
        let mut names: Vec<_> = (0..count).map(|chunk| basis.untouched(chunk)).collect();
        let before = basis.manifest.ok_or(ReplayError::NoBasis)?;
        let same: Vec<bool> = names.iter().map(Option::is_some).collect();
        let chunks: Vec<usize> = (0..count).filter(|chunk| self.check || !same[*chunk]).collect();
        let mut left = &chunks[..];
        while !left.is_empty() {
            let (folder, database, room) = (self.folder.clone(), self.len(), self.room);
            let (file, at_once) = blocking(move || scratch::create(&folder, database, room)).await?;
            let part;
            (part, left) = left.split_at(at_once.min(left.len()));
            let file = Arc::new(file);
            self.fill(&before, &file, &same, part).await?;
            let (part, sizes) = (part.to_vec(), (self.page_size, self.len()));
            let read = outside::blocking(move || name_part(&file, &part, sizes, (names, naming)));
            (names, naming) = read.await.map_err(ReplayError::from)??;
        }
        Ok((names.into_iter().flatten().collect(), naming))
    }

    fn len(&self) -> u64 {
        u64::from(self.page_count) * u64::from(self.page_size.get())
    }

    /// The chunks of a part, as they are in this state, into the file.
    async fn fill(
        &self,
        before: &Manifest,
        file: &Arc<File>,
        same: &[bool],
        part: &[usize],
    ) -> Result<(), ReplayError> {
        let roles = Roles::new(same, part);
        let there = part.iter().copied().filter(|chunk| *chunk < before.chunks.len());
        stream::iter(there)
            .map(|chunk| self.load(before, file, chunk))
            .buffer_unordered(LOADS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        let writing = Writing::new(Arc::clone(file), before, roles, self.txid)?;
        let writing = self.follow(writing).await?;
        let (position, page_count) = (self.position, self.page_count);
        blocking(move || writing.finish(position, page_count)).await
    }

    async fn load(&self, before: &Manifest, file: &Arc<File>, chunk: usize) -> Result<(), ReplayError> {
        let (name, len) = (before.chunks[chunk], before.chunk_len(chunk));
        let (key, store) = (Key::Chunk(name), &self.uploader.shared().store);
        let needed_by = Key::Image(before.generation, before.txid);
        let read = || read(store, key, max_chunk_bytes(len));
        let stored = self.uploader.until_told(read).await??;
        let stored = stored.ok_or(HistoryError::Missing { key, needed_by })?;
        let file = Arc::clone(file);
        blocking(move || {
            let raw = decode_chunk(name.hash, len, &stored).map_err(HistoryError::format(key))?;
            Ok(scratch::write_chunk(&file, chunk, &raw)?)
        })
        .await
    }

    /// Goes through the log, up to the state. Where the store does not answer it goes on from there later.
    async fn follow(&self, mut writing: Writing) -> Result<Writing, ReplayError> {
        let shared = self.uploader.shared();
        let (store, generation, last) = (&shared.store, self.generation, self.txid);
        let mut backoff = Backoff::new();
        while writing.next() <= last {
            let next = writing.next();
            let find = || believed::listed_path(store, generation, next);
            let path = self.uploader.until_told(find).await??;
            let mut at = path.start.unwrap_or(writing.next());
            let mut walk = Walk::new(store, generation, path, last, AHEAD, fetch);
            while writing.next() <= last {
                let (key, piece) = match walk.piece(at).await {
                    Ok(Some(piece)) => piece,
                    Ok(None) => {
                        let (key, needed_by) = (Key::Log(generation, at), Key::Log(generation, last));
                        return Err(HistoryError::Missing { key, needed_by }.into());
                    }
                    Err(HistoryError::Store(error)) => {
                        shared.trouble(&error.to_string());
                        backoff.pause(shared).await?;
                        break;
                    }
                    Err(error) => return Err(error.into()),
                };
                at = piece.index.header().last.next();
                writing = self.piece(key, piece, writing).await?;
            }
        }
        Ok(writing)
    }

    async fn piece(&self, key: Key, piece: Piece, mut writing: Writing) -> Result<Writing, ReplayError> {
        let store = &self.uploader.shared().store;
        let Piece { index, object, hash } = piece;
        writing.begin(key, &index, hash)?;
        for blocks in runs(&index, &writing.blocks(&index)) {
            let range = index.block_range(blocks.start).start..index.block_range(blocks.end - 1).end;
            let stored = match &object {
                // Its index was checked against it.
                Some(object) => object.slice(range.start as usize..range.end as usize),
                None => {
                    let read = || read_range(store, key, range.clone());
                    let stored = self.uploader.until_told(read).await??;
                    stored.ok_or(HistoryError::Missing { key, needed_by: key })?
                }
            };
            let index = Arc::clone(&index);
            writing = blocking(move || {
                writing.write(key, &index, blocks, &stored)?;
                Ok(writing)
            })
            .await?;
        }
        blocking(move || {
            writing.end(key, &index)?;
            Ok(writing)
        })
        .await
    }
}

/// A segment or a span.
struct Piece {
    index: Arc<SegmentIndex>,
    /// All of it, and what its successor names, where it is small.
    object: Option<Bytes>,
    hash: Option<ObjectHash>,
}

fn fetch(store: Store, key: Key, len: u64) -> Fetch<Piece> {
    Box::pin(async move {
        if len > WHOLE_BYTES {
            let end = fetch_end(store, key, len).await?;
            return Ok(end.map(|end| Piece {
                index: Arc::new(end.index),
                object: None,
                hash: None,
            }));
        }
        let Some(object) = read(&store, key, len).await? else {
            return Ok(None);
        };
        let index = SegmentIndex::from_object(&object).map_err(HistoryError::format(key))?;
        Ok(Some(Piece {
            index: Arc::new(index),
            hash: Some(ObjectHash::of(&object)),
            object: Some(object),
        }))
    })
}

/// Blocks that are beside each other, in requests of several.
fn runs(index: &SegmentIndex, blocks: &[usize]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for block in blocks {
        let end = index.block_range(*block).end;
        match runs.last_mut() {
            Some(run) if run.end == *block && end - index.block_range(run.start).start <= RANGE_BYTES => {
                run.end += 1;
            }
            _ => runs.push(*block..*block + 1),
        }
    }
    runs
}

/// Names the chunks of a part. Those that were believed to be unchanged must have the names that they had.
fn name_part(
    file: &File,
    part: &[usize],
    (page_size, len): (PageSize, u64),
    (mut names, mut naming): Named,
) -> Result<Named, ReadError> {
    let mut buffer = vec![0; CHUNK_BYTES];
    for chunk in part {
        let start = *chunk as u64 * CHUNK_BYTES as u64;
        let bytes = usize::try_from(len - start).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
        let raw = &mut buffer[..bytes];
        scratch::read_chunk(file, *chunk, raw).map_err(ReplayError::from)?;
        if *chunk == 0 && PageSize::from_header_field(u16::from_be_bytes([raw[16], raw[17]])) != Some(page_size) {
            return Err(ReplayError::Elsewhere.into());
        }
        match names[*chunk] {
            Some(name) => Naming::compare(*chunk, name, raw)?,
            None => names[*chunk] = Some(naming.name(raw)?),
        }
    }
    Ok((names, naming))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ReplayError> + Send + 'static,
) -> Result<T, ReplayError> {
    outside::blocking(work).await?
}
