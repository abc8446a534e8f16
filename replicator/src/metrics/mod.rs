//! What is counted and measured, by the facade `metrics`: into the recorder that the program has installed, or into one of ours when an endpoint is asked for.
//!
//! Owns the names ([`names`]) and who gets the numbers. Handles are made when a database is opened, and a handle that nobody records does nothing. Leaves to the
//! pipeline, the store and the readers what the numbers are; [`endpoint`] shows them to Prometheus.
//!
//! Recorders have locks. A child of `fork()` leaves its parent's alone: it has a recorder of its own if there is an endpoint, and none else.

#[cfg(feature = "prometheus")]
pub(crate) mod endpoint;
mod names;

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, NoopRecorder, Recorder};
use tokio::runtime::Handle;

#[cfg(feature = "prometheus")]
use endpoint::Endpoint;
use names::{Kind, METRICS};
pub(crate) use names::{Outcome, Request};

const METADATA: Metadata<'static> = Metadata::new("replvfs", Level::INFO, Some("replvfs"));

/// Who gets the numbers of one process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Inner>);

struct Inner {
    target: Target,
    /// Those of a child of `fork()`, made by it.
    child: Mutex<Option<Metrics>>,
}

enum Target {
    /// Whatever the program has installed.
    Program,
    #[cfg(feature = "prometheus")]
    Endpoint(Box<Endpoint>),
    Nobody,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::to(Target::Nobody)
    }
}

impl Metrics {
    /// With an address: what is counted is shown there, and nowhere else.
    pub(crate) fn new(address: Option<SocketAddr>) -> Metrics {
        let metrics = match address {
            #[cfg(feature = "prometheus")]
            Some(address) => Metrics::to(Target::Endpoint(Box::new(Endpoint::new(address)))),
            _ => Metrics::to(Target::Program),
        };
        metrics.describe();
        metrics
    }

    fn to(target: Target) -> Metrics {
        Metrics(Arc::new(Inner {
            target,
            child: Mutex::default(),
        }))
    }

    /// Whether an endpoint can be had in this build.
    pub(crate) fn has_endpoint() -> bool {
        cfg!(feature = "prometheus")
    }

    /// For a child of `fork()`: the same for both of its hosts.
    pub(crate) fn after_fork(&self) -> Metrics {
        // Another thread of the child may be forking in turn: that one goes without, and waits for nobody.
        let Ok(mut child) = self.0.child.try_lock() else {
            return Metrics::default();
        };
        let made = child.get_or_insert_with(|| match &self.0.target {
            #[cfg(feature = "prometheus")]
            Target::Endpoint(endpoint) => Metrics::new(Some(endpoint.address())),
            Target::Program | Target::Nobody => Metrics::default(),
        });
        made.clone()
    }

    /// Opens the endpoint, if there is to be one and it is not open yet. Called by who begins to replicate a database or to read a replica, so that of several
    /// processes the one with something to show has it.
    pub(crate) fn serve(&self, runtime: &Handle) {
        match &self.0.target {
            #[cfg(feature = "prometheus")]
            Target::Endpoint(endpoint) => endpoint.serve(runtime),
            _ => {
                let _ = runtime;
            }
        }
    }

    /// What was measured so often is put together, so that it takes no more memory.
    fn gather(&self) {
        #[cfg(feature = "prometheus")]
        if let Target::Endpoint(endpoint) = &self.0.target {
            endpoint.gather();
        }
    }

    fn with<T>(&self, work: impl FnOnce(&dyn Recorder) -> T) -> T {
        match &self.0.target {
            Target::Program => metrics::with_recorder(work),
            #[cfg(feature = "prometheus")]
            Target::Endpoint(endpoint) => work(endpoint.recorder()),
            Target::Nobody => work(&NoopRecorder),
        }
    }

    fn describe(&self) {
        self.with(|recorder| {
            for metric in METRICS {
                let (name, unit) = (KeyName::from_const_str(metric.name), metric.unit);
                let help = metric.help.into();
                match metric.kind {
                    Kind::Counter => recorder.describe_counter(name, unit, help),
                    Kind::Gauge => recorder.describe_gauge(name, unit, help),
                    Kind::Histogram => recorder.describe_histogram(name, unit, help),
                }
            }
        });
    }

