//! What is measured of the replication of a database: when it is told.
//!
//! Nothing is counted where commits are: the log counts them anyway, and is asked. That is at each step of the task, at each look at an open database, at each attempt
//! that failed, and whenever the endpoint is asked; so no timer runs for it, and a database at rest costs nothing. What grows with time is told as a point in time.
//! Several threads come to tell, and what was told last is what counts: so one does it for all, and nobody waits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use replvfs_vfs::log::Numbers;
use replvfs_vfs::shim;
use replvfs_vfs::types::{Txid, UnixMillis};
use tokio::runtime::Handle;

#[cfg(feature = "prometheus")]
use super::replica::DatabaseReplica;
use super::shared::{Shared, now};
use crate::metrics::{DatabaseMetrics, Metrics};

/// By default nobody is told.
#[derive(Debug)]
pub(super) struct Meters {
    metrics: Metrics,
    pub(super) of: Arc<DatabaseMetrics>,
    pending: Mutex<Pending>,
    /// How often it was asked for since the one who tells looked, and that one.
    asked: AtomicUsize,
}

/// Since when something waits to be restorable.
#[derive(Debug, Default)]
struct Pending {
    since: Option<UnixMillis>,
    acked: Option<Txid>,
}

impl Default for Meters {
    fn default() -> Meters {
        Meters::new(&Metrics::default(), std::path::Path::new(""))
    }
}

impl Meters {
    pub(super) fn new(metrics: &Metrics, database: &std::path::Path) -> Meters {
        Meters {
            metrics: metrics.clone(),
            of: Arc::new(metrics.of_database(database)),
            pending: Mutex::default(),
            asked: AtomicUsize::new(0),
        }
    }

    /// This process replicates the database from here on.
    pub(super) fn serve(&self) {
        self.metrics.serve(&Handle::current());
    }

    /// When the oldest transaction was committed that cannot be restored yet. One that is in the store without an image is in the log no more.
    fn pending_since(&self, numbers: &Numbers) -> Option<UnixMillis> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if numbers.unacked == 0 || std::mem::replace(&mut pending.acked, numbers.acked) != numbers.acked {
            pending.since = None;
        }
        if numbers.unacked > 0 {
            let known = [pending.since, numbers.oldest].into_iter().flatten().min();
            pending.since = Some(known.unwrap_or_else(now));
        }
        pending.since
    }
}

impl Shared {
    /// Tells the numbers as they are now, or has them told by the thread that does so already. Waits for nobody.
    pub(super) fn publish(&self) {
        let asked = &self.meters.asked;
        if asked.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        let _in_a_panic = Reset(asked);
        loop {
            let seen = asked.load(Ordering::Acquire);
            self.tell_numbers();
            if asked
                .compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
            {
                return;
            }
        }
    }

    fn tell_numbers(&self) {
        let (of, numbers) = (&self.meters.of, self.log.numbers());
        let flag = |is: bool| f64::from(u8::from(is));
        let txid = |txid: Option<Txid>| txid.map_or(0.0, |txid| txid.0 as f64);
        of.open.set(flag(self.is_open()));
        of.owner.set(flag(self.is_owner()));
        of.failed.set(flag(numbers.has_failed));
        of.fenced.set(flag(self.status.is_fenced()));
        of.suspended.set(flag(numbers.is_suspended));
        of.trouble.set(flag(self.status.current_trouble().is_some()));
        of.captured.absolute(numbers.captured);
        of.captured_bytes.absolute(numbers.captured_bytes);
        of.memory.set(shim::captured_memory() as f64);
        // Whoever does not replicate the database knows nothing of what waits. One that has failed while it is open still does.
        let numbers = match self.is_owner() || numbers.has_failed && self.is_open() {
            true => numbers,
            false => Numbers::default(),
        };
        if self.is_owner() {
            // Otherwise they stay: what this process knew last.
            of.txid.set(txid(numbers.last));
            of.acked.set(txid(numbers.acked));
        }
        of.pending.set(numbers.unacked as f64);
        of.pending_bytes.set(numbers.wal_bytes as f64);
        let since = self.meters.pending_since(&numbers);
        of.oldest_pending
            .set(since.map_or(0.0, |since| since.0 as f64 / 1000.0));
        let wal_bytes = match self.is_owner() {
            true => self.log.wal_bytes_now(),
            false => Some(0),
        };
        if let Some(bytes) = wal_bytes {
            of.wal_held.set(bytes as f64);
        }
    }
}

/// The program's recorder may panic: the next one tells again.
struct Reset<'a>(&'a AtomicUsize);

impl Drop for Reset<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(0, Ordering::Release);
        }
    }
}

/// Tells the numbers of all databases of this process, to a recorder of ours.
#[cfg(feature = "prometheus")]
pub(crate) fn publish_all() {
    for (_, replica) in shim::replicas() {
        let replica: &dyn std::any::Any = &*replica;
        if let Some(replica) = replica.downcast_ref::<DatabaseReplica>() {
            let shared = replica.shared();
            shared.publish();
            // If another thread does it, it is about to be done.
            while shared.meters.asked.load(Ordering::Acquire) > 0 {
                std::thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(acked: Option<u64>, unacked: u64, oldest: Option<i64>) -> Numbers {
        Numbers {
            acked: acked.map(Txid),
            unacked,
            oldest: oldest.map(UnixMillis),
            ..Numbers::default()
        }
    }

    #[test]
    fn what_waits_longest_is_told() {
        let meters = Meters::default();
        let since = |acked, unacked, oldest| meters.pending_since(&numbers(acked, unacked, oldest)).map(|at| at.0);
        assert_eq!(since(None, 0, None), None);
        assert_eq!(since(None, 2, Some(1000)), Some(1000));
        assert_eq!(
            since(None, 3, Some(2000)),
            Some(1000),
            "the first is in the store, and its image is not"
        );
        assert_eq!(since(Some(2), 1, Some(2000)), Some(2000), "now they can be restored");
        assert_eq!(since(Some(3), 0, None), None);
        assert_eq!(since(Some(3), 1, Some(5000)), Some(5000));
        assert_eq!(since(Some(3), 1, None), Some(5000), "it has been taken out of the log");
        assert_eq!(since(Some(4), 0, None), None);
    }
}
