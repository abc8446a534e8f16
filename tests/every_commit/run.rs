//! Runs a script through replvfs, keeps the true image after every commit, and compares each with what the replica
//! restores.

use std::collections::BTreeMap;
use std::process::Command;

use replvfs_tests::{Scratch, check_integrity, compare_pages, flush, plain_image, pragma_number, restore_txid};
use rusqlite::Connection;

use crate::remote::{Follower, read_all};
use crate::script::{Part, Step, Write};

/// How a script's database is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) page_size: u32,
    pub(crate) auto_vacuum: u8,
    pub(crate) locking: Locking,
    /// `PRAGMA journal_mode` at the start.
    pub(crate) journal: &'static str,
    /// Connections that take turns. One in the exclusive modes.
    pub(crate) connections: usize,
    /// Further URI parameters.
    pub(crate) parameters: &'static str,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            page_size: 4096,
            auto_vacuum: 0,
            locking: Locking::Normal,
            journal: "WAL",
            connections: 3,
            parameters: "",
        }
    }
}

/// `PRAGMA locking_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Locking {
    Normal,
    /// Before `journal_mode`: in WAL mode the wal-index is on the heap.
    ExclusiveBefore,
    /// After it: the wal-index is in shared memory, but its locks are not used.
    ExclusiveAfter,
}

struct Run<'a> {
    scratch: &'a Scratch,
    setup: Setup,
    connections: Vec<Connection>,
    current: usize,
    seed: u64,
    /// The journal mode that the WAL was entered from.
    before_wal: String,
    /// A transaction was rolled back, and the lock was not let go since.
    spilled: bool,
    last: u64,
    truth: BTreeMap<u64, Vec<u8>>,
}

/// Runs the script, then restores every transaction.
pub(crate) fn run(setup: Setup, steps: &[Step]) {
    let scratch = Scratch::new();
    let mut run = Run {
        scratch: &scratch,
        setup,
        connections: Vec::new(),
        current: 0,
        seed: 0,
        before_wal: String::new(),
        spilled: false,
        last: 0,
        truth: BTreeMap::new(),
    };
    run.open();
    let follower = Follower::start(scratch.replica());
    for step in steps {
        run.step(step);
        run.look(step);
    }
    flush(&run.connections[run.current]);
    assert_eq!(
        pragma_number(&run.connections[run.current], "replvfs_acked"),
        Some(run.last)
    );
    follower.end(run.last, &run.truth);
    run.restore_all();
    read_all(&scratch, &run.truth);
}

