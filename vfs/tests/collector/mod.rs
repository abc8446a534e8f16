//! A replica that keeps every state in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, dead_code)]

pub(crate) mod faults;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, Once};
use std::time::Duration;

use replvfs_vfs::api::SqliteApi;
use replvfs_vfs::host::{FlushError, Host, OpenError, OpenRequest, Replica};
use replvfs_vfs::log::{Base, Batch, Continuity, Log};
use replvfs_vfs::resume::{Left, Mark, Resume};
use replvfs_vfs::shim::{Registration, register};
use replvfs_vfs::transaction::{FrameError, Transaction};
use replvfs_vfs::types::{Pgno, Position, Txid, UnixMillis};
use rusqlite::{Connection, OpenFlags};

static COLLECTORS: LazyLock<Mutex<HashMap<PathBuf, Arc<Collector>>>> = LazyLock::new(Mutex::default);

/// What the collector of a path is to go on from, and the state there.
static PREPARED: LazyLock<Mutex<Prepared>> = LazyLock::new(Mutex::default);
type Prepared = HashMap<PathBuf, (Resume, Vec<u8>)>;

/// The next open of `path` goes on from `resume`, whose transaction's state is `state`.
pub(crate) fn prepare(path: &Path, resume: Resume, state: Vec<u8>) {
    PREPARED
        .lock()
        .unwrap()
        .insert(path.canonicalize().unwrap(), (resume, state));
}

pub(crate) struct Collector {
    log: Arc<Log>,
    states: Mutex<HashMap<u64, Vec<u8>>>,
    bases: Mutex<Vec<(u64, Continuity)>>,
    wrong: Mutex<Vec<String>>,
    /// Taken, and read to their ends.
    images: Mutex<(u64, u64)>,
    pictured: Condvar,
    due: Mutex<bool>,
    woken: Condvar,
    kept: Condvar,
    idle: Mutex<bool>,
    rested: Condvar,
    /// Nothing is said to be in the store.
    keeping: Mutex<bool>,
    /// The places of all that was taken.
    marks: Mutex<BTreeMap<u64, Mark>>,
    stored: Mutex<Option<Mark>>,
    left: Mutex<Option<Left>>,
    /// The state that it goes on from, and whether it did.
    resuming: Mutex<Option<(Txid, Vec<u8>)>>,
    did_resume: Mutex<bool>,
    wal_limit: AtomicU64,
    paused: Mutex<bool>,
    resumed: Condvar,
    close_timeout_ms: AtomicU64,
    /// How often it is still answered that writes are not refused; the highest number: for ever.
    not_refusing: AtomicU64,
}

struct Collecting;

impl Host for Collecting {
    fn open(&self, request: &OpenRequest<'_>, log: &Arc<Log>) -> Result<Option<Arc<dyn Replica>>, OpenError> {
        let collector = Arc::new(Collector {
            log: Arc::clone(log),
            states: Mutex::default(),
            bases: Mutex::default(),
            wrong: Mutex::default(),
            images: Mutex::default(),
            pictured: Condvar::new(),
            due: Mutex::default(),
            woken: Condvar::new(),
            kept: Condvar::new(),
            idle: Mutex::default(),
            rested: Condvar::new(),
            keeping: Mutex::default(),
            marks: Mutex::default(),
            stored: Mutex::default(),
            left: Mutex::default(),
            resuming: Mutex::default(),
            did_resume: Mutex::default(),
            wal_limit: AtomicU64::new(1 << 30),
            paused: Mutex::default(),
            resumed: Condvar::new(),
            close_timeout_ms: AtomicU64::new(60_000),
            not_refusing: AtomicU64::new(u64::MAX),
        });
        if let Some((resume, state)) = PREPARED.lock().unwrap().remove(request.path) {
            *collector.resuming.lock().unwrap() = Some((resume.stored.txid, state));
            log.resume_from(resume);
        }
        COLLECTORS
            .lock()
            .unwrap()
            .insert(request.path.to_owned(), Arc::clone(&collector));
        let worker = Arc::clone(&collector);
        std::thread::spawn(move || worker.collect());
        Ok(Some(collector))
    }

