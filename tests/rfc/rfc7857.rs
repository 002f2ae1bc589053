//! RFC 7857, updates to the behavioral requirements.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use egret::nat::{CloseReason, DropReason, Event, FilteringBehaviour, OnExhaustion, SessionState, TcpState};

use crate::support::*;

const CLIENT: &str = "10.0.0.2:4000";
const SERVER: &str = "198.51.100.1:443";

fn state(nat: &Nat) -> TcpState {
    match nat.session().state {
        SessionState::Tcp(state) => state,
        other => panic!("{other:?}"),
    }
}

/// Section 2: the state machine, step by step.
#[test]
fn session_walks_through_the_states_of_its_connection() {
    let mut nat = Nat::default();
    let external = nat.out(tcp(CLIENT, SERVER, SYN)).to_external().source;
    assert_eq!(state(&nat), TcpState::SynSent);
    nat.inbound(tcp(SERVER, external, SYN | ACK).seq(5000).ack(1001)).to_internal();
    nat.out(tcp(CLIENT, SERVER, ACK).seq(1001).ack(5001)).to_external();
    assert_eq!(state(&nat), TcpState::Established);
    nat.out(tcp(CLIENT, SERVER, FIN | ACK).seq(1001).ack(5001)).to_external();
    assert_eq!(state(&nat), TcpState::FinOut);
    nat.inbound(tcp(SERVER, external, FIN | ACK).seq(5001).ack(1002)).to_internal();
    assert_eq!(state(&nat), TcpState::Closing);
    nat.out(tcp(CLIENT, SERVER, ACK).seq(1002).ack(5002)).to_external();
    assert_eq!(state(&nat), TcpState::Closing);
    nat.advance_secs(241);
    assert!(matches!(nat.events().last(), Some(Event::Closed(_, CloseReason::Finished))));
}

/// Section 2: the FIN of the other side first.
#[test]
fn fin_from_outside_first_is_the_mirror_image() {
    let mut nat = Nat::default();
    let external = nat.open_tcp(CLIENT, SERVER);
    nat.inbound(tcp(SERVER, external, FIN | ACK).seq(5001).ack(1001)).to_internal();
    assert_eq!(state(&nat), TcpState::FinIn);
    nat.out(tcp(CLIENT, SERVER, FIN | ACK).seq(1001).ack(5002)).to_external();
    assert_eq!(state(&nat), TcpState::Closing);
}

/// Section 2: a new connection on the endpoints of one that has ended.
#[test]
fn syn_reopens_a_session_that_is_closing_or_reset() {
    type End<'a> = &'a dyn Fn(&mut Nat, egret::wire::Endpoint);
    let fin = |nat: &mut Nat, external| {
        nat.out(tcp(CLIENT, SERVER, FIN | ACK).seq(1001).ack(5001)).to_external();
        nat.inbound(tcp(SERVER, external, FIN | ACK).seq(5001).ack(1002)).to_internal();
    };
    let reset = |nat: &mut Nat, external| {
        nat.inbound(tcp(SERVER, external, RST).seq(5001)).to_internal();
    };
    for end in [&fin as End<'_>, &reset] {
        let mut nat = Nat::default();
        let external = nat.open_tcp(CLIENT, SERVER);
        end(&mut nat, external);
        nat.events();
        assert_eq!(nat.out(tcp(CLIENT, SERVER, SYN).seq(90_000)).to_external().source, external);
        assert_eq!(state(&nat), TcpState::SynSent);
        let events = nat.events();
        assert!(matches!(events[0], Event::Closed(_, CloseReason::Reopened)), "{events:?}");
        assert!(matches!(events[1], Event::Opened(_)), "{events:?}");
        nat.inbound(tcp(SERVER, external, SYN | ACK).seq(70_000).ack(90_001)).to_internal();
        nat.out(tcp(CLIENT, SERVER, ACK).seq(90_001).ack(70_001)).to_external();
        nat.advance_secs(7_000);
        assert_eq!(state(&nat), TcpState::Established);
    }
}

