//! What may be deleted, and in which order. Pure.
//!
//! Owns the rules: what a restore inside of the window needs stays, and what tells a writer that its turn is over goes in an order that never
//! leaves a slot free behind one that is there. Leaves to the [survey](super::survey) what is in the replica, and how it was read.

use std::collections::HashSet;
use std::fmt;

use replvfs_vfs::types::{Txid, UnixMillis};

use super::PruneOptions;
use crate::config::Retention;
use crate::format::{ChunkName, Generation, Key, Seal};
use crate::history::path::Listing;
#[cfg(test)]
use crate::outside::simulated::{Rule, is_broken};
use crate::store::Dated;

/// Everything in a replica that may ever be deleted.
#[derive(Debug, Clone, Default)]
pub(super) struct Survey {
    /// Ascending.
    pub(super) generations: Vec<Objects>,
    pub(super) chunks: Vec<Dated>,
}

/// What there is of a generation.
#[derive(Debug, Clone)]
pub(super) struct Objects {
    pub(super) number: Generation,
    /// Its `generation.json` can be read.
    pub(super) has_begun: bool,
    /// Something of it cannot be read.
    pub(super) is_damaged: bool,
    pub(super) first_slot: Txid,
    /// Ascending.
    pub(super) images: Vec<ImageObject>,
    /// What is in its slots, ascending.
    pub(super) slots: Vec<Dated>,
    /// Spans, with the segments that each of them stands for where that was read and found good, ascending.
    pub(super) spans: Vec<SpanObject>,
}

#[derive(Debug, Clone)]
pub(super) struct ImageObject {
    pub(super) object: Dated,
    pub(super) txid: Txid,
    pub(super) taken_at: UnixMillis,
    pub(super) chunks: HashSet<ChunkName>,
}

#[derive(Debug, Clone)]
pub(super) struct SpanObject {
    pub(super) object: Dated,
    pub(super) last: Txid,
    pub(super) segments: HashSet<Txid>,
}

/// An object that is not needed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    /// Its name.
    pub key: Key,
    /// Its size in bytes.
    pub len: u64,
    /// Why it is not needed.
    pub reason: Reason,
}

/// Why an object is not needed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// An image: a newer one of its generation is before the window, too.
    OldImage,
    /// A part of a log: it ends before the oldest image that is left.
    BeforeOldestImage,
    /// The whole generation is before the window.
    OldGeneration,
    /// A segment: a span says the same.
    Merged,
    /// A chunk: no image names it.
    Unnamed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::OldImage => "an image that is out of the window",
            Reason::BeforeOldestImage => "before the oldest image",
            Reason::OldGeneration => "of a generation that is out of the window",
            Reason::Merged => "merged into a span",
            Reason::Unnamed => "in no image",
        })
    }
}

/// The instants that decide.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// What was taken after this may be needed; `None` when everything is.
    window: Option<UnixMillis>,
    /// What was stored after this may be in use without anything that says so; `None` where the store tells no time.
    young: Option<UnixMillis>,
    merged_at_once: bool,
}

fn before(time: UnixMillis, length: std::time::Duration) -> UnixMillis {
    UnixMillis(
        time.0
            .saturating_sub(i64::try_from(length.as_millis()).unwrap_or(i64::MAX)),
    )
}

impl Limits {
    fn of(survey: &Survey, options: &PruneOptions) -> Limits {
        let newest_stored = survey.objects().filter_map(|object| object.modified).max();
        let images = survey.generations.iter().flat_map(|generation| &generation.images);
        let newest = newest_stored.or(images.map(|image| image.taken_at).max());
        // A clock that is ahead must not end the window of what was written a moment ago.
        let now = newest.map_or(options.now, |newest| newest.min(options.now));

        Limits {
            window: match options.retention {
                Retention::Forever => None,
                Retention::For(length) => Some(before(before(now, length), options.grace)),
            },
            // Nor must an object that the store dates into the future make all others old.
            young: newest_stored.map(|newest| before(newest.min(options.now), options.grace)),
            merged_at_once: options.merged_at_once,
        }
    }

