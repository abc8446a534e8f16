//! The parts of the pipeline against stores in memory and in folders. The whole way, with SQLite, is tested in `tests/`.

mod again;
mod fencing;
mod machine;
mod merged;
mod met;
mod resuming;
mod stopping;
mod strays;
mod turn;
mod upkeep;
mod vanishing;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use replvfs_vfs::api::SqliteApi;
use replvfs_vfs::held::DatabaseFile;
use replvfs_vfs::host::{FlushError, Host, OpenRequest, Replica};
use replvfs_vfs::log::Log;
use replvfs_vfs::resume::{Mark, Resume};
use replvfs_vfs::transaction::Transaction;
use replvfs_vfs::types::{PageSize, Pgno, Position, Txid};

use super::generation::{Begun, begin, end_newest, ensure};
use super::replica::{DatabaseReplica, Patience};
use super::sealer;
use super::shared::Shared;
use super::uploader::{Owner, Uploader};
use super::{ReplicatingHost, Stopped};
use crate::config::Config;
use crate::format::{Generation, GenerationMeta, Key, ObjectHash, Parent, ReplicaMeta, SegmentIndex};
use crate::history::walk::{Slot, slot_end};
use crate::metrics::Metrics;
use crate::store::{Body, Store, StoreOptions};

fn uploader(store: Store) -> Uploader {
    Uploader::new(Arc::new(Shared::new(Log::new(), store, Path::new("/srv/app.db"))))
}

fn memory(name: &str) -> Uploader {
    uploader(Store::open(&format!("memory://pipeline-{name}"), &StoreOptions::default()).expect("opens"))
}

fn page_size() -> PageSize {
    PageSize::new(4096).expect("a page size")
}

fn transactions(count: u64, pages: u32) -> Vec<Arc<Transaction>> {
    let mut start = Position::default();
    (1..=count)
        .map(|txid| {
            let content: Vec<_> = (1..=pages)
                .map(|pgno| {
                    (
                        Pgno::new(pgno).expect("a page"),
                        vec![(txid as u8) ^ (pgno as u8); 4096],
                    )
                })
                .collect();
            let transaction = Transaction::for_test(Txid(txid), page_size(), pages, &content, start);
            start = transaction.end;
            Arc::new(transaction)
        })
        .collect()
}

async fn begun(uploader: &Uploader, parent: Option<Parent>, first_image: Txid) -> Result<Begun, Stopped> {
    let ended = end_newest(uploader, None).await?;
    begin(uploader, ended, parent, page_size(), first_image).await
}

#[tokio::test]
async fn writers_of_one_replica_get_different_generations() {
    let (one, two) = (memory("generations"), memory("generations"));
    for uploader in [&one, &two, &one] {
        ensure(uploader).await.expect("attaches");
    }
    let parent = Parent {
        generation: Generation(1),
        txid: Txid(4),
    };
    let first = begun(&one, None, Txid(0)).await.expect("begins");
    let both = tokio::join!(begun(&one, Some(parent), Txid(5)), begun(&two, None, Txid(0)));
    let (second, third) = (both.0.expect("begins"), both.1.expect("begins"));
    let mut numbers = [first, second, third].map(|begun| begun.generation.0);
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3]);
    let store = &one.shared().store;
    let bytes = store.read(&Key::Generation(second.generation)).await.expect("reads");
    assert_eq!(second.root, GenerationMeta::root(&bytes));
    let meta = GenerationMeta::from_bytes(&bytes).expect("valid");
    assert_eq!((meta.parent, meta.first_image), (Some(parent), Txid(5)));
    for number in 1..=3 {
        let begun = [first, second, third]
            .into_iter()
            .find(|begun| begun.generation.0 == number);
        let begun = begun.expect("one of them");
        let bytes = store.read(&Key::Generation(begun.generation)).await.expect("reads");
        let slot = GenerationMeta::from_bytes(&bytes).expect("valid").first_image.next();
        match slot_end(store, Key::Log(begun.generation, slot)).await.expect("reads") {
            Some(Slot::Seal(seal)) => assert_eq!((seal.previous, number < 3), (begun.root, true)),
            Some(Slot::Segment(_)) => panic!("nobody wrote one"),
            None => assert_eq!(number, 3, "its writer could go on beside the next one"),
        }
    }
    ReplicaMeta::from_bytes(&store.read(&Key::Replica).await.expect("reads")).expect("valid");
}

