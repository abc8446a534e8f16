//! An image that is made out of the replica itself, where no writer of the database is there to make one. Owns what it is made of: the newest state of a
//! generation, restored to a file without a place of its own. Safe beside a writer, since an image says what the log before it says.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use replvfs_vfs::types::Txid;

use crate::format::{CHUNK_BYTES, ChunkHash, ChunkName, FormatError, Generation, Key, Manifest, encode_chunk};
use crate::history::images::manifest_at;
use crate::history::{GRACE, History, HistoryError, SURVEYED, Target};
use crate::outside::Moment;
use crate::pipeline::basis;
use crate::pipeline::image::LEVEL;
use crate::restore::{RestoreError, restore_aside};
use crate::store::{Body, Created, Store, StoreError};

const UPLOADS_AT_ONCE: usize = 4;

/// Why no image was made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The newest state cannot be had.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The history cannot be read.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object cannot be made.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The temporary file failed.
    #[error("reading the temporary file of an image failed: {0}")]
    Temporary(#[from] io::Error),
    /// An image of that transaction is there, of another database.
    #[error("{0} is there already, and has other pages: two databases, or two copies of one, have this replica")]
    Other(Key),
    /// The image before it was deleted meanwhile, or it took too long: what it would rely on may be deleted.
    #[error("{0} was deleted meanwhile, or making an image after it took too long: try again")]
    Overtaken(Key),
}

/// The image of the newest state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// The generation that it is in.
    pub generation: Generation,
    /// The last transaction that is in it.
    pub txid: Txid,
    /// Whether it was not there before.
    pub is_new: bool,
    /// Bytes of the database.
    pub bytes: u64,
    /// How many chunks it has.
    pub chunks: usize,
    /// How many of them were sent; the others were there.
    pub sent: usize,
}

/// Makes an image of the newest state in `generation`; without one, in the newest generation that can be restored from. What an image needs beside
/// the state is memory for a few MiB, and room for the database in `folder`.
///
/// # Errors
///
/// See [`ImageError`]. What was sent until then is deleted with what no image names.
pub async fn make(store: &Store, generation: Option<Generation>, folder: &Path) -> Result<Made, ImageError> {
    let history = History::open(store).await?;
    let plan = history.plan(Target::Newest, generation).await?;
    let place = folder.join("image.db");
    let aside = restore_aside(store, &place, &history, &plan, Arc::new(|_| ())).await?;
    // All of its chunks were read just now. The plan's may be broken.
    let before = aside.image().clone();
    let key = Key::Image(plan.generation, before.txid);
    let (restored, position) = (aside.restored().clone(), aside.position());
    let mut made = Made {
        generation: restored.generation,
        txid: restored.txid,
        is_new: false,
        bytes: restored.bytes,
        chunks: before.chunks.len(),
        sent: 0,
    };
    if restored.txid == before.txid {
        return Ok(made);
    }
    let since = Moment::now();
    let sending = Sending {
        store: store.clone(),
        token: getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?,
        known: basis::by_hash(&before.chunks),
    };
    let (chunks, sent) = sending.all(aside.file(), restored.bytes).await?;
    if since.age() > GRACE / 2 {
        return Err(ImageError::Overtaken(key));
    }
    if !store.has(&key).await? {
        return Err(ImageError::Overtaken(key));
    }
    let manifest = Manifest {
        generation: restored.generation,
        txid: restored.txid,
        page_size: restored.page_size,
        page_count: restored.page_count,
        // Not now: its writer may have gone on since, and not have uploaded that yet.
        taken_at: restored.committed_at,
        position,
        chunks,
    };
    (made.chunks, made.sent) = (manifest.chunks.len(), sent);
    made.is_new = store_manifest(store, &manifest).await?;
    if made.is_new && !is_whole(store, &manifest, &key).await? {
        store.delete(&Key::Image(manifest.generation, manifest.txid)).await?;
        return Err(ImageError::Overtaken(key));
    }
    Ok(made)
}

