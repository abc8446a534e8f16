//! The VFS underneath: files of our own, opened through it, and nothing of it that is unsafe to hold.
//!
//! The database and its wal-index are never opened by path: closing any descriptor of them would drop all POSIX locks that
//! this process holds on the file (<https://www.sqlite.org/howtocorrupt.html>, 2.2). The base VFS knows how to avoid that.

use std::ffi::{CStr, CString, c_int, c_void};
use std::sync::atomic::{AtomicU32, Ordering, fence};

use libsqlite3_sys as ffi;

use crate::api::{Filename, SqliteApi};
use crate::wal::{
    CHECKPOINT_INFO, CHECKPOINT_INFO_ATTEMPTED, CHECKPOINT_INFO_READ_MARKS, INDEX_HEADER_BYTES, IndexHeader,
    READ_MARK_NOT_USED,
};

/// Bytes of a wal-index region (`WALINDEX_PGSZ`).
pub(crate) const REGION_BYTES: c_int = 32_768;
/// Slots of `xShmLock`: the write lock, the checkpoint lock, and the first of the read locks.
pub(crate) const WRITE_SLOT: c_int = 0;
pub(crate) const CHECKPOINT_SLOT: c_int = 1;
pub(crate) const FIRST_READ_SLOT: c_int = 3;

/// A SQLite result code that is not `SQLITE_OK`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code(pub(crate) c_int);

fn check(code: c_int) -> Result<(), Code> {
    if code == ffi::SQLITE_OK {
        Ok(())
    } else {
        Err(Code(code))
    }
}

/// The base VFS. It lives as long as the process, as SQLite demands of a VFS that others wrap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BaseVfs {
    pub(crate) raw: *mut ffi::sqlite3_vfs,
    pub(crate) api: SqliteApi,
}

// SAFETY: a registered VFS is immutable but for the list link that SQLite guards, and its methods are thread-safe.
unsafe impl Send for BaseVfs {}
// SAFETY: as above.
unsafe impl Sync for BaseVfs {}

impl BaseVfs {
    /// Opens the database a second time, as a handle of our own that shares this process's locks.
    pub(crate) fn open_database(&self, path: &CStr, parameters: &[(String, String)]) -> Result<BaseFile, Code> {
        let flags = ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_MAIN_DB;
        self.open(path, parameters, flags)
    }

    /// Opens the database's WAL for reading. A WAL carries no locks.
    pub(crate) fn open_wal(&self, database: &CStr) -> Result<BaseFile, Code> {
        let path = with_suffix(database, b"-wal")?;
        self.open(&path, &[], ffi::SQLITE_OPEN_READONLY | ffi::SQLITE_OPEN_WAL)
    }

    /// Whether a journal stands beside the database that somebody still needs. One that was truncated, or whose header is zeros, is of a
    /// transaction that is committed (`hasHotJournal`); when nobody is writing, any other is of one that has to be rolled back. What cannot be
    /// read may be needed.
    pub(crate) fn journal_is_hot(&self, database: &CStr) -> bool {
        let Ok(path) = with_suffix(database, b"-journal") else {
            return true;
        };
        let mut exists = 0;
        // SAFETY: raw is a registered VFS, path a string; exists has room for the answer.
        let asked = unsafe {
            (*self.raw).xAccess.map_or(ffi::SQLITE_OK, |access| {
                access(self.raw, path.as_ptr(), ffi::SQLITE_ACCESS_EXISTS, &raw mut exists)
            })
        };
        if asked == ffi::SQLITE_OK && exists == 0 {
            return false;
        }
        let flags = ffi::SQLITE_OPEN_READONLY | ffi::SQLITE_OPEN_MAIN_JOURNAL;
        let Ok(journal) = self.open(&path, &[], flags) else {
            return true;
        };
        let mut first = [0];
        // SAFETY: just opened, and used here only.
        match unsafe { journal.as_ref().read(&mut first, 0) } {
            Ok(whole) => whole && first != [0],
            Err(_) => true,
        }
    }

    /// Syncs the journal beside the database, if there is one. `xAccess` says of an empty one that it is not there.
    pub(crate) fn sync_journal(&self, database: &CStr) -> Result<(), Code> {
        let path = with_suffix(database, b"-journal")?;
        match self.open(&path, &[], ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_MAIN_JOURNAL) {
            // SAFETY: just opened, and used here only.
            Ok(journal) => unsafe { journal.as_ref().sync() },
            Err(Code(code)) if code & 0xff == ffi::SQLITE_CANTOPEN => Ok(()),
            Err(code) => Err(code),
        }
    }

