//! The state file beside a database: decoding never panics; what is accepted encodes to the same meaning; a changed bit is found.

use arbitrary::Arbitrary;
use replvfs::format::{
    DatabaseId, FormatError, Generation, LocalState, ObjectHash, Place, STATE_SLOT_BYTES, Unfinished,
};
use replvfs_vfs::resume::{Fingerprint, Left, Mark, Next};
use replvfs_vfs::types::{PageSize, Position, Salts, Txid};

use crate::{kind, memory, mended, read};

#[derive(Arbitrary, Debug)]
struct Written {
    sequence: u64,
    replica: String,
    hashes: [[u8; 32]; 2],
    database_id: [u8; 16],
    numbers: [u64; 3],
    slot: Option<u64>,
    page_size_log: u8,
    positions: [[u32; 5]; 2],
    next: Option<Result<[u32; 2], ([u64; 3], [i64; 4])>>,
    if_wal: Option<[u32; 2]>,
    fenced: bool,
    restored: Option<bool>,
    unfinished: Option<(u64, [u8; 32])>,
}

fn position([salt1, salt2, frame, sum1, sum2]: [u32; 5]) -> Position {
    Position {
        salts: Salts(salt1, salt2),
        frame,
        checksum: [sum1, sum2],
    }
}

fn state(written: &Written) -> LocalState {
    let [generation, txid, left] = written.numbers;
    let next = written.next.map(|next| match next {
        Ok([salt1, salt2]) => Next::Wal(Salts(salt1, salt2)),
        Err(([device, inode, size], [modified, modified_ns, changed, changed_ns])) => Next::File(Fingerprint {
            device,
            inode,
            size,
            modified_ns: (modified, modified_ns),
            changed_ns: (changed, changed_ns),
        }),
    });
    let mark = |txid, at: usize| Mark {
        txid: Txid(txid),
        position: position(written.positions[at]),
    };
    LocalState {
        sequence: written.sequence,
        replica: written.replica.clone(),
        place: Place(written.hashes[0]),
        database_id: DatabaseId(written.database_id),
        generation: Generation(generation),
        page_size: PageSize::new(512 << (written.page_size_log % 8)).expect("a page size"),
        stored: mark(txid, 0),
        slot: written.slot.map(Txid),
        previous: ObjectHash(written.hashes[1]),
        left: next.map(|next| Left {
            mark: mark(left, 1),
            next,
        }),
        if_wal: written.if_wal.map(|[salt1, salt2]| Salts(salt1, salt2)),
        fenced: written.fenced,
        unfinished: written.unfinished.map(|(slot, hash)| Unfinished {
            slot: Txid(slot),
            hash: ObjectHash(hash),
        }),
        restored: written.restored,
    }
}

fn accepted(read: &LocalState) {
    let slot = read.to_slot().expect("it was accepted");
    assert_eq!(slot.len(), STATE_SLOT_BYTES);
    let again = LocalState::from_slot(&slot).expect("it was just written");
    // A name that is too long is cut.
    assert!(read.replica.starts_with(&again.replica));
    let replica = again.replica.clone();
    assert_eq!(
        again,
        LocalState {
            replica,
            ..read.clone()
        }
    );
}

/// 0: the file. 1: the members of one slot, whose CRC-32 is made to fit. Else: a state that is written, and a changed bit.
pub fn run(data: &[u8]) {
    match kind(data) {
        (0, bytes) => {
            for salts in [None, Some(Salts(1, 2))] {
                let decode = || LocalState::from_file_beside(bytes, || salts);
                if let Ok(Some(read)) = memory::within(memory::for_bytes(bytes.len()), decode) {
                    assert!(read.if_wal.is_none_or(|wanted| Some(wanted) == salts));
                    accepted(&read);
                }
            }
        }
        (1, members) => {
            let Ok(members) = std::str::from_utf8(members) else {
                return;
            };
            let slot = mended::json(members);
            let decode = || LocalState::from_slot(slot.as_bytes());
            if let Ok(read) = memory::within(memory::for_bytes(slot.len()), decode) {
                accepted(&read);
            }
        }
        (_, bytes) => {
            if let Some((state, damage)) = read::<(Written, Option<(u16, u8)>)>(bytes) {
                written(&state, damage);
            }
        }
    }
}

fn written(written: &Written, damage: Option<(u16, u8)>) {
    let written = state(written);
    let Ok(mut slot) = written.to_slot() else { return };
    accepted(&written);
    if let Some((at, mask)) = damage.filter(|(_, mask)| mask.count_ones() == 1) {
        let before = LocalState::from_slot(&slot).expect("it was just written");
        slot[usize::from(at) % STATE_SLOT_BYTES] ^= mask;
        match LocalState::from_slot(&slot) {
            Ok(read) => assert_eq!(read, before),
            Err(error) => assert!(matches!(error, FormatError::Damaged { .. })),
        }
    }
}
