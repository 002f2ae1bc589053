//! Input that no honest stack sends is never forwarded, never answered into the dark, and counted by reason.

use egret::nat::{DropReason, Side, Verdict};
use pnet_packet::util;

use crate::support::*;

const CLIENT: &str = "10.0.0.2:4000";
const SERVER: &str = "198.51.100.1:443";

/// Makes the IP header checksum right again.
fn mend(mut packet: Vec<u8>) -> Vec<u8> {
    let length = (usize::from(packet[0] & 15) * 4).clamp(12, packet.len());
    let sum = util::checksum(&packet[..length], 5);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// With `byte` at `at` and a right IP header checksum.
fn with(mut packet: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    packet[at] = byte;
    mend(packet)
}

/// Hands the packet in on both sides and asserts that it is dropped for `reason`.
fn assert_dropped(packet: &[u8], reason: DropReason) {
    for side in [Side::Internal, Side::External] {
        let mut nat = Nat::default();
        assert_eq!(nat.unchecked(side, packet).0, Verdict::Drop(reason), "{side:?} {packet:02x?}");
        assert_eq!(nat.dropped(reason), 1);
        assert_eq!((nat.counters().sessions, nat.transmitted()), (0, vec![]));
    }
}

#[test]
fn truncated_packet_is_dropped() {
    for packet in [
        udp(CLIENT, SERVER).filled(40).bytes(),
        tcp(CLIENT, SERVER, SYN).tcp_options(&[2, 4, 5, 0xb4]).bytes(),
        ping("10.0.0.2", "198.51.100.1", 7).bytes(),
    ] {
        for length in 0..packet.len() {
            let mut nat = Nat::default();
            let (verdict, _) = nat.unchecked(Side::Internal, &packet[..length]);
            assert!(matches!(verdict, Verdict::Drop(_)), "{length} bytes: {verdict:?}");
            assert_eq!(nat.counters().sessions, 0);
        }
    }
    assert_dropped(&[], DropReason::Truncated);
    assert_dropped(&udp(CLIENT, SERVER).bytes()[..19], DropReason::Truncated);
    assert_dropped(&udp(CLIENT, SERVER).bytes()[..31], DropReason::Truncated);
}

#[test]
fn packet_whose_transport_header_does_not_fit_is_dropped() {
    for (protocol, shortest) in [(17, 8), (6, 20), (1, 8)] {
        for length in 0..shortest {
            let short = other("10.0.0.2", "198.51.100.1", protocol).payload(vec![0; length]).bytes();
            for side in [Side::Internal, Side::External] {
                let mut nat = Nat::default();
                let (verdict, _) = nat.unchecked(side, &short);
                assert!(matches!(verdict, Verdict::Drop(_)), "{protocol} {length}: {verdict:?}");
            }
        }
    }
}

#[test]
fn bad_ip_header_is_dropped() {
    let good = udp(CLIENT, SERVER).bytes();
    assert_dropped(&with(good.clone(), 0, 0x65), DropReason::BadHeader);
    assert_dropped(&with(good.clone(), 0, 0x05), DropReason::BadHeader);
    assert_dropped(&with(good.clone(), 0, 0x44), DropReason::BadHeader);
    assert_dropped(&with(good.clone(), 0, 0x40), DropReason::BadHeader);
    // A total length shorter than the header, or longer than the packet.
    for (length, reason) in
        [(0, DropReason::BadHeader), (19, DropReason::BadHeader), (33, DropReason::Truncated)]
    {
        assert_dropped(&with(good.clone(), 3, length), reason);
    }
}

#[test]
fn bad_ip_header_checksum_is_dropped() {
    let good = udp(CLIENT, SERVER).bytes();
    for at in 1..20 {
        for bit in [0x01, 0x80] {
            let mut bad = good.clone();
            bad[at] ^= bit;
            for side in [Side::Internal, Side::External] {
                let mut nat = Nat::default();
                let (verdict, _) = nat.unchecked(side, &bad);
                assert!(matches!(verdict, Verdict::Drop(_)), "byte {at}: {verdict:?}");
            }
        }
    }
    let mut bad = good;
    bad[10] ^= 1;
    assert_dropped(&bad, DropReason::BadChecksum);
}

#[test]
fn bad_icmp_checksum_is_dropped() {
    let mut bad = ping("10.0.0.2", "198.51.100.1", 7).bytes();
    bad[30] ^= 1;
    assert_dropped(&bad, DropReason::BadChecksum);
}

#[test]
fn bad_transport_checksum_is_never_repaired() {
    for packet in [udp(CLIENT, SERVER).bytes(), tcp(CLIENT, SERVER, SYN).bytes()] {
        for at in 24..packet.len() {
            let mut bad = packet.clone();
            bad[at] ^= 0x04;
            let mut nat = Nat::default();
            let (verdict, out) = nat.unchecked(Side::Internal, &bad);
            let zeroed = packet[9] == 17 && bad[26..28] == [0, 0];
            if verdict == Verdict::Forward && !zeroed {
                assert!(checksum_complaint(&out).is_some(), "byte {at} was repaired");
            }
        }
    }
}

#[test]
fn nonsense_tcp_flags_are_dropped() {
    let all: Vec<u8> = (0..64).collect();
    let bad = |flags: u8| {
        let null = flags & (SYN | RST | ACK | FIN) == 0;
        null || flags & (SYN | FIN) == SYN | FIN
            || flags & (SYN | RST) == SYN | RST
            || flags & (FIN | ACK) == FIN
    };
    for flags in all {
        let mut nat = Nat::default();
        let outcome = nat.out(tcp(CLIENT, SERVER, flags));
        if flags & (SYN | RST | ACK | FIN) == 0 && flags != 0 {
            // PSH or URG alone: not in the list of nonsense, but no session comes of it.
            assert!(!outcome.is_sent(), "{flags:#x}");
        } else {
            assert_eq!(outcome == Outcome::Dropped(DropReason::BadFlags), bad(flags), "{flags:#x} {outcome:?}");
        }
        nat.open_tcp(CLIENT, SERVER);
        if bad(flags) {
            assert!(!nat.out(tcp(CLIENT, SERVER, flags).seq(1001).ack(5001)).is_sent(), "{flags:#x}");
        }
    }
}

#[test]
fn tcp_data_offset_that_does_not_fit_is_dropped() {
    let good = tcp(CLIENT, SERVER, SYN).bytes();
    for offset in [0, 1, 4, 6, 15] {
        let mut bad = good.clone();
        bad[32] = offset << 4;
        for side in [Side::Internal, Side::External] {
            let mut nat = Nat::default();
            let (verdict, _) = nat.unchecked(side, &bad);
            assert!(matches!(verdict, Verdict::Drop(_)), "{offset}: {verdict:?}");
            assert_eq!(nat.counters().sessions, 0);
        }
    }
}

#[test]
fn udp_length_that_does_not_fit_is_dropped() {
    let good = udp(CLIENT, SERVER).bytes();
    for length in [0_u16, 1, 7, 13, 0xffff] {
        let mut bad = good.clone();
        bad[24..26].copy_from_slice(&length.to_be_bytes());
        for side in [Side::Internal, Side::External] {
            let (verdict, _) = Nat::default().unchecked(side, &bad);
            assert!(matches!(verdict, Verdict::Drop(_)), "{length}: {verdict:?}");
        }
    }
}

#[test]
fn surplus_area_after_udp_is_kept() {
    let mut packet = udp(CLIENT, SERVER).filled(10).bytes();
    packet.extend([1, 2, 3, 4]);
    packet[3] += 4;
    let sent = Nat::default().out(mend(packet)).to_external();
    assert_eq!(sent.bytes[38..], [1, 2, 3, 4]);
}

#[test]
fn padding_of_the_link_is_cut_off() {
    let mut packet = udp(CLIENT, SERVER).bytes();
    packet.resize(60, 0xee);
    let sent = Nat::default().out(packet).to_external();
    assert_eq!(sent.bytes.len(), 32);
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let mut nat = Nat::default();
    let sent = nat.out(udp(CLIENT, SERVER).no_checksum()).to_external();
    assert_eq!(sent.bytes[26..28], [0, 0]);
    let back = nat.inbound(udp(SERVER, sent.source).no_checksum()).to_internal();
    assert_eq!(back.bytes[26..28], [0, 0]);
}

/// RFC 768: a checksum that comes out as 0 is sent as all ones.
#[test]
fn udp_checksum_never_becomes_zero() {
    let mut nat = Nat::default();
    let mut zeroes = 0;
    for word in 0..=0xffff_u16 {
        let sent = nat.out(udp(CLIENT, SERVER).payload(word.to_be_bytes())).to_external();
        assert_ne!(sent.bytes[26..28], [0, 0]);
        zeroes += u32::from(sent.bytes[26..28] == [0xff, 0xff]);
    }
    assert!(zeroes >= 1, "the case has occurred");
}

#[test]
fn ip_options_are_dropped() {
    let record_route = [7, 7, 4, 0, 0, 0, 0, 0];
    let source_route = [131, 7, 4, 198, 51, 100, 9, 0];
    for options in [&record_route[..], &source_route, &[1, 1, 1, 0]] {
        assert_dropped(&udp(CLIENT, SERVER).ip_options(options).bytes(), DropReason::IpOptions);
    }
}

#[test]
fn martian_addresses_are_dropped() {
    let bad = [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.255.0.9",
        "224.0.0.1",
        "239.9.9.9",
        "240.0.0.1",
        "255.255.255.255",
    ];
    for address in bad {
        assert_dropped(&udp((ip(address), 4000), SERVER).bytes(), DropReason::Martian);
        assert_dropped(&udp(CLIENT, (ip(address), 53)).bytes(), DropReason::Martian);
        assert_dropped(&tcp((ip(address), 4000), SERVER, SYN).bytes(), DropReason::Martian);
        assert_dropped(&ping(ip(address), "198.51.100.1", 7).bytes(), DropReason::Martian);
    }
}

#[test]
fn land_packet_is_dropped() {
    assert_dropped(&tcp(CLIENT, CLIENT, SYN).bytes(), DropReason::Martian);
    assert_dropped(&udp((EXTERNAL, 80), (EXTERNAL, 80)).bytes(), DropReason::Martian);
    assert_dropped(&udp((EXTERNAL, 80), (EXTERNAL, 81)).bytes(), DropReason::Martian);
}

#[test]
fn packet_from_nowhere_is_dropped() {
    let mut nat = Nat::default();
    assert_eq!(nat.out(udp("172.16.0.1:4000", SERVER)), Outcome::Dropped(DropReason::NotInternal));
    assert_eq!(nat.out(udp((EXTERNAL, 4000), SERVER)), Outcome::Dropped(DropReason::NotInternal));
    assert_eq!(nat.inbound(udp(SERVER, "192.0.2.99:4000")), Outcome::Dropped(DropReason::NotExternal));
    assert_eq!(nat.inbound(udp(SERVER, CLIENT)), Outcome::Dropped(DropReason::NotExternal));
    assert_eq!(nat.inbound(udp(SERVER, (PUBLIC, 4000))), Outcome::Dropped(DropReason::NotExternal));
}

/// A packet from outside that claims to come from the NAT itself.
#[test]
fn spoofed_source_from_outside_is_not_let_in() {
    let mut nat = Nat::with(|c| c.filtering = egret::nat::FilteringBehaviour::EndpointIndependent);
    let external = nat.open_udp(CLIENT, SERVER);
    assert_eq!(nat.inbound(udp((PUBLIC, 53), external)), Outcome::Dropped(DropReason::Martian));
    assert_eq!(nat.counters().sessions, 1);
}

#[test]
fn icmp_error_with_a_truncated_embedded_packet_is_dropped() {
    let mut nat = Nat::default();
    let sent = nat.out(udp(CLIENT, SERVER)).to_external();
    for length in 0..28 {
        let error = icmp_error("198.51.100.9", EXTERNAL, (3, 1), &sent.bytes[..length]);
        assert!(!nat.inbound(error).is_sent(), "{length} bytes");
    }
    // And with a header length that leaves no room for the ports.
    let mut embedded = sent.bytes.clone();
    embedded[0] = 0x4f;
    assert!(!nat.inbound(icmp_error("198.51.100.9", EXTERNAL, (3, 1), &embedded)).is_sent());
    embedded[0] = 0x41;
    assert!(!nat.inbound(icmp_error("198.51.100.9", EXTERNAL, (3, 1), &embedded)).is_sent());
}

/// RFC 1122 section 3.2.2: no error is about an error; one that claims to be must not confuse the NAT.
#[test]
fn icmp_error_about_an_icmp_error_is_dropped() {
    let mut nat = Nat::default();
    let sent = nat.out(udp(CLIENT, SERVER)).to_external();
    let inner = icmp_error(EXTERNAL, "198.51.100.9", (3, 3), &sent.bytes).bytes();
    assert!(!nat.inbound(icmp_error("198.51.100.9", EXTERNAL, (3, 1), &inner)).is_sent());
}

/// An error about a later fragment has no ports to go by.
#[test]
fn icmp_error_about_a_later_fragment_is_dropped() {
    let mut nat = Nat::default();
    let external = nat.open_udp(CLIENT, SERVER);
    let whole = udp(external, SERVER).filled(2000).bytes();
    let parts = fragment(&whole, 1000);
    assert!(nat.inbound(icmp_error("198.51.100.9", EXTERNAL, (11, 1), &parts[0])).is_sent());
    assert!(!nat.inbound(icmp_error("198.51.100.9", EXTERNAL, (11, 1), &parts[1])).is_sent());
}

/// RFC 791: the reserved bit; RFC 1858: offset 1 overwrites TCP flags.
#[test]
fn tiny_and_odd_fragments_are_not_forwarded() {
    let whole = tcp(CLIENT, SERVER, SYN).filled(100).bytes();
    let mut parts = fragment(&whole, 8);
    let mut nat = Nat::default();
    assert!(!nat.out(&parts[0]).is_sent(), "8 bytes are no TCP header");
    assert!(!nat.out(parts.remove(1)).is_sent(), "offset 1");
    nat.advance_secs(3);
    assert_eq!(nat.transmitted(), []);
    // A fragment that ends past 65,535 bytes.
    let mut monster = udp(CLIENT, SERVER).filled(100).bytes();
    monster[6..8].copy_from_slice(&0x1fff_u16.to_be_bytes());
    assert!(!nat.out(mend(monster)).is_sent());
    nat.advance_secs(3);
    assert_eq!(nat.transmitted(), []);
    assert_eq!(nat.counters().sessions, 0);
}
