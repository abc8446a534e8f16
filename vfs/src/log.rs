//! The segment log: committed transactions in memory, in order, between the commit that wrote them and
//! the upload that makes them safe.
//!
//! Owns the numbering of transactions and the acknowledged txid. Leaves to the capture what a commit is,
//! and to the replica when and how to upload.

use std::time::Duration;

use crate::snapshot::Snapshot;
use crate::types::{PageSize, Pgno, Position, Txid, UnixMillis};

/// Where a history, or a part of it, starts: the whole database at one txid.
#[derive(Debug)]
pub struct Base {
    /// The transaction whose state this is.
    pub txid: Txid,
    /// Its place in the WAL.
    pub position: Position,
    /// When it was taken.
    pub taken_at: UnixMillis,
    /// How it follows what the log held before.
    pub continuity: Continuity,
    /// The content.
    pub snapshot: Snapshot,
}

/// How a [`Base`] follows the transactions before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continuity {
    /// Nothing came before it in this process.
    First,
    /// It is the state after the transaction with its own txid: an earlier base could not be read to its end.
    Continued,
    /// The database changed in ways that were not captured: its state is not that of the transaction before it plus one commit.
    Broken,
}

/// A committed transaction.
#[derive(Debug)]
pub struct Transaction {
    /// Its number.
    pub txid: Txid,
    /// When it was seen to commit.
    pub committed_at: UnixMillis,
    /// Bytes a page.
    pub page_size: PageSize,
    /// Pages in the database after it.
    pub page_count: u32,
    /// The place in the WAL before its first frame: that of the transaction before it, or frame 0 after a restart of the WAL.
    pub start: Position,
    /// The place in the WAL behind its commit frame.
    pub end: Position,
    frames: (),
}

impl Transaction {
    /// WAL bytes of the transaction, frame headers included.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        0
    }

    /// Calls `visit` with the newest version of every page that the transaction wrote, in ascending page order,
    /// after every frame was checked against the checksum chain from `start` to `end`. The lock page is never among them,
    /// nor is a page beyond `page_count`. May read the WAL file: blocks.
    ///
    /// # Errors
    ///
    /// [`FrameError::Chain`] when the frames are not the ones that were committed; what `visit` returns otherwise.
    pub fn for_each_page<E: From<FrameError>>(
        &self,
        _visit: impl FnMut(Pgno, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        Ok(())
    }
}

/// Why the frames of a transaction cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The bytes are not those that were committed.
    #[error("frame {frame} of the WAL does not continue the checksum chain")]
    Chain {
        /// The first frame that does not fit.
        frame: u32,
    },
    /// The WAL could not be read back.
    #[error("reading the WAL back failed with SQLite code {code}")]
    Io {
        /// The extended result code.
        code: i32,
    },
}

/// What the replica takes out of the log, in order.
#[derive(Debug)]
pub enum Batch {
    /// A new base: an image is due.
    Base(Box<Base>),
    /// Consecutive transactions of one page size, at least one.
    Transactions(Vec<Transaction>),
}

/// What is waiting in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pending {
    /// Transactions and bases that were not taken yet.
    pub items: usize,
    /// Their WAL bytes.
    pub wal_bytes: u64,
}

/// The log of one database. All methods may be called from any thread.
#[derive(Debug)]
pub struct Log {}

impl Log {
    /// Asks for one [`Replica::wake`](crate::host::Replica::wake) when there is anything to take, or when at least
    /// `wal_bytes` bytes wait, whichever the caller chose: `0` means anything. Returns `true` at once, and arms nothing,
    /// when that is already so.
    pub fn arm(&self, _wal_bytes: u64) -> bool {
        false
    }

    /// What waits to be taken.
    pub fn pending(&self) -> Pending {
        Pending::default()
    }

    /// Takes the oldest item: a base alone, or transactions until their WAL bytes pass `wal_bytes` (at least one).
    pub fn take(&self, _wal_bytes: u64) -> Option<Batch> {
        None
    }

    /// The newest captured transaction; `None` before the first base.
    pub fn last_txid(&self) -> Option<Txid> {
        None
    }

    /// The newest transaction that is known to be restorable from the store.
    pub fn acked(&self) -> Option<Txid> {
        None
    }

    /// Everything up to `txid` is restorable from the store. Wakes whoever waits for it.
    pub fn acknowledge(&self, _txid: Txid) {}

    /// Replication cannot go on (fenced, damaged capture): waiters are told `reason`; captured transactions are dropped from
    /// now on, so that memory stays bounded.
    pub fn fail(&self, _reason: String) {}

    /// Why replication stopped, if it did.
    pub fn failure(&self) -> Option<String> {
        None
    }

    /// Waits until `txid` is acknowledged, the log has failed, or the time is over; `true` if it is acknowledged.
    pub fn wait_acked(&self, _txid: Txid, _timeout: Duration) -> bool {
        false
    }

    /// Asks the capture for a new base at the next opportunity: an image could not be made from the last one.
    pub fn request_base(&self) {}
}
