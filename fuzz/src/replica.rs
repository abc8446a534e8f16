//! A whole replica, damaged: objects that are gone, torn, changed, under another's name, or nobody's. A restore gives just what was committed, or an error; where
//! `verify` finds nothing, everything that it says is there can be restored; merging and deleting end. With checksums that fit, as whoever means harm would make
//! them, at least nothing panics or takes much memory.

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

use crate::damage::{Damage, Wanted, damaged, whole};
use crate::{folder, memory, read};

#[derive(Arbitrary, Debug)]
struct Input {
    damage: Vec<Damage>,
    wanted: [Wanted; 3],
    chores: [bool; 3],
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
