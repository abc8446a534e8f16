//! What reading a replica without restoring it takes, when the store is 20 ms away: through `replvfs-remote`, through Litestream's VFS, and from a file on this
//! machine. The same database with the same commits behind it, the same statements, a real S3 server and a proxy before it that holds each request back, in turn, in
//! one run. Each session is a new process. Both follow what is new, and are as they come otherwise. The folder's README says what has to be installed.
//!
//! `cargo bench --bench remote_reads [-- MEBIBYTES [ROUNDS [COMMITS]]]`, by default 1024, 5 and 60. Times that are made of requests do not depend on what else the
//! machine does; others do.
#![allow(missing_docs)]

mod proxy;
mod server;
mod work;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proxy::{Proxy, Traffic};
use replvfs_tests::{flush, open, status};
use rusqlite::Connection;
use server::{BUCKET, Litestream, Server, credentials};
use work::{Peer, Session};

const DELAY: Duration = Duration::from_millis(20);

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    if let Some(("child", words)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return child(words);
    }
    let mut numbers = arguments.iter().filter_map(|word| word.parse().ok());
    let mebibytes = numbers.next().unwrap_or(1024);
    let rounds = numbers.next().unwrap_or(5);
    let commits = numbers.next().unwrap_or(60);
    measure(mebibytes, rounds, commits);
}

fn child(words: &[String]) {
    let number = |at: usize| words[at].parse::<u64>().expect("a number");
    match words[0].as_str() {
        "read" => {
            let session = Session::ALL[usize::try_from(number(1)).expect("small")];
            let extension = std::env::var_os("REPLVFS_BENCH_LOAD").map(PathBuf::from);
            work::read(session, &words[4], extension.as_deref(), number(2), number(3));
        }
        "write" => {
            let connection = Connection::open(&words[1]).expect("opens");
            work::write(&connection, number(2), number(3));
        }
        "replicate" => {
            let connection = open(&words[1]).expect("opens");
            connection
                .query_row("SELECT max(id) FROM orders", [], |_| Ok(()))
                .expect("a first look");
            flush(&connection);
            while status(&connection)["image"] != "stored" {
                std::thread::sleep(Duration::from_millis(10));
            }
            work::write(&connection, number(2), number(3));
            flush(&connection);
        }
        other => panic!("no child {other}"),
    }
}

fn program() -> PathBuf {
    std::env::current_exe().expect("the program")
}

fn replica(server: SocketAddr) -> String {
    format!("s3://{BUCKET}/replvfs?region=us-east-1%26endpoint=http://{server}")
}

/// The same database for each peer, and its replicas.
struct Place {
    folder: tempfile::TempDir,
    server: Server,
    litestream: Option<Litestream>,
    rows: u64,
}

impl Place {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn make(mebibytes: u64, commits: u64) -> Place {
        // Beside the program: the folder for temporary files may be in memory.
        let mut beside = program();
        beside.pop();
        let folder = tempfile::tempdir_in(beside).expect("a folder");
        let litestream = Litestream::find();
        let server = Server::start(folder.path());
        let rows = work::fill(&folder.path().join("file.db"), mebibytes);
        let place = Place {
            folder,
            server,
            litestream,
            rows,
        };
        for copy in ["replvfs.db", "litestream.db"] {
            std::fs::copy(place.file("file.db"), place.file(copy)).expect("a copy");
        }
        let words = format!("{rows} {commits}");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let database = place.file("file.db");
                run(Command::new(program()).args(["child", "write"]).arg(database), &words);
            });
            scope.spawn(|| {
                let address = place.server.address;
                let uri = format!(
                    "file:{}?vfs=replvfs&timeout=10m&replica={}",
                    place.file("replvfs.db").display(),
                    replica(address)
                );
                run(Command::new(program()).args(["child", "replicate", &uri]), &words);
            });
            scope.spawn(|| {
                let database = place.file("litestream.db");
                let writer = format!("{} child write {} {words}", program().display(), database.display());
                if let Some(litestream) = &place.litestream {
                    litestream.replicate(&database, place.server.address, &writer);
                }
            });
        });
        place
    }

    /// A process of its own, which has nothing in memory.
    fn session(&self, peer: Peer, session: Session, round: u64, proxy: &Proxy) -> Vec<Step> {
        let temporary = self.file("temporary");
        std::fs::create_dir_all(&temporary).expect("a folder");
        let number = Session::ALL.iter().position(|known| *known == session).expect("known");
        let uri = match peer {
            Peer::File => format!("file:{}", self.file("file.db").display()),
            Peer::Replvfs => format!(
                "file:app.db?vfs=replvfs-remote&follow=1s&replica={}",
                replica(proxy.address)
            ),
            Peer::Litestream | Peer::LitestreamHydrating => "file:app.db?vfs=litestream".to_owned(),
        };
        let mut command = Command::new(program());
        command
            .args(["child", "read", &number.to_string()])
            .args([self.rows.to_string(), round.to_string(), uri])
            .env("TMPDIR", &temporary);
        if let (Peer::Litestream | Peer::LitestreamHydrating, Some(litestream)) = (peer, &self.litestream) {
            command
                .env("REPLVFS_BENCH_LOAD", &litestream.extension)
                .env("LITESTREAM_REPLICA_URL", Litestream::url(proxy.address))
                .env("LITESTREAM_LOG_FILE", self.file("litestream.log"))
                .env(
                    "LITESTREAM_HYDRATION_ENABLED",
                    (peer == Peer::LitestreamHydrating).to_string(),
                );
        }
        let steps = speak(credentials(&mut command), session, proxy);
        // A hydrated copy may be left behind.
        std::fs::remove_dir_all(&temporary).expect("removing what is temporary");
        steps
    }
}

