//! Objects that are damaged, missing, slow or never answered.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opendal::Operator;
use replvfs_tests::weather::{FaultyStore, Storm, Trouble};
use replvfs_tests::{Scratch, block_on};

use super::number;
use super::requests::{filled, open_remote, register};

const SUM: &str = "SELECT sum(length(b)) FROM t";

/// The names of all objects under a folder.
fn objects(store: &Operator, folder: &str) -> Vec<String> {
    let listed = block_on(store.list_options(
        folder,
        opendal::options::ListOptions {
            recursive: true,
            ..Default::default()
        },
    ));
    let files = listed.unwrap().into_iter().filter(|entry| entry.metadata().is_file());
    files.map(|entry| entry.path().to_owned()).collect()
}

#[test]
fn what_is_damaged_is_an_error_that_names_it_and_never_another_answer() {
    let (scratch, store) = (Scratch::in_memory(), FaultyStore::new(true));
    let name = register(&store);
    filled(&scratch, &name, 3_000).close().unwrap();
    let expected = number(&open_remote(&name, "").unwrap(), SUM);
    let healthy = &store.healthy;
    let mut refused = 0;
    for key in [objects(healthy, "chunk/"), objects(healthy, "gen/")].concat() {
        let whole = block_on(healthy.read(&key)).unwrap().to_vec();
        for at in [0, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            block_on(healthy.write(&key, damaged)).unwrap();
            refused += usize::from(!reads(&name, expected));
        }
        block_on(healthy.write(&key, whole[..whole.len() / 2].to_vec())).unwrap();
        refused += usize::from(!reads(&name, expected));
        block_on(healthy.delete(&key)).unwrap();
        refused += usize::from(!reads(&name, expected));
        block_on(healthy.write(&key, whole)).unwrap();
    }
    assert!(refused > 20, "{refused}");
    assert!(reads(&name, expected));
}

/// Whether it can be read. What is read is right.
fn reads(name: &str, expected: i64) -> bool {
    static NEXT: AtomicU64 = AtomicU64::new(30_000);
    // What others have read is not shared with one of another patience.
    let patience = format!("&timeout={}ms", NEXT.fetch_add(1, Ordering::Relaxed));
    let Ok(remote) = open_remote(name, &patience) else {
        return false;
    };
    match remote.query_row(SUM, [], |row| row.get::<_, i64>(0)) {
        Ok(sum) => {
            // The last transactions may be missing together with their slot: then the state is an older one, and says so.
            let last = replvfs_tests::pragma_number(&remote, "replvfs_txid");
            assert!(sum == expected || last < Some(5), "{sum} at {last:?}");
            true
        }
        Err(error) => {
            let code = error.sqlite_error_code();
            assert_eq!(code, Some(rusqlite::ErrorCode::SystemIoFailure), "{error}");
            false
        }
    }
}

#[test]
fn a_store_that_hangs_is_an_error_in_time_and_works_again() {
    let (scratch, store) = (Scratch::in_memory(), FaultyStore::new(true));
    let name = register(&store);
    filled(&scratch, &name, 3_000).close().unwrap();
    let remote = open_remote(&name, "&timeout=200ms").unwrap();
    store.weather.storm(Some(Storm::lasting(Trouble::Hang)));
    let error = remote.query_row(SUM, [], |row| row.get::<_, i64>(0)).unwrap_err();
    assert_eq!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::SystemIoFailure),
        "{error}"
    );
    assert!(open_remote(&name, "&timeout=200ms").is_err());
    let refused = replvfs::last_open_error().unwrap();
    assert!(refused.contains("did not answer within"), "{refused}");
    store.weather.clear_up_and_lose_connections();
    let since = std::time::Instant::now();
    while remote.query_row(SUM, [], |row| row.get::<_, i64>(0)).is_err() {
        assert!(since.elapsed() < Duration::from_secs(60));
    }
}

#[test]
fn passing_trouble_is_not_seen() {
    let (scratch, store) = (Scratch::in_memory(), FaultyStore::new(true));
    let name = register(&store);
    filled(&scratch, &name, 3_000).close().unwrap();
    let expected = number(&open_remote(&name, "").unwrap(), SUM);
    for at in 0..12 {
        let remote = open_remote(&name, "").unwrap();
        store.weather.storm(Some(Storm {
            at,
            trouble: Trouble::Late,
            lasting: false,
        }));
        assert_eq!(number(&remote, SUM), expected);
    }
}
