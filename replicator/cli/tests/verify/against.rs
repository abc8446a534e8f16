//! A replica and the database that it is of, compared through the program, beside the process that replicates.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use replvfs::format::{SegmentIndex, SegmentReader, SegmentWriter, Step};
use replvfs_vfs::types::Pgno;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use tempfile::TempDir;

use crate::{names, replvfs};

/// A database, and the replica that it has.
struct Pair {
    folder: TempDir,
    store: TempDir,
}

impl Pair {
    fn new() -> Pair {
        let [folder, store] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        Pair { folder, store }
    }

    fn database(&self) -> PathBuf {
        self.folder.path().join("app.db")
    }

    fn replica(&self) -> String {
        format!("fs://{}", self.store.path().display())
    }

    fn open(&self, mode: &str) -> Connection {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| replvfs::register(replvfs::Config::default()).unwrap());
        let uri = format!(
            "file:{}?vfs=replvfs&replica={}&flush_interval=50ms",
            self.database().display(),
            self.replica()
        );
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI;
        let connection = Connection::open_with_flags(uri, flags).unwrap();
        connection.busy_timeout(std::time::Duration::from_secs(30)).unwrap();
        connection.pragma_update(None, "journal_mode", mode).unwrap();
        connection
    }

    fn plain(&self) -> Connection {
        Connection::open(self.database()).unwrap()
    }

    /// The exit code, and what was told.
    fn against(&self, timeout: &str) -> (i32, Value, String) {
        against(&self.replica(), &self.database(), timeout)
    }

    fn assert_equal(&self, what: &str) -> Value {
        let (code, told, said) = self.against("30");
        assert_eq!(code, 0, "{what}: {told} {said}");
        assert_eq!(
            (&told["good"], &told["against"]["outcome"]),
            (&true.into(), &"equal".into())
        );
        assert_eq!(told["against"]["differing"], serde_json::json!([]));
        told["against"].clone()
    }

    fn assert_differs(&self, pages: &[u64]) -> Value {
        let (code, told, said) = self.against("1");
        assert_eq!(code, 3, "{told} {said}");
        assert_eq!(
            (&told["good"], &told["against"]["outcome"]),
            (&false.into(), &"different".into())
        );
        let differing = told["against"]["differing"].as_array().unwrap().iter();
        let numbers: Vec<u64> = differing.map(|page| page["page"].as_u64().unwrap()).collect();
        assert_eq!(numbers, pages, "{told}");
        told["against"].clone()
    }
}

fn against(replica: &str, database: &Path, timeout: &str) -> (i32, Value, String) {
    let database = database.display().to_string();
    let output = replvfs(&[
        "verify",
        replica,
        "--against",
        &database,
        "--json",
        "--timeout",
        timeout,
    ]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let told = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), told, said)
}

fn flush(connection: &Connection) {
    connection
        .query_row("PRAGMA replvfs_flush", [], |_| Ok(()))
        .or_else(|error| match error {
            rusqlite::Error::QueryReturnedNoRows => Ok(()),
            error => Err(error),
        })
        .unwrap();
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A few transactions of all kinds.
fn write(connection: &Connection, random: &mut Random) {
    connection
        .execute_batch("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b BLOB, c UNIQUE)")
        .unwrap();
    for _ in 0..1 + random.below(5) {
        let row = random.below(200);
        let statement = match random.below(8) {
            0 => format!("DELETE FROM t WHERE a % 7 = {}", row % 7),
            1 => format!(
                "UPDATE t SET b = randomblob({}) WHERE a % 5 = {}",
                random.below(3000),
                row % 5
            ),
            2 => "VACUUM".to_owned(),
            3 => format!("BEGIN; DELETE FROM t; INSERT INTO t(b) VALUES (zeroblob({row}00)); ROLLBACK"),
            _ => format!(
                "INSERT OR REPLACE INTO t VALUES ({row}, randomblob({}), hex(randomblob(9)))",
                row * 50
            ),
        };
        connection.execute_batch(&statement).unwrap();
    }
}

/// Who has closed the database last may still remove what is not needed any more.
fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |name: String| match std::fs::read(folder.join(&name)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        bytes => Some((name, bytes.unwrap())),
    };
    names(folder).into_iter().filter_map(read).collect()
}

fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn page_size(connection: &Connection) -> u64 {
    connection
        .pragma_query_value(None, "page_size", |row| row.get::<_, u32>(0).map(u64::from))
        .unwrap()
}

#[test]
fn random_histories_are_equal_in_every_mode() {
    for (mode, page_size, seed) in [
        ("wal", 4096, 5),
        ("wal", 512, 6),
        ("delete", 4096, 7),
        ("truncate", 1024, 8),
    ] {
        let pair = Pair::new();
        let mut random = Random(seed);
        for round in 0..3 {
            let connection = pair.open("delete");
            connection.pragma_update(None, "page_size", page_size).unwrap();
            connection.pragma_update(None, "journal_mode", mode).unwrap();
            for step in 0..4 {
                write(&connection, &mut random);
                if mode == "wal" && random.below(3) == 0 {
                    let kind = ["PASSIVE", "RESTART", "TRUNCATE"][random.below(3) as usize];
                    connection
                        .query_row(&format!("PRAGMA wal_checkpoint({kind})"), [], |_| Ok(()))
                        .unwrap();
                }
                let before = std::fs::read(pair.database()).unwrap();
                // At once after the commit: it is waited for.
                pair.assert_equal(&format!("{mode} of {page_size}, round {round}, step {step}"));
                assert!(
                    std::fs::read(pair.database()).unwrap() == before,
                    "the file was written"
                );
            }
            flush(&connection);
            connection.close().unwrap();
            let before = content(pair.folder.path());
            let told = pair.assert_equal(&format!("{mode} of {page_size}, closed"));
            if mode == "wal" {
                assert_eq!(
                    (&told["tied_by"], &told["owned"]),
                    (&"state_file".into(), &false.into())
                );
            }
            let is_as_before = |file| before.contains(file);
            assert!(
                content(pair.folder.path()).iter().all(is_as_before),
                "something was written"
            );
        }
    }
}

#[test]
fn beside_a_writer_that_does_not_pause() {
    for mode in ["wal", "delete"] {
        let pair = Pair::new();
        let connection = pair.open(mode);
        write(&connection, &mut Random(9));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let writer = pair.open(mode);
                let mut random = Random(11);
                while !stop.load(Ordering::Relaxed) {
                    write(&writer, &mut random);
                }
            });
            let told: Vec<_> = (0..4).map(|_| tied(&pair, mode)).collect();
            stop.store(true, Ordering::Relaxed);
            for told in told {
                told.unwrap();
            }
        });
    }
}

/// Compares until the state is proven to be the one that was compared with. While a WAL has just been begun, the replica may have nothing of it yet; then it is the
/// newest state, which was equal if it went on meanwhile.
fn tied(pair: &Pair, mode: &str) -> Result<(), String> {
    let expected = if mode == "wal" { "wal" } else { "first_page" };
    for _ in 0..50 {
        let (code, told, said) = pair.against("60");
        let against = &told["against"];
        if code != 0 || against["owned"] != true {
            return Err(format!("{mode}: {told} {said}"));
        }
        match against["tied_by"].as_str() {
            Some(by) if by == expected => return Ok(()),
            Some("newest") => {}
            _ => return Err(format!("{mode}: {told}")),
        }
    }
    Err(format!("{mode}: never tied by {expected}"))
}

