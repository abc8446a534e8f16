//! Two writers that meet where the store does not keep them apart, and a store that says for a moment that nothing is there.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use replvfs_vfs::types::Txid;

use super::machine::{Machine, Process};
use super::resuming::{restore_to, with_history};
use super::strays::odd::Odd;
use super::turn::{delete, is_fenced, log, slots};
use crate::format::{Generation, Key, Seal, SegmentIndex};
use crate::history::Target;
use crate::pipeline::seal::{Sealing, seal};

/// A machine whose store is odd, and that.
fn odd_machine() -> (Machine, Odd) {
    let (mut machine, odd) = (Machine::new(), Odd::new());
    machine.operator = Some(odd.operator(&machine.replica()));
    (machine, odd)
}

/// Another machine with the same store, and the state after a transaction.
async fn restored_beside(machine: &Machine, txid: u64) -> Machine {
    let mut other = machine.beside();
    other.operator.clone_from(&machine.operator);
    restore_to(&other, Target::Txid(Txid(txid))).await;
    other
}

fn file(machine: &Machine, key: Key) -> PathBuf {
    machine.replica().join(key.path())
}

/// As a writer does who has looked before.
fn replace(machine: &Machine, key: Key, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(file(machine, key)).unwrap();
    change(&mut bytes);
    std::fs::write(file(machine, key), bytes).unwrap();
}

async fn goes_on(process: &Process, machine: &Machine, value: u8) {
    process.commit(machine, value);
    process.flush().await;
    assert_eq!(process.status("fenced"), false);
}

/// Until the store holds what this process is uploading.
async fn is_held_by(odd: &Odd, process: &Process) {
    tokio::select! {
        () = odd.is_held() => {}
        () = process.until("it is never held", |_| false) => {}
    }
}

/// Segments of two copies of a database are often of one length. The store was never seen to overwrite.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_was_replaced_by_one_of_its_length_is_noticed() {
    let (machine, _odd) = odd_machine();
    let one = slots(&machine, 1..=3).await;
    replace(&machine, log(1, 3), |bytes| *bytes.last_mut().unwrap() ^= 1);
    one.commit(&machine, 4);
    is_fenced(one, 3, "was replaced by another writer").await;
}

/// Two take over at the same moment, and both are told that they have the number.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_lost_the_number_of_its_generation_acknowledges_nothing() {
    for is_known in [true, false] {
        let (machine, odd) = odd_machine();
        odd.hold("/image/".to_owned());
        let one = machine.start_with(1 << 20, |shared| {
            if is_known {
                shared.store.condition_is_ignored();
            }
        });
        one.commit(&machine, 1);
        is_held_by(&odd, &one).await;
        replace(&machine, Key::Generation(Generation(1)), |bytes| bytes.push(b'\n'));
        odd.let_go();
        let reason = one.failure().await;
        assert!(reason.contains("another writer"), "{reason}");
        assert_eq!(one.log.acked(), None, "acknowledged in another one's generation");
        one.kill().await;
    }
}

/// The writer and who takes over come to the slot at the same moment. Both are told that they have it, and what is there is the writer's.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_replaced_a_seal_is_fenced_by_the_next_generation() {
    let (machine, odd) = odd_machine();
    let one = slots(&machine, 1..=3).await;
    one.shared.store.condition_is_ignored();
    odd.overwrites();
    let other = restored_beside(&machine, 2).await;
    odd.hold(log(1, 4).path());
    one.commit(&machine, 4);
    odd.is_held().await;
    let two = with_history(&other, 100..=100).await;
    assert_eq!(two.status("generation"), 2);
    assert_eq!(machine.store().size(&log(1, 4)).await.unwrap(), Seal::LEN as u64);
    odd.let_go();
    is_fenced(one, 3, "another generation has begun").await;
    goes_on(&two, &other, 101).await;
    two.kill().await;
}

