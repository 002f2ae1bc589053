//! Static mappings: whatever comes to their external endpoint goes to their internal one.

use egret::nat::{MappingBehaviour, Side};
use egret::wire::Protocol;

use crate::support::*;

const TARGET: &str = "10.0.0.9:8443";
const REMOTE: &str = "198.51.100.1:7000";

fn nat(protocol: Protocol) -> Nat {
    Nat::with(|c| c.static_mappings = vec![static_mapping(protocol, (EXTERNAL, 443), TARGET)])
}

#[test]
fn any_remote_may_send_to_a_static_mapping() {
    let mut nat = nat(Protocol::UDP);
    for remote in [REMOTE, "198.51.100.1:7001", "203.0.113.200:53"] {
        let inside = nat.inbound(udp(remote, (EXTERNAL, 443))).to_internal();
        assert_eq!((inside.source, inside.destination), (ep(remote), ep(TARGET)));
        let outside = nat.out(udp(TARGET, remote)).to_external();
        assert_eq!((outside.source, outside.destination), (ep((EXTERNAL, 443)), ep(remote)));
    }
    assert_eq!((nat.counters().sessions, nat.counters().mappings), (3, 1));
    assert!(nat.sessions().iter().all(|session| session.opened_by == Side::External));
    nat.assert_empties();
}

/// Also with the other mapping behaviour.
#[test]
fn target_of_a_static_mapping_goes_out_by_it() {
    for mapping in [MappingBehaviour::EndpointIndependent, MappingBehaviour::AddressAndPortDependent] {
        let mut nat = Nat::with(|c| {
            c.mapping = mapping;
            c.static_mappings = vec![static_mapping(Protocol::UDP, (EXTERNAL, 443), TARGET)];
        });
        assert_eq!(nat.open_udp(TARGET, REMOTE), ep((EXTERNAL, 443)));
        assert_eq!(nat.open_udp(TARGET, "198.51.100.2:1"), ep((EXTERNAL, 443)));
        assert!(nat.inbound(udp("198.51.100.77:9", (EXTERNAL, 443))).is_sent(), "and stays open to all");
    }
}

#[test]
fn port_of_a_static_mapping_is_given_to_nobody_else() {
    let mut nat = Nat::with(|c| {
        c.port_range = 2000..=2009;
        c.static_mappings = vec![static_mapping(Protocol::UDP, (EXTERNAL, 2004), TARGET)];
    });
    for host in 2..40 {
        let outcome = nat.out(udp((ip(&format!("10.0.0.{host}")), 2004), (ip("198.51.100.1"), host)));
        if let Outcome::Sent(_, sent) = outcome {
            assert_ne!(sent.source.port, 2004);
        }
    }
    assert!(nat.counters().ports_overloaded > 0);
}

#[test]
fn static_mapping_of_one_protocol_does_not_open_another() {
    let mut nat = nat(Protocol::TCP);
    assert!(!nat.inbound(udp(REMOTE, (EXTERNAL, 443))).is_sent());
    assert!(nat.inbound(tcp(REMOTE, (EXTERNAL, 443), SYN)).is_sent());
}

/// A protocol without ports: all of it goes to one host.
#[test]
fn other_protocol_can_be_mapped_statically() {
    let mut nat = Nat::with(|c| {
        c.static_mappings = vec![static_mapping(Protocol(47), (EXTERNAL, 0), (ip("10.0.0.9"), 0))];
    });
    let inside = nat.inbound(other("198.51.100.1", EXTERNAL, 47)).to_internal();
    assert_eq!(inside.destination.address, ip("10.0.0.9"));
    assert!(nat.out(other("10.0.0.9", "198.51.100.1", 47)).is_sent());
}

/// A packet that claims to come from one of the NAT's own addresses would be answered to somebody inside.
#[test]
fn spoofed_external_source_opens_no_session() {
    let mut nat = Nat::with(|c| {
        c.external_addresses.extend(pool(3).into_iter().skip(1));
        c.static_mappings = vec![static_mapping(Protocol::TCP, (EXTERNAL, 443), TARGET)];
    });
    nat.open_tcp("10.0.0.2:4000", REMOTE);
    for source in [ip("192.0.2.2"), PUBLIC] {
        assert!(!nat.inbound(tcp((source, 4000), (EXTERNAL, 443), SYN)).is_sent());
    }
    assert_eq!(nat.counters().sessions, 1);
}

/// Two external endpoints for one target: each remote gets its answers from where it has asked.
#[test]
fn one_target_behind_two_static_mappings_answers_by_the_right_one() {
    let mut nat = Nat::with(|c| {
        c.static_mappings = vec![
            static_mapping(Protocol::UDP, (EXTERNAL, 443), TARGET),
            static_mapping(Protocol::UDP, (EXTERNAL, 444), TARGET),
        ];
    });
    assert!(nat.inbound(udp(REMOTE, (EXTERNAL, 443))).is_sent());
    assert!(nat.inbound(udp("198.51.100.2:9", (EXTERNAL, 444))).is_sent());
    assert_eq!(nat.out(udp(TARGET, REMOTE)).to_external().source.port, 443);
    assert_eq!(nat.out(udp(TARGET, "198.51.100.2:9")).to_external().source.port, 444);
    // One remote at both: the answers to the second could not be told from those to the first.
    let _ = nat.inbound(udp(REMOTE, (EXTERNAL, 444)));
    assert_eq!(nat.out(udp(TARGET, REMOTE)).to_external().source.port, 443);
    nat.assert_empties();
}
