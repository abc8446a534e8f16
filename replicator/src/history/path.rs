//! From what is listed of a generation's log to the objects that it is read from. Owns the choice between segments and the spans that
//! stand for them; does no I/O, and leaves to the walk what is not listed.

use std::collections::BTreeMap;

use replvfs_vfs::types::Txid;

use crate::format::{Generation, Key, Seal};

/// An object of the log, as listed: a span, or what is in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) first: Txid,
    /// Of a span. Where a segment ends its name does not tell.
    pub(crate) last: Option<Txid>,
    /// Its length in bytes.
    pub(crate) len: u64,
}

impl Piece {
    pub(crate) fn key(&self, generation: Generation) -> Key {
        match self.last {
            Some(last) => Key::Span(generation, self.first, last),
            None => Key::Log(generation, self.first),
        }
    }

    pub(crate) fn is_seal(&self) -> bool {
        self.last.is_none() && self.len == Seal::LEN as u64
    }

    /// It begins with this transaction, or is a span that has it.
    pub(crate) fn holds(&self, txid: Txid) -> bool {
        (self.first..=self.reach()).contains(&txid)
    }

    /// It has this transaction at least.
    pub(crate) fn reach(&self) -> Txid {
        self.last.unwrap_or(self.first)
    }
}

/// What is listed of a generation's log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listing {
    /// Ascending.
    pub(crate) slots: Vec<(Txid, u64)>,
    /// Ascending.
    pub(crate) spans: Vec<Piece>,
}

/// The pieces that a log is read from, one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogPath {
    /// Where to begin; `None` when nothing is listed at or before the wanted transaction.
    pub(crate) start: Option<Txid>,
    /// Ascending, from `start` on. No two have a transaction in common; between them others may be missing.
    pub(crate) pieces: Vec<Piece>,
    /// What reaches furthest of all that is listed: whatever is before its end must be there.
    pub(crate) newest: Option<Piece>,
    /// All that are listed. What they have is in no slot that is not on the path.
    pub(crate) spans: Vec<Piece>,
}

/// A place where something begins, or where a span ends.
#[derive(Default)]
struct Place {
    spans: Vec<Piece>,
    slot: Option<Piece>,
}

impl Listing {
    pub(crate) fn new(listed: impl IntoIterator<Item = (Key, u64)>) -> Listing {
        let mut listing = Listing::default();
        for (key, len) in listed {
            match key {
                Key::Log(_, first) => listing.slots.push((first, len)),
                Key::Span(_, first, last) if Txid::ZERO < first && first < last && last.0 < u64::MAX => {
                    listing.spans.push(Piece {
                        first,
                        last: Some(last),
                        len,
                    });
                }
                _ => {}
            }
        }
        listing.slots.sort_unstable();
        listing.spans.sort_unstable_by_key(|span| (span.first, span.last));
        listing
    }

    /// The way on from the piece that holds `after`, or begins there.
    ///
    /// At each place it goes on with the piece from which the log can be followed furthest, and of several with the longest. So a span that
    /// leads nowhere, because what follows it was deleted in favour of another span, is no dead end.
    pub(crate) fn path(&self, after: Txid) -> LogPath {
        let places = self.places();
        let steps = Steps::new(&places);
        let start = self.start(&places, &steps, after);
        LogPath {
            start: start.map(|(at, _)| at),
            pieces: start.map_or_else(|| steps.follow(after, None), |(at, piece)| steps.follow(at, piece)),
            newest: self.newest(),
            spans: self.spans.clone(),
        }
    }

    /// Those of these pieces that are slots in a span: with what was there before it was merged, or with anything else.
    pub(crate) fn in_spans(&self, pieces: &[Piece]) -> Vec<Piece> {
        let mut spans = self.spans.iter().peekable();
        let mut reach = Txid::ZERO;
        let mut found = Vec::new();
        for piece in pieces {
            while let Some(span) = spans.next_if(|span| span.first <= piece.first) {
                reach = reach.max(span.reach());
            }
            if piece.last.is_none() && piece.first <= reach {
                found.push(*piece);
            }
        }
        found
    }

    /// The first transaction of all that is listed.
    pub(crate) fn oldest(&self) -> Option<Txid> {
        let slot = self.slots.first().map(|(first, _)| *first);
        slot.into_iter().chain(self.spans.first().map(|span| span.first)).min()
    }

    pub(crate) fn newest(&self) -> Option<Piece> {
        let slot = self.slots.last().map(|(first, len)| slot(*first, *len));
        let span = self.spans.iter().max_by_key(|span| span.reach()).copied();
        slot.into_iter().chain(span).max_by_key(Piece::reach)
    }

