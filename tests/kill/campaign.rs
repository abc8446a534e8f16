//! The rounds of one database, and what must hold after each.
//!
//! A round: some writers, until each has ended or was killed. Then what they were told is in the replica must be there, as if this machine
//! were lost; in some rounds it is, and the restored database takes the place of the old one. Then a new process opens the database through replvfs,
//! commits once more and flushes: now the replica must hold every commit that was ever reported, and the newest state must be the
//! database, page by page.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};

use replvfs::Txid;
use replvfs::format::Generation;
use replvfs::history::{History, Target};
use replvfs::restore::{RestoreOptions, Restored, restore};
use replvfs::store::{Store, StoreOptions};
use replvfs_tests::{Scratch, compare_pages, plain_image};
use rusqlite::Connection;

use crate::content::{Newest, check};
use crate::plan::{Rng, Writer};
use crate::processes::{Heard, run};

/// Earlier transactions that are restored each time.
const EARLIER: u64 = 3;

/// What happened, to show that the test does what it says.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    writers: u64,
    kills: u64,
    /// By the last phase that the killed process announced.
    killed_in: BTreeMap<String, u64>,
    commits: u64,
    acknowledged: u64,
    restores: u64,
    disks_lost: u64,
    /// Flushes that were refused, by reason.
    refused: BTreeMap<String, u64>,
}

impl AddAssign<&Counts> for Counts {
    fn add_assign(&mut self, other: &Counts) {
        self.writers += other.writers;
        self.kills += other.kills;
        self.commits += other.commits;
        self.acknowledged += other.acknowledged;
        self.restores += other.restores;
        self.disks_lost += other.disks_lost;
        for (phase, count) in &other.killed_in {
            *self.killed_in.entry(phase.clone()).or_default() += count;
        }
        for (reason, count) in &other.refused {
            *self.refused.entry(reason.clone()).or_default() += count;
        }
    }
}

impl Counts {
    /// A harness that kills nobody, or in which nothing is acknowledged, would be green whatever happens.
    pub(crate) fn are_worth_it(&self) {
        assert!(self.kills >= 40 && self.disks_lost >= 3, "{self:?}");
        assert!(self.commits >= 300 && self.acknowledged >= 100, "{self:?}");
        for phase in ["begin", "commit", "close"] {
            assert!(
                self.killed_in.contains_key(phase),
                "nobody was killed in {phase}: {self:?}"
            );
        }
    }

    fn heard(&mut self, heard: &Heard) {
        self.commits += heard.done.len() as u64;
        self.acknowledged += heard.acked.len() as u64;
        self.kills += heard.killed_in.len() as u64;
        for phase in &heard.killed_in {
            *self.killed_in.entry(phase.clone()).or_default() += 1;
        }
        for reason in &heard.refused {
            // Up to what differs from one to the next: paths and numbers.
            let reason: String = reason
                .chars()
                .take_while(|char| !char.is_ascii_digit() && *char != '/')
                .collect();
            *self.refused.entry(reason).or_default() += 1;
        }
    }
}

pub(crate) struct Campaign {
    scratch: Scratch,
    rng: Rng,
    page_size: u64,
    /// Of each writer, what SQLite said yes to.
    reported: Newest,
    /// And what replvfs said is in the replica.
    acked: Newest,
    counts: Counts,
    runtime: tokio::runtime::Runtime,
}

