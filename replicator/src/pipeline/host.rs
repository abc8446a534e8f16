//! Decides how a database is replicated when it is opened, and starts its task.
//!
//! Owns the runtime, and the rule that two databases of one process do not share a replica. Nothing here waits for a network.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use replvfs_vfs::host::{Host, OpenError, OpenRequest, Replica};
use replvfs_vfs::log::Log;
use replvfs_vfs::types::UnixMillis;
use tokio::runtime::{Builder, Runtime};

use super::owner::{self, Ownership};
use super::replica::DatabaseReplica;
use super::shared::{self, Shared};
use super::task::{Plan, Task};
use crate::config::{Config, Settings, Target, is_immutable};
use crate::store::{Store, StoreOptions};

/// The replicating side of one registered VFS.
#[derive(Debug)]
pub(crate) struct ReplicatingHost {
    config: Config,
    databases: Mutex<Databases>,
}

#[derive(Debug, Default)]
struct Databases {
    settings: HashMap<PathBuf, Settings>,
    /// Which database has which replica, by [`Store::place`].
    replicas: HashMap<String, PathBuf>,
}

impl ReplicatingHost {
    pub(crate) fn new(config: Config) -> ReplicatingHost {
        ReplicatingHost {
            config,
            databases: Mutex::default(),
        }
    }

    fn try_open(&self, request: &OpenRequest<'_>, log: &Arc<Log>) -> Result<Option<Arc<dyn Replica>>, String> {
        let path = request.path;
        if is_immutable(request.uri_parameters) {
            return Ok(None);
        }
        let settings = Settings::resolve(&self.config, path, request.uri_parameters);
        let Some(settings) = settings.map_err(|error| about(path, &error))? else {
            if self.config.make_default {
                return Ok(None);
            }
            return Err(about(
                path,
                &"no replica is set: add replica=s3://bucket/app (or another store) to its URI, or set REPLVFS_REPLICA",
            ));
        };
        let store = match &settings.target {
            Target::Uri(uri) => Store::open(uri, &store_options()).map_err(|error| about(path, &error))?,
            Target::Operator(operator) => Store::from_operator(operator.clone()),
        };
        let mut databases = self.databases.lock().unwrap_or_else(PoisonError::into_inner);
        let place = store.place().to_owned();
        if let Some(other) = databases.replicas.get(&place).filter(|other| *other != path) {
            return Err(about(
                path,
                &format_args!(
                    "the replica {} already belongs to {}: give each database its own, for example with {{name}} in the replica",
                    store.replica(),
                    other.display()
                ),
            ));
        }
        let replica = start(path, &settings, store, log).map_err(|error| about(path, &error))?;
        databases.replicas.insert(place, path.to_owned());
        databases.settings.insert(path.to_owned(), settings);
        Ok(Some(replica))
    }

    fn try_reopen(&self, request: &OpenRequest<'_>) -> Result<(), String> {
        let databases = self.databases.lock().unwrap_or_else(PoisonError::into_inner);
        match databases.settings.get(request.path) {
            Some(settings) => settings
                .agree(request.path, request.uri_parameters)
                .map_err(|error| about(request.path, &error)),
            None => Ok(()),
        }
    }
}

impl Host for ReplicatingHost {
    fn open(&self, request: &OpenRequest<'_>, log: &Arc<Log>) -> Result<Option<Arc<dyn Replica>>, OpenError> {
        self.try_open(request, log).map_err(OpenError)
    }

    fn reopen(&self, request: &OpenRequest<'_>, _replica: &Arc<dyn Replica>) -> Result<(), OpenError> {
        self.try_reopen(request).map_err(OpenError)
    }

    fn now(&self) -> UnixMillis {
        shared::now()
    }
}

fn about(path: &Path, reason: &dyn std::fmt::Display) -> String {
    format!("cannot replicate {}: {reason}", path.display())
}

/// The task repeats a call for ever and reports it from the first failure on, so that few attempts are made out of its sight.
fn store_options() -> StoreOptions {
    StoreOptions {
        retries: 1,
        ..StoreOptions::default()
    }
}

fn start(path: &Path, settings: &Settings, store: Store, log: &Arc<Log>) -> Result<Arc<dyn Replica>, String> {
    let shared = Arc::new(Shared::new(Arc::clone(log), store, path.display().to_string()));
    let plan = Plan {
        flush_interval: settings.flush_interval,
        segment_size: settings.segment_size,
        folder: path.parent().unwrap_or(Path::new("/")).to_owned(),
        lock_file: owner::lock_file(path),
    };
    // A file that is yet to be made has no other owner, and perhaps will not be made.
    let ownership = if path.exists() {
        Ownership::take(&plan.lock_file)
    } else {
        Ok(None)
    };
    let ownership = ownership.map_err(|error| format!("locking {} failed: {error}", plan.lock_file.display()))?;
    shared.standby(path.exists() && ownership.is_none());
    spawn(runtime()?, Arc::clone(&shared), plan, ownership);
    Ok(Arc::new(DatabaseReplica::new(
        shared,
        settings.timeout,
        settings.close_timeout,
    )))
}

/// Starts the task, and somebody who notices when it dies of a bug.
pub(super) fn spawn(runtime: &tokio::runtime::Handle, shared: Arc<Shared>, plan: Plan, ownership: Option<Ownership>) {
    let task = runtime.spawn(Task::new(Arc::clone(&shared), plan, ownership).run());
    runtime.spawn(async move {
        if let Err(died) = task.await {
            shared.fail(&format!("its task died, which is a bug in replvfs: {died}"));
        }
    });
}

/// One for the process, made when it is first needed and never ended: uploads outlive the connections.
fn runtime() -> Result<&'static tokio::runtime::Handle, String> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("replvfs-rt")
            .enable_all()
            .build()
            .map_err(|error| format!("its threads cannot be started ({error}): check the limits of the process"))
    });
    made.as_ref().map(Runtime::handle).map_err(Clone::clone)
}
