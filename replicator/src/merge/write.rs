//! A span from pieces. Owns the check of their chain, and that what is stored was read back and has just what went in: after that the
//! pieces may be deleted.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use replvfs_vfs::types::Txid;
use tempfile::{SpooledData, SpooledTempFile};
use tokio::sync::mpsc;

use super::read::{Content, Incoming, Message, send_pieces};
use super::{MergeError, MergeOptions};
use crate::format::{
    FormatError, Key, ObjectHash, SegmentFooter, SegmentHeader, SegmentIndex, SegmentReader, SegmentWriter, Step,
};
use crate::history::GenerationHistory;
use crate::history::path::Piece;
use crate::outside;
use crate::store::{Body, Store};

/// Larger ones go through a temporary file.
const IN_MEMORY_BYTES: usize = 8 << 20;

/// A span that is ready to be stored.
pub(super) struct Span {
    pub(super) index: SegmentIndex,
    pub(super) body: Body,
}

/// Makes a span of the first of these pieces, and tells how many could be taken: all, unless one is gone, or they are too much together. Of less
/// than two there is no span.
pub(super) async fn span(
    store: &Store,
    generation: &GenerationHistory,
    pieces: Vec<Piece>,
    options: &MergeOptions,
) -> Result<(Option<Span>, usize), MergeError> {
    let (sender, receiver) = outside::queue(2);
    let (options, parallel) = (options.clone(), options.parallel);
    let send = send_pieces(store, generation, (pieces, parallel), sender);
    let (written, sent) = outside::fed(move || write(receiver, &options), send).await;
    let written = written.map_err(|error| MergeError::Task(error.to_string()))?;
    sent?;
    written
}

/// What is written, and what it is made of.
struct Making {
    writer: SegmentWriter<SpooledTempFile>,
    digest: Digest,
    /// What was put in last, and what its successor has to name.
    last: (Key, ObjectHash),
    pieces: usize,
}

fn write(mut receiver: mpsc::Receiver<Message>, options: &MergeOptions) -> Result<(Option<Span>, usize), MergeError> {
    let mut reader = SegmentReader::new().map_err(|error| MergeError::Task(error.to_string()))?;
    let mut making: Option<Making> = None;
    loop {
        match outside::next(&mut receiver) {
            Some(Message::Piece(piece)) => making = Some(put(making, *piece, &mut reader, options)?),
            Some(Message::End) => break,
            // Whoever wanted it has an error of its own, or is gone.
            None => return Ok((None, 0)),
        }
    }
    let making = match making {
        Some(making) if making.pieces > 1 => making,
        making => return Ok((None, making.map_or(0, |making| making.pieces))),
    };
    let (key, _) = making.last;
    let (mut out, header, len) = making.writer.finish_span().map_err(MergeError::format(key))?;
    let index = read_back(&mut out, &header, len, making.digest, &mut reader)?;
    let body = match out.into_inner() {
        SpooledData::InMemory(cursor) => Body::Bytes(cursor.into_inner().into()),
        SpooledData::OnDisk(file) => Body::File(Arc::new(file), len),
    };
    Ok((Some(Span { index, body }), making.pieces))
}

fn put(
    making: Option<Making>,
    piece: Incoming,
    reader: &mut SegmentReader,
    options: &MergeOptions,
) -> Result<Making, MergeError> {
    let Incoming { key, index, content } = piece;
    let header = *index.header();
    let mut making = match making {
        Some(making) if making.last.1 != header.previous => {
            let previous = making.last.0;
            return Err(MergeError::Chain { key, previous });
        }
        Some(making) => making,
        None => Making {
            writer: SegmentWriter::span(spool(options), header, options.level).map_err(MergeError::format(key))?,
            digest: Digest::default(),
            last: (key, header.previous),
            pieces: 0,
        },
    };
    let (writer, digest) = (&mut making.writer, &mut making.digest);
    // Those of a span, whose ends are inside of the piece.
    let mut ended = index.merged().iter().zip(index.merged().iter().skip(1)).peekable();
    let visit = |step: Step<'_>| {
        if let Step::Begin(entry) = step
            && let Some((segment, _)) = ended.next_if(|(_, next)| next.first == entry.txid)
        {
            writer.merged(segment.hash)?;
        }
        digest.note(step);
        match step {
            Step::Begin(entry) => writer.begin(entry.header)?,
            Step::Page(pgno, page) => writer.page(pgno, page)?,
        }
        Ok(())
    };
    let all = header.first..=header.last;
    let own = match content {
        Content::Whole(object) => {
            let load = |block| Ok(slice(&object, index.block_range(block)));
            let read: Result<(), Failed> = reader.for_each(&index, all, load, visit);
            read.map_err(|failed| failed.at(key))?;
            ObjectHash::of(&object)
        }
        Content::Blocks(mut blocks, hash) => {
            let load = |_| blocks.blocking_recv().ok_or(Failed::Stopped);
            reader
                .for_each(&index, all, load, visit)
                .map_err(|failed| failed.at(key))?;
            hash.blocking_recv().map_err(|_| Failed::Stopped.at(key))?
        }
    };
    let hash = index.chain_hash().unwrap_or(own);
    making.writer.merged(hash).map_err(MergeError::format(key))?;
    making.last = (key, hash);
    making.pieces += 1;
    Ok(making)
}

