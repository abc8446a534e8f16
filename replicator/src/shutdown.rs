//! The end of a program that replicates databases.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use replvfs_vfs::host::FlushError;
use replvfs_vfs::shim;

use crate::pipeline::DatabaseReplica;
use crate::replication::LONGEST;

/// Uploads at once what is committed in the databases of this process, and waits until all of it can be restored, for at most `timeout` (30 days, if that is
/// longer). For a program that is about to end: where connections were closed before the store had answered, and where some are still open.
///
/// Nothing ends by it. Connections that are open can be used on, what they commit afterwards is uploaded as ever, and the VFSes stay. Of a database that is closed
/// the question is what this process has committed; of one that is open, all that is committed, as for [`Replication::flush`](crate::Replication::flush). It may be
/// called by several threads, and again. In a child of `fork()` what its parent had open does not count.
///
/// # Errors
///
/// When that could not be confirmed for some databases. The uploads go on as long as the process lives; what is not in the replica then stays in the
/// databases' WALs, and is uploaded when they are opened the next time.
pub fn shutdown(timeout: Duration) -> Result<(), ShutdownError> {
    let timeout = timeout.min(LONGEST);
    tracing::info!(
        timeout_ms = timeout.as_millis() as u64,
        "shutting down: what waits is uploaded"
    );
    let finishing: Vec<_> = shim::replicas()
        .into_iter()
        .filter_map(|(database, replica)| {
            let replica: &dyn std::any::Any = &*replica;
            let finishing = replica.downcast_ref::<DatabaseReplica>()?.finishing(&database, timeout);
            Some((database, finishing))
        })
        .collect();
    let died = |_| Err(FlushError::new("the wait died, which is a bug in replvfs"));
    let unfinished: Vec<Unfinished> = finishing
        .into_iter()
        .filter_map(|(database, finished)| {
            let error = finished.recv().unwrap_or_else(died).err()?;
            Some(Unfinished { database, error })
        })
        .collect();
    for Unfinished { database, error } in &unfinished {
        replvfs_vfs::warning!(database = database.display(); "it was not confirmed at the end of the program that all of it is in the replica: {error}");
    }
    match unfinished.is_empty() {
        true => Ok(()),
        false => Err(ShutdownError { unfinished }),
    }
}

/// A database of which not all is in its replica, as far as is known.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Unfinished {
    /// Its full path.
    pub database: PathBuf,
    /// Why not, and what becomes of it.
    pub error: FlushError,
}

/// What [`shutdown`] could not confirm.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ShutdownError {
    /// One for each database, in no order.
    pub unfinished: Vec<Unfinished>,
}

impl fmt::Display for ShutdownError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, Unfinished { database, error }) in self.unfinished.iter().enumerate() {
            let separator = if nth == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {error}", database.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for ShutdownError {}
