//! The write-ahead log as bytes: headers, checksums, the wal-index header, and the walk along the checksum
//! chain that tells committed transactions from leftovers. Pure: reading is a closure.
//!
//! Formats: <https://www.sqlite.org/fileformat2.html#the_write_ahead_log> and <https://www.sqlite.org/walformat.html>.

mod header;
mod index;
mod scan;
mod write;

pub(crate) use header::checksum;
pub use header::{FRAME_HEADER_BYTES, FrameHeader, HEADER_BYTES, WalHeader, frame_bytes, frame_offset};
pub use index::IndexHeader;
pub(crate) use index::{
    CHECKPOINT_INFO, CHECKPOINT_INFO_ATTEMPTED, CHECKPOINT_INFO_READ_MARKS, INDEX_HEADER_BYTES, READ_MARK_NOT_USED,
    restarted,
};
pub use scan::{ChainError, Commit, Scan};
pub use write::WalWriter;
