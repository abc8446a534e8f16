//! A checkpoint of a process that stands by: the process that replicates keeps the WAL, and steps aside for it.
#![allow(missing_docs)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};

use replvfs_tests::peer::{SqlPeer, run_sql};
use replvfs_tests::{Scratch, compare_pages, flush, open, plain_image, pragma_number, restore_txid, status, use_wal};
use rusqlite::Connection;

/// Nothing is uploaded unless somebody waits.
const LAZY: &str = "&flush_interval=1h";
const OFTEN: &str = "&flush_interval=10ms";

#[test]
fn other_process() {
    run_sql();
}

fn owner(scratch: &Scratch, parameters: &str) -> Connection {
    let owner = open(&scratch.uri_with(parameters)).unwrap();
    use_wal(&owner);
    owner
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES(1)")
        .unwrap();
    flush(&owner);
    assert_eq!(status(&owner)["owner"], true);
    owner
}

fn owner_elsewhere(scratch: &Scratch) -> SqlPeer {
    let mut owner = SqlPeer::start(&scratch.uri());
    owner.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES(1); PRAGMA replvfs_flush");
    owner
}

/// Those of the header that is in the file.
fn salts(scratch: &Scratch) -> [u32; 2] {
    let wal = std::fs::read(scratch.file("app.db-wal")).unwrap();
    [16, 20].map(|at| u32::from_be_bytes(wal[at..at + 4].try_into().unwrap()))
}

fn wal_bytes(scratch: &Scratch) -> u64 {
    std::fs::metadata(scratch.file("app.db-wal")).unwrap().len()
}

fn rows_at(scratch: &Scratch, txid: Option<u64>) -> i64 {
    let out = scratch.file("restored.db");
    restore_txid(&scratch.replica(), &out, txid);
    if txid.is_none() {
        compare_pages(&plain_image(&scratch.database()), &std::fs::read(&out).unwrap()).unwrap();
    }
    let rows = Connection::open(&out)
        .unwrap()
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap();
    std::fs::remove_file(&out).unwrap();
    rows
}

/// The history has every commit, one by one, up to a number of rows, the first of which is that of a transaction.
fn is_whole(scratch: &Scratch, owner: &Connection, first: u64, rows: i64) {
    flush(owner);
    let status = status(owner);
    assert_eq!(
        (&status["generation"], &status["discontinuities"]),
        (&1.into(), &0.into())
    );
    let newest = pragma_number(owner, "replvfs_acked").unwrap();
    assert_eq!(newest, first + rows as u64 - 1);
    assert_eq!(rows_at(scratch, None), rows);
    for number in [1, rows - 1] {
        assert_eq!(rows_at(scratch, Some(first + number as u64 - 1)), number);
    }
}

