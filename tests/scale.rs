//! Hundreds of databases that start at once, and large ones: what a process needs for them, measured at three sizes, each in a process of its own. Memory must
//! not grow with the database, and threads not with their number.
//!
//! `REPLVFS_SCALE_DATABASES` and `REPLVFS_SCALE_MEBIBYTES`: other sizes, ascending, say `256,1024,4096`.
#![allow(missing_docs)]

use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use replvfs::merge::{MergeOptions, merge};
use replvfs::store::{Store, StoreOptions};
use replvfs_tests::{
    Rng, Scratch, block_on, compare_files, flush, open, proc, register_as_it_comes, restore_txid, status, use_wal,
};
use rusqlite::Connection;

/// What a process of its own does, in words.
const JOB: &str = "REPLVFS_SCALE_JOB";
const STARTERS: usize = 8;
/// A database costs its connection, too: about 30 KiB of it is SQLite's.
const MOST_FOR_EACH: u64 = 512 << 10;
/// Those of tokio's pool for what blocks, at most, and a few of our own.
const MOST_THREADS: u64 = 512 + 32;
/// What may be in memory of a database that is so many times larger: its tables of pages and chunks.
const MOST_PART: u64 = 16;
const UPDATES: u64 = 64;

#[test]
fn other_process() {
    let Ok(job) = std::env::var(JOB) else { return };
    let words: Vec<&str> = job.split(' ').collect();
    let folder = Path::new(words[1]);
    match words[0] {
        "start" => start(folder, words[2].parse().unwrap()),
        "image" => image(folder),
        "update" => update(folder),
        "merge" => merge_all(folder),
        "restore" => {
            restore_txid(&replica(folder, "replica"), &folder.join("restored.db"), None);
        }
        "read" => read(folder),
        other => panic!("no job {other}"),
    }
    let [memory, threads] = ["VmHWM:", "Threads:"].map(|name| proc::status("self", name));
    println!("\nUSED {} {threads}", memory << 10);
}

/// What a process needed at most.
#[derive(Clone, Copy)]
struct Used {
    bytes: u64,
    threads: u64,
}

fn run(job: &str) -> Used {
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "other_process", "--nocapture"])
        .env(JOB, job)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success(),
        "{job}: {said}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let line = said.lines().find_map(|line| line.strip_prefix("USED ")).unwrap();
    let (bytes, threads) = line.split_once(' ').unwrap();
    Used {
        bytes: bytes.parse().unwrap(),
        threads: threads.parse().unwrap(),
    }
}

fn sizes(variable: &str, otherwise: &str) -> Vec<u64> {
    let sizes = std::env::var(variable).unwrap_or_else(|_| otherwise.to_owned());
    sizes
        .split(',')
        .map(|size| size.trim().parse().expect("numbers, separated by commas"))
        .collect()
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn replica(folder: &Path, name: &str) -> String {
    format!("fs://{}/{name}", folder.display())
}

#[test]
fn hundreds_of_databases_start_at_once() {
    let mut measured: Vec<(u64, Used)> = Vec::new();
    for count in sizes("REPLVFS_SCALE_DATABASES", "25,100,400") {
        let scratch = Scratch::in_memory();
        let job = format!("start {} {count}", scratch.path().display());
        // The second time they find what they left, as after a restart of the machine.
        for (starts, state) in [(1, "new"), (2, "known")] {
            let used = run(&job);
            println!(
                "{count} {state} databases: {:.1} MiB, {} threads",
                mebibytes(used.bytes),
                used.threads
            );
            assert!(
                used.threads <= MOST_THREADS,
                "{} threads for {count} databases",
                used.threads
            );
            if starts == 2 {
                measured.push((count, used));
            }
            for number in 0..count {
                let out = scratch.file("restored.db");
                restore_txid(&replica(scratch.path(), &format!("replica-{number}")), &out, None);
                let restored = Connection::open(&out).unwrap();
                let rows: Vec<i64> = restored
                    .prepare("SELECT b FROM t ORDER BY a")
                    .unwrap()
                    .query_map([], |row| row.get(0))
                    .unwrap()
                    .map(Result::unwrap)
                    .collect();
                assert_eq!(rows, vec![number as i64; starts], "database {number} of {count}");
                drop(restored);
                std::fs::remove_file(&out).unwrap();
            }
        }
    }
    let ((few, least), (many, most)) = (measured[0], measured[measured.len() - 1]);
    let each = most.bytes.saturating_sub(least.bytes) / (many - few);
    println!("{:.0} KiB for each", each as f64 / 1024.0);
    assert!(each < MOST_FOR_EACH, "{each} bytes for each");
}

/// All of them, opened by threads that begin at the same time, and written at once.
fn start(folder: &Path, count: usize) {
    proc::raise_descriptors();
    register_as_it_comes();
    let (begin, next) = (Barrier::new(STARTERS), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..STARTERS {
            scope.spawn(|| {
                begin.wait();
                let mut opened = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    let connection = open(&format!(
                        "file:{}/{number}.db?vfs=replvfs&replica={}",
                        folder.display(),
                        replica(folder, &format!("replica-{number}"))
                    ));
                    let connection = connection.unwrap();
                    use_wal(&connection);
                    connection
                        .execute_batch(&format!(
                            "CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b INTEGER); INSERT INTO t(b) VALUES ({number})"
                        ))
                        .unwrap();
                    opened.push(connection);
                }
                opened.iter().for_each(flush);
            });
        }
    });
}

