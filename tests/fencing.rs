//! Machines that take over from each other, each with a file of its own: what one of them was told is in the replica stays there, and the one
//! that was replaced says so.
//!
//! A machine is this test program once more, which runs the test `machine`.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use replvfs::config::Retention;
use replvfs::format::{Generation, Key};
use replvfs::local_state;
use replvfs::merge::{MergeOptions, merge};
use replvfs::prune::{PruneOptions, prune};
use replvfs::restore::{RestoreOptions, Restored};
use replvfs::store::{Store, StoreOptions};
use replvfs_tests::{Rng, Scratch, block_on, number, open, restore_with, status, use_wal};
use replvfs_vfs::types::UnixMillis;
use rusqlite::{Connection, ErrorCode};

const URI: &str = "REPLVFS_TEST_MACHINE";
const FIRST_ROW: &str = "REPLVFS_TEST_FIRST_ROW";
const STOP: &str = "&on_fenced=stop";
/// What a machine is told instead of "go on": wait until it is known that it is fenced.
const LEARN: &str = "learn";
/// From this row on each is written by several transactions.
const MANY: u64 = 9_000_000;
/// Or: its status at once.
const TELL: &str = "tell";

/// Writes a row and flushes it, again and again, and says which rows are in the replica; until it is replaced, or its input ends. One that
/// refuses writes when it is replaced goes on.
#[test]
fn machine() {
    let Ok(uri) = std::env::var(URI) else { return };
    let first = number(FIRST_ROW).unwrap();
    let connection = open(&uri).unwrap();
    use_wal(&connection);
    println!("\nopen");
    let mut lines = std::io::stdin().lines();
    for row in first.. {
        let Some(line) = lines.next() else { return };
        match line.unwrap().as_str() {
            LEARN => {
                println!("learnt {}", learn(&connection));
                continue;
            }
            TELL => {
                println!("learnt {}", status(&connection));
                continue;
            }
            _ => {}
        }
        let more =
            format!("; UPDATE t SET b = randomblob(2000) WHERE a = {row}").repeat(if row < MANY { 0 } else { 2 });
        let written = connection.execute_batch(&format!(
            "CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES({row}, randomblob(2000)){more}"
        ));
        if let Err(error) = written {
            assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly), "{error}");
            let rows: i64 = connection
                .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
                .unwrap();
            println!("readonly {rows}");
            continue;
        }
        println!("committed {row}");
        match connection.query_row("PRAGMA replvfs_flush", [], |_| Ok(())) {
            Ok(()) => println!("stored {row}"),
            Err(error) => {
                println!("refused {error}");
                if !uri.contains(STOP) {
                    return;
                }
            }
        }
    }
}

