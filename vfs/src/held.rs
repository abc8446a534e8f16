//! The file of a database that nobody has open yet in this process, held for oneself: to see what it is, and to change it, before a connection
//! reads it.
//!
//! Owns the lock, and the rule that the file is never opened by path (see `base`). The bytes that are written are the caller's, and so is what a
//! crash in between leaves behind.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use libsqlite3_sys as ffi;

use crate::api::SqliteApi;
use crate::base::{BaseFile, BaseVfs, Code};
use crate::capture::Fingerprint;
use crate::types::{Position, Salts};
use crate::wal::{HEADER_BYTES, Scan, WalHeader, frame_offset};

/// Bytes of a WAL that are read at a time, at least one frame.
const READ_BYTES: usize = 256 * 1024;

/// A database's file on the VFS underneath. Not open.
#[derive(Debug, Clone)]
pub struct DatabaseFile {
    vfs: BaseVfs,
    c_path: CString,
    path: PathBuf,
    parameters: Vec<(String, String)>,
}

/// Why a file is not held.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// A connection of another process, or of another VFS in this one, has a lock on it. With a WAL any connection has one that has ever read.
    #[error("another connection has it open")]
    InUse,
    /// Something else, in words.
    #[error("{0}")]
    Failed(String),
}

impl DatabaseFile {
    pub(crate) fn new(vfs: BaseVfs, path: &CStr, parameters: &[(String, String)]) -> DatabaseFile {
        DatabaseFile {
            vfs,
            path: PathBuf::from(OsStr::from_bytes(path.to_bytes())),
            c_path: path.to_owned(),
            parameters: parameters.to_vec(),
        }
    }

    /// Whether what the VFS reads and writes is what is on the disk, so that the WAL may be read and written by its name. True of SQLite's own VFSes
    /// for Unix only: another one may encrypt.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        // SAFETY: a registered VFS has a name.
        let name = unsafe { CStr::from_ptr((*self.vfs.raw).zName) };
        name.to_bytes().starts_with(b"unix")
    }

    /// A file on SQLite's default VFS. `None` when the path has a NUL in it, or there is no such VFS.
    #[must_use]
    pub fn on_default_vfs(api: SqliteApi, path: &Path) -> Option<DatabaseFile> {
        let raw = api.vfs_find(None);
        let path = CString::new(path.as_os_str().as_bytes()).ok()?;
        (!raw.is_null()).then(|| DatabaseFile::new(BaseVfs { raw, api }, &path, &[]))
    }

    /// Where it is: absolute, if SQLite gave the name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a journal stands beside it that SQLite will play back, unless somebody is writing it.
    #[must_use]
    pub fn has_hot_journal(&self) -> bool {
        self.vfs.journal_is_hot(&self.c_path)
    }

    /// Takes the EXCLUSIVE lock. Nobody reads or writes the database from then on. Does not wait.
    ///
    /// # Errors
    ///
    /// See [`HoldError`].
    pub fn hold(&self) -> Result<Held, HoldError> {
        let failed = |what: &'static str| {
            move |Code(code): Code| match code & 0xff {
                ffi::SQLITE_BUSY => HoldError::InUse,
                _ => HoldError::Failed(format!("{what} failed with SQLite code {code}")),
            }
        };
        let file = self.vfs.open_database(&self.c_path, &self.parameters);
        let mut held = Held {
            file: file.map_err(failed("opening it"))?,
            path: self.path.clone(),
            vfs: self.vfs,
        };
        held.file.lock_shared().map_err(failed("locking it"))?;
        held.file.lock_exclusive().map_err(failed("locking it"))?;
        // SAFETY: open, and used by this thread alone.
        if unsafe { held.file.as_ref().has_moved() } {
            return Err(HoldError::Failed("it was replaced just now".to_owned()));
        }
        Ok(held)
    }
}

/// A database file with the EXCLUSIVE lock on it. Dropped, it is let go.
#[derive(Debug)]
pub struct Held {
    file: BaseFile,
    path: PathBuf,
    vfs: BaseVfs,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Closing may leave the lock to another handle of this process.
        self.file.unlock();
    }
}

