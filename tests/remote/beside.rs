//! Readers while the replica is merged and pruned.

use std::time::{Duration, Instant, SystemTime};

use replvfs::Config;
use replvfs::config::Retention;
use replvfs::merge::{MergeOptions, merge};
use replvfs::prune::{PruneOptions, prune};
use replvfs_tests::{Scratch, block_on, flush, open, pragma_number, use_wal};
use replvfs_vfs::types::UnixMillis;
use rusqlite::{Connection, ErrorCode};

use super::{number, pages, remote, remote_uri, restored};

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    UnixMillis(i64::try_from(since.as_millis()).unwrap())
}

/// Deletes what is not needed for this window, without patience for readers. Returns how much that was.
fn prune_now(scratch: &Scratch, retention: Retention) -> usize {
    let options = PruneOptions {
        retention,
        grace: Duration::ZERO,
        merged_at_once: true,
        ..PruneOptions::at(now())
    };
    let mut deleted = 0;
    loop {
        let done = block_on(prune(&scratch.store(), &options)).unwrap().deletions.len();
        deleted += done;
        if done == 0 {
            return deleted;
        }
    }
}

fn write(writer: &Connection, round: u64) {
    writer
        .execute_batch(&format!(
            "BEGIN; INSERT INTO t(b) VALUES(randomblob(20000)); UPDATE u SET round = {round}; COMMIT"
        ))
        .unwrap();
    flush(writer);
}

fn begin(writer: &Connection) {
    use_wal(writer);
    writer
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE TABLE u(round); INSERT INTO u VALUES(0)")
        .unwrap();
    flush(writer);
}

#[test]
fn what_a_reader_sees_may_be_merged_under_it() {
    let scratch = Scratch::in_memory();
    let writer = open(&scratch.uri_with("&retention=forever")).unwrap();
    begin(&writer);
    for round in 1..=30 {
        write(&writer, round);
    }
    let last = pragma_number(&writer, "replvfs_acked").unwrap();
    let early = last - 12;
    let expected = (restored(&scratch, early), restored(&scratch, last));
    let mut fixed = remote(&scratch, &format!("&txid={early}"));
    let mut newest = remote(&scratch, "");
    let follower = remote(&scratch, "&follow=10ms");
    let in_use = remote(&scratch, "&follow=10ms&page_cache=4MiB");
    let transaction = in_use.unchecked_transaction().unwrap();
    let round = number(&transaction, "SELECT round FROM u");
    let options = MergeOptions {
        pieces: 2,
        ..MergeOptions::default()
    };
    block_on(merge(&scratch.store(), None, &options)).unwrap();
    assert!(prune_now(&scratch, Retention::Forever) > 10);
    write(&writer, 31);
    assert_eq!(number(&transaction, "SELECT count(length(b)) FROM t"), round);
    assert_eq!(number(&transaction, "SELECT sum(length(b)) FROM t"), round * 20_000);
    assert!(pages(&mut fixed) == expected.0);
    assert!(pages(&mut newest) == expected.1);
    let since = Instant::now();
    while number(&follower, "SELECT round FROM u") < 31 {
        assert!(since.elapsed() < Duration::from_secs(120));
    }
    assert_eq!(number(&follower, "SELECT sum(length(b)) FROM t"), 31 * 20_000);
    drop(transaction);
    assert_eq!(number(&in_use, "SELECT round FROM u"), 31);
}

