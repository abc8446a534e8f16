//! The file: what it may say, every error with its place, and that no error has a secret in it.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::super::settings::Target;
use super::super::{Config, Settings, Source};
use super::*;

const MARK: &str = "hunter2hunter2";

fn errors(text: &str) -> Vec<String> {
    let errors = File::parse(Path::new("/etc/r.toml"), text).map(|_| ()).unwrap_err();
    errors.iter().map(ToString::to_string).collect()
}

/// A configuration whose file is there.
fn config(folder: &tempfile::TempDir, text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
    let path = folder.path().join("replvfs.toml");
    std::fs::write(&path, text).unwrap();
    let config = Config::default().config_file(path);
    let variable = |name: &str| {
        let found = environment.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.into())
    };
    config.with_environment(variable).map_err(|error| error.to_string())
}

fn resolve(config: &Config, path: &str, uri: &[(&str, &str)]) -> Result<Option<Settings>, String> {
    let parameters: Vec<_> = uri
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    Settings::resolve(config, Path::new(path), &parameters).map_err(|error| error.to_string())
}

fn replica(config: &Config, path: &str) -> Option<String> {
    match resolve(config, path, &[]).unwrap()?.target {
        Target::Uri(uri, _) => Some(uri),
        Target::Operator(_) => None,
    }
}

const WHOLE: &str = r#"
memory_limit = "32MiB"
flush_interval = "2s"
replica = "s3://all/{name}?region=eu"

[store]
access_key_id = "of all"
secret_access_key = "hunter2hunter2"

[[database]]
path = "/srv/*.db"
replica = "s3://glob/{name}"
timeout = "7s"
segment_size = 8388608

[[database]]
path = "/srv/app.db"
replica = "s3://exact/app"
durability = "remote"
on_timeout = "continue"
flush_interval = "3s"
wal_limit = "2GiB"
close_timeout = "1s"
restore = "if-behind"
on_fenced = "stop"
retention = "forever"
store.secret_access_key = "of the table"
store.enable_virtual_host_style = true

[[database]]
path = "data/*.db"
replica = "fs:///backup/{name}"
"#;

#[test]
fn a_path_in_the_replica_tells_folders_apart() {
    for text in [
        "[[database]]\npath = '/**/*.db'\nreplica = 's3://b/{path}'",
        "replica = 's3://b/{path}'\n[[database]]\npath = '/*/a.db'",
        "replica = 's3://b/{path}'",
    ] {
        assert_eq!(crate::config::check_text(text), [], "{text}");
    }
}

#[test]
fn an_exact_path_beats_a_glob_and_the_first_glob_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(&folder, WHOLE, &[]).unwrap();
    assert_eq!(config.memory_limit_bytes(), 32 << 20);
    let of = |path: &str| replica(&config, path).unwrap();
    assert_eq!(of("/srv/app.db"), "s3://exact/app");
    assert_eq!(of("/srv/other.db"), "s3://glob/other.db");
    assert_eq!(of("/home/x.db"), "s3://all/x.db?region=eu");
    let beside = folder.path().join("data/x.db");
    assert_eq!(of(beside.to_str().unwrap()), "fs:///backup/x.db");

    let app = resolve(&config, "/srv/app.db", &[]).unwrap().unwrap();
    assert_eq!(app.flush_interval, Duration::from_secs(3));
    assert_eq!((app.wal_limit, app.segment_size), (2 << 30, 4 << 20));
    assert_eq!(app.close_timeout, Duration::from_secs(1));
    let other = resolve(&config, "/srv/other.db", &[]).unwrap().unwrap();
    assert_eq!((other.timeout, other.segment_size), (Duration::from_secs(7), 8 << 20));
    // What its table does not say is from the top.
    assert_eq!(other.flush_interval, Duration::from_secs(2));

    let first = "[[database]]\npath='/a/*.db'\nreplica='memory://one-{name}'\n[[database]]\npath='/a/x*'\nreplica='memory://two-{name}'";
    let first = self::config(&folder, first, &[]).unwrap();
    assert_eq!(replica(&first, "/a/x.db").unwrap(), "memory://one-x.db");
    assert_eq!(replica(&first, "/a/xyz").unwrap(), "memory://two-xyz");
    assert_eq!(replica(&first, "/b/x.db"), None);
}

