//! Machines, and the processes on them that replicate.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::task::Poll;
use std::time::Duration;

use replvfs_vfs::host::Replica;
use replvfs_vfs::log::Log;
use replvfs_vfs::resume::Next;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::disk::{Capture, Disk, new_print};
use super::sky::Gate;
use super::world::Sim;
use crate::config::Retention;
use crate::history::Target;
use crate::local_state;
use crate::outside;
use crate::pipeline::confirm::{self, Wanted};
use crate::pipeline::due::Rule;
use crate::pipeline::replica::{DatabaseReplica, Patience};
use crate::pipeline::shared::Shared;
use crate::pipeline::task::{Plan, Task};
use crate::pipeline::upkeep::{self, Schedule};
use crate::restore::{RestoreError, RestoreOptions, Restored, restore};

pub(super) struct Process {
    pub(super) number: u64,
    pub(super) log: Arc<Log>,
    pub(super) shared: Arc<Shared>,
    pub(super) replica: Arc<dyn Replica>,
    pub(super) capture: Arc<Capture>,
    pub(super) gate: Arc<Gate>,
    pub(super) is_open: bool,
    task: JoinHandle<()>,
    /// Who waits until what was committed is in the store.
    waits: Vec<JoinHandle<()>>,
    /// The transaction that nobody sees before it is in the store.
    pub(super) strict: Option<JoinHandle<()>>,
}

impl Process {
    fn start(sim: &Arc<Sim>, machine: &Machine, disk: &Arc<Mutex<Disk>>) -> Process {
        let (number, interval, segment_size) = {
            let mut rng = sim.rng();
            let interval = [500, 1500, 5000][rng.below(3) as usize];
            (rng.below(1000), interval, [600, 4000, 1 << 20][rng.below(3) as usize])
        };
        let images = due_images(sim);
        let gate = Arc::new(Gate::default());
        let log = Log::new();
        let store = sim.store(machine.number, &gate);
        let shared = Arc::new(Shared::new(Arc::clone(&log), store, &machine.database()));
        let plan = Plan {
            flush_interval: Duration::from_millis(interval),
            segment_size,
            folder: machine.folder.clone(),
            upkeep: upkeep(sim),
            images,
        };
        let none = Duration::ZERO;
        let replica: Arc<dyn Replica> = Arc::new(DatabaseReplica::new(
            Arc::clone(&shared),
            Patience::of(none, none),
            None,
        ));
        log.connect(&replica);
        let capture = Arc::new(Capture {
            sim: Arc::clone(sim),
            log: Arc::clone(&log),
            disk: Arc::clone(disk),
            gate: Arc::clone(&gate),
            machine: machine.number,
            inner: Mutex::default(),
        });
        let capturing: Weak<Capture> = Arc::downgrade(&capture);
        log.connect_capture(capturing);
        let mut task = Box::pin(Task::new(Arc::clone(&shared), plan).run());
        let (polled, watched, told) = (Arc::clone(&gate), Arc::clone(&capture), Arc::clone(&replica));
        let task = tokio::spawn(std::future::poll_fn(move |context| {
            std::task::ready!(polled.poll(context.waker()));
            watched.observe(&*told);
            let done = task.as_mut().poll(context);
            watched.observe(&*told);
            done
        }));
        sim.trace(|| format!("machine {}: process {number} starts", machine.number));
        let mut process = Process {
            number,
            log,
            shared,
            replica,
            capture,
            gate,
            is_open: false,
            task,
            waits: Vec::new(),
            strict: None,
        };
        process.open();
        process
    }

    pub(super) fn open(&mut self) {
        self.is_open = true;
        self.shared.opened();
        self.capture.inner.lock().unwrap().pinned = true;
        self.capture.sync();
    }

    /// Somebody waits until what is committed now is in the store.
    pub(super) fn wait(&mut self, sim: &Arc<Sim>) {
        let state = self.capture.disk.lock().unwrap().state;
        let timeout = sim.rng().delay(60_000);
        let (gate, watched, told) = (
            Arc::clone(&self.gate),
            Arc::clone(&self.capture),
            Arc::clone(&self.replica),
        );
        let (shared, sim) = (Arc::clone(&self.shared), Arc::clone(sim));
        let wanted = Wanted { until: None, timeout };
        let mut waiting = Box::pin(async move { confirm::wait_in_task(&shared, wanted).await });
        self.waits.push(tokio::spawn(std::future::poll_fn(move |context| {
            std::task::ready!(gate.poll(context.waker()));
            let waited = std::task::ready!(waiting.as_mut().poll(context));
            watched.observe(&*told);
            match waited {
                Ok(_) => sim.confirmed(watched.machine, state),
                Err(_) => sim.count(|counts| counts.unconfirmed += 1),
            }
            Poll::Ready(())
        })));
    }

