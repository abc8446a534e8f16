//! Manifests, the JSON objects, and names in a store: decoding never panics; what is accepted encodes to the same.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use replvfs::format::{
    CHUNK_BYTES, ChunkHash, ChunkName, Generation, GenerationMeta, Key, Manifest, ReplicaMeta, decode_chunk,
};
use replvfs_vfs::types::{PageSize, Position, Salts, Txid, UnixMillis};

#[derive(Arbitrary, Debug)]
enum Input {
    Manifest(Vec<u8>),
    Chunk {
        hash: [u8; 32],
        raw_len: u32,
        bytes: Vec<u8>,
    },
    Json(Vec<u8>),
    Name(String),
    Written {
        generation: u64,
        txid: u64,
        page_size_log: u8,
        page_count: u16,
        taken_at: i64,
        position: [u32; 5],
        damage: Option<(u16, u8)>,
    },
}

fuzz_target!(|input: Input| match input {
    Input::Manifest(bytes) => {
        if let Ok(manifest) = Manifest::decode(&bytes) {
            assert_eq!(manifest.encode().expect("it was accepted"), bytes);
            let total: u64 = (0..manifest.chunks.len())
                .map(|chunk| manifest.chunk_len(chunk) as u64)
                .sum();
            assert_eq!(total, manifest.database_len());
        }
    }
    Input::Chunk { hash, raw_len, bytes } => {
        if let Ok(raw) = decode_chunk(ChunkHash(hash), raw_len as usize, &bytes) {
            assert!(raw.len() == raw_len as usize && raw.len() <= CHUNK_BYTES);
            assert_eq!(ChunkHash::of(&raw), ChunkHash(hash));
        }
    }
    Input::Json(bytes) => {
        let _ = ReplicaMeta::from_bytes(&bytes);
        let _ = GenerationMeta::from_bytes(&bytes);
    }
    Input::Name(name) => {
        if let Some(key) = Key::parse(&name) {
            assert_eq!(key.path(), name);
        }
    }
    Input::Written {
        generation,
        txid,
        page_size_log,
        page_count,
        taken_at,
        position,
        damage,
    } => {
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
});