#[test]
fn uri_beats_program_beats_file_beats_environment() {
    let folder = tempfile::tempdir().unwrap();
    let environment = [
        ("REPLVFS_REPLICA", "memory://environment"),
        ("REPLVFS_TIMEOUT", "1s"),
        ("REPLVFS_FLUSH_INTERVAL", "1s"),
        ("REPLVFS_CLOSE_TIMEOUT", "1s"),
        ("REPLVFS_WAL_LIMIT", "1MiB"),
        ("REPLVFS_MEMORY_LIMIT", "1MiB"),
    ];
    let text = "memory_limit='2MiB'\n[[database]]\npath='/srv/app.db'\nreplica='memory://file'\ntimeout='2s'\nflush_interval='2s'\nclose_timeout='2s'";
    let from_file = config(&folder, text, &environment).unwrap();
    assert_eq!(from_file.memory_limit_bytes(), 2 << 20);
    let variable = |name: &str| {
        let found = environment.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.into())
    };
    let program = Config::default().config_file(folder.path().join("replvfs.toml"));
    let program = program
        .timeout(Duration::from_secs(3))
        .flush_interval(Duration::from_secs(3));
    let program = program.memory_limit(3 << 20).with_environment(variable).unwrap();
    assert_eq!(program.memory_limit_bytes(), 3 << 20);
    let settings = resolve(&program, "/srv/app.db", &[("timeout", "4s")]).unwrap().unwrap();
    let seconds = [settings.timeout, settings.flush_interval, settings.close_timeout].map(|length| length.as_secs());
    assert_eq!(seconds, [4, 3, 2]);
    assert_eq!(settings.wal_limit, 1 << 20);
    assert_eq!(replica(&program, "/srv/app.db").unwrap(), "memory://file");
    assert_eq!(replica(&program, "/srv/other.db").unwrap(), "memory://environment");
    let program = program.replica("memory://program");
    assert_eq!(replica(&program, "/srv/app.db").unwrap(), "memory://program");
    let uri = resolve(&program, "/srv/app.db", &[("replica", "memory://uri")])
        .unwrap()
        .unwrap();
    assert!(matches!(uri.target, Target::Uri(uri, _) if uri == "memory://uri"));
}

#[test]
fn keys_of_the_table_go_before_those_of_the_top_and_folders_take_none() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(&folder, WHOLE, &[]).unwrap();
    let keys = |path: &str| match resolve(&config, path, &[]).unwrap().unwrap().target {
        Target::Uri(_, keys) => keys,
        Target::Operator(_) => StoreKeys::default(),
    };
    let pairs = |pairs: &[(&str, &str)]| {
        StoreKeys::new(
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
        )
    };
    let of_all = [("access_key_id", "of all"), ("secret_access_key", MARK)];
    assert!(keys("/srv/other.db") == pairs(&of_all));
    let of_table = [
        ("access_key_id", "of all"),
        ("enable_virtual_host_style", "true"),
        ("secret_access_key", "of the table"),
    ];
    assert!(keys("/srv/app.db") == pairs(&of_table));
    let beside = folder.path().join("data/x.db");
    assert!(keys(beside.to_str().unwrap()) == StoreKeys::default());
}

#[test]
fn the_file_is_read_for_each_open_and_a_broken_one_is_never_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("replvfs.toml");
    let config = config(&folder, "[[database]]\npath='/srv/app.db'\nreplica='memory://one'", &[]).unwrap();
    assert_eq!(replica(&config, "/srv/app.db").unwrap(), "memory://one");
    std::fs::write(&path, "[[database]]\npath='/srv/app.db'\nreplica='memory://two'").unwrap();
    assert_eq!(replica(&config, "/srv/app.db").unwrap(), "memory://two");
    std::fs::write(&path, "replica = ").unwrap();
    // Also where the URI says all that is needed: it could be meant otherwise.
    let error = resolve(&config, "/srv/app.db", &[("replica", "memory://x")])
        .map(|_| ())
        .unwrap_err();
    assert!(
        error.contains("replvfs.toml:1:") && error.contains("not TOML"),
        "{error}"
    );
    std::fs::remove_file(&path).unwrap();
    let error = resolve(&config, "/srv/app.db", &[]).map(|_| ()).unwrap_err();
    assert!(
        error.contains("cannot be read") && error.contains("REPLVFS_CONFIG"),
        "{error}"
    );
}

