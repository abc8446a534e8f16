//! What fails, when, and how; and what was called.

use std::collections::HashMap;
use std::ffi::c_int;
use std::fmt;
use std::sync::{Mutex, MutexGuard};

use libsqlite3_sys as ffi;

/// A method of a VFS or of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Method {
    Open,
    Delete,
    Access,
    FullPathname,
    Close,
    Read,
    Write,
    Truncate,
    Sync,
    FileSize,
    Lock,
    Unlock,
    CheckReservedLock,
    FileControl(c_int),
    ShmMap,
    ShmLock(Slot),
    ShmUnlock(Slot),
    ShmBarrier,
    ShmUnmap,
}

/// What a lock in shared memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
    /// Writing, checkpointing, recovering, or restarting the WAL.
    One,
    /// Reading, in whichever slot.
    Reader,
    /// Setting a slot's read mark, or looking whether it is in use. A mark that another reader has set, as replvfs is one, is not set again.
    Mark,
}

/// The file that it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Main,
    Wal,
    Journal,
    Other,
}

/// How much of a failing call is done nevertheless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Not,
    Half,
    Done,
}

/// What a failing call does and answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) code: c_int,
    pub(crate) how: How,
}

impl Method {
    /// Whether replvfs leaves such calls as they were.
    pub(crate) fn is_comparable(self) -> bool {
        !matches!(self, Method::ShmLock(Slot::Mark) | Method::ShmUnlock(Slot::Mark))
    }

    /// The ways in which it can fail. What gives something back is done, whatever the answer: a lock that stays for ever is no fault of a
    /// disk.
    pub(crate) fn effects(self) -> &'static [Effect] {
        // A function's result would not live long enough.
        macro_rules! fails {
            ($code:ident, $how:ident) => {
                Effect {
                    code: ffi::$code,
                    how: How::$how,
                }
            };
        }
        match self {
            Method::Open => &[fails!(SQLITE_CANTOPEN, Not)],
            Method::Delete => &[fails!(SQLITE_IOERR_DELETE, Not)],
            Method::Access => &[fails!(SQLITE_IOERR_ACCESS, Not)],
            Method::FullPathname => &[fails!(SQLITE_CANTOPEN, Not)],
            Method::Close => &[fails!(SQLITE_IOERR_CLOSE, Done)],
            Method::Read => &[fails!(SQLITE_IOERR_READ, Not), fails!(SQLITE_IOERR_SHORT_READ, Half)],
            Method::Write => &[
                fails!(SQLITE_FULL, Half),
                fails!(SQLITE_IOERR_WRITE, Not),
                fails!(SQLITE_IOERR_WRITE, Done),
            ],
            Method::Truncate => &[fails!(SQLITE_IOERR_TRUNCATE, Not), fails!(SQLITE_IOERR_TRUNCATE, Done)],
            Method::Sync => &[fails!(SQLITE_IOERR_FSYNC, Not)],
            Method::FileSize => &[fails!(SQLITE_IOERR_FSTAT, Not)],
            Method::Lock => &[fails!(SQLITE_BUSY, Not), fails!(SQLITE_IOERR_LOCK, Not)],
            Method::Unlock => &[fails!(SQLITE_IOERR_UNLOCK, Done)],
            Method::CheckReservedLock => &[fails!(SQLITE_IOERR_CHECKRESERVEDLOCK, Not)],
            Method::FileControl(
                ffi::SQLITE_FCNTL_SYNC
                | ffi::SQLITE_FCNTL_COMMIT_PHASETWO
                | ffi::SQLITE_FCNTL_SIZE_HINT
                | ffi::SQLITE_FCNTL_OVERWRITE
                | ffi::SQLITE_FCNTL_CKPT_START
                | ffi::SQLITE_FCNTL_CKPT_DONE
                | ffi::SQLITE_FCNTL_HAS_MOVED,
            ) => &[fails!(SQLITE_IOERR, Not)],
            Method::FileControl(_) | Method::ShmBarrier => &[],
            Method::ShmMap => &[fails!(SQLITE_IOERR_SHMMAP, Not), fails!(SQLITE_IOERR_SHMMAP, Done)],
            Method::ShmLock(_) => &[fails!(SQLITE_BUSY, Not), fails!(SQLITE_IOERR_SHMLOCK, Not)],
            Method::ShmUnlock(_) => &[fails!(SQLITE_IOERR_SHMLOCK, Done)],
            Method::ShmUnmap => &[fails!(SQLITE_IOERR, Done)],
        }
    }
}

/// Which call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Site {
    /// The n-th of SQLite's calls of this method on this file, from 0.
    Connection(Method, Kind, u32),
    /// The n-th of the calls that replvfs makes for itself, whatever it is, from 0.
    Own(u32),
}

