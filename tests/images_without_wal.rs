//! Further images where no state of the database can be read beside its writers: in the rollback-journal modes, and under `locking_mode=EXCLUSIVE`.
//! They are made out of the replica.
#![allow(missing_docs)]

use std::process::Command;
use std::sync::Once;
use std::time::{Duration, Instant, SystemTime};

use replvfs::Config;
use replvfs::config::Retention;
use replvfs::format::Key;
use replvfs::prune::{PruneOptions, prune};
use replvfs::verify::{VerifyOptions, verify};
use replvfs_tests::peer::Peer;
use replvfs_tests::{
    Rng, Scratch, block_on, check_integrity, compare_pages, flush, open, plain_image, pragma_number, restore_txid,
    status,
};
use replvfs_vfs::types::UnixMillis;
use rusqlite::Connection;

/// An image is due after half of the database was logged, and is put together in parts of three chunks. Each chunk that is believed to be unchanged
/// is compared.
const VFS: &str = "replvfs-images-without-wal";
const JOURNALS: [&str; 5] = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"];

fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let day = Duration::from_secs(24 * 60 * 60);
        let config = Config::default().memory_limit(1 << 20).vfs_name(VFS);
        let config = config.images_for_test(0, day, Duration::ZERO, true);
        replvfs::register(config.image_room_for_test(3 << 20)).expect("registering the VFS");
    });
}

fn connect(scratch: &Scratch) -> Connection {
    register();
    let uri = format!(
        "file:{}?vfs={VFS}&replica={}&flush_interval=10ms",
        scratch.database().display(),
        scratch.replica()
    );
    let connection = open(&uri).unwrap();
    // Whoever is in the way of these writers is noticed at once.
    connection.busy_timeout(Duration::ZERO).unwrap();
    connection
}

/// How a database is written.
#[derive(Debug, Clone, Copy)]
struct Mode {
    journal: &'static str,
    exclusive: bool,
}

impl Mode {
    fn all() -> impl Iterator<Item = Mode> {
        let rollback = JOURNALS
            .into_iter()
            .flat_map(|journal| [false, true].map(|exclusive| Mode { journal, exclusive }));
        rollback.chain([Mode {
            journal: "WAL",
            exclusive: true,
        }])
    }

    /// Some 12 MiB.
    fn begin(self, scratch: &Scratch, pragma: &str) -> Connection {
        let connection = connect(scratch);
        connection.execute_batch(pragma).unwrap();
        if self.exclusive {
            connection.execute_batch("PRAGMA locking_mode=EXCLUSIVE").unwrap();
        }
        let journal: String = connection
            .query_row(&format!("PRAGMA journal_mode={}", self.journal), [], |row| row.get(0))
            .unwrap();
        assert_eq!(journal.to_uppercase(), self.journal);
        connection
            .execute_batch(
                "CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 1200) INSERT INTO t(b) SELECT randomblob(10000) FROM n;",
            )
            .unwrap();
        connection
    }
}

fn wait(what: &str, connection: &Connection, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "{what}: {}", status(connection));
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn rests(connection: &Connection) {
    wait("the image comes to its end", connection, || {
        status(connection)["making_image"] == false
    });
}

/// As it is in its files. They are copied by another process: this one would lose its locks on them.
fn state(connection: &Connection, scratch: &Scratch) -> (u64, Vec<u8>) {
    let copies = scratch.file("copies");
    std::fs::create_dir(&copies).unwrap();
    for name in ["app.db", "app.db-wal"].map(|name| scratch.file(name)) {
        if name.exists() {
            assert!(Command::new("cp").arg(name).arg(&copies).status().unwrap().success());
        }
    }
    let pages = plain_image(&copies.join("app.db"));
    std::fs::remove_dir_all(&copies).unwrap();
    (pragma_number(connection, "replvfs_txid").unwrap(), pages)
}

fn check(scratch: &Scratch, txid: u64, truth: &[u8]) {
    let out = scratch.file("restored.db");
    restore_txid(&scratch.replica(), &out, Some(txid));
    compare_pages(truth, &std::fs::read(&out).unwrap()).unwrap_or_else(|error| panic!("txid {txid}: {error}"));
    std::fs::remove_file(&out).unwrap();
}

fn is_healthy(connection: &Connection) {
    let told = status(connection);
    assert_eq!(told["failed"], serde_json::Value::Null, "{told}");
    assert_eq!(
        (&told["discontinuities"], &told["generation"]),
        (&0.into(), &1.into()),
        "{told}"
    );
}

