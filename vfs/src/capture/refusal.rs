//! Write transactions of a database whose replica refuses them ([`Replica::refuses_writes`](crate::host::Replica::refuses_writes)).
//!
//! Where SQLite asks for a lock to begin one, that is where it is refused: WAL's write lock, RESERVED. A connection that has the file for itself asks
//! for none, so its first write is refused, and SQLite rolls back. Owns telling such a write from those that have to come through: a recovery's,
//! a checkpoint's, the rest of a transaction that had begun to write before, and what undoes it.

use std::sync::atomic::Ordering;

use libsqlite3_sys as ffi;

use super::database::{Connection, ConnectionState, Database};
use crate::base::FileRef;

/// What a connection is in the middle of.
#[derive(Debug, Default)]
pub(crate) struct WriteState {
    /// Where in the WAL the transaction begins that has written there. In heap mode nothing tells that it was rolled back, but then the next one
    /// begins there as well.
    wal_from: Option<u64>,
    file: FileWrites,
}

/// What a connection without a WAL does to the database file.
#[derive(Debug, Default, PartialEq, Eq)]
enum FileWrites {
    #[default]
    Nothing,
    /// It has begun to write, and may go on.
    Changes,
    /// `SQLITE_FCNTL_SYNC` came. It was either rolled back, or all that it writes is in the file, and it can still go either way.
    Synced,
    /// A journal is played back, or the file is cut behind what was committed.
    Finishes,
}

impl WriteState {
    /// The connection wrote to the WAL.
    pub(crate) fn wrote_wal(&mut self, offset: u64) {
        if self.wal_from.is_none_or(|from| offset <= from) {
            self.wal_from = Some(offset);
        }
    }

    /// The connection writes the database file, without a WAL.
    pub(crate) fn wrote_file(&mut self) {
        if self.file != FileWrites::Finishes {
            self.file = FileWrites::Changes;
        }
    }

    /// The connection has EXCLUSIVE, and no WAL; whether it plays a hot journal back.
    pub(crate) fn takes_file(&mut self, plays_back: bool) {
        self.file = match plays_back {
            true => FileWrites::Finishes,
            false => FileWrites::Nothing,
        };
    }

    /// A journal is played back that was there when the connection came.
    pub(super) fn finishes(&self) -> bool {
        self.file == FileWrites::Finishes
    }

    /// Nothing is under way any more: what is written next is another transaction.
    pub(crate) fn ended(&mut self) {
        *self = WriteState::default();
    }
}

impl Database {
    /// Whether who has come from the lock `before` to EXCLUSIVE plays a journal back. Without RESERVED nobody begins a transaction; but another process may
    /// have played it back meanwhile, and in heap mode EXCLUSIVE is taken for the WAL.
    pub(crate) fn plays_back(&self, before: i32) -> bool {
        before <= ffi::SQLITE_LOCK_SHARED && self.vfs.journal_is_hot(&self.c_path)
    }
}

impl Connection {
    /// The connection has a read lock of the WAL, or lets go of it.
    pub(crate) fn reads(&self, reads: bool) {
        self.reading.store(reads, Ordering::Relaxed);
    }

    /// Whether the WAL's write lock is refused. Without a read lock it is asked for by a recovery or a checkpoint, or (by a SQLite that can wait
    /// for locks) ahead of a transaction, whose first write is refused then.
    pub(crate) fn refuses_wal_lock(&self) -> bool {
        self.reading.load(Ordering::Relaxed) && self.refuses()
    }

    /// Without a WAL a commit, a rollback and a recovery have all in the file, also where nothing is synced.
    pub(crate) fn synced(&self) {
        let mut state = self.lock();
        if state.writes.finishes() {
            state.rollback.is_finished();
        }
        state.writes.file = match state.writes.file {
            // Who asks for the length next does not go on.
            _ if state.rollback.was_rolled_back() => FileWrites::Nothing,
            FileWrites::Changes | FileWrites::Synced => FileWrites::Synced,
            FileWrites::Nothing | FileWrites::Finishes => FileWrites::Nothing,
        };
        self.may_finish.store(true, Ordering::Relaxed);
    }

    /// The connection asks how long the file is. Who plays a journal back does so before it writes, and who commits before the file is cut; a
    /// transaction that begins does not, as long as the file is kept.
    pub(crate) fn asks_for_size(&self) {
        if self.may_finish.swap(false, Ordering::Relaxed) {
            let writes = &mut self.lock().writes;
            if writes.file == FileWrites::Synced {
                writes.file = FileWrites::Finishes;
            }
        }
    }

    /// Whether write transactions are refused. Says so, once.
    pub(crate) fn refuses(&self) -> bool {
        let database = &self.database;
        if !database.replica.refuses_writes() {
            return false;
        }
        if !self.told.swap(true, Ordering::Relaxed) {
            let reason = database.log.failure();
            let reason = reason
                .as_deref()
                .unwrap_or("another machine has taken over its replica");
            let path = database.path.display();
            crate::warning!(code = ffi::SQLITE_READONLY, database = path; "write transactions are refused: {reason}");
        }
        true
    }

    /// Whether a write to the WAL is refused: one that begins a transaction.
    pub(crate) fn refuses_wal_write(&self, offset: i64) -> bool {
        if !self.refuses() {
            return false;
        }
        let mut state = self.lock();
        let from = state.writes.wal_from;
        let refused = from.is_none_or(|from| u64::try_from(offset).is_ok_and(|offset| offset <= from));
        if refused {
            state.mirror.clear();
        }
        refused
    }

    /// Whether a write of the database file is refused. What changes nothing is not: so the rollback of a transaction that was refused comes through.
    ///
    /// # Safety
    ///
    /// `file` is the connection's open file, on its thread.
    pub(crate) unsafe fn refuses_change(&self, file: FileRef, offset: i64, data: &[u8]) -> bool {
        if !begins_to_write(&self.lock()) {
            return false;
        }
        let Ok(offset) = u64::try_from(offset) else {
            return false; // The base VFS refuses it.
        };
        let mut there = vec![0; data.len()];
        // SAFETY: as promised by the caller.
        let is_same = unsafe { matches!(file.read(&mut there, offset), Ok(true)) } && there == data;
        !is_same && self.refuses()
    }

    /// Whether a write of the database file is refused, since it begins a transaction that nothing could take back. Says so. `PRAGMA journal_mode` without
    /// the name of a database is for all of them, and tells the main one only.
    pub(crate) fn lacks_journal(&self) -> bool {
        if !self.is_strict() {
            return false;
        }
        let state = self.lock();
        let asks = begins_to_write(&state) && !state.journal_in_memory;
        drop(state);
        // SQLite has synced the journal before it writes the first page.
        let lacks = asks && !self.database.vfs.journal_is_hot(&self.database.c_path);
        if lacks {
            self.refused(
                ffi::SQLITE_IOERR,
                "a transaction without a journal cannot be held back (durability=strict): say PRAGMA journal_mode with the name of the database, and \
                 not OFF",
            );
        }
        lacks
    }

    /// Whether the file stays as long as it is though it is to be cut: only the rollback of a transaction that was refused does so before anything is
    /// written, where the file grew in chunks ahead of the database.
    pub(crate) fn keeps_length(&self) -> bool {
        begins_to_write(&self.lock()) && self.refuses()
    }
}

/// With a WAL it is a checkpoint that writes the file.
fn begins_to_write(state: &ConnectionState) -> bool {
    state.wal.is_none() && matches!(state.writes.file, FileWrites::Nothing | FileWrites::Synced)
}
