//! What is worth merging. Pure.

use crate::history::path::Piece;

/// A segment or a span that is larger is left alone: reading it takes far longer than asking for it.
const PIECE_BYTES: u64 = 32 << 20;
/// What is merged from segments has at most this many bytes before, and so has what is merged from spans.
const FROM_SEGMENTS_BYTES: u64 = 64 << 20;
const FROM_SPANS_BYTES: u64 = 256 << 20;
/// Spans are merged with their like, or each small one that comes would have the large one before it written anew.
const CLASSES_BYTES: [u64; 3] = [256 << 10, 2 << 20, PIECE_BYTES];

/// Runs of at least `least` adjacent pieces to make a span of each, in the order in which that should be done. All are of the path as it is now: after
/// one was merged the others are no longer right.
pub(super) fn runs(path: &[Piece], least: usize) -> Vec<&[Piece]> {
    let mut found = find(path, least, FROM_SEGMENTS_BYTES, |piece| {
        piece.last.is_none() && piece.len <= PIECE_BYTES
    });
    for class in CLASSES_BYTES {
        found.extend(find(path, least, FROM_SPANS_BYTES, |piece| {
            piece.last.is_some() && piece.len <= class
        }));
    }
    found
}

fn find(path: &[Piece], least: usize, most_bytes: u64, fits: impl Fn(&Piece) -> bool) -> Vec<&[Piece]> {
    let mut found = Vec::new();
    for like in path.chunk_by(|left, right| fits(left) == fits(right)) {
        let mut rest = if like.first().is_some_and(&fits) { like } else { &[] };
        while rest.len() >= least {
            let mut bytes = 0u64;
            let fitting = rest.iter().take_while(|piece| {
                bytes = bytes.saturating_add(piece.len);
                bytes <= most_bytes
            });
            let (run, others) = rest.split_at(fitting.count().max(1));
            if run.len() >= least {
                found.push(run);
                rest = others;
            } else {
                rest = rest.get(1..).unwrap_or_default();
            }
        }
    }
    found
}
