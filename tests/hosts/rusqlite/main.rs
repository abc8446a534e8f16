//! The host "Rust, rusqlite" of tests/hosts/table.py, which tells what each command is to do. replvfs and SQLite are linked into the program.

use std::error::Error;
use std::ffi::c_int;
use std::process::ExitCode;

use rusqlite::{Connection, OpenFlags};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [command, name] = arguments.as_slice() else {
        eprintln!("usage: host write|resume|read|refuse NAME");
        return ExitCode::from(2);
    };
    let outcome = match (command.as_str(), run(command, name)) {
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

fn run(command: &str, name: &str) -> Result<()> {
    // SAFETY: nothing has used SQLite yet, and the callback keeps no reference.
    unsafe { rusqlite::trace::config_log(Some(log))? };
    replvfs::register(replvfs::Config::default())?;
    let flags = OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut db = Connection::open_with_flags(name, flags)?;
    match command {
        "write" => {
            println!("sqlite {}", rusqlite::version());
            db.pragma_update(None, "journal_mode", "WAL")?;
            db.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)")?;
            transactions(&mut db, 5)?;
            flush(&db)?;
            transactions(&mut db, 3)?;
            println!("waiting");
            loop {
                std::thread::park();
            }
        }
        "resume" => {
            show(&db)?;
            transactions(&mut db, 1)?;
            flush(&db)
        }
        "read" => show(&db),
        _ => db
            .query_row("PRAGMA schema_version", [], |_| Ok(()))
            .map_err(Into::into),
    }
}

fn transactions(db: &mut Connection, count: u32) -> Result<()> {
    for _ in 0..count {
        let transaction = db.transaction()?;
        for _ in 0..20 {
            transaction.execute("INSERT INTO t(v) VALUES (hex(randomblob(50)))", [])?;
        }
        transaction.commit()?;
    }
    Ok(())
}

fn flush(db: &Connection) -> Result<()> {
    let txid: String = db.query_row("PRAGMA replvfs_flush", [], |row| row.get(0))?;
    println!("flushed {txid}");
    Ok(())
}

fn show(db: &Connection) -> Result<()> {
    let rows: (i64, i64) = db.query_row("SELECT count(*), sum(id) FROM t", [], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    println!("rows {} {}", rows.0, rows.1);
    Ok(())
}

fn log(_code: c_int, message: &str) {
    eprintln!("{message}");
}
