//! Processes that are measured: what they take of the CPU and of memory, by what the kernel says of them.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use replvfs_tests::proc;

/// What a process has taken in all its life.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Seconds, of user and system.
    pub(crate) cpu: f64,
    /// In bytes.
    pub(crate) most_memory: u64,
    pub(crate) is_success: bool,
}

/// A process of ours. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    is_over: bool,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Process {
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Process { child, is_over: false }
    }

    /// Runs it to its end.
    pub(crate) fn run(command: &mut Command) -> Usage {
        Process::start(command).wait()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Seconds of CPU until now, to a hundredth.
    pub(crate) fn cpu(&self) -> f64 {
        proc::cpu(&self.id().to_string()).as_secs_f64()
    }

    /// What it has in memory now, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        proc::status(&self.id().to_string(), "VmRSS:") * 1024
    }

    /// SIGTERM, or another one.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        let id = libc::pid_t::try_from(self.id()).expect("a process");
        // SAFETY: a plain system call; the process has not been waited for, so the number is still its own.
        unsafe { libc::kill(id, signal) };
    }

    pub(crate) fn wait(mut self) -> Usage {
        let id = libc::pid_t::try_from(self.id()).expect("a process");
        let mut status = 0;
        // SAFETY: all zeros is a value of it.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both are ours, for the answer; the process is a child of ours that nobody has waited for.
        let waited = unsafe { libc::wait4(id, &raw mut status, 0, &raw mut usage) };
        assert_eq!(waited, id, "waiting for a process");
        self.is_over = true;
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        Usage {
            cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime),
            most_memory: u64::try_from(usage.ru_maxrss).expect("a size") * 1024,
            is_success: libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.is_over {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A child of this program that says lines, and goes on when it is told.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) process: Process,
    input: ChildStdin,
    pub(crate) output: BufReader<ChildStdout>,
}

impl Worker {
    pub(crate) fn start(words: &[String]) -> Worker {
        let mut command = Command::new(std::env::current_exe().expect("the program"));
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command);
        let input = process.child.stdin.take().expect("its input");
        let output = BufReader::new(process.child.stdout.take().expect("its output"));
        Worker { process, input, output }
    }

    /// What it says behind a word.
    pub(crate) fn expect(&mut self, word: &str) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        let rest = line.strip_prefix(word);
        rest.unwrap_or_else(|| panic!("{line:?} instead of {word}"))
            .trim()
            .to_owned()
    }

    pub(crate) fn go_on(&mut self) {
        writeln!(self.input, "GO").expect("it listens");
    }

    /// Lets it end by itself.
    pub(crate) fn end(self) -> Usage {
        let Worker {
            process,
            input,
            mut output,
        } = self;
        drop(input);
        let mut rest = Vec::new();
        output.read_to_end(&mut rest).expect("its end");
        let usage = process.wait();
        assert!(usage.is_success, "a child failed");
        usage
    }
}

/// How many processes ran in the last minute.
pub(crate) fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(0.0)
}
