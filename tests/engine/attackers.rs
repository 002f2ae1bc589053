//! Attackers inside and outside: bounded memory, counters that say so, and others who keep working.

use std::net::Ipv4Addr;

use egret::nat::{DropReason, FilteringBehaviour, OnExhaustion, Side};
use egret::wire::Protocol;

use crate::support::*;

const SERVER: &str = "198.51.100.1:53";
const VICTIM: &str = "10.0.0.2:4000";

/// One client opens whatever it can; another one goes on as before.
#[test]
fn client_that_opens_everything_leaves_room_for_others() {
    let mut nat = Nat::with(|c| {
        c.limits.sessions = 50_000;
        c.limits.sessions_per_address = 10_000;
    });
    let external = nat.open_udp(VICTIM, SERVER);
    let mut random = Random(7);
    for round in 0..100_000_u32 {
        let target = Ipv4Addr::from(0xcb00_7100 + (random.next() as u32 & 0xff));
        let (source, port) = (1024 + (random.next() as u16 & 0x7fff), random.next() as u16 | 1);
        let packet = match round % 3 {
            0 => udp((ip("10.0.0.66"), source), (target, port)).bytes(),
            1 => tcp((ip("10.0.0.66"), source), (target, port), SYN).bytes(),
            _ => ping("10.0.0.66", target, source).bytes(),
        };
        let _ = nat.out(packet);
        if round % 1_000 == 0 {
            nat.transmitted();
            assert!(nat.inbound(udp(SERVER, external)).is_sent());
            let fresh = udp((ip("10.0.0.3"), 1024 + (round / 1_000) as u16), SERVER);
            assert!(nat.out(fresh).is_sent(), "a new session of another client, round {round}");
        }
    }
    assert!(nat.counters().sessions <= 10_000 + 101);
    assert!(nat.dropped(DropReason::AddressSessionLimit) > 50_000);
    nat.assert_empties();
}

#[test]
fn rate_limit_slows_one_client_only() {
    let mut nat = Nat::with(|c| c.limits.new_sessions_per_second = 100);
    let mut opened = 0;
    for port in 0..10_000_u16 {
        opened += u32::from(nat.out(udp((ip("10.0.0.66"), 1024 + port), SERVER)).is_sent());
    }
    assert_eq!(opened, 100, "the burst");
    assert_eq!(nat.dropped(DropReason::AddressRateLimit), 9_900);
    assert!(nat.out(udp(VICTIM, SERVER)).is_sent());
    nat.advance_secs(1);
    opened = 0;
    for port in 0..10_000_u16 {
        opened += u32::from(nat.out(udp((ip("10.0.0.66"), 20_000 + port), SERVER)).is_sent());
    }
    assert!((99..=101).contains(&opened), "{opened} in the next second");
    assert!(nat.out(udp("10.0.0.66:1024", SERVER)).is_sent(), "what is open is not concerned");
}

/// A sweep over all ports of one server and over many servers, from one source port.
#[test]
fn sequential_sweep_uses_one_mapping() {
    let mut nat = Nat::default();
    let external = nat.open_udp(VICTIM, SERVER);
    for port in 1..=60_000_u16 {
        assert_eq!(nat.open_udp(VICTIM, (ip("198.51.100.7"), port)), external);
    }
    for host in 0..20_000_u32 {
        assert_eq!(nat.open_udp(VICTIM, (Ipv4Addr::from(0xc612_0000 + host), 53)), external);
    }
    assert_eq!((nat.counters().mappings, nat.counters().sessions), (1, 80_001));
    nat.assert_empties();
}

/// A sweep with a new source port each time: every port of the range serves, then they are shared.
#[test]
fn sweep_of_source_ports_fills_the_range_and_then_shares() {
    let mut nat = Nat::default();
    let mut used = std::collections::HashSet::new();
    for host in 0..2_u32 {
        for port in 1024..=60_999_u16 {
            let remote = (Ipv4Addr::from(0xc633_6400 + host), 53);
            used.insert(nat.open_udp((Ipv4Addr::from(0x0a00_0100 + host), port), remote));
        }
    }
    assert_eq!(used.len(), 59_976);
    assert_eq!(nat.counters().ports_overloaded, 59_976);
    nat.assert_empties();
}

