//! What the VFS asks of the side that replicates. The traits are the whole border: this crate knows no
//! runtime, no store and no clock but what comes through them.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use crate::held::DatabaseFile;
use crate::log::Log;
use crate::resume::Left;
use crate::types::{Salts, Txid, UnixMillis};

/// One per registered VFS: decides how a database is replicated when it is opened.
///
/// Methods are called on the application's threads, and must not wait for the network.
pub trait Host: Send + Sync + 'static {
    /// The first connection of this process opens a database. `Ok(None)` lets it through unreplicated.
    ///
    /// # Errors
    ///
    /// The open fails with `SQLITE_CANTOPEN`; the message goes to `sqlite3_log` and to tracing.
    fn open(&self, request: &OpenRequest<'_>, log: &Arc<Log>) -> Result<Option<Arc<dyn Replica>>, OpenError>;

    /// A further connection opens a database that is already replicated in this process.
    ///
    /// # Errors
    ///
    /// As for [`Host::open`], also when the parameters contradict those of the first connection.
    fn reopen(&self, request: &OpenRequest<'_>, replica: &Arc<dyn Replica>) -> Result<(), OpenError>;

    /// The host for a child of `fork()`, in which nothing of this one may be used but what never changes. No thread of the parent's is there,
    /// and any mutex may be locked for ever.
    fn after_fork(&self) -> Arc<dyn Host>;

    /// The time that a commit is stamped with.
    fn now(&self) -> UnixMillis;
}

/// A database that is being opened.
#[derive(Debug)]
pub struct OpenRequest<'a> {
    /// The absolute path, as the base VFS resolved it.
    pub path: &'a Path,
    /// Every parameter of the file's URI, in its order, those of SQLite itself included.
    pub uri_parameters: &'a [(String, String)],
    /// It was not opened through the VFS of this name, but because that one stands in for the default VFS: nobody asked for replication.
    pub by_default: bool,
    /// The same file on the VFS underneath, for who wants it for himself before this process has it open.
    pub file: &'a DatabaseFile,
}

/// Why a database is not opened: one sentence that says what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(pub String);

/// Why a flush did not come through: one sentence that says what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct FlushError {
    reason: String,
    may_pass: bool,
}

impl FlushError {
    /// It would be in vain to wait.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> FlushError {
        FlushError {
            reason: reason.into(),
            may_pass: false,
        }
    }

    /// It may be otherwise in a moment: who has time left tries again.
    #[must_use]
    pub fn passing(reason: impl Into<String>) -> FlushError {
        FlushError {
            reason: reason.into(),
            may_pass: true,
        }
    }

    /// Whether it is worth trying again.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        self.may_pass
    }
}

/// When a commit returns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// When SQLite says so. The upload follows.
    #[default]
    Async,
    /// When the transaction is in the store. It is committed on this machine before: others see it while it is waited for, and when it could not be
    /// confirmed in time, the statement fails with `SQLITE_IOERR`, and the transaction stays.
    Remote,
    /// When the transaction is in the store, and nobody sees it before. When that cannot be had in time, the statement fails with `SQLITE_IOERR`, and the
    /// transaction is rolled back.
    Strict,
}

impl Durability {
    /// As URIs and PRAGMAs name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Durability::Async => "async",
            Durability::Remote => "remote",
            Durability::Strict => "strict",
        }
    }

    /// The level of that name, in any case; `None` if there is none.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Durability> {
        let all = [Durability::Async, Durability::Remote, Durability::Strict];
        all.into_iter().find(|level| level.name().eq_ignore_ascii_case(name))
    }
}

/// The process that replicates a database has stepped aside until this is over, or dropped.
pub trait Aside: Send {
    /// The locks are let go for which it was asked, and the WRITE lock is still held. With the salts that the WAL has now, if they are known. Waits for a moment until
    /// the other process keeps the WAL again.
    fn over(self: Box<Self>, now: Option<Salts>);
}

/// What came of [`Replica::ask_aside`].
pub enum AskedAside {
    /// The other process keeps the WAL no more, for a moment.
    Aside(Box<dyn Aside>),
    /// It does not step aside now, or is not there: worth another question.
    No,
    /// It is there, and was waited for in vain.
    Silent,
}

/// The replication of one database, as its connections see it.
pub trait Replica: Any + Send + Sync {
    /// The log has got something that the replica asked to be told of (see [`Log::arm`]). Called inside a commit:
    /// never blocks, never fails.
    fn wake(&self);

