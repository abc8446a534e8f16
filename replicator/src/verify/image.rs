//! Images: their manifests, and each chunk once, whoever names it. Owns which images are in the window.

use std::sync::Arc;

use futures::StreamExt;
use replvfs_vfs::types::{PageSize, Txid, UnixMillis};

use super::{Counted, LISTED, Looked, Run, said, said_by_restore, store_only};
use crate::format::{ChunkName, Generation, Key, Manifest, decode_chunk, max_chunk_bytes};
use crate::history::HistoryError;
use crate::history::walk::{Task, read};
use crate::restore::{RestoreError, Work};
use crate::store::Store;

/// Chunks that are read at the same time.
const PARALLEL_CHUNKS: usize = 16;

/// A chunk that an image names.
#[derive(Clone, Copy)]
struct Named {
    image: Key,
    name: ChunkName,
    len: usize,
    /// The page size that the database's header must have, if that is in it.
    header: Option<PageSize>,
}

impl Run {
    /// The first image that restores to `since` need, and whether older generations are not needed.
    pub(super) async fn begin_of(
        &self,
        number: Generation,
        images: &[Txid],
        since: Option<UnixMillis>,
    ) -> Result<Option<(usize, bool)>, HistoryError> {
        let Some(since) = since else {
            return Ok(None);
        };
        for (at, txid) in images.iter().enumerate().rev() {
            let manifest = store_only(manifest(&self.store, Key::Image(number, *txid), None).await)?;
            if manifest.flatten().is_some_and(|manifest| manifest.taken_at <= since) {
                let first = store_only(manifest_of_first(&self.store, number, images).await)?;
                let ends = first.flatten().is_some_and(|first| first.taken_at <= since);
                return Ok(Some((at, ends)));
            }
        }
        Ok(None)
    }

    /// Looks at the images in the window; of the others only what they name is noted.
    pub(super) async fn images(&mut self, found: &Looked, wanted: bool) -> Result<(), HistoryError> {
        for (at, txid) in found.images.iter().enumerate() {
            let key = Key::Image(found.number, *txid);
            let wanted = wanted && at >= found.begin;
            let manifest = match manifest(&self.store, key, found.page_size).await {
                Ok(Some(manifest)) => manifest,
                Ok(None) if !wanted => continue,
                Ok(None) => {
                    self.find(key, LISTED, found.lost_image(*txid));
                    continue;
                }
                Err(error) => {
                    let (object, problem) = said(error)?;
                    if wanted {
                        self.find(object.unwrap_or(key), problem, found.lost_image(*txid));
                    }
                    continue;
                }
            };
            if !wanted {
                let names = manifest.chunks.iter().enumerate();
                self.known
                    .extend(names.map(|(chunk, name)| (*name, manifest.chunk_len(chunk) as u32)));
                continue;
            }
            self.counted.add(0);
            self.chunks(key, &manifest, &found.lost_image(*txid)).await?;
        }
        Ok(())
    }

    async fn chunks(&mut self, image: Key, manifest: &Manifest, lost: &str) -> Result<(), HistoryError> {
        let mut missed: Vec<ChunkName> = Vec::new();
        let mut unread: Vec<Named> = Vec::new();
        for (chunk, name) in manifest.chunks.iter().enumerate() {
            let len = manifest.chunk_len(chunk);
            let header = (chunk == 0).then_some(manifest.page_size);
            // The lengths of chunks are at most CHUNK_BYTES.
            if self.known.insert((*name, len as u32)) {
                unread.push(Named {
                    image,
                    name: *name,
                    len,
                    header,
                });
            } else if self.damaged.contains_key(name) {
                missed.push(*name);
            }
        }
        let work = Work::new();
        let (store, counted) = (self.store.clone(), Arc::clone(&self.counted));
        let checks = futures::stream::iter(unread).map(|named| {
            let (store, work, counted) = (store.clone(), work.clone(), Arc::clone(&counted));
            async move {
                let key = Key::Chunk(named.name);
                let task = Task(tokio::spawn(check_chunk(store, work, counted, named)));
                let checked = task.await.unwrap_or_else(|error| {
                    let problem = error.to_string();
                    Err(RestoreError::Task { key, problem })
                });
                (named, checked)
            }
        });
        let mut checks = checks.buffered(PARALLEL_CHUNKS);
        while let Some((named, checked)) = checks.next().await {
            match checked {
                Ok(None) => {}
                Ok(Some(problem)) => self.find(image, problem, lost),
                Err(error) => {
                    let (_, problem) = said_by_restore(error)?;
                    self.damaged.insert(named.name, problem);
                    missed.push(named.name);
                }
            }
        }
        for name in missed {
            let problem = self.damaged.get(&name).cloned().unwrap_or_default();
            self.find(Key::Chunk(name), problem, lost);
        }
        Ok(())
    }
}

/// What is wrong with the image although the chunk is whole.
async fn check_chunk(
    store: Store,
    work: Work,
    counted: Arc<Counted>,
    named: Named,
) -> Result<Option<String>, RestoreError> {
    let Named {
        image,
        name,
        len,
        header,
    } = named;
    let key = Key::Chunk(name);
    let stored = read(&store, key, max_chunk_bytes(len)).await?;
    let needed_by = image;
    let stored = stored.ok_or(HistoryError::Missing { key, needed_by })?;
    counted.add(stored.len() as u64);
    let pending = work.begin(move || {
        let raw = decode_chunk(name.hash, len, &stored).map_err(RestoreError::format(key))?;
        Ok(header.and_then(|expected| wrong_page_size(&raw, expected)))
    });
    pending.await.done(key).await?
}

/// What is wrong with the first page of a database.
pub(super) fn wrong_page_size(page: &[u8], expected: PageSize) -> Option<String> {
    let field = page.get(16..18).and_then(|field| field.try_into().ok());
    let found = field.map(u16::from_be_bytes).and_then(PageSize::from_header_field);
    (found != Some(expected)).then(|| format!("the database's header does not say that its page size is {expected}"))
}

async fn manifest_of_first(
    store: &Store,
    number: Generation,
    images: &[Txid],
) -> Result<Option<Manifest>, HistoryError> {
    match images.first() {
        Some(txid) => manifest(store, Key::Image(number, *txid), None).await,
        None => Ok(None),
    }
}

/// `None` when there is none.
async fn manifest(store: &Store, key: Key, page_size: Option<u32>) -> Result<Option<Manifest>, HistoryError> {
    let smallest = PageSize::new(512);
    let longest = page_size
        .and_then(PageSize::new)
        .or(smallest)
        .map_or(0, Manifest::max_bytes);
    let Some(bytes) = read(store, key, longest).await? else {
        return Ok(None);
    };
    let manifest = Manifest::decode(&bytes).map_err(HistoryError::format(key))?;
    let says = Key::Image(manifest.generation, manifest.txid);
    if says != key {
        let found = says.path();
        return Err(HistoryError::Misplaced { key, found });
    }
    if page_size.is_some_and(|expected| expected != manifest.page_size.get()) {
        let found = format!("an image with pages of {} bytes", manifest.page_size);
        return Err(HistoryError::Misplaced { key, found });
    }
    Ok(Some(manifest))
}
