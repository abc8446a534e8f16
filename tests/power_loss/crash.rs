//! One power loss: what is left is given to SQLite alone, which says what is true, and to replvfs with what the replica has.
//!
//! What must hold, whatever replvfs does to get there:
//!
//! - The local database is a state that was committed (with `synchronous=OFF` it may be damaged).
//! - The replica alone, as if the machine were lost, has each flushed state, and shows nothing that was not committed.
//! - After the restart SQLite finds through replvfs what it finds without.
//! - After one more commit and a flush the newest state in the replica is the database.
//! - What could be restored before can be restored still, and is unchanged.

use std::collections::BTreeMap;
use std::fs;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use replvfs::Txid;
use replvfs::format::Generation;
use replvfs::history::{History, HistoryError, Target};
use replvfs::restore::{RestoreOptions, restore};
use replvfs::store::{Store, StoreOptions};
use replvfs_tests::{Rng, Scratch, compare_pages};
use rusqlite::Connection;
use tokio::runtime::Runtime;

use super::medium::{Medium, moved};
use super::script::{Before, Image, Run, create_object, image, place_objects};
use super::tape::{Crash, Object};

/// The commit after the restart. It gives the same pages wherever it is made on the same state.
const ONE_MORE: &str = "BEGIN; CREATE TABLE IF NOT EXISTS after_the_crash(a); \
    INSERT INTO after_the_crash VALUES(printf('%.*c', 1500, 'x')); COMMIT";

/// What came of the power losses, to show that the test does what it says.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) crashes: u64,
    /// SQLite found an older state than the newest one.
    pub(crate) commits_lost: u64,
    /// SQLite found a damaged database.
    pub(crate) damaged: u64,
    /// The replica had a state that the local database had lost.
    pub(crate) replica_ahead: u64,
    pub(crate) without_replica: u64,
    /// Objects that were created after the restart.
    pub(crate) late: u64,
    /// The history went on in the generation that was there, as far as it goes on at all after a restart.
    pub(crate) resumed: u64,
    pub(crate) restored: u64,
}

impl Counts {
    /// A disk that loses nothing, or a replica that never knows more than the disk, would show nothing.
    pub(crate) fn are_worth_it(&self, medium: Medium) {
        assert!(self.commits_lost >= 10 && self.damaged >= 1, "{self:?}");
        assert!(self.replica_ahead >= 5 && self.late >= 5, "{self:?}");
        assert!(self.resumed > 0 || medium == Medium::Simulated, "{self:?}");
    }
}

impl AddAssign<&Counts> for Counts {
    fn add_assign(&mut self, other: &Counts) {
        self.crashes += other.crashes;
        self.commits_lost += other.commits_lost;
        self.damaged += other.damaged;
        self.replica_ahead += other.replica_ahead;
        self.without_replica += other.without_replica;
        self.late += other.late;
        self.resumed += other.resumed;
        self.restored += other.restored;
    }
}

/// Transactions that were restored, with their generations.
type Shown = BTreeMap<At, Image>;

type At = (Generation, Txid);

/// Of the earlier transactions so many are restored after the restart.
const EARLIER: usize = 4;

/// Takes a run apart, crash by crash.
pub(crate) struct Crashes<'a> {
    run: &'a Run,
    runtime: Runtime,
    /// By the number of objects: what can be restored from that many.
    known: BTreeMap<usize, Arc<Shown>>,
    pub(crate) counts: Counts,
}

/// Objects that come after the restart.
struct Late {
    objects: Vec<Object>,
    /// After the new commit, or before it.
    after_commit: bool,
}

/// What SQLite finds without replvfs.
struct Local {
    /// What recovery gives, and what is there after one more commit.
    images: Option<(Vec<u8>, Vec<u8>)>,
    damaged: bool,
}

