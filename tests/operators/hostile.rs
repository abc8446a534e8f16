//! What the program around replvfs may do with what it is told: panic, or have names that would begin another line.

use replvfs_tests::peer::SqlPeer;
use replvfs_tests::{Scratch, flush, open, pragma_number, sqlite_log, use_wal};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::http::{metrics, value};

/// In the program.
pub(super) fn run(role: &str, uri: &str) {
    match role {
        "hostile subscriber" => is_hostile(uri),
        "hostile diary" => keeps_a_diary(uri),
        "hostile names" => has_hostile_names(uri),
        other => panic!("{other}?"),
    }
}

/// Panics at whatever is a warning or worse.
struct Hostile;

impl<S: tracing::Subscriber> Layer<S> for Hostile {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        assert!(
            *event.metadata().level() > tracing::Level::WARN,
            "injected into a subscriber"
        );
    }
}

#[test]
fn a_subscriber_that_panics_does_not_end_the_program() {
    super::logs::says("hostile subscriber", &[]);
}

fn is_hostile(uri: &str) {
    tracing_subscriber::registry().with(Hostile).init();
    let refused = open(&format!("{uri}&timeout=soon")).unwrap_err().to_string();
    assert!(refused.contains("unable to open"), "{refused}");
    assert!(replvfs::last_open_error().unwrap().contains("timeout=soon"));
    let connection = open(uri).unwrap();
    use_wal(&connection);
    connection.execute_batch("CREATE TABLE t(x)").unwrap();
    flush(&connection);
    // Of a panic of ours it is told, too.
    replvfs_vfs::inject_panic(Some("xShmBarrier"));
    connection.execute_batch("INSERT INTO t VALUES (1)").unwrap();
    assert!(!replvfs_vfs::inject_panic(None));
    let rows: i64 = connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 1);
    let failed = connection.query_row("PRAGMA replvfs_flush", [], |_| Ok(()));
    assert!(failed.is_err(), "nothing is acknowledged after it");
}

/// Writes what it is told into a database, through the same VFS.
struct Diary(String);

impl<S: tracing::Subscriber> Layer<S> for Diary {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        thread_local!(static WRITING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
        if WRITING.replace(true) {
            return;
        }
        let diary = rusqlite::Connection::open(&self.0).unwrap();
        diary.busy_timeout(std::time::Duration::from_secs(60)).unwrap();
        let line = format!("{} {}", event.metadata().level(), event.metadata().target());
        diary.execute("INSERT INTO diary VALUES (?1)", [line]).unwrap();
        WRITING.set(false);
    }
}

#[test]
fn a_subscriber_may_use_sqlite() {
    super::logs::says("hostile diary", &[("REPLVFS_DEFAULT", "1")]);
}

fn keeps_a_diary(uri: &str) {
    replvfs::register(replvfs::Config::default()).unwrap();
    let (path, parameters) = uri.strip_prefix("file:").unwrap().split_once('?').unwrap();
    let diary = format!("{path}-diary");
    let written = rusqlite::Connection::open(&diary).unwrap();
    written.execute_batch("CREATE TABLE diary(line)").unwrap();
    tracing_subscriber::registry().with(Diary(diary)).init();
    for round in 0..3 {
        let connection = rusqlite::Connection::open(uri).unwrap();
        use_wal(&connection);
        connection
            .execute_batch("CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES (1)")
            .unwrap();
        flush(&connection);
        assert!(pragma_number(&connection, "replvfs_acked").is_some(), "{round}");
        assert!(rusqlite::Connection::open(format!("{uri}&timeout=soon")).is_err());
        let reader = rusqlite::Connection::open(format!(
            "file:r?vfs=replvfs-remote&{}",
            parameters.split('&').find(|part| part.starts_with("replica=")).unwrap()
        ))
        .unwrap();
        let _: i64 = reader
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
    }
    let lines: i64 = written
        .query_row(
            "SELECT count(*) FROM diary WHERE line LIKE 'INFO replvfs::pipeline%'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert!(lines > 0);
    // Shutting down is told, too.
    replvfs::shutdown(std::time::Duration::from_secs(60)).unwrap();
}

#[test]
fn sqlites_log_gets_all_of_it_and_no_lines_of_others() {
    super::logs::says("hostile names", &[]);
}

fn has_hostile_names(uri: &str) {
    sqlite_log();
    replvfs_tests::register();
    sqlite_log();
    // SQLite cuts off what is longer than its buffer, in the middle of a letter if need be.
    let words: Vec<String> = (0..300).map(|word| format!("würde{word}")).collect();
    replvfs_vfs::warning!(database = "app.db"; "{}", words.join(" "));
    let told = sqlite_log();
    assert!(told.len() > 1);
    for (code, part) in &told {
        assert!(
            *code == 28 && part.starts_with("replvfs: ") && part.len() < 699,
            "{part}"
        );
    }
    let all: Vec<&str> = told.iter().flat_map(|(_, part)| part.split(' ')).collect();
    assert!(words.iter().all(|word| all.contains(&word.as_str())), "{told:?}");
    // One word that is longer.
    replvfs_vfs::warning!(; "{}", "ü".repeat(1000));
    let letters: usize = sqlite_log().iter().map(|(_, part)| part.matches('ü').count()).sum();
    assert_eq!(letters, 1000);

    let folder = std::path::Path::new(uri.split("file:").nth(1).unwrap().split('?').next().unwrap()).parent();
    let name = format!("{}/a%0A(1)%20no such table%1B[2J.db", folder.unwrap().display());
    assert!(
        open(&format!(
            "file:{name}?vfs=replvfs&replica=memory://hostile&timeout=soon"
        ))
        .is_err()
    );
    let told = sqlite_log();
    assert!(
        told.iter()
            .any(|(_, part)| part.contains("a\\n(1) no such table\\u{1b}[2J.db")),
        "{told:?}"
    );
    for (_, part) in told.iter().filter(|(_, part)| part.starts_with("replvfs: ")) {
        assert!(!part.contains(char::is_control), "{part:?}");
    }
}

/// Two names that cannot be shown, and would look the same.
#[test]
fn databases_whose_names_are_not_utf_8_have_numbers_of_their_own() {
    let scratch = Scratch::in_memory();
    let address = super::free_address();
    let settings = [("REPLVFS_METRICS", address.to_string())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut writer = SqlPeer::start_with(&scratch.uri_with("&flush_interval=10ms"), &settings);
    for (name, rows) in [("%FE", 1), ("%FF", 2)] {
        let (file, replica) = (scratch.file(&format!("a{name}.db")), scratch.replica_named(&name[1..]));
        writer.sql(&format!(
            "ATTACH 'file:{}?vfs=replvfs&replica={replica}&flush_interval=10ms' AS of{rows}",
            file.display()
        ));
        writer.sql(&format!(
            "PRAGMA of{rows}.journal_mode=WAL; CREATE TABLE of{rows}.t(x);"
        ));
        for row in 0..rows {
            writer.sql(&format!(
                "INSERT INTO of{rows}.t VALUES ({row}); PRAGMA of{rows}.replvfs_flush;"
            ));
        }
    }
    let text = metrics(address);
    for (name, txid) in [("xfe", 2.0), ("xff", 3.0)] {
        assert_eq!(value(&text, "replvfs_txid", &[name]), Some(txid), "{text}");
    }
    writer.end();
}
