//! Reading a replica without restoring it: the side of [`replvfs_vfs::remote`] that has the pages.
//!
//! `settings` (what a URI asks for) → `connection` (what one connection sees) → `replica` (what all of them share: what is newest) → `line` (where each page
//! of each state is) → `blocks` (fetching) → `cache`.

mod ahead;
mod blocks;
mod cache;
mod connection;
mod kept;
mod line;
mod replica;
pub(crate) mod settings;
#[cfg(test)]
mod tests;
#[cfg(feature = "testing")]
pub(crate) mod unthreaded;

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use replvfs_vfs::host::OpenError;
use replvfs_vfs::remote::{Remote, RemoteHost, RemoteRequest};
use tokio::runtime::{Builder, Runtime};

use crate::config::{Beneath, Config};
use crate::history::Target;
use crate::metrics::Metrics;
use crate::pipeline::waiting::answer;
use crate::store::{Store, StoreOptions};
use connection::Connection;
use kept::Kept;
use replica::Replica;
use settings::Settings;

type Place = (String, Duration);

/// The replicas that one registered VFS reads.
#[derive(Debug)]
pub(crate) struct ReadingHost {
    config: Config,
    metrics: Metrics,
    /// Made when it is first needed and never ended.
    runtime: OnceLock<Result<Runtime, String>>,
    /// By [`Store::place`], and the patience that its requests have. They live as long as a connection, and the last few for a while longer.
    replicas: Mutex<Vec<(Place, Weak<Replica>)>>,
    kept: Kept,
}

impl ReadingHost {
    pub(crate) fn new(config: Config, metrics: Metrics) -> ReadingHost {
        ReadingHost {
            config,
            metrics,
            runtime: OnceLock::new(),
            replicas: Mutex::default(),
            kept: Kept::default(),
        }
    }

    fn runtime(&self) -> Result<&tokio::runtime::Handle, String> {
        let made = self.runtime.get_or_init(|| {
            Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name("replvfs-remote")
                .enable_all()
                .build()
                .map_err(|error| format!("its threads cannot be started ({error}): check the limits of the process"))
        });
        made.as_ref().map(Runtime::handle).map_err(Clone::clone)
    }

    fn try_open(&self, request: &RemoteRequest<'_>) -> Result<Connection, String> {
        let beneath = self.config.beneath(Path::new(request.name));
        let beneath = beneath.map_err(|error| error.to_string())?;
        let settings = Settings::from_uri(request.name, request.uri_parameters, beneath.given.timeout)?;
        let store = self.store(&settings, &beneath, request.name)?;
        store.counted_by(&self.metrics);
        self.metrics.serve(self.runtime()?);
        let replica = self.replica(store, &settings)?;
        let (asked, target) = (Arc::clone(&replica), settings.target);
        let found = answer(self.runtime()?, settings.timeout, |_| async move {
            match target {
                Target::Newest => asked.look_to_open().await,
                target => asked.state_at(target).await,
            }
        });
        let of = || format!("the replica {}", replica.store().replica());
        let state = match found {
            Ok(Ok(state)) => state,
            Ok(Err(error)) => return Err(format!("{}: {error}", of())),
            Err(why) => return Err(format!("{} {why}", of())),
        };
        Ok(Connection::new(replica, self.kept.clone(), state, &settings))
    }

    fn store(&self, settings: &Settings, beneath: &Beneath, name: &str) -> Result<Store, String> {
        let set_elsewhere = || {
            let replica = beneath.given.replica.as_ref()?;
            Some(crate::config::replica_of(replica, name))
        };
        let uri = match (&settings.replica, &self.config.operator) {
            (Some(replica), _) => replica.clone(),
            (None, Some(operator)) => return Ok(Store::from_operator(operator.clone())),
            (None, None) => set_elsewhere().ok_or(
                "no replica is set: add replica=s3://bucket/app (or another store) to its URI, set REPLVFS_REPLICA, or name the database in the file of \
                 REPLVFS_CONFIG",
            )??,
        };
        // The patience of who reads is a setting of its own; a request that hangs can be sent once more within it.
        let request = settings.timeout / 2;
        let options = StoreOptions {
            request_timeout: request,
            transfer_timeout: request,
            ..StoreOptions::reading()
        };
        let (uri, keys) = match beneath.has_table() {
            true => (uri.clone(), beneath.store.for_replica(&uri)),
            // The name before the `?` need not be that of a database.
            false => self.config.completed(&uri).map_err(|error| error.to_string())?,
        };
        Store::open_with(&uri, &keys, &options).map_err(|error| error.to_string())
    }

    /// One for all connections to the same place that have the same patience.
    fn replica(&self, store: Store, settings: &Settings) -> Result<Arc<Replica>, String> {
        let runtime = self.runtime()?.clone();
        let mut replicas = self.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        replicas.retain(|(_, replica)| replica.strong_count() > 0);
        let place = (store.place().to_owned(), settings.timeout);
        let mut known = replicas.iter().filter(|(known, _)| *known == place);
        if let Some(replica) = known.find_map(|(_, replica)| replica.upgrade()) {
            replica.blocks().raise(settings.page_cache);
            return Ok(replica);
        }
        let replica = Arc::new(Replica::new(store, runtime, settings.page_cache, &self.metrics));
        replicas.push((place, Arc::downgrade(&replica)));
        Ok(replica)
    }
}

impl RemoteHost for ReadingHost {
    fn open(&self, request: &RemoteRequest<'_>) -> Result<Box<dyn Remote>, OpenError> {
        match self.try_open(request) {
            Ok(connection) => Ok(Box::new(connection)),
            Err(problem) => Err(OpenError(problem)),
        }
    }

    fn after_fork(&self) -> Arc<dyn RemoteHost> {
        Arc::new(ReadingHost::new(self.config.clone(), self.metrics.after_fork()))
    }
}
