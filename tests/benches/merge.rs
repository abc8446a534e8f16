//! What merging an hour of one-second segments costs, and what it saves, at several of zstd's levels. A table for people, no assertion.
#![allow(missing_docs)]

use std::time::Instant;

use replvfs::merge::{MergeOptions, merge};
use replvfs::store::{Store, StoreOptions};
use replvfs_tests::{Scratch, block_on, flush, number, open, register_as_it_comes, use_wal};

fn main() {
    register_as_it_comes();
    let seconds = number("REPLVFS_BENCH_SECONDS").unwrap_or(3_600);
    let scratch = Scratch::in_memory();
    // Or the process that writes would merge them beside it.
    let connection = open(&scratch.uri_with("&retention=forever")).expect("opens");
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c REAL); CREATE INDEX i ON t(c)")
        .expect("a table");
    for _ in 0..seconds {
        connection
            .execute_batch("INSERT INTO t(b, c) VALUES('reading ' || hex(randomblob(12)), random() / 1e9)")
            .expect("an insert");
        flush(&connection);
    }
    drop(connection);
    let store = Store::open(&scratch.replica(), &StoreOptions::reading()).expect("opens");
    println!(
        "| level | objects | KiB | objects after | KiB after | seconds | segments a second |\n|---|---|---|---|---|---|---|"
    );
    for level in [1, 3, 6, 9, 12, 15, 19] {
        let options = MergeOptions {
            level,
            ..MergeOptions::default()
        };
        let started = Instant::now();
        let merged = block_on(merge(&store, None, &options)).expect("merges");
        let took = started.elapsed().as_secs_f64();
        println!(
            "| {level} | {} | {} | {} | {} | {took:.2} | {:.0} |",
            merged.before.objects,
            merged.before.bytes >> 10,
            merged.after.objects,
            merged.after.bytes >> 10,
            merged.before.objects as f64 / took
        );
        for span in merged.spans {
            std::fs::remove_file(scratch.file("replica").join(span.key.path())).expect("deletes a span");
        }
    }
}
