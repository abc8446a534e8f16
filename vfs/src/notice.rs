//! What an operator has to know: told to `tracing`, and to SQLite's error log, which also a program has that knows nothing of `tracing`.
//!
//! Owns that nothing is told to SQLite's log under a lock of ours: what that log does is the program's, which may have locks of its own. Warnings and errors are
//! said by [`warning!`](crate::warning) and [`failure!`](crate::failure), and not by the macros of `tracing`, which clippy refuses.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::api::report;

/// More than that are of one mistake.
const MOST_WAITING: usize = 64;

// A guard is made and goes in each callback of SQLite, several times in a commit: it costs two plain numbers, as long as there is nothing to tell.
thread_local! {
    static GUARDS: Cell<usize> = const { Cell::new(0) };
    static IS_WAITING: Cell<bool> = const { Cell::new(false) };
    static WAITING: RefCell<Vec<(i32, String)>> = const { RefCell::new(Vec::new()) };
}

/// As long as it lives, what is to be told to SQLite's error log on this thread waits. To be made before a lock is taken, so that it goes after it.
#[derive(Debug)]
#[must_use]
pub struct Later(());

/// See [`Later`].
#[inline]
pub fn later() -> Later {
    GUARDS.set(GUARDS.get() + 1);
    Later(())
}

impl Drop for Later {
    #[inline]
    fn drop(&mut self) {
        let left = GUARDS.get().saturating_sub(1);
        GUARDS.set(left);
        if left == 0 && IS_WAITING.get() {
            tell_waiting();
        }
    }
}

#[cold]
fn tell_waiting() {
    IS_WAITING.set(false);
    let due = WAITING.try_with(RefCell::take);
    for (code, message) in due.unwrap_or_default() {
        report_all(code, &message);
    }
}

/// Who listens is the program's. If that panics, what was told of is no less to be dealt with: it is not ours to unwind from, and often there is C above.
#[doc(hidden)]
pub fn undisturbed(tell: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(tell));
}

/// Tells SQLite's error log, as soon as this thread has no lock of ours. `code` is a result code of SQLite; `subject` the database or replica that it is about.
/// What would begin another line, or move a terminal, is shown as Rust writes it; what SQLite would cut off is told in a message of its own.
pub fn tell(code: i32, subject: Option<&dyn Display>, message: &str) {
    let message = match subject {
        Some(subject) => escaped(&format!("{subject}: {message}")),
        None => escaped(message),
    };
    // A thread that is about to end tells at once.
    let waits = GUARDS.get() > 0
        && WAITING
            .try_with(|waiting| {
                let mut waiting = waiting.borrow_mut();
                if waiting.len() < MOST_WAITING {
                    waiting.push((code, message.clone()));
                }
                IS_WAITING.set(true);
            })
            .is_ok();
    if !waits {
        report_all(code, &message);
    }
}

/// Names of files and words of a store are somebody else's.
#[doc(hidden)]
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_control() {
            true => shown.extend(letter.escape_default()),
            false => shown.push(letter),
        }
    }
    shown
}

/// `sqlite3_log` cuts a message off behind 699 bytes, in the middle of a letter where it comes to that; the advice stands at the end.
fn report_all(code: i32, message: &str) {
    const MOST_BYTES: usize = 600;
    let mut rest = message;
    while rest.len() > MOST_BYTES {
        let end = rest.floor_char_boundary(MOST_BYTES);
        let end = rest[..end].rfind(' ').filter(|at| *at > 0).unwrap_or(end);
        let (part, more) = rest.split_at(end);
        report(code, &format!("replvfs: {part} …"));
        rest = more.trim_start();
    }
    report(code, &format!("replvfs: {rest}"));
}

/// A warning to whom it concerns: something that was wanted did not happen, or needs a look; replication goes on.
///
/// What it is about comes first, then, behind a `;`, a text as `format!` has it: `warning!(database = path, replica = uri; "{error}")`. `code = …` before all that is
/// another result code than `SQLITE_WARNING`.
#[macro_export]
macro_rules! warning {
    (code = $code:expr, $($rest:tt)+) => { $crate::notice!(WARN, $code, $($rest)+) };
    ($($rest:tt)+) => { $crate::notice!(WARN, $crate::ffi::SQLITE_WARNING, $($rest)+) };
}

/// The same for what replication ends with, or what was lost.
#[macro_export]
macro_rules! failure {
    (code = $code:expr, $($rest:tt)+) => { $crate::notice!(ERROR, $code, $($rest)+) };
    ($($rest:tt)+) => { $crate::notice!(ERROR, $crate::ffi::SQLITE_ERROR, $($rest)+) };
}

/// What [`warning!`](crate::warning) and [`failure!`](crate::failure) have in common.
#[doc(hidden)]
#[macro_export]
macro_rules! notice {
    ($level:ident, $code:expr, database = $database:expr, replica = $replica:expr; $($text:tt)+) => {{
        let message = ::std::format!($($text)+);
        $crate::notice::undisturbed(|| ::tracing::event!(::tracing::Level::$level, database = %$database, replica = %$replica, "{message}"));
        $crate::notice::tell($code, Some(&$database), &message);
    }};
    ($level:ident, $code:expr, $subject:ident = $value:expr; $($text:tt)+) => {{
        let message = ::std::format!($($text)+);
        $crate::notice::undisturbed(|| ::tracing::event!(::tracing::Level::$level, $subject = %$value, "{message}"));
        $crate::notice::tell($code, Some(&$value), &message);
    }};
    ($level:ident, $code:expr, ; $($text:tt)+) => {{
        let message = ::std::format!($($text)+);
        $crate::notice::undisturbed(|| ::tracing::event!(::tracing::Level::$level, "{message}"));
        $crate::notice::tell($code, None, &message);
    }};
}
