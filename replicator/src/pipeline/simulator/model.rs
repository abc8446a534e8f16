//! What was committed: every state of every database, each with the one that it follows from.

use replvfs_vfs::types::{PageSize, Pgno};

use super::world::Rng;

pub(super) type StateId = usize;

/// What one commit does.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// How many pages the database has then: at least 1.
    pub pages: usize,
    /// In the order of the frames, the first page being 0. A page may be written twice, or lie behind the end: both happen where SQLite's cache spills.
    pub writes: Vec<(usize, Fill)>,
}

/// What a page is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// One byte, again and again.
    Byte(u8),
    /// What nothing makes smaller, begun by this number.
    Noise(u64),
    /// What no other state has there.
    Own,
}

impl Change {
    pub(super) fn drawn(rng: &mut Rng, before: usize) -> Change {
        let pages = 2 + rng.below(4) as usize;
        let writes = (2..pages).filter(|page| *page >= before || rng.below(3) == 0);
        Change {
            pages,
            writes: writes.map(|page| (page, Fill::Own)).collect(),
        }
    }
}

/// Where each state has its number, which no other one has there.
const STAMP: std::ops::Range<usize> = 100..108;

/// All states that any database ever had, by number.
#[derive(Debug)]
pub(super) struct Model {
    page_size: PageSize,
    states: Vec<State>,
}

#[derive(Debug)]
struct State {
    parent: Option<StateId>,
    content: Vec<u8>,
    /// As they were written, the commit frame last.
    frames: Vec<(Pgno, Vec<u8>)>,
}

impl Model {
    pub(super) fn new(page_size: PageSize) -> Model {
        Model {
            page_size,
            states: Vec::new(),
        }
    }

    pub(super) fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The pages of a state.
    pub(super) fn pages(&self, state: StateId) -> usize {
        self.states[state].content.len() / self.page_size.as_usize()
    }

    /// The state after this one, or the first one of a database of its own.
    pub(super) fn add(&mut self, parent: Option<StateId>, change: &Change) -> StateId {
        let (id, size) = (self.states.len(), self.page_size.as_usize());
        let pages = change.pages.max(1);
        let mut content = match parent {
            Some(parent) => self.states[parent].content.clone(),
            None => vec![0; size],
        };
        content.resize(pages * size, 0);
        let mut frames = Vec::new();
        let stamped = stamped(pages);
        // A page whose content nobody cares for is not written, and reads as zeros; the first ones always are.
        let always = (0..2.min(pages))
            .filter(|_| parent.is_none())
            .map(|page| (page, Fill::Byte(0)));
        for (page, fill) in always.chain(change.writes.iter().copied()) {
            let mut bytes = filled(size, fill, (id as u64) << 8 | page as u64);
            if page == 0 {
                // The size's field holds 1 for 65,536 (https://www.sqlite.org/fileformat2.html#page_size).
                bytes[16..18].copy_from_slice(&u16::try_from(size).unwrap_or(1).to_be_bytes());
            }
            if let Some(there) = content.get_mut(page * size..(page + 1) * size) {
                there.copy_from_slice(&bytes);
            }
            frames.push((page_number(page), bytes));
        }
        let last = &mut content[stamped * size..(stamped + 1) * size];
        last[STAMP].copy_from_slice(&(id as u64 + 1).to_le_bytes());
        frames.push((page_number(stamped), last.to_vec()));
        self.states.push(State {
            parent,
            content,
            frames,
        });
        id
    }

    pub(super) fn content(&self, state: StateId) -> &[u8] {
        &self.states[state].content
    }

    pub(super) fn parent(&self, state: StateId) -> Option<StateId> {
        self.states[state].parent
    }

    /// The state whose content this is: the one whose number is in it, if all else is the same.
    pub(super) fn state_of(&self, content: &[u8]) -> Option<StateId> {
        let size = self.page_size.as_usize();
        let page = content.get(stamped(content.len() / size) * size..)?;
        let number = u64::from_le_bytes(page.get(STAMP)?.try_into().ok()?);
        let state = usize::try_from(number).ok()?.checked_sub(1)?;
        (self.states.get(state)?.content == content).then_some(state)
    }

    /// The frames of the commit that it came by.
    pub(super) fn frames(&self, state: StateId) -> &[(Pgno, Vec<u8>)] {
        &self.states[state].frames
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

/// The page with the number of its state in it.
fn stamped(pages: usize) -> usize {
    usize::from(pages > 1)
}

fn page_number(page: usize) -> Pgno {
    Pgno::new(page as u32 + 1).unwrap()
}

fn filled(size: usize, fill: Fill, own: u64) -> Vec<u8> {
    let mut page = vec![0; size];
    let (words, _) = page.as_chunks_mut::<8>();
    match fill {
        Fill::Byte(byte) => words.as_flattened_mut().fill(byte),
        Fill::Own => {
            for (word, at) in words.iter_mut().zip(1..) {
                *word = own.wrapping_mul(at).to_le_bytes();
            }
        }
        Fill::Noise(seed) => {
            let mut rng = Rng::new(seed, 3);
            words.fill_with(|| rng.next().to_le_bytes());
        }
    }
    page
}
