//! Queries against a replica through the program.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::path::Path;
use std::process::{Command, Output};

use rusqlite::{Connection, OpenFlags};

fn sql(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replvfs"));
    command.arg("sql").args(arguments).output().unwrap()
}

fn text(arguments: &[&str]) -> String {
    let output = sql(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn error(arguments: &[&str]) -> String {
    let output = sql(arguments);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8(output.stderr).unwrap()
}

/// A replica, and its transaction that has one row of three.
fn replica(folder: &Path) -> (String, u64) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| replvfs::register(replvfs::Config::default()).unwrap());
    // What stands in a URI for something else, too.
    let replica = format!("fs://{}/a%20b", folder.display());
    let uri = format!(
        "file:{}/app.db?vfs=replvfs&replica={}",
        folder.display(),
        replica.replace('%', "%25")
    );
    let flags = OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let writer = Connection::open_with_flags(uri, flags).unwrap();
    writer
        .execute_batch(
            "PRAGMA journal_mode = WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES(1, 'one')",
        )
        .unwrap();
    let first = writer.query_row("PRAGMA replvfs_txid", [], |row| row.get::<_, String>(0));
    writer
        .execute_batch("INSERT INTO t VALUES(2, NULL); INSERT INTO t VALUES(3, x'0102')")
        .unwrap();
    writer.query_row("PRAGMA replvfs_flush", [], |_| Ok(())).unwrap();
    writer.close().unwrap();
    (replica, first.unwrap().parse().unwrap())
}

#[test]
fn the_newest_state_and_earlier_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (replica, first) = replica(folder.path());
    let all = "SELECT * FROM t";
    let table = "a  b\n─  ───────\n1  one\n2  NULL\n3  x'0102'\n(3 rows)\n";
    assert_eq!(text(&[&replica, all]), table);
    assert_eq!(text(&[&replica, all, "--csv"]), "a,b\n1,one\n2,\n3,0102\n");
    let told: serde_json::Value = serde_json::from_str(&text(&[&replica, all, "--json"])).unwrap();
    let expected = serde_json::json!([{"a": 1, "b": "one"}, {"a": 2, "b": null}, {"a": 3, "b": "0102"}]);
    assert_eq!(told, expected);
    let count = "SELECT count(*) AS n FROM t";
    assert_eq!(
        text(&[&replica, count, "--csv", "--txid", &first.to_string()]),
        "n\n1\n"
    );
    assert_eq!(
        text(&[&replica, count, "--csv", "--at", "9999-01-01T00:00:00Z"]),
        "n\n3\n"
    );
    let before = error(&[&replica, count, "--at", "1 hour ago"]);
    assert!(before.contains("is not in the history"), "{before}");
    // Nothing was left anywhere, by the name that the connection has.
    assert!(!Path::new("replica.db").exists());
}

#[test]
fn what_is_wrong_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let (replica, _) = replica(folder.path());
    for (statement, says) in [
        ("SELECT c FROM t", "no such column: c"),
        ("DELETE FROM t", "readonly"),
        ("SELECT 1; SELECT 2", "statement"),
    ] {
        let error = error(&[&replica, statement]);
        assert!(error.contains(says), "{statement}: {error}");
    }
    let nothing = format!("fs://{}/nothing", folder.path().display());
    let error = error(&[&nothing, "SELECT 1"]);
    assert!(error.contains("nothing"), "{error}");
    let output = sql(&[&replica, "SELECT 1", "--json", "--csv"]);
    assert_eq!(output.status.code(), Some(2));
}

/// SQLite itself only says "disk I/O error".
#[test]
fn an_object_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (replica, _) = replica(folder.path());
    for chunk in std::fs::read_dir(folder.path().join("a b/chunk")).unwrap() {
        std::fs::remove_file(chunk.unwrap().path()).unwrap();
    }
    let images = std::fs::read_dir(folder.path().join("a b/gen/0000000000000001/image")).unwrap();
    let names = images.map(|image| image.unwrap().file_name().into_string().unwrap());
    let image = names.map(|name| u64::from_str_radix(&name, 16).unwrap()).min().unwrap();
    let error = error(&[&replica, "SELECT * FROM sqlite_schema", "--txid", &image.to_string()]);
    assert!(error.contains("chunk/"), "{error}");
}