impl Campaign {
    pub(crate) fn new(mut rng: Rng) -> Campaign {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let mut campaign = Campaign {
            scratch: Scratch::new(),
            page_size: rng.of(&[4096, 4096, 1024, 512, 65536]),
            rng,
            reported: Newest::new(),
            acked: Newest::new(),
            counts: Counts::default(),
            runtime,
        };
        campaign.last_writer();
        campaign
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(crate) fn round(&mut self) {
        let writers = Writer::of_a_round(&mut self.rng);
        self.run(writers);
        self.as_if_the_machine_were_lost();
        self.last_writer();
        self.everything_is_in_the_replica();
        if self.rng.one_in(4) {
            // A process without replvfs comes by while nobody replicates: it moves the WAL into the database, and deletes it.
            let plain = Connection::open(self.scratch.database()).unwrap();
            plain
                .execute_batch("PRAGMA user_version = 1; PRAGMA user_version = 0")
                .unwrap();
        }
    }

    fn run(&mut self, writers: Vec<Writer>) {
        self.counts.writers += writers.len() as u64;
        let jobs = writers
            .into_iter()
            .map(|writer| {
                let uri = if writer.plain {
                    format!("file:{}", self.scratch.database().display())
                } else {
                    self.scratch.uri_with(&writer.parameters)
                };
                let job = writer.job(&uri, self.page_size);
                (writer, job)
            })
            .collect();
        let heard = run(jobs);
        self.counts.heard(&heard);
        raise(&mut self.reported, &heard.done);
        raise(&mut self.acked, &heard.acked);
    }

    fn last_writer(&mut self) {
        let writer = Writer::last(&mut self.rng);
        self.run(vec![writer]);
    }

    /// Before anything is started again, so from what the killed ones left in the replica.
    fn as_if_the_machine_were_lost(&mut self) {
        let out = self.scratch.file("restored.db");
        self.restore(Target::Newest, None, &out);
        let found = check(&out, "the newest state, before the restart");
        holds(&found, &self.acked, "what was acknowledged, without the local files");
        self.earlier_states(&found);
        if self.rng.one_in(5) {
            self.scratch.delete_database();
            fs::remove_file(self.scratch.file("app.db-replvfs-lock")).unwrap();
            fs::rename(&out, self.scratch.database()).unwrap();
            remove(&out);
            self.counts.disks_lost += 1;
            // What was not acknowledged is gone with the disk, as promised; the writers go on from here.
            self.reported = found;
            return;
        }
        remove(&out);
    }

    fn everything_is_in_the_replica(&mut self) {
        let out = self.scratch.file("restored.db");
        self.restore(Target::Newest, None, &out);
        let found = check(&out, "the newest state");
        holds(&found, &self.reported, "what was reported");
        let live = self.live_copy();
        let difference = compare_pages(&plain_image(&live), &fs::read(&out).unwrap());
        difference.unwrap_or_else(|difference| panic!("the newest state is not the database: {difference}"));
        self.earlier_states(&found);
        for file in [&out, &live] {
            remove(file);
        }
    }

    /// Some transactions of the newest generation, in order: each a state between the one before and the newest.
    fn earlier_states(&mut self, newest: &Newest) {
        let store = Store::open(&self.scratch.replica(), &StoreOptions::reading()).unwrap();
        let history = self.runtime.block_on(History::open(&store)).unwrap();
        let mut generations = history.generations().iter().rev();
        let generation = generations.find(|generation| !generation.images().is_empty()).unwrap();
        let number = generation.meta().generation;
        let mut txids = generation.images().to_vec();
        let first = txids[0];
        let visit = history.transactions(number, first..=Txid(u64::MAX), |entry| {
            if entry.txid > first {
                txids.push(entry.txid);
            }
        });
        self.runtime.block_on(visit).unwrap();
        let mut drawn: Vec<Txid> = (0..EARLIER).map(|_| self.rng.of(&txids)).collect();
        drawn.sort_unstable();
        drawn.dedup();
        let mut before = Newest::new();
        for txid in drawn {
            let out = self.scratch.file("earlier.db");
            let restored = self.restore(Target::Txid(txid), Some(number), &out);
            assert_eq!(restored.txid, txid);
            let found = check(&out, &format!("transaction {txid} of generation {number}"));
            holds(&found, &before, "an earlier transaction");
            holds(newest, &found, "an earlier transaction");
            before = found;
            remove(&out);
        }
    }

    fn restore(&mut self, target: Target, generation: Option<Generation>, out: &Path) -> Restored {
        self.counts.restores += 1;
        let store = Store::open(&self.scratch.replica(), &StoreOptions::reading()).unwrap();
        let options = RestoreOptions {
            target,
            generation,
            ..RestoreOptions::default()
        };
        let restored = self.runtime.block_on(restore(&store, out, &options));
        restored.unwrap_or_else(|error| panic!("restoring {target:?} of {generation:?}: {error}"))
    }

    /// The database with its WAL, as they are: opening the database itself would move the one into the other.
    fn live_copy(&self) -> PathBuf {
        let copy = self.scratch.file("live.db");
        fs::copy(self.scratch.database(), &copy).unwrap();
        let wal = self.scratch.file("app.db-wal");
        if wal.exists() {
            fs::copy(wal, self.scratch.file("live.db-wal")).unwrap();
        }
        copy
    }
}

/// A database file, if it is there, and what SQLite left beside it.
fn remove(database: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut file = database.as_os_str().to_owned();
        file.push(suffix);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => panic!("removing {}: {error}", file.display()),
            _ => {}
        }
    }
}

fn raise(newest: &mut Newest, commits: &[(i64, i64)]) {
    for (writer, seq) in commits {
        let known = newest.entry(*writer).or_default();
        *known = (*known).max(*seq);
    }
}

fn holds(found: &Newest, wanted: &Newest, what: &str) {
    for (writer, seq) in wanted {
        let there = found.get(writer).copied().unwrap_or(0);
        assert!(
            there >= *seq,
            "{what}: writer {writer} is there up to {there}, but {seq} was wanted; there is {found:?}, wanted was {wanted:?}"
        );
    }
}
