//! What a power loss leaves on a disk, worked out from what was done to its files.
//!
//! Owns the rules. What was synced is there. Of what was written to a file since its last sync, each sector of 512 bytes has, independent of
//! all others, any of the contents that it had meanwhile; the file's length likewise. Names that were made or removed are certain once
//! their folder was synced; before, each name is in any of its states since. Whoever did it is the recorder's business, or the simulated
//! disk's.

use std::collections::{BTreeMap, HashMap};

use replvfs_tests::Rng;

const SECTOR: u64 = 512;
/// What the page cache writes at once, in sectors.
const CACHE_PAGE_SECTORS: u64 = 8;

/// The files of a database by what follows its name: nothing, `-wal`, `-journal` …
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Something that was done to a file, and succeeded.
#[derive(Debug)]
pub(crate) enum Event {
    Create {
        name: String,
        inode: usize,
    },
    Delete {
        name: String,
        folder_synced: bool,
    },
    Write {
        inode: usize,
        offset: u64,
        data: Box<[u8]>,
    },
    Resize {
        inode: usize,
        len: u64,
    },
    Sync {
        inode: usize,
        /// The folder as well, as SQLite does at the first sync of a new journal or WAL.
        folder: bool,
    },
}

/// What is certain, and what is not yet.
#[derive(Debug, Default)]
pub(crate) struct Disk<'a> {
    inodes: Vec<Inode<'a>>,
    names: BTreeMap<String, usize>,
    /// In their order, since the folder was synced.
    renamed: Vec<(&'a str, Option<usize>)>,
}

#[derive(Debug, Default)]
struct Inode<'a> {
    synced: Vec<u8>,
    since: Vec<&'a Event>,
}

impl<'a> Disk<'a> {
    /// After these events, on a disk where `initial` was there for certain. Its files have the first inodes, in their order.
    pub(crate) fn after(initial: &Files, events: &'a [Event]) -> Disk<'a> {
        let mut disk = Disk::default();
        for (name, content) in initial {
            disk.names.insert(name.clone(), disk.inodes.len());
            disk.inodes.push(Inode {
                synced: content.clone(),
                since: Vec::new(),
            });
        }
        for event in events {
            disk.apply(event);
        }
        disk
    }

    fn apply(&mut self, event: &'a Event) {
        match event {
            Event::Create { name, inode } => {
                assert_eq!(*inode, self.inodes.len());
                self.inodes.push(Inode::default());
                self.renamed.push((name, Some(*inode)));
            }
            Event::Delete { name, folder_synced } => {
                self.renamed.push((name, None));
                if *folder_synced {
                    self.sync_folder();
                }
            }
            Event::Write { inode, .. } | Event::Resize { inode, .. } => self.inodes[*inode].since.push(event),
            Event::Sync { inode, folder } => {
                let inode = &mut self.inodes[*inode];
                inode.synced = inode.content();
                inode.since.clear();
                if *folder {
                    self.sync_folder();
                }
            }
        }
    }

    fn sync_folder(&mut self) {
        for (name, inode) in std::mem::take(&mut self.renamed) {
            rename(&mut self.names, name, inode);
        }
    }

    /// Everything as the running programs see it.
    pub(crate) fn content(&self) -> Files {
        let mut names = self.names.clone();
        for (name, inode) in &self.renamed {
            rename(&mut names, name, *inode);
        }
        let content = |(name, inode): (String, usize)| (name, self.inodes[inode].content());
        names.into_iter().map(content).collect()
    }

    /// What is there after the power was lost, and how it came.
    pub(crate) fn after_power_loss(&self, rng: &mut Rng) -> (Files, String) {
        let mut names = self.names.clone();
        let mut told = String::new();
        let mut changed: Vec<&str> = self.renamed.iter().map(|(name, _)| *name).collect();
        changed.sort_unstable();
        changed.dedup();
        for name in changed {
            let states = self.renamed.iter().filter(|(other, _)| *other == name);
            let states: Vec<Option<usize>> = states.map(|(_, inode)| *inode).collect();
            let kept = usize::try_from(rng.below(states.len() as u64 + 1)).unwrap();
            if let Some(last) = kept.checked_sub(1) {
                rename(&mut names, name, states[last]);
            }
            told += &format!(" names of {name:?}: {kept} of {} kept;", states.len());
        }
        let mut files = Files::new();
        for (name, inode) in names {
            let inode = &self.inodes[inode];
            let loss = Loss::draw(rng, inode.since.len());
            if !inode.since.is_empty() {
                told += &format!(" {name:?}: {loss:?} of {} changes;", inode.since.len());
            }
            files.insert(name, inode.after(loss, rng));
        }
        (files, told)
    }
}

fn rename(names: &mut BTreeMap<String, usize>, name: &str, inode: Option<usize>) {
    match inode {
        Some(inode) => names.insert(name.to_owned(), inode),
        None => names.remove(name),
    };
}

/// How a file loses what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// So many changes are there, in their order, the others are not.
    From(usize),
    /// The same, but of the next one some sectors are there.
    Torn(usize),
    /// Each run of so many sectors stands where it was at some time since the sync.
    Shuffled { sectors: u64, garbage: bool },
}

impl Loss {
    fn draw(rng: &mut Rng, changes: usize) -> Loss {
        let some = usize::try_from(rng.below(changes as u64 + 1)).unwrap();
        match rng.below(8) {
            0 => Loss::From(0),
            1 => Loss::From(changes),
            2 => Loss::From(some),
            3 | 4 => Loss::Torn(some),
            way => Loss::Shuffled {
                sectors: if way == 5 { CACHE_PAGE_SECTORS } else { 1 },
                garbage: rng.one_in(4),
            },
        }
    }
}

