//! A replica that is kept small: what is in the window is restored all the time while the rest is deleted, by the writer and by `replvfs prune`.
#![allow(missing_docs)]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use replvfs::Config;
use replvfs::config::Retention;
use replvfs::format::{Generation, Key};
use replvfs::history::Target;
use replvfs::merge::{MergeOptions, merge};
use replvfs::prune::{PruneOptions, prune};
use replvfs::store::{Store, StoreOptions};
use replvfs::verify::{VerifyOptions, verify};
use replvfs_tests::{
    Rng, Scratch, block_on, check_integrity, compare_pages, flush, open, plain_image, pragma_number, restore_txid,
    status, try_restore, use_wal,
};
use replvfs_vfs::types::{Txid, UnixMillis};
use rusqlite::Connection;

const URI: &str = "REPLVFS_TEST_RETENTION";
const KEPT: &str = "REPLVFS_TEST_KEPT";
const RETENTION: Duration = Duration::from_secs(1);
/// A restore must not take longer.
const GRACE: Duration = Duration::from_secs(5);
/// What has not come by then never does.
const NEVER: Duration = Duration::from_secs(200);
const ROWS: i64 = 50;

fn images(scratch: &Scratch) -> Vec<u64> {
    let image = |(key, _)| match key {
        Key::Image(_, txid) => Some(txid.0),
        _ => None,
    };
    scratch.objects().into_iter().filter_map(image).collect()
}

fn uri(scratch: &Scratch, vfs: &str) -> String {
    format!(
        "file:{}?vfs={vfs}&replica={}&flush_interval=10ms",
        scratch.database().display(),
        scratch.replica()
    )
}

/// The other process: transaction after transaction, each flushed, and what it is told of each.
#[test]
fn writer() {
    let Ok(uri) = std::env::var(URI) else { return };
    let day = Duration::from_secs(24 * 60 * 60);
    let config = Config::default()
        .vfs_name("replvfs-short")
        .images_for_test(1 << 20, day, Duration::ZERO, false)
        .upkeep_for_tests(32, 32, GRACE, Retention::For(RETENTION));
    replvfs::register(config).unwrap();
    let connection = open(&uri).unwrap();
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, n, b)")
        .unwrap();
    let last: Option<i64> = connection
        .query_row("SELECT max(n) FROM t", [], |row| row.get(0))
        .unwrap();
    // One at a time, so that whoever asks for it knows how old it is at most.
    for (asked, n) in std::io::stdin().lines().zip(last.unwrap_or(0) + 1..) {
        asked.unwrap();
        connection
            .execute(
                "INSERT OR REPLACE INTO t VALUES(?1, ?2, randomblob(3000))",
                [n % ROWS, n],
            )
            .unwrap();
        flush(&connection);
        let told = status(&connection);
        assert_eq!(told["failed"], serde_json::Value::Null);
        println!("\n@{} {n} {}", told["acked"], told["generation"]);
    }
}

#[derive(Debug, Clone, Copy)]
struct Point {
    txid: u64,
    n: i64,
    since: Instant,
}

