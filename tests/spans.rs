//! Merged logs: an hour of one-second segments becomes a few objects, out of which every transaction is restored as before, while the one that
//! writes goes on and one that was away comes back.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::path::Path;

use replvfs::format::{Generation, Key};
use replvfs::history::Target;
use replvfs::merge::{MergeOptions, merge, merge_next};
use replvfs::restore::RestoreOptions;
use replvfs_tests::{
    Scratch, block_on, check_integrity, compare_pages, flush, open, plain_image, pragma_number, restore_txid,
    restore_with, status, try_restore, use_wal,
};
use replvfs_vfs::types::Txid;
use rusqlite::Connection;

/// Objects of the log, and their bytes together.
fn extent(scratch: &Scratch) -> (usize, u64) {
    let objects = block_on(scratch.store().list("gen/")).unwrap();
    let log = objects
        .iter()
        .filter(|(key, _)| matches!(key, Key::Log(..) | Key::Span(..)));
    (log.clone().count(), log.map(|(_, len)| len).sum())
}

fn slots(scratch: &Scratch) -> Vec<Txid> {
    let objects = block_on(scratch.store().list("gen/")).unwrap();
    let slots = objects.iter().filter_map(|(key, _)| match key {
        Key::Log(_, first) => Some(*first),
        _ => None,
    });
    slots.collect()
}

fn generations(scratch: &Scratch) -> usize {
    block_on(scratch.store().list_folders("gen/")).unwrap().len()
}

/// Deletes every segment but the newest, and every span that a larger one stands for.
fn delete_merged(scratch: &Scratch) {
    let objects = block_on(scratch.store().list("gen/")).unwrap();
    let spans: Vec<(Txid, Txid)> = objects.iter().filter_map(|(key, _)| span_of(key)).collect();
    let newest = slots(scratch).into_iter().max();
    for (key, _) in objects {
        let is_merged = match key {
            Key::Log(_, first) => Some(first) != newest,
            _ => span_of(&key).is_some_and(|(first, last)| {
                let larger = |span: &(Txid, Txid)| span.0 <= first && last <= span.1 && *span != (first, last);
                spans.iter().any(larger)
            }),
        };
        if is_merged {
            std::fs::remove_file(scratch.file("replica").join(key.path())).unwrap();
        }
    }
}

fn span_of(key: &Key) -> Option<(Txid, Txid)> {
    match key {
        Key::Span(_, first, last) => Some((*first, *last)),
        _ => None,
    }
}

/// Merging is for the test to do.
fn open_unmerged(scratch: &Scratch) -> Connection {
    open(&scratch.uri_with("&retention=forever")).unwrap()
}

fn begin(connection: &Connection) {
    use_wal(connection);
    connection
        .execute_batch("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b TEXT, c REAL)")
        .unwrap();
    flush(connection);
}

/// A row, as an application may log one each second, in a segment of its own.
fn second(connection: &Connection) -> u64 {
    connection
        .execute(
            "INSERT INTO t(b, c) VALUES('reading ' || hex(randomblob(12)), random() / 1e9)",
            [],
        )
        .unwrap();
    flush(connection);
    pragma_number(connection, "replvfs_acked").unwrap()
}

fn restored(scratch: &Scratch, txid: u64) -> Vec<u8> {
    let out = scratch.file("restored.db");
    for left in [out.clone(), scratch.file("restored.db-replvfs")] {
        let _ = std::fs::remove_file(left);
    }
    let restored = restore_txid(&scratch.replica(), &out, Some(txid));
    assert_eq!(restored.txid.0, txid);
    std::fs::read(&out).unwrap()
}

fn check(scratch: &Scratch, expected: &BTreeMap<u64, Vec<u8>>) {
    for (txid, before) in expected {
        compare_pages(before, &restored(scratch, *txid))
            .unwrap_or_else(|difference| panic!("transaction {txid}: {difference}"));
    }
}

#[test]
fn an_hour_of_seconds() {
    const SECONDS: u64 = 3_600;
    let scratch = Scratch::in_memory();
    let connection = open_unmerged(&scratch);
    begin(&connection);
    let first = second(&connection);
    let mut last = first;
    for _ in 1..SECONDS {
        last = second(&connection);
    }
    assert_eq!(last, first + SECONDS - 1, "each row is a transaction");
    let before = extent(&scratch);
    assert!(before.0 as u64 >= SECONDS, "each has a segment: {before:?}");
    let sample = (first..=last).filter(|txid| txid % 97 == 0 || *txid == last || *txid < first + 3);
    let sample: BTreeMap<u64, Vec<u8>> = sample.map(|txid| (txid, restored(&scratch, txid))).collect();

    let merged = block_on(merge(&scratch.store(), None, &MergeOptions::default())).unwrap();
    check(&scratch, &sample);
    delete_merged(&scratch);
    let after = extent(&scratch);
    eprintln!(
        "{} objects with {} bytes, merged: {} with {}; {:?}",
        before.0, before.1, after.0, after.1, merged.after
    );
    assert!(after.0 < 10 && after.1 < before.1, "{after:?}");
    check(&scratch, &sample);

    // The writer does not notice.
    last = second(&connection);
    assert_eq!(last, first + SECONDS);
    assert_eq!(status(&connection)["fenced"], false, "{}", status(&connection));
    assert_eq!(generations(&scratch), 1);
    let expected = plain_image(&scratch.database());
    compare_pages(&expected, &restored(&scratch, last)).unwrap();
    drop(connection);
    check(&scratch, &sample);
}

