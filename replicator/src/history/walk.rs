//! Going through a generation's log, piece by piece. Owns the rule that a listing is only a hint: the next piece begins
//! after the last transaction of the one before, it is asked for by name if no such piece is listed, and one that is missing before the end of
//! what is listed is an error. Leaves what is read of a piece to the caller.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use replvfs_vfs::types::Txid;
use tokio::task::JoinHandle;

use super::path::{LogPath, Piece};
use super::{HistoryError, believed};
use crate::format::{Generation, Key, MergedSegment, ObjectHash, Seal, SegmentFooter, SegmentHeader, SegmentIndex};
use crate::store::Store;

/// One suffix of this length contains the tables of nearly every segment.
const END_BYTES: u64 = 64 * 1024;

/// Reads ahead what is listed, and gives out what is there.
pub(crate) struct Walk<T> {
    store: Store,
    generation: Generation,
    /// What reaches furthest of all that is listed.
    newest: Option<Piece>,
    /// All that are listed.
    spans: Vec<Piece>,
    ahead: BoxStream<'static, (Piece, Fetched<T>)>,
    peeked: Option<(Piece, Fetched<T>)>,
    fetch: FetchFn<T>,
    stop: Txid,
    parallel: usize,
    seal: Option<Seal>,
}

/// What is in a slot. A span counts as the segment that it is but for its name.
#[derive(Debug)]
pub(crate) enum Slot<T> {
    Segment(T),
    Seal(Seal),
}

/// Reads what the caller wants of the segment with this length; `None` when it is not there.
pub(crate) type Fetch<T> = Pin<Box<dyn Future<Output = Result<Option<T>, HistoryError>> + Send>>;

/// `None` when the slot is empty.
type Fetched<T> = Result<Option<Slot<T>>, HistoryError>;

type FetchFn<T> = fn(Store, Key, u64) -> Fetch<T>;

impl<T: Send + 'static> Walk<T> {
    /// Up to `parallel` objects are read at the same time, none that begins after `stop`.
    pub(crate) fn new(
        store: &Store,
        generation: Generation,
        path: LogPath,
        stop: Txid,
        parallel: usize,
        fetch: FetchFn<T>,
    ) -> Walk<T> {
        let mut walk = Walk {
            store: store.clone(),
            generation,
            newest: None,
            spans: Vec::new(),
            ahead: futures::stream::empty().boxed(),
            peeked: None,
            fetch,
            stop,
            parallel,
            seal: None,
        };
        walk.follow(path);
        walk
    }

    fn follow(&mut self, path: LogPath) {
        let LogPath {
            mut pieces,
            newest,
            spans,
            ..
        } = path;
        self.spans = spans;
        pieces.retain(|piece| piece.first <= self.stop);
        self.newest = newest;
        let (store, generation, fetch) = (self.store.clone(), self.generation, self.fetch);
        let ahead = futures::stream::iter(pieces).map(move |piece| {
            let key = piece.key(generation);
            let task = Task(tokio::spawn(fetch_piece(store.clone(), key, piece.len, fetch)));
            async move { (piece, task.joined(key).await) }
        });
        self.ahead = ahead.buffered(self.parallel.max(1)).boxed();
        self.peeked = None;
    }

    /// Begins to read ahead, and waits for the first piece.
    pub(crate) async fn begin(&mut self) {
        if self.peeked.is_none() {
            self.peeked = self.ahead.next().await;
        }
    }

    /// What has ended the log, if the walk came that far.
    pub(crate) fn seal(&self) -> Option<&Seal> {
        self.seal.as_ref()
    }

    /// The piece that begins with this transaction, under its name; `None` when the log ends before it. It may begin before, where what was listed has
    /// been deleted in favour of a span that holds the transaction inside: see [`follows`].
    pub(crate) async fn piece(&mut self, first: Txid) -> Result<Option<(Key, T)>, HistoryError> {
        let (mut key, mut found) = self.next(first).await?;
        if found.is_none() && self.newest.is_some_and(|newest| newest.reach() >= first) {
            // Since it was listed it may have been merged into a span, and deleted.
            let path = believed::listed_path(&self.store, self.generation, first).await?;
            self.follow(path);
            (key, found) = self.next(first).await?;
        }
        match (found, self.newest) {
            (None, Some(newest)) if newest.reach() >= first => Err(HistoryError::Missing {
                key,
                needed_by: newest.key(self.generation),
            }),
            (Some(Slot::Seal(_)), Some(newest)) if newest.reach() > first => Err(HistoryError::Sealed {
                key,
                behind: newest.key(self.generation),
            }),
            (Some(Slot::Seal(seal)), _) => {
                self.seal = Some(seal);
                Ok(None)
            }
            (Some(Slot::Segment(segment)), _) => Ok(Some((key, segment))),
            (None, _) => Ok(None),
        }
    }

    async fn next(&mut self, first: Txid) -> Result<(Key, Option<Slot<T>>), HistoryError> {
        loop {
            if self.peeked.is_none() {
                self.peeked = self.ahead.next().await;
            }
            match &self.peeked {
                Some((piece, _)) if piece.first < first && !piece.holds(first) => self.peeked = None,
                _ => break,
            }
        }
        if let Some((piece, found)) = self.peeked.take_if(|(piece, _)| piece.holds(first)) {
            return Ok((piece.key(self.generation), found?));
        }
        let key = Key::Log(self.generation, first);
        // What is in that slot may have been put there since: the span is read, from its middle on.
        if self.spans.iter().any(|span| span.holds(first)) {
            return Ok((key, None));
        }
        let found = match size(&self.store, key).await? {
            Some(len) => fetch_piece(self.store.clone(), key, len, self.fetch).await?,
            None => None,
        };
        Ok((key, found))
    }
}

