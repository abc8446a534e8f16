//! A whole replica, damaged: objects that are gone, torn, changed, under another's name, or nobody's. A restore gives just what was committed, or an error; where
//! `verify` finds nothing, everything that it says is there can be restored; merging and deleting end. With checksums that fit, as whoever means harm would make
//! them, at least nothing panics or takes much memory.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use arbitrary::Arbitrary;
use opendal::{Operator, services};
use replvfs::format::{CHUNK_BYTES, Generation};
use replvfs::history::Target;
use replvfs::merge::{MergeOptions, merge};
use replvfs::prune::{PruneOptions, prune};
use replvfs::restore::{RestoreOptions, restore};
use replvfs::store::Store;
use replvfs::testing::alone;
use replvfs::verify::{VerifyOptions, verify};
use replvfs_vfs::types::{Txid, UnixMillis};

use crate::specimen::{self, Specimen};
use crate::{folder, memory, mended, read};

#[derive(Arbitrary, Debug)]
struct Input {
    damage: Vec<Damage>,
    wanted: [Wanted; 3],
    chores: [bool; 3],
}

#[derive(Arbitrary, Debug)]
enum Damage {
    Gone(u8),
    Flipped(u8, u16, u8),
    Cut(u8, u16),
    Longer(u8, Vec<u8>),
    /// It stands under another's name.
    Moved(u8, u8),
    /// Under a name that nobody has given it.
    Named(String, Vec<u8>),
    /// Bytes are changed, and the checksums with them.
    Mended(u8, Vec<(u16, u8)>),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Wanted {
    Newest,
    /// One of those that there are.
    One(u8),
    Txid(u8),
    At(u8),
}

fn whole() -> &'static Specimen {
    static WHOLE: OnceLock<Specimen> = OnceLock::new();
    WHOLE.get_or_init(specimen::replica)
}

/// What becomes of the objects, and whether a checksum fits that should not.
fn damaged(damage: &[Damage]) -> (Vec<(String, Vec<u8>)>, bool) {
    let objects = whole().objects.iter();
    let mut objects: Vec<_> = objects.map(|(key, bytes)| (key.path(), bytes.clone())).collect();
    let count = objects.len();
    let mut is_mended = false;
    for damage in damage.iter().take(6) {
        let which = |number: &u8| usize::from(*number) % count;
        match damage {
            Damage::Gone(object) => objects[which(object)].0.clear(),
            Damage::Flipped(object, at, mask) => {
                let bytes = &mut objects[which(object)].1;
                let at = usize::from(*at) % bytes.len().max(1);
                bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= mask);
            }
            Damage::Cut(object, len) => objects[which(object)].1.truncate((*len).into()),
            Damage::Longer(object, more) => objects[which(object)].1.extend_from_slice(more),
            Damage::Moved(object, to) => {
                let bytes = objects[which(object)].1.clone();
                objects[which(to)].1 = bytes;
            }
            Damage::Named(name, bytes) => objects.push((name.clone(), bytes.clone())),
            Damage::Mended(object, changes) => {
                let bytes = &mut objects[which(object)].1;
                for (at, byte) in changes.iter().take(16) {
                    let at = usize::from(*at) % bytes.len().max(1);
                    bytes.get_mut(at).into_iter().for_each(|there| *there = *byte);
                }
                mended::any(bytes);
                is_mended = true;
            }
        }
    }
    objects.retain(|(name, _)| is_name(name));
    (objects, is_mended)
}

/// As a store takes it.
fn is_name(name: &str) -> bool {
    let parts = || name.split('/');
    !name.is_empty() && parts().all(|part| !part.is_empty() && part != "." && part != ".." && part.trim() == part)
}

/// Damage, and what is asked for then, as [`Input`].
pub fn run(data: &[u8]) {
    let Some(input) = read::<Input>(data) else { return };
    let (objects, is_mended) = damaged(&input.damage);
    let total: usize = objects.iter().map(|(_, bytes)| bytes.len()).sum();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(30 * 86_400);
    // A hostile index has its own bound: see the target `segment`.
    let limit = 3 * 4 * (16 << 20) + 16 * CHUNK_BYTES + 64 * total;
    memory::within(limit, || {
        alone(now, async {
            let operator = Operator::new(services::Memory::default()).expect("a store in memory");
            for (name, bytes) in objects {
                operator.write(&name, bytes).await.expect("it is written");
            }
            look(&Store::from_operator(operator), &input, is_mended).await;
        });
    });
}