    /// Whether an image is before the window. By both clocks, the writer's and the store's, as far as that one is known.
    fn is_out(&self, image: &ImageObject) -> bool {
        let stored = image.object.modified.unwrap_or(image.taken_at);
        self.window.is_some_and(|window| image.taken_at.max(stored) <= window)
    }

    fn is_old(&self, object: &Dated) -> bool {
        #[cfg(test)]
        if is_broken(Rule::Young) && matches!(object.key, Key::Chunk(_)) {
            return true;
        }
        let limit = self.young.zip(object.modified);
        limit.is_some_and(|(young, modified)| modified <= young)
    }
}

impl Survey {
    fn objects<'a>(&'a self) -> impl Iterator<Item = &'a Dated> {
        let of = |generation: &'a Objects| {
            let images = generation.images.iter().map(|image| &image.object);
            let spans = generation.spans.iter().map(|span| &span.object);
            images.chain(&generation.slots).chain(spans)
        };
        self.generations.iter().flat_map(of).chain(&self.chunks)
    }
}

/// What is to be deleted, in the order in which it has to be.
pub(super) fn plan(survey: &Survey, options: &PruneOptions) -> Vec<Deletion> {
    let limits = Limits::of(survey, options);
    let mut images = Vec::new();
    let mut pieces = Vec::new();
    let mut named: HashSet<ChunkName> = HashSet::new();
    for (at, generation) in survey.generations.iter().enumerate() {
        let next_has_begun = generation.number.next() > generation.number
            && survey.generations[at + 1..]
                .iter()
                .any(|later| later.number == generation.number.next() && later.has_begun);
        let is_out = next_has_begun
            && survey.generations[at + 1..]
                .iter()
                .any(|later| !later.is_damaged && later.images.first().is_some_and(|oldest| limits.is_out(oldest)));
        let is_left_alone = generation.is_damaged || !generation.has_begun;
        let base = match (is_left_alone, is_out) {
            (true, _) => Base::None,
            (_, true) => Base::Out,
            _ => match generation.images.iter().rposition(|image| limits.is_out(image)) {
                Some(base) => Base::Image(base),
                None => Base::None,
            },
        };
        let gone = base.images(generation);
        images.extend(gone.iter().map(|image| base.deletion(&image.object, Reason::OldImage)));
        let left = &generation.images[gone.len()..];
        #[cfg(test)]
        let left = if is_broken(Rule::Named) {
            &left[left.len().min(1)..]
        } else {
            left
        };
        named.extend(left.iter().flat_map(|image| &image.chunks));
        if !is_left_alone {
            let mut gone = slots(generation, base, next_has_begun, &limits);
            gone.extend(spans(generation, base));
            // What is left is a log without its beginning at any time.
            gone.sort_by_key(|deletion| first_of(&deletion.key));
            pieces.extend(gone);
        }
    }
    let mut deletions = images;
    deletions.extend(pieces);
    // What cannot be read, or was not listed, may name any of them.
    if is_whole(&survey.generations) && !named.is_empty() {
        deletions.extend(survey.chunks.iter().filter_map(|chunk| match chunk.key {
            Key::Chunk(name) if !named.contains(&name) && limits.is_old(chunk) => Some(Deletion {
                key: chunk.key,
                len: chunk.len,
                reason: Reason::Unnamed,
            }),
            _ => None,
        }));
    }
    deletions
}

/// Whether each generation that ever was is known. Their descriptions are never deleted.
fn is_whole(generations: &[Objects]) -> bool {
    let numbered = (1..).zip(generations);
    numbered
        .into_iter()
        .all(|(number, generation)| generation.number.0 == number && !generation.is_damaged)
}

/// From where on a generation is needed.
#[derive(Debug, Clone, Copy)]
enum Base {
    /// From its beginning.
    None,
    /// From this image on.
    Image(usize),
    /// Not at all.
    Out,
}