/// `busy` of a checkpoint.
fn checkpoint(connection: &Connection, mode: &str) -> i64 {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    connection.query_row(&sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn a_checkpoint_of_a_standby_succeeds_as_on_plain_sqlite() {
    for (mode, parameters) in [("TRUNCATE", ""), ("RESTART", ""), ("TRUNCATE", LAZY), ("RESTART", LAZY)] {
        let scratch = Scratch::new();
        let owner = owner(&scratch, parameters);
        let first = pragma_number(&owner, "replvfs_acked").unwrap();
        let sql = "INSERT INTO t(b) VALUES(randomblob(5000))";
        let mut rows = 1;
        let mut standby = SqlPeer::start(&scratch.uri_with(parameters));
        for _ in 0..3 {
            standby.sql(sql);
            owner.execute_batch(sql).unwrap();
            standby.sql(sql);
            rows += 3;
            if parameters.is_empty() {
                flush(&owner);
            }
            let before = wal_bytes(&scratch);
            standby.sql(&format!("PRAGMA wal_checkpoint({mode})"));
            if mode == "TRUNCATE" {
                assert_eq!((before > 0, wal_bytes(&scratch)), (true, 0));
            }
        }
        // Again at once, with nothing in it, and then each of them first.
        standby.sql(&format!("PRAGMA wal_checkpoint({mode})"));
        standby.sql(sql);
        standby.sql(&format!("PRAGMA wal_checkpoint({mode})"));
        owner.execute_batch(sql).unwrap();
        is_whole(&scratch, &owner, first, rows + 2);
        standby.end();
    }
}

#[test]
fn the_busy_handler_of_a_standby_is_not_asked() {
    let scratch = Scratch::new();
    let owner = owner_elsewhere(&scratch);
    let mut standby = open(&scratch.uri()).unwrap();
    standby.busy_handler(Some(|_| panic!("busy"))).unwrap();
    standby.execute_batch("INSERT INTO t(b) VALUES(2)").unwrap();
    for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        assert_eq!(checkpoint(&standby, mode), 0, "{mode}");
    }
    assert_eq!(wal_bytes(&scratch), 0);
    flush(&standby);
    assert_eq!(rows_at(&scratch, None), 2);
    owner.end();
}

/// The process that replicates looks at the WAL, and reads and writes, while it is restarted.
#[test]
fn an_owner_that_is_busy_sees_one_history() {
    const ROUNDS: i64 = 60;
    let scratch = Scratch::new();
    let owner = owner(&scratch, OFTEN);
    let first = pragma_number(&owner, "replvfs_acked").unwrap();
    owner.execute_batch("PRAGMA busy_timeout=60000").unwrap();
    let (mut standby, ended) = (SqlPeer::start(&scratch.uri()), AtomicBool::new(false));
    standby.sql("PRAGMA busy_timeout=60000");
    let owner = std::thread::scope(|scope| {
        scope.spawn(|| {
            let reader = open(&scratch.uri_with(OFTEN)).unwrap();
            while !ended.load(Ordering::Relaxed) {
                flush(&reader);
            }
        });
        let (tell, told) = std::sync::mpsc::channel();
        let writing = scope.spawn(|| {
            for () in told {
                owner
                    .execute_batch("INSERT INTO t(b) VALUES('owner'); INSERT INTO t(b) VALUES('owner')")
                    .unwrap();
            }
            owner
        });
        for _ in 0..ROUNDS {
            tell.send(()).unwrap();
            standby.sql("INSERT INTO t(b) VALUES('standby'); PRAGMA wal_checkpoint(TRUNCATE)");
        }
        drop(tell);
        ended.store(true, Ordering::Relaxed);
        writing.join().unwrap()
    });
    is_whole(&scratch, &owner, first, 1 + 3 * ROUNDS);
    standby.end();
}

/// Who was stepped aside for, by hand.
struct Asker(BufReader<UnixStream>);

impl Asker {
    fn ask(scratch: &Scratch) -> (Asker, String) {
        let mut asker = Asker::asking(scratch, "aside");
        let answer = asker.answer();
        (asker, answer)
    }

    fn asking(scratch: &Scratch, what: &str) -> Asker {
        let stream = UnixStream::connect(scratch.file("app.db-replvfs-sock")).unwrap();
        writeln!(&stream, "replvfs 1 {what}").unwrap();
        Asker(BufReader::new(stream))
    }

    fn say(&mut self, what: &str) -> String {
        writeln!(self.0.get_mut(), "replvfs 1 {what}").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        answer
            .trim_end()
            .strip_prefix("replvfs 1 ")
            .unwrap_or_default()
            .to_owned()
    }
}

#[test]
fn it_steps_aside_for_nobody_without_the_write_lock() {
    let scratch = Scratch::new();
    let owner = owner(&scratch, "");
    let first = pragma_number(&owner, "replvfs_acked").unwrap();
    let (_, answer) = Asker::ask(&scratch);
    assert!(answer.starts_with("no "), "{answer}");
    let mut plain = SqlPeer::start(&format!("file:{}", scratch.database().display()));
    plain.sql("INSERT INTO t(b) VALUES(2)");
    is_whole(&scratch, &owner, first, 2);
    plain.end();
}

/// Whatever is said, or not, nothing is taken for the history that is none.
#[test]
fn who_asked_may_die_or_lie() {
    for said in [
        None,
        Some("back"),
        Some("over 1 2"),
        Some("over NEXT 2"),
        Some("over 1"),
        Some("x"),
    ] {
        let scratch = Scratch::new();
        let owner = owner(&scratch, "");
        let first = pragma_number(&owner, "replvfs_acked").unwrap();
        let mut plain = SqlPeer::start(&format!("file:{}", scratch.database().display()));
        plain.sql("PRAGMA busy_timeout=0; BEGIN IMMEDIATE");
        let (mut asker, answer) = Asker::ask(&scratch);
        assert_eq!(answer, "aside");
        if let Some(said) = said {
            let next = salts(&scratch)[0].wrapping_add(1);
            assert_eq!(asker.say(&said.replace("NEXT", &next.to_string())), "kept");
        }
        drop(asker);
        plain.sql("INSERT INTO t(b) VALUES(2)");
        plain.sql("COMMIT");
        // The WAL is kept again, as soon as the end was noticed.
        flush(&owner);
        plain.sql("PRAGMA wal_checkpoint(TRUNCATE)");
        assert!(wal_bytes(&scratch) > 0, "{said:?}");
        plain.sql("INSERT INTO t(b) VALUES(3)");
        is_whole(&scratch, &owner, first, 3);
        plain.end();
    }
}

/// The WAL is restarted while nobody says so: what was committed before that is lost to the history, which has to say so.
#[test]
fn a_restart_that_nobody_told_of_is_a_discontinuity() {
    for owner_writes_first in [false, true] {
        let scratch = Scratch::new();
        let owner = owner(&scratch, LAZY);
        let mut plain = SqlPeer::start(&format!("file:{}", scratch.database().display()));
        plain.sql("BEGIN IMMEDIATE; INSERT INTO t(b) VALUES(2)");
        let (asker, answer) = Asker::ask(&scratch);
        assert_eq!(answer, "aside");
        plain.sql("COMMIT; PRAGMA wal_checkpoint(TRUNCATE)");
        assert_eq!(wal_bytes(&scratch), 0);
        plain.sql("INSERT INTO t(b) VALUES(3)");
        if owner_writes_first {
            owner.execute_batch("INSERT INTO t(b) VALUES(4)").unwrap();
            drop(asker);
        } else {
            drop(asker);
            flush(&owner);
            owner.execute_batch("INSERT INTO t(b) VALUES(4)").unwrap();
        }
        flush(&owner);
        assert_eq!(status(&owner)["discontinuities"], 1);
        assert_eq!(rows_at(&scratch, None), 4);
        plain.end();
    }
}

/// The first who writes to a WAL that nobody has begun gives it salts of its own (`nCkpt` of `sqlite3WalWriteFrames`), and nothing was restarted.
#[test]
fn an_empty_wal_that_was_asked_about_is_begun_by_anybody() {
    for mode in ["RESTART", "TRUNCATE"] {
        for begun_by_standby in [false, true] {
            let scratch = Scratch::new();
            let owner = owner(&scratch, "");
            let first = pragma_number(&owner, "replvfs_acked").unwrap();
            assert_eq!(checkpoint(&owner, "TRUNCATE"), 0);
            let mut standby = SqlPeer::start(&scratch.uri());
            let mut plain = SqlPeer::start(&format!("file:{}", scratch.database().display()));
            standby.sql(&format!("PRAGMA wal_checkpoint({mode})"));
            let writer = if begun_by_standby { &mut standby } else { &mut plain };
            writer.sql("INSERT INTO t(b) VALUES(2)");
            is_whole(&scratch, &owner, first, 2);
            plain.end();
            standby.end();
        }
    }
}

/// A process that has the stream of the one that asked, as a child of it, says nothing and does not end.
#[test]
fn a_stream_that_stays_open_keeps_nothing() {
    let scratch = Scratch::new();
    let owner = owner(&scratch, "");
    let first = pragma_number(&owner, "replvfs_acked").unwrap();
    let mut plain = SqlPeer::start(&format!("file:{}", scratch.database().display()));
    plain.sql("PRAGMA busy_timeout=60000; BEGIN IMMEDIATE");
    let (asker, answer) = Asker::ask(&scratch);
    assert_eq!(answer, "aside");
    plain.sql("INSERT INTO t(b) VALUES(2)");
    plain.sql("COMMIT");
    is_whole(&scratch, &owner, first, 2);
    plain.sql("PRAGMA busy_timeout=0; PRAGMA wal_checkpoint(TRUNCATE)");
    assert!(wal_bytes(&scratch) > 0);
    drop(asker);
    plain.end();
}

/// In the place of the process that replicates, which is stopped.
fn deaf(scratch: &Scratch) -> UnixListener {
    let socket = scratch.file("app.db-replvfs-sock");
    std::fs::remove_file(&socket).unwrap();
    let deaf = UnixListener::bind(&socket).unwrap();
    deaf.set_nonblocking(true).unwrap();
    deaf
}

fn asked(deaf: &UnixListener) -> usize {
    std::iter::from_fn(|| deaf.accept().ok()).count()
}

/// It would be waited for with the WRITE lock, which keeps all others from writing.
#[test]
fn who_does_not_answer_is_asked_once() {
    let scratch = Scratch::new();
    let owner = owner_elsewhere(&scratch);
    let mut standby = open(&scratch.uri()).unwrap();
    standby.busy_handler(Some(|times| times < 3)).unwrap();
    let deaf = deaf(&scratch);
    for _ in 0..2 {
        assert_eq!(checkpoint(&standby, "TRUNCATE"), 1);
        assert_eq!(asked(&deaf), 1);
    }
    owner.end();
}

/// Nor is it asked for a writer, which goes on in the WAL as it is.
#[test]
fn a_checkpoint_that_did_not_begin_is_over() {
    let scratch = Scratch::new();
    let owner = owner_elsewhere(&scratch);
    let standby = open(&scratch.uri()).unwrap();
    standby.execute_batch("INSERT INTO t(b) VALUES(2)").unwrap();
    let plain = || Connection::open(scratch.database()).unwrap();
    let writer = plain();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    // With the CHECKPOINT lock, it waits for the WRITE lock.
    static WAITS: AtomicBool = AtomicBool::new(false);
    static GOES_ON: AtomicBool = AtomicBool::new(false);
    let mut checkpointer = plain();
    let waits = |_| {
        WAITS.store(true, Ordering::Release);
        while !GOES_ON.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        true
    };
    checkpointer.busy_handler(Some(waits)).unwrap();
    let checkpointing = std::thread::spawn(move || checkpoint(&checkpointer, "FULL"));
    while !WAITS.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    assert_eq!(checkpoint(&standby, "PASSIVE"), 1);
    writer.execute_batch("COMMIT").unwrap();
    GOES_ON.store(true, Ordering::Release);
    assert_eq!(checkpointing.join().unwrap(), 0);
    let deaf = deaf(&scratch);
    standby.execute_batch("INSERT INTO t(b) VALUES(3)").unwrap();
    assert_eq!(asked(&deaf), 0);
    owner.end();
}

/// The process that replicates was stopped for longer than anybody waits.
#[test]
fn who_has_hung_up_disturbs_nobody_who_waits() {
    let scratch = Scratch::new();
    let mut owner = owner_elsewhere(&scratch);
    let plain = Connection::open(scratch.database()).unwrap();
    for _ in 0..5 {
        owner.signal("-STOP");
        plain.execute_batch("BEGIN IMMEDIATE").unwrap();
        for _ in 0..10 {
            drop(Asker::asking(&scratch, "aside"));
        }
        let mut waits = Asker::asking(&scratch, "aside");
        for _ in 0..10 {
            drop(Asker::asking(&scratch, "aside"));
        }
        owner.signal("-CONT");
        assert_eq!(waits.answer(), "aside");
        // All those are accepted in their order.
        let mut last = Asker::asking(&scratch, "what?");
        plain.execute_batch("COMMIT").unwrap();
        assert_eq!(checkpoint(&plain, "TRUNCATE"), 0);
        plain.execute_batch("INSERT INTO t(b) VALUES(2)").unwrap();
        let [first, second] = salts(&scratch);
        assert_eq!(waits.say(&format!("over {first} {second}")), "kept");
        assert!(last.answer().starts_with("no "));
        owner.sql("PRAGMA replvfs_flush");
    }
    drop(plain);
    owner.end();
    let next = open(&scratch.uri()).unwrap();
    next.execute_batch("INSERT INTO t(b) VALUES(3)").unwrap();
    flush(&next);
    assert_eq!(status(&next)["generation"], 1);
    assert_eq!(rows_at(&scratch, None), 7);
}
