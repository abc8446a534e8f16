//! Real text: SQLite's own source, and what Debian's package manager keeps, with a full-text index, updates and deletes.
#![allow(missing_docs)]

use replvfs_tests::{Scratch, compare_pages, flush, open, plain_image, pragma_number, restore_txid, use_wal};
use rusqlite::{Connection, params};

/// Read by Debian and its kin only.
const DPKG_STATUS: &str = "/var/lib/dpkg/status";

fn paragraphs() -> Vec<String> {
    let mut text = String::from_utf8_lossy(&std::fs::read(env!("SQLITE_SOURCE")).unwrap()).into_owned();
    if let Ok(status) = std::fs::read(DPKG_STATUS) {
        text.push_str(&String::from_utf8_lossy(&status));
    }
    text.split("\n\n")
        .filter(|paragraph| !paragraph.trim().is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn text_with_a_full_text_index_comes_back() {
    let scratch = Scratch::new();
    let mut connection = open(&scratch.uri_with("&segment_size=1MiB")).unwrap();
    use_wal(&connection);
    connection
        .execute_batch(
            "CREATE TABLE doc(id INTEGER PRIMARY KEY, body TEXT, words INTEGER);
             CREATE VIRTUAL TABLE doc_fts USING fts5(body, content='doc', content_rowid='id');
             CREATE INDEX doc_words ON doc(words);",
        )
        .unwrap();
    let paragraphs = paragraphs();
    assert!(paragraphs.len() > 5_000, "that is not much text");
    let mut looks = Vec::new();
    for batch in paragraphs.chunks(2_000) {
        let transaction = connection.transaction().unwrap();
        for body in batch {
            transaction
                .execute(
                    "INSERT INTO doc(body, words) VALUES(?1, ?2)",
                    params![body, body.split_whitespace().count() as i64],
                )
                .unwrap();
            let id = transaction.last_insert_rowid();
            transaction
                .execute("INSERT INTO doc_fts(rowid, body) VALUES(?1, ?2)", params![id, body])
                .unwrap();
        }
        transaction.commit().unwrap();
        looks.push(look(&connection, &scratch));
    }
    for change in [
        "UPDATE doc SET body = upper(body), words = words + 1000 WHERE id % 7 = 0",
        "DELETE FROM doc WHERE id % 5 = 0",
        "INSERT INTO doc_fts(doc_fts) VALUES('rebuild')",
        "INSERT INTO doc_fts(doc_fts) VALUES('optimize')",
        "VACUUM",
    ] {
        connection.execute_batch(change).unwrap();
        looks.push(look(&connection, &scratch));
    }
    flush(&connection);

    for (txid, image, matches) in &looks {
        let out = scratch.file("restored.db");
        restore_txid(&scratch.replica(), &out, Some(*txid));
        compare_pages(image, &std::fs::read(&out).unwrap()).unwrap_or_else(|error| panic!("txid {txid}: {error}"));
        let restored = Connection::open(&out).unwrap();
        let answer: String = restored
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(answer, "ok");
        assert_eq!(count_matches(&restored), *matches, "txid {txid}");
        drop(restored);
        std::fs::remove_file(&out).unwrap();
    }
}

/// The newest txid, the image, and how many rows speak of a checkpoint.
fn look(connection: &Connection, scratch: &Scratch) -> (u64, Vec<u8>, i64) {
    let txid = pragma_number(connection, "replvfs_txid").unwrap();
    (txid, plain_image(&scratch.database()), count_matches(connection))
}

fn count_matches(connection: &Connection) -> i64 {
    connection
        .query_row(
            "SELECT count(*) FROM doc_fts WHERE doc_fts MATCH 'checkpoint'",
            [],
            |row| row.get(0),
        )
        .unwrap()
}
