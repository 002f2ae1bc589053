//! A fleet, as `egret status` shows it.

use std::io::{self, Write};

use super::text::duration;
use crate::admin::{FleetReport, GatewayReport, PeerReport};

/// On lines of at most 80 characters, but for reasons.
pub(super) fn write(out: &mut dyn Write, fleet: &FleetReport) -> io::Result<()> {
    let leaving = if fleet.leaving { ", about to stop" } else { "" };
    writeln!(out, "{:<12}{}: {}{leaving}", "fleet", fleet.name, fleet.health)?;
    let mut title = "gateways";
    for gateway in &fleet.gateways {
        write!(out, "{title:<12}{}: ", gateway.gateway)?;
        write_gateway(out, &fleet.name, gateway)?;
        title = "";
    }
    title = "peers";
    for peer in &fleet.peers {
        write!(out, "{title:<12}{}: ", peer.peer)?;
        write_peer(out, peer)?;
        title = "";
    }
    Ok(())
}

fn write_gateway(out: &mut dyn Write, own: &str, gateway: &GatewayReport) -> io::Result<()> {
    let GatewayReport { host, role, since_seconds, why, trouble, offered_to, not_handed_over, .. } = gateway;
    match (role.as_str(), host) {
        ("active", _) => write!(out, "active here")?,
        ("taking", _) => write!(out, "being taken over")?,
        ("fallback", _) => write!(out, "address here, routes to the standby NAT gateway")?,
        (_, Some(host)) if host == own => write!(out, "here, not active yet")?,
        (_, Some(host)) => write!(out, "at {host}")?,
        (_, None) => write!(out, "without a host that is known")?,
    }
    if let Some(seconds) = since_seconds.filter(|_| host.is_some()) {
        write!(out, " for {}", duration(seconds))?;
    }
    writeln!(out)?;
    let reasons =
        [("", why), ("handed over to ", offered_to), ("not handed over: ", not_handed_over), ("", trouble)];
    for (what, reason) in reasons {
        if let Some(reason) = reason {
            writeln!(out, "{:<14}{what}{reason}", "")?;
        }
    }
    Ok(())
}

fn write_peer(out: &mut dyn Write, peer: &PeerReport) -> io::Result<()> {
    write!(out, "{}", peer.state)?;
    if let Some(health) = peer.health.as_ref().filter(|_| peer.state != "dead") {
        write!(out, ", {health}")?;
    }
    if peer.leaving {
        write!(out, ", about to stop")?;
    }
    if peer.connected {
        if let Some(seconds) = peer.round_trip_seconds {
            write!(out, ", round trip {:.1} ms", seconds * 1e3)?;
        }
    } else {
        write!(out, ", silent for {}", duration(peer.silent_seconds))?;
    }
    writeln!(out)?;
    for reason in [&peer.refused, &peer.last_error.clone().filter(|_| !peer.connected)].into_iter().flatten() {
        writeln!(out, "{:<14}{reason}", "")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_have_their_hosts_and_peers_their_health() {
        let fleet = FleetReport {
            name: "az-a".to_owned(),
            health: "well".to_owned(),
            gateways: vec![
                GatewayReport {
                    gateway: "az-a".to_owned(),
                    host: Some("az-a".to_owned()),
                    role: "active".to_owned(),
                    since_seconds: Some(90.0),
                    why: Some("the address was here at the start".to_owned()),
                    offered_to: Some("az-b".to_owned()),
                    ..GatewayReport::default()
                },
                GatewayReport {
                    gateway: "az-b".to_owned(),
                    role: "standby".to_owned(),
                    trouble: Some("eipalloc-1 does not exist".to_owned()),
                    ..GatewayReport::default()
                },
            ],
            peers: vec![
                PeerReport {
                    peer: "az-b".to_owned(),
                    state: "alive".to_owned(),
                    connected: true,
                    health: Some("well".to_owned()),
                    round_trip_seconds: Some(0.00042),
                    ..PeerReport::default()
                },
                PeerReport {
                    peer: "az-c".to_owned(),
                    state: "dead".to_owned(),
                    health: Some("well".to_owned()),
                    silent_seconds: 12.0,
                    last_error: Some("connection refused".to_owned()),
                    ..PeerReport::default()
                },
            ],
            ..FleetReport::default()
        };
        let mut text = Vec::new();
        write(&mut text, &fleet).unwrap();
        let expected = "\
fleet       az-a: well
gateways    az-a: active here for 1m 30s
              the address was here at the start
              handed over to az-b
            az-b: without a host that is known
              eipalloc-1 does not exist
peers       az-b: alive, well, round trip 0.4 ms
            az-c: dead, silent for 12s
              connection refused
";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}
