//! A machine for the tests: a database with a WAL that outlives its processes, and processes that replicate it. What the VFS would capture is
//! pushed into the log here.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use opendal::Operator;
use replvfs_vfs::host::{FlushError, Replica};
use replvfs_vfs::log::{Base, Capturing, Continuity, Log};
use replvfs_vfs::resume::{Left, Next, Resume};
use replvfs_vfs::snapshot::Snapshot;
use replvfs_vfs::transaction::Transaction;
use replvfs_vfs::types::{PageSize, Pgno, Position, Salts, Txid, UnixMillis};
use tokio::task::JoinHandle;

use crate::config::Retention;
use crate::format::LocalState;
use crate::history::Target;
use crate::local_state;
use crate::pipeline::due::Rule;
use crate::pipeline::replica::{DatabaseReplica, Patience};
use crate::pipeline::shared::Shared;
use crate::pipeline::task::{Plan, Task};
use crate::pipeline::upkeep::{self, Schedule};
use crate::restore::{RestoreOptions, restore};
use crate::store::{Store, StoreOptions};

pub(super) const PAGE: usize = 512;

pub(super) fn page_size() -> PageSize {
    PageSize::new(PAGE as u32).unwrap()
}

fn first_page() -> Vec<u8> {
    let mut page = vec![0; PAGE];
    page[16..18].copy_from_slice(&(PAGE as u16).to_be_bytes());
    page
}

/// The second of two pages says which commit was the last.
fn content(value: u8) -> Vec<u8> {
    let mut bytes = first_page();
    bytes.extend(vec![value; PAGE]);
    bytes
}

/// The WAL of a database, as long as nobody restarts it.
#[derive(Debug, Clone)]
pub(super) struct Wal {
    salts: Salts,
    /// What was in the database before.
    before: u8,
    pub(super) commits: Vec<u8>,
}

impl Wal {
    pub(super) fn new(salt: u32, before: u8) -> Wal {
        let salts = Salts(salt, salt);
        Wal {
            salts,
            before,
            commits: Vec::new(),
        }
    }

    fn start(&self) -> Position {
        Position {
            salts: self.salts,
            ..Position::default()
        }
    }

    /// All of them, numbered from the one after `before`, as a process sees them.
    pub(super) fn transactions(&self, before: u64, seen_by: i64) -> Vec<Transaction> {
        let mut start = self.start();
        (before + 1..)
            .zip(&self.commits)
            .map(|(txid, value)| {
                let pages = [(Pgno::new(2).unwrap(), vec![*value; PAGE])];
                let mut transaction = Transaction::for_test(Txid(txid), page_size(), 2, &pages, start);
                transaction.committed_at = UnixMillis(seen_by);
                start = transaction.end;
                transaction
            })
            .collect()
    }

    /// The places behind each of its commits, the one before them first.
    fn places(&self) -> Vec<Position> {
        let ends = self.transactions(0, 0).into_iter().map(|transaction| transaction.end);
        std::iter::once(self.start()).chain(ends).collect()
    }
}

/// The database, its folder, and its replica.
#[derive(Debug)]
pub(super) struct Machine {
    folder: tempfile::TempDir,
    pub(super) wal: Arc<Mutex<Wal>>,
    pub(super) uri: String,
    pub(super) upkeep: Schedule,
    pub(super) images: Rule,
    /// In place of what the URI says, for those that write.
    pub(super) operator: Option<Operator>,
}

impl Machine {
    /// With a replica in a folder, and one in memory.
    pub(super) fn both(name: &str) -> [Machine; 2] {
        let folder = Machine::new();
        let memory = Machine {
            uri: format!("memory://machine-{name}"),
            ..Machine::new()
        };
        [folder, memory]
    }

    /// Another machine with the same replica, and nothing else.
    pub(super) fn beside(&self) -> Machine {
        Machine {
            uri: self.uri.clone(),
            ..Machine::new()
        }
    }