/// Section 2.1.
#[test]
fn transitory_timeout_may_be_configured_below_four_minutes() {
    let mut nat = Nat::with(|c| c.timeouts.tcp_transitory = Duration::from_secs(30));
    nat.out(tcp(CLIENT, SERVER, SYN)).to_external();
    nat.advance_secs(29);
    assert_eq!(nat.counters().sessions, 1);
    nat.advance_secs(2);
    assert_eq!(nat.counters().sessions, 0);
    assert_eq!(config().timeouts.tcp_transitory, Duration::from_secs(240), "the default");
}

/// Section 2.2.
#[test]
fn reset_connection_is_kept_for_four_minutes() {
    for from_inside in [true, false] {
        let mut nat = Nat::default();
        let external = nat.open_tcp(CLIENT, SERVER);
        if from_inside {
            let rst = nat.out(tcp(CLIENT, SERVER, RST).seq(1001)).to_external();
            assert_eq!((rst.source, rst.flags()), (external, RST));
        } else {
            let rst = nat.inbound(tcp(SERVER, external, RST).seq(5001)).to_internal();
            assert_eq!((rst.destination, rst.flags()), (ep(CLIENT), RST));
        }
        assert_eq!(state(&nat), TcpState::Reset);
        nat.advance(Duration::from_millis(239_999));
        assert_eq!(nat.counters().sessions, 1);
        nat.advance(Duration::from_millis(201));
        assert_eq!(nat.counters().sessions, 0);
        assert!(matches!(nat.events().last(), Some(Event::Closed(_, CloseReason::Reset))));
    }
}

/// Section 2.2 and RFC 6146 section 3.5.2.2: a reset that the other end did not believe.
#[test]
fn packet_after_a_reset_revives_the_connection() {
    let mut nat = Nat::default();
    let external = nat.open_tcp(CLIENT, SERVER);
    nat.inbound(tcp(SERVER, external, RST).seq(5001)).to_internal();
    nat.advance_secs(200);
    nat.out(tcp(CLIENT, SERVER, ACK).seq(1001).ack(5001)).to_external();
    assert_eq!(state(&nat), TcpState::Established);
    nat.advance_secs(7_000);
    assert_eq!(state(&nat), TcpState::Established);
}

/// Section 2.2: a second reset does not revive anything.
#[test]
fn reset_after_a_reset_changes_nothing() {
    let mut nat = Nat::default();
    let external = nat.open_tcp(CLIENT, SERVER);
    nat.inbound(tcp(SERVER, external, RST).seq(5001)).to_internal();
    nat.advance_secs(100);
    nat.inbound(tcp(SERVER, external, RST).seq(5001)).to_internal();
    assert_eq!(state(&nat), TcpState::Reset);
    nat.advance_secs(241);
    assert_eq!(nat.counters().sessions, 0);
}

/// Section 2.2: the deviation. Blind resets (RFC 5961 section 3) do not get through.
#[test]
fn reset_outside_of_the_window_is_dropped() {
    let mut nat = Nat::default();
    let external = nat.open_tcp(CLIENT, SERVER);
    // The client's last acknowledgement is 5001 and its window 8192.
    for seq in [0, 5000, 5001 + 8193, 5001 + 8192 * 4, 5001_u32.wrapping_sub(70_000), 0x8000_0000] {
        let rst = tcp(SERVER, external, RST).seq(seq);
        assert_eq!(nat.inbound(rst), Outcome::Dropped(DropReason::RstOutOfWindow), "{seq}");
    }
    assert_eq!(nat.out(tcp(CLIENT, SERVER, RST).seq(99_999)), Outcome::Dropped(DropReason::RstOutOfWindow));
    assert_eq!(state(&nat), TcpState::Established);
    for seq in [5001, 5001 + 8191] {
        assert!(nat.inbound(tcp(SERVER, external, RST).seq(seq)).is_sent(), "{seq}");
    }
}

