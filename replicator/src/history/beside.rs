//! Signs that the newest generation is not the only one that is written. Owns a warning, no decision: which of two writers' histories
//! is the one that is wanted, only the user can tell.

use futures::future::join_all;
use replvfs_vfs::types::Txid;

use super::error::show_time;
use super::walk::{Slot, slot_end};
use super::{GenerationHistory, History};
use crate::format::{Key, Seal};

/// How many older generations are looked at. Two writers at a time are what goes wrong; more are in line behind them.
const LOOK_BACK: usize = 4;

impl History {
    /// A sentence for each older generation that got a transaction after `chosen` had begun. One that cannot be read now says
    /// nothing: it is not needed.
    pub(super) async fn written_beside(&self, chosen: &GenerationHistory) -> Vec<String> {
        let older = self
            .generations
            .iter()
            .rev()
            .filter(|other| other.number() < chosen.number());
        let looks = older.take(LOOK_BACK).map(|other| async move {
            let (first, _) = self.slots(other).await.ok()?.last().copied()?;
            let end = match slot_end(&self.store, Key::Log(other.number(), first)).await.ok()?? {
                Slot::Segment(end) => end,
                Slot::Seal(seal) => return left_behind(chosen, &seal),
            };
            let last = *end.index.transactions().last()?;
            (last.header.committed_at > chosen.meta.created_at).then(|| {
                format!(
                    "generation {} is still written: its transaction {} is of {}, after generation {} began. Two databases, or two \
                     copies of one, have this replica; restore the other with its generation's number, and give each its own replica",
                    other.number(),
                    last.txid,
                    show_time(last.header.committed_at),
                    chosen.number(),
                )
            })
        });
        join_all(looks).await.into_iter().flatten().collect()
    }
}

/// What a generation had when another writer ended it, and that one did not.
fn left_behind(chosen: &GenerationHistory, seal: &Seal) -> Option<String> {
    let parent = chosen
        .meta
        .parent
        .filter(|parent| parent.generation == seal.generation)?;
    let last = Txid(seal.slot.0.checked_sub(1)?);
    (last > parent.txid).then(|| {
        format!(
            "transactions {} to {last} of generation {} are not in generation {}, which left it before them; restore with that \
             generation's number to have them",
            parent.txid.next(),
            parent.generation,
            chosen.number(),
        )
    })
}
