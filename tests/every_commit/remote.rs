//! What is read from the replica without restoring it: every transaction afterwards, and whatever a follower sees meanwhile.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use replvfs_tests::{Scratch, compare_pages, pragma_number};
use rusqlite::Connection;

const NEVER: Duration = Duration::from_secs(120);
const NOT_YET: u64 = u64::MAX;

fn uri(replica: &str, parameters: &str) -> String {
    format!("file:app.db?vfs=replvfs-remote&replica={replica}{parameters}")
}

/// All pages, of one transaction. A remote database is never in WAL mode.
fn pages(connection: &mut Connection) -> Vec<u8> {
    let mut pages = connection.serialize("main").unwrap().to_vec();
    without_formats(&mut pages);
    pages
}

fn without_formats(pages: &mut [u8]) {
    if let Some(formats) = pages.get_mut(18..20) {
        formats.fill(1);
    }
}

/// Every transaction is read page by page as it was: by a connection of its own, and by one that goes from state to state, newest first.
pub(crate) fn read_all(scratch: &Scratch, truth: &BTreeMap<u64, Vec<u8>>) {
    let replica = scratch.replica();
    let mut travelling = replvfs_tests::open(&uri(&replica, "&page_cache=4MiB")).unwrap();
    for (txid, truth) in truth.iter().rev() {
        let mut truth = truth.clone();
        without_formats(&mut truth);
        let mut fixed = replvfs_tests::open(&uri(&replica, &format!("&txid={txid}"))).unwrap();
        travelling
            .query_row(&format!("PRAGMA replvfs_txid = {txid}"), [], |_| Ok(()))
            .unwrap();
        for connection in [&mut fixed, &mut travelling] {
            assert_eq!(pragma_number(connection, "replvfs_txid"), Some(*txid));
            if let Err(difference) = compare_pages(&truth, &pages(connection)) {
                panic!("txid {txid} is not read as it was: {difference}");
            }
        }
    }
}

/// Reads the newest state again and again.
pub(crate) struct Follower {
    thread: JoinHandle<Vec<(u64, u64)>>,
    last: Arc<AtomicU64>,
}

impl Follower {
    pub(crate) fn start(replica: String) -> Follower {
        let last = Arc::new(AtomicU64::new(NOT_YET));
        let until = Arc::clone(&last);
        let thread = std::thread::spawn(move || follow(&replica, &until));
        Follower { thread, last }
    }

    /// It comes to the last transaction, and all that it saw on the way was committed, in that order.
    pub(crate) fn end(self, last: u64, truth: &BTreeMap<u64, Vec<u8>>) {
        self.last.store(last, Ordering::Release);
        let seen = self.thread.join().unwrap();
        assert_eq!(seen.last().map(|(txid, _)| *txid), Some(last));
        assert!(seen.is_sorted_by_key(|(txid, _)| *txid), "states go back");
        // What is before the first that is known made the table.
        let begin = truth.first_key_value().map_or(0, |(txid, _)| *txid);
        for (txid, digest) in seen.into_iter().filter(|(txid, _)| *txid >= begin) {
            let Some(truth) = truth.get(&txid) else {
                panic!("transaction {txid} was never committed");
            };
            let mut truth = truth.clone();
            without_formats(&mut truth);
            assert_eq!(digest_of(&truth), digest, "txid {txid} is not what it was");
        }
    }
}

fn digest_of(pages: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    pages.hash(&mut hasher);
    hasher.finish()
}

/// The transactions that were seen, and digests of their pages.
fn follow(replica: &str, last: &AtomicU64) -> Vec<(u64, u64)> {
    let since = Instant::now();
    // There is nothing to open before the first image is stored.
    let mut connection = loop {
        match replvfs_tests::open(&uri(replica, "&follow=10ms&page_cache=4MiB")) {
            Ok(connection) => break connection,
            Err(error) => assert!(since.elapsed() < NEVER, "{error}: {:?}", replvfs::last_open_error()),
        }
        std::thread::yield_now();
    };
    let mut seen = Vec::new();
    loop {
        connection
            .execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema")
            .unwrap();
        let txid = pragma_number(&connection, "replvfs_txid").unwrap();
        let digest = digest_of(&pages(&mut connection));
        assert_eq!(
            pragma_number(&connection, "replvfs_txid"),
            Some(txid),
            "within a transaction"
        );
        connection.execute_batch("COMMIT").unwrap();
        if seen.last() != Some(&(txid, digest)) {
            seen.push((txid, digest));
        }
        let wanted = last.load(Ordering::Acquire);
        if txid >= wanted {
            return seen;
        }
        assert!(wanted == NOT_YET || since.elapsed() < NEVER, "{txid} of {wanted}");
    }
}