/// Section 2.2: the window is scaled as the SYNs have agreed, and moves with the acknowledgements.
#[test]
fn window_for_resets_follows_scale_and_acknowledgements() {
    let scale = |shift| [3, 3, shift, 1];
    // The client takes 100 << 4 bytes from its acknowledgement on, which is just before the wrap.
    for (seq, passes) in
        [(u32::MAX - 11, false), (u32::MAX - 10, true), (5, true), (1_588, true), (1_700, false)]
    {
        let mut nat = Nat::default();
        let external = nat.out(tcp(CLIENT, SERVER, SYN).tcp_options(&scale(4))).to_external().source;
        let answer = tcp(SERVER, external, SYN | ACK).seq(u32::MAX - 100).ack(1001).tcp_options(&scale(7));
        nat.inbound(answer).to_internal();
        nat.out(tcp(CLIENT, SERVER, ACK).seq(1001).ack(u32::MAX - 99)).to_external();
        nat.inbound(tcp(SERVER, external, ACK).seq(u32::MAX - 99).ack(1001).filled(89)).to_internal();
        nat.out(tcp(CLIENT, SERVER, ACK).seq(1001).ack(u32::MAX - 10).window(100)).to_external();
        assert_eq!(nat.inbound(tcp(SERVER, external, RST).seq(seq)).is_sent(), passes, "{seq}");
    }
}

/// Section 2.2: without scaling by both sides there is none.
#[test]
fn window_is_not_scaled_unless_both_sides_agree() {
    let mut nat = Nat::default();
    let external = nat.out(tcp(CLIENT, SERVER, SYN).tcp_options(&[3, 3, 10, 1])).to_external().source;
    nat.inbound(tcp(SERVER, external, SYN | ACK).seq(5000).ack(1001)).to_internal();
    nat.out(tcp(CLIENT, SERVER, ACK).seq(1001).ack(5001)).to_external();
    assert!(!nat.inbound(tcp(SERVER, external, RST).seq(5001 + 8193)).is_sent());
}

/// Section 2.2: a connection that is refused (RFC 9293 section 3.10.7.3).
#[test]
fn refusal_passes_only_if_it_acknowledges_the_syn() {
    let mut nat = Nat::default();
    let external = nat.out(tcp(CLIENT, SERVER, SYN).seq(1000)).to_external().source;
    for blind in [
        tcp(SERVER, external, RST).seq(0),
        tcp(SERVER, external, RST | ACK).seq(0).ack(1000),
        tcp(SERVER, external, RST | ACK).seq(0).ack(1002),
    ] {
        assert_eq!(nat.inbound(blind), Outcome::Dropped(DropReason::RstOutOfWindow));
    }
    assert!(nat.inbound(tcp(SERVER, external, RST | ACK).seq(0).ack(1001)).is_sent());
    assert_eq!(state(&nat), TcpState::Reset);
}

/// Section 2.2: a server that changes its mind before the client's ACK has passed here.
#[test]
fn reset_right_after_the_answer_to_the_syn_passes() {
    let mut nat = Nat::default();
    let external = nat.out(tcp(CLIENT, SERVER, SYN).seq(1000)).to_external().source;
    assert!(nat.inbound(tcp(SERVER, external, SYN | ACK).seq(5000).ack(1001)).is_sent());
    let blind = nat.inbound(tcp(SERVER, external, RST).seq(6000));
    assert_eq!(blind, Outcome::Dropped(DropReason::RstOutOfWindow));
    assert!(nat.inbound(tcp(SERVER, external, RST).seq(5001)).is_sent());
    assert_eq!(state(&nat), TcpState::Reset);
}

/// Section 4: no port of another address takes the place of those that the paired one lacks, of TCP neither.
#[test]
fn paired_address_without_ports_is_not_left_for_another() {
    let mut nat = Nat::with(|c| {
        c.external_addresses = pool(2);
        c.port_range = 2000..=2003;
        c.on_exhaustion = OnExhaustion::Refuse;
    });
    for port in 2000..2004 {
        nat.open_udp((ip("10.0.0.2"), port), SERVER);
        nat.out(tcp((ip("10.0.0.2"), port), SERVER, SYN)).to_external();
    }
    let refused = Outcome::Replied(DropReason::PortsExhausted);
    assert_eq!(nat.out(udp("10.0.0.2:2004", SERVER)), refused);
    assert_eq!(nat.out(tcp("10.0.0.2:2004", SERVER, SYN)), refused);
    assert!(nat.out(udp("10.0.0.3:2004", SERVER)).is_sent(), "the other address has some");
}

