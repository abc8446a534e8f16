//! The border to C, over [`fake`]: what Miri can see of it. Every pointer that SQLite keeps is made, used from both sides and let go.
#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "each calls a method with what SQLite would give it"
)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libsqlite3_sys as ffi;

use crate::api::fake;
use crate::host::{FlushError, Host, OpenError, OpenRequest, Replica};
use crate::log::{Batch, Log};
use crate::remote::{Remote, RemoteError, RemoteHost, RemoteRegistration, RemoteRequest, View};
use crate::types::{PageSize, Pgno, Salts, Txid, UnixMillis};
use crate::wal::{INDEX_HEADER_BYTES, WalWriter, checksum};

const PAGE: usize = 512;

fn page_size() -> PageSize {
    PageSize::new(512).unwrap()
}

/// A replica that stores nothing and is content.
#[derive(Default)]
struct Content {
    /// Whether it was told that the database is open.
    open: AtomicBool,
    /// What is done while the last close waits for the store.
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

type Attend<'a> = &'a mut dyn FnMut() -> Result<(), FlushError>;

impl Replica for Content {
    fn wake(&self) {}
    fn hurry(&self) {}
    fn closed(&self) {
        self.open.store(false, Ordering::SeqCst);
    }
    fn opened(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
    fn flush(&self, attend: Attend<'_>) -> Result<Option<Txid>, FlushError> {
        attend().map(|()| None)
    }
    fn wait(&self, _: Txid, _: Attend<'_>) -> Result<Option<Txid>, FlushError> {
        Ok(None)
    }
    fn owns(&self) -> bool {
        true
    }
    fn take_over(&self) -> bool {
        true
    }
    fn is_away(&self) -> bool {
        false
    }
    fn drain(&self) -> bool {
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        true
    }
    fn left(&self, _: &crate::resume::Left) -> bool {
        true
    }
    fn wal_limit(&self) -> u64 {
        1 << 30
    }
    fn close_timeout(&self) -> Duration {
        Duration::ZERO
    }
    fn status(&self) -> String {
        "{}".to_owned()
    }
}

#[derive(Default)]
struct Hosting(Mutex<Option<Arc<Log>>>, Arc<Content>);

impl Hosting {
    fn log(&self) -> Arc<Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap()
    }
}

impl Host for Hosting {
    fn open(&self, _: &OpenRequest<'_>, log: &Arc<Log>) -> Result<Option<Arc<dyn Replica>>, OpenError> {
        *self.0.lock().unwrap() = Some(Arc::clone(log));
        self.1.opened();
        Ok(Some(self.1.clone()))
    }
    fn reopen(&self, _: &OpenRequest<'_>, _: &Arc<dyn Replica>) -> Result<(), OpenError> {
        self.1.opened();
        Ok(())
    }
    fn after_fork(&self) -> Arc<dyn Host> {
        Arc::new(Hosting::default())
    }
    fn now(&self) -> UnixMillis {
        UnixMillis(0)
    }
}

/// What SQLite's pager has: a block of `szOsFile` bytes.
struct Pager {
    block: Vec<u64>,
}

impl Pager {
    fn open(vfs: *mut ffi::sqlite3_vfs, name: &CStr, flags: c_int) -> Pager {
        let bytes = usize::try_from(unsafe { (*vfs).szOsFile }).unwrap();
        let mut pager = Pager {
            block: vec![0; bytes.div_ceil(8)],
        };
        let flags = flags | ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_CREATE;
        let mut out = 0;
        let code = unsafe { (*vfs).xOpen.unwrap()(vfs, name.as_ptr(), pager.file(), flags, &raw mut out) };
        assert_eq!(code, ffi::SQLITE_OK);
        pager
    }

    fn file(&mut self) -> *mut ffi::sqlite3_file {
        self.block.as_mut_ptr().cast()
    }

    fn methods(&mut self) -> ffi::sqlite3_io_methods {
        unsafe { *(*self.file()).pMethods }
    }

    fn lock(&mut self, level: c_int) {
        let code = unsafe { self.methods().xLock.unwrap()(self.file(), level) };
        assert_eq!(code, ffi::SQLITE_OK);
    }

    fn unlock(&mut self, level: c_int) {
        let code = unsafe { self.methods().xUnlock.unwrap()(self.file(), level) };
        assert_eq!(code, ffi::SQLITE_OK);
    }

