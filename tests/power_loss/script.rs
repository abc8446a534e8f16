//! What an application does before the power goes: a script drawn from a seed, run once with a record of everything.
//!
//! Owns the states that the script really committed, each as SQLite without replvfs reads it from what was written so far. A script
//! begins with nothing, or with what an earlier power loss left.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use replvfs_tests::{Rng, Scratch};
use rusqlite::Connection;

use super::disk::Files;
use super::free_pages;
use super::medium::{Medium, moved, of_sqlite};
use super::tape::{Object, Recording, Tape};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Journal {
    Wal,
    Delete,
    Truncate,
    Persist,
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
    /// `durability=strict`: what has returned is on the disk as well, whatever SQLite syncs.
    pub(crate) strict: bool,
    /// Steps of the script.
    pub(crate) steps: usize,
}

impl Setup {
    /// Opens the database through replvfs, as each process of the application does.
    pub(crate) fn open(&self, database: &Path, replica: &Path) -> rusqlite::Result<Connection> {
        let connection = self.medium.open(database, replica)?;
        if self.strict {
            connection.execute_batch("PRAGMA replvfs_durability = strict")?;
        }
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

    /// Whether a power loss may leave a damaged database. Also with a rollback journal that is synced once a transaction only: its checksums
    /// leave out most bytes, and <https://www.sqlite.org/pragma.html#pragma_synchronous> says so.
    pub(crate) fn may_be_damaged(&self) -> bool {
        match self.synchronous {
            Synchronous::Off => true,
            Synchronous::Normal => self.journal != Journal::Wal,
            Synchronous::Full => false,
        }
    }

    /// A rollback journal does not bring back what stood in pages that were free: it means nothing.
    pub(crate) fn without_free_pages(&self, image: Vec<u8>) -> Vec<u8> {
        if self.journal == Journal::Wal {
            return image;
        }
        free_pages::blank(image)
    }

    /// What a database gets that is new; where it is not, nothing happens.
    pub(crate) fn shape(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection.execute_batch("PRAGMA page_size = 1024")?;
        let pragma = format!("PRAGMA journal_mode = {:?}", self.journal);
        connection.query_row(&pragma, [], |row| row.get::<_, String>(0))?;
        Ok(())
    }
}

const TABLE: &str = "t(a INTEGER PRIMARY KEY, k, b)";

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
        Step::Sql(format!("CREATE TABLE {TABLE}")),
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
    /// As [`Setup::without_free_pages`] leaves it.
    pub(crate) image: Image,
    /// Events when the step that made it returned.
    pub(crate) events: usize,
    /// `PRAGMA replvfs_flush` said that it is in the replica.
    pub(crate) flushed: bool,
    step: String,
}

pub(crate) type Image = Arc<Vec<u8>>;

/// What a script begins with: nothing, by default.
#[derive(Debug, Default)]
pub(crate) struct Before {
    pub(crate) files: Files,
    pub(crate) objects: Vec<Object>,
    /// All that the replica may show.
    pub(crate) committed: Vec<Image>,
    /// What the newest state in the replica is, as long as nothing newer is there. Empty when there need not be any.
    pub(crate) flushed: Vec<Image>,
}

/// A script that was run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) setup: Setup,
    pub(crate) recording: Recording,
    /// In their order; the first is what was found.
    pub(crate) states: Vec<State>,
    committed: Vec<Image>,
    flushed: Vec<Image>,
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

/// Runs the script of a seed on a new database.
pub(crate) fn run(setup: Setup, seed: u64) -> Run {
    let steps = steps(&mut Rng::new(seed), setup.steps);
    run_after(setup, Before::default(), &steps)
}

/// Runs a short one on what a power loss has left.
pub(crate) fn run_again(setup: Setup, before: Before, seed: u64) -> Run {
    let mut rng = Rng::new(seed);
    let mut again = vec![Step::Sql(format!("CREATE TABLE IF NOT EXISTS {TABLE}"))];
    again.extend((0..3 + rng.below(6)).map(|_| step(&mut rng)));
    run_after(setup, before, &again)
}

fn run_after(setup: Setup, before: Before, steps: &[Step]) -> Run {
    let scratch = Scratch::in_memory();
    let (database, replica) = (scratch.database(), scratch.file("replica"));
    place_objects(&replica, &before.objects);
    let files = moved(before.files, &replica);
    setup.medium.place(&database, &files);
    let tape = Arc::new(Tape::new(&database, &replica, of_sqlite(files)));
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
    for step in steps {
        running.step(step);
        running.look(format!("{step:?}"));
        if matches!(step, Step::Flush) {
            running.states.last_mut().unwrap().flushed = true;
        }
    }
    let (recording, states) = running.finish();
    Run {
        setup,
        recording,
        states,
        committed: before.committed,
        flushed: before.flushed,
    }
}