    fn places(&self) -> BTreeMap<Txid, Place> {
        let mut places: BTreeMap<Txid, Place> = BTreeMap::new();
        for (first, len) in &self.slots {
            places.entry(*first).or_default().slot = Some(slot(*first, *len));
        }
        for span in &self.spans {
            places.entry(span.first).or_default().spans.push(*span);
            places.entry(span.reach().next()).or_default();
        }
        places
    }

    /// Where to begin, and with which piece, if one is listed.
    fn start(&self, places: &BTreeMap<Txid, Place>, steps: &Steps, after: Txid) -> Option<(Txid, Option<Piece>)> {
        let (at, place) = places.range(..=after).next_back()?;
        let holding = self.spans.iter().take_while(|span| span.first <= after);
        let holding = holding.filter(|span| span.reach() >= after);
        let candidates = holding.copied().chain(place.slot);
        let best = candidates.max_by_key(|piece| (steps.behind(piece), piece.last, piece.first));
        match best {
            Some(piece) => Some((piece.first, Some(piece))),
            None => Some((*at, None)),
        }
    }
}

fn slot(first: Txid, len: u64) -> Piece {
    Piece { first, last: None, len }
}

/// The best next piece at each place.
struct Steps {
    /// The piece, and how far the log can be followed with it.
    best: BTreeMap<Txid, (Option<Piece>, Txid)>,
}

impl Steps {
    fn new(places: &BTreeMap<Txid, Place>) -> Steps {
        let mut steps = Steps { best: BTreeMap::new() };
        for (at, place) in places.iter().rev() {
            let candidates = place.spans.iter().copied().chain(place.slot);
            let ranked = candidates.map(|piece| (Some(piece), steps.behind(&piece)));
            let best = ranked.max_by_key(|(piece, far)| (*far, piece.and_then(|piece| piece.last)));
            steps.best.insert(*at, best.unwrap_or((None, *at)));
        }
        steps
    }

    /// The first transaction that is not known to be there when the log is followed from the end of this piece. A segment is
    /// taken to end where something else begins, or ends.
    fn behind(&self, piece: &Piece) -> Txid {
        let next = match piece.last {
            Some(last) => self.best.get_key_value(&last.next()),
            None => self.after(piece.first),
        };
        next.map_or(piece.reach().next(), |(_, (_, far))| *far)
    }

    fn after(&self, at: Txid) -> Option<(&Txid, &(Option<Piece>, Txid))> {
        self.best.range(at.next()..).next()
    }

