//! What a signal to end does to a command: temporary files are removed first.

use std::future::Future;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::Failure;

/// A command that is busy with something that cannot be interrupted is not waited for any longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Runs the command to its end, or until SIGINT or SIGTERM comes. Then the exit code is the one that shells give to whom the signal ends.
pub(crate) async fn or_end(command: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let signal = signal()?;
    let (tell, told) = oneshot::channel();
    // On a thread of its own, whatever the command does.
    tokio::spawn(async move {
        let number = signal.await;
        let _ = tell.send(number);
        tokio::time::sleep(PATIENCE).await;
        std::process::exit((128 + number).into());
    });
    tokio::select! {
        ended = command => ended,
        // What the command has made is gone with it.
        Ok(number) = told => Ok(ExitCode::from(128 + number)),
    }
}

/// The number of the signal that comes first.
#[cfg(unix)]
fn signal() -> io::Result<impl Future<Output = u8>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
        }
    })
}

#[cfg(not(unix))]
fn signal() -> io::Result<impl Future<Output = u8>> {
    Ok(async {
        // Without a handler the system ends the process.
        match tokio::signal::ctrl_c().await {
            Ok(()) => 2,
            Err(_) => std::future::pending().await,
        }
    })
}
