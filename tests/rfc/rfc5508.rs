//! RFC 5508, NAT behavioral requirements for ICMP: queries, refusals, and what a NAT says itself.

use std::time::Duration;

use egret::nat::{DropReason, OnExhaustion, Side};
use egret::wire::Protocol;

use crate::support::*;

const CLIENT: &str = "10.0.0.2";
const SERVER: &str = "198.51.100.1";

/// REQ-1.
#[test]
fn query_from_inside_and_its_reply_pass() {
    let mut nat = Nat::default();
    // Echo, timestamp, information, address mask, domain name, extended echo.
    for (request, reply) in [(8, 0), (13, 14), (15, 16), (17, 18), (37, 38), (42, 43)] {
        let query = icmp(CLIENT, SERVER, request, 0, [0x12, request, 0, 7]).payload([0; 12]);
        let sent = nat.out(query).to_external();
        assert_eq!((sent.source.address, sent.icmp_kind()), (EXTERNAL, (request, 0)));
        let [a, b] = sent.identifier().to_be_bytes();
        let answer = icmp(SERVER, EXTERNAL, reply, 0, [a, b, 0, 7]).payload([0; 12]);
        let back = nat.inbound(answer).to_internal();
        assert_eq!((back.destination.address, back.icmp_kind()), (ip(CLIENT), (reply, 0)));
        assert_eq!(back.icmp.expect("a query").rest, [0x12, request, 0, 7]);
    }
}

/// REQ-1: two hosts with the same identifier to the same remote.
#[test]
fn equal_identifiers_of_two_hosts_are_kept_apart() {
    let mut nat = Nat::default();
    let first = nat.open_ping(CLIENT, SERVER, 77);
    let second = nat.open_ping("10.0.0.3", SERVER, 77);
    assert_eq!(first, 77, "preserved when free");
    assert_ne!(first, second);
    let back = nat.inbound(pong(SERVER, EXTERNAL, second)).to_internal();
    assert_eq!((back.destination.address, back.identifier()), (ip("10.0.0.3"), 77));
    let back = nat.inbound(pong(SERVER, EXTERNAL, first)).to_internal();
    assert_eq!((back.destination.address, back.identifier()), (ip(CLIENT), 77));
}

/// REQ-1: a reply that nobody asked for, and a query from outside.
#[test]
fn unsolicited_queries_and_replies_are_dropped() {
    let mut nat = Nat::default();
    let external = nat.open_ping(CLIENT, SERVER, 77);
    assert!(!nat.inbound(pong("198.51.100.2", EXTERNAL, external)).is_sent());
    assert!(!nat.inbound(pong(SERVER, EXTERNAL, external + 1)).is_sent());
    assert!(!nat.inbound(ping("198.51.100.2", EXTERNAL, external)).is_sent());
    assert_eq!(nat.counters().sessions, 1);
}

/// REQ-1a.
#[test]
fn identifier_mapping_is_independent_of_the_remote() {
    let mut nat = Nat::default();
    nat.open_ping("10.0.0.3", SERVER, 77);
    let external = nat.open_ping(CLIENT, SERVER, 77);
    for remote in ["198.51.100.2", "198.51.100.3"] {
        assert_eq!(nat.open_ping(CLIENT, remote, 77), external);
    }
    assert_eq!(nat.counters().mappings, 2);
}

/// REQ-2.
#[test]
fn query_session_lives_sixty_seconds() {
    let mut nat = Nat::default();
    nat.open_ping(CLIENT, SERVER, 77);
    nat.advance(Duration::from_millis(59_999));
    assert_eq!(nat.counters().sessions, 1);
    nat.advance(Duration::from_millis(201));
    assert_eq!(nat.counters().sessions, 0);
}

/// REQ-2a.
#[test]
fn query_timeout_is_configurable() {
    let mut nat = Nat::with(|c| c.timeouts.icmp_query = Duration::from_secs(90));
    nat.open_ping(CLIENT, SERVER, 77);
    nat.advance_secs(89);
    assert_eq!(nat.counters().sessions, 1);
    nat.advance_secs(2);
    assert_eq!(nat.counters().sessions, 0);
}

