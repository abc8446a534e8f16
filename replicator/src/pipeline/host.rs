//! Decides how a database is replicated when it is opened, and starts its task.
//!
//! Owns the runtime, and the rule that two databases of one process do not share a replica. Nothing here waits for a network, but
//! `missing` and `behind`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use replvfs_vfs::held::DatabaseFile;
use replvfs_vfs::host::{Host, OpenError, OpenRequest, Replica};
use replvfs_vfs::log::Log;
use replvfs_vfs::types::UnixMillis;
use tokio::runtime::{Builder, Runtime};

use super::due::Rule;
use super::meters::Meters;
use super::neighbours::{self, Neighbours};
use super::replica::{DatabaseReplica, Patience};
use super::shared::{self, Shared};
use super::task::{Plan, Task};
use super::upkeep::Schedule;
use super::{behind, missing};
use crate::config::{Config, OnFenced, Restore, Settings, Target, is_immutable, of_ours};
use crate::local_state::state_file;
use crate::metrics::Metrics;
use crate::store::{Store, StoreOptions};

/// The replicating side of one registered VFS.
#[derive(Debug)]
pub(crate) struct ReplicatingHost {
    config: Config,
    metrics: Metrics,
    /// Made when it is first needed and never ended: uploads outlive the connections.
    runtime: OnceLock<Result<Runtime, String>>,
    databases: Mutex<Databases>,
}

#[derive(Debug, Default)]
struct Databases {
    open: HashMap<PathBuf, Entry>,
    /// Which database has which replica, by [`Store::place`].
    replicas: HashMap<String, PathBuf>,
}

#[derive(Debug)]
struct Entry {
    settings: Settings,
    shared: Arc<Shared>,
}

impl ReplicatingHost {
    pub(crate) fn new(config: Config, metrics: Metrics) -> ReplicatingHost {
        ReplicatingHost {
            config,
            metrics,
            runtime: OnceLock::new(),
            databases: Mutex::default(),
        }
    }

    fn try_open(&self, request: &OpenRequest<'_>, log: &Arc<Log>) -> Result<Option<Arc<dyn Replica>>, String> {
        let path = request.path;
        if is_immutable(request.uri_parameters) {
            return Ok(None);
        }
        let settings = match request.by_default {
            true => Settings::resolve_default(&self.config, path, request.uri_parameters),
            false => Settings::resolve(&self.config, path, request.uri_parameters),
        };
        let Some(settings) = settings.map_err(|error| about(path, &error))? else {
            if request.by_default {
                warn_if_known(path);
                return Ok(None);
            }
            return Err(about(
                path,
                &"no replica is set: add replica=s3://bucket/app (or another store) to its URI, set REPLVFS_REPLICA, or name the database in the file of \
                 REPLVFS_CONFIG",
            ));
        };
        let store = match &settings.target {
            Target::Uri(uri, keys) => {
                Store::open_with(uri, keys, &store_options(&self.config)).map_err(|error| about(path, &error))?
            }
            Target::Operator(operator) => Store::from_operator(operator.clone()),
        };
        let place = store.place().to_owned();
        self.reserve(path, &store)?;
        store.counted_by(&self.metrics);
        let started = self.runtime().and_then(|runtime| {
            start(
                runtime,
                request.file,
                &settings,
                store,
                log,
                (self.config.images, &self.metrics),
            )
        });
        let (shared, replica) = match started {
            Ok(started) => started,
            Err(error) => {
                self.databases().replicas.remove(&place);
                return Err(about(path, &error));
            }
        };
        self.databases()
            .open
            .insert(path.to_owned(), Entry { settings, shared });
        Ok(Some(replica))
    }

    fn runtime(&self) -> Result<&tokio::runtime::Handle, String> {
        let made = self.runtime.get_or_init(|| {
            Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name("replvfs-rt")
                .enable_all()
                .build()
                .map_err(|error| format!("its threads cannot be started ({error}): check the limits of the process"))
        });
        made.as_ref().map(Runtime::handle).map_err(Clone::clone)
    }

    /// The lock is not held while a store is asked.
    fn databases(&self) -> MutexGuard<'_, Databases> {
        self.databases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the replica to the database, if it is nobody else's.
    fn reserve(&self, path: &Path, store: &Store) -> Result<(), String> {
        let mut databases = self.databases();
        match databases.replicas.get(store.place()).filter(|other| *other != path) {
            Some(other) => Err(about(
                path,
                &format_args!(
                    "the replica {} already belongs to {}: give each database its own, for example with {{name}} in the replica",
                    store.replica(),
                    other.display()
                ),
            )),
            None => {
                databases.replicas.insert(store.place().to_owned(), path.to_owned());
                Ok(())
            }
        }
    }

