//! What of a generation is in the store, and hence restorable. Owns the rule for acknowledging, and nothing else.

use std::sync::{Arc, Mutex, PoisonError};

use replvfs_vfs::log::Log;
use replvfs_vfs::types::Txid;

use crate::format::Generation;

/// Shared by the task, which uploads segments, and by the making of images beside it.
#[derive(Debug)]
pub(super) struct Progress {
    log: Arc<Log>,
    state: Mutex<Option<State>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    generation: Generation,
    /// The transaction of a manifest that is in the store.
    image: Option<Txid>,
    /// All segments up to here are in the store, from the one after the generation's first base.
    uploaded: Txid,
}

impl State {
    /// Restorable is what follows from an image without a gap.
    fn restorable(&self) -> Option<Txid> {
        self.image
            .filter(|image| *image <= self.uploaded)
            .map(|_| self.uploaded)
    }
}

impl Progress {
    pub(super) fn new(log: Arc<Log>) -> Progress {
        Progress {
            log,
            state: Mutex::default(),
        }
    }

    /// From here on only this generation counts.
    pub(super) fn begin(&self, generation: Generation, base: Txid) {
        self.change(|state| {
            *state = Some(State {
                generation,
                image: None,
                uploaded: base,
            });
        });
    }

    pub(super) fn segment(&self, last: Txid) {
        self.change(|state| {
            if let Some(state) = state {
                state.uploaded = last;
            }
        });
    }

    /// An image that was made for an earlier generation comes too late to count.
    pub(super) fn image(&self, generation: Generation, txid: Txid) {
        self.change(|state| {
            if let Some(state) = state.as_mut().filter(|state| state.generation == generation) {
                state.image = Some(txid.min(state.image.unwrap_or(txid)));
            }
        });
    }

    pub(super) fn has_image(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_some_and(|state| state.image.is_some())
    }

    fn change(&self, change: impl FnOnce(&mut Option<State>)) {
        let restorable = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut state);
            state.and_then(|state| state.restorable())
        };
        if let Some(txid) = restorable {
            self.log.acknowledge(txid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restorable_is_an_image_and_the_segments_after_it() {
        let state = |image: Option<u64>, uploaded| State {
            generation: Generation(1),
            image: image.map(Txid),
            uploaded: Txid(uploaded),
        };
        assert_eq!(state(None, 7).restorable(), None, "segments alone restore nothing");
        assert_eq!(state(Some(0), 0).restorable(), Some(Txid(0)));
        assert_eq!(state(Some(0), 7).restorable(), Some(Txid(7)));
        assert_eq!(state(Some(5), 7).restorable(), Some(Txid(7)));
        assert_eq!(state(Some(9), 7).restorable(), None, "8 is still on its way");
    }
}
