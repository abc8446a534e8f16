//! A store that is away for as long as the application writes: no commit waits for it, memory and disk stay within their limits, and when it
//! is back the history is complete, or has exactly one marked discontinuity if `wal_limit` was passed.
//!
//! The store hangs: it answers no call until it is back, and every timeout of replvfs is longer than a test may take. So whatever waits for
//! the store waits until the watchdog ends the process. It also refuses every call, since what is refused is tried again and again.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use replvfs::format::Generation;
use replvfs::history::{History, Target};
use replvfs::store::Store;
use replvfs::{Config, Txid};
use replvfs_tests::weather::{FaultyStore, Storm, Trouble};
use replvfs_tests::{
    Rng, block_on, check_integrity, compare_pages, fast_folder, flush, open, pragma_number, restore_from, status,
};
use rusqlite::Connection;
use tempfile::TempDir;

/// The smallest that there is.
const MEMORY_LIMIT: u64 = 1 << 20;
/// No outage here brings as much.
const AMPLE: u64 = 64 << 20;
const SMALL: u64 = 3 << 20;
/// A test takes a few seconds.
const NEVER: Duration = Duration::from_secs(100);
/// Longer than [`NEVER`].
const TIMEOUT: Duration = Duration::from_secs(600);
/// Another one as long, for a VFS with another name.
const LONGER: Duration = Duration::from_secs(599);

/// Ends the process when a test takes for ever.
struct Watchdog(Sender<()>);

