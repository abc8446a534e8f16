//! Several images in one generation, made while the database is written: each state around them is restored to the right bytes, and only what was
//! changed is read and sent.
#![allow(missing_docs)]

use std::path::Path;
use std::sync::Once;
use std::time::{Duration, Instant};

use replvfs::Config;
use replvfs::format::Key;
use replvfs::history::Target;
use replvfs::restore::RestoreOptions;
use replvfs_tests::{
    Rng, Scratch, block_on, compare_pages, flush, open, plain_image, pragma_number, restore_txid, restore_with, status,
    use_wal,
};
use rusqlite::Connection;

/// An image is due after half of the database was logged, and is begun again at once. Each chunk that is believed to be unchanged is compared.
const VFS: &str = "replvfs-images";

fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let config = Config::default().memory_limit(1 << 20).vfs_name(VFS);
        let day = Duration::from_secs(24 * 60 * 60);
        replvfs::register(config.images_for_test(0, day, Duration::ZERO, true)).expect("registering the VFS");
    });
}

fn uri(scratch: &Scratch, parameters: &str) -> String {
    register();
    format!(
        "file:{}?vfs={VFS}&replica={}&flush_interval=10ms{parameters}",
        scratch.database().display(),
        scratch.replica()
    )
}

fn connect(scratch: &Scratch) -> Connection {
    let connection = open(&uri(scratch, "")).unwrap();
    connection.busy_timeout(Duration::from_secs(20)).unwrap();
    connection
}

fn chunks(scratch: &Scratch) -> usize {
    let objects = scratch.objects();
    objects.iter().filter(|(key, _)| matches!(key, Key::Chunk(_))).count()
}

/// Some 8 MiB in rows of 10 KB.
fn fill(connection: &Connection) {
    use_wal(connection);
    connection
        .execute_batch(
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 800) INSERT INTO t(b) SELECT randomblob(10000) FROM n;",
        )
        .unwrap();
}

/// [`fill`], and an image of all of that: the one before it is of a database that was empty.
fn fill_with_image(connection: &Connection) -> serde_json::Value {
    fill(connection);
    loop {
        flush(connection);
        let told = status(connection);
        if told["making_image"] == false && told["last_image"]["chunks"].as_u64() >= Some(8) {
            return told["last_image"].clone();
        }
        connection
            .execute_batch("UPDATE t SET b = randomblob(10000) WHERE a < 400")
            .unwrap();
    }
}

fn wait(what: &str, connection: &Connection, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "{what}: {}", status(connection));
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for an image of a transaction behind `txid`, of which the status tells.
fn next_image(connection: &Connection, txid: u64) -> serde_json::Value {
    let mut last = serde_json::Value::Null;
    wait("another image", connection, || {
        last = status(connection)["last_image"].clone();
        last["txid"].as_u64() > Some(txid)
    });
    last
}

fn check(scratch: &Scratch, txid: u64, truth: &[u8]) {
    let out = scratch.file("restored.db");
    restore_txid(&scratch.replica(), &out, Some(txid));
    compare_pages(truth, &std::fs::read(&out).unwrap()).unwrap_or_else(|error| panic!("txid {txid}: {error}"));
    std::fs::remove_file(&out).unwrap();
}

fn state(connection: &Connection, path: &Path) -> (u64, Vec<u8>) {
    (pragma_number(connection, "replvfs_txid").unwrap(), plain_image(path))
}

#[test]
fn only_what_was_changed_is_read_and_sent() {
    let scratch = Scratch::in_memory();
    let connection = connect(&scratch);
    let full = fill_with_image(&connection);
    let all = full["chunks"].as_u64().unwrap();
    assert!(all >= 8, "{full}");
    // What was filled in may make another one due at once.
    let row = "UPDATE t SET b = randomblob(10000) WHERE a = 1";
    let mut last = write_until_image(&connection, full["txid"].as_u64().unwrap(), row);
    let mut truth = vec![state(&connection, &scratch.database())];
    let mut before = chunks(&scratch);
    for round in 0..4 {
        // In rows that stand beside each other, over and over: two chunks or three, and the first.
        while status(&connection)["last_image"]["txid"] == last && status(&connection)["making_image"] == false {
            connection
                .execute(
                    "UPDATE t SET b = randomblob(10000) WHERE a BETWEEN ?1 AND ?1 + 60",
                    [round * 150 + 1],
                )
                .unwrap();
            flush(&connection);
            truth.push(state(&connection, &scratch.database()));
        }
        write_until_image(&connection, last, row);
        let image = next_image(&connection, last);
        last = image["txid"].as_u64().unwrap();
        let (read, sent) = (
            image["chunks_read"].as_u64().unwrap(),
            image["chunks_sent"].as_u64().unwrap(),
        );
        assert_eq!(image["chunks"], all, "it did not grow");
        assert!(sent >= 1 && sent <= read && read <= 4, "{image}");
        assert_eq!(chunks(&scratch), before + sent as usize);
        before += sent as usize;
    }
    assert_eq!(status(&connection)["failed"], serde_json::Value::Null);
    assert!(scratch.images(1).len() >= 5);
    for (txid, image) in &truth {
        check(&scratch, *txid, image);
    }
}

