//! From transactions to a segment's bytes. Blocks, and belongs on tokio's blocking pool.
//!
//! Owns where the bytes are kept until they are uploaded. Leaves their layout to [`format`](crate::format), and to the task what
//! follows from an error.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use replvfs_vfs::transaction::{FrameError, Transaction};

use super::changed::Touched;
use crate::format::{FormatError, Generation, ObjectHash, SegmentHeader, SegmentWriter, TransactionHeader};
use crate::store::Body;

/// WAL bytes up to which a segment is made in memory: a little more than are [taken](super::pace::most) at once as things are set.
const IN_MEMORY_BYTES: u64 = 17 << 20;
/// zstd's: near its fastest, since this runs beside the application.
const LEVEL: i32 = 1;

/// A segment that is ready for its slot.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) body: Body,
    pub(super) hash: ObjectHash,
    /// By its transactions.
    pub(super) touched: Touched,
}

/// Why there is no segment.
#[derive(Debug, thiserror::Error)]
pub(super) enum SealError {
    /// The WAL does not have what was committed, or not any more.
    #[error("a committed transaction cannot be read back: {0}")]
    Frames(#[from] FrameError),
    #[error("sealing a segment failed: {0}")]
    Format(#[from] FormatError),
    #[error("the temporary file of a large segment failed: {0}")]
    Temporary(#[from] io::Error),
}

impl SealError {
    /// Whether the same transactions may be sealed later: the disk is full, memory is short.
    pub(super) fn may_pass(&self) -> bool {
        matches!(
            self,
            SealError::Temporary(_) | SealError::Format(FormatError::Io(_) | FormatError::Compression(_))
        )
    }
}

/// Seals consecutive transactions, at least one. Large ones go through a temporary file, which has no name, in `folder` or where the
/// system keeps such files.
pub(super) fn seal(
    transactions: &[Arc<Transaction>],
    generation: Generation,
    previous: ObjectHash,
    folder: &Path,
) -> Result<Segment, SealError> {
    let (Some(first), Some(last)) = (transactions.first(), transactions.last()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
    };
    let header = SegmentHeader {
        generation,
        page_size: first.page_size,
        first: first.txid,
        last: last.txid,
        start: first.start,
        end: last.end,
        previous,
    };
    let wal_bytes: u64 = transactions.iter().map(|transaction| transaction.wal_bytes()).sum();
    if wal_bytes <= IN_MEMORY_BYTES {
        let (bytes, hash, touched) = write(Vec::new(), header, transactions)?;
        return Ok(Segment {
            body: Body::Bytes(bytes.into()),
            hash,
            touched,
        });
    }
    let file = tempfile::tempfile_in(folder).or_else(|_| tempfile::tempfile())?;
    let (out, hash, touched) = write(BufWriter::with_capacity(1 << 20, file), header, transactions)?;
    let file: File = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    let len = file.metadata()?.len();
    Ok(Segment {
        body: Body::File(Arc::new(file), len),
        hash,
        touched,
    })
}

fn write<W: Write>(
    out: W,
    header: SegmentHeader,
    transactions: &[Arc<Transaction>],
) -> Result<(W, ObjectHash, Touched), SealError> {
    let mut touched = Touched::nothing(header.page_size);
    let mut writer = SegmentWriter::new(out, header, LEVEL)?;
    for transaction in transactions {
        writer.begin(TransactionHeader {
            committed_at: transaction.committed_at,
            page_count: transaction.page_count,
            end: transaction.end,
        })?;
        touched.begin(transaction.page_count);
        transaction.for_each_page(|pgno, page| {
            touched.page(pgno);
            writer.page(pgno, page).map_err(SealError::from)
        })?;
    }
    let (out, sealed) = writer.finish()?;
    Ok((out, sealed.hash, touched.in_bytes(sealed.len)))
}
