//! RFC 4787, continued: application data, ICMP, the MTU, fragments.

use std::time::Duration;

use egret::nat::{DropReason, Side};

use crate::support::*;

const CLIENT: &str = "10.0.0.2:4000";
const SERVER: &str = "198.51.100.1:53";
const ERRORS: [(u8, u8); 9] = [(3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 13), (11, 0), (11, 1), (12, 0)];

/// REQ-10.
#[test]
fn addresses_in_the_payload_are_left_alone() {
    let mut nat = Nat::default();
    let sip =
        "INVITE sip:bob@198.51.100.1 SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.2:5060\r\nc=IN IP4 10.0.0.2\r\n\r\n";
    let sent = nat.out(udp("10.0.0.2:5060", "198.51.100.1:5060").payload(sip)).to_external();
    assert_eq!(sent.payload, sip.as_bytes());
    let ftp = "PORT 10,0,0,2,15,160\r\n";
    nat.open_tcp(CLIENT, "198.51.100.1:21");
    let segment = tcp(CLIENT, "198.51.100.1:21", PSH | ACK).seq(1001).ack(5001).payload(ftp);
    let sent = nat.out(segment).to_external();
    assert_eq!(sent.payload, ftp.as_bytes());
    assert_eq!(nat.counters().mappings, 2, "nothing is opened for what the payload announces");
}

/// REQ-12.
#[test]
fn icmp_error_does_not_end_a_udp_mapping() {
    let mut nat = Nat::default();
    let sent = nat.out(udp(CLIENT, SERVER)).to_external();
    for kind in ERRORS {
        let error = icmp_error("198.51.100.254", EXTERNAL, kind, &sent.bytes);
        assert!(nat.inbound(error).is_sent(), "{kind:?}");
        assert!(nat.inbound(udp(SERVER, sent.source)).is_sent(), "{kind:?}");
    }
    assert_eq!(nat.counters().sessions_closed, 0);
}

/// REQ-12: nor does it keep the mapping.
#[test]
fn icmp_error_does_not_refresh_a_udp_mapping() {
    let mut nat = Nat::default();
    let sent = nat.out(udp(CLIENT, SERVER)).to_external();
    for _ in 0..13 {
        nat.advance_secs(9);
        assert!(nat.inbound(icmp_error("198.51.100.254", EXTERNAL, (3, 1), &sent.bytes)).is_sent());
    }
    nat.advance(Duration::from_millis(3_200));
    assert_eq!(nat.counters().mappings, 0);
}

/// REQ-12a.
#[test]
fn icmp_error_may_come_from_any_address() {
    let mut nat = Nat::default();
    let sent = nat.out(udp(CLIENT, SERVER)).to_external();
    for router in ["198.51.100.1", "198.51.100.254", "203.0.113.99", "192.0.2.77"] {
        let error = nat.inbound(icmp_error(router, EXTERNAL, (11, 0), &sent.bytes)).to_internal();
        assert_eq!(error.source.address, ip(router));
    }
}

/// REQ-12b.
#[test]
fn destination_unreachable_is_translated_for_udp() {
    let mut nat = Nat::default();
    let sent = nat.out(udp(CLIENT, SERVER)).to_external();
    let error = nat.inbound(icmp_error("198.51.100.1", EXTERNAL, (3, 3), &sent.bytes)).to_internal();
    assert_eq!(error.icmp_kind(), (3, 3));
    assert_eq!(error.destination.address, ip("10.0.0.2"));
    assert_eq!(error.embedded(), (ep(CLIENT), ep(SERVER)));
}

/// REQ-13.
#[test]
fn too_big_with_df_is_answered_with_the_mtu() {
    let mut nat = Nat::with(|c| c.external_mtu = 1400);
    let big = udp(CLIENT, SERVER).filled(1373).df().bytes();
    assert_eq!(big.len(), 1401);
    assert_eq!(nat.out(&big), Outcome::Replied(DropReason::TooBig));
    let (side, error) = nat.only_transmitted();
    assert_eq!(side, Side::Internal);
    assert_eq!(error.icmp_kind(), (3, 4));
    assert_eq!(error.icmp.as_ref().expect("an error").mtu(), 1400);
    assert_eq!((error.source.address, error.destination.address), (ROUTER, ip("10.0.0.2")));
    assert_eq!(error.embedded(), (ep(CLIENT), ep(SERVER)));
    assert!(nat.out(udp(CLIENT, SERVER).filled(1372).df()).is_sent(), "exactly the MTU fits");
}

