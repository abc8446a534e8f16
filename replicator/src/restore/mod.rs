//! From a replica back to a database file. Owns the order of things: plan, image, log, check, into place. Any damage ends
//! it with an error that names the object, and without a file. Leaves finding the way to [`history`](crate::history).

mod apply;
mod around;
mod digests;
mod error;
mod forward;
mod image;
mod log;
mod pages;
mod state;
mod target;
mod work;

#[cfg(test)]
pub(crate) mod tests;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use replvfs_vfs::types::{PageSize, Position, Txid, UnixMillis};

pub(crate) use digests::{Digested, digest_state};
pub use digests::{Digests, HEADER_BYTES};
pub use error::RestoreError;
pub(crate) use forward::put_over;
pub(crate) use log::{WHOLE_BYTES, ranges, read_part, segments_ahead};
pub(crate) use work::Work;

use crate::Error;
use crate::format::{Generation, Key, LocalState, Manifest};
use crate::history::{History, HistoryError, Plan, Target};
use crate::outside;
use crate::store::{Store, StoreOptions};
use apply::Applier;
use around::{Look, Place, fill_by};
use pages::PageFile;
use target::TargetFile;

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
    /// Looks at the file when it is whole, before it gets its name. When it finds fault, nothing is restored.
    pub check: Option<CheckFn>,
    /// Is told how far the restore is, often, and from several threads.
    pub progress: Option<ProgressFn>,
}

/// Looks at a restored file under its temporary name, on a thread that may block; the library itself has no SQLite to do so. It must not change the
/// file, nor leave anything beside it. What it finds is a sentence.
pub type CheckFn = Arc<dyn Fn(&Path) -> Result<(), String> + Send + Sync>;

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
    /// Bytes of the log that are in the file, as they are stored.
    pub log_bytes: u64,
    /// Bytes of the log that are to be read, as they are stored. An estimate: what was stored meanwhile, or was not listed, comes on top.
    pub log_len: u64,
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
    let aside = match attempt(store, out, options, Look::First).await {
        // Retention may have deleted what was planned; then there is another way, or the history begins later now.
        Err(RestoreError::History(HistoryError::Missing { .. })) => attempt(store, out, options, Look::Last).await?,
        attempted => attempted?,
    };
    let Aside {
        target,
        state,
        restored,
        ..
    } = aside;
    let image = Key::Image(restored.generation, restored.txid);
    let (resumable, check) = (options.resumable, options.check.clone());
    blocking(image, move || {
        if let Some(check) = check {
            check(target.path()).map_err(|problem| RestoreError::Check { problem })?;
        }
        if resumable {
            state::leave(state, target)
        } else {
            target.put_in_place().map(drop)
        }
    })
    .await?;
    Ok(restored)
}

/// [`restore`] from the replica at this URI, on any thread that may wait. The threads that it takes are gone when it returns.
///
/// # Errors
///
/// When the URI is wrong, or as for [`restore`].
pub fn restore_blocking(replica: &str, out: &Path, options: &RestoreOptions) -> Result<Restored, Error> {
    // A runtime cannot be waited for on the thread of another one, which the caller may have.
    std::thread::scope(|scope| {
        let restoring = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            let runtime = runtime.map_err(Error::Threads)?;
            runtime.block_on(async {
                let store = Store::open(replica, &StoreOptions::reading())?;
                Ok(restore(&store, out, options).await?)
            })
        });
        restoring
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// By what is in the store now.
async fn attempt(store: &Store, out: &Path, options: &RestoreOptions, look: Look) -> Result<Aside, RestoreError> {
    let place = Place {
        path: out.to_owned(),
        force: Some(options.force),
    };
    let target = place.create().await?;
    let history = History::open_to_plan(store).await?;
    let plan = history.plan(options.target, options.generation).await?;
    fill_by(store, &history, &plan, target, &place, options.progress.clone(), look).await
}

/// A state of a database that is whole, and not in its place yet.
#[derive(Debug)]
pub(crate) struct Aside {
    target: TargetFile,
    state: LocalState,
    restored: Restored,
    image: Manifest,
}

impl Aside {
    /// What it is.
    pub(crate) fn restored(&self) -> &Restored {
        &self.restored
    }

    /// The image that it was made of.
    pub(crate) fn image(&self) -> &Manifest {
        &self.image
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
    let place = Place {
        path: place.to_owned(),
        force: None,
    };
    let target = place.create().await?;
    fill_by(store, history, plan, target, &place, Some(progress), Look::Last).await
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
        digests: None,
    };
    let report = Arc::new(Reporter::new(progress, plan));
    image::write_image(store, manifest, &pages, &report).await?;
    let applier = Applier::new(pages.clone(), manifest.page_count, (manifest.txid, manifest.taken_at));
    let (Applier { page_count, last, .. }, tail) = log::apply_log(store, plan, applier, &report).await?;
    if page_count > 0 {
        blocking(image, move || check_header(&pages, image)).await?;
    }
    let page_size = manifest.page_size;
    Ok(Aside {
        target,
        image: plan.manifest.clone(),
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
pub(crate) async fn blocking<T: Send + 'static>(
    key: Key,
    work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
) -> Result<T, RestoreError> {
    outside::blocking(work)
        .await
        .unwrap_or_else(|error| Err(died(key, &error)))
}

fn died(key: Key, error: &tokio::task::JoinError) -> RestoreError {
    let problem = error.to_string();
    RestoreError::Task { key, problem }
}

/// Tells the caller how far it is.
struct Reporter {
    progress: Option<ProgressFn>,
    image_bytes: AtomicU64,
    image_len: u64,
    log_bytes: AtomicU64,
    log_len: u64,
    txid: AtomicU64,
    last: Option<Txid>,
}

impl Reporter {
    fn new(progress: Option<ProgressFn>, plan: &Plan) -> Reporter {
        Reporter {
            progress,
            image_bytes: AtomicU64::new(0),
            image_len: plan.manifest.database_len(),
            log_bytes: AtomicU64::new(0),
            log_len: plan.log_len(),
            txid: AtomicU64::new(plan.manifest.txid.0),
            last: plan.last,
        }
    }

    fn image(&self, bytes: u64) {
        self.image_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.tell();
    }

    fn log(&self, bytes: u64) {
        self.log_bytes.fetch_add(bytes, Ordering::Relaxed);
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
                log_bytes: self.log_bytes.load(Ordering::Relaxed),
                log_len: self.log_len,
                txid: Txid(self.txid.load(Ordering::Relaxed)),
                last: self.last,
            });
        }
    }
}
