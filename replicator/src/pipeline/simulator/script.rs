//! A schedule that is written down, for a fuzzer: what is done, by whom, and what each commit writes.

use std::sync::Arc;
use std::time::Duration;

use replvfs_vfs::types::{PageSize, Txid};

use super::check::restored;
pub use super::keeper::Chore;
use super::keeper::Keeper;
pub use super::model::{Change, Fill};
pub use super::schedule::Operation;
use super::schedule::{begin, end, perform};
use super::sky::Gate;
use super::world::{Ear, Sim};
use super::{Violation, folder, in_world};
use crate::format::Generation;
use crate::history::Target;

/// What happens.
#[derive(Debug, Clone)]
pub struct Script {
    /// Decides the weather, and whatever the steps do not.
    pub seed: u64,
    /// That of all databases.
    pub page_size: PageSize,
    /// What the database is at the beginning.
    pub founded: Change,
    /// In this order.
    pub steps: Vec<Step>,
    /// Tells on standard error what happens.
    pub traced: bool,
}

/// One of them.
#[derive(Debug, Clone)]
pub struct Step {
    /// After at most so many milliseconds.
    pub longest_ms: u64,
    /// What is left to chance in it, and only in it: without a step before it is still the same.
    pub luck: u64,
    /// What the commits do that come next; what comes after that is left to chance.
    pub changes: Vec<Change>,
    /// What is done.
    pub action: Action,
}

/// Something that is done.
#[derive(Debug, Clone, Copy)]
pub enum Action {
    /// On one of the machines.
    Machine(usize, Operation),
    /// Beside them.
    Chore(Chore),
    /// One of the acknowledged transactions is restored while all that goes on.
    Look,
}

/// Which promise was broken, if any.
///
/// # Panics
///
/// When something in it does.
#[must_use]
pub fn run(script: &Script) -> Violation {
    thread_local! {
        static FOLDER: tempfile::TempDir = folder();
    }
    let inner = FOLDER.with(|folder| folder.path().join("world"));
    let sim = || Sim::new(script.seed, script.page_size, (script.traced, true));
    tracing::subscriber::with_default(Ear, || {
        let happens = async |sim: Arc<Sim>| {
            sim.changes.lock().unwrap().push_back(script.founded.clone());
            let mut machines = begin(&sim, &inner);
            let mut keeper = Keeper::default();
            for step in &script.steps {
                sim.reseed(step.luck);
                *sim.changes.lock().unwrap() = step.changes.clone().into();
                match step.action {
                    Action::Machine(number, operation) => {
                        let number = number % machines.len();
                        perform(&sim, &mut machines, step.longest_ms, number, operation).await;
                    }
                    Action::Chore(chore) => keeper.perform(&sim, chore).await,
                    Action::Look => look(&sim, &inner).await,
                }
                if sim.violation().is_some() {
                    break;
                }
            }
            sim.changes.lock().unwrap().clear();
            end(&sim, &mut machines, keeper, &inner).await;
        };
        in_world(&inner, sim, happens).0
    })
}

/// What is told must be right; in this weather it may also be an error.
async fn look(sim: &Arc<Sim>, folder: &std::path::Path) {
    let acks: Vec<_> = sim.acks.lock().unwrap().values().copied().collect();
    let Some(ack) = acks.get(sim.rng().below(acks.len() as u64) as usize) else {
        return;
    };
    let (store, out) = (sim.store(3, &Arc::<Gate>::default()), folder.join("look.db"));
    let restoring = restored(
        &store,
        &out,
        Target::Txid(Txid(ack.txid)),
        Some(Generation(ack.generation)),
    );
    let Ok(Ok((told, content))) = tokio::time::timeout(Duration::from_secs(600), restoring).await else {
        return;
    };
    let there = sim.model.lock().unwrap().state_of(&content);
    if (told.generation.0, told.txid.0, there) != (ack.generation, ack.txid, Some(ack.state)) {
        sim.violated(format!("{ack:?} was restored as {told:?}, state {there:?}"));
    }
}
