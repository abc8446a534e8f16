//! The WAL decoder against WALs that real SQLite wrote: whole, torn, stale, damaged, and in the other byte order.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use replvfs_vfs::wal::{Commit, FRAME_HEADER_BYTES, HEADER_BYTES, Scan, WalHeader};
use rusqlite::Connection;

/// A database and its WAL as SQLite left them.
struct Written {
    database: Vec<u8>,
    wal: Vec<u8>,
    commits: u32,
}

fn write(page_size: u32, transactions: u32, finish: impl FnOnce(&Connection)) -> Written {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.db");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(&format!(
            "PRAGMA page_size={page_size}; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(a, b)"
        ))
        .unwrap();
    for n in 1..transactions {
        connection
            .execute("INSERT INTO t VALUES(?1, randomblob(?1 * 700))", [n])
            .unwrap();
    }
    finish(&connection);
    let wal = std::fs::read(format!("{}-wal", path.display())).unwrap();
    Written {
        database: std::fs::read(&path).unwrap(),
        wal,
        commits: transactions,
    }
}

/// All commits that the chain reaches.
fn commits(wal: &[u8]) -> Vec<Commit> {
    let Some(header) = wal.first_chunk::<HEADER_BYTES>().and_then(WalHeader::decode) else {
        return Vec::new();
    };
    let mut scan = Scan::from_header(&header);
    let mut found = Vec::new();
    for frame in wal[HEADER_BYTES..].chunks_exact(scan.frame_bytes()) {
        match scan.step(frame) {
            Ok((_, _, commit)) => found.extend(commit),
            Err(_) => break,
        }
    }
    found
}

/// How many frames SQLite itself recovers from a WAL beside the database.
fn sqlite_recovers(written: &Written, wal: &[u8]) -> u32 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.db");
    std::fs::write(&path, &written.database).unwrap();
    std::fs::write(format!("{}-wal", path.display()), wal).unwrap();
    let connection = Connection::open(&path).unwrap();
    let frames: i64 = connection
        .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(1))
        .unwrap();
    frames.try_into().unwrap()
}

/// The same WAL with checksums over words of the other byte order, as a machine of that order writes it.
fn other_byte_order(wal: &[u8], page_size: usize) -> Vec<u8> {
    fn sum(bytes: &[u8], seed: [u32; 2]) -> [u32; 2] {
        // The definition on SQLite's file-format page, word by word.
        let mut words = bytes
            .chunks_exact(4)
            .map(|word| u32::from_be_bytes(word.try_into().unwrap()));
        let [mut s0, mut s1] = seed;
        while let (Some(x0), Some(x1)) = (words.next(), words.next()) {
            s0 = s0.wrapping_add(x0.wrapping_add(s1));
            s1 = s1.wrapping_add(x1.wrapping_add(s0));
        }
        [s0, s1]
    }
    fn put(bytes: &mut [u8], sum: [u32; 2]) {
        bytes[..4].copy_from_slice(&sum[0].to_be_bytes());
        bytes[4..8].copy_from_slice(&sum[1].to_be_bytes());
    }
    let mut wal = wal.to_vec();
    wal[3] ^= 1;
    let mut running = sum(&wal[..24], [0, 0]);
    put(&mut wal[24..32], running);
    for frame in wal[HEADER_BYTES..].chunks_exact_mut(FRAME_HEADER_BYTES + page_size) {
        running = sum(&frame[..8], running);
        running = sum(&frame[FRAME_HEADER_BYTES..], running);
        put(&mut frame[16..24], running);
    }
    wal
}

#[test]
fn every_commit_of_a_whole_wal_is_found_at_every_page_size() {
    for page_size in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        let written = write(page_size, 12, |_| {});
        let found = commits(&written.wal);
        assert_eq!(found.len() as u32, written.commits, "page size {page_size}");
        assert_eq!(
            found.last().unwrap().position.frame,
            sqlite_recovers(&written, &written.wal)
        );
    }
}

#[test]
fn both_checksum_byte_orders_are_read_and_sqlite_agrees() {
    let written = write(1024, 12, |_| {});
    let other = other_byte_order(&written.wal, 1024);
    assert_ne!(other, written.wal);
    let here = WalHeader::decode(written.wal.first_chunk().unwrap()).unwrap();
    let there = WalHeader::decode(other.first_chunk().unwrap()).unwrap();
    assert_ne!(here.big_endian, there.big_endian);
    let frames = |wal: &[u8]| {
        commits(wal)
            .iter()
            .map(|commit| commit.position.frame)
            .collect::<Vec<_>>()
    };
    assert_eq!(frames(&other), frames(&written.wal));
    assert_eq!(
        frames(&other).last(),
        Some(&sqlite_recovers(&written, &other)),
        "SQLite does not take the converted WAL"
    );
}

