//! The task of one database: takes from its log, in order, and sees to it that everything gets into the replica.
//!
//! Owns the state of the generation that is being written, and the decisions: a new generation, another image, a gap, the end. At
//! rest it waits to be woken: no timer runs and no request is made.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use replvfs_vfs::log::{Base, Batch, Continuity};
use replvfs_vfs::transaction::Transaction;
use replvfs_vfs::types::{PageSize, Txid};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Stopped;
use super::generation;
use super::image::{self, Made};
use super::owner::Ownership;
use super::pace::{self, Situation};
use super::progress::Progress;
use super::sealer::{self, SealError, Segment};
use super::shared::{Image, Shared};
use super::uploader::{Backoff, Owner, Uploader};
use crate::format::{Generation, Key, ObjectHash, Parent};

/// So many gaps without a segment between them are no accident.
const GAPS_IN_A_ROW: u32 = 3;

/// What the task needs to know besides what it shares.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) flush_interval: Duration,
    pub(super) segment_size: u64,
    /// The folder of the database, for temporary files.
    pub(super) folder: PathBuf,
    /// Whose lock makes this process the owner.
    pub(super) lock_file: PathBuf,
}

pub(super) struct Task {
    shared: Arc<Shared>,
    uploader: Uploader,
    progress: Arc<Progress>,
    plan: Plan,
    ownership: Option<Ownership>,
    attached: bool,
    chain: Option<Chain>,
    last_sealed: Option<Instant>,
    /// A transaction could not be given: what follows is worthless up to the next base.
    gap: bool,
    gaps_in_a_row: u32,
}

/// The generation that is being written.
#[derive(Debug)]
struct Chain {
    generation: Generation,
    page_size: PageSize,
    /// The last transaction of its log, or its first base's.
    last: Txid,
    /// What the next segment follows.
    previous: ObjectHash,
    image: Option<Abort>,
}

