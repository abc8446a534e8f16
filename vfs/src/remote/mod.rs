//! A VFS that reads a database which is somewhere else: it has pages, and no file.
//!
//! Owns the C structures and what SQLite must be told so that it notices when the database under a connection is another one. Which pages there are, and
//! where they come from, is the business of who implements [`Remote`].
//!
//! What SQLite sees is a database that nobody can write, in a rollback-journal mode and without a journal, whose content changes between read
//! transactions at most.

mod file;
mod page_one;
mod vfs;

use std::sync::Arc;

pub use vfs::{Registered, RemoteRegistration, register};

use crate::host::OpenError;
use crate::types::{PageSize, Pgno, Txid};

/// One per registered VFS.
pub trait RemoteHost: Send + Sync + 'static {
    /// A connection opens a database. May wait for the network.
    ///
    /// # Errors
    ///
    /// The open fails with `SQLITE_CANTOPEN`; the message goes to `sqlite3_log` and to tracing.
    fn open(&self, request: &RemoteRequest<'_>) -> Result<Box<dyn Remote>, OpenError>;

    /// The host for a child of `fork()`, in which nothing of this one may be used but what never changes. No thread of the parent's is there,
    /// and any mutex may be locked for ever.
    fn after_fork(&self) -> Arc<dyn RemoteHost>;
}

/// A database that is being opened.
#[derive(Debug)]
pub struct RemoteRequest<'a> {
    /// The name before the URI's parameters, made absolute. It names nothing but a setting's `{name}`.
    pub name: &'a str,
    /// Every parameter of the file's URI, in its order, those of SQLite itself included.
    pub uri_parameters: &'a [(String, String)],
}

/// A state of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// In bytes.
    pub page_size: PageSize,
    /// Pages in the database. 0 is an empty one.
    pub page_count: u32,
    /// Views of one line are states of one history, in which another schema has another cookie.
    pub line: u64,
    /// Which of them.
    pub txid: Txid,
}

/// A page, or a point in time, that cannot be had: one sentence that says what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct RemoteError(pub String);

/// The database of one connection. Used by one thread at a time, and not always the same.
pub trait Remote: Send + 'static {
    /// What is seen now, or was seen by the last read transaction.
    fn view(&self) -> View;

    /// A read transaction begins: from here to [`end`](Self::end) the view stays what is returned.
    ///
    /// # Errors
    ///
    /// The statement fails with `SQLITE_IOERR_LOCK`.
    fn begin(&mut self) -> Result<View, RemoteError>;

    /// The read transaction is over.
    fn end(&mut self);

    /// Fills `page`, which is as long as the view's pages. The number is at most the view's page count. May wait for the network.
    ///
    /// # Errors
    ///
    /// The statement fails with `SQLITE_IOERR_READ`.
    fn read(&mut self, number: Pgno, page: &mut [u8]) -> Result<(), RemoteError>;

    /// Answers `PRAGMA replvfs_<name>`, outside of a read transaction or in one. `None` if there is no such one.
    ///
    /// # Errors
    ///
    /// The message is SQLite's error message.
    fn pragma(&mut self, name: &str, value: Option<&str>) -> Option<Result<String, RemoteError>>;
}
