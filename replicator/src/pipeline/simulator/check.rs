//! What must hold at the end of a schedule: every transaction in the store restores to a state that was committed, one follows from the other, and
//! whatever was acknowledged is there.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use replvfs_vfs::types::{Txid, UnixMillis};

use super::model::{Model, StateId};
use super::sky::{Gate, Sky};
use super::thorough;
use super::world::{Ack, Sim};
use crate::format::{
    Generation, GenerationMeta, Key, Manifest, ObjectHash, Seal, SegmentIndex, SegmentReader, Step, decode_chunk,
};
use crate::history::Target;
use crate::restore::{RestoreOptions, Restored, restore};
use crate::store::Store;

/// A generation as it can be restored.
pub(super) struct Found {
    pub(super) meta: GenerationMeta,
    /// From its first image on.
    pub(super) states: BTreeMap<u64, StateId>,
    /// When its images were taken.
    pub(super) taken_at: BTreeMap<u64, UnixMillis>,
    /// When the transactions of its log were committed.
    pub(super) committed_at: BTreeMap<u64, UnixMillis>,
}

/// What `restore` looks back at for its warnings.
const LOOK_BACK: u64 = 4;

pub(super) async fn everything(sim: &Arc<Sim>, folder: &Path) {
    let unproved: Vec<StateId> = sim.unproved.lock().unwrap().clone();
    let found = {
        let (sky, model) = (sim.sky.lock().unwrap(), sim.model.lock().unwrap());
        match generations(&sky, &model) {
            Ok(found) => found,
            Err(what) => {
                drop((sky, model));
                return sim.violated(what);
            }
        }
    };
    let states: usize = found.values().map(|generation| generation.states.len()).sum();
    sim.count(|counts| counts.restored_states += states as u64);
    let acks: Vec<Ack> = sim.acks.lock().unwrap().values().copied().collect();
    let wrong = {
        let model = sim.model.lock().unwrap();
        acknowledged(&found, &acks).or_else(|| parents(&found, &model, &unproved))
    };
    if let Some(wrong) = wrong {
        return sim.violated(wrong);
    }
    let newest = found.iter().rev().find(|(_, generation)| !generation.states.is_empty());
    let store = sim.store(0, &Arc::<Gate>::default());
    let out = folder.join("check.db");
    let Some((&newest, generation)) = newest else {
        if let Ok(restored) = restored(&store, &out, Target::Newest, None).await {
            sim.violated(format!("nothing is there, and it was restored: {:?}", restored.0));
        }
        return;
    };
    let (&last, &state) = generation.states.last_key_value().unwrap();
    let told = match restored(&store, &out, Target::Newest, None).await {
        Ok(told) => told,
        Err(error) => return sim.violated(format!("the newest state cannot be restored: {error}")),
    };
    if !is_state(sim, &told, (newest, last, state)) {
        return;
    }
    let all: Vec<_> = found
        .iter()
        .flat_map(|(number, generation)| generation.states.iter().map(|(txid, state)| (*number, *txid, *state)))
        .collect();
    let any = all[sim.rng().below(all.len() as u64) as usize];
    match restored(&store, &out, Target::Txid(Txid(any.1)), Some(Generation(any.0))).await {
        Ok(told) => drop(is_state(sim, &told, any)),
        Err(error) => {
            let ack = acks.iter().find(|ack| (ack.generation, ack.txid) == (any.0, any.1));
            match ack.map(|ack| is_in_window(sim, ack)) {
                Some(false) => sim.count(|counts| counts.out_of_the_window += 1),
                None if sim.retention.is_some() => {}
                _ => sim.violated(format!(
                    "transaction {} of generation {} cannot be restored: {error}",
                    any.1, any.0
                )),
            }
        }
    }
    for ack in acks.iter().filter(|ack| is_in_window(sim, ack)) {
        let left = leaves(&found, newest, *ack, &sim.model.lock().unwrap());
        if left {
            sim.count(|counts| counts.left_out += 1);
            let name = format!("generation {}", Generation(ack.generation));
            let is_near = found.range(ack.generation..newest).count() as u64 <= LOOK_BACK;
            if is_near && !told.0.warnings.iter().any(|warning| warning.contains(&name)) {
                sim.violated(format!(
                        "transaction {} of {name} was acknowledged, is not in generation {newest}, and nobody is warned: {:?}",
                        ack.txid, told.0.warnings
                    ));
            }
        }
    }
    if sim.is_thorough {
        thorough::everything(sim, &store, &out, &found, &acks).await;
    }
}

