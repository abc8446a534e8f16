//! Two databases on one connection, each with its own replica, and transactions over both.
#![allow(missing_docs)]

use replvfs_tests::{Scratch, compare_pages, open, plain_image, restore_txid, use_wal};
use rusqlite::Connection;

fn number(connection: &Connection, pragma: &str) -> u64 {
    connection
        .query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, String>(0))
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn attached_databases_have_their_own_histories() {
    let scratch = Scratch::new();
    let connection = open(&scratch.uri()).unwrap();
    use_wal(&connection);
    let other = scratch.file("other.db");
    let uri = format!(
        "file:{}?vfs=replvfs&replica={}",
        other.display(),
        scratch.replica_named("other-replica")
    );
    connection.execute("ATTACH ?1 AS other", [&uri]).unwrap();
    connection
        .execute_batch("PRAGMA other.journal_mode=WAL; CREATE TABLE main.t(a); CREATE TABLE other.u(a)")
        .unwrap();
    let mut truth = Vec::new();
    for n in 0..10 {
        connection.execute_batch("BEGIN").unwrap();
        connection.execute("INSERT INTO main.t VALUES(?1)", [n]).unwrap();
        if n % 2 == 0 {
            connection.execute("INSERT INTO other.u VALUES(?1)", [n]).unwrap();
        }
        connection
            .execute_batch(if n % 5 == 3 { "ROLLBACK" } else { "COMMIT" })
            .unwrap();
        truth.push((
            number(&connection, "main.replvfs_txid"),
            number(&connection, "other.replvfs_txid"),
            [plain_image(&scratch.database()), plain_image(&other)],
        ));
    }
    assert_eq!(number(&connection, "main.replvfs_txid"), 9);
    assert_eq!(number(&connection, "other.replvfs_txid"), 5);
    connection
        .query_row("PRAGMA main.replvfs_flush", [], |_| Ok(()))
        .unwrap();
    connection
        .query_row("PRAGMA other.replvfs_flush", [], |_| Ok(()))
        .unwrap();
    assert_eq!(number(&connection, "other.replvfs_acked"), 5);
    for (main, attached, images) in &truth {
        let replicas = [scratch.replica(), scratch.replica_named("other-replica")];
        for ((replica, txid), image) in replicas.iter().zip([main, attached]).zip(images) {
            let out = scratch.file("restored.db");
            restore_txid(replica, &out, Some(*txid));
            compare_pages(image, &std::fs::read(&out).unwrap())
                .unwrap_or_else(|error| panic!("{replica} {txid}: {error}"));
            std::fs::remove_file(&out).unwrap();
        }
    }
}
