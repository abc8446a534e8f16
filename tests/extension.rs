//! The loadable extension in programs that are not written in Rust: the `sqlite3` shell and Python's `sqlite3` module.
//!
//! The library is built as a user would build it, so that it has no SQLite of its own to fall back on.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use replvfs_tests::{Scratch, check_integrity, in_ci, restore_txid};
use rusqlite::Connection;

/// Python of the system: others are often built without `enable_load_extension`.
const PYTHON: &str = "/usr/bin/python3";

#[test]
fn the_shell_replicates_through_the_extension() {
    if !available("sqlite3", &["--version"]) {
        return;
    }
    let scratch = Scratch::new();
    let script = format!(
        ".bail on\n.load {}\n.open '{}'\nPRAGMA journal_mode=WAL;\nCREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);\n\
         INSERT INTO t(v) VALUES ('one'),('two');\nUPDATE t SET v='zwei' WHERE id=2;\nPRAGMA replvfs_flush;\n\
         .print txid\nPRAGMA replvfs_txid;\n.print acked\nPRAGMA replvfs_acked;\n",
        extension().display(),
        scratch.uri(),
    );
    let output = run(Command::new("sqlite3").arg(":memory:"), Some(&script));
    let text = succeeded("sqlite3", &output);
    let after = |label: &str| text.lines().skip_while(|line| *line != label).nth(1).map(str::to_owned);
    assert_eq!(after("txid"), Some("3".to_owned()), "{text}");
    assert_eq!(after("acked"), Some("3".to_owned()), "{text}");

    let script = format!(
        ".bail on\n.load {}\n.open 'file:app.db?vfs=replvfs-remote&replica={}'\nSELECT group_concat(v) FROM t;\n\
         PRAGMA replvfs_txid=2;\nSELECT group_concat(v) FROM t;\n",
        extension().display(),
        scratch.replica(),
    );
    let output = run(Command::new("sqlite3").arg(":memory:"), Some(&script));
    let text = succeeded("sqlite3", &output);
    assert!(text.ends_with("one,zwei\n2\none,two\n"), "{text}");

    assert_eq!(
        restored_rows(&scratch, None),
        [(1, "one".to_owned()), (2, "zwei".to_owned())]
    );
    assert_eq!(
        restored_rows(&scratch, Some(2)),
        [(1, "one".to_owned()), (2, "two".to_owned())]
    );
}

fn python_loads_extensions() -> bool {
    let probe = "import sqlite3; sqlite3.connect(':memory:').enable_load_extension(True)";
    available(PYTHON, &["-c", probe])
}

