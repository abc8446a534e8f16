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

use super::script::{Run, Synchronous, image};
use super::tape::Crash;

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
    /// The history went on in the generation that was there.
    pub(crate) resumed: u64,
    pub(crate) restored: u64,
}

/// Every transaction that can be restored, with its generation.
type History_ = BTreeMap<(Generation, Txid), Arc<Vec<u8>>>;

/// Takes a run apart, crash by crash.
pub(crate) struct Crashes<'a> {
    run: &'a Run,
    runtime: Runtime,
    /// By the number of objects: what can be restored from that many.
    known: BTreeMap<usize, Arc<History_>>,
    pub(crate) counts: Counts,
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
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap(),
            known: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    /// The power goes when so many events have happened. The seed decides what is lost.
    pub(crate) fn check(&mut self, events: usize, seed: u64) {
        let crash = self.run.recording.crash(events, &mut Rng::new(seed));
        let mut scene = Scene {
            scratch: Scratch::new(),
            events,
            step: self.run.step_at(events).to_owned(),
            told: crash.told.clone(),
            run: self.run,
        };
        self.counts.crashes += 1;
        let local = scene.local(&crash);
        let before = self.replica_alone(&scene, &crash);
        self.tell(events, &local, &before);
        scene.restart(&crash, &local);
        let after = self.restorable(&scene.replica(), scene.scratch.path());
        self.compare(&mut scene, &local, &before, &after);
        self.run.setup.medium.forget(scene.scratch.path());
        scene.told.clear();
    }

    fn tell(&mut self, events: usize, local: &Local, before: &History_) {
        let run = self.run;
        let position = |image: &[u8]| run.states.iter().rposition(|state| *state.image == image);
        let newest = run.expected(events).last().and_then(|state| position(&state.image));
        let local_is = local.images.as_ref().and_then(|(image, _)| position(image));
        self.counts.damaged += u64::from(local.damaged);
        self.counts.commits_lost += u64::from(local_is < newest.map(|newest| newest - 1));
        let replica_has = before.values().next_back().and_then(|image| position(image));
        self.counts.replica_ahead += u64::from(!local.damaged && replica_has > local_is);
        self.counts.without_replica += u64::from(before.is_empty());
    }

    /// What the replica has when the machine does not come back.
    fn replica_alone(&mut self, scene: &Scene<'_>, crash: &Crash) -> Arc<History_> {
        write_objects(&scene.replica(), crash);
        let found = match self.known.get(&crash.objects.len()) {
            Some(known) => Arc::clone(known),
            None => {
                let found = Arc::new(self.restorable(&scene.replica(), scene.scratch.path()));
                for ((generation, txid), image) in found.iter() {
                    let committed = self.run.states.iter().any(|state| state.image == *image);
                    assert!(
                        committed,
                        "transaction {txid} of generation {generation} was never committed"
                    );
                }
                self.known.insert(crash.objects.len(), Arc::clone(&found));
                found
            }
        };
        if let Some(flushed) = self.run.flushed(scene.events) {
            let (at, newest) = found
                .last_key_value()
                .expect("a replica that was flushed has a history");
            assert!(
                self.run.states[flushed..].iter().any(|state| state.image == *newest),
                "{at:?} is the newest in the replica, older than what was flushed"
            );
        }
        found
    }

    /// Restores everything that the replica lists.
    fn restorable(&mut self, replica: &Path, folder: &Path) -> History_ {
        let mut found = History_::new();
        let uri = format!("fs://{}", replica.display());
        let store = Store::open(&uri, &StoreOptions::reading()).unwrap();
        let history = match self.runtime.block_on(History::open(&store)) {
            Ok(history) => history,
            Err(HistoryError::NoReplica) => return found,
            Err(error) => panic!("reading the history: {error}"),
        };
        for generation in history.generations() {
            let number = generation.meta().generation;
            let Some(first) = generation.images().first().copied() else {
                continue;
            };
            let mut txids = vec![first];
            let visit = history.transactions(number, first..=Txid(u64::MAX), |entry| {
                if entry.txid > first {
                    txids.push(entry.txid);
                }
            });
            self.runtime.block_on(visit).expect("listing the transactions");
            for txid in txids {
                let options = RestoreOptions {
                    target: Target::Txid(txid),
                    generation: Some(number),
                    ..RestoreOptions::default()
                };
                let image = self.restore(&store, folder, &options, txid);
                found.insert((number, txid), Arc::new(image));
            }
        }
        if let Some((_, newest)) = found.last_key_value() {
            let options = RestoreOptions::default();
            let image = self.restore(&store, folder, &options, Txid(0));
            assert_eq!(
                compare_pages(newest, &image),
                Ok(()),
                "the newest is not the last that is listed"
            );
        }
        found
    }

    fn restore(&mut self, store: &Store, folder: &Path, options: &RestoreOptions, txid: Txid) -> Vec<u8> {
        self.counts.restored += 1;
        let out = folder.join("restored.db");
        let restored = self.runtime.block_on(restore(store, &out, options));
        let restored = restored.unwrap_or_else(|error| panic!("restoring {options:?}: {error}"));
        assert!(options.generation.is_none() || restored.txid == txid);
        let image = fs::read(&out).unwrap();
        fs::remove_file(&out).unwrap();
        image
    }

    fn compare(&mut self, scene: &mut Scene<'_>, local: &Local, before: &History_, after: &History_) {
        let Some(live) = scene.live(local) else { return };
        let (newest, image) = after
            .last_key_value()
            .expect("a replica that was flushed has a history");
        compare_pages(&live, image)
            .unwrap_or_else(|difference| panic!("{newest:?}, the newest, is not the database: {difference}"));
        let last_before = before.last_key_value().map(|((generation, _), _)| *generation);
        self.counts.resumed += u64::from(last_before == Some(newest.0));
        for (at, image) in before {
            let still = after
                .get(at)
                .unwrap_or_else(|| panic!("{at:?} cannot be restored any more"));
            compare_pages(image, still).unwrap_or_else(|difference| panic!("{at:?} has changed: {difference}"));
        }
        for (at, image) in after.iter().filter(|(at, _)| !before.contains_key(at)) {
            let committed = self.run.states.iter().any(|state| state.image == *image);
            let recovered = local
                .images
                .as_ref()
                .is_some_and(|(first, second)| **image == *first || **image == *second);
            assert!(
                committed || recovered || **image == live,
                "{at:?} is a state that never was"
            );
        }
    }
}

