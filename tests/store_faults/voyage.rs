//! Commits through a storm: they go on, nothing is acknowledged that cannot be restored, and afterwards everything is there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opendal::layers::TimeoutLayer;
use replvfs::config::Retention;
use replvfs::format::{Generation, Key};
use replvfs::history::Target;
use replvfs::store::Store;
use replvfs::{Config, Txid};
use replvfs_tests::weather::{FaultyStore, Storm, Trouble};
use replvfs_tests::{
    check_integrity, compare_pages, fast_folder, open, plain_image, pragma_number, restore_from, status,
};
use rusqlite::Connection;
use tempfile::TempDir;

/// The operator's own, as the product sets them for the stores that it opens.
const STORE_TIMEOUT: Duration = Duration::from_millis(60);
const FLUSH_TIMEOUT: Duration = Duration::from_millis(300);
const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);
/// A machine that is busy with other things must not look like one that waits for a store.
const SLACK: Duration = Duration::from_secs(5);
/// What does not happen in this time never does.
const NEVER: Duration = Duration::from_secs(30);
const COMMITS: usize = 5;

/// Where a voyage starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) storm: Option<Storm>,
    /// The store takes conditions.
    pub(crate) conditional: bool,
    /// The database has a history in the store.
    pub(crate) again: bool,
    /// It is larger than what is read at once: its image is made beside the commits, of several chunks.
    pub(crate) large: bool,
}

/// Opens through a VFS of its own, whose replica is this store.
fn connect(path: &Path, store: &FaultyStore) -> Connection {
    try_connect(path, store, "restore=never").unwrap()
}

fn try_connect(path: &Path, store: &FaultyStore, parameters: &str) -> rusqlite::Result<Connection> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("replvfs-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let timeouts = TimeoutLayer::new()
        .with_timeout(STORE_TIMEOUT)
        .with_io_timeout(STORE_TIMEOUT);
    let config = Config::default()
        .vfs_name(&name)
        .operator(store.faulty.clone().layer(timeouts))
        .flush_interval(Duration::from_millis(10))
        .timeout(FLUSH_TIMEOUT)
        .close_timeout(CLOSE_TIMEOUT)
        .retention(Retention::For(Duration::from_secs(7 * 24 * 60 * 60)));
    replvfs::register(config).unwrap();
    open(&format!("file:{}?vfs={name}&{parameters}", path.display()))
}

fn begin(connection: &Connection) {
    replvfs_tests::use_wal(connection);
    connection
        .execute_batch("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
}

/// What a connection that is closed by now has left behind, in the folder and in the store.
fn earlier(path: &Path, store: &FaultyStore) {
    let connection = connect(path, store);
    begin(&connection);
    connection.execute_batch("INSERT INTO t(b) VALUES('before')").unwrap();
    replvfs_tests::flush(&connection);
    connection.close().unwrap();
}

/// Whether the flush came through; never for long.
fn flush(connection: &Connection) -> Result<(), String> {
    let since = Instant::now();
    let flushed = connection.query_row("PRAGMA replvfs_flush", [], |_| Ok(()));
    assert!(
        since.elapsed() < FLUSH_TIMEOUT + SLACK,
        "a flush took {:?}",
        since.elapsed()
    );
    flushed.map_err(|error| error.to_string())
}

struct Voyage {
    folder: TempDir,
    store: FaultyStore,
    connection: Connection,
    truth: BTreeMap<u64, Vec<u8>>,
    looked_at: Option<u64>,
}

/// Returns the calls that the store got up to the healing.
pub(crate) fn sail(terms: Terms) -> Result<Vec<&'static str>, String> {
    let (folder, store) = (fast_folder(), FaultyStore::new(terms.conditional));
    let path = folder.path().join("app.db");
    if terms.again {
        earlier(&path, &store);
    }
    if terms.large {
        let plain = Connection::open(&path).unwrap();
        begin(&plain);
        let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 25) \
                    INSERT INTO t(b) SELECT randomblob(100000) FROM n";
        plain.execute_batch(rows).unwrap();
    }
    store.weather.storm(terms.storm);
    let since = Instant::now();
    let connection = connect(&path, &store);
    begin(&connection);
    assert!(since.elapsed() < SLACK, "opening took {:?}", since.elapsed());
    let mut voyage = Voyage {
        folder,
        store,
        connection,
        truth: BTreeMap::new(),
        looked_at: None,
    };
    voyage.look()?;
    for n in 0..COMMITS {
        voyage.commit(n)?;
    }
    voyage.store_is_in_trouble(terms)?;
    voyage.store.weather.clear_up();
    let calls = voyage.store.weather.calls();
    voyage.arrive(terms)?;
    Ok(calls)
}

