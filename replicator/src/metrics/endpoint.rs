//! The text of all metrics for Prometheus, over HTTP, as soon as this process has something to show.
//!
//! Owns the listener and its bounds: so many guests, so long each, so large a question. The exporter's own listener bounds neither, so of it only the recorder and
//! the text are used. What goes wrong here is a warning, and nothing waits for it.

use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use replvfs_vfs::fork::NotInherited;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::pipeline;

/// Connections at a time.
const GUESTS: usize = 8;
/// For the question, the answer and the end of a connection together.
const MANNERS: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 5000 });
const LONGEST_HEAD_BYTES: usize = 8 << 10;
/// More headers than that has nobody who asks for metrics.
const MOST_HEADERS: usize = 64;
/// Seconds: of a folder on this machine to a store that hardly answers.
const DURATIONS: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 90.0,
];

pub(super) struct Endpoint {
    address: SocketAddr,
    recorder: PrometheusRecorder,
    text: PrometheusHandle,
    open: Arc<AtomicBool>,
    /// A port that is taken is told once.
    told: Mutex<bool>,
}

impl Endpoint {
    pub(super) fn new(address: SocketAddr) -> Endpoint {
        let durations = Matcher::Full("replvfs_store_request_duration_seconds".to_owned());
        let builder = PrometheusBuilder::new();
        // It refuses an empty list only.
        let builder = builder
            .set_buckets_for_metric(durations, DURATIONS)
            .unwrap_or_else(|_| PrometheusBuilder::new());
        let recorder = builder.build_recorder();
        Endpoint {
            address,
            text: recorder.handle(),
            recorder,
            open: Arc::default(),
            told: Mutex::default(),
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn recorder(&self) -> &PrometheusRecorder {
        &self.recorder
    }

    pub(super) fn gather(&self) {
        self.text.run_upkeep();
    }

    pub(super) fn serve(&self, runtime: &Handle) {
        if self.open.swap(true, Ordering::AcqRel) {
            return;
        }
        let open = Open(Arc::clone(&self.open));
        let listening = {
            let _inside = runtime.enter();
            listen(self.address)
        };
        match listening {
            Ok(listening) => {
                if let Ok(address) = listening.listener.local_addr() {
                    tracing::info!(%address, "metrics are served at http://{address}/metrics");
                }
                let text = self.text.clone();
                let render = move || {
                    pipeline::publish_all();
                    text.render()
                };
                runtime.spawn(accept(listening, open, Arc::new(render)));
            }
            Err(error) => {
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                if !std::mem::replace(&mut *told, true) {
                    drop(told);
                    replvfs_vfs::warning!(
                        ;
                        "no metrics are served at {} ({error}): another process may have the port, and this one tries again when it begins to replicate a database",
                        self.address
                    );
                }
            }
        }
    }
}

/// As long as it lives, nobody else opens the endpoint.
struct Open(Arc<AtomicBool>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Fields in the order in which they have to go.
struct Listening {
    /// A child of `fork()` does not serve its parent's port.
    _not_inherited: NotInherited,
    listener: tokio::net::TcpListener,
}

fn listen(address: SocketAddr) -> io::Result<Listening> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(Listening {
        _not_inherited: NotInherited::new(listener.as_fd()),
        listener: tokio::net::TcpListener::from_std(listener)?,
    })
}

type Render = Arc<dyn Fn() -> String + Send + Sync>;

async fn accept(listening: Listening, _open: Open, render: Render) {
    let guests = Arc::new(Semaphore::new(GUESTS));
    loop {
        let Ok(guest) = Arc::clone(&guests).acquire_owned().await else {
            return;
        };
        let stream = match listening.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(_) => {
                // Of descriptors, for instance, there may be more in a moment.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let not_inherited = NotInherited::new(stream.as_fd());
        let guest = Guest {
            render: Arc::clone(&render),
            _one_of: Arc::new(guest),
        };
        tokio::spawn(async move {
            // The guest's trouble is its own.
            let _ = tokio::time::timeout(MANNERS, answer(stream, not_inherited, guest)).await;
        });
    }
}

/// Is there until nothing is done for it any more: what was begun for one who has gone takes a thread, too.
#[derive(Clone)]
struct Guest {
    render: Render,
    _one_of: Arc<OwnedSemaphorePermit>,
}

impl Guest {
    fn text(self) -> String {
        (self.render)()
    }
}

async fn answer(mut stream: TcpStream, not_inherited: NotInherited, guest: Guest) -> io::Result<()> {
    let Asked { question, is_head } = question(&mut stream).await?;
    let (status, body) = match question {
        Question::Metrics if is_head => ("200 OK", String::new()),
        Question::Metrics => {
            let guest = guest.clone();
            // Looking at all databases takes locks, for a moment each.
            match tokio::task::spawn_blocking(move || guest.text()).await {
                Ok(body) => ("200 OK", body),
                Err(_) => ("500 Internal Server Error", "this is a bug in replvfs\n".to_owned()),
            }
        }
        Question::Else => ("404 Not Found", "the metrics are at /metrics\n".to_owned()),
        Question::Method => (
            "405 Method Not Allowed\r\nAllow: GET, HEAD",
            "GET /metrics\n".to_owned(),
        ),
        Question::TooLong => ("431 Request Header Fields Too Large", "GET /metrics\n".to_owned()),
        Question::Garbage => ("400 Bad Request", "GET /metrics\n".to_owned()),
    };
    let mut head = String::with_capacity(160);
    let _ = write!(
        head,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nConnection: close\r\n"
    );
    // Of what was not asked for the length is not known.
    let _ = match is_head {
        true => write!(head, "\r\n"),
        false => write!(head, "Content-Length: {}\r\n\r\n", body.len()),
    };
    stream.write_all(head.as_bytes()).await?;
    if !is_head {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await?;
    // What was not read yet would take the answer away on its way.
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    drop(not_inherited);
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Question {
    Metrics,
    Else,
    Method,
    TooLong,
    Garbage,
}

#[derive(Debug, PartialEq, Eq)]
struct Asked {
    question: Question,
    /// Only the head of the answer is wanted.
    is_head: bool,
}

impl From<Question> for Asked {
    fn from(question: Question) -> Asked {
        Asked {
            question,
            is_head: false,
        }
    }
}

async fn question(stream: &mut TcpStream) -> io::Result<Asked> {
    let mut head = vec![0; LONGEST_HEAD_BYTES];
    let mut len = 0;
    loop {
        let Some(room) = head.get_mut(len..).filter(|room| !room.is_empty()) else {
            return Ok(Question::TooLong.into());
        };
        let read = stream.read(room).await?;
        if read == 0 {
            return Ok(Question::Garbage.into());
        }
        len += read;
        if let Some(asked) = understood(head.get(..len).unwrap_or_default()) {
            return Ok(asked);
        }
    }
}

/// `None`: there is more to come.
fn understood(head: &[u8]) -> Option<Asked> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) => Some(Asked {
            question: match (request.method, path_of(request.path.unwrap_or_default())) {
                (Some("GET" | "HEAD"), "/metrics") => Question::Metrics,
                (Some("GET" | "HEAD"), _) => Question::Else,
                _ => Question::Method,
            },
            is_head: request.method == Some("HEAD"),
        }),
        Err(httparse::Error::TooManyHeaders) => Some(Question::TooLong.into()),
        Err(_) => Some(Question::Garbage.into()),
    }
}

#[cfg(feature = "testing")]
pub(crate) fn understood_for_fuzzing(head: &[u8]) -> Option<String> {
    understood(head).map(|asked| format!("{asked:?}"))
}

/// Without the query, and, as a proxy asks, without what is before the path.
fn path_of(target: &str) -> &str {
    let target = target.split('?').next().unwrap_or_default();
    match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    #[test]
    fn a_question_is_understood_or_not() {
        let cases: [(&[u8], Option<Question>); 10] = [
            (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Some(Question::Metrics)),
            (b"GET http://x:1/metrics HTTP/1.1\r\n\r\n", Some(Question::Metrics)),
            (b"GET http://x HTTP/1.1\r\n\r\n", Some(Question::Else)),
            (b"HEAD /metrics HTTP/1.1\r\n\r\n", Some(Question::Metrics)),
            (b"GET /metrics?name[]=x HTTP/1.1\r\n\r\n", Some(Question::Metrics)),
            (b"GET /metrics HTTP/1.1\r\nHost: x\r\n", None),
            (b"GET / HTTP/1.1\r\n\r\n", Some(Question::Else)),
            (b"POST /metrics HTTP/1.1\r\n\r\n", Some(Question::Method)),
            (b"\x16\x03\x01\x02\x00\x01", Some(Question::Garbage)),
            (b"", None),
        ];
        for (head, question) in cases {
            let asked = understood(head);
            let is_head = head.starts_with(b"HEAD");
            assert!(asked.iter().all(|asked| asked.is_head == is_head));
            let asked = asked.map(|asked| asked.question);
            assert_eq!(asked, question, "{}", String::from_utf8_lossy(head));
        }
    }

    /// The numbers cannot be had now, and those who ask go away, and come again.
    #[test]
    fn guests_who_have_gone_take_no_more_threads_than_those_who_wait() {
        use std::sync::atomic::AtomicUsize;

        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let listening = {
            let _inside = runtime.enter();
            listen(([127, 0, 0, 1], 0).into()).unwrap()
        };
        let address = listening.listener.local_addr().unwrap();
        let busy = Arc::new(AtomicUsize::new(0));
        let (count, gate) = (Arc::clone(&busy), Arc::new(Mutex::new(())));
        let closed = Arc::clone(&gate);
        let render = move || {
            count.fetch_add(1, Ordering::AcqRel);
            drop(closed.lock().unwrap_or_else(PoisonError::into_inner));
            count.fetch_sub(1, Ordering::AcqRel);
            String::new()
        };
        let wait = gate.lock().unwrap();
        runtime.spawn(accept(listening, Open(Arc::default()), Arc::new(render)));
        // Twice as many as it takes at once; the first ones are given up while the others wait.
        let guests: Vec<_> = (0..2 * GUESTS)
            .map(|_| {
                std::thread::spawn(move || {
                    use std::io::{Read, Write};
                    let mut stream = std::net::TcpStream::connect(address).unwrap();
                    stream.set_read_timeout(Some(MANNERS * 3)).unwrap();
                    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
                    let _ = stream.read(&mut [0]);
                })
            })
            .collect();
        for guest in guests {
            guest.join().unwrap();
        }
        assert_eq!(busy.load(Ordering::Acquire), GUESTS);
        drop(wait);
    }

    /// One sample more than is kept would be one more with every request for ever.
    #[test]
    fn what_is_measured_is_gathered() {
        let metrics = Metrics::new(Some(([127, 0, 0, 1], 0).into()));
        let store = metrics.of_store("memory://x");
        for _ in 0..5000 {
            store.done(
                super::super::Request::Create,
                super::super::Outcome::Ok,
                Duration::from_millis(3),
            );
        }
        let super::super::Target::Endpoint(endpoint) = &metrics.0.target else {
            panic!("it has an endpoint")
        };
        let text = endpoint.text.render();
        for line in [
            "replvfs_store_requests_total{replica=\"memory://x\",kind=\"create\",outcome=\"ok\"} 5000",
            "replvfs_store_request_duration_seconds_bucket{replica=\"memory://x\",kind=\"create\",le=\"0.001\"} 0",
            "replvfs_store_request_duration_seconds_bucket{replica=\"memory://x\",kind=\"create\",le=\"0.005\"} 5000",
            "replvfs_store_request_duration_seconds_count{replica=\"memory://x\",kind=\"create\"} 5000",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
