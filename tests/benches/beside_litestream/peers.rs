//! Who is measured: plain SQLite, replvfs at each level, and Litestream; and where, with what they need to begin and to restore.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use replvfs_tests::s3::{self, BUCKET, Server};
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Process, Usage};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Plain,
    Async,
    Remote,
    Strict,
    Litestream,
}

impl Peer {
    pub(crate) const ALL: [Peer; 5] = [Peer::Plain, Peer::Async, Peer::Remote, Peer::Strict, Peer::Litestream];
    /// Those that replicate.
    pub(crate) const REPLICATED: [Peer; 4] = [Peer::Async, Peer::Remote, Peer::Strict, Peer::Litestream];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::Plain => "plain",
            Peer::Async => "async",
            Peer::Remote => "remote",
            Peer::Strict => "strict",
            Peer::Litestream => "litestream",
        }
    }

    pub(crate) fn is_replvfs(self) -> bool {
        matches!(self, Peer::Async | Peer::Remote | Peer::Strict)
    }

    /// Each second round the other way around.
    pub(crate) fn in_turn(peers: &[Peer], round: usize) -> Vec<Peer> {
        let mut peers = peers.to_vec();
        if round % 2 == 1 {
            peers.reverse();
        }
        peers
    }
}

/// The programs that are not built here.
pub(crate) struct Tools {
    pub(crate) litestream: PathBuf,
    pub(crate) replvfs: PathBuf,
}

impl Tools {
    pub(crate) fn find() -> Tools {
        let path = |variable, otherwise: PathBuf| std::env::var_os(variable).map_or(otherwise, PathBuf::from);
        let tools = Tools {
            litestream: path("REPLVFS_BENCH_LITESTREAM", target().join("litestream/bin/litestream")),
            replvfs: path("REPLVFS_BENCH_CLI", target().join("release/replvfs")),
        };
        assert!(
            tools.litestream.exists(),
            "{} is not there: `tests/benches/beside_litestream/prepare.sh target/litestream`, or say where it is: REPLVFS_BENCH_LITESTREAM",
            tools.litestream.display()
        );
        assert!(
            tools.replvfs.exists(),
            "{} is not there: `cargo build --release -p replvfs-cli`, or say where it is: REPLVFS_BENCH_CLI",
            tools.replvfs.display()
        );
        tools
    }
}

/// Cargo's folder: the program is in its `release/deps`.
pub(crate) fn target() -> PathBuf {
    let program = std::env::current_exe().expect("the program");
    program.ancestors().nth(3).expect("a folder").to_owned()
}

pub(crate) fn machine(tools: &Tools) -> Value {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu.lines().find(|line| line.starts_with("model name"));
    let cpu = cpu.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown");
    let litestream = Command::new(&tools.litestream)
        .arg("version")
        .output()
        .expect("Litestream");
    json!({
        "cpu": cpu,
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "litestream": String::from_utf8_lossy(&litestream.stdout).trim(),
        "sqlite": rusqlite::version(),
    })
}

enum Replica {
    Folder(PathBuf),
    S3 { address: SocketAddr, group: String },
}

/// A peer's database and its replica, in a folder beside the program: the one for temporary files may be in memory.
pub(crate) struct Place {
    folder: TempDir,
    pub(crate) peer: Peer,
    replica: Replica,
}

impl Place {
    /// With the replica in a folder.
    pub(crate) fn new(peer: Peer) -> Place {
        let folder = scratch();
        let replica = Replica::Folder(folder.path().join("replica"));
        Place { folder, peer, replica }
    }

    /// With the replica on a server.
    pub(crate) fn on(server: &Server, peer: Peer, group: &str) -> Place {
        let (address, group) = (server.address(), group.to_owned());
        Place {
            folder: scratch(),
            peer,
            replica: Replica::S3 { address, group },
        }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.file("db/app.db")
    }

    /// A database in WAL mode with the table of `work`, without replication yet.
    pub(crate) fn create(&self) {
        std::fs::create_dir_all(self.file("db")).expect("a folder");
        let connection = Connection::open(self.database()).expect("opens");
        replvfs_tests::use_wal(&connection);
        connection.execute_batch(crate::work::SCHEMA).expect("a table");
    }

    /// The same with the content of a file.
    pub(crate) fn copy(&self, from: &Path) {
        std::fs::create_dir_all(self.file("db")).expect("a folder");
        std::fs::copy(from, self.database()).expect("a copy");
        // Not while it is measured.
        let file = std::fs::File::open(self.database()).expect("the copy");
        file.sync_all().expect("on the disk");
    }

    /// For who writes and reads it.
    pub(crate) fn uri(&self) -> String {
        let file = self.database();
        if !self.peer.is_replvfs() {
            return format!("file:{}", file.display());
        }
        let replica = match &self.replica {
            Replica::Folder(folder) => format!("fs://{}", folder.display()),
            Replica::S3 { address, group } => s3::replica(&address.to_string(), group, "app"),
        };
        let level = self.peer.name();
        format!(
            "file:{}?vfs=replvfs&durability={level}&replica={replica}",
            file.display()
        )
    }

