//! What the program prints of a replica, which is made of the golden objects of the format.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::{Command, Output};

use replvfs::format::{LocalState, STATE_SLOT_BYTES};
use serde_json::Value;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden");

/// One generation with an image, a segment of three transactions, and a seal.
fn replica(folder: &Path) -> String {
    let generation = folder.join("gen/000000000000002a");
    for (from, to) in [
        ("replvfs.json", folder.join("replvfs.json")),
        ("generation.json", generation.join("generation.json")),
        ("manifest", generation.join("image/0000000000000063")),
        ("segment", generation.join("log/0000000000000064")),
        ("seal", generation.join("log/0000000000000067")),
        (
            "chunk",
            folder.join("chunk").join("ab".repeat(32) + "-0123456789abcdef"),
        ),
    ] {
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(Path::new(GOLDEN).join(from), to).unwrap();
    }
    format!("fs://{}", folder.display())
}

fn replvfs(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_replvfs"))
        .args(arguments)
        .output()
        .unwrap()
}

fn text(arguments: &[&str]) -> String {
    let output = replvfs(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&text(arguments)).unwrap()
}

/// Every line of what is for people fits a terminal, apart from names that are as long as they are.
fn assert_fits(shown: &str) {
    for line in shown.lines().filter(|line| !line.starts_with("replica ")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn the_log_shows_generations_and_what_can_be_restored() {
    let folder = tempfile::tempdir().unwrap();
    let uri = replica(folder.path());
    let shown = text(&["log", &uri]);
    assert_fits(&shown);
    for says in [
        "generation 000000000000002a",
        "follows generation 0000000000000029 at transaction 99",
        "image at transaction 99, taken 20",
        "1 segment, ",
        "ended 20",
    ] {
        assert!(shown.contains(says), "{says}: {shown}");
    }
    assert!(!shown.contains("not restorable"), "{shown}");
    let told = json(&["log", &uri, "--json", "--limit", "2"]);
    let generation = &told["generations"][0];
    assert_eq!(generation["images"], serde_json::json!([99]));
    assert!(generation["sealed_at"].is_string());
    assert_eq!(generation["left_by"], serde_json::json!([]));
    let transactions = generation["transactions"].as_array().unwrap();
    let txids: Vec<u64> = transactions
        .iter()
        .map(|entry| entry["txid"].as_u64().unwrap())
        .collect();
    assert_eq!(txids, [101, 102]);
    for entry in transactions {
        assert_eq!(entry["restorable"], true);
        let pages = entry["pages_written"].as_u64().unwrap();
        assert_eq!(entry["bytes_written"].as_u64().unwrap(), 512 * pages);
        assert_eq!(entry["segment"], "gen/000000000000002a/log/0000000000000064");
    }
    // Without the image nothing can be.
    std::fs::remove_file(folder.path().join("gen/000000000000002a/image/0000000000000063")).unwrap();
    let shown = text(&["log", &uri]);
    assert_eq!(shown.matches("not restorable").count(), 3, "{shown}");
    let told = json(&["log", &uri, "--json"]);
    assert_eq!(told["generations"][0]["transactions"][0]["restorable"], false);
}

#[test]
fn the_status_of_a_replica_tells_how_far_it_goes_and_what_it_takes() {
    let folder = tempfile::tempdir().unwrap();
    let uri = replica(folder.path());
    let shown = text(&["status", &uri]);
    assert_fits(&shown);
    for says in [
        "newest        transaction 102 of 20",
        " ago)",
        "image         transaction 99 of 20",
        "ended",
    ] {
        assert!(shown.contains(says), "{says}: {shown}");
    }
    let told = json(&["status", &uri, "--json"]);
    assert_eq!(told["newest"]["txid"], 102);
    assert_eq!(told["newest_image"]["txid"], 99);
    assert!(told["newest_age_seconds"].as_i64().unwrap() > 0);
    let of = |kind: &str| told["objects"][kind]["objects"].as_u64().unwrap();
    assert_eq!(
        ["segments", "spans", "seals", "images", "chunks", "descriptions"].map(of),
        [1, 0, 1, 1, 1, 2]
    );
    let size = std::fs::metadata(Path::new(GOLDEN).join("segment")).unwrap().len();
    assert_eq!(told["objects"]["segments"]["bytes"], size);
    let generation = &told["generations"][0];
    assert_eq!(generation["restorable"], true);
    assert_eq!(generation["segment_bytes"], size);
    assert!(generation["sealed_at"].is_string());
}

#[test]
fn the_status_of_a_database_tells_that_it_is_fenced() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("app.db");
    std::fs::write(&database, b"").unwrap();
    let told = json(&["status", database.to_str().unwrap(), "--json"]);
    assert!(told["state"].is_null());
    let bytes = std::fs::read(Path::new(GOLDEN).join("state")).unwrap();
    let mut state = LocalState::from_file(&bytes).unwrap().unwrap();
    let write = |state: &LocalState| {
        let mut file = vec![0; 2 * STATE_SLOT_BYTES];
        let at = LocalState::offset(state.sequence) as usize;
        file[at..at + STATE_SLOT_BYTES].copy_from_slice(&state.to_slot().unwrap());
        std::fs::write(folder.path().join("app.db-replvfs"), file).unwrap();
    };
    write(&state);
    let told = json(&["status", database.to_str().unwrap(), "--json"]);
    assert_eq!(told["state"]["fenced"], false);
    let shown = text(&["status", database.to_str().unwrap()]);
    assert!(!shown.contains("fenced"), "{shown}");
    state.fenced = true;
    write(&state);
    let told = json(&["status", database.to_str().unwrap(), "--json"]);
    assert_eq!(told["state"]["fenced"], true);
    let shown = text(&["status", database.to_str().unwrap()]);
    assert!(
        shown.contains("fenced        another machine has taken over"),
        "{shown}"
    );
}

#[test]
fn its_name_is_not_that_of_its_crate() {
    assert!(text(&["--version"]).starts_with("replvfs "));
}

#[test]
fn exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let nothing = format!("fs://{}", folder.path().display());
    for (arguments, code) in [
        (vec!["status", nothing.as_str()], 1),
        (vec!["log", nothing.as_str()], 1),
        (vec!["status", "/nowhere/app.db"], 1),
        (vec!["completions", "cmd"], 2),
        (vec!["log"], 2),
        (vec!["completions", "bash"], 0),
        (vec!["man", folder.path().to_str().unwrap()], 0),
    ] {
        let output = replvfs(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert_eq!(output.stderr.is_empty(), code == 0, "{arguments:?}");
    }
    let help = text(&["--help"]);
    assert!(!help.contains("  man"), "it is for who builds packages: {help}");
}
