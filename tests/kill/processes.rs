//! Starting the writers of a round, hearing them, and killing them when it is time. Nobody sleeps: kills follow from lines that
//! were said, and waiting ends with the pipes.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::child::JOB;
use crate::plan::{When, Writer};

/// Nothing that a writer does takes this long.
const SILENCE: Duration = Duration::from_secs(180);

/// A line that a writer said; `None` when its pipe ended.
type Said = (usize, Option<String>);

struct Process {
    child: Child,
    input: Option<ChildStdin>,
    writer: Writer,
    lines: u64,
    phases: BTreeMap<String, u64>,
    killed: bool,
    ended: bool,
}

impl Drop for Process {
    fn drop(&mut self) {
        // After a failed assertion nobody is left behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start(index: usize, writer: Writer, job: &str, said: &Sender<Said>) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "other_process", "--nocapture", "--quiet"])
            .env(JOB, job)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take(), child.stdout.take().unwrap());
        let said = said.clone();
        std::thread::spawn(move || {
            let (mut output, mut line) = (BufReader::new(output), String::new());
            // What the kill cut off is no report.
            while output.read_line(&mut line).is_ok() && line.ends_with('\n') {
                let _ = said.send((index, Some(line.trim_end().to_owned())));
                line.clear();
            }
            let _ = said.send((index, None));
        });
        Process {
            child,
            input,
            writer,
            lines: 0,
            phases: BTreeMap::new(),
            killed: false,
            ended: false,
        }
    }

    fn is_due(&self, lines_of_all: u64) -> bool {
        match self.writer.kill.when {
            When::Never => false,
            When::AtOnce => true,
            When::Lines(count) => self.lines >= count,
            When::Phase(phase, count) => self.phases.get(phase).is_some_and(|times| *times >= count),
            When::LinesOfAll(count) => lines_of_all >= count,
        }
    }

    fn kill_if_due(&mut self, lines_of_all: u64) {
        if self.killed || self.ended || !self.is_due(lines_of_all) {
            return;
        }
        for _ in 0..self.writer.kill.turns {
            std::hint::spin_loop();
        }
        self.child.kill().unwrap();
        self.killed = true;
    }

    /// Whether the kill came before its end.
    fn finish(&mut self) -> bool {
        let status = self.child.wait().unwrap();
        assert!(
            status.success() || (self.killed && status.code().is_none()),
            "{:?} ended with {status} after {:?}",
            self.writer,
            self.phases
        );
        !status.success()
    }
}

/// What was heard in a round.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// `writer:seq` of commits.
    pub(crate) done: Vec<(i64, i64)>,
    /// The same for what is in the replica.
    pub(crate) acked: Vec<(i64, i64)>,
    /// Writers that were killed, by the last phase that they announced.
    pub(crate) killed_in: Vec<String>,
    /// Flushes that were refused.
    pub(crate) refused: Vec<String>,
}

/// Runs the writers until each has ended or was killed.
pub(crate) fn run(writers: Vec<(Writer, String)>) -> Heard {
    let (sender, said) = channel();
    let mut processes: Vec<Process> = writers
        .into_iter()
        .enumerate()
        .map(|(index, (writer, job))| Process::start(index, writer, &job, &sender))
        .collect();
    drop(sender);
    for process in &mut processes {
        process.kill_if_due(0);
    }
    listen(&mut processes, &said)
}

fn listen(processes: &mut [Process], said: &Receiver<Said>) -> Heard {
    let mut heard = Heard::default();
    let mut lines_of_all = 0;
    let mut last = vec!["start".to_owned(); processes.len()];
    while processes.iter().any(|process| !process.ended) {
        let (index, line) = said.recv_timeout(SILENCE).expect("the writers have fallen silent");
        let process = &mut processes[index];
        let Some(line) = line else {
            process.ended = true;
            if process.finish() {
                heard.killed_in.push(last[index].clone());
            }
            continue;
        };
        let Some(line) = line.strip_prefix('@') else { continue };
        let (phase, rest) = line.split_once(' ').unwrap_or((line, ""));
        let commits = || rest.split(' ').filter_map(|commit| commit.split_once(':'));
        let numbers = || commits().map(|(writer, seq)| (writer.parse().unwrap(), seq.parse().unwrap()));
        match phase {
            "done" => heard.done.extend(numbers()),
            "acked" | "flushed" => heard.acked.extend(numbers()),
            "refused" => heard.refused.push(rest.to_owned()),
            _ => {}
        }
        process.lines += 1;
        *process.phases.entry(phase.to_owned()).or_default() += 1;
        phase.clone_into(&mut last[index]);
        lines_of_all += 1;
        for process in &mut *processes {
            process.kill_if_due(lines_of_all);
        }
        if phase == "flushed" {
            // The last writer waits for this; for the others it means nothing.
            drop(processes[index].input.take());
        }
    }
    heard
}
