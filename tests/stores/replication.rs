//! A database on its way: to the store and back, from one machine to another, read where it is, and what is not needed any more deleted.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use replvfs::config::Retention;
use replvfs::history::Target;
use replvfs::prune::{PruneOptions, Reason, prune};
use replvfs::restore::RestoreOptions;
use replvfs::store::{Store, StoreOptions};
use replvfs::verify::{VerifyOptions, verify};
use replvfs_tests::peer::SqlPeer;
use replvfs_tests::{
    block_on, check_integrity, compare_pages, flush, open, plain_image, pragma_number, restore_txid, restore_with,
    status, use_wal,
};
use replvfs_vfs::types::UnixMillis;
use rusqlite::Connection;

use crate::servers::Served;

const ENOUGH: Duration = Duration::from_secs(60);

/// A replica's URI as a parameter of a database's.
pub(crate) fn escaped(replica: &str) -> String {
    replica.replace('%', "%25").replace('&', "%26").replace('?', "%3F")
}

/// What opens a database with that replica.
pub(crate) fn uri(database: &Path, replica: &str) -> String {
    format!(
        "file:{}?vfs=replvfs&timeout=60s&close_timeout=1s&replica={}",
        database.display(),
        escaped(replica)
    )
}

/// The file of a database of a test.
pub(crate) fn database(served: &Served, test: &str, name: &str) -> PathBuf {
    let folder = served.folder().join(test);
    std::fs::create_dir_all(&folder).expect("a folder");
    folder.join(name)
}

