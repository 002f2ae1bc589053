//! RFC 5382, NAT behavioral requirements for TCP: mapping, the ways to open a connection, filtering, hairpinning.

use std::time::Duration;

use egret::nat::{CloseReason, DropReason, Event, FilteringBehaviour, Side, TcpState};
use egret::wire::Protocol;

use crate::support::*;

const CLIENT: &str = "10.0.0.2:4000";
const SERVER: &str = "198.51.100.1:443";

/// REQ-1.
#[test]
fn tcp_mapping_survives_change_of_remote() {
    let mut nat = Nat::default();
    let external = nat.open_tcp(CLIENT, SERVER);
    for remote in ["198.51.100.1:444", "198.51.100.2:443"] {
        assert_eq!(nat.open_tcp(CLIENT, remote), external);
    }
    assert_eq!(nat.counters().mappings, 1);
}

/// REQ-2: the three-way handshake, data both ways, and an orderly end.
#[test]
fn connection_opened_from_inside_works_from_syn_to_last_ack() {
    let mut nat = Nat::default();
    let external = nat.open_tcp(CLIENT, SERVER);
    assert_eq!(nat.session().state, egret::nat::SessionState::Tcp(TcpState::Established));
    let data = nat.out(tcp(CLIENT, SERVER, PSH | ACK).seq(1001).ack(5001).filled(1000)).to_external();
    assert_eq!((data.source, data.destination, data.flags()), (external, ep(SERVER), PSH | ACK));
    let data = nat.inbound(tcp(SERVER, external, PSH | ACK).seq(5001).ack(2001).filled(1000)).to_internal();
    assert_eq!((data.source, data.destination), (ep(SERVER), ep(CLIENT)));
    assert!(nat.out(tcp(CLIENT, SERVER, FIN | ACK).seq(2001).ack(6001)).is_sent());
    assert!(nat.inbound(tcp(SERVER, external, ACK).seq(6001).ack(2002)).is_sent());
    assert!(nat.inbound(tcp(SERVER, external, FIN | ACK).seq(6001).ack(2002)).is_sent());
    assert!(nat.out(tcp(CLIENT, SERVER, ACK).seq(2002).ack(6002)).is_sent());
    nat.advance_secs(241);
    let events = nat.events();
    assert!(matches!(events[0], Event::Opened(record) if record.opened_by == Side::Internal));
    assert!(matches!(events[1], Event::Established(_)));
    assert!(matches!(events[2], Event::Closed(_, CloseReason::Finished)));
    assert_eq!(events.len(), 3);
}

/// REQ-2: opened from outside, where the filter permits it.
#[test]
fn connection_opened_from_outside_works() {
    let mut nat = Nat::with(|c| c.filtering = FilteringBehaviour::EndpointIndependent);
    let external = nat.open_tcp(CLIENT, SERVER);
    let peer = "198.51.100.9:7000";
    let syn = nat.inbound(tcp(peer, external, SYN)).to_internal();
    assert_eq!((syn.source, syn.destination), (ep(peer), ep(CLIENT)));
    let answer = nat.out(tcp(CLIENT, peer, SYN | ACK).seq(9000).ack(1001)).to_external();
    assert_eq!((answer.source, answer.destination), (external, ep(peer)));
    assert!(nat.inbound(tcp(peer, external, ACK).seq(1001).ack(9001)).is_sent());
    let opened = nat.sessions().into_iter().find(|s| s.remote == ep(peer)).expect("a session");
    assert_eq!(opened.opened_by, Side::External);
    assert_eq!(opened.state, egret::nat::SessionState::Tcp(TcpState::Established));
}

/// REQ-2: and to a static mapping.
#[test]
fn connection_to_a_static_mapping_works() {
    let mut nat = Nat::with(|c| {
        c.static_mappings = vec![static_mapping(Protocol::TCP, (EXTERNAL, 443), "10.0.0.9:8443")];
    });
    let peer = "198.51.100.9:7000";
    let syn = nat.inbound(tcp(peer, (EXTERNAL, 443), SYN)).to_internal();
    assert_eq!((syn.source, syn.destination), (ep(peer), ep("10.0.0.9:8443")));
    let answer = nat.out(tcp("10.0.0.9:8443", peer, SYN | ACK).seq(9000).ack(1001)).to_external();
    assert_eq!(answer.source, ep((EXTERNAL, 443)));
    assert!(nat.inbound(tcp(peer, (EXTERNAL, 443), ACK).seq(1001).ack(9001)).is_sent());
    nat.advance_secs(7439);
    assert_eq!(nat.counters().sessions, 1, "the established timeout");
}

