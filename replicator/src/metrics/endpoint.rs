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
use tokio::sync::Semaphore;

use super::Metrics;
use crate::pipeline;

/// Connections at a time.
const GUESTS: usize = 8;
/// For the question, the answer and the end of a connection together.
const MANNERS: Duration = Duration::from_secs(5);
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

    pub(super) fn serve(&self, runtime: &Handle, metrics: &Metrics) {
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
                let (text, metrics) = (self.text.clone(), metrics.clone());
                runtime.spawn(async move { accept(listening, open, &text, &metrics).await });
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

async fn accept(listening: Listening, _open: Open, text: &PrometheusHandle, metrics: &Metrics) {
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
        let (text, metrics) = (text.clone(), metrics.clone());
        tokio::spawn(async move {
            // The guest's trouble is its own.
            let _ = tokio::time::timeout(MANNERS, answer(stream, not_inherited, &text, metrics)).await;
            drop(guest);
        });
    }
}

async fn answer(
    mut stream: TcpStream,
    not_inherited: NotInherited,
    text: &PrometheusHandle,
    metrics: Metrics,
) -> io::Result<()> {
    let (status, body) = match question(&mut stream).await? {
        Question::Metrics => {
            let text = text.clone();
            // Looking at all databases takes locks, for a moment each.
            let render = move || {
                pipeline::publish_all();
                let body = text.render();
                drop(metrics);
                body
            };
            match tokio::task::spawn_blocking(render).await {
                Ok(body) => ("200 OK", body),
                Err(_) => ("500 Internal Server Error", "this is a bug in replvfs\n".to_owned()),
            }
        }
        Question::Else => ("404 Not Found", "the metrics are at /metrics\n".to_owned()),
        Question::Method => ("405 Method Not Allowed", "GET /metrics\n".to_owned()),
        Question::TooLong => ("431 Request Header Fields Too Large", "GET /metrics\n".to_owned()),
        Question::Garbage => ("400 Bad Request", "GET /metrics\n".to_owned()),
    };
    let mut head = String::with_capacity(160);
    let _ = write!(
        head,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
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

async fn question(stream: &mut TcpStream) -> io::Result<Question> {
    let mut head = vec![0; LONGEST_HEAD_BYTES];
    let mut len = 0;
    loop {
        let Some(room) = head.get_mut(len..).filter(|room| !room.is_empty()) else {
            return Ok(Question::TooLong);
        };
        let read = stream.read(room).await?;
        if read == 0 {
            return Ok(Question::Garbage);
        }
        len += read;
        if let Some(question) = understood(head.get(..len).unwrap_or_default()) {
            return Ok(question);
        }
    }
}

/// `None`: there is more to come.
fn understood(head: &[u8]) -> Option<Question> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) => {
            let path = request.path.unwrap_or_default();
            let path = path.split('?').next().unwrap_or_default();
            Some(match (request.method, path) {
                (Some("GET"), "/metrics") => Question::Metrics,
                (Some("GET"), _) => Question::Else,
                _ => Question::Method,
            })
        }
        Err(httparse::Error::TooManyHeaders) => Some(Question::TooLong),
        Err(_) => Some(Question::Garbage),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_understood_or_not() {
        let cases: [(&[u8], Option<Question>); 7] = [
            (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Some(Question::Metrics)),
            (b"GET /metrics?name[]=x HTTP/1.1\r\n\r\n", Some(Question::Metrics)),
            (b"GET /metrics HTTP/1.1\r\nHost: x\r\n", None),
            (b"GET / HTTP/1.1\r\n\r\n", Some(Question::Else)),
            (b"POST /metrics HTTP/1.1\r\n\r\n", Some(Question::Method)),
            (b"\x16\x03\x01\x02\x00\x01", Some(Question::Garbage)),
            (b"", None),
        ];
        for (head, question) in cases {
            assert_eq!(understood(head), question, "{}", String::from_utf8_lossy(head));
        }
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
