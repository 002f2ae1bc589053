//! Partial checksums and super-frames.

use std::num::NonZeroU16;

use egret::nat::{DropReason, Side, Verdict};
use egret::wire::Offload;
use pnet_packet::ip::IpNextHeaderProtocol;
use pnet_packet::util;

use crate::support::*;

const CLIENT: &str = "10.0.0.2:4000";
const SERVER: &str = "198.51.100.1:80";

/// Replaces the transport checksum by the sum over the pseudo-header, as Linux leaves it to the device.
fn make_partial(mut packet: Vec<u8>) -> Vec<u8> {
    let at = checksum_at(&packet);
    let sum = pseudo_sum(&packet);
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// What the device does: it sums up from the transport header on.
fn complete(mut packet: Vec<u8>) -> Vec<u8> {
    let at = checksum_at(&packet);
    let sum = match util::checksum(&packet[20..], usize::MAX) {
        0 if packet[9] == 17 => 0xffff,
        sum => sum,
    };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn checksum_at(packet: &[u8]) -> usize {
    if packet[9] == 6 { 36 } else { 26 }
}

fn pseudo_sum(packet: &[u8]) -> u16 {
    let address =
        |at: usize| std::net::Ipv4Addr::from([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
    let protocol = IpNextHeaderProtocol::new(packet[9]);
    let length = u16::try_from(packet.len() - 20).expect("fits");
    // The function adds the length of what it sums; an empty slice leaves that to the extra data.
    let sum = util::ipv4_checksum(&[], usize::MAX, &length.to_be_bytes(), &address(12), &address(16), protocol);
    // It has counted the two bytes of the length as payload.
    let sum = u32::from(!sum) + u32::from(!2_u16);
    u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded")
}

fn partial(segment_size: u16) -> Offload {
    Offload { partial_checksum: true, segment_size: NonZeroU16::new(segment_size) }
}

#[test]
fn partial_checksum_stays_partial_and_right() {
    let mut nat = Nat::default();
    nat.open_udp("10.0.0.9:4000", SERVER);
    for packet in [tcp(CLIENT, SERVER, SYN).filled(33).bytes(), udp(CLIENT, SERVER).filled(33).bytes()] {
        assert_eq!(complete(make_partial(packet.clone())), packet, "the test's own arithmetic");
        let (verdict, out, offload) = nat.offloaded(Side::Internal, &make_partial(packet), partial(0));
        assert_eq!((verdict, offload), (Verdict::Forward, partial(0)));
        assert_eq!(out, make_partial(out.clone()));
        view(&complete(out));
    }
}

#[test]
fn partial_checksum_survives_mss_clamping() {
    let mut nat = Nat::with(|c| c.mss_clamp = Some(1000));
    let syn = tcp(CLIENT, SERVER, SYN).tcp_options(&[2, 4, 5, 0xb4]).bytes();
    let (_, out, _) = nat.offloaded(Side::Internal, &make_partial(syn), partial(0));
    assert_eq!(view(&complete(out)).tcp.expect("TCP").options, [2, 4, 3, 0xe8]);
}

#[test]
fn partial_checksum_is_completed_before_the_packet_is_cut() {
    let mut nat = Nat::default();
    let big = udp(CLIENT, SERVER).filled(4000).bytes();
    let (verdict, _, _) = nat.offloaded(Side::Internal, &make_partial(big.clone()), partial(0));
    assert_eq!(verdict, Verdict::Queued);
    let parts: Vec<_> = nat.transmitted().into_iter().map(|(_, part)| part.bytes).collect();
    assert_eq!(reassemble(&parts).payload, view(&big).payload);
}

#[test]
fn tcp_super_frame_passes_in_one_piece() {
    let mut nat = Nat::default();
    let external = nat.open_tcp(CLIENT, SERVER);
    for df in [true, false] {
        let frame = tcp(CLIENT, SERVER, ACK).seq(1001).ack(5001).filled(60_000);
        let frame = if df { frame.df() } else { frame };
        let (verdict, out, offload) =
            nat.offloaded(Side::Internal, &make_partial(frame.bytes()), partial(1448));
        assert_eq!((verdict, offload), (Verdict::Forward, partial(1448)));
        assert_eq!(view(&complete(out)).source, external);
    }
    let frame = tcp(SERVER, external, ACK).seq(5001).ack(1001).filled(60_000).df().bytes();
    let (verdict, out, _) = nat.offloaded(Side::External, &make_partial(frame), partial(1460));
    assert_eq!(verdict, Verdict::Forward);
    assert_eq!(view(&complete(out)).destination, ep(CLIENT));
}

#[test]
fn super_frame_with_segments_too_big_is_reported_or_resized() {
    let mut nat = Nat::default();
    nat.open_tcp(CLIENT, SERVER);
    let frame = tcp(CLIENT, SERVER, ACK).seq(1001).ack(5001).filled(30_000);
    let with_df = make_partial(frame.clone().df().bytes());
    let (verdict, _, _) = nat.offloaded(Side::Internal, &with_df, partial(8948));
    assert_eq!(verdict, Verdict::Reply(DropReason::TooBig));
    assert_eq!(nat.only_transmitted().1.icmp.expect("an error").mtu(), 1500);
    let (verdict, out, offload) = nat.offloaded(Side::Internal, &make_partial(frame.bytes()), partial(8948));
    assert_eq!((verdict, offload), (Verdict::Forward, partial(1460)));
    view(&complete(out));
}

#[test]
fn udp_super_frame_passes_or_is_cut_into_its_datagrams() {
    let mut nat = Nat::default();
    let frame = make_partial(udp(CLIENT, SERVER).filled(14_500).bytes());
    let (verdict, out, offload) = nat.offloaded(Side::Internal, &frame, partial(1450));
    assert_eq!((verdict, offload), (Verdict::Forward, partial(1450)));
    view(&complete(out));
    let (verdict, _, _) = nat.offloaded(Side::Internal, &frame, partial(3000));
    assert_eq!(verdict, Verdict::Queued);
    let sent = nat.transmitted();
    let mut by_id = std::collections::BTreeMap::<_, Vec<_>>::new();
    for (_, part) in sent {
        by_id.entry(part.id).or_default().push(part.bytes);
    }
    assert_eq!(by_id.len(), 5, "datagrams of 3000 bytes, the last shorter");
    let total: usize = by_id.values().map(|parts| reassemble(parts).payload.len()).sum();
    assert_eq!(total, 14_500);
}

#[test]
fn super_frame_counts_as_one_packet_and_all_its_bytes() {
    let mut nat = Nat::default();
    nat.open_tcp(CLIENT, SERVER);
    let before = nat.session();
    let frame = tcp(CLIENT, SERVER, ACK).seq(1001).ack(5001).filled(30_000).bytes();
    let (_, _, _) = nat.offloaded(Side::Internal, &make_partial(frame), partial(1448));
    let after = nat.session();
    assert_eq!((after.packets_out - before.packets_out, after.bytes_out - before.bytes_out), (1, 30_040));
}
