//! Listings: of objects with their dates, of folders. Foreign names are left out.

use futures::TryStreamExt;
use opendal::{ErrorKind, Metadata};
use replvfs_vfs::types::UnixMillis;

#[cfg(feature = "ftp")]
use super::Way;
use super::error::Action;
use super::{Store, StoreError};
use crate::format::Key;
use crate::metrics::{Outcome, Request};

/// An object as a listing shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dated {
    /// Its name.
    pub key: Key,
    /// Its size in bytes.
    pub len: u64,
    /// When it was created, by the store's clock; `None` where the store does not tell.
    pub modified: Option<UnixMillis>,
}

impl Store {
    /// The objects whose names start with `prefix` (a folder's name with its `/`, or nothing), with their sizes in bytes, in the order
    /// of their names. Foreign names are left out. Some stores list late or lose entries: what is not listed may exist.
    ///
    /// # Errors
    ///
    /// When the store does not answer; a prefix with nothing in it is no error.
    pub async fn list(&self, prefix: &str) -> Result<Vec<(Key, u64)>, StoreError> {
        let found = self.list_dated(prefix).await?;
        Ok(found.into_iter().map(|object| (object.key, object.len)).collect())
    }

    /// The same, with the time at which each was created.
    ///
    /// # Errors
    ///
    /// As for [`Store::list`].
    pub async fn list_dated(&self, prefix: &str) -> Result<Vec<Dated>, StoreError> {
        Ok(known(self.entries(prefix, true, None).await?))
    }

    /// Calls `visit` for the objects whose names start with `prefix`, in any order, with no more of them in memory than an answer of the store has. After an
    /// error some were visited.
    pub(crate) async fn visit(&self, prefix: &str, mut visit: impl FnMut(Dated)) -> Result<(), StoreError> {
        let each = |path: String, metadata| dated(&path, &metadata).into_iter().for_each(&mut visit);
        self.each(prefix, true, None, each).await
    }

    /// Those that come after `key` in the order of names, in one request where the store can begin there.
    ///
    /// # Errors
    ///
    /// As for [`Store::list`].
    pub(crate) async fn list_behind(&self, prefix: &str, key: &Key) -> Result<Vec<Dated>, StoreError> {
        let path = key.path();
        let capable = self.0.operator.info().capability().list_with_start_after;
        let found = self.entries(prefix, true, capable.then_some(path.as_str())).await?;
        let mut found = known(found);
        found.retain(|object| object.key.path() > path);
        Ok(found)
    }

    /// The names of the folders right below `prefix`, sorted, without it and without a `/`.
    ///
    /// # Errors
    ///
    /// As for [`Store::list`].
    pub async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let mut names: Vec<String> = self
            .entries(prefix, false, None)
            .await?
            .into_iter()
            .filter_map(|(path, _)| Some(path.strip_prefix(prefix)?.strip_suffix('/')?.to_owned()))
            .filter(|name| !name.is_empty())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Whether a listing of that folder comes to an end.
    async fn may_list(&self, prefix: &str) -> Result<bool, opendal::Error> {
        #[cfg(feature = "ftp")]
        if let Way::Beside(beside) = &self.0.way
            && let Some(control) = &beside.control
        {
            return control.has_folder(prefix).await;
        }
        let _ = prefix;
        Ok(true)
    }

    /// A listing of nothing. Where there are no folders that is an empty list, and whoever says otherwise is not the store: the bucket is not there, or what is between answers
    /// for it.
    fn is_no_folder(&self, error: &opendal::Error) -> bool {
        let has_folders = !matches!(self.0.operator.info().scheme(), "s3" | "azblob" | "gcs");
        has_folders && error.kind() == ErrorKind::NotFound
    }

    async fn entries(
        &self,
        prefix: &str,
        recursive: bool,
        after: Option<&str>,
    ) -> Result<Vec<(String, Metadata)>, StoreError> {
        let mut entries = Vec::new();
        let each = |path, metadata| entries.push((path, metadata));
        self.each(prefix, recursive, after, each).await?;
        Ok(entries)
    }

    async fn each(
        &self,
        prefix: &str,
        recursive: bool,
        after: Option<&str>,
        mut each: impl FnMut(String, Metadata),
    ) -> Result<(), StoreError> {
        let listing = async {
            if !self.may_list(prefix).await? {
                return Ok(());
            }
            let request = self.0.operator.lister_with(prefix).recursive(recursive);
            let mut lister = match after {
                Some(after) => request.start_after(after).await?,
                None => request.await?,
            };
            while let Some(entry) = lister.try_next().await? {
                let (path, metadata) = entry.into_parts();
                each(path, metadata);
            }
            Ok(())
        };
        let listing = async {
            match listing.await {
                Ok(()) => Ok(()),
                Err(error) if self.is_no_folder(&error) => Ok(()),
                Err(error) => Err(self.opendal(Action::List, (!prefix.is_empty()).then_some(prefix), &error)),
            }
        };
        self.counted(Request::List, listing, |()| Outcome::Ok).await
    }
}

/// Sorted, and without foreign names.
fn known(entries: Vec<(String, Metadata)>) -> Vec<Dated> {
    let dated = |(path, metadata): (String, Metadata)| Some((dated(&path, &metadata)?, path));
    let mut found: Vec<(Dated, String)> = entries.into_iter().filter_map(dated).collect();
    found.sort_by(|a, b| a.1.cmp(&b.1));
    found.into_iter().map(|(dated, _)| dated).collect()
}

/// `None` for a foreign name.
fn dated(path: &str, metadata: &Metadata) -> Option<Dated> {
    let modified = metadata.last_modified().map(|at| at.into_inner().as_millisecond());
    Some(Dated {
        key: Key::parse(path)?,
        len: if metadata.is_file() {
            metadata.content_length()
        } else {
            0
        },
        modified: modified.map(UnixMillis),
    })
}
