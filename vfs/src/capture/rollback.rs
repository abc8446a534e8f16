//! Commits in the rollback-journal modes: DELETE, TRUNCATE, PERSIST, MEMORY and OFF.
//!
//! There SQLite writes pages into the database file, under the EXCLUSIVE lock, and a commit is when the journal is gone. All that one
//! connection writes up to `SQLITE_FCNTL_COMMIT_PHASETWO` is one transaction. What is written without it (a hot journal is played back, a spilled
//! transaction is rolled back, a backup is given up) is a transaction as well when the lock is let go: what counts is what the file is.
//! Owns which pages were written, and reads them back while nobody else can write. Leaves the proof that the file is known to
//! [`settle`](super::settle).

use std::sync::atomic::Ordering;

use super::database::{Capture, ConnectionState, Cursor, Database, MOVED};
use super::header::DatabaseHeader;
use super::page_set::PageSet;
use super::settle::Known;
use crate::base::FileRef;
use crate::buffer::Charge;
use crate::pages::{Collector, Pages};
use crate::transaction::{Frames, Transaction};
use crate::types::{PageSize, Pgno, Position, Txid};

const UNKNOWN: &str = "what was there before it is not known; try again";

/// What a connection without a WAL does to the database file.
#[derive(Debug, Default)]
pub(crate) struct RollbackState {
    /// Since the last commit.
    written: Option<Written>,
    began: Beginning,
    /// It wrote something since it got the EXCLUSIVE lock.
    changed: bool,
    /// It asks for the EXCLUSIVE lock, or has it.
    pub(super) wants_file: bool,
}

impl RollbackState {
    /// It is in the middle of a transaction.
    pub(super) fn is_writing(&self) -> bool {
        self.written.is_some() && !self.began.rolled_back
    }

    /// What is being written is no database before that.
    fn is_new(&self) -> bool {
        self.began.header.is_none_or(|header| header.is_blank())
    }

    /// A journal was played back, and the lock may be kept: the file is the database now. Pages that were taken back are looked at once more at the next
    /// commit, which costs little.
    pub(super) fn is_finished(&mut self) {
        if !matches!(self.written, Some(Written::Pages(_))) {
            self.written = None;
        }
    }

    /// The connection asks how long the file is: to play its journal back, or because it grows.
    pub(crate) fn asks_for_size(&mut self) {
        self.began.asked_for_size = true;
    }

    /// Its journal was played back, and it may keep its lock.
    pub(super) fn is_rolled_back(&mut self) {
        self.began.rolled_back = true;
    }

    /// What was written last is known to have been taken back.
    pub(super) fn was_rolled_back(&self) -> bool {
        self.began.rolled_back
    }

    /// Whether the next write is the first one of a transaction.
    pub(super) fn is_to_begin(&self) -> bool {
        self.written.is_none() || self.began.rolled_back
    }
}

impl ConnectionState {
    /// `SQLITE_FCNTL_SYNC`: whether it is a commit's that can be held back, or not one at all.
    ///
    /// A commit moves the change counter, but for all after the first one of a connection that keeps the file for itself. Who rolls back asks for
    /// the file's length before; so does a commit, but only where the number of pages in the header has grown.
    ///
    /// # Errors
    ///
    /// Why it cannot be.
    ///
    /// # Safety
    ///
    /// `file` is the connection's open file, on its thread.
    pub(super) unsafe fn commits(&mut self, file: FileRef) -> Result<bool, &'static str> {
        let rollback = &mut self.rollback;
        match &rollback.written {
            None => return Ok(false),
            Some(_) if self.writes.finishes() => {
                rollback.began.rolled_back = true;
                return Ok(false);
            }
            // Nobody sees a database before it is one. Its base is waited for.
            Some(Written::Unlogged { is_new: true }) => return Ok(false),
            Some(_) => {}
        }
        // SAFETY: as promised by the caller.
        let Ok(now) = (unsafe { DatabaseHeader::read(file) }) else {
            return Err("the database file cannot be read");
        };
        let began = &mut rollback.began;
        let is_changed = |now: DatabaseHeader, before: DatabaseHeader| {
            now.is_changed_since(&before) || now.is_resized_since(&before)
        };
        let is_changed = now
            .zip(began.header)
            .is_some_and(|(now, before)| is_changed(now, before));
        // No commit leaves an empty file.
        let commits = now.is_some() && (!began.asked_for_size || is_changed);
        began.rolled_back = !commits;
        match rollback.written {
            _ if !commits => Ok(false),
            Some(Written::Unlogged { .. }) => Err(UNKNOWN),
            Some(Written::Elsewhere) => Err(MOVED),
            _ => Ok(true),
        }
    }
}