/// Everything that moves pages about.
fn step(rng: &mut Rng) -> String {
    let at = rng.below(1200);
    match rng.below(9) {
        0 => "VACUUM".to_owned(),
        1 => format!("DELETE FROM t WHERE a > {}", 300 + at / 2),
        2 => "PRAGMA incremental_vacuum(300)".to_owned(),
        3 => format!(
            "CREATE TABLE u AS SELECT * FROM t WHERE a % 7 = {}; DROP TABLE u",
            at % 7
        ),
        4 => format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < {at}) INSERT INTO t(b) SELECT zeroblob(4000) FROM n"
        ),
        _ => format!("UPDATE t SET b = randomblob(9000) WHERE a BETWEEN {at} AND {}", at + 50),
    }
}

#[test]
fn images_are_made_in_every_mode() {
    for (seed, mode) in (0..).zip(Mode::all()) {
        let scratch = Scratch::in_memory();
        let mut rng = Rng::new(seed);
        let pragma = [
            "PRAGMA auto_vacuum=INCREMENTAL",
            "PRAGMA page_size=1024",
            "PRAGMA page_size=65536",
        ];
        let connection = mode.begin(&scratch, pragma[seed as usize % 3]);
        let mut truth = Vec::new();
        for _ in 0..50 {
            let sql = step(&mut rng);
            connection
                .execute_batch(&sql)
                .unwrap_or_else(|error| panic!("{mode:?}: {sql}: {error}"));
            if rng.one_in(3) {
                flush(&connection);
                truth.push(state(&connection, &scratch));
            }
            if rng.one_in(6) {
                rests(&connection);
            }
        }
        flush(&connection);
        truth.push(state(&connection, &scratch));
        rests(&connection);
        is_healthy(&connection);
        let told = status(&connection);
        assert_eq!(told["last_image"]["made_of"], "replica", "{mode:?}: {told}");
        let made = scratch.images(1);
        assert!(made.len() >= 4, "{mode:?}: {made:?}");
        for (txid, pages) in &truth {
            check(&scratch, *txid, pages);
        }
    }
}

/// The chunks that the store has are out of reach: an image that has begun stays in the making.
struct Stalled<'a>(&'a Scratch);

impl Stalled<'_> {
    fn new(scratch: &Scratch) -> Stalled<'_> {
        let chunk = scratch.file("replica/chunk");
        std::fs::rename(&chunk, scratch.file("away")).unwrap();
        std::fs::write(&chunk, "").unwrap();
        Stalled(scratch)
    }
}

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        let chunk = self.0.file("replica/chunk");
        std::fs::remove_file(&chunk).unwrap();
        std::fs::rename(self.0.file("away"), &chunk).unwrap();
    }
}

/// Neither the writers of this process nor anybody else ever finds the database locked, at no moment of an image. No commit waits for it.
#[test]
fn nobody_meets_an_image_that_is_made() {
    for journal in JOURNALS {
        let exclusive = false;
        let scratch = Scratch::in_memory();
        let first = Mode { journal, exclusive }.begin(&scratch, "");
        let second = connect(&scratch);
        second
            .query_row(&format!("PRAGMA journal_mode={journal}"), [], |_| Ok(()))
            .unwrap();
        let plain = Connection::open(scratch.database()).unwrap();
        plain.busy_timeout(Duration::ZERO).unwrap();
        flush(&first);
        rests(&first);
        let before = status(&first)["last_image"]["txid"].as_u64();
        let mut truth = Vec::new();
        let mut write = |n: i64| {
            let writer = [&first, &second][n as usize % 2];
            writer
                .execute(
                    "UPDATE t SET b = randomblob(10000) WHERE a BETWEEN ?1 AND ?1 + 90",
                    [n * 83 % 1100],
                )
                .unwrap();
            // Changes nothing, and tells whether anybody has a lock.
            plain.execute_batch("BEGIN EXCLUSIVE; ROLLBACK").unwrap();
            flush(&first);
            if n % 5 == 0 {
                truth.push(state(&first, &scratch));
            }
        };
        let stalled = Stalled::new(&scratch);
        let mut n = 0;
        while status(&first)["making_image"] == false {
            write(n);
            n += 1;
            assert!(n < 1000, "{journal}: no image is due: {}", status(&first));
        }
        for n in n..n + 20 {
            write(n);
            assert_eq!(status(&first)["making_image"], true, "{journal}");
        }
        assert_eq!(status(&first)["last_image"]["txid"].as_u64(), before, "{journal}");
        drop(stalled);
        let mut n = n + 20;
        wait("another image", &first, || {
            write(n);
            n += 1;
            status(&first)["last_image"]["txid"].as_u64() > before
        });
        rests(&first);
        is_healthy(&first);
        for (txid, pages) in &truth {
            check(&scratch, *txid, pages);
        }
    }
}

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    UnixMillis(i64::try_from(since.as_millis()).unwrap())
}

