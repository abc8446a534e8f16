//! stub
use crate::api::SqliteApi;
use crate::host::Host;
use std::sync::Arc;

/// How a VFS is registered.
pub struct Registration {
    /// The VFS's name, without NUL.
    pub name: String,
    /// Whether databases that name no VFS use it.
    pub make_default: bool,
    /// Bytes that one open transaction may take in memory before it is read back from the WAL instead.
    pub transaction_memory: u64,
    /// Who replicates.
    pub host: Arc<dyn Host>,
}

/// The VFS could not be registered.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct RegisterError(pub String);

/// Registers the VFS, over the one that is the default now. It stays for the life of the process.
///
/// # Errors
///
/// When a VFS of that name exists, or SQLite refuses.
pub fn register(_api: SqliteApi, _registration: Registration) -> Result<(), RegisterError> {
    Err(RegisterError("not built".into()))
}
