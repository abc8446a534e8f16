//! What happened in the rounds, to show that the test does what it says, and does not quietly stop doing it.

use std::collections::BTreeMap;
use std::fmt;

use crate::objects::Kind;
use crate::round::Heard;

type Tally = BTreeMap<String, u64>;

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) rounds: u64,
    pub(crate) restores: u64,
    pub(crate) disks_lost: u64,
    /// The most spans that a replica had after a round, and the most of them whose first segment was deleted.
    pub(crate) merged: (u64, u64),
    /// Rounds after which a journal was there that the next one had to play back.
    pub(crate) hot_journals: u64,
    pub(crate) writers: u64,
    commits: u64,
    acknowledged: u64,
    /// Commits that waited, of processes that replicated the database, and of others.
    confirmed: (u64, u64),
    /// Commits that nobody saw before.
    confirmed_strictly: u64,
    kills: u64,
    /// By the event that they followed.
    by_event: Tally,
    /// By the last phase that the killed process announced.
    by_phase: Tally,
    /// By its journal mode.
    by_mode: Tally,
    /// By what else it was.
    by_process: Tally,
    /// Flushes, and commits that waited, that were refused, by reason.
    refused: Tally,
}

/// Rounds from which on every kind of kill must have happened.
const ENOUGH: u64 = 200;

fn add(tally: &mut Tally, name: &str) {
    *tally.entry(name.to_owned()).or_default() += 1;
}

impl Counts {
    pub(crate) fn heard(&mut self, heard: &Heard) {
        self.commits += heard.done.len() as u64;
        self.acknowledged += heard.acked.len() as u64;
        for confirmed in &heard.confirmed {
            match confirmed {
                (_, true) => self.confirmed_strictly += 1,
                (true, _) => self.confirmed.0 += 1,
                (false, _) => self.confirmed.1 += 1,
            }
        }
        for killed in &heard.killed {
            self.kills += 1;
            add(&mut self.by_event, killed.trigger);
            add(&mut self.by_phase, &killed.phase);
            add(&mut self.by_mode, &killed.mode);
            let process = match (killed.plain, killed.owner) {
                (true, _) => "plain",
                (false, true) => "owner",
                (false, false) => "not owner",
            };
            add(&mut self.by_process, process);
            if killed.exclusive {
                add(&mut self.by_process, "exclusive");
            }
        }
        if heard.killed.len() > 1 {
            add(&mut self.by_process, "rounds with several");
        }
        for reason in &heard.refused {
            // Up to what differs from one to the next: paths and numbers.
            let reason: String = reason
                .chars()
                .take_while(|char| !char.is_ascii_digit() && *char != '/')
                .collect();
            add(&mut self.refused, &reason);
        }
    }

    /// A harness that kills nobody, or in which nothing is acknowledged, would be green whatever happens; and so would one in which a kind of
    /// kill has died out. The kinds that are still missing after so many rounds; what few rounds cannot promise is not asked of them.
    pub(crate) fn missing(&self, rounds: u64) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if rounds < 60 {
            return missing;
        }
        if self.merged.0 == 0 {
            missing.push("segments that were merged");
        }
        let mut some = |tally: &Tally, names: &[&'static str]| {
            missing.extend(names.iter().filter(|name| !tally.contains_key(**name)));
        };
        some(&self.by_phase, &["begin", "commit", "close"]);
        some(&self.by_mode, &["wal", "delete", "truncate", "persist"]);
        if rounds >= ENOUGH {
            some(
                &self.by_phase,
                &["start", "opening", "checkpoint", "flush", "switch", "pause"],
            );
            some(&self.by_mode, &["memory", "off"]);
            some(
                &self.by_event,
                &["at once", "lines", "lines of all", "owner", "takeover"],
            );
            some(
                &self.by_event,
                &["opening", "begin", "commit", "rollback", "checkpoint", "switch"],
            );
            some(&self.by_event, &["flush", "close"]);
            some(&self.by_event, &Kind::ALL.map(Kind::name));
            some(
                &self.by_process,
                &["plain", "owner", "not owner", "exclusive", "rounds with several"],
            );
        }
        let enough = |least: u64| if rounds >= ENOUGH { 3 * least } else { least };
        let few = [
            (self.kills < enough(40), "kills"),
            (self.disks_lost < enough(1), "lost disks"),
            (self.commits < enough(100), "commits"),
            (self.acknowledged < enough(30), "acknowledgements"),
            (self.confirmed.0 < enough(10), "commits that wait"),
            (self.confirmed_strictly < enough(5), "commits that nobody sees before"),
            (
                rounds >= ENOUGH && self.confirmed.1 < 10,
                "commits that wait in a process that stands by",
            ),
            (rounds >= ENOUGH && self.hot_journals < 3, "hot journals"),
        ];
        missing.extend(few.iter().filter(|(few, _)| *few).map(|(_, what)| *what));
        missing
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} rounds, {} writers, {} killed; {} commits, {} times some were acknowledged, {:?} that waited in owners and others, {} that nobody saw before; {} hot journals; {} disks lost; {} restores; at most {} spans after a round, and {} without their segments",
            self.rounds,
            self.writers,
            self.kills,
            self.commits,
            self.acknowledged,
            self.confirmed,
            self.confirmed_strictly,
            self.hot_journals,
            self.disks_lost,
            self.restores,
            self.merged.0,
            self.merged.1
        )?;
        writeln!(f, "kills by event:    {:?}", self.by_event)?;
        writeln!(f, "kills by phase:    {:?}", self.by_phase)?;
        writeln!(f, "kills by mode:     {:?}", self.by_mode)?;
        writeln!(f, "kills by process:  {:?}", self.by_process)?;
        write!(f, "refused flushes:   {:?}", self.refused)
    }
}
