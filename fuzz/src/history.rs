//! What happens to a database and its replica: machines commit, die, lose power and network and take over from each other; segments are merged, images made,
//! and old ones deleted; and the store answers late, twice, or not at all. At the end each transaction that the store has is restored, by its number and by its
//! times, and must be just what was committed; whatever was told to be safe must be there; and `verify` has nothing to find.
//!
//! The world is the simulator's (`replicator/src/pipeline/simulator`), whose schedules chance makes. Here the bytes do: each step has its own luck, so that one is
//! left out, added or changed without the others becoming different ones. And the pages are real ones: of all sizes, growing and shrinking, spilled and written twice.
//!
//! So each step begins with the same few bytes, of which the first says what is done, as often as in a history that goes on: two bytes in five are commits. A byte more or
//! less then makes another history, and not one that ends at once, as most do whose machines commit as rarely as they lose their power.

use replvfs::format::CHUNK_BYTES;
use replvfs::testing::history::{self, Action, Change, Chore, Fill, Operation, Script, Step};
use replvfs_vfs::types::PageSize;

/// What one execution may cost: so many steps, and so many bytes in a database.
const STEPS: usize = 32;
const DATABASE_BYTES: usize = CHUNK_BYTES + LARGER_BYTES;
/// What a large database may have beside its first chunk: it costs what a hundred small ones do.
const LARGER_BYTES: usize = 256 << 10;

/// Gives out bytes, and zeros behind the last one.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// The weather, the size of the pages, what the database is at the beginning, and the steps.
    fn script(mut self) -> Script {
        let seed = u64::from(self.next()) | u64::from(self.next()) << 8;
        let page_size = PageSize::new(512 << (self.next() % 8)).expect("a page size");
        let founded = self.change(page_size.as_usize()).unwrap_or_default();
        let mut steps = Vec::new();
        while !self.0.is_empty() && steps.len() < STEPS {
            steps.push(self.step(page_size.as_usize()));
        }
        Script {
            seed,
            page_size,
            founded,
            steps,
            traced: std::env::var_os("REPLVFS_FUZZ_TRACE").is_some(),
        }
    }

    fn step(&mut self, page_size: usize) -> Step {
        let (what, machine) = (self.next(), self.next().into());
        Step {
            action: action(what, machine),
            luck: self.next().into(),
            longest_ms: [5, 50, 500, 5_000, 60_000][usize::from(self.next()) % 5],
            changes: self.change(page_size).into_iter().collect(),
        }
    }

    /// Of one commit; `None` where chance decides.
    fn change(&mut self, page_size: usize) -> Option<Change> {
        let how = usize::from(self.next());
        let (writes, count) = (how % 8, how / 8);
        // Few pages mostly, since each is compared with all that is restored.
        let (pages, scale) = match count {
            31 => (
                (CHUNK_BYTES + (writes + 1) * (LARGER_BYTES / 8)).div_ceil(page_size),
                (DATABASE_BYTES / 256).div_ceil(page_size),
            ),
            _ => (count.max(1), 1),
        };
        // A few of them behind the end.
        let mut write = || (usize::from(self.next()) * scale % (pages + 2), fill(self.next()));
        let writes: Vec<_> = (0..writes).map(|_| write()).collect();
        (how > 0).then_some(Change { pages, writes })
    }
}

fn fill(byte: u8) -> Fill {
    match byte {
        0..96 => Fill::Own,
        96..160 => Fill::Noise(byte.into()),
        _ => Fill::Byte(byte),
    }
}

fn action(what: u8, machine: usize) -> Action {
    let operation = match what {
        0..100 => Operation::Commit,
        100..114 => Operation::StartOrOpen,
        114..126 => Operation::Kill,
        126..134 => Operation::LosePower,
        134..148 => Operation::PauseOrGoOn,
        148..158 => Operation::Cut,
        158..168 => Operation::Close,
        168..178 => Operation::RestartWal,
        178..185 => Operation::TakeSnapshot,
        185..192 => Operation::GoBack,
        192..208 => Operation::Restore,
        208..214 => Operation::CommitElsewhere,
        214..217 => Operation::Suspend,
        217..222 => Operation::HurryUp,
        222..230 => return Action::Chore(Chore::DaysPass),
        230..237 => return Action::Chore(Chore::Prune),
        237..246 => return Action::Chore(Chore::Merge),
        246..249 => return Action::Chore(Chore::GiveUp),
        249.. => return Action::Look,
    };
    Action::Machine(machine, operation)
}

/// A history. With `REPLVFS_FUZZ_TRACE` set it is told on standard error.
pub fn run(data: &[u8]) {
    if let Some(broken) = history::run(&Bytes(data).script()) {
        panic!("{broken}");
    }
}
