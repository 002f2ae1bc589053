//! RFC 5508, continued: ICMP errors about translated packets, in all directions.

use std::time::Duration;

use egret::nat::{DropReason, FilteringBehaviour, Side};

use crate::support::*;

const CLIENT: &str = "10.0.0.2:4000";
const SERVER: &str = "198.51.100.1:53";
const ROUTER_OUTSIDE: &str = "198.51.100.254";
const NO_OPERATIONS: [u8; 8] = [1, 1, 1, 1, 1, 1, 1, 0];

/// REQ-3.
#[test]
fn error_with_a_bad_icmp_checksum_is_dropped() {
    let mut nat = Nat::default();
    let sent = nat.out(udp(CLIENT, SERVER)).to_external();
    let good = icmp_error(ROUTER_OUTSIDE, EXTERNAL, (3, 1), &sent.bytes).bytes();
    for at in 20..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let (verdict, _) = nat.unchecked(Side::External, &bad);
        assert_eq!(verdict, egret::nat::Verdict::Drop(DropReason::BadChecksum), "byte {at}");
    }
    assert_eq!(nat.transmitted(), [], "in silence");
    assert!(nat.inbound(good).is_sent());
}

/// REQ-3a: the deviation. A router on the way may have changed the embedded header without mending its checksum;
/// the error is of use all the same, and the checksum stays as wrong as it was.
#[test]
fn error_with_a_bad_embedded_ip_checksum_is_translated() {
    let mut nat = Nat::default();
    let sent = nat.out(udp(CLIENT, SERVER)).to_external();
    let mut embedded = sent.bytes.clone();
    embedded[8] -= 3;
    let error = nat.inbound(icmp_error(ROUTER_OUTSIDE, EXTERNAL, (3, 1), &embedded)).to_internal();
    assert_eq!(error.payload[12..16], [10, 0, 0, 2]);
    assert_eq!(error.payload[20..22], 4000_u16.to_be_bytes());
    let mut mended = error.payload.clone();
    mended[8] += 3;
    let mended = icmp_error(ROUTER_OUTSIDE, "10.0.0.2", (3, 1), &mended).bytes();
    assert_eq!(view(&mended).embedded(), (ep(CLIENT), ep(SERVER)), "right but for what the router did");
}

/// REQ-3b.
#[test]
fn ip_options_of_the_embedded_packet_are_passed_over() {
    let mut nat = Nat::default();
    let external = nat.open_udp(CLIENT, SERVER);
    // A router on the way has added options.
    let embedded = udp(external, SERVER).ip_options(&NO_OPERATIONS).bytes();
    let error = nat.inbound(icmp_error(ROUTER_OUTSIDE, EXTERNAL, (3, 1), &embedded)).to_internal();
    assert_eq!(error.embedded(), (ep(CLIENT), ep(SERVER)));
    assert_eq!(error.payload[20..28], NO_OPERATIONS);
}

/// REQ-3c.
#[test]
fn transport_checksum_of_the_embedded_packet_is_not_checked() {
    let mut nat = Nat::default();
    let sent = nat.out(udp(CLIENT, SERVER)).to_external();
    let mut embedded = sent.bytes.clone();
    embedded[26..28].copy_from_slice(&[0xba, 0xad]);
    let error = nat.inbound(icmp_error(ROUTER_OUTSIDE, EXTERNAL, (3, 1), &embedded)).to_internal();
    assert_eq!(error.embedded(), (ep(CLIENT), ep(SERVER)));
}

/// REQ-3d.
#[test]
fn icmp_extensions_are_left_alone() {
    let mut nat = Nat::default();
    let sent = nat.out(udp(CLIENT, SERVER).filled(100)).to_external();
    // RFC 4884: the datagram padded to 128 bytes, its length in words, then an extension with an MPLS label.
    let mut payload = sent.bytes.clone();
    payload.resize(128, 0);
    let extension = [0x20, 0, 0, 0, 0, 8, 1, 1, 0, 0x12, 0x31, 1];
    payload.extend(extension);
    let error = icmp(ROUTER_OUTSIDE, EXTERNAL, 11, 0, [0, 32, 0, 0]).payload(&payload);
    let error = nat.inbound(error).to_internal();
    assert_eq!(error.embedded(), (ep(CLIENT), ep(SERVER)));
    assert_eq!(error.icmp.as_ref().expect("an error").rest, [0, 32, 0, 0]);
    assert_eq!(error.payload[128..], extension);
}

/// REQ-4.
#[test]
fn error_about_an_unknown_session_is_dropped() {
    let mut nat = Nat::default();
    let external = nat.open_udp(CLIENT, SERVER);
    for stranger in [
        udp((EXTERNAL, 4001), SERVER),
        udp(external, "198.51.100.1:54"),
        udp(external, "198.51.100.2:53"),
        tcp(external, SERVER, SYN),
        ping(EXTERNAL, "198.51.100.1", 4000),
    ] {
        let error = icmp_error(ROUTER_OUTSIDE, EXTERNAL, (3, 1), &stranger.bytes());
        assert_eq!(nat.inbound(error), Outcome::Dropped(DropReason::IcmpNoSession));
    }
    assert_eq!(nat.transmitted(), []);
    assert_eq!(nat.counters().sessions, 1);
}

