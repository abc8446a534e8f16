//! What SQLite writes, or another process beside it: the WAL, the header of the wal-index, and the file of what was carried over. Never panics; and which frames
//! are committed is told as a second reading of the file format tells it.

use std::path::PathBuf;

use replvfs_vfs::resume::Mark;
use replvfs_vfs::testing::{checksum, load_spill};
use replvfs_vfs::transaction::FrameError;
use replvfs_vfs::types::{Position, Salts, Txid};
use replvfs_vfs::wal::{Commit, FRAME_HEADER_BYTES, HEADER_BYTES, IndexHeader, Scan, WalHeader};

use crate::{folder, kind, memory};

/// 0: a WAL. 1: the same with checksums that fit. 2: the header of a wal-index, and 3: with a checksum that fits. Else: a spill file, whose records' CRC-32s are
/// made to fit, with the transactions from 1 to one that the first byte says.
pub fn run(data: &[u8]) {
    match kind(data) {
        (0, wal) => memory::within(memory::for_bytes(wal.len()), || walk(wal)),
        (1, wal) => {
            let mut wal = wal.to_vec();
            mend(&mut wal);
            memory::within(memory::for_bytes(wal.len()), || walk(&wal));
        }
        (2, bytes) => drop(bytes.first_chunk().and_then(IndexHeader::decode)),
        (3, bytes) => index(bytes),
        (kind, file) => spill(kind, file),
    }
}

fn walk(wal: &[u8]) {
    let whole = commits(wal);
    assert_eq!(whole, by_the_book(wal));
    // A prefix of a WAL has a prefix of its commits.
    let half = commits(&wal[..wal.len() / 2]);
    assert_eq!(half[..], whole[..half.len()]);
    if let Some(header) = wal.first_chunk::<HEADER_BYTES>().and_then(WalHeader::decode) {
        let last = Scan::from_header(&header).last_commit(&wal[HEADER_BYTES..]);
        assert_eq!(last, whole.last().copied());
        for (commit, next) in whole.iter().zip(whole.iter().skip(1)) {
            let scan = Scan::from_position(commit.position, header.page_size, header.big_endian);
            let from = HEADER_BYTES + commit.position.frame as usize * scan.frame_bytes();
            let to = HEADER_BYTES + next.position.frame as usize * scan.frame_bytes();
            assert_eq!(
                scan.last_commit(&wal[from..to]),
                Some(*next),
                "a walk is taken up in the middle"
            );
        }
    }
}

fn commits(wal: &[u8]) -> Vec<Commit> {
    let Some(header) = wal.first_chunk::<HEADER_BYTES>().and_then(WalHeader::decode) else {
        return Vec::new();
    };
    let mut scan = Scan::from_header(&header);
    let mut found = Vec::new();
    for frame in wal[HEADER_BYTES..].chunks(scan.frame_bytes()) {
        let Ok((_, page, commit)) = scan.step(frame) else { break };
        assert_eq!(page.len(), header.page_size.as_usize());
        found.extend(commit);
    }
    found
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// <https://www.sqlite.org/fileformat2.html#checksum_algorithm>.
fn sum(is_big: bool, bytes: &[u8], (mut s0, mut s1): (u32, u32)) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        let [x0, x1] = [0, 4].map(|at| {
            let word = word(pair, at);
            if is_big { word } else { word.swap_bytes() }
        });
        s0 = s0.wrapping_add(x0).wrapping_add(s1);
        s1 = s1.wrapping_add(x1).wrapping_add(s0);
    }
    (s0, s1)
}

/// <https://www.sqlite.org/fileformat2.html#wal_file_format>, once more and without anything of ours.
fn by_the_book(wal: &[u8]) -> Vec<Commit> {
    let mut found = Vec::new();
    let page_size = match wal.get(..HEADER_BYTES) {
        Some(header) => word(header, 8) as usize,
        None => return found,
    };
    let is_big = match word(wal, 0) {
        0x377f_0682 => false,
        0x377f_0683 => true,
        _ => return found,
    };
    let header_sum = sum(is_big, &wal[..24], (0, 0));
    let is_size = page_size.is_power_of_two() && (512..=65_536).contains(&page_size);
    if word(wal, 4) != 3_007_000 || !is_size || header_sum != (word(wal, 24), word(wal, 28)) {
        return found;
    }
    let mut running = header_sum;
    for (frame, number) in wal[HEADER_BYTES..]
        .chunks_exact(FRAME_HEADER_BYTES + page_size)
        .zip(1..)
    {
        running = sum(is_big, &frame[FRAME_HEADER_BYTES..], sum(is_big, &frame[..8], running));
        let fits = frame[8..16] == wal[16..24] && running == (word(frame, 16), word(frame, 20)) && word(frame, 0) != 0;
        if !fits {
            break;
        }
        if word(frame, 4) != 0 {
            found.push(Commit {
                position: Position {
                    salts: Salts(word(wal, 16), word(wal, 20)),
                    frame: number,
                    checksum: [running.0, running.1],
                },
                page_count: word(frame, 4),
            });
        }
    }
    found
}

