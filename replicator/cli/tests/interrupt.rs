//! A signal ends a restore, and what it had written is gone.
#![cfg(unix)]
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::{Child, Command, Stdio};

use replvfs::Config;
use rusqlite::{Connection, OpenFlags};

/// In bytes. It takes a while to restore that.
const LARGE: usize = 64 << 20;

fn replica(folder: &Path) -> String {
    replvfs::register(Config::default()).unwrap();
    let replica = format!("fs://{}", folder.join("replica").display());
    let uri = format!("file:{}?vfs=replvfs&replica={replica}", folder.join("app.db").display());
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri, flags).unwrap();
    connection
        .execute_batch(&format!(
            "CREATE TABLE t(a); INSERT INTO t VALUES(randomblob({LARGE})); PRAGMA replvfs_flush"
        ))
        .unwrap();
    replica
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// The signal comes once the restore has a file; `None` when it was quicker than that.
fn interrupted(mut restore: Child, signal: &str, folder: &Path) -> Option<i32> {
    while files(folder).is_empty() && restore.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let kill = Command::new("kill")
        .args([signal, &restore.id().to_string()])
        .stderr(Stdio::null())
        .status();
    kill.unwrap();
    let status = restore.wait().unwrap();
    (!status.success()).then(|| status.code().expect("it ends by itself"))
}

#[test]
fn a_restore_that_is_interrupted_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let uri = replica(folder.path());
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        for attempt in 0.. {
            assert!(attempt < 50, "{signal}: every restore came to its end");
            let target = tempfile::tempdir_in(folder.path()).unwrap();
            let restore = Command::new(env!("CARGO_BIN_EXE_replvfs"))
                .args(["restore", &uri])
                .arg(target.path().join("out.db"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            if let Some(ended) = interrupted(restore, signal, target.path()) {
                assert_eq!(ended, code);
                assert_eq!(files(target.path()), Vec::<String>::new());
                break;
            }
        }
    }
}
