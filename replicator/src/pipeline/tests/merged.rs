//! A process goes on with a history that was merged while it was away, and what was merged is deleted.

use super::machine::Machine;
use super::resuming::with_history;
use crate::format::{Generation, Key};
use crate::history::Target;
use crate::merge::{MergeOptions, merge};
use replvfs_vfs::types::Txid;

/// Seven segments of one transaction each, of which the first so many are in a span alone. The state is that after the third one.
async fn machine(merged: u64) -> Machine {
    let machine = Machine::new();
    let process = with_history(&machine, 1..=1).await;
    let mut noted = Vec::new();
    for value in 2..=7 {
        if value == 4 {
            noted = std::fs::read(machine.state_file()).unwrap();
        }
        process.commit(&machine, value);
        process.flush().await;
    }
    process.kill().await;
    std::fs::write(machine.state_file(), noted).unwrap();
    assert_eq!(machine.state().stored.txid, Txid(3));
    let slot = |txid| machine.replica().join(Key::Log(Generation(1), Txid(txid)).path());
    let aside = machine.replica().join("aside");
    // One behind them is the newest, as far as the merger knows.
    let hidden: Vec<u64> = (merged + 2..=7).collect();
    std::fs::create_dir(&aside).unwrap();
    for txid in &hidden {
        std::fs::rename(slot(*txid), aside.join(txid.to_string())).unwrap();
    }
    let options = MergeOptions {
        pieces: 2,
        ..MergeOptions::default()
    };
    let made = merge(&machine.store(), None, &options).await.unwrap();
    assert_eq!(made.spans.len(), 1);
    assert_eq!(made.spans[0].key, Key::Span(Generation(1), Txid(1), Txid(merged)));
    for txid in hidden {
        std::fs::rename(aside.join(txid.to_string()), slot(txid)).unwrap();
    }
    std::fs::remove_dir(aside).unwrap();
    for txid in 1..=merged {
        std::fs::remove_file(slot(txid)).unwrap();
    }
    machine
}

#[tokio::test(flavor = "multi_thread")]
async fn a_noted_segment_that_was_merged_is_found_in_its_span() {
    let machine = machine(3).await;
    let process = machine.start();
    process.flush().await;
    process.commit(&machine, 8);
    process.flush().await;
    assert_eq!(process.status("generation"), 1);
    assert_eq!(process.status("diverged"), false);
    assert_eq!(process.status("discontinuities"), 0);
    process.kill().await;
    for txid in 0..=8 {
        assert_eq!(machine.restored(Target::Txid(Txid(txid))).await, txid as u8);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_merged_behind_the_note_is_not_adopted() {
    for merged in [4, 6] {
        let machine = machine(merged).await;
        let process = machine.start();
        process.flush().await;
        process.commit(&machine, 8);
        process.flush().await;
        assert_eq!(process.status("generation"), 2, "{merged}");
        assert_eq!(process.status("diverged"), true, "{merged}");
        assert_eq!(process.status("fenced"), false, "{merged}");
        process.kill().await;
        assert_eq!(machine.restored(Target::Newest).await, 8);
        for txid in 0..=3 {
            assert_eq!(machine.restored(Target::Txid(Txid(txid))).await, txid as u8);
        }
    }
}
