//! What lets a restored file go on with the history that it came from: the state file beside it.
//!
//! Owns the order of the two files: a database that appears without a state would be taken for another one, and not be replicated.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use replvfs_vfs::resume::{Fingerprint, Left, Mark, Next};
use replvfs_vfs::types::Txid;

use super::RestoreError;
use super::log::Tail;
use super::target::TargetFile;
use crate::format::{DatabaseId, LocalState, Place};
use crate::history::Plan;
use crate::local_state;
use crate::store::Store;

/// The state of a file that has everything up to this transaction.
pub(super) fn after(store: &Store, database_id: DatabaseId, plan: &Plan, last: Txid, tail: &Tail) -> LocalState {
    LocalState {
        sequence: 0,
        replica: store.replica().to_owned(),
        place: Place::of(store.place()),
        database_id,
        generation: plan.generation,
        page_size: plan.manifest.page_size,
        stored: Mark {
            txid: last,
            position: tail.position,
        },
        slot: tail.slot.filter(|slot| *slot <= last),
        previous: tail.previous,
        left: None,
        if_wal: None,
        fenced: false,
        unfinished: None,
        restored: Some(true),
    }
}

/// Puts the file into its place, with its state beside it.
pub(super) fn leave(mut state: LocalState, target: TargetFile) -> Result<(), RestoreError> {
    let place = target.place().to_owned();
    let path = local_state::state_file(&place);
    // One that is damaged, or another release's, was another database's.
    let before = local_state::read(&path).ok().flatten();
    state.sequence = before.map_or(0, |before| before.sequence) + 1;
    if !place.exists() {
        write(&path, &state)?;
        state.sequence += 1;
    }
    let print = target.put_in_place()?;
    state.left = print.map(|print| Left {
        mark: state.stored,
        next: Next::File(print),
    });
    write(&path, &state)
}

pub(super) fn write(path: &Path, state: &LocalState) -> Result<(), RestoreError> {
    let written = local_state::open(path).and_then(|file| {
        local_state::write(&file, state)?;
        local_state::sync(&file)
    });
    written.map_err(|error| RestoreError::File {
        action: "write",
        path: path.to_owned(),
        error,
    })
}

/// Seconds and nanoseconds.
pub(super) type Stamp = (i64, i64);

/// Gives the file a time stamp that no write gives, so that a write in the same tick of the clock is noticed. `None` where that is not
/// possible.
pub(super) fn set_apart(file: &File) -> Option<Stamp> {
    let apart = file
        .metadata()
        .ok()?
        .modified()
        .ok()?
        .checked_sub(Duration::from_nanos(1))?;
    file.set_modified(apart).ok()?;
    let since_epoch = apart.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some((
        i64::try_from(since_epoch.as_secs()).ok()?,
        since_epoch.subsec_nanos().into(),
    ))
}

/// The fingerprint of the file at a place, if it still has that stamp.
pub(super) fn print(place: &Path, apart: Option<Stamp>) -> Option<Fingerprint> {
    Fingerprint::of(place).filter(|print| Some(print.modified_ns) == apart)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_write_in_the_same_tick_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        for n in 0..100 {
            let path = folder.path().join(n.to_string());
            std::fs::write(&path, b"one").unwrap();
            let apart = set_apart(&File::options().write(true).open(&path).unwrap());
            let left = print(&path, apart).expect("this file system keeps nanoseconds");
            std::fs::write(&path, b"two").unwrap();
            assert_ne!(Fingerprint::of(&path), Some(left));
            assert_eq!(print(&path, apart), None);
        }
    }
}
