//! `restore=if-behind`: a database that is older than its replica, and has nothing of its own, is brought up to date before the open returns.
//!
//! Owns the two proofs that this needs: that the newest state in the store comes after the one that is noted beside the database, and that the
//! database is in just that state. Where either fails nothing is changed, and the open goes on as without this setting. Leaves to
//! [`put_over`] how one database takes the other's place.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use replvfs_vfs::held::{DatabaseFile, Held, HoldError, WalBeside, wal_beside};
use replvfs_vfs::resume::{Fingerprint, Next};
use replvfs_vfs::types::{Position, Txid};
use tokio::runtime::Handle;

use super::missing::{Opening, is_new};
use super::owner::{Ownership, lock_file};
use super::strict::has_landed;
use super::waiting::{Alive, answer};
use crate::format::{LocalState, Place};
use crate::history::find::{Found, find as find_segment};
use crate::history::stray::is_stray;
use crate::history::{History, HistoryError, Plan, Target};
use crate::local_state;
use crate::restore::{Aside, RestoreError, put_over, restore_aside};
use crate::store::Store;

/// A reader of another process is done within this time, or is no reader that is about to end.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(5);

/// Where the database is, seen from what is noted beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// At the newest transaction that is noted as stored.
    AtNoted,
    /// At the end of this WAL, which the store may have or not.
    EndsAt(Position),
    Unknown,
}

/// A state in the store that comes after the database's.
#[derive(Debug)]
struct Ahead {
    history: History,
    plan: Plan,
    /// The database's newest transaction.
    from: Txid,
}

/// Brings the database up to date, if it is provably behind the store. `timeout` is how long the store may take without getting any further.
///
/// # Errors
///
/// Why the open has to fail: a sentence. The database is as it was then.
pub(super) fn forward_if_behind(
    runtime: &Handle,
    file: &DatabaseFile,
    store: &Store,
    timeout: Duration,
) -> Result<(), String> {
    let path = file.path();
    if is_new(path) {
        return Ok(());
    }
    if !file.is_plain() {
        return Err("restore=if-behind needs one of SQLite's own VFSes for Unix underneath; use another setting of restore with this one".to_owned());
    }
    let place = lock_file(path);
    let locking = |error| format!("locking {} failed: {error}", place.display());
    let _opening = Opening::wait(&place).map_err(locking)?;
    // A process that replicates it has decided this when it opened it. Closing the file of a lock that is not had lets go of the other one
    // as well, which is not needed then.
    let Some(_ownership) = Ownership::take_from_askers(&place, PATIENCE).map_err(locking)? else {
        return Ok(());
    };
    let Some(known) = noted(path, store) else {
        return Ok(());
    };
    let standing = stand(file, &known)?;
    if standing == Standing::Unknown {
        return Ok(());
    }
    let asked = answer(runtime, timeout, |alive| {
        let (store, known) = (store.clone(), known.clone());
        async move {
            let ahead = look(&store, &known, standing, &alive).await?;
            Ok(match ahead {
                Some(ahead) => Some((ahead, has_landed(&store, &known).await?)),
                None => None,
            })
        }
    });
    let asked = asked.map_err(|why| advice(store, &why.to_string()))?;
    let (ahead, has_landed) = match asked {
        Ok(Some(found)) => found,
        Ok(None) | Err(HistoryError::NoReplica | HistoryError::Empty { .. }) => return Ok(()),
        Err(error) => return Err(advice(store, &format!("cannot be read: {error}"))),
    };
    // Not after the download.
    drop(hold(file, store, timeout)?);
    let from = ahead.from;
    let aside = fetch(runtime, path, store, timeout, ahead)?;
    let (newest, is_newer) = (aside.restored(), aside.restored().txid > from);
    if newest.page_count == 0 || !(is_newer || newest.generation > known.generation) {
        return Ok(());
    }
    let unfinished = known.unfinished.filter(|_| has_landed);
    if unfinished.is_some_and(|own| (newest.generation, newest.txid) == (known.generation, own.slot)) {
        return Ok(()); // It was never committed, and perhaps rolled back. If somebody had gone on from it, it would be.
    }
    let mut held = hold(file, store, timeout)?;
    if stand(file, &known)? != standing {
        replvfs_vfs::warning!(database = path.display(); "it was written while its newest state was read, and is left as it is");
        return Ok(());
    }
    let restored = aside.restored().clone();
    put_over(&mut held, aside).map_err(|error| error.to_string())?;
    tracing::info!(
        database = %path.display(),
        replica = store.replica(),
        from = from.0,
        generation = restored.generation.0,
        txid = restored.txid.0,
        "it was behind its replica, and was brought up to date"
    );
    for warning in restored.warnings {
        replvfs_vfs::warning!(database = path.display(); "{warning}");
    }
    Ok(())
}

