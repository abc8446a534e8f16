//! The names of objects, and the numbers and hashes in them. Owns how a name is built and recognised; leaves to the
//! store where it is looked up.

use std::fmt;

use replvfs_vfs::types::Txid;

/// One writer's unbroken history: 1, 2, 3… in the order in which they were begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation that is begun after this one.
    #[must_use]
    pub fn next(self) -> Generation {
        Generation(self.0.saturating_add(1))
    }

    /// From the 16 lower-case hex digits that names have.
    #[must_use]
    pub fn parse(text: &str) -> Option<Generation> {
        parse_number(text).map(Generation)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Which database a replica is of: drawn at random when the replica is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DatabaseId(pub [u8; 16]);

/// BLAKE3 of a whole object. Each segment names that of its predecessor, which makes a generation's log a hash chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectHash(pub [u8; 32]);

impl ObjectHash {
    /// The hash of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> ObjectHash {
        ObjectHash(*blake3::hash(bytes).as_bytes())
    }
}

/// BLAKE3 of the raw pages of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkHash(pub [u8; 32]);

impl ChunkHash {
    /// The hash of these pages.
    #[must_use]
    pub fn of(raw: &[u8]) -> ChunkHash {
        ChunkHash(*blake3::hash(raw).as_bytes())
    }
}

/// The name of a chunk. Only who has put it there, and who found it in a manifest, may rely on it: one of the same hash and another token
/// is another object, which may be about to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkName {
    /// Of its raw pages.
    pub hash: ChunkHash,
    /// Drawn at random for all chunks that one making of an image puts into the store.
    pub token: u64,
}

impl fmt::Display for ChunkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.hash, self.token)
    }
}

macro_rules! display_as_hex {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    )*};
}
display_as_hex!(DatabaseId, ObjectHash, ChunkHash);

/// The name of an object, relative to the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// What the replica is: [`ReplicaMeta`](super::ReplicaMeta).
    Replica,
    /// What a generation is: [`GenerationMeta`](super::GenerationMeta).
    Generation(Generation),
    /// The slot of the log that starts with this transaction.
    Log(Generation, Txid),
    /// The segments from this transaction to that one, merged.
    Span(Generation, Txid, Txid),
    /// The manifest of the image at this transaction.
    Image(Generation, Txid),
    /// Pages of images.
    Chunk(ChunkName),
}

const REPLICA: &str = "replvfs.json";
const GENERATIONS: &str = "gen/";
const CHUNKS: &str = "chunk/";

impl Key {
    /// The name in the store.
    #[must_use]
    pub fn path(&self) -> String {
        match self {
            Key::Replica => REPLICA.to_owned(),
            Key::Generation(generation) => format!("{GENERATIONS}{generation}/generation.json"),
            Key::Log(generation, first) => format!("{}{:016x}", Key::log_prefix(*generation), first.0),
            Key::Span(generation, first, last) => {
                format!("{}{:016x}-{:016x}", Key::span_prefix(*generation), first.0, last.0)
            }
            Key::Image(generation, txid) => format!("{}{:016x}", Key::image_prefix(*generation), txid.0),
            Key::Chunk(name) => format!("{CHUNKS}{name}"),
        }
    }

    /// The key with exactly this name; `None` for the name of anything else.
    #[must_use]
    pub fn parse(path: &str) -> Option<Key> {
        if path == REPLICA {
            return Some(Key::Replica);
        }
        if let Some(name) = path.strip_prefix(CHUNKS) {
            let (hash, token) = name.split_once('-')?;
            return Some(Key::Chunk(ChunkName {
                hash: ChunkHash(parse_bytes(hash)?),
                token: parse_number(token)?,
            }));
        }
        let (generation, rest) = path.strip_prefix(GENERATIONS)?.split_once('/')?;
        let generation = Generation(parse_number(generation)?);
        match rest.split_once('/') {
            None if rest == "generation.json" => Some(Key::Generation(generation)),
            Some(("log", first)) => Some(Key::Log(generation, Txid(parse_number(first)?))),
            Some(("span", range)) => {
                let (first, last) = range.split_once('-')?;
                Some(Key::Span(
                    generation,
                    Txid(parse_number(first)?),
                    Txid(parse_number(last)?),
                ))
            }
            Some(("image", txid)) => Some(Key::Image(generation, Txid(parse_number(txid)?))),
            _ => None,
        }
    }

