//! The end of a script: each transaction is restored by its number, and at its times, and `verify` has nothing to find.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use replvfs_vfs::types::{Txid, UnixMillis};

use super::check::{Found, is_in_window, is_state, restored};
use super::model::StateId;
use super::world::{Ack, Sim};
use crate::format::Generation;
use crate::history::Target;
use crate::store::Store;
use crate::verify::{VerifyOptions, verify};

/// Restores by number, and by time.
const MOST: (usize, usize) = (12, 8);

type Place = (u64, u64, StateId);

pub(super) async fn everything(sim: &Arc<Sim>, store: &Store, out: &Path, found: &BTreeMap<u64, Found>, acks: &[Ack]) {
    for place in some(sim, places(found), MOST.0) {
        let (generation, txid, _) = place;
        match restored(store, out, Target::Txid(Txid(txid)), Some(Generation(generation))).await {
            Ok(told) if !is_state(sim, &told, place) => return,
            Ok(_) => {}
            Err(error) => {
                let ack = acks.iter().find(|ack| (ack.generation, ack.txid) == (generation, txid));
                let is_kept = sim.retention.is_none() || ack.is_some_and(|ack| is_in_window(sim, ack));
                if is_kept {
                    return sim.violated(format!(
                        "transaction {txid} of generation {generation} cannot be restored: {error}"
                    ));
                }
            }
        }
    }
    if sim.retention.is_none() {
        for time in some(sim, times(found), MOST.1) {
            if !at(sim, store, out, found, time).await {
                return;
            }
        }
    }
    match verify(store, &VerifyOptions::default()).await {
        Ok(verified) => {
            if let Some(finding) = verified.findings.first() {
                sim.violated(format!("nothing was damaged, and verify finds {finding:?}"));
            }
        }
        Err(error) => sim.violated(format!("the replica cannot be verified: {error}")),
    }
}

fn places(found: &BTreeMap<u64, Found>) -> Vec<Place> {
    let of = |(number, generation): (&u64, &Found)| {
        let number = *number;
        let states = generation.states.iter();
        states.map(|(txid, state)| (number, *txid, *state)).collect::<Vec<_>>()
    };
    found.iter().flat_map(of).collect()
}

/// The moments at which something changes, and those before.
fn times(found: &BTreeMap<u64, Found>) -> Vec<UnixMillis> {
    let of = |generation: &Found| {
        let events = generation.taken_at.values().chain(generation.committed_at.values());
        events
            .flat_map(|time| [UnixMillis(time.0 - 1), *time])
            .collect::<Vec<_>>()
    };
    let mut times: Vec<_> = found.values().flat_map(of).collect();
    times.sort_unstable_by_key(|time| time.0);
    times.dedup_by_key(|time| time.0);
    times
}

/// As many as there is time for, the last one among them.
fn some<T: Copy>(sim: &Sim, mut of: Vec<T>, most: usize) -> Vec<T> {
    let last = of.pop();
    while of.len() >= most {
        let which = sim.rng().below(of.len() as u64) as usize;
        of.swap_remove(which);
    }
    of.extend(last);
    of
}

/// What is restored for a time, by `FORMAT.md`.
fn expected(found: &BTreeMap<u64, Found>, time: UnixMillis) -> Option<Place> {
    let is_before = |at: &UnixMillis| at.0 <= time.0;
    let begun = |generation: &Found| {
        generation
            .taken_at
            .first_key_value()
            .is_some_and(|(_, taken)| is_before(taken))
    };
    let (number, generation) = found.iter().rev().find(|(_, generation)| begun(generation))?;
    let image = generation
        .taken_at
        .iter()
        .rev()
        .find(|(_, taken)| is_before(taken))
        .map(|(txid, _)| *txid)?;
    let next = generation
        .taken_at
        .range(image + 1..)
        .next()
        .map_or(u64::MAX, |(txid, _)| *txid);
    let logged = generation
        .committed_at
        .range(image + 1..)
        .take_while(|(txid, _)| **txid <= next);
    let last = logged
        .filter(|(_, committed)| is_before(committed))
        .map(|(txid, _)| *txid)
        .last();
    let txid = last.unwrap_or(image);
    Some((*number, txid, *generation.states.get(&txid)?))
}

async fn at(sim: &Sim, store: &Store, out: &Path, found: &BTreeMap<u64, Found>, time: UnixMillis) -> bool {
    let expected = expected(found, time);
    // One whose first image never came to be is not told from one that has lost it.
    let passed_over = |generation: &Found| {
        let has_first = generation.taken_at.contains_key(&generation.meta.first_image.0);
        !has_first && generation.meta.created_at.0 <= time.0
    };
    match (restored(store, out, Target::At(time), None).await, expected) {
        (Ok(told), Some(place)) => is_state(sim, &told, place),
        (Ok(told), None) => {
            sim.violated(format!("there was nothing at {time:?}, and {:?} was restored", told.0));
            false
        }
        (Err(_), None) => true,
        (Err(_), _) if found.values().any(passed_over) => true,
        (Err(error), Some(place)) => {
            sim.violated(format!(
                "at {time:?} it was {place:?}, and that is not restored: {error}"
            ));
            false
        }
    }
}
