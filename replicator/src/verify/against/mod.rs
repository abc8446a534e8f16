//! Whether a database on this machine is what the replica says it is, page by page, at its place in the history.
//!
//! Owns the comparison, and how long a replica is waited for that a process is still uploading to. Leaves reading the database to whoever has a SQLite to
//! take part in its locks, and which transaction the database is at to `tie`.

mod tie;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use replvfs_vfs::resume::Fingerprint;
use replvfs_vfs::types::{Pgno, Position, Txid};
use tokio::time::Instant;

use super::{Finding, said_by_restore};
use crate::format::{CHUNK_BYTES, DatabaseId, Generation, Key, LocalState, Place};
use crate::history::{History, HistoryError, Plan, Target, list_generations};
use crate::local_state::{self, StateError};
use crate::restore::{Digested, Digests, ProgressFn, RestoreError, digest_state};
use crate::store::Store;
use tie::Tie;

/// Differing pages that are told one by one.
pub const PAGES_TOLD: usize = 100;

/// Between two looks at the replica while it is waited for.
const PAUSE: Duration = Duration::from_millis(250);

/// One state of a database on this machine, read in one transaction.
#[derive(Debug, Clone)]
pub struct Local {
    /// All of its pages.
    pub digests: Digests,
    /// How many there are.
    pub page_count: u32,
    /// The WAL that the state is in; `None` in a rollback-journal mode, or without a WAL beside the file.
    pub wal: Option<LocalWal>,
    /// The file as it was while it was read.
    pub file: Option<Fingerprint>,
}

/// Where in its WAL a state is.
#[derive(Debug, Clone)]
pub struct LocalWal {
    /// Behind its last transaction.
    pub position: Position,
    /// Behind each transaction in this WAL, in order, as far as they could be read; the last one is `position`. None in a WAL that has no frames.
    pub commits: Vec<Position>,
}

/// Reads the present state of a database, on a thread that may block. What it cannot do is a sentence.
pub type LocalFn = Arc<dyn Fn() -> Result<Local, String> + Send + Sync>;

/// How to compare.
#[derive(Clone)]
pub struct AgainstOptions {
    /// How long to wait for what is not in the replica yet, as long as a process replicates the database.
    pub timeout: Duration,
    /// Is told how far reading the replica is, often, and from several threads.
    pub progress: Option<ProgressFn>,
}

impl std::fmt::Debug for AgainstOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgainstOptions")
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// How it is known which state of the replica the database has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TiedBy {
    /// Its WAL ends with the transaction: the position is in the replica's log.
    Wal,
    /// It is the file, or the WAL without frames, that the state file beside the database tells of.
    StateFile,
    /// The first page, which has a counter of changes in it.
    FirstPage,
    /// It is not: the newest state was taken.
    Newest,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Each page is the replica's.
    Equal,
    /// Some are not, or there are more or fewer of them.
    Different,
    /// The database has transactions that the replica has not got: so many, where that is known. Nothing was compared.
    Ahead(Option<u64>),
    /// What is in the replica cannot be read, as the findings say.
    Unreadable,
}

/// A page that is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DifferingPage {
    /// Its number.
    pub page: Pgno,
    /// The object that the replica has it from; `None` for a page of zeros that no transaction wrote.
    pub from: Option<Key>,
}

/// What was compared, and what came out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compared {
    /// The result.
    pub outcome: Outcome,
    /// The generation that was taken.
    pub generation: Generation,
    /// The transaction after which the replica was taken; where the database is ahead, the newest one that there is.
    pub txid: Txid,
    /// Why that one.
    pub tied_by: TiedBy,
    /// Pages in the database.
    pub page_count: u32,
    /// Pages in the replica's state.
    pub replica_page_count: u32,
    /// How many of those that both have differ.
    pub differing: u64,
    /// The first [`PAGES_TOLD`] of them.
    pub pages: Vec<DifferingPage>,
    /// What is wrong in the replica.
    pub findings: Vec<Finding>,
    /// A process replicates the database at this moment.
    pub owned: bool,
}