impl<'a> Crashes<'a> {
    pub(crate) fn new(run: &'a Run) -> Crashes<'a> {
        Crashes {
            run,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            known: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    /// The power goes when so many events have happened. The seed decides what is lost. Returns what another script would begin with; nothing
    /// where the database is gone or damaged.
    pub(crate) fn check(&mut self, events: usize, seed: u64) -> Option<Before> {
        let rng = &mut Rng::new(seed);
        let crash = self.run.recording.crash(events, rng);
        let scene = Scene {
            scratch: Scratch::in_memory(),
            events,
            crash: &crash,
            run: self.run,
            trial: false,
        };
        self.counts.crashes += 1;
        place_objects(&scene.replica(), &crash.objects);
        let local = scene.local();
        let before = self.replica_alone(&scene);
        self.tell(events, &local, &before);
        let late = self.on_their_way(&scene, rng);
        let flushed = scene.restart(&local, &late);
        if flushed {
            self.compare(&scene, &local, &before, rng);
        }
        self.run.setup.medium.forget(scene.scratch.path());
        drop(scene);
        let usable = local.images.is_some_and(|(recovered, _)| !recovered.is_empty());
        usable.then(|| Before {
            files: crash.files,
            objects: crash.objects,
            committed: self.run.committed(),
            flushed: self.run.flushed(events, crash.early),
        })
    }

    fn tell(&mut self, events: usize, local: &Local, before: &Shown) {
        let run = self.run;
        let last = run.last_done(events);
        let kept = run.states[last..].iter().take(2);
        let found = local.images.as_ref().map(|(image, _)| run.comparable(image));
        let lost = found.is_some_and(|found| kept.clone().all(|state| state.image != found));
        self.counts.commits_lost += u64::from(lost);
        self.counts.damaged += u64::from(local.damaged);
        let newest = before.values().next_back().map(|newest| run.comparable(newest));
        let ahead = lost && kept.clone().any(|state| newest.as_ref() == Some(&state.image));
        self.counts.replica_ahead += u64::from(ahead);
        self.counts.without_replica += u64::from(newest.is_none());
    }

    /// What the replica has when the machine does not come back.
    fn replica_alone(&mut self, scene: &Scene<'_>) -> Arc<Shown> {
        let found = match self.known.get(&scene.crash.objects.len()) {
            Some(known) => Arc::clone(known),
            None => {
                let mut found = Shown::new();
                for at in self.listed(&scene.replica()) {
                    let image = self.restore(scene, Some(at));
                    assert!(self.run.was_committed(&image), "{at:?} was never committed");
                    found.insert(at, Arc::new(image));
                }
                let found = Arc::new(found);
                self.known.insert(scene.crash.objects.len(), Arc::clone(&found));
                found
            }
        };
        let flushed = self.run.flushed(scene.events, scene.crash.early);
        if !flushed.is_empty() {
            let (at, newest) = found
                .last_key_value()
                .expect("a replica with flushed states shows some");
            assert!(
                flushed.contains(&self.run.comparable(newest)),
                "{at:?}, the newest in the replica, is older than what was flushed"
            );
        }
        found
    }

    /// Objects that the store had been sent, and creates at some time after the restart. What is in them was committed before the power
    /// went.
    fn on_their_way(&mut self, scene: &Scene<'_>, rng: &mut Rng) -> Late {
        let mut late = Late {
            after_commit: rng.one_in(2),
            objects: Vec::new(),
        };
        if rng.one_in(2) {
            return late;
        }
        let trial = Scene {
            scratch: Scratch::in_memory(),
            trial: true,
            ..*scene
        };
        place_objects(&trial.replica(), &scene.crash.objects);
        for object in &scene.crash.later {
            // A generation begins with a decision that nobody had made yet.
            let begins = object.0.ends_with(".json");
            if begins || !create_object(&trial.replica(), object) {
                break;
            }
            let honest = match self.listed(&trial.replica()).last() {
                Some(at) => {
                    let newest = self.restore(&trial, Some(*at));
                    self.run.was_committed_before(scene.events, &newest)
                }
                None => true,
            };
            if !honest {
                break;
            }
            late.objects.push(object.clone());
        }
        self.counts.late += late.objects.len() as u64;
        late
    }

    /// Everything that the replica says it has.
    fn listed(&self, replica: &Path) -> Vec<At> {
        let mut listed = Vec::new();
        let history = match self.runtime.block_on(History::open(&store(replica))) {
            Ok(history) => history,
            Err(HistoryError::NoReplica) => return listed,
            Err(error) => panic!("reading the history: {error}"),
        };
        for generation in history.generations() {
            let number = generation.meta().generation;
            let Some(first) = generation.images().first().copied() else {
                continue;
            };
            listed.push((number, first));
            let visit = history.transactions(number, first.next()..=Txid(u64::MAX), |entry| {
                listed.push((number, entry.txid));
            });
            self.runtime.block_on(visit).expect("listing the transactions");
        }
        listed
    }

    /// Restores a transaction, or the newest.
    fn restore(&mut self, scene: &Scene<'_>, at: Option<At>) -> Vec<u8> {
        self.counts.restored += 1;
        let out = scene.scratch.file("restored.db");
        let options = RestoreOptions {
            target: at.map_or(Target::Newest, |(_, txid)| Target::Txid(txid)),
            generation: at.map(|(generation, _)| generation),
            ..RestoreOptions::default()
        };
        let restored = self.runtime.block_on(restore(&store(&scene.replica()), &out, &options));
        let restored = restored.unwrap_or_else(|error| panic!("restoring {at:?}: {error}"));
        assert!(at.is_none_or(|(_, txid)| restored.txid == txid));
        let image = fs::read(&out).unwrap();
        fs::remove_file(&out).unwrap();
        if self.run.setup.may_be_damaged() {
            return as_sqlite_reads(image);
        }
        image
    }

    /// The replica after the restart with the database, and with what it was before.
    fn compare(&mut self, scene: &Scene<'_>, local: &Local, before: &Shown, rng: &mut Rng) {
        let live = scene.live();
        let newest = self.restore(scene, None);
        compare_pages(&live, &newest)
            .unwrap_or_else(|difference| panic!("the newest in the replica is not the database: {difference}"));
        let listed = self.listed(&scene.replica());
        for at in before.keys() {
            assert!(listed.contains(at), "{at:?} is not listed any more");
        }
        let last = |at: Option<&At>| at.map(|(generation, _)| *generation);
        let resumed = last(listed.last()) == last(before.keys().next_back());
        self.counts.resumed += u64::from(resumed);
        let drawn: Vec<At> = (0..EARLIER).map(|_| rng.of(&listed)).collect();
        for at in listed {
            let known = before.get(&at);
            if known.is_some() && !drawn.contains(&at) {
                continue;
            }
            let image = self.restore(scene, Some(at));
            let recovered = local.images.as_ref();
            let recovered = recovered.is_some_and(|(found, more)| image == *found || image == *more);
            match known {
                Some(known) => {
                    compare_pages(known, &image).unwrap_or_else(|difference| panic!("{at:?} has changed: {difference}"))
                }
                None => assert!(
                    recovered || image == live || local.damaged || self.run.was_committed(&image),
                    "{at:?} is a state that never was"
                ),
            }
        }
    }
}

/// Without synchronisation a file may be longer than its header says: SQLite then uses the header's number of pages, and leaves the
/// others where they are.
fn as_sqlite_reads(mut image: Vec<u8>) -> Vec<u8> {
    let field = |at: usize| u32::from_be_bytes(image[at..at + 4].try_into().unwrap());
    if image.len() >= 100 && field(24) == field(92) {
        let page = usize::from(u16::from_be_bytes([image[16], image[17]]));
        image.truncate(field(28) as usize * page);
    }
    image
}

fn store(replica: &Path) -> Store {
    Store::open(&format!("fs://{}", replica.display()), &StoreOptions::reading()).unwrap()
}

/// The machine after the restart.
struct Scene<'a> {
    scratch: Scratch,
    events: usize,
    crash: &'a Crash,
    run: &'a Run,
    /// Nobody restarts it.
    trial: bool,
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.trial {
            let (events, step) = (self.events, self.run.step_at(self.events));
            eprintln!(
                "the power went after {events} events, in {step}; lost:{}",
                self.crash.told
            );
            self.scratch.keep();
            let left = self.scratch.file("left");
            let _ = fs::create_dir(&left);
            for (suffix, content) in &self.crash.files {
                let _ = fs::write(left.join(format!("app.db{suffix}")), content);
            }
            eprintln!("what was left is in {}, the replica beside it", left.display());
        }
    }
}

impl Scene<'_> {
    fn replica(&self) -> PathBuf {
        self.scratch.file("replica")
    }

