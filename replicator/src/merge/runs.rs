//! What is worth merging. Pure.

use crate::history::path::Piece;

/// A segment or a span that is larger is left alone: reading it takes far longer than asking for it.
const PIECE_BYTES: u64 = 32 << 20;
/// What is merged has at most this many bytes before.
const SPAN_BYTES: u64 = 256 << 20;
/// Spans are merged with their like, or each small one that comes would have the large one before it written anew.
const CLASSES_BYTES: [u64; 3] = [256 << 10, 2 << 20, PIECE_BYTES];
/// To send as many bytes once more is worth one request less to all who read them. What is larger on average waits until there are so many times as many: all that
/// is gained then is that there are fewer names to list.
const REQUEST_BYTES: u64 = 64 << 10;
const MANY_TIMES: usize = 8;

/// Runs of at least `least` adjacent pieces to make a span of each, in the order in which that should be done. All are of the path as it is now: after
/// one was merged the others are no longer right.
pub(super) fn runs(path: &[Piece], least: usize) -> Vec<&[Piece]> {
    let mut found = find(path, least, |piece| piece.last.is_none() && piece.len <= PIECE_BYTES);
    for class in CLASSES_BYTES {
        found.extend(find(path, least, |piece| piece.last.is_some() && piece.len <= class));
    }
    found
}

fn find(path: &[Piece], least: usize, fits: impl Fn(&Piece) -> bool) -> Vec<&[Piece]> {
    let mut found = Vec::new();
    for like in path.chunk_by(|left, right| fits(left) == fits(right)) {
        let mut rest = if like.first().is_some_and(&fits) { like } else { &[] };
        while rest.len() >= least {
            let mut bytes = 0u64;
            let fitting = rest.iter().take_while(|piece| {
                bytes = bytes.saturating_add(piece.len);
                bytes <= SPAN_BYTES
            });
            let (run, others) = rest.split_at(fitting.count().max(1));
            let pieces = run.len();
            let bytes: u64 = run.iter().map(|piece| piece.len).sum();
            let is_small = bytes / REQUEST_BYTES < pieces as u64;
            let are_many = pieces >= least.saturating_mul(MANY_TIMES);
            if pieces >= least && (is_small || are_many) {
                found.push(run);
                rest = others;
            } else {
                rest = rest.get(1..).unwrap_or_default();
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use replvfs_vfs::types::Txid;

    use super::*;

    /// Pieces of these kilobytes: segments, or spans.
    fn path(kinds: &[(bool, u64)]) -> Vec<Piece> {
        let piece = |(at, (is_span, len)): (usize, &(bool, u64))| Piece {
            first: Txid(10 * at as u64 + 1),
            last: is_span.then_some(Txid(10 * at as u64 + 10)),
            len: len << 10,
        };
        kinds.iter().enumerate().map(piece).collect()
    }

    /// From which piece to before which one.
    fn found(kinds: &[(bool, u64)], least: usize) -> Vec<(u64, u64)> {
        let path = path(kinds);
        let places = |run: &[Piece]| {
            let first = run.first().map_or(0, |piece| piece.first.0 / 10);
            (first, first + run.len() as u64)
        };
        runs(&path, least).into_iter().map(places).collect()
    }

    #[test]
    fn neighbours_of_one_kind_that_are_enough() {
        let (segment, span) = ((false, 1), (true, 1));
        assert_eq!(found(&[segment; 3], 4), []);
        assert_eq!(found(&[segment; 9], 4), [(0, 9)]);
        let mixed = [[segment; 4], [span; 4], [segment; 4]].concat();
        // The same spans are of each class.
        assert_eq!(found(&mixed, 4), [(0, 4), (8, 12), (4, 8), (4, 8), (4, 8)]);
        assert_eq!(found(&mixed, 5), []);
    }

    #[test]
    fn what_is_large_is_left_alone() {
        let (small, large) = ((false, 1), (false, (32 << 10) + 1));
        let mut kinds = [small; 9];
        kinds[4] = large;
        assert_eq!(found(&kinds, 4), [(0, 4), (5, 9)]);
        // Together at most 256 MiB.
        assert_eq!(found(&[(false, 8 << 10); 40], 4), [(0, 32)]);
        assert_eq!(found(&[(true, 8 << 10); 64], 4), [(0, 32), (32, 64)]);
        assert_eq!(found(&[(false, 9 << 10); 40], 4), []);
    }

    #[test]
    fn what_is_large_on_average_waits_for_more() {
        assert_eq!(found(&[(false, 63); 4], 4), [(0, 4)]);
        assert_eq!(found(&[(false, 64); 31], 4), []);
        assert_eq!(found(&[(false, 64); 32], 4), [(0, 32)]);
        // Small ones behind large ones do not wait for them.
        let kinds = [vec![(false, 1_000); 9], vec![(false, 1); 4]].concat();
        assert_eq!(found(&kinds, 4), [(9, 13)]);
        let kinds = [vec![(false, 100); 3], vec![(false, 1); 4]].concat();
        assert_eq!(found(&kinds, 4), [(0, 7)]);
    }

    #[test]
    fn a_large_span_is_not_written_anew_for_each_small_one() {
        let kinds = [vec![(true, 1_000); 3], vec![(true, 30); 4]].concat();
        assert_eq!(found(&kinds, 4)[0], (3, 7));
        let kinds = [vec![(true, 1_000); 3], vec![(true, 100); 28]].concat();
        assert_eq!(found(&kinds, 4), []);
        let kinds = [vec![(true, 1_000); 3], vec![(true, 100); 29]].concat();
        assert_eq!(found(&kinds, 4)[0], (0, 32));
    }
}