    fn reopen(&self, _: &OpenRequest<'_>, _: &Arc<dyn Replica>) -> Result<(), OpenError> {
        Ok(())
    }

    fn after_fork(&self) -> Arc<dyn Host> {
        Arc::new(Collecting)
    }

    fn now(&self) -> UnixMillis {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        // A second ahead, so that a file that was written just now counts as settled.
        UnixMillis(now.as_millis() as i64 + 1000)
    }
}

impl Replica for Collector {
    fn wake(&self) {
        *self.due.lock().unwrap() = true;
        self.woken.notify_all();
    }

    fn flush(&self, attend: &mut dyn FnMut() -> Result<(), FlushError>) -> Result<Option<Txid>, FlushError> {
        attend().map(|()| None)
    }

    fn wait(&self, _: Txid, attend: &mut dyn FnMut() -> Result<(), FlushError>) -> Result<Option<Txid>, FlushError> {
        attend().map(|()| None)
    }

    fn owns(&self) -> bool {
        true
    }

    fn take_over(&self) -> bool {
        true
    }

    fn is_away(&self) -> bool {
        false
    }

    fn hurry(&self) {}

    fn drain(&self) -> bool {
        let stored = self.stored.lock().unwrap().map(|mark| mark.txid);
        !*self.keeping.lock().unwrap() || stored >= self.log.last_txid()
    }

    fn left(&self, left: &Left) -> bool {
        *self.left.lock().unwrap() = Some(*left);
        true
    }

    fn closed(&self) {}

    fn wal_limit(&self) -> u64 {
        self.wal_limit.load(Ordering::Relaxed)
    }

    fn close_timeout(&self) -> Duration {
        Duration::from_millis(self.close_timeout_ms.load(Ordering::Relaxed))
    }

    fn refuses_writes(&self) -> bool {
        let count_down = |left: u64| (left != 0 && left != u64::MAX).then(|| left - 1);
        let (set, read) = (Ordering::Relaxed, Ordering::Relaxed);
        let left = self.not_refusing.fetch_update(set, read, count_down);
        left.unwrap_or_else(|unchanged| unchanged) == 0
    }

    fn status(&self) -> String {
        "{}".into()
    }
}

impl Collector {
    pub(crate) fn of(path: &Path) -> Arc<Collector> {
        Arc::clone(&COLLECTORS.lock().unwrap()[&path.canonicalize().unwrap()])
    }

    /// From here on write transactions are refused.
    pub(crate) fn refuse(&self) {
        self.refuse_after(0);
    }

    /// From then on write transactions are refused.
    pub(crate) fn refuse_after(&self, questions: u64) {
        self.not_refusing.store(questions, Ordering::Relaxed);
    }

    /// Nothing more is taken from the log, nor read from a base, until [`Collector::resume`].
    pub(crate) fn pause(&self) {
        *self.paused.lock().unwrap() = true;
    }

    pub(crate) fn resume(&self) {
        *self.paused.lock().unwrap() = false;
        self.resumed.notify_all();
    }

    pub(crate) fn close_within(&self, timeout: Duration) {
        self.close_timeout_ms
            .store(timeout.as_millis() as u64, Ordering::Relaxed);
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// Txid and kind of every base that could be read.
    pub(crate) fn bases(&self) -> Vec<(u64, Continuity)> {
        self.bases.lock().unwrap().clone()
    }

    /// What contradicted what was collected before.
    pub(crate) fn wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap().clone()
    }

    /// Waits until all that is in the log was taken and applied, and tells every state.
    pub(crate) fn settled(&self) -> HashMap<u64, Vec<u8>> {
        let mut idle = self.idle.lock().unwrap();
        while !*idle || self.log.pending().items > 0 {
            let (next, timeout) = self.rested.wait_timeout(idle, Duration::from_secs(30)).unwrap();
            assert!(!timeout.timed_out(), "the log was not taken");
            idle = next;
        }
        self.states.lock().unwrap().clone()
    }

    fn while_running(&self) {
        let paused = self.paused.lock().unwrap();
        drop(self.resumed.wait_while(paused, |paused| *paused).unwrap());
    }

