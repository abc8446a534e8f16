//! Chunks and blocks from the store into memory: each at most once at a time, whoever waits for it.
//!
//! Owns the requests; what they give goes to the `cache`. Every byte is checked: of a chunk its hash, of a block the CRC-32 of its pages.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use replvfs_vfs::types::Pgno;
use tokio::runtime::Handle;

use super::cache::Cache;
use super::line::{Place, Source, SourceId, State};
use crate::format::{Key, SegmentReader, decode_chunk, max_chunk_bytes};
use crate::history::HistoryError;
use crate::history::walk::{read, read_range};
use crate::metrics::{Metrics, ReaderMetrics};
use crate::store::Store;

type Raw = Arc<Vec<u8>>;
/// Its error is told to all who wait.
pub(super) type Flight = Shared<BoxFuture<'static, Result<Raw, FetchError>>>;

/// Why it cannot be had. Cheap to clone.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{problem}")]
pub(super) struct FetchError {
    /// The object is not there: it may have been merged into another one, or be out of the window.
    pub(super) is_missing: bool,
    problem: Arc<str>,
}

impl From<HistoryError> for FetchError {
    fn from(error: HistoryError) -> FetchError {
        FetchError {
            is_missing: matches!(error, HistoryError::Missing { .. }),
            problem: Arc::from(error.to_string()),
        }
    }
}

/// What was asked of the store, and what was not.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Pages that were here.
    pub(super) hits: AtomicU64,
    /// Pages that were not.
    pub(super) misses: AtomicU64,
    /// Chunks and blocks that were fetched.
    pub(super) fetched: AtomicU64,
    /// Raw bytes of those.
    pub(super) fetched_bytes: AtomicU64,
}

/// The chunks and blocks of one replica. Cheap to clone.
#[derive(Clone)]
pub(super) struct Blocks(Arc<Inner>);

struct Inner {
    store: Store,
    runtime: Handle,
    cache: Mutex<Cache>,
    flights: Mutex<HashMap<SourceId, Flight>>,
    counts: Counts,
    metrics: ReaderMetrics,
    /// Bytes of the cache, as they are in the metrics: several caches are told by one number.
    told: Mutex<u64>,
}

impl Inner {
    /// The cache is of another size.
    fn tell(&self) {
        let mut told = lock(&self.told);
        let now = lock(&self.cache).bytes();
        self.metrics.cache_bytes.increment(now as f64 - *told as f64);
        *told = now;
    }
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocks").finish_non_exhaustive()
    }
}

/// Fills a page out of what it is in.
pub(super) fn cut(raw: &[u8], at: usize, page: &mut [u8]) -> Result<(), String> {
    let found = raw.get(at..).and_then(|rest| rest.get(..page.len()));
    page.copy_from_slice(found.ok_or_else(|| "a block is too short for its pages".to_owned())?);
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.metrics.cache_bytes.decrement(*lock(&self.told) as f64);
    }
}

impl Blocks {
    pub(super) fn new(store: Store, runtime: Handle, limit: u64, metrics: &Metrics) -> Blocks {
        Blocks(Arc::new(Inner {
            metrics: metrics.of_reader(store.replica()),
            store,
            runtime,
            cache: Mutex::new(Cache::new(limit)),
            flights: Mutex::default(),
            counts: Counts::default(),
            told: Mutex::default(),
        }))
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// Of the cache.
    pub(super) fn bytes(&self) -> u64 {
        lock(&self.0.cache).bytes()
    }

    pub(super) fn limit(&self) -> u64 {
        lock(&self.0.cache).limit()
    }

    pub(super) fn raise(&self, limit: u64) {
        lock(&self.0.cache).raise(limit);
    }

    /// Fills `page`, a page of `state`, if its bytes are in memory; else what they are in, and where.
    pub(super) fn page(&self, state: &State, number: Pgno, page: &mut [u8]) -> Option<(Source, usize)> {
        match state.place(number) {
            Place::Nowhere => {
                page.fill(0);
                None
            }
            Place::In(source, at) => (!self.read(source.id(), at, page)).then_some((source, at)),
        }
    }

    /// Fills `page` if it is in memory.
    fn read(&self, id: SourceId, at: usize, page: &mut [u8]) -> bool {
        let found = lock(&self.0.cache).read(id, at, page);
        let (counts, metrics) = (&self.0.counts, &self.0.metrics);
        let (count, metric) = match found {
            true => (&counts.hits, &metrics.hits),
            false => (&counts.misses, &metrics.misses),
        };
        count.fetch_add(1, Ordering::Relaxed);
        metric.increment(1);
        found
    }

    /// Whether it is in memory as a whole, or on its way.
    pub(super) fn is_coming(&self, id: &SourceId) -> bool {
        let is_here = lock(&self.0.cache).has(id);
        is_here || lock(&self.0.flights).contains_key(id)
    }

    /// Begins to fetch it, if nobody does. It goes on when nobody waits for it any more, and is in the cache then.
    pub(super) fn fetch(&self, source: Source) -> Flight {
        let id = source.id();
        let mut flights = lock(&self.0.flights);
        if let Some(flight) = flights.get(&id) {
            return flight.clone();
        }
        let (blocks, page_size) = (self.clone(), source.page_size());
        let running = self.0.runtime.spawn(async move {
            let fetched = blocks.load(source).await;
            if let Ok(raw) = &fetched {
                lock(&blocks.0.cache).insert(id, Arc::clone(raw), page_size);
                blocks.0.tell();
                let metrics = &blocks.0.metrics;
                metrics.fetched.increment(1);
                metrics.fetched_bytes.increment(raw.len() as u64);
                blocks.0.counts.fetched.fetch_add(1, Ordering::Relaxed);
                let bytes = raw.len() as u64;
                blocks.0.counts.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            lock(&blocks.0.flights).remove(&id);
            fetched.map_err(FetchError::from)
        });
        let inner = Arc::downgrade(&self.0);
        let flight = async move {
            running.await.unwrap_or_else(|died| {
                // Else nobody would ever begin another one.
                if let Some(inner) = inner.upgrade() {
                    lock(&inner.flights).remove(&id);
                }
                Err(FetchError {
                    is_missing: false,
                    problem: Arc::from(format!("its task died, which is a bug in replvfs: {died}")),
                })
            })
        };
        let flight = flight.boxed().shared();
        flights.insert(id, flight.clone());
        flight
    }

    async fn load(&self, source: Source) -> Result<Raw, HistoryError> {
        let (key, stored) = match &source {
            Source::Chunk(chunk) => {
                let (key, needed_by) = (Key::Chunk(chunk.name), chunk.image);
                let stored = read(&self.0.store, key, max_chunk_bytes(chunk.raw_len)).await?;
                (key, stored.ok_or(HistoryError::Missing { key, needed_by })?)
            }
            Source::Block(index, block, _) => {
                let key = index.key();
                let stored = read_range(&self.0.store, key, index.block_range(*block)).await?;
                (key, stored.ok_or(HistoryError::Missing { key, needed_by: key })?)
            }
        };
        let decoded = tokio::task::spawn_blocking(move || match source {
            Source::Chunk(chunk) => decode_chunk(chunk.name.hash, chunk.raw_len, &stored),
            Source::Block(index, block, _) => SegmentReader::new()?.take_block(&index, block, &stored),
        });
        let decoded = decoded.await.map_err(|died| HistoryError::Task {
            key,
            problem: died.to_string(),
        })?;
        decoded.map(Arc::new).map_err(HistoryError::format(key))
    }
}
