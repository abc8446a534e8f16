//! Programs that fork after they have opened a database: the child leaves alone what its parent replicates, and is a process of its own for
//! what it opens itself.
//!
//! The program is this test program once more, which runs the test `program` and does what its environment says: so no other test's
//! threads are there when it forks. Children are forked from a process with threads. By POSIX they may hardly do anything before they call `exec`; on
//! Linux memory can be had, and that is what servers rely on that fork their workers.
#![allow(missing_docs)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use replvfs::format::Generation;
use replvfs::history::{History, Target};
use replvfs::store::{Store, StoreOptions};
use replvfs::{Config, Replication, Txid};
use replvfs_tests::weather::{FaultyStore, Storm, Trouble};
use replvfs_tests::{
    Scratch, block_on, check_integrity, compare_pages, flush, open, plain_image, restore_txid, status,
};
use rusqlite::Connection;

const ROLE: &str = "REPLVFS_TEST_FORK_ROLE";
const URI: &str = "REPLVFS_TEST_FORK_URI";
const JOURNAL: &str = "REPLVFS_TEST_FORK_JOURNAL";
/// Nothing here takes so long. Who waits for ever is killed.
const SECONDS: u32 = 100;
/// Rows with which every program begins.
const BEGUN: u64 = 40;
const BUSY: Duration = Duration::from_secs(60);

/// What the program does, as its environment says.
#[test]
fn program() {
    let (Ok(role), Ok(uri)) = (std::env::var(ROLE), std::env::var(URI)) else {
        return;
    };
    give_up_after_a_while();
    println!();
    match role.as_str() {
        "plain" => plain_writer(&uri),
        "waits" => wait_for_the_end_of_input(),
        "nothing" => {}
        "idle" => with_idle_children(&uri),
        "anew" => with_children_that_open_it(&uri),
        "inherited" => with_children_that_use_what_they_inherited(&uri),
        "exec" => with_children_that_exec(&uri),
        "exec_stays" => ends_while_a_child_lives(&uri, stay_as_another_program),
        "orphan_idle" => ends_while_a_child_lives(&uri, |_| wait_for_the_end_of_input()),
        "parent" => lives_with_a_child(&uri),
        "orphan" => ends_while_a_child_lives(&uri, take_over),
        "killed" => is_killed_while_a_child_lives(&uri),
        "remote" => with_children_that_read_the_replica(&uri),
        "image" => forks_while_an_image_is_made(&uri),
        "threads" => with_children_of_a_busy_process(&uri),
        other => panic!("{other}?"),
    }
}

fn give_up_after_a_while() {
    // SAFETY: the signal kills the process, whatever it is at.
    unsafe { libc::alarm(SECONDS) };
}

/// A child of this process, which does this and ends without the end of the test program.
fn fork(body: impl FnOnce()) -> libc::pid_t {
    // SAFETY: the child goes on with the only thread that it has, in the closure, and never returns from here. What it uses there is its own
    // or what is tested.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork failed: {}", std::io::Error::last_os_error());
    if pid == 0 {
        give_up_after_a_while();
        let done = catch_unwind(AssertUnwindSafe(body)).is_ok();
        // SAFETY: ends the process; what its parent had is not to be tidied up here.
        unsafe { libc::_exit(i32::from(!done)) };
    }
    pid
}

fn wait(pid: libc::pid_t) {
    let mut how = 0;
    // SAFETY: the pointer is to a local variable.
    let waited = unsafe { libc::waitpid(pid, &raw mut how, 0) };
    assert_eq!((waited, how), (pid, 0), "a child failed, or waited for ever");
}

/// A line of its own, whatever the harness has begun; in one piece, since parent and child write to the same pipe.
fn say(line: &str) {
    std::io::stdout().write_all(format!("\n{line}\n").as_bytes()).unwrap();
}

/// Opens the database, has it replicated, and writes more without waiting for the upload.
fn begin(uri: &str) -> Connection {
    let connection = open(uri).unwrap();
    connection.busy_timeout(BUSY).unwrap();
    let journal = std::env::var(JOURNAL).unwrap();
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode={journal}; CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, who, b)"
        ))
        .unwrap();
    write(&connection, "parent", BEGUN / 2);
    flush(&connection);
    write(&connection, "parent", BEGUN / 2);
    connection
}