    /// Random bytes, as SQLite takes them for salts.
    pub(crate) fn random(&self) -> u32 {
        let mut bytes = [0_u8; 4];
        // SAFETY: raw is registered; bytes has room for the four that are asked for.
        unsafe {
            if let Some(randomness) = (*self.raw).xRandomness {
                randomness(self.raw, 4, bytes.as_mut_ptr().cast());
            }
        }
        u32::from_ne_bytes(bytes)
    }

    fn open(&self, path: &CStr, parameters: &[(String, String)], flags: c_int) -> Result<BaseFile, Code> {
        let name = self.api.filename(path, parameters).ok_or(Code(ffi::SQLITE_NOMEM))?;
        // SAFETY: raw is a registered VFS.
        let (size, open) = unsafe { ((*self.raw).szOsFile, (*self.raw).xOpen) };
        let open = open.ok_or(Code(ffi::SQLITE_CANTOPEN))?;
        let words = usize::try_from(size).unwrap_or(0).div_ceil(8).max(1);
        let mut memory = vec![0_u64; words];
        let raw = memory.as_mut_ptr().cast::<ffi::sqlite3_file>();
        let mut out_flags = 0;
        // SAFETY: memory is zeroed, aligned to 8 and szOsFile bytes long; name is a sqlite3_filename that outlives the file.
        let code = unsafe { open(self.raw, name.as_ptr(), raw, flags, &raw mut out_flags) };
        let file = BaseFile {
            raw,
            _memory: memory,
            _name: name,
        };
        check(code)?;
        Ok(file)
    }
}

fn with_suffix(database: &CStr, suffix: &[u8]) -> Result<CString, Code> {
    let path = [database.to_bytes(), suffix].concat();
    CString::new(path).map_err(|_| Code(ffi::SQLITE_CANTOPEN))
}

/// A file of our own on the base VFS. Closed, with all its locks, when dropped.
pub(crate) struct BaseFile {
    raw: *mut ffi::sqlite3_file,
    /// No box: of what is in one, no other pointer may be used once it was moved.
    _memory: Vec<u64>,
    /// The base VFS keeps the pointer.
    _name: Filename,
}

// SAFETY: a sqlite3_file may move between threads; it is used by one at a time, since every method that changes it takes &mut.
unsafe impl Send for BaseFile {}

impl std::fmt::Debug for BaseFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BaseFile")
    }
}

impl Drop for BaseFile {
    fn drop(&mut self) {
        // SAFETY: raw points into our memory; pMethods is null when the open failed, and then there is nothing to close.
        unsafe {
            if let Some(close) = (*self.raw).pMethods.as_ref().and_then(|methods| methods.xClose) {
                close(self.raw);
            }
        }
    }
}

impl BaseFile {
    /// Not to be used after it is dropped, nor by two threads at once.
    pub(crate) fn as_ref(&self) -> FileRef {
        FileRef(self.raw)
    }

    /// `xShmBarrier`.
    pub(crate) fn shm_barrier(&mut self) {
        // SAFETY: raw is open and its wal-index is mapped.
        unsafe {
            if let Some(barrier) = (*(*self.raw).pMethods).xShmBarrier {
                barrier(self.raw);
            }
        }
    }

    /// As [`FileRef::read`].
    pub(crate) fn read(&mut self, buffer: &mut [u8], offset: u64) -> Result<bool, Code> {
        // SAFETY: raw is open as long as self lives.
        unsafe { self.as_ref().read(buffer, offset) }
    }

    /// Bytes of the file.
    pub(crate) fn size(&mut self) -> Result<u64, Code> {
        // SAFETY: as in read.
        unsafe { self.as_ref().size() }
    }

    /// `xLock(SQLITE_LOCK_SHARED)`.
    pub(crate) fn lock_shared(&mut self) -> Result<(), Code> {
        // SAFETY: raw is open as long as self lives.
        unsafe { self.as_ref().lock(ffi::SQLITE_LOCK_SHARED) }
    }

    /// `xUnlock(SQLITE_LOCK_NONE)`.
    pub(crate) fn unlock(&mut self) {
        // SAFETY: raw is open as long as self lives.
        unsafe { self.as_ref().unlock(ffi::SQLITE_LOCK_NONE) }
    }

