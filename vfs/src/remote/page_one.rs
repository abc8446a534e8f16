//! What a connection is shown of page 1, so that SQLite notices when its database is another one. Pure.
//!
//! SQLite keeps pages from one read transaction to the next when the 16 bytes from [`VERSION`] on are those that it saw with page 1
//! (`pagerLockDb`'s caller `sqlite3PagerSharedLock`, `readDbPage`), and statements and the schema when the cookie is the same. A commit of a database in WAL mode
//! need not move the former, and two branches of a history may have the same cookie.

use std::collections::HashMap;
use std::ops::Range;

use super::View;

/// Change counter, size, and the first pages of the freelist: what SQLite compares (<https://www.sqlite.org/fileformat2.html#file_change_counter>).
pub(super) const VERSION: Range<usize> = 24..40;
/// Write version and read version. 2 is WAL mode, which would need a WAL and shared memory; 1 is a rollback journal
/// (<https://www.sqlite.org/fileformat2.html#file_format_version_numbers>).
const FORMATS: Range<usize> = 18..20;
const LEGACY: u8 = 1;
/// The schema's cookie (<https://www.sqlite.org/fileformat2.html#schema_cookie>).
const COOKIE: Range<usize> = 40..44;

/// Pairs of which is remembered how they were shown, at most.
const MOST_COOKIES: usize = 1 << 16;
/// From one cookie to the next that is tried. Odd, so that all are.
const STEP: u32 = 0x9e37_79b1;

/// What one connection was shown.
#[derive(Debug, Default)]
pub(super) struct PageOne {
    /// With the page as a whole, in which view.
    shown: Option<Shown>,
    /// Which line's cookie stands behind each that was shown.
    cookies: HashMap<u32, (u64, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Shown {
    view: View,
    version: [u8; 16],
}

impl PageOne {
    /// Page 1 of a view, as it is to be shown. All of it, or its beginning, at least the database header.
    pub(super) fn show(&mut self, view: View, page: &mut [u8], is_whole: bool) {
        if let Some(formats) = page.get_mut(FORMATS) {
            for format in formats.iter_mut().filter(|format| **format > LEGACY) {
                *format = LEGACY;
            }
        }
        let Some(stored) = cookie(page) else { return };
        let cookie = self.cookie(view.line, stored);
        if let Some(place) = page.get_mut(COOKIE) {
            place.copy_from_slice(&cookie.to_be_bytes());
        }
        let version = page.get(VERSION).and_then(|bytes| bytes.try_into().ok());
        if let Some(version) = version.filter(|_| is_whole) {
            self.shown = Some(Shown { view, version });
            if self.cookies.len() == MOST_COOKIES {
                self.cookies.clear();
            }
            self.cookies.insert(cookie, (view.line, stored));
        }
    }

    /// The cookie of a schema: as it is stored, unless another line's schema was shown with that. SQLite may have kept a schema for any number of views
    /// (a `PRAGMA data_version` reads page 1 and asks for none), so no two of them ever have the same one.
    fn cookie(&self, line: u64, stored: u32) -> u32 {
        let mut cookie = stored;
        while self.cookies.get(&cookie).is_some_and(|known| *known != (line, stored)) {
            cookie = cookie.wrapping_add(STEP);
        }
        cookie
    }

    /// The bytes that SQLite compares, at the beginning of a read transaction: those of the page that it has seen if and only if the view is still that one.
    pub(super) fn version(&self, view: View, stored: [u8; 16]) -> [u8; 16] {
        let mut version = stored;
        if let Some(shown) = self.shown
            && shown.view != view
            && shown.version == version
        {
            version[0] ^= 0xff;
        }
        version
    }
}

fn cookie(page: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(page.get(COOKIE)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::types::{PageSize, Txid};

    fn view(txid: u64, line: u64) -> View {
        View {
            page_size: PageSize::new(512).unwrap(),
            page_count: 3,
            line,
            txid: Txid(txid),
        }
    }

    fn page(cookie: u32) -> Vec<u8> {
        let mut page = vec![7; 512];
        page[18..20].fill(2);
        page[40..44].copy_from_slice(&cookie.to_be_bytes());
        page
    }

    fn shown(one: &mut PageOne, view: View, cookie: u32) -> Vec<u8> {
        let mut page = page(cookie);
        one.show(view, &mut page, true);
        page
    }

    #[test]
    fn nothing_but_formats_is_changed_along_one_line() {
        let mut one = PageOne::default();
        for txid in 0..3 {
            let page = shown(&mut one, view(txid, 1), 5);
            assert_eq!(page[..18], [7; 18]);
            assert_eq!(page[18..20], [1, 1]);
            assert_eq!(page[20..40], [7; 20]);
            assert_eq!(page[40..44], [0, 0, 0, 5]);
            assert_eq!(page[44..], [7; 512 - 44]);
        }
    }

    #[test]
    fn another_state_is_noticed_and_the_same_one_is_not() {
        let mut one = PageOne::default();
        let stored: [u8; 16] = page(5)[VERSION].try_into().unwrap();
        assert_eq!(one.version(view(1, 1), stored), stored);
        shown(&mut one, view(1, 1), 5);
        assert_eq!(one.version(view(1, 1), stored), stored);
        assert_ne!(one.version(view(2, 1), stored), stored);
        assert_eq!(
            one.version(view(1, 1), stored),
            stored,
            "it is still the page that was shown"
        );
        shown(&mut one, view(2, 1), 5);
        assert_eq!(one.version(view(2, 1), stored), stored);
        assert_ne!(one.version(view(1, 1), stored), stored);
    }

    #[test]
    fn no_two_schemas_have_the_same_cookie() {
        let mut one = PageOne::default();
        let mut cookie = |line, stored| {
            let page = shown(&mut one, view(1, line), stored);
            u32::from_be_bytes(page[40..44].try_into().unwrap())
        };
        assert_eq!((cookie(1, 5), cookie(1, 6)), (5, 6), "the first line has its own");
        let mut seen = HashMap::new();
        for round in 0..2 {
            for (line, stored) in [
                (1, 5),
                (2, 5),
                (3, 5),
                (2, 6),
                (1, 7),
                (2, 7),
                (1, u32::MAX),
                (4, u32::MAX),
            ] {
                let now = cookie(line, stored);
                let before = seen.insert((line, stored), now);
                assert!(
                    before.is_none_or(|before| before == now),
                    "round {round}: {line}, {stored}"
                );
            }
        }
        let different: std::collections::HashSet<_> = seen.values().collect();
        assert_eq!(different.len(), seen.len(), "{seen:?}");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut one = PageOne::default();
        for cookie in 0..2 * MOST_COOKIES as u32 + 7 {
            shown(&mut one, view(1, 1), cookie);
            assert!(one.cookies.len() <= MOST_COOKIES);
        }
    }

    #[test]
    fn the_beginning_of_the_page_alone_counts_for_nothing() {
        let mut one = PageOne::default();
        shown(&mut one, view(1, 1), 5);
        let stored: [u8; 16] = page(5)[VERSION].try_into().unwrap();
        let mut header = page(5);
        header.truncate(100);
        one.show(view(2, 1), &mut header, false);
        assert_eq!(header[18..20], [1, 1]);
        assert_ne!(one.version(view(2, 1), stored), stored);
    }
}
