//! A process is killed at any moment while it brings its database up to date: the database is the old one or the new one, whole, and whoever opens it
//! next knows which.

use std::path::{Path, PathBuf};
use std::time::Instant;

use replvfs::history::Target;
use replvfs_tests::{Rng, check_integrity, number};
use replvfs_vfs::types::Txid;

use crate::process::Process;
use crate::{IF_BEHIND, World, rows_of};

/// What a kill found.
#[derive(Debug, Default)]
struct Found {
    old: u64,
    /// The newest state, in the WAL that is about to be folded in.
    half: u64,
    new: u64,
}

const ROUNDS: u64 = 60;

#[test]
fn killed_at_any_moment_the_database_is_one_of_the_two() {
    let seed = number("REPLVFS_BEHIND_SEED").unwrap_or(1);
    let rounds = number("REPLVFS_BEHIND_ROUNDS").unwrap_or(ROUNDS);
    eprintln!("REPLVFS_BEHIND_SEED={seed} REPLVFS_BEHIND_ROUNDS={rounds}");
    let mut rng = Rng::new(seed);
    for (mode, has_wal) in [("WAL", true), ("WAL", false), ("DELETE", false)] {
        let world = World::new(mode);
        // Enough for the steps to take a while each.
        let filling = "INSERT INTO t WITH RECURSIVE c(n) AS (SELECT 10 UNION ALL SELECT n + 1 FROM c WHERE n < 600) \
                       SELECT 'a', n, randomblob(5000) FROM c";
        let mut a = world.begin();
        a.tell("PRAGMA wal_checkpoint(TRUNCATE)");
        a.tell(filling);
        a.tell("flush");
        let old = a.ask(crate::LIST);
        let txid = a.ask("PRAGMA replvfs_acked").parse().unwrap();
        let before = Before::of(&world, a, txid, has_wal);
        world.restore_to("b");
        let mut b = world.open("b", "");
        b.tell("UPDATE t SET who = 'b', filling = randomblob(5000) WHERE n % 3 = 0");
        b.tell("flush");
        b.end();
        let new = rows_of(&world.file("b", ""));
        let store = count(&world.scratch.file("replica"));
        // How long it takes without a kill.
        before.put_back(&world);
        let began = Instant::now();
        world.open("a", IF_BEHIND).kill();
        let whole = began.elapsed();
        let mut found = Found::default();
        for round in 0..rounds {
            before.put_back(&world);
            let process = Process::start(&world.uri("a", IF_BEHIND));
            // Most of the time the file is not touched yet.
            let from = if round % 4 == 0 { 0 } else { 4 };
            let share = u32::try_from(from * 100 + rng.below(1100 - from * 100)).unwrap();
            std::thread::sleep(whole * share / 1000);
            process.kill();
            look(&world, (&old, &new), &mut found);
            // Without the setting as with it: the state says what the file is. An old one would diverge without it, which the store is not put back from.
            let was_old = seen(&world) == old;
            let next = if round % 2 == 0 || was_old { IF_BEHIND } else { "" };
            let mut a = world.open("a", next);
            let now = a.ask(crate::LIST);
            assert!(
                now == new,
                "round {round}{next}: it is not what the killed process left, {was_old}"
            );
            // It goes on with the history, as if nothing had happened.
            a.ask("SELECT 1 FROM t");
            a.tell("flush");
            let status = a.status();
            assert_eq!(
                (&status["diverged"], &status["discontinuities"], &status["generation"]),
                (&false.into(), &0.into(), &1.into()),
                "round {round}: {status}"
            );
            a.kill();
            assert_eq!(count(&world.scratch.file("replica")), store, "round {round}");
        }
        eprintln!("journal_mode={mode}, WAL left: {has_wal}: {found:?} within {whole:?}");
        assert!(found.old > 0 && found.new + found.half > 0, "{found:?}");
    }
}

/// What the killed process left, copied, and read by plain SQLite.
fn look(world: &World, (old, new): (&str, &str), found: &mut Found) {
    let has_wal = std::fs::metadata(world.file("a", "-wal")).is_ok_and(|wal| wal.len() > 0);
    let rows = seen(world);
    match (rows == old, rows == new, has_wal) {
        (true, false, _) => found.old += 1,
        (false, true, true) => found.half += 1,
        (false, true, false) => found.new += 1,
        _ => panic!("it is neither the old nor the new one"),
    }
}

fn seen(world: &World) -> String {
    let folder = replvfs_tests::fast_folder();
    let copy = folder.path().join("app.db");
    for suffix in ["", "-wal", "-journal"] {
        let (from, to) = (world.file("a", suffix), folder.path().join(format!("app.db{suffix}")));
        if from.exists() {
            std::fs::copy(from, to).unwrap();
        }
    }
    let rows = rows_of(&copy);
    check_integrity(&copy);
    rows
}

/// A's database as it was before B went on, in a way that can be proved.
enum Before {
    /// Restored anew.
    At(Txid),
    /// With the WAL of a process that was killed, copied.
    Left(PathBuf),
}

impl Before {
    fn of(world: &World, a: Process, txid: u64, has_wal: bool) -> Before {
        if !has_wal {
            a.end();
            return Before::At(Txid(txid));
        }
        a.kill();
        let folder = world.scratch.file("saved");
        copy(&world.scratch.file("a"), &folder);
        Before::Left(folder)
    }

    fn put_back(&self, world: &World) {
        let folder = world.scratch.file("a");
        std::fs::remove_dir_all(&folder).unwrap();
        match self {
            Before::At(txid) => {
                std::fs::create_dir(&folder).unwrap();
                world.restore_at("a", Target::Txid(*txid));
            }
            Before::Left(saved) => copy(saved, &folder),
        }
    }
}

/// As a program for backups does: a socket has no content.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_type().unwrap().is_file() {
            continue;
        }
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn count(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
}
