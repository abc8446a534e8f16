//! A store over a folder that may forget what it was asked: it overwrites, or takes its time with one object.

use std::path::Path;
use std::sync::{Arc, Mutex};

use opendal::raw::{Layer, OpWrite, Service, ServiceInfo, Servicer, oio};
use opendal::{Buffer, Metadata, OperationContext, Operator, Result, services};
use tokio::sync::Semaphore;

use crate::store::forward::forward;

#[derive(Debug, Clone)]
pub(super) struct Odd(Arc<State>);

#[derive(Debug)]
struct State {
    overwrites: Mutex<bool>,
    /// Objects with this in their name wait to be created.
    held: Mutex<Option<String>>,
    waiting: Semaphore,
    free: Semaphore,
}

impl Odd {
    pub(super) fn new() -> Odd {
        Odd(Arc::new(State {
            overwrites: Mutex::new(false),
            held: Mutex::new(None),
            waiting: Semaphore::new(0),
            free: Semaphore::new(0),
        }))
    }

    pub(super) fn operator(&self, folder: &Path) -> Operator {
        let folder = services::Fs::default().root(&folder.display().to_string());
        Operator::new(folder).unwrap().layer(self.clone())
    }

    /// From now on.
    pub(super) fn overwrites(&self) {
        *self.0.overwrites.lock().unwrap() = true;
    }

    /// The next object with this name.
    pub(super) fn hold(&self, name: String) {
        *self.0.held.lock().unwrap() = Some(name);
    }

    /// Until one is held.
    pub(super) async fn is_held(&self) {
        self.0.waiting.acquire().await.unwrap().forget();
    }

    pub(super) fn let_go(&self) {
        self.0.free.add_permits(1);
    }
}

impl Layer for Odd {
    fn apply_service(&self, inner: Servicer) -> Servicer {
        Arc::new(OddService {
            inner,
            odd: self.clone(),
        })
    }
}

#[derive(Debug)]
struct OddService {
    inner: Servicer,
    odd: Odd,
}

struct Writer {
    inner: oio::Writer,
    path: String,
    odd: Odd,
}

impl oio::Write for Writer {
    async fn write(&mut self, part: Buffer) -> Result<()> {
        let is_held = {
            let mut held = self.odd.0.held.lock().unwrap();
            held.take_if(|name| self.path.contains(name.as_str())).is_some()
        };
        if is_held {
            self.odd.0.waiting.add_permits(1);
            self.odd.0.free.acquire().await.unwrap().forget();
        }
        oio::Write::write(&mut self.inner, part).await
    }

    async fn close(&mut self) -> Result<Metadata> {
        oio::Write::close(&mut self.inner).await
    }

    async fn abort(&mut self) -> Result<()> {
        oio::Write::abort(&mut self.inner).await
    }
}

impl Service for OddService {
    type Reader = oio::Reader;
    type Writer = Writer;
    type Lister = oio::Lister;
    type Deleter = oio::Deleter;
    type Copier = oio::Copier;
    type Composer = oio::Composer;

    forward!(capability create_dir stat read delete list copy rename presign);

    fn info(&self) -> ServiceInfo {
        // Not fs, whose objects are not created through layers.
        ServiceInfo::new("odd", "/", "odd")
    }

    fn write(&self, ctx: &OperationContext, path: &str, args: OpWrite) -> Result<Self::Writer> {
        let args = if *self.odd.0.overwrites.lock().unwrap() {
            OpWrite::default()
        } else {
            args
        };
        Ok(Writer {
            inner: self.inner.write(ctx, path, args)?,
            path: path.to_owned(),
            odd: self.odd.clone(),
        })
    }
}
