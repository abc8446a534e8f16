//! What the owner does for its replica.

use std::time::Duration;

use replvfs_vfs::types::Txid;

use super::machine::{Machine, Process};
use super::resuming::with_history;
use crate::config::Retention;
use crate::format::{Generation, Key};
use crate::history::Target;
use crate::pipeline::upkeep::Schedule;

fn machine(retention: Retention) -> Machine {
    let mut machine = Machine::new();
    machine.upkeep = Schedule {
        segments: 4,
        retention,
        grace: Duration::ZERO,
    };
    machine
}

/// Another image, behind what is there.
async fn image(machine: &Machine, process: &Process) {
    process.log.request_base();
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while machine.objects("/image/").await < 2 {
        process.capture.sync();
        assert!(
            tokio::time::Instant::now() < end,
            "no image: {}",
            process.replica.status()
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn is_there(machine: &Machine, key: Key) -> bool {
    machine.store().size(&key).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_deletes_what_is_out_of_the_window() {
    let machine = machine(Retention::For(Duration::from_millis(50)));
    let process = with_history(&machine, 1..=1).await;
    for value in 2..=3 {
        process.commit(&machine, value);
        process.flush().await;
    }
    image(&machine, &process).await;
    let (first_image, second) = (Key::Image(Generation(1), Txid(0)), Key::Log(Generation(1), Txid(2)));
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    let mut value = 4;
    while is_there(&machine, first_image).await || is_there(&machine, second).await {
        process.commit(&machine, value);
        process.flush().await;
        assert!(tokio::time::Instant::now() < end, "nothing was deleted");
        value = value % 200 + 1;
    }
    assert!(
        is_there(&machine, Key::Log(Generation(1), Txid(1))).await,
        "the first slot fences"
    );
    process.commit(&machine, 222);
    process.flush().await;
    assert_eq!(process.status("fenced"), false);
    assert_eq!(machine.restored(Target::Newest).await, 222);
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn for_ever_nothing_is_done() {
    let machine = machine(Retention::Forever);
    let process = with_history(&machine, 1..=1).await;
    image(&machine, &process).await;
    for value in 2..=20 {
        process.commit(&machine, value);
        process.flush().await;
    }
    assert_eq!(machine.objects("/log/").await, 20);
    assert_eq!(machine.objects("/image/").await, 2);
    process.kill().await;
}
