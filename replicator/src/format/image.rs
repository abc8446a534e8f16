//! Images: the manifest of the whole database at one transaction, and the chunks of pages that it names. Owns their
//! layouts; leaves which chunks are written, fetched or shared to others.

use replvfs_vfs::types::{PageSize, Position, Txid, UnixMillis};

use super::wire::{Fields, POSITION_LEN, put_crc, put_position};
use super::{ChunkHash, ChunkName, FORMAT_VERSION, FormatError, Generation};

/// Raw bytes of the pages in a chunk; the last chunk of an image may have fewer.
pub const CHUNK_BYTES: usize = 1 << 20;

const MAGIC: [u8; 8] = *b"replvfsI";
const FIELDS_LEN: usize = 8 + 4 + 4 + 8 + 8 + 8 + POSITION_LEN + 4 + 4;
/// Bytes of a chunk's name in a manifest.
const NAME_LEN: usize = 32 + 8;
const PART: &str = "manifest";
const CHUNK: &str = "chunk";

/// The database at one transaction, as the chunks that make it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The generation that it belongs to.
    pub generation: Generation,
    /// The last transaction that is in it.
    pub txid: Txid,
    /// Bytes a page.
    pub page_size: PageSize,
    /// Pages in the database.
    pub page_count: u32,
    /// When it was taken.
    pub taken_at: UnixMillis,
    /// The place in the WAL behind its last transaction.
    pub position: Position,
    /// The chunks in the order of their pages, all of [`CHUNK_BYTES`] but the last. The lock page is zeros.
    pub chunks: Vec<ChunkName>,
}

impl Manifest {
    /// The object's bytes.
    ///
    /// # Errors
    ///
    /// [`FormatError::Refused`] when the number of chunks is not that of the pages, and for a txid that cannot be.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        if self.txid.0 == u64::MAX {
            return Err(FormatError::refused(
                PART,
                format!("transaction {} cannot be", self.txid),
            ));
        }
        let count = chunk_count(self.page_size, self.page_count);
        if self.chunks.len() as u64 != u64::from(count) {
            let problem = format!(
                "{} pages are {count} chunks, not {}",
                self.page_count,
                self.chunks.len()
            );
            return Err(FormatError::refused(PART, problem));
        }
        let mut out = Vec::with_capacity(FIELDS_LEN + self.chunks.len() * NAME_LEN + 4);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&self.page_size.get().to_le_bytes());
        out.extend_from_slice(&self.generation.0.to_le_bytes());
        out.extend_from_slice(&self.txid.0.to_le_bytes());
        out.extend_from_slice(&self.taken_at.0.to_le_bytes());
        put_position(&mut out, self.position);
        out.extend_from_slice(&self.page_count.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        for chunk in &self.chunks {
            out.extend_from_slice(&chunk.hash.0);
            out.extend_from_slice(&chunk.token.to_le_bytes());
        }
        put_crc(&mut out);
        Ok(out)
    }

    /// What the bytes say.
    ///
    /// # Errors
    ///
    /// [`FormatError::Version`] for another release's format, [`FormatError::Damaged`] for anything else that is no
    /// manifest.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, FormatError> {
        let mut fields = Fields::checked(bytes, PART)?;
        if fields.array()? != MAGIC {
            return Err(FormatError::damaged(PART, "it does not say that it is one"));
        }
        fields.version()?;
        let page_size = fields.page_size()?;
        let generation = Generation(fields.u64()?);
        let txid = Txid(fields.u64()?);
        let taken_at = UnixMillis(fields.i64()?);
        let position = fields.position()?;
        let page_count = fields.u32()?;
        let count = fields.u32()?;
        if txid.0 == u64::MAX {
            return Err(FormatError::damaged(PART, format!("transaction {txid} cannot be")));
        }
        let (names, rest) = fields.rest().as_chunks::<NAME_LEN>();
        if count != chunk_count(page_size, page_count) || names.len() as u64 != u64::from(count) || !rest.is_empty() {
            return Err(FormatError::damaged(
                PART,
                "the number of chunks is not that of the pages",
            ));
        }
        let chunks = names.iter().map(name).collect();
        Ok(Manifest {
            generation,
            txid,
            page_size,
            page_count,
            taken_at,
            position,
            chunks,
        })
    }

    /// Whether it is of the same state of the same generation, made at another time: its chunks may have other names.
    #[must_use]
    pub fn has_same_pages(&self, other: &Manifest) -> bool {
        let hashes = |manifest: &Manifest| manifest.chunks.iter().map(|chunk| chunk.hash).collect::<Vec<_>>();
        (self.generation, self.txid, self.page_size, self.page_count)
            == (other.generation, other.txid, other.page_size, other.page_count)
            && hashes(self) == hashes(other)
    }

    /// No manifest of a database with such pages is longer.
    #[must_use]
    pub fn max_bytes(page_size: PageSize) -> u64 {
        FIELDS_LEN as u64 + u64::from(chunk_count(page_size, u32::MAX)) * NAME_LEN as u64 + 4
    }

    /// Raw bytes of a chunk; 0 for one that is not there.
    #[must_use]
    pub fn chunk_len(&self, chunk: usize) -> usize {
        let start = chunk as u64 * CHUNK_BYTES as u64;
        let len = self.database_len().saturating_sub(start).min(CHUNK_BYTES as u64);
        len as usize // at most CHUNK_BYTES
    }

    /// Bytes of the database.
    #[must_use]
    pub fn database_len(&self) -> u64 {
        u64::from(self.page_count) * u64::from(self.page_size.get())
    }
}

