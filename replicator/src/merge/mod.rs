//! Segments into spans: fewer and smaller objects that say the same.
//!
//! Owns what is merged with what, and the proof that a span has all that its segments have before it is stored. Deletes nothing: what a
//! span stands for is left to whoever deletes.

mod error;
mod read;
mod runs;
mod write;

use std::path::PathBuf;

pub use error::MergeError;
use replvfs_vfs::types::Txid;

use crate::format::{Generation, Key};
use crate::history::path::Piece;
use crate::history::walk::fetch_end;
use crate::history::{GenerationHistory, History, HistoryError, believed, load_generation};
use crate::store::{Created, Store};
use runs::runs;
use write::Span;

/// How much is merged at once. The defaults are right for all but tests.
#[derive(Debug, Clone)]
pub struct MergeOptions {
    /// How many adjacent small segments, or small spans, make it worth while: up to 64 KiB on average. Of larger ones it takes eight times as many.
    /// At least 2. Default: 32.
    pub pieces: usize,
    /// zstd's level. Default: 3. Level 9 makes spans of text some 5 % smaller, and takes several times as long.
    pub level: i32,
    /// Where a span that is large is put until it is stored, in a file without a name. Default: where the system keeps such files.
    pub folder: Option<PathBuf>,
    /// Requests at the same time. At least 1. Default: 16.
    pub parallel: usize,
}

impl Default for MergeOptions {
    fn default() -> MergeOptions {
        MergeOptions {
            pieces: 32,
            level: LEVEL,
            folder: None,
            parallel: 16,
        }
    }
}

const LEVEL: i32 = 3;

/// A span that was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanMade {
    /// Its name.
    pub key: Key,
    /// How many objects it stands for: segments, or spans.
    pub pieces: u64,
    /// Their lengths together.
    pub piece_bytes: u64,
    /// How many segments are in it.
    pub segments: u64,
    /// Its own length.
    pub bytes: u64,
    /// Another merger had stored one with the same segments.
    pub existed: bool,
}

/// What a log is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    /// Objects.
    pub objects: u64,
    /// Their lengths together.
    pub bytes: u64,
}

impl Extent {
    fn add(&mut self, pieces: &[Piece]) {
        self.objects += pieces.len() as u64;
        self.bytes += pieces.iter().map(|piece| piece.len).sum::<u64>();
    }
}

/// What [`merge`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Merged {
    /// The spans that were made, also those that later ones took the place of.
    pub spans: Vec<SpanMade>,
    /// What the log was read from before.
    pub before: Extent,
    /// What it is read from now. The rest is there as long as nobody deletes it.
    pub after: Extent,
}

/// Merges the logs of one generation, or of all, as far as it is worth while: what is there when it begins.
///
/// It may run beside a writer, readers, and others that merge. When it is stopped, or its future is dropped, what it has made until then is
/// there and of use, and nothing else is left.
///
/// # Errors
///
/// When the store fails, or a segment is damaged. What was made before stays.
pub async fn merge(
    store: &Store,
    generation: Option<Generation>,
    options: &MergeOptions,
) -> Result<Merged, MergeError> {
    let history = History::open(store).await?;
    let mut merged = Merged::default();
    for found in history.generations() {
        let number = found.meta().generation;
        if generation.is_some_and(|wanted| wanted != number) {
            continue;
        }
        let before = path_of(store, found).await?;
        merged.before.add(&before);
        merged.spans.extend(merge_path(store, found, &before, options).await?);
        merged.after.add(&path_of(store, found).await?);
    }
    match generation {
        Some(wanted)
            if history
                .generations()
                .iter()
                .all(|found| found.meta().generation != wanted) =>
        {
            Err(MergeError::NoGeneration(wanted))
        }
        _ => Ok(merged),
    }
}

/// [`merge`] of one generation, for whoever does not ask what came of it.
///
/// # Errors
///
/// As for [`merge`].
pub(crate) async fn merge_generation(
    store: &Store,
    generation: Generation,
    options: &MergeOptions,
) -> Result<(), MergeError> {
    let found = load_generation(store, generation).await?;
    let found = found.ok_or(MergeError::NoGeneration(generation))?;
    let before = path_of(store, &found).await?;
    merge_path(store, &found, &before, options).await.map(|_| ())
}

