//! What `REPLVFS_LOG` asks for: the events of `tracing`, on standard error.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Errors when the value is not understood.
pub(crate) fn to_standard_error(value: Option<OsString>) -> Result<(), String> {
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(());
    };
    let level = match value.to_str() {
        Some("error") => LevelFilter::ERROR,
        Some("warn") => LevelFilter::WARN,
        Some("info") => LevelFilter::INFO,
        Some("debug") => LevelFilter::DEBUG,
        _ => {
            let value = value.to_string_lossy();
            return Err(format!(
                "REPLVFS_LOG={value} is not understood: write error, warn, info or debug"
            ));
        }
    };
    // A descriptor of its own: no other file can come to have its number where the host closes standard error. And without the lock of `io::stderr`, which a
    // child of fork() would find taken for ever if another thread had it at that moment.
    let file = std::io::stderr().as_fd().try_clone_to_owned();
    let file = File::from(file.map_err(|error| format!("REPLVFS_LOG: standard error cannot be written: {error}"))?);
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(Arc::new(file));
    // Our own crates alone: what libraries log of requests is nobody's business.
    let ours = Targets::new().with_target("replvfs", level);
    // There already where registering failed the first time.
    let _ = tracing_subscriber::registry().with(layer).with(ours).try_init();
    Ok(())
}
