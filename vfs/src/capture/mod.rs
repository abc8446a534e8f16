//! What is a commit, and where the log stands: one [`Database`] for each database that this process has open.
//!
//! Owns the cursor, the proof that it is where the database is, and the bases. Leaves to the shim when to call, and to the
//! log what happens with a transaction afterwards.

mod aside;
mod attach;
mod commit;
mod confirm;
mod continuity;
mod database;
mod header;
mod image;
mod kept;
mod mirror;
mod page_set;
mod pin;
mod refusal;
mod restart;
mod resume;
mod rollback;
mod settle;
mod strict;

pub(crate) use commit::is_ok;
pub use continuity::Fingerprint;
pub(crate) use database::{Connection, Database, Opening};
pub(crate) use strict::{ends_confirmed, has_ended};
