//! `replvfs sql`: a query against a replica, without restoring it.

mod show;

use std::io::Write;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use replvfs::time::{At, show as show_time};
use rusqlite::{Connection, OpenFlags};

use crate::Failure;
use crate::replica::ReplicaArgument;
use show::{Csv, Json, Show, Table};

/// Runs a query on the database in a replica, as of the newest transaction unless another is asked for.
///
/// The database is not restored: what the query reads is fetched, and nothing else. Nothing can be written to it, but temporary tables can be made.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    replica: ReplicaArgument,
    /// One statement.
    sql: String,
    /// As of this time: RFC 3339, without an offset for UTC, or as "5 minutes ago". The newest transaction that was committed by then.
    #[arg(long, value_name = "TIME", conflicts_with = "txid")]
    at: Option<At>,
    /// As of this transaction.
    #[arg(long, value_name = "N")]
    txid: Option<u64>,
    /// Prints an array of objects. BLOBs are hexadecimal.
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Prints comma-separated values with a header. BLOBs are hexadecimal, NULL is empty, an empty text is "".
    #[arg(long)]
    csv: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if let Some(note) = arguments.at.and_then(|at| at.note()) {
        writeln!(std::io::stderr(), "replvfs: {note}")?;
    }
    let connection = open(arguments)?;
    query(&connection, arguments).map_err(|error| explained(&connection, error))
}

fn open(arguments: &Arguments) -> Result<Connection, Failure> {
    replvfs::register(arguments.replica.file.to_config())?;
    let which = &arguments.replica.replica;
    let mut uri = match which.contains("://") {
        true => format!(
            "file:replica.db?vfs=replvfs-remote&replica={}",
            utf8_percent_encode(which, NON_ALPHANUMERIC)
        ),
        false => format!(
            "file:{}?vfs=replvfs-remote",
            utf8_percent_encode(path_of(which)?.as_str(), NON_ALPHANUMERIC)
        ),
    };
    if let Some(at) = arguments.at {
        uri.push_str("&at=");
        uri.extend(utf8_percent_encode(&show_time(at.time), NON_ALPHANUMERIC));
    }
    if let Some(txid) = arguments.txid {
        uri.push_str(&format!("&txid={txid}"));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri, flags).map_err(|error| match replvfs::last_open_error() {
        Some(reason) => reason.into(),
        None => error.into(),
    })
}

/// The name by which the configuration knows a database.
fn path_of(database: &str) -> Result<String, Failure> {
    let path = std::path::absolute(database)?;
    path.into_os_string()
        .into_string()
        .map_err(|_| "the current folder's name is not UTF-8".into())
}

/// SQLite only says that a page cannot be read.
fn explained(connection: &Connection, error: Failure) -> Failure {
    let is_io = error
        .downcast_ref::<rusqlite::Error>()
        .and_then(rusqlite::Error::sqlite_error_code)
        .is_some_and(|code| code == rusqlite::ErrorCode::SystemIoFailure);
    if !is_io {
        return error;
    }
    let status = connection.query_row("PRAGMA replvfs_status", [], |row| row.get::<_, String>(0));
    let status = status
        .ok()
        .and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    match status.as_ref().and_then(|status| status["last_error"].as_str()) {
        Some(reason) => format!("{error}: {reason}").into(),
        None => error,
    }
}

fn query(connection: &Connection, arguments: &Arguments) -> Result<(), Failure> {
    let mut statement = connection.prepare(&arguments.sql)?;
    let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut show: Box<dyn Show + '_> = match (arguments.json, arguments.csv) {
        (true, _) => Box::new(Json::new(out, &names)),
        (false, true) => Box::new(Csv::new(out, &names)),
        (false, false) => Box::new(Table::new(out, &names)),
    };
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let values = (0..names.len()).map(|column| row.get_ref(column));
        show.row(&values.collect::<Result<Vec<_>, _>>()?)?;
    }
    Ok(show.end()?)
}
