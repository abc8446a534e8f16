//! `durability=strict`: nobody sees a transaction before it is in the store, and one that does not get there is rolled back.
#![allow(missing_docs)]

mod beginnings;
mod following;
mod world;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use replvfs::config::OnFenced;
use replvfs_tests::peer::{SqlPeer, run_sql};
use replvfs_tests::weather::{Storm, Trouble};
use replvfs_tests::{Scratch, open, pragma_number, restore_txid, status};
use replvfs_vfs::log::{Batch, Log, Withdrawn};
use replvfs_vfs::transaction::Transaction;
use replvfs_vfs::types::{PageSize, Pgno, Position, Txid};
use rusqlite::{Connection, ErrorCode};
use tracing_subscriber::layer::SubscriberExt;
use world::*;

#[test]
fn a_commit_that_has_returned_is_in_the_store() {
    for (locking, journal) in every_mode() {
        let scratch = Scratch::in_memory();
        let connection = open(&scratch.uri_with("&flush_interval=1h&durability=strict")).unwrap();
        prepare(&connection, locking, journal);
        let elsewhere = || {
            let out = scratch.file("elsewhere.db");
            restore_txid(&scratch.replica(), &out, None);
            let rows = rows_in(&out);
            std::fs::remove_file(out).unwrap();
            rows
        };
        assert_eq!(elsewhere(), BTreeSet::new(), "{locking} {journal}");
        for row in 1..=4 {
            insert(&connection, row).unwrap();
            assert_eq!(elsewhere(), (1..=row).collect(), "{locking} {journal}");
        }
        // Spilled, rolled back in part, written again, and more than is kept in memory.
        connection
            .execute_batch(
                "PRAGMA cache_size=5; BEGIN; INSERT INTO t SELECT value, randomblob(3000) FROM generate_series(100, 300);
                 SAVEPOINT s; UPDATE t SET b = randomblob(2500); ROLLBACK TO s; UPDATE t SET b = randomblob(2000) WHERE a % 3 = 0; COMMIT"
                    .replace(
                        "SELECT value, randomblob(3000) FROM generate_series(100, 300)",
                        "WITH RECURSIVE n(v) AS (VALUES(100) UNION ALL SELECT v + 1 FROM n WHERE v < 300) SELECT v, randomblob(3000) FROM n",
                    )
                    .as_str(),
            )
            .unwrap();
        assert_eq!(elsewhere().len(), 205, "{locking} {journal}");
        connection
            .execute_batch("BEGIN; UPDATE t SET b = 1; ROLLBACK; PRAGMA wal_checkpoint(TRUNCATE)")
            .unwrap();
        connection.execute_batch("DELETE FROM t WHERE a >= 100").unwrap();
        assert_eq!(elsewhere(), (1..=4).collect(), "{locking} {journal}");
        connection.execute_batch("VACUUM").unwrap();
        insert(&connection, 5).unwrap();
        assert_eq!(elsewhere(), (1..=5).collect(), "{locking} {journal}");
        assert_eq!(status(&connection)["generation"], 1, "{locking} {journal}");
        assert_eq!(status(&connection)["discontinuities"], 0, "{locking} {journal}");
    }
}

/// Without `SQLITE_IOCAP_POWERSAFE_OVERWRITE` SQLite repeats the commit frame up to the next sector, and syncs in the middle of it.
#[test]
fn frames_that_are_repeated_follow_what_was_confirmed() {
    for locking in LOCKINGS {
        for page_size in [512, 4096] {
            let scratch = Scratch::in_memory();
            let connection = open(&scratch.uri_with("&flush_interval=1h&durability=strict&psow=0")).unwrap();
            connection
                .execute_batch(&format!("PRAGMA page_size={page_size}; PRAGMA synchronous=FULL"))
                .unwrap();
            prepare(&connection, locking, "WAL");
            for row in 1..=5 {
                insert(&connection, row).unwrap();
                let out = scratch.file("elsewhere.db");
                restore_txid(&scratch.replica(), &out, None);
                assert_eq!(rows_in(&out), (1..=row).collect(), "{locking} {page_size}");
                std::fs::remove_file(out).unwrap();
            }
            let newest = pragma_number(&connection, "replvfs_txid").unwrap();
            assert!(newest > 6, "no frame was repeated");
            assert_eq!(status(&connection)["generation"], 1, "{locking} {page_size}");
        }
    }
}

