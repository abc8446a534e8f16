//! The kill -9 harness: writers are killed at moments chosen by a seed, started again, and no commit that SQLite reported may
//! be missing from the replica afterwards, nor any transaction be there in part.
//!
//! Owns how many rounds there are and how a failure is replayed. `plan` owns what is drawn from the seed, `round` hearing and killing
//! the writers, `objects` the look into the store, `campaign` the rounds of one database, `counts` the summary. What the processes do and
//! write is `replvfs_tests::writers`.
//!
//! | variable | |
//! |---|---|
//! | `REPLVFS_KILL_ROUNDS` | rounds; 60 without it, 240 with `REPLVFS_LONG_TESTS=1` |
//! | `REPLVFS_KILL_SEED` | the seed; a fixed one without it |
//!
//! The seed decides what is done and when a kill is due; when within a phase it strikes is the scheduler's business too. So a
//! failure may need its seed a few times to come again.
#![allow(missing_docs)]

mod campaign;
mod counts;
mod objects;
mod plan;
mod round;

use campaign::Campaign;
use counts::Counts;
use plan::Rng;
use replvfs_tests::{number, writers};

/// Rounds with one database: long enough for several restarts, short enough that images stay small.
const ROUNDS_OF_A_DATABASE: u64 = 10;

/// Says how to replay a failure.
struct Replay {
    seed: u64,
    round: u64,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let &mut Replay { seed, round } = self;
            eprintln!(
                "failed in round {round}; again: REPLVFS_KILL_SEED={seed} REPLVFS_KILL_ROUNDS={} cargo test -p replvfs-tests --test kill",
                round + 1
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
fn what_was_reported_is_never_lost() {
    let long = std::env::var_os("REPLVFS_LONG_TESTS").is_some_and(|value| value == "1");
    let rounds = number("REPLVFS_KILL_ROUNDS").unwrap_or(if long { 240 } else { 60 });
    let seed = number("REPLVFS_KILL_SEED").unwrap_or(3);
    let mut replay = Replay { seed, round: 0 };
    let mut counts = Counts::default();
    // The scheduler decides too, so that what is rare may need some more of them.
    while replay.round < rounds || (replay.round < 2 * rounds && !counts.missing(rounds).is_empty()) {
        let campaign = replay.round / ROUNDS_OF_A_DATABASE;
        let rng = Rng::new(seed.wrapping_mul(1_000_003).wrapping_add(campaign));
        let mut campaign = Campaign::new(rng, &mut counts);
        let ahead = rounds.saturating_sub(replay.round);
        for _ in 0..ROUNDS_OF_A_DATABASE.min(if ahead == 0 { ROUNDS_OF_A_DATABASE } else { ahead }) {
            campaign.round();
            replay.round += 1;
        }
    }
    println!("seed {seed}: {counts}");
    let missing = counts.missing(rounds);
    assert!(missing.is_empty(), "it never came to this: {missing:?}");
}
