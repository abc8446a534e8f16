//! The present state of a database that others may be using, page by page: read by the rules of any reader, and for no longer than the disk takes.
//!
//! Owns the read transaction and what is read under it. SQLite takes the locks, and reads no page: that a state is the replica's is nothing that SQLite's view of
//! it could tell. Nothing is written to the database or its WAL, and nothing is checkpointed at the end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use replvfs::restore::{Digests, HEADER_BYTES};
use replvfs::verify::against::{Local, LocalWal};
use replvfs_vfs::resume::Fingerprint;
use replvfs_vfs::types::{PageSize, Pgno, Position};
use replvfs_vfs::wal::{FRAME_HEADER_BYTES, FrameHeader, HEADER_BYTES as WAL_HEADER_BYTES, IndexHeader, WalHeader};
use replvfs_vfs::wal::{frame_bytes, frame_offset};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

/// Bytes that are read at a time, at least a page.
const READ_BYTES: usize = 1 << 20;

/// Bytes of one copy of the wal-index header.
const INDEX_HEADER_BYTES: usize = 48;

/// Where `nBackfill` stands, behind both copies.
const BACKFILLED: u64 = 2 * INDEX_HEADER_BYTES as u64;

/// Read transactions that are begun until no commit falls beside one of them, and readings of a file until none is written meanwhile.
const ATTEMPTS: u32 = 2_000;

/// A file that was written longer ago gets another time stamp by the next write.
const SETTLED: Duration = Duration::from_millis(50);

/// Reads all pages of the database, waiting for its locks up to `timeout`.
pub(super) fn read(path: &Path, timeout: Duration) -> Result<Local, String> {
    for _ in 0..ATTEMPTS {
        let header = header(path)?;
        // A file in WAL mode without a WAL is in use by nobody; SQLite would make a WAL, and leave it there.
        let quiet = header[18..20] == [2, 2] && !beside(path, "-wal").exists();
        let read = if quiet {
            file_alone(path)
        } else {
            Reading::begin(path, timeout)?.local()
        };
        match read {
            Ok(Some(local)) => return Ok(local),
            Ok(None) => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(format!("it cannot be read: {error}")),
        }
    }
    Err("it changes all the time without a lock".to_owned())
}

