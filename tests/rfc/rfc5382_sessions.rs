//! RFC 5382, continued: how long connections live, and what ICMP does to them.

use std::time::Duration;

use egret::nat::{CloseReason, DropReason, Event};

use crate::support::*;

const CLIENT: &str = "10.0.0.2:4000";
const SERVER: &str = "198.51.100.1:443";

/// REQ-5.
#[test]
fn idle_connection_lives_two_hours_and_four_minutes() {
    let mut nat = Nat::default();
    nat.open_tcp(CLIENT, SERVER);
    nat.advance(Duration::from_millis(7_439_999));
    assert_eq!(nat.counters().sessions, 1);
    nat.advance(Duration::from_millis(201));
    assert_eq!(nat.counters().sessions, 0);
    assert!(matches!(nat.events().last(), Some(Event::Closed(_, CloseReason::Expired))));
}

/// REQ-5.
#[test]
fn half_open_connection_lives_four_minutes() {
    let mut nat = Nat::default();
    nat.out(tcp(CLIENT, SERVER, SYN)).to_external();
    nat.advance(Duration::from_millis(239_999));
    assert_eq!(nat.counters().sessions, 1);
    nat.advance(Duration::from_millis(201));
    assert_eq!(nat.counters().sessions, 0);
}

/// REQ-5: the handshake is complete only with the third segment.
#[test]
fn unfinished_handshake_stays_transitory() {
    let mut nat = Nat::default();
    let external = nat.out(tcp(CLIENT, SERVER, SYN)).to_external().source;
    // Neither data without a SYN from the other side, nor retransmissions make it a connection.
    assert!(nat.out(tcp(CLIENT, SERVER, SYN)).is_sent());
    nat.advance_secs(239);
    assert_eq!(nat.counters().sessions, 1);
    nat.advance_secs(2);
    assert_eq!(nat.counters().sessions, 0);
    assert_eq!(nat.inbound(tcp(SERVER, external, SYN | ACK).ack(1001)).reason(), DropReason::NoSession);
}

/// REQ-5a.
#[test]
fn tcp_timeouts_are_configurable() {
    let mut nat = Nat::with(|c| {
        c.timeouts.tcp_established = Duration::from_secs(8000);
        c.timeouts.tcp_transitory = Duration::from_secs(300);
    });
    nat.open_tcp(CLIENT, SERVER);
    nat.out(tcp("10.0.0.3:4001", SERVER, SYN)).to_external();
    nat.advance_secs(299);
    assert_eq!(nat.counters().sessions, 2);
    nat.advance_secs(2);
    assert_eq!(nat.counters().sessions, 1);
    nat.advance_secs(7698);
    assert_eq!(nat.counters().sessions, 1);
    nat.advance_secs(2);
    assert_eq!(nat.counters().sessions, 0);
}

/// REQ-9.
#[test]
fn destination_unreachable_is_translated_for_tcp() {
    let mut nat = Nat::default();
    let syn = nat.out(tcp(CLIENT, SERVER, SYN)).to_external();
    for code in 0..=15 {
        let error = icmp_error("198.51.100.254", EXTERNAL, (3, code), &syn.bytes);
        let error = nat.inbound(error).to_internal();
        assert_eq!(error.icmp_kind(), (3, code));
        assert_eq!(error.destination.address, ip("10.0.0.2"));
        assert_eq!(error.embedded(), (ep(CLIENT), ep(SERVER)));
    }
}

/// REQ-9: routers often send only 8 bytes of the segment.
#[test]
fn error_with_eight_bytes_of_the_segment_is_translated() {
    let mut nat = Nat::default();
    let syn = nat.out(tcp(CLIENT, SERVER, SYN)).to_external();
    let error = nat.inbound(icmp_error("198.51.100.254", EXTERNAL, (11, 0), &syn.bytes[..28])).to_internal();
    assert_eq!(error.embedded(), (ep(CLIENT), ep(SERVER)));
}

/// REQ-10.
#[test]
fn icmp_error_does_not_end_a_connection() {
    let mut nat = Nat::default();
    let external = nat.open_tcp(CLIENT, SERVER);
    let segment = nat.out(tcp(CLIENT, SERVER, ACK).seq(1001).ack(5001)).to_external();
    for kind in [(3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 9), (3, 10), (3, 13), (11, 0), (11, 1), (12, 0)] {
        let error = icmp_error("198.51.100.254", EXTERNAL, kind, &segment.bytes);
        assert!(nat.inbound(error).is_sent(), "{kind:?}");
        assert!(nat.inbound(tcp(SERVER, external, ACK).seq(5001).ack(1001)).is_sent(), "{kind:?}");
    }
    nat.advance_secs(7000);
    assert_eq!(nat.counters().sessions, 1);
    assert_eq!(nat.counters().sessions_closed, 0);
}