impl Inode<'_> {
    fn content(&self) -> Vec<u8> {
        let all = self.since.len();
        self.rebuild(all, 0, |_| all)
    }

    fn after(&self, loss: Loss, rng: &mut Rng) -> Vec<u8> {
        let changes = self.since.len() as u64;
        let any = |rng: &mut Rng| usize::try_from(rng.below(changes + 1)).unwrap();
        match loss {
            Loss::From(kept) => self.rebuild(kept, 0, |_| kept),
            Loss::Torn(kept) => {
                let len = kept + usize::from(rng.one_in(2));
                self.rebuild(len.min(self.since.len()), 0, |_| kept + usize::from(rng.one_in(2)))
            }
            Loss::Shuffled { sectors, garbage } => {
                let len = match rng.below(3) {
                    0 => any(rng),
                    _ => self.since.len(),
                };
                let mut kept = HashMap::new();
                let fill = if garbage { 0xa5 } else { 0 };
                self.rebuild(len, fill, |sector| {
                    *kept.entry(sector / sectors).or_insert_with(|| match rng.below(3) {
                        0 => 0,
                        1 => self.since.len(),
                        _ => any(rng),
                    })
                })
            }
        }
    }

    /// The length is that after `len` changes; `kept` says how many of the changes a sector has seen. `fill` is in what has a
    /// length but was never written.
    fn rebuild(&self, len: usize, fill: u8, mut kept: impl FnMut(u64) -> usize) -> Vec<u8> {
        let mut content = self.synced.clone();
        let mut seen: HashMap<u64, usize> = HashMap::new();
        let mut has_seen = |sector: u64, change: usize| change < *seen.entry(sector).or_insert_with(|| kept(sector));
        for (index, change) in self.since.iter().enumerate() {
            match change {
                Event::Write { offset, data, .. } => {
                    for (from, to) in sectors(*offset, *offset + data.len() as u64) {
                        if has_seen(from / SECTOR, index) {
                            let there = usize::try_from(from).unwrap()..usize::try_from(to).unwrap();
                            if content.len() < there.end {
                                content.resize(there.end, fill);
                            }
                            let here = usize::try_from(from - offset).unwrap();
                            content[there.clone()].copy_from_slice(&data[here..here + there.len()]);
                        }
                    }
                }
                Event::Resize { len, .. } => {
                    for (from, to) in sectors(*len, content.len() as u64) {
                        if has_seen(from / SECTOR, index) {
                            content[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()].fill(0);
                        }
                    }
                }
                _ => unreachable!("only changes of content are kept"),
            }
        }
        content.resize(self.len_after(len), fill);
        content
    }

    fn len_after(&self, changes: usize) -> usize {
        let len = self.since[..changes]
            .iter()
            .fold(self.synced.len() as u64, |len, change| match change {
                Event::Write { offset, data, .. } => len.max(offset + data.len() as u64),
                Event::Resize { len, .. } => *len,
                _ => len,
            });
        usize::try_from(len).unwrap()
    }
}

/// The parts of a range that are in one sector each.
fn sectors(from: u64, to: u64) -> impl Iterator<Item = (u64, u64)> {
    let first = from / SECTOR;
    (first..to.div_ceil(SECTOR).max(first))
        .map(move |sector| (from.max(sector * SECTOR), to.min((sector + 1) * SECTOR)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, byte: u8, len: usize) -> Event {
        Event::Write {
            inode: 0,
            offset,
            data: vec![byte; len].into(),
        }
    }

    fn one_file(content: Vec<u8>) -> Files {
        Files::from([(String::new(), content)])
    }

    fn outcomes(initial: &Files, events: &[Event]) -> Vec<Option<Vec<u8>>> {
        let disk = Disk::after(initial, events);
        let mut rng = Rng::new(1);
        let mut found: Vec<_> = (0..500).map(|_| disk.after_power_loss(&mut rng).0.remove("")).collect();
        found.sort();
        found.dedup();
        found
    }

    #[test]
    fn what_was_synced_is_there() {
        let sync = Event::Sync {
            inode: 0,
            folder: false,
        };
        let events = [write(0, 1, 700), sync];
        assert_eq!(outcomes(&one_file(vec![]), &events), [Some(vec![1; 700])]);
    }

    #[test]
    fn what_was_not_synced_is_there_by_sectors() {
        let initial = one_file(vec![0; 1024]);
        let events = [write(0, 1, 1024), write(0, 2, 1024)];
        let found = outcomes(&initial, &events);
        // Each of two sectors in each of three states.
        assert_eq!(found.len(), 9);
        for content in found.into_iter().flatten() {
            assert!(
                content
                    .chunks(512)
                    .all(|sector| sector.iter().all(|byte| *byte == sector[0]))
            );
        }
    }

    #[test]
    fn names_are_certain_when_their_folder_is() {
        let create = |inode| Event::Create {
            name: String::new(),
            inode,
        };
        let sync = |folder| Event::Sync { inode: 0, folder };
        let none = Files::new();
        assert_eq!(outcomes(&none, &[create(0), sync(false)]), [None, Some(vec![])]);
        assert_eq!(outcomes(&none, &[create(0), sync(true)]), [Some(vec![])]);
        let delete = |folder_synced| Event::Delete {
            name: String::new(),
            folder_synced,
        };
        let initial = one_file(vec![7]);
        assert_eq!(outcomes(&initial, &[delete(false)]), [None, Some(vec![7])]);
        assert_eq!(outcomes(&initial, &[delete(true)]), [None]);
    }

    #[test]
    fn lengths_are_lost_too() {
        let events = [Event::Resize { inode: 0, len: 512 }];
        let found = outcomes(&one_file(vec![3; 1024]), &events);
        assert!(found.contains(&Some(vec![3; 512])) && found.contains(&Some(vec![3; 1024])));
    }
}
