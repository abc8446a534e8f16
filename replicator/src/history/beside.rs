//! Signs that the newest generation is not the only one that is written. Owns a warning, no decision: which of two writers' histories
//! is the one that is wanted, only the user can tell.

use futures::future::join_all;
use replvfs_vfs::types::Txid;

use super::error::show_time;
use super::walk::{Slot, listed_end};
use super::{GenerationHistory, History, list_slots};
use crate::format::{Generation, Key, Seal};

/// How many older generations are looked at. Two writers at a time are what goes wrong; more are in line behind them.
pub(super) const LOOK_BACK: usize = 4;

impl History {
    /// A sentence for each older generation that got a transaction after `chosen` had begun, or that ends behind the place where `chosen`, or
    /// one between them, left it. One that cannot be read now says
    /// nothing: it is not needed.
    pub(super) async fn written_beside(&self, chosen: &GenerationHistory) -> Vec<String> {
        let older = self
            .generations
            .iter()
            .rev()
            .filter(|other| other.number() < chosen.number());
        let looks = older.take(LOOK_BACK).map(|other| async move {
            let (first, len) = list_slots(&self.store, other.number()).await.ok()?.last().copied()?;
            let key = Key::Log(other.number(), first);
            let end = match listed_end(&self.store, key, len).await.ok()?? {
                Slot::Segment(end) => end,
                Slot::Seal(seal) => {
                    let left = self.left(chosen, other.number());
                    return left_behind(other, &left, chosen.number(), &seal);
                }
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

    /// Where the line of generations that `chosen` follows from left the one with this number.
    fn left(&self, chosen: &GenerationHistory, number: Generation) -> Left {
        let mut child = chosen;
        loop {
            // What a damaged one says would lead in a circle.
            let parent = child.meta.parent.filter(|parent| parent.generation < child.number());
            child = match parent {
                None => return Left::Before,
                Some(parent) if parent.generation == number => return Left::At(parent.txid),
                Some(parent) if parent.generation < number => return Left::Never,
                Some(parent) => match self
                    .generations
                    .iter()
                    .find(|other| other.number() == parent.generation)
                {
                    Some(found) => found,
                    None => return Left::Before,
                },
            };
        }
    }
}

/// What a line of generations has of another one.
enum Left {
    /// Everything up to here.
    At(Txid),
    /// Nothing: it is a branch beside it.
    Never,
    /// Nothing: the line begins anew behind it.
    Before,
}

/// What a generation had when another writer ended it, and that one did not.
fn left_behind(other: &GenerationHistory, left: &Left, chosen: Generation, seal: &Seal) -> Option<String> {
    let number = other.number();
    let last = Txid(seal.slot.0.checked_sub(1)?);
    match left {
        Left::At(left) if last > *left => Some(format!(
            "transactions {} to {last} of generation {number} are not in generation {chosen}, which left it before them; restore with that \
             generation's number to have them",
            left.next(),
        )),
        // Without an image nobody was told that anything is stored.
        Left::Never if !other.images().is_empty() => Some(format!(
            "generation {number}, which ends with transaction {last}, is none that generation {chosen} follows from; restore with that \
             generation's number to have it",
        )),
        _ => None,
    }
}
