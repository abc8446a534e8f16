//! What the store has, compared with what this machine remembers: how the history goes on.
//!
//! Owns the comparison. Changes nothing in the store, and leaves to the task what is done about it. What another process's upload may
//! still put behind the end of the log is left to [`adopt`](super::adopt).

use replvfs_vfs::resume::Mark;
use replvfs_vfs::types::{PageSize, Txid};

use super::Stopped;
use super::adopt::hash_of;
use super::generation;
use super::local::{Start, Stored};
use super::uploader::Uploader;
use crate::format::{Generation, Key, LocalState, Manifest, Parent};
use crate::history::walk::{SegmentEnd, fetch_end, read, size};
use crate::history::{GenerationHistory, HistoryError, list_generations, list_slots, load_generation};
use crate::store::Store;

/// The end of a generation's log.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) generation: Generation,
    pub(super) page_size: PageSize,
    pub(super) stored: Stored,
    /// The transaction of an image in it.
    pub(super) image: Option<Txid>,
}

/// How the history goes on.
#[derive(Debug)]
pub(super) enum Verdict {
    /// With a first generation, or one that follows from nothing.
    Anew,
    /// Where the state file says, if the database proves to go on from there.
    GoesOn(End),
    /// This machine remembers nothing: the database has to prove that it goes on from there, or the history is another database's.
    MustProve(End),
    /// The replica goes on in another way than this machine: with a new generation, which leaves the other one at this place.
    Diverged(Parent, String),
    /// What this machine remembers is not in the replica any more.
    Lost(String),
}

/// What [`attach`] found.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) verdict: Verdict,
    /// The newest transaction in the store: a number that is not proved must be higher.
    pub(super) newest: Option<Txid>,
}

/// Compares. Nothing of the database's own need be known yet.
pub(super) async fn attach(uploader: &Uploader, start: &Start) -> Result<Attached, Stopped> {
    let shared = uploader.shared();
    let id = generation::look(uploader).await?;
    if let (Some(known), Some(id)) = (&start.known, id)
        && known.database_id != id
    {
        shared.fail(&format!(
            "the replica {} holds the history of another database than the one that {} was replicated to it from: give this one a \
             replica of its own, or restore the other first. To start again in this replica, remove {1}-replvfs",
            shared.store.replica(),
            shared.database
        ));
        return Err(Stopped);
    }
    let told = uploader.until_told(|| compare(&shared.store, start)).await?;
    match told {
        Ok(attached) => Ok(attached),
        Err(error) => {
            shared.fail(&format!(
                "the history in the replica {} cannot be continued: {error}",
                shared.store.replica()
            ));
            Err(Stopped)
        }
    }
}

async fn compare(store: &Store, start: &Start) -> Result<Attached, HistoryError> {
    let generations = list_generations(store).await?;
    let newest = newest_begun(store, &generations).await?;
    if let Some(known) = &start.known {
        return compare_with(store, known, newest.as_ref()).await;
    }
    let Some(newest) = newest else {
        let verdict = Verdict::Anew;
        return Ok(Attached { verdict, newest: None });
    };
    let end = end_of(store, &newest).await?;
    Ok(Attached {
        newest: Some(end.stored.mark.txid),
        verdict: if start.is_new {
            Verdict::Anew
        } else {
            Verdict::MustProve(end)
        },
    })
}

/// The newest generation that has anything in it. One that has only been named is what a crash left, before anybody could rely on it.
async fn newest_begun(store: &Store, generations: &[Generation]) -> Result<Option<GenerationHistory>, HistoryError> {
    for number in generations.iter().rev() {
        if let Some(generation) = load_generation(store, *number).await? {
            let has_log = || async { Ok::<_, HistoryError>(!list_slots(store, *number).await?.is_empty()) };
            if !generation.images().is_empty() || has_log().await? {
                return Ok(Some(generation));
            }
        }
    }
    Ok(None)
}