/// Who listed the manifests before this one came has seen the one that it was made after. Where that is gone he may delete what this one names, and is
/// waited for; or it was deleted because of this one, which is all that is left then.
async fn is_whole(store: &Store, manifest: &Manifest, before: &Key) -> Result<bool, StoreError> {
    if store.has(before).await? {
        return Ok(true);
    }
    tokio::time::sleep(SURVEYED * 2).await;
    let names: HashSet<ChunkName> = manifest.chunks.iter().copied().collect();
    for name in names {
        if !store.has(&Key::Chunk(name)).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether it was not there before.
async fn store_manifest(store: &Store, manifest: &Manifest) -> Result<bool, ImageError> {
    let key = Key::Image(manifest.generation, manifest.txid);
    match store.create(&key, Body::Bytes(manifest.encode()?.into())).await? {
        Created::New => Ok(true),
        Created::Exists => {
            let theirs = manifest_at(store, manifest.generation, manifest.txid).await?;
            let same = theirs.is_some_and(|theirs| theirs.has_same_pages(manifest));
            if same { Ok(false) } else { Err(ImageError::Other(key)) }
        }
    }
}

struct Sending {
    store: Store,
    token: u64,
    /// What the image before it names.
    known: HashMap<ChunkHash, ChunkName>,
}

impl Sending {
    /// The names of all chunks of a file, and how many of them had to be sent.
    async fn all(self, file: Arc<File>, len: u64) -> Result<(Vec<ChunkName>, usize), ImageError> {
        let mut known = self.known;
        let mut before = known.len();
        let mut names = Vec::new();
        let starts: Vec<u64> = (0..len).step_by(CHUNK_BYTES).collect();
        for some in starts.chunks(UPLOADS_AT_ONCE) {
            let mut to_send = Vec::new();
            for start in some {
                let part = (len - start).min(CHUNK_BYTES as u64);
                let raw = read_part(&file, *start, part).await?;
                let hash = ChunkHash::of(&raw);
                let token = self.token;
                let name = *known.entry(hash).or_insert(ChunkName { hash, token });
                if known.len() > before {
                    before = known.len();
                    to_send.push((name, raw));
                }
                names.push(name);
            }
            futures::stream::iter(to_send)
                .map(|(name, raw)| send(&self.store, name, raw))
                .buffer_unordered(UPLOADS_AT_ONCE)
                .try_collect::<()>()
                .await?;
        }
        let sent: HashSet<_> = names.iter().filter(|name| name.token == self.token).collect();
        let sent = sent.len();
        Ok((names, sent))
    }
}

/// The token is this call's: what is there under the name can only be an attempt of its own.
async fn send(store: &Store, name: ChunkName, raw: Vec<u8>) -> Result<(), ImageError> {
    let (_, stored) = blocking(move || Ok(encode_chunk(&raw, LEVEL))).await??;
    store.create(&Key::Chunk(name), Body::Bytes(stored.into())).await?;
    Ok(())
}

async fn read_part(file: &Arc<File>, at: u64, len: u64) -> io::Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let file = Arc::clone(file);
    blocking(move || {
        let mut raw = vec![0; usize::try_from(len).unwrap_or(CHUNK_BYTES)];
        let mut file = &*file;
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut raw)?;
        Ok(raw)
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use replvfs_vfs::types::{PageSize, Position, UnixMillis};

    use super::*;
    use crate::store::StoreOptions;

    /// It may have been deleted because the new one is there, or by somebody who deletes what the new one names.
    #[tokio::test(start_paused = true)]
    async fn an_image_counts_after_the_one_before_it_is_gone_only_if_it_is_whole() {
        let store = Store::open("memory://image-whole", &StoreOptions::default()).unwrap();
        let name = ChunkName {
            hash: ChunkHash::of(b"a page"),
            token: 1,
        };
        let manifest = Manifest {
            generation: Generation(1),
            txid: Txid(2),
            page_size: PageSize::new(512).unwrap(),
            page_count: 1,
            taken_at: UnixMillis(0),
            position: Position::NONE,
            chunks: vec![name],
        };
        let (before, chunk) = (Key::Image(Generation(1), Txid(1)), Key::Chunk(name));
        let create = async |key| {
            let body = Body::Bytes(bytes::Bytes::from_static(b"-"));
            store.create(key, body).await.unwrap();
        };
        create(&chunk).await;
        assert!(is_whole(&store, &manifest, &before).await.unwrap());
        let deleted_later = async {
            tokio::time::sleep(SURVEYED).await;
            store.delete(&chunk).await.unwrap();
        };
        let (whole, ()) = tokio::join!(is_whole(&store, &manifest, &before), deleted_later);
        assert!(!whole.unwrap());
        create(&before).await;
        assert!(
            is_whole(&store, &manifest, &before).await.unwrap(),
            "it was looked at all the same"
        );
    }
}