    fn write(&mut self, bytes: &[u8], offset: i64) {
        let len = c_int::try_from(bytes.len()).unwrap();
        let code = unsafe { self.methods().xWrite.unwrap()(self.file(), bytes.as_ptr().cast(), len, offset) };
        assert_eq!(code, ffi::SQLITE_OK);
    }

    fn read(&mut self, len: usize, offset: i64) -> (c_int, Vec<u8>) {
        let mut bytes = vec![1; len];
        let amount = c_int::try_from(len).unwrap();
        let code = unsafe { self.methods().xRead.unwrap()(self.file(), bytes.as_mut_ptr().cast(), amount, offset) };
        (code, bytes)
    }

    fn size(&mut self) -> i64 {
        let mut size = 0;
        let code = unsafe { self.methods().xFileSize.unwrap()(self.file(), &raw mut size) };
        assert_eq!(code, ffi::SQLITE_OK);
        size
    }

    fn control(&mut self, op: c_int, argument: *mut c_void) -> c_int {
        unsafe { self.methods().xFileControl.unwrap()(self.file(), op, argument) }
    }

    fn shm_lock(&mut self, slot: c_int, flags: c_int) {
        let code = unsafe { self.methods().xShmLock.unwrap()(self.file(), slot, 1, flags) };
        assert_eq!(code, ffi::SQLITE_OK);
    }

    /// The answer to a PRAGMA, and its code.
    fn pragma(&mut self, name: &CStr, value: Option<&CStr>) -> (c_int, String) {
        let mut arguments = [
            std::ptr::null_mut(),
            name.as_ptr().cast_mut(),
            value.map_or(std::ptr::null_mut(), |value| value.as_ptr().cast_mut()),
        ];
        let code = self.control(ffi::SQLITE_FCNTL_PRAGMA, arguments.as_mut_ptr().cast());
        (code, taken(arguments[0]))
    }

    fn close(&mut self) {
        let code = unsafe { self.methods().xClose.unwrap()(self.file()) };
        assert_eq!(code, ffi::SQLITE_OK);
        assert!(unsafe { (*self.file()).pMethods }.is_null());
    }
}

/// A string that is ours to free; empty for none.
fn taken(text: *mut c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    let copy = unsafe { CStr::from_ptr(text) }.to_str().unwrap().to_owned();
    unsafe { fake::api().free(text.cast()) };
    copy
}

fn registered(name: &str) -> (*mut ffi::sqlite3_vfs, Arc<Hosting>) {
    let host = Arc::new(Hosting::default());
    let registration = super::Registration {
        name: name.to_owned(),
        make_default: false,
        transaction_memory: 1 << 20,
        memory: 1 << 20,
        read_at_once: 1 << 20,
        host: host.clone(),
    };
    super::register(fake::api(), registration).unwrap();
    (fake::registered(&CString::new(name).unwrap()), host)
}

/// The first page of a database of one page.
fn page_one(is_wal: bool, counter: u32) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    page[..16].copy_from_slice(b"SQLite format 3\0");
    page[16..18].copy_from_slice(&512_u16.to_be_bytes());
    page[18..20].fill(if is_wal { 2 } else { 1 });
    page[24..28].copy_from_slice(&counter.to_be_bytes());
    page[28..32].copy_from_slice(&1_u32.to_be_bytes());
    page[92..96].copy_from_slice(&counter.to_be_bytes());
    page
}

fn base_of(log: &Log) -> Vec<u8> {
    let Some(Batch::Base(mut base)) = log.take(u64::MAX) else {
        panic!("there is no base");
    };
    let mut bytes = vec![0; base.snapshot.page_count() as usize * PAGE];
    base.snapshot.read_pages(Pgno::new(1).unwrap(), &mut bytes).unwrap();
    bytes
}

/// How many transactions wait.
fn transactions_of(log: &Log) -> usize {
    match log.take(u64::MAX) {
        Some(Batch::Transactions(transactions)) => transactions.len(),
        None => 0,
        other => panic!("{other:?}"),
    }
}

