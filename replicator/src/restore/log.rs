//! Segments and spans from the store into the file, one after another. Owns the chain of hashes and how much of a segment is in
//! memory; leaves where the log begins and ends to the walk through the history.

use std::ops::Range;

use bytes::Bytes;
use replvfs_vfs::types::{Position, Txid};
use tokio::sync::mpsc;

use super::pages::Applier;
use super::{Reporter, RestoreError};
use crate::format::{Key, ObjectHash, SegmentHeader, SegmentIndex};
use crate::history::walk::{Fetch, SegmentEnd, Walk, check_place, fetch_end, read, read_range};
use crate::history::{HistoryError, Plan, Target};
use crate::store::Store;

/// Segments up to this length are read whole; of larger ones, blocks.
pub(super) const WHOLE_BYTES: u64 = 16 * 1024 * 1024;

/// Whole segments that are read ahead have about this many bytes together.
const AHEAD_BYTES: u64 = 2 * WHOLE_BYTES;

/// How many blocks' bytes one request asks for.
const RANGE_BYTES: u64 = 4 * 1024 * 1024;

/// What was read of a segment.
enum Fetched {
    Whole(Bytes),
    Large(SegmentEnd),
}

fn fetch(store: Store, key: Key, len: u64) -> Fetch<Fetched> {
    Box::pin(async move {
        if len > WHOLE_BYTES {
            Ok(fetch_end(store, key, len).await?.map(Fetched::Large))
        } else {
            Ok(read(&store, key, WHOLE_BYTES).await?.map(Fetched::Whole))
        }
    })
}

/// Where in the log a restore ended, for whoever goes on from there. Nothing that can be proved, where that was not read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tail {
    /// The slot of the last segment that was read.
    pub(super) slot: Option<Txid>,
    /// What its successor follows.
    pub(super) previous: ObjectHash,
    pub(super) position: Position,
}

/// Applies all segments of the plan.
pub(super) async fn apply_log(
    store: &Store,
    plan: &Plan,
    mut applier: Applier,
    report: &Reporter,
) -> Result<(Applier, Tail), RestoreError> {
    let last = plan.last.unwrap_or(Txid(u64::MAX));
    let largest = plan
        .path
        .pieces
        .iter()
        .map(|piece| piece.len)
        .filter(|len| *len <= WHOLE_BYTES)
        .max()
        .unwrap_or(1)
        .max(1);
    let parallel = (AHEAD_BYTES / largest).clamp(2, 16) as usize;
    let mut walk = Walk::new(store, plan.generation, plan.path.clone(), last, parallel, fetch);
    let mut slot = plan.start;
    let mut previous = plan.previous.map(|hash| (Key::Generation(plan.generation), hash));
    let at_start = plan.start == plan.manifest.txid.next();
    let unknown = ObjectHash([0; 32]);
    let mut tail = Tail {
        slot: None,
        previous: plan.previous.filter(|_| at_start).unwrap_or(unknown),
        position: plan.manifest.position,
    };
    // Nothing to apply is read at all when the image is the target.
    while plan.manifest.txid < last && slot <= last {
        let Some((key, fetched)) = walk.piece(slot).await? else {
            if let (Some(seal), Some((before, expected))) = (walk.seal(), previous)
                && seal.previous != expected
            {
                let key = Key::Log(plan.generation, slot);
                return Err(RestoreError::Chain { key, previous: before });
            }
            break;
        };
        let range = plan.manifest.txid.next()..=last;
        let (header, link);
        (applier, header, link) = match fetched {
            Fetched::Whole(object) => apply_whole(key, object, applier, range).await?,
            Fetched::Large(end) => apply_large(store, key, end, applier, range).await?,
        };
        if let Some((before, expected)) = previous
            && header.previous != expected
        {
            return Err(RestoreError::Chain { key, previous: before });
        }
        previous = link.hash.map(|hash| (key, hash));
        tail = Tail {
            slot: link.hash.map(|_| link.slot),
            previous: link.hash.unwrap_or(unknown),
            position: link.end,
        };
        slot = header.last.next();
        report.transaction(applier.last.0);
    }
    match plan.last {
        Some(last) if applier.last.0 != last => Err(HistoryError::NotInHistory {
            target: Target::Txid(last),
            range: format!(
                "the newest transaction of generation {} is {}",
                plan.generation, applier.last.0
            ),
            left_out: crate::history::LeftOut::default(),
        }
        .into()),
        _ => Ok((applier, tail)),
    }
}

type Applied = (Applier, SegmentHeader, Link);
type Wanted = std::ops::RangeInclusive<Txid>;

/// A segment as its successor sees it.
struct Link {
    slot: Txid,
    hash: Option<ObjectHash>,
    end: Position,
}

impl Link {
    /// The last segment that is wanted. `own`: the hash of the object, which a span's successors do not ask for.
    fn of(index: &SegmentIndex, range: &Wanted, own: impl FnOnce() -> Option<ObjectHash>) -> Link {
        let header = index.header();
        match index.merged_holding(header.last.min(*range.end())) {
            Some((segment, last)) => Link {
                slot: segment.first,
                hash: Some(segment.hash),
                end: last.header.end,
            },
            None => Link {
                slot: header.first,
                hash: own(),
                end: header.end,
            },
        }
    }
}

