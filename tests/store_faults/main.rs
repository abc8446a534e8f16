//! Faults above: every call to the store fails, hangs, comes late or loses its answer, one at a time, and from one on until the
//! weather is fair. Commits go on meanwhile; nothing is acknowledged that could not be restored at that moment; afterwards every
//! transaction is in the replica.
//!
//! `replvfs_tests::weather` is the store, `voyage` what is done. The calls are counted in a voyage without a storm, so nothing here knows
//! what they are for.
//!
//! | variable | |
//! |---|---|
//! | `REPLVFS_STORE_FAULTS_CASES` | storms a test; 0 for all of them |
//! | `REPLVFS_STORE_FAULTS_SEED` | which of them |
//! | `REPLVFS_STORE_FAULTS` | one storm, as a failure names it |
#![allow(missing_docs)]

mod voyage;

use std::panic::catch_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once};

use replvfs_tests::number;
use replvfs_tests::weather::{Storm, Trouble};
use voyage::{Terms, sail};

/// Most of a voyage is waiting for the pauses between attempts.
const AT_ONCE: usize = 6;
/// After so many failures the rest would say the same.
const ENOUGH: usize = 5;

fn storms(calls: usize) -> Vec<Storm> {
    let kinds = Trouble::ALL
        .into_iter()
        .flat_map(|trouble| [false, true].map(|lasting| (trouble, lasting)));
    kinds
        .flat_map(|(trouble, lasting)| (0..calls).map(move |at| Storm { at, trouble, lasting }))
        .collect()
}

/// All of the storms, or so many of them.
fn chosen(storms: Vec<Storm>, most: usize) -> Vec<(usize, Storm)> {
    let mut storms: Vec<_> = storms.into_iter().enumerate().collect();
    if let Some(one) = number("REPLVFS_STORE_FAULTS") {
        storms.retain(|(number, _)| *number as u64 == one);
        return storms;
    }
    let wanted = number("REPLVFS_STORE_FAULTS_CASES").map_or(most, |cases| cases as usize);
    let wanted = if wanted == 0 {
        storms.len()
    } else {
        wanted.min(storms.len())
    };
    let mut state = number("REPLVFS_STORE_FAULTS_SEED").unwrap_or(1);
    // Fisher and Yates, as far as needed.
    for at in 0..wanted {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let other = at + (state >> 33) as usize % (storms.len() - at);
        storms.swap(at, other);
    }
    storms.truncate(wanted);
    storms
}

/// Before any connection is opened, since SQLite's log is listened to.
fn start() {
    static START: Once = Once::new();
    START.call_once(|| drop(replvfs_tests::sqlite_log()));
}

/// At most so many; 0 for all.
fn all_storms(test: &str, most: usize, terms: Terms) {
    start();
    let terms = |storm| Terms { storm, ..terms };
    let calls = sail(terms(None)).unwrap_or_else(|wrong| panic!("in fair weather: {wrong}"));
    let storms = chosen(storms(calls.len()), most);
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((number, storm)) = storms.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if wrong.lock().unwrap().len() >= ENOUGH {
                        break;
                    }
                    let sailed = catch_unwind(|| sail(terms(Some(*storm))));
                    let sailed = sailed.unwrap_or_else(|_| Err("it panicked, as is said above".into()));
                    if let Err(reason) = sailed {
                        let call = calls[storm.at];
                        wrong.lock().unwrap().push(format!(
                            "{storm} ({call}): {reason}\nagain: REPLVFS_STORE_FAULTS={number} cargo test -p replvfs-tests --test store_faults {test}"
                        ));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    println!(
        "{test}: {} of the storms over {} calls: {calls:?}",
        storms.len(),
        calls.len()
    );
    assert!(wrong.is_empty(), "{} went wrong:\n{}", wrong.len(), wrong.join("\n\n"));
}

const NEW: Terms = Terms {
    storm: None,
    conditional: true,
    again: false,
    large: false,
};

#[test]
fn a_new_history() {
    all_storms("a_new_history", 0, NEW);
}

#[test]
fn a_database_with_a_history() {
    all_storms("a_database_with_a_history", 0, Terms { again: true, ..NEW });
}

#[test]
fn a_store_without_conditions() {
    let terms = Terms {
        conditional: false,
        ..NEW
    };
    all_storms("a_store_without_conditions", 150, terms);
}

#[test]
fn a_larger_database() {
    all_storms("a_larger_database", 60, Terms { large: true, ..NEW });
}

#[test]
fn nobody_waits_for_a_store_that_never_answers() {
    start();
    voyage::without_any_answer();
}

#[test]
fn a_missing_database_is_not_opened_until_the_store_answers() {
    start();
    for trouble in [Trouble::Temporary, Trouble::Permanent, Trouble::Hang] {
        for history in [false, true] {
            voyage::missing_in_trouble(trouble, history);
        }
    }
}

#[test]
fn an_idle_database_asks_nothing_of_its_store() {
    start();
    voyage::at_rest(0);
}

#[test]
fn an_idle_database_that_was_looked_after_asks_nothing_of_its_store() {
    start();
    voyage::at_rest(70);
}
