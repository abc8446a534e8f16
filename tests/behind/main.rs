//! Two machines with a database and one replica, by turns: who opens with `restore=if-behind` has what the other one did, or what it has of its own.
#![allow(missing_docs)]

mod half;
mod killed;
mod merged;
mod process;

use std::path::{Path, PathBuf};

use process::Process;
use replvfs::history::Target;
use replvfs::restore::{RestoreOptions, restore};
use replvfs::store::{Store, StoreOptions};
use replvfs_tests::{Scratch, block_on, check_integrity, plain_image, restore_txid};

#[test]
fn process() {
    process::run();
}

/// Two folders, and a replica beside them.
struct World {
    scratch: Scratch,
    mode: &'static str,
}

const COUNT: &str = "SELECT count(*) FROM t";
const LIST: &str = "SELECT group_concat(who || n, ' ') FROM (SELECT who, n FROM t ORDER BY n, who)";
const IF_BEHIND: &str = "&restore=if-behind";

impl World {
    fn new(mode: &'static str) -> World {
        let scratch = Scratch::new();
        for machine in ["a", "b"] {
            std::fs::create_dir(scratch.file(machine)).unwrap();
        }
        World { scratch, mode }
    }

    fn each(test: impl Fn(World)) {
        for mode in ["WAL", "DELETE", "PERSIST"] {
            eprintln!("journal_mode={mode}");
            test(World::new(mode));
        }
    }

    fn file(&self, machine: &str, suffix: &str) -> PathBuf {
        self.scratch.file(machine).join(format!("app.db{suffix}"))
    }

    fn uri(&self, machine: &str, parameters: &str) -> String {
        format!(
            "file:{}?vfs=replvfs&replica={}&flush_interval=10ms{parameters}",
            self.file(machine, "").display(),
            self.scratch.replica()
        )
    }

    fn open(&self, machine: &str, parameters: &str) -> Process {
        Process::open(&self.uri(machine, parameters))
    }

    /// A begins the history: rows 1 to 3.
    fn begin(&self) -> Process {
        let mut a = self.open("a", "");
        a.tell("PRAGMA page_size = 1024");
        a.tell(&format!("PRAGMA journal_mode = {}", self.mode));
        a.tell("CREATE TABLE t(who, n, filling)");
        write(&mut a, "a", 1..=3);
        a.tell("flush");
        a
    }

    /// The same, and A is done. What a process wrote through a rollback journal is proved to no later one: there A's file is a restored one.
    fn begin_and_end(&self) {
        self.begin().end();
        if self.mode != "WAL" {
            self.restore_to("a");
        }
    }

    /// The newest state.
    fn restore_to(&self, machine: &str) {
        self.restore_at(machine, Target::Newest);
    }

    fn restore_at(&self, machine: &str, target: Target) {
        let options = RestoreOptions {
            target,
            resumable: true,
            force: true,
            ..RestoreOptions::default()
        };
        let store = Store::open(&self.scratch.replica(), &StoreOptions::reading()).unwrap();
        block_on(restore(&store, &self.file(machine, ""), &options)).unwrap();
    }

    /// B takes over, and writes these rows.
    fn b_goes_on(&self, rows: std::ops::RangeInclusive<u32>) {
        self.restore_to("b");
        let mut b = self.open("b", "");
        write(&mut b, "b", rows);
        b.tell("flush");
        b.end();
    }

    /// The newest state in the replica, by rows.
    fn newest(&self) -> String {
        let out = self.scratch.file("newest.db");
        restore_txid(&self.scratch.replica(), &out, None);
        check_integrity(&out);
        let list = rows_of(&out);
        std::fs::remove_file(&out).unwrap();
        list
    }

    fn generations(&self) -> usize {
        std::fs::read_dir(self.scratch.file("replica/gen")).unwrap().count()
    }

    fn same_as_newest(&self, machine: &str) {
        let out = self.scratch.file("newest.db");
        restore_txid(&self.scratch.replica(), &out, None);
        let (newest, local) = (plain_image(&out), plain_image(&self.file(machine, "")));
        replvfs_tests::compare_pages(&newest, &local).unwrap();
        std::fs::remove_file(&out).unwrap();
    }
}

