//! A process ends, and another goes on: each row of the tables in ARCHITECTURE.md, "Resuming".

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use replvfs_vfs::resume::{Left, Mark, Next};
use replvfs_vfs::transaction::Transaction;
use replvfs_vfs::types::{Salts, Txid};

use super::machine::{Machine, PAGE, Process, Wal};
use crate::format::{Generation, GenerationMeta, Key, LocalState, ObjectHash, STATE_SLOT_BYTES};
use crate::history::Target;
use crate::pipeline::missing::restore_if_missing;
use crate::pipeline::sealer;
use crate::restore::{RestoreOptions, restore};
use crate::store::{Body, Created, Store, StoreOptions};

pub(super) async fn with_history(machine: &Machine, commits: impl IntoIterator<Item = u8>) -> Process {
    let process = machine.start();
    process.capture.sync();
    for value in commits {
        process.commit(machine, value);
    }
    process.flush().await;
    process
}

pub(super) async fn every_commit_is_there(machine: &Machine, last: u8) {
    for txid in 0..=last {
        assert_eq!(machine.restored(Target::Txid(Txid(txid.into()))).await, txid);
    }
    assert_eq!(machine.restored(Target::Newest).await, last);
}

/// What a process had on its way to the store: the transactions of a WAL in this range.
async fn lands(machine: &Machine, wal: &Wal, range: std::ops::RangeInclusive<u64>, previous: ObjectHash) -> ObjectHash {
    let wanted: Vec<Arc<Transaction>> = wal
        .transactions(0, -7)
        .into_iter()
        .filter(|transaction| range.contains(&transaction.txid.0))
        .map(Arc::new)
        .collect();
    let segment = sealer::seal(&wanted, Generation(1), previous, Path::new("/tmp")).unwrap();
    let key = Key::Log(Generation(1), Txid(*range.start()));
    let created = machine.store().create(&key, segment.body).await.unwrap();
    assert_eq!(created, Created::New);
    segment.hash
}

