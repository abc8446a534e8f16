//! What the task of a database and the threads of the application share: the ways to wake it, and who replicates the database.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::SystemTime;

use replvfs_vfs::log::Log;
use replvfs_vfs::types::UnixMillis;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::fenced::Refusal;
use super::local::{Local, Taken};
use super::meters::Meters;
use super::neighbours::Neighbours;
use super::status::Status;
use super::upkeep::Upkeep;
use crate::outside;
use crate::store::Store;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) log: Arc<Log>,
    pub(super) store: Store,
    /// The database, as it is shown to people.
    pub(super) database: String,
    /// The lock and the state file.
    pub(super) local: Local,
    pub(super) status: Status,
    pub(super) meters: Meters,
    pub(super) refusal: Refusal,
    pub(super) upkeep: Upkeep,
    /// Wakes the task.
    pub(super) wake: Notify,
    /// From now on the database is looked at now and then.
    pub(super) open_again: Notify,
    /// Ends a pause before the store is asked again.
    pub(super) hurry: Notify,
    /// A transaction that may be on its way to the store was not committed.
    pub(super) given_up: Notify,
    /// What a task waits for in the log may have come.
    pub(super) progress: Notify,
    pub(super) neighbours: Neighbours,
    waiting: AtomicUsize,
    /// Who waits without a connection, perhaps for a database that nobody has open.
    guests: AtomicUsize,
    /// What waits is to be sealed at once, though nobody waits for it.
    hurried: AtomicBool,
    /// This process replicates the database.
    owner: AtomicBool,
    /// Nobody has tried to become the owner yet: the database's file may never be made.
    undecided: AtomicBool,
    failed: AtomicBool,
    /// Connections are open.
    open: AtomicBool,
}

/// Counts somebody who waits for the upload, for as long as it lives.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a Shared);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// As long as it lives, the task does not let go of a database because nobody has it open.
#[derive(Debug)]
pub(super) struct Guest<'a>(&'a Shared);

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.0.guests.fetch_sub(1, Ordering::AcqRel);
        self.0.wake.notify_one();
    }
}

