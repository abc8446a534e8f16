//! Transactions that only an older branch has: a generation that the newest one does not follow from, or that it left before them. Owns when such a
//! branch is taken though nobody named it: when there is just one, and with a warning.

use replvfs_vfs::types::{Txid, UnixMillis};

use super::error::show_time;
use super::walk::{Slot, slot_end};
use super::{GenerationHistory, History, HistoryError, Plan, Target};
use crate::format::Key;

impl History {
    /// A plan for a transaction that is not in the line of the newest generation, which `not_there` says.
    ///
    /// # Errors
    ///
    /// As for [`History::plan`]; the error names the generations where there are several to choose from.
    pub(super) async fn plan_in_a_branch(&self, txid: Txid, not_there: HistoryError) -> Result<Plan, HistoryError> {
        let HistoryError::NotInHistory { left_out, .. } = &not_there else {
            return Err(not_there);
        };
        let mut found = Vec::new();
        for generation in &self.generations {
            if generation.images.first().is_none_or(|image| *image > txid) {
                continue;
            }
            match self.plan_in_line(Target::Txid(txid), Some(generation.number())).await {
                Ok(plan) => found.push((generation, plan)),
                Err(HistoryError::NotInHistory { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if found.len() > 1 {
            let mut ranges = Vec::new();
            for (generation, _) in &found {
                ranges.push(self.range_of(generation).await?);
            }
            return Err(HistoryError::NotInHistory {
                target: Target::Txid(txid),
                range: format!(
                    "it is not in the line of the newest generation, and in more than one other: {}; name one of them",
                    ranges.join(", ")
                ),
                left_out: left_out.clone(),
            });
        }
        let Some((generation, mut plan)) = found.pop() else {
            return Err(not_there);
        };
        let range = self.range_of(generation).await?;
        plan.warnings.push(format!(
            "transaction {txid} is not in the newest history, which went another way ({not_there}): it was taken from {range}"
        ));
        Ok(plan)
    }

    /// A generation, its transactions, and of when they are.
    async fn range_of(&self, generation: &GenerationHistory) -> Result<String, HistoryError> {
        let number = generation.number();
        let first = generation
            .images
            .first()
            .copied()
            .unwrap_or(generation.meta.first_image);
        let last = self.last_listed(generation).await?;
        let (last, at) = last.unwrap_or((first, generation.meta.created_at));
        Ok(format!(
            "generation {number} (transactions {first} to {last}, begun {}, the last of {})",
            show_time(generation.meta.created_at),
            show_time(at)
        ))
    }

    async fn last_listed(&self, generation: &GenerationHistory) -> Result<Option<(Txid, UnixMillis)>, HistoryError> {
        for (first, _) in self.listing(generation).await?.slots.into_iter().rev() {
            if let Some(Slot::Segment(end)) = slot_end(&self.store, Key::Log(generation.number(), first)).await? {
                let last = end.index.transactions().last();
                return Ok(last.map(|last| (last.txid, last.header.committed_at)));
            }
        }
        Ok(None)
    }
}
