//! The metrics' document is what the code says, and Prometheus's own tool finds nothing to complain of.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use egret::balance::{self, AdmissionCounters, Serving, State, TargetCounters, TargetSnapshot};
use egret::datapath::{self, FastPath, Snapshot};
use egret::forward::{self, Latency, Mode, Report};
use egret::metrics::{self, Aws, Fleet, Sample, SessionLogCounts};
use egret::nat::{self, AddressUse};

#[test]
fn the_document_is_as_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    if std::env::var_os("EGRET_WRITE_DOCS").is_some() {
        std::fs::write(path, metrics::document()).unwrap();
    }
    let there = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        there == metrics::document(),
        "docs/metrics.md is out of date: run this test with EGRET_WRITE_DOCS=1 in the environment"
    );
}

#[test]
fn all_metrics_of_the_catalogue_are_scraped_and_no_others() {
    let page = page();
    let scraped: BTreeSet<(&str, &str)> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let known: BTreeSet<(&str, &str)> =
        metrics::ALL.iter().map(|metric| (metric.name, metric.kind.label())).collect();
    assert_eq!(scraped, known);
}

#[test]
fn labels_are_those_of_the_catalogue() {
    for line in page().lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let found = metrics::ALL.iter().find(|metric| {
            name == metric.name
                || metric.kind == metrics::Kind::Histogram
                    && ["_bucket", "_sum", "_count"]
                        .iter()
                        .any(|end| name.strip_suffix(end) == Some(metric.name))
        });
        let metric = found.unwrap_or_else(|| panic!("{line}"));
        let names: Vec<&str> = labels
            .trim_end_matches('}')
            .split("\",")
            .filter_map(|label| Some(label.split_once("=\"")?.0))
            .filter(|name| *name != "le")
            .collect();
        assert_eq!(names, metric.labels, "{line}");
    }
}

