//! What the owner does for its replica, and that it ends with the ownership.

mod trouble;

use std::time::{Duration, Instant};

use replvfs_vfs::types::Txid;
use trouble::{Deletions, Trouble};

use super::machine::{Machine, Process};
use super::resuming::with_history;
use crate::config::Retention;
use crate::format::{Generation, Key};
use crate::history::Target;
use crate::pipeline::meters::Meters;
use crate::pipeline::upkeep::{Rule, Schedule, Upkeep};
use crate::store::{Body, Store};

fn machine(retention: Retention) -> Machine {
    let mut machine = Machine::new();
    let rule = Rule {
        segments: 4,
        deletes_every: Duration::ZERO,
        grace: Duration::ZERO,
        ..Rule::default()
    };
    machine.upkeep = Schedule::new(rule, retention);
    machine
}

/// Whose segments are merged by the pair, and deleted, which the store does not do as it should.
fn machine_in_trouble(deletions: Deletions) -> (Machine, Trouble) {
    let mut machine = Machine::new();
    let rule = Rule {
        segments: 4,
        deletes_every: Duration::ZERO,
        pieces: 2,
        merged_at_once: true,
        retention: Some(Retention::Forever),
        ..Rule::default()
    };
    machine.upkeep = Schedule::new(rule, Retention::Forever);
    let trouble = Trouble::new(deletions);
    machine.operator = Some(trouble.operator(&machine.replica()));
    (machine, trouble)
}

/// One that looks after its replica, and waits for the store's answer to a deletion.
async fn one_that_hangs() -> (Machine, Trouble, Process) {
    let (machine, trouble) = machine_in_trouble(Deletions::Hang);
    let process = with_history(&machine, 1..=1).await;
    for value in 2..=4 {
        process.commit(&machine, value);
        process.flush().await;
    }
    process.until("a deletion is asked for", |_| trouble.asked() > 0).await;
    assert!(process.shared.upkeep.is_running());
    (machine, trouble, process)
}

/// As if a segment had been on its way until now.
fn late_segments(machine: &Machine, process: &Process) {
    for _ in 0..20 {
        let shared = &process.shared;
        let last = shared.log.acked().unwrap_or_default();
        shared.upkeep.stored(
            &machine.upkeep,
            last,
            &shared.store,
            (&shared.database, &shared.meters.of),
        );
    }
}

