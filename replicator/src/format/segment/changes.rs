//! Blocks with pages that were written more than once: of those only what they change of the version before is stored.
//!
//! Owns that encoding. Most commits change little of a page, so it is much less to compress than the pages, and fewer bytes: zstd alone finds what is equal by
//! itself, at several times the work.

use std::collections::HashMap;

/// Fewer equal bytes between two changes are stored with them.
const RUN: usize = 12;
/// Compared at once.
const STEP: usize = 32;
/// A block is worth it when one page of so many was written before in it.
const WORTH: usize = 8;

/// Encodes blocks, one at a time. Keeps its memory for the next.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// By page number, the newest version so far.
    newest: HashMap<u32, usize>,
    /// For each page how many pages before it its last version is; 0 if there is none.
    distances: Vec<usize>,
    control: Vec<u8>,
    literals: Vec<u8>,
    content: Vec<u8>,
}

impl Changes {
    /// What is stored for the pages of a block with these numbers. `None` when that would not be less than the pages.
    pub(super) fn encode(&mut self, pages: &[u8], page_size: usize, numbers: &[u32]) -> Option<&[u8]> {
        self.newest.clear();
        self.distances.clear();
        for (slot, number) in numbers.iter().enumerate() {
            let before = self.newest.insert(*number, slot);
            self.distances.push(before.map_or(0, |before| slot - before));
        }
        if (numbers.len() - self.newest.len()) * WORTH < numbers.len() {
            return None;
        }
        self.control.clear();
        self.literals.clear();
        let page_at = |slot: usize| pages.get(slot * page_size..)?.get(..page_size);
        for (slot, distance) in self.distances.iter().enumerate() {
            let page = page_at(slot)?;
            put(&mut self.control, *distance);
            if *distance == 0 {
                self.literals.extend_from_slice(page);
                continue;
            }
            for (kept, changed) in Differences::of(page, page_at(slot - distance)?) {
                put(&mut self.control, kept);
                put(&mut self.control, changed.len());
                self.literals.extend_from_slice(changed);
            }
        }
        let control_len = u32::try_from(self.control.len()).ok()?;
        self.content.clear();
        self.content.extend_from_slice(&control_len.to_le_bytes());
        self.content.extend_from_slice(&self.control);
        self.content.extend_from_slice(&self.literals);
        // Not by a byte less than this: content as long as the pages is taken for them.
        if self.content.len() >= pages.len() {
            return None;
        }
        debug_assert!(
            comes_to(&self.content, page_size, pages),
            "changes do not come to the pages that they were made of"
        );
        Some(&self.content)
    }
}

fn comes_to(content: &[u8], page_size: usize, pages: &[u8]) -> bool {
    let mut again = Vec::new();
    apply(content, page_size, pages.len() / page_size, &mut again).is_ok() && again == pages
}

/// The `count` pages of a block, instead of what is in `pages`.
///
/// # Errors
///
/// What is wrong with `content`.
pub(super) fn apply(content: &[u8], page_size: usize, count: usize, pages: &mut Vec<u8>) -> Result<(), &'static str> {
    let (control_len, rest) = content.split_first_chunk::<4>().ok_or(CUT_OFF)?;
    let control_len = u32::from_le_bytes(*control_len) as usize;
    pages.clear();
    pages.reserve_exact(count * page_size);
    let (mut control, mut literals) = rest.split_at_checked(control_len).ok_or(CUT_OFF)?;
    for slot in 0..count {
        let distance = take_number(&mut control)?;
        if distance == 0 {
            pages.extend_from_slice(take(&mut literals, page_size)?);
            continue;
        }
        let before = slot
            .checked_sub(distance)
            .ok_or("a page changes one that is not before it")?;
        pages.extend_from_within(before * page_size..(before + 1) * page_size);
        let mut page = pages.get_mut(slot * page_size..).unwrap_or_default();
        while !page.is_empty() {
            let (kept, changed) = (take_number(&mut control)?, take_number(&mut control)?);
            let behind = page.get_mut(kept..).filter(|_| kept + changed > 0);
            let (to, behind) = behind
                .and_then(|rest| rest.split_at_mut_checked(changed))
                .ok_or(TOO_LONG)?;
            to.copy_from_slice(take(&mut literals, changed)?);
            page = behind;
        }
    }
    if control.is_empty() && literals.is_empty() {
        Ok(())
    } else {
        Err("it has more than its pages need")
    }
}

const CUT_OFF: &str = "its changes are cut off";
const TOO_LONG: &str = "a change is not within its page";

