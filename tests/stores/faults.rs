//! Faults on the way to a real server: while they last nothing is acknowledged that could not be restored, and the status says what is wrong; when they are over everything
//! is in the replica by itself, in order, and nothing was put twice with another content.

use std::path::PathBuf;
use std::sync::Once;
use std::time::{Duration, Instant};

use replvfs::Config;
use replvfs::format::Key;
use replvfs::history::Target;
use replvfs::store::{Store, StoreOptions};
use replvfs::verify::{VerifyOptions, verify};
use replvfs_tests::peer::SqlPeer;
use replvfs_tests::{block_on, compare_pages, open, plain_image, pragma_number, restore_from, restore_txid, status};
use rusqlite::Connection;

use crate::faulty::{Fault, FaultyProxy};
use crate::replication::{escaped, insert, uri};
use crate::servers::{Missing, Moto, s3_query};

/// How long a request may take here.
const PATIENCE: Duration = Duration::from_millis(400);
/// How long a fault lasts.
const LASTS: Duration = Duration::from_millis(1_200);
/// Whatever was wrong, it is in the status before that.
const TOLD: Duration = Duration::from_secs(30);
/// A commit that waits for the fault to end waits for ever.
const ENOUGH: Duration = Duration::from_secs(10);
/// Everything is in the replica by itself before that.
const HEALED: Duration = Duration::from_secs(30);
const COMMITS: u32 = 3;

struct Case {
    name: &'static str,
    fault: Fault,
    /// What the status says meanwhile; nothing where it is no trouble.
    says: &'static [&'static str],
}

const fn case(name: &'static str, fault: Fault, says: &'static [&'static str]) -> Case {
    Case { name, fault, says }
}

const CASES: &[Case] = &[
    case("slow", Fault::Slow(Duration::from_millis(100)), &[]),
    case(
        "slower than its timeout",
        Fault::Slow(Duration::from_millis(500)),
        &["not answer in time"],
    ),
    case("away", Fault::Away, &["send"]),
    case("cut in the request", Fault::RequestCut, &["send"]),
    case("the answer lost", Fault::AnswerLost, &["send"]),
    case("the answer cut", Fault::AnswerCut, &[]),
    case("never answered", Fault::Stalls, &["not answer in time"]),
    case("stopped in the answer", Fault::AnswerStalls, &["not answer in time"]),
    case("half of an object", Fault::Short, &[]),
    case("429", Fault::Error(429, "TooManyRequests", true), &["fewer requests"]),
    case("503 SlowDown", Fault::Error(503, "SlowDown", true), &["fewer requests"]),
    case(
        "503",
        Fault::Error(503, "ServiceUnavailable", true),
        &["ServiceUnavailable"],
    ),
    case("500", Fault::Error(500, "InternalError", false), &["InternalError"]),
    case(
        "404 of a gateway",
        Fault::Error(404, "NotFound", false),
        &["no such place"],
    ),
    case(
        "credentials expired",
        Fault::Error(400, "ExpiredToken", false),
        &["expired"],
    ),
    case(
        "credentials unknown",
        Fault::Error(403, "InvalidAccessKeyId", false),
        &["credentials"],
    ),
    case(
        "clocks apart",
        Fault::Error(403, "RequestTimeTooSkewed", false),
        &["clock"],
    ),
    case("lists late", Fault::ListsLate, &[]),
];

/// Where it makes a difference that a large object is several requests.
const MUCH: &[&str] = &["cut in the request", "the answer lost", "never answered", "503"];

/// What is asked at the start is read, and listed.
const START: &[&str] = &[
    "away",
    "the answer cut",
    "stopped in the answer",
    "half of an object",
    "503",
    "404 of a gateway",
    "credentials expired",
    "lists late",
];
/// A kind each: the rest is as with `durability=remote`, which asks more often.
const WRITE: &[&str] = &[
    "slow",
    "away",
    "never answered",
    "429",
    "credentials unknown",
    "lists late",
];

fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let config = Config::default()
            .vfs_name("replvfs-faults")
            .store_timeouts_for_test(PATIENCE, PATIENCE);
        replvfs::register(config).expect("registering");
    });
}

/// What a process does while the fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Writes,
    /// With `durability=remote`.
    Confirms,
    /// An object that is sent in parts.
    WritesMuch,
    /// It takes up the history of one that was killed, and writes.
    Starts,
}

