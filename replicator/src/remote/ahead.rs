//! When a connection reads on and on, what comes next is fetched before it is asked for. Pure.

use replvfs_vfs::types::Pgno;

/// Raw bytes ahead of a reader, at most.
const MOST_BYTES: u64 = 16 << 20;
/// What one step of the reader is: pages of one chunk or so.
const STEP_BYTES: u64 = 1 << 20;

/// How far ahead one connection reads.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    last: Option<u32>,
    /// How often in a row it went on from where it was.
    steps: u32,
    window: u64,
}

impl Ahead {
    /// A page had to be fetched. Returns how many raw bytes behind it are to be fetched with it, of `limit` bytes that there may be in memory: none until
    /// the reader has gone on twice from where it was, since an inner page of a b-tree and then a leaf of it are often neighbours, too; twice as many each time after that.
    pub(super) fn missed(&mut self, page: Pgno, page_size: u32, limit: u64) -> u64 {
        let at = page.get();
        let step = u32::try_from((self.window + 2 * STEP_BYTES) / u64::from(page_size)).unwrap_or(u32::MAX);
        let goes_on = self.last.is_some_and(|last| at > last && at - last <= step);
        self.last = Some(at);
        let most = MOST_BYTES.min(limit / 4);
        self.steps = if goes_on { self.steps.saturating_add(1) } else { 0 };
        self.window = match self.steps {
            0 | 1 => 0,
            2 => STEP_BYTES,
            _ => self.window * 2,
        };
        self.window = self.window.min(most);
        self.window
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn missed(ahead: &mut Ahead, page: u32) -> u64 {
        ahead.missed(Pgno::new(page).unwrap(), 4096, 1 << 30) >> 20
    }

    #[test]
    fn it_grows_with_a_reader_that_goes_on() {
        let mut ahead = Ahead::default();
        let mut at = 1;
        let mut windows = Vec::new();
        for _ in 0..8 {
            let window = missed(&mut ahead, at);
            windows.push(window);
            // The next miss is behind what was fetched.
            at += 256 * (1 + window as u32);
        }
        assert_eq!(windows, [0, 0, 1, 2, 4, 8, 16, 16]);
    }

    #[test]
    fn it_ends_with_a_reader_that_jumps() {
        let mut ahead = Ahead::default();
        assert_eq!(missed(&mut ahead, 1), 0);
        assert_eq!(missed(&mut ahead, 257), 0);
        assert_eq!(missed(&mut ahead, 513), 1);
        assert_eq!(missed(&mut ahead, 90_000), 0);
        assert_eq!(missed(&mut ahead, 1), 0, "backwards");
        assert_eq!(missed(&mut ahead, 50_000), 0);
    }

    #[test]
    fn inner_pages_and_their_leaves_are_no_reader_that_goes_on() {
        let mut ahead = Ahead::default();
        for inner in [40_000, 1_000, 90_000, 20_000] {
            assert_eq!(missed(&mut ahead, inner), 0);
            assert_eq!(missed(&mut ahead, inner + 300), 0);
        }
    }

    #[test]
    fn it_takes_a_quarter_of_the_memory_at_most() {
        let mut ahead = Ahead::default();
        let mut at = 1;
        for _ in 0..10 {
            let window = ahead.missed(Pgno::new(at).unwrap(), 4096, 4 << 20);
            assert!(window <= 1 << 20);
            at += 512;
        }
    }
}
