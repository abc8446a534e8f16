//! The log of a generation: every segment and span on the way from its oldest image on, and the seal. Owns how it goes on behind damage.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use replvfs_vfs::types::Txid;

use super::image::wrong_page_size;
use super::{Looked, Run, said};
use crate::format::{Key, MergedSegment, ObjectHash, SegmentHeader, SegmentIndex, SegmentReader};
use crate::history::path::{Listing, Piece};
use crate::history::stray::strays;
use crate::history::walk::{Fetch, SegmentEnd, Walk, check_place, fetch_end, follows, read};
use crate::history::{HistoryError, path_at};
use crate::restore::{RestoreError, WHOLE_BYTES, blocking, ranges, read_part, segments_ahead};
use crate::store::Store;

/// A segment or a span that was read to its last byte.
struct Checked {
    header: SegmentHeader,
    merged: Vec<MergedSegment>,
    /// What its successor has to name.
    hash: ObjectHash,
    len: u64,
    /// What is wrong with what it makes of the database.
    content: Option<String>,
}

impl Run {
    /// Returns the last transaction that the log reaches.
    pub(super) async fn log(&mut self, found: &Looked, first: Txid, listing: &Listing) -> Result<Txid, HistoryError> {
        let number = found.number;
        let generation = (number, found.first_image.unwrap_or(first));
        let (start, path) = match path_at(&self.store, generation, listing, first.next()).await {
            Ok(found) => found,
            Err(error) => {
                // What would tell strays from the history. Restores go no further than that either.
                let (object, problem) = said(error)?;
                let object = object.unwrap_or(Key::Log(number, first.next()));
                self.find(object, problem, found.lost(first.next(), Txid(u64::MAX)));
                return Ok(first);
            }
        };
        self.unreferenced_pieces(listing, &path.pieces);
        self.strays(found, listing, &path.pieces).await?;
        let pieces = path.pieces.clone();
        let parallel = segments_ahead(pieces.iter().map(|piece| piece.len));
        let mut walk = Walk::new(&self.store, number, path, Txid(u64::MAX), parallel, fetch);
        let at_root = found.first_image.map(Txid::next) == Some(start);
        let root = found.root.filter(|_| at_root);
        let mut previous = root.map(|root| (Key::Generation(number), root));
        let (mut slot, mut last) = (start, first);
        loop {
            match walk.piece(slot).await {
                Ok(Some((key, checked))) => {
                    self.counted.add(checked.len);
                    self.segment(found, key, &checked, (slot, previous));
                    let Checked { header, hash, .. } = checked;
                    previous = Some((key, hash));
                    last = last.max(header.last);
                    slot = header.last.next();
                }
                Ok(None) => {
                    if let (Some(seal), Some((before, expected))) = (walk.seal(), previous)
                        && seal.previous != expected
                    {
                        let (key, lost) = (Key::Log(number, slot), found.lost(slot, Txid(u64::MAX)));
                        self.find(key, format!("it does not follow from {before}"), lost);
                    }
                    return Ok(last);
                }
                Err(error) => {
                    let (object, problem) = said(error)?;
                    let next = pieces.iter().map(|piece| piece.first).find(|first| *first > slot);
                    let end = next.map_or(Txid(u64::MAX), |next| Txid(next.0 - 1));
                    let object = object.unwrap_or(Key::Log(number, slot));
                    self.find(object, problem, found.lost(slot, end));
                    let Some(next) = next else {
                        return Ok(last);
                    };
                    (slot, previous) = (next, None);
                }
            }
        }
    }

    /// Nothing that is read, and no damage: whoever put it there was told, or died.
    async fn strays(&mut self, found: &Looked, listing: &Listing, path: &[Piece]) -> Result<(), HistoryError> {
        let first = found.first_image.unwrap_or_default().next();
        let strays = match strays(&self.store, found.number, first, listing, path).await {
            Err(error @ HistoryError::Store(_)) => return Err(error),
            // What is damaged there is not needed.
            strays => strays.unwrap_or_default(),
        };
        let warn = |key: Key| {
            format!(
                "{key} is no part of the history: a writer put it there that had slept while another one went on, and whose slot had been deleted. What is in it is nowhere else in the replica; the next pruning deletes it"
            )
        };
        self.result.warnings.extend(strays.into_iter().map(warn));
        Ok(())
    }

    pub(super) fn unreferenced_pieces(&mut self, listing: &Listing, path: &[Piece]) {
        let on_path: HashSet<(Txid, Option<Txid>)> = path.iter().map(|piece| (piece.first, piece.last)).collect();
        let slots = listing.slots.iter().map(|(first, len)| Piece {
            first: *first,
            last: None,
            len: *len,
        });
        for piece in slots.chain(listing.spans.iter().copied()) {
            if !piece.is_seal() && !on_path.contains(&(piece.first, piece.last)) {
                self.result.unreferenced.segments += 1;
                self.result.unreferenced.bytes += piece.len;
            }
        }
    }

