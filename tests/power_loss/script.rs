//! What an application does before the power goes: a script drawn from a seed, run once with a record of everything.
//!
//! Owns the states that the script really committed, each as SQLite without replvfs reads it from what was written so far.

use std::path::Path;
use std::sync::Arc;

use replvfs_tests::{Rng, Scratch};
use rusqlite::Connection;

use super::disk::Files;
use super::medium::Medium;
use super::tape::{Recording, Tape};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Journal {
    Wal,
}

impl Journal {
    fn pragma(self) -> &'static str {
        match self {
            Journal::Wal => "WAL",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Synchronous {
    Off,
    Normal,
    Full,
}

/// How a database is used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) medium: Medium,
    pub(crate) journal: Journal,
    /// `locking_mode=EXCLUSIVE` before anything else. WAL on a disk without shared memory needs it.
    pub(crate) exclusive: bool,
    pub(crate) synchronous: Synchronous,
    /// Steps of the script.
    pub(crate) steps: usize,
}

impl Setup {
    /// Opens the database through replvfs, as each process of the application does.
    pub(crate) fn open(&self, database: &Path, replica: &Path) -> rusqlite::Result<Connection> {
        let connection = self.medium.open(database, replica)?;
        if self.exclusive {
            connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE")?;
        }
        connection.execute_batch(&format!(
            "PRAGMA synchronous = {:?}; PRAGMA cache_size = 8; PRAGMA wal_autocheckpoint = 40",
            self.synchronous
        ))?;
        self.shape(&connection)?;
        Ok(connection)
    }

    /// What a database gets that is new; where it is not, nothing happens.
    pub(crate) fn shape(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.execute_batch("PRAGMA page_size = 1024")?;
        let pragma = format!("PRAGMA journal_mode = {}", self.journal.pragma());
        connection.query_row(&pragma, [], |row| row.get::<_, String>(0))?;
        Ok(())
    }
}

/// One step. Each commits once at most.
#[derive(Debug, Clone)]
enum Step {
    Sql(String),
    Checkpoint(&'static str),
    /// `PRAGMA replvfs_flush`.
    Flush,
    /// Go on with another connection.
    Switch(usize),
    /// All connections are closed, and opened again.
    Reopen,
}

fn step(rng: &mut Rng) -> Step {
    let seed = rng.below(1 << 30);
    match rng.below(20) {
        0..=4 => Step::Sql(insert(seed, 1 + rng.below(3), 300)),
        5 | 6 => Step::Sql(insert(seed, 1, 2000 + rng.below(8000))),
        7 | 8 => Step::Sql(format!(
            "UPDATE t SET b = {} WHERE a % 3 = {}",
            text(seed, "400"),
            seed % 3
        )),
        9 => Step::Sql(format!("DELETE FROM t WHERE a % 4 = {}", seed % 4)),
        // More pages than the cache has: they are spilled, and some of them rewritten in place.
        10 => Step::Sql(spilled(seed, "COMMIT")),
        11 => Step::Sql(spilled(seed, "ROLLBACK")),
        12 => Step::Sql(format!(
            "BEGIN; {}; SAVEPOINT s; {}; ROLLBACK TO s; RELEASE s; {}; COMMIT",
            insert(seed, 2, 500),
            insert(seed + 10, 12, 900),
            insert(seed + 20, 2, 500)
        )),
        13 | 14 => Step::Checkpoint(rng.of(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"])),
        15 => Step::Reopen,
        16 => Step::Switch(usize::try_from(rng.below(3)).unwrap()),
        17 if rng.one_in(2) => Step::Sql("VACUUM".to_owned()),
        _ => Step::Flush,
    }
}

/// The first steps are the same in all scripts, so that no script misses what matters most.
fn steps(rng: &mut Rng, count: usize) -> Vec<Step> {
    let mut steps = vec![
        Step::Sql("CREATE TABLE t(a INTEGER PRIMARY KEY, k, b)".to_owned()),
        Step::Sql(insert(1, 2, 600)),
        Step::Flush,
        Step::Sql(insert(50, 3, 400)),
        Step::Checkpoint(rng.of(&["RESTART", "TRUNCATE", "PASSIVE"])),
        Step::Sql(insert(90, 1, 200)),
    ];
    steps.extend((steps.len()..count).map(|_| step(rng)));
    steps
}

/// Text that differs from seed to seed, `len` (an expression) bytes.
fn text(seed: u64, len: &str) -> String {
    format!("substr(replace(hex(zeroblob({len} / 16 + 1)), '00', printf('%08x%08x', {seed}, a)), 1, {len})")
}

fn insert(seed: u64, rows: u64, len: u64) -> String {
    format!(
        "WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM n WHERE a < {rows}) \
         INSERT INTO t(k, b) SELECT {seed} + a, {} FROM n",
        text(seed, &len.to_string())
    )
}

fn spilled(seed: u64, end: &str) -> String {
    format!(
        "BEGIN; {}; UPDATE t SET k = {seed}; {}; UPDATE t SET k = k + a; {end}",
        insert(seed, 20, 700),
        insert(seed + 100, 5, 900)
    )
}

/// A state of the database that is known to have been committed.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) image: Arc<Vec<u8>>,
    /// Events when the step that made it returned.
    pub(crate) events: usize,
    /// `PRAGMA replvfs_flush` said that it is in the replica.
    pub(crate) flushed: bool,
    step: String,
}

/// A script that was run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) setup: Setup,
    pub(crate) recording: Recording,
    /// In their order; the first is the empty database.
    pub(crate) states: Vec<State>,
}

struct Running {
    setup: Setup,
    scratch: Scratch,
    tape: Arc<Tape>,
    connections: Vec<Connection>,
    current: usize,
    states: Vec<State>,
    looks: usize,
}

/// Runs the script of a seed.
pub(crate) fn run(setup: Setup, seed: u64) -> Run {
    let scratch = Scratch::new();
    let tape = Tape::new(&scratch.database(), &scratch.file("replica"), Files::new());
    let tape = Arc::new(tape);
    setup.medium.record(&tape);
    let mut running = Running {
        setup,
        tape,
        scratch,
        connections: Vec::new(),
        current: 0,
        states: Vec::new(),
        looks: 0,
    };
    running.look("nothing".to_owned());
    running.open();
    running.look("opening".to_owned());
    for step in steps(&mut Rng::new(seed), setup.steps) {
        running.step(&step);
        running.look(format!("{step:?}"));
        if matches!(step, Step::Flush) {
            running.states.last_mut().unwrap().flushed = true;
        }
    }
    running.finish()
}

impl Running {
    fn open(&mut self) {
        let count = if self.setup.exclusive { 1 } else { 3 };
        let open = || self.setup.open(&self.scratch.database(), &self.scratch.file("replica"));
        self.connections = (0..count).map(|_| open().expect("opening the database")).collect();
    }