impl Run<'_> {
    fn open(&mut self) {
        let uri = self.scratch.uri_with(self.setup.parameters);
        let first = replvfs_tests::open(&uri).unwrap();
        first
            .execute_batch(&format!(
                "PRAGMA page_size={}; PRAGMA auto_vacuum={};",
                self.setup.page_size, self.setup.auto_vacuum
            ))
            .unwrap();
        if self.setup.locking == Locking::ExclusiveBefore {
            first.execute_batch("PRAGMA locking_mode=EXCLUSIVE;").unwrap();
        }
        first
            .execute_batch(&format!("PRAGMA journal_mode={}", self.setup.journal))
            .unwrap();
        if self.setup.locking == Locking::ExclusiveAfter {
            first
                .execute_batch("SELECT * FROM sqlite_schema; PRAGMA locking_mode=EXCLUSIVE;")
                .unwrap();
        }
        first
            .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, k, b)")
            .unwrap();
        self.connections.push(first);
        self.open_others();
        // The first commit is the base, but which one that is depends on the pragmas.
        self.last = pragma_number(&self.connections[0], "replvfs_txid").unwrap();
        self.truth.insert(self.last, self.true_image());
    }

    fn open_others(&mut self) {
        if self.setup.locking == Locking::Normal {
            let uri = self.scratch.uri_with(self.setup.parameters);
            for _ in self.connections.len()..self.setup.connections {
                self.connections.push(replvfs_tests::open(&uri).unwrap());
            }
        }
    }

    fn journal_mode(&self) -> String {
        let sql = "PRAGMA journal_mode";
        let mode = self.connections[self.current].query_row(sql, [], |row| row.get(0));
        mode.unwrap()
    }

    /// Others that have the WAL open refuse a connection that wants to leave it.
    ///
    /// SQLite 3.51.3 to 3.54.1 damages a database by itself when a connection that keeps its lock goes from a journal on the
    /// disk to MEMORY or OFF, to WAL, to MEMORY, and rolls back. That way out of the WAL is not taken.
    fn set_journal_mode(&mut self, mode: &str) {
        let before = self.journal_mode();
        let damages = self.setup.locking != Locking::Normal
            && before == "wal"
            && matches!(self.before_wal.as_str(), "memory" | "off");
        let mode = if damages && mode == "MEMORY" { "DELETE" } else { mode };
        if before != "wal" {
            self.before_wal = before;
        }
        let current = self.connections.swap_remove(self.current);
        self.connections = vec![current];
        self.current = 0;
        let sql = format!("PRAGMA journal_mode={mode}");
        let now: String = self.connections[0].query_row(&sql, [], |row| row.get(0)).unwrap();
        assert_eq!(now, mode.to_lowercase());
        self.open_others();
    }

    fn step(&mut self, step: &Step) {
        if let Step::JournalMode(mode) = step {
            return self.set_journal_mode(mode);
        }
        // Nothing can be undone without a journal.
        let undo = self.journal_mode() != "off";
        let connection = &self.connections[self.current];
        match step {
            Step::Write(write) => execute(connection, write, &mut self.seed),
            Step::Transaction { parts, commit } => {
                connection.execute_batch("BEGIN IMMEDIATE").unwrap();
                for part in parts {
                    match part {
                        Part::Write(write) => execute(connection, write, &mut self.seed),
                        Part::Savepoint { writes, rollback } => {
                            connection.execute_batch("SAVEPOINT s").unwrap();
                            for write in writes {
                                execute(connection, write, &mut self.seed);
                            }
                            let end = if *rollback && undo {
                                "ROLLBACK TO s; RELEASE s"
                            } else {
                                "RELEASE s"
                            };
                            connection.execute_batch(end).unwrap();
                        }
                    }
                }
                connection
                    .execute_batch(if *commit || !undo { "COMMIT" } else { "ROLLBACK" })
                    .unwrap();
            }
            Step::Checkpoint(mode) => connection
                .execute_batch(&format!("PRAGMA wal_checkpoint({mode})"))
                .unwrap(),
            Step::Setting(name, value) => connection.execute_batch(&format!("PRAGMA {name}={value}")).unwrap(),
            Step::Vacuum => connection.execute_batch("VACUUM").unwrap(),
            Step::IncrementalVacuum(pages) => {
                connection
                    .execute_batch(&format!("PRAGMA incremental_vacuum({pages})"))
                    .unwrap();
            }
            Step::JournalMode(_) => unreachable!("done above"),
            Step::Switch(to) => self.current = to % self.connections.len(),
        }
    }

    /// Keeps the true image if there was a commit, and checks that there was none unseen.
    fn look(&mut self, step: &Step) {
        let image = self.true_image();
        let txid = pragma_number(&self.connections[self.current], "replvfs_txid").unwrap();
        assert!(txid <= self.last + 1, "{step:?} went from txid {} to {txid}", self.last);
        // With the lock kept, what a spill left in pages that nobody uses goes with the next commit.
        let rolled_back = matches!(step, Step::Transaction { commit: false, .. });
        let kept = self.setup.locking != Locking::Normal && self.journal_mode() != "wal";
        self.spilled = txid == self.last && (self.spilled || rolled_back && kept);
        if self.spilled {
            return;
        }
        if txid == self.last
            && let Some(before) = self.truth.get(&txid)
        {
            compare_pages(before, &image).unwrap_or_else(|difference| {
                panic!("{step:?} changed the database, but is no transaction: {difference}")
            });
        } else {
            self.truth.insert(txid, image);
            self.last = txid;
        }
    }

    /// What SQLite without replvfs reads.
    fn true_image(&self) -> Vec<u8> {
        let path = self.scratch.database();
        if self.setup.locking == Locking::Normal {
            return plain_image(&path);
        }
        // Nobody else may read this database: look at a copy. Another process makes it, since closing the file in this one would
        // drop SQLite's locks.
        let copy = self.scratch.file("copy.db");
        for suffix in ["", "-wal"] {
            let from = self.scratch.file(&format!("app.db{suffix}"));
            let to = self.scratch.file(&format!("copy.db{suffix}"));
            if from.exists() {
                let status = Command::new("cp").arg(&from).arg(&to).status().unwrap();
                assert!(status.success());
            } else {
                let _ = std::fs::remove_file(&to);
            }
        }
        let image = plain_image(&copy);
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(self.scratch.file(&format!("copy.db{suffix}")));
        }
        image
    }

    fn restore_all(&self) {
        for (txid, truth) in &self.truth {
            let out = self.scratch.file(&format!("restored-{txid}.db"));
            let restored = restore_txid(&self.scratch.replica(), &out, Some(*txid));
            assert_eq!(restored.txid.0, *txid);
            let bytes = std::fs::read(&out).unwrap();
            if let Err(difference) = compare_pages(truth, &bytes) {
                panic!("txid {txid} is not what it was: {difference}");
            }
            check_integrity(&out);
            std::fs::remove_file(&out).unwrap();
        }
    }
}

fn execute(connection: &Connection, write: &Write, seed: &mut u64) {
    *seed += 1000;
    let sql = write.sql(*seed);
    connection
        .execute_batch(&sql)
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}
