//! What threads synchronise by where loom tries their interleavings: std's, or loom's in its tests (see "Memory and threads" in CONTRIBUTING.md).
//!
//! Owns nothing. What is not tried there takes std's directly.

use std::time::Duration;

#[cfg(all(loom, test))]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
#[cfg(all(loom, test))]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(all(loom, test)))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
#[cfg(not(all(loom, test)))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

/// Waits for as long as `waits` says so, and no longer than `timeout`.
#[cfg(not(all(loom, test)))]
pub(crate) fn wait_while<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: Duration,
    waits: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'a, T> {
    let waited = condvar.wait_timeout_while(guard, timeout, waits);
    waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
}

/// The same where time does not pass: who is not told waits for ever, which loom finds.
#[cfg(all(loom, test))]
pub(crate) fn wait_while<'a, T>(
    condvar: &Condvar,
    mut guard: MutexGuard<'a, T>,
    timeout: Duration,
    mut waits: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'a, T> {
    while !timeout.is_zero() && waits(&mut guard) {
        guard = condvar.wait(guard).unwrap();
    }
    guard
}