/// What others have committed before goes first, and what they commit after one that was rolled back is not lost.
#[test]
fn those_that_do_not_wait_are_in_order() {
    for journal in JOURNALS {
        let world = World::new(&format!("mixed-{journal}"));
        let strict = world.open_in("NORMAL", journal);
        let other = world.open();
        other.execute_batch("PRAGMA replvfs_durability=async").unwrap();
        insert(&other, 1).unwrap();
        insert(&strict, 2).unwrap();
        assert_eq!(world.restore(None), Some([1, 2].into()), "{journal}");
        insert(&other, 3).unwrap();
        world.storm(0, Trouble::Hang);
        // What is before it is not there, so it is not even tried.
        let error = insert(&strict, 4).unwrap_err();
        assert!(is_an_io_error(&error), "{journal}: {error}");
        insert(&other, 5).unwrap();
        world.store.weather.clear_up_and_lose_connections();
        insert(&strict, 6).unwrap();
        assert_eq!(world.restore(None), Some([1, 2, 3, 5, 6].into()), "{journal}");
        assert_eq!(status(&strict)["generation"], 1, "{journal}");
        world.storm(0, Trouble::Hang);
        let error = insert(&strict, 7).unwrap_err();
        assert!(is_an_io_error(&error), "{journal}: {error}");
        insert(&other, 8).unwrap();
        world.store.weather.clear_up_and_lose_connections();
        insert(&strict, 9).unwrap();
        assert_eq!(world.restore(None), Some([1, 2, 3, 5, 6, 8, 9].into()), "{journal}");
        assert_eq!(rows_of(&other), [1, 2, 3, 5, 6, 8, 9].into(), "{journal}");
    }
}

/// Runs SQL for another test, if it is told to.
#[test]
fn other_process() {
    run_sql();
}

#[test]
fn another_process_cannot_have_it() {
    for journal in ["WAL", "DELETE"] {
        let scratch = Scratch::in_memory();
        let mut owner = SqlPeer::start(&scratch.uri_with("&flush_interval=1h"));
        owner.sql(&format!(
            "PRAGMA journal_mode={journal}; CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES(1, 1)"
        ));
        // From here on it is known who replicates the database.
        owner.sql("PRAGMA replvfs_flush");
        let standby = open(&scratch.uri_with("&flush_interval=1h&durability=strict")).unwrap();
        standby.busy_timeout(Duration::from_secs(60)).unwrap();
        let refused = insert(&standby, 2).unwrap_err();
        assert!(standby.is_autocommit());
        let code = refused.sqlite_error_code();
        assert!(
            code == Some(ErrorCode::SystemIoFailure) || code == Some(ErrorCode::ReadOnly),
            "{journal}: {refused}"
        );
        assert_eq!(rows_of(&standby), [1].into(), "{journal}");
        owner.sql("INSERT INTO t VALUES(3, 1)");
        assert_eq!(rows_of(&standby), [1, 3].into(), "{journal}");
        owner.end();
        // Now it is this one.
        insert(&standby, 4).unwrap();
        let out = scratch.file("elsewhere.db");
        restore_txid(&scratch.replica(), &out, None);
        assert_eq!(rows_in(&out), [1, 3, 4].into(), "{journal}");
    }
}

