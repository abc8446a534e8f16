//! What is sent: the bytes of objects and the requests, of writers at the same pace whose replicas are on a server that counts.

use std::time::Duration;

use replvfs_tests::s3::{Kind, Server};
use serde_json::{Value, json};

use crate::Plan;
use crate::peers::{Peer, Place};
use crate::work::{Content, Load};

const PEERS: [Peer; 2] = [Peer::Async, Peer::Litestream];

/// All at the same time: what is counted does not depend on how fast the machine is, as long as it keeps the pace.
pub(crate) fn measure(plan: &Plan) -> Value {
    let server = Server::start();
    let mut all = json!({});
    for round in 0..plan.rounds.min(3) {
        let runs: Vec<(Peer, Content, Value)> = std::thread::scope(|threads| {
            let running: Vec<_> = PEERS
                .into_iter()
                .flat_map(|peer| Content::ALL.map(|content| (peer, content)))
                .map(|(peer, content)| {
                    let server = &server;
                    threads.spawn(move || (peer, content, run(plan, server, peer, content, round)))
                })
                .collect();
            running.into_iter().map(|run| run.join().expect("no panic")).collect()
        });
        for (peer, content, done) in runs {
            let runs = &mut all[content.name()][peer.name()];
            if runs.is_null() {
                *runs = json!([]);
            }
            runs.as_array_mut().expect("runs").push(done);
        }
    }
    all
}

fn run(plan: &Plan, server: &Server, peer: Peer, content: Content, round: usize) -> Value {
    let group = format!("{}-{}-{round}", peer.name(), content.name());
    let place = Place::on(server, peer, &group);
    place.create();
    let replicator = place.replicator(&plan.tools);
    let load = Load {
        rows: 1,
        commits: plan.either(10_000, 130_000),
        most: Duration::from_secs(600),
        pace: Some(1000),
        content,
        bytes: 200,
    };
    let mut writer = load.start(&place, &[]);
    let (before, uploads) = (server.counts(&group), server.uploads(&group).len());
    writer.go_on();
    let mut done: Value = serde_json::from_str(&writer.expect("DONE")).expect("JSON");
    if let Some(replicator) = &replicator {
        replicator.sync(&plan.tools);
    }
    let counts = server.counts(&group).since(&before);
    let uploads = server.uploads(&group).split_off(uploads);
    writer.end();
    drop(replicator);
    done["bytes"] = json!(counts.bytes);
    for upload in uploads {
        let of_kind = &mut done["objects"][kind(&upload.key)];
        let (number, bytes) = (of_kind["number"].as_u64(), of_kind["bytes"].as_u64());
        *of_kind = json!({ "number": number.unwrap_or(0) + 1, "bytes": bytes.unwrap_or(0) + upload.bytes as u64 });
    }
    for kind in Kind::ALL {
        done["requests"][format!("{kind:?}")] = json!(counts.of(kind));
    }
    done
}

/// What an object is, by its name: `gen/log`, `gen/image`, `chunk` and so on; of Litestream's the level, `0000` to `0009`.
fn kind(key: &str) -> String {
    let name = key.splitn(3, '/').nth(2).unwrap_or_default();
    let is_level = |word: &&str| word.len() == 4 && word.starts_with("000");
    let is_word = |word: &&str| word.len() > 2 && word.bytes().all(|byte| byte.is_ascii_lowercase());
    let words: Vec<&str> = name.split('/').filter(|word| is_level(word) || is_word(word)).collect();
    words.join("/")
}
