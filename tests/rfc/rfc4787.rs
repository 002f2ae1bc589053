//! RFC 4787, NAT behavioral requirements for unicast UDP: mapping, ports, timers, filtering, hairpinning.

use std::collections::HashSet;
use std::time::Duration;

use egret::nat::{DropReason, FilteringBehaviour, MappingBehaviour, OnExhaustion, Timeouts};

use crate::support::*;

const CLIENT: &str = "10.0.0.2:4000";
const SERVER: &str = "198.51.100.1:53";

/// REQ-1.
#[test]
fn mapping_survives_change_of_remote() {
    let mut nat = Nat::default();
    let external = nat.open_udp(CLIENT, SERVER);
    for remote in ["198.51.100.1:54", "198.51.100.2:53", "198.51.100.200:65535"] {
        assert_eq!(nat.open_udp(CLIENT, remote), external);
    }
    assert_eq!(nat.counters().mappings, 1);
    assert_eq!(nat.counters().sessions, 4);
}

/// REQ-1: the option that departs from it.
#[test]
fn address_and_port_dependent_mapping_is_an_option() {
    let mut nat = Nat::with(|c| c.mapping = MappingBehaviour::AddressAndPortDependent);
    let first = nat.open_udp(CLIENT, SERVER);
    assert_ne!(nat.open_udp(CLIENT, "198.51.100.1:54"), first);
    assert_ne!(nat.open_udp(CLIENT, "198.51.100.2:53"), first);
    assert_eq!(nat.open_udp(CLIENT, SERVER), first);
}

/// REQ-2.
#[test]
fn internal_address_keeps_its_external_address() {
    let mut nat = Nat::with(|c| c.external_addresses = pool(4));
    let mut used = HashSet::new();
    for host in 2..60 {
        let address = ip(&format!("10.0.0.{host}"));
        let paired = nat.open_udp((address, 4000), SERVER).address;
        used.insert(paired);
        for port in 4001..4020 {
            assert_eq!(nat.open_udp((address, port), (ip("198.51.100.9"), port)).address, paired);
        }
        let tcp_address = nat.open_tcp((address, 4000), "198.51.100.3:443").address;
        assert_eq!(tcp_address, paired);
    }
    assert_eq!(used.len(), 4, "all of the pool is used");
}

/// REQ-3: no overloading as long as a port is free.
#[test]
fn ports_are_not_shared_while_others_are_free() {
    let mut nat = Nat::with(|c| c.port_range = 2000..=2099);
    let mut used = HashSet::new();
    for host in 0..100_u8 {
        let external = nat.open_udp((format!("10.0.1.{host}").parse().expect("an address"), 2000), SERVER);
        assert!(used.insert(external), "{external} twice");
    }
    assert_eq!(nat.counters().ports_overloaded, 0);
}

/// REQ-3: the deviation. A port that is shared tells its sessions apart by their remotes.
#[test]
fn exhausted_ports_are_shared_only_between_different_remotes() {
    let mut nat = Nat::with(|c| c.port_range = 2000..=2003);
    for host in 2..6 {
        nat.open_udp((ip(&format!("10.0.0.{host}")), 2000), SERVER);
    }
    let external = nat.open_udp("10.0.0.6:2000", "198.51.100.2:53");
    assert_eq!(nat.counters().ports_overloaded, 1);
    let owner = nat.sessions().into_iter().find(|s| s.external == external && s.remote == ep(SERVER));
    let owner = owner.expect("the port is shared").internal;
    assert_eq!(nat.inbound(udp(SERVER, external)).to_internal().destination, owner);
    let other = nat.inbound(udp("198.51.100.2:53", external)).to_internal().destination;
    assert_eq!(other, ep("10.0.0.6:2000"));
    assert_eq!(nat.out(udp("10.0.0.7:2000", SERVER)).reason(), DropReason::PortsExhausted);
}

/// REQ-3 by configuration.
#[test]
fn exhausted_ports_can_be_refused() {
    let mut nat = Nat::with(|c| {
        c.port_range = 2000..=2003;
        c.on_exhaustion = OnExhaustion::Refuse;
    });
    for host in 2..6 {
        nat.open_udp((ip(&format!("10.0.0.{host}")), 2000), SERVER);
    }
    let refused = nat.out(udp("10.0.0.6:2000", "198.51.100.2:53"));
    assert_eq!(refused, Outcome::Replied(DropReason::PortsExhausted));
    assert_eq!(nat.only_transmitted().1.icmp_kind(), (3, 13));
    assert_eq!(nat.counters().ports_overloaded, 0);
}