async fn is_over(process: &Process) {
    process
        .until_without_locks("it ends", |process| !process.shared.upkeep.is_running())
        .await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_close_does_not_wait_for_it_and_ends_it() {
    let (machine, trouble, process) = one_that_hangs().await;
    process.commit(&machine, 5);
    let since = Instant::now();
    process.close();
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    process
        .until_without_locks("it is let go", |process| process.shared.is_standby())
        .await;
    is_over(&process).await;
    let asked = trouble.asked();
    late_segments(&machine, &process);
    assert!(!process.shared.upkeep.is_running());
    // Whoever comes next goes on with it.
    trouble.set(Deletions::Done);
    let next = machine.start();
    next.flush().await;
    for value in 6..=10 {
        next.commit(&machine, value);
        next.flush().await;
    }
    next.until("it is looked after again", |_| trouble.asked() > asked)
        .await;
    assert_eq!(next.status("generation"), 1);
    assert_eq!(machine.restored(Target::Newest).await, 10);
    next.kill().await;
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_begins_between_two_tenures() {
    let (machine, trouble, process) = one_that_hangs().await;
    // As when it lets go, after which it would soon take the lock again.
    process.shared.upkeep.pause();
    is_over(&process).await;
    let asked = trouble.asked();
    late_segments(&machine, &process);
    assert!(!process.shared.upkeep.is_running());
    assert_eq!(trouble.asked(), asked);
    process.shared.upkeep.begin();
    late_segments(&machine, &process);
    process.until("it goes on", |_| trouble.asked() > asked).await;
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_time_that_took_long_it_rests() {
    let (mut machine, trouble) = machine_in_trouble(Deletions::Done);
    machine.upkeep.rule.long = Duration::ZERO;
    machine.upkeep.rule.rests = 1_000_000;
    let process = with_history(&machine, 1..=1).await;
    for value in 2..=5 {
        process.commit(&machine, value);
        process.flush().await;
    }
    process.until("it is looked after", |_| trouble.asked() > 0).await;
    is_over(&process).await;
    let asked = trouble.asked();
    for value in 6..=20 {
        process.commit(&machine, value);
        process.flush().await;
        assert!(!process.shared.upkeep.is_running());
    }
    assert_eq!(trouble.asked(), asked);
    process.shared.upkeep.backdate(Duration::from_secs(365 * 24 * 60 * 60));
    late_segments(&machine, &process);
    process.until("it goes on", |_| trouble.asked() > asked).await;
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_fenced_or_has_failed_never_begins_again() {
    for is_fenced in [true, false] {
        let (machine, trouble, process) = one_that_hangs().await;
        if is_fenced {
            let next = Key::Log(Generation(1), Txid(5));
            let theirs = Body::Bytes("another writer's".into());
            machine.store().create(&next, theirs).await.unwrap();
            process.commit(&machine, 5);
            assert!(process.failure().await.contains("another writer"));
        } else {
            process.shared.fail("for a test");
        }
        is_over(&process).await;
        let asked = trouble.asked();
        late_segments(&machine, &process);
        process.shared.own();
        late_segments(&machine, &process);
        assert!(!process.shared.upkeep.is_running());
        assert_eq!(trouble.asked(), asked);
        process.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_deletions_is_asked_again_and_stops_nothing() {
    let (machine, trouble) = machine_in_trouble(Deletions::Refused);
    let process = with_history(&machine, 1..=1).await;
    for value in 2..=30 {
        process.commit(&machine, value);
        process.flush().await;
        if trouble.asked() > 0 {
            process
                .until("it says so", |process| process.shared.upkeep.problem().is_some())
                .await;
        }
    }
    let problem = process.shared.upkeep.problem().unwrap();
    assert!(
        problem.contains("deleting") && problem.contains("retention=forever"),
        "{problem}"
    );
    assert_eq!(process.shared.upkeep.told(), 1);
    // At each time once: nothing is deleted behind what was refused.
    let asked = trouble.asked();
    assert!((2..=8).contains(&asked), "{asked} times");
    assert_eq!(process.log.failure(), None);
    assert_eq!(process.status("last_error"), serde_json::Value::Null);
    let second = Key::Log(Generation(1), Txid(2));
    assert!(is_there(&machine, second).await);
    trouble.set(Deletions::Done);
    let mut value = 31;
    while is_there(&machine, second).await || process.shared.upkeep.problem().is_some() {
        process.commit(&machine, value);
        process.flush().await;
        value += 1;
        assert!(value < 200, "it was not tried again");
    }
    assert_eq!(machine.restored(Target::Newest).await, value - 1);
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_written_seldom_is_looked_after_every_hour() {
    let (mut machine, trouble) = machine_in_trouble(Deletions::Done);
    machine.upkeep.rule.segments = u64::MAX;
    let process = with_history(&machine, 1..=1).await;
    let mut value = 1;
    for hour in 1..=3 {
        let asked = trouble.asked();
        for _ in 0..6 {
            value += 1;
            process.commit(&machine, value);
            process.flush().await;
            assert!(!process.shared.upkeep.is_running());
        }
        assert_eq!(trouble.asked(), asked, "hour {hour}");
        process.shared.upkeep.backdate(Duration::from_secs(60 * 60));
        // Never by a timer.
        assert!(!process.shared.upkeep.is_running());
        value += 1;
        process.commit(&machine, value);
        process.flush().await;
        process.until("it is looked after", |_| trouble.asked() > asked).await;
        is_over(&process).await;
    }
    assert_eq!(machine.restored(Target::Newest).await, value);
    process.kill().await;
}

/// To find what is to be deleted all that is in the replica is listed.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_merged_often_is_deleted_seldom() {
    let (mut machine, trouble) = machine_in_trouble(Deletions::Done);
    machine.upkeep.rule.deletes_every = Rule::default().deletes_every;
    let process = with_history(&machine, 1..=1).await;
    let mut value = 1;
    let more = async |value: &mut u8| {
        for _ in 0..20 {
            *value += 1;
            process.commit(&machine, *value);
            process.flush().await;
            is_over(&process).await;
        }
        (trouble.asked(), machine.objects("/span/").await)
    };
    let (asked, spans) = more(&mut value).await;
    assert!(asked > 0, "the first time");
    let (asked_later, more_spans) = more(&mut value).await;
    assert_eq!(asked_later, asked);
    assert!(more_spans > spans, "{more_spans} spans after {spans}");
    // What is looked after every hour is deleted every hour.
    process.shared.upkeep.backdate(Duration::from_secs(60 * 60));
    assert!(more(&mut value).await.0 > asked);
    assert_eq!(machine.restored(Target::Newest).await, value);
    process.kill().await;
}

/// Connections that are closed after a transaction or two, in processes that end with them.
#[tokio::test(flavor = "multi_thread")]
async fn short_processes_take_turns() {
    let (machine, trouble) = machine_in_trouble(Deletions::Done);
    with_history(&machine, 1..=1).await.kill().await;
    for value in 2..=3 {
        let process = machine.start();
        process.commit(&machine, value);
        process.flush().await;
        assert!(!process.shared.upkeep.is_running());
        process.kill().await;
    }
    assert_eq!(trouble.asked(), 0);
    let process = machine.start();
    process.commit(&machine, 4);
    process.flush().await;
    process.until("it is its turn", |_| trouble.asked() > 0).await;
    process.kill().await;
}

/// The log of a generation that has ended before all of it was merged.
#[tokio::test(flavor = "multi_thread")]
async fn the_generation_before_is_merged_and_what_cannot_be_merged_keeps_nothing_from_being_deleted() {
    let (mut machine, trouble) = machine_in_trouble(Deletions::Done);
    machine.upkeep.rule.segments = u64::MAX;
    let process = with_history(&machine, 1..=1).await;
    for value in 2..=6 {
        process.commit(&machine, value);
        process.flush().await;
    }
    process.kill().await;
    machine.upkeep.rule.segments = 4;
    assert_eq!(machine.objects("/span/").await, 0);
    let newer = Key::Generation(Generation(2));
    machine
        .store()
        .create(&newer, Body::Bytes("damaged".into()))
        .await
        .unwrap();
    let store = Store::from_operator(machine.operator.clone().unwrap());
    let upkeep = Upkeep::default();
    upkeep.begin();
    upkeep.stored(&machine.upkeep, Txid(4), &store, ("a database", &Meters::default().of));
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while upkeep.is_running() {
        assert!(tokio::time::Instant::now() < end, "it does not end");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(machine.objects("/span/").await > 0);
    assert!(trouble.asked() > 0);
    let problem = upkeep.problem().unwrap();
    assert!(problem.contains("generation.json"), "{problem}");
    assert_eq!(upkeep.told(), 1);
}

/// In one thread, so that nothing comes between: a task that looks for what nobody wants, again and again, lets nobody else run.
#[test]
fn an_image_that_waits_at_the_last_close_is_dropped() {
    let (done, over) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let machine = Machine::new();
            let process = machine.start();
            process.commit(&machine, 1);
            process.flush().await;
            process.log.request_image();
            process.capture.sync();
            assert!(process.log.arm(0), "the image waits");
            process.shared.closed();
            process.shared.let_go_if_closed();
            process
                .until_without_locks("it is dropped", |process| !process.log.arm(0))
                .await;
            assert!(!process.shared.local.owns());
            // And what comes later is replicated as ever.
            process.shared.opened();
            process.commit(&machine, 2);
            process.flush().await;
            assert_eq!(machine.restored(Target::Newest).await, 2);
        });
        done.send(()).unwrap();
    });
    let ended = over.recv_timeout(Duration::from_secs(60));
    ended.expect("nobody else gets to run");
}

/// In one thread: the task that would do it gets no turn.
#[tokio::test]
async fn a_standby_that_is_closed_forgets_what_it_captured() {
    let machine = Machine::new();
    let owner = machine.start();
    owner.commit(&machine, 1);
    owner.flush().await;
    let standby = machine.start();
    assert!(!standby.replica.owns());
    standby.commit(&machine, 2);
    assert!(standby.log.pending().items > 0);
    standby.replica.closed();
    assert_eq!(standby.log.pending().items, 0);
    owner.capture.sync();
    owner.flush().await;
    assert_eq!(machine.restored(Target::Newest).await, 2);
}
