//! `egret sessions`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use ipnet::Ipv4Net;

use super::text::{bytes, count, duration};
use super::{Ask, Format, print, print_json};
use crate::admin::client::Client;
use crate::admin::{MAX_SESSIONS, Session, SessionQuery, Sessions};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only this protocol: tcp, udp, icmp, or an IP protocol number.
    #[arg(long, value_parser = protocol)]
    protocol: Option<String>,
    /// Only internal addresses of this prefix.
    #[arg(long, value_name = "CIDR", value_parser = prefix)]
    internal: Option<Ipv4Net>,
    /// Only remote addresses of this prefix.
    #[arg(long, value_name = "CIDR", value_parser = prefix)]
    remote: Option<Ipv4Net>,
    /// Only sessions with this port (or ICMP identifier) on any side.
    #[arg(long)]
    port: Option<u16>,
    /// The most to list.
    #[arg(long, default_value_t = 100, value_parser = limit)]
    limit: usize,
    #[command(flatten)]
    ask: Ask,
}

pub(super) fn execute(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { protocol, internal, remote, port, limit, ask } = arguments;
    let query = SessionQuery { protocol, internal, remote, port, limit };
    let sessions = Client::connect(&ask.socket)?.sessions(query)?;
    match ask.output {
        Format::Text => print(|out| write(out, &sessions))?,
        Format::Json => print_json(&sessions)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// An aligned table, and a line with the counts.
fn write(out: &mut dyn Write, sessions: &Sessions) -> io::Result<()> {
    let rows: Vec<[String; COLUMNS.len()]> = sessions.sessions.iter().map(row).collect();
    let mut widths = COLUMNS.map(|(name, _)| name.len());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    if !rows.is_empty() {
        write_row(out, &widths, &COLUMNS.map(|(name, _)| name.to_owned()))?;
    }
    for row in &rows {
        write_row(out, &widths, row)?;
    }
    writeln!(
        out,
        "{} of {} matching; {} sessions live, {} mappings",
        count(rows.len() as u64),
        count(sessions.matched),
        count(sessions.live.into()),
        count(sessions.mappings.into())
    )
}

fn row(session: &Session) -> [String; COLUMNS.len()] {
    [
        session.protocol.clone(),
        session.internal.to_string(),
        session.external.to_string(),
        session.remote.to_string(),
        session.state.clone(),
        duration(session.age_seconds),
        duration(session.idle_seconds),
        bytes(session.bytes_out),
        bytes(session.bytes_in),
    ]
}

fn write_row(
    out: &mut dyn Write,
    widths: &[usize; COLUMNS.len()],
    cells: &[String; COLUMNS.len()],
) -> io::Result<()> {
    let mut line = String::new();
    for ((cell, width), (_, right)) in cells.iter().zip(widths).zip(COLUMNS) {
        let cell = if right { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
        line.push_str(&cell);
    }
    writeln!(out, "{}", line.trim_end())
}

fn protocol(text: &str) -> Result<String, String> {
    if matches!(text, "tcp" | "udp" | "icmp") || text.parse::<u8>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err("use tcp, udp, icmp, or a number from 0 to 255".to_owned())
    }
}

/// A prefix, or one address.
fn prefix(text: &str) -> Result<Ipv4Net, String> {
    let address = text.parse::<std::net::Ipv4Addr>().map(Ipv4Net::from);
    address
        .or_else(|_| text.parse::<Ipv4Net>())
        .map_err(|_| "use an IPv4 prefix such as 10.0.1.0/24, or one address".to_owned())
}

fn limit(text: &str) -> Result<usize, String> {
    let limit = text.parse().ok().filter(|limit| (1..=MAX_SESSIONS).contains(limit));
    limit.ok_or_else(|| format!("use a number from 1 to {MAX_SESSIONS}"))
}

/// The head of each column, and whether it is aligned to the right.
const COLUMNS: [(&str, bool); 9] = [
    ("PROTO", false),
    ("INTERNAL", false),
    ("EXTERNAL", false),
    ("REMOTE", false),
    ("STATE", false),
    ("AGE", true),
    ("IDLE", true),
    ("OUT", true),
    ("IN", true),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn session(internal: &str, state: &str) -> Session {
        Session {
            protocol: "tcp".to_owned(),
            internal: internal.parse().unwrap(),
            external: "192.0.2.1:40000".parse().unwrap(),
            remote: "203.0.113.7:443".parse().unwrap(),
            state: state.to_owned(),
            opened_by: "internal".to_owned(),
            age_seconds: 61.0,
            idle_seconds: 0.04,
            packets_out: 3,
            bytes_out: 180,
            packets_in: 2,
            bytes_in: 120_000,
        }
    }

    #[test]
    fn table_is_aligned_and_ends_with_the_counts() {
        let sessions = vec![session("10.0.0.1:1", "syn_sent"), session("10.100.100.100:65535", "established")];
        let mut out = Vec::new();
        write(&mut out, &Sessions { sessions, matched: 7, live: 1234, mappings: 1000 }).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[0].find("REMOTE"), lines[1].find("203.0.113.7"), "{text}");
        assert_eq!(lines[1].find("203.0.113.7"), lines[2].find("203.0.113.7"), "{text}");
        assert!(lines[1].ends_with("1m 1s  0.0s  180 B  117.1 KiB"), "{text}");
        assert_eq!(lines[3], "2 of 7 matching; 1,234 sessions live, 1,000 mappings");
    }

    #[test]
    fn one_address_is_a_prefix_too() {
        assert_eq!(prefix("10.0.0.1").unwrap(), "10.0.0.1/32".parse().unwrap());
        assert!(prefix("10.0.0").is_err());
    }
}
