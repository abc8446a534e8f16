//! The program `replvfs`: what is in a replica, whether it is whole, and restoring from it.
//!
//! Owns arguments, what is printed, and exit codes. What it does, the crate `replvfs` does: a program can do all of it through
//! the library.

mod check_config;
mod completions;
mod generation;
mod image;
mod integrity;
mod interrupt;
mod log;
mod man;
mod merge;
mod prune;
mod replica;
mod replica_status;
mod restore;
mod sql;
mod status;
mod verify;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use replvfs::store::Store;

/// Continuous replication for SQLite: tells, verifies and restores what is in a replica.
#[derive(Debug, Parser)]
#[command(
    name = "replvfs",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done; 1 failed, with the reason on standard error; 2 wrong usage; 3 `verify` found something; \
        128 and the signal's number when one ended it.\n\n\
        A replica is a URI: fs:///var/backup/app, s3://bucket/app?region=eu-central-1. Credentials are read from \
        the configuration file, from the environment and from profiles, as other tools for the same store do."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Restore(restore::Arguments),
    Log(log::Arguments),
    Sql(sql::Arguments),
    Merge(merge::Arguments),
    Verify(verify::Arguments),
    Prune(prune::Arguments),
    Image(image::Arguments),
    Status(status::Arguments),
    CheckConfig(check_config::Arguments),
    Completions(completions::Arguments),
    #[command(hide = true)]
    Man(man::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(code) => code,
        // Whoever reads the output, `head` for example, has seen enough.
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do when standard error is closed.
            let _ = writeln!(io::stderr(), "replvfs: {}", one_line(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| format!("starting threads: {error}"))?;
    let ended = runtime.block_on(interrupt::or_end(run_command(command)));
    // Whatever still runs there is of no use to anybody.
    runtime.shutdown_background();
    ended
}

async fn run_command(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Restore(arguments) => restore::run(&arguments).await.map(|()| ExitCode::SUCCESS),
        Command::Log(arguments) => log::run(&arguments).await.map(|()| ExitCode::SUCCESS),
        Command::Merge(arguments) => merge::run(&arguments).await.map(|()| ExitCode::SUCCESS),
        Command::Verify(arguments) => verify::run(&arguments).await,
        Command::Sql(arguments) => sql::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Prune(arguments) => prune::run(&arguments).await.map(|()| ExitCode::SUCCESS),
        Command::Image(arguments) => image::run(&arguments).await.map(|()| ExitCode::SUCCESS),
        Command::Status(arguments) => status::run(&arguments).await.map(|()| ExitCode::SUCCESS),
        Command::CheckConfig(arguments) => check_config::run(&arguments).await,
        Command::Completions(arguments) => completions::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Man(arguments) => man::run(&arguments).map(|()| ExitCode::SUCCESS),
    }
}

/// Why a command failed. What matters of it is its text and that of its causes.
type Failure = Box<dyn Error + Send + Sync>;

/// Puts the replica before an error that only speaks of what is in it.
fn about<E: Into<Failure>>(store: &Store) -> impl Fn(E) -> Failure {
    move |error| {
        let error = error.into();
        let (text, replica) = (one_line(&*error), store.replica());
        if text.contains(replica) {
            text.into()
        } else {
            format!("{replica}: {text}").into()
        }
    }
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The error and its causes in one line. A cause that its effect already tells is not repeated.
fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    // Some of it comes from the store: nothing in it may move the terminal's cursor.
    line.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn time_and_transaction_exclude_each_other() {
        let line = [
            "replvfs",
            "restore",
            "fs:///r",
            "o.db",
            "--txid",
            "1",
            "--at",
            "2026-01-02T03:04:05Z",
        ];
        let error = Arguments::try_parse_from(line).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict);
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn causes_are_told_once() {
        #[derive(Debug)]
        struct Outer(io::Error, bool);
        impl std::fmt::Display for Outer {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                if self.1 {
                    write!(f, "outer: {}", self.0)
                } else {
                    f.write_str("outer")
                }
            }
        }
        impl Error for Outer {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        for told in [false, true] {
            assert_eq!(
                one_line(&Outer(io::Error::other("in\nn\x1ber"), told)),
                "outer: in n er"
            );
        }
    }
}
