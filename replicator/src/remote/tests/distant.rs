//! A store that is far away: each request takes its time, by a clock that stands still otherwise. So round trips can be counted, whatever else the
//! machine does.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opendal::raw::{Layer, OpList, OpRead, OpStat, RpRead, RpStat, Service, ServiceInfo, Servicer, oio};
use opendal::{Buffer, BytesRange, OperationContext, Operator, Result, services};
use tokio::time::Instant;

use crate::store::Store;
use crate::store::forward::forward;

const FAR: Duration = Duration::from_millis(20);

/// What was asked for, in the order in which it was, by kind and name.
type Asked = Arc<Mutex<Vec<String>>>;

#[derive(Debug)]
pub(super) struct Distant {
    near: Operator,
    pub(super) store: Store,
    asked: Asked,
}

impl Distant {
    pub(super) fn new() -> Distant {
        let near = Operator::new(services::Memory::default()).unwrap();
        let asked = Asked::default();
        let store = Store::from_operator(near.clone().layer(Far(Arc::clone(&asked))));
        Distant { near, store, asked }
    }

    /// Has what is in this folder from now on, and nothing else.
    pub(super) async fn put(&self, folder: &Path) {
        for old in self.near.list_with("").recursive(true).await.unwrap() {
            self.near.delete(old.path()).await.unwrap();
        }
        self.add(folder).await;
    }

    /// Has what is in this folder besides.
    pub(super) async fn add(&self, folder: &Path) {
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in std::fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap();
                self.near.write(name, std::fs::read(&path).unwrap()).await.unwrap();
            }
        }
    }

    pub(super) async fn delete(&self, name: &str) {
        self.near.delete(name).await.unwrap();
    }

    /// What this asks for, sorted, and in how many rounds of requests that wait for each other.
    pub(super) async fn rounds<T>(&self, work: impl Future<Output = T>) -> (T, Vec<String>, u128) {
        self.asked.lock().unwrap().clear();
        let since = Instant::now();
        let done = work.await;
        // A timer may be late by a millisecond.
        let rounds = (since.elapsed().as_millis() + 5) / FAR.as_millis();
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.sort();
        (done, asked, rounds)
    }
}

#[derive(Debug)]
struct Far(Asked);

impl Layer for Far {
    fn apply_service(&self, inner: Servicer) -> Servicer {
        Arc::new(FarService {
            inner,
            asked: Arc::clone(&self.0),
        })
    }
}

#[derive(Debug)]
struct FarService {
    inner: Servicer,
    asked: Asked,
}

struct Under<T> {
    inner: T,
    /// What is asked for next.
    next: Mutex<Option<String>>,
    asked: Asked,
}

impl<T> Under<T> {
    async fn ask(&self) {
        let next = self.next.lock().unwrap().take();
        if let Some(next) = next {
            ask(&self.asked, next).await;
        }
    }
}

async fn ask(asked: &Asked, what: String) {
    asked.lock().unwrap().push(what);
    tokio::time::sleep(FAR).await;
}

impl FarService {
    fn under<T>(&self, inner: T, what: String) -> Under<T> {
        Under {
            inner,
            next: Mutex::new(Some(what)),
            asked: Arc::clone(&self.asked),
        }
    }
}

impl Service for FarService {
    type Reader = Under<oio::Reader>;
    type Writer = oio::Writer;
    type Lister = Under<oio::Lister>;
    type Deleter = oio::Deleter;
    type Copier = oio::Copier;
    type Composer = oio::Composer;

    forward!(capability create_dir write delete copy rename presign);

    fn info(&self) -> ServiceInfo {
        ServiceInfo::new("far", "/", "far")
    }

    async fn stat(&self, ctx: &OperationContext, path: &str, args: OpStat) -> Result<RpStat> {
        ask(&self.asked, format!("stat {path}")).await;
        self.inner.stat(ctx, path, args).await
    }

    fn read(&self, ctx: &OperationContext, path: &str, args: OpRead) -> Result<Self::Reader> {
        Ok(self.under(self.inner.read(ctx, path, args)?, format!("get {path}")))
    }

    fn list(&self, ctx: &OperationContext, path: &str, args: OpList) -> Result<Self::Lister> {
        Ok(self.under(self.inner.list(ctx, path, args)?, format!("list {path}")))
    }
}

impl<T: oio::Read> oio::Read for Under<T> {
    async fn open(&self, range: BytesRange) -> Result<(RpRead, Box<dyn oio::ReadStreamDyn>)> {
        self.ask().await;
        self.inner.open(range).await
    }

    async fn read(&self, range: BytesRange) -> Result<(RpRead, Buffer)> {
        self.ask().await;
        self.inner.read(range).await
    }
}

/// One request is a whole list, as it is of up to a thousand names.
impl<T: oio::List> oio::List for Under<T> {
    async fn next(&mut self) -> Result<Option<oio::Entry>> {
        self.ask().await;
        self.inner.next().await
    }
}
