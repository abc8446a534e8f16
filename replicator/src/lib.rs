//! Continuous replication for SQLite, from inside its VFS.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod config;
pub mod error;
pub mod format;
pub mod history;
pub mod pipeline;
pub mod restore;
pub mod store;

pub use config::Config;