    fn counter(&self, name: &'static str, labels: &[Label]) -> Counter {
        let key = Key::from_parts(name, labels.to_vec());
        self.with(|recorder| recorder.register_counter(&key, &METADATA))
    }

    fn gauge(&self, name: &'static str, labels: &[Label]) -> Gauge {
        let key = Key::from_parts(name, labels.to_vec());
        self.with(|recorder| recorder.register_gauge(&key, &METADATA))
    }

    fn histogram(&self, name: &'static str, labels: &[Label]) -> Histogram {
        let key = Key::from_parts(name, labels.to_vec());
        self.with(|recorder| recorder.register_histogram(&key, &METADATA))
    }

    /// The numbers of a database.
    pub(crate) fn of_database(&self, path: &Path) -> DatabaseMetrics {
        let labels = [Label::new("database", shown(path))];
        let counter = |name| self.counter(name, &labels);
        let gauge = |name| self.gauge(name, &labels);
        DatabaseMetrics {
            open: gauge("replvfs_open"),
            owner: gauge("replvfs_owner"),
            failed: gauge("replvfs_failed"),
            fenced: gauge("replvfs_fenced"),
            suspended: gauge("replvfs_suspended"),
            trouble: gauge("replvfs_trouble"),
            txid: gauge("replvfs_txid"),
            acked: gauge("replvfs_acked_txid"),
            pending: gauge("replvfs_pending_transactions"),
            pending_bytes: gauge("replvfs_pending_bytes"),
            oldest_pending: gauge("replvfs_oldest_pending_timestamp_seconds"),
            wal_held: gauge("replvfs_wal_held_bytes"),
            captured: counter("replvfs_captured_transactions_total"),
            captured_bytes: counter("replvfs_captured_bytes_total"),
            uploaded: counter("replvfs_uploaded_transactions_total"),
            segments: counter("replvfs_uploaded_segments_total"),
            segment_bytes: counter("replvfs_uploaded_segment_bytes_total"),
            images: counter("replvfs_images_total"),
            image_chunks: counter("replvfs_image_chunks_total"),
            image_chunks_sent: counter("replvfs_image_chunks_sent_total"),
            last_image: gauge("replvfs_last_image_timestamp_seconds"),
            gaps: counter("replvfs_gaps_total"),
            errors: counter("replvfs_errors_total"),
            upkeep_errors: counter("replvfs_upkeep_errors_total"),
            pruned: counter("replvfs_pruned_objects_total"),
            pruned_bytes: counter("replvfs_pruned_bytes_total"),
            memory: self.gauge("replvfs_captured_memory_bytes", &[]),
        }
    }

    /// The requests to a store.
    pub(crate) fn of_store(&self, replica: &str) -> StoreMetrics {
        let replica = Label::new("replica", replica.to_owned());
        let kinds = Request::ALL.map(|kind| {
            let labels = [replica.clone(), Label::new("kind", kind.name())];
            let outcomes = kind.outcomes().iter().map(|outcome| {
                let mut labels = labels.to_vec();
                labels.push(Label::new("outcome", outcome.name()));
                (*outcome, self.counter("replvfs_store_requests_total", &labels))
            });
            OfKind {
                outcomes: outcomes.collect(),
                seconds: self.histogram("replvfs_store_request_duration_seconds", &labels),
            }
        });
        StoreMetrics {
            metrics: self.clone(),
            kinds,
            retries: self.counter("replvfs_store_retries_total", &[replica]),
            measured: Mutex::default(),
        }
    }

    /// The numbers of a replica that is read.
    pub(crate) fn of_reader(&self, replica: &str) -> ReaderMetrics {
        let labels = [Label::new("replica", replica.to_owned())];
        ReaderMetrics {
            hits: self.counter("replvfs_remote_cache_hits_total", &labels),
            misses: self.counter("replvfs_remote_cache_misses_total", &labels),
            fetched: self.counter("replvfs_remote_fetches_total", &labels),
            fetched_bytes: self.counter("replvfs_remote_fetched_bytes_total", &labels),
            cache_bytes: self.gauge("replvfs_remote_cache_bytes", &labels),
        }
    }

