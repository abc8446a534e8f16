//! The record of one run: what was done to the database's files, in order, and what stood beside them each time.
//!
//! Owns the relation between the disk and the replica, which is remote and keeps all that was created before the power went. Both
//! orders are related by looking at the replica just before each event, under the lock under which the event happens: what was seen is the replica's
//! exact content at a moment when exactly the events before had happened. The files that replvfs itself keeps beside the database
//! (through `std::fs`, so no VFS sees it) are looked at in the same way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use replvfs::format::{Generation, Key, LocalState, STATE_SLOT_BYTES};
use replvfs_tests::Rng;

use super::disk::{Disk, Event, Files};
use super::medium::STATE;

/// What SQLite does through the VFS, and what is worth nothing after a restart.
const NOT_BESIDE: &[&str] = &["", "-wal", "-journal", "-shm", "-replvfs-lock"];

/// No more objects than these are on their way at once.
const LATER: usize = 2;

/// Where temporary files of the replica's folder are.
const TEMP_FOLDER: &str = ".tmp";

type Content = Arc<[u8]>;

/// An object of the replica, by its name.
pub(crate) type Object = (String, Content);

#[derive(Debug)]
pub(crate) struct Tape {
    database: PathBuf,
    replica: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    recording: Recording,
    inodes: BTreeMap<String, usize>,
    count: usize,
}

/// A tape that is full.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    pub(crate) initial: Files,
    pub(crate) events: Vec<Event>,
    /// Before each event, and after the last.
    moments: Vec<Moment>,
    /// In the order in which they were seen first. No object is ever changed.
    objects: Vec<Object>,
}

#[derive(Debug, Clone, Default)]
struct Moment {
    objects: usize,
    beside: BTreeMap<String, Content>,
}

/// All that is left after a power loss.
#[derive(Debug)]
pub(crate) struct Crash {
    pub(crate) files: Files,
    pub(crate) objects: Vec<Object>,
    /// The next objects. Those that were on their way may be created yet.
    pub(crate) later: Vec<Object>,
    /// What the replica has it had right after the last event, before anything that came of it.
    pub(crate) early: bool,
    /// What was lost, for a failing test's message.
    pub(crate) told: String,
}

impl Tape {
    pub(crate) fn new(database: &Path, replica: &Path, initial: Files) -> Tape {
        let inodes: BTreeMap<String, usize> = initial.keys().cloned().zip(0..).collect();
        let mut recording = Recording {
            initial,
            ..Recording::default()
        };
        recording.look(database, replica);
        recording.moments.clear();
        Tape {
            database: database.to_owned(),
            replica: replica.to_owned(),
            state: Mutex::new(State {
                recording,
                count: inodes.len(),
                inodes,
            }),
        }
    }

    pub(crate) fn database(&self) -> &Path {
        &self.database
    }

    fn perform(&self, make: impl FnOnce(&mut State) -> Option<Event>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.recording.look(&self.database, &self.replica);
        match make(&mut state) {
            Some(event) => state.recording.events.push(event),
            None => drop(state.recording.moments.pop()),
        }
    }

    /// A file is opened, and made when `io` says so. Returns its inode.
    pub(crate) fn open(&self, name: &str, io: impl FnOnce() -> Option<bool>) -> Option<usize> {
        let mut opened = None;
        self.perform(|state| {
            let created = io()?;
            if created {
                state.inodes.insert(name.to_owned(), state.count);
                state.count += 1;
            }
            let inode = *state.inodes.get(name).expect("a file that was made, or was there");
            opened = Some(inode);
            created.then(|| Event::Create {
                name: name.to_owned(),
                inode,
            })
        });
        opened
    }

    pub(crate) fn delete(&self, name: &str, folder_synced: bool, io: impl FnOnce() -> bool) {
        self.perform(|state| {
            let deleted = io() && state.inodes.remove(name).is_some();
            deleted.then(|| Event::Delete {
                name: name.to_owned(),
                folder_synced,
            })
        });
    }

    /// Something else is done, if `io` says so.
    pub(crate) fn change(&self, event: Event, io: impl FnOnce() -> bool) {
        self.perform(|_| io().then_some(event));
    }

