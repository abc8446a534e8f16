//! From the wal-index's header to transactions in the log.

use std::sync::atomic::Ordering;

use libsqlite3_sys as ffi;

use super::continuity::is_wal_beside;
use super::database::{Capture, Connection, ConnectionState, Cursor, Database};
use crate::base::{FileRef, IndexRegion};
use crate::buffer::{Buffer, Charge};
use crate::transaction::{Frames, Transaction};
use crate::types::{PageSize, Position, Txid};
use crate::wal::{
    Commit, FRAME_HEADER_BYTES, FrameHeader, HEADER_BYTES, IndexHeader, Scan, WalHeader, frame_bytes, frame_offset,
};

/// How much of the WAL is read at once when other processes' frames are.
const GAP_READ_BYTES: usize = 256 << 10;

/// Until it is known how the history goes on, the log may want one thing after another.
const ATTEMPTS: usize = 4;

/// How often what was committed is looked for while somebody writes it.
const LOOKS: usize = 16;

/// What came of looking for what others have committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Synced {
    /// The cursor is where the database is.
    Proved,
    /// It is, if it holds.
    Unproved,
    /// Something may be committed that could not be read now.
    Behind,
    /// The connection's file was renamed or replaced: what is committed there is not of this database.
    Elsewhere,
}