#[test]
fn every_transaction_while_it_is_merged_step_by_step() {
    let scratch = Scratch::in_memory();
    let connection = open_unmerged(&scratch);
    begin(&connection);
    let options = MergeOptions {
        pieces: 4,
        ..MergeOptions::default()
    };
    let mut expected = BTreeMap::new();
    for row in 0..60 {
        if row % 7 == 0 {
            connection
                .execute_batch("BEGIN; INSERT INTO t(b) SELECT hex(randomblob(3000)) FROM sqlite_schema; DELETE FROM t WHERE a % 5 = 0; COMMIT")
                .unwrap();
        }
        let txid = second(&connection);
        expected.insert(txid, restored(&scratch, txid));
        if row % 9 == 8 {
            while block_on(merge_next(&scratch.store(), Generation(1), &options))
                .unwrap()
                .is_some()
            {}
            if row % 2 == 0 {
                delete_merged(&scratch);
            }
        }
    }
    check(&scratch, &expected);
    assert!(slots(&scratch).len() < 30);
    let newest = scratch.file("newest.db");
    try_restore(&scratch.replica(), Target::Newest, &newest).unwrap();
    check_integrity(&newest);
    compare_pages(&plain_image(&scratch.database()), &std::fs::read(&newest).unwrap()).unwrap();
}

/// Its state names a segment that is only in a span by then.
#[test]
fn a_process_that_was_away_resumes() {
    let scratch = Scratch::in_memory();
    let connection = open_unmerged(&scratch);
    begin(&connection);
    for _ in 0..10 {
        second(&connection);
    }
    drop(connection);
    let noted = std::fs::read(scratch.file("app.db-replvfs")).unwrap();
    let last = *slots(&scratch).last().unwrap();
    let options = MergeOptions {
        pieces: 2,
        ..MergeOptions::default()
    };
    block_on(merge(&scratch.store(), None, &options)).unwrap();
    delete_merged(&scratch);
    assert_eq!(slots(&scratch), [last]);

    let connection = open_unmerged(&scratch);
    let txid = second(&connection);
    assert_eq!(txid, last.0 + 1);
    assert_eq!(
        (generations(&scratch), &status(&connection)["generation"]),
        (1, &serde_json::json!(1))
    );
    drop(connection);

    // A copy from then, whose last segment is in a span now, finds that there is more.
    block_on(merge(&scratch.store(), None, &options)).unwrap();
    delete_merged(&scratch);
    assert!(!slots(&scratch).contains(&last));
    std::fs::write(scratch.file("app.db-replvfs"), noted).unwrap();
    let connection = open_unmerged(&scratch);
    second(&connection);
    assert_eq!(generations(&scratch), 2, "{}", status(&connection));
    let expected = plain_image(&scratch.database());
    drop(connection);
    let newest = scratch.file("newest.db");
    try_restore(&scratch.replica(), Target::Newest, &newest).unwrap();
    compare_pages(&expected, &std::fs::read(&newest).unwrap()).unwrap();
}

/// A restored copy of a merged log goes on in it.
#[test]
fn a_restored_copy_goes_on() {
    let scratch = Scratch::in_memory();
    let connection = open_unmerged(&scratch);
    begin(&connection);
    for _ in 0..10 {
        second(&connection);
    }
    drop(connection);
    let options = MergeOptions {
        pieces: 2,
        ..MergeOptions::default()
    };
    block_on(merge(&scratch.store(), None, &options)).unwrap();
    delete_merged(&scratch);
    let place: &Path = &scratch.database();
    scratch.delete_database();
    std::fs::remove_file(scratch.file("app.db-replvfs")).unwrap();
    let options = RestoreOptions {
        resumable: true,
        ..RestoreOptions::default()
    };
    restore_with(&scratch.replica(), place, &options).unwrap();
    let connection = open_unmerged(&scratch);
    second(&connection);
    assert_eq!(generations(&scratch), 1, "{}", status(&connection));
}
