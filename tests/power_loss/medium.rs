//! The two disks as the test uses them: how a database is opened on each, with replvfs and without, and put there.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Once};

use replvfs::Config;
use replvfs::format::{LocalState, Place, STATE_SLOT_BYTES};
use rusqlite::{Connection, OpenFlags};

use super::disk::Files;
use super::tape::Tape;
use super::{recorder, simulated};

/// What SQLite keeps of a database.
const KEPT: &[&str] = &["", "-wal", "-journal"];

/// What replvfs keeps, and has to find again.
pub(crate) const STATE: &str = "-replvfs";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Medium {
    /// The real disk, with a record of what is done.
    Recorded,
    /// Memory, behind the crate `sqlite-vfs`.
    Simulated,
}

/// Each disk is the default VFS for as long as it takes to register replvfs over it.
fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for medium in [Medium::Recorded, Medium::Simulated] {
            match medium {
                Medium::Recorded => recorder::register(),
                Medium::Simulated => simulated::register(),
            }
            // Of the smallest size, so that large transactions are read back from the WAL.
            let config = Config::default().memory_limit(1 << 20).vfs_name(medium.replicating());
            replvfs::register(config).expect("registering the VFS");
        }
    });
}

impl Medium {
    fn replicating(self) -> String {
        format!("replvfs-{}", self.recorded_name())
    }

    fn recorded_name(self) -> &'static str {
        match self {
            Medium::Recorded => recorder::NAME,
            Medium::Simulated => simulated::NAME,
        }
    }

    fn plain_name(self) -> &'static str {
        match self {
            Medium::Recorded => "unix",
            Medium::Simulated => simulated::NAME,
        }
    }

    /// Through replvfs. Without restoring: that would be on the real disk whatever the database is on, and what a power loss leaves is to be found.
    pub(crate) fn open(self, database: &Path, replica: &Path) -> rusqlite::Result<Connection> {
        connect(&format!(
            "file:{}?vfs={}&replica=fs://{}&flush_interval=10ms&timeout=15s&restore=never",
            database.display(),
            self.replicating(),
            replica.display()
        ))
    }

    /// Without it.
    pub(crate) fn open_plain(self, database: &Path) -> rusqlite::Result<Connection> {
        let connection = connect(&format!("file:{}?vfs={}", database.display(), self.plain_name()))?;
        // Before the first access, so that nothing needs shared memory.
        connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE")?;
        Ok(connection)
    }

    pub(crate) fn record(self, tape: &Arc<Tape>) {
        match self {
            Medium::Recorded => recorder::insert(Arc::clone(tape)),
            Medium::Simulated => simulated::insert(Arc::clone(tape)),
        }
    }

    pub(crate) fn stop(self, database: &Path) {
        match self {
            Medium::Recorded => recorder::eject(database),
            Medium::Simulated => simulated::eject(database),
        }
    }

    /// Puts a database where none is. What replvfs itself keeps beside it is always on the real disk.
    pub(crate) fn place(self, database: &Path, files: &Files) {
        let of_sqlite = |name: &str| KEPT.contains(&name);
        if self == Medium::Simulated {
            let files = files.iter().filter(|(name, _)| of_sqlite(name));
            simulated::place(
                database,
                &files.map(|(name, content)| (name.clone(), content.clone())).collect(),
            );
        }
        for (suffix, content) in files {
            if self == Medium::Recorded || !of_sqlite(suffix) {
                fs::write(format!("{}{suffix}", database.display()), content).expect("writing a file");
            }
        }
    }

    /// What SQLite keeps of a database that nobody has open.
    pub(crate) fn read(self, database: &Path) -> Files {
        let read = |suffix: &&str| {
            let path = format!("{}{suffix}", database.display());
            let content = match self {
                Medium::Simulated => simulated::read(&path),
                Medium::Recorded => match fs::read(&path) {
                    Ok(content) => Some(content),
                    Err(error) if error.kind() == ErrorKind::NotFound => None,
                    Err(error) => panic!("reading {path}: {error}"),
                },
            };
            Some(((*suffix).to_owned(), content?))
        };
        KEPT.iter().filter_map(read).collect()
    }

    pub(crate) fn forget(self, folder: &Path) {
        if self == Medium::Simulated {
            simulated::forget(folder);
        }
    }
}

/// What is left, taken to a machine where the replica is in another folder: what replvfs keeps says the new one. Which does not decode stays as it
/// is. The replica's folder must be there.
pub(crate) fn moved(mut files: Files, replica: &Path) -> Files {
    let replica = fs::canonicalize(replica).expect("finding the replica's folder");
    let uri = format!("fs://{}", replica.display());
    if let Some(state) = files.get_mut(STATE) {
        for slot in state.chunks_mut(STATE_SLOT_BYTES) {
            if let Ok(mut known) = LocalState::from_slot(slot) {
                known.place = Place::of(&uri);
                known.replica.clone_from(&uri);
                let moved = known.to_slot().expect("a state that was read");
                slot.copy_from_slice(&moved);
            }
        }
    }
    files
}

/// Without what replvfs keeps.
pub(crate) fn of_sqlite(mut files: Files) -> Files {
    files.retain(|suffix, _| KEPT.contains(&suffix.as_str()));
    files
}

fn connect(uri: &str) -> rusqlite::Result<Connection> {
    register();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags)?;
    connection.busy_timeout(std::time::Duration::from_secs(20))?;
    Ok(connection)
}