    /// `xLock(SQLITE_LOCK_EXCLUSIVE)`, with SHARED held.
    pub(crate) fn lock_exclusive(&mut self) -> Result<(), Code> {
        // SAFETY: raw is open as long as self lives.
        unsafe { self.as_ref().lock(ffi::SQLITE_LOCK_EXCLUSIVE) }
    }

    /// `xWrite`.
    pub(crate) fn write(&mut self, bytes: &[u8], offset: u64) -> Result<(), Code> {
        // SAFETY: raw is open as long as self lives.
        unsafe { self.as_ref().write(bytes, offset) }
    }

    /// `xTruncate`.
    pub(crate) fn truncate(&mut self, size: u64) -> Result<(), Code> {
        let size = i64::try_from(size).map_err(|_| Code(ffi::SQLITE_IOERR_TRUNCATE))?;
        // SAFETY: raw is open as long as self lives.
        unsafe {
            let truncate = (*(*self.raw).pMethods)
                .xTruncate
                .ok_or(Code(ffi::SQLITE_IOERR_TRUNCATE))?;
            check(truncate(self.raw, size))
        }
    }

    /// `xSync`, as for `synchronous=FULL`.
    pub(crate) fn sync(&mut self) -> Result<(), Code> {
        // SAFETY: raw is open as long as self lives.
        unsafe { self.as_ref().sync() }
    }

    /// Maps the first region of the wal-index. `None` when there is none.
    pub(crate) fn map_index(&mut self) -> Result<Option<IndexRegion>, Code> {
        let mut region: *mut c_void = std::ptr::null_mut();
        // SAFETY: raw is open, and a VFS without shared memory says so by iVersion.
        unsafe {
            let methods = &*(*self.raw).pMethods;
            if methods.iVersion < 2 {
                return Ok(None);
            }
            let map = methods.xShmMap.ok_or(Code(ffi::SQLITE_IOERR_SHMMAP))?;
            check(map(self.raw, 0, REGION_BYTES, 0, &raw mut region))?;
        }
        // SAFETY: the base VFS mapped REGION_BYTES there, until unmap_index.
        Ok(unsafe { IndexRegion::new(region) })
    }

    /// Lets the wal-index go, without deleting it.
    pub(crate) fn unmap_index(&mut self) {
        // SAFETY: raw is open; callers forget their IndexRegion before.
        unsafe {
            if let Some(unmap) = (*(*self.raw).pMethods).xShmUnmap {
                unmap(self.raw, 0);
            }
        }
    }

    /// `xShmLock` on one slot.
    pub(crate) fn shm_lock(&mut self, slot: c_int, flags: c_int) -> Result<(), Code> {
        self.shm_lock_many(slot, 1, flags)
    }

    /// `xShmLock` on consecutive slots.
    pub(crate) fn shm_lock_many(&mut self, slot: c_int, count: c_int, flags: c_int) -> Result<(), Code> {
        // SAFETY: raw is open and its wal-index is mapped.
        unsafe {
            let lock = (*(*self.raw).pMethods)
                .xShmLock
                .ok_or(Code(ffi::SQLITE_IOERR_SHMLOCK))?;
            check(lock(self.raw, slot, count, flags))
        }
    }
}

/// A file of the base VFS that a connection owns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileRef(pub(crate) *mut ffi::sqlite3_file);

impl FileRef {
    /// Reads `buffer.len()` bytes; what is behind the end of the file reads as zeros, and makes the answer `false`. Bytes that are
    /// missing where the file has some are an error: SQLite would see a damaged page there, but an image of zeros looks whole.
    ///
    /// # Safety
    ///
    /// The file is open, and used by this thread alone.
    pub(crate) unsafe fn read(self, buffer: &mut [u8], offset: u64) -> Result<bool, Code> {
        // SAFETY: as promised by the caller.
        unsafe {
            match self.read_once(buffer, offset) {
                Err(Code(ffi::SQLITE_IOERR_SHORT_READ)) => {}
                result => return result.map(|()| true),
            }
            let behind = self.size()?.saturating_sub(offset);
            let there = usize::try_from(behind).map_or(buffer.len(), |behind| behind.min(buffer.len()));
            if there > 0 {
                // Unless it has grown just now.
                self.read_once(&mut buffer[..there], offset)?;
            }
            buffer[there..].fill(0);
            Ok(there == buffer.len())
        }
    }

