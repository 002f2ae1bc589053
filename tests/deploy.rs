//! What is to be deployed beside Egret: alerts that are tested, and a dashboard that asks for what there is.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use egret::metrics;
use serde_json::Value;

fn deployed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

fn promtool(arguments: &[&str], directory: &Path) -> String {
    let output = Command::new("promtool").args(arguments).current_dir(directory).output();
    let output = output.unwrap_or_else(|error| panic!("promtool, of the Debian package prometheus: {error}"));
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "promtool {arguments:?}\n{said}");
    said
}

/// Names of Egret's metrics in an expression, without what Prometheus appends to a histogram's.
fn names(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| word.starts_with("egret_") || word.starts_with("process_"));
    ours.map(|word| {
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
        of_histogram.unwrap_or(word).to_owned()
    })
    .collect()
}

fn assert_exported(names: &BTreeSet<String>) {
    let exported: BTreeSet<String> = metrics::ALL.iter().map(|metric| metric.name.to_owned()).collect();
    let unknown: Vec<_> = names.difference(&exported).collect();
    assert!(unknown.is_empty(), "not exported: {unknown:?}");
}

fn values<'a>(text: &'a str, key: &str) -> BTreeSet<&'a str> {
    let after = |line: &'a str| {
        line.split_once(key).map(|(_, rest)| rest.split(['}', ',']).next().unwrap_or(rest).trim())
    };
    text.lines().filter_map(after).collect()
}

#[test]
fn alerts_fire_when_they_should_and_not_otherwise() {
    let directory = deployed("prometheus");
    promtool(&["check", "rules", "alerts.yml"], &directory);
    promtool(&["test", "rules", "alerts_test.yml"], &directory);
    let rules = std::fs::read_to_string(directory.join("alerts.yml")).unwrap();
    let tests = std::fs::read_to_string(directory.join("alerts_test.yml")).unwrap();
    let alerts = values(&rules, "- alert:");
    assert!(alerts.len() > 10, "{alerts:?}");
    assert_eq!(alerts, values(&tests, "        alertname:"), "each alert has a test in which it fires");
    // Its own metrics alone: `up` is Prometheus's.
    let expressions: Vec<&str> =
        rules.lines().filter(|line| !line.trim_start().starts_with("description")).collect();
    assert_exported(&names(&expressions.join("\n")));
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are_in_queries_that_parse() {
    let text = std::fs::read_to_string(deployed("grafana/egret.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    assert!(dashboard["schemaVersion"].as_u64() >= Some(36) && dashboard["title"] == "Egret");
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    let mut queries = vec![dashboard["annotations"]["list"][1]["expr"].as_str().unwrap()];
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "two panels of one id: {panel}");
        assert!(panel["gridPos"]["x"].as_u64().unwrap() + panel["gridPos"]["w"].as_u64().unwrap() <= 24);
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{panel}");
        queries.extend(targets.iter().map(|target| target["expr"].as_str().unwrap()));
    }
    assert!(queries.len() > 30);
    let asked: BTreeSet<String> = queries.iter().flat_map(|query| names(query)).collect();
    assert_exported(&asked);
    // As rules, promtool looks at their syntax.
    let variables = [
        ("$__rate_interval", "5m"),
        ("$__range", "6h"),
        ("$price", "0.045"),
        ("$job", "egret"),
        ("$instance", ".*"),
    ];
    let rules: Vec<Value> = queries
        .iter()
        .enumerate()
        .map(|(number, query)| {
            let query =
                variables.iter().fold((*query).to_owned(), |query, (name, value)| query.replace(name, value));
            assert!(!query.contains('$'), "{query}");
            serde_json::json!({ "record": format!("query:{number}"), "expr": query })
        })
        .collect();
    let file = std::env::temp_dir().join(format!("egret-dashboard-{}.yml", std::process::id()));
    // JSON is YAML.
    let rules = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    std::fs::write(&file, rules.to_string()).unwrap();
    promtool(&["check", "rules", file.to_str().unwrap()], Path::new("/"));
    std::fs::remove_file(file).unwrap();
}

#[test]
fn metrics_that_nobody_looks_at_are_few() {
    let read = |name| std::fs::read_to_string(deployed(name)).unwrap();
    let looked_at = names(&(read("prometheus/alerts.yml") + &read("grafana/egret.json")));
    let unseen: Vec<_> =
        metrics::ALL.iter().map(|metric| metric.name).filter(|name| !looked_at.contains(*name)).collect();
    assert!(unseen.len() * 2 < metrics::ALL.len(), "{unseen:?}");
}

/// The version of a release for what git says of the sources, by the lines of `deploy/dist` that make it.
fn version(described: &str) -> String {
    let script = std::fs::read_to_string(deployed("dist")).unwrap();
    let lines = script.lines().skip_while(|line| !line.starts_with("package="));
    let lines: Vec<&str> = lines.take_while(|line| !line.starts_with("SOURCE_DATE_EPOCH")).collect();
    let script = format!("git() {{ echo {described}; }}\n{}\necho \"$version\"", lines.join("\n"));
    let root = env!("CARGO_MANIFEST_DIR");
    let output = Command::new("sh").args(["-euc", &script]).current_dir(root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn versions_are_in_the_order_in_which_they_were_made() {
    let described = [
        "v0.1.0",
        "v0.1.0-5-gabcdef0",
        "v1.0.0-rc1",
        "v1.0.0-rc1-3-gabcdef0",
        "v1.0.0-rc1-3-gabcdef0-dirty",
        "v1.0.0-rc2",
        "v1.0.0",
        "v1.0.0-12-gabcdef0",
        "v1.0.1",
    ];
    let versions = described.map(version);
    assert_eq!(versions[1..4], ["0.1.0+5.gabcdef0", "1.0.0~rc1", "1.0.0~rc1+3.gabcdef0"]);
    for pair in versions.windows(2) {
        let order = ["--compare-versions", &pair[0], "lt", &pair[1]];
        assert!(Command::new("dpkg").args(order).status().unwrap().success(), "{pair:?}");
    }
    assert_eq!(version("v1.0.0-dirty"), "1.0.0+dirty");
    assert_eq!(version("abcdef0-dirty"), concat!(env!("CARGO_PKG_VERSION"), "+gabcdef0.dirty"));
}

#[test]
fn the_services_exposure_is_at_most_two() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/egret.service");
    let output =
        Command::new("systemd-analyze").args(["security", "--offline=yes", "--no-pager"]).arg(unit).output();
    let Ok(output) = output else {
        eprintln!("not looked at: there is no systemd-analyze here");
        return;
    };
    let said = String::from_utf8(output.stdout).unwrap();
    let last = said.lines().last().unwrap_or_default();
    let exposure =
        last.split_once("egret.service: ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok());
    assert!(exposure.is_some_and(|exposure| exposure <= 2.0), "{said}");
}
