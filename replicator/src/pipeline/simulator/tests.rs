//! Schedules that seeds decide.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use replvfs_vfs::types::PageSize;

use super::script::{self, Action, Change, Chore, Fill, Operation, Script, Step};
use super::world::{Counts, Ear, Rng};
use super::{folder, simulate};
use crate::outside::simulated::{Rule, breaks};

const THREADS: u64 = 2;
/// After so many schedules that break a promise no more are looked for.
const SHOWN: usize = 5;

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

/// As the fuzz target `history` writes them; there it is not chance that does.
fn script(seed: u64, traced: bool) -> Script {
    let mut rng = Rng::new(seed, 5);
    let page_size = PageSize::new(512 << rng.below(8)).unwrap();
    let change = |rng: &mut Rng| {
        let pages = 1 + rng.below(12) as usize;
        let writes = (0..rng.below(6)).map(|_| {
            let fill = match rng.below(3) {
                0 => Fill::Byte(rng.below(256) as u8),
                1 => Fill::Noise(rng.next()),
                _ => Fill::Own,
            };
            (rng.below(14) as usize, fill)
        });
        Change {
            writes: writes.collect(),
            pages,
        }
    };
    let founded = change(&mut rng);
    let steps = (0..10 + rng.below(14)).map(|_| {
        let action = match rng.below(20) {
            0 => Action::Chore(Chore::DaysPass),
            1 => Action::Chore(Chore::Prune),
            2 => Action::Chore(Chore::Merge),
            3 => Action::Chore(Chore::GiveUp),
            4 => Action::Look,
            _ => Action::Machine(rng.below(3) as usize, Operation::drawn(rng.below(100))),
        };
        Step {
            longest_ms: [5, 500, 60_000][rng.below(3) as usize],
            luck: rng.next(),
            changes: (0..rng.below(3)).map(|_| change(&mut rng)).collect(),
            action,
        }
    });
    let steps = steps.collect();
    Script {
        seed,
        page_size,
        founded,
        steps,
        traced,
    }
}

/// All that the store has then is restored, by number and by time.
#[test]
fn no_script_breaks_a_promise() {
    let traced = number("REPLVFS_SIM_SCRIPT");
    for seed in traced.map_or(0..100, |seed| seed..seed + 1) {
        let broken = script::run(&script(seed, traced.is_some()));
        assert_eq!(broken, None, "REPLVFS_SIM_SCRIPT={seed} tells how");
    }
}