/// One thing that goes wrong in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) site: Site,
    /// Which of [`Method::effects`].
    pub(crate) effect: usize,
    /// Every further call of that method on that file fails as well, until it is healed.
    pub(crate) lasting: bool,
    /// Replvfs's own calls fail with SQLite's.
    pub(crate) everywhere: bool,
}

impl Fault {
    /// Whether calls that replvfs makes for itself fail.
    pub(crate) fn is_for_replvfs(self) -> bool {
        self.everywhere || matches!(self.site, Site::Own(_))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.site {
            Site::Connection(method, kind, n) => {
                let Effect { code, how } = method.effects()[self.effect];
                write!(
                    f,
                    "SQLite's x{method:?} number {n} on {kind:?} gives {code} (done: {how:?})"
                )?;
            }
            Site::Own(n) => write!(f, "replvfs's own call number {n} fails in way {}", self.effect)?,
        }
        if self.lasting {
            write!(f, ", and so on until it is healed")?;
        }
        if self.everywhere {
            write!(f, ", for replvfs's own calls as well")?;
        }
        Ok(())
    }
}

/// One call of SQLite's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) kind: Kind,
    /// An offset, a level, a lock: what there is.
    pub(crate) at: i64,
    pub(crate) amount: i64,
    pub(crate) code: c_int,
}

/// The calls around one database.
#[derive(Debug, Default)]
pub(crate) struct Run {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    fault: Option<Fault>,
    /// The method and file that failed.
    struck: Option<(Method, Kind)>,
    /// SQLite's calls are not counted: what the test itself asks for.
    aside: bool,
    counts: HashMap<(Method, Kind), u32>,
    /// All of them, in order.
    called: Vec<(Method, Kind)>,
    trace: Vec<Call>,
    own: Vec<(Method, Kind)>,
    /// Journals that were deleted, and whether so that they do not come back.
    ended: Vec<bool>,
}

impl Run {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// From now on, and counted from now on.
    pub(crate) fn arm(&self, fault: Option<Fault>) {
        *self.lock() = State {
            fault,
            ..State::default()
        };
    }

    pub(crate) fn heal(&self) {
        self.lock().fault = None;
    }

    /// What failed, if anything did.
    pub(crate) fn struck(&self) -> Option<(Method, Kind)> {
        self.lock().struck
    }

    /// Does something on a connection that is no part of the script.
    pub(crate) fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.lock().aside = true;
        let result = work();
        self.lock().aside = false;
        result
    }

    /// Those of SQLite's calls that are the same with replvfs.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.lock().trace.clone()
    }

    pub(crate) fn called(&self) -> Vec<(Method, Kind)> {
        self.lock().called.clone()
    }

    pub(crate) fn own_calls(&self) -> Vec<(Method, Kind)> {
        self.lock().own.clone()
    }

    pub(crate) fn trace(&self, call: Call) {
        let mut state = self.lock();
        if !state.aside && call.method.is_comparable() {
            state.trace.push(call);
        }
    }

    /// SQLite calls: what is to become of it.
    pub(crate) fn connection_call(&self, method: Method, kind: Kind) -> Option<Effect> {
        let mut state = self.lock();
        if state.aside {
            return None;
        }
        state.called.push((method, kind));
        let count = state.counts.entry((method, kind)).or_default();
        let n = *count;
        *count += 1;
        let fault = state.fault?;
        let Site::Connection(its_method, its_kind, due) = fault.site else {
            return None;
        };
        let strikes = (method, kind) == (its_method, its_kind) && (n == due || n > due && fault.lasting);
        strikes.then(|| {
            state.struck = Some((method, kind));
            method.effects()[fault.effect]
        })
    }

    #[allow(dead_code, reason = "not every test that has these faults asks for it")]
    pub(crate) fn ended_journals(&self) -> Vec<bool> {
        self.lock().ended.clone()
    }

    pub(crate) fn journal_ends(&self, durably: bool) {
        self.lock().ended.push(durably);
    }

    /// Replvfs calls for itself.
    pub(crate) fn own_call(&self, method: Method, kind: Kind) -> Option<Effect> {
        let mut state = self.lock();
        let n = state.own.len() as u32;
        state.own.push((method, kind));
        let fault = state.fault?;
        let strikes = match fault.site {
            Site::Connection(..) => fault.everywhere && fault.lasting && state.struck == Some((method, kind)),
            Site::Own(due) => n == due || fault.lasting && state.struck == Some((method, kind)),
        };
        let effect = method.effects().get(fault.effect).filter(|_| strikes)?;
        state.struck = Some((method, kind));
        Some(*effect)
    }
}
