//! A process that has a database open and does what it is told: this test program once more, which runs the test `process`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use replvfs_tests::{flush, open, status};
use rusqlite::Connection;
use rusqlite::types::Value;

const URI: &str = "REPLVFS_TEST_BEHIND";
const ANSWER: &str = "answer: ";

/// In the child: a line is a statement, or one of the words below.
pub(crate) fn run() {
    let Ok(uri) = std::env::var(URI) else { return };
    let say = |text: &str| println!("\n{ANSWER}{}", text.replace('\n', " "));
    let connection = if uri.contains("vfs=replvfs") {
        open(&uri)
    } else {
        Connection::open(&uri)
    };
    let connection = match connection {
        Ok(connection) => connection,
        Err(error) => {
            let why = replvfs_vfs::shim::last_open_error();
            return say(&format!("refused: {error}: {}", why.unwrap_or_default()));
        }
    };
    say("open");
    for line in std::io::stdin().lines() {
        match line.unwrap().as_str() {
            "flush" => {
                flush(&connection);
                say("flushed");
            }
            "status" => say(&status(&connection).to_string()),
            sql => say(&first_value(&connection, sql)),
        }
    }
}

/// Of its first row; or the error.
fn first_value(connection: &Connection, sql: &str) -> String {
    let value = connection.prepare(sql).and_then(|mut statement| {
        let mut rows = statement.query([])?;
        let first = rows.next()?.map(|row| row.get::<_, Value>(0)).transpose()?;
        while rows.next()?.is_some() {}
        Ok(first)
    });
    match value {
        Ok(Some(Value::Integer(number))) => number.to_string(),
        Ok(Some(Value::Text(text))) => text,
        Ok(Some(other)) => format!("{other:?}"),
        Ok(None) => String::new(),
        Err(error) => format!("error: {error}"),
    }
}

/// Seen from the test. Dropped, it is killed.
pub(crate) struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// Not waited for.
    pub(crate) fn start(uri: &str) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process", "--nocapture", "--quiet"])
            .env(URI, uri)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Process {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    pub(crate) fn open(uri: &str) -> Process {
        let mut process = Process::start(uri);
        assert_eq!(process.answer(), "open");
        process
    }

    /// Why it cannot open the database.
    pub(crate) fn refused(uri: &str) -> String {
        let answer = Process::start(uri).answer();
        let why = answer.strip_prefix("refused: ");
        why.unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "it died");
            if let Some(answer) = line.trim_end_matches('\n').strip_prefix(ANSWER) {
                return answer.to_owned();
            }
        }
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
        self.answer()
    }

    /// What must not fail.
    pub(crate) fn tell(&mut self, line: &str) {
        let answer = self.ask(line);
        assert!(!answer.starts_with("error"), "{line}: {answer}");
    }

    pub(crate) fn status(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.ask("status")).unwrap()
    }

    /// Its history is the one that it found.
    pub(crate) fn has_gone_on(&mut self) {
        let status = self.status();
        assert_eq!(
            (&status["diverged"], &status["discontinuities"]),
            (&false.into(), &0.into()),
            "{status}"
        );
    }

    /// In order.
    pub(crate) fn end(mut self) {
        self.stdin = None;
        assert!(self.child.wait().unwrap().success());
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