/// The machine after the restart.
struct Scene<'a> {
    scratch: Scratch,
    events: usize,
    step: String,
    /// What was lost; empty when all went well.
    told: String,
    run: &'a Run,
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.told.is_empty() {
            let Scene { events, step, told, .. } = self;
            eprintln!("the power went after {events} events, in {step}; lost:{told}");
        }
    }
}

impl Scene<'_> {
    fn replica(&self) -> PathBuf {
        self.scratch.file("replica")
    }

    fn may_be_damaged(&self) -> bool {
        self.run.setup.synchronous == Synchronous::Off
    }

    /// What SQLite makes of it without replvfs, and what one more commit then gives.
    fn local(&self, crash: &Crash) -> Local {
        let medium = self.run.setup.medium;
        let folder = self.scratch.file("plain");
        fs::create_dir(&folder).unwrap();
        let database = folder.join("app.db");
        medium.place(&database, &crash.files);
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
                let expected = self.run.expected(self.events);
                assert!(
                    self.may_be_damaged() || expected.iter().any(|state| *state.image == found),
                    "SQLite alone finds a state that it should not: the simulated disk is wrong"
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

    /// The application comes back, commits, and waits for the replica.
    fn restart(&self, crash: &Crash, local: &Local) {
        self.run.setup.medium.place(&self.database(), &crash.files);
        let outcome = self
            .run
            .setup
            .open(&self.database(), &self.replica())
            .and_then(|mut connection| {
                if let Some((recovered, more)) = &local.images {
                    self.commit(&mut connection, recovered, more)?;
                    replvfs_tests::flush(&connection);
                } else {
                    commit_and_flush(&connection)?;
                }
                Ok(())
            });
        if let Err(error) = outcome {
            assert!(local.damaged, "through replvfs SQLite fails: {error}");
            assert!(!error.to_string().contains("bug"), "{error}");
        }
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
    fn live(&self, local: &Local) -> Option<Vec<u8>> {
        let connection = self.run.setup.medium.open_plain(&self.database());
        let image = connection.and_then(|mut connection| image(&mut connection));
        match image {
            Err(_) if local.damaged => None,
            image => Some(image.expect("reading the database")),
        }
        .filter(|_| !local.damaged)
    }
}

/// In a damaged database anything may fail. What may not is replvfs.
fn commit_and_flush(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(ONE_MORE)?;
    connection.execute_batch("PRAGMA replvfs_flush")
}

fn is_sound(connection: &Connection) -> bool {
    let answer = connection.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
    answer.is_ok_and(|answer| answer == "ok")
}

fn write_objects(replica: &Path, crash: &Crash) {
    fs::create_dir(replica).unwrap();
    for (name, content) in &crash.objects {
        let path = replica.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}
