//! Whether everything can be restored that a replica says it has: all objects that a restore may need are read and checked as a restore would.
//!
//! Owns which objects these are, and what cannot be restored without one. It goes on after a finding. Leaves decoding to
//! [`format`](mod@crate::format) and the order of a log to [`history`](crate::history); repairs nothing.

pub mod against;
mod image;
mod log;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use replvfs_vfs::types::{Txid, UnixMillis};

use crate::format::{ChunkName, Generation, Key, ObjectHash, Parent, ReplicaMeta};
use crate::history::path::Listing;
use crate::history::{GenerationHistory, HistoryError, list_generations, list_log, load_generation, read_meta};
use crate::restore::RestoreError;
use crate::store::{Store, StoreError};

/// What to verify.
#[derive(Clone, Default)]
pub struct VerifyOptions {
    /// What restores to this time and later need; by default everything.
    pub since: Option<UnixMillis>,
    /// One generation only.
    pub generation: Option<Generation>,
    /// Is told how far it is, often, and from several threads.
    pub progress: Option<Arc<dyn Fn(VerifyProgress) + Send + Sync>>,
}

impl std::fmt::Debug for VerifyOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifyOptions")
            .field("since", &self.since)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct VerifyProgress {
    /// Objects that were read.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What is wrong in a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// The object that is missing, damaged, or not the one that belongs there.
    pub object: Key,
    /// What is wrong with it.
    pub problem: String,
    /// What cannot be restored because of it.
    pub lost: String,
    /// The object is not there.
    pub missing: bool,
}

impl Finding {
    fn new(object: Key, problem: impl Into<String>, lost: impl Into<String>) -> Finding {
        let problem = problem.into();
        Finding {
            object,
            missing: problem.starts_with(MISSING) || problem.starts_with(LISTED),
            problem,
            lost: lost.into(),
        }
    }
}

/// How it is said that an object is not there.
const MISSING: &str = "it is missing";
const LISTED: &str = "it was listed, and is missing";

/// What of a generation can be restored, but for the findings.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifiedGeneration {
    /// Its number.
    pub generation: Generation,
    /// The images that were verified.
    pub images: Vec<Txid>,
    /// The last transaction that its log reaches.
    pub last: Txid,
}

/// Objects that no restore needs, and that the next pruning may delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Unreferenced {
    /// Chunks that no image names.
    pub chunks: u64,
    /// Segments and spans that are not read: those before the oldest image, and those that a span stands for.
    pub segments: u64,
    /// The bytes of all of them.
    pub bytes: u64,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Verified {
    /// What is wrong, in the order of history.
    pub findings: Vec<Finding>,
    /// What was looked at, the oldest first.
    pub generations: Vec<VerifiedGeneration>,
    /// What was read.
    pub read: VerifyProgress,
    /// What is there for nothing.
    pub unreferenced: Unreferenced,
    /// What a user should know, and is no damage.
    pub warnings: Vec<String>,
}

/// How often all of it is read at most, where something is missing: retention deletes while others read.
const LOOKS: usize = 3;

/// Reads all that restores need, and checks it: hashes, checksums, the chain of each log, what every block decompresses to, and that no transaction is
/// missing between the oldest image and the newest transaction of each generation. Memory is bounded but for 60 bytes a chunk.
///
/// What cannot be noticed: that the newest segments of a generation are gone that has no seal and no successor, or its newest images; nothing else in the
/// store tells that they were there.
///
/// What is listed and gone when it is read may have been deleted by retention in between. So where something is missing all of it is listed and
/// read again, up to two times, and what nothing needs any more is no finding.
///
/// # Errors
///
/// When there is no replica, or the store does not answer. What is wrong in the replica is no error, but in the result.
pub async fn verify(store: &Store, options: &VerifyOptions) -> Result<Verified, HistoryError> {
    let mut verified = look(store, options).await?;
    let mut before = BTreeSet::new();
    for _ in 1..LOOKS {
        let missing = verified.missing();
        // What is missing now was so in the look before, and is needed by what was listed since.
        if missing.is_subset(&before) {
            break;
        }
        before = missing;
        let read = verified.read;
        verified = look(store, options).await?;
        verified.read.objects += read.objects;
        verified.read.bytes += read.bytes;
    }
    Ok(verified)
}