    /// It is in the middle of a transaction.
    pub(super) fn is_writing(&self) -> bool {
        self.strict.as_ref().is_some_and(|strict| !strict.is_finished())
    }

    /// Nothing more comes of it.
    pub(super) fn has_failed(&self) -> bool {
        self.log.failure().is_some()
    }

    pub(super) fn owns(&self) -> bool {
        !self.has_failed() && self.shared.owns()
    }

    /// All that it has is in the store.
    pub(super) fn is_drained(&self) -> bool {
        let log = &self.log;
        let all = log.last_txid().is_some() && log.acked() >= log.last_txid() && log.pending().items == 0;
        all && log.is_settled() && !log.base_wanted() && !log.is_suspended() && !self.shared.status.is_making_image()
    }

    /// Waits for the upload, for a while; then nobody has the database open in it.
    pub(super) async fn close(&mut self, sim: &Arc<Sim>, is_last: bool) {
        let patience = sim.rng().below(60);
        {
            let _waiting = self.shared.wait_for_upload();
            for _ in 0..patience {
                if self.is_drained() || self.has_failed() {
                    break;
                }
                self.capture.sync();
                sleep(Duration::from_millis(100)).await;
            }
        }
        self.capture.sync();
        if is_last && (self.is_drained() || self.has_failed()) {
            self.capture.end_wal(&*self.replica);
        }
        self.replica.closed();
        self.capture.inner.lock().unwrap().pinned = false;
        self.is_open = false;
        sim.count(|counts| counts.closes += 1);
        sim.trace(|| format!("machine {}: process {} has closed", self.capture.machine, self.number));
    }

    /// Without a chance to put anything in order.
    pub(super) async fn kill(self, sim: &Sim) {
        self.capture.observe(&*self.replica);
        sim.trace(|| format!("machine {}: process {} is gone", self.capture.machine, self.number));
        let status: serde_json::Value = serde_json::from_str(&self.replica.status()).unwrap();
        sim.count(|counts| counts.discontinuities += status["discontinuities"].as_u64().unwrap_or_default());
        let Process {
            shared,
            task,
            waits,
            strict,
            ..
        } = self;
        for task in waits.into_iter().chain(strict).chain([task]) {
            task.abort();
            if let Err(error) = task.await
                && error.is_panic()
            {
                sim.violated(format!("a task panicked: {error}"));
            }
        }
        let shared = {
            let weak = Arc::downgrade(&shared);
            drop(shared);
            weak
        };
        // What it had started ends with it.
        drop((self.replica, self.capture, self.log, self.gate));
        for _ in 0..20 {
            if shared.strong_count() == 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
        sim.violated("something of a process outlives it".to_owned());
    }
}

/// Sometimes after a few transactions, sometimes never.
fn due_images(sim: &Sim) -> Rule {
    let page = u64::from(sim.model.lock().unwrap().page_size().get());
    let mut rng = sim.rng();
    Rule {
        least: [page / 8, 2 * page, 64 << 20][rng.below(3) as usize],
        part: 32,
        pause: rng.delay(60_000),
        check: rng.below(2) == 0,
        ..Rule::default()
    }
}

/// As often as a few segments are stored, if the window has an end.
fn upkeep(sim: &Sim) -> Schedule {
    let retention = sim.retention.map_or(Retention::Forever, Retention::For);
    let mut rng = sim.rng();
    let rule = upkeep::Rule {
        segments: [2, 5, 64][rng.below(3) as usize],
        pieces: 2 + rng.below(3) as usize,
        deletes_every: Duration::ZERO,
        ..upkeep::Rule::default()
    };
    Schedule::new(rule, retention)
}

type Restoring = JoinHandle<Result<Restored, RestoreError>>;

/// A folder with a database, or with none yet.
pub(super) struct Machine {
    pub(super) number: usize,
    pub(super) folder: PathBuf,
    pub(super) disk: Option<Arc<Mutex<Disk>>>,
    pub(super) processes: Vec<Process>,
    pub(super) snapshots: Vec<(Disk, Option<Vec<u8>>)>,
    pub(super) restoring: Option<Restoring>,
}

impl Machine {
    pub(super) fn new(number: usize, folder: &Path) -> Machine {
        let folder = folder.join(number.to_string());
        std::fs::create_dir(&folder).unwrap();
        Machine {
            number,
            folder,
            disk: None,
            processes: Vec::new(),
            snapshots: Vec::new(),
            restoring: None,
        }
    }

    fn database(&self) -> PathBuf {
        self.folder.join("app.db")
    }

    fn state_file(&self) -> PathBuf {
        local_state::state_file(&self.database())
    }

