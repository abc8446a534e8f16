//! One schedule: what the machines do, and what is done to them.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use replvfs_vfs::types::Txid;
use tokio::time::{Instant, sleep};

use super::check;
use super::disk::Disk;
use super::keeper::Keeper;
use super::process::Machine;
use super::world::Sim;
use crate::history::Target;

/// How long everything may take once everything works.
const CALM: Duration = Duration::from_secs(900);

/// As chance has it.
#[cfg(test)]
pub(super) async fn run(sim: &Arc<Sim>, folder: &Path) {
    let mut machines = begin(sim, folder);
    let mut keeper = Keeper::default();
    let steps = 15 + sim.rng().below(30);
    for _ in 0..steps {
        step(sim, &mut machines).await;
        keeper.step(sim).await;
        if sim.violation().is_some() {
            break;
        }
    }
    end(sim, &mut machines, keeper, folder).await;
}

/// Two machines or three, of which the first has the database.
pub(super) fn begin(sim: &Arc<Sim>, folder: &Path) -> Vec<Machine> {
    let count = 2 + usize::from(sim.rng().below(3) == 0);
    let mut machines: Vec<_> = (0..count).map(|number| Machine::new(number, folder)).collect();
    let founded = sim.found();
    machines[0].disk = Some(Arc::new(Mutex::new(Disk::new(founded, sim))));
    machines[0].start(sim);
    if count == 3 && sim.rng().below(8) == 0 {
        let other = sim.found();
        machines[2].disk = Some(Arc::new(Mutex::new(Disk::new(other, sim))));
    }
    machines
}

/// Whoever writes gets to an end, and then everything is looked at.
pub(super) async fn end(sim: &Arc<Sim>, machines: &mut [Machine], mut keeper: Keeper, folder: &Path) {
    calm_down(sim, machines).await;
    keeper.end(sim).await;
    if sim.violation().is_none() {
        check::everything(sim, folder).await;
    }
}

/// What is done on one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// One process commits, a few times perhaps.
    Commit,
    /// Another process starts, or one opens the database again.
    StartOrOpen,
    /// A process dies.
    Kill,
    /// All of them, and what was not synced may be lost.
    LosePower,
    /// A process is stopped, or goes on.
    PauseOrGoOn,
    /// The machine has no network for a while.
    Cut,
    /// A process closes the database.
    Close,
    /// The WAL begins again, where the pin lets it.
    RestartWal,
    /// The disk as it is can come back later.
    TakeSnapshot,
    /// It does.
    GoBack,
    /// The machine gets what is in the store.
    Restore,
    /// A process without replvfs commits.
    CommitElsewhere,
    /// The WAL has reached its limit.
    Suspend,
    /// An upload is due at once.
    HurryUp,
}

#[cfg(test)]
impl Operation {
    pub(super) fn drawn(number: u64) -> Operation {
        match number {
            0..46 => Operation::Commit,
            46..52 => Operation::StartOrOpen,
            52..58 => Operation::Kill,
            58..62 => Operation::LosePower,
            62..69 => Operation::PauseOrGoOn,
            69..74 => Operation::Cut,
            74..78 => Operation::Close,
            78..83 => Operation::RestartWal,
            83..86 => Operation::TakeSnapshot,
            86..88 => Operation::GoBack,
            88..95 => Operation::Restore,
            95..97 => Operation::CommitElsewhere,
            97 => Operation::Suspend,
            _ => Operation::HurryUp,
        }
    }
}

#[cfg(test)]
async fn step(sim: &Arc<Sim>, machines: &mut [Machine]) {
    let (longest, at, what) = {
        let mut rng = sim.rng();
        let longest = [5, 50, 500, 5_000, 60_000][rng.below(5) as usize];
        (longest, rng.below(machines.len() as u64) as usize, rng.below(100))
    };
    perform(sim, machines, longest, at, Operation::drawn(what)).await;
}