    /// The pieces from a place on, where `first` is the first one.
    fn follow(&self, start: Txid, first: Option<Piece>) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = first.into_iter().collect();
        let mut at = first.map_or(start, |first| first.reach().next());
        // Where nothing begins there is a hole, and the next piece is behind it.
        while let Some((place, (piece, _))) = self.best.range(at..).next() {
            pieces.extend(*piece);
            at = piece.map_or(*place, |piece| piece.reach()).next();
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: Generation = Generation(1);

    fn listing(slots: &[u64], spans: &[(u64, u64)]) -> Listing {
        let slots = slots.iter().map(|first| (Key::Log(G, Txid(*first)), 1000));
        let spans = spans
            .iter()
            .map(|(first, last)| (Key::Span(G, Txid(*first), Txid(*last)), 1000));
        Listing::new(slots.chain(spans))
    }

    /// The start, the pieces (a segment without its end), and how far the listing reaches.
    fn path(listing: &Listing, after: u64) -> (Option<u64>, Vec<(u64, u64)>, Option<u64>) {
        let path = listing.path(Txid(after));
        let pieces = path.pieces.iter();
        let pieces = pieces.map(|piece| (piece.first.0, piece.last.map_or(0, |last| last.0)));
        let newest = path.newest.map(|newest| newest.reach().0);
        (path.start.map(|start| start.0), pieces.collect(), newest)
    }

    #[test]
    fn the_longest_span_that_begins_at_a_place_else_the_segment() {
        let log = listing(&[1, 3, 5, 7, 9, 11], &[(3, 6), (3, 8), (5, 6)]);
        assert_eq!(
            path(&log, 1),
            (Some(1), vec![(1, 0), (3, 8), (9, 0), (11, 0)], Some(11))
        );
        // In the middle, of a segment or of a span.
        assert_eq!(path(&log, 2), path(&log, 1));
        assert_eq!(path(&log, 8), (Some(3), vec![(3, 8), (9, 0), (11, 0)], Some(11)));
        assert_eq!(path(&log, 10), (Some(9), vec![(9, 0), (11, 0)], Some(11)));
        assert_eq!(path(&log, 99), (Some(11), vec![(11, 0)], Some(11)));
        assert_eq!(path(&listing(&[], &[]), 7), (None, vec![], None));
    }

    #[test]
    fn what_was_merged_may_be_gone() {
        let log = listing(&[11], &[(1, 4), (5, 10)]);
        assert_eq!(path(&log, 1), (Some(1), vec![(1, 4), (5, 10), (11, 0)], Some(11)));
        assert_eq!(path(&log, 7), (Some(5), vec![(5, 10), (11, 0)], Some(11)));
        // Or partly.
        let log = listing(&[3, 9, 11], &[(1, 4), (5, 10)]);
        assert_eq!(path(&log, 1), (Some(1), vec![(1, 4), (5, 10), (11, 0)], Some(11)));
    }

    #[test]
    fn spans_of_two_mergers_overlap() {
        // While all segments are there either will do.
        let all: Vec<u64> = (1..=21).collect();
        let log = listing(&all, &[(1, 10), (5, 20)]);
        let (start, pieces, _) = path(&log, 1);
        assert_eq!((start, pieces[0]), (Some(1), (1, 10)));
        assert_eq!(path(&log, 7), (Some(5), vec![(5, 20), (21, 0)], Some(21)));
        // What the second one stands for was deleted: the first one is a dead end.
        let log = listing(&[1, 2, 3, 4, 21], &[(1, 10), (5, 20)]);
        let expected = vec![(1, 0), (2, 0), (3, 0), (4, 0), (5, 20), (21, 0)];
        assert_eq!(path(&log, 1), (Some(1), expected, Some(21)));
        assert_eq!(path(&log, 6), (Some(5), vec![(5, 20), (21, 0)], Some(21)));
        // And the other way round.
        let log = listing(&[11, 12, 13, 21], &[(1, 10), (5, 12)]);
        let expected = vec![(1, 10), (11, 0), (12, 0), (13, 0), (21, 0)];
        assert_eq!(path(&log, 1), (Some(1), expected, Some(21)));
    }

    #[test]
    fn a_slot_in_the_middle_of_a_span_shows() {
        let log = listing(&[1, 2, 3, 5, 11, 14, 21, 22], &[(2, 4), (3, 10), (5, 6), (12, 21)]);
        let all: Vec<Piece> = log.slots.iter().map(|(first, len)| slot(*first, *len)).collect();
        let found: Vec<u64> = log.in_spans(&all).iter().map(|piece| piece.first.0).collect();
        assert_eq!(found, [2, 3, 5, 14, 21]);
        assert_eq!(log.in_spans(&log.spans), []);
    }

    #[test]
    fn a_hole_is_left_to_the_walk_which_knows_how_far_the_log_must_reach() {
        // Span 5 to 10 is missing.
        let log = listing(&[11, 12], &[(1, 4)]);
        assert_eq!(path(&log, 1), (Some(1), vec![(1, 4), (11, 0), (12, 0)], Some(12)));
        assert_eq!(path(&log, 7), (Some(5), vec![(11, 0), (12, 0)], Some(12)));
        // A stray slot does not make a way that its span does not have.
        let log = listing(&[1, 15], &[(1, 10)]);
        assert_eq!(path(&log, 1), (Some(1), vec![(1, 10), (15, 0)], Some(15)));
        // The last span reaches further than the way.
        let log = listing(&[], &[(1, 10), (5, 20)]);
        assert_eq!(path(&log, 1), (Some(1), vec![(1, 10)], Some(20)));
    }

    #[test]
    fn what_is_before_the_path_is_not_on_it() {
        let log = listing(&[2, 21, 22], &[(9, 20)]);
        assert_eq!(path(&log, 11), (Some(9), vec![(9, 20), (21, 0), (22, 0)], Some(22)));
        assert_eq!(path(&log, 21), (Some(21), vec![(21, 0), (22, 0)], Some(22)));
    }

    #[test]
    fn what_is_not_listed_yet_is_asked_for_by_name() {
        // Slots are listed late.
        let log = listing(&[], &[(1, 4), (5, 10)]);
        assert_eq!(path(&log, 11), (Some(11), vec![], Some(10)));
        assert_eq!(path(&log, 3), (Some(1), vec![(1, 4), (5, 10)], Some(10)));
        let log = listing(&[9], &[]);
        assert_eq!(path(&log, 3), (None, vec![(9, 0)], Some(9)));
    }

    #[test]
    fn names_that_no_merger_gives_are_ignored() {
        let log = listing(&[1], &[(0, 9), (7, 7), (9, 2), (3, u64::MAX)]);
        assert_eq!(log.spans, []);
    }

    #[test]
    fn a_long_log_is_no_trouble() {
        let slots: Vec<u64> = (1..200_000).collect();
        let spans: Vec<(u64, u64)> = (0..2_000).map(|n| (1 + n * 50, 50 + n * 50)).collect();
        let (_, pieces, _) = path(&listing(&slots, &spans), 1);
        assert_eq!(pieces.len(), 2_000 + 99_999);
    }
}
