//! What a writer does in its process: it says what it is about to do before it does it, and that a commit is done when SQLite
//! said so. Every line goes to the pipe at once, with `@` before it.
//!
//! | it says | |
//! |---|---|
//! | `opening`, `begin`, `commit`, `rollback`, `checkpoint`, `switch`, `flush`, `close` | what it is about to do |
//! | `pause` | it waits for a line before it goes on: nothing of it is in the database in part |
//! | `unopened <why>` | the store was away |
//! | `open <mode>`, `switched <mode>` | the journal mode that it has now |
//! | `owner`, `standby`, `takeover` | whether it replicates the database; the last when it did not before |
//! | `done <writer>:<seq>` | SQLite has committed |
//! | `confirmed`, `unconfirmed <why>` | the commit waited until it was in the replica; or it is only in the database; or, with `durability=strict`, it is not there either |
//! | `acked <writer>:<seq>`, `flushed <writer>:<seq>…` | these and all before them are in the replica |
//! | `refused <why>` | the flush failed |
//! | `closed` | |

use std::collections::VecDeque;
use std::fs::File;
use std::io::BufRead;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use super::content::{self, Newest, SCHEMA};
use super::{FIRST_STRICT, Job, Journal, LAST_WRITER, Level};
use crate::{Rng, open, pragma_number, status};

/// The environment variable with the job.
pub(super) const JOB: &str = "REPLVFS_TEST_WRITER";

/// Another writer may hold its lock for as long as a machine under load takes.
const BUSY: Duration = Duration::from_secs(100);

struct Child {
    job: Job,
    rng: Rng,
    /// Lines of its input. When they end, it shall.
    input: Receiver<String>,
    connection: Option<Connection>,
    /// In SQLite's words.
    mode: String,
    /// Since it has this connection; `None` when that was not asked yet.
    owns: Option<bool>,
    seq: i64,
    /// Commits of this process that are not acknowledged yet: a txid at which they are in the database, and their number.
    waiting: VecDeque<(u64, i64)>,
    /// What it has seen of others.
    seen: Newest,
}

fn say(line: &str) {
    println!("@{line}");
}

/// Does what the environment says, if it says anything.
///
/// # Panics
///
/// When SQLite refuses what it must not refuse.
pub fn run_if_asked() {
    let Ok(job) = std::env::var(JOB) else { return };
    // The harness has begun a line of its own.
    println!();
    let job = Job::decode(&job);
    if !job.log.is_empty() {
        log_to(&job.log);
    }
    crate::register_merging(job.deletes_merged);
    let mut child = Child {
        rng: Rng::new(job.seed),
        input: lines_of_input(),
        job,
        connection: None,
        mode: String::new(),
        owns: None,
        seq: 0,
        waiting: VecDeque::new(),
        seen: Newest::new(),
    };
    child.open();
    if child.job.id == LAST_WRITER {
        child.last_words();
    } else {
        child.work();
    }
    child.close();
}

fn log_to(path: &str) {
    let file = File::options().create(true).append(true).open(path);
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(Mutex::new(file.expect("the file of the log")))
        .init();
    tracing::info!(process = std::process::id(), "a writer");
}

fn lines_of_input() -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

