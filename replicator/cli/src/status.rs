//! `replvfs status` of a database: what this machine knows of its replication, without opening it. Leaves a replica's to
//! [`replica_status`](crate::replica_status).

use std::io::Write;
use std::path::{Path, PathBuf};

use replvfs::format::LocalState;
use replvfs::local_state::{is_owned, read, state_file};
use replvfs_vfs::resume::Next;
use serde::Serialize;

use crate::replica::FileArgument;
use crate::{Failure, replica_status};

/// Tells how far a replica goes, or what is known beside a database.
///
/// Of a replica: the newest transaction and its age, images, generations, and what all of it takes, for which all objects are listed. Of a
/// database's file: what is remembered beside it, and whether a process replicates it; two small files are read and nothing else. What that
/// process itself knows is in `PRAGMA replvfs_status`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The URI of a replica, or the file of a database.
    #[arg(value_name = "REPLICA|DATABASE")]
    of: String,
    #[command(flatten)]
    file: FileArgument,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints. Fields are added, never changed.
#[derive(Serialize)]
struct Report {
    database: String,
    /// A process replicates it at this moment.
    owned: bool,
    state: Option<StateReport>,
}

#[derive(Serialize)]
struct StateReport {
    replica: String,
    database_id: String,
    generation: String,
    page_size: u32,
    txid: u64,
    wal_ended: Option<EndReport>,
    /// Another machine has taken over.
    fenced: bool,
}

#[derive(Serialize)]
struct EndReport {
    txid: u64,
    followed_by: &'static str,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.of.contains("://") {
        return replica_status::run(arguments.file.open(&arguments.of)?, arguments.json).await;
    }
    let database = &PathBuf::from(&arguments.of);
    let owned = is_owned(database)?;
    let state = read(&state_file(database))?;
    if !owned && state.is_none() && !database.exists() {
        return Err(format!("{}: there is no such file", database.display()).into());
    }
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &report(database, owned, state.as_ref()))?;
        writeln!(out)?;
        return Ok(());
    }
    print(&mut out, database, owned, state.as_ref())?;
    Ok(())
}

fn followed_by(next: Next) -> &'static str {
    match next {
        Next::Wal(_) => "wal",
        Next::File(_) => "file",
    }
}

fn report(database: &Path, owned: bool, state: Option<&LocalState>) -> Report {
    Report {
        database: database.display().to_string(),
        owned,
        state: state.map(|state| StateReport {
            replica: state.replica.clone(),
            database_id: state.database_id.to_string(),
            generation: state.generation.to_string(),
            page_size: state.page_size.get(),
            txid: state.stored.txid.0,
            wal_ended: state.left.map(|left| EndReport {
                txid: left.mark.txid.0,
                followed_by: followed_by(left.next),
            }),
            fenced: state.fenced,
        }),
    }
}

fn print(out: &mut impl Write, database: &Path, owned: bool, state: Option<&LocalState>) -> std::io::Result<()> {
    let mut row = |name: &str, value: &str| {
        // Some of it was read from a file: nothing in it may move the terminal's cursor.
        let value: String = value.chars().filter(|c| !c.is_control()).collect();
        writeln!(out, "{name:<12}  {value}")
    };
    row("database", &database.display().to_string())?;
    row(
        "replicated",
        if owned {
            "by a running process"
        } else {
            "by no process now"
        },
    )?;
    let Some(state) = state else {
        return row("replica", "none is known on this machine");
    };
    row("replica", &state.replica)?;
    row("database id", &state.database_id.to_string())?;
    row("generation", &state.generation.to_string())?;
    row("stored", &format!("up to transaction {}", state.stored.txid))?;
    if state.fenced {
        row(
            "fenced",
            "another machine has taken over: restore the database to go on here",
        )?;
    }
    match state.left.map(|left| (left.mark.txid, left.next)) {
        None => Ok(()),
        Some((txid, Next::Wal(_))) => row("WAL ended", &format!("with transaction {txid}; another one followed")),
        Some((txid, Next::File(_))) => row("WAL ended", &format!("with transaction {txid}; the file has all of it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_said() {
        let mut out = Vec::new();
        print(&mut out, Path::new("/srv/\x1bapp.db"), false, None).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("by no process") && text.contains("none is known"),
            "{text}"
        );
        assert!(!text.contains('\x1b'));
        let report = serde_json::to_value(report(Path::new("app.db"), true, None)).unwrap();
        assert_eq!(report["owned"], true);
        assert!(report["state"].is_null());
    }
}
