//! replvfs as the default VFS: the programs here name no VFS, and what is replicated is chosen by a file or the environment.
#![allow(missing_docs)]

mod environment;
mod passing;
mod secrets;

use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use metrics_util::debugging::{DebuggingRecorder, Snapshotter};
use replvfs::Config;
use replvfs_tests::{compare_pages, flush, plain_image, restore_txid, sqlite_log, status, use_wal};
use rusqlite::Connection;

/// One for the process, since a VFS is registered once: a folder of the build.
struct Place {
    folder: PathBuf,
    metrics: Snapshotter,
}

/// Tests run one after another: they change the file, and look at SQLite's error log.
fn place() -> (MutexGuard<'static, ()>, &'static Place) {
    static PLACE: LazyLock<Place> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("default_vfs");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).unwrap();
        }
        let recorder = DebuggingRecorder::new();
        let metrics = recorder.snapshotter();
        recorder.install().unwrap();
        let place = Place { folder, metrics };
        for folder in ["chosen", "other", "plain"] {
            std::fs::create_dir_all(place.file(folder)).unwrap();
        }
        place.configure("");
        replvfs_tests::sqlite_log();
        let config = Config::default()
            .make_default(true)
            .config_file(place.file("replvfs.toml"));
        replvfs::register(config).unwrap();
        place
    });
    static ONE: Mutex<()> = Mutex::new(());
    let alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let place = &*PLACE;
    place.configure("");
    sqlite_log();
    (alone, place)
}

impl Place {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn replica(&self, name: &str) -> String {
        format!("fs://{}/replicas/{name}", self.folder.display())
    }

    /// Writes the file: databases in `chosen` are replicated, and what `more` says.
    fn configure(&self, more: &str) {
        let chosen = format!(
            "[[database]]\npath = 'chosen/*.db'\nreplica = '{}'\n",
            self.replica("{name}")
        );
        std::fs::write(self.file("replvfs.toml"), format!("{chosen}{more}")).unwrap();
    }
}

fn with_rows(path: &Path, rows: u32) -> Connection {
    let connection = Connection::open(path).unwrap();
    use_wal(&connection);
    connection.execute_batch("CREATE TABLE IF NOT EXISTS t(x)").unwrap();
    for row in 0..rows {
        connection.execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
    }
    connection
}

/// The replica's newest state is the database.
fn assert_replicated(place: &Place, database: &Path, replica: &str) {
    let out = place.file("restored.db");
    restore_txid(replica, &out, None);
    compare_pages(&plain_image_by_unix(database), &std::fs::read(&out).unwrap()).unwrap();
    std::fs::remove_file(out).unwrap();
}

fn plain_image_by_unix(database: &Path) -> Vec<u8> {
    let mut connection = Connection::open(format!("file:{}?vfs=unix", database.display())).unwrap();
    connection.serialize("main").unwrap().to_vec()
}

#[test]
fn an_unchanged_program_is_replicated() {
    let (_alone, place) = place();
    let database = place.file("chosen/app.db");
    let connection = with_rows(&database, 20);
    assert_eq!(status(&connection)["replica"], place.replica("app.db"));
    flush(&connection);
    assert_replicated(place, &database, &place.replica("app.db"));
    // The plain way to look at it is not plain here.
    assert_eq!(plain_image(&database), plain_image_by_unix(&database));
}

/// By the name alone they would have one replica.
#[test]
fn two_databases_of_one_name_do_not_mix() {
    let (_alone, place) = place();
    place.configure(&format!(
        "[[database]]\npath = 'other/*.db'\nreplica = '{}'\n",
        place.replica("{name}")
    ));
    let first = place.file("chosen/same.db");
    let connection = with_rows(&first, 3);
    flush(&connection);
    let second = place.file("other/same.db");
    assert!(Connection::open(&second).is_err());
    let logged = format!("{:?}", sqlite_log());
    assert!(
        logged.contains("already belongs to") && logged.contains("chosen/same.db"),
        "{logged}"
    );
    assert!(!second.exists());
    connection.execute_batch("INSERT INTO t VALUES ('more')").unwrap();
    flush(&connection);
    assert_replicated(place, &first, &place.replica("same.db"));
}

/// The file is read again, and connections that are there stay as they are.
#[test]
fn a_database_is_chosen_while_it_is_open() {
    let (_alone, place) = place();
    let database = place.file("plain/late.db");
    let before = with_rows(&database, 5);
    place.configure(&format!(
        "[[database]]\npath = 'plain/late.db'\nreplica = '{}'\n",
        place.replica("late")
    ));
    let after = Connection::open(&database).unwrap();
    for row in 0..10 {
        before.execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
        after.execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
    }
    flush(&after);
    assert_replicated(place, &database, &place.replica("late"));
    // What is replicated stays so until the process ends.
    place.configure("");
    drop(after);
    let again = Connection::open(&database).unwrap();
    again.execute_batch("INSERT INTO t VALUES ('again')").unwrap();
    flush(&again);
    assert_replicated(place, &database, &place.replica("late"));
}

#[test]
fn a_broken_file_refuses_every_open_that_it_decides() {
    let (_alone, place) = place();
    let plain = place.file("plain/decided.db");
    with_rows(&plain, 1);
    place.configure("speed = 1\n");
    assert!(Connection::open(&plain).is_err());
    let logged = format!("{:?}", sqlite_log());
    assert!(logged.contains("replvfs.toml:4:1: speed is not known"), "{logged}");
    Connection::open_in_memory().unwrap();
    Connection::open(format!("file:{}?vfs=unix", plain.display())).unwrap();
    place.configure("");
    Connection::open(&plain).unwrap();
}

#[test]
fn the_file_in_the_readme_is_right() {
    let (_alone, place) = place();
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let text = readme.split("```toml").nth(1).unwrap().split("```").next().unwrap();
    let file = place.file("readme.toml");
    std::fs::write(&file, text).unwrap();
    let checked = replvfs::config::check_file(&file).unwrap();
    assert_eq!(checked.tables.len(), 2);
}
