//! What the connections of a database see of its replication. Its methods run on the application's threads.

use std::sync::Arc;
use std::time::Duration;

use replvfs_vfs::host::{FlushError, Replica};
use replvfs_vfs::resume::Left;

use super::shared::Shared;

#[derive(Debug)]
pub(super) struct DatabaseReplica {
    shared: Arc<Shared>,
    timeout: Duration,
    close_timeout: Duration,
}

impl DatabaseReplica {
    pub(super) fn new(shared: Arc<Shared>, timeout: Duration, close_timeout: Duration) -> DatabaseReplica {
        DatabaseReplica {
            shared,
            timeout,
            close_timeout,
        }
    }

    fn flush_within(&self, timeout: Duration) -> Result<(), FlushError> {
        let shared = &self.shared;
        if let Some(reason) = shared.log.failure() {
            return Err(FlushError(stopped(shared, &reason)));
        }
        let Some(target) = shared.log.last_txid() else {
            return Err(FlushError(format!(
                "nothing of {} was captured yet: read or write it once",
                shared.database
            )));
        };
        if shared.is_standby() {
            return Err(FlushError(format!(
                "another process replicates {}; ask there, or wait until it has ended",
                shared.database
            )));
        }
        let waiting = shared.wait_for_upload();
        let acked = shared.log.wait_acked(target, timeout);
        drop(waiting);
        if acked {
            return Ok(());
        }
        if let Some(reason) = shared.log.failure() {
            return Err(FlushError(stopped(shared, &reason)));
        }
        let trouble = shared
            .current_trouble()
            .map(|trouble| format!(" ({trouble})"))
            .unwrap_or_default();
        Err(FlushError(format!(
            "transaction {target} of {} was not in the replica {} within {timeout:?}{trouble}; it is committed here, and the upload goes on",
            shared.database,
            shared.store.replica()
        )))
    }
}

fn stopped(shared: &Shared, reason: &str) -> String {
    format!("replication of {} stopped: {reason}", shared.database)
}

impl Replica for DatabaseReplica {
    fn wake(&self) {
        self.shared.wake.notify_one();
    }

    fn flush(&self) -> Result<(), FlushError> {
        self.flush_within(self.timeout)
    }

    fn owns(&self) -> bool {
        !self.shared.is_standby()
    }

    fn take_over(&self) -> bool {
        false
    }

    fn hurry(&self) {}

    fn drain(&self) -> bool {
        true
    }

    fn left(&self, _left: &Left) -> bool {
        true
    }

    fn wal_limit(&self) -> u64 {
        1 << 30
    }

    fn closed(&self) {
        let log = &self.shared.log;
        if self.shared.is_standby() || log.failure().is_some() || log.acked() >= log.last_txid() {
            return;
        }
        if let Err(error) = self.flush_within(self.close_timeout) {
            tracing::warn!("closing did not wait for the upload any longer: {error}");
        }
    }

    fn close_timeout(&self) -> Duration {
        self.close_timeout
    }

    fn status(&self) -> String {
        self.shared.status()
    }
}
