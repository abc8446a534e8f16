//! A store in a folder that is away now and then, for processes that know nothing of it.
//!
//! The folder, and those in it, are reached through symbolic links. An outage puts one that leads to a file in the place of such a link, by
//! rename: so no moment is seen in which nothing is there, which would be a store that has lost its objects.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// What is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outage {
    /// The whole store. Nobody can open the database either.
    Everything,
    Generations,
    Chunks,
    /// Where objects are written before they get their names: what is there can be read.
    Uploads,
}

impl Outage {
    pub(crate) const ALL: [Outage; 4] = [Outage::Everything, Outage::Generations, Outage::Chunks, Outage::Uploads];

    /// The link, within the folder of the test, and where it leads.
    fn link(self) -> (&'static str, &'static str) {
        match self {
            Outage::Everything => ("replica", "store"),
            Outage::Generations => ("store/gen", "parts/gen"),
            Outage::Chunks => ("store/chunk", "parts/chunk"),
            Outage::Uploads => ("store/.tmp", "parts/tmp"),
        }
    }
}

#[derive(Debug)]
pub(crate) struct FlakyStore {
    folder: PathBuf,
    outage: Option<Outage>,
}

impl FlakyStore {
    /// In the folder `replica`, which must not be there yet.
    pub(crate) fn new(folder: &Path) -> FlakyStore {
        for name in ["store", "parts"] {
            fs::create_dir(folder.join(name)).unwrap();
        }
        fs::write(folder.join("no-folder"), b"").unwrap();
        let store = FlakyStore {
            folder: folder.to_owned(),
            outage: None,
        };
        for outage in Outage::ALL {
            let (_, target) = outage.link();
            fs::create_dir_all(folder.join(target)).unwrap();
            store.lead(outage, target);
        }
        store
    }

    fn lead(&self, outage: Outage, target: &str) {
        let new = self.folder.join("new-link");
        symlink(self.folder.join(target), &new).unwrap();
        fs::rename(new, self.folder.join(outage.link().0)).unwrap();
    }

    pub(crate) fn outage(&self) -> Option<Outage> {
        self.outage
    }

    pub(crate) fn fail(&mut self, outage: Outage) {
        self.lead(outage, "no-folder");
        self.outage = Some(outage);
    }

    pub(crate) fn heal(&mut self) {
        if let Some(outage) = self.outage.take() {
            self.lead(outage, outage.link().1);
        }
    }

    /// Of everything in it.
    pub(crate) fn bytes(&self) -> u64 {
        bytes_below(&self.folder.join("store")) + bytes_below(&self.folder.join("parts"))
    }

    pub(crate) fn generations(&self) -> u64 {
        fs::read_dir(self.folder.join("parts/gen")).unwrap().count() as u64
    }
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let bytes = entries.map(|entry| match entry.file_type().unwrap() {
        kind if kind.is_dir() => bytes_below(&entry.path()),
        // An upload may be done, and its temporary file gone, since it was listed.
        kind if kind.is_file() => entry.metadata().map_or(0, |meta| meta.len()),
        _ => 0,
    });
    bytes.sum()
}
