//! Every damage to a small replica: a restore gives the truth or names the object, and what some restore fails on is found.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::history::Target;
use crate::merge::{MergeOptions, merge_next};
use crate::restore::tests::Replica;

/// Two generations, with several images each: one between two segments, one in the middle of one.
async fn replica() -> Replica {
    let mut replica = Replica::new(512, 3, 31).await;
    replica.begin_generation(None).await;
    replica.image().await;
    replica.segment(2).await;
    replica.segment(1).await;
    replica.image().await;
    replica.segment(3).await;
    replica.end_generation().await;
    let parent = Parent {
        generation: Generation(1),
        txid: Txid(5),
    };
    replica.txid = 5;
    replica.begin_generation(Some(parent)).await;
    replica.image().await;
    replica.segment(2).await;
    replica.segment(2).await;
    replica.image_of(8).await;
    replica.segment(1).await;
    replica.end_generation().await;
    replica
}

/// What is asked for, and the state that must come.
type Wanted = (Target, (u64, u64));

/// What can be asked for.
fn targets() -> Vec<Wanted> {
    let mut targets: Vec<_> = (0..=10u64)
        .map(|txid| (Target::Txid(Txid(txid)), (if txid < 5 { 1 } else { 2 }, txid)))
        .collect();
    targets.push((Target::Newest, (2, 10)));
    targets.push((Target::At(UnixMillis(25)), (1, 2)));
    targets.push((Target::At(UnixMillis(35)), (1, 3)));
    targets.push((Target::At(UnixMillis(75)), (2, 7)));
    targets.push((Target::At(UnixMillis(82)), (2, 8)));
    targets
}

async fn verified(replica: &Replica) -> Verified {
    verify(&replica.store, &VerifyOptions::default()).await.unwrap()
}

/// Whether the target fails, or comes by an older image; the object must be named then.
async fn fails(replica: &Replica, key: Key, (target, state): Wanted, what: &str) -> bool {
    match replica.restore(target).await {
        Ok((restored, bytes)) => {
            let came = (restored.generation.0, restored.txid.0);
            assert_eq!(came, state, "{target} after {what} of {key}");
            assert!(
                bytes == replica.states[&state],
                "{target} after {what} of {key}: other content"
            );
            // Older generations that are left out were always told of, and nothing comes by them.
            let is_image = matches!(key, Key::Image(..) | Key::Chunk(_));
            is_image && restored.warnings.iter().any(|warning| warning.contains(&key.path()))
        }
        Err(error) => {
            assert!(
                error.to_string().contains(&key.path()),
                "{target} after {what} of {key} does not name it: {error}"
            );
            true
        }
    }
}

fn names(verified: &Verified, key: Key) -> bool {
    names_in(&verified.findings, key)
}

fn names_in(findings: &[Finding], key: Key) -> bool {
    let about = |finding: &Finding| finding.object == key || finding.problem.contains(&key.path());
    findings.iter().any(about)
}

#[tokio::test]
async fn a_whole_replica_has_no_findings() {
    let replica = replica().await;
    for (target, state) in targets() {
        assert!(!fails(&replica, Key::Replica, (target, state), "no damage").await);
    }
    let verified = verified(&replica).await;
    assert_eq!(verified.findings, []);
    assert_eq!(verified.unreferenced, Unreferenced::default());
    assert_eq!(verified.warnings, [] as [String; 0]);
    let generations: Vec<_> = verified
        .generations
        .iter()
        .map(|found| (found.images.clone(), found.last))
        .collect();
    let images = |txids: &[u64]| txids.iter().map(|txid| Txid(*txid)).collect::<Vec<_>>();
    assert_eq!(generations, [(images(&[0, 3]), Txid(6)), (images(&[5, 8]), Txid(10))]);
    let seals = 2;
    let listed = replica.store.list("").await.unwrap().len() as u64;
    assert_eq!(
        verified.read.objects,
        listed - seals - 2,
        "all but seals and what describes generations are counted"
    );
}

/// Without an object each target comes as it was, or fails with the object's name.
#[tokio::test]
async fn every_object_missing_in_turn() {
    let replica = replica().await;
    for (key, _) in replica.store.list("").await.unwrap() {
        let path = replica.path(key);
        let truth = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut failed = 0;
        for (target, state) in targets() {
            // As if it had been deleted for its age: nothing tells that it was there. The image before it does, or the parent.
            if matches!(key, Key::Image(..)) {
                match replica.restore(target).await {
                    Ok((restored, bytes)) => assert!(
                        (restored.txid.0 == state.1 || matches!(target, Target::At(_)))
                            && bytes == replica.states[&(restored.generation.0, restored.txid.0)],
                        "{target} without {key}"
                    ),
                    Err(error) => assert!(error.to_string().contains("is not in the history"), "{error}"),
                }
                continue;
            }
            failed += u32::from(fails(&replica, key, (target, state), "the loss").await);
        }
        let verified = verified(&replica).await;
        if failed > 0 {
            assert!(names(&verified, key), "{key} is missing: {:?}", verified.findings);
        } else {
            assert!(
                matches!(key, Key::Image(..) | Key::Log(..)),
                "{key} is needed by nothing"
            );
        }
        std::fs::write(&path, truth).unwrap();
    }
    assert_eq!(verified(&replica).await.findings, []);
}

