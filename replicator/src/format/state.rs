//! The file beside a database that remembers what the store holds for it. Owns the two slots' layout, and which of them counts.
//! It is a hint and may be anything: whoever reads it decides what follows from a damaged one.

use std::fmt;

use replvfs_vfs::resume::{Fingerprint, Left, Mark, Next, Resume};
use replvfs_vfs::types::{PageSize, Position, Salts, Txid};
use serde::{Deserialize, Serialize};

use super::key::{parse_bytes, parse_number};
use super::meta::{check_crc_member, with_crc};
use super::{DatabaseId, FormatError, Generation, ObjectHash};

/// Bytes of each of the two slots: what a disk writes whole or not at all, mostly.
pub const STATE_SLOT_BYTES: usize = 4096;

const VERSION: u32 = 1;
const PART: &str = "state";
/// The replica's name is for people. With every byte escaped it still leaves room for the rest.
const MAX_REPLICA_BYTES: usize = 448;
/// Numbers after it must exist, whatever is added to them.
const MAX_TXID: u64 = u64::MAX >> 1;

/// Where a replica is, without being told: BLAKE3 of its scheme, bucket and folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place(pub [u8; 32]);

impl Place {
    /// Of the text that is the same for all ways to write the replica's URI.
    #[must_use]
    pub fn of(place: &str) -> Place {
        Place(*blake3::hash(place.as_bytes()).as_bytes())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What the store holds for the database beside it, and how the database goes on from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalState {
    /// Counts the writes of the file. It also says which slot this one is in.
    pub sequence: u64,
    /// The replica's URI without secrets, for people.
    pub replica: String,
    /// Which replica it is.
    pub place: Place,
    /// That of the replica.
    pub database_id: DatabaseId,
    /// The generation that is being written.
    pub generation: Generation,
    /// Its page size.
    pub page_size: PageSize,
    /// The newest transaction in the store.
    pub stored: Mark,
    /// The first transaction of the segment that ends with it; `None` when the generation has no segment yet.
    pub slot: Option<Txid>,
    /// The hash of that segment, or of `generation.json`: what the next segment follows.
    pub previous: ObjectHash,
    /// The newest note of where a WAL ended, if it is not older than `stored`.
    pub left: Option<Left>,
    /// It counts only if the WAL beside the database has these salts: else that WAL was never put there, or is gone, and the state before this one
    /// counts.
    pub if_wal: Option<Salts>,
    /// Another machine has taken over: what was committed here since is not a part of the history.
    pub fenced: bool,
    /// A segment behind `stored` that was about to be put into the store, while its transaction was not committed yet: perhaps it never was.
    pub unfinished: Option<Unfinished>,
    /// A restore ended with `stored`, and nothing was stored from here since: no WAL of this machine goes on at that position. `None` in what an older
    /// release wrote, which did not say.
    pub restored: Option<bool>,
}

/// A segment of one transaction, by its slot and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The transaction.
    pub slot: Txid,
    /// Of the segment.
    pub hash: ObjectHash,
}

#[derive(Deserialize)]
struct AnyJson {
    format: u32,
}

type PositionJson = [u32; 5];

#[derive(Serialize, Deserialize)]
struct StateJson {
    format: u32,
    sequence: u64,
    replica: String,
    place: String,
    database_id: String,
    generation: String,
    page_size: u32,
    txid: u64,
    position: PositionJson,
    slot: Option<u64>,
    previous: String,
    left: Option<LeftJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    if_wal: Option<[u32; 2]>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    fenced: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unfinished: Option<UnfinishedJson>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    restored: Option<bool>,
}

#[derive(Serialize, Deserialize)]
struct UnfinishedJson {
    slot: u64,
    hash: String,
}

#[derive(Serialize, Deserialize)]
struct LeftJson {
    txid: u64,
    position: PositionJson,
    wal: Option<[u32; 2]>,
    file: Option<FileJson>,
}

#[derive(Serialize, Deserialize)]
struct FileJson {
    device: u64,
    inode: u64,
    size: u64,
    modified: [i64; 2],
    changed: [i64; 2],
}

fn position_json(position: Position) -> PositionJson {
    let Position { salts, frame, checksum } = position;
    [salts.0, salts.1, frame, checksum[0], checksum[1]]
}

fn position([salt1, salt2, frame, sum1, sum2]: PositionJson) -> Position {
    Position {
        salts: Salts(salt1, salt2),
        frame,
        checksum: [sum1, sum2],
    }
}

fn damaged(problem: &str) -> FormatError {
    FormatError::damaged(PART, problem)
}

fn txid(number: u64) -> Result<Txid, FormatError> {
    if number > MAX_TXID {
        return Err(damaged("a transaction's number cannot be"));
    }
    Ok(Txid(number))
}

impl LocalState {
    /// Where in the file a state with this sequence number stands, in bytes.
    #[must_use]
    pub fn offset(sequence: u64) -> u64 {
        sequence % 2 * STATE_SLOT_BYTES as u64
    }