/// REQ-7 asks it of Basic NAT only: a query has one identifier, which cannot name both hosts.
#[test]
fn query_to_an_external_address_stays_inside() {
    for address in [EXTERNAL, PUBLIC] {
        let mut nat = Nat::default();
        let target = nat.open_ping("10.0.0.3", SERVER, 90);
        for identifier in [target, 4711] {
            let outcome = nat.out(ping(CLIENT, address, identifier));
            assert!(matches!(outcome, Outcome::Dropped(_)), "{outcome:?}");
        }
    }
}

/// REQ-8.
#[test]
fn session_that_cannot_be_had_is_refused_with_code_13() {
    let mut nat = Nat::with(|c| {
        c.limits.sessions_per_address = 2;
        c.port_range = 3000..=3003;
        c.on_exhaustion = OnExhaustion::Refuse;
    });
    nat.open_udp("10.0.0.2:3000", "198.51.100.1:53");
    nat.open_udp("10.0.0.2:3001", "198.51.100.1:53");
    let by_limit = udp("10.0.0.2:3002", "198.51.100.1:53");
    nat.open_udp("10.0.0.3:3002", "198.51.100.1:53");
    nat.open_udp("10.0.0.3:3003", "198.51.100.1:53");
    let by_ports = udp("10.0.0.4:3000", "198.51.100.1:53");
    for (packet, reason) in
        [(by_limit, DropReason::AddressSessionLimit), (by_ports, DropReason::PortsExhausted)]
    {
        let refused = packet.bytes();
        assert_eq!(nat.out(&refused), Outcome::Replied(reason));
        let (side, error) = nat.only_transmitted();
        assert_eq!((side, error.icmp_kind()), (Side::Internal, (3, 13)));
        assert_eq!(error.destination.address, view(&refused).source.address);
        assert_eq!(error.embedded(), (view(&refused).source, view(&refused).destination));
    }
    let syn = tcp("10.0.0.2:3000", "198.51.100.1:80", SYN);
    assert_eq!(nat.out(syn), Outcome::Replied(DropReason::AddressSessionLimit));
    assert_eq!(nat.only_transmitted().1.icmp_kind(), (3, 13));
    let echo = ping("10.0.0.2", SERVER, 1);
    assert_eq!(nat.out(echo), Outcome::Replied(DropReason::AddressSessionLimit));
    assert_eq!(nat.only_transmitted().1.icmp_kind(), (3, 13));
}

/// REQ-9: to strangers outside nothing is said unless `answer_unsolicited_syn` asks for it.
#[test]
fn nothing_is_answered_to_the_outside_by_default() {
    let mut nat = Nat::default();
    let external = nat.open_udp("10.0.0.2:4000", "198.51.100.1:53");
    let big = udp("198.51.100.1:53", external).filled(3000).df();
    for packet in [
        udp("198.51.100.9:1", external).bytes(),
        udp("198.51.100.9:1", (EXTERNAL, 9999)).bytes(),
        tcp("198.51.100.9:1", (EXTERNAL, 9999), SYN).bytes(),
        ping("198.51.100.9", EXTERNAL, 9).bytes(),
        other("198.51.100.9", EXTERNAL, 47).bytes(),
    ] {
        assert!(matches!(nat.inbound(&packet), Outcome::Dropped(_)));
    }
    assert_eq!(nat.transmitted(), []);
    // What a session's remote must know for its path MTU discovery or traceroute is not such an answer.
    assert_eq!(nat.inbound(big).reason(), DropReason::TooBig);
}

/// REQ-10b: parameter problem is passed, redirect is not.
#[test]
fn optional_errors_pass_or_are_dropped_by_type() {
    let mut nat = Nat::default();
    let sent = nat.out(udp("10.0.0.2:4000", "198.51.100.1:53")).to_external();
    let problem = nat.inbound(icmp_error("198.51.100.254", EXTERNAL, (12, 0), &sent.bytes)).to_internal();
    assert_eq!(problem.embedded(), (ep("10.0.0.2:4000"), ep("198.51.100.1:53")));
    let redirect = nat.inbound(icmp_error("198.51.100.254", EXTERNAL, (5, 1), &sent.bytes));
    assert_eq!(redirect, Outcome::Dropped(DropReason::IcmpType));
}

