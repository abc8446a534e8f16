//! The world of one schedule: clock, random numbers, what was committed, what the disks have for certain, and what went wrong.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use replvfs_vfs::types::PageSize;
use tokio::time::Instant;

use super::model::{Change, Model, StateId};
use super::sky::Sky;
use crate::format::STATE_SLOT_BYTES;
use crate::outside::simulated;

/// SplitMix64: a seed is a schedule.
#[derive(Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64, stream: u64) -> Rng {
        let mut rng = Rng(seed ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93));
        rng.next();
        rng
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// Mostly short, sometimes up to the longest.
    pub(super) fn delay(&mut self, longest_ms: u64) -> Duration {
        let scale = [longest_ms / 64, longest_ms / 8, longest_ms][self.below(3) as usize];
        Duration::from_millis(self.below(scale + 1))
    }
}

macro_rules! counts {
    ($($name:ident),* $(,)?) => {
        /// What the schedules contained.
        #[derive(Debug, Default, Clone)]
        pub(super) struct Counts {
            $(pub(super) $name: u64,)*
        }

        impl Counts {
            #[cfg(test)]
            pub(super) fn add(&mut self, other: &Counts) {
                $(self.$name += other.$name;)*
            }

            #[cfg(test)]
            pub(super) fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counts!(
    schedules,
    commits,
    acknowledged,
    confirmed,
    unconfirmed,
    held_back,
    rolled_back,
    abandoned,
    restored_states,
    store_calls,
    crashes,
    power_losses,
    torn_states,
    lost_commits,
    pauses,
    partitions,
    older_disks,
    restores,
    takeovers,
    generations,
    images,
    seals,
    adoptions,
    divergences,
    fencings,
    discontinuities,
    lost_requests,
    lost_answers,
    late_effects,
    doubled,
    standbys,
    closes,
    wal_restarts,
    left_out,
    unproved_bases,
    lagging_lists,
    further_images,
    days,
    prunings,
    mergers,
    spans,
    deleted,
    strays,
    out_of_the_window,
);

/// An acknowledged transaction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ack {
    pub(super) generation: u64,
    pub(super) txid: u64,
    pub(super) state: StateId,
    pub(super) machine: usize,
    pub(super) at: SystemTime,
}

pub(super) struct Sim {
    pub(super) rng: Mutex<Rng>,
    product: Mutex<Rng>,
    pub(super) model: Mutex<Model>,
    /// What the next commits do, where that is not left to chance.
    pub(super) changes: Mutex<VecDeque<Change>>,
    pub(super) sky: Mutex<Sky>,
    pub(super) counts: Mutex<Counts>,
    pub(super) acks: Mutex<BTreeMap<(u64, u64), Ack>>,
    /// Bases of databases that could not be proved to follow from what they were asked for.
    pub(super) unproved: Mutex<Vec<StateId>>,
    /// Whose history the replica has.
    database: Mutex<Option<StateId>>,
    last_acking: Mutex<Option<usize>>,
    /// By inode: what is on the disk whatever happens.
    synced: Mutex<BTreeMap<u64, Vec<u8>>>,
    violation: Mutex<Option<String>>,
    started: Instant,
    /// Time in which nothing happened, and every machine slept.
    slept: Mutex<Duration>,
    /// How far the window reaches back, if anything is ever deleted.
    pub(super) retention: Option<Duration>,
    pub(super) traced: bool,
    /// At the end all that can be restored is restored, not a few.
    pub(super) is_thorough: bool,
}

impl Sim {
    pub(super) fn new(seed: u64, page_size: PageSize, (traced, is_thorough): (bool, bool)) -> Arc<Sim> {
        let mut rng = Rng::new(seed, 1);
        let sky = Sky::new(&mut rng);
        let hour = Duration::from_secs(60 * 60);
        let retention = [None, Some(hour), Some(20 * hour), Some(72 * hour)][rng.below(4) as usize];
        Arc::new(Sim {
            rng: Mutex::new(rng),
            product: Mutex::new(Rng::new(seed, 2)),
            model: Mutex::new(Model::new(page_size)),
            changes: Mutex::default(),
            sky: Mutex::new(sky),
            counts: Mutex::default(),
            acks: Mutex::default(),
            unproved: Mutex::default(),
            database: Mutex::default(),
            last_acking: Mutex::default(),
            synced: Mutex::default(),
            violation: Mutex::default(),
            started: Instant::now(),
            slept: Mutex::default(),
            retention,
            traced,
            is_thorough,
        })
    }

    pub(super) fn rng(&self) -> MutexGuard<'_, Rng> {
        self.rng.lock().unwrap()
    }

    /// From here on chance goes another way.
    pub(super) fn reseed(&self, seed: u64) {
        *self.rng() = Rng::new(seed, 4);
    }

    /// A database of its own.
    pub(super) fn found(&self) -> StateId {
        self.add(None)
    }

    /// The state after one more commit.
    pub(super) fn commit(&self, parent: StateId) -> StateId {
        self.add(Some(parent))
    }

    fn add(&self, parent: Option<StateId>) -> StateId {
        let given = self.changes.lock().unwrap().pop_front();
        let mut model = self.model.lock().unwrap();
        let before = parent.map_or(1, |parent| model.pages(parent));
        let change = given.unwrap_or_else(|| Change::drawn(&mut self.rng(), before));
        model.add(parent, &change)
    }

    pub(super) fn wall_clock(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30) + self.started.elapsed() + *self.slept.lock().unwrap()
    }

    /// All sleep for so long, but for the store.
    pub(super) fn sleep(&self, time: Duration) {
        self.trace(|| format!("all sleep for {time:?}"));
        self.count(|counts| counts.days += 1);
        *self.slept.lock().unwrap() += time;
        self.sky.lock().unwrap().list_all();
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap());
    }

    pub(super) fn trace(&self, what: impl FnOnce() -> String) {
        if self.traced {
            eprintln!("{:>10.3} {}", self.started.elapsed().as_secs_f64(), what());
        }
    }

    /// A promise was broken. The first one counts.
    pub(super) fn violated(&self, what: String) {
        self.trace(|| format!("VIOLATION: {what}"));
        self.violation.lock().unwrap().get_or_insert(what);
    }

    pub(super) fn violation(&self) -> Option<String> {
        self.violation.lock().unwrap().clone()
    }

    /// Somebody was told that this is safe.
    pub(super) fn acknowledged(&self, ack: Ack) {
        let Ack {
            generation,
            txid,
            state,
            machine,
            ..
        } = ack;
        self.trace(|| {
            format!("machine {machine}: generation {generation} transaction {txid} (state {state}) acknowledged")
        });
        self.count(|counts| counts.acknowledged += 1);
        let before = self.last_acking.lock().unwrap().replace(machine);
        if before.is_some_and(|before| before != machine) {
            self.count(|counts| counts.takeovers += 1);
        }
        let root = self.model.lock().unwrap().root(state);
        let others = *self.database.lock().unwrap().get_or_insert(root) != root;
        if others {
            self.violated(format!(
                "generation {generation} is another database's than what was acknowledged before"
            ));
        }
        // Whoever acknowledges again what was there does not make it any younger.
        let first = *self.acks.lock().unwrap().entry((generation, txid)).or_insert(ack);
        if first.state != state {
            self.violated(format!(
                "transaction {txid} of generation {generation} was acknowledged twice: state {} to machine {}, state {state} to machine {machine}",
                first.state, first.machine
            ));
        }
        let missing = self.sky.lock().unwrap().missing(generation, txid);
        if let Some(missing) = missing {
            self.violated(format!(
                "transaction {txid} of generation {generation} was acknowledged, and the store has no {missing}"
            ));
        }
    }

    /// Somebody who waited was told that this, which the machine had committed before, is safe.
    pub(super) fn confirmed(&self, machine: usize, state: StateId) {
        self.trace(|| format!("machine {machine}: state {state} is confirmed"));
        self.count(|counts| counts.confirmed += 1);
        let model = self.model.lock().unwrap();
        let is_safe = self
            .acks
            .lock()
            .unwrap()
            .values()
            .any(|ack| model.follows(ack.state, state));
        drop(model);
        if !is_safe {
            self.violated(format!(
                "machine {machine} was told that state {state} is in the store, and nothing that has it was acknowledged"
            ));
        }
    }

    /// The power goes: of what was not synced each slot may be there, or not, or half of it.
    pub(super) fn lose_power(&self, state_file: &std::path::Path) {
        let Ok(file) = File::options().read(true).write(true).open(state_file) else {
            return;
        };
        let mut now = read_all(&file);
        let inode = file.metadata().unwrap().ino();
        let old = self.synced.lock().unwrap().get(&inode).cloned().unwrap_or_default();
        now.resize(2 * STATE_SLOT_BYTES, 0);
        let mut old = old;
        old.resize(2 * STATE_SLOT_BYTES, 0);
        for slot in 0..2 {
            let slot = slot * STATE_SLOT_BYTES..(slot + 1) * STATE_SLOT_BYTES;
            if now[slot.clone()] == old[slot.clone()] {
                continue;
            }
            let choice = self.rng().below(4);
            let sectors = self.rng().below(8);
            let kept = match choice {
                0 => 0,
                1 => sectors as usize * 512,
                _ => STATE_SLOT_BYTES,
            };
            if kept < STATE_SLOT_BYTES {
                self.count(|counts| counts.torn_states += 1);
            }
            now[slot.start + kept..slot.end].copy_from_slice(&old[slot.start + kept..slot.end]);
        }
        file.write_all_at(&now, 0).unwrap();
        self.synced.lock().unwrap().insert(inode, now);
    }

    fn note_synced(&self, file: &File) {
        let inode = file.metadata().unwrap().ino();
        self.synced.lock().unwrap().insert(inode, read_all(file));
    }

    /// What the program tells people.
    fn heard(&self, message: &str) {
        self.trace(|| format!("    {message}"));
        self.count(|counts| {
            let hears = |text: &str, count: &mut u64| *count += u64::from(message.contains(text));
            hears("is what an earlier process uploaded", &mut counts.adoptions);
            hears("it has diverged", &mut counts.divergences);
            hears("a generation began", &mut counts.generations);
            hears("another writer continues the history", &mut counts.fencings);
            hears("another process replicates it", &mut counts.standbys);
        });
        if message.contains("a bug in replvfs") || message.contains("panicked") {
            self.violated(message.to_owned());
        }
    }
}

