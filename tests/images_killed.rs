//! A process is killed while it makes an image, and another goes on: each of its transactions can be restored afterwards.
//!
//! The other process is this test program once more, which runs the test `other_process` and does what its environment says.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use replvfs::Config;
use replvfs::format::{Generation, Key, Manifest};
use replvfs_tests::peer::Peer;
use replvfs_tests::{Scratch, block_on, check_integrity, flush, open, pragma_number, restore_txid, status, use_wal};
use rusqlite::Connection;

const URI: &str = "REPLVFS_TEST_OTHER_PROCESS";
const ROWS: u64 = 800;
const ROWS_A_STEP: u64 = 40;

/// Which transaction it is says what it writes: 480 KB.
const STEP: &str = "BEGIN IMMEDIATE; UPDATE n SET v = v + 1;
    UPDATE t SET c = (SELECT v FROM n), b = replace(hex(zeroblob(1250)), '00', printf('%08d', (SELECT v FROM n)))
        WHERE a BETWEEN (SELECT v FROM n) * 53 % 760 + 1 AND (SELECT v FROM n) * 53 % 760 + 40; COMMIT";

/// An image is due after half of the database was logged.
fn connect(scratch: &str) -> Connection {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let config = Config::default().memory_limit(1 << 20).vfs_name("replvfs-images");
        let day = Duration::from_secs(24 * 60 * 60);
        replvfs::register(config.images_for_test(0, day, Duration::ZERO, true)).unwrap();
    });
    let uri = format!("file:{scratch}/app.db?vfs=replvfs-images&replica=fs://{scratch}/replica&flush_interval=10ms");
    let connection = open(&uri).unwrap();
    connection.busy_timeout(Duration::from_secs(20)).unwrap();
    connection
}

/// Makes one step for each line, and answers whether an image is being made.
#[test]
fn other_process() {
    let Ok(scratch) = std::env::var(URI) else { return };
    let connection = connect(&scratch);
    println!("\nready");
    for line in std::io::stdin().lines() {
        line.unwrap();
        connection.execute_batch(STEP).unwrap();
        println!("{}", status(&connection)["making_image"]);
    }
}

struct Other(Peer);

impl Other {
    fn start(scratch: &Scratch) -> Other {
        Other(Peer::start(&[(URI, scratch.path().as_os_str())]))
    }

    /// Whether an image is being made after one more transaction.
    fn step(&mut self) -> bool {
        self.0.tell("step");
        self.0.line() == "true"
    }

    fn kill(self) {
        self.0.kill();
    }
}

fn keys(scratch: &Scratch) -> impl Iterator<Item = Key> {
    scratch.objects().into_iter().map(|(key, _)| key)
}

fn chunks(scratch: &Scratch) -> BTreeSet<Key> {
    keys(scratch).filter(|key| matches!(key, Key::Chunk(_))).collect()
}

fn images(scratch: &Scratch) -> Vec<Key> {
    keys(scratch).filter(|key| matches!(key, Key::Image(..))).collect()
}

/// Those that an image names.
fn named(scratch: &Scratch) -> BTreeSet<Key> {
    let store = scratch.store();
    let read = |key: Key| Manifest::decode(&block_on(store.read(&key)).unwrap()).unwrap();
    let names = images(scratch)
        .into_iter()
        .map(read)
        .flat_map(|manifest| manifest.chunks);
    names.collect::<Vec<_>>().into_iter().map(Key::Chunk).collect()
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn check(scratch: &Scratch, txid: u64, steps: u64) {
    let out = scratch.file("restored.db");
    restore_txid(&scratch.replica(), &out, Some(txid));
    check_integrity(&out);
    let restored = Connection::open(&out).unwrap();
    let mut expected = vec![0; ROWS as usize];
    for step in 1..=steps {
        let first = (step * 53 % 760) as usize;
        expected[first..first + ROWS_A_STEP as usize].fill(step);
    }
    let sql = "SELECT c, b = replace(hex(zeroblob(1250)), '00', printf('%08d', c)) FROM t ORDER BY a";
    let mut statement = restored.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| {
        Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, bool>(1)?))
    });
    let rows: Vec<_> = rows.unwrap().map(Result::unwrap).collect();
    assert!(rows.iter().all(|(_, whole)| *whole), "transaction {txid}");
    let found: Vec<u64> = rows.into_iter().map(|(step, _)| step).collect();
    assert_eq!(found, expected, "transaction {txid}");
    drop(statement);
    drop(restored);
    std::fs::remove_file(&out).unwrap();
}

#[test]
fn a_process_is_killed_while_it_makes_an_image() {
    let scratch = Scratch::in_memory();
    let path = scratch.path().to_str().unwrap().to_owned();
    let connection = connect(&path);
    use_wal(&connection);
    connection
        .execute_batch(
            "CREATE TABLE n(v); INSERT INTO n VALUES(0);
             CREATE TABLE t(a INTEGER PRIMARY KEY, c, b);
             WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM i WHERE i < 800)
                 INSERT INTO t(c, b) SELECT 0, replace(hex(zeroblob(1250)), '00', printf('%08d', 0)) FROM i;",
        )
        .unwrap();
    flush(&connection);
    let before = pragma_number(&connection, "replvfs_txid").unwrap();
    drop(connection);
    let (chunk, away) = (scratch.file("replica/chunk"), scratch.file("away"));
    let mut in_the_middle = 0;
    for round in 0..8 {
        let mut other = Other::start(&scratch);
        if round % 4 == 3 {
            // One comes to its end.
            let there = images(&scratch).len();
            wait("another image", || {
                other.step();
                images(&scratch).len() > there
            });
        }
        // Chunks cannot be created any more, so an image that is begun does not end.
        std::fs::rename(&chunk, &away).unwrap();
        std::fs::write(&chunk, "").unwrap();
        let mut steps = 0;
        while !other.step() {
            steps += 1;
            assert!(steps < 500, "no image is due");
        }
        if round % 2 == 0 {
            other.kill();
            std::fs::remove_file(&chunk).unwrap();
            std::fs::rename(&away, &chunk).unwrap();
            continue;
        }
        let at_rest = std::fs::read_dir(&away).unwrap().count();
        std::fs::remove_file(&chunk).unwrap();
        std::fs::rename(&away, &chunk).unwrap();
        wait("a chunk", || std::fs::read_dir(&chunk).unwrap().count() > at_rest);
        other.kill();
        in_the_middle += usize::from(!chunks(&scratch).is_subset(&named(&scratch)));
    }
    assert!(in_the_middle > 0, "each image was complete when its process was killed");
    let connection = connect(&path);
    let steps: i64 = connection.query_row("SELECT v FROM n", [], |row| row.get(0)).unwrap();
    let steps = steps.cast_unsigned();
    flush(&connection);
    let told = status(&connection);
    assert_eq!(
        (&told["generation"], &told["failed"]),
        (&1.into(), &serde_json::Value::Null),
        "{told}"
    );
    assert!(
        images(&scratch)
            .iter()
            .all(|key| matches!(key, Key::Image(Generation(1), _)))
    );
    assert!(images(&scratch).len() >= 3, "{:?}", images(&scratch));
    assert!(named(&scratch).is_subset(&chunks(&scratch)));
    assert_eq!(pragma_number(&connection, "replvfs_txid"), Some(before + steps));
    drop(connection);
    for step in 0..=steps {
        check(&scratch, before + step, step);
    }
}
