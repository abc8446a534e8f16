//! Somebody who merges and deletes beside the machines, and the days that pass.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::world::Sim;
use crate::config::Retention;
use crate::history::list_generations;
use crate::merge::{MergeOptions, merge_next};
use crate::pipeline::shared::now;
use crate::prune::{PruneOptions, prune};

/// Behind those of the machines.
const NUMBER: usize = 3;

/// What is done beside the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chore {
    /// Nobody does anything for hours or days.
    DaysPass,
    /// What is out of the window is deleted, if anything ever is.
    Prune,
    /// Segments are merged.
    Merge,
    /// Whoever does that dies.
    GiveUp,
}

#[derive(Debug, Default)]
pub(super) struct Keeper {
    running: Option<JoinHandle<()>>,
}

impl Keeper {
    #[cfg(test)]
    pub(super) async fn step(&mut self, sim: &Arc<Sim>) {
        if sim.retention.is_none() {
            return;
        }
        let what = sim.rng().below(24);
        match what {
            0..3 => self.perform(sim, Chore::DaysPass).await,
            3..6 => self.perform(sim, Chore::Prune).await,
            6..9 => self.perform(sim, Chore::Merge).await,
            9 => self.perform(sim, Chore::GiveUp).await,
            _ => {}
        }
    }

    pub(super) async fn perform(&mut self, sim: &Arc<Sim>, chore: Chore) {
        match (chore, sim.retention) {
            (Chore::DaysPass, _) => days_pass(sim).await,
            (Chore::Prune, Some(retention)) if !self.is_running() => {
                self.running = Some(tokio::spawn(prune_once(Arc::clone(sim), retention)));
            }
            (Chore::Merge, _) if !self.is_running() => self.running = Some(tokio::spawn(merge_once(Arc::clone(sim)))),
            (Chore::GiveUp, _) => drop(self.running.take().inspect(JoinHandle::abort)),
            (Chore::Prune | Chore::Merge, _) => {}
        }
    }

    fn is_running(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.is_finished())
    }

    /// With a last look at everything, perhaps.
    pub(super) async fn end(&mut self, sim: &Arc<Sim>) {
        if let Some(running) = self.running.take()
            && let Err(error) = running.await
        {
            sim.violated(format!("merging or deleting panicked: {error}"));
        }
        let Some(retention) = sim.retention else { return };
        let is_last = sim.rng().below(2) == 0;
        if is_last {
            days_pass(sim).await;
            prune_once(Arc::clone(sim), retention).await;
        }
    }
}

/// Requests that are on their way get there before.
async fn days_pass(sim: &Arc<Sim>) {
    while sim.sky.lock().unwrap().on_their_way > 0 {
        sleep(Duration::from_secs(10)).await;
    }
    let hours = sim.rng().below(60);
    sim.sleep(Duration::from_secs(60 * 60) * hours as u32);
}

async fn prune_once(sim: Arc<Sim>, retention: Duration) {
    let store = sim.store(NUMBER, &Arc::default());
    let options = PruneOptions {
        retention: Retention::For(retention),
        ..PruneOptions::at(now())
    };
    sim.trace(|| "the keeper deletes what is out of the window".to_owned());
    match prune(&store, &options).await {
        Ok(_) => sim.count(|counts| counts.prunings += 1),
        Err(error) => sim.trace(|| format!("the keeper deletes no more: {error}")),
    }
}

async fn merge_once(sim: Arc<Sim>) {
    let store = sim.store(NUMBER, &Arc::default());
    let options = MergeOptions {
        pieces: 2 + sim.rng().below(3) as usize,
        level: 1,
        ..MergeOptions::default()
    };
    let Ok(Some(newest)) = list_generations(&store).await.map(|found| found.last().copied()) else {
        return;
    };
    sim.trace(|| format!("the keeper merges generation {newest}"));
    match merge_next(&store, newest, &options).await {
        Ok(span) => sim.count(|counts| {
            counts.mergers += 1;
            counts.spans += u64::from(span.is_some());
        }),
        Err(error) => sim.trace(|| format!("the keeper merges no more: {error}")),
    }
}