/// REQ-4: an error goes to whom the embedded packet is from; a header that says otherwise is forged.
#[test]
fn error_sent_to_another_address_than_the_embedded_source_is_dropped() {
    let mut nat = Nat::with(|c| c.external_addresses = pool(2));
    let sent = nat.out(udp(CLIENT, SERVER)).to_external();
    let another = pool(2).into_iter().find(|a| a.private != sent.source.address).expect("a second").private;
    let error = icmp_error(ROUTER_OUTSIDE, another, (3, 1), &sent.bytes);
    assert!(!nat.inbound(error).is_sent());
}

/// REQ-4a, 4b, 4c.
#[test]
fn error_from_outside_is_reverted_for_the_internal_host() {
    let mut nat = Nat::default();
    // Something else has the ports and the identifier, so that the translation changes them.
    nat.open_udp("10.0.0.9:4000", SERVER);
    nat.out(tcp("10.0.0.9:4000", SERVER, SYN)).to_external();
    nat.open_ping("10.0.0.9", "198.51.100.1", 4000);
    for packet in [
        udp(CLIENT, SERVER).df().bytes(),
        tcp(CLIENT, SERVER, SYN).df().bytes(),
        ping("10.0.0.2", "198.51.100.1", 4000).df().bytes(),
        udp(CLIENT, "198.51.100.1:99").no_checksum().df().bytes(),
    ] {
        let sent = nat.out(&packet).to_external();
        for kind in [(3, 1), (3, 4), (11, 0)] {
            let error = nat.inbound(icmp_error(ROUTER_OUTSIDE, EXTERNAL, kind, &sent.bytes)).to_internal();
            assert_eq!(error.icmp_kind(), kind);
            assert_eq!(error.source.address, ip(ROUTER_OUTSIDE));
            assert_eq!(error.destination.address, ip("10.0.0.2"));
            // Down to the last byte what the host has sent, but for the TTL and the header checksum with it.
            let mut embedded = error.payload.clone();
            assert_eq!(embedded[8], packet[8] - 1);
            error.embedded();
            embedded[8] = packet[8];
            embedded[10..12].copy_from_slice(&packet[10..12]);
            assert_eq!(embedded, packet);
        }
    }
    assert_eq!(nat.counters().icmp_errors, 12);
}

/// REQ-5.
#[test]
fn error_from_inside_about_an_unknown_session_is_dropped() {
    let mut nat = Nat::default();
    nat.open_udp(CLIENT, SERVER);
    let stranger = udp("198.51.100.1:54", CLIENT).bytes();
    let error = icmp_error("10.0.0.2", "198.51.100.1", (3, 3), &stranger);
    assert_eq!(nat.out(error), Outcome::Dropped(DropReason::IcmpNoSession));
    assert_eq!(nat.transmitted(), []);
}

/// REQ-5a, 5b.
#[test]
fn error_from_inside_shows_the_remote_its_own_packet() {
    let mut nat = Nat::default();
    nat.open_udp("10.0.0.9:4000", SERVER);
    let external = nat.open_udp(CLIENT, SERVER);
    assert_ne!(external.port, 4000);
    let packet = udp(SERVER, external).filled(50).bytes();
    let delivered = nat.inbound(&packet).to_internal();
    let error = icmp_error("10.0.0.2", "198.51.100.1", (3, 3), &delivered.bytes);
    let error = nat.out(error).to_external();
    assert_eq!(error.icmp_kind(), (3, 3));
    assert_eq!((error.source.address, error.destination.address), (EXTERNAL, ip("198.51.100.1")));
    assert_eq!(error.embedded(), (ep(SERVER), external));
    assert_eq!(error.payload[26..], packet[26..], "the checksum and the payload too");
}

/// REQ-5c.
#[test]
fn error_of_an_internal_router_gets_the_external_address() {
    let mut nat = Nat::default();
    let external = nat.open_udp(CLIENT, SERVER);
    let delivered = nat.inbound(udp(SERVER, external)).to_internal();
    let error = icmp_error("10.7.7.7", "198.51.100.1", (11, 0), &delivered.bytes);
    let error = nat.out(error).to_external();
    assert_eq!(error.source.address, EXTERNAL);
    assert_eq!(error.embedded(), (ep(SERVER), external));
}

/// REQ-4: with one interface, a router of the own network on the way out is seen on the internal side.
#[test]
fn error_of_an_internal_router_about_an_outbound_packet_reaches_its_sender() {
    let mut nat = Nat::default();
    let sent = nat.out(udp(CLIENT, SERVER)).to_external();
    let error = nat.out(icmp_error("10.0.0.1", EXTERNAL, (11, 0), &sent.bytes)).to_internal();
    assert_eq!(error.source.address, ip("10.0.0.1"));
    assert_eq!(error.embedded(), (ep(CLIENT), ep(SERVER)));
}

