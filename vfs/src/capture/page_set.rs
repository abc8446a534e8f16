//! Numbers of pages, a bit each: a transaction may write millions of them.

use std::collections::BTreeMap;

const WORDS: usize = 64;
const CHUNK: u32 = 64 * 64;

#[derive(Debug, Default, Clone)]
pub(super) struct PageSet {
    chunks: BTreeMap<u32, Box<[u64; WORDS]>>,
}

impl PageSet {
    pub(super) fn insert(&mut self, number: u32) {
        let chunk = self
            .chunks
            .entry(number / CHUNK)
            .or_insert_with(|| Box::new([0; WORDS]));
        let bit = number % CHUNK;
        chunk[(bit / 64) as usize] |= 1 << (bit % 64);
    }

    pub(super) fn len(&self) -> u64 {
        let words = self.chunks.values().flat_map(|chunk| chunk.iter());
        words.map(|word| u64::from(word.count_ones())).sum()
    }

    /// In ascending order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        self.chunks.iter().flat_map(|(chunk, words)| {
            (0..CHUNK)
                .filter(|bit| words[(bit / 64) as usize] >> (bit % 64) & 1 == 1)
                .map(move |bit| chunk * CHUNK + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_in_comes_out_once_and_in_order() {
        let mut set = PageSet::default();
        for number in [70_000, 1, 4096, 4095, 1, u32::MAX, 64, 63] {
            set.insert(number);
        }
        assert_eq!(set.len(), 7);
        let all: Vec<u32> = set.iter().collect();
        assert_eq!(all, [1, 63, 64, 4095, 4096, 70_000, u32::MAX]);
    }
}
