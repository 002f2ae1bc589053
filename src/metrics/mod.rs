//! What Prometheus scrapes.
//!
//! Owns the metrics' names, types and meanings ([`ALL`]), and how each follows from the snapshots of the parts that
//! count. Nothing is counted here: a scrape costs the packet worker one snapshot, however many sessions there are. A
//! label has values from a fixed set, or names and places of the configuration; never a client's address or port.
//!
//! <https://prometheus.io/docs/practices/naming/>

mod catalogue;
mod forwarding;
mod page;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;

#[allow(clippy::wildcard_imports, reason = "a table of names")]
use catalogue::*;
pub use catalogue::{ALL, Kind, Metric};
use page::Page;
pub use prometheus::Error;

use crate::datapath::{Miss, Snapshot};
use crate::forward::Report;
use crate::nat::{CloseReason, DropReason, Traffic};

/// All that a scrape is made of.
#[derive(Clone, Debug)]
pub struct Sample<'a> {
    pub version: &'a str,
    /// `xdp` or `af_packet`.
    pub datapath: &'a str,
    pub snapshot: &'a Snapshot,
    /// How many sessions there may be.
    pub session_limit: u32,
    /// How much is wrong although packets flow.
    pub degraded: usize,
    pub draining: bool,
    pub listeners: &'a [Report],
    /// Unset if there is none.
    pub session_log: Option<SessionLogCounts>,
    /// Unset if AWS is not asked.
    pub aws: Option<Aws<'a>>,
    /// Unset if this instance is in none.
    pub fleet: Option<Fleet<'a>>,
    /// Of each interface (`external`, `internal`), what its driver counts.
    pub drivers: &'a [(&'a str, Vec<(String, u64)>)],
}

/// What has become of the lines of the session log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionLogCounts {
    pub written: u64,
    /// Lost: the writer could not keep up, the rate was exceeded, or the file could not be written.
    pub queue_full: u64,
    pub over_rate: u64,
    pub not_written: u64,
}

/// What is known of AWS.
#[derive(Clone, Debug)]
pub struct Aws<'a> {
    /// By action and outcome.
    pub calls: &'a BTreeMap<String, BTreeMap<String, u64>>,
    pub failing: Duration,
    pub problems: usize,
    pub source_dest_check_off: bool,
    /// The state of each route that is to lead here.
    pub routes: Vec<&'a str>,
    pub elastic_ips: usize,
}

