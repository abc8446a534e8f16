//! One suite over every kind of store that needs no server.

use super::*;
use crate::format::{ChunkHash, ChunkName, Generation};
use replvfs_vfs::types::Txid;

type Made = (Store, Option<tempfile::TempDir>);

fn stores(name: &str) -> Vec<Made> {
    let folder = tempfile::tempdir().expect("a folder");
    let uri = format!("fs://{}/deep/er", folder.path().display());
    let options = StoreOptions::default();
    vec![
        (Store::open(&uri, &options).expect("fs opens"), Some(folder)),
        (
            Store::open(&format!("memory://store-test-{name}"), &options).expect("memory opens"),
            None,
        ),
    ]
}

fn log(first: u64) -> Key {
    Key::Log(Generation(1), Txid(first))
}

fn bytes(content: impl AsRef<[u8]>) -> Body {
    Body::Bytes(Bytes::copy_from_slice(content.as_ref()))
}

#[tokio::test]
async fn an_object_is_created_once_and_read() {
    for (store, _folder) in stores("once") {
        assert_eq!(store.fencing(), Fencing::Enforced);
        assert_eq!(
            store.create(&log(1), bytes("first")).await.expect("creates"),
            Created::New
        );
        assert_eq!(
            store.create(&log(1), bytes("other")).await.expect("answers"),
            Created::Exists
        );
        assert_eq!(store.read(&log(1)).await.expect("reads"), "first");
        assert_eq!(store.read_range(&log(1), 1..3).await.expect("reads"), "ir");
        assert_eq!(store.read_range(&log(1), 2..2).await.expect("reads"), "");
        assert_eq!(store.size(&log(1)).await.expect("knows"), 5);
        assert!(store.holds(&log(1), &bytes("first")).await.expect("compares"));
        assert!(!store.holds(&log(1), &bytes("fjrst")).await.expect("compares"));
        assert!(!store.holds(&log(1), &bytes("firs")).await.expect("compares"));
        assert!(
            store.read_range(&log(1), 3..9).await.is_err(),
            "a short read is an error"
        );
    }
}

#[tokio::test]
async fn what_is_missing_is_not_found() {
    for (store, _folder) in stores("missing") {
        for error in [
            store.read(&log(1)).await.expect_err("no object"),
            store.size(&log(1)).await.expect_err("no object"),
            store.holds(&log(1), &bytes("")).await.expect_err("no object"),
        ] {
            assert!(error.is_not_found(), "{error}");
            let text = error.to_string();
            assert!(
                text.contains(&log(1).path()) && text.contains(store.replica()),
                "{text}"
            );
        }
        assert_eq!(store.list("gen/").await.expect("lists"), []);
        assert_eq!(store.list("").await.expect("lists"), []);
        assert!(store.list_folders("gen/").await.expect("lists").is_empty());
    }
}