/// Whatever the page is used for.
#[test]
fn a_byte_of_a_page_is_found() {
    for mode in ["wal", "delete"] {
        let pair = Pair::new();
        let connection = pair.open(mode);
        connection
            .execute_batch("CREATE TABLE t(a, b); INSERT INTO t VALUES (1, randomblob(50000)); DELETE FROM t")
            .unwrap();
        connection.execute_batch("INSERT INTO t VALUES (2, 3)").unwrap();
        flush(&connection);
        let free: u64 = connection
            .pragma_query_value(None, "freelist_count", |row| row.get::<_, u32>(0).map(u64::from))
            .unwrap();
        assert!(free > 5);
        let size = page_size(&connection);
        connection.close().unwrap();
        pair.assert_equal(mode);
        // The table's root, and a leaf of the freelist.
        for page in [2, 9] {
            flip(&pair.database(), (page - 1) * size + 77);
            let told = pair.assert_differs(&[page]);
            let from = told["differing"][0]["from"].as_str().unwrap().to_owned();
            assert!(from.starts_with("gen/") || from.starts_with("chunk/"), "{from}");
            let shown = replvfs(&[
                "verify",
                &pair.replica(),
                "--against",
                &pair.database().display().to_string(),
            ]);
            let shown = String::from_utf8(shown.stdout).unwrap();
            let line = format!("page {page} differs: the replica has it from {from}");
            assert!(shown.contains(&line), "{shown}");
            flip(&pair.database(), (page - 1) * size + 77);
            pair.assert_equal("put back");
        }
    }
}

/// The proof that the database is at a transaction is its WAL, and no page.
#[test]
fn a_byte_is_found_in_a_database_that_is_in_use() {
    let pair = Pair::new();
    let connection = pair.open("wal");
    connection
        .execute_batch("CREATE TABLE t(a, b); INSERT INTO t VALUES (1, randomblob(50000)); PRAGMA wal_checkpoint")
        .unwrap();
    connection.execute_batch("INSERT INTO t VALUES (2, 3)").unwrap();
    flush(&connection);
    assert_eq!(pair.assert_equal("before")["tied_by"], "wal");
    flip(&pair.database(), 6 * page_size(&connection) + 100);
    let told = pair.assert_differs(&[7]);
    assert_eq!((&told["tied_by"], &told["owned"]), (&"wal".into(), &true.into()));
    flip(&pair.database(), 6 * page_size(&connection) + 100);
    connection.close().unwrap();
}

#[test]
fn a_database_that_is_longer_or_shorter() {
    let pair = Pair::new();
    let connection = pair.open("wal");
    connection
        .execute_batch("CREATE TABLE t(a, b); INSERT INTO t VALUES (1, randomblob(50000))")
        .unwrap();
    flush(&connection);
    let size = page_size(&connection);
    connection.close().unwrap();
    let pages = pair.assert_equal("whole")["pages"].as_u64().unwrap();
    let whole = std::fs::read(pair.database()).unwrap();
    for other in [pages + 2, pages - 2] {
        let mut bytes = whole.clone();
        bytes.resize((other * size) as usize, 1);
        std::fs::write(pair.database(), bytes).unwrap();
        let told = pair.assert_differs(&[]);
        assert_eq!((&told["pages"], &told["replica_pages"]), (&other.into(), &pages.into()));
    }
}

/// Right in all of its checksums.
#[test]
fn a_segment_that_misses_a_page_is_found() {
    let pair = Pair::new();
    let connection = pair.open("wal");
    connection
        .execute_batch("CREATE TABLE t(a, b); CREATE TABLE u(a, b); INSERT INTO t VALUES (1, randomblob(20000))")
        .unwrap();
    flush(&connection);
    connection
        .execute_batch("BEGIN; INSERT INTO t VALUES (2, 3); INSERT INTO u VALUES (4, 5); COMMIT")
        .unwrap();
    flush(&connection);
    connection.close().unwrap();
    pair.assert_equal("whole");
    let log = pair.store.path().join("gen/0000000000000001/log");
    let name = names(&log).pop().unwrap();
    let bytes = std::fs::read(log.join(&name)).unwrap();
    let index = SegmentIndex::from_object(&bytes).unwrap();
    let missing = *index.pages().last().unwrap();
    let forged = without(&bytes, &index, missing);
    std::fs::write(log.join(&name), forged).unwrap();
    assert_eq!(replvfs(&["verify", &pair.replica()]).status.code(), Some(0));
    pair.assert_differs(&[missing.get().into()]);
}

