//! The names of all metrics, their units, and what they say. Prometheus' conventions: base units, `_total` behind what only grows. The guide's page
//! `failures.md` has the same list.

use metrics::Unit;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

pub(super) struct Metric {
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    pub(super) unit: Option<Unit>,
    pub(super) help: &'static str,
}

const fn counter(name: &'static str, unit: Option<Unit>, help: &'static str) -> Metric {
    Metric {
        kind: Kind::Counter,
        name,
        unit,
        help,
    }
}

const fn gauge(name: &'static str, unit: Option<Unit>, help: &'static str) -> Metric {
    Metric {
        kind: Kind::Gauge,
        name,
        unit,
        help,
    }
}

const BYTES: Option<Unit> = Some(Unit::Bytes);
const SECONDS: Option<Unit> = Some(Unit::Seconds);

pub(super) const METRICS: &[Metric] = &[
    gauge(
        "replvfs_open",
        None,
        "1 while connections of this process have the database open",
    ),
    gauge("replvfs_owner", None, "1 while this process replicates the database"),
    gauge(
        "replvfs_failed",
        None,
        "1 when replication of the database has ended in this process",
    ),
    gauge(
        "replvfs_fenced",
        None,
        "1 when another writer has taken over the replica",
    ),
    gauge(
        "replvfs_suspended",
        None,
        "1 while wal_limit is passed: the history will have a gap",
    ),
    gauge(
        "replvfs_trouble",
        None,
        "1 while something does not work and is tried again, such as the store",
    ),
    gauge("replvfs_txid", None, "The newest local transaction"),
    gauge(
        "replvfs_acked_txid",
        None,
        "The newest transaction that can be restored from the replica",
    ),
    gauge(
        "replvfs_pending_transactions",
        None,
        "Transactions that cannot be restored from the replica yet",
    ),
    gauge(
        "replvfs_pending_bytes",
        BYTES,
        "WAL bytes of the transactions that are not in the replica yet",
    ),
    gauge(
        "replvfs_oldest_pending_timestamp_seconds",
        SECONDS,
        "When the oldest transaction was committed that cannot be restored from the replica yet; 0 when all can",
    ),
    gauge(
        "replvfs_wal_held_bytes",
        BYTES,
        "Bytes of the WAL that is kept for the upload",
    ),
    counter(
        "replvfs_captured_transactions_total",
        None,
        "Transactions that were captured",
    ),
    counter("replvfs_captured_bytes_total", BYTES, "Their WAL bytes"),
    counter(
        "replvfs_uploaded_transactions_total",
        None,
        "Transactions that are in uploaded segments",
    ),
    counter("replvfs_uploaded_segments_total", None, "Segments that were uploaded"),
    counter(
        "replvfs_uploaded_segment_bytes_total",
        BYTES,
        "Their bytes in the store",
    ),
    counter("replvfs_images_total", None, "Images that were made"),
    counter("replvfs_image_chunks_total", None, "Chunks of these images"),
    counter(
        "replvfs_image_chunks_sent_total",
        None,
        "Those that were uploaded: the others were there",
    ),
    gauge(
        "replvfs_last_image_timestamp_seconds",
        SECONDS,
        "As of when the newest image of this process is; 0 before it",
    ),
    counter(
        "replvfs_gaps_total",
        None,
        "Gaps in the history, each closed by an image",
    ),
    counter("replvfs_errors_total", None, "Attempts to replicate that failed"),
    counter(
        "replvfs_upkeep_errors_total",
        None,
        "Merging or deleting that failed, and is tried again later",
    ),
    counter(
        "replvfs_pruned_objects_total",
        None,
        "Objects that retention has deleted",
    ),
    counter("replvfs_pruned_bytes_total", BYTES, "Their bytes"),
    gauge(
        "replvfs_captured_memory_bytes",
        BYTES,
        "Memory of captured pages in this process",
    ),
    gauge(
        "replvfs_captured_memory_limit_bytes",
        BYTES,
        "The most that it may be: half of memory_limit",
    ),
    counter(
        "replvfs_store_requests_total",
        None,
        "Operations on the object store, by kind and outcome",
    ),
    Metric {
        kind: Kind::Histogram,
        name: "replvfs_store_request_duration_seconds",
        unit: SECONDS,
        help: "How long they took, by kind",
    },
    counter(
        "replvfs_store_retries_total",
        None,
        "Requests that were sent again at once after passing trouble",
    ),
    counter(
        "replvfs_remote_cache_hits_total",
        None,
        "Pages of a replica that were in memory",
    ),
    counter(
        "replvfs_remote_cache_misses_total",
        None,
        "Pages of a replica that were not",
    ),
    counter(
        "replvfs_remote_fetches_total",
        None,
        "Chunks and blocks that were fetched from a replica",
    ),
    counter("replvfs_remote_fetched_bytes_total", BYTES, "Their bytes"),
    gauge("replvfs_remote_cache_bytes", BYTES, "Memory of the pages of a replica"),
];

/// What was asked of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Create,
    Read,
    Stat,
    List,
    Delete,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    /// The object to be created was there.
    Exists,
    /// The object to be read or looked up was not.
    NotFound,
    Error,
}

impl Request {
    pub(super) const ALL: [Request; 5] = [
        Request::Create,
        Request::Read,
        Request::Stat,
        Request::List,
        Request::Delete,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Request::Create => "create",
            Request::Read => "read",
            Request::Stat => "stat",
            Request::List => "list",
            Request::Delete => "delete",
        }
    }

    pub(super) fn outcomes(self) -> &'static [Outcome] {
        match self {
            Request::Create => &[Outcome::Ok, Outcome::Exists, Outcome::Error],
            Request::Read | Request::Stat => &[Outcome::Ok, Outcome::NotFound, Outcome::Error],
            Request::List | Request::Delete => &[Outcome::Ok, Outcome::Error],
        }
    }
}

impl Outcome {
    pub(super) fn name(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Exists => "exists",
            Outcome::NotFound => "not_found",
            Outcome::Error => "error",
        }
    }
}
