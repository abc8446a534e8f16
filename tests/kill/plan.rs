//! What is drawn from the seed: how the writers of a round are set up, and when they are killed.

pub(crate) use replvfs_tests::Rng;
use replvfs_tests::writers::{FIRST_STRICT, Job, Journal, LAST_WRITER, Level};

use crate::objects::Kind;

/// When a process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Never,
    /// Before it said anything.
    AtOnce,
    /// After it said so many lines.
    Lines(u64),
    /// After it announced this phase so many times.
    Phase(&'static str, u64),
    /// After all processes of the round together said so many lines.
    LinesOfAll(u64),
    /// As soon as it replicates the database, from the start or by taking over from another.
    Owner,
    /// When so many new objects of this kind are in the store, whoever has put them there.
    Object(Kind, u64),
}

/// A kill: the event that it follows, and how far into what comes after it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kill {
    pub(crate) when: When,
    /// Turns of an empty loop after the event, so that the kill does not always hit the beginning of a phase.
    pub(crate) turns: u64,
}

impl Kill {
    fn new(rng: &mut Rng, when: When) -> Kill {
        let turns = if rng.one_in(2) { 0 } else { 1 << rng.below(21) };
        Kill { when, turns }
    }

    fn draw(rng: &mut Rng, steps: u64, journal: Journal) -> Kill {
        let mut phases = vec![
            "opening", "begin", "commit", "commit", "flush", "flush", "close", "close", "rollback", "rollback",
        ];
        match journal {
            Journal::Wal => phases.extend(["checkpoint"; 4]),
            Journal::Switching => phases.extend(["switch"; 6]),
            Journal::Rollback => phases.extend(["commit"; 2]),
            Journal::Memory => {}
        }
        let phase = rng.of(&phases);
        let when = match rng.below(14) {
            0 => When::Never,
            1 => When::AtOnce,
            2..5 => When::Lines(1 + rng.below(4 * steps)),
            5..7 => When::object(rng),
            // In the end every writer closes; every other phase it passes through often.
            _ => When::Phase(phase, 1 + rng.below(2)),
        };
        Kill::new(rng, when)
    }

    /// The one that replicates is killed, and so is the next when it has taken over.
    fn of_an_owner(rng: &mut Rng) -> Kill {
        let when = if rng.one_in(5) { When::Never } else { When::Owner };
        let turns = match rng.below(3) {
            0 => 0,
            // What the new one has to do first takes longer than a phase: it asks the store.
            _ => 1 << rng.below(24),
        };
        Kill { when, turns }
    }

    /// Only after it said that its transaction is in the replica.
    fn after_the_flush(rng: &mut Rng) -> Kill {
        let when = if rng.one_in(2) {
            When::Phase("flushed", 1)
        } else {
            When::Never
        };
        Kill::new(rng, when)
    }
}

impl When {
    fn object(rng: &mut Rng) -> When {
        let kind = rng.of(&Kind::ALL);
        let count = match kind {
            Kind::Segment | Kind::Upload => 1 + rng.below(3),
            // There is rarely more than one in a round.
            Kind::Generation | Kind::Image | Kind::Chunk => 1,
        };
        When::Object(kind, count)
    }

    /// What the summary calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            When::Never => "never",
            When::AtOnce => "at once",
            When::Lines(_) => "lines",
            When::LinesOfAll(_) => "lines of all",
            When::Phase(phase, _) => phase,
            When::Owner => "owner",
            When::Object(kind, _) => kind.name(),
        }
    }
}

/// One writer of a round.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) job: Job,
    /// Of its URI.
    pub(crate) parameters: String,
    pub(crate) exclusive: bool,
    pub(crate) kill: Kill,
}

