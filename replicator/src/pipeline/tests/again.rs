//! A database goes on where this process, or this machine, was before: what it has captured or uploaded since counts for nothing any more.

use replvfs_vfs::types::Txid;

use super::machine::Machine;
use super::resuming::{every_commit_is_there, wal_of, with_history};
use super::turn::delete;
use crate::format::{Generation, Key};
use crate::history::Target;
use crate::pipeline::owner::{Ownership, lock_file};

/// What is committed while another process is the owner is dropped here. That one may die before it has stored any of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_forgotten_is_captured_again() {
    let machine = Machine::new();
    let process = with_history(&machine, 1..=2).await;
    process.close();
    let other = Ownership::take(&lock_file(&machine.database())).unwrap().unwrap();
    process.shared.opened();
    assert!(!process.replica.owns());
    process.commit(&machine, 3);
    process
        .until("it forgets", |process| process.log.pending().items == 0)
        .await;
    drop(other);
    process.until("it takes over", |process| process.replica.owns()).await;
    process.flush().await;
    assert_eq!(process.status("generation"), 1);
    assert_eq!(process.status("discontinuities"), 0);
    process.kill().await;
    every_commit_is_there(&machine, 3).await;
}

/// A virtual machine is set back to an older disk: all that it has is in the history, whose images from before are deleted.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_disk_gets_an_image_of_its_own() {
    let mut machine = Machine::new();
    machine.images.least = 1;
    with_history(&machine, 1..=1).await.kill().await;
    let (wal, state) = (wal_of(&machine), std::fs::read(machine.state_file()).unwrap());
    let process = with_history(&machine, 2..=5).await;
    process.commit(&machine, 6);
    process.flush().await;
    process
        .until("another image", |process| !process.status("last_image").is_null())
        .await;
    process.kill().await;
    delete(&machine, &[Key::Image(Generation(1), Txid(0))]).await;
    *machine.wal.lock().unwrap() = wal;
    std::fs::write(machine.state_file(), state).unwrap();
    let process = machine.start();
    process.flush().await;
    assert_eq!(process.log.acked(), Some(Txid(1)));
    assert_eq!(process.status("generation"), 1);
    assert_eq!(process.status("diverged"), false);
    assert_eq!(machine.restored(Target::Txid(Txid(1))).await, 1);
    assert_eq!(machine.restored(Target::Newest).await, 6, "nothing was committed here");
    process.commit(&machine, 100);
    process.flush().await;
    assert_eq!(process.status("diverged"), true);
    assert_eq!(machine.restored(Target::Newest).await, 100);
    process.kill().await;
}