#[test]
fn a_table_without_a_replica_anywhere_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let text = "\n[[database]]\npath='/srv/app.db'\ntimeout='1s'";
    let without = config(&folder, text, &[]).unwrap();
    let error = resolve(&without, "/srv/app.db", &[]).map(|_| ()).unwrap_err();
    assert!(
        error.contains("replvfs.toml:2: this table") && error.contains("add replica"),
        "{error}"
    );
    let with = config(&folder, text, &[("REPLVFS_REPLICA", "memory://e")]).unwrap();
    assert_eq!(replica(&with, "/srv/app.db").unwrap(), "memory://e");
}

#[test]
fn every_error_says_where_and_what_to_do() {
    for (text, says) in [
        ("replica", "/etc/r.toml:1:8: this is not TOML"),
        ("a = \"x\"\na = \"y\"", "/etc/r.toml:2:1: the same key is there before"),
        (
            "\nflush_intervall = \"1s\"",
            ":2:1: flush_intervall is not known at the top of the file: is flush_interval meant?",
        ),
        ("Flush-Interval = '1s'", "is flush_interval meant?"),
        (
            "speed = 1",
            "speed is not known at the top of the file: there are replica, durability",
        ),
        (
            "timeout = 5",
            ":1:11: timeout is a number: write a whole number with ms, s, m, h or d, such as 10ms, 1s, 5m, in quotes",
        ),
        ("timeout = '5'", ":1:1: timeout=5 is not a duration: write"),
        ("timeout = '2h'", "timeout=2h is out of bounds: from 1ms to 1h"),
        ("timeout = ''", "timeout is empty"),
        (
            "segment_size = true",
            "segment_size is true or false: write a number of bytes",
        ),
        ("segment_size = 1", "segment_size=1 is out of bounds"),
        ("segment_size = -1", "segment_size is not a size"),
        ("segment_size = 99999999999999999999", "segment_size is not a size"),
        ("segment_size = 0x100", "segment_size=256 is out of bounds"),
        ("restore = 'yes'", "restore=yes is not understood"),
        ("restore = []", "restore is a list: write a text in quotes"),
        ("replica = 1979-05-27", "replica is a time"),
        (
            "replica = 's3://b'",
            "at the top of the file, for every database: put {name} into it",
        ),
        (
            "replica = 's3://b/x?region={name}'",
            "at the top of the file, for every database",
        ),
        ("replica = 's3://b/{nmae}'", "only {name}"),
        ("replica = 'gopher://b/{name}'", "the scheme gopher:// is not known"),
        (
            "replica = 's3://b/{name}?regoin=eu'",
            "regoin is not a parameter of s3://",
        ),
        ("replica = '/b/{name}'", "a replica is a URI such as"),
        ("replica = 'fs://b/{name}'", "write fs:///b/name"),
        ("path = '/a.db'", ":1:1: path is a key of [[database]] tables"),
        ("[database]\npath = '/a.db'", "written [[database]], in two brackets"),
        ("database = 'x'", "in two brackets"),
        ("database = [1]", ":1:13: this is no table"),
        ("[[database]]\nreplica = 'memory://x'", ":1:1: this table has no path"),
        ("[[database]]\npath = 1", ":2:8: path is a number"),
        ("[[database]]\npath = ''", ":2:8: the path is of no file"),
        ("[[database]]\npath = '/a/[x.db'", "not a glob"),
        (
            "[[database]]\npath = '/a.db'\nmemory_limit = '1MiB'",
            ":3:1: memory_limit is for the whole process",
        ),
        (
            "[[database]]\npath = '/a.db'\npaht = 1",
            "paht is not known in a [[database]] table",
        ),
        (
            "[[database]]\npath = '/*.db'\nreplica = 's3://b/x'",
            ":3:11: the path is a glob, and the databases would share",
        ),
        (
            "[[database]]\npath = '/*/a.db'\nreplica = 's3://b/{name}'",
            ":2:8: the path is for several folders",
        ),
        (
            "replica = 's3://b/{name}'\n[[database]]\npath = '/**/a.db'",
            ":3:8: the path is for several folders",
        ),
        (
            "[[database]]\npath = '/a.db'\n[[database]]\npath = '/a.db'",
            ":4:8: the table of line 1 has the same path",
        ),
        (
            "[[database]]\npath = '/a.db'\nreplica = 'memory://x'\n[[database]]\npath = '/b.db'\nreplica = 'memory://x'",
            ":6:11: the replica memory://x is that of line 3 already",
        ),
        ("store = 'x'", "store is a table of keys"),
        ("[store]\nregion = 1.5", "region is a number: write a string"),
        ("[store]\nRegion = 'a'\nregion = 'b'", "region is given twice"),
        (
            "secret_access_key = 'x'",
            "goes into [database.store], or [store] at the top",
        ),
        (
            "[[database]]\npath = '/a.db'\nreplica = 's3://b/x'\nstore.regoin = 'eu'",
            ":4:7: regoin is not a key of s3:// stores",
        ),
        (
            "[[database]]\npath = '/a.db'\nreplica = 's3://b/x'\nstore.bucket = 'eu'",
            "bucket is not a key",
        ),
        (
            "[[database]]\npath = '/a.db'\nreplica = 'fs:///b'\nstore.region = 'eu'",
            "region is set, and fs:// takes no parameters",
        ),
    ] {
        let errors = errors(text);
        assert!(errors.iter().any(|error| error.contains(says)), "{text}: {errors:?}");
        assert!(
            errors
                .iter()
                .all(|error| error.starts_with("/etc/r.toml:") && !error.contains('\n')),
            "{errors:?}"
        );
    }
}

