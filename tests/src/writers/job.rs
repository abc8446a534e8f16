//! What a writer's process is told.

use serde_json::{Value, json};

use crate::Rng;

/// The writer that ends a round, and makes the database if it is the first.
pub const LAST_WRITER: i64 = 9;

/// Writers from here on commit with `durability=strict`: what anybody sees of them is in the replica.
pub const FIRST_STRICT: i64 = 20;

/// When the commits of a writer return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// When SQLite says so.
    Async,
    /// When they are in the replica.
    Remote,
    /// The same, and nobody sees them before.
    Strict,
}

impl Level {
    pub(super) fn name(self) -> &'static str {
        match self {
            Level::Async => "async",
            Level::Remote => "remote",
            Level::Strict => "strict",
        }
    }
}

/// How the writers of a round keep what they overwrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    /// In WAL mode, all of them.
    Wal,
    /// In a file beside the database; each writer in its own way.
    Rollback,
    /// They switch between all of these as they go.
    Switching,
    /// In memory or not at all. SQLite says of both that a process which dies within a transaction may leave a corrupt database, as nothing
    /// is there that could take the transaction back. So these writers are killed between two transactions only.
    Memory,
}

impl Journal {
    /// A mode for one connection, in SQLite's words.
    pub fn mode(self, rng: &mut Rng) -> String {
        rng.of(self.modes()).to_owned()
    }

    /// A mode that the database can be left in for such writers.
    pub fn left_behind(self, rng: &mut Rng) -> String {
        match self {
            Journal::Memory => "DELETE".to_owned(),
            journal => journal.mode(rng),
        }
    }

    fn modes(self) -> &'static [&'static str] {
        match self {
            Journal::Wal => &["WAL"],
            Journal::Rollback => &["DELETE", "TRUNCATE", "PERSIST"],
            Journal::Switching => &["WAL", "WAL", "DELETE", "TRUNCATE", "PERSIST"],
            Journal::Memory => &["MEMORY", "OFF"],
        }
    }
}

/// The job of one writer.
#[derive(Debug, Clone)]
pub struct Job {
    /// What it opens.
    pub uri: String,
    /// Its name in everything that it writes.
    pub id: i64,
    /// It opens the database without replvfs.
    pub plain: bool,
    /// When its commits return.
    pub level: Level,
    /// Before anything else, before the schema is looked at; the wal-index of an exclusive one is then on the heap.
    pub pragmas: Vec<String>,
    /// Of its round.
    pub journal: Journal,
    /// The journal mode that it asks for when it opens the database. It may not get it, when others are there.
    pub mode: String,
    /// Decides what it does.
    pub seed: u64,
    /// So many, or until its input ends if that is sooner.
    pub steps: u64,
    /// It does not count its steps before it replicates.
    pub until_owner: bool,
    /// When the database cannot be opened, it waits for a line and tries again.
    pub patient: bool,
    /// In bytes, for a database that is not there yet.
    pub page_size: u64,
    /// Segments that were merged are deleted at once.
    pub deletes_merged: bool,
    /// The file that its log is added to; nowhere when it is empty.
    pub log: String,
}

impl Job {
    /// Settings of a connection that change what SQLite writes, and when.
    pub fn draw_pragmas(rng: &mut Rng, exclusive: bool) -> Vec<String> {
        let mut pragmas = vec![
            format!("PRAGMA synchronous = {}", rng.of(&["NORMAL", "NORMAL", "FULL"])),
            format!("PRAGMA cache_size = {}", rng.of(&[8, 2000])),
            format!("PRAGMA wal_autocheckpoint = {}", rng.of(&[1000, 1000, 20, 0])),
        ];
        if exclusive && rng.one_in(2) {
            pragmas.insert(0, "PRAGMA locking_mode = EXCLUSIVE".to_owned());
        } else if exclusive {
            pragmas
                .extend(["SELECT count(*) FROM sqlite_schema", "PRAGMA locking_mode = EXCLUSIVE"].map(str::to_owned));
        }
        pragmas
    }

    pub(super) fn encode(&self) -> String {
        json!({
            "uri": self.uri, "id": self.id, "plain": self.plain, "level": self.level.name(), "pragmas": self.pragmas, "mode": self.mode,
            "journal": format!("{:?}", self.journal), "seed": self.seed, "steps": self.steps, "until_owner": self.until_owner,
            "patient": self.patient, "page_size": self.page_size,
            "deletes_merged": self.deletes_merged, "log": self.log,
        })
        .to_string()
    }

    pub(super) fn decode(text: &str) -> Job {
        let job: Value = serde_json::from_str(text).expect("the job is JSON");
        let text = |name: &str| job[name].as_str().expect("a text");
        let number = |name: &str| job[name].as_u64().expect("a number");
        let flag = |name: &str| job[name].as_bool().expect("a flag");
        let known = [Journal::Wal, Journal::Rollback, Journal::Switching, Journal::Memory];
        let journal = known
            .into_iter()
            .find(|journal| format!("{journal:?}") == text("journal"));
        let journal = journal.expect("a known journal");
        let level = [Level::Async, Level::Remote, Level::Strict]
            .into_iter()
            .find(|level| level.name() == text("level"));
        let pragmas = job["pragmas"].as_array().expect("a list").iter();
        Job {
            uri: text("uri").to_owned(),
            id: job["id"].as_i64().expect("a number"),
            plain: flag("plain"),
            level: level.expect("a known level"),
            pragmas: pragmas.map(|pragma| pragma.as_str().expect("SQL").to_owned()).collect(),
            journal,
            mode: text("mode").to_owned(),
            seed: number("seed"),
            steps: number("steps"),
            until_owner: flag("until_owner"),
            patient: flag("patient"),
            page_size: number("page_size"),
            deletes_merged: flag("deletes_merged"),
            log: text("log").to_owned(),
        }
    }
}
