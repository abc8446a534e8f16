//! What an image is made after: the newest manifest before it, in its generation, else the newest one of all from before it.
//!
//! Owns that it is one that is whole as far as that shows without reading it all, and which chunks are taken over from it unread: those of which every transaction since is known, and none touched them. Of everything else
//! only the hash tells.

use std::collections::{HashMap, HashSet};

use replvfs_vfs::types::Txid;

use super::changed::Touched;
use crate::format::{ChunkHash, ChunkName, Generation, Key, Manifest};
use crate::history::HistoryError;
use crate::history::images::{list_images, manifest_at, visit_log};
use crate::store::{Dated, Store};

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
    /// A newer one cannot be used: something was lost, and what else, is not known.
    pub(crate) passed_over: bool,
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
    let mut passed_over = false;
    for txid in images.into_iter().rev().filter(|image| *image <= wanted.txid) {
        let Some(before) = whole(store, wanted.generation, txid).await? else {
            passed_over = true;
            continue;
        };
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
            passed_over,
        });
    }
    let mut found = match wanted.parent {
        Some(parent) => before(store, wanted.generation, parent).await?,
        None => Basis::default(),
    };
    found.passed_over |= passed_over;
    Ok(found)
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
    let Some(before) = whole(store, generation, txid).await? else {
        return Ok(Basis {
            passed_over: true,
            ..Basis::default()
        });
    };
    Ok(Basis {
        key: Some(Key::Image(generation, txid)),
        names: by_hash(&before.chunks),
        manifest: None,
        passed_over: false,
        untouched: Vec::new(),
    })
}

/// The manifest of an image all chunks of which are there; `None`, and a warning, of one that cannot be used. What another image is made of it would be
/// broken as well.
async fn whole(store: &Store, generation: Generation, txid: Txid) -> Result<Option<Manifest>, HistoryError> {
    let problem = match manifest_at(store, generation, txid).await {
        Ok(None) => return Ok(None), // deleted since it was listed
        Ok(Some(manifest)) => match missing(store, &manifest).await? {
            None => return Ok(Some(manifest)),
            Some(chunk) => format!("{chunk} is missing"),
        },
        Err(error @ HistoryError::Store(_)) => return Err(error),
        Err(error) => error.to_string(),
    };
    let (replica, key) = (store.replica(), Key::Image(generation, txid));
    replvfs_vfs::warning!(replica = replica; "no image is made after {key}, which cannot be used: {problem}");
    Ok(None)
}

/// One of its chunks that is not in the store. All that there are are listed, a thousand with each request, and only what does not show there is asked for
/// by name: what was stored last may be listed late.
async fn missing(store: &Store, manifest: &Manifest) -> Result<Option<Key>, HistoryError> {
    let mut unseen: HashSet<ChunkName> = manifest.chunks.iter().copied().collect();
    let see = |object: Dated| {
        if let Key::Chunk(name) = object.key {
            unseen.remove(&name);
        }
    };
    if !manifest.chunks.is_empty() {
        store.visit(Key::chunks_prefix(), see).await?;
    }
    for key in unseen.into_iter().map(Key::Chunk) {
        if !store.has(&key).await? {
            return Ok(Some(key));
        }
    }
    Ok(None)
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

    /// Chunks that are there, and one that is not; or a manifest that is damaged.
    #[tokio::test]
    async fn what_is_broken_is_no_basis() {
        let page_size = PageSize::new(65_536).unwrap();
        let name = |n: u8| ChunkName {
            hash: ChunkHash([n; 32]),
            token: n.into(),
        };
        let store = Store::open("memory://basis-broken", &StoreOptions::default()).unwrap();
        for n in 1..=4 {
            let body = Body::Bytes(bytes::Bytes::from_static(b"a chunk"));
            store.create(&Key::Chunk(name(n)), body).await.unwrap();
        }
        let put = async |generation, txid, chunks: &[u8], is_damaged| {
            let manifest = Manifest {
                generation: Generation(generation),
                txid: Txid(txid),
                page_size,
                page_count: 16 * chunks.len() as u32,
                taken_at: UnixMillis(0),
                position: Position::NONE,
                chunks: chunks.iter().copied().map(name).collect(),
            };
            let mut bytes = manifest.encode().unwrap();
            if is_damaged {
                bytes[70] ^= 1;
            }
            let key = Key::Image(manifest.generation, manifest.txid);
            store.create(&key, Body::Bytes(bytes.into())).await.unwrap();
        };
        let basis_of = async |generation| {
            let wanted = Wanted {
                generation: Generation(generation),
                parent: Some(Generation(generation - 1)),
                txid: Txid(9),
                page_count: 32,
            };
            let basis = find(&store, wanted, Txid(2), Touched::nothing(page_size))
                .await
                .unwrap();
            let names: Vec<ChunkName> = (0..2).filter_map(|chunk| basis.untouched(chunk)).collect();
            assert_eq!(basis.manifest.is_some(), !names.is_empty());
            assert!(names.iter().all(|name| basis.names.contains_key(&name.hash)));
            (basis.key, names)
        };
        put(1, 2, &[1, 2], false).await;
        let first = (Some(Key::Image(Generation(1), Txid(2))), vec![name(1), name(2)]);
        assert_eq!(basis_of(1).await, first);
        put(1, 3, &[1, 7], false).await;
        assert_eq!(basis_of(1).await, first, "a chunk is missing");
        put(1, 4, &[3, 4], true).await;
        assert_eq!(basis_of(1).await, first, "the manifest is damaged");
        // Another generation's may be on their way out, but for the newest.
        assert_eq!(basis_of(2).await, (None, vec![]));
        put(1, 5, &[3, 4], false).await;
        let newest = Some(Key::Image(Generation(1), Txid(5)));
        assert_eq!(basis_of(1).await, (newest, vec![name(3), name(4)]));
        assert_eq!(basis_of(2).await, (newest, vec![]));
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
