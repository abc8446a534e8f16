//! Power loss: at every I/O of a script the power may go, and the disk then keeps what was synced and loses, reorders or tears what was
//! not. After SQLite's own recovery the database and its replica must never disagree without saying so.
//!
//! Owns the matrix and the knobs. In the order of a test: `script` runs on one of two disks (`recorder`, `simulated`, behind `medium`),
//! `tape` keeps what happened, `disk` says what a power loss leaves of it, `crash` checks what comes of that.
//!
//! | variable | |
//! |---|---|
//! | `REPLVFS_POWER_POINTS` | power losses of long scripts on each disk, shared among its setups; 120 without it. Short scripts are always done in full |
//! | `REPLVFS_POWER_SEED` | the seed of the scripts, of the moments, and of what is lost; a fixed one without it |
//! | `REPLVFS_POWER_SETUP` | only setups whose name contains it |
//!
//! The seed decides everything but when uploads are done, which is up to the threads. So a failure may need its seed a few times to come again.
#![allow(missing_docs)]

mod crash;
mod disk;
mod free_pages;
mod medium;
mod recorder;
mod script;
mod simulated;
mod tape;

use crash::{Counts, Crashes};
use medium::Medium;
use replvfs_tests::{Rng, number};
use script::{Before, Journal, Setup, Synchronous, run, run_again};

/// Power losses of long scripts on each disk.
const POINTS: u64 = 120;
/// After each so many of them the application goes on, and the power goes again.
const AGAIN_EVERY: usize = 4;
/// So many times.
const POINTS_AGAIN: u64 = 3;

/// Says how to replay a failure.
struct Replay {
    seed: u64,
    setup: String,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Replay { seed, setup } = self;
            let points = number("REPLVFS_POWER_POINTS").unwrap_or(POINTS);
            eprintln!(
                "again: REPLVFS_POWER_SETUP='{setup}' REPLVFS_POWER_SEED={seed} REPLVFS_POWER_POINTS={points} \
                 cargo test -p replvfs-tests --test power_loss"
            );
        }
    }
}

/// Everything that a disk is tested with.
fn setups(medium: Medium) -> Vec<Setup> {
    // Without and with exclusive locking.
    // WAL without shared memory is possible in exclusive locking mode only.
    let wal: &[bool] = match medium {
        Medium::Recorded => &[false, true],
        Medium::Simulated => &[true],
    };
    let journals: &[(Journal, &[bool])] = &[
        (Journal::Wal, wal),
        (Journal::Delete, &[false, true]),
        (Journal::Truncate, &[false]),
        (Journal::Persist, &[false, true]),
    ];
    let levels = [Synchronous::Normal, Synchronous::Full, Synchronous::Off];
    let mut setups = Vec::new();
    for (journal, locking) in journals {
        for (exclusive, synchronous) in locking.iter().flat_map(|locking| levels.map(|level| (*locking, level))) {
            setups.push(Setup {
                medium,
                journal: *journal,
                exclusive,
                synchronous,
                strict: false,
                steps: 30,
            });
        }
    }
    setups
}

/// The same with `durability=strict`. With `synchronous=OFF` SQLite promises nothing of what was there before either.
fn strict_setups(medium: Medium) -> Vec<Setup> {
    let mut setups = setups(medium);
    // The crate `sqlite-vfs` does not tell a file system that a name which is removed must not come back.
    let forgets = |setup: &Setup| medium == Medium::Simulated && setup.journal == Journal::Delete && !setup.exclusive;
    setups.retain(|setup| setup.synchronous != Synchronous::Off && !forgets(setup));
    setups.iter_mut().for_each(|setup| setup.strict = true);
    setups
}

/// Samples of long scripts.
fn sampled(medium: Medium, setups: Vec<Setup>, points: u64) -> Counts {
    let each = (points / setups.len() as u64).max(1);
    let mut counts = Counts::default();
    for (index, setup) in setups.into_iter().enumerate() {
        counts += &of_setup(setup, index as u64, |events, rng| {
            // Spread over the whole script.
            let point = |point| (point * events + rng.below(events)) / each;
            (0..each).map(point).collect()
        });
    }
    println!("{medium:?}, in all: {counts:?}");
    counts
}

fn points() -> u64 {
    number("REPLVFS_POWER_POINTS").unwrap_or(POINTS)
}

fn are_worth_it(medium: Medium, counts: &Counts) {
    if points() >= POINTS && std::env::var_os("REPLVFS_POWER_SETUP").is_none() {
        counts.are_worth_it(medium);
    }
}

/// A short script, and all of its events.
fn all_of_a_short_script(medium: Medium) {
    let setup = Setup {
        steps: 6,
        ..setups(medium)[0]
    };
    of_setup(setup, 0, |events, _| (0..=events).collect());
}

/// Runs the script of a setup, and takes the power away at the events that are drawn.
fn of_setup(setup: Setup, index: u64, points: impl FnOnce(u64, &mut Rng) -> Vec<u64>) -> Counts {
    let seed = number("REPLVFS_POWER_SEED").unwrap_or(1);
    let wanted = std::env::var("REPLVFS_POWER_SETUP").unwrap_or_default();
    let name = format!("{setup:?}");
    let mut counts = Counts::default();
    if !name.contains(&wanted) {
        return counts;
    }
    let _replay = Replay {
        seed,
        setup: name.clone(),
    };
    let mut rng = Rng::new(seed.wrapping_mul(1_000_003).wrapping_add(index));
    let run = run(setup, rng.next());
    let mut crashes = Crashes::new(&run);
    let events = run.recording.events.len() as u64;
    for (index, at) in points(events, &mut rng).into_iter().enumerate() {
        let left = crashes.check(usize::try_from(at).unwrap(), rng.next());
        if let Some(before) = left.filter(|_| index % AGAIN_EVERY == 0) {
            again(setup, before, &mut rng, &mut counts);
        }
    }
    counts += &crashes.counts;
    println!("{name}, {events} events: {counts:?}");
    counts
}

/// The application goes on after the power loss, and the power goes again.
fn again(setup: Setup, before: Before, rng: &mut Rng, counts: &mut Counts) {
    let run = run_again(setup, before, rng.next());
    let mut crashes = Crashes::new(&run);
    for _ in 0..POINTS_AGAIN {
        let at = rng.below(run.recording.events.len() as u64 + 1);
        crashes.check(usize::try_from(at).unwrap(), rng.next());
    }
    *counts += &crashes.counts;
}

#[test]
fn on_a_recorded_disk() {
    all_of_a_short_script(Medium::Recorded);
    let counts = sampled(Medium::Recorded, setups(Medium::Recorded), points());
    are_worth_it(Medium::Recorded, &counts);
}

#[test]
fn on_a_simulated_disk() {
    all_of_a_short_script(Medium::Simulated);
    let counts = sampled(Medium::Simulated, setups(Medium::Simulated), points());
    are_worth_it(Medium::Simulated, &counts);
}

#[test]
fn what_nobody_saw_before_it_was_in_the_replica_stays_here_as_well() {
    for medium in [Medium::Recorded, Medium::Simulated] {
        sampled(medium, strict_setups(medium), points() / 3);
    }
}