    fn collect(&self) {
        let mut image = None;
        loop {
            *self.due.lock().unwrap() = false;
            if !self.log.arm(0) {
                *self.idle.lock().unwrap() = true;
                self.rested.notify_all();
                let due = self.due.lock().unwrap();
                drop(self.woken.wait_while(due, |due| !*due).unwrap());
            }
            *self.idle.lock().unwrap() = false;
            self.while_running();
            while let Some(batch) = self.log.take(1) {
                match batch {
                    Batch::Base(base) => {
                        self.log.settle(0);
                        self.note(base.txid, base.position);
                        self.apply_base(*base, &mut image);
                    }
                    Batch::Image(base) => {
                        let read = self.compare(*base, image.as_deref());
                        let mut images = self.images.lock().unwrap();
                        *images = (images.0 + 1, images.1 + u64::from(read));
                        self.pictured.notify_all();
                    }
                    Batch::Resumed(txid) => {
                        if let Some((from, state)) = self.resuming.lock().unwrap().take() {
                            assert_eq!(from, txid);
                            *self.did_resume.lock().unwrap() = true;
                            self.keep(txid.0, &state);
                            image = Some(state);
                        }
                    }
                    Batch::Transactions(transactions) => {
                        if !self.apply(&transactions, &mut image) {
                            image = None;
                        }
                        for transaction in &transactions {
                            self.note(transaction.txid, transaction.end);
                        }
                    }
                }
                self.while_running();
            }
        }
    }

    /// Where a transaction ends; without [`Collector::keeps`] it is stored at once.
    fn note(&self, txid: Txid, position: Position) {
        self.marks.lock().unwrap().insert(txid.0, Mark { txid, position });
        if !*self.keeping.lock().unwrap() {
            self.store_up_to(txid.0);
        }
    }

    /// From here on only [`Collector::store_up_to`] stores.
    pub(crate) fn keeps(&self, keeping: bool) {
        *self.keeping.lock().unwrap() = keeping;
    }

    /// What was taken up to there is in the store.
    pub(crate) fn store_up_to(&self, txid: u64) {
        let mark = self
            .marks
            .lock()
            .unwrap()
            .range(..=txid)
            .next_back()
            .map(|(_, mark)| *mark);
        if let Some(mark) = mark {
            *self.stored.lock().unwrap() = Some(mark);
            self.log.stored(mark.txid);
        }
    }

    /// What a state file would say.
    pub(crate) fn resume_point(&self) -> Option<Resume> {
        let stored = (*self.stored.lock().unwrap())?;
        let left = self.left.lock().unwrap().filter(|left| left.mark.txid >= stored.txid);
        Some(Resume { stored, left })
    }

    pub(crate) fn did_resume(&self) -> bool {
        *self.did_resume.lock().unwrap()
    }

    pub(crate) fn limit_wal(&self, bytes: u64) {
        self.wal_limit.store(bytes, Ordering::Relaxed);
    }

    fn apply_base(&self, mut base: Base, image: &mut Option<Vec<u8>>) {
        let size = base.snapshot.page_size().as_usize();
        let mut read = vec![0; base.snapshot.page_count() as usize * size];
        for (number, page) in (1..).zip(read.chunks_exact_mut(size)) {
            if base.snapshot.read_pages(Pgno::new(number).unwrap(), page).is_err() {
                // The log brings another; what stood before it goes on if nothing was missed.
                if base.continuity != Continuity::Continued {
                    *image = None;
                }
                return;
            }
        }
        if base.continuity == Continuity::Continued
            && let Some(image) = image
            && *image != read
        {
            let wrong = format!("the base at {} is not the state after transaction {0}", base.txid);
            self.wrong.lock().unwrap().push(wrong);
        }
        self.bases.lock().unwrap().push((base.txid.0, base.continuity));
        self.keep(base.txid.0, &read);
        *image = Some(read);
    }

    /// What an image would be made of is the state that the transactions lead to, or is given up.
    fn compare(&self, mut base: Base, image: Option<&[u8]>) -> bool {
        let size = base.snapshot.page_size().as_usize();
        let mut read = vec![0; base.snapshot.page_count() as usize * size];
        for (number, page) in (1..).zip(read.chunks_exact_mut(size)) {
            if base.snapshot.read_pages(Pgno::new(number).unwrap(), page).is_err() {
                return false;
            }
        }
        if base.continuity != Continuity::Continued || image.is_some_and(|image| *image != read) {
            let wrong = format!("the image at {} is not the state after transaction {0}", base.txid);
            self.wrong.lock().unwrap().push(wrong);
        }
        true
    }

