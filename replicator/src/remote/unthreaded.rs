//! A reader for the fuzz targets: what a [`Connection`](super::connection::Connection) does for its pages, with nobody's thread waiting.

use std::sync::Arc;

use replvfs_vfs::types::{Pgno, Txid};
use tokio::runtime::Handle;

use super::blocks::cut;
use super::line::State;
use super::replica::Replica;
use crate::format::Generation;
use crate::history::Target;
use crate::metrics::Metrics;
use crate::store::Store;

/// Reads a replica's pages out of a store, with a cache of so many bytes.
#[derive(Debug)]
pub struct RemoteReader(Arc<Replica>);

/// A state that was found there.
#[derive(Debug, Clone)]
pub struct RemoteState(State);

impl RemoteReader {
    /// In the runtime that runs it.
    #[must_use]
    pub fn new(store: Store, cache_bytes: u64) -> RemoteReader {
        let replica = Replica::new(store, Handle::current(), cache_bytes, &Metrics::default());
        RemoteReader(Arc::new(replica))
    }

    /// As `txid=` or `at=` says it.
    ///
    /// # Errors
    ///
    /// What cannot be read, in words.
    pub async fn at(&self, target: Target) -> Result<RemoteState, String> {
        let found = self.0.state_at(target).await;
        found.map(RemoteState).map_err(|error| error.to_string())
    }

    /// As a connection that follows sees it when it is opened.
    ///
    /// # Errors
    ///
    /// What cannot be read, in words.
    pub async fn newest(&self) -> Result<RemoteState, String> {
        let found = self.0.look_to_open().await;
        found.map(RemoteState).map_err(|error| error.to_string())
    }

    /// A page; where what it was in is gone, the state is looked for again, once.
    ///
    /// # Errors
    ///
    /// What cannot be read, in words.
    pub async fn page(&self, state: &mut RemoteState, number: Pgno) -> Result<Vec<u8>, String> {
        match self.read(&state.0, number).await {
            Err((_, true)) => {}
            read => return read.map_err(|(problem, _)| problem),
        }
        let again = self.0.again(&state.0).await.map_err(|error| error.to_string())?;
        if !again.is_kin(&state.0) {
            return Err("the replica was begun anew while it was read".to_owned());
        }
        state.0 = again;
        self.read(&state.0, number).await.map_err(|(problem, _)| problem)
    }

    /// Of an error also whether something is gone.
    async fn read(&self, state: &State, number: Pgno) -> Result<Vec<u8>, (String, bool)> {
        let mut page = vec![0; state.line.page_size().as_usize()];
        if let Some((source, at)) = self.0.blocks().page(state, number, &mut page) {
            let raw = self.0.blocks().fetch(source).await;
            let raw = raw.map_err(|error| (error.to_string(), error.is_missing))?;
            cut(&raw, at, &mut page).map_err(|problem| (problem, false))?;
        }
        Ok(page)
    }
}

impl RemoteState {
    /// Where it is in the history.
    #[must_use]
    pub fn place(&self) -> (Generation, Txid) {
        self.0.order()
    }

    /// Of the database.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        self.0.moment.page_count
    }

    /// In bytes.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.0.line.page_size().as_usize()
    }
}
