//! The endpoint beside a writer, and among guests who do not behave.

use std::io::{Read, Write};
use std::net::TcpStream;

use replvfs_tests::Scratch;
use replvfs_tests::peer::SqlPeer;

use super::free_address;
use super::http::{ask, get, metrics, until, value};

#[test]
fn the_numbers_are_those_of_the_work() {
    let scratch = Scratch::in_memory();
    let address = free_address();
    let mut writer = SqlPeer::start_with(
        &scratch.uri_with("&flush_interval=10ms"),
        &[("REPLVFS_METRICS", &address.to_string())],
    );
    writer.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(x); PRAGMA replvfs_flush;");
    let database = format!("database=\"{}\"", scratch.database().display());
    let of = [database.as_str()];
    let uploaded = ["replvfs_uploaded_segments_total", "replvfs_uploaded_transactions_total"];
    let text = metrics(address);
    let before = uploaded.map(|name| value(&text, name, &of).unwrap());
    for row in 0..5 {
        writer.sql(&format!("INSERT INTO t VALUES ({row}); PRAGMA replvfs_flush;"));
    }
    let text = metrics(address);
    let after = uploaded.map(|name| value(&text, name, &of).unwrap());
    assert_eq!(after, before.map(|count| count + 5.0), "{text}");
    for (name, wanted) in [
        ("replvfs_open", 1.0),
        ("replvfs_owner", 1.0),
        ("replvfs_failed", 0.0),
        ("replvfs_fenced", 0.0),
        ("replvfs_trouble", 0.0),
        ("replvfs_suspended", 0.0),
        ("replvfs_pending_transactions", 0.0),
        ("replvfs_pending_bytes", 0.0),
        ("replvfs_oldest_pending_timestamp_seconds", 0.0),
        ("replvfs_gaps_total", 0.0),
        ("replvfs_errors_total", 0.0),
        ("replvfs_images_total", 1.0),
    ] {
        assert_eq!(value(&text, name, &of), Some(wanted), "{name} in\n{text}");
    }
    let txid = value(&text, "replvfs_txid", &of).unwrap();
    assert!(txid >= 5.0, "{txid}");
    assert_eq!(value(&text, "replvfs_acked_txid", &of), Some(txid), "{text}");
    for name in [
        "replvfs_captured_bytes_total",
        "replvfs_uploaded_segment_bytes_total",
        "replvfs_wal_held_bytes",
        "replvfs_last_image_timestamp_seconds",
    ] {
        assert!(
            value(&text, name, &of).is_some_and(|value| value > 0.0),
            "{name} in\n{text}"
        );
    }
    let replica = format!("replica=\"{}\"", scratch.replica());
    let created = ["kind=\"create\"", "outcome=\"ok\"", replica.as_str()];
    let count = value(&text, "replvfs_store_requests_total", &created).unwrap();
    let objects = scratch.objects().len() as f64;
    assert_eq!(count, objects, "{text}");
    let all = ["kind=\"create\"", replica.as_str()];
    assert_eq!(
        value(&text, "replvfs_store_request_duration_seconds_count", &all),
        Some(objects),
        "{text}"
    );
    assert_eq!(
        value(&text, "replvfs_captured_memory_limit_bytes", &[]),
        Some(f64::from(1 << 19)),
        "{text}"
    );

    // The store is away. What grows with time is right though nothing happens.
    let (there, away) = (scratch.file("replica"), scratch.file("away"));
    std::fs::rename(&there, &away).unwrap();
    writer.sql("INSERT INTO t VALUES ('late');");
    until(address, "replvfs_trouble", &of, |value| value == 1.0);
    let since = until(address, "replvfs_oldest_pending_timestamp_seconds", &of, |since| {
        since > 0.0
    });
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    assert!(since <= now && since > now - 60.0, "{since} {now}");
    writer.sql("INSERT INTO t VALUES ('later');");
    let text = metrics(address);
    assert_eq!(
        value(&text, "replvfs_oldest_pending_timestamp_seconds", &of),
        Some(since),
        "{text}"
    );
    assert_eq!(value(&text, "replvfs_pending_transactions", &of), Some(2.0), "{text}");
    assert!(
        value(&text, "replvfs_captured_memory_bytes", &[]).unwrap() > 0.0,
        "{text}"
    );
    assert!(value(&text, "replvfs_errors_total", &of).unwrap() >= 1.0, "{text}");
    until(
        address,
        "replvfs_store_requests_total",
        &["outcome=\"error\"", "kind=\"create\""],
        |value| value > 0.0,
    );
    std::fs::rename(&away, &there).unwrap();
    writer.sql("PRAGMA replvfs_flush;");
    let text = metrics(address);
    for name in [
        "replvfs_oldest_pending_timestamp_seconds",
        "replvfs_pending_transactions",
        "replvfs_trouble",
    ] {
        assert_eq!(value(&text, name, &of), Some(0.0), "{name} in\n{text}");
    }
    writer.end();
    assert!(get(address, "/metrics").is_err(), "the port ended with its process");
}

