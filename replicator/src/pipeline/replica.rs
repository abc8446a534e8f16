//! What the connections of a database see of its replication. Its methods run on the application's threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use replvfs_vfs::host::{Durability, FlushError, Replica};
use replvfs_vfs::resume::Left;
use replvfs_vfs::types::Txid;

use super::shared::Shared;
use crate::config::{OnTimeout, durability_of};

/// So often a question that comes while another one is answered is looked at before the wait.
const ATTEMPTS: usize = 3;

/// What the settings of a database say of waiting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) timeout: Duration,
    pub(super) close_timeout: Duration,
    pub(super) wal_limit: u64,
    pub(super) durability: Durability,
    pub(super) on_timeout: OnTimeout,
}

#[cfg(test)]
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

#[derive(Debug)]
pub(super) struct DatabaseReplica {
    shared: Arc<Shared>,
    patience: Patience,
    /// A wait at close was in vain: the same close does not wait again.
    gave_up: AtomicBool,
}

impl DatabaseReplica {
    pub(super) fn new(shared: Arc<Shared>, patience: Patience) -> DatabaseReplica {
        DatabaseReplica {
            shared,
            patience,
            gave_up: AtomicBool::new(false),
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn timeout(&self) -> Duration {
        self.patience.timeout
    }

    /// Waits until this transaction is in the store; without one, until all are that have been committed, and the upload does not wait for more then.
    pub(super) fn wait_within(
        &self,
        timeout: Duration,
        until: Option<Txid>,
        attend: &mut dyn FnMut() -> Result<(), FlushError>,
    ) -> Result<(), FlushError> {
        let shared = &self.shared;
        let end = Instant::now() + timeout;
        let left = || end.saturating_duration_since(Instant::now());
        // From here on a store that was away is asked soon.
        let waiting = until.is_none().then(|| shared.wait_for_upload());
        let target = loop {
            if until.is_some_and(|until| shared.log.acked() >= Some(until)) {
                return Ok(());
            }
            let (before, _) = shared.log.asked();
            let asked = match self.attend(attend).and_then(|asked| self.can_flush().map(|()| asked)) {
                Ok(asked) => asked,
                // What cannot be given without the store is asked for again when it answers.
                Err(_) if self.is_away() && shared.log.wait_asked(before, left()) => continue,
                Err(refused) => return Err(refused),
            };
            // Before that the number of the newest transaction is not known.
            let settled = shared.log.wait_settled_or_asked(asked, left());
            let target = until.or_else(|| shared.log.last_txid()).filter(|_| settled);
            if target.is_some_and(|target| shared.log.wait_acked_or_asked(target, asked, left())) {
                return Ok(());
            }
            if shared.log.failure().is_some() || left().is_zero() {
                break target;
            }
        };
        drop(waiting);
        if let Some(reason) = shared.log.failure() {
            return Err(FlushError(stopped(shared, &reason)));
        }
        let trouble = shared
            .status
            .current_trouble()
            .map(|trouble| format!(" ({trouble})"))
            .unwrap_or_default();
        let (replica, database) = (shared.store.replica(), &shared.database);
        Err(FlushError(match target {
            Some(target) => format!(
                "transaction {target} of {database} was not in the replica {replica} within {timeout:?}{trouble}; it is committed here, and \
                 the upload goes on"
            ),
            None => format!(
                "the replica {replica} has not told within {timeout:?} how the history of {database} goes on{trouble}; what is committed here \
                 is uploaded as soon as it does"
            ),
        }))
    }

    /// Lets the connection that waits give what the log asks for. Returns how often it was asked until then.
    fn attend(&self, attend: &mut dyn FnMut() -> Result<(), FlushError>) -> Result<u64, FlushError> {
        let log = &self.shared.log;
        for _ in 1..ATTEMPTS {
            let (before, _) = log.asked();
            attend()?;
            let (asked, answered) = log.asked();
            // Else it was asked again meanwhile. What the connection finds wrong by itself it asks for, and answers, as well.
            if answered || asked == before {
                return Ok(asked);
            }
        }
        let (asked, _) = log.asked();
        attend().map(|()| asked)
    }

    /// Why it would be in vain to wait for the upload, if it is known by now.
    fn can_flush(&self) -> Result<(), FlushError> {
        let shared = &self.shared;
        if let Some(reason) = shared.log.failure() {
            return Err(FlushError(stopped(shared, &reason)));
        }
        if shared.log.last_txid().is_none() {
            return Err(FlushError(format!(
                "nothing of {} was captured yet: read or write it once",
                shared.database
            )));
        }
        if shared.is_standby() {
            return Err(FlushError(format!(
                "another process replicates {}; ask there, or wait until it has ended",
                shared.database
            )));
        }
        Ok(())
    }
}

fn stopped(shared: &Shared, reason: &str) -> String {
    format!("replication of {} stopped: {reason}", shared.database)
}

impl Replica for DatabaseReplica {
    fn wake(&self) {
        self.gave_up.store(false, Ordering::Relaxed);
        self.shared.wake.notify_one();
    }

    fn flush(&self, attend: &mut dyn FnMut() -> Result<(), FlushError>) -> Result<(), FlushError> {
        self.wait_within(self.patience.timeout, None, attend)
    }

    fn durability(&self, uri_parameters: &[(String, String)]) -> Durability {
        durability_of(uri_parameters).unwrap_or(self.patience.durability)
    }

    fn confirm(&self, attend: &mut dyn FnMut() -> Result<(), FlushError>) -> Result<(), FlushError> {
        let confirmed = self.flush(attend);
        if confirmed.is_err() {
            // As soon as the store is back, though nobody waits any more.
            self.shared.hurry_up();
        }
        match (confirmed, self.patience.on_timeout) {
            (Err(error), OnTimeout::Continue) => {
                let database = &self.shared.database;
                tracing::warn!(
                    database,
                    "a transaction is committed here, and not confirmed there: {error}"
                );
                Ok(())
            }
            (confirmed, _) => confirmed,
        }
    }

    fn hold(
        &self,
        attend: &mut dyn FnMut() -> Result<(), FlushError>,
        propose: &mut dyn FnMut() -> Result<Option<Txid>, FlushError>,
    ) -> Result<Txid, FlushError> {
        super::strict::hold(self, attend, propose)
    }

    fn finished(&self) {
        if let Err(problem) = self.shared.local.finished() {
            self.shared.trouble(&problem);
        }
    }

    fn wait(&self, txid: Txid, attend: &mut dyn FnMut() -> Result<(), FlushError>) -> Result<(), FlushError> {
        self.wait_within(self.patience.timeout, Some(txid), attend)
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
            tracing::warn!(
                database = %shared.database,
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
        let drained = if self.gave_up.swap(false, Ordering::Relaxed) {
            shared.is_drained()
        } else {
            self.drain()
        };
        shared.closed();
        if drained && !shared.status.is_making_image() {
            shared.let_go_if_closed();
        } else {
            // It lets go when it has nothing more to do.
            shared.wake.notify_one();
        }
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
