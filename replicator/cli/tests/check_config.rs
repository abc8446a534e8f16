//! `replvfs check-config`: every error at once, where each setting comes from, and no secret in any of it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const SECRET: &str = "hunter2hunter2";

struct Scratch(TempDir);

impl Scratch {
    fn new(text: &str) -> Scratch {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("replvfs.toml"), text).unwrap();
        Scratch(folder)
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("replvfs.toml")
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_replvfs"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("REPLVFS_") {
                command.env_remove(name);
            }
        }
        let output = command
            .arg("check-config")
            .args(arguments)
            .current_dir(self.path())
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        for shown in [&output.stdout, &output.stderr] {
            assert!(!String::from_utf8_lossy(shown).contains(SECRET), "{output:?}");
        }
        output
    }
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_error_is_told_with_its_place() {
    let broken = format!("timeout = 5\n[[database]]\npath = '/srv/app.db'\nrestore = 'yes'\nstore = '{SECRET}'\n");
    let scratch = Scratch::new(&broken);
    let output = scratch.run(&[], &["replvfs.toml"]);
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 3, "{shown}");
    for (line, says) in lines.iter().zip([
        "toml:1:11: timeout is a number",
        "toml:4:1: restore=yes",
        "toml:5:1: store is a table",
    ]) {
        assert!(line.contains(says), "{line}");
    }
    let report = json(&scratch.run(&[], &["replvfs.toml", "--json", "--database", "/srv/app.db"]));
    assert_eq!(report["valid"], false);
    assert_eq!(report["errors"][1]["line"], 4);
    assert_eq!(report["errors"][1]["column"], 1);
    assert!(report["database"].is_null());
}

#[test]
fn the_variable_names_the_file() {
    let scratch = Scratch::new("[[database]]\npath = 'a.db'\nreplica = 'memory://x'\n");
    let file = scratch.file();
    let variable = [("REPLVFS_CONFIG", file.to_str().unwrap())];
    let output = scratch.run(&variable, &[]);
    assert!(output.status.success(), "{output:?}");
    assert!(
        text(&output).ends_with("replvfs.toml: no errors, 1 [[database]] table\n"),
        "{output:?}"
    );
    let missing = scratch.run(&[("REPLVFS_CONFIG", "/nowhere/x.toml")], &[]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        text(&missing).contains("/nowhere/x.toml: the configuration file cannot be read"),
        "{missing:?}"
    );
    let none = scratch.run(&[], &[]);
    assert_eq!(none.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&none.stderr).contains("name it, or set REPLVFS_CONFIG"),
        "{none:?}"
    );
}

#[test]
fn where_the_settings_of_a_database_come_from() {
    let scratch = Scratch::new(&format!(
        "flush_interval = '2s'\n[[database]]\npath = '/srv/*.db'\nreplica = 's3://b/{{name}}?region=eu&access_key_id=id&session_token={SECRET}'\n\
         [database.store]\nsecret_access_key = '{SECRET}'\n"
    ));
    let environment = [("REPLVFS_TIMEOUT", "9s"), ("REPLVFS_FLUSH_INTERVAL", "9s")];
    let arguments = ["replvfs.toml", "--database", "/srv/app.db"];
    let output = scratch.run(&environment, &arguments);
    assert!(output.status.success(), "{output:?}");
    let shown = text(&output);
    for (name, value, source) in [
        ("replica", "s3://b/app.db", "file, line 4"),
        ("flush_interval", "2s", "file, line 1"),
        ("timeout", "9s", "environment"),
        ("restore", "if-missing", "default"),
        ("store.secret_access_key", "…", "file, line 6"),
    ] {
        let line = shown.lines().find(|line| line.split_whitespace().next() == Some(name));
        let words: Vec<&str> = line.unwrap().split_whitespace().collect();
        assert_eq!(words[1], value, "{shown}");
        assert_eq!(words[2..].join(" "), source, "{shown}");
    }
    assert!(
        shown.contains("/srv/app.db: by the table of line 2, /srv/*.db"),
        "{shown}"
    );

    let report = json(&scratch.run(&environment, &[&arguments[..], &["--json"]].concat()));
    let settings = report["database"]["settings"].as_array().unwrap();
    let timeout = settings.iter().find(|setting| setting["name"] == "timeout").unwrap();
    assert_eq!(timeout["source"], "environment");
    assert_eq!(report["database"]["table"]["line"], 2);
    assert_eq!(report["database"]["replica"], "s3://b/app.db");
}

#[test]
fn a_database_that_is_not_replicated_is_no_success() {
    let scratch = Scratch::new("[[database]]\npath = '/srv/app.db'\nreplica = 'memory://x'\n");
    let output = scratch.run(&[], &["replvfs.toml", "--database", "/srv/ap.db"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("it is not replicated: no replica is set for it"),
        "{output:?}"
    );
    let by_environment = scratch.run(&[("REPLVFS_REPLICA", "memory://{name}")], &["--database", "/srv/ap.db"]);
    assert!(by_environment.status.success(), "{by_environment:?}");
    assert!(text(&by_environment).contains("memory://ap.db"), "{by_environment:?}");
    let wrong = scratch.run(
        &[("REPLVFS_TIMEOUT", "soon")],
        &["replvfs.toml", "--database", "/srv/app.db"],
    );
    assert_eq!(wrong.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&wrong.stderr).contains("REPLVFS_TIMEOUT=soon"),
        "{wrong:?}"
    );
}

#[test]
fn a_replica_that_cannot_be_opened_is_an_error_without_a_request() {
    let scratch = Scratch::new(&format!(
        "[[database]]\npath = '/srv/app.db'\nreplica = 's3://b/x?region=eu'\nstore.secret_access_key = '{SECRET}'\n"
    ));
    let output = scratch.run(&[], &["replvfs.toml", "--database", "/srv/app.db"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("belong together"), "{output:?}");
}

#[test]
fn the_store_is_asked_and_nothing_is_made_in_it() {
    let scratch = Scratch::new("");
    let text_of = |replica: &str| format!("[[database]]\npath = 'app.db'\nreplica = '{replica}'\n");
    let folder = scratch.path().join("replica");
    let ask = |replica: &str| {
        std::fs::write(scratch.file(), text_of(replica)).unwrap();
        scratch.run(&[], &["replvfs.toml", "--database", "app.db", "--store"])
    };
    let replica = format!("fs://{}", folder.display());
    let output = ask(&replica);
    assert!(
        output.status.success() && text(&output).contains("no history yet"),
        "{output:?}"
    );
    assert!(!folder.exists());
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("replvfs.json"), "{}").unwrap();
    let output = ask(&replica);
    assert!(
        output.status.success() && text(&output).contains("has a history"),
        "{output:?}"
    );
    let output = ask(&format!("fs://{}/in-a-file", scratch.file().display()));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("the replica cannot be reached"), "{output:?}");
    let nobody = "s3://b/x?region=eu&endpoint=http://127.0.0.1:1&access_key_id=a&secret_access_key=hunter2hunter2&disable_config_load=true";
    let output = ask(nobody);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("the replica cannot be reached"), "{output:?}");
}
