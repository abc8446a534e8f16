//! Logs that were merged, in part or again and again, with and without what was merged.

use super::*;
use crate::local_state;
use crate::merge::{MergeError, MergeOptions, Merged, SpanMade, merge, merge_next};

fn options(pieces: usize) -> MergeOptions {
    MergeOptions {
        pieces,
        level: 1,
        folder: None,
        ..MergeOptions::default()
    }
}

fn span(first: u64, last: u64) -> Key {
    Key::Span(Generation(1), Txid(first), Txid(last))
}

fn slot(first: u64) -> Key {
    Key::Log(Generation(1), Txid(first))
}

impl Replica {
    async fn merge(&self, pieces: usize) -> Merged {
        merge(&self.store, None, &options(pieces)).await.unwrap()
    }

    async fn merge_next(&self, pieces: usize) -> Option<SpanMade> {
        merge_next(&self.store, self.generation, &options(pieces))
            .await
            .unwrap()
    }

    fn remove(&self, key: Key) {
        std::fs::remove_file(self.path(key)).unwrap();
    }

    /// Deletes the segments, and the spans, that this span stands for.
    async fn remove_merged(&self, first: u64, last: u64) {
        for (key, _) in self.store.list("").await.unwrap() {
            match key {
                Key::Log(_, at) if (first..=last).contains(&at.0) => self.remove(key),
                Key::Span(_, from, to) if key != span(first, last) && first <= from.0 && to.0 <= last => {
                    self.remove(key);
                }
                _ => {}
            }
        }
    }

    async fn check_all(&self) {
        for (generation, txid) in self.states.keys() {
            let options = RestoreOptions {
                target: Target::Txid(Txid(*txid)),
                generation: Some(Generation(*generation)),
                ..RestoreOptions::default()
            };
            let (restored, bytes) = self.restore_with(options).await.unwrap();
            assert_eq!(restored.txid.0, *txid);
            assert!(bytes == self.states[&(*generation, *txid)], "transaction {txid}");
            let at = Target::At(UnixMillis(committed_at(*txid).0 + 5));
            let (restored, _) = self.restore(at).await.unwrap();
            assert_eq!(restored.txid.0, *txid, "by its time");
        }
    }

    async fn log(&self) -> Vec<(u64, i64, u32, u32)> {
        let history = History::open(&self.store).await.unwrap();
        let mut entries = Vec::new();
        history
            .transactions(self.generation, Txid(0)..=Txid(u64::MAX), |entry: LogEntry| {
                entries.push((entry.txid.0, entry.committed_at.0, entry.page_count, entry.pages));
            })
            .await
            .unwrap();
        entries
    }
}

/// Segments of one to three transactions.
async fn begun(seed: u64, segments: u64) -> Replica {
    let mut replica = Replica::new(512, 3, seed).await;
    replica.begin_generation(None).await;
    replica.image().await;
    for segment in 0..segments {
        replica.segment(1 + (segment % 3) as usize).await;
    }
    replica
}

#[tokio::test]
async fn every_transaction_is_still_there() {
    for (seed, page_size, pages) in [(1, 512, 3), (2, 4096, 300), (3, 1024, 2100)] {
        let mut replica = Replica::new(page_size, pages, seed * 7919).await;
        replica.begin_generation(None).await;
        replica.image().await;
        for segment in 0..24 {
            let transactions = 1 + replica.random.below(4) as usize;
            replica.segment(transactions).await;
            if segment == 9 {
                replica.image().await;
            }
        }
        let before = replica.log().await;
        // Small spans, then spans of spans, and the rest.
        let merged = replica.merge(5).await;
        assert!(!merged.spans.is_empty(), "{merged:?}");
        assert!(merged.before.objects == 24 && merged.after.objects < 6, "{merged:?}");
        replica.check_all().await;
        for made in &merged.spans {
            let Key::Span(_, first, last) = made.key else {
                panic!("{made:?}")
            };
            replica.remove_merged(first.0, last.0).await;
        }
        assert_eq!(replica.log().await, before);
        replica.check_all().await;
        replica.check(Target::Newest, 1, replica.txid).await;
        // The history goes on, and the segment that was the newest is merged as well.
        for _ in 0..3 {
            replica.segment(2).await;
        }
        assert_eq!(replica.merge(3).await.spans.len(), 1);
        replica.check_all().await;
        replica.end_generation().await;
        replica.check(Target::Newest, 1, replica.txid).await;
    }
}

