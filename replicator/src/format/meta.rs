//! The two JSON objects: what a replica is, and what a generation is. A field that is not known is ignored, a format
//! version that is not known is refused.

use replvfs_vfs::types::{PageSize, Txid, UnixMillis};
use serde::{Deserialize, Serialize};

use super::key::{parse_bytes, parse_number};
use super::wire::check_crc;
use super::{DatabaseId, FORMAT_VERSION, FormatError, Generation, ObjectHash};

/// No JSON object of a replica is longer; a reader refuses one that is, without parsing it.
pub const MAX_META_BYTES: usize = 64 * 1024;

/// What `replvfs.json` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaMeta {
    /// Format version of the replica.
    pub format: u32,
    /// Which database this is a replica of.
    pub database_id: DatabaseId,
}

/// What a `generation.json` says. Its hash is the root of the generation's chain of segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationMeta {
    /// Format version of the generation's objects.
    pub format: u32,
    /// Its number, as in its key.
    pub generation: Generation,
    /// Where it left another generation; `None` when it follows from nothing in the replica.
    pub parent: Option<Parent>,
    /// Bytes a page, in all its objects.
    pub page_size: u32,
    /// Who wrote it, for people to read: the release of replvfs, the machine.
    pub writer: String,
    /// When it was begun.
    pub created_at: UnixMillis,
    /// The transaction of its first image. Its log starts with the one after.
    pub first_image: Txid,
}

/// The place where a generation leaves another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The one that it leaves.
    pub generation: Generation,
    /// The last transaction that both have.
    pub txid: Txid,
}

#[derive(Deserialize)]
struct AnyJson {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct ReplicaJson {
    format: u32,
    database_id: String,
}

#[derive(Serialize, Deserialize)]
struct GenerationJson {
    format: u32,
    generation: String,
    parent: Option<ParentJson>,
    page_size: u32,
    writer: String,
    created_at: i64,
    first_image: u64,
}

#[derive(Serialize, Deserialize)]
struct ParentJson {
    generation: String,
    txid: u64,
}

const PART: &str = "JSON";

/// Nothing else in the objects stands at two blanks from the line's start with this name.
const CRC_MEMBER: &[u8] = br#"  "crc32": ""#;

impl ReplicaMeta {
    /// The object's bytes.
    ///
    /// # Errors
    ///
    /// [`FormatError::Refused`] for a format version that is not this release's.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        encode(
            self.format,
            &ReplicaJson {
                format: self.format,
                database_id: self.database_id.to_string(),
            },
        )
    }

    /// What the bytes say.
    ///
    /// # Errors
    ///
    /// [`FormatError::Version`] for another release's format, [`FormatError::Damaged`] for anything else that is no
    /// such object.
    pub fn from_bytes(bytes: &[u8]) -> Result<ReplicaMeta, FormatError> {
        let json: ReplicaJson = decode(bytes)?;
        let database_id = parse_bytes(&json.database_id)
            .ok_or_else(|| FormatError::damaged(PART, "database_id is not 32 lower-case hex digits"))?;
        Ok(ReplicaMeta {
            format: json.format,
            database_id: DatabaseId(database_id),
        })
    }
}

impl GenerationMeta {
    /// The object's bytes.
    ///
    /// # Errors
    ///
    /// [`FormatError::Refused`] for a format version that is not this release's, for a page size that SQLite does not
    /// have, and for a writer's name that is too long.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        if PageSize::new(self.page_size).is_none() {
            return Err(FormatError::refused(
                PART,
                format!("{} is not a page size of SQLite", self.page_size),
            ));
        }
        let parent = self.parent.as_ref();
        encode(
            self.format,
            &GenerationJson {
                format: self.format,
                generation: self.generation.to_string(),
                parent: parent.map(|p| ParentJson {
                    generation: p.generation.to_string(),
                    txid: p.txid.0,
                }),
                page_size: self.page_size,
                writer: self.writer.clone(),
                created_at: self.created_at.0,
                first_image: self.first_image.0,
            },
        )
    }

    /// What the bytes say.
    ///
    /// # Errors
    ///
    /// [`FormatError::Version`] for another release's format, [`FormatError::Damaged`] for anything else that is no
    /// such object.
    pub fn from_bytes(bytes: &[u8]) -> Result<GenerationMeta, FormatError> {
        let json: GenerationJson = decode(bytes)?;
        let generation = parse_generation(&json.generation)?;
        let parent = match json.parent {
            None => None,
            Some(parent) => {
                let parent = Parent {
                    generation: parse_generation(&parent.generation)?,
                    txid: Txid(parent.txid),
                };
                if parent.generation >= generation {
                    return Err(FormatError::damaged(PART, "the parent is not an earlier generation"));
                }
                Some(parent)
            }
        };
        // The log starts with the transaction after it.
        if json.first_image == u64::MAX {
            return Err(FormatError::damaged(PART, "first_image cannot be"));
        }
        if PageSize::new(json.page_size).is_none() {
            return Err(FormatError::damaged(
                PART,
                format!("{} is not a page size of SQLite", json.page_size),
            ));
        }
        Ok(GenerationMeta {
            format: json.format,
            generation,
            parent,
            page_size: json.page_size,
            writer: json.writer,
            created_at: UnixMillis(json.created_at),
            first_image: Txid(json.first_image),
        })
    }

    /// The root of the generation's chain: the hash of the object whose bytes these are.
    #[must_use]
    pub fn root(bytes: &[u8]) -> ObjectHash {
        ObjectHash::of(bytes)
    }
}

