//! From a replica back to a database file. Owns the order of things: plan, image, log, check, into place. Any damage ends
//! it with an error that names the object, and without a file. Leaves finding the way to [`history`](crate::history).

mod error;
mod forward;
mod log;
mod pages;
mod state;
mod target;

#[cfg(test)]
pub(crate) mod tests;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt, TryStreamExt};
use replvfs_vfs::types::{PageSize, Position, Txid, UnixMillis};

pub use error::RestoreError;
pub(crate) use forward::put_over;

use crate::format::{CHUNK_BYTES, ChunkName, Generation, Key, LocalState, Manifest, decode_chunk, max_chunk_bytes};
use crate::history::{History, HistoryError, Plan, Target};
use crate::outside;
use crate::store::Store;
use pages::{Applier, PageFile};
use target::TargetFile;

/// Chunks that are read at the same time.
const PARALLEL_CHUNKS: usize = 8;

/// What to restore, and how.
#[derive(Clone, Default)]
pub struct RestoreOptions {
    /// Which state.
    pub target: Target,
    /// In which generation; by default the newest one that has it.
    pub generation: Option<Generation>,
    /// Replaces what is at the path, and removes the `-wal`, `-journal` and `-shm` beside it. Nobody may have that
    /// database open.
    pub force: bool,
    /// Leaves beside the file what lets it go on with the replica's history, when it is opened for writing with the same replica. A state that
    /// was not the newest one becomes a new generation then.
    pub resumable: bool,
    /// Is told how far the restore is, often, and from several threads.
    pub progress: Option<ProgressFn>,
}

/// Is called with how far a restore is.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

impl std::fmt::Debug for RestoreOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestoreOptions")
            .field("target", &self.target)
            .field("generation", &self.generation)
            .field("force", &self.force)
            .field("resumable", &self.resumable)
            .finish_non_exhaustive()
    }
}

/// How far a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Bytes of the image that are in the file.
    pub image_bytes: u64,
    /// Bytes of the image.
    pub image_len: u64,
    /// The last transaction that is in the file.
    pub txid: Txid,
    /// The last transaction that will be, if that is known.
    pub last: Option<Txid>,
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The generation that it came from.
    pub generation: Generation,
    /// The last transaction that is in it.
    pub txid: Txid,
    /// When that committed; when the image was taken, if no transaction after the image is in it.
    pub committed_at: UnixMillis,
    /// Bytes a page.
    pub page_size: PageSize,
    /// Pages.
    pub page_count: u32,
    /// Length of the file.
    pub bytes: u64,
    /// What a user should know.
    pub warnings: Vec<String>,
}

/// Restores a state of the database in `store` to a new file at `out`.
///
/// The file appears when it is whole, or not at all.
///
/// # Errors
///
/// See [`RestoreError`]. A file that is there, or a `-wal`, `-journal` or `-shm` beside it, is one, unless
/// [`RestoreOptions::force`] is given.
pub async fn restore(store: &Store, out: &Path, options: &RestoreOptions) -> Result<Restored, RestoreError> {
    let (place, force) = (out.to_owned(), options.force);
    let target = blocking(Key::Replica, move || TargetFile::create(&place, force)).await?;
    let history = History::open(store).await?;
    let plan = history.plan(options.target, options.generation).await?;
    let Aside {
        target,
        state,
        restored,
    } = fill(store, &history, &plan, target, options.progress.clone()).await?;
    let resumable = options.resumable;
    blocking(Key::Image(plan.generation, plan.manifest.txid), move || {
        if resumable {
            state::leave(state, target)
        } else {
            target.put_in_place().map(drop)
        }
    })
    .await?;
    Ok(restored)
}

/// A state of a database that is whole, and not in its place yet.
#[derive(Debug)]
pub(crate) struct Aside {
    target: TargetFile,
    state: LocalState,
    restored: Restored,
}

impl Aside {
    /// What it is.
    pub(crate) fn restored(&self) -> &Restored {
        &self.restored
    }

    /// Its last transaction's place in the WAL.
    pub(crate) fn position(&self) -> Position {
        self.state.stored.position
    }

    /// The database.
    pub(crate) fn file(&self) -> Arc<File> {
        self.target.file()
    }
}

/// Restores to a file beside `place`, where a database may be and be in use.
pub(crate) async fn restore_aside(
    store: &Store,
    place: &Path,
    history: &History,
    plan: &Plan,
    progress: ProgressFn,
) -> Result<Aside, RestoreError> {
    let place = place.to_owned();
    let target = blocking(Key::Replica, move || TargetFile::aside(&place)).await?;
    fill(store, history, plan, target, Some(progress)).await
}