fn read_all(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; 2 * STATE_SLOT_BYTES];
    let mut len = 0;
    while let Ok(read @ 1..) = file.read_at(&mut bytes[len..], len as u64) {
        len += read;
    }
    bytes.truncate(len);
    bytes
}

/// The world as the product sees it.
pub(super) struct Outside(pub(super) Arc<Sim>);

impl simulated::World for Outside {
    fn wall_clock(&self) -> SystemTime {
        self.0.wall_clock()
    }

    fn random(&self, bytes: &mut [u8]) {
        let mut rng = self.0.product.lock().unwrap();
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&rng.next().to_le_bytes()[..part.len()]);
        }
    }

    fn synced(&self, file: &File) {
        self.0.note_synced(file);
    }
}

thread_local! {
    static HEARS: RefCell<Option<Arc<Sim>>> = const { RefCell::new(None) };
}

/// From here on this thread is in that world, or in none.
pub(super) fn enter(sim: Option<&Arc<Sim>>) {
    simulated::set_world(sim.map(|sim| Rc::new(Outside(Arc::clone(sim))) as Rc<dyn simulated::World>));
    HEARS.set(sim.cloned());
}

/// Hears what the program says, on whichever thread.
pub(super) struct Ear;

impl tracing::Subscriber for Ear {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO && metadata.target().starts_with("replvfs")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        if let Some(sim) = HEARS.with_borrow(Option::clone) {
            sim.heard(&message.0);
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

struct Message(String);

impl tracing::field::Visit for Message {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
