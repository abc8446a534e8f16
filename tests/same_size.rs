//! What sizes do not tell: WALs that start again and grow to where they were, and databases that shrink and grow within one upload.
#![allow(missing_docs)]

use std::collections::BTreeMap;

use replvfs_tests::{
    Scratch, check_integrity, compare_pages, flush, open, plain_image, pragma_number, restore_txid, status, use_wal,
};
use rusqlite::Connection;

/// The database after each of its transactions.
struct History {
    scratch: Scratch,
    connection: Connection,
    truth: BTreeMap<u64, Vec<u8>>,
}

impl History {
    /// Nothing is uploaded before it is asked for, but the first transactions.
    fn begin(sql: &str) -> History {
        let scratch = Scratch::in_memory();
        let connection = open(&scratch.uri_with("&flush_interval=1h&segment_size=64MiB")).unwrap();
        connection.execute_batch(sql).unwrap();
        History {
            scratch,
            connection,
            truth: BTreeMap::new(),
        }
    }

    fn run(&mut self, sql: &str) {
        self.connection.execute_batch(sql).unwrap();
        let txid = pragma_number(&self.connection, "replvfs_txid").unwrap();
        let image = plain_image(&self.scratch.database());
        let before = self.truth.insert(txid, image);
        assert!(before.is_none(), "txid {txid} was another state: {sql}");
    }

    fn wal_bytes(&self) -> u64 {
        std::fs::metadata(self.scratch.file("app.db-wal")).map_or(0, |file| file.len())
    }

    /// No checkpoint is a transaction.
    fn checkpoint(&self, mode: &str) {
        let busy: i64 = self
            .connection
            .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get(0))
            .unwrap();
        assert_eq!(busy, 0, "{mode}");
    }

    fn each_state_comes_back(&self, generation: u64) {
        flush(&self.connection);
        let status = status(&self.connection);
        assert_eq!(status["generation"], generation, "{status}");
        for (txid, truth) in &self.truth {
            let out = self.scratch.file("restored.db");
            restore_txid(&self.scratch.replica(), &out, Some(*txid));
            compare_pages(truth, &std::fs::read(&out).unwrap())
                .unwrap_or_else(|difference| panic!("txid {txid}: {difference}"));
            check_integrity(&out);
            std::fs::remove_file(&out).unwrap();
        }
    }
}

/// Each WAL has as many frames as the one before, or fewer, in front of what is left of that one; and now and then the store is asked when the WAL has
/// just begun, and has none.
#[test]
fn a_wal_that_starts_again_at_the_same_size_is_another_one() {
    for mode in ["RESTART", "TRUNCATE", "FULL"] {
        let mut history = History::begin(
            "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
             CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES(1, zeroblob(9000))",
        );
        let mut sizes = Vec::new();
        for round in 0..12 {
            for n in 0..if round % 4 == 3 { 1 } else { 3 } {
                history.run(&format!("UPDATE t SET b = randomblob(9000) || '{round} {n}'"));
            }
            sizes.push(history.wal_bytes());
            if round % 3 == 1 {
                flush(&history.connection);
            }
            history.checkpoint(mode);
            if round % 3 == 2 {
                flush(&history.connection);
            }
        }
        if mode == "RESTART" {
            assert_eq!(
                sizes[5], sizes[6],
                "the WAL does not start again at its size: {sizes:?}"
            );
        }
        history.each_state_comes_back(1);
    }
}

#[test]
fn a_database_that_shrinks_and_grows_within_one_upload_comes_back() {
    for (auto_vacuum, shrink) in [
        (0, "VACUUM"),
        (1, "DELETE FROM t WHERE a > 1000"),
        (2, "PRAGMA incremental_vacuum(40)"),
    ] {
        let mut history = History::begin(&format!(
            "PRAGMA auto_vacuum={auto_vacuum}; PRAGMA journal_mode=WAL;
             CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE INDEX i ON t(b)"
        ));
        flush(&history.connection);
        let insert = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 60)
                      INSERT INTO t(b) SELECT randomblob(3000) FROM n";
        for round in 0..3 {
            history.run(insert);
            history.run("DELETE FROM t WHERE a % 3 > 0");
            let before = history.truth.values().next_back().unwrap().len();
            if auto_vacuum == 1 {
                history.run("INSERT INTO t VALUES(1001, randomblob(90000)), (1002, randomblob(200000))");
            }
            history.run(shrink);
            let shrunk = history.truth.values().next_back().unwrap().len();
            assert!(shrunk < before + 200_000, "{shrink} cut nothing off");
            history.run(insert);
            if round == 1 {
                history.checkpoint("PASSIVE");
            }
        }
        history.each_state_comes_back(1);
    }
}

/// It cannot be changed in WAL mode. A generation has one page size.
#[test]
fn a_new_page_size_is_a_new_generation_and_the_old_states_stay() {
    let mut history =
        History::begin("PRAGMA page_size=4096; PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    history.run("INSERT INTO t(b) VALUES(randomblob(20000))");
    history
        .connection
        .execute_batch("PRAGMA journal_mode=DELETE; PRAGMA page_size=1024; VACUUM")
        .unwrap();
    use_wal(&history.connection);
    history.run("INSERT INTO t(b) VALUES(randomblob(30000))");
    history.run("DELETE FROM t WHERE a = 1");
    let size = |image: &[u8]| u16::from_be_bytes([image[16], image[17]]);
    assert_eq!(
        history.truth.values().map(|image| size(image)).collect::<Vec<_>>(),
        [4096, 1024, 1024]
    );
    history.each_state_comes_back(2);
}