/// All of them, with each of these. What went wrong.
pub(crate) fn run(wanted: impl Fn(&str) -> bool) -> Result<Vec<String>, Missing> {
    let cases: Vec<(&Case, Does)> = CASES
        .iter()
        .filter(|case| wanted(case.name))
        .flat_map(|case| [Does::WritesMuch, Does::Starts, Does::Confirms, Does::Writes].map(|does| (case, does)))
        .filter(|(case, does)| match does {
            Does::WritesMuch => MUCH.contains(&case.name),
            Does::Starts => START.contains(&case.name),
            Does::Writes => WRITE.contains(&case.name),
            Does::Confirms => true,
        })
        .collect();
    if cases.is_empty() {
        return Ok(Vec::new());
    }
    let moto = Moto::start()?;
    register();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let wrong = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                while let Some((case, does)) = cases.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let since = Instant::now();
                    let done = std::panic::catch_unwind(|| Way::new(&moto, case, *does).go());
                    let (requests, ok) = match done {
                        Ok(requests) => (requests.to_string(), "ok"),
                        Err(_) => ("?".to_owned(), "FAILED"),
                    };
                    let what = format!("faults: {}, {does:?}", case.name);
                    println!(
                        "{what}: {ok}, {requests} requests ({:.1} s)",
                        since.elapsed().as_secs_f64()
                    );
                    if ok != "ok" {
                        wrong.lock().expect("a lock").push(what);
                    }
                }
            });
        }
    });
    Ok(wrong.into_inner().expect("a lock"))
}

struct Way<'a> {
    case: &'a Case,
    does: Does,
    proxy: FaultyProxy,
    /// Past the proxy.
    direct: String,
    through: String,
    folder: PathBuf,
}