#[tokio::test]
async fn a_listing_is_sorted_and_knows_only_our_names() {
    for (store, folder) in stores("list") {
        for first in [300, 2, 17] {
            store
                .create(&log(first), bytes(vec![0; first as usize]))
                .await
                .expect("creates");
        }
        store
            .create(&Key::Generation(Generation(10)), bytes("{}"))
            .await
            .expect("creates");
        let hash = ChunkHash([7; 32]);
        let chunk = Key::Chunk(ChunkName { hash, token: 8 });
        store.create(&chunk, bytes("c")).await.expect("creates");
        store.0.operator.write("stray", "x").await.expect("writes");
        store
            .0
            .operator
            .write("gen/0000000000000001/log/x.tmp", "x")
            .await
            .expect("writes");
        if let Some(folder) = &folder {
            let temp = folder.path().join("deep/er/.tmp/replvfs-torn");
            std::fs::write(temp, b"torn").expect("writes");
        }
        let logs = store.list("gen/0000000000000001/log/").await.expect("lists");
        assert_eq!(logs, [(log(2), 2), (log(17), 17), (log(300), 300)]);
        assert_eq!(store.list("").await.expect("lists").len(), 5);
        assert_eq!(
            store.list_folders("gen/").await.expect("lists"),
            ["0000000000000001", "000000000000000a"]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_creators_one_wins_with_all_its_bytes() {
    for (store, _folder) in stores("race") {
        for round in 1..=8 {
            let tasks: Vec<_> = (0..16u8)
                .map(|who| {
                    let store = store.clone();
                    tokio::spawn(async move { store.create(&log(round), bytes(vec![who; 100_000])).await })
                })
                .collect();
            let mut winners = Vec::new();
            for (who, task) in tasks.into_iter().enumerate() {
                if task.await.expect("runs").expect("creates") == Created::New {
                    winners.push(who as u8);
                }
            }
            assert_eq!(winners.len(), 1);
            assert_eq!(store.read(&log(round)).await.expect("reads"), vec![winners[0]; 100_000]);
        }
    }
}

#[tokio::test]
async fn a_large_file_is_sent_as_often_as_needed() {
    let content: Vec<u8> = (0..20_000_000u32).map(|n| (n >> 8) as u8).collect();
    let mut file = tempfile::tempfile().expect("a file");
    io::Write::write_all(&mut file, &content).expect("writes");
    let body = Body::File(Arc::new(file), content.len() as u64);
    for (store, _folder) in stores("large") {
        assert_eq!(
            store.create(&log(1), body.clone()).await.expect("creates"),
            Created::New
        );
        assert_eq!(
            store.create(&log(1), body.clone()).await.expect("answers"),
            Created::Exists
        );
        assert_eq!(
            store.create(&log(2), body.clone()).await.expect("creates"),
            Created::New
        );
        assert!(store.holds(&log(2), &body).await.expect("compares"));
        assert!(store.read(&log(2)).await.expect("reads") == content);
    }
}

#[tokio::test]
async fn a_folder_keeps_no_temporary_files_and_follows_the_umask() {
    let (store, folder) = stores("temp").remove(0);
    let root = folder.as_ref().expect("a folder").path().join("deep/er");
    store.create(&log(1), bytes("x")).await.expect("creates");
    store.create(&log(1), bytes("y")).await.expect("answers");
    assert_eq!(std::fs::read_dir(root.join(".tmp")).expect("lists").count(), 0);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let plain = root.join("plain");
        std::fs::write(&plain, b"x").expect("writes");
        let mode = |path: PathBuf| std::fs::metadata(path).expect("exists").permissions().mode();
        assert_eq!(mode(root.join(log(1).path())), mode(plain));
    }
}

#[tokio::test]
async fn a_folder_that_was_removed_is_an_error_and_then_recovers() {
    let (store, folder) = stores("gone").remove(0);
    let root = folder.as_ref().expect("a folder").path().join("deep/er");
    store.create(&log(1), bytes("x")).await.expect("creates");
    std::fs::remove_dir_all(&root).expect("removes");
    store
        .create(&log(2), bytes("x"))
        .await
        .expect_err("the folder may be an unmounted disk");
    assert!(!root.exists(), "it is not made behind the user's back");
    std::fs::create_dir(&root).expect("comes back");
    let mut tries = 0;
    while store.create(&log(2), bytes("x")).await.is_err() {
        tries += 1;
        assert!(tries < 3, "recovers");
    }
    assert_eq!(store.read(&log(2)).await.expect("reads"), "x");
}

#[test]
fn a_folder_under_a_file_is_refused_with_advice() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, b"x").expect("writes");
    for uri in [
        format!("fs://{}/below", file.display()),
        format!("fs://{}", file.display()),
    ] {
        for options in [StoreOptions::default(), StoreOptions::reading()] {
            let error = Store::open(&uri, &options).expect_err("no folder");
            assert!(error.is_permanent(), "{error}");
            assert!(error.to_string().contains("a part of the path is a file"), "{error}");
        }
    }
    let missing = format!("fs://{}/typo", folder.path().display());
    let error = Store::open(&missing, &StoreOptions::reading()).expect_err("a reader makes nothing");
    assert!(error.is_not_found() && !folder.path().join("typo").exists(), "{error}");
}

#[tokio::test]
async fn a_store_without_conditions_is_asked_first() {
    for (store, _folder) in stores("best-effort").split_off(1) {
        store.condition_is_ignored();
        assert_eq!(store.fencing(), Fencing::BestEffort);
        assert_eq!(store.create(&log(1), bytes("a")).await.expect("creates"), Created::New);
        assert_eq!(
            store.create(&log(1), bytes("b")).await.expect("answers"),
            Created::Exists
        );
    }
}