    fn step(&mut self, step: &Step) {
        let connection = &self.connections[self.current];
        match step {
            Step::Sql(sql) => connection
                .execute_batch(sql)
                .unwrap_or_else(|error| panic!("{sql}: {error}")),
            Step::Checkpoint(mode) => {
                let pragma = format!("PRAGMA wal_checkpoint({mode})");
                connection.query_row(&pragma, [], |_| Ok(())).unwrap();
            }
            Step::Flush => replvfs_tests::flush(connection),
            Step::Switch(to) => self.current = to % self.connections.len(),
            Step::Reopen => {
                self.connections.clear();
                self.open();
            }
        }
    }

    /// Notes the state after a step.
    fn look(&mut self, step: String) {
        let events = self.tape.len();
        let image = match self.states.last() {
            Some(last) if last.events == events => Arc::clone(&last.image),
            _ => {
                self.looks += 1;
                let folder = self.scratch.file(&format!("look-{}", self.looks));
                let image = image_of(self.setup.medium, &folder, &self.tape.content());
                Arc::new(image.expect("reading the database without replvfs"))
            }
        };
        self.states.push(State {
            image,
            events,
            flushed: false,
            step,
        });
    }

    fn finish(mut self) -> Run {
        self.connections.clear();
        let medium = self.setup.medium;
        let database = self.scratch.database();
        self.look("closing".to_owned());
        medium.stop(&database);
        assert_eq!(
            self.tape.content(),
            medium.read(&database),
            "the record is not what is on the disk"
        );
        medium.forget(self.scratch.path());
        Run {
            setup: self.setup,
            recording: self.tape.take(),
            states: self.states,
        }
    }
}

/// What SQLite without replvfs reads when it finds these files.
pub(crate) fn image_of(medium: Medium, folder: &Path, files: &Files) -> rusqlite::Result<Vec<u8>> {
    std::fs::create_dir(folder).expect("making a folder");
    let database = folder.join("app.db");
    medium.place(&database, files);
    let image = medium
        .open_plain(&database)
        .and_then(|mut connection| image(&mut connection));
    medium.forget(folder);
    std::fs::remove_dir_all(folder).expect("removing a folder");
    image
}

/// The whole database as a connection reads it.
pub(crate) fn image(connection: &mut Connection) -> rusqlite::Result<Vec<u8>> {
    let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
    if pages == 0 {
        return Ok(Vec::new());
    }
    Ok(connection.serialize("main")?.to_vec())
}

impl Run {
    /// The states that a power loss may leave when so many events have happened.
    pub(crate) fn expected(&self, events: usize) -> &[State] {
        let done = self.states.partition_point(|state| state.events <= events);
        // The step that was under way may be in it.
        let end = (done + 1).min(self.states.len());
        let setting_up = 3;
        let certain = self.setup.synchronous == Synchronous::Full && done > setting_up;
        let start = if certain { done - 1 } else { 0 };
        &self.states[start..end]
    }

    /// The newest state that the replica has for certain at this time.
    pub(crate) fn flushed(&self, events: usize) -> Option<usize> {
        self.states
            .iter()
            .rposition(|state| state.flushed && state.events <= events)
    }

    /// What was being done when so many events had happened.
    pub(crate) fn step_at(&self, events: usize) -> &str {
        let next = self.states.partition_point(|state| state.events <= events);
        self.states.get(next).map_or("the end", |state| &state.step)
    }
}
