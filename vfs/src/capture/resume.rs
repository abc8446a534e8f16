//! Proof that the database goes on from what an earlier process left in the store, or in a spill file.

use std::sync::atomic::Ordering;

use super::continuity::Fingerprint;
use super::database::{Capture, Cursor, Database};
use super::header::DatabaseHeader;
use super::settle::Known;
use crate::base::FileRef;
use crate::log::Question;
use crate::resume::{Next, Resume};
use crate::spill;
use crate::transaction::Transaction;
use crate::types::{PageSize, Position, Salts};
use crate::wal::{FRAME_HEADER_BYTES, FrameHeader, HEADER_BYTES, IndexHeader, WalHeader, frame_offset};

impl Database {
    /// Answers the question whether the history goes on: with the resumption and what was committed since, or by preparing a base that is
    /// marked broken.
    pub(super) fn resume(
        &self,
        capture: &mut Capture,
        resume: Resume,
        question: Question,
        header: &IndexHeader,
        wal: FileRef,
    ) {
        self.forget_cursor(capture);
        let Some((position, carried)) = self.proved(&resume, header, wal) else {
            return self.unproved(capture, &resume);
        };
        if !self.log.push_resumed(resume.stored.txid, question) {
            return; // Another question by now.
        }
        capture.broken = false;
        capture.unproved = None;
        let carried_from = resume.left.map(|left| left.mark.position);
        if carried.is_empty() {
            self.remove_stale_spill();
        }
        for transaction in carried {
            self.log.push_transaction(transaction);
        }
        capture.cursor = Some(Cursor {
            position,
            page_size: header.page_size,
            big_endian: header.big_endian,
        });
        if position.frame == 0 && carried_from.is_some() {
            capture.ended = carried_from;
        }
        self.catch_up(capture, header, wal);
        // Who left it behind is gone.
        capture.foreign = false;
    }

    /// The same where there is no WAL: the file itself must be the noted one.
    pub(super) fn resume_file(
        &self,
        capture: &mut Capture,
        resume: Resume,
        question: Question,
        header: DatabaseHeader,
    ) {
        let left = resume.left.filter(|left| left.mark.txid == resume.stored.txid);
        let same =
            left.is_some_and(|left| matches!(left.next, Next::File(file) if Fingerprint::of(&self.path) == Some(file)));
        self.forget_cursor(capture);
        if !same {
            return self.unproved(capture, &resume);
        }
        if !self.log.push_resumed(resume.stored.txid, question) {
            return;
        }
        capture.broken = false;
        capture.unproved = None;
        capture.cursor = Some(Cursor {
            position: Position::NONE,
            page_size: header.page_size(),
            big_endian: false,
        });
        capture.known = Known::with(header, &self.path);
    }

    fn forget_cursor(&self, capture: &mut Capture) {
        self.unverified.store(false, Ordering::Release);
        capture.cursor = None;
        capture.left_behind = None;
        capture.ended = None;
        capture.noted = None;
        // Its file may be read from, by what is loaded, so it is not to be written any more.
        capture.spill = None;
        capture.started = true;
    }

    /// The history goes on with a base that is marked broken.
    fn unproved(&self, capture: &mut Capture, resume: &Resume) {
        let stored = resume.stored.txid;
        let newest = resume.left.map_or(stored, |left| left.mark.txid.max(stored));
        if capture.unproved != Some(newest) {
            self.warn("it may have been written while no process replicated it; the history goes on with a new image");
        }
        capture.broken = true;
        capture.unproved = Some(newest);
    }

    /// The place from which the WAL goes on, and the transactions before it that are not in the store.
    fn proved(&self, resume: &Resume, header: &IndexHeader, wal: FileRef) -> Option<(Position, Vec<Transaction>)> {
        if contains(header, wal, resume.stored.position) {
            return Some((resume.stored.position, Vec::new()));
        }
        let left = resume.left.filter(|left| left.mark.txid >= resume.stored.txid)?;
        let from_the_start = Position {
            salts: header.position.salts,
            frame: 0,
            checksum: [0, 0],
        };
        let position = match left.next {
            _ if contains(header, wal, left.mark.position) => left.mark.position,
            Next::Wal(salts) if salts == header.position.salts => from_the_start,
            Next::Wal(salts) if begun_only(header, left.mark.position.salts) && salts_of(wal) == Some(salts) => {
                from_the_start
            }
            // Whatever is in a WAL beside it was written to it since: a checkpoint would have changed the file.
            Next::File(file) if Fingerprint::of(&self.path) == Some(file) => from_the_start,
            Next::Wal(_) | Next::File(_) => return None,
        };
        let carried = if left.mark.txid > resume.stored.txid {
            spill::load(&self.path, resume.stored, left.mark)?
        } else {
            Vec::new()
        };
        Some((position, carried))
    }
}

/// Whether a WAL leads through this place. Checksums are cumulative, so the frame before it proves all frames before.
fn contains(header: &IndexHeader, wal: FileRef, place: Position) -> bool {
    let now = header.position;
    if place.salts != now.salts || place.salts == Salts::default() || place.frame > now.frame {
        return false;
    }
    if place.frame == 0 {
        return true;
    }
    if place.frame == now.frame {
        return place.checksum == now.checksum;
    }
    let Some(page_size) = header.page_size else {
        return false;
    };
    frame_header(wal, place.frame, page_size)
        .is_some_and(|frame| frame.salts == place.salts && frame.checksum == place.checksum)
}

/// Whether nothing was committed in a WAL whose header may have been written already: recovery found nothing, and did not even take its salts
/// over, or the wal-index still tells of the restart that ended the WAL before. After any other restart the header in the file is that of a WAL
/// in which something was committed.
fn begun_only(header: &IndexHeader, before: Salts) -> bool {
    let now = header.position;
    now.frame == 0 && (now.salts == Salts::default() || now.salts.0 == before.0.wrapping_add(1))
}

/// The salts that the WAL's header has on the disk.
fn salts_of(wal: FileRef) -> Option<Salts> {
    let mut bytes = [0; HEADER_BYTES];
    // SAFETY: the connection's WAL, on its thread, or the pin's under its lock.
    let read = unsafe { wal.read(&mut bytes, 0) };
    matches!(read, Ok(true)).then(|| WalHeader::decode(&bytes).map(|header| header.salts))?
}

fn frame_header(wal: FileRef, frame: u32, page_size: PageSize) -> Option<FrameHeader> {
    let mut bytes = [0; FRAME_HEADER_BYTES];
    // SAFETY: the connection's WAL, on its thread, or the pin's under its lock.
    let read = unsafe { wal.read(&mut bytes, frame_offset(frame, page_size)) };
    matches!(read, Ok(true)).then(|| FrameHeader::decode(&bytes))?
}