    /// What the database must prove to follow from.
    #[must_use]
    pub fn resume(&self) -> Resume {
        Resume {
            stored: self.stored,
            left: self.left,
        }
    }

    /// The bytes of its slot, which belong at [`offset`](Self::offset).
    ///
    /// # Errors
    ///
    /// [`FormatError::Refused`] when a reader would not accept it.
    pub fn to_slot(&self) -> Result<Vec<u8>, FormatError> {
        let mut end = self.replica.len().min(MAX_REPLICA_BYTES);
        while !self.replica.is_char_boundary(end) {
            end -= 1;
        }
        let left = self.left.map(|left| LeftJson {
            txid: left.mark.txid.0,
            position: position_json(left.mark.position),
            wal: match left.next {
                Next::Wal(salts) => Some([salts.0, salts.1]),
                Next::File(_) => None,
            },
            file: match left.next {
                Next::Wal(_) => None,
                Next::File(print) => Some(FileJson {
                    device: print.device,
                    inode: print.inode,
                    size: print.size,
                    modified: [print.modified_ns.0, print.modified_ns.1],
                    changed: [print.changed_ns.0, print.changed_ns.1],
                }),
            },
        });
        let mut slot = with_crc(&StateJson {
            format: VERSION,
            sequence: self.sequence,
            replica: self.replica[..end].to_owned(),
            place: self.place.to_string(),
            database_id: self.database_id.to_string(),
            generation: self.generation.to_string(),
            page_size: self.page_size.get(),
            txid: self.stored.txid.0,
            position: position_json(self.stored.position),
            slot: self.slot.map(|slot| slot.0),
            previous: self.previous.to_string(),
            left,
            if_wal: self.if_wal.map(|salts| [salts.0, salts.1]),
            fenced: self.fenced,
            unfinished: self.unfinished.map(|unfinished| UnfinishedJson {
                slot: unfinished.slot.0,
                hash: unfinished.hash.to_string(),
            }),
            restored: self.restored,
        })?;
        if slot.len() > STATE_SLOT_BYTES {
            return Err(FormatError::refused(PART, "it is longer than its slot"));
        }
        slot.resize(STATE_SLOT_BYTES, 0);
        match LocalState::from_slot(&slot) {
            Ok(_) => Ok(slot),
            Err(error) => Err(FormatError::refused(PART, error.to_string())),
        }
    }