    /// What the names of chunks start with.
    #[must_use]
    pub fn chunks_prefix() -> &'static str {
        CHUNKS
    }

    /// What the names of everything in a generation start with.
    #[must_use]
    pub fn generations_prefix() -> &'static str {
        GENERATIONS
    }

    /// What the names of a generation's slots start with.
    #[must_use]
    pub fn log_prefix(generation: Generation) -> String {
        format!("{GENERATIONS}{generation}/log/")
    }

    /// What the names of a generation's spans start with.
    #[must_use]
    pub fn span_prefix(generation: Generation) -> String {
        format!("{GENERATIONS}{generation}/span/")
    }

    /// What the names of a generation's manifests start with.
    #[must_use]
    pub fn image_prefix(generation: Generation) -> String {
        format!("{GENERATIONS}{generation}/image/")
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

/// 16 lower-case hex digits.
pub(super) fn parse_number(text: &str) -> Option<u64> {
    parse_bytes::<8>(text).map(u64::from_be_bytes)
}

/// Two lower-case hex digits a byte, and nothing else.
pub(super) fn parse_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_fixed() {
        let chunk = ChunkName {
            hash: ChunkHash([0xab; 32]),
            token: 0x1f,
        };
        let names = [
            (Key::Replica, "replvfs.json".to_owned()),
            (
                Key::Generation(Generation(1)),
                "gen/0000000000000001/generation.json".to_owned(),
            ),
            (
                Key::Log(Generation(1), Txid(10)),
                "gen/0000000000000001/log/000000000000000a".to_owned(),
            ),
            (
                Key::Span(Generation(1), Txid(10), Txid(0x20)),
                "gen/0000000000000001/span/000000000000000a-0000000000000020".to_owned(),
            ),
            (
                Key::Image(Generation(0x1f), Txid(0)),
                "gen/000000000000001f/image/0000000000000000".to_owned(),
            ),
            (Key::Chunk(chunk), format!("chunk/{}-000000000000001f", "ab".repeat(32))),
        ];
        for (key, name) in names {
            assert_eq!(key.path(), name);
            assert_eq!(Key::parse(&name), Some(key));
        }
    }

    #[test]
    fn foreign_names_are_no_keys() {
        for name in [
            "",
            "replvfs.json.tmp",
            "Replvfs.json",
            "gen/",
            "gen/1/generation.json",
            "gen/0000000000000001/generation.json/",
            "gen/0000000000000001/log/",
            "gen/0000000000000001/log/000000000000000A",
            "gen/0000000000000001/log/+00000000000000a",
            "gen/0000000000000001/log/000000000000000a.tmp",
            "gen/0000000000000001/span/000000000000000a",
            "gen/0000000000000001/span/000000000000000a-",
            "gen/0000000000000001/span/000000000000000a-20",
            "gen/0000000000000001/span/000000000000000a-0000000000000020-",
            "gen/0000000000000001/span/000000000000000a-000000000000002A",
            "gen/0000000000000001/log/x/000000000000000a",
            "chunk/ab",
            "chunk/abababababababababababababababababababababababababababababababab",
            "chunk/abababababababababababababababababababababababababababababababab-",
            "chunk/abababababababababababababababababababababababababababababababab-1f",
            "chunk/abababababababababababababababababababababababababababababababab-000000000000001F",
            "chunk/éé",
        ] {
            assert_eq!(Key::parse(name), None, "{name}");
        }
    }
}