    fn litestream(&self, tools: &Tools) -> Command {
        std::fs::write(self.file("litestream.yml"), self.configuration()).expect("a configuration");
        let mut command = Command::new(&tools.litestream);
        command.env_remove("AWS_CA_BUNDLE");
        command
    }

    /// As it comes, with its socket, which is how it is asked whether all is in the replica.
    fn configuration(&self) -> String {
        let socket = self.file("socket");
        let (database, replica) = (self.database(), self.replica_for_litestream());
        format!(
            "socket:\n  enabled: true\n  path: {}\ndbs:\n  - path: {}\n    replica:\n{replica}",
            socket.display(),
            database.display()
        )
    }

    fn replica_for_litestream(&self) -> String {
        match &self.replica {
            Replica::Folder(folder) => format!("      type: file\n      path: {}\n", folder.display()),
            Replica::S3 { address, group } => litestream_on_s3(*address, &format!("{group}/app")),
        }
    }

    /// Litestream, if it is this peer, when its first snapshot is there.
    pub(crate) fn replicator(&self, tools: &Tools) -> Option<Replicator> {
        if self.peer != Peer::Litestream {
            return None;
        }
        let mut command = self.litestream(tools);
        command.args(["replicate", "-config"]).arg(self.file("litestream.yml"));
        let log = self.file("litestream.log");
        Some(Replicator::start(
            &mut command,
            &log,
            1,
            self.file("socket"),
            self.database(),
        ))
    }

    /// Restores with the peer's own program. The seconds, and what it took.
    pub(crate) fn restore(&self, tools: &Tools, out: &Path) -> (f64, Usage) {
        let mut command = if self.peer == Peer::Litestream {
            let mut command = self.litestream(tools);
            command.args(["restore", "-config"]).arg(self.file("litestream.yml"));
            command.arg("-o").arg(out).arg(self.database());
            command
        } else {
            let replica = match &self.replica {
                Replica::Folder(folder) => format!("fs://{}", folder.display()),
                Replica::S3 { address, group } => s3::replica(&address.to_string(), group, "app").replace("%26", "&"),
            };
            let mut command = Command::new(&tools.replvfs);
            command.args(["restore", &replica]).arg(out);
            command
        };
        let log = self.file("restore.log");
        let output = std::fs::File::create(&log).expect("a log");
        command.stdout(Stdio::null()).stderr(output);
        let begun = Instant::now();
        let usage = Process::run(&mut command);
        let seconds = begun.elapsed().as_secs_f64();
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        assert!(usage.is_success, "{command:?}: {said}");
        (seconds, usage)
    }
}

pub(crate) fn litestream_on_s3(address: SocketAddr, path: &str) -> String {
    format!(
        "      type: s3\n      bucket: {BUCKET}\n      path: {path}\n      endpoint: http://{address}\n      region: us-east-1\n      \
         force-path-style: true\n      access-key-id: bench\n      secret-access-key: bench-secret\n"
    )
}

/// A folder on the disk that the program is on.
pub(crate) fn scratch() -> TempDir {
    let mut beside = std::env::current_exe().expect("the program");
    beside.pop();
    tempfile::Builder::new()
        .prefix("beside-")
        .tempdir_in(beside)
        .expect("a folder")
}

/// Litestream at work.
pub(crate) struct Replicator {
    pub(crate) process: Process,
    /// What it took to begin.
    pub(crate) cpu_at_start: f64,
    socket: PathBuf,
    database: PathBuf,
}

impl Replicator {
    /// Returns when so many databases have a snapshot.
    pub(crate) fn start(
        command: &mut Command,
        log: &Path,
        snapshots: usize,
        socket: PathBuf,
        database: PathBuf,
    ) -> Replicator {
        let output = std::fs::File::create(log).expect("a log");
        command.stdout(output.try_clone().expect("a log")).stderr(output);
        let process = Process::start(command);
        let begun = Instant::now();
        loop {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            if said.matches("snapshot complete").count() >= snapshots {
                break;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(300),
                "Litestream makes no snapshot: {said}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Replicator {
            cpu_at_start: process.cpu(),
            process,
            socket,
            database,
        }
    }

    /// Returns when all that is committed is in the replica.
    pub(crate) fn sync(&self, tools: &Tools) {
        let mut command = Command::new(&tools.litestream);
        command.args(["sync", "-wait", "-timeout", "600", "-socket"]);
        let output = command
            .arg(&self.socket)
            .arg(&self.database)
            .output()
            .expect("Litestream");
        assert!(output.status.success(), "litestream sync: {output:?}");
    }

    /// As a service manager ends it. Its seconds of CPU since it was ready.
    pub(crate) fn end(self) -> f64 {
        self.process.signal(libc::SIGTERM);
        let usage = self.process.wait();
        assert!(usage.is_success, "Litestream failed at its end");
        usage.cpu - self.cpu_at_start
    }
}
