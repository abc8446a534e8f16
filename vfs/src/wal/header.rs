//! The WAL's header and frame headers, and the checksum that chains them.

use crate::types::{PageSize, Pgno, Position, Salts};

/// Bytes of the WAL header.
pub const HEADER_BYTES: usize = 32;
/// Bytes of the header before each page.
pub const FRAME_HEADER_BYTES: usize = 24;

/// The last bit of the magic tells the byte order of the checksums, not of the fields.
pub(super) const MAGIC_LITTLE: u32 = 0x377f_0682;
const MAGIC_BIG: u32 = 0x377f_0683;
/// `WAL_MAX_VERSION`.
pub(super) const VERSION: u32 = 3_007_000;

/// Bytes of a frame: its header and one page.
#[must_use]
pub fn frame_bytes(page_size: PageSize) -> u64 {
    FRAME_HEADER_BYTES as u64 + u64::from(page_size.get())
}

/// Where frame `frame` (from 1) starts in the WAL file.
#[must_use]
pub fn frame_offset(frame: u32, page_size: PageSize) -> u64 {
    HEADER_BYTES as u64 + u64::from(frame.saturating_sub(1)) * frame_bytes(page_size)
}

/// The big-endian number at `at`. Callers index inside arrays of fixed size.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A WAL header whose own checksum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalHeader {
    /// Bytes a page.
    pub page_size: PageSize,
    /// What every frame must carry.
    pub salts: Salts,
    /// The header's checksum, which the first frame continues.
    pub checksum: [u32; 2],
    /// Whether checksums are computed over big-endian words.
    pub big_endian: bool,
}

impl WalHeader {
    /// `None` when this is not the header of a WAL that SQLite would use.
    #[must_use]
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<WalHeader> {
        let big_endian = match be32(bytes, 0) {
            MAGIC_LITTLE => false,
            MAGIC_BIG => true,
            _ => return None,
        };
        let checksum = checksum(big_endian, &bytes[..24], [0, 0]);
        if be32(bytes, 4) != VERSION || checksum != [be32(bytes, 24), be32(bytes, 28)] {
            return None;
        }
        Some(WalHeader {
            page_size: PageSize::new(be32(bytes, 8))?,
            salts: Salts(be32(bytes, 16), be32(bytes, 20)),
            checksum,
            big_endian,
        })
    }

    /// The place behind this header.
    #[must_use]
    pub fn position(&self) -> Position {
        Position {
            salts: self.salts,
            frame: 0,
            checksum: self.checksum,
        }
    }
}

/// The header of a frame, as its bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The page that follows.
    pub pgno: Pgno,
    /// Pages in the database after this commit; 0 when the frame ends no transaction.
    pub commit_page_count: u32,
    /// Copied from the WAL header.
    pub salts: Salts,
    /// Of everything up to and with this frame.
    pub checksum: [u32; 2],
}

impl FrameHeader {
    /// `None` when the page number is 0.
    #[must_use]
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Option<FrameHeader> {
        Some(FrameHeader {
            pgno: Pgno::new(be32(bytes, 0))?,
            commit_page_count: be32(bytes, 4),
            salts: Salts(be32(bytes, 8), be32(bytes, 12)),
            checksum: [be32(bytes, 16), be32(bytes, 20)],
        })
    }
}

/// SQLite's cumulative checksum (`walChecksumBytes`). `bytes` is a multiple of 8 long; what is over does not count.
#[must_use]
pub(crate) fn checksum(big_endian: bool, bytes: &[u8], seed: [u32; 2]) -> [u32; 2] {
    let [mut s1, mut s2] = seed;
    let (pairs, _) = bytes.as_chunks::<8>();
    for pair in pairs {
        let [a, b, c, d, e, f, g, h] = *pair;
        let (x, y) = if big_endian {
            (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
        } else {
            (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
        };
        s1 = s1.wrapping_add(x).wrapping_add(s2);
        s2 = s2.wrapping_add(y).wrapping_add(s1);
    }
    [s1, s2]
}
