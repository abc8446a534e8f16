//! replvfs as a C library. The documentation for its users is in `include/replvfs.h`.
//!
//! Owns the crossing from C: pointers, texts, panics. What is done is the crate `replvfs`'s.

use std::ffi::{CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use replvfs::Config;

const OK: c_int = 0;
const ERROR: c_int = 1;

/// Registers the VFSes `replvfs` and `replvfs-remote`, once.
///
/// # Safety
///
/// `error` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn replvfs_register(error: *mut *mut c_char) -> c_int {
    static REGISTERED: Mutex<bool> = Mutex::new(false);

    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
        if !*registered {
            replvfs::register(Config::default()).map_err(|error| error.to_string())?;
            *registered = true;
        }
        Ok(())
    }));
    let message = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(message)) => Some(message),
        Err(_panic) => Some("replvfs: internal error while it was registered".to_owned()),
    };
    let code = if message.is_none() { OK } else { ERROR };
    if !error.is_null() {
        // SAFETY: not null, so the caller lets us write there.
        unsafe { *error = message.map_or(std::ptr::null_mut(), into_c) };
    }
    code
}

/// The version of this library.
#[unsafe(no_mangle)]
pub extern "C" fn replvfs_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// Frees a text of this library.
///
/// # Safety
///
/// `text` is null, or came from this library and was not freed yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn replvfs_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: texts of this library are made by into_c, and the caller frees each once.
        drop(unsafe { CString::from_raw(text) });
    }
}

/// A text for the caller to free with `replvfs_free`.
fn into_c(text: String) -> *mut c_char {
    CString::new(text.replace('\0', " ")).map_or(std::ptr::null_mut(), CString::into_raw)
}