fn write(connection: &Connection, who: &str, rows: u64) {
    for _ in 0..rows {
        connection
            .execute("INSERT INTO t(who, b) VALUES(?1, randomblob(3000))", [who])
            .unwrap();
    }
}

fn rows(connection: &Connection) -> u64 {
    let rows: i64 = connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap();
    rows as u64
}

fn with_idle_children(uri: &str) {
    let connection = begin(uri);
    for _ in 0..10 {
        let child = fork(|| {});
        write(&connection, "parent", 5);
        wait(child);
    }
    write(&connection, "parent", 1);
    flush(&connection);
}

fn with_children_that_open_it(uri: &str) {
    let connection = begin(uri);
    let inherited = Replication::of(connection.path().unwrap()).unwrap();
    let mut expected = rows(&connection);
    for round in 0..12 {
        let child = fork(|| {
            let own = open(uri).unwrap();
            own.busy_timeout(BUSY).unwrap();
            assert!(rows(&own) >= expected);
            write(&own, "child", 5);
            let now = status(&own);
            assert_eq!(now["owner"], false, "{now}");
            // The parent is asked.
            flush(&own);
            let here = Replication::of(own.path().unwrap()).unwrap();
            here.flush().unwrap();
            let refused = inherited.flush().unwrap_err();
            assert!(refused.to_string().contains("fork()"), "{refused}");
            own.close().unwrap();
        });
        expected += 5;
        // At the same time, every other time.
        if round % 2 == 0 {
            write(&connection, "parent", 5);
            expected += 5;
        }
        wait(child);
    }
    assert_eq!(rows(&connection), expected);
    assert_eq!(status(&connection)["owner"], true);
    flush(&connection);
}

/// As SQLite forbids it. No damage must come of it to the history.
fn with_children_that_use_what_they_inherited(uri: &str) {
    let mut connection = Some(begin(uri));
    for round in 0..10 {
        let expected = rows(connection.as_ref().unwrap());
        let child = fork(|| {
            if round % 3 != 0 {
                assert_eq!(rows(connection.as_ref().unwrap()), expected);
            }
            if round % 3 != 1 {
                drop(connection.take());
            }
        });
        wait(child);
        write(connection.as_ref().unwrap(), "parent", 3);
    }
    flush(connection.as_ref().unwrap());
}

/// This program once more, in this process.
fn become_program(role: &str, uri: &str) {
    let error = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "program", "--nocapture", "--quiet"])
        .env(ROLE, role)
        .env(URI, uri)
        .exec();
    panic!("{error}");
}

fn with_children_that_exec(uri: &str) {
    let connection = begin(uri);
    let plain = format!("file:{}", path_of(uri));
    for _ in 0..4 {
        let child = fork(|| become_program("plain", &plain));
        write(&connection, "parent", 5);
        wait(child);
    }
    flush(&connection);
    assert_eq!(rows(&connection), BEGUN + 4 * (5 + 7));
}

fn path_of(uri: &str) -> &str {
    uri.strip_prefix("file:").unwrap().split('?').next().unwrap()
}

fn plain_writer(uri: &str) {
    let connection = open(uri).unwrap();
    connection.busy_timeout(BUSY).unwrap();
    write(&connection, "plain", 7);
}

fn wait_for_the_end_of_input() {
    say("there");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    say("ended");
}

fn stay_as_another_program(_: &str) {
    become_program("waits", "none");
}

/// Closes nothing, and ends when the child is where it wants to be.
fn ends_while_a_child_lives(uri: &str, child: impl FnOnce(&str)) {
    let connection = begin(uri);
    flush(&connection);
    fork(|| child(uri));
    // Its output is this process's. Who reads it knows when the child is there.
    std::mem::forget(connection);
}

