//! An image into the file: its chunks, many at once and in any order. Owns how many; leaves which image to the plan.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};

use super::pages::PageFile;
use super::work::Work;
use super::{Reporter, RestoreError, blocking};
use crate::format::{CHUNK_BYTES, ChunkName, Key, Manifest, decode_chunk, max_chunk_bytes};
use crate::history::HistoryError;
use crate::history::walk::{Task, read};
use crate::store::Store;

/// Chunks that are read and written at the same time. One takes up to two of [`CHUNK_BYTES`] in memory.
const PARALLEL_CHUNKS: usize = 16;

pub(super) async fn write_image(
    store: &Store,
    manifest: &Manifest,
    pages: &PageFile,
    report: &Arc<Reporter>,
) -> Result<(), RestoreError> {
    let (image, page_count) = (Key::Image(manifest.generation, manifest.txid), manifest.page_count);
    let file = pages.clone();
    blocking(image, move || file.set_page_count(page_count)).await?;
    let work = Work::new();
    futures::stream::iter(manifest.chunks.iter().copied().enumerate())
        .map(|(chunk, name)| {
            let one = Chunk {
                key: Key::Chunk(name),
                image,
                name,
                offset: chunk as u64 * CHUNK_BYTES as u64,
                len: manifest.chunk_len(chunk),
            };
            let (store, pages, work, report) = (store.clone(), pages.clone(), work.clone(), Arc::clone(report));
            async move {
                let key = one.key;
                let task = Task(tokio::spawn(one.write(store, pages, work, report)));
                task.await.unwrap_or_else(|error| {
                    let problem = error.to_string();
                    Err(RestoreError::Task { key, problem })
                })
            }
        })
        .buffer_unordered(PARALLEL_CHUNKS)
        .try_collect()
        .await
}

/// A chunk, and where in the file it belongs.
struct Chunk {
    key: Key,
    image: Key,
    name: ChunkName,
    offset: u64,
    len: usize,
}

impl Chunk {
    async fn write(self, store: Store, pages: PageFile, work: Work, report: Arc<Reporter>) -> Result<(), RestoreError> {
        let Chunk { key, len, .. } = self;
        let stored = read(&store, key, max_chunk_bytes(len)).await?;
        let needed_by = self.image;
        let stored = stored.ok_or(HistoryError::Missing { key, needed_by })?;
        let pending = work.begin(move || {
            let raw = decode_chunk(self.name.hash, len, &stored).map_err(RestoreError::format(key))?;
            pages.write_chunk(self.offset, &raw)
        });
        pending.await.done(key).await??;
        report.image(len as u64);
        Ok(())
    }
}