fn spool(options: &MergeOptions) -> SpooledTempFile {
    match &options.folder {
        Some(folder) => SpooledTempFile::new_in(IN_MEMORY_BYTES, folder),
        None => SpooledTempFile::new(IN_MEMORY_BYTES),
    }
}

/// The index was checked against the object.
fn slice(object: &Bytes, range: Range<u64>) -> Bytes {
    object.slice(range.start as usize..range.end as usize)
}

/// All that transactions are.
#[derive(Default)]
struct Digest {
    hasher: blake3::Hasher,
    /// A hash of many small parts takes several times as long as one of the same bytes at once.
    waiting: Vec<u8>,
}

impl Digest {
    const AT_ONCE: usize = 128 << 10;

    fn note(&mut self, step: Step<'_>) {
        match step {
            Step::Begin(entry) => {
                let end = entry.header.end;
                self.waiting.extend_from_slice(&entry.txid.0.to_le_bytes());
                self.waiting
                    .extend_from_slice(&entry.header.committed_at.0.to_le_bytes());
                let numbers = [
                    entry.header.page_count,
                    entry.pages,
                    end.salts.0,
                    end.salts.1,
                    end.frame,
                ];
                for number in numbers.into_iter().chain(end.checksum) {
                    self.waiting.extend_from_slice(&number.to_le_bytes());
                }
            }
            Step::Page(pgno, page) => {
                self.waiting.extend_from_slice(&pgno.get().to_le_bytes());
                self.waiting.extend_from_slice(page);
            }
        }
        if self.waiting.len() >= Digest::AT_ONCE {
            self.hasher.update(&self.waiting);
            self.waiting.clear();
        }
    }

    fn finish(mut self) -> blake3::Hash {
        self.hasher.update(&self.waiting);
        self.hasher.finalize()
    }
}

/// Reads the span as anybody would.
fn read_back(
    out: &mut SpooledTempFile,
    header: &SegmentHeader,
    len: u64,
    digest: Digest,
    reader: &mut SegmentReader,
) -> Result<SegmentIndex, MergeError> {
    let key = Key::Span(header.generation, header.first, header.last);
    let refuse = |problem: String| MergeError::NotTheSame { key, problem };
    let wrong = |error: FormatError| refuse(error.to_string());
    let footer_at = len.saturating_sub(SegmentFooter::MAX_LEN as u64);
    let footer = SegmentFooter::parse(&range(out, footer_at..len)?, len).map_err(wrong)?;
    let index = SegmentIndex::parse(&footer, &range(out, footer.tables())?).map_err(wrong)?;
    index
        .check_start(&range(out, 0..SegmentIndex::START_LEN)?)
        .map_err(wrong)?;
    let mut read = Digest::default();
    let visit = |step: Step<'_>| {
        read.note(step);
        Ok(())
    };
    let load = |block| Ok(range(out, index.block_range(block))?.into());
    let everything = Txid::ZERO..=Txid(u64::MAX);
    let result: Result<(), Failed> = reader.for_each(&index, everything, load, visit);
    match result {
        Ok(()) => {}
        Err(Failed::Format(error)) => return Err(wrong(error)),
        Err(failed) => return Err(failed.at(key)),
    }
    if index.key() != key || read.finish() != digest.finish() {
        return Err(refuse("its transactions are others".to_owned()));
    }
    Ok(index)
}

fn range(out: &mut SpooledTempFile, range: Range<u64>) -> std::io::Result<Vec<u8>> {
    // At most that of a table or a block of this process's making.
    let mut bytes = vec![0; (range.end - range.start) as usize];
    out.seek(SeekFrom::Start(range.start))?;
    out.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// An error on the way out of the reader.
enum Failed {
    Format(FormatError),
    Temporary(std::io::Error),
    /// Reading from the store has failed, and says why.
    Stopped,
}

impl From<FormatError> for Failed {
    fn from(error: FormatError) -> Failed {
        Failed::Format(error)
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Failed {
        Failed::Temporary(error)
    }
}

impl Failed {
    fn at(self, key: Key) -> MergeError {
        match self {
            Failed::Format(error) => MergeError::format(key)(error),
            Failed::Temporary(error) => MergeError::Temporary(error),
            Failed::Stopped => MergeError::Task(format!("reading {key} was given up")),
        }
    }
}
