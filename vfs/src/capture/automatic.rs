//! Automatic checkpoints are put off while the store is behind.
//!
//! Behind each commit that leaves 1000 frames or more in the WAL SQLite checkpoints (`sqlite3_wal_autocheckpoint`). While what is in the WAL is not in the
//! store, and too much to be carried over, the WAL cannot restart afterwards: then it would be at every commit, with two syncs for a few pages. Owns which
//! request is an automatic one, and how much is put off. One that is refused ends in `SQLITE_BUSY`, as beside another checkpoint, and the commit that it
//! is behind does not see it (`sqlite3WalDefaultHook`). No checkpoint that somebody asks for is meant: see [`Automatic`].

use super::database::{Connection, ConnectionState};
use super::restart::{CARRIED_AT_ONCE, ORDINARY_FRAMES};

/// WAL bytes that are not in the database file yet, up to which that may wait; no more than this part of `wal_limit`.
const PUT_OFF_BYTES: u64 = 16 << 20;
const PUT_OFF_PART: u64 = 4;
/// So many commits in a row must have been followed by a checkpoint before the next such checkpoint counts as automatic.
const SURE: u8 = 2;

/// What tells an automatic checkpoint of a connection: it comes right behind its commit, each time. One by `PRAGMA wal_checkpoint` has that PRAGMA between; one by
/// `sqlite3_wal_checkpoint_v2` comes after the automatic one, or, where that was turned off or set to more frames, behind a commit that others without one were before.
#[derive(Debug, Default)]
pub(crate) struct Automatic {
    /// It committed, since when it asked for nothing else, and so many frames are in the WAL.
    committed: Option<u32>,
    followed: u8,
}

impl Automatic {
    pub(super) fn committed(&mut self, frames: u32) {
        self.goes_on();
        self.committed = Some(frames);
    }

    /// Something else comes, or another commit: not every one is followed by a checkpoint.
    pub(crate) fn goes_on(&mut self) {
        if self.committed.take().is_some_and(|frames| frames >= ORDINARY_FRAMES) {
            self.followed = 0;
        }
    }

    /// A checkpoint begins. Whether it is an automatic one.
    fn asks(&mut self) -> bool {
        let follows = self.committed.take().is_some_and(|frames| frames >= ORDINARY_FRAMES);
        let is_sure = follows && self.followed >= SURE;
        if follows {
            self.followed = self.followed.saturating_add(1);
        }
        is_sure
    }
}

impl Connection {
    /// It asks for the CHECKPOINT lock. Whether it is to be told that somebody else has it.
    pub(crate) fn puts_checkpoint_off(&self) -> bool {
        let mut state = self.lock();
        state.automatic.asks() && self.may_put_off(&state)
    }

    fn may_put_off(&self, state: &ConnectionState) -> bool {
        let database = &self.database;
        let log = &database.log;
        // What is not replicated may leave the WAL at any time.
        if !database.replica.owns() || log.failure().is_some() || log.is_suspended() {
            return false;
        }
        let Some(region) = state.region else { return false };
        let Some(header) = region.header() else { return false };
        let frames = header.position.frame;
        let missing = u64::from(frames.saturating_sub(region.backfilled()));
        let bytes = header.wal_bytes() / u64::from(frames.max(1)) * missing;
        let limit = PUT_OFF_BYTES.min(database.replica.wal_limit() / PUT_OFF_PART);
        bytes < limit && log.unstored_bytes().is_some_and(|bytes| bytes > CARRIED_AT_ONCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_behind_every_commit_is_an_automatic_one() {
        let mut automatic = Automatic::default();
        let mut behind = |frames| {
            automatic.committed(frames);
            automatic.asks()
        };
        assert!(!behind(1000));
        assert!(!behind(1001));
        assert!(behind(1002));
        assert!(!behind(999), "SQLite's own has more");
        assert!(behind(1003));
    }

    #[test]
    fn one_that_is_asked_for_is_not() {
        let sure = || Automatic {
            committed: None,
            followed: SURE,
        };
        let mut after_the_automatic_one = sure();
        after_the_automatic_one.committed(1000);
        assert!(after_the_automatic_one.asks());
        assert!(!after_the_automatic_one.asks());

        let mut by_pragma = sure();
        by_pragma.committed(1000);
        by_pragma.goes_on();
        assert!(!by_pragma.asks());

        let mut now_and_then = sure();
        now_and_then.committed(1000);
        for _ in 0..3 {
            now_and_then.committed(1000);
            now_and_then.committed(1001);
            assert!(!now_and_then.asks());
        }
    }
}
