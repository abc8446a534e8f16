//! Replicas that the configuration file knows: by the path of a database, and with the credentials that are in it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output};
use std::sync::mpsc;

use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

const SECRET: &str = "hunter2hunter2";

fn replvfs(folder: &TempDir, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_replvfs"));
    for (name, _) in std::env::vars_os() {
        if ["REPLVFS_", "AWS_"]
            .iter()
            .any(|prefix| name.to_string_lossy().starts_with(prefix))
        {
            command.env_remove(name);
        }
    }
    let output = command.current_dir(folder.path()).args(arguments).output().unwrap();
    for shown in [&output.stdout, &output.stderr] {
        assert!(!String::from_utf8_lossy(shown).contains(SECRET), "{output:?}");
    }
    output
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_database_stands_for_its_replica() {
    let folder = tempfile::tempdir().unwrap();
    let replicas = folder.path().join("replicas");
    let file = format!(
        "[[database]]\npath = \"*.db\"\nreplica = \"fs://{}/{{name}}\"\n",
        replicas.display()
    );
    std::fs::write(folder.path().join("replvfs.toml"), file).unwrap();
    replvfs::register(replvfs::Config::default()).unwrap();
    let uri = format!(
        "file:{}/app.db?vfs=replvfs&replica=fs://{}/app.db",
        folder.path().display(),
        replicas.display()
    );
    let flags = OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let db = Connection::open_with_flags(uri, flags).unwrap();
    db.execute_batch("CREATE TABLE t(v); INSERT INTO t VALUES (7)").unwrap();
    db.query_row("PRAGMA replvfs_flush", [], |_| Ok(())).unwrap();

    let config = ["--config", "replvfs.toml"];
    let run = |arguments: &[&str]| replvfs(&folder, &[arguments, &config].concat());
    assert!(text(&run(&["restore", "app.db", "restored.db"])).contains("restored"));
    let restored = Connection::open(folder.path().join("restored.db")).unwrap();
    assert_eq!(
        restored.query_row("SELECT v FROM t", [], |row| row.get::<_, i64>(0)),
        Ok(7)
    );
    assert_eq!(text(&run(&["sql", "app.db", "SELECT v FROM t", "--csv"])), "v\n7\n");
    text(&run(&["log", "app.db"]));
    text(&run(&["verify", "app.db", "--against", "app.db"]));
    text(&run(&["verify", "app.db"]));
    text(&run(&["prune", "app.db", "--dry-run"]));

    // One that the file does not know, and one of a file that is not there.
    for (arguments, says) in [
        (
            ["restore", "app.sqlite", "o.db"],
            "no replica is set for a database of this path",
        ),
        (["sql", "app.sqlite", "SELECT 1"], "no replica is set"),
    ] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(says), "{output:?}");
    }
    let output = replvfs(&folder, &["restore", "app.db", "o.db", "--config", "missing.toml"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("missing.toml"),
        "{output:?}"
    );
}

/// Answers nobody, and tells the first line that says who asks.
fn listening_store() -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let who = head
                .lines()
                .find(|line| line.to_ascii_lowercase().starts_with("authorization:"));
            let _ = tell.send(who.unwrap_or_default().to_owned());
            let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    (endpoint, told)
}

#[test]
fn credentials_of_the_file_are_taken_for_the_replica_that_they_are_for() {
    let folder = tempfile::tempdir().unwrap();
    let (endpoint, told) = listening_store();
    let file = format!(
        "store = {{ region = 'here', endpoint = '{endpoint}', access_key_id = 'OFALL', secret_access_key = '{SECRET}' }}\n\
         [[database]]\npath = '/srv/*.db'\nreplica = 's3://backup/{{name}}'\nstore = {{ access_key_id = 'OFTHEM' }}\n"
    );
    std::fs::write(folder.path().join("replvfs.toml"), file).unwrap();
    for (which, key) in [
        ("s3://backup/app.db", "OFTHEM"),
        ("/srv/app.db", "OFTHEM"),
        ("s3://elsewhere/app.db", "OFALL"),
    ] {
        let restore = ["restore", which, "out.db"];
        let query = ["sql", which, "SELECT 1"];
        for arguments in [restore, query] {
            let output = replvfs(&folder, &[&arguments[..], &["--config", "replvfs.toml"]].concat());
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            let who = told.recv().unwrap();
            assert!(who.contains(&format!("Credential={key}/")), "{which}: {who}");
            while told.try_recv().is_ok() {}
        }
    }
}
