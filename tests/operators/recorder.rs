//! A program with a recorder of its own for `metrics`: what is counted gets there, and it is asked for nothing but that. One recorder is a process's, so this is
//! a program of its own with one test.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use replvfs_tests::peer::{SqlPeer, run_sql};
use replvfs_tests::{Scratch, flush, open, status, use_wal};

/// All series by name and labels. They begin again at 0 with each look.
fn look(snapshotter: &Snapshotter) -> BTreeMap<String, f64> {
    let seen = snapshotter.snapshot().into_vec().into_iter().map(|(key, _, _, value)| {
        let mut labels: Vec<String> = key
            .key()
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        labels.sort();
        let value = match value {
            DebugValue::Counter(count) => count as f64,
            DebugValue::Gauge(value) => value.into_inner(),
            DebugValue::Histogram(values) => values.len() as f64,
        };
        (format!("{}{{{}}}", key.key().name(), labels.join(",")), value)
    });
    seen.collect()
}

/// Where a thread that tells something is held up.
#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// As it was told last.
    is_open: AtomicBool,
}

#[derive(Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The next one who says 1 is held up.
    Closed,
    Holds,
    Released,
}

impl Gate {
    /// Tells, unless it is held up: then when that is over.
    fn pass(&self, tell: impl FnOnce()) {
        let mut state = self.state.lock().unwrap();
        if *state != State::Closed {
            drop(state);
            return tell();
        }
        *state = State::Holds;
        self.changed.notify_all();
        while *state == State::Holds {
            state = self.changed.wait(state).unwrap();
        }
        tell();
        *state = State::Open;
        self.changed.notify_all();
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap() = state;
        self.changed.notify_all();
    }

    fn until(&self, wanted: State) {
        let state = self.state.lock().unwrap();
        let waited = self
            .changed
            .wait_timeout_while(state, Duration::from_secs(60), |state| *state != wanted);
        assert!(!waited.unwrap().1.timed_out(), "nobody came");
    }
}

struct Gated(Gauge, Arc<Gate>);

impl GaugeFn for Gated {
    fn increment(&self, value: f64) {
        self.0.increment(value);
    }

    fn decrement(&self, value: f64) {
        self.0.decrement(value);
    }

    fn set(&self, value: f64) {
        match value {
            1.0 => self.1.pass(|| self.1.is_open.store(true, Ordering::SeqCst)),
            _ => self.1.is_open.store(false, Ordering::SeqCst),
        }
        self.0.set(value);
    }
}

/// With a gate before `replvfs_open`.
struct WithGate(DebuggingRecorder, Arc<Gate>);

impl Recorder for WithGate {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.0.describe_counter(key, unit, text);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.0.describe_gauge(key, unit, text);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, text: SharedString) {
        self.0.describe_histogram(key, unit, text);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.0.register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        let gauge = self.0.register_gauge(key, metadata);
        match key.name() {
            "replvfs_open" => Gauge::from_arc(Arc::new(Gated(gauge, Arc::clone(&self.1)))),
            _ => gauge,
        }
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.0.register_histogram(key, metadata)
    }
}

