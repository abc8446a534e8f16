//! What the tests that run the whole way share: folders, connections, restoring, comparing.
//!
//! Owns no expectation of its own. Helpers panic with a message that says what they were doing, since their callers are
//! tests.

pub mod peer;
pub mod proc;
mod rng;
pub mod s3;
pub mod weather;
pub mod writers;

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, Mutex, Once, PoisonError};

use replvfs::Config;
use replvfs::config::Retention;
use replvfs::format::Key;
use replvfs::history::Target;
use replvfs::restore::{RestoreOptions, Restored, restore};
use replvfs::store::{Store, StoreOptions};
use replvfs_vfs::types::Txid;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub use rng::Rng;

/// Registers the VFS `replvfs` with the SQLite that the tests are linked with. May be called again and again.
pub fn register() {
    // The smallest there is, so that transactions of a few hundred KiB are read back from the WAL.
    register_once(Config::default().memory_limit(1 << 20));
}

/// The same with segments that are merged often, nothing of which is out of the window ever. With `deletes`, segments that a span stands for are
/// deleted at once, which is for processes beside which nobody restores. The first call of the process counts.
pub fn register_merging(deletes: bool) {
    let config = Config::default().memory_limit(1 << 20);
    let config = config.upkeep_for_tests(5, 2, replvfs::prune::GRACE, Retention::Forever);
    register_once(if deletes {
        config.delete_merged_at_once_for_tests()
    } else {
        config
    });
}

/// The same with the configuration that a program has which sets nothing, for benchmarks. The first call of the process counts.
pub fn register_as_it_comes() {
    register_once(Config::default());
}

fn register_once(config: Config) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| replvfs::register(config).expect("registering the VFS"));
}

/// A port that nobody listens on and that nobody is given without asking for it: the system takes those of connections, thousands in these tests, and
/// those for `:0` from above these.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    let start = u16::try_from(std::process::id() % u32::from(COUNT)).expect("less than all");
    let free = std::iter::repeat_with(|| FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT)
        .take(usize::from(COUNT))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.expect("a port")
}

/// Whether the long tests are to run: `REPLVFS_LONG_TESTS=1`. Says so when they are not.
pub fn long_tests(name: &str) -> bool {
    let wanted = std::env::var_os("REPLVFS_LONG_TESTS").is_some_and(|value| value == "1");
    if !wanted {
        eprintln!("SKIPPED: {name} is long; set REPLVFS_LONG_TESTS=1 to run it");
    }
    wanted
}

/// Whether the tests run in CI, where nothing may be skipped.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true" || value == "1")
}

/// A folder for one test, removed at its end: `app.db` and its replica beside it.
#[derive(Debug)]
pub struct Scratch {
    folder: TempDir,
}

/// A folder in memory where the system has such a place, for tests that sync thousands of times and never lose their power.
pub fn fast_folder() -> TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("replvfs-test-");
    let folder = builder.tempdir_in("/dev/shm").or_else(|_| builder.tempdir());
    folder.expect("making a folder")
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

impl Scratch {
    /// A new, empty folder.
    pub fn new() -> Scratch {
        Scratch::within(&std::env::temp_dir()).expect("making a folder")
    }

    /// The same in memory where that is possible, for tests to which the real disk's syncs mean nothing.
    pub fn in_memory() -> Scratch {
        Scratch::within(Path::new("/dev/shm")).unwrap_or_else(|_| Scratch::new())
    }

    fn within(folder: &Path) -> std::io::Result<Scratch> {
        let folder = tempfile::Builder::new().prefix("replvfs-test-").tempdir_in(folder)?;
        Ok(Scratch { folder })
    }

    /// Leaves the folder behind, for somebody to look at after a failure.
    pub fn keep(&mut self) {
        self.folder.disable_cleanup(true);
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The database's file.
    pub fn database(&self) -> PathBuf {
        self.file("app.db")
    }

    /// The URI of the database's replica.
    pub fn replica(&self) -> String {
        self.replica_named("replica")
    }

    /// The URI of a further replica.
    pub fn replica_named(&self, name: &str) -> String {
        format!("fs://{}", self.file(name).display())
    }

    /// The replica, for reading.
    pub fn store(&self) -> Store {
        Store::open(&self.replica(), &StoreOptions::reading()).expect("opening the replica")
    }

    /// All objects in the replica, with their lengths in bytes.
    pub fn objects(&self) -> Vec<(Key, u64)> {
        block_on(self.store().list("")).expect("listing the replica")
    }

    /// The transactions of a generation's images, ascending.
    pub fn images(&self, generation: u64) -> Vec<u64> {
        let image = |(key, _)| match key {
            Key::Image(of, txid) if of.0 == generation => Some(txid.0),
            _ => None,
        };
        self.objects().into_iter().filter_map(image).collect()
    }

    /// The URI that opens the database through replvfs.
    pub fn uri(&self) -> String {
        self.uri_with("")
    }

    /// The same with more parameters, such as `&flush_interval=10ms`.
    pub fn uri_with(&self, parameters: &str) -> String {
        format!(
            "file:{}?vfs=replvfs&replica={}{parameters}",
            self.database().display(),
            self.replica()
        )
    }

    /// Opens the database through replvfs.
    pub fn open(&self) -> Connection {
        open(&self.uri()).expect("opening the database")
    }

    /// Deletes the database's file, its WAL and its shared memory.
    pub fn delete_database(&self) {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let path = self.file(&format!("app.db{suffix}"));
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    panic!("deleting {}: {error}", path.display())
                }
                _ => {}
            }
        }
    }
}