impl Base {
    fn images(self, generation: &Objects) -> &[ImageObject] {
        match self {
            Base::None => &[],
            Base::Image(base) => &generation.images[..base],
            Base::Out => &generation.images,
        }
    }

    fn deletion(self, object: &Dated, reason: Reason) -> Deletion {
        let reason = if matches!(self, Base::Out) {
            Reason::OldGeneration
        } else {
            reason
        };
        Deletion {
            key: object.key,
            len: object.len,
            reason,
        }
    }

    /// Whether nothing that ends with `last` or before is needed.
    fn is_behind(self, generation: &Objects, last: Txid) -> bool {
        match self {
            Base::None => false,
            Base::Image(base) => last <= generation.images[base].txid,
            Base::Out => true,
        }
    }
}

fn first_of(key: &Key) -> Txid {
    match key {
        Key::Log(_, first) | Key::Span(_, first, _) => *first,
        _ => Txid::ZERO,
    }
}

fn is_seal(slot: &Dated) -> bool {
    slot.len == Seal::LEN as u64
}

/// The slots that are free again, in ascending order. The first one that has to stay keeps all behind it: whoever has a slot for its turn looks
/// whether the one before is there.
fn slots(generation: &Objects, base: Base, next_has_begun: bool, limits: &Limits) -> Vec<Deletion> {
    let merged = merged(generation, base, limits);
    // The end of the log stays, also when nothing but that is left: it is what the next writer finds.
    let end = match generation.slots.iter().rposition(|slot| !is_seal(slot)) {
        Some(newest) if matches!(base, Base::Out) => newest + 1,
        Some(newest) => newest,
        None => 0,
    };
    let mut deletions = Vec::new();
    for (at, slot) in generation.slots[..end].iter().enumerate() {
        let first = first_of(&slot.key);
        // It fences by itself, as long as no other generation does.
        if first == generation.first_slot && !next_has_begun {
            continue;
        }
        // It ends there, or before where what follows it was deleted.
        let last = generation
            .slots
            .get(at + 1)
            .map(|next| Txid(first_of(&next.key).0.saturating_sub(1)));
        let is_behind = match (base, last) {
            (Base::Out, _) => true,
            (_, Some(last)) => base.is_behind(generation, last),
            (_, None) => false,
        };
        if is_behind {
            deletions.push(base.deletion(slot, Reason::BeforeOldestImage));
        } else if merged.contains(&first) {
            deletions.push(base.deletion(slot, Reason::Merged));
        } else {
            break;
        }
    }
    deletions
}

/// The segments that nobody reads any more, and nobody has read for long: others that a span stands for may be on a reader's way.
fn merged(generation: &Objects, base: Base, limits: &Limits) -> HashSet<Txid> {
    let oldest = match base {
        Base::Image(base) => generation.images.get(base),
        _ => generation.images.first(),
    };
    let Some(oldest) = oldest else {
        return HashSet::new();
    };
    let spans = generation.spans.iter().map(|span| &span.object);
    let listing = Listing::new(
        generation
            .slots
            .iter()
            .chain(spans)
            .map(|object| (object.key, object.len)),
    );
    let path = listing.path(oldest.txid.next());
    let is_read = |span: &&SpanObject| {
        path.pieces
            .iter()
            .any(|piece| piece.key(generation.number) == span.object.key)
    };
    let read = generation.spans.iter().filter(is_read);
    let old = read.filter(|span| limits.merged_at_once || limits.is_old(&span.object));
    old.flat_map(|span| span.segments.iter().copied()).collect()
}

fn spans(generation: &Objects, base: Base) -> impl Iterator<Item = Deletion> {
    let gone = generation
        .spans
        .iter()
        .filter(move |span| base.is_behind(generation, span.last));
    gone.map(move |span| base.deletion(&span.object, Reason::BeforeOldestImage))
}
