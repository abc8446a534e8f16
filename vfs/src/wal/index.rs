//! The header of the wal-index in shared memory: what SQLite itself takes for the state of the WAL.

use crate::types::{PageSize, Position, Salts};

use super::header::checksum;

/// Bytes of one copy of the header; a second follows it.
pub(crate) const INDEX_HEADER_BYTES: usize = 48;
/// Where `nBackfill` stands in the first region (`struct WalCkptInfo` behind the two headers).
pub(crate) const CHECKPOINT_INFO: usize = 96;
/// `nBackfillAttempted`.
pub(crate) const CHECKPOINT_INFO_ATTEMPTED: usize = 128;
/// Where `aReadMark[0]` stands in the first region (`struct WalCkptInfo` behind the two headers).
pub(crate) const CHECKPOINT_INFO_READ_MARKS: usize = 100;
/// `READMARK_NOT_USED`.
pub(crate) const READ_MARK_NOT_USED: u32 = 0xffff_ffff;

/// `WALINDEX_MAX_VERSION`.
const VERSION: u32 = 3_007_000;

/// One copy of the wal-index header whose checksum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexHeader {
    /// Behind the last committed frame.
    pub position: Position,
    /// Bytes a page; `None` while no WAL header was read or written.
    pub page_size: Option<PageSize>,
    /// Pages in the database; 0 when the WAL says nothing about it.
    pub page_count: u32,
    /// Whether the WAL's checksums are over big-endian words.
    pub big_endian: bool,
}

/// The bytes of a header after a restart of the WAL: no frames, and other salts (`walRestartHdr`, `walIndexWriteHdr`).
pub(crate) fn restarted(before: &[u8; INDEX_HEADER_BYTES], random: u32) -> [u8; INDEX_HEADER_BYTES] {
    let mut bytes = *before;
    let salt = u32::from_be_bytes([bytes[32], bytes[33], bytes[34], bytes[35]]);
    bytes[16..20].fill(0);
    bytes[32..36].copy_from_slice(&salt.wrapping_add(1).to_be_bytes());
    bytes[36..40].copy_from_slice(&random.to_ne_bytes());
    let sum = checksum(cfg!(target_endian = "big"), &bytes[..40], [0, 0]);
    bytes[40..44].copy_from_slice(&sum[0].to_ne_bytes());
    bytes[44..48].copy_from_slice(&sum[1].to_ne_bytes());
    bytes
}

impl IndexHeader {
    /// Bytes of the WAL up to the last committed frame.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        let frame = self.page_size.map_or(0, super::frame_bytes);
        u64::from(self.position.frame) * frame
    }

    /// `None` when the copy is not initialised, is being written, or is of a version that we do not know.
    #[must_use]
    pub fn decode(bytes: &[u8; INDEX_HEADER_BYTES]) -> Option<IndexHeader> {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        // Salts are copied from the WAL as they stand there, so they are big-endian in native-endian memory.
        let salt = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let native_big = cfg!(target_endian = "big");
        if bytes[12] == 0 || word(0) != VERSION || checksum(native_big, &bytes[..40], [0, 0]) != [word(40), word(44)] {
            return None;
        }
        Some(IndexHeader {
            position: Position {
                salts: Salts(salt(32), salt(36)),
                frame: word(16),
                checksum: [word(24), word(28)],
            },
            page_size: PageSize::from_header_field(u16::from_ne_bytes([bytes[14], bytes[15]])),
            page_count: word(20),
            big_endian: bytes[13] != 0,
        })
    }
}
