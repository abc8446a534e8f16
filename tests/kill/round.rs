//! The writers of one round: hearing them, and killing them when it is time. Nobody sleeps: kills follow from lines that
//! were said and from objects that appeared, and waiting ends with the pipes.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use replvfs_tests::writers::process::{Process, SILENCE, Said};
use replvfs_tests::writers::{Journal, LAST_WRITER, Level};

use crate::objects::Objects;
use crate::plan::{Kill, When, Writer};

/// How long nobody looks at the store when nobody says anything.
const LOOK: Duration = Duration::from_micros(200);

/// A process that was killed before its end.
#[derive(Debug)]
pub(crate) struct Killed {
    /// The event that it followed.
    pub(crate) trigger: &'static str,
    /// The last phase that it announced.
    pub(crate) phase: String,
    pub(crate) mode: String,
    pub(crate) exclusive: bool,
    pub(crate) plain: bool,
    pub(crate) owner: bool,
}

/// What was heard in a round.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// `writer:seq` of commits.
    pub(crate) done: Vec<(i64, i64)>,
    /// The same for what is in the replica.
    pub(crate) acked: Vec<(i64, i64)>,
    pub(crate) killed: Vec<Killed>,
    /// Commits that waited until they were in the replica: whether the process replicated it, and whether nobody saw them before.
    pub(crate) confirmed: Vec<(bool, bool)>,
    /// Flushes, and such commits, that were refused.
    pub(crate) refused: Vec<String>,
}

struct Runner {
    process: Process,
    exclusive: bool,
    kill: Kill,
    paused: bool,
    trigger: &'static str,
}

impl Runner {
    fn is_due(&self, lines_of_all: u64, objects: &Objects) -> bool {
        let heard = self.process.heard();
        let said = |phase: &str| heard.phases.get(phase).copied().unwrap_or(0);
        match self.kill.when {
            When::Never => false,
            When::AtOnce => true,
            When::Lines(count) => heard.lines >= count,
            When::Phase(phase, count) => said(phase) >= count,
            When::LinesOfAll(count) => lines_of_all >= count,
            When::Owner => said("owner") + said("takeover") > 0,
            When::Object(kind, count) => objects.new_ones(kind) >= count,
        }
    }

    fn kill_if_due(&mut self, lines_of_all: u64, objects: &Objects) {
        let job = self.process.job();
        // See `Journal::Memory`. The last writer is not of that mode, and not in a transaction when its kill is due.
        let only_in_a_pause = job.journal == Journal::Memory && job.id != LAST_WRITER;
        if !self.process.runs() || only_in_a_pause && !self.paused || !self.is_due(lines_of_all, objects) {
            return;
        }
        for _ in 0..self.kill.turns {
            std::hint::spin_loop();
        }
        self.trigger = match self.kill.when {
            When::Owner if self.process.heard().phases.contains_key("takeover") => "takeover",
            when => when.name(),
        };
        self.process.kill();
    }

    fn watches(&self) -> bool {
        self.process.runs() && matches!(self.kill.when, When::Object(..))
    }
}

/// Runs the writers until each has ended or was killed.
pub(crate) fn run(writers: Vec<Writer>, objects: &Objects) -> Heard {
    let (sender, said) = channel();
    let mut runners: Vec<Runner> = writers
        .into_iter()
        .enumerate()
        .map(|(index, writer)| Runner {
            process: Process::start(index, writer.job, &sender),
            exclusive: writer.exclusive,
            kill: writer.kill,
            paused: false,
            trigger: "never",
        })
        .collect();
    drop(sender);
    let (mut heard, mut lines_of_all, mut last_heard) = (Heard::default(), 0, Instant::now());
    loop {
        for runner in &mut runners {
            runner.kill_if_due(lines_of_all, objects);
        }
        for runner in runners.iter_mut().filter(|runner| runner.paused) {
            runner.paused = false;
            runner.process.go_on();
        }
        if runners.iter().all(|runner| runner.process.has_ended()) {
            return heard;
        }
        assert!(last_heard.elapsed() < SILENCE, "the writers have fallen silent");
        if let Some(said) = next(&said, &runners) {
            last_heard = Instant::now();
            lines_of_all += u64::from(said.1.is_some());
            take(&mut runners, said, &mut heard);
        }
    }
}

/// What somebody says; `None` when it is time to look at the store again.
fn next(said: &Receiver<Said>, runners: &[Runner]) -> Option<Said> {
    let watching = runners.iter().any(Runner::watches);
    match said.recv_timeout(if watching { LOOK } else { SILENCE }) {
        Ok(said) => Some(said),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => panic!("a writer has not said that it ended"),
    }
}

fn take(runners: &mut [Runner], (index, line): Said, heard: &mut Heard) {
    let runner = &mut runners[index];
    let process = &mut runner.process;
    let Some(line) = line else {
        if process.finish() {
            heard.killed.push(Killed {
                trigger: runner.trigger,
                phase: process.heard().last.clone(),
                mode: process.heard().mode.clone(),
                exclusive: runner.exclusive,
                plain: process.job().plain,
                owner: process.heard().owns,
            });
        }
        return;
    };
    let Some(line) = process.hear(&line) else { return };
    match line.phase.as_str() {
        "done" => heard.done.extend(line.commits()),
        "acked" => heard.acked.extend(line.commits()),
        "flushed" => {
            heard.acked.extend(line.commits());
            if process.job().id == LAST_WRITER {
                process.end();
            }
        }
        "confirmed" => {
            let is_strict = process.job().level == Level::Strict;
            heard.confirmed.push((process.heard().owns, is_strict));
        }
        "refused" | "unconfirmed" => heard.refused.push(line.rest),
        "pause" => runner.paused = true,
        _ => {}
    }
}
