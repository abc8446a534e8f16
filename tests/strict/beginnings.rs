//! The first transaction of a process, which needs an image to go on from.

use std::time::Duration;

use replvfs::config::OnFenced;
use replvfs_tests::weather::Trouble;
use replvfs_tests::{open, pragma_number};
use rusqlite::Connection;

use crate::world::*;

/// As another program has left it, with row 1 in it.
fn left_behind(world: &World, journal: &str) {
    let before = Connection::open(world.scratch.database()).unwrap();
    let mode = format!("PRAGMA journal_mode={journal}; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    before.execute_batch(&mode).unwrap();
    insert(&before, 1).unwrap();
}

/// How it is left, and what is made of it then.
fn every_beginning() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let left = ["WAL", "DELETE"].into_iter();
    left.flat_map(|left| every_mode().map(move |(locking, journal)| (left, locking, journal)))
}

/// The store has not told yet how the history goes on, and no image is there.
#[test]
fn the_first_transaction_waits_for_the_image_that_it_needs() {
    for (left, locking, journal) in every_beginning() {
        let what = format!("{left} {locking} {journal}");
        let name = format!("first-{left}-{locking}-{journal}");
        let world = World::with(&name, Duration::from_secs(60), OnFenced::Continue);
        left_behind(&world, left);
        world.storm(0, Trouble::Hang);
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                let connection = world.open_in(locking, journal);
                insert(&connection, 2).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(world.restore(None), Some([1, 2].into()), "{what}");
                assert_eq!(
                    pragma_number(&connection, "replvfs_acked"),
                    pragma_number(&connection, "replvfs_txid")
                );
            });
            world.wait_for_the_storm();
            world.store.weather.clear_up_and_lose_connections();
            first.join().unwrap();
        });
    }
}

/// The same when the store is away for longer than anybody waits.
#[test]
fn a_transaction_without_an_image_to_go_on_from_is_rolled_back() {
    for (left, locking, journal) in every_beginning() {
        let what = format!("{left} {locking} {journal}");
        let name = format!("early-{left}-{locking}-{journal}");
        let world = World::with(&name, Duration::from_millis(300), OnFenced::Continue);
        left_behind(&world, left);
        world.storm(0, Trouble::Temporary);
        let connection = world.open();
        // Changing the mode may need a transaction as well.
        let modes = format!("PRAGMA locking_mode={locking}; PRAGMA journal_mode={journal}");
        let modes = modes.replace("LATER", "NORMAL");
        let _ = connection.execute_batch(&modes);
        for _ in 0..2 {
            let error = insert(&connection, 2).unwrap_err();
            assert!(is_an_io_error(&error), "{what}: {error}");
            assert_eq!(rows_of(&connection), [1].into(), "{what}");
        }
        world.store.weather.clear_up_and_lose_connections();
        connection
            .execute_batch(&modes)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        insert(&connection, 3).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(rows_of(&connection), [1, 3].into(), "{what}");
        assert_eq!(world.restore(None), Some([1, 3].into()), "{what}");
    }
}

/// What is written next is not taken for the end of what another process has begun.
#[test]
fn the_first_transaction_behind_a_hot_journal_is_held_back() {
    for locking in LOCKINGS {
        let world = World::new(&format!("hot-{locking}"));
        left_behind(&world, "DELETE");
        let dying = plain(&world.scratch.database());
        dying
            .execute_batch("PRAGMA cache_size=1; PRAGMA cache_spill=1; BEGIN; UPDATE t SET b = randomblob(3001)")
            .unwrap();
        dying
            .execute_batch("WITH n(n) AS (VALUES(10) UNION ALL SELECT n + 1 FROM n LIMIT 80) INSERT INTO t SELECT n, randomblob(3000) FROM n")
            .unwrap();
        let image = crash_image(&world, "crashed");
        drop(dying);
        assert!(image.with_extension("db-journal").exists());
        let uri = format!("file:{}?vfs={}", image.display(), world.name);
        let connection = open(&uri).unwrap();
        prepare(&connection, locking, "DELETE");
        insert(&connection, 2).unwrap();
        assert_eq!(rows_of(&connection), [1, 2].into(), "{locking}");
        world.storm(0, Trouble::Hang);
        for row in 3..6 {
            let error = insert(&connection, row).unwrap_err();
            assert!(is_an_io_error(&error), "{locking}: {error}");
            assert_eq!(rows_of(&connection), [1, 2].into(), "{locking}");
        }
    }
}