/// What was acknowledged before may have been deleted.
pub(super) fn is_in_window(sim: &Sim, ack: &Ack) -> bool {
    let age = sim.wall_clock().duration_since(ack.at).unwrap_or_default();
    sim.retention.is_none_or(|retention| age < retention)
}

pub(super) async fn restored(
    store: &Store,
    out: &Path,
    target: Target,
    generation: Option<Generation>,
) -> Result<(Restored, Vec<u8>), String> {
    let options = RestoreOptions {
        target,
        generation,
        force: true,
        ..RestoreOptions::default()
    };
    let restored = restore(store, out, &options).await.map_err(|error| error.to_string())?;
    Ok((restored, std::fs::read(out).unwrap()))
}

pub(super) fn is_state(sim: &Sim, told: &(Restored, Vec<u8>), (generation, txid, state): (u64, u64, StateId)) -> bool {
    let there = sim.model.lock().unwrap().state_of(&told.1);
    // An older image gives the same, but nobody has lost this one here.
    if let Some(broken) = told.0.warnings.iter().find(|warning| warning.contains("is of no use")) {
        sim.violated(broken.clone());
    }
    let is = (told.0.generation.0, told.0.txid.0, there) == (generation, txid, Some(state));
    if !is {
        sim.violated(format!(
            "transaction {txid} of generation {generation} is state {state}, and {:?} with state {there:?} was restored",
            told.0
        ));
    }
    is
}

fn generations(sky: &Sky, model: &Model) -> Result<BTreeMap<u64, Found>, String> {
    let mut found = BTreeMap::new();
    for (key, _) in sky.keys() {
        if let Key::Generation(number) = key {
            let bytes = sky.get(&key).unwrap();
            let meta = GenerationMeta::from_bytes(&bytes).map_err(|error| format!("{key}: {error}"))?;
            found.insert(number.0, states(sky, model, meta, GenerationMeta::root(&bytes))?);
        }
    }
    Ok(found)
}

/// Every state of a generation, from the objects themselves.
fn states(sky: &Sky, model: &Model, meta: GenerationMeta, root: ObjectHash) -> Result<Found, String> {
    let number = meta.generation;
    let (mut images, mut taken_at, mut committed_at) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (key, _) in sky.keys() {
        if let Key::Image(of, txid) = key
            && of == number
        {
            let (content, taken) = image(sky, key)?;
            images.insert(txid.0, content);
            taken_at.insert(txid.0, taken);
        }
    }
    let state_of = |content: &[u8], txid: u64| {
        model
            .state_of(content)
            .ok_or_else(|| format!("transaction {txid} of generation {number} is a state that never was"))
    };
    let mut states = BTreeMap::new();
    let mut content = images.get(&meta.first_image.0).cloned();
    if let Some(content) = &content {
        states.insert(meta.first_image.0, state_of(content, meta.first_image.0)?);
    }
    let page_size = model.page_size().as_usize();
    let (mut slot, mut previous) = (meta.first_image.next(), root);
    let mut reader = SegmentReader::new().unwrap();
    while let Some(object) = sky.get(&Key::Log(number, slot)) {
        let key = Key::Log(number, slot);
        if object.len() == Seal::LEN {
            let seal = Seal::decode(&object).map_err(|error| format!("{key}: {error}"))?;
            if seal.previous != previous {
                return Err(format!("{key} does not follow from what is before it"));
            }
            break;
        }
        let index = SegmentIndex::from_object(&object).map_err(|error| format!("{key}: {error}"))?;
        if index.header().previous != previous {
            return Err(format!("{key} does not follow from what is before it"));
        }
        for entry in index.transactions() {
            let txid = entry.txid;
            committed_at.insert(txid.0, entry.header.committed_at);
            let load = |block| {
                let range = index.block_range(block);
                Ok(object.slice(range.start as usize..range.end as usize))
            };
            let mut next = content.take().or_else(|| images.get(&(txid.0 - 1)).cloned());
            let visit = |step: Step<'_>| {
                if let Some(content) = &mut next {
                    match step {
                        Step::Begin(entry) => content.resize(entry.header.page_count as usize * page_size, 0),
                        Step::Page(page, bytes) => {
                            content[(page.get() as usize - 1) * page_size..][..page_size].copy_from_slice(bytes);
                        }
                    }
                }
                Ok::<_, crate::format::FormatError>(())
            };
            reader
                .for_each(&index, txid..=txid, load, visit)
                .map_err(|error| format!("{key}: {error}"))?;
            content = next;
            let Some(content) = &content else { continue };
            let state = state_of(content, txid.0)?;
            if let Some(before) = states
                .get(&(txid.0 - 1))
                .filter(|before| model.parent(state) != Some(**before))
            {
                return Err(format!(
                    "transaction {txid} of generation {number} is state {state}, which does not follow from state {before}"
                ));
            }
            states.insert(txid.0, state);
        }
        (slot, previous) = (index.header().last.next(), ObjectHash::of(&object));
    }
    for (txid, content) in images {
        let state = state_of(&content, txid)?;
        match states.get(&txid) {
            Some(logged) if *logged != state => {
                return Err(format!(
                    "the image of transaction {txid} of generation {number} is another state"
                ));
            }
            // The first image, or one in a log whose first image was never made.
            None if txid < slot.0 => drop(states.insert(txid, state)),
            _ => {}
        }
    }
    let behind = sky
        .keys()
        .find(|(key, _)| matches!(key, Key::Log(of, at) if *of == number && *at > slot));
    match behind {
        Some((key, _)) => Err(format!("{key} is behind the end of the log, which is at {slot}")),
        None => Ok(Found {
            meta,
            states,
            taken_at,
            committed_at,
        }),
    }
}