/// REQ-13a.
#[test]
fn too_big_without_df_is_fragmented_in_order() {
    let mut nat = Nat::with(|c| c.external_mtu = 1400);
    let big = udp(CLIENT, SERVER).filled(4000).bytes();
    assert_eq!(nat.out(&big), Outcome::Queued);
    let parts = nat.transmitted();
    assert_eq!(parts.len(), 3);
    assert!(parts.iter().all(|(side, _)| *side == Side::External));
    assert!(parts.is_sorted_by_key(|(_, part)| part.fragment_offset), "in order");
    let parts: Vec<_> = parts.into_iter().map(|(_, part)| part.bytes).collect();
    let whole = reassemble(&parts);
    assert_eq!((whole.source, whole.destination), (ep((EXTERNAL, 4000)), ep(SERVER)));
    assert_eq!(whole.payload, view(&big).payload);
    assert_eq!(nat.counters().fragmented, 1);
}

/// REQ-14.
#[test]
fn fragments_in_order_are_translated() {
    let mut nat = Nat::default();
    let whole = udp(CLIENT, SERVER).filled(3000).id(77).bytes();
    let sent: Vec<_> = fragment(&whole, 1000).iter().map(|part| nat.out(part).to_external().bytes).collect();
    let sent = reassemble(&sent);
    assert_eq!((sent.source, sent.destination), (ep((EXTERNAL, 4000)), ep(SERVER)));
    assert_eq!(sent.payload, view(&whole).payload);

    let answer = udp(SERVER, sent.source).filled(3000).bytes();
    let back: Vec<_> =
        fragment(&answer, 1000).iter().map(|part| nat.inbound(part).to_internal().bytes).collect();
    assert_eq!(reassemble(&back).destination, ep(CLIENT));
}

/// REQ-14.
#[test]
fn fragments_out_of_order_are_translated() {
    let mut nat = Nat::default();
    let external = nat.open_udp(CLIENT, SERVER);
    for (side, whole) in [
        (Side::Internal, udp(CLIENT, SERVER).filled(3000).bytes()),
        (Side::External, udp(SERVER, external).filled(3000).bytes()),
    ] {
        let parts = fragment(&whole, 1000);
        for order in [[3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1], [0, 3, 2, 1]] {
            let mut sent = Vec::new();
            for index in order {
                match nat.packet(side, &parts[index]) {
                    Outcome::Sent(to, part) => {
                        assert_eq!(to, side.opposite());
                        sent.push(part.bytes);
                    }
                    Outcome::Queued => {}
                    other => panic!("{other:?}"),
                }
                sent.extend(nat.transmitted().into_iter().map(|(to, part)| {
                    assert_eq!(to, side.opposite());
                    part.bytes
                }));
            }
            assert_eq!(reassemble(&sent).payload, view(&whole).payload, "{order:?}");
            nat.advance_secs(3);
        }
    }
    assert_eq!(nat.counters().fragment_bytes, 0);
}

/// REQ-14a.
#[test]
fn waiting_fragments_do_not_stop_other_packets() {
    let mut nat = Nat::with(|c| c.limits.fragment_bytes = 64 << 10);
    let external = nat.open_udp(CLIENT, SERVER);
    for round in 0..3_000_u16 {
        // Never a first fragment: an attacker fills the memory that there is for those that wait.
        let whole = udp("198.51.100.66:9", external).filled(1100).id(round).bytes();
        let _ = nat.inbound(&fragment(&whole, 1000)[1]);
        assert!(nat.counters().fragment_bytes <= 64 << 10);
        assert!(nat.inbound(udp(SERVER, external)).is_sent(), "a whole packet");
        let good = udp(SERVER, external).filled(1500).id(round).bytes();
        for part in fragment(&good, 1000) {
            assert!(nat.inbound(&part).is_sent(), "fragments in order, round {round}");
        }
    }
    assert!(nat.dropped(DropReason::FragmentLimit) > 0, "the limit was reached");
    nat.advance_secs(3);
    assert_eq!(nat.counters().fragment_bytes, 0);
    assert!(nat.dropped(DropReason::FragmentTimeout) > 0);
}
