//! Many machines, one replica, and everything that can go wrong between them, as one order of events that a seed decides.
//!
//! What runs is the pipeline itself: the task with its log, the state file and the lock, and restores. Here is only the world around it: time, chance,
//! the store and the way to it ([`sky`]), databases and what the VFS would capture of them ([`disk`]), processes that are killed, stopped and cut off
//! ([`process`], [`schedule`]), somebody who merges and deletes ([`keeper`]), and commits that nobody sees before they are stored ([`strict`]). The promises are kept when somebody is told that something is safe ([`world`]), when an object gets into the store, and at the
//! end, by everything that is there ([`check`]).
//!
//! | variable | |
//! |---|---|
//! | `REPLVFS_SIM_SEED` | one schedule, told step by step |
//! | `REPLVFS_SIM_FIRST` | the first seed of those that are run, in place of 0 |
//! | `REPLVFS_SIM_SCHEDULES` | how many; 400 without it, 60,000 with `REPLVFS_LONG_TESTS=1` |
//!
//! With `RUST_BACKTRACE=1` it takes half as long again: each error of the store has a backtrace of its own.

mod check;
mod disk;
mod keeper;
mod model;
mod process;
mod schedule;
mod sky;
mod strict;
mod world;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::outside::simulated::{Rule, breaks};
use world::{Counts, Ear, Sim, enter};

const THREADS: u64 = 2;
/// After so many schedules that break a promise no more are looked for.
const SHOWN: usize = 5;

/// What a schedule broke, if anything.
type Violation = Option<String>;

fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    folder.unwrap()
}

/// One schedule.
fn simulate(seed: u64, traced: bool, folder: &Path) -> (Violation, Counts) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let folder = folder.join(seed.to_string());
    std::fs::create_dir(&folder).unwrap();
    let sim = runtime.block_on(async {
        let sim = Sim::new(seed, traced);
        enter(Some(&sim));
        schedule::run(&sim, &folder).await;
        sim
    });
    drop(runtime);
    enter(None);
    std::fs::remove_dir_all(&folder).unwrap();
    sim.count(|counts| counts.schedules = 1);
    let counts = sim.counts.lock().unwrap().clone();
    (sim.violation(), counts)
}

/// Schedules from `first` on, up to some that break a promise.
fn run(first: u64, count: u64, at_most: usize, rule: Option<Rule>) -> (BTreeMap<u64, String>, Counts) {
    let (next, found) = (AtomicU64::new(first), Mutex::new(BTreeMap::new()));
    let total = Mutex::new(Counts::default());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                breaks(rule);
                let folder = folder();
                let mut counts = Counts::default();
                tracing::subscriber::with_default(Ear, || {
                    while found.lock().unwrap().len() < at_most {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= first + count {
                            break;
                        }
                        let (violation, contained) = simulate(seed, false, folder.path());
                        counts.add(&contained);
                        if let Some(violation) = violation {
                            found.lock().unwrap().insert(seed, violation);
                        }
                    }
                });
                total.lock().unwrap().add(&counts);
            });
        }
    });
    (found.into_inner().unwrap(), total.into_inner().unwrap())
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

#[test]
fn no_schedule_breaks_a_promise() {
    if let Some(seed) = number("REPLVFS_SIM_SEED") {
        let folder = folder();
        let (violation, counts) = tracing::subscriber::with_default(Ear, || simulate(seed, true, folder.path()));
        eprintln!("{counts:#?}");
        assert_eq!(violation, None, "seed {seed}");
        return;
    }
    let long = std::env::var_os("REPLVFS_LONG_TESTS").is_some_and(|value| value == "1");
    let count = number("REPLVFS_SIM_SCHEDULES").unwrap_or(if long { 60_000 } else { 400 });
    let started = Instant::now();
    let (found, counts) = run(number("REPLVFS_SIM_FIRST").unwrap_or(0), count, SHOWN, None);
    let a_second = counts.schedules as f64 / started.elapsed().as_secs_f64();
    eprintln!("{:.0} schedules a second", a_second);
    for (name, count) in counts.all() {
        eprintln!("{count:>12} {}", name.replace('_', " "));
    }
    assert!(found.is_empty(), "REPLVFS_SIM_SEED=… tells how: {found:#?}");
    for (name, contained) in counts.all() {
        // It takes a disk that is set back, and days, in the right order: about 1 schedule in 20,000.
        let is_rare = name == "strays";
        assert!(
            is_rare || count < 1000 || contained > 0,
            "no schedule contained: {name}"
        );
    }
}

/// One seed is one schedule.
#[test]
fn a_seed_decides_everything() {
    let folder = folder();
    tracing::subscriber::with_default(Ear, || {
        for seed in 0..50 {
            let counted = || format!("{:?}", simulate(seed, false, folder.path()));
            assert_eq!(counted(), counted(), "seed {seed}");
        }
    });
}

/// What the simulator is for: without any one of these rules it finds a schedule that breaks a promise.
#[test]
fn a_rule_that_is_broken_is_noticed() {
    let rules = [
        (Rule::Condition, 200),
        (Rule::SealBehindWinner, 2000),
        (Rule::AnswerFirst, 200),
        (Rule::Seal, 200),
        (Rule::StillEmpty, 5000),
        (Rule::Compare, 5000),
        (Rule::Named, 5000),
        (Rule::Young, 5000),
        (Rule::LeaveAside, 2000),
    ];
    for (rule, within) in rules {
        let (found, counts) = run(0, within, 1, Some(rule));
        let (seed, violation) = found
            .first_key_value()
            .unwrap_or_else(|| panic!("{rule:?} is not needed?"));
        eprintln!(
            "{rule:?}: after {} schedules, by seed {seed}: {violation}",
            counts.schedules
        );
    }
}
