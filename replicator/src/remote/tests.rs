//! How few requests are made, and in how few round trips; and that two replicas that had the same place are never mixed.
#![allow(clippy::unwrap_used)]

mod distant;

use std::sync::Arc;

use replvfs_vfs::types::{Pgno, Txid, UnixMillis};
use tokio::runtime::Handle;

use super::blocks::cut;
use super::kept::{KEPT, Kept, MOST};
use super::line::State;
use super::replica::Replica;
use crate::format::{Generation, Key};
use crate::history::{HistoryError, Target};
use crate::metrics::Metrics;
use crate::restore::tests::Replica as Source;
use distant::Distant;

/// A replica with an image of transaction 0 and so many segments behind it, each of so many transactions.
async fn source(seed: u64, segments: &[usize]) -> Source {
    let mut source = Source::new(512, 5, seed).await;
    source.begun = UnixMillis(seed as i64);
    source.begin_generation(None).await;
    source.image().await;
    for transactions in segments {
        source.segment(*transactions).await;
    }
    source
}

/// Who reads it from afar.
async fn reader(source: &Source) -> (Distant, Arc<Replica>) {
    let distant = Distant::new();
    distant.put(source.folder.path()).await;
    let replica = Replica::new(distant.store.clone(), Handle::current(), 4 << 20, &Metrics::default());
    (distant, Arc::new(replica))
}

/// Every page, from memory or from the store.
async fn pages(replica: &Replica, state: &State) -> Vec<u8> {
    let page_size = state.line.page_size().as_usize();
    let mut pages = Vec::new();
    for page in (1..=state.moment.page_count).filter_map(Pgno::new) {
        let mut known = vec![0; page_size];
        if let Some((source, at)) = replica.blocks().page(state, page, &mut known) {
            cut(&replica.blocks().fetch(source).await.unwrap(), at, &mut known).unwrap();
        }
        pages.extend(known);
    }
    pages
}

async fn assert_is(replica: &Replica, state: &State, source: &Source) {
    assert!(pages(replica, state).await == source.states[&(state.order().0.0, state.txid.0)]);
}

#[tokio::test(start_paused = true)]
async fn opening_is_four_round_trips() {
    let source = source(3, &[2, 1, 4, 1, 3]).await;
    let (distant, replica) = reader(&source).await;
    let (state, asked, rounds) = distant.rounds(replica.state_at(Target::Newest)).await;
    let state = state.unwrap();
    let log = |slot: u64| Key::Log(Generation(1), Txid(slot)).path();
    let mut expected = vec![
        // What there is.
        "get replvfs.json".to_owned(),
        "list gen/".to_owned(),
        // What it is.
        "get gen/0000000000000001/generation.json".to_owned(),
        "list gen/0000000000000001/".to_owned(),
        "stat gen/0000000000000002/generation.json".to_owned(),
        // Where the pages are.
        "get gen/0000000000000001/image/0000000000000000".to_owned(),
        // What is not listed yet.
        format!("stat {}", log(12)),
    ];
    expected.extend([1, 3, 4, 8, 9].map(|slot| format!("get {}", log(slot))));
    expected.sort();
    assert_eq!(asked, expected);
    assert_eq!(rounds, 4);
    assert_is(&replica, &state, &source).await;
}

#[tokio::test(start_paused = true)]
async fn a_state_of_before_is_not_many_more() {
    let source = source(4, &[2, 1, 4]).await;
    let (distant, replica) = reader(&source).await;
    let (state, asked, rounds) = distant.rounds(replica.state_at(Target::Txid(Txid(5)))).await;
    // Whether the log has it is asked before the index of the log is read.
    assert!(asked.len() <= 11 && rounds <= 5, "{rounds}: {asked:?}");
    assert_is(&replica, &state.unwrap(), &source).await;
}

#[tokio::test(start_paused = true)]
async fn older_generations_cost_one_round_trip_however_many_there_are() {
    for (generations, requests) in [(4, 20), (9, 30), (30, 30)] {
        let mut source = source(5, &[2, 1]).await;
        for _ in 1..generations {
            source.end_generation().await;
            source.begin_generation(None).await;
            source.image().await;
            source.segment(1).await;
        }
        let (distant, replica) = reader(&source).await;
        let (state, asked, rounds) = distant.rounds(replica.state_at(Target::Newest)).await;
        // That nobody writes them is seen in the time in which the newest one's index is read, and one more.
        assert_eq!((rounds, asked.len()), (5, requests), "{asked:?}");
        assert_is(&replica, &state.unwrap(), &source).await;
    }
}

