//! A pool of sqlx connections to a replicated database.
//!
//! ```text
//! cargo run --manifest-path examples/sqlx/Cargo.toml
//! ```

use std::error::Error;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let database = folder.path().join("notes.db");
    let replica = format!("fs://{}/replica", folder.path().display());

    // Before the pool is made.
    replvfs::register(replvfs::Config::default())?;
    // A URI as the file's name: SQLite gets it as it is. `SqliteConnectOptions::vfs` and `immutable` would make another URI around it, and
    // parameters of `sqlite://…` that sqlx does not know are refused by it.
    let options = SqliteConnectOptions::new()
        .filename(format!("file:{}?vfs=replvfs&replica={replica}", database.display()))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_secs(10));
    // One connection stays: closing the last one waits for the upload of what is left.
    let pool = SqlitePoolOptions::new()
        .min_connections(1)
        .max_connections(4)
        .connect_with(options)
        .await?;

    sqlx::query("CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
        .execute(&pool)
        .await?;
    for text in ["buy milk", "the milk is sour"] {
        sqlx::query("INSERT INTO note (text) VALUES (?)")
            .bind(text)
            .execute(&pool)
            .await?;
    }
    let replication = replvfs::Replication::of(&database).ok_or("it is not open")?;
    let txid = replication.flush_async().await?.ok_or("nothing was committed")?;
    println!("transaction {txid} is in the replica");

    // The past, out of the replica.
    let past = SqliteConnectOptions::new().filename(format!("file:notes?vfs=replvfs-remote&replica={replica}&txid=2"));
    let past = SqlitePoolOptions::new().connect_with(past).await?;
    for (when, pool) in [("now", &pool), ("before", &past)] {
        let notes: String = sqlx::query_scalar("SELECT group_concat(text, ', ') FROM note")
            .fetch_one(pool)
            .await?;
        println!("{when}: {notes}");
    }

    past.close().await;
    pool.close().await;
    // What a close did not wait for.
    replvfs::shutdown(Duration::from_secs(30))?;
    Ok(())
}