#[test]
fn nobody_sees_it_before() {
    for journal in ["WAL", "DELETE", "TRUNCATE", "PERSIST"] {
        let world = World::with(
            &format!("unseen-{journal}"),
            Duration::from_secs(60),
            OnFenced::Continue,
        );
        let connection = world.open_in("NORMAL", journal);
        insert(&connection, 1).unwrap();
        world.storm(0, Trouble::Hang);
        std::thread::scope(|scope| {
            let commits = scope.spawn(|| {
                let connection = world.open();
                insert(&connection, 2)
            });
            world.wait_for_the_storm();
            for other in [plain(&world.scratch.database()), world.open()] {
                other.busy_timeout(Duration::ZERO).unwrap();
                let seen = other.query_row("SELECT group_concat(a) FROM t", [], |row| row.get::<_, String>(0));
                match (journal, seen) {
                    ("WAL", seen) => assert_eq!(seen.unwrap(), "1"),
                    (_, seen) => assert_eq!(
                        seen.unwrap_err().sqlite_error_code(),
                        Some(ErrorCode::DatabaseBusy),
                        "{journal}"
                    ),
                }
                let busy = other.execute_batch("BEGIN IMMEDIATE").unwrap_err();
                assert_eq!(busy.sqlite_error_code(), Some(ErrorCode::DatabaseBusy), "{journal}");
            }
            // Nor would anybody after a crash.
            let image = crash_image(&world, "crashed");
            assert_eq!(rows_in(&image), [1].into(), "{journal}");
            assert!(!commits.is_finished());
            world.store.weather.clear_up_and_lose_connections();
            commits.join().unwrap().unwrap();
        });
        assert_eq!(rows_of(&connection), [1, 2].into(), "{journal}");
        assert_eq!(world.restore(None), Some([1, 2].into()), "{journal}");
    }
}

#[test]
fn what_the_store_does_not_take_is_rolled_back() {
    for (locking, journal) in every_mode() {
        for trouble in [Trouble::Hang, Trouble::Temporary, Trouble::Permanent] {
            let what = format!("{locking} {journal} {trouble:?}");
            let world = World::new(&format!("refused-{locking}-{journal}-{trouble:?}"));
            let connection = world.open_in(locking, journal);
            insert(&connection, 1).unwrap();
            world.storm(0, trouble);
            for _ in 0..2 {
                let error = insert(&connection, 2).unwrap_err();
                assert!(is_an_io_error(&error), "{what}: {error}");
            }
            goes_on(&world, &connection, &what);
            drop(connection);
            assert_eq!(rows_in(&world.scratch.database()), [1, 3].into(), "{what}");
        }
    }
}

/// The object is there, and nobody was told.
#[test]
fn an_upload_that_landed_unnoticed_is_left_aside() {
    for (locking, journal) in every_mode() {
        let what = format!("{locking} {journal}");
        let world = World::new(&format!("landed-{locking}-{journal}"));
        let connection = world.open_in(locking, journal);
        insert(&connection, 1).unwrap();
        world.storm(1, Trouble::Lost);
        let error = insert(&connection, 2).unwrap_err();
        assert!(is_an_io_error(&error), "{what}: {error}");
        assert_eq!(world.store.weather.calls()[..2], ["write", "close"], "{what}");
        assert_eq!(world.restore(None), Some([1, 2].into()), "{what}: it did not land");
        goes_on(&world, &connection, &what);
    }
}

/// An answer that is lost once is no trouble.
#[test]
fn an_upload_whose_answer_is_lost_once_is_found() {
    for journal in JOURNALS {
        for at in 0..6 {
            let world = World::with(
                &format!("found-{journal}-{at}"),
                Duration::from_secs(60),
                OnFenced::Continue,
            );
            let connection = world.open_in("NORMAL", journal);
            insert(&connection, 1).unwrap();
            world.store.weather.storm(Some(Storm {
                at,
                trouble: Trouble::Lost,
                lasting: false,
            }));
            insert(&connection, 2).unwrap();
            assert_eq!(world.restore(None), Some([1, 2].into()), "{journal} {at}");
            assert_eq!(status(&connection)["generation"], 1, "{journal} {at}");
        }
    }
}

