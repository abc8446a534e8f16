//! What 100 databases cost that are replicated and that nobody writes: CPU, memory, and requests of a server that counts.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use replvfs_tests::s3::{self, Kind, Server};
use replvfs_tests::{flush, status, use_wal};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::Plan;
use crate::peers::{Peer, Replicator, litestream_on_s3, scratch};
use crate::process::{Process, Worker};
use crate::work::{SCHEMA, connect, count};

/// The first argument of the process that has the databases open.
pub(crate) const ROLE: &str = "--databases";
const DATABASES: usize = 100;

pub(crate) fn measure(plan: &Plan) -> Value {
    let server = Server::start();
    let folder = scratch();
    let mut all = json!({});
    for peer in [Peer::Plain, Peer::Async, Peer::Litestream] {
        let databases = folder.path().join(peer.name());
        std::fs::create_dir_all(&databases).expect("a folder");
        for number in 0..DATABASES {
            let connection = Connection::open(databases.join(format!("{number}.db"))).expect("opens");
            use_wal(&connection);
            connection.execute_batch(SCHEMA).expect("a table");
        }
        let done = if peer == Peer::Litestream {
            let replicator = litestream(plan, &server, &databases);
            watch(plan, &server, peer, &replicator.process)
        } else {
            let words = [
                ROLE,
                peer.name(),
                &server.address().to_string(),
                &databases.display().to_string(),
            ];
            let mut worker = Worker::start(&words.map(str::to_owned));
            worker.expect("READY");
            let done = watch(plan, &server, peer, &worker.process);
            worker.end();
            done
        };
        all[peer.name()] = done;
    }
    all
}

/// What a process takes while nothing is done.
fn watch(plan: &Plan, server: &Server, peer: Peer, process: &Process) -> Value {
    // What beginning leaves behind is over then.
    std::thread::sleep(Duration::from_secs(plan.either(2, 20)));
    let (cpu, before) = (process.cpu(), server.counts(peer.name()));
    let time = Duration::from_secs(plan.either(10, 60));
    std::thread::sleep(time);
    let counts = server.counts(peer.name()).since(&before);
    let mut done = json!({ "seconds": time.as_secs(), "CPU": process.cpu() - cpu, "memory": process.memory() });
    for kind in Kind::ALL {
        done["requests"][format!("{kind:?}")] = json!(counts.of(kind));
    }
    done
}

fn litestream(plan: &Plan, server: &Server, folder: &Path) -> Replicator {
    let mut configuration = "dbs:\n".to_owned();
    for number in 0..DATABASES {
        let database = folder.join(format!("{number}.db"));
        let replica = litestream_on_s3(server.address(), &format!("litestream/{number}"));
        configuration += &format!("  - path: {}\n    replica:\n{replica}", database.display());
    }
    let file = folder.join("litestream.yml");
    std::fs::write(&file, configuration).expect("a configuration");
    let mut command = Command::new(&plan.tools.litestream);
    command
        .args(["replicate", "-config"])
        .arg(&file)
        .env_remove("AWS_CA_BUNDLE");
    Replicator::start(
        &mut command,
        &folder.join("log"),
        DATABASES,
        folder.join("socket"),
        folder.to_owned(),
    )
}

pub(crate) fn child(words: &[String]) {
    let (is_replvfs, server, folder) = (words[0] != Peer::Plain.name(), &words[1], Path::new(&words[2]));
    let connections: Vec<Connection> = (0..DATABASES)
        .map(|number| {
            let file = folder.join(format!("{number}.db"));
            let replica = s3::replica(server, &words[0], &number.to_string());
            let parameters = if is_replvfs {
                format!("?vfs=replvfs&replica={replica}")
            } else {
                String::new()
            };
            let connection = connect(&format!("file:{}{parameters}", file.display()), is_replvfs);
            count(&connection);
            connection
        })
        .collect();
    for connection in connections.iter().filter(|_| is_replvfs) {
        flush(connection);
        while status(connection)["image"] != "stored" {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    println!("READY");
    std::io::stdin().read_line(&mut String::new()).expect("its end");
}
