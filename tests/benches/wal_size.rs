//! How long the WAL gets under one write load, on plain SQLite and through replvfs with a store that answers: the largest size of the file that
//! was seen, and checkpoints that were held back. A table for people, no assertion.
#![allow(missing_docs)]

use std::time::{Duration, Instant};

use replvfs_tests::{Scratch, open, register_as_it_comes, use_wal};
use rusqlite::Connection;

const LOADS: [(&str, u32, Duration); 4] = [
    ("a row every 10 ms", 1, Duration::from_millis(10)),
    ("100 rows every 10 ms", 100, Duration::from_millis(10)),
    ("a row, without a pause", 1, Duration::ZERO),
    ("100 rows, without a pause", 100, Duration::ZERO),
];

fn seconds() -> u64 {
    std::env::var("REPLVFS_BENCH_SECONDS").map_or(6, |seconds| seconds.parse().expect("a number"))
}

struct Seen {
    commits: u64,
    largest: u64,
}

fn load(connection: &Connection, wal: &std::path::Path, rows: u32, pause: Duration) -> Seen {
    use_wal(connection);
    connection
        .execute_batch("PRAGMA synchronous=NORMAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
        .expect("a table");
    let mut insert = connection
        .prepare(
            "INSERT INTO t(b) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) SELECT randomblob(200) FROM n",
        )
        .expect("a statement");
    let end = Instant::now() + Duration::from_secs(seconds());
    let mut seen = Seen { commits: 0, largest: 0 };
    while Instant::now() < end {
        insert.execute([rows]).expect("an insert");
        seen.commits += 1;
        if seen.commits.is_multiple_of(16) || pause > Duration::ZERO {
            let length = std::fs::metadata(wal).map_or(0, |meta| meta.len());
            seen.largest = seen.largest.max(length);
        }
        std::thread::sleep(pause);
    }
    seen
}

fn main() {
    register_as_it_comes();
    println!("| load | commits plain | commits replvfs | WAL plain, KiB | WAL replvfs, KiB |\n|---|---|---|---|---|");
    for (name, rows, pause) in LOADS {
        let run = |replicated: bool| {
            let scratch = Scratch::new();
            let connection = if replicated {
                open(&scratch.uri()).expect("opens")
            } else {
                Connection::open(scratch.database()).expect("opens")
            };
            let mut wal = scratch.database().into_os_string();
            wal.push("-wal");
            load(&connection, wal.as_ref(), rows, pause)
        };
        let (plain, ours) = (run(false), run(true));
        println!(
            "| {name} | {} | {} | {} | {} |",
            plain.commits,
            ours.commits,
            plain.largest / 1024,
            ours.largest / 1024
        );
    }
}