/// Opens a database by URI, after registering the VFS.
///
/// # Errors
///
/// What SQLite says.
pub fn open(uri: &str) -> rusqlite::Result<Connection> {
    register();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri, flags)
}

/// Puts a connection's database into WAL mode.
pub fn use_wal(connection: &Connection) {
    let mode: String = connection
        .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
        .expect("asking for WAL mode");
    assert_eq!(mode, "wal", "SQLite refused WAL mode");
}

/// The answer of a pragma of replvfs that gives a number: `replvfs_txid`, `replvfs_acked`. `None` as long as there is none.
pub fn pragma_number(connection: &Connection, pragma: &str) -> Option<u64> {
    let answer = connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, String>(0));
    let text = answer.unwrap_or_else(|error| panic!("PRAGMA {pragma}: {error}"));
    let number = || {
        text.parse()
            .unwrap_or_else(|error| panic!("PRAGMA {pragma} gave {text:?}: {error}"))
    };
    (!text.is_empty()).then(number)
}

/// What `PRAGMA replvfs_status` says.
pub fn status(connection: &Connection) -> serde_json::Value {
    let text: String = connection
        .query_row("PRAGMA replvfs_status", [], |row| row.get(0))
        .expect("PRAGMA replvfs_status");
    serde_json::from_str(&text).expect("the status is JSON")
}

/// The whole database as SQLite reads it without replvfs.
pub fn plain_image(path: &Path) -> Vec<u8> {
    let mut connection = Connection::open(path).expect("opening the database without replvfs");
    connection.serialize("main").expect("reading the database").to_vec()
}

/// The number in an environment variable; `None` when it is not set.
///
/// # Panics
///
/// When it is no number.
#[must_use]
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
    )
}

/// Uploads everything and waits for it.
pub fn flush(connection: &Connection) {
    let mut statement = connection
        .prepare("PRAGMA replvfs_flush")
        .expect("PRAGMA replvfs_flush");
    let mut rows = statement.query([]).expect("PRAGMA replvfs_flush");
    loop {
        match rows.next() {
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(error) => panic!("PRAGMA replvfs_flush: {error}; {}", status(connection)),
        }
    }
}

/// The messages that SQLite's error log got since the last call, from all threads of the process.
///
/// The first call starts the collecting, so it must come before any connection is opened.
pub fn sqlite_log() -> Vec<(i32, String)> {
    static ONCE: Once = Once::new();
    static MESSAGES: Mutex<Vec<(i32, String)>> = Mutex::new(Vec::new());
    fn collect(code: std::ffi::c_int, message: &str) {
        MESSAGES
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((code, message.to_owned()));
    }
    ONCE.call_once(|| {
        // SAFETY: no connection is open and no other thread uses SQLite yet, as the documentation above demands; `collect`
        // calls nothing of SQLite.
        unsafe { rusqlite::trace::config_log(Some(collect)) }.expect("configuring SQLite's log");
    });
    std::mem::take(&mut *MESSAGES.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs what is asynchronous, from any thread.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("starting threads")
    });
    RUNTIME.block_on(work)
}

/// Restores from a replica into a file that does not exist yet.
///
/// # Errors
///
/// What the library says.
pub fn try_restore(replica: &str, target: Target, out: &Path) -> Result<Restored, Box<dyn Error>> {
    restore_from(&Store::open(replica, &StoreOptions::reading())?, target, out)
}

/// The same from a store that is open.
///
/// # Errors
///
/// What the library says.
pub fn restore_from(store: &Store, target: Target, out: &Path) -> Result<Restored, Box<dyn Error>> {
    let options = RestoreOptions {
        target,
        ..RestoreOptions::default()
    };
    Ok(block_on(restore(store, out, &options))?)
}

/// Restores what the options say.
///
/// # Errors
///
/// What the restore, or opening the replica, says.
pub fn restore_with(replica: &str, out: &Path, options: &RestoreOptions) -> Result<Restored, Box<dyn Error>> {
    let store = Store::open(replica, &StoreOptions::reading())?;
    Ok(block_on(restore(&store, out, options))?)
}

/// Restores the newest transaction, or the given one.
pub fn restore_txid(replica: &str, out: &Path, txid: Option<u64>) -> Restored {
    let target = txid.map_or(Target::Newest, |txid| Target::Txid(Txid(txid)));
    try_restore(replica, target, out)
        .unwrap_or_else(|error| panic!("restoring {replica} to {}: {error}", out.display()))
}

