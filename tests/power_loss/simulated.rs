//! The simulated disk: files in memory, behind the crate `sqlite-vfs`.
//!
//! Owns content and file locks. It has no shared memory, so WAL needs exclusive locking on it. replvfs looks at a database's time stamps
//! by path, and finds no such file: after each close the history begins anew with an image.
//!
//! What `sqlite-vfs` 0.2.0 does not do, and how it is met here: it does not say whether a deletion syncs the folder, so none does; it
//! takes file names as they are, so they must be absolute; it does not fill up short reads; it hands hints of a file's size on as
//! changes of it. It numbers open files without a lock, which only its own trace shows.

use std::collections::HashMap;
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use replvfs_tests::Rng;
use sqlite_vfs::wip::{WalIndex, WalIndexLock};
use sqlite_vfs::{DatabaseHandle, LockKind, OpenAccess, OpenKind, OpenOptions, Vfs};

use super::disk::{Event, Files};
use super::tape::Tape;

pub(crate) const NAME: &str = "simulated";

static FILES: Mutex<Option<HashMap<String, Arc<Node>>>> = Mutex::new(None);
static TAPES: Mutex<Vec<Arc<Tape>>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Node {
    content: Mutex<Vec<u8>>,
    locks: Mutex<Locks>,
}

#[derive(Debug, Default)]
struct Locks {
    /// Handles with SHARED or more.
    holders: usize,
    /// One of them has RESERVED or more.
    reserved: bool,
    /// It has EXCLUSIVE.
    exclusive: bool,
}

/// Makes it the default VFS.
pub(crate) fn register() {
    let random = Mutex::new(Rng::new(1));
    sqlite_vfs::register(NAME, Memory { random }, true).expect("registering the simulated disk");
}

/// Records what is done to a database from now on.
pub(crate) fn insert(tape: Arc<Tape>) {
    lock(&TAPES).push(tape);
}

/// Ends the recording of files that are opened from now on.
pub(crate) fn eject(database: &Path) {
    lock(&TAPES).retain(|tape| tape.database() != database);
}

/// Puts a database there.
pub(crate) fn place(database: &Path, files: &Files) {
    let mut all = lock(&FILES);
    for (suffix, content) in files {
        let node = Node {
            content: Mutex::new(content.clone()),
            locks: Mutex::default(),
        };
        let name = format!("{}{suffix}", database.display());
        all.get_or_insert_default().insert(name, Arc::new(node));
    }
}

/// One of its files, if it is there.
pub(crate) fn read(name: &str) -> Option<Vec<u8>> {
    let all = lock(&FILES);
    let node = all.as_ref()?.get(name)?;
    Some(lock(&node.content).clone())
}

/// Forgets all files of a folder. Those that are open live on without a name.
pub(crate) fn forget(folder: &Path) {
    if let Some(all) = lock(&FILES).as_mut() {
        all.retain(|name, _| !Path::new(name).starts_with(folder));
    }
}

struct Memory {
    random: Mutex<Rng>,
}

struct Handle {
    node: Arc<Node>,
    level: LockKind,
    tape: Option<(Arc<Tape>, usize)>,
    sync_folder: bool,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.lock(LockKind::None);
    }
}

fn tape_of(name: &str) -> Option<(Arc<Tape>, String)> {
    lock(&TAPES).iter().find_map(|tape| {
        let suffix = name.strip_prefix(tape.database().to_str()?)?;
        Some((Arc::clone(tape), suffix.to_owned()))
    })
}

impl Memory {
    fn find_or_make(name: &str, access: OpenAccess) -> Result<(Arc<Node>, bool)> {
        let mut all = lock(&FILES);
        let all = all.get_or_insert_default();
        match (all.get(name), access) {
            (Some(_), OpenAccess::CreateNew) => Err(ErrorKind::AlreadyExists.into()),
            (Some(node), _) => Ok((Arc::clone(node), false)),
            (None, OpenAccess::Create | OpenAccess::CreateNew) => {
                let node = Arc::new(Node::default());
                all.insert(name.to_owned(), Arc::clone(&node));
                Ok((node, true))
            }
            (None, _) => Err(ErrorKind::NotFound.into()),
        }
    }
}

impl Vfs for Memory {
    type Handle = Handle;

    fn open(&self, name: &str, options: OpenOptions) -> Result<Handle> {
        let mut found = Err(ErrorKind::Other.into());
        let mut find = || {
            found = Memory::find_or_make(name, options.access);
            found.as_ref().map(|(_, created)| *created).ok()
        };
        let tape = match tape_of(name) {
            Some((tape, suffix)) => tape.open(&suffix, find).map(|inode| (tape, inode)),
            None => {
                find();
                None
            }
        };
        Ok(Handle {
            node: found?.0,
            level: LockKind::None,
            tape,
            sync_folder: options.access == OpenAccess::Create
                && matches!(options.kind, OpenKind::Wal | OpenKind::MainJournal),
        })
    }

