//! The host "Rust, sqlx" of tests/hosts/table.py, which tells what each command is to do. Built as an example of examples/sqlx.

use std::error::Error;
use std::process::ExitCode;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{ConnectOptions, Connection, SqliteConnection};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [command, name] = arguments.as_slice() else {
        eprintln!("usage: host write|resume|read|refuse NAME");
        return ExitCode::from(2);
    };
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let outcome = match (command.as_str(), run(command, name).await) {
        ("refuse", Ok(())) => Err("it was not refused".into()),
        ("refuse", Err(error)) => {
            println!("refused: {error}");
            Ok(())
        }
        (_, outcome) => outcome,
    };
    if let Err(error) = outcome {
        eprintln!("{command}: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn run(command: &str, name: &str) -> Result<()> {
    replvfs::register(replvfs::Config::default())?;
    // The name goes to SQLite as it is; options that sqlx has itself (`vfs`, `immutable`) would make another URI of it.
    let mut options = SqliteConnectOptions::new().filename(name).create_if_missing(true);
    if command == "write" {
        options = options.journal_mode(SqliteJournalMode::Wal);
    }
    let mut db = options.connect().await?;
    match command {
        "write" => {
            let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut db).await?;
            println!("sqlite {version}");
            sqlx::query("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")
                .execute(&mut db)
                .await?;
            transactions(&mut db, 5).await?;
            flush(&mut db).await?;
            transactions(&mut db, 3).await?;
            println!("waiting");
            std::future::pending::<()>().await;
        }
        "resume" => {
            show(&mut db).await?;
            transactions(&mut db, 1).await?;
            flush(&mut db).await?;
        }
        "read" => show(&mut db).await?,
        _ => {
            sqlx::query("PRAGMA schema_version").fetch_all(&mut db).await?;
        }
    }
    db.close().await?;
    Ok(())
}

async fn transactions(db: &mut SqliteConnection, count: u32) -> Result<()> {
    for _ in 0..count {
        let mut transaction = db.begin().await?;
        for _ in 0..20 {
            sqlx::query("INSERT INTO t(v) VALUES (hex(randomblob(50)))")
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
    }
    Ok(())
}

async fn flush(db: &mut SqliteConnection) -> Result<()> {
    let txid: String = sqlx::query_scalar("PRAGMA replvfs_flush").fetch_one(db).await?;
    println!("flushed {txid}");
    Ok(())
}

async fn show(db: &mut SqliteConnection) -> Result<()> {
    let (count, sum): (i64, i64) = sqlx::query_as("SELECT count(*), sum(id) FROM t").fetch_one(db).await?;
    println!("rows {count} {sum}");
    Ok(())
}
