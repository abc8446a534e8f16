//! What a writer that slept left in a slot that was free again, when it died before it could know: nobody takes it for history.

pub(super) mod odd;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use odd::Odd;
use replvfs_vfs::resume::{Left, Next};
use replvfs_vfs::types::{Salts, Txid};

use super::super::seal::{Sealing, Tail, seal};
use super::super::turn::Before;
use super::super::waiting::answer;
use super::super::{adopt, behind};
use super::machine::{Machine, Process};
use super::resuming::{restore_to, with_history};
use super::turn::{delete, is_fenced, log, slots};
use crate::config::Retention;
use crate::format::{Generation, GenerationMeta, Key, LocalState, Parent, Seal};
use crate::history::Target;
use crate::merge::{MergeOptions, merge};
use crate::pipeline::sealer;
use crate::prune::{PruneOptions, prune};
use crate::store::{Body, Fencing};
use crate::verify::{VerifyOptions, verify};

const G: Generation = Generation(1);

/// The one that was replaced, its state from before, and the one that goes on in the same generation: with transactions 4 and 5 in slot 4, and then
/// one each in 6 and 7. All but the newest is in a span, and the slots 2 to 6 are free again.
async fn replaced(old: &Machine) -> (Process, Vec<u8>, Process) {
    let one = slots(old, 1..=3).await;
    let new = old.beside();
    restore_to(&new, Target::Newest).await;
    let two = new.start();
    two.capture.sync();
    new.commit(104);
    two.commit(&new, 105);
    two.flush().await;
    for value in 106..=107 {
        two.commit(&new, value);
        two.flush().await;
    }
    let options = MergeOptions {
        pieces: 2,
        ..MergeOptions::default()
    };
    merge(&old.store(), None, &options).await.unwrap();
    delete(old, &[log(1, 2), log(1, 3), log(1, 4), log(1, 6)]).await;
    let state = std::fs::read(old.state_file()).unwrap();
    (one, state, two)
}

async fn the_history_is_the_others(machine: &Machine) {
    for (txid, value) in [(3, 3), (5, 105), (6, 106), (7, 107)] {
        assert_eq!(machine.restored(Target::Txid(Txid(txid))).await, value);
    }
}

async fn parent_of(machine: &Machine, generation: u64) -> Parent {
    let meta = machine
        .store()
        .read(&Key::Generation(Generation(generation)))
        .await
        .unwrap();
    GenerationMeta::from_bytes(&meta).unwrap().parent.unwrap()
}

