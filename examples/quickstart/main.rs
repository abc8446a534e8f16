//! The whole way, step by step: write a database, lose its file, restore it, restore it as it was earlier.
//!
//! ```text
//! cargo run --release --example quickstart
//! cargo run --release --example quickstart -- --keep    # leaves the folder there, to look into
//! ```
//!
//! It ends with exit code 1 when anything differs from what was written.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use replvfs::Config;
use replvfs::history::Target;
use replvfs::restore::{RestoreOptions, restore};
use replvfs::store::{Store, StoreOptions};
use rusqlite::{Connection, MAIN_DB, OpenFlags};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What a program loses and wants back: the rows that a person sees, and every page of the file.
struct State {
    txid: u64,
    rows: Vec<(String, i64)>,
    image: Vec<u8>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nquickstart failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let keep = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--keep") => true,
        Some(other) => return Err(format!("unknown argument {other}; the only one is --keep").into()),
    };
    let mut folder = tempfile::Builder::new().prefix("replvfs-quickstart-").tempdir()?;
    folder.disable_cleanup(keep);
    let database = folder.path().join("shop.db");
    let replica = format!("fs://{}", folder.path().join("replica").display());

    step(1, "a folder to work in");
    println!("   {}", folder.path().display());

    step(2, "the database is opened through replvfs");
    replvfs::register(Config::default())?;
    let uri = format!("file:{}?vfs=replvfs&replica={replica}", database.display());
    println!("   {uri}");
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI;
    let mut connection = Connection::open_with_flags(&uri, flags)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;

    step(3, "it is written");
    let transactions = [
        "CREATE TABLE stock (item TEXT PRIMARY KEY, pieces INTEGER NOT NULL)",
        "INSERT INTO stock VALUES ('apples', 120), ('pears', 45), ('plums', 300)",
        "UPDATE stock SET pieces = pieces - 20 WHERE item = 'apples'",
        "DELETE FROM stock WHERE item = 'plums'",
        "INSERT INTO stock VALUES ('quinces', 12)",
    ];
    let mut states = Vec::new();
    for sql in transactions {
        connection.execute(sql, [])?;
        let state = State {
            txid: txid(&connection, "replvfs_txid")?,
            rows: rows(&connection)?,
            image: connection.serialize(MAIN_DB)?.to_vec(),
        };
        println!("   transaction {}: {sql}", state.txid);
        states.push(state);
    }
    let [.., earlier, _, newest] = states.as_slice() else {
        return Err("too few transactions".into());
    };

    step(4, "everything is uploaded: PRAGMA replvfs_flush");
    connection.query_row("PRAGMA replvfs_flush", [], |_| Ok(()))?;
    let acked = txid(&connection, "replvfs_acked")?;
    println!("   newest transaction {}, newest in the replica {acked}", newest.txid);
    if acked != newest.txid {
        return Err("the flush came back before everything was in the replica".into());
    }

    step(5, "the database is lost");
    drop(connection);
    for suffix in ["", "-wal", "-shm"] {
        let file = PathBuf::from(format!("{}{suffix}", database.display()));
        if file.exists() {
            fs::remove_file(&file)?;
            println!("   deleted {}", file.display());
        }
    }

    step(6, "and restored from the replica");
    restore_to(&replica, Target::Newest, &database)?;
    compare(&database, newest)?;

    step(7, &format!("once more, as it was after transaction {}", earlier.txid));
    let old = folder.path().join("shop-earlier.db");
    restore_to(&replica, Target::Txid(replvfs::Txid(earlier.txid)), &old)?;
    compare(&old, earlier)?;

    if keep {
        println!("\nThe folder is kept: {}", folder.path().display());
    } else {
        println!("\nThe folder is removed; --keep would leave it.");
    }
    Ok(())
}

fn step(number: u32, what: &str) {
    println!("\n{number}. {what}");
}

/// The number that one of replvfs's pragmas answers.
fn txid(connection: &Connection, pragma: &str) -> Result<u64> {
    let txid: String = connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0))?;
    Ok(txid.parse()?)
}

fn rows(connection: &Connection) -> Result<Vec<(String, i64)>> {
    let mut statement = connection.prepare("SELECT item, pieces FROM stock ORDER BY item")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The same as `replvfs restore <replica> <file> [--txid N]` on the command line.
fn restore_to(replica: &str, target: Target, file: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let restored = runtime.block_on(async {
        let store = Store::open(replica, &StoreOptions::reading())?;
        Ok::<_, Box<dyn Error>>(
            restore(
                &store,
                file,
                &RestoreOptions {
                    target,
                    ..RestoreOptions::default()
                },
            )
            .await?,
        )
    })?;
    println!("   {} at transaction {}", file.display(), restored.txid);
    Ok(())
}

/// Opens the restored file as any program would, without replvfs, and compares it row by row and page by page.
fn compare(file: &Path, expected: &State) -> Result<()> {
    let image = fs::read(file)?;
    let connection = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let found = rows(&connection)?;
    for (item, pieces) in &found {
        println!("   {item:>10} {pieces:>5}");
    }
    if found != expected.rows {
        return Err(format!("these rows were expected: {:?}", expected.rows).into());
    }

    let page_size: u32 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    let page_size = usize::try_from(page_size)?;
    if image.len() != expected.image.len() {
        return Err(format!("{} bytes instead of {}", image.len(), expected.image.len()).into());
    }
    let pages = image.chunks(page_size).zip(expected.image.chunks(page_size));
    if let Some(index) = pages.clone().position(|(found, expected)| found != expected) {
        return Err(format!("page {} differs", index + 1).into());
    }
    println!("   {} rows and {} pages compared: all equal", found.len(), pages.len());
    Ok(())
}