#[tokio::test]
async fn a_replica_of_another_release_is_left_alone() {
    let uploader = memory("newer");
    let shared = uploader.shared();
    let newer = Bytes::from_static(br#"{"format":99}"#);
    shared
        .store
        .create(&Key::Replica, Body::Bytes(newer))
        .await
        .expect("creates");
    assert_eq!(ensure(&uploader).await, Err(Stopped));
    let reason = shared.log.failure().expect("failed");
    assert!(
        reason.contains("version 99") && reason.contains("memory://"),
        "{reason}"
    );
}

#[tokio::test]
async fn an_object_of_ours_is_told_from_anothers() {
    let uploader = memory("owner");
    let key = Key::Log(Generation(1), Txid(1));
    let ours = Body::Bytes(Bytes::from_static(b"ours"));
    for _ in 0..2 {
        assert_eq!(uploader.create(key, &ours).await, Ok(Owner::Us));
    }
    let theirs = Body::Bytes(Bytes::from_static(b"their"));
    assert_eq!(uploader.create(key, &theirs).await, Ok(Owner::Another));
}

/// Its time may be minutes.
#[tokio::test(start_paused = true)]
async fn a_store_that_says_nothing_is_told_of_before_its_time_is_over() {
    let uploader = memory("silent");
    let trouble = || uploader.shared().status.current_trouble();
    let late = async || {
        tokio::time::sleep(Duration::from_secs(60)).await;
        Ok::<_, crate::store::StoreError>(trouble())
    };
    let told = uploader.until_answered(late).await.expect("answers");
    assert!(told.is_some_and(|told| told.contains("has not answered for 30 s")));
    assert_eq!(trouble(), None, "it is over");
}

#[tokio::test]
async fn an_upload_outlasts_a_store_that_is_away() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("replica");
    let store = Store::open(&format!("fs://{}", root.display()), &StoreOptions::default()).expect("opens");
    std::fs::remove_dir(&root).expect("removes");
    let uploader = uploader(store);
    let shared = Arc::clone(uploader.shared());
    let body = Body::Bytes(Bytes::from_static(b"x"));
    let upload = tokio::spawn(async move { uploader.create(Key::Replica, &body).await });
    while shared.status.current_trouble().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(
        shared.status().contains("the replica's folder is gone"),
        "{}",
        shared.status()
    );
    std::fs::create_dir(&root).expect("comes back");
    let _waiting = shared.wait_for_upload();
    assert_eq!(upload.await.expect("runs"), Ok(Owner::Us));
    assert_eq!(shared.status.current_trouble(), None);
}

#[tokio::test]
async fn a_failed_log_ends_an_upload() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("replica");
    let store = Store::open(&format!("fs://{}", root.display()), &StoreOptions::default()).expect("opens");
    std::fs::remove_dir(&root).expect("removes");
    let uploader = uploader(store);
    uploader.shared().fail("a reason");
    let body = Body::Bytes(Bytes::from_static(b"x"));
    assert_eq!(uploader.create(Key::Replica, &body).await, Err(Stopped));
}