#[test]
fn a_torn_wal_ends_where_sqlite_says() {
    let written = write(512, 8, |_| {});
    let all = commits(&written.wal);
    let mut seen = std::collections::BTreeSet::new();
    for length in (0..=written.wal.len()).rev().step_by(173) {
        let torn = &written.wal[..length];
        let found = commits(torn);
        assert_eq!(
            found[..],
            all[..found.len()],
            "a prefix of the WAL has a prefix of its commits"
        );
        let last = found.last().map_or(0, |commit| commit.position.frame);
        let fits = (length.saturating_sub(HEADER_BYTES) / (FRAME_HEADER_BYTES + 512)) as u32;
        assert!(last <= fits);
        if seen.insert(last) {
            assert_eq!(last, sqlite_recovers(&written, torn), "torn at {length}");
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_ends_the_chain_before_it() {
    let written = write(512, 6, |_| {});
    let all = commits(&written.wal);
    for at in (0..written.wal.len()).step_by(7) {
        let mut damaged = written.wal.clone();
        damaged[at] ^= 0x10;
        let found = commits(&damaged);
        if at < HEADER_BYTES {
            assert!(found.is_empty(), "byte {at} of the header");
            continue;
        }
        let frame = (at - HEADER_BYTES) / (FRAME_HEADER_BYTES + 512) + 1;
        let intact = all
            .iter()
            .filter(|commit| (commit.position.frame as usize) < frame)
            .count();
        assert_eq!(found[..], all[..intact], "byte {at}");
    }
}

#[test]
fn stale_frames_behind_a_restart_are_not_transactions() {
    let written = write(1024, 30, |connection| {
        connection
            .query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get::<_, i64>(0))
            .unwrap();
        connection
            .execute_batch("INSERT INTO t VALUES(1, 'after'); INSERT INTO t VALUES(2, 'after');")
            .unwrap();
    });
    let found = commits(&written.wal);
    assert_eq!(
        found.len(),
        2,
        "the WAL still has all the old frames behind the two new ones"
    );
    assert!(written.wal.len() > 20 * 1024);
    assert_eq!(
        found.last().unwrap().position.frame,
        sqlite_recovers(&written, &written.wal)
    );
}

#[test]
fn spilled_frames_that_were_rolled_back_are_not_transactions() {
    let written = write(1024, 5, |connection| {
        connection
            .execute_batch(
                "PRAGMA cache_size=2; BEGIN;
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 100)
                 INSERT INTO t SELECT i, randomblob(900) FROM n; ROLLBACK;",
            )
            .unwrap();
        assert!(connection.is_autocommit());
    });
    let found = commits(&written.wal);
    assert_eq!(found.len() as u32, written.commits);
    let end = found.last().unwrap().position.frame as usize * (FRAME_HEADER_BYTES + 1024) + HEADER_BYTES;
    assert!(
        written.wal.len() > end + 20 * 1024,
        "nothing was spilled, so this test shows nothing"
    );
    assert_eq!(
        found.last().unwrap().position.frame,
        sqlite_recovers(&written, &written.wal)
    );
}

/// A WAL of ours with all pages of one database beside the file of another: SQLite reads the first.
#[test]
fn sqlite_recovers_a_wal_of_ours() {
    use replvfs_vfs::types::{PageSize, Pgno, Salts};
    use replvfs_vfs::wal::WalWriter;

    for (page_size, other_size) in [(512, 512), (4096, 4096), (65_536, 65_536), (4096, 1024), (1024, 4096)] {
        let checkpoint = |connection: &Connection| {
            connection
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
                .unwrap();
        };
        let new = write(page_size, 9, checkpoint);
        let old = write(other_size, 30, checkpoint);
        let size = PageSize::new(page_size).unwrap();
        let mut writer = WalWriter::new(size, Salts(7, 8));
        let mut wal = writer.header().to_vec();
        let count = u32::try_from(new.database.len()).unwrap() / page_size;
        for (pgno, page) in (1..).zip(new.database.chunks_exact(size.as_usize())) {
            let commit = if pgno == count { count } else { 0 };
            wal.extend(writer.frame(Pgno::new(pgno).unwrap(), commit, page));
            wal.extend(page);
        }
        assert_eq!(commits(&wal).last().unwrap().position, writer.position());

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.db");
        std::fs::write(&path, &old.database).unwrap();
        std::fs::write(format!("{}-wal", path.display()), wal).unwrap();
        let connection = Connection::open(&path).unwrap();
        let found: (i64, String) = connection
            .query_row(
                "SELECT (SELECT count(*) FROM t), (SELECT * FROM pragma_integrity_check)",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .unwrap();
        assert_eq!(found, (8, "ok".to_owned()), "{page_size} over {other_size}");
        // The last close folds it in.
        drop(connection);
        assert_eq!(
            std::fs::read(&path).unwrap(),
            new.database,
            "{page_size} over {other_size}"
        );
    }
}
