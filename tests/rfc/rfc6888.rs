//! RFC 6888, requirements for carrier-grade NATs, as far as they fit a NAT with a single tenant: the subscribers
//! are the internal addresses.

use egret::nat::{DropReason, ExternalAddress, OnExhaustion};

use crate::support::*;

const SERVER: &str = "198.51.100.1:53";

/// REQ-3.
#[test]
fn external_addresses_need_not_be_contiguous() {
    let addresses = ["192.0.2.9", "198.51.100.200", "192.0.2.77"];
    let mut nat = Nat::with(|c| {
        c.external_addresses = addresses.iter().map(|a| ExternalAddress::from(ip(a))).collect();
    });
    let mut used: Vec<_> =
        (2..60).map(|host| nat.open_udp((ip(&format!("10.0.0.{host}")), 4000), SERVER).address).collect();
    used.sort();
    used.dedup();
    let mut expected = addresses.map(ip);
    expected.sort();
    assert_eq!(used, expected);
}

/// REQ-4, REQ-5.
#[test]
fn sessions_of_one_internal_address_are_limited() {
    let mut nat = Nat::with(|c| c.limits.sessions_per_address = 10);
    for port in 4000..4010 {
        nat.open_udp((ip("10.0.0.2"), port), SERVER);
    }
    assert_eq!(nat.out(udp("10.0.0.2:4010", SERVER)).reason(), DropReason::AddressSessionLimit);
    assert_eq!(nat.out(udp("10.0.0.2:4000", "198.51.100.2:53")).reason(), DropReason::AddressSessionLimit);
    assert!(nat.out(udp("10.0.0.2:4000", SERVER)).is_sent(), "what it has goes on");
    assert!(nat.out(udp("10.0.0.3:4000", SERVER)).is_sent(), "and others are not concerned");
    assert_eq!(nat.dropped(DropReason::AddressSessionLimit), 2);
}

/// REQ-5.
#[test]
fn sessions_in_all_are_limited() {
    let mut nat = Nat::with(|c| c.limits.sessions = 100);
    for host in 2..102 {
        nat.open_udp((ip(&format!("10.0.0.{host}")), 4000), SERVER);
    }
    assert_eq!(nat.out(udp("10.0.0.200:4000", SERVER)).reason(), DropReason::SessionLimit);
    assert!(nat.out(udp("10.0.0.2:4000", SERVER)).is_sent());
    nat.advance_secs(121);
    assert!(nat.out(udp("10.0.0.200:4000", SERVER)).is_sent(), "when others have ended");
}

/// REQ-11: a) and d); the deviation from b) is the code.
#[test]
fn exhaustion_is_answered_and_leaves_existing_mappings_alone() {
    let mut nat = Nat::with(|c| {
        c.port_range = 4000..=4009;
        c.on_exhaustion = OnExhaustion::Refuse;
    });
    let mut opened = Vec::new();
    for host in 2..12 {
        let internal = ep((ip(&format!("10.0.0.{host}")), 4000));
        opened.push((internal, nat.open_udp(internal, SERVER)));
    }
    for host in 12..50 {
        let refused = udp((ip(&format!("10.0.0.{host}")), 4000), SERVER);
        assert_eq!(nat.out(refused), Outcome::Replied(DropReason::PortsExhausted));
        assert_eq!(nat.only_transmitted().1.icmp_kind(), (3, 13));
    }
    for (internal, external) in opened {
        assert_eq!(nat.inbound(udp(SERVER, external)).to_internal().destination, internal);
    }
}

/// REQ-13: every port of the range can be used.
#[test]
fn all_ports_of_the_range_are_used() {
    let mut nat = Nat::with(|c| {
        c.port_range = 2000..=2999;
        c.on_exhaustion = OnExhaustion::Refuse;
        c.excluded_ports = vec![(egret::wire::Protocol::UDP, 2500)];
    });
    let mut used = std::collections::BTreeSet::new();
    for host in 0..999_u32 {
        let client = (std::net::Ipv4Addr::from(0x0a01_0000 + host), 2000);
        used.insert(nat.open_udp(client, SERVER).port);
    }
    assert_eq!(used.len(), 999);
    assert!(!used.contains(&2500), "the host's own port");
    assert_eq!(nat.out(udp("10.9.9.9:2000", SERVER)).reason(), DropReason::PortsExhausted);
}
