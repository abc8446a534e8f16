//! `REPLVFS_LOG`, and what reaches SQLite's error log in a program that knows nothing of `tracing`.

use std::io::Read;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use replvfs_tests::{Scratch, flush, open, pragma_number, sqlite_log, status, use_wal};
use rusqlite::Connection;

use super::{ROLE, URI, wait_until};

/// In the program.
pub(super) fn run(role: &str, uri: &str) {
    match role {
        "writes" => drop(writes(uri)),
        "idles" => {
            let connection = open(uri).unwrap();
            use_wal(&connection);
            connection.execute_batch("CREATE TABLE t(x)").unwrap();
            flush(&connection);
            eprintln!("\nfrom here on it rests");
            std::thread::sleep(Duration::from_millis(500));
            eprintln!("to here");
            std::process::exit(0);
        }
        "registers" => {
            let refused = replvfs::register(replvfs::Config::default()).unwrap_err();
            eprintln!("refused: {refused}");
        }
        "own subscriber" => {
            let seen = Seen::default();
            let sink = seen.clone();
            tracing_subscriber::fmt().with_writer(move || sink.clone()).init();
            drop(writes(uri));
            let seen = String::from_utf8(seen.0.lock().unwrap().clone()).unwrap();
            assert!(seen.contains("a generation began"), "{seen}");
        }
        "warned" => is_warned(uri),
        "later" => tells_later(),
        other => panic!("{other}?"),
    }
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Seen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn writes(uri: &str) -> Connection {
    let connection = open(uri).unwrap();
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)")
        .unwrap();
    flush(&connection);
    connection
}

