//! Pages in memory, bounded by bytes. Pure.
//!
//! What was fetched is kept as a whole as long as there is room: its pages are neighbours, and are often wanted together. Of what has to go the pages that were
//! read stay a while longer by themselves, if they are few: scattered reads of a large database need a page here and there.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use replvfs_vfs::types::PageSize;

use super::line::SourceId;

/// What the books of one entry take in memory, about.
const ENTRY_BYTES: u64 = 128;

/// Sources that may be on their way at once, with room to spare.
const AWAITED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(255);

/// The pages of one replica.
pub(super) struct Cache {
    limit: u64,
    whole: LruCache<SourceId, Whole>,
    whole_bytes: u64,
    single: LruCache<(SourceId, usize), Box<[u8]>>,
    single_bytes: u64,
    /// Pages that were asked for and not here: what is fetched for them was read by that.
    awaited: LruCache<SourceId, Vec<usize>>,
}

struct Whole {
    raw: Arc<Vec<u8>>,
    page_size: usize,
    /// A bit for each page that was read.
    touched: Vec<u64>,
}

impl Whole {
    /// The page at this byte was read.
    fn touch(&mut self, at: usize) {
        let number = at / self.page_size;
        if let Some(bits) = self.touched.get_mut(number / 64) {
            *bits |= 1 << (number % 64);
        }
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

impl Cache {
    pub(super) fn new(limit: u64) -> Cache {
        Cache {
            limit,
            whole: LruCache::unbounded(),
            whole_bytes: 0,
            single: LruCache::unbounded(),
            single_bytes: 0,
            awaited: LruCache::new(AWAITED),
        }
    }

    /// Never less than before: another connection may have asked for more.
    pub(super) fn raise(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) fn bytes(&self) -> u64 {
        self.whole_bytes + self.single_bytes
    }

    /// Whether it is there as a whole.
    pub(super) fn has(&self, id: &SourceId) -> bool {
        self.whole.contains(id)
    }

    /// Fills `page` with what is at this byte; `false` if it is not here.
    pub(super) fn read(&mut self, id: SourceId, at: usize, page: &mut [u8]) -> bool {
        if let Some(whole) = self.whole.get_mut(&id) {
            whole.touch(at);
            return copy(&whole.raw, at, page);
        }
        let found = self.single.get(&(id, at)).is_some_and(|kept| copy(kept, 0, page));
        if !found {
            let awaited = self.awaited.get_or_insert_mut(id, Vec::new);
            if !awaited.contains(&at) {
                awaited.push(at);
            }
        }
        found
    }

    /// Keeps what was fetched, and lets go of what is not used.
    pub(super) fn insert(&mut self, id: SourceId, raw: Arc<Vec<u8>>, page_size: PageSize) {
        let page_size = page_size.as_usize();
        self.whole_bytes += raw.len() as u64 + ENTRY_BYTES;
        let mut whole = Whole {
            touched: vec![0; raw.len().div_ceil(page_size).div_ceil(64)],
            raw,
            page_size,
        };
        for at in self.awaited.pop(&id).unwrap_or_default() {
            whole.touch(at);
        }
        if let Some(old) = self.whole.put(id, whole) {
            self.whole_bytes -= old.raw.len() as u64 + ENTRY_BYTES;
        }
        while self.bytes() > self.limit {
            let is_done = match self.whole_bytes > self.limit / 2 {
                true => !self.let_whole_go(),
                false => !self.let_single_go(),
            };
            if is_done {
                break;
            }
        }
    }

    fn let_whole_go(&mut self) -> bool {
        let Some((id, whole)) = self.whole.pop_lru() else {
            return false;
        };
        self.whole_bytes -= whole.raw.len() as u64 + ENTRY_BYTES;
        let pages = whole.raw.len() / whole.page_size;
        let touched: u32 = whole.touched.iter().map(|bits| bits.count_ones()).sum();
        // One that was read through was not read for single pages.
        if touched as usize * 4 > pages {
            return true;
        }
        let numbers = (0..pages).filter(|number| is_touched(&whole.touched, *number));
        for at in numbers.map(|number| number * whole.page_size) {
            let page = whole.raw.get(at..).and_then(|rest| rest.get(..whole.page_size));
            if let Some(page) = page
                && self.single.put((id, at), page.into()).is_none()
            {
                self.single_bytes += whole.page_size as u64 + ENTRY_BYTES;
            }
        }
        true
    }

    fn let_single_go(&mut self) -> bool {
        match self.single.pop_lru() {
            Some((_, page)) => {
                self.single_bytes -= page.len() as u64 + ENTRY_BYTES;
                true
            }
            None => false,
        }
    }
}

fn is_touched(touched: &[u64], number: usize) -> bool {
    touched
        .get(number / 64)
        .is_some_and(|bits| bits >> (number % 64) & 1 == 1)
}

fn copy(from: &[u8], at: usize, page: &mut [u8]) -> bool {
    match from.get(at..).and_then(|rest| rest.get(..page.len())) {
        Some(found) => {
            page.copy_from_slice(found);
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::format::{ChunkHash, ChunkName};

    const MIB: usize = 1 << 20;

    fn id(token: u64) -> SourceId {
        let hash = ChunkHash([0; 32]);
        SourceId::Chunk(ChunkName { hash, token })
    }

    fn cache(mib: u64) -> Cache {
        Cache::new(mib << 20)
    }

    fn insert(cache: &mut Cache, token: u64) {
        cache.insert(id(token), chunk(token), PageSize::new(4096).unwrap());
    }

    fn chunk(token: u64) -> Arc<Vec<u8>> {
        let pages = (0..MIB / 4096).map(|page| [token as u8 ^ page as u8; 4096]);
        Arc::new(pages.flatten().collect())
    }

    fn read(cache: &mut Cache, token: u64, page: usize) -> bool {
        let mut out = [0; 4096];
        let found = cache.read(id(token), page * 4096, &mut out);
        assert!(!found || out == [token as u8 ^ page as u8; 4096], "{token}: {page}");
        found
    }

    #[test]
    fn it_never_has_more_than_its_limit() {
        let mut cache = cache(8);
        for token in 0..100 {
            insert(&mut cache, token);
            assert!(read(&mut cache, token, 7));
            assert!(cache.bytes() <= 8 << 20, "{}", cache.bytes());
        }
        let (whole, single) = (cache.whole.len() as u64, cache.single.len() as u64);
        assert_eq!(cache.whole_bytes, whole * (MIB as u64 + ENTRY_BYTES));
        assert_eq!(cache.single_bytes, single * (4096 + ENTRY_BYTES));
    }

    #[test]
    fn single_pages_stay_when_what_they_were_in_has_gone() {
        let mut cache = cache(8);
        for token in 0..100 {
            insert(&mut cache, token);
            assert!(read(&mut cache, token, 7));
        }
        for token in 0..100 {
            assert!(read(&mut cache, token, 7), "{token}");
        }
        assert!(!read(&mut cache, 0, 8));
        assert!(read(&mut cache, 99, 8));
    }

    #[test]
    fn the_page_for_which_it_was_fetched_counts_as_read() {
        let mut cache = cache(8);
        for token in 0..100 {
            assert!(!read(&mut cache, token, 7));
            insert(&mut cache, token);
        }
        for token in 0..100 {
            assert!(read(&mut cache, token, 7), "{token}");
        }
        assert_eq!(cache.awaited.len(), 0);
        for token in 1000..2000 {
            assert!(!read(&mut cache, token, 7));
        }
        assert_eq!(cache.awaited.len(), AWAITED.get(), "those that never come");
    }

    #[test]
    fn what_was_read_through_leaves_nothing_behind() {
        let mut cache = cache(8);
        for token in 0..20 {
            insert(&mut cache, token);
            for page in 0..256 {
                assert!(read(&mut cache, token, page));
            }
        }
        assert_eq!(cache.single.len(), 0);
        assert!(!read(&mut cache, 0, 7));
        assert!(read(&mut cache, 19, 7));
    }

    #[test]
    fn what_was_used_last_stays() {
        let mut cache = cache(4);
        insert(&mut cache, 0);
        for token in 1..50 {
            insert(&mut cache, token);
            assert!(read(&mut cache, 0, token as usize), "{token}");
        }
        // The same once more takes no more room.
        let bytes = cache.bytes();
        insert(&mut cache, 0);
        assert_eq!(cache.bytes(), bytes);
    }

    #[test]
    fn pages_of_a_short_chunk_and_none_behind_it() {
        let mut cache = cache(4);
        cache.insert(id(1), Arc::new(vec![9; 3 * 4096]), PageSize::new(4096).unwrap());
        let mut out = [0; 4096];
        assert!(cache.read(id(1), 2 * 4096, &mut out));
        assert_eq!(out, [9; 4096]);
        assert!(!cache.read(id(1), 3 * 4096, &mut out));
    }
}