/// REQ-6.
#[test]
fn error_about_a_query_neither_refreshes_nor_ends_it() {
    let mut nat = Nat::default();
    let sent = nat.out(ping("10.0.0.2", "198.51.100.1", 77)).to_external();
    for _ in 0..11 {
        nat.advance_secs(5);
        let error = nat.inbound(icmp_error(ROUTER_OUTSIDE, EXTERNAL, (11, 0), &sent.bytes)).to_internal();
        assert_eq!(error.embedded().0, ep("10.0.0.2:77"));
    }
    assert_eq!(nat.counters().sessions, 1);
    nat.advance(Duration::from_millis(5_200));
    assert_eq!(nat.counters().sessions, 0);
}

/// REQ-7, 7a.
#[test]
fn error_about_a_hairpinned_packet_reaches_its_sender() {
    for address in [EXTERNAL, PUBLIC] {
        let mut nat = Nat::with(|c| c.filtering = FilteringBehaviour::EndpointIndependent);
        let target = nat.open_udp("10.0.0.3:5000", SERVER);
        let target = ep((address, target.port));
        let packet = udp(CLIENT, target).filled(40).bytes();
        let there = nat.out(&packet).to_internal();
        let error = icmp_error("10.0.0.3", there.source, (3, 3), &there.bytes);
        let error = nat.out(error).to_internal();
        assert_eq!(error.icmp_kind(), (3, 3));
        assert_eq!(error.destination.address, ip("10.0.0.2"));
        assert_eq!(error.source.address, address, "the sender knows only the external address");
        assert_eq!(error.embedded(), (ep(CLIENT), target));
        assert_eq!(error.payload[26..], packet[26..]);
    }
}

/// REQ-10a: the NAT itself reports what it cannot pass on.
#[test]
fn ttl_that_ends_here_is_reported_to_the_inside() {
    let mut nat = Nat::default();
    for packet in [
        udp(CLIENT, "198.51.100.1:33434").bytes(),
        tcp(CLIENT, SERVER, SYN).bytes(),
        ping("10.0.0.2", "198.51.100.1", 7).bytes(),
    ] {
        for ttl in [0, 1] {
            let mut last = packet.clone();
            last[8] = ttl;
            let last = refresh(last);
            assert_eq!(nat.out(&last), Outcome::Replied(DropReason::TtlExceeded));
            let (side, error) = nat.only_transmitted();
            assert_eq!((side, error.icmp_kind()), (Side::Internal, (11, 0)));
            assert_eq!((error.source.address, error.destination.address), (ROUTER, ip("10.0.0.2")));
            assert_eq!(error.payload[..28], last[..28], "the packet as the host sent it");
        }
        assert_eq!(nat.out(&packet).to_external().ttl, 63);
    }
    assert_eq!(nat.counters().sessions, 3, "what is dropped for its TTL opens nothing");
}

/// REQ-10a: without a router address of its own, the first external address speaks.
#[test]
fn reports_come_from_the_external_address_if_no_other_is_known() {
    let mut nat = Nat::with(|c| c.internal_router = None);
    assert_eq!(nat.out(udp(CLIENT, SERVER).ttl(1)), Outcome::Replied(DropReason::TtlExceeded));
    assert_eq!(nat.only_transmitted().1.source.address, EXTERNAL);
}

/// REQ-10a, and the deviation from REQ-10d: the class of an own error is the default one, whatever it is about.
#[test]
fn reports_are_well_formed() {
    let mut nat = Nat::default();
    let long = udp(CLIENT, SERVER).filled(1400).ttl(1).tos(0xb8).bytes();
    assert_eq!(nat.out(&long), Outcome::Replied(DropReason::TtlExceeded));
    let (_, error) = nat.only_transmitted();
    assert!(error.bytes.len() <= 576, "RFC 1812 section 4.3.2.3");
    assert!(error.payload.len() >= 28);
    assert_eq!(error.payload[..], long[..error.payload.len()]);
    assert!(error.ttl >= 64);
    assert!(!error.more_fragments && error.fragment_offset == 0);
    assert!(error.df, "it needs no identification (RFC 6864 section 4)");
}

/// REQ-10d.
#[test]
fn reports_have_the_class_of_what_they_are_about() {
    let mut nat = Nat::default();
    for (tos, expected) in [(0xb8, 0xb8), (0, 0), (0x2b, 0x28)] {
        nat.out(udp(CLIENT, SERVER).ttl(1).tos(tos));
        assert_eq!(nat.only_transmitted().1.tos, expected, "without the congestion bits");
    }
}

/// The packet with its IP header checksum made right.
fn refresh(mut packet: Vec<u8>) -> Vec<u8> {
    let sum = pnet_packet::util::checksum(&packet[..20], 5);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}