    /// # Safety
    ///
    /// As for [`FileRef::read`].
    unsafe fn read_once(self, buffer: &mut [u8], offset: u64) -> Result<(), Code> {
        let amount = c_int::try_from(buffer.len()).map_err(|_| Code(ffi::SQLITE_IOERR_READ))?;
        let offset = i64::try_from(offset).map_err(|_| Code(ffi::SQLITE_IOERR_READ))?;
        // SAFETY: the file is open (caller), and buffer has room for amount bytes.
        unsafe {
            let read = (*(*self.0).pMethods).xRead.ok_or(Code(ffi::SQLITE_IOERR_READ))?;
            check(read(self.0, buffer.as_mut_ptr().cast(), amount, offset))
        }
    }

    /// `xWrite`.
    ///
    /// # Safety
    ///
    /// As for [`FileRef::read`].
    pub(crate) unsafe fn write(self, bytes: &[u8], offset: u64) -> Result<(), Code> {
        let amount = c_int::try_from(bytes.len()).map_err(|_| Code(ffi::SQLITE_IOERR_WRITE))?;
        let offset = i64::try_from(offset).map_err(|_| Code(ffi::SQLITE_IOERR_WRITE))?;
        // SAFETY: the file is open (caller), and bytes has amount of them.
        unsafe {
            let write = (*(*self.0).pMethods).xWrite.ok_or(Code(ffi::SQLITE_IOERR_WRITE))?;
            check(write(self.0, bytes.as_ptr().cast(), amount, offset))
        }
    }

    /// Whether a write changes nothing beside it, also in a power failure (`SQLITE_IOCAP_POWERSAFE_OVERWRITE`).
    ///
    /// # Safety
    ///
    /// As for [`FileRef::read`].
    pub(crate) unsafe fn overwrites_safely(self) -> bool {
        // SAFETY: the file is open (caller).
        let has = unsafe {
            (*(*self.0).pMethods)
                .xDeviceCharacteristics
                .map_or(0, |has| has(self.0))
        };
        has & ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE != 0
    }

    /// `xSync`, as for `synchronous=FULL`.
    ///
    /// # Safety
    ///
    /// As for [`FileRef::read`].
    pub(crate) unsafe fn sync(self) -> Result<(), Code> {
        // SAFETY: the file is open (caller).
        unsafe {
            let sync = (*(*self.0).pMethods).xSync.ok_or(Code(ffi::SQLITE_IOERR_FSYNC))?;
            check(sync(self.0, ffi::SQLITE_SYNC_NORMAL))
        }
    }

    /// `xLock`.
    ///
    /// # Safety
    ///
    /// As for [`FileRef::read`].
    pub(crate) unsafe fn lock(self, level: c_int) -> Result<(), Code> {
        // SAFETY: the file is open (caller).
        unsafe {
            let lock = (*(*self.0).pMethods).xLock.ok_or(Code(ffi::SQLITE_IOERR_LOCK))?;
            check(lock(self.0, level))
        }
    }

    /// `xUnlock`.
    ///
    /// # Safety
    ///
    /// As for [`FileRef::read`].
    pub(crate) unsafe fn unlock(self, level: c_int) {
        // SAFETY: the file is open (caller).
        unsafe {
            if let Some(unlock) = (*(*self.0).pMethods).xUnlock {
                unlock(self.0, level);
            }
        }
    }

    /// Whether anybody has RESERVED or more (`xCheckReservedLock`).
    ///
    /// # Safety
    ///
    /// As for [`FileRef::read`].
    pub(crate) unsafe fn is_reserved(self) -> bool {
        let mut reserved: c_int = 0;
        // SAFETY: the file is open (caller); the method writes an int.
        unsafe {
            if let Some(check_reserved) = (*(*self.0).pMethods).xCheckReservedLock {
                check_reserved(self.0, &raw mut reserved);
            }
        }
        reserved != 0
    }

    /// Whether the file's name leads to another file by now, or to none (`SQLITE_FCNTL_HAS_MOVED`).
    ///
    /// # Safety
    ///
    /// As for [`FileRef::read`].
    pub(crate) unsafe fn has_moved(self) -> bool {
        let mut moved: c_int = 0;
        // SAFETY: the file is open (caller); the control's argument is an int. A VFS that does not know the control leaves it.
        unsafe {
            if let Some(control) = (*(*self.0).pMethods).xFileControl {
                control(self.0, ffi::SQLITE_FCNTL_HAS_MOVED, (&raw mut moved).cast());
            }
        }
        moved != 0
    }