fn without(bytes: &[u8], index: &SegmentIndex, missing: Pgno) -> Vec<u8> {
    let mut writer = SegmentWriter::new(Vec::new(), *index.header(), 3).unwrap();
    let load = |block: usize| {
        let range = index.block_range(block);
        Ok::<_, replvfs::format::FormatError>(bytes[range.start as usize..range.end as usize].to_vec().into())
    };
    let all = index.header().first..=index.header().last;
    SegmentReader::new()
        .unwrap()
        .for_each(index, all, load, |step| match step {
            Step::Begin(entry) => writer.begin(entry.header),
            Step::Page(page, _) if page == missing => Ok(()),
            Step::Page(page, bytes) => writer.page(page, bytes),
        })
        .unwrap();
    writer.finish().unwrap().0
}

#[test]
fn damage_that_is_met_is_a_finding() {
    let pair = Pair::new();
    let connection = pair.open("wal");
    connection.execute_batch("CREATE TABLE t(a, b)").unwrap();
    flush(&connection);
    connection.close().unwrap();
    let chunks = pair.store.path().join("chunk");
    let mut damaged = Vec::new();
    for name in names(&chunks) {
        flip(&chunks.join(&name), 20);
        damaged.push(format!("chunk/{name}"));
    }
    let log = pair.store.path().join("gen/0000000000000001/log");
    for name in names(&log) {
        flip(&log.join(&name), 120);
        damaged.push(format!("gen/0000000000000001/log/{name}"));
    }
    let (code, told, said) = pair.against("1");
    assert_eq!(code, 3, "{told} {said}");
    assert_eq!(told["against"]["outcome"], "unreadable");
    let object = told["findings"][0]["object"].as_str().unwrap();
    assert!(damaged.iter().any(|damaged| damaged == object), "{told}");
}

#[test]
fn another_database_is_told_apart() {
    let [one, other] = [(); 2].map(|()| Pair::new());
    for pair in [&one, &other] {
        let connection = pair.open("wal");
        connection
            .execute_batch("CREATE TABLE t(a, b); INSERT INTO t VALUES (1, randomblob(50000))")
            .unwrap();
        flush(&connection);
        connection.close().unwrap();
    }
    // By the state beside it.
    let (code, _, said) = against(&one.replica(), &other.database(), "1");
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("is another database than the replica's") && said.contains(&other.replica()),
        "{said}"
    );
    // By nothing but what is in it.
    std::fs::copy(other.database(), other.folder.path().join("copy.db")).unwrap();
    let copy = other.folder.path().join("copy.db");
    let (code, told, said) = against(&one.replica(), &copy, "1");
    assert_eq!(code, 3, "{said}");
    assert_eq!(told["against"]["tied_by"], "newest");
    let shown = replvfs(&["verify", &one.replica(), "--against", &copy.display().to_string()]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("it may be another database"), "{shown}");
    // By its page size.
    let connection = Connection::open(other.folder.path().join("small.db")).unwrap();
    connection
        .execute_batch("PRAGMA page_size = 512; CREATE TABLE t(a)")
        .unwrap();
    let (code, _, said) = against(&one.replica(), &other.folder.path().join("small.db"), "1");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("its pages have 512 bytes"), "{said}");
    // And what is none.
    let text = other.folder.path().join("text.db");
    for bytes in [&b""[..], &[7; 5000]] {
        std::fs::write(&text, bytes).unwrap();
        let (code, _, said) = against(&one.replica(), &text, "1");
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("no SQLite database"), "{said}");
    }
}

#[test]
fn a_database_that_is_ahead() {
    for mode in ["wal", "delete"] {
        let pair = Pair::new();
        let connection = pair.open(mode);
        connection.execute_batch("CREATE TABLE t(a, b)").unwrap();
        flush(&connection);
        connection.close().unwrap();
        let plain = pair.plain();
        for n in 0..3 {
            plain.execute("INSERT INTO t VALUES (?1, 1)", [n]).unwrap();
        }
        let (code, told, said) = pair.against("20");
        assert_eq!(code, 3, "{mode}: {told} {said}");
        assert_eq!(told["against"]["outcome"], "ahead");
        assert_eq!(told["against"]["ahead_by"], 3);
        let database = pair.database().display().to_string();
        let shown = replvfs(&["verify", &pair.replica(), "--against", &database]);
        let shown = String::from_utf8(shown.stdout).unwrap();
        let newest = told["against"]["txid"].as_u64().unwrap();
        assert!(
            shown.contains(&format!("the replica ends at transaction {newest}")),
            "{shown}"
        );
        assert!(
            shown.contains("is ahead by 3 transactions; no process replicates it"),
            "{shown}"
        );
        plain.close().unwrap();
    }
}

