//! What a user can get wrong, and what a store can give back: each is a clear error, none a panic, a secret in a message,
//! or a wrong database.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use replvfs::history::Target;
use replvfs_tests::{Scratch, compare_pages, flush, open, sqlite_log, try_restore, use_wal};
use replvfs_vfs::types::{Txid, UnixMillis};
use rusqlite::{Connection, MAIN_DB};

const SECRET: &str = "hunter2hunter2";

/// SQLite's error log is one for the process, so these tests run one after another.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    sqlite_log();
    guard
}

/// What SQLite's error log got while a database could not be opened.
fn refusal(uri: &str) -> String {
    sqlite_log();
    let error = open(uri).map(|_| ()).expect_err(uri);
    assert_eq!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::CannotOpen),
        "{uri}: {error}"
    );
    sqlite_log()
        .into_iter()
        .map(|(_, message)| message)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn wrong_parameters_refuse_the_open_and_say_why() {
    let _alone = alone();
    let scratch = Scratch::new();
    for (parameters, says) in [
        ("&flush_intervall=1s", "flush_intervall is not a URI parameter"),
        ("&flush_interval=1", "not a duration"),
        ("&flush_interval=soon", "not a duration"),
        ("&flush_interval=1ms", "out of bounds"),
        ("&flush_interval=1s&flush_interval=2s", "given twice"),
        ("&segment_size=4M", "not a size"),
        ("&segment_size=1", "out of bounds"),
        ("&timeout=", "not a duration"),
        ("&close_timeout=1d", "out of bounds"),
        ("&durability=best", "not understood"),
        ("&retention=7", "neither forever nor a duration"),
        ("&memory_limit=64MiB", "whole process"),
        ("&nolock=1", "nolock=1"),
    ] {
        let uri = scratch.uri_with(parameters);
        let message = refusal(&uri);
        assert!(message.contains(says), "{parameters}: {message}");
    }
    // And without them it opens.
    open(&scratch.uri_with("&flush_interval=1s&segment_size=4MiB&close_timeout=0s")).unwrap();
}

#[test]
fn wrong_replicas_refuse_the_open_and_say_why() {
    let _alone = alone();
    let scratch = Scratch::new();
    let file = scratch.file("a-file");
    fs::write(&file, "not a folder").unwrap();
    let through_a_file = format!("fs://{}/replica", file.display());
    for (replica, says) in [
        ("", "replica"),
        ("/var/backup", "fs:///"),
        ("ftp://host/path", "ftp"),
        ("fs://relative/path", "absolute"),
        ("fs:///", "folder"),
        ("s3:///prefix", "bucket"),
        ("s3://bucket/prefix?regoin=eu", "regoin"),
        (&format!("s3://user:{SECRET}@bucket/prefix"), "environment"),
        (
            &format!("s3://bucket/prefix?regoin=eu%26secret_access_key={SECRET}"),
            "regoin",
        ),
        ("fs:///tmp/{nam}", "{name}"),
        (&through_a_file, "folder"),
    ] {
        let message = refusal(&format!(
            "file:{}?vfs=replvfs&replica={replica}",
            scratch.database().display()
        ));
        assert!(message.contains(says), "{replica}: {message}");
        assert!(!message.contains(SECRET), "{message}");
    }
    let message = refusal(&format!("file:{}?vfs=replvfs", scratch.database().display()));
    assert!(message.contains("replica"), "{message}");
}

#[test]
fn a_store_that_cannot_be_reached_does_not_hold_commits_up() {
    let _alone = alone();
    let scratch = Scratch::new();
    // Nothing listens on the discard port.
    let replica = format!(
        "s3://bucket/prefix?region=us-east-1%26endpoint=http://127.0.0.1:9%26access_key_id=key%26secret_access_key={SECRET}"
    );
    let uri = |parameters: &str| {
        let database = scratch.database();
        format!(
            "file:{}?vfs=replvfs&replica={replica}&timeout=2s&close_timeout=0s&flush_interval=10ms{parameters}",
            database.display()
        )
    };
    // A database that does not exist may have to be restored, and nobody can tell.
    let refused = refusal(&uri(""));
    assert!(
        refused.contains("restore=never") && !refused.contains(SECRET),
        "{refused}"
    );
    assert!(!scratch.database().exists());
    let connection = open(&uri("&restore=never")).unwrap();
    use_wal(&connection);
    connection.execute_batch("CREATE TABLE t(x)").unwrap();
    let started = Instant::now();
    for number in 0..100 {
        connection.execute("INSERT INTO t VALUES (?1)", [number]).unwrap();
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "100 commits took {took:?}");

    let started = Instant::now();
    let error = connection
        .query_row("PRAGMA replvfs_flush", [], |_| Ok(()))
        .unwrap_err()
        .to_string();
    let took = started.elapsed();
    assert!(
        took < Duration::from_secs(10),
        "the flush gave up after {took:?}, not after about 2 s"
    );
    let status: String = connection
        .query_row("PRAGMA replvfs_status", [], |row| row.get(0))
        .unwrap();
    assert!(
        status.contains("127.0.0.1") || status.contains("s3://bucket/prefix"),
        "{status}"
    );
    let logged = sqlite_log();
    assert!(
        !logged.is_empty(),
        "trouble with the store is told to SQLite's error log"
    );
    for text in [error, status, format!("{logged:?}")] {
        assert!(!text.contains(SECRET), "{text}");
    }
    let rows: i64 = connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 100);
}

