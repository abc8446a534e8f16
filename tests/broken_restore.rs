//! A connection that breaks in the middle of a restore: what passes is tried again by the store's layers, what stays ends the restore with an
//! error and without a file. Every call fails in turn, so no place is left out.
#![allow(missing_docs)]

use std::path::Path;
use std::time::Duration;

use opendal::layers::RetryLayer;
use replvfs::restore::{RestoreOptions, Restored, restore};
use replvfs::store::Store;
use replvfs::verify::{VerifyOptions, verify};
use replvfs_tests::weather::{FaultyStore, Storm, Trouble};
use replvfs_tests::{Scratch, block_on, flush, plain_image, use_wal};

/// Cases of each kind at most, spread over all calls.
const CASES: usize = 60;

/// A replica with an image of several chunks, a segment that is read in parts, and small ones; and the database.
fn replica() -> (FaultyStore, Vec<u8>) {
    let scratch = Scratch::in_memory();
    let connection = scratch.open();
    use_wal(&connection);
    let generate =
        "CREATE VIEW generate AS WITH RECURSIVE n(x) AS (SELECT 0 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n";
    let fill = |rows: u32| format!("INSERT INTO t(b) SELECT randomblob(100000) FROM generate LIMIT {rows}");
    connection
        .execute_batch(&format!(
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b); {generate}; {}",
            fill(50)
        ))
        .unwrap();
    flush(&connection);
    for rows in [1, 200, 3] {
        connection.execute_batch(&fill(rows)).unwrap();
        flush(&connection);
    }
    drop(connection);
    let store = FaultyStore::new(true);
    copy(&scratch.file("replica"), "", &store);
    (store, plain_image(&scratch.database()))
}

fn copy(folder: &Path, prefix: &str, store: &FaultyStore) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &format!("{name}/"), store);
        } else {
            let bytes = std::fs::read(entry.path()).unwrap();
            block_on(store.healthy.write(&name, bytes)).unwrap();
        }
    }
}

/// The restore's answer, and the file if there is one. Nothing else may be left.
fn attempt(store: &Store) -> (Result<Restored, String>, Option<Vec<u8>>) {
    let folder = replvfs_tests::fast_folder();
    let out = folder.path().join("out.db");
    let answer = block_on(restore(store, &out, &RestoreOptions::default()));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), usize::from(answer.is_ok()), "{left:?} after {answer:?}");
    (answer.map_err(|error| error.to_string()), std::fs::read(&out).ok())
}

/// Some of so many calls, the first and the last among them.
fn some(calls: usize) -> impl Iterator<Item = usize> {
    let step = (calls / CASES).max(1);
    (0..calls).step_by(step).chain([calls - 1])
}

#[test]
fn a_connection_that_breaks_ends_in_the_database_or_in_an_error_and_no_file() {
    let (store, truth) = replica();
    let plain = Store::from_operator(store.faulty.clone());
    let retry = RetryLayer::new()
        .with_min_delay(Duration::from_millis(1))
        .with_max_delay(Duration::from_millis(2));
    let retrying = Store::from_operator(store.faulty.clone().layer(retry));
    store.weather.storm(None);
    assert!(attempt(&plain).1.as_ref() == Some(&truth));
    let calls = store.weather.calls().len();
    assert!(calls > 30, "only {calls} calls");
    for at in some(calls) {
        for trouble in [Trouble::Temporary, Trouble::Lost] {
            let lasting = false;
            store.weather.storm(Some(Storm { at, trouble, lasting }));
            let (answer, file) = attempt(&retrying);
            assert!(store.weather.has_struck());
            assert!(file.as_ref() == Some(&truth), "call {at}, {trouble:?}: {answer:?}");
        }
        for lasting in [false, true] {
            let trouble = Trouble::Permanent;
            store.weather.storm(Some(Storm { at, trouble, lasting }));
            let (answer, file) = attempt(&plain);
            match answer {
                // It was one for a warning only.
                Ok(_) => assert!(!lasting && file.as_ref() == Some(&truth), "call {at}"),
                Err(text) => assert!(text.contains("AccessDenied"), "call {at}: {text}"),
            }
            store.weather.storm(Some(Storm {
                at,
                trouble,
                lasting: true,
            }));
            let verified = block_on(verify(&plain, &VerifyOptions::default()));
            let found = verified.map(|verified| verified.findings);
            assert!(!store.weather.has_struck() || found.is_err(), "call {at}: {found:?}");
        }
    }
}
