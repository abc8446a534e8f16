//! Objects by themselves, as the library's store has them.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use replvfs::Txid;
use replvfs::format::{ChunkHash, ChunkName, Generation, Key};
use replvfs::store::{Body, Created, Store, StoreOptions};
use replvfs_tests::block_on;
use replvfs_vfs::types::UnixMillis;

use crate::servers::Served;

pub(crate) fn open(served: &Served, name: &str) -> Store {
    Store::open(&served.replica(name), &StoreOptions::default()).expect("opening the store")
}

fn log(first: u64) -> Key {
    Key::Log(Generation(1), Txid(first))
}

fn bytes(content: impl AsRef<[u8]>) -> Body {
    Body::Bytes(Bytes::copy_from_slice(content.as_ref()))
}

/// Bytes that are nowhere the same.
pub(crate) fn content(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// As a file, larger than one request of a multipart upload.
fn large(content: &[u8]) -> Body {
    let mut file = tempfile::tempfile().expect("a file");
    std::io::Write::write_all(&mut file, content).expect("writing it");
    Body::File(Arc::new(file), content.len() as u64)
}

pub(crate) fn write(served: &Served) {
    let store = open(served, "write");
    let (small, big) = (content(100_000), content(9 << 20));
    block_on(async {
        assert_eq!(store.create(&log(1), bytes("1")).await.expect("creates"), Created::New);
        assert_eq!(
            store.create(&log(2), bytes(&small)).await.expect("creates"),
            Created::New
        );
        assert_eq!(store.create(&log(3), large(&big)).await.expect("creates"), Created::New);
        assert_eq!(store.read(&log(1)).await.expect("reads"), "1");
        assert_eq!(store.read(&log(2)).await.expect("reads"), small);
        assert_eq!(store.size(&log(3)).await.expect("knows"), big.len() as u64);
        assert!(store.holds(&log(3), &large(&big)).await.expect("compares"));
        assert!(
            !store
                .holds(&log(2), &bytes(&big[..100_000 - 1]))
                .await
                .expect("compares")
        );
        assert_eq!(store.read_up_to(&log(2), 10).await.expect("reads"), small[..10]);
    });
}

pub(crate) fn conditional_create(served: &Served) {
    let store = open(served, "condition");
    // Without a look before.
    store.condition_is_kept();
    let big = content(9 << 20);
    block_on(async {
        for first in 1..=3 {
            store.create(&log(first), bytes("first")).await.expect("creates");
            let again = store.create(&log(first), bytes("other")).await.expect("answers");
            // A server that ignores the condition is looked through by whoever attaches, not here.
            if !served.ignores_the_condition() {
                assert_eq!(again, Created::Exists);
                assert_eq!(store.read(&log(first)).await.expect("reads"), "first");
            }
        }
        if !served.ignores_the_condition() {
            let again = store.create(&log(1), large(&big)).await.expect("answers");
            assert_eq!(again, Created::Exists, "of a large one");
            assert_eq!(store.read(&log(1)).await.expect("reads"), "first");
        }
    });
}

pub(crate) fn many_creators(served: &Served) {
    const CREATORS: u8 = 16;
    let store = open(served, "race");
    // Without a look before.
    store.condition_is_kept();
    block_on(async {
        for round in 1..=3 {
            let tasks: Vec<_> = (0..CREATORS)
                .map(|who| {
                    let store = store.clone();
                    tokio::spawn(async move { store.create(&log(round), bytes(vec![who; 50_000])).await })
                })
                .collect();
            let mut winners = Vec::new();
            for (who, task) in tasks.into_iter().enumerate() {
                if task.await.expect("runs").expect("creates") == Created::New {
                    winners.push(who as u8);
                }
            }
            let found = store.read(&log(round)).await.expect("reads");
            assert_eq!(found.len(), 50_000);
            assert!(
                found.iter().all(|byte| *byte == found[0]),
                "one creator's bytes, all of them"
            );
            assert!(winners.contains(&found[0]), "of somebody who was told so");
            if served.decides {
                assert_eq!(winners.len(), 1);
            }
        }
    });
}

pub(crate) fn ranged_read(served: &Served) {
    let store = open(served, "range");
    let all = content(3 << 20);
    block_on(async {
        store.create(&log(1), bytes(&all)).await.expect("creates");
        for range in [0..1, 0..all.len(), 1_000_000..2_000_001, all.len() - 1..all.len(), 5..5] {
            let read = store.read_range(&log(1), range.start as u64..range.end as u64).await;
            assert_eq!(read.expect("reads"), all[range.clone()], "{range:?}");
        }
        let len = all.len() as u64;
        assert!(
            store.read_range(&log(1), len - 1..len + 1).await.is_err(),
            "past the end"
        );
        assert!(
            store.read_range(&log(1), len + 5..len + 6).await.is_err(),
            "behind the end"
        );
        // Connections that were left in the middle of a long answer are of no harm to who comes next.
        for at in 0..8 {
            let read = store
                .read_range(&log(1), at * 1000..at * 1000 + 10)
                .await
                .expect("reads");
            assert_eq!(read, all[at as usize * 1000..at as usize * 1000 + 10]);
        }
    });
}

pub(crate) fn missing(served: &Served) {
    let store = open(served, "missing");
    block_on(async {
        for there in [false, true] {
            for error in [
                store.read(&log(1)).await.expect_err("no object"),
                store.size(&log(1)).await.expect_err("no object"),
                store.read_range(&log(1), 1..2).await.expect_err("no object"),
            ] {
                assert!(error.is_not_found(), "{error}");
            }
            assert!(!store.has(&log(1)).await.expect("answers"));
            assert_eq!(store.list("gen/0000000000000002/").await.expect("lists"), []);
            if !there {
                assert_eq!(store.list("").await.expect("lists"), []);
                store.create(&log(2), bytes("x")).await.expect("creates");
            }
        }
    });
}

pub(crate) fn list(served: &Served) {
    const SLOTS: u64 = 64;
    let store = open(served, "list");
    block_on(async {
        let mut expected = Vec::new();
        for first in (1..=SLOTS).rev() {
            let body = bytes(vec![7; first as usize]);
            store.create(&log(first), body).await.expect("creates");
            expected.push((log(first), first));
        }
        expected.reverse();
        let chunk = Key::Chunk(ChunkName {
            hash: ChunkHash([7; 32]),
            token: 8,
        });
        let others = [
            Key::Replica,
            Key::Generation(Generation(1)),
            Key::Generation(Generation(10)),
            chunk,
        ];
        for other in others {
            store.create(&other, bytes("{}")).await.expect("creates");
        }
        for _ in 0..3 {
            let found = store.list("gen/0000000000000001/log/").await.expect("lists");
            let lost = expected.iter().filter(|object| !found.contains(object)).count();
            assert_eq!(lost, 0, "entries of {SLOTS}");
            assert_eq!(found, expected);
        }
        let all: BTreeSet<Key> = store
            .list("")
            .await
            .expect("lists")
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        assert_eq!(all.len(), expected.len() + others.len());
        assert!(others.iter().all(|other| all.contains(other)));
        assert_eq!(
            store.list_folders("gen/").await.expect("lists"),
            ["0000000000000001", "000000000000000a"]
        );
        let dated = store.list_dated("gen/0000000000000001/log/").await.expect("lists");
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970");
        for object in dated {
            let Some(UnixMillis(modified)) = object.modified else {
                assert_eq!(served.name, "memory", "no date");
                continue;
            };
            // FTP tells the minute, in a time zone that nobody knows.
            let apart = modified.abs_diff(now.as_millis() as i64);
            assert!(apart < if served.deletes { 300_000 } else { 86_400_000 }, "{modified}");
        }
    });
}

pub(crate) fn delete(served: &Served) {
    let store = open(served, "delete");
    block_on(async {
        for first in 1..=3 {
            store.create(&log(first), bytes("x")).await.expect("creates");
        }
        store.delete(&log(2)).await.expect("deletes");
        assert!(!store.has(&log(2)).await.expect("answers"));
        store.delete(&log(2)).await.expect("that it is not there is no error");
        store
            .delete(&Key::Log(Generation(9), Txid(9)))
            .await
            .expect("nor that its folder is not");
        assert_eq!(store.list("").await.expect("lists"), [(log(1), 1), (log(3), 1)]);
        assert_eq!(store.create(&log(2), bytes("yy")).await.expect("creates"), Created::New);
        assert_eq!(store.read(&log(2)).await.expect("reads"), "yy");
    });
}
