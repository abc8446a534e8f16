//! Which transaction a database is at. Owns what proves it: a place in a WAL proves all that is before it, the state file beside the database tells of a file
//! or a WAL without frames, and the first page counts the changes of a rollback-journal mode. Reads ends of segments, and compares no pages.

use std::collections::HashMap;

use replvfs_vfs::resume::{Mark, Next};
use replvfs_vfs::types::{Pgno, Position, Txid};

use super::{Local, LocalWal, TiedBy};
use crate::format::{Generation, LocalState, SegmentIndex, SegmentReader};
use crate::history::images::manifest_at;
use crate::history::walk::{Walk, fetch_end};
use crate::history::{GenerationHistory, History, HistoryError, list_log};
use crate::restore::{Digested, HEADER_BYTES, RestoreError, read_part};
use crate::store::Store;

/// Ends of segments that are read at the same time, where blocks of some follow.
const PARALLEL: usize = 4;

/// The header's bytes that tell how the file is written: 1 for a rollback journal, 2 for a WAL.
const FILE_FORMAT: std::ops::Range<usize> = 18..20;

/// The header's counter of changes.
const CHANGE_COUNTER: usize = 24;

pub(super) enum Tie {
    At {
        generation: Generation,
        txid: Txid,
        by: TiedBy,
    },
    /// The database continues what the replica ends with, by so many transactions.
    Ahead {
        generation: Generation,
        newest: Txid,
        by: Option<u64>,
    },
    Unknown,
}

pub(super) async fn tie(
    store: &Store,
    history: &History,
    local: &Local,
    state: Option<&LocalState>,
) -> Result<Tie, RestoreError> {
    if let Some((state, txid)) = state.and_then(|state| Some((state, noted(local, state)?)))
        && let Some(found) = restorable(history, state.generation)
    {
        let generation = state.generation;
        let newest = newest_of(history, found).await?;
        return Ok(match txid.0.checked_sub(newest.0) {
            None | Some(0) => Tie::At {
                generation,
                txid,
                by: TiedBy::StateFile,
            },
            ahead => Tie::Ahead {
                generation,
                newest,
                by: ahead,
            },
        });
    }
    match &local.wal {
        Some(wal) if wal.position.frame > 0 => Ok(by_wal(store, history, (local, wal), state).await?),
        Some(_) => Ok(Tie::Unknown),
        None if local.digests.header()[FILE_FORMAT] == [1, 1] => by_first_page(store, history, local, state).await,
        None => Ok(Tie::Unknown),
    }
}

/// How far the database's counter of changes is ahead of that of a state, in a rollback-journal mode.
pub(super) fn counter_is_ahead(local: &Local, theirs: &Digested) -> Option<u64> {
    ahead(&local.digests.header(), &theirs.digests.header())
}

fn ahead(ours: &[u8; HEADER_BYTES], theirs: &[u8; HEADER_BYTES]) -> Option<u64> {
    // What is another database, or in WAL mode, does not count on from there.
    if ours[..CHANGE_COUNTER] != theirs[..CHANGE_COUNTER] || ours[FILE_FORMAT] != [1, 1] {
        return None;
    }
    let counter = |header: &[u8; HEADER_BYTES]| {
        let at = CHANGE_COUNTER;
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let ahead = counter(ours).wrapping_sub(counter(theirs));
    (1..1 << 31).contains(&ahead).then_some(u64::from(ahead))
}

/// The transaction that the state file tells of, if the database is what it tells of.
fn noted(local: &Local, state: &LocalState) -> Option<Txid> {
    let left = state.left?;
    let holds = match (left.next, &local.wal) {
        (Next::File(print), None) => local.file == Some(print),
        (Next::Wal(salts), Some(wal)) => wal.position.frame == 0 && wal.position.salts == salts,
        _ => false,
    };
    holds.then_some(left.mark.txid)
}

fn restorable(history: &History, generation: Generation) -> Option<&GenerationHistory> {
    let mut generations = history.generations().iter();
    generations.find(|found| found.meta().generation == generation && !found.images().is_empty())
}

/// That of the state file, and the newest one.
fn candidates<'a>(history: &'a History, state: Option<&LocalState>) -> Vec<&'a GenerationHistory> {
    let noted = state.and_then(|state| restorable(history, state.generation));
    let newest = history.generations().iter().rfind(|found| !found.images().is_empty());
    let newest = newest.filter(|newest| noted.is_none_or(|noted| noted.meta().generation != newest.meta().generation));
    noted.into_iter().chain(newest).collect()
}

async fn newest_of(history: &History, found: &GenerationHistory) -> Result<Txid, HistoryError> {
    let image = found.images().last().copied().unwrap_or_default();
    let newest = history
        .visit_from(found, image.next(), Txid(u64::MAX), |_, _| ())
        .await?;
    Ok(newest.max(image))
}

/// The newest transaction of a generation that is in the WAL, which place it has there, and what the generation ends with.
struct InWal {
    found: Option<(Txid, usize)>,
    newest: Txid,
}

