//! What an image is made of that is merely due: a state of the database in the midst of a healthy history.
//!
//! Owns the rule that such an image is in nobody's way. It is looked for on a thread of the replica's, never on one of the application's; nothing
//! waits for it; and whoever meets its locks has it given up. Only beside a WAL can a state be read without keeping others from writing, so
//! there is no answer in a rollback-journal mode, or under a connection that has the file for itself. The replicating side does without it there.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::database::{Capture, Database};
use super::restart::is_at;
use crate::base::{FileRef, IndexRegion};
use crate::log::{Base, Continuity};

impl Database {
    /// An image is due, or one is being read that may have to be given up.
    pub(super) fn has_image_business(&self) -> bool {
        self.log.image_wanted() || self.reading().iter().any(|shared| shared.yields())
    }

    /// Under the pin: gives the log a state for an image that is due, and gives up one that has kept the WAL too long.
    pub(super) fn attend_images(&self, capture: &mut Capture, region: IndexRegion, wal: FileRef) {
        let too_large = |region: IndexRegion| {
            let header = region.header();
            header.is_some_and(|header| header.wal_bytes() > self.replica.wal_limit())
        };
        if self.reading().iter().any(|shared| shared.yields()) {
            if too_large(region) {
                self.give_images_up("the WAL has reached wal_limit beside it");
            }
        } else if self.log.image_wanted() && !self.replica.is_away() && !too_large(region) {
            self.image(capture, region, wal);
        }
    }

    fn image(&self, capture: &mut Capture, region: IndexRegion, wal: FileRef) {
        if self.wants_attention() || !self.replica.owns() || !self.log.is_settled() || self.log.is_suspended() {
            return;
        }
        let found = match self.mark(region) {
            Ok(found) => found,
            Err(reason) => {
                tracing::debug!(database = %self.path.display(), reason, "an image that is due has to wait");
                return;
            }
        };
        // What others committed before the mark comes before it in the log.
        if let Some(header) = &found.header {
            self.catch_up(capture, header, wal);
        }
        let (Some(cursor), Some(txid)) = (capture.cursor, self.log.last_txid()) else {
            return;
        };
        let known = cursor.page_size.is_none_or(|size| size == found.snapshot.page_size());
        if self.wants_attention() || !is_at(cursor.position, found.cursor.position) || !known {
            return;
        }
        found.shared.let_yield();
        {
            let mut snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
            snapshots.retain(|snapshot| snapshot.strong_count() > 0);
            snapshots.push(Arc::downgrade(&found.shared));
        }
        // Whoever makes way from now on finds it there; who has begun to may not have.
        if self.making_way.load(Ordering::Acquire) > 0 {
            return;
        }
        self.log.push_image(Base {
            txid,
            position: cursor.position,
            taken_at: self.host.now(),
            continuity: Continuity::Continued,
            snapshot: found.snapshot,
        });
    }

    /// What is read for images that are merely due lets its locks go now.
    pub(crate) fn give_images_up(&self, reason: &'static str) {
        for shared in self.reading().into_iter().filter(|shared| shared.yields()) {
            shared.give_up(reason);
        }
    }
}
