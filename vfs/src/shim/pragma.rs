//! `PRAGMA replvfs_…`: how every language talks to its database's replication.

use std::ffi::{CStr, c_char, c_int};

use libsqlite3_sys as ffi;

use crate::capture::Connection;
use crate::host::Durability;
use crate::types::Txid;

/// Prefix of all that are ours: one that we do not know is an error, not silence.
const PREFIX: &str = "replvfs_";

/// Without a journal nothing could be rolled back.
const NO_JOURNAL: &str = "durability=strict needs a journal: it cannot be had with journal_mode=OFF";

const KNOWN: &str = "replvfs_txid, replvfs_acked, replvfs_flush, replvfs_wait, replvfs_durability and replvfs_status";

/// Answers `SQLITE_FCNTL_PRAGMA`; `None` when the PRAGMA is not ours.
///
/// # Safety
///
/// `arguments` is the array of that control: the place for a result, the name, the value or null.
pub(super) unsafe fn answer(connection: &Connection, arguments: *mut *mut c_char) -> Option<c_int> {
    // SAFETY: as promised by the caller; name and value are NUL-terminated strings.
    let (name, value) = unsafe {
        let name = CStr::from_ptr(*arguments.add(1)).to_str().ok()?;
        let value = *arguments.add(2);
        (
            name,
            (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned()),
        )
    };
    let name = name.to_ascii_lowercase();
    let refused = note_modes(connection, &name, value.as_deref()).map(|refused| Err(refused.to_owned()));
    let pragma = name.strip_prefix(PREFIX);
    let result = match refused {
        Some(refused) => refused,
        None => run(connection, pragma?, value.as_deref()),
    };
    let (code, text) = match &result {
        Ok(text) => (ffi::SQLITE_OK, text),
        Err(message) => (ffi::SQLITE_ERROR, message),
    };
    // SAFETY: the first place is SQLite's to take and free.
    unsafe { *arguments = connection.database.vfs.api.mprintf(text) };
    Some(code)
}

/// What SQLite's own PRAGMAs are about to do with the locks. Why one is refused, if it is.
fn note_modes(connection: &Connection, name: &str, value: Option<&str>) -> Option<&'static str> {
    let value = value.map(|value| value.trim_matches(['\'', '"']))?;
    match name {
        "journal_mode" => {
            let without_journal = value.eq_ignore_ascii_case("off");
            if without_journal && connection.is_strict() {
                return Some(NO_JOURNAL);
            }
            let mut state = connection.lock();
            state.leaving_wal = !value.eq_ignore_ascii_case("wal");
            state.without_journal = without_journal;
            state.journal_in_memory = value.eq_ignore_ascii_case("memory");
        }
        "wal_checkpoint" if !value.eq_ignore_ascii_case("passive") => {
            connection
                .database
                .give_images_up("a checkpoint wants all readers to be gone");
        }
        "locking_mode" => connection.lock().taking_exclusive = value.eq_ignore_ascii_case("exclusive"),
        _ => {}
    }
    None
}

/// The text of the row to return, or an error message. There is always a row: without one SQLite gives the column a null pointer for a name, of
/// which Python makes a `MemoryError`.
fn run(connection: &Connection, pragma: &str, value: Option<&str>) -> Result<String, String> {
    let database = &connection.database;
    if let Some(value) = value {
        return set(connection, pragma, value.trim_matches(['\'', '"']));
    }
    let number = |txid: Option<crate::types::Txid>| txid.map(|txid| txid.to_string()).unwrap_or_default();
    match pragma {
        "txid" => Ok(number(database.final_txid(connection))),
        "acked" => Ok(number(database.log.acked())),
        "status" => {
            database.sync(connection);
            Ok(database.replica.status())
        }
        "flush" => {
            let flushed = connection.flush().map_err(|error| error.to_string())?;
            Ok(number(flushed))
        }
        "durability" => Ok(connection.durability().name().to_owned()),
        "wait" => {
            Err("PRAGMA replvfs_wait takes the number of a transaction, as PRAGMA replvfs_txid gives it".to_owned())
        }
        _ => Err(unknown(pragma)),
    }
}

fn unknown(pragma: &str) -> String {
    format!("there is no PRAGMA replvfs_{pragma}; known are {KNOWN}")
}

/// One with a value.
fn set(connection: &Connection, pragma: &str, value: &str) -> Result<String, String> {
    match pragma {
        "durability" => {
            let level = Durability::from_name(value);
            let level = level.ok_or_else(|| {
                format!("PRAGMA replvfs_durability={value} is not understood: write async, remote or strict")
            })?;
            if level == Durability::Strict && connection.lock().without_journal {
                return Err(NO_JOURNAL.to_owned());
            }
            connection.set_durability(level);
            Ok(level.name().to_owned())
        }
        "wait" => {
            let txid = value.parse().map(Txid);
            let txid = txid
                .map_err(|_| format!("PRAGMA replvfs_wait={value}: write the number that PRAGMA replvfs_txid gave"))?;
            let waited = connection.wait(txid).map_err(|error| error.to_string())?;
            Ok(waited.map(|txid| txid.to_string()).unwrap_or_default())
        }
        "txid" | "acked" | "status" | "flush" => {
            Err(format!("PRAGMA replvfs_{pragma} takes no value, but got {value:?}"))
        }
        _ => Err(unknown(pragma)),
    }
}

/// Puts our name before that of the VFS underneath, as SQLite's own shims do.
///
/// # Safety
///
/// `name` is the argument of `SQLITE_FCNTL_VFSNAME`, which the base VFS answered with `code`.
pub(super) unsafe fn prefix_vfs_name(connection: &Connection, name: *mut *mut c_char, code: c_int) {
    let api = &connection.database.vfs.api;
    // SAFETY: the base VFS's answer, if it gave one, is a string from SQLite's allocator.
    unsafe {
        let base = if code == ffi::SQLITE_OK && !(*name).is_null() {
            let text = CStr::from_ptr(*name).to_string_lossy().into_owned();
            api.free((*name).cast());
            text
        } else {
            CStr::from_ptr((*connection.database.vfs.raw).zName)
                .to_string_lossy()
                .into_owned()
        };
        *name = api.mprintf(&format!("replvfs/{base}"));
    }
}
