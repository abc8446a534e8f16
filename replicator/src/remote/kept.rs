//! Replicas that no connection uses any more, kept for a while: a program that opens a connection for each request would else read the index, and every page,
//! each time.
//!
//! Owns how many, and for how long: what is kept has its cache in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::replica::Replica;

/// Since a connection to it was opened or closed.
pub(super) const KEPT: Duration = Duration::from_secs(60);
/// At once.
pub(super) const MOST: usize = 4;

/// The replicas that were used last. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Recent>>);

#[derive(Debug, Default)]
struct Recent {
    /// Those that were used last at the end, and until when they stay.
    replicas: VecDeque<(Instant, Arc<Replica>)>,
    is_running: bool,
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A replica is used.
    pub(super) fn touch(&self, replica: &Arc<Replica>) {
        let mut recent = self.lock();
        recent.replicas.retain(|(_, known)| !Arc::ptr_eq(known, replica));
        recent.replicas.push_back((Instant::now() + KEPT, Arc::clone(replica)));
        let over = recent.replicas.len().saturating_sub(MOST);
        let gone: Vec<_> = recent.replicas.drain(..over).collect();
        if !std::mem::replace(&mut recent.is_running, true) {
            replica.runtime().spawn(self.clone().let_go());
        }
        drop(recent);
        // It may take a while to free a cache.
        drop(gone);
    }

    async fn let_go(self) {
        while let Some(next) = self.expire() {
            tokio::time::sleep_until(next).await;
        }
    }

    /// Lets go of what was kept for long enough. Returns when the next one is to go; `None` if there is none, and then the task ends.
    fn expire(&self) -> Option<Instant> {
        let mut recent = self.lock();
        let now = Instant::now();
        let over = recent.replicas.partition_point(|(until, _)| *until <= now);
        let gone: Vec<_> = recent.replicas.drain(..over).collect();
        let next = recent.replicas.front().map(|(until, _)| *until);
        recent.is_running = next.is_some();
        drop(recent);
        drop(gone);
        next
    }
}
