//! What may be deleted, and in which order. Pure.
//!
//! Owns the rules: what a restore inside of the window needs stays, and what tells a writer that its turn is over goes in an order that never
//! leaves a slot free behind one that is there. Leaves to the [survey](super::survey) what is in the replica, and how it was read.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use replvfs_vfs::types::{Txid, UnixMillis};

use super::PruneOptions;
use super::age::Passed;
use super::names::Names;
use crate::config::Retention;
use crate::format::{Generation, Key, Seal};
use crate::history::path::Listing;
#[cfg(any(test, feature = "testing"))]
use crate::outside::simulated::{Rule, is_broken};
use crate::store::Dated;

/// So many chunks are deleted at a time; the next time goes on.
pub(super) const MOST_CHUNKS: usize = 256 << 10;
/// So much of the time between two dates counts at most: see [`Passed`]. A little more than a day, for what is written daily.
const SILENCE: Duration = Duration::from_secs(26 * 60 * 60);

/// Everything in a replica that may ever be deleted.
#[derive(Debug, Clone, Default)]
pub(super) struct Survey {
    /// Ascending.
    pub(super) generations: Vec<Objects>,
    /// What all of these images name, and those that have come since.
    pub(super) named: Names,
    /// Old, and named by none.
    chunks: Vec<Dated>,
    /// There are more of them.
    is_too_much: bool,
    /// When the newest chunk of each making of an image was stored, by its token.
    makings: HashMap<u64, UnixMillis>,
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
    /// Those of them that have something else than what a span says was there.
    pub(super) strays: HashSet<Txid>,
    /// Spans, with the segments that each of them stands for where that was read and found good, ascending.
    pub(super) spans: Vec<SpanObject>,
}

#[derive(Debug, Clone)]
pub(super) struct ImageObject {
    pub(super) object: Dated,
    pub(super) txid: Txid,
    pub(super) taken_at: UnixMillis,
    /// A chunk that it names is not there.
    pub(super) is_broken: bool,
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
    /// A segment or a span: a larger span says the same.
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

/// The times that decide.
#[derive(Debug)]
pub(super) struct Limits {
    /// What was taken within this may be needed; `None` when everything is.
    window: Option<(Passed, Duration)>,
    /// What was stored within this may be in use without anything that says so; `None` where the store tells no time.
    young: Option<(Passed, Duration)>,
    merged_at_once: bool,
}

impl Limits {
    pub(super) fn of(generations: &[Objects], options: &PruneOptions) -> Limits {
        let stored = || {
            generations
                .iter()
                .flat_map(Objects::all)
                .filter_map(|object| object.modified)
        };
        let images = generations.iter().flat_map(|generation| &generation.images);
        let taken = images.map(|image| image.taken_at);
        let tells = stored().next().is_some();
        let window = |length: Duration| {
            let length = length.saturating_add(options.grace);
            // One jump alone ends no window.
            let most = SILENCE.min(length / 2);
            let passed = match tells {
                true => Passed::new(stored(), options.now, most),
                false => Passed::new(taken, options.now, most),
            };
            (passed, length)
        };
        Limits {
            window: match options.retention {
                Retention::Forever => None,
                Retention::For(length) => Some(window(length)),
            },
            young: tells.then(|| (Passed::new(stored(), options.now, options.grace / 2), options.grace)),
            merged_at_once: options.merged_at_once,
        }
    }

    /// What a user should know of the clocks.
    pub(super) fn warning(&self) -> Option<String> {
        let (passed, length) = self.window.as_ref()?;
        let longest = passed.longest();
        (longest > *length).then(|| {
            format!(
                "nothing was stored for {} days, if the clocks are right; that counts as a day, and what is older stays for as much longer",
                longest.as_secs() / 86_400
            )
        })
    }

    fn is_before_the_window(&self, date: UnixMillis) -> bool {
        let since = self
            .window
            .as_ref()
            .and_then(|(passed, length)| Some((passed.since(date)?, *length)));
        since.is_some_and(|(since, length)| since >= length)
    }

    /// Whether an image is before the window. By both clocks, the writer's and the store's, as far as that one is known.
    fn is_out(&self, image: &ImageObject) -> bool {
        let stored = image.object.modified.unwrap_or(image.taken_at);
        self.is_before_the_window(image.taken_at.max(stored))
    }

    fn is_old(&self, object: &Dated) -> bool {
        object.modified.is_some_and(|modified| self.is_past_the_grace(modified))
    }

    fn is_past_the_grace(&self, date: UnixMillis) -> bool {
        #[cfg(any(test, feature = "testing"))]
        if is_broken(Rule::Young) {
            return true;
        }
        let since = self
            .young
            .as_ref()
            .and_then(|(passed, grace)| Some((passed.since(date)?, *grace)));
        since.is_some_and(|(since, grace)| since >= grace)
    }
}

impl Objects {
    fn all(&self) -> impl Iterator<Item = &Dated> {
        let images = self.images.iter().map(|image| &image.object);
        let spans = self.spans.iter().map(|span| &span.object);
        images.chain(&self.slots).chain(spans)
    }

    /// Nothing follows any more what is there, or nothing has for as long as the window reaches back: a writer that was not told that it was replaced
    /// goes on.
    fn is_over(&self, limits: &Limits) -> bool {
        let old = |object: &Dated| object.modified.is_some_and(|date| limits.is_before_the_window(date));
        self.slots.last().is_some_and(is_seal) || self.all().all(old)
    }

