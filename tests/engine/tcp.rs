//! TCP beyond the RFCs' numbered requirements.

use egret::nat::{CloseReason, DropReason, Event, SessionState, Side, TcpState};

use crate::support::*;

const CLIENT: &str = "10.0.0.2:4000";
const SERVER: &str = "198.51.100.1:443";

/// A managed NAT gateway does so; clients that wait for minutes otherwise are the best-known complaint.
#[test]
fn segment_without_a_session_is_answered_with_a_reset() {
    let mut nat = Nat::default();
    assert_eq!(
        nat.out(tcp(CLIENT, SERVER, ACK).seq(77).ack(99).filled(10)),
        Outcome::Replied(DropReason::TcpNoSession)
    );
    let (side, rst) = nat.only_transmitted();
    assert_eq!((side, rst.source, rst.destination), (Side::Internal, ep(SERVER), ep(CLIENT)));
    let rst = rst.tcp.expect("TCP");
    assert_eq!((rst.flags, rst.seq), (RST, 99), "RFC 9293 section 3.10.7.1");
    // SYN with ACK: also acknowledged, so the reset has its number.
    assert_eq!(nat.out(tcp(CLIENT, SERVER, SYN | ACK).ack(5)), Outcome::Replied(DropReason::TcpNoSession));
    assert_eq!(nat.only_transmitted().1.tcp.expect("TCP").seq, 5);
    assert_eq!(nat.counters().sessions, 0);
}

#[test]
fn reset_without_a_session_is_not_answered() {
    let mut nat = Nat::default();
    for flags in [RST, RST | ACK] {
        assert_eq!(nat.out(tcp(CLIENT, SERVER, flags)), Outcome::Dropped(DropReason::TcpNoSession));
    }
    assert_eq!(nat.transmitted(), []);
}

#[test]
fn segment_from_outside_without_a_session_is_dropped_in_silence() {
    let mut nat = Nat::default();
    for flags in [SYN, ACK, SYN | ACK, FIN | ACK, RST] {
        assert!(matches!(nat.inbound(tcp(SERVER, (EXTERNAL, 4000), flags)), Outcome::Dropped(_)));
    }
    assert_eq!(nat.transmitted(), []);
}

/// What the client acknowledged before the server's SYN was of another connection, and says nothing of its window.
#[test]
fn acknowledgement_from_before_the_peers_syn_does_not_count() {
    let mut nat = Nat::default();
    assert!(nat.out(tcp(CLIENT, SERVER, SYN).seq(1000)).is_sent());
    let external = nat.session().external;
    let (stale, server) = (900_000, 5_000);
    assert!(nat.out(tcp(CLIENT, SERVER, ACK).seq(1001).ack(stale)).is_sent());
    assert!(nat.inbound(tcp(SERVER, external, SYN | ACK).seq(server).ack(1001)).is_sent());
    assert!(nat.out(tcp(CLIENT, SERVER, ACK).seq(1001).ack(server + 1)).is_sent());
    assert!(!nat.inbound(tcp(SERVER, external, RST).seq(stale)).is_sent());
    assert!(nat.inbound(tcp(SERVER, external, RST).seq(server + 1)).is_sent());
}

/// The client has crashed and comes back with the same port, while the NAT believes the old connection alive.
#[test]
fn new_connection_in_place_of_one_that_was_never_closed_works_in_full() {
    for (new_client, new_server) in
        [(0x9000_0000_u32, 0xa000_0000_u32), (0x1000, 0x7000_0000), (1, 0x2000_0000)]
    {
        let mut nat = Nat::default();
        let external = nat.open_tcp(CLIENT, SERVER);
        assert!(nat.out(tcp(CLIENT, SERVER, SYN).seq(new_client)).is_sent());
        let answer = tcp(SERVER, external, SYN | ACK).seq(new_server).ack(new_client.wrapping_add(1));
        assert!(nat.inbound(answer).is_sent());
        let (client, server) = (new_client.wrapping_add(1), new_server.wrapping_add(1));
        assert!(nat.out(tcp(CLIENT, SERVER, ACK).seq(client).ack(server)).is_sent());
        assert!(nat.inbound(tcp(SERVER, external, ACK).seq(server).ack(client).filled(100)).is_sent());
        assert!(nat.out(tcp(CLIENT, SERVER, ACK).seq(client).ack(server.wrapping_add(100))).is_sent());
        nat.advance_secs(7_000);
        assert_eq!(nat.session().state, SessionState::Tcp(TcpState::Established));
        let stale = tcp(SERVER, external, RST).seq(5001);
        assert!(!nat.inbound(stale).is_sent(), "a reset of the old connection");
        let rst = tcp(SERVER, external, RST).seq(server.wrapping_add(100));
        assert!(nat.inbound(rst).is_sent(), "the server's reset of the new connection");
        let rst = tcp(CLIENT, SERVER, RST).seq(client);
        assert!(nat.out(rst).is_sent(), "the client's reset of the new connection");
    }
}

