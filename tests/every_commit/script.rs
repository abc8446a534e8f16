//! Random scripts: what an application may do to a database between two looks at it.

use proptest::collection::vec;
use proptest::prelude::*;

/// One step. Each is one statement in autocommit mode, or one transaction.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// A statement that commits by itself.
    Write(Write),
    /// `BEGIN … COMMIT` or `ROLLBACK`.
    Transaction {
        parts: Vec<Part>,
        commit: bool,
    },
    /// `PRAGMA wal_checkpoint(…)`.
    Checkpoint(&'static str),
    /// `PRAGMA …=…`.
    Setting(&'static str, i64),
    Vacuum,
    IncrementalVacuum(u8),
    /// `PRAGMA journal_mode=…`.
    JournalMode(&'static str),
    /// Go on with another connection.
    Switch(usize),
}

/// A part of a transaction.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    Write(Write),
    /// `SAVEPOINT`, the writes, then `ROLLBACK TO` or not, then `RELEASE`.
    Savepoint {
        writes: Vec<Write>,
        rollback: bool,
    },
}

/// A statement that changes something.
#[derive(Debug, Clone)]
pub(crate) enum Write {
    /// So many rows with blobs of up to so many bytes.
    Insert {
        rows: u8,
        bytes: u16,
    },
    /// One blob over many pages.
    InsertLarge {
        bytes: u32,
    },
    Update {
        modulus: u8,
        bytes: u16,
    },
    Delete {
        modulus: u8,
    },
    DeleteAll,
    CreateTable(u8),
    DropTable(u8),
    CreateIndex(u8),
    DropIndex(u8),
}

impl Write {
    /// As SQL; `seed` makes the content differ from step to step.
    pub(crate) fn sql(&self, seed: u64) -> String {
        match self {
            Write::Insert { rows, bytes } => format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < {rows}) \
                 INSERT INTO t(k, b) SELECT {seed} + i, randomblob(abs(random()) % {}) FROM n",
                u32::from(*bytes) + 1
            ),
            Write::InsertLarge { bytes } => format!("INSERT INTO t(k, b) VALUES({seed}, randomblob({bytes}))"),
            Write::Update { modulus, bytes } => {
                format!(
                    "UPDATE t SET b = randomblob({bytes}), k = {seed} WHERE a % {} = 0",
                    u32::from(*modulus) + 1
                )
            }
            Write::Delete { modulus } => format!("DELETE FROM t WHERE a % {} = 1", u32::from(*modulus) + 1),
            Write::DeleteAll => "DELETE FROM t".into(),
            Write::CreateTable(n) => format!("CREATE TABLE IF NOT EXISTS t{n} AS SELECT a, b FROM t LIMIT 20"),
            Write::DropTable(n) => format!("DROP TABLE IF EXISTS t{n}"),
            Write::CreateIndex(n) => format!("CREATE INDEX IF NOT EXISTS i{n} ON t(k, b)"),
            Write::DropIndex(n) => format!("DROP INDEX IF EXISTS i{n}"),
        }
    }
}

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        8 => (1..40_u8, 0..3000_u16).prop_map(|(rows, bytes)| Write::Insert { rows, bytes }),
        2 => (10_000..300_000_u32).prop_map(|bytes| Write::InsertLarge { bytes }),
        4 => (0..9_u8, 0..2000_u16).prop_map(|(modulus, bytes)| Write::Update { modulus, bytes }),
        3 => (0..5_u8).prop_map(|modulus| Write::Delete { modulus }),
        1 => Just(Write::DeleteAll),
        1 => (0..3_u8).prop_map(Write::CreateTable),
        1 => (0..3_u8).prop_map(Write::DropTable),
        1 => (0..2_u8).prop_map(Write::CreateIndex),
        1 => (0..2_u8).prop_map(Write::DropIndex),
    ]
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        3 => write().prop_map(Part::Write),
        1 => (vec(write(), 1..4), any::<bool>()).prop_map(|(writes, rollback)| Part::Savepoint { writes, rollback }),
    ]
}

fn setting() -> impl Strategy<Value = Step> {
    let synchronous = (0..4_i64).prop_map(|level| Step::Setting("synchronous", level));
    // A few pages, so that a transaction spills and rewrites its frames in place.
    let cache = prop_oneof![Just(2_i64), Just(10), Just(-2000)].prop_map(|size| Step::Setting("cache_size", size));
    let checkpoint =
        prop_oneof![Just(0_i64), Just(1), Just(20), Just(1000)].prop_map(|n| Step::Setting("wal_autocheckpoint", n));
    let limit = prop_oneof![Just(-1_i64), Just(0), Just(50_000)].prop_map(|n| Step::Setting("journal_size_limit", n));
    prop_oneof![synchronous, cache, checkpoint, limit]
}

fn step() -> impl Strategy<Value = Step> {
    let mode = prop_oneof![Just("PASSIVE"), Just("FULL"), Just("RESTART"), Just("TRUNCATE")];
    prop_oneof![
        10 => write().prop_map(Step::Write),
        8 => (vec(part(), 1..5), prop::bool::weighted(0.7))
            .prop_map(|(parts, commit)| Step::Transaction { parts, commit }),
        3 => mode.prop_map(Step::Checkpoint),
        4 => setting(),
        1 => Just(Step::Vacuum),
        1 => (1..20_u8).prop_map(Step::IncrementalVacuum),
        3 => (0..3_usize).prop_map(Step::Switch),
    ]
}

pub(crate) const JOURNAL_MODES: [&str; 6] = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF", "WAL"];

/// A script that changes the journal mode now and then.
pub(crate) fn script_in_all_modes(steps: usize) -> impl Strategy<Value = Vec<Step>> {
    let mode = prop::sample::select(&JOURNAL_MODES[..]).prop_map(Step::JournalMode);
    vec(prop_oneof![6 => step(), 1 => mode], 5..steps)
}

/// A script of up to `steps` steps.
pub(crate) fn script(steps: usize) -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 5..steps)
}
