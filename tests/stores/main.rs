//! Every store that can be served on one machine, by real servers: one suite of behaviours over all of them.
//!
//! `tests/stores/servers.sh` installs the servers. One that is not there is skipped, and said to be; in CI that is a failure. The table that is printed at the end is in
//! `stores/README.md`, too. Names of stores, or parts of them, choose: `cargo test -p replvfs-tests --test stores -- sftp`.
#![allow(missing_docs)]

mod faults;
mod faulty;
mod fencing;
mod killed;
mod objects;
mod proxy;
mod replication;
mod servers;
mod tls;

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use servers::{ALL, Served};

type Behaviour = fn(&Served);

/// What every store has to do, in this order.
const BEHAVIOURS: &[(&str, Behaviour)] = &[
    ("write", objects::write),
    ("conditional create", objects::conditional_create),
    ("many creators", objects::many_creators),
    ("ranged read", objects::ranged_read),
    ("what is missing", objects::missing),
    ("list", objects::list),
    ("delete", objects::delete),
    ("replicate, restore", replication::restore),
    ("fencing told", fencing::told),
    ("takeover", replication::takeover),
    ("remote read", replication::remote_read),
    ("prune", replication::prune_old),
    ("one writer after the other", fencing::one_after_the_other),
    ("two writers noticed", fencing::two_writers),
    ("replaced, of one length", fencing::replaced),
    ("killed in mid-upload", killed::killed),
];

#[derive(Debug, Clone, PartialEq)]
enum Outcome {
    Right,
    Wrong,
    Skipped(String),
}

/// A store, how it went, and how long.
type Row = (&'static str, Vec<Outcome>, f64);

fn main() -> ExitCode {
    if killed::is_uploader() {
        killed::upload();
        return ExitCode::SUCCESS;
    }
    if std::env::var_os("REPLVFS_TEST_OTHER_PROCESS").is_some() {
        replvfs_tests::peer::run_sql();
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    if std::env::var_os("REPLVFS_TEST_TRACE").is_some() {
        tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).init();
    }
    let _programs = servers::prepare_ssh();
    let identities = servers::new_folder();
    tls::prepare(&identities);
    replvfs_tests::register();
    let mut failed = false;
    let (rows, faults): (Vec<Row>, _) = std::thread::scope(|scope| {
        let faults = scope.spawn(|| faults::run(|name| is_wanted(&format!("faults: {name}"))));
        let of = ALL.iter().filter(|(name, _)| is_wanted(name));
        let threads: Vec<_> = of
            .map(|(name, start)| scope.spawn(move || (*name, run(name, *start))))
            .collect();
        let refusals = is_wanted("TLS, refused").then(|| scope.spawn(|| catch_unwind(tls::refusals)));
        let rows = threads.into_iter().map(|thread| {
            let (name, (outcomes, seconds)) = thread.join().expect("a thread of a store");
            (name, outcomes, seconds)
        });
        let rows = rows.collect();
        match refusals.map(|refusals| refusals.join().expect("a thread")) {
            Some(Ok(Err(missing))) => {
                eprintln!("SKIPPED: certificates that are refused: {missing}");
                failed |= replvfs_tests::in_ci();
            }
            Some(Err(_)) => failed = true,
            Some(Ok(Ok(()))) => println!("certificates that are refused: ok"),
            None => {}
        }
        (rows, faults.join().expect("the thread of the faults"))
    });
    let table = table(&rows);
    println!("\n{table}");
    if wanted.is_empty() && !is_known(&table) {
        eprintln!(
            "stores/README.md has another table; look whether this one is right, and write it with REPLVFS_STORES_TABLE=write"
        );
        failed |= replvfs_tests::in_ci();
    }
    match faults {
        Ok(wrong) => {
            failed |= !wrong.is_empty();
            wrong.iter().for_each(|wrong| eprintln!("FAILED: {wrong}"));
        }
        Err(missing) => {
            eprintln!("SKIPPED: faults: {missing}");
            failed |= replvfs_tests::in_ci();
        }
    }
    for (name, outcomes, _) in &rows {
        if let Some(Outcome::Skipped(why)) = outcomes.first() {
            eprintln!("SKIPPED: {name}: {why}");
            failed |= replvfs_tests::in_ci();
        }
        failed |= outcomes.contains(&Outcome::Wrong);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// All behaviours of one store, each whatever became of the one before.
fn run(name: &str, start: fn() -> Result<Served, String>) -> (Vec<Outcome>, f64) {
    let since = Instant::now();
    let served = match catch_unwind(start) {
        Ok(Ok(served)) => served,
        Ok(Err(missing)) => return (vec![Outcome::Skipped(missing)], 0.0),
        Err(_) => return (vec![Outcome::Wrong], 0.0),
    };
    let outcomes = BEHAVIOURS.iter().map(|(behaviour, check)| {
        let begun = Instant::now();
        let done = catch_unwind(AssertUnwindSafe(|| check(&served)));
        println!(
            "{name}: {behaviour}: {} ({:.1} s)",
            if done.is_ok() { "ok" } else { "FAILED" },
            begun.elapsed().as_secs_f64()
        );
        match done {
            Ok(()) => Outcome::Right,
            Err(_) => Outcome::Wrong,
        }
    });
    let outcomes = outcomes.collect();
    (outcomes, since.elapsed().as_secs_f64())
}

/// Whether the table is the one that people read, or has become it.
fn is_known(table: &str) -> bool {
    const BEGIN: &str = "<!-- written by the suite -->\n";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("stores/README.md");
    let text = std::fs::read_to_string(&file).expect("the page with the table");
    let (before, rest) = text.split_once(BEGIN).expect("where the table begins");
    let (there, after) = rest.split_once("<!-- to here -->").expect("where it ends");
    if std::env::var("REPLVFS_STORES_TABLE").is_ok_and(|what| what == "write") {
        let text = format!("{before}{BEGIN}\n{table}\n<!-- to here -->{after}");
        std::fs::write(&file, text).expect("writing the table");
        return true;
    }
    there.trim() == table.trim()
}

fn table(rows: &[Row]) -> String {
    let mut text = "| store |".to_owned();
    for (behaviour, _) in BEHAVIOURS {
        let _ = write!(text, " {behaviour} |");
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(BEHAVIOURS.len()));
    for (name, outcomes, seconds) in rows {
        let _ = write!(text, "\n| {name} |");
        for at in 0..BEHAVIOURS.len() {
            let cell = match outcomes.get(at).or(outcomes.first()) {
                Some(Outcome::Right) => "yes",
                Some(Outcome::Wrong) => "**no**",
                Some(Outcome::Skipped(_)) | None => "skipped",
            };
            let _ = write!(text, " {cell} |");
        }
        eprintln!("{name}: {seconds:.1} s");
    }
    text.push('\n');
    text
}