/// RFC 5961 section 4: the server still has the old connection; its challenge is answered with a reset, and the
/// client's next SYN finds the way free.
#[test]
fn challenge_to_a_syn_leads_to_a_new_connection() {
    let mut nat = Nat::default();
    let external = nat.open_tcp(CLIENT, SERVER);
    assert!(nat.out(tcp(CLIENT, SERVER, SYN).seq(90_000)).is_sent());
    assert!(nat.inbound(tcp(SERVER, external, ACK).seq(5001).ack(1001)).is_sent(), "the challenge");
    assert!(nat.out(tcp(CLIENT, SERVER, RST).seq(1001)).is_sent(), "its answer");
    assert!(nat.out(tcp(CLIENT, SERVER, SYN).seq(90_000)).is_sent());
    assert!(nat.inbound(tcp(SERVER, external, SYN | ACK).seq(70_000).ack(90_001)).is_sent());
    assert!(nat.out(tcp(CLIENT, SERVER, ACK).seq(90_001).ack(70_001)).is_sent());
    nat.advance_secs(7_000);
    assert_eq!(nat.session().state, SessionState::Tcp(TcpState::Established));
}

/// An attacker who spoofs a SYN does not disturb an established connection.
#[test]
fn spoofed_syn_does_not_end_an_established_connection() {
    let mut nat = Nat::default();
    let external = nat.open_tcp(CLIENT, SERVER);
    for seq in [0, 5001, 0x8000_0000, u32::MAX] {
        let _ = nat.inbound(tcp(SERVER, external, SYN).seq(seq));
        let _ = nat.inbound(tcp(SERVER, external, SYN | ACK).seq(seq).ack(77));
    }
    assert_eq!(nat.session().state, SessionState::Tcp(TcpState::Established));
    assert!(nat.inbound(tcp(SERVER, external, RST).seq(5001)).is_sent(), "what the window was it still is");
    assert_eq!(nat.counters().sessions_opened, 1);
}

/// RFC 5961 section 5: acknowledgements of what was never sent move no window.
#[test]
fn spoofed_acknowledgement_does_not_move_the_window() {
    let mut nat = Nat::default();
    let external = nat.open_tcp(CLIENT, SERVER);
    for ahead in [1_000_000, 0x7000_0000] {
        let _ = nat.inbound(tcp(SERVER, external, ACK).seq(5001).ack(1001 + ahead));
    }
    assert!(nat.out(tcp(CLIENT, SERVER, RST).seq(1001)).is_sent(), "the client's own reset");
}

/// Segments in fragments: the NAT sees the length of the first fragment only.
#[test]
fn reset_after_fragmented_segments_passes() {
    let mut nat = Nat::default();
    let external = nat.open_tcp(CLIENT, SERVER);
    let data = tcp(SERVER, external, ACK).seq(5001).ack(1001).filled(1448).bytes();
    for part in fragment(&data, 800) {
        assert!(nat.inbound(part).is_sent());
    }
    assert!(nat.out(tcp(CLIENT, SERVER, ACK).seq(1001).ack(6449).window(100)).is_sent());
    assert!(nat.inbound(tcp(SERVER, external, RST).seq(6449)).is_sent());
}

#[test]
fn zero_window_admits_a_reset_only_at_its_edge() {
    let mut nat = Nat::default();
    let external = nat.open_tcp(CLIENT, SERVER);
    assert!(nat.out(tcp(CLIENT, SERVER, ACK).seq(1001).ack(5001).window(0)).is_sent());
    assert!(!nat.inbound(tcp(SERVER, external, RST).seq(5002)).is_sent());
    assert!(nat.inbound(tcp(SERVER, external, RST).seq(5001)).is_sent());
}

/// The remote begins anew on a connection that both have closed.
#[test]
fn syn_from_outside_reopens_a_closed_session() {
    let mut nat = Nat::with(|c| c.filtering = egret::nat::FilteringBehaviour::EndpointIndependent);
    let external = nat.open_tcp(CLIENT, SERVER);
    nat.out(tcp(CLIENT, SERVER, FIN | ACK).seq(1001).ack(5001)).to_external();
    nat.inbound(tcp(SERVER, external, FIN | ACK).seq(5001).ack(1002)).to_internal();
    nat.events();
    assert!(nat.inbound(tcp(SERVER, external, SYN).seq(40_000)).is_sent());
    let events = nat.events();
    assert!(matches!(events[0], Event::Closed(_, CloseReason::Reopened)));
    assert!(matches!(events[1], Event::Opened(record) if record.opened_by == Side::External));
    nat.assert_empties();
}

/// RFC 7413: data in a SYN.
#[test]
fn fast_open_works() {
    let mut nat = Nat::default();
    let sent = nat.out(tcp(CLIENT, SERVER, SYN).filled(200)).to_external();
    assert_eq!(sent.payload.len(), 200);
    let answer = tcp(SERVER, sent.source, SYN | ACK).seq(5000).ack(1201).filled(100);
    assert!(nat.inbound(answer).is_sent());
    assert!(nat.out(tcp(CLIENT, SERVER, ACK).seq(1201).ack(5101)).is_sent());
    assert_eq!(nat.session().state, SessionState::Tcp(TcpState::Established));
}
