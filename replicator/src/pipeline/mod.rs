//! The replication of one database: from its log into its replica.
//!
//! Told by its files, in the order of the data: [`host`] decides how a database is replicated when it is opened, [`replica`] is what its
//! connections see, [`task`] takes from the log when [`pace`] says so, [`generation`] begins a history, [`image`] and [`sealer`] make objects:
//! the first one is made in any case, others by [`making`] when [`due`], after a [`basis`], of the chunks that [`changed`], which [`images`] remembers;
//! where the database cannot be read beside its writers, [`replay`] puts those together in a [`scratch`] file out of the replica;
//! [`uploader`] gets them into the store, [`turn`] asks whether it is still this process's, and [`progress`] tells what is restorable. [`upkeep`]
//! keeps the replica small. [`shared`] is what they all have in common, [`status`]
//! what of it is shown, [`meters`] what is measured.
//!
//! [`missing`] restores a database whose file is not there, [`behind`] brings one up to date that is older than its replica: the two that make an
//! open wait for the store, by [`waiting`].
//!
//! Between processes: [`local`] keeps, with [`owner`], what this machine knows of the replica, [`attach`] compares it with what
//! is there, and [`adopt`] takes over what an earlier process had uploaded. [`fenced`] is what follows when another writer has the history.
//! [`strict`] is what there is to transactions that are in the store before they are committed.
//!
//! [`confirm`] waits until what is committed is in the store; where another process replicates the database that one is asked, by [`neighbours`]. [`ending`] asks
//! that for a program that ends.
//!
//! Leaves to the log what a commit is, to [`format`](crate::format) the bytes, to [`store`](crate::store) how one request is made.
//! Trouble with the store ends up in the status, never in a commit.

mod adopt;
mod attach;
pub(crate) mod basis;
mod behind;
mod changed;
mod confirm;
pub(crate) mod due;
mod ending;
mod fenced;
mod generation;
mod host;
pub(crate) mod image;
mod images;
mod local;
mod making;
mod meters;
mod missing;
pub(crate) mod neighbours;
mod owner;
mod pace;
mod progress;
mod replay;
mod replica;
mod scratch;
mod seal;
mod sealer;
mod shared;
mod status;
mod strict;
mod task;
mod turn;
pub(crate) mod upkeep;
mod uploader;
pub(crate) mod waiting;

pub(crate) use host::ReplicatingHost;
#[cfg(feature = "prometheus")]
pub(crate) use meters::publish_all;
pub(crate) use owner::lock_file;
pub(crate) use replica::DatabaseReplica;

/// The task cannot go on, and the log says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stopped;

#[cfg(any(test, feature = "testing"))]
#[cfg_attr(
    not(feature = "testing"),
    allow(unreachable_pub, reason = "what the fuzz targets take is public for them")
)]
pub(crate) mod simulator;
#[cfg(test)]
mod tests;
