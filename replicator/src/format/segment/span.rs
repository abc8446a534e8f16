//! Spans: what they have that segments have not. Owns the writer's way to a span, and what a segment table may say.

use std::io::{Seek, SeekFrom, Write};

use replvfs_vfs::types::Txid;

use super::{FormatError, Kind, MergedSegment, ObjectHash, SegmentHeader, SegmentWriter};

const PART: &str = "span";

impl<W: Write + Seek> SegmentWriter<W> {
    /// Starts a span, at the start of `out`. Where it ends is told by what is written: `header.last` and `header.end` are not looked at.
    /// `level` is zstd's.
    ///
    /// After the transactions of each segment comes [`merged`](Self::merged), and at the end [`finish_span`](Self::finish_span).
    ///
    /// # Errors
    ///
    /// As for [`new`](Self::new).
    pub fn span(out: W, header: SegmentHeader, level: i32) -> Result<Self, FormatError> {
        if header.first == Txid::ZERO {
            return Err(FormatError::refused(PART, "transaction 0 is in no segment"));
        }
        let last = Txid(u64::MAX - 1);
        SegmentWriter::start(out, Kind::Span, SegmentHeader { last, ..header }, level)
    }

    /// Ends a segment: all transactions since the one before were in the object with this hash.
    ///
    /// # Errors
    ///
    /// [`FormatError::Refused`] when there was no transaction since.
    pub fn merged(&mut self, hash: ObjectHash) -> Result<(), FormatError> {
        let first = match self.ended {
            Some(last) => last.next(),
            None => self.header.first,
        };
        let last = self.transactions.last().map(|last| last.txid);
        match last.filter(|last| *last >= first) {
            Some(last) => self.ended = Some(last),
            None => {
                return Err(FormatError::refused(
                    PART,
                    format!("segment {first} has no transaction"),
                ));
            }
        }
        self.merged.push(MergedSegment { first, hash });
        Ok(())
    }

    /// Writes what is left, and last the header, which says what is in the span. Returns its header and its length in bytes.
    ///
    /// # Errors
    ///
    /// [`FormatError::Refused`] for less than two segments, or when the last one was not ended; [`FormatError::Io`] when the output fails.
    pub fn finish_span(mut self) -> Result<(W, SegmentHeader, u64), FormatError> {
        let last = self.transactions.last().filter(|last| Some(last.txid) == self.ended);
        let Some(last) = last.copied() else {
            return Err(FormatError::refused(PART, "its last segment was not ended"));
        };
        self.header.last = last.txid;
        self.header.end = last.header.end;
        let header = self.header;
        check_merged(&header, &self.merged).map_err(|problem| FormatError::refused(PART, problem))?;
        // The hash is that of the object without its header, and of no use.
        let (mut out, sealed) = self.finish()?;
        out.seek(SeekFrom::Start(0))
            .and_then(|_| out.write_all(&header.encode(Kind::Span)))
            .and_then(|()| out.flush())
            .map_err(FormatError::Io)?;
        Ok((out, header, sealed.len))
    }
}

/// # Errors
///
/// What cannot be, in words.
pub(super) fn check_merged(header: &SegmentHeader, merged: &[MergedSegment]) -> Result<(), String> {
    let ascend = merged.is_sorted_by(|before, after| before.first < after.first);
    match merged {
        [first, .., last] if ascend && first.first == header.first && last.first <= header.last => Ok(()),
        _ => Err(format!(
            "its {} segments are not those of transactions {}..={}",
            merged.len(),
            header.first,
            header.last
        )),
    }
}
