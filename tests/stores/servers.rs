//! The servers: each is started on a free port of this machine, with its data in a folder of its own, answers before anybody asks it for more, and ends with this
//! process whatever becomes of that.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use replvfs_tests::free_port;
use tempfile::TempDir;

use crate::proxy::{Manner, Proxy};
use crate::tls::{Identity, Whose, identity};

/// For a server to answer. Python on a busy machine takes its time.
const START: Duration = Duration::from_secs(120);

/// A store that is ready to be used.
pub(crate) struct Served {
    /// What it is called in the table.
    pub(crate) name: &'static str,
    /// Before the path of a replica.
    pub(crate) base: String,
    /// Behind it, with `?`, or nothing.
    pub(crate) query: String,
    /// Whether it decides who creates an object, also when many ask at once.
    pub(crate) decides: bool,
    /// Whether it keeps to the condition when nobody else asks: that is what a status can say.
    pub(crate) keeps_alone: bool,
    /// Whether nothing is ever deleted there, since a listing may lack something.
    pub(crate) deletes: bool,
    /// Where its objects can be seen past it, if objects are written beside first.
    pub(crate) beside: Option<PathBuf>,
    _process: Option<Process>,
    pub(crate) proxy: Option<Proxy>,
    folder: TempDir,
}

impl Served {
    /// Whether it accepts the condition and ignores it.
    pub(crate) fn ignores_the_condition(&self) -> bool {
        !self.keeps_alone && self.beside.is_none()
    }

    fn new(name: &'static str, base: impl Into<String>, folder: TempDir) -> Served {
        Served {
            name,
            base: base.into(),
            query: String::new(),
            decides: true,
            keeps_alone: true,
            deletes: true,
            beside: None,
            _process: None,
            proxy: None,
            folder,
        }
    }

    /// The URI of a replica of that name.
    pub(crate) fn replica(&self, name: &str) -> String {
        format!("{}/{name}{}", self.base, self.query)
    }

    /// A folder for databases.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Why there is no such server: what is missing on this machine.
pub(crate) type Missing = String;

type Start = fn() -> Result<Served, Missing>;

/// All that are known, by name.
pub(crate) const ALL: &[(&str, Start)] = &[
    ("fs", in_folder),
    ("memory", in_memory),
    ("s3: moto", moto),
    ("s3: moto, the condition ignored", ignoring),
    ("s3: moto, the condition not atomic", not_atomic),
    ("azblob: Azurite", azurite),
    ("gcs: gcp-storage-emulator", gcs),
    ("webdav: nginx", nginx),
    ("webdav: nginx, TLS", nginx_tls),
    ("sftp: OpenSSH", openssh),
    ("ftp: pyftpdlib", pyftpdlib),
    ("ftp: pyftpdlib, TLS", pyftpdlib_tls),
];

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // With what it has started: it leads a group of processes.
        let group = i32::try_from(self.0.id()).map(|id| -id);
        if let Ok(group) = group {
            // SAFETY: a call without memory; the group is that of a child that has not been waited for.
            unsafe { libc::kill(group, libc::SIGKILL) };
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    fn start(command: &mut Command, log: &Path) -> Process {
        let log = fs::File::create(log).expect("a log");
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("its log"))
            .stderr(log)
            .process_group(0);
        // SAFETY: the call is one of those that are allowed between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        Process(command.spawn().expect("starting a server"))
    }
}

/// Where `servers.sh` puts what does not come from the system.
fn installed(path: &str) -> Result<PathBuf, Missing> {
    let servers = std::env::var_os("REPLVFS_SERVERS").map(PathBuf::from);
    let servers = servers.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/servers"));
    program(&servers.join(path))
}

pub(crate) fn program(path: &Path) -> Result<PathBuf, Missing> {
    match path.exists() {
        true => Ok(path.to_owned()),
        false => Err(format!("{} is missing; run tests/stores/servers.sh", path.display())),
    }
}

pub(crate) fn new_folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("replvfs-stores-").tempdir();
    folder.expect("a folder")
}