fn check_header(key: Key, index: &SegmentIndex, applier: &Applier) -> Result<(), RestoreError> {
    check_place(key, index.key())?;
    let header = index.header();
    if header.page_size != applier.pages.page_size {
        let found = format!("a segment with pages of {} bytes", header.page_size);
        return Err(HistoryError::Misplaced { key, found }.into());
    }
    Ok(())
}

async fn apply_whole(key: Key, object: Bytes, mut applier: Applier, range: Wanted) -> Result<Applied, RestoreError> {
    super::blocking(key, move || {
        let index = SegmentIndex::from_object(&object).map_err(RestoreError::format(key))?;
        check_header(key, &index, &applier)?;
        applier.apply(key, &index, range.clone(), |block| {
            let Range { start, end } = index.block_range(block);
            Ok(object.slice(start as usize..end as usize)) // the index was checked against this object
        })?;
        let link = Link::of(&index, &range, || Some(ObjectHash::of(&object)));
        Ok((applier, *index.header(), link))
    })
    .await
}

/// The store is read here and the file written on another thread, with a few blocks between them.
async fn apply_large(
    store: &Store,
    key: Key,
    end: SegmentEnd,
    mut applier: Applier,
    range: Wanted,
) -> Result<Applied, RestoreError> {
    let SegmentEnd { index, tail, .. } = end;
    check_header(key, &index, &applier)?;
    let header = *index.header();
    // Only a segment that others follow needs its hash, and with that all of its blocks. A span tells the one that is needed.
    let chained = *range.end() > header.last && index.merged().is_empty();
    let wanted = index.blocks_of(range.clone());
    let blocks = if chained {
        0..index.block_count()
    } else {
        wanted.clone()
    };
    let (sender, mut receiver) = mpsc::channel::<Bytes>(2);
    let (reader, applied_range) = (index.clone(), range.clone());
    let apply = super::blocking(key, move || {
        applier.apply(key, &reader, applied_range, |_| {
            // The sender is gone early only when reading failed, and that error is returned instead.
            let problem = "reading was given up".to_owned();
            receiver.blocking_recv().ok_or(RestoreError::Task { key, problem })
        })?;
        Ok(applier)
    });
    let read = read_blocks(store, key, &index, blocks, wanted, sender);
    let (applied, read) = futures::join!(apply, read);
    let mut hasher = match read {
        Ok(hasher) => hasher,
        // Applying can only have failed for want of blocks.
        Err(ReadError::Failed(error)) => return Err(error),
        Err(ReadError::Unwanted) => {
            let problem = "blocks were left over".to_owned();
            return Err(applied.err().unwrap_or(RestoreError::Task { key, problem }));
        }
    };
    hasher.update(&tail);
    let link = Link::of(&index, &range, || {
        chained.then(|| ObjectHash(*hasher.finalize().as_bytes()))
    });
    Ok((applied?, header, link))
}

/// Why blocks are no longer read.
enum ReadError {
    Failed(RestoreError),
    /// Applying them failed.
    Unwanted,
}

impl From<RestoreError> for ReadError {
    fn from(error: RestoreError) -> ReadError {
        ReadError::Failed(error)
    }
}

/// Reads blocks in requests of several, hashes all, and sends on those that are wanted.
async fn read_blocks(
    store: &Store,
    key: Key,
    index: &SegmentIndex,
    blocks: Range<usize>,
    wanted: Range<usize>,
    sender: mpsc::Sender<Bytes>,
) -> Result<blake3::Hasher, ReadError> {
    let mut hasher = blake3::Hasher::new();
    let start = read_part(store, key, 0..SegmentIndex::START_LEN).await?;
    index.check_start(&start).map_err(RestoreError::format(key))?;
    hasher.update(&start);
    let mut next = blocks.start;
    while next < blocks.end {
        let from = index.block_range(next).start;
        let mut to = next + 1;
        while to < blocks.end && index.block_range(to).end - from <= RANGE_BYTES {
            to += 1;
        }
        let bytes = read_part(store, key, from..index.block_range(to - 1).end).await?;
        hasher.update(&bytes);
        for block in (next..to).filter(|block| wanted.contains(block)) {
            let Range { start, end } = index.block_range(block);
            let stored = bytes.slice((start - from) as usize..(end - from) as usize);
            sender.send(stored).await.map_err(|_| ReadError::Unwanted)?;
        }
        next = to;
    }
    Ok(hasher)
}

async fn read_part(store: &Store, key: Key, range: Range<u64>) -> Result<Bytes, RestoreError> {
    let len = range.end - range.start;
    let bytes = read_range(store, key, range).await?;
    match bytes {
        Some(bytes) if bytes.len() as u64 == len => Ok(bytes),
        Some(_) => Err(RestoreError::Format {
            key,
            error: crate::format::FormatError::Damaged {
                part: "object",
                problem: "it is cut off".to_owned(),
            },
        }),
        None => Err(HistoryError::Missing { key, needed_by: key }.into()),
    }
}
