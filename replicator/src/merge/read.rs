//! Pieces from the store, one after another, some of them ahead. Owns how much of them is in memory; leaves their content to the writer.

use bytes::Bytes;
use futures::{StreamExt, stream};
use replvfs_vfs::types::Txid;
use tokio::sync::{mpsc, oneshot};

use super::MergeError;
use crate::format::{FormatError, Key, ObjectHash, SPAN_PAGES, SPAN_TRANSACTIONS, SegmentIndex};
use crate::history::path::Piece;
use crate::history::walk::{SegmentEnd, check_place, fetch_end, read, read_range};
use crate::history::{GenerationHistory, HistoryError};
use crate::store::Store;

/// Pieces up to this length are read whole, some at a time.
const WHOLE_BYTES: u64 = 1 << 20;
/// Of larger ones, so many bytes.
const RANGE_BYTES: u64 = 4 << 20;

/// A piece on its way to the writer.
pub(super) struct Incoming {
    pub(super) key: Key,
    pub(super) index: SegmentIndex,
    pub(super) content: Content,
}

pub(super) enum Content {
    /// The object.
    Whole(Bytes),
    /// Its blocks, and then its hash.
    Blocks(mpsc::Receiver<Bytes>, oneshot::Receiver<ObjectHash>),
}

pub(super) enum Message {
    Piece(Box<Incoming>),
    /// These were all. Without it reading was given up.
    End,
}

enum Fetched {
    Whole(SegmentIndex, Bytes),
    Large(SegmentEnd),
}

/// Sends on the pieces, up to the first one that is gone, does not begin where the one before it ends, or is too much.
pub(super) async fn send_pieces(
    store: &Store,
    generation: &GenerationHistory,
    (pieces, parallel): (Vec<Piece>, usize),
    sender: mpsc::Sender<Message>,
) -> Result<(), MergeError> {
    let (number, page_size) = (generation.meta().generation, generation.meta().page_size);
    let mut fetched = stream::iter(pieces)
        .map(|piece| async move {
            let key = piece.key(number);
            (key, fetch(store, key, piece.len).await)
        })
        .buffered(parallel.max(1));
    let mut next: Option<Txid> = None;
    let (mut pages, mut transactions) = (0, 0);
    while let Some((key, piece)) = fetched.next().await {
        let Some(piece) = piece? else { break };
        let (Fetched::Whole(index, _) | Fetched::Large(SegmentEnd { index, .. })) = &piece;
        check_place(key, index.key())?;
        if index.header().page_size.get() != page_size {
            let found = format!("a segment with pages of {} bytes", index.header().page_size);
            return Err(HistoryError::Misplaced { key, found }.into());
        }
        pages += index.pages().len() as u64;
        transactions += index.transactions().len() as u64;
        let is_too_much = pages > SPAN_PAGES || transactions > SPAN_TRANSACTIONS;
        if next.is_some_and(|next| is_too_much || next != index.header().first) {
            break;
        }
        next = Some(index.header().last.next());
        if send(store, key, piece, &sender).await?.is_none() {
            // What failed is the writer's to tell.
            return Ok(());
        }
    }
    let _ = sender.send(Message::End).await;
    Ok(())
}

async fn fetch(store: &Store, key: Key, len: u64) -> Result<Option<Fetched>, MergeError> {
    if len > WHOLE_BYTES {
        return Ok(fetch_end(store.clone(), key, len).await?.map(Fetched::Large));
    }
    let Some(object) = read(store, key, len).await? else {
        return Ok(None);
    };
    let index = SegmentIndex::from_object(&object).map_err(MergeError::format(key))?;
    Ok(Some(Fetched::Whole(index, object)))
}

/// `None` when the writer is gone.
async fn send(
    store: &Store,
    key: Key,
    piece: Fetched,
    sender: &mpsc::Sender<Message>,
) -> Result<Option<()>, MergeError> {
    let SegmentEnd { index, tail, .. } = match piece {
        Fetched::Large(end) => end,
        Fetched::Whole(index, object) => {
            let content = Content::Whole(object);
            let piece = Box::new(Incoming { key, index, content });
            return Ok(sender.send(Message::Piece(piece)).await.ok());
        }
    };
    let (blocks, receiver) = mpsc::channel(2);
    let (hash, hash_receiver) = oneshot::channel();
    let piece = Box::new(Incoming {
        key,
        index: index.clone(),
        content: Content::Blocks(receiver, hash_receiver),
    });
    if sender.send(Message::Piece(piece)).await.is_err() {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    let start = part(store, key, 0..SegmentIndex::START_LEN).await?;
    index.check_start(&start).map_err(MergeError::format(key))?;
    hasher.update(&start);
    let mut at = 0;
    while at < index.block_count() {
        let from = index.block_range(at).start;
        let mut to = at + 1;
        while to < index.block_count() && index.block_range(to).end - from <= RANGE_BYTES {
            to += 1;
        }
        let bytes = part(store, key, from..index.block_range(to - 1).end).await?;
        hasher.update(&bytes);
        for block in at..to {
            let range = index.block_range(block);
            let block = bytes.slice((range.start - from) as usize..(range.end - from) as usize);
            if blocks.send(block).await.is_err() {
                return Ok(None);
            }
        }
        at = to;
    }
    hasher.update(&tail);
    Ok(hash.send(ObjectHash(*hasher.finalize().as_bytes())).ok())
}

async fn part(store: &Store, key: Key, range: std::ops::Range<u64>) -> Result<Bytes, MergeError> {
    let len = range.end - range.start;
    match read_range(store, key, range).await? {
        Some(bytes) if bytes.len() as u64 == len => Ok(bytes),
        Some(_) => Err(MergeError::format(key)(FormatError::Damaged {
            part: "object",
            problem: "it is cut off".to_owned(),
        })),
        None => Err(HistoryError::Missing { key, needed_by: key }.into()),
    }
}
