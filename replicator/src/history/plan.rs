//! From a target to the image and the pieces of the log that lead there. Owns the meaning of "at that time"; leaves reading the pages
//! to restore.

use futures::future::join;
use replvfs_vfs::types::{PageSize, Txid, UnixMillis};

use super::error::show_time;
use super::path::{Listing, LogPath, Piece};
use super::walk::read;
use super::{GenerationHistory, History, HistoryError, Target, believed};
use crate::format::{Generation, Key, Manifest, ObjectHash};

/// What to read, in which order, to have the database at the target.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The generation that all of it is in.
    pub generation: Generation,
    /// The image to begin with.
    pub manifest: Manifest,
    /// The first transaction of the first segment or span to read. Its first ones may already be in the image.
    pub start: Txid,
    /// The last transaction to apply; `None` for all that there are.
    pub last: Option<Txid>,
    /// What the first segment at `start` must name as its predecessor, where that is known.
    pub previous: Option<ObjectHash>,
    /// What a user should know.
    pub warnings: Vec<String>,
    /// The newest image that this one stands in for: the log must lead there, also where more is wanted by no number.
    pub(crate) at_least: Txid,
    /// What was listed from `start` on: what can be read ahead, and what must be there.
    pub(crate) path: LogPath,
}

impl Plan {
    /// Bytes of the log that were listed and are to be read, as they are stored.
    pub(crate) fn log_len(&self) -> u64 {
        let last = self.last.unwrap_or(Txid(u64::MAX));
        if last <= self.manifest.txid {
            return 0;
        }
        let pieces = self.path.pieces.iter();
        let wanted = pieces.filter(|piece| piece.first <= last && !piece.is_seal());
        wanted.map(|piece| piece.len).sum()
    }
}

impl History {
    /// Finds the image and the segments for a target. Without a generation it is looked for in the newest one that can be
    /// restored from and, if it is older than that, where it was left: along the parents. A transaction that is not there is taken from the one
    /// other generation that has it, with a warning; where several have it, one must be named.
    ///
    /// [`Target::At`] a time T means, in the newest generation whose oldest image was taken at or before T: begin with the
    /// newest image, in the order of transactions, that was taken at or before T; then the last transaction, in the order of
    /// transactions, that has a commit time of at most T, of those up to the next image. Clocks can be set back, so a transaction before that
    /// one may have a later commit time.
    ///
    /// An image whose manifest cannot be used is passed over, with a warning, where the log from an older one leads to it and to the target; but not
    /// for a time, since nothing else tells when it was taken.
    ///
    /// # Errors
    ///
    /// [`HistoryError::NotInHistory`] when there is no such state; others when the store fails, or when an object that is
    /// needed to tell is damaged or missing.
    pub async fn plan(&self, target: Target, generation: Option<Generation>) -> Result<Plan, HistoryError> {
        match (self.plan_in_line(target, generation).await, target, generation) {
            (Err(error @ HistoryError::NotInHistory { .. }), Target::Txid(txid), None) => {
                self.plan_in_a_branch(txid, error).await
            }
            (planned, ..) => planned,
        }
    }

    pub(super) async fn plan_in_line(
        &self,
        target: Target,
        generation: Option<Generation>,
    ) -> Result<Plan, HistoryError> {
        let found = match generation {
            Some(number) => self.generation(number)?,
            None => self.choose(target).await?,
        };
        let beside = async {
            match generation.is_none() && target == Target::Newest {
                true => self.written_beside(found).await,
                false => Vec::new(),
            }
        };
        let (planned, beside) = join(self.plan_in(found, target), beside).await;
        let mut plan = planned?;
        plan.warnings.extend(beside);
        Ok(plan)
    }

