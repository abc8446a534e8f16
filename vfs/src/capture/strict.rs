//! Commits that nobody sees before they are in the store (`durability=strict`).
//!
//! In WAL mode the header of the commit frame is what makes a transaction: it is the one write that is held back, until the replica has all of it.
//! Before that the WAL has no commit frame, on disk and after a crash. Without a WAL the moment is `SQLITE_FCNTL_SYNC`: all pages are in the
//! file, and the journal, which takes them back, is still there. Owns holding back, and what is abandoned. Leaves waiting to the replica.

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::sync::Arc;

use libsqlite3_sys as ffi;

use super::database::{Capture, Connection, ConnectionState, Cursor, Database};
use super::header::DatabaseHeader;
use super::is_ok;
use crate::base::{Code, FileRef};
use crate::host::{Durability, FlushError};
use crate::transaction::{Frames, Transaction, WalRange};
use crate::types::{PageSize, Position, Txid};
use crate::wal::{
    FRAME_HEADER_BYTES, FrameHeader, HEADER_BYTES, IndexHeader, WalHeader, checksum, frame_bytes, frame_offset,
};

thread_local! {
    /// The databases of confirmed commits whose journals this thread ends next: those of several that are attached, one after the other.
    static ENDS_CONFIRMED: RefCell<Vec<CString>> = const { RefCell::new(Vec::new()) };
}

/// Whether a journal is deleted that must not come back after a power failure: SQLite syncs its folder with `synchronous=EXTRA` only.
pub(crate) fn ends_confirmed(journal: &CStr) -> bool {
    let database = journal.to_bytes().strip_suffix(b"-journal");
    let ends = |ends: &RefCell<Vec<CString>>| ends.borrow().iter().any(|path| Some(path.to_bytes()) == database);
    ENDS_CONFIRMED.try_with(ends).unwrap_or(false)
}

/// The journal was deleted, and its folder synced.
pub(crate) fn has_ended(journal: &CStr) {
    let database = journal.to_bytes().strip_suffix(b"-journal");
    let _ = ENDS_CONFIRMED.try_with(|ends| ends.borrow_mut().retain(|path| Some(path.to_bytes()) != database));
}

/// Notes whether the database's journal is one of those. Tells whether it was.
fn set_ends_confirmed(database: &CStr, now: bool) -> bool {
    let note = |ends: &RefCell<Vec<CString>>| {
        let mut ends = ends.borrow_mut();
        if ends.is_empty() && !now {
            return false; // As at each commit in WAL mode.
        }
        let before = ends.len();
        ends.retain(|path| path.as_c_str() != database);
        let was = ends.len() < before;
        if now {
            ends.push(database.to_owned());
        }
        was
    };
    ENDS_CONFIRMED.try_with(note).unwrap_or(false)
}

/// How much of a WAL is copied at once.
const COPIED_BYTES: u64 = 1 << 20;
const SMALLEST_PAGE: usize = 512;

/// What a connection is about to commit.
#[derive(Debug, Default)]
pub(crate) struct StrictState {
    held: Option<HeldFrame>,
    /// Where a commit frame has a header that is no header yet: SQLite writes it once more, when the page is there already.
    placeholder: Option<u64>,
    confirmed: Option<Confirmed>,
    /// All that this commit is has been confirmed.
    done: bool,
    /// A transaction is about to be written through a journal: up to now the file is the database, with its lock, whatever its header says.
    pub(super) begins: bool,
    /// Why that transaction will not be committed.
    unready: Option<String>,
}

/// A commit frame that is not in the file.
#[derive(Debug, Clone)]
struct HeldFrame {
    /// Where it belongs, in bytes.
    offset: u64,
    number: u32,
    /// Its header, perhaps with the page.
    bytes: Vec<u8>,
    header: FrameHeader,
    wal: WalHeader,
}

impl HeldFrame {
    fn page_offset(&self) -> u64 {
        self.offset + FRAME_HEADER_BYTES as u64
    }

