//! Segments and spans from the store into the file, one after another. Owns the chain of hashes, how much of a segment is in memory, and that what is
//! decompressed on many threads is applied in order; leaves where the log begins and ends to the walk through the history.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use replvfs_vfs::types::{PageSize, Position, Txid};
use tokio::sync::mpsc;

use super::apply::{Applier, RawBlock};
use super::work::{Pending, Work};
use super::{Reporter, RestoreError};
use crate::format::{Key, ObjectHash, SegmentIndex, SegmentReader};
use crate::history::walk::{Fetch, Task, Walk, check_place, fetch_end, follows, read, read_range};
use crate::history::{HistoryError, Plan, Target};
use crate::outside;
use crate::store::Store;

/// Segments up to this length are read whole; of larger ones, blocks.
pub(crate) const WHOLE_BYTES: u64 = 16 * 1024 * 1024;

/// Whole segments that are read ahead have about this many bytes together.
const AHEAD_BYTES: u64 = 2 * WHOLE_BYTES;

/// How many blocks' bytes one request asks for.
const RANGE_BYTES: u64 = 4 * 1024 * 1024;

/// Such requests that are under way together.
const RANGES_AHEAD: usize = 4;

/// Blocks and segments that wait to be applied. What they take in memory is bounded elsewhere.
const QUEUE: usize = 256;

/// What was read of a segment.
enum Fetched {
    Whole(Arc<SegmentIndex>, Bytes, Option<ObjectHash>),
    /// It is there, and so long. Its tables can take as much memory as all else together, so they are read when its turn has come.
    Large(u64),
}

/// What its pages are read from: the object, or its tables and then ranges of it.
enum Content {
    Whole(Bytes, Option<ObjectHash>),
    Large(Bytes),
}