#[test]
fn python_replicates_through_the_extension() {
    if !python_loads_extensions() {
        return;
    }
    let scratch = Scratch::new();
    // Loaded twice, by two connections, the first of which is gone when the second one loads it.
    let script = r#"
import sqlite3, sys
library, uri = sys.argv[1:]
for _ in range(2):
    loader = sqlite3.connect(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(library)
    loader.close()
db = sqlite3.connect(uri, uri=True, isolation_level=None)
# There is a row also where there is no number yet.
assert db.execute("PRAGMA replvfs_txid").fetchone() == ("",)
assert db.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
with db:
    db.execute("BEGIN")
    db.executemany("INSERT INTO t(v) VALUES (?)", [(f"row {n}",) for n in range(1000)])
db.execute("BEGIN"); db.execute("DELETE FROM t"); db.execute("ROLLBACK")
db.execute("PRAGMA replvfs_flush").fetchall()
txid, acked = (int(db.execute(f"PRAGMA replvfs_{name}").fetchone()[0]) for name in ("txid", "acked"))
assert txid == acked == 2, (txid, acked)
db.close()
"#;
    let output = run(
        Command::new(PYTHON)
            .args(["-c", script])
            .arg(extension())
            .arg(scratch.uri()),
        None,
    );
    succeeded(PYTHON, &output);

    let rows = restored_rows(&scratch, None);
    assert_eq!(rows.len(), 1000);
    assert_eq!(rows[999], (1000, "row 999".to_owned()));
    assert_eq!(restored_rows(&scratch, Some(1)), []);
}

/// As servers do that load the application, and fork their workers then.
#[test]
fn workers_that_python_forks_are_replicated() {
    if !python_loads_extensions() {
        return;
    }
    let scratch = Scratch::new();
    let script = r#"
import multiprocessing, os, signal, sqlite3, sys
library, uri = sys.argv[1:]
signal.alarm(100)
def connect():
    loader = sqlite3.connect(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(library)
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=60)
def work(name):
    signal.alarm(100)
    own = connect()
    for n in range(20):
        own.execute("INSERT INTO t(v) VALUES (?)", (f"{name} {n}",))
    own.close()
db = connect()
assert db.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
db.execute("PRAGMA replvfs_flush").fetchall()
workers = []
for n in range(3):
    worker = os.fork()
    if worker == 0:
        work(f"forked {n}")
        os._exit(0)
    workers.append(worker)
processes = [multiprocessing.get_context("fork").Process(target=work, args=(f"process {n}",)) for n in range(3)]
for process in processes:
    process.start()
for n in range(20):
    db.execute("INSERT INTO t(v) VALUES (?)", (f"parent {n}",))
assert [os.waitpid(worker, 0) for worker in workers] == [(worker, 0) for worker in workers]
for process in processes:
    process.join()
    assert process.exitcode == 0, process.exitcode
db.execute("PRAGMA replvfs_flush").fetchall()
txid, acked = (int(db.execute(f"PRAGMA replvfs_{name}").fetchone()[0]) for name in ("txid", "acked"))
assert txid == acked, (txid, acked)
assert db.execute("SELECT count(*) FROM t").fetchone() == (140,)
"#;
    let output = run(
        Command::new(PYTHON)
            .args(["-c", script])
            .arg(extension())
            .arg(scratch.uri()),
        None,
    );
    succeeded(PYTHON, &output);
    let rows = restored_rows(&scratch, None);
    for worker in ["forked", "process"] {
        for n in 0..3 {
            let of = rows.iter().filter(|(_, v)| v.starts_with(&format!("{worker} {n} ")));
            assert_eq!(of.count(), 20, "of {worker} {n}");
        }
    }
    assert_eq!(rows.len(), 140);
}

#[test]
fn a_missing_replica_is_an_error_in_the_shell() {
    if !available("sqlite3", &["--version"]) {
        return;
    }
    let scratch = Scratch::new();
    let script = format!(
        ".load {}\n.open 'file:{}?vfs=replvfs'\nCREATE TABLE t(x);\n",
        extension().display(),
        scratch.database().display()
    );
    let output = run(Command::new("sqlite3").args(["-bail", ":memory:"]), Some(&script));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("unable to open"),
        "{output:?}"
    );
}

/// A program that is as it was: what loads the extension is the module that Python looks for when it starts.
#[test]
fn an_unchanged_python_program_is_replicated() {
    if !python_loads_extensions() {
        return;
    }
    let scratch = Scratch::new();
    let site = r#"
import os, sqlite3
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(os.environ["EXTENSION"])
loader.close()
"#;
    std::fs::write(scratch.file("sitecustomize.py"), site).expect("writing");
    let configuration = format!(
        "[[database]]\npath = 'app.db'\nreplica = '{}'\ndurability = 'remote'\n",
        scratch.replica()
    );
    std::fs::write(scratch.file("replvfs.toml"), configuration).expect("writing");
    let program = r#"
import os, sqlite3
db = sqlite3.connect("app.db")
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
db.executemany("INSERT INTO t(v) VALUES (?)", [(f"row {n}",) for n in range(10)])
db.commit()
db.execute("ATTACH 'cache.db' AS cache")
db.execute("CREATE TABLE cache.t(v)")
db.commit()
temporary = sqlite3.connect("")
temporary.execute("CREATE TABLE t(v)")
assert db.execute("PRAGMA replvfs_txid").fetchone() == db.execute("PRAGMA replvfs_acked").fetchone() == ("2",)
assert db.execute("PRAGMA cache.replvfs_status").fetchone() is None
"#;
    let output = run(
        Command::new(PYTHON)
            .args(["-c", program])
            .current_dir(scratch.path())
            .env("PYTHONPATH", scratch.path())
            .env("EXTENSION", extension())
            .env("REPLVFS_DEFAULT", "1")
            .env("REPLVFS_CONFIG", "replvfs.toml"),
        None,
    );
    succeeded(PYTHON, &output);
    assert_eq!(restored_rows(&scratch, None).len(), 10);
    assert!(!scratch.file("cache.db-replvfs").exists() && !scratch.file("cache.db-replvfs-lock").exists());
}

