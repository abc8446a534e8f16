//! Which replica is meant, on every command line that reads one.

use std::path::PathBuf;

use replvfs::Config;
use replvfs::store::{Store, StoreOptions};

use crate::Failure;

#[derive(Debug, clap::Args)]
pub(crate) struct ReplicaArgument {
    /// Where the history is: a URI, or the path of a database for which the configuration file has a replica.
    #[arg(value_name = "REPLICA|DATABASE")]
    pub(crate) replica: String,
    #[command(flatten)]
    pub(crate) file: FileArgument,
}

#[derive(Debug, clap::Args)]
pub(crate) struct FileArgument {
    /// The configuration file, with credentials of the store. Without it, the one that REPLVFS_CONFIG names.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ReplicaArgument {
    /// For reading: nothing is made that is missing. No request is made.
    pub(crate) fn open(&self) -> Result<Store, Failure> {
        self.file.open(&self.replica)
    }
}

impl FileArgument {
    pub(crate) fn open(&self, which: &str) -> Result<Store, Failure> {
        Ok(self.to_config().open_replica(which, &StoreOptions::reading())?)
    }

    pub(crate) fn to_config(&self) -> Config {
        match &self.config {
            Some(file) => Config::default().config_file(file),
            None => Config::default(),
        }
    }
}
