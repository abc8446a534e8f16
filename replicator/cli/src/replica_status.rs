//! `replvfs status` of a replica: how far it goes, and what it takes.

use std::io::{self, Write};
use std::time::SystemTime;

use indicatif::HumanBytes;
use replvfs::history::{Count, History, Moment, Objects, Reach};
use replvfs::store::Store;
use replvfs::time::{show, show_age};
use replvfs_vfs::types::UnixMillis;
use serde::Serialize;

use crate::{Failure, about};

/// What `--json` prints. Fields are added, never changed.
#[derive(Serialize)]
struct Report {
    replica: String,
    database_id: String,
    newest: Option<MomentReport>,
    /// How long ago that was committed, by this machine's clock. Less than nothing where that is behind.
    newest_age_seconds: Option<i64>,
    newest_image: Option<MomentReport>,
    generations: Vec<GenerationReport>,
    objects: serde_json::Map<String, serde_json::Value>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct MomentReport {
    generation: String,
    txid: u64,
    at: String,
}

#[derive(Serialize)]
struct GenerationReport {
    generation: String,
    parent: Option<ParentReport>,
    created_at: String,
    writer: String,
    restorable: bool,
    images: usize,
    newest_image: Option<MomentReport>,
    newest: Option<MomentReport>,
    /// It was ended: its writer is fenced.
    sealed_at: Option<String>,
    segments: u64,
    segment_bytes: u64,
}

#[derive(Serialize)]
struct ParentReport {
    generation: String,
    txid: u64,
}

struct Found {
    replica: String,
    history: History,
    reaches: Vec<Reach>,
    objects: Objects,
    now: UnixMillis,
}

impl Found {
    /// The newest generation that can be restored from.
    fn newest(&self) -> Option<&Reach> {
        self.reaches.iter().rev().find(|reach| reach.image.is_some())
    }
}

pub(crate) async fn run(store: Store, json: bool) -> Result<(), Failure> {
    let history = History::open(&store).await.map_err(about(&store))?;
    let found = Found {
        replica: store.replica().to_owned(),
        reaches: history.reaches().await.map_err(about(&store))?,
        objects: history.objects().await.map_err(about(&store))?,
        history,
        now: now(),
    };
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &report(&found)).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&mut out, &found)?;
    }
    Ok(())
}

fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn moment(reach: &Reach, moment: Option<Moment>) -> Option<MomentReport> {
    moment.map(|moment| MomentReport {
        generation: reach.generation.to_string(),
        txid: moment.txid.0,
        at: show(moment.at),
    })
}

fn report(found: &Found) -> Report {
    let newest = found.newest();
    let of = |count: Count| serde_json::json!({ "objects": count.objects, "bytes": count.bytes });
    Report {
        replica: found.replica.clone(),
        database_id: found.history.meta().database_id.to_string(),
        newest: newest.and_then(|reach| moment(reach, reach.newest)),
        newest_age_seconds: newest
            .and_then(|reach| reach.newest)
            .map(|newest| (found.now.0 - newest.at.0) / 1000),
        newest_image: newest.and_then(|reach| moment(reach, reach.image)),
        generations: found
            .history
            .generations()
            .iter()
            .zip(&found.reaches)
            .map(|(generation, reach)| {
                let meta = generation.meta();
                GenerationReport {
                    generation: meta.generation.to_string(),
                    parent: meta.parent.map(|parent| ParentReport {
                        generation: parent.generation.to_string(),
                        txid: parent.txid.0,
                    }),
                    created_at: show(meta.created_at),
                    writer: meta.writer.clone(),
                    restorable: reach.image.is_some(),
                    images: generation.images().len(),
                    newest_image: moment(reach, reach.image),
                    newest: moment(reach, reach.newest),
                    sealed_at: reach.sealed_at.map(show),
                    segments: reach.log.objects,
                    segment_bytes: reach.log.bytes,
                }
            })
            .collect(),
        objects: found
            .objects
            .by_kind()
            .into_iter()
            .map(|(kind, count)| (kind.to_owned(), of(count)))
            .collect(),
        warnings: found.history.warnings().to_vec(),
    }
}

fn print(out: &mut impl Write, found: &Found) -> io::Result<()> {
    let mut row = |name: &str, value: &str| writeln!(out, "{name:<12}  {}", printable(value));
    row("replica", &found.replica)?;
    row("database id", &found.history.meta().database_id.to_string())?;
    match found.newest().and_then(|reach| Some((reach, reach.newest?))) {
        None => row("newest", "nothing can be restored yet")?,
        Some((reach, newest)) => {
            let age = show_age(found.now.0 - newest.at.0);
            row(
                "newest",
                &format!("transaction {} of {} ({age})", newest.txid, show(newest.at)),
            )?;
            if let Some(image) = reach.image {
                row("image", &format!("transaction {} of {}", image.txid, show(image.at)))?;
            }
        }
    }
    for (kind, count) in found.objects.by_kind() {
        row(
            kind,
            &format!("{:>9}  {:>11}", count.objects, HumanBytes(count.bytes).to_string()),
        )?;
    }
    writeln!(
        out,
        "\n{:<16}  {:>9}  {:>9}  {:>11}  state",
        "generation", "image", "newest", "segments"
    )?;
    for reach in &found.reaches {
        let txid = |moment: Option<Moment>| moment.map_or_else(|| "-".to_owned(), |moment| moment.txid.to_string());
        let size = HumanBytes(reach.log.bytes).to_string();
        let (image, newest) = (txid(reach.image), txid(reach.newest));
        writeln!(
            out,
            "{:<16}  {image:>9}  {newest:>9}  {size:>11}  {}",
            reach.generation.to_string(),
            state(reach)
        )?;
    }
    for warning in found.history.warnings() {
        writeln!(out, "\nwarning: {}", printable(warning))?;
    }
    Ok(())
}

fn state(reach: &Reach) -> &'static str {
    match (reach.image.is_some(), reach.sealed_at.is_some()) {
        (true, false) => "open",
        (true, true) => "ended",
        (false, false) => "no image",
        (false, true) => "ended, no image",
    }
}

/// Some of it comes from the store: nothing in it may move the terminal's cursor.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}
