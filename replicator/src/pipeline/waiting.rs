//! An open that waits for the store. Owns how long the application's thread does so; the work itself runs on the runtime.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tokio::runtime::Handle;

/// The store is getting somewhere. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Alive(Sender<()>);

impl Alive {
    pub(crate) fn tell(&self) {
        // Nobody listens any more when the open has given up.
        let _ = self.0.send(());
    }
}

/// Why there is no answer: the end of a sentence about the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error("did not answer within {0:?}")]
    Timeout(Duration),
    #[error("could not be read, because of a bug in replvfs")]
    Died,
}

/// Runs the work, for as long as the store gets any further at least once in `timeout`.
pub(crate) fn answer<T, F>(runtime: &Handle, timeout: Duration, work: impl FnOnce(Alive) -> F) -> Result<T, Unanswered>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (alive, news) = channel();
    let (done, result) = channel();
    let work = work(Alive(alive.clone()));
    let working = runtime.spawn(async move {
        let _ = done.send(work.await);
        let _ = alive.send(());
    });
    loop {
        let told = news.recv_timeout(timeout);
        if let Ok(result) = result.try_recv() {
            return Ok(result);
        }
        match told {
            Ok(()) => {}
            Err(why) => {
                working.abort();
                return Err(match why {
                    RecvTimeoutError::Timeout => Unanswered::Timeout(timeout),
                    RecvTimeoutError::Disconnected => Unanswered::Died,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn it_waits_as_long_as_there_is_progress() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (long, step) = (Duration::from_secs(20), Duration::from_millis(20));
        assert_eq!(answer(runtime.handle(), long, |_| async { 7 }), Ok(7));
        let patience = step * 20;
        let slow = answer(runtime.handle(), patience, |alive| async move {
            for _ in 0..60 {
                tokio::time::sleep(step).await;
                alive.tell();
            }
            8
        });
        assert_eq!(slow, Ok(8));
        let never = answer(runtime.handle(), step, |_| std::future::pending::<()>());
        assert_eq!(never, Err(Unanswered::Timeout(step)));
        let died = answer(runtime.handle(), long, |alive| async move {
            drop(alive);
            panic!("on purpose");
        });
        assert_eq!(died.map(|(): ()| ()), Err(Unanswered::Died));
    }
}
