//! `replvfs merge`: the log of a replica as fewer and smaller objects.

use std::io::Write;

use replvfs::merge::{MergeOptions, Merged, merge};
use serde::Serialize;

use crate::generation::GenerationArgument;
use crate::replica::ReplicaArgument;
use crate::{Failure, about};

/// Merges what a replica has of a database's transactions into fewer and smaller objects. Each transaction can be restored as before.
///
/// It may run beside the process that replicates the database, on any machine. It deletes nothing: `replvfs prune` removes what was merged.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    replica: ReplicaArgument,
    /// The transactions of this generation only.
    #[arg(long, value_name = "G")]
    generation: Option<GenerationArgument>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints. Fields are added, never changed.
#[derive(Serialize)]
struct Report {
    spans: Vec<SpanReport>,
    objects_before: u64,
    bytes_before: u64,
    objects_after: u64,
    bytes_after: u64,
}

#[derive(Serialize)]
struct SpanReport {
    object: String,
    merged_objects: u64,
    merged_bytes: u64,
    bytes: u64,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let store = arguments.replica.open()?;
    let generation = arguments.generation.map(|generation| generation.0);
    let merged = merge(&store, generation, &MergeOptions::default())
        .await
        .map_err(about(&store))?;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &report(&merged)).map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&mut out, &merged)?;
    }
    out.flush()?;
    Ok(())
}

fn report(merged: &Merged) -> Report {
    Report {
        spans: merged
            .spans
            .iter()
            .map(|span| SpanReport {
                object: span.key.path(),
                merged_objects: span.pieces,
                merged_bytes: span.piece_bytes,
                bytes: span.bytes,
            })
            .collect(),
        objects_before: merged.before.objects,
        bytes_before: merged.before.bytes,
        objects_after: merged.after.objects,
        bytes_after: merged.after.bytes,
    }
}

fn print(out: &mut impl Write, merged: &Merged) -> std::io::Result<()> {
    if merged.spans.is_empty() {
        return writeln!(out, "nothing to merge");
    }
    let bytes = indicatif::HumanBytes;
    for span in &merged.spans {
        writeln!(
            out,
            "{}: {} objects, {}, as one of {}",
            span.key,
            span.pieces,
            bytes(span.piece_bytes),
            bytes(span.bytes)
        )?;
    }
    writeln!(
        out,
        "the transactions were {} objects, {}; they are {} now, {}. `replvfs prune` removes what was merged",
        merged.before.objects,
        bytes(merged.before.bytes),
        merged.after.objects,
        bytes(merged.after.bytes)
    )
}
