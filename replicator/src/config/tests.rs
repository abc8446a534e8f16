//! Every error by name, and who goes before whom.

use std::path::Path;

use super::*;

const DB: &str = "/srv/app.db";

fn pairs(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').expect("a pair");
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

fn resolve(config: &Config, uri: &str) -> Result<Option<Settings>, ConfigError> {
    Settings::resolve(config, Path::new(DB), &pairs(uri))
}

fn uri_of(settings: Option<Settings>) -> String {
    match settings.expect("a replica is set").target {
        Target::Uri(uri, _) => uri,
        Target::Operator(_) => "operator".to_owned(),
    }
}

fn environment(variables: &str) -> Result<Config, ConfigError> {
    let variables = pairs(variables);
    Config::default().with_environment(|name| {
        let (_, value) = variables.iter().find(|(key, _)| key == name)?;
        Some(value.into())
    })
}

#[test]
fn the_defaults() {
    let settings = resolve(&Config::default(), "vfs=replvfs&replica=memory://x")
        .expect("valid")
        .expect("a replica");
    assert_eq!(settings.flush_interval, Duration::from_millis(500));
    assert_eq!(settings.segment_size, 4 << 20);
    assert_eq!(settings.timeout, Duration::from_secs(30));
    assert_eq!(settings.close_timeout, Duration::from_secs(5));
    assert_eq!(settings.retention, Retention::For(Duration::from_secs(7 * 86_400)));
    assert_eq!(Config::default().memory_limit_bytes(), 64 << 20);
    assert!(
        resolve(&Config::default(), "vfs=replvfs&mode=rwc&_txlock=immediate")
            .expect("valid")
            .is_none()
    );
    for level in ["remote", "strict"] {
        let in_vain = resolve(&Config::default(), &format!("durability={level}")).expect_err("nothing to wait for");
        let says = format!("durability={level} has no replica to wait for");
        assert!(in_vain.to_string().contains(&says), "{in_vain}");
    }
}

#[test]
fn what_is_accepted_though_it_changes_nothing() {
    resolve(
        &Config::default(),
        "replica=memory://x&durability=async&on_timeout=error&restore=never&on_fenced=continue&retention=forever&wal_limit=2GiB\
         &cache=private&psow=1&modeof=x&readonly_shm=1&8_3_names=1&nolock=0&immutable=0",
    )
    .expect("valid");
}

#[test]
fn a_connection_says_for_itself_when_its_commits_return() {
    let config = Config::default().replica("memory://x").durability(Durability::Remote);
    let settings = resolve(&config, "on_timeout=continue")
        .expect("valid")
        .expect("a replica");
    assert_eq!(
        (settings.durability, settings.on_timeout),
        (Durability::Remote, OnTimeout::Continue)
    );
    let settings = resolve(&config, "durability=async").expect("valid").expect("a replica");
    assert_eq!(
        (settings.durability, settings.on_timeout),
        (Durability::Async, OnTimeout::Error)
    );
    settings
        .agree(Path::new(DB), &pairs("durability=remote"))
        .expect("its own");
    assert_eq!(
        durability_of(&pairs("vfs=replvfs&durability=remote")),
        Some(Durability::Remote)
    );
    assert_eq!(durability_of(&pairs("vfs=replvfs")), None);
}

#[test]
fn uri_beats_program_beats_environment() {
    let config = environment("REPLVFS_REPLICA=memory://env&REPLVFS_FLUSH_INTERVAL=3s&REPLVFS_TIMEOUT=").expect("valid");
    assert_eq!(uri_of(resolve(&config, "").expect("valid")), "memory://env");
    let config = Config::default()
        .replica("memory://program")
        .segment_size(1 << 20)
        .with_environment(|name| match name {
            "REPLVFS_REPLICA" => Some("memory://env".into()),
            "REPLVFS_SEGMENT_SIZE" => Some("2MiB".into()),
            "REPLVFS_FLUSH_INTERVAL" => Some("3s".into()),
            _ => None,
        })
        .expect("valid");
    let settings = resolve(&config, "flush_interval=4s")
        .expect("valid")
        .expect("a replica");
    assert_eq!(
        (settings.segment_size, settings.flush_interval),
        (1 << 20, Duration::from_secs(4))
    );
    assert_eq!(uri_of(Some(settings)), "memory://program");
    assert_eq!(
        uri_of(resolve(&config, "replica=memory://uri").expect("valid")),
        "memory://uri"
    );
}

#[test]
fn an_operator_stands_between_uri_and_environment() {
    let operator = Operator::new(opendal::services::Memory::default()).expect("an operator");
    let config = Config::default().operator(operator);
    let both = config.clone().replica("memory://x").with_environment(|_| None);
    assert!(both.expect_err("one of them").to_string().contains("set one of them"));
    let config = config
        .with_environment(|name| (name == "REPLVFS_REPLICA").then(|| "memory://env".into()))
        .expect("valid");
    assert_eq!(uri_of(resolve(&config, "").expect("valid")), "operator");
    assert_eq!(
        uri_of(resolve(&config, "replica=memory://uri").expect("valid")),
        "memory://uri"
    );
}

#[test]
fn the_name_is_put_in_encoded() {
    for (path, replica, filled) in [
        ("/srv/app.db", "s3://b/{name}?region=x", "s3://b/app.db?region=x"),
        (
            "/srv/a b?c%#&{}.db",
            "s3://b/{name}/x",
            "s3://b/a%20b%3Fc%25%23%26%7B%7D.db/x",
        ),
        ("/srv/é.db", "fs:///r/{name}", "fs:///r/%C3%A9.db"),
    ] {
        let settings = Settings::resolve(&Config::default().replica(replica), Path::new(path), &[]);
        assert_eq!(uri_of(settings.expect("valid")), filled);
    }
}

#[test]
fn errors_of_a_uri() {
    for (uri, says) in [
        (
            "flush=1s",
            "flush is not a URI parameter of replvfs or SQLite; replvfs has replica, durability",
        ),
        ("replica=", "replica is empty"),
        ("replica=s3://b/{nmae}?secret_access_key=hush", "only {name}"),
        (
            "flush_interval=1",
            "parameter flush_interval=1 is not a duration: write a whole number with ms",
        ),
        (
            "flush_interval=1ms",
            "flush_interval=1ms is out of bounds: from 10ms to 1h",
        ),
        ("flush_interval=1d", "=24h is out of bounds"),
        ("timeout=0s", "timeout=0s is out of bounds: from 1ms to 1h"),
        ("timeout=soon", "timeout=soon is not a duration"),
        ("close_timeout=11m", "from 0s to 10m"),
        (
            "segment_size=4M",
            "segment_size=4M is not a size: write a number of bytes",
        ),
        (
            "segment_size=1KiB",
            "segment_size=1KiB is out of bounds: from 64KiB to 256MiB",
        ),
        ("wal_limit=1", "wal_limit=1 is out of bounds: from 1MiB to 1TiB"),
        (
            "memory_limit=1GiB",
            "for the whole process; set it in the program or as REPLVFS_MEMORY_LIMIT",
        ),
        (
            "durability=full",
            "durability=full is not understood: this version accepts async, remote and strict",
        ),
        (
            "on_timeout=retry",
            "on_timeout=retry is not understood: write error or continue",
        ),
        (
            "restore=yes",
            "restore=yes is not understood: this version accepts if-missing, if-behind and never",
        ),
        (
            "on_fenced=halt",
            "on_fenced=halt is not understood: this version accepts continue and stop",
        ),
        ("retention=59s", "retention=59s is out of bounds: from 1m to 876000h"),
        (
            "retention=long",
            "retention=long is neither forever nor a duration: write",
        ),
        ("nolock=1", "nolock=1 takes away the locks"),
        ("nolock=on", "nolock=1 takes away the locks"),
        ("timeout=1s&timeout=2s", "timeout is given twice"),
    ] {
        let error = resolve(&Config::default().replica("memory://x"), uri)
            .expect_err(uri)
            .to_string();
        assert!(error.contains(says), "{uri}: {error}");
        assert!(!error.contains("hush"), "{error}");
    }
}

#[test]
fn errors_of_the_environment() {
    for (variables, says) in [
        (
            "REPLVFS_CONFIG=/nowhere/x.toml",
            "/nowhere/x.toml: the configuration file cannot be read",
        ),
        (
            "REPLVFS_DEFAULT=maybe",
            "REPLVFS_DEFAULT=maybe is not understood: write 1 or 0",
        ),
        ("REPLVFS_FLUSH_INTERVAL=x", "REPLVFS_FLUSH_INTERVAL=x is not a duration"),
        (
            "REPLVFS_MEMORY_LIMIT=1KiB",
            "REPLVFS_MEMORY_LIMIT=1KiB is out of bounds: from 1MiB",
        ),
        ("REPLVFS_DURABILITY=all", "REPLVFS_DURABILITY=all is not understood"),
        ("REPLVFS_ON_TIMEOUT=fail", "REPLVFS_ON_TIMEOUT=fail is not understood"),
    ] {
        let error = environment(variables).expect_err(variables).to_string();
        assert!(error.contains(says), "{variables}: {error}");
    }
}

#[test]
fn errors_of_the_program() {
    for (config, says) in [
        (
            Config::default().flush_interval(Duration::ZERO),
            "flush_interval in the program=0s is out of bounds",
        ),
        (
            Config::default().segment_size(1),
            "segment_size in the program=1 is out of bounds",
        ),
        (Config::default().vfs_name(""), "vfs_name is empty"),
        (Config::default().vfs_name("a\0b"), "contains a NUL"),
    ] {
        let error = config.with_environment(|_| None).expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_further_connection_may_repeat_or_leave_out_but_not_contradict() {
    let path = Path::new(DB);
    let config = Config::default().replica("memory://{name}");
    let settings = resolve(&config, "flush_interval=2s")
        .expect("valid")
        .expect("a replica");
    for uri in [
        "",
        "vfs=replvfs",
        "replica=memory://app.db&flush_interval=2000ms",
        "replica=memory://{name}&wal_limit=1GiB",
        "on_fenced=continue",
    ] {
        settings.agree(path, &pairs(uri)).expect(uri);
    }
    for (uri, says) in [
        ("replica=memory://other", "another replica"),
        ("flush_interval=1s", "another flush_interval"),
        ("segment_size=1MiB", "another segment_size"),
        ("wal_limit=2GiB", "another wal_limit"),
        ("on_fenced=stop", "another on_fenced"),
        ("on_timeout=continue", "another on_timeout"),
        ("retention=9d", "another retention"),
        ("nolock=1", "nolock=1"),
        ("unknown=1", "not a URI parameter"),
    ] {
        let error = settings.agree(path, &pairs(uri)).expect_err(uri).to_string();
        assert!(error.contains(says), "{uri}: {error}");
    }
}

#[test]
fn what_is_done_when_fenced_can_be_chosen() {
    for (config, uri, wanted) in [
        (Config::default(), "", OnFenced::Continue),
        (Config::default(), "on_fenced=stop", OnFenced::Stop),
        (Config::default().on_fenced(OnFenced::Stop), "", OnFenced::Stop),
        (
            Config::default().on_fenced(OnFenced::Stop),
            "on_fenced=continue",
            OnFenced::Continue,
        ),
    ] {
        let settings = resolve(&config.replica("memory://x"), uri)
            .expect("valid")
            .expect("a replica");
        assert_eq!(settings.on_fenced, wanted, "{uri}");
    }
}

#[test]
fn immutable_is_read_as_sqlite_reads_it() {
    for (uri, immutable) in [
        ("immutable=1", true),
        ("immutable=Yes", true),
        ("immutable=0", false),
        ("x=1", false),
    ] {
        assert_eq!(is_immutable(&pairs(uri)), immutable, "{uri}");
    }
}

#[test]
fn no_secret_is_shown_for_debugging() {
    let uri = "s3://b/p?region=eu&secret_access_key=hunter2";
    let config = Config::default().replica(uri);
    let settings = resolve(&config, "").expect("valid");
    let shown = format!("{config:?} {settings:?}");
    assert!(shown.contains("s3://b/p") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn what_is_for_operators_is_understood_when_it_is_registered() {
    let with = |name: &'static str, value: &'static str| {
        Config::default().with_environment(move |asked| (asked == name).then(|| value.into()))
    };
    let address = "127.0.0.1:9464".parse().unwrap();
    assert_eq!(
        with("REPLVFS_METRICS", "127.0.0.1:9464").unwrap().metrics_address(),
        Some(address)
    );
    assert_eq!(Config::default().metrics(address).metrics_address(), Some(address));
    assert!(with("REPLVFS_LOG", "debug").unwrap().log_filter().is_some());
    assert!(with("REPLVFS_LOG", "").unwrap().log_filter().is_none());
    for (name, value) in [("REPLVFS_METRICS", "here"), ("REPLVFS_LOG", "here")] {
        let error = with(name, value).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name}={value} is not")), "{error}");
    }
    let parameters = [("metrics".to_owned(), "127.0.0.1:9464".to_owned())];
    let error = Settings::resolve(&Config::default(), Path::new("/srv/app.db"), &parameters);
    assert!(error.unwrap_err().to_string().contains("metrics in a URI"));
}