/// What is wrong with a state that cannot be used is told when the database is replicated.
fn noted(path: &Path, store: &Store) -> Option<LocalState> {
    let read = local_state::read(&local_state::state_file(path)).ok().flatten();
    read.filter(|state| state.place == Place::of(store.place()))
}

/// Without a lock this may be wrong in one direction only: who writes at the same time makes it unknown.
fn stand(file: &DatabaseFile, known: &LocalState) -> Result<Standing, String> {
    if file.has_hot_journal() {
        return Ok(Standing::Unknown);
    }
    let path = file.path();
    let wal = wal_beside(path).map_err(|error| format!("reading its WAL failed: {error}"))?;
    Ok(judge(known, wal, Fingerprint::of(path)))
}

fn judge(known: &LocalState, wal: WalBeside, file: Option<Fingerprint>) -> Standing {
    let (stored, left) = (known.stored, known.left);
    if let Some(end) = wal.end {
        let has_more = left.is_some_and(|left| left.mark.txid > stored.txid);
        let is_noted = end == stored.position || left.is_some_and(|left| left.mark.position == end);
        return if is_noted && !has_more {
            Standing::AtNoted
        } else {
            Standing::EndsAt(end)
        };
    }
    let left = left.filter(|left| left.mark.txid == stored.txid);
    let is_noted = left.is_some_and(|left| match left.next {
        Next::File(noted) => file == Some(noted),
        Next::Wal(salts) => wal.salts == Some(salts),
    });
    if is_noted { Standing::AtNoted } else { Standing::Unknown }
}

/// Whether the newest state in the store comes after the database's.
async fn look(
    store: &Store,
    known: &LocalState,
    standing: Standing,
    alive: &Alive,
) -> Result<Option<Ahead>, HistoryError> {
    let history = History::open(store).await?;
    alive.tell();
    if history.meta().database_id != known.database_id {
        return Ok(None);
    }
    let plan = history.plan(Target::Newest, None).await?;
    alive.tell();
    // Up to here the newest state has what the generation of ours has.
    let Some(common) = history.leads_back(plan.generation, known.generation) else {
        return Ok(None);
    };
    let Some(noted_last) = noted_segment(store, &history, known).await? else {
        return Ok(None);
    };
    let found = match standing {
        Standing::AtNoted => Some((known.stored.txid, noted_last)),
        Standing::EndsAt(end) => find(store, known, end, alive).await?,
        Standing::Unknown => None,
    };
    let Some((from, segment_last)) = found.filter(|(from, _)| *from <= common) else {
        return Ok(None);
    };
    let is_ahead = plan.generation > known.generation
        || plan.manifest.txid > from
        || segment_last > from
        || find_segment(store, known.generation, from.next()).await?.is_some();
    if !is_ahead || !is_the_noted_one(store, &history, known).await? {
        return Ok(None);
    }
    Ok(Some(Ahead { history, plan, from }))
}

