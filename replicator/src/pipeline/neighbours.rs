//! Other processes on this machine that have the database open: the one that replicates it answers, on a socket beside the database, those that
//! wait until what they have committed is in the store.
//!
//! Also, it steps aside for those whose checkpoint restarts the WAL. Owns the socket, and what is said on it: a line there and a line back. There is one exactly as long as this process is the owner, since it is made and removed
//! under the owner's lock; a process that dies leaves its name behind, where nobody answers. So the death of the owner is noticed at once, by
//! the end of the connection, and who waits tries to take over. A "yes" means: when the question had come, all that was committed in the database was captured
//! here, by a process that was its owner then, and all of it is restorable from the store. Nothing that is answered depends on what the asker says of its commit, so
//! whoever may write beside the database may ask.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use replvfs_vfs::fork::NotInherited;
use replvfs_vfs::host::{Aside, AskedAside};
use replvfs_vfs::log::Log;
use replvfs_vfs::types::{Salts, Txid};
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketType};
use tokio::sync::Notify;

use super::confirm::{self, Wanted};
use super::shared::Shared;
use crate::outside;

/// Appended to the database's name.
const SUFFIX: &str = "-replvfs-sock";
/// What each line begins with: this is version 1 of what is said here.
const HELLO: &str = "replvfs 1 ";
/// More is not read of a line.
const LONGEST_LINE: usize = 4096;
/// `sun_path` of the smallest system, with its end.
const LONGEST_PATH: usize = 103;
/// What a question may take to come, and an answer to go.
const MANNERS: Duration = Duration::from_secs(5);
/// The other process may need a little longer than it was given.
const GRACE: Duration = Duration::from_millis(500);
/// So long a checkpoint waits for the other process to step aside, and afterwards to keep the WAL again: with the WRITE lock, so nobody can commit meanwhile.
const ASIDE: Duration = Duration::from_secs(2);
/// So many are answered at the same time, each of which takes a descriptor of the application's; others ask again.
const GUESTS: usize = 256;

/// What came of asking the process that replicates the database.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// All is in the store; the newest transaction there.
    Acked(Option<Txid>),
    Refused(String),
    /// There is no answer, and why: it is worth trying to become the owner, or to ask again.
    Nobody(String),
}

/// The socket of one database.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    /// `None` where nobody is answered.
    database: Option<PathBuf>,
    bound: Mutex<Bound>,
    /// There is another socket, or none any more.
    changed: Notify,
    guests: AtomicUsize,
}

#[derive(Debug, Default)]
struct Bound {
    /// How many sockets there have been, and ends of sockets.
    version: u64,
    /// Not taken up by the task yet.
    listening: Option<Listening>,
}

/// Fields in the order in which they have to go.
#[derive(Debug)]
struct Listening {
    /// Else a child of `fork()` would keep those waiting who ask a dead parent.
    not_inherited: NotInherited,
    listener: UnixListener,
}

/// The socket's address, while its folder is held open where its name alone would be too long.
struct Address {
    path: PathBuf,
    _folder: Option<File>,
}

impl Address {
    fn of(database: &Path) -> io::Result<Address> {
        let whole = socket(database);
        if whole.as_os_str().len() <= LONGEST_PATH {
            return Ok(Address {
                path: whole,
                _folder: None,
            });
        }
        let (Some(folder), Some(name)) = (whole.parent(), whole.file_name()) else {
            return Err(io::ErrorKind::InvalidFilename.into());
        };
        let folder = File::open(folder)?;
        let path = Path::new("/proc/self/fd")
            .join(folder.as_raw_fd().to_string())
            .join(name);
        if path.as_os_str().len() > LONGEST_PATH {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        Ok(Address {
            path,
            _folder: Some(folder),
        })
    }
}

/// Where the socket of a database is.
fn socket(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(SUFFIX);
    name.into()
}

impl Neighbours {
    pub(super) fn of(database: &Path) -> Neighbours {
        Neighbours {
            database: Some(database.to_owned()),
            ..Neighbours::default()
        }
    }

    /// This process is the owner: under the owner's lock. Without a socket other processes that wait are told that nobody answers.
    pub(super) fn listen(&self) {
        let Some(database) = &self.database else { return };
        match listen(database) {
            Ok(listening) => self.change(Some(listening)),
            Err(error) => replvfs_vfs::warning!(
                database = database.display();
                "{} cannot be made ({error}): commits of other processes that wait for the replica will fail",
                socket(database).display()
            ),
        }
    }