/// After a pause of at most `longest` milliseconds.
pub(super) async fn perform(sim: &Arc<Sim>, machines: &mut [Machine], longest: u64, at: usize, operation: Operation) {
    let pause = sim.rng().delay(longest);
    sleep(pause).await;
    for machine in machines.iter_mut() {
        machine.end_restore(sim, false).await;
        for process in &machine.processes {
            process.capture.observe(&*process.replica);
            if sim.rng().below(2) == 0 && process.is_open {
                process.capture.sync();
            }
        }
    }
    let machine = &mut machines[at];
    if machine.restoring.is_some() {
        return;
    }
    let is_usual = matches!(operation, Operation::Commit | Operation::StartOrOpen);
    if machine.disk.is_none() {
        if is_usual || operation == Operation::Restore {
            begin_restore(sim, machine).await;
        }
        return;
    }
    if machine.processes.is_empty() && is_usual {
        return machine.start(sim);
    }
    match operation {
        Operation::Commit => commit(sim, machine),
        Operation::StartOrOpen => start_or_open(sim, machine),
        Operation::Kill => kill_one(sim, machine).await,
        Operation::LosePower => machine.lose_power(sim).await,
        Operation::PauseOrGoOn => pause_or_go_on(sim, machine),
        Operation::Cut => cut(sim, machine),
        Operation::Close => close(sim, machine).await,
        Operation::RestartWal => restart_wal(sim, machine),
        Operation::TakeSnapshot => machine.take_snapshot(),
        Operation::GoBack => {
            let taken = machine.snapshots.len() as u64;
            if taken > 0 {
                let which = sim.rng().below(taken) as usize;
                machine.go_back(sim, which).await;
            }
        }
        Operation::Restore => begin_restore(sim, machine).await,
        Operation::CommitElsewhere => {
            let mut disk = machine.disk.as_ref().unwrap().lock().unwrap();
            if !disk.is_locked {
                disk.commit(sim);
            }
        }
        Operation::Suspend => suspend(machine),
        Operation::HurryUp => machine.processes.iter().for_each(|process| process.shared.hurry_up()),
    }
}

async fn begin_restore(sim: &Arc<Sim>, machine: &mut Machine) {
    let target = {
        let mut rng = sim.rng();
        match rng.below(4) {
            0 => Target::Txid(Txid(rng.below(20))),
            _ => Target::Newest,
        }
    };
    machine.begin_restore(sim, target).await;
}

fn commit(sim: &Arc<Sim>, machine: &mut Machine) {
    let times = 1 + sim.rng().below(3);
    let which = sim.rng().below(machine.processes.len() as u64) as usize;
    let Some(process) = machine.processes.get_mut(which) else {
        return;
    };
    if !process.is_open || process.gate.is_closed() {
        return;
    }
    if process.capture.disk.lock().unwrap().is_locked {
        return;
    }
    if sim.rng().below(4) == 0 {
        return process.commit_strictly(sim);
    }
    for _ in 0..times {
        process.capture.commit(&*process.replica);
    }
    let state = machine.disk.as_ref().unwrap().lock().unwrap().state;
    sim.trace(|| {
        format!(
            "machine {}: process {} commits up to state {state}, transaction {:?}",
            machine.number,
            process.number,
            process.log.last_txid()
        )
    });
    let waits = sim.rng().below(3) == 0;
    if waits {
        process.wait(sim);
    }
}

fn start_or_open(sim: &Arc<Sim>, machine: &mut Machine) {
    let running = machine.processes.len();
    let mut processes = machine.processes.iter_mut();
    match processes.find(|process| !process.is_open && !process.gate.is_closed()) {
        Some(process) => process.open(),
        None if running < 2 => machine.start(sim),
        None => {}
    }
}

async fn kill_one(sim: &Arc<Sim>, machine: &mut Machine) {
    if machine.processes.is_empty() {
        return;
    }
    let which = sim.rng().below(machine.processes.len() as u64) as usize;
    sim.count(|counts| counts.crashes += 1);
    machine.processes.remove(which).kill(sim).await;
}