/// REQ-3a, with a range that has both classes.
#[test]
fn source_port_keeps_its_range_class() {
    let mut nat = Nat::with(|c| c.port_range = 1..=65535);
    for host in 2..100 {
        let address = ip(&format!("10.0.0.{host}"));
        assert!((1..1024).contains(&nat.open_udp((address, 500), SERVER).port));
        assert!((1024..=65535).contains(&nat.open_udp((address, 5000), SERVER).port));
    }
}

/// Section 4.2.1.
#[test]
fn free_source_port_is_preserved() {
    let mut nat = Nat::default();
    assert_eq!(nat.open_udp(CLIENT, SERVER), ep((EXTERNAL, 4000)));
    assert_eq!(nat.open_udp("10.0.0.3:4001", SERVER), ep((EXTERNAL, 4001)));
}

/// REQ-4.
#[test]
fn port_parity_is_preserved() {
    let mut nat = Nat::default();
    for host in 2..100 {
        let address = ip(&format!("10.0.0.{host}"));
        assert_eq!(nat.open_udp((address, 4000), SERVER).port % 2, 0);
        assert_eq!(nat.open_udp((address, 4001), SERVER).port % 2, 1);
    }
}

/// REQ-5, with the slack of the timer's resolution.
#[test]
fn unanswered_mapping_lives_two_minutes() {
    let mut nat = Nat::default();
    nat.open_udp(CLIENT, SERVER);
    nat.advance(Duration::from_millis(119_999));
    assert_eq!(nat.counters().mappings, 1);
    nat.advance(Duration::from_millis(201));
    assert_eq!(nat.counters().mappings, 0);
}

/// REQ-5c.
#[test]
fn answered_mapping_lives_five_minutes() {
    let mut nat = Nat::default();
    let external = nat.open_udp(CLIENT, SERVER);
    nat.inbound(udp(SERVER, external)).to_internal();
    nat.advance(Duration::from_millis(299_999));
    assert_eq!(nat.counters().mappings, 1);
    nat.advance(Duration::from_millis(201));
    assert_eq!(nat.counters().mappings, 0);
}

/// REQ-5b.
#[test]
fn udp_timer_is_configurable() {
    let mut nat = Nat::with(|c| c.timeouts = Timeouts::aws_nat_gateway());
    let external = nat.open_udp(CLIENT, SERVER);
    nat.inbound(udp(SERVER, external)).to_internal();
    nat.advance(Duration::from_millis(349_999));
    assert_eq!(nat.counters().mappings, 1);
    nat.advance(Duration::from_millis(201));
    assert_eq!(nat.counters().mappings, 0);
}

/// REQ-6.
#[test]
fn outbound_packet_refreshes_the_mapping() {
    let mut nat = Nat::default();
    let external = nat.open_udp(CLIENT, SERVER);
    for _ in 0..20 {
        nat.advance_secs(119);
        assert_eq!(nat.open_udp(CLIENT, SERVER), external);
    }
    assert_eq!(nat.counters().sessions_opened, 1);
    nat.advance_secs(121);
    assert_eq!(nat.counters().sessions, 0);
}

/// REQ-6a.
#[test]
fn inbound_packet_of_the_session_refreshes_the_mapping() {
    let mut nat = Nat::default();
    let external = nat.open_udp(CLIENT, SERVER);
    for _ in 0..20 {
        nat.inbound(udp(SERVER, external)).to_internal();
        nat.advance_secs(299);
    }
    assert_eq!(nat.counters().sessions, 1);
}

/// REQ-6a: what the filter keeps out keeps nothing alive.
#[test]
fn filtered_packet_does_not_refresh_the_mapping() {
    let mut nat = Nat::default();
    let external = nat.open_udp(CLIENT, SERVER);
    for _ in 0..11 {
        assert_eq!(nat.inbound(udp("198.51.100.66:53", external)).reason(), DropReason::Filtered);
        nat.advance_secs(11);
    }
    assert_eq!(nat.counters().mappings, 0);
}

