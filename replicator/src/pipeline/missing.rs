//! A database whose file is missing or empty, opened over a replica that has a history: it is restored before the open returns.
//!
//! Owns who does it when several processes start at once.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use tokio::runtime::Handle;

use super::owner::lock_file;
use super::waiting::answer;
use crate::history::HistoryError;
use crate::restore::{RestoreError, RestoreOptions, Restored, restore};
use crate::store::Store;

/// Whether there is nothing in a database's file, so that no history can be its own.
pub(super) fn is_new(path: &Path) -> bool {
    match std::fs::metadata(path) {
        Ok(meta) => meta.len() == 0,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Held by whoever restores. A lock of another kind than the owner's, on the same file. Only other processes are kept out: threads that open the same database
/// take turns already.
pub(super) struct Opening {
    _lock: File,
}

/// Before a lock that was refused is asked for again.
const PAUSE: Duration = Duration::from_millis(5);

impl Opening {
    /// Waits for another process to be done.
    pub(super) fn wait(path: &Path) -> io::Result<Opening> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        if !try_lock(&file, FlockOperation::NonBlockingLockExclusive)? {
            tracing::info!(lock = %path.display(), "another process opens the database; waiting for it");
            while !try_lock(&file, FlockOperation::LockExclusive)? {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(Opening { _lock: file })
    }

    /// Waits for another process that restores a file which is there already: it appears before the note that proves it to go on with the history. Who may not
    /// write the lock file, or is on a file system without locks, goes on at once.
    fn let_end(path: &Path) {
        if path.exists() {
            drop(Opening::wait(path));
        }
    }
}

/// Whether the lock is had.
fn try_lock(file: &File, how: FlockOperation) -> io::Result<bool> {
    match fcntl_lock(file, how) {
        Ok(()) => Ok(true),
        // Two processes that each open two databases look like a circle, since the system counts processes, not threads.
        Err(Errno::INTR | Errno::DEADLK | Errno::AGAIN | Errno::ACCESS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Restores the newest state, if the file is missing or empty, and the replica has one. `timeout` is how long the store may take without getting
/// any further.
///
/// # Errors
///
/// Why the open has to fail: a sentence.
pub(super) fn restore_if_missing(
    runtime: &Handle,
    path: &Path,
    store: &Store,
    timeout: Duration,
) -> Result<(), String> {
    let place = lock_file(path);
    if !is_new(path) {
        Opening::let_end(&place);
        return Ok(());
    }
    if !path.parent().is_some_and(Path::is_dir) {
        return Ok(());
    }
    let _opening = Opening::wait(&place).map_err(|error| format!("locking {} failed: {error}", place.display()))?;
    if !is_new(path) {
        return Ok(());
    }
    let result = answer(runtime, timeout, |alive| {
        let (path, store) = (path.to_owned(), store.clone());
        async move {
            let options = RestoreOptions {
                // An empty file is replaced; beside a missing one nothing is removed.
                force: path.exists(),
                resumable: true,
                progress: Some(Arc::new(move |_| alive.tell())),
                ..RestoreOptions::default()
            };
            restore(&store, &path, &options).await
        }
    });
    match result {
        Ok(result) => told(path, store, result),
        Err(why) => Err(advice(store, &why.to_string())),
    }
}

fn told(path: &Path, store: &Store, result: Result<Restored, RestoreError>) -> Result<(), String> {
    match result {
        Ok(restored) => {
            tracing::info!(
                database = %path.display(),
                replica = store.replica(),
                generation = restored.generation.0,
                txid = restored.txid.0,
                "its file was missing, and was restored"
            );
            for warning in restored.warnings {
                replvfs_vfs::warning!(database = path.display(); "{warning}");
            }
            Ok(())
        }
        Err(RestoreError::History(HistoryError::NoReplica | HistoryError::Empty { .. })) => Ok(()),
        // Somebody without replvfs was faster.
        Err(RestoreError::Exists { .. }) => Ok(()),
        Err(error @ (RestoreError::Leftover { .. } | RestoreError::File { .. })) => Err(error.to_string()),
        Err(error) => Err(advice(store, &format!("cannot be restored from: {error}"))),
    }
}

fn advice(store: &Store, what: &str) -> String {
    format!(
        "its file is missing or empty, and the replica {} {what}; try again when it can be read, or start a new history with restore=never",
        store.replica()
    )
}
