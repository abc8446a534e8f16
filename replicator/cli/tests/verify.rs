//! A restore that is looked at, and verifying, through the program: what appears, what is said, and exit codes.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "verify/against.rs"]
mod against;

use std::path::Path;
use std::process::{Command, Output};

use replvfs::format::{
    ChunkName, DatabaseId, FORMAT_VERSION, Generation, GenerationMeta, Key, Manifest, ReplicaMeta, encode_chunk,
};
use replvfs_vfs::types::{PageSize, Position, Salts, Txid, UnixMillis};
use rusqlite::Connection;

const GENERATION: Generation = Generation(1);
const PAGE: usize = 4096;

fn replvfs(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_replvfs"))
        .args(arguments)
        .output()
        .unwrap()
}

fn put(folder: &Path, key: Key, bytes: &[u8]) {
    let path = folder.join(key.path());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// A database with an index, whose root is page 3.
fn database(folder: &Path) -> Vec<u8> {
    let path = folder.join("original.db");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "PRAGMA page_size = 4096; CREATE TABLE t(a UNIQUE, b); INSERT INTO t VALUES (1, zeroblob(9000)), (2, 3)",
        )
        .unwrap();
    connection.close().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    bytes
}

/// A replica that has the database as its only image. Returns its URI and the chunk.
fn replica(folder: &Path, database: &[u8]) -> (String, Key) {
    let (format, database_id) = (FORMAT_VERSION, DatabaseId([7; 16]));
    put(
        folder,
        Key::Replica,
        &ReplicaMeta { format, database_id }.to_bytes().unwrap(),
    );
    let meta = GenerationMeta {
        format,
        generation: GENERATION,
        parent: None,
        page_size: PAGE as u32,
        writer: "test".to_owned(),
        created_at: UnixMillis(0),
        first_image: Txid(1),
    };
    put(folder, Key::Generation(GENERATION), &meta.to_bytes().unwrap());
    let (hash, stored) = encode_chunk(database, 1).unwrap();
    let name = ChunkName { hash, token: 5 };
    put(folder, Key::Chunk(name), &stored);
    let manifest = Manifest {
        generation: GENERATION,
        txid: Txid(1),
        page_size: PageSize::new(PAGE as u32).unwrap(),
        page_count: (database.len() / PAGE) as u32,
        taken_at: UnixMillis(5),
        position: Position {
            salts: Salts(0, 0),
            frame: 0,
            checksum: [0, 0],
        },
        chunks: vec![name],
    };
    put(folder, Key::Image(GENERATION, Txid(1)), &manifest.encode().unwrap());
    (format!("fs://{}", folder.display()), Key::Chunk(name))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_corrupt_database_does_not_appear() {
    let (store, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut corrupt = database(store.path());
    corrupt[2 * PAGE..3 * PAGE].fill(0x5a);
    let (uri, _) = replica(store.path(), &corrupt);
    let out = folder.path().join("out.db");
    let shown = out.display().to_string();
    let output = replvfs(&["restore", &uri, &shown, "--verify"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("page 3") || said.contains("malformed"), "{said}");
    assert_eq!(names(folder.path()), [] as [&str; 0]);
    // Nor does it take the place of another one.
    std::fs::write(&out, b"another").unwrap();
    let output = replvfs(&["restore", &uri, &shown, "--verify", "--force"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(std::fs::read(&out).unwrap(), b"another");
    assert_eq!(names(folder.path()), ["out.db"]);
    // That is what the database was, so all of it is in the replica.
    let output = replvfs(&["verify", &uri]);
    assert_eq!(output.status.code(), Some(0));
    let output = replvfs(&["restore", &uri, &shown, "--force"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(std::fs::read(&out).unwrap(), corrupt);
}

#[test]
fn a_sound_one_does_and_damage_is_found() {
    let (store, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sound = database(store.path());
    let (uri, chunk) = replica(store.path(), &sound);
    let out = folder.path().join("out.db");
    let shown = out.display().to_string();
    let output = replvfs(&["restore", &uri, &shown, "--verify"]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(std::fs::read(&out).unwrap(), sound);
    assert_eq!(replvfs(&["verify", &uri]).status.code(), Some(0));
    let path = store.path().join(chunk.path());
    let mut damaged = std::fs::read(&path).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(path, damaged).unwrap();
    let output = replvfs(&["verify", &uri, "--json"]);
    assert_eq!(output.status.code(), Some(3));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["good"], false);
    assert_eq!(told["findings"][0]["object"], chunk.path());
}

/// The first segments may be there before the first image is.
#[test]
fn a_newest_generation_without_an_image_is_a_note() {
    let store = tempfile::tempdir().unwrap();
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden"));
    let read = |name: &str| std::fs::read(golden.join(name)).unwrap();
    let generation = Generation(0x2a);
    put(store.path(), Key::Replica, &read("replvfs.json"));
    put(store.path(), Key::Generation(generation), &read("generation.json"));
    put(store.path(), Key::Log(generation, Txid(0x64)), &read("segment"));
    let output = replvfs(&["verify", &format!("fs://{}", store.path().display())]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("000000000000002a has a log and no image"), "{said}");
}
