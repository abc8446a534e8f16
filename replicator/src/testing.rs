//! What the fuzz targets need of the inside. No part of what is promised.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::File;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::time::SystemTime;

use crate::config::{self, Config, ConfigError};
use crate::outside::simulated;

pub mod history {
    //! Machines, processes and a store, and what is done to them, against a model: see [`run`].

    pub use crate::pipeline::simulator::script::{Action, Change, Chore, Fill, Operation, Script, Step, run};
}

pub use crate::remote::unthreaded::{RemoteReader, RemoteState};

/// Drives `future` on this thread alone, whatever it starts, in a world whose clock stands still but for sleeping, and whose random numbers are always the same.
///
/// # Panics
///
/// When `future` does.
pub fn alone<F: Future>(now: SystemTime, future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    #[allow(clippy::expect_used)]
    let runtime = runtime.expect("a runtime without threads");
    let world = Still {
        now,
        drawn: Cell::new(0),
    };
    simulated::set_world(Some(Rc::new(world)));
    let output = runtime.block_on(future);
    drop(runtime);
    simulated::set_world(None);
    output
}

struct Still {
    now: SystemTime,
    drawn: Cell<u64>,
}

impl simulated::World for Still {
    fn wall_clock(&self) -> SystemTime {
        self.now
    }

    fn random(&self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            self.drawn.set(self.drawn.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
            part.copy_from_slice(&self.drawn.get().to_le_bytes()[..part.len()]);
        }
    }

    fn synced(&self, _: &File) {}
}

/// The settings of the environment.
///
/// # Errors
///
/// As when replvfs is registered.
pub fn environment(variable: impl Fn(&str) -> Option<OsString>) -> Result<(), ConfigError> {
    Config::default().with_environment(variable).map(drop)
}

/// The parameters of a database's URI.
///
/// # Errors
///
/// As when it is opened.
pub fn parameters(path: &Path, parameters: &[(String, String)]) -> Result<(), ConfigError> {
    config::settings::for_fuzzing(path, parameters)
}

/// The parameters of a remote database's URI.
///
/// # Errors
///
/// As when it is opened.
pub fn remote_parameters(name: &str, parameters: &[(String, String)]) -> Result<(), String> {
    crate::remote::settings::for_fuzzing(name, parameters)
}

/// A size as a setting, in bytes.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    config::parse::size(text)
}

/// Whether another process has said something on the socket beside the database.
#[must_use]
pub fn neighbour_is_understood(line: &str) -> bool {
    crate::pipeline::neighbours::for_fuzzing::is_understood(line)
}

/// What is made of an answer on that socket.
#[must_use]
pub fn neighbour_answered(line: &str) -> String {
    crate::pipeline::neighbours::for_fuzzing::answered(line)
}

/// What is made of a question for metrics; `None` when more has to come.
#[cfg(feature = "prometheus")]
#[must_use]
pub fn metrics_question(head: &[u8]) -> Option<String> {
    crate::metrics::endpoint::understood_for_fuzzing(head)
}