/// Commits until this process replicates the database, and flushes.
fn take_over(uri: &str) {
    let connection = open(uri).unwrap();
    connection.busy_timeout(BUSY).unwrap();
    write(&connection, "child", 3);
    say("there");
    while status(&connection)["owner"] == false {
        write(&connection, "child", 1);
    }
    write(&connection, "child", 3);
    flush(&connection);
    say(&format!("committed {}", rows(&connection)));
    connection.close().unwrap();
    say("ended");
}

/// Both, until the end of the input.
fn lives_with_a_child(uri: &str) {
    let connection = begin(uri);
    flush(&connection);
    fork(wait_for_the_end_of_input);
    wait_for_the_end_of_input();
}

fn is_killed_while_a_child_lives(uri: &str) {
    let connection = begin(uri);
    fork(|| take_over(uri));
    loop {
        write(&connection, "parent", 1);
    }
}

/// The application has no lock, but replvfs reads the file for the image, which no store takes.
fn forks_while_an_image_is_made(uri: &str) {
    let plain = Connection::open(path_of(uri)).unwrap();
    plain
        .execute_batch(
            "CREATE TABLE t(a INTEGER PRIMARY KEY, who, b);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 40)
             INSERT INTO t(who, b) SELECT 'plain', randomblob(100000) FROM n",
        )
        .unwrap();
    plain.close().unwrap();
    let store = FaultyStore::new(true);
    store.weather.storm(Some(Storm::lasting(Trouble::Hang)));
    let config = Config::default()
        .vfs_name("replvfs-image")
        .operator(store.faulty.clone());
    replvfs::register(config).unwrap();
    let uri = format!("file:{}?vfs=replvfs-image&restore=never", path_of(uri));
    let connection = open(&uri).unwrap();
    assert_eq!(rows(&connection), BEGUN);
    fork(|| {
        let own = open(&uri).unwrap();
        own.busy_timeout(Duration::from_secs(5)).unwrap();
        say("there");
        wait_for_the_end_of_input();
        write(&own, "child", 5);
        say(&format!("committed {}", rows(&own)));
    });
    std::mem::forget(connection);
}

/// What they inherited refuses everything, what they open themselves is their own.
fn with_children_that_read_the_replica(uri: &str) {
    let connection = begin(uri);
    flush(&connection);
    let (_, replica) = uri.split_once("replica=").unwrap();
    let replica = replica.split('&').next().unwrap();
    let remote_uri = format!("file:app.db?vfs=replvfs-remote&replica={replica}");
    let mut remote = Some(open(&remote_uri).unwrap());
    assert_eq!(rows(remote.as_ref().unwrap()), BEGUN);
    for round in 0..6 {
        let child = fork(|| {
            let inherited = remote.as_ref().unwrap();
            assert!(inherited.query_row("SELECT count(*) FROM t", [], |_| Ok(())).is_err());
            assert!(inherited.query_row("PRAGMA replvfs_txid", [], |_| Ok(())).is_err());
            let own = open(&format!("{remote_uri}&follow=10ms")).unwrap();
            assert_eq!(rows(&own), BEGUN);
            if round % 2 == 0 {
                drop(remote.take());
            }
            assert_eq!(rows(&own), BEGUN);
        });
        wait(child);
        assert_eq!(rows(remote.as_ref().unwrap()), BEGUN);
    }
    drop(remote);
    assert_eq!(rows(&open(&remote_uri).unwrap()), BEGUN);
}

/// The children do not touch SQLite: the other threads may hold its mutexes.
fn with_children_of_a_busy_process(uri: &str) {
    let connection = begin(uri);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let own = open(uri).unwrap();
            own.busy_timeout(BUSY).unwrap();
            while !over.load(Ordering::Acquire) {
                write(&own, "thread", 1);
            }
        });
        for round in 0..150 {
            let child = fork(|| {
                if round % 10 == 0 {
                    become_program("nothing", "none");
                }
            });
            wait(child);
        }
        over.store(true, Ordering::Release);
    });
    flush(&connection);
}

