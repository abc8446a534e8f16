//! Against a model: what could be restored from inside of the window before can be restored after each single deletion.
#![allow(clippy::unwrap_used)]

mod denied;
mod omitted;
mod planner;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use replvfs_vfs::types::Txid;

use super::*;
use crate::format::{Generation, Parent};
use crate::history::{History, Target};
use crate::merge::{MergeOptions, merge_next};
use crate::restore::tests::{Random, Replica, committed_at};

/// What is written in a moment of the model has its time: a transaction has that of its number.
fn stamp(replica: &Replica, now: UnixMillis) {
    let mut folders = vec![replica.folder.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let file = std::fs::File::options().write(true).open(path).unwrap();
            let fresh = file.metadata().unwrap().modified().unwrap();
            if fresh > SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000) {
                let at = SystemTime::UNIX_EPOCH + Duration::from_millis(now.0.try_into().unwrap());
                file.set_modified(at).unwrap();
            }
        }
    }
}

fn now(replica: &Replica) -> UnixMillis {
    UnixMillis(committed_at(replica.txid).0 + 9)
}

async fn history(seed: u64) -> Replica {
    let mut replica = Replica::new(512, 3, seed * 7919).await;
    let mut random = Random(seed * 104_729 + 1);
    replica.begin_generation(None).await;
    replica.image().await;
    let mut imaged = replica.txid;
    for _ in 0..40 {
        match random.below(10) {
            0 if replica.txid > imaged => {
                replica.end_generation().await;
                stamp(&replica, now(&replica));
                let parent = Parent {
                    generation: replica.generation,
                    txid: Txid(replica.txid),
                };
                replica.begin_generation(Some(parent)).await;
                // Some are never restorable.
                if random.below(4) > 0 {
                    replica.image().await;
                }
                imaged = replica.txid;
            }
            1 | 2 if replica.txid > imaged => {
                replica.image().await;
                imaged = replica.txid;
            }
            3 | 4 => {
                let options = MergeOptions {
                    pieces: 2,
                    ..MergeOptions::default()
                };
                merge_next(&replica.store, replica.generation, &options).await.unwrap();
            }
            _ => {
                let transactions = 1 + random.below(3) as usize;
                replica.segment(transactions).await;
            }
        }
        stamp(&replica, now(&replica));
    }
    replica
}

fn options(replica: &Replica, retention_ms: u64, grace_ms: u64) -> PruneOptions {
    PruneOptions {
        retention: Retention::For(Duration::from_millis(retention_ms)),
        grace: Duration::from_millis(grace_ms),
        ..PruneOptions::at(now(replica))
    }
}

type Answer = (u64, u64, Vec<u8>);

async fn answer(replica: &Replica, target: Target) -> Option<Answer> {
    let (restored, bytes) = replica.restore(target).await.ok()?;
    Some((restored.generation.0, restored.txid.0, bytes))
}

/// What is in the window, and what comes of it.
async fn points(replica: &Replica, retention_ms: u64) -> Vec<(Target, Answer)> {
    let window = now(replica).0 - retention_ms as i64;
    let mut points = Vec::new();
    let times = (window..=now(replica).0)
        .step_by(5)
        .map(|at| Target::At(UnixMillis(at)));
    let txids = (0..=replica.txid).filter(|txid| committed_at(*txid).0 >= window);
    let txids = txids.map(|txid| Target::Txid(Txid(txid)));
    for target in times.chain(txids).chain([Target::Newest]) {
        if let Some(answer) = answer(replica, target).await {
            points.push((target, answer));
        }
    }
    points
}