fn fetch(store: Store, key: Key, len: u64) -> Fetch<Fetched> {
    Box::pin(async move {
        if len > WHOLE_BYTES {
            let last_byte = read_range(&store, key, len - 1..len).await?;
            return Ok(last_byte.map(|_| Fetched::Large(len)));
        }
        let Some(object) = read(&store, key, WHOLE_BYTES).await? else {
            return Ok(None);
        };
        let looked_at = outside::blocking(move || {
            let index = SegmentIndex::from_object(&object).map_err(HistoryError::format(key))?;
            // What follows a span asks for that of its last segment.
            let hash = index.merged().is_empty().then(|| ObjectHash::of(&object));
            Ok(Some(Fetched::Whole(Arc::new(index), object, hash)))
        });
        let died = |error: tokio::task::JoinError| HistoryError::Task {
            key,
            problem: error.to_string(),
        };
        looked_at.await.map_err(died)?
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

/// A segment as its successor sees it.
struct Link {
    slot: Txid,
    hash: Option<ObjectHash>,
    end: Position,
}

impl Link {
    /// The last segment that is wanted. `own`: the hash of the object, which a span's successors do not ask for.
    fn of(index: &SegmentIndex, last: Txid, own: Option<ObjectHash>) -> Link {
        let header = index.header();
        match index.merged_holding(header.last.min(last)) {
            Some((segment, last)) => Link {
                slot: segment.first,
                hash: Some(segment.hash),
                end: last.header.end,
            },
            None => Link {
                slot: header.first,
                hash: own,
                end: header.end,
            },
        }
    }
}

/// What is applied, in this order.
enum Step {
    /// Those of its transactions that are wanted are next, and their blocks follow.
    Segment(Key, Arc<SegmentIndex>),
    Block(Pending<Result<RawBlock, RestoreError>>),
    /// So many bytes of the store are done with.
    Done(u64),
}

/// Why segments are no longer read.
enum ReadError {
    Failed(RestoreError),
    /// Applying them failed.
    Unwanted,
}

impl<E: Into<RestoreError>> From<E> for ReadError {
    fn from(error: E) -> ReadError {
        ReadError::Failed(error.into())
    }
}

/// Applies all segments of the plan.
pub(super) async fn apply_log(
    store: &Store,
    plan: &Plan,
    applier: Applier,
    report: &Arc<Reporter>,
) -> Result<(Applier, Tail), RestoreError> {
    let wanted = plan.manifest.txid.next()..=plan.last.unwrap_or(Txid(u64::MAX));
    let (steps, queue) = outside::queue(QUEUE);
    let image = Key::Image(plan.generation, plan.manifest.txid);
    let (range, told) = (wanted.clone(), Arc::clone(report));
    let apply = move || apply_steps(applier, queue, &range, &told);
    let reader = Reader {
        store,
        page_size: plan.manifest.page_size,
        work: Work::new(),
        wanted,
        steps,
    };
    let (applied, read) = outside::fed(apply, reader.read_log(plan)).await;
    // What failed first in the order of the log is told: applying is behind reading, and ends without an error when reading has failed.
    let applier = applied.unwrap_or_else(|error| Err(super::died(image, &error)))?;
    let tail = match read {
        Ok(tail) => tail,
        Err(ReadError::Failed(error)) => return Err(error),
        Err(ReadError::Unwanted) => {
            let problem = "nobody applied what was read".to_owned();
            return Err(RestoreError::Task { key: image, problem });
        }
    };
    if applier.last.0 < plan.at_least {
        let key = Key::Log(plan.generation, applier.last.0.next());
        let needed_by = Key::Image(plan.generation, plan.at_least);
        return Err(HistoryError::Missing { key, needed_by }.into());
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

/// Runs on a thread of its own until there are no more steps; that some are missing is for the one who reads to tell.
fn apply_steps(
    mut applier: Applier,
    mut steps: mpsc::Receiver<Step>,
    wanted: &RangeInclusive<Txid>,
    report: &Reporter,
) -> Result<Applier, RestoreError> {
    while let Some(step) = outside::next(&mut steps) {
        match step {
            Step::Segment(key, index) => {
                let mut cut_off = false;
                let applied = applier.apply(key, &index, wanted, |_| {
                    report.tell();
                    loop {
                        match outside::next(&mut steps) {
                            Some(Step::Block(block)) => return block.wait(key)?,
                            Some(Step::Done(bytes)) => report.log(bytes),
                            None | Some(Step::Segment(..)) => {
                                cut_off = true;
                                let problem = "reading was given up".to_owned();
                                return Err(RestoreError::Task { key, problem });
                            }
                        }
                    }
                });
                if cut_off {
                    return Ok(applier);
                }
                applied?;
                report.transaction(applier.last.0);
            }
            Step::Done(bytes) => report.log(bytes),
            Step::Block(_) => {}
        }
    }
    applier.write()?;
    Ok(applier)
}

/// Reads the log, and has it decompressed.
struct Reader<'a> {
    store: &'a Store,
    page_size: PageSize,
    work: Work,
    wanted: RangeInclusive<Txid>,
    steps: mpsc::Sender<Step>,
}

impl Reader<'_> {
    async fn read_log(self, plan: &Plan) -> Result<Tail, ReadError> {
        let last = *self.wanted.end();
        let parallel = segments_ahead(plan.path.pieces.iter().map(|piece| piece.len));
        let mut walk = Walk::new(self.store, plan.generation, plan.path.clone(), last, parallel, fetch);
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
                    return Err(RestoreError::Chain { key, previous: before }.into());
                }
                break;
            };
            let (index, content) = match fetched {
                Fetched::Whole(index, object, hash) => (index, Content::Whole(object, hash)),
                Fetched::Large(len) => {
                    let end = fetch_end(self.store.clone(), key, len).await?;
                    let end = end.ok_or(HistoryError::Missing { key, needed_by: key })?;
                    (Arc::new(end.index), Content::Large(end.tail))
                }
            };
            let header = *index.header();
            self.check_header(key, &index)?;
            // Before any of it is applied.
            if let Some((before, expected)) = previous
                && !follows(&header, index.merged(), slot, expected)
            {
                return Err(RestoreError::Chain { key, previous: before }.into());
            }
            let own = match content {
                Content::Whole(object, hash) => {
                    self.whole(key, &index, &object).await?;
                    hash
                }
                Content::Large(tail) => self.large(key, &index, &tail).await?,
            };
            let link = Link::of(&index, last, own);
            previous = link.hash.map(|hash| (key, hash));
            tail = Tail {
                slot: link.hash.map(|_| link.slot),
                previous: link.hash.unwrap_or(unknown),
                position: link.end,
            };
            slot = header.last.next();
        }
        Ok(tail)
    }

    fn check_header(&self, key: Key, index: &SegmentIndex) -> Result<(), RestoreError> {
        check_place(key, index.key())?;
        let page_size = index.header().page_size;
        if page_size != self.page_size {
            let found = format!("a segment with pages of {page_size} bytes");
            return Err(HistoryError::Misplaced { key, found }.into());
        }
        Ok(())
    }

    async fn send(&self, step: Step) -> Result<(), ReadError> {
        self.steps.send(step).await.map_err(|_| ReadError::Unwanted)
    }

    async fn whole(&self, key: Key, index: &Arc<SegmentIndex>, object: &Bytes) -> Result<(), ReadError> {
        self.send(Step::Segment(key, Arc::clone(index))).await?;
        for block in index.blocks_of(self.wanted.clone()) {
            let Range { start, end } = index.block_range(block);
            // The index was checked against this object.
            let stored = object.slice(start as usize..end as usize);
            self.block(key, index, block, stored).await?;
        }
        self.send(Step::Done(object.len() as u64)).await
    }

    /// Sends a block on that is being decompressed.
    async fn block(&self, key: Key, index: &Arc<SegmentIndex>, block: usize, stored: Bytes) -> Result<(), ReadError> {
        let room = self.work.room(index.raw_len(block)).await;
        let index = Arc::clone(index);
        let pending = self.work.begin(move || {
            let raw = SegmentReader::new().and_then(|mut reader| reader.take_block(&index, block, &stored));
            let raw = raw.map_err(RestoreError::format(key))?;
            Ok(RawBlock { raw, room })
        });
        let pending = pending.await;
        self.send(Step::Block(pending)).await
    }

    /// Blocks in requests of several. All are hashed, and those that are wanted sent on.
    async fn large(&self, key: Key, index: &Arc<SegmentIndex>, tail: &Bytes) -> Result<Option<ObjectHash>, ReadError> {
        // Only a segment that others follow needs its hash, and with that all of its blocks. A span tells the one that is needed.
        let chained = *self.wanted.end() > index.header().last && index.merged().is_empty();
        let wanted = index.blocks_of(self.wanted.clone());
        let blocks = if chained {
            0..index.block_count()
        } else {
            wanted.clone()
        };
        let start = read_part(self.store, key, 0..SegmentIndex::START_LEN).await?;
        index.check_start(&start).map_err(RestoreError::format(key))?;
        let mut hasher = Box::new(blake3::Hasher::new());
        hasher.update(&start);
        self.send(Step::Segment(key, Arc::clone(index))).await?;
        let mut ranges = ranges(self.store, key, index, blocks);
        while let Some(((from, to), bytes)) = ranges.next().await {
            let bytes = bytes?;
            if chained {
                let hashed = bytes.clone();
                let pending = self.work.begin(move || {
                    hasher.update(&hashed);
                    hasher
                });
                hasher = pending.await.done(key).await?;
            }
            let base = index.block_range(from).start;
            for block in (from..to).filter(|block| wanted.contains(block)) {
                let Range { start, end } = index.block_range(block);
                let stored = bytes.slice((start - base) as usize..(end - base) as usize);
                self.block(key, index, block, stored).await?;
            }
            self.send(Step::Done(bytes.len() as u64)).await?;
        }
        hasher.update(tail);
        Ok(chained.then(|| ObjectHash(*hasher.finalize().as_bytes())))
    }
}

