//! What the store has, compared with what this machine remembers: how the history goes on.
//!
//! Owns the comparison. Changes nothing in the store, and leaves to the task what is done about it. What another process's upload may
//! still put behind the end of the log is left to [`adopt`](super::adopt).

use replvfs_vfs::resume::{Left, Mark, Next};
use replvfs_vfs::types::{PageSize, Position, Txid};

use super::Stopped;
use super::generation;
use super::local::{Start, Stored};
use super::strict::is_unfinished;
use super::uploader::Uploader;
use crate::format::{Generation, Key, LocalState, Manifest, Parent, Seal};
use crate::history::find::{Found, FoundSegment, find};
use crate::history::walk::read;
use crate::history::{GenerationHistory, HistoryError, list_generations, list_log, load_generation};
#[cfg(any(test, feature = "testing"))]
use crate::outside::simulated::{Rule, is_broken};
use crate::store::{Fencing, Store};

/// The end of a generation's log.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) generation: Generation,
    pub(super) page_size: PageSize,
    /// The first slot of the generation.
    pub(super) first: Txid,
    pub(super) stored: Stored,
    /// The transaction of an image in it.
    pub(super) image: Option<Txid>,
    /// That of the newest one.
    pub(super) newest_image: Option<Txid>,
    /// The generation that it follows from.
    pub(super) parent: Option<Generation>,
    /// It has an image, or one does that it follows from.
    pub(super) founded: bool,
    /// No segment can follow any more.
    pub(super) sealed: bool,
    /// What is behind it is a transaction of this machine that may never have been committed.
    pub(super) unfinished: bool,
}

