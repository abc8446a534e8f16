//! What the connections of a database see of its replication. Its methods run on the application's threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use replvfs_vfs::host::{AskedAside, Durability, FlushError, Replica};
use replvfs_vfs::resume::Left;
use replvfs_vfs::types::Txid;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::confirm::{self, Attend, Wanted};
use super::shared::Shared;
use crate::config::{OnTimeout, durability_of};

/// What the settings of a database say of waiting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) timeout: Duration,
    pub(super) close_timeout: Duration,
    pub(super) wal_limit: u64,
    pub(super) durability: Durability,
    pub(super) on_timeout: OnTimeout,
}

#[cfg(any(test, feature = "testing"))]
impl Patience {
    pub(super) fn of(timeout: Duration, close_timeout: Duration) -> Patience {
        Patience {
            timeout,
            close_timeout,
            wal_limit: 1 << 30,
            durability: Durability::Async,
            on_timeout: OnTimeout::Error,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct DatabaseReplica {
    pub(super) shared: Arc<Shared>,
    patience: Patience,
    /// A wait at close was in vain: the same close does not wait again.
    gave_up: Arc<AtomicBool>,
    /// Where who has no connection waits.
    pub(super) runtime: Option<Handle>,
}

impl DatabaseReplica {
    pub(super) fn new(shared: Arc<Shared>, patience: Patience, runtime: Option<Handle>) -> DatabaseReplica {
        DatabaseReplica {
            shared,
            patience,
            gave_up: Arc::default(),
            runtime,
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.patience.timeout
    }

    pub(crate) fn acked(&self) -> Option<Txid> {
        let shared = &self.shared;
        shared.log.acked().filter(|_| !shared.is_standby())
    }

    pub(crate) fn report(&self) -> String {
        self.shared.status()
    }

    /// Waits without a connection, as [`confirm::wait_anywhere`]. By whatever executor it is awaited, it runs on ours.
    pub(crate) async fn waiting(&self, until: Option<Txid>, timeout: Duration) -> Result<Option<Txid>, FlushError> {
        let (done, waited) = oneshot::channel();
        let waiting = self.wait_then(until, timeout, move |result| {
            let _ = done.send(result);
        });
        let _until_dropped = AbortOnDrop(waiting);
        waited.await.unwrap_or_else(|_| Err(died()))
    }

    /// The same on a thread that may wait, be it one of an executor's.
    pub(crate) fn wait_blocking(&self, until: Option<Txid>, timeout: Duration) -> Result<Option<Txid>, FlushError> {
        let (done, waited) = mpsc::channel();
        self.wait_then(until, timeout, move |result| {
            let _ = done.send(result);
        });
        waited.recv().unwrap_or_else(|_| Err(died()))
    }

    /// `then` gets the result, on a thread of ours, unless the wait is aborted.
    fn wait_then(
        &self,
        until: Option<Txid>,
        timeout: Duration,
        then: impl FnOnce(Result<Option<Txid>, FlushError>) + Send + 'static,
    ) -> Option<AbortHandle> {
        let (shared, wanted) = (Arc::clone(&self.shared), Wanted { until, timeout });
        let runtime = self.runtime.as_ref()?;
        let waiting = runtime.spawn(async move { then(confirm::wait_anywhere(&shared, wanted).await) });
        Some(waiting.abort_handle())
    }

    fn wanted(&self, until: Option<Txid>) -> Wanted {
        Wanted {
            until,
            timeout: self.patience.timeout,
        }
    }
}

struct AbortOnDrop(Option<AbortHandle>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(waiting) = &self.0 {
            waiting.abort();
        }
    }
}

fn died() -> FlushError {
    FlushError::new("the wait died, which is a bug in replvfs")
}

impl Replica for DatabaseReplica {
    fn wake(&self) {
        self.gave_up.store(false, Ordering::Relaxed);
        self.shared.wake.notify_one();
    }

    fn ask_aside(&self) -> AskedAside {
        // A process in which replication has ended may still answer itself.
        match self.shared.is_standby() {
            true => self.shared.neighbours.ask_aside(),
            false => AskedAside::No,
        }
    }

    fn progressed(&self) {
        self.shared.progress.notify_waiters();
    }

    fn flush(&self, attend: Attend<'_>) -> Result<Option<Txid>, FlushError> {
        confirm::wait(&self.shared, self.wanted(None), attend)
    }

    fn durability(&self, uri_parameters: &[(String, String)]) -> Durability {
        durability_of(uri_parameters).unwrap_or(self.patience.durability)
    }

    fn confirm(&self, attend: Attend<'_>) -> Result<(), FlushError> {
        let confirmed = self.flush(attend).map(|_| ());
        if confirmed.is_err() {
            // As soon as the store is back, though nobody waits any more.
            self.shared.hurry_up();
        }
        match (confirmed, self.patience.on_timeout) {
            (Err(error), OnTimeout::Continue) => {
                let database = &self.shared.database;
                replvfs_vfs::warning!(
                    database = database;
                    "a transaction is committed here, and not confirmed there: {error}"
                );
                Ok(())
            }
            (confirmed, _) => confirmed,
        }
    }

    fn hold(
        &self,
        attend: Attend<'_>,
        propose: &mut dyn FnMut() -> Result<Option<Txid>, FlushError>,
    ) -> Result<Txid, FlushError> {
        super::strict::hold(self, attend, propose)
    }

    fn finished(&self) {
        if let Err(problem) = self.shared.local.finished() {
            self.shared.trouble(&problem);
        }
    }

    fn wait(&self, txid: Txid, attend: Attend<'_>) -> Result<Option<Txid>, FlushError> {
        confirm::wait(&self.shared, self.wanted(Some(txid)), attend)
    }

    fn owns(&self) -> bool {
        self.shared.owns()
    }

    fn take_over(&self) -> bool {
        self.shared.own()
    }

    fn is_away(&self) -> bool {
        self.shared.status.current_trouble().is_some()
    }

    fn hurry(&self) {
        self.shared.hurry_up();
    }

    /// For a standby there is nothing to wait for: the owner keeps the WAL. After a failure there is nothing either: the WAL is worth no more than
    /// the database file, from which the next process starts again.
    fn drain(&self) -> bool {
        let shared = &self.shared;
        if shared.is_drained() {
            return true;
        }
        if shared.is_stuck() || self.gave_up.load(Ordering::Relaxed) {
            return false;
        }
        let end = Instant::now() + self.patience.close_timeout;
        let waiting = shared.wait_for_upload();
        let settled = shared.log.wait_settled(self.patience.close_timeout);
        if settled && let Some(target) = shared.log.last_txid() {
            shared
                .log
                .wait_acked(target, end.saturating_duration_since(Instant::now()));
        }
        drop(waiting);
        let drained = shared.is_drained();
        if !drained {
            self.gave_up.store(true, Ordering::Relaxed);
            replvfs_vfs::warning!(
                database = shared.database;
                "closing did not wait for the upload any longer; what is missing in the replica stays in the WAL"
            );
        }
        drained
    }

    fn left(&self, left: &Left) -> bool {
        match self.shared.local.left(left) {
            Ok(()) => true,
            Err(problem) => {
                self.shared.trouble(&problem);
                false
            }
        }
    }

    fn closed(&self) {
        let shared = &self.shared;
        // What a standby has captured, the owner has too, unless it has just gone.
        let forgets = shared.is_standby() && shared.log.pending().items > 0 && !shared.own();
        let drained = if self.gave_up.swap(false, Ordering::Relaxed) {
            shared.is_drained()
        } else {
            self.drain()
        };
        shared.closed();
        if forgets {
            // It would be a reason to replicate what nobody has open.
            shared.local.forget(|| shared.log.forget());
        }
        if drained && !shared.status.is_making_image() {
            shared.let_go_if_closed();
        } else {
            // It lets go when it has nothing more to do.
            shared.wake.notify_one();
        }
        shared.publish();
    }

    fn opened(&self) {
        self.shared.opened();
    }

    fn wal_limit(&self) -> u64 {
        self.patience.wal_limit
    }

    fn close_timeout(&self) -> Duration {
        self.patience.close_timeout
    }

    fn refuses_writes(&self) -> bool {
        self.shared.refusal.refuses()
    }

    fn status(&self) -> String {
        self.shared.status()
    }
}