/// REQ-8: the default, stricter than either recommendation.
#[test]
fn default_filter_lets_in_only_the_remote_endpoint() {
    let mut nat = Nat::default();
    let external = nat.open_udp(CLIENT, SERVER);
    assert!(nat.inbound(udp(SERVER, external)).is_sent());
    assert_eq!(nat.inbound(udp("198.51.100.1:54", external)), Outcome::Dropped(DropReason::Filtered));
    assert_eq!(nat.inbound(udp("198.51.100.2:53", external)), Outcome::Dropped(DropReason::Filtered));
    assert_eq!(nat.inbound(udp(SERVER, (EXTERNAL, 4002))), Outcome::Dropped(DropReason::NoSession));
    assert_eq!(nat.counters().sessions, 1);
}

/// REQ-8 and REQ-8a.
#[test]
fn endpoint_independent_filtering_lets_any_remote_in() {
    let mut nat = Nat::with(|c| c.filtering = FilteringBehaviour::EndpointIndependent);
    let external = nat.open_udp(CLIENT, SERVER);
    for remote in ["198.51.100.1:54", "198.51.100.2:53"] {
        let inside = nat.inbound(udp(remote, external)).to_internal();
        assert_eq!((inside.source, inside.destination), (ep(remote), ep(CLIENT)));
        let outside = nat.out(udp(CLIENT, remote)).to_external();
        assert_eq!((outside.source, outside.destination), (external, ep(remote)));
    }
}

/// REQ-9.
#[test]
fn hairpinned_packet_reaches_the_internal_host() {
    for address in [EXTERNAL, PUBLIC] {
        let mut nat = Nat::with(|c| c.filtering = FilteringBehaviour::EndpointIndependent);
        let target = nat.open_udp("10.0.0.3:5000", SERVER);
        let there = nat.out(udp(CLIENT, (address, target.port))).to_internal();
        assert_eq!(there.destination, ep("10.0.0.3:5000"));
        let back = nat.out(udp("10.0.0.3:5000", there.source)).to_internal();
        assert_eq!(back.destination, ep(CLIENT));
        assert_eq!(back.source, ep((address, target.port)), "answers come from where the client sent to");
        assert_eq!(nat.counters().hairpinned.packets, 2);
    }
}

/// REQ-9a, and in the form in which the other one was addressed.
#[test]
fn hairpinned_packet_shows_the_external_source_endpoint() {
    for address in [EXTERNAL, PUBLIC] {
        let mut nat = Nat::with(|c| c.filtering = FilteringBehaviour::EndpointIndependent);
        let target = nat.open_udp("10.0.0.3:5000", SERVER);
        let own = nat.open_udp(CLIENT, SERVER);
        let there = nat.out(udp(CLIENT, (address, target.port))).to_internal();
        assert_eq!(there.source, ep((address, own.port)));
    }
}

/// REQ-9: hairpinning is subject to the same filter as packets from outside.
#[test]
fn hairpinned_packet_passes_the_filter_of_its_target() {
    let mut nat = Nat::default();
    let target = nat.open_udp("10.0.0.3:5000", SERVER);
    let own = nat.open_udp(CLIENT, SERVER);
    assert_eq!(nat.out(udp(CLIENT, target)).reason(), DropReason::Filtered);
    // It has sent to the other nevertheless, so the other may send to it, and so on.
    assert_eq!(nat.out(udp("10.0.0.3:5000", own)).to_internal().destination, ep(CLIENT));
    assert_eq!(nat.out(udp(CLIENT, target)).to_internal().destination, ep("10.0.0.3:5000"));
}

/// REQ-11.
#[test]
fn behaviour_is_the_same_under_conflict_and_load() {
    let mut nat = Nat::with(|c| c.port_range = 2000..=3999);
    for host in 0..1990_u32 {
        let address = std::net::Ipv4Addr::from(0x0a01_0000 + host);
        let external = nat.open_udp((address, 2000), SERVER);
        // Whether its port was preserved or not, the mapping is endpoint-independent and the filter is the same.
        assert_eq!(nat.open_udp((address, 2000), "198.51.100.2:99"), external);
        assert_eq!(nat.inbound(udp("198.51.100.3:53", external)).reason(), DropReason::Filtered);
        assert_eq!(nat.inbound(udp("198.51.100.2:53", external)).reason(), DropReason::Filtered);
        assert_eq!(nat.inbound(udp(SERVER, external)).to_internal().destination, ep((address, 2000)));
    }
}