/// The first difference between two database files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// They are not of the same length, in bytes.
    Length {
        /// Of the file that is right.
        expected: u64,
        /// Of the other one.
        actual: u64,
    },
    /// A page has other content.
    Page {
        /// Its number.
        page: u64,
        /// The first byte within it that differs.
        offset: usize,
        /// That byte in the file that is right.
        expected: u8,
        /// And in the other one.
        actual: u8,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Length { expected, actual } => write!(f, "{actual} bytes long instead of {expected}"),
            Difference::Page {
                page,
                offset,
                expected,
                actual,
            } => {
                write!(
                    f,
                    "page {page} differs first at its byte {offset}: {actual:#04x} instead of {expected:#04x}"
                )
            }
        }
    }
}

/// Compares two database files page by page. Content of the lock page is not compared: it has none.
///
/// # Errors
///
/// The first difference.
pub fn compare_files(expected: &Path, actual: &Path) -> Result<(), Difference> {
    let open = |path: &Path| File::open(path).unwrap_or_else(|error| panic!("opening {}: {error}", path.display()));
    let (expected, actual) = (open(expected), open(actual));
    let length = |file: &File| file.metadata().expect("asking a file for its length").len();
    compare(
        (expected.try_clone().expect("another handle"), length(&expected)),
        (actual.try_clone().expect("another handle"), length(&actual)),
    )
}

/// The same for images in memory.
///
/// # Errors
///
/// The first difference.
pub fn compare_pages(expected: &[u8], actual: &[u8]) -> Result<(), Difference> {
    compare((expected, expected.len() as u64), (actual, actual.len() as u64))
}

fn compare<A: Read, B: Read>(expected: (A, u64), actual: (B, u64)) -> Result<(), Difference> {
    const PENDING_BYTE: u64 = 0x4000_0000;
    let ((mut expected, expected_len), (mut actual, actual_len)) = (expected, actual);

    let common = expected_len.min(actual_len);
    let mut header = [0; 100];
    let header_len = usize::try_from(common.min(100)).expect("at most 100");
    expected
        .read_exact(&mut header[..header_len])
        .expect("reading the expected file");
    let page_size = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        0 => 4096,
        bytes => usize::from(bytes),
    };
    let mut expected = header[..header_len].chain(expected);

    let (mut left, mut right) = (vec![0; page_size], vec![0; page_size]);
    let mut at = 0;
    while at < common {
        let len = usize::try_from((common - at).min(page_size as u64)).expect("at most a page");
        expected
            .read_exact(&mut left[..len])
            .expect("reading the expected file");
        actual.read_exact(&mut right[..len]).expect("reading the actual file");
        let is_lock_page = (at..at + page_size as u64).contains(&PENDING_BYTE);
        if !is_lock_page && left[..len] != right[..len] {
            let offset = left.iter().zip(&right).position(|(l, r)| l != r).unwrap_or(0);
            return Err(Difference::Page {
                page: at / page_size as u64 + 1,
                offset,
                expected: left[offset],
                actual: right[offset],
            });
        }
        at += len as u64;
    }
    if expected_len != actual_len {
        return Err(Difference::Length {
            expected: expected_len,
            actual: actual_len,
        });
    }
    Ok(())
}

/// Fails the test when `PRAGMA integrity_check` finds anything in the file, which is opened without replvfs.
pub fn check_integrity(path: &Path) {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    // Immutable, as a reader that may not write leaves an empty WAL behind when it closes.
    let uri = format!("file:{}?immutable=1", path.display());
    let connection = Connection::open_with_flags(uri, flags).expect("opening the restored file");
    let found: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("PRAGMA integrity_check");
    assert_eq!(found, "ok", "integrity_check of {}", path.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(pages: u8) -> Vec<u8> {
        let mut bytes: Vec<u8> = (1..=pages).flat_map(|page| [page; 512]).collect();
        bytes[16..18].copy_from_slice(&512u16.to_be_bytes());
        bytes
    }

    #[test]
    fn equal_images_are_equal() {
        assert_eq!(compare_pages(&image(3), &image(3)), Ok(()));
        assert_eq!(compare_pages(&[], &[]), Ok(()));
    }

    #[test]
    fn the_first_differing_page_is_named() {
        let mut other = image(3);
        other[512 + 7] = 0xff;
        other[1024] = 0xff;
        let expected = Difference::Page {
            page: 2,
            offset: 7,
            expected: 2,
            actual: 0xff,
        };
        assert_eq!(compare_pages(&image(3), &other), Err(expected));
    }

    #[test]
    fn a_missing_page_is_a_difference() {
        let expected = Difference::Length {
            expected: 1536,
            actual: 1024,
        };
        assert_eq!(compare_pages(&image(3), &image(2)), Err(expected));
        assert!(compare_pages(&image(3), &[]).is_err());
    }
}
