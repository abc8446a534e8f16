//! What readers notice of replication: random rows of a database, read by a process of its own as fast as it can, alone and beside a writer that never pauses.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Plan;
use crate::peers::{Peer, Place, scratch};
use crate::rates::Wal;
use crate::restore::make;
use crate::work::{Content, Load, start_reader};

const PEERS: [Peer; 3] = [Peer::Plain, Peer::Async, Peer::Litestream];

pub(crate) fn measure(plan: &Plan) -> Value {
    let folder = scratch();
    let file = folder.path().join("file.db");
    let rows = plan.either(16, 128) << 10;
    make(&file, rows);
    let mut all = json!({});
    for round in 0..plan.rounds {
        for peer in Peer::in_turn(&PEERS, round) {
            let done = run(plan, peer, &file, rows);
            let runs = &mut all[peer.name()];
            if runs.is_null() {
                *runs = json!([]);
            }
            runs.as_array_mut().expect("runs").push(done);
        }
    }
    all
}

fn run(plan: &Plan, peer: Peer, file: &Path, rows: u64) -> Value {
    let place = Place::new(peer);
    place.copy(file);
    let time = Duration::from_secs(plan.either(1, 5));
    let replicator = place.replicator(&plan.tools);
    let load = Load {
        rows: 1,
        commits: u64::MAX,
        most: time,
        pace: None,
        content: Content::Text,
        bytes: 100,
    };
    // It is there from the beginning: without it nothing would replicate in the program's own process.
    let mut writer = load.start(&place, &[]);
    let mut alone = start_reader(&place, rows, time);
    alone.go_on();
    let alone_done: Value = serde_json::from_str(&alone.expect("DONE")).expect("JSON");
    alone.end();
    let mut beside = start_reader(&place, rows, time);
    let wal = Wal::watch(place.file("db/app.db-wal"));
    writer.go_on();
    beside.go_on();
    let beside_done: Value = serde_json::from_str(&beside.expect("DONE")).expect("JSON");
    let written: Value = serde_json::from_str(&writer.expect("DONE")).expect("JSON");
    let largest = wal.largest();
    beside.end();
    writer.end();
    drop(replicator);
    json!({ "alone": alone_done, "beside": beside_done, "written": written, "largest WAL": largest })
}
