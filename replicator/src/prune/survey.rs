//! What is in a replica, with dates: read so that nothing which comes meanwhile can be taken for unneeded.
//!
//! In memory are what is listed of the logs, the short names of the chunks that images name, and the chunks that none names, up to a bound; not the listing of
//! all chunks.

use std::collections::HashSet;

use futures::{StreamExt, TryStreamExt};
use replvfs_vfs::types::{PageSize, Txid};

use super::PruneOptions;
use super::names::Names;
use super::plan::{ImageObject, Limits, Objects, SpanObject, Survey};
use crate::format::{ChunkName, Generation, GenerationMeta, Key, Manifest, ReplicaMeta};
use crate::history::believed::path_and_strays;
use crate::history::images::{list_images, manifest_at};
use crate::history::path::Listing;
use crate::history::walk::{fetch_end, read, size};
use crate::history::{HistoryError, list_generations, load_generation};
use crate::store::{Dated, Store};

/// Bytes of manifests in memory at a time, but for a single one.
const MANIFESTS_BYTES: u64 = 32 << 20;

/// What there is, and what cannot be read.
pub(super) async fn survey(
    store: &Store,
    options: &PruneOptions,
    meanwhile: impl AsyncFnOnce(),
) -> Result<(Survey, Vec<String>), HistoryError> {
    check(store).await?;
    let mut survey = Survey::default();
    let mut warnings = Vec::new();
    for number in list_generations(store).await? {
        let (objects, problems) = generation(store, options.parallel.max(1), number, &mut survey.named).await?;
        warnings.extend(problems.iter().map(|problem| left_alone(number, problem)));
        survey.generations.push(objects);
    }
    let limits = Limits::of(&survey.generations, options);
    store
        .visit(Key::chunks_prefix(), |chunk| survey.chunk(&limits, chunk))
        .await?;
    warnings.extend(limits.warning());
    warnings.extend(survey.warning());
    warnings.extend(find_broken(store, &mut survey).await?);
    meanwhile().await;
    let is_damaged = survey.generations.iter().any(|generation| generation.is_damaged);
    if survey.has_chunks() && !is_damaged {
        // After the chunks were listed: one that is listed is named by a manifest that is listed now, or by none.
        warnings.extend(look_again(store, &mut survey).await?);
    }
    Ok((survey, warnings))
}

fn left_alone(number: Generation, problem: &str) -> String {
    format!("generation {number} is left alone, and so are all chunks: {problem}")
}

/// Learns the names in images that have come since. What cannot be read may name anything.
pub(super) async fn look_again(store: &Store, survey: &mut Survey) -> Result<Vec<String>, HistoryError> {
    let mut warnings = Vec::new();
    let images = survey.generations.iter().flat_map(|generation| &generation.images);
    let known: HashSet<Key> = images.map(|image| image.object.key).collect();
    for number in list_generations(store).await? {
        for txid in list_images(store, number).await? {
            if known.contains(&Key::Image(number, txid)) {
                continue;
            }
            match manifest_at(store, number, txid).await {
                Ok(manifest) => survey
                    .named
                    .add(&manifest.map_or(Vec::new(), |manifest| manifest.chunks)),
                Err(error @ HistoryError::Store(_)) => return Err(error),
                Err(error) => {
                    warnings.push(left_alone(number, &error.to_string()));
                    let of = survey.generations.iter_mut();
                    // One that has begun since is alone with all chunks, too: none is deleted where any is damaged.
                    for objects in of.filter(|objects| objects.number <= number) {
                        objects.is_damaged = true;
                    }
                }
            }
        }
    }
    Ok(warnings)
}

/// Images that name what is not there. Nobody may rely on them, and what they replace stays.
async fn find_broken(store: &Store, survey: &mut Survey) -> Result<Vec<String>, HistoryError> {
    let mut warnings = Vec::new();
    if survey.named.all_are_seen() {
        return Ok(warnings);
    }
    for generation in &mut survey.generations {
        for image in &mut generation.images {
            let manifest = match manifest_at(store, generation.number, image.txid).await {
                Err(error @ HistoryError::Store(_)) => return Err(error),
                manifest => manifest.ok().flatten(),
            };
            let chunks = manifest.map_or(Vec::new(), |manifest| manifest.chunks);
            if let Some(missing) = missing(store, &mut survey.named, &chunks).await?
                // Another pruner may be faster.
                && size(store, image.object.key).await?.is_some()
            {
                image.is_broken = true;
                let key = image.object.key;
                warnings.push(format!(
                    "{missing} is missing, so the image {key} cannot be relied on: what is before it stays"
                ));
            }
        }
    }
    Ok(warnings)
}

/// One of these chunks that is not in the store.
async fn missing(store: &Store, named: &mut Names, chunks: &[ChunkName]) -> Result<Option<Key>, HistoryError> {
    for name in chunks {
        if named.is_seen(name) {
            continue;
        }
        let chunk = Key::Chunk(*name);
        if size(store, chunk).await?.is_none() {
            return Ok(Some(chunk));
        }
        named.see(name); // listed late
    }
    Ok(None)
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
    named: &mut Names,
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
        strays: HashSet::new(),
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
    let longest = images.iter().map(|(object, _)| object.len).max().unwrap_or(1);
    let at_once = usize::try_from(MANIFESTS_BYTES / longest.max(1)).unwrap_or(parallel);
    let mut read = futures::stream::iter(images)
        .map(|(object, txid)| image(store, meta.as_ref(), object, txid))
        .buffered(at_once.clamp(1, parallel));
    while let Some(image) = read.try_next().await? {
        match image {
            Ok(Some((image, manifest))) => {
                named.add(&manifest.chunks);
                objects.images.push(image);
            }
            Ok(None) => {}
            Err(error) => problems.push(error.to_string()),
        }
    }
    let read = futures::stream::iter(spans)
        .map(|(object, last)| span(store, object, last))
        .buffered(parallel);
    for span in read.try_collect::<Vec<_>>().await? {
        objects.spans.push(span);
    }
    match strays(store, &objects).await {
        Ok(strays) => objects.strays = strays,
        Err(error @ HistoryError::Store(_)) => return Err(error),
        Err(error) => problems.push(error.to_string()),
    }
    objects.is_damaged = !problems.is_empty();
    Ok((objects, problems))
}

/// The strays that a way from one of the images would go along.
async fn strays(store: &Store, objects: &Objects) -> Result<HashSet<Txid>, HistoryError> {
    let spans = objects.spans.iter().map(|span| &span.object);
    let listed = objects.slots.iter().chain(spans);
    let mut listing = Listing::new(listed.map(|object| (object.key, object.len)));
    let mut found = HashSet::new();
    for image in &objects.images {
        let (_, strays) = path_and_strays(store, objects.number, &listing, image.txid.next()).await?;
        listing.slots.retain(|(first, _)| !strays.contains(first));
        found.extend(strays);
    }
    Ok(found)
}

type Judged<T> = Result<Result<T, HistoryError>, HistoryError>;

/// The manifest; `None` when another pruner was faster.
async fn image(
    store: &Store,
    meta: Option<&GenerationMeta>,
    object: Dated,
    txid: Txid,
) -> Judged<Option<(ImageObject, Manifest)>> {
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
    let image = ImageObject {
        object,
        txid,
        taken_at: manifest.taken_at,
        is_broken: false,
    };
    Ok(Ok(Some((image, manifest))))
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