fn pause_or_go_on(sim: &Arc<Sim>, machine: &mut Machine) {
    let which = sim.rng().below(machine.processes.len() as u64) as usize;
    let Some(process) = machine.processes.get(which) else {
        return;
    };
    if process.gate.is_closed() {
        sim.trace(|| format!("machine {}: process {} goes on", machine.number, process.number));
        return process.gate.open();
    }
    sim.trace(|| format!("machine {}: process {} is stopped", machine.number, process.number));
    sim.count(|counts| counts.pauses += 1);
    process.gate.close();
    let (gate, pause) = (Arc::clone(&process.gate), sim.rng().delay(120_000));
    tokio::spawn(async move {
        sleep(pause).await;
        gate.open();
    });
}

fn cut(sim: &Arc<Sim>, machine: &Machine) {
    let until = Instant::now() + sim.rng().delay(120_000);
    sim.trace(|| format!("machine {}: is cut off", machine.number));
    sim.count(|counts| counts.partitions += 1);
    sim.sky.lock().unwrap().cut(machine.number, until);
}

async fn close(sim: &Arc<Sim>, machine: &mut Machine) {
    let open = machine.processes.iter().filter(|process| process.is_open).count();
    let one = machine
        .processes
        .iter_mut()
        .find(|process| process.is_open && !process.gate.is_closed() && !process.is_writing());
    if let Some(process) = one {
        process.close(sim, open == 1).await;
    }
}

/// Where the pin lets it.
fn restart_wal(sim: &Arc<Sim>, machine: &mut Machine) {
    let keeps = |process: &super::process::Process| process.owns() && !process.is_drained();
    let is_locked = machine.disk.as_ref().unwrap().lock().unwrap().is_locked;
    if is_locked || machine.processes.iter().any(keeps) {
        return;
    }
    sim.count(|counts| counts.wal_restarts += 1);
    sim.trace(|| format!("machine {}: the WAL begins again", machine.number));
    let mut awake = machine
        .processes
        .iter()
        .filter(|process| process.is_open && !process.gate.is_closed());
    let owners = machine.processes.iter().filter(|process| process.owns()).count();
    let owner = awake.find(|process| process.owns());
    match owner {
        Some(process) => process.capture.restart_wal(&*process.replica),
        None if owners == 0 => machine.disk.as_ref().unwrap().lock().unwrap().restart_wal(sim),
        None => {}
    }
}

fn suspend(machine: &Machine) {
    for process in &machine.processes {
        if process.owns() && process.log.is_settled() && !process.log.base_wanted() {
            process.capture.suspend();
        }
    }
}

/// Everything works from here on: whoever writes gets to an end.
async fn calm_down(sim: &Arc<Sim>, machines: &mut [Machine]) {
    sim.trace(|| "the weather is calm".to_owned());
    sim.sky.lock().unwrap().clear_up();
    for machine in machines.iter_mut() {
        machine.processes.iter().for_each(|process| process.gate.open());
        machine.end_restore(sim, true).await;
        if machine.processes.is_empty() && sim.rng().below(2) == 0 {
            machine.start(sim);
        }
    }
    let end = Instant::now() + CALM;
    loop {
        let mut waits_for = None;
        for process in machines.iter().flat_map(|machine| &machine.processes) {
            if process.is_open {
                process.capture.sync();
            }
            process.capture.observe(&*process.replica);
            let is_busy = process.is_writing() || !process.is_drained();
            if !process.has_failed() && process.owns() && is_busy && process.is_open {
                waits_for = Some(process);
            }
        }
        let on_their_way = sim.sky.lock().unwrap().on_their_way;
        let Some(process) = waits_for else {
            if on_their_way == 0 {
                break;
            }
            sleep(Duration::from_secs(10)).await;
            continue;
        };
        if Instant::now() > end {
            let (machine, status) = (process.capture.machine, process.replica.status());
            sim.violated(format!("machine {machine} gets to no end: {status}"));
            break;
        }
        sleep(Duration::from_millis(700)).await;
    }
    for machine in machines.iter_mut() {
        machine.kill_all(sim).await;
    }
}