    fn end(&self) -> u64 {
        self.offset + frame_bytes(self.wal.page_size)
    }

    fn position(&self) -> Position {
        Position {
            salts: self.header.salts,
            frame: self.number,
            checksum: self.header.checksum,
        }
    }
}

/// A transaction that is in the store, and not committed yet.
#[derive(Debug, Clone, Copy)]
struct Confirmed {
    txid: Txid,
    position: Position,
    page_size: PageSize,
    big_endian: bool,
}

impl StrictState {
    /// Whether all that is being committed has been confirmed. Asked once.
    pub(crate) fn is_done(&mut self) -> bool {
        std::mem::take(&mut self.done)
    }
}

/// Forwards a write to the file.
type Forward<'a> = &'a mut dyn FnMut(&[u8], u64) -> i32;

fn refusal(reason: &str) -> FlushError {
    FlushError::new(reason)
}

impl Connection {
    pub(crate) fn is_strict(&self) -> bool {
        self.durability() == Durability::Strict
    }

    /// Waits for the replica. `None`: the transaction is to be rolled back, and why was said.
    fn hold(&self, propose: &mut dyn FnMut() -> Result<Option<Txid>, FlushError>) -> Option<Txid> {
        let database = &self.database;
        let held = database.replica.hold(&mut || database.attend(self), propose);
        match held {
            Ok(txid) => Some(txid),
            Err(error) => {
                self.refuse(&error.to_string());
                let (abandoned, last) = (database.log.abandoned(), database.log.last_txid());
                let mut capture = database.capture();
                if abandoned.is_some() && abandoned == last && !capture.broken {
                    database.is_abandoned(&mut capture);
                }
                None
            }
        }
    }

    fn refuse(&self, reason: &str) {
        let message =
            format!("a transaction is rolled back, since it cannot be confirmed (durability=strict): {reason}");
        self.refused(ffi::SQLITE_IOERR, &message);
    }

    fn refuse_now(&self, reason: &str) -> bool {
        self.refuse(reason);
        false
    }

    /// A write to the WAL that is not simply forwarded: its result code.
    pub(crate) fn holds_back(&self, offset: i64, data: &[u8], forward: Forward<'_>) -> Option<i32> {
        let offset = u64::try_from(offset).ok()?;
        let mut state = self.lock();
        if let Some(held) = state.strict.held.take() {
            drop(state);
            return Some(self.write_page(held, offset, data, forward));
        }
        // In heap mode nothing else tells that it was rolled back.
        self.database.wrote_wal(&mut state, offset);
        self.database.went_on(&mut state);
        if state.strict.confirmed.is_some() {
            return None; // Copies of the commit frame, up to the end of the sector.
        }
        let held = commit_frame(&mut state, offset, data)?;
        let is_whole = data.len() > FRAME_HEADER_BYTES || state.strict.placeholder == Some(offset);
        state.mirror.write(offset, data);
        state.writes.wrote_wal(offset);
        if is_whole {
            drop(state);
            return Some(self.commit_held(held, forward));
        }
        state.strict.held = Some(held);
        Some(ffi::SQLITE_OK)
    }

    /// The page of the frame that is held back, or a part of it.
    fn write_page(&self, held: HeldFrame, offset: u64, data: &[u8], forward: Forward<'_>) -> i32 {
        let end = offset.saturating_add(data.len() as u64);
        if offset < held.page_offset() || end > held.end() {
            return self.roll_back("SQLite does not write its frames as it is known to");
        }
        let code = forward(data, offset);
        let mut state = self.lock();
        if !is_ok(code) {
            state.mirror.clear();
            return code;
        }
        state.mirror.write(offset, data);
        if end < held.end() {
            state.strict.held = Some(held);
            return code;
        }
        drop(state);
        self.commit_held(held, forward)
    }

