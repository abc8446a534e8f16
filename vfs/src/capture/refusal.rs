//! Write transactions of a database whose replica refuses them ([`Replica::refuses_writes`](crate::host::Replica::refuses_writes)).
//!
//! Where SQLite asks for a lock to begin one, that is where it is refused: WAL's write lock, RESERVED. A connection that has the file for itself asks
//! for none, so its first write is refused, and SQLite rolls back. Owns telling such a write from those that have to come through: a recovery's,
//! a checkpoint's, the rest of a transaction that had begun to write before, and what undoes it.

use std::sync::atomic::Ordering;

use libsqlite3_sys as ffi;

use super::database::{Connection, ConnectionState};
use crate::api::report;
use crate::base::FileRef;

/// What a connection is in the middle of.
#[derive(Debug, Default)]
pub(crate) struct WriteState {
    /// Where in the WAL the transaction begins that has written there. In heap mode nothing tells that it was rolled back, but then the next one
    /// begins there as well.
    wal_from: Option<u64>,
    /// The database file was written without a WAL, and neither committed nor rolled back since.
    changing: bool,
    /// It got the file for itself without RESERVED: a hot journal is played back.
    recovers: bool,
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
        self.changing = true;
    }

    /// The connection gets EXCLUSIVE, and had `before`. It has no WAL.
    pub(crate) fn takes_file(&mut self, before: i32) {
        self.recovers = before <= ffi::SQLITE_LOCK_SHARED;
    }

    /// Nothing is under way any more: what is written next is another transaction.
    pub(crate) fn ended(&mut self) {
        *self = WriteState::default();
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
            report(
                ffi::SQLITE_READONLY,
                &format!("replvfs: {path}: write transactions are refused: {reason}"),
            );
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

    /// Whether a write of the database file, or its truncation (`data` is `None`), is refused. What changes nothing is not: so the rollback of a
    /// transaction that was refused comes through.
    ///
    /// # Safety
    ///
    /// `file` is the connection's open file, on its thread.
    pub(crate) unsafe fn refuses_change(&self, file: FileRef, offset: i64, data: Option<&[u8]>) -> bool {
        if !begins_to_write(&self.lock()) {
            return false;
        }
        let Ok(offset) = u64::try_from(offset) else {
            return false; // The base VFS refuses it.
        };
        // SAFETY: as promised by the caller.
        let is_same = unsafe {
            match data {
                None => file.size() == Ok(offset),
                Some(data) => {
                    let mut there = vec![0; data.len()];
                    matches!(file.read(&mut there, offset), Ok(true)) && there == data
                }
            }
        };
        !is_same && self.refuses()
    }
}

/// With a WAL it is a checkpoint that writes the file.
fn begins_to_write(state: &ConnectionState) -> bool {
    state.wal.is_none() && !state.writes.changing && !state.writes.recovers
}
