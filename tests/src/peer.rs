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
        Peer::start_as("other_process", environment)
    }

    /// The same of the test `program`.
    pub fn start_program(environment: &[(&str, &OsStr)]) -> Peer {
        Peer::start_as("program", environment)
    }

    fn start_as(test: &str, environment: &[(&str, &OsStr)]) -> Peer {
        let mut process = Command::new(std::env::current_exe().expect("the test's own program"))
            .args(["--exact", test, "--nocapture", "--quiet"])
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

const URI: &str = "REPLVFS_TEST_OTHER_PROCESS";

/// A further process that runs SQL: its test `other_process` is [`run_sql`].
#[derive(Debug)]
pub struct SqlPeer(Peer);

const LOG: &str = ".log";

/// Runs SQL that it is sent line by line, and answers each line with `ok` or the error; `.log` with what SQLite's error log got since the last one. Does
/// nothing unless it was started by [`SqlPeer`].
pub fn run_sql() {
    let Ok(uri) = std::env::var(URI) else { return };
    crate::sqlite_log();
    let connection = crate::open(&uri).expect("opens");
    println!("\nready");
    for line in std::io::stdin().lines() {
        let line = line.expect("a line");
        if line == LOG {
            println!("{:?}", crate::sqlite_log());
            continue;
        }
        match connection.execute_batch(&line) {
            Ok(()) => println!("ok"),
            Err(error) => println!("{error}"),
        }
    }
}

impl SqlPeer {
    /// Starts it, with the database of that URI open.
    pub fn start(uri: &str) -> SqlPeer {
        SqlPeer::start_with(uri, &[])
    }

    /// What its SQLite's error log got since the last call, for a person.
    pub fn log(&mut self) -> String {
        self.0.tell(LOG);
        self.0.line()
    }

    /// The same in another environment.
    pub fn start_with(uri: &str, environment: &[(&str, &str)]) -> SqlPeer {
        let mut all: Vec<(&str, &OsStr)> = vec![(URI, uri.as_ref())];
        all.extend(environment.iter().map(|(name, value)| (*name, value.as_ref())));
        SqlPeer(Peer::start(&all))
    }

    /// Its answer.
    pub fn run(&mut self, sql: &str) -> String {
        self.0.tell(sql);
        self.0.line()
    }

    /// What has to succeed.
    pub fn sql(&mut self, sql: &str) {
        assert_eq!(self.run(sql), "ok", "{sql}");
    }

    /// Lets it close its connection and end.
    pub fn end(self) {
        self.0.end();
    }

    /// Ends it at once.
    pub fn kill(self) {
        self.0.kill();
    }

    /// Sends it a signal, by its name as `kill` takes it.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([name, &self.0.process.id().to_string()])
            .status();
        assert!(sent.expect("kill").success(), "{name}");
        // The thread that takes the signal stops the others: until it runs, they do.
        while name == "-STOP" && !self.is_stopped() {
            std::thread::yield_now();
        }
    }

    fn is_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.0.process.id())).expect("its threads");
        let mut states = threads.map(|thread| std::fs::read_to_string(thread.expect("a thread").path().join("stat")));
        // The state comes behind the name, which is in parentheses. A thread that has ended is none.
        states.all(|state| state.is_ok_and(|state| state.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
