//! What is lost when everything is killed at a random moment and the disk is gone: the writer says each commit that has returned; what the replica does not have of them
//! is lost.

use std::io::Read;
use std::time::Duration;

use replvfs_tests::Rng;
use replvfs_tests::s3::Server;
use serde_json::{Value, json};

use crate::Plan;
use crate::peers::{Peer, Place};
use crate::work::{Content, Load, connect};

const DELAY: Duration = Duration::from_millis(20);
pub(crate) const LOADS: [(&str, Option<u64>); 2] = [("paced", Some(1000)), ("full", None)];

pub(crate) fn measure(plan: &Plan) -> Value {
    let server = Server::start_away(DELAY);
    let mut all = json!({});
    let mut rng = Rng::new(u64::from(std::process::id()));
    for (name, pace) in LOADS {
        for round in 0..plan.rounds * 2 {
            let runs: Vec<(Peer, Duration)> = Peer::in_turn(&Peer::REPLICATED, round)
                .into_iter()
                .map(|peer| {
                    (
                        peer,
                        Duration::from_millis(plan.either(3_000, 5_000) + rng.below(plan.either(2_000, 7_000))),
                    )
                })
                .collect();
            let run = |(peer, time): (Peer, Duration)| {
                let group = format!("{}-{name}-{round}", peer.name());
                (peer, run(plan, &server, peer, &group, pace, time))
            };
            // At a pace all at the same time.
            let done: Vec<(Peer, Value)> = if pace.is_some() {
                std::thread::scope(|threads| {
                    let run = &run;
                    let running: Vec<_> = runs.into_iter().map(|one| threads.spawn(move || run(one))).collect();
                    running.into_iter().map(|run| run.join().expect("no panic")).collect()
                })
            } else {
                runs.into_iter().map(run).collect()
            };
            for (peer, done) in done {
                let runs = &mut all[name][peer.name()];
                if runs.is_null() {
                    *runs = json!([]);
                }
                runs.as_array_mut().expect("runs").push(done);
            }
        }
    }
    all
}

fn run(plan: &Plan, server: &Server, peer: Peer, group: &str, pace: Option<u64>, time: Duration) -> Value {
    let place = Place::on(server, peer, group);
    place.create();
    let replicator = place.replicator(&plan.tools);
    let load = Load {
        rows: 1,
        commits: u64::MAX,
        most: Duration::from_secs(600),
        pace,
        content: Content::Text,
        bytes: 100,
    };
    let mut writer = load.start(&place, &["report=1"]);
    writer.go_on();
    let (number, at) = std::thread::scope(|threads| {
        let output = &mut writer.output;
        let heard = threads.spawn(move || last_record(output));
        std::thread::sleep(time);
        // At once, one after the other.
        writer.process.signal(libc::SIGKILL);
        if let Some(replicator) = &replicator {
            replicator.process.signal(libc::SIGKILL);
        }
        heard.join().expect("no panic")
    });
    drop(writer);
    drop(replicator);
    std::fs::remove_dir_all(place.file("db")).expect("the disk is gone");
    let out = place.file("restored.db");
    place.restore(&plan.tools, &out);
    let restored = connect(&format!("file:{}", out.display()), false);
    let read = |sql: &str| {
        let number = restored.query_row(sql, [], |row| row.get::<_, Option<i64>>(0));
        u64::try_from(number.expect("reads").unwrap_or(0)).expect("a number")
    };
    let (rows, last, last_at) = (
        read("SELECT count(*) FROM t"),
        read("SELECT max(a) FROM t"),
        read("SELECT max(at) FROM t"),
    );
    assert_eq!(rows, last, "{}: rows are missing in between", peer.name());
    let lost = number.saturating_sub(rows);
    assert!(
        lost == 0 || matches!(peer, Peer::Async | Peer::Litestream),
        "{} lost {lost} of {number} rows",
        peer.name()
    );
    let seconds = if lost == 0 {
        0.0
    } else {
        at.saturating_sub(last_at) as f64 / 1e6
    };
    json!({ "reported": number, "lost": lost, "seconds": seconds })
}

/// The last number and time that the writer said, when its end is heard.
fn last_record(output: &mut impl Read) -> (u64, u64) {
    let (mut buffer, mut last) = (Vec::new(), (0, 0));
    let mut piece = [0; 1 << 16];
    loop {
        let read = output.read(&mut piece).expect("a pipe");
        buffer.extend_from_slice(&piece[..read]);
        let whole = buffer.len() / 16 * 16;
        if let Some(record) = buffer[..whole].chunks_exact(16).next_back() {
            let number = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().expect("eight"));
            last = (number(0), number(8));
        }
        buffer.drain(..whole);
        if read == 0 {
            return last;
        }
    }
}