    /// Events so far.
    pub(crate) fn len(&self) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.recording.events.len()
    }

    /// The files as the running programs see them.
    pub(crate) fn content(&self) -> Files {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Disk::after(&state.recording.initial, &state.recording.events).content()
    }

    pub(crate) fn take(&self) -> Recording {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.recording.look(&self.database, &self.replica);
        std::mem::take(&mut state.recording)
    }
}

impl Recording {
    fn look(&mut self, database: &Path, replica: &Path) {
        let before = self.moments.last().map(|moment| moment.beside.clone());
        let mut seen = list(replica);
        // Nothing of a replica goes away: when two looks agree, both are what was there between them, with what was beside the database then.
        let beside = loop {
            let beside = beside(database, before.as_ref());
            let again = list(replica);
            if again == seen {
                break beside;
            }
            seen = again;
        };
        for name in seen {
            if !self.objects.iter().any(|(known, _)| *known == name) {
                let content = fs::read(replica.join(&name)).expect("reading an object");
                self.objects.push((name, content.into()));
            }
        }
        self.moments.push(Moment {
            objects: self.objects.len(),
            beside,
        });
    }

    /// The power goes when so many events have happened.
    pub(crate) fn crash(&self, at: usize, rng: &mut Rng) -> Crash {
        let disk = Disk::after(&self.initial, &self.events[..at]);
        let killed = rng.one_in(8);
        let (mut files, mut told) = if killed {
            (disk.content(), " nothing".to_owned())
        } else {
            disk.after_power_loss(rng)
        };
        // Either just before the next event, or right after the last one.
        let early = at > 0 && rng.one_in(3);
        let seen = if early { at - 1 } else { at };
        let moment = &self.moments[seen];
        let objects = moment.objects;
        // What may arrive later was put on its way before the power went, or nothing was.
        let arrived = if rng.one_in(4) { objects } else { self.arrived(seen) };
        told += &format!(" {objects} objects were created;");
        let mut names: BTreeSet<&String> = moment.beside.keys().collect();
        names.extend(self.moments[..seen].iter().flat_map(|earlier| earlier.beside.keys()));
        for name in names {
            let content = if killed {
                moment.beside.get(name).map(|content| content.to_vec())
            } else {
                self.lose_beside(name, seen, arrived, rng, &mut told)
            };
            if let Some(content) = content {
                files.insert(name.clone(), content);
            }
        }
        Crash {
            files,
            objects: self.objects[..objects].to_vec(),
            later: self.objects[objects..arrived].to_vec(),
            early,
            told,
        }
    }

    /// A file that replvfs keeps: the newest content, any older one, or sectors of both. The state is synced before anything else is put into the
    /// generation that it names: from then on one of its slots is whole.
    fn lose_beside(&self, name: &str, at: usize, objects: usize, rng: &mut Rng, told: &mut String) -> Option<Vec<u8>> {
        let versions = self.moments[..=at].iter().map(|moment| moment.beside.get(name));
        let mut versions: Vec<Option<&Content>> = versions.collect();
        versions.dedup();
        let relied_on = (name == STATE).then(|| self.begun(objects)).flatten();
        if let Some(generation) = relied_on {
            let names = |version: &Option<&Content>| version.and_then(|content| named(content)) >= Some(generation);
            // Where none does, a power loss before this run has left an older one.
            versions.drain(..versions.iter().position(names).unwrap_or(0));
        }
        let newest = *versions.last()?;
        let other = rng.of(&versions);
        let way = rng.below(4);
        *told += &format!(" {name:?}: way {way} with {} versions;", versions.len());
        let (newest, other) = (
            newest.map(|content| content.to_vec()),
            other.map(|content| content.to_vec()),
        );
        match way {
            0 | 1 => newest,
            2 => other,
            _ if relied_on.is_some() => torn_in_one_slot(newest?, &other?, rng),
            _ => Some(mixed(&newest.unwrap_or_default(), &other.unwrap_or_default(), rng)),
        }
    }

    /// The objects that are there, or on their way: nothing is put into a generation before the state that names it was synced.
    fn arrived(&self, at: usize) -> usize {
        let moment = &self.moments[at];
        let synced = moment.beside.get(STATE).and_then(|content| named(content));
        let on_their_way = self.objects[moment.objects..].iter().take(LATER);
        let possible =
            on_their_way.take_while(|(name, _)| into(name).is_none_or(|generation| synced >= Some(generation)));
        moment.objects + possible.count()
    }