async fn fill(
    store: &Store,
    history: &History,
    plan: &Plan,
    target: TargetFile,
    progress: Option<ProgressFn>,
) -> Result<Aside, RestoreError> {
    let manifest = &plan.manifest;
    let image = Key::Image(plan.generation, manifest.txid);
    let pages = PageFile {
        file: target.file(),
        path: target.path().to_owned(),
        page_size: manifest.page_size,
    };
    let report = Reporter::new(progress, plan);
    write_image(store, manifest, &pages, &report).await?;
    let applier = Applier::new(pages.clone(), manifest.page_count, (manifest.txid, manifest.taken_at))
        .map_err(RestoreError::format(image))?;
    let (Applier { page_count, last, .. }, tail) = log::apply_log(store, plan, applier, &report).await?;
    if page_count > 0 {
        blocking(image, move || check_header(&pages, image)).await?;
    }
    let page_size = manifest.page_size;
    Ok(Aside {
        target,
        state: state::after(store, history.meta().database_id, plan, last.0, &tail),
        restored: Restored {
            generation: plan.generation,
            txid: last.0,
            committed_at: last.1,
            page_size,
            page_count,
            bytes: u64::from(page_count) * u64::from(page_size.get()),
            warnings: plan.warnings.clone(),
        },
    })
}

async fn write_image(
    store: &Store,
    manifest: &Manifest,
    pages: &PageFile,
    report: &Reporter,
) -> Result<(), RestoreError> {
    let (image, page_count) = (Key::Image(manifest.generation, manifest.txid), manifest.page_count);
    let file = pages.clone();
    blocking(image, move || file.set_page_count(page_count)).await?;
    futures::stream::iter(manifest.chunks.iter().copied().enumerate())
        .map(|(chunk, name)| async move {
            let len = manifest.chunk_len(chunk);
            write_chunk(
                store,
                image,
                name,
                chunk as u64 * CHUNK_BYTES as u64,
                len,
                pages.clone(),
            )
            .await?;
            report.image(len as u64);
            Ok(())
        })
        .buffer_unordered(PARALLEL_CHUNKS)
        .try_collect()
        .await
}

async fn write_chunk(
    store: &Store,
    image: Key,
    name: ChunkName,
    offset: u64,
    len: usize,
    pages: PageFile,
) -> Result<(), RestoreError> {
    let key = Key::Chunk(name);
    let stored = crate::history::walk::read(store, key, max_chunk_bytes(len)).await?;
    let stored = stored.ok_or(HistoryError::Missing { key, needed_by: image })?;
    blocking(key, move || {
        let raw = decode_chunk(name.hash, len, &stored).map_err(RestoreError::format(key))?;
        pages.write_chunk(offset, &raw)
    })
    .await
}

/// The file must be the database that the replica is of: at least its page size tells.
fn check_header(pages: &PageFile, key: Key) -> Result<(), RestoreError> {
    let field = pages.header_page_size()?;
    if PageSize::from_header_field(field) == Some(pages.page_size) {
        return Ok(());
    }
    let found = if field == 1 { 65_536 } else { u32::from(field) };
    Err(RestoreError::PageSize {
        key,
        found,
        expected: pages.page_size,
    })
}

/// Runs what blocks on a thread for that.
async fn blocking<T: Send + 'static>(
    key: Key,
    work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
) -> Result<T, RestoreError> {
    match outside::blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(RestoreError::Task {
            key,
            problem: error.to_string(),
        }),
    }
}

/// Tells the caller how far it is.
struct Reporter {
    progress: Option<ProgressFn>,
    image_bytes: AtomicU64,
    image_len: u64,
    txid: AtomicU64,
    last: Option<Txid>,
}

impl Reporter {
    fn new(progress: Option<ProgressFn>, plan: &Plan) -> Reporter {
        Reporter {
            progress,
            image_bytes: AtomicU64::new(0),
            image_len: plan.manifest.database_len(),
            txid: AtomicU64::new(plan.manifest.txid.0),
            last: plan.last,
        }
    }

    fn image(&self, bytes: u64) {
        self.image_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.tell();
    }

    fn transaction(&self, txid: Txid) {
        self.txid.store(txid.0, Ordering::Relaxed);
        self.tell();
    }

    fn tell(&self) {
        if let Some(progress) = &self.progress {
            progress(Progress {
                image_bytes: self.image_bytes.load(Ordering::Relaxed),
                image_len: self.image_len,
                txid: Txid(self.txid.load(Ordering::Relaxed)),
                last: self.last,
            });
        }
    }
}