/// As SQLite does through a rollback journal. It keeps the lock: the file is not on the disk, so it could not be known again.
fn commit(pager: &mut Pager, page: &[u8]) {
    for level in [
        ffi::SQLITE_LOCK_SHARED,
        ffi::SQLITE_LOCK_RESERVED,
        ffi::SQLITE_LOCK_EXCLUSIVE,
    ] {
        pager.lock(level);
    }
    pager.write(page, 0);
    pager.control(ffi::SQLITE_FCNTL_SYNC, std::ptr::null_mut());
    pager.control(ffi::SQLITE_FCNTL_COMMIT_PHASETWO, std::ptr::null_mut());
    pager.unlock(ffi::SQLITE_LOCK_SHARED);
}

/// A program that opens a connection for each piece of work, from several threads.
#[test]
fn what_is_opened_while_the_last_one_closes_is_open() {
    let (vfs, host) = registered("border-closing");
    let mut pager = Pager::open(vfs, c"/nowhere/closing.db", ffi::SQLITE_OPEN_MAIN_DB);
    let other = Arc::new(Mutex::new(None));
    let (opened, vfs) = (Arc::clone(&other), AtomicPtr::new(vfs));
    *host.1.meanwhile.lock().unwrap() = Some(Box::new(move || {
        let vfs = vfs.load(Ordering::Relaxed);
        *opened.lock().unwrap() = Some(Pager::open(vfs, c"/nowhere/closing.db", ffi::SQLITE_OPEN_MAIN_DB));
    }));
    pager.close();
    assert!(
        host.1.open.load(Ordering::SeqCst),
        "it is taken for closed, and is open"
    );
    other.lock().unwrap().take().unwrap().close();
    assert!(!host.1.open.load(Ordering::SeqCst));
}

/// One copy of the wal-index header, as SQLite writes it.
fn index_header(wal: &WalWriter, pages: u32) -> [u8; INDEX_HEADER_BYTES] {
    let position = wal.position();
    let mut bytes = [0; INDEX_HEADER_BYTES];
    let mut put = |at: usize, value: [u8; 4]| bytes[at..at + 4].copy_from_slice(&value);
    put(0, 3_007_000_u32.to_ne_bytes());
    put(16, position.frame.to_ne_bytes());
    put(20, pages.to_ne_bytes());
    put(24, position.checksum[0].to_ne_bytes());
    put(28, position.checksum[1].to_ne_bytes());
    put(32, position.salts.0.to_be_bytes());
    put(36, position.salts.1.to_be_bytes());
    bytes[12] = 1;
    bytes[14..16].copy_from_slice(&512_u16.to_ne_bytes());
    let sum = checksum(cfg!(target_endian = "big"), &bytes[..40], [0, 0]);
    bytes[40..44].copy_from_slice(&sum[0].to_ne_bytes());
    bytes[44..48].copy_from_slice(&sum[1].to_ne_bytes());
    bytes
}

/// Into one copy of it.
fn publish(index: *mut c_void, copy: usize, header: &[u8; INDEX_HEADER_BYTES]) {
    for (word, bytes) in header.chunks_exact(4).enumerate() {
        let word = unsafe { &*index.cast::<AtomicU32>().add(copy * INDEX_HEADER_BYTES / 4 + word) };
        word.store(u32::from_ne_bytes(bytes.try_into().unwrap()), Ordering::Relaxed);
    }
}