pub(crate) fn create(database: &Path, replica: &str) -> Connection {
    let connection = open(&uri(database, replica)).expect("opens");
    use_wal(&connection);
    connection
        .execute_batch("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        .expect("creates");
    connection
}

pub(crate) fn insert(connection: &Connection, bytes: u32) {
    let inserted = connection.execute("INSERT INTO t(b) VALUES (randomblob(?1))", [bytes]);
    assert_eq!(inserted.expect("inserts"), 1);
}

/// The newest state, as a machine gets it that takes over.
pub(crate) fn restore_to_go_on(replica: &str, out: &Path) {
    let options = RestoreOptions {
        resumable: true,
        ..RestoreOptions::default()
    };
    restore_with(replica, out, &options).expect("restores");
}

pub(crate) fn restore(served: &Served) {
    let (file, replica) = (database(served, "restore", "app.db"), served.replica("restore/app"));
    let connection = create(&file, &replica);
    for _ in 0..3 {
        insert(&connection, 3_000);
        flush(&connection);
    }
    let middle = plain_image(&file);
    let txid = pragma_number(&connection, "replvfs_txid");
    assert!(txid.is_some() && pragma_number(&connection, "replvfs_acked") == txid);
    // An image of several chunks and a segment that is sent in parts.
    insert(&connection, 12_000_000);
    flush(&connection);
    insert(&connection, 10);
    flush(&connection);
    for (at, out) in [(None, "newest.db"), (txid, "middle.db")] {
        let out = database(served, "restore", out);
        restore_txid(&replica, &out, at);
        check_integrity(&out);
        let expected = if at.is_some() {
            middle.clone()
        } else {
            plain_image(&file)
        };
        compare_pages(&expected, &plain_image(&out)).expect("the same pages");
    }
    drop(connection);
    if served.name == "memory" {
        return; // Other processes have other memory.
    }
    // Another process goes on with it, and finds its way by itself.
    let mut peer = SqlPeer::start(&uri(&file, &replica));
    peer.sql("INSERT INTO t(b) VALUES (randomblob(100))");
    peer.sql("PRAGMA replvfs_flush");
    peer.end();
    let out = database(served, "restore", "after.db");
    restore_txid(&replica, &out, None);
    compare_pages(&plain_image(&file), &plain_image(&out)).expect("the same pages");
    let store = Store::open(&replica, &StoreOptions::reading()).expect("opens");
    let verified = block_on(verify(&store, &VerifyOptions::default())).expect("verifies");
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
}

pub(crate) fn takeover(served: &Served) {
    if served.name == "memory" {
        return; // Other processes have other memory.
    }
    let (first, second) = (
        database(served, "takeover", "first.db"),
        database(served, "takeover", "second.db"),
    );
    let replica = served.replica("takeover");
    let mut peer = SqlPeer::start(&uri(&first, &replica));
    peer.sql("PRAGMA journal_mode=WAL");
    peer.sql("CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t(b) VALUES ('one')");
    peer.sql("PRAGMA replvfs_flush");
    restore_to_go_on(&replica, &second);
    let connection = open(&uri(&second, &replica)).expect("opens");
    insert(&connection, 1_000);
    flush(&connection);
    peer.sql("INSERT INTO t(b) VALUES (randomblob(2000))");
    let told = peer.run("PRAGMA replvfs_flush");
    assert_ne!(told, "ok", "who was replaced is told so");
    insert(&connection, 10);
    flush(&connection);
    let out = database(served, "takeover", "out.db");
    restore_txid(&replica, &out, None);
    compare_pages(&plain_image(&second), &plain_image(&out)).expect("the history of who took over");
    peer.kill();
}

pub(crate) fn remote_read(served: &Served) {
    let (file, replica) = (database(served, "remote", "app.db"), served.replica("remote"));
    let connection = create(&file, &replica);
    for _ in 0..20 {
        insert(&connection, 100_000);
    }
    flush(&connection);
    let remote = format!(
        "file:app.db?vfs=replvfs-remote&replica={}&follow=10ms",
        escaped(&replica)
    );
    let reader = open(&remote).expect("opens");
    let sum = |connection: &Connection| -> (i64, i64) {
        let sum = "SELECT count(*), sum(length(b)) FROM t";
        connection
            .query_row(sum, [], |row| Ok((row.get(0)?, row.get(1)?)))
            .expect("reads")
    };
    assert_eq!(sum(&reader), sum(&connection));
    insert(&connection, 7);
    flush(&connection);
    let since = Instant::now();
    while sum(&reader) != sum(&connection) {
        assert!(
            since.elapsed() < ENOUGH,
            "what is new is never seen: {}",
            status(&reader)
        );
    }
}

pub(crate) fn prune_old(served: &Served) {
    let (file, replica) = (database(served, "prune", "app.db"), served.replica("prune"));
    let connection = create(&file, &replica);
    let store = Store::open(&replica, &StoreOptions::default()).expect("opens");
    for _ in 0..3 {
        insert(&connection, 50_000);
        flush(&connection);
    }
    block_on(replvfs::image::make(&store, None, served.folder())).expect("makes an image");
    let options = |dry_run| PruneOptions {
        retention: Retention::For(Duration::from_millis(100)),
        grace: Duration::ZERO,
        dry_run,
        ..PruneOptions::at(now())
    };
    if !served.deletes {
        let before = block_on(store.list("")).expect("lists");
        let refused = block_on(prune(&store, &options(false))).expect_err("refuses");
        assert!(refused.to_string().contains("may lack"), "{refused}");
        assert_eq!(block_on(store.list("")).expect("lists"), before);
        return;
    }
    // Some stores tell seconds.
    let since = Instant::now();
    let is_old = |plan: &replvfs::prune::Pruned| {
        plan.deletions
            .iter()
            .any(|deletion| deletion.reason == Reason::OldImage)
    };
    while !is_old(&block_on(prune(&store, &options(true))).expect("plans")) {
        assert!(since.elapsed() < ENOUGH, "nothing is ever old");
        insert(&connection, 100);
        flush(&connection);
        if served.name == "memory" {
            // Which tells no dates: those of images count.
            block_on(replvfs::image::make(&store, None, served.folder())).expect("makes an image");
        }
    }
    let before = block_on(store.list("")).expect("lists").len();
    let pruned = block_on(prune(&store, &options(false))).expect("prunes");
    assert!(is_old(&pruned));
    let left = block_on(store.list("")).expect("lists").len();
    assert_eq!(left, before - pruned.deletions.len());
    block_on(prune(&store, &options(false))).expect("prunes once more");
    let verified = block_on(verify(&store, &VerifyOptions::default())).expect("verifies");
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
    let out = database(served, "prune", "out.db");
    restore_txid(&replica, &out, None);
    compare_pages(&plain_image(&file), &plain_image(&out)).expect("the same pages");
    let gone = database(served, "prune", "gone.db");
    assert!(replvfs_tests::try_restore(&replica, Target::Txid(replvfs::Txid(1)), &gone).is_err());
}

fn now() -> UnixMillis {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    UnixMillis(now.expect("after 1970").as_millis() as i64)
}
