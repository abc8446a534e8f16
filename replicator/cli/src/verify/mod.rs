//! `replvfs verify`: whether everything can be restored that the replica says it has.

mod against;
mod local;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use replvfs::time::At;
use replvfs::verify::{Finding, Verified, VerifyOptions, verify};
use serde::Serialize;

use crate::generation::GenerationArgument;
use crate::replica::ReplicaArgument;
use crate::{Failure, about};

/// What `verify` ends with when it found something.
const FINDINGS: u8 = 3;

/// Reads everything that restores need, and checks it.
///
/// Damage does not end it: all that is wrong is listed, with what cannot be restored because of it. Nothing is written.
///
/// With --against, only the state is read that a database on this machine has to be, and the two are compared page by page. The database may be in use: it is
/// read as by any reader, for as long as its file takes to be read. What was committed just now is waited for.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 everything can be restored, or each page is the replica's; 1 it could not be verified, with the reason \
    on standard error; 2 wrong usage; 3 something is wrong, and was listed: with --against also a database that has what the replica has not."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    replica: ReplicaArgument,
    /// What restores to this time and later need: RFC 3339, without an offset for UTC, or as "7 days ago".
    #[arg(long, value_name = "TIME", conflicts_with = "all")]
    from: Option<At>,
    /// Everything that is there. The default.
    #[arg(long)]
    all: bool,
    /// This generation only.
    #[arg(long, value_name = "G")]
    generation: Option<GenerationArgument>,
    /// Compares this database with the replica instead of verifying all of that.
    #[arg(long, value_name = "DATABASE", conflicts_with_all = ["from", "all", "generation"])]
    against: Option<PathBuf>,
    /// How many seconds to wait for the database's locks, and for what a process has not uploaded yet.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, requires = "against")]
    timeout: u64,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints. Fields are added, never changed.
#[derive(Serialize)]
struct Report {
    good: bool,
    findings: Vec<FindingReport>,
    generations: Vec<GenerationReport>,
    objects_read: u64,
    bytes_read: u64,
    unreferenced: UnreferencedReport,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct FindingReport {
    object: String,
    problem: String,
    lost: String,
}

#[derive(Serialize)]
struct GenerationReport {
    generation: String,
    images: Vec<u64>,
    last_txid: u64,
}

#[derive(Serialize)]
struct UnreferencedReport {
    chunks: u64,
    segments: u64,
    bytes: u64,
}

impl FindingReport {
    fn of(finding: &Finding) -> FindingReport {
        FindingReport {
            object: finding.object.path(),
            problem: finding.problem.clone(),
            lost: finding.lost.clone(),
        }
    }
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    if let Some(database) = &arguments.against {
        return against::run(arguments, database).await;
    }
    if let Some(note) = arguments.from.and_then(|at| at.note()) {
        writeln!(std::io::stderr(), "replvfs: {note}")?;
    }
    let store = arguments.replica.open()?;
    let bar = spinner();
    let options = VerifyOptions {
        since: arguments.from.map(|at| at.time),
        generation: arguments.generation.map(|generation| generation.0),
        progress: Some(Arc::new({
            let bar = bar.clone();
            move |progress| {
                bar.set_message(format!("{} objects, {}", progress.objects, HumanBytes(progress.bytes)));
            }
        })),
    };
    let verified = verify(&store, &options).await;
    bar.finish_and_clear();
    let verified = verified.map_err(about(&store))?;
    let good = verified.findings.is_empty();
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &report(&verified)).map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&mut out, &verified)?;
    }
    out.flush()?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FINDINGS)
    })
}

