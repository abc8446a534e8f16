//! `fork()`: the child never touches what its parent replicates.
//!
//! A child has its parent's memory, but none of its threads, and mutexes may be locked for ever in it. So whatever was there before the fork is
//! left alone: connections that came along (which SQLite forbids to use, <https://www.sqlite.org/howtocorrupt.html>, 2.6) pass everything
//! through, and new ones begin with a state of their own, as in another process. Owns the count of forks, and the descriptors
//! that must not be inherited: a lock of `flock` would outlive its process in a child.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};

unsafe extern "C" {
    fn pthread_atfork(
        prepare: Option<unsafe extern "C" fn()>,
        parent: Option<unsafe extern "C" fn()>,
        child: Option<unsafe extern "C" fn()>,
    ) -> c_int;
    fn close(descriptor: c_int) -> c_int;
}

/// Forks between the first process that used this library and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);
/// Only ever grows: nodes are used again.
static INHERITED: AtomicPtr<Node> = AtomicPtr::new(null_mut());
const NONE: c_int = -1;

struct Node {
    descriptor: AtomicI32,
    next: *mut Node,
}

/// Has this library told of forks. To be called before anything else of it is used.
pub(crate) fn watch() {
    static ONCE: Once = Once::new();
    // Miri has no fork().
    if cfg!(miri) {
        return;
    }
    ONCE.call_once(|| {
        // SAFETY: the function lives as long as the process, and does only what is allowed in a child of a process with threads.
        if unsafe { pthread_atfork(None, None, Some(in_child)) } != 0 {
            crate::warning!(; "replvfs cannot be told of fork(): use no database in a child before exec()");
        }
    });
}

/// In the child, whose only thread this is: atomics and system calls are allowed, locks and allocations are not.
unsafe extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    let mut node = INHERITED.load(Ordering::Acquire);
    // SAFETY: nodes are never freed.
    while let Some(known) = unsafe { node.as_ref() } {
        let descriptor = known.descriptor.swap(NONE, Ordering::Relaxed);
        if descriptor != NONE {
            // SAFETY: the descriptor was open in the parent; its owner's memory here is never used again.
            unsafe { close(descriptor) };
        }
        node = known.next;
    }
}

/// In which process, counted in forks, something was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process(u32);

impl Process {
    pub(crate) fn current() -> Process {
        Process(FORKS.load(Ordering::Relaxed))
    }

    pub(crate) fn is_current(self) -> bool {
        self == Process::current()
    }
}

/// A descriptor that children do not keep. To be dropped before the descriptor is closed.
#[derive(Debug)]
pub struct NotInherited(&'static AtomicI32);

impl NotInherited {
    /// From here on a child closes it first of all.
    #[must_use]
    pub fn new(descriptor: BorrowedFd<'_>) -> NotInherited {
        let descriptor = descriptor.as_raw_fd();
        let mut node = INHERITED.load(Ordering::Acquire);
        // SAFETY: nodes are never freed.
        while let Some(known) = unsafe { node.as_ref() } {
            let free = known
                .descriptor
                .compare_exchange(NONE, descriptor, Ordering::AcqRel, Ordering::Relaxed);
            if free.is_ok() {
                return NotInherited(&known.descriptor);
            }
            node = known.next;
        }
        let new = Box::leak(Box::new(Node {
            descriptor: AtomicI32::new(descriptor),
            next: null_mut(),
        }));
        loop {
            new.next = INHERITED.load(Ordering::Acquire);
            let added = INHERITED.compare_exchange(new.next, new, Ordering::AcqRel, Ordering::Relaxed);
            if added.is_ok() {
                return NotInherited(&new.descriptor);
            }
        }
    }
}

impl Drop for NotInherited {
    fn drop(&mut self) {
        self.0.store(NONE, Ordering::Release);
    }
}