impl Child {
    fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("it is open")
    }

    fn work(&mut self) {
        let mut steps = 0;
        while steps < self.job.steps && self.input.try_recv() != Err(TryRecvError::Disconnected) {
            self.step();
            if !self.job.until_owner || self.owns == Some(true) {
                steps += 1;
            }
        }
    }

    fn open(&mut self) {
        say("opening");
        let connection = self.opened();
        connection.busy_timeout(BUSY).expect("a busy timeout");
        for pragma in &self.job.pragmas {
            all_rows(&connection, pragma).unwrap_or_else(|error| panic!("{pragma}: {error}"));
        }
        self.connection = Some(connection);
        self.wait_at_commits(self.job.level);
        if self.job.id == LAST_WRITER {
            self.make_the_database();
        } else {
            self.mode = self.try_mode(&self.job.mode);
        }
        let known = content::newest(self.connection()).expect("reading the newest transactions");
        self.seq = known.get(&self.job.id).copied().unwrap_or(0);
        say(&format!("open {}", self.mode));
        self.owns = None;
        self.ownership();
    }

    fn opened(&self) -> Connection {
        loop {
            match open(&self.job.uri) {
                Ok(connection) => return connection,
                Err(error) if self.job.patient => {
                    say(&format!("unopened {error}"));
                    self.pause();
                }
                Err(error) => panic!("opening the database: {error}"),
            }
        }
    }

    fn pause(&self) {
        say("pause");
        let _ = self.input.recv();
    }

    /// Where it is there already, and is what it should be, nothing changes. The others have ended, so that nobody is in the way.
    fn make_the_database(&mut self) {
        let page_size = format!("PRAGMA page_size = {}", self.job.page_size);
        all_rows(self.connection(), &page_size).expect("setting the page size");
        self.mode = self.try_mode(&self.job.mode);
        assert_eq!(self.mode, self.job.mode.to_lowercase(), "the journal mode");
        self.connection().execute_batch(SCHEMA).expect("making the schema");
    }

    /// Asks for a journal mode, and returns what it is then. Others may stand in its way for as long as they like.
    fn try_mode(&self, mode: &str) -> String {
        let alone = self.job.id == LAST_WRITER;
        let connection = self.connection();
        connection
            .busy_timeout(if alone { BUSY } else { Duration::ZERO })
            .expect("a busy timeout");
        let asked = connection.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| row.get(0));
        connection.busy_timeout(BUSY).expect("a busy timeout");
        asked.unwrap_or_else(|_| {
            connection
                .query_row("PRAGMA journal_mode", [], |row| row.get(0))
                .expect("asking for the journal mode")
        })
    }

    fn close(&mut self) {
        say("close");
        self.connection = None;
        self.waiting.clear();
        say("closed");
    }

    fn step(&mut self) {
        match self.rng.below(20) {
            0 | 1 => self.checkpoint(),
            2 | 3 if !self.job.plain => {
                let _ = self.flush();
            }
            4 => {
                self.close();
                self.open();
            }
            5 if self.mode != "off" => self.transaction(false),
            6 | 7 if self.job.journal == Journal::Switching => {
                say("switch");
                let mode = self.job.journal.mode(&mut self.rng);
                self.mode = self.try_mode(&mode);
                say(&format!("switched {}", self.mode));
            }
            _ => self.transaction(true),
        }
        self.see();
        if !self.job.plain {
            self.acknowledged();
            self.ownership();
        }
    }

    fn checkpoint(&mut self) {
        say("checkpoint");
        let mode = self.rng.of(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
        // Others may stand in its way for as long as they like.
        let busy = |timeout| self.connection().busy_timeout(timeout).expect("a busy timeout");
        busy(Duration::ZERO);
        let _ = all_rows(self.connection(), &format!("PRAGMA wal_checkpoint({mode})"));
        busy(BUSY);
    }

    fn transaction(&mut self, commit: bool) {
        if self.job.journal == Journal::Memory && self.job.id != LAST_WRITER {
            self.pause();
        }
        say("begin");
        let Some(level) = self.begin() else { return };
        let connection = self.connection.as_ref().expect("it is open");
        content::write(connection, self.job.id, self.seq + 1, &mut self.rng).expect("writing");
        if !commit {
            say("rollback");
            return self.connection().execute_batch("ROLLBACK").expect("ROLLBACK");
        }
        say("commit");
        let unconfirmed = match self.connection().execute_batch("COMMIT") {
            Ok(()) => None,
            // With remote it is committed all the same.
            Err(error) if level != Level::Async && error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) => {
                Some(error)
            }
            Err(error) => panic!("COMMIT: {error}"),
        };
        assert!(self.connection().is_autocommit(), "a transaction is open after COMMIT");
        if let (Some(error), Level::Strict) = (&unconfirmed, level) {
            say(&format!("unconfirmed {error}"));
            let newest = content::newest(self.connection()).expect("reading the newest transactions");
            assert!(newest.get(&self.job.id) <= Some(&self.seq), "what was refused is there");
            return self.wait_at_commits(self.job.level);
        }
        self.seq += 1;
        let this = format!("{}:{}", self.job.id, self.seq);
        say(&format!("done {this}"));
        match unconfirmed {
            Some(error) => say(&format!("unconfirmed {error}")),
            None if level != Level::Async => {
                say(&format!("acked {this}"));
                say("confirmed");
            }
            None => {}
        }
        if !self.job.plain
            && let Some(txid) = pragma_number(self.connection(), "replvfs_txid")
        {
            self.waiting.push_back((txid, self.seq));
        }
    }

    /// When the commit will return. Through a rollback journal only the process that replicates can wait.
    fn begin(&self) -> Option<Level> {
        // The one before may have begun without, and was rolled back.
        let level = self.job.level;
        self.wait_at_commits(level);
        let Err(error) = self.connection().execute_batch("BEGIN IMMEDIATE") else {
            return Some(level);
        };
        let may_be = level != Level::Async && error.sqlite_error_code() == Some(ErrorCode::ReadOnly);
        assert!(may_be && self.mode != "wal", "BEGIN IMMEDIATE: {error}");
        if level == Level::Strict {
            say(&format!("unconfirmed {error}"));
            return None;
        }
        self.wait_at_commits(Level::Async);
        self.connection()
            .execute_batch("BEGIN IMMEDIATE")
            .expect("BEGIN IMMEDIATE");
        Some(Level::Async)
    }

    fn wait_at_commits(&self, level: Level) {
        if !self.job.plain {
            let set = format!("PRAGMA replvfs_durability={}", level.name());
            self.connection().execute_batch(&set).expect("the durability");
        }
    }

    /// Says what it sees of those who commit with `durability=strict`: all of it is in the replica, whoever dies now.
    fn see(&mut self) {
        let newest = content::newest(self.connection()).expect("reading the newest transactions");
        for (writer, seq) in newest.range(FIRST_STRICT..) {
            if self.seen.get(writer) < Some(seq) {
                say(&format!("acked {writer}:{seq}"));
            }
        }
        self.seen = newest;
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
            say(&format!("acked {}:{seq}", self.job.id));
        }
    }

    /// Says whether it replicates the database, when that has changed.
    fn ownership(&mut self) {
        if self.job.plain {
            return;
        }
        let owns = status(self.connection())["owner"] == true;
        match (self.owns.replace(owns), owns) {
            (None, true) => say("owner"),
            (None | Some(true), false) => say("standby"),
            (Some(false), true) => say("takeover"),
            (Some(true), true) | (Some(false), false) => {}
        }
    }

    /// Flushes, and says what was in the database before: all of it, whoever wrote it, must be in the replica now.
    fn flush(&self) -> Result<(), String> {
        let seen: Newest = content::newest(self.connection()).expect("reading the newest transactions");
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
            all_rows(self.connection(), "PRAGMA wal_checkpoint(TRUNCATE)").expect("a checkpoint");
            self.transaction(true);
        }
        let _ = self.input.recv();
    }
}

fn all_rows(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}