fn rows_of(path: &Path) -> String {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.query_row(LIST, [], |row| row.get(0)).unwrap()
}

fn write(process: &mut Process, who: &str, rows: std::ops::RangeInclusive<u32>) {
    for n in rows {
        process.tell(&format!("INSERT INTO t VALUES('{who}', {n}, randomblob(5000))"));
    }
}

/// A closes, or dies with all of it in the store; B takes over; A comes back.
#[test]
fn a_machine_that_comes_back_goes_on_where_the_other_one_got() {
    for is_killed in [false, true] {
        World::each(|world| {
            match (is_killed, world.mode) {
                (true, "WAL") => world.begin().kill(),
                (true, _) => return,
                (false, _) => world.begin_and_end(),
            }
            world.b_goes_on(4..=6);
            let mut a = world.open("a", IF_BEHIND);
            assert_eq!(a.ask(LIST), "a1 a2 a3 b4 b5 b6");
            write(&mut a, "a", 7..=8);
            a.tell("flush");
            a.has_gone_on();
            assert_eq!(a.ask("PRAGMA integrity_check"), "ok");
            assert_eq!(a.ask("PRAGMA journal_mode") == "wal", world.mode == "WAL");
            a.end();
            assert_eq!(
                (world.newest().as_str(), world.generations()),
                ("a1 a2 a3 b4 b5 b6 a7 a8", 1)
            );
            world.same_as_newest("a");
            if world.mode != "WAL" {
                return;
            }
            // And there again.
            let mut b = world.open("b", IF_BEHIND);
            assert_eq!(b.ask(COUNT), "8");
            b.end();
            world.same_as_newest("b");
            assert_eq!(world.generations(), 1);
        });
    }
}

/// B's file was written by somebody without replvfs, so that its history goes on in a generation of its own.
#[test]
fn a_newer_generation_that_follows_is_ahead_too() {
    World::each(|world| {
        world.begin_and_end();
        world.b_goes_on(4..=4);
        let plain = rusqlite::Connection::open(world.file("b", "")).unwrap();
        plain.execute("INSERT INTO t VALUES('p', 5, NULL)", []).unwrap();
        drop(plain);
        let mut b = world.open("b", "");
        write(&mut b, "b", 6..=6);
        b.tell("flush");
        b.end();
        assert_eq!(world.generations(), 2);
        let mut a = world.open("a", IF_BEHIND);
        assert_eq!(a.ask(LIST), "a1 a2 a3 b4 p5 b6");
        write(&mut a, "a", 7..=7);
        a.tell("flush");
        assert_eq!(a.status()["diverged"], false);
        a.end();
        assert_eq!(
            (world.newest().as_str(), world.generations()),
            ("a1 a2 a3 b4 p5 b6 a7", 2)
        );
    });
}

/// Another page size and fewer pages, in either direction.
#[test]
fn a_database_that_was_vacuumed_elsewhere_is_taken_over() {
    for page_size in [512, 8192] {
        World::each(|world| {
            let mut a = world.begin();
            write(&mut a, "a", 4..=40);
            a.tell("flush");
            a.end();
            if world.mode != "WAL" {
                world.restore_to("a");
            }
            world.restore_to("b");
            let mut b = world.open("b", "");
            b.tell("DELETE FROM t WHERE n > 5");
            b.tell("PRAGMA journal_mode = DELETE");
            b.tell(&format!("PRAGMA page_size = {page_size}"));
            b.tell("VACUUM");
            b.tell(&format!("PRAGMA journal_mode = {}", world.mode));
            write(&mut b, "b", 6..=6);
            b.tell("flush");
            b.end();
            let mut a = world.open("a", IF_BEHIND);
            assert_eq!(a.ask(LIST), "a1 a2 a3 a4 a5 b6");
            assert_eq!(a.ask("PRAGMA page_size"), page_size.to_string());
            assert_eq!(a.ask("PRAGMA integrity_check"), "ok");
            write(&mut a, "a", 7..=7);
            a.tell("flush");
            assert_eq!(a.status()["diverged"], false);
            a.end();
            world.same_as_newest("a");
        });
    }
}

