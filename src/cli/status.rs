//! `egret status`.

use std::io::{self, Write};
use std::process::ExitCode;

use super::text::{bytes, count, duration};
use super::{Ask, Format, print, print_json};
use crate::admin::Status;
use crate::admin::client::Client;

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
    let state = if status.ready { "ready" } else { "NOT READY" };
    writeln!(out, "egret {}, up {uptime}: {state}", status.version)?;
    for reason in &status.not_ready {
        writeln!(out, "  {reason}")?;
    }
    writeln!(out)?;
    writeln!(out, "{:<12}{}", "datapath", status.datapath)?;
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
    write_sessions(out, status)?;
    write_traffic(out, status)?;
    write_drops(out, status)
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
    writeln!(out, "{:<12}at most {} an internal address", "", count(sessions.limit_per_address.into()))
}

fn write_traffic(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    writeln!(out)?;
    writeln!(out, "{:<20}{:>18}{:>16}", "traffic", "packets", "bytes")?;
    for (key, name) in DIRECTIONS {
        let Some(traffic) = status.traffic.get(*key) else { continue };
        writeln!(out, "  {name:<18}{:>18}{:>16}", count(traffic.packets), bytes(traffic.bytes))?;
    }
    Ok(())
}

fn write_drops(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    let engine = status.drops.iter().map(|(reason, packets)| (reason.as_str(), *packets));
    let datapath = status.datapath_counters.iter();
    let datapath = datapath.filter(|(name, _)| name.ends_with("dropped") || name.ends_with("failed"));
    let all = engine.chain(datapath.map(|(name, packets)| (name.as_str(), *packets)));
    let mut drops: Vec<(&str, u64)> = all.filter(|(_, packets)| *packets > 0).collect();
    drops.sort_by_key(|(_, packets)| std::cmp::Reverse(*packets));
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
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::admin::{Addresses, SessionCounts, TrafficReport};

    fn status() -> Status {
        let traffic =
            |key: &&str| ((*key).to_owned(), TrafficReport { packets: 1_234_567_890, bytes: 1 << 40 });
        Status {
            version: "0.1.0".to_owned(),
            uptime_seconds: 7440,
            ready: false,
            not_ready: vec!["the next hop 192.0.2.1 does not answer".to_owned()],
            datapath: "af_packet".to_owned(),
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
            traffic: DIRECTIONS.iter().map(|(key, _)| traffic(key)).collect(),
            drops: BTreeMap::from([("bad_checksum".to_owned(), 0), ("no_session".to_owned(), 12_345)]),
            engine: BTreeMap::new(),
            datapath_counters: BTreeMap::from([
                ("received".to_owned(), 9),
                ("unresolved_dropped".to_owned(), 99_999),
            ]),
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
    fn source_dest_check_is_shown_if_aws_is_asked() {
        let off = Status { source_dest_check: Some("off".to_owned()), ..status() };
        assert!(text(&off).contains("\nsource/dest check off\n"), "{}", text(&off));
        assert!(!text(&status()).contains("source/dest"), "{}", text(&status()));
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