    /// Bytes of the file.
    ///
    /// # Safety
    ///
    /// As for [`FileRef::read`].
    pub(crate) unsafe fn size(self) -> Result<u64, Code> {
        let mut size = 0;
        // SAFETY: the file is open (caller).
        unsafe {
            let file_size = (*(*self.0).pMethods).xFileSize.ok_or(Code(ffi::SQLITE_IOERR_FSTAT))?;
            check(file_size(self.0, &raw mut size))?;
        }
        u64::try_from(size).map_err(|_| Code(ffi::SQLITE_IOERR_FSTAT))
    }
}

/// The first region of a wal-index, as shared memory: other threads and processes write it at any time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IndexRegion(*const AtomicU32);

// SAFETY: the region is only touched by atomic operations, and stays mapped as long as its file's mapping.
unsafe impl Send for IndexRegion {}

impl IndexRegion {
    /// `None` for a null pointer.
    ///
    /// # Safety
    ///
    /// `region` is what `xShmMap` gave for region 0, and the result is not used after the matching `xShmUnmap`.
    pub(crate) unsafe fn new(region: *mut c_void) -> Option<IndexRegion> {
        (!region.is_null() && region.cast::<AtomicU32>().is_aligned()).then(|| IndexRegion(region.cast()))
    }

    /// Whether both are of one wal-index: a process maps it once, whoever opens the database.
    pub(crate) fn is(&self, other: IndexRegion) -> bool {
        std::ptr::eq(self.0, other.0)
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        debug_assert!(at.is_multiple_of(4) && at < REGION_BYTES as usize);
        // SAFETY: the region is REGION_BYTES long and aligned (new), and at is a multiple of 4 inside it.
        unsafe { &*self.0.add(at / 4) }
    }

    /// The bytes of one copy of the header: 0 is what readers take first, 1 what writers write first.
    pub(crate) fn header_bytes(&self, copy: usize) -> [u8; INDEX_HEADER_BYTES] {
        let mut bytes = [0; INDEX_HEADER_BYTES];
        let (words, _) = bytes.as_chunks_mut::<4>();
        for (index, word) in words.iter_mut().enumerate() {
            let at = copy * INDEX_HEADER_BYTES + index * 4;
            *word = self.word(at).load(Ordering::Relaxed).to_ne_bytes();
        }
        bytes
    }

    /// The header, if both copies agree and their checksum is right (`walIndexTryHdr`).
    pub(crate) fn header(&self) -> Option<IndexHeader> {
        let first = self.header_bytes(0);
        fence(Ordering::SeqCst);
        let second = self.header_bytes(1);
        (first == second).then(|| IndexHeader::decode(&first))?
    }

    /// `nBackfill`: frames that are in the database file.
    pub(crate) fn backfilled(&self) -> u32 {
        self.word(CHECKPOINT_INFO).load(Ordering::Acquire)
    }

    /// Says that nothing is in the WAL (`walRestartHdr`). `file` is the handle that the region belongs to. Only under the WRITE
    /// lock and the EXCLUSIVE locks of all read slots but the first, with everything backfilled.
    pub(crate) fn restart(&self, file: &mut BaseFile, header: &[u8; INDEX_HEADER_BYTES]) {
        self.set_header_bytes(1, header);
        fence(Ordering::SeqCst);
        file.shm_barrier();
        self.set_header_bytes(0, header);
        self.word(CHECKPOINT_INFO).store(0, Ordering::Release);
        self.word(CHECKPOINT_INFO_ATTEMPTED).store(0, Ordering::Release);
        self.set_read_mark(1, 0);
        for index in 2..=4 {
            self.set_read_mark(index, READ_MARK_NOT_USED);
        }
    }

    fn set_header_bytes(&self, copy: usize, bytes: &[u8; INDEX_HEADER_BYTES]) {
        for (index, chunk) in bytes.chunks_exact(4).enumerate() {
            let word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
            self.word(copy * INDEX_HEADER_BYTES + index * 4)
                .store(word, Ordering::Relaxed);
        }
    }

    /// `aReadMark[index]`, 0 to 4.
    pub(crate) fn read_mark(&self, index: usize) -> u32 {
        self.word(CHECKPOINT_INFO_READ_MARKS + index * 4)
            .load(Ordering::Acquire)
    }

    /// Sets `aReadMark[index]`. Only under the EXCLUSIVE lock of that slot.
    pub(crate) fn set_read_mark(&self, index: usize, mark: u32) {
        self.word(CHECKPOINT_INFO_READ_MARKS + index * 4)
            .store(mark, Ordering::Release);
    }
}