    /// The bound of the memory for captured pages.
    pub(crate) fn memory_limit(&self, bytes: u64) {
        self.gauge("replvfs_captured_memory_limit_bytes", &[]).set(bytes as f64);
    }
}

/// The path, so that no two are the same.
fn shown(path: &Path) -> String {
    match path.to_str() {
        Some(path) => path.to_owned(),
        None => path.as_os_str().as_encoded_bytes().escape_ascii().to_string(),
    }
}

/// Handles of one database. What they mean is said in [`names`].
#[derive(Debug)]
#[allow(missing_docs, reason = "see the names")]
pub(crate) struct DatabaseMetrics {
    pub(crate) open: Gauge,
    pub(crate) owner: Gauge,
    pub(crate) failed: Gauge,
    pub(crate) fenced: Gauge,
    pub(crate) suspended: Gauge,
    pub(crate) trouble: Gauge,
    pub(crate) txid: Gauge,
    pub(crate) acked: Gauge,
    pub(crate) pending: Gauge,
    pub(crate) pending_bytes: Gauge,
    pub(crate) oldest_pending: Gauge,
    pub(crate) wal_held: Gauge,
    pub(crate) captured: Counter,
    pub(crate) captured_bytes: Counter,
    pub(crate) uploaded: Counter,
    pub(crate) segments: Counter,
    pub(crate) segment_bytes: Counter,
    pub(crate) images: Counter,
    pub(crate) image_chunks: Counter,
    pub(crate) image_chunks_sent: Counter,
    pub(crate) last_image: Gauge,
    pub(crate) gaps: Counter,
    pub(crate) errors: Counter,
    pub(crate) upkeep_errors: Counter,
    pub(crate) pruned: Counter,
    pub(crate) pruned_bytes: Counter,
    /// Of the process.
    pub(crate) memory: Gauge,
}

/// Handles of one store.
#[derive(Debug)]
pub(crate) struct StoreMetrics {
    metrics: Metrics,
    kinds: [OfKind; Request::ALL.len()],
    pub(crate) retries: Counter,
    /// Since they were gathered.
    measured: Mutex<u32>,
}

#[derive(Debug)]
struct OfKind {
    outcomes: Vec<(Outcome, Counter)>,
    seconds: Histogram,
}

/// So many durations are at most kept one by one.
const GATHER_AFTER: u32 = 1024;

impl StoreMetrics {
    /// The store has answered, or has not in all the time that it was given.
    pub(crate) fn done(&self, kind: Request, outcome: Outcome, took: Duration) {
        let kind = &self.kinds[kind as usize];
        if let Some((_, counter)) = kind.outcomes.iter().find(|(known, _)| *known == outcome) {
            counter.increment(1);
        }
        kind.seconds.record(took.as_secs_f64());
        let is_full = {
            let mut measured = self.measured.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *measured += 1;
            *measured >= GATHER_AFTER && std::mem::take(&mut *measured) > 0
        };
        if is_full {
            self.metrics.gather();
        }
    }
}

/// Handles of a replica that is read.
#[derive(Debug)]
pub(crate) struct ReaderMetrics {
    pub(crate) hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) fetched: Counter,
    pub(crate) fetched_bytes: Counter,
    pub(crate) cache_bytes: Gauge,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_says_what_it_is() {
        for metric in METRICS {
            let name = metric.name;
            assert!(name.starts_with("replvfs_"), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
            assert_eq!(METRICS.iter().filter(|other| other.name == name).count(), 1, "{name}");
            if metric.unit == Some(metrics::Unit::Bytes) {
                assert!(name.contains("_bytes"), "{name}");
            }
        }
    }

    #[test]
    fn the_guide_has_all_of_them() {
        let page = include_str!("../../guide/failures.md");
        for metric in METRICS {
            assert!(
                page.contains(&format!("`{}`", metric.name)),
                "{} is not in guide/failures.md",
                metric.name
            );
        }
    }

    #[test]
    fn a_child_goes_without_the_recorder_of_its_parent() {
        let parent = Metrics::new(None);
        let (one, other) = (parent.after_fork(), parent.after_fork());
        assert!(Arc::ptr_eq(&one.0, &other.0));
        assert!(matches!(one.0.target, Target::Nobody));
    }
}
