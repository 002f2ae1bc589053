//! Answers: ICMP errors (RFC 792, RFC 1191) and TCP resets (RFC 9293 section 3.5.2).

use std::net::Ipv4Addr;

use pnet_packet::ip::IpNextHeaderProtocol;
use pnet_packet::ipv4::MutableIpv4Packet;
use pnet_packet::tcp::{MutableTcpPacket, TcpFlags};

use super::headers::{DONT_FRAGMENT, ICMP_HEADER, IP_HEADER, TCP_HEADER};
use super::{Endpoint, Headers, Protocol, TcpSegment, checksum};

/// An ICMP error that Egret itself sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Port unreachable.
    PortUnreachable,
    /// Communication administratively prohibited (RFC 1812 section 5.2.7.1).
    Prohibited,
    /// Fragmentation needed and DF set, with the MTU of the next hop in bytes (RFC 1191 section 4).
    FragmentationNeeded { mtu: u16 },
    /// TTL exceeded in transit.
    TimeExceeded,
}

/// The ICMP error from `source` about `original`, a packet from its IPv4 header on. Quotes as much of it as fits
/// into 576 bytes (RFC 1812 section 4.3.2.3).
#[must_use]
pub fn error(error: IcmpError, source: Ipv4Addr, destination: Ipv4Addr, original: &[u8]) -> Vec<u8> {
    let (kind, code, mtu) = match error {
        IcmpError::PortUnreachable => (3, 3, 0),
        IcmpError::Prohibited => (3, 13, 0),
        IcmpError::FragmentationNeeded { mtu } => (3, 4, mtu),
        IcmpError::TimeExceeded => (11, 0, 0),
    };
    let quoted = &original[..original.len().min(MOST - IP_HEADER - ICMP_HEADER)];
    // Of the class of the packet that it is about (RFC 5508 REQ-10d).
    let class = original.get(1).map_or(0, |field| field >> 2);
    let mut packet = ip_packet(Protocol::ICMP, class, source, destination, ICMP_HEADER + quoted.len());
    let message = &mut packet[IP_HEADER..];
    message[0] = kind;
    message[1] = code;
    message[6..8].copy_from_slice(&mtu.to_be_bytes());
    message[ICMP_HEADER..].copy_from_slice(quoted);
    let checksum = checksum::checksum(message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// The RST that a host without such a connection would answer `segment` with, sent in the name of its
/// destination.
#[must_use]
pub fn reset(headers: &Headers, segment: &TcpSegment) -> Vec<u8> {
    let source = Endpoint::new(headers.destination, segment.destination);
    let destination = Endpoint::new(headers.source, segment.source);
    if segment.has(TcpFlags::ACK) {
        tcp_reset(source, destination, segment.acknowledgement, None)
    } else {
        tcp_reset(source, destination, 0, Some(segment.sequence.wrapping_add(segment.length)))
    }
}

/// An RST in the name of `source`, with the sequence number that `destination` expects next.
#[must_use]
pub fn reset_of(source: Endpoint, destination: Endpoint, sequence: u32) -> Vec<u8> {
    tcp_reset(source, destination, sequence, None)
}

fn tcp_reset(source: Endpoint, destination: Endpoint, sequence: u32, acknowledgement: Option<u32>) -> Vec<u8> {
    let mut packet = ip_packet(Protocol::TCP, 0, source.address, destination.address, TCP_HEADER);
    if let Some(mut tcp) = MutableTcpPacket::new(&mut packet[IP_HEADER..]) {
        tcp.set_source(source.port);
        tcp.set_destination(destination.port);
        tcp.set_sequence(sequence);
        tcp.set_acknowledgement(acknowledgement.unwrap_or(0));
        tcp.set_flags(TcpFlags::RST | if acknowledgement.is_some() { TcpFlags::ACK } else { 0 });
        tcp.set_data_offset(5);
        let checksum =
            pnet_packet::tcp::ipv4_checksum(&tcp.to_immutable(), &source.address, &destination.address);
        tcp.set_checksum(checksum);
    }
    packet
}

fn ip_packet(
    protocol: Protocol,
    class: u8,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    payload: usize,
) -> Vec<u8> {
    let mut bytes = vec![0; IP_HEADER + payload];
    // An answer is at most 576 bytes long.
    #[expect(clippy::cast_possible_truncation)]
    let length = bytes.len() as u16;
    if let Some(mut ip) = MutableIpv4Packet::new(&mut bytes) {
        ip.set_version(4);
        ip.set_header_length(5);
        ip.set_dscp(class);
        // Atomic, so that it needs no identification (RFC 6864 section 4).
        ip.set_flags(DONT_FRAGMENT);
        ip.set_total_length(length);
        ip.set_ttl(64);
        ip.set_next_level_protocol(IpNextHeaderProtocol(protocol.0));
        ip.set_source(source);
        ip.set_destination(destination);
    }
    let checksum = checksum::checksum(&bytes[..IP_HEADER]);
    bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// Largest ICMP error, in bytes.
const MOST: usize = 576;
