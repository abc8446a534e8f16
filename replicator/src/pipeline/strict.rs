//! Transactions that are in the store before they are committed (`durability=strict`), and those of them that never were.
//!
//! Owns waiting for one, and the question whether what is in a slot is such a transaction of this machine. Leaves the log to decide what becomes of it, once,
//! and the task to end the generation behind it.

use std::sync::Arc;
use std::time::Instant;

use replvfs_vfs::host::FlushError;
use replvfs_vfs::log::{Awaited, Withdrawn};
use replvfs_vfs::transaction::Transaction;
use replvfs_vfs::types::Txid;

use super::Stopped;
use super::confirm::{self, Attend, Wanted};
use super::replica::DatabaseReplica;
use super::seal::Tail;
use super::shared::Shared;
use super::turn::{self, Before, Turn};
use super::uploader::Uploader;
use crate::format::{Generation, LocalState, Parent, Unfinished};
use crate::history::HistoryError;
use crate::history::find::{Found, FoundSegment, find};
use crate::outside;
#[cfg(any(test, feature = "testing"))]
use crate::outside::simulated::{Rule, is_broken};
use crate::store::{Body, Store};

/// So often the history may turn out to go on in another way while one commit waits.
const ATTEMPTS: usize = 3;

type Propose<'a> = &'a mut dyn FnMut() -> Result<Option<Txid>, FlushError>;

/// On the thread of the connection that commits.
pub(super) fn hold(replica: &DatabaseReplica, attend: Attend<'_>, propose: Propose<'_>) -> Result<Txid, FlushError> {
    let (shared, timeout) = (replica.shared(), replica.timeout());
    let end = Instant::now() + timeout;
    let left = || end.saturating_duration_since(Instant::now());
    let waiting = shared.wait_for_upload();
    for _ in 0..ATTEMPTS {
        if shared.is_standby() && !shared.own() {
            return Err(FlushError::new(
                "another process replicates the database, and only commits of that one can be held back: use durability=remote",
            ));
        }
        // All before it is there, and what the log asks for is given: nothing more is possible once it is in the log.
        let before = Wanted {
            until: None,
            timeout: left(),
        };
        if let Err(error) = confirm::wait_here(shared, before, end, attend) {
            shared.hurry_up();
            return Err(error);
        }
        let Some(txid) = propose()? else { continue };
        match shared.log.wait_tentative(txid, left()) {
            Awaited::Acknowledged => return Ok(txid),
            Awaited::Gone if shared.log.failure().is_none() && !left().is_zero() => continue,
            Awaited::Gone | Awaited::Waiting => {}
        }
        let withdrawn = shared.log.withdraw(txid);
        shared.given_up.notify_waiters();
        if withdrawn == Withdrawn::Acknowledged {
            return Ok(txid);
        }
        drop(waiting);
        let reason = match (shared.log.failure(), shared.status.current_trouble()) {
            (Some(reason), _) => format!("replication stopped: {reason}"),
            (None, Some(trouble)) => format!("it was not there within {timeout:?} ({trouble})"),
            (None, None) => format!("it was not there within {timeout:?}"),
        };
        return Err(FlushError::new(format!(
            "the replica {}: {reason}",
            shared.store.replica()
        )));
    }
    Err(FlushError::new(
        "an image of the database is wanted first, or the history goes on in another way just now; try again",
    ))
}

/// A segment in whose slot something else may go on, since its transaction may not have been committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Doubt {
    pub(super) generation: Generation,
    pub(super) unfinished: Unfinished,
}

/// Those of one slot.
#[derive(Debug, Default)]
pub(super) struct Doubts(Vec<Doubt>);

impl Doubts {
    /// What an earlier process noted.
    pub(super) fn of(known: Option<&LocalState>) -> Doubts {
        let noted = known.and_then(|known| {
            known.unfinished.map(|unfinished| Doubt {
                generation: known.generation,
                unfinished,
            })
        });
        Doubts(noted.into_iter().collect())
    }

    /// Those of other slots have been decided.
    fn push(&mut self, doubt: Doubt) {
        self.0.retain(|other| other.unfinished.slot == doubt.unfinished.slot);
        self.0.push(doubt);
    }