#[test]
fn an_empty_database_is_not_said_to_be_replicated() {
    let _alone = alone();
    let scratch = Scratch::new();
    let connection = scratch.open();
    connection.execute_batch("PRAGMA journal_mode=DELETE").unwrap();
    let error = connection
        .query_row("PRAGMA replvfs_flush", [], |_| Ok(()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("empty"), "{error}");
    connection.execute_batch("CREATE TABLE t(x)").unwrap();
    flush(&connection);
}

/// A replica with an image and three segments, and its newest state.
fn replicated(scratch: &Scratch) -> Vec<u8> {
    let mut connection = open(&scratch.uri()).unwrap();
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        .unwrap();
    for _ in 0..3 {
        connection
            .execute_batch("INSERT INTO t(v) VALUES (hex(randomblob(5000)))")
            .unwrap();
        flush(&connection);
    }
    connection.serialize(MAIN_DB).unwrap().to_vec()
}

#[test]
fn what_cannot_be_restored_says_why_and_leaves_no_file() {
    let _alone = alone();
    let scratch = Scratch::new();
    replicated(&scratch);
    let empty = scratch.file("empty");
    fs::create_dir(&empty).unwrap();
    let existing = scratch.file("existing.db");
    fs::write(&existing, "mine").unwrap();
    let (replica, out) = (scratch.replica(), scratch.file("out.db"));
    for (replica, target, out, says) in [
        ("backup", Target::Newest, &out, "fs:///"),
        (&scratch.replica_named("missing"), Target::Newest, &out, "missing"),
        (&scratch.replica_named("empty"), Target::Newest, &out, "replvfs.json"),
        (&replica, Target::Txid(Txid(1_000_000)), &out, "1000000"),
        (&replica, Target::At(UnixMillis(0)), &out, "1970-01-01"),
        (&replica, Target::Newest, &existing, "existing.db"),
        (&replica, Target::Newest, &scratch.file("no-folder/out.db"), "no-folder"),
    ] {
        let error = try_restore(replica, target, out).expect_err(says).to_string();
        assert!(error.contains(says), "expected {says}: {error}");
    }
    assert!(!out.exists());
    assert_eq!(fs::read_to_string(&existing).unwrap(), "mine");
    assert!(leftovers(scratch.path()).is_empty(), "{:?}", leftovers(scratch.path()));
}

#[test]
fn a_damaged_or_missing_object_is_named_and_nothing_is_restored() {
    let _alone = alone();
    let scratch = Scratch::new();
    let expected = replicated(&scratch);
    let folder = scratch.file("replica");
    let objects = files_below(&folder);
    assert!(
        objects.len() >= 6,
        "replica, generation, manifest, chunk and segments: {objects:?}"
    );
    let newest_segment = objects
        .iter()
        .filter(|path| path.parent().is_some_and(|p| p.ends_with("log")))
        .max()
        .unwrap();

    for object in &objects {
        let name = object.file_name().unwrap().to_str().unwrap();
        let bytes = fs::read(object).unwrap();
        let damages: [(&str, Option<Vec<u8>>); 4] = [
            ("flipped", Some(flipped(&bytes))),
            ("cut", Some(bytes[..bytes.len() / 2].to_vec())),
            ("emptied", Some(Vec::new())),
            ("deleted", None),
        ];
        for (what, damaged) in damages {
            // Without its newest segment, a replica is one to which less was written.
            if damaged.is_none() && object == newest_segment {
                continue;
            }
            fs::remove_file(object).unwrap();
            if let Some(damaged) = &damaged {
                fs::write(object, damaged).unwrap();
            }
            let out = scratch.file("out.db");
            match try_restore(&scratch.replica(), Target::Newest, &out) {
                Ok(_) => panic!("{name} is {what}, and was not missed"),
                Err(error) => {
                    let error = error.to_string();
                    let is_named = error.contains(name) || damaged.is_none();
                    assert!(is_named, "{name} is {what}: {error}");
                }
            }
            assert!(!out.exists(), "{name} is {what}");
        }
        fs::write(object, &bytes).unwrap();
    }

    let out = scratch.file("out.db");
    try_restore(&scratch.replica(), Target::Newest, &out).unwrap();
    compare_pages(&expected, &fs::read(&out).unwrap()).unwrap();
    Connection::open(&out).unwrap();
}

/// With one bit changed in the middle.
fn flipped(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    bytes
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path))
        } else {
            found.push(path)
        }
    }
    found.sort();
    found
}

/// Files that a restore began and did not finish.
fn leftovers(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            path.is_file() && !name.starts_with("app.db") && name != "existing.db"
        })
        .collect()
}