/// The targets that need the object.
async fn depend_on(replica: &Replica, targets: &[Wanted], key: Key) -> Vec<Wanted> {
    let path = replica.path(key);
    let truth = std::fs::read(&path).unwrap();
    std::fs::write(&path, b"not what it was").unwrap();
    let mut depend = Vec::new();
    for target in targets.iter().copied() {
        if fails(replica, key, target, "another content").await {
            depend.push(target);
        }
    }
    std::fs::write(&path, truth).unwrap();
    depend
}

/// Bits flipped in each byte, and each length. Which of the targets that need it is asked for goes round.
async fn damage_all(replica: Replica, targets: &[Wanted], chosen: impl Fn(Key) -> bool) {
    let turn = AtomicUsize::new(0);
    let mut failed = 0;
    for (key, _) in replica.store.list("").await.unwrap() {
        if !chosen(key) {
            continue;
        }
        let mut depend = depend_on(&replica, targets, key).await;
        // Nobody asks for the end of a generation that another one follows.
        let needed = !depend.is_empty();
        if !needed {
            depend = targets.to_vec();
        }
        let path: PathBuf = replica.path(key);
        let truth = std::fs::read(&path).unwrap();
        for at in 0..truth.len() {
            let mut flipped = truth.clone();
            flipped[at] ^= 1 << (at % 8);
            let cut = &truth[..at];
            for (bytes, what) in [(&flipped[..], "a flipped bit"), (cut, "a cut")] {
                std::fs::write(&path, bytes).unwrap();
                let target = depend[turn.fetch_add(1, Ordering::Relaxed) % depend.len()];
                let fails = fails(&replica, key, target, what).await;
                failed += u32::from(fails);
                // A line's end behind JSON is as nothing.
                assert!(
                    fails || !needed || bytes.len() + 1 >= truth.len(),
                    "a cut at {at} of {key}"
                );
                if (fails || !needed) && (bytes.len() == truth.len() || at % 4 == 0) {
                    let verified = verified(&replica).await;
                    assert!(
                        names(&verified, key),
                        "{what} at {at} of {key} is not found: {:?}",
                        verified.findings
                    );
                }
            }
        }
        std::fs::write(&path, truth).unwrap();
    }
    assert!(failed > 0);
    assert_eq!(verified(&replica).await.findings, []);
}

#[tokio::test]
async fn every_damage_to_segments_and_seals_of_the_first_generation() {
    damage_all(replica().await, &targets(), |key| {
        matches!(key, Key::Log(Generation(1), _))
    })
    .await;
}

#[tokio::test]
async fn every_damage_to_segments_and_seals_of_the_second_generation() {
    damage_all(replica().await, &targets(), |key| {
        matches!(key, Key::Log(Generation(2), _))
    })
    .await;
}

#[tokio::test]
async fn every_damage_to_images() {
    damage_all(replica().await, &targets(), |key| {
        matches!(key, Key::Image(..) | Key::Chunk(_))
    })
    .await;
}

#[tokio::test]
async fn every_damage_to_what_describes_the_replica() {
    damage_all(replica().await, &targets(), |key| {
        matches!(key, Key::Replica | Key::Generation(_))
    })
    .await;
}

/// A log of which the first half was merged.
async fn merged() -> Replica {
    let mut replica = Replica::new(512, 3, 37).await;
    replica.begin_generation(None).await;
    replica.image().await;
    for _ in 0..5 {
        replica.segment(1).await;
    }
    let options = MergeOptions {
        pieces: 2,
        level: 1,
        folder: None,
        ..MergeOptions::default()
    };
    for more in [3, 0] {
        let made = merge_next(&replica.store, Generation(1), &options).await.unwrap();
        assert!(made.is_some());
        for _ in 0..more {
            replica.segment(1).await;
        }
    }
    replica.end_generation().await;
    replica
}

#[tokio::test]
async fn what_was_merged_is_not_needed_and_spans_are() {
    let replica = merged().await;
    let mut spans = Vec::new();
    let listed = replica.store.list("").await.unwrap();
    for (key, _) in &listed {
        if let Key::Span(_, first, last) = key {
            spans.push((*key, *first, *last));
        }
    }
    let merged = listed.iter().filter(|(key, _)| match key {
        Key::Log(_, slot) => spans.iter().any(|(_, first, last)| (first..=last).contains(&slot)),
        _ => false,
    });
    let merged: Vec<Key> = merged.map(|(key, _)| *key).collect();
    assert!(spans.len() == 2 && merged.len() >= 4, "{listed:?}");
    let whole = verified(&replica).await;
    assert_eq!((whole.findings, whole.generations[0].last), (vec![], Txid(8)));
    assert_eq!(whole.unreferenced.segments, merged.len() as u64);
    for key in merged {
        std::fs::remove_file(replica.path(key)).unwrap();
    }
    let whole = verified(&replica).await;
    assert_eq!((whole.findings, whole.unreferenced), (vec![], Unreferenced::default()));
    let targets: Vec<Wanted> = (0..=8).map(|txid| (Target::Txid(Txid(txid)), (1, txid))).collect();
    for (key, ..) in &spans {
        let truth = std::fs::read(replica.path(*key)).unwrap();
        std::fs::remove_file(replica.path(*key)).unwrap();
        assert!(verified(&replica).await.findings.len() == 1, "{key}");
        std::fs::write(replica.path(*key), truth).unwrap();
    }
    damage_all(replica, &targets, |key| matches!(key, Key::Span(..))).await;
}

