//! A further process of a test: the same program, told to run one of its tests as the process that is wanted.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Runs the test `other_process`, which does nothing but what its environment says, and speaks in lines. Dropped, it is killed.
#[derive(Debug)]
pub struct Peer {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts it, and waits until it says `ready`.
    pub fn start(environment: &[(&str, &OsStr)]) -> Peer {
        let mut process = Command::new(std::env::current_exe().expect("the test's own program"))
            .args(["--exact", "other_process", "--nocapture", "--quiet"])
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting another process");
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().expect("its output"));
        let mut peer = Peer { process, input, output };
        while peer.line() != "ready" {}
        peer
    }

    /// The next line that it says.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).expect("reading a line");
        assert_ne!(read, 0, "the other process has ended");
        line.trim_end().to_owned()
    }

    /// Says a line to it.
    pub fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("its input");
        writeln!(input, "{line}").expect("writing a line");
    }

    /// Tells it that there is no more, and waits until it has ended by itself.
    pub fn end(mut self) {
        drop(self.input.take());
        assert!(self.process.wait().expect("waiting for its end").success());
    }

    /// Ends it at once, and waits until it is gone.
    pub fn kill(mut self) {
        self.process.kill().expect("killing it");
        self.process.wait().expect("waiting for its end");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