#[tokio::test]
async fn the_newest_segment_is_never_merged() {
    let mut replica = begun(30, 3).await;
    assert_eq!(replica.merge_next(3).await, None);
    let made = replica.merge_next(2).await.unwrap();
    assert_eq!(
        (made.key, made.pieces, made.segments, made.existed),
        (span(1, 3), 2, 2, false)
    );
    assert_eq!(made.bytes, std::fs::metadata(replica.path(made.key)).unwrap().len());
    assert_eq!(replica.merge_next(2).await, None);
    // Nor is it when a seal is behind it.
    replica.end_generation().await;
    assert_eq!(replica.merge_next(2).await, None);
    let error = merge_next(&replica.store, Generation(9), &options(2))
        .await
        .unwrap_err();
    assert!(matches!(error, MergeError::NoGeneration(Generation(9))), "{error}");
    let error = merge(&replica.store, Some(Generation(9)), &options(2))
        .await
        .unwrap_err();
    assert!(matches!(error, MergeError::NoGeneration(Generation(9))), "{error}");
}

#[tokio::test]
async fn spans_become_spans_with_all_their_segments() {
    let mut replica = begun(31, 5).await;
    assert_eq!(replica.merge_next(4).await.unwrap().key, span(1, 7));
    for _ in 0..4 {
        replica.segment(1).await;
    }
    assert_eq!(replica.merge_next(4).await.unwrap().key, span(8, 12));
    replica.remove_merged(1, 7).await;
    replica.remove_merged(8, 12).await;
    let made = replica.merge_next(2).await.unwrap();
    assert_eq!((made.key, made.pieces, made.segments), (span(1, 12), 2, 8));
    replica.remove_merged(1, 12).await;
    replica.check_all().await;
}

/// A segment that is larger is read in parts, and a larger span is put into a file.
#[tokio::test]
async fn large_pieces_too() {
    let mut replica = begun(32, 1).await;
    // So many that it is worth it.
    for round in 0..8 {
        let start = position(replica.frame);
        let mut pages = BTreeMap::new();
        for at in 0..2_500 {
            // Not compressible.
            let mut page = vec![0; 512];
            page.iter_mut().for_each(|byte| *byte = replica.random.below(256) as u8);
            if at == 0 {
                page[16..18].copy_from_slice(&512u16.to_be_bytes());
            }
            pages.insert(at + 1, page);
        }
        replica.database = pages.values().cloned().collect();
        let header = replica.next();
        replica.seal(start, &[(header, pages)]).await;
        replica.segment(1 + round).await;
    }
    let made = replica.merge_next(2).await.unwrap();
    assert!(made.bytes > 9 << 20 && made.segments == 16, "{made:?}");
    let Key::Span(_, first, last) = made.key else {
        panic!("{made:?}")
    };
    replica.remove_merged(first.0, last.0).await;
    replica.check_all().await;
}

#[tokio::test]
async fn what_does_not_belong_together_is_not_merged() {
    let (replica, other) = (begun(33, 6).await, begun(34, 6).await);
    std::fs::copy(other.path(slot(4)), replica.path(slot(4))).unwrap();
    let error = merge_next(&replica.store, Generation(1), &options(3))
        .await
        .unwrap_err();
    assert!(
        matches!(error, MergeError::Chain { key, previous } if key == slot(4) && previous == slot(2)),
        "{error}"
    );
    // A damaged one is named.
    let truth = std::fs::read(begun(33, 6).await.path(slot(4))).unwrap();
    for at in 0..truth.len() {
        let mut damaged = truth.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(replica.path(slot(4)), &damaged).unwrap();
        let error = merge_next(&replica.store, Generation(1), &options(3))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(&slot(4).path()), "byte {at}: {error}");
    }
    assert!(
        replica
            .store
            .list("gen/0000000000000001/span/")
            .await
            .unwrap()
            .is_empty()
    );
    // Where one is missing there is an end.
    replica.remove(slot(4));
    let made = replica.merge_next(2).await.unwrap();
    assert_eq!(made.key, span(1, 3));
    // What is behind it is merged nevertheless.
    assert_eq!(replica.merge_next(2).await.unwrap().key, span(7, 9));
    let replica = begun(33, 6).await;
    replica.remove(slot(2));
    assert_eq!(replica.merge_next(3).await.unwrap().key, span(4, 9));
}

