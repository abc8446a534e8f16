//! The soak: three writers on one database for as long as one likes, one of them without replvfs. They are killed and started again, the
//! one that replicates more often than the others, and the store is away now and then, whole or in part. In the end the replica must be the
//! database, page by page, with every commit that was reported; and what was acknowledged must be there at any time.
//!
//! Owns how long it takes and how a failure is replayed. `crew` owns the writers of one database, `store` the store that fails, `counts` the
//! summary. What the processes do and
//! write is `replvfs_tests::writers`.
//!
//! | variable | |
//! |---|---|
//! | `REPLVFS_SOAK_SECONDS` | how long; 20 without it, 150 with `REPLVFS_LONG_TESTS=1` |
//! | `REPLVFS_SOAK_SEED` | the seed; a fixed one without it |
//!
//! The seed decides what is done, and after how many lines of the writers somebody is killed or the store fails. Which line comes first is the
//! scheduler's business.
#![allow(missing_docs)]

mod counts;
mod crew;
mod store;

use std::time::{Duration, Instant};

use counts::Counts;
use crew::Crew;
use replvfs_tests::{Rng, number, writers};

/// Lines after which something of each kind must have happened.
const LINES: u64 = 200_000;

/// Says how to replay a failure.
struct Replay {
    seed: u64,
    seconds: u64,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let &mut Replay { seed, seconds } = self;
            eprintln!(
                "failed; again: REPLVFS_SOAK_SEED={seed} REPLVFS_SOAK_SECONDS={seconds} cargo test -p replvfs-tests --test soak -- --nocapture"
            );
        }
    }
}

/// What the other processes run: nothing, unless they are told what.
#[test]
fn other_process() {
    writers::child::run_if_asked();
}

#[test]
fn nothing_is_lost_in_the_long_run() {
    let long = std::env::var_os("REPLVFS_LONG_TESTS").is_some_and(|value| value == "1");
    let seconds = number("REPLVFS_SOAK_SECONDS").unwrap_or(if long { 150 } else { 20 });
    let seed = number("REPLVFS_SOAK_SEED").unwrap_or(1);
    let _replay = Replay { seed, seconds };
    let begin = Instant::now();
    let mut counts = Counts::default();
    let on = |counts: &Counts| {
        let enough = counts.are_enough();
        assert!(enough || counts.lines < LINES, "some trouble never came: {counts}");
        !enough || begin.elapsed() < Duration::from_secs(seconds)
    };
    let mut rng = Rng::new(seed);
    while on(&counts) {
        let mut crew = Crew::new(Rng::new(rng.next()), &mut counts);
        while on(crew.counts()) && !crew.is_done() {
            crew.turn();
        }
        crew.everything_is_in_the_replica();
    }
    println!("seed {seed}, {seconds} seconds: {counts}");
}
