//! replvfs beside Litestream and plain SQLite: the same work on the same machine in the same run, each as it comes. What commits cost, what is sent, when a commit can be
//! restored, what is lost when all is killed, what a restore takes, what readers notice, and what databases cost that nobody writes. The folder's README says what has to
//! be installed, and what is measured how.
//!
//! `cargo bench --bench beside_litestream [-- PARTS… [--rounds N] [--short]]`; `-- table` prints what was measured last.
#![allow(missing_docs)]

mod bytes;
mod fresh;
mod idle;
mod loss;
mod peers;
mod process;
mod rates;
mod reads;
mod restore;
mod table;
mod work;

use std::path::PathBuf;
use std::time::Instant;

use peers::Tools;
use replvfs_tests::s3;
use serde_json::{Value, json};

/// What all parts are told.
struct Plan {
    tools: Tools,
    rounds: usize,
    /// A run of a few minutes, whose numbers mean little.
    is_short: bool,
}

impl Plan {
    fn either<T>(&self, short: T, long: T) -> T {
        if self.is_short { short } else { long }
    }
}

type Part = (&'static str, fn(&Plan) -> Value);

const PARTS: [Part; 7] = [
    ("rates", rates::measure),
    ("bytes", bytes::measure),
    ("fresh", fresh::measure),
    ("loss", loss::measure),
    ("restore", restore::measure),
    ("reads", reads::measure),
    ("idle", idle::measure),
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.first().map(String::as_str) {
        Some(s3::ROLE) => return s3::serve(),
        Some(work::ROLE) => return work::child(&words[1..]),
        Some(idle::ROLE) => return idle::child(&words[1..]),
        _ => {}
    }
    let place = std::env::var_os("REPLVFS_BENCH_RESULTS").map(PathBuf::from);
    let place = place.unwrap_or_else(|| peers::target().join("beside_litestream.json"));
    let earlier = std::fs::read(&place)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut results: Value = earlier.unwrap_or_else(|| json!({}));
    if words.iter().any(|word| word == "table") {
        return table::print(&results);
    }
    let rounds = words.iter().position(|word| word == "--rounds");
    let rounds = rounds.map(|at| words[at + 1].parse().expect("a number of rounds"));
    let is_short = words.iter().any(|word| word == "--short");
    let plan = Plan {
        tools: Tools::find(),
        rounds: rounds.unwrap_or(if is_short { 1 } else { 5 }),
        is_short,
    };
    let is_wanted = |name: &str| words.iter().any(|word| word == name);
    let all = !PARTS.iter().any(|(name, _)| is_wanted(name));
    for (name, measure) in PARTS {
        if !all && !is_wanted(name) {
            continue;
        }
        let (begun, busy) = (Instant::now(), process::load());
        eprintln!("{name} …");
        let measured = measure(&plan);
        results[name] = json!({
            "machine": peers::machine(&plan.tools),
            "short": is_short,
            "load before": busy,
            "took": begun.elapsed().as_secs_f64(),
            "measured": measured,
        });
        eprintln!("{name}: {:.0?}", begun.elapsed());
        let text = serde_json::to_vec_pretty(&results).expect("JSON");
        std::fs::write(&place, text).expect("writing the results");
    }
    table::print(&results);
    eprintln!("all of it is in {}", place.display());
}
