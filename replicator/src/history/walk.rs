//! Going through a generation's log, slot by slot. Owns the rule that a listing is only a hint: the next slot is the one
//! after the last transaction of the segment before, it is asked for by name, and one that is missing before a listed
//! one is an error. Leaves what is read of a segment to the caller.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use replvfs_vfs::types::Txid;
use tokio::task::JoinHandle;

use super::HistoryError;
use crate::format::{Generation, Key, Seal, SegmentFooter, SegmentHeader, SegmentIndex};
use crate::store::Store;

/// A slot and the length of its object, as listed.
pub(crate) type Listed = (Txid, u64);

/// One suffix of this length contains the tables of nearly every segment.
const END_BYTES: u64 = 64 * 1024;

/// Reads ahead what is listed, and gives out what is there.
pub(crate) struct Walk<T> {
    store: Store,
    generation: Generation,
    /// The last listed slot.
    last_listed: Option<Txid>,
    ahead: BoxStream<'static, (Txid, Fetched<T>)>,
    peeked: Option<(Txid, Fetched<T>)>,
    fetch: FetchFn<T>,
    seal: Option<Seal>,
}

/// What is in a slot.
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
    /// Up to `parallel` objects are read at the same time, none of a slot after `stop`.
    pub(crate) fn new(
        store: &Store,
        generation: Generation,
        mut listed: Vec<Listed>,
        stop: Txid,
        parallel: usize,
        fetch: FetchFn<T>,
    ) -> Walk<T> {
        let last_listed = listed.last().map(|(first, _)| *first);
        listed.retain(|(first, _)| *first <= stop);
        let reader = store.clone();
        let ahead = futures::stream::iter(listed).map(move |(first, len)| {
            let key = Key::Log(generation, first);
            let task = Task(tokio::spawn(fetch_slot(reader.clone(), key, len, fetch)));
            async move { (first, task.joined(key).await) }
        });
        let ahead = ahead.buffered(parallel.max(1)).boxed();
        Walk {
            store: store.clone(),
            generation,
            last_listed,
            ahead,
            peeked: None,
            fetch,
            seal: None,
        }
    }

    /// What has ended the log, if the walk came that far.
    pub(crate) fn seal(&self) -> Option<&Seal> {
        self.seal.as_ref()
    }

    /// The segment in the slot; `None` when the log ends before it.
    pub(crate) async fn slot(&mut self, slot: Txid) -> Result<Option<T>, HistoryError> {
        loop {
            if self.peeked.is_none() {
                self.peeked = self.ahead.next().await;
            }
            match &self.peeked {
                Some((first, _)) if *first < slot => self.peeked = None,
                _ => break,
            }
        }
        let key = Key::Log(self.generation, slot);
        let found = match self.peeked.take_if(|(first, _)| *first == slot) {
            Some((_, found)) => found?,
            None => match size(&self.store, key).await? {
                Some(len) => fetch_slot(self.store.clone(), key, len, self.fetch).await?,
                None => None,
            },
        };
        match (found, self.last_listed) {
            (None, Some(last)) if last >= slot => Err(HistoryError::Missing {
                key,
                needed_by: Key::Log(self.generation, last),
            }),
            (Some(Slot::Seal(_)), Some(last)) if last > slot => Err(HistoryError::Sealed {
                key,
                behind: Key::Log(self.generation, last),
            }),
            (Some(Slot::Seal(seal)), _) => {
                self.seal = Some(seal);
                Ok(None)
            }
            (Some(Slot::Segment(segment)), _) => Ok(Some(segment)),
            (None, _) => Ok(None),
        }
    }
}

/// Reads what is in a slot. `None` when the object is not there.
async fn fetch_slot<T>(store: Store, key: Key, len: u64, fetch: FetchFn<T>) -> Result<Option<Slot<T>>, HistoryError> {
    if len != Seal::LEN as u64 {
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
        Some(len) => fetch_slot(store.clone(), key, len, fetch_end).await,
        None => Ok(None),
    }
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
    match store.size(&key).await {
        Ok(len) => Ok(Some(len)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
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
}

/// Reads the end of a segment, in one request unless its tables are large.
pub(crate) fn fetch_end(store: Store, key: Key, len: u64) -> Fetch<SegmentEnd> {
    Box::pin(async move {
        let suffix_start = len.saturating_sub(END_BYTES);
        let Some(suffix) = read_range(&store, key, suffix_start..len).await? else {
            return Ok(None);
        };
        let footer = SegmentFooter::parse(&suffix, len).map_err(HistoryError::format(key))?;
        check_place(key, footer.header())?;
        let tables = footer.tables();
        let tail = match tables.start.checked_sub(suffix_start) {
            Some(skip) => suffix.slice(skip as usize..), // at most END_BYTES
            None => match read_range(&store, key, tables.start..len).await? {
                Some(tail) => tail,
                None => return Ok(None),
            },
        };
        let index = SegmentIndex::parse(&footer, &tail).map_err(HistoryError::format(key))?;
        Ok(Some(SegmentEnd { len, index, tail }))
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

/// A segment must be the one that its slot is named after.
pub(crate) fn check_place(key: Key, header: &SegmentHeader) -> Result<(), HistoryError> {
    let says = Key::Log(header.generation, header.first);
    if says == key {
        Ok(())
    } else {
        Err(HistoryError::Misplaced {
            key,
            found: says.path(),
        })
    }
}
