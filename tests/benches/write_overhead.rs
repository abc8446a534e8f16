//! What replication costs a writer: the same commits through SQLite's own VFS and through replvfs with a file replica, in turn, in one run. Absolute numbers depend
//! on the machine and on what else it does; the ratio of neighbours is the result.
//!
//! `cargo bench --bench write_overhead [-- ROUNDS]`. `REPLVFS_BENCH_SQL`: run on each connection, say `PRAGMA wal_autocheckpoint=100000`.
#![allow(missing_docs)]

use std::time::{Duration, Instant};

use replvfs_tests::{Scratch, flush, register_as_it_comes, use_wal};
use rusqlite::Connection;

/// One kind of load: so many commits of so many rows in each round.
struct Load {
    name: &'static str,
    commits: u32,
    rows: u32,
}

const LOADS: [Load; 2] = [
    Load {
        name: "autocommit inserts of one row",
        commits: 10_000,
        rows: 1,
    },
    Load {
        name: "transactions of 1,000 rows",
        commits: 40,
        rows: 1000,
    },
];

/// What a round took.
struct Round {
    wall: Duration,
    /// Of the thread that commits.
    cpu: Duration,
    /// Of the whole process, until all is in the replica.
    whole_cpu: Duration,
    /// From the last commit until all is in the replica.
    behind: Duration,
}

fn main() {
    register_as_it_comes();
    let rounds = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .next()
        .unwrap_or(49_usize);
    println!(
        "synchronous=NORMAL, WAL, rows of 100 bytes of text, median of {rounds} rounds of each in turn (quartiles)"
    );
    println!(
        "| | vfs=unix, commits/s | vfs=replvfs | replvfs/unix | the same by CPU of the writer | CPU of replication, µs a commit | ms behind |"
    );
    println!("|---|---|---|---|---|---|---|");
    for load in &LOADS {
        let (mut plain, mut own) = (Writer::new(load, false), Writer::new(load, true));
        let mut pairs = Vec::new();
        // The first pair warms up.
        for round in 0..=rounds {
            let pair = match round % 2 {
                0 => (plain.run(), own.run()),
                _ => {
                    let own = own.run();
                    (plain.run(), own)
                }
            };
            if round > 0 {
                pairs.push(pair);
            }
        }
        print(load, &pairs);
    }
}

fn print(load: &Load, pairs: &[(Round, Round)]) {
    let commits = f64::from(load.commits);
    let of = |number: fn(&Round, &Round) -> f64| spread(pairs.iter().map(|(plain, own)| number(plain, own)).collect());
    println!(
        "| {} | {:.0} | {:.0} | {} | {} | {:.2} | {:.0} |",
        load.name,
        commits / of(|plain, _| plain.wall.as_secs_f64()).median,
        commits / of(|_, own| own.wall.as_secs_f64()).median,
        of(|plain, own| plain.wall.as_secs_f64() / own.wall.as_secs_f64()),
        of(|plain, own| plain.cpu.as_secs_f64() / own.cpu.as_secs_f64()),
        of(|plain, own| (own.whole_cpu.as_secs_f64() - plain.whole_cpu.as_secs_f64()) * 1e6).median / commits,
        of(|_, own| own.behind.as_secs_f64() * 1e3).median,
    );
}

struct Spread {
    median: f64,
    from: f64,
    to: f64,
}

fn spread(mut numbers: Vec<f64>) -> Spread {
    numbers.sort_by(f64::total_cmp);
    Spread {
        median: numbers[numbers.len() / 2],
        from: numbers[numbers.len() / 4],
        to: numbers[numbers.len() * 3 / 4],
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} ({:.3} – {:.3})", self.median, self.from, self.to)
    }
}

struct Writer<'a> {
    load: &'a Load,
    replicated: bool,
    connection: Connection,
    _scratch: Scratch,
}

impl Writer<'_> {
    fn new(load: &Load, replicated: bool) -> Writer<'_> {
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
        if let Ok(sql) = std::env::var("REPLVFS_BENCH_SQL") {
            connection.execute_batch(&sql).unwrap();
        }
        if replicated {
            flush(&connection);
        }
        Writer {
            load,
            replicated,
            connection,
            _scratch: scratch,
        }
    }

    /// On a thread with a name of its own, for profilers.
    fn run(&mut self) -> Round {
        let name = if self.replicated { "replicated" } else { "plain" };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn_scoped(scope, || self.commit());
            thread.unwrap().join().unwrap()
        })
    }

    fn commit(&mut self) -> Round {
        let (load, connection) = (self.load, &self.connection);
        let text = "Sphinx of black quartz, judge my vow. ".repeat(3);
        let mut insert = connection.prepare("INSERT INTO t(b) VALUES(?1)").unwrap();
        let (whole, cpu, start) = (process_cpu(), thread_cpu(), Instant::now());
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
        let (wall, cpu) = (start.elapsed(), thread_cpu() - cpu);
        let end = Instant::now();
        if self.replicated {
            flush(connection);
        }
        Round {
            wall,
            cpu,
            behind: end.elapsed(),
            whole_cpu: process_cpu() - whole,
        }
    }
}

fn thread_cpu() -> Duration {
    on_cpu("/proc/thread-self/schedstat")
}

fn process_cpu() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    threads
        .map(|thread| on_cpu(&format!("{}/schedstat", thread.path().display())))
        .sum()
}

/// Nanoseconds come first there.
fn on_cpu(path: &str) -> Duration {
    let line = std::fs::read_to_string(path).unwrap_or_default();
    let nanoseconds = line.split_whitespace().next().and_then(|number| number.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}
