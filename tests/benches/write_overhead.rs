//! What replication costs a writer: the same commits through SQLite's own VFS and through replvfs with a file replica, in turn,
//! in one run. Absolute numbers depend on the machine and on what else it does; the ratio of neighbours is the result.
//!
//! `cargo bench --bench write_overhead [-- ROUNDS]`
#![allow(missing_docs)]

use std::time::{Duration, Instant};

use replvfs_tests::{Scratch, flush, register_as_it_comes, use_wal};
use rusqlite::Connection;

/// One kind of load: so many commits of so many rows.
struct Load {
    name: &'static str,
    commits: u32,
    rows: u32,
}

const LOADS: [Load; 2] = [
    Load {
        name: "autocommit inserts of one row",
        commits: 20_000,
        rows: 1,
    },
    Load {
        name: "transactions of 1,000 rows",
        commits: 200,
        rows: 1000,
    },
];

fn main() {
    register_as_it_comes();
    let rounds = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .next()
        .unwrap_or(7_usize);
    println!("synchronous=NORMAL, WAL, rows of 100 bytes of text, {rounds} rounds of each in turn");
    for load in &LOADS {
        let mut plain = Vec::new();
        let mut replicated = Vec::new();
        // The first pair warms up.
        for round in 0..=rounds {
            let pair = (run(load, false), run(load, true));
            if round > 0 {
                plain.push(pair.0);
                replicated.push(pair.1);
            }
        }
        let mut ratios: Vec<f64> = plain
            .iter()
            .zip(&replicated)
            .map(|(plain, own)| plain.as_secs_f64() / own.as_secs_f64())
            .collect();
        ratios.sort_by(f64::total_cmp);
        let rate = |times: &mut Vec<Duration>| {
            times.sort();
            f64::from(load.commits) / times[times.len() / 2].as_secs_f64()
        };
        println!(
            "{}: vfs=unix {:.0} commits/s, vfs=replvfs {:.0} commits/s, ratio {:.3} (from {:.3} to {:.3})",
            load.name,
            rate(&mut plain),
            rate(&mut replicated),
            ratios[ratios.len() / 2],
            ratios[0],
            ratios[ratios.len() - 1],
        );
    }
}

/// The time that the commits took, without opening, and without the last flush.
fn run(load: &Load, replicated: bool) -> Duration {
    let scratch = Scratch::new();
    let connection = if replicated {
        scratch.open()
    } else {
        Connection::open(scratch.database()).unwrap()
    };
    use_wal(&connection);
    connection
        .execute_batch("PRAGMA synchronous=NORMAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)")
        .unwrap();
    if replicated {
        flush(&connection);
    }
    let text = "Sphinx of black quartz, judge my vow. ".repeat(3);
    let mut insert = connection.prepare("INSERT INTO t(b) VALUES(?1)").unwrap();
    let start = Instant::now();
    for _ in 0..load.commits {
        if load.rows > 1 {
            connection.execute_batch("BEGIN").unwrap();
        }
        for _ in 0..load.rows {
            insert.execute([&text[..100]]).unwrap();
        }
        if load.rows > 1 {
            connection.execute_batch("COMMIT").unwrap();
        }
    }
    let time = start.elapsed();
    drop(insert);
    if replicated {
        flush(&connection);
    }
    time
}