impl Watchdog {
    fn new(test: String) -> Watchdog {
        let (over, is_over) = channel();
        std::thread::spawn(move || {
            if is_over.recv_timeout(NEVER) == Err(RecvTimeoutError::Timeout) {
                // Not by a macro: what those print is lost with the process.
                let _ = writeln!(
                    std::io::stderr(),
                    "{test}: somebody waits for a store that is away, or for what does not come after it"
                );
                std::process::abort();
            }
        });
        Watchdog(over)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// After a failed assertion the connection is closed, and that waits.
struct BackAtTheEnd(FaultyStore);

impl Drop for BackAtTheEnd {
    fn drop(&mut self) {
        self.0.weather.clear_up_and_lose_connections();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Wal,
    /// With the wal-index on the heap.
    ExclusiveWal,
    /// A rollback journal.
    Delete,
}

/// A database, what it was after some of its transactions, and its store.
struct Application {
    mode: Mode,
    folder: TempDir,
    store: FaultyStore,
    /// Before the connection.
    _back_at_the_end: BackAtTheEnd,
    uri: String,
    connection: Connection,
    rng: Rng,
    truth: BTreeMap<u64, Vec<u8>>,
    /// None of what is dropped.
    newest: Option<u64>,
    /// The most that the files beside the database had.
    most_bytes: u64,
    _watchdog: Watchdog,
}

impl Application {
    /// With a history that is in the store.
    fn start(mode: Mode, trouble: Trouble, wal_limit: u64) -> Application {
        Application::start_with(mode, trouble, wal_limit, TIMEOUT)
    }

    fn start_with(mode: Mode, trouble: Trouble, wal_limit: u64, close_timeout: Duration) -> Application {
        let name = format!("replvfs-{mode:?}-{trouble:?}-{wal_limit}-{close_timeout:?}");
        let watchdog = Watchdog::new(name.clone());
        let (folder, store) = (fast_folder(), FaultyStore::new(true));
        let config = Config::default()
            .vfs_name(&name)
            .operator(store.faulty.clone())
            .memory_limit(MEMORY_LIMIT)
            .wal_limit(wal_limit)
            .flush_interval(Duration::from_millis(10))
            .timeout(TIMEOUT)
            .close_timeout(close_timeout);
        replvfs::register(config).unwrap();
        let uri = format!(
            "file:{}?vfs={name}&restore=never",
            folder.path().join("app.db").display()
        );
        let connection = open(&uri).unwrap();
        let mut application = Application {
            mode,
            folder,
            _back_at_the_end: BackAtTheEnd(store.clone()),
            store,
            uri,
            connection,
            rng: Rng::new(7),
            truth: BTreeMap::new(),
            newest: None,
            most_bytes: 0,
            _watchdog: watchdog,
        };
        application.set_mode();
        application
            .connection
            .execute_batch(
                "CREATE TABLE t(a INTEGER PRIMARY KEY, b);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 30)
                 INSERT INTO t(b) SELECT randomblob(20000) FROM n",
            )
            .unwrap();
        application.commit();
        flush(&application.connection);
        application
    }

    /// What a connection has to be told each time.
    fn set_mode(&self) {
        let pragmas = match self.mode {
            Mode::Wal => "PRAGMA journal_mode=WAL",
            Mode::ExclusiveWal => "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL",
            Mode::Delete => "PRAGMA journal_mode=DELETE",
        };
        self.connection
            .execute_batch(&format!("{pragmas}; PRAGMA wal_autocheckpoint=40"))
            .unwrap();
    }

    /// One transaction of about 24 KiB. What the database is then is kept now and then, as SQLite reads it.
    fn commit(&mut self) {
        let row = 1 + self.rng.below(30);
        self.connection
            .execute("UPDATE t SET b = randomblob(20000) WHERE a = ?1", [row as i64])
            .unwrap();
        self.look();
        if self.rng.one_in(10) {
            self.keep();
        }
    }

    fn keep(&mut self) {
        if let Some(newest) = self.newest
            && !self.truth.contains_key(&newest)
        {
            let image = self.connection.serialize("main").unwrap().to_vec();
            self.truth.insert(newest, image);
        }
    }

    fn newest(&self) -> u64 {
        self.newest.expect("what is captured has a number")
    }

    fn look(&mut self) {
        let before = status(&self.connection);
        self.newest = pragma_number(&self.connection, "replvfs_txid");
        let status = status(&self.connection);
        // The store may have answered meanwhile.
        let drops = before["suspended"] == true || status["suspended"] == true;
        assert!(self.newest.is_some() || drops, "{before}, {status}");
        assert!(status["memory_bytes"].as_u64().unwrap() <= MEMORY_LIMIT, "{status}");
        assert!(status["failed"].is_null(), "{status}");
        self.most_bytes = self.most_bytes.max(self.bytes_beside());
    }

    /// Bytes of the files that are there because of the history: WAL, what was carried over, and files without a name.
    fn bytes_beside(&self) -> u64 {
        let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        let beside = std::fs::read_dir(self.folder.path()).unwrap();
        let named: u64 = beside
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_str().unwrap().contains("app.db-"))
            .map(|path| bytes(&path))
            .sum();
        named + self.bytes_without_a_name()
    }

    fn bytes_without_a_name(&self) -> u64 {
        let mut known = BTreeMap::new();
        for descriptor in std::fs::read_dir("/proc/self/fd").unwrap() {
            let descriptor = descriptor.unwrap().path();
            // Others come and go meanwhile.
            let Ok(target) = std::fs::read_link(&descriptor) else {
                continue;
            };
            let target = target.to_str().unwrap().to_owned();
            let ours = target.starts_with(self.folder.path().to_str().unwrap()) && target.ends_with(" (deleted)");
            if let Ok(file) = std::fs::metadata(&descriptor)
                && ours
            {
                known.insert(target, file.len());
            }
        }
        known.values().sum()
    }

    fn the_store_goes_away(&self, trouble: Trouble) {
        self.store.weather.storm(Some(Storm::lasting(trouble)));
    }

    fn the_store_is_back(&self) {
        assert!(self.store.weather.has_struck(), "nobody noticed the outage");
        self.store.weather.clear_up_and_lose_connections();
    }

    /// What else an application does without a thought of the store.
    fn does_other_things(&mut self) {
        if self.mode == Mode::ExclusiveWal {
            self.connection
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
                .unwrap();
            return;
        }
        let other = open(&self.uri).unwrap();
        for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
            let sql = format!("PRAGMA wal_checkpoint({mode})");
            let busy: i64 = other.query_row(&sql, [], |row| row.get(0)).unwrap();
            assert_eq!(busy, 0, "{sql}");
        }
        other
            .execute_batch("BEGIN; DELETE FROM t; ROLLBACK; UPDATE t SET b = randomblob(100) WHERE a = 1")
            .unwrap();
        other.close().unwrap();
        self.look();
        self.keep();
    }

    /// Flushes; in exclusive mode a base is brought by the next write only.
    fn flush(&mut self) {
        while status(&self.connection)["suspended"] == true {
            std::thread::yield_now();
        }
        self.commit();
        flush(&self.connection);
        self.look();
        self.keep();
    }

    /// The transactions of a generation, from its image on.
    fn transactions(&self, history: &History, generation: u64) -> Vec<u64> {
        let number = Generation(generation);
        let of = |entry: &&replvfs::history::GenerationHistory| entry.meta().generation == number;
        let images = history.generations().iter().find(of).unwrap().images().to_vec();
        assert_eq!(images.len(), 1, "the image was made again: {images:?}");
        let mut found = vec![images[0].0];
        let visit = history.transactions(number, Txid::ZERO..=Txid(u64::MAX), |entry| found.push(entry.txid.0));
        block_on(visit).unwrap();
        let follows: Vec<u64> = (found[0]..).take(found.len()).collect();
        assert_eq!(found, follows, "generation {generation} has a gap");
        found
    }

    fn history(&self) -> History {
        block_on(History::open(&Store::from_operator(self.store.healthy.clone()))).unwrap()
    }

    fn restores(&self, txid: u64, target: Target) {
        let out = self.folder.path().join("restored.db");
        let store = Store::from_operator(self.store.healthy.clone());
        let restored = restore_from(&store, target, &out).unwrap_or_else(|error| panic!("txid {txid}: {error}"));
        assert_eq!(restored.txid.0, txid);
        compare_pages(&self.truth[&txid], &std::fs::read(&out).unwrap())
            .unwrap_or_else(|difference| panic!("txid {txid} is not what it was: {difference}"));
        check_integrity(&out);
        std::fs::remove_file(&out).unwrap();
    }
}

/// Many times what fits into memory, and less than `wal_limit`.
fn shorter_than_the_limit(mode: Mode, trouble: Trouble) {
    let mut application = Application::start(mode, trouble, AMPLE);
    application.the_store_goes_away(trouble);
    let (before, mut without_a_name) = (application.newest(), 0);
    for round in 0..4 {
        for _ in 0..60 {
            application.commit();
            without_a_name = without_a_name.max(application.bytes_without_a_name());
        }
        // Once after what is missing was carried over, too.
        if round > 0 {
            application.does_other_things();
        }
    }
    let away = status(&application.connection);
    assert!(away["pending_bytes"].as_u64().unwrap() > 4 * MEMORY_LIMIT, "{away}");
    assert_eq!(
        (away["acked"].as_u64(), &away["suspended"]),
        (Some(before), &false.into()),
        "{away}"
    );
    assert_eq!(
        mode == Mode::Delete,
        without_a_name > 3 * MEMORY_LIMIT,
        "{without_a_name}"
    );
    application.the_store_is_back();
    application.flush();

    let back = status(&application.connection);
    assert_eq!(
        (&back["generation"], &back["discontinuities"]),
        (&1.into(), &0.into()),
        "{back}"
    );
    assert_eq!(back["acked"].as_u64(), Some(application.newest()), "{back}");
    let history = application.history();
    assert_eq!(history.generations().len(), 1);
    let last = application.transactions(&history, 1).pop();
    assert_eq!(last, Some(application.newest()));
    assert!(application.truth.len() >= 20);
    for txid in application.truth.keys() {
        application.restores(*txid, Target::Txid(Txid(*txid)));
    }
    application.restores(application.newest(), Target::Newest);
    application.connection.close().unwrap();
}

fn longer_than_the_limit(mode: Mode, trouble: Trouble) {
    let mut application = Application::start(mode, trouble, SMALL);
    application.the_store_goes_away(trouble);
    let before = application.newest();
    let mut commits = 0;
    while status(&application.connection)["suspended"] == false {
        application.commit();
        commits += 1;
        assert!(
            commits * 20_000 < 2 * SMALL,
            "the limit was passed, and nothing happened"
        );
    }
    assert!(commits * 30_000 > SMALL, "given up after {commits} commits");
    let without_a_name = application.bytes_without_a_name();
    for _ in 0..3 {
        for _ in 0..2 * commits {
            application.commit();
            // Or it would be that of a transaction before, which may get into the store.
            assert_eq!(application.newest, None, "what is dropped has no number");
        }
        application.does_other_things();
    }
    // What a writer carries over is bounded by memory_limit. In exclusive mode all is carried over, and a small WAL starts again beside it.
    assert!(
        application.most_bytes <= SMALL + MEMORY_LIMIT,
        "{} bytes beside the database",
        application.most_bytes
    );
    assert!(
        application.bytes_without_a_name() <= without_a_name,
        "what was given up takes more and more room"
    );
    let away = status(&application.connection);
    assert_eq!(
        (away["acked"].as_u64(), &away["suspended"]),
        (Some(before), &true.into()),
        "{away}"
    );
    application.the_store_is_back();
    application.flush();
    for _ in 0..40 {
        application.commit();
    }
    application.flush();

    let back = status(&application.connection);
    assert_eq!(
        (&back["generation"], &back["discontinuities"]),
        (&2.into(), &1.into()),
        "{back}"
    );
    let history = application.history();
    let parent = history.generations()[1].meta().parent.unwrap();
    assert_eq!((history.generations().len(), parent.generation), (2, Generation(1)));
    assert_eq!(application.transactions(&history, 1).pop(), Some(parent.txid.0));
    assert!(parent.txid.0 >= before, "{parent:?}");
    let after = application.transactions(&history, 2);
    assert!(after[0] > parent.txid.0, "two states would have one number");
    assert_eq!(after.last(), Some(&application.newest()));
    for txid in application.truth.keys() {
        if *txid <= parent.txid.0 || *txid >= after[0] {
            application.restores(*txid, Target::Txid(Txid(*txid)));
        }
    }
    application.restores(application.newest(), Target::Newest);
    assert!(application.truth.range(after[0]..).count() >= 3);
    application.connection.close().unwrap();
}

/// It is too large for memory, so it is read from the WAL; and it may be on its way to the store for as long as the outage takes.
#[test]
fn a_large_transaction_on_its_way_does_not_keep_the_wal() {
    for trouble in [Trouble::Hang, Trouble::Temporary] {
        let mut application = Application::start_with(Mode::Wal, trouble, SMALL, LONGER);
        application.the_store_goes_away(trouble);
        application
            .connection
            .execute_batch("UPDATE t SET b = randomblob(20000)")
            .unwrap();
        while !application.store.weather.has_struck() {
            std::thread::yield_now();
        }
        for _ in 0..600 {
            application.commit();
        }
        let away = status(&application.connection);
        assert_eq!(away["suspended"], true, "{away}");
        assert!(
            application.most_bytes <= SMALL + 2 * MEMORY_LIMIT,
            "{} bytes beside the database",
            application.most_bytes
        );
        application.the_store_is_back();
        application.flush();
        let back = status(&application.connection);
        assert_eq!(
            (&back["generation"], &back["discontinuities"]),
            (&2.into(), &1.into()),
            "{back}"
        );
        application.restores(application.newest(), Target::Newest);
        application.connection.close().unwrap();
    }
}

/// The last close waits for a while, and what is missing stays in the files. The next opening, in this process, goes on from there.
#[test]
fn a_close_waits_no_longer_than_close_timeout_and_nothing_is_lost() {
    const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);
    for trouble in [Trouble::Hang, Trouble::Temporary] {
        for mode in [Mode::Wal, Mode::ExclusiveWal, Mode::Delete] {
            let mut application = Application::start_with(mode, trouble, AMPLE, CLOSE_TIMEOUT);
            application.the_store_goes_away(trouble);
            for _ in 0..5 {
                application.commit();
            }
            application.keep();
            let closed = std::mem::replace(&mut application.connection, Connection::open_in_memory().unwrap());
            let since = Instant::now();
            closed.close().unwrap();
            let took = since.elapsed();
            // A machine may be busy with other things for seconds; a whole test is not too long then.
            assert!(took >= CLOSE_TIMEOUT && took < NEVER / 10, "{mode:?}: {took:?}");
            application.connection = open(&application.uri).unwrap();
            application.set_mode();
            application.commit();
            application.the_store_is_back();
            application.flush();
            let back = status(&application.connection);
            assert_eq!(
                (&back["generation"], &back["discontinuities"]),
                (&1.into(), &0.into()),
                "{mode:?}: {back}"
            );
            let last = application.transactions(&application.history(), 1).pop();
            assert_eq!(last, Some(application.newest()));
            for txid in application.truth.keys() {
                application.restores(*txid, Target::Txid(Txid(*txid)));
            }
        }
    }
}

macro_rules! outages {
    ($($name:ident: $run:ident($mode:ident);)*) => {$(
        #[test]
        fn $name() {
            for trouble in [Trouble::Hang, Trouble::Temporary] {
                $run(Mode::$mode, trouble);
            }
        }
    )*};
}

outages! {
    a_short_outage_leaves_no_gap: shorter_than_the_limit(Wal);
    a_short_outage_leaves_no_gap_in_exclusive_mode: shorter_than_the_limit(ExclusiveWal);
    a_short_outage_leaves_no_gap_without_a_wal: shorter_than_the_limit(Delete);
    a_long_outage_is_one_discontinuity: longer_than_the_limit(Wal);
    a_long_outage_is_one_discontinuity_in_exclusive_mode: longer_than_the_limit(ExclusiveWal);
    a_long_outage_is_one_discontinuity_without_a_wal: longer_than_the_limit(Delete);
}
