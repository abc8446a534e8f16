//! `REPLVFS_LOG`: what replvfs does, a line each on standard error, for programs that install no subscriber of their own for `tracing`.
//!
//! Owns which lines (`replvfs=debug`), their form, and that writing them keeps nobody waiting: a line that standard error does not take now is left out. Only what
//! replvfs says itself can be asked for: what the libraries beneath it say may have credentials in it. It has no lock, no thread and no memory of its own, so that
//! it works in a child of `fork()` as it is, which is why it is not `tracing-subscriber`.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use replvfs_vfs::notice::escaped;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{Interest, set_global_default};
use tracing::{Event, Metadata, Subscriber};

use crate::config::ConfigError;
use crate::outside;

/// What all targets of ours begin with.
const OURS: &str = "replvfs";
/// A pipe that takes anything takes so much (`PIPE_BUF`).
const AT_ONCE_BYTES: usize = 4096;

/// Which lines are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    /// The longer name counts.
    levels: Vec<(String, LevelFilter)>,
}

impl Filter {
    /// `info`, `replvfs=debug`, `warn,replvfs::pipeline=debug`.
    pub(crate) fn parse(value: &OsStr) -> Result<Filter, ConfigError> {
        let fail = |why: &str| {
            ConfigError(format!(
                "REPLVFS_LOG={} is not understood: {why}; write error, warn, info, debug, trace or off, or names of modules with one, as \
                 info,replvfs::pipeline=debug",
                value.to_string_lossy()
            ))
        };
        let text = value.to_str().ok_or_else(|| fail("it is not UTF-8"))?;
        let mut levels: Vec<(String, LevelFilter)> = Vec::new();
        for part in text.split(',') {
            let (target, level) = match part.trim().split_once('=') {
                Some((target, level)) => (target.trim(), level.trim()),
                None => (OURS, part.trim()),
            };
            if !target.starts_with(OURS) {
                return Err(fail(&format!("{target} is no module of replvfs")));
            }
            let level = match level.to_ascii_lowercase().as_str() {
                "off" => LevelFilter::OFF,
                "error" => LevelFilter::ERROR,
                "warn" => LevelFilter::WARN,
                "info" => LevelFilter::INFO,
                "debug" => LevelFilter::DEBUG,
                "trace" => LevelFilter::TRACE,
                other => return Err(fail(&format!("{other:?} is no level"))),
            };
            levels.retain(|(known, _)| known != target);
            levels.push((target.to_owned(), level));
        }
        levels.sort_by_key(|(target, _)| std::cmp::Reverse(target.len()));
        Ok(Filter { levels })
    }

    fn level_of(&self, target: &str) -> LevelFilter {
        let found = self.levels.iter().find(|(known, _)| target.starts_with(known.as_str()));
        found.map_or(LevelFilter::OFF, |(_, level)| *level)
    }
}

/// From here on the lines are written, unless the program has a subscriber.
pub(crate) fn install(filter: Filter) {
    // Where standard error is closed, its number may be another file's.
    if rustix::fs::fstat(io::stderr().as_fd()).is_err() {
        return;
    }
    // The program's own subscriber counts.
    let _ = set_global_default(Lines { filter });
}

struct Lines {
    filter: Filter,
}

impl Subscriber for Lines {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match self.enabled(metadata) {
            true => Interest::always(),
            false => Interest::never(),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.filter.level_of(metadata.target())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.filter.levels.iter().map(|(_, level)| *level).max()
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let now = jiff::Timestamp::try_from(outside::wall_clock()).unwrap_or_default();
        let metadata = event.metadata();
        let text = format!(
            "{now:.3} {:>5} {}: {}{}",
            metadata.level().as_str(),
            metadata.target(),
            line.message,
            line.fields
        );
        write_now(io::stderr().as_fd(), one_line(text).as_bytes());
    }

    // No spans are shown.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The fields of an event as text, in which nothing begins another line.
#[derive(Debug, Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format_args!("{value:?}"));
    }
}

impl Line {
    fn add(&mut self, field: &Field, value: &dyn fmt::Display) {
        match field.name() {
            "message" => self.message.push_str(&escaped(&value.to_string())),
            name => self.fields.push_str(&escaped(&format!(" {name}={value}"))),
        }
    }
}

/// Of what is longer the end is left out: half a line would begin the next one.
fn one_line(mut text: String) -> String {
    const CUT: &str = "…";
    if text.len() >= AT_ONCE_BYTES {
        text.truncate(text.floor_char_boundary(AT_ONCE_BYTES - CUT.len() - 1));
        text.push_str(CUT);
    }
    text.push('\n');
    text
}