#[tokio::test]
async fn a_span_of_another_history_breaks_the_chain() {
    let (mut replica, mut other) = (begun(35, 4).await, begun(36, 4).await);
    for replica in [&mut replica, &mut other] {
        replica.merge(3).await;
        for _ in 0..4 {
            replica.segment(1).await;
        }
        assert_eq!(replica.merge_next(4).await.unwrap().key, span(7, 10));
    }
    replica.check(Target::Newest, 1, 11).await;
    let truth = std::fs::read(replica.path(span(7, 10))).unwrap();
    std::fs::copy(other.path(span(7, 10)), replica.path(span(7, 10))).unwrap();
    for target in [Target::Newest, Target::Txid(Txid(8))] {
        let error = replica.restore(target).await.unwrap_err();
        assert!(
            matches!(error, RestoreError::Chain { key, .. } if key == span(7, 10)),
            "{error}"
        );
    }
    std::fs::write(replica.path(span(7, 10)), truth).unwrap();
    // What follows a span names the last of its segments.
    std::fs::copy(other.path(slot(11)), replica.path(slot(11))).unwrap();
    let error = replica.restore(Target::Newest).await.unwrap_err();
    assert!(
        matches!(error, RestoreError::Chain { key, .. } if key == slot(11)),
        "{error}"
    );
    // Under another name it is not that span.
    std::fs::copy(replica.path(span(7, 10)), replica.path(span(7, 20))).unwrap();
    let error = replica.restore(Target::Newest).await.unwrap_err();
    assert!(
        matches!(error, RestoreError::History(HistoryError::Misplaced { key, .. }) if key == span(7, 20)),
        "{error}"
    );
    replica.remove(span(7, 20));
    std::fs::copy(replica.path(slot(1)), replica.path(span(1, 9))).unwrap();
    let error = replica.restore(Target::Txid(Txid(2))).await.unwrap_err();
    assert!(error.to_string().contains(&span(1, 9).path()), "{error}");
}

#[tokio::test]
async fn any_damage_of_a_span_gives_the_truth_or_names_it() {
    let replica = begun(37, 4).await;
    assert_eq!(replica.merge_next(3).await.unwrap().key, span(1, 6));
    replica.remove_merged(1, 6).await;
    let path = replica.path(span(1, 6));
    let truth = std::fs::read(&path).unwrap();
    for at in 0..truth.len() {
        let mut damaged = truth.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&path, &damaged).unwrap();
        replica.check_refused(span(1, 6), false).await;
        if at % 3 == 0 {
            std::fs::write(&path, &truth[..at]).unwrap();
            replica.check_refused(span(1, 6), false).await;
        }
    }
    std::fs::write(&path, truth).unwrap();
    replica.check_all().await;
    // Its name is not known once it is gone, but the place is.
    replica.remove(span(1, 6));
    let error = replica.restore(Target::Newest).await.unwrap_err();
    assert!(
        matches!(error, RestoreError::History(HistoryError::Missing { key, needed_by }) if key == slot(1) && needed_by == slot(7)),
        "{error}"
    );
}

#[tokio::test]
async fn two_mergers_do_no_harm() {
    let replica = begun(38, 6).await;
    let made = replica.merge_next(5).await.unwrap();
    let written = std::fs::read(replica.path(made.key)).unwrap();
    // The other one has seen the segments before, and compresses in another way.
    let history = History::open(&replica.store).await.unwrap();
    let found = &history.generations()[0];
    replica.remove(made.key);
    let pieces = crate::merge::pieces_for_test(&replica.store, found).await;
    std::fs::write(replica.path(made.key), &written).unwrap();
    let harder = MergeOptions {
        level: 19,
        ..options(5)
    };
    let again = crate::merge::merge_for_test(&replica.store, found, pieces.clone(), &harder)
        .await
        .unwrap();
    assert_eq!((again.key, again.existed, again.segments), (made.key, true, 5));
    assert_eq!(std::fs::read(replica.path(made.key)).unwrap(), written);
    // One that says something else is not taken for it.
    let other = begun(44, 6).await;
    assert_eq!(other.merge_next(5).await.unwrap().key, made.key);
    std::fs::copy(other.path(made.key), replica.path(made.key)).unwrap();
    let error = crate::merge::merge_for_test(&replica.store, found, pieces, &harder)
        .await
        .unwrap_err();
    assert!(matches!(error, MergeError::Differs(key) if key == made.key), "{error}");
}

/// What a restored file goes on from.
#[tokio::test]
async fn the_state_beside_a_restored_file_names_the_segment_that_was_merged() {
    let mut replica = begun(40, 6).await;
    let hash = |first| ObjectHash::of(&std::fs::read(replica.path(slot(first))).unwrap());
    let (second, last) = (hash(2), hash(10));
    replica.merge(5).await;
    replica.remove_merged(1, 9).await;
    let state = |replica: &Replica, target| {
        let store = replica.store.clone();
        async move {
            let folder = tempfile::tempdir().unwrap();
            let out = folder.path().join("out.db");
            let options = RestoreOptions {
                target,
                resumable: true,
                ..RestoreOptions::default()
            };
            restore(&store, &out, &options).await.unwrap();
            let state = local_state::read(&local_state::state_file(&out)).unwrap().unwrap();
            (state.stored.txid.0, state.slot.map(|slot| slot.0), state.previous)
        }
    };
    assert_eq!(state(&replica, Target::Txid(Txid(3))).await, (3, Some(2), second));
    assert_eq!(state(&replica, Target::Newest).await, (12, Some(10), last));
    // An image is right before the end, or before a seal: the last segment is what is gone on from.
    replica.image().await;
    assert_eq!(state(&replica, Target::Newest).await, (12, Some(10), last));
    replica.end_generation().await;
    assert_eq!(state(&replica, Target::Newest).await, (12, Some(10), last));
    // Where that is gone the image is enough.
    replica.remove(slot(10));
    replica.remove(span(1, 9));
    replica.check(Target::Newest, 1, 12).await;
}