/// Whether what begins with `slot` in this segment or span follows what has this hash. A span may have begun before.
pub(crate) fn follows(header: &SegmentHeader, merged: &[MergedSegment], slot: Txid, previous: ObjectHash) -> bool {
    if header.first == slot {
        return header.previous == previous;
    }
    let at = merged.partition_point(|segment| segment.first < slot);
    let begins = merged.get(at).is_some_and(|segment| segment.first == slot);
    let before = at.checked_sub(1).and_then(|before| merged.get(before));
    begins && before.is_some_and(|before| before.hash == previous)
}

/// Reads a span, or what is in a slot. `None` when the object is not there.
async fn fetch_piece<T>(store: Store, key: Key, len: u64, fetch: FetchFn<T>) -> Result<Option<Slot<T>>, HistoryError> {
    if len != Seal::LEN as u64 || !matches!(key, Key::Log(..)) {
        return Ok(fetch(store, key, len).await?.map(Slot::Segment));
    }
    let Some(object) = read(&store, key, len).await? else {
        return Ok(None);
    };
    let seal = Seal::decode(&object).map_err(HistoryError::format(key))?;
    let says = Key::Log(seal.generation, seal.slot);
    if says != key {
        return Err(HistoryError::Misplaced {
            key,
            found: says.path(),
        });
    }
    Ok(Some(Slot::Seal(seal)))
}

/// The end of what is in a slot; `None` when it is empty.
pub(crate) async fn slot_end(store: &Store, key: Key) -> Result<Option<Slot<SegmentEnd>>, HistoryError> {
    match size(store, key).await? {
        Some(len) => listed_end(store, key, len).await,
        None => Ok(None),
    }
}

/// The same of what is listed with this length; `None` when it is not there any more.
pub(super) async fn listed_end(store: &Store, key: Key, len: u64) -> Result<Option<Slot<SegmentEnd>>, HistoryError> {
    fetch_piece(store.clone(), key, len, fetch_end).await
}

/// A task that does not outlive the wish for its result.
pub(crate) struct Task<T>(pub(crate) JoinHandle<T>);

impl<T> Task<Result<T, HistoryError>> {
    async fn joined(self, key: Key) -> Result<T, HistoryError> {
        match self.await {
            Ok(result) => result,
            Err(error) => Err(HistoryError::Task {
                key,
                problem: error.to_string(),
            }),
        }
    }
}

impl<T> Future for Task<T> {
    type Output = Result<T, tokio::task::JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The end of a segment; `None` when there is none in the slot.
pub(crate) async fn segment_end(store: &Store, key: Key) -> Result<Option<SegmentEnd>, HistoryError> {
    Ok(match slot_end(store, key).await? {
        Some(Slot::Segment(end)) => Some(end),
        Some(Slot::Seal(_)) | None => None,
    })
}

/// The length of an object; `None` when it is not there.
pub(crate) async fn size(store: &Store, key: Key) -> Result<Option<u64>, HistoryError> {
    Ok(store.size_if_there(&key).await?)
}

/// An object that has at most `longest` bytes, and one byte more of one that is longer: decoding it fails. `None` when it
/// is not there.
pub(crate) async fn read(store: &Store, key: Key, longest: u64) -> Result<Option<Bytes>, HistoryError> {
    match store.read_up_to(&key, longest.saturating_add(1)).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A segment of which only the end was read.
#[derive(Debug)]
pub(crate) struct SegmentEnd {
    pub(crate) len: u64,
    pub(crate) index: SegmentIndex,
    /// The bytes of the object from its tables on.
    pub(crate) tail: Bytes,
    /// All of it, where that came along.
    pub(crate) object: Option<Bytes>,
}

impl SegmentEnd {
    /// What the next one has to name as its predecessor, where that is known.
    pub(crate) fn hash(&self) -> Option<ObjectHash> {
        let whole = || {
            self.object
                .as_ref()
                .map(|object| ObjectHash(*blake3::hash(object).as_bytes()))
        };
        self.index.chain_hash().or_else(whole)
    }
}

/// Reads the end of a segment, in one request unless its tables are large.
pub(crate) fn fetch_end(store: Store, key: Key, len: u64) -> Fetch<SegmentEnd> {
    Box::pin(async move {
        let suffix_start = len.saturating_sub(END_BYTES);
        let Some(suffix) = read_range(&store, key, suffix_start..len).await? else {
            return Ok(None);
        };
        let footer = SegmentFooter::parse(&suffix, len).map_err(HistoryError::format(key))?;
        check_place(key, footer.key())?;
        let tables = footer.tables();
        let tail = match tables.start.checked_sub(suffix_start) {
            Some(skip) => suffix.slice(skip as usize..), // at most END_BYTES
            None => match read_range(&store, key, tables.start..len).await? {
                Some(tail) => tail,
                None => return Ok(None),
            },
        };
        let index = SegmentIndex::parse(&footer, &tail).map_err(HistoryError::format(key))?;
        let object = (suffix_start == 0).then_some(suffix);
        Ok(Some(SegmentEnd {
            len,
            index,
            tail,
            object,
        }))
    })
}

/// Bytes of an object; `None` when it is not there.
pub(crate) async fn read_range(
    store: &Store,
    key: Key,
    range: std::ops::Range<u64>,
) -> Result<Option<Bytes>, HistoryError> {
    if range.is_empty() {
        return Ok(Some(Bytes::new()));
    }
    match store.read_range(&key, range).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// An object must be the one that its name says.
pub(crate) fn check_place(key: Key, says: Key) -> Result<(), HistoryError> {
    if says == key {
        Ok(())
    } else {
        Err(HistoryError::Misplaced {
            key,
            found: says.path(),
        })
    }
}
