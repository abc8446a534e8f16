//! As little of HTTP as it takes to ask.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The status line and the body.
pub(super) fn get(address: SocketAddr, target: &str) -> io::Result<(String, String)> {
    // 1.0: the answer comes as it is, and ends with the connection.
    ask(
        address,
        format!("GET {target} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes(),
    )
}

pub(super) fn ask(address: SocketAddr, question: &[u8]) -> io::Result<(String, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(question)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default().to_owned();
    Ok((status, body.to_owned()))
}

/// Until somebody answers there.
pub(super) fn metrics(address: SocketAddr) -> String {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        match get(address, "/metrics") {
            Ok((status, body)) => {
                assert!(status.contains("200"), "{status}: {body}");
                return body;
            }
            Err(error) if std::time::Instant::now() > end => panic!("{address}: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// The value of a series that has all of these labels.
pub(super) fn value(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let mut lines = text.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && labels.iter().all(|label| line.contains(label))
    });
    lines.next()?.rsplit(' ').next()?.parse().ok()
}

/// Until the series is that.
pub(super) fn until(address: SocketAddr, name: &str, labels: &[&str], is: impl Fn(f64) -> bool) -> f64 {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let text = metrics(address);
        match value(&text, name, labels) {
            Some(value) if is(value) => return value,
            other if std::time::Instant::now() > end => panic!("{name}{labels:?} is {other:?} in\n{text}"),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