    pub(super) fn new() -> Machine {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("app.db"), content(0)).unwrap();
        Machine {
            uri: format!("fs://{}/replica", folder.path().display()),
            images: Rule {
                // What the clock of a capture here says is long ago.
                age: Duration::MAX,
                check: true,
                ..Rule::default()
            },
            wal: Arc::new(Mutex::new(Wal::new(1, 0))),
            folder,
            operator: None,
            upkeep: Schedule::new(upkeep::Rule::default(), Retention::Forever),
        }
    }

    pub(super) fn database(&self) -> PathBuf {
        self.folder.path().join("app.db")
    }

    pub(super) fn replica(&self) -> PathBuf {
        self.folder.path().join("replica")
    }

    pub(super) fn state_file(&self) -> PathBuf {
        local_state::state_file(&self.database())
    }

    pub(super) fn state(&self) -> LocalState {
        local_state::read(&self.state_file()).unwrap().unwrap()
    }

    pub(super) fn writers_store(&self) -> Store {
        let operator = self.operator.clone();
        operator.map_or_else(|| self.store(), Store::from_operator)
    }

    pub(super) fn store(&self) -> Store {
        Store::open(&self.uri, &StoreOptions::default()).unwrap()
    }

    /// A commit that no process of ours sees.
    pub(super) fn commit(&self, value: u8) {
        self.wal.lock().unwrap().commits.push(value);
    }

    pub(super) fn start(&self) -> Process {
        self.start_with(1 << 20, |_| {})
    }

    pub(super) fn start_with(&self, segment_size: u64, prepare: impl FnOnce(&Shared)) -> Process {
        let process = self.start_closed(segment_size, prepare);
        process.shared.opened();
        process.capture.pinned.store(true, Ordering::Relaxed);
        process
    }

    /// As a database whose file is missing: who owns it is asked at the first read lock.
    pub(super) fn start_undecided(&self, prepare: impl FnOnce(&Shared)) -> Process {
        let process = self.start_closed(1 << 20, prepare);
        process.shared.opened_new();
        process
    }

    fn start_closed(&self, segment_size: u64, prepare: impl FnOnce(&Shared)) -> Process {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed) as i64;
        let log = Log::new();
        let shared = Arc::new(Shared::new(Arc::clone(&log), self.writers_store(), &self.database()));
        prepare(&shared);
        let plan = Plan {
            flush_interval: Duration::from_millis(10),
            segment_size,
            folder: self.folder.path().to_owned(),
            upkeep: self.upkeep,
            images: self.images,
        };
        let timeout = Duration::from_secs(20);
        let replica: Arc<dyn Replica> = Arc::new(DatabaseReplica::new(
            Arc::clone(&shared),
            Patience::of(timeout, timeout),
            None,
        ));
        log.connect(&replica);
        let capture = Arc::new(Capture {
            log: Arc::clone(&log),
            wal: Arc::clone(&self.wal),
            database: self.database(),
            number,
            captured: Mutex::new(0),
            pinned: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        });
        let capturing: Weak<Capture> = Arc::downgrade(&capture);
        log.connect_capture(capturing);
        let task = tokio::spawn(Task::new(Arc::clone(&shared), plan).run());
        Process {
            log,
            shared,
            replica,
            capture,
            task,
        }
    }

    /// The last value as of a transaction.
    pub(super) async fn restored(&self, target: Target) -> u8 {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.db");
        let options = RestoreOptions {
            target,
            ..RestoreOptions::default()
        };
        restore(&self.store(), &out, &options).await.unwrap();
        let bytes = std::fs::read(&out).unwrap();
        assert_eq!(bytes, content(bytes[PAGE]));
        bytes[PAGE]
    }

    /// The objects whose names contain this.
    pub(super) async fn objects(&self, part: &str) -> usize {
        let listed = self.store().list("").await.unwrap();
        listed.iter().filter(|(key, _)| key.path().contains(part)).count()
    }
}

/// What the VFS does in one process.
#[derive(Debug)]
pub(super) struct Capture {
    log: Arc<Log>,
    wal: Arc<Mutex<Wal>>,
    database: PathBuf,
    number: i64,
    /// How many commits of the WAL are in the log.
    captured: Mutex<usize>,
    pinned: AtomicBool,
    /// Something was dropped.
    broken: AtomicBool,
}

impl Capture {
    /// The WAL has reached its limit.
    pub(super) fn suspend(&self) {
        self.broken.store(true, Ordering::Relaxed);
        self.log.suspend();
    }

    /// As at a read lock: answers what is asked, and captures what was committed.
    pub(super) fn sync(&self) {
        let (wal, mut captured) = (self.wal.lock().unwrap(), self.captured.lock().unwrap());
        match self.log.wanted_for_test() {
            None => {}
            Some(None) => {
                self.push(&wal, &mut captured);
                let (continuity, txid) = match self.log.last_txid() {
                    Some(last) if self.broken.swap(false, Ordering::Relaxed) => (Continuity::Broken, last.next()),
                    Some(last) => (Continuity::Continued, last),
                    None => (Continuity::First, Txid::ZERO),
                };
                self.base(&wal, txid, continuity);
                *captured = wal.commits.len();
            }
            Some(Some(resume)) => match self.proof(&wal, resume) {
                Some(place) => {
                    let answered = self.log.answer_for_test(Err(resume.stored.txid));
                    assert!(answered || self.log.failure().is_some());
                    *captured = place;
                }
                None => {
                    let newest = resume.left.map_or(resume.stored.txid, |left| left.mark.txid);
                    self.base(&wal, newest.next(), Continuity::Broken);
                    *captured = wal.commits.len();
                }
            },
        }
        self.push(&wal, &mut captured);
        if self.log.image_wanted()
            && let Some(txid) = self.log.last_txid()
        {
            self.log.push_image(self.state(&wal, txid, Continuity::Continued));
        }
    }

