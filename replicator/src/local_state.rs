//! The file `<database>-replvfs`: what this machine knows of the replica of a database. Owns its place, and that one of its two slots is whole at
//! any time; leaves the bytes to [`format`](crate::format), and who may write it to the pipeline.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use replvfs_vfs::held::wal_salts;

use crate::format::{FormatError, LocalState, STATE_SLOT_BYTES};
use crate::outside;

/// Appended to the database's name.
const SUFFIX: &str = "-replvfs";

/// Why the file tells nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The system refuses.
    #[error("{} cannot be read: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It is damaged, or another release's.
    #[error("{} cannot be used: {error}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: FormatError,
    },
}

impl StateError {
    /// The file is there, and is not what was written: it is as if it was not there.
    pub(crate) fn is_damage(&self) -> bool {
        let StateError::Format { error, .. } = self else {
            return false;
        };
        !matches!(error, FormatError::Version { .. })
    }
}

/// Where a database's state is.
#[must_use]
pub fn state_file(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

/// What the file says that stands at [`state_file`] of a database; `None` when there is none, or nothing in it. Changes nothing, and takes no lock.
///
/// # Errors
///
/// See [`StateError`].
pub fn read(path: &Path) -> Result<Option<LocalState>, StateError> {
    let io = |error| StateError::Io {
        path: path.to_owned(),
        error,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(2 * STATE_SLOT_BYTES as u64)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    let mut unreadable = None;
    let wal = || match wal_salts(&database_of(path)?) {
        Ok(salts) => salts,
        Err(error) => {
            unreadable = Some(error);
            None
        }
    };
    let read = LocalState::from_file_beside(&bytes, wal);
    if let Some(error) = unreadable {
        return Err(io(error));
    }
    read.map_err(|error| StateError::Format {
        path: path.to_owned(),
        error,
    })
}

fn database_of(state_file: &Path) -> Option<PathBuf> {
    let name = state_file.as_os_str().as_bytes().strip_suffix(SUFFIX.as_bytes())?;
    Some(OsStr::from_bytes(name).into())
}

/// Whether a process replicates the database at this moment. Asking takes the lock for an instant; a process that wants it just then tries again
/// soon.
///
/// # Errors
///
/// When the lock file is there and cannot be opened or asked.
pub fn is_owned(database: &Path) -> io::Result<bool> {
    let file = match File::open(crate::pipeline::lock_file(database)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Opens the file for [`write()`], and makes it if it is missing.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// Puts a state into its slot, with one write and without a sync.
pub(crate) fn write(file: &File, state: &LocalState) -> io::Result<()> {
    let slot = state.to_slot().map_err(io::Error::other)?;
    file.write_all_at(&slot, LocalState::offset(state.sequence))
}

/// Waits until what was written is on the disk.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    file.sync_all()?;
    outside::synced(file);
    Ok(())
}