/// REQ-2a.
#[test]
fn simultaneous_open_works() {
    let mut nat = Nat::default();
    let external = nat.out(tcp(CLIENT, SERVER, SYN).seq(1000)).to_external().source;
    let syn = nat.inbound(tcp(SERVER, external, SYN).seq(5000)).to_internal();
    assert_eq!((syn.destination, syn.flags()), (ep(CLIENT), SYN));
    assert!(nat.out(tcp(CLIENT, SERVER, SYN | ACK).seq(1000).ack(5001)).is_sent());
    assert!(nat.inbound(tcp(SERVER, external, SYN | ACK).seq(5000).ack(1001)).is_sent());
    assert!(nat.out(tcp(CLIENT, SERVER, ACK).seq(1001).ack(5001)).is_sent());
    nat.advance_secs(7400);
    assert_eq!(nat.session().state, egret::nat::SessionState::Tcp(TcpState::Established));
    let events = nat.events();
    assert_eq!(events.iter().filter(|e| matches!(e, Event::Established(_))).count(), 1);
}

/// REQ-2: a half-closed connection goes on in the other direction.
#[test]
fn half_closed_connection_keeps_the_established_timeout() {
    for closer in [Side::Internal, Side::External] {
        let mut nat = Nat::default();
        let external = nat.open_tcp(CLIENT, SERVER);
        let send = |nat: &mut Nat, from, flags, seq, ack| match from {
            Side::Internal => nat.out(tcp(CLIENT, SERVER, flags).seq(seq).ack(ack)).is_sent(),
            Side::External => nat.inbound(tcp(SERVER, external, flags).seq(seq).ack(ack)).is_sent(),
        };
        let (own, other) = if closer == Side::Internal { (1001, 5001) } else { (5001, 1001) };
        assert!(send(&mut nat, closer, FIN | ACK, own, other));
        nat.advance_secs(7000);
        assert!(send(&mut nat, closer.opposite(), ACK, other, own + 1));
        nat.advance_secs(7000);
        assert!(send(&mut nat, closer.opposite(), FIN | ACK, other, own + 1));
        nat.advance_secs(239);
        assert_eq!(nat.counters().sessions, 1);
        nat.advance_secs(2);
        assert_eq!(nat.counters().sessions, 0, "after both FINs: the transitory timeout");
    }
}

/// REQ-2: SYN retransmissions change nothing.
#[test]
fn retransmitted_segments_of_the_handshake_pass() {
    let mut nat = Nat::default();
    let external = nat.out(tcp(CLIENT, SERVER, SYN)).to_external().source;
    assert_eq!(nat.out(tcp(CLIENT, SERVER, SYN)).to_external().source, external);
    let answer = tcp(SERVER, external, SYN | ACK).seq(5000).ack(1001);
    assert!(nat.inbound(answer.clone()).is_sent());
    assert!(nat.inbound(answer).is_sent());
    assert_eq!(nat.out(tcp(CLIENT, SERVER, SYN)).to_external().source, external);
    assert!(nat.out(tcp(CLIENT, SERVER, ACK).seq(1001).ack(5001)).is_sent());
    assert_eq!(nat.counters().sessions_opened, 1);
    assert_eq!(nat.counters().sessions_established, 1);
}

/// REQ-3: the default.
#[test]
fn default_tcp_filter_lets_in_only_the_remote_endpoint() {
    let mut nat = Nat::default();
    let external = nat.open_tcp(CLIENT, SERVER);
    for flags in [SYN, ACK, SYN | ACK] {
        assert_eq!(
            nat.inbound(tcp("198.51.100.1:444", external, flags)),
            Outcome::Dropped(DropReason::Filtered)
        );
        assert_eq!(
            nat.inbound(tcp("198.51.100.2:443", external, flags)),
            Outcome::Dropped(DropReason::Filtered)
        );
    }
    assert_eq!(nat.counters().sessions, 1);
}

/// REQ-3: a session from outside begins with a SYN, whatever the filter.
#[test]
fn only_a_syn_opens_a_session_from_outside() {
    let mut nat = Nat::with(|c| {
        c.filtering = FilteringBehaviour::EndpointIndependent;
        c.static_mappings = vec![static_mapping(Protocol::TCP, (EXTERNAL, 443), "10.0.0.9:8443")];
    });
    let external = nat.open_tcp(CLIENT, SERVER);
    for flags in [ACK, SYN | ACK, RST, RST | ACK, FIN | ACK, PSH | ACK] {
        assert!(!nat.inbound(tcp("198.51.100.9:7000", external, flags)).is_sent(), "{flags:#x}");
        assert!(!nat.inbound(tcp("198.51.100.9:7000", (EXTERNAL, 443), flags)).is_sent(), "{flags:#x}");
    }
    assert_eq!(nat.counters().sessions, 1);
}

/// REQ-3a.
#[test]
fn tcp_filter_is_configurable() {
    let mut nat = Nat::with(|c| c.filtering = FilteringBehaviour::EndpointIndependent);
    let external = nat.open_tcp(CLIENT, SERVER);
    assert!(nat.inbound(tcp("198.51.100.2:443", external, SYN)).is_sent());
}