/// As if it had been killed between the upload and the commit frame: another process finds the files, and what is in the store.
#[test]
fn a_process_that_dies_before_the_frame_goes_on_without_it() {
    for journal in ["WAL", "DELETE"] {
        for on_fenced in [OnFenced::Continue, OnFenced::Stop] {
            for landed in [true, false] {
                let what = format!("{journal} {on_fenced:?} landed: {landed}");
                let name = format!("killed-{journal}-{on_fenced:?}-{landed}");
                let world = World::with(&name, NEVER, on_fenced);
                let connection = world.open_in("NORMAL", journal);
                insert(&connection, 1).unwrap();
                match landed {
                    true => world.storm(1, Trouble::Lost),
                    false => world.storm(0, Trouble::Hang),
                }
                // It waits for ever: nothing comes of it any more.
                std::thread::spawn(move || {
                    let _ = insert(&connection, 2);
                });
                world.wait_for_the_storm();
                if landed {
                    // It asks again, and hangs then.
                    world.storm(0, Trouble::Hang);
                    world.wait_for_the_storm();
                }
                world.store.weather.clear_up();
                let image = crash_image(&world, "crashed");
                let next = name.clone() + "-next";
                world.register(&next.to_ascii_lowercase(), Duration::from_secs(60), on_fenced);
                let uri = format!(
                    "file:{}?vfs={}&restore=if-behind",
                    image.display(),
                    next.to_ascii_lowercase()
                );
                let connection = open(&uri).unwrap();
                assert_eq!(rows_of(&connection), [1].into(), "{what}");
                insert(&connection, 3).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(rows_of(&connection), [1, 3].into(), "{what}");
                assert_eq!(world.restore(None), Some([1, 3].into()), "{what}");
                let newest = pragma_number(&connection, "replvfs_txid").unwrap();
                let history = world.history(newest);
                assert!(history.iter().all(|rows| !rows.contains(&2)), "{what}: {history:?}");
                assert_eq!(status(&connection)["diverged"], false, "{what}");
                assert_eq!(status(&connection)["fenced"], false, "{what}");
            }
        }
    }
}

#[test]
fn a_switch_of_modes_is_confirmed() {
    let world = World::new("switching");
    let connection = world.open_in("NORMAL", "WAL");
    let mut rows = BTreeSet::new();
    for (row, journal) in (1..).zip(["DELETE", "WAL", "PERSIST", "TRUNCATE", "WAL"]) {
        connection
            .execute_batch(&format!("PRAGMA journal_mode={journal}"))
            .unwrap();
        insert(&connection, row).unwrap();
        rows.insert(row);
        assert_eq!(world.restore(None).as_ref(), Some(&rows), "{journal}");
    }
    assert_eq!(status(&connection)["generation"], 1);
    assert_eq!(status(&connection)["discontinuities"], 0);
}

#[test]
fn it_needs_a_journal() {
    let world = World::new("without-journal");
    let connection = world.open();
    let refused = connection
        .query_row("PRAGMA journal_mode=OFF", [], |_| Ok(()))
        .unwrap_err();
    assert!(refused.to_string().contains("needs a journal"), "{refused}");
    connection
        .execute_batch("PRAGMA replvfs_durability=async; PRAGMA journal_mode=OFF")
        .unwrap();
    let refused = connection
        .query_row("PRAGMA replvfs_durability=strict", [], |_| Ok(()))
        .unwrap_err();
    assert!(refused.to_string().contains("needs a journal"), "{refused}");
}

/// The number of one that was taken back is used again, perhaps while the first one is still being sealed.
#[test]
fn one_that_was_taken_back_is_not_offered_as_the_next() {
    let tentative = |value: u8| {
        let pages = [(Pgno::new(1).unwrap(), vec![value; 512])];
        Transaction::for_test(Txid::ZERO, PageSize::new(512).unwrap(), 1, &pages, Position::default())
    };
    let log = Log::new();
    assert!(log.answer_for_test(Err(Txid(1))));
    assert!(matches!(log.take(1), Some(Batch::Resumed(Txid(1)))));
    log.acknowledge(Txid(1));
    let take = || match log.take(1) {
        Some(Batch::Transactions(taken)) => taken.into_iter().next().unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(log.push_tentative(tentative(1)).ok(), Some(Txid(2)));
    let first = take();
    assert_eq!(log.withdraw(Txid(2)), Withdrawn::Cleanly);
    assert_eq!(log.push_tentative(tentative(2)).ok(), Some(Txid(2)));
    assert!(!log.offer(&first), "it would be in the store in place of the next one");
    let second = take();
    assert!(log.offer(&second));
    assert!(!log.offer(&first));
    assert_eq!(log.withdraw(Txid(2)), Withdrawn::Abandoned);
}

/// Does something while it is said that a transaction is rolled back.
struct Meanwhile(std::thread::ThreadId, Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Meanwhile {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        if std::thread::current().id() == self.0
            && *event.metadata().level() == tracing::Level::WARN
            && let Some(act) = self.1.lock().unwrap().take()
        {
            act();
        }
    }
}

/// A reader may bring the image that an abandoned transaction makes necessary before the connection that has abandoned it goes on.
#[test]
fn an_image_that_comes_at_once_has_a_number_of_its_own() {
    let world = World::new("at-once");
    let connection = world.open_in("NORMAL", "WAL");
    insert(&connection, 1).unwrap();
    let reader = world.open();
    assert_eq!(rows_of(&reader), [1].into());
    world.storm(0, Trouble::Hang);
    let seen = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&seen);
    let meanwhile = Meanwhile(
        std::thread::current().id(),
        Mutex::new(Some(Box::new(move || {
            *noted.lock().unwrap() = Some(rows_of(&reader));
        }))),
    );
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(meanwhile)).unwrap();
    let error = insert(&connection, 2).unwrap_err();
    assert!(is_an_io_error(&error), "{error}");
    assert_eq!(*seen.lock().unwrap(), Some([1].into()));
    goes_on(&world, &connection, "at once");
}

