//! Between a client and an HTTP server: makes of a server that honours conditions one that does not, or not when it matters, and of an emulator one that a client can read.
//!
//! One request a connection, each in a thread.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What becomes of requests and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// One conditional creation goes through at a time: atomic, where the server by itself looks before it writes.
    OneAtATime,
    /// `If-None-Match` goes no further: every conditional creation succeeds.
    IgnoresTheCondition,
    /// What `If-None-Match` asks for is looked up first, and the object then written without it: right alone, wrong for two at once.
    LooksThenWrites,
    /// Members of JSON answers that are null are left out, as the real service does it.
    LeavesOutNulls,
}

#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: u16,
    manner: Manner,
    requests: AtomicUsize,
    gate: Gate,
    turn: Mutex<()>,
}

/// Lets writers that have looked wait for each other.
#[derive(Debug, Default)]
struct Gate {
    /// How many are to come, and how many have.
    state: Mutex<(usize, usize)>,
    all_there: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().expect("the gate");
        if state.0 == 0 {
            return;
        }
        state.1 += 1;
        if state.1 >= state.0 {
            *state = (0, 0);
            self.all_there.notify_all();
            return;
        }
        // Somebody may not come: who creates something else does not look here.
        let _ = self
            .all_there
            .wait_timeout_while(state, Duration::from_secs(20), |state| state.0 > 0);
    }
}

pub(crate) struct Message {
    pub(crate) head: Vec<String>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn read(stream: &mut impl BufRead, to_the_end: bool) -> std::io::Result<Option<Message>> {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            head.push(line);
        }
        let mut message = Message { head, body: Vec::new() };
        if message
            .header("transfer-encoding")
            .is_some_and(|how| how.contains("chunked"))
        {
            loop {
                let mut line = String::new();
                stream.read_line(&mut line)?;
                let len = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
                let at = message.body.len();
                message.body.resize(at + len, 0);
                stream.read_exact(&mut message.body[at..])?;
                line.clear();
                stream.read_line(&mut line)?;
                if len == 0 {
                    break;
                }
            }
        } else if let Some(len) = message.header("content-length") {
            // The answer to a HEAD has one, and no body.
            let len = len.parse().unwrap_or(0);
            stream.take(len).read_to_end(&mut message.body)?;
        } else if to_the_end {
            stream.read_to_end(&mut message.body)?;
        }
        Ok(Some(message))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.iter().skip(1).filter_map(|line| line.split_once(':'));
        let found = headers.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    }

    pub(crate) fn remove(&mut self, name: &str) -> bool {
        let before = self.head.len();
        let is_it = |line: &String| {
            line.split_once(':')
                .is_some_and(|(known, _)| known.eq_ignore_ascii_case(name))
        };
        self.head.retain(|line| !is_it(line));
        before != self.head.len()
    }

    pub(crate) fn method(&self) -> &str {
        self.head[0].split(' ').next().unwrap_or_default()
    }

    /// With its query.
    pub(crate) fn path(&self) -> &str {
        self.head[0].split(' ').nth(1).unwrap_or_default()
    }

    pub(crate) fn write(&mut self, stream: &mut TcpStream) -> std::io::Result<()> {
        stream.write_all(&self.bytes())
    }

    pub(crate) fn bytes(&mut self) -> Vec<u8> {
        for name in ["connection", "transfer-encoding"] {
            self.remove(name);
        }
        self.head.push("Connection: close".to_owned());
        let is_answer_to_head = self.body.is_empty() && self.header("content-length").is_some();
        if !is_answer_to_head {
            self.remove("content-length");
            self.head.push(format!("Content-Length: {}", self.body.len()));
        }
        let mut bytes = format!("{}\r\n\r\n", self.head.join("\r\n")).into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// Serves each connection in a thread, on the port that is returned.
pub(crate) fn serve_each(serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            // Whoever asked sees a connection that ends.
            std::thread::spawn(move || drop(serve(stream)));
        }
    });
    port
}

impl Proxy {
    pub(crate) fn start(upstream: u16, manner: Manner) -> Proxy {
        let shared = Arc::new(Shared {
            upstream,
            manner,
            requests: AtomicUsize::new(0),
            gate: Gate::default(),
            turn: Mutex::default(),
        });
        let of_thread = Arc::clone(&shared);
        let port = serve_each(move |client| of_thread.serve(client));
        Proxy { port, shared }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The next so many conditional creations have looked before any of them writes.
    pub(crate) fn let_them_meet(&self, writers: usize) {
        *self.shared.gate.state.lock().expect("the gate") = (writers, 0);
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) -> std::io::Result<()> {
        let Some(mut request) = Message::read(&mut BufReader::new(client.try_clone()?), false)? else {
            return Ok(());
        };
        self.requests.fetch_add(1, Ordering::Relaxed);
        let keeps = matches!(self.manner, Manner::LeavesOutNulls | Manner::OneAtATime);
        let conditional = !keeps && request.remove("if-none-match");
        if conditional {
            let looks = self.manner == Manner::LooksThenWrites;
            if looks && self.looks(&request)? {
                let text = "<Error><Code>PreconditionFailed</Code><Message>it is there</Message></Error>";
                let mut answer = Message {
                    head: vec!["HTTP/1.1 412 Precondition Failed".to_owned()],
                    body: text.as_bytes().to_vec(),
                };
                return answer.write(&mut client);
            }
            self.gate.pass();
        }
        let is_content = request.head[0].contains("alt=media");
        let is_alone = self.manner == Manner::OneAtATime && request.header("if-none-match").is_some();
        let turn = is_alone.then(|| self.turn.lock().expect("its turn"));
        let mut answer = ask(self.upstream, request)?;
        drop(turn);
        if self.manner == Manner::LeavesOutNulls
            && !is_content
            && answer.header("content-type").is_some_and(|kind| kind.contains("json"))
            && let Ok(mut json) = serde_json::from_slice(&answer.body)
        {
            leave_out_nulls(&mut json);
            answer.body = serde_json::to_vec(&json).unwrap_or_default();
        }
        answer.write(&mut client)
    }

    fn looks(&self, request: &Message) -> std::io::Result<bool> {
        let path = request.path().split('?').next().unwrap_or_default();
        let mut head = vec![
            format!("HEAD {path} HTTP/1.1"),
            format!("Host: 127.0.0.1:{}", self.upstream),
        ];
        let authorization = request.header("authorization");
        head.extend(authorization.map(|value| format!("Authorization: {value}")));
        let answer = ask(self.upstream, Message { head, body: Vec::new() })?;
        Ok(answer.head[0].contains(" 200"))
    }
}

/// What a server answers.
pub(crate) fn ask(upstream: u16, mut request: Message) -> std::io::Result<Message> {
    let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
    let is_head = request.method() == "HEAD";
    request.write(&mut server)?;
    let mut reader = BufReader::new(server);
    let answer = if is_head {
        // No body, whatever it says of a length.
        let mut head = Vec::new();
        for line in reader.lines() {
            let line = line?;
            if line.is_empty() {
                break;
            }
            head.push(line);
        }
        Some(Message { head, body: Vec::new() })
    } else {
        Message::read(&mut reader, true)?
    };
    answer
        .filter(|answer| !answer.head.is_empty())
        .ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}

fn leave_out_nulls(json: &mut serde_json::Value) {
    match json {
        serde_json::Value::Object(members) => {
            members.retain(|_, value| !value.is_null());
            members.values_mut().for_each(leave_out_nulls);
        }
        serde_json::Value::Array(values) => values.iter_mut().for_each(leave_out_nulls),
        _ => {}
    }
}
