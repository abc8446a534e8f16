//! An S3 server of our own that counts what it is asked, for benchmarks: [`Server::start`] runs it in a process of its own, so that it is in no measurement.
//!
//! Objects, conditional creation, ranges, uploads in parts, lists in pages, and deletion, by one or by many: what replvfs and Litestream ask. Signatures and checksums
//! are not looked at. The program that uses it calls [`serve`] when its first argument is [`ROLE`].

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The one bucket that there is.
pub const BUCKET: &str = "bench";
/// The first argument of the process that is the server.
pub const ROLE: &str = "--serve";

/// Requests, as they are on the bill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// PUT of an object, or of a part of one; POST that begins or ends an upload in parts.
    Put,
    /// GET of an object.
    Get,
    /// HEAD of an object.
    Head,
    /// A page of a list.
    List,
    /// One request, for one object or many.
    Delete,
}

impl Kind {
    /// All of them, in the order in which they are counted.
    pub const ALL: [Kind; 5] = [Kind::Put, Kind::Get, Kind::Head, Kind::List, Kind::Delete];
}

/// What was asked by one group: the first folder in the bucket, or `reader` for who comes by the server's other name.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    by_kind: [u64; Kind::ALL.len()],
    /// Content that was put there.
    pub bytes: u64,
}

impl Counts {
    /// The requests of a kind.
    pub fn of(&self, kind: Kind) -> u64 {
        self.by_kind[kind as usize]
    }

    /// All requests.
    pub fn all(&self) -> u64 {
        self.by_kind.iter().sum()
    }

    /// Those after an earlier count.
    #[must_use]
    pub fn since(&self, before: &Counts) -> Counts {
        let mut since = *self;
        for (now, before) in since.by_kind.iter_mut().zip(before.by_kind) {
            *now -= before;
        }
        since.bytes -= before.bytes;
        since
    }
}

/// An object that has been put there.
#[derive(Debug, Clone)]
pub struct Upload {
    /// When it was there, in microseconds since 1970.
    pub at: u64,
    /// Its name in the bucket.
    pub key: String,
    /// Its length in bytes.
    pub bytes: usize,
}

/// The server's process. Ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    /// A server on this machine.
    pub fn start() -> Server {
        Server::start_away(Duration::ZERO)
    }

    /// One that holds each request back for so long, as a distance would, before it does what is asked.
    pub fn start_away(delay: Duration) -> Server {
        let mut process = Command::new(std::env::current_exe().expect("the program"))
            .args([ROLE, &delay.as_millis().to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server");
        let mut line = String::new();
        let out = process.stdout.take().expect("its output");
        BufReader::new(out).read_line(&mut line).expect("its address");
        Server {
            process,
            address: line.trim().parse().expect("an address"),
        }
    }

    /// As the replica of a group. In a database's URI.
    pub fn replica(&self, group: &str, name: &str) -> String {
        replica(&self.address.to_string(), group, name)
    }

    /// The same for who reads it.
    pub fn replica_for_reader(&self, group: &str, name: &str) -> String {
        replica(&format!("localhost:{}", self.address.port()), group, name)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a group has asked until now.
    pub fn counts(&self, group: &str) -> Counts {
        counts(self.address, group)
    }

    /// What a group has put there until now, in order.
    pub fn uploads(&self, group: &str) -> Vec<Upload> {
        let lines = ask(self.address, &format!("-/{group}/uploads"));
        let upload = |line: &str| {
            let mut words = line.split(' ');
            let mut word = || words.next().expect("a word");
            Upload {
                at: word().parse().expect("a time"),
                bytes: word().parse().expect("a length"),
                key: word().to_owned(),
            }
        };
        lines.lines().map(upload).collect()
    }
}

/// A replica of a group on the server at `host`, for a database's URI.
pub fn replica(host: &str, group: &str, name: &str) -> String {
    format!(
        "s3://{BUCKET}/{group}/{name}?endpoint=http://{host}%26region=us-east-1%26access_key_id=bench%26secret_access_key=bench-secret"
    )
}

/// What a group has asked the server at `address` until now.
pub fn counts(address: SocketAddr, group: &str) -> Counts {
    let body = ask(address, &format!("-/{group}"));
    let mut numbers = body.split(' ').map(|number| number.parse().expect("a number"));
    let mut counts = Counts::default();
    counts.by_kind.fill_with(|| numbers.next().expect("a count"));
    counts.bytes = numbers.next().expect("bytes");
    counts
}

fn ask(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the server");
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("asking");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the answer");
    answer.split_once("\r\n\r\n").expect("a body").1.to_owned()
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Default)]
struct Bucket {
    objects: BTreeMap<String, (Arc<[u8]>, jiff::Timestamp)>,
    counts: HashMap<String, Counts>,
    uploads: HashMap<String, Vec<Upload>>,
    /// Objects that come in parts, by the number of their upload.
    parts: HashMap<String, BTreeMap<u32, Vec<u8>>>,
    begun: u64,
}

impl Bucket {
    fn count(&mut self, group: &str, kind: Kind, bytes: usize) {
        let counts = self.counts.entry(group.to_owned()).or_default();
        counts.by_kind[kind as usize] += 1;
        counts.bytes += bytes as u64;
    }

    fn insert(&mut self, group: &str, key: &str, body: &[u8]) {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.objects
            .insert(key.to_owned(), (body.into(), jiff::Timestamp::now()));
        self.uploads.entry(group.to_owned()).or_default().push(Upload {
            at: since_1970
                .expect("after 1970")
                .as_micros()
                .try_into()
                .expect("this millennium"),
            key: key.to_owned(),
            bytes: body.len(),
        });
    }
}

/// The process that is the server.
pub fn serve() {
    let delay = std::env::args().nth(2).and_then(|word| word.parse().ok());
    let delay = Duration::from_millis(delay.unwrap_or(0));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("threads").block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        println!("{}", listener.local_addr().expect("its address"));
        let bucket = Arc::new(Mutex::new(Bucket::default()));
        loop {
            let (stream, _) = listener.accept().await.expect("a guest");
            let bucket = Arc::clone(&bucket);
            tokio::spawn(async move {
                // A guest who goes away is no trouble.
                let _ = guest(stream, &bucket, delay).await;
            });
        }
    });
}