    /// What one slot says.
    ///
    /// # Errors
    ///
    /// [`FormatError::Version`] for what another release wrote, [`FormatError::Damaged`] for anything else that is no state.
    pub fn from_slot(slot: &[u8]) -> Result<LocalState, FormatError> {
        let end = slot.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let bytes = slot.get(..end).unwrap_or_default();
        // Before the version, unlike in the store: a flipped bit in it must not look like another release's file.
        check_crc_member(bytes)?;
        let unreadable = |error: serde_json::Error| FormatError::damaged(PART, error.to_string());
        let any: AnyJson = serde_json::from_slice(bytes).map_err(unreadable)?;
        if any.format != VERSION {
            return Err(FormatError::Version {
                found: any.format,
                known: VERSION,
            });
        }
        let json: StateJson = serde_json::from_slice(bytes).map_err(unreadable)?;
        let stored = Mark {
            txid: txid(json.txid)?,
            position: position(json.position),
        };
        let slot = json.slot.map(txid).transpose()?;
        if slot.is_some_and(|slot| slot == Txid::ZERO || slot > stored.txid) {
            return Err(damaged("the segment does not begin where it can"));
        }
        let left = json.left.map(|left| from_json(left, stored.txid)).transpose()?;
        let hex = |problem: &'static str| move || damaged(problem);
        let unfinished = match json.unfinished {
            Some(noted) if noted.slot <= stored.txid.0 => return Err(damaged("what is unfinished is stored")),
            Some(noted) => Some(Unfinished {
                slot: txid(noted.slot)?,
                hash: ObjectHash(parse_bytes(&noted.hash).ok_or_else(hex("unfinished is not 64 hex digits"))?),
            }),
            None => None,
        };
        Ok(LocalState {
            sequence: json.sequence,
            replica: json.replica,
            place: Place(parse_bytes(&json.place).ok_or_else(hex("place is not 64 hex digits"))?),
            database_id: DatabaseId(
                parse_bytes(&json.database_id).ok_or_else(hex("database_id is not 32 hex digits"))?,
            ),
            generation: parse_number(&json.generation)
                .filter(|number| *number > 0)
                .map(Generation)
                .ok_or_else(hex("generation is not 16 hex digits"))?,
            page_size: PageSize::new(json.page_size).ok_or_else(hex("the page size is none of SQLite's"))?,
            stored,
            slot,
            previous: ObjectHash(parse_bytes(&json.previous).ok_or_else(hex("previous is not 64 hex digits"))?),
            left,
            if_wal: json.if_wal.map(|[salt1, salt2]| Salts(salt1, salt2)),
            fenced: json.fenced,
            unfinished,
            restored: json.restored,
        })
    }

    /// What the whole file says: the valid slot with the highest sequence number that counts. `None` for an empty file. `wal` tells the salts of
    /// the WAL beside the database, if there is one; it is asked only when that matters.
    ///
    /// A state that took the place of one that does not count has a sequence number that is higher still: what is written next then goes over
    /// the other.
    ///
    /// # Errors
    ///
    /// As for [`from_slot`](Self::from_slot), when no slot is valid, or another release wrote one.
    pub fn from_file_beside(
        bytes: &[u8],
        wal: impl FnOnce() -> Option<Salts>,
    ) -> Result<Option<LocalState>, FormatError> {
        let mut states: Vec<LocalState> = Vec::new();
        let mut trouble = None;
        for (at, slot) in bytes.chunks(STATE_SLOT_BYTES).take(2).enumerate() {
            if slot.iter().all(|byte| *byte == 0) {
                continue;
            }
            match LocalState::from_slot(slot) {
                Ok(state) if state.sequence % 2 != at as u64 => trouble = Some(damaged("it is in the wrong slot")),
                Ok(state) => states.push(state),
                Err(error @ FormatError::Version { .. }) => return Err(error),
                Err(error) => trouble = Some(error),
            }
        }
        states.sort_by_key(|state| state.sequence);
        let newest = states.pop();
        let Some(newest) = newest else {
            return trouble.map_or(Ok(None), Err);
        };
        let Some(salts) = newest.if_wal else {
            return Ok(Some(newest));
        };
        let beside = wal();
        if beside == Some(salts) {
            return Ok(Some(newest));
        }
        // Only one that counts is ever written before one that may not: perhaps because of the WAL that is still there.
        let before = states
            .pop()
            .filter(|before| before.if_wal.is_none_or(|salts| beside == Some(salts)));
        let mut before = before.ok_or_else(|| damaged("the state that counts is not there"))?;
        before.sequence = newest
            .sequence
            .checked_add(1)
            .ok_or_else(|| damaged("its sequence number cannot be"))?;
        Ok(Some(before))
    }