/// Frames that another process committed could not be read.
#[derive(Debug)]
struct Gap(&'static str);

impl Database {
    /// The connection has just got the WAL's write lock: what others committed since is logged before anything of ours.
    pub(crate) fn write_lock_taken(&self, state: &mut ConnectionState) {
        state.mirror.clear();
        state.strict.is_done();
        let (Some(region), Some(wal)) = (state.region, state.wal) else {
            return;
        };
        self.end_aside();
        if self.wants_attention() {
            self.attach(state);
        }
        // Without a valid header the connection is about to recover the WAL, and the barrier in there tells us.
        let Some(header) = region.header() else { return };
        if self.lacks_pin() {
            self.take_pin();
        }
        let mut capture = self.capture();
        if capture
            .cursor
            .is_some_and(|cursor| cursor.position.salts != header.position.salts)
            && self.is_of_another_file(region)
        {
            return self.break_history(
                &mut capture,
                "its file was renamed or replaced while a connection has it open",
            );
        }
        self.catch_up(&mut capture, &header, wal);
        if !self.kept.is_unbroken() && !self.is_of_another_file(region) {
            self.is_proved(&capture, region);
        }
        let broken = capture.cursor.is_none();
        drop(capture);
        if broken && self.wants_attention() {
            self.attach(state);
        }
    }

    /// Brings the cursor to where the wal-index is. Called when nobody can commit meanwhile, or by [`Database::sync`].
    pub(super) fn catch_up(&self, capture: &mut Capture, header: &IndexHeader, wal: FileRef) {
        let Some(cursor) = capture.cursor else { return };
        let (was, is) = (cursor.position, header.position);
        if is.salts == was.salts && is.frame == was.frame && (is.frame == 0 || is.checksum == was.checksum) {
            return;
        }
        // Nothing was in that WAL, and the pin has kept it since: whoever began another one, began with its first frame.
        let was_empty = was.frame == 0 && self.kept.is_unbroken();
        if was_empty && is.frame == 0 {
            capture.cursor = Some(Cursor { position: is, ..cursor });
            return;
        }
        if is.salts != was.salts && !was_empty || is.salts == was.salts && is.frame < was.frame {
            return self.break_history(capture, "its WAL was restarted by a process that does not replicate");
        }
        if let Err(Gap(reason)) = self.log_gap(capture, cursor, header, wal) {
            self.break_history(capture, reason);
        }
    }

    /// Logs the transactions between the cursor and the header, read from the WAL file.
    fn log_gap(&self, capture: &mut Capture, cursor: Cursor, header: &IndexHeader, wal: FileRef) -> Result<(), Gap> {
        let page_size = header.page_size.ok_or(Gap("its wal-index names no page size"))?;
        let start = if cursor.position.frame == 0 {
            let start = start_of(wal, header)?;
            // Another process may have begun it.
            self.note_wal(capture, start.salts);
            start
        } else {
            cursor.position
        };
        let mut scan = Scan::from_position(start, page_size, header.big_endian);
        let frame = scan.frame_bytes();
        let mut buffer = vec![0; (GAP_READ_BYTES / frame).max(1) * frame];
        let mut open = OpenTransaction {
            start,
            bytes: Vec::new(),
            charge: Charge::nothing(&self.budget),
            too_large: false,
        };
        while scan.position().frame < header.position.frame {
            let left = (header.position.frame - scan.position().frame) as usize;
            let part = (left * frame).min(buffer.len());
            let offset = frame_offset(scan.position().frame + 1, page_size);
            // SAFETY: the connection's WAL, on its thread.
            let whole = unsafe { wal.read(&mut buffer[..part], offset) };
            if !matches!(whole, Ok(true)) {
                return Err(Gap("frames that another process wrote could not be read"));
            }
            for bytes in buffer[..part].chunks_exact(frame) {
                let (_, _, commit) = scan
                    .step(bytes)
                    .map_err(|_| Gap("frames that another process wrote do not continue the WAL"))?;
                open.extend(bytes, self.memory);
                if let Some(commit) = commit {
                    self.log_open(capture, &mut open, commit, page_size, header.big_endian)?;
                }
            }
        }
        if scan.position() != header.position || open.start != header.position {
            return Err(Gap("its WAL does not lead to where the wal-index says"));
        }
        Ok(())
    }

    fn log_open(
        &self,
        capture: &mut Capture,
        open: &mut OpenTransaction,
        commit: Commit,
        page_size: PageSize,
        big_endian: bool,
    ) -> Result<(), Gap> {
        let bytes = std::mem::take(&mut open.bytes);
        let frames = if std::mem::take(&mut open.too_large) {
            self.range(open.start, commit.position, page_size)
                .ok_or(Gap("its WAL could not be opened"))?
        } else {
            let charge = open.charge.split(bytes.len() as u64);
            Frames::Memory(Buffer::new(bytes, Some(charge)))
        };
        self.append(capture, open.start, commit, page_size, big_endian, frames);
        capture.foreign = true;
        open.start = commit.position;
        Ok(())
    }

    /// Appends a transaction to the log, and moves the cursor behind it.
    fn append(
        &self,
        capture: &mut Capture,
        start: Position,
        commit: Commit,
        page_size: PageSize,
        big_endian: bool,
        frames: Frames,
    ) {
        if self.log.last_txid().is_none() {
            return;
        }
        self.log.push_next(Transaction {
            txid: Txid::ZERO, // The log's to give.
            committed_at: self.host.now(),
            page_size,
            page_count: commit.page_count,
            start,
            end: commit.position,
            held: false,
            big_endian,
            frames,
        });
        capture.ended = None;
        capture.cursor = Some(Cursor {
            position: commit.position,
            page_size: Some(page_size),
            big_endian,
        });
    }

    /// The connection is between the two copies of the wal-index header.
    pub(crate) fn barrier(&self, state: &mut ConnectionState) {
        if !state.can_publish() {
            return;
        }
        let (Some(region), Some(wal)) = (state.region, state.wal) else {
            return;
        };
        let (before, after) = (region.header_bytes(0), region.header_bytes(1));
        let unchanged = before == after;
        if unchanged && !state.is_exclusive() {
            return;
        }
        let Some(after) = IndexHeader::decode(&after) else {
            return;
        };
        let mut capture = self.capture();
        match IndexHeader::decode(&before) {
            // The file is this connection's alone, to be checkpointed and perhaps without the WAL afterwards: the last
            // opportunity to see what other processes have committed.
            Some(before) if unchanged => self.prove(&mut capture, &before, wal),
            Some(before) => {
                self.prove(&mut capture, &before, wal);
                self.transition(&mut capture, state, &after, wal);
            }
            // Recovery: the header says what was found in the WAL.
            None => self.prove(&mut capture, &after, wal),
        }
    }

    /// This connection takes the database from the cursor to `header`.
    fn transition(&self, capture: &mut Capture, state: &mut ConnectionState, header: &IndexHeader, wal: FileRef) {
        self.finish_confirmed(capture, state, header);
        let Some(cursor) = capture.cursor else {
            state.mirror.clear();
            return;
        };
        let (was, is) = (cursor.position, header.position);
        if is.frame == 0 {
            if was.frame > 0 && is.salts.0 != was.salts.0.wrapping_add(1) {
                // Not walRestartHdr, but a recovery that found nothing.
                return self.break_history(capture, "frames that were committed are not in its WAL any more");
            }
            // The WAL was restarted: all of it is in the database file, and the next frame will be the first.
            let position = Position {
                salts: is.salts,
                frame: 0,
                checksum: [0, 0],
            };
            if was.frame > 0 {
                capture.ended = Some(was);
            }
            capture.cursor = Some(Cursor { position, ..cursor });
            state.mirror.clear();
            return;
        }
        let Some(page_size) = header.page_size else { return };
        let start = if is.salts == was.salts && was.frame > 0 {
            was
        } else {
            // The first frames behind a new WAL header.
            let own = state
                .mirror
                .header()
                .filter(|own| own.salts == is.salts)
                .map(WalHeader::position);
            match own.map_or_else(|| start_of(wal, header), Ok) {
                Ok(start) => start,
                Err(Gap(reason)) => return self.break_history(capture, reason),
            }
        };
        if is.frame <= start.frame {
            // A header was written again without a new frame.
            if is != was {
                self.break_history(capture, "its wal-index went back");
            }
            return;
        }
        let commit = Commit {
            position: is,
            page_count: header.page_count,
        };
        self.log_own(capture, state, start, commit, page_size, header.big_endian);
    }

    /// Logs a transaction of this connection: out of its mirror, or as a range of the WAL.
    fn log_own(
        &self,
        capture: &mut Capture,
        state: &mut ConnectionState,
        start: Position,
        commit: Commit,
        page_size: PageSize,
        big_endian: bool,
    ) {
        if repeats_its_commit(state, start, commit, page_size) {
            // A process that finds these frames counts each, so they are counted alike here.
            state.mirror.clear();
            return self.log_repeated(capture, state, commit, page_size, big_endian);
        }
        let length = u64::from(commit.position.frame - start.frame) * frame_bytes(page_size);
        let frames = match state.mirror.take(start.frame + 1, length, page_size) {
            Some(bytes) => Some(Frames::Memory(bytes)),
            None => self.range(start, commit.position, page_size),
        };
        match frames {
            Some(frames) => {
                self.append(capture, start, commit, page_size, big_endian, frames);
                capture.foreign = false;
            }
            None => self.break_history(
                capture,
                "a transaction larger than memory_limit could not be kept in the WAL",
            ),
        }
    }

    fn log_repeated(
        &self,
        capture: &mut Capture,
        state: &ConnectionState,
        commit: Commit,
        page_size: PageSize,
        big_endian: bool,
    ) {
        let (Some(cursor), Some(wal)) = (capture.cursor, state.wal) else {
            return;
        };
        let header = IndexHeader {
            position: commit.position,
            page_size: Some(page_size),
            page_count: commit.page_count,
            big_endian,
        };
        if let Err(Gap(reason)) = self.log_gap(capture, cursor, &header, wal) {
            self.break_history(capture, reason);
        }
        capture.foreign = false;
    }

    fn range(&self, start: Position, end: Position, page_size: PageSize) -> Option<Frames> {
        let first_byte = frame_offset(start.frame + 1, page_size);
        let end_byte = frame_offset(end.frame + 1, page_size);
        self.wal_range(first_byte, end_byte).map(Frames::Range)
    }

    /// A commit on a connection in heap mode: nothing but the frames themselves tells what it was.
    pub(crate) fn heap_commit(&self, state: &mut ConnectionState) {
        let Some(wal) = state.wal else { return };
        self.finish_unseen(&mut self.capture(), state);
        if state.mirror.is_empty() {
            return; // Nothing was written: whatever stands in the WAL is no part of this commit.
        }
        let mut capture = self.capture();
        if self.unverified.swap(false, Ordering::AcqRel) {
            // The WAL was too large to be looked at before this connection wrote to it.
            self.break_history(
                &mut capture,
                "it may have been written while this process did not have it open",
            );
        }
        let Some(cursor) = capture.cursor else {
            state.mirror.clear();
            return; // The next base has it.
        };
        // After a restart of the WAL this connection has written its header. A cursor that was proved when that had been done knows its salts,
        // but not the checksum from which the first frame goes on.
        let own = state
            .mirror
            .header()
            .copied()
            .filter(|own| own.salts != cursor.position.salts || cursor.position.frame == 0);
        let (start, page_size, big_endian) = match (own, cursor.page_size) {
            (Some(own), _) => (own.position(), own.page_size, own.big_endian),
            (None, Some(page_size)) => (cursor.position, page_size, cursor.big_endian),
            (None, None) => {
                state.mirror.clear();
                return self.break_history(&mut capture, "the place of a commit in its WAL is not known");
            }
        };
        let scan = Scan::from_position(start, page_size, big_endian);
        let commit = match state.mirror.frames(start.frame + 1, page_size) {
            Some(bytes) => Ok(scan.last_commit(bytes)),
            None => last_commit_in(wal, scan),
        };
        let commit = match commit {
            Ok(Some(commit)) => commit,
            // The frames are those of a transaction that was rolled back; the one that ends here wrote nothing.
            Ok(None) => return,
            Err(reason) => {
                state.mirror.clear();
                return self.break_history(&mut capture, reason);
            }
        };
        self.log_own(&mut capture, state, start, commit, page_size, big_endian);
    }

    /// Logs what others have committed, without the write lock. What cannot be read now is left for the next time.
    pub(crate) fn sync(&self, connection: &Connection) -> Synced {
        let mut state = connection.lock();
        let (None, Some(file)) = (state.wal, state.file) else {
            return self.sync_wal(&mut state);
        };
        // SAFETY: the connection's file, on its thread.
        if unsafe { file.has_moved() } {
            return Synced::Elsewhere;
        }
        let proved = self.settle_unlocked(&mut state);
        if self.has_wal() && self.replica.owns() {
            return self.sync_pinned(proved);
        }
        if proved { Synced::Proved } else { Synced::Unproved }
    }

    /// The number behind which nothing of this process is committed by now. When it is acknowledged, all of that is in the store; so there is none
    /// as long as another process numbers what is committed, or nothing does. Waits for the store, up to `close_timeout`, to say how the history
    /// goes on.
    pub(crate) fn final_txid(&self, connection: &Connection) -> Option<Txid> {
        for _ in 0..ATTEMPTS {
            if self.sync(connection) == Synced::Elsewhere {
                return None;
            }
            // A process that lost the database to another one still has the numbers of its own past.
            if !self.replica.owns() {
                return None;
            }
            let (asked, answered) = self.log.asked();
            let (captures, number) = {
                // It ceases to capture, and drops what it had, under one lock.
                let capture = self.capture();
                (capture.cursor.is_some(), self.log.final_txid())
            };
            if let Some(txid) = number {
                return captures.then_some(txid);
            }
            if !answered || !captures {
                return None;
            }
            let settled = self.log.wait_settled_or_asked(asked, self.replica.close_timeout());
            if !settled && self.log.asked().0 == asked {
                return None;
            }
        }
        None
    }

    fn sync_wal(&self, state: &mut ConnectionState) -> Synced {
        if self.wants_attention() {
            self.attach(state);
        }
        let (Some(region), Some(wal)) = (state.region, state.wal) else {
            return Synced::Unproved;
        };
        // A connection of this process that is between the two copies of the header wants to have the capture.
        let found = (0..LOOKS).any(|look| {
            if look > 0 {
                std::thread::yield_now();
            }
            self.sync_with(&mut self.capture(), region, wal)
        });
        let broken = self.capture().cursor.is_none();
        if broken && self.wants_attention() {
            self.attach(state);
        }
        if found { Synced::Unproved } else { Synced::Behind }
    }

    /// The same for a connection that has not opened the WAL which others of this process have.
    fn sync_pinned(&self, proved: bool) -> Synced {
        match self.sync_by_pin() {
            // Without a WAL there is nothing to read in it. Who has the file for himself keeps this connection from reading.
            None if proved && is_wal_beside(&self.path) => Synced::Behind,
            None | Some(true) => Synced::Unproved,
            Some(false) => Synced::Behind,
        }
    }

    /// The same without a connection, by what the pin has open: whether all that was committed is captured. `None` without a pin.
    pub(super) fn sync_by_pin(&self) -> Option<bool> {
        self.take_pin();
        for look in 0..LOOKS {
            if look > 0 {
                std::thread::yield_now();
            }
            let (mut capture, mut guard) = (self.capture(), self.pin_lock());
            let pin = self.held(&mut guard)?;
            let region = pin.region;
            let Some(wal) = pin.wal(self) else { continue };
            if self.wants_attention() {
                self.attach_shared(&mut capture, region, wal);
            }
            if self.sync_with(&mut capture, region, wal) {
                return Some(true);
            }
        }
        Some(false)
    }

    /// Whether all that was committed before is captured.
    pub(super) fn sync_with(&self, capture: &mut Capture, region: IndexRegion, wal: FileRef) -> bool {
        let Some(cursor) = capture.cursor else {
            return true; // The next base has it.
        };
        if self.is_aside() {
            return false;
        }
        let was = cursor.position;
        let (header, is_whole) = match region.header() {
            Some(header) => (header, true),
            // Whoever writes it has one copy in the making. The other one tells at least what was committed before.
            None => match [0, 1]
                .into_iter()
                .find_map(|copy| IndexHeader::decode(&region.header_bytes(copy)))
            {
                Some(header) => (header, false),
                None => return false,
            },
        };
        let is = header.position;
        let goes_on = is.salts == was.salts && is.frame > was.frame;
        if is_whole && (is.salts != was.salts || is.frame < was.frame) {
            // Connections of this process move the cursor before the header, so it was another's.
            self.catch_up(capture, &header, wal);
        } else if goes_on {
            if self.log_gap(capture, cursor, &header, wal).is_err() {
                tracing::debug!(database = %self.path.display(), "the WAL moved on while it was read, or cannot be");
                return false;
            }
        } else if is.salts != was.salts {
            return false; // It may be this process that begins it again.
        }
        self.is_proved(capture, region);
        true
    }
}

/// Frames since the last commit, while a gap is read.
struct OpenTransaction {
    start: Position,
    bytes: Vec<u8>,
    charge: Charge,
    too_large: bool,
}

impl OpenTransaction {
    fn extend(&mut self, frame: &[u8], limit: u64) {
        let bytes = (self.bytes.len() + frame.len()) as u64;
        if self.too_large || bytes > limit || !self.charge.cover(bytes) {
            self.too_large = true;
            self.bytes = Vec::new();
            self.charge.clear();
        } else {
            self.bytes.extend_from_slice(frame);
        }
    }
}

/// Whether a commit frame stands before the last one: without `SQLITE_IOCAP_POWERSAFE_OVERWRITE` SQLite repeats it up to the next sector.
fn repeats_its_commit(state: &ConnectionState, start: Position, commit: Commit, page_size: PageSize) -> bool {
    let before = commit.position.frame - 1;
    if before <= start.frame {
        return false;
    }
    let mut head = [0; FRAME_HEADER_BYTES];
    match state.mirror.frames(start.frame + 1, page_size) {
        Some(bytes) => {
            let at = (before - start.frame - 1) as usize * (FRAME_HEADER_BYTES + page_size.as_usize());
            let Some(there) = bytes.get(at..at + FRAME_HEADER_BYTES) else {
                return false;
            };
            head.copy_from_slice(there);
        }
        None => {
            let Some(wal) = state.wal else { return false };
            // SAFETY: the connection's WAL, on its thread.
            let read = unsafe { wal.read(&mut head, frame_offset(before, page_size)) };
            if !matches!(read, Ok(true)) {
                return false;
            }
        }
    }
    FrameHeader::decode(&head).is_some_and(|frame| frame.commit_page_count != 0)
}

/// The position behind the WAL's header.
fn start_of(wal: FileRef, expected: &IndexHeader) -> Result<Position, Gap> {
    let mut head = [0; HEADER_BYTES];
    // SAFETY: the connection's WAL, on its thread.
    let read = unsafe { wal.read(&mut head, 0) };
    let header = WalHeader::decode(&head)
        .filter(|header| matches!(read, Ok(true)) && header.salts == expected.position.salts)
        .ok_or(Gap("its WAL has another header than the wal-index says"))?;
    Ok(header.position())
}

/// The last commit that the chain in the file reaches.
pub(super) fn last_commit_in(wal: FileRef, mut scan: Scan) -> Result<Option<Commit>, &'static str> {
    let mut frame = vec![0; scan.frame_bytes()];
    let page_size = scan.page_size();
    let mut last = None;
    loop {
        let offset = frame_offset(scan.position().frame + 1, page_size);
        // SAFETY: the connection's WAL, on its thread.
        match unsafe { wal.read(&mut frame, offset) } {
            Ok(true) => {}
            Ok(false) => return Ok(last),
            Err(_) => return Err("its WAL could not be read"),
        }
        match scan.step(&frame) {
            Ok((_, _, commit)) => last = commit.or(last),
            Err(_) => return Ok(last),
        }
    }
}

/// Whether a result code of SQLite is `SQLITE_OK`.
pub(crate) fn is_ok(code: i32) -> bool {
    code == ffi::SQLITE_OK
}
