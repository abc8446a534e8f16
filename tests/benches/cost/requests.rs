//! Requests in an hour, by kind, of databases that do nothing, little and much, and of one who reads; all at the same time, for a part of an hour.

use std::time::{Duration, Instant};

use replvfs_tests::{Scratch, flush, open, status, use_wal};
use rusqlite::Connection;

use replvfs_tests::s3::{Counts, Kind, Server};

/// Dollars for 1,000 requests: S3 Standard, us-east-1. Deleting is free.
const WRITING: f64 = 0.005;
const READING: f64 = 0.0004;
/// Dollars for a GB and month.
const KEEPING: f64 = 0.023;
const HOURS_OF_A_MONTH: f64 = 730.0;
/// As long as segments are kept, as it comes.
const HOURS_KEPT: f64 = 7.0 * 24.0;

/// Commits of one row of 100 bytes.
const LOADS: [(&str, &str, Option<Duration>); 3] = [
    ("idle", "idle", None),
    ("second", "one commit a second", Some(Duration::from_secs(1))),
    ("busy", "200 commits a second", Some(Duration::from_millis(5))),
];

pub(crate) fn measure(seconds: u64) {
    let (server, scratch) = (Server::start(), Scratch::new());
    replvfs_tests::register_as_it_comes();
    let opened = LOADS.map(|(group, _, _)| {
        let begun = server.counts(group);
        let replica = server.replica(group, "app");
        let connection = open(&format!(
            "file:{}?vfs=replvfs&replica={replica}",
            scratch.file(group).display()
        ));
        let connection = connection.expect("opens");
        use_wal(&connection);
        connection
            .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT)")
            .expect("a table");
        flush(&connection);
        while status(&connection)["image"] != "stored" {
            std::thread::sleep(Duration::from_millis(10));
        }
        (connection, server.counts(group).since(&begun).all())
    });
    let replica = server.replica_for_reader("second", "app");
    let reader = open(&format!("file:r?vfs=replvfs-remote&follow=1s&replica={replica}")).expect("opens the replica");
    count(&reader);
    let groups = LOADS.map(|(group, ..)| group).into_iter().chain(["reader"]);
    let groups: Vec<&str> = groups.collect();
    let before: Vec<Counts> = groups.iter().map(|group| server.counts(group)).collect();
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    std::thread::scope(|threads| {
        for ((connection, _), (_, _, pause)) in opened.into_iter().zip(LOADS) {
            threads.spawn(move || work(&connection, pause, end));
        }
        threads.spawn(move || {
            while Instant::now() < end {
                count(&reader);
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        let took = begun.elapsed();
        let counts = groups.iter().zip(&before);
        let counts: Vec<Counts> = counts
            .map(|(group, before)| server.counts(group).since(before))
            .collect();
        print(&counts, took);
    });
}

fn work(connection: &Connection, pause: Option<Duration>, end: Instant) {
    let text = "Sphinx of black quartz, judge my vow. ".repeat(3);
    let Some(pause) = pause else {
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        return;
    };
    let mut insert = connection.prepare("INSERT INTO t(b) VALUES (?1)").expect("a statement");
    let mut next = Instant::now();
    while next < end {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        next += pause;
        insert.execute([&text[..100]]).expect("a row");
    }
}

fn count(reader: &Connection) {
    let rows: i64 = reader
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .expect("reads");
    assert!(rows >= 0);
}

fn print(counts: &[Counts], took: Duration) {
    let hours = took.as_secs_f64() / 3600.0;
    println!("Requests in an hour, measured for {took:.0?}; $: S3 Standard in us-east-1, for a month");
    println!("| | PUT | GET | HEAD | LIST | DELETE | $ for requests | MiB put | $ for keeping 7 days |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let names = LOADS
        .map(|(_, name, _)| name)
        .into_iter()
        .chain(["replvfs-remote, follow=1s, of that with one commit a second"]);
    for (name, counts) in names.zip(counts) {
        let an_hour = |kind| counts.of(kind) as f64 / hours;
        let writing = an_hour(Kind::Put) + an_hour(Kind::List);
        let reading = an_hour(Kind::Get) + an_hour(Kind::Head);
        let price = HOURS_OF_A_MONTH * (writing * WRITING + reading * READING) / 1000.0;
        let bytes = counts.bytes as f64 / hours;
        let kinds = Kind::ALL.map(|kind| format!("{:.0}", an_hour(kind)));
        println!(
            "| {name} | {} | {price:.2} | {:.1} | {:.2} |",
            kinds.join(" | "),
            bytes / f64::from(1 << 20),
            HOURS_KEPT * bytes / 1e9 * KEEPING
        );
    }
}
