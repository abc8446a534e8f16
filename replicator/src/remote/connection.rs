//! One connection to a remote database: which state it sees, and its pages.

use std::sync::Arc;
use std::time::Duration;

use replvfs_vfs::remote::{Remote, RemoteError, View};
use replvfs_vfs::types::Pgno;

use super::ahead::Ahead;
use super::blocks::{FetchError, cut};
use super::kept::Kept;
use super::line::{Place, State};
use super::replica::{Following, Replica};
use super::settings::{self, Settings};
use crate::history::{HistoryError, Target};
use crate::pipeline::waiting::answer;

/// Chunks and blocks that are asked for ahead at once.
const AHEAD: usize = 16;

/// A connection's view of a replica.
#[derive(Debug)]
pub(super) struct Connection {
    replica: Arc<Replica>,
    kept: Kept,
    timeout: Duration,
    /// How often it looks for what is new when it follows, as it was opened.
    every: Option<Duration>,
    following: Option<Following>,
    state: State,
    is_reading: bool,
    ahead: Ahead,
    /// Why a page could not be had, the last time.
    problem: Option<String>,
}

/// Why a page cannot be had.
enum ReadError {
    Fetch(FetchError),
    Other(String),
}

impl Connection {
    pub(super) fn new(replica: Arc<Replica>, kept: Kept, state: State, settings: &Settings) -> Connection {
        kept.touch(&replica);
        Connection {
            following: settings.follow.map(|every| replica.follow(every)),
            replica,
            kept,
            timeout: settings.timeout,
            every: settings.follow,
            state,
            is_reading: false,
            ahead: Ahead::default(),
            problem: None,
        }
    }

    /// What a page's bytes are, from memory or from the store.
    fn page(&mut self, number: Pgno, page: &mut [u8]) -> Result<(), ReadError> {
        let Some((source, at)) = self.replica.blocks().page(&self.state, number, page) else {
            return Ok(());
        };
        let flight = self.replica.blocks().fetch(source);
        self.read_ahead(number);
        let fetched = answer(self.replica.runtime(), self.timeout, |_| flight);
        let raw = fetched.map_err(|why| ReadError::Other(format!("the store {why}")))?;
        let raw = raw.map_err(ReadError::Fetch)?;
        cut(&raw, at, page).map_err(ReadError::Other)
    }

    /// Asks for what the pages behind this one are in.
    fn read_ahead(&mut self, number: Pgno) {
        let (page_size, blocks) = (self.state.line.page_size(), self.replica.blocks());
        let mut left = self.ahead.missed(number, page_size.get(), blocks.limit());
        let mut last = None;
        let mut begun = 0;
        let pages = number.get()..=self.state.moment.page_count;
        for page in pages.skip(1).filter_map(Pgno::new) {
            if left < u64::from(page_size.get()) || begun == AHEAD {
                return;
            }
            left -= u64::from(page_size.get());
            let Place::In(source, _) = self.state.place(page) else {
                continue;
            };
            let id = source.id();
            if last.replace(id) != Some(id) && !blocks.is_coming(&id) {
                drop(blocks.fetch(source));
                begun += 1;
            }
        }
    }

    fn page_or_again(&mut self, number: Pgno, page: &mut [u8]) -> Result<(), RemoteError> {
        let mut read = self.page(number, page);
        if let Err(ReadError::Fetch(error)) = &read
            && error.is_missing
        {
            self.find_again()?;
            read = self.page(number, page);
        }
        read.map_err(|error| {
            RemoteError(match error {
                ReadError::Fetch(error) => format!("page {number}: {error}"),
                ReadError::Other(problem) => format!("page {number}: {problem}"),
            })
        })
    }

    /// The state is looked for again, once, when what it was in is not there any more.
    fn find_again(&mut self) -> Result<(), RemoteError> {
        let (replica, state) = (Arc::clone(&self.replica), self.state.clone());
        let found = answer(self.replica.runtime(), self.timeout, |_| async move {
            replica.again(&state).await
        });
        self.state = self.kin(self.told(found)?)?;
        Ok(())
    }

    /// A state of the replica that was opened. SQLite takes what it sees next for the same database, with a schema that it may know.
    fn kin(&self, state: State) -> Result<State, RemoteError> {
        match state.is_kin(&self.state) {
            true => Ok(state),
            false => Err(RemoteError(format!(
                "the replica {} was begun anew while it was read: open it again",
                self.replica.store().replica()
            ))),
        }
    }