#[test]
fn a_recorder_gets_what_is_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let gate = Arc::new(Gate::default());
    metrics::set_global_recorder(WithGate(recorder, Arc::clone(&gate))).unwrap();
    let scratch = Scratch::in_memory();
    let uri = scratch.uri_with("&flush_interval=10ms&timeout=300ms");
    let connection = open(&uri).unwrap();
    use_wal(&connection);
    connection.execute_batch("CREATE TABLE t(x)").unwrap();
    flush(&connection);
    let before = look(&snapshotter);
    for row in 0..3 {
        connection.execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
        flush(&connection);
    }
    let reader = open(&format!("file:r?vfs=replvfs-remote&replica={}", scratch.replica())).unwrap();
    let count = || {
        reader
            .query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    assert_eq!((count(), count()), (3, 3));
    let status = status(&connection);
    // All of it is told when the last connection is closed at the latest.
    drop(connection);
    let seen = look(&snapshotter);
    let (database, replica) = (scratch.database(), scratch.replica());
    let of = |name: &str| {
        let key = format!("{name}{{database={}}}", database.display());
        *seen.get(&key).unwrap_or_else(|| panic!("{key} is not in {seen:#?}"))
    };
    let with = |name: &str, labels: &str| {
        let key = format!("{name}{{{labels}replica={replica}}}");
        *seen.get(&key).unwrap_or_else(|| panic!("{key} is not in {seen:#?}"))
    };
    let acked = status["acked"].as_f64().unwrap();
    assert_eq!((of("replvfs_txid"), of("replvfs_acked_txid")), (acked, acked));
    assert_eq!(of("replvfs_uploaded_segments_total"), 3.0);
    assert_eq!(of("replvfs_uploaded_transactions_total"), 3.0);
    let captured = before[&format!("replvfs_captured_transactions_total{{database={}}}", database.display())];
    assert_eq!(
        of("replvfs_captured_transactions_total"),
        captured + 3.0,
        "it counts from the beginning"
    );
    assert_eq!(
        before[&format!("replvfs_images_total{{database={}}}", database.display())],
        1.0
    );
    // It is closed: nobody replicates it, and nothing waits.
    for name in [
        "replvfs_open",
        "replvfs_owner",
        "replvfs_failed",
        "replvfs_trouble",
        "replvfs_pending_transactions",
        "replvfs_pending_bytes",
        "replvfs_oldest_pending_timestamp_seconds",
        "replvfs_wal_held_bytes",
    ] {
        assert_eq!(of(name), 0.0, "{name}");
    }
    assert_eq!(with("replvfs_store_requests_total", "kind=create,outcome=ok,"), 3.0);
    assert_eq!(with("replvfs_store_requests_total", "kind=create,outcome=error,"), 0.0);
    assert_eq!(with("replvfs_store_request_duration_seconds", "kind=create,"), 3.0);
    let made = &before[&format!("replvfs_store_requests_total{{kind=create,outcome=ok,replica={replica}}}")];
    assert_eq!(made + 3.0, scratch.objects().len() as f64);
    let looked = format!("replvfs_store_requests_total{{kind=read,outcome=not_found,replica={replica}}}");
    assert!(before[&looked] > 0.0, "an empty replica was asked: {before:#?}");
    assert!(with("replvfs_remote_cache_hits_total", "") > 0.0);
    assert!(with("replvfs_remote_cache_misses_total", "") > 0.0);
    assert!(with("replvfs_remote_fetched_bytes_total", "") > 0.0);
    assert!(with("replvfs_remote_cache_bytes", "") > 0.0);
    assert_eq!(before["replvfs_captured_memory_limit_bytes{}"], f64::from(1 << 19));
    drop(reader);

    // What fails is counted as that.
    let connection = open(&uri).unwrap();
    let (there, away) = (scratch.file("replica"), scratch.file("away"));
    std::fs::rename(&there, &away).unwrap();
    connection.execute("INSERT INTO t VALUES (9)", []).unwrap();
    let failed = connection.query_row("PRAGMA replvfs_flush", [], |_| Ok(()));
    std::fs::rename(&away, &there).unwrap();
    flush(&connection);
    assert!(failed.is_err());
    let seen = look(&snapshotter);
    let errors: f64 = seen
        .iter()
        .filter(|(name, _)| name.starts_with("replvfs_store_requests_total") && name.contains("outcome=error"))
        .map(|(_, count)| count)
        .sum();
    assert!(errors >= 1.0, "{seen:#?}");
    let key = format!("replvfs_errors_total{{database={}}}", database.display());
    assert!(seen[&key] >= 1.0 && seen[&key] <= errors, "{seen:#?}");

    drop(connection);
    closed_while_it_is_told(&gate);
}

#[test]
fn other_process() {
    run_sql();
}

/// A thread is about to tell that it is open. Meanwhile it is closed: that is what it is.
fn closed_while_it_is_told(gate: &Gate) {
    let scratch = Scratch::in_memory();
    let uri = scratch.uri_with("&flush_interval=10ms");
    let mut owner = SqlPeer::start(&uri);
    owner.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(x); PRAGMA replvfs_flush;");
    let connection = open(&uri).unwrap();
    assert_eq!(status(&connection)["owner"], false);
    gate.set(State::Closed);
    gate.until(State::Holds);
    drop(connection);
    gate.set(State::Released);
    gate.until(State::Open);
    let end = Instant::now() + Duration::from_secs(10);
    while gate.is_open.load(Ordering::SeqCst) {
        assert!(Instant::now() < end, "it is told to be open");
        std::thread::sleep(Duration::from_millis(5));
    }
    owner.end();
}