#[test]
fn promtool_has_nothing_to_complain_of() {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("promtool, of the Debian package prometheus: {error}"));
    promtool.stdin.take().unwrap().write_all(page().as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn values_are_those_of_the_snapshot() {
    let page = page();
    for line in [
        "egret_build_info{version=\"1.2.3\",datapath=\"xdp\"} 1",
        "egret_nat_bytes_total{direction=\"in_from_internal\"} 1500",
        "egret_nat_dropped_packets_total{reason=\"ports_exhausted\"} 7",
        "egret_nat_sessions_closed_total{reason=\"expired\"} 3",
        "egret_nat_ports_used{address=\"0\",protocol=\"udp\"} 11",
        "egret_nat_ports_limit{address=\"0\",protocol=\"udp\"} 60000",
        "egret_nat_port_allocation_failures_total{address=\"0\"} 2",
        "egret_fast_path_misses_total{reason=\"tcp_flags\"} 5",
        "egret_forward_targets{listener=\"api\",state=\"healthy\"} 1",
        "egret_forward_target_healthy{listener=\"api\",target=\"0\"} 1",
        "egret_forward_check_duration_seconds_bucket{listener=\"api\",le=\"0.0025\"} 1",
        "egret_forward_check_duration_seconds_sum{listener=\"api\"} 0.002",
        "egret_forward_certificate_expiry_timestamp_seconds{listener=\"api\"} 1800000000",
        "egret_aws_calls_total{action=\"ec2:CreateRoute\",outcome=\"throttled\"} 4",
        "egret_aws_routes{state=\"elsewhere\"} 1",
        "egret_session_log_lost_lines_total{reason=\"rate\"} 9",
        "egret_failover_gateway_active{gateway=\"az-b\"} 0",
        "egret_failover_gateway_hosted{gateway=\"az-b\"} 1",
        "egret_failover_takeovers_total{why=\"silence\"} 8",
        "egret_failover_last_takeover_seconds 0.5",
        "egret_failover_peer_alive{peer=\"az-b\"} 1",
        "egret_failover_peer_round_trip_seconds{peer=\"az-b\"} 0.25",
        "egret_aws_failing_seconds 90",
        "egret_ena_allowance_exceeded_total{interface=\"external\",allowance=\"pps\"} 6",
        "egret_ena_conntrack_allowance_available{interface=\"external\"} 12345",
    ] {
        assert!(page.lines().any(|there| there == line), "{line}\nis not in\n{page}");
    }
}

#[test]
fn what_is_not_there_has_no_metrics() {
    let snapshot = Snapshot { fast_path: None, ..snapshot() };
    let calls = BTreeMap::new();
    let sample = Sample {
        aws: None,
        fleet: None,
        session_log: None,
        listeners: &[],
        drivers: &[],
        ..sample(&snapshot, &[], &calls)
    };
    let page = metrics::render(&sample).unwrap();
    for prefix in
        ["egret_fast_path", "egret_forward", "egret_aws", "egret_ena", "egret_session_log", "egret_failover"]
    {
        assert!(!page.contains(prefix), "{prefix} in\n{page}");
    }
}

/// With something of everything.
fn page() -> String {
    let calls = BTreeMap::from([(
        "ec2:CreateRoute".to_owned(),
        BTreeMap::from([("done".to_owned(), 3), ("throttled".to_owned(), 4)]),
    )]);
    let listeners = [report()];
    metrics::render(&sample(&snapshot(), &listeners, &calls)).unwrap()
}

fn sample<'a>(
    snapshot: &'a Snapshot,
    listeners: &'a [Report],
    calls: &'a BTreeMap<String, BTreeMap<String, u64>>,
) -> Sample<'a> {
    let count = |name: &str, value| (name.to_owned(), value);
    let driver = vec![
        count("tx_timeout", 0),
        count("pps_allowance_exceeded", 6),
        count("conntrack_allowance_available", 12_345),
    ];
    let drivers: &'static [_] = Vec::leak(vec![("external", driver)]);
    Sample {
        version: "1.2.3",
        datapath: "xdp",
        snapshot,
        session_limit: 1000,
        degraded: 1,
        draining: false,
        listeners,
        session_log: Some(SessionLogCounts { written: 8, over_rate: 9, ..SessionLogCounts::default() }),
        aws: Some(Aws {
            calls,
            failing: Duration::from_secs(90),
            problems: 1,
            source_dest_check_off: true,
            routes: vec!["active", "elsewhere"],
            elastic_ips: 1,
        }),
        fleet: Some(Fleet {
            gateways: vec![("az-a", true, true), ("az-b", false, true)],
            takeovers: vec![("silence", 8)],
            last_takeover_seconds: Some(0.5),
            peers: vec![("az-b", true, Some(0.25))],
        }),
        drivers,
    }
}

fn snapshot() -> Snapshot {
    let mut counters = nat::Counters::default();
    counters.in_from_internal.add(1500);
    counters.drops[nat::DropReason::PortsExhausted as usize] = 7;
    counters.closed[nat::CloseReason::Expired as usize] = 3;
    let address = AddressUse {
        private: [192, 0, 2, 1].into(),
        tcp: (10, 60_000),
        udp: (11, 60_000),
        icmp: (12, 65_536),
        mappings: 33,
        failures: 2,
    };
    Snapshot {
        counters,
        addresses: vec![address],
        datapath: datapath::Counters::default(),
        fast_path: Some(FastPath { misses: [1, 2, 5, 0, 0], ..FastPath::default() }),
        not_ready: Vec::new(),
        uptime: Duration::from_secs(5),
    }
}

fn report() -> Report {
    let target = TargetSnapshot {
        address: "10.0.1.10:5000".parse().unwrap(),
        weight: 1,
        backup: false,
        state: State::Healthy,
        since: Duration::from_secs(1),
        connections: 1,
        counters: TargetCounters::default(),
    };
    let mut check_latency = Latency::default();
    check_latency.observe(Duration::from_millis(2));
    Report {
        name: "api".to_owned(),
        listen: "0.0.0.0:5000".parse().unwrap(),
        mode: Mode::Proxy,
        counters: forward::Counters::default(),
        admission: AdmissionCounters::default(),
        group: balance::Snapshot {
            serving: Serving::Primaries,
            targets: vec![target],
            counters: balance::Counters::default(),
        },
        check_latency,
        connect_latency: Latency::default(),
        half_open: Vec::new(),
        tls: Some(forward::tls::Report { expiry: Some(1_800_000_000), mutual: false }),
        sources: Vec::new(),
    }
}
