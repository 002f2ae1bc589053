//! Fragments beyond what RFC 4787 asks: overlaps, doubles, floods, and datagrams that nothing lets in.

use std::time::Duration;

use egret::nat::{DropReason, Side};

use crate::support::*;

const CLIENT: &str = "10.0.0.2:4000";
const SERVER: &str = "198.51.100.1:53";

/// A packet of the datagram `whole` that carries its payload from `start` to `end`.
fn part(whole: &[u8], start: usize, end: usize) -> Vec<u8> {
    let mut bytes = [&whole[..20], &whole[20 + start..20 + end]].concat();
    let more = end < whole.len() - 20;
    let field = u16::from(more) << 13 | u16::try_from(start / 8).expect("fits");
    let length = u16::try_from(bytes.len()).expect("fits");
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes[6..8].copy_from_slice(&field.to_be_bytes());
    bytes[10..12].copy_from_slice(&[0, 0]);
    let sum = pnet_packet::util::checksum(&bytes[..20], 5);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[test]
fn overlapping_fragment_ends_its_datagram() {
    let whole = udp(CLIENT, SERVER).filled(1592).bytes();
    for (start, end) in [(392, 792), (0, 408), (792, 808), (8, 1600), (392, 1600)] {
        let mut nat = Nat::default();
        assert!(nat.out(part(&whole, 0, 400)).is_sent());
        assert!(nat.out(part(&whole, 800, 1200)).is_sent());
        assert_eq!(nat.out(part(&whole, start, end)).reason(), DropReason::FragmentOverlap, "{start}..{end}");
        assert_eq!(nat.out(part(&whole, 1200, 1600)).reason(), DropReason::FragmentOverlap, "the rest of it");
    }
}

/// RFC 1858: the header of the first fragment is not overwritten by a later one that came before.
#[test]
fn overlap_with_waiting_fragments_drops_them_too() {
    let whole = udp(CLIENT, SERVER).filled(1592).bytes();
    let mut nat = Nat::default();
    assert_eq!(nat.out(part(&whole, 800, 1600)), Outcome::Queued);
    assert_eq!(nat.out(part(&whole, 400, 808)).reason(), DropReason::FragmentOverlap);
    assert!(!nat.out(part(&whole, 0, 400)).is_sent());
    assert_eq!(nat.transmitted(), []);
    nat.assert_empties();
}

#[test]
fn doubled_fragment_does_no_harm() {
    let whole = udp(CLIENT, SERVER).filled(1592).bytes();
    let mut nat = Nat::default();
    let mut sent = vec![nat.out(part(&whole, 0, 800)).to_external().bytes];
    let _ = nat.out(part(&whole, 0, 800));
    sent.push(nat.out(part(&whole, 800, 1600)).to_external().bytes);
    assert_eq!(reassemble(&sent).payload, view(&whole).payload);
}

#[test]
fn fragments_past_the_end_of_their_datagram_are_dropped() {
    let whole = udp(CLIENT, SERVER).filled(1592).bytes();
    let short = udp(CLIENT, SERVER).filled(792).bytes();
    let mut nat = Nat::default();
    assert!(nat.out(part(&whole, 0, 400)).is_sent());
    assert!(nat.out(part(&short, 400, 800)).is_sent());
    assert!(!nat.out(part(&whole, 800, 1200)).is_sent(), "there is nothing after the last fragment");
}

#[test]
fn datagram_of_too_many_fragments_is_dropped() {
    let whole = udp(CLIENT, SERVER).filled(60_000).bytes();
    let mut nat = Nat::default();
    let sent = fragment(&whole, 8).into_iter().skip(1).filter(|part| nat.out(part).is_sent()).count();
    assert_eq!(sent, 0);
    assert!(nat.counters().fragment_bytes < 16_384);
    assert!(nat.dropped(DropReason::FragmentOverlap) > 7_000);
    nat.assert_empties();
}

/// What the filter keeps out does not get in as a later fragment.
#[test]
fn later_fragments_of_a_filtered_datagram_are_not_let_in() {
    for order in [[0, 1], [1, 0]] {
        let mut nat = Nat::default();
        let external = nat.open_udp(CLIENT, SERVER);
        let parts = fragment(&udp("198.51.100.66:53", external).filled(1592).bytes(), 800);
        for index in order {
            assert!(!nat.inbound(&parts[index]).is_sent());
        }
        assert_eq!(nat.transmitted(), []);
        nat.advance_secs(3);
        assert_eq!((nat.transmitted(), nat.counters().fragment_bytes), (vec![], 0));
    }
}

/// The same identification from another source is another datagram.
#[test]
fn fragments_of_different_senders_are_not_mixed() {
    let mut nat = Nat::default();
    let external = nat.open_udp(CLIENT, SERVER);
    let good = fragment(&udp(SERVER, external).filled(1592).id(7).bytes(), 800);
    let evil = fragment(&udp("198.51.100.66:53", external).filled(1592).id(7).bytes(), 800);
    assert!(nat.inbound(&good[0]).is_sent());
    assert_eq!(nat.inbound(&evil[1]), Outcome::Queued);
    assert!(nat.inbound(&good[1]).is_sent());
}

#[test]
fn waiting_fragments_are_dropped_after_two_seconds() {
    let whole = udp(CLIENT, SERVER).filled(1592).bytes();
    let mut nat = Nat::default();
    assert_eq!(nat.out(part(&whole, 800, 1600)), Outcome::Queued);
    nat.advance(Duration::from_millis(1_999));
    assert!(nat.counters().fragment_bytes > 0);
    nat.advance(Duration::from_millis(2));
    assert_eq!(nat.counters().fragment_bytes, 0);
    assert_eq!(nat.dropped(DropReason::FragmentTimeout), 1);
    assert!(nat.out(part(&whole, 0, 800)).is_sent(), "the first goes its way, alone");
    assert_eq!(nat.transmitted(), []);
}

#[test]
fn fragments_larger_than_the_next_link_are_cut_again() {
    let whole = udp(CLIENT, SERVER).filled(4000).bytes();
    for order in [[0, 1, 2], [2, 1, 0]] {
        let mut nat = Nat::with(|c| c.external_mtu = 600);
        let parts = fragment(&whole, 1400);
        let mut sent = Vec::new();
        for index in order {
            assert_eq!(nat.out(&parts[index]), Outcome::Queued);
            sent.extend(nat.transmitted().into_iter().map(|(_, part)| part.bytes));
        }
        assert_eq!(reassemble(&sent).payload, view(&whole).payload);
    }
}

/// A flood of complete fragmented datagrams with one incomplete among them is not held up by it.
#[test]
fn incomplete_datagram_does_not_block_the_flow_of_complete_ones() {
    let mut nat = Nat::default();
    nat.open_udp(CLIENT, SERVER);
    let lost = fragment(&udp(CLIENT, SERVER).filled(1592).id(1).bytes(), 800);
    assert!(nat.out(&lost[0]).is_sent());
    for round in 0..200_000_u32 {
        let port = 5000 + (round >> 16) as u16;
        let whole = udp((ip("10.0.0.2"), port), SERVER).filled(100).id(round as u16).bytes();
        for part in fragment(&whole, 56) {
            let outcome = nat.out(part);
            assert!(outcome.is_sent() || round as u16 == 1, "datagram {round}: {outcome:?}");
        }
    }
}

/// Whole datagrams and fragments of TCP, ICMP and other protocols.
#[test]
fn fragments_of_all_protocols_are_translated() {
    let mut nat = Nat::default();
    nat.open_tcp("10.0.0.2:4000", "198.51.100.1:80");
    for whole in [
        tcp("10.0.0.2:4000", "198.51.100.1:80", ACK).seq(1001).ack(5001).filled(2000).bytes(),
        ping("10.0.0.2", "198.51.100.1", 7).filled(2000).bytes(),
        other("10.0.0.2", "198.51.100.1", 50).filled(2000).bytes(),
    ] {
        for order in [[0, 1, 2], [2, 0, 1]] {
            let parts = fragment(&whole, 800);
            let mut sent = Vec::new();
            for index in order {
                if let Outcome::Sent(Side::External, part) = nat.out(&parts[index]) {
                    sent.push(part.bytes);
                }
                sent.extend(nat.transmitted().into_iter().map(|(_, part)| part.bytes));
            }
            let sent = reassemble(&sent);
            assert_eq!((sent.source.address, sent.payload.len()), (EXTERNAL, view(&whole).payload.len()));
            nat.advance_secs(3);
        }
    }
}