/// REQ-4.
#[test]
fn unsolicited_syn_is_not_answered_for_six_seconds() {
    let mut nat = Nat::with(|c| c.answer_unsolicited_syn = true);
    let syn = tcp("198.51.100.9:7000", (EXTERNAL, 4000), SYN).bytes();
    assert!(!nat.inbound(&syn).is_sent());
    nat.advance(Duration::from_millis(5_999));
    assert_eq!(nat.transmitted(), []);
    nat.advance(Duration::from_millis(301));
    let (side, error) = nat.only_transmitted();
    assert_eq!(side, Side::External);
    assert_eq!(error.icmp_kind(), (3, 3));
    assert_eq!((error.source.address, error.destination.address), (EXTERNAL, ip("198.51.100.9")));
    assert_eq!(error.embedded(), (ep("198.51.100.9:7000"), ep((EXTERNAL, 4000))));
    nat.advance_secs(60);
    assert_eq!(nat.transmitted(), [], "once");
}

/// REQ-4.
#[test]
fn outbound_syn_silences_the_answer_to_an_inbound_one() {
    let mut nat = Nat::with(|c| c.answer_unsolicited_syn = true);
    assert!(!nat.inbound(tcp(SERVER, (EXTERNAL, 4000), SYN).seq(5000)).is_sent());
    nat.advance_secs(3);
    let external = nat.out(tcp(CLIENT, SERVER, SYN)).to_external().source;
    assert_eq!(external, ep((EXTERNAL, 4000)));
    nat.advance_secs(10);
    assert_eq!(nat.transmitted(), []);
    // The retransmission of the inbound SYN now finds a session.
    assert!(nat.inbound(tcp(SERVER, external, SYN).seq(5000)).is_sent());
}

/// REQ-4: an outbound SYN of another connection does not count.
#[test]
fn outbound_syn_to_another_remote_does_not_silence_the_answer() {
    let mut nat = Nat::with(|c| c.answer_unsolicited_syn = true);
    assert!(!nat.inbound(tcp("198.51.100.9:7000", (EXTERNAL, 4000), SYN)).is_sent());
    nat.out(tcp(CLIENT, SERVER, SYN)).to_external();
    nat.advance_secs(7);
    assert_eq!(nat.only_transmitted().1.icmp_kind(), (3, 3));
}

/// REQ-4a, the default.
#[test]
fn unsolicited_syn_is_dropped_in_silence_by_default() {
    let mut nat = Nat::default();
    let external = nat.open_tcp(CLIENT, SERVER);
    for port in [external.port, 4001] {
        let dropped = nat.inbound(tcp("198.51.100.9:7000", (EXTERNAL, port), SYN));
        assert!(matches!(dropped, Outcome::Dropped(_)), "{dropped:?}");
    }
    nat.advance_secs(60);
    assert_eq!(nat.transmitted(), []);
}

/// REQ-7: no overloading as long as a port is free.
#[test]
fn tcp_ports_are_not_shared_while_others_are_free() {
    let mut nat = Nat::with(|c| c.port_range = 2000..=2099);
    let mut used = std::collections::HashSet::new();
    for host in 0..100 {
        let syn = tcp((ip(&format!("10.0.1.{host}")), 2000), SERVER, SYN);
        assert!(used.insert(nat.out(syn).to_external().source));
    }
    assert_eq!(nat.counters().ports_overloaded, 0);
}

/// REQ-8 and REQ-8a.
#[test]
fn tcp_is_hairpinned_with_the_external_source() {
    for address in [EXTERNAL, PUBLIC] {
        let mut nat = Nat::with(|c| c.filtering = FilteringBehaviour::EndpointIndependent);
        let own = nat.open_tcp(CLIENT, SERVER);
        let target = nat.open_tcp("10.0.0.3:5000", SERVER);
        let target = ep((address, target.port));
        let syn = nat.out(tcp(CLIENT, target, SYN)).to_internal();
        assert_eq!((syn.source, syn.destination), (ep((address, own.port)), ep("10.0.0.3:5000")));
        let answer = nat.out(tcp("10.0.0.3:5000", syn.source, SYN | ACK).seq(9000).ack(1001)).to_internal();
        assert_eq!((answer.source, answer.destination), (target, ep(CLIENT)));
        let last = nat.out(tcp(CLIENT, target, ACK).seq(1001).ack(9001)).to_internal();
        assert_eq!(last.destination, ep("10.0.0.3:5000"));
        let fin = nat.out(tcp("10.0.0.3:5000", syn.source, FIN | ACK).seq(9001).ack(1001)).to_internal();
        assert_eq!(fin.destination, ep(CLIENT));
        nat.assert_empties();
    }
}

/// REQ-8: to the private and the public address of a static mapping.
#[test]
fn static_mapping_is_reached_by_hairpinning() {
    for address in [EXTERNAL, PUBLIC] {
        let mut nat = Nat::with(|c| {
            c.static_mappings = vec![static_mapping(Protocol::TCP, (EXTERNAL, 443), "10.0.0.9:8443")];
        });
        let syn = nat.out(tcp(CLIENT, (address, 443), SYN)).to_internal();
        assert_eq!((syn.source, syn.destination), (ep((address, 4000)), ep("10.0.0.9:8443")));
        let answer = nat.out(tcp("10.0.0.9:8443", syn.source, SYN | ACK).ack(1001)).to_internal();
        assert_eq!((answer.source, answer.destination), (ep((address, 443)), ep(CLIENT)));
    }
}
