//! Continuous replication for SQLite, from inside its VFS.
#![forbid(unsafe_code)]

pub mod config;
pub mod error;
pub mod format;
pub mod history;
pub mod pipeline;
pub mod restore;
pub mod store;