#[tokio::test]
async fn what_is_out_of_the_window_is_not_read() {
    let replica = replica().await;
    let damage = |key: Key| std::fs::write(replica.path(key), b"damage").unwrap();
    // In front of the second image of the second generation, taken at 85.
    damage(Key::Log(Generation(1), Txid(1)));
    damage(Key::Image(Generation(1), Txid(0)));
    damage(Key::Log(Generation(2), Txid(6)));
    let since = |time| VerifyOptions {
        since: Some(UnixMillis(time)),
        ..VerifyOptions::default()
    };
    let found = verify(&replica.store, &since(85)).await.unwrap();
    assert_eq!((found.findings, found.generations.len()), (vec![], 1));
    let found = verify(&replica.store, &since(84)).await.unwrap();
    assert!(names_in(&found.findings, Key::Log(Generation(2), Txid(6))));
    assert_eq!((found.findings.len(), found.generations.len()), (1, 1));
    let found = verify(&replica.store, &since(54)).await.unwrap();
    assert_eq!(
        (found.findings.len(), found.generations.len()),
        (1, 2),
        "{:?}",
        found.findings
    );
    let found = verified(&replica).await;
    assert_eq!(found.findings.len(), 3);
    let only = VerifyOptions {
        generation: Some(Generation(1)),
        ..VerifyOptions::default()
    };
    let found = verify(&replica.store, &only).await.unwrap();
    assert_eq!((found.findings.len(), found.generations.len()), (2, 1));
}

#[tokio::test]
async fn what_nothing_names_is_counted() {
    let replica = replica().await;
    let lonely = Key::Chunk(ChunkName {
        hash: crate::format::ChunkHash([7; 32]),
        token: 9,
    });
    std::fs::write(replica.path(lonely), b"12345").unwrap();
    let found = verified(&replica).await;
    assert_eq!(found.findings, []);
    let expected = Unreferenced {
        chunks: 1,
        segments: 0,
        bytes: 5,
    };
    assert_eq!(found.unreferenced, expected);
}

#[tokio::test]
async fn a_parent_that_ends_too_early_is_found() {
    let replica = replica().await;
    for slot in [4, 7] {
        std::fs::remove_file(replica.path(Key::Log(Generation(1), Txid(slot)))).unwrap();
    }
    let found = verified(&replica).await;
    assert!(names(&found, Key::Log(Generation(1), Txid(4))), "{:?}", found.findings);
    assert!(names(&found, Key::Generation(Generation(2))));
}

/// Retention deletes the oldest image with its log, while that is read.
async fn pruned_meanwhile(also: Option<Key>) -> Verified {
    let mut replica = Replica::new(512, 3, 78).await;
    replica.begin_generation(None).await;
    replica.image().await;
    let chunks = replica.store.list(Key::chunks_prefix()).await.unwrap();
    let mut deleted: Vec<_> = chunks.into_iter().map(|(key, _)| key).collect();
    deleted.push(Key::Image(Generation(1), Txid(0)));
    deleted.push(replica.segment(2).await);
    deleted.push(replica.segment(1).await);
    replica.image().await;
    replica.segment(3).await;
    replica.segment(1).await;
    deleted.extend(also);
    let deleted: Vec<_> = deleted.into_iter().map(|key| replica.path(key)).collect();
    let once = std::sync::Once::new();
    let options = VerifyOptions {
        progress: Some(Arc::new(move |progress: VerifyProgress| {
            // `replvfs.json`, and the manifest of the oldest image.
            if progress.objects == 2 {
                once.call_once(|| deleted.iter().for_each(|path| std::fs::remove_file(path).unwrap()));
            }
        })),
        ..VerifyOptions::default()
    };
    verify(&replica.store, &options).await.unwrap()
}

#[tokio::test]
async fn what_was_deleted_meanwhile_and_is_not_needed_is_no_finding() {
    let verified = pruned_meanwhile(None).await;
    assert_eq!(verified.findings, []);
    assert_eq!(verified.generations[0].images, [Txid(3)]);
    let needed = Key::Log(Generation(1), Txid(4));
    let verified = pruned_meanwhile(Some(needed)).await;
    let found: Vec<_> = verified
        .findings
        .iter()
        .map(|found| (found.object, found.missing))
        .collect();
    assert_eq!(found, [(needed, true)]);
}