    pub(super) fn start(&mut self, sim: &Arc<Sim>) {
        if let Some(disk) = self.disk.clone() {
            let process = Process::start(sim, self, &disk);
            self.processes.push(process);
        }
    }

    pub(super) async fn kill_all(&mut self, sim: &Sim) {
        for process in std::mem::take(&mut self.processes) {
            process.kill(sim).await;
        }
    }

    /// The power goes.
    pub(super) async fn lose_power(&mut self, sim: &Sim) {
        self.kill_all(sim).await;
        sim.count(|counts| counts.power_losses += 1);
        sim.trace(|| format!("machine {}: no power", self.number));
        sim.lose_power(&self.state_file());
        let Some(disk) = &self.disk else { return };
        let mut disk = disk.lock().unwrap();
        let disk = &mut *disk;
        let Some(wal) = disk.wal.as_mut().filter(|wal| wal.commits.len() > wal.synced) else {
            return;
        };
        if sim.rng().below(3) > 0 {
            return;
        }
        // With synchronous=NORMAL a WAL is synced only by checkpoints.
        let kept = wal.synced + sim.rng().below((wal.commits.len() - wal.synced) as u64) as usize;
        let first = wal.commits[0].0;
        disk.state = match kept.checked_sub(1) {
            Some(last) => wal.commits[last].0,
            None => sim.model.lock().unwrap().parent(first).unwrap(),
        };
        let lost = wal.commits.len() - kept;
        wal.commits.truncate(kept);
        sim.count(|counts| counts.lost_commits += lost as u64);
        sim.trace(|| {
            format!(
                "machine {}: {lost} commits are lost, the database is at state {}",
                self.number, disk.state
            )
        });
    }

    pub(super) fn take_snapshot(&mut self) {
        let Some(disk) = &self.disk else { return };
        let disk = Disk {
            is_locked: false,
            ..disk.lock().unwrap().clone()
        };
        self.snapshots.push((disk, std::fs::read(self.state_file()).ok()));
    }

    /// The virtual machine is set back to an older disk.
    pub(super) async fn go_back(&mut self, sim: &Sim, snapshot: usize) {
        self.kill_all(sim).await;
        let (disk, state) = self.snapshots[snapshot].clone();
        sim.trace(|| {
            format!(
                "machine {}: the disk is that of state {} again",
                self.number, disk.state
            )
        });
        sim.count(|counts| counts.older_disks += 1);
        self.disk = Some(Arc::new(Mutex::new(disk)));
        match state {
            Some(state) => {
                std::fs::write(self.state_file(), state).unwrap();
                outside::synced(&std::fs::File::open(self.state_file()).unwrap());
            }
            None => drop(std::fs::remove_file(self.state_file())),
        }
    }

    /// The machine gets what is in the store.
    pub(super) async fn begin_restore(&mut self, sim: &Arc<Sim>, target: Target) {
        self.kill_all(sim).await;
        sim.trace(|| format!("machine {}: restores {target:?}", self.number));
        let (store, database) = (sim.store(self.number, &Arc::default()), self.database());
        self.restoring = Some(tokio::spawn(async move {
            let options = RestoreOptions {
                target,
                force: true,
                resumable: true,
                ..RestoreOptions::default()
            };
            restore(&store, &database, &options).await
        }));
    }

    /// Takes what was restored, if that is done.
    pub(super) async fn end_restore(&mut self, sim: &Arc<Sim>, wait: bool) {
        if !self
            .restoring
            .as_ref()
            .is_some_and(|restoring| wait || restoring.is_finished())
        {
            return;
        }
        let Some(restoring) = self.restoring.take() else { return };
        match restoring.await {
            Ok(Ok(restored)) => {
                let content = std::fs::read(self.database()).unwrap();
                let Some(state) = sim.model.lock().unwrap().state_of(&content) else {
                    sim.violated(format!(
                        "transaction {} was restored to a state that never was",
                        restored.txid
                    ));
                    return;
                };
                sim.trace(|| format!("machine {}: was restored to state {state}", self.number));
                sim.count(|counts| counts.restores += 1);
                let known = local_state::read(&self.state_file()).unwrap().unwrap();
                let print = match known.left.map(|left| left.next) {
                    Some(Next::File(print)) => print,
                    _ => new_print(sim),
                };
                let disk = Disk {
                    print,
                    ..Disk::new(state, sim)
                };
                self.disk = Some(Arc::new(Mutex::new(disk)));
            }
            Ok(Err(error)) => sim.trace(|| format!("machine {}: was not restored: {error}", self.number)),
            Err(error) => sim.violated(format!("a restore panicked: {error}")),
        }
    }
}
