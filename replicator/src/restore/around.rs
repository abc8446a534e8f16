//! A restore that goes on by an older image, where a chunk of the planned one cannot be used.
//!
//! Owns that each image gets a file of its own: what was begun for the one before may still be written.

use std::path::PathBuf;

use super::target::TargetFile;
use super::{Aside, ProgressFn, RestoreError, blocking, fill};
use crate::format::Key;
use crate::history::{History, HistoryError, Plan};
use crate::store::Store;

/// Whether the replica is looked at again, when something is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// It is. Retention may have deleted what was listed, and then nothing is broken.
    First,
    Last,
}

/// Where files are put.
pub(super) struct Place {
    pub(super) path: PathBuf,
    /// Whether what is there is replaced; `None` for beside it.
    pub(super) force: Option<bool>,
}

impl Place {
    pub(super) async fn create(&self) -> Result<TargetFile, RestoreError> {
        let (path, force) = (self.path.clone(), self.force);
        blocking(Key::Replica, move || match force {
            Some(force) => TargetFile::create(&path, force),
            None => TargetFile::aside(&path),
        })
        .await
    }
}

/// By a plan, or by one that gives the same from an older image.
pub(super) async fn fill_by(
    store: &Store,
    history: &History,
    plan: &Plan,
    target: TargetFile,
    place: &Place,
    progress: Option<ProgressFn>,
    look: Look,
) -> Result<Aside, RestoreError> {
    let (mut target, mut around, mut first) = (target, None, None);
    loop {
        let plan = around.as_ref().unwrap_or(plan);
        let failed = match fill(store, history, plan, target, progress.clone()).await {
            Ok(aside) => return Ok(aside),
            Err(error) => error,
        };
        if let RestoreError::History(HistoryError::Store(_)) = failed {
            return Err(failed);
        }
        let older = match of_the_image(&failed, look) {
            Some(problem) => history.plan_around(plan, &problem).await?,
            None => None,
        };
        // What was wrong with the image that was planned is what a user can do something about.
        let told = first.unwrap_or(failed);
        let Some(older) = older else {
            return Err(told);
        };
        first = Some(told);
        around = Some(older);
        target = place.create().await?;
    }
}

/// What is wrong with a chunk of the image, in words.
fn of_the_image(error: &RestoreError, look: Look) -> Option<String> {
    match error {
        RestoreError::Format {
            key: key @ Key::Chunk(_),
            error,
        } => Some(format!("{key} cannot be used: {error}")),
        RestoreError::History(HistoryError::Missing {
            key: key @ Key::Chunk(_),
            ..
        }) if look == Look::Last => Some(format!("{key} is missing")),
        _ => None,
    }
}