/// A commits, its WAL stays behind, and the store does not have it.
#[test]
fn what_is_only_here_is_not_overwritten() {
    World::each(|world| {
        world.begin_and_end();
        world.b_goes_on(4..=5);
        // So that it cannot be uploaded.
        let log = world.scratch.file("replica/gen/0000000000000001/log");
        let away = world.scratch.file("away");
        std::fs::rename(&log, &away).unwrap();
        std::fs::write(&log, b"no folder").unwrap();
        let mut a = world.open("a", "&close_timeout=0ms");
        write(&mut a, "a", 4..=4);
        a.kill();
        std::fs::remove_file(&log).unwrap();
        std::fs::rename(&away, &log).unwrap();
        let mut a = world.open("a", IF_BEHIND);
        assert_eq!(a.ask(LIST), "a1 a2 a3 a4");
        a.tell("flush");
        assert_eq!(a.status()["discontinuities"], 1);
        assert_eq!(a.status()["diverged"], true);
        a.end();
        assert_eq!((world.newest().as_str(), world.generations()), ("a1 a2 a3 a4", 2));
        // What B did is there for who asks for it.
        let mut b = world.open("b", "");
        assert_eq!(b.ask(LIST), "a1 a2 a3 b4 b5");
        b.end();
    });
}

/// A dies between the store's yes and its note of it; its WAL ends where the store says that a transaction does.
#[test]
fn what_had_landed_without_being_noted_is_no_change_of_its_own() {
    let world = World::new("WAL");
    let mut a = world.begin();
    let state = std::fs::read(world.file("a", "-replvfs")).unwrap();
    write(&mut a, "a", 4..=5);
    a.tell("flush");
    a.kill();
    std::fs::write(world.file("a", "-replvfs"), state).unwrap();
    world.b_goes_on(6..=7);
    let mut a = world.open("a", IF_BEHIND);
    assert_eq!(a.ask(LIST), "a1 a2 a3 a4 a5 b6 b7");
    a.tell("flush");
    assert_eq!(a.status()["diverged"], false);
    a.end();
    assert_eq!(world.generations(), 1);
}

/// Somebody without replvfs wrote to A's file while no process had it open.
#[test]
fn a_file_that_nobody_vouches_for_is_not_overwritten() {
    World::each(|world| {
        world.begin_and_end();
        let plain = rusqlite::Connection::open(world.file("a", "")).unwrap();
        plain.execute("INSERT INTO t VALUES('p', 4, NULL)", []).unwrap();
        drop(plain);
        world.b_goes_on(4..=5);
        let mut a = world.open("a", IF_BEHIND);
        assert_eq!(a.ask(LIST), "a1 a2 a3 p4");
        a.tell("flush");
        assert_eq!(a.status()["discontinuities"], 1);
        // It does not say that it comes after what the other machine wrote.
        assert_eq!(a.status()["diverged"], true);
        assert_eq!(world.generations(), 2);
        a.end();
    });
}

/// Both went on from the same state, and the store took A's generation after B's.
#[test]
fn a_state_that_the_newest_one_does_not_follow_is_not_overwritten() {
    let world = World::new("WAL");
    world.begin_and_end();
    world.b_goes_on(4..=5);
    // As ever without the setting.
    let mut a = world.open("a", "");
    write(&mut a, "a", 4..=4);
    a.tell("flush");
    assert_eq!(a.status()["diverged"], true);
    a.end();
    let mut b = world.open("b", IF_BEHIND);
    assert_eq!(b.ask(LIST), "a1 a2 a3 b4 b5");
    b.tell("flush");
    assert_eq!(b.status()["diverged"], true);
    b.end();
    assert_eq!(world.generations(), 3);
}