/// Section 5.
#[test]
fn mappings_of_tcp_and_udp_are_separate() {
    let mut nat = Nat::default();
    let by_udp = nat.open_udp(CLIENT, SERVER);
    let by_tcp = nat.open_tcp(CLIENT, SERVER);
    assert_eq!(by_udp, by_tcp, "both keep the port, each in a number space of its own");
    assert_eq!(nat.counters().mappings, 2);
    nat.advance_secs(301);
    assert_eq!(nat.counters().mappings, 1);
    assert_eq!(nat.inbound(udp(SERVER, by_udp)).reason(), DropReason::NoSession);
    assert!(nat.inbound(tcp(SERVER, by_tcp, ACK).seq(5001).ack(1001)).is_sent());
}

/// Section 6.
#[test]
fn filters_of_tcp_and_udp_are_separate() {
    let mut nat = Nat::with(|c| c.filtering = FilteringBehaviour::EndpointIndependent);
    let external = nat.open_udp(CLIENT, SERVER);
    assert!(nat.inbound(udp("198.51.100.9:9", external)).is_sent());
    assert_eq!(nat.inbound(tcp("198.51.100.9:9", external, SYN)).reason(), DropReason::NoSession);
}

/// Section 7: with endpoint-independent filtering, strangers keep alive only their own sessions.
#[test]
fn inbound_packet_of_another_remote_does_not_refresh_a_session() {
    let mut nat = Nat::with(|c| c.filtering = FilteringBehaviour::EndpointIndependent);
    let external = nat.open_udp(CLIENT, SERVER);
    for _ in 0..13 {
        nat.advance_secs(10);
        nat.inbound(udp("198.51.100.9:9", external)).to_internal();
    }
    assert!(nat.sessions().iter().all(|session| session.remote == ep("198.51.100.9:9")));
}

/// Section 7: what the filter would let in, but a limit keeps from opening a session, keeps nothing alive.
#[test]
fn packet_that_opens_no_session_does_not_refresh_the_mapping() {
    let mut nat = Nat::with(|c| {
        c.filtering = FilteringBehaviour::EndpointIndependent;
        c.limits.sessions_per_address = 1;
    });
    let by_udp = nat.open_udp("10.0.0.2:4000", SERVER);
    let by_tcp = nat.out(tcp("10.0.0.3:4001", SERVER, SYN)).to_external().source;
    let (datagram, syn) = (udp("198.51.100.9:9", by_udp).bytes(), tcp("198.51.100.9:9", by_tcp, SYN).bytes());
    for _ in 0..12 {
        assert_eq!(nat.inbound(&datagram).reason(), DropReason::AddressSessionLimit);
        assert_eq!(nat.inbound(&syn).reason(), DropReason::AddressSessionLimit);
        nat.advance_secs(10);
    }
    nat.advance_secs(1);
    assert_eq!(nat.counters().mappings, 1, "that of TCP");
    for _ in 0..11 {
        assert_eq!(nat.inbound(&syn).reason(), DropReason::AddressSessionLimit);
        nat.advance_secs(10);
    }
    nat.advance_secs(10);
    assert_eq!(nat.counters().mappings, 0);
}

/// Section 7.1.
#[test]
fn error_or_reset_sent_out_does_not_refresh_the_mapping() {
    let mut nat = Nat::default();
    let external = nat.open_udp(CLIENT, SERVER);
    let unwanted = nat.inbound(udp(SERVER, external)).to_internal();
    for _ in 0..29 {
        nat.advance_secs(10);
        nat.out(icmp_error("10.0.0.2", "198.51.100.1", (3, 3), &unwanted.bytes)).to_external();
    }
    nat.advance(Duration::from_millis(10_200));
    assert_eq!(nat.counters().sessions, 0);

    nat.open_tcp(CLIENT, SERVER);
    nat.out(tcp(CLIENT, SERVER, RST).seq(1001)).to_external();
    for _ in 0..23 {
        nat.advance_secs(10);
        nat.out(tcp(CLIENT, SERVER, RST).seq(1001)).to_external();
    }
    nat.advance(Duration::from_millis(10_200));
    assert_eq!(nat.counters().sessions, 0);
}

