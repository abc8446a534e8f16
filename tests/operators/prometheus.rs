//! The dashboard and the alerts against the real thing: a Prometheus that asks a program which has all that there is to see.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use replvfs_tests::peer::SqlPeer;
use replvfs_tests::{Scratch, in_ci};

use super::http::{get, metrics, until};
use super::queries::{of_alerts, of_dashboard};
use super::{free_address, take_over};

const LONGEST: Duration = Duration::from_secs(60);

struct Prometheus {
    process: Child,
    address: SocketAddr,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Prometheus {
    /// Asks `target` several times a second.
    fn start(folder: &Path, target: SocketAddr) -> Prometheus {
        let address = free_address();
        let config = folder.join("prometheus.yml");
        let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/grafana/alerts.yml");
        let text = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\nrule_files: ['{rules}']\n\
             scrape_configs: [{{job_name: replvfs, static_configs: [{{targets: ['{target}']}}]}}]\n"
        );
        std::fs::write(&config, text).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let prometheus = Prometheus { process, address };
        let end = Instant::now() + LONGEST;
        while !get(address, "/-/ready").is_ok_and(|(status, _)| status.contains("200")) {
            assert!(Instant::now() < end, "Prometheus does not begin");
            std::thread::sleep(Duration::from_millis(50));
        }
        prometheus
    }

    /// The values that a query has now. A query that is wrong is the test's end.
    fn ask(&self, query: &str) -> Vec<f64> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let (status, body) = get(self.address, &format!("/api/v1/query?query={encoded}")).unwrap();
        assert!(status.contains("200"), "{query}: {status} {body}");
        let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {body}");
        let values = answer["data"]["result"].as_array().unwrap().iter();
        values
            .map(|series| series["value"][1].as_str().unwrap().parse().unwrap())
            .collect()
    }

    /// Until one of its values is that.
    fn until(&self, query: &str, is: impl Fn(f64) -> bool) {
        let end = Instant::now() + LONGEST;
        loop {
            let values = self.ask(query);
            if values.iter().any(|value| is(*value)) {
                return;
            }
            assert!(Instant::now() < end, "{query}: {values:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn is_there(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let found = found.is_ok_and(|status| status.success());
    assert!(found || !in_ci(), "{program} is not installed");
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

#[test]
fn the_rules_are_rules() {
    if !is_there("promtool") {
        return;
    }
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/grafana/alerts.yml");
    let checked = Command::new("promtool")
        .args(["check", "rules", rules])
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn every_query_has_an_answer() {
    if !is_there("prometheus") {
        return;
    }
    let scratch = Scratch::in_memory();
    let address = free_address();
    let mut writer = SqlPeer::start_with(
        &scratch.uri_with("&flush_interval=10ms&wal_limit=1MiB"),
        &[("REPLVFS_METRICS", &address.to_string())],
    );
    writer.sql("PRAGMA journal_mode=WAL; CREATE TABLE t(x); PRAGMA replvfs_flush;");
    let fenced = scratch.file("fenced.db");
    writer.sql(&format!(
        "ATTACH 'file:{}?vfs=replvfs&replica={}&flush_interval=10ms' AS fenced",
        fenced.display(),
        scratch.replica_named("other")
    ));
    writer.sql("PRAGMA fenced.journal_mode=WAL; CREATE TABLE fenced.t(x); PRAGMA fenced.replvfs_flush;");
    writer.sql("INSERT INTO fenced.t VALUES (1); PRAGMA fenced.replvfs_flush;");
    writer.sql(&format!(
        "ATTACH 'file:r?vfs=replvfs-remote&replica={}' AS remote",
        scratch.replica()
    ));
    writer.sql("SELECT count(*) FROM remote.t;");
    let prometheus = Prometheus::start(scratch.path(), address);
    // Rates take a first and a second value.
    prometheus.until("count_over_time(replvfs_txid[60s])", |count| count >= 2.0);
    work(&mut writer);
    let of = format!("database=\"{}\"", scratch.database().display());

    let (there, away) = (scratch.file("replica"), scratch.file("away"));
    std::fs::rename(&there, &away).unwrap();
    writer.sql("INSERT INTO t VALUES (randomblob(100000));");
    prometheus.until("replvfs_trouble", |value| value == 1.0);
    let alerts = of_alerts();
    // Nobody waits for minutes here.
    let alert = |name: &str| {
        let found = alerts.iter().find(|alert| alert.of == name).unwrap();
        found.text.replace("> 300", "> 0.1")
    };
    prometheus.until(&alert("ReplvfsBehind"), |behind| behind > 0.1 && behind < 3600.0);
    prometheus.until(&alert("ReplvfsNotUploading"), |value| value == 1.0);
    assert_eq!(prometheus.ask(&alert("ReplvfsGap")), [] as [f64; 0]);
    // Past wal_limit, which is seen when the WAL could begin again.
    for _ in 0..30 {
        writer.sql("INSERT INTO t VALUES (randomblob(100000)); PRAGMA wal_checkpoint(PASSIVE);");
    }
    until(address, "replvfs_suspended", &[&of], |value| value == 1.0);
    prometheus.until(&alert("ReplvfsGap"), |value| value == 1.0);
    std::fs::rename(&away, &there).unwrap();
    writer.sql("PRAGMA replvfs_flush;");
    prometheus.until("replvfs_gaps_total", |gaps| gaps == 1.0);
    prometheus.until("replvfs_suspended == 0", |value| value == 0.0);
    prometheus.until(&alert("ReplvfsGap"), |gaps| gaps > 0.0);

    let next = metrics(address);
    let txid = super::http::value(&next, "replvfs_txid", &["fenced.db"]).unwrap();
    take_over(&scratch, "other", 1, txid as u64 + 1);
    writer.sql("INSERT INTO fenced.t VALUES (2);");
    prometheus.until(&alert("ReplvfsFenced"), |value| value == 1.0);
    prometheus.until(&alert("ReplvfsEnded"), |value| value == 1.0);
    assert_eq!(prometheus.ask(&alert("ReplvfsNobody")), [] as [f64; 0]);
    prometheus.ask(&alert("ReplvfsUpkeep"));
    work(&mut writer);

    for query in of_dashboard() {
        let end = Instant::now() + LONGEST;
        let mut values = prometheus.ask(&query.text);
        while values.is_empty() {
            assert!(Instant::now() < end, "{}: {} gives nothing", query.of, query.text);
            std::thread::sleep(Duration::from_millis(100));
            values = prometheus.ask(&query.text);
        }
        let is_somewhere = values.iter().any(|value| *value > 0.0);
        let may_be_zero = [
            "deleted",
            "pruned",
            "retries",
            "upkeep",
            "oldest_pending",
            "trouble",
            "pending",
            "captured_memory_bytes",
        ];
        if !may_be_zero.iter().any(|part| query.text.contains(part)) {
            prometheus.until(&query.text, |value| value > 0.0);
        } else {
            assert!(
                is_somewhere || values.iter().all(|value| *value == 0.0),
                "{}: {values:?}",
                query.of
            );
        }
    }
    drop(prometheus);
    writer.end();
}

/// Commits, and pages of a replica that are in memory and that are not.
fn work(writer: &mut SqlPeer) {
    for row in 0..5 {
        writer.sql(&format!("INSERT INTO t VALUES ({row}); PRAGMA replvfs_flush;"));
    }
    writer.sql("PRAGMA remote.replvfs_at='latest'; SELECT count(*) FROM remote.t; SELECT count(*) FROM remote.t;");
}