    fn try_reopen(&self, request: &OpenRequest<'_>) -> Result<(), String> {
        let shared = {
            let databases = self.databases();
            let Some(entry) = databases.open.get(request.path) else {
                return Ok(());
            };
            let parameters = match request.by_default {
                true => &of_ours(request.uri_parameters),
                false => request.uri_parameters,
            };
            entry
                .settings
                .agree(request.path, parameters)
                .map_err(|error| about(request.path, &error))?;
            Arc::clone(&entry.shared)
        };
        shared.opened();
        Ok(())
    }
}

impl Host for ReplicatingHost {
    fn open(&self, request: &OpenRequest<'_>, log: &Arc<Log>) -> Result<Option<Arc<dyn Replica>>, OpenError> {
        self.try_open(request, log).map_err(OpenError)
    }

    fn reopen(&self, request: &OpenRequest<'_>, _replica: &Arc<dyn Replica>) -> Result<(), OpenError> {
        self.try_reopen(request).map_err(OpenError)
    }

    fn after_fork(&self) -> Arc<dyn Host> {
        tracing::info!("in a child of fork(): what it opens is replicated by itself");
        Arc::new(ReplicatingHost::new(self.config.clone(), self.metrics.after_fork()))
    }

    fn now(&self) -> UnixMillis {
        shared::now()
    }
}

/// What was replicated once, and is passed through now, may have been left out by mistake.
fn warn_if_known(path: &Path) {
    if state_file(path).exists() {
        let message = format!(
            "{} was replicated before, and is not now: no replica is set for it (replvfs check-config --database tells why)",
            path.display()
        );
        replvfs_vfs::warning!(; "{message}");
    }
}

fn about(path: &Path, reason: &dyn std::fmt::Display) -> String {
    format!("cannot replicate {}: {reason}", path.display())
}

/// The task repeats a call for ever and reports it from the first failure on, so that few attempts are made out of its sight.
fn store_options(config: &Config) -> StoreOptions {
    let usual = StoreOptions::default();
    let (request_timeout, transfer_timeout) = config
        .timeouts
        .unwrap_or((usual.request_timeout, usual.transfer_timeout));
    StoreOptions {
        retries: 1,
        request_timeout,
        transfer_timeout,
        ..usual
    }
}

type Started = (Arc<Shared>, Arc<dyn Replica>);

fn start(
    runtime: &tokio::runtime::Handle,
    file: &DatabaseFile,
    settings: &Settings,
    store: Store,
    log: &Arc<Log>,
    (images, metrics): (Rule, &Metrics),
) -> Result<Started, String> {
    let path = file.path();
    match settings.restore {
        Restore::Never => {}
        Restore::IfBehind if !missing::is_new(path) => {
            behind::forward_if_behind(runtime, file, &store, settings.timeout)?;
        }
        Restore::IfMissing | Restore::IfBehind => {
            missing::restore_if_missing(runtime, path, &store, settings.timeout)?;
        }
    }
    let mut shared = Shared::new(Arc::clone(log), store, path);
    shared.neighbours = Neighbours::of(path);
    shared.meters = Meters::new(metrics, path);
    let shared = Arc::new(shared);
    let plan = Plan {
        flush_interval: settings.flush_interval,
        segment_size: settings.segment_size,
        folder: path.parent().unwrap_or(Path::new("/")).to_owned(),
        upkeep: Schedule::new(settings.upkeep, settings.retention),
        images,
    };
    if settings.on_fenced == OnFenced::Stop {
        shared.refusal.stop();
    }
    // Whoever replicates it: no process of this machine writes.
    let is_fenced = shared.refusal.stops() && !missing::is_new(path) && shared.local.is_noted_as_fenced();
    if missing::is_new(path) {
        // Perhaps the file will not be made: who owns it is asked when somebody reads it.
        shared.local.is_new();
        shared.opened_new();
    } else {
        shared.opened();
    }
    if let Some(reason) = log.failure() {
        return Err(reason);
    }
    if is_fenced {
        shared.stays_fenced();
    }
    spawn(runtime, Arc::clone(&shared), plan);
    runtime.spawn(neighbours::serve(Arc::clone(&shared)));
    let patience = Patience {
        timeout: settings.timeout,
        close_timeout: settings.close_timeout,
        wal_limit: settings.wal_limit,
        durability: settings.durability,
        on_timeout: settings.on_timeout,
    };
    let replica = DatabaseReplica::new(Arc::clone(&shared), patience, Some(runtime.clone()));
    Ok((shared, Arc::new(replica)))
}

/// Starts the task, and somebody who notices when it dies of a bug.
pub(super) fn spawn(runtime: &tokio::runtime::Handle, shared: Arc<Shared>, plan: Plan) {
    let task = runtime.spawn(Task::new(Arc::clone(&shared), plan).run());
    runtime.spawn(async move {
        if let Err(died) = task.await {
            shared.fail(&format!("its task died, which is a bug in replvfs: {died}"));
            shared.let_go();
        }
    });
}