    /// The same for a database without a WAL.
    ///
    /// # Errors
    ///
    /// As for [`from_file_beside`](Self::from_file_beside).
    pub fn from_file(bytes: &[u8]) -> Result<Option<LocalState>, FormatError> {
        LocalState::from_file_beside(bytes, || None)
    }
}

fn from_json(json: LeftJson, stored: Txid) -> Result<Left, FormatError> {
    let mark = Mark {
        txid: txid(json.txid)?,
        position: position(json.position),
    };
    if mark.txid < stored {
        return Err(damaged("the WAL ended before what is stored"));
    }
    let next = match (json.wal, json.file) {
        (Some([salt1, salt2]), None) => Next::Wal(Salts(salt1, salt2)),
        (None, Some(file)) => Next::File(Fingerprint {
            device: file.device,
            inode: file.inode,
            size: file.size,
            modified_ns: file.modified.into(),
            changed_ns: file.changed.into(),
        }),
        _ => return Err(damaged("what follows the WAL is not one thing")),
    };
    Ok(Left { mark, next })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn state(sequence: u64, left: Option<Next>) -> LocalState {
        let mark = |number| Mark {
            txid: Txid(number),
            position: position([1, 2, 3, u32::MAX, 5]),
        };
        LocalState {
            sequence,
            replica: "s3://bucket/app".to_owned(),
            place: Place::of("s3://bucket/app"),
            database_id: DatabaseId([7; 16]),
            generation: Generation(3),
            page_size: PageSize::new(4096).unwrap(),
            stored: mark(40),
            slot: Some(Txid(38)),
            previous: ObjectHash([9; 32]),
            left: left.map(|next| Left { mark: mark(41), next }),
            if_wal: None,
            fenced: false,
            unfinished: None,
            restored: None,
        }
    }

    fn print() -> Next {
        Next::File(Fingerprint {
            device: u64::MAX,
            inode: u64::MAX,
            size: u64::MAX,
            modified_ns: (i64::MIN, 999_999_999),
            changed_ns: (i64::MAX, 0),
        })
    }

    #[test]
    fn what_is_written_is_read() {
        for left in [None, Some(Next::Wal(Salts(u32::MAX, 0))), Some(print())] {
            let mut state = state(5, left);
            // The longest that a URI may make it.
            state.replica = "\u{1}".repeat(MAX_REPLICA_BYTES);
            state.if_wal = Some(Salts(u32::MAX, u32::MAX));
            state.restored = Some(true);
            state.unfinished = Some(Unfinished {
                slot: Txid(41),
                hash: ObjectHash([255; 32]),
            });
            let slot = state.to_slot().unwrap();
            assert_eq!(slot.len(), STATE_SLOT_BYTES);
            assert_eq!(LocalState::from_slot(&slot).unwrap(), state);
        }
        let mut long = state(5, None);
        long.replica = "é".repeat(5000);
        let read = LocalState::from_slot(&long.to_slot().unwrap()).unwrap();
        assert_eq!(read.replica, "é".repeat(MAX_REPLICA_BYTES / 2));
    }

    #[test]
    fn the_newest_whole_slot_counts() {
        let mut file = vec![0; 2 * STATE_SLOT_BYTES];
        assert_eq!(LocalState::from_file(&file).unwrap(), None);
        assert_eq!(LocalState::from_file(&[]).unwrap(), None);
        for sequence in 1..6 {
            let slot = state(sequence, None).to_slot().unwrap();
            let at = LocalState::offset(sequence) as usize;
            file[at..at + STATE_SLOT_BYTES].copy_from_slice(&slot);
            assert_eq!(LocalState::from_file(&file).unwrap().unwrap().sequence, sequence);
        }
        let newest = LocalState::offset(5) as usize;
        file[newest + 100] ^= 1;
        assert_eq!(LocalState::from_file(&file).unwrap().unwrap().sequence, 4);
        file[LocalState::offset(4) as usize + 100] ^= 1;
        assert!(matches!(LocalState::from_file(&file), Err(FormatError::Damaged { .. })));
        // A slot that was copied to the place of the other one would be overwritten first.
        file[newest..newest + STATE_SLOT_BYTES].copy_from_slice(&state(4, None).to_slot().unwrap());
        assert!(LocalState::from_file(&file).is_err());
    }

    #[test]
    fn a_state_that_waits_for_its_wal_counts_with_it_alone() {
        let mut file = vec![0; 2 * STATE_SLOT_BYTES];
        let put = |file: &mut Vec<u8>, state: &LocalState| {
            let at = LocalState::offset(state.sequence) as usize;
            file[at..at + STATE_SLOT_BYTES].copy_from_slice(&state.to_slot().unwrap());
        };
        let mut waiting = state(8, None);
        waiting.if_wal = Some(Salts(1, 2));
        put(&mut file, &waiting);
        // Nothing counts then, and that is no state of a new database.
        assert!(LocalState::from_file(&file).is_err());
        put(&mut file, &state(7, Some(print())));
        let read = |file: &[u8], salts| LocalState::from_file_beside(file, || salts).unwrap().unwrap();
        assert_eq!(read(&file, Some(Salts(1, 2))), waiting);
        for other in [None, Some(Salts(1, 3))] {
            let before = read(&file, other);
            assert_eq!((before.left, before.sequence), (state(7, Some(print())).left, 9));
            // What is written next must leave it whole until it is whole itself.
            assert_eq!(
                LocalState::offset(before.sequence + 1),
                LocalState::offset(waiting.sequence)
            );
        }
        put(&mut file, &state(10, None));
        assert_eq!(read(&file, Some(Salts(1, 2))).sequence, 10);
    }

    #[test]
    fn a_state_that_waits_may_follow_one_that_counts_with_the_wal_before() {
        let mut file = vec![0; 2 * STATE_SLOT_BYTES];
        for (sequence, salts) in [(7, Salts(1, 1)), (8, Salts(2, 2))] {
            let mut state = state(sequence, None);
            state.if_wal = Some(salts);
            let at = LocalState::offset(sequence) as usize;
            file[at..at + STATE_SLOT_BYTES].copy_from_slice(&state.to_slot().unwrap());
        }
        let read = |salts| LocalState::from_file_beside(&file, || salts);
        let counts = read(Some(Salts(1, 1))).unwrap().unwrap();
        assert_eq!((counts.if_wal, counts.sequence), (Some(Salts(1, 1)), 9));
        assert_eq!(read(Some(Salts(2, 2))).unwrap().unwrap().sequence, 8);
        for other in [None, Some(Salts(3, 3))] {
            assert!(matches!(read(other), Err(FormatError::Damaged { .. })));
        }
    }

    #[test]
    fn every_changed_byte_is_noticed_or_changes_nothing() {
        let state = state(1, Some(print()));
        let slot = state.to_slot().unwrap();
        let end = slot.iter().rposition(|byte| *byte != 0).unwrap();
        for at in 0..=end + 1 {
            for bit in 0..8 {
                let mut changed = slot.clone();
                changed[at] ^= 1 << bit;
                match LocalState::from_slot(&changed) {
                    Ok(read) => assert_eq!(read, state, "byte {at}"),
                    Err(error) => assert!(matches!(error, FormatError::Damaged { .. }), "byte {at}: {error}"),
                }
            }
        }
    }

    #[test]
    fn another_release_is_told_from_damage() {
        let text = "{\n  \"format\": 2,\n";
        let newer = format!("{text}  \"crc32\": \"{:08x}\"\n}}\n", crc32fast::hash(text.as_bytes()));
        let mut file = vec![0; 2 * STATE_SLOT_BYTES];
        file[..newer.len()].copy_from_slice(newer.as_bytes());
        file[STATE_SLOT_BYTES..].copy_from_slice(&state(1, None).to_slot().unwrap());
        assert!(matches!(
            LocalState::from_file(&file),
            Err(FormatError::Version { found: 2, known: 1 })
        ));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let base = || state(1, Some(Next::Wal(Salts(1, 2))));
        let mut slot = base();
        slot.slot = Some(Txid(41));
        let mut number = base();
        number.stored.txid = Txid(u64::MAX);
        let mut left = base();
        left.stored.txid = Txid(42);
        let mut generation = base();
        generation.generation = Generation(0);
        for state in [slot, number, left, generation] {
            assert!(matches!(state.to_slot(), Err(FormatError::Refused { .. })), "{state:?}");
        }
    }
}