async fn look(store: &Store, options: &VerifyOptions) -> Result<Verified, HistoryError> {
    let mut run = Run {
        store: store.clone(),
        counted: Arc::new(Counted {
            objects: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            progress: options.progress.clone(),
        }),
        known: HashSet::new(),
        damaged: BTreeMap::new(),
        result: Verified::default(),
    };
    let numbers = list_generations(store).await?;
    run.replica(numbers.is_empty()).await?;
    let mut parents = Vec::new();
    let newest = numbers.last().copied();
    let mut since = options.since;
    let mut in_window = true;
    // The newest first, since what is older than the window is known by what is in it.
    for number in numbers.into_iter().rev() {
        let wanted = in_window && options.generation.is_none_or(|only| only == number);
        let findings = std::mem::take(&mut run.result.findings);
        let loaded = match load_generation(store, number).await {
            Ok(None) => continue,
            Ok(Some(found)) => Ok(found),
            Err(error) => Err(run.not_loaded(number, error, wanted).await?),
        };
        let images = match &loaded {
            Ok(found) => found.images().to_vec(),
            Err(images) => images.clone(),
        };
        let begin = run.begin_of(number, &images, since).await?;
        let found = Looked {
            number,
            root: loaded.as_ref().ok().map(GenerationHistory::root),
            page_size: loaded.as_ref().ok().map(|found| found.meta().page_size),
            first_image: loaded.as_ref().ok().map(|found| found.meta().first_image),
            parent: loaded.as_ref().ok().and_then(|found| found.meta().parent),
            begin: begin.map_or(0, |begin| begin.0),
            images,
        };
        run.generation(&found, wanted, newest == Some(number)).await?;
        if wanted && let Some(parent) = found.parent {
            parents.push((number, parent));
        }
        if begin.is_some_and(|begin| begin.1) {
            in_window = false;
            since = None;
        }
        run.result.findings.extend(findings);
    }
    run.result.generations.reverse();
    run.parents(&parents);
    run.unreferenced_chunks().await?;
    run.result.read = run.counted.now();
    Ok(run.result)
}

impl Verified {
    fn missing(&self) -> BTreeSet<String> {
        let missing = self.findings.iter().filter(|finding| finding.missing);
        missing.map(|finding| finding.object.path()).collect()
    }
}

/// A generation, as far as it could be read.
struct Looked {
    number: Generation,
    root: Option<ObjectHash>,
    page_size: Option<u32>,
    first_image: Option<Txid>,
    parent: Option<Parent>,
    /// The first of its images that is in the window.
    begin: usize,
    images: Vec<Txid>,
}

impl Looked {
    /// Those in the window.
    fn wanted(&self) -> &[Txid] {
        self.images.get(self.begin..).unwrap_or_default()
    }

    /// What needs something of the log from `first` to `last`: the transactions from the first of them on, up to the first image that has all of them.
    fn lost(&self, first: Txid, last: Txid) -> String {
        let (images, number) = (self.wanted(), self.number);
        let from = images.first().map_or(first, |oldest| first.max(oldest.next()));
        match images.iter().find(|image| **image >= last) {
            // The images before and behind are enough for every transaction, but not to find the one of a time.
            Some(image) if *image <= from => format!("times right before transaction {image} of generation {number}"),
            Some(image) => format!("transactions {from} to {} of generation {number}", image.0 - 1),
            None => format!("transactions {from} and later of generation {number}"),
        }
    }

    /// What needs this image.
    fn lost_image(&self, image: Txid) -> String {
        let next = self.images.iter().find(|other| **other > image);
        match next {
            Some(next) => format!(
                "transactions {image} to {} of generation {}",
                next.0.saturating_sub(1),
                self.number
            ),
            None => format!("transactions {image} and later of generation {}", self.number),
        }
    }
}

/// What was read, counted by whoever reads it.
struct Counted {
    objects: AtomicU64,
    bytes: AtomicU64,
    progress: Option<Arc<dyn Fn(VerifyProgress) + Send + Sync>>,
}

