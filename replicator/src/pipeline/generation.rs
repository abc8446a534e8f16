//! The beginning of a history: what the replica is, and a generation's number that nobody else has.
//!
//! Leaves to `attach` what is in the replica already. Also owns the probe of the store's word: some servers accept the condition of a creation and ignore it.

use bytes::Bytes;
use replvfs_vfs::types::{PageSize, Txid};

use super::Stopped;
use super::seal::{Sealing, Tail, seal};
use super::shared::now;
use super::uploader::{Owner, Uploader};
use crate::format::{
    DatabaseId, FORMAT_VERSION, FormatError, Generation, GenerationMeta, Key, MAX_META_BYTES, ObjectHash, Parent,
    ReplicaMeta,
};
use crate::history::walk::read;
use crate::history::{HistoryError, list_generations};
use crate::outside;
use crate::store::{Body, Created, Fencing};

/// One more than a JSON object may have: decoding one that is longer fails.
pub(super) const META_BYTES: u64 = MAX_META_BYTES as u64 + 1;

/// A generation that has begun in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Begun {
    pub(super) generation: Generation,
    /// What its first segment follows.
    pub(super) root: ObjectHash,
}

/// Which database the replica is of; `None` when there is no replica yet. Fails when this version cannot write to it.
pub(super) async fn look(uploader: &Uploader) -> Result<Option<DatabaseId>, Stopped> {
    let store = &uploader.shared().store;
    let told = uploader
        .until_sure(|| async {
            match read(store, Key::Replica, META_BYTES).await? {
                Some(bytes) => ReplicaMeta::from_bytes(&bytes)
                    .map(Some)
                    .map_err(HistoryError::format(Key::Replica)),
                None => Ok(None),
            }
        })
        .await?;
    match told {
        Ok(meta) => Ok(meta.map(|meta| meta.database_id)),
        Err(error) => Err(fail(
            uploader,
            &format!("{} in the replica {}: {error}", Key::Replica, store.replica()),
        )),
    }
}

/// Makes sure that there is a replica, and that this version can write to it.
pub(super) async fn ensure(uploader: &Uploader) -> Result<DatabaseId, Stopped> {
    loop {
        if let Some(id) = look(uploader).await? {
            return Ok(id);
        }
        let meta = ReplicaMeta {
            format: FORMAT_VERSION,
            database_id: DatabaseId(random(uploader)?),
        };
        let body = Body::Bytes(encoded(uploader, meta.to_bytes())?);
        if uploader.create(Key::Replica, &body).await? == Owner::Us {
            return Ok(meta.database_id);
        }
    }
}

/// Takes the next free number, after the generation before it was ended.
pub(super) async fn begin(
    uploader: &Uploader,
    mut ended: Ended,
    parent: Option<Parent>,
    page_size: PageSize,
    first_image: Txid,
) -> Result<Begun, Stopped> {
    let shared = uploader.shared();
    // Not only for people: it keeps two writers from taking the other's generation for their own.
    let writer = format!(
        "replvfs {} {:016x} process {}{}",
        env!("CARGO_PKG_VERSION"),
        u64::from_ne_bytes(random(uploader)?),
        std::process::id(),
        host_name().map(|name| format!(" on {name}")).unwrap_or_default(),
    );
    let created_at = now();
    loop {
        let generation = ended.generation.map_or(Generation(1), Generation::next);
        let meta = GenerationMeta {
            format: FORMAT_VERSION,
            generation,
            parent,
            page_size: page_size.get(),
            writer: writer.clone(),
            created_at,
            first_image,
        };
        let bytes = encoded(uploader, meta.to_bytes())?;
        let key = Key::Generation(generation);
        match uploader.create(key, &Body::Bytes(bytes.clone())).await? {
            Owner::Us => {
                let bytes = probe(uploader, key, bytes).await?;
                shared.status.generation(generation);
                tracing::info!(
                    database = %shared.database,
                    replica = shared.store.replica(),
                    generation = generation.0,
                    "a generation began"
                );
                return Ok(Begun {
                    generation,
                    root: GenerationMeta::root(&bytes),
                });
            }
            Owner::Another if shared.refusal.stops() => {
                return Err(super::fenced::yields(shared, &format!("generation {generation} has just begun")).await);
            }
            // Somebody else has just begun one, which has to end before ours begins.
            Owner::Another if generation.next() > generation => ended = end_newest(uploader, None).await?,
            Owner::Another => {
                let replica = shared.store.replica();
                return Err(fail(
                    uploader,
                    &format!(
                        "{key} is in the replica {replica}, after which there is no number left: give the database another replica"
                    ),
                ));
            }
        }
    }
}