#[test]
fn the_shell_opens_a_path_and_the_environment_names_the_replica() {
    if !available("sqlite3", &["--version"]) {
        return;
    }
    let scratch = Scratch::new();
    let script = format!(
        ".bail on\n.load {}\n.open app.db\nCREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);\nINSERT INTO t(v) VALUES ('one');\nPRAGMA replvfs_flush;\n",
        extension().display()
    );
    let shell = |replica: &str| {
        let mut command = Command::new("sqlite3");
        let command = command.arg(":memory:").current_dir(scratch.path());
        run(
            command.env("REPLVFS_DEFAULT", "1").env("REPLVFS_REPLICA", replica),
            Some(&script),
        )
    };
    succeeded("sqlite3", &shell(&scratch.replica_named("of-{name}")));
    let out = scratch.file("restored.db");
    restore_txid(&scratch.replica_named("of-app.db"), &out, None);
    check_integrity(&out);
    // One for all is refused when the extension is loaded, and says why.
    let refused = shell(&scratch.replica_named("of-all"));
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && error.contains("put {name} into it"),
        "{error}"
    );
}

/// The extension: that of `REPLVFS_EXTENSION`, or built once.
fn extension() -> PathBuf {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    BUILT
        .get_or_init(|| {
            if let Some(library) = std::env::var_os("REPLVFS_EXTENSION") {
                let library = PathBuf::from(library);
                assert!(library.is_absolute() && library.exists(), "{}", library.display());
                return library;
            }
            // This test's program is target/<profile>/deps/extension-<hash>.
            let program = std::env::current_exe().expect("the path of this program");
            let target = program.ancestors().nth(3).expect("target/<profile>/deps");
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
            let output = Command::new(env!("CARGO"))
                .current_dir(root)
                .args(["build", "--locked", "-p", "replvfs-extension", "--target-dir"])
                .arg(target)
                .stdin(Stdio::null())
                .output()
                .expect("running cargo");
            succeeded("cargo build -p replvfs-extension", &output);
            let name = format!(
                "{}replvfs{}",
                std::env::consts::DLL_PREFIX,
                std::env::consts::DLL_SUFFIX
            );
            let library = target.join("debug").join(name);
            assert!(library.exists(), "{} was not built", library.display());
            library
        })
        .clone()
}

/// Whether a host program is there and can load extensions. In CI it must be.
fn available(program: &str, arguments: &[&str]) -> bool {
    let works = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .is_ok_and(|output| output.status.success());
    if !works {
        assert!(
            !in_ci(),
            "{program} is missing or cannot load extensions, and in CI it must"
        );
        eprintln!("SKIPPED: {program} is missing or cannot load extensions");
    }
    works
}

fn run(command: &mut Command, input: Option<&str>) -> Output {
    use std::io::Write;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    // A program that fails early closes its input; its exit code tells.
    let _ = stdin.write_all(input.unwrap_or_default().as_bytes());
    drop(stdin);
    child.wait_with_output().expect("waiting for the program")
}

fn succeeded(what: &str, output: &Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{what} failed with {}\n{out}\n{err}",
        output.status
    );
    out.into_owned()
}

/// The rows of `t` in the replica, after a restore that knows nothing of the program that wrote them.
fn restored_rows(scratch: &Scratch, txid: Option<u64>) -> Vec<(i64, String)> {
    let target = scratch.file(&format!(
        "restored-{}.db",
        txid.map_or("newest".to_owned(), |txid| txid.to_string())
    ));
    restore_txid(&scratch.replica(), &target, txid);
    check_integrity(&target);
    let connection = Connection::open(&target).expect("opening the restored file");
    let mut statement = connection
        .prepare("SELECT id, v FROM t ORDER BY id")
        .expect("the table is there");
    let rows = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .expect("reading the table");
    rows.collect::<Result<_, _>>().expect("reading the table")
}
