//! The walk along a WAL's checksum chain. What does not continue the chain is not part of the WAL, and what no
//! commit frame follows is no transaction.

use crate::types::{PageSize, Pgno, Position};

use super::header::{FRAME_HEADER_BYTES, FrameHeader, WalHeader, checksum};

/// A frame does not continue the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frame {frame} of the WAL does not continue the checksum chain")]
pub struct ChainError {
    /// Its number.
    pub frame: u32,
}

/// A frame that ends a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Behind the frame.
    pub position: Position,
    /// Pages in the database after it.
    pub page_count: u32,
}

/// A walk from one position onwards, a frame at a time.
#[derive(Debug, Clone)]
pub struct Scan {
    page_size: PageSize,
    big_endian: bool,
    position: Position,
}

impl Scan {
    /// From the start of a WAL.
    #[must_use]
    pub fn from_header(header: &WalHeader) -> Scan {
        Scan {
            page_size: header.page_size,
            big_endian: header.big_endian,
            position: header.position(),
        }
    }

    /// From a position that is known to be right.
    #[must_use]
    pub fn from_position(position: Position, page_size: PageSize, big_endian: bool) -> Scan {
        Scan {
            page_size,
            big_endian,
            position,
        }
    }

    /// Behind the last frame that was accepted.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Of every page in the WAL.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Bytes of a frame.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.page_size.as_usize()
    }

    /// Takes the next frame: its page, and the commit if it is one.
    ///
    /// # Errors
    ///
    /// When the bytes are too few, carry other salts, or do not continue the chain. The walk stays where it was.
    pub fn step<'a>(&mut self, frame: &'a [u8]) -> Result<(Pgno, &'a [u8], Option<Commit>), ChainError> {
        let number = self.position.frame.wrapping_add(1);
        let broken = ChainError { frame: number };
        let (head, page) = frame.split_first_chunk::<FRAME_HEADER_BYTES>().ok_or(broken)?;
        if page.len() != self.page_size.as_usize() || number == 0 {
            return Err(broken);
        }
        let header = FrameHeader::decode(head).ok_or(broken)?;
        if header.salts != self.position.salts {
            return Err(broken);
        }
        let sum = checksum(self.big_endian, &head[..8], self.position.checksum);
        let sum = checksum(self.big_endian, page, sum);
        if sum != header.checksum {
            return Err(broken);
        }
        self.position = Position {
            salts: header.salts,
            frame: number,
            checksum: sum,
        };
        let commit = (header.commit_page_count != 0).then_some(Commit {
            position: self.position,
            page_count: header.commit_page_count,
        });
        Ok((header.pgno, page, commit))
    }

    /// Walks frames that stand one behind the other in `bytes`, as far as the chain reaches, and returns the last commit.
    #[must_use]
    pub fn last_commit(mut self, bytes: &[u8]) -> Option<Commit> {
        let mut last = None;
        for frame in bytes.chunks_exact(self.frame_bytes()) {
            match self.step(frame) {
                Ok((_, _, commit)) => last = commit.or(last),
                Err(_) => break,
            }
        }
        last
    }
}
