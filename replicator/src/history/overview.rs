//! What a replica holds, by numbers. Owns counting; restores rely on none of it, so what is listed is believed.

use std::ops::AddAssign;

use futures::{StreamExt, TryStreamExt};
use replvfs_vfs::types::{Txid, UnixMillis};

use super::walk::{Slot, slot_end};
use super::{GenerationHistory, History, HistoryError, PARALLEL};
use crate::format::{Generation, Key, Seal};

/// Objects in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub objects: u64,
    /// Their bytes, as they are stored.
    pub bytes: u64,
}

impl AddAssign<u64> for Count {
    /// One more, of so many bytes.
    fn add_assign(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// All objects of ours in a replica, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Objects {
    /// Transactions.
    pub segments: Count,
    /// Segments that were merged.
    pub spans: Count,
    /// Ends of generations.
    pub seals: Count,
    /// Manifests of images.
    pub images: Count,
    /// Pages of images.
    pub chunks: Count,
    /// What the replica and its generations are.
    pub descriptions: Count,
}

impl Objects {
    fn count(&mut self, key: &Key, bytes: u64) {
        *self.of_kind(key, bytes) += bytes;
    }

    fn of_kind(&mut self, key: &Key, bytes: u64) -> &mut Count {
        match key {
            Key::Log(..) if bytes == Seal::LEN as u64 => &mut self.seals,
            Key::Log(..) => &mut self.segments,
            Key::Span(..) => &mut self.spans,
            Key::Image(..) => &mut self.images,
            Key::Chunk(_) => &mut self.chunks,
            Key::Replica | Key::Generation(_) => &mut self.descriptions,
        }
    }

    /// By name.
    #[must_use]
    pub fn by_kind(&self) -> [(&'static str, Count); 6] {
        [
            ("segments", self.segments),
            ("spans", self.spans),
            ("seals", self.seals),
            ("images", self.images),
            ("chunks", self.chunks),
            ("descriptions", self.descriptions),
        ]
    }
}

/// A state of the database, and of when it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Its last transaction.
    pub txid: Txid,
    /// When that was committed, or the image was taken.
    pub at: UnixMillis,
}

/// How far a generation goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Which one.
    pub generation: Generation,
    /// Its newest image; `None` when it has none, and cannot be restored from.
    pub image: Option<Moment>,
    /// Its newest transaction; that of the image where the log has nothing.
    pub newest: Option<Moment>,
    /// When it was ended. A writer that still tries to add something is fenced.
    pub sealed_at: Option<UnixMillis>,
    /// Segments and spans of its log.
    pub log: Count,
    /// Generations that follow from it, and where they left it.
    pub left_by: Vec<(Generation, Txid)>,
}

impl History {
    /// Counts what is in the replica. All objects are listed for it.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn objects(&self) -> Result<Objects, HistoryError> {
        let mut objects = Objects::default();
        for (key, bytes) in self.store.list("").await? {
            objects.count(&key, bytes);
        }
        Ok(objects)
    }

    /// How far each generation goes, in the order of history.
    ///
    /// # Errors
    ///
    /// When the store fails, or when the newest image or the end of a log is damaged.
    pub async fn reaches(&self) -> Result<Vec<Reach>, HistoryError> {
        let reaches = futures::stream::iter(&self.generations).map(|generation| self.reach(generation));
        reaches.buffered(PARALLEL).try_collect().await
    }

    async fn reach(&self, generation: &GenerationHistory) -> Result<Reach, HistoryError> {
        let number = generation.number();
        let image = self.manifest(generation, generation.images.last()).await?;
        let image = image.map(|manifest| Moment {
            txid: manifest.txid,
            at: manifest.taken_at,
        });
        let mut reach = Reach {
            generation: number,
            image,
            newest: image,
            sealed_at: None,
            log: Count::default(),
            left_by: self.left_by(number),
        };
        let listing = self.listing(generation).await?;
        let slots = listing.slots;
        for (_, bytes) in slots.iter().filter(|(_, bytes)| *bytes != Seal::LEN as u64) {
            reach.log += *bytes;
        }
        for span in &listing.spans {
            reach.log += span.len;
        }
        for (first, _) in slots.iter().rev() {
            match slot_end(&self.store, Key::Log(number, *first)).await? {
                Some(Slot::Seal(seal)) => reach.sealed_at = Some(seal.sealed_at),
                Some(Slot::Segment(end)) => {
                    if let Some(last) = end.index.transactions().last() {
                        reach.newest = Some(Moment {
                            txid: last.txid,
                            at: last.header.committed_at,
                        });
                    }
                    break;
                }
                None => {}
            }
        }
        Ok(reach)
    }

    fn left_by(&self, number: Generation) -> Vec<(Generation, Txid)> {
        let parents = self
            .generations
            .iter()
            .filter_map(|child| Some((child.number(), child.meta.parent?)));
        let ours = parents.filter(|(_, parent)| parent.generation == number);
        ours.map(|(child, parent)| (child, parent.txid)).collect()
    }
}
