//! `on_fenced=stop`: a machine that was replaced refuses writes, and takes nothing back.

use replvfs_vfs::api::SqliteApi;
use replvfs_vfs::held::DatabaseFile;
use replvfs_vfs::host::{Host, OpenRequest};
use replvfs_vfs::log::Log;
use replvfs_vfs::types::Txid;

use super::machine::{Machine, Process, Wal};
use super::resuming::{restore_to, with_history};
use crate::Config;
use crate::history::Target;
use crate::metrics::Metrics;
use crate::pipeline::ReplicatingHost;
use crate::pipeline::owner::{Ownership, lock_file};
use crate::restore::{RestoreOptions, restore};

/// A process with that setting.
fn stopping(machine: &Machine) -> Process {
    machine.start_with(1 << 20, |shared| shared.refusal.stop())
}

async fn stopping_with_history(machine: &Machine, commits: std::ops::RangeInclusive<u8>) -> Process {
    let process = stopping(machine);
    process.capture.sync();
    for value in commits {
        process.commit(machine, value);
    }
    process.flush().await;
    assert!(!process.replica.refuses_writes());
    process
}

async fn assert_stopped(process: &Process, says: &str) {
    let reason = process.failure().await;
    assert!(reason.contains(says), "{reason}");
    assert!(reason.contains("write transactions are refused"), "{reason}");
    assert!(reason.contains("restore it in this database's place"), "{reason}");
    assert!(process.replica.refuses_writes());
    assert_eq!(process.status("fenced"), true);
    assert_eq!(process.status("refuses_writes"), true);
    assert_eq!(process.status("diverged"), false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_process_its_standby_and_the_next_one_refuse_writes() {
    let old = Machine::new();
    let one = stopping_with_history(&old, 1..=2).await;
    let standby = stopping(&old);
    let new = old.beside();
    restore_to(&new, Target::Newest).await;
    let two = stopping_with_history(&new, 100..=100).await;
    one.commit(&old, 3);
    assert_stopped(&one, "another writer").await;
    assert_stopped(&standby, "another machine has taken over").await;
    standby.kill().await;
    one.kill().await;
    let next = stopping(&old);
    assert_stopped(&next, "another machine has taken over").await;
    next.kill().await;
    two.commit(&new, 101);
    two.flush().await;
    assert!(!two.replica.refuses_writes());
    assert_eq!(new.restored(Target::Newest).await, 101);
    two.kill().await;
}

/// Also when the replica cannot be asked any more. With one thread, so that nothing is asked before this test waits.
#[tokio::test]
async fn what_is_noted_counts_without_the_store() {
    let old = Machine::new();
    let one = stopping_with_history(&old, 1..=2).await;
    let new = old.beside();
    restore_to(&new, Target::Newest).await;
    let two = with_history(&new, 100..=100).await;
    one.commit(&old, 3);
    assert_stopped(&one, "another writer").await;
    for process in [one, two] {
        process.kill().await;
    }
    std::fs::remove_dir_all(old.replica()).unwrap();
    let next = stopping(&old);
    assert!(next.replica.refuses_writes());
    assert_stopped(&next, "another machine has taken over").await;
    next.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_setting_nothing_is_refused() {
    let old = Machine::new();
    let one = with_history(&old, 1..=2).await;
    let new = old.beside();
    restore_to(&new, Target::Newest).await;
    let two = with_history(&new, 100..=100).await;
    one.commit(&old, 3);
    let reason = one.failure().await;
    assert!(!reason.contains("refused"), "{reason}");
    assert!(!one.replica.refuses_writes());
    assert_eq!(
        (one.status("fenced"), one.status("refuses_writes")),
        (true.into(), false.into())
    );
    for process in [one, two] {
        process.kill().await;
    }
}

/// What an older machine finds that comes back, and was told nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_file_does_not_take_over() {
    // The other one went on in the same generation, or in a newer one; this one has committed since, or not.
    for (target, commits) in [
        (Target::Newest, false),
        (Target::Newest, true),
        (Target::Txid(Txid(1)), false),
        (Target::Txid(Txid(1)), true),
    ] {
        let what = format!("{target}, {commits}");
        let old = Machine::new();
        stopping_with_history(&old, 1..=2).await.kill().await;
        let new = old.beside();
        restore_to(&new, target).await;
        // To go back on purpose is a way of going on beside the history.
        let two = with_history(&new, 100..=101).await;
        let generation = two.status("generation");
        let one = stopping(&old);
        if commits {
            one.commit(&old, 3);
        }
        assert_stopped(&one, "another writer").await;
        assert!(old.state().fenced, "{what}: noted");
        one.kill().await;
        // It was not disturbed.
        two.commit(&new, 102);
        two.flush().await;
        assert_eq!(two.status("generation"), generation, "{what}");
        assert_eq!(new.restored(Target::Newest).await, 102, "{what}");
        two.kill().await;
        // What is in the replica goes on here once it was restored.
        let options = RestoreOptions {
            force: true,
            resumable: true,
            ..RestoreOptions::default()
        };
        restore(&old.store(), &old.database(), &options).await.unwrap();
        *old.wal.lock().unwrap() = Wal::new(78, 102);
        let back = stopping_with_history(&old, 4..=4).await;
        assert_eq!(old.restored(Target::Newest).await, 4, "{what}");
        back.kill().await;
    }
}

/// The default: a generation of its own.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_setting_an_older_file_takes_over() {
    let old = Machine::new();
    with_history(&old, 1..=2).await.kill().await;
    let new = old.beside();
    restore_to(&new, Target::Newest).await;
    let two = with_history(&new, 100..=100).await;
    let one = old.start();
    one.commit(&old, 3);
    one.flush().await;
    assert_eq!(one.status("diverged"), true);
    assert_eq!(old.restored(Target::Newest).await, 3);
    for process in [one, two] {
        process.kill().await;
    }
}

/// The store was asked when nobody else wrote yet, and nothing was uploaded since.
#[tokio::test(flavor = "multi_thread")]
async fn what_happened_since_the_store_was_asked_counts() {
    for target in [Target::Newest, Target::Txid(Txid(1))] {
        let old = Machine::new();
        stopping_with_history(&old, 1..=2).await.kill().await;
        let one = stopping(&old);
        one.until("it goes on", |one| one.status("generation") == 1).await;
        let new = old.beside();
        restore_to(&new, target).await;
        let two = with_history(&new, 100..=100).await;
        // The WAL had reached its limit: the history needs another generation.
        one.capture.suspend();
        old.commit(3);
        assert_stopped(&one, "another writer").await;
        two.commit(&new, 101);
        two.flush().await;
        assert_eq!(new.restored(Target::Newest).await, 101);
        for process in [one, two] {
            process.kill().await;
        }
    }
}

/// A crash between the end of a generation and the beginning of the next one is no other writer.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_goes_on_from_its_own_end_of_a_generation() {
    let machine = Machine::new();
    let one = stopping_with_history(&machine, 1..=2).await;
    one.kill().await;
    *machine.wal.lock().unwrap() = Wal::new(9, 2);
    let two = stopping_with_history(&machine, 3..=3).await;
    assert_eq!(two.status("generation"), 2);
    two.kill().await;
    let folder = machine.replica().join("gen/0000000000000002");
    std::fs::remove_dir_all(&folder).unwrap();
    // As that first process had noted it.
    assert_eq!(machine.state().generation.0, 2);
    let three = stopping(&machine);
    three.commit(&machine, 4);
    three.flush().await;
    assert!(!three.replica.refuses_writes());
    assert_eq!(machine.restored(Target::Newest).await, 4);
    three.kill().await;
}

