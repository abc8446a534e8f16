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
pub(crate) struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

impl Fingerprint {
    /// `None` when a WAL or a journal stands beside the file, or when a later change could look the same.
    pub(crate) fn take(path: &Path, now: UnixMillis) -> Option<Fingerprint> {
        let print = Fingerprint::of(path)?;
        let changed_ms = print
            .changed_ns
            .0
            .checked_mul(1000)?
            .checked_add(print.changed_ns.1 / 1_000_000)?;
        let whole_seconds = print.changed_ns.1 == 0 || print.modified_ns.1 == 0;
        let tick_ms = if whole_seconds { COARSE_TICK_MS } else { TICK_MS };
        let settled = now.0.checked_sub(changed_ms)? > tick_ms;
        (settled && !beside(path, "-wal") && !beside(path, "-journal")).then_some(print)
    }

    /// Of the file as it is now.
    pub(crate) fn of(path: &Path) -> Option<Fingerprint> {
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

fn beside(path: &Path, suffix: &str) -> bool {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    // A WAL of zero bytes holds nothing.
    fs::metadata(&name).is_ok_and(|meta| meta.len() > 0)
}