/// Each chunk but those that are written all the time is touched by one segment at most between two images.
#[test]
fn a_single_row_in_a_single_segment_is_enough() {
    let scratch = Scratch::in_memory();
    let connection = connect(&scratch);
    let mut last = fill_with_image(&connection)["txid"].as_u64().unwrap();
    let mut rng = Rng::new(1);
    for _ in 0..6 {
        let mut truth = Vec::new();
        while status(&connection)["last_image"]["txid"] == last && status(&connection)["making_image"] == false {
            for row in [100 + rng.below(700), rng.below(60)].map(u64::cast_signed) {
                connection
                    .execute(
                        "UPDATE t SET b = randomblob(10000) WHERE a = ?1 OR (?1 < 60 AND a < 60)",
                        [row],
                    )
                    .unwrap();
                flush(&connection);
            }
            truth.push(state(&connection, &scratch.database()));
        }
        let row = "UPDATE t SET b = randomblob(10000) WHERE a = 700";
        last = write_until_image(&connection, last, row);
        // The image may have been the other one's: then this connection has looked at nothing yet.
        connection.execute_batch(row).unwrap();
        flush(&connection);
        truth.push(state(&connection, &scratch.database()));
        for (txid, image) in &truth {
            check(&scratch, *txid, image);
        }
    }
}

/// Everything that can move pages about, and an image whenever half of the database was written.
#[test]
fn images_of_a_database_that_changes_in_every_way() {
    for seed in 0..4 {
        let scratch = Scratch::in_memory();
        let mut rng = Rng::new(seed);
        let connection = connect(&scratch);
        connection
            .execute_batch(if seed % 2 == 0 {
                "PRAGMA auto_vacuum=INCREMENTAL"
            } else {
                "PRAGMA page_size=1024"
            })
            .unwrap();
        fill(&connection);
        let mut truth = Vec::new();
        for _ in 0..60 {
            let at = rng.below(800);
            let sql = match rng.below(9) {
                0 => "VACUUM".to_owned(),
                1 => format!("DELETE FROM t WHERE a > {}", 200 + at / 2),
                2 => "PRAGMA incremental_vacuum(300)".to_owned(),
                3 => "PRAGMA wal_checkpoint(TRUNCATE)".to_owned(),
                4 => format!(
                    "CREATE TABLE u AS SELECT * FROM t WHERE a % 7 = {}; DROP TABLE u",
                    at % 7
                ),
                5 => format!(
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < {at}) INSERT INTO t(b) SELECT zeroblob(4000) FROM n"
                ),
                _ => format!("UPDATE t SET b = randomblob(9000) WHERE a BETWEEN {at} AND {}", at + 50),
            };
            connection
                .execute_batch(&sql)
                .unwrap_or_else(|error| panic!("{sql}: {error}"));
            if rng.below(3) == 0 {
                flush(&connection);
                truth.push(state(&connection, &scratch.database()));
            }
            if rng.below(6) == 0 {
                wait("the image comes to its end", &connection, || {
                    status(&connection)["making_image"] == false
                });
            }
        }
        flush(&connection);
        truth.push(state(&connection, &scratch.database()));
        wait("the last image comes to its end", &connection, || {
            status(&connection)["making_image"] == false
        });
        assert_eq!(status(&connection)["discontinuities"], 0, "seed {seed}");
        assert!(scratch.images(1).len() >= 4, "seed {seed}: {:?}", scratch.images(1));
        for (txid, image) in &truth {
            check(&scratch, *txid, image);
        }
    }
}

