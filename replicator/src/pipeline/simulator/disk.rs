//! A database on a disk, and what the VFS does with it in one process.

use std::sync::{Arc, Mutex};

use replvfs_vfs::host::{FlushError, Replica};
use replvfs_vfs::log::{Base, Capturing, Continuity, Log};
use replvfs_vfs::resume::{Fingerprint, Left, Mark, Next, Resume};
use replvfs_vfs::snapshot::Snapshot;
use replvfs_vfs::transaction::Transaction;
use replvfs_vfs::types::{Position, Salts, Txid};

use super::model::StateId;
use super::sky::Gate;
use super::world::{Ack, Sim};

/// A database that outlives its processes.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) state: StateId,
    pub(super) wal: Option<Wal>,
    /// That of the database file. It changes with every checkpoint.
    pub(super) print: Fingerprint,
    /// Somebody writes a transaction.
    pub(super) is_locked: bool,
    /// A commit frame that is in the WAL, and not in the wal-index.
    pub(super) unpublished: Option<(StateId, Position)>,
}

/// In the place of a state: a number that is not used again.
pub(super) const ABANDONED: StateId = StateId::MAX;

/// As long as nobody restarts it.
#[derive(Debug, Clone)]
pub(super) struct Wal {
    pub(super) salts: Salts,
    /// Each commit with the place behind it.
    pub(super) commits: Vec<(StateId, Position)>,
    /// So many of them are on the disk whatever happens.
    pub(super) synced: usize,
}

impl Wal {
    pub(super) fn start(&self) -> Position {
        Position {
            salts: self.salts,
            ..Position::default()
        }
    }

    fn end(&self) -> Position {
        self.commits.last().map_or(self.start(), |(_, end)| *end)
    }

    /// How many commits are before a place in it.
    fn find(&self, place: Position) -> Option<usize> {
        if place == self.start() {
            return Some(0);
        }
        let found = self.commits.iter().position(|(_, end)| *end == place);
        found.map(|index| index + 1)
    }
}

impl Disk {
    pub(super) fn new(state: StateId, sim: &Sim) -> Disk {
        Disk {
            state,
            wal: None,
            print: new_print(sim),
            is_locked: false,
            unpublished: None,
        }
    }

    /// A commit by whichever process.
    pub(super) fn commit(&mut self, sim: &Sim) {
        sim.count(|counts| counts.commits += 1);
        let state = sim.commit(self.state);
        let wal = self.wal.get_or_insert_with(|| Wal::new(sim));
        let start = wal.end();
        let end = transaction(sim, state, Txid(0), start).end;
        wal.commits.push((state, end));
        self.state = state;
    }

    pub(super) fn begin_wal(&mut self, sim: &Sim) {
        self.wal = Some(Wal::new(sim));
    }

    pub(super) fn wal_end(&self) -> Position {
        self.wal.as_ref().map_or(Position::NONE, Wal::end)
    }

    /// What was confirmed is committed, and synced.
    pub(super) fn publish(&mut self) {
        if let (Some((state, end)), Some(wal)) = (self.unpublished.take(), &mut self.wal) {
            wal.commits.push((state, end));
            wal.synced = wal.commits.len();
            self.state = state;
        }
    }

    /// All of the WAL is in the file, and another one begins.
    pub(super) fn restart_wal(&mut self, sim: &Sim) {
        self.checkpoint(sim);
        self.wal = Some(Wal::new(sim));
    }

    pub(super) fn checkpoint(&mut self, sim: &Sim) {
        if self.wal.as_ref().is_some_and(|wal| !wal.commits.is_empty()) {
            self.print = new_print(sim);
        }
        self.wal = None;
    }
}

impl Wal {
    fn new(sim: &Sim) -> Wal {
        let salt = sim.rng().next();
        Wal {
            salts: Salts(salt as u32 | 1, (salt >> 32) as u32),
            commits: Vec::new(),
            synced: 0,
        }
    }
}

pub(super) fn new_print(sim: &Sim) -> Fingerprint {
    Fingerprint {
        device: 1,
        inode: sim.rng().next(),
        size: 1,
        modified_ns: (1, 1),
        changed_ns: (1, 1),
    }
}

pub(super) fn transaction(sim: &Sim, state: StateId, txid: Txid, start: Position) -> Transaction {
    let model = sim.model.lock().unwrap();
    let pages = model.pages(state) as u32;
    let mut transaction = Transaction::for_test(txid, model.page_size(), pages, model.frames(state), start);
    drop(model);
    transaction.committed_at = crate::pipeline::shared::now();
    transaction
}

