//! What somebody has who runs a program with replvfs in it: its lines on standard error, its warnings in SQLite's error log, its metrics at an endpoint, and a
//! dashboard and alerts that fit them.
//!
//! The program is this test program once more, which runs the test `program`, or SQL, and does what its environment says: what is looked at is a process's.
#![allow(missing_docs)]

mod endpoint;
mod fork;
mod http;
mod logs;
mod prometheus;
mod queries;

use std::net::SocketAddr;

use replvfs_tests::peer::run_sql;
use replvfs_tests::{Scratch, free_port, status};
use rusqlite::Connection;

const ROLE: &str = "REPLVFS_TEST_OPERATORS_ROLE";
const URI: &str = "REPLVFS_TEST_OPERATORS_URI";

/// What the program does, as its environment says.
#[test]
fn program() {
    let (Ok(role), Ok(uri)) = (std::env::var(ROLE), std::env::var(URI)) else {
        return;
    };
    match role.as_str() {
        "forks" => fork::with_a_child(&uri),
        role => logs::run(role, &uri),
    }
}

#[test]
fn other_process() {
    run_sql();
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// In one of our processes, until the status says so.
fn wait_until(connection: &Connection, what: &str, is: impl Fn(&serde_json::Value) -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !is(&status(connection)) {
        assert!(std::time::Instant::now() < end, "{what}: {}", status(connection));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Puts something that is not the database's into the slot that is its turn, as another machine does that takes over.
fn take_over(scratch: &Scratch, replica: &str, generation: u64, next: u64) {
    use replvfs::format::{Generation, Key};
    let key = Key::Log(Generation(generation), replvfs::Txid(next));
    std::fs::write(scratch.file(replica).join(key.path()), "another machine's").unwrap();
}