    async fn plan_in(&self, found: &GenerationHistory, target: Target) -> Result<Plan, HistoryError> {
        if found.images.is_empty() {
            let (generation, left_out) = (found.number(), self.left_out.clone());
            return Err(HistoryError::Generation {
                generation,
                problem: "has no image yet",
                left_out,
            });
        }
        let listed;
        let listing = match &found.log {
            Some(log) => log,
            None => {
                listed = self.listing(found).await?;
                &listed
            }
        };
        let mut broken = Vec::new();
        let (manifest, last) = match target {
            Target::Newest | Target::Txid(_) => {
                let last = match target {
                    Target::Txid(txid) => Some(txid),
                    _ => None,
                };
                let behind = found
                    .images
                    .partition_point(|image| last.is_none_or(|last| *image <= last));
                let usable = self.newest_usable(found, &found.images[..behind]).await?;
                let manifest = usable.map(|usable| {
                    broken = usable.broken;
                    usable.manifest
                });
                if let (Some(manifest), Some(txid), true) = (&manifest, last, broken.is_empty()) {
                    self.require(found, listing, manifest, txid).await?;
                }
                (manifest, last)
            }
            Target::At(time) => match self.image_at(found, time).await? {
                None => (None, None),
                Some((manifest, next)) => {
                    let last = self.last_at(found, listing, &manifest, next, time).await?;
                    (Some(manifest), Some(last))
                }
            },
        };
        let Some(manifest) = manifest else {
            return Err(self.before(found, target).await?);
        };
        let at_least = broken.first().map_or(manifest.txid, |(newest, _)| *newest);
        let wanted = last.unwrap_or(at_least);
        if !broken.is_empty() && !self.leads_to(found, listing, manifest.txid, wanted).await? {
            return Err(broken.swap_remove(0).1);
        }
        let (start, path) = self.path_at(found, listing, manifest.txid.next()).await?;
        let mut warnings = self.warnings.clone();
        warnings.extend(self.passed_over(found, manifest.txid, &broken).await?);
        Ok(Plan {
            generation: found.number(),
            start,
            last,
            previous: (start == found.meta.first_image.next()).then_some(found.root),
            warnings,
            at_least,
            path,
            manifest,
        })
    }

    /// What a plan for the newest state is going to read of the log if nothing is wrong with the image, where that can be told without a request: the
    /// generation, its image, where to begin, and the path from there.
    pub(crate) fn newest_path(&self) -> Option<(Generation, Txid, Txid, LogPath)> {
        let found = self.generations.iter().rev().find(|found| !found.images.is_empty())?;
        let (listing, image) = (found.log.as_ref()?, found.images.last()?);
        let path = listing.path(image.next());
        let start = path.start?;
        let is_sealed = path.pieces.first().is_some_and(Piece::is_seal);
        let is_told = !is_sealed && listing.in_spans(&path.pieces).is_empty();
        is_told.then(|| (found.number(), *image, start, path))
    }

    async fn choose(&self, target: Target) -> Result<&GenerationHistory, HistoryError> {
        let restorable = || {
            self.generations
                .iter()
                .rev()
                .filter(|generation| !generation.images.is_empty())
        };
        let newest = restorable().next();
        let newest = newest.ok_or_else(|| HistoryError::Empty {
            left_out: self.left_out.clone(),
        })?;
        match target {
            Target::Newest => Ok(newest),
            Target::Txid(txid) => self.choose_by_txid(newest, txid).await,
            Target::At(time) => {
                let mut oldest = newest;
                for generation in restorable() {
                    oldest = generation;
                    let first = self.manifest(generation, generation.images.first()).await?;
                    // What was there then was deleted; an older generation has another state.
                    let is_pruned = generation.images.first() != Some(&generation.meta.first_image);
                    if first.is_some_and(|manifest| manifest.taken_at <= time)
                        || is_pruned && generation.meta.created_at <= time
                    {
                        break;
                    }
                }
                Ok(oldest)
            }
        }
    }