#[test]
fn small_and_large_segments_have_the_same_form() {
    let folder = tempfile::tempdir().expect("a folder");
    for (count, pages, in_file) in [(3, 2, false), (5, 1000, true)] {
        let transactions = transactions(count, pages);
        let previous = ObjectHash([9; 32]);
        let segment = sealer::seal(&transactions, Generation(7), previous, folder.path()).expect("seals");
        let bytes = match &segment.body {
            Body::Bytes(bytes) => bytes.to_vec(),
            Body::File(file, len) => {
                use std::io::{Read, Seek, SeekFrom};
                let mut file = file.try_clone().expect("clones");
                let mut bytes = Vec::new();
                file.seek(SeekFrom::Start(0)).expect("seeks");
                file.read_to_end(&mut bytes).expect("reads");
                assert_eq!(bytes.len() as u64, *len);
                bytes
            }
        };
        assert_eq!(matches!(segment.body, Body::File(..)), in_file);
        assert_eq!(segment.hash, ObjectHash::of(&bytes));
        let index = SegmentIndex::from_object(&bytes).expect("valid");
        assert_eq!(index.header().previous, previous);
        assert_eq!((index.header().first, index.header().last), (Txid(1), Txid(count)));
        assert_eq!(index.pages().len() as u64, count * u64::from(pages));
    }
}

#[test]
fn a_wrong_frame_is_an_error_and_no_segment() {
    let mut transactions = transactions(1, 2);
    Arc::get_mut(&mut transactions[0]).expect("mine").end.checksum[0] ^= 1;
    let folder = tempfile::tempdir().expect("a folder");
    let error = sealer::seal(&transactions, Generation(1), ObjectHash([0; 32]), folder.path()).expect_err("is checked");
    assert!(
        matches!(error, sealer::SealError::Frames(_)) && !error.may_pass(),
        "{error}"
    );
}

#[test]
fn a_flush_says_why_it_failed() {
    let uploader = memory("flush");
    let shared = Arc::clone(uploader.shared());
    let replica = DatabaseReplica::new(
        Arc::clone(&shared),
        Patience::of(Duration::from_millis(20), Duration::ZERO),
        None,
    );
    let nothing = replica
        .flush(&mut || Ok(()))
        .expect_err("nothing was captured")
        .to_string();
    assert!(nothing.contains("read or write it"), "{nothing}");
    shared.log.settle(0);
    shared
        .log
        .push_transaction(Arc::into_inner(transactions(1, 1).remove(0)).expect("mine"));
    shared.trouble("the store is on fire");
    let late = replica.flush(&mut || Ok(())).expect_err("nobody uploads").to_string();
    assert!(
        late.contains("transaction 1 of /srv/app.db") && late.contains("on fire"),
        "{late}"
    );
    assert!(shared.waiting() == 0);
    shared.fail("a reason");
    let failed = replica.flush(&mut || Ok(())).expect_err("failed").to_string();
    assert!(failed.contains("stopped: a reason"), "{failed}");
    let status: serde_json::Value = serde_json::from_str(&replica.status()).expect("JSON");
    assert_eq!(status["failed"], "a reason");
    assert_eq!((status["txid"].as_u64(), status["acked"].as_u64()), (Some(1), None));
}

#[test]
fn a_flush_brings_what_is_asked_for_meanwhile() {
    let uploader = memory("attends");
    let shared = Arc::clone(uploader.shared());
    let replica = DatabaseReplica::new(
        Arc::clone(&shared),
        Patience::of(Duration::from_secs(60), Duration::ZERO),
        None,
    );
    shared.log.settle(0);
    shared
        .log
        .push_transaction(Arc::into_inner(transactions(1, 1).remove(0)).expect("mine"));
    std::thread::scope(|scope| {
        let (log, waits) = (Arc::clone(&shared.log), Arc::clone(&shared));
        scope.spawn(move || {
            while waits.waiting() == 0 {
                std::thread::yield_now();
            }
            // Long after the connection was asked first.
            log.request_base();
        });
        let mut times = 0;
        let flushed = replica.flush(&mut || {
            times += 1;
            if times == 2 {
                shared.log.acknowledge(Txid(1));
            }
            Ok(())
        });
        assert!(flushed.is_ok(), "{flushed:?}");
        assert_eq!(times, 2);
        let refused = replica
            .flush(&mut || Err(FlushError::new("not now")))
            .expect_err("refused");
        assert_eq!(refused.to_string(), "not now");
        assert!(shared.waiting() == 0);
    });
}