fn parse_generation(text: &str) -> Result<Generation, FormatError> {
    parse_number(text)
        .map(Generation)
        .ok_or_else(|| FormatError::damaged(PART, "a generation is not 16 lower-case hex digits"))
}

fn encode(format: u32, json: &impl Serialize) -> Result<Vec<u8>, FormatError> {
    if format != FORMAT_VERSION {
        return Err(FormatError::refused(
            PART,
            format!("this release writes format {FORMAT_VERSION} only"),
        ));
    }
    let bytes = with_crc(json)?;
    if bytes.len() > MAX_META_BYTES {
        return Err(FormatError::refused(
            PART,
            format!("it is longer than {MAX_META_BYTES} bytes"),
        ));
    }
    Ok(bytes)
}

/// JSON whose last member is the CRC-32 of what stands before it.
pub(super) fn with_crc(json: &impl Serialize) -> Result<Vec<u8>, FormatError> {
    let mut bytes = serde_json::to_vec_pretty(json).map_err(|error| FormatError::refused(PART, error.to_string()))?;
    bytes.truncate(bytes.len().saturating_sub(2)); // "\n}"
    bytes.extend_from_slice(b",\n");
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(CRC_MEMBER);
    bytes.extend_from_slice(format!("{crc:08x}\"\n}}\n").as_bytes());
    Ok(bytes)
}

/// The CRC-32 is that of all bytes before the line of the last member.
pub(super) fn check_crc_member(bytes: &[u8]) -> Result<(), FormatError> {
    let found = bytes
        .windows(CRC_MEMBER.len())
        .rposition(|window| window == CRC_MEMBER)
        .and_then(|at| {
            let digits = bytes.get(at + CRC_MEMBER.len()..)?.get(..8)?;
            let crc = parse_bytes(std::str::from_utf8(digits).ok()?)?;
            Some((bytes.get(..at)?, u32::from_be_bytes(crc)))
        });
    let (content, crc) = found.ok_or_else(|| FormatError::damaged(PART, "the member crc32 is missing"))?;
    check_crc(content, crc, PART)
}

/// The version first: another version may have other fields.
fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, FormatError> {
    if bytes.len() > MAX_META_BYTES {
        return Err(FormatError::damaged(
            PART,
            format!("it is longer than {MAX_META_BYTES} bytes"),
        ));
    }
    let damaged = |error: serde_json::Error| FormatError::damaged(PART, error.to_string());
    let any: AnyJson = serde_json::from_slice(bytes).map_err(damaged)?;
    if any.format != FORMAT_VERSION {
        return Err(FormatError::Version {
            found: any.format,
            known: FORMAT_VERSION,
        });
    }
    check_crc_member(bytes)?;
    serde_json::from_slice(bytes).map_err(damaged)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn unknown_fields_are_ignored_and_unknown_versions_refused() {
        let text = "{\n  \"format\":1,\"database_id\":\"000102030405060708090a0b0c0d0e0f\",\"new\":{\"x\":1},\n";
        let known = format!("{text}  \"crc32\": \"{:08x}\"\n}}\n", crc32fast::hash(text.as_bytes()));
        assert_eq!(ReplicaMeta::from_bytes(known.as_bytes()).unwrap().database_id.0[15], 15);
        let newer = br#"{"format":2,"other":true}"#;
        assert!(matches!(
            ReplicaMeta::from_bytes(newer),
            Err(FormatError::Version { found: 2, known: 1 })
        ));
        assert!(matches!(
            GenerationMeta::from_bytes(newer),
            Err(FormatError::Version { found: 2, known: 1 })
        ));
    }

    fn meta(parent: u64) -> GenerationMeta {
        GenerationMeta {
            format: FORMAT_VERSION,
            generation: Generation(2),
            parent: Some(Parent {
                generation: Generation(parent),
                txid: Txid(7),
            }),
            page_size: 4096,
            writer: "a \"quoted\"\n  \"crc32\": \"name".to_owned(),
            created_at: UnixMillis(5),
            first_image: Txid(9),
        }
    }

    #[test]
    fn a_parent_is_an_earlier_generation() {
        assert_eq!(
            GenerationMeta::from_bytes(&meta(1).to_bytes().unwrap()).unwrap(),
            meta(1)
        );
        assert!(GenerationMeta::from_bytes(&meta(2).to_bytes().unwrap()).is_err());
    }

    #[test]
    fn the_last_number_is_no_image() {
        let mut last = meta(1);
        last.first_image = Txid(u64::MAX);
        assert!(GenerationMeta::from_bytes(&last.to_bytes().unwrap()).is_err());
    }

    #[test]
    fn every_changed_byte_is_noticed_or_changes_nothing() {
        let bytes = meta(1).to_bytes().unwrap();
        for at in 0..bytes.len() {
            assert!(
                GenerationMeta::from_bytes(&bytes[..at]).is_ok_and(|read| read == meta(1)) == (at + 1 == bytes.len())
            );
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(
                    GenerationMeta::from_bytes(&damaged).map_or(true, |read| read == meta(1)),
                    "byte {at}"
                );
            }
        }
    }
}