/// Magic number, version, salts and checksums of a WAL.
fn mend(wal: &mut [u8]) {
    if wal.len() < HEADER_BYTES {
        return;
    }
    let is_big = wal[3] & 1 != 0;
    wal[..4].copy_from_slice(&[0x37, 0x7f, 0x06, 0x82 | u8::from(is_big)]);
    wal[4..8].copy_from_slice(&3_007_000u32.to_be_bytes());
    let page_size = 512usize << (wal[10] % 8);
    wal[8..12].copy_from_slice(&(page_size as u32).to_be_bytes());
    let mut running = sum(is_big, &wal[..24], (0, 0));
    wal[24..28].copy_from_slice(&running.0.to_be_bytes());
    wal[28..32].copy_from_slice(&running.1.to_be_bytes());
    let (header, frames) = wal.split_at_mut(HEADER_BYTES);
    for frame in frames.chunks_exact_mut(FRAME_HEADER_BYTES + page_size) {
        frame[8..16].copy_from_slice(&header[16..24]);
        running = sum(is_big, &frame[FRAME_HEADER_BYTES..], sum(is_big, &frame[..8], running));
        frame[16..20].copy_from_slice(&running.0.to_be_bytes());
        frame[20..24].copy_from_slice(&running.1.to_be_bytes());
    }
}

fn index(bytes: &[u8]) {
    let Some(mut copy) = bytes.first_chunk::<48>().copied() else {
        return;
    };
    copy[..4].copy_from_slice(&3_007_000u32.to_ne_bytes());
    copy[12] |= 1;
    let [first, second] = checksum(cfg!(target_endian = "big"), &copy[..40], [0, 0]);
    copy[40..44].copy_from_slice(&first.to_ne_bytes());
    copy[44..48].copy_from_slice(&second.to_ne_bytes());
    let header = IndexHeader::decode(&copy).expect("its checksum is right");
    assert_eq!(
        header.wal_bytes() == 0,
        header.page_size.is_none() || header.position.frame == 0
    );
}

/// Its magic number, and a record of 80 bytes before the frames of each transaction: `vfs/src/spill.rs`.
const SPILL_MAGIC: &[u8; 8] = b"rplspil1";
const RECORD_BYTES: usize = 80;

/// The database that the spill file lies beside.
pub(crate) fn database() -> PathBuf {
    folder().join("app.db")
}

fn spill(kind: u8, file: &[u8]) {
    let mut file = file.to_vec();
    file.splice(..file.len().min(8), *SPILL_MAGIC);
    let place = |record: &[u8], at: usize| {
        let word = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
        Position {
            salts: Salts(word(at), word(at + 4)),
            frame: word(at + 8),
            checksum: [word(at + 12), word(at + 16)],
        }
    };
    let (mut at, mut ends, mut begin) = (8_usize, Vec::new(), Position::NONE);
    while let Some(record) = file.get_mut(at..at.saturating_add(RECORD_BYTES)) {
        let crc = crc32fast::hash(&record[..RECORD_BYTES - 4]);
        record[RECORD_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        let (start, end) = (place(record, 24), place(record, 44));
        if ends.is_empty() {
            begin = start;
        }
        ends.push(end);
        let page_size = u32::from_le_bytes([record[16], record[17], record[18], record[19]]) as usize;
        let frames = end.frame.saturating_sub(start.frame) as usize;
        at = frames
            .saturating_mul(FRAME_HEADER_BYTES + page_size)
            .saturating_add(at + RECORD_BYTES);
    }
    let mut name = database().into_os_string();
    name.push("-replvfs-spill");
    std::fs::write(name, &file).expect("the file is written");
    let wanted = usize::from(kind) % (ends.len() + 1);
    let from = Mark {
        txid: Txid(0),
        position: begin,
    };
    let to = Mark {
        txid: Txid(wanted as u64),
        position: wanted.checked_sub(1).map_or(begin, |last| ends[last]),
    };
    // What is read back at once is a part of its own.
    memory::within((2 << 20) + memory::for_bytes(file.len()), || {
        let Some(found) = load_spill(&database(), from, to) else {
            return;
        };
        assert_eq!(found.len(), wanted);
        for transaction in found {
            let mut last = 0;
            let visited = transaction.for_each_page(|pgno, page| {
                assert!(pgno.get() > last && pgno.get() <= transaction.page_count);
                assert_eq!(page.len(), transaction.page_size.as_usize());
                last = pgno.get();
                Ok::<_, FrameError>(())
            });
            let _ = visited;
        }
    });
}
