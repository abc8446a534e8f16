//! What ends a generation's log: an object in the slot where its next segment would have been.

use replvfs_vfs::types::{Txid, UnixMillis};

use super::wire::{Fields, check_crc, put_crc};
use super::{FORMAT_VERSION, FormatError, Generation, ObjectHash};

pub(super) const SEAL_MAGIC: [u8; 8] = *b"replvfsE";

const PART: &str = "seal";

/// The end of a generation: whoever wanted to write the next segment finds that it is not his turn any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The generation that it ends.
    pub generation: Generation,
    /// The slot that it is in: no transaction with this number or a higher one is in the generation.
    pub slot: Txid,
    /// The hash of the last segment; that of `generation.json` if there is none.
    pub previous: ObjectHash,
    /// When it was made.
    pub sealed_at: UnixMillis,
    /// Drawn at random, so that no two writers make the same seal.
    pub token: [u8; 16],
}

impl Seal {
    /// The length of the object. No segment is that short.
    pub const LEN: usize = 96;

    /// The object's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Seal::LEN);
        out.extend_from_slice(&SEAL_MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&self.generation.0.to_le_bytes());
        out.extend_from_slice(&self.slot.0.to_le_bytes());
        out.extend_from_slice(&self.previous.0);
        out.extend_from_slice(&self.sealed_at.0.to_le_bytes());
        out.extend_from_slice(&self.token);
        put_crc(&mut out);
        out.extend_from_slice(&SEAL_MAGIC);
        out
    }

    /// What the object says.
    ///
    /// # Errors
    ///
    /// [`FormatError::Version`] for another release's, [`FormatError::Damaged`] for anything else that is no seal.
    pub fn decode(object: &[u8]) -> Result<Seal, FormatError> {
        let framed = object
            .strip_prefix(&SEAL_MAGIC)
            .and_then(|rest| rest.strip_suffix(&SEAL_MAGIC))
            .filter(|_| object.len() == Seal::LEN);
        let Some((_, crc)) = framed.and_then(|framed| framed.split_last_chunk::<4>()) else {
            return Err(FormatError::damaged(
                PART,
                "it is too short for a segment, and does not begin and end like a seal",
            ));
        };
        let checked = Seal::LEN - SEAL_MAGIC.len() - crc.len();
        let content = object.get(..checked).unwrap_or_default();
        check_crc(content, u32::from_le_bytes(*crc), PART)?;
        let mut fields = Fields::new(content, PART);
        let _magic: [u8; 8] = fields.array()?;
        fields.version()?;
        Ok(Seal {
            generation: Generation(fields.u64()?),
            slot: Txid(fields.u64()?),
            previous: ObjectHash(fields.array()?),
            sealed_at: UnixMillis(fields.i64()?),
            token: fields.array()?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn seal() -> Seal {
        Seal {
            generation: Generation(7),
            slot: Txid(42),
            previous: ObjectHash([9; 32]),
            sealed_at: UnixMillis(1_700_000_000_000),
            token: [3; 16],
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = seal().encode();
        assert_eq!(bytes.len(), Seal::LEN);
        assert_eq!(Seal::decode(&bytes).unwrap(), seal());
    }

    #[test]
    fn no_flipped_bit_and_no_cut_goes_unnoticed() {
        let bytes = seal().encode();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Seal::decode(&flipped).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Seal::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        assert!(Seal::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn a_seal_of_another_release_is_named() {
        let mut bytes = seal().encode();
        bytes[8] = 2;
        bytes.truncate(84);
        put_crc(&mut bytes);
        bytes.extend_from_slice(&SEAL_MAGIC);
        assert!(matches!(
            Seal::decode(&bytes),
            Err(FormatError::Version { found: 2, known: 1 })
        ));
    }
}