impl Counted {
    fn now(&self) -> VerifyProgress {
        VerifyProgress {
            objects: self.objects.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    fn add(&self, bytes: u64) {
        self.objects.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(progress) = &self.progress {
            progress(self.now());
        }
    }
}

struct Run {
    store: Store,
    counted: Arc<Counted>,
    /// Chunks that an image names. Those in the window are read once, whoever names them.
    known: HashSet<(ChunkName, u32)>,
    damaged: BTreeMap<ChunkName, String>,
    result: Verified,
}

impl Run {
    fn find(&mut self, object: Key, problem: impl Into<String>, lost: impl Into<String>) {
        self.result.findings.push(Finding::new(object, problem, lost));
    }

    async fn replica(&mut self, empty: bool) -> Result<(), HistoryError> {
        let key = Key::Replica;
        let problem = match read_meta(&self.store, key).await {
            Ok(None) if empty => return Err(HistoryError::NoReplica),
            Ok(None) => MISSING.to_owned(),
            Ok(Some(bytes)) => {
                self.counted.add(bytes.len() as u64);
                match ReplicaMeta::from_bytes(&bytes) {
                    Ok(_) => return Ok(()),
                    Err(error) => error.to_string(),
                }
            }
            Err(error) => said(error)?.1,
        };
        self.find(key, problem, "everything");
        Ok(())
    }

    /// Returns the images that it has all the same.
    async fn not_loaded(
        &mut self,
        number: Generation,
        error: HistoryError,
        wanted: bool,
    ) -> Result<Vec<Txid>, HistoryError> {
        let (object, problem) = said(error)?;
        if wanted {
            self.find(
                object.unwrap_or(Key::Generation(number)),
                problem,
                format!("generation {number}"),
            );
        }
        let listed = self.store.list(&Key::image_prefix(number)).await?;
        let images = listed.into_iter().filter_map(|(key, _)| match key {
            Key::Image(_, txid) => Some(txid),
            _ => None,
        });
        Ok(images.collect())
    }

    async fn generation(&mut self, found: &Looked, wanted: bool, newest: bool) -> Result<(), HistoryError> {
        self.images(found, wanted).await?;
        let listing = list_log(&self.store, found.number).await?;
        let Some(first) = found.wanted().first().copied().filter(|_| wanted) else {
            if wanted && found.images.is_empty() {
                self.without_image(found, &listing, newest);
            }
            return Ok(());
        };
        let last = self.log(found, first, &listing).await?;
        self.result.generations.push(VerifiedGeneration {
            generation: found.number,
            images: found.wanted().to_vec(),
            last,
        });
        Ok(())
    }

    /// The first image of one that is being made, the rest of one that was deleted, or the loss of a manifest.
    fn without_image(&mut self, found: &Looked, listing: &Listing, newest: bool) {
        let number = found.number;
        let before = self.result.unreferenced;
        self.unreferenced_pieces(listing, &[]);
        let count = self.result.unreferenced.segments - before.segments;
        let warning = match (newest, count > 0) {
            // Segments may be there before it is. Nothing tells that from one that was lost.
            (true, true) => format!(
                "generation {number} has a log and no image: it cannot be restored from until that is made; if no process is making it, it is lost"
            ),
            (true, false) => format!("generation {number} has no image yet: it cannot be restored from"),
            (false, true) => format!("generation {number} has a log and no image: it cannot be restored from"),
            (false, false) => return,
        };
        self.result.warnings.push(warning);
    }

    /// A generation has everything that another one says to have from it.
    fn parents(&mut self, parents: &[(Generation, Parent)]) {
        for (child, parent) in parents {
            let found = self.result.generations.iter();
            let Some(found) = found.clone().find(|found| found.generation == parent.generation) else {
                continue;
            };
            if found.last < parent.txid {
                let missing = found.last.next();
                self.find(
                    Key::Log(parent.generation, missing),
                    format!("{MISSING}, but {} goes on behind it", Key::Generation(*child)),
                    format!(
                        "transactions {missing} to {} of generation {}",
                        parent.txid, parent.generation
                    ),
                );
            }
        }
    }

    async fn unreferenced_chunks(&mut self) -> Result<(), HistoryError> {
        let named: HashSet<ChunkName> = self.known.drain().map(|(name, _)| name).collect();
        for (key, len) in self.store.list(Key::chunks_prefix()).await? {
            if let Key::Chunk(name) = key
                && !named.contains(&name)
            {
                self.result.unreferenced.chunks += 1;
                self.result.unreferenced.bytes += len;
            }
        }
        Ok(())
    }
}

/// The object that an error is about, and what is wrong with it. Trouble with the store is no finding.
fn said(error: HistoryError) -> Result<(Option<Key>, String), HistoryError> {
    match error {
        HistoryError::Format { key, error } => Ok((Some(key), error.to_string())),
        HistoryError::Misplaced { key, found } => Ok((Some(key), format!("it says that it is {found}"))),
        HistoryError::Missing { key, needed_by } => Ok((Some(key), format!("{MISSING}, but {needed_by} needs it"))),
        HistoryError::Sealed { key, behind } => {
            Ok((Some(key), format!("it ends the generation, but {behind} is behind it")))
        }
        error => Err(error),
    }
}

/// The same for what was made for restores.
fn said_by_restore(error: RestoreError) -> Result<(Option<Key>, String), HistoryError> {
    match error {
        RestoreError::History(error) => said(error),
        RestoreError::Format { key, error } => Ok((Some(key), error.to_string())),
        RestoreError::Chain { key, previous } => Ok((Some(key), format!("it does not follow from {previous}"))),
        RestoreError::Task { key, problem } => Err(HistoryError::Task { key, problem }),
        error => Ok((None, error.to_string())),
    }
}

/// Only trouble with the store is left of an error.
fn store_only<T>(result: Result<T, HistoryError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(HistoryError::Store(error)) => Err(error),
        Err(_) => Ok(None),
    }
}
