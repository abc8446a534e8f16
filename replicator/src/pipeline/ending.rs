//! The end of a program: whether all that it has committed in a database is in the replica.
//!
//! Ends nothing. Where a connection is open that is [`confirm`]'s to tell. Where all are closed nobody can give what the log asks for any more: what
//! remains is what was captured, as far as this process still uploads it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use replvfs_vfs::host::FlushError;
use tokio::time::Instant;

use super::confirm::{self, Wanted};
use super::neighbours::Asked;
use super::replica::DatabaseReplica;
use super::shared::Shared;
use crate::outside;

/// Between two looks at what no event tells of: who replicates the database, and whether the task rests.
const PAUSE: Duration = Duration::from_millis(20);

impl DatabaseReplica {
    /// Uploads at once what this process has committed, and tells when that is in the replica, or the time is over. Nothing is told where there are no
    /// threads to do so.
    pub(crate) fn finishing(&self, database: &Path, timeout: Duration) -> Receiver<Result<(), FlushError>> {
        let (done, finished) = channel();
        let (shared, mut wal) = (Arc::clone(&self.shared), database.as_os_str().to_owned());
        wal.push("-wal");
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move {
                let _ = done.send(finish(&shared, wal.into(), timeout).await);
            });
        }
        finished
    }
}

async fn finish(shared: &Arc<Shared>, wal: PathBuf, timeout: Duration) -> Result<(), FlushError> {
    let end = Instant::now() + timeout;
    // Without a file nothing is committed.
    if shared.is_open() && !shared.is_undecided() {
        let waited = confirm::wait_anywhere(shared, Wanted { until: None, timeout }).await;
        // It may have been closed meanwhile.
        if waited.is_ok() || shared.is_open() {
            return waited.map(drop);
        }
    }
    finish_closed(shared, wal, end).await
}

/// What is captured and on its way.
async fn finish_closed(shared: &Arc<Shared>, wal: PathBuf, end: Instant) -> Result<(), FlushError> {
    // Only with the lock: a task that is woken without tries to become the owner.
    let waiting = (!shared.is_standby()).then(|| shared.wait_for_upload());
    while !is_stored(shared) && !is_over(shared) && Instant::now() < end {
        let soon = end.min(Instant::now() + PAUSE);
        shared.until(soon, || is_stored(shared) || is_over(shared)).await;
    }
    drop(waiting);
    if let Some(reason) = shared.log.failure() {
        return Err(FlushError::new(confirm::stopped(shared, &reason)));
    }
    if is_stored(shared) {
        return Ok(());
    }
    if shared.is_standby() {
        return finish_elsewhere(shared, wal, end).await;
    }
    Err(left_over(shared))
}

/// A database that is closed, and that this process does not replicate, or not any more.
async fn finish_elsewhere(shared: &Arc<Shared>, wal: PathBuf, end: Instant) -> Result<(), FlushError> {
    let (asking, left) = (Arc::clone(shared), end.saturating_duration_since(Instant::now()));
    let asked = outside::blocking(move || {
        let asked = asking.neighbours.ask(None, left);
        (asked, has_content(&wal))
    });
    match asked.await {
        Ok((Asked::Acked(_), _)) => Ok(()),
        Ok((Asked::Refused(why), _)) => Err(FlushError::new(why)),
        // Whoever ended last has left nothing, and it was for them to know what they left out.
        Ok((Asked::Nobody(_), false)) if shared.local.tenure() == 0 => Ok(()),
        Ok((Asked::Nobody(_), _)) => Err(left_over(shared)),
        Err(died) => Err(FlushError::new(died.to_string())),
    }
}

/// Where that cannot be told it has.
fn has_content(file: &Path) -> bool {
    match std::fs::metadata(file) {
        Ok(file) => file.len() > 0,
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

fn left_over(shared: &Shared) -> FlushError {
    let trouble = shared.status.current_trouble();
    let trouble = trouble.map(|trouble| format!(" ({trouble})")).unwrap_or_default();
    FlushError::new(format!(
        "it is closed, and not all that was committed is known to be in the replica {}{trouble}; an upload that is under way goes on as long as this \
         process lives, and what is missing then is uploaded when the database is opened the next time",
        shared.store.replica()
    ))
}

/// All that was captured can be restored.
fn is_stored(shared: &Shared) -> bool {
    let log = &shared.log;
    log.failure().is_none() && !log.is_suspended() && log.pending().items == 0 && log.acked() >= log.last_txid()
}

/// Waiting would be in vain.
fn is_over(shared: &Shared) -> bool {
    let log = &shared.log;
    log.failure().is_some() || log.is_suspended() || shared.is_standby() || shared.is_stuck()
}
