//! What is measured: the same statements for each peer, in a process of its own that begins with nothing in memory.
//!
//! The process says what a step took and answered, and waits for a line before the next one, so that requests can be counted in between.

use std::ffi::{CStr, CString};
use std::io::{self, Write};
use std::path::Path;
use std::ptr;
use std::time::{Duration, Instant};

use libsqlite3_sys as ffi;
use replvfs_tests::{Rng, register_as_it_comes};
use rusqlite::{Connection, OpenFlags};

/// Of the rows, those whose pages are 8 MiB of 1 GiB.
pub(crate) const PART: u64 = 128;
const POINTS: usize = 1000;
const DAYS: u64 = 365;

/// Who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// SQLite, a file on this machine.
    File,
    Replvfs,
    Litestream,
    /// With a copy of the database that it makes in the background.
    LitestreamHydrating,
}

impl Peer {
    pub(crate) const ALL: [Peer; 4] = [Peer::File, Peer::Replvfs, Peer::Litestream, Peer::LitestreamHydrating];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::File => "file",
            Peer::Replvfs => "replvfs-remote",
            Peer::Litestream => "Litestream",
            Peer::LitestreamHydrating => "Litestream, hydrating",
        }
    }
}

/// What one process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Session {
    /// Opening with a first answer, then point queries, and once more the same ones.
    Points,
    /// A month out of an index.
    Index,
    /// The first rows of the table.
    Part,
    /// The table.
    Scan,
}

impl Session {
    pub(crate) const ALL: [Session; 4] = [Session::Points, Session::Index, Session::Part, Session::Scan];

    pub(crate) fn steps(self) -> &'static [&'static str] {
        match self {
            Session::Points => &[
                "open, first point query",
                "1,000 random point queries",
                "the same 1,000 again",
            ],
            Session::Index => &["open, aggregate over 1/12 of an index"],
            Session::Part => &["open, scan of 1/128 of the table"],
            Session::Scan => &["open, scan of the table"],
        }
    }

    /// A request for each page, of which there are hundreds of thousands, is for nobody to wait for.
    pub(crate) fn is_for(self, peer: Peer) -> bool {
        match peer {
            Peer::Litestream => self != Session::Scan,
            Peer::LitestreamHydrating => self == Session::Scan,
            Peer::File | Peer::Replvfs => true,
        }
    }
}

/// The process of one session. `place` is the URI for SQLite to open.
pub(crate) fn read(session: Session, place: &str, extension: Option<&Path>, rows: u64, round: u64) {
    register_as_it_comes();
    let _loader = extension.map(load);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let open = || {
        Connection::open_with_flags(place, flags)
            .unwrap_or_else(|error| panic!("{place}: {error}; {:?}", replvfs::last_open_error()))
    };
    // Not those of `write`.
    let mut rng = Rng::new(1 + round);
    let ids: Vec<u64> = (0..=POINTS).map(|_| 1 + rng.below(rows)).collect();
    match session {
        Session::Points => {
            let connection = step(|| {
                let connection = open();
                let answer = points(&connection, &ids[..1]);
                (connection, answer)
            });
            step(|| ((), points(&connection, &ids[1..])));
            step(|| ((), points(&connection, &ids[1..])));
        }
        Session::Index => {
            let sql = format!(
                "SELECT sum(cents) + count(*) FROM orders WHERE day BETWEEN {} AND {}",
                DAYS / 2,
                DAYS / 2 + 29
            );
            step(|| ((), number(&open(), &sql)));
        }
        Session::Part => {
            let sql = format!("SELECT sum(cents) FROM orders NOT INDEXED WHERE id <= {}", rows / PART);
            step(|| ((), number(&open(), &sql)));
        }
        Session::Scan => {
            step(|| {
                (
                    (),
                    number(&open(), "SELECT sum(cents) + max(id) FROM orders NOT INDEXED"),
                )
            });
        }
    }
}

fn step<T>(work: impl FnOnce() -> (T, i64)) -> T {
    let mut line = String::new();
    io::stdin().read_line(&mut line).expect("a line");
    let since = Instant::now();
    let (kept, answer) = work();
    println!("STEP {} {answer}", since.elapsed().as_micros());
    io::stdout().flush().expect("its output");
    kept
}

fn number(connection: &Connection, sql: &str) -> i64 {
    connection
        .query_row(sql, [], |row| row.get(0))
        .unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn points(connection: &Connection, ids: &[u64]) -> i64 {
    let mut statement = connection
        .prepare("SELECT cents + length(note) FROM orders WHERE id = ?1")
        .expect("a statement");
    let mut sum = 0;
    for id in ids {
        let found: i64 = statement
            .query_row([id.cast_signed()], |row| row.get(0))
            .unwrap_or_else(|error| panic!("order {id}: {error}"));
        sum += found;
    }
    sum
}

/// The connection that loaded it.
fn load(extension: &Path) -> Connection {
    let connection = Connection::open_in_memory().expect("a connection");
    let file = CString::new(extension.to_str().expect("a path")).expect("a path");
    let mut error = ptr::null_mut();
    // SAFETY: the handle is open for as long as `connection` lives, the path ends with a zero, and what SQLite says is copied before it is freed. That the
    // extension does what extensions do is for those to know who name it.
    let (code, said) = unsafe {
        ffi::sqlite3_enable_load_extension(connection.handle(), 1);
        let code = ffi::sqlite3_load_extension(connection.handle(), file.as_ptr(), ptr::null(), &raw mut error);
        let said = (!error.is_null()).then(|| CStr::from_ptr(error).to_string_lossy().into_owned());
        ffi::sqlite3_free(error.cast());
        (code, said)
    };
    assert_eq!(code, ffi::SQLITE_OK, "loading {}: {said:?}", extension.display());
    connection
}

/// Makes the database, and returns how many rows it has: about a KiB each, half of it noise, in the order of their days, and an index of these.
pub(crate) fn fill(database: &Path, mebibytes: u64) -> u64 {
    let rows = mebibytes * 1000;
    let connection = Connection::open(database).expect("opens");
    connection
        .execute_batch(&format!(
            "PRAGMA synchronous=OFF; PRAGMA journal_mode=WAL;
             CREATE TABLE orders(id INTEGER PRIMARY KEY, day INTEGER, cents INTEGER, note BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO orders SELECT i, i * {DAYS} / {rows}, abs(random()) % 10000, randomblob(490) || zeroblob(490) FROM n;
             CREATE INDEX orders_by_day ON orders(day, cents);
             PRAGMA wal_checkpoint(TRUNCATE)"
        ))
        .expect("rows");
    rows
}

/// Commits, one a second, of new rows and of changes here and there. The same ones each time.
pub(crate) fn write(connection: &Connection, rows: u64, commits: u64) {
    connection.busy_timeout(Duration::from_secs(60)).expect("waits");
    let mut rng = Rng::new(0);
    for _ in 0..commits {
        std::thread::sleep(Duration::from_secs(1));
        let changed: Vec<String> = (0..10).map(|_| (1 + rng.below(rows)).to_string()).collect();
        let sql = format!(
            "BEGIN; UPDATE orders SET cents = cents + 1 WHERE id IN ({});
             INSERT INTO orders(day, cents, note) VALUES({DAYS}, {}, zeroblob(900)); COMMIT",
            changed.join(","),
            rng.below(10_000)
        );
        connection.execute_batch(&sql).expect("a commit");
    }
}
