//! SQLite's own look at a file that nobody else has.

use std::path::Path;

use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use rusqlite::{Connection, OpenFlags};

/// What stands for something else in a path of a URI.
const NOT_IN_PATHS: &AsciiSet = &CONTROLS.add(b'%').add(b'?').add(b'#').add(b' ');

/// How many lines of the report an error repeats.
const LINES: usize = 5;

/// Whether the file is a sound database. Nothing is written to it, and nothing appears beside it.
///
/// # Errors
///
/// The first lines of SQLite's report.
pub(crate) fn integrity_check(path: &Path) -> Result<(), String> {
    let lines = report(path).map_err(|error| format!("it cannot be read: {error}"))?;
    match lines.as_slice() {
        [line] if line == "ok" => Ok(()),
        [] => Err("the check has no result".to_owned()),
        lines => Err(lines.join("; ")),
    }
}

fn report(path: &Path) -> rusqlite::Result<Vec<String>> {
    // Immutable: no locks, no journal, and no WAL, whose mode the file may be in.
    let uri = format!(
        "file:{}?immutable=1",
        percent_encode(path.as_os_str().as_encoded_bytes(), NOT_IN_PATHS)
    );
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags)?;
    let mut statement = connection.prepare(&format!("PRAGMA integrity_check({LINES})"))?;
    statement.query_map([], |row| row.get(0))?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<std::ffi::OsString> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn a_file_is_looked_at_and_left_as_it_is() {
        for mode in ["wal", "delete"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a b%41?#.db");
            let connection = Connection::open(&path).unwrap();
            connection.pragma_update(None, "journal_mode", mode).unwrap();
            connection
                .execute_batch(
                    "CREATE TABLE t(a UNIQUE, b); INSERT INTO t VALUES (1, zeroblob(9000)), (2, zeroblob(9000))",
                )
                .unwrap();
            connection.close().unwrap();
            let before = std::fs::read(&path).unwrap();
            assert_eq!(integrity_check(&path), Ok(()), "{mode}");
            assert_eq!(std::fs::read(&path).unwrap(), before);
            assert_eq!(names(folder.path()).len(), 1);
            // The root of the index.
            let mut damaged = before.clone();
            damaged[2 * 4096..3 * 4096].fill(0x5a);
            std::fs::write(&path, &damaged).unwrap();
            let problem = integrity_check(&path).unwrap_err();
            assert!(problem.contains("page 3") || problem.contains("malformed"), "{problem}");
            assert_eq!(std::fs::read(&path).unwrap(), damaged);
            assert_eq!(names(folder.path()).len(), 1);
        }
    }

    #[test]
    fn an_empty_database_is_sound_and_no_database_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(integrity_check(&path), Ok(()));
        std::fs::write(&path, [7; 4096]).unwrap();
        assert!(integrity_check(&path).is_err());
    }
}
