//! What the log of a replica weighs: the bytes of its segments for each byte that SQLite wrote into the WAL, for small inserts and for large
//! imports. Every commit can be restored from them. A table for people, no assertion. What merging makes of small segments is in `merge.rs`.
//!
//! `cargo bench --bench replica_bytes`
#![allow(missing_docs)]

use std::time::Duration;

use replvfs::Txid;
use replvfs::format::Key;
use replvfs::history::History;
use replvfs::store::{Store, StoreOptions};
use replvfs_tests::{Scratch, block_on, flush, open, register_as_it_comes, use_wal};

/// Before each page in the WAL: <https://sqlite.org/fileformat2.html#walformat>.
const FRAME_HEADER_BYTES: u64 = 24;
const PAGE_BYTES: u64 = 4096;

struct Load {
    name: &'static str,
    statement: &'static str,
    commits: u32,
    pause: Duration,
}

const LOADS: [Load; 4] = [
    Load {
        name: "a row of text at a time, 1,000 a second",
        statement: "INSERT INTO t(b) VALUES('order ' || abs(random() % 100000) || ' of customer ' || abs(random() % 1000) \
                    || ', paid on ' || datetime('now', abs(random() % 86400) || ' seconds') || ', to be sent soon')",
        commits: 6_000,
        pause: Duration::from_millis(1),
    },
    Load {
        name: "a row of 200 random bytes at a time, 1,000 a second",
        statement: "INSERT INTO t(b) VALUES(randomblob(200))",
        commits: 6_000,
        pause: Duration::from_millis(1),
    },
    Load {
        name: "imports of 100,000 rows of text",
        statement: "INSERT INTO t(b) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) \
                    SELECT 'order ' || i || ' of customer ' || abs(random() % 1000) || ', to be sent soon' FROM n",
        commits: 10,
        pause: Duration::ZERO,
    },
    Load {
        name: "updates of one row in 100,000",
        statement: "UPDATE t SET b = 'changed ' || random() WHERE a = 1 + abs(random() % 100000)",
        commits: 6_000,
        pause: Duration::from_millis(1),
    },
];

fn main() {
    register_as_it_comes();
    println!("| load | WAL, MiB | segments / WAL |\n|---|---|---|");
    for load in &LOADS {
        run(load);
    }
}

fn run(load: &Load) {
    let scratch = Scratch::new();
    let connection = open(&scratch.uri()).expect("opens");
    use_wal(&connection);
    connection
        .execute_batch(
            "PRAGMA synchronous=NORMAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b); \
             INSERT INTO t(b) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) \
             SELECT 'order ' || i || ' of customer ' || abs(random() % 1000) FROM n",
        )
        .expect("a table");
    flush(&connection);
    let before = weight(&scratch);
    let mut statement = connection.prepare(load.statement).expect("a statement");
    for _ in 0..load.commits {
        statement.execute([]).expect("a commit");
        std::thread::sleep(load.pause);
    }
    drop(statement);
    flush(&connection);
    let after = weight(&scratch);
    let wal = (after.pages - before.pages) * (PAGE_BYTES + FRAME_HEADER_BYTES);
    println!(
        "| {} | {:.1} | {:.3} |",
        load.name,
        wal as f64 / f64::from(1 << 20),
        (after.log - before.log) as f64 / wal as f64
    );
}

/// Bytes of the log, and pages in it.
struct Weight {
    log: u64,
    pages: u64,
}

fn weight(scratch: &Scratch) -> Weight {
    let store = Store::open(&scratch.replica(), &StoreOptions::reading()).expect("the replica");
    let mut pages = 0;
    let history = block_on(History::open(&store)).expect("the history");
    for generation in history.generations() {
        let visit = history.transactions(generation.meta().generation, Txid(0)..=Txid(u64::MAX), |entry| {
            pages += u64::from(entry.pages);
        });
        block_on(visit).expect("the log");
    }
    let listed = block_on(store.list("gen/")).expect("a listing");
    let log = listed.into_iter().filter(|(key, _)| matches!(key, Key::Log(..)));
    Weight {
        log: log.map(|(_, len)| len).sum(),
        pages,
    }
}