/// How a transaction began.
#[derive(Debug, Default)]
struct Beginning {
    /// What the file had before.
    header: Option<DatabaseHeader>,
    asked_for_size: bool,
    /// The journal was played back, and the lock kept: what is written next is another transaction.
    rolled_back: bool,
}

/// What a connection has written since the last commit.
#[derive(Debug)]
enum Written {
    /// What was there before is not in the log; `is_new`: nothing was.
    Unlogged {
        is_new: bool,
    },
    /// The file is not the database's any more: it was renamed or replaced.
    Elsewhere,
    Pages(WrittenPages),
}

#[derive(Debug, Clone)]
struct WrittenPages {
    page_size: PageSize,
    /// The fewest pages that the database had since: all behind them are new, also where nothing was written.
    kept: u32,
    pages: PageSet,
}

impl WrittenPages {
    fn note(&mut self, from: u64, to: Option<u64>) {
        let size = u64::from(self.page_size.get());
        let page_at = |offset: u64| u32::try_from(offset / size).unwrap_or(u32::MAX);
        match to {
            None => self.kept = self.kept.min(page_at(from)),
            Some(to) if to > from => (page_at(from)..=page_at(to - 1)).for_each(|index| {
                self.pages.insert(index.saturating_add(1));
            }),
            Some(_) => {}
        }
    }
}

impl Database {
    /// A connection without a WAL is about to write the bytes `from..to` of the database file, or to cut them off (`None`).
    ///
    /// # Safety
    ///
    /// `file` is that connection's open file, on its thread.
    pub(crate) unsafe fn rollback_write(&self, state: &mut ConnectionState, file: FileRef, from: u64, to: Option<u64>) {
        if state.rollback.is_to_begin() {
            // SAFETY: as promised by the caller.
            let header = unsafe { DatabaseHeader::read(file) };
            state.rollback.began = Beginning {
                header: header.ok().flatten(),
                ..Beginning::default()
            };
        }
        let mut written = match state.rollback.written.take() {
            Some(written) => written,
            // SAFETY: as above.
            None => unsafe { self.first_write(state, file) },
        };
        if let Written::Pages(pages) = &mut written {
            pages.note(from, to);
        }
        state.rollback.changed |= !matches!(written, Written::Elsewhere);
        state.rollback.written = Some(written);
    }

    /// # Safety
    ///
    /// As for [`Database::rollback_write`].
    unsafe fn first_write(&self, state: &ConnectionState, file: FileRef) -> Written {
        let mut capture = self.capture();
        // SAFETY: as promised by the caller.
        if unsafe { self.file_has_moved(&mut capture, file) } {
            return Written::Elsewhere;
        }
        if capture.cursor.is_some() && !state.is_exclusive() {
            self.break_history(&mut capture, "it is written without a lock");
        }
        // Up to now the file is what it was when the connection got its lock.
        // SAFETY: as above.
        unsafe { self.prove_file(&mut capture, file) };
        let Some(cursor) = capture.cursor else {
            return Written::Unlogged {
                is_new: state.rollback.is_new(),
            };
        };
        // SAFETY: as above.
        if let (Some(header), Ok(bytes)) = (state.rollback.began.header, unsafe { file.size() })
            && let Some(page_size) = header.page_size()
            && cursor.page_size.is_none_or(|known| known == page_size)
        {
            return Written::Pages(WrittenPages {
                page_size,
                kept: header.page_count(bytes, page_size),
                pages: PageSet::default(),
            });
        }
        self.break_history(&mut capture, "its header could not be read before it was written");
        Written::Unlogged { is_new: false }
    }

