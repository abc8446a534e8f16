//! What a commit costs that waits for the store: writers with a connection each commit one row after another, and each request to the store takes a
//! fixed time. The levels and numbers of writers are run in turn, so that what else the machine does meets all of them.
//!
//! `cargo bench --bench durability [-- ROUNDS]`
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use replvfs::Config;
use replvfs::config::Durability;
use replvfs_tests::weather::FaultyStore;
use replvfs_tests::{Scratch, flush, open, use_wal};

const DISTANCE: Duration = Duration::from_millis(20);
const TIME: Duration = Duration::from_secs(3);
const WRITERS: [usize; 4] = [1, 4, 16, 64];
const LEVELS: [(&str, Durability); 3] = [
    ("async", Durability::Async),
    ("remote", Durability::Remote),
    ("strict", Durability::Strict),
];

/// What came of one run.
struct Outcome {
    commits_per_second: f64,
    latencies: Vec<Duration>,
    uploads: u64,
}

fn main() {
    let rounds: usize = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .next()
        .unwrap_or(3);
    println!(
        "each request takes {DISTANCE:?}; WAL, synchronous=NORMAL, one row of 100 bytes a commit, {rounds} rounds of {TIME:?} each"
    );
    println!("| level | writers | commits/s (from – to) | p50 | p99 | commits per upload |");
    println!("|---|---|---|---|---|---|");
    let mut all: BTreeMap<(usize, usize), Vec<Outcome>> = BTreeMap::new();
    for round in 0..rounds {
        for (level, (name, durability)) in LEVELS.iter().enumerate() {
            for (at, writers) in WRITERS.iter().enumerate() {
                let outcome = run(&format!("{name}-{writers}-{round}"), *durability, *writers);
                all.entry((level, at)).or_default().push(outcome);
            }
        }
    }
    for ((level, at), outcomes) in &mut all {
        outcomes.sort_by(|one, other| one.commits_per_second.total_cmp(&other.commits_per_second));
        let median = &outcomes[outcomes.len() / 2];
        let (least, most) = (&outcomes[0], &outcomes[outcomes.len() - 1]);
        let quantile = |part: usize| median.latencies[(median.latencies.len() - 1) * part / 100];
        println!(
            "| {} | {} | {:.0} ({:.0} – {:.0}) | {:.1?} | {:.1?} | {:.1} |",
            LEVELS[*level].0,
            WRITERS[*at],
            median.commits_per_second,
            least.commits_per_second,
            most.commits_per_second,
            quantile(50),
            quantile(99),
            median.latencies.len() as f64 / median.uploads.max(1) as f64,
        );
    }
}

fn run(name: &str, durability: Durability, writers: usize) -> Outcome {
    let (scratch, store) = (Scratch::new(), FaultyStore::new(true));
    let config = Config::default()
        .vfs_name(name)
        .operator(store.faulty.clone())
        .durability(durability);
    replvfs::register(config).unwrap();
    let uri = format!("file:{}?vfs={name}", scratch.database().display());
    let first = open(&uri).unwrap();
    use_wal(&first);
    first
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)")
        .unwrap();
    flush(&first);
    store.weather.storm(None);
    store.weather.move_away(DISTANCE);
    let begin = Barrier::new(writers + 1);
    let text = "Sphinx of black quartz, judge my vow. ".repeat(3);
    let (mut latencies, elapsed) = std::thread::scope(|scope| {
        let running: Vec<_> = (0..writers)
            .map(|_| {
                scope.spawn(|| {
                    let writer = open(&uri).unwrap();
                    writer.busy_timeout(Duration::from_secs(60)).unwrap();
                    writer.execute_batch("PRAGMA synchronous=NORMAL").unwrap();
                    let mut insert = writer.prepare("INSERT INTO t(b) VALUES(?1)").unwrap();
                    begin.wait();
                    let (start, mut latencies) = (Instant::now(), Vec::new());
                    while start.elapsed() < TIME {
                        let commit = Instant::now();
                        insert.execute([&text[..100]]).unwrap();
                        latencies.push(commit.elapsed());
                    }
                    latencies
                })
            })
            .collect();
        begin.wait();
        let start = Instant::now();
        let latencies: Vec<Duration> = running.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        (latencies, start.elapsed())
    });
    let uploads = store.weather.traffic().puts;
    latencies.sort();
    flush(&first);
    Outcome {
        commits_per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
        latencies,
        uploads,
    }
}
