//! Changes of the configuration while sessions live.

use std::time::Duration;

use egret::nat::{CloseReason, DropReason, Event, FilteringBehaviour};
use egret::wire::Protocol;

use crate::support::*;

const CLIENT: &str = "10.0.0.2:4000";
const SERVER: &str = "198.51.100.1:53";

fn change(nat: &mut Nat, change: impl FnOnce(&mut egret::nat::Config)) {
    let mut config = nat.engine.config().clone();
    change(&mut config);
    nat.reconfigure(config);
}

#[test]
fn sessions_survive_a_change() {
    let mut nat = Nat::default();
    let external = nat.open_udp(CLIENT, SERVER);
    change(&mut nat, |c| {
        c.filtering = FilteringBehaviour::EndpointIndependent;
        c.port_range = 30_000..=40_000;
    });
    assert_eq!(nat.open_udp(CLIENT, SERVER), external);
    assert_eq!(nat.inbound(udp("198.51.100.99:1", external)).to_internal().destination, ep(CLIENT));
    assert!((30_000..=40_000).contains(&nat.open_udp("10.0.0.3:4000", SERVER).port));
    nat.assert_empties();
}

#[test]
fn ports_in_use_are_still_in_use_after_a_change() {
    let mut nat = Nat::default();
    nat.open_udp(CLIENT, SERVER);
    change(&mut nat, |c| c.external_mtu = 1400);
    assert_ne!(nat.open_udp("10.0.0.3:4000", SERVER).port, 4000);
    nat.advance_secs(121);
    assert_eq!(nat.open_udp("10.0.0.3:4000", SERVER).port, 4000, "and free when it has ended");
}

#[test]
fn sessions_of_a_removed_address_end() {
    let mut nat = Nat::with(|c| c.external_addresses = pool(2));
    let kept = nat.open_udp("10.0.0.2:4000", SERVER);
    let lost = nat.open_udp("10.0.0.3:4000", SERVER);
    assert_ne!(kept.address, lost.address);
    nat.events();
    change(&mut nat, |c| c.external_addresses.retain(|address| address.private == kept.address));
    let events = nat.events();
    assert!(
        matches!(events[..], [Event::Closed(record, CloseReason::AddressRemoved)] if record.external == lost)
    );
    assert_eq!(nat.inbound(udp(SERVER, lost)).reason(), DropReason::NotExternal);
    assert!(nat.inbound(udp(SERVER, kept)).is_sent());
    assert_eq!(nat.open_udp("10.0.0.3:4000", SERVER).address, kept.address);
    nat.assert_empties();
}

/// A host that keeps a session by a static mapping is paired anew when its address goes, and then stays paired.
#[test]
fn host_is_paired_anew_when_its_address_is_removed() {
    let mut nat = Nat::with(|c| {
        c.external_addresses = pool(4);
        c.static_mappings = vec![static_mapping(Protocol::TCP, "192.0.2.2:443", "10.0.0.2:443")];
    });
    let paired = nat.open_udp(CLIENT, SERVER).address;
    assert_eq!(paired, ip("192.0.2.1"));
    nat.inbound(tcp("198.51.100.9:9", "192.0.2.2:443", SYN)).to_internal();
    change(&mut nat, |c| {
        c.external_addresses.remove(0);
    });
    let paired = nat.open_udp(CLIENT, SERVER).address;
    for port in 4001..4020 {
        assert_eq!(nat.open_udp((ip("10.0.0.2"), port), SERVER).address, paired);
    }
}

#[test]
fn shorter_timeout_applies_to_sessions_that_are_open() {
    let mut nat = Nat::default();
    nat.open_tcp(CLIENT, SERVER);
    nat.advance_secs(100);
    change(&mut nat, |c| c.timeouts.tcp_established = Duration::from_secs(350));
    nat.advance_secs(249);
    assert_eq!(nat.counters().sessions, 1);
    nat.advance_secs(2);
    assert_eq!(nat.counters().sessions, 0);
}

#[test]
fn longer_timeout_applies_to_sessions_that_are_open() {
    let mut nat = Nat::default();
    nat.open_udp(CLIENT, SERVER);
    change(&mut nat, |c| c.timeouts.udp_unreplied = Duration::from_secs(1_000));
    nat.advance_secs(999);
    assert_eq!(nat.counters().sessions, 1);
    nat.advance_secs(2);
    assert_eq!(nat.counters().sessions, 0);
}

#[test]
fn bad_configuration_changes_nothing() {
    let mut nat = Nat::default();
    let external = nat.open_udp(CLIENT, SERVER);
    let before = nat.engine.config().clone();
    let mut bad = before.clone();
    bad.external_addresses.clear();
    nat.engine.reconfigure(nat.now, bad).expect_err("no address");
    assert_eq!(nat.engine.config(), &before);
    assert_eq!(nat.open_udp(CLIENT, SERVER), external);
}

#[test]
fn static_mapping_can_be_added_and_removed() {
    let mut nat = Nat::default();
    let target = (EXTERNAL, 443);
    change(&mut nat, |c| {
        c.static_mappings = vec![static_mapping(Protocol::UDP, target, "10.0.0.9:443")];
    });
    assert!(nat.inbound(udp(SERVER, target)).is_sent());
    change(&mut nat, |c| c.static_mappings.clear());
    assert!(nat.inbound(udp(SERVER, target)).is_sent(), "what is open stays");
    assert!(!nat.inbound(udp("198.51.100.2:1", target)).is_sent(), "nobody else gets in");
    nat.assert_empties();
}