/// Seen from here. Dropped, it is killed.
struct Writer {
    child: Child,
    asks: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Writer {
    fn start(scratch: &Scratch) -> Writer {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer", "--nocapture", "--quiet"])
            .env(URI, uri(scratch, "replvfs-short"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Writer {
            asks: child.stdin.take().unwrap(),
            lines: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// A transaction that is in the replica now.
    fn next(&mut self) -> Point {
        let since = Instant::now();
        writeln!(self.asks).unwrap();
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "the writer died");
            let Some(told) = line.trim_end().strip_prefix('@') else {
                continue;
            };
            let told: Vec<u64> = told.split(' ').map(|number| number.parse().unwrap()).collect();
            assert_eq!(told[2], 1, "it goes on in its generation");
            return Point {
                txid: told[0],
                n: told[1].cast_signed(),
                since,
            };
        }
    }
}

/// The database after the transaction, and nothing else.
fn check(scratch: &Scratch, point: Point, name: &str) {
    let out = scratch.file(name);
    let begun = Instant::now();
    try_restore(&scratch.replica(), Target::Txid(Txid(point.txid)), &out).unwrap_or_else(|error| {
        panic!(
            "{point:?}, {:?} old, after {:?}: {error}",
            point.since.elapsed(),
            begun.elapsed()
        )
    });
    check_integrity(&out);
    let restored = Connection::open(&out).unwrap();
    let found: (i64, i64) = restored
        .query_row("SELECT max(n), sum(n) FROM t", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    let sum = (0.max(point.n - ROWS + 1)..=point.n).sum();
    assert_eq!(found, (point.n, sum), "{point:?}");
    drop(restored);
    std::fs::remove_file(&out).unwrap();
}

/// Hears the writer until `enough` of what is in the replica, while readers restore what is in the window.
fn while_it_is_read(
    scratch: &Scratch,
    writer: &mut Writer,
    points: &Mutex<VecDeque<Point>>,
    mut enough: impl FnMut(Point, usize) -> bool,
) -> usize {
    let (done, restores) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let reader = |number: u64| {
            let mut rng = Rng::new(number);
            while !done.load(Ordering::Relaxed) {
                let point = {
                    let mut points = points.lock().unwrap();
                    while points.len() > 1 && points[0].since.elapsed() > RETENTION {
                        points.pop_front();
                    }
                    let drawn = rng.below(points.len().max(1) as u64) as usize;
                    points.get(drawn).copied()
                };
                let Some(point) = point else {
                    std::thread::yield_now();
                    continue;
                };
                check(scratch, point, &format!("restored-{number}.db"));
                restores.fetch_add(1, Ordering::Relaxed);
            }
        };
        let readers = [scope.spawn(move || reader(1)), scope.spawn(move || reader(2))];
        let since = Instant::now();
        loop {
            let point = writer.next();
            points.lock().unwrap().push_back(point);
            let over = since.elapsed() > NEVER || readers.iter().any(|reader| reader.is_finished());
            if over || point.n % 16 == 0 && enough(point, restores.load(Ordering::Relaxed)) {
                done.store(true, Ordering::Relaxed);
                assert!(!over, "it is not kept small: {:?}", images(scratch));
                return;
            }
        }
    });
    restores.into_inner()
}

#[test]
fn a_writer_keeps_its_replica_small() {
    let scratch = Scratch::in_memory();
    let mut writer = Writer::start(&scratch);
    let points = Mutex::new(VecDeque::new());
    // Most of what was ever written is gone.
    let mut last = 0;
    let restores = while_it_is_read(&scratch, &mut writer, &points, |point, restores| {
        last = point.txid;
        let oldest = images(&scratch)[0];
        restores > 30 && oldest > 300 && oldest * 4 > point.txid * 3
    });
    let left = scratch.objects();
    let bytes: u64 = left.iter().map(|(_, len)| len).sum();
    let kind = |kind: &str| {
        let of: Vec<u64> = left
            .iter()
            .filter(|(key, _)| key.path().contains(kind))
            .map(|(_, len)| *len)
            .collect();
        format!("{} of {kind} with {} bytes", of.len(), of.iter().sum::<u64>())
    };
    eprintln!(
        "{last} transactions, {restores} restores: {} objects with {bytes} bytes are left: {:?}",
        left.len(),
        ["/log/", "/span/", "/image/", "chunk/"].map(kind)
    );
    assert!((left.len() as u64) < last, "{left:?}");
    // With a segment, and a part of an image, each has at least a row and an inner page.
    assert!(bytes < last * 4096, "{bytes} bytes");

    drop(writer);
    let killed = images(&scratch)[0];
    let mut writer = Writer::start(&scratch);
    let restores = while_it_is_read(&scratch, &mut writer, &points, |point, restores| {
        restores > 10 && point.txid > last && images(&scratch)[0] > killed
    });
    eprintln!("{restores} restores after the kill");
    drop(writer);
    let out = scratch.file("newest.db");
    restore_txid(&scratch.replica(), &out, None);
    check_integrity(&out);
}

/// The other process: what `replvfs merge` and `replvfs prune` do, over and over. It says when it begins, and how much it deleted.
#[test]
fn keeper() {
    let Ok(replica) = std::env::var(KEPT) else { return };
    let store = Store::open(&replica, &StoreOptions::reading()).unwrap();
    let merging = MergeOptions {
        pieces: 8,
        ..MergeOptions::default()
    };
    println!();
    loop {
        println!("@begin");
        // What is deleted while it is read is no trouble.
        if let Err(error) = block_on(merge(&store, None, &merging)) {
            eprintln!("merging: {error}");
        }
        let options = PruneOptions {
            retention: Retention::For(RETENTION),
            grace: GRACE,
            ..PruneOptions::at(now())
        };
        let done = block_on(prune(&store, &options)).unwrap();
        println!("@{}", done.deletions.len());
    }
}

/// Seen from here. Dropped, it is killed.
struct Keeper {
    child: Child,
    /// How often it has begun, how often it has come to the end, and how much it deleted then.
    told: Arc<[AtomicUsize; 3]>,
    hears: Option<std::thread::JoinHandle<()>>,
}

impl Keeper {
    fn start(scratch: &Scratch) -> Keeper {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "keeper", "--nocapture", "--quiet"])
            .env(KEPT, scratch.replica())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let told: Arc<[AtomicUsize; 3]> = Arc::default();
        let (lines, tells) = (BufReader::new(child.stdout.take().unwrap()), Arc::clone(&told));
        let hears = std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                match line.strip_prefix('@') {
                    Some("begin") => {
                        tells[0].fetch_add(1, Ordering::Relaxed);
                    }
                    Some(deleted) => {
                        tells[1].fetch_add(1, Ordering::Relaxed);
                        tells[2].fetch_add(deleted.parse().unwrap(), Ordering::Relaxed);
                    }
                    None => {}
                }
            }
        });
        let hears = Some(hears);
        Keeper { child, told, hears }
    }

    fn told(&self, what: usize) -> usize {
        self.told[what].load(Ordering::Relaxed)
    }

    /// Whether that was in the middle of it, and how much it had deleted before.
    fn kill(mut self) -> (bool, usize) {
        assert!(self.child.try_wait().unwrap().is_none(), "it ended by itself");
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.hears.take().unwrap().join().unwrap();
        (self.told(0) > self.told(1), self.told(2))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn whoever_merges_and_prunes_is_killed_beside_a_writer() {
    let scratch = Scratch::in_memory();
    let mut writer = Writer::start(&scratch);
    let points = Mutex::new(VecDeque::new());
    // Before there is a replica there is nothing to keep.
    points.lock().unwrap().push_back(writer.next());
    let mut rng = Rng::new(77);
    let mut keeper = Some(Keeper::start(&scratch));
    let (mut killed, mut deleted, mut patience) = (0, 0, 1);
    let restores = while_it_is_read(&scratch, &mut writer, &points, |_, restores| {
        let at_work = keeper.as_ref().is_some_and(|keeper| keeper.told(0) > patience);
        if at_work && rng.below(3) == 0 {
            patience = rng.below(3) as usize;
            let (in_the_middle, before) = keeper.take().unwrap().kill();
            killed += usize::from(in_the_middle);
            deleted += before;
            keeper = Some(Keeper::start(&scratch));
        }
        killed > 4 && deleted > 0 && restores > 30 && images(&scratch)[0] > 300
    });
    let left: Vec<Point> = points
        .lock()
        .unwrap()
        .iter()
        // The readers may have taken a while to come to their end; what is out of the window stays for the grace period.
        .filter(|point| point.since.elapsed() < RETENTION + GRACE / 2)
        .copied()
        .collect();
    drop(keeper);
    drop(writer);
    eprintln!("killed {killed} times in the middle, {deleted} deletions before, {restores} restores");
    assert!(!left.is_empty());
    let verified = block_on(verify(&scratch.store(), &VerifyOptions::default())).unwrap();
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
    for point in left {
        check(&scratch, point, "left.db");
    }
}

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    UnixMillis(i64::try_from(since.as_millis()).unwrap())
}

