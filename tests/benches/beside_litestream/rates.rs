//! What commits cost a writer whose replica is in a folder: their rate, what each takes, and the CPU of replication, until all of it is in the replica.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Plan;
use crate::peers::{Peer, Place};
use crate::work::{Content, Load, connect, count};

pub(crate) const LOADS: [&str; 3] = ["small", "batches", "paced"];

fn load(plan: &Plan, name: &str) -> Load {
    let (rows, commits, pace) = match name {
        "small" => (1, plan.either(60_000, 300_000), None),
        "batches" => (1000, plan.either(200, 1_500), None),
        _ => (1, plan.either(3_000, 6_000), Some(1000)),
    };
    Load {
        rows,
        commits,
        most: Duration::from_secs(plan.either(3, 8)),
        pace,
        content: Content::Text,
        bytes: 100,
    }
}

pub(crate) fn measure(plan: &Plan) -> Value {
    let mut all = json!({});
    for round in 0..plan.rounds {
        for name in LOADS {
            for peer in Peer::in_turn(&Peer::ALL, round) {
                let done = run(plan, peer, &load(plan, name), round + 1 == plan.rounds);
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

fn run(plan: &Plan, peer: Peer, load: &Load, is_checked: bool) -> Value {
    let place = Place::new(peer);
    place.create();
    let replicator = place.replicator(&plan.tools);
    let mut writer = load.start(&place, &[]);
    let wal = Wal::watch(place.file("db/app.db-wal"));
    writer.go_on();
    let mut done: Value = serde_json::from_str(&writer.expect("DONE")).expect("JSON");
    if let Some(replicator) = &replicator {
        let begun = Instant::now();
        replicator.sync(&plan.tools);
        done["catch up"] = json!(begun.elapsed().as_secs_f64());
    }
    done["largest WAL"] = json!(wal.largest());
    writer.end();
    done["replicator CPU"] = json!(replicator.map_or(0.0, |replicator| replicator.end()));
    if is_checked && peer != Peer::Plain {
        let out = place.file("restored.db");
        place.restore(&plan.tools, &out);
        let restored = connect(&format!("file:{}", out.display()), false);
        assert_eq!(
            Some(count(&restored)),
            done["rows"].as_u64(),
            "{}: rows in the replica",
            peer.name()
        );
    }
    done
}

/// How long the WAL has been at most: looked at often, since who checkpoints may truncate it.
pub(crate) struct Wal {
    watching: Option<std::thread::JoinHandle<u64>>,
    is_over: std::sync::Arc<AtomicBool>,
}

impl Wal {
    pub(crate) fn watch(path: PathBuf) -> Wal {
        let is_over = std::sync::Arc::new(AtomicBool::new(false));
        let over = std::sync::Arc::clone(&is_over);
        let watching = std::thread::spawn(move || {
            let mut largest = 0;
            while !over.load(Ordering::Relaxed) {
                largest = largest.max(std::fs::metadata(&path).map_or(0, |file| file.len()));
                std::thread::sleep(Duration::from_millis(20));
            }
            largest
        });
        Wal {
            watching: Some(watching),
            is_over,
        }
    }

    pub(crate) fn largest(mut self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.watching.take().expect("once").join().expect("no panic")
    }
}