#[test]
fn all_errors_are_told_in_their_order() {
    let all = errors("timeout = 1\n[[database]]\nrestore = 'x'\n[[database]]\npath = '/a'\nspeed = 1\n");
    let lines: Vec<_> = all.iter().map(|error| error.split(':').nth(1).unwrap()).collect();
    assert_eq!(lines, ["1", "2", "3", "6"], "{all:?}");
    let folder = tempfile::tempdir().unwrap();
    let error = config(&folder, "timeout = 1\nspeed = 2\nx = 3", &[]).unwrap_err();
    assert!(error.contains("(and 2 more: see replvfs check-config)"), "{error}");
    assert!(errors(&"x y\n".repeat(5000)).len() <= MOST_ERRORS);
}

#[test]
fn what_is_no_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str| File::read(&folder.path().join(name)).map(|_| ()).unwrap_err()[0].to_string();
    assert!(
        read("missing").contains("correct its name (REPLVFS_CONFIG)"),
        "{}",
        read("missing")
    );
    assert!(read("").contains("is no file"));
    assert!(File::read(Path::new("/dev/zero")).is_err());
    std::fs::write(folder.path().join("latin"), b"path = '\xe9'").unwrap();
    assert!(read("latin").contains("not UTF-8"));
    std::fs::write(folder.path().join("large"), vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(read("large").contains("larger than 1 MiB"));
    std::fs::write(folder.path().join("empty"), "").unwrap();
    assert!(File::read(&folder.path().join("empty")).is_ok());
}

/// The secret in every place of a file where somebody may write it, also by mistake.
#[test]
fn no_error_has_a_secret_in_it() {
    let s3 = "[[database]]\npath='/a.db'\nreplica='s3://b/x'\n[database.store]\n";
    for text in [
        format!("secret_access_key = '{MARK}'"),
        format!("[store]\nsecret_access_key = {MARK}"),
        format!("[store]\nsecret_access_key = '{MARK}"),
        format!("[store]\nsecret_access_key = \"{MARK}\\q\""),
        format!("[store]\nsecret_access_key = '{MARK}' {MARK}"),
        format!("[store]\nsecret_access_key = ['{MARK}']"),
        format!("[store]\nsecret_access_key = {{ a = '{MARK}' }}"),
        format!("[store]\na = '{MARK}'\na = '{MARK}'"),
        format!("[store]\na = 1\n[store]\nb = '{MARK}'"),
        format!("store = '{MARK}'"),
        format!("store = ['{MARK}']"),
        format!("path = '{MARK}'\nspeed = '{MARK}'"),
        format!("{s3}secret_acces_key = '{MARK}'"),
        format!("replica = 's3://me:{MARK}@b/{{name}}'"),
        format!("replica = 's3://b/{{name}}?secret_access_kee={MARK}'"),
        format!("replica = 's3://b/x?secret_access_key={MARK}'"),
        format!("replica = 'ftp://b/x?secret_access_key={MARK}'"),
        format!("replica = 's3://b/{{x}}?secret_access_key={MARK}'"),
        format!("[[database]]\npath='/*.db'\nreplica='s3://b/x?secret_access_key={MARK}'"),
        format!("[[database]]\npath='/a.db'\nreplica='fs:///x'\n[database.store]\nsecret_access_key='{MARK}'"),
    ] {
        let found = errors(&text);
        assert!(!format!("{found:?}").contains(MARK), "{text}: {found:?}");
    }
}

