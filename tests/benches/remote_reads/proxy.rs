//! What a store that is not on this machine costs: a proxy before it that holds each request back for a while, and counts.
//!
//! It speaks as much HTTP/1.1 as clients of S3 do who read: requests one after the other on connections that stay open, with bodies of a known length.
//! Each connection has its threads, so that none waits for another.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Sub;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What went through.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) gets: u64,
    pub(crate) heads: u64,
    pub(crate) lists: u64,
    pub(crate) others: u64,
    /// Bytes of the answers, with their heads.
    pub(crate) bytes: u64,
}

impl Traffic {
    pub(crate) fn requests(&self) -> u64 {
        self.gets + self.heads + self.lists + self.others
    }
}

impl Sub for Traffic {
    type Output = Traffic;

    fn sub(self, before: Traffic) -> Traffic {
        Traffic {
            gets: self.gets - before.gets,
            heads: self.heads - before.heads,
            lists: self.lists - before.lists,
            others: self.others - before.others,
            bytes: self.bytes - before.bytes,
        }
    }
}

/// A proxy at work. It ends with the program.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    traffic: Arc<Mutex<Traffic>>,
}

impl Proxy {
    pub(crate) fn start(server: SocketAddr, delay: Duration) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let proxy = Proxy {
            address: listener.local_addr().expect("an address"),
            traffic: Arc::default(),
        };
        let traffic = Arc::clone(&proxy.traffic);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let traffic = Arc::clone(&traffic);
                std::thread::spawn(move || {
                    // Clients close connections whenever they like.
                    let _ = client.and_then(|client| pass(&client, server, delay, &traffic));
                });
            }
        });
        proxy
    }

    pub(crate) fn traffic(&self) -> Traffic {
        *self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pass(client: &TcpStream, server: SocketAddr, delay: Duration, traffic: &Arc<Mutex<Traffic>>) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
    let counter = Arc::clone(traffic);
    let answers = std::thread::spawn(move || {
        let mut buffer = vec![0; 256 << 10];
        acknowledge_at_once(&from);
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            acknowledge_at_once(&from);
            count(&counter, |traffic| traffic.bytes += read as u64);
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    let passed = requests(client, &server, delay, traffic);
    let _ = server.shutdown(Shutdown::Write);
    let _ = answers.join();
    passed
}

/// Some servers send the head of an answer, and its body only when that was acknowledged: the 40 ms for which Linux puts that off would be none of the store's.
fn acknowledge_at_once(stream: &TcpStream) {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open as long as `stream` lives, and `on` is an int of the length that is said.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_QUICKACK,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "TCP_QUICKACK: {}", io::Error::last_os_error());
}

fn requests(client: &TcpStream, mut server: &TcpStream, delay: Duration, traffic: &Mutex<Traffic>) -> io::Result<()> {
    let mut client = BufReader::new(client);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if client.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        count(traffic, |traffic| *kind(&head, traffic) += 1);
        std::thread::sleep(delay);
        server.write_all(head.as_bytes())?;
        io::copy(&mut client.by_ref().take(body(&head)), &mut server)?;
    }
}

fn kind<'traffic>(head: &str, traffic: &'traffic mut Traffic) -> &'traffic mut u64 {
    let target = head.split(' ').nth(1).unwrap_or_default();
    match head.split(' ').next() {
        Some("GET") if target.contains("list-type=") => &mut traffic.lists,
        Some("GET") => &mut traffic.gets,
        Some("HEAD") => &mut traffic.heads,
        _ => &mut traffic.others,
    }
}

/// The bytes of a request behind its head.
fn body(head: &str) -> u64 {
    let mut fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    length.map_or(0, |(_, length)| length.trim().parse().expect("a length"))
}

fn count(traffic: &Mutex<Traffic>, add: impl FnOnce(&mut Traffic)) {
    add(&mut traffic.lock().unwrap_or_else(PoisonError::into_inner));
}