    /// All of the transaction is in the file but what is held back.
    fn commit_held(&self, held: HeldFrame, forward: Forward<'_>) -> i32 {
        self.lock().strict.placeholder = None;
        if !self.is_whole(&held) {
            return self.roll_back("its last frame is not the one that SQLite has announced");
        }
        let mut proposed = None;
        let mut propose = || self.propose_frames(&held, &mut proposed);
        let Some(txid) = self.hold(&mut propose) else {
            self.lock().mirror.clear();
            return ffi::SQLITE_IOERR_WRITE;
        };
        let code = forward(&held.bytes, held.offset);
        let mut state = self.lock();
        state.strict.confirmed = Some(Confirmed {
            txid,
            position: held.position(),
            page_size: held.wal.page_size,
            big_endian: held.wal.big_endian,
        });
        // With synchronous=NORMAL SQLite does not sync it. After a power failure it would be missing, though it was confirmed, and be taken for one that never
        // was committed.
        // SAFETY: the connection's WAL, on its thread.
        let is_there = is_ok(code) && state.wal.is_some_and(|wal| unsafe { wal.sync() }.is_ok());
        if !is_there {
            // Else it might be taken for committed after a crash.
            let _ = forward(&[0; FRAME_HEADER_BYTES], held.offset);
            self.database.abandon_confirmed(&mut state);
            state.mirror.clear();
            return ffi::SQLITE_IOERR_WRITE;
        }
        code
    }

    fn roll_back(&self, reason: &str) -> i32 {
        self.refuse(reason);
        let mut state = self.lock();
        state.mirror.clear();
        state.strict = StrictState::default();
        ffi::SQLITE_IOERR_WRITE
    }

    /// Whether the last frame's checksum is that of its page, behind the frame before.
    fn is_whole(&self, held: &HeldFrame) -> bool {
        let state = self.lock();
        let Some(wal) = state.wal else { return false };
        let mut page = vec![0; held.wal.page_size.as_usize()];
        match held.bytes.get(FRAME_HEADER_BYTES..) {
            Some(there) if !there.is_empty() => page.copy_from_slice(there),
            // SAFETY: the connection's WAL, on its thread.
            _ => match unsafe { wal.read(&mut page, held.page_offset()) } {
                Ok(true) => {}
                _ => return false,
            },
        }
        let Some(before) = checksum_before(wal, held) else {
            return false;
        };
        let sum = checksum(held.wal.big_endian, &held.bytes[..8], before);
        checksum(held.wal.big_endian, &page, sum) == held.header.checksum
    }

    fn propose_frames(&self, held: &HeldFrame, proposed: &mut Option<Transaction>) -> Result<Option<Txid>, FlushError> {
        let mut state = self.lock();
        let capture = self.database.capture();
        let Some(start) = start_of(&capture, &state, held) else {
            return Err(refusal("what was committed before it is not known"));
        };
        let transaction = match proposed.take().filter(|transaction| transaction.start == start) {
            Some(transaction) => transaction,
            None => self.database.tentative(&mut state, start, held)?,
        };
        match self.database.log.push_tentative(transaction) {
            Ok(txid) => Ok(Some(txid)),
            Err(transaction) => {
                *proposed = Some(transaction);
                Ok(None)
            }
        }
    }

    /// Before each write of the database file. If a transaction begins with it, there is no other opportunity for a base before the commit, which cannot be
    /// held back without one.
    pub(crate) fn before_strict_write(&self) {
        if !self.is_strict() {
            return;
        }
        let mut state = self.lock();
        let begins = state.wal.is_none() && state.is_exclusive() && state.rollback.is_to_begin();
        // Who finishes what another one began has no database yet.
        if !begins || state.writes.finishes() {
            return;
        }
        let database = &self.database;
        state.strict.unready = None;
        if !database.is_ready() && state.has_content() && database.replica.owns() {
            state.strict.begins = true;
            drop(state);
            let ready = database.replica.flush(&mut || database.attend(self));
            state = self.lock();
            state.strict.begins = false;
            state.strict.unready = ready.err().map(|error| error.to_string());
        }
        state.rollback.is_finished();
    }

