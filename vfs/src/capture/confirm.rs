//! Waiting until what is committed is in the store: for a connection's own commit, for who asks by PRAGMA, and for who has no connection at all.
//!
//! Owns what has to be captured before the replica is asked to wait, and which transactions could not be told that they are not confirmed. Leaves
//! the waiting to the [`Replica`](crate::host::Replica).

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use libsqlite3_sys as ffi;

use super::commit::Synced;
use super::continuity::is_wal_beside;
use super::database::{Connection, ConnectionState, Database, MOVED};
use crate::base::Code;
use crate::host::{Durability, FlushError};
use crate::types::Txid;

fn cannot(reason: &str) -> String {
    format!("cannot flush: {reason}")
}

impl Connection {
    /// Whether a transaction over several databases with rollback journals is not to be committed, since nobody could be told that it was not
    /// confirmed. Says so.
    pub(crate) fn refuses_super_journal(&self) -> bool {
        if self.durability() == Durability::Async {
            return false;
        }
        self.refused(
            ffi::SQLITE_ERROR,
            "a transaction over several databases with rollback journals cannot wait for the replica: use WAL mode, or PRAGMA \
             replvfs_durability=async for it",
        );
        true
    }

    /// Whether a transaction through a rollback journal is not to begin, since it would have the file for itself until it is confirmed, while the process that
    /// replicates the database has to read it. Says so.
    pub(crate) fn refuses_journal(&self) -> bool {
        if self.durability() == Durability::Async || self.lock().wal.is_some() {
            return false;
        }
        let replica = &self.database.replica;
        if replica.owns() || replica.take_over() {
            return false;
        }
        self.refused(
            ffi::SQLITE_READONLY,
            "another process replicates it, which cannot confirm a transaction through a rollback journal: use WAL mode, or PRAGMA \
             replvfs_durability=async for it",
        );
        true
    }

    pub(super) fn refused(&self, code: i32, message: &str) {
        let path = self.database.path.display();
        crate::warning!(code = code, database = path; "{message}");
    }

    /// Waits until what it has just committed is in the store, if it is to. `false`: that is not known.
    pub(crate) fn is_confirmed(&self) -> bool {
        let level = self.durability();
        if self.lock().strict.is_done() || level == Durability::Async {
            return true;
        }
        let database = &self.database;
        let mut attend = || database.attend_own(self);
        let confirmed = self.in_its_place(|| match level {
            // What could not be held back, as that which makes a database of an empty file.
            Durability::Strict => database.replica.flush(&mut attend).map(|_| ()),
            _ => database.replica.confirm(&mut attend),
        });
        if let Err(error) = &confirmed {
            self.refused(
                ffi::SQLITE_IOERR,
                &format!("a transaction is committed here, and not confirmed there: {error}"),
            );
        }
        confirmed.is_ok()
    }

    /// `PRAGMA replvfs_flush`. Tells the newest transaction in the store.
    ///
    /// # Errors
    ///
    /// Why not all that is committed is known to be there.
    pub(crate) fn flush(&self) -> Result<Option<Txid>, FlushError> {
        let database = &self.database;
        self.in_its_place(|| database.replica.flush(&mut || database.attend(self)))
    }

    /// `PRAGMA replvfs_wait`.
    ///
    /// # Errors
    ///
    /// As for [`Connection::flush`].
    pub(crate) fn wait(&self, txid: Txid) -> Result<Option<Txid>, FlushError> {
        let database = &self.database;
        self.in_its_place(|| database.replica.wait(txid, &mut || database.attend(self)))
    }

    /// The process that replicates the database may be another one, which knows nothing but its name.
    fn in_its_place<T>(&self, wait: impl FnOnce() -> Result<T, FlushError>) -> Result<T, FlushError> {
        let stays = || {
            let file = self.lock().file;
            // SAFETY: the connection's file, on its thread.
            match file.is_some_and(|file| unsafe { file.has_moved() }) {
                true => Err(FlushError::new(cannot(MOVED))),
                false => Ok(()),
            }
        };
        stays()?;
        let waited = wait()?;
        stays().map(|()| waited)
    }
}

