//! The task of one database: takes from its log, in order, and sees to it that everything gets into the replica.
//!
//! Owns the state of the generation that is being written, and the decisions: a new generation, another image, a gap, the end. At
//! rest it waits to be woken: no timer runs and no request is made.

mod beginning;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use replvfs_vfs::log::Batch;
use replvfs_vfs::resume::Mark;
use replvfs_vfs::transaction::Transaction;
use replvfs_vfs::types::{PageSize, Txid};
use tokio::time::Instant;

use super::Stopped;
use super::adopt::{self, Found};
use super::attach::{self, End, Verdict};
use super::changed::Touched;
use super::due::Rule;
use super::fenced::{self, fenced};
use super::generation;
use super::images::{Beginning, Images};
use super::local::{Identity, Stored};
use super::making::Making;
use super::pace::{self, Company, Situation};
use super::progress::Progress;
use super::seal::Tail;
use super::sealer::{self, SealError, Segment};
use super::shared::Shared;
use super::status::Image;
use super::strict::{Doubt, Doubts};
use super::turn::{self, Before, Content, Turn};
use super::upkeep::Schedule;
use super::uploader::{Backoff, Uploader};
use crate::format::{Generation, Key, ObjectHash, Parent, Unfinished};
use crate::history::walk::SegmentEnd;
use crate::outside;

/// So many gaps without a segment between them are no accident.
const GAPS_IN_A_ROW: u32 = 3;

/// What the task needs to know besides what it shares.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) flush_interval: Duration,
    pub(super) segment_size: u64,
    /// The folder of the database, for temporary files.
    pub(super) folder: PathBuf,
    pub(super) upkeep: Schedule,
    /// When images are due.
    pub(super) images: Rule,
}

pub(super) struct Task {
    shared: Arc<Shared>,
    uploader: Uploader,
    progress: Arc<Progress>,
    images: Arc<Images>,
    plan: Plan,
    /// What was taken up last, and whose turn it was then: see [`Local`](super::local::Local).
    epoch: u64,
    tenure: u64,
    /// In which tenure the metrics were asked to be served last.
    served: u64,
    /// What the store says, until the database has said how it goes on.
    found: Expected,
    chain: Option<Chain>,
    /// Taken from the log already, to be looked at next.
    ahead: Option<Batch>,
    last_sealed: Option<Instant>,
    company: Company,
    /// What follows is worthless up to the next base, which begins a generation.
    gap: bool,
    gaps_in_a_row: u32,
    /// It is there only for a transaction of this machine that was never committed.
    set_aside: bool,
    doubts: Doubts,
    /// The first generation of this database's history in the replica, begun by an earlier process that did not get as far as an image.
    unfounded: Option<Generation>,
    /// The generation that this process has begun, and the hash of its name.
    named: Option<(Generation, ObjectHash)>,
    /// A segment of this process has followed on what it found: from now on nobody else's can be its own of an earlier life.
    proved: bool,
}

/// What is known before the database has said how it goes on.
#[derive(Debug, Default)]
struct Expected {
    /// What transactions follow if the database goes on.
    end: Option<End>,
    /// If it does not go on from there, the history is another database's.
    must_prove: bool,
    /// What a generation that begins with the next base follows from.
    parent: Option<Parent>,
    /// The newest number in the store.
    newest: Option<Txid>,
    /// There was no history in it.
    was_empty: bool,
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
    before: Before,
    image: Option<Making>,
}

impl Chain {
    fn parent(&self) -> Parent {
        Parent {
            generation: self.generation,
            txid: self.last,
        }
    }

    fn tail(&self) -> Tail {
        Tail {
            generation: self.generation,
            slot: self.last.next(),
            previous: self.previous,
            before: self.before,
        }
    }

    fn advance(&mut self, stored: &Stored) {
        self.last = stored.mark.txid;
        self.previous = stored.previous;
        self.before.slot = stored.slot;
    }

