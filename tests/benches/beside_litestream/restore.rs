//! What a restore takes: the same database of 1 GiB, replicated by each to a folder and restored by each one's own program, beside a copy of the file. Half of each row
//! is noise. The second one has commits behind its snapshot.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::Plan;
use crate::peers::{Peer, Place, scratch};
use crate::work::{Content, Load, SCHEMA, start_waiting};

const PEERS: [Peer; 2] = [Peer::Async, Peer::Litestream];
/// Without anything behind the snapshot, and with so many commits of a row, at 1,000 a second.
pub(crate) const KINDS: [&str; 2] = ["snapshot", "with a log"];

pub(crate) fn measure(plan: &Plan) -> Value {
    let folder = scratch();
    let file = folder.path().join("file.db");
    make(&file, plan.either(64, 1024) << 10);
    let mut all = json!({ "bytes": std::fs::metadata(&file).expect("the file").len() });
    for kind in KINDS {
        let places: Vec<Place> = PEERS
            .into_iter()
            .map(|peer| replicate(plan, peer, &file, kind))
            .collect();
        for round in 0..plan.rounds {
            let copied = copy(&file, &folder.path().join("copy.db"));
            push(&mut all[kind]["copy"], json!({ "seconds": copied }));
            for peer in Peer::in_turn(&PEERS, round) {
                let place = places.iter().find(|place| place.peer == peer).expect("a place");
                let out = place.file("restored.db");
                let (seconds, usage) = place.restore(&plan.tools, &out);
                if round == 0 {
                    check(&place.database(), &out);
                }
                let done = json!({ "seconds": seconds, "cpu": usage.cpu, "memory": usage.most_memory });
                push(&mut all[kind][peer.name()], done);
                std::fs::remove_file(&out).expect("removing it");
            }
        }
    }
    all
}

fn push(runs: &mut Value, run: Value) {
    if runs.is_null() {
        *runs = json!([]);
    }
    runs.as_array_mut().expect("runs").push(run);
}

pub(crate) fn make(file: &Path, rows: u64) {
    let connection = Connection::open(file).expect("opens");
    let sql = format!(
        "PRAGMA synchronous=OFF; PRAGMA journal_mode=WAL; {SCHEMA};
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO t(at, b) SELECT i, randomblob(490) || zeroblob(490) FROM n;
         PRAGMA wal_checkpoint(TRUNCATE)"
    );
    connection.execute_batch(&sql).expect("rows");
}

/// A database that is in its replica as a whole.
fn replicate(plan: &Plan, peer: Peer, file: &Path, kind: &str) -> Place {
    let place = Place::new(peer);
    place.copy(file);
    let replicator = place.replicator(&plan.tools);
    let load = Load {
        rows: 1,
        commits: plan.either(3_000, 60_000),
        most: Duration::from_secs(600),
        pace: Some(1000),
        content: Content::Text,
        bytes: 200,
    };
    let mut writer = if kind == KINDS[0] {
        start_waiting(&place)
    } else {
        load.start(&place, &[])
    };
    writer.go_on();
    writer.expect("DONE");
    if let Some(replicator) = replicator {
        replicator.sync(&plan.tools);
        replicator.end();
    }
    writer.end();
    place
}

/// Reads and writes it, until it is on the disk. The seconds.
fn copy(from: &Path, to: &Path) -> f64 {
    let begun = Instant::now();
    let mut copied = File::create_new(to).expect("a new file");
    std::io::copy(&mut File::open(from).expect("the file"), &mut copied).expect("copying");
    copied.sync_all().expect("on the disk");
    let seconds = begun.elapsed().as_secs_f64();
    std::fs::remove_file(to).expect("removing it");
    seconds
}

/// The same rows: Litestream adds tables of its own, so that the files differ.
fn check(original: &Path, restored: &Path) {
    let sum = |file: &Path| {
        let connection = Connection::open(file).expect("opens");
        let sql = "SELECT count(*), sum(a), sum(at % 1000003), sum(length(b)), max(b) FROM t";
        connection
            .query_row(sql, [], |row| {
                (0..4).map(|at| row.get::<_, i64>(at)).collect::<Result<Vec<i64>, _>>()
            })
            .expect("reads")
    };
    assert_eq!(
        sum(original),
        sum(restored),
        "{} is not {}",
        restored.display(),
        original.display()
    );
}