fn io_error(what: &'static str) -> impl Fn(Code) -> io::Error {
    move |Code(code)| io::Error::other(format!("{what} failed with SQLite code {code}"))
}

impl Held {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file.
    ///
    /// # Errors
    ///
    /// What the VFS says.
    pub fn size(&mut self) -> io::Result<u64> {
        self.file.size().map_err(io_error("asking for its size"))
    }

    /// Reads; what is behind the end of the file is zeros.
    ///
    /// # Errors
    ///
    /// What the VFS says.
    pub fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read(buffer, offset).map(drop).map_err(io_error("reading it"))
    }

    /// Writes into the file itself: to be done only where a WAL beside it already says the same.
    ///
    /// # Errors
    ///
    /// What the VFS says. Nobody knows then what was written.
    pub fn write(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write(bytes, offset).map_err(io_error("writing it"))
    }

    /// Cuts the file off, with the same condition.
    ///
    /// # Errors
    ///
    /// What the VFS says.
    pub fn truncate(&mut self, size: u64) -> io::Result<()> {
        self.file.truncate(size).map_err(io_error("truncating it"))
    }

    /// Makes durable what was written.
    ///
    /// # Errors
    ///
    /// What the VFS says.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync().map_err(io_error("syncing it"))
    }

    /// Gives the file a time stamp that no write gives. Returns by what it will be known; `None` where that is not possible.
    #[must_use]
    pub fn set_apart(&self) -> Option<Fingerprint> {
        Fingerprint::of(&self.path)?.set_apart(&self.path)
    }

    /// Salts for a WAL, from the source from which SQLite takes them.
    #[must_use]
    pub fn random_salts(&self) -> Salts {
        Salts(self.vfs.random(), self.vfs.random())
    }
}

/// What a WAL beside a database has in it, by its own bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WalBeside {
    /// Those of its header. `None` when there is no WAL that SQLite would read.
    pub salts: Option<Salts>,
    /// Behind its last commit, up to which recovery would go. `None` when nothing was committed in it.
    pub end: Option<Position>,
}

/// The salts of the WAL beside a database; `None` when there is none that SQLite would read.
///
/// # Errors
///
/// When it cannot be read.
pub fn wal_salts(database: &Path) -> io::Result<Option<Salts>> {
    Ok(open_wal(database)?.map(|(_, header)| header.salts))
}

/// Reads the WAL beside a database to its end. As long as another connection has the database open, it may go on meanwhile.
///
/// # Errors
///
/// When it cannot be read.
pub fn wal_beside(database: &Path) -> io::Result<WalBeside> {
    let Some((file, header)) = open_wal(database)? else {
        return Ok(WalBeside::default());
    };
    let mut scan = Scan::from_header(&header);
    let frame_bytes = scan.frame_bytes();
    let mut buffer = vec![0; (READ_BYTES / frame_bytes).max(1) * frame_bytes];
    let mut end = None;
    'wal: loop {
        let next = scan.position().frame.saturating_add(1);
        let got = read_up_to(&file, &mut buffer, frame_offset(next, header.page_size))?;
        for frame in buffer[..got].chunks_exact(frame_bytes) {
            match scan.step(frame) {
                Ok((_, _, commit)) => end = commit.map(|commit| commit.position).or(end),
                Err(_) => break 'wal,
            }
        }
        if got < buffer.len() {
            break;
        }
    }
    Ok(WalBeside {
        salts: Some(header.salts),
        end,
    })
}

/// Where the WAL of a database is.
#[must_use]
pub fn wal_file(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// A WAL carries no locks, so it may be opened by path.
fn open_wal(database: &Path) -> io::Result<Option<(File, WalHeader)>> {
    let file = match File::open(wal_file(database)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = [0; HEADER_BYTES];
    let whole = read_up_to(&file, &mut bytes, 0)? == HEADER_BYTES;
    let header = whole.then(|| WalHeader::decode(&bytes)).flatten();
    Ok(header.map(|header| (file, header)))
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(read) => got += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}
