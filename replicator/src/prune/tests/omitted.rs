//! A store whose listings lack something that is there, as servers of FTP may make them.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use opendal::raw::{Layer, OpList, Service, ServiceInfo, Servicer, oio};
use opendal::{OperationContext, Operator, Result, services};

use super::*;
use crate::restore::{RestoreOptions, restore};
use crate::store::forward::forward;

#[derive(Debug, Clone)]
struct Omits {
    scheme: &'static str,
    omitted: Arc<Mutex<HashSet<String>>>,
}

impl Layer for Omits {
    fn apply_service(&self, inner: Servicer) -> Servicer {
        Arc::new(Incomplete {
            inner,
            how: self.clone(),
        })
    }
}

#[derive(Debug)]
struct Incomplete {
    inner: Servicer,
    how: Omits,
}

struct Filtered {
    inner: oio::Lister,
    omitted: Arc<Mutex<HashSet<String>>>,
}

impl oio::List for Filtered {
    async fn next(&mut self) -> Result<Option<oio::Entry>> {
        while let Some(entry) = self.inner.next().await? {
            // What is below a folder that is left out is never seen.
            let path = entry.path();
            let omitted = self.omitted.lock().unwrap();
            if !omitted
                .iter()
                .any(|left_out| path == left_out || (left_out.ends_with('/') && path.starts_with(left_out.as_str())))
            {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

impl Service for Incomplete {
    type Reader = oio::Reader;
    type Writer = oio::Writer;
    type Lister = Filtered;
    type Deleter = oio::Deleter;
    type Copier = oio::Copier;
    type Composer = oio::Composer;

    forward!(capability create_dir stat read write delete copy rename presign);

    fn info(&self) -> ServiceInfo {
        ServiceInfo::new(self.how.scheme, "/", "incomplete")
    }

    fn list(&self, ctx: &OperationContext, path: &str, args: OpList) -> Result<Self::Lister> {
        Ok(Filtered {
            inner: self.inner.list(ctx, path, args)?,
            omitted: Arc::clone(&self.how.omitted),
        })
    }
}

impl Omits {
    fn new(scheme: &'static str) -> Omits {
        Omits {
            scheme,
            omitted: Arc::default(),
        }
    }

    fn store(&self, replica: &Replica) -> Store {
        let folder = services::Fs::default().root(&replica.folder.path().display().to_string());
        Store::from_operator(Operator::new(folder).unwrap().layer(self.clone()))
    }

    fn omit(&self, name: &str) {
        *self.omitted.lock().unwrap() = [name.to_owned()].into();
    }
}

async fn names(replica: &Replica) -> Vec<String> {
    let mut names = Vec::new();
    for (key, _) in replica.store.list("").await.unwrap() {
        names.push(key.path());
        let mut folder = key.path();
        while let Some(end) = folder.trim_end_matches('/').rfind('/') {
            folder.truncate(end + 1);
            names.push(folder.clone());
        }
    }
    names.sort();
    names.dedup();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_deleted_where_a_listing_may_lack_something() {
    let replica = history(71).await;
    let options = options(&replica, 100, 10);
    assert!(!planned(&replica, &options).await.is_empty());
    let (ftp, other) = (Omits::new("ftp"), Omits::new("other"));
    let (mut refused, mut harmful) = (0, 0);
    for name in names(&replica).await {
        ftp.omit(&name);
        other.omit(&name);
        let error = prune(&ftp.store(&replica), &options).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, PruneError::Listing(_)), "{error}");
        refused += 1;
        // What would be deleted otherwise that is not without the omission.
        let plain: HashSet<Key> = planned(&replica, &options)
            .await
            .iter()
            .map(|deletion| deletion.key)
            .collect();
        let dry = PruneOptions {
            dry_run: true,
            ..options.clone()
        };
        if let Ok(pruned) = prune(&other.store(&replica), &dry).await {
            harmful += usize::from(pruned.deletions.iter().any(|deletion| !plain.contains(&deletion.key)));
        }
    }
    assert!(refused > 20 && harmful > 0, "{refused} {harmful}");
}

/// An error where something is not listed, or all of it: never an older state.
#[tokio::test(flavor = "multi_thread")]
async fn no_older_state_is_restored_because_of_a_listing() {
    let omits = Omits::new("ftp");
    let folder = tempfile::tempdir().unwrap();
    let (mut whole, mut refused) = (0, 0);
    for seed in [71, 72, 73] {
        let replica = history(seed).await;
        let (_, _, expected) = answer(&replica, Target::Newest).await.unwrap();
        for (at, name) in names(&replica).await.into_iter().enumerate() {
            omits.omit(&name);
            let out = folder.path().join(format!("{seed}-{at}.db"));
            match restore(&omits.store(&replica), &out, &RestoreOptions::default()).await {
                Ok(restored) => {
                    whole += 1;
                    assert!(std::fs::read(&out).unwrap() == expected, "without {name}: {restored:?}");
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(whole > 20, "{whole} {refused}");
}