async fn compare_with(
    store: &Store,
    known: &LocalState,
    newest: Option<&GenerationHistory>,
) -> Result<Attached, HistoryError> {
    let stored = known.stored.txid;
    let lost = |what: String| Attached {
        verdict: Verdict::Lost(what),
        newest: Some(stored),
    };
    let ours = match newest.filter(|newest| newest.meta().generation == known.generation) {
        Some(newest) => Some(newest.clone()),
        None => load_generation(store, known.generation).await?,
    };
    let Some(ours) = ours else {
        return Ok(lost(format!(
            "generation {} is not in the replica any more",
            known.generation
        )));
    };
    let parent = Parent {
        generation: known.generation,
        txid: stored,
    };
    let diverged = |what: String| Attached {
        verdict: Verdict::Diverged(parent, what),
        newest: Some(stored),
    };
    match known.slot {
        None if ours.root() != known.previous => {
            return Ok(diverged(format!("generation {} is another one", known.generation)));
        }
        None => {}
        Some(slot) => {
            let key = Key::Log(known.generation, slot);
            match segment_end(store, key).await? {
                None => return Ok(lost(format!("{key} is not in the replica any more"))),
                Some(end) => {
                    let header = end.index.header();
                    if (header.last, header.end) != (stored, known.stored.position) {
                        return Ok(diverged(format!("{key} does not end with transaction {stored}")));
                    }
                }
            }
        }
    }
    if let Some(newest) = newest.filter(|newest| newest.meta().generation > known.generation) {
        return Ok(diverged(format!("generation {} has begun", newest.meta().generation)));
    }
    Ok(Attached {
        newest: Some(last_behind(store, known.generation, stored).await?),
        verdict: Verdict::GoesOn(End {
            generation: known.generation,
            page_size: known.page_size,
            stored: Stored {
                mark: known.stored,
                slot: known.slot,
                previous: known.previous,
            },
            image: ours.images().first().copied(),
        }),
    })
}

/// The last transaction of the log, known to have this one.
async fn last_behind(store: &Store, generation: Generation, mut last: Txid) -> Result<Txid, HistoryError> {
    while let Some(end) = segment_end(store, Key::Log(generation, last.next())).await? {
        last = end.index.header().last;
    }
    Ok(last)
}

async fn end_of(store: &Store, found: &GenerationHistory) -> Result<End, HistoryError> {
    let meta = found.meta();
    let generation = meta.generation;
    let key = Key::Generation(generation);
    let page_size = PageSize::new(meta.page_size).ok_or_else(|| HistoryError::Misplaced {
        key,
        found: "a generation without pages".to_owned(),
    })?;
    // What is listed is a hint: the log goes on while the next slot is there.
    let listed = list_slots(store, generation).await?.last().map(|(slot, _)| *slot);
    let mut next = listed.unwrap_or(meta.first_image.next());
    let mut newest: Option<(Txid, SegmentEnd)> = None;
    while let Some(end) = segment_end(store, Key::Log(generation, next)).await? {
        let slot = next;
        next = end.index.header().last.next();
        newest = Some((slot, end));
    }
    let stored = match newest {
        Some((slot, end)) => Stored {
            mark: Mark {
                txid: end.index.header().last,
                position: end.index.header().end,
            },
            slot: Some(slot),
            previous: hash_of(store, Key::Log(generation, slot), end.len).await?,
        },
        None => Stored {
            mark: first_mark(store, found, page_size).await?,
            slot: None,
            previous: found.root(),
        },
    };
    Ok(End {
        generation,
        page_size,
        stored,
        image: found.images().first().copied(),
    })
}

/// The state that the generation begins with.
async fn first_mark(store: &Store, found: &GenerationHistory, page_size: PageSize) -> Result<Mark, HistoryError> {
    let meta = found.meta();
    let key = Key::Image(meta.generation, meta.first_image);
    let bytes = read(store, key, Manifest::max_bytes(page_size)).await?;
    let position = match bytes {
        Some(bytes) => Manifest::decode(&bytes).map_err(HistoryError::format(key))?.position,
        None => Default::default(),
    };
    Ok(Mark {
        txid: meta.first_image,
        position,
    })
}

/// The end of a segment; `None` when it is not there.
pub(super) async fn segment_end(store: &Store, key: Key) -> Result<Option<SegmentEnd>, HistoryError> {
    match size(store, key).await? {
        Some(len) => fetch_end(store.clone(), key, len).await,
        None => Ok(None),
    }
}