#[test]
fn a_file_with_a_wal() {
    let (lock, unlock) = (ffi::SQLITE_SHM_LOCK, ffi::SQLITE_SHM_UNLOCK);
    let (shared, exclusive) = (ffi::SQLITE_SHM_SHARED, ffi::SQLITE_SHM_EXCLUSIVE);
    let (vfs, host) = registered("border-wal");
    let (name, wal_name) = (c"/nowhere/wal.db", c"/nowhere/wal.db-wal");
    let mut pager = Pager::open(vfs, name, ffi::SQLITE_OPEN_MAIN_DB);
    commit(&mut pager, &page_one(true, 1));
    fake::belongs(wal_name, name);
    let mut wal = Pager::open(vfs, wal_name, ffi::SQLITE_OPEN_WAL);
    let mut index = std::ptr::null_mut();
    let code = unsafe { pager.methods().xShmMap.unwrap()(pager.file(), 0, 32_768, 1, &raw mut index) };
    assert_eq!(code, ffi::SQLITE_OK);
    let mut writer = WalWriter::new(page_size(), Salts(1, 2));
    wal.write(&writer.header(), 0);
    publish(index, 0, &index_header(&writer, 1));
    publish(index, 1, &index_header(&writer, 1));
    pager.shm_lock(3, lock | shared);
    let log = host.log();
    assert_eq!(base_of(&log), page_one(true, 1));
    log.settle(0);
    for number in 0..3_u32 {
        pager.shm_lock(0, lock | exclusive);
        let page = page_one(true, 2 + number);
        let at = 32 + i64::from(number) * (24 + 512);
        wal.write(&writer.frame(Pgno::new(1).unwrap(), 1, &page), at);
        wal.write(&page, at + 24);
        publish(index, 1, &index_header(&writer, 1));
        unsafe { pager.methods().xShmBarrier.unwrap()(pager.file()) };
        publish(index, 0, &index_header(&writer, 1));
        pager.shm_lock(0, unlock | exclusive);
    }
    assert_eq!(transactions_of(&log), 3);
    assert!(log.is_pinned());
    // The replicating side looks through a handle of its own, on another thread.
    std::thread::scope(|threads| threads.spawn(|| log.look()).join().unwrap());
    let mut pages = std::ptr::null_mut();
    let fetched = unsafe { pager.methods().xFetch.unwrap()(pager.file(), 0, 512, &raw mut pages) };
    assert!(fetched == ffi::SQLITE_OK && pages.is_null());
    pager.shm_lock(3, unlock | shared);
    wal.close();
    unsafe { pager.methods().xShmUnmap.unwrap()(pager.file(), 0) };
    pager.unlock(ffi::SQLITE_LOCK_NONE);
    pager.close();
}

/// A database of one page.
struct Page(Vec<u8>);

impl Remote for Page {
    fn view(&self) -> View {
        View {
            page_size: page_size(),
            page_count: 1,
            line: 1,
            txid: Txid(1),
        }
    }
    fn begin(&mut self) -> Result<View, RemoteError> {
        Ok(self.view())
    }
    fn end(&mut self) {}
    fn read(&mut self, _: Pgno, page: &mut [u8]) -> Result<(), RemoteError> {
        page.copy_from_slice(&self.0);
        Ok(())
    }
    fn pragma(&mut self, name: &str, value: Option<&str>) -> Option<Result<String, RemoteError>> {
        (name == "at").then(|| Ok(value.unwrap_or("now").to_owned()))
    }
}

struct Pages;

impl RemoteHost for Pages {
    fn open(&self, _: &RemoteRequest<'_>) -> Result<Box<dyn Remote>, OpenError> {
        Ok(Box::new(Page(page_one(false, 1))))
    }
    fn after_fork(&self) -> Arc<dyn RemoteHost> {
        Arc::new(Pages)
    }
}

#[test]
fn a_file_that_is_elsewhere() {
    let registration = RemoteRegistration {
        name: "border-remote".to_owned(),
        host: Arc::new(Pages),
    };
    crate::remote::register(fake::api(), registration).unwrap().stay();
    let vfs = fake::registered(c"border-remote");
    let mut full = [0; 64];
    let room = c_int::try_from(full.len()).unwrap();
    let full_pathname = unsafe { (*vfs).xFullPathname.unwrap() };
    assert_eq!(
        unsafe { full_pathname(vfs, c"/some/name".as_ptr(), room, full.as_mut_ptr()) },
        ffi::SQLITE_OK
    );
    assert_eq!(
        unsafe { full_pathname(vfs, c"/some/name".as_ptr(), 10, full.as_mut_ptr()) },
        ffi::SQLITE_CANTOPEN
    );
    let mut pager = Pager::open(vfs, c"/some/name", ffi::SQLITE_OPEN_MAIN_DB);
    assert_eq!(pager.read(100, 0).0, ffi::SQLITE_OK);
    pager.lock(ffi::SQLITE_LOCK_SHARED);
    assert_eq!(pager.size(), 512);
    assert_eq!(pager.read(PAGE, 0), (ffi::SQLITE_OK, page_one(false, 1)));
    assert_eq!(pager.read(16, 24).1, page_one(false, 1)[24..40]);
    assert_eq!(pager.read(PAGE, 512), (ffi::SQLITE_IOERR_SHORT_READ, vec![0; PAGE]));
    assert_eq!(
        pager.pragma(c"replvfs_at", Some(c"7")),
        (ffi::SQLITE_OK, "7".to_owned())
    );
    assert_eq!(pager.pragma(c"replvfs_no", None).0, ffi::SQLITE_ERROR);
    pager.unlock(ffi::SQLITE_LOCK_NONE);
    pager.close();
}
