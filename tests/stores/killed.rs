//! A client that is killed in the middle of an upload: nothing of it stands in a slot, and what it leaves is swept.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use replvfs::Txid;
use replvfs::format::{Generation, Key};
use replvfs::store::{Body, Created};
use replvfs_tests::block_on;

use crate::objects;
use crate::servers::Served;

const UPLOAD: &str = "REPLVFS_TEST_UPLOAD";
const FILE: &str = "REPLVFS_TEST_UPLOAD_FILE";
const ENOUGH: Duration = Duration::from_secs(60);
const SLOT: Key = Key::Log(Generation(1), Txid(7));

pub(crate) fn is_uploader() -> bool {
    std::env::var_os(UPLOAD).is_some()
}

/// The process that is killed.
pub(crate) fn upload() {
    let uri = std::env::var(UPLOAD).expect("it is set");
    let file = File::open(std::env::var_os(FILE).expect("it is set")).expect("a file");
    let len = file.metadata().expect("its length").len();
    let store = replvfs::store::Store::open(&uri, &replvfs::store::StoreOptions::default()).expect("opens");
    let created = block_on(store.create(&SLOT, Body::File(Arc::new(file), len)));
    assert_eq!(created.expect("creates"), Created::New);
}

pub(crate) fn killed(served: &Served) {
    let Some(objects) = &served.beside else {
        return; // One request, or one call, has all of it.
    };
    let store = objects::open(served, "killed");
    let place = Key::Log(Generation(1), Txid(1));
    block_on(store.create(&place, Body::Bytes(Bytes::from_static(b"x")))).expect("creates");
    let place = objects.join("killed");
    let mut megabytes = 64;
    while !is_killed_in_the_middle(served, &place, megabytes) {
        megabytes *= 2;
        assert!(megabytes <= 1024, "it is never seen in the middle");
        block_on(store.delete(&SLOT)).expect("deletes");
    }
    block_on(async {
        assert!(!store.has(&SLOT).await.expect("answers"));
        assert_eq!(store.list("gen/").await.expect("lists").len(), 1);
        let next = Body::Bytes(Bytes::from_static(b"next"));
        assert_eq!(store.create(&SLOT, next).await.expect("creates"), Created::New);
        assert_eq!(store.read(&SLOT).await.expect("reads"), "next");
    });
    sweeps(served, &place.join(".tmp"));
}

/// Starts the upload of so much, and kills the uploader when something of it is on the server's disk. Whether the object was not there yet.
fn is_killed_in_the_middle(served: &Served, place: &Path, megabytes: usize) -> bool {
    let content = served.folder().join("content");
    let mut file = File::create(&content).expect("a file");
    let megabyte = objects::content(1 << 20);
    for _ in 0..megabytes {
        file.write_all(&megabyte).expect("writes");
    }
    #[expect(clippy::zombie_processes, reason = "it is waited for unless the test fails")]
    let mut uploader = Command::new(std::env::current_exe().expect("this program"))
        .env(UPLOAD, served.replica("killed"))
        .env(FILE, &content)
        .stdin(Stdio::null())
        .spawn()
        .expect("starts");
    let slot = place.join(SLOT.path());
    let since = Instant::now();
    loop {
        if slot.exists() {
            assert!(uploader.wait().expect("its end").success());
            return false;
        }
        let temporary = [place.join(".tmp"), served.folder().join("body")];
        if temporary.iter().any(|folder| has_content(folder)) || has_temporary(place) {
            uploader.kill().expect("kills");
            uploader.wait().expect("its end");
            // What it had asked for may still be on its way: then it was not in the middle.
            settled(&temporary);
            return !slot.exists();
        }
        assert!(since.elapsed() < ENOUGH, "nothing of it is ever there");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One of OpenDAL's own, at the top.
fn has_temporary(place: &Path) -> bool {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    let mut temporary = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("replvfs-"));
    temporary.any(|entry| entry.metadata().is_ok_and(|metadata| metadata.len() > 0))
}

/// A file that grows, deep below.
fn has_content(folder: &Path) -> bool {
    sizes(folder).iter().any(|(_, len)| *len > 0)
}

fn sizes(folder: &Path) -> Vec<(PathBuf, u64)> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => found.extend(sizes(&entry.path())),
            Ok(metadata) => found.push((entry.path(), metadata.len())),
            Err(_) => {}
        }
    }
    found
}

/// Waits until the server has noticed that nobody is there any more: nothing grows.
fn settled(folders: &[PathBuf]) {
    let now = || folders.iter().map(|folder| sizes(folder)).collect::<Vec<_>>();
    let mut before = now();
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let after = now();
        if after == before {
            return;
        }
        before = after;
    }
}

/// Old temporary objects go with the next process that creates something; young ones stay, and others too.
fn sweeps(served: &Served, temporary: &Path) {
    let day = Duration::from_secs(24 * 60 * 60);
    for (name, age) in [
        ("replvfs-old", 3 * day),
        ("replvfs-young", Duration::from_secs(60)),
        ("other", 3 * day),
    ] {
        let file = File::create(temporary.join(name)).expect("a file");
        file.set_modified(SystemTime::now() - age).expect("its time");
    }
    let store = objects::open(served, "killed");
    let next = Key::Log(Generation(1), Txid(8));
    block_on(store.create(&next, Body::Bytes(Bytes::from_static(b"x")))).expect("creates");
    let is_there = |name: &str| temporary.join(name).exists();
    assert!(!is_there("replvfs-old"), "what is old is swept");
    assert!(is_there("replvfs-young") && is_there("other"), "nothing else is");
}