    /// The transactions of a line of generations are those of the newest, then those of its parent up to where it was left.
    async fn choose_by_txid<'a>(
        &'a self,
        newest: &'a GenerationHistory,
        txid: Txid,
    ) -> Result<&'a GenerationHistory, HistoryError> {
        let mut found = newest;
        while found.images.first().is_none_or(|image| *image > txid) {
            let not_there = |why: String| HistoryError::NotInHistory {
                target: Target::Txid(txid),
                range: format!(
                    "generation {} begins after it{}, {why}{}",
                    found.number(),
                    begins_with(found),
                    self.pruned(found)
                ),
                left_out: self.left_out.clone(),
            };
            let Some(parent) = found.meta.parent else {
                return Err(not_there(
                    "and follows from no other; to look elsewhere, name the generation".to_owned(),
                ));
            };
            if txid > parent.txid {
                return Err(not_there(format!(
                    "and follows from transaction {} of generation {}; to look behind that, name the generation",
                    parent.txid, parent.generation
                )));
            }
            let generation = self
                .generations
                .iter()
                .find(|generation| generation.number() == parent.generation);
            found = generation.ok_or_else(|| {
                not_there(format!(
                    "and the one that it follows from, {}, is not there",
                    parent.generation
                ))
            })?;
        }
        Ok(found)
    }

    pub(super) async fn manifest(
        &self,
        generation: &GenerationHistory,
        txid: Option<&Txid>,
    ) -> Result<Option<Manifest>, HistoryError> {
        let Some(txid) = txid else {
            return Ok(None);
        };
        let key = Key::Image(generation.number(), *txid);
        let longest = PageSize::new(generation.meta.page_size).map_or(0, Manifest::max_bytes);
        let Some(bytes) = read(&self.store, key, longest).await? else {
            return Err(HistoryError::Missing {
                key,
                needed_by: Key::Generation(generation.number()),
            });
        };
        let manifest = Manifest::decode(&bytes).map_err(HistoryError::format(key))?;
        let says = Key::Image(manifest.generation, manifest.txid);
        if says != key {
            return Err(HistoryError::Misplaced {
                key,
                found: says.path(),
            });
        }
        if manifest.page_size.get() != generation.meta.page_size {
            let found = format!("an image with pages of {} bytes", manifest.page_size);
            return Err(HistoryError::Misplaced { key, found });
        }
        Ok(Some(manifest))
    }

    /// Fails when the log does not reach `txid`.
    async fn require(
        &self,
        generation: &GenerationHistory,
        listing: &Listing,
        manifest: &Manifest,
        txid: Txid,
    ) -> Result<(), HistoryError> {
        if txid == manifest.txid {
            return Ok(());
        }
        // A piece that is listed and begins behind the image is near it; else the way is that from the image.
        let near = believed::path(&self.store, generation.number(), listing, txid).await?;
        let (start, path) = match near.start {
            Some(start) if start > manifest.txid => (start, near),
            _ => self.path_at(generation, listing, manifest.txid.next()).await?,
        };
        let after = self.visit_ends(generation, start, path, txid, |_, _| ()).await?;
        if after > txid {
            return Ok(());
        }
        let newest = Txid(after.0.saturating_sub(1)).max(manifest.txid);
        Err(self.not_in_history(
            Target::Txid(txid),
            format!(
                "the newest transaction of generation {} is {newest}",
                generation.number()
            ),
        ))
    }

    /// The newest image taken at or before a time, and the transaction of the next one.
    async fn image_at(
        &self,
        generation: &GenerationHistory,
        time: UnixMillis,
    ) -> Result<Option<(Manifest, Option<Txid>)>, HistoryError> {
        let mut next = None;
        for txid in generation.images.iter().rev() {
            if let Some(manifest) = self.manifest(generation, Some(txid)).await?
                && manifest.taken_at <= time
            {
                return Ok(Some((manifest, next)));
            }
            next = Some(*txid);
        }
        Ok(None)
    }

    async fn last_at(
        &self,
        generation: &GenerationHistory,
        listing: &Listing,
        manifest: &Manifest,
        next: Option<Txid>,
        time: UnixMillis,
    ) -> Result<Txid, HistoryError> {
        let stop = next.unwrap_or(Txid(u64::MAX));
        let mut last = manifest.txid;
        let (start, path) = self.path_at(generation, listing, manifest.txid.next()).await?;
        self.visit_ends(generation, start, path, stop, |_, end| {
            let entries = end.index.transactions().iter();
            let mut wanted = entries.filter(|entry| entry.header.committed_at <= time && entry.txid <= stop);
            last = wanted.next_back().map_or(last, |entry| entry.txid.max(last));
        })
        .await?;
        Ok(last)
    }

    /// Whether something that was there before is not there any more, or could never be restored, in words.
    fn pruned(&self, generation: &GenerationHistory) -> &'static str {
        let before = |other: &&GenerationHistory| other.number() <= generation.number();
        let mut earlier = self.generations.iter().filter(before);
        let is_whole = |other: &GenerationHistory| other.images.first() == Some(&other.meta.first_image);
        match earlier.all(is_whole) {
            true => "",
            false => "; older history was pruned, as the setting retention says",
        }
    }

    async fn before(&self, generation: &GenerationHistory, target: Target) -> Result<HistoryError, HistoryError> {
        let oldest = self.manifest(generation, generation.images.first()).await?;
        let range = match oldest {
            Some(oldest) => format!(
                "generation {} begins with the image of transaction {}, taken at {}{}",
                generation.number(),
                oldest.txid,
                show_time(oldest.taken_at),
                self.pruned(generation)
            ),
            None => format!("generation {} has no image", generation.number()),
        };
        Ok(self.not_in_history(target, range))
    }

    fn not_in_history(&self, target: Target, range: String) -> HistoryError {
        HistoryError::NotInHistory {
            target,
            range,
            left_out: self.left_out.clone(),
        }
    }
}

/// The oldest transaction of a generation that can be restored, in words.
fn begins_with(found: &GenerationHistory) -> String {
    let oldest = found.images.first();
    oldest.map_or(String::new(), |image| format!(" with the image of transaction {image}"))
}