    fn told<E: std::fmt::Display>(&self, found: Result<Result<State, HistoryError>, E>) -> Result<State, RemoteError> {
        match found {
            Ok(Ok(state)) => Ok(state),
            Ok(Err(error)) => Err(RemoteError(error.to_string())),
            Err(why) => Err(RemoteError(format!(
                "the replica {} {why}",
                self.replica.store().replica()
            ))),
        }
    }

    fn travel(&mut self, target: Target) -> Result<(), RemoteError> {
        if self.is_reading {
            return Err(RemoteError(
                "a read transaction sees one state: end it (COMMIT, or finish all statements) first".to_owned(),
            ));
        }
        let replica = Arc::clone(&self.replica);
        let found = answer(self.replica.runtime(), self.timeout, |_| async move {
            match target {
                Target::Newest => replica.look_to_open().await,
                target => replica.state_at(target).await,
            }
        });
        self.state = self.kin(self.told(found)?)?;
        self.following = match (target, self.every) {
            (Target::Newest, Some(every)) => Some(self.replica.follow(every)),
            _ => None,
        };
        Ok(())
    }

    /// The time of the newest transaction in the state.
    fn at(&self) -> String {
        let at = self.state.moment.at;
        match jiff::Timestamp::from_millisecond(at.0) {
            Ok(time) => time.to_string(),
            Err(_) => String::new(),
        }
    }

    fn status(&self) -> String {
        let mut status = serde_json::Map::new();
        self.replica.describe(&mut status);
        let (generation, txid) = self.state.order();
        status.insert("generation".into(), generation.0.into());
        status.insert("txid".into(), txid.0.into());
        status.insert("at".into(), self.at().into());
        if let Some(problem) = &self.problem {
            status.insert("last_error".into(), problem.as_str().into());
        }
        status.insert("follows".into(), self.following.is_some().into());
        serde_json::Value::Object(status).to_string()
    }

    fn answer(&mut self, name: &str, value: Option<&str>) -> Option<Result<String, RemoteError>> {
        let value = value.map(|value| value.trim_matches(['\'', '"']));
        let done = match (name, value) {
            ("txid", None) => Ok(self.state.txid.to_string()),
            ("at", None) => Ok(self.at()),
            ("status", None) => Ok(self.status()),
            ("at", Some(value)) if value.eq_ignore_ascii_case("latest") => {
                self.travel(Target::Newest).map(|()| self.at())
            }
            ("at", Some(value)) => settings::time(value)
                .map_err(|problem| RemoteError(format!("PRAGMA replvfs_at={problem}, or latest")))
                .and_then(|at| self.travel(Target::At(at)))
                .map(|()| self.at()),
            ("txid", Some(value)) => settings::txid(value)
                .map_err(|problem| RemoteError(format!("PRAGMA replvfs_txid={problem}")))
                .and_then(|txid| self.travel(Target::Txid(txid)))
                .map(|()| self.state.txid.to_string()),
            ("status", Some(_)) => Err(RemoteError("PRAGMA replvfs_status takes no value".to_owned())),
            _ => return None,
        };
        Some(done)
    }
}

impl Drop for Connection {
    /// Not in a child of `fork()`, which leaves what is its parent's alone.
    fn drop(&mut self) {
        self.kept.touch(&self.replica);
    }
}

impl Remote for Connection {
    fn view(&self) -> View {
        View {
            page_size: self.state.line.page_size(),
            page_count: self.state.moment.page_count,
            line: self.state.line.generation().0,
            txid: self.state.txid,
        }
    }

    fn begin(&mut self) -> Result<View, RemoteError> {
        if self.following.is_some()
            && let Some(newest) = self.replica.published()
        {
            self.state = self
                .kin(newest)
                .inspect_err(|error| self.problem = Some(error.0.clone()))?;
        }
        self.is_reading = true;
        Ok(self.view())
    }

    fn end(&mut self) {
        self.is_reading = false;
    }

    fn read(&mut self, number: Pgno, page: &mut [u8]) -> Result<(), RemoteError> {
        let read = self.page_or_again(number, page);
        if let Err(error) = &read {
            self.problem = Some(error.0.clone());
        }
        read
    }

    fn pragma(&mut self, name: &str, value: Option<&str>) -> Option<Result<String, RemoteError>> {
        self.answer(name, value)
    }
}
