//! Many machines, one replica, and everything that can go wrong between them, as one order of events that a seed decides.
//!
//! What runs is the pipeline itself: the task with its log, the state file and the lock, and restores. Here is only the world around it: time, chance,
//! the store and the way to it ([`sky`]), databases and what the VFS would capture of them ([`disk`]), processes that are killed, stopped and cut off
//! ([`process`], [`schedule`]), somebody who merges and deletes ([`keeper`]), and commits that nobody sees before they are stored ([`strict`]). The promises are kept when somebody is told that something is safe ([`world`]), when an object gets into the store, and at the
//! end, by everything that is there ([`check`]).
//!
//! | variable | |
//! |---|---|
//! | `REPLVFS_SIM_SEED` | one schedule, told step by step |
//! | `REPLVFS_SIM_FIRST` | the first seed of those that are run, in place of 0 |
//! | `REPLVFS_SIM_SCHEDULES` | how many; 400 without it, 60,000 with `REPLVFS_LONG_TESTS=1` |
//!
//! With `RUST_BACKTRACE=1` it takes half as long again: each error of the store has a backtrace of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod check;
mod disk;
mod keeper;
mod model;
mod process;
mod schedule;
pub(crate) mod script;
mod sky;
mod strict;
#[cfg(test)]
mod tests;
mod thorough;
mod world;

use std::path::Path;
use std::sync::Arc;

#[cfg(test)]
use replvfs_vfs::types::PageSize;

use world::{Counts, Sim, enter};

/// What a schedule broke, if anything.
type Violation = Option<String>;

fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    folder.unwrap()
}

/// The schedule of a seed.
#[cfg(test)]
fn simulate(seed: u64, traced: bool, folder: &Path) -> (Violation, Counts) {
    let folder = folder.join(seed.to_string());
    let begin = || Sim::new(seed, PageSize::new(512).unwrap(), (traced, false));
    in_world(&folder, begin, async |sim| schedule::run(&sim, &folder).await)
}

/// Whatever happens in a world of its own, on this thread.
fn in_world(
    folder: &Path,
    begin: impl FnOnce() -> Arc<Sim>,
    happens: impl AsyncFnOnce(Arc<Sim>),
) -> (Violation, Counts) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    std::fs::create_dir(folder).unwrap();
    let sim = runtime.block_on(async {
        let sim = begin();
        enter(Some(&sim));
        happens(Arc::clone(&sim)).await;
        sim
    });
    drop(runtime);
    enter(None);
    std::fs::remove_dir_all(folder).unwrap();
    sim.count(|counts| counts.schedules = 1);
    let counts = sim.counts.lock().unwrap().clone();
    (sim.violation(), counts)
}
