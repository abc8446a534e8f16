//! The whole surface of the object store that replvfs uses, in one place.
//!
//! Owns creation that is conditional and whole-or-nothing, reading, listing, retries of passing trouble, and the wording of errors.
//! Leaves to [`format`](crate::format) how objects are named, and to its callers what they mean and how long trouble is endured.

#[cfg(feature = "azblob")]
mod azblob;
mod beside;
mod body;
mod error;
mod folder;
#[cfg(test)]
pub(crate) mod forward;
#[cfg(feature = "ftp")]
mod ftp;
#[cfg(feature = "gcs")]
mod gcs;
mod keys;
mod list;
#[cfg(feature = "s3")]
mod s3;
mod service;
#[cfg(feature = "sftp")]
mod sftp;
mod tag;
mod uri;
#[cfg(feature = "webdav")]
mod webdav;

use std::future::Future;
use std::io;
#[cfg(feature = "ftp")]
use std::ops::Bound;
use std::ops::{Range, RangeBounds};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use opendal::layers::{ConcurrentLimitLayer, RetryEvent, RetryLayer, TimeoutLayer, TracingLayer};
use opendal::{Buffer, ErrorKind, Metadata, Operator};
use tokio::time::Instant;

use crate::format::Key;
use crate::metrics::{Metrics, Outcome, Request, StoreMetrics};
use beside::Beside;
pub use body::Body;
use body::blocking;
use error::Action;
pub use error::StoreError;
use folder::Folder;
pub(crate) use keys::StoreKeys;
pub use list::Dated;
use tag::Tags;
pub use uri::{SCHEMES, redacted};
pub(crate) use uri::{check, known_keys, scheme_of, takes_key, takes_keys};

/// Bytes of one request of a large upload, and of one comparison step.
const PART_BYTES: usize = 8 << 20;
/// Parts of one large upload that are under way together.
const PARTS_AT_ONCE: usize = 4;
/// Where objects are until they are whole, in stores that cannot create one in one step.
const TEMP_FOLDER: &str = ".tmp";
const TEMP_PREFIX: &str = "replvfs-";
/// No upload takes this long, so a temporary file that is older was left by a crash.
const TEMP_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// How a store is used. The defaults are right for a writer.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Whether opening makes the folder of an `fs://` replica if it is missing. For a reader a missing folder is an error.
    /// Default: true.
    pub create: bool,
    /// How long a request without content may take. Default: 30 s.
    pub request_timeout: Duration,
    /// How long one step of an upload or a download may take: a whole small object, or 8 MiB of a large one.
    /// Default: 90 s.
    pub transfer_timeout: Duration,
    /// How often passing trouble is tried again before it is reported. Default: 3.
    pub retries: usize,
    /// Operations on this store at once. Default: 16.
    pub concurrency: usize,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            create: true,
            request_timeout: Duration::from_secs(30),
            transfer_timeout: Duration::from_secs(90),
            retries: 3,
            concurrency: 16,
        }
    }
}

impl StoreOptions {
    /// For whoever only reads: nothing is made that is missing.
    #[must_use]
    pub fn reading() -> StoreOptions {
        StoreOptions {
            create: false,
            ..StoreOptions::default()
        }
    }
}

/// What came of a creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object did not exist, and is now there as a whole.
    New,
    /// The object exists, and was not touched. It may be this caller's, from an attempt whose answer was lost: see [`Store::holds`].
    Exists,
}

/// Whether two writers can both believe that they created an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fencing {
    /// The store decides, in one step.
    Enforced,
    /// The store cannot, or was seen not to: existence is looked up first, and a race can be lost unseen.
    BestEffort,
}

/// An object store with one replica in it. Clones are the same store.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    operator: Operator,
    replica: String,
    place: String,
    way: Way,
    best_effort: AtomicBool,
    /// The condition was seen to be kept, or needs no proof.
    proved: AtomicBool,
    tags: Tags,
    metrics: Counted,
}

/// How an object is created.
#[derive(Debug)]
enum Way {
    /// By a file system.
    Folder(Folder),
    /// In one request, with a condition where the store has one.
    Request,
    Beside(Box<Beside>),
}

/// Where requests are counted, if they are.
type Counted = Arc<OnceLock<StoreMetrics>>;

