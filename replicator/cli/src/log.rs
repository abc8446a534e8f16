//! `replvfs log`: the transactions in a replica.

use std::collections::VecDeque;
use std::io::Write;

use indicatif::HumanBytes;
use replvfs::format::Generation;
use replvfs::history::{GenerationHistory, History, LogEntry, Reach};
use replvfs::time::show;
use replvfs_vfs::types::Txid;
use serde::Serialize;

use crate::generation::GenerationArgument;
use crate::replica::ReplicaArgument;
use crate::{Failure, about};

/// Lists the transactions that are in a replica, oldest first.
///
/// They are in generations: each begins with an image, and follows from the one that it left. A transaction can be restored with
/// `replvfs restore --txid`, if it is not marked: what is before the first image of its generation cannot. Where
/// two generations have one of the same number, `--generation` says which is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    replica: ReplicaArgument,
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
    newest_image_at: Option<String>,
    left_by: Vec<ParentReport>,
    /// It was ended: its writer is fenced.
    sealed_at: Option<String>,
    segments: u64,
    segment_bytes: u64,
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
    bytes_written: u64,
    database_bytes: u64,
    restorable: bool,
    /// The object that it is in, with its neighbours.
    segment: String,
    segment_bytes: u64,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let store = arguments.replica.open()?;
    let history = History::open(&store).await.map_err(about(&store))?;
    let listed = list(&history, arguments).await.map_err(about(&store))?;
    let reaches = history.reaches().await.map_err(about(&store))?;
    let reach = |generation| reaches.iter().find(|reach| reach.generation == number(generation));

    let mut out = std::io::stdout().lock();
    if arguments.json {
        let report = Report {
            database_id: history.meta().database_id.to_string(),
            generations: listed
                .iter()
                .filter_map(|(generation, entries)| Some(report(generation, reach(generation)?, entries)))
                .collect(),
            warnings: history.warnings().to_vec(),
        };
        serde_json::to_writer_pretty(&mut out, &report).map_err(std::io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    for (generation, entries) in &listed {
        if let Some(reach) = reach(generation) {
            print(&mut out, generation, reach, entries)?;
        }
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

/// Without an image before it there is nothing to apply it to.
fn is_restorable(generation: &GenerationHistory, txid: Txid) -> bool {
    generation.images().first().is_some_and(|image| *image <= txid)
}

fn bytes(generation: &GenerationHistory, pages: u32) -> u64 {
    u64::from(generation.meta().page_size) * u64::from(pages)
}

fn report(generation: &GenerationHistory, reach: &Reach, entries: &VecDeque<LogEntry>) -> GenerationReport {
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
        newest_image_at: reach.image.map(|image| show(image.at)),
        left_by: reach
            .left_by
            .iter()
            .map(|(generation, txid)| ParentReport {
                generation: generation.to_string(),
                txid: txid.0,
            })
            .collect(),
        sealed_at: reach.sealed_at.map(show),
        segments: reach.log.objects,
        segment_bytes: reach.log.bytes,
        transactions: entries
            .iter()
            .map(|entry| TransactionReport {
                txid: entry.txid.0,
                committed_at: show(entry.committed_at),
                pages_written: entry.pages,
                database_pages: entry.page_count,
                bytes_written: bytes(generation, entry.pages),
                database_bytes: bytes(generation, entry.page_count),
                restorable: is_restorable(generation, entry.txid),
                segment: entry.segment.path(),
                segment_bytes: entry.stored_bytes,
            })
            .collect(),
    }
}

fn print(
    out: &mut impl Write,
    generation: &GenerationHistory,
    reach: &Reach,
    entries: &VecDeque<LogEntry>,
) -> std::io::Result<()> {
    let meta = generation.meta();
    // The writer's name comes from the store: nothing in it may move the terminal's cursor.
    let writer: String = meta.writer.chars().filter(|c| !c.is_control()).collect();
    writeln!(out, "generation {}", meta.generation)?;
    writeln!(
        out,
        "  begun {}, {} bytes a page",
        show(meta.created_at),
        meta.page_size
    )?;
    writeln!(out, "  by {writer}")?;
    if let Some(parent) = meta.parent {
        writeln!(
            out,
            "  follows generation {} at transaction {}",
            parent.generation, parent.txid
        )?;
    }
    print_images(out, generation, reach)?;
    let (objects, size) = (reach.log.objects, HumanBytes(reach.log.bytes));
    writeln!(
        out,
        "  {objects} {}, {size}",
        if objects == 1 { "segment" } else { "segments" }
    )?;
    for (child, txid) in &reach.left_by {
        writeln!(out, "  left by generation {child} at transaction {txid}")?;
    }
    if let Some(sealed_at) = reach.sealed_at {
        writeln!(out, "  ended {}", show(sealed_at))?;
    }
    if entries.is_empty() {
        return writeln!(out, "  no transactions");
    }
    writeln!(
        out,
        "  {:>12}  {:<24}  {:>8}  {:>11}  {:>11}",
        "txid", "committed", "pages", "written", "database"
    )?;
    for entry in entries {
        let (txid, committed) = (entry.txid.0, show(entry.committed_at));
        let size = |pages| HumanBytes(bytes(generation, pages)).to_string();
        let mark = if is_restorable(generation, entry.txid) {
            ""
        } else {
            "  not restorable"
        };
        writeln!(
            out,
            "  {txid:>12}  {committed:<24}  {:>8}  {:>11}  {:>11}{mark}",
            entry.pages,
            size(entry.pages),
            size(entry.page_count)
        )?;
    }
    Ok(())
}

fn print_images(out: &mut impl Write, generation: &GenerationHistory, reach: &Reach) -> std::io::Result<()> {
    let taken = reach.image.map(|newest| format!(", taken {}", show(newest.at)));
    let taken = taken.unwrap_or_default();
    match generation.images() {
        [] => writeln!(out, "  no image: it cannot be restored from"),
        [image] => writeln!(out, "  image at transaction {image}{taken}"),
        images @ [first, .., last] => {
            let count = images.len();
            writeln!(
                out,
                "  {count} images from transaction {first} on, the newest at {last}{taken}"
            )
        }
    }
}