impl Voyage {
    /// One transaction. Flushed, as long as the weather is fair, so that each makes its own calls.
    fn commit(&mut self, n: usize) -> Result<(), String> {
        let since = Instant::now();
        let sql = format!("INSERT INTO t(b) VALUES(hex(randomblob({})))", 700 * (n + 1));
        self.connection
            .execute_batch(&sql)
            .map_err(|error| format!("a commit failed: {error}"))?;
        assert!(since.elapsed() < SLACK, "a commit took {:?}", since.elapsed());
        self.look()?;
        if !self.store.weather.has_struck()
            && let Err(error) = flush(&self.connection)
            && !self.store.weather.has_struck()
        {
            return Err(format!("a flush failed in fair weather: {error}"));
        }
        self.look()
    }

    /// Keeps the true state, and restores what is acknowledged from the store as it is.
    fn look(&mut self) -> Result<(), String> {
        // Before the image: a commit comes from this thread only.
        let acked = pragma_number(&self.connection, "replvfs_acked");
        if let Some(txid) = pragma_number(&self.connection, "replvfs_txid") {
            let image = plain_image(&self.path());
            self.truth.entry(txid).or_insert(image);
        }
        match acked {
            Some(acked) if self.looked_at != Some(acked) => {
                self.looked_at = Some(acked);
                self.restores(acked)
            }
            _ => Ok(()),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("app.db")
    }

    fn restores(&self, txid: u64) -> Result<(), String> {
        let out = self.folder.path().join("restored.db");
        let store = Store::from_operator(self.store.healthy.clone());
        let restored = restore_from(&store, Target::Txid(Txid(txid)), &out);
        let restored = restored.map_err(|error| format!("txid {txid} cannot be restored: {error}"))?;
        assert_eq!(restored.txid.0, txid);
        let bytes = std::fs::read(&out).unwrap();
        check_integrity(&out);
        std::fs::remove_file(&out).unwrap();
        match self.truth.get(&txid) {
            Some(truth) => compare_pages(truth, &bytes)
                .map_err(|difference| format!("txid {txid} is not what it was: {difference}")),
            None => Ok(()),
        }
    }

    /// A store that answers nothing is in the status, until it answers.
    fn store_is_in_trouble(&self, terms: Terms) -> Result<(), String> {
        let lasts = terms
            .storm
            .is_some_and(|storm| storm.lasting && storm.trouble != Trouble::Late);
        if !lasts || !self.store.weather.has_struck() {
            return Ok(());
        }
        let since = Instant::now();
        loop {
            let status = status(&self.connection);
            if !status["failed"].is_null() {
                return Err(format!("replication ended: {status}"));
            }
            let error = &status["last_error"];
            if error["over"] == false && error["message"].is_string() {
                break;
            }
            if since.elapsed() > NEVER {
                return Err(format!("the status says nothing of the trouble: {status}"));
            }
            std::thread::yield_now();
        }
        match flush(&self.connection) {
            Err(error) if error.contains("goes on") => Ok(()),
            other => Err(format!("a flush without a store: {other:?}")),
        }
    }

    /// In fair weather again.
    fn arrive(mut self, terms: Terms) -> Result<(), String> {
        self.connection
            .execute_batch("INSERT INTO t(b) VALUES('fair')")
            .unwrap();
        self.look()?;
        let since = Instant::now();
        while let Err(error) = flush(&self.connection) {
            if since.elapsed() > NEVER {
                return Err(format!("no flush comes through: {error}; {}", status(&self.connection)));
            }
        }
        let status = status(&self.connection);
        if status["acked"] != status["txid"] || !status["failed"].is_null() || status["last_error"]["over"] == false {
            return Err(format!("after a flush: {status}"));
        }
        let went_on = status["generation"] == 1 && status["discontinuities"] == 0 && status["diverged"] == false;
        if terms.again && !went_on {
            return Err(format!("its history did not go on: {status}"));
        }
        for txid in self.truth.keys() {
            self.restores(*txid)?;
        }
        self.end(&status)
    }
}

impl Voyage {
    /// Whatever there was before: an object of somebody else in the next place ends replication, and not the commits. This also ends the
    /// task, and with it the file that it holds.
    fn end(self, status: &serde_json::Value) -> Result<(), String> {
        let generation = Generation(status["generation"].as_u64().unwrap());
        let next = Txid(status["txid"].as_u64().unwrap()).next();
        let key = Key::Log(generation, next).path();
        replvfs_tests::block_on(self.store.healthy.write(&key, "another writer")).unwrap();
        self.connection
            .execute_batch("INSERT INTO t(b) VALUES('alone')")
            .unwrap();
        let since = Instant::now();
        loop {
            match flush(&self.connection) {
                Err(error) if error.contains("another writer") => break,
                Err(_) if since.elapsed() < NEVER => {}
                other => return Err(format!("a flush past another writer: {other:?}")),
            }
        }
        let acked = pragma_number(&self.connection, "replvfs_acked");
        if acked >= Some(next.0) {
            return Err(format!("{acked:?} is acknowledged, and {key} is another's"));
        }
        self.connection.close().unwrap();
        Ok(())
    }
}

/// So many segments, of which some are merged.
fn looked_after(connection: &Connection, store: &FaultyStore, segments: usize) {
    for _ in 0..segments {
        connection.execute_batch("INSERT INTO t(b) VALUES('one')").unwrap();
        replvfs_tests::flush(connection);
    }
    let (store, since) = (Store::from_operator(store.healthy.clone()), Instant::now());
    let merged = || replvfs_tests::block_on(store.list("gen/")).unwrap();
    while !merged().iter().any(|(key, _)| matches!(key, Key::Span(..))) {
        assert!(since.elapsed() < NEVER, "nothing is merged: {}", status(connection));
    }
}

/// What goes on behind the last segment comes to its end.
fn rests(store: &FaultyStore, busy: &Connection) {
    let since = Instant::now();
    loop {
        let before = store.weather.calls().len();
        for _ in 0..20 {
            busy.execute_batch("INSERT INTO t(b) VALUES('more')").unwrap();
            replvfs_tests::flush(busy);
        }
        if store.weather.calls().len() == before {
            return;
        }
        assert!(since.elapsed() < NEVER, "it never rests: {:?}", store.weather.calls());
    }
}

/// A database that is read and checkpointed, and not written, beside one that is busy: by its uploads the time is measured. It has stored so many
/// segments before, beside a few.
pub(crate) fn at_rest(segments: usize) {
    let folder = fast_folder();
    let (idle_store, busy_store) = (FaultyStore::new(true), FaultyStore::new(true));
    let idle = connect(&folder.path().join("idle.db"), &idle_store);
    let busy = connect(&folder.path().join("busy.db"), &busy_store);
    for connection in [&idle, &busy] {
        begin(connection);
        connection.execute_batch("INSERT INTO t(b) VALUES('one')").unwrap();
        replvfs_tests::flush(connection);
    }
    // The image may come after the last segment that a flush waits for, and is noted then.
    while status(&idle)["image"] != "stored" {
        std::thread::yield_now();
    }
    if segments > 0 {
        looked_after(&idle, &idle_store, segments);
        rests(&idle_store, &busy);
    }
    idle_store.weather.storm(None);
    for round in 0..60 {
        busy.execute_batch("INSERT INTO t(b) VALUES('more')").unwrap();
        replvfs_tests::flush(&busy);
        idle.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
        let checkpoint = ["PASSIVE", "RESTART", "TRUNCATE"][round % 3];
        idle.query_row(&format!("PRAGMA wal_checkpoint({checkpoint})"), [], |_| Ok(()))
            .unwrap();
        replvfs_tests::flush(&idle);
    }
    assert!(busy_store.weather.calls().len() > 60);
    assert_eq!(
        idle_store.weather.calls(),
        Vec::<&str>::new(),
        "an idle database asks its store"
    );
}

/// A store that never answers, and an operator without timeouts: nobody waits for it but by choice, and not for long.
pub(crate) fn without_any_answer() {
    let (folder, store) = (fast_folder(), FaultyStore::new(true));
    let path = folder.path().join("app.db");
    store.weather.storm(Some(Storm::lasting(Trouble::Hang)));
    let config = Config::default()
        .vfs_name("replvfs-hanging")
        .operator(store.faulty.clone())
        .timeout(FLUSH_TIMEOUT)
        .close_timeout(CLOSE_TIMEOUT)
        .retention(Retention::For(Duration::from_secs(7 * 24 * 60 * 60)));
    replvfs::register(config).unwrap();
    let since = Instant::now();
    let connection = open(&format!("file:{}?vfs=replvfs-hanging&restore=never", path.display())).unwrap();
    begin(&connection);
    for _ in 0..100 {
        connection.execute_batch("INSERT INTO t(b) VALUES('one')").unwrap();
    }
    assert!(
        since.elapsed() < SLACK,
        "opening and 100 commits took {:?}",
        since.elapsed()
    );
    let error = flush(&connection).unwrap_err();
    assert!(error.contains("goes on"), "{error}");
    assert_eq!(pragma_number(&connection, "replvfs_acked"), None);
    let since = Instant::now();
    connection.close().unwrap();
    let elapsed = since.elapsed();
    assert!(elapsed >= CLOSE_TIMEOUT, "the close waited {elapsed:?}");
    assert!(elapsed < CLOSE_TIMEOUT + SLACK, "the close waited {elapsed:?}");
    let since = Instant::now();
    let connection = open(&format!("file:{}?vfs=replvfs-hanging", path.display())).unwrap();
    let rows: i64 = connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 100);
    assert!(since.elapsed() < SLACK, "opening again took {:?}", since.elapsed());
}

