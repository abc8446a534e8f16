//! Runs what is in `corpus/` through the targets, without libFuzzer: what was found once stays found, on any toolchain.

use std::path::Path;

fn replay(target: &str) {
    let (_, body) = replvfs_fuzz::TARGETS
        .iter()
        .find(|(name, _)| *name == target)
        .expect("a target");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = files.map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    for file in &files {
        let data = std::fs::read(file).expect("a file of the corpus");
        // A panic is told with the file that made it.
        let told = Told(file);
        body(&data);
        std::mem::forget(told);
    }
    println!("{} files", files.len());
}

struct Told<'a>(&'a Path);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        eprintln!("this is {}", self.0.display());
    }
}

macro_rules! targets {
    ($($target:ident),* $(,)?) => {
        $(#[test]
        fn $target() {
            replay(stringify!($target));
        })*

        #[test]
        fn no_target_is_left_out() {
            let here = [$(stringify!($target)),*];
            assert_eq!(here, replvfs_fuzz::TARGETS.map(|(name, _)| name));
            let mut there: Vec<_> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz_targets"))
                .expect("the targets")
                .map(|entry| entry.expect("a target").path().file_stem().expect("a name").to_string_lossy().into_owned())
                .collect();
            there.sort();
            assert_eq!(there, here);
        }
    };
}

targets!(
    config, history, manifest, remote, replica, segment, state, uri, wal_scan
);