fn image(sky: &Sky, key: Key) -> Result<(Vec<u8>, UnixMillis), String> {
    let bytes = sky.get(&key).ok_or_else(|| format!("{key} is not there"))?;
    let manifest = Manifest::decode(&bytes).map_err(|error| format!("{key}: {error}"))?;
    let mut content = Vec::new();
    for (chunk, name) in manifest.chunks.iter().enumerate() {
        let stored = sky
            .get(&Key::Chunk(*name))
            .ok_or_else(|| format!("a chunk of {key} is not there"))?;
        let raw =
            decode_chunk(name.hash, manifest.chunk_len(chunk), &stored).map_err(|error| format!("{key}: {error}"))?;
        content.extend_from_slice(&raw);
    }
    Ok((content, manifest.taken_at))
}

/// Each acknowledged transaction is what it was, in its generation.
fn acknowledged(found: &BTreeMap<u64, Found>, acks: &[Ack]) -> Option<String> {
    acks.iter().find_map(|ack| {
        let there = found
            .get(&ack.generation)
            .and_then(|generation| generation.states.get(&ack.txid));
        (there != Some(&ack.state)).then(|| {
            format!(
                "transaction {} of generation {} was acknowledged as state {} to machine {}, and is {there:?}",
                ack.txid, ack.generation, ack.state, ack.machine
            )
        })
    })
}

/// A generation follows from its parent, unless its database could not be proved to.
fn parents(found: &BTreeMap<u64, Found>, model: &Model, unproved: &[StateId]) -> Option<String> {
    found.iter().find_map(|(number, generation)| {
        let parent = generation.meta.parent?;
        let first = generation.states.get(&generation.meta.first_image.0)?;
        let left = found.get(&parent.generation.0)?.states.get(&parent.txid.0)?;
        let follows = model.follows(*first, *left) || unproved.contains(first);
        (!follows).then(|| {
            format!(
                "generation {number} begins with state {first}, and says that it follows from transaction {} of generation {}, which is state {left}",
                parent.txid, parent.generation
            )
        })
    })
}

/// Whether the newest state has nothing of an acknowledged transaction: it was begun by a database that did not have it.
fn leaves(found: &BTreeMap<u64, Found>, newest: u64, ack: Ack, model: &Model) -> bool {
    let state = found[&newest].states.last_key_value().map(|(_, state)| *state);
    if state.is_some_and(|state| model.follows(state, ack.state)) {
        return false;
    }
    let mut at = newest;
    while at > ack.generation {
        let parent = found.get(&at).and_then(|generation| generation.meta.parent);
        match parent {
            Some(parent) if parent.generation.0 == ack.generation => return parent.txid.0 < ack.txid,
            Some(parent) => at = parent.generation.0,
            None => return true,
        }
    }
    at != ack.generation
}
