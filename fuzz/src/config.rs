//! Configuration files: reading one never panics, an error has a place in it, and no credential gets into an error.

use replvfs::config::check_text;

use crate::memory;

const SECRET: &str = "hunter2hunter2";

/// A file as text, which may have a credential in it.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for text in [
        text.to_owned(),
        format!("{text}\n[store]\nsecret_access_key = '{SECRET}'"),
        format!("{text}\nstore.secret_access_key = '{SECRET}'"),
    ] {
        // A glob becomes a machine that is larger than its text, up to its own limit.
        let errors = memory::within((16 << 20) + 4096 * text.len(), || check_text(&text));
        for error in errors {
            assert!(!error.to_string().contains(SECRET), "{error}");
            let (line, column) = error.position().expect("a place");
            assert!(line >= 1 && column >= 1 && line <= text.split('\n').count(), "{error}");
        }
    }
}