#[tokio::test]
async fn what_is_before_the_oldest_image_is_neither_listed_nor_merged() {
    let mut replica = begun(41, 6).await;
    replica.image().await;
    for _ in 0..4 {
        replica.segment(2).await;
    }
    assert_eq!(replica.log().await.len(), 20);
    replica.remove(Key::Image(Generation(1), Txid(0)));
    // Some of it is gone already.
    replica.remove(slot(1));
    replica.remove(slot(4));
    assert_eq!(replica.log().await.first().unwrap().0, 13);
    assert_eq!(replica.merge(2).await.spans[0].key, span(13, 18));
    for txid in 12..=20 {
        replica.check(Target::Txid(Txid(txid)), 1, txid).await;
    }
}

/// It takes longer than what was merged stays.
#[tokio::test]
async fn segments_may_be_merged_and_deleted_under_a_restore() {
    let mut replica = begun(42, 4).await;
    let history = History::open(&replica.store).await.unwrap();
    let plan = history.plan(Target::Newest, None).await.unwrap();
    let expected = replica.states[&(1, replica.txid)].clone();
    for _ in 0..2 {
        replica.segment(1).await;
    }
    assert_eq!(replica.merge_next(5).await.unwrap().key, span(1, 8));
    replica.remove_merged(1, 8).await;
    let pages = PageFile {
        file: Arc::new(tempfile::tempfile().unwrap()),
        path: PathBuf::new(),
        page_size: replica.page_size,
        digests: None,
    };
    let report = Arc::new(Reporter::new(None, &plan));
    let applier = Applier::new(pages, plan.manifest.page_count, (Txid(0), UnixMillis(0)));
    let (applier, _) = log::apply_log(&replica.store, &plan, applier, &report).await.unwrap();
    assert_eq!(applier.last.0, Txid(replica.txid));
    assert!(expected.len() >= 512);
}

/// Two mergers that did not see each other's spans, and a reader whose way goes along one of them while the other's segments are deleted.
#[tokio::test]
async fn what_another_merger_has_merged_may_be_deleted_under_a_restore() {
    for is_of_another in [false, true] {
        let mut replica = begun(45, 0).await;
        for txid in 1..=17 {
            replica.segment(1).await;
            if txid == 7 {
                replica.image().await;
            }
        }
        let history = History::open(&replica.store).await.unwrap();
        let found = &history.generations()[0];
        let pieces = crate::merge::pieces_for_test(&replica.store, found).await;
        for run in [0..6, 6..12, 0..8, 8..16] {
            let run = pieces[run].to_vec();
            crate::merge::merge_for_test(&replica.store, found, run, &options(2))
                .await
                .unwrap();
        }
        let plan = history.plan(Target::Newest, None).await.unwrap();
        assert_eq!(plan.start, Txid(7), "along the first merger's");
        replica.remove_merged(9, 16).await;
        if is_of_another {
            let mut other = begun(46, 0).await;
            for _ in 1..=17 {
                other.segment(1).await;
            }
            let history = History::open(&other.store).await.unwrap();
            let found = &history.generations()[0];
            let pieces = crate::merge::pieces_for_test(&other.store, found).await;
            let run = pieces[8..16].to_vec();
            crate::merge::merge_for_test(&other.store, found, run, &options(2))
                .await
                .unwrap();
            std::fs::copy(other.path(span(9, 16)), replica.path(span(9, 16))).unwrap();
        }
        let folder = scratch();
        let place = folder.path().join("out.db");
        let aside = restore_aside(&replica.store, &place, &history, &plan, Arc::new(|_| ())).await;
        match aside {
            Ok(aside) => {
                assert!(!is_of_another);
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut &*aside.file(), &mut bytes).unwrap();
                assert_eq!(aside.restored().txid.0, 17);
                assert!(bytes == replica.states[&(1, 17)], "other content");
            }
            Err(error) => {
                let is_chain = matches!(error, RestoreError::Chain { key, .. } if key == span(9, 16));
                assert!(is_of_another && is_chain, "{error}");
            }
        }
    }
}