/// The next process goes on in the middle, and reads in the store what was touched before it.
#[test]
fn a_process_that_goes_on_knows_what_was_touched_before_it() {
    let scratch = Scratch::in_memory();
    let connection = connect(&scratch);
    let mut last = fill_with_image(&connection)["txid"].as_u64().unwrap();
    drop(connection);
    let mut truth = Vec::new();
    for round in 0..3 {
        let child = format!(
            "UPDATE t SET b = randomblob(10000) WHERE a BETWEEN {} AND {0} + 90",
            round * 200 + 1
        );
        // Another process in all that matters: nothing that was in memory is there any more.
        let other = open(&scratch.uri()).unwrap();
        other.execute_batch(&child).unwrap();
        wait("the one before lets go", &other, || status(&other)["owner"] == true);
        flush(&other);
        truth.push(state(&other, &scratch.database()));
        drop(other);
        let connection = connect(&scratch);
        wait("the other one lets go", &connection, || {
            status(&connection)["owner"] == true
        });
        while status(&connection)["last_image"]["txid"].as_u64() <= Some(last)
            && status(&connection)["making_image"] == false
        {
            connection
                .execute_batch("UPDATE t SET b = randomblob(10000) WHERE a BETWEEN 700 AND 790")
                .unwrap();
            flush(&connection);
        }
        let row = "UPDATE t SET b = randomblob(10000) WHERE a = 700";
        last = write_until_image(&connection, last, row);
        // The image may have been the other one's: then this connection has looked at nothing yet.
        connection.execute_batch(row).unwrap();
        flush(&connection);
        truth.push(state(&connection, &scratch.database()));
        assert_eq!(status(&connection)["failed"], serde_json::Value::Null);
        drop(connection);
    }
    for (txid, image) in &truth {
        check(&scratch, *txid, image);
    }
}

#[test]
fn the_first_image_of_a_branch_has_the_chunks_of_its_parent() {
    let scratch = Scratch::in_memory();
    // Through another VFS, whose host knows nothing of the other's: as another machine.
    let connection = scratch.open();
    fill(&connection);
    flush(&connection);
    let older = pragma_number(&connection, "replvfs_txid").unwrap();
    let parents = block_on(replvfs::image::make(&scratch.store(), None, scratch.path())).unwrap();
    assert_eq!(parents.txid.0, older);
    connection
        .execute_batch("UPDATE t SET b = 'later' WHERE a = 1")
        .unwrap();
    flush(&connection);
    drop(connection);
    scratch.delete_database();
    let options = RestoreOptions {
        target: Target::Txid(replvfs::Txid(older)),
        resumable: true,
        force: true,
        ..RestoreOptions::default()
    };
    restore_with(&scratch.replica(), &scratch.database(), &options).unwrap();
    let before = chunks(&scratch);
    let connection = connect(&scratch);
    connection
        .execute_batch("UPDATE t SET b = 'otherwise' WHERE a = 1")
        .unwrap();
    flush(&connection);
    let told = status(&connection);
    assert_eq!(told["generation"], 2, "{told}");
    assert_eq!(scratch.images(2).len(), 1);
    let image = &told["last_image"];
    assert_eq!(image["chunks"], image["chunks_read"]);
    assert!(image["chunks_sent"].as_u64() <= Some(2), "{image}");
    assert!(chunks(&scratch) <= before + 2);
    let (txid, truth) = state(&connection, &scratch.database());
    check(&scratch, txid, &truth);
}

#[test]
fn a_store_that_goes_away_meanwhile_costs_an_image_and_nothing_else() {
    let scratch = Scratch::in_memory();
    let connection = connect(&scratch);
    fill_with_image(&connection);
    // Chunks alone cannot be created any more.
    let chunk = scratch.file("replica").join("chunk");
    let away = scratch.file("away");
    std::fs::rename(&chunk, &away).unwrap();
    std::fs::write(&chunk, "").unwrap();
    let mut truth = Vec::new();
    for _ in 0..3 {
        connection.execute_batch("UPDATE t SET b = randomblob(9000)").unwrap();
        truth.push(state(&connection, &scratch.database()));
    }
    wait("trouble", &connection, || {
        let last_error = &status(&connection)["last_error"];
        last_error["over"] == false || last_error["message"].is_string()
    });
    // One that was begun before may have been whole still.
    let first = *scratch.images(1).last().unwrap();
    flush(&connection);
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    assert_eq!(scratch.images(1).last(), Some(&first));
    std::fs::remove_file(&chunk).unwrap();
    std::fs::rename(&away, &chunk).unwrap();
    wait("another image", &connection, || {
        connection
            .execute_batch("UPDATE t SET b = randomblob(9000) WHERE a < 300")
            .unwrap();
        flush(&connection);
        status(&connection)["last_image"]["txid"].as_u64() > Some(first)
    });
    truth.push(state(&connection, &scratch.database()));
    assert_eq!(status(&connection)["generation"], 1);
    assert_eq!(status(&connection)["discontinuities"], 0);
    for (txid, image) in &truth {
        check(&scratch, *txid, image);
    }
}