impl Way<'_> {
    fn new<'a>(moto: &Moto, case: &'a Case, does: Does) -> Way<'a> {
        let proxy = FaultyProxy::start(moto.port());
        let name = format!("{}-{does:?}", case.name.replace(' ', "-"));
        let folder = moto.folder().join(&name);
        std::fs::create_dir_all(&folder).expect("a folder");
        Way {
            direct: format!("s3://bucket/{name}{}", s3_query(moto.port())),
            through: format!("s3://bucket/{name}{}", s3_query(proxy.port())),
            case,
            does,
            proxy,
            folder,
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.join("app.db")
    }

    fn open(&self) -> Connection {
        let durability = if self.does == Does::Confirms {
            "remote&timeout=1s"
        } else {
            "async"
        };
        let uri = format!(
            "file:{}?vfs=replvfs-faults&restore=never&flush_interval=50ms&close_timeout=0s&durability={durability}&replica={}",
            self.file().display(),
            escaped(&self.through)
        );
        open(&uri).expect("opens")
    }

    /// How many requests came while the fault lasted.
    fn go(&self) -> usize {
        match self.does {
            Does::Starts => self.start(),
            Does::WritesMuch => self.write_much(),
            Does::Writes | Does::Confirms => self.write(),
        }
    }

    /// With the timeouts that a program has.
    fn start(&self) -> usize {
        let uri = uri(&self.file(), &self.through);
        let mut first = SqlPeer::start(&uri);
        first.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES (randomblob(50000))");
        first.sql("PRAGMA replvfs_flush");
        first.sql("INSERT INTO t(b) VALUES ('perhaps on its way')");
        first.kill();
        self.proxy.begin(self.case.fault);
        let begun = Instant::now();
        let mut second = SqlPeer::start(&uri);
        for _ in 0..COMMITS {
            second.sql("INSERT INTO t(b) VALUES (randomblob(4000))");
        }
        assert!(
            begun.elapsed() < ENOUGH,
            "opening and writing waited: {:?}",
            begun.elapsed()
        );
        std::thread::sleep(LASTS.saturating_sub(begun.elapsed()));
        let requests = self.proxy.requests();
        self.proxy.end();
        let over = Instant::now();
        second.sql("PRAGMA replvfs_flush");
        assert!(over.elapsed() < HEALED, "{:?}", over.elapsed());
        second.kill();
        self.history_is_right();
        requests
    }

    fn write_much(&self) -> usize {
        let mut peer = SqlPeer::start(&uri(&self.file(), &self.through));
        peer.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
        peer.sql("PRAGMA replvfs_flush");
        peer.sql("INSERT INTO t(b) VALUES (randomblob(12000000))");
        // Some of it is there, perhaps, and some is not.
        self.proxy.begin(self.case.fault);
        std::thread::sleep(LASTS);
        let requests = self.proxy.requests();
        self.proxy.end();
        peer.sql("PRAGMA replvfs_flush");
        peer.sql("INSERT INTO t(b) VALUES (randomblob(100)); PRAGMA replvfs_flush");
        peer.kill();
        self.history_is_right();
        requests
    }

    fn write(&self) -> usize {
        let connection = self.open();
        connection
            .execute_batch(
                "PRAGMA journal_mode=WAL; PRAGMA replvfs_durability=async; CREATE TABLE t(a INTEGER PRIMARY KEY, b)",
            )
            .expect("creates");
        insert(&connection, 50_000);
        self.in_the_replica(&connection);
        if self.does == Does::Confirms {
            connection
                .execute_batch("PRAGMA replvfs_durability=remote")
                .expect("sets it");
        }
        self.proxy.begin(self.case.fault);
        let begun = Instant::now();
        self.commit(&connection);
        self.is_told(&connection);
        std::thread::sleep(LASTS.saturating_sub(begun.elapsed()));
        self.is_restorable(&connection);
        let (requests, lasted) = (self.proxy.requests(), begun.elapsed());
        self.proxy.end();
        // Nobody asks for it.
        self.in_the_replica(&connection);
        self.is_right(&connection);
        // Each attempt of a task and its one repetition, at pauses that begin with a quarter of a second.
        let is_refused = !self.case.says.is_empty();
        assert!(
            !is_refused || requests as f64 <= 12.0 + 12.0 * lasted.as_secs_f64(),
            "{requests} in {lasted:?}"
        );
        requests
    }

    /// No commit is slower for it than its level allows, and none fails but for being unconfirmed.
    fn commit(&self, connection: &Connection) {
        for at in 0..COMMITS {
            let since = Instant::now();
            let inserted = connection.execute("INSERT INTO t(b) VALUES (randomblob(?1))", [4_000 + at]);
            let took = since.elapsed();
            match self.does == Does::Confirms {
                true => assert!(took < ENOUGH, "a commit took {took:?}"),
                false => assert!(took < ENOUGH && inserted.is_ok(), "{took:?}, {inserted:?}"),
            }
            if inserted.is_ok() && self.does == Does::Confirms {
                let txid = pragma_number(connection, "replvfs_txid");
                self.restores(&self.direct, txid, "a commit that was confirmed");
            }
        }
    }

    fn is_told(&self, connection: &Connection) {
        let since = Instant::now();
        while !self.case.says.is_empty() {
            let status = status(connection);
            assert_eq!(status["failed"], serde_json::Value::Null, "{status}");
            let message = status["last_error"]["message"].as_str().unwrap_or_default().to_owned();
            if self.case.says.iter().all(|says| message.contains(says)) && status["last_error"]["over"] == false {
                assert!(
                    !message.contains("127.0.0.1") || !message.contains("X-Amz"),
                    "{message}"
                );
                println!("faults: {}: the status says: {message}", self.case.name);
                return;
            }
            assert!(since.elapsed() < TOLD, "not told: {status}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What was acknowledged is there for whoever asks the server itself; who asks through the fault has it, or an error.
    fn is_restorable(&self, connection: &Connection) {
        let acked = pragma_number(connection, "replvfs_acked");
        self.restores(&self.direct, acked, "what was acknowledged");
        let options = StoreOptions {
            request_timeout: PATIENCE,
            transfer_timeout: PATIENCE,
            retries: 0,
            ..StoreOptions::reading()
        };
        let store = Store::open(&self.through, &options).expect("opens");
        let out = self.folder.join("through.db");
        if let Some(acked) = acked
            && let Ok(restored) = restore_from(&store, Target::Newest, &out)
        {
            assert!(restored.txid.0 >= acked, "an older state: {} of {acked}", restored.txid);
        }
    }

    fn restores(&self, replica: &str, txid: Option<u64>, what: &str) {
        let out = self.folder.join("restored.db");
        let _ = std::fs::remove_file(&out);
        let restored = restore_txid(replica, &out, txid);
        assert_eq!(Some(restored.txid.0), txid, "{what}");
    }

    /// By itself, and soon.
    fn in_the_replica(&self, connection: &Connection) {
        let since = Instant::now();
        loop {
            let (txid, acked) = (
                pragma_number(connection, "replvfs_txid"),
                pragma_number(connection, "replvfs_acked"),
            );
            if txid.is_some() && txid == acked {
                return;
            }
            let status = status(connection);
            assert!(
                status["failed"].is_null() && since.elapsed() < HEALED,
                "{txid:?} {acked:?} {status}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_right(&self, connection: &Connection) {
        let status = status(connection);
        assert!(
            status["failed"].is_null() && status["fenced"] == false && status["diverged"] == false,
            "{status}"
        );
        assert_eq!(status["discontinuities"], 0, "{status}");
        assert_eq!(status["generation"], 1, "{status}");
        assert_eq!(status["fencing"], "enforced", "{status}");
        self.history_is_right();
    }

    fn history_is_right(&self) {
        let expected = plain_image(&self.file());
        let out = self.folder.join("out.db");
        restore_txid(&self.direct, &out, None);
        compare_pages(&expected, &plain_image(&out)).expect("the same pages");
        let store = Store::open(&self.direct, &StoreOptions::reading()).expect("opens");
        let verified = block_on(verify(&store, &VerifyOptions::default())).expect("verifies");
        assert!(verified.findings.is_empty(), "{:?}", verified.findings);
        // The probe of the condition is other bytes by intention.
        let twice = self.proxy.put_twice();
        assert!(twice.iter().all(|name| name.ends_with("/generation.json")), "{twice:?}");
        let stored = self.proxy.stored();
        let slots: Vec<&String> = stored.iter().filter(|name| name.contains("/log/")).collect();
        assert!(
            slots.is_sorted() && slots.windows(2).all(|two| two[0] != two[1]),
            "{slots:?}"
        );
        let listed = block_on(store.list("gen/")).expect("lists");
        let in_log = listed.iter().filter(|(key, _)| matches!(key, Key::Log(..))).count();
        assert_eq!(slots.len(), in_log);
        let generations = listed
            .iter()
            .filter(|(key, _)| matches!(key, Key::Generation(_)))
            .count();
        assert_eq!(generations, 1, "it began anew");
    }
}
