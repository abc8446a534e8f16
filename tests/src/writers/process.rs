//! A writer's process from outside: starting it, what it has said, letting it go on or end, and killing it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::Job;
use super::child::JOB;

/// Nothing that a writer does takes this long.
pub const SILENCE: Duration = Duration::from_secs(180);

/// The number of a process, and a line that it said; `None` when its pipe ended.
pub type Said = (usize, Option<String>);

/// Something that a writer said, as the table of `child` has it.
#[derive(Debug)]
pub struct Line {
    /// The first word.
    pub phase: String,
    /// What comes behind it.
    pub rest: String,
}

impl Line {
    /// The commits that it reports, as `(writer, seq)`.
    ///
    /// # Panics
    ///
    /// When one is not of that form.
    pub fn commits(&self) -> Vec<(i64, i64)> {
        let pairs = self.rest.split(' ').filter_map(|commit| commit.split_once(':'));
        let number = |text: &str| text.parse().expect("a number");
        pairs.map(|(writer, seq)| (number(writer), number(seq))).collect()
    }
}

/// What a process has said so far.
#[derive(Debug)]
pub struct Heard {
    /// How many lines.
    pub lines: u64,
    /// How often each phase.
    pub phases: BTreeMap<String, u64>,
    /// The last phase.
    pub last: String,
    /// Its journal mode.
    pub mode: String,
    /// Whether it replicates the database.
    pub owns: bool,
}

/// A process that writes. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    input: Option<ChildStdin>,
    job: Job,
    heard: Heard,
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
    /// Runs the test `other_process` of this program, which has to call [`run_if_asked`](super::child::run_if_asked).
    ///
    /// # Panics
    ///
    /// When the system gives no process.
    pub fn start(index: usize, job: Job, said: &Sender<Said>) -> Process {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "other_process", "--nocapture", "--quiet"])
            .env(JOB, job.encode())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting a writer");
        let (input, output) = (child.stdin.take(), child.stdout.take().expect("a pipe"));
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
            job,
            heard: Heard {
                lines: 0,
                phases: BTreeMap::new(),
                last: "start".to_owned(),
                mode: "unknown".to_owned(),
                owns: false,
            },
            killed: false,
            ended: false,
        }
    }

    /// What it was told.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// What it said.
    pub fn heard(&self) -> &Heard {
        &self.heard
    }

    /// Takes in a line; `None` for what the test harness of the process says.
    pub fn hear(&mut self, line: &str) -> Option<Line> {
        let line = line.strip_prefix('@')?;
        let (phase, rest) = line.split_once(' ').unwrap_or((line, ""));
        self.heard.lines += 1;
        *self.heard.phases.entry(phase.to_owned()).or_default() += 1;
        phase.clone_into(&mut self.heard.last);
        match phase {
            "open" | "switched" => rest.clone_into(&mut self.heard.mode),
            "owner" | "takeover" => self.heard.owns = true,
            "standby" | "closed" => self.heard.owns = false,
            _ => {}
        }
        Some(Line {
            phase: phase.to_owned(),
            rest: rest.to_owned(),
        })
    }

    /// Answers a pause.
    pub fn go_on(&mut self) {
        if let Some(input) = &mut self.input {
            // It may have been killed meanwhile.
            let _ = writeln!(input);
        }
    }

    /// Tells it to come to its end.
    pub fn end(&mut self) {
        drop(self.input.take());
    }

    /// `kill -9`, if it has neither ended nor been killed.
    ///
    /// # Panics
    ///
    /// When the system refuses.
    pub fn kill(&mut self) {
        if self.runs() {
            self.child.kill().expect("killing a writer");
            self.killed = true;
        }
    }

    /// Whether its pipe is open and nobody has killed it.
    pub fn runs(&self) -> bool {
        !self.killed && !self.ended
    }

    /// Whether its pipe has ended.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Its pipe has ended. Returns whether the kill came before its end.
    ///
    /// # Panics
    ///
    /// When it failed.
    pub fn finish(&mut self) -> bool {
        self.ended = true;
        let status = self.child.wait().expect("waiting for a writer");
        assert!(
            status.success() || (self.killed && status.code().is_none()),
            "{:?} ended with {status} after {:?}",
            self.job,
            self.heard
        );
        !status.success()
    }
}