/// What `replvfs prune` does.
#[test]
fn pruning_leaves_what_is_in_the_window() {
    let scratch = Scratch::in_memory();
    let day = Duration::from_secs(24 * 60 * 60);
    let config = Config::default().vfs_name("replvfs-pruned");
    replvfs::register(config.images_for_test(0, day, Duration::ZERO, true)).unwrap();
    let connection = open(&uri(&scratch, "replvfs-pruned")).unwrap();
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .unwrap();
    // Six images, and the states behind the fourth one with their times.
    let mut states = Vec::new();
    for n in 0_i64.. {
        connection
            .execute("INSERT OR REPLACE INTO t VALUES(?1, randomblob(9000))", [n % 30])
            .unwrap();
        flush(&connection);
        let known = images(&scratch).len();
        if known >= 4 {
            let txid = pragma_number(&connection, "replvfs_txid").unwrap();
            states.push((txid, now(), plain_image(&scratch.database())));
        }
        if known >= 6 && states.len() > 10 && status(&connection)["making_image"] == false {
            break;
        }
        assert!(n < 20_000, "{}", status(&connection));
    }
    let at = now();
    let window = u64::try_from(at.0 - states[0].1.0).unwrap();
    let options = PruneOptions {
        retention: Retention::For(Duration::from_millis(window)),
        grace: Duration::ZERO,
        dry_run: true,
        ..PruneOptions::at(at)
    };
    let before = scratch.objects();
    let planned = block_on(prune(&scratch.store(), &options)).unwrap();
    assert_eq!(scratch.objects(), before, "a dry run");
    assert!(
        planned
            .deletions
            .iter()
            .any(|deletion| matches!(deletion.key, Key::Image(..)))
    );
    let wet = PruneOptions {
        dry_run: false,
        ..options.clone()
    };
    let done = block_on(prune(&scratch.store(), &wet)).unwrap();
    assert_eq!(done.deletions, planned.deletions);
    let left = scratch.objects();
    assert_eq!(left.len() + done.deletions.len(), before.len());
    let bytes = |objects: &[(Key, u64)]| objects.iter().map(|(_, len)| len).sum::<u64>();
    assert_eq!(bytes(&left) + done.bytes(), bytes(&before));
    let check = || {
        for (txid, _, truth) in &states {
            let out = scratch.file("restored.db");
            restore_txid(&scratch.replica(), &out, Some(*txid));
            compare_pages(truth, &std::fs::read(&out).unwrap()).unwrap_or_else(|error| panic!("txid {txid}: {error}"));
            std::fs::remove_file(&out).unwrap();
        }
    };
    check();
    // What only those images named goes when they are gone.
    let second = block_on(prune(&scratch.store(), &wet)).unwrap().deletions;
    assert!(!second.is_empty() && second.iter().all(|deletion| matches!(deletion.key, Key::Chunk(_))));
    check();
    assert_eq!(block_on(prune(&scratch.store(), &wet)).unwrap().deletions, []);
    // The writer does not notice.
    connection.execute_batch("UPDATE t SET b = 'on' WHERE a = 1").unwrap();
    flush(&connection);
    assert_eq!(status(&connection)["generation"], 1);
    assert!(left.iter().any(|(key, _)| matches!(key, Key::Log(Generation(1), _))));
    check();
}