/// What the VFS does in one process.
pub(super) struct Capture {
    pub(super) sim: Arc<Sim>,
    pub(super) log: Arc<Log>,
    pub(super) disk: Arc<Mutex<Disk>>,
    pub(super) gate: Arc<Gate>,
    pub(super) machine: usize,
    pub(super) inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    /// Up to where everything is in the log.
    pub(super) cursor: Option<Cursor>,
    pub(super) pinned: bool,
    pub(super) broken: bool,
    /// Where the WAL before this one ended.
    ended: Option<Position>,
    noted: Option<Salts>,
    /// What has the numbers up to the log's newest.
    pub(super) numbered: Vec<StateId>,
    seen: Option<Txid>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    /// `None` when there is no WAL.
    salts: Option<Salts>,
    commits: usize,
    print: Fingerprint,
}

impl Capture {
    /// As at a read lock: answers what is asked, and captures what was committed.
    pub(super) fn sync(&self) {
        if self.gate.is_closed() {
            return;
        }
        let (disk, mut inner) = (self.disk.lock().unwrap(), self.inner.lock().unwrap());
        self.sync_with(&disk, &mut inner);
    }

    pub(super) fn sync_with(&self, disk: &Disk, inner: &mut Inner) {
        self.prove_cursor(disk, inner);
        match self.log.wanted_for_test() {
            None => {}
            Some(None) => {
                self.push(disk, inner);
                let (continuity, txid) = match self.log.last_txid() {
                    Some(last) if std::mem::take(&mut inner.broken) => (Continuity::Broken, last.next()),
                    Some(last) => (Continuity::Continued, last),
                    None => (Continuity::First, Txid::ZERO),
                };
                inner.broken = false;
                self.base(disk, inner, txid, continuity);
            }
            Some(Some(resume)) => {
                (inner.ended, inner.noted) = (None, None);
                match proof(disk, resume) {
                    Some((commits, ended)) => {
                        if !self.log.answer_for_test(Err(resume.stored.txid)) {
                            return;
                        }
                        inner.broken = false;
                        inner.ended = ended;
                        inner.cursor = Some(Cursor::at(disk, commits));
                        let state = match (&disk.wal, commits.checked_sub(1)) {
                            (Some(wal), Some(last)) => wal.commits[last].0,
                            (Some(wal), None) => wal.before(&self.sim, disk.state),
                            (None, _) => disk.state,
                        };
                        inner.renumber(state);
                    }
                    None => {
                        let newest = resume.left.map_or(resume.stored.txid, |left| left.mark.txid);
                        inner.broken = false;
                        self.sim.unproved.lock().unwrap().push(disk.state);
                        self.sim.count(|counts| counts.unproved_bases += 1);
                        self.base(disk, inner, newest.max(resume.stored.txid).next(), Continuity::Broken);
                    }
                }
            }
        }
        self.push(disk, inner);
    }

    /// Whether the database is still where this process thinks.
    pub(super) fn prove_cursor(&self, disk: &Disk, inner: &mut Inner) {
        let Some(cursor) = inner.cursor else { return };
        let there = disk.wal.as_ref().map(|wal| wal.salts);
        let goes_on = match (cursor.salts, there) {
            (before, now) if before == now => disk.wal.as_ref().is_none_or(|wal| cursor.commits <= wal.commits.len()),
            (None, Some(_)) if cursor.print == disk.print => {
                inner.cursor = Some(Cursor::at(disk, 0));
                true
            }
            _ => false,
        };
        if !goes_on {
            inner.cursor = None;
            inner.broken = true;
            self.sim.unproved.lock().unwrap().push(disk.state);
            self.log.request_base();
        }
    }

    fn base(&self, disk: &Disk, inner: &mut Inner, txid: Txid, continuity: Continuity) {
        let taken = self.log.answer_for_test(Ok(self.state(disk, txid, continuity)));
        inner.cursor = Some(Cursor::at_end(disk));
        // A log that began anew has dropped what was captured before this, without a number.
        if taken && (continuity != Continuity::Continued || inner.numbered.last() != Some(&disk.state)) {
            inner.renumber(disk.state);
        }
    }

    fn state(&self, disk: &Disk, txid: Txid, continuity: Continuity) -> Base {
        let model = self.sim.model.lock().unwrap();
        let (content, page_size) = (model.content(disk.state).to_vec(), model.page_size());
        drop(model);
        Base {
            txid,
            position: disk.wal.as_ref().map_or(Position::NONE, Wal::end),
            taken_at: crate::pipeline::shared::now(),
            continuity,
            snapshot: Snapshot::for_test(page_size, content),
        }
    }