/// Starts the program.
fn start(scratch: &Scratch, role: &str, journal: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "program", "--nocapture", "--quiet"])
        .env(ROLE, role)
        .env(JOURNAL, journal)
        .env(URI, scratch.uri_with("&flush_interval=10ms"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs it to its end.
fn run(role: &str, journal: &str) -> Scratch {
    let scratch = Scratch::in_memory();
    let mut program = start(&scratch, role, journal);
    drop(program.stdin.take());
    let mut output = String::new();
    program.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert!(program.wait().unwrap().success(), "{role} with {journal}: {output}");
    scratch
}

/// The next line of the program, or of its child, that begins so.
fn hear(output: &mut impl BufRead, begins: &str) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        assert_ne!(
            output.read_line(&mut line).unwrap(),
            0,
            "it ended before it said {begins}"
        );
        if let Some(rest) = line.trim_end().strip_prefix(begins) {
            return rest.trim().to_owned();
        }
    }
}

/// Restored it is the database, which has so many rows.
fn newest_is_the_database(scratch: &Scratch) -> u64 {
    let out = scratch.file("restored.db");
    restore_txid(&scratch.replica(), &out, None);
    compare_pages(&plain_image(&scratch.database()), &std::fs::read(&out).unwrap()).unwrap();
    check_integrity(&out);
    let found = rows(&Connection::open(&out).unwrap());
    std::fs::remove_file(&out).unwrap();
    found
}

/// All transactions are in one generation with one image, and each adds a row to the one before.
fn one_generation_has_each_commit(scratch: &Scratch, expected: u64) {
    assert_eq!(newest_is_the_database(scratch), expected);
    let store = Store::open(&scratch.replica(), &StoreOptions::reading()).unwrap();
    let history = block_on(History::open(&store)).unwrap();
    let [generation] = history.generations() else {
        panic!("{} generations", history.generations().len())
    };
    assert_eq!(generation.images().len(), 1, "the image was uploaded twice");
    let mut found = generation.images().to_vec();
    let visit = history.transactions(Generation(1), Txid(0)..=Txid(u64::MAX), |entry| found.push(entry.txid));
    block_on(visit).unwrap();
    let follows: Vec<Txid> = (found[0].0..).map(Txid).take(found.len()).collect();
    assert_eq!(found, follows);
    let newest = found.last().unwrap().0;
    for back in (0..expected.min(20)).chain([expected - 1]) {
        let out = scratch.file("earlier.db");
        replvfs_tests::restore_from(&store, Target::Txid(Txid(newest - back)), &out).unwrap();
        assert_eq!(rows(&Connection::open(&out).unwrap()), expected - back);
        std::fs::remove_file(&out).unwrap();
    }
}

const JOURNALS: [&str; 2] = ["WAL", "DELETE"];

#[test]
fn a_child_that_does_nothing_leaves_no_trace() {
    for journal in JOURNALS {
        one_generation_has_each_commit(&run("idle", journal), BEGUN + 10 * 5 + 1);
    }
}

#[test]
fn what_a_child_writes_is_replicated_by_its_parent() {
    one_generation_has_each_commit(&run("anew", "WAL"), BEGUN + 12 * 5 + 6 * 5);
    assert_eq!(newest_is_the_database(&run("anew", "DELETE")), BEGUN + 12 * 5 + 6 * 5);
}

#[test]
fn a_child_that_uses_what_it_inherited_does_no_damage() {
    for journal in JOURNALS {
        one_generation_has_each_commit(&run("inherited", journal), BEGUN + 10 * 3);
    }
}

#[test]
fn a_child_that_becomes_another_program_is_a_writer_like_any_other() {
    one_generation_has_each_commit(&run("exec", "WAL"), BEGUN + 4 * (5 + 7));
    assert_eq!(newest_is_the_database(&run("exec", "DELETE")), BEGUN + 4 * (5 + 7));
}

#[test]
fn a_child_reads_a_replica_by_itself() {
    run("remote", "WAL");
}

