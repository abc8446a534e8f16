//! What happened, to show that the soak had something to stand.

use std::collections::BTreeMap;
use std::fmt;

use crate::store::Outage;

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) databases: u64,
    pub(crate) lines: u64,
    pub(crate) started: u64,
    /// By journal mode.
    pub(crate) commits: BTreeMap<String, u64>,
    pub(crate) acknowledged: u64,
    pub(crate) killed_owners: u64,
    /// And those that had not said yet whether they replicate.
    pub(crate) killed_standbys: u64,
    pub(crate) killed_plain: u64,
    pub(crate) takeovers: u64,
    pub(crate) outages: BTreeMap<Outage, u64>,
    /// Flushes, by reason.
    pub(crate) refused: BTreeMap<String, u64>,
    pub(crate) restores: u64,
    pub(crate) generations: u64,
    /// In the stores.
    pub(crate) bytes: u64,
}

impl Counts {
    /// A soak without troubles shows nothing.
    pub(crate) fn are_enough(&self) -> bool {
        let wal = self.commits.get("wal").copied().unwrap_or(0);
        let rollback = self.commits.values().sum::<u64>() - wal;
        self.acknowledged >= 10
            && self.killed_owners >= 2
            && self.killed_standbys >= 1
            && self.killed_plain >= 1
            && self.takeovers >= 2
            && self.outages.len() == Outage::ALL.len()
            && wal >= 100
            && rollback >= 100
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let commits: u64 = self.commits.values().sum();
        let kills = self.killed_owners + self.killed_standbys + self.killed_plain;
        writeln!(
            f,
            "{} databases, {} writers started, {kills} killed: {} owners, {} standbys, {} without replvfs; {} takeovers",
            self.databases, self.started, self.killed_owners, self.killed_standbys, self.killed_plain, self.takeovers
        )?;
        writeln!(
            f,
            "{commits} commits: {:?}; {} times some were acknowledged",
            self.commits, self.acknowledged
        )?;
        writeln!(f, "outages: {:?}; flushes refused: {:?}", self.outages, self.refused)?;
        write!(
            f,
            "{} restores; {} generations, {} bytes in the stores",
            self.restores, self.generations, self.bytes
        )
    }
}
