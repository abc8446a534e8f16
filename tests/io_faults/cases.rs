//! Which faults there are for a script, and what must be the same with and without replvfs.

use std::collections::HashMap;
use std::panic::catch_unwind;
use std::process::Command;
use std::sync::OnceLock;

use replvfs_tests::number;

use crate::life::{Life, Terms, live};
use crate::plan::{Fault, Kind, Method, Site};
use crate::script::{Script, script};

/// So many lives, with a file descriptor and some memory for each, are enough for one process.
const IN_ONE_PROCESS: usize = 150;
/// Of replvfs's own calls so many can fail in a script in which its threads make them: how many there are differs from run to run.
const OWN_CALLS: u32 = 800;
/// After so many failures the rest would say the same.
const ENOUGH: usize = 5;
/// What a child is to do: the script, how many calls of replvfs's own there are, the first case and the one after the last.
const JOB: &str = "REPLVFS_IO_FAULTS_JOB";

#[derive(Debug, Clone, Copy)]
struct Case {
    number: usize,
    fault: Fault,
    observed: bool,
}

/// A life in which nothing fails.
fn undisturbed(script: &'static Script, replicated: bool) -> Life {
    let terms = Terms {
        script,
        fault: None,
        replicated,
        observed: false,
    };
    live(terms).unwrap_or_else(|wrong| panic!("without a fault: {wrong}"))
}

/// How many calls of replvfs's own are to fail. It may differ by some from run to run.
fn count_own_calls(script: &'static Script) -> u32 {
    match is_comparable(script) {
        true => undisturbed(script, true).own_calls.len() as u32,
        false => OWN_CALLS,
    }
}

/// Every fault there is, in an order that only depends on the script and that count.
fn all_cases(script: &'static Script, own_calls: u32) -> Vec<Case> {
    let plain = undisturbed(script, false);
    assert_eq!(plain.own_calls, []);
    let mut faults = Vec::new();
    let mut counts: HashMap<(Method, Kind), u32> = HashMap::new();
    for (method, kind) in &plain.called {
        let (method, kind) = (*method, *kind);
        let n = counts.entry((method, kind)).or_default();
        let site = Site::Connection(method, kind, *n);
        *n += 1;
        for effect in 0..method.effects().len() {
            faults.extend(
                [(false, false), (true, false), (true, true)].map(|(lasting, everywhere)| Fault {
                    site,
                    effect,
                    lasting,
                    everywhere,
                }),
            );
        }
    }
    for n in 0..own_calls {
        for effect in 0..2 {
            faults.extend([false, true].map(|lasting| Fault {
                site: Site::Own(n),
                effect,
                lasting,
                everywhere: false,
            }));
        }
    }
    let cases = faults.into_iter().enumerate().map(|(number, fault)| Case {
        number,
        fault,
        observed: !script.exclusive && number % 3 == 0,
    });
    cases.collect()
}

/// Whether replvfs leaves every call of SQLite as it was. While it has frames to read back from the WAL it refuses to have it
/// restarted.
fn is_comparable(script: &Script) -> bool {
    script.name != "large"
}

fn chosen(script: &'static Script, own_calls: u32) -> Vec<Case> {
    let mut cases = all_cases(script, own_calls);
    let wanted = number("REPLVFS_IO_FAULTS_CASES").map_or(script.faults, |cases| cases as usize);
    if let Ok(one) = std::env::var("REPLVFS_IO_FAULTS") {
        let (name, number) = one.split_once(':').expect("REPLVFS_IO_FAULTS=<script>:<number>");
        let number: usize = number.parse().expect("REPLVFS_IO_FAULTS=<script>:<number>");
        cases.retain(|case| name == script.name && case.number == number);
        return cases;
    }
    if wanted == 0 || wanted >= cases.len() {
        return cases;
    }
    let mut state = number("REPLVFS_IO_FAULTS_SEED").unwrap_or(1);
    // Fisher and Yates.
    for at in 0..cases.len() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let other = at + (state >> 33) as usize % (cases.len() - at);
        cases.swap(at, other);
    }
    // In turns from each kind of call: there are few syncs, and many reads.
    let mut turns: HashMap<Option<(Method, Kind)>, usize> = HashMap::new();
    cases.sort_by_cached_key(|case| {
        let turn = match case.fault.site {
            Site::Connection(method, kind, _) => turns.entry(Some((method, kind))).or_default(),
            Site::Own(_) => turns.entry(None).or_default(),
        };
        *turn += 1;
        *turn
    });
    cases.truncate(wanted);
    cases
}

