//! What the environment chooses, in processes of their own: this program again, with one of its tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use replvfs::Config;
use replvfs_tests::{Scratch, compare_pages, flush, plain_image, restore_txid, sqlite_log, use_wal};
use rusqlite::Connection;

const STORY: &str = "REPLVFS_TEST_STORY";

fn tell(story: &str, folder: &Path, environment: &[(&str, &str)]) -> Output {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command
        .args(["--exact", "environment::a_process_of_another_test", "--nocapture"])
        .envs(environment.iter().copied())
        .env(STORY, story)
        .current_dir(folder)
        .stdin(Stdio::null());
    command.output().unwrap()
}

fn assert_told(output: &Output) {
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Nothing by itself.
#[test]
fn a_process_of_another_test() {
    let Ok(story) = std::env::var(STORY) else {
        return;
    };
    let folder: PathBuf = std::env::current_dir().unwrap();
    match story.as_str() {
        "two databases" | "two folders" => {
            replvfs::register(Config::default()).unwrap();
            let names: &[&str] = match story.as_str() {
                "two databases" => &["one.db", "two.db"],
                _ => &["one/app.db", "two/app.db"],
            };
            for name in names {
                std::fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
                let connection = Connection::open(folder.join(name)).unwrap();
                use_wal(&connection);
                connection.execute_batch("CREATE TABLE t(x)").unwrap();
                connection.execute("INSERT INTO t VALUES (?1)", [name]).unwrap();
                flush(&connection);
            }
        }
        "refused" => {
            let error = replvfs::register(Config::default()).unwrap_err().to_string();
            assert!(
                error.contains("REPLVFS_REPLICA") && error.contains("put {name} into it"),
                "{error}"
            );
            // Nothing of it stays.
            Connection::open(folder.join("one.db"))
                .unwrap()
                .execute_batch("CREATE TABLE t(x)")
                .unwrap();
        }
        "one replica for two" => {
            sqlite_log();
            replvfs::register(Config::default()).unwrap();
            let uri = |name: &str| format!("file:{}?vfs=replvfs", folder.join(name).display());
            let one = Connection::open(uri("one.db")).unwrap();
            use_wal(&one);
            one.execute_batch("CREATE TABLE t(x)").unwrap();
            flush(&one);
            assert!(Connection::open(uri("two.db")).is_err());
            let logged = format!("{:?}", sqlite_log());
            assert!(logged.contains("already belongs to"), "{logged}");
            one.execute_batch("INSERT INTO t VALUES (1)").unwrap();
            flush(&one);
        }
        _ => panic!("{story}"),
    }
}

#[test]
fn a_replica_with_a_name_in_it_is_for_every_database() {
    let scratch = Scratch::new();
    let replica = scratch.replica_named("{name}-replica");
    let environment = [("REPLVFS_DEFAULT", "1"), ("REPLVFS_REPLICA", replica.as_str())];
    assert_told(&tell("two databases", scratch.path(), &environment));
    for name in ["one.db", "two.db"] {
        let out = scratch.file("restored.db");
        restore_txid(&scratch.replica_named(&format!("{name}-replica")), &out, None);
        compare_pages(&plain_image(&scratch.file(name)), &std::fs::read(&out).unwrap()).unwrap();
        std::fs::remove_file(out).unwrap();
    }
}

#[test]
fn a_replica_with_a_path_in_it_is_for_every_folder() {
    let scratch = Scratch::new();
    let replica = scratch.replica_named("of/{path}");
    let environment = [("REPLVFS_DEFAULT", "1"), ("REPLVFS_REPLICA", replica.as_str())];
    assert_told(&tell("two folders", scratch.path(), &environment));
    let folder = std::fs::canonicalize(scratch.path()).unwrap();
    for name in ["one/app.db", "two/app.db"] {
        let out = scratch.file("restored.db");
        restore_txid(
            &scratch.replica_named(&format!("of{}", folder.join(name).display())),
            &out,
            None,
        );
        compare_pages(&plain_image(&scratch.file(name)), &std::fs::read(&out).unwrap()).unwrap();
        std::fs::remove_file(out).unwrap();
    }
}

/// Whichever database comes first would have it, and one that is missing would be restored as another.
#[test]
fn one_replica_for_all_is_refused() {
    let scratch = Scratch::new();
    let replica = scratch.replica();
    let environment = [("REPLVFS_DEFAULT", "1"), ("REPLVFS_REPLICA", replica.as_str())];
    assert_told(&tell("refused", scratch.path(), &environment));
    assert!(!scratch.file("replica").exists());
}

#[test]
fn two_databases_with_one_replica_of_the_environment_do_not_mix() {
    let scratch = Scratch::new();
    let replica = scratch.replica();
    assert_told(&tell(
        "one replica for two",
        scratch.path(),
        &[("REPLVFS_REPLICA", replica.as_str())],
    ));
    let out = scratch.file("restored.db");
    restore_txid(&replica, &out, None);
    compare_pages(&plain_image(&scratch.file("one.db")), &std::fs::read(&out).unwrap()).unwrap();
    assert!(!scratch.file("two.db").exists());
}