    /// What an image is made of that is due, under the pin.
    fn image(&self) {
        let (disk, inner) = (self.disk.lock().unwrap(), self.inner.lock().unwrap());
        let is_at_end = inner.pinned && inner.cursor == Some(Cursor::at_end(&disk));
        let is_logged = inner.numbered.last() == Some(&disk.state) && !self.log.is_suspended();
        if self.gate.is_closed() || !self.log.image_wanted() || !is_at_end || !is_logged {
            return;
        }
        if let Some(txid) = self.log.last_txid() {
            let state = self.state(&disk, txid, Continuity::Continued);
            self.sim
                .count(|counts| counts.further_images += u64::from(self.log.push_image(state)));
        }
    }

    fn push(&self, disk: &Disk, inner: &mut Inner) {
        let (Some(mut cursor), Some(wal)) = (inner.cursor, &disk.wal) else {
            return;
        };
        let mut start = match cursor.commits.checked_sub(1) {
            Some(last) => wal.commits[last].1,
            None => wal.start(),
        };
        for (state, end) in &wal.commits[cursor.commits.min(wal.commits.len())..] {
            let Some(last) = self.log.last_txid() else { break };
            let txid = last.next();
            self.log.push_transaction(transaction(&self.sim, *state, txid, start));
            if self.log.last_txid() == Some(txid) {
                inner.numbered.push(*state);
            }
            cursor.commits += 1;
            start = *end;
        }
        inner.cursor = Some(cursor);
    }

    /// The WAL has reached its limit.
    pub(super) fn suspend(&self) {
        let mut inner = self.inner.lock().unwrap();
        inner.cursor = None;
        let last = self.log.last_txid();
        inner.broken = last.is_some();
        self.log.suspend();
        if self.log.last_txid() > last {
            inner.numbered.push(ABANDONED);
        }
    }

    /// Writes a commit of this process.
    pub(super) fn commit(&self, replica: &dyn Replica) {
        let (mut disk, mut inner) = (self.disk.lock().unwrap(), self.inner.lock().unwrap());
        self.sync_with(&disk, &mut inner);
        if disk.wal.is_none() {
            disk.begin_wal(&self.sim);
            self.prove_cursor(&disk, &mut inner);
        }
        self.note_wal(&disk, &mut inner, replica);
        disk.commit(&self.sim);
        self.sync_with(&disk, &mut inner);
    }

    /// Everything is in the store: the WAL may begin again.
    pub(super) fn restart_wal(&self, replica: &dyn Replica) {
        let (mut disk, mut inner) = (self.disk.lock().unwrap(), self.inner.lock().unwrap());
        self.sync_with(&disk, &mut inner);
        let end = disk.wal.as_ref().map(Wal::end);
        disk.restart_wal(&self.sim);
        if inner.cursor.take().is_some() {
            inner.cursor = Some(Cursor::at(&disk, 0));
            inner.ended = end;
        }
        self.note_wal(&disk, &mut inner, replica);
    }

    pub(super) fn note_wal(&self, disk: &Disk, inner: &mut Inner, replica: &dyn Replica) {
        let Some(wal) = disk.wal.as_ref().filter(|wal| wal.commits.is_empty()) else {
            return;
        };
        if inner.cursor.is_none() || inner.noted == Some(wal.salts) || self.log.base_wanted() {
            return;
        }
        let end = inner.ended.unwrap_or(wal.start());
        if self.note(end, Next::Wal(wal.salts), replica) {
            inner.noted = Some(wal.salts);
        }
    }

    /// The last connection of all closes: there is no WAL any more.
    pub(super) fn end_wal(&self, replica: &dyn Replica) {
        let (mut disk, mut inner) = (self.disk.lock().unwrap(), self.inner.lock().unwrap());
        self.sync_with(&disk, &mut inner);
        let end = disk.wal.as_ref().map_or(Position::NONE, Wal::end);
        disk.checkpoint(&self.sim);
        let Some(cursor) = &mut inner.cursor else { return };
        *cursor = Cursor::at(&disk, 0);
        inner.noted = None;
        let end = inner.ended.filter(|_| end.frame == 0).unwrap_or(end);
        if !self.log.base_wanted() {
            self.note(end, Next::File(disk.print), replica);
        }
        inner.ended = Some(end);
    }

