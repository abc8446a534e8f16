//! What is done to a database while something fails. Every content is the same in every run, so that files can be compared.

/// One step.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// Opens connection 0 or 1.
    Open(usize),
    Close(usize),
    /// One statement.
    Sql(usize, &'static str),
}

/// A database's life.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Script {
    pub(crate) name: &'static str,
    /// `PRAGMA journal_mode`.
    pub(crate) journal_mode: &'static str,
    /// `PRAGMA locking_mode=EXCLUSIVE` before the journal mode is set: no shared memory.
    pub(crate) exclusive: bool,
    /// So many of its faults are tried, unless somebody says how many; 0 for all.
    pub(crate) faults: usize,
    /// Done before anything fails.
    pub(crate) before: &'static [&'static str],
    pub(crate) steps: &'static [Step],
}

use Step::{Close, Open, Sql};

const TABLE: &[&str] = &[
    "CREATE TABLE t(a INTEGER PRIMARY KEY, b)",
    "CREATE INDEX i ON t(b)",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 12) INSERT INTO t(b) SELECT printf('%.*c', 200, 'a') || i FROM n",
];

const BEGINNING: &[Step] = &[
    Open(0),
    Sql(0, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)"),
    Sql(0, "INSERT INTO t(b) VALUES('one')"),
    Sql(0, "SELECT * FROM t"),
    Close(0),
    Open(0),
    Sql(0, "SELECT * FROM t"),
    Sql(0, "INSERT INTO t(b) VALUES('two')"),
    Close(0),
];

const TRANSACTIONS: &[Step] = &[
    Open(0),
    Sql(0, "PRAGMA synchronous=FULL"),
    Sql(0, "PRAGMA cache_size=2"),
    Sql(0, "BEGIN"),
    Sql(
        0,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 9) INSERT INTO t(b) SELECT printf('%.*c', 300, 'b') || i FROM n",
    ),
    Sql(0, "SAVEPOINT s"),
    Sql(0, "UPDATE t SET b = b || 'c' WHERE a % 4 = 0"),
    Sql(0, "ROLLBACK TO s"),
    Sql(0, "INSERT INTO t(b) VALUES('d')"),
    Sql(0, "COMMIT"),
    // A commit of nothing, perhaps after one that failed.
    Sql(0, "BEGIN IMMEDIATE"),
    Sql(0, "COMMIT"),
    Sql(0, "BEGIN"),
    Sql(0, "DELETE FROM t WHERE a % 3 = 0"),
    Sql(0, "ROLLBACK"),
    Sql(0, "INSERT INTO t(b) VALUES('e')"),
    Sql(0, "SELECT count(*), sum(length(b)) FROM t"),
];

const CHECKPOINTS: &[Step] = &[
    Open(0),
    Sql(0, "PRAGMA wal_autocheckpoint=6"),
    Sql(0, "INSERT INTO t(b) VALUES('one')"),
    Sql(0, "INSERT INTO t(b) VALUES('two')"),
    Sql(0, "INSERT INTO t(b) VALUES('three')"),
    Sql(0, "PRAGMA wal_checkpoint(PASSIVE)"),
    Sql(0, "INSERT INTO t(b) VALUES('four')"),
    Sql(0, "PRAGMA wal_checkpoint(FULL)"),
    Sql(0, "PRAGMA wal_checkpoint(RESTART)"),
    Sql(0, "INSERT INTO t(b) VALUES('five')"),
    Sql(0, "BEGIN IMMEDIATE"),
    Sql(0, "COMMIT"),
    Sql(0, "PRAGMA wal_checkpoint(TRUNCATE)"),
    Sql(0, "INSERT INTO t(b) VALUES('six')"),
    Sql(0, "PRAGMA journal_size_limit=0"),
    Sql(0, "INSERT INTO t(b) VALUES('seven')"),
    Close(0),
    Open(0),
    Sql(0, "SELECT count(*) FROM t"),
];

