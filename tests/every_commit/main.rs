//! Every commit, exactly: random scripts run through real SQLite and replvfs, and each transaction that was committed is restored
//! from the replica, and read in it without being restored, page by page what SQLite itself had then. A reader follows meanwhile.
//!
//! proptest prints the script of a failure and keeps its seed beside this file.
#![allow(missing_docs)]

mod remote;
mod run;
mod script;

use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence};
use run::{Locking, Setup, run};
use script::{script, script_in_all_modes};

/// `PROPTEST_CASES` counts where it is set, as in every proptest.
fn cases(normal: u32, long: u32) -> Config {
    let asked = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    let long_tests = std::env::var_os("REPLVFS_LONG_TESTS").is_some();
    Config {
        cases: asked.unwrap_or(if long_tests { long } else { normal }),
        max_shrink_iters: 200,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("every_commit/regressions.txt"))),
        ..Config::default()
    }
}

proptest! {
    #![proptest_config(cases(24, 48))]

    #[test]
    fn several_connections(steps in script(40), auto_vacuum in 0..3_u8) {
        run(Setup { auto_vacuum, ..Setup::default() }, &steps);
    }
}

proptest! {
    #![proptest_config(cases(12, 24))]

    #[test]
    fn exclusive_before_wal(steps in script(30)) {
        run(Setup { locking: Locking::ExclusiveBefore, ..Setup::default() }, &steps);
    }

    #[test]
    fn exclusive_after_wal(steps in script(30)) {
        run(Setup { locking: Locking::ExclusiveAfter, ..Setup::default() }, &steps);
    }

    #[test]
    fn small_segments_and_transactions_larger_than_memory(steps in script(30)) {
        run(Setup { parameters: "&segment_size=64KiB&flush_interval=10ms", ..Setup::default() }, &steps);
    }
}

proptest! {
    #![proptest_config(cases(16, 48))]

    #[test]
    fn all_journal_modes(steps in script_in_all_modes(40), mode in 0..6_usize, auto_vacuum in 0..3_u8) {
        let journal = script::JOURNAL_MODES[mode];
        run(Setup { journal, auto_vacuum, ..Setup::default() }, &steps);
    }

    #[test]
    fn all_journal_modes_with_the_lock_kept(
        steps in script_in_all_modes(30), mode in 0..6_usize, auto_vacuum in 0..3_u8, before in any::<bool>()
    ) {
        let locking = if before { Locking::ExclusiveBefore } else { Locking::ExclusiveAfter };
        run(Setup { journal: script::JOURNAL_MODES[mode], auto_vacuum, locking, ..Setup::default() }, &steps);
    }

    #[test]
    fn all_journal_modes_and_page_sizes(
        steps in script_in_all_modes(25), mode in 0..6_usize, size in 9..17_u32, connections in 1..4_usize
    ) {
        let setup = Setup {
            journal: script::JOURNAL_MODES[mode],
            page_size: 1 << size,
            connections,
            parameters: "&segment_size=64KiB&flush_interval=10ms",
            ..Setup::default()
        };
        run(setup, &steps);
    }
}

macro_rules! page_sizes {
    ($($name:ident: $size:literal,)*) => {
        proptest! {
            #![proptest_config(cases(4, 8))]
            $(
                #[test]
                fn $name(steps in script(25), auto_vacuum in 0..3_u8, connections in 1..4_usize) {
                    run(Setup { page_size: $size, auto_vacuum, connections, ..Setup::default() }, &steps);
                }
            )*
        }
    };
}

page_sizes! {
    page_size_512: 512,
    page_size_1024: 1024,
    page_size_8192: 8192,
    page_size_16384: 16384,
    page_size_32768: 32768,
    page_size_65536: 65536,
}
