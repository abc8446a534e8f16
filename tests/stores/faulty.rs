//! Between a client and an HTTP server: what happens to requests and answers on their way, and a journal of what got there.
//!
//! One request a connection, each in a thread, as in `proxy`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::proxy::{Message, ask, serve_each};

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Each request is held back.
    Slow(Duration),
    /// Nobody is there.
    Away,
    /// The connection ends in the middle of what is sent.
    RequestCut,
    /// It ends when all has been done, before a word of the answer.
    AnswerLost,
    /// It ends in the middle of the answer.
    AnswerCut,
    /// It is taken, and never answered.
    Stalls,
    /// The answer stops in its middle, and the connection stays.
    AnswerStalls,
    /// What is read has only a half, and the answer says that this is all.
    Short,
    /// An answer of an error: its status, its code, and whether it tells when to come again.
    Error(u16, &'static str, bool),
    /// Lists have nothing of what has come since.
    ListsLate,
}

#[derive(Debug)]
pub(crate) struct FaultyProxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: u16,
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct State {
    fault: Option<Fault>,
    requests: usize,
    /// What was put under each name, by its hash, as often as it came.
    puts: BTreeMap<String, BTreeSet<u64>>,
    /// What the server has said yes to, in that order.
    stored: Vec<String>,
    since: BTreeSet<String>,
}

impl FaultyProxy {
    pub(crate) fn start(upstream: u16) -> FaultyProxy {
        let shared = Arc::new(Shared {
            upstream,
            state: Mutex::default(),
            over: Condvar::new(),
        });
        let of_thread = Arc::clone(&shared);
        let port = serve_each(move |client| of_thread.serve(client));
        FaultyProxy { port, shared }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// From now on. Requests are counted anew.
    pub(crate) fn begin(&self, fault: Fault) {
        let mut state = self.shared.state();
        state.fault = Some(fault);
        state.requests = 0;
        state.since.clear();
    }

    /// Everything works again. Who waits for an answer has a connection that ends.
    pub(crate) fn end(&self) {
        self.shared.state().fault = None;
        self.shared.over.notify_all();
    }

    /// Since the fault began.
    pub(crate) fn requests(&self) -> usize {
        self.shared.state().requests
    }

    /// Names under which different contents were put.
    pub(crate) fn put_twice(&self) -> Vec<String> {
        let state = self.shared.state();
        let twice = state.puts.iter().filter(|(_, contents)| contents.len() > 1);
        twice.map(|(name, _)| name.clone()).collect()
    }

    /// The names of what the server has said yes to, in that order.
    pub(crate) fn stored(&self) -> Vec<String> {
        self.shared.state().stored.clone()
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the proxy")
    }

    fn until_over(&self) {
        let state = self.state();
        drop(self.over.wait_while(state, |state| state.fault.is_some()));
    }

    fn serve(&self, mut client: TcpStream) -> std::io::Result<()> {
        let fault = {
            let mut state = self.state();
            state.requests += 1;
            state.fault
        };
        match fault {
            Some(Fault::Away) => return Ok(()),
            Some(Fault::RequestCut) => {
                let _ = client.read(&mut [0; 200])?;
                return Ok(());
            }
            Some(Fault::Slow(pause)) => std::thread::sleep(pause),
            _ => {}
        }
        let Some(mut request) = Message::read(&mut BufReader::new(client.try_clone()?), false)? else {
            return Ok(());
        };
        let (method, path) = (request.method().to_owned(), request.path().to_owned());
        let name = path.split('?').next().unwrap_or_default().to_owned();
        let is_put = method == "PUT" && !path.contains("uploadId");
        if is_put {
            let content = hash(&request.body);
            self.state().puts.entry(name.clone()).or_default().insert(content);
        }
        match fault {
            Some(Fault::Stalls) => {
                self.until_over();
                return Ok(());
            }
            Some(Fault::Error(status, code, tells_when)) => {
                return refused(status, code, tells_when, method == "HEAD").write(&mut client);
            }
            _ => {}
        }
        request.remove("connection");
        let mut answer = ask(self.upstream, request)?;
        // A large object is there when its parts are put together.
        let creates = is_put
            || method == "POST" && path.contains("uploadId") && !answer.body.windows(7).any(|part| part == b"<Error>");
        if creates && answer.head[0].contains(" 200") {
            let mut state = self.state();
            state.stored.push(name.clone());
            state.since.insert(name);
        }
        match fault {
            Some(Fault::AnswerLost) => Ok(()),
            Some(Fault::AnswerCut | Fault::AnswerStalls) => {
                let bytes = answer.bytes();
                client.write_all(&bytes[..bytes.len() / 2])?;
                if fault == Some(Fault::AnswerStalls) {
                    self.until_over();
                }
                Ok(())
            }
            Some(Fault::Short) if method == "GET" && !path.contains("list-type") => {
                let len = answer.body.len() / 2;
                answer.body.truncate(len);
                answer.remove("content-range");
                answer.write(&mut client)
            }
            Some(Fault::ListsLate) if path.contains("list-type") => {
                answer.body = self.without_new(&answer.body);
                answer.write(&mut client)
            }
            _ => answer.write(&mut client),
        }
    }

    /// A list without what has come since.
    fn without_new(&self, list: &[u8]) -> Vec<u8> {
        let list = String::from_utf8_lossy(list).into_owned();
        let state = self.state();
        let mut parts = list.split("<Contents>");
        let mut left = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (entry, behind) = part.split_once("</Contents>").unwrap_or((part, ""));
            let key = entry.split("<Key>").nth(1).and_then(|key| key.split("</Key>").next());
            let is_new = key.is_some_and(|key| state.since.iter().any(|name| name.ends_with(key)));
            if !is_new {
                left.push_str(&format!("<Contents>{entry}</Contents>"));
            }
            left.push_str(behind);
        }
        left.into_bytes()
    }
}

fn refused(status: u16, code: &str, tells_when: bool, is_head: bool) -> Message {
    let mut head = vec![format!("HTTP/1.1 {status} {code}")];
    if tells_when {
        head.push("Retry-After: 1".to_owned());
    }
    // The answer to a HEAD has no body.
    let body = match is_head {
        true => String::new(),
        false => format!("<Error><Code>{code}</Code><Message>it is so</Message><RequestId>1</RequestId></Error>"),
    };
    Message {
        head,
        body: body.into_bytes(),
    }
}

fn hash(content: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    hasher.finish()
}
