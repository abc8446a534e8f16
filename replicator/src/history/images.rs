//! The images of one generation, and what its log says of the way between two of them. For whoever makes another one.

use replvfs_vfs::types::{PageSize, Txid};

use super::walk::{Walk, fetch_end, read};
use super::{HistoryError, PARALLEL, believed};
use crate::format::{Generation, Key, Manifest, SegmentIndex};
use crate::store::Store;

/// The transactions of the images that are listed, ascending.
pub(crate) async fn list_images(store: &Store, generation: Generation) -> Result<Vec<Txid>, HistoryError> {
    let listed = store.list(&Key::image_prefix(generation)).await?;
    let mut images: Vec<Txid> = listed
        .into_iter()
        .filter_map(|(key, _)| match key {
            Key::Image(_, txid) => Some(txid),
            _ => None,
        })
        .collect();
    images.sort_unstable();
    Ok(images)
}

/// An image's manifest; `None` when it is not there.
pub(crate) async fn manifest_at(
    store: &Store,
    generation: Generation,
    txid: Txid,
) -> Result<Option<Manifest>, HistoryError> {
    let key = Key::Image(generation, txid);
    // The largest pages make the most chunks.
    let longest = PageSize::new(65_536).map_or(0, Manifest::max_bytes);
    let Some(bytes) = read(store, key, longest).await? else {
        return Ok(None);
    };
    let manifest = Manifest::decode(&bytes).map_err(HistoryError::format(key))?;
    let says = Key::Image(manifest.generation, manifest.txid);
    if says != key {
        let found = says.path();
        return Err(HistoryError::Misplaced { key, found });
    }
    Ok(Some(manifest))
}

/// Calls `visit` with the ends of all segments and spans that have transactions behind `after`, up to `last`; they may have others too.
///
/// # Errors
///
/// [`HistoryError::Missing`] when the log ends before `last`; others when the store fails, or a segment is damaged.
pub(crate) async fn visit_log(
    store: &Store,
    generation: Generation,
    after: Txid,
    last: Txid,
    mut visit: impl FnMut(&SegmentIndex),
) -> Result<(), HistoryError> {
    let path = believed::listed_path(store, generation, after.next()).await?;
    let mut next = path.start.unwrap_or(after.next());
    let mut walk = Walk::new(store, generation, path, last, PARALLEL, fetch_end);
    while next <= last {
        let Some((_, end)) = walk.piece(next).await? else {
            return Err(HistoryError::Missing {
                key: Key::Log(generation, next),
                needed_by: Key::Log(generation, last),
            });
        };
        visit(&end.index);
        next = end.index.header().last.next();
    }
    Ok(())
}
