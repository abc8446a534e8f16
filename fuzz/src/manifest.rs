//! Manifests, chunks, seals, the JSON objects, and names in a store: decoding never panics; what is accepted encodes to the same.

use arbitrary::Arbitrary;
use replvfs::format::{
    CHUNK_BYTES, ChunkHash, ChunkName, Generation, GenerationMeta, Key, Manifest, ReplicaMeta, Seal, decode_chunk,
};
use replvfs_vfs::types::{PageSize, Position, Salts, Txid, UnixMillis};

use crate::{kind, memory, mended, read};

#[derive(Arbitrary, Debug)]
struct Written {
    generation: u64,
    txid: u64,
    page_size_log: u8,
    page_count: u16,
    taken_at: i64,
    position: [u32; 5],
    damage: Option<(u16, u8)>,
}

/// What the first byte says: an object as it is, or one whose checksum is made to fit; else a manifest that is written.
pub fn run(data: &[u8]) {
    let (kind, bytes) = kind(data);
    let limit = memory::for_bytes(bytes.len());
    let mut object = bytes.to_vec();
    match kind {
        0 => memory::within(limit, || manifest(bytes)),
        1 => {
            mended::manifest(&mut object);
            memory::within(limit, || manifest(&object));
        }
        2 => memory::within(limit, || seal(bytes)),
        3 => {
            mended::seal(&mut object);
            memory::within(limit, || seal(&object));
        }
        4 => memory::within(limit, || json(bytes)),
        5 => {
            if let Ok(members) = std::str::from_utf8(bytes) {
                let object = mended::json(members);
                memory::within(limit, || json(object.as_bytes()));
            }
        }
        6 => {
            if let Some(key) = std::str::from_utf8(bytes).ok().and_then(Key::parse) {
                assert_eq!(key.path().as_bytes(), bytes);
            }
        }
        7 => memory::within(limit + 2 * CHUNK_BYTES, || chunk(bytes)),
        _ => {
            if let Some(input) = read::<Written>(bytes) {
                written(&input);
            }
        }
    }
}

fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::decode(bytes) else { return };
    assert_eq!(manifest.encode().expect("it was accepted"), bytes);
    let lengths = (0..manifest.chunks.len()).map(|chunk| manifest.chunk_len(chunk) as u64);
    assert_eq!(lengths.sum::<u64>(), manifest.database_len());
}

fn seal(bytes: &[u8]) {
    if let Ok(seal) = Seal::decode(bytes) {
        assert_eq!(seal.encode(), bytes);
    }
}

fn json(bytes: &[u8]) {
    if let Ok(meta) = ReplicaMeta::from_bytes(bytes) {
        let again = meta.to_bytes().expect("it was accepted");
        assert_eq!(ReplicaMeta::from_bytes(&again).expect("it was just written"), meta);
    }
    if let Ok(meta) = GenerationMeta::from_bytes(bytes) {
        let again = meta.to_bytes().expect("it was accepted");
        assert_eq!(GenerationMeta::from_bytes(&again).expect("it was just written"), meta);
    }
}

/// 32 bytes of a hash, 4 of a length, and what is stored.
fn chunk(bytes: &[u8]) {
    let Some((hash, rest)) = bytes.split_first_chunk::<32>() else {
        return;
    };
    let Some((len, stored)) = rest.split_first_chunk::<4>() else {
        return;
    };
    let len = u32::from_le_bytes(*len) as usize;
    // As if it were named by whatever comes out of it.
    let own = zstd::bulk::decompress(stored, CHUNK_BYTES).map_or(ChunkHash(*hash), |raw| ChunkHash::of(&raw));
    for hash in [ChunkHash(*hash), own] {
        if let Ok(raw) = decode_chunk(hash, len, stored) {
            assert!(raw.len() == len && raw.len() <= CHUNK_BYTES);
            assert_eq!(ChunkHash::of(&raw), hash);
        }
    }
}

fn written(input: &Written) {
    let Written {
        generation,
        txid,
        page_size_log,
        page_count,
        taken_at,
        position,
        damage,
    } = *input;
    let page_size = PageSize::new(512 << (page_size_log % 8)).expect("a page size");
    let bytes = u64::from(page_count) * u64::from(page_size.get());
    let [salt1, salt2, frame, sum1, sum2] = position;
    let manifest = Manifest {
        generation: Generation(generation),
        // The last number is no transaction's: there would be none after it.
        txid: Txid(txid.min(u64::MAX - 1)),
        page_size,
        page_count: page_count.into(),
        taken_at: UnixMillis(taken_at),
        position: Position {
            salts: Salts(salt1, salt2),
            frame,
            checksum: [sum1, sum2],
        },
        chunks: (0..bytes.div_ceil(CHUNK_BYTES as u64))
            .map(|chunk| ChunkName {
                hash: ChunkHash::of(&chunk.to_le_bytes()),
                token: txid ^ chunk,
            })
            .collect(),
    };
    let mut encoded = manifest.encode().expect("as many chunks as its pages are");
    match damage.map(|(at, mask)| (usize::from(at) % encoded.len(), mask)) {
        Some((at, mask)) if mask != 0 => {
            encoded[at] ^= mask;
            assert!(
                Manifest::decode(&encoded).is_err(),
                "one flipped byte is always found by the CRC-32"
            );
        }
        _ => assert_eq!(Manifest::decode(&encoded).expect("it was just written"), manifest),
    }
}
