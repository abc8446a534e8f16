//! What happens to a database and its replica: machines commit, die, lose power and network and take over from each other; segments are merged, images made,
//! and old ones deleted; and the store answers late, twice, or not at all. At the end each transaction that the store has is restored, by its number and by its
//! times, and must be just what was committed; whatever was told to be safe must be there; and `verify` has nothing to find.
//!
//! The world is the simulator's (`replicator/src/pipeline/simulator`), whose schedules chance makes. Here the bytes do: each step has its own luck, so that one is
//! left out, added or changed without the others becoming different ones. And the pages are real ones: of all sizes, growing and shrinking, spilled and written twice.

use arbitrary::Arbitrary;
use replvfs::format::CHUNK_BYTES;
use replvfs::testing::history::{self, Action, Change, Chore, Fill, Operation, Script, Step};
use replvfs_vfs::types::PageSize;

use crate::read;

/// What one execution may cost: so many steps, and so many bytes in a database.
const STEPS: usize = 24;
const DATABASE_BYTES: usize = CHUNK_BYTES + LARGER_BYTES;
/// What a large database may have beside its first chunk.
const LARGER_BYTES: usize = 256 << 10;

#[derive(Arbitrary, Debug)]
struct Input {
    weather: u16,
    page_size_log: u8,
    founded: Pages,
    steps: Vec<Did>,
}

#[derive(Arbitrary, Debug)]
struct Did {
    what: What,
    luck: u8,
    pause: u8,
    commit: Option<Pages>,
}

#[derive(Arbitrary, Debug)]
enum What {
    Commit(u8),
    CommitElsewhere(u8),
    StartOrOpen(u8),
    Kill(u8),
    LosePower(u8),
    PauseOrGoOn(u8),
    Cut(u8),
    Close(u8),
    RestartWal(u8),
    TakeSnapshot(u8),
    GoBack(u8),
    Restore(u8),
    Suspend(u8),
    HurryUp(u8),
    DaysPass,
    Prune,
    Merge,
    GiveUp,
    Look,
}

/// Of one commit.
#[derive(Arbitrary, Debug)]
struct Pages {
    count: u8,
    /// A database in more than one chunk, once in so many values: it costs what a hundred small ones do.
    large: u8,
    writes: Vec<(u8, Filled)>,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Filled {
    Byte(u8),
    Noise(u8),
    Own,
}

impl Pages {
    fn change(&self, page_size: usize) -> Change {
        // Few pages mostly, since each is compared with all that is restored.
        let count = usize::from(self.count);
        let (pages, scale) = match self.large % 64 {
            1 => (
                (CHUNK_BYTES + (count + 1) * (LARGER_BYTES / 256)).div_ceil(page_size),
                DATABASE_BYTES / 256 / page_size.min(DATABASE_BYTES / 256),
            ),
            _ => (count % 24, 1),
        };
        let fill = |fill| match fill {
            Filled::Byte(byte) => Fill::Byte(byte),
            Filled::Noise(seed) => Fill::Noise(seed.into()),
            Filled::Own => Fill::Own,
        };
        let pages = pages.clamp(1, DATABASE_BYTES / page_size);
        let writes = self.writes.iter().take(32);
        // A few of them behind the end.
        let writes = writes.map(|(page, with)| (usize::from(*page) * scale % (pages + 2), fill(*with)));
        Change {
            pages,
            writes: writes.collect(),
        }
    }
}

impl What {
    fn action(&self) -> Action {
        let (machine, operation) = match *self {
            What::Commit(machine) => (machine, Operation::Commit),
            What::CommitElsewhere(machine) => (machine, Operation::CommitElsewhere),
            What::StartOrOpen(machine) => (machine, Operation::StartOrOpen),
            What::Kill(machine) => (machine, Operation::Kill),
            What::LosePower(machine) => (machine, Operation::LosePower),
            What::PauseOrGoOn(machine) => (machine, Operation::PauseOrGoOn),
            What::Cut(machine) => (machine, Operation::Cut),
            What::Close(machine) => (machine, Operation::Close),
            What::RestartWal(machine) => (machine, Operation::RestartWal),
            What::TakeSnapshot(machine) => (machine, Operation::TakeSnapshot),
            What::GoBack(machine) => (machine, Operation::GoBack),
            What::Restore(machine) => (machine, Operation::Restore),
            What::Suspend(machine) => (machine, Operation::Suspend),
            What::HurryUp(machine) => (machine, Operation::HurryUp),
            What::DaysPass => return Action::Chore(Chore::DaysPass),
            What::Prune => return Action::Chore(Chore::Prune),
            What::Merge => return Action::Chore(Chore::Merge),
            What::GiveUp => return Action::Chore(Chore::GiveUp),
            What::Look => return Action::Look,
        };
        Action::Machine(machine.into(), operation)
    }
}

/// A history, as [`Input`]. With `REPLVFS_FUZZ_TRACE` set it is told on standard error.
pub fn run(data: &[u8]) {
    let Some(input) = read::<Input>(data) else { return };
    let page_size = PageSize::new(512 << (input.page_size_log % 8)).expect("a page size");
    let steps = input.steps.iter().take(STEPS).map(|did| Step {
        longest_ms: [5, 50, 500, 5_000, 60_000][usize::from(did.pause) % 5],
        luck: did.luck.into(),
        changes: did
            .commit
            .iter()
            .map(|pages| pages.change(page_size.as_usize()))
            .collect(),
        action: did.what.action(),
    });
    let script = Script {
        seed: input.weather.into(),
        page_size,
        founded: input.founded.change(page_size.as_usize()),
        steps: steps.collect(),
        traced: std::env::var_os("REPLVFS_FUZZ_TRACE").is_some(),
    };
    if let Some(broken) = history::run(&script) {
        panic!("{broken}");
    }
}
