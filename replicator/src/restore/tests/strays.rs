//! Slots that retention had freed and that something was put into since, where two mergers' spans overlap: the one that ends there leads nowhere
//! but by what is in the slot.

use super::*;
use crate::merge::{MergeOptions, merge_for_test, pieces_for_test};
use crate::prune::{PruneOptions, prune};
use crate::verify::{VerifyOptions, verify};

fn slot(first: u64) -> Key {
    Key::Log(Generation(1), Txid(first))
}

fn span(first: u64, last: u64) -> Key {
    Key::Span(Generation(1), Txid(first), Txid(last))
}

/// What a writer puts there that had slept since transaction 15.
#[derive(Clone, Copy, Debug)]
enum Late {
    Segment(usize),
    /// Of two writers that slept.
    Two,
    Seal,
}

const ALL: [Late; 6] = [
    Late::Segment(1),
    Late::Segment(2),
    Late::Segment(5),
    Late::Segment(6),
    Late::Two,
    Late::Seal,
];

/// So many segments of one transaction, after the same 15 as any other one's.
async fn written(segments: u64) -> Replica {
    let mut replica = Replica::new(512, 3, 51).await;
    replica.begin_generation(None).await;
    replica.image().await;
    for _ in 0..segments {
        replica.segment(1).await;
    }
    replica
}

/// Transactions 1 to 4 and 5 to 20 are in spans, and what these stand for is deleted. Then another merger comes with 1 to 15, which it had read before,
/// and a writer with what it has instead of 16.
async fn with_a_late_merger(late: Late) -> Replica {
    let replica = written(22).await;
    let history = History::open(&replica.store).await.unwrap();
    let found = &history.generations()[0];
    let pieces = pieces_for_test(&replica.store, found).await;
    for run in [0..4, 4..20, 0..15] {
        let options = MergeOptions {
            pieces: 2,
            level: 1,
            ..MergeOptions::default()
        };
        merge_for_test(&replica.store, found, pieces[run].to_vec(), &options)
            .await
            .unwrap();
    }
    for first in 1..=20 {
        std::fs::remove_file(replica.path(slot(first))).unwrap();
    }
    let mut other = written(15).await;
    other.random = Random(99);
    let put = match late {
        Late::Segment(transactions) => vec![other.segment(transactions).await],
        Late::Two => vec![other.segment(1).await, other.segment(1).await],
        Late::Seal => vec![other.end_generation().await],
    };
    for key in put {
        std::fs::copy(other.path(key), replica.path(key)).unwrap();
    }
    for txid in 16..=other.txid {
        assert!(
            other.states[&(1, txid)] != replica.states[&(1, txid)],
            "it is another history"
        );
    }
    replica
}

async fn check_all(replica: &Replica, what: &str) {
    for txid in 0..=replica.txid {
        for target in [
            Target::Txid(Txid(txid)),
            Target::At(UnixMillis(committed_at(txid).0 + 5)),
        ] {
            let (restored, bytes) = replica
                .restore(target)
                .await
                .unwrap_or_else(|error| panic!("{what}, {target}: {error}"));
            assert_eq!(restored.txid.0, txid, "{what}");
            assert!(bytes == replica.states[&(1, txid)], "{what}, {target}: other content");
        }
    }
    replica.check(Target::Newest, 1, replica.txid).await;
}

#[tokio::test]
async fn a_stray_behind_a_span_that_leads_nowhere_is_not_read() {
    for late in ALL {
        let replica = with_a_late_merger(late).await;
        check_all(&replica, &format!("{late:?}")).await;
        let verified = verify(&replica.store, &VerifyOptions::default()).await.unwrap();
        assert_eq!(verified.findings, []);
        assert!(
            verified
                .warnings
                .iter()
                .any(|warning| warning.contains(&slot(16).path()))
        );
    }
}

/// The late span says what the other does not any more.
#[tokio::test]
async fn the_other_span_is_gone_on_in_where_only_a_stray_leads_on() {
    for late in ALL {
        let replica = with_a_late_merger(late).await;
        std::fs::remove_file(replica.path(span(1, 4))).unwrap();
        check_all(&replica, &format!("{late:?}")).await;
    }
}

/// Who cannot tell takes neither.
#[tokio::test]
async fn where_the_span_is_damaged_that_tells_of_a_stray_it_is_named() {
    let replica = with_a_late_merger(Late::Segment(2)).await;
    let path = replica.path(span(5, 20));
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 1;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    for txid in 0..=22 {
        let at = Target::At(UnixMillis(committed_at(txid).0 + 5));
        for target in [Target::Txid(Txid(txid)), at] {
            match replica.restore(target).await {
                Ok((_, bytes)) => assert!(txid < 16 && bytes == replica.states[&(1, txid)], "{target}"),
                Err(error) => assert!(error.to_string().contains(&span(5, 20).path()), "{error}"),
            }
        }
    }
    let verified = verify(&replica.store, &VerifyOptions::default()).await.unwrap();
    assert!(verified.findings.iter().any(|finding| finding.object == span(5, 20)));
}

/// What is in the slot is the history's where another span leads to the same place: before anything of it was deleted.
#[tokio::test]
async fn a_segment_that_a_span_has_is_read_as_before() {
    let replica = written(22).await;
    let history = History::open(&replica.store).await.unwrap();
    let found = &history.generations()[0];
    let pieces = pieces_for_test(&replica.store, found).await;
    for run in [0..15, 4..20] {
        merge_for_test(&replica.store, found, pieces[run].to_vec(), &MergeOptions::default())
            .await
            .unwrap();
    }
    check_all(&replica, "all is there").await;
    for first in 1..=15 {
        std::fs::remove_file(replica.path(slot(first))).unwrap();
    }
    check_all(&replica, "the slots of the first are gone").await;
}

/// Neither is it merged, nor does it keep what the history is in from being seen as such.
#[tokio::test]
async fn nobody_merges_such_a_stray_and_it_is_deleted() {
    for (late, merges) in ALL.into_iter().flat_map(|late| [(late, false), (late, true)]) {
        let replica = with_a_late_merger(late).await;
        if merges {
            let options = MergeOptions {
                pieces: 2,
                ..MergeOptions::default()
            };
            crate::merge::merge(&replica.store, None, &options).await.unwrap();
            check_all(&replica, &format!("merged beside {late:?}")).await;
        }
        let options = PruneOptions {
            retention: crate::config::Retention::Forever,
            merged_at_once: true,
            ..PruneOptions::at(UnixMillis(1_000))
        };
        let mut runs = 0;
        while !prune(&replica.store, &options).await.unwrap().deletions.is_empty() {
            check_all(&replica, &format!("pruned beside {late:?}")).await;
            runs += 1;
            assert!(runs < 10, "it ends");
        }
        assert!(!replica.path(slot(16)).exists(), "{late:?}");
    }
}