/// `PRAGMA journal_mode` without a name is for all databases, and says so to the main one only.
#[test]
fn a_journal_that_is_switched_off_for_all_is_missed() {
    let world = World::new("attached-off");
    let connection = world.open_in("NORMAL", "DELETE");
    insert(&connection, 1).unwrap();
    let all = open("file::memory:").unwrap();
    all.execute_batch(&format!("ATTACH '{}' AS a; PRAGMA journal_mode=OFF", world.uri()))
        .unwrap();
    for _ in 0..2 {
        let error = insert(&all, 2).unwrap_err();
        assert!(is_an_io_error(&error), "{error}");
        assert_eq!(rows_of(&connection), [1].into(), "{error}");
    }
    all.execute_batch("PRAGMA a.journal_mode=DELETE").unwrap();
    world.storm(0, Trouble::Hang);
    let error = insert(&all, 2).unwrap_err();
    assert!(is_an_io_error(&error), "{error}");
    drop(all);
    goes_on(&world, &connection, "attached");
}

/// The image of a database that is not read at once waits for the store to answer, which nobody asks after the upload was given up.
#[test]
fn a_large_database_goes_on_after_the_store_was_away() {
    for (locking, journal) in every_mode() {
        let what = format!("{locking} {journal}");
        let world = World::new(&format!("large-{locking}-{journal}"));
        let connection = world.open_in(locking, journal);
        connection
            .execute_batch("INSERT INTO t VALUES(1, randomblob(3000000))")
            .unwrap();
        world.storm(0, Trouble::Temporary);
        let error = insert(&connection, 2).unwrap_err();
        assert!(is_an_io_error(&error), "{what}: {error}");
        world.store.weather.clear_up_and_lose_connections();
        let flush = || connection.query_row("PRAGMA replvfs_flush", [], |_| Ok(()));
        // Who keeps the file for itself brings the image with its next write.
        let is_over = || status(&connection)["last_error"]["over"] == true;
        let has_answered = (0..30).any(|_| flush().is_ok() || is_over());
        assert!(has_answered, "{what}: {}", status(&connection));
        goes_on(&world, &connection, &what);
    }
}

