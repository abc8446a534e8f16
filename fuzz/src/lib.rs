//! The bodies of the fuzz targets: what each does with some bytes. libFuzzer calls them from `fuzz_targets/`, and `tests/corpus.rs` with what is in `corpus/`.

pub mod config;
mod damage;
pub mod history;
pub mod manifest;
pub mod memory;
mod mended;
pub mod remote;
pub mod replica;
pub mod segment;
pub mod specimen;
pub mod state;
pub mod uri;
pub mod wal_scan;

use std::path::Path;
use std::sync::OnceLock;

/// What a target does with some bytes.
pub type Body = fn(&[u8]);

/// All targets by their names.
pub const TARGETS: [(&str, Body); 9] = [
    ("config", config::run),
    ("history", history::run),
    ("manifest", manifest::run),
    ("remote", remote::run),
    ("replica", replica::run),
    ("segment", segment::run),
    ("state", state::run),
    ("uri", uri::run),
    ("wal_scan", wal_scan::run),
];

/// The first byte says what the others are.
fn kind(data: &[u8]) -> (u8, &[u8]) {
    match data.split_first() {
        Some((kind, rest)) => (*kind, rest),
        None => (0, data),
    }
}

/// As [`arbitrary::Arbitrary`] reads it; `None` where there are too few bytes.
fn read<'a, T: arbitrary::Arbitrary<'a>>(data: &'a [u8]) -> Option<T> {
    T::arbitrary_take_rest(arbitrary::Unstructured::new(data)).ok()
}

/// For the files of all targets, in memory where that is possible.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let memory = Path::new("/dev/shm");
    let make = || match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    FOLDER.get_or_init(|| make().expect("a folder")).path()
}