const TWO_CONNECTIONS: &[Step] = &[
    Open(0),
    Open(1),
    Sql(0, "INSERT INTO t(b) VALUES('one')"),
    Sql(1, "BEGIN"),
    Sql(1, "SELECT count(*) FROM t"),
    Sql(0, "INSERT INTO t(b) VALUES('two')"),
    Sql(0, "PRAGMA wal_checkpoint(TRUNCATE)"),
    Sql(1, "INSERT INTO t(b) VALUES('too late')"),
    Sql(1, "ROLLBACK"),
    Sql(1, "INSERT INTO t(b) VALUES('three')"),
    Close(0),
    Sql(1, "INSERT INTO t(b) VALUES('four')"),
    Open(0),
    Sql(0, "PRAGMA wal_checkpoint(TRUNCATE)"),
    Sql(0, "INSERT INTO t(b) VALUES('five')"),
    Sql(1, "SELECT count(*) FROM t"),
    Close(1),
    Close(0),
];

const VACUUM: &[Step] = &[
    Open(0),
    Sql(0, "DELETE FROM t WHERE a % 2 = 0"),
    Sql(0, "VACUUM"),
    Sql(0, "INSERT INTO t(b) VALUES('one')"),
    Close(0),
    Open(0),
    Sql(0, "UPDATE t SET b = 'x' || b WHERE a < 4"),
    Sql(0, "PRAGMA wal_checkpoint(TRUNCATE)"),
    Sql(0, "VACUUM"),
    Close(0),
];

/// Transactions and a database past what is kept, or read, at once: replvfs goes to the files from threads of its own.
const LARGE: &[Step] = &[
    Open(0),
    Open(1),
    Sql(0, "INSERT INTO t(b) VALUES('one')"),
    Sql(0, "UPDATE t SET b = b || 'y' WHERE a > 8"),
    Sql(1, "SELECT count(*) FROM t"),
    Sql(0, "PRAGMA cache_size=10"),
    Sql(0, "UPDATE t SET b = b || 'z' WHERE a > 8"),
    Close(1),
    Close(0),
    Open(0),
    Sql(0, "DELETE FROM t WHERE a = 9"),
    Sql(0, "UPDATE t SET b = b || 'w' WHERE a > 8"),
];

const LARGE_TABLE: &[&str] = &[
    "CREATE TABLE t(a INTEGER PRIMARY KEY, b)",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 30) INSERT INTO t(b) SELECT printf('%.*c', 40000, 'a') || i FROM n",
];

const fn shared(name: &'static str, faults: usize, before: &'static [&'static str], steps: &'static [Step]) -> Script {
    Script {
        name,
        journal_mode: "wal",
        exclusive: false,
        faults,
        before,
        steps,
    }
}

const fn exclusive(
    name: &'static str,
    faults: usize,
    before: &'static [&'static str],
    steps: &'static [Step],
) -> Script {
    Script {
        exclusive: true,
        ..shared(name, faults, before, steps)
    }
}

/// All of them.
pub(crate) const SCRIPTS: &[Script] = &[
    shared("beginning", 0, &[], BEGINNING),
    shared("transactions", 350, TABLE, TRANSACTIONS),
    shared("checkpoints", 350, TABLE, CHECKPOINTS),
    shared("two_connections", 350, TABLE, TWO_CONNECTIONS),
    shared("vacuum", 250, TABLE, VACUUM),
    shared("large", 100, LARGE_TABLE, LARGE),
    exclusive("exclusive_beginning", 0, &[], BEGINNING),
    exclusive("exclusive_transactions", 350, TABLE, TRANSACTIONS),
    exclusive("exclusive_checkpoints", 350, TABLE, CHECKPOINTS),
    exclusive("exclusive_vacuum", 250, TABLE, VACUUM),
];

pub(crate) fn script(name: &str) -> &'static Script {
    SCRIPTS
        .iter()
        .find(|script| script.name == name)
        .unwrap_or_else(|| panic!("there is no script {name}"))
}