    fn may_be_damaged(&self) -> bool {
        self.run.setup.may_be_damaged()
    }

    /// What SQLite makes of it without replvfs, and what one more commit then gives.
    fn local(&self) -> Local {
        let medium = self.run.setup.medium;
        let folder = self.scratch.file("plain");
        fs::create_dir(&folder).unwrap();
        let database = folder.join("app.db");
        medium.place(&database, &self.crash.files);
        let opened = || {
            let mut connection = medium.open_plain(&database)?;
            let found = image(&mut connection)?;
            if !is_sound(&connection) {
                return Ok((found, None));
            }
            self.run.setup.shape(&connection)?;
            connection.execute_batch(ONE_MORE)?;
            let more = image(&mut connection)?;
            Ok::<_, rusqlite::Error>((found, Some(more)))
        };
        match opened() {
            Ok((found, Some(more))) => {
                let (expected, comparable) = (self.run.expected(self.events), self.run.comparable(&found));
                let is_expected = expected.iter().any(|state| state.image == comparable);
                assert!(
                    self.may_be_damaged() || is_expected,
                    "SQLite alone finds a state that it should not: the simulated disk is wrong"
                );
                // Damage that does not show is no state of the script.
                assert!(
                    !self.run.setup.strict || is_expected || !self.run.was_committed(&found),
                    "SQLite finds an older state than what was confirmed"
                );
                Local {
                    images: Some((found, more)),
                    damaged: false,
                }
            }
            Ok((_, None)) | Err(_) if self.may_be_damaged() => Local {
                images: None,
                damaged: true,
            },
            Ok((_, None)) => panic!("SQLite alone finds a damaged database: the simulated disk is wrong"),
            Err(error) => panic!("SQLite alone fails: {error}: the simulated disk is wrong"),
        }
    }