#[test]
fn exhausted_ports_come_back_when_mappings_end() {
    for on_exhaustion in [OnExhaustion::Overload, OnExhaustion::Refuse] {
        let mut nat = Nat::with(|c| {
            c.port_range = 2000..=2099;
            c.on_exhaustion = on_exhaustion;
        });
        for round in 0..20 {
            for host in 0..100_u32 {
                let client = (Ipv4Addr::from(0x0a01_0000 + round * 256 + host), 9999);
                assert!(nat.out(udp(client, SERVER)).is_sent(), "round {round}, host {host}");
            }
            assert_eq!(nat.out(udp("10.9.9.9:1", SERVER)).reason(), DropReason::PortsExhausted);
            nat.advance_secs(121);
            nat.transmitted();
            assert_eq!(nat.counters().mappings, 0);
        }
        assert_eq!(nat.counters().ports_overloaded, 0);
    }
}

/// An overloaded port is free again only after the last mapping that uses it has gone.
#[test]
fn shared_port_outlives_its_first_mapping() {
    let mut nat = Nat::with(|c| c.port_range = 2000..=2000);
    let first = nat.open_udp("10.0.0.2:1", SERVER);
    nat.advance_secs(60);
    let second = nat.open_udp("10.0.0.3:1", "198.51.100.2:53");
    assert_eq!(first, second);
    nat.advance_secs(70);
    assert_eq!(nat.counters().sessions, 1);
    assert_eq!(nat.inbound(udp("198.51.100.2:53", second)).to_internal().destination, ep("10.0.0.3:1"));
    // Somebody else gets the port, shared again, and nobody is mixed up.
    let third = nat.open_udp("10.0.0.4:1", SERVER);
    assert_eq!(nat.inbound(udp(SERVER, third)).to_internal().destination, ep("10.0.0.4:1"));
    assert_eq!(nat.inbound(udp("198.51.100.2:53", second)).to_internal().destination, ep("10.0.0.3:1"));
    nat.assert_empties();
    assert_eq!(nat.open_udp("10.0.0.5:1", SERVER).port, 2000);
}

/// Two clients that share a port cannot reach the same remote, whoever comes first.
#[test]
fn sharers_of_a_port_never_meet_at_one_remote() {
    let mut nat = Nat::with(|c| c.port_range = 2000..=2000);
    nat.open_udp("10.0.0.2:1", SERVER);
    nat.open_udp("10.0.0.3:1", "198.51.100.2:53");
    assert_eq!(nat.out(udp("10.0.0.3:1", SERVER)).reason(), DropReason::PortsExhausted);
    assert_eq!(nat.out(udp("10.0.0.2:1", "198.51.100.2:53")).reason(), DropReason::PortsExhausted);
    assert_eq!(nat.inbound(udp(SERVER, (EXTERNAL, 2000))).to_internal().destination, ep("10.0.0.2:1"));
}

/// An attacker outside guesses ports and remotes: nothing is kept of it.
#[test]
fn guesses_from_outside_leave_no_trace() {
    let mut nat = Nat::with(|c| c.answer_unsolicited_syn = true);
    let external = nat.open_tcp(VICTIM, SERVER);
    let mut random = Random(3);
    for _ in 0..200_000 {
        let from = (Ipv4Addr::from(0xc633_6400 + (random.next() as u32 & 0xff)), random.next() as u16 | 1);
        let to = (EXTERNAL, random.next() as u16);
        let flags = [SYN, ACK, SYN | ACK, RST, FIN | ACK, RST | ACK][random.below(6) as usize];
        if from == (ip("198.51.100.1"), 53) {
            continue;
        }
        let packet = match random.below(4) {
            0 => udp(from, to).bytes(),
            1 => ping(from, EXTERNAL, to.1).bytes(),
            _ => tcp(from, to, flags).seq(random.next() as u32).bytes(),
        };
        assert!(!nat.inbound(packet).is_sent());
    }
    assert_eq!((nat.counters().sessions, nat.counters().mappings), (1, 1));
    nat.transmitted();
    nat.advance_secs(10);
    assert!(nat.transmitted().len() <= 300, "answers are limited");
    assert!(nat.counters().replies_limited > 0 || nat.dropped(DropReason::NoSession) > 0);
    assert!(nat.inbound(tcp(SERVER, external, ACK).seq(5001).ack(1001)).is_sent());
}

