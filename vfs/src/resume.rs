//! Where a history is taken up again after this process, or the one before it, has ended: what the store holds, and how the database on this
//! machine goes on from there. Owns no file: the replicating side keeps these between processes.

pub use crate::capture::Fingerprint;
use crate::types::{Position, Salts, Txid};

/// A transaction, and its place in the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Its number.
    pub txid: Txid,
    /// Behind its commit frame. The default position for a transaction that was not written through a WAL.
    pub position: Position,
}

/// What the local database must prove to follow from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// The newest transaction that is known to be in the store.
    pub stored: Mark,
    /// The newest note of [`Replica::left`](crate::host::Replica::left), if it is of that transaction or a later one.
    pub left: Option<Left>,
}

/// A moment at which the database left a WAL behind: everything up to `mark` is in the database file, and what follows is elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// The newest transaction at that moment, with the end of the old WAL.
    pub mark: Mark,
    /// How what follows is recognized.
    pub next: Next,
}

/// What follows directly on a WAL that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A WAL with these salts, from its first frame on. Until its header is written the old one is still there.
    Wal(Salts),
    /// No WAL: the database file itself, as long as it is this one, unchanged.
    File(Fingerprint),
}