/// The status, once it says that the machine is fenced.
fn learn(connection: &Connection) -> String {
    loop {
        let status: String = connection
            .query_row("PRAGMA replvfs_status", [], |row| row.get(0))
            .unwrap();
        if status.contains(r#""fenced":true"#) && status.contains("failed\":\"") {
            return status;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

struct Machine {
    process: Child,
    heard: Lines<BufReader<ChildStdout>>,
    database: PathBuf,
}

impl Machine {
    fn start(database: &Path, replica: &str, first_row: u64) -> Machine {
        Machine::start_with(database, replica, first_row, "")
    }

    /// With more parameters.
    fn start_with(database: &Path, replica: &str, first_row: u64, parameters: &str) -> Machine {
        let uri = format!(
            "file:{}?vfs=replvfs&replica={replica}&timeout=60s&close_timeout=1s{parameters}",
            database.display()
        );
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "machine", "--nocapture", "--quiet"])
            .env(URI, uri)
            .env(FIRST_ROW, first_row.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let heard = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut machine = Machine {
            process,
            heard,
            database: database.to_owned(),
        };
        while machine.hear() != "open" {}
        machine
    }

    fn hear(&mut self) -> String {
        self.heard.next().expect("the machine has ended").unwrap()
    }

    /// Lets it write one row.
    fn go(&mut self) {
        use std::io::Write;
        // It may be gone by now.
        let _ = self.process.stdin.as_mut().unwrap().write_all(b"\n");
    }

    /// A row of its own, stored; or why it was not.
    fn row(&mut self) -> Result<u64, String> {
        self.go();
        self.answer()
    }

    /// Lets it try to write one row, which is refused: how many it reads then.
    fn refused_write(&mut self) -> usize {
        self.go();
        let line = self.hear();
        let rows = line.strip_prefix("readonly ").unwrap_or_else(|| panic!("{line}"));
        rows.parse().unwrap()
    }

    /// Its status, once it knows that it is fenced.
    fn learns(&mut self) -> String {
        self.asked(LEARN)
    }

    fn tells(&mut self) -> String {
        self.asked(TELL)
    }

    fn asked(&mut self, what: &str) -> String {
        use std::io::Write;
        let input = self.process.stdin.as_mut().unwrap();
        input.write_all(format!("{what}\n").as_bytes()).unwrap();
        loop {
            if let Some(status) = self.hear().strip_prefix("learnt ") {
                return status.to_owned();
            }
        }
    }

    /// As an application that is stopped, with all its connections closed.
    fn ends(mut self) {
        drop(self.process.stdin.take());
        assert!(self.process.wait().unwrap().success());
    }

    fn answer(&mut self) -> Result<u64, String> {
        loop {
            let line = self.hear();
            if let Some(row) = line.strip_prefix("stored ") {
                return Ok(row.parse().unwrap());
            }
            if let Some(error) = line.strip_prefix("refused ") {
                return Err(error.to_owned());
            }
        }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([name, &self.process.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn rows(path: &Path) -> BTreeSet<u64> {
    let connection = Connection::open(path).unwrap();
    let mut statement = connection.prepare("SELECT a FROM t").unwrap();
    let rows = statement.query_map([], |row| row.get::<_, i64>(0)).unwrap();
    rows.map(|row| u64::try_from(row.unwrap()).unwrap()).collect()
}

/// A copy of the newest state that may go on with the history.
fn restored(scratch: &Scratch, name: &str) -> (PathBuf, Restored) {
    let out = scratch.file(name);
    let options = RestoreOptions {
        resumable: true,
        ..RestoreOptions::default()
    };
    let restored = restore_with(&scratch.replica(), &out, &options).unwrap();
    (out, restored)
}

/// The machine that writes stops for a while, or dies; another goes on with what is in the replica. When the first one comes back, it is told.
#[test]
fn a_machine_that_was_replaced_is_fenced() {
    let seed = number("REPLVFS_FENCING_SEED").unwrap_or(1);
    let mut rng = Rng::new(seed);
    let scratch = Scratch::new();
    let mut writer = Machine::start(&scratch.database(), &scratch.replica(), 0);
    let mut stored = BTreeSet::new();
    for round in 1..=12 {
        for _ in 0..1 + rng.below(4) {
            stored.insert(writer.row().unwrap());
        }
        let dies = rng.one_in(3);
        // In the middle of anything.
        writer.go();
        for _ in 0..rng.below(2_000_000) {
            std::hint::spin_loop();
        }
        writer.signal(if dies { "-KILL" } else { "-STOP" });
        let (copy, _) = restored(&scratch, &format!("machine-{round}.db"));
        let mut next = Machine::start(&copy, &scratch.replica(), round * 1_000_000);
        stored.insert(next.row().unwrap());
        if !dies {
            writer.signal("-CONT");
            // The row that was under way may have come through before; none after it does.
            let refused = match writer.answer() {
                Ok(row) => {
                    stored.insert(row);
                    writer.row().unwrap_err()
                }
                Err(refused) => refused,
            };
            assert!(
                refused.contains("another writer"),
                "seed {seed}, round {round}: {refused}"
            );
        }
        writer = next;
        stored.insert(writer.row().unwrap());
        let (newest, _) = restored(&scratch, "newest.db");
        let there = rows(&newest);
        assert!(
            there.is_superset(&stored),
            "seed {seed}, round {round}: {:?} were stored, and are not there",
            stored.difference(&there)
        );
        for suffix in ["", "-replvfs", "-replvfs-lock"] {
            let _ = std::fs::remove_file(scratch.file(&format!("newest.db{suffix}")));
        }
    }
}

/// Both go on at once. Each may be told that its rows are stored, and then they are: in the newest history, or in the one that it left, of which
/// a restore warns. In the end only one of them writes.
#[test]
fn of_two_machines_that_write_at_once_one_is_fenced() {
    let seed = number("REPLVFS_FENCING_SEED").unwrap_or(1);
    let mut rng = Rng::new(seed);
    for round in 0..12 {
        let scratch = Scratch::new();
        let mut one = Machine::start(&scratch.database(), &scratch.replica(), 0);
        let mut stored = BTreeSet::from([one.row().unwrap()]);
        let (copy, _) = restored(&scratch, "copy.db");
        let mut two = Machine::start(&copy, &scratch.replica(), 1_000_000);
        let mut fenced = None;
        let mut rounds = 0;
        while fenced.is_none() {
            let both = rng.one_in(2);
            let first = usize::from(rng.one_in(2));
            let machines = [&mut one, &mut two];
            machines[first].go();
            if both {
                machines[1 - first].go();
            }
            for which in [first, 1 - first].into_iter().take(1 + usize::from(both)) {
                match machines[which].answer() {
                    Ok(row) => drop(stored.insert(row)),
                    Err(refused) => {
                        assert!(refused.contains("another writer"), "seed {seed}: {refused}");
                        assert!(fenced.replace(which).is_none(), "seed {seed}: both are fenced");
                    }
                }
            }
            rounds += 1;
            assert!(rounds < 50, "seed {seed}, round {round}: both go on");
        }
        let winner = if fenced == Some(0) { &mut two } else { &mut one };
        stored.insert(winner.row().unwrap());
        let (newest, said) = restored(&scratch, "newest.db");
        let mut there = rows(&newest);
        let live = winner.database.clone();
        assert_eq!(
            there,
            rows(&live),
            "seed {seed}, round {round}: the newest history is the winner's"
        );
        if !there.is_superset(&stored) {
            assert!(
                said.warnings
                    .iter()
                    .any(|warning| warning.contains("are not in generation")),
                "seed {seed}, round {round}: {:?}",
                said.warnings
            );
            let out = scratch.file("older.db");
            let options = RestoreOptions {
                generation: Some(Generation(said.generation.0 - 1)),
                ..RestoreOptions::default()
            };
            restore_with(&scratch.replica(), &out, &options).unwrap();
            there.extend(rows(&out));
        }
        assert!(there.is_superset(&stored), "seed {seed}, round {round}");
    }
}

/// A pair. The one that is replaced while it runs commits one row that it cannot store, and from then on none.
#[test]
fn the_loser_of_a_pair_refuses_writes_until_it_is_restored() {
    let scratch = Scratch::new();
    let mut one = Machine::start_with(&scratch.database(), &scratch.replica(), 0, STOP);
    let mut stored = BTreeSet::from([one.row().unwrap(), one.row().unwrap()]);
    let (copy, _) = restored(&scratch, "copy.db");
    let mut two = Machine::start_with(&copy, &scratch.replica(), 1_000_000, STOP);
    stored.insert(two.row().unwrap());
    let refused = one.row().unwrap_err();
    assert!(refused.contains("another writer"), "{refused}");
    assert!(refused.contains("write transactions are refused"), "{refused}");
    for _ in 0..3 {
        assert_eq!(one.refused_write(), 3, "what it had, and the row that told it");
    }
    // Another process of the machine, and the next one.
    let mut other = Machine::start_with(&one.database, &scratch.replica(), 10, STOP);
    assert_eq!(other.refused_write(), 3);
    other.ends();
    one.ends();
    let mut again = Machine::start_with(&scratch.database(), &scratch.replica(), 10, STOP);
    assert_eq!(again.refused_write(), 3);
    assert!(again.learns().contains(r#""refuses_writes":true"#));
    again.ends();
    stored.insert(two.row().unwrap());
    two.ends();
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(scratch.file(&format!("app.db{suffix}")));
    }
    let (back, _) = restored(&scratch, "app.db");
    let mut one = Machine::start_with(&back, &scratch.replica(), 20, STOP);
    stored.insert(one.row().unwrap());
    assert_eq!(rows(&back), stored, "nothing is lost, nothing is half");
    one.ends();
}

/// One that was off meanwhile does not take over, and has lost nothing: it is brought up to date.
#[test]
fn a_machine_that_comes_back_does_not_take_over() {
    for dies in [true, false] {
        let scratch = Scratch::new();
        let mut one = Machine::start_with(&scratch.database(), &scratch.replica(), 0, STOP);
        let mut stored = BTreeSet::from([one.row().unwrap(), one.row().unwrap()]);
        match dies {
            true => drop(one),
            false => one.ends(),
        }
        let (copy, _) = restored(&scratch, "copy.db");
        let mut two = Machine::start_with(&copy, &scratch.replica(), 1_000_000, STOP);
        stored.insert(two.row().unwrap());
        let mut one = Machine::start_with(&scratch.database(), &scratch.replica(), 10, STOP);
        let status = one.learns();
        assert!(status.contains(r#""refuses_writes":true"#), "{status}");
        assert!(status.contains(r#""diverged":false"#), "{status}");
        assert_eq!(one.refused_write(), 2);
        match dies {
            true => drop(one),
            false => one.ends(),
        }
        stored.insert(two.row().unwrap());
        two.ends();
        let forward = format!("{STOP}&restore=if-behind");
        let mut one = Machine::start_with(&scratch.database(), &scratch.replica(), 20, &forward);
        stored.insert(one.row().unwrap());
        let (newest, said) = restored(&scratch, "newest.db");
        assert_eq!(rows(&newest), stored, "{:?}", said.warnings);
        assert_eq!(said.generation.0, 1);
        one.ends();
    }
}

/// Deletes all slots but the first and the last one: what is in them is in a span, or before an image.
fn free_slots(scratch: &Scratch, store: &Store, merged: bool) {
    let retention = if merged {
        let options = MergeOptions {
            pieces: 2,
            ..MergeOptions::default()
        };
        assert!(!block_on(merge(store, None, &options)).unwrap().spans.is_empty());
        Retention::Forever
    } else {
        let folder = scratch.file("folder");
        std::fs::create_dir(&folder).unwrap();
        assert!(block_on(replvfs::image::make(store, None, &folder)).unwrap().is_new);
        // A file system's dates are some milliseconds behind the clock that the image was dated by, and only what is stored later tells that time has passed.
        for (key, _) in scratch.objects() {
            if matches!(key, Key::Image(..)) {
                let path = scratch.file("replica").join(key.path());
                let file = File::options().write(true).open(path).unwrap();
                file.set_modified(SystemTime::now()).unwrap();
            }
        }
        Retention::For(Duration::ZERO)
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let options = PruneOptions {
        retention,
        grace: Duration::ZERO,
        merged_at_once: true,
        ..PruneOptions::at(UnixMillis(i64::try_from(now.as_millis()).unwrap()))
    };
    assert!(!block_on(prune(store, &options)).unwrap().deletions.is_empty());
}

/// It sleeps while another one goes on and its slot is deleted; then it wakes, takes the slot that is free again, and dies before it can note that this
/// was not its turn. The next process of its machine finds its own segment where it left off.
#[test]
fn what_a_machine_that_slept_left_in_a_freed_slot_is_not_believed() {
    for merged in [true, false] {
        // Where the other one's segments are as small as its own, even their numbers tell.
        assert!((0..50).any(|_| sleeps_and_dies(merged)));
    }
}

/// Whether the segment that had the slot was larger than the one that has it now.
fn sleeps_and_dies(merged: bool) -> bool {
    let scratch = Scratch::new();
    let mut one = Machine::start(&scratch.database(), &scratch.replica(), 0);
    let mut stored: BTreeSet<u64> = (0..3).map(|_| one.row().unwrap()).collect();
    one.signal("-STOP");
    let state_file = local_state::state_file(&one.database);
    let noted = std::fs::read(&state_file).unwrap();
    let known = local_state::read(&state_file).unwrap().unwrap();
    let slot = Key::Log(known.generation, known.stored.txid.next());
    let next = Key::Log(known.generation, known.stored.txid.next().next());
    let (copy, _) = restored(&scratch, "copy.db");
    let mut two = Machine::start(&copy, &scratch.replica(), MANY);
    stored.extend((0..4).map(|_| two.row().unwrap()));
    let store = Store::open(&scratch.replica(), &StoreOptions::reading()).unwrap();
    let is_there = |key| block_on(store.size(key)).is_ok();
    assert!(is_there(&slot));
    let was_larger = !is_there(&next);
    free_slots(&scratch, &store, merged);
    assert!(!is_there(&slot));
    one.go();
    one.signal("-CONT");
    let since = Instant::now();
    while !is_there(&slot) {
        assert!(since.elapsed() < Duration::from_secs(60), "it did not wake up");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(one);
    // Whether it had the time to note it is luck.
    std::fs::write(&state_file, &noted).unwrap();
    let mut one = Machine::start(&scratch.database(), &scratch.replica(), 10);
    let row = one.row().unwrap();
    let told = one.tells();
    assert!(
        told.contains(r#""diverged":true"#) && told.contains(r#""generation":2"#),
        "{told}"
    );
    let (newest, said) = restored(&scratch, "newest.db");
    assert_eq!(
        rows(&newest),
        BTreeSet::from([0, 1, 2, 3, row]),
        "what was committed there"
    );
    let warned = |warning: &String| warning.contains("are not in generation");
    assert!(said.warnings.iter().any(warned), "{:?}", said.warnings);
    let out = scratch.file("older.db");
    let options = RestoreOptions {
        generation: Some(Generation(1)),
        ..RestoreOptions::default()
    };
    restore_with(&scratch.replica(), &out, &options).unwrap();
    assert_eq!(rows(&out), stored, "what both were told");
    let refused = two.row().unwrap_err();
    assert!(refused.contains("another writer"), "{refused}");
    was_larger
}