    /// `SQLITE_FCNTL_COMMIT_PHASETWO` on a connection without a WAL. It still has its lock.
    pub(crate) fn rollback_commit(&self, state: &mut ConnectionState) {
        if self.finish_unseen(&mut self.capture(), state) {
            state.rollback.written = None;
        }
        self.log_written(state);
        if state.is_exclusive() && self.log.base_wanted() {
            self.settle(state);
        }
    }

    /// A connection is about to let its EXCLUSIVE lock go; `last`: with all others.
    pub(crate) fn leave_exclusive(&self, state: &mut ConnectionState, last: bool) {
        self.log_uncommitted(state);
        let changed = std::mem::take(&mut state.rollback.changed);
        let header = match (state.wal, state.file) {
            // SAFETY: the connection's file, on its thread.
            (None, Some(file)) => unsafe { DatabaseHeader::read(file) }.ok().flatten(),
            _ => None,
        };
        if let Some(header) = header.filter(|header| !header.is_wal()) {
            if changed {
                self.capture().known = Known::with(header, &self.path);
            }
            return;
        }
        // In WAL mode others may write to the file without any lock on it.
        self.end_copies("the connection that had the database file for itself let it go");
        let mut capture = self.capture();
        capture.known = None;
        let Some(cursor) = capture.cursor.filter(|_| last || changed) else {
            return;
        };
        if state.wal.is_some() || self.wants_attention() {
            return;
        }
        // SAFETY: the connection's file, on its thread.
        capture.left_behind = state.file.and_then(|file| unsafe { self.leave(&capture, file) });
        if let Some(file) = capture.left_behind {
            let end = capture.ended.unwrap_or(cursor.position);
            self.note_file(&mut capture, end, file);
        }
    }

    /// The connection has opened its WAL.
    pub(crate) fn wal_opened(&self, state: &mut ConnectionState, wal: FileRef) {
        // A switch to WAL mode that failed after page 1 was written.
        self.log_uncommitted(state);
        state.wal = Some(wal);
        // In heap mode nothing tells what others committed to it while this connection had the SHARED lock only.
        // SAFETY: just opened, on the connection's thread.
        if state.is_exclusive() && unsafe { wal.size() } != Ok(0) {
            self.unverified.store(true, Ordering::Release);
        }
    }

    /// What was written without a commit is as it is from here on.
    fn log_uncommitted(&self, state: &mut ConnectionState) {
        self.abandon_confirmed(state);
        if state.rollback.is_writing() && self.vfs.journal_is_hot(&self.c_path) {
            // SQLite could not finish. The next connection, of whatever process, goes on from the journal.
            if !matches!(state.rollback.written.take(), Some(Written::Elsewhere)) {
                let mut capture = self.capture();
                self.break_history(&mut capture, "a transaction was left unfinished in it");
            }
        }
        self.log_written(state);
    }

    /// Logs what the connection has written, if it was anything. Nobody else can write now.
    fn log_written(&self, state: &mut ConnectionState) {
        let Some(Written::Pages(written)) = state.rollback.written.take() else {
            return;
        };
        let Some(file) = state.file else { return };
        let mut capture = self.capture();
        if capture.cursor.is_none() {
            return;
        }
        // SAFETY: the connection's file, on its thread.
        match unsafe { self.read_back(file, written) } {
            Ok((page_size, page_count, pages)) => self.append_pages(&mut capture, page_size, page_count, pages),
            Err(reason) => self.break_history(&mut capture, reason),
        }
    }

