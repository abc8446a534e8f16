//! What comes after a transaction that was rolled back, or that failed in another database.

use std::collections::BTreeSet;

use replvfs::history::Target;
use replvfs::store::Store;
use replvfs_tests::weather::Trouble;
use replvfs_tests::{check_integrity, open, restore_from};

use crate::world::*;

/// Its last page is one that was freed again, so SQLite asks how long the file is, as it does when it rolls back.
#[test]
fn what_grows_behind_one_that_was_rolled_back_is_held_back() {
    for journal in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"] {
        let world = World::new(&format!("grows-{journal}"));
        let connection = world.open_in("EXCLUSIVE", journal);
        insert(&connection, 1).unwrap();
        connection
            .execute_batch(
                "PRAGMA cache_size=2; BEGIN; UPDATE t SET b = randomblob(100000); ROLLBACK; PRAGMA cache_size=2000",
            )
            .unwrap();
        world.storm(0, Trouble::Temporary);
        let grows = "BEGIN; INSERT INTO t VALUES(2, 1), (4, zeroblob(200000)); DELETE FROM t WHERE a = 4; COMMIT";
        connection.execute_batch(grows).expect_err(journal);
        goes_on(&world, &connection, journal);
    }
}

/// The next transaction does not wait, and is open when the image is asked for.
#[test]
fn no_image_is_taken_in_the_middle_of_what_follows() {
    for journal in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"] {
        let world = World::new(&format!("middle-{journal}"));
        let connection = world.open_in("EXCLUSIVE", journal);
        connection
            .execute_batch(
                "WITH n(n) AS (VALUES(1) UNION ALL SELECT n + 1 FROM n LIMIT 1000) INSERT INTO t SELECT n, 1 || hex(zeroblob(1500)) FROM n",
            )
            .unwrap();
        world.storm(0, Trouble::Temporary);
        insert(&connection, 2000).expect_err(journal);
        connection
            .execute_batch(
                "PRAGMA replvfs_durability=async; PRAGMA cache_size=2; BEGIN; UPDATE t SET b = 2 || hex(zeroblob(1500))",
            )
            .unwrap();
        world.store.weather.clear_up_and_lose_connections();
        for _ in 0..3 {
            let _ = connection.query_row("PRAGMA replvfs_flush", [], |_| Ok(()));
        }
        let store = Store::from_operator(world.store.healthy.clone());
        let out = world.scratch.file("elsewhere.db");
        restore_from(&store, Target::Newest, &out).unwrap();
        check_integrity(&out);
        let is_open = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        let open: i64 = plain(&out)
            .query_row("SELECT count(*) FROM t WHERE b LIKE '2%'", [], is_open)
            .unwrap();
        assert_eq!(open, 0, "{journal}");
        std::fs::remove_file(out).unwrap();
        connection
            .execute_batch("ROLLBACK; UPDATE t SET b = 3 WHERE a = 1; PRAGMA replvfs_durability=strict")
            .unwrap();
        insert(&connection, 2001).unwrap();
        assert_eq!(world.restore(None), Some(rows_of(&connection)), "{journal}");
    }
}

/// Behind an error SQLite begins anew, and asks how long the file is, as it does when it rolls back.
#[test]
fn what_follows_an_error_behind_one_that_was_rolled_back_is_held_back() {
    for journal in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"] {
        let world = World::new(&format!("error-{journal}"));
        let connection = world.open_in("EXCLUSIVE", journal);
        insert(&connection, 1).unwrap();
        world.storm(0, Trouble::Temporary);
        insert(&connection, 2).expect_err(journal);
        // From MEMORY to WAL it goes without a journal, which is refused at the first page.
        let _ = connection.execute_batch("PRAGMA journal_mode=MEMORY; PRAGMA journal_mode=WAL");
        insert(&connection, 2).expect_err(journal);
        goes_on(&world, &connection, journal);
    }
}

/// It is committed in the first one, with a WAL, and `COMMIT_PHASETWO` comes to none of them.
#[test]
fn what_follows_one_that_failed_in_the_second_database_is_held_back() {
    for (locking, journal) in every_mode() {
        let what = format!("{locking} {journal}");
        let worlds = ["a", "b"].map(|name| World::new(&format!("second-{name}-{locking}-{journal}")));
        let connection = open("file::memory:").unwrap();
        for (name, world) in ["a", "b"].iter().zip(&worlds) {
            drop(world.open_in("NORMAL", "DELETE"));
            connection
                .execute_batch(&format!("ATTACH '{}' AS {name}", world.uri()))
                .unwrap();
            let modes = format!("PRAGMA {name}.locking_mode={locking}; PRAGMA {name}.journal_mode={journal};");
            connection.execute_batch(&modes.replace("LATER", "NORMAL")).unwrap();
            connection
                .execute_batch(&format!("INSERT INTO {name}.t VALUES(1, 1)"))
                .unwrap();
            if locking == "LATER" {
                connection
                    .execute_batch(&format!("PRAGMA {name}.locking_mode=EXCLUSIVE; SELECT * FROM {name}.t"))
                    .unwrap();
            }
        }
        let rows = || {
            let mut all = connection.prepare("SELECT a FROM a.t").unwrap();
            let rows = all.query_map([], |row| row.get(0)).unwrap();
            rows.map(Result::unwrap).collect::<BTreeSet<i64>>()
        };
        worlds[1].storm(0, Trouble::Temporary);
        connection
            .execute_batch("BEGIN; INSERT INTO a.t VALUES(2, 1); INSERT INTO b.t VALUES(2, 1); COMMIT")
            .expect_err(&what);
        let before = rows();
        worlds[0].storm(0, Trouble::Temporary);
        connection
            .execute_batch("INSERT INTO a.t VALUES(3, 1)")
            .expect_err(&what);
        assert_eq!(rows(), before, "{what}");
        worlds
            .iter()
            .for_each(|world| world.store.weather.clear_up_and_lose_connections());
        connection
            .execute_batch("INSERT INTO a.t VALUES(4, 1); INSERT INTO b.t VALUES(4, 1)")
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(worlds[0].restore(None), Some(rows()), "{what}");
        assert_eq!(worlds[1].restore(None), Some([1, 4].into()), "{what}");
    }
}