/// Or its lock would outlive it, and nobody would replicate the database.
#[test]
fn a_child_does_not_hold_its_parents_place() {
    for role in ["orphan_idle", "exec_stays"] {
        for journal in JOURNALS {
            let scratch = Scratch::in_memory();
            let mut program = start(&scratch, role, journal);
            // Waiting for it would close this, for which its child waits.
            let input = program.stdin.take();
            let mut output = BufReader::new(program.stdout.take().unwrap());
            hear(&mut output, "there");
            assert!(program.wait().unwrap().success());
            let connection = scratch.open();
            write(&connection, "next", 1);
            assert_eq!(status(&connection)["owner"], true, "{role} with {journal}");
            flush(&connection);
            drop(connection);
            assert_eq!(newest_is_the_database(&scratch), BEGUN + 1);
            drop(input);
            hear(&mut output, "ended");
        }
    }
}

/// Or who waits for its answer would wait for one that nobody gives.
#[test]
fn a_child_does_not_answer_for_its_parent() {
    let scratch = Scratch::in_memory();
    let mut program = start(&scratch, "parent", "WAL");
    let input = program.stdin.take();
    let mut output = BufReader::new(program.stdout.take().unwrap());
    // Of the parent, and of the child.
    hear(&mut output, "there");
    hear(&mut output, "there");
    let uri = scratch.uri_with("&flush_interval=10ms&timeout=1h");
    let here = open(&uri).unwrap();
    assert_eq!(rows(&here), BEGUN);
    assert_eq!(status(&here)["owner"], false);
    let signal = |name: libc::c_int| {
        // SAFETY: the process is a child of this one that nobody has waited for.
        assert_eq!(unsafe { libc::kill(program.id().cast_signed(), name) }, 0);
    };
    signal(libc::SIGSTOP);
    let (done, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let standby = open(&uri).unwrap();
        standby.execute_batch("PRAGMA replvfs_durability=remote").unwrap();
        write(&standby, "standby", 1);
        drop(standby);
        done.send(()).unwrap();
    });
    // It is committed here, and waits for one that does not answer.
    while rows(&here) == BEGUN {
        std::thread::yield_now();
    }
    signal(libc::SIGKILL);
    told.recv_timeout(BUSY)
        .expect("who waits is told of the end of whom it waits for");
    program.wait().unwrap();
    assert_eq!(newest_is_the_database(&scratch), BEGUN + 1);
    drop(input);
    hear(&mut output, "ended");
}

#[test]
fn a_child_takes_over_from_a_parent_that_ended_or_was_killed() {
    for role in ["orphan", "killed"] {
        for journal in JOURNALS {
            let scratch = Scratch::in_memory();
            let mut program = start(&scratch, role, journal);
            let mut output = BufReader::new(program.stdout.take().unwrap());
            hear(&mut output, "there");
            if role == "killed" {
                program.kill().unwrap();
            }
            program.wait().unwrap();
            let committed: u64 = hear(&mut output, "committed").parse().unwrap();
            hear(&mut output, "ended");
            // Until the child has taken over nobody keeps the WAL, so that the child may have restarted it.
            assert_eq!(newest_is_the_database(&scratch), committed);
        }
    }
}

/// SQLite knows its locks by the file's inode, and a child inherits that memory, but no locks. With a handle that its parent has open, and of
/// which the application does not know, SQLite would believe in the child for ever that somebody reads.
#[test]
fn a_child_has_locks_of_its_own_where_its_parent_made_an_image() {
    let scratch = Scratch::in_memory();
    let mut program = start(&scratch, "image", "DELETE");
    let input = program.stdin.take();
    let mut output = BufReader::new(program.stdout.take().unwrap());
    hear(&mut output, "there");
    assert!(program.wait().unwrap().success());
    drop(input);
    assert_eq!(hear(&mut output, "committed"), (BEGUN + 5).to_string());
    assert_eq!(rows(&Connection::open(scratch.database()).unwrap()), BEGUN + 5);
}

#[test]
fn a_process_that_is_busy_may_fork_at_any_moment() {
    for journal in JOURNALS {
        let scratch = run("threads", journal);
        let rows = newest_is_the_database(&scratch);
        assert!(rows > BEGUN + 40, "{rows}");
        one_generation_has_each_commit(&scratch, rows);
    }
}
