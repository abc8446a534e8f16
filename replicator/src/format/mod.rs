//! The store's objects as bytes: names, metadata, segments, images. Owns every layout that `FORMAT.md` describes, and
//! trusts nothing that it decodes. Does no I/O of its own, and leaves what the objects mean together to
//! [`history`](crate::history).

mod error;
mod image;
mod key;
mod meta;
mod seal;
mod segment;
mod state;
mod wire;

pub use error::FormatError;
pub use image::{CHUNK_BYTES, Manifest, decode_chunk, encode_chunk, max_chunk_bytes};
pub use key::{ChunkHash, ChunkName, DatabaseId, Generation, Key, ObjectHash};
pub use meta::{GenerationMeta, MAX_META_BYTES, Parent, ReplicaMeta};
pub use seal::Seal;
pub use segment::{
    BLOCK_BYTES, MergedSegment, Sealed, SegmentFooter, SegmentHeader, SegmentIndex, SegmentReader, SegmentWriter, Step,
    TransactionEntry, TransactionHeader,
};
pub(crate) use segment::{SPAN_PAGES, SPAN_TRANSACTIONS};
pub use state::{LocalState, Place, STATE_SLOT_BYTES, Unfinished};

/// The version of every object in a replica. A reader refuses any other.
pub const FORMAT_VERSION: u32 = 1;