/// Section 9.
#[test]
fn ports_that_cannot_be_preserved_are_random() {
    let ports = |seed| -> Vec<u16> {
        let mut nat = Nat::seeded(config(), seed);
        nat.open_udp("10.9.9.9:4000", SERVER);
        (1..200_u32).map(|host| nat.open_udp((Ipv4Addr::from(0x0a01_0000 + host), 4000), SERVER).port).collect()
    };
    let (first, second) = (ports(1), ports(2));
    assert_ne!(first, second, "another seed, other ports");
    assert_eq!(first, ports(1), "the same seed, the same ports");
    let steps: HashSet<u16> = first.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    assert!(steps.len() > 150, "no sequence: {} different steps", steps.len());
    let spread = first.iter().map(|port| port / 8192).collect::<HashSet<_>>();
    assert!(spread.len() >= 7, "all over the range");
}

/// Section 10 and RFC 6864 section 5.3.1: what is cut here must not be mixed up where it is put together; what
/// stays whole keeps its own (`docs/decisions/0004-identification-of-fragments-only.md`).
#[test]
fn identifications_of_datagrams_that_are_cut_here_do_not_collide() {
    let mut nat = Nat::default();
    let hosts = 2..250;
    let mut seen = HashSet::new();
    for host in hosts.clone() {
        let from = (ip(&format!("10.0.0.{host}")), 4000);
        assert_eq!(nat.out(udp(from, SERVER).filled(2000).id(0x4242)), Outcome::Queued);
        let identifications: HashSet<u16> = nat.transmitted().iter().map(|(_, piece)| piece.id).collect();
        assert_eq!(identifications.len(), 1, "one datagram");
        seen.extend(identifications);
    }
    assert_eq!(seen.len(), hosts.len());
    let whole = nat.out(udp(CLIENT, SERVER).id(0x4242)).to_external();
    assert_eq!(whole.id, 0x4242);
}

/// Section 10: the same between two hosts that talk by hairpinning.
#[test]
fn identifications_of_hairpinned_fragments_do_not_collide() {
    let mut nat = Nat::with(|c| c.filtering = FilteringBehaviour::EndpointIndependent);
    let target = nat.open_udp("10.0.0.9:5000", SERVER);
    let mut seen: HashMap<u16, Vec<Vec<u8>>> = HashMap::new();
    for client in ["10.0.0.2:4000", "10.0.0.3:4001"] {
        for part in fragment(&udp(client, target).filled(2400).id(0x4242).bytes(), 1200) {
            let sent = nat.out(part).to_internal();
            seen.entry(sent.id).or_default().push(sent.bytes);
        }
    }
    assert_eq!(seen.len(), 2);
}

/// Section 10 and RFC 6864 section 5.3.1: fragments of two hosts with the same identification to the same remote.
#[test]
fn identifications_of_outbound_fragments_do_not_collide() {
    let mut nat = Nat::default();
    let mut seen: HashMap<u16, Vec<Vec<u8>>> = HashMap::new();
    let hosts = ["10.0.0.2:4000", "10.0.0.3:4001", "10.0.0.4:4002"];
    let parts: Vec<_> =
        hosts.iter().map(|host| fragment(&udp(*host, SERVER).filled(2400).id(0x4242).bytes(), 1200)).collect();
    for index in 0..parts[0].len() {
        for parts in &parts {
            let sent = nat.out(&parts[index]).to_external();
            seen.entry(sent.id).or_default().push(sent.bytes);
        }
    }
    assert_eq!(seen.len(), hosts.len());
    for fragments in seen.values() {
        reassemble(fragments);
    }
}

/// Section 11.
#[test]
fn query_mapping_goes_with_its_last_session() {
    let mut nat = Nat::default();
    nat.open_ping("10.0.0.2", "198.51.100.1", 7);
    nat.advance_secs(30);
    nat.open_ping("10.0.0.2", "198.51.100.2", 7);
    nat.advance_secs(31);
    assert_eq!((nat.counters().sessions, nat.counters().mappings), (1, 1));
    nat.advance_secs(30);
    assert_eq!((nat.counters().sessions, nat.counters().mappings), (0, 0));
}