/// As long as nobody has said how the history goes on a connection captures what is dropped, and another one's answer does not bring it back.
#[test]
fn what_was_dropped_is_captured_again_before_it_is_waited_for() {
    let uploader = memory("dropped");
    let shared = Arc::clone(uploader.shared());
    let patience = Patience::of(Duration::from_secs(60), Duration::ZERO);
    let replica = DatabaseReplica::new(Arc::clone(&shared), patience, None);
    let log = &shared.log;
    let push = |index| log.push_transaction(Arc::into_inner(transactions(2, 1).remove(index)).expect("mine"));
    log.settle(0);
    push(0);
    log.resume_from(Resume {
        stored: Mark {
            txid: Txid(1),
            position: Position::default(),
        },
        left: None,
    });
    let attended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !attended.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            assert!(log.answer_for_test(Err(Txid(1))));
            log.acknowledge(Txid(1));
        });
        let flushed = replica.flush(&mut || {
            if log.standing().is_some() && log.last_txid() == Some(Txid(1)) {
                push(1);
                log.acknowledge(Txid(2));
            }
            attended.store(true, Ordering::Release);
            Ok(())
        });
        assert_eq!(flushed.ok(), Some(Some(Txid(2))));
    });
}

#[tokio::test]
async fn no_generation_follows_the_highest_number() {
    let uploader = memory("highest");
    let shared = uploader.shared();
    let taken = Key::Generation(Generation(u64::MAX));
    shared
        .store
        .create(&taken, Body::Bytes(Bytes::from_static(b"x")))
        .await
        .expect("creates");
    let begun = begun(&uploader, None, Txid(0));
    let begun = tokio::time::timeout(Duration::from_secs(20), begun)
        .await
        .expect("it ends");
    assert_eq!(begun.map(|begun| begun.generation), Err(Stopped));
    let reason = shared.log.failure().expect("failed");
    assert!(reason.contains("no number left"), "{reason}");
}

#[test]
fn one_replica_is_not_given_to_two_databases_however_it_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().display();
    std::fs::create_dir(folder.path().join("r")).expect("makes");
    std::os::unix::fs::symlink("r", folder.path().join("link")).expect("links");
    let host = ReplicatingHost::new(Config::default(), Metrics::default());
    let open = |path: &str, replica: &str| {
        // Not all of these stores can be asked.
        let parameters =
            [("replica", replica), ("restore", "never")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        let path = Path::new(path);
        let file = DatabaseFile::on_default_vfs(SqliteApi::linked(), path).expect("a VFS");
        let request = OpenRequest {
            path,
            uri_parameters: &parameters,
            file: &file,
            by_default: false,
        };
        host.open(&request, &Log::new()).map(|replica| replica.is_some())
    };
    open("/one.db", &format!("fs://{root}/r")).expect("opens");
    open("/one.db", &format!("fs://{root}/r/")).expect("is its own");
    open("/two.db", "memory://place").expect("opens");
    open(
        "/three.db",
        "s3://b/p?region=eu&access_key_id=id&secret_access_key=hunter2",
    )
    .expect("opens");
    open("/four.db", "s3://b/p?region=eu&endpoint=http://localhost:9").expect("is another store");
    for replica in [
        &format!("fs://{root}/r"),
        &format!("fs://{root}//r/"),
        &format!("FS://{root}/%72"),
        &format!("fs://{root}/link"),
        "memory://place/",
        "s3://b/p/?region=us",
        "s3://b/p?region=eu&endpoint=http://localhost:9/",
    ] {
        let error = open("/other.db", replica).expect_err(replica).to_string();
        assert!(
            error.contains("already belongs to") && !error.contains("hunter2"),
            "{error}"
        );
    }
}
