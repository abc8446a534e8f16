//! Whether a database file is the one that was left behind at the last close.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::types::UnixMillis;

/// Time stamps come from a clock that ticks every few milliseconds, so two writes in one tick look alike.
const TICK_MS: i64 = 20;
/// Some file systems keep whole seconds, or every other one.
const COARSE_TICK_MS: i64 = 2_020;

/// A database file that no WAL belongs to, as it stood while this process alone had access to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Seconds and nanoseconds of the last write, as the file system tells them.
    pub modified_ns: (i64, i64),
    /// The same of the last change of the inode.
    pub changed_ns: (i64, i64),
}

impl Fingerprint {
    /// Of a file that nobody else can write at this moment. `None` when a WAL stands beside it, or when a later change
    /// could look the same. `known` is a fingerprint that was found to hold since.
    ///
    /// The clock behind time stamps ticks every few milliseconds, and SQLite's last checkpoint has often just written the file: a write
    /// that follows at once would leave the same time. So the file's mtime is set back by a nanosecond, which no later write
    /// does.
    pub(crate) fn leave(path: &Path, now: UnixMillis, known: Option<Fingerprint>) -> Option<Fingerprint> {
        if is_wal_beside(path) {
            return None;
        }
        let print = Fingerprint::of(path)?;
        if known == Some(print) {
            return known;
        }
        print.set_apart(path).or_else(|| print.settled(now).then_some(print))
    }

    /// The same with a time stamp that no write gives. `None` where that is not allowed, or not kept.
    pub(crate) fn set_apart(self, path: &Path) -> Option<Fingerprint> {
        use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};
        let (seconds, nanoseconds) = self.modified_ns;
        let apart = (
            seconds,
            nanoseconds.checked_sub(1).filter(|nanoseconds| *nanoseconds >= 0)?,
        );
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            last_modification: Timespec {
                tv_sec: apart.0,
                tv_nsec: apart.1,
            },
        };
        utimensat(CWD, path, &times, AtFlags::empty()).ok()?;
        let print = Fingerprint::of(path)?;
        let same = (print.device, print.inode, print.size) == (self.device, self.inode, self.size);
        (same && print.modified_ns == apart).then_some(print)
    }

    /// Whether the clock has ticked since the last change.
    fn settled(&self, now: UnixMillis) -> bool {
        let (seconds, nanoseconds) = self.changed_ns;
        let whole_seconds = nanoseconds == 0 || self.modified_ns.1 == 0;
        let tick_ms = if whole_seconds { COARSE_TICK_MS } else { TICK_MS };
        let changed_ms = seconds
            .checked_mul(1000)
            .and_then(|ms| ms.checked_add(nanoseconds / 1_000_000));
        let age_ms = changed_ms.and_then(|changed_ms| now.0.checked_sub(changed_ms));
        age_ms.is_some_and(|age_ms| age_ms > tick_ms)
    }

    /// Of the file as it is now; `None` when it cannot be asked.
    #[must_use]
    pub fn of(path: &Path) -> Option<Fingerprint> {
        let meta = fs::metadata(path).ok()?;
        Some(Fingerprint {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified_ns: (meta.mtime(), meta.mtime_nsec()),
            changed_ns: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// A WAL of zero bytes holds nothing.
pub(super) fn is_wal_beside(path: &Path) -> bool {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    fs::metadata(wal).is_ok_and(|meta| meta.len() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        fs::write(&path, b"one").unwrap();
        (folder, path)
    }

    /// As if the clock had not ticked since the file was written.
    const AT_ONCE: UnixMillis = UnixMillis(0);

    #[test]
    fn a_write_in_the_same_tick_is_noticed() {
        for _ in 0..200 {
            let (_folder, path) = written();
            let left = Fingerprint::leave(&path, AT_ONCE, None).expect("this file system keeps nanoseconds");
            assert_eq!(Fingerprint::of(&path), Some(left));
            fs::write(&path, b"two").unwrap();
            assert_ne!(Fingerprint::of(&path), Some(left));
        }
    }

    #[test]
    fn a_file_that_is_still_the_same_is_not_touched_again() {
        let (_folder, path) = written();
        let left = Fingerprint::leave(&path, AT_ONCE, None);
        assert_eq!(Fingerprint::leave(&path, AT_ONCE, left), left);
    }

    #[test]
    fn nothing_is_known_of_a_file_with_a_wal() {
        let (_folder, path) = written();
        fs::write(path.with_file_name("app.db-wal"), b"frames").unwrap();
        assert_eq!(Fingerprint::leave(&path, UnixMillis(i64::MAX), None), None);
    }

    #[test]
    fn without_a_stamp_of_its_own_a_file_has_to_rest() {
        let print = Fingerprint {
            device: 1,
            inode: 1,
            size: 1,
            modified_ns: (10, 5),
            changed_ns: (10, 5_000_000),
        };
        assert!(!print.settled(UnixMillis(10_025)));
        assert!(print.settled(UnixMillis(10_026)));
        assert!(
            !Fingerprint {
                changed_ns: (10, 0),
                ..print
            }
            .settled(UnixMillis(12_000))
        );
    }
}
