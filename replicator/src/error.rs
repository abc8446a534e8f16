//! What the public functions of the crate return when they fail.

use replvfs_vfs::shim::RegisterError;

use crate::config::ConfigError;
use crate::format::FormatError;
use crate::restore::RestoreError;
use crate::store::StoreError;

/// Why a call into replvfs failed. The text is one line: what was being done, to what, and what helps.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// SQLite did not take the VFS.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The object store refused, or did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No database was restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The system does not start threads.
    #[error("replvfs cannot start threads ({0}): check the limits of the process")]
    Threads(std::io::Error),
    /// An object is not what it should be.
    #[error(transparent)]
    Format(#[from] FormatError),
}
