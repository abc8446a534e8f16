//! A store that does not delete.

use std::future::pending;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use opendal::raw::{Layer, OpDelete, Service, ServiceInfo, Servicer, oio};
use opendal::{Error, ErrorKind, OperationContext, Operator, Result, services};

use crate::store::forward::forward;

/// What comes of a request to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deletions {
    Done,
    Refused,
    /// No answer.
    Hang,
}

#[derive(Debug, Clone)]
pub(super) struct Trouble(Arc<State>);

#[derive(Debug)]
struct State {
    deletions: Mutex<Deletions>,
    asked: AtomicUsize,
}

impl Trouble {
    pub(super) fn new(deletions: Deletions) -> Trouble {
        Trouble(Arc::new(State {
            deletions: Mutex::new(deletions),
            asked: AtomicUsize::new(0),
        }))
    }

    /// Over a folder.
    pub(super) fn operator(&self, folder: &Path) -> Operator {
        let folder = services::Fs::default().root(&folder.display().to_string());
        Operator::new(folder).unwrap().layer(self.clone())
    }

    pub(super) fn set(&self, deletions: Deletions) {
        *self.0.deletions.lock().unwrap() = deletions;
    }

    /// How often it was asked to delete.
    pub(super) fn asked(&self) -> usize {
        self.0.asked.load(Ordering::Acquire)
    }
}

impl Layer for Trouble {
    fn apply_service(&self, inner: Servicer) -> Servicer {
        Arc::new(InTrouble {
            inner,
            trouble: self.clone(),
        })
    }
}

#[derive(Debug)]
struct InTrouble {
    inner: Servicer,
    trouble: Trouble,
}

struct Deleter {
    inner: oio::Deleter,
    trouble: Trouble,
}

impl oio::Delete for Deleter {
    async fn delete(&mut self, path: &str, args: OpDelete) -> Result<()> {
        let deletions = *self.trouble.0.deletions.lock().unwrap();
        self.trouble.0.asked.fetch_add(1, Ordering::AcqRel);
        match deletions {
            Deletions::Done => oio::Delete::delete(&mut self.inner, path, args).await,
            Deletions::Refused => Err(Error::new(ErrorKind::PermissionDenied, "AccessDenied")),
            Deletions::Hang => pending().await,
        }
    }

    async fn close(&mut self) -> Result<()> {
        oio::Delete::close(&mut self.inner).await
    }
}

impl Service for InTrouble {
    type Reader = oio::Reader;
    type Writer = oio::Writer;
    type Lister = oio::Lister;
    type Deleter = Deleter;
    type Copier = oio::Copier;
    type Composer = oio::Composer;

    forward!(capability create_dir stat read write list copy rename presign);

    fn info(&self) -> ServiceInfo {
        // Not fs, whose objects are not deleted through layers.
        ServiceInfo::new("in-trouble", "/", "in-trouble")
    }

    fn delete(&self, ctx: &OperationContext) -> Result<Self::Deleter> {
        Ok(Deleter {
            inner: self.inner.delete(ctx)?,
            trouble: self.trouble.clone(),
        })
    }
}