fn name(bytes: &[u8; NAME_LEN]) -> ChunkName {
    let (mut hash, mut token) = ([0; 32], [0; 8]);
    hash.copy_from_slice(&bytes[..32]);
    token.copy_from_slice(&bytes[32..]);
    ChunkName {
        hash: ChunkHash(hash),
        token: u64::from_le_bytes(token),
    }
}

fn chunk_count(page_size: PageSize, page_count: u32) -> u32 {
    page_count.div_ceil(CHUNK_BYTES as u32 / page_size.get())
}

/// Encodes the raw pages of a chunk: one zstd frame. `level` is zstd's.
///
/// # Errors
///
/// [`FormatError::Refused`] when there are more than [`CHUNK_BYTES`], or none.
pub fn encode_chunk(raw: &[u8], level: i32) -> Result<(ChunkHash, Vec<u8>), FormatError> {
    if raw.is_empty() || raw.len() > CHUNK_BYTES {
        return Err(FormatError::refused(CHUNK, format!("it has {} bytes", raw.len())));
    }
    let stored = zstd::bulk::compress(raw, level).map_err(FormatError::Compression)?;
    Ok((ChunkHash::of(raw), stored))
}

/// No stored chunk of so many raw bytes is longer.
#[must_use]
pub fn max_chunk_bytes(raw_len: usize) -> u64 {
    zstd::zstd_safe::compress_bound(raw_len) as u64
}