/// Why nothing was compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgainstError {
    /// The database cannot be read.
    #[error("{} cannot be compared: {problem}", path.display())]
    Local {
        /// The database.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// It is not what this replica is of.
    #[error("{} is another database than the replica's: {problem}", path.display())]
    Another {
        /// The database.
        path: PathBuf,
        /// What tells.
        problem: String,
    },
    /// The state file beside it.
    #[error(transparent)]
    State(#[from] StateError),
    /// The replica cannot be read.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// Reading it failed here, not in the store.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// Compares a database with the state of the replica that it has to be. `read` is called at least once, and again where the replica went on before it could be
/// told which state the database was in. Memory is bounded but for a few bytes a page of the largest segment; 16 bytes a page of the database go
/// to each of two temporary files without a name. Nothing is written beside the database.
///
/// # Errors
///
/// See [`AgainstError`]. Damage in the replica is no error, but in the result.
pub async fn against(
    store: &Store,
    database: &Path,
    read: LocalFn,
    options: &AgainstOptions,
) -> Result<Compared, AgainstError> {
    let run = Run {
        store,
        database,
        options,
        deadline: Instant::now() + options.timeout,
    };
    loop {
        // Before the database is read: what is noted there is in it.
        let state = run.state().await?;
        let local = run.read(&read).await?;
        let compared = run.compare(&local, state.as_ref()).await?;
        // Without a proof it may have been at a state between two that are there.
        let certain = matches!(compared.tied_by, TiedBy::Wal | TiedBy::StateFile);
        let again = compared.outcome == Outcome::Different && !certain && compared.owned;
        if !again || !run.pause().await {
            return Ok(compared);
        }
    }
}

struct Run<'a> {
    store: &'a Store,
    database: &'a Path,
    options: &'a AgainstOptions,
    deadline: Instant,
}

impl Run<'_> {
    /// False when the time is over.
    async fn pause(&self) -> bool {
        let now = Instant::now();
        if now >= self.deadline {
            return false;
        }
        tokio::time::sleep_until((now + PAUSE).min(self.deadline)).await;
        true
    }

    async fn read(&self, read: &LocalFn) -> Result<Local, AgainstError> {
        let read = Arc::clone(read);
        let local = tokio::task::spawn_blocking(move || read()).await;
        local
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(|problem| AgainstError::Local {
                path: self.database.to_owned(),
                problem,
            })
    }

    fn another(&self, problem: String) -> AgainstError {
        let path = self.database.to_owned();
        AgainstError::Another { path, problem }
    }

    /// What is noted beside the database, if it is of this replica.
    async fn state(&self) -> Result<Option<LocalState>, AgainstError> {
        let state = match local_state::read(&local_state::state_file(self.database)) {
            Err(error) if error.is_damage() => None,
            state => state?,
        };
        let Some(state) = state else {
            return Ok(None);
        };
        let id = self.history().await?.meta().database_id;
        if state.database_id == id {
            return Ok(Some(state));
        }
        Err(self.another(if state.place == Place::of(self.store.place()) {
            let was = DatabaseId::to_string(&state.database_id);
            format!("it was replicated here when this was the replica of database {was}, and now that of {id} is here")
        } else {
            format!(
                "the state file beside it says that it is replicated to {}",
                state.replica
            )
        }))
    }

    /// Damage that is met is a finding. What is missing is looked for once more: retention may have deleted it meanwhile.
    async fn compare(&self, local: &Local, state: Option<&LocalState>) -> Result<Compared, AgainstError> {
        let mut history = self.history().await?;
        let mut compared = self.compare_whole(history, local, state).await;
        if let Err(AgainstError::Restore(RestoreError::History(HistoryError::Missing { .. }))) = compared {
            history = self.history().await?;
            compared = self.compare_whole(history, local, state).await;
        }
        match compared {
            Err(AgainstError::Restore(error)) if !matches!(error, RestoreError::File { .. }) => {
                let (object, problem) = said_by_restore(error)?;
                let newest = list_generations(self.store).await?.last().copied();
                let newest = newest.unwrap_or(Generation(0));
                let object = object.unwrap_or(Key::Generation(newest));
                let mut compared = nothing_compared(Outcome::Unreadable, (newest, Txid::ZERO), local, self.is_owned());
                let finding = Finding::new(object, problem, "the state to compare with");
                compared.findings.push(finding);
                Ok(compared)
            }
            compared => compared,
        }
    }

    async fn compare_whole(
        &self,
        mut history: History,
        local: &Local,
        state: Option<&LocalState>,
    ) -> Result<Compared, AgainstError> {
        loop {
            let tie = tie::tie(self.store, &history, local, state).await?;
            let owned = self.is_owned();
            let (target, generation, by) = match tie {
                Tie::At { generation, txid, by } => (Target::Txid(txid), Some(generation), by),
                Tie::Unknown => (Target::Newest, None, TiedBy::Newest),
                Tie::Ahead { .. } if owned && self.pause().await => {
                    history = self.history().await?;
                    continue;
                }
                Tie::Ahead { generation, newest, by } => {
                    let outcome = Outcome::Ahead(by);
                    return Ok(nothing_compared(outcome, (generation, newest), local, owned));
                }
            };
            let plan = history.plan(target, generation).await.map_err(RestoreError::from)?;
            let compared = self.with_plan(&history, &plan, local, by, owned).await?;
            // Another state would be ahead just as much.
            let waits = owned && matches!(compared.outcome, Outcome::Ahead(_));
            if !(waits && self.pause().await) {
                return Ok(compared);
            }
            history = self.history().await?;
        }
    }

    /// What has just begun to be replicated has no image yet.
    async fn history(&self) -> Result<History, HistoryError> {
        loop {
            let opened = History::open(self.store).await;
            let begins = match &opened {
                Ok(history) => history.generations().iter().all(|found| found.images().is_empty()),
                Err(error) => matches!(error, HistoryError::NoReplica),
            };
            if !(begins && self.is_owned() && self.pause().await) {
                return opened;
            }
        }
    }

    fn is_owned(&self) -> bool {
        // Whoever cannot ask does not wait.
        local_state::is_owned(self.database).unwrap_or(false)
    }

    async fn with_plan(
        &self,
        history: &History,
        plan: &Plan,
        local: &Local,
        tied_by: TiedBy,
        owned: bool,
    ) -> Result<Compared, AgainstError> {
        let page_size = local.digests.page_size();
        if plan.manifest.page_size != page_size {
            return Err(self.another(format!(
                "its pages have {page_size} bytes, and those of generation {} {}",
                plan.generation, plan.manifest.page_size
            )));
        }
        let theirs = digest_state(self.store, plan, self.options.progress.clone()).await?;
        let (differing, numbers) = differing(local, &theirs).await.map_err(|error| AgainstError::Local {
            path: self.database.to_owned(),
            problem: error.to_string(),
        })?;
        let ahead = tie::counter_is_ahead(local, &theirs).filter(|_| tied_by == TiedBy::Newest);
        let outcome = match differing {
            _ if ahead.is_some() => Outcome::Ahead(ahead),
            0 if local.page_count == theirs.page_count => Outcome::Equal,
            _ => Outcome::Different,
        };
        Ok(Compared {
            outcome,
            generation: plan.generation,
            txid: theirs.txid,
            tied_by,
            page_count: local.page_count,
            replica_page_count: theirs.page_count,
            differing,
            pages: sources(history, plan, theirs.txid, numbers)
                .await
                .map_err(RestoreError::from)?,
            findings: Vec::new(),
            owned,
        })
    }
}