/// As long as the newest ones have no image, the state is that of an older one.
#[tokio::test(start_paused = true)]
async fn generations_without_an_image_hide_nothing() {
    let mut source = source(14, &[2, 1]).await;
    let (generation, txid) = (source.generation, source.txid);
    for _ in 0..12 {
        source.begin_generation(None).await;
    }
    let (_, replica) = reader(&source).await;
    let state = replica.state_at(Target::Newest).await.unwrap();
    assert_eq!(state.order(), (generation, Txid(txid)));
    assert_is(&replica, &state, &source).await;
}

#[tokio::test(start_paused = true)]
async fn who_opens_again_asks_what_is_new_and_whether_it_is_the_same_replica() {
    let mut source = source(6, &[2, 1]).await;
    let (distant, replica) = reader(&source).await;
    replica.look_to_open().await.unwrap();
    let (state, asked, rounds) = distant.rounds(replica.look_to_open()).await;
    let same = "get gen/0000000000000001/generation.json";
    let next = "stat gen/0000000000000001/log/0000000000000004";
    assert_eq!(asked, [same, next]);
    assert_eq!((state.unwrap().txid, rounds), (Txid(3), 1));
    let (state, asked, rounds) = distant.rounds(replica.look()).await;
    assert_eq!(asked, [next]);
    assert_eq!((state.unwrap().txid, rounds), (Txid(3), 1));
    // One that is new is small, and says what it follows.
    source.segment(2).await;
    distant.add(source.folder.path()).await;
    let (state, asked, rounds) = distant.rounds(replica.look()).await;
    let further = "stat gen/0000000000000001/log/0000000000000006";
    assert_eq!(asked, [&next.replace("stat", "get"), next, further]);
    assert_eq!(rounds, 3);
    assert_is(&replica, &state.unwrap(), &source).await;
}

/// What was read of it is too little to tell its hash: then it is asked whether the replica is the same.
#[tokio::test(start_paused = true)]
async fn what_follows_a_large_segment_costs_one_more_request() {
    let mut source = source(7, &[2500]).await;
    let (distant, replica) = reader(&source).await;
    replica.look().await.unwrap();
    source.segment(1).await;
    source.segment(1).await;
    distant.add(source.folder.path()).await;
    let (state, asked, _) = distant.rounds(replica.look()).await;
    let asked_for = |what: &str| asked.iter().filter(|asked| asked.contains(what)).count();
    assert_eq!((asked.len(), asked_for("generation.json")), (6, 1), "{asked:?}");
    assert_is(&replica, &state.unwrap(), &source).await;
}

/// In the slots of the one that is followed there is what another one has, before it is asked again.
#[tokio::test(start_paused = true)]
async fn a_replica_that_is_begun_anew_is_never_mixed_with_the_one_that_was_followed() {
    for (seed, segments) in [(8, &[2, 1][..]), (9, &[2500]), (10, &[])] {
        let old = source(seed, segments).await;
        let (distant, replica) = reader(&old).await;
        let before = replica.look().await.unwrap();
        assert_is(&replica, &before, &old).await;
        let mut new = source(seed + 100, segments).await;
        distant.put(new.folder.path()).await;
        // Nothing follows there, so there is nothing to notice.
        assert_eq!(replica.look().await.unwrap().order(), before.order());
        new.segment(3).await;
        distant.add(new.folder.path()).await;
        let after = replica.look().await.unwrap();
        assert_eq!(after.txid, before.txid.next().next().next());
        assert!(!after.is_kin(&before));
        assert_is(&replica, &after, &new).await;
        assert_eq!(before.line.last(), before.txid, "it knows nothing of the other one");
        assert_is(&replica, &replica.published().unwrap(), &new).await;
        // Who still has a state of the old one is not led into the new one.
        let again = replica.again(&before).await;
        assert!(again.is_err() || !again.unwrap().is_kin(&before));
    }
}

