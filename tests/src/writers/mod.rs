//! Writers in processes of their own: what they write, what they say about it, and how they are started, heard and killed.
//!
//! Owns neither when anybody is killed nor what must hold afterwards: that is for the harnesses, `kill` and `soak`.

pub mod child;
pub mod content;
mod job;
pub mod process;
pub mod replica;

pub use job::{FIRST_STRICT, Job, Journal, LAST_WRITER, Level};