/// What has returned is here and there, and what failed is nowhere, whatever the store does.
#[test]
fn whatever_the_store_does() {
    use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
    let seconds = replvfs_tests::number("REPLVFS_STRICT_SECONDS").unwrap_or(2);
    let modes = [
        ("NORMAL", "WAL"),
        ("NORMAL", "DELETE"),
        ("EXCLUSIVE", "WAL"),
        ("EXCLUSIVE", "DELETE"),
        ("LATER", "WAL"),
        ("NORMAL", "PERSIST"),
    ];
    std::thread::scope(|outer| {
        for (locking, journal) in modes {
            outer.spawn(move || {
                let what = format!("{locking} {journal}");
                let world = World::with(
                    &format!("stress-{locking}-{journal}"),
                    Duration::from_millis(60),
                    OnFenced::Continue,
                );
                let connection = world.open_in(locking, journal);
                insert(&connection, 0).unwrap();
                let (stop, next) = (AtomicBool::new(false), AtomicI64::new(1));
                let ok = Mutex::new(BTreeSet::from([0_i64]));
                let failed = Mutex::new(BTreeSet::new());
                let seed = AtomicI64::new(what.len() as i64 * 7919 + std::process::id() as i64);
                let random = |n: i64| {
                    let x = seed.fetch_add(0x9E3779B9, Ordering::Relaxed) as u64;
                    let x = (x ^ (x >> 15)).wrapping_mul(0x2545F4914F6CDD1D);
                    ((x >> 33) as i64) % n
                };
                let write = |connection: &Connection| {
                    let row = next.fetch_add(1, Ordering::Relaxed);
                    let size = if random(4) == 0 { 400_000 } else { 3000 };
                    let done = connection.execute_batch(&format!("INSERT INTO t VALUES({row}, randomblob({size}))"));
                    match done {
                        Ok(()) => {
                            ok.lock().unwrap().insert(row);
                        }
                        Err(error) => {
                            if !connection.is_autocommit() {
                                let _ = connection.execute_batch("ROLLBACK");
                            }
                            failed.lock().unwrap().insert((row, error.to_string()));
                        }
                    }
                };
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            let trouble =
                                [Trouble::Hang, Trouble::Lost, Trouble::Temporary, Trouble::Lost][random(4) as usize];
                            world.store.weather.storm(Some(Storm {
                                at: random(6) as usize,
                                trouble,
                                lasting: random(2) == 0,
                            }));
                            std::thread::sleep(Duration::from_millis(random(150) as u64));
                            world.store.weather.clear_up_and_lose_connections();
                            std::thread::sleep(Duration::from_millis(random(120) as u64));
                        }
                    });
                    if locking == "NORMAL" {
                        scope.spawn(|| {
                            let other = world.open();
                            other.busy_timeout(Duration::from_millis(200)).unwrap();
                            while !stop.load(Ordering::Relaxed) {
                                write(&other);
                            }
                        });
                        scope.spawn(|| {
                            let reader = world.open();
                            while !stop.load(Ordering::Relaxed) {
                                let _ = reader.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
                                std::thread::sleep(Duration::from_millis(1));
                            }
                        });
                    }
                    let end = std::time::Instant::now() + Duration::from_secs(seconds);
                    connection.busy_timeout(Duration::from_millis(200)).unwrap();
                    while std::time::Instant::now() < end {
                        write(&connection);
                    }
                    stop.store(true, Ordering::Relaxed);
                });
                world.store.weather.clear_up_and_lose_connections();
                connection.busy_timeout(Duration::from_secs(20)).unwrap();
                let mut tries = 0;
                let last = loop {
                    let row = next.fetch_add(1, Ordering::Relaxed);
                    tries += 1;
                    match insert(&connection, row) {
                        Ok(()) => break row,
                        Err(error) if tries > 100 => panic!("{what}: {error} {}", status(&connection)),
                        Err(_) => {}
                    }
                };
                let mut ok = ok.into_inner().unwrap();
                ok.insert(last);
                let here = rows_of(&connection);
                let failed = failed.into_inner().unwrap();
                let odd: Vec<_> = here.symmetric_difference(&ok).collect();
                let why: Vec<_> = failed.iter().filter(|(row, _)| odd.contains(&row)).collect();
                assert!(odd.is_empty(), "{what} here: {odd:?} {why:?}");
                let there = world.restore(None).unwrap();
                let odd: Vec<_> = there.symmetric_difference(&ok).collect();
                assert!(odd.is_empty(), "{what} there: {odd:?}");
                let newest = pragma_number(&connection, "replvfs_txid").unwrap();
                for txid in (0..=newest).rev().take(60) {
                    if let Some(rows) = world.restore(Some(txid)) {
                        assert!(
                            rows.is_subset(&ok),
                            "{what} {txid}: {:?}",
                            rows.difference(&ok).collect::<Vec<_>>()
                        );
                    }
                }
            });
        }
    });
}