fn report(verified: &Verified) -> Report {
    Report {
        good: verified.findings.is_empty(),
        findings: verified.findings.iter().map(FindingReport::of).collect(),
        generations: verified
            .generations
            .iter()
            .map(|found| GenerationReport {
                generation: found.generation.to_string(),
                images: found.images.iter().map(|txid| txid.0).collect(),
                last_txid: found.last.0,
            })
            .collect(),
        objects_read: verified.read.objects,
        bytes_read: verified.read.bytes,
        unreferenced: UnreferencedReport {
            chunks: verified.unreferenced.chunks,
            segments: verified.unreferenced.segments,
            bytes: verified.unreferenced.bytes,
        },
        warnings: verified.warnings.clone(),
    }
}

fn print(out: &mut impl Write, verified: &Verified) -> std::io::Result<()> {
    for found in &verified.generations {
        writeln!(
            out,
            "generation {}: transactions {} to {}, images: {}",
            found.generation,
            found.images.first().copied().unwrap_or_default(),
            found.last,
            found.images.len()
        )?;
    }
    let read = verified.read;
    writeln!(
        out,
        "read: {} objects, {}",
        HumanCount(read.objects),
        HumanBytes(read.bytes)
    )?;
    let idle = verified.unreferenced;
    if idle.bytes > 0 {
        writeln!(
            out,
            "not needed by anything: {} chunks and {} segments, {}",
            HumanCount(idle.chunks),
            HumanCount(idle.segments),
            HumanBytes(idle.bytes)
        )?;
    }
    for finding in &verified.findings {
        // Some of it comes from the store: nothing in it may move the terminal's cursor.
        let problem = finding.problem.replace(char::is_control, " ");
        writeln!(
            out,
            "{}: {problem}; cannot be restored: {}",
            finding.object, finding.lost
        )?;
    }
    match verified.findings.len() {
        0 => writeln!(out, "nothing is wrong")?,
        1 => writeln!(out, "1 finding")?,
        count => writeln!(out, "{count} findings")?,
    }
    for warning in &verified.warnings {
        writeln!(std::io::stderr(), "replvfs: {warning}")?;
    }
    Ok(())
}

/// A line on standard error, if somebody is there to see it.
fn spinner() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    // The template is a constant; if it were wrong, the default one would do.
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}, {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use replvfs::format::{DatabaseId, FORMAT_VERSION, ReplicaMeta};

    async fn code(folder: &std::path::Path, flags: &[&str]) -> Result<ExitCode, Failure> {
        let uri = format!("fs://{}", folder.display());
        let line = ["replvfs", "verify", &uri].into_iter().chain(flags.iter().copied());
        crate::run_command(crate::Arguments::parse_from(line).command).await
    }

    #[tokio::test]
    async fn the_exit_code_tells_what_was_found() {
        let folder = tempfile::tempdir().unwrap();
        assert!(code(folder.path(), &[]).await.is_err());
        let (format, database_id) = (FORMAT_VERSION, DatabaseId([7; 16]));
        let meta = ReplicaMeta { format, database_id }.to_bytes().unwrap();
        std::fs::write(folder.path().join("replvfs.json"), &meta).unwrap();
        for flags in [&[][..], &["--json"], &["--all"], &["--from", "2 days ago"]] {
            assert_eq!(
                code(folder.path(), flags).await.unwrap(),
                ExitCode::SUCCESS,
                "{flags:?}"
            );
        }
        std::fs::write(folder.path().join("replvfs.json"), &meta[1..]).unwrap();
        for flags in [&[][..], &["--json"]] {
            assert_eq!(code(folder.path(), flags).await.unwrap(), ExitCode::from(FINDINGS));
        }
    }

    #[test]
    fn a_report_names_object_and_loss() {
        let mut verified = Verified::default();
        let text = |verified: &Verified| {
            let mut out = Vec::new();
            print(&mut out, verified).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert!(text(&verified).ends_with("nothing is wrong\n"));
        verified.unreferenced.bytes = 5;
        assert!(text(&verified).contains("not needed by anything"));
        let json = serde_json::to_value(report(&verified)).unwrap();
        assert_eq!(
            (&json["good"], &json["unreferenced"]["bytes"]),
            (&true.into(), &5.into())
        );
    }
}
