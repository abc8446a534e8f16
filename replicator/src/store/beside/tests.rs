//! Each step of a creation beside fails, is cut off, or is the last one of its process.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use opendal::raw::{Layer, OpRename, OpStat, OpWrite, RpRename, RpStat, Service, ServiceInfo, Servicer, oio};
use opendal::{Buffer, Capability, Error, ErrorKind, Metadata, OperationContext, Operator, Result, services};
use replvfs_vfs::types::Txid;
use tokio::sync::Notify;

use crate::format::{Generation, Key};
use crate::store::forward::forward;
use crate::store::{Body, Created, Fencing, Store};

const SLOT: Key = Key::Log(Generation(1), Txid(7));

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Refused,
    /// It is done, and nobody is told.
    Lost,
    /// A part of the content is there, and nobody is told that it is not all.
    Torn,
    /// The process ends.
    DiesBefore,
    DiesAfter,
}

const ALL: [Trouble; 5] = [
    Trouble::Refused,
    Trouble::Lost,
    Trouble::Torn,
    Trouble::DiesBefore,
    Trouble::DiesAfter,
];

/// A store that renames, and knows no condition.
#[derive(Debug, Clone)]
struct Renaming(Arc<State>);

#[derive(Debug)]
struct State {
    healthy: Operator,
    calls: AtomicUsize,
    trouble: Mutex<Option<(usize, Trouble)>>,
    has_died: Notify,
    /// Put into the slot as soon as somebody has looked for it so often.
    rival: Mutex<Option<(usize, Bytes)>>,
}

impl Renaming {
    fn new() -> Renaming {
        Renaming(Arc::new(State {
            healthy: Operator::new(services::Memory::default()).expect("memory"),
            calls: AtomicUsize::new(0),
            trouble: Mutex::new(None),
            has_died: Notify::new(),
            rival: Mutex::new(None),
        }))
    }

    /// As a process of its own has it.
    fn store(&self) -> Store {
        Store::from_operator(self.0.healthy.clone().layer(self.clone()))
    }

    fn next(&self) -> Option<Trouble> {
        let call = self.0.calls.fetch_add(1, Ordering::Relaxed);
        let trouble = *self.0.trouble.lock().expect("a lock");
        trouble.filter(|(at, _)| *at == call).map(|(_, trouble)| trouble)
    }

    async fn call<T>(&self, effect: impl Future<Output = Result<T>>) -> Result<T> {
        match self.next() {
            None | Some(Trouble::Torn) => effect.await,
            Some(Trouble::Refused) => Err(reset()),
            Some(Trouble::Lost) => {
                effect.await?;
                Err(reset())
            }
            Some(Trouble::DiesBefore) => self.die().await,
            Some(Trouble::DiesAfter) => {
                effect.await?;
                self.die().await
            }
        }
    }

    async fn die<T>(&self) -> T {
        self.0.has_died.notify_one();
        std::future::pending().await
    }

    /// `None` when the process has died.
    async fn create(&self, store: &Store, content: &'static [u8]) -> Option<std::result::Result<Created, String>> {
        tokio::select! {
            created = store.create(&SLOT, body(content)) => Some(created.map_err(|error| error.to_string())),
            () = self.0.has_died.notified() => None,
        }
    }

    async fn in_slot(&self) -> Option<Bytes> {
        self.0.healthy.read(&SLOT.path()).await.ok().map(|read| read.to_bytes())
    }

    async fn beside(&self) -> usize {
        let found = self.0.healthy.list(".tmp/").await.expect("lists");
        found.iter().filter(|entry| entry.metadata().is_file()).count()
    }
}

fn reset() -> Error {
    Error::new(ErrorKind::Unexpected, "connection reset by peer").set_temporary()
}

fn body(content: &'static [u8]) -> Body {
    Body::Bytes(Bytes::from_static(content))
}

impl Layer for Renaming {
    fn apply_service(&self, inner: Servicer) -> Servicer {
        Arc::new(RenamingService {
            inner,
            of: self.clone(),
        })
    }
}

#[derive(Debug)]
struct RenamingService {
    inner: Servicer,
    of: Renaming,
}

struct Writer {
    path: String,
    content: Vec<u8>,
    of: Renaming,
}

impl oio::Write for Writer {
    async fn write(&mut self, part: Buffer) -> Result<()> {
        self.content.extend_from_slice(&part.to_bytes());
        Ok(())
    }

    async fn close(&mut self) -> Result<Metadata> {
        let state = &self.of.0;
        let torn = {
            let (call, trouble) = (
                state.calls.load(Ordering::Relaxed),
                *state.trouble.lock().expect("a lock"),
            );
            trouble == Some((call, Trouble::Torn))
        };
        if torn {
            self.content.truncate(self.content.len() / 2);
        }
        let writing = state.healthy.write(&self.path, std::mem::take(&mut self.content));
        self.of.call(writing).await
    }

