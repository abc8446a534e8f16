//! SQLite's side of replvfs.
#![allow(dead_code)]

pub mod api;
pub mod host;
pub mod log;
pub mod shim;
pub mod snapshot;
pub mod types;
/// SQLite's raw types, as this crate uses them.
pub use libsqlite3_sys as ffi;