struct Request {
    method: String,
    /// Without the bucket.
    key: String,
    query: BTreeMap<String, String>,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

async fn guest(mut stream: tokio::net::TcpStream, bucket: &Mutex<Bucket>, delay: Duration) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut read = Vec::new();
    while let Some(request) = next(&mut stream, &mut read).await? {
        let head_only = request.method == "HEAD";
        if !delay.is_zero() && !request.key.starts_with("-/") {
            tokio::time::sleep(delay).await;
        }
        let (status, headers, body) = answer(&request, bucket);
        let mut head = format!("HTTP/1.1 {status}\r\n{headers}");
        if !head_only {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        head += "\r\n";
        let mut all = head.into_bytes();
        if !head_only {
            all.extend_from_slice(&body);
        }
        stream.write_all(&all).await?;
        if request.headers.get("connection").is_some_and(|value| value == "close") {
            break;
        }
    }
    stream.shutdown().await
}

/// `None` at the end of the connection.
async fn next(stream: &mut tokio::net::TcpStream, read: &mut Vec<u8>) -> std::io::Result<Option<Request>> {
    let end = loop {
        if let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(read).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).into_owned();
    read.drain(..end);
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    if headers.contains_key("expect") {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    assert!(
        !headers.contains_key("transfer-encoding"),
        "bodies have a length: {head}"
    );
    let length = headers
        .get("content-length")
        .and_then(|length| length.parse().ok())
        .unwrap_or(0);
    while read.len() < length {
        if stream.read_buf(read).await? == 0 {
            return Ok(None);
        }
    }
    let mut body: Vec<u8> = read.drain(..length).collect();
    if headers.contains_key("x-amz-decoded-content-length") {
        body = without_chunks(&body);
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    Ok(Some(Request {
        key: decoded(path)
            .trim_start_matches(&format!("/{BUCKET}"))
            .trim_start_matches('/')
            .to_owned(),
        query: pairs.map(|(name, value)| (name.to_owned(), decoded(value))).collect(),
        body,
        method,
        headers,
    }))
}

/// What is in a body of the encoding `aws-chunked`: chunks behind their lengths in hexadecimal digits, and trailers.
fn without_chunks(body: &[u8]) -> Vec<u8> {
    let (mut content, mut rest) = (Vec::with_capacity(body.len()), body);
    while let Some(end) = rest.windows(2).position(|bytes| bytes == b"\r\n") {
        let line = std::str::from_utf8(&rest[..end]).expect("a chunk's length");
        let digits = line.split(';').next().expect("a first word");
        let length = usize::from_str_radix(digits, 16).expect("a chunk's length");
        if length == 0 {
            break;
        }
        content.extend_from_slice(&rest[end + 2..end + 2 + length]);
        rest = &rest[end + 2 + length + 2..];
    }
    content
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let escaped = more
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

type Answer = (&'static str, String, Vec<u8>);

fn answer(request: &Request, bucket: &Mutex<Bucket>) -> Answer {
    let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
    let by_other_name = request
        .headers
        .get("host")
        .is_some_and(|host| host.starts_with("localhost"));
    let group_of = |key: &str| match by_other_name {
        true => "reader".to_owned(),
        false => key.split('/').next().unwrap_or_default().to_owned(),
    };
    let none = || ("404 Not Found", String::new(), error("NoSuchKey"));
    match request.method.as_str() {
        "GET" if request.key.starts_with("-/") && request.key.ends_with("/uploads") => {
            let group = request.key.trim_start_matches("-/").trim_end_matches("/uploads");
            let uploads = bucket.uploads.get(group).into_iter().flatten();
            let lines = uploads.map(|upload| format!("{} {} {}\n", upload.at, upload.bytes, upload.key));
            ("200 OK", String::new(), lines.collect::<String>().into_bytes())
        }
        "GET" if request.key.starts_with("-/") => {
            let counts = bucket.counts.get(&request.key[2..]).copied().unwrap_or_default();
            let numbers = counts.by_kind.iter().chain([&counts.bytes]);
            let numbers: Vec<String> = numbers.map(ToString::to_string).collect();
            ("200 OK", String::new(), numbers.join(" ").into_bytes())
        }
        "GET" if request.query.contains_key("list-type") => {
            let prefix = request.query.get("prefix").cloned().unwrap_or_default();
            bucket.count(&group_of(&prefix), Kind::List, 0);
            (
                "200 OK",
                "Content-Type: application/xml\r\n".to_owned(),
                list(request, &bucket, &prefix),
            )
        }
        "GET" | "HEAD" => {
            let kind = if request.method == "GET" { Kind::Get } else { Kind::Head };
            bucket.count(&group_of(&request.key), kind, 0);
            let Some((content, time)) = bucket.objects.get(&request.key) else {
                return none();
            };
            part(request, content, *time)
        }
        "PUT" | "POST" if request.query.contains_key("uploadId") || request.query.contains_key("uploads") => {
            let group = group_of(&request.key);
            parts(request, &mut bucket, &group)
        }
        "PUT" => {
            let group = group_of(&request.key);
            bucket.count(&group, Kind::Put, request.body.len());
            if request.headers.contains_key("if-none-match") && bucket.objects.contains_key(&request.key) {
                return ("412 Precondition Failed", String::new(), error("PreconditionFailed"));
            }
            bucket.insert(&group, &request.key, &request.body);
            ("200 OK", "ETag: \"1\"\r\n".to_owned(), Vec::new())
        }
        "DELETE" => {
            bucket.count(&group_of(&request.key), Kind::Delete, 0);
            match request.query.get("uploadId") {
                Some(id) => drop(bucket.parts.remove(id)),
                None => drop(bucket.objects.remove(&request.key)),
            }
            ("204 No Content", String::new(), Vec::new())
        }
        "POST" if request.query.contains_key("delete") => {
            let text = String::from_utf8_lossy(&request.body).into_owned();
            let keys: Vec<&str> = text
                .split("<Key>")
                .skip(1)
                .filter_map(|rest| rest.split("</Key>").next())
                .collect();
            bucket.count(&group_of(keys.first().copied().unwrap_or_default()), Kind::Delete, 0);
            let mut body = "<DeleteResult>".to_owned();
            for key in keys {
                bucket.objects.remove(key);
                body += &format!("<Deleted><Key>{key}</Key></Deleted>");
            }
            ("200 OK", String::new(), (body + "</DeleteResult>").into_bytes())
        }
        other => panic!("{other} {} {:?} is not known here", request.key, request.query),
    }
}

/// An upload in parts: its beginning, a part, its end.
fn parts(request: &Request, bucket: &mut Bucket, group: &str) -> Answer {
    bucket.count(
        group,
        Kind::Put,
        if request.method == "PUT" { request.body.len() } else { 0 },
    );
    let Some(id) = request.query.get("uploadId") else {
        bucket.begun += 1;
        let id = bucket.begun.to_string();
        bucket.parts.insert(id.clone(), BTreeMap::new());
        let (key, root) = (&request.key, "InitiateMultipartUploadResult");
        let body = format!("<{root}><Bucket>{BUCKET}</Bucket><Key>{key}</Key><UploadId>{id}</UploadId></{root}>");
        return (
            "200 OK",
            "Content-Type: application/xml\r\n".to_owned(),
            body.into_bytes(),
        );
    };
    if request.method == "PUT" {
        let number = request.query.get("partNumber").and_then(|number| number.parse().ok());
        let upload = bucket.parts.get_mut(id).expect("an upload that was begun");
        upload.insert(number.expect("a part's number"), request.body.clone());
        return ("200 OK", "ETag: \"1\"\r\n".to_owned(), Vec::new());
    }
    let upload = bucket.parts.remove(id).expect("an upload that was begun");
    let content: Vec<u8> = upload.into_values().flatten().collect();
    bucket.insert(group, &request.key, &content);
    let (key, root) = (&request.key, "CompleteMultipartUploadResult");
    let body = format!("<{root}><Bucket>{BUCKET}</Bucket><Key>{key}</Key><ETag>\"1\"</ETag></{root}>");
    (
        "200 OK",
        "Content-Type: application/xml\r\n".to_owned(),
        body.into_bytes(),
    )
}

fn error(code: &str) -> Vec<u8> {
    format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>").into_bytes()
}

fn part(request: &Request, content: &[u8], time: jiff::Timestamp) -> Answer {
    let time = time.strftime("%a, %d %b %Y %H:%M:%S GMT");
    let headers = format!("ETag: \"1\"\r\nLast-Modified: {time}\r\nAccept-Ranges: bytes\r\n");
    let range = request
        .headers
        .get("range")
        .and_then(|range| range.strip_prefix("bytes="));
    if request.method == "HEAD" {
        return (
            "200 OK",
            format!("{headers}Content-Length: {}\r\n", content.len()),
            Vec::new(),
        );
    }
    let Some((from, to)) = range.and_then(|range| range.split_once('-')) else {
        return ("200 OK", headers, content.to_vec());
    };
    let len = content.len();
    let (from, to) = match (from.parse::<usize>(), to.parse::<usize>()) {
        (Ok(from), Ok(to)) => (from, (to + 1).min(len)),
        (Ok(from), Err(_)) => (from, len),
        (Err(_), Ok(last)) => (len.saturating_sub(last), len),
        _ => (0, len),
    };
    if from >= to {
        return ("416 Range Not Satisfiable", String::new(), error("InvalidRange"));
    }
    let headers = format!("{headers}Content-Range: bytes {from}-{}/{len}\r\n", to - 1);
    ("206 Partial Content", headers, content[from..to].to_vec())
}

fn list(request: &Request, bucket: &Bucket, prefix: &str) -> Vec<u8> {
    let number = |name: &str| request.query.get(name).and_then(|value| value.parse().ok());
    let (most, delimiter) = (number("max-keys").unwrap_or(1000), request.query.get("delimiter"));
    let after = ["continuation-token", "start-after"].map(|name| request.query.get(name).cloned());
    let after = after.into_iter().flatten().next().unwrap_or_default();
    let (mut found, mut body, mut last) = (0, String::new(), String::new());
    let mut is_cut = false;
    for (key, (content, time)) in bucket.objects.range(prefix.to_owned()..) {
        if !key.starts_with(prefix) {
            break;
        }
        let folder = delimiter
            .filter(|delimiter| !delimiter.is_empty())
            .and_then(|delimiter| {
                let end = key[prefix.len()..].find(delimiter.as_str())?;
                Some(key[..prefix.len() + end + delimiter.len()].to_owned())
            });
        let name = folder.as_ref().unwrap_or(key);
        if *name <= after || *name == last {
            continue;
        }
        if found == most {
            is_cut = true;
            break;
        }
        found += 1;
        last.clone_from(name);
        body += &match folder {
            Some(folder) => format!("<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"),
            None => format!(
                "<Contents><Key>{key}</Key><LastModified>{time:.3}</LastModified><ETag>\"1\"</ETag><Size>{}</Size></Contents>",
                content.len()
            ),
        };
    }
    let next = match is_cut {
        true => format!("<NextContinuationToken>{last}</NextContinuationToken>"),
        false => String::new(),
    };
    format!(
        "<ListBucketResult><Prefix>{prefix}</Prefix><KeyCount>{found}</KeyCount><IsTruncated>{is_cut}</IsTruncated>{next}{body}</ListBucketResult>"
    )
    .into_bytes()
}