    fn proof(&self, wal: &Wal, resume: Resume) -> Option<usize> {
        let place = |position| wal.places().iter().position(|place| *place == position);
        let left = |left: Left| match left.next {
            Next::Wal(salts) if left.mark.txid == resume.stored.txid => (salts == wal.salts).then_some(0),
            Next::File(print) => (replvfs_vfs::resume::Fingerprint::of(&self.database) == Some(print)
                && wal.commits.is_empty())
            .then_some(0),
            Next::Wal(_) => None,
        };
        place(resume.stored.position).or_else(|| resume.left.and_then(left))
    }

    fn base(&self, wal: &Wal, txid: Txid, continuity: Continuity) {
        self.log.answer_for_test(Ok(self.state(wal, txid, continuity)));
    }

    fn state(&self, wal: &Wal, txid: Txid, continuity: Continuity) -> Base {
        let last = wal.commits.last().copied().unwrap_or(wal.before);
        Base {
            txid,
            position: wal.places().last().copied().unwrap(),
            taken_at: UnixMillis(self.number),
            continuity,
            snapshot: Snapshot::for_test(page_size(), content(last)),
        }
    }

    fn push(&self, wal: &Wal, captured: &mut usize) {
        let Some(last) = self.log.last_txid() else { return };
        let mut txid = last;
        for mut transaction in wal.transactions(0, self.number).into_iter().skip(*captured) {
            txid = txid.next();
            transaction.txid = txid;
            self.log.push_transaction(transaction);
        }
        *captured = wal.commits.len();
    }

    /// The WAL may be restarted.
    pub(super) fn restarted(&self) {
        *self.captured.lock().unwrap() = 0;
    }
}

impl Capturing for Capture {
    fn is_to_be_watched(&self) -> bool {
        self.is_pinned()
    }

    fn is_pinned(&self) -> bool {
        self.pinned.load(Ordering::Relaxed)
    }

    fn wal_bytes(&self) -> u64 {
        0
    }

    fn has_news(&self) -> bool {
        // In the order of everybody else, or two wait for each other.
        let wal = self.wal.lock().unwrap();
        *self.captured.lock().unwrap() < wal.commits.len()
    }

    fn let_writers_by(&self) {}

    fn attend(self: Arc<Self>) -> Result<(), FlushError> {
        self.sync();
        Ok(())
    }

    fn look(&self) {
        self.sync();
    }
}

/// A process that has the database open.
pub(super) struct Process {
    pub(super) log: Arc<Log>,
    pub(super) shared: Arc<Shared>,
    pub(super) replica: Arc<dyn Replica>,
    pub(super) capture: Arc<Capture>,
    task: JoinHandle<()>,
}

impl Process {
    pub(super) fn commit(&self, machine: &Machine, value: u8) {
        machine.commit(value);
        self.capture.sync();
    }

    /// Until all is in the store, with the read locks that the VFS's flush takes.
    pub(super) async fn flush(&self) {
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            self.capture.sync();
            let drained = self.log.last_txid().is_some()
                && self.log.is_settled()
                && self.log.acked() >= self.log.last_txid()
                && self.log.pending().items == 0
                && !self.capture_wanted();
            if drained {
                return;
            }
            assert_eq!(self.log.failure(), None);
            assert!(
                tokio::time::Instant::now() < end,
                "not in the store: {}",
                self.replica.status()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn capture_wanted(&self) -> bool {
        self.log.wanted_for_test().is_some()
    }

    /// Until this holds, with read locks between.
    pub(super) async fn until(&self, what: &str, mut holds: impl FnMut(&Process) -> bool) {
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            self.capture.sync();
            assert!(tokio::time::Instant::now() < end, "{what}: {}", self.replica.status());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(super) async fn until_without_locks(&self, what: &str, mut holds: impl FnMut(&Process) -> bool) {
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(tokio::time::Instant::now() < end, "{what}: {}", self.replica.status());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(super) async fn failure(&self) -> String {
        self.until("it fails", |process| process.log.failure().is_some()).await;
        self.log.failure().unwrap()
    }

    pub(super) fn status(&self, member: &str) -> serde_json::Value {
        let status: serde_json::Value = serde_json::from_str(&self.replica.status()).unwrap();
        status[member].clone()
    }

    /// Without a chance to put anything in order.
    pub(super) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        self.shared.let_go();
    }

    pub(super) fn close(&self) {
        tokio::task::block_in_place(|| self.replica.closed());
    }
}