/// Blind resets: of a sweep over the sequence space only those in the window pass.
#[test]
fn blind_resets_do_not_end_a_connection() {
    let mut nat = Nat::default();
    let external = nat.open_tcp(VICTIM, SERVER);
    for step in 0..100_000_u32 {
        let seq = 5001_u32.wrapping_add(8_193 + step.wrapping_mul(40_009) % (u32::MAX - 20_000));
        assert!(!nat.inbound(tcp(SERVER, external, RST).seq(seq)).is_sent(), "{seq}");
    }
    assert_eq!(nat.dropped(DropReason::RstOutOfWindow), 100_000);
    nat.advance_secs(7_000);
    assert_eq!(nat.counters().sessions, 1);
}

/// A client with a mapping that anybody may send to cannot be drained of its sessions from outside.
#[test]
fn strangers_take_at_most_half_of_a_clients_sessions() {
    let mut nat = Nat::with(|c| {
        c.filtering = FilteringBehaviour::EndpointIndependent;
        c.limits.sessions_per_address = 100;
    });
    let external = nat.open_udp(VICTIM, SERVER);
    let mut let_in = 0;
    for host in 0..1_000_u32 {
        let stranger = (Ipv4Addr::from(0xcb00_0000 + host), 9);
        let_in += u32::from(nat.inbound(udp(stranger, external)).is_sent());
    }
    assert!((49..=50).contains(&let_in), "{let_in}");
    for port in 0..49 {
        assert!(nat.out(udp(VICTIM, (ip("198.51.100.2"), 1000 + port))).is_sent(), "{port}");
    }
}

/// The same for a static mapping, whose target is a server: its clients share the limit of its address.
#[test]
fn flood_of_a_static_mapping_is_limited() {
    let mut nat = Nat::with(|c| {
        c.limits.sessions_per_address = 1_000;
        c.static_mappings = vec![static_mapping(Protocol::TCP, (EXTERNAL, 443), "10.0.0.9:443")];
    });
    let mut random = Random(5);
    for _ in 0..20_000 {
        let stranger =
            (Ipv4Addr::from(0xcb00_0000 + (random.next() as u32 & 0xffff)), random.next() as u16 | 1);
        let _ = nat.inbound(tcp(stranger, (EXTERNAL, 443), SYN));
    }
    assert!(nat.counters().sessions <= 1_000);
    assert!(nat.dropped(DropReason::AddressSessionLimit) > 0);
    assert!(nat.out(udp(VICTIM, SERVER)).is_sent());
    nat.assert_empties();
}

/// All internal addresses of a /16 at once: the table of hosts does not outlive their sessions.
#[test]
fn sweep_of_spoofed_internal_sources_is_forgotten() {
    let mut nat = Nat::with(|c| c.limits.sessions = 20_000);
    for host in 0..65_536_u32 {
        let _ = nat.out(udp((Ipv4Addr::from(0x0a05_0000 + host), 4000), SERVER));
    }
    assert_eq!(nat.counters().sessions, 20_000);
    assert_eq!(nat.counters().internal_addresses, 20_000);
    nat.transmitted();
    nat.assert_empties();
}

/// Refusals and resets are no amplifier: one short answer for each packet at most, and few in all.
#[test]
fn answers_are_not_larger_than_their_cause_needs() {
    let mut nat = Nat::default();
    for port in 1..2_000 {
        let stray = tcp((ip("10.0.0.2"), port), SERVER, ACK).seq(77).ack(99);
        let _ = nat.out(stray);
    }
    let answers = nat.transmitted();
    assert!(answers.len() <= 1_999);
    assert!(answers.iter().all(|(side, answer)| *side == Side::Internal && answer.bytes.len() <= 40));
}
