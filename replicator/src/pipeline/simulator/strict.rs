//! Commits that nobody sees before they are in the store: what the VFS and the connection's thread do for one, in a task.

use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use replvfs_vfs::host::Replica;
use replvfs_vfs::log::{Awaited, Withdrawn};
use replvfs_vfs::types::{Position, Txid};
use tokio::time::{Instant, sleep};

use super::disk::{ABANDONED, Capture, Cursor, Disk, transaction};
use super::model::StateId;
use super::process::Process;
use super::world::Sim;
use crate::pipeline::confirm::{self, Wanted};
use crate::pipeline::shared::Shared;

const ATTEMPTS: usize = 3;
/// So long nobody looks what has become of it.
const LOOKS: Duration = Duration::from_millis(50);

/// SQLite's write lock, from `BEGIN IMMEDIATE` on. It ends with its process.
struct WriteLock {
    disk: Arc<Mutex<Disk>>,
}

impl WriteLock {
    fn take(disk: &Arc<Mutex<Disk>>) -> Option<WriteLock> {
        let was_locked = std::mem::replace(&mut disk.lock().unwrap().is_locked, true);
        (!was_locked).then(|| WriteLock { disk: Arc::clone(disk) })
    }
}

impl Drop for WriteLock {
    fn drop(&mut self) {
        let mut disk = self.disk.lock().unwrap();
        disk.is_locked = false;
        // Whoever comes next finds the commit frame.
        disk.publish();
    }
}

/// One transaction, as its connection knows it.
struct Writer {
    sim: Arc<Sim>,
    shared: Arc<Shared>,
    capture: Arc<Capture>,
    replica: Arc<dyn Replica>,
    lock: WriteLock,
    /// Of each attempt the same.
    state: Option<StateId>,
    end: Instant,
}

impl Process {
    /// Begins a transaction, if nobody else has one.
    pub(super) fn commit_strictly(&mut self, sim: &Arc<Sim>) {
        let Some(lock) = WriteLock::take(&self.capture.disk) else {
            return;
        };
        let timeout = sim.rng().delay(60_000);
        sim.trace(|| {
            format!(
                "machine {}: process {} commits strictly, within {timeout:?}",
                self.capture.machine, self.number
            )
        });
        let writer = Writer {
            sim: Arc::clone(sim),
            shared: Arc::clone(&self.shared),
            capture: Arc::clone(&self.capture),
            replica: Arc::clone(&self.replica),
            lock,
            state: None,
            end: Instant::now() + timeout,
        };
        let gate = Arc::clone(&self.gate);
        let mut committing = Box::pin(writer.commit());
        self.strict = Some(tokio::spawn(std::future::poll_fn(move |context| {
            std::task::ready!(gate.poll(context.waker()));
            std::task::ready!(committing.as_mut().poll(context));
            Poll::Ready(())
        })));
    }
}

impl Writer {
    async fn commit(mut self) {
        match self.hold().await {
            Some((txid, end)) => self.write(txid, end).await,
            None => {
                self.sim.count(|counts| counts.rolled_back += 1);
                self.capture.roll_back(&self.sim);
            }
        }
    }

    /// As [`hold`](crate::pipeline::strict::hold).
    async fn hold(&mut self) -> Option<(Txid, Position)> {
        let shared = Arc::clone(&self.shared);
        let _waiting = shared.wait_for_upload();
        for _ in 0..ATTEMPTS {
            if shared.is_standby() && !shared.own() {
                return None;
            }
            let before = Wanted {
                until: None,
                timeout: self.end.saturating_duration_since(Instant::now()),
            };
            confirm::wait_in_task(&shared, before).await.ok()?;
            let Some((txid, end)) = self.capture.propose(&self.sim, &mut self.state, &*self.replica)? else {
                continue;
            };
            let log = &shared.log;
            let awaited = loop {
                let awaited = log.wait_tentative(txid, Duration::ZERO);
                let is_over = Instant::now() >= self.end || log.failure().is_some();
                if awaited != Awaited::Waiting || is_over {
                    break awaited;
                }
                let soon = self.end.min(Instant::now() + LOOKS);
                shared
                    .until(soon, || log.wait_tentative(txid, Duration::ZERO) != Awaited::Waiting)
                    .await;
            };
            match awaited {
                Awaited::Acknowledged => return Some((txid, end)),
                Awaited::Gone if log.failure().is_none() && Instant::now() < self.end => continue,
                Awaited::Gone | Awaited::Waiting => {}
            }
            let withdrawn = log.withdraw(txid);
            shared.given_up.notify_waiters();
            if withdrawn == Withdrawn::Acknowledged {
                return Some((txid, end));
            }
            return None;
        }
        None
    }

    /// The commit frame, and after a while the wal-index.
    async fn write(self, txid: Txid, end: Position) {
        let Some(state) = self.state else { return };
        if self.sim.rng().below(4) == 0 {
            let pause = self.sim.rng().delay(2_000);
            sleep(pause).await;
        }
        if self.sim.rng().below(12) == 0 {
            // The header cannot be written.
            self.capture.log.abandon_for_test(txid);
            self.sim.count(|counts| counts.rolled_back += 1);
            return self.capture.roll_back(&self.sim);
        }
        self.lock.disk.lock().unwrap().unpublished = Some((state, end));
        if self.sim.rng().below(4) == 0 {
            let pause = self.sim.rng().delay(2_000);
            sleep(pause).await;
        }
        self.capture.finish(state, txid);
        self.replica.finished();
        self.sim.count(|counts| counts.held_back += 1);
        self.capture.observe(&*self.replica);
        self.sim.confirmed(self.capture.machine, state);
    }
}

impl Capture {
    /// Puts the transaction into the log. `Some(None)`: not now. `None`: it is rolled back.
    fn propose(
        &self,
        sim: &Arc<Sim>,
        state: &mut Option<StateId>,
        replica: &dyn Replica,
    ) -> Option<Option<(Txid, Position)>> {
        let (mut disk, mut inner) = (self.disk.lock().unwrap(), self.inner.lock().unwrap());
        self.sync_with(&disk, &mut inner);
        if disk.wal.is_none() {
            disk.begin_wal(sim);
            self.prove_cursor(&disk, &mut inner);
        }
        self.note_wal(&disk, &mut inner, replica);
        if inner.cursor != Some(Cursor::at_end(&disk)) {
            return None;
        }
        let state = *state.get_or_insert_with(|| sim.commit(disk.state));
        let proposed = transaction(sim, state, Txid(0), disk.wal_end());
        let end = proposed.end;
        let pushed = self.log.push_tentative(proposed).ok();
        sim.trace(|| format!("machine {}: state {state} is proposed as {pushed:?}", self.machine));
        Some(pushed.map(|txid| (txid, end)))
    }

    fn roll_back(&self, sim: &Sim) {
        let mut inner = self.inner.lock().unwrap();
        let (abandoned, last) = (self.log.abandoned(), self.log.last_txid());
        sim.trace(|| {
            format!(
                "machine {}: rolled back; {abandoned:?} is abandoned, {last:?} the newest",
                self.machine
            )
        });
        if abandoned.is_some() && abandoned == last && !inner.broken {
            inner.broken = true;
            inner.numbered.push(ABANDONED);
            sim.count(|counts| counts.abandoned += 1);
        }
    }

    fn finish(&self, state: StateId, txid: Txid) {
        let (mut disk, mut inner) = (self.disk.lock().unwrap(), self.inner.lock().unwrap());
        disk.publish();
        inner.cursor = Some(Cursor::at_end(&disk));
        inner.numbered.push(state);
        self.log.finish_for_test(txid);
    }
}