impl Writer {
    fn draw(rng: &mut Rng, id: i64, exclusive: bool, plain: bool, journal: Journal) -> Writer {
        let pragmas = Job::draw_pragmas(rng, exclusive);
        let parameters = format!(
            "&timeout=5s&flush_interval={}&segment_size={}",
            rng.of(&["10ms", "10ms", "1s"]),
            rng.of(&["64KiB", "4MiB"])
        );
        let steps = 4 + rng.below(28);
        let level = match rng.below(4) {
            // The last one may find a WAL that no image can be made beside, and makes the schema.
            _ if plain || id == LAST_WRITER => Level::Async,
            0 => Level::Remote,
            // Without a journal it is refused.
            1 if journal != Journal::Memory => Level::Strict,
            _ => Level::Async,
        };
        let job = Job {
            uri: String::new(),
            id: if level == Level::Strict { FIRST_STRICT + id } else { id },
            plain,
            level,
            pragmas,
            journal,
            mode: journal.mode(rng),
            seed: rng.next(),
            steps,
            until_owner: false,
            patient: false,
            page_size: 0,
            deletes_merged: true,
            log: String::new(),
        };
        let kill = Kill::draw(rng, steps, journal);
        Writer {
            job,
            parameters,
            exclusive,
            kill,
        }
    }

    /// The writers of a round. Only one that has the database to itself uses it exclusively; the first of them replicates in most rounds.
    pub(crate) fn of_a_round(rng: &mut Rng, journal: Journal) -> Vec<Writer> {
        if rng.one_in(6) {
            return Writer::of_a_relay(rng, journal);
        }
        let count = 1 + rng.below(3).cast_signed();
        let exclusive = count == 1 && rng.one_in(2);
        let mut writers: Vec<Writer> = (0..count)
            .map(|id| {
                let plain = rng.one_in(if id == 0 { 8 } else { 2 });
                Writer::draw(rng, id, exclusive, plain, journal)
            })
            .collect();
        if rng.one_in(4) {
            let when = When::object(rng);
            let kill = Kill::new(rng, when);
            writers.iter_mut().for_each(|writer| writer.kill = kill);
        } else if count > 1 && rng.one_in(3) {
            let lines = 1 + rng.below(60);
            let kill = Kill::new(rng, When::LinesOfAll(lines));
            writers.iter_mut().for_each(|writer| writer.kill = kill);
        }
        writers
    }

    /// Writers that take over from one another, each of them killed when it did; a plain one may go on beside them.
    fn of_a_relay(rng: &mut Rng, journal: Journal) -> Vec<Writer> {
        let replicating = 2 + rng.below(2).cast_signed();
        let mut writers: Vec<Writer> = (0..replicating)
            .map(|id| {
                let mut writer = Writer::draw(rng, id, false, false, journal);
                writer.job.until_owner = true;
                writer.job.steps = 1 + rng.below(8);
                writer.kill = Kill::of_an_owner(rng);
                writer
            })
            .collect();
        if replicating == 2 && rng.one_in(2) {
            writers.push(Writer::draw(rng, 2, false, true, journal));
        }
        writers
    }

    /// Whether its kill follows something that a history which goes on brings rarely.
    pub(crate) fn waits_for_a_generation(&self) -> bool {
        matches!(
            self.kill.when,
            When::Object(Kind::Generation | Kind::Image | Kind::Chunk, _)
        )
    }

    /// The writer after all others, which leaves the database in a mode for those of the next round.
    pub(crate) fn last(rng: &mut Rng, next: Journal) -> Writer {
        let exclusive = rng.one_in(4);
        let mut writer = Writer::draw(rng, LAST_WRITER, exclusive, false, next);
        writer.parameters = "&timeout=120s".to_owned();
        writer.job.mode = next.left_behind(rng);
        writer.kill = Kill::after_the_flush(rng);
        writer
    }
}

/// How the writers of a round keep what they overwrite.
pub(crate) fn journal(rng: &mut Rng) -> Journal {
    rng.of(&[
        Journal::Wal,
        Journal::Wal,
        Journal::Wal,
        Journal::Wal,
        Journal::Rollback,
        Journal::Rollback,
        Journal::Rollback,
        Journal::Switching,
        Journal::Switching,
        Journal::Memory,
    ])
}