    /// `SQLITE_FCNTL_SYNC` on a connection without a WAL: whether it may go on. If not, SQLite plays its journal back.
    pub(crate) fn may_commit(&self) -> bool {
        let may = self.is_confirmed_first();
        let ends = may && self.is_strict() && self.lock().wal.is_none();
        set_ends_confirmed(&self.database.c_path, ends);
        may
    }

    /// The journal has ended. SQLite leaves it to the system, up to `synchronous=FULL`, when that is on the disk.
    pub(crate) fn journal_ended(&self) {
        let database = &self.database;
        let ends = set_ends_confirmed(&database.c_path, false);
        if !ends || self.lock().journal_in_memory {
            return;
        }
        if let Err(Code(code)) = database.vfs.sync_journal(&database.c_path) {
            database.warn(&format!(
                "the end of the journal could not be synced (SQLite code {code}): a power failure may take back here what is in the replica"
            ));
        }
    }

    fn is_confirmed_first(&self) -> bool {
        let mut state = self.lock();
        if state.strict.confirmed.is_some() {
            // A journal was played back after all.
            self.database.abandon_confirmed(&mut state);
            state.rollback.is_rolled_back();
            return true;
        }
        let (None, Some(file), true) = (state.wal, state.file, self.is_strict()) else {
            return true;
        };
        // SAFETY: the connection's file, on its thread.
        let commits = unsafe { state.commits(file) };
        let unready = state.strict.unready.take();
        drop(state);
        match (commits, unready) {
            (Ok(false), _) => return true,
            (Ok(true), None) => {}
            (_, Some(reason)) => return self.refuse_now(&reason),
            (Err(reason), None) => return self.refuse_now(reason),
        }
        let mut page_size = None;
        let mut propose = || {
            let state = self.lock();
            let capture = self.database.capture();
            let transaction = self.database.tentative_pages(&capture, &state).map_err(refusal)?;
            page_size = Some(transaction.page_size);
            Ok(self.database.log.push_tentative(transaction).ok())
        };
        let held = self.hold(&mut propose);
        let (Some(txid), Some(page_size)) = (held, page_size) else {
            return false;
        };
        self.lock().strict.confirmed = Some(Confirmed {
            txid,
            position: Position::NONE,
            page_size,
            big_endian: false,
        });
        true
    }
}

impl ConnectionState {
    /// Whether the file is a database by now.
    fn has_content(&self) -> bool {
        // SAFETY: the connection's file, on its thread.
        let header = self.file.map(|file| unsafe { DatabaseHeader::read(file) });
        !matches!(header, None | Some(Ok(None))) && !matches!(header, Some(Ok(Some(header))) if header.is_blank())
    }
}

impl Database {
    /// Whether a transaction can begin that is held back at its end.
    fn is_ready(&self) -> bool {
        self.log.is_settled() && !self.log.base_wanted() && self.capture().cursor.is_some()
    }

    /// The connection is about to publish what is confirmed, or something else.
    pub(super) fn finish_confirmed(&self, capture: &mut Capture, state: &mut ConnectionState, header: &IndexHeader) {
        let Some(confirmed) = state.strict.confirmed.take() else {
            return;
        };
        let (is, ours) = (header.position, confirmed.position);
        let has_it = is.salts == ours.salts && (is.frame > ours.frame || is == ours);
        if !has_it {
            state.strict.confirmed = Some(confirmed);
            self.abandon_in(capture, state);
            return;
        }
        self.finish_now(capture, state, confirmed);
        state.strict.done = is == ours;
    }

    /// The connection has committed what is confirmed. No header tells.
    pub(super) fn finish_unseen(&self, capture: &mut Capture, state: &mut ConnectionState) -> bool {
        let Some(confirmed) = state.strict.confirmed.take() else {
            return false;
        };
        self.finish_now(capture, state, confirmed);
        state.strict.done = state.mirror.is_empty();
        true
    }

