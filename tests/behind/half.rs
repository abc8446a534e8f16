//! What a process leaves that dies while the newest state is in a WAL, and the file is neither the old one nor the new one: plain SQLite, and any
//! machine without replvfs, has to find the new one.

use std::os::unix::fs::FileExt;
use std::path::Path;

use replvfs_tests::{Rng, check_integrity, compare_pages, plain_image};
use replvfs_vfs::types::{PageSize, Pgno, Salts};
use replvfs_vfs::wal::WalWriter;
use rusqlite::Connection;

use crate::rows_of;

fn database(path: &Path, page_size: u32, mode: &str, rows: u32, auto_vacuum: bool) {
    let connection = Connection::open(path).unwrap();
    let filling = format!(
        "PRAGMA page_size = {page_size}; PRAGMA auto_vacuum = {}; PRAGMA journal_mode = {mode}; CREATE TABLE t(who, n, filling); \
         INSERT INTO t WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {rows}) \
         SELECT 'r', n, randomblob(3000) FROM c;",
        u32::from(auto_vacuum)
    );
    connection.execute_batch(&filling).unwrap();
}

/// As `put_over` writes it.
fn wal_from(old: &[u8], new: &[u8], page_size: u32, salts: Salts) -> Vec<u8> {
    let size = page_size as usize;
    let mut writer = WalWriter::new(PageSize::new(page_size).unwrap(), salts);
    let mut wal = writer.header().to_vec();
    let mut put = |number: usize, commit: u32, page: &[u8]| {
        let pgno = Pgno::new(u32::try_from(number).unwrap()).unwrap();
        wal.extend(writer.frame(pgno, commit, page));
        wal.extend(page);
    };
    for (at, page) in new.chunks(size).enumerate().skip(1) {
        if old.get(at * size..(at + 1) * size) != Some(page) {
            put(at + 1, 0, page);
        }
    }
    put(1, u32::try_from(new.len() / size).unwrap(), &new[..size]);
    wal
}

#[test]
fn plain_sqlite_finds_the_new_one_however_much_is_folded() {
    let folder = replvfs_tests::fast_folder();
    let file = |name: &str| folder.path().join(name);
    let mut rng = Rng::new(7);
    let sizes = [(1024, 1024), (512, 65_536), (65_536, 512), (4096, 1024)];
    for (old_size, new_size) in sizes {
        for (old_mode, new_mode) in [
            ("WAL", "WAL"),
            ("DELETE", "WAL"),
            ("WAL", "DELETE"),
            ("DELETE", "DELETE"),
        ] {
            for (old_rows, new_rows) in [(2, 60), (60, 2), (30, 30)] {
                for path in ["old.db", "new.db"] {
                    let _ = std::fs::remove_file(file(path));
                }
                database(&file("old.db"), old_size, old_mode, old_rows, false);
                database(&file("new.db"), new_size, new_mode, new_rows, true);
                let (old, new) = ["old.db", "new.db"]
                    .map(|name| std::fs::read(file(name)).unwrap())
                    .into();
                let rows = rows_of(&file("new.db"));
                let wal = wal_from(&old, &new, new_size, Salts(rng.below(1 << 32) as u32, 5));
                let pages = new.len() / new_size as usize;
                for folded in [0, 1, rng.below(pages as u64) as usize, pages] {
                    let path = file("app.db");
                    for suffix in ["", "-wal", "-shm", "-journal"] {
                        let _ = std::fs::remove_file(file(&format!("app.db{suffix}")));
                    }
                    std::fs::write(&path, &old).unwrap();
                    let half = std::fs::File::options().write(true).open(&path).unwrap();
                    half.write_all_at(&new[..folded * new_size as usize], 0).unwrap();
                    if folded == pages {
                        half.set_len(new.len() as u64).unwrap();
                    }
                    std::fs::write(file("app.db-wal"), &wal).unwrap();
                    let case =
                        format!("{old_size} {old_mode} to {new_size} {new_mode}, {old_rows} to {new_rows}, {folded}");
                    let connection = Connection::open(&path).unwrap();
                    let list: String = connection.query_row(crate::LIST, [], |row| row.get(0)).expect(&case);
                    assert_eq!(list, rows, "{case}");
                    let ok: String = connection
                        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
                        .unwrap();
                    assert_eq!(ok, "ok", "{case}");
                    drop(connection);
                    assert!(!file("app.db-wal").exists(), "{case}");
                    check_integrity(&path);
                    compare_pages(&plain_image(&file("new.db")), &plain_image(&path)).expect(&case);
                }
            }
        }
    }
}
