//! `replvfs image`: an image of the newest state, out of the replica itself.

use std::io::Write;
use std::path::PathBuf;

use replvfs::image::{ImageError, make};
use serde::Serialize;

use crate::generation::GenerationArgument;
use crate::replica::ReplicaArgument;
use crate::{Failure, about};

/// Makes an image of the newest state, for a replica whose writer is not there to make one.
///
/// The state is restored to a temporary file, and what the newest image does not have is sent. A writer may be at work meanwhile.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    replica: ReplicaArgument,
    /// In this generation instead of the newest one.
    #[arg(long, value_name = "G")]
    generation: Option<GenerationArgument>,
    /// Where the temporary file is made, which is as large as the database.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Prints what was made as JSON.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints. Fields are added, never changed.
#[derive(Serialize)]
struct Report {
    generation: String,
    txid: u64,
    new: bool,
    bytes: u64,
    chunks: usize,
    chunks_sent: usize,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    // It writes, but only to a replica that is there.
    let store = arguments.replica.open()?;
    let folder = arguments.folder.clone().unwrap_or_else(std::env::temp_dir);
    let generation = arguments.generation.map(|generation| generation.0);
    let made = make(&store, generation, &folder).await.map_err(|error| match error {
        ImageError::Temporary(_) => error.into(),
        error => about(&store)(error),
    })?;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let report = Report {
            generation: made.generation.to_string(),
            txid: made.txid.0,
            new: made.is_new,
            bytes: made.bytes,
            chunks: made.chunks,
            chunks_sent: made.sent,
        };
        serde_json::to_writer(&mut out, &report).map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        writeln!(
            out,
            "image of transaction {} in generation {}: {}, {} of {} chunks were sent{}",
            made.txid,
            made.generation,
            indicatif::HumanBytes(made.bytes),
            made.sent,
            made.chunks,
            if made.is_new { "" } else { "; it was there already" },
        )?;
    }
    Ok(())
}