    fn finish_now(&self, capture: &mut Capture, state: &mut ConnectionState, confirmed: Confirmed) {
        state.strict.placeholder = None;
        capture.cursor = Some(Cursor {
            position: confirmed.position,
            page_size: Some(confirmed.page_size),
            big_endian: confirmed.big_endian,
        });
        capture.ended = None;
        capture.foreign = false;
        self.log.finish(confirmed.txid);
        self.replica.finished();
    }

    /// In heap mode nothing else tells that what is confirmed was committed, where `COMMIT_PHASETWO` does not come: another database of the same transaction
    /// has failed. Without copies of the commit frame, what is written behind it is another transaction.
    fn went_on(&self, state: &mut ConnectionState) {
        if state.strict.confirmed.is_none() || state.region.is_some() {
            return;
        }
        // SAFETY: the connection's file, on its thread.
        if state.file.is_some_and(|file| unsafe { file.overwrites_safely() }) {
            self.finish_unseen(&mut self.capture(), state);
            state.strict.done = false;
        }
    }

    /// The commit frame of what is rolled back is in the WAL, where a recovery would take it for committed.
    fn take_back_frame(&self, state: &mut ConnectionState) {
        // In heap mode it cannot be told for certain that it was not committed.
        let (Some(confirmed), Some(wal), Some(region)) = (state.strict.confirmed, state.wal, state.region) else {
            return;
        };
        let ours = confirmed.position;
        let is_published = |is: Position| is.salts == ours.salts && is.frame >= ours.frame;
        if region.header().is_some_and(|header| !is_published(header.position)) {
            let at = frame_offset(ours.frame, confirmed.page_size);
            // SAFETY: the connection's WAL, on its thread, and it has the write lock (the callers).
            let _ = unsafe { wal.write(&[0; FRAME_HEADER_BYTES], at) };
        }
    }

    /// What the connection wrote was rolled back, as far as it was not committed.
    pub(crate) fn roll_back_confirmed(&self, state: &mut ConnectionState) {
        self.abandon_confirmed(state);
        state.strict.held = None;
        state.strict.placeholder = None;
    }

    /// The same while the connection has the WAL's write lock: its commit frame must not stay in the file either.
    pub(crate) fn take_back(&self, state: &mut ConnectionState) {
        self.take_back_frame(state);
        self.roll_back_confirmed(state);
    }

    /// The connection writes to the WAL: over what is confirmed?
    pub(crate) fn wrote_wal(&self, state: &mut ConnectionState, offset: u64) {
        // Where COMMIT_PHASETWO did not come it would be taken for the next one's.
        state.strict.done = false;
        if let Some(confirmed) = state.strict.confirmed
            && offset < frame_offset(confirmed.position.frame + 1, confirmed.page_size)
        {
            self.abandon_confirmed(state);
        }
    }

    /// What is confirmed will not be committed.
    pub(crate) fn abandon_confirmed(&self, state: &mut ConnectionState) {
        if state.strict.confirmed.is_some() {
            self.abandon_in(&mut self.capture(), state);
        }
    }

    fn abandon_in(&self, capture: &mut Capture, state: &mut ConnectionState) {
        if let Some(confirmed) = state.strict.confirmed.take() {
            self.log.abandon(confirmed.txid);
            self.is_abandoned(capture);
        }
    }

    /// A transaction that was rolled back is in the store, or may be. The base that comes next has a number of its own.
    fn is_abandoned(&self, capture: &mut Capture) {
        capture.broken = capture.started;
        self.warn(
            "a transaction that was rolled back may be in the replica; the history goes on with a new image, and leaves it aside",
        );
    }

    fn tentative(
        &self,
        state: &mut ConnectionState,
        start: Position,
        held: &HeldFrame,
    ) -> Result<Transaction, FlushError> {
        let page_size = held.wal.page_size;
        let length = u64::from(held.number.saturating_sub(start.frame)) * frame_bytes(page_size);
        let frames = match state.mirror.take(start.frame + 1, length, page_size) {
            Some(bytes) => Frames::Memory(bytes),
            None => {
                let copied = state.wal.map(|wal| self.copy_frames(wal, start, held));
                let copied = copied.and_then(Result::ok);
                Frames::Range(copied.ok_or_else(|| refusal("it could not be copied"))?)
            }
        };
        Ok(Transaction {
            txid: Txid::ZERO,
            committed_at: self.host.now(),
            page_size,
            page_count: held.header.commit_page_count,
            start,
            end: held.position(),
            held: true,
            big_endian: held.wal.big_endian,
            frames,
        })
    }

