//! What the replica of the writers' database holds.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use replvfs::format::Generation;
use replvfs::history::{History, Target};
use replvfs::restore::{RestoreOptions, Restored, restore};
use replvfs::store::{Store, StoreOptions};
use replvfs_vfs::types::Txid;

use super::content::{Newest, check, holds};
use crate::{Rng, Scratch, block_on, compare_pages, plain_image};

/// Restores, compares, and counts how often.
#[derive(Debug, Default)]
pub struct Restorer {
    /// Restored databases.
    pub restores: u64,
}

impl Restorer {
    /// The newest state must be sound and hold what was wanted. Returns what it holds, and leaves the file there.
    pub fn newest(&mut self, scratch: &Scratch, wanted: &Newest, what: &str) -> (Newest, PathBuf) {
        let out = scratch.file("restored.db");
        self.restore(scratch, Target::Newest, None, &out);
        let found = check(&out, what);
        holds(&found, wanted, what);
        (found, out)
    }

    /// The newest state must be the database, page by page, with everything that was reported.
    ///
    /// # Panics
    ///
    /// When it is not.
    pub fn is_the_database(&mut self, scratch: &Scratch, reported: &Newest) -> Newest {
        let (found, out) = self.newest(scratch, reported, "what was reported, after the last flush");
        let live = live_copy(scratch);
        let restored = fs::read(&out).expect("reading the restored file");
        let difference = compare_pages(&plain_image(&live), &restored);
        difference.unwrap_or_else(|difference| panic!("the newest state is not the database: {difference}"));
        remove(&out);
        remove(&live);
        found
    }

    /// Some transactions of the newest generation, in order: each a state between the one before and the newest.
    ///
    /// # Panics
    ///
    /// When one is not.
    pub fn earlier_states(&mut self, scratch: &Scratch, newest: &Newest, count: u64, rng: &mut Rng) {
        let store = reading(scratch);
        let history = block_on(History::open(&store)).expect("opening the history");
        let mut generations = history.generations().iter().rev();
        let generation = generations.find(|generation| !generation.images().is_empty());
        let generation = generation.expect("a generation with an image");
        let number = generation.meta().generation;
        let mut txids = generation.images().to_vec();
        let first = txids[0];
        let visit = history.transactions(number, first..=Txid(u64::MAX), |entry| {
            if entry.txid > first {
                txids.push(entry.txid);
            }
        });
        block_on(visit).expect("reading the history");
        let mut drawn: Vec<Txid> = (0..count).map(|_| rng.of(&txids)).collect();
        drawn.sort_unstable();
        drawn.dedup();
        let mut before = Newest::new();
        for txid in drawn {
            let out = scratch.file("earlier.db");
            let restored = self.restore(scratch, Target::Txid(txid), Some(number), &out);
            assert_eq!(restored.txid, txid);
            let found = check(&out, &format!("transaction {txid} of generation {number}"));
            holds(&found, &before, "an earlier transaction");
            holds(newest, &found, "an earlier transaction");
            before = found;
            remove(&out);
        }
    }

    fn restore(&mut self, scratch: &Scratch, target: Target, generation: Option<Generation>, out: &Path) -> Restored {
        self.restores += 1;
        let options = RestoreOptions {
            target,
            generation,
            ..RestoreOptions::default()
        };
        let restored = block_on(restore(&reading(scratch), out, &options));
        restored.unwrap_or_else(|error| panic!("restoring {target:?} of {generation:?}: {error}"))
    }
}

fn reading(scratch: &Scratch) -> Store {
    Store::open(&scratch.replica(), &StoreOptions::reading()).expect("opening the replica")
}

/// The database with what is beside it, as they are: opening the database itself would move the one into the other.
fn live_copy(scratch: &Scratch) -> PathBuf {
    let copy = scratch.file("live.db");
    fs::copy(scratch.database(), &copy).expect("copying the database");
    for suffix in ["-wal", "-journal"] {
        let beside = scratch.file(&format!("app.db{suffix}"));
        if beside.exists() {
            fs::copy(beside, scratch.file(&format!("live.db{suffix}"))).expect("copying what is beside the database");
        }
    }
    copy
}

/// A database file, if it is there, and what SQLite left beside it.
pub fn remove(database: &Path) {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut file = database.as_os_str().to_owned();
        file.push(suffix);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("removing {}: {error}", file.display()),
            _ => {}
        }
    }
}
