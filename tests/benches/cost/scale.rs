//! Many databases in one process: most are open and do nothing, some are written. Each row is a process's own numbers, at that moment. The same without replvfs goes
//! before, since connections cost something, too.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use replvfs_tests::{Scratch, flush, open, proc, use_wal};
use rusqlite::Connection;

use replvfs_tests::s3::{self, Server};

/// The first argument of the process that has the databases.
pub(crate) const ROLE: &str = "--databases";
/// As long as it is looked at what they do.
const PERIOD: Duration = Duration::from_secs(30);
/// A busy one commits as often.
const PAUSE: Duration = Duration::from_millis(100);
const GROUPS: [&str; 2] = ["idle", "busy"];

pub(crate) fn measure(idle: u64, busy: u64) {
    let (server, scratch) = (Server::start(), Scratch::new());
    println!("{idle} idle databases and {busy} that commit 10 times a second, of one process; a connection each");
    println!("| | threads | descriptors | RSS | of it for each | CPU | requests, idle | requests, busy | time |");
    println!("|---|---|---|---|---|---|---|---|---|");
    // The second one finds databases and replicas.
    for how in ["plain", "new", "again"] {
        let status = Command::new(std::env::current_exe().expect("the program"))
            .args([
                ROLE,
                how,
                &server.address().to_string(),
                &idle.to_string(),
                &busy.to_string(),
            ])
            .arg(scratch.path())
            .status();
        assert!(status.expect("runs").success());
    }
}

struct Process {
    how: String,
    server: SocketAddr,
    databases: u64,
    at_start: u64,
}

/// What the kernel knows of this process.
struct Now {
    rss: u64,
    threads: u64,
    descriptors: usize,
    cpu: Duration,
}

fn now() -> Now {
    Now {
        rss: proc::status("self", "VmRSS:") * 1024,
        threads: proc::status("self", "Threads:"),
        descriptors: std::fs::read_dir("/proc/self/fd").expect("/proc").count() - 1,
        cpu: proc::cpu("self"),
    }
}

impl Process {
    fn requests(&self) -> [u64; 2] {
        GROUPS.map(|group| s3::counts(self.server, group).all())
    }

    /// Does it, and tells what it took, and what is there then.
    fn row<T>(&self, what: &str, work: impl FnOnce() -> T) -> T {
        let (before, requests, begun) = (now(), self.requests(), Instant::now());
        let done = work();
        let (took, after, asked) = (begun.elapsed(), now(), self.requests());
        println!(
            "| {}: {what} | {} | {} | {:.0} MiB | {:.0} KiB | {:.1?} | {} | {} | {took:.1?} |",
            self.how,
            after.threads,
            after.descriptors,
            after.rss as f64 / f64::from(1 << 20),
            after.rss.saturating_sub(self.at_start) as f64 / 1024.0 / self.databases as f64,
            after.cpu - before.cpu,
            asked[0] - requests[0],
            asked[1] - requests[1],
        );
        done
    }
}

/// The process that has them.
pub(crate) fn child(words: &[String]) {
    let number = |at: usize| words[at].parse::<u64>().expect("a number");
    let (how, idle, busy) = (words[0].as_str(), number(2), number(3));
    let is_plain = how == "plain";
    proc::raise_descriptors();
    let folder = std::path::Path::new(&words[4]).join(if is_plain { "plain" } else { "replicated" });
    std::fs::create_dir_all(&folder).expect("a folder");
    if !is_plain {
        replvfs_tests::register_as_it_comes();
    }
    let process = Process {
        how: how.to_owned(),
        server: words[1].parse().expect("an address"),
        databases: idle + busy,
        at_start: now().rss,
    };
    let uris: Vec<String> = (0..idle)
        .map(|n| (GROUPS[0], n))
        .chain((0..busy).map(|n| (GROUPS[1], n)))
        .map(|(group, n)| {
            let file = folder.join(format!("{group}{n}"));
            let replica = s3::replica(&words[1], group, &n.to_string());
            match is_plain {
                true => format!("file:{}", file.display()),
                false => format!("file:{}?vfs=replvfs&replica={replica}", file.display()),
            }
        })
        .collect();
    let mut slowest = Duration::ZERO;
    let connections: Vec<Connection> = process.row("opened, a row in each", || {
        let opened = uris.iter().map(|uri| {
            let begun = Instant::now();
            let connection = open(uri).expect("opens");
            use_wal(&connection);
            connection
                .execute_batch("CREATE TABLE IF NOT EXISTS t(a TEXT); INSERT INTO t VALUES ('a row')")
                .expect("writes");
            slowest = slowest.max(begun.elapsed());
            connection
        });
        opened.collect()
    });
    if !is_plain {
        println!("the slowest took {slowest:.1?}");
        process.row("all in their replicas", || connections.iter().for_each(flush));
    }
    process.row("nobody writes", || std::thread::sleep(PERIOD));
    process.row("the busy ones are written", || {
        write(&connections[usize::try_from(idle).expect("few")..])
    });
    if !is_plain {
        process.row("all in their replicas again", || connections.iter().for_each(flush));
    }
    process.row("closed", || drop(connections));
}

/// By one thread: it is the databases that are many.
fn write(connections: &[Connection]) {
    let begun = Instant::now();
    let mut next = begun;
    while begun.elapsed() < PERIOD {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        next += PAUSE;
        for connection in connections {
            connection
                .execute("INSERT INTO t VALUES ('another row')", [])
                .expect("writes");
        }
    }
}
