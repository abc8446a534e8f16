//! Texts that people and other processes give: URIs and their parameters, the environment, times, sizes, what neighbours say on the socket, and questions for
//! metrics. Understanding one never panics, takes little memory, and no secret gets into an error, or into what is shown of a URI.

use std::ffi::OsString;
use std::path::Path;

use replvfs::config::parse_duration;
use replvfs::store::{Store, StoreOptions, redacted};
use replvfs::testing;
use replvfs::time::{At, show, show_age};

use crate::{kind, memory};

const SECRET: &str = "hunter2hunter2";

/// What the first byte says, as text; only what comes over a socket may be any bytes.
pub fn run(data: &[u8]) {
    let (kind, bytes) = kind(data);
    let text = String::from_utf8_lossy(bytes);
    let text = text.as_ref();
    // It may stand where nothing is secret, such as in a scheme, which is told in lower case: a fuzzer learns it from the comparison.
    if text.to_ascii_lowercase().contains(SECRET) {
        return;
    }
    match kind {
        0 => replica(text),
        1 => memory::within(1 << 20, || parameters(text)),
        2 => memory::within(1 << 20, || environment(text)),
        3 => memory::within(1 << 20, || time(text)),
        4 => memory::within(1 << 20, || numbers(text)),
        5 => memory::within(1 << 20, || neighbour(text)),
        _ => memory::within(1 << 20, || metrics(bytes)),
    }
}

fn replica(text: &str) {
    let shown = redacted(text);
    assert!(!shown.contains('?'), "{shown}");
    // fs:// would look at folders, and memory:// keep each name for good.
    let scheme = text.split("://").next().unwrap_or_default().to_ascii_lowercase();
    if matches!(scheme.as_str(), "fs" | "memory") {
        return;
    }
    for uri in [
        text.to_owned(),
        format!("{text}?secret_access_key={SECRET}"),
        format!("s3://me:{SECRET}@{text}"),
        format!("bucket/app?secret_access_key={SECRET}&endpoint={text}"),
    ] {
        let has_secret = uri != text;
        assert!(!(has_secret && redacted(&uri).contains(SECRET)), "{uri}");
        if let Err(error) = Store::open(&uri, &StoreOptions::reading()) {
            assert!(!error.to_string().contains(SECRET) || text.contains(SECRET), "{error}");
        }
    }
}

/// As SQLite has taken a URI apart.
fn pairs(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').take(64);
    let of = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name.to_owned(), value.to_owned())
    };
    pairs.map(of).collect()
}

fn parameters(text: &str) {
    let mut pairs = pairs(text);
    let _ = testing::parameters(Path::new("/srv/app/a b.db"), &pairs);
    let _ = testing::remote_parameters("/srv/app/a b.db", &pairs);
    // Wherever an error is, the replica's secret is none of it.
    pairs.insert(
        0,
        (
            "replica".to_owned(),
            format!("s3://bucket/app?secret_access_key={SECRET}"),
        ),
    );
    let errors = [
        testing::parameters(Path::new("/srv/app.db"), &pairs)
            .err()
            .map(|error| error.to_string()),
        testing::remote_parameters("/srv/app.db", &pairs).err(),
    ];
    for error in errors.into_iter().flatten() {
        assert!(!error.contains(SECRET), "{error}");
    }
}

fn environment(text: &str) {
    let pairs = pairs(text);
    // A file would be read.
    let variable = |wanted: &str| {
        let found = pairs
            .iter()
            .find(|(name, _)| name == wanted && name != "REPLVFS_CONFIG");
        found.map(|(_, value)| OsString::from(value))
    };
    if let Err(error) = testing::environment(variable) {
        assert!(!error.to_string().is_empty());
    }
}

fn time(text: &str) {
    if let Ok(at) = text.parse::<At>() {
        drop(at.note());
        let shown = show(at.time);
        let again: At = shown.parse().expect("a time that was shown");
        assert_eq!((again.time, again.note()), (at.time, None), "{shown}");
        drop(show_age(at.time.0));
    }
}

fn numbers(text: &str) {
    let _ = (parse_duration(text), testing::parse_size(text));
}

fn neighbour(text: &str) {
    let _ = testing::neighbour_is_understood(text);
    // Nobody is told that something is in the store who was not told so.
    let answer = testing::neighbour_answered(text);
    assert!(
        !answer.starts_with("Acked") || text.starts_with("replvfs 1 acked "),
        "{answer}"
    );
}

fn metrics(head: &[u8]) {
    if let Some(asked) = testing::metrics_question(head) {
        let is_metrics = asked.contains("question: Metrics");
        assert!(
            !is_metrics || head.windows(8).any(|part| part == b"/metrics"),
            "{asked}"
        );
        // More of it changes nothing: it was whole.
        let longer = [head, b"Host: example\r\n\r\n"].concat();
        assert!(testing::metrics_question(&longer).is_some());
    } else {
        // A part of a question is never more than all of it.
        let half = &head[..head.len() / 2];
        assert!(testing::metrics_question(half).is_none());
    }
}
