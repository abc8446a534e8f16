//! Power loss: at every I/O of a script the power may go, and the disk then keeps what was synced and loses, reorders or tears what was
//! not. After SQLite's own recovery the database and its replica must never disagree without saying so.
//!
//! Owns the matrix and the knobs. In the order of a test: `script` runs on one of two disks (`recorder`, `simulated`, behind `medium`),
//! `tape` keeps what happened, `disk` says what a power loss leaves of it, `crash` checks what comes of that.
//!
//! | variable | |
//! |---|---|
//! | `REPLVFS_POWER_POINTS` | power losses of each setup; 24 without it |
//! | `REPLVFS_POWER_SEED` | the seed of the scripts, of the moments, and of what is lost; a fixed one without it |
//! | `REPLVFS_POWER_SETUP` | only setups whose name contains it |
//!
//! The seed decides all but when uploads are done, which is up to the threads. So a failure may need its seed a few times to come again.
#![allow(missing_docs)]

mod crash;
mod disk;
mod medium;
mod recorder;
mod script;
mod simulated;
mod tape;

use crash::Crashes;
use medium::Medium;
use replvfs_tests::Rng;
use script::{Journal, Setup, Synchronous, run};

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
    )
}

/// Says how to replay a failure.
struct Replay {
    seed: u64,
    points: u64,
    setup: String,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Replay { seed, points, setup } = self;
            eprintln!(
                "again: REPLVFS_POWER_SETUP='{setup}' REPLVFS_POWER_SEED={seed} REPLVFS_POWER_POINTS={points} \
                 cargo test -p replvfs-tests --test power_loss"
            );
        }
    }
}

fn setups(medium: Medium) -> Vec<Setup> {
    let journals: &[(Journal, &[bool])] = match medium {
        Medium::Recorded => &[(Journal::Wal, &[false, true])],
        Medium::Simulated => &[(Journal::Wal, &[true])],
    };
    let mut setups = Vec::new();
    for (journal, locking) in journals {
        for exclusive in *locking {
            for synchronous in [Synchronous::Normal, Synchronous::Full, Synchronous::Off] {
                setups.push(Setup {
                    medium,
                    journal: *journal,
                    exclusive: *exclusive,
                    synchronous,
                    steps: 30,
                });
            }
        }
    }
    setups
}

fn power_losses(medium: Medium) {
    let points = number("REPLVFS_POWER_POINTS").unwrap_or(24);
    let seed = number("REPLVFS_POWER_SEED").unwrap_or(1);
    let wanted = std::env::var("REPLVFS_POWER_SETUP").unwrap_or_default();
    for (index, setup) in setups(medium).into_iter().enumerate() {
        let name = format!("{setup:?}");
        if !name.contains(&wanted) {
            continue;
        }
        let _replay = Replay {
            seed,
            points,
            setup: name.clone(),
        };
        let began = std::time::Instant::now();
        let mut rng = Rng::new(seed.wrapping_mul(1_000_003).wrapping_add(index as u64));
        let run = run(setup, rng.next());
        let events = run.recording.events.len() as u64;
        let ran = began.elapsed();
        let mut crashes = Crashes::new(&run);
        for point in 0..points {
            // Spread over the whole script.
            let at = (point * events + rng.below(events)) / points;
            crashes.check(usize::try_from(at).unwrap(), rng.next());
        }
        println!(
            "{name}: {events} events in {ran:?}, all {:?}: {:?}",
            began.elapsed(),
            crashes.counts
        );
    }
}

#[test]
fn on_a_recorded_disk() {
    power_losses(Medium::Recorded);
}

#[test]
fn on_a_simulated_disk() {
    power_losses(Medium::Simulated);
}
