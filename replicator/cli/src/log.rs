//! `replvfs log`: the transactions in a replica.

use std::collections::VecDeque;
use std::io::Write;

use replvfs::format::Generation;
use replvfs::history::{GenerationHistory, History, LogEntry};
use replvfs::store::{Store, StoreOptions};
use replvfs_vfs::types::Txid;
use serde::Serialize;

use crate::generation::GenerationArgument;
use crate::time::show;
use crate::{Failure, about};

/// Lists the transactions that are in a replica, oldest first.
///
/// Each can be restored with `replvfs restore --txid`, those of older generations with `--generation` too.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where the history is, as a URI.
    replica: String,
    /// Those of this generation only.
    #[arg(long, value_name = "G")]
    generation: Option<GenerationArgument>,
    /// The newest N only.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints. Fields are added, never changed.
#[derive(Serialize)]
struct Report {
    database_id: String,
    generations: Vec<GenerationReport>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct GenerationReport {
    generation: String,
    parent: Option<ParentReport>,
    created_at: String,
    writer: String,
    page_size: u32,
    images: Vec<u64>,
    transactions: Vec<TransactionReport>,
}

#[derive(Serialize)]
struct ParentReport {
    generation: String,
    txid: u64,
}

#[derive(Serialize)]
struct TransactionReport {
    txid: u64,
    committed_at: String,
    pages_written: u32,
    database_pages: u32,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let store = Store::open(&arguments.replica, &StoreOptions::reading())?;
    let history = History::open(&store).await.map_err(about(&store))?;
    let listed = list(&history, arguments).await.map_err(about(&store))?;

    let mut out = std::io::stdout().lock();
    if arguments.json {
        let report = Report {
            database_id: history.meta().database_id.to_string(),
            generations: listed
                .iter()
                .map(|(generation, entries)| report(generation, entries))
                .collect(),
            warnings: history.warnings().to_vec(),
        };
        serde_json::to_writer_pretty(&mut out, &report).map_err(std::io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    for (generation, entries) in &listed {
        print(&mut out, generation, entries)?;
    }
    out.flush()?;
    for warning in history.warnings() {
        writeln!(std::io::stderr(), "replvfs: {warning}")?;
    }
    Ok(())
}

type Listed<'a> = Vec<(&'a GenerationHistory, VecDeque<LogEntry>)>;

/// The generations that were asked for, oldest first, with their transactions. Older ones are not
/// read when the limit is reached before.
async fn list<'a>(history: &'a History, arguments: &Arguments) -> Result<Listed<'a>, Failure> {
    let mut remaining = arguments.limit.unwrap_or(usize::MAX);
    let wanted = arguments.generation.map(|generation| generation.0);
    if let Some(wanted) = wanted
        && !history
            .generations()
            .iter()
            .any(|generation| number(generation) == wanted)
    {
        return Err(format!(
            "generation {wanted} is not in the replica; `replvfs log` without --generation shows what is"
        )
        .into());
    }
    let mut listed = Vec::new();
    for generation in history.generations().iter().rev() {
        if wanted.is_some_and(|wanted| number(generation) != wanted) {
            continue;
        }
        if remaining == 0 {
            break;
        }
        let mut entries = VecDeque::new();
        history
            .transactions(number(generation), Txid::ZERO..=Txid(u64::MAX), |entry| {
                if entries.len() == remaining {
                    entries.pop_front();
                }
                entries.push_back(entry);
            })
            .await?;
        remaining -= entries.len();
        listed.push((generation, entries));
    }
    listed.reverse();
    Ok(listed)
}

fn number(generation: &GenerationHistory) -> Generation {
    generation.meta().generation
}

fn report(generation: &GenerationHistory, entries: &VecDeque<LogEntry>) -> GenerationReport {
    let meta = generation.meta();
    GenerationReport {
        generation: meta.generation.to_string(),
        parent: meta.parent.map(|parent| ParentReport {
            generation: parent.generation.to_string(),
            txid: parent.txid.0,
        }),
        created_at: show(meta.created_at),
        writer: meta.writer.clone(),
        page_size: meta.page_size,
        images: generation.images().iter().map(|txid| txid.0).collect(),
        transactions: entries
            .iter()
            .map(|entry| TransactionReport {
                txid: entry.txid.0,
                committed_at: show(entry.committed_at),
                pages_written: entry.pages,
                database_pages: entry.page_count,
            })
            .collect(),
    }
}

fn print(out: &mut impl Write, generation: &GenerationHistory, entries: &VecDeque<LogEntry>) -> std::io::Result<()> {
    let meta = generation.meta();
    // The writer's name comes from the store: nothing in it may move the terminal's cursor.
    let writer: String = meta.writer.chars().filter(|c| !c.is_control()).collect();
    writeln!(out, "generation {}", meta.generation)?;
    writeln!(
        out,
        "  begun {} by {writer}, {} bytes a page",
        show(meta.created_at),
        meta.page_size
    )?;
    if let Some(parent) = meta.parent {
        writeln!(
            out,
            "  follows generation {} at transaction {}",
            parent.generation, parent.txid
        )?;
    }
    let images: Vec<String> = generation.images().iter().map(Txid::to_string).collect();
    match images.as_slice() {
        [] => writeln!(out, "  no image: it cannot be restored from")?,
        images => writeln!(out, "  image at transaction {}", images.join(", "))?,
    }
    if entries.is_empty() {
        return writeln!(out, "  no transactions");
    }
    writeln!(
        out,
        "  {:>12}  {:<24}  {:>13}  {:>14}",
        "txid", "committed", "pages written", "database pages"
    )?;
    for entry in entries {
        let (txid, committed) = (entry.txid.0, show(entry.committed_at));
        writeln!(
            out,
            "  {txid:>12}  {committed:<24}  {:>13}  {:>14}",
            entry.pages, entry.page_count
        )?;
    }
    Ok(())
}
