//! Creation of objects where the store has no condition, or one that is not whole-or-nothing: written beside, checked, renamed.
//!
//! What is cut off while it is sent stays beside, so a torn object never stands in a slot. Which of two creators that come at the same moment has the slot is not decided
//! by the store: a rename replaces what is there. That is why such a store's fencing is called best-effort. What is left beside is no name of ours, so no
//! listing knows it, and is swept by the next process that creates something, when it is old by the store's own clock.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use opendal::{ErrorKind, Metadata, Operator};

use super::{Body, Created, Failure, TEMP_FOLDER, TEMP_LIFETIME, TEMP_PREFIX};
use crate::outside;

/// What is sent at a time.
const STEP_BYTES: u64 = 1 << 20;

/// How a store does that.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// Where OpenDAL has no rename.
    #[cfg(feature = "ftp")]
    pub(super) control: Option<super::ftp::Control>,
    is_swept: AtomicBool,
}

impl Beside {
    #[cfg(feature = "ftp")]
    pub(super) fn with(control: super::ftp::Control) -> Beside {
        Beside {
            control: Some(control),
            ..Beside::default()
        }
    }

    pub(super) async fn create(&self, operator: &Operator, path: &str, body: Body) -> Result<Created, Failure> {
        if self.size(operator, path).await?.is_some() {
            return Ok(Created::Exists);
        }
        let mut token = [0; 8];
        outside::random(&mut token).map_err(|error| Failure::Body(io::Error::other(error.to_string())))?;
        let temp = format!("{TEMP_FOLDER}/{TEMP_PREFIX}{:016x}", u64::from_be_bytes(token));
        let created = self.create_by(operator, &temp, path, body).await;
        if !matches!(created, Ok(Created::New)) {
            // What cannot be deleted now is swept one day.
            let _ = operator.delete(&temp).await;
        }
        created
    }

    async fn create_by(&self, operator: &Operator, temp: &str, path: &str, body: Body) -> Result<Created, Failure> {
        let len = body.len();
        self.send(operator, temp, body).await?;
        match self.size(operator, temp).await? {
            Some(there) if there == len => {}
            there => {
                let there = there.unwrap_or(0);
                let torn = format!("the store has {there} of {len} bytes that were sent, and said nothing");
                return Err(Failure::Store(
                    opendal::Error::new(ErrorKind::Unexpected, torn).set_temporary(),
                ));
            }
        }
        if !self.is_swept.swap(true, Ordering::Relaxed) {
            sweep(operator, temp).await;
        }
        // As late as possible.
        if self.size(operator, path).await?.is_some() {
            return Ok(Created::Exists);
        }
        match self.rename(operator, temp, path).await {
            Ok(()) => Ok(Created::New),
            // It may be there by an attempt whose answer was lost.
            Err(error) => match self.size(operator, path).await? {
                Some(_) => Ok(Created::Exists),
                None => Err(error),
            },
        }
    }

    async fn send(&self, operator: &Operator, temp: &str, body: Body) -> Result<(), Failure> {
        #[cfg(feature = "ftp")]
        if let Some(control) = &self.control {
            return control.write(temp, body).await;
        }
        send(operator, temp, body).await
    }

    /// In bytes.
    pub(super) async fn size(&self, operator: &Operator, path: &str) -> Result<Option<u64>, Failure> {
        #[cfg(feature = "ftp")]
        if let Some(control) = &self.control {
            return control.size(path).await.map_err(Failure::Store);
        }
        match operator.stat(path).await {
            Ok(metadata) => Ok(Some(metadata.content_length())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::Store(error)),
        }
    }

    async fn rename(&self, operator: &Operator, from: &str, to: &str) -> Result<(), Failure> {
        #[cfg(feature = "ftp")]
        if let Some(control) = &self.control {
            return control.rename(from, to).await.map_err(Failure::Store);
        }
        Ok(operator.rename(from, to).await?)
    }
}

async fn send(operator: &Operator, temp: &str, body: Body) -> Result<(), Failure> {
    let len = body.len();
    if len <= STEP_BYTES || !operator.info().capability().write_can_multi {
        operator.write(temp, body.part(0..len).await?).await?;
        return Ok(());
    }
    let mut writer = operator.writer(temp).await?;
    body.send(&mut writer, STEP_BYTES).await?;
    writer.close().await?;
    Ok(())
}

/// Deletes what crashes left. `newest` was sent just now, so its date is the time. Whatever fails here will be tried again by the next process.
async fn sweep(operator: &Operator, newest: &str) {
    let listing = async {
        let mut found = Vec::new();
        // OpenDAL's FTP has temporary objects of its own beside them, above the folder.
        for (folder, is_top) in [(format!("{TEMP_FOLDER}/"), false), ("/".to_owned(), true)] {
            let mut lister = operator.lister(&folder).await?;
            while let Some(entry) = lister.try_next().await? {
                if is_ours(entry.name(), is_top) {
                    found.push(entry.into_parts());
                }
            }
        }
        Ok::<_, opendal::Error>(found)
    };
    let Ok(found) = listing.await else { return };
    let now = found
        .iter()
        .find(|(path, _)| path == newest)
        .and_then(|(_, at)| millis(at));
    for (path, metadata) in &found {
        let age = now.zip(millis(metadata)).map(|(now, at)| now.saturating_sub(at));
        if age.is_some_and(is_old) {
            let _ = operator.delete(path).await;
        }
    }
}

/// At the top of a replica may be files of other people, with names that begin in the same way.
fn is_ours(name: &str, is_top: bool) -> bool {
    let token = name
        .strip_prefix(TEMP_PREFIX)
        .map(|rest| rest.split('.').next().unwrap_or_default());
    token.is_some_and(|token| !is_top || token.len() == 16 && token.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn millis(metadata: &Metadata) -> Option<i64> {
    Some(metadata.last_modified()?.into_inner().as_millisecond())
}

fn is_old(age_millis: i64) -> bool {
    u64::try_from(age_millis).is_ok_and(|age| Duration::from_millis(age) > TEMP_LIFETIME)
}

#[cfg(test)]
mod tests;
