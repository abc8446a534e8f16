//! Another writer has the history: what is noted, what is said, and whether the application may go on writing.
//!
//! Owns the sentences, and `on_fenced=stop`: write transactions are refused from the moment on at which this process knows, and a database that finds
//! the history continued by somebody else does not take it back. Leaves finding out to [`attach`](super::attach) and to the task.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Stopped;
use super::attach::{self, Verdict};
use super::shared::Shared;
use super::uploader::Uploader;
use crate::format::{Generation, Key};
use crate::outside;

/// What is to be done about it.
const FENCED: &str = "Let one machine write. To go on here with what is in the replica, restore it in this database's place, or, if nothing \
     was committed here since, open it with restore=if-behind; to keep what is here, give it a replica of its own";

/// Whether write transactions are refused.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    /// `on_fenced=stop`.
    stops: AtomicBool,
    refuses: AtomicBool,
}

impl Refusal {
    /// Being fenced ends writing. To be called before anything can be.
    pub(super) fn stop(&self) {
        self.stops.store(true, Ordering::Release);
    }

    pub(super) fn stops(&self) -> bool {
        self.stops.load(Ordering::Acquire)
    }

    /// Asked with every write transaction.
    pub(super) fn refuses(&self) -> bool {
        self.refuses.load(Ordering::Acquire)
    }
}

impl Shared {
    /// From here on this process knows.
    pub(super) fn knows_it_is_fenced(&self) {
        self.refusal.refuses.store(self.refusal.stops(), Ordering::Release);
        self.status.fenced();
        self.upkeep.end();
    }

    /// The state beside the database says so.
    pub(super) fn stays_fenced(&self) {
        self.knows_it_is_fenced();
        self.fail(&format!(
            "another machine has taken over the history in the replica {} from {}, which is not replicated any more{}. {FENCED}",
            self.store.replica(),
            self.database,
            self.refused()
        ));
    }

    /// A part of a sentence.
    fn refused(&self) -> &'static str {
        if self.refusal.refuses() {
            ", and write transactions are refused (on_fenced=stop)"
        } else {
            ""
        }
    }
}

/// Another writer has this process's turn.
pub(super) async fn fenced(shared: &Arc<Shared>, key: Key, why: &str) -> Stopped {
    let what = format!("{key}, which was this process's turn, is not its own ({why})");
    replaced(shared, &what).await
}

/// With `on_fenced=stop`: the history was continued by another writer, and this database does not go on beside it.
pub(super) async fn yields(shared: &Arc<Shared>, how: &str) -> Stopped {
    replaced(
        shared,
        &format!("it goes on in another way than {} ({how})", shared.database),
    )
    .await
}

/// Another database's history may have begun since the store was asked, in a generation after `own` if this one had begun already: that one is not
/// ended.
pub(super) async fn is_still_empty(uploader: &Uploader, own: Option<Generation>) -> Result<(), Stopped> {
    let shared = uploader.shared();
    match uploader.until_told(|| attach::has_history(&shared.store, own)).await? {
        Ok(false) => Ok(()),
        Ok(true) => Err(forestalled(shared)),
        Err(error) => Err(unusable(shared, &error.to_string())),
    }
}

/// Another database was faster.
pub(super) fn forestalled(shared: &Shared) -> Stopped {
    unusable(
        shared,
        "it got the history of another database before anything of this one's was in it",
    )
}

fn unusable(shared: &Shared, why: &str) -> Stopped {
    shared.fail(&format!(
        "the replica {} cannot be used: {why}; give each database a replica of its own",
        shared.store.replica()
    ));
    Stopped
}

/// Noted, so that no other process of this machine takes it back by itself.
async fn replaced(shared: &Arc<Shared>, what: &str) -> Stopped {
    // Before anything that waits.
    shared.knows_it_is_fenced();
    let noting = Arc::clone(shared);
    let noted = outside::blocking(move || noting.local.fenced()).await;
    if let Ok(Err(problem)) = noted {
        shared.trouble(&problem);
    }
    shared.fail(&format!(
        "another writer continues the history in the replica {}: {what}. Nothing that is committed here since is in the replica{}. {FENCED}",
        shared.store.replica(),
        shared.refused()
    ));
    Stopped
}

/// With `on_fenced=stop`, before a generation is ended to which this process has added nothing yet: whether another writer has continued it, or begun
/// another, since the store was asked.
pub(super) async fn is_still_ours(uploader: &Uploader) -> Result<(), Stopped> {
    let shared = uploader.shared();
    if !shared.refusal.stops() {
        return Ok(());
    }
    let attached = attach::attach(uploader, &shared.local.start()).await?;
    match attached.verdict {
        Verdict::Diverged(_, how) => Err(yields(shared, &how).await),
        Verdict::Anew | Verdict::GoesOn(_) | Verdict::MustProve(_) | Verdict::Lost(_) | Verdict::Forestalled => Ok(()),
    }
}
