//! Two private clients that talk by their external endpoints (RFC 4787 REQ-9, RFC 5382 REQ-8).

use serde_json::Value;

use super::{no_leaks, python, serve};
use crate::lab::{Arms, Egret, Failure, INTERNET, Lab, NAT, Options, PUBLIC, Process, Result};

/// Has client 2 open mappings of its port 5000, and serve on it; gives the ports of their external endpoints.
fn open_mappings(lab: &Lab) -> Result<(Process, u16, u16)> {
    let mut server = lab.client(2).spawn(&format!("{} hairpin 5000 {INTERNET} 7000", python("sockets.py")))?;
    server.wait_for_log("}")?;
    lab.client(2).wait_listening(crate::lab::Transport::Udp, 5000)?;
    lab.client(2).wait_listening(crate::lab::Transport::Tcp, 5000)?;
    let opened: Value = serde_json::from_str(said(&server).first().map_or("", String::as_str))?;
    let port = |protocol: &str| -> Result<u16> {
        let endpoint = opened[protocol].as_str().unwrap_or_default();
        let port = endpoint.strip_prefix(&format!("{PUBLIC}:")).and_then(|port| port.parse().ok());
        port.ok_or_else(|| Failure::new(format!("the server saw {opened}")))
    };
    Ok((server, port("udp")?, port("tcp")?))
}

/// Its lines of JSON; that it had to ask again is none.
fn said(server: &Process) -> Vec<String> {
    server.log().lines().filter(|line| line.starts_with('{')).map(str::to_owned).collect()
}

fn clients_reach_each_other(options: Options) -> Result {
    let lab = Lab::new(options)?;
    let _server = serve(lab.internet(), 7000)?;
    let egret = Egret::start(lab.nat(), &lab.config("filtering = \"endpoint-independent\""))?;
    let (server, udp, tcp) = open_mappings(&lab)?;
    for address in [NAT, PUBLIC] {
        for (protocol, port) in [("UDP", udp), ("TCP", tcp)] {
            let ask = format!("{} ask {protocol} {address} {port}", python("sockets.py"));
            let seen = lab.client(1).run(&ask)?;
            // RFC 4787 REQ-9a: the other client sees the external endpoint, never the private one.
            let external = seen.starts_with(&format!("{NAT}:")) || seen.starts_with(&format!("{PUBLIC}:"));
            assert!(external, "{protocol} by {address}: client 2 saw {seen}");
        }
    }
    assert!(!server.log().contains("10.0.1.11"), "client 2 saw the private address: {}", server.log());
    let hairpinned = || Ok(egret.status()?["traffic"]["hairpinned"]["packets"].as_u64() >= Some(16));
    lab.nat().wait_for("its packets to be counted", hairpinned)?;
    no_leaks(&lab)
}

#[test]
fn clients_reach_each_other_by_private_and_public_external_address() -> Result {
    clients_reach_each_other(Options::default())
}

#[test]
fn clients_reach_each_other_without_offloads() -> Result {
    clients_reach_each_other(Options { offloads: false, ..Options::default() })
}

#[test]
fn clients_reach_each_other_two_armed() -> Result {
    clients_reach_each_other(Options { arms: Arms::Two, ..Options::default() })
}

#[test]
fn hairpinned_stranger_is_filtered_like_one_from_outside() -> Result {
    let lab = Lab::new(Options::default())?;
    let _server = serve(lab.internet(), 7000)?;
    let egret = Egret::start(lab.nat(), &lab.config(""))?;
    let (server, udp, _) = open_mappings(&lab)?;
    lab.nat().wait_for("a datagram to be filtered", || {
        lab.client(1).shell(&format!("echo hello | socat -u - UDP4:{PUBLIC}:{udp}"))?;
        Ok(egret.dropped("filtered")? > 0)
    })?;
    assert_eq!(said(&server).len(), 1, "client 2 was reached: {}", server.log());
    no_leaks(&lab)
}
