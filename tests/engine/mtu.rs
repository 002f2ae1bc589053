//! Sizes: both directions, hairpinning, MSS clamping.

use egret::nat::{DropReason, FilteringBehaviour, Side};

use crate::support::*;

const CLIENT: &str = "10.0.0.2:4000";
const SERVER: &str = "198.51.100.1:53";

#[test]
fn too_big_for_the_inside_is_reported_to_the_remote() {
    let mut nat = Nat::with(|c| c.internal_mtu = 1400);
    let external = nat.open_udp(CLIENT, SERVER);
    let big = udp(SERVER, external).filled(1380).df();
    assert_eq!(nat.inbound(big), Outcome::Replied(DropReason::TooBig));
    let (side, error) = nat.only_transmitted();
    assert_eq!((side, error.icmp_kind()), (Side::External, (3, 4)));
    assert_eq!(error.icmp.as_ref().expect("an error").mtu(), 1400);
    assert_eq!((error.source.address, error.destination.address), (EXTERNAL, ip("198.51.100.1")));
    assert_eq!(error.embedded(), (ep(SERVER), external));
    assert_eq!(nat.inbound(udp(SERVER, external).filled(1380)), Outcome::Queued);
    let parts: Vec<_> = nat.transmitted().into_iter().map(|(_, part)| part.bytes).collect();
    assert_eq!(reassemble(&parts).destination, ep(CLIENT));
}

#[test]
fn jumbo_frames_pass_between_internal_hosts() {
    let mut nat = Nat::with(|c| {
        c.internal_mtu = 9001;
        c.filtering = FilteringBehaviour::EndpointIndependent;
    });
    let target = nat.open_udp("10.0.0.3:5000", SERVER);
    assert!(nat.out(udp(CLIENT, target).filled(8900).df()).is_sent());
    assert_eq!(nat.out(udp(CLIENT, SERVER).filled(8900).df()), Outcome::Replied(DropReason::TooBig));
    assert_eq!(nat.only_transmitted().1.icmp.expect("an error").mtu(), 1500);
    assert_eq!(nat.out(udp(CLIENT, target).filled(8990).df()), Outcome::Replied(DropReason::TooBig));
    assert_eq!(nat.only_transmitted().1.icmp.expect("an error").mtu(), 9001);
}

#[test]
fn mss_is_clamped_in_both_directions_and_only_downwards() {
    let mut nat = Nat::with(|c| c.mss_clamp = Some(1400));
    let mss = |value: u16| [[2, 4], value.to_be_bytes()].concat();
    let syn = tcp(CLIENT, "198.51.100.1:80", SYN).tcp_options(&mss(1460));
    let sent = nat.out(syn).to_external();
    assert_eq!(sent.tcp.as_ref().expect("TCP").options, mss(1400));
    let answer = tcp("198.51.100.1:80", sent.source, SYN | ACK).ack(1001).tcp_options(&mss(8961));
    assert_eq!(nat.inbound(answer).to_internal().tcp.expect("TCP").options, mss(1400));
    let small = tcp("10.0.0.3:1", "198.51.100.1:80", SYN).tcp_options(&mss(536));
    assert_eq!(nat.out(small).to_external().tcp.expect("TCP").options, mss(536));
}

#[test]
fn mss_is_found_among_other_options_at_any_offset() {
    for padding in 0..4 {
        // No-operations, timestamps, MSS, SACK permitted, window scale.
        let mut options = vec![1; padding];
        options.extend([8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 2, 4, 0xff, 0xfe, 4, 2, 3, 3, 7]);
        options.resize(24, 0);
        let mut nat = Nat::with(|c| c.mss_clamp = Some(1400));
        let sent = nat.out(tcp(CLIENT, "198.51.100.1:80", SYN).tcp_options(&options)).to_external();
        options[padding + 12..padding + 14].copy_from_slice(&1400_u16.to_be_bytes());
        assert_eq!(sent.tcp.expect("TCP").options, options);
    }
}

#[test]
fn malformed_tcp_options_are_passed_unread() {
    for options in [[2, 4, 5, 0], [2, 0, 0, 0], [8, 255, 1, 1], [2, 3, 9, 9], [3, 1, 0, 0], [77, 4, 2, 4]] {
        let mut nat = Nat::with(|c| c.mss_clamp = Some(500));
        let sent = nat.out(tcp(CLIENT, "198.51.100.1:80", SYN).tcp_options(&options)).to_external();
        if options != [2, 4, 5, 0] {
            assert_eq!(sent.tcp.expect("TCP").options, options);
        }
    }
}

#[test]
fn data_segments_are_not_clamped() {
    let mut nat = Nat::with(|c| c.mss_clamp = Some(1400));
    nat.open_tcp(CLIENT, "198.51.100.1:80");
    let data = tcp(CLIENT, "198.51.100.1:80", ACK).seq(1001).ack(5001).tcp_options(&[2, 4, 5, 0xb4]);
    assert_eq!(nat.out(data).to_external().tcp.expect("TCP").options, [2, 4, 5, 0xb4]);
}