/// The same in a store that was never seen to overwrite: who takes over looks once more.
#[tokio::test(flavor = "multi_thread")]
async fn a_seal_that_was_replaced_is_put_behind_what_replaced_it() {
    let (machine, odd) = odd_machine();
    let one = slots(&machine, 1..=3).await;
    let other = restored_beside(&machine, 2).await;
    let generation = Key::Generation(Generation(2));
    odd.hold(generation.path());
    let two = other.start();
    two.commit(&other, 100);
    is_held_by(&odd, &two).await;
    delete(&machine, &[log(1, 4)]).await;
    goes_on(&one, &machine, 4).await;
    odd.let_go();
    two.flush().await;
    assert_eq!(two.status("generation"), 2);
    one.commit(&machine, 5);
    is_fenced(one, 4, "seal of a writer").await;
    goes_on(&two, &other, 101).await;
    two.kill().await;
}

/// A writer that is halted in the middle of its upload. Meanwhile the other one goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_lands_late_is_not_acknowledged() {
    let (machine, odd) = odd_machine();
    let one = slots(&machine, 1..=3).await;
    one.shared.store.condition_is_ignored();
    odd.overwrites();
    odd.hold(log(1, 4).path());
    one.commit(&machine, 4);
    odd.is_held().await;
    let other = restored_beside(&machine, 3).await;
    let two = slots(&other, 100..=102).await;
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    odd.let_go();
    is_fenced(one, 3, "is behind it, is there already").await;
    two.kill().await;
}

/// A gateway before the store, or a store that is not of one mind.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_denies_an_object_for_a_moment_fences_nobody() {
    let (machine, odd) = odd_machine();
    let one = slots(&machine, 1..=3).await;
    odd.deny(log(1, 3).path(), 2);
    goes_on(&one, &machine, 4).await;
    one.kill().await;
    assert_eq!(machine.restored(Target::Newest).await, 4);
}

/// While nobody wrote. What is there looks like what was noted, but for its content.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_replaced_while_nobody_wrote_is_not_gone_on_from() {
    let (machine, odd) = odd_machine();
    slots(&machine, 1..=3).await.kill().await;
    let bytes = std::fs::read(file(&machine, log(1, 3))).unwrap();
    let end = |bytes: &[u8]| {
        let index = SegmentIndex::from_object(&Bytes::copy_from_slice(bytes)).ok()?;
        Some((index.header().first, index.header().last, index.header().end))
    };
    let other = (0..bytes.len()).find_map(|at| {
        let mut other = bytes.clone();
        other[at] ^= 1;
        (end(&other) == end(&bytes)).then_some(other)
    });
    std::fs::write(file(&machine, log(1, 3)), other.expect("a byte of a page")).unwrap();
    odd.overwrites();
    let one = machine.start_with(1 << 20, |shared| shared.store.condition_is_ignored());
    one.commit(&machine, 4);
    one.flush().await;
    assert_eq!(
        (one.status("diverged"), one.status("generation")),
        (true.into(), 2.into())
    );
    one.kill().await;
    assert_eq!(machine.restored(Target::Newest).await, 4);
}

/// What is on the way spoils an answer: a generation that cannot be read cannot be ended, and its writer would not be kept out.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_spoilt_is_asked_for_again_before_a_generation_is_left_open() {
    let (machine, _odd) = odd_machine();
    slots(&machine, 1..=3).await.kill().await;
    let newest = file(&machine, log(1, 3));
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
    let taker = super::uploader(machine.writers_store());
    let heals = async {
        let trouble = || taker.shared().status.current_trouble();
        while trouble().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        std::fs::write(&newest, &bytes).unwrap();
    };
    let heals = tokio::time::timeout(Duration::from_secs(10), heals);
    let (sealed, _) = tokio::join!(seal(&taker, Generation(1), None), heals);
    assert!(
        matches!(sealed, Ok(Sealing::Done(ended)) if ended.slot == Some(Txid(4))),
        "{sealed:?}"
    );
}