#[test]
fn without_the_setting_it_diverges_as_ever() {
    for parameters in ["", "&restore=never", "&restore=if-missing"] {
        let world = World::new("WAL");
        world.begin_and_end();
        world.b_goes_on(4..=5);
        let mut a = world.open("a", parameters);
        assert_eq!(a.ask(LIST), "a1 a2 a3");
        write(&mut a, "a", 4..=4);
        a.tell("flush");
        assert_eq!(a.status()["diverged"], true);
        a.end();
    }
}

#[test]
fn a_missing_file_is_restored() {
    let world = World::new("WAL");
    world.begin_and_end();
    let mut b = world.open("b", IF_BEHIND);
    assert_eq!(b.ask(COUNT), "3");
    b.end();
}

#[test]
fn nothing_is_touched_where_nothing_is_newer() {
    let world = World::new("WAL");
    for is_killed in [false, true] {
        let mut a = world.open("a", IF_BEHIND);
        a.tell(&format!("PRAGMA journal_mode = {}", world.mode));
        a.tell("CREATE TABLE IF NOT EXISTS t(who, n, filling)");
        write(&mut a, "a", 1..=3);
        a.tell("flush");
        if is_killed {
            a.kill()
        } else {
            a.end()
        }
        let before = ["", "-replvfs"].map(|suffix| std::fs::read(world.file("a", suffix)).unwrap());
        let mut a = world.open("a", IF_BEHIND);
        let after = ["", "-replvfs"].map(|suffix| std::fs::read(world.file("a", suffix)).unwrap());
        assert!(before == after);
        assert_eq!(a.ask("SELECT max(n) FROM t"), "3");
        a.tell("flush");
        a.end();
    }
    assert_eq!(world.generations(), 1);
}

#[test]
fn a_store_that_cannot_be_read_makes_the_open_fail() {
    World::each(|world| {
        world.begin_and_end();
        world.b_goes_on(4..=5);
        let before = std::fs::read(world.file("a", "")).unwrap();
        let (meta, away) = (world.scratch.file("replica/replvfs.json"), world.scratch.file("away"));
        std::fs::rename(&meta, &away).unwrap();
        std::fs::create_dir(&meta).unwrap();
        let why = Process::refused(&world.uri("a", IF_BEHIND));
        assert!(
            why.contains("restore=if-missing") && why.contains("is not known"),
            "{why}"
        );
        std::fs::remove_dir(&meta).unwrap();
        std::fs::rename(&away, &meta).unwrap();
        // The newest state is damaged.
        let log = world.scratch.file("replica/gen/0000000000000001/log");
        let mut slots: Vec<PathBuf> = std::fs::read_dir(log)
            .unwrap()
            .map(|slot| slot.unwrap().path())
            .collect();
        slots.sort();
        let newest = slots.pop().unwrap();
        let whole = std::fs::read(&newest).unwrap();
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        std::fs::write(&newest, damaged).unwrap();
        let why = Process::refused(&world.uri("a", IF_BEHIND));
        assert!(why.contains("log/") && why.contains("restore=if-missing"), "{why}");
        std::fs::write(&newest, whole).unwrap();
        assert_eq!(std::fs::read(world.file("a", "")).unwrap(), before);
        assert_eq!(rows_of(&world.file("a", "")), "a1 a2 a3");
    });
}

#[test]
fn a_file_that_another_process_has_open_is_left_alone() {
    for mode in ["WAL", "DELETE"] {
        let world = World::new(mode);
        world.begin_and_end();
        world.b_goes_on(4..=5);
        let plain = Process::open(world.file("a", "").to_str().unwrap());
        let mut plain = plain;
        plain.tell("BEGIN");
        assert_eq!(plain.ask(COUNT), "3");
        let why = Process::refused(&world.uri("a", IF_BEHIND));
        assert!(why.contains("another connection has it open"), "{mode}: {why}");
        assert_eq!(plain.ask(COUNT), "3");
        plain.tell("COMMIT");
        plain.end();
        let mut a = world.open("a", IF_BEHIND);
        assert_eq!(a.ask(COUNT), "5", "{mode}");
        a.end();
    }
}

