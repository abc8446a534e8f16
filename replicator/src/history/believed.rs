//! The way through a log on which nothing is read that was put into a slot after retention had freed it.
//!
//! Owns the rule that of a slot in the middle of a listed span only that is believed which the span names by its hash. A slot is freed when a span
//! stands for it, which is listed then: so every stray that a path can go along is in a span. Where no two spans overlap no such slot is on a path,
//! and nothing is asked for.

use std::collections::{HashMap, HashSet};

use futures::{StreamExt, TryStreamExt};
use replvfs_vfs::types::Txid;

use super::find::hash_of;
use super::path::{Listing, LogPath, Piece};
use super::walk::fetch_end;
use super::{HistoryError, PARALLEL, list_log};
use crate::format::{Generation, Key, MergedSegment};
use crate::store::Store;

/// As [`Listing::path`], without strays.
///
/// # Errors
///
/// When the store fails, or when a span cannot be read that tells whether a slot is to be believed.
pub(crate) async fn path(
    store: &Store,
    generation: Generation,
    listing: &Listing,
    after: Txid,
) -> Result<LogPath, HistoryError> {
    Ok(path_and_strays(store, generation, listing, after).await?.0)
}

/// The same along what is listed now.
pub(crate) async fn listed_path(store: &Store, generation: Generation, after: Txid) -> Result<LogPath, HistoryError> {
    let listing = list_log(store, generation).await?;
    path(store, generation, &listing, after).await
}

/// [`path()`], and the slots that would have been on it.
pub(crate) async fn path_and_strays(
    store: &Store,
    generation: Generation,
    listing: &Listing,
    after: Txid,
) -> Result<(LogPath, Vec<Txid>), HistoryError> {
    let mut path = listing.path(after);
    let mut doubtful = listing.in_spans(&path.pieces);
    if doubtful.is_empty() {
        return Ok((path, Vec::new()));
    }
    let mut witnesses = Witnesses {
        store,
        generation,
        spans: HashMap::new(),
    };
    let (mut listing, mut looked_at, mut strays) = (listing.clone(), HashSet::new(), Vec::new());
    while !doubtful.is_empty() {
        looked_at.extend(doubtful.iter().map(|piece| piece.first));
        let found: HashSet<Txid> = witnesses.strays(&listing, &doubtful).await?.into_iter().collect();
        listing.slots.retain(|(first, _)| !found.contains(first));
        strays.extend(found);
        path = listing.path(after);
        doubtful = listing.in_spans(&path.pieces);
        doubtful.retain(|piece| !looked_at.contains(&piece.first));
    }
    Ok((path, strays))
}

/// The tables of spans.
struct Witnesses<'a> {
    store: &'a Store,
    generation: Generation,
    spans: HashMap<Key, Vec<MergedSegment>>,
}

impl Witnesses<'_> {
    /// Those of these slots that have something else than what a span says.
    async fn strays(&mut self, listing: &Listing, slots: &[Piece]) -> Result<Vec<Txid>, HistoryError> {
        let mut doubtful = Vec::new();
        let mut strays = Vec::new();
        for piece in slots {
            let mut told = Vec::new();
            for span in listing.spans.iter().filter(|span| span.holds(piece.first)) {
                let segments = self.read(span, piece).await?;
                let at = segments.partition_point(|segment| segment.first < piece.first);
                let named = segments.get(at).filter(|segment| segment.first == piece.first);
                told.push(named.map(|segment| segment.hash));
            }
            // Nothing of the history begins where it does not for one of them.
            match told.iter().copied().collect::<Option<Vec<_>>>() {
                Some(hashes) => doubtful.push((*piece, hashes)),
                None => strays.push(piece.first),
            }
        }
        let hashed = futures::stream::iter(doubtful).map(|(piece, hashes)| {
            let (store, key) = (self.store.clone(), piece.key(self.generation));
            async move {
                match hash_of(&store, key, piece.len).await {
                    Ok(hash) => Ok(hashes.iter().any(|named| *named != hash).then_some(piece.first)),
                    // It was deleted since, and whoever goes there sees that.
                    Err(HistoryError::Missing { .. }) => Ok(None),
                    Err(error) => Err(error),
                }
            }
        });
        let found: Vec<Option<Txid>> = hashed.buffer_unordered(PARALLEL).try_collect().await?;
        strays.extend(found.into_iter().flatten());
        Ok(strays)
    }

    async fn read(&mut self, span: &Piece, asked_for: &Piece) -> Result<&[MergedSegment], HistoryError> {
        let key = span.key(self.generation);
        let segments = match self.spans.remove(&key) {
            Some(segments) => segments,
            None => {
                let end = fetch_end(self.store.clone(), key, span.len).await?;
                let needed_by = asked_for.key(self.generation);
                // It was deleted since in favour of another one: who lists again sees that.
                let end = end.ok_or(HistoryError::Missing { key, needed_by })?;
                end.index.merged().to_vec()
            }
        };
        Ok(self.spans.entry(key).or_insert(segments))
    }
}