/// Another thread may have filled it since it was looked at. What cannot be asked not to wait, as a file, does not.
#[cfg(target_os = "linux")]
fn write_without_waiting(out: BorrowedFd<'_>, line: &[u8]) -> rustix::io::Result<usize> {
    use rustix::fs::{FileType, fstat};
    use rustix::io::{ReadWriteFlags, pwritev2};
    use rustix::net::{SendFlags, send};

    const AS_IT_COMES: u64 = u64::MAX;
    match FileType::from_raw_mode(fstat(out)?.st_mode) {
        FileType::Fifo => pwritev2(out, &[io::IoSlice::new(line)], AS_IT_COMES, ReadWriteFlags::NOWAIT),
        FileType::Socket => send(out, line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
        _ => Err(Errno::OPNOTSUPP),
    }
}

#[cfg(not(target_os = "linux"))]
fn write_without_waiting(_: BorrowedFd<'_>, _: &[u8]) -> rustix::io::Result<usize> {
    Err(Errno::OPNOTSUPP)
}

/// Writes a line, if it is taken at once. Past the lock of `std`'s standard error, which somebody who waits may have.
fn write_now(out: BorrowedFd<'_>, line: &[u8]) {
    let mut ready = [PollFd::new(&out, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let is_ready = poll(&mut ready, Some(&now)).is_ok_and(|found| found > 0);
    // Of a pipe that nobody reads any more there would be a signal.
    if !is_ready || ready[0].revents() != PollFlags::OUT {
        return;
    }
    let written = write_without_waiting(out, line);
    // An older Linux knows no such pipes.
    if let Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) = written {
        let _ = rustix::io::write(out, line);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read;

    use super::*;

    fn parse(text: &str) -> Result<Filter, String> {
        Filter::parse(OsStr::new(text)).map_err(|error| error.to_string())
    }

    #[test]
    fn levels_are_for_what_replvfs_says() {
        let filter = parse("warn, replvfs::pipeline=DEBUG,replvfs_vfs=off").unwrap();
        assert_eq!(filter.level_of("replvfs::store"), LevelFilter::WARN);
        assert_eq!(filter.level_of("replvfs::pipeline::task"), LevelFilter::DEBUG);
        assert_eq!(filter.level_of("replvfs_vfs::shim"), LevelFilter::OFF);
        assert_eq!(filter.level_of("opendal::services"), LevelFilter::OFF);
        assert_eq!(parse("info").unwrap(), parse("replvfs=info").unwrap());
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (text, why) in [
            ("inof", "\"inof\" is no level"),
            ("replvfs=loud", "\"loud\" is no level"),
            ("replvfs=info,", "\"\" is no level"),
            ("opendal=debug", "opendal is no module of replvfs"),
            ("=info", " is no module of replvfs"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why) && error.contains("write error, warn"), "{error}");
            assert!(error.starts_with(&format!("REPLVFS_LOG={text}")), "{error}");
        }
    }

    #[test]
    fn a_line_stays_one() {
        let line = escaped("a\nb\u{1b}\r\0ü\u{1b}[31m");
        assert_eq!(line, "a\\nb\\u{1b}\\r\\u{0}ü\\u{1b}[31m");
    }

    /// Nobody reads: it fills up, and then lines are left out. And when its other end is closed there is no signal.
    #[test]
    fn a_pipe_that_takes_nothing_keeps_nobody_waiting() {
        let (mut reader, writer) = io::pipe().unwrap();
        let line = [b'x'; 1000];
        for _ in 0..1000 {
            write_now(writer.as_fd(), &line);
        }
        let mut some = vec![0; 8000];
        reader.read_exact(&mut some).unwrap();
        assert!(some.iter().all(|byte| *byte == b'x'));
        write_now(writer.as_fd(), b"again");
        drop(reader);
        write_now(writer.as_fd(), &line);
    }

    #[test]
    fn a_line_is_whole_or_not_there() {
        let (mut reader, writer) = io::pipe().unwrap();
        let other = [b'x'; AT_ONCE_BYTES];
        for _ in 0..1000 {
            write_now(writer.as_fd(), &other);
        }
        // Room for one part.
        reader.read_exact(&mut [0; AT_ONCE_BYTES]).unwrap();
        for _ in 0..2 {
            write_now(writer.as_fd(), one_line("ü".repeat(5000)).as_bytes());
        }
        drop(writer);
        let mut written = String::new();
        reader.read_to_string(&mut written).unwrap();
        let line = written.trim_start_matches('x');
        assert!(line.ends_with("ü…\n") && line.len() > AT_ONCE_BYTES - 4, "{line:?}");
        assert_eq!(line.matches('\n').count(), 1);
    }

    fn has_some(reader: &io::PipeReader) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(reader, PollFlags::IN)], Some(&now)).unwrap() > 0
    }

    /// Each finds room for one line, and only one of them has it.
    #[test]
    fn threads_do_not_wait_for_each_others_lines() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (writer, line) = (&writer, &[b'x'; AT_ONCE_BYTES]);
        if write_without_waiting(writer.as_fd(), b"x").is_err() {
            eprintln!("SKIPPED: this system's pipes cannot be asked not to wait");
            return;
        }
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::scope(|threads| {
            for round in 0..200 {
                let begin = std::sync::Arc::new(std::sync::Barrier::new(8));
                let writers: Vec<_> = (0..8)
                    .map(|_| {
                        let (done, begin) = (done.clone(), std::sync::Arc::clone(&begin));
                        threads.spawn(move || {
                            begin.wait();
                            (0..16).for_each(|_| write_now(writer.as_fd(), line));
                            let _ = done.send(());
                        })
                    })
                    .collect();
                let longest = std::time::Duration::from_secs(20);
                let in_time = (0..8).all(|_| is_done.recv_timeout(longest).is_ok());
                // Whoever waits goes on.
                while has_some(&reader) || writers.iter().any(|writer| !writer.is_finished()) {
                    let mut some = [0; AT_ONCE_BYTES];
                    assert!(!has_some(&reader) || reader.read(&mut some).unwrap() > 0);
                }
                assert!(in_time, "somebody waited in round {round}");
            }
        });
    }
}
