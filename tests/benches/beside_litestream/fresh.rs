//! How long after its return a commit can be restored that comes alone: until the server has the object with it. At the end the replica is restored by the peer's own
//! program, and has the last one.

use std::time::Duration;

use replvfs_tests::s3::Server;
use serde_json::{Value, json};

use crate::Plan;
use crate::peers::{Peer, Place};
use crate::work::{Content, Load, connect, count};

const PEERS: [Peer; 2] = [Peer::Async, Peer::Litestream];
pub(crate) const DELAYS: [u64; 2] = [0, 20];

pub(crate) fn measure(plan: &Plan) -> Value {
    let mut all = json!({});
    let runs: Vec<(u64, Peer, Value)> = std::thread::scope(|threads| {
        let running: Vec<_> = DELAYS
            .into_iter()
            .flat_map(|delay| PEERS.map(|peer| (delay, peer)))
            .map(|(delay, peer)| threads.spawn(move || (delay, peer, run(plan, delay, peer))))
            .collect();
        running.into_iter().map(|run| run.join().expect("no panic")).collect()
    });
    for (delay, peer, waited) in runs {
        all[delay.to_string()][peer.name()] = waited;
    }
    all
}

fn run(plan: &Plan, delay: u64, peer: Peer) -> Value {
    let server = Server::start_away(Duration::from_millis(delay));
    let place = Place::on(&server, peer, "fresh");
    place.create();
    let replicator = place.replicator(&plan.tools);
    let load = Load {
        rows: 1,
        commits: plan.either(5, 40),
        most: Duration::from_secs(600),
        pace: None,
        content: Content::Text,
        bytes: 100,
    };
    // Pauses of 2.2 to 4.4 s.
    let mut writer = load.start(&place, &["pause=2200"]);
    writer.go_on();
    let done: Value = serde_json::from_str(&writer.expect("DONE")).expect("JSON");
    if let Some(replicator) = &replicator {
        replicator.sync(&plan.tools);
    }
    let is_commits = |key: &str| match peer {
        Peer::Litestream => key.contains("/ltx/0/") || key.contains("/0000/"),
        _ => key.contains("/log/"),
    };
    let uploads: Vec<u64> = server
        .uploads("fresh")
        .into_iter()
        .filter(|upload| is_commits(&upload.key))
        .map(|upload| upload.at)
        .collect();
    let returned = done["returned"].as_array().expect("times");
    let returned: Vec<u64> = returned.iter().map(|time| time.as_u64().expect("a time")).collect();
    let waited: Vec<f64> = returned
        .iter()
        .enumerate()
        .map(|(at, time)| {
            let first = uploads.iter().find(|upload| *upload >= time);
            let first = *first.unwrap_or_else(|| panic!("{}: a commit was not uploaded", peer.name()));
            // One that is there only with the next one would be taken for the next one's.
            assert!(
                returned.get(at + 1).is_none_or(|next| first < *next),
                "{}: {first}",
                peer.name()
            );
            (first - time) as f64 / 1000.0
        })
        .collect();
    writer.end();
    drop(replicator);
    let out = place.file("restored.db");
    place.restore(&plan.tools, &out);
    let restored = connect(&format!("file:{}", out.display()), false);
    assert_eq!(
        count(&restored),
        returned.len() as u64,
        "{}: what was restored",
        peer.name()
    );
    json!(waited)
}