/// A database that is missing, and a store that cannot tell whether it has it: the open fails, soon and with a sentence, and leaves nothing
/// behind that would be in the way when it is tried again.
pub(crate) fn missing_in_trouble(trouble: Trouble, history: bool) {
    let (folder, store) = (fast_folder(), FaultyStore::new(true));
    if history {
        earlier(&folder.path().join("lost.db"), &store);
    }
    let path = folder.path().join("app.db");
    store.weather.storm(Some(Storm::lasting(trouble)));
    let since = Instant::now();
    let error = try_connect(&path, &store, "").unwrap_err();
    assert!(
        since.elapsed() < FLUSH_TIMEOUT + SLACK,
        "{trouble:?}: the open took {:?}",
        since.elapsed()
    );
    assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::CannotOpen));
    assert!(!path.exists(), "{trouble:?}: an open that failed left a database");
    let logged = replvfs_tests::sqlite_log();
    let name = path.to_str().unwrap();
    assert!(
        logged
            .iter()
            .any(|(_, text)| text.contains(name) && text.contains("try again when it can be read")),
        "{trouble:?}: {logged:#?}"
    );
    store.weather.clear_up();
    let connection = try_connect(&path, &store, "").unwrap();
    if history {
        let found: String = connection.query_row("SELECT b FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(found, "before", "{trouble:?}");
    }
    begin(&connection);
    connection.execute_batch("INSERT INTO t(b) VALUES('healed')").unwrap();
    replvfs_tests::flush(&connection);
    let out = folder.path().join("restored.db");
    let store = Store::from_operator(store.healthy.clone());
    restore_from(&store, Target::Newest, &out).unwrap();
    compare_pages(&plain_image(&path), &std::fs::read(&out).unwrap())
        .unwrap_or_else(|difference| panic!("{trouble:?}: {difference}"));
}