impl Database {
    /// What a connection that waits for the upload has to do itself: to capture what is committed, and to give what the log asks for.
    ///
    /// # Errors
    ///
    /// Why it would wait in vain.
    pub(super) fn attend(&self, connection: &Connection) -> Result<(), FlushError> {
        self.attend_after(self.sync(connection), connection)
    }

    /// The same for a transaction of the connection's own, which is captured whatever others are writing just now.
    fn attend_own(&self, connection: &Connection) -> Result<(), FlushError> {
        let synced = match self.sync(connection) {
            Synced::Behind => Synced::Unproved,
            synced => synced,
        };
        self.attend_after(synced, connection)
    }

    fn attend_after(&self, synced: Synced, connection: &Connection) -> Result<(), FlushError> {
        let error = match synced {
            Synced::Behind => FlushError::passing,
            _ => FlushError::new,
        };
        if let Some(reason) = self.not_capturing(synced) {
            return Err(error(cannot(&reason)));
        }
        let no_base = self.no_base_from(connection);
        no_base.map_or(Ok(()), |reason| Err(FlushError::new(cannot(&reason))))
    }

    /// The same without a connection, where it has to be certain that what other processes have committed before is captured.
    pub(super) fn attend_alone(&self) -> Result<(), FlushError> {
        if !self.replica.owns() {
            return Err(FlushError::new(cannot("another process replicates it")));
        }
        let is_beside = is_wal_beside(&self.path);
        // What a close left there is known for as long as it is needed.
        if is_beside && self.connections.load(Ordering::Acquire) == 0 && !self.kept.is_held() {
            return Err(FlushError::new(cannot(
                "nobody has it open, and a WAL is beside it, in which there may be more; open it, read a table, and ask again",
            )));
        }
        // A connection that has read nothing has no WAL open, and other processes may.
        let is_open = self.has_wal() || is_beside;
        let proved = match is_open {
            true => self.is_pinned_in_its_place()? && self.sync_by_pin() == Some(true),
            false => self.settle_alone()?,
        };
        if !proved {
            return Err(FlushError::passing(cannot(
                "it is being written, or a connection of the process that replicates it has the file for itself; try again",
            )));
        }
        match self.not_capturing(Synced::Proved) {
            None => Ok(()),
            Some(reason) if self.log.failure().is_some() => Err(FlushError::new(cannot(&reason))),
            Some(reason) => Err(FlushError::passing(cannot(&reason))),
        }
    }

    /// Whether there is a pin.
    fn is_pinned_in_its_place(&self) -> Result<bool, FlushError> {
        self.take_pin();
        let pin = self.pin_lock();
        // SAFETY: the pin's handle is used under its lock only.
        match pin.as_ref().map(|pin| unsafe { pin.file.as_ref().has_moved() }) {
            Some(true) => Err(FlushError::new(cannot(MOVED))),
            pinned => Ok(pinned.is_some()),
        }
    }

    /// Whether the database is known to be where the cursor is, without a WAL: its file is opened and locked for that.
    fn settle_alone(&self) -> Result<bool, FlushError> {
        if is_wal_beside(&self.path) {
            return Ok(false);
        }
        let opened = self.vfs.open_database(&self.c_path, &self.parameters);
        let file = opened.map_err(|Code(code)| {
            FlushError::passing(cannot(&format!("opening it again failed with SQLite code {code}")))
        })?;
        let mut state = ConnectionState::new(self, Some(file.as_ref()));
        let _alone = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        // A connection of this process must not meet a lock of ours.
        if self.making_way.load(Ordering::Acquire) > 0 {
            return Ok(false);
        }
        let settled = self.settle_unlocked(&mut state);
        // Somebody may have begun one since.
        Ok(settled && !is_wal_beside(&self.path))
    }
}
