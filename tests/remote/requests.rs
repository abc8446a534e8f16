//! Few requests: counted, so that they cannot creep up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use replvfs::Config;
use replvfs_tests::weather::FaultyStore;
use replvfs_tests::{Scratch, flush, open, status, use_wal};
use rusqlite::Connection;

use super::number;

const NEVER: Duration = Duration::from_secs(120);

/// A VFS of its own for a store that counts. Returns its name.
pub(crate) fn register(store: &FaultyStore) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("replvfs-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let config = Config::default()
        .vfs_name(&name)
        .operator(store.faulty.clone())
        .flush_interval(Duration::from_millis(10));
    replvfs::register(config).unwrap();
    name
}

pub(crate) fn open_remote(name: &str, parameters: &str) -> rusqlite::Result<Connection> {
    open(&format!("file:app.db?vfs={name}-remote{parameters}"))
}

/// So many rows of about 1 KiB, of which an image is made; then some more.
pub(crate) fn filled(scratch: &Scratch, name: &str, rows: u64) -> Connection {
    let plain = Connection::open(scratch.database()).unwrap();
    use_wal(&plain);
    plain
        .execute_batch(&format!(
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO t SELECT i, randomblob(1000) FROM n"
        ))
        .unwrap();
    plain.close().unwrap();
    let writer = open(&format!("file:{}?vfs={name}", scratch.database().display())).unwrap();
    for _ in 0..5 {
        writer
            .execute_batch("UPDATE t SET b = randomblob(900) WHERE a % 1000 = 1")
            .unwrap();
        flush(&writer);
    }
    let since = Instant::now();
    while status(&writer)["image"] != "stored" {
        assert!(since.elapsed() < NEVER, "{}", status(&writer));
        std::thread::yield_now();
    }
    writer
}

/// Requests. What is read behind the beginning of an answer is none of its own.
fn calls(store: &FaultyStore) -> usize {
    store.weather.calls().iter().filter(|call| **call != "read").count()
}

#[test]
fn opening_and_a_first_answer() {
    let (scratch, store) = (Scratch::in_memory(), FaultyStore::new(true));
    let name = register(&store);
    let writer = filled(&scratch, &name, 20_000);
    writer.close().unwrap();
    store.weather.storm(None);
    let remote = open_remote(&name, "").unwrap();
    let (opened, opened_at) = (calls(&store), store.weather.calls().len());
    assert_eq!(number(&remote, "SELECT length(b) FROM t WHERE a = 1234"), 1000);
    let answered = calls(&store) - opened;
    let all = store.weather.calls();
    // What the replica and the generation are, its image, the ends of five segments, and page 1; and two times what is not listed yet.
    let kind = |kind: &str| all.iter().take(opened_at).filter(|call| **call == kind).count();
    assert_eq!((kind("open"), kind("stat")), (9, 2), "{all:?}");
    assert_eq!(store.weather.traffic().lists, 2, "{all:?}");
    // A chunk or block for the first page, the root and the leaf, at most.
    assert!(answered <= 4, "{answered} requests: {all:?}");
}

#[test]
fn neighbours_come_along_and_a_scan_asks_for_each_chunk_once() {
    let (scratch, store) = (Scratch::in_memory(), FaultyStore::new(true));
    let name = register(&store);
    filled(&scratch, &name, 20_000).close().unwrap();
    let remote = open_remote(&name, "").unwrap();
    number(&remote, "SELECT length(b) FROM t WHERE a = 10001");
    store.weather.storm(None);
    for a in 10_002..10_010 {
        number(&remote, &format!("SELECT length(b) FROM t WHERE a = {a}"));
    }
    // Perhaps they are on both sides of a chunk's border.
    assert!(calls(&store) <= 2, "{:?}", store.weather.calls());
    store.weather.storm(None);
    assert_eq!(number(&remote, "SELECT count(length(b)) FROM t"), 20_000);
    // About 20 MiB, of which some were read before, and the blocks of the log; each of them once.
    let scanned = calls(&store);
    assert!((10..=30).contains(&scanned), "{scanned}");
    let status = status(&remote);
    let fetched = status["fetched_bytes"].as_u64().unwrap() >> 20;
    assert!((19..=25).contains(&fetched), "{status}");
    store.weather.storm(None);
    assert_eq!(number(&remote, "SELECT count(length(b)) FROM t"), 20_000);
    assert_eq!(calls(&store), 0, "{:?}", store.weather.calls());
}