async fn check(replica: &Replica, points: &[(Target, Answer)], when: &str) {
    for (target, expected) in points {
        let found = replica.restore(*target).await;
        let (restored, bytes) = found.unwrap_or_else(|error| panic!("{target} {when}: {error}"));
        assert_eq!(
            (restored.generation.0, restored.txid.0),
            (expected.0, expected.1),
            "{target} {when}"
        );
        assert!(bytes == expected.2, "{target} {when}: other bytes");
    }
    let history = History::open(&replica.store).await.unwrap();
    for generation in history.generations() {
        let all = Txid(0)..=Txid(u64::MAX);
        let listed = history.transactions(generation.meta().generation, all, |_| {}).await;
        listed.unwrap_or_else(|error| panic!("the log {when}: {error}"));
    }
}

async fn delete_some(replica: &Replica, deletions: &[Deletion], options: &PruneOptions, since: Moment) {
    let (mut survey, _) = survey::survey(&replica.store, options, async || {}).await.unwrap();
    delete(&replica.store, deletions, options, (&mut survey, since))
        .await
        .unwrap();
}

async fn planned(replica: &Replica, options: &PruneOptions) -> Vec<Deletion> {
    let dry = PruneOptions {
        dry_run: true,
        ..options.clone()
    };
    prune(&replica.store, &dry).await.unwrap().deletions
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_window_is_restored_after_every_single_deletion() {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 1..=12 {
        let replica = history(seed).await;
        let mut random = Random(seed + 77);
        let (retention, grace) = (50 + random.below(250), random.below(60));
        let options = options(&replica, retention, grace);
        let points = points(&replica, retention).await;
        assert!(points.len() > 5);
        let mut all: Vec<Deletion> = Vec::new();
        // What only images named that went goes when they are gone.
        for round in 0..2 {
            let deletions = planned(&replica, &options).await;
            let others = |deletions: &[Deletion]| {
                let others = deletions.iter().filter(|deletion| deletion.reason != Reason::Unnamed);
                others.copied().collect::<Vec<_>>()
            };
            assert!(
                round == 0 || others(&deletions).is_empty(),
                "seed {seed}: {deletions:?}"
            );
            for (done, deletion) in deletions.iter().enumerate() {
                *reasons.entry(deletion.reason.to_string()).or_default() += 1;
                let when = format!(
                    "seed {seed}, round {round}, after {done} deletions and {}",
                    deletion.key
                );
                delete_some(&replica, std::slice::from_ref(deletion), &options, Moment::now()).await;
                all.push(*deletion);
                let some: Vec<_> = points.iter().filter(|_| random.below(16) == 0).cloned().collect();
                check(&replica, &some, &when).await;
                no_slot_is_free_behind_one_that_is_there(&replica, &all, &when).await;
                if random.below(10) == 0 {
                    let rest = planned(&replica, &options).await;
                    assert_eq!(others(&rest), others(&deletions[done + 1..]), "{when}: another pruner");
                }
            }
        }
        check(&replica, &points, &format!("seed {seed}, at the end")).await;
        assert_eq!(planned(&replica, &options).await, [], "seed {seed}");
    }
    assert_eq!(reasons.len(), 5, "not everything was tried: {reasons:?}");
}

/// Whoever has a deleted slot for its turn finds the one before gone; the first and the second are known by what is behind them.
async fn no_slot_is_free_behind_one_that_is_there(replica: &Replica, deleted: &[Deletion], when: &str) {
    for number in 1..=replica.generation.0 {
        let generation = Generation(number);
        let mut gone = deleted.iter().filter_map(|deletion| match deletion.key {
            Key::Log(of, first) if of == generation => Some(first),
            _ => None,
        });
        let Some(highest) = gone.by_ref().max() else { continue };
        let slots = replica.store.list(&Key::log_prefix(generation)).await.unwrap();
        let left = slots
            .iter()
            .filter(|(key, _)| *key < Key::Log(generation, highest))
            .count();
        assert!(left <= 1, "{when}: slots that are left before {highest}");
        let next = replica.store.size(&Key::Generation(generation.next())).await.is_ok();
        assert!(
            next || !slots.is_empty(),
            "{when}: nothing tells that the log had gone on"
        );
        assert!(next || left == 1, "{when}: the first slot is gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pruners_at_once_do_what_one_does() {
    for seed in 21..=23 {
        let replica = history(seed).await;
        let options = options(&replica, 100, 10);
        let points = points(&replica, 100).await;
        let (one, two) = tokio::join!(prune(&replica.store, &options), prune(&replica.store, &options));
        assert!(!one.unwrap().deletions.is_empty() && two.is_ok());
        check(&replica, &points, "after two").await;
        let (one, two) = tokio::join!(prune(&replica.store, &options), prune(&replica.store, &options));
        let unnamed = |deletion: &Deletion| deletion.reason == Reason::Unnamed;
        assert!(
            one.unwrap()
                .deletions
                .iter()
                .chain(&two.unwrap().deletions)
                .all(unnamed)
        );
        check(&replica, &points, "after two more").await;
        assert_eq!(planned(&replica, &options).await, []);
    }
}

/// The chunks of an image that is stored while a pruner looks around are not those that nothing names.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_appears_meanwhile_keeps_its_chunks() {
    let mut replica = history(31).await;
    replica.segment(3).await;
    let long_ago = UnixMillis(1);
    stamp(&replica, now(&replica));
    let options = options(&replica, 1_000_000, 5);
    let image = async || {
        replica.image().await;
        // However long it took to make.
        stamp(&replica, long_ago);
    };
    prune_beside(&replica.store, &options, image).await.unwrap();
    let txid = replica.txid;
    replica
        .check(Target::Txid(Txid(txid)), replica.generation.0, txid)
        .await;
}

/// An image that took longer than the grace period to make is stored while the chunks are listed, or when everything has been planned.
#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_an_image_names_by_now_stay() {
    let passed = SURVEYED + Duration::from_secs(1);
    let by_the_clock = Moment::ago(passed, Duration::ZERO).unwrap();
    // The machine slept.
    let by_the_date = Moment::ago(Duration::ZERO, passed).unwrap();
    for planned in [None, Some(by_the_clock), Some(by_the_date)] {
        let mut replica = history(31).await;
        replica.segment(3).await;
        replica.image().await;
        let image = Key::Image(replica.generation, Txid(replica.txid));
        let manifest = replica.store.read(&image).await.unwrap();
        replica.store.delete(&image).await.unwrap();
        stamp(&replica, UnixMillis(1));
        let options = options(&replica, 1_000_000, 5);
        let store = async || {
            let body = crate::store::Body::Bytes(manifest);
            replica.store.create(&image, body).await.unwrap();
        };
        if let Some(long_ago) = planned {
            let (mut survey, _) = survey::survey(&replica.store, &options, async || {}).await.unwrap();
            let deletions = plan::plan(&survey, &options);
            assert!(deletions.iter().any(|deletion| deletion.reason == Reason::Unnamed));
            store().await;
            let survey = (&mut survey, long_ago);
            delete(&replica.store, &deletions, &options, survey).await.unwrap();
        } else {
            prune_beside(&replica.store, &options, store).await.unwrap();
        }
        let txid = replica.txid;
        replica
            .check(Target::Txid(Txid(txid)), replica.generation.0, txid)
            .await;
    }
}

/// Somebody may be making another image after one that goes, and has seen it last when it was there.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_an_image_named_goes_after_it() {
    let mut replica = Replica::new(512, 3, 12).await;
    replica.begin_generation(None).await;
    for _ in 0..6 {
        replica.image().await;
        replica.segment(3).await;
        stamp(&replica, now(&replica));
    }
    let options = options(&replica, 10, 5);
    let chunks = async || replica.store.list(Key::chunks_prefix()).await.unwrap().len();
    let all = chunks().await;
    let first = prune(&replica.store, &options).await.unwrap().deletions;
    let images = first
        .iter()
        .filter(|deletion| deletion.reason == Reason::OldImage)
        .count();
    assert!(images >= 2, "{first:?}");
    assert_eq!(chunks().await, all);
    let second = prune(&replica.store, &options).await.unwrap().deletions;
    assert!(second.iter().all(|deletion| deletion.reason == Reason::Unnamed));
    assert_eq!((second.len(), chunks().await), (images, all - images));
    replica.check(Target::Newest, 1, replica.txid).await;
}

