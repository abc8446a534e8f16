//! What the kernel knows of a process, by its number or as `self`, and what it may have.

use std::time::Duration;

/// A number of `/proc/…/status` by its name, such as `VmHWM:`; memory is in KiB there.
///
/// # Panics
///
/// When there is no such process, or no such line.
#[must_use]
pub fn status(process: &str, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
    let number = line.split_whitespace().next().expect("a number");
    number.parse().expect("a number")
}

/// Time on a CPU until now, to a hundredth of a second.
///
/// # Panics
///
/// When there is no such process.
#[must_use]
pub fn cpu(process: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("/proc");
    // Behind the name, which may have anything in it.
    let fields = stat
        .rsplit(')')
        .next()
        .expect("fields")
        .split_whitespace()
        .skip(11)
        .take(2);
    let ticks: u64 = fields.map(|ticks| ticks.parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(ticks * 10)
}

/// This process may have as many descriptors as are allowed to it.
pub fn raise_descriptors() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a structure for the answer, and the same with no more than is allowed.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
}