#[test]
fn nothing_that_is_shown_has_a_secret_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("{WHOLE}\nstore.token = '{MARK}'")
        .replace("fs:///backup/{name}", "s3://third/{name}?access_key_id=hunter2hunter2");
    let config = config(&folder, &text, &[]).unwrap();
    let beside = folder.path().join("data/x.db");
    for path in ["/srv/app.db", "/srv/other.db", beside.to_str().unwrap()] {
        let settings = resolve(&config, path, &[]).unwrap();
        let explained = config.explained(Path::new(path)).unwrap();
        let shown = format!("{config:?} {settings:?} {explained:?}");
        assert!(
            shown.contains("s3://") && shown.contains("secret_access_key"),
            "{shown}"
        );
        assert!(!shown.contains(MARK), "{shown}");
    }
}

/// OpenDAL says what it could not read.
#[cfg(feature = "s3")]
#[test]
fn a_key_with_a_wrong_value_is_an_error_without_it() {
    for key in [
        "disable_config_load",
        "enable_virtual_host_style",
        "delete_max_size",
        "batch_max_operations",
        "role_session_name",
        "endpoint",
    ] {
        let keys = StoreKeys::new([(key.to_owned(), MARK.to_owned()), ("region".to_owned(), "x".to_owned())]);
        let opened = crate::store::Store::open_with("s3://b/x", &keys, &crate::store::StoreOptions::reading());
        let shown = opened.map_or_else(
            |error| error.to_string(),
            |store| format!("{} {store:?}", store.replica()),
        );
        assert!(key == "endpoint" || !shown.contains(MARK), "{key}: {shown}");
    }
}

#[test]
fn an_operator_and_keys_exclude_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let operator = opendal::Operator::new(opendal::services::Memory::default()).unwrap();
    let path = folder.path().join("replvfs.toml");
    std::fs::write(&path, "[[database]]\npath='/a.db'\nstore.region='eu'").unwrap();
    let config = Config::default().operator(operator).config_file(path);
    let config = config.with_environment(|_| None).unwrap();
    let error = resolve(&config, "/a.db", &[]).map(|_| ()).unwrap_err();
    assert!(
        error.contains(":1: region is set in [database.store], and the program's operator"),
        "{error}"
    );
    resolve(&config, "/b.db", &[]).unwrap().unwrap();
}

#[test]
fn where_each_value_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(
        &folder,
        WHOLE,
        &[("REPLVFS_RESTORE", "never"), ("REPLVFS_ON_FENCED", "stop")],
    )
    .unwrap();
    let config = config.close_timeout(Duration::from_secs(9));
    let explained = config.explained(Path::new("/srv/other.db")).unwrap();
    let of = |name: &str| {
        let found = explained.settings.iter().find(|setting| setting.name == name).unwrap();
        (found.value.as_str(), found.source)
    };
    assert_eq!(explained.table.as_ref().unwrap().path, "/srv/*.db");
    assert_eq!(of("replica"), ("s3://glob/other.db", Source::File(12)));
    assert_eq!(of("timeout"), ("7s", Source::File(13)));
    assert_eq!(of("flush_interval"), ("2s", Source::File(3)));
    assert_eq!(of("memory_limit"), ("32MiB", Source::File(2)));
    assert_eq!(of("restore"), ("never", Source::Environment));
    assert_eq!(of("close_timeout"), ("9s", Source::Program));
    assert_eq!(of("retention"), ("7d", Source::Default));
    assert_eq!(of("store.secret_access_key"), ("…", Source::File(8)));
    // Without an address there is no endpoint, and no setting to show.
    for name in NAMES.iter().filter(|name| **name != "metrics") {
        of(name);
    }
}

