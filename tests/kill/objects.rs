//! The replica's folder, watched from outside: which objects came while the writers of a round ran.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What appears in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Segment,
    Generation,
    Image,
    Chunk,
    /// Something that is on its way, in the folder for temporary files.
    Upload,
}

impl Kind {
    pub(crate) const ALL: [Kind; 5] = [Kind::Segment, Kind::Generation, Kind::Image, Kind::Chunk, Kind::Upload];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Segment => "segment",
            Kind::Generation => "generation",
            Kind::Image => "image",
            Kind::Chunk => "chunk",
            Kind::Upload => "upload",
        }
    }

    fn count(self, replica: &Path) -> u64 {
        let in_generations = |below: &str| {
            let generations = entries(&replica.join("gen"));
            generations
                .iter()
                .map(|folder| entries(&folder.join(below)).len() as u64)
                .sum()
        };
        match self {
            Kind::Segment => segments(replica).count() as u64,
            Kind::Image => in_generations("image"),
            Kind::Generation => {
                let generations = entries(&replica.join("gen"));
                let begun = generations
                    .iter()
                    .filter(|folder| folder.join("generation.json").exists());
                begun.count() as u64
            }
            Kind::Chunk => below(&replica.join("chunk")),
            Kind::Upload => entries(&replica.join(".tmp")).len() as u64,
        }
    }
}

/// Of a folder that may not be there, or not any more.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.flatten().map(|entry| entry.path()).collect()
}

/// How many spans there are, and how many of the segments that they stand for at least are gone.
pub(crate) fn merged(replica: &Path) -> (u64, u64) {
    let (mut spans, mut gone) = (0, 0);
    for generation in entries(&replica.join("gen")) {
        let slots = entries(&generation.join("log"));
        for span in entries(&generation.join("span")) {
            spans += 1;
            let name = span.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let first = name.split('-').next().unwrap_or_default();
            let is_there = |slot: &PathBuf| {
                slot.file_name()
                    .is_some_and(|slot| slot.to_string_lossy().starts_with(first))
            };
            gone += u64::from(!slots.iter().any(is_there));
        }
    }
    (spans, gone)
}

fn segments(replica: &Path) -> impl Iterator<Item = PathBuf> {
    let generations = entries(&replica.join("gen")).into_iter();
    generations.flat_map(|folder| entries(&folder.join("log")))
}

fn below(folder: &Path) -> u64 {
    let entries = entries(folder);
    let files = entries
        .iter()
        .map(|entry| if entry.is_dir() { below(entry) } else { 1 });
    files.sum()
}

/// Looks at one replica from the beginning of a round on.
#[derive(Debug)]
pub(crate) struct Objects {
    replica: PathBuf,
    before: Vec<(Kind, u64)>,
    segments: HashSet<PathBuf>,
}

impl Objects {
    pub(crate) fn new(replica: PathBuf) -> Objects {
        let before = Kind::ALL.map(|kind| (kind, kind.count(&replica))).to_vec();
        Objects {
            segments: segments(&replica).collect(),
            replica,
            before,
        }
    }

    /// Objects that came since. Nothing is ever removed but what was on its way, and segments that were merged.
    pub(crate) fn new_ones(&self, kind: Kind) -> u64 {
        if kind == Kind::Segment {
            let new = segments(&self.replica).filter(|segment| !self.segments.contains(segment));
            return new.count() as u64;
        }
        let before = self.before.iter().find(|(known, _)| *known == kind);
        let before = before.map_or(0, |(_, count)| *count);
        kind.count(&self.replica).saturating_sub(before)
    }
}
