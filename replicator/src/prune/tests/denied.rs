//! Credentials without the right to delete.

use std::sync::Arc;

use opendal::raw::{
    Layer, OpCopy, OpCreateDir, OpList, OpPresign, OpRead, OpRename, OpStat, OpWrite, RpCreateDir, RpPresign, RpRename,
    RpStat, Service, ServiceInfo, Servicer, oio,
};
use opendal::{Capability, Error, ErrorKind, OperationContext, Operator, Result, services};

use super::*;

#[derive(Debug)]
struct NoDeletions;

impl Layer for NoDeletions {
    fn apply_service(&self, inner: Servicer) -> Servicer {
        Arc::new(Kept { inner })
    }
}

#[derive(Debug)]
struct Kept {
    inner: Servicer,
}

impl Service for Kept {
    type Reader = oio::Reader;
    type Writer = oio::Writer;
    type Lister = oio::Lister;
    type Deleter = oio::Deleter;
    type Copier = oio::Copier;
    type Composer = oio::Composer;

    fn info(&self) -> ServiceInfo {
        // Not fs, whose objects are not deleted through layers.
        ServiceInfo::new("kept", "/", "kept")
    }

    fn capability(&self) -> Capability {
        self.inner.capability()
    }

    async fn create_dir(&self, ctx: &OperationContext, path: &str, args: OpCreateDir) -> Result<RpCreateDir> {
        self.inner.create_dir(ctx, path, args).await
    }

    async fn stat(&self, ctx: &OperationContext, path: &str, args: OpStat) -> Result<RpStat> {
        self.inner.stat(ctx, path, args).await
    }

    fn read(&self, ctx: &OperationContext, path: &str, args: OpRead) -> Result<Self::Reader> {
        self.inner.read(ctx, path, args)
    }

    fn write(&self, ctx: &OperationContext, path: &str, args: OpWrite) -> Result<Self::Writer> {
        self.inner.write(ctx, path, args)
    }

    fn delete(&self, _: &OperationContext) -> Result<Self::Deleter> {
        Err(Error::new(ErrorKind::PermissionDenied, "AccessDenied"))
    }

    fn list(&self, ctx: &OperationContext, path: &str, args: OpList) -> Result<Self::Lister> {
        self.inner.list(ctx, path, args)
    }

    fn copy(&self, ctx: &OperationContext, from: &str, to: &str, args: OpCopy) -> Result<Self::Copier> {
        self.inner.copy(ctx, from, to, args)
    }

    async fn rename(&self, ctx: &OperationContext, from: &str, to: &str, args: OpRename) -> Result<RpRename> {
        self.inner.rename(ctx, from, to, args).await
    }

    async fn presign(&self, ctx: &OperationContext, path: &str, args: OpPresign) -> Result<RpPresign> {
        self.inner.presign(ctx, path, args).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_deletion_is_one_error_that_says_what_helps() {
    let replica = history(71).await;
    let options = options(&replica, 100, 10);
    let before = planned(&replica, &options).await;
    assert!(!before.is_empty());
    let folder = services::Fs::default().root(&replica.folder.path().display().to_string());
    let store = Store::from_operator(Operator::new(folder).unwrap().layer(NoDeletions));
    let error = prune(&store, &options).await.map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("deleting") && error.contains("retention=forever"),
        "{error}"
    );
    assert_eq!(planned(&replica, &options).await, before, "nothing was deleted");
}