/// The last transaction of the segment in which the noted one is; of its generation's beginning, that one itself. `None` when the store has
/// something else there.
async fn noted_segment(store: &Store, history: &History, known: &LocalState) -> Result<Option<Txid>, HistoryError> {
    let stored = known.stored;
    let Some(slot) = known.slot else {
        let ours = history
            .generations()
            .iter()
            .find(|ours| ours.meta().generation == known.generation);
        let begins = ours.is_some_and(|ours| ours.meta().first_image == stored.txid);
        return Ok(begins.then_some(stored.txid));
    };
    let Some(Found::Segment(segment)) = find_segment(store, known.generation, slot).await? else {
        return Ok(None);
    };
    let same = (segment.first()..=segment.last()).contains(&stored.txid) && segment.end() == stored.position;
    Ok(same.then_some(segment.last()))
}

/// The proof proper, which costs reading a whole segment: numbers, and positions of all zeros, may be the same in another history.
async fn is_the_noted_one(store: &Store, history: &History, known: &LocalState) -> Result<bool, HistoryError> {
    let generation = known.generation;
    let hash = match known.slot {
        None => {
            let mut all = history.generations().iter();
            all.find(|ours| ours.meta().generation == generation)
                .map(|ours| ours.root())
        }
        Some(slot) => match find_segment(store, generation, slot).await? {
            Some(Found::Segment(segment)) => Some(segment.hash(store).await?),
            Some(Found::Seal) | None => None,
        },
    };
    Ok(hash == Some(known.previous))
}

/// The transaction behind the noted one that ends at this place of a WAL, and the last one of its segment: what was uploaded by a process that
/// died before it could note it. Equal positions prove equal content.
pub(super) async fn find(
    store: &Store,
    known: &LocalState,
    end: Position,
    alive: &Alive,
) -> Result<Option<(Txid, Txid)>, HistoryError> {
    let mut slot = known.stored.txid.next();
    while let Some(Found::Segment(segment)) = find_segment(store, known.generation, slot).await? {
        alive.tell();
        // Uploaded when the history had gone past it: the store has it, and the newest state does not.
        if !segment.is_merged() && is_stray(store, known.generation, slot).await? {
            break;
        }
        let last = segment.last();
        if let Some(entry) = segment.transactions().find(|entry| entry.header.end == end) {
            return Ok(Some((entry.txid, last)));
        }
        if segment.transactions().all(|entry| entry.header.end.salts != end.salts) {
            break;
        }
        slot = last.next();
    }
    Ok(None)
}

/// Restores beside the database.
fn fetch(runtime: &Handle, path: &Path, store: &Store, timeout: Duration, ahead: Ahead) -> Result<Aside, String> {
    let Ahead { history, plan, .. } = ahead;
    let restored = answer(runtime, timeout, |alive| {
        let (path, store) = (path.to_owned(), store.clone());
        async move {
            let progress = Arc::new(move |_| alive.tell());
            restore_aside(&store, &path, &history, &plan, progress).await
        }
    });
    match restored.map_err(|why| advice(store, &why.to_string()))? {
        Ok(aside) => Ok(aside),
        Err(error @ RestoreError::File { .. }) => Err(error.to_string()),
        Err(error) => Err(advice(store, &format!("cannot be read: {error}"))),
    }
}

/// Waits a moment for those who only read.
fn hold(file: &DatabaseFile, store: &Store, timeout: Duration) -> Result<Held, String> {
    let started = Instant::now();
    loop {
        match file.hold() {
            Ok(held) => return Ok(held),
            Err(HoldError::InUse) if started.elapsed() < PATIENCE.min(timeout) => std::thread::sleep(PAUSE),
            Err(error) => {
                return Err(format!(
                    "it is older than its replica {}, and cannot be brought up to date: {error}; try again when nobody else has it open, or go \
                     on with what is here with restore=if-missing",
                    store.replica()
                ));
            }
        }
    }
}