/// What a crash leaves: a WAL with frames, of which some are in the replica.
#[test]
fn a_database_whose_process_died() {
    let pair = Pair::new();
    let connection = pair.open("wal");
    connection.execute_batch("CREATE TABLE t(a, b)").unwrap();
    flush(&connection);
    let dead = tempfile::tempdir().unwrap();
    for name in ["app.db", "app.db-wal", "app.db-replvfs"] {
        std::fs::copy(pair.folder.path().join(name), dead.path().join(name)).unwrap();
    }
    connection.close().unwrap();
    let database = dead.path().join("app.db");
    let before = content(dead.path());
    let (code, told, said) = against(&pair.replica(), &database, "20");
    assert_eq!(code, 0, "{told} {said}");
    assert_eq!(told["against"]["tied_by"], "wal");
    // SQLite recovers the WAL's index, and nothing else.
    let mut after = content(dead.path());
    after.retain(|(name, _)| !name.ends_with("-shm"));
    assert!(after == before, "something was written");
    let plain = Connection::open(&database).unwrap();
    plain.execute("INSERT INTO t VALUES (1, 1)", []).unwrap();
    plain.execute("INSERT INTO t VALUES (2, 1)", []).unwrap();
    let (code, told, said) = against(&pair.replica(), &database, "20");
    assert_eq!(code, 3, "{told} {said}");
    let told = &told["against"];
    assert_eq!(
        (&told["outcome"], &told["ahead_by"]),
        (&"ahead".into(), &2.into()),
        "{told}"
    );
    // Without the note it is the same WAL.
    std::fs::remove_file(dead.path().join("app.db-replvfs")).unwrap();
    let (_, told, _) = against(&pair.replica(), &database, "20");
    assert_eq!(told["against"]["ahead_by"], 2, "{told}");
    plain.close().unwrap();
}

/// It is replicated as it is, and so it is restored; only who asks SQLite hears of it.
#[test]
fn a_database_that_was_corrupt_when_it_was_captured() {
    let pair = Pair::new();
    let plain = pair.plain();
    plain
        .execute_batch("CREATE TABLE t(a UNIQUE, b); INSERT INTO t VALUES (1, zeroblob(9000)), (2, 3)")
        .unwrap();
    plain.close().unwrap();
    // The root of the index.
    let mut corrupt = std::fs::read(pair.database()).unwrap();
    corrupt[2 * 4096..3 * 4096].fill(0x5a);
    std::fs::write(pair.database(), &corrupt).unwrap();
    let connection = pair.open("delete");
    connection
        .query_row("SELECT count(b) FROM t NOT INDEXED", [], |_| Ok(()))
        .unwrap();
    flush(&connection);
    connection.close().unwrap();
    pair.assert_equal("corrupt as it is");
    assert_eq!(replvfs(&["verify", &pair.replica()]).status.code(), Some(0));

    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.db");
    let shown = out.display().to_string();
    let restore = |flags: &[&str]| {
        let replica = pair.replica();
        let arguments = [&["restore", &replica, &shown][..], flags].concat();
        let output = replvfs(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap(), said)
    };
    let (code, said) = restore(&["--verify"]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("it is no sound database") && said.contains("nothing was restored"),
        "{said}"
    );
    assert!(names(folder.path()).is_empty());
    for name in ["out.db", "out.db-wal", "out.db-replvfs"] {
        std::fs::write(folder.path().join(name), b"another").unwrap();
    }
    let before = content(folder.path());
    let (code, said) = restore(&["--verify", "--force"]);
    assert_eq!(code, 1, "{said}");
    assert!(content(folder.path()) == before, "what is there was touched");
    let (code, said) = restore(&["--force"]);
    assert_eq!(code, 0, "{said}");
    assert!(std::fs::read(&out).unwrap() == corrupt);
}
