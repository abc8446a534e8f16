//! The queries of the dashboard and of the alerts, as Grafana and Prometheus ask them.

/// In which panel or alert, and the query.
pub(super) struct Query {
    pub(super) of: String,
    pub(super) text: String,
}

/// What Grafana puts in place of its variables.
fn filled(text: &str) -> String {
    text.replace("$__rate_interval", "60s")
        .replace("$database", ".*")
        .replace("$replica", ".*")
}

pub(super) fn of_dashboard() -> Vec<Query> {
    let text = include_str!("../../examples/grafana/replvfs.json");
    let dashboard: serde_json::Value = serde_json::from_str(text).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            queries.push(Query {
                of: format!("panel {title}"),
                text: filled(query),
            });
        }
    }
    for query in &queries {
        assert!(!query.text.contains('$'), "{}: {}", query.of, query.text);
    }
    queries
}

/// The rules are one to a line.
pub(super) fn of_alerts() -> Vec<Query> {
    let text = include_str!("../../examples/grafana/alerts.yml");
    let mut queries = Vec::new();
    let mut alert = "";
    for line in text.lines() {
        if let Some(name) = line.trim().strip_prefix("- alert: ") {
            alert = name;
        } else if let Some(query) = line.trim().strip_prefix("expr: ") {
            queries.push(Query {
                of: alert.to_owned(),
                text: query.to_owned(),
            });
        }
    }
    queries
}

#[test]
fn they_are_found() {
    assert!(of_dashboard().len() >= 30, "{}", of_dashboard().len());
    assert_eq!(of_alerts().len(), 7);
}