    /// Waits until so many were taken that images are made of, and tells how many of them could be read to their ends.
    pub(crate) fn images(&self, taken: u64) -> u64 {
        let images = self.images.lock().unwrap();
        let few = |images: &mut (u64, u64)| images.0 < taken;
        let (images, timeout) = self
            .pictured
            .wait_timeout_while(images, Duration::from_secs(30), few)
            .unwrap();
        assert!(!timeout.timed_out(), "{images:?} images");
        images.1
    }

    fn apply(&self, transactions: &[Arc<Transaction>], image: &mut Option<Vec<u8>>) -> bool {
        for transaction in transactions {
            let Some(pages) = image else { continue };
            let size = transaction.page_size.as_usize();
            pages.resize(transaction.page_count as usize * size, 0);
            let applied = transaction.for_each_page(|pgno, page| {
                let at = (pgno.get() as usize - 1) * size;
                pages[at..at + size].copy_from_slice(page);
                Ok::<_, FrameError>(())
            });
            if applied.is_err() {
                // What follows is worth nothing up to the next base.
                *image = None;
                self.log.request_base();
                return false;
            }
            self.keep(transaction.txid.0, pages);
        }
        true
    }

    fn keep(&self, txid: u64, image: &[u8]) {
        self.states.lock().unwrap().insert(txid, image.to_vec());
        self.kept.notify_all();
    }

    /// All states, once the one named is there.
    pub(crate) fn states(&self, up_to: u64) -> HashMap<u64, Vec<u8>> {
        let states = self.states.lock().unwrap();
        let missing = |states: &mut HashMap<u64, Vec<u8>>| !states.contains_key(&up_to);
        let (states, timeout) = self
            .kept
            .wait_timeout_while(states, Duration::from_secs(30), missing)
            .unwrap();
        assert!(
            !timeout.timed_out(),
            "txid {up_to} never came; there are {:?}",
            states.keys()
        );
        states.clone()
    }
}

/// A connection that replvfs knows nothing of, as another process has it.
pub(crate) fn plain(path: &Path) -> Connection {
    Connection::open(path).unwrap()
}

pub(crate) fn txid(connection: &Connection) -> u64 {
    connection
        .query_row("PRAGMA replvfs_txid", [], |row| row.get::<_, String>(0))
        .unwrap()
        .parse()
        .unwrap()
}

pub(crate) fn open(path: &Path) -> Connection {
    static REGISTER: Once = Once::new();
    REGISTER.call_once(|| {
        faults::register_default();
        let registration = Registration {
            name: "replvfs".into(),
            make_default: false,
            transaction_memory: 64 << 10,
            memory: 64 << 20,
            // The databases of these tests are small, and their locks are what is tested.
            read_at_once: 0,
            host: Arc::new(Collecting),
        };
        register(SqliteApi::linked(), registration).unwrap();
    });
    let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(format!("file:{}?vfs=replvfs", path.display()), flags).unwrap()
}

/// The database as SQLite sees it without us.
pub(crate) fn plain_image(path: &Path) -> Vec<u8> {
    let mut connection = Connection::open(path).unwrap();
    connection.serialize("main").unwrap().to_vec()
}

/// A database in WAL mode with the table of most tests.
pub(crate) fn with_table(path: &Path) -> Connection {
    let connection = open(path);
    connection
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
        .unwrap();
    connection
}

pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Copies what another process would find, were this one killed now. By another process: a close in this one would drop locks.
pub(crate) fn copied(path: &Path, to: &Path) {
    for suffix in ["", "-wal", "-replvfs-spill"] {
        if beside(path, suffix).exists() {
            let mut copy = std::process::Command::new("cp");
            assert!(
                copy.arg(beside(path, suffix))
                    .arg(beside(to, suffix))
                    .status()
                    .unwrap()
                    .success()
            );
        }
    }
}

/// Numbers by chance, the same for the same seed.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}