/// The raw pages of a chunk, which are `expected_raw_len` bytes with the hash `expected`.
///
/// # Errors
///
/// [`FormatError::Damaged`] when the bytes are anything else.
pub fn decode_chunk(expected: ChunkHash, expected_raw_len: usize, bytes: &[u8]) -> Result<Vec<u8>, FormatError> {
    if expected_raw_len > CHUNK_BYTES {
        return Err(FormatError::damaged(
            CHUNK,
            format!("{expected_raw_len} bytes are too many for one"),
        ));
    }
    let raw = zstd::bulk::decompress(bytes, expected_raw_len)
        .map_err(|error| FormatError::damaged(CHUNK, format!("it cannot be decompressed: {error}")))?;
    if raw.len() != expected_raw_len || ChunkHash::of(&raw) != expected {
        return Err(FormatError::damaged(
            CHUNK,
            "its pages do not have the hash that it is named by",
        ));
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use replvfs_vfs::types::Salts;

    fn manifest(page_size: u32, page_count: u32) -> Manifest {
        let page_size = PageSize::new(page_size).unwrap();
        Manifest {
            generation: Generation(3),
            txid: Txid(77),
            page_size,
            page_count,
            taken_at: UnixMillis(-5),
            position: Position {
                salts: Salts(1, 2),
                frame: 3,
                checksum: [4, 5],
            },
            chunks: (0..chunk_count(page_size, page_count))
                .map(|n| ChunkName {
                    hash: ChunkHash::of(&n.to_le_bytes()),
                    token: u64::from(n) << 32 | 7,
                })
                .collect(),
        }
    }

    #[test]
    fn manifests_come_back() {
        for (page_size, page_count) in [(512, 0), (512, 2048), (512, 2049), (65_536, 33)] {
            let manifest = manifest(page_size, page_count);
            assert_eq!(Manifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
            let total: usize = (0..manifest.chunks.len() + 1)
                .map(|chunk| manifest.chunk_len(chunk))
                .sum();
            assert_eq!(total as u64, manifest.database_len());
        }
    }

    #[test]
    fn the_same_pages_may_have_other_names() {
        let one = manifest(512, 2049);
        let mut other = one.clone();
        other.chunks[1].token += 1;
        other.taken_at.0 += 1;
        assert!(one.has_same_pages(&other));
        other.chunks[1].hash.0[31] ^= 1;
        assert!(!one.has_same_pages(&other));
        let last = Txid(one.txid.0 + 1);
        assert!(!one.has_same_pages(&Manifest {
            txid: last,
            ..one.clone()
        }));
    }

    #[test]
    fn every_changed_bit_of_a_manifest_is_noticed() {
        let bytes = manifest(512, 2049).encode().unwrap();
        for at in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..at]).is_err());
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(Manifest::decode(&damaged).is_err(), "byte {at}");
            }
        }
        assert!(Manifest::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn what_no_reader_accepts_is_not_written() {
        let mut last = manifest(4096, 3);
        last.txid = Txid(u64::MAX);
        assert!(matches!(last.encode(), Err(FormatError::Refused { .. })));
    }

    #[test]
    fn the_largest_objects_are_inside_of_the_bounds() {
        for page_size in [512, 4096, 65_536] {
            let size = PageSize::new(page_size).unwrap();
            let few = manifest(page_size, 5000);
            let len = few.encode().unwrap().len() as u64;
            let (most, now) = (chunk_count(size, u32::MAX), chunk_count(size, 5000));
            assert_eq!(Manifest::max_bytes(size), len + NAME_LEN as u64 * u64::from(most - now));
        }
        let noise: Vec<u8> = (0..CHUNK_BYTES as u64 / 8)
            .flat_map(|n| blake3::hash(&n.to_le_bytes()).as_bytes()[..8].to_vec())
            .collect();
        let (_, stored) = encode_chunk(&noise, 1).unwrap();
        assert!(stored.len() > noise.len() && stored.len() as u64 <= max_chunk_bytes(noise.len()));
    }

    #[test]
    fn a_chunk_is_what_its_hash_says_or_an_error() {
        let raw: Vec<u8> = (0..2048u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let (hash, stored) = encode_chunk(&raw, 1).unwrap();
        assert_eq!(decode_chunk(hash, raw.len(), &stored).unwrap(), raw);
        assert!(decode_chunk(hash, raw.len() - 1, &stored).is_err());
        assert!(decode_chunk(hash, raw.len() + 1, &stored).is_err());
        assert!(decode_chunk(hash, usize::MAX, &stored).is_err());
        for at in 0..stored.len() {
            assert!(decode_chunk(hash, raw.len(), &stored[..at]).is_err());
            let mut damaged = stored.clone();
            damaged[at] ^= 0x10;
            assert!(decode_chunk(hash, raw.len(), &damaged).map_or(true, |read| read == raw));
        }
        assert!(encode_chunk(&[], 1).is_err());
        assert!(encode_chunk(&vec![0; CHUNK_BYTES + 1], 1).is_err());
    }
}
