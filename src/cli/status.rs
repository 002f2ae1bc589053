//! `egret status`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use super::fleet;
use super::text::{bytes, count, duration};
use super::{Ask, Format, print, print_json};
use crate::admin::client::Client;
use crate::admin::{
    AwsReport, FastPathReport, ListenerReport, NoticeReport, PortLoad, PortsReport, ProcessedReport,
    RouteReport, SourceReport, Status, TlsReport, TrafficReport,
};

pub(super) fn execute(ask: &Ask) -> anyhow::Result<ExitCode> {
    let status = Client::connect(&ask.socket)?.status()?;
    match ask.output {
        Format::Text => print(|out| write(out, &status))?,
        Format::Json => print_json(&status)?,
    }
    Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The status on lines of at most 80 characters, but for reasons.
fn write(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    let uptime = duration(f64::from(u32::try_from(status.uptime_seconds).unwrap_or(u32::MAX)));
    let state = match (status.ready, status.degraded.is_empty()) {
        (false, _) => "NOT READY",
        (true, true) => "ready",
        (true, false) => "ready, but DEGRADED",
    };
    writeln!(out, "egret {}, up {uptime}: {state}", status.version)?;
    for reason in status.not_ready.iter().chain(&status.degraded) {
        writeln!(out, "  {reason}")?;
    }
    writeln!(out)?;
    writeln!(out, "{:<12}{}", "datapath", status.datapath)?;
    if let Some(reason) = &status.datapath_fallback {
        writeln!(out, "{:<12}not xdp: {reason}", "")?;
    }
    if status.external_interface == status.internal_interface {
        writeln!(out, "{:<12}{} (one-armed)", "interface", status.external_interface)?;
    } else {
        let (internal, external) = (&status.internal_interface, &status.external_interface);
        writeln!(out, "{:<12}internal {internal}, external {external}", "interfaces")?;
    }
    let external = status.external_addresses.iter().map(|address| match address.public {
        Some(public) => format!("{} (public {public})", address.private),
        None => address.private.to_string(),
    });
    list(out, "external", external)?;
    list(out, "internal", status.internal.iter().map(ToString::to_string))?;
    if status.bypass != status.internal {
        list(out, "bypass", status.bypass.iter().map(ToString::to_string))?;
    }
    if let Some(state) = &status.source_dest_check {
        writeln!(out, "{:<12}check {state}", "source/dest")?;
    }
    if let Some(aws) = &status.aws {
        write_aws(out, aws)?;
    }
    if let Some(report) = &status.fleet {
        fleet::write(out, report)?;
    }
    for notice in &status.notices {
        write_notice(out, notice)?;
    }
    if status.draining {
        writeln!(out, "{:<12}listeners take no more connections", "draining")?;
    }
    write_sessions(out, status)?;
    write_traffic(out, "traffic", &status.traffic)?;
    write_processed(out, &status.processed)?;
    if let Some(fast_path) = &status.fast_path {
        write_fast_path(out, fast_path)?;
    }
    for listener in &status.listeners {
        write_listener(out, listener)?;
    }
    write_drops(out, status)
}

fn write_notice(out: &mut dyn Write, notice: &NoticeReport) -> io::Result<()> {
    write!(out, "{:<12}{}", "notice", notice.kind.replace('_', " "))?;
    if let Some(detail) = &notice.detail {
        write!(out, " ({detail})")?;
    }
    if let Some(at) = notice.at.and_then(|at| UNIX_EPOCH.checked_add(Duration::from_secs(at))) {
        write!(out, ", {}", humantime::format_rfc3339_seconds(at))?;
    }
    writeln!(out)
}

fn write_aws(out: &mut dyn Write, aws: &AwsReport) -> io::Result<()> {
    let mut title = "routes";
    for route in &aws.routes {
        let RouteReport { route_table, destination, state, target } = route;
        write!(out, "{title:<12}{destination} of {route_table}: {state}")?;
        match target {
            Some(target) => writeln!(out, ", {target}")?,
            None => writeln!(out)?,
        }
        title = "";
    }
    let held = aws.elastic_ips.iter();
    let held: Vec<String> = held.map(|held| format!("{} ({})", held.public, held.private)).collect();
    if !held.is_empty() {
        list(out, "elastic ips", held.into_iter())?;
    }
    for problem in &aws.problems {
        writeln!(out, "{:<12}{problem}", "problem")?;
    }
    for failure in &aws.failures {
        writeln!(out, "{:<12}{failure}", "aws failed")?;
    }
    let all: u64 = aws.calls.values().flat_map(BTreeMap::values).sum();
    let done: u64 = aws.calls.values().filter_map(|outcomes| outcomes.get("done")).sum();
    writeln!(out, "{:<12}{} calls, {} failed", "aws", count(all), count(all - done))
}

fn write_sessions(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    let sessions = &status.sessions;
    writeln!(out)?;
    writeln!(
        out,
        "{:<12}{} of {} ({} mappings, {} internal addresses)",
        "sessions",
        count(sessions.live.into()),
        count(sessions.limit.into()),
        count(sessions.mappings.into()),
        count(sessions.internal_addresses.into())
    )?;
    writeln!(
        out,
        "{:<12}{} opened, {} answered, {} closed",
        "",
        count(sessions.opened),
        count(sessions.established),
        count(sessions.closed)
    )?;
    writeln!(out, "{:<12}at most {} an internal address", "", count(sessions.limit_per_address.into()))?;
    for PortsReport { address, tcp, udp, failures, .. } in &status.ports {
        let load = |load: &PortLoad| format!("{} of {}", count(load.used.into()), count(load.limit.into()));
        write!(out, "{:<12}{address}: tcp {}, udp {}", "ports", load(tcp), load(udp))?;
        if *failures > 0 {
            write!(out, ", {} failed", count(*failures))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn write_traffic(
    out: &mut dyn Write,
    title: &str,
    directions: &BTreeMap<String, TrafficReport>,
) -> io::Result<()> {
    writeln!(out)?;
    writeln!(out, "{title:<20}{:>18}{:>16}", "packets", "bytes")?;
    for (key, name) in DIRECTIONS {
        let Some(traffic) = directions.get(*key) else { continue };
        writeln!(out, "  {name:<18}{:>18}{:>16}", count(traffic.packets), bytes(traffic.bytes))?;
    }
    Ok(())
}

fn write_processed(out: &mut dyn Write, processed: &ProcessedReport) -> io::Result<()> {
    let ProcessedReport { nat_gateway_price_per_gb: per_gb, nat_gateway_price: price, .. } = processed;
    writeln!(out, "  {:<18}{:>34}", "processed", bytes(processed.bytes))?;
    writeln!(out, "  for which a managed NAT gateway takes ${price:.2} (${per_gb} a GB)")
}

fn write_fast_path(out: &mut dyn Write, fast_path: &FastPathReport) -> io::Result<()> {
    write_traffic(out, "fast path", &fast_path.translated)?;
    writeln!(
        out,
        "  {:<18}{:>18} of {}",
        "flows",
        count(fast_path.flows.into()),
        count(fast_path.capacity.into())
    )?;
    if let Some(ratio) = fast_path.hit_ratio {
        writeln!(out, "  {:<18}{:>16.1} %", "of all packets", ratio * 100.0)?;
    }
    let mut misses: Vec<(&String, &u64)> =
        fast_path.misses.iter().filter(|(_, packets)| **packets > 0).collect();
    misses.sort_by_key(|(_, packets)| Reverse(**packets));
    if !misses.is_empty() {
        writeln!(out)?;
        writeln!(out, "{:<20}{:>18}", "left to the engine", "packets")?;
    }
    for (reason, packets) in misses {
        writeln!(out, "  {reason:<24}{:>12}", count(*packets))?;
    }
    Ok(())
}

fn write_listener(out: &mut dyn Write, listener: &ListenerReport) -> io::Result<()> {
    let ListenerReport { name, listen, mode, serving, connections, opened, .. } = listener;
    writeln!(out)?;
    write!(out, "{:<12}{name} on {listen} ({mode})", "listener")?;
    match serving.as_str() {
        "fail_open" => writeln!(out, ": ALL UNHEALTHY, all get connections")?,
        "nobody" => writeln!(out, ": NO TARGET")?,
        "backups" => writeln!(out, ": only backups are healthy")?,
        _ => writeln!(out)?,
    }
    if let Some(tls) = &listener.tls {
        let failed = listener.ended.get("handshake_failed").copied().unwrap_or_default();
        write_tls(out, tls, failed)?;
    }
    let (connections, opened) = (count((*connections).into()), count(*opened));
    let (to, from) = (bytes(listener.bytes_to_target), bytes(listener.bytes_to_client));
    writeln!(out, "{:<12}{connections} connections, {opened} opened, {to} in, {from} out", "")?;
    let refused: u64 = listener.refused.values().sum();
    let unserved = listener.ended.get("unserved").copied().unwrap_or_default();
    if refused + unserved > 0 {
        writeln!(
            out,
            "{:<12}{} refused at the door, {} without a target",
            "",
            count(refused),
            count(unserved)
        )?;
    }
    if listener.accept_pauses > 0 {
        let pauses = count(listener.accept_pauses);
        writeln!(out, "{:<12}accepting paused {pauses} times: too few descriptors, or memory", "")?;
    }
    for SourceReport { source, targets, left_out, error } in &listener.sources {
        write!(out, "  {source:<21} {} targets", count(*targets as u64))?;
        if *left_out > 0 {
            write!(out, ", {} TOO MANY", count(*left_out as u64))?;
        }
        writeln!(out)?;
        if let Some(error) = error {
            writeln!(out, "{:24}not found now: {error}", "")?;
        }
    }
    for target in &listener.targets {
        let address = target.address.to_string();
        let (since, connections) = (duration(target.since_seconds), count(target.connections.into()));
        let backup = if target.backup { ", backup" } else { "" };
        writeln!(out, "  {address:<22}{} for {since}, {connections} connections{backup}", target.state)?;
        if let Some(why) = &target.why {
            writeln!(out, "{:24}{why}", "")?;
        }
        let (waiting, unanswered) = (count(target.half_open.into()), count(target.unanswered));
        if target.half_open > 0 || target.unanswered > 0 {
            writeln!(out, "{:24}{waiting} wait for its answer, {unanswered} never had one", "")?;
        }
        if target.astray {
            writeln!(out, "{:24}passes its checks, but answers no client: its way out", "")?;
            writeln!(out, "{:24}has to be this gateway; or preserve_client_ip = false", "")?;
        }
    }
    Ok(())
}

fn write_tls(out: &mut dyn Write, tls: &TlsReport, failed: u64) -> io::Result<()> {
    let clients = if tls.mutual { "with client certificates" } else { "without client certificates" };
    write!(out, "{:<12}TLS {clients}", "")?;
    if let Some(expiry) = tls.expiry.and_then(|expiry| UNIX_EPOCH.checked_add(Duration::from_secs(expiry))) {
        write!(out, ", good until {}", humantime::format_rfc3339_seconds(expiry))?;
    }
    writeln!(out)?;
    if failed > 0 {
        writeln!(out, "{:<12}{} handshakes failed", "", count(failed))?;
    }
    Ok(())
}

fn write_drops(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    let engine = status.drops.iter().map(|(reason, packets)| (reason.as_str(), *packets));
    let datapath = status.datapath_counters.iter();
    let datapath = datapath.filter(|(name, _)| name.ends_with("dropped") || name.ends_with("failed"));
    let unserved = status.fast_path.as_ref().map(|fast_path| ("unserved_queue", fast_path.unserved));
    let all = engine.chain(datapath.map(|(name, packets)| (name.as_str(), *packets))).chain(unserved);
    let mut drops: Vec<(&str, u64)> = all.filter(|(_, packets)| *packets > 0).collect();
    drops.sort_by_key(|(_, packets)| Reverse(*packets));
    writeln!(out)?;
    if drops.is_empty() {
        return writeln!(out, "no packet dropped");
    }
    writeln!(out, "{:<20}{:>18}", "dropped", "packets")?;
    for (reason, packets) in drops {
        writeln!(out, "  {reason:<24}{:>12}", count(packets))?;
    }
    Ok(())
}

/// A name, and its values on as many lines as they need.
fn list(out: &mut dyn Write, name: &str, values: impl Iterator<Item = String>) -> io::Result<()> {
    let mut line = format!("{name:<12}");
    let mut separator = "";
    for value in values {
        if !separator.is_empty() && line.len() + separator.len() + value.len() > WIDTH - 1 {
            writeln!(out, "{line},")?;
            line = " ".repeat(12);
            separator = "";
        }
        line.push_str(separator);
        line.push_str(&value);
        separator = ", ";
    }
    writeln!(out, "{line}")
}

/// The four directions of a NAT gateway, and hairpinning: key in the status, and name.
const DIRECTIONS: &[(&str, &str)] = &[
    ("in_from_internal", "in from internal"),
    ("out_to_external", "out to external"),
    ("in_from_external", "in from external"),
    ("out_to_internal", "out to internal"),
    ("hairpinned", "hairpinned"),
];

const WIDTH: usize = 80;

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::admin::{Addresses, ElasticIpReport, SessionCounts, TargetReport};

    /// With something of everything, and numbers as large as they get.
    pub(in crate::cli) fn status() -> Status {
        let traffic =
            |key: &&str| ((*key).to_owned(), TrafficReport { packets: 1_234_567_890, bytes: 1 << 40 });
        Status {
            version: "0.1.0".to_owned(),
            uptime_seconds: 7440,
            ready: false,
            degraded: Vec::new(),
            not_ready: vec!["the next hop 192.0.2.1 does not answer".to_owned()],
            datapath: "xdp".to_owned(),
            datapath_fallback: None,
            external_interface: "ens5".to_owned(),
            internal_interface: "ens5".to_owned(),
            external_addresses: (1..=6)
                .map(|host| Addresses {
                    private: [192, 0, 2, host].into(),
                    public: Some([203, 0, 113, host].into()),
                })
                .collect(),
            internal: vec!["10.0.0.0/16".parse().unwrap()],
            bypass: vec!["10.0.0.0/16".parse().unwrap()],
            source_dest_check: None,
            aws: None,
            fleet: None,
            notices: Vec::new(),
            draining: false,
            sessions: SessionCounts {
                live: 100_000,
                limit: 917_504,
                limit_per_address: 229_376,
                mappings: 99_000,
                internal_addresses: 17,
                opened: 1_000_000_000,
                established: 900_000_000,
                closed: 999_900_000,
            },
            ports: vec![PortsReport {
                address: [192, 0, 2, 1].into(),
                tcp: PortLoad { used: 53_978, limit: 59_976 },
                udp: PortLoad { used: 1, limit: 59_976 },
                icmp: PortLoad { used: 0, limit: 65_536 },
                mappings: 53_979,
                failures: 17,
            }],
            processed: ProcessedReport {
                bytes: 1 << 40,
                nat_gateway_price_per_gb: 0.045,
                nat_gateway_price: 46.08,
            },
            traffic: DIRECTIONS.iter().map(|(key, _)| traffic(key)).collect(),
            drops: BTreeMap::from([("bad_checksum".to_owned(), 0), ("no_session".to_owned(), 12_345)]),
            engine: BTreeMap::new(),
            fast_path: Some(FastPathReport {
                flows: 1_835_008,
                capacity: 2_097_152,
                refused: 0,
                hit_ratio: Some(0.98765),
                translated: ["out_to_external", "out_to_internal", "hairpinned"].iter().map(traffic).collect(),
                misses: BTreeMap::from([("no_flow".to_owned(), 1_234_567), ("too_big".to_owned(), 0)]),
                passed: 77,
                unserved: 0,
            }),
            datapath_counters: BTreeMap::from([
                ("received".to_owned(), 9),
                ("unresolved_dropped".to_owned(), 99_999),
            ]),
            listeners: vec![ListenerReport {
                name: "api".to_owned(),
                listen: "0.0.0.0:5000".parse().unwrap(),
                mode: "nat".to_owned(),
                serving: "fail_open".to_owned(),
                connections: 7,
                opened: 1_234_567,
                refused: BTreeMap::from([("rate_limit".to_owned(), 3)]),
                ended: BTreeMap::from([("unserved".to_owned(), 2), ("handshake_failed".to_owned(), 4)]),
                bytes_to_target: 1 << 40,
                bytes_to_client: 1 << 30,
                accept_pauses: 12,
                sources: vec![SourceReport {
                    source: "dns:internal-alb.eu-west-1.elb.example:80".to_owned(),
                    targets: 2,
                    left_out: 0,
                    error: Some("there is no such name".to_owned()),
                }],
                targets: vec![TargetReport {
                    address: "10.0.1.10:5000".parse().unwrap(),
                    state: "unhealthy".to_owned(),
                    why: Some("health check: connection refused".to_owned()),
                    since_seconds: 61.0,
                    weight: 1,
                    backup: true,
                    connections: 7,
                    opened: 9,
                    connects_failed: 1,
                    probes: 9,
                    probes_failed: 2,
                    half_open: 1_234,
                    unanswered: 12_345,
                    astray: true,
                }],
                tls: Some(TlsReport { expiry: Some(1_800_000_000), mutual: true }),
            }],
        }
    }

    fn text(status: &Status) -> String {
        let mut out = Vec::new();
        write(&mut out, status).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn status_fits_80_columns() {
        let text = text(&status());
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        assert!(text.contains("192.0.2.6 (public 203.0.113.6)"), "{text}");
    }

    #[test]
    fn status_shows_until_when_the_certificate_is_good() {
        let text = text(&status());
        let expected = "TLS with client certificates, good until 2027-01-15T08:00:00Z\n";
        assert!(text.contains(expected) && text.contains("4 handshakes failed\n"), "{text}");
    }

    #[test]
    fn status_says_where_targets_come_from_and_what_keeps_clients_waiting() {
        let text = text(&status());
        let lines = "  dns:internal-alb.eu-west-1.elb.example:80 2 targets\n                        not found now: there is no such name\n";
        assert!(text.contains(lines), "{text}");
        assert!(text.contains("accepting paused 12 times"), "{text}");
    }

    #[test]
    fn status_says_what_is_wrong_although_packets_flow() {
        let degraded = vec!["listener api: there is no target".to_owned()];
        let text = text(&Status { ready: true, not_ready: Vec::new(), degraded, ..status() });
        let begin = "egret 0.1.0, up 2h 4m: ready, but DEGRADED\n  listener api: there is no target\n";
        assert!(text.starts_with(begin), "{text}");
    }

    #[test]
    fn status_says_what_a_nat_gateway_would_have_taken() {
        let text = text(&status());
        assert!(
            text.contains("1.0 TiB\n  for which a managed NAT gateway takes $46.08 ($0.045 a GB)\n"),
            "{text}"
        );
    }

    #[test]
    fn source_dest_check_is_shown_if_aws_is_asked() {
        let off = Status { source_dest_check: Some("off".to_owned()), ..status() };
        assert!(text(&off).contains("\nsource/dest check off\n"), "{}", text(&off));
        assert!(!text(&status()).contains("source/dest"), "{}", text(&status()));
    }

    #[test]
    fn what_is_about_to_happen_is_shown() {
        let notice = |kind: &str, detail: Option<&str>, at| NoticeReport {
            kind: kind.to_owned(),
            detail: detail.map(str::to_owned),
            at,
            end: true,
        };
        let spot = notice("spot_interruption", Some("stop"), Some(1_915_950_120));
        let notices = vec![spot, notice("termination", None, None)];
        assert!(!text(&status()).contains("notice"));
        let text = text(&Status { notices, draining: true, ..status() });
        assert!(text.contains("\nnotice      spot interruption (stop), 2030-09-18T08:22:00Z\n"), "{text}");
        assert!(text.contains("\nnotice      termination\n"), "{text}");
        assert!(text.contains("\ndraining    listeners take no more connections\n"), "{text}");
    }

    #[test]
    fn status_shows_what_is_kept_up_at_ec2() {
        let route = |destination: &str, state: &str, target: Option<&str>| RouteReport {
            route_table: "rtb-0123456789abcdef0".to_owned(),
            destination: destination.parse().unwrap(),
            state: state.to_owned(),
            target: target.map(str::to_owned),
        };
        let held = ElasticIpReport {
            allocation: "eipalloc-0123456789abcdef0".to_owned(),
            public: [203, 0, 113, 7].into(),
            private: [10, 0, 0, 10].into(),
        };
        let outcomes = [("done".to_owned(), 1_234), ("throttled".to_owned(), 5)];
        let elsewhere = route("198.51.100.0/24", "elsewhere", Some("igw-0123456789abcdef0"));
        let aws = AwsReport {
            source_dest_checks: BTreeMap::new(),
            routes: vec![route("0.0.0.0/0", "active", None), elsewhere],
            elastic_ips: vec![held],
            problems: vec!["somebody has to act".to_owned()],
            failures: vec!["ec2:CreateRoute is throttled".to_owned()],
            calls: BTreeMap::from([("ec2:CreateRoute".to_owned(), BTreeMap::from(outcomes))]),
        };
        let text = text(&Status { aws: Some(aws), ..status() });
        for line in [
            "routes      0.0.0.0/0 of rtb-0123456789abcdef0: active\n",
            "            198.51.100.0/24 of rtb-0123456789abcdef0: elsewhere, igw-0123456789abcdef0\n",
            "elastic ips 203.0.113.7 (10.0.0.10)\n",
            "problem     somebody has to act\n",
            "aws failed  ec2:CreateRoute is throttled\n",
            "aws         1,239 calls, 5 failed\n",
        ] {
            assert!(text.contains(line), "{line}\nis not in\n{text}");
        }
    }

    #[test]
    fn status_shows_how_much_the_fast_path_does() {
        let with = text(&status());
        assert!(with.contains("1,835,008 of 2,097,152") && with.contains("98.8 %"), "{with}");
        assert!(with.contains("no_flow") && !with.contains("too_big"), "zero is not shown: {with}");
        assert!(!with.contains("unserved_queue"), "{with}");
        let lost = FastPathReport { unserved: 5, ..status().fast_path.unwrap() };
        assert!(text(&Status { fast_path: Some(lost), ..status() }).contains("unserved_queue"));
        assert!(!text(&Status { fast_path: None, ..status() }).contains("fast path"));
    }

    #[test]
    fn status_says_why_the_datapath_is_not_xdp() {
        let reason = Some("the driver ena refuses".to_owned());
        let fallen = Status { datapath: "af_packet".to_owned(), datapath_fallback: reason, ..status() };
        let text = text(&fallen);
        assert!(
            text.contains("datapath    af_packet\n            not xdp: the driver ena refuses\n"),
            "{text}"
        );
    }

    #[test]
    fn status_says_why_it_is_not_ready_and_what_was_dropped() {
        let text = text(&status());
        assert!(text.starts_with("egret 0.1.0, up 2h 4m: NOT READY\n  the next hop 192.0.2.1"), "{text}");
        assert!(text.contains("no_session") && text.contains("12,345"), "{text}");
        assert!(!text.contains("bad_checksum"), "zero is not shown: {text}");
        let (first, second) = (text.find("unresolved_dropped").unwrap(), text.find("no_session").unwrap());
        assert!(first < second, "the most frequent first: {text}");
    }
}
