//! A restore as C asks for it.

use std::ffi::{CString, c_int, c_uint};
use std::path::Path;
use std::sync::Arc;

use replvfs::history::{HistoryError, Target};
use replvfs::restore::{CheckFn, RestoreError, RestoreOptions, restore_blocking};
use replvfs::store::StoreError;
use replvfs::time::At;
use replvfs::{Error, Txid};
use replvfs_vfs::ffi;

use crate::integrity::integrity_check;
use crate::{CANTOPEN, CORRUPT, ERROR, Failed, IOERR, MISUSE, NOTFOUND};

const NEWEST: i64 = -1;
const FORCE: c_uint = 0x1;
const VERIFY: c_uint = 0x2;

pub(crate) struct Wanted<'a> {
    pub(crate) replica: &'a str,
    pub(crate) path: &'a Path,
    pub(crate) at: Option<&'a str>,
    pub(crate) txid: i64,
    pub(crate) flags: c_uint,
}

/// Tells the last transaction that is in the file.
pub(crate) fn restore(wanted: &Wanted<'_>) -> Result<Txid, Failed> {
    if wanted.flags & !(FORCE | VERIFY) != 0 {
        return Err(misuse(&format_args!("unknown flags {:#x}", wanted.flags)));
    }
    let has = |flag| wanted.flags & flag != 0;
    let options = RestoreOptions {
        target: target(wanted)?,
        force: has(FORCE),
        resumable: true,
        check: has(VERIFY).then(|| Arc::new(integrity_check) as CheckFn),
        ..RestoreOptions::default()
    };
    let restored = restore_blocking(wanted.replica, wanted.path, &options);
    let restored = restored.map_err(|error| (code(&error), format!("replvfs: {error}")))?;
    restored.warnings.iter().for_each(|warning| warn(warning));
    Ok(restored.txid)
}

fn target(wanted: &Wanted<'_>) -> Result<Target, Failed> {
    match (wanted.at, wanted.txid) {
        (None, NEWEST) => Ok(Target::Newest),
        (None, txid) => match u64::try_from(txid) {
            Ok(txid) => Ok(Target::Txid(Txid(txid))),
            Err(_) => Err(misuse(&format_args!("{txid} is no transaction"))),
        },
        (Some(at), NEWEST) => {
            let at: At = at.parse().map_err(|error| misuse(&format_args!("{at:?}: {error}")))?;
            Ok(Target::At(at.time))
        }
        (Some(_), _) => Err(misuse(&"give a time or a transaction, not both")),
    }
}

fn misuse(what: &dyn std::fmt::Display) -> Failed {
    (MISUSE, format!("replvfs: {what}"))
}

fn code(error: &Error) -> c_int {
    match error {
        Error::Store(error) => code_of_store(error),
        Error::Restore(error) => match error {
            RestoreError::Exists { .. } | RestoreError::Leftover { .. } => CANTOPEN,
            RestoreError::File { .. } => IOERR,
            RestoreError::History(error) => match error {
                HistoryError::Store(error) => code_of_store(error),
                HistoryError::NoReplica | HistoryError::Empty { .. } | HistoryError::NotInHistory { .. } => NOTFOUND,
                HistoryError::Format { .. }
                | HistoryError::Missing { .. }
                | HistoryError::Sealed { .. }
                | HistoryError::Misplaced { .. }
                | HistoryError::Generation { .. } => CORRUPT,
                HistoryError::Task { .. } => ERROR,
            },
            RestoreError::Format { .. }
            | RestoreError::Chain { .. }
            | RestoreError::PageSize { .. }
            | RestoreError::Check { .. } => CORRUPT,
            RestoreError::Task { .. } => ERROR,
        },
        _ => ERROR,
    }
}

fn code_of_store(error: &StoreError) -> c_int {
    match error {
        error if error.is_not_found() => NOTFOUND,
        error if error.is_permanent() => ERROR,
        _ => IOERR,
    }
}

/// There is no other place for it where the restore came through.
fn warn(warning: &str) {
    let Ok(text) = CString::new(format!("replvfs: {warning}").replace('\0', " ")) else {
        return;
    };
    // SAFETY: the format takes one text, and sqlite3_log may be called from any thread.
    unsafe { ffi::sqlite3_log(ffi::SQLITE_WARNING, c"%s".as_ptr(), text.as_ptr()) };
}