/// Starts a server, and waits until `answers` says so.
fn start(command: &mut Command, folder: &TempDir, answers: impl Fn() -> bool) -> Process {
    let log = folder.path().join("log");
    let mut process = Process::start(command, &log);
    let since = Instant::now();
    while !answers() {
        let said = || fs::read_to_string(&log).unwrap_or_default();
        if let Some(status) = process.0.try_wait().expect("looking after a server") {
            panic!("{command:?} has ended: {status}\n{}", said());
        }
        assert!(since.elapsed() < START, "{command:?} does not answer\n{}", said());
        std::thread::sleep(Duration::from_millis(20));
    }
    process
}

/// The status of an HTTP request; `None` when nobody answers.
fn http(port: u16, request: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let request =
        format!("{request} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

/// Whether a server says its greeting by itself.
fn greets(port: u16, greeting: &[u8]) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let mut said = vec![0; greeting.len()];
    stream.read_exact(&mut said).is_ok() && said == greeting
}

fn in_folder() -> Result<Served, Missing> {
    let folder = new_folder();
    let base = format!("fs://{}", folder.path().join("objects").display());
    Ok(Served::new("fs", base, folder))
}

fn in_memory() -> Result<Served, Missing> {
    Ok(Served::new("memory", "memory://stores", new_folder()))
}

/// moto, with a bucket, and its port.
fn moto_server(folder: &TempDir) -> Result<(Process, u16), Missing> {
    let port = free_port();
    let mut command = Command::new(installed("python/bin/moto_server")?);
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    let process = start(&mut command, folder, || http(port, "GET /moto-api/").is_some());
    assert_eq!(http(port, "PUT /bucket"), Some(200), "creating a bucket");
    Ok((process, port))
}

/// A moto of its own.
pub(crate) struct Moto {
    _process: Process,
    port: u16,
    folder: TempDir,
}

impl Moto {
    pub(crate) fn start() -> Result<Moto, Missing> {
        let folder = new_folder();
        let (process, port) = moto_server(&folder)?;
        Ok(Moto {
            _process: process,
            port,
            folder,
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

pub(crate) fn s3_query(port: u16) -> String {
    format!(
        "?region=us-east-1&endpoint=http://127.0.0.1:{port}&access_key_id=test&secret_access_key=test&disable_config_load=true&disable_ec2_metadata=true"
    )
}

/// It looks whether an object is there, and then writes it: two that come at the same moment may both be told that they have created it.
fn moto() -> Result<Served, Missing> {
    behind_proxy("s3: moto", Manner::OneAtATime)
}

fn behind_proxy(name: &'static str, manner: Manner) -> Result<Served, Missing> {
    let folder = new_folder();
    let (process, port) = moto_server(&folder)?;
    let proxy = Proxy::start(port, manner);
    Ok(Served {
        query: s3_query(proxy.port()),
        decides: manner == Manner::OneAtATime,
        keeps_alone: manner != Manner::IgnoresTheCondition,
        _process: Some(process),
        proxy: Some(proxy),
        ..Served::new(name, "s3://bucket", folder)
    })
}

fn ignoring() -> Result<Served, Missing> {
    behind_proxy("s3: moto, the condition ignored", Manner::IgnoresTheCondition)
}

fn not_atomic() -> Result<Served, Missing> {
    behind_proxy("s3: moto, the condition not atomic", Manner::LooksThenWrites)
}

/// The account that the emulator has for everybody.
const AZURITE: (&str, &str) = (
    "devstoreaccount1",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
);

fn azurite() -> Result<Served, Missing> {
    let folder = new_folder();
    let port = free_port();
    let script = installed("node/node_modules/azurite/dist/src/blob/main.js")?;
    let mut command = Command::new("node");
    command
        .arg(script)
        .args(["--silent", "--skipApiVersionCheck", "--disableTelemetry"]);
    command.arg("--location").arg(folder.path().join("objects"));
    command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()]);
    let process = start(&mut command, &folder, || http(port, "GET /").is_some());
    let (account, key) = AZURITE;
    let made = Command::new("node")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("stores/azure_container.js"))
        .args([&port.to_string(), account, key, "container"])
        .output()
        .expect("node");
    assert!(
        made.status.success(),
        "creating a container: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    let key = key.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    Ok(Served {
        query: format!("?endpoint=http://127.0.0.1:{port}/{account}&account_name={account}&account_key={key}"),
        _process: Some(process),
        ..Served::new("azblob: Azurite", "azblob://container", folder)
    })
}

fn gcs() -> Result<Served, Missing> {
    let folder = new_folder();
    let port = free_port();
    let mut command = Command::new(installed("python/bin/gcp-storage-emulator")?);
    command.args([
        "start",
        "--host=127.0.0.1",
        &format!("--port={port}"),
        "--in-memory",
        "--default-bucket=bucket",
    ]);
    let process = start(&mut command, &folder, || {
        http(port, "GET /storage/v1/b/bucket") == Some(200)
    });
    let proxy = Proxy::start(port, Manner::LeavesOutNulls);
    Ok(Served {
        query: format!(
            "?endpoint=http://127.0.0.1:{}&skip_signature=true&disable_vm_metadata=true&disable_config_load=true",
            proxy.port()
        ),
        // The emulator does not know the condition in the way in which OpenDAL asks for it.
        decides: false,
        keeps_alone: false,
        _process: Some(process),
        ..Served::new("gcs: gcp-storage-emulator", "gcs://bucket", folder)
    })
}

fn nginx() -> Result<Served, Missing> {
    nginx_with("webdav: nginx", None)
}

fn nginx_tls() -> Result<Served, Missing> {
    nginx_with("webdav: nginx, TLS", Some(&identity(Whose::Its)?))
}

pub(crate) fn nginx_with(name: &'static str, tls: Option<&Identity>) -> Result<Served, Missing> {
    let folder = new_folder();
    let program = program(Path::new("/usr/sbin/nginx"))?;
    let module = "/usr/lib/nginx/modules/ngx_http_dav_ext_module.so";
    if !Path::new(module).exists() {
        return Err(format!("{module} is missing; run tests/stores/servers.sh"));
    }
    let port = free_port();
    let at = folder.path().display();
    let (listens, scheme) = match tls {
        None => (String::new(), "webdav+http"),
        Some(Identity { certificate, key }) => {
            let (certificate, key) = (certificate.display(), key.display());
            (
                format!(" ssl;\n    ssl_certificate {certificate};\n    ssl_certificate_key {key}"),
                "webdav",
            )
        }
    };
    let objects = folder.path().join("objects");
    fs::create_dir(&objects).expect("a folder");
    fs::write(folder.path().join("users"), "me:{PLAIN}pass word\n").expect("its users");
    // SAFETY: calls without arguments that always succeed.
    let is_root = unsafe { libc::geteuid() } == 0;
    let user = if is_root { "user root root;" } else { "" };
    let configuration = format!(
        "{user}\ndaemon off;\nmaster_process off;\npid {at}/pid;\nerror_log {at}/log;\nload_module {module};\nevents {{ }}\n\
         http {{\n  access_log off;\n  client_max_body_size 0;\n  client_body_temp_path {at}/body;\n  proxy_temp_path {at}/proxy;\n\
         \x20 fastcgi_temp_path {at}/fastcgi;\n  uwsgi_temp_path {at}/uwsgi;\n  scgi_temp_path {at}/scgi;\n\
         \x20 server {{\n    listen 127.0.0.1:{port}{listens};\n    root {at}/objects;\n    auth_basic replvfs;\n    auth_basic_user_file {at}/users;\n\
         \x20   dav_methods PUT DELETE MKCOL COPY MOVE;\n    dav_ext_methods PROPFIND OPTIONS;\n    create_full_put_path on;\n  }}\n}}\n"
    );
    let file = folder.path().join("nginx.conf");
    fs::write(&file, configuration).expect("its configuration");
    let mut command = Command::new(program);
    command
        .arg("-p")
        .arg(folder.path())
        .arg("-c")
        .arg(&file)
        .arg("-e")
        .arg(folder.path().join("log"));
    // A request without TLS is a bad one where it is expected.
    let status = if tls.is_some() { 400 } else { 401 };
    let process = start(&mut command, &folder, || http(port, "GET /") == Some(status));
    Ok(Served {
        query: "?password=pass%20word".to_owned(),
        decides: false,
        keeps_alone: false,
        beside: Some(objects),
        _process: Some(process),
        ..Served::new(name, format!("{scheme}://me@127.0.0.1:{port}"), folder)
    })
}

const SSH: &str = "/usr/bin/ssh";
/// Where `ssh` is one that leaves the user's own files of OpenSSH alone.
const PROGRAMS: &str = "REPLVFS_TEST_PROGRAMS";

fn programs() -> PathBuf {
    std::env::var_os(PROGRAMS)
        .map(PathBuf::from)
        .expect("it is set by main")
}

/// To be called before there is another thread: OpenDAL starts the program that is found by its name.
pub(crate) fn prepare_ssh() -> TempDir {
    let folder = new_folder();
    let at = folder.path().display();
    let script = format!("#!/bin/sh\nexec {SSH} -F /dev/null -o UserKnownHostsFile={at}/known_hosts \"$@\"\n");
    let wrapper = folder.path().join("ssh");
    fs::write(&wrapper, script).expect("a program");
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("a program");
    let path = std::env::var("PATH").unwrap_or_default();
    // SAFETY: there is no other thread that reads the environment.
    unsafe {
        std::env::set_var("PATH", format!("{at}:{path}"));
        std::env::set_var(PROGRAMS, folder.path());
    }
    folder
}

fn openssh() -> Result<Served, Missing> {
    let folder = new_folder();
    let sshd = program(Path::new("/usr/sbin/sshd"))?;
    program(Path::new(SSH))?;
    let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
    // SAFETY: a call without arguments that always succeeds.
    if unsafe { libc::geteuid() } == 0 {
        // Where it locks itself up while nobody has logged in.
        let _ = fs::create_dir("/run/sshd");
        let known = fs::read_to_string("/etc/passwd").unwrap_or_default();
        if !known.lines().any(|line| line.starts_with("sshd:")) {
            return Err("there is no user sshd; install openssh-server".to_owned());
        }
    }
    let port = free_port();
    let at = |name: &str| folder.path().join(name);
    for key in ["host", "user"] {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(at(key))
            .status();
        assert!(made.expect("ssh-keygen").success());
    }
    fs::rename(at("user.pub"), at("allowed")).expect("its users");
    let host = fs::read_to_string(at("host.pub")).expect("its key");
    fs::write(programs().join("known_hosts"), format!("[127.0.0.1]:{port} {host}")).expect("its name");
    let place = folder.path().display();
    fs::write(
        at("sshd_config"),
        format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {place}/host\nAuthorizedKeysFile {place}/allowed\nPidFile {place}/pid\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
        ),
    )
    .expect("its configuration");
    let mut command = Command::new(sshd);
    command.args(["-D", "-e", "-f"]).arg(at("sshd_config"));
    let process = start(&mut command, &folder, || greets(port, b"SSH-2.0-"));
    let objects = at("objects");
    fs::create_dir(&objects).expect("a folder");
    let key = at("user").display().to_string();
    Ok(Served {
        query: format!("?key={key}&known_hosts_strategy=strict"),
        decides: false,
        keeps_alone: false,
        beside: Some(objects.clone()),
        _process: Some(process),
        ..Served::new(
            "sftp: OpenSSH",
            format!("sftp://{user}@127.0.0.1:{port}{}", objects.display()),
            folder,
        )
    })
}