    /// The newest generation that anything has been put into.
    fn begun(&self, objects: usize) -> Option<Generation> {
        self.objects[..objects].iter().filter_map(|(name, _)| into(name)).max()
    }
}

/// The generation that an object is put into.
fn into(name: &str) -> Option<Generation> {
    match Key::parse(name)? {
        Key::Image(generation, _) | Key::Log(generation, _) => Some(generation),
        _ => None,
    }
}

/// The generation that a state names.
fn named(state: &[u8]) -> Option<Generation> {
    Some(LocalState::from_file(state).ok()??.generation)
}

/// One write had not come to its end.
fn torn_in_one_slot(newest: Vec<u8>, other: &[u8], rng: &mut Rng) -> Option<Vec<u8>> {
    let mut torn = newest.clone();
    let mut another = other;
    if rng.one_in(2) {
        torn = other.to_vec();
        another = &newest;
    }
    let start = if rng.one_in(2) { 0 } else { STATE_SLOT_BYTES };
    torn.resize(2 * STATE_SLOT_BYTES, 0);
    let slot = start..start + STATE_SLOT_BYTES;
    let another = another.get(start..).unwrap_or_default();
    let mixture = mixed(
        &torn[slot.clone()],
        &another[..another.len().min(STATE_SLOT_BYTES)],
        rng,
    );
    torn[slot].fill(0);
    torn[start..start + mixture.len()].copy_from_slice(&mixture);
    Some(if named(&torn).is_some() { torn } else { newest })
}

fn mixed(one: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut content = if rng.one_in(2) { one } else { other }.to_vec();
    for (index, sector) in content.chunks_mut(512).enumerate() {
        let from = if rng.one_in(2) { one } else { other };
        for (at, byte) in sector.iter_mut().enumerate() {
            *byte = from.get(index * 512 + at).copied().unwrap_or(0);
        }
    }
    content
}

fn list(replica: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(replica.join(&folder)) else {
            continue;
        };
        for entry in entries {
            let entry = entry.expect("an entry of the replica's folder");
            let name = format!("{folder}{}", entry.file_name().to_str().expect("names are ASCII"));
            if entry.file_type().expect("a file's type").is_dir() {
                if name != TEMP_FOLDER {
                    folders.push(name + "/");
                }
            } else {
                found.insert(name);
            }
        }
    }
    found
}

fn beside(database: &Path, before: Option<&BTreeMap<String, Content>>) -> BTreeMap<String, Content> {
    let mut found = BTreeMap::new();
    let own = database
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name in ASCII");
    let Ok(entries) = fs::read_dir(database.parent().expect("a folder")) else {
        return found;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let suffix = name.to_str().and_then(|name| name.strip_prefix(own));
        let Some(suffix) = suffix.filter(|suffix| !NOT_BESIDE.contains(suffix)) else {
            continue;
        };
        // It may go away while we look.
        let Ok(content) = fs::read(entry.path()) else { continue };
        let known = before.and_then(|before| before.get(suffix));
        let content = match known {
            Some(known) if known[..] == content[..] => Arc::clone(known),
            _ => content.into(),
        };
        found.insert(suffix.to_owned(), content);
    }
    found
}

#[cfg(test)]
mod tests {
    use replvfs::Txid;
    use replvfs::format::{DatabaseId, ObjectHash, Place};
    use replvfs_tests::Scratch;
    use replvfs_vfs::resume::Mark;
    use replvfs_vfs::types::{PageSize, Position};

    use super::*;

    #[test]
    fn what_nothing_relies_on_comes_back_in_any_version_or_torn() {
        let scratch = Scratch::in_memory();
        let kept = scratch.file("app.db-replvfs");
        let tape = Tape::new(&scratch.database(), &scratch.file("replica"), Files::new());
        for version in [None, Some(1_u8), Some(2)] {
            if let Some(byte) = version {
                fs::write(&kept, vec![byte; 1024]).unwrap();
            }
            fs::write(scratch.file("app.db-shm"), "nothing to keep").unwrap();
            tape.delete("-wal", false, || false);
            tape.open("", || Some(version.is_none()));
            tape.change(Event::Sync { inode: 0, folder: true }, || true);
        }
        let recording = tape.take();
        let mut rng = Rng::new(1);
        let mut found: Vec<Option<Vec<u8>>> = (0..1000)
            .map(|_| {
                let mut files = recording.crash(recording.events.len(), &mut rng).files;
                assert!(!files.contains_key("-shm"));
                files.remove("-replvfs")
            })
            .collect();
        found.sort();
        found.dedup();
        let half = |first: u8, second: u8| Some([[first; 512], [second; 512]].concat());
        for version in [None, half(1, 1), half(2, 2), half(1, 2), half(2, 1)] {
            assert!(found.contains(&version), "{version:?}");
        }
        // Before it was written there is none.
        assert!(!recording.crash(1, &mut rng).files.contains_key("-replvfs"));
    }

