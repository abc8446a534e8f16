//! Continuous replication for SQLite, from inside its VFS.
//!
//! [`register`] adds a VFS named `replvfs` to the SQLite that the program is linked with. A database that is opened through it
//! with a `replica` (in its URI, in the [`Config`], in the file of `REPLVFS_CONFIG`, or in `REPLVFS_REPLICA`) is replicated to that object store, commit by commit, in the background:
//!
//! ```no_run
//! replvfs::register(replvfs::Config::default())?;
//! // Then, in SQLite: file:app.db?vfs=replvfs&replica=s3://bucket/app
//! # Ok::<(), replvfs::Error>(())
//! ```
//!
//! A replica is read without restoring it through `replvfs-remote`, as of any transaction: `file:app.db?vfs=replvfs-remote&replica=s3://bucket/app&at=5 minutes ago`.
//!
//! The modules in the order of the data: [`config`] → `pipeline` → [`mod@format`] → [`store`] → [`history`] → [`restore`]; [`merge`] and [`prune`] work on what is
//! stored, [`mod@verify`] reads all of it.
#![forbid(unsafe_code)]

pub mod config;
mod error;
pub mod format;
pub mod guide;
pub mod history;
pub mod image;
pub mod local_state;
mod logs;
pub mod merge;
mod metrics;
mod outside;
mod pipeline;
pub mod prune;
mod remote;
mod replication;
pub mod restore;
mod shutdown;
pub mod store;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod testing;
pub mod time;
pub mod verify;

pub use config::Config;
pub use error::Error;
pub use replication::{FlushError, Replication};
pub use replvfs_vfs::shim::last_open_error;
pub use replvfs_vfs::types::Txid;
pub use shutdown::{ShutdownError, Unfinished, shutdown};

use std::sync::Arc;

use config::ConfigError;
use metrics::Metrics;

use replvfs_vfs::api::SqliteApi;
use replvfs_vfs::remote::RemoteRegistration;
use replvfs_vfs::shim::{self, Registration};

/// The size of one chunk of an image: about a millisecond of reading.
const READ_AT_ONCE_BYTES: u64 = format::CHUNK_BYTES as u64;

/// Adds the VFS, and one with `-remote` behind its name that reads replicas without restoring them, to the SQLite that the program is linked with. They stay
/// for the life of the process. The environment is read
/// now; no thread is started and nothing is connected before a database is opened.
///
/// # Errors
///
/// When a setting is wrong, or SQLite has a VFS of that name already.
#[cfg(feature = "linked")]
pub fn register(config: Config) -> Result<(), Error> {
    register_with(SqliteApi::linked(), config)
}

/// [`register`], with SQLite's functions from elsewhere: the loadable extension gets them from the program that loads it.
///
/// # Errors
///
/// As for [`register`].
pub fn register_with(api: SqliteApi, config: Config) -> Result<(), Error> {
    let config = config.with_environment(|name| std::env::var_os(name))?;
    if config.metrics_address().is_some() && !Metrics::has_endpoint() {
        return Err(ConfigError(
            "metrics is set, and this build has no endpoint for them: build replvfs with its feature prometheus, or leave it out".to_owned(),
        )
        .into());
    }
    if let Some(filter) = config.log_filter() {
        logs::install(filter.clone());
    }
    let metrics = Metrics::new(config.metrics_address());
    let memory = config.memory_limit_bytes() / 2;
    metrics.memory_limit(memory);
    let reading = RemoteRegistration {
        name: format!("{}-remote", config.vfs_name),
        host: Arc::new(remote::ReadingHost::new(config.clone(), metrics.clone())),
    };
    let registration = Registration {
        name: config.vfs_name.clone(),
        make_default: config.is_default(),
        transaction_memory: config.memory_limit_bytes() / 4,
        memory,
        read_at_once: READ_AT_ONCE_BYTES,
        host: Arc::new(pipeline::ReplicatingHost::new(config, metrics)),
    };
    // Before ours can be the default: temporary files of remote databases are the system's.
    let reading = replvfs_vfs::remote::register(api, reading)?;
    match shim::register(api, registration) {
        Ok(()) => reading.stay(),
        Err(error) => {
            // Both or none: whoever tries again finds both names free.
            reading.take_back();
            return Err(error.into());
        }
    }
    Ok(())
}
