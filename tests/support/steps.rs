//! Steps of a random walk, for the property tests and the fuzzer: packets whose addresses and ports come from
//! small sets, so that they meet; noise; time; changes of the configuration.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use egret::nat::{Config, FilteringBehaviour, MappingBehaviour, OnExhaustion, Side};
use egret::wire::Protocol;

use super::*;

/// One step.
#[derive(Clone, Debug)]
pub enum Step {
    Packet { side: Side, from: u8, to: u8, kind: u8, port: u8, mutate: Option<(u16, u8)>, cut: bool },
    Noise { side: Side, bytes: Vec<u8> },
    Wait { millis: u32 },
    Reconfigure(u8),
}

pub fn configuration(choice: u8) -> Config {
    let mut config = config();
    config.external_addresses = pool(1 + choice % 3);
    if choice & 1 != 0 {
        config.external_addresses[0].public = Some(PUBLIC);
    }
    if choice & 2 != 0 {
        config.filtering = FilteringBehaviour::EndpointIndependent;
    }
    if choice & 4 != 0 {
        config.mapping = MappingBehaviour::AddressAndPortDependent;
    }
    if choice & 8 != 0 {
        config.on_exhaustion = OnExhaustion::Refuse;
    }
    if choice & 16 != 0 {
        // Few ports: overloading and exhaustion.
        config.port_range = 4000..=4003;
    }
    if choice & 32 != 0 {
        config.limits.sessions = 8;
        config.limits.sessions_per_address = 4;
        config.limits.new_sessions_per_second = 3;
        config.limits.fragment_bytes = 4_000;
    }
    if choice & 64 != 0 {
        config.answer_unsolicited_syn = true;
        config.external_mtu = 576;
        config.mss_clamp = Some(500);
    }
    if choice & 128 != 0 {
        config.offload_after = Some(2);
    }
    config.static_mappings = vec![
        static_mapping(Protocol::TCP, "192.0.2.1:4001", "10.0.0.2:4001"),
        static_mapping(Protocol::UDP, "192.0.2.1:4002", "10.0.0.3:99"),
    ];
    if choice & 3 == 3 {
        config.services = vec![service("192.0.2.1:4000", choice & 4 == 0)];
        let last = config.external_addresses[usize::from(choice % 3)].private;
        config.services.push(service((last, 4003), choice & 8 == 0));
    }
    config
}

/// An endpoint that is internal, remote, or one of the NAT's own, mostly as the side would have it.
fn address(side: Side, number: u8) -> Ipv4Addr {
    let mine = if side == Side::Internal { [10, 0, 0] } else { [198, 51, 100] };
    match number % 16 {
        0 => PUBLIC,
        1..=4 => Ipv4Addr::new(192, 0, 2, 1 + number % 3),
        _ => Ipv4Addr::new(mine[0], mine[1], mine[2], 2 + number % 4),
    }
}

fn build(side: Side, from: u8, to: u8, kind: u8, port: u8) -> Vec<u8> {
    let source = address(side, from | 0x08);
    let destination =
        if side == Side::Internal { address(Side::External, to) } else { Ipv4Addr::new(192, 0, 2, 1 + to % 3) };
    let (source, destination) =
        ((source, 4000 + u16::from(port % 5)), (destination, 4000 + u16::from(port / 5 % 5)));
    let flags = [SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK, PSH | ACK, 0x3f][usize::from(kind / 16 % 8)];
    let length = [0, 1, 7, 100, 700, 1_400, 2_900, 4_000][usize::from(from / 32)];
    let base = match kind % 9 {
        0..=1 => udp(source, destination),
        2..=4 => tcp(source, destination, flags).seq(1000 + u32::from(from % 4)).ack(1001 + u32::from(to % 4)),
        5 => ping(source.0, destination.0, source.1),
        6 => pong(source.0, destination.0, destination.1),
        7 => other(source.0, destination.0, 47),
        _ => {
            // An error about a packet that may well have gone the other way.
            let quoted = udp(destination, source).bytes();
            let quoted = if kind & 64 == 0 { quoted } else { tcp(destination, source, ACK).bytes() };
            return icmp_error(source.0, destination.0, (3 + (kind / 16 % 2) * 8, 1), &quoted).bytes();
        }
    };
    let base = base.filled(length).ttl(1 + to / 2).id(u16::from(port));
    if to & 1 == 0 { base.bytes() } else { base.df().bytes() }
}

fn assert_sessions_are_distinct(nat: &Nat) {
    let sessions = nat.sessions();
    let outside: HashSet<_> = sessions.iter().map(|s| (s.protocol, s.external, s.remote)).collect();
    assert_eq!(outside.len(), sessions.len(), "two sessions share (protocol, external, remote)");
    let inside: HashSet<_> = sessions.iter().map(|s| (s.protocol, s.internal, s.remote)).collect();
    assert_eq!(inside.len(), sessions.len(), "two sessions share (protocol, internal, remote)");
    let counters = nat.counters();
    assert_eq!(counters.sessions as usize, sessions.len());
    assert_eq!(counters.sessions_opened - counters.sessions_closed, u64::from(counters.sessions));
    let hosts: HashSet<_> = sessions.iter().map(|s| s.internal.address).collect();
    assert_eq!(counters.internal_addresses as usize, hosts.len());
    assert!(counters.mappings <= counters.sessions);
    assert!(counters.fragment_bytes <= nat.engine.config().limits.fragment_bytes);
}

/// Walks the steps and asserts after each that what must hold holds, and at the end that nothing is left.
///
/// # Panics
/// If not.
pub fn walk(choice: u8, seed: u64, steps: &[Step]) {
    let mut nat = Nat::seeded(configuration(choice), seed).balanced(ByPort::cutting(5));
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Packet { side, from, to, kind, port, mutate, cut } => {
                let whole = build(*side, *from, *to, *kind, *port);
                let parts = if *cut && whole.len() > 100 { fragment(&whole, 80) } else { vec![whole] };
                let from = usize::from(*from);
                for index in 0..parts.len().min(40) {
                    let mut packet = parts[(index * (1 + from % 7)) % parts.len()].clone();
                    if let Some((at, byte)) = mutate {
                        let length = packet.len();
                        packet[usize::from(*at) % length] ^= byte;
                        // What was broken on purpose is allowed to go on broken.
                        let _ = nat.unchecked(*side, &packet);
                    } else {
                        let _ = nat.packet(*side, &packet);
                    }
                }
                nat.transmitted();
            }
            Step::Noise { side, bytes } => {
                let _ = nat.unchecked(*side, bytes);
                nat.transmitted();
            }
            Step::Wait { millis } => nat.advance(Duration::from_millis(u64::from(*millis))),
            Step::Reconfigure(choice) => {
                nat.reconfigure(configuration(*choice));
            }
        }
        if number % 4 == 3 || number + 1 == steps.len() {
            assert_sessions_are_distinct(&nat);
        }
        nat.events();
    }
    nat.assert_empties();
}
