//! What was committed: every state of every database, each with the one that it follows from.

use std::collections::HashMap;

use replvfs_vfs::types::Pgno;

use super::super::machine::PAGE;
use super::world::Rng;

pub(super) type StateId = usize;

/// All states that any database ever had, by number.
#[derive(Debug, Default)]
pub(super) struct Model {
    states: Vec<State>,
    by_content: HashMap<Vec<u8>, StateId>,
}

#[derive(Debug)]
struct State {
    parent: Option<StateId>,
    content: Vec<u8>,
}

impl Model {
    /// A database of its own.
    pub(super) fn found(&mut self, rng: &mut Rng) -> StateId {
        self.add(None, rng)
    }

    pub(super) fn commit(&mut self, parent: StateId, rng: &mut Rng) -> StateId {
        self.add(Some(parent), rng)
    }

    fn add(&mut self, parent: Option<StateId>, rng: &mut Rng) -> StateId {
        let id = self.states.len();
        let mut content = match parent {
            Some(parent) => self.states[parent].content.clone(),
            None => {
                let mut first = vec![0; PAGE];
                first[16..18].copy_from_slice(&(PAGE as u16).to_be_bytes());
                first
            }
        };
        let pages = 2 + rng.below(4) as usize;
        let before = content.len() / PAGE;
        content.resize(pages * PAGE, 0);
        for page in 1..pages {
            if page == 1 || page >= before || rng.below(3) == 0 {
                let word = (id as u64) << 8 | page as u64;
                for (at, part) in content[page * PAGE..(page + 1) * PAGE].chunks_mut(8).enumerate() {
                    part.copy_from_slice(&word.wrapping_mul(at as u64 + 1).to_le_bytes());
                }
            }
        }
        self.by_content.insert(content.clone(), id);
        self.states.push(State { parent, content });
        id
    }

    pub(super) fn content(&self, state: StateId) -> &[u8] {
        &self.states[state].content
    }

    pub(super) fn parent(&self, state: StateId) -> Option<StateId> {
        self.states[state].parent
    }

    /// The state whose content this is.
    pub(super) fn state_of(&self, content: &[u8]) -> Option<StateId> {
        self.by_content.get(content).copied()
    }

    /// The pages that differ from the state before.
    pub(super) fn changes(&self, state: StateId) -> Vec<(Pgno, Vec<u8>)> {
        let empty = Vec::new();
        let before = self.states[state]
            .parent
            .map_or(&empty, |parent| &self.states[parent].content);
        let pages = self.states[state].content.chunks(PAGE).enumerate();
        pages
            .filter(|(number, page)| before.chunks(PAGE).nth(*number) != Some(page))
            .map(|(number, page)| (Pgno::new(number as u32 + 1).unwrap(), page.to_vec()))
            .collect()
    }

    /// The database that a state is of: its first one.
    pub(super) fn root(&self, state: StateId) -> StateId {
        let mut at = state;
        while let Some(parent) = self.states[at].parent {
            at = parent;
        }
        at
    }

    /// Whether `state` has all that `ancestor` has.
    pub(super) fn follows(&self, state: StateId, ancestor: StateId) -> bool {
        let mut at = Some(state);
        while let Some(state) = at.filter(|at| *at >= ancestor) {
            if state == ancestor {
                return true;
            }
            at = self.states[state].parent;
        }
        false
    }
}
