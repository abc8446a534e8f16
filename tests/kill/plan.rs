//! What is drawn from the seed: how the writers of a round are set up, and when they are killed.

pub(crate) use replvfs_tests::Rng;
use serde_json::json;

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
        let turns = match rng.below(3) {
            0 => 0,
            _ => 1 << rng.below(21),
        };
        Kill { when, turns }
    }

    fn draw(rng: &mut Rng, steps: u64) -> Kill {
        let phase = rng.of(&[
            "opening",
            "begin",
            "commit",
            "commit",
            "checkpoint",
            "flush",
            "flush",
            "close",
            "close",
        ]);
        let when = match rng.below(12) {
            0 => When::Never,
            1 => When::AtOnce,
            2..6 => When::Lines(1 + rng.below(4 * steps)),
            // In the end every writer closes; every other phase it passes through often.
            _ => When::Phase(phase, 1 + rng.below(2)),
        };
        Kill::new(rng, when)
    }

    /// Only after it said that its transaction is in the replica.
    pub(crate) fn after_the_flush(rng: &mut Rng) -> Kill {
        let when = if rng.one_in(2) {
            When::Phase("flushed", 1)
        } else {
            When::Never
        };
        Kill::new(rng, when)
    }
}

/// One writer of a round.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) id: i64,
    /// Without replvfs.
    pub(crate) plain: bool,
    /// Before anything else, before the schema is looked at; the wal-index of an exclusive one is then on the heap.
    pub(crate) pragmas: Vec<String>,
    pub(crate) parameters: String,
    pub(crate) seed: u64,
    pub(crate) steps: u64,
    pub(crate) kill: Kill,
}

/// The writer that ends a round, and makes the database if it is the first.
pub(crate) const LAST_WRITER: i64 = 9;

impl Writer {
    fn draw(rng: &mut Rng, id: i64, exclusive: bool, plain: bool) -> Writer {
        let mut pragmas = vec![
            format!("PRAGMA synchronous = {}", rng.of(&["NORMAL", "NORMAL", "FULL"])),
            format!("PRAGMA cache_size = {}", rng.of(&[8, 2000])),
            format!("PRAGMA wal_autocheckpoint = {}", rng.of(&[1000, 1000, 20, 0])),
        ];
        if exclusive && rng.one_in(2) {
            pragmas.insert(0, "PRAGMA locking_mode = EXCLUSIVE".to_owned());
        } else if exclusive {
            pragmas
                .extend(["SELECT count(*) FROM sqlite_schema", "PRAGMA locking_mode = EXCLUSIVE"].map(str::to_owned));
        }
        let parameters = format!(
            "&timeout=5s&flush_interval={}&segment_size={}",
            rng.of(&["10ms", "10ms", "1s"]),
            rng.of(&["64KiB", "4MiB"])
        );
        let steps = 4 + rng.below(28);
        Writer {
            id,
            plain,
            pragmas,
            parameters,
            seed: rng.next(),
            steps,
            kill: Kill::draw(rng, steps),
        }
    }

    /// The writers of a round. Only one that has the database to itself uses it exclusively; the first of them replicates in most rounds.
    pub(crate) fn of_a_round(rng: &mut Rng) -> Vec<Writer> {
        let count = 1 + rng.below(3).cast_signed();
        let exclusive = count == 1 && rng.one_in(2);
        let mut writers: Vec<Writer> = (0..count)
            .map(|id| {
                let plain = rng.one_in(if id == 0 { 8 } else { 2 });
                Writer::draw(rng, id, exclusive, plain)
            })
            .collect();
        if count > 1 && rng.one_in(3) {
            let lines = 1 + rng.below(60);
            let kill = Kill::new(rng, When::LinesOfAll(lines));
            writers.iter_mut().for_each(|writer| writer.kill = kill);
        }
        writers
    }

    pub(crate) fn last(rng: &mut Rng) -> Writer {
        let exclusive = rng.one_in(4);
        Writer {
            parameters: "&timeout=120s".to_owned(),
            steps: 0,
            kill: Kill::after_the_flush(rng),
            ..Writer::draw(rng, LAST_WRITER, exclusive, false)
        }
    }

    /// What its process is told.
    pub(crate) fn job(&self, uri: &str, page_size: u64) -> String {
        json!({
            "uri": uri, "id": self.id, "plain": self.plain, "pragmas": self.pragmas, "seed": self.seed, "steps": self.steps,
            "page_size": page_size,
        })
        .to_string()
    }
}
