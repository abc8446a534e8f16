//! Configuration files: reading one never panics, an error has a place in it, and no credential gets into an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use replvfs::config::check_text;

fuzz_target!(|text: &str| {
    const SECRET: &str = "hunter2hunter2";
    for text in [
        text.to_owned(),
        format!("{text}\n[store]\nsecret_access_key = '{SECRET}'"),
        format!("{text}\nstore.secret_access_key = '{SECRET}'"),
    ] {
        for error in check_text(&text) {
            assert!(!error.to_string().contains(SECRET), "{error}");
            let (line, column) = error.position().expect("a place");
            assert!(line >= 1 && column >= 1 && line <= text.split('\n').count(), "{error}");
        }
    }
});