    /// This process has put it there.
    fn has_put(&mut self, slot: Txid, segment: &Segment) {
        self.before.content = Some(Content {
            slot,
            hash: segment.hash,
            len: segment.body.len(),
        });
    }
}

impl Task {
    pub(super) fn new(shared: Arc<Shared>, plan: Plan) -> Task {
        Task {
            uploader: Uploader::new(Arc::clone(&shared)),
            progress: Arc::new(Progress::new(Arc::clone(&shared.log))),
            images: Arc::new(Images::new(plan.images)),
            shared,
            plan,
            epoch: 0,
            tenure: 0,
            served: 0,
            found: Expected::default(),
            chain: None,
            ahead: None,
            last_sealed: None,
            company: Company::default(),
            gap: false,
            gaps_in_a_row: 0,
            set_aside: false,
            doubts: Doubts::default(),
            unfounded: None,
            named: None,
            proved: false,
        }
    }

    /// Goes on until replication of the database fails.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let interval = self.plan.flush_interval;
        tokio::select! {
            biased;
            () = async { while self.step().await.is_ok() {} } => {}
            Stopped = watch(&shared, interval) => {}
        }
        self.shared.failed();
        let log = Arc::clone(&self.shared.log);
        if outside::blocking(move || log.look()).await.is_err() {
            replvfs_vfs::failure!(database = self.shared.database; "letting go of the WAL failed, which is a bug in replvfs");
        }
        // Whatever goes on with it is not this process.
        self.shared.let_go();
        self.shared.publish();
    }

    async fn step(&mut self) -> Result<(), Stopped> {
        self.shared.publish();
        self.wait().await?;
        match self.shared.own_if_wanted(self.ahead.is_some()) {
            Some(true) => {}
            Some(false) => {
                self.last_sealed = Some(Instant::now());
                let (shared, ahead) = (&self.shared, &mut self.ahead);
                shared.local.forget(|| {
                    *ahead = None;
                    shared.log.forget();
                });
                return Ok(());
            }
            None => {
                // What is due, though nobody wants it, is an image, which was given up at the close. What has come meanwhile is wanted.
                self.ahead = self.take().filter(|batch| !matches!(batch, Batch::Image(_)));
                return Ok(());
            }
        }
        if self.served != self.shared.local.tenure() {
            self.served = self.shared.local.tenure();
            self.shared.meters.serve();
        }
        if self.epoch != self.shared.local.epoch() {
            return self.attach().await;
        }
        let tenure = self.shared.local.tenure();
        if tenure != self.tenure {
            self.tenure = tenure;
            self.proved = false;
        }
        self.shared.taken_in_a_hurry();
        let batch = self.ahead.take();
        match batch.or_else(|| self.take()) {
            None => Ok(()),
            Some(Batch::Base(base)) => self.base(*base).await,
            Some(Batch::Image(base)) => self.image(*base),
            Some(Batch::Resumed(txid)) => self.resumed(txid).await,
            Some(Batch::Transactions(transactions)) => self.transactions(transactions).await,
        }
    }

    /// What waits in the log, as much as goes into one segment.
    fn take(&self) -> Option<Batch> {
        let most = pace::most(self.plan.segment_size, self.company.took);
        self.shared.log.take(most)
    }

    /// Waits until there is something to take up, or to take and it is due.
    async fn wait(&mut self) -> Result<(), Stopped> {
        let (log, status) = (&self.shared.log, &self.shared.status);
        if self.ahead.is_some() {
            return Ok(());
        }
        while !log.arm(0) {
            status.waits(false);
            if log.failure().is_some() {
                return Err(Stopped);
            }
            if self.shared.local.owns() && self.epoch != self.shared.local.epoch() {
                return Ok(());
            }
            self.rest().await?;
        }
        status.waits(true);
        self.shared.publish();
        let since = Instant::now();
        loop {
            let whole = log.arm(self.plan.segment_size);
            let is_large = whole && log.arm(pace::large(self.plan.segment_size));
            let due = pace::due(&Situation {
                since,
                last_sealed: self.last_sealed,
                interval: self.plan.flush_interval,
                whole,
                full: is_large || self.shared.is_hurried(),
                waiting: self.shared.waiting(),
                company: self.company,
            });
            if due <= Instant::now() {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(due) => return Ok(()),
                () = self.shared.wake.notified() => {}
            }
        }
    }

    /// Nothing waits, and nothing is on its way but perhaps an image, which wakes the task at its end.
    async fn rest(&self) -> Result<(), Stopped> {
        let shared = &self.shared;
        if shared.is_deserted() && !shared.status.is_making_image() {
            if shared.log.is_to_be_watched() {
                look(shared).await?;
            }
            shared.let_go_if_closed();
        }
        let awaits_image = shared.log.base_wanted() && shared.status.current_trouble().is_some();
        if shared.log.is_suspended() || awaits_image {
            // Nothing else is asked of the store now. Its answer lets the capture go on, or bring an image that would have been in the way for long.
            generation::look(&self.uploader).await?;
        }
        shared.wake.notified().await;
        Ok(())
    }

    /// Asks the store how the history goes on.
    async fn attach(&mut self) -> Result<(), Stopped> {
        let start = self.shared.local.start();
        let attached = attach::attach(&self.uploader, &start).await?;
        if start.epoch != self.shared.local.epoch() {
            return Ok(());
        }
        (self.epoch, self.tenure) = (start.epoch, self.shared.local.tenure());
        self.unfounded = None;
        self.chain = None;
        self.ahead = None;
        self.proved = false;
        self.gap = false;
        self.set_aside = false;
        self.doubts = Doubts::of(start.known.as_ref());
        self.found = Expected {
            newest: attached.newest,
            ..Expected::default()
        };
        let replica = self.shared.store.replica();
        match attached.verdict {
            Verdict::Anew => self.found.was_empty = attached.newest.is_none(),
            Verdict::GoesOn(end) => {
                self.unfounded = end.is_unfounded().then_some(end.generation);
                self.found.end = Some(end);
            }
            Verdict::MustProve(end) => {
                self.found.end = Some(end);
                self.found.must_prove = true;
                self.shared.log.resume_from(replvfs_vfs::resume::Resume {
                    stored: end.stored.mark,
                    left: None,
                });
            }
            Verdict::Diverged(_, how) if self.shared.refusal.stops() => {
                return Err(fenced::yields(&self.shared, &how).await);
            }
            Verdict::Diverged(parent, how) => {
                self.found.parent = Some(parent);
                self.gap = true;
                self.diverged(&how);
            }
            Verdict::Forestalled => return Err(fenced::forestalled(&self.shared)),
            Verdict::Lost(how) => {
                self.gap = true;
                replvfs_vfs::warning!(
                    database = self.shared.database, replica = replica;
                    "{how}; the history begins anew, with an image of the whole database"
                );
            }
        }
        Ok(())
    }

    fn diverged(&self, how: &str) {
        self.shared.status.diverged();
        replvfs_vfs::warning!(
            database = self.shared.database, replica = self.shared.store.replica();
            "the replica goes on in another way than this database ({how}): it has diverged, and gets a new generation. What was written elsewhere stays in the old one"
        );
    }

    /// The database goes on from the transaction that was asked for.
    async fn resumed(&mut self, txid: Txid) -> Result<(), Stopped> {
        if self.gap {
            self.shared.log.request_base();
            return Ok(());
        }
        let Some(end) = self.found.end.take() else {
            return self.gap(&format!(
                "nothing is known of transaction {txid}, from which the database goes on"
            ));
        };
        if std::mem::take(&mut self.found.must_prove)
            && let Some(database_id) = generation::look(&self.uploader).await?
        {
            let identity = Identity {
                database_id,
                generation: end.generation,
                page_size: end.page_size,
            };
            self.begun(identity, end.stored).await?;
        }
        let last = end.stored.mark.txid;
        self.chain = Some(Chain {
            generation: end.generation,
            page_size: end.page_size,
            last,
            previous: end.stored.previous,
            before: Before {
                first: end.first,
                slot: end.stored.slot,
                content: None,
            },
            image: None,
        });
        self.shared.status.generation(end.generation);
        if end.unfinished {
            return self.set_aside();
        }
        if end.sealed {
            // By somebody who did not come to begin another, or by this process's predecessor.
            self.gap = true;
            self.shared.log.request_base();
            return Ok(());
        }
        if txid != last {
            return self.gap(&format!(
                "the database goes on from transaction {txid}, and its replica ends with {last}"
            ));
        }
        tracing::info!(
            database = %self.shared.database,
            replica = self.shared.store.replica(),
            generation = end.generation.0,
            txid = last.0,
            "the history goes on"
        );
        self.progress.begin(end.generation, last);
        self.images.begin(Beginning {
            generation: end.generation,
            parent: end.parent,
            page_size: end.page_size,
            from: last,
            newest: end.newest_image,
        });
        match end.image.filter(|image| *image <= last) {
            Some(image) => {
                self.shared.status.image(Image::Stored);
                self.progress.image(end.generation, image);
            }
            // Whoever began the generation did not get that far, or the database is older than what is left of it.
            None => self.shared.log.request_base(),
        }
        Ok(())
    }

    async fn transactions(&mut self, transactions: Vec<Arc<Transaction>>) -> Result<(), Stopped> {
        let Some(first) = transactions.first().map(|first| (first.txid, first.page_size)) else {
            return Ok(());
        };
        if self.gap {
            self.shared.log.decline();
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
        let (begun, waiting) = (Instant::now(), self.shared.waiting());
        self.last_sealed = Some(begun);
        let outcome = self.upload(transactions).await;
        self.company = Company {
            waiting,
            took: begun.elapsed(),
        };
        self.shared.status.uploading(0, None);
        outcome
    }

    async fn upload(&mut self, mut transactions: Vec<Arc<Transaction>>) -> Result<(), Stopped> {
        while let (Some(chain), Some(oldest)) = (&mut self.chain, transactions.first()) {
            let wal_bytes = transactions.iter().map(|transaction| transaction.wal_bytes()).sum();
            self.shared.status.uploading(wal_bytes, Some(oldest.committed_at));
            let first = oldest.txid;
            let segment = match seal(&self.shared, &transactions, chain, &self.plan).await? {
                Ok(segment) => segment,
                Err(error) => return self.gap(&error.to_string()),
            };
            let key = Key::Log(chain.generation, first);
            let place = (chain.generation, first);
            let held = transactions.iter().any(|transaction| transaction.held);
            let turn = match held {
                true => {
                    let doubt = Doubt {
                        generation: chain.generation,
                        unfinished: Unfinished {
                            slot: first,
                            hash: segment.hash,
                        },
                    };
                    let before = chain.before;
                    let what = (oldest, &segment.body);
                    match self.doubts.take(&self.uploader, doubt, before, what).await? {
                        Some(turn) => turn,
                        None => return self.taken_back(first),
                    }
                }
                false => turn::take(&self.uploader, place, chain.before, &segment.body).await?,
            };
            if let Turn::Over(why) = turn {
                return Err(fenced(&self.shared, key, &why).await);
            }
            if turn == Turn::Ours {
                if let Some(last) = transactions.last() {
                    let of = &self.shared.meters.of;
                    of.segments.increment(1);
                    of.segment_bytes.increment(segment.body.len());
                    of.uploaded.increment(transactions.len() as u64);
                    tracing::debug!(
                        database = %self.shared.database,
                        generation = place.0.0,
                        first = first.0,
                        txid = last.txid.0,
                        bytes = segment.body.len(),
                        "a segment is in the replica"
                    );
                    self.images.logged(&segment.touched, last.page_count);
                    let stored = Stored {
                        mark: Mark {
                            txid: last.txid,
                            position: last.end,
                        },
                        slot: Some(first),
                        previous: segment.hash,
                    };
                    if held {
                        self.shared.local.hold(stored);
                    } else {
                        self.note(stored);
                    }
                    self.stored(&stored);
                }
                if let Some(chain) = &mut self.chain {
                    chain.has_put(first, &segment);
                }
                if !std::mem::replace(&mut self.proved, true) {
                    generation::probe_again(&self.uploader, place.0).await;
                }
                let due = self.maker().look(transactions.last()).await?;
                return due.map_or(Ok(()), |state| self.make(state));
            }
            if let Err(why) = self.adopt(key, &mut transactions).await? {
                return self.not_ours(key, &why).await;
            }
        }
        Ok(())
    }

    /// A segment is in the store. To be called before anything is let go.
    fn note(&self, stored: Stored) {
        if let Err(problem) = self.shared.local.stored(stored) {
            self.shared.trouble(&problem);
        }
    }

    /// A segment is in the store, follows from what was there, and is noted on this machine.
    fn stored(&mut self, stored: &Stored) {
        if let Some(chain) = &mut self.chain {
            chain.advance(stored);
        }
        self.gaps_in_a_row = 0;
        self.shared.log.stored(stored.mark.txid);
        self.shared.status.uploading(0, None);
        self.progress.segment(stored.mark.txid);
        let shared = &self.shared;
        let last = stored.mark.txid;
        shared.upkeep.stored(
            &self.plan.upkeep,
            last,
            &shared.store,
            (&shared.database, &shared.meters.of),
        );
    }

    /// A slot that was this process's turn is taken. If what is in it is ours, its transactions are done, and leave `transactions`; else says
    /// why not.
    async fn adopt(
        &mut self,
        key: Key,
        transactions: &mut Vec<Arc<Transaction>>,
    ) -> Result<Result<(), String>, Stopped> {
        let Some(previous) = self.chain.as_ref().map(|chain| chain.previous) else {
            return Ok(Ok(()));
        };
        let shared = Arc::clone(&self.shared);
        let store = &shared.store;
        let end = match self.uploader.until_told(|| adopt::look(store, key, previous)).await? {
            Ok(Found::Segment(end)) => end,
            Ok(Found::Nothing) => return Ok(Ok(())),
            Ok(Found::Foreign(why)) => return Ok(Err(why)),
            Ok(Found::Sealed) if self.proved => return Ok(Err(adopt::SEAL.to_owned())),
            Ok(Found::Sealed) => {
                // As if it had been found at the start.
                self.gap = true;
                self.shared.log.request_base();
                self.shared.log.decline();
                transactions.clear();
                return Ok(Ok(()));
            }
            Err(error) => return Ok(Err(error.to_string())),
        };
        self.take_up_to(&end, transactions).await?;
        if let Err(why) = adopt::prove(&end.index, transactions) {
            return Ok(Err(why));
        }
        let told = self.uploader.until_told(|| adopt::stored(store, key, &end)).await?;
        let stored = match told {
            Ok(stored) => stored,
            Err(error) => return Ok(Err(error.to_string())),
        };
        tracing::info!(
            database = %self.shared.database,
            "{key} is what an earlier process uploaded; the history goes on behind it"
        );
        let page_count = end.index.transactions().last().map(|last| last.header.page_count);
        let touched = Touched::by(&end.index, Txid::ZERO).in_bytes(end.len);
        self.images.logged(&touched, page_count.unwrap_or(0));
        let mut done = transactions.drain(..end.index.transactions().len());
        match done.any(|transaction| transaction.held) {
            true => self.shared.local.hold(stored),
            false => self.note(stored),
        }
        self.stored(&stored);
        Ok(Ok(()))
    }

    /// What an earlier process had captured is in our WAL too, though perhaps not in the log yet.
    async fn take_up_to(&mut self, end: &SegmentEnd, transactions: &mut Vec<Arc<Transaction>>) -> Result<(), Stopped> {
        let mut looked = false;
        while transactions.len() < end.index.transactions().len() && self.ahead.is_none() {
            match self.take() {
                Some(Batch::Transactions(more)) => transactions.extend(more),
                // Another comes of the next request.
                Some(Batch::Image(_)) => {}
                Some(other) => self.ahead = Some(other),
                None if looked => break,
                None => {
                    looked = true;
                    look(&self.shared).await?;
                }
            }
        }
        Ok(())
    }

    /// A transaction that may be in the store was not committed, and is to be in no state that follows.
    fn set_aside(&mut self) -> Result<(), Stopped> {
        self.set_aside = true;
        self.gap = true;
        self.shared.log.request_base();
        self.shared.log.decline();
        Ok(())
    }

    /// It was not committed. If it was on its way, the log asks for a base.
    fn taken_back(&mut self, txid: Txid) -> Result<(), Stopped> {
        if self.shared.log.abandoned() == Some(txid) {
            self.set_aside = true;
            self.gap = true;
        }
        Ok(())
    }

    async fn not_ours(&mut self, key: Key, why: &str) -> Result<(), Stopped> {
        if let (false, Some(tail)) = (self.proved, self.chain.as_ref().map(Chain::tail))
            && self.doubts.behind(&self.uploader, tail).await?.is_some()
        {
            return self.set_aside();
        }
        self.shared.log.decline();
        if !self.proved && !self.shared.refusal.stops() {
            self.diverged(&format!("{key}: {why}"));
            self.gap = true;
            self.shared.log.request_base();
            return Ok(());
        }
        Err(fenced(&self.shared, key, why).await)
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
        replvfs_vfs::failure!(
            database = self.shared.database;
            "{reason}; the history will have a gap, and go on with a new image of the database"
        );
        self.shared.status.trouble(reason);
        self.gap = true;
        self.shared.log.request_base();
        self.shared.log.decline();
        Ok(())
    }
}