/// The newest generation, after it was ended.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ended {
    /// `None` when there is none.
    pub(super) generation: Option<Generation>,
    /// The slot of its seal, as far as that is known.
    pub(super) slot: Option<Txid>,
}

/// Makes sure that nobody writes to the newest generation any more. `known`: where this process would go on writing, if it wrote that one.
pub(super) async fn end_newest(uploader: &Uploader, mut known: Option<Tail>) -> Result<Ended, Stopped> {
    let store = &uploader.shared().store;
    'newest: loop {
        let listed = match uploader.until_told(|| list_generations(store)).await? {
            Ok(listed) => listed,
            Err(error) => return Err(fail(uploader, &error.to_string())),
        };
        // A folder in which nothing is has not begun, and may never: what matters is the one before.
        for newest in listed.into_iter().rev() {
            match seal(uploader, newest, known).await? {
                Sealing::Done(ended) => return Ok(ended),
                Sealing::Nothing => {}
                Sealing::Overtaken => {
                    known = None;
                    continue 'newest;
                }
            }
        }
        return Ok(Ended::default());
    }
}

/// Tries to create what was just created, with other bytes, where a server decides. Returns the bytes that are in the store then:
/// with those that were tried, which mean the same, the generation is as good.
async fn probe(uploader: &Uploader, key: Key, bytes: Bytes) -> Result<Bytes, Stopped> {
    let shared = uploader.shared();
    let store = &shared.store;
    if !store.is_remote() || store.fencing() == Fencing::BestEffort {
        return Ok(bytes);
    }
    let mut other = bytes.to_vec();
    other.push(b'\n');
    let other = Bytes::from(other);
    let answer = uploader
        .until_answered(|| store.create(&key, Body::Bytes(other.clone())))
        .await?;
    let found = uploader.until_answered(|| store.read_up_to(&key, META_BYTES)).await?;
    if answer == Created::Exists && found == bytes {
        store.condition_is_kept();
        return Ok(bytes);
    }
    overwrites(uploader);
    if found == bytes || found == other {
        return Ok(found);
    }
    Err(fail(
        uploader,
        &format!(
            "another writer took {key} in the replica {}, and the store does not keep writers apart",
            store.replica()
        ),
    ))
}

/// The same for a generation that this process goes on with, once it has put something into it: with the bytes that are there, so that a store which
/// overwrites has changed nothing. One answer is enough, and whether there is none is no trouble.
pub(super) async fn probe_again(uploader: &Uploader, generation: Generation) {
    let store = &uploader.shared().store;
    if !store.is_remote() || store.fencing() == Fencing::BestEffort {
        return;
    }
    let key = Key::Generation(generation);
    let Ok(bytes) = store.read_up_to(&key, META_BYTES).await else {
        return;
    };
    match store.create(&key, Body::Bytes(bytes)).await {
        Ok(Created::New) => overwrites(uploader),
        Ok(Created::Exists) => store.condition_is_kept(),
        Err(_) => {}
    }
}

pub(super) fn overwrites(uploader: &Uploader) {
    let shared = uploader.shared();
    shared.store.condition_is_ignored();
    replvfs_vfs::warning!(
        database = shared.database, replica = shared.store.replica();
        "the store overwrites objects that it was asked to create only if they do not exist: two writers of this replica would not be \
         kept apart (fencing: best-effort)"
    );
}

fn encoded(uploader: &Uploader, bytes: Result<Vec<u8>, FormatError>) -> Result<Bytes, Stopped> {
    bytes
        .map(Bytes::from)
        .map_err(|error| fail(uploader, &error.to_string()))
}

pub(super) fn random<const N: usize>(uploader: &Uploader) -> Result<[u8; N], Stopped> {
    let mut bytes = [0; N];
    match outside::random(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(fail(uploader, &format!("the system gives no random numbers: {error}"))),
    }
}

fn fail(uploader: &Uploader, reason: &str) -> Stopped {
    uploader.shared().fail(reason);
    Stopped
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty() && name.len() <= 255).then(|| name.to_owned())
}
