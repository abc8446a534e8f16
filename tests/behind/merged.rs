//! What was merged into a span meanwhile, its segments deleted.

use std::path::PathBuf;

use replvfs::config::Retention;
use replvfs::merge::{MergeOptions, merge};
use replvfs::prune::{PruneOptions, prune};
use replvfs::store::{Store, StoreOptions};
use replvfs_tests::block_on;
use replvfs_vfs::types::UnixMillis;

use super::*;

impl World {
    fn slots(&self) -> Vec<PathBuf> {
        let log = self.scratch.file("replica/gen/0000000000000001/log");
        let mut slots: Vec<PathBuf> = std::fs::read_dir(log)
            .unwrap()
            .map(|slot| slot.unwrap().path())
            .collect();
        slots.sort();
        slots
    }

    /// Leaves the first segment and the last one.
    fn merge(&self) {
        let store = Store::open(&self.scratch.replica(), &StoreOptions::reading()).unwrap();
        let by_the_pair = MergeOptions {
            pieces: 2,
            ..MergeOptions::default()
        };
        block_on(merge(&store, None, &by_the_pair)).unwrap();
        let options = PruneOptions {
            retention: Retention::Forever,
            merged_at_once: true,
            ..PruneOptions::at(UnixMillis(0))
        };
        block_on(prune(&store, &options)).unwrap();
        assert_eq!(self.slots().len(), 2, "{:?}", self.slots());
    }
}

#[test]
fn a_machine_that_comes_back_finds_what_was_merged() {
    World::each(|world| {
        world.begin_and_end();
        world.restore_to("b");
        let mut b = world.open("b", "");
        for n in 4..=9 {
            write(&mut b, "b", n..=n);
            b.tell("flush");
        }
        b.end();
        world.merge();
        let mut a = world.open("a", IF_BEHIND);
        assert_eq!(a.ask(LIST), "a1 a2 a3 b4 b5 b6 b7 b8 b9");
        write(&mut a, "a", 10..=10);
        a.tell("flush");
        a.has_gone_on();
        a.end();
        assert_eq!(
            (world.newest().as_str(), world.generations()),
            ("a1 a2 a3 b4 b5 b6 b7 b8 b9 a10", 1)
        );
        world.same_as_newest("a");
    });
}

/// It died between the store's yes to its last segment and its note of it; the one before, which is noted, was merged.
#[test]
fn a_machine_whose_noted_segment_was_merged_goes_on() {
    for parameters in ["", IF_BEHIND] {
        let world = World::new("WAL");
        let mut a = world.begin();
        for n in 4..=8 {
            write(&mut a, "a", n..=n);
            a.tell("flush");
        }
        let noted = std::fs::read(world.file("a", "-replvfs")).unwrap();
        write(&mut a, "a", 9..=9);
        a.tell("flush");
        a.kill();
        world.merge();
        std::fs::write(world.file("a", "-replvfs"), noted).unwrap();
        let mut a = world.open("a", parameters);
        write(&mut a, "a", 10..=10);
        a.tell("flush");
        a.has_gone_on();
        a.end();
        assert_eq!(
            (world.newest().as_str(), world.generations()),
            ("a1 a2 a3 a4 a5 a6 a7 a8 a9 a10", 1)
        );
        world.same_as_newest("a");
    }
}