/// What it wrote stays apart, in a generation of its own.
async fn has_diverged(machine: &Machine, process: &Process, last: u64) {
    process.flush().await;
    assert_eq!(process.status("diverged"), true);
    assert_eq!(process.status("generation"), 2);
    let parent = parent_of(machine, 2).await;
    assert_eq!((parent.generation, parent.txid), (G, Txid(last)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_in_a_freed_slot_is_not_adopted() {
    for old in Machine::both("stray-segment") {
        let (one, state, two) = replaced(&old).await;
        one.commit(&old, 4);
        is_fenced(one, 3, "which it follows, was deleted").await;
        assert!(old.store().size(&log(1, 4)).await.is_ok());
        the_history_is_the_others(&old).await;
        // It died before it noted that.
        std::fs::write(old.state_file(), &state).unwrap();
        let one = old.start();
        one.commit(&old, 5);
        has_diverged(&old, &one, 3).await;
        assert_eq!(old.restored(Target::Newest).await, 5);
        one.kill().await;
        two.kill().await;
    }
}

/// What it follows is there for ever: a generation's first slot.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_free_again_is_not_tried() {
    for old in Machine::both("stray-free") {
        slots(&old, 1..=1).await.kill().await;
        let new = old.beside();
        restore_to(&new, Target::Newest).await;
        let two = slots(&new, 100..=102).await;
        delete(&old, &[log(1, 2), log(1, 3)]).await;
        let one = old.start();
        one.commit(&old, 2);
        has_diverged(&old, &one, 1).await;
        assert!(old.store().size(&log(1, 2)).await.is_err(), "it was tried");
        one.kill().await;
        two.kill().await;
    }
}

/// Its newest transaction is in the store, and in no history: it is not only behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_left_a_stray_is_not_brought_up_to_date() {
    for old in Machine::both("stray-behind") {
        let (one, state, two) = replaced(&old).await;
        let looked = |state: LocalState| {
            let (store, wal) = (old.store(), old.wal.lock().unwrap().clone());
            let end = wal.transactions(0, 0).last().unwrap().end;
            let work = move |alive| async move { behind::find(&store, &state, end, &alive).await };
            let runtime = tokio::runtime::Handle::current();
            tokio::task::block_in_place(|| answer(&runtime, Duration::from_secs(20), work))
                .unwrap()
                .unwrap()
        };
        one.commit(&old, 4);
        is_fenced(one, 3, "which it follows, was deleted").await;
        std::fs::write(old.state_file(), &state).unwrap();
        assert_eq!(looked(old.state()), None);
        delete(&old, &[log(1, 7)]).await;
        assert_eq!(
            looked(old.state()),
            Some((Txid(4), Txid(4))),
            "where nothing is behind it"
        );
        two.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_in_a_freed_slot_ends_nothing() {
    for old in Machine::both("stray-seal") {
        let (one, state, two) = replaced(&old).await;
        one.capture.suspend();
        old.commit(4);
        is_fenced(one, 3, "which it follows, was deleted").await;
        assert_eq!(old.store().size(&log(1, 4)).await.unwrap(), Seal::LEN as u64);
        the_history_is_the_others(&old).await;
        std::fs::write(old.state_file(), &state).unwrap();
        let one = old.start();
        one.commit(&old, 5);
        has_diverged(&old, &one, 3).await;
        one.kill().await;
        two.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_meets_a_stray_goes_past_it() {
    for (at, old) in Machine::both("stray-met").into_iter().enumerate() {
        let (one, state, two) = replaced(&old).await;
        if at == 0 {
            one.commit(&old, 4);
        } else {
            one.capture.suspend();
            old.commit(4);
        }
        is_fenced(one, 3, "which it follows, was deleted").await;
        std::fs::write(old.state_file(), &state).unwrap();
        let (store, previous) = (old.store(), old.state().previous);
        let found = adopt::look(&store, log(1, 4), previous).await.unwrap();
        assert!(matches!(found, adopt::Found::Foreign(_)), "{found:?}");
        // One that ends the log, and had asked before.
        let before = Before {
            first: Txid(1),
            slot: Some(Txid(3)),
            content: None,
        };
        let slept = Tail {
            generation: G,
            slot: Txid(4),
            previous,
            before,
        };
        let sealed = seal(&super::uploader(store.clone()), G, Some(slept)).await.unwrap();
        assert!(
            matches!(sealed, Sealing::Done(ended) if ended.slot == Some(Txid(8))),
            "{sealed:?}"
        );
        two.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_leave_a_stray_out_and_it_is_deleted() {
    for (at, old) in Machine::both("stray-read").into_iter().enumerate() {
        let (one, _, two) = replaced(&old).await;
        let whole = verify(&old.store(), &VerifyOptions::default()).await.unwrap();
        assert_eq!((whole.findings, whole.warnings), (vec![], vec![]));
        if at == 0 {
            one.commit(&old, 4);
        } else {
            one.capture.suspend();
            old.commit(4);
        }
        is_fenced(one, 3, "which it follows, was deleted").await;
        let store = old.store();
        the_history_is_the_others(&old).await;
        let options = MergeOptions {
            pieces: 2,
            ..MergeOptions::default()
        };
        assert_eq!(merge(&store, None, &options).await.unwrap().spans, []);
        let verified = verify(&store, &VerifyOptions::default()).await.unwrap();
        assert_eq!(verified.findings, []);
        assert!(
            verified.warnings.len() == 1 && verified.warnings[0].contains(&log(1, 4).path()),
            "{:?}",
            verified.warnings
        );
        let options = PruneOptions {
            retention: Retention::Forever,
            merged_at_once: true,
            ..PruneOptions::at(super::super::shared::now())
        };
        let pruned = prune(&store, &options).await.unwrap();
        let slots: Vec<Key> = pruned.deletions.iter().map(|gone| gone.key).collect();
        assert!(slots.contains(&log(1, 4)) && !slots.contains(&log(1, 7)), "{slots:?}");
        the_history_is_the_others(&old).await;
        two.kill().await;
    }
}

/// The machine was away for so long that what it had noted was deleted, while another went on.
#[tokio::test(flavor = "multi_thread")]
async fn a_noted_segment_that_is_gone_while_something_follows_is_a_divergence() {
    for old in Machine::both("stray-note") {
        slots(&old, 1..=3).await.kill().await;
        let new = old.beside();
        restore_to(&new, Target::Newest).await;
        let two = slots(&new, 100..=102).await;
        delete(&old, &[log(1, 2), log(1, 3), log(1, 4)]).await;
        let one = old.start();
        one.commit(&old, 4);
        has_diverged(&old, &one, 3).await;
        one.kill().await;
        two.kill().await;
    }
}

/// Its own segment is the newest, what it follows is in a span, and the answer comes late: that is no other writer.
#[tokio::test(flavor = "multi_thread")]
async fn a_predecessor_that_was_deleted_behind_the_newest_segment_fences_nobody() {
    for machine in Machine::both("stray-newest") {
        let one = slots(&machine, 1..=3).await;
        let span = Key::Span(G, Txid(1), Txid(3));
        let body = Body::Bytes(Bytes::from_static(b"as listed"));
        machine.store().create(&span, body).await.unwrap();
        delete(&machine, &[log(1, 1), log(1, 2), log(1, 3)]).await;
        one.commit(&machine, 4);
        one.flush().await;
        assert_eq!(one.status("fenced"), false);
        assert_eq!(one.log.acked(), Some(Txid(4)));
        one.kill().await;
    }
}

/// The newest segment is in no span: one that has the slot's is another writer's, whose newest one a listing may show late.
#[tokio::test(flavor = "multi_thread")]
async fn a_span_that_has_the_slot_tells_that_it_was_taken() {
    for last in [4, 5] {
        for machine in Machine::both(&format!("stray-span-{last}")) {
            let one = slots(&machine, 1..=3).await;
            let body = || Body::Bytes(Bytes::from_static(b"as listed"));
            for (first, last) in [(1, 3), (2, last)] {
                let span = Key::Span(G, Txid(first), Txid(last));
                machine.store().create(&span, body()).await.unwrap();
            }
            delete(&machine, &[log(1, 1), log(1, 2), log(1, 3)]).await;
            one.commit(&machine, 4);
            is_fenced(one, 3, "which it follows, was deleted").await;
        }
    }
}

/// It may be of a state that was committed, and is not uploaded yet.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_ahead_of_the_slot_fences_nobody() {
    for machine in Machine::both("stray-image-ahead") {
        let one = slots(&machine, 1..=3).await;
        let image = Key::Image(G, Txid(5));
        let body = Body::Bytes(Bytes::from_static(b"as listed"));
        machine.store().create(&image, body).await.unwrap();
        delete(&machine, &[log(1, 1), log(1, 2), log(1, 3)]).await;
        one.commit(&machine, 4);
        one.flush().await;
        assert_eq!(one.status("fenced"), false);
        assert_eq!(one.log.acked(), Some(Txid(4)));
        one.kill().await;
    }
}

/// Not by retention: somebody has emptied the replica.
#[tokio::test(flavor = "multi_thread")]
async fn a_predecessor_that_nothing_stands_for_is_missed() {
    for machine in Machine::both("stray-emptied") {
        let one = slots(&machine, 1..=3).await;
        delete(&machine, &[log(1, 1), log(1, 2), log(1, 3)]).await;
        one.commit(&machine, 4);
        is_fenced(one, 3, "which it follows, was deleted").await;
    }
}

/// Nothing is written, an image has everything, and all of it is older than the window: what stays is what the writer's next slot follows.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_at_rest_keeps_its_place() {
    for machine in Machine::both("stray-rest") {
        let one = slots(&machine, 1..=4).await;
        one.log.request_base();
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        while machine.objects("/image/").await < 2 || one.status("making_image") == true {
            one.capture.sync();
            assert!(tokio::time::Instant::now() < end, "{}", one.replica.status());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let options = PruneOptions {
            retention: Retention::For(Duration::ZERO),
            grace: Duration::ZERO,
            ..PruneOptions::at(super::super::shared::now())
        };
        // The first slot stays as long as there is no other generation, and the newest one.
        while prune(&machine.store(), &options).await.unwrap().deletions.is_empty() {
            assert!(machine.objects("/log/").await > 2, "{}", one.replica.status());
        }
        assert_eq!(machine.objects("/log/").await, 2);
        assert!(machine.store().size(&log(1, 4)).await.is_ok());
        one.commit(&machine, 5);
        one.flush().await;
        assert_eq!(one.status("fenced"), false);
        one.kill().await;
        let one = machine.start();
        one.commit(&machine, 6);
        one.flush().await;
        assert_eq!(one.status("generation"), 1);
        one.kill().await;
        assert_eq!(machine.restored(Target::Newest).await, 6);
    }
}

/// A machine that was halted between its requests: what it had asked before proves nothing, whatever its clocks say.
#[tokio::test(flavor = "multi_thread")]
async fn whether_it_is_its_turn_is_asked_after_the_slot_was_taken() {
    let mut old = Machine::new();
    let odd = Odd::new();
    old.operator = Some(odd.operator(&old.replica()));
    let one = slots(&old, 1..=3).await;
    odd.hold(log(1, 4).path());
    one.commit(&old, 4);
    one.capture.sync();
    odd.is_held().await;
    // Whatever was asked beside it is answered by now.
    tokio::time::sleep(Duration::from_millis(100)).await;
    for slot in 5..=6 {
        let foreign = Body::Bytes(Bytes::from_static(b"another writer's"));
        old.store().create(&log(1, slot), foreign).await.unwrap();
    }
    delete(&old, &[log(1, 2), log(1, 3)]).await;
    odd.let_go();
    is_fenced(one, 3, "which it follows, was deleted").await;
}

/// The store was replaced, or its settings, while nobody wrote.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_goes_on_sees_that_its_store_overwrites() {
    let mut machine = Machine::new();
    let odd = Odd::new();
    machine.operator = Some(odd.operator(&machine.replica()));
    let one = slots(&machine, 1..=2).await;
    assert_eq!(one.status("fencing"), "enforced");
    one.kill().await;
    let one = machine.start();
    one.commit(&machine, 3);
    one.flush().await;
    one.commit(&machine, 4);
    one.flush().await;
    assert_eq!(one.status("fencing"), "enforced");
    one.kill().await;
    odd.overwrites();
    let one = machine.start();
    one.commit(&machine, 5);
    one.until("it is seen", |one| one.status("fencing") == "best-effort")
        .await;
    one.flush().await;
    assert_eq!(one.shared.store.fencing(), Fencing::BestEffort);
    one.kill().await;
    assert_eq!(machine.restored(Target::Newest).await, 5);
}

/// That of a process which wanted to begin another generation, and did not come to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_seal_that_lands_late_is_no_divergence() {
    for stops in [false, true] {
        for machine in Machine::both(&format!("stray-late-seal-{stops}")) {
            slots(&machine, 1..=2).await.kill().await;
            let previous = machine.state().previous;
            let one = machine.start_with(1 << 20, |shared| {
                if stops {
                    shared.refusal.stop();
                }
            });
            one.flush().await;
            // The store was asked already.
            let seal = Seal {
                generation: G,
                slot: Txid(3),
                previous,
                sealed_at: super::super::shared::now(),
                token: [7; 16],
            };
            let body = Body::Bytes(seal.encode().into());
            machine.store().create(&log(1, 3), body).await.unwrap();
            one.commit(&machine, 3);
            one.flush().await;
            assert_eq!(one.status("generation"), 2);
            assert_eq!(one.status("diverged"), false);
            assert_eq!(one.status("fenced"), false);
            one.commit(&machine, 4);
            one.flush().await;
            one.kill().await;
            assert_eq!(parent_of(&machine, 2).await.txid, Txid(2));
            assert_eq!(machine.restored(Target::Newest).await, 4);
        }
    }
}

/// Two crashes: after it was noted where the WAL ends, and before the next one was begun; then, with the next segment in the store, before that was noted.
#[tokio::test(flavor = "multi_thread")]
async fn a_wal_that_goes_on_behind_its_noted_end_is_this_machines() {
    for machine in Machine::both("stray-two-crashes") {
        with_history(&machine, 1..=2).await.kill().await;
        let mut state = machine.state();
        state.left = Some(Left {
            mark: state.stored,
            next: Next::Wal(Salts(99, 99)),
        });
        state.sequence += 1;
        let file = crate::local_state::open(&machine.state_file()).unwrap();
        crate::local_state::write(&file, &state).unwrap();
        machine.commit(3);
        let wal = machine.wal.lock().unwrap().clone();
        let third = wal
            .transactions(0, -7)
            .into_iter()
            .skip(2)
            .map(Arc::new)
            .collect::<Vec<_>>();
        let segment = sealer::seal(&third, G, state.previous, Path::new("/tmp")).unwrap();
        machine.store().create(&log(1, 3), segment.body).await.unwrap();
        let one = machine.start();
        one.commit(&machine, 4);
        one.flush().await;
        assert_eq!(one.status("diverged"), false);
        assert_eq!(one.status("generation"), 1);
        one.kill().await;
        assert_eq!(machine.restored(Target::Newest).await, 4);
    }
}

/// Where a restored copy begins, the machine that it was restored from may have gone on: in its own WAL, at that very place.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_on_behind_a_restored_copy_is_another_machines() {
    for old in Machine::both("stray-copy") {
        let one = slots(&old, 1..=2).await;
        let new = old.beside();
        restore_to(&new, Target::Newest).await;
        one.commit(&old, 3);
        one.flush().await;
        let two = new.start();
        two.commit(&new, 100);
        has_diverged(&old, &two, 2).await;
        one.kill().await;
        two.kill().await;
    }
}
