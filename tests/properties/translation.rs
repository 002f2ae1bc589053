//! One packet there and back: the reverse of a translation is the identity, and its checksums are right.

use std::net::Ipv4Addr;

use egret::nat::{Side, Verdict};
use egret::wire::Offload;
use pnet_packet::ip::IpNextHeaderProtocol;
use pnet_packet::util;
use proptest::prelude::*;

use crate::support::*;

fn internal() -> impl Strategy<Value = Ipv4Addr> {
    (0x0a00_0000_u32..0x0aff_ffff).prop_map(Ipv4Addr::from)
}

fn remote() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![0xc633_6400_u32..0xc633_64ff, 0x0100_0000_u32..0x09ff_ffff, 0x8000_0000_u32..0xa9fd_ffff]
        .prop_map(Ipv4Addr::from)
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![1..=u16::MAX, Just(u16::MAX), Just(1)]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        prop::collection::vec(prop_oneof![Just(0_u8), Just(0xff)], 0..1_400),
    ]
}

/// A packet from inside that opens a session.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    packet_of(0..5)
}

/// The same with a transport checksum over a pseudo-header.
fn checksummed_packet() -> impl Strategy<Value = Vec<u8>> {
    packet_of(0..2)
}

fn packet_of(kinds: std::ops::Range<u8>) -> impl Strategy<Value = Vec<u8>> {
    (internal(), remote(), port(), port(), payload(), kinds, any::<u32>(), 2..=255_u8, any::<u16>()).prop_map(
        |(source, destination, from, to, payload, kind, seq, ttl, id)| {
            let build = match kind {
                0 => udp((source, from), (destination, to)),
                1 => tcp((source, from), (destination, to), SYN).seq(seq),
                2 => udp((source, from), (destination, to)).no_checksum(),
                3 => ping(source, destination, from),
                _ => other(source, destination, 47),
            };
            build.payload(payload).ttl(ttl).id(id).df().bytes()
        },
    )
}

/// The answer that has everything of `packet` but the direction.
fn turned(packet: &View) -> Vec<u8> {
    let build = match packet.protocol.0 {
        17 if packet.bytes[26..28] == [0, 0] => udp(packet.destination, packet.source).no_checksum(),
        17 => udp(packet.destination, packet.source),
        6 => tcp(packet.destination, packet.source, SYN | ACK)
            .seq(99)
            .ack(packet.tcp.as_ref().map_or(0, |tcp| tcp.seq.wrapping_add(1))),
        1 => pong(packet.destination, packet.source, packet.identifier()),
        other_protocol => other(packet.destination, packet.source, other_protocol),
    };
    build.payload(&packet.payload).df().bytes()
}

/// Occupies what the packet would like to keep, so that the translation changes it.
fn occupy(nat: &mut Nat, packet: &View) {
    let squatter = ip("10.0.0.77");
    let squatter = match packet.protocol.0 {
        17 => udp((squatter, packet.source.port), "192.88.99.1:1"),
        6 => tcp((squatter, packet.source.port), "192.88.99.1:1", SYN),
        1 => ping(squatter, "192.88.99.1", packet.identifier()),
        _ => return,
    };
    let _ = nat.out(squatter);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes back in answer arrives as if there were no NAT; all checksums are checked on the way.
    #[test]
    fn answer_comes_back_to_where_the_packet_came_from(packet in packet(), conflict in any::<bool>()) {
        let mut nat = Nat::default();
        let sent = view(&packet);
        prop_assume!(sent.source.address != ip("10.0.0.77"));
        if conflict {
            occupy(&mut nat, &sent);
        }
        let outside = nat.out(&packet).to_external();
        prop_assert_eq!(&outside.payload, &sent.payload);
        prop_assert_eq!(outside.destination, sent.destination);
        let back = nat.inbound(turned(&outside)).to_internal();
        prop_assert_eq!((back.source, back.destination), (sent.destination, sent.source));
        prop_assert_eq!(&back.payload, &sent.payload);
        if sent.protocol.0 == 1 {
            prop_assert_eq!(back.identifier(), sent.identifier());
        }
    }

    /// An ICMP error quotes to the inside exactly what was sent, but for the TTL.
    #[test]
    fn quoted_packet_is_reverted_to_what_was_sent(packet in packet(), conflict in any::<bool>()) {
        let mut nat = Nat::default();
        let sent = view(&packet);
        prop_assume!(sent.source.address != ip("10.0.0.77"));
        if conflict {
            occupy(&mut nat, &sent);
        }
        let outside = nat.out(&packet).to_external();
        let quoted = &outside.bytes[..outside.bytes.len().min(548)];
        prop_assume!(quoted.len() >= 28);
        let error = nat.inbound(icmp_error("198.51.100.254", EXTERNAL, (3, 1), quoted)).to_internal();
        let mut reverted = error.payload.clone();
        error.embedded();
        reverted[8] = packet[8];
        reverted[10..12].copy_from_slice(&packet[10..12]);
        prop_assert_eq!(&reverted[..], &packet[..quoted.len()]);
    }

    /// A partial checksum, completed as the device does it after the translation, is right.
    #[test]
    fn partial_checksum_is_right_once_completed(packet in checksummed_packet()) {
        let at = if packet[9] == 6 { 36 } else { 26 };
        let address = |at: usize| Ipv4Addr::from([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
        let mut partial = packet.clone();
        partial[at..at + 2].copy_from_slice(&[0, 0]);
        let protocol = IpNextHeaderProtocol::new(packet[9]);
        // The full sum less the packet's own words is what the pseudo-header adds.
        let full = util::ipv4_checksum(&partial[20..], usize::MAX, &[], &address(12), &address(16), protocol);
        let own = util::checksum(&partial[20..], usize::MAX);
        let sum = u32::from(!full) + u32::from(own);
        let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded");
        partial[at..at + 2].copy_from_slice(&sum.to_be_bytes());

        let mut nat = Nat::default();
        occupy(&mut nat, &view(&packet));
        let offload = Offload { partial_checksum: true, segment_size: None };
        let (verdict, mut out, _) = nat.offloaded(Side::Internal, &partial, offload);
        prop_assert_eq!(verdict, Verdict::Forward);
        let sum = match util::checksum(&out[20..], usize::MAX) {
            0 if out[9] == 17 => 0xffff,
            sum => sum,
        };
        out[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        prop_assert_eq!(checksum_complaint(&out), None);
    }

    /// What was broken stays broken: an incremental update never repairs.
    #[test]
    fn broken_checksum_stays_broken(
        packet in checksummed_packet(),
        flip in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let mut broken = packet.clone();
        let at = 24 + flip.index(packet.len() - 24);
        broken[at] ^= 1 << bit;
        prop_assume!(packet[9] == 6 || broken[26..28] != [0, 0]);
        prop_assume!(checksum_complaint(&broken).is_some());
        let mut nat = Nat::default();
        let (verdict, out) = nat.unchecked(Side::Internal, &broken);
        if verdict == Verdict::Forward {
            prop_assert!(checksum_complaint(&out).is_some());
        }
    }
}
