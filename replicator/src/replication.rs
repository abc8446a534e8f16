//! The replication of a database that this process has open, for programs that have no connection at hand, or an executor that must not wait.

use std::path::Path;
use std::time::Duration;

use replvfs_vfs::shim;
use replvfs_vfs::types::Txid;

use crate::pipeline::DatabaseReplica;

pub use replvfs_vfs::host::FlushError;

/// What a neighbour and every clock can count.
pub(crate) const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// The replication of a database that this process has open. Cheap to clone, and usable from any thread.
///
/// What it does is what the PRAGMAs of the same names do on a connection, with one difference: where a connection of this process has the database for
/// itself (`locking_mode=EXCLUSIVE`), or nothing was read through one yet, only the PRAGMA on that connection can tell what is committed.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let replication = replvfs::Replication::of("app.db").ok_or("it is not open")?;
/// let newest = replication.flush_async().await?;
/// println!("all that is committed is in the replica, up to transaction {newest:?}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Replication {
    replica: DatabaseReplica,
    timeout: Duration,
    /// In a child of `fork()` nobody would answer.
    process: u32,
}

impl Replication {
    /// Of the database at this path; `None` when no connection of this process has opened it through replvfs, or it is not replicated.
    #[must_use]
    pub fn of(database: impl AsRef<Path>) -> Option<Replication> {
        let database = database.as_ref();
        // SQLite's own VFS resolves links, too.
        let resolved = database.canonicalize().unwrap_or_else(|_| database.to_owned());
        let replica = shim::replica_of(&resolved).or_else(|| shim::replica_of(database))?;
        let replica: &dyn std::any::Any = &*replica;
        let replica = replica.downcast_ref::<DatabaseReplica>()?.clone();
        let timeout = replica.timeout();
        Some(Replication {
            replica,
            timeout,
            process: std::process::id(),
        })
    }

    /// With another patience than the database's `timeout`, of 30 days at most.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Replication {
        self.timeout = timeout.min(LONGEST);
        self
    }

    /// Uploads at once what is committed in the database, by whatever process of this machine, and waits until it can be restored. Returns the newest
    /// transaction that can. The database may be closed by now, as long as the files beside it are there.
    ///
    /// # Errors
    ///
    /// When that was not confirmed within the timeout, or cannot be. The upload goes on.
    pub fn flush(&self) -> Result<Option<Txid>, FlushError> {
        self.blocking(None)
    }

    /// Waits until this transaction can be restored, and hurries nothing. The number is that of `PRAGMA replvfs_txid`.
    ///
    /// # Errors
    ///
    /// As for [`flush`](Self::flush).
    pub fn wait(&self, txid: Txid) -> Result<Option<Txid>, FlushError> {
        self.blocking(Some(txid))
    }

    /// [`flush`](Self::flush) for any executor. Dropped, it waits no longer; the upload goes on.
    ///
    /// # Errors
    ///
    /// As for [`flush`](Self::flush).
    pub async fn flush_async(&self) -> Result<Option<Txid>, FlushError> {
        self.is_here()?;
        self.replica.waiting(None, self.timeout).await
    }

    /// [`wait`](Self::wait) for any executor. Dropped, it waits no longer.
    ///
    /// # Errors
    ///
    /// As for [`flush`](Self::flush).
    pub async fn wait_async(&self, txid: Txid) -> Result<Option<Txid>, FlushError> {
        self.is_here()?;
        self.replica.waiting(Some(txid), self.timeout).await
    }

    /// The newest transaction that is known to be restorable; `None` before there is one, and in a process that does not replicate the database.
    #[must_use]
    pub fn acked(&self) -> Option<Txid> {
        self.replica.acked()
    }

    /// The JSON object of `PRAGMA replvfs_status`, without a look at what other processes have committed.
    #[must_use]
    pub fn status(&self) -> String {
        self.replica.report()
    }

    fn is_here(&self) -> Result<(), FlushError> {
        match self.process == std::process::id() {
            true => Ok(()),
            false => Err(FlushError::new(
                "the database was opened before fork(): open it in this process, and ask for its replication again",
            )),
        }
    }

    fn blocking(&self, until: Option<Txid>) -> Result<Option<Txid>, FlushError> {
        self.is_here()?;
        self.replica.wait_blocking(until, self.timeout)
    }
}