async fn look(store: &Store, input: &Input, is_mended: bool) {
    for wanted in &input.wanted {
        let (target, generation) = wanted.target();
        let _ = restored(store, target, generation, is_mended).await;
    }
    let [verifies, merges, prunes] = input.chores;
    if verifies {
        verified(store, &input.wanted, is_mended).await;
    }
    if merges {
        let options = MergeOptions {
            pieces: 2,
            level: 1,
            ..MergeOptions::default()
        };
        let merged = merge(store, None, &options).await;
        // What can be restored is the same.
        let after = restored(store, Target::Newest, None, is_mended).await;
        assert!(is_mended || !input.damage.is_empty() || merged.is_ok() && after.is_ok());
    }
    if prunes {
        let options = PruneOptions::at(UnixMillis(60 * 86_400_000));
        let pruned = prune(store, &options).await;
        let after = restored(store, Target::Newest, None, is_mended).await;
        assert!(is_mended || !input.damage.is_empty() || pruned.is_ok() && after.is_ok());
    }
}

/// Just what was committed then, or an error.
async fn restored(
    store: &Store,
    target: Target,
    generation: Option<Generation>,
    is_mended: bool,
) -> Result<(), String> {
    let out = folder().join("out.db");
    let options = RestoreOptions {
        target,
        generation,
        force: true,
        ..RestoreOptions::default()
    };
    let restored = restore(store, &out, &options).await.map_err(|error| error.to_string());
    let restored = restored.inspect_err(|error| assert!(!error.is_empty()))?;
    let content = std::fs::read(&out).expect("it was restored");
    assert_eq!(restored.bytes, content.len() as u64);
    if is_mended {
        return Ok(());
    }
    let place = (restored.generation.0, restored.txid.0);
    assert!(
        whole().states.get(&place) == Some(&content),
        "{target}: {place:?} was something else"
    );
    if let Target::Txid(wanted) = target {
        assert_eq!(restored.txid, wanted);
    }
    if let Some(generation) = generation {
        assert_eq!(restored.generation, generation);
    }
    Ok(())
}

/// What is said to be whole is.
async fn verified(store: &Store, wanted: &[Wanted], is_mended: bool) {
    let Ok(verified) = verify(store, &VerifyOptions::default()).await else {
        return;
    };
    if is_mended || !verified.findings.is_empty() {
        return;
    }
    for generation in &verified.generations {
        let Some(first) = generation.images.iter().min() else {
            continue;
        };
        for wanted in wanted {
            let (_, txid) = wanted.place();
            let txid = Txid(txid);
            if (*first..=generation.last).contains(&txid) {
                let number = generation.generation;
                let restored = restored(store, Target::Txid(txid), Some(number), false).await;
                assert_eq!(
                    restored,
                    Ok(()),
                    "verify finds nothing, and {number} {txid} is not there"
                );
            }
        }
    }
}

impl Wanted {
    /// One of the transactions that there are.
    fn place(self) -> (u64, u64) {
        let number = match self {
            Wanted::Newest => 0,
            Wanted::One(number) | Wanted::Txid(number) | Wanted::At(number) => number,
        };
        let states = &whole().states;
        *states
            .keys()
            .nth(usize::from(number) % states.len())
            .expect("one of them")
    }

    fn target(self) -> (Target, Option<Generation>) {
        match self {
            Wanted::Newest => (Target::Newest, None),
            Wanted::One(_) => {
                let (generation, txid) = self.place();
                (Target::Txid(Txid(txid)), Some(Generation(generation)))
            }
            Wanted::Txid(txid) => (Target::Txid(Txid(u64::from(txid) % 12)), None),
            Wanted::At(time) => (Target::At(UnixMillis(time.into())), None),
        }
    }
}
