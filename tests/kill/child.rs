//! What a writer does in its process: it says what it is about to do before it does it, and that a commit is done when SQLite
//! said so. Every line goes to the pipe at once, with `@` before it.

use std::collections::VecDeque;

use replvfs_tests::{open, pragma_number};
use rusqlite::Connection;
use serde_json::Value;

use crate::content::{self, Newest, SCHEMA};
use crate::plan::{LAST_WRITER, Rng};

/// The environment variable with the job.
pub(crate) const JOB: &str = "REPLVFS_TEST_KILL_JOB";

/// Another writer may hold its lock for as long as a machine under load takes.
const BUSY: std::time::Duration = std::time::Duration::from_secs(100);

struct Child {
    job: Value,
    id: i64,
    plain: bool,
    rng: Rng,
    connection: Option<Connection>,
    seq: i64,
    /// Commits of this process that are not acknowledged yet: a txid at which they are in the database, and their number.
    waiting: VecDeque<(u64, i64)>,
}

fn say(line: &str) {
    println!("@{line}");
}

pub(crate) fn run_if_asked() {
    let Ok(job) = std::env::var(JOB) else { return };
    // The harness has begun a line of its own.
    println!();
    let job: Value = serde_json::from_str(&job).unwrap();
    let mut child = Child {
        id: job["id"].as_i64().unwrap(),
        plain: job["plain"].as_bool().unwrap(),
        rng: Rng::new(job["seed"].as_u64().unwrap()),
        job,
        connection: None,
        seq: 0,
        waiting: VecDeque::new(),
    };
    child.open();
    if child.id == LAST_WRITER {
        child.last_words();
    } else {
        for _ in 0..child.job["steps"].as_u64().unwrap() {
            child.step();
        }
    }
    child.close();
}

impl Child {
    fn connection(&self) -> &Connection {
        self.connection.as_ref().unwrap()
    }

    fn open(&mut self) {
        say("opening");
        let connection = open(self.job["uri"].as_str().unwrap()).unwrap();
        connection.busy_timeout(BUSY).unwrap();
        for pragma in self.job["pragmas"].as_array().unwrap() {
            all_rows(&connection, pragma.as_str().unwrap()).unwrap();
        }
        if self.id == LAST_WRITER {
            // Where the database is there already, and is what it should be, neither does anything.
            all_rows(&connection, &format!("PRAGMA page_size = {}", self.job["page_size"])).unwrap();
            all_rows(&connection, "PRAGMA journal_mode = WAL").unwrap();
            connection.execute_batch(SCHEMA).unwrap();
        }
        self.seq = content::newest(&connection)
            .unwrap()
            .get(&self.id)
            .copied()
            .unwrap_or(0);
        self.connection = Some(connection);
        say("open");
    }

    fn close(&mut self) {
        say("close");
        self.connection = None;
        self.waiting.clear();
        say("closed");
    }

    fn step(&mut self) {
        match self.rng.below(20) {
            0 | 1 => {
                say("checkpoint");
                let mode = self.rng.of(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
                // Others may stand in its way for as long as they like.
                self.connection().busy_timeout(std::time::Duration::ZERO).unwrap();
                let _ = all_rows(self.connection(), &format!("PRAGMA wal_checkpoint({mode})"));
                self.connection().busy_timeout(BUSY).unwrap();
            }
            2 | 3 if !self.plain => {
                let _ = self.flush();
            }
            4 => {
                self.close();
                self.open();
            }
            5 => self.transaction(false),
            _ => self.transaction(true),
        }
        if !self.plain {
            self.acknowledged();
        }
    }

    fn transaction(&mut self, commit: bool) {
        say("begin");
        self.connection().execute_batch("BEGIN IMMEDIATE").unwrap();
        let connection = self.connection.as_ref().unwrap();
        content::write(connection, self.id, self.seq + 1, &mut self.rng).unwrap();
        if !commit {
            say("rollback");
            return self.connection().execute_batch("ROLLBACK").unwrap();
        }
        say("commit");
        self.connection().execute_batch("COMMIT").unwrap();
        self.seq += 1;
        say(&format!("done {}:{}", self.id, self.seq));
        if !self.plain
            && let Some(txid) = pragma_number(self.connection(), "replvfs_txid")
        {
            self.waiting.push_back((txid, self.seq));
        }
    }

    /// Says which commits of its own can be restored from the replica, according to `replvfs_acked`.
    fn acknowledged(&mut self) {
        let acked = pragma_number(self.connection(), "replvfs_acked");
        let mut newest = None;
        while let Some((txid, seq)) = self.waiting.front()
            && Some(*txid) <= acked
        {
            newest = Some(*seq);
            self.waiting.pop_front();
        }
        if let Some(seq) = newest {
            say(&format!("acked {}:{seq}", self.id));
        }
    }

    /// Flushes, and says what was in the database before: all of it, whoever wrote it, must be in the replica now.
    fn flush(&self) -> Result<(), String> {
        let seen: Newest = content::newest(self.connection()).unwrap();
        let seen: Vec<String> = seen.iter().map(|(writer, seq)| format!("{writer}:{seq}")).collect();
        say("flush");
        match all_rows(self.connection(), "PRAGMA replvfs_flush") {
            Ok(()) => say(&format!("flushed {}", seen.join(" "))),
            Err(error) => {
                // Another process replicates, or this one just took over: nothing is promised.
                say(&format!("refused {error}"));
                return Err(error.to_string());
            }
        }
        Ok(())
    }

    /// The process after all others: one more transaction, flushed; then it closes, if it is let.
    fn last_words(&mut self) {
        self.transaction(true);
        let mut tries = 0;
        while let Err(refused) = self.flush() {
            // This connection is alone with a large WAL, which was left behind or which it has written: no image is made before it
            // starts again, with a transaction that is small enough.
            assert!(refused.contains("WAL is larger than memory_limit"), "{refused}");
            tries += 1;
            assert!(tries < 50, "there is no small transaction");
            all_rows(self.connection(), "PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
            self.transaction(true);
        }
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
    }
}

fn all_rows(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}