/// What further images are for.
#[test]
fn what_is_before_the_window_is_deleted() {
    for mode in Mode::all() {
        let scratch = Scratch::in_memory();
        let connection = mode.begin(&scratch, "");
        flush(&connection);
        rests(&connection);
        let first = scratch.images(1);
        let mut states = Vec::new();
        for n in 0.. {
            connection
                .execute(
                    "UPDATE t SET b = randomblob(10000) WHERE a BETWEEN ?1 AND ?1 + 90",
                    [n * 83 % 1100],
                )
                .unwrap();
            flush(&connection);
            let known = scratch.images(1);
            // Each of the transactions before is in a segment of its own.
            if known.len() >= first.len() + 2 && known.last().unwrap() - first.last().unwrap() >= 8 {
                let at = now();
                let (txid, pages) = state(&connection, &scratch);
                states.push((txid, at, pages));
            }
            if known.len() >= first.len() + 4 && states.len() > 10 && status(&connection)["making_image"] == false {
                break;
            }
            assert!(n < 1000, "{mode:?}: {}", status(&connection));
        }
        // The window ends with the newest object.
        connection.execute_batch("UPDATE t SET b = 'last' WHERE a = 1").unwrap();
        flush(&connection);
        let (at, before) = (now(), scratch.objects());
        // The image that the first of them follows may be as new.
        let states = &states[3..];
        let window = u64::try_from(at.0 - states[0].1.0).unwrap();
        let options = PruneOptions {
            retention: Retention::For(Duration::from_millis(window)),
            grace: Duration::ZERO,
            ..PruneOptions::at(at)
        };
        let done = block_on(prune(&scratch.store(), &options)).unwrap();
        let is_of_the_log = |key: &Key| matches!(key, Key::Log(..));
        let deleted = done
            .deletions
            .iter()
            .filter(|deletion| is_of_the_log(&deletion.key))
            .count();
        assert!(deleted >= 5, "{mode:?}: {deleted} of {}", before.len());
        for (txid, _, pages) in states {
            check(&scratch, *txid, pages);
        }
        // The writer does not notice.
        connection.execute_batch("UPDATE t SET b = 'on' WHERE a = 1").unwrap();
        flush(&connection);
        is_healthy(&connection);
        let (txid, pages) = state(&connection, &scratch);
        check(&scratch, txid, &pages);
    }
}

const SCRATCH: &str = "REPLVFS_TEST_OTHER_PROCESS";
const JOURNAL: &str = "REPLVFS_TEST_OTHER_JOURNAL";

/// Which transaction it is says what it writes: some 700 KB.
const STEP: &str = "BEGIN IMMEDIATE; UPDATE n SET v = v + 1;
    UPDATE t SET c = (SELECT v FROM n), b = replace(hex(zeroblob(1250)), '00', printf('%08d', (SELECT v FROM n)))
        WHERE a BETWEEN (SELECT v FROM n) * 53 % 760 + 1 AND (SELECT v FROM n) * 53 % 760 + 60; COMMIT";

/// A transaction for each line, and what came of it once it is in the replica.
#[test]
fn other_process() {
    let Some(folder) = std::env::var_os(SCRATCH) else {
        return;
    };
    register();
    let folder = folder.to_str().unwrap();
    let connection = open(&format!(
        "file:{folder}/app.db?vfs={VFS}&replica=fs://{folder}/replica&flush_interval=10ms"
    ))
    .unwrap();
    let journal = std::env::var(JOURNAL).unwrap();
    if journal == "WAL" {
        connection.execute_batch("PRAGMA locking_mode=EXCLUSIVE").unwrap();
    }
    connection
        .query_row(&format!("PRAGMA journal_mode={journal}"), [], |_| Ok(()))
        .unwrap();
    connection
        .execute_batch(
            "BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS n(v);
             CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, c, b);
             INSERT INTO n SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM n);
             INSERT INTO t(c, b) WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM i WHERE i < 820)
                 SELECT 0, replace(hex(zeroblob(1250)), '00', printf('%08d', 0)) FROM i WHERE NOT EXISTS (SELECT 1 FROM t);
             COMMIT;",
        )
        .unwrap();
    println!("\nready");
    for line in std::io::stdin().lines() {
        line.unwrap();
        connection.execute_batch(STEP).unwrap();
        flush(&connection);
        let step: i64 = connection.query_row("SELECT v FROM n", [], |row| row.get(0)).unwrap();
        let told = status(&connection);
        assert_eq!(told["failed"], serde_json::Value::Null);
        println!("@ {} {step} {}", told["acked"], u8::from(told["making_image"] == true));
    }
}

