//! What the store calls the content that this process has put into its newest slots (an HTTP entity tag), where it has such names: an object that was replaced by
//! another one of its length has another one.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use opendal::Metadata;

/// The slot that was put there at last, and the one before it, which is looked at then.
const SLOTS: usize = 2;

/// Names and tags.
#[derive(Debug, Default)]
pub(super) struct Tags(Mutex<VecDeque<(String, String)>>);

impl Tags {
    pub(super) fn note(&self, path: &str, created: &Metadata) {
        let Some(tag) = created.etag() else { return };
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.retain(|(of, _)| of != path);
        noted.push_back((path.to_owned(), bare(tag).to_owned()));
        if noted.len() > SLOTS {
            noted.pop_front();
        }
    }

    /// It was noted, and is another one now. That proves nothing: some stores give another one to what they have moved.
    pub(super) fn differs(&self, path: &str, found: &Metadata) -> bool {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = found.etag().map(bare);
        found.is_some_and(|found| noted.iter().any(|(of, tag)| of == path && tag != found))
    }
}

/// Some answers have it without quotes.
fn bare(tag: &str) -> &str {
    tag.trim_matches('"')
}
