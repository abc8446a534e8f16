//! A child of `fork()` does not serve its parent's port, and has one of its own when the parent has ended.

use std::ffi::OsStr;
use std::io::Write;

use replvfs_tests::peer::Peer;
use replvfs_tests::{Scratch, flush, open};

use super::http::{get, metrics, until, value};
use super::{ROLE, URI, free_address};

/// Opens the database, forks, and ends when its input does. The child opens it as well, and ends some time after its parent.
pub(super) fn with_a_child(uri: &str) {
    let connection = open(uri).unwrap();
    connection
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES (1)")
        .unwrap();
    flush(&connection);
    // Else it is open in the child as well, where SQLite would take its locks for the child's.
    drop(connection);
    // SAFETY: the child goes on with its only thread, in this block, and never returns from here.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: the signal kills the process.
        unsafe { libc::alarm(100) };
        let in_child = std::panic::catch_unwind(|| {
            let seen = std::env::var("REPLVFS_TEST_SEEN").unwrap();
            while !std::fs::exists(format!("{seen}-open")).unwrap() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            let connection = open(uri).unwrap();
            connection.busy_timeout(std::time::Duration::from_secs(60)).unwrap();
            let mut rows = 0;
            // Until somebody has seen enough.
            while !std::fs::exists(format!("{seen}-seen")).unwrap() {
                rows += 1;
                connection.execute("INSERT INTO t VALUES (?1)", [rows]).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        // SAFETY: ends the process.
        unsafe { libc::_exit(i32::from(in_child.is_err())) };
    }
    let connection = open(uri).unwrap();
    flush(&connection);
    std::fs::write(format!("{}-open", std::env::var("REPLVFS_TEST_SEEN").unwrap()), "").unwrap();
    std::io::stdout().write_all(b"\nready\n").unwrap();
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
}

#[test]
fn a_child_does_not_serve_the_port_of_its_parent() {
    let scratch = Scratch::in_memory();
    let address = free_address();
    let seen = scratch.file("x");
    let uri = scratch.uri_with("&flush_interval=10ms");
    let parent = Peer::start_program(&[
        (ROLE, OsStr::new("forks")),
        (URI, uri.as_ref()),
        ("REPLVFS_METRICS", address.to_string().as_ref()),
        ("REPLVFS_TEST_SEEN", seen.as_ref()),
    ]);
    let database = format!("database=\"{}\"", scratch.database().display());
    let text = metrics(address);
    assert!(value(&text, "replvfs_open", &[&database]).is_some(), "{text}");
    let before = value(&text, "replvfs_images_total", &[&database]);
    assert_eq!(before, Some(1.0), "the one who began the history answers: {text}");
    parent.kill();
    // The child has begun to replicate it, and counts from the beginning.
    until(address, "replvfs_owner", &[&database], |owner| owner == 1.0);
    let text = metrics(address);
    assert_eq!(value(&text, "replvfs_images_total", &[&database]), Some(0.0), "{text}");
    std::fs::write(format!("{}-seen", seen.display()), "").unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while get(address, "/metrics").is_ok() {
        assert!(std::time::Instant::now() < end, "the child does not end");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