    fn state(sequence: u64) -> LocalState {
        LocalState {
            sequence,
            // So long that a state has more than one sector.
            replica: format!("fs:///{}", "r".repeat(500)),
            place: Place([1; 32]),
            database_id: DatabaseId([2; 16]),
            generation: Generation(1),
            page_size: PageSize::new(1024).unwrap(),
            stored: Mark {
                txid: Txid(sequence),
                position: Position::default(),
            },
            slot: None,
            previous: ObjectHash([3; 32]),
            left: None,
            if_wal: None,
            fenced: false,
            unfinished: None,
            restored: None,
        }
    }

    #[test]
    fn once_a_generation_is_relied_on_a_whole_state_names_it() {
        let scratch = Scratch::in_memory();
        let replica = scratch.file("replica");
        fs::create_dir(&replica).unwrap();
        let tape = Tape::new(&scratch.database(), &replica, Files::new());
        let mut file = vec![0; 2 * STATE_SLOT_BYTES];
        for sequence in 0..5 {
            if let Some(sequence) = (sequence > 0).then_some(sequence) {
                let start = usize::try_from(LocalState::offset(sequence)).unwrap();
                file[start..start + STATE_SLOT_BYTES].copy_from_slice(&state(sequence).to_slot().unwrap());
                fs::write(scratch.file("app.db-replvfs"), &file).unwrap();
            }
            if sequence == 2 {
                let image = replica.join(Key::Image(Generation(1), Txid(1)).path());
                fs::create_dir_all(image.parent().unwrap()).unwrap();
                fs::write(image, "image").unwrap();
            }
            tape.open("", || Some(sequence == 0));
            tape.change(Event::Sync { inode: 0, folder: true }, || true);
        }
        let recording = tape.take();
        let mut rng = Rng::new(1);
        let mut found_at = |at: usize| {
            let mut found = BTreeSet::new();
            let mut torn = 0;
            for _ in 0..1000 {
                let crash = recording.crash(at, &mut rng);
                let state = crash.files.get("-replvfs");
                let named = state.and_then(|state| LocalState::from_file(state).ok()?);
                let whole = |slot: &&[u8]| LocalState::from_slot(slot).is_ok() || slot.iter().all(|byte| *byte == 0);
                torn += state.map_or(0, |state| 2 - state.chunks(STATE_SLOT_BYTES).filter(whole).count());
                found.insert(named.map(|named| named.sequence));
            }
            (found, torn)
        };
        // Nothing is relied on yet.
        assert!(found_at(3).0.contains(&None));
        let (found, torn) = found_at(recording.events.len());
        assert_eq!(found, (1..=4).map(Some).collect());
        assert!(torn > 0);
    }

    #[test]
    fn the_replica_is_what_it_was_between_two_events() {
        let scratch = Scratch::in_memory();
        let replica = scratch.file("replica");
        fs::create_dir_all(replica.join("gen/.tmp")).unwrap();
        let tape = Tape::new(&scratch.database(), &replica, Files::new());
        tape.open("", || Some(true));
        let sync = || {
            tape.change(Event::Sync { inode: 0, folder: true }, || {
                // It comes while the event happens.
                fs::write(replica.join(format!("gen/{}", tape_name(&replica))), "object").unwrap();
                true
            });
        };
        sync();
        sync();
        let recording = tape.take();
        let mut rng = Rng::new(1);
        for (at, possible) in [(0, &[0][..]), (1, &[0]), (2, &[0, 1]), (3, &[1, 2])] {
            let mut found: Vec<usize> = (0..50).map(|_| recording.crash(at, &mut rng).objects.len()).collect();
            found.sort_unstable();
            found.dedup();
            assert_eq!(found, possible, "after {at} events");
        }
    }

    fn tape_name(replica: &Path) -> usize {
        fs::read_dir(replica.join("gen")).unwrap().count()
    }
}
