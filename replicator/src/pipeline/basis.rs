//! What an image is made after: the newest manifest before it, in its generation, else in the one that this follows from.
//!
//! Owns which chunks are taken over from it unread: those of which every transaction since is known, and none touched them. Of everything else
//! only the hash tells.

use std::collections::HashMap;

use replvfs_vfs::types::Txid;

use super::changed::Touched;
use crate::format::{ChunkHash, ChunkName, Generation, Key, Manifest};
use crate::history::HistoryError;
use crate::history::images::{list_images, manifest_at, visit_log};
use crate::store::Store;

/// An image that is to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) generation: Generation,
    /// The generation that it follows from.
    pub(crate) parent: Option<Generation>,
    pub(crate) txid: Txid,
    pub(crate) page_count: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Basis {
    /// Its manifest; `None` when there is none.
    pub(crate) key: Option<Key>,
    /// The chunks that it names.
    pub(crate) names: HashMap<ChunkHash, ChunkName>,
    /// It, where all that happened since is in the log behind it.
    pub(crate) manifest: Option<Manifest>,
    /// Of each chunk of the new image, its name if it is the same.
    untouched: Vec<Option<ChunkName>>,
}

impl Basis {
    /// The name of a chunk that is what it was.
    pub(crate) fn untouched(&self, chunk: usize) -> Option<ChunkName> {
        self.untouched.get(chunk).copied().flatten()
    }
}

/// `touched` knows all transactions behind `known_from` up to the image's own.
pub(super) async fn find(
    store: &Store,
    wanted: Wanted,
    known_from: Txid,
    mut touched: Touched,
) -> Result<Basis, HistoryError> {
    let images = list_images(store, wanted.generation).await?;
    let newest = images.into_iter().rfind(|image| *image <= wanted.txid);
    if let Some(txid) = newest
        && let Some(before) = manifest_at(store, wanted.generation, txid).await?
    {
        if txid < known_from {
            let note = |index: &_| touched.merge(&Touched::by(index, txid));
            visit_log(store, wanted.generation, txid, known_from, note).await?;
        }
        let leaves = |chunk: usize| touched.leaves(&before, wanted.page_count, chunk);
        let names = before.chunks.iter().enumerate();
        return Ok(Basis {
            key: Some(Key::Image(wanted.generation, txid)),
            names: by_hash(&before.chunks),
            untouched: names.map(|(chunk, name)| leaves(chunk).then_some(*name)).collect(),
            manifest: Some(before),
        });
    }
    of_parent(store, wanted.parent).await
}

/// Nothing is known of the way from there.
pub(crate) async fn of_parent(store: &Store, parent: Option<Generation>) -> Result<Basis, HistoryError> {
    let Some(parent) = parent else {
        return Ok(Basis::default());
    };
    match list_images(store, parent).await?.last() {
        Some(txid) => by_hash_alone(store, parent, *txid).await,
        None => Ok(Basis::default()),
    }
}

/// An image of which only the chunks' hashes are of use.
pub(crate) async fn by_hash_alone(store: &Store, generation: Generation, txid: Txid) -> Result<Basis, HistoryError> {
    let Some(before) = manifest_at(store, generation, txid).await? else {
        return Ok(Basis::default());
    };
    Ok(Basis {
        key: Some(Key::Image(generation, txid)),
        names: by_hash(&before.chunks),
        manifest: None,
        untouched: Vec::new(),
    })
}

pub(crate) fn by_hash(chunks: &[ChunkName]) -> HashMap<ChunkHash, ChunkName> {
    chunks.iter().map(|chunk| (chunk.hash, *chunk)).collect()
}
