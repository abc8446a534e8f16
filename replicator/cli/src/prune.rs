//! `replvfs prune`: deletes what no restore inside of the retention window needs.

use std::io::Write;
use std::time::{Duration, SystemTime};

use replvfs::config::Retention;
use replvfs::prune::{GRACE, PruneOptions, Pruned, prune};
use replvfs_vfs::types::UnixMillis;
use serde::Serialize;

use crate::replica::ReplicaArgument;
use crate::{Failure, about};

/// Deletes what is older than the retention window, and what is in a replica twice or not used at all.
///
/// The process that replicates a database does the same now and then. It may run beside that one, on any machine, and be stopped at any time.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    replica: ReplicaArgument,
    /// How far back every state must stay restorable: such as 12h, 7d, or forever. At least 1m.
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = retention)]
    retention: Retention,
    /// Says what would be deleted, and deletes nothing.
    #[arg(long)]
    dry_run: bool,
    /// How long what is not needed any more stays. Less than the default, 24h, is safe only when nobody reads or writes the replica meanwhile.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    grace: Option<Duration>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    replvfs::config::parse_duration(text).ok_or_else(|| "write a whole number with ms, s, m, h or d".to_owned())
}

fn retention(text: &str) -> Result<Retention, String> {
    match text {
        "forever" => Ok(Retention::Forever),
        _ => match duration(text)? {
            length if length < Duration::from_secs(60) => Err("1m is the least".to_owned()),
            length => Ok(Retention::For(length)),
        },
    }
}

/// What `--json` prints. Fields are added, never changed.
#[derive(Serialize)]
struct Report {
    dry_run: bool,
    objects: usize,
    bytes: u64,
    deletions: Vec<DeletionReport>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct DeletionReport {
    object: String,
    bytes: u64,
    reason: String,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let store = arguments.replica.open()?;
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let options = PruneOptions {
        retention: arguments.retention,
        grace: arguments.grace.unwrap_or(GRACE),
        dry_run: arguments.dry_run,
        ..PruneOptions::at(UnixMillis(i64::try_from(since_epoch.as_millis())?))
    };
    let pruned = prune(&store, &options).await.map_err(about(&store))?;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &report(&pruned, options.dry_run)).map_err(std::io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    print(&mut out, &pruned, options.dry_run)?;
    out.flush()?;
    for warning in &pruned.warnings {
        writeln!(std::io::stderr(), "replvfs: {warning}")?;
    }
    Ok(())
}

fn report(pruned: &Pruned, dry_run: bool) -> Report {
    let deletions = pruned.deletions.iter().map(|deletion| DeletionReport {
        object: deletion.key.path(),
        bytes: deletion.len,
        reason: deletion.reason.to_string(),
    });
    Report {
        dry_run,
        objects: pruned.deletions.len(),
        bytes: pruned.bytes(),
        deletions: deletions.collect(),
        warnings: pruned.warnings.clone(),
    }
}

fn print(out: &mut impl Write, pruned: &Pruned, dry_run: bool) -> std::io::Result<()> {
    if pruned.deletions.is_empty() {
        return writeln!(out, "nothing to delete");
    }
    for deletion in &pruned.deletions {
        let bytes = indicatif::HumanBytes(deletion.len);
        writeln!(out, "{}: {bytes}, {}", deletion.key, deletion.reason)?;
    }
    let (objects, bytes) = (pruned.deletions.len(), indicatif::HumanBytes(pruned.bytes()));
    match dry_run {
        true => writeln!(out, "{objects} objects would be deleted, {bytes}"),
        false => writeln!(out, "{objects} objects were deleted, {bytes}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_read() {
        assert_eq!(retention("forever"), Ok(Retention::Forever));
        assert_eq!(retention("12h"), Ok(Retention::For(Duration::from_secs(43_200))));
        for wrong in ["", "7", "59s", "-1d", "for ever"] {
            assert!(retention(wrong).is_err(), "{wrong}");
        }
    }
}