impl End {
    /// Nothing is in it, and it follows from nothing: this may not be the replica's history yet.
    pub(super) fn is_unfounded(&self) -> bool {
        self.stored.slot.is_none() && !self.founded
    }
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
    /// The replica got another database's history, before anything of this one's was in it.
    Forestalled,
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
    let is_fenced = start.known.as_ref().is_some_and(|known| known.fenced);
    if is_fenced && shared.refusal.stops() {
        shared.stays_fenced();
        return Err(Stopped);
    }
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
    if is_fenced && id.is_some() {
        shared.stays_fenced();
        return Err(Stopped);
    }
    match uploader.until_sure(|| compare(&shared.store, start)).await? {
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

/// Whether anything was ever stored, in a generation after `own` if there is one.
pub(super) async fn has_history(store: &Store, own: Option<Generation>) -> Result<bool, HistoryError> {
    #[cfg(any(test, feature = "testing"))]
    if is_broken(Rule::StillEmpty) {
        return Ok(false);
    }
    let generations = list_generations(store).await?;
    let newest = newest_begun(store, &generations).await?;
    Ok(newest.is_some_and(|newest| own.is_none_or(|own| newest.meta().generation > own)))
}

/// The newest generation that has anything in it. One that has only been named is what a crash left, before anybody could rely on it.
async fn newest_begun(store: &Store, generations: &[Generation]) -> Result<Option<GenerationHistory>, HistoryError> {
    for number in generations.iter().rev() {
        if let Some(generation) = load_generation(store, *number).await? {
            // A seal alone is how the next writer has put an end to it.
            let has_log = || async {
                let listing = list_log(store, *number).await?;
                let has_segment = listing.slots.iter().any(|(_, len)| *len != Seal::LEN as u64);
                Ok::<_, HistoryError>(has_segment || !listing.spans.is_empty())
            };
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
    let (stored, stored_at) = (known.stored.txid, known.stored.position);
    let lost = |what: String| Attached {
        verdict: Verdict::Lost(what),
        newest: Some(stored),
    };
    let ours = match newest.filter(|newest| newest.meta().generation == known.generation) {
        Some(newest) => Some(newest.clone()),
        None => load_generation(store, known.generation).await?,
    };
    let parent = Parent {
        generation: known.generation,
        txid: stored,
    };
    let diverged = |what: String| Attached {
        verdict: Verdict::Diverged(parent, what),
        newest: Some(stored),
    };
    let Some(ours) = ours else {
        let what = format!("generation {} is not in the replica any more", known.generation);
        let is_followed = newest.is_some_and(|newest| newest.meta().generation > known.generation);
        return Ok(if is_followed { diverged(what) } else { lost(what) });
    };
    let mut may_be_free = true;
    match known.slot {
        None if ours.root() != known.previous => {
            return Ok(diverged(format!("generation {} is another one", known.generation)));
        }
        None => {}
        Some(slot) => {
            let key = Key::Log(known.generation, slot);
            match find(store, known.generation, slot).await? {
                // Retention deletes what another writer has gone on from.
                None if goes_on_behind(store, &ours, newest, stored).await? => {
                    return Ok(diverged(format!(
                        "{key} is not in the replica any more, and what came after it is"
                    )));
                }
                None => return Ok(lost(format!("{key} is not in the replica any more"))),
                Some(Found::Seal) => return Ok(diverged(format!("{key} is a seal"))),
                Some(Found::Segment(segment)) => {
                    if (segment.last(), segment.end()) != (stored, known.stored.position) {
                        return Ok(diverged(format!("{key} does not end with transaction {stored}")));
                    }
                    // A place in a WAL proves what is before it. Without one, and where writers are not kept apart, only the content does.
                    let proves_little = stored_at == Position::NONE || store.fencing() == Fencing::BestEffort;
                    if proves_little && segment.hash(store).await? != known.previous {
                        return Ok(diverged(format!("{key} is not the one that was noted")));
                    }
                    may_be_free = segment.is_merged() || slot == ours.meta().first_image.next();
                }
            }
        }
    }
    if let Some(newest) = newest.filter(|newest| newest.meta().generation > known.generation) {
        let is_unfounded = known.slot.is_none() && !is_founded(store, &ours).await?;
        #[cfg(any(test, feature = "testing"))]
        let is_unfounded = is_unfounded && !is_broken(Rule::StillEmpty);
        if is_unfounded {
            return Ok(Attached {
                verdict: Verdict::Forestalled,
                newest: Some(stored),
            });
        }
        return Ok(diverged(format!("generation {} has begun", newest.meta().generation)));
    }
    let behind = last_behind(store, known, may_be_free).await?;
    if !behind.is_ours {
        return Ok(Attached {
            newest: Some(behind.last),
            ..diverged(format!("generation {} goes on in another way", known.generation))
        });
    }
    Ok(Attached {
        newest: Some(behind.last),
        verdict: Verdict::GoesOn(End {
            generation: known.generation,
            page_size: known.page_size,
            first: ours.meta().first_image.next(),
            stored: Stored {
                mark: known.stored,
                slot: known.slot,
                previous: known.previous,
            },
            image: ours.images().first().copied(),
            newest_image: ours.images().last().copied(),
            parent: ours.meta().parent.map(|parent| parent.generation),
            founded: is_founded(store, &ours).await?,
            sealed: behind.sealed,
            unfinished: behind.unfinished,
        }),
    })
}

/// Whether an image is in the generation, or in one that it follows from. What is not there any more was deleted because of one that came after it.
async fn is_founded(store: &Store, generation: &GenerationHistory) -> Result<bool, HistoryError> {
    let mut at = generation.clone();
    while at.images().is_empty() {
        let Some(parent) = at.meta().parent else {
            return Ok(false);
        };
        match load_generation(store, parent.generation).await? {
            Some(before) if before.meta().generation < at.meta().generation => at = before,
            _ => return Ok(true),
        }
    }
    Ok(true)
}

/// Whether anything is there that came after a transaction.
async fn goes_on_behind(
    store: &Store,
    ours: &GenerationHistory,
    newest: Option<&GenerationHistory>,
    stored: Txid,
) -> Result<bool, HistoryError> {
    let number = ours.meta().generation;
    if newest.is_some_and(|newest| newest.meta().generation > number) || ours.images().last() > Some(&stored) {
        return Ok(true);
    }
    let listed = list_log(store, number).await?;
    Ok(listed.newest().is_some_and(|piece| piece.reach() > stored))
}

/// What the log has behind the noted transaction.
struct Behind {
    last: Txid,
    sealed: bool,
    /// It is what was noted before it was committed.
    unfinished: bool,
    /// What comes next, if anything does, begins at the place in a WAL where this machine's next transaction began, and so on: it is what was on its
    /// way when the process ended. Another machine has another WAL. What was merged since, and is in its slot no more, has been there for long, and
    /// cannot be adopted from a slot. Nor is it ours when something is listed that it does not lead to: then the history has gone past it.
    is_ours: bool,
}

/// `may_be_free`: the next slot could have been deleted.
async fn last_behind(store: &Store, known: &LocalState, may_be_free: bool) -> Result<Behind, HistoryError> {
    let stored = known.stored;
    let mut behind = Behind {
        last: stored.txid,
        sealed: false,
        unfinished: false,
        is_ours: true,
    };
    let mut place = stored.position;
    let mut looked_behind = None;
    loop {
        match find(store, known.generation, behind.last.next()).await? {
            Some(Found::Segment(segment)) => {
                let unfinished = is_unfinished(store, known, &segment).await?;
                behind.is_ours &= unfinished || goes_on_here(known, place, &segment);
                behind.unfinished |= unfinished;
                behind.last = segment.last();
                place = segment.end();
                continue;
            }
            Some(Found::Seal) => behind.sealed = true,
            None => {}
        }
        if !behind.is_ours || !(may_be_free || behind.sealed || behind.last > stored.txid) {
            return Ok(behind);
        }
        let end = if behind.sealed { behind.last.next() } else { behind.last };
        let listed = list_log(store, known.generation).await?;
        if listed.newest().is_none_or(|newest| newest.reach() <= end) {
            return Ok(behind);
        }
        // What came meanwhile is followed first.
        if behind.sealed || looked_behind.replace(end) == Some(end) {
            behind.is_ours = false;
            return Ok(behind);
        }
    }
}

/// Whether the segment begins where this machine's next transaction began.
fn goes_on_here(known: &LocalState, place: Position, segment: &FoundSegment) -> bool {
    let (stored, left) = (known.stored, known.left);
    // Nothing of this machine begins where a restored copy does: what begins there was written in the WAL of the machine that it came from.
    let has_ended = match known.restored {
        Some(restored) => restored,
        None => left.is_some_and(|left| left.mark.position == stored.position),
    };
    segment.start().is_some_and(|start| {
        let follows = start == place && start != Position::NONE && !(has_ended && place == stored.position);
        let next = |left: Left| left.next == Next::Wal(start.salts) && start.frame == 0;
        follows || left.is_some_and(next)
    })
}

pub(super) async fn end_of(store: &Store, found: &GenerationHistory) -> Result<End, HistoryError> {
    let meta = found.meta();
    let generation = meta.generation;
    let key = Key::Generation(generation);
    let page_size = PageSize::new(meta.page_size).ok_or_else(|| HistoryError::Misplaced {
        key,
        found: "a generation without pages".to_owned(),
    })?;
    // What is listed is a hint: the log goes on while the next slot is there.
    let listing = list_log(store, generation).await?;
    // The newest segment is in its slot: it is never merged.
    let mut listed = listing.slots.iter().rev().map(|(slot, _)| *slot);
    let first = meta.first_image.next();
    let mut next = listed.next().unwrap_or(first);
    let mut newest: Option<Box<FoundSegment>> = None;
    let sealed = loop {
        match find(store, generation, next).await? {
            Some(Found::Segment(segment)) => {
                next = segment.last().next();
                newest = Some(segment);
            }
            // The newest that is listed: what is before it tells where the log ends.
            Some(Found::Seal) if newest.is_none() && next > first => next = listed.next().unwrap_or(first),
            Some(Found::Seal) => break true,
            None => break false,
        }
    };
    if let Some(last) = listing.newest().filter(|last| last.reach() > next) {
        return Err(HistoryError::Missing {
            key: Key::Log(generation, next),
            needed_by: last.key(generation),
        });
    }
    let stored = match newest {
        Some(segment) => Stored {
            mark: Mark {
                txid: segment.last(),
                position: segment.end(),
            },
            slot: Some(segment.first()),
            previous: segment.hash(store).await?,
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
        first,
        stored,
        image: found.images().first().copied(),
        newest_image: found.images().last().copied(),
        parent: meta.parent.map(|parent| parent.generation),
        // It has history, or it would not be the newest.
        founded: true,
        sealed,
        unfinished: false,
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