    async fn abort(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Service for RenamingService {
    type Reader = oio::Reader;
    type Writer = Writer;
    type Lister = oio::Lister;
    type Deleter = oio::Deleter;
    type Copier = oio::Copier;
    type Composer = oio::Composer;

    forward!(create_dir read delete list copy presign);

    fn info(&self) -> ServiceInfo {
        ServiceInfo::new("renaming", "/", "renaming")
    }

    fn capability(&self) -> Capability {
        Capability {
            write_with_if_not_exists: false,
            rename: true,
            ..self.inner.capability()
        }
    }

    async fn stat(&self, ctx: &OperationContext, path: &str, args: OpStat) -> Result<RpStat> {
        let told = self.of.call(self.inner.stat(ctx, path, args)).await;
        if path == SLOT.path() {
            let rival = {
                let mut rival = self.of.0.rival.lock().expect("a lock");
                if let Some((looks, _)) = &mut *rival {
                    *looks -= 1;
                }
                rival.take_if(|(looks, _)| *looks == 0)
            };
            if let Some((_, content)) = rival {
                self.of.0.healthy.write(path, content).await?;
            }
        }
        told
    }

    fn write(&self, _: &OperationContext, path: &str, _: OpWrite) -> Result<Self::Writer> {
        Ok(Writer {
            path: path.to_owned(),
            content: Vec::new(),
            of: self.of.clone(),
        })
    }

    async fn rename(&self, _: &OperationContext, from: &str, to: &str, _: OpRename) -> Result<RpRename> {
        let healthy = &self.of.0.healthy;
        let renaming = async {
            let content = healthy.read(from).await?;
            healthy.write(to, content).await?;
            healthy.delete(from).await?;
            Ok(RpRename::default())
        };
        self.of.call(renaming).await
    }
}

/// The calls of one that goes well.
async fn calls() -> usize {
    let place = Renaming::new();
    let store = place.store();
    assert_eq!(store.fencing(), Fencing::BestEffort);
    assert_eq!(place.create(&store, b"whole content").await, Some(Ok(Created::New)));
    assert_eq!(place.beside().await, 0);
    place.0.calls.load(Ordering::Relaxed)
}

/// Whatever step it is: what is in the slot is whole or not there, who is told that it is new finds it there, and another attempt, of this process or the next one, comes to its end.
#[tokio::test]
async fn each_step_of_a_creation_may_be_the_last() {
    let calls = calls().await;
    assert_eq!(calls, 5, "two looks, the content, its length, the rename");
    for (at, trouble) in (0..calls).flat_map(|at| ALL.map(|trouble| (at, trouble))) {
        let place = Renaming::new();
        *place.0.trouble.lock().expect("a lock") = Some((at, trouble));
        let store = place.store();
        let told = place.create(&store, b"whole content").await;
        let there = place.in_slot().await;
        let what = format!("call {at}: {trouble:?}: {told:?}, {there:?}");
        assert!(there.as_ref().is_none_or(|there| there == "whole content"), "{what}");
        match &told {
            Some(Ok(_)) => assert!(there.is_some(), "{what}"),
            Some(Err(_)) => assert_eq!(place.beside().await, 0, "{what}"),
            None => assert!(place.beside().await <= 1, "{what}"),
        }
        // Another writer comes first.
        let rival = Renaming(Arc::clone(&place.0)).store();
        let (second, found) = match there.is_some() {
            true => (Created::Exists, "whole content"),
            false => (Created::New, "another one's"),
        };
        assert_eq!(place.create(&rival, b"another one's").await, Some(Ok(second)), "{what}");
        assert_eq!(place.in_slot().await.expect("an object"), found, "{what}");
        // And the next attempt of the first one.
        let again = if told.is_none() { place.store() } else { store };
        assert_eq!(
            place.create(&again, b"whole content").await,
            Some(Ok(Created::Exists)),
            "{what}"
        );
        let is_ours = again.holds(&SLOT, &body(b"whole content")).await.expect("compares");
        assert_eq!(is_ours, there.is_some(), "{what}");
    }
}

/// A rival that comes while the content is sent is seen by the second look.
#[tokio::test]
async fn who_was_slower_replaces_nothing() {
    let place = Renaming::new();
    *place.0.rival.lock().expect("a lock") = Some((1, Bytes::from_static(b"rival")));
    assert_eq!(
        place.create(&place.store(), b"whole content").await,
        Some(Ok(Created::Exists))
    );
    assert_eq!(place.in_slot().await.expect("an object"), "rival");
    assert_eq!(place.beside().await, 0);
}

#[test]
fn at_the_top_only_what_has_a_name_of_ours_is_swept() {
    for name in ["replvfs-0123456789abcdef", "replvfs-0123456789abcdef.4f1d"] {
        assert!(super::is_ours(name, true) && super::is_ours(name, false), "{name}");
    }
    for name in [
        "replvfs-notes.txt",
        "replvfs-backup-of-monday",
        "replvfs.json",
        "replvfs-0123456789abcde",
    ] {
        assert!(!super::is_ours(name, true), "{name}");
    }
    assert!(super::is_ours("replvfs-old", false) && !super::is_ours("other", false));
}
