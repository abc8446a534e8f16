//! A replica that keeps every state in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, LazyLock, Mutex, Once};
use std::time::Duration;

use replvfs_vfs::api::SqliteApi;
use replvfs_vfs::host::{FlushError, Host, OpenError, OpenRequest, Replica};
use replvfs_vfs::log::{Batch, Log};
use replvfs_vfs::shim::{Registration, register};
use replvfs_vfs::transaction::FrameError;
use replvfs_vfs::types::{Pgno, UnixMillis};
use rusqlite::{Connection, OpenFlags};

static COLLECTORS: LazyLock<Mutex<HashMap<PathBuf, Arc<Collector>>>> = LazyLock::new(Mutex::default);

pub(crate) struct Collector {
    log: Arc<Log>,
    states: Mutex<HashMap<u64, Vec<u8>>>,
    due: Mutex<bool>,
    woken: Condvar,
    kept: Condvar,
}

struct Collecting;

impl Host for Collecting {
    fn open(&self, request: &OpenRequest<'_>, log: &Arc<Log>) -> Result<Option<Arc<dyn Replica>>, OpenError> {
        let collector = Arc::new(Collector {
            log: Arc::clone(log),
            states: Mutex::default(),
            due: Mutex::default(),
            woken: Condvar::new(),
            kept: Condvar::new(),
        });
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

    fn now(&self) -> UnixMillis {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        UnixMillis(now.as_millis() as i64)
    }
}

impl Replica for Collector {
    fn wake(&self) {
        *self.due.lock().unwrap() = true;
        self.woken.notify_all();
    }

    fn flush(&self) -> Result<(), FlushError> {
        Ok(())
    }

    fn closed(&self) {}

    fn close_timeout(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn status(&self) -> String {
        "{}".into()
    }
}

impl Collector {
    pub(crate) fn of(path: &Path) -> Arc<Collector> {
        Arc::clone(&COLLECTORS.lock().unwrap()[&path.canonicalize().unwrap()])
    }

    fn collect(&self) {
        let mut image: Vec<u8> = Vec::new();
        loop {
            *self.due.lock().unwrap() = false;
            if !self.log.arm(0) {
                let due = self.due.lock().unwrap();
                drop(self.woken.wait_while(due, |due| !*due).unwrap());
            }
            while let Some(batch) = self.log.take(1) {
                self.apply(batch, &mut image);
            }
        }
    }

    fn apply(&self, batch: Batch, image: &mut Vec<u8>) {
        match batch {
            Batch::Base(mut base) => {
                let size = base.snapshot.page_size().as_usize();
                *image = vec![0; base.snapshot.page_count() as usize * size];
                for (number, page) in (1..).zip(image.chunks_exact_mut(size)) {
                    base.snapshot.read_pages(Pgno::new(number).unwrap(), page).unwrap();
                }
                self.keep(base.txid.0, image);
            }
            Batch::Transactions(transactions) => {
                for transaction in transactions {
                    let size = transaction.page_size.as_usize();
                    image.resize(transaction.page_count as usize * size, 0);
                    let applied = transaction.for_each_page(|pgno, page| {
                        let at = (pgno.get() as usize - 1) * size;
                        image[at..at + size].copy_from_slice(page);
                        Ok::<_, FrameError>(())
                    });
                    applied.unwrap();
                    self.keep(transaction.txid.0, image);
                }
            }
        }
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

pub(crate) fn open(path: &Path) -> Connection {
    static REGISTER: Once = Once::new();
    REGISTER.call_once(|| {
        let registration = Registration {
            name: "replvfs".into(),
            make_default: false,
            transaction_memory: 64 << 10,
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
