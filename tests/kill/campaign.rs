//! The rounds of one database, and what must hold after each.
//!
//! A round: some writers, until each has ended or was killed. Then what they were told is in the replica must be there, as if this machine
//! were lost; in some rounds it is, and the restored database takes the place of the old one. Then a new process opens the database through replvfs,
//! commits once more and flushes: now the replica must hold every commit that was ever reported, and the newest state must be the
//! database, page by page.

use std::fs;
use std::io::Read;

use replvfs_tests::Scratch;
use replvfs_tests::writers::Journal;
use replvfs_tests::writers::content::{Newest, raise};
use replvfs_tests::writers::replica::{Restorer, remove};
use rusqlite::Connection;

use crate::counts::Counts;
use crate::objects::{Objects, merged};
use crate::plan::{self, Rng, Writer};
use crate::round::run;

/// Earlier transactions that are restored each time.
const EARLIER: u64 = 3;

pub(crate) struct Campaign<'a> {
    scratch: Scratch,
    rng: Rng,
    page_size: u64,
    /// Of the next round.
    journal: Journal,
    /// Of each writer, what SQLite said yes to.
    reported: Newest,
    /// And what replvfs said is in the replica.
    acked: Newest,
    restorer: Restorer,
    counts: &'a mut Counts,
}

impl Drop for Campaign<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.scratch.keep();
            eprintln!("what is left of it: {}", self.scratch.path().display());
        }
    }
}

impl Campaign<'_> {
    pub(crate) fn new(mut rng: Rng, counts: &mut Counts) -> Campaign<'_> {
        let mut campaign = Campaign {
            // Where syncs take their time uploads and commits last, where they take none more of them happen.
            scratch: if rng.one_in(2) {
                Scratch::new()
            } else {
                Scratch::in_memory()
            },
            page_size: rng.of(&[4096, 4096, 1024, 512, 65536]),
            rng,
            journal: Journal::Wal,
            reported: Newest::new(),
            acked: Newest::new(),
            restorer: Restorer::default(),
            counts,
        };
        campaign.last_writer();
        campaign
    }

    pub(crate) fn round(&mut self) {
        let writers = Writer::of_a_round(&mut self.rng, self.journal);
        if self.rng.one_in(4) || writers.iter().any(Writer::waits_for_a_generation) {
            self.visit();
        }
        self.run(writers);
        self.counts.hot_journals += u64::from(self.journal_is_hot());
        self.as_if_the_machine_were_lost();
        self.last_writer();
        self.everything_is_in_the_replica();
        let (spans, gone) = merged(&self.scratch.file("replica"));
        let most = self.counts.merged;
        self.counts.merged = (most.0.max(spans), most.1.max(gone));
        self.counts.rounds += 1;
        // It is for the round that fails.
        fs::remove_file(self.scratch.file("log")).unwrap();
        self.counts.restores += std::mem::take(&mut self.restorer.restores);
    }

    /// A process without replvfs comes by while nobody replicates. It moves the WAL into the database and deletes it, or it writes
    /// through a rollback journal: where the history went on, nobody can prove any more.
    fn visit(&self) {
        let plain = Connection::open(self.scratch.database()).unwrap();
        plain
            .execute_batch("PRAGMA user_version = 1; PRAGMA user_version = 0")
            .unwrap();
    }

    fn run(&mut self, mut writers: Vec<Writer>) {
        self.counts.writers += writers.len() as u64;
        for writer in &mut writers {
            writer.job.page_size = self.page_size;
            writer.job.log = self.scratch.file("log").display().to_string();
            writer.job.uri = if writer.job.plain {
                format!("file:{}", self.scratch.database().display())
            } else {
                self.scratch.uri_with(&writer.parameters)
            };
        }
        let objects = Objects::new(self.scratch.file("replica"));
        let heard = run(writers, &objects);
        self.counts.heard(&heard);
        raise(&mut self.reported, &heard.done);
        raise(&mut self.acked, &heard.acked);
    }

    fn last_writer(&mut self) {
        self.journal = plan::journal(&mut self.rng);
        let writer = Writer::last(&mut self.rng, self.journal);
        self.run(vec![writer]);
    }

    /// Whether its header is one: it has neither been deleted, nor emptied, nor overwritten with zeros.
    fn journal_is_hot(&self) -> bool {
        let mut header = [0; 8];
        let journal = fs::File::open(self.scratch.file("app.db-journal"));
        journal.is_ok_and(|mut journal| journal.read_exact(&mut header).is_ok() && header != [0; 8])
    }

    /// Before anything is started again, so from what the killed ones left in the replica.
    fn as_if_the_machine_were_lost(&mut self) {
        let what = "what was acknowledged, without the local files";
        let (found, out) = self.restorer.newest(&self.scratch, &self.acked, what);
        self.earlier_states(&found);
        if self.rng.one_in(5) {
            self.scratch.delete_database();
            fs::remove_file(self.scratch.file("app.db-replvfs-lock")).unwrap();
            fs::rename(&out, self.scratch.database()).unwrap();
            self.counts.disks_lost += 1;
            // What was not acknowledged is gone with the disk, as promised; the writers go on from here.
            self.reported = found;
        }
        remove(&out);
    }

    fn everything_is_in_the_replica(&mut self) {
        let found = self.restorer.is_the_database(&self.scratch, &self.reported);
        self.earlier_states(&found);
    }

    fn earlier_states(&mut self, newest: &Newest) {
        self.restorer
            .earlier_states(&self.scratch, newest, EARLIER, &mut self.rng);
    }
}