/// Least significant seven bits first, the eighth set in all bytes but the last.
fn put(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// At most three bytes: no number of an encoder is above a page's 65,536 bytes.
fn take_number(from: &mut &[u8]) -> Result<usize, &'static str> {
    let mut number = 0;
    for shift in [0, 7, 14] {
        let (byte, rest) = from.split_first().ok_or(CUT_OFF)?;
        *from = rest;
        number |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(TOO_LONG)
}

fn take<'a>(from: &mut &'a [u8], len: usize) -> Result<&'a [u8], &'static str> {
    let (taken, rest) = from.split_at_checked(len).ok_or(CUT_OFF)?;
    *from = rest;
    Ok(taken)
}

/// Goes through two versions of a page: how many bytes are kept, and what follows them instead.
struct Differences<'a> {
    page: &'a [u8],
    before: &'a [u8],
    at: usize,
    /// Up to here they are equal.
    equal: usize,
}

impl<'a> Differences<'a> {
    fn of(page: &'a [u8], before: &'a [u8]) -> Differences<'a> {
        let equal = equal_from(page, before, 0);
        Differences {
            page,
            before,
            at: 0,
            equal,
        }
    }
}

impl<'a> Iterator for Differences<'a> {
    type Item = (usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.page.len() {
            return None;
        }
        let kept = self.equal - self.at;
        let changed_from = self.equal;
        (self.at, self.equal) = next_run(self.page, self.before, changed_from);
        Some((kept, self.page.get(changed_from..self.at)?))
    }
}

/// Where they differ first from `at` on.
fn equal_from(page: &[u8], before: &[u8], at: usize) -> usize {
    let (rest, other) = (page.get(at..).unwrap_or_default(), before.get(at..).unwrap_or_default());
    let steps = rest.as_chunks::<STEP>().0.iter().zip(other.as_chunks::<STEP>().0);
    let whole = steps.take_while(|(ours, theirs)| ours == theirs).count() * STEP;
    let tail = rest.iter().zip(other).skip(whole);
    at + whole + tail.take_while(|(ours, theirs)| ours == theirs).count()
}

/// From where to where they are equal for long enough again; they differ at `at`. Looks at eight bytes at a time, so that it may miss a run of less than 15.
fn next_run(page: &[u8], before: &[u8], at: usize) -> (usize, usize) {
    let mut word = at;
    // The word before, which differs.
    let mut last = u64::MAX;
    while let (Some(ours), Some(theirs)) = (word_at(page, word), word_at(before, word)) {
        let differ = ours ^ theirs;
        if differ == 0 {
            // In the word before the bytes that are equal at its end.
            let from = word - last.leading_zeros() as usize / 8;
            let to = equal_from(page, before, word + 8);
            if to - from >= RUN {
                return (from, to);
            }
            // The byte at `to` differs, so the next word does, too.
            word = to;
        } else {
            word += 8;
            last = differ;
        }
    }
    (page.len(), page.len())
}