fn nothing_compared(outcome: Outcome, (generation, txid): (Generation, Txid), local: &Local, owned: bool) -> Compared {
    Compared {
        outcome,
        generation,
        txid,
        tied_by: TiedBy::Newest,
        page_count: local.page_count,
        replica_page_count: 0,
        differing: 0,
        pages: Vec::new(),
        findings: Vec::new(),
        owned,
    }
}

/// How many of the pages that both have differ, and the first of them.
async fn differing(local: &Local, theirs: &Digested) -> std::io::Result<(u64, Vec<Pgno>)> {
    let (ours, theirs, count) = (
        local.digests.clone(),
        theirs.digests.clone(),
        local.page_count.min(theirs.page_count),
    );
    let compared = tokio::task::spawn_blocking(move || {
        let (mut differing, mut told) = (0, Vec::new());
        ours.differing(&theirs, count, |page| {
            differing += 1;
            if told.len() < PAGES_TOLD {
                told.push(page);
            }
        })?;
        Ok((differing, told))
    });
    compared.await.map_err(std::io::Error::other)?
}

/// Where the replica has these pages from, as of a transaction.
async fn sources(
    history: &History,
    plan: &Plan,
    last: Txid,
    pages: Vec<Pgno>,
) -> Result<Vec<DifferingPage>, HistoryError> {
    if pages.is_empty() {
        return Ok(Vec::new());
    }
    let per_chunk = CHUNK_BYTES as u64 / u64::from(plan.manifest.page_size.get());
    let mut from: BTreeMap<Pgno, Option<Key>> = BTreeMap::new();
    for page in pages {
        let chunk = usize::try_from(u64::from(page.get() - 1) / per_chunk).ok();
        let name = chunk.and_then(|chunk| plan.manifest.chunks.get(chunk));
        from.insert(page, name.map(|name| Key::Chunk(*name)));
    }
    let wanted = plan.manifest.txid.next()..=last;
    let mut generations = history.generations().iter();
    let found = generations.find(|found| found.meta().generation == plan.generation);
    if let Some(found) = found.filter(|_| !wanted.is_empty()) {
        history
            .visit_from(found, plan.manifest.txid.next(), last, |key, index| {
                let entries = index.transactions().iter();
                for entry in entries.filter(|entry| wanted.contains(&entry.txid)) {
                    // What a transaction cut off, it does not come from any more.
                    let behind = Pgno::new(entry.header.page_count.saturating_add(1));
                    if let Some(behind) = behind {
                        from.range_mut(behind..).for_each(|(_, from)| *from = None);
                    }
                    for page in index.pages_of(entry).unwrap_or_default() {
                        if let Some(from) = from.get_mut(page) {
                            *from = Some(key);
                        }
                    }
                }
            })
            .await?;
    }
    let told = from.into_iter().map(|(page, from)| DifferingPage { page, from });
    Ok(told.collect())
}
