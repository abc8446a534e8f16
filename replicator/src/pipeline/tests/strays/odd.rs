//! A store over a folder that may forget what it was asked: it overwrites, takes its time with one object, or says for a moment that there is none. It tells a tag of
//! what is in an object.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use opendal::raw::{Layer, OpStat, OpWrite, RpStat, Service, ServiceInfo, Servicer, oio};
use opendal::{Buffer, Error, ErrorKind, Metadata, MetadataBuilder, OperationContext, Operator, Result, services};
use tokio::sync::Semaphore;

use crate::store::forward::forward;

#[derive(Debug, Clone)]
pub(in crate::pipeline::tests) struct Odd(Arc<State>);

#[derive(Debug)]
struct State {
    overwrites: Mutex<bool>,
    /// Objects with this in their name wait to be created.
    held: Mutex<Option<String>>,
    waiting: Semaphore,
    free: Semaphore,
    /// Who asks for what has this in its name is told so often that it is not there.
    denied: Mutex<Option<(String, usize)>>,
}

impl Odd {
    pub(in crate::pipeline::tests) fn new() -> Odd {
        Odd(Arc::new(State {
            overwrites: Mutex::new(false),
            held: Mutex::new(None),
            waiting: Semaphore::new(0),
            free: Semaphore::new(0),
            denied: Mutex::new(None),
        }))
    }

    pub(in crate::pipeline::tests) fn operator(&self, folder: &Path) -> Operator {
        let service = services::Fs::default().root(&folder.display().to_string());
        let layer = OddLayer {
            folder: folder.to_owned(),
            odd: self.clone(),
        };
        Operator::new(service).unwrap().layer(layer)
    }

    /// The next so many questions for the length of one with this name, and for what is in its folder.
    pub(in crate::pipeline::tests) fn deny(&self, name: String, times: usize) {
        *self.0.denied.lock().unwrap() = Some((name, times));
    }

    fn denies(&self, path: &str) -> bool {
        let mut denied = self.0.denied.lock().unwrap();
        match &mut *denied {
            Some((name, times)) if *times > 0 && path.contains(name.as_str()) => {
                *times -= 1;
                true
            }
            _ => false,
        }
    }

    /// From now on.
    pub(in crate::pipeline::tests) fn overwrites(&self) {
        *self.0.overwrites.lock().unwrap() = true;
    }

    /// The next object with this name.
    pub(in crate::pipeline::tests) fn hold(&self, name: String) {
        *self.0.held.lock().unwrap() = Some(name);
    }

    /// Until one is held.
    pub(in crate::pipeline::tests) async fn is_held(&self) {
        self.0.waiting.acquire().await.unwrap().forget();
    }

    pub(in crate::pipeline::tests) fn let_go(&self) {
        self.0.free.add_permits(1);
    }
}

#[derive(Debug)]
struct OddLayer {
    folder: PathBuf,
    odd: Odd,
}

impl Layer for OddLayer {
    fn apply_service(&self, inner: Servicer) -> Servicer {
        Arc::new(OddService {
            inner,
            folder: self.folder.clone(),
            odd: self.odd.clone(),
        })
    }
}

#[derive(Debug)]
struct OddService {
    inner: Servicer,
    folder: PathBuf,
    odd: Odd,
}

struct Writer {
    inner: oio::Writer,
    path: String,
    content: Vec<u8>,
    odd: Odd,
}

fn tag(content: &[u8]) -> String {
    format!("\"{}\"", blake3::hash(content).to_hex())
}

fn tagged(content: &[u8]) -> Metadata {
    let mut metadata = MetadataBuilder::file(content.len() as u64);
    metadata.etag(tag(content));
    metadata.build()
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
        self.content.extend_from_slice(&part.to_bytes());
        oio::Write::write(&mut self.inner, part).await
    }

    async fn close(&mut self) -> Result<Metadata> {
        oio::Write::close(&mut self.inner).await?;
        Ok(tagged(&self.content))
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

    forward!(capability create_dir read delete list copy rename presign);

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
            content: Vec::new(),
            odd: self.odd.clone(),
        })
    }

    async fn stat(&self, ctx: &OperationContext, path: &str, args: OpStat) -> Result<RpStat> {
        if self.odd.denies(path) {
            return Err(Error::new(ErrorKind::NotFound, "not there"));
        }
        match std::fs::read(self.folder.join(path)) {
            Ok(content) => Ok(RpStat::new(tagged(&content))),
            Err(_) => self.inner.stat(ctx, path, args).await,
        }
    }
}