/// What is known of the fleet.
#[derive(Clone, Debug, Default)]
pub struct Fleet<'a> {
    /// Of each gateway, by name: whether it is active here, and whether it has a host.
    pub gateways: Vec<(&'a str, bool, bool)>,
    /// Gateways that came here, by why.
    pub takeovers: Vec<(&'a str, u64)>,
    pub last_takeover_seconds: Option<f64>,
    /// Of each peer, by name: whether it is heard, and its round trip in seconds.
    pub peers: Vec<(&'a str, bool, Option<f64>)>,
}

/// The text of a scrape.
///
/// # Errors
/// The encoder refuses what it is given, which a test of all metrics has not seen.
pub fn render(sample: &Sample<'_>) -> Result<String, Error> {
    let mut page = Page::default();
    daemon(&mut page, sample);
    nat(&mut page, sample);
    fast_path(&mut page, sample.snapshot);
    datapath(&mut page, sample.snapshot);
    forwarding::add(&mut page, sample.listeners);
    if let Some(log) = &sample.session_log {
        page.one(&LOG_LINES, count(log.written));
        let lost = [("queue", log.queue_full), ("rate", log.over_rate), ("write", log.not_written)];
        page.add(&LOG_LOST, lost.map(|(reason, lines)| (vec![reason], count(lines))));
    }
    if let Some(aws) = &sample.aws {
        add_aws(&mut page, aws);
    }
    if let Some(fleet) = &sample.fleet {
        add_fleet(&mut page, fleet);
    }
    allowances(&mut page, sample.drivers);
    page.extend(ProcessCollector::for_self().collect());
    page.encode()
}

/// `docs/metrics.md`.
#[must_use]
pub fn document() -> String {
    let mut out = String::from(HEAD);
    for Metric { name, kind, unit, labels, meaning, cloudwatch } in ALL {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let meaning = meaning.trim_end_matches('.');
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "| `{name}` | {kind} | {unit} | {labels} | {meaning} | {cloudwatch} |",
            kind = kind.label()
        );
    }
    out
}

fn daemon(page: &mut Page, sample: &Sample<'_>) {
    page.add(&BUILD_INFO, [(vec![sample.version, sample.datapath], 1.0)]);
    page.one(&UPTIME, sample.snapshot.uptime.as_secs_f64());
    page.one(&READY, boolean(sample.snapshot.not_ready.is_empty()));
    page.one(&DEGRADED, size(sample.degraded));
    page.one(&DRAINING, boolean(sample.draining));
}

fn nat(page: &mut Page, sample: &Sample<'_>) {
    let counters = &sample.snapshot.counters;
    let directions = [
        ("in_from_internal", counters.in_from_internal),
        ("out_to_external", counters.out_to_external),
        ("in_from_external", counters.in_from_external),
        ("out_to_internal", counters.out_to_internal),
        ("hairpinned", counters.hairpinned),
    ];
    traffic(page, &NAT_BYTES, &NAT_PACKETS, &directions);
    let drops = DropReason::ALL.iter();
    page.add(&NAT_DROPPED, drops.map(|&of| (vec![of.label()], count(counters.dropped(of)))));
    let census = counters.census.iter();
    page.add(&NAT_SESSIONS, census.map(|(protocol, state, sessions)| (vec![protocol, state], sessions.into())));
    page.one(&NAT_SESSION_LIMIT, sample.session_limit.into());
    page.one(&NAT_OPENED, count(counters.sessions_opened));
    page.one(&NAT_ESTABLISHED, count(counters.sessions_established));
    let closed = CloseReason::ALL.iter().zip(counters.closed);
    page.add(&NAT_CLOSED, closed.map(|(reason, closed)| (vec![reason.label()], count(closed))));
    page.one(&NAT_MAPPINGS, counters.mappings.into());
    page.one(&NAT_HOSTS, counters.internal_addresses.into());
    ports(page, sample.snapshot);
    page.one(&NAT_OVERLOADED, count(counters.ports_overloaded));
    page.one(&NAT_ICMP_ERRORS, count(counters.icmp_errors));
    page.one(&NAT_FRAGMENTS, count(counters.fragments));
    page.one(&NAT_FRAGMENTED, count(counters.fragmented));
    page.one(&NAT_FRAGMENT_MEMORY, size(counters.fragment_bytes));
    page.one(&NAT_REPLIES, count(counters.replies));
    page.one(&NAT_REPLIES_LIMITED, count(counters.replies_limited));
    page.one(&NAT_EVENTS_LOST, count(counters.events_lost));
}

fn ports(page: &mut Page, snapshot: &Snapshot) {
    let places: Vec<String> = (0..snapshot.addresses.len()).map(|place| place.to_string()).collect();
    let addresses = || places.iter().map(String::as_str).zip(&snapshot.addresses);
    let loads = || {
        addresses().flat_map(|(place, address)| {
            [("tcp", address.tcp), ("udp", address.udp), ("icmp", address.icmp)]
                .map(|(protocol, (taken, all))| (vec![place, protocol], taken, all))
        })
    };
    page.add(&NAT_PORTS, loads().map(|(labels, taken, _)| (labels, taken.into())));
    page.add(&NAT_PORT_LIMIT, loads().map(|(labels, _, all)| (labels, all.into())));
    page.add(&NAT_PORT_FAILURES, addresses().map(|(place, address)| (vec![place], count(address.failures))));
}

fn fast_path(page: &mut Page, snapshot: &Snapshot) {
    let Some(counters) = &snapshot.fast_path else { return };
    let directions = [
        ("out_to_external", counters.out_to_external),
        ("out_to_internal", counters.out_to_internal),
        ("hairpinned", counters.hairpinned),
    ];
    traffic(page, &FAST_BYTES, &FAST_PACKETS, &directions);
    let misses = Miss::ALL.iter().zip(counters.misses);
    page.add(&FAST_MISSES, misses.map(|(miss, packets)| (vec![miss.label()], count(packets))));
    page.one(&FAST_SESSIONS, snapshot.counters.offloaded.into());
    page.one(&FAST_FLOWS, counters.flows.into());
    page.one(&FAST_FLOW_LIMIT, counters.capacity.into());
    page.one(&FAST_REFUSED, count(snapshot.counters.offloads_refused));
    page.one(&FAST_PASSED, count(counters.passed));
    page.one(&FAST_UNSERVED, count(counters.unserved));
}

fn datapath(page: &mut Page, snapshot: &Snapshot) {
    let counters = &snapshot.datapath;
    page.one(&FRAMES_RECEIVED, count(counters.received));
    page.one(&FRAMES_SENT, count(counters.sent));
    let dropped = [
        ("receive_full", counters.receive_dropped),
        ("receive_malformed", counters.receive_malformed),
        ("send_failed", counters.send_failed),
        ("unresolved", counters.unresolved_dropped),
        ("unreachable", counters.unreachable_dropped),
    ];
    page.add(&FRAMES_DROPPED, dropped.map(|(reason, frames)| (vec![reason], count(frames))));
    page.one(&NETLINK_OVERFLOWS, count(counters.netlink_overflows));
}

fn add_aws(page: &mut Page, aws: &Aws<'_>) {
    let calls = aws.calls.iter().flat_map(|(action, outcomes)| {
        outcomes.iter().map(move |(outcome, calls)| (vec![&**action, &**outcome], count(*calls)))
    });
    page.add(&AWS_CALLS, calls);
    page.one(&AWS_FAILING, aws.failing.as_secs_f64());
    page.one(&AWS_PROBLEMS, size(aws.problems));
    page.one(&AWS_CHECK_OFF, boolean(aws.source_dest_check_off));
    let states = ["active", "missing", "blackhole", "elsewhere"];
    let of = |state: &str| aws.routes.iter().filter(|route| **route == state).count();
    page.add(&AWS_ROUTES, states.map(|state| (vec![state], size(of(state)))));
    page.one(&AWS_ELASTIC_IPS, size(aws.elastic_ips));
}

fn add_fleet(page: &mut Page, fleet: &Fleet<'_>) {
    let gateways = || fleet.gateways.iter();
    page.add(&FLEET_ACTIVE, gateways().map(|(name, active, _)| (vec![*name], boolean(*active))));
    page.add(&FLEET_HOSTED, gateways().map(|(name, _, hosted)| (vec![*name], boolean(*hosted))));
    page.add(&FLEET_TAKEOVERS, fleet.takeovers.iter().map(|(why, times)| (vec![*why], count(*times))));
    if let Some(seconds) = fleet.last_takeover_seconds {
        page.one(&FLEET_LAST, seconds);
    }
    page.add(&FLEET_PEER_ALIVE, fleet.peers.iter().map(|(name, alive, _)| (vec![*name], boolean(*alive))));
    let trips = fleet.peers.iter().filter_map(|(name, _, trip)| Some((vec![*name], (*trip)?)));
    page.add(&FLEET_PEER_LAG, trips);
}

/// Other drivers than ENA have no such statistics, and get no such metrics.
fn allowances(page: &mut Page, drivers: &[(&str, Vec<(String, u64)>)]) {
    let all = || {
        drivers
            .iter()
            .flat_map(|(side, counted)| counted.iter().map(move |(name, value)| (*side, name, *value)))
    };
    let exceeded = all().filter_map(|(side, name, value)| {
        let allowance = name.strip_suffix("_allowance_exceeded")?;
        ALLOWANCES.contains(&allowance).then(|| (vec![side, allowance], count(value)))
    });
    page.add(&ENA_EXCEEDED, exceeded);
    let available = all().filter(|(_, name, _)| *name == "conntrack_allowance_available");
    page.add(&ENA_AVAILABLE, available.map(|(side, _, value)| (vec![side], count(value))));
}

fn traffic(page: &mut Page, bytes: &Metric, packets: &Metric, directions: &[(&'static str, Traffic)]) {
    page.add(bytes, directions.iter().map(|(direction, traffic)| (vec![*direction], count(traffic.bytes))));
    page.add(packets, directions.iter().map(|(direction, traffic)| (vec![*direction], count(traffic.packets))));
}

fn boolean(value: bool) -> f64 {
    f64::from(u8::from(value))
}

#[expect(clippy::cast_precision_loss, reason = "the format has no other number, and 2^53 suffice")]
fn count(value: u64) -> f64 {
    value as f64
}

fn size(value: usize) -> f64 {
    count(value as u64)
}

/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/monitoring-network-performance-ena.html>
const ALLOWANCES: [&str; 5] = ["bw_in", "bw_out", "pps", "conntrack", "linklocal"];

const HEAD: &str = "# Metrics

`GET /metrics` on `admin.listen`, in the text format of Prometheus. This page is made from the code: see
`src/metrics/catalogue.rs`.

Labels have values from fixed sets, or names and places of the configuration; never a client's address or port. Who talks
most is told by `egret top` and the status page. A metric that has nothing to tell of (no listener, no fast path, no AWS,
another driver than ENA) is not there. Counters begin at 0 when the daemon starts.

A scrape is made from one snapshot of the packet worker, whose size does not depend on the number of sessions: see
[operations](operations.md#what-a-scrape-costs).

| name | type | unit | labels | meaning | CloudWatch |
|---|---|---|---|---|---|
";