    /// This process is about to let go: still under the owner's lock.
    pub(super) fn close(&self) {
        let Some(database) = &self.database else { return };
        self.change(None);
        // Nobody else can have made it, and a name that stays does no harm.
        let _ = fs::remove_file(socket(database));
    }

    fn change(&self, listening: Option<Listening>) {
        let mut bound = self.bound();
        bound.version += 1;
        bound.listening = listening;
        self.changed.notify_one();
    }

    fn bound(&self) -> MutexGuard<'_, Bound> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the owner until when everything, or this transaction, is in the store.
    pub(super) fn ask(&self, until: Option<Txid>, timeout: Duration) -> Asked {
        let Some(database) = &self.database else {
            return Asked::Nobody("it is not asked".to_owned());
        };
        match ask(database, until, timeout) {
            Ok(answer) => answer,
            Err(error) => Asked::Nobody(format!("{}: {error}", socket(database).display())),
        }
    }

    /// Asks the owner to let the WAL be restarted.
    pub(super) fn ask_aside(&self) -> AskedAside {
        let Some(database) = &self.database else {
            return AskedAside::No;
        };
        match ask_aside(database) {
            Ok(Some(aside)) => AskedAside::Aside(Box::new(aside)),
            Ok(None) => AskedAside::No,
            Err(error) => {
                tracing::debug!(database = %database.display(), %error, "the process that replicates does not step aside");
                match error.kind() {
                    io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => AskedAside::Silent,
                    _ => AskedAside::No,
                }
            }
        }
    }
}

fn listen(database: &Path) -> io::Result<Listening> {
    let address = Address::of(database)?;
    match fs::remove_file(&address.path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&address.path)?;
    listener.set_nonblocking(true)?;
    // As SQLite does with the WAL: who may write the database may ask. The mode that bind() gave is no reason to fail.
    if let Ok(like) = fs::metadata(database) {
        let _ = fs::set_permissions(&address.path, like.permissions());
    }
    Ok(Listening {
        not_inherited: NotInherited::new(listener.as_fd()),
        listener,
    })
}

/// A stream to the owner. Never waits: where too many want the same, that is an error.
fn connect(database: &Path) -> io::Result<UnixStream> {
    let address = Address::of(database)?;
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(true)?;
    rustix::net::connect(&stream, &SocketAddrUnix::new(&address.path)?)?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn ask(database: &Path, until: Option<Txid>, timeout: Duration) -> io::Result<Asked> {
    let end = Instant::now() + timeout + GRACE;
    let mut stream = connect(database)?;
    stream.set_write_timeout(Some(MANNERS))?;
    let (millis, what) = (timeout.as_millis(), until.map(|txid| format!("wait {txid}")));
    let question = format!("{HELLO}{} {millis}\n", what.as_deref().unwrap_or("flush"));
    stream.write_all(question.as_bytes())?;
    let answer = receive_until(&mut stream, end)?;
    Ok(answered(&answer))
}

fn ask_aside(database: &Path) -> io::Result<Option<OwnerAside>> {
    let mut stream = connect(database)?;
    let not_inherited = NotInherited::new(stream.as_fd());
    stream.set_write_timeout(Some(ASIDE))?;
    stream.write_all(format!("{HELLO}aside\n").as_bytes())?;
    let answer = receive_until(&mut stream, Instant::now() + ASIDE)?;
    Ok((answer.strip_prefix(HELLO) == Some("aside")).then_some(OwnerAside {
        _not_inherited: not_inherited,
        stream,
    }))
}

/// The owner has stepped aside, until the stream ends. Fields in the order in which they have to go.
struct OwnerAside {
    /// A child of `fork()` would keep it from ending with this process.
    _not_inherited: NotInherited,
    stream: UnixStream,
}

impl Aside for OwnerAside {
    fn over(mut self: Box<Self>, now: Option<Salts>) {
        let stream = &mut self.stream;
        let told = match now {
            Some(Salts(first, second)) => format!("{HELLO}over {first} {second}\n"),
            None => format!("{HELLO}back\n"),
        };
        let kept = stream
            .write_all(told.as_bytes())
            .and_then(|()| receive_until(stream, Instant::now() + ASIDE));
        if let Err(error) = kept {
            tracing::debug!(%error, "the process that replicates has not said that it keeps the WAL again");
        }
    }
}

/// A line, without its end.
fn receive_until(stream: &mut UnixStream, end: Instant) -> io::Result<String> {
    let (mut answer, mut bytes) = (Vec::new(), [0; 512]);
    while !answer.ends_with(b"\n") {
        // However often it comes in parts, or a signal interrupts it.
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // Zero would be for ever.
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) if answer.len() + read > LONGEST_LINE => return Err(io::ErrorKind::InvalidData.into()),
            Ok(read) => answer.extend_from_slice(&bytes[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&answer).trim_end().to_owned())
}

fn answered(answer: &str) -> Asked {
    let Some(answer) = answer.strip_prefix(HELLO) else {
        return Asked::Refused(
            "the process that replicates the database has another version of replvfs: use the same in all".to_owned(),
        );
    };
    match answer.split_once(' ').unwrap_or((answer, "")) {
        ("acked", txid) => match txid.parse() {
            Ok(txid) => Asked::Acked(Some(Txid(txid))),
            Err(_) => Asked::Refused(format!(
                "the process that replicates the database gave a number that is none: {txid}"
            )),
        },
        ("gone", why) => Asked::Nobody(why.to_owned()),
        ("no", why) => Asked::Refused(why.to_owned()),
        _ => Asked::Refused(format!(
            "the process that replicates the database gave an answer that is none: {answer}"
        )),
    }
}

/// What somebody asks.
fn question(line: &str) -> Option<Wanted> {
    let mut words = line.trim_end().strip_prefix(HELLO)?.split(' ');
    let until = match words.next()? {
        "flush" => None,
        "wait" => Some(Txid(words.next()?.parse().ok()?)),
        _ => return None,
    };
    let timeout = Duration::from_millis(u64::from(words.next()?.parse::<u32>().ok()?));
    words.next().is_none().then_some(Wanted { until, timeout })
}

#[cfg(feature = "testing")]
pub(crate) mod for_fuzzing {
    //! What comes over the socket.

    /// Whether it is a question, or what is said of a WAL that was restarted.
    pub(crate) fn is_understood(line: &str) -> bool {
        super::question(line).is_some() || super::salts_now(line).is_some()
    }

    pub(crate) fn answered(line: &str) -> String {
        format!("{:?}", super::answered(line))
    }
}

/// Answers for as long as the process lives.
pub(super) async fn serve(shared: Arc<Shared>) {
    let neighbours = &shared.neighbours;
    loop {
        let (version, listening) = {
            let mut bound = neighbours.bound();
            (bound.version, bound.listening.take())
        };
        match listening {
            Some(listening) => accept(&shared, version, listening).await,
            None => neighbours.changed.notified().await,
        }
    }
}

/// Until there is another socket, or none any more.
async fn accept(shared: &Arc<Shared>, version: u64, listening: Listening) {
    let Listening {
        not_inherited,
        listener,
    } = listening;
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            replvfs_vfs::warning!(database = shared.database; "other processes cannot be answered: {error}");
            return;
        }
    };
    while shared.neighbours.bound().version == version {
        tokio::select! {
            biased;
            () = shared.neighbours.changed.notified() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => welcome(shared, stream),
                // Of descriptors, for instance, there may be more in a moment.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
        }
    }
    drop((not_inherited, listener));
}