/// Seen from here.
struct Other(Peer);

impl Other {
    fn start(scratch: &Scratch, journal: &str) -> Other {
        let place = scratch.path().as_os_str();
        Other(Peer::start(&[(SCRATCH, place), (JOURNAL, journal.as_ref())]))
    }

    /// A transaction that is in the replica, which step it was, and whether an image is being made.
    fn step(&mut self) -> (u64, u64, bool) {
        self.0.tell("");
        loop {
            let line = self.0.line();
            if let Some(told) = line.strip_prefix("@ ") {
                let told: Vec<u64> = told.split(' ').map(|number| number.parse().unwrap()).collect();
                return (told[0], told[1], told[2] == 1);
            }
        }
    }
}

fn check_step(scratch: &Scratch, txid: u64, step: u64) {
    let out = scratch.file("restored.db");
    restore_txid(&scratch.replica(), &out, Some(txid));
    check_integrity(&out);
    let restored = Connection::open(&out).unwrap();
    let mut expected = vec![0; 820];
    for step in 1..=step {
        let first = (step * 53 % 760) as usize;
        expected[first..first + 60].fill(step);
    }
    let sql = "SELECT c FROM t WHERE b = replace(hex(zeroblob(1250)), '00', printf('%08d', c)) ORDER BY a";
    let mut statement = restored.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| row.get::<_, i64>(0)).unwrap();
    let found: Vec<u64> = rows.map(|row| row.unwrap().cast_unsigned()).collect();
    assert_eq!(found, expected, "transaction {txid}");
    drop(statement);
    drop(restored);
    std::fs::remove_file(&out).unwrap();
}

/// Chunks that no image names are all that is left of it.
#[test]
fn a_process_is_killed_while_it_makes_an_image() {
    for journal in ["DELETE", "WAL"] {
        let scratch = Scratch::in_memory();
        let chunk = scratch.file("replica/chunk");
        let mut acked = Vec::new();
        let mut unnamed = 0;
        for round in 0..6 {
            let mut other = Other::start(&scratch, journal);
            let (txid, step, _) = other.step();
            acked.push((txid, step));
            let stalled = Stalled::new(&scratch);
            while let (txid, step, false) = other.step() {
                acked.push((txid, step));
                assert!(acked.len() < 1000, "{journal}: no image is due");
            }
            if round % 2 == 1 {
                let at_rest = std::fs::read_dir(scratch.file("away")).unwrap().count();
                drop(stalled);
                let end = Instant::now() + Duration::from_secs(60);
                while std::fs::read_dir(&chunk).unwrap().count() == at_rest {
                    assert!(Instant::now() < end, "{journal}: no chunk");
                    std::thread::yield_now();
                }
            }
            drop(other);
            let left: Vec<_> = std::fs::read_dir(scratch.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            let is_known = |name: &str| name.starts_with("app.db") || ["replica", "away"].contains(&name);
            assert!(left.iter().all(|name| is_known(name.to_str().unwrap())), "{left:?}");
            if round % 2 == 1 {
                let verified = block_on(verify(&scratch.store(), &VerifyOptions::default())).unwrap();
                assert!(verified.findings.is_empty(), "{journal}: {:?}", verified.findings);
                unnamed += verified.unreferenced.chunks;
            }
        }
        assert!(
            unnamed > 0,
            "{journal}: each image was complete when its process was killed"
        );
        let mut other = Other::start(&scratch, journal);
        let mut step = || {
            let (txid, step, _) = other.step();
            acked.push((txid, step));
            assert!(acked.len() < 1000, "{journal}: no image is due");
        };
        let generation = |(key, _)| match key {
            Key::Image(generation, txid) => Some((generation, txid)),
            _ => None,
        };
        step();
        let images = || scratch.objects().into_iter().filter_map(generation).collect::<Vec<_>>();
        let before = images();
        let newest = before.iter().max().unwrap().0;
        while images().iter().filter(|(of, _)| *of == newest).count()
            < before.iter().filter(|(of, _)| *of == newest).count() + 2
        {
            step();
        }
        drop(other);
        for (txid, step) in acked {
            check_step(&scratch, txid, step);
        }
    }
}
