//! SQLite's side of replvfs: a VFS that wraps the default one, and takes every commit as SQLite publishes it.
//!
//! The modules in the order of the data: [`shim`] (what SQLite calls) → `capture` (what is a commit) → [`wal`] (the bytes)
//! → [`transaction`] and [`snapshot`] → [`mod@log`], from which the replicating side takes them. [`host`] is what that side
//! implements. Nothing in this crate knows a runtime, a network, a clock or a source of randomness.

#[cfg(not(unix))]
compile_error!("replvfs is built for Unix: its locks and files are POSIX's");

pub mod api;
mod base;
mod buffer;
mod capture;
pub mod fork;
mod guard;
pub mod held;
pub mod host;
pub mod log;
pub mod notice;
mod over;
mod pages;
pub mod remote;
pub mod resume;
pub mod shim;
pub mod snapshot;
mod spill;
mod sync;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod testing;
pub mod transaction;
pub mod types;
pub mod wal;

#[cfg(feature = "fault-injection")]
pub use guard::{CALLBACKS, REMOTE_CALLBACKS, inject_panic};

/// SQLite's raw types, as this crate uses them.
pub use libsqlite3_sys as ffi;