fn welcome(shared: &Arc<Shared>, stream: tokio::net::UnixStream) {
    let shared = Arc::clone(shared);
    // Here, before it can be forked away.
    let not_inherited = NotInherited::new(stream.as_fd());
    if shared.neighbours.guests.fetch_add(1, Ordering::AcqRel) >= GUESTS {
        shared.neighbours.guests.fetch_sub(1, Ordering::AcqRel);
        drop((not_inherited, stream));
        return;
    }
    tokio::spawn(async move {
        let answer = answer(&shared, &stream).await;
        if let Some(answer) = answer {
            let sending = send(&stream, answer.as_bytes());
            let _ = tokio::time::timeout(MANNERS, sending).await;
        }
        shared.neighbours.guests.fetch_sub(1, Ordering::AcqRel);
        drop((not_inherited, stream));
    });
}

/// `None` for who does not say anything that could be answered.
async fn answer(shared: &Arc<Shared>, stream: &tokio::net::UnixStream) -> Option<String> {
    let line = tokio::time::timeout(MANNERS, receive(stream)).await.ok()?.ok()?;
    if line.trim_end().strip_prefix(HELLO) == Some("aside") {
        return step_aside(shared, stream).await;
    }
    let Some(wanted) = question(&line) else {
        return Some(format!(
            "{HELLO}no the question is of another version of replvfs: use the same in all processes\n"
        ));
    };
    let gone = format!("{HELLO}gone it does not replicate the database any more\n");
    let epoch = shared.local.epoch();
    if !shared.local.owns() {
        return Some(gone);
    }
    let waited = confirm::wait_in_task(shared, wanted).await;
    // What was acknowledged since, by other numbers, is no answer.
    if !shared.local.owns() || shared.local.epoch() != epoch {
        return Some(gone);
    }
    Some(match waited {
        Ok(Some(acked)) => format!("{HELLO}acked {acked}\n"),
        Ok(None) => gone,
        Err(error) => {
            let why: String = error.to_string().replace('\n', " ");
            let mut end = why.len().min(LONGEST_LINE - 64);
            while !why.is_char_boundary(end) {
                end -= 1;
            }
            format!("{HELLO}no {}\n", &why[..end])
        }
    })
}