async fn by_wal(
    store: &Store,
    history: &History,
    (local, wal): (&Local, &LocalWal),
    state: Option<&LocalState>,
) -> Result<Tie, HistoryError> {
    let mut places: HashMap<Position, usize> = wal.commits.iter().copied().zip(1..).collect();
    let count = wal.commits.len().max(1);
    places.insert(wal.position, count);
    let mut ahead = None;
    for found in candidates(history, state) {
        let generation = found.meta().generation;
        let stored = state.filter(|state| state.generation == generation);
        let in_wal = look_in(store, history, found, &places, stored.map(|state| state.stored)).await?;
        let InWal { found, newest } = in_wal;
        match found {
            Some((txid, at)) if at == count => {
                let by = TiedBy::Wal;
                return Ok(Tie::At { generation, txid, by });
            }
            // Else the two went on differently.
            Some((txid, at)) if txid == newest => {
                let by = (wal.commits.len() == count).then_some((count - at) as u64);
                ahead = ahead.or(Some(Tie::Ahead { generation, newest, by }));
            }
            Some(_) => {}
            None => {
                let left = stored.and_then(|state| state.left);
                // All of the WAL is behind the note.
                let follows = left.filter(|left| match left.next {
                    Next::Wal(salts) => salts == wal.position.salts,
                    Next::File(print) => local.file == Some(print),
                });
                if let Some(left) = follows.filter(|left| left.mark.txid >= newest) {
                    let by = Some(left.mark.txid.0 - newest.0 + count as u64);
                    ahead = ahead.or(Some(Tie::Ahead { generation, newest, by }));
                }
            }
        }
    }
    Ok(ahead.unwrap_or(Tie::Unknown))
}

/// Looks at what is new first, and then at everything.
async fn look_in(
    store: &Store,
    history: &History,
    found: &GenerationHistory,
    places: &HashMap<Position, usize>,
    stored: Option<Mark>,
) -> Result<InWal, HistoryError> {
    let oldest = found.images().first().copied().unwrap_or_default();
    let image = found.images().last().copied().unwrap_or_default();
    let near = stored.map_or(image, |stored| stored.txid.max(oldest));
    let mut from = near;
    loop {
        let mut in_wal = InWal {
            found: None,
            newest: from,
        };
        let mut note = |txid: Txid, position: &Position| {
            if let Some(at) = places.get(position) {
                in_wal.found = Some((txid, *at)).max(in_wal.found);
            }
        };
        // What an image has is not always in the log as well.
        let is_image = found.images().contains(&from);
        if is_image && let Some(manifest) = manifest_at(store, found.meta().generation, from).await? {
            note(from, &manifest.position);
        }
        let visit = |_, index: &SegmentIndex| {
            let entries = index.transactions().iter();
            entries.for_each(|entry| note(entry.txid, &entry.header.end));
        };
        let first = if is_image { from.next() } else { from };
        let newest = history.visit_from(found, first, Txid(u64::MAX), visit).await?;
        in_wal.newest = newest.max(from);
        if in_wal.found.is_some() || from == oldest {
            return Ok(in_wal);
        }
        from = oldest;
    }
}

/// The last transaction that leaves the first page as it is in the database.
async fn by_first_page(
    store: &Store,
    history: &History,
    local: &Local,
    state: Option<&LocalState>,
) -> Result<Tie, RestoreError> {
    let wanted = local.digests.header();
    let mut behind = None;
    for found in candidates(history, state) {
        let generation = found.meta().generation;
        let stored = state.filter(|state| state.generation == generation);
        let image = found.images().last().copied().unwrap_or_default();
        // What an image begins with is in no segment.
        let oldest = found.images().first().copied().unwrap_or_default();
        let from = stored.map_or(image.next(), |state| state.stored.txid.max(oldest.next()));
        let (mut matched, mut newest) = (None, None);
        let listing = list_log(store, generation).await?;
        let (mut next, path) = history.path_at(found, &listing, from).await?;
        let mut walk = Walk::new(store, generation, path, Txid(u64::MAX), PARALLEL, fetch_end);
        let mut reader = SegmentReader::new().map_err(RestoreError::format(crate::format::Key::Replica))?;
        let (mut matching, mut last) = (false, from);
        while let Some((key, end)) = walk.piece(next).await? {
            let index = &end.index;
            let mut loaded: Option<(usize, Vec<u8>)> = None;
            for entry in index.transactions().iter().filter(|entry| entry.txid >= from) {
                if index.pages_of(entry).and_then(<[Pgno]>::first).copied() == Pgno::new(1) {
                    let (block, at) = index.place_of(entry.first_slot);
                    if loaded.as_ref().is_none_or(|(loaded, _)| *loaded != block) {
                        let stored = read_part(store, key, index.block_range(block)).await?;
                        let raw = reader.take_block(index, block, &stored);
                        loaded = Some((block, raw.map_err(RestoreError::format(key))?));
                    }
                    let raw = loaded.as_ref().and_then(|(_, raw)| raw.get(at..));
                    let header = raw.and_then(|raw| raw.first_chunk::<HEADER_BYTES>());
                    matching = header == Some(&wanted);
                    newest = header.copied().or(newest);
                }
                if matching {
                    matched = Some(entry.txid);
                }
            }
            last = index.header().last;
            next = last.next();
        }
        if let Some(txid) = matched {
            let by = TiedBy::FirstPage;
            return Ok(Tie::At { generation, txid, by });
        }
        if let Some(by) = newest.and_then(|newest| ahead(&wanted, &newest)) {
            let newest = last;
            let by = Some(by);
            behind = behind.or(Some(Tie::Ahead { generation, newest, by }));
        }
    }
    Ok(behind.unwrap_or(Tie::Unknown))
}
