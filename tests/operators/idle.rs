//! A database that nobody writes asks nothing of its store.
//!
//! Nothing proves that by waiting. So another database has the same settings, with every timer as short as it can be set, and is written by somebody who has no replvfs: each
//! commit that gets into its replica was found by the timer that looks for such, and is followed by an image that was due by age, and by upkeep. While all that happened
//! often, the idle ones had the same time, and the same timers.

use std::time::{Duration, Instant};

use replvfs::Config;
use replvfs::config::Retention;
use replvfs_tests::weather::{FaultyStore, Traffic};
use replvfs_tests::{Scratch, block_on, flush, open, status};
use rusqlite::Connection;

const ROUNDS: u64 = 50;
const LONGEST: Duration = Duration::from_secs(60);

struct Database {
    /// What it does.
    what: &'static str,
    scratch: Scratch,
    store: FaultyStore,
    vfs: String,
}

impl Database {
    fn new(what: &'static str) -> Database {
        let (scratch, store) = (Scratch::in_memory(), FaultyStore::new(true));
        let vfs = format!("idle-{what}");
        let config = Config::default()
            .vfs_name(&vfs)
            .operator(store.faulty.clone())
            .images_for_test(0, Duration::from_millis(1), Duration::from_millis(1), false)
            .upkeep_for_tests(1, 2, Duration::ZERO, Retention::For(Duration::from_millis(1)));
        replvfs::register(config).unwrap();
        Database {
            what,
            scratch,
            store,
            vfs,
        }
    }

    fn open(&self) -> Connection {
        let path = self.scratch.database();
        open(&format!("file:{}?vfs={}&flush_interval=10ms", path.display(), self.vfs)).unwrap()
    }

    fn begun(&self, journal: &str) -> Connection {
        let connection = self.open();
        connection
            .execute_batch(&format!(
                "PRAGMA journal_mode={journal}; CREATE TABLE t(x); INSERT INTO t VALUES (1)"
            ))
            .unwrap();
        flush(&connection);
        connection
    }

    fn requests(&self) -> (usize, Traffic) {
        (self.store.weather.calls().len(), self.store.weather.traffic())
    }
}

/// The one that is not idle, and who writes it.
struct Busy {
    database: Database,
    /// Looks what is in the replica. Writes nothing.
    watcher: Connection,
    writer: Connection,
}

impl Busy {
    fn new() -> Busy {
        let database = Database::new("busy");
        let watcher = database.begun("WAL");
        let writer = Connection::open(database.scratch.database()).unwrap();
        writer.busy_timeout(LONGEST).unwrap();
        Busy {
            database,
            watcher,
            writer,
        }
    }

    /// Until the timer has found the commits, one after another.
    fn rounds(&self, count: u64) {
        for _ in 0..count {
            let before = status(&self.watcher)["acked"].as_u64().unwrap();
            self.writer.execute_batch("INSERT INTO t VALUES (1)").unwrap();
            let end = Instant::now() + LONGEST;
            while status(&self.watcher)["acked"].as_u64().unwrap() <= before {
                assert!(Instant::now() < end, "{}", status(&self.watcher));
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// What upkeep has made of its segments.
    fn spans(&self) -> usize {
        let list = async { self.database.store.healthy.list_with("").recursive(true).await };
        let all = block_on(list).unwrap();
        all.iter().filter(|entry| entry.path().contains("/span/")).count()
    }

    fn last_image(&self) -> u64 {
        status(&self.watcher)["last_image"]["txid"].as_u64().unwrap()
    }
}

#[test]
fn a_database_that_is_idle_sends_no_request() {
    let [wal, journal, read, closed, empty] = ["wal", "journal", "read", "closed", "empty"].map(Database::new);
    let (open_wal, open_journal, reader) = (wal.begun("WAL"), journal.begun("DELETE"), read.begun("WAL"));
    drop(closed.begun("WAL"));
    // A file of no bytes, in which nothing was ever written.
    let opened = empty.open();
    let idle = [wal, journal, read, closed, empty];
    let busy = Busy::new();
    // What was begun for them is over when all of them have been quiet for a while.
    let end = Instant::now() + LONGEST;
    let requests = || idle.each_ref().map(Database::requests);
    let mut before = requests();
    loop {
        busy.rounds(5);
        let now = requests();
        if now == before {
            break;
        }
        assert!(Instant::now() < end, "they do not come to rest: {before:?} {now:?}");
        before = now;
    }
    let (image, spans) = (busy.last_image(), busy.spans());
    for _ in 0..ROUNDS {
        busy.rounds(1);
        let rows: i64 = reader
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 1);
    }
    for (database, (before, now)) in idle.iter().zip(before.into_iter().zip(requests())) {
        assert_eq!(
            before,
            now,
            "the one that is {}: {:?}",
            database.what,
            database.store.weather.calls()
        );
    }
    // All timers were short.
    assert!(busy.last_image() > image, "no image was due by its age");
    assert!(busy.spans() > spans, "nothing was looked after");
    drop((open_wal, open_journal, opened));
}