/// All that are chosen, in processes of their own.
pub(crate) fn run_all(name: &str) {
    let script = script(name);
    let own_calls = count_own_calls(script);
    let count = chosen(script, own_calls).len();
    let mut from = 0;
    while from < count {
        let to = (from + IN_ONE_PROCESS).min(count);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "other_process", "--nocapture", "--quiet"])
            .env(JOB, format!("{name} {own_calls} {from} {to}"))
            .output()
            .unwrap();
        assert!(
            child.status.success(),
            "{}\n{}",
            String::from_utf8_lossy(&child.stdout),
            String::from_utf8_lossy(&child.stderr)
        );
        from = to;
    }
    println!("{name}: {count} faults");
}

pub(crate) fn run_if_asked() {
    let Ok(job) = std::env::var(JOB) else { return };
    let mut words = job.split(' ');
    let script = script(words.next().unwrap());
    let own_calls = words.next().unwrap().parse().unwrap();
    let mut bound = || words.next().unwrap().parse::<usize>().unwrap();
    let (from, to) = (bound(), bound());
    let mut wrong = Vec::new();
    for case in &chosen(script, own_calls)[from..to] {
        if wrong.len() == ENOUGH {
            break;
        }
        let lived = catch_unwind(|| run(script, case)).unwrap_or_else(|_| Err("it panicked, as is said above".into()));
        if let Err(reason) = lived {
            let observed = if case.observed { ", observed" } else { "" };
            wrong.push(format!(
                "{}: {}{observed}: {reason}\nagain: REPLVFS_IO_FAULTS={0}:{} cargo test -p replvfs-tests --test io_faults {0}",
                script.name, case.fault, case.number
            ));
        }
    }
    assert!(wrong.is_empty(), "{} went wrong:\n{}", wrong.len(), wrong.join("\n\n"));
}

fn run(script: &'static Script, case: &Case) -> Result<(), String> {
    static UNDISTURBED: [OnceLock<Life>; 2] = [OnceLock::new(), OnceLock::new()];
    let terms = |replicated| Terms {
        script,
        fault: Some(case.fault),
        replicated,
        observed: case.observed,
    };
    let replicated = live(terms(true))?;
    let faulted;
    let plain = match case.fault.site {
        Site::Connection(method, ..) if !is_comparable(script) || !method.is_comparable() => return Ok(()),
        Site::Connection(..) => {
            faulted = live(terms(false))?;
            &faulted
        }
        Site::Own(_) => UNDISTURBED[usize::from(case.observed)].get_or_init(|| {
            let terms = Terms {
                fault: None,
                ..terms(false)
            };
            live(terms).unwrap_or_else(|wrong| panic!("without a fault: {wrong}"))
        }),
    };
    compare(script, plain, &replicated)
}

fn compare(script: &Script, plain: &Life, replicated: &Life) -> Result<(), String> {
    for (expected, actual) in plain.answers.iter().zip(&replicated.answers) {
        if expected != actual {
            return Err(format!("SQLite says {actual:?} instead of {expected:?}"));
        }
    }
    if plain.answers.len() != replicated.answers.len() {
        return Err(format!(
            "SQLite says {:?} instead of {:?}",
            replicated.answers, plain.answers
        ));
    }
    if is_comparable(script) {
        for (at, (expected, actual)) in plain.calls.iter().zip(&replicated.calls).enumerate() {
            if expected != actual {
                return Err(format!("SQLite's call {at} was {actual:?} instead of {expected:?}"));
            }
        }
        if plain.calls.len() != replicated.calls.len() {
            return Err("SQLite made more calls or less".into());
        }
    }
    if plain.struck.is_some() && plain.struck != replicated.struck {
        return Err(format!("{:?} failed instead of {:?}", replicated.struck, plain.struck));
    }
    if plain.files != replicated.files {
        return Err(format!("{:?} is left instead of {:?}", replicated.files, plain.files));
    }
    replvfs_tests::compare_pages(&plain.image, &replicated.image)
        .map_err(|difference| format!("the databases differ: {difference}"))?;
    if plain.integrity == replicated.integrity {
        Ok(())
    } else {
        Err(format!(
            "integrity_check: {} instead of {}",
            replicated.integrity, plain.integrity
        ))
    }
}