/// Its first byte the least significant.
fn word_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 512;

    /// A page, and what is written where in it.
    type Write = (u32, Vec<(u16, Vec<u8>)>);

    fn decoded(content: &[u8], count: usize) -> Result<Vec<u8>, &'static str> {
        let mut pages = Vec::new();
        apply(content, SIZE, count, &mut pages)?;
        Ok(pages)
    }

    /// Pages with these numbers, each but the first of its number with some bytes of its own.
    fn block(writes: &[Write]) -> (Vec<u32>, Vec<u8>) {
        let mut versions = HashMap::new();
        let (mut numbers, mut pages) = (Vec::new(), Vec::new());
        for (number, changes) in writes {
            let page = versions.entry(*number).or_insert_with(|| vec![*number as u8; SIZE]);
            for (at, bytes) in changes {
                let at = usize::from(*at) % SIZE;
                for (to, byte) in page.iter_mut().skip(at).zip(bytes) {
                    *to = *byte;
                }
            }
            numbers.push(*number);
            pages.extend_from_slice(page);
        }
        (numbers, pages)
    }

    fn writes() -> impl Strategy<Value = Vec<Write>> {
        let bytes = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            // What is equal again in between.
            proptest::collection::vec(prop_oneof![Just(1u8), Just(2), Just(3)], 0..SIZE + 9),
        ];
        let changes = proptest::collection::vec((any::<u16>(), bytes), 0..5);
        proptest::collection::vec((1u32..4, changes), 1..20)
    }

    proptest! {
        #[test]
        fn pages_come_back(writes in writes()) {
            let (numbers, pages) = block(&writes);
            let mut changes = Changes::default();
            let encoded = changes.encode(&pages, SIZE, &numbers).map(<[u8]>::to_vec);
            if let Some(content) = &encoded {
                prop_assert!(content.len() < pages.len());
                prop_assert!(decoded(content, numbers.len()).unwrap() == pages);
            }
            // Nothing of the block before is left.
            prop_assert_eq!(changes.encode(&pages, SIZE, &numbers).map(<[u8]>::to_vec), encoded);
        }

        #[test]
        fn anything_else_is_an_error_or_the_same_number_of_pages(
            control in proptest::collection::vec(any::<u8>(), 0..60), literals in 0usize..3 * SIZE, count in 0usize..5,
        ) {
            let mut content = (control.len() as u32).to_le_bytes().to_vec();
            content.extend_from_slice(&control);
            content.resize(content.len() + literals, 7);
            if let Ok(pages) = decoded(&content, count) {
                prop_assert_eq!(pages.len(), count * SIZE);
            }
        }

        #[test]
        fn what_is_cut_off_is_an_error(writes in writes(), at in any::<prop::sample::Index>()) {
            let (numbers, pages) = block(&writes);
            let mut changes = Changes::default();
            if let Some(content) = changes.encode(&pages, SIZE, &numbers) {
                prop_assert!(decoded(&content[..at.index(content.len())], numbers.len()).is_err());
            }
        }
    }

    #[test]
    fn only_what_changed_is_stored() {
        let unchanged = (1, Vec::new());
        let (numbers, pages) = block(&[unchanged.clone(), unchanged, (1, vec![(100, vec![9; 20])])]);
        let mut changes = Changes::default();
        let content = changes.encode(&pages, SIZE, &numbers).unwrap();
        let mut expected = vec![13, 0, 0, 0];
        // The first one as it is; the second one from the one before, all of it kept; of the third one 20 bytes are others.
        expected.extend_from_slice(&[0, 1, 0x80, 4, 0, 1, 100, 20, 0x88, 3, 0]);
        expected[0] = (expected.len() - 4) as u8;
        expected.extend_from_slice(&[1; SIZE]);
        expected.extend_from_slice(&[9; 20]);
        assert_eq!(content, expected);
    }

    /// Two versions of a page that have their first `kept` bytes in common.
    fn different_from(kept: usize) -> Vec<u8> {
        let mut pages = vec![1; 2 * SIZE];
        pages[SIZE + kept..].fill(2);
        pages
    }

    /// Length, two distances, and a pair in three bytes: nine are to be saved to be as long as the pages, which is what a reader would take it for.
    #[test]
    fn changes_are_shorter_than_the_pages() {
        let mut changes = Changes::default();
        for kept in [8, 9] {
            assert_eq!(changes.encode(&different_from(kept), SIZE, &[1, 1]), None, "{kept}");
        }
        let content = changes.encode(&different_from(10), SIZE, &[1, 1]).unwrap();
        assert_eq!(content.len(), 2 * SIZE - 1);
    }

    /// Numbers of two and of three bytes.
    #[test]
    fn the_largest_pages_and_the_longest_distances_come_back() {
        for (page_size, count) in [(65_536, 16), (512, 2048)] {
            let mut pages = vec![3; page_size * count];
            for (slot, page) in pages.chunks_exact_mut(page_size).enumerate() {
                page[page_size - 1 - slot % 7] = slot as u8;
                page[page_size / 2] = 4;
            }
            for versions in [1, count as u32 / 2] {
                let numbers: Vec<u32> = (0..count as u32).map(|slot| slot % versions).collect();
                let mut changes = Changes::default();
                let content = changes.encode(&pages, page_size, &numbers).unwrap();
                let mut again = Vec::new();
                apply(content, page_size, count, &mut again).unwrap();
                assert!(again == pages);
            }
        }
    }

    #[test]
    fn pages_that_are_written_once_are_not_encoded() {
        let (numbers, pages) = block(&[(1, Vec::new()), (2, Vec::new()), (3, Vec::new())]);
        assert_eq!(Changes::default().encode(&pages, SIZE, &numbers), None);
    }

    #[test]
    fn nothing_reaches_out_of_its_page() {
        let whole = |control: &[u8], literals: usize| {
            let mut content = vec![control.len() as u8, 0, 0, 0];
            content.extend_from_slice(control);
            content.resize(content.len() + SIZE + literals, 7);
            decoded(&content, 2)
        };
        // 512 is 0x80 4.
        assert!(whole(&[0, 1, 0x80, 4, 0], 0).is_ok());
        assert!(whole(&[0, 1, 0, 0x80, 4], SIZE).is_ok());
        for (control, literals) in [
            (&[0, 1, 0x81, 4, 0][..], 0),         // keeps a byte too much
            (&[0, 1, 0xff, 3, 2], 2),             // changes a byte too much
            (&[0, 1, 0, 0, 0x80, 4, 0], 0),       // nothing
            (&[0, 2, 0x80, 4, 0], 0),             // of a page before the first
            (&[1, 0x80, 4, 0, 0], 0),             // the first one of itself
            (&[0, 1, 0x80, 4, 0, 0], 0),          // one number more
            (&[0, 1, 0x80, 4, 0], 1),             // one byte more
            (&[0, 1, 0x80, 0x84, 0x80, 0, 0], 0), // a number of four bytes
        ] {
            assert!(whole(control, literals).is_err(), "{control:?}");
        }
    }
}