/// Another process replicates the database just now, or is about to find out: nobody is asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_on_standby_reads_the_note_when_it_opens() {
    let old = Machine::new();
    let one = stopping_with_history(&old, 1..=2).await;
    let new = old.beside();
    restore_to(&new, Target::Newest).await;
    let two = with_history(&new, 100..=100).await;
    one.commit(&old, 3);
    assert_stopped(&one, "another writer").await;
    one.kill().await;
    two.kill().await;
    let path = old.database();
    let _owner = Ownership::take(&lock_file(&path)).unwrap().unwrap();
    let opened = |setting: &str| {
        let parameters = [("replica", old.uri.as_str()), ("on_fenced", setting)];
        let file = DatabaseFile::on_default_vfs(SqliteApi::linked(), &path).unwrap();
        let request = OpenRequest {
            path: &path,
            uri_parameters: &parameters.map(|(key, value)| (key.to_owned(), value.to_owned())),
            file: &file,
            by_default: false,
        };
        let log = Log::new();
        let host = ReplicatingHost::new(Config::default(), Metrics::default());
        let replica = tokio::task::block_in_place(|| host.open(&request, &log))
            .unwrap()
            .unwrap();
        // Its runtime may not be ended in here.
        std::mem::forget(host);
        (replica.refuses_writes(), log.failure())
    };
    let (refuses, reason) = opened("stop");
    assert!(refuses && reason.is_some_and(|reason| reason.contains("write transactions are refused")));
    assert_eq!(opened("continue"), (false, None));
}