/// While connections are open, looks at the database once an interval, whatever the uploads are doing: what other processes committed, and
/// whether one of them has ceased to replicate it. After that no timer runs.
async fn watch(shared: &Shared, interval: Duration) -> Stopped {
    loop {
        if !shared.is_open() {
            shared.open_again.notified().await;
            continue;
        }
        tokio::time::sleep(interval).await;
        shared.publish();
        let log = &shared.log;
        if shared.is_undecided() {
            // Perhaps the file was never made. Whoever reads it asks.
        } else if !shared.owns() {
            // It may be closed by now.
            shared.own_if_wanted(false);
        } else if log.is_to_be_watched() && log.has_news() && look(shared).await.is_err() {
            return Stopped;
        }
        if log.is_suspended() {
            shared.wake.notify_one();
        }
        if shared.status.current_trouble().is_some() {
            let log = Arc::clone(log);
            // A panic in it has been told where it happened, and ends no replication that goes on.
            let _ = outside::blocking(move || log.let_writers_by()).await;
        }
    }
}

/// Has what other processes committed put into the log.
async fn look(shared: &Shared) -> Result<(), Stopped> {
    let log = Arc::clone(&shared.log);
    match outside::blocking(move || log.look()).await {
        Ok(()) => Ok(()),
        Err(stopped) => {
            shared.fail(&format!(
                "looking at the WAL failed, which is a bug in replvfs: {stopped}"
            ));
            Err(Stopped)
        }
    }
}

/// On the blocking pool, and again while what stands in the way may pass.
async fn seal(
    shared: &Shared,
    transactions: &[Arc<Transaction>],
    chain: &Chain,
    plan: &Plan,
) -> Result<Result<Segment, SealError>, Stopped> {
    let transactions: Arc<[Arc<Transaction>]> = transactions.into();
    let mut backoff = Backoff::new();
    loop {
        let (transactions, folder) = (Arc::clone(&transactions), plan.folder.clone());
        let (generation, previous) = (chain.generation, chain.previous);
        let sealing = outside::blocking(move || sealer::seal(&transactions, generation, previous, &folder));
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
