//! A reader for the fuzz targets: what a [`Connection`](super::connection::Connection) does for its pages, with nobody's thread waiting.

use std::sync::Arc;

use replvfs_vfs::types::{Pgno, Txid};
use tokio::runtime::Handle;

use super::line::{Place, State};
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
        let (page, is_missing) = self.read(&state.0, number).await;
        if !is_missing {
            return page;
        }
        state.0 = self.0.again(&state.0).await.map_err(|error| error.to_string())?;
        self.read(&state.0, number).await.0
    }

    async fn read(&self, state: &State, number: Pgno) -> (Result<Vec<u8>, String>, bool) {
        let mut page = vec![0; state.line.page_size().as_usize()];
        let (source, at) = match state.place(number) {
            Place::In(source, at) => (source, at),
            Place::Nowhere => return (Ok(page), false),
        };
        if self.0.blocks().read(source.id(), at, &mut page) {
            return (Ok(page), false);
        }
        match self.0.blocks().fetch(source).await {
            Ok(raw) => {
                let found = raw.get(at..).and_then(|rest| rest.get(..page.len()));
                let found = found.ok_or_else(|| "a block is too short for its pages".to_owned());
                (found.map(<[u8]>::to_vec), false)
            }
            Err(error) => (Err(error.to_string()), error.is_missing),
        }
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
