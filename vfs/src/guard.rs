//! The border to C: no panic crosses it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::notice::later;

/// Runs the body of a callback. A panic becomes `None`, after it was reported.
pub(crate) fn guard<T>(callback: &'static str, body: impl FnOnce() -> T) -> Option<T> {
    // What is to be told of it, is told without its locks.
    let _later = later();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        injection::strike(callback);
        body()
    }));
    if caught.is_err() {
        crate::failure!(code = libsqlite3_sys::SQLITE_INTERNAL, ; "a panic in {callback} was caught; please report this bug");
    }
    caught.ok()
}

#[cfg(feature = "fault-injection")]
pub use injection::{CALLBACKS, REMOTE_CALLBACKS, inject_panic};

/// Panics on demand, for the tests of the border.
mod injection {
    #[cfg(feature = "fault-injection")]
    mod armed {
        use std::cell::Cell;

        thread_local! {
            static TARGET: Cell<Option<&'static str>> = const { Cell::new(None) };
        }

        /// Every callback that runs code of ours.
        pub const CALLBACKS: &[&str] = &[
            "xOpen",
            "xClose",
            "xWrite",
            "xTruncate",
            "xLock",
            "xUnlock",
            "xFileControl",
            "xShmMap",
            "xShmLock",
            "xShmBarrier",
            "xShmUnmap",
            "wal xOpen",
            "wal xWrite",
            "wal xTruncate",
            "wal xClose",
        ];

        /// Those of a remote database.
        pub const REMOTE_CALLBACKS: &[&str] = &[
            "remote xFullPathname",
            "remote xOpen",
            "remote xRead",
            "remote xFileSize",
            "remote xLock",
            "remote xUnlock",
            "remote xFileControl",
            "remote xClose",
        ];

        /// The next call of `callback` on this thread panics, once. `None` takes that back; the answer says whether it was still due.
        pub fn inject_panic(callback: Option<&'static str>) -> bool {
            TARGET.with(|target| target.replace(callback)).is_some()
        }

        #[allow(clippy::panic)]
        pub(in super::super) fn strike(callback: &'static str) {
            let struck = TARGET.with(|target| {
                let struck = target.get() == Some(callback);
                if struck {
                    target.set(None);
                }
                struck
            });
            if struck {
                panic!("injected into {callback}");
            }
        }
    }

    #[cfg(feature = "fault-injection")]
    pub(super) use armed::strike;
    #[cfg(feature = "fault-injection")]
    pub use armed::{CALLBACKS, REMOTE_CALLBACKS, inject_panic};

    #[cfg(not(feature = "fault-injection"))]
    pub(super) fn strike(_callback: &'static str) {}
}