    fn database(&self) -> PathBuf {
        self.scratch.database()
    }

    /// The application comes back, commits, and waits for the replica. False when it could not, which is right only for a damaged
    /// database.
    fn restart(&self, local: &Local, late: &Late) -> bool {
        let files = moved(self.crash.files.clone(), &self.replica());
        self.run.setup.medium.place(&self.database(), &files);
        let connection = self.run.setup.open(&self.database(), &self.replica());
        let arrive = |after_commit: bool| {
            for object in late.objects.iter().filter(|_| late.after_commit == after_commit) {
                // Whoever was first has the name. The one behind it was only sent after it.
                if !create_object(&self.replica(), object) {
                    break;
                }
            }
        };
        let outcome = connection.and_then(|mut connection| {
            arrive(false);
            match &local.images {
                Some((recovered, more)) => self.commit(&mut connection, recovered, more)?,
                None => connection.execute_batch(ONE_MORE)?,
            }
            arrive(true);
            connection.query_row("PRAGMA replvfs_flush", [], |_| Ok(()))
        });
        if let Err(error) = &outcome {
            assert!(local.damaged, "through replvfs SQLite fails: {error}");
            assert!(!error.to_string().contains("bug"), "{error}");
        }
        outcome.is_ok()
    }

    fn commit(&self, connection: &mut Connection, recovered: &[u8], more: &[u8]) -> rusqlite::Result<()> {
        // Where there is no database, replvfs may bring one.
        let compare = |connection: &mut Connection, expected: &[u8], what: &str| {
            let found = image(connection)?;
            if !recovered.is_empty() {
                compare_pages(expected, &found).unwrap_or_else(|difference| panic!("{what}: {difference}"));
            }
            Ok::<_, rusqlite::Error>(())
        };
        compare(connection, recovered, "through replvfs SQLite finds another state")?;
        connection.execute_batch(ONE_MORE)?;
        compare(connection, more, "through replvfs a commit gives another state")
    }

    /// The database, once its connection is closed, as SQLite reads it without replvfs.
    fn live(&self) -> Vec<u8> {
        let connection = self.run.setup.medium.open_plain(&self.database());
        let image = connection.and_then(|mut connection| image(&mut connection));
        image.expect("reading the database")
    }
}

fn is_sound(connection: &Connection) -> bool {
    let answer = connection.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
    answer.is_ok_and(|answer| answer == "ok")
}
