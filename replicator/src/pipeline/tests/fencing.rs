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

/// Another process of a machine that was replaced does not end the successor's history either, nor does the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_of_a_fenced_process_is_fenced_too() {
    let old = Machine::new();
    let one = with_history(&old, 1..=2).await;
    let standby = old.start();
    let new = old.beside();
    restore_to(&new, Target::Newest).await;
    let two = with_history(&new, 100..=100).await;
    one.commit(&old, 3);
    one.failure().await;
    let reason = standby.failure().await;
    assert!(reason.contains("another machine has taken over"), "{reason}");
    assert_eq!(standby.status("fenced"), true);
    standby.kill().await;
    one.kill().await;
    let next = old.start();
    next.failure().await;
    next.kill().await;
    two.commit(&new, 101);
    two.flush().await;
    assert_eq!(two.status("fenced"), false);
    assert_eq!(new.restored(Target::Newest).await, 101);
    two.kill().await;
}

/// The database cannot be proved to follow from what another machine has stored meanwhile: that was left behind.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_successor_stored_is_no_part_of_a_broken_history() {
    let old = Machine::new();
    with_history(&old, 1..=2).await.kill().await;
    let new = old.beside();
    restore_to(&new, Target::Newest).await;
    let two = with_history(&new, 100..=100).await;
    // Plain SQLite has restarted the WAL.
    *old.wal.lock().unwrap() = super::machine::Wal::new(9, 2);
    let one = with_history(&old, 3..=3).await;
    assert_eq!(one.status("diverged"), true);
    let (generation, warnings) = warnings(&old).await;
    assert_eq!(generation, 2);
    assert!(
        warnings.iter().any(|warning| warning.contains("transactions 3 to 3")),
        "{warnings:?}"
    );
    for process in [one, two] {
        process.kill().await;
    }
}

/// An image that gets into a generation which was ended meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_behind_a_seal_is_not_acknowledged() {
    let old = Machine::new();
    with_history(&old, 1..=2).await.kill().await;
    let new = old.beside();
    restore_to(&new, Target::Txid(Txid(1))).await;
    let (chunks, away) = (old.replica().join("chunk"), old.replica().join("away"));
    std::fs::rename(&chunks, &away).unwrap();
    std::fs::write(&chunks, b"").unwrap();
    let two = new.start();
    new.commit(100);
    two.until("it begins", |two| two.status("generation") == 2).await;
    let one = old.start();
    one.until("it begins", |one| one.status("generation") == 3).await;
    std::fs::remove_file(&chunks).unwrap();
    std::fs::rename(&away, &chunks).unwrap();
    one.flush().await;
    let reason = two.failure().await;
    assert!(reason.contains("another generation has begun"), "{reason}");
    assert_eq!(two.log.acked(), None);
    assert_eq!(one.status("fenced"), false);
    for process in [one, two] {
        process.kill().await;
    }
}

/// Two applications that share a replica by mistake must not end each other's history: neither one that has not written yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_written_late_does_not_end_anothers_history() {
    let one = Machine::new();
    let late = one.beside();
    let waits = late.start();
    let first = with_history(&one, 1..=2).await;
    late.commit(77);
    let reason = waits.failure().await;
    assert!(reason.contains("another database"), "{reason}");
    first.commit(&one, 3);
    first.flush().await;
    assert_eq!(one.restored(Target::Newest).await, 3);
    for process in [first, waits] {
        process.kill().await;
    }
}

/// Nothing was in it, so the other one did not divert this one's history: it is this one that came too late.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_only_named_a_generation_does_not_end_anothers_history() {
    let early = Machine::new();
    with_history(&early, []).await.kill().await;
    for folder in ["chunk", "gen/0000000000000001/image"] {
        std::fs::remove_dir_all(early.replica().join(folder)).unwrap();
    }
    let one = early.beside();
    let first = with_history(&one, 100..=101).await;
    assert_eq!(first.status("generation"), 2);
    let late = early.start();
    late.commit(&early, 1);
    let reason = late.failure().await;
    assert!(reason.contains("another database"), "{reason}");
    first.commit(&one, 102);
    first.flush().await;
    assert_eq!(one.restored(Target::Newest).await, 102);
    for process in [first, late] {
        process.kill().await;
    }
}