/// Also one that has fewer transactions.
#[tokio::test(start_paused = true)]
async fn who_opens_again_sees_a_replica_that_was_begun_anew() {
    let old = source(11, &[2, 1]).await;
    let (distant, replica) = reader(&old).await;
    let before = replica.look_to_open().await.unwrap();
    let new = source(12, &[1]).await;
    distant.put(new.folder.path()).await;
    let after = replica.look_to_open().await.unwrap();
    assert_eq!(after.txid, Txid(1));
    assert_is(&replica, &after, &new).await;
    assert!(!after.is_kin(&before));
    // And one that is only deleted.
    distant.put(tempfile::tempdir().unwrap().path()).await;
    let error = replica.look_to_open().await.unwrap_err();
    assert!(matches!(error, HistoryError::NoReplica), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_a_newer_release_wrote_is_refused() {
    let source = source(16, &[2]).await;
    let (distant, replica) = reader(&source).await;
    let state = replica.state_at(Target::Newest).await.unwrap();
    let generation = state.order().0;
    for key in [
        Key::Replica,
        Key::Generation(generation),
        Key::Image(generation, Txid(0)),
        Key::Log(generation, Txid(1)),
    ] {
        let path = source.path(key);
        let known = std::fs::read(&path).unwrap();
        let newer = match key {
            Key::Log(..) => {
                let (rest, footer) = known.split_at(known.len() - 200);
                [rest, &newer(&footer[..188], 8), b"replvfsS"].concat()
            }
            Key::Image(..) => newer(&known[..known.len() - 4], 8),
            _ => {
                let text = String::from_utf8(known.clone()).unwrap();
                text.replace("\"format\": 1", "\"format\": 2").into_bytes()
            }
        };
        assert_eq!(newer.len(), known.len());
        std::fs::write(&path, newer).unwrap();
        distant.put(source.folder.path()).await;
        let error = replica.state_at(Target::Newest).await.unwrap_err().to_string();
        assert!(
            error.contains(&key.path()) && error.contains("format version 2"),
            "{error}"
        );
        std::fs::write(&path, known).unwrap();
    }
}

/// The same with the next version at this place, and with its checksum behind it.
fn newer(fields: &[u8], at: usize) -> Vec<u8> {
    let mut fields = fields.to_vec();
    fields[at] = 2;
    let crc = crc32fast::hash(&fields).to_le_bytes();
    [fields, crc.to_vec()].concat()
}

/// One that no connection uses is there for a while, but not many of them.
#[tokio::test(start_paused = true)]
async fn the_last_few_are_kept_for_a_while() {
    let source = source(15, &[1]).await;
    let kept = Kept::default();
    let mut known = Vec::new();
    for _ in 0..MOST + 2 {
        let (_, replica) = reader(&source).await;
        kept.touch(&replica);
        known.push(Arc::downgrade(&replica));
    }
    let alive = || known.iter().map(|known| known.strong_count() > 0).collect::<Vec<_>>();
    let newest = [vec![false; 2], vec![true; MOST]].concat();
    assert_eq!(alive(), newest);
    tokio::time::sleep(KEPT / 2).await;
    let used = known[3].upgrade().unwrap();
    kept.touch(&used);
    drop(used);
    assert_eq!(alive(), newest);
    tokio::time::sleep(KEPT * 3 / 4).await;
    let last: Vec<_> = (0..MOST + 2).map(|at| at == 3).collect();
    assert_eq!(alive(), last);
    tokio::time::sleep(KEPT).await;
    assert!(!alive().contains(&true));
    // And again, after the task that let them go has ended.
    let (_, replica) = reader(&source).await;
    kept.touch(&replica);
    let known = Arc::downgrade(&replica);
    drop(replica);
    assert_eq!(known.strong_count(), 1);
    tokio::time::sleep(KEPT * 2).await;
    assert_eq!(known.strong_count(), 0);
}

/// A segment that does not follow is damage, where the replica is the same.
#[tokio::test(start_paused = true)]
async fn what_does_not_follow_is_an_error_and_the_state_before_it_stays() {
    let mut source = source(13, &[2, 1]).await;
    let (distant, replica) = reader(&source).await;
    let before = replica.look().await.unwrap();
    let mut other = self::source(113, &[2, 1]).await;
    let key = other.segment(2).await;
    let path = source.path(key);
    std::fs::copy(other.path(key), &path).unwrap();
    distant.add(source.folder.path()).await;
    let error = replica.look().await.unwrap_err().to_string();
    assert!(error.contains("does not follow"), "{error}");
    assert_is(&replica, &replica.published().unwrap(), &source).await;
    assert_eq!(before.line.last(), before.txid);
    std::fs::remove_file(&path).unwrap();
    distant.delete(&key.path()).await;
    source.segment(2).await;
    distant.add(source.folder.path()).await;
    assert_is(&replica, &replica.look().await.unwrap(), &source).await;
}