/// Makes a replica of these objects.
pub(crate) fn place_objects(replica: &Path, objects: &[Object]) {
    fs::create_dir(replica).unwrap();
    for object in objects {
        assert!(create_object(replica, object));
    }
}

/// Creates one as a store does: whole, unless there is one. Says whether there was none.
pub(crate) fn create_object(replica: &Path, (name, content): &Object) -> bool {
    let path = replica.join(name);
    let folder = path.parent().unwrap();
    fs::create_dir_all(folder).unwrap();
    let mut file = tempfile::NamedTempFile::new_in(replica.parent().unwrap()).unwrap();
    file.write_all(content).unwrap();
    file.persist_noclobber(path).is_ok()
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
                let image = image.expect("reading the database without replvfs");
                Arc::new(self.setup.without_free_pages(image))
            }
        };
        self.states.push(State {
            image,
            events,
            flushed: false,
            step,
        });
    }

    fn finish(mut self) -> (Recording, Vec<State>) {
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
        (self.tape.take(), self.states)
    }
}

/// What SQLite without replvfs reads when it finds these files.
pub(crate) fn image_of(medium: Medium, folder: &Path, files: &Files) -> rusqlite::Result<Vec<u8>> {
    fs::create_dir(folder).expect("making a folder");
    let database = folder.join("app.db");
    medium.place(&database, files);
    let image = medium
        .open_plain(&database)
        .and_then(|mut connection| image(&mut connection));
    medium.forget(folder);
    fs::remove_dir_all(folder).expect("removing a folder");
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
        let last = self.last_done(events);
        let newest = &self.states[last].image;
        // The first commit to the WAL syncs the folder. Before it even the journal of the switch to WAL may come back.
        let in_wal = |state: &State| state.image.get(18) == Some(&2) && state.image != *newest;
        let synced = self.setup.synchronous == Synchronous::Full && self.states[..last].iter().any(in_wal);
        let certain = synced || self.setup.strict;
        let first = if certain { last } else { 0 };
        // The step that was under way may be in it.
        &self.states[first..(last + 2).min(self.states.len())]
    }

    /// The state after the last step that had returned.
    pub(crate) fn last_done(&self, events: usize) -> usize {
        self.states.partition_point(|state| state.events <= events) - 1
    }

    /// An image as it has to be to be looked for among the states.
    pub(crate) fn comparable(&self, image: &[u8]) -> Image {
        Arc::new(self.setup.without_free_pages(image.to_vec()))
    }

    /// Whether such a state ever was.
    pub(crate) fn was_committed(&self, image: &[u8]) -> bool {
        let image = self.comparable(image);
        let mut all = self.states.iter().map(|state| &state.image).chain(&self.committed);
        all.any(|committed| *committed == image)
    }

    /// All that the replica may show after these runs.
    pub(crate) fn committed(&self) -> Vec<Image> {
        let all = self.states.iter().map(|state| &state.image);
        all.chain(&self.committed).cloned().collect()
    }

    /// What the newest state in the replica may be after so many events; right after the last of them, or later. Empty when there need
    /// not be any.
    pub(crate) fn flushed(&self, events: usize, right_after: bool) -> Vec<Image> {
        let returned = |state: &State| state.events < events || (state.events == events && !right_after);
        let flushed = self.states.iter().rposition(|state| state.flushed && returned(state));
        let since = |first: usize| self.states[first..].iter().map(|state| Arc::clone(&state.image));
        match flushed {
            Some(first) => since(first).collect(),
            None if self.flushed.is_empty() => Vec::new(),
            // What the power loss left is newer than what was flushed before, even where it is less.
            None => self.flushed.iter().cloned().chain(since(0)).collect(),
        }
    }

    /// Whether it is the state after one of the steps that had returned by then, or before them.
    pub(crate) fn was_committed_before(&self, events: usize, image: &[u8]) -> bool {
        let image = self.comparable(image);
        let done = &self.states[..=self.last_done(events)];
        done.iter().any(|state| state.image == image) || self.committed.contains(&image)
    }

    /// What was being done when so many events had happened.
    pub(crate) fn step_at(&self, events: usize) -> &str {
        let next = self.last_done(events) + 1;
        self.states.get(next).map_or("the end", |state| &state.step)
    }
}
