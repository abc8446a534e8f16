//! Slots that are free again: a writer that slept must not take its own for its turn.

use replvfs_vfs::types::Txid;

use super::machine::{Machine, Process};
use super::resuming::{restore_to, with_history};
use crate::format::{Generation, Key, Seal};
use crate::history::Target;
use crate::store::Body;

pub(super) fn log(generation: u64, slot: u64) -> Key {
    Key::Log(Generation(generation), Txid(slot))
}

pub(super) async fn delete(machine: &Machine, keys: &[Key]) {
    for key in keys {
        machine.store().delete(key).await.unwrap();
    }
}

/// A writer with these commits, each in a slot of its own.
pub(super) async fn slots(machine: &Machine, values: std::ops::RangeInclusive<u8>) -> Process {
    let process = with_history(machine, *values.start()..=*values.start()).await;
    for value in values.skip(1) {
        process.commit(machine, value);
        process.flush().await;
    }
    process
}

/// A writer whose log is empty.
async fn base_only(machine: &Machine) -> Process {
    let process = machine.start();
    process.flush().await;
    process
}

pub(super) async fn is_fenced(process: Process, acked: u64, why: &str) {
    let reason = process.failure().await;
    assert!(reason.contains("another writer") && reason.contains(why), "{reason}");
    assert_eq!(process.status("fenced"), true);
    assert_eq!(
        process.log.acked(),
        Some(Txid(acked)),
        "acknowledged though it was not its turn"
    );
    process.kill().await;
}

/// The one that took over goes on in the same generation, and what it wrote first is not needed any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_slept_finds_its_slot_free() {
    for old in Machine::both("turn-slept") {
        let one = slots(&old, 1..=3).await;
        let new = old.beside();
        restore_to(&new, Target::Newest).await;
        let two = slots(&new, 100..=102).await;
        delete(&old, &[log(1, 2), log(1, 3), log(1, 4)]).await;
        one.commit(&old, 4);
        is_fenced(one, 3, "which it follows, was deleted").await;
        assert!(old.state().fenced);
        two.commit(&new, 103);
        two.flush().await;
        assert_eq!(two.status("fenced"), false);
        two.kill().await;
    }
}

/// Nobody deletes the first slot of the newest generation: what is before the second is there for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_slept_finds_the_second_slot_free() {
    for old in Machine::both("turn-second") {
        let one = slots(&old, 1..=1).await;
        let new = old.beside();
        restore_to(&new, Target::Newest).await;
        let two = slots(&new, 100..=102).await;
        delete(&old, &[log(1, 2), log(1, 3)]).await;
        one.commit(&old, 2);
        is_fenced(one, 1, "is behind it, is there already").await;
        two.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_slept_finds_the_first_slot_free() {
    for old in Machine::both("turn-first") {
        let one = base_only(&old).await;
        let new = old.beside();
        restore_to(&new, Target::Newest).await;
        slots(&new, 1..=3).await.kill().await;
        let third = new.beside();
        restore_to(&third, Target::Txid(Txid(1))).await;
        let two = slots(&third, 200..=200).await;
        assert_eq!(two.status("generation"), 2);
        delete(&old, &[log(1, 1), log(1, 2), log(1, 3)]).await;
        one.commit(&old, 1);
        is_fenced(one, 0, "another generation has begun").await;
        two.kill().await;
    }
}

/// It would end its generation with a seal, and begin another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_seal_in_a_slot_that_is_free_again_ends_nothing() {
    for old in Machine::both("turn-seal") {
        let one = slots(&old, 1..=3).await;
        let new = old.beside();
        restore_to(&new, Target::Newest).await;
        let two = slots(&new, 100..=102).await;
        delete(&old, &[log(1, 2), log(1, 3), log(1, 4)]).await;
        one.capture.suspend();
        old.commit(4);
        is_fenced(one, 3, "which it follows, was deleted").await;
        assert_eq!(old.objects("generation.json").await, 1, "no other generation");
        two.commit(&new, 103);
        two.flush().await;
        two.kill().await;
    }
}

/// Not its own generation: it looks again, and ends the log where that ends now.
#[tokio::test(flavor = "multi_thread")]
async fn a_taker_that_slept_looks_again() {
    use super::super::seal::{Sealing, Tail, seal};
    use super::super::turn::Before;
    use crate::history::find::hash_of;
    for machine in Machine::both("turn-taker") {
        let one = slots(&machine, 1..=6).await;
        let store = machine.store();
        let len = store.size(&log(1, 3)).await.unwrap();
        let before = Before {
            first: Txid(1),
            slot: Some(Txid(3)),
            content: None,
        };
        let slept = Tail {
            generation: Generation(1),
            slot: Txid(4),
            previous: hash_of(&store, log(1, 3), len).await.unwrap(),
            before,
        };
        delete(&machine, &[log(1, 2), log(1, 3), log(1, 4)]).await;
        let taker = super::uploader(store.clone());
        let sealed = seal(&taker, Generation(1), Some(slept)).await.unwrap();
        assert!(
            matches!(sealed, Sealing::Done(ended) if ended.slot == Some(Txid(7))),
            "{sealed:?}"
        );
        assert_eq!(store.size(&log(1, 7)).await.unwrap(), Seal::LEN as u64);
        one.commit(&machine, 7);
        is_fenced(one, 6, "seal of a writer").await;
    }
}

/// An upload whose answer was lost, and all that is merged or deleted behind a writer that goes on, are no reason to fence it.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_goes_on_behind_what_is_deleted() {
    for machine in Machine::both("turn-goes-on") {
        let one = slots(&machine, 1..=4).await;
        delete(&machine, &[log(1, 2), log(1, 3)]).await;
        one.commit(&machine, 5);
        one.flush().await;
        one.kill().await;
        delete(&machine, &[log(1, 4)]).await;
        let one = machine.start();
        one.commit(&machine, 6);
        one.flush().await;
        assert_eq!(one.status("generation"), 1);
        one.kill().await;
    }
}

/// Where the store does not keep writers apart both are told that a slot is theirs. Who has lost it notices before it stores the next one, or, where the store was
/// never seen to overwrite, by the length, behind the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_whose_object_was_replaced_is_fenced() {
    for is_known in [true, false] {
        for machine in Machine::both(&format!("turn-replaced-{is_known}")) {
            let one = slots(&machine, 1..=3).await;
            let store = machine.store();
            let mut bytes = store.read(&log(1, 3)).await.unwrap().to_vec();
            match is_known {
                true => {
                    one.shared.store.condition_is_ignored();
                    *bytes.last_mut().unwrap() ^= 1;
                }
                false => bytes.push(0),
            }
            delete(&machine, &[log(1, 3)]).await;
            store.create(&log(1, 3), Body::Bytes(bytes.into())).await.unwrap();
            one.commit(&machine, 4);
            one.failure().await;
            assert_eq!(one.status("fencing"), "best-effort");
            assert_eq!(store.has(&log(1, 4)).await.unwrap(), !is_known);
            is_fenced(one, 3, "was replaced by another writer").await;
        }
    }
}

/// It reads what is its own, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_goes_on_in_a_store_that_ignores_conditions() {
    for machine in Machine::both("turn-best-effort") {
        let one = slots(&machine, 1..=2).await;
        one.shared.store.condition_is_ignored();
        for value in 3..=5 {
            one.commit(&machine, value);
            one.flush().await;
        }
        delete(&machine, &[log(1, 2), log(1, 3), log(1, 4)]).await;
        one.commit(&machine, 6);
        one.flush().await;
        one.kill().await;
    }
}