    /// The frames in a file of our own: the WAL does not have the last one yet.
    fn copy_frames(&self, wal: FileRef, start: Position, held: &HeldFrame) -> std::io::Result<Arc<WalRange>> {
        use std::os::unix::fs::FileExt;
        let file = self.spill_file()?;
        let (first, end) = (frame_offset(start.frame + 1, held.wal.page_size), held.end());
        let mut buffer = vec![0; usize::try_from((end - first).min(COPIED_BYTES)).unwrap_or(0)];
        let mut at = first;
        while at < end {
            let part = usize::try_from(end - at).unwrap_or(buffer.len()).min(buffer.len());
            // SAFETY: the connection's WAL, on its thread. Behind its end there is nothing but what is held back.
            unsafe { wal.read(&mut buffer[..part], at) }
                .map_err(|code| std::io::Error::other(format!("SQLite code {}", code.0)))?;
            file.write_all_at(&buffer[..part], at - first)?;
            at += part as u64;
        }
        file.write_all_at(&held.bytes, held.offset - first)?;
        Ok(WalRange::in_file(Arc::new(file), 0, first, end))
    }
}

/// The frame whose header is written, if it is a commit's and valid.
fn commit_frame(state: &mut ConnectionState, offset: u64, data: &[u8]) -> Option<HeldFrame> {
    // No page has such a length.
    let head = data
        .first_chunk()
        .filter(|_| data.len() % SMALLEST_PAGE == FRAME_HEADER_BYTES)?;
    let header = FrameHeader::decode(head).filter(|header| header.commit_page_count != 0)?;
    let mut first = [0; HEADER_BYTES];
    // SAFETY: the connection's WAL, on its thread.
    let whole = unsafe { state.wal?.read(&mut first, 0) };
    let wal = WalHeader::decode(&first).filter(|_| matches!(whole, Ok(true)))?;
    let frame = frame_bytes(wal.page_size);
    let behind = offset.checked_sub(HEADER_BYTES as u64)?;
    let is_frame = data.len() == FRAME_HEADER_BYTES || data.len() as u64 == frame;
    if behind % frame != 0 || !is_frame {
        return None;
    }
    if header.salts != wal.salts {
        state.strict.placeholder = Some(offset);
        return None;
    }
    Some(HeldFrame {
        offset,
        number: u32::try_from(behind / frame).ok()?.checked_add(1)?,
        bytes: data.to_vec(),
        header,
        wal,
    })
}

/// What the frame before it ends with.
fn checksum_before(wal: FileRef, held: &HeldFrame) -> Option<[u32; 2]> {
    if held.number == 1 {
        return Some(held.wal.checksum);
    }
    let mut head = [0; FRAME_HEADER_BYTES];
    // SAFETY: the connection's WAL, on its thread (the callers).
    let whole = unsafe { wal.read(&mut head, frame_offset(held.number - 1, held.wal.page_size)) };
    let before = FrameHeader::decode(&head).filter(|_| matches!(whole, Ok(true)))?;
    Some(before.checksum)
}

/// Where the transaction with this frame begins: behind what is in the log.
fn start_of(capture: &Capture, state: &ConnectionState, held: &HeldFrame) -> Option<Position> {
    let was = capture.cursor?.position;
    let began_anew = || {
        let own = state.mirror.header();
        was.frame == 0 || own.is_some_and(|own| own.salts == held.wal.salts)
    };
    let start = if was.salts == held.wal.salts && was.frame > 0 {
        was
    } else if began_anew() {
        held.wal.position()
    } else {
        return None;
    };
    (start.frame < held.number).then_some(start)
}
