//! What is in a replica, with dates: read so that nothing which comes meanwhile can be taken for unneeded.

use futures::{StreamExt, TryStreamExt};
use replvfs_vfs::types::{PageSize, Txid};

use super::plan::{ImageObject, Objects, SpanObject, Survey};
use crate::format::{Generation, GenerationMeta, Key, Manifest, ReplicaMeta};
use crate::history::walk::{fetch_end, read};
use crate::history::{HistoryError, list_generations, load_generation};
use crate::store::{Dated, Store};

/// What there is, and what cannot be read.
pub(super) async fn survey(
    store: &Store,
    parallel: usize,
    meanwhile: impl AsyncFnOnce(),
) -> Result<(Survey, Vec<String>), HistoryError> {
    check(store).await?;
    // Before the manifests: a chunk that is listed is named by a manifest that is listed after it, or by none.
    let chunks = store.list_dated(Key::chunks_prefix()).await?;
    meanwhile().await;
    let mut survey = Survey {
        generations: Vec::new(),
        chunks,
    };
    let mut warnings = Vec::new();
    for number in list_generations(store).await? {
        let (objects, problems) = generation(store, parallel, number).await?;
        warnings.extend(
            problems
                .iter()
                .map(|problem| format!("generation {number} is left alone, and so are all chunks: {problem}")),
        );
        survey.generations.push(objects);
    }
    Ok((survey, warnings))
}

/// This release must know what the replica is.
async fn check(store: &Store) -> Result<(), HistoryError> {
    let longest = crate::format::MAX_META_BYTES as u64;
    let bytes = read(store, Key::Replica, longest)
        .await?
        .ok_or(HistoryError::NoReplica)?;
    ReplicaMeta::from_bytes(&bytes).map_err(HistoryError::format(Key::Replica))?;
    Ok(())
}

async fn generation(
    store: &Store,
    parallel: usize,
    number: Generation,
) -> Result<(Objects, Vec<String>), HistoryError> {
    let mut problems = Vec::new();
    let meta: Option<GenerationMeta> = match load_generation(store, number).await {
        Ok(found) => found.map(|found| found.meta().clone()),
        Err(error @ HistoryError::Store(_)) => return Err(error),
        Err(error) => {
            problems.push(error.to_string());
            None
        }
    };
    let mut objects = Objects {
        number,
        has_begun: meta.is_some(),
        is_damaged: false,
        first_slot: meta.as_ref().map_or(Txid::ZERO, |meta| meta.first_image.next()),
        images: Vec::new(),
        slots: Vec::new(),
        spans: Vec::new(),
    };
    let (mut images, mut spans) = (Vec::new(), Vec::new());
    for object in store.list_dated(&Key::generation_prefix(number)).await? {
        match object.key {
            Key::Log(..) => objects.slots.push(object),
            Key::Image(_, txid) => images.push((object, txid)),
            Key::Span(_, first, last) if first < last => spans.push((object, last)),
            _ => {}
        }
    }
    let read = futures::stream::iter(images)
        .map(|(object, txid)| image(store, meta.as_ref(), object, txid))
        .buffered(parallel);
    for image in read.try_collect::<Vec<_>>().await? {
        match image {
            Ok(image) => objects.images.extend(image),
            Err(error) => problems.push(error.to_string()),
        }
    }
    let read = futures::stream::iter(spans)
        .map(|(object, last)| span(store, object, last))
        .buffered(parallel);
    for span in read.try_collect::<Vec<_>>().await? {
        objects.spans.push(span);
    }
    objects.is_damaged = !problems.is_empty();
    Ok((objects, problems))
}

type Judged<T> = Result<Result<T, HistoryError>, HistoryError>;

/// The manifest; `None` when another pruner was faster.
async fn image(store: &Store, meta: Option<&GenerationMeta>, object: Dated, txid: Txid) -> Judged<Option<ImageObject>> {
    let key = object.key;
    let longest = meta.and_then(|meta| PageSize::new(meta.page_size));
    let longest = longest.or(PageSize::new(65_536)).map_or(0, Manifest::max_bytes);
    let Some(bytes) = read(store, key, longest).await? else {
        return Ok(Ok(None));
    };
    let manifest = match Manifest::decode(&bytes) {
        Ok(manifest) => manifest,
        Err(error) => return Ok(Err(HistoryError::format(key)(error))),
    };
    let says = Key::Image(manifest.generation, manifest.txid);
    if says != key {
        let found = says.path();
        return Ok(Err(HistoryError::Misplaced { key, found }));
    }
    Ok(Ok(Some(ImageObject {
        object,
        txid,
        taken_at: manifest.taken_at,
        chunks: manifest.chunks.iter().copied().collect(),
    })))
}

/// One that cannot be read stands for nothing.
async fn span(store: &Store, object: Dated, last: Txid) -> Result<SpanObject, HistoryError> {
    let end = match fetch_end(store.clone(), object.key, object.len).await {
        Err(error @ HistoryError::Store(_)) => return Err(error),
        end => end.ok().flatten(),
    };
    let merged = end.iter().flat_map(|end| end.index.merged());
    Ok(SpanObject {
        object,
        last,
        segments: merged.map(|segment| segment.first).collect(),
    })
}
