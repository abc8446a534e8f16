//! What an image is made after: the newest manifest before it, in its generation, else the newest one of all from before it.
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
    match wanted.parent {
        Some(parent) => before(store, wanted.generation, parent).await,
        None => Ok(Basis::default()),
    }
}

/// The newest image from before the generation. The parent's may be older than others, and be deleted at this moment; nobody deletes the newest one
/// before something newer is old. Nothing is known of the way from there.
async fn before(store: &Store, generation: Generation, parent: Generation) -> Result<Basis, HistoryError> {
    for number in (parent.0..generation.0).rev().map(Generation) {
        if let Some(txid) = list_images(store, number).await?.last() {
            return by_hash_alone(store, number, *txid).await;
        }
    }
    Ok(Basis::default())
}

/// An image of which only the chunks' hashes are of use.
async fn by_hash_alone(store: &Store, generation: Generation, txid: Txid) -> Result<Basis, HistoryError> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use replvfs_vfs::types::{PageSize, Position, UnixMillis};

    use super::*;
    use crate::format::Manifest;
    use crate::store::{Body, StoreOptions};

    async fn image(store: &Store, generation: u64, txid: u64) {
        let manifest = Manifest {
            generation: Generation(generation),
            txid: Txid(txid),
            page_size: PageSize::new(512).unwrap(),
            page_count: 0,
            taken_at: UnixMillis(0),
            position: Position::NONE,
            chunks: Vec::new(),
        };
        let key = Key::Image(manifest.generation, manifest.txid);
        let body = Body::Bytes(manifest.encode().unwrap().into());
        store.create(&key, body).await.unwrap();
    }

    /// A machine that was away for long goes on from a generation that is about to be deleted.
    #[tokio::test]
    async fn no_image_is_made_after_one_that_is_out_of_the_window_where_there_is_a_newer_one() {
        let store = Store::open("memory://basis-newest", &StoreOptions::default()).unwrap();
        for (generation, txid) in [(2, 4), (3, 6), (3, 10)] {
            image(&store, generation, txid).await;
        }
        let basis_of = async |generation, parent| {
            let wanted = Wanted {
                generation: Generation(generation),
                parent: Some(Generation(parent)),
                txid: Txid(4),
                page_count: 0,
            };
            let basis = find(&store, wanted, Txid(4), Touched::nothing(PageSize::new(512).unwrap()))
                .await
                .unwrap();
            basis.key
        };
        let newest = Some(Key::Image(Generation(3), Txid(10)));
        assert_eq!(basis_of(5, 2).await, newest);
        assert_eq!(basis_of(5, 4).await, None, "it follows from nothing else");
        assert_eq!(basis_of(3, 2).await, Some(Key::Image(Generation(2), Txid(4))));
    }
}
