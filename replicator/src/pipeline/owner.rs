//! Which process on this machine replicates a database: the one that holds the lock of a file beside it.
//!
//! Owns the lock. Leaves to the task what a process does that is not the owner. The file is empty and stays: deleting it would let two
//! processes lock two files of one name. It is not the database's own file, whose locks are SQLite's.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use replvfs_vfs::fork::NotInherited;

/// Appended to the database's name.
const SUFFIX: &str = "-replvfs-lock";
const PAUSE: Duration = Duration::from_millis(1);

/// The ownership of one database, held until it is dropped or the process ends.
#[derive(Debug)]
pub(super) struct Ownership {
    /// A child of `fork()` would keep the lock when this process is gone.
    _not_inherited: NotInherited,
    _lock: File,
}

/// Where the lock of a database is.
pub(crate) fn lock_file(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

impl Ownership {
    /// `None` when another process, or another name of the same file in this one, has it. Never waits.
    pub(super) fn take(lock_file: &Path) -> io::Result<Option<Ownership>> {
        let file = open(lock_file)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Ownership::of(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The same for who cannot try again later: those who only ask whether there is an owner share the lock for an instant, and are waited for.
    /// The file stays open meanwhile, so that locks of the other kind on it are not lost.
    pub(super) fn take_from_askers(lock_file: &Path, patience: Duration) -> io::Result<Option<Ownership>> {
        let (file, started) = (open(lock_file)?, Instant::now());
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(Ownership::of(file))),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
            match file.try_lock_shared() {
                Ok(()) => file.unlock()?,
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            if started.elapsed() >= patience {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn of(file: File) -> Ownership {
        Ownership {
            _not_inherited: NotInherited::new(file.as_fd()),
            _lock: file,
        }
    }
}

fn open(lock_file: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(lock_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_owner_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = lock_file(&folder.path().join("app.db"));
        assert!(path.ends_with("app.db-replvfs-lock"));
        let first = Ownership::take(&path).unwrap();
        assert!(first.is_some());
        assert!(Ownership::take(&path).unwrap().is_none());
        drop(first);
        assert!(Ownership::take(&path).unwrap().is_some());
    }

    #[test]
    fn who_only_asks_is_no_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = lock_file(&folder.path().join("app.db"));
        let long = Duration::from_secs(60);
        let asker = open(&path).unwrap();
        asker.try_lock_shared().unwrap();
        let given_up = Ownership::take_from_askers(&path, Duration::ZERO).unwrap_err();
        assert_eq!(given_up.kind(), io::ErrorKind::TimedOut);
        std::thread::scope(|scope| {
            let taking = scope.spawn(|| Ownership::take_from_askers(&path, long));
            asker.unlock().unwrap();
            let taken = taking.join().unwrap().unwrap();
            assert!(taken.is_some());
            assert!(Ownership::take_from_askers(&path, long).unwrap().is_none());
        });
    }
}