/// Who made it died before it had looked again for what it relies on.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_without_all_of_its_chunks_replaces_stays() {
    let mut replica = Replica::new(512, 3, 11).await;
    replica.begin_generation(None).await;
    for _ in 0..6 {
        replica.image().await;
        replica.segment(3).await;
        stamp(&replica, now(&replica));
    }
    let options = options(&replica, 30, 5);
    let points = points(&replica, 1_000).await;
    let images = |deletions: &[Deletion]| {
        let images = deletions.iter().filter(|deletion| deletion.reason == Reason::OldImage);
        images.map(|deletion| deletion.key).collect::<Vec<_>>()
    };
    let before = images(&planned(&replica, &options).await);
    assert!(before.len() >= 2, "{before:?}");
    // The one that the others go in favour of.
    let base = replica.store.list(&Key::image_prefix(Generation(1))).await.unwrap()[before.len()].0;
    let manifest = crate::format::Manifest::decode(&replica.store.read(&base).await.unwrap()).unwrap();
    let chunk = Key::Chunk(manifest.chunks[0]);
    let bytes = replica.store.read(&chunk).await.unwrap();
    replica.store.delete(&chunk).await.unwrap();
    let done = prune(&replica.store, &options).await.unwrap();
    assert_eq!(images(&done.deletions), before[..before.len() - 1]);
    let told = done
        .warnings
        .iter()
        .any(|warning| warning.contains("cannot be relied on"));
    assert!(told, "{:?}", done.warnings);
    replica.put(chunk, bytes.to_vec()).await;
    let end = points.len() - 4;
    check(&replica, &points[end..], "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn for_ever_deletes_what_is_there_twice_or_in_no_image_only() {
    let replica = history(41).await;
    let targets: Vec<Target> = (0..=replica.txid).map(|txid| Target::Txid(Txid(txid))).collect();
    let mut before = Vec::new();
    for target in &targets {
        before.extend(answer(&replica, *target).await.map(|answer| (*target, answer)));
    }
    let options = PruneOptions {
        retention: Retention::Forever,
        ..options(&replica, 1, 0)
    };
    let done = prune(&replica.store, &options).await.unwrap();
    let allowed = [Reason::Merged, Reason::Unnamed];
    assert!(!done.deletions.is_empty());
    assert!(done.deletions.iter().all(|deletion| allowed.contains(&deletion.reason)));
    check(&replica, &before, "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pruned_is_said_to_be_gone() {
    let replica = history(51).await;
    prune(&replica.store, &options(&replica, 50, 0)).await.unwrap();
    for target in [Target::Txid(Txid(1)), Target::At(UnixMillis(12))] {
        let error = replica.restore(target).await.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("older history was pruned"), "{target}: {error}");
    }
}

/// Nothing of it can be read, so nothing tells which chunks it needs.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_cannot_be_read_keeps_its_generation_and_all_chunks() {
    let replica = history(61).await;
    let generation = Generation(1);
    let images = replica.store.list(&Key::image_prefix(generation)).await.unwrap();
    std::fs::write(replica.path(images[0].0), b"damaged").unwrap();
    stamp(&replica, UnixMillis(1));
    let done = prune(&replica.store, &options(&replica, 50, 0)).await.unwrap();
    assert!(done.warnings[0].contains("is left alone"), "{:?}", done.warnings);
    let kept = |deletion: &Deletion| !deletion.key.path().contains(&generation.to_string());
    assert!(done.deletions.iter().all(kept));
    assert!(done.deletions.iter().all(|deletion| deletion.reason != Reason::Unnamed));
}