pub(super) fn now() -> UnixMillis {
    let since_epoch = outside::wall_clock()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

impl Shared {
    pub(super) fn new(log: Arc<Log>, store: Store, database: &Path) -> Shared {
        Shared {
            log,
            local: Local::new(database, &store),
            store,
            database: database.display().to_string(),
            status: Status::default(),
            meters: Meters::default(),
            refusal: Refusal::default(),
            upkeep: Upkeep::default(),
            wake: Notify::new(),
            open_again: Notify::new(),
            hurry: Notify::new(),
            given_up: Notify::new(),
            progress: Notify::new(),
            neighbours: Neighbours::default(),
            waiting: AtomicUsize::new(0),
            guests: AtomicUsize::new(0),
            hurried: AtomicBool::new(false),
            owner: AtomicBool::new(false),
            undecided: AtomicBool::new(true),
            failed: AtomicBool::new(false),
            open: AtomicBool::new(false),
        }
    }

    /// Makes the task seal and upload at once.
    pub(super) fn wait_for_upload(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.wake.notify_one();
        self.hurry.notify_waiters();
        Waiting(self)
    }

    pub(super) fn guest(&self) -> Guest<'_> {
        self.guests.fetch_add(1, Ordering::AcqRel);
        Guest(self)
    }

    /// Nobody has it open, and nobody waits for it without a connection.
    pub(super) fn is_deserted(&self) -> bool {
        !self.is_open() && self.guests.load(Ordering::Acquire) == 0
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// What waits now is sealed at once. A store that does not answer is not asked more often.
    pub(super) fn hurry_up(&self) {
        if !self.hurried.swap(true, Ordering::AcqRel) {
            self.wake.notify_one();
        }
    }

    pub(super) fn is_hurried(&self) -> bool {
        self.hurried.load(Ordering::Acquire)
    }

    pub(super) fn taken_in_a_hurry(&self) {
        self.hurried.store(false, Ordering::Release);
    }

    /// A connection is open. Becomes the owner, if nobody is.
    pub(super) fn opened(&self) {
        self.opened_new();
        // Not by a look at the flag: the task may be about to let go.
        self.take(|| true);
        self.publish();
    }

    /// The same where it is not known yet that there will be a database.
    pub(super) fn opened_new(&self) {
        self.open.store(true, Ordering::Release);
        self.open_again.notify_one();
        self.wake.notify_one();
    }

    pub(super) fn closed(&self) {
        self.open.store(false, Ordering::Release);
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Whether this process replicates the database, as far as is known.
    pub(super) fn is_owner(&self) -> bool {
        self.owner.load(Ordering::Acquire)
    }

    /// Whether another process replicates the database, as far as is known.
    pub(super) fn is_standby(&self) -> bool {
        !self.owner.load(Ordering::Acquire) && !self.undecided.load(Ordering::Acquire)
    }

    /// Whether nobody has asked yet who replicates the database.
    pub(super) fn is_undecided(&self) -> bool {
        self.undecided.load(Ordering::Acquire)
    }

    /// Whether this process replicates the database. Tries to, if nobody has tried yet.
    pub(super) fn owns(&self) -> bool {
        if self.failed.load(Ordering::Acquire) {
            return false;
        }
        if self.undecided.load(Ordering::Acquire) {
            return self.own();
        }
        self.owner.load(Ordering::Acquire)
    }

    /// Becomes the owner if nobody is, and asks the database to go on from where the history is then. Never waits. For a connection, which has the database
    /// open, whatever is known of that.
    pub(super) fn own(&self) -> bool {
        self.own_if(|| true).unwrap_or(false)
    }

    /// The same for nobody in particular; `None` if nobody has it open, and nothing waits in the log, or was taken out of it. Whoever closes it last lets go under the
    /// lock under which that is asked: what made its files again after that would be in the way of who removes them.
    pub(super) fn own_if_wanted(&self, has_work: bool) -> Option<bool> {
        self.own_if(|| has_work || self.is_open() || self.log.pending().items > 0)
    }

    /// The same for who waits without a connection; `None` if nobody has it open, and what is beside it was removed: that is not made again.
    pub(super) fn own_if_there(&self) -> Option<bool> {
        self.own_if(|| self.is_open() || self.local.is_there())
    }

    fn own_if(&self, wanted: impl FnOnce() -> bool) -> Option<bool> {
        match self.is_owner() {
            true => Some(true),
            false => self.take(wanted),
        }
    }

    /// `None` if it is not wanted.
    fn take(&self, wanted: impl FnOnce() -> bool) -> Option<bool> {
        if self.failed.load(Ordering::Acquire) {
            return Some(false);
        }
        let taken = self.local.take(wanted, |taken| {
            match taken {
                Taken::No | Taken::Still | Taken::Again => {}
                // Nobody else can have replicated it before: what was captured up to now is the beginning.
                Taken::From(None) if self.undecided.load(Ordering::Acquire) => {}
                Taken::From(Some(state)) => {
                    if state.fenced && self.refusal.stops() {
                        self.knows_it_is_fenced();
                    }
                    self.log.resume_from(state.resume());
                }
                Taken::From(None) => self.log.begin_anew(),
            }
            // Only with the lock.
            self.upkeep.begin();
            self.owner.store(!matches!(taken, Taken::No), Ordering::Release);
            if matches!(taken, Taken::Again | Taken::From(_)) {
                self.neighbours.listen();
            }
        });
        let taken = taken.transpose()?;
        let first = self.undecided.swap(false, Ordering::AcqRel);
        let owns = match taken {
            Ok(Taken::No) => {
                if first {
                    tracing::info!(database = %self.database, "another process replicates it");
                }
                false
            }
            Ok(Taken::Still) => true,
            Ok(how @ (Taken::Again | Taken::From(_))) => {
                let replica = self.store.replica();
                match how {
                    // As often as it is opened and closed.
                    Taken::Again => {
                        tracing::debug!(database = %self.database, replica, "this process replicates it again")
                    }
                    _ => tracing::info!(database = %self.database, replica, "this process replicates it now"),
                }
                self.wake.notify_one();
                true
            }
            Err(problem) => {
                self.fail(&problem);
                false
            }
        };
        Some(owns)
    }

    /// Lets another process take over.
    pub(super) fn let_go(&self) {
        self.let_go_if(|| true);
    }

    /// The same, unless somebody has opened the database since, or waits for it.
    pub(super) fn let_go_if_closed(&self) {
        self.let_go_if(|| self.is_deserted());
    }

    /// Until the task has let go of a database that nobody has open, unless it has more to do.
    pub(super) async fn until_let_go(&self, end: Instant) {
        let lets_go = || self.is_deserted() && self.is_drained() && !self.status.is_making_image();
        self.until(end, || !(self.is_owner() && lets_go())).await;
    }

    /// `may` is asked while nobody can become the owner.
    fn let_go_if(&self, may: impl FnOnce() -> bool) {
        self.local.release(|| {
            let lets_go = may();
            if lets_go {
                self.upkeep.pause();
                self.neighbours.close();
                self.owner.store(false, Ordering::Release);
            }
            lets_go
        });
        self.progress.notify_waiters();
        self.publish();
    }

    /// Whether everything that was captured is restorable from the store, or never will be by this process.
    pub(super) fn is_drained(&self) -> bool {
        let log = &self.log;
        self.failed.load(Ordering::Acquire)
            || log.failure().is_some()
            || log.is_suspended()
            || !self.owner.load(Ordering::Acquire)
            || (log.pending().items == 0 && log.acked() >= log.last_txid())
    }

    /// Whether the upload has to wait for a base, or a proof: nothing comes of waiting without another read lock.
    pub(super) fn is_stuck(&self) -> bool {
        self.log.base_wanted() && self.log.pending().items == 0 && self.status.is_at_rest()
    }

    /// Until what is waited for in the log has come, or the time is over.
    pub(super) async fn until(&self, end: Instant, has_come: impl Fn() -> bool) {
        loop {
            let mut news = std::pin::pin!(self.progress.notified());
            news.as_mut().enable();
            if has_come() {
                return;
            }
            tokio::select! {
                biased;
                () = news => {}
                () = tokio::time::sleep_until(end) => return,
            }
        }
    }

    /// The store answered.
    pub(super) fn answered(&self) {
        if self.status.trouble_is_over() {
            self.meters.of.trouble.set(0.0);
            tracing::info!(database = %self.database, "the replica answers again");
            self.log.remind();
        }
        self.log.capture_again();
    }

    /// Something does not work now, and is tried again. Logged when it is not what was said last.
    pub(super) fn trouble(&self, message: &str) {
        self.meters.of.errors.increment(1);
        self.meters.of.trouble.set(1.0);
        if self.status.trouble(message) {
            replvfs_vfs::warning!(database = self.database; "{message}; replication goes on as soon as this works");
        }
    }

    /// Ends replication of the database in this process, loudly.
    pub(super) fn fail(&self, reason: &str) {
        replvfs_vfs::failure!(database = self.database, replica = self.store.replica(); "replication stopped: {reason}");
        self.log.fail(reason.to_owned());
        self.meters.of.errors.increment(1);
        self.meters.of.failed.set(1.0);
        self.failed();
    }

    /// The log has failed.
    pub(super) fn failed(&self) {
        self.failed.store(true, Ordering::Release);
        self.upkeep.end();
        self.hurry.notify_waiters();
        self.wake.notify_one();
    }

    /// JSON for `PRAGMA replvfs_status`.
    pub(super) fn status(&self) -> String {
        super::status::report(self)
    }
}