/// The stored bytes of these blocks, in order, with the first block of each part and the one behind its last.
pub(crate) fn ranges(
    store: &Store,
    key: Key,
    index: &Arc<SegmentIndex>,
    blocks: Range<usize>,
) -> BoxStream<'static, Part> {
    let (store, index, mut next) = (store.clone(), Arc::clone(index), blocks.start);
    let parts = std::iter::from_fn(move || {
        if next >= blocks.end {
            return None;
        }
        let from = next;
        let start = index.block_range(from).start;
        next += 1;
        while next < blocks.end && index.block_range(next).end - start <= RANGE_BYTES {
            next += 1;
        }
        Some((from, next, start..index.block_range(next - 1).end))
    });
    let reads = parts.map(move |(from, to, range)| {
        let store = store.clone();
        async move {
            let task = Task(tokio::spawn(async move { read_part(&store, key, range).await }));
            let read = task.await.unwrap_or_else(|error| {
                let problem = error.to_string();
                Err(RestoreError::Task { key, problem })
            });
            ((from, to), read)
        }
    });
    futures::stream::iter(reads).buffered(RANGES_AHEAD).boxed()
}

/// How many segments with these lengths are read at the same time.
pub(crate) fn segments_ahead(lens: impl Iterator<Item = u64>) -> usize {
    let largest = lens.filter(|len| *len <= WHOLE_BYTES).max().unwrap_or(1).max(1);
    (AHEAD_BYTES / largest).clamp(2, 16) as usize
}

/// Blocks, and their stored bytes.
pub(crate) type Part = ((usize, usize), Result<Bytes, RestoreError>);

pub(crate) async fn read_part(store: &Store, key: Key, range: Range<u64>) -> Result<Bytes, RestoreError> {
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