    /// Something that is waited for in the log may have come: it was acknowledged, its numbers became final, it asks for something, it failed. Never
    /// blocks, never fails.
    fn progressed(&self) {}

    /// Waits until all that is committed in the database is in the store, and tells the newest transaction that is. Calls `attend` first, and again whenever the
    /// log asks for a base or a proof meanwhile: where a connection has the database for itself nobody but the one that waits can give it. Its error ends the
    /// wait, but for one that may pass. Where another process replicates the database that one is asked, and `attend` is not called.
    ///
    /// # Errors
    ///
    /// When that did not happen within the replica's timeout, or cannot happen.
    fn flush(&self, attend: &mut dyn FnMut() -> Result<(), FlushError>) -> Result<Option<Txid>, FlushError>;

    /// The level of a connection that is opened with these parameters of its URI, as long as it says nothing else.
    fn durability(&self, _uri_parameters: &[(String, String)]) -> Durability {
        Durability::Async
    }

    /// [`Replica::flush`], for a commit that returns when it is in the store. Others that wait share the upload.
    ///
    /// # Errors
    ///
    /// The commit fails with `SQLITE_IOERR`. It stays, and is uploaded later.
    fn confirm(&self, attend: &mut dyn FnMut() -> Result<(), FlushError>) -> Result<(), FlushError> {
        self.flush(attend).map(|_| ())
    }

    /// Waits until a transaction that is not committed yet is in the store, alone: all before it is first. `propose` puts it into the log
    /// ([`Log::push_tentative`]), or tells that this cannot be now; it may be called again. Returns its number: from then on the caller commits it, or abandons it.
    ///
    /// # Errors
    ///
    /// The transaction is to be rolled back. It may be in the store all the same: then [`Log::abandoned`] names it.
    fn hold(
        &self,
        _attend: &mut dyn FnMut() -> Result<(), FlushError>,
        _propose: &mut dyn FnMut() -> Result<Option<Txid>, FlushError>,
    ) -> Result<Txid, FlushError> {
        Err(FlushError::new("its replica cannot hold commits back"))
    }

    /// What [`Replica::hold`] waited for was committed: to be remembered before it returns, without a sync. Called with locks of the capture held.
    fn finished(&self) {}

    /// Waits until this transaction is in the store, and hurries nothing. As for [`Replica::flush`] otherwise.
    ///
    /// # Errors
    ///
    /// When that did not happen within the replica's timeout, or cannot happen.
    fn wait(&self, txid: Txid, attend: &mut dyn FnMut() -> Result<(), FlushError>) -> Result<Option<Txid>, FlushError>;

    /// Whether this process replicates the database, so that it is to keep the WAL.
    fn owns(&self) -> bool;

    /// Whether this process replicates the database from here on, since no other does any more.
    fn take_over(&self) -> bool;

    /// Where another process replicates the database, and keeps its WAL: asks it to step aside, so that a checkpoint of this one can restart the WAL.
    /// May wait for a moment for that process, not for the network.
    fn ask_aside(&self) -> AskedAside {
        AskedAside::No
    }

    /// The store does not answer: whatever is kept for it is kept for long.
    fn is_away(&self) -> bool;

    /// The upload is worth being hurried: a WAL cannot be restarted before. Never blocks.
    fn hurry(&self);

    /// Waits, for `close_timeout` at most, until all that is in the log is in the store; `true` if it is.
    fn drain(&self) -> bool;

    /// The database leaves a WAL behind: to be remembered beyond the end of this process before it returns, without a sync. Called with
    /// locks of the capture held: local file I/O only. `false` when it could not be remembered.
    fn left(&self, left: &Left) -> bool;

    /// The last connection of this process has closed.
    fn closed(&self);

    /// While that was done another one has opened the database, which [`Host::reopen`] may have told before [`Replica::closed`].
    fn opened(&self) {}

    /// Bytes to which a WAL may grow for the sake of a store that does not answer.
    fn wal_limit(&self) -> u64;

    /// How long a connection may be kept waiting at close, or when it wants the file for itself.
    fn close_timeout(&self) -> std::time::Duration;

    /// Whether write transactions are refused, with `SQLITE_READONLY`. Asked at each one, and with each write: an atomic, no lock, nothing that
    /// can panic. Once `true` it stays so: a transaction of which something was refused must not get anything through later.
    fn refuses_writes(&self) -> bool {
        false
    }

    /// JSON object for `PRAGMA replvfs_status`.
    fn status(&self) -> String;
}
