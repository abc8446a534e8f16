//! An older image in place of one that cannot be used. Owns that this gives the same state or nothing: the log from the older one has to be whole up to
//! what is wanted, and at least up to the image that it stands in for.

use replvfs_vfs::types::Txid;

use super::images::list_images;
use super::path::Listing;
use super::{GenerationHistory, History, HistoryError, Plan};
use crate::format::{Key, Manifest};

/// An image whose manifest can be used.
pub(super) struct Usable {
    pub(super) manifest: Manifest,
    /// The newer ones that cannot be, the newest first, and why.
    pub(super) broken: Vec<(Txid, HistoryError)>,
}

impl History {
    /// The newest image of these that can be used, as far as its manifest tells. `None` when there are none at all.
    ///
    /// # Errors
    ///
    /// When the store fails, or, of the newest one, when none can be used.
    pub(super) async fn newest_usable(
        &self,
        generation: &GenerationHistory,
        images: &[Txid],
    ) -> Result<Option<Usable>, HistoryError> {
        let mut broken = Vec::new();
        for txid in images.iter().rev() {
            match self.manifest(generation, Some(txid)).await {
                Ok(Some(manifest)) => return Ok(Some(Usable { manifest, broken })),
                Ok(None) => {}
                Err(error @ HistoryError::Store(_)) => return Err(error),
                Err(error) => broken.push((*txid, error)),
            }
        }
        match broken.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(None),
        }
    }

    /// Whether the log from an image is whole up to `txid`.
    pub(super) async fn leads_to(
        &self,
        generation: &GenerationHistory,
        listing: &Listing,
        image: Txid,
        txid: Txid,
    ) -> Result<bool, HistoryError> {
        if txid <= image {
            return Ok(true);
        }
        let whole = async {
            let (start, path) = self.path_at(generation, listing, image.next()).await?;
            self.visit_ends(generation, start, path, txid, |_, _| ()).await
        };
        match whole.await {
            Ok(after) => Ok(after > txid),
            Err(error @ HistoryError::Store(_)) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// What a user is told of images that were passed over. One that has been deleted since it was listed needs no word.
    pub(super) async fn passed_over(
        &self,
        generation: &GenerationHistory,
        used: Txid,
        broken: &[(Txid, HistoryError)],
    ) -> Result<Vec<String>, HistoryError> {
        let number = generation.number();
        let is_missing = |error: &HistoryError| matches!(error, HistoryError::Missing { .. });
        let listed = match broken.iter().any(|(_, error)| is_missing(error)) {
            true => list_images(&self.store, number).await?,
            false => Vec::new(),
        };
        let told = broken
            .iter()
            .filter(|(txid, error)| !is_missing(error) || listed.contains(txid));
        Ok(told
            .map(|(txid, error)| {
                let key = Key::Image(number, *txid);
                let problem = match error {
                    HistoryError::Missing { .. } => format!("{key} is missing, though it is listed"),
                    error => error.to_string(),
                };
                warning(&problem, key, Key::Image(number, used))
            })
            .collect())
    }

    /// The same by an older image, since a chunk of this one cannot be used; `None` when that is not possible.
    pub(crate) async fn plan_around(&self, plan: &Plan, problem: &str) -> Result<Option<Plan>, HistoryError> {
        let found = self.generation(plan.generation)?;
        let image = plan.manifest.txid;
        let older: Vec<Txid> = found.images.iter().copied().filter(|older| *older < image).collect();
        let usable = match self.newest_usable(found, &older).await {
            Err(error @ HistoryError::Store(_)) => return Err(error),
            usable => usable.ok().flatten(),
        };
        let Some(Usable { manifest, broken }) = usable else {
            return Ok(None);
        };
        let at_least = plan.at_least.max(image);
        let listing = self.listing(found).await?;
        let wanted = plan.last.unwrap_or(at_least);
        if !self.leads_to(found, &listing, manifest.txid, wanted).await? {
            return Ok(None);
        }
        let (start, path) = self.path_at(found, &listing, manifest.txid.next()).await?;
        let mut warnings = plan.warnings.clone();
        let keys = [image, manifest.txid].map(|txid| Key::Image(plan.generation, txid));
        warnings.push(warning(problem, keys[0], keys[1]));
        warnings.extend(self.passed_over(found, manifest.txid, &broken).await?);
        Ok(Some(Plan {
            generation: plan.generation,
            start,
            last: plan.last,
            previous: (start == found.meta.first_image.next()).then_some(found.root),
            warnings,
            at_least,
            path,
            manifest,
        }))
    }
}

fn warning(problem: &str, broken: Key, used: Key) -> String {
    format!(
        "{problem}: so the image {broken} is of no use, and what it has was taken from {used} and the log behind that. No restore needs the broken one as \
         long as both are there; see what else is damaged with replvfs verify"
    )
}