#[test]
fn the_default_vfs_needs_a_replica_for_each_database() {
    let with = |config: Config, replica: &'static str| {
        let config = config.with_environment(move |name| match name {
            "REPLVFS_REPLICA" if !replica.is_empty() => Some(replica.into()),
            "REPLVFS_DEFAULT" => Some("1".into()),
            _ => None,
        });
        config.map_err(|error| error.to_string())
    };
    assert!(with(Config::default(), "").unwrap().is_default());
    assert!(with(Config::default(), "s3://b/{name}").unwrap().is_default());
    assert!(
        !with(Config::default().make_default(false), "s3://b/x")
            .unwrap()
            .is_default()
    );
    let error = with(Config::default(), "s3://b/x?secret_access_key=hunter2hunter2").unwrap_err();
    assert!(
        error.contains("the replica s3://b/x is set as REPLVFS_REPLICA") && error.contains("put {name}"),
        "{error}"
    );
    let error = with(Config::default().replica("s3://b/x"), "").unwrap_err();
    assert!(error.contains("in the program"), "{error}");
    let operator = opendal::Operator::new(opendal::services::Memory::default()).unwrap();
    let error = with(Config::default().operator(operator), "").unwrap_err();
    assert!(error.contains("an operator is set"), "{error}");
    for (value, wanted) in [("yes", true), ("ON", true), ("0", false), ("", false)] {
        let config = Config::default().with_environment(|name| (name == "REPLVFS_DEFAULT").then(|| value.into()));
        assert_eq!(config.unwrap().is_default(), wanted, "{value}");
    }
}

#[test]
fn a_database_that_names_no_vfs_is_left_alone_unless_a_replica_is_set() {
    let folder = tempfile::tempdir().unwrap();
    let text = "[[database]]\npath='/srv/app.db'\nreplica='memory://app'\n[[database]]\npath='/srv/bare.db'";
    let config = config(&folder, text, &[("REPLVFS_DEFAULT", "1")]).unwrap();
    let resolve = |path: &str, uri: &[(&str, &str)]| {
        let parameters: Vec<_> = uri
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        Settings::resolve_default(&config, Path::new(path), &parameters)
            .map(|settings| settings.is_some())
            .map_err(|error| error.to_string())
    };
    assert_eq!(resolve("/srv/other.db", &[]), Ok(false));
    // Somebody else's words, and what would be wrong of ours.
    assert_eq!(
        resolve("/srv/other.db", &[("speed", "1"), ("timeout", "soon"), ("nolock", "1")]),
        Ok(false)
    );
    assert_eq!(resolve("/srv/app.db", &[("speed", "1")]), Ok(true));
    assert!(
        resolve("/srv/app.db", &[("timeout", "soon")])
            .unwrap_err()
            .contains("not a duration")
    );
    assert!(
        resolve("/srv/app.db", &[("nolock", "1")])
            .unwrap_err()
            .contains("locks")
    );
    assert_eq!(resolve("/srv/other.db", &[("replica", "memory://x")]), Ok(true));
    assert!(
        resolve("/srv/other.db", &[("durability", "remote")])
            .unwrap_err()
            .contains("no replica to wait for")
    );
    assert!(
        resolve("/srv/bare.db", &[])
            .unwrap_err()
            .contains("no replica is set in it")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn hostile_text_does_not_panic(text in "(\\[\\[database\\]\\]\n|path ?= ?|replica ?= ?|store\\.|\\[store\\]\n|'s3://b/\\{name\\}'|'/\\*\\*/x'|[-a-z0-9'\"=\\[\\]{}.,#\\\\\n\r\t é]){0,40}") {
        match File::parse(Path::new("/r.toml"), &text) {
            Ok(file) => {
                file.table_of(Path::new("/x"));
            }
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                for error in errors {
                    let (line, column) = error.position().unwrap();
                    prop_assert!(line >= 1 && column >= 1 && line <= text.split('\n').count());
                }
            }
        }
    }

    #[test]
    fn arbitrary_text_does_not_panic(text in any::<String>()) {
        let _ = File::parse(Path::new("/r.toml"), &text).map(|_| ());
    }
}

#[test]
fn metrics_are_for_the_whole_process() {
    let metrics = |text: &str| File::parse(Path::new("/srv/replvfs.toml"), text).map(|file| file.metrics());
    assert_eq!(
        metrics("metrics = '127.0.0.1:9464'").unwrap(),
        Some(([127, 0, 0, 1], 9464).into())
    );
    assert_eq!(metrics("metrics = '[::1]:9464'").unwrap().unwrap().port(), 9464);
    for (text, why) in [
        ("metrics = '9464'", "is not an address with a port"),
        ("metrics = 'localhost:9464'", "is not an address with a port"),
        ("metrics = 9464", "metrics is a number"),
        (
            "[[database]]\npath = 'a.db'\nreplica = 'memory://a'\nmetrics = '127.0.0.1:9464'",
            "metrics is for the whole process",
        ),
    ] {
        let errors = metrics(text).unwrap_err();
        assert!(errors[0].to_string().contains(why), "{text}: {errors:?}");
    }
}