#[test]
fn an_image_is_made_out_of_the_replica_beside_its_writer() {
    let scratch = Scratch::in_memory();
    let connection = scratch.open();
    fill(&connection);
    connection
        .execute_batch("UPDATE t SET b = randomblob(8000) WHERE a < 20")
        .unwrap();
    flush(&connection);
    let make = || block_on(replvfs::image::make(&scratch.store(), None, scratch.path())).unwrap();
    let first = make();
    assert!(
        first.is_new && first.sent == first.chunks && first.chunks >= 8,
        "{first:?}"
    );
    assert_eq!(scratch.images(1).last(), Some(&first.txid.0));
    let truth = [state(&connection, &scratch.database())];
    let again = make();
    assert_eq!((again.is_new, again.sent, again.txid), (false, 0, first.txid));
    connection
        .execute_batch("UPDATE t SET b = randomblob(8000) WHERE a < 20")
        .unwrap();
    flush(&connection);
    let before = chunks(&scratch);
    let second = make();
    assert!(
        second.is_new && second.sent <= 3 && second.txid > first.txid,
        "{second:?}"
    );
    assert_eq!(chunks(&scratch), before + second.sent);
    connection.execute_batch("VACUUM").unwrap();
    flush(&connection);
    let last = state(&connection, &scratch.database());
    for (txid, image) in truth.iter().chain([&last]) {
        check(&scratch, *txid, image);
    }
    assert_eq!(
        std::fs::read_dir(scratch.path())
            .unwrap()
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                name.to_string_lossy().contains("image.db")
            })
            .count(),
        0,
        "its file is gone"
    );
}

/// Writes until there is an image of a transaction behind `txid`. One that is given up is asked for again by what is written next.
fn write_until_image(connection: &Connection, txid: u64, sql: &str) -> u64 {
    let mut last = None;
    wait("another image", connection, || {
        let told = status(connection);
        last = told["last_image"]["txid"].as_u64();
        if last <= Some(txid) && told["making_image"] == false {
            connection.execute_batch(sql).unwrap();
            flush(connection);
        }
        last > Some(txid)
    });
    last.unwrap()
}

/// What is cut off at the end leaves a last chunk that nobody wrote to, and that is another one all the same. Then it grows again by pages that are free.
#[test]
fn a_last_chunk_that_nobody_wrote_to_has_another_length() {
    let scratch = Scratch::in_memory();
    let connection = connect(&scratch);
    connection.execute_batch("PRAGMA auto_vacuum=INCREMENTAL").unwrap();
    let mut last = fill_with_image(&connection)["txid"].as_u64().unwrap();
    connection.execute_batch("DELETE FROM t WHERE a > 400").unwrap();
    const ELSEWHERE: &str = "UPDATE t SET b = randomblob(10000) WHERE a < 200";
    let mut truth = Vec::new();
    for round in 0..12 {
        last = write_until_image(&connection, last, ELSEWHERE);
        assert_eq!(status(&connection)["failed"], serde_json::Value::Null, "round {round}");
        let sql = match round % 4 {
            // In one transaction, which allocates pages behind the end and frees them.
            3 => "BEGIN; CREATE TABLE u AS SELECT zeroblob(300000); DROP TABLE u; COMMIT".to_owned(),
            _ => format!("PRAGMA incremental_vacuum({})", 7 + round * 13),
        };
        connection.execute_batch(&sql).unwrap();
        flush(&connection);
        truth.push(state(&connection, &scratch.database()));
    }
    last = write_until_image(&connection, last, ELSEWHERE);
    flush(&connection);
    truth.push(state(&connection, &scratch.database()));
    assert_eq!(status(&connection)["failed"], serde_json::Value::Null);
    assert_eq!(status(&connection)["discontinuities"], 0);
    assert!(scratch.images(1).len() >= 12 && scratch.images(1).last() >= Some(&last));
    for (txid, image) in &truth {
        check(&scratch, *txid, image);
    }
}
