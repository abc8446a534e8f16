//! The guide for who runs it, page by page; no code.
//!
//! | | |
//! |---|---|
//! | [`getting_started`] | from one file to one that can be restored as of any commit; programs that cannot be changed |
//! | [`mod@restore`] | getting it back, looking into the past without restoring, how far back, whether the replica is right |
//! | [`durability`] | `async`, `remote`, `strict`: when a commit returns, and what can be lost; two machines by turns |
//! | [`failures`] | what goes wrong, what is said word for word, what is lost, what to do; the status, the log, the metrics |
//! | [`stores`] | URIs, rights, and what each store cannot promise |
//! | [`cost`] | speed, requests and their bill, bytes, memory, descriptors, as measured |
//! | [`comparison`] | other tools, and when to take them |
//! | [`limits`] | what it does not do |
//!
//! The pages are files in the folder `guide` of this crate. Links from one to another lead from file to file, and work where the repository is shown; here this
//! table is the way.

#[doc = include_str!("../guide/getting-started.md")]
pub mod getting_started {}

#[doc = include_str!("../guide/restore.md")]
pub mod restore {}

#[doc = include_str!("../guide/durability.md")]
pub mod durability {}

#[doc = include_str!("../guide/failures.md")]
pub mod failures {}

#[doc = include_str!("../guide/stores.md")]
pub mod stores {}

#[doc = include_str!("../guide/cost.md")]
pub mod cost {}

#[doc = include_str!("../guide/comparison.md")]
pub mod comparison {}

#[doc = include_str!("../guide/limits.md")]
pub mod limits {}