    fn delete(&self, name: &str) -> Result<()> {
        let mut found = false;
        let mut remove = || {
            found = lock(&FILES).as_mut().is_some_and(|all| all.remove(name).is_some());
            found
        };
        match tape_of(name) {
            Some((tape, suffix)) => tape.delete(&suffix, false, remove),
            None => drop(remove()),
        }
        if found { Ok(()) } else { Err(ErrorKind::NotFound.into()) }
    }

    fn exists(&self, name: &str) -> Result<bool> {
        Ok(lock(&FILES).as_ref().is_some_and(|all| all.contains_key(name)))
    }

    fn temporary_name(&self) -> String {
        format!("temporary-{}", lock(&self.random).next())
    }

    fn random(&self, buffer: &mut [i8]) {
        let mut random = lock(&self.random);
        buffer.fill_with(|| random.next().to_le_bytes()[0].cast_signed());
    }

    fn sleep(&self, duration: Duration) -> Duration {
        std::thread::sleep(duration);
        duration
    }
}

impl Handle {
    fn change(&mut self, event: impl FnOnce(usize) -> Event, change: impl FnOnce(&mut Vec<u8>)) {
        let node = Arc::clone(&self.node);
        let io = || {
            change(&mut lock(&node.content));
            true
        };
        match &self.tape {
            Some((tape, inode)) => tape.change(event(*inode), io),
            None => drop(io()),
        }
    }
}

impl DatabaseHandle for Handle {
    type WalIndex = NoIndex;

    fn size(&self) -> Result<u64> {
        Ok(lock(&self.node.content).len() as u64)
    }

    fn read_exact_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let content = lock(&self.node.content);
        let from = usize::try_from(offset).unwrap().min(content.len());
        let there = buffer.len().min(content.len() - from);
        let (read, rest) = buffer.split_at_mut(there);
        read.copy_from_slice(&content[from..from + there]);
        // SQLite wants zeros where nothing was read.
        rest.fill(0);
        if rest.is_empty() {
            Ok(())
        } else {
            Err(ErrorKind::UnexpectedEof.into())
        }
    }

    fn write_all_at(&mut self, data: &[u8], offset: u64) -> Result<()> {
        let event = |inode| Event::Write {
            inode,
            offset,
            data: data.into(),
        };
        self.change(event, |content| {
            let from = usize::try_from(offset).unwrap();
            if content.len() < from + data.len() {
                content.resize(from + data.len(), 0);
            }
            content[from..from + data.len()].copy_from_slice(data);
        });
        Ok(())
    }

    fn sync(&mut self, _data_only: bool) -> Result<()> {
        let folder = std::mem::take(&mut self.sync_folder);
        self.change(|inode| Event::Sync { inode, folder }, |_| {});
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> Result<()> {
        // SQLite's hints of the size to come arrive here as well.
        self.change(
            |inode| Event::Resize { inode, len },
            |content| content.resize(usize::try_from(len).unwrap(), 0),
        );
        Ok(())
    }

    fn lock(&mut self, wanted: LockKind) -> Result<bool> {
        let mut locks = lock(&self.node.locks);
        let (shared, reserved) = (self.level != LockKind::None, is_reserved(self.level));
        let free = match wanted {
            LockKind::None => true,
            LockKind::Shared => shared || !locks.exclusive,
            LockKind::Reserved => reserved || !locks.reserved,
            LockKind::Pending | LockKind::Exclusive => {
                (reserved || !locks.reserved) && locks.holders == usize::from(shared)
            }
        };
        if free {
            locks.holders = locks.holders - usize::from(shared) + usize::from(wanted != LockKind::None);
            locks.reserved = (locks.reserved && !reserved) || is_reserved(wanted);
            let exclusive = |level| matches!(level, LockKind::Pending | LockKind::Exclusive);
            locks.exclusive = (locks.exclusive && !exclusive(self.level)) || exclusive(wanted);
            drop(locks);
            self.level = wanted;
        }
        Ok(free)
    }

    fn reserved(&mut self) -> Result<bool> {
        Ok(lock(&self.node.locks).reserved)
    }

    fn current_lock(&self) -> Result<LockKind> {
        Ok(self.level)
    }

    fn wal_index(&self, _readonly: bool) -> Result<NoIndex> {
        Err(Error::from(ErrorKind::Unsupported))
    }
}

fn is_reserved(level: LockKind) -> bool {
    !matches!(level, LockKind::None | LockKind::Shared)
}

/// There is none.
struct NoIndex;

impl WalIndex for NoIndex {
    fn enabled() -> bool {
        false
    }

    fn map(&mut self, _region: u32) -> Result<[u8; 32768]> {
        Err(ErrorKind::Unsupported.into())
    }

    fn lock(&mut self, _locks: Range<u8>, _lock: WalIndexLock) -> Result<bool> {
        Err(ErrorKind::Unsupported.into())
    }

    fn delete(self) -> Result<()> {
        Ok(())
    }
}