fn header(path: &Path) -> Result<[u8; HEADER_BYTES], String> {
    let mut header = [0; HEADER_BYTES];
    let file = File::open(path).map_err(|error| format!("it cannot be opened: {error}"))?;
    match file.read_exact_at(&mut header, 0) {
        Ok(()) if header.starts_with(b"SQLite format 3\0") => Ok(header),
        Ok(()) => Err("it is no SQLite database".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err("it is empty, or no SQLite database".to_owned())
        }
        Err(error) => Err(format!("it cannot be read: {error}")),
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// `None` when somebody came and wrote it.
fn file_alone(path: &Path) -> io::Result<Option<Local>> {
    let before = Fingerprint::of(path);
    let database = File::open(path)?;
    let written = database.metadata()?.modified()?;
    // One that lies ahead of the clock is as good as an old one.
    if SystemTime::now().duration_since(written).is_ok_and(|age| age < SETTLED) {
        return Ok(None);
    }
    let (digests, page_count) = Pages::of(&database)?.digests()?;
    let same = before.is_some() && before == Fingerprint::of(path);
    Ok(same.then_some(Local {
        digests,
        page_count,
        wal: None,
        file: before,
    }))
}

/// A read transaction, and the files that are read under it. They are closed last: closing any of them lets go of all locks that this process has on it.
struct Reading {
    connection: Connection,
    database: File,
    wal: Option<Wal>,
    path: PathBuf,
}

/// The WAL, and its index as it was when the transaction began.
struct Wal {
    file: File,
    index: IndexHeader,
    /// All of its frames are in the database file too.
    is_backfilled: bool,
    _shared_memory: File,
}

impl Reading {
    fn begin(path: &Path, timeout: Duration) -> Result<Reading, String> {
        let sqlite = |error: rusqlite::Error| format!("SQLite cannot read it: {error}");
        let opened = |error: io::Error| format!("it cannot be opened: {error}");
        let database = File::open(path).map_err(opened)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(sqlite)?;
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(sqlite)?;
        connection.busy_timeout(timeout).map_err(sqlite)?;
        let mut reading = Reading {
            connection,
            database,
            wal: None,
            path: path.to_owned(),
        };
        reading.begin_transaction().map_err(sqlite)?;
        if reading.is_wal().map_err(opened)? {
            reading.wal = Some(reading.settle_in_wal()?);
        }
        Ok(reading)
    }

    /// Reads the first page's lock, and none of the schema, which may be damaged.
    fn begin_transaction(&self) -> rusqlite::Result<()> {
        self.connection.execute_batch("BEGIN")?;
        self.connection.query_row("PRAGMA schema_version", [], |_| Ok(()))
    }

    fn is_wal(&self) -> io::Result<bool> {
        let mut format = [0; 2];
        self.database.read_exact_at(&mut format, 18)?;
        let wal = beside(&self.path, "-wal").exists();
        Ok((format == [2, 2] || wal) && beside(&self.path, "-shm").exists())
    }

    /// Begins again until the index says the same before and after: then it is that of the transaction.
    fn settle_in_wal(&self) -> Result<Wal, String> {
        let opened = |error: io::Error| format!("its WAL cannot be opened: {error}");
        let sqlite = |error: rusqlite::Error| format!("SQLite cannot read it: {error}");
        let shared_memory = File::open(beside(&self.path, "-shm")).map_err(opened)?;
        let file = File::open(beside(&self.path, "-wal")).map_err(opened)?;
        for attempt in 0..ATTEMPTS {
            self.connection.execute_batch("ROLLBACK").map_err(sqlite)?;
            let before = index_header(&shared_memory);
            self.begin_transaction().map_err(sqlite)?;
            let after = index_header(&shared_memory);
            let index = after
                .filter(|_| before == after)
                .and_then(|bytes| IndexHeader::decode(&bytes));
            if let Some(index) = index {
                let mut backfilled = [0; 4];
                shared_memory
                    .read_exact_at(&mut backfilled, BACKFILLED)
                    .map_err(opened)?;
                return Ok(Wal {
                    file,
                    index,
                    // If not, the transaction began with a mark of its own, which keeps the frames in the WAL.
                    is_backfilled: u32::from_ne_bytes(backfilled) >= index.position.frame,
                    _shared_memory: shared_memory,
                });
            }
            if attempt % 16 == 15 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Err("it is written all the time: no moment between two commits was found".to_owned())
    }

    /// Everything that is in the transaction, and the end of it.
    fn local(self) -> io::Result<Option<Local>> {
        let mut pages = Pages::of(&self.database)?;
        let mut place = None;
        if let Some(wal) = &self.wal {
            if let Some(page_size) = wal.index.page_size {
                pages.page_size = page_size;
            }
            let (commits, newest) = frames(wal, pages.page_size)?;
            if wal.index.page_count > 0 {
                pages.count = wal.index.page_count;
            }
            if !wal.is_backfilled {
                pages.newer = Some((&wal.file, newest));
            }
            let position = wal.index.position;
            place = Some(LocalWal { position, commits });
        }
        let (digests, page_count) = pages.digests()?;
        Ok(Some(Local {
            digests,
            page_count,
            wal: place,
            file: Fingerprint::of(&self.path),
        }))
    }
}

/// Both copies are the same when nobody is writing them.
fn index_header(shared_memory: &File) -> Option<[u8; INDEX_HEADER_BYTES]> {
    let mut copies = [[0; INDEX_HEADER_BYTES]; 2];
    for (at, copy) in (0u64..).zip(&mut copies) {
        shared_memory.read_exact_at(copy, at * INDEX_HEADER_BYTES as u64).ok()?;
    }
    let [first, second] = copies;
    (first == second).then_some(first)
}

/// The page numbers and the frames that have them, ascending, and of each page the newest frame only.
type Newest = Vec<(u32, u32)>;

/// The ends of the transactions in the WAL, and what its frames have. A WAL whose frames are all in the database file may have been restarted since:
/// then there are none.
fn frames(wal: &Wal, page_size: PageSize) -> io::Result<(Vec<Position>, Newest)> {
    let (salts, last) = (wal.index.position.salts, wal.index.position.frame);
    let (mut commits, mut newest) = (Vec::new(), Vec::new());
    let mut header = [0; WAL_HEADER_BYTES];
    let restarted = || match wal.is_backfilled {
        true => Ok((Vec::new(), Vec::new())),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its WAL is not that of its index",
        )),
    };
    if last == 0 {
        return Ok((commits, newest));
    }
    wal.file.read_exact_at(&mut header, 0)?;
    if WalHeader::decode(&header).is_none_or(|header| header.salts != salts || header.page_size != page_size) {
        return restarted();
    }
    for frame in 1..=last {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        wal.file.read_exact_at(&mut bytes, frame_offset(frame, page_size))?;
        let Some(header) = FrameHeader::decode(&bytes).filter(|header| header.salts == salts) else {
            return restarted();
        };
        newest.push((header.pgno.get(), frame));
        if header.commit_page_count > 0 {
            let checksum = header.checksum;
            commits.push(Position { salts, frame, checksum });
        }
    }
    if commits.last() != Some(&wal.index.position) {
        return restarted();
    }
    newest.sort_unstable_by_key(|(page, frame)| (*page, std::cmp::Reverse(*frame)));
    newest.dedup_by_key(|(page, _)| *page);
    Ok((commits, newest))
}

/// Where the pages are.
struct Pages<'a> {
    database: &'a File,
    page_size: PageSize,
    count: u32,
    newer: Option<(&'a File, Newest)>,
}

impl Pages<'_> {
    /// Those of the file, as it says itself.
    fn of(database: &File) -> io::Result<Pages<'_>> {
        let invalid = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut field = [0; 2];
        database.read_exact_at(&mut field, 16)?;
        let page_size = PageSize::from_header_field(u16::from_be_bytes(field));
        let page_size = page_size.ok_or_else(|| invalid("its header names no page size"))?;
        let count = database.metadata()?.len().div_ceil(page_size.get().into());
        Ok(Pages {
            database,
            page_size,
            count: u32::try_from(count).map_err(|_| invalid("it has too many pages"))?,
            newer: None,
        })
    }

    /// A piece of the file after another, each with what is newer in the WAL put over it.
    fn digests(&self) -> io::Result<(Digests, u32)> {
        let digests = Digests::new(self.page_size)?;
        digests.set_page_count(self.count)?;
        let bytes = self.page_size.as_usize();
        let at_once = (READ_BYTES / bytes).max(1) as u32; // READ_BYTES is small
        let mut buffer = vec![0; at_once as usize * bytes];
        let mut newer = self
            .newer
            .iter()
            .flat_map(|(file, newest)| newest.iter().map(move |at| (*file, *at)));
        let mut next = newer.next();
        let mut done = 0;
        while let Some(first) = Pgno::new(done + 1).filter(|first| first.get() <= self.count) {
            let count = at_once.min(self.count - done);
            let pages = &mut buffer[..count as usize * bytes];
            read_or_zeros(self.database, pages, self.page_size.offset_of(first))?;
            while let Some((wal, (page, frame))) = next.filter(|(_, (page, _))| *page <= done + count) {
                let at = (page - 1 - done) as usize * bytes;
                let offset = frame_offset(frame, self.page_size) + frame_bytes(self.page_size) - bytes as u64;
                wal.read_exact_at(&mut pages[at..at + bytes], offset)?;
                next = newer.next();
            }
            digests.put(first, pages)?;
            done += count;
        }
        Ok((digests, self.count))
    }
}

/// What is behind the end of the file is zeros.
fn read_or_zeros(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => {
                buffer.fill(0);
                return Ok(());
            }
            Ok(read) => {
                buffer = &mut buffer[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
