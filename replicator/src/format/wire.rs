//! Fixed-width little-endian fields, and the sink that counts and hashes what goes through it. Owns nothing of any
//! layout.

use std::io::{self, Write};

use replvfs_vfs::types::{PageSize, Position, Salts};

use super::{FORMAT_VERSION, FormatError, ObjectHash};

/// The length of an encoded [`Position`].
pub(super) const POSITION_LEN: usize = 20;

/// Reads fields from the front of bytes, whose lack is damage to `part`.
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    part: &'static str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8], part: &'static str) -> Fields<'a> {
        Fields { bytes, part }
    }

    /// The fields of bytes whose last four are the CRC-32 of those before.
    pub(super) fn checked(bytes: &'a [u8], part: &'static str) -> Result<Fields<'a>, FormatError> {
        let (content, crc) = bytes
            .split_last_chunk::<4>()
            .ok_or_else(|| FormatError::damaged(part, "it is too short"))?;
        check_crc(content, u32::from_le_bytes(*crc), part)?;
        Ok(Fields { bytes: content, part })
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (field, rest) = self
            .bytes
            .split_first_chunk::<N>()
            .ok_or_else(|| FormatError::damaged(self.part, "it is too short"))?;
        self.bytes = rest;
        Ok(*field)
    }

    pub(super) fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, FormatError> {
        self.array().map(i64::from_le_bytes)
    }

    pub(super) fn position(&mut self) -> Result<Position, FormatError> {
        Ok(Position {
            salts: Salts(self.u32()?, self.u32()?),
            frame: self.u32()?,
            checksum: [self.u32()?, self.u32()?],
        })
    }

    pub(super) fn page_size(&mut self) -> Result<PageSize, FormatError> {
        let bytes = self.u32()?;
        PageSize::new(bytes)
            .ok_or_else(|| FormatError::damaged(self.part, format!("{bytes} is not a page size of SQLite")))
    }

    pub(super) fn version(&mut self) -> Result<(), FormatError> {
        match self.u32()? {
            FORMAT_VERSION => Ok(()),
            found => Err(FormatError::Version {
                found,
                known: FORMAT_VERSION,
            }),
        }
    }

    /// The bytes that no field was read from.
    pub(super) fn rest(self) -> &'a [u8] {
        self.bytes
    }
}

pub(super) fn put_position(out: &mut Vec<u8>, position: Position) {
    let Position { salts, frame, checksum } = position;
    for field in [salts.0, salts.1, frame, checksum[0], checksum[1]] {
        out.extend_from_slice(&field.to_le_bytes());
    }
}

/// Appends the CRC-32 of all that is there.
pub(super) fn put_crc(out: &mut Vec<u8>) {
    let crc = crc32fast::hash(out);
    out.extend_from_slice(&crc.to_le_bytes());
}

pub(super) fn check_crc(bytes: &[u8], expected: u32, part: &'static str) -> Result<(), FormatError> {
    if crc32fast::hash(bytes) == expected {
        Ok(())
    } else {
        Err(FormatError::damaged(part, "its CRC-32 does not match"))
    }
}

/// Passes bytes on; knows how many there were, and their hash.
pub(super) struct Sink<W> {
    out: W,
    written: u64,
    hasher: blake3::Hasher,
    crc: crc32fast::Hasher,
}

impl<W: Write> Sink<W> {
    pub(super) fn new(out: W) -> Sink<W> {
        Sink {
            out,
            written: 0,
            hasher: blake3::Hasher::new(),
            crc: crc32fast::Hasher::new(),
        }
    }

    /// Bytes so far.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// The CRC-32 of what came since the last call.
    pub(super) fn take_crc(&mut self) -> u32 {
        std::mem::take(&mut self.crc).finalize()
    }

    /// What the bytes went to, and their hash.
    pub(super) fn finish(mut self) -> Result<(W, ObjectHash, u64), FormatError> {
        self.out.flush().map_err(FormatError::Io)?;
        Ok((self.out, ObjectHash(*self.hasher.finalize().as_bytes()), self.written))
    }
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        let bytes = bytes.get(..written).unwrap_or(bytes);
        self.hasher.update(bytes);
        self.crc.update(bytes);
        self.written += bytes.len() as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