#[test]
fn guests_who_do_not_behave_keep_nobody_out() {
    let scratch = Scratch::in_memory();
    let address = free_address();
    let mut writer = SqlPeer::start_with(&scratch.uri(), &[("REPLVFS_METRICS", &address.to_string())]);
    writer.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(x); PRAGMA replvfs_flush;");
    metrics(address);
    for (question, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405"),
        ("\x16\x03\x01\x02\r\n\r\n", "400"),
        ("GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n", "200"),
        ("GET http://a:9464/metrics HTTP/1.1\r\nHost: a:9464\r\n\r\n", "200"),
    ] {
        let (line, _) = ask(address, question.as_bytes()).unwrap();
        assert!(line.contains(status), "{question:?}: {line}");
    }
    let (line, body) = ask(address, b"HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(line.contains("200") && body.is_empty(), "{line}: {body}");
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n", "x".repeat(20_000));
    // What it does not read it may take for the end of the connection.
    if let Ok((line, _)) = ask(address, long.as_bytes()) {
        assert!(line.contains("431"), "{line}");
    }
    // As many as it takes at once, and more, who say nothing: the others wait for the end of their time.
    let mut silent: Vec<TcpStream> = (0..12).map(|_| TcpStream::connect(address).unwrap()).collect();
    let begun = std::time::Instant::now();
    metrics(address);
    assert!(
        begun.elapsed() < std::time::Duration::from_secs(40),
        "{:?}",
        begun.elapsed()
    );
    // The commits were not in their way.
    writer.sql("INSERT INTO t VALUES (1); PRAGMA replvfs_flush;");
    for stream in &mut silent {
        let _ = stream.write_all(b"G");
        let _ = stream.shutdown(std::net::Shutdown::Both);
        let _ = stream.read(&mut [0]);
    }
    writer.end();
}

/// The second one says so once, goes on, and has the port when the first one has ended and it replicates the database.
#[test]
fn one_of_several_processes_has_the_port() {
    let scratch = Scratch::in_memory();
    let address = free_address();
    let settings = [("REPLVFS_METRICS", address.to_string())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let uri = scratch.uri_with("&flush_interval=10ms");
    let mut first = SqlPeer::start_with(&uri, &settings);
    first.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(x); PRAGMA replvfs_flush;");
    let database = format!("database=\"{}\"", scratch.database().display());
    until(address, "replvfs_acked_txid", &[&database], |txid| txid >= 0.0);
    // It stands by, and needs no port.
    let mut second = SqlPeer::start_with(&uri, &settings);
    second.sql("INSERT INTO t VALUES (1); PRAGMA replvfs_flush;");
    // It replicates another one, and has none.
    let other = Scratch::in_memory();
    let mut third = SqlPeer::start_with(&other.uri(), &settings);
    third.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(x); PRAGMA replvfs_flush;");
    let text = metrics(address);
    assert!(!text.contains(&other.database().display().to_string()), "{text}");
    first.kill();
    until(address, "replvfs_owner", &[&database], |owner| owner == 1.0);
    second.sql("INSERT INTO t VALUES (2); PRAGMA replvfs_flush;");
    second.end();
    third.end();
}

/// Each with a cache of its own, since they have not the same patience, and a label that is the same.
#[test]
fn two_who_read_a_replica_are_told_together() {
    let scratch = Scratch::in_memory();
    let address = free_address();
    let mut peer = SqlPeer::start_with(
        &scratch.uri_with("&flush_interval=10ms"),
        &[("REPLVFS_METRICS", &address.to_string())],
    );
    peer.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES (1); PRAGMA replvfs_flush;");
    let mut memory = Vec::new();
    for (name, timeout) in [("one", "7s"), ("other", "8s")] {
        peer.sql(&format!(
            "ATTACH 'file:r?vfs=replvfs-remote&timeout={timeout}&replica={}' AS {name}; SELECT x FROM {name}.t;",
            scratch.replica()
        ));
        memory.push(value(&metrics(address), "replvfs_remote_cache_bytes", &[]).unwrap());
    }
    assert!(memory[0] > 0.0);
    assert_eq!(memory[1], memory[0] * 2.0);
    peer.end();
}
