//! What the writers write, and the checks that a database consists of whole transactions, and of all that were reported.
//!
//! A transaction names its writer and its place in that writer's sequence in every row, spreads over four tables, and holds
//! a checksum of its content: one that is there in part shows. Content of old transactions is deleted, so that pages are used again.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, params};

use crate::Rng;

/// The newest transaction of each writer.
pub type Newest = BTreeMap<i64, i64>;

/// So many transactions of a writer keep their pieces.
const KEPT: i64 = 12;

/// In one transaction, if it is not there yet.
pub const SCHEMA: &str = "BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS commits(writer, seq, pieces, sum, PRIMARY KEY(writer, seq));
    CREATE TABLE IF NOT EXISTS piece0(writer, seq, n, body, PRIMARY KEY(writer, seq, n));
    CREATE TABLE IF NOT EXISTS piece1(writer, seq, n, body, PRIMARY KEY(writer, seq, n)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS newest(writer INTEGER PRIMARY KEY, seq);
    COMMIT;";

const PIECES: &str = "SELECT n, body FROM piece0 WHERE writer = ?1 AND seq = ?2
    UNION ALL SELECT n, body FROM piece1 WHERE writer = ?1 AND seq = ?2 ORDER BY n";

fn checksum(sum: u64, n: i64, body: &[u8]) -> u64 {
    let all = n.to_le_bytes();
    all.iter().chain(body).fold(sum, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(5)
    })
}

/// Takes reports of commits, as `(writer, seq)`, into what is known.
pub fn raise(newest: &mut Newest, commits: &[(i64, i64)]) {
    for (writer, seq) in commits {
        let known = newest.entry(*writer).or_default();
        *known = (*known).max(*seq);
    }
}

/// Fails unless everything that was wanted was found.
pub fn holds(found: &Newest, wanted: &Newest, what: &str) {
    for (writer, seq) in wanted {
        let there = found.get(writer).copied().unwrap_or(0);
        assert!(
            there >= *seq,
            "{what}: writer {writer} is there up to {there}, but {seq} was wanted; there is {found:?}, wanted was {wanted:?}"
        );
    }
}

/// Everything of a transaction between BEGIN and COMMIT. Some are larger than the cache of their connection, and some than what a mirror may hold.
///
/// # Errors
///
/// What SQLite says.
pub fn write(connection: &Connection, writer: i64, seq: i64, rng: &mut Rng) -> rusqlite::Result<()> {
    let pieces: u64 = match rng.below(12) {
        0 => 40 + rng.below(110),
        1..4 => 10 + rng.below(20),
        _ => 1 + rng.below(6),
    };
    let mut sum = 0_u64;
    let pieces = pieces.cast_signed();
    for n in 0..pieces {
        let mut body = vec![0; usize::try_from(50 + rng.below(5000)).unwrap()];
        body.fill_with(|| rng.next().to_le_bytes()[0]);
        sum = checksum(sum, n, &body);
        let table = n % 2;
        connection.execute(
            &format!("INSERT INTO piece{table} VALUES(?1, ?2, ?3, ?4)"),
            params![writer, seq, n, body],
        )?;
    }
    connection.execute(
        "INSERT INTO commits VALUES(?1, ?2, ?3, ?4)",
        params![writer, seq, pieces, sum.cast_signed()],
    )?;
    connection.execute("INSERT OR REPLACE INTO newest VALUES(?1, ?2)", params![writer, seq])?;
    for table in 0..2 {
        connection.execute(
            &format!("DELETE FROM piece{table} WHERE writer = ?1 AND seq <= ?2"),
            params![writer, seq - KEPT],
        )?;
    }
    Ok(())
}

/// What the database says of its newest transactions.
///
/// # Errors
///
/// What SQLite says.
pub fn newest(connection: &Connection) -> rusqlite::Result<Newest> {
    let mut statement = connection.prepare("SELECT writer, seq FROM newest")?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Checks a database file that nobody has open: sound, of whole transactions only, each writer's from the first on without a
/// gap. Returns the newest of each writer. A database from before the schema is empty.
pub fn check(path: &Path, what: &str) -> Newest {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).unwrap();
    let sound: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(sound, "ok", "{what}");
    let tables: u32 = connection
        .query_row("SELECT count(*) FROM sqlite_schema WHERE type = 'table'", [], |row| {
            row.get(0)
        })
        .unwrap();
    if tables == 0 {
        return Newest::new();
    }
    assert_eq!(tables, 4, "{what}: the schema is there in part");
    let newest = newest(&connection).unwrap();
    no_gaps(&connection, &newest, what);
    let mut pieces = 0;
    for (&writer, &seq) in &newest {
        for seq in (seq - KEPT + 1).max(1)..=seq {
            pieces += whole(&connection, writer, seq, what);
        }
    }
    let all: i64 = connection
        .query_row(
            "SELECT (SELECT count(*) FROM piece0) + (SELECT count(*) FROM piece1)",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(
        all, pieces,
        "{what}: there are pieces of transactions that are not there, or are past"
    );
    newest
}

fn no_gaps(connection: &Connection, newest: &Newest, what: &str) {
    let mut statement = connection
        .prepare("SELECT writer, count(*), min(seq), max(seq) FROM commits GROUP BY writer")
        .unwrap();
    let rows = statement.query_map([], |row| {
        Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
    });
    let found: BTreeMap<i64, (i64, i64, i64)> = rows
        .unwrap()
        .map(|row| row.map(|(writer, count, min, max)| (writer, (count, min, max))))
        .collect::<rusqlite::Result<_>>()
        .unwrap();
    let expected = newest.iter().map(|(writer, seq)| (*writer, (*seq, 1, *seq))).collect();
    assert_eq!(
        found, expected,
        "{what}: (count, first, last) of the commits of each writer"
    );
}

/// How many pieces the transaction has, all of which must be there.
fn whole(connection: &Connection, writer: i64, seq: i64, what: &str) -> i64 {
    let (pieces, sum): (i64, i64) = connection
        .query_row(
            "SELECT pieces, sum FROM commits WHERE writer = ?1 AND seq = ?2",
            [writer, seq],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .unwrap();
    let mut statement = connection.prepare(PIECES).unwrap();
    let mut rows = statement.query([writer, seq]).unwrap();
    let (mut found, mut actual) = (0, 0_u64);
    while let Some(row) = rows.next().unwrap() {
        found += 1;
        actual = checksum(actual, row.get(0).unwrap(), row.get_ref(1).unwrap().as_blob().unwrap());
    }
    assert_eq!(
        (found, actual.cast_signed()),
        (pieces, sum),
        "{what}: (pieces, checksum) of transaction {seq} of writer {writer}"
    );
    pieces
}
