//! The VFS itself: it forwards everything to the one underneath, and tells the capture what passes by.
//!
//! Owns the C structures. Leaves every decision to `capture`. Of the files, only the main database and its WAL are
//! wrapped; all others are opened by the base VFS in the memory that SQLite gave, so that they cost nothing.

#[cfg(test)]
mod border;
mod database_file;
mod file;
mod pragma;
mod vfs;
mod wal_file;

pub use vfs::{RegisterError, Registration, captured_memory, last_open_error, register, replica_of, replicas};
pub(crate) use vfs::{not_opened, opening, refuse};