    /// The newest image that is before the window and can be relied on.
    fn base(&self, limits: &Limits) -> Option<usize> {
        self.images
            .iter()
            .rposition(|image| !image.is_broken && limits.is_out(image))
    }
}

impl Survey {
    /// A chunk is in the store. To be called when the generations and the names are known.
    pub(super) fn chunk(&mut self, limits: &Limits, chunk: Dated) {
        let Key::Chunk(name) = chunk.key else { return };
        if let Some(modified) = chunk.modified {
            let newest = self.makings.entry(name.token).or_insert(modified);
            *newest = modified.max(*newest);
        }
        if self.named.see(&name) || !limits.is_old(&chunk) {
            return;
        }
        match self.chunks.len() < MOST_CHUNKS {
            true => self.chunks.push(chunk),
            false => self.is_too_much = true,
        }
    }

    /// What a user should know of the chunks.
    pub(super) fn warning(&self) -> Option<String> {
        let more = "more chunks that no image names are left for the next time";
        self.is_too_much.then(|| more.to_owned())
    }

    pub(super) fn has_chunks(&self) -> bool {
        !self.chunks.is_empty()
    }

    /// Those that no image names, and whose making has come to its end: it may be one that takes very long.
    fn unnamed(&self, limits: &Limits) -> impl Iterator<Item = &Dated> {
        self.chunks.iter().filter(|chunk| match chunk.key {
            Key::Chunk(name) => {
                let newest = self.makings.get(&name.token);
                !self.named.contain(&name) && newest.is_some_and(|newest| limits.is_past_the_grace(*newest))
            }
            _ => false,
        })
    }
}

/// What is to be deleted, in the order in which it has to be.
pub(super) fn plan(survey: &Survey, options: &PruneOptions) -> Vec<Deletion> {
    let limits = Limits::of(&survey.generations, options);
    let mut images = Vec::new();
    let mut pieces = Vec::new();
    for (at, generation) in survey.generations.iter().enumerate() {
        let next_has_begun = generation.number.next() > generation.number
            && survey.generations[at + 1..]
                .iter()
                .any(|later| later.number == generation.number.next() && later.has_begun);
        let has_base = |later: &Objects| !later.is_damaged && later.base(&limits).is_some();
        let is_out = next_has_begun && survey.generations[at + 1..].iter().any(has_base) && generation.is_over(&limits);
        let is_left_alone = generation.is_damaged || !generation.has_begun;
        let base = match (is_left_alone, is_out) {
            (true, _) => Base::None,
            (_, true) => Base::Out,
            _ => match generation.base(&limits) {
                Some(base) => Base::Image(base),
                None => Base::None,
            },
        };
        let gone = base.images(generation);
        images.extend(gone.iter().map(|image| base.deletion(&image.object, Reason::OldImage)));
        if !is_left_alone {
            let merged = merged(generation, base, &limits);
            let mut gone = slots(generation, base, next_has_begun, &merged);
            gone.extend(spans(generation, base, &merged));
            // What is left is a log without its beginning at any time.
            gone.sort_by_key(|deletion| first_of(&deletion.key));
            pieces.extend(gone);
        }
    }
    let mut deletions = images;
    deletions.extend(pieces);
    // What cannot be read, or was not listed, may name any of them. What only an image names that goes now stays until it is gone: another image may be
    // made after it at this moment, and whoever does that looks for it in the end.
    let some_image_is_left = survey
        .generations
        .iter()
        .map(|generation| generation.images.len())
        .sum::<usize>()
        > 0;
    if is_whole(&survey.generations) && some_image_is_left {
        deletions.extend(survey.unnamed(&limits).map(|chunk| Deletion {
            key: chunk.key,
            len: chunk.len,
            reason: Reason::Unnamed,
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
fn slots(generation: &Objects, base: Base, next_has_begun: bool, merged: &Merged) -> Vec<Deletion> {
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
        } else if merged.segments.contains(&first) {
            deletions.push(base.deletion(slot, Reason::Merged));
        } else {
            break;
        }
    }
    deletions
}

/// What spans stand for.
#[derive(Default)]
struct Merged {
    /// Those that nobody reads any more, and nobody has read for long: others may be on a reader's way.
    segments: HashSet<Txid>,
    /// The spans that are read.
    on_path: HashSet<Key>,
}

fn merged(generation: &Objects, base: Base, limits: &Limits) -> Merged {
    let oldest = match base {
        Base::Image(base) => generation.images.get(base),
        _ => generation.images.first(),
    };
    let Some(oldest) = oldest else {
        return Merged::default();
    };
    let spans = generation.spans.iter().map(|span| &span.object);
    let slots = generation.slots.iter();
    let listing = Listing::new(
        slots
            .filter(|slot| !generation.strays.contains(&first_of(&slot.key)))
            .chain(spans)
            .map(|object| (object.key, object.len)),
    );
    let path = listing.path(oldest.txid.next());
    let on_path: HashSet<Key> = path.pieces.iter().map(|piece| piece.key(generation.number)).collect();
    let read = generation
        .spans
        .iter()
        .filter(|span| on_path.contains(&span.object.key));
    let old = read.filter(|span| limits.merged_at_once || limits.is_old(&span.object));
    Merged {
        segments: old.flat_map(|span| span.segments.iter().copied()).collect(),
        on_path,
    }
}

/// The spans that are before what is needed, and those that stand for nothing that another one does not.
fn spans(generation: &Objects, base: Base, merged: &Merged) -> impl Iterator<Item = Deletion> {
    generation.spans.iter().filter_map(move |span| {
        let is_covered = !merged.on_path.contains(&span.object.key)
            && !span.segments.is_empty()
            && span.segments.is_subset(&merged.segments);
        if base.is_behind(generation, span.last) {
            Some(base.deletion(&span.object, Reason::BeforeOldestImage))
        } else if is_covered {
            Some(base.deletion(&span.object, Reason::Merged))
        } else {
            None
        }
    })
}