impl Store {
    /// Opens the replica at a URI:
    ///
    /// - `fs:///absolute/path`: a folder. Its permissions follow the process's umask.
    /// - `memory://name`: this process's memory, for tests; the same name is the same replica.
    /// - `s3://bucket/prefix?region=…&endpoint=…`: S3 and what speaks its protocol. The parameters are OpenDAL's S3 configuration;
    ///   credentials come from the environment, a profile, or the machine's role.
    /// - with the feature of that name, `azblob://container/prefix?account_name=…`, `gcs://bucket/prefix` (also `gs://`),
    ///   `webdav://server/path` (HTTPS; `webdav+http://` without), `sftp://user@server/path`, `ftps://user@server/path` (`ftp://` without TLS).
    ///
    /// No request is made.
    ///
    /// # Errors
    ///
    /// When the URI is not understood, or the folder cannot be made.
    pub fn open(uri: &str, options: &StoreOptions) -> Result<Store, StoreError> {
        Store::open_with(uri, &StoreKeys::default(), options)
    }

    /// [`open`](Store::open), with what the store is told besides its URI.
    pub(crate) fn open_with(uri: &str, keys: &StoreKeys, options: &StoreOptions) -> Result<Store, StoreError> {
        let found = uri::open(uri, keys, options.create)?;
        let opened = found.opened;
        let concurrency = options.concurrency.clamp(1, most_at_once(&opened.operator));
        let metrics = Counted::default();
        let retried = Arc::clone(&metrics);
        // From the inside out. The timeout is inside the retry, since a retry that is dropped half-way loses its writer; the limit is outside, so that
        // waiting for one's turn is no timeout.
        let operator = opened
            .operator
            .layer(
                TimeoutLayer::new()
                    .with_timeout(options.request_timeout)
                    .with_io_timeout(options.transfer_timeout),
            )
            .layer(
                RetryLayer::new()
                    .with_min_delay(Duration::from_millis(200))
                    .with_max_delay(Duration::from_secs(5))
                    .with_max_times(options.retries)
                    .with_jitter()
                    .with_notify(move |event: RetryEvent<'_>| {
                        trace_retry(&event);
                        if let Some(metrics) = retried.get() {
                            metrics.retries.increment(1);
                        }
                    }),
            )
            .layer(ConcurrentLimitLayer::new(concurrency));
        // It traces requests with their addresses, and those of Azure may have a SAS token in them.
        let operator = match operator.info().scheme() {
            "azblob" => operator,
            _ => operator.layer(TracingLayer::new()),
        };
        let way = way_of(&operator);
        #[cfg(feature = "ftp")]
        let way = match opened.control {
            Some(control) => Way::Beside(Box::new(Beside::with(control))),
            None => way,
        };
        Ok(Store::new(operator, way, found.replica, found.place, metrics))
    }

    /// Takes a ready operator as it is: timeouts and retries are the caller's. Objects of an `fs` operator are created in its
    /// root folder past its layers, because OpenDAL's own writer is not both exclusive and atomic.
    #[must_use]
    pub fn from_operator(operator: Operator) -> Store {
        let info = operator.info();
        let replica = redacted(&format!("{}://{}{}", info.scheme(), info.name(), info.root()));
        let place = uri::place_of(&operator);
        let way = way_of(&operator);
        Store::new(operator, way, replica, place, Counted::default())
    }

    fn new(operator: Operator, way: Way, replica: String, place: String, metrics: Counted) -> Store {
        let conditional = match way {
            Way::Folder(_) => true,
            Way::Request => operator.info().capability().write_with_if_not_exists,
            Way::Beside(_) => false,
        };
        let is_remote = is_remote(&way, &operator);
        Store(Arc::new(Inner {
            operator,
            replica,
            place,
            way,
            best_effort: AtomicBool::new(!conditional),
            proved: AtomicBool::new(!is_remote),
            tags: Tags::default(),
            metrics,
        }))
    }

    /// From here on requests are counted.
    pub(crate) fn counted_by(&self, metrics: &Metrics) {
        // The second time it is by the same.
        let _ = self.0.metrics.set(metrics.of_store(&self.0.replica));
    }

    /// Counts what comes of one operation. One that is given up counts for nothing.
    async fn counted<T>(
        &self,
        kind: Request,
        call: impl Future<Output = Result<T, StoreError>>,
        outcome: impl FnOnce(&T) -> Outcome,
    ) -> Result<T, StoreError> {
        let Some(metrics) = self.0.metrics.get() else {
            return call.await;
        };
        let begun = Instant::now();
        let answer = call.await;
        let outcome = match &answer {
            Ok(answer) => outcome(answer),
            Err(error) if error.is_not_found() && matches!(kind, Request::Read | Request::Stat) => Outcome::NotFound,
            Err(_) => Outcome::Error,
        };
        metrics.done(kind, outcome, begun.elapsed());
        answer
    }

    /// The replica's URI, without query and credentials.
    #[must_use]
    pub fn replica(&self) -> &str {
        &self.0.replica
    }

    /// Equal for stores that hold the same replica, however their URIs are written.
    pub(crate) fn place(&self) -> &str {
        &self.0.place
    }

    /// What is known of the store's conditional creation.
    #[must_use]
    pub fn fencing(&self) -> Fencing {
        if self.0.best_effort.load(Ordering::Relaxed) {
            Fencing::BestEffort
        } else {
            Fencing::Enforced
        }
    }

    /// Whether the condition is decided by a server, whose word for it is no proof: some accept the condition and ignore it.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        is_remote(&self.0.way, &self.0.operator)
    }

    /// Whether a listing shows all that was there when it began. Servers of FTP make one as text for people, entry by entry beside whoever renames and deletes, and
    /// what was cut off looks as if it was all: so there only names that are asked for tell.
    #[must_use]
    pub fn lists_everything(&self) -> bool {
        self.0.operator.info().scheme() != "ftp"
    }

    /// The store was seen to ignore the condition.
    pub fn condition_is_ignored(&self) {
        self.0.best_effort.store(true, Ordering::Relaxed);
    }

    /// The store was seen to keep to the condition. Before that, who creates a slot looks for it first: a process that does not know yet that the condition is
    /// ignored would replace what is there.
    pub fn condition_is_kept(&self) {
        self.0.proved.store(true, Ordering::Relaxed);
    }

    /// Creates an object, if none of that name exists: the whole of it or nothing.
    ///
    /// # Errors
    ///
    /// After an error the object may exist nevertheless, as a whole: the answer may have been lost.
    pub async fn create(&self, key: &Key, body: Body) -> Result<Created, StoreError> {
        let outcome = |created: &Created| match created {
            Created::New => Outcome::Ok,
            Created::Exists => Outcome::Exists,
        };
        self.counted(Request::Create, self.try_create(key, body), outcome).await
    }

    async fn try_create(&self, key: &Key, body: Body) -> Result<Created, StoreError> {
        let path = key.path();
        let created = match &self.0.way {
            Way::Folder(_) => {
                let create = move |folder: &Folder, path: &str| folder.create(path, &body);
                return self.in_folder(Action::Create, path, create).await;
            }
            Way::Request => {
                let is_doubtful = !self.0.proved.load(Ordering::Relaxed) && matches!(key, Key::Log(..));
                let looks = is_doubtful || self.fencing() == Fencing::BestEffort;
                self.create_remote(&path, body, looks).await
            }
            Way::Beside(beside) => beside.create(&self.0.operator, &path, body).await,
        };
        created.map_err(|failure| self.failed(Action::Create, &path, failure))
    }

    /// Does something with an object of a folder, where it may block.
    async fn in_folder<T: Send + 'static>(
        &self,
        action: Action,
        path: String,
        work: impl FnOnce(&Folder, &str) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (inner, name) = (Arc::clone(&self.0), path.clone());
        let done = blocking(move || match &inner.way {
            Way::Folder(folder) => work(folder, &name),
            _ => Err(io::ErrorKind::Unsupported.into()),
        });
        done.await.map_err(|error| self.io(action, Some(&path), &error))
    }

    async fn create_remote(&self, path: &str, body: Body, looks: bool) -> Result<Created, Failure> {
        let operator = &self.0.operator;
        if looks && operator.exists(path).await? {
            return Ok(Created::Exists);
        }
        let capability = operator.info().capability();
        let conditional = capability.write_with_if_not_exists;
        let written = if body.len() > PART_BYTES as u64 && capability.write_can_multi {
            self.write_parts(path, conditional, &body).await
        } else {
            let whole = body.part(0..body.len()).await?;
            let sent = operator.write_with(path, whole).if_not_exists(conditional);
            sent.await.map_err(Failure::Store)
        };
        match written {
            Ok(metadata) => {
                if path.contains("/log/") {
                    self.0.tags.note(path, &metadata);
                }
                Ok(Created::New)
            }
            Err(Failure::Store(error))
                if matches!(error.kind(), ErrorKind::ConditionNotMatch | ErrorKind::AlreadyExists) =>
            {
                Ok(Created::Exists)
            }
            Err(failure) => Err(failure),
        }
    }

    /// OpenDAL makes a multipart upload of this, and puts the condition on its completion.
    async fn write_parts(&self, path: &str, conditional: bool, body: &Body) -> Result<Metadata, Failure> {
        let mut writer = self
            .0
            .operator
            .writer_with(path)
            .chunk(PART_BYTES)
            .concurrent(PARTS_AT_ONCE)
            .if_not_exists(conditional)
            .await?;
        let sent = match body.send(&mut writer, PART_BYTES as u64).await {
            Ok(()) => writer.close().await.map_err(Failure::Store),
            Err(failure) => Err(failure),
        };
        if sent.is_err() {
            // What cannot be aborted is left to the bucket's rule for incomplete uploads.
            let _ = writer.abort().await;
        }
        sent
    }

    /// Deletes an object. When this returns it is gone for good; that it was not there is no error.
    ///
    /// # Errors
    ///
    /// Also when deleting is not allowed. After an error the object may be gone nevertheless.
    pub async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.counted(Request::Delete, self.try_delete(key), |()| Outcome::Ok)
            .await
    }

    async fn try_delete(&self, key: &Key) -> Result<(), StoreError> {
        let path = key.path();
        if matches!(self.0.way, Way::Folder(_)) {
            return self.in_folder(Action::Delete, path, Folder::delete).await;
        }
        match self.0.operator.delete(&path).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.opendal(Action::Delete, Some(&path), &error)),
            _ => Ok(()),
        }
    }

    /// Whether the object has exactly these bytes.
    ///
    /// # Errors
    ///
    /// Also when there is no such object.
    pub async fn holds(&self, key: &Key, body: &Body) -> Result<bool, StoreError> {
        if self.size(key).await? != body.len() {
            return Ok(false);
        }
        let mut at = 0;
        while at < body.len() {
            let end = (at + PART_BYTES as u64).min(body.len());
            let theirs = self.read_range(key, at..end).await?;
            let ours = body.part(at..end).await;
            let ours = ours.map_err(|error| self.io(Action::Read, Some(&key.path()), &error))?;
            if theirs != ours {
                return Ok(false);
            }
            at = end;
        }
        Ok(true)
    }

    /// Reads a whole object, however large it is. For what somebody else may have put there, see [`Store::read_up_to`].
    ///
    /// # Errors
    ///
    /// See [`StoreError::is_not_found`].
    pub async fn read(&self, key: &Key) -> Result<Bytes, StoreError> {
        self.read_up_to(key, u64::MAX).await
    }

    /// Reads an object, but no more than its first `limit` bytes, whatever the store sends. With one byte more than the
    /// object may have, whoever decodes it notices that it is too long.
    ///
    /// # Errors
    ///
    /// See [`StoreError::is_not_found`].
    pub async fn read_up_to(&self, key: &Key, limit: u64) -> Result<Bytes, StoreError> {
        let path = key.path();
        let reading = async {
            if matches!(self.0.way, Way::Folder(_)) {
                return self.read_in_folder(&path, 0, limit).await;
            }
            let gathered = self.gather(&path, .., limit).await;
            gathered.map_err(|error| self.opendal(Action::Read, Some(&path), &error))
        };
        self.counted(Request::Read, reading, |_| Outcome::Ok).await
    }

    async fn gather(&self, path: &str, range: impl RangeBounds<u64>, limit: u64) -> Result<Bytes, opendal::Error> {
        #[cfg(feature = "ftp")]
        if let Way::Beside(beside) = &self.0.way
            && let Some(control) = &beside.control
        {
            let start = match range.start_bound() {
                Bound::Included(start) => *start,
                _ => 0,
            };
            let limit = match range.end_bound() {
                Bound::Excluded(end) => limit.min(end.saturating_sub(start)),
                _ => limit,
            };
            return control.read(path, start, limit).await;
        }
        let mut stream = self.0.operator.reader(path).await?.into_stream(range).await?;
        let mut parts: Vec<Buffer> = Vec::new();
        let mut left = limit;
        while left > 0
            && let Some(part) = stream.try_next().await?
        {
            // At most the length of the part.
            let part = part.slice(..left.min(part.len() as u64) as usize);
            left -= part.len() as u64;
            parts.push(part);
        }
        Ok(parts.into_iter().flatten().collect::<Buffer>().to_bytes())
    }

    async fn read_in_folder(&self, path: &str, start: u64, limit: u64) -> Result<Bytes, StoreError> {
        let read = move |folder: &Folder, path: &str| folder.read(path, start, limit);
        self.in_folder(Action::Read, path.to_owned(), read).await
    }

    /// Reads a part of an object.
    ///
    /// # Errors
    ///
    /// Also when the range goes past the end.
    pub async fn read_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let path = key.path();
        let len = range.end - range.start;
        let reading = async {
            let read = match self.0.way {
                Way::Folder(_) => self.read_in_folder(&path, range.start, len).await?,
                _ => match self.gather(&path, range, len.saturating_add(1)).await {
                    Ok(bytes) => bytes,
                    Err(error) => return Err(self.opendal(Action::Read, Some(&path), &error)),
                },
            };
            match read.len() as u64 == len {
                true => Ok(read),
                false => Err(self.io(Action::Read, Some(&path), &io::ErrorKind::UnexpectedEof.into())),
            }
        };
        self.counted(Request::Read, reading, |_| Outcome::Ok).await
    }

    /// The size of an object in bytes.
    ///
    /// # Errors
    ///
    /// See [`StoreError::is_not_found`].
    pub async fn size(&self, key: &Key) -> Result<u64, StoreError> {
        Ok(self.look(key).await?.0)
    }

    /// The same, and whether the store called its content otherwise when this process created it: then it may have been replaced.
    pub(crate) async fn look(&self, key: &Key) -> Result<(u64, bool), StoreError> {
        let path = key.path();
        let looking = async {
            if let Way::Beside(beside) = &self.0.way {
                return match beside.size(&self.0.operator, &path).await {
                    Ok(Some(len)) => Ok((len, false)),
                    Ok(None) => Err(self.io(Action::Stat, Some(&path), &not_found())),
                    Err(failure) => Err(self.failed(Action::Stat, &path, failure)),
                };
            }
            match self.0.operator.stat(&path).await {
                Ok(metadata) => Ok((metadata.content_length(), self.0.tags.differs(&path, &metadata))),
                Err(error) => Err(self.opendal(Action::Stat, Some(&path), &error)),
            }
        };
        self.counted(Request::Stat, looking, |_| Outcome::Ok).await
    }

    /// Whether an object is there.
    ///
    /// # Errors
    ///
    /// When the store does not answer.
    pub async fn has(&self, key: &Key) -> Result<bool, StoreError> {
        Ok(self.size_if_there(key).await?.is_some())
    }

    /// The length of an object in bytes; `None` when it is not there.
    pub(crate) async fn size_if_there(&self, key: &Key) -> Result<Option<u64>, StoreError> {
        match self.size(key).await {
            Ok(len) => Ok(Some(len)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn failed(&self, action: Action, object: &str, failure: Failure) -> StoreError {
        match failure {
            Failure::Store(error) => self.opendal(action, Some(object), &error),
            Failure::Body(error) => self.io(action, Some(object), &error),
        }
    }

    fn opendal(&self, action: Action, object: Option<&str>, error: &opendal::Error) -> StoreError {
        StoreError::from_opendal(action, object, &self.0.replica, error)
    }

    fn io(&self, action: Action, object: Option<&str>, error: &io::Error) -> StoreError {
        StoreError::from_io(action, object, &self.0.replica, error)
    }
}

fn is_remote(way: &Way, operator: &Operator) -> bool {
    !matches!(way, Way::Folder(_)) && operator.info().scheme() != "memory"
}

fn way_of(operator: &Operator) -> Way {
    let info = operator.info();
    let capability = info.capability();
    match info.scheme() {
        "fs" => Way::Folder(Folder::new(PathBuf::from(info.root()))),
        // It refuses an existing name, and then writes in place.
        "sftp" => Way::Beside(Box::default()),
        _ if !capability.write_with_if_not_exists && capability.rename => Way::Beside(Box::default()),
        _ => Way::Request,
    }
}

/// Where each operation takes a connection with a login.
fn most_at_once(operator: &Operator) -> usize {
    match operator.info().scheme() {
        #[cfg(feature = "sftp")]
        "sftp" => sftp::MOST_AT_ONCE,
        #[cfg(feature = "ftp")]
        "ftp" => ftp::MOST_AT_ONCE,
        _ => usize::MAX,
    }
}

fn not_found() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "it does not exist")
}

/// What failed.
enum Failure {
    Store(opendal::Error),
    /// What was to be sent, or a connection of ours.
    Body(io::Error),
}

impl From<opendal::Error> for Failure {
    fn from(error: opendal::Error) -> Failure {
        Failure::Store(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Body(error)
    }
}

fn trace_retry(event: &RetryEvent<'_>) {
    tracing::debug!(
        operation = %event.op,
        attempt = event.attempt,
        after_ms = event.retry_after.as_millis() as u64,
        error = event.err.message(),
        "the store is asked again"
    );
}

#[cfg(test)]
mod tests;