/// REQ-10c.
#[test]
fn source_quench_is_dropped() {
    let mut nat = Nat::default();
    let sent = nat.out(udp("10.0.0.2:4000", "198.51.100.1:53")).to_external();
    let quench = nat.inbound(icmp_error("198.51.100.254", EXTERNAL, (4, 0), &sent.bytes));
    assert_eq!(quench, Outcome::Dropped(DropReason::IcmpType));
}

/// REQ-10e: no error about an error, a later fragment, or a broadcast (RFC 1812 section 4.3.2.7).
#[test]
fn no_error_is_sent_about_what_must_not_be_answered() {
    let mut nat = Nat::default();
    let whole = udp("10.0.0.2:4000", "198.51.100.1:53").filled(2000).ttl(1).bytes();
    let inbound = udp("198.51.100.1:53", "10.0.0.2:4000").bytes();
    let error = icmp_error("10.0.0.2", "198.51.100.1", (3, 3), &inbound).ttl(1).bytes();
    for packet in [
        fragment(&whole, 1000)[1].clone(),
        error,
        udp("10.0.0.2:4000", "255.255.255.255:53").ttl(1).bytes(),
        udp("10.0.0.2:4000", "224.0.0.5:53").ttl(1).bytes(),
        udp("255.255.255.255:4000", "198.51.100.1:53").ttl(1).bytes(),
        udp("0.0.0.0:4000", "198.51.100.1:53").ttl(1).bytes(),
    ] {
        let outcome = nat.out(&packet);
        assert!(!outcome.is_sent() && !matches!(outcome, Outcome::Replied(_)), "{outcome:?}");
        nat.advance_secs(3);
        assert_eq!(nat.transmitted(), []);
    }
}

/// REQ-10f (RFC 1812 section 4.3.2.8).
#[test]
fn error_answers_are_rate_limited() {
    let mut nat = Nat::default();
    let mut answered = 0;
    for port in 1..=10_000 {
        let expired = udp(("10.0.0.2".parse().expect("an address"), port), "198.51.100.1:53").ttl(1);
        answered += u32::from(nat.out(expired) == Outcome::Replied(DropReason::TtlExceeded));
    }
    assert_eq!(nat.transmitted().len(), usize::try_from(answered).expect("fits"));
    assert!((1..=200).contains(&answered), "{answered}");
    assert_eq!(nat.counters().replies_limited, u64::from(10_000 - answered));
    nat.advance_secs(2);
    nat.out(udp("10.0.0.2:1", "198.51.100.1:53").ttl(1)).reason();
    assert_eq!(nat.transmitted().len(), 1, "and again after a while");
}

/// REQ-11, and the deviation from REQ-1: domain name and extended echo requests (37 and 42) are dropped too.
#[test]
fn other_icmp_messages_are_dropped() {
    let mut nat = Nat::default();
    for kind in [1, 2, 6, 7, 9, 10, 19, 30, 36, 40, 41, 253, 255] {
        let message = icmp(CLIENT, SERVER, kind, 0, [0; 4]);
        assert_eq!(nat.out(message), Outcome::Dropped(DropReason::IcmpType), "type {kind} from inside");
        let message = icmp(SERVER, EXTERNAL, kind, 0, [0; 4]);
        assert_eq!(nat.inbound(message), Outcome::Dropped(DropReason::IcmpType), "type {kind} from outside");
    }
    assert_eq!(nat.counters().sessions, 0);
}

/// REQ-1: a protocol without ports or identifiers is told apart by its remote.
#[test]
fn other_protocols_are_translated_by_address() {
    let mut nat = Nat::default();
    let sent = nat.out(other(CLIENT, SERVER, 47)).to_external();
    assert_eq!((sent.source.address, sent.protocol), (EXTERNAL, Protocol(47)));
    let back = nat.inbound(other(SERVER, EXTERNAL, 47)).to_internal();
    assert_eq!(back.destination.address, ip(CLIENT));
    assert!(!nat.inbound(other(SERVER, EXTERNAL, 50)).is_sent(), "another protocol");
    assert!(!nat.inbound(other("198.51.100.2", EXTERNAL, 47)).is_sent(), "another remote");
    assert!(!nat.out(other("10.0.0.3", SERVER, 47)).is_sent(), "one host per protocol and remote");
    nat.assert_empties();
}
