//! Machines that write to one replica: who is told, and what a restore says.

use replvfs_vfs::types::Txid;

use super::machine::{Machine, Process};
use super::resuming::{restore_to, with_history};
use crate::history::Target;
use crate::restore::{RestoreOptions, restore};

async fn warnings(machine: &Machine) -> (u64, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let restored = restore(
        &machine.store(),
        &folder.path().join("out.db"),
        &RestoreOptions::default(),
    )
    .await
    .unwrap();
    (restored.generation.0, restored.warnings)
}

/// A machine that was cut off until the WAL had reached its limit was replaced meanwhile: it must not end its successor's history.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_gap_a_machine_that_was_replaced_is_fenced() {
    for goes_on in [true, false] {
        let old = Machine::new();
        let one = with_history(&old, 1..=2).await;
        let new = old.beside();
        restore_to(&new, if goes_on { Target::Newest } else { Target::Txid(Txid(1)) }).await;
        let two = with_history(&new, 100..=100).await;
        one.capture.suspend();
        old.commit(3);
        let reason = one.failure().await;
        assert!(reason.contains("another writer"), "{reason}");
        assert_eq!(one.status("fenced"), true);
        two.commit(&new, 101);
        two.flush().await;
        assert_eq!(new.restored(Target::Newest).await, 101);
        two.kill().await;
        one.kill().await;
    }
}

/// Whatever a generation has that the newest does not follow from is told.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_writer_was_told_and_is_in_no_ancestor_is_warned_of() {
    let machine = Machine::new();
    with_history(&machine, 1..=2).await.kill().await;
    let copies = [machine.beside(), machine.beside()];
    for copy in &copies {
        restore_to(copy, Target::Txid(Txid(1))).await;
    }
    let mut processes: Vec<Process> = Vec::new();
    for copy in &copies {
        processes.push(with_history(copy, 100..=102).await);
    }
    let (generation, warnings) = warnings(&machine).await;
    assert_eq!(generation, 3);
    assert!(
        warnings
            .iter()
            .any(|warning| warning.contains("generation 0000000000000002, which ends with")),
        "{warnings:?}"
    );
    for process in processes {
        process.kill().await;
    }
}

/// And it is when the newest generation has got a successor.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_behind_is_warned_of_after_another_generation() {
    let machine = Machine::new();
    let one = with_history(&machine, 1..=3).await;
    let copy = machine.beside();
    restore_to(&copy, Target::Txid(Txid(2))).await;
    let two = with_history(&copy, 100..=100).await;
    let (generation, before) = warnings(&machine).await;
    assert_eq!(generation, 2);
    assert!(
        before
            .iter()
            .any(|warning| warning.contains("generation 0000000000000001")),
        "{before:?}"
    );
    two.capture.suspend();
    copy.commit(101);
    two.until("it goes on", |two| two.status("generation") == 3).await;
    two.flush().await;
    let (generation, after) = warnings(&machine).await;
    assert_eq!(generation, 3);
    assert!(
        after
            .iter()
            .any(|warning| warning.contains("generation 0000000000000001")),
        "{after:?}"
    );
    for process in [one, two] {
        process.kill().await;
    }
}

/// A folder is there before what names the generation is, and stays when a crash comes between.
#[tokio::test(flavor = "multi_thread")]
async fn a_generation_without_a_name_hides_none_that_is_written() {
    let old = Machine::new();
    let one = with_history(&old, 1..=2).await;
    std::fs::create_dir(old.replica().join("gen/0000000000000002")).unwrap();
    let new = old.beside();
    restore_to(&new, Target::Txid(Txid(1))).await;
    let two = with_history(&new, 100..=100).await;
    one.commit(&old, 3);
    let reason = one.failure().await;
    assert!(reason.contains("another writer"), "{reason}");
    // Whoever made the folder and goes on now finds the name taken.
    assert_eq!(two.status("generation"), 2);
    for process in [one, two] {
        process.kill().await;
    }
}
