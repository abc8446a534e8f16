//! `replvfs verify --against`: whether a database on this machine is what the replica says it is.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount};
use replvfs::verify::against::{AgainstError, AgainstOptions, Compared, Outcome, PAGES_TOLD, TiedBy, against};
use serde::Serialize;

use super::{Arguments, FINDINGS, FindingReport, local, spinner};
use crate::{Failure, about};

/// What `--json` prints. Fields are added, never changed.
#[derive(Serialize)]
struct Report {
    good: bool,
    findings: Vec<FindingReport>,
    against: AgainstReport,
}

#[derive(Serialize)]
struct AgainstReport {
    database: String,
    /// `equal`, `different`, `ahead`, or `unreadable`.
    outcome: &'static str,
    generation: String,
    txid: u64,
    /// `wal`, `state_file`, `first_page`, or `newest`.
    tied_by: &'static str,
    /// A process replicates the database at this moment.
    owned: bool,
    /// Of a database that is ahead, where that is known.
    ahead_by: Option<u64>,
    pages: u32,
    replica_pages: u32,
    differing_pages: u64,
    differing: Vec<PageReport>,
}

#[derive(Serialize)]
struct PageReport {
    page: u32,
    from: Option<String>,
}

pub(super) async fn run(arguments: &Arguments, database: &Path) -> Result<ExitCode, Failure> {
    let store = arguments.replica.open()?;
    let timeout = Duration::from_secs(arguments.timeout);
    let bar = spinner();
    let options = AgainstOptions {
        timeout,
        progress: Some(Arc::new({
            let bar = bar.clone();
            move |progress| {
                bar.set_message(format!("{}", HumanBytes(progress.image_bytes + progress.log_bytes)));
            }
        })),
    };
    let path = database.to_owned();
    let read = Arc::new(move || local::read(&path, timeout));
    let compared = against(&store, database, read, &options).await;
    bar.finish_and_clear();
    let compared = compared.map_err(|error| match error {
        // These speak of local files.
        AgainstError::Local { .. } | AgainstError::State(_) => error.into(),
        error => about(&store)(error),
    })?;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &report(&compared, database)).map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&mut out, &compared, database)?;
    }
    out.flush()?;
    Ok(match compared.outcome {
        Outcome::Equal => ExitCode::SUCCESS,
        _ => ExitCode::from(FINDINGS),
    })
}

fn report(compared: &Compared, database: &Path) -> Report {
    let (outcome, ahead_by) = match compared.outcome {
        Outcome::Equal => ("equal", None),
        Outcome::Different => ("different", None),
        Outcome::Ahead(by) => ("ahead", by),
        _ => ("unreadable", None),
    };
    let pages = compared.pages.iter().map(|page| PageReport {
        page: page.page.get(),
        from: page.from.map(|key| key.path()),
    });
    Report {
        good: compared.outcome == Outcome::Equal,
        findings: compared.findings.iter().map(FindingReport::of).collect(),
        against: AgainstReport {
            database: database.display().to_string(),
            outcome,
            generation: compared.generation.to_string(),
            txid: compared.txid.0,
            tied_by: match compared.tied_by {
                TiedBy::Wal => "wal",
                TiedBy::StateFile => "state_file",
                TiedBy::FirstPage => "first_page",
                _ => "newest",
            },
            owned: compared.owned,
            ahead_by,
            pages: compared.page_count,
            replica_pages: compared.replica_page_count,
            differing_pages: compared.differing,
            differing: pages.collect(),
        },
    }
}

fn print(out: &mut impl Write, compared: &Compared, database: &Path) -> std::io::Result<()> {
    let Compared { generation, txid, .. } = compared;
    let shown = database.display();
    match &compared.outcome {
        Outcome::Ahead(by) => return print_ahead(out, compared, database, *by),
        Outcome::Equal | Outcome::Different => {}
        _ => {
            for finding in &compared.findings {
                let problem = finding.problem.replace(char::is_control, " ");
                writeln!(out, "{}: {problem}; cannot be read: {}", finding.object, finding.lost)?;
            }
            return writeln!(out, "{shown} was not compared");
        }
    }
    let why = match compared.tied_by {
        TiedBy::Wal => "where its WAL ends",
        TiedBy::StateFile => "as noted beside it",
        TiedBy::FirstPage => "by its counter of changes",
        _ => "the newest: nothing tells at which one it is",
    };
    writeln!(
        out,
        "compared: {} pages of {shown} with transaction {txid} of generation {generation} ({why})",
        HumanCount(compared.page_count.into())
    )?;
    for page in &compared.pages {
        match page.from {
            Some(key) => writeln!(out, "page {} differs: the replica has it from {key}", page.page)?,
            None => writeln!(out, "page {} differs: in the replica it is zeros", page.page)?,
        }
    }
    if compared.differing > PAGES_TOLD as u64 {
        writeln!(out, "and {} more", HumanCount(compared.differing - PAGES_TOLD as u64))?;
    }
    if compared.page_count != compared.replica_page_count {
        writeln!(
            out,
            "the database has {} pages, the replica {}",
            compared.page_count, compared.replica_page_count
        )?;
    }
    let both = compared.page_count.min(compared.replica_page_count);
    if compared.differing * 2 > u64::from(both) && compared.tied_by == TiedBy::Newest {
        writeln!(
            out,
            "most pages differ: it may be another database, or a much older state of this one"
        )?;
    }
    match compared.outcome {
        Outcome::Equal => writeln!(out, "every page is the replica's"),
        _ => writeln!(out, "{} differing pages", HumanCount(compared.differing)),
    }
}

fn print_ahead(out: &mut impl Write, compared: &Compared, database: &Path, by: Option<u64>) -> std::io::Result<()> {
    let Compared { generation, txid, .. } = compared;
    let ahead = match by {
        Some(1) => "1 transaction".to_owned(),
        Some(by) => format!("{} transactions", HumanCount(by)),
        None => "some transactions".to_owned(),
    };
    let what = match compared.owned {
        true => "the process that replicates it did not upload them in time",
        false => "no process replicates it now: they are uploaded when it is opened with replvfs",
    };
    writeln!(
        out,
        "the replica ends at transaction {txid} of generation {generation}, {} is ahead by {ahead}; {what}",
        database.display()
    )
}