/// Lets the other process restart the WAL, for as long as it takes it, or lives.
async fn step_aside(shared: &Arc<Shared>, stream: &tokio::net::UnixStream) -> Option<String> {
    if has_hung_up(stream) {
        return None; // It did not wait so long, and what it asked for is not to be done behind its back.
    }
    let log = Arc::clone(&shared.log);
    let stepping = outside::blocking(move || {
        let which = log.step_aside()?;
        Some(Stepped {
            log,
            which: Some(which),
        })
    });
    let Some(stepped) = stepping.await.ok().flatten() else {
        return Some(format!("{HELLO}no the WAL cannot be restarted now\n"));
    };
    let told = match send(stream, format!("{HELLO}aside\n").as_bytes()).await {
        Ok(()) => told_or_gone(&stepped, stream).await,
        Err(_) => None,
    };
    let now = told.as_deref().and_then(salts_now);
    outside::blocking(move || stepped.back(now)).await.ok()?;
    Some(format!("{HELLO}kept\n"))
}

/// What the other process says when it is done. The end of the stream tells that it is gone; but who has forked may have left the stream to a child.
async fn told_or_gone(stepped: &Stepped, stream: &tokio::net::UnixStream) -> Option<String> {
    let which = stepped.which?;
    let mut told = std::pin::pin!(receive(stream));
    loop {
        if let Ok(told) = tokio::time::timeout(ASIDE, &mut told).await {
            return told.ok();
        }
        let log = Arc::clone(&stepped.log);
        if outside::blocking(move || log.is_alone_aside(which))
            .await
            .unwrap_or(true)
        {
            return None;
        }
    }
}

/// Who has asked does not wait any more.
fn has_hung_up(stream: &tokio::net::UnixStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    matches!(rustix::net::recv(stream, &mut [0; 1], flags), Ok((_, 0)))
}

fn salts_now(line: &str) -> Option<Salts> {
    let mut words = line.trim_end().strip_prefix(HELLO)?.strip_prefix("over ")?.split(' ');
    let salts = Salts(words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    words.next().is_none().then_some(salts)
}

/// Whatever becomes of the task, this process keeps the WAL again.
struct Stepped {
    log: Arc<Log>,
    which: Option<u64>,
}

impl Stepped {
    fn back(mut self, now: Option<Salts>) {
        if let Some(which) = self.which.take() {
            self.log.come_back(which, now);
        }
    }
}

impl Drop for Stepped {
    fn drop(&mut self) {
        if let Some(which) = self.which {
            self.log.come_back(which, None);
        }
    }
}

async fn receive(stream: &tokio::net::UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut bytes = [0; 128];
    while !line.ends_with(b"\n") {
        stream.readable().await?;
        match stream.try_read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => line.extend_from_slice(&bytes[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if line.len() > bytes.len() {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into())
}

async fn send(stream: &tokio::net::UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