/// Ends a task with its owner.
#[derive(Debug)]
struct Abort(JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Task {
    pub(super) fn new(shared: Arc<Shared>, plan: Plan, ownership: Option<Ownership>) -> Task {
        Task {
            uploader: Uploader::new(Arc::clone(&shared)),
            progress: Arc::new(Progress::new(Arc::clone(&shared.log))),
            shared,
            plan,
            ownership,
            attached: false,
            chain: None,
            last_sealed: None,
            gap: false,
            gaps_in_a_row: 0,
        }
    }

    /// Goes on until replication of the database fails.
    pub(super) async fn run(mut self) {
        while self.step().await.is_ok() {}
    }

    async fn step(&mut self) -> Result<(), Stopped> {
        self.wait().await?;
        match self.shared.log.take(self.plan.segment_size) {
            None => Ok(()),
            Some(Batch::Base(base)) => self.base(*base).await,
            Some(Batch::Resumed(_)) => Ok(()),
            Some(Batch::Transactions(transactions)) => self.transactions(transactions).await,
        }
    }

    /// Waits until there is something to take, and it is due.
    async fn wait(&self) -> Result<(), Stopped> {
        let log = &self.shared.log;
        while !log.arm(0) {
            if log.failure().is_some() {
                return Err(Stopped);
            }
            self.shared.wake.notified().await;
        }
        let since = Instant::now();
        loop {
            let due = pace::due(&Situation {
                since,
                last_sealed: self.last_sealed,
                interval: self.plan.flush_interval,
                full: log.arm(self.plan.segment_size),
                awaited: self.shared.is_awaited(),
            });
            if due <= Instant::now() {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep_until(due) => return Ok(()),
                () = self.shared.wake.notified() => {}
            }
        }
    }

    async fn base(&mut self, base: Base) -> Result<(), Stopped> {
        if !self.own() {
            return Ok(());
        }
        let page_size = base.snapshot.page_size();
        let after = self.chain.as_ref().map(|chain| chain.last);
        let goes_on = base.continuity == Continuity::Continued && !self.gap && after == Some(base.txid);
        if !self.attached {
            generation::attach(&self.uploader).await?;
            self.attached = true;
        }
        let mut chain = match self.chain.take() {
            // A generation has one page size.
            Some(chain) if goes_on && chain.page_size == page_size => chain,
            before => {
                let parent = before.map(|chain| Parent {
                    generation: chain.generation,
                    txid: chain.last,
                });
                self.begin(&base, page_size, parent).await?
            }
        };
        self.gap = false;
        chain.image = Some(self.make_image(base, chain.generation));
        self.chain = Some(chain);
        Ok(())
    }

    /// Whether this process replicates the database. Asked for with each base, and when there are commits, but no more than once an interval.
    fn own(&mut self) -> bool {
        if self.ownership.is_none() {
            match Ownership::take(&self.plan.lock_file) {
                Ok(ownership) => self.ownership = ownership,
                Err(error) => self
                    .shared
                    .trouble(&format!("locking {} failed: {error}", self.plan.lock_file.display())),
            }
            self.shared.standby(self.ownership.is_none());
        }
        self.ownership.is_some()
    }

    async fn begin(&self, base: &Base, page_size: PageSize, parent: Option<Parent>) -> Result<Chain, Stopped> {
        let begun = generation::begin(&self.uploader, parent, page_size, base.txid).await?;
        self.progress.begin(begun.generation, base.txid);
        Ok(Chain {
            generation: begun.generation,
            page_size,
            last: base.txid,
            previous: begun.root,
            image: None,
        })
    }

    fn make_image(&self, base: Base, generation: Generation) -> Abort {
        let (uploader, progress) = (self.uploader.clone(), Arc::clone(&self.progress));
        let shared = Arc::clone(&self.shared);
        let txid = base.txid;
        shared.image(Image::Making);
        Abort(tokio::spawn(async move {
            let making = image::make(&uploader, base, generation, generation > Generation(1));
            let made = AssertUnwindSafe(making).catch_unwind().await;
            if made.is_err() {
                shared.fail("making an image panicked, which is a bug in replvfs");
            } else if matches!(made, Ok(Ok(Made::Stored))) {
                shared.image(Image::Stored);
                progress.image(generation, txid);
            } else if !progress.has_image() {
                shared.image(Image::None);
            }
        }))
    }

    async fn transactions(&mut self, transactions: Vec<Arc<Transaction>>) -> Result<(), Stopped> {
        let Some(first) = transactions.first().map(|first| (first.txid, first.page_size)) else {
            return Ok(());
        };
        if self.ownership.is_none() {
            self.last_sealed = Some(Instant::now());
            if self.own() {
                // What the other process did not upload any more is in the base that comes now.
                self.gap = true;
                self.shared.log.request_base();
            }
            return Ok(());
        }
        if self.gap {
            return Ok(());
        }
        let follows = self
            .chain
            .as_ref()
            .is_some_and(|chain| (chain.last.next(), chain.page_size) == first);
        if !follows {
            return self.gap(&format!(
                "transaction {} does not follow from what was captured before it",
                first.0
            ));
        }
        let wal_bytes = transactions.iter().map(|transaction| transaction.wal_bytes()).sum();
        let last = transactions.last().map_or(first.0, |last| last.txid);
        self.last_sealed = Some(Instant::now());
        self.shared.uploading(wal_bytes);
        let outcome = self.upload(transactions, first.0, last).await;
        self.shared.uploading(0);
        outcome
    }

    async fn upload(&mut self, transactions: Vec<Arc<Transaction>>, first: Txid, last: Txid) -> Result<(), Stopped> {
        let Some(chain) = &mut self.chain else {
            return Ok(());
        };
        let segment = match seal(&self.shared, transactions, chain, &self.plan).await? {
            Ok(segment) => segment,
            Err(error) => return self.gap(&error.to_string()),
        };
        let key = Key::Log(chain.generation, first);
        if self.uploader.create(key, &segment.body).await? == Owner::Another {
            self.shared.fail(&format!(
                "another writer continues the history in the replica {}: it wrote {key}, which was this process's turn. Nothing that is committed \
                 here since is in the replica. Let one process write, or give each its own replica, and start this process again",
                self.shared.store.replica()
            ));
            return Err(Stopped);
        }
        chain.previous = segment.hash;
        chain.last = last;
        self.shared.log.stored(last);
        self.gaps_in_a_row = 0;
        self.shared.uploading(0);
        self.progress.segment(last);
        Ok(())
    }

    /// What was committed cannot be had. The database itself is the truth: a new generation starts from it, and the history says that
    /// commits between are not in it.
    fn gap(&mut self, reason: &str) -> Result<(), Stopped> {
        self.gaps_in_a_row += 1;
        if self.gaps_in_a_row >= GAPS_IN_A_ROW {
            self.shared
                .fail(&format!("{reason}; this happened {GAPS_IN_A_ROW} times in a row"));
            return Err(Stopped);
        }
        tracing::error!(
            database = %self.shared.database,
            "{reason}; the history will have a gap, and go on with a new image of the database"
        );
        self.gap = true;
        self.shared.log.request_base();
        Ok(())
    }
}

/// On the blocking pool, and again while what stands in the way may pass.
async fn seal(
    shared: &Shared,
    transactions: Vec<Arc<Transaction>>,
    chain: &Chain,
    plan: &Plan,
) -> Result<Result<Segment, SealError>, Stopped> {
    let transactions = Arc::new(transactions);
    let mut backoff = Backoff::new();
    loop {
        let (transactions, folder) = (Arc::clone(&transactions), plan.folder.clone());
        let (generation, previous) = (chain.generation, chain.previous);
        let sealing = tokio::task::spawn_blocking(move || sealer::seal(&transactions, generation, previous, &folder));
        match sealing.await {
            Ok(Err(error)) if error.may_pass() => {
                shared.trouble(&error.to_string());
                backoff.pause(shared).await?;
            }
            Ok(Err(error @ SealError::Format(_))) => {
                shared.fail(&format!("{error}; this is a bug in replvfs"));
                return Err(Stopped);
            }
            Ok(outcome) => return Ok(outcome),
            Err(stopped) => {
                shared.fail(&format!(
                    "sealing a segment failed, which is a bug in replvfs: {stopped}"
                ));
                return Err(Stopped);
            }
        }
    }
}
