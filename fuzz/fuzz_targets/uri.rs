//! Replica URIs: parsing never panics, and no secret gets into what is shown of them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use replvfs::store::{Store, StoreOptions, redacted};

fuzz_target!(|text: &str| {
    const SECRET: &str = "hunter2hunter2";
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
    ] {
        if let Err(error) = Store::open(&uri, &StoreOptions::reading()) {
            assert!(!error.to_string().contains(SECRET), "{error}");
        }
    }
});