pub(super) fn wal_of(machine: &Machine) -> Wal {
    machine.wal.lock().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_goes_on_after_its_process_was_killed() {
    for machine in Machine::both("goes-on") {
        let mut last = 0;
        for round in 0..4 {
            let process = with_history(&machine, last + 1..=last + 3).await;
            last += 3;
            // Not uploaded.
            machine.commit(last + 1);
            last += 1;
            assert_eq!(process.status("generation"), 1, "round {round}");
            process.kill().await;
        }
        with_history(&machine, last + 1..=last).await.kill().await;
        assert_eq!(machine.objects("/image/").await, 1);
        every_commit_is_there(&machine, last).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_uploaded_without_being_noted_is_adopted() {
    // Up to where the dead process had got, and how many segments that was.
    for (name, ends, segment_size) in [
        ("inside", vec![4], 1 << 20),
        ("at", vec![6], 1 << 20),
        ("beyond", vec![6], 1),
        ("several", vec![3, 5], 1 << 20),
    ] {
        for machine in Machine::both(&format!("adopted-{name}")) {
            with_history(&machine, 1..=2).await.kill().await;
            for value in 3..=6 {
                machine.commit(value);
            }
            let mut previous = machine.state().previous;
            let mut first = 3;
            for end in ends.clone() {
                previous = lands(&machine, &wal_of(&machine), first..=end, previous).await;
                first = end + 1;
            }
            let process = machine.start_with(segment_size, |_| {});
            process.flush().await;
            process.commit(&machine, 7);
            process.flush().await;
            assert_eq!(process.status("generation"), 1, "{name}");
            assert_eq!(process.status("diverged"), false);
            assert_eq!(process.status("discontinuities"), 0);
            assert_eq!(machine.state().stored.txid, Txid(7));
            process.kill().await;
            every_commit_is_there(&machine, 7).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_lands_late_is_adopted() {
    for machine in Machine::both("late") {
        with_history(&machine, 1..=2).await.kill().await;
        let previous = machine.state().previous;
        let process = machine.start();
        process.flush().await;
        assert_eq!(process.log.acked(), Some(Txid(2)));
        // The store was asked already. Now the dead process's upload is there after all, with what it had committed.
        machine.commit(3);
        lands(&machine, &wal_of(&machine), 3..=3, previous).await;
        process.commit(&machine, 4);
        process.flush().await;
        assert_eq!(process.status("generation"), 1);
        process.kill().await;
        every_commit_is_there(&machine, 4).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_wrote_is_never_adopted() {
    for (name, wal, own_previous) in [
        // The same numbers in a copy of the database that went another way.
        ("content", vec![1, 2, 9], true),
        // A part of it is ours, the last is not.
        ("end", vec![1, 2, 3, 9], true),
        // More than this database has.
        ("longer", vec![1, 2, 3, 4, 5], true),
        // Our transactions, on something else.
        ("previous", vec![1, 2, 3], false),
    ] {
        for machine in Machine::both(&format!("foreign-{name}")) {
            with_history(&machine, 1..=2).await.kill().await;
            machine.commit(3);
            machine.commit(4);
            let mut theirs = wal_of(&machine);
            theirs.commits = wal.clone();
            let previous = if own_previous {
                machine.state().previous
            } else {
                ObjectHash([1; 32])
            };
            lands(&machine, &theirs, 3..=wal.len() as u64, previous).await;
            let process = machine.start();
            process.flush().await;
            assert_eq!(process.status("generation"), 2, "{name}");
            assert_eq!(process.status("diverged"), true);
            assert_eq!(process.status("discontinuities"), 1);
            process.commit(&machine, 5);
            process.flush().await;
            let meta = machine.store().read(&Key::Generation(Generation(2))).await.unwrap();
            let parent = GenerationMeta::from_bytes(&meta).unwrap().parent.unwrap();
            assert_eq!((parent.generation, parent.txid), (Generation(1), Txid(2)));
            process.kill().await;
            assert_eq!(machine.restored(Target::Newest).await, 5);
            assert_eq!(machine.restored(Target::Txid(Txid(2))).await, 2);
            // The new generation is where it goes on.
            let process = with_history(&machine, 6..=6).await;
            assert_eq!(process.status("generation"), 2);
            process.kill().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_that_are_not_of_a_wal_prove_nothing() {
    let transactions = |seen_by| {
        let mut wal = Wal::new(1, 0);
        wal.commits = vec![1];
        let mut transactions = wal.transactions(0, seen_by);
        transactions[0].end = Default::default();
        transactions.into_iter().map(Arc::new).collect::<Vec<_>>()
    };
    let header = |transactions: &[Arc<Transaction>]| {
        let mut writer = crate::format::SegmentWriter::new(
            Vec::new(),
            crate::format::SegmentHeader {
                generation: Generation(1),
                page_size: super::machine::page_size(),
                first: Txid(1),
                last: Txid(1),
                start: Default::default(),
                end: Default::default(),
                previous: ObjectHash([0; 32]),
            },
            1,
        )
        .unwrap();
        writer
            .begin(crate::format::TransactionHeader {
                committed_at: transactions[0].committed_at,
                page_count: 2,
                end: Default::default(),
            })
            .unwrap();
        writer.finish().unwrap().0
    };
    let object = header(&transactions(1));
    let index = crate::format::SegmentIndex::from_object(&object).unwrap();
    assert!(crate::pipeline::adopt::prove(&index, &transactions(2)).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_segment_of_its_own_a_process_knows_another_writer() {
    for machine in Machine::both("fenced") {
        let process = with_history(&machine, 1..=2).await;
        process.kill().await;
        let process = with_history(&machine, 3..=3).await;
        let next = Key::Log(Generation(1), Txid(4));
        let foreign = Body::Bytes(Bytes::from_static(b"not even a segment"));
        machine.store().create(&next, foreign).await.unwrap();
        process.commit(&machine, 4);
        let reason = process.failure().await;
        assert!(reason.contains("another writer"), "{reason}");
        process
            .until("it lets go", |process| !process.shared.local.owns())
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_state_file_is_as_none_and_the_wal_still_proves() {
    for machine in Machine::both("damaged") {
        with_history(&machine, 1..=3).await.kill().await;
        let mut bytes = std::fs::read(machine.state_file()).unwrap();
        for slot in bytes.chunks_mut(STATE_SLOT_BYTES) {
            slot[200] ^= 1;
        }
        std::fs::write(machine.state_file(), bytes).unwrap();
        let process = with_history(&machine, 4..=5).await;
        assert_eq!(process.status("generation"), 1);
        assert_eq!(machine.state().stored.txid, Txid(5));
        process.kill().await;
        assert_eq!(machine.objects("/image/").await, 1);
        every_commit_is_there(&machine, 5).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_damaged_slot_costs_nothing() {
    for machine in Machine::both("slot") {
        let process = with_history(&machine, 1..=3).await;
        process.commit(&machine, 4);
        process.flush().await;
        process.kill().await;
        let newest = machine.state();
        let at = LocalState::offset(newest.sequence) as usize;
        let mut bytes = std::fs::read(machine.state_file()).unwrap();
        bytes[at + 50] ^= 1;
        std::fs::write(machine.state_file(), bytes).unwrap();
        assert!(machine.state().sequence < newest.sequence);
        let process = with_history(&machine, 5..=5).await;
        assert_eq!(process.status("generation"), 1);
        process.kill().await;
        every_commit_is_there(&machine, 5).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_note_and_without_proof_a_history_is_anothers() {
    for machine in Machine::both("anothers") {
        with_history(&machine, 1..=3).await.kill().await;
        std::fs::remove_file(machine.state_file()).unwrap();
        *machine.wal.lock().unwrap() = Wal::new(2, 3);
        let process = machine.start();
        process.commit(&machine, 4);
        let reason = process.failure().await;
        assert!(reason.contains("another database's history"), "{reason}");
        assert!(reason.contains("replica of its own"), "{reason}");
        process.kill().await;
        assert_eq!(machine.objects("generation.json").await, 1);
        assert_eq!(machine.restored(Target::Newest).await, 3);
        assert!(!machine.state_file().exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_file_begins_a_generation_of_its_own() {
    for machine in Machine::both("new-file") {
        with_history(&machine, 1..=3).await.kill().await;
        *machine.wal.lock().unwrap() = Wal::new(2, 100);
        let process = machine.start_with(1 << 20, |shared| shared.local.is_new());
        process.capture.sync();
        process.commit(&machine, 101);
        process.flush().await;
        assert_eq!(process.status("generation"), 2);
        // Numbers of the old history are not used again.
        assert_eq!(process.status("txid"), 5);
        let meta = machine.store().read(&Key::Generation(Generation(2))).await.unwrap();
        let meta = GenerationMeta::from_bytes(&meta).unwrap();
        assert_eq!((meta.parent, meta.first_image), (None, Txid(4)));
        process.kill().await;
        assert_eq!(machine.restored(Target::Txid(Txid(4))).await, 100);
        let process = with_history(&machine, 102..=102).await;
        assert_eq!(process.status("generation"), 2);
        process.kill().await;
    }
}

/// The file was missing when it was opened, but it was another process that made it and replicated it.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_another_process_made_is_not_new() {
    for machine in Machine::both("not-new") {
        let early = machine.start_undecided(|shared| shared.local.is_new());
        with_history(&machine, 1..=3).await.kill().await;
        early.capture.sync();
        early.commit(&machine, 4);
        early.flush().await;
        assert_eq!(early.status("generation"), 1);
        early.kill().await;
        every_commit_is_there(&machine, 4).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_does_not_wait_for_a_base_that_cannot_come() {
    let machine = Machine::new();
    let process = with_history(&machine, 1..=2).await;
    process.shared.status.image(crate::pipeline::status::Image::Stored);
    process
        .log
        .push_transaction(wal_of(&machine).transactions(5, 0).remove(0));
    process
        .until_without_locks("there is a gap", |process| process.log.base_wanted())
        .await;
    let started = std::time::Instant::now();
    assert!(!tokio::task::block_in_place(|| process.replica.drain()));
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "it waited for close_timeout"
    );
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_writes_break_the_history_and_its_numbers_go_on() {
    for machine in Machine::both("broken") {
        with_history(&machine, 1..=2).await.kill().await;
        // Two more had landed without being noted, and then somebody without replvfs restarted the WAL.
        machine.commit(3);
        machine.commit(4);
        lands(&machine, &wal_of(&machine), 3..=4, machine.state().previous).await;
        *machine.wal.lock().unwrap() = Wal::new(9, 50);
        let process = machine.start();
        process.commit(&machine, 51);
        process.flush().await;
        assert_eq!(process.status("generation"), 2);
        assert_eq!(process.status("discontinuities"), 1);
        assert_eq!(process.status("diverged"), false);
        let meta = machine.store().read(&Key::Generation(Generation(2))).await.unwrap();
        let meta = GenerationMeta::from_bytes(&meta).unwrap();
        assert_eq!(meta.parent.unwrap().txid, Txid(4));
        assert_eq!(meta.first_image, Txid(5));
        process.kill().await;
        for (txid, value) in [(3, 3), (4, 4), (5, 51)] {
            assert_eq!(machine.restored(Target::Txid(Txid(txid))).await, value);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_note_of_a_wal_that_ended_leads_to_the_next() {
    for machine in Machine::both("left") {
        let process = with_history(&machine, 1..=3).await;
        let position = machine.state().stored.position;
        let mark = Mark {
            txid: Txid(3),
            position,
        };
        let next = Next::Wal(Salts(8, 8));
        assert!(process.replica.left(&Left { mark, next }));
        process.kill().await;
        *machine.wal.lock().unwrap() = Wal::new(8, 3);
        let process = with_history(&machine, 4..=5).await;
        assert_eq!(process.status("generation"), 1);
        // What came before the stored transactions is not needed any more.
        assert_eq!(machine.state().left, None);
        process.kill().await;
        every_commit_is_there(&machine, 5).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_emptied_gets_a_new_history() {
    for what in ["", "gen", "gen/0000000000000001/generation.json", "log"] {
        let machine = Machine::new();
        with_history(&machine, 1..=3).await.kill().await;
        let gone = match what {
            "log" => machine.replica().join("gen/0000000000000001/log"),
            what => machine.replica().join(what),
        };
        if gone.is_dir() {
            std::fs::remove_dir_all(&gone).unwrap();
        } else {
            std::fs::remove_file(&gone).unwrap();
            std::fs::remove_dir_all(machine.replica().join("gen/0000000000000001/log")).unwrap();
            std::fs::remove_dir_all(machine.replica().join("gen/0000000000000001/image")).unwrap();
        }
        let process = with_history(&machine, 4..=5).await;
        assert_eq!(process.status("discontinuities"), 1, "{what}");
        assert_eq!(process.log.acked(), Some(Txid(5)));
        process.kill().await;
        assert_eq!(machine.restored(Target::Newest).await, 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_interrupted_is_made_in_its_generation() {
    let machine = Machine::new();
    with_history(&machine, 1..=3).await.kill().await;
    std::fs::remove_dir_all(machine.replica().join("gen/0000000000000001/image")).unwrap();
    let process = with_history(&machine, 4..=5).await;
    assert_eq!(process.status("generation"), 1);
    assert_eq!(process.status("image"), "stored");
    process.kill().await;
    assert_eq!(machine.objects("/image/").await, 1);
    assert_eq!(machine.restored(Target::Newest).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_is_only_named_is_what_a_crash_left() {
    for machine in Machine::both("named") {
        with_history(&machine, 1..=2).await.kill().await;
        let meta = machine.store().read(&Key::Generation(Generation(1))).await.unwrap();
        let mut meta = GenerationMeta::from_bytes(&meta).unwrap();
        meta.generation = Generation(2);
        let body = Body::Bytes(meta.to_bytes().unwrap().into());
        machine
            .store()
            .create(&Key::Generation(Generation(2)), body)
            .await
            .unwrap();
        let process = with_history(&machine, 3..=3).await;
        assert_eq!(process.status("generation"), 1);
        assert_eq!(process.status("diverged"), false);
        process.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_generation_of_anothers_is_a_divergence() {
    for machine in Machine::both("newer") {
        let process = with_history(&machine, 1..=2).await;
        process.kill().await;
        let state = std::fs::read(machine.state_file()).unwrap();
        // A copy of the folder went on with something else.
        let wal = machine.wal.lock().unwrap().clone();
        *machine.wal.lock().unwrap() = Wal::new(3, 77);
        let process = with_history(&machine, 78..=78).await;
        assert_eq!(process.status("generation"), 2);
        process.kill().await;
        std::fs::write(machine.state_file(), state).unwrap();
        *machine.wal.lock().unwrap() = wal;
        let process = with_history(&machine, 3..=3).await;
        assert_eq!(process.status("generation"), 3);
        assert_eq!(process.status("diverged"), true);
        process.kill().await;
        assert_eq!(machine.restored(Target::Newest).await, 3);
        assert_eq!(machine.restored(Target::Txid(Txid(1))).await, 1);
    }
}

/// As after a restore to a transaction inside of a segment: its successor's slot is free in the store, and must not be taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_inside_of_a_segment_is_a_divergence() {
    for machine in Machine::both("inside") {
        let process = machine.start();
        process.capture.sync();
        process.flush().await;
        for value in 1..=5 {
            machine.commit(value);
        }
        process.flush().await;
        process.kill().await;
        let mut state = machine.state();
        assert_eq!((state.slot, state.stored.txid), (Some(Txid(1)), Txid(5)));
        let wal = wal_of(&machine);
        state.stored = Mark {
            txid: Txid(3),
            position: wal.transactions(0, 0)[2].end,
        };
        state.sequence += 1;
        let file = crate::local_state::open(&machine.state_file()).unwrap();
        crate::local_state::write(&file, &state).unwrap();
        machine.wal.lock().unwrap().commits.truncate(3);
        let process = with_history(&machine, 14..=14).await;
        assert_eq!(process.status("generation"), 2);
        assert_eq!(process.status("diverged"), true);
        process.kill().await;
        assert_eq!(machine.restored(Target::Newest).await, 14);
        assert_eq!(machine.restored(Target::Txid(Txid(3))).await, 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_databases_replica_is_left_alone() {
    let machine = Machine::new();
    with_history(&machine, 1..=2).await.kill().await;
    let other = Machine::new();
    with_history(&other, 1..=1).await.kill().await;
    // Somebody put another replica in its place.
    std::fs::remove_dir_all(machine.replica()).unwrap();
    std::fs::rename(other.replica(), machine.replica()).unwrap();
    let process = machine.start();
    process.commit(&machine, 3);
    let reason = process.failure().await;
    assert!(reason.contains("another database"), "{reason}");
    assert!(reason.contains("app.db-replvfs"), "{reason}");
    process.kill().await;
    assert_eq!(machine.objects("/log/").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_of_another_replica_counts_for_nothing() {
    let mut machine = Machine::new();
    with_history(&machine, 1..=2).await.kill().await;
    let before = machine.state();
    machine.uri = "memory://machine-moved".to_owned();
    let process = with_history(&machine, 3..=3).await;
    let after = machine.state();
    assert_ne!(before.place, after.place);
    assert_eq!(
        (after.generation, process.status("discontinuities")),
        (Generation(1), 0.into())
    );
    process.kill().await;
    assert_eq!(machine.restored(Target::Newest).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_of_a_newer_release_is_not_touched() {
    let machine = Machine::new();
    let text = "{\n  \"format\": 2,\n";
    let newer = format!("{text}  \"crc32\": \"{:08x}\"\n}}\n", crc32fast::hash(text.as_bytes()));
    std::fs::write(machine.state_file(), &newer).unwrap();
    let process = machine.start();
    let reason = process.failure().await;
    assert!(
        reason.contains("version 2") && reason.contains("app.db-replvfs"),
        "{reason}"
    );
    process.kill().await;
    assert_eq!(std::fs::read_to_string(machine.state_file()).unwrap(), newer);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_and_the_history_goes_on() {
    for machine in Machine::both("standby") {
        let owner = with_history(&machine, 1..=2).await;
        let standby = machine.start();
        assert!(!standby.replica.owns() && owner.replica.owns());
        assert!(!standby.replica.take_over());
        owner.commit(&machine, 3);
        owner.close();
        // Without a commit, by its timer.
        standby.until("it takes over", |process| process.replica.owns()).await;
        standby.flush().await;
        standby.commit(&machine, 4);
        standby.flush().await;
        assert_eq!(standby.status("generation"), 1);
        // The other one comes back, and finds that it is not the owner any more, then that the history went on.
        owner.shared.opened();
        assert!(!owner.replica.owns());
        standby.close();
        owner.until("it takes over", |process| process.replica.owns()).await;
        assert!(owner.log.wanted_for_test().is_some());
        owner.capture.restarted();
        owner.commit(&machine, 5);
        owner.flush().await;
        assert_eq!(owner.status("generation"), 1);
        owner.kill().await;
        standby.kill().await;
        assert_eq!(machine.objects("/image/").await, 1);
        every_commit_is_there(&machine, 5).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_opens_again_goes_on_by_itself() {
    let machine = Machine::new();
    let process = with_history(&machine, 1..=2).await;
    process.close();
    // At once, or when the last image is done.
    process
        .until("it lets go", |process| !process.shared.local.owns())
        .await;
    process.shared.opened();
    assert!(process.replica.owns());
    assert_eq!(process.log.wanted_for_test(), None);
    process.commit(&machine, 3);
    process.flush().await;
    process.kill().await;
    every_commit_is_there(&machine, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_processes_commit_is_looked_for() {
    let machine = Machine::new();
    let process = with_history(&machine, 1..=2).await;
    machine.commit(3);
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while process.log.acked() != Some(Txid(3)) {
        assert!(tokio::time::Instant::now() < end, "nobody looked");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_limit_there_is_one_discontinuity() {
    let machine = Machine::new();
    let process = with_history(&machine, 1..=2).await;
    process.capture.suspend();
    machine.commit(3);
    assert!(process.replica.drain(), "nothing is kept for the store any more");
    process.until("it goes on", |process| !process.log.is_suspended()).await;
    process.flush().await;
    process.commit(&machine, 4);
    process.flush().await;
    assert_eq!(process.status("discontinuities"), 1);
    process.kill().await;
    assert_eq!(machine.restored(Target::Newest).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_waits_for_the_store_and_no_longer() {
    let machine = Machine::new();
    let process = with_history(&machine, 1..=2).await;
    process.commit(&machine, 3);
    assert!(tokio::task::block_in_place(|| process.replica.drain()));
    assert_eq!(process.log.acked(), Some(Txid(3)));
    process.kill().await;
}

#[test]
fn the_place_of_a_replica_is_not_told() {
    let store = Store::open("memory://place-of-secret", &StoreOptions::default()).unwrap();
    let place = crate::format::Place::of(store.place()).to_string();
    assert!(place.len() == 64 && !place.contains("secret"));
}

pub(super) async fn restore_to(machine: &Machine, target: Target) {
    let options = RestoreOptions {
        target,
        force: true,
        resumable: true,
        ..RestoreOptions::default()
    };
    let restored = restore(&machine.writers_store(), &machine.database(), &options)
        .await
        .unwrap();
    let value = std::fs::read(machine.database()).unwrap()[PAGE];
    assert_eq!(u64::from(value), restored.txid.0);
    *machine.wal.lock().unwrap() = Wal::new(77, value);
}

fn open_missing(machine: &Machine) -> Result<(), String> {
    let runtime = tokio::runtime::Handle::current();
    let timeout = Duration::from_secs(20);
    tokio::task::block_in_place(|| restore_if_missing(&runtime, &machine.database(), &machine.store(), timeout))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_is_restored_and_its_history_goes_on() {
    for machine in Machine::both("missing") {
        with_history(&machine, 1..=3).await.kill().await;
        for (round, is_there) in [(4, false), (5, true)] {
            std::fs::remove_file(machine.database()).unwrap();
            std::fs::remove_file(machine.state_file()).unwrap();
            if is_there {
                std::fs::write(machine.database(), b"").unwrap();
            }
            open_missing(&machine).unwrap();
            let value = std::fs::read(machine.database()).unwrap()[PAGE];
            assert_eq!(value, round - 1);
            *machine.wal.lock().unwrap() = Wal::new(round.into(), value);
            let process = with_history(&machine, round..=round).await;
            assert_eq!(process.status("generation"), 1);
            process.kill().await;
        }
        assert_eq!(machine.objects("/image/").await, 1);
        every_commit_is_there(&machine, 5).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_written_after_its_restore_is_not_the_restored_one() {
    let machine = Machine::new();
    with_history(&machine, 1..=3).await.kill().await;
    restore_to(&machine, Target::Newest).await;
    // By somebody without replvfs, at once, and without a change of its size.
    let bytes = std::fs::read(machine.database()).unwrap();
    std::fs::write(machine.database(), bytes).unwrap();
    let process = with_history(&machine, 4..=4).await;
    assert_eq!(process.status("generation"), 2);
    assert_eq!(process.status("discontinuities"), 1);
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_made_of_an_empty_replica() {
    for machine in Machine::both("empty") {
        std::fs::remove_file(machine.database()).unwrap();
        open_missing(&machine).unwrap();
        assert!(!machine.database().exists() && !machine.state_file().exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wal_without_its_database_is_not_removed() {
    let machine = Machine::new();
    with_history(&machine, 1..=3).await.kill().await;
    std::fs::remove_file(machine.database()).unwrap();
    let wal = machine.database().with_file_name("app.db-wal");
    std::fs::write(&wal, b"frames").unwrap();
    let refused = open_missing(&machine).unwrap_err();
    assert!(refused.contains("app.db-wal"), "{refused}");
    assert!(wal.exists() && !machine.database().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_read_makes_the_open_fail() {
    let machine = Machine::new();
    with_history(&machine, 1..=3).await.kill().await;
    std::fs::remove_file(machine.database()).unwrap();
    let image = machine.replica().join(Key::Image(Generation(1), Txid(0)).path());
    std::fs::write(image, b"damaged").unwrap();
    let refused = open_missing(&machine).unwrap_err();
    assert!(
        refused.contains("restore=never") && refused.contains("image"),
        "{refused}"
    );
    assert!(!machine.database().exists());
}

/// Whoever goes back in time, and writes there, makes another history.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_state_that_is_written_is_a_generation_of_its_own() {
    // At the end of a segment, and inside of one.
    for txid in [2, 4] {
        let machine = Machine::new();
        with_history(&machine, 1..=2).await.kill().await;
        for value in 3..=5 {
            machine.commit(value);
        }
        with_history(&machine, 6..=6).await.kill().await;
        restore_to(&machine, Target::Txid(Txid(txid))).await;
        let process = with_history(&machine, 100..=100).await;
        assert_eq!(process.status("generation"), 2, "{txid}");
        assert_eq!(process.status("diverged"), true);
        process.kill().await;
        let meta = machine.store().read(&Key::Generation(Generation(2))).await.unwrap();
        assert_eq!(
            GenerationMeta::from_bytes(&meta).unwrap().parent.unwrap().txid,
            Txid(txid)
        );
        assert_eq!(machine.restored(Target::Newest).await, 100);
        assert_eq!(u64::from(machine.restored(Target::Txid(Txid(txid))).await), txid);
    }
}