    /// # Safety
    ///
    /// `file` is an open database file of a connection, on its thread.
    unsafe fn read_back(
        &self,
        file: FileRef,
        mut written: WrittenPages,
    ) -> Result<(PageSize, u32, Pages), &'static str> {
        const UNREADABLE: &str = "a transaction could not be read back from the database file";
        let page_size = written.page_size;
        // SAFETY: as promised by the caller.
        let header = unsafe { DatabaseHeader::read(file) }.map_err(|_| UNREADABLE)?;
        let header = header.ok_or("it was emptied")?;
        if header.page_size() != Some(page_size) {
            return Err("its page size was changed");
        }
        // SAFETY: as above.
        let bytes = unsafe { file.size() }.map_err(|_| UNREADABLE)?;
        let page_count = header.page_count(bytes, page_size);
        for number in written.kept.saturating_add(1)..=page_count {
            written.pages.insert(number);
        }
        let mut collector = Collector::new(page_size, written.pages.len(), self.memory);
        let mut page = vec![0; page_size.as_usize()];
        let lock_page = page_size.lock_page();
        let numbers = written.pages.iter().take_while(|number| *number <= page_count);
        for number in numbers.filter_map(Pgno::new).filter(|number| *number != lock_page) {
            // A page behind the end of the file is zeros, as SQLite reads it.
            // SAFETY: as above.
            unsafe { file.read(&mut page, page_size.offset_of(number)) }.map_err(|_| UNREADABLE)?;
            collector
                .push(number, &page, || self.spill_file())
                .map_err(|_| "a transaction larger than memory_limit found no room beside the database")?;
        }
        let pages = collector
            .finish(Charge::nothing(&self.budget), |bytes| self.share_file(bytes))
            .map_err(|_| "a transaction larger than memory_limit found no room beside the database")?;
        Ok((page_size, page_count, pages))
    }

    /// What the connection has written, and is about to commit.
    pub(super) fn tentative_pages(
        &self,
        capture: &Capture,
        state: &ConnectionState,
    ) -> Result<Transaction, &'static str> {
        let (Some(Written::Pages(written)), Some(file)) = (&state.rollback.written, state.file) else {
            return Err(UNKNOWN);
        };
        capture.cursor.ok_or(UNKNOWN)?;
        // SAFETY: the connection's file, on its thread.
        let (page_size, page_count, pages) = unsafe { self.read_back(file, written.clone()) }?;
        Ok(self.transaction_of(page_size, page_count, pages))
    }

    fn transaction_of(&self, page_size: PageSize, page_count: u32, pages: Pages) -> Transaction {
        Transaction {
            txid: Txid::ZERO, // The log's to give.
            committed_at: self.host.now(),
            page_size,
            page_count,
            start: Position::NONE,
            end: Position::NONE,
            held: false,
            big_endian: false,
            frames: Frames::Pages(pages),
        }
    }

    fn append_pages(&self, capture: &mut Capture, page_size: PageSize, page_count: u32, pages: Pages) {
        if self.log.last_txid().is_none() {
            return;
        }
        self.log.push_next(self.transaction_of(page_size, page_count, pages));
        let waiting = self.log.unstored_bytes().unwrap_or(0);
        if waiting > self.replica.wal_limit() {
            return self.give_up_backlog(capture, waiting);
        }
        capture.cursor = Some(Cursor {
            position: Position::NONE,
            page_size: Some(page_size),
            big_endian: false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_and_cuts_become_pages() {
        let mut written = WrittenPages {
            page_size: PageSize::new(512).unwrap(),
            kept: 10,
            pages: PageSet::default(),
        };
        for (from, to) in [
            (0, Some(512)),
            (512 * 4 + 1, Some(512 * 6)),
            (512 * 7 - 1, Some(512 * 7 + 1)),
            (900, Some(900)),
        ] {
            written.note(from, to);
        }
        assert_eq!(written.pages.iter().collect::<Vec<_>>(), [1, 5, 6, 7, 8]);
        written.note(512 * 8, None);
        written.note(512 * 9, None);
        assert_eq!(written.kept, 8);
        written.note(512 * 3 + 1, None);
        assert_eq!(written.kept, 3, "the page that is cut in two is not kept");
    }
}
