//! What the replica asks the capturing side, by way of the log.

use std::sync::{Arc, Weak};

use super::Log;
use crate::host::FlushError;
use crate::notice::later;
use crate::types::Salts;

/// The capturing side, as the replicating side may ask for it at any time, on threads of its own. Public for tests of that side only.
#[doc(hidden)]
#[allow(missing_docs, reason = "not for use")]
pub trait Capturing: Send + Sync {
    fn is_pinned(&self) -> bool;
    fn is_to_be_watched(&self) -> bool;
    fn wal_bytes(&self) -> u64;
    /// The same, unless that would be waited for.
    fn wal_bytes_now(&self) -> Option<u64> {
        Some(self.wal_bytes())
    }
    fn has_news(&self) -> bool;
    fn look(&self);
    fn let_writers_by(&self);
    fn attend(self: Arc<Self>) -> Result<(), FlushError>;
    fn step_aside(&self) -> Option<u64> {
        None
    }
    fn is_alone_aside(&self, _which: u64) -> bool {
        true
    }
    fn come_back(&self, _which: u64, _now: Option<Salts>) {}
}

impl Log {
    #[doc(hidden)]
    pub fn connect_capture(&self, capturing: Weak<dyn Capturing>) {
        // The second time it is by the same.
        let _ = self.capturing.set(capturing);
    }

    /// Whether the WAL is kept from being restarted. Where a connection has the database for itself nothing of the kind is needed.
    pub fn is_pinned(&self) -> bool {
        self.capturing().is_some_and(|capturing| capturing.is_pinned())
    }

    /// Whether there may be a WAL that is or should be pinned, so that [`Log::has_news`] is worth asking for now and then.
    pub fn is_to_be_watched(&self) -> bool {
        self.capturing().is_some_and(|capturing| capturing.is_to_be_watched())
    }

    /// Bytes of the WAL up to its last commit, as far as it is pinned.
    pub fn pinned_wal_bytes(&self) -> u64 {
        self.capturing().map_or(0, |capturing| capturing.wal_bytes())
    }

    /// The same, unless that would be waited for.
    pub fn wal_bytes_now(&self) -> Option<u64> {
        self.capturing().map_or(Some(0), |capturing| capturing.wal_bytes_now())
    }

    /// Whether another process has committed what is not in the log. Looks at memory only.
    pub fn has_news(&self) -> bool {
        self.capturing().is_some_and(|capturing| capturing.has_news())
    }

    /// Captures what other processes have committed, and restarts a WAL that nobody needs any more when its writers cannot. Blocks on
    /// file I/O.
    pub fn look(&self) {
        let _later = later();
        if let Some(capturing) = self.capturing() {
            capturing.look();
        }
    }

    /// Captures all that is committed in the database, by whatever process, and gives what the log asks for, as a connection that waits for the upload
    /// does. Blocks on file I/O.
    ///
    /// # Errors
    ///
    /// When it cannot be proved that all of it is captured. Where a connection of this process has the database for itself only that one can prove it.
    pub fn attend(&self) -> Result<(), FlushError> {
        let _later = later();
        let capturing = self.capturing();
        capturing.map_or_else(|| Err(FlushError::new("the database is closed")), Capturing::attend)
    }

    /// Lets another process restart the WAL, which asks for it and has its WRITE lock, until [`Log::come_back`] with the number that is returned; `None` if it
    /// may not be now. Blocks on file I/O.
    pub fn step_aside(&self) -> Option<u64> {
        let _later = later();
        self.capturing()?.step_aside()
    }

    /// Nobody has the WRITE lock for which [`Log::step_aside`] gave that number: the other process is gone, whatever became of it.
    pub fn is_alone_aside(&self, which: u64) -> bool {
        let _later = later();
        self.capturing().is_none_or(|capturing| capturing.is_alone_aside(which))
    }

    /// The other process is done, or gone. With the salts that the WAL has now, if it says so under its WRITE lock. Blocks on file I/O.
    pub fn come_back(&self, which: u64, now: Option<Salts>) {
        let _later = later();
        if let Some(capturing) = self.capturing() {
            capturing.come_back(which, now);
        }
    }

    /// The store does not answer: what is still to be read from a database without a WAL is given up where it keeps other processes from
    /// writing. Blocks on file I/O.
    pub fn let_writers_by(&self) {
        let _later = later();
        if let Some(capturing) = self.capturing() {
            capturing.let_writers_by();
        }
    }

    fn capturing(&self) -> Option<Arc<dyn Capturing>> {
        self.capturing.get().and_then(Weak::upgrade)
    }
}