#[test]
fn what_was_pruned_is_an_error_and_never_another_state() {
    let scratch = Scratch::in_memory();
    let day = Duration::from_secs(24 * 60 * 60);
    let config = Config::default().vfs_name("replvfs-thin");
    replvfs::register(config.images_for_test(0, day, Duration::ZERO, true)).unwrap();
    let uri = format!(
        "file:{}?vfs=replvfs-thin&replica={}",
        scratch.database().display(),
        scratch.replica()
    );
    let writer = open(&uri).unwrap();
    begin(&writer);
    let fill = "INSERT OR REPLACE INTO v VALUES(1, randomblob(3000000))";
    writer
        .execute_batch(&format!("CREATE TABLE v(a INTEGER PRIMARY KEY, b); {fill}"))
        .unwrap();
    flush(&writer);
    let first = pragma_number(&writer, "replvfs_acked").unwrap();
    let kept = remote(&scratch, &format!("&txid={first}"));
    let read = remote(&scratch, &format!("&txid={first}&timeout=31s"));
    let sum = "SELECT sum(length(hex(b))) FROM v";
    assert_eq!(number(&read, sum), 6_000_000);
    let mut window = None;
    for round in 1.. {
        if round == 1 {
            writer.execute_batch(fill).unwrap();
        }
        write(&writer, round);
        // As many may have been made before.
        let images = scratch.images(1).into_iter().filter(|txid| *txid > first).count();
        if images >= 2 {
            window = window.or(Some(now()));
        }
        if images >= 4 && replvfs_tests::status(&writer)["making_image"] == false {
            break;
        }
        assert!(round < 20_000);
    }
    let window = Duration::from_millis(u64::try_from(now().0 - window.unwrap().0).unwrap());
    let mut newest = remote(&scratch, "");
    assert!(prune_now(&scratch, Retention::For(window)) > 0);
    // It was not in the cache.
    let error = kept.query_row(sum, [], |_| Ok(())).unwrap_err();
    let code = error.sqlite_error_code();
    assert_eq!(code, Some(ErrorCode::SystemIoFailure), "{error}");
    assert_eq!(number(&read, sum), 6_000_000, "it was");
    assert!(open(&remote_uri(&scratch.replica(), &format!("&txid={first}"))).is_err());
    let refused = replvfs::last_open_error().unwrap();
    assert!(refused.contains("pruned"), "{refused}");
    let last = pragma_number(&writer, "replvfs_acked").unwrap();
    assert!(pages(&mut newest) == restored(&scratch, last));
    write(&writer, 99_999);
    newest.query_row("PRAGMA replvfs_at = latest", [], |_| Ok(())).unwrap();
    assert_eq!(number(&newest, "SELECT round FROM u"), 99_999);
}

/// The same names, other bytes.
#[test]
fn a_replica_that_is_begun_anew_is_not_mixed_with_the_old_one() {
    let scratch = Scratch::in_memory();
    let writer = scratch.open();
    begin(&writer);
    write(&writer, 1);
    let (old, follower) = (remote(&scratch, ""), remote(&scratch, "&follow=10ms"));
    assert_eq!(number(&old, "SELECT round FROM u"), 1);
    assert_eq!(number(&follower, "SELECT round FROM u"), 1);
    writer.close().unwrap();
    scratch.delete_database();
    let folder = scratch.file("replica");
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    std::fs::remove_file(scratch.file("app.db-replvfs")).unwrap();
    let writer = scratch.open();
    begin(&writer);
    for round in 2..5 {
        write(&writer, round);
    }
    let last = pragma_number(&writer, "replvfs_acked").unwrap();
    // Who opens it sees the new one, and from then on a follower knows that what it follows is gone.
    assert_eq!(number(&remote(&scratch, ""), "SELECT round FROM u"), 4);
    let refused = |error: rusqlite::Error| assert_eq!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure));
    for _ in 0..2 {
        refused(follower.query_row("SELECT round FROM u", [], |_| Ok(())).unwrap_err());
        let status = replvfs_tests::status(&follower);
        assert!(
            status["last_error"].as_str().unwrap().contains("begun anew"),
            "{status}"
        );
    }
    for pragma in ["replvfs_at = latest".to_owned(), format!("replvfs_txid = {last}")] {
        let travel = old.query_row(&format!("PRAGMA {pragma}"), [], |_| Ok(()));
        let error = travel.unwrap_err().to_string();
        assert!(error.contains("begun anew"), "{error}");
    }
    // As long as the old one is open, and has its blocks in memory.
    for txid in last - 2..=last {
        let mut new = remote(&scratch, &format!("&txid={txid}"));
        assert!(pages(&mut new) == restored(&scratch, txid), "{txid}");
    }
    assert_eq!(number(&old, "SELECT round FROM u"), 1);
}
