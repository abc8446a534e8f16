//! What replicating costs where requests are paid for, and where one process has many databases: requests by kind, and what they cost at S3; threads, memory, descriptors,
//! time. The store is an S3 server of the bench's own on this machine, in another process, which counts.
//!
//! `cargo bench --bench cost [-- requests [SECONDS]]`, by default 600, or `-- scale [IDLE [BUSY]]`, by default 1000 and 100; without a word both. What is asked does not
//! depend on what else the machine does; times do.
#![allow(missing_docs)]

mod requests;
mod scale;

use replvfs_tests::s3;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let number = |at: usize, otherwise| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(otherwise);
    match words.first().map(String::as_str) {
        Some(s3::ROLE) => s3::serve(),
        Some(scale::ROLE) => scale::child(&words[1..]),
        Some("requests") => requests::measure(number(1, 600)),
        Some("scale") => scale::measure(number(1, 1000), number(2, 100)),
        _ => {
            requests::measure(600);
            scale::measure(1000, 100);
        }
    }
}
