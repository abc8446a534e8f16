//! What another image costs when a share of the database's chunks was touched since the last one: requests and bytes, of an image that is read from the
//! database (in WAL mode) and of one that is made out of the replica (in a rollback-journal mode, where the log since the last image is read once more). The log has one
//! segment, with a page of each chunk; storing it is counted too. A table for people, no assertion.
//!
//! `cargo bench --bench image_cost [-- MEBIBYTES]`, by default 1024. The numbers do not depend on what else the machine does.
#![allow(missing_docs)]

use std::path::Path;
use std::time::Duration;

use replvfs::Config;
use replvfs_tests::weather::{FaultyStore, Traffic};
use replvfs_tests::{flush, open, status};
use rusqlite::Connection;

/// An image is due when the last one is older, and read from the database if it is not twice as old.
const AGE: Duration = Duration::from_secs(4);
const PERMILLE: [u64; 4] = [1, 10, 100, 1000];

fn main() {
    let mebibytes = std::env::args()
        .skip(1)
        .find_map(|word| word.parse().ok())
        .unwrap_or(1024);
    println!(
        "| journal | chunks touched | made of | chunks read | GET | PUT | other | MiB read | MiB sent | part of a full image |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for journal in ["WAL", "DELETE"] {
        measure(mebibytes, journal);
    }
}

fn measure(mebibytes: u64, journal: &str) {
    // Beside the program: the folder for temporary files may be in memory.
    let mut beside = std::env::current_exe().expect("the program");
    beside.pop();
    let folder = tempfile::tempdir_in(beside).expect("a folder");
    let database = folder.path().join("app.db");
    // A MiB less for what is not rows.
    let rows = fill(&database, journal, mebibytes - 1);
    let store = FaultyStore::new(true);
    let vfs = format!("replvfs-{journal}");
    let config = Config::default().vfs_name(&vfs).operator(store.faulty.clone());
    replvfs::register(config.images_for_test(u64::MAX, AGE, Duration::ZERO, false)).expect("registers");
    let connection = open(&format!("file:{}?vfs={vfs}&flush_interval=100ms", database.display())).expect("opens");
    connection.busy_timeout(Duration::from_secs(60)).expect("waits");
    touch(&connection, rows, 1);
    flush(&connection);
    let full = store.weather.traffic();
    print(journal, "all", &connection, full, full);
    let from = if journal == "WAL" { "database" } else { "replica" };
    for permille in PERMILLE {
        let touched = (mebibytes * permille).div_ceil(1000);
        loop {
            let before = last(&connection)["txid"].clone();
            std::thread::sleep(AGE + AGE / 8);
            store.weather.storm(None);
            touch(&connection, rows, touched);
            flush(&connection);
            while last(&connection)["txid"] == before || status(&connection)["making_image"] == true {
                std::thread::sleep(Duration::from_millis(1));
            }
            // It may have been too old already.
            if last(&connection)["made_of"] == from {
                let name = format!("{touched}, {:.1} %", permille as f64 / 10.0);
                print(journal, &name, &connection, store.weather.traffic(), full);
                break;
            }
        }
    }
}

fn last(connection: &Connection) -> serde_json::Value {
    status(connection)["last_image"].clone()
}

/// A row a page, half of it noise.
fn fill(database: &Path, journal: &str, mebibytes: u64) -> u64 {
    let connection = Connection::open(database).expect("opens");
    connection
        .query_row(&format!("PRAGMA journal_mode={journal}"), [], |_| Ok(()))
        .expect("a journal mode");
    let rows = mebibytes * 256;
    connection
        .execute_batch("PRAGMA synchronous=OFF; CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .expect("a table");
    connection
        .execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             INSERT INTO t(b) SELECT randomblob(2000) || zeroblob(1900) FROM n",
            [rows.cast_signed()],
        )
        .expect("rows");
    rows
}

/// A page in each of so many chunks.
fn touch(connection: &Connection, rows: u64, chunks: u64) {
    let stride = (rows / chunks).max(256);
    connection
        .execute(
            "UPDATE t SET b = randomblob(2000) || zeroblob(1900) WHERE a IN
             (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) SELECT i * ?2 - 100 FROM n)",
            [chunks.cast_signed(), stride.cast_signed()],
        )
        .expect("an update");
}

fn print(journal: &str, touched: &str, connection: &Connection, traffic: Traffic, full: Traffic) {
    let image = last(connection);
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "| {journal} | {touched} | {} | {} of {} | {} | {} | {} | {:.2} | {:.2} | {:.2} % |",
        image["made_of"].as_str().unwrap_or("?"),
        image["chunks_read"],
        image["chunks"],
        traffic.gets,
        traffic.puts,
        traffic.others,
        mebibytes(traffic.received),
        mebibytes(traffic.sent),
        100.0 * (traffic.received + traffic.sent) as f64 / full.sent as f64
    );
}
