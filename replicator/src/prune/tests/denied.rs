//! Credentials without the right to delete.

use std::sync::Arc;

use opendal::raw::{Layer, Service, ServiceInfo, Servicer, oio};
use opendal::{Error, ErrorKind, OperationContext, Operator, Result, services};

use super::*;
use crate::store::forward::forward;

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

    forward!(capability create_dir stat read write list copy rename presign);

    fn info(&self) -> ServiceInfo {
        // Not fs, whose objects are not deleted through layers.
        ServiceInfo::new("kept", "/", "kept")
    }

    fn delete(&self, _: &OperationContext) -> Result<Self::Deleter> {
        Err(Error::new(ErrorKind::PermissionDenied, "AccessDenied"))
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