/// What is worth while of what the log was read from.
async fn merge_path(
    store: &Store,
    found: &GenerationHistory,
    before: &[Piece],
    options: &MergeOptions,
) -> Result<Vec<SpanMade>, MergeError> {
    let end = before.last().map_or(Txid::ZERO, Piece::reach);
    let mut spans: Vec<SpanMade> = Vec::new();
    while let Some(span) = next_of(store, found, options).await? {
        // A store that lists late would have it made again and again.
        let is_again = spans.iter().any(|made| made.key == span.key);
        // A writer that goes on is not followed for ever.
        let is_new = matches!(span.key, Key::Span(_, _, last) if last > end);
        tracing::info!(replica = store.replica(), "segments were merged into {}", span.key);
        spans.push(span);
        if is_again || is_new {
            break;
        }
    }
    Ok(spans)
}

/// One step of [`merge`]: makes the next span that is worth while, the oldest first. `None` when there is none.
///
/// # Errors
///
/// As for [`merge`].
pub async fn merge_next(
    store: &Store,
    generation: Generation,
    options: &MergeOptions,
) -> Result<Option<SpanMade>, MergeError> {
    match load_generation(store, generation).await? {
        Some(found) => next_of(store, &found, options).await,
        None => Err(MergeError::NoGeneration(generation)),
    }
}

async fn next_of(
    store: &Store,
    found: &GenerationHistory,
    options: &MergeOptions,
) -> Result<Option<SpanMade>, MergeError> {
    let path = path_of(store, found).await?;
    // The newest segment is the end that writers and takers look for.
    let newest = path.iter().rposition(|piece| piece.last.is_none());
    let path = path.get(..newest.unwrap_or(path.len())).unwrap_or_default();
    let least = options.pieces.max(2);
    for mut run in runs(path, least) {
        while run.len() >= least {
            let (made, taken) = merge_run(store, found, run, options).await?;
            if made.is_some() {
                return Ok(made);
            }
            // The one behind them is gone, or they are too large. That is the restore's to tell.
            run = run.get(taken.max(1)..).unwrap_or_default();
        }
    }
    Ok(None)
}

async fn merge_run(
    store: &Store,
    found: &GenerationHistory,
    run: &[Piece],
    options: &MergeOptions,
) -> Result<(Option<SpanMade>, usize), MergeError> {
    let (span, taken) = write::span(store, found, run.to_vec(), options).await?;
    let Some(span) = span else {
        return Ok((None, taken));
    };
    let mut extent = Extent::default();
    extent.add(run.get(..taken).unwrap_or(run));
    Ok((Some(store_span(store, span, extent).await?), taken))
}

/// From the oldest image on: what is before it is about to be deleted.
async fn path_of(store: &Store, found: &GenerationHistory) -> Result<Vec<Piece>, HistoryError> {
    let oldest = found.images().first().copied().unwrap_or(found.meta().first_image);
    let generation = found.meta().generation;
    let mut pieces = believed::listed_path(store, generation, oldest.next()).await?.pieces;
    pieces.retain(|piece| !piece.is_seal());
    Ok(pieces)
}

async fn store_span(store: &Store, span: Span, extent: Extent) -> Result<SpanMade, MergeError> {
    let key = span.index.key();
    let (bytes, segments) = (span.body.len(), span.index.merged().len() as u64);
    let existed = store.create(&key, span.body).await? == Created::Exists;
    if existed {
        let len = store.size(&key).await?;
        let theirs = fetch_end(store.clone(), key, len).await?;
        let same = theirs.is_some_and(|theirs| {
            let (theirs, ours) = (&theirs.index, &span.index);
            theirs.header() == ours.header()
                && theirs.merged() == ours.merged()
                && theirs.transactions() == ours.transactions()
                && theirs.pages() == ours.pages()
        });
        if !same {
            return Err(MergeError::Differs(key));
        }
    }
    Ok(SpanMade {
        key,
        pieces: extent.objects,
        piece_bytes: extent.bytes,
        segments,
        bytes,
        existed,
    })
}

/// For a merger that does not see what another one has made meanwhile.
#[cfg(test)]
pub(crate) use for_test::{merge_for_test, pieces_for_test};

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod for_test {
    use super::*;

    pub(crate) async fn pieces_for_test(store: &Store, found: &GenerationHistory) -> Vec<Piece> {
        let mut pieces = path_of(store, found).await.unwrap();
        pieces.pop();
        pieces
    }

    pub(crate) async fn merge_for_test(
        store: &Store,
        found: &GenerationHistory,
        run: Vec<Piece>,
        options: &MergeOptions,
    ) -> Result<SpanMade, MergeError> {
        Ok(merge_run(store, found, &run, options).await?.0.unwrap())
    }
}