/// Without a lock it does not keep the newest state away, and finds it itself: it is the same file.
#[test]
fn an_idle_connection_of_another_process_sees_what_came() {
    let world = World::new("DELETE");
    world.begin_and_end();
    world.b_goes_on(4..=5);
    let path = world.file("a", "");
    let mut read_before = Process::open(path.to_str().unwrap());
    assert_eq!(read_before.ask(COUNT), "3");
    let mut never_read = Process::open(path.to_str().unwrap());
    let mut a = world.open("a", IF_BEHIND);
    for plain in [&mut read_before, &mut never_read] {
        assert_eq!(plain.ask("SELECT count(*) FROM t WHERE n < 6"), "5");
        plain.tell("INSERT INTO t VALUES('p', 6, NULL)");
    }
    assert_eq!(a.ask(COUNT), "7");
    a.tell("flush");
    a.end();
    assert_eq!(world.newest(), "a1 a2 a3 b4 b5 p6 p6");
    check_integrity(&path);
}

#[test]
fn the_file_keeps_its_inode_and_its_mode() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    World::each(|world| {
        world.begin_and_end();
        let path = world.file("a", "");
        let mode = std::fs::metadata(&path).unwrap().mode();
        world.b_goes_on(4..=5);
        let inode = std::fs::metadata(&path).unwrap().ino();
        world.open("a", IF_BEHIND).end();
        let after = std::fs::metadata(&path).unwrap();
        assert_eq!((after.ino(), after.permissions().mode()), (inode, mode));
    });
}

/// Processes that start at once: one of them does it.
#[test]
fn processes_that_start_together_see_the_same() {
    for mode in ["WAL", "DELETE"] {
        let world = World::new(mode);
        world.begin_and_end();
        world.b_goes_on(4..=9);
        let uri = world.uri("a", IF_BEHIND);
        let mut processes: Vec<Process> = (0..4).map(|_| Process::start(&uri)).collect();
        for process in &mut processes {
            assert_eq!(process.answer(), "open");
            assert_eq!(process.ask(COUNT), "9");
        }
        processes.into_iter().for_each(Process::end);
        assert_eq!(world.generations(), 1);
    }
}

/// Idle, between two statements: with a WAL it has its lock until it closes.
#[test]
fn an_idle_connection_with_a_wal_keeps_the_newest_state_away() {
    for statements in [&["PRAGMA query_only = 1"][..], &["PRAGMA locking_mode = EXCLUSIVE"]] {
        let world = World::new("WAL");
        world.begin_and_end();
        world.b_goes_on(4..=5);
        let path = world.file("a", "");
        let mut uris = vec![path.display().to_string()];
        if statements[0].contains("query") {
            uris.push(format!("file:{}?mode=ro", path.display()));
        }
        for uri in uris {
            let mut plain = Process::open(&uri);
            for statement in statements {
                plain.ask(statement);
            }
            assert_eq!(plain.ask(COUNT), "3");
            let why = Process::refused(&world.uri("a", IF_BEHIND));
            assert!(why.contains("another connection has it open"), "{uri}: {why}");
            assert_eq!(plain.ask(COUNT), "3");
            plain.kill();
        }
        let mut a = world.open("a", IF_BEHIND);
        assert_eq!(a.ask(COUNT), "5");
        a.end();
    }
}

/// It has the lock for an instant, as `replvfs status` does: no reason to go on with what is here.
#[test]
fn who_asks_for_the_owner_just_then_makes_no_fork() {
    let world = World::new("WAL");
    world.begin_and_end();
    world.b_goes_on(4..=5);
    let asker = std::fs::File::open(world.file("a", "-replvfs-lock")).unwrap();
    asker.try_lock_shared().unwrap();
    let why = Process::refused(&world.uri("a", IF_BEHIND));
    assert!(why.contains("-replvfs-lock failed"), "{why}");
    let mut a = Process::start(&world.uri("a", IF_BEHIND));
    asker.unlock().unwrap();
    assert_eq!(a.answer(), "open");
    assert_eq!(a.ask(COUNT), "5");
    a.end();
}