fn run(command: &mut Command, words: &str) {
    command.args(words.split(' '));
    let done = credentials(command).status().expect("starting a child");
    assert!(done.success(), "{command:?}");
}

/// What one step took.
#[derive(Clone, Copy)]
struct Step {
    seconds: f64,
    answer: i64,
    traffic: Traffic,
}

fn speak(command: &mut Command, session: Session, proxy: &Proxy) -> Vec<Step> {
    let mut process = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starting a child");
    let mut input = process.stdin.take().expect("its input");
    let mut lines = BufReader::new(process.stdout.take().expect("its output")).lines();
    let mut steps = Vec::new();
    for name in session.steps() {
        let before = proxy.traffic();
        writeln!(input).expect("it listens");
        let said = loop {
            let line = lines.next().unwrap_or_else(|| panic!("{name}: the child ended"));
            if let Some(said) = line.expect("a line").strip_prefix("STEP ") {
                break said.to_owned();
            }
        };
        let (micros, answer) = said.split_once(' ').expect("two numbers");
        steps.push(Step {
            seconds: micros.parse::<f64>().expect("a number") / 1e6,
            answer: answer.parse().expect("a number"),
            traffic: proxy.traffic() - before,
        });
    }
    drop(input);
    let ended = process.wait().expect("its end");
    assert!(ended.success(), "{session:?}: {ended}");
    steps
}

fn measure(mebibytes: u64, rounds: u64, commits: u64) {
    let since = Instant::now();
    let place = Place::make(mebibytes, commits);
    let version = place.litestream.as_ref().map_or("none", |found| &found.version);
    eprintln!("a database and its replicas after {:?}", since.elapsed());
    let proxy = Proxy::start(place.server.address, DELAY);
    let peers = Peer::ALL.map(|peer| {
        (
            peer,
            place.litestream.is_some() || matches!(peer, Peer::File | Peer::Replvfs),
        )
    });
    println!("{mebibytes} MiB and {commits} commits, {DELAY:?} a request, Litestream {version}, median of {rounds}");
    println!("| | | seconds | requests | GET, HEAD, LIST, other | MiB | times replvfs-remote |");
    println!("|---|---|---|---|---|---|---|");
    for session in Session::ALL {
        let mut runs: Vec<(Peer, Vec<Vec<Step>>)> = peers
            .iter()
            .filter(|(peer, is_here)| *is_here && session.is_for(*peer))
            .map(|(peer, _)| (*peer, Vec::new()))
            .collect();
        for round in 0..rounds {
            for (peer, steps) in &mut runs {
                steps.push(place.session(*peer, session, round, &proxy));
            }
        }
        for (at, name) in session.steps().iter().enumerate() {
            print(name, at, &runs);
        }
    }
}

fn print(name: &str, at: usize, runs: &[(Peer, Vec<Vec<Step>>)]) {
    let of = |wanted: Peer| runs.iter().find(|(peer, _)| *peer == wanted).map(|(_, steps)| steps);
    let (file, own) = (of(Peer::File).expect("the file"), of(Peer::Replvfs).expect("ours"));
    for (peer, steps) in runs {
        for (step, right) in steps.iter().zip(file) {
            assert_eq!(step[at].answer, right[at].answer, "{name}: {}", peer.name());
        }
        let all = |number: fn(&Step) -> f64| steps.iter().map(|step| number(&step[at])).collect::<Vec<f64>>();
        let ratios: Vec<f64> = steps
            .iter()
            .zip(own)
            .map(|(step, own)| step[at].seconds / own[at].seconds)
            .collect();
        let kinds = steps[0][at].traffic;
        println!(
            "| {name} | {} | {} | {} | {}, {}, {}, {} | {} | {} |",
            peer.name(),
            spread(all(|step| step.seconds), 3),
            spread(all(|step| step.traffic.requests() as f64), 0),
            kinds.gets,
            kinds.heads,
            kinds.lists,
            kinds.others,
            spread(all(|step| step.traffic.bytes as f64 / f64::from(1 << 20)), 2),
            spread(ratios, 2)
        );
    }
}

/// The median, and from where to where.
fn spread(mut numbers: Vec<f64>, digits: usize) -> String {
    numbers.sort_by(f64::total_cmp);
    let (middle, last) = (numbers[numbers.len() / 2], numbers[numbers.len() - 1]);
    format!("{middle:.digits$} ({:.digits$} to {last:.digits$})", numbers[0])
}
