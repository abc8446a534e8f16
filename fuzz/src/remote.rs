//! A replica as the read-only VFS reads it out of a store that nobody vouches for: objects that are gone, torn, changed, moved or put there by others, before it is
//! opened and while it is read. A page is what was committed, or there is an error; with checksums that fit, nothing panics, hangs or takes much memory.

use std::time::{Duration, SystemTime};

use arbitrary::Arbitrary;
use opendal::{Operator, services};
use replvfs::format::CHUNK_BYTES;
use replvfs::history::Target;
use replvfs::store::Store;
use replvfs::testing::{RemoteReader, RemoteState, alone};
use replvfs_vfs::types::Pgno;

use crate::damage::{Damage, Wanted, damaged, whole};
use crate::{memory, read};

#[derive(Arbitrary, Debug)]
struct Input {
    before: Vec<Damage>,
    wanted: [Wanted; 2],
    /// While it is open. All of it takes the place of what was there before.
    meanwhile: Vec<Damage>,
    cache_log: u8,
}

/// Of a database that says that it is larger, the first pages and the last.
const PAGES: u32 = 24;

/// Damage, and what is read before and after it, as [`Input`].
pub fn run(data: &[u8]) {
    let Some(input) = read::<Input>(data) else { return };
    let (objects, was_mended) = damaged(&input.before);
    let (later, is_mended) = damaged(&input.meanwhile);
    let total: usize = objects.iter().chain(&later).map(|(_, bytes)| bytes.len()).sum();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(30 * 86_400);
    // As in the target `replica`: a hostile index has its own bound. Two readings may be there.
    let limit = 2 * 3 * 4 * (16 << 20) + 32 * CHUNK_BYTES + 64 * total;
    memory::within(limit, || {
        alone(now, async {
            let operator = Operator::new(services::Memory::default()).expect("a store in memory");
            put(&operator, &objects).await;
            let reader = RemoteReader::new(Store::from_operator(operator.clone()), 1 << (input.cache_log % 24));
            let mut seen = Vec::new();
            for wanted in input.wanted {
                let (target, _) = wanted.target();
                seen.extend(look(&reader, target, was_mended).await);
            }
            for (name, _) in &objects {
                operator.delete(name).await.expect("it is deleted");
            }
            put(&operator, &later).await;
            let is_mended = was_mended || is_mended;
            for state in &mut seen {
                pages(&reader, state, is_mended).await;
            }
            if let Ok(mut newest) = reader.newest().await {
                pages(&reader, &mut newest, is_mended).await;
            }
            for wanted in input.wanted {
                look(&reader, wanted.target().0, is_mended).await;
            }
        });
    });
}

async fn put(operator: &Operator, objects: &[(String, Vec<u8>)]) {
    for (name, bytes) in objects {
        operator.write(name, bytes.clone()).await.expect("it is written");
    }
}

async fn look(reader: &RemoteReader, target: Target, is_mended: bool) -> Option<RemoteState> {
    let found = match target {
        Target::Newest => reader.newest().await,
        _ => reader.at(target).await,
    };
    let mut state = found.inspect_err(|error| assert!(!error.is_empty())).ok()?;
    if let (Target::Txid(wanted), false) = (target, is_mended) {
        assert_eq!(state.place().1, wanted);
    }
    pages(reader, &mut state, is_mended).await;
    Some(state)
}

/// Just what was committed then, each that can be had.
async fn pages(reader: &RemoteReader, state: &mut RemoteState, is_mended: bool) {
    let (generation, txid) = state.place();
    let (count, size) = (state.page_count(), state.page_size());
    let last = (count > PAGES).then_some(count);
    let committed = whole().states.get(&(generation.0, txid.0));
    if !is_mended {
        let len = committed.expect("a state that never was").len();
        assert_eq!(len, count as usize * size, "generation {generation} transaction {txid}");
    }
    for number in (1..=count.min(PAGES)).chain(last).filter_map(Pgno::new) {
        let page = reader.page(state, number).await;
        let page = page.inspect_err(|error| assert!(!error.is_empty()));
        let Ok(page) = page else { continue };
        assert_eq!(page.len(), size);
        if let (Some(committed), false) = (committed, is_mended) {
            let there = &committed[(number.get() as usize - 1) * size..][..size];
            assert!(page == there, "page {number} of {generation} {txid} was something else");
        }
    }
}