#[tokio::test]
async fn a_ready_operator_is_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = opendal::services::Fs::default().root(&folder.path().display().to_string());
    let store = Store::from_operator(Operator::new(service).expect("an operator"));
    assert!(store.replica().starts_with("fs:///"), "{}", store.replica());
    assert_eq!(store.create(&log(1), bytes("a")).await.expect("creates"), Created::New);
    assert_eq!(store.read(&log(1)).await.expect("reads"), "a");
}

#[tokio::test]
async fn no_more_is_read_than_was_asked_for() {
    let content = vec![7; 3_000_000];
    for (store, _folder) in stores("bounded") {
        store.create(&log(1), bytes(&content)).await.expect("creates");
        for (limit, len) in [
            (0, 0),
            (1, 1),
            (2_000_001, 2_000_001),
            (3_000_000, 3_000_000),
            (u64::MAX, 3_000_000),
        ] {
            let read = store.read_up_to(&log(1), limit).await.expect("reads");
            assert_eq!(read.len(), len, "{limit}");
        }
        let missing = store.read_up_to(&log(2), 5).await.expect_err("no object");
        assert!(missing.is_not_found(), "{missing}");
    }
}

#[tokio::test]
async fn what_is_no_file_in_a_folder_is_an_error_and_is_not_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(&format!("fs://{}", folder.path().display()), &StoreOptions::default()).expect("opens");
    store.create(&log(1), bytes("a")).await.expect("creates");
    let place = |key: Key| folder.path().join(key.path());
    let pipe = std::process::Command::new("mkfifo").arg(place(log(2))).status();
    assert!(pipe.expect("coreutils").success());
    std::fs::create_dir(place(log(3))).expect("a folder");
    for key in [log(2), log(3)] {
        let error = store.read(&key).await.expect_err("no object");
        assert!(error.to_string().contains("it is not a file"), "{error}");
        store.read_range(&key, 0..1).await.expect_err("no object either");
    }
    store.read_range(&log(1), 0..2).await.expect_err("past its end");
    store.read_range(&log(1), 5..6).await.expect_err("behind its end");
}

#[test]
fn no_secret_is_shown_for_debugging() {
    let uris = [
        #[cfg(feature = "s3")]
        "s3://b/p?region=eu&access_key_id=AKIA&secret_access_key=hunter2&session_token=hunter2&endpoint=http://localhost",
        "memory://debug-hunter",
    ];
    for uri in uris {
        let store = Store::open(uri, &StoreOptions::default()).expect("opens");
        let shown = format!("{store:?} {}", store.place());
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[tokio::test]
async fn what_is_deleted_is_gone_and_may_be_deleted_again() {
    for (store, folder) in stores("delete") {
        for first in [1, 2] {
            store.create(&log(first), bytes("x")).await.expect("creates");
        }
        for _ in 0..2 {
            store.delete(&log(1)).await.expect("deletes");
        }
        let nothing = Key::Log(Generation(77), Txid(1));
        store.delete(&nothing).await.expect("a folder that never was");
        assert!(store.size(&log(1)).await.expect_err("gone").is_not_found());
        let listed = store.list_dated("gen/").await.expect("lists");
        assert_eq!(listed.iter().map(|object| object.key).collect::<Vec<_>>(), [log(2)]);
        // Memory tells no time.
        assert_eq!(listed[0].modified.is_some(), folder.is_some());
        assert_eq!(
            store.create(&log(1), bytes("y")).await.expect("creates"),
            Created::New,
            "the slot is free again"
        );
    }
}

#[tokio::test]
async fn what_is_behind_a_slot_is_listed_without_the_slot() {
    for (store, _folder) in stores("behind") {
        for first in [1, 2, 300] {
            store.create(&log(first), bytes("x")).await.expect("creates");
        }
        for (after, found) in [(0, 3), (1, 2), (2, 1), (300, 0)] {
            let prefix = Key::log_prefix(Generation(1));
            let behind = store.list_behind(&prefix, &log(after)).await.expect("lists");
            assert_eq!(behind.len(), found, "after {after}");
        }
    }
}
