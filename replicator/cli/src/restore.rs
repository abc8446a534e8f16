//! `replvfs restore`: a database file out of a replica.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use replvfs::history::Target;
use replvfs::restore::{CheckFn, Progress, RestoreError, RestoreOptions, Restored, restore};
use replvfs::time::{At, show};
use replvfs_vfs::types::Txid;
use serde::Serialize;

use crate::generation::GenerationArgument;
use crate::integrity::integrity_check;
use crate::replica::ReplicaArgument;
use crate::{Failure, about};

/// Writes the database as of a transaction: the newest one unless another is asked for.
///
/// The file is written beside OUT, synced, and renamed when it is whole.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    replica: ReplicaArgument,
    /// The file to write.
    out: PathBuf,
    /// As of this time: RFC 3339, without an offset for UTC, or as "5 minutes ago". The newest transaction that was committed by then.
    #[arg(long, value_name = "TIME", conflicts_with = "txid")]
    at: Option<At>,
    /// As of this transaction.
    #[arg(long, value_name = "N")]
    txid: Option<u64>,
    /// Out of this generation instead of the newest one.
    #[arg(long, value_name = "G")]
    generation: Option<GenerationArgument>,
    /// Runs SQLite's integrity check on what was restored, before it appears at OUT.
    #[arg(long)]
    verify: bool,
    /// Replaces OUT if it exists.
    #[arg(long)]
    force: bool,
    /// Prints what was restored as JSON.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints. Fields are added, never changed.
#[derive(Serialize)]
struct Report {
    generation: String,
    txid: u64,
    committed_at: String,
    pages: u32,
    bytes: u64,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let target = match (arguments.at, arguments.txid) {
        (Some(at), _) => {
            if let Some(note) = at.note() {
                writeln!(std::io::stderr(), "replvfs: {note}")?;
            }
            Target::At(at.time)
        }
        (None, Some(txid)) => Target::Txid(Txid(txid)),
        (None, None) => Target::Newest,
    };
    let store = arguments.replica.open()?;
    let bar = progress_bar();
    let options = RestoreOptions {
        target,
        generation: arguments.generation.map(|generation| generation.0),
        force: arguments.force,
        resumable: true,
        check: arguments.verify.then(|| Arc::new(integrity_check) as CheckFn),
        progress: Some(Arc::new({
            let bar = bar.clone();
            move |progress| show_progress(&bar, progress)
        })),
    };
    let restored = restore(&store, &arguments.out, &options).await;
    bar.finish_and_clear();
    let restored = restored.map_err(|error| match error {
        // These speak of local files only.
        RestoreError::Exists { .. } | RestoreError::Leftover { .. } | RestoreError::File { .. } => error.into(),
        error => about(&store)(error),
    })?;
    for warning in &restored.warnings {
        writeln!(std::io::stderr(), "replvfs: {warning}")?;
    }
    print(arguments, &restored)
}

fn print(arguments: &Arguments, restored: &Restored) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let report = Report {
            generation: restored.generation.to_string(),
            txid: restored.txid.0,
            committed_at: show(restored.committed_at),
            pages: restored.page_count,
            bytes: restored.bytes,
        };
        serde_json::to_writer(&mut out, &report).map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        writeln!(
            out,
            "{}: transaction {} of {}, {} pages, {}",
            arguments.out.display(),
            restored.txid,
            show(restored.committed_at),
            restored.page_count,
            indicatif::HumanBytes(restored.bytes),
        )?;
    }
    Ok(())
}

/// A bar on standard error, if somebody is there to see it.
fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    // The template is a constant; if it were wrong, the default one would do.
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes}, {eta} left {msg}") {
        bar.set_style(style);
    }
    bar
}

fn show_progress(bar: &ProgressBar, progress: Progress) {
    bar.set_length(progress.image_len + progress.log_len);
    bar.set_position(progress.image_bytes + progress.log_bytes);
    bar.set_message(match progress.last {
        _ if progress.image_bytes < progress.image_len => String::new(),
        Some(last) => format!("transaction {}/{last}", progress.txid),
        None => format!("transaction {}", progress.txid),
    });
}
