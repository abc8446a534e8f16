//! Faults below: every call that SQLite makes on its files fails once, or from then on until it is healed, and so does every call that
//! replvfs makes for itself. SQLite's answers are the same as without replvfs, and so are its own calls; afterwards replication goes
//! on, and what was acknowledged is restored as it was.
//!
//! `vfs` fails, `plan` says what, `script` is what is done meanwhile, `life` lives through it, `cases` counts the faults and compares.
//!
//! | variable | |
//! |---|---|
//! | `REPLVFS_IO_FAULTS_CASES` | faults of each large set; 0 for all of them |
//! | `REPLVFS_IO_FAULTS_SEED` | which of them |
//! | `REPLVFS_IO_FAULTS` | one fault, as a failure names it |
#![allow(missing_docs)]

mod cases;
mod life;
mod plan;
mod script;
mod vfs;

/// What the other processes run: nothing, unless they are told what.
#[test]
fn other_process() {
    cases::run_if_asked();
}

macro_rules! scripts {
    ($($name:ident,)*) => {$(
        #[test]
        fn $name() {
            cases::run_all(stringify!($name));
        }
    )*};
}

scripts! {
    beginning,
    transactions,
    checkpoints,
    two_connections,
    vacuum,
    large,
    exclusive_beginning,
    exclusive_transactions,
    exclusive_checkpoints,
    exclusive_vacuum,
}