    fn segment(
        &mut self,
        found: &Looked,
        key: Key,
        checked: &Checked,
        (slot, previous): (Txid, Option<(Key, ObjectHash)>),
    ) {
        let Checked { header, content, .. } = checked;
        let lost = found.lost(header.first, header.last);
        if found
            .page_size
            .is_some_and(|expected| expected != header.page_size.get())
        {
            let problem = format!("it says that it is a segment with pages of {} bytes", header.page_size);
            self.find(key, problem, lost.clone());
        }
        if let Some(problem) = content {
            self.find(key, problem.clone(), lost);
        }
        if let Some((before, expected)) = previous
            && !follows(header, &checked.merged, slot, expected)
        {
            // A restore from an image right before it does not see what stands before.
            let lost = found.lost(header.first, Txid(header.first.0 - 1));
            self.find(key, format!("it does not follow from {before}"), lost);
        }
    }
}

fn fetch(store: Store, key: Key, len: u64) -> Fetch<Checked> {
    Box::pin(async move {
        let checked = if len > WHOLE_BYTES {
            match fetch_end(store.clone(), key, len).await? {
                Some(end) => large(&store, key, end).await,
                None => return Ok(None),
            }
        } else {
            match read(&store, key, WHOLE_BYTES).await? {
                Some(object) => blocking(key, move || whole(key, &object)).await,
                None => return Ok(None),
            }
        };
        checked.map(Some).map_err(|error| match error {
            RestoreError::History(error) => error,
            RestoreError::Format { key, error } => HistoryError::Format { key, error },
            error => HistoryError::Task {
                key,
                problem: error.to_string(),
            },
        })
    })
}

fn whole(key: Key, object: &Bytes) -> Result<Checked, RestoreError> {
    let index = SegmentIndex::from_object(object).map_err(RestoreError::format(key))?;
    check_place(key, index.key())?;
    let content = blocks(key, &index, 0..index.block_count(), object, 0)?;
    Ok(Checked {
        header: *index.header(),
        merged: index.merged().to_vec(),
        hash: index.chain_hash().unwrap_or_else(|| ObjectHash::of(object)),
        len: object.len() as u64,
        content,
    })
}

async fn large(store: &Store, key: Key, end: SegmentEnd) -> Result<Checked, RestoreError> {
    let SegmentEnd { index, tail, len, .. } = end;
    let index = Arc::new(index);
    let start = read_part(store, key, 0..SegmentIndex::START_LEN).await?;
    index.check_start(&start).map_err(RestoreError::format(key))?;
    let mut hasher = Box::new(blake3::Hasher::new());
    hasher.update(&start);
    let mut content = None;
    let mut parts = ranges(store, key, &index, 0..index.block_count());
    while let Some(((from, to), bytes)) = parts.next().await {
        let (bytes, index) = (bytes?, Arc::clone(&index));
        let looked_at = blocking(key, move || {
            hasher.update(&bytes);
            let base = index.block_range(from).start;
            Ok((blocks(key, &index, from..to, &bytes, base)?, hasher))
        });
        let (found, hashed) = looked_at.await?;
        (content, hasher) = (content.or(found), hashed);
    }
    hasher.update(&tail);
    Ok(Checked {
        header: *index.header(),
        merged: index.merged().to_vec(),
        hash: index.chain_hash().unwrap_or(ObjectHash(*hasher.finalize().as_bytes())),
        len,
        content,
    })
}

/// Decompresses blocks, whose stored bytes begin at byte `base` of the object. Returns what is wrong with the first pages of databases in them.
fn blocks(
    key: Key,
    index: &SegmentIndex,
    wanted: Range<usize>,
    stored: &Bytes,
    base: u64,
) -> Result<Option<String>, RestoreError> {
    let mut reader = SegmentReader::new().map_err(RestoreError::format(key))?;
    let firsts = index.transactions().iter().filter_map(|entry| {
        let is_first = index.pages_of(entry)?.first()?.get() == 1;
        is_first.then(|| (index.place_of(entry.first_slot), entry.txid))
    });
    let mut firsts = firsts.peekable();
    let mut content = None;
    for block in wanted {
        let Range { start, end } = index.block_range(block);
        let bytes = stored.get((start - base) as usize..(end - base) as usize); // inside of what is in memory
        let raw = reader.block(index, block, bytes.unwrap_or_default());
        let raw = raw.map_err(RestoreError::format(key))?;
        while let Some(((of, at), txid)) = firsts.next_if(|((of, _), _)| *of <= block) {
            if of < block {
                continue; // in a part that was looked at before
            }
            let page = raw.get(at..).unwrap_or_default();
            let wrong = wrong_page_size(page, index.header().page_size);
            content = content.or(wrong.map(|wrong| format!("after transaction {txid} {wrong}")));
        }
    }
    Ok(content)
}
