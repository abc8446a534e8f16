//! Gets one object into the store, however long that takes.
//!
//! Owns patience (pauses, reports, never giving up) and the question whose an object is that was there already. Leaves to its callers what
//! it means that it is somebody else's.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::Stopped;
use super::shared::Shared;
use crate::format::Key;
use crate::history::HistoryError;
use crate::outside;
use crate::store::{Body, Created, StoreError};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// While somebody waits for the upload.
const LONGEST_PAUSE_AWAITED: Duration = Duration::from_secs(1);

/// A request that is not answered for so long is trouble, before its time is over.
const SILENT: Duration = Duration::from_secs(30);

/// So often the store is asked what it says that would end replication.
pub(super) const LOOKS: u32 = 6;

/// Whose bytes are in the store under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// Those that were to be put there, now or by an attempt before.
    Us,
    Another,
}

/// Pauses that double up to a bound, each shortened at random, so that many databases do not ask in step.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(super) fn new() -> Backoff {
        Backoff { next: FIRST_PAUSE }
    }

    /// `random` is any number.
    fn next(&mut self, random: u32) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST_PAUSE);
        pause - pause.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
    }

    /// Waits for the next time. Ends early when somebody begins to wait.
    pub(super) async fn pause(&mut self, shared: &Shared) -> Result<(), Stopped> {
        let mut pause = self.next(outside::random_number());
        // Before the question whether somebody waits: whoever begins to between the two is not overheard.
        let hurry = shared.hurry.notified();
        if shared.waiting() > 0 {
            pause = pause.min(LONGEST_PAUSE_AWAITED);
            // Pauses that were not made are not doubled: when nobody waits any more the store may have been back for long.
            self.next = self.next.min(LONGEST_PAUSE_AWAITED * 2);
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(pause) => {}
            () = hurry => {}
        }
        match shared.log.failure() {
            None => Ok(()),
            Some(_) => Err(Stopped),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Uploader {
    shared: Arc<Shared>,
}

impl Uploader {
    pub(super) fn new(shared: Arc<Shared>) -> Uploader {
        Uploader { shared }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Repeats `call` until the store answers. Ends without an answer only when the log has failed.
    pub(super) async fn until_answered<T, F>(&self, call: impl Fn() -> F) -> Result<T, Stopped>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut backoff = Backoff::new();
        loop {
            match self.patiently(call()).await {
                Ok(answer) => {
                    self.shared.answered();
                    return Ok(answer);
                }
                Err(error) => {
                    self.shared.trouble(&error.to_string());
                    self.shared.publish();
                    backoff.pause(&self.shared).await?;
                }
            }
        }
    }

    /// Says so while it takes long.
    async fn patiently<T>(&self, call: impl Future<Output = T>) -> T {
        // What is called has a history of calls of its own: on the heap, or the stack of the thread would have to hold all of it.
        let mut call = Box::pin(call);
        tokio::select! {
            biased;
            done = &mut call => return done,
            () = tokio::time::sleep(SILENT) => {}
        }
        self.shared.trouble(&format!(
            "the replica {} has not answered for {} s, unless a large upload takes that long",
            self.shared.store.replica(),
            SILENT.as_secs()
        ));
        self.shared.publish();
        call.await
    }

    /// The same for what reads a history. Anything that is wrong with the history itself is an answer.
    pub(super) async fn until_told<T, F>(&self, call: impl Fn() -> F) -> Result<Result<T, HistoryError>, Stopped>
    where
        F: Future<Output = Result<T, HistoryError>>,
    {
        self.until_answered(|| async {
            match call().await {
                Ok(told) => Ok(Ok(told)),
                Err(HistoryError::Store(error)) => Err(error),
                Err(error) => Ok(Err(error)),
            }
        })
        .await
    }

    /// The same where an error ends replication: what is on the way to the store may have spoilt an answer, so it is asked some times more.
    pub(super) async fn until_sure<T, F>(&self, call: impl Fn() -> F) -> Result<Result<T, HistoryError>, Stopped>
    where
        F: Future<Output = Result<T, HistoryError>>,
    {
        let mut backoff = Backoff::new();
        for _ in 1..LOOKS {
            match self.until_told(&call).await? {
                Ok(told) => return Ok(Ok(told)),
                Err(error) if error.is_of_another_release() => return Ok(Err(error)),
                Err(error) => self.shared.trouble(&error.to_string()),
            }
            backoff.pause(&self.shared).await?;
        }
        self.until_told(&call).await
    }

    /// Creates an object whose bytes nobody else would write.
    pub(super) async fn create(&self, key: Key, body: &Body) -> Result<Owner, Stopped> {
        self.until_answered(|| self.try_create(key, body)).await
    }

    /// The same, once.
    pub(super) async fn try_create(&self, key: Key, body: &Body) -> Result<Owner, StoreError> {
        let store = &self.shared.store;
        match store.create(&key, body.clone()).await? {
            Created::New => Ok(Owner::Us),
            // Perhaps by an attempt of ours whose answer was lost.
            Created::Exists if store.holds(&key, body).await? => Ok(Owner::Us),
            Created::Exists => Ok(Owner::Another),
        }
    }

    /// Creates an object whose name nobody else can give to anything: what is there is an attempt of ours.
    pub(super) async fn create_once(&self, key: Key, body: &Body) -> Result<(), Stopped> {
        let store = &self.shared.store;
        self.until_answered(|| store.create(&key, body.clone())).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..10).map(|_| backoff.next(0)).collect();
        assert_eq!(pauses[..3], [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4]);
        assert_eq!(pauses[9], LONGEST_PAUSE);
        let shortest = backoff.next(u32::MAX);
        assert!(shortest >= LONGEST_PAUSE / 2 && shortest < LONGEST_PAUSE);
    }
}
