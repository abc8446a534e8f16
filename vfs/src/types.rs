//! The numbers that SQLite and replvfs speak in, each its own type so that none is taken for another.

use std::fmt;
use std::num::NonZeroU32;

/// Number of a transaction: 1 for the first commit after a generation's first image, one more per commit.
///
/// 0 names the state before the first captured commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Txid(pub u64);

impl Txid {
    /// The state before the first captured commit.
    pub const ZERO: Txid = Txid(0);

    /// The transaction after this one.
    #[must_use]
    pub fn next(self) -> Txid {
        Txid(self.0 + 1)
    }
}

impl fmt::Display for Txid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Number of a page in a database file, from 1 (SQLite's `Pgno`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pgno(NonZeroU32);

impl Pgno {
    /// `None` for 0, which numbers no page.
    #[must_use]
    pub fn new(number: u32) -> Option<Pgno> {
        NonZeroU32::new(number).map(Pgno)
    }

    /// The plain number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Pgno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A database's page size in bytes: a power of two from 512 to 65,536
/// (<https://www.sqlite.org/fileformat2.html#page_size>).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageSize(NonZeroU32);

impl PageSize {
    /// `None` when SQLite would not use this size.
    #[must_use]
    pub fn new(bytes: u32) -> Option<PageSize> {
        if bytes.is_power_of_two() && (512..=65_536).contains(&bytes) {
            NonZeroU32::new(bytes).map(PageSize)
        } else {
            None
        }
    }

    /// From the two-byte field of the database header, where 1 stands for 65,536.
    #[must_use]
    pub fn from_header_field(field: u16) -> Option<PageSize> {
        PageSize::new(if field == 1 { 65_536 } else { u32::from(field) })
    }

    /// In bytes.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// In bytes, for indexing.
    #[must_use]
    pub fn as_usize(self) -> usize {
        self.0.get() as usize
    }

    /// The page that holds the byte at 1 GiB, where SQLite keeps its file locks. It never has content
    /// (<https://www.sqlite.org/fileformat2.html#the_lock_byte_page>).
    #[must_use]
    pub fn lock_page(self) -> Pgno {
        const PENDING_BYTE: u32 = 0x4000_0000;
        // PENDING_BYTE / size + 1 is at least 16,385, so it is never 0.
        Pgno(NonZeroU32::new(PENDING_BYTE / self.get() + 1).unwrap_or(NonZeroU32::MAX))
    }

    /// Where a page starts in the database file, in bytes.
    #[must_use]
    pub fn offset_of(self, page: Pgno) -> u64 {
        u64::from(page.get() - 1) * u64::from(self.get())
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The two salts of a WAL header: they change with every restart of the WAL, and frames that carry
/// others are stale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Salts(pub u32, pub u32);

/// A place in a WAL: just behind a frame, with that frame's cumulative checksum. Equal positions prove
/// equal WAL prefixes. Frame 0 is the place behind the WAL header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// The salts of the WAL header.
    pub salts: Salts,
    /// Number of frames before this place.
    pub frame: u32,
    /// The cumulative checksum up to here, as SQLite computes it.
    pub checksum: [u32; 2],
}

impl Position {
    /// Of what is in no WAL: a transaction of a rollback-journal mode, and a database without a WAL. The default.
    pub const NONE: Position = Position {
        salts: Salts(0, 0),
        frame: 0,
        checksum: [0, 0],
    };
}

/// Milliseconds since 1970-01-01 00:00 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub i64);