    fn note(&self, end: Position, next: Next, replica: &dyn Replica) -> bool {
        let drops = self.log.is_suspended() || self.log.failure().is_some();
        if !replica.owns() || !self.log.is_settled() || drops {
            return false;
        }
        let Some(txid) = self.log.last_txid() else { return false };
        let mark = Mark { txid, position: end };
        replica.left(&Left { mark, next })
    }

    /// Tells what was acknowledged since.
    pub(super) fn observe(&self, replica: &dyn Replica) {
        // What is not committed yet may be acknowledged already.
        let acked = self.log.acked().min(self.log.last_txid());
        if acked <= self.inner.lock().unwrap().seen {
            return;
        }
        let status: serde_json::Value = serde_json::from_str(&replica.status()).unwrap();
        let mut inner = self.inner.lock().unwrap();
        let generation = status["generation"].as_u64().unwrap_or_default();
        let last = self.log.last_txid().unwrap_or_default();
        let first = (last.0 + 1).saturating_sub(inner.numbered.len() as u64);
        let begins = self.sim.sky.lock().unwrap().first_image(generation);
        let from = inner.seen.map_or(first, |seen| seen.0 + 1).max(begins);
        // It may have been in the store before it was rolled back, and nobody has it.
        let abandoned = self.log.abandoned().map(|txid| txid.0);
        for txid in (from..=acked.unwrap_or_default().0).filter(|txid| Some(*txid) != abandoned) {
            match inner.state_of(txid, last) {
                Some(ABANDONED) => {}
                Some(state) => self.sim.acknowledged(Ack {
                    generation,
                    txid,
                    state,
                    machine: self.machine,
                    at: self.sim.wall_clock(),
                }),
                None => self
                    .sim
                    .trace(|| format!("    transaction {txid} was acknowledged for what came before")),
            }
        }
        inner.seen = acked;
    }
}

impl Wal {
    /// What the database was when it began.
    fn before(&self, sim: &Sim, now: StateId) -> StateId {
        match self.commits.first() {
            Some((first, _)) => sim.model.lock().unwrap().parent(*first).unwrap_or(now),
            None => now,
        }
    }
}

impl Cursor {
    pub(super) fn at_end(disk: &Disk) -> Cursor {
        Cursor::at(disk, disk.wal.as_ref().map_or(0, |wal| wal.commits.len()))
    }

    fn at(disk: &Disk, commits: usize) -> Cursor {
        Cursor {
            salts: disk.wal.as_ref().map(|wal| wal.salts),
            commits,
            print: disk.print,
        }
    }
}

impl Inner {
    /// The newest number is that of `state`.
    fn renumber(&mut self, state: StateId) {
        self.numbered = vec![state];
    }

    fn state_of(&self, txid: u64, last: Txid) -> Option<StateId> {
        let back = usize::try_from(last.0.checked_sub(txid)?).ok()?;
        let at = self.numbered.len().checked_sub(back + 1)?;
        self.numbered.get(at).copied()
    }
}

/// How many commits of the WAL come before what follows, and where the WAL before it ended.
fn proof(disk: &Disk, resume: Resume) -> Option<(usize, Option<Position>)> {
    let left = resume.left.filter(|left| left.mark.txid == resume.stored.txid);
    let Some(wal) = &disk.wal else {
        let left = left.filter(|left| left.next == Next::File(disk.print))?;
        return Some((0, Some(left.mark.position)));
    };
    if let Some(at) = wal.find(resume.stored.position) {
        return Some((at, None));
    }
    let left = left?;
    if let Some(at) = wal.find(left.mark.position) {
        return Some((at, None));
    }
    let follows = left.next == Next::Wal(wal.salts) || left.next == Next::File(disk.print);
    follows.then_some((0, Some(left.mark.position)))
}

impl Capturing for Capture {
    fn is_to_be_watched(&self) -> bool {
        self.is_pinned()
    }

    fn is_pinned(&self) -> bool {
        self.inner.lock().unwrap().pinned
    }

    fn wal_bytes(&self) -> u64 {
        0
    }

    fn has_news(&self) -> bool {
        let (disk, inner) = (self.disk.lock().unwrap(), self.inner.lock().unwrap());
        let there = disk.wal.as_ref().map_or(0, |wal| wal.commits.len());
        self.log.image_wanted() || inner.cursor.is_none_or(|cursor| cursor.commits < there)
    }

    fn let_writers_by(&self) {}

    fn attend(self: Arc<Self>) -> Result<(), FlushError> {
        self.sync();
        match self.inner.lock().unwrap().cursor {
            Some(_) => Ok(()),
            None => Err(FlushError::passing("nothing is captured")),
        }
    }

    fn look(&self) {
        self.sync();
        self.image();
    }
}