const STEPS: [&str; 5] = ["image", "update", "merge", "restore", "read"];

#[test]
fn memory_does_not_grow_with_the_database() {
    let sizes = sizes("REPLVFS_SCALE_MEBIBYTES", "16,64,256");
    let mut measured: Vec<Vec<Used>> = Vec::new();
    println!(
        "| MiB of the database | {} |\n|---|---|---|---|---|---|",
        STEPS.join(" | ")
    );
    for size in &sizes {
        // Beside the program: the folder for temporary files may be in memory.
        let mut beside = std::env::current_exe().unwrap();
        beside.pop();
        let folder = tempfile::tempdir_in(beside).unwrap();
        fill(&folder.path().join("app.db"), *size);
        let used = STEPS.map(|step| run(&format!("{step} {}", folder.path().display())));
        let shown = used.map(|used| format!("{:.1}", mebibytes(used.bytes)));
        println!("| {size} | {} |", shown.join(" | "));
        let plain = Connection::open(folder.path().join("app.db")).unwrap();
        plain
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .unwrap();
        drop(plain);
        compare_files(&folder.path().join("app.db"), &folder.path().join("restored.db")).unwrap();
        measured.push(used.to_vec());
    }
    let grown = (sizes[sizes.len() - 1] - sizes[0]) << 20;
    for (at, step) in STEPS.iter().enumerate() {
        let (small, large) = (measured[0][at].bytes, measured[sizes.len() - 1][at].bytes);
        let more = large.saturating_sub(small);
        assert!(
            more < grown / MOST_PART,
            "{step}: {:.1} MiB more for {:.0} MiB more of the database",
            mebibytes(more),
            mebibytes(grown)
        );
    }
}

/// Rows of a KiB, half of it noise.
fn fill(database: &Path, mebibytes: u64) {
    let connection = Connection::open(database).unwrap();
    use_wal(&connection);
    let rows = mebibytes << 10;
    connection
        .execute_batch(&format!(
            "PRAGMA synchronous=OFF; CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
             INSERT INTO t(b) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             SELECT hex(randomblob(256)) || replace(hex(zeroblob(250)), '0', 'x') FROM n"
        ))
        .unwrap();
}

fn opened(folder: &Path) -> Connection {
    register_as_it_comes();
    // Or the process that writes would merge its segments.
    let uri = format!(
        "file:{}/app.db?vfs=replvfs&retention=forever&timeout=10m&replica={}",
        folder.display(),
        replica(folder, "replica")
    );
    open(&uri).unwrap()
}

fn image(folder: &Path) {
    let connection = opened(folder);
    connection.query_row("SELECT max(a) FROM t", [], |_| Ok(())).unwrap();
    flush(&connection);
    while status(&connection)["image"] != "stored" {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// A page in each fiftieth part of the database, in a segment each time.
fn update(folder: &Path) {
    let connection = opened(folder);
    let rows: i64 = connection
        .query_row("SELECT max(a) FROM t", [], |row| row.get(0))
        .unwrap();
    let mut rng = Rng::new(1);
    for _ in 0..UPDATES {
        let from = rng.below(rows.unsigned_abs()) as i64;
        connection
            .execute(
                "UPDATE t SET b = 'changed' || b WHERE a % (?2 / 50) = ?1 % (?2 / 50)",
                [from, rows],
            )
            .unwrap();
        flush(&connection);
    }
}

fn merge_all(folder: &Path) {
    let store = Store::open(&replica(folder, "replica"), &StoreOptions::reading()).unwrap();
    let options = MergeOptions {
        pieces: 2,
        ..MergeOptions::default()
    };
    let merged = block_on(merge(&store, None, &options)).unwrap();
    assert!(!merged.spans.is_empty(), "there was nothing to merge");
}

fn read(folder: &Path) {
    register_as_it_comes();
    let uri = format!(
        "file:app.db?vfs=replvfs-remote&page_cache=16MiB&replica={}",
        replica(folder, "replica")
    );
    let connection = open(&uri).unwrap();
    let changed: i64 = connection
        .query_row("SELECT count(*) FROM t WHERE b LIKE 'changed%'", [], |row| row.get(0))
        .unwrap();
    assert!(changed > 0);
}