fn advice(store: &Store, what: &str) -> String {
    format!(
        "whether it is behind its replica is not known, since {} {what}; try again when that can be read, or go on with what is here with \
         restore=if-missing",
        store.replica()
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use replvfs_vfs::resume::{Left, Mark};
    use replvfs_vfs::types::{PageSize, Salts};

    use super::*;
    use crate::format::{DatabaseId, Generation, ObjectHash};

    fn position(salt: u32, frame: u32) -> Position {
        Position {
            salts: Salts(salt, 1),
            frame,
            checksum: [salt, frame],
        }
    }

    fn print(size: u64) -> Fingerprint {
        Fingerprint {
            device: 1,
            inode: 1,
            size,
            modified_ns: (1, 1),
            changed_ns: (1, 1),
        }
    }

    fn known(left: Option<(u64, Position, Next)>) -> LocalState {
        LocalState {
            sequence: 1,
            replica: String::new(),
            place: Place([0; 32]),
            database_id: DatabaseId([0; 16]),
            generation: Generation(1),
            page_size: PageSize::new(512).unwrap(),
            stored: Mark {
                txid: Txid(5),
                position: position(1, 9),
            },
            slot: Some(Txid(5)),
            previous: ObjectHash([0; 32]),
            left: left.map(|(txid, position, next)| Left {
                mark: Mark {
                    txid: Txid(txid),
                    position,
                },
                next,
            }),
            if_wal: None,
            fenced: false,
            unfinished: None,
            restored: None,
        }
    }

    fn wal(salt: u32, end: Option<u32>) -> WalBeside {
        WalBeside {
            salts: Some(Salts(salt, 1)),
            end: end.map(|frame| position(salt, frame)),
        }
    }

    #[test]
    fn only_what_is_noted_is_where_the_note_says() {
        use Standing::{AtNoted, EndsAt, Unknown};
        let (none, file) = (WalBeside::default(), Next::File(print(1)));
        let next_wal = Next::Wal(Salts(2, 1));
        let cases = [
            // The WAL of a process that was killed.
            (None, wal(1, Some(9)), AtNoted),
            (None, wal(1, Some(10)), EndsAt(position(1, 10))),
            (None, wal(1, Some(8)), EndsAt(position(1, 8))),
            (None, wal(2, Some(9)), EndsAt(position(2, 9))),
            (None, wal(1, None), Unknown),
            (None, none, Unknown),
            // It was closed.
            (Some((5, position(1, 9), file)), none, AtNoted),
            (Some((5, position(1, 9), Next::File(print(2)))), none, Unknown),
            (Some((6, position(1, 10), file)), none, Unknown),
            // A WAL was begun, and nothing was committed in it, or something was.
            (Some((5, position(1, 9), file)), wal(2, None), AtNoted),
            (Some((5, position(1, 9), file)), wal(2, Some(1)), EndsAt(position(2, 1))),
            (Some((5, position(1, 9), next_wal)), wal(2, None), AtNoted),
            (Some((5, position(1, 9), next_wal)), wal(3, None), Unknown),
            (Some((5, position(1, 9), next_wal)), none, Unknown),
            (
                Some((5, position(1, 9), next_wal)),
                wal(2, Some(1)),
                EndsAt(position(2, 1)),
            ),
            (Some((5, position(7, 9), next_wal)), wal(7, Some(9)), AtNoted),
            // What is carried over is not stored.
            (
                Some((6, position(1, 10), next_wal)),
                wal(1, Some(10)),
                EndsAt(position(1, 10)),
            ),
            (
                Some((6, position(1, 10), next_wal)),
                wal(1, Some(9)),
                EndsAt(position(1, 9)),
            ),
            (Some((6, position(1, 10), next_wal)), wal(2, None), Unknown),
        ];
        for (left, wal, standing) in cases {
            assert_eq!(judge(&known(left), wal, Some(print(1))), standing, "{left:?} {wal:?}");
        }
    }
}