#[test]
fn all_connections_share_what_was_read() {
    let (scratch, store) = (Scratch::in_memory(), FaultyStore::new(true));
    let name = register(&store);
    filled(&scratch, &name, 5_000).close().unwrap();
    let first = open_remote(&name, "").unwrap();
    assert_eq!(number(&first, "SELECT count(length(b)) FROM t"), 5_000);
    store.weather.storm(None);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let further = open_remote(&name, "").unwrap();
                assert_eq!(number(&further, "SELECT count(length(b)) FROM t"), 5_000);
            });
        }
    });
    // Each asks whether there is something new, and whether it is the same replica.
    assert!(calls(&store) <= 8, "{:?}", store.weather.calls());
}

/// As programs do that open one for each request.
#[test]
fn a_connection_for_each_request_shares_what_the_last_one_read() {
    let (scratch, store) = (Scratch::in_memory(), FaultyStore::new(true));
    let name = register(&store);
    let writer = filled(&scratch, &name, 5_000);
    let sum = |connection: &Connection| number(connection, "SELECT count(length(b)) FROM t");
    let first = open_remote(&name, "").unwrap();
    assert_eq!(sum(&first), 5_000);
    first.close().unwrap();
    for _ in 0..10 {
        store.weather.storm(None);
        let next = open_remote(&name, "").unwrap();
        assert_eq!(sum(&next), 5_000);
        next.close().unwrap();
        assert_eq!(calls(&store), 2, "{:?}", store.weather.calls());
    }
    writer.execute_batch("DELETE FROM t WHERE a > 4000").unwrap();
    flush(&writer);
    store.weather.storm(None);
    assert_eq!(sum(&open_remote(&name, "").unwrap()), 4_000);
    assert!(calls(&store) <= 8, "{:?}", store.weather.calls());
}

#[test]
fn following_an_idle_database_is_one_request_each_time() {
    let (scratch, store) = (Scratch::in_memory(), FaultyStore::new(true));
    let name = register(&store);
    let writer = filled(&scratch, &name, 100);
    let remote = open_remote(&name, "&follow=10ms").unwrap();
    number(&remote, "SELECT count(length(b)) FROM t");
    store.weather.storm(None);
    let since = Instant::now();
    while calls(&store) < 20 {
        assert!(since.elapsed() < NEVER);
        number(&remote, "SELECT count(length(b)) FROM t");
    }
    let calls = store.weather.calls();
    assert!(calls.iter().all(|call| *call == "stat"), "{calls:?}");
    let elapsed = since.elapsed();
    assert!(
        calls.len() as u128 <= elapsed.as_millis() / 10 + 2,
        "{} in {elapsed:?}",
        calls.len()
    );
    drop(writer);
}

#[test]
fn pages_of_point_queries_stay_when_what_came_with_them_has_gone() {
    let (scratch, store) = (Scratch::in_memory(), FaultyStore::new(true));
    let name = register(&store);
    filled(&scratch, &name, 20_000).close().unwrap();
    let remote = open_remote(&name, "&page_cache=4MiB").unwrap();
    // What is kept is not SQLite's.
    remote.pragma_update(None, "cache_size", 5).unwrap();
    let some_rows = || {
        for a in (1..20_000).step_by(97) {
            number(&remote, &format!("SELECT length(b) FROM t WHERE a = {a}"));
        }
    };
    some_rows();
    store.weather.storm(None);
    some_rows();
    // The rows are all over 20 MiB.
    assert_eq!(calls(&store), 0, "{:?}", store.weather.calls());
}

#[test]
fn memory_is_bounded() {
    let (scratch, store) = (Scratch::in_memory(), FaultyStore::new(true));
    let name = register(&store);
    filled(&scratch, &name, 20_000).close().unwrap();
    let remote = open_remote(&name, "&page_cache=4MiB").unwrap();
    for _ in 0..3 {
        assert_eq!(number(&remote, "SELECT count(length(b)) FROM t"), 20_000);
        let cached = status(&remote)["cache_bytes"].as_u64().unwrap();
        assert!(cached <= 4 << 20, "{cached}");
    }
}