fn program(role: &str, scratch: &Scratch, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "program", "--nocapture", "--quiet"])
        .env(ROLE, role)
        .env(URI, scratch.uri_with("&flush_interval=10ms"))
        .env_remove("REPLVFS_LOG")
        .envs(environment.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn told(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(output.status.success(), "{text}");
    text
}

fn says(role: &str, environment: &[(&str, &str)]) -> String {
    let scratch = Scratch::in_memory();
    told(&program(role, &scratch, environment).output().unwrap())
}

#[test]
fn lines_are_written_when_they_are_asked_for() {
    let text = says("writes", &[("REPLVFS_LOG", "info")]);
    for line in [
        "  INFO replvfs::pipeline::generation: a generation began database=",
        "  INFO replvfs::pipeline::making: an image is in the replica database=",
        "  INFO replvfs::pipeline::shared: this process replicates it now database=",
    ] {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
    for line in text.lines().filter(|line| line.contains(" replvfs::")) {
        assert!(
            line.starts_with("20") && line[..24].ends_with('Z'),
            "a time in UTC: {line}"
        );
        assert!(!line.contains("DEBUG") && !line.contains('\u{1b}'), "{line}");
    }
    assert_eq!(says("writes", &[]), "", "nothing without it");
    assert_eq!(says("writes", &[("REPLVFS_LOG", "off")]), "");
    let debug = says("writes", &[("REPLVFS_LOG", "trace")]);
    assert!(!debug.contains("opendal") && !debug.contains("hyper"), "{debug}");
}

#[test]
fn a_value_that_is_wrong_is_an_error() {
    for value in ["loud", "opendal=debug"] {
        let text = says("registers", &[("REPLVFS_LOG", value)]);
        assert!(
            text.contains(&format!("refused: REPLVFS_LOG={value} is not understood")),
            "{text}"
        );
    }
    let text = says("registers", &[("REPLVFS_METRICS", "9464")]);
    assert!(
        text.contains("refused: REPLVFS_METRICS=9464 is not an address with a port"),
        "{text}"
    );
}

#[test]
fn a_subscriber_of_the_program_counts() {
    let text = says("own subscriber", &[("REPLVFS_LOG", "trace")]);
    assert_eq!(text, "");
}

#[test]
fn a_database_at_rest_says_nothing() {
    let text = says("idles", &[("REPLVFS_LOG", "trace")]);
    let rest = text.split("from here on it rests\n").nth(1).unwrap();
    assert_eq!(rest, "to here\n");
}

/// Nobody reads, or nobody can: the program goes on.
#[test]
fn where_the_lines_go_is_in_nobodys_way() {
    let scratch = Scratch::in_memory();
    let log = [("REPLVFS_LOG", "trace")];
    // A pipe that nobody reads yet.
    let mut child = program("writes", &scratch, &log).spawn().unwrap();
    let mut full = child.stderr.take().unwrap();
    assert!(child.wait().unwrap().success());
    let mut some = [0; 100];
    assert!(full.read(&mut some).unwrap() > 0);
    // One that has nobody at its other end, and standard error closed.
    for how in ["2> >(true)", "2>&-"] {
        let scratch = Scratch::in_memory();
        let mut shell = Command::new("bash");
        shell
            .arg("-c")
            .arg(format!("\"$0\" --exact program --nocapture --quiet {how}"))
            .arg(std::env::current_exe().unwrap())
            .env(ROLE, "writes")
            .env(URI, scratch.uri())
            .envs(log)
            .stdout(Stdio::null());
        let status = shell.status().unwrap();
        // The harness itself may not like it: what counts is that the work was done.
        assert!(!scratch.objects().is_empty(), "{how}: {status}");
    }
}

#[test]
fn warnings_are_in_sqlites_log_without_a_subscriber() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let text = says("warned", &[("REPLVFS_METRICS", &address)]);
    assert_eq!(text, "", "and nowhere else");
}

/// What SQLite's log does may wait for somebody who waits for one of our locks.
#[test]
fn nothing_is_told_to_sqlites_log_under_a_lock() {
    says("later", &[]);
}

fn tells_later() {
    use replvfs_vfs::notice::later;
    sqlite_log();
    replvfs_tests::register();
    let outer = later();
    let inner = later();
    replvfs_vfs::warning!(database = "app.db"; "one of {}", 2);
    replvfs_vfs::failure!(code = 10, replica = "fs:///r"; "two");
    drop(inner);
    assert_eq!(sqlite_log(), []);
    // Another thread has no lock.
    std::thread::spawn(|| replvfs_vfs::warning!(; "at once"))
        .join()
        .unwrap();
    assert_eq!(sqlite_log(), [(28, "replvfs: at once".to_owned())]);
    drop(outer);
    let told = [
        (28, "replvfs: app.db: one of 2".to_owned()),
        (10, "replvfs: fs:///r: two".to_owned()),
    ];
    assert_eq!(sqlite_log(), told);
    replvfs_vfs::warning!(; "now");
    assert_eq!(sqlite_log().len(), 1);
}

/// In the program: the store is away, then somebody takes over.
fn is_warned(uri: &str) {
    sqlite_log();
    let connection = writes(uri);
    let mut told = sqlite_log();
    let replica = std::path::PathBuf::from(uri.split("replica=fs://").nth(1).unwrap().split('&').next().unwrap());
    let away = replica.with_extension("away");
    std::fs::rename(&replica, &away).unwrap();
    connection.execute_batch("INSERT INTO t VALUES (2)").unwrap();
    wait_until(&connection, "trouble", |status| status["last_error"]["over"] == false);
    std::fs::rename(&away, &replica).unwrap();
    flush(&connection);
    let next = pragma_number(&connection, "replvfs_txid").unwrap() + 1;
    let key = replvfs::format::Key::Log(replvfs::format::Generation(1), replvfs::Txid(next));
    std::fs::write(replica.join(key.path()), "another machine's").unwrap();
    connection.execute_batch("INSERT INTO t VALUES (3)").unwrap();
    wait_until(&connection, "fenced", |status| {
        status["fenced"] == true && !status["failed"].is_null()
    });
    // It is told behind the status.
    let end = std::time::Instant::now() + Duration::from_secs(60);
    let count = |told: &[(i32, String)], text: &str| told.iter().filter(|(_, told)| told.contains(text)).count();
    let wanted = [
        "no metrics are served at",
        "replication goes on as soon as this works",
        "replication stopped: another writer continues",
    ];
    while wanted.iter().any(|text| count(&told, text) == 0) {
        assert!(std::time::Instant::now() < end, "{told:?}");
        told.extend(sqlite_log());
        std::thread::sleep(Duration::from_millis(5));
    }
    for text in wanted {
        let most = if text.starts_with("replication goes on") { 9 } else { 1 };
        assert!(count(&told, text) <= most, "{text}: {told:?}");
    }
    let database = uri.split("file:").nth(1).unwrap().split('?').next().unwrap();
    let stopped = told
        .iter()
        .find(|(_, told)| told.contains("replication stopped"))
        .unwrap();
    assert_eq!(stopped.0, 1, "SQLITE_ERROR");
    assert!(
        stopped
            .1
            .starts_with(&format!("replvfs: {database}: replication stopped: ")),
        "{stopped:?}"
    );
    assert_eq!(status(&connection)["fenced"], true);
}