fn pyftpdlib() -> Result<Served, Missing> {
    pyftpdlib_with("ftp: pyftpdlib", None)
}

fn pyftpdlib_tls() -> Result<Served, Missing> {
    pyftpdlib_with("ftp: pyftpdlib, TLS", Some(&identity(Whose::Its)?))
}

pub(crate) fn pyftpdlib_with(name: &'static str, tls: Option<&Identity>) -> Result<Served, Missing> {
    let folder = new_folder();
    let port = free_port();
    let objects = folder.path().join("objects");
    fs::create_dir(&objects).expect("a folder");
    let mut command = Command::new(installed("python/bin/python")?);
    command.args([
        "-m",
        "pyftpdlib",
        "-i",
        "127.0.0.1",
        "-p",
        &port.to_string(),
        "-w",
        "-d",
    ]);
    command.arg(&objects).args(["-u", "me", "-P", "pass word"]);
    if let Some(Identity { certificate, key }) = tls {
        command.args(["--tls", "--tls-control-required", "--tls-data-required", "--certfile"]);
        command.arg(certificate).arg("--keyfile").arg(key);
    }
    let scheme = if tls.is_some() { "ftps" } else { "ftp" };
    let process = start(&mut command, &folder, || greets(port, b"220"));
    Ok(Served {
        query: "?password=pass%20word".to_owned(),
        decides: false,
        keeps_alone: false,
        deletes: false,
        beside: Some(objects),
        _process: Some(process),
        ..Served::new(name, format!("{scheme}://me@127.0.0.1:{port}"), folder)
    })
}