    /// Where a generation is left whose last transaction may be one that was rolled back.
    pub(super) fn leave_aside(&self, parent: Parent, abandoned: Option<Txid>) -> Parent {
        #[cfg(any(test, feature = "testing"))]
        if is_broken(Rule::LeaveAside) {
            return parent;
        }
        let is_it = |doubt: &&Doubt| doubt.generation == parent.generation && Some(doubt.unfinished.slot) == abandoned;
        match self.0.iter().find(is_it) {
            Some(doubt) => Parent {
                txid: parent.txid.min(Txid(doubt.unfinished.slot.0.saturating_sub(1))),
                ..parent
            },
            None => parent,
        }
    }

    /// Whether what is in the slot is one of them; where the log goes on behind it then.
    pub(super) async fn behind(&self, uploader: &Uploader, tail: Tail) -> Result<Option<Tail>, Stopped> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let store = &uploader.shared().store;
        let found = uploader
            .until_told(|| async {
                let Some(Found::Segment(segment)) = find(store, tail.generation, tail.slot).await? else {
                    return Ok(None);
                };
                let hash = segment.hash(store).await?;
                Ok(Some((segment.first(), segment.last(), hash)))
            })
            .await?;
        let Ok(Some((first, last, hash))) = found else {
            return Ok(None);
        };
        let unfinished = Unfinished { slot: first, hash };
        let doubt = Doubt {
            generation: tail.generation,
            unfinished,
        };
        Ok(self.0.contains(&doubt).then_some(Tail {
            slot: last.next(),
            previous: hash,
            before: Before {
                slot: Some(first),
                ..tail.before
            },
            ..tail
        }))
    }

    /// Puts the segment of a transaction that is not committed yet into its slot. It is noted before, so that a process that comes after this one knows it
    /// for its own. `None`: it was taken back, perhaps while it was on its way.
    pub(super) async fn take(
        &mut self,
        uploader: &Uploader,
        doubt: Doubt,
        before: Before,
        (transaction, body): (&Arc<Transaction>, &Body),
    ) -> Result<Option<Turn>, Stopped> {
        let shared = uploader.shared();
        self.push(doubt);
        note(shared, doubt.unfinished).await?;
        let slot = doubt.unfinished.slot;
        if !shared.log.offer(transaction) {
            return Ok(None);
        }
        tokio::select! {
            biased;
            turn = turn::take(uploader, (doubt.generation, slot), before, body) => turn.map(Some),
            () = is_given_up(shared, slot) => Ok(None),
        }
    }
}

async fn note(shared: &Arc<Shared>, unfinished: Unfinished) -> Result<(), Stopped> {
    let noting = Arc::clone(shared);
    let noted = outside::blocking(move || {
        // With on_fenced=stop it tells another machine's work from this one's, also after a power failure.
        let durably = noting.refusal.stops();
        if let Err(problem) = noting.local.unfinished(unfinished, durably) {
            noting.trouble(&problem);
        }
    });
    noted.await.map_err(|stopped| {
        shared.fail(&format!(
            "noting the state failed, which is a bug in replvfs: {stopped}"
        ));
        Stopped
    })
}

async fn is_given_up(shared: &Shared, txid: Txid) {
    loop {
        let given_up = shared.given_up.notified();
        if shared.log.abandoned() == Some(txid) {
            return;
        }
        given_up.await;
    }
}

/// Whether what this machine noted before it was committed is in its slot.
pub(super) async fn has_landed(store: &Store, known: &LocalState) -> Result<bool, HistoryError> {
    let Some(unfinished) = known.unfinished else {
        return Ok(false);
    };
    match find(store, known.generation, unfinished.slot).await? {
        Some(Found::Segment(segment)) => is_unfinished(store, known, &segment).await,
        Some(Found::Seal) | None => Ok(false),
    }
}

/// Whether the segment is the one that this machine noted before it put it there, and not that it was committed.
pub(super) async fn is_unfinished(
    store: &Store,
    known: &LocalState,
    segment: &FoundSegment,
) -> Result<bool, HistoryError> {
    match known.unfinished.filter(|unfinished| unfinished.slot == segment.first()) {
        Some(unfinished) => Ok(segment.hash(store).await? == unfinished.hash),
        None => Ok(false),
    }
}
