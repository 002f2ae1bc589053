//! Parsing: the one place where bytes become facts.

use std::net::Ipv4Addr;

use pnet_packet::ipv4::Ipv4Packet;
use pnet_packet::tcp::{TcpFlags, TcpOptionNumbers, TcpPacket};
use pnet_packet::udp::UdpPacket;

use super::checksum;
use super::{Endpoint, FiveTuple, Packet, Protocol};

/// An IPv4 packet's headers, checked.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: Protocol,
    pub ttl: u8,
    pub dont_fragment: bool,
    pub identification: u16,
    /// `None`: a whole datagram.
    pub fragment: Option<Fragment>,
    pub transport: Transport,
}

/// Where a fragment lies in its datagram, in bytes of the datagram's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    pub start: u16,
    /// One past the last byte; more than 65,535 is refused as malformed.
    pub end: u16,
    pub more: bool,
}

/// What follows the IPv4 header.
#[derive(Clone, Copy, Debug)]
pub enum Transport {
    Tcp(TcpSegment),
    Udp {
        source: u16,
        destination: u16,
    },
    /// An ICMP query or its reply.
    Query {
        identifier: u16,
    },
    /// An ICMP error that a NAT translates.
    Error(Embedded),
    /// Another protocol.
    Other,
    /// A fragment that is not the first: it has no transport header.
    Later,
}

/// The fields of a TCP header that the NAT follows.
#[derive(Clone, Copy, Debug)]
pub struct TcpSegment {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub window: u16,
    /// As `pnet_packet::tcp::TcpFlags`.
    pub flags: u8,
    /// Sequence numbers that the segment takes: its payload, and one for each of SYN and FIN.
    pub length: u32,
    /// Of a SYN: the window scale option (RFC 7323), at most 14.
    pub window_scale: Option<u8>,
    /// Of a SYN: the offset of the MSS option's value, in bytes from the start of the packet.
    pub mss_at: Option<usize>,
}

impl TcpSegment {
    /// Whether any of `flags` is set.
    #[must_use]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// Whether this opens a connection: SYN without ACK.
    #[must_use]
    pub const fn is_opening(&self) -> bool {
        self.has(TcpFlags::SYN) && !self.has(TcpFlags::ACK)
    }
}

/// The packet that an ICMP error is about, as far as the error quotes it.
#[derive(Clone, Copy, Debug)]
pub struct Embedded {
    pub tuple: FiveTuple,
    /// Offset of the quoted transport header, in bytes from the start of the outer packet.
    pub transport_at: usize,
}

/// Why a packet is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("shorter than its headers say")]
    Truncated,
    #[error("not IPv4, or fields that contradict each other")]
    BadHeader,
    #[error("wrong IP header or ICMP checksum")]
    BadChecksum,
    #[error("has IP options")]
    Options,
    #[error("TCP flags that no stack sends")]
    BadFlags,
    #[error("addresses that must not cross a router")]
    Martian,
    #[error("an ICMP message that a NAT does not pass")]
    IcmpType,
}

impl Headers {
    /// Reads and checks the headers of `packet`, and cuts `packet.bytes` to the total length that they give.
    ///
    /// TCP and UDP checksums are not verified: they are updated incrementally, so what is wrong stays wrong.
    ///
    /// # Errors
    /// Says what is wrong; the packet must then not be forwarded.
    pub fn parse(packet: &mut Packet<'_>) -> Result<Self, Malformed> {
        let ip = Ipv4Packet::new(packet.bytes).ok_or(Malformed::Truncated)?;
        if ip.get_version() != 4 || ip.get_header_length() < 5 {
            return Err(Malformed::BadHeader);
        }
        if ip.get_header_length() > 5 {
            return Err(Malformed::Options);
        }
        let total_length = usize::from(ip.get_total_length());
        if total_length < IP_HEADER {
            return Err(Malformed::BadHeader);
        }
        if total_length > packet.bytes.len() {
            return Err(Malformed::Truncated);
        }
        if checksum::sum(&packet.bytes[..IP_HEADER]) != 0xffff {
            return Err(Malformed::BadChecksum);
        }
        let (source, destination) = (ip.get_source(), ip.get_destination());
        if source == destination || is_martian(source) || is_martian(destination) {
            return Err(Malformed::Martian);
        }
        let protocol = Protocol(ip.get_next_level_protocol().0);
        let (ttl, identification) = (ip.get_ttl(), ip.get_identification());
        let flags = ip.get_flags();
        let fragment = fragment(ip.get_fragment_offset(), flags & MORE_FRAGMENTS != 0, total_length)?;

        let bytes = std::mem::take(&mut packet.bytes);
        packet.bytes = &mut bytes[..total_length];
        let transport = match fragment {
            Some(Fragment { start: 1.., .. }) => Transport::Later,
            _ => parse_transport(packet.bytes, protocol, fragment.is_some())?,
        };
        Ok(Self {
            source,
            destination,
            protocol,
            ttl,
            dont_fragment: flags & DONT_FRAGMENT != 0,
            identification,
            fragment,
            transport,
        })
    }

    /// The flow that the packet belongs to. For a query both ports are the identifier: only one end has mapped
    /// it, and which one the caller knows. `None` for errors and later fragments.
    #[must_use]
    pub fn tuple(&self) -> Option<FiveTuple> {
        let (source, destination) = match self.transport {
            Transport::Tcp(TcpSegment { source, destination, .. }) | Transport::Udp { source, destination } => {
                (source, destination)
            }
            Transport::Query { identifier, .. } => (identifier, identifier),
            Transport::Other => (0, 0),
            Transport::Error(_) | Transport::Later => return None,
        };
        Some(FiveTuple {
            protocol: self.protocol,
            source: Endpoint::new(self.source, source),
            destination: Endpoint::new(self.destination, destination),
        })
    }
}

fn fragment(offset: u16, more: bool, total_length: usize) -> Result<Option<Fragment>, Malformed> {
    if offset == 0 && !more {
        return Ok(None);
    }
    let payload = total_length - IP_HEADER;
    let start = usize::from(offset) * 8;
    // All but the last fragment carry a multiple of eight bytes (RFC 791); none is empty.
    if payload == 0 || (more && !payload.is_multiple_of(8)) {
        return Err(Malformed::BadHeader);
    }
    match (u16::try_from(start), u16::try_from(start + payload)) {
        (Ok(start), Ok(end)) => Ok(Some(Fragment { start, end, more })),
        _ => Err(Malformed::BadHeader),
    }
}

/// Addresses that a router does not forward (RFC 1812 section 5.3.7, RFC 3927 section 2.7).
fn is_martian(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [0 | 127 | 224..=255, ..] | [169, 254, ..])
}

fn parse_transport(bytes: &[u8], protocol: Protocol, fragmented: bool) -> Result<Transport, Malformed> {
    let payload = &bytes[IP_HEADER..];
    match protocol {
        Protocol::TCP => parse_tcp(payload).map(Transport::Tcp),
        Protocol::UDP => {
            let udp = UdpPacket::new(payload).ok_or(Malformed::Truncated)?;
            let length = usize::from(udp.get_length());
            if length < UDP_HEADER {
                return Err(Malformed::BadHeader);
            }
            // Less than the payload is allowed: UDP options live behind (RFC 9868).
            if length > payload.len() && !fragmented {
                return Err(Malformed::Truncated);
            }
            Ok(Transport::Udp { source: udp.get_source(), destination: udp.get_destination() })
        }
        Protocol::ICMP => parse_icmp(bytes, fragmented),
        _ => Ok(Transport::Other),
    }
}

fn parse_tcp(payload: &[u8]) -> Result<TcpSegment, Malformed> {
    let tcp = TcpPacket::new(payload).ok_or(Malformed::Truncated)?;
    let header_length = usize::from(tcp.get_data_offset()) * 4;
    if header_length < TCP_HEADER {
        return Err(Malformed::BadHeader);
    }
    if header_length > payload.len() {
        return Err(Malformed::Truncated);
    }
    let flags = tcp.get_flags();
    let (syn, fin) = (flags & TcpFlags::SYN != 0, flags & TcpFlags::FIN != 0);
    let (rst, ack) = (flags & TcpFlags::RST != 0, flags & TcpFlags::ACK != 0);
    if !(syn || fin || rst || ack) || (syn && (fin || rst)) || (fin && !ack) {
        return Err(Malformed::BadFlags);
    }
    let (window_scale, mss_at) =
        if syn { syn_options(&payload[TCP_HEADER..header_length]) } else { (None, None) };
    // An IPv4 packet is shorter than 2^16.
    #[expect(clippy::cast_possible_truncation)]
    let data = (payload.len() - header_length) as u32;
    Ok(TcpSegment {
        source: tcp.get_source(),
        destination: tcp.get_destination(),
        sequence: tcp.get_sequence(),
        acknowledgement: if ack { tcp.get_acknowledgement() } else { 0 },
        window: tcp.get_window(),
        flags,
        length: data + u32::from(syn) + u32::from(fin),
        window_scale,
        mss_at,
    })
}

/// The window scale, and where in the packet the value of the MSS option is. Stops at what it cannot read.
fn syn_options(mut options: &[u8]) -> (Option<u8>, Option<usize>) {
    let (mut scale, mut mss_at) = (None, None);
    let total = options.len();
    while let [kind, rest @ ..] = options {
        if *kind == TcpOptionNumbers::EOL.0 {
            break;
        }
        if *kind == TcpOptionNumbers::NOP.0 {
            options = rest;
            continue;
        }
        let Some(&length) = rest.first() else { break };
        let length = usize::from(length);
        if length < 2 || length > options.len() {
            break;
        }
        if *kind == TcpOptionNumbers::WSCALE.0 && length == 3 {
            scale = Some(options[2].min(MAX_WINDOW_SCALE));
        } else if *kind == TcpOptionNumbers::MSS.0 && length == 4 {
            mss_at = Some(IP_HEADER + TCP_HEADER + total - options.len() + 2);
        }
        options = &options[length..];
    }
    (scale, mss_at)
}

fn parse_icmp(bytes: &[u8], fragmented: bool) -> Result<Transport, Malformed> {
    let message = &bytes[IP_HEADER..];
    let [kind, _, _, _, id_high, id_low, _, _, ..] = *message else {
        return Err(Malformed::Truncated);
    };
    if !fragmented && checksum::sum(message) != 0xffff {
        return Err(Malformed::BadChecksum);
    }
    let identifier = u16::from_be_bytes([id_high, id_low]);
    match kind {
        kind if is_query(kind) => Ok(Transport::Query { identifier }),
        3 | 11 | 12 if fragmented => Err(Malformed::Truncated),
        3 | 11 | 12 => parse_embedded(bytes).map(Transport::Error),
        _ => Err(Malformed::IcmpType),
    }
}

/// Messages with an identifier after the checksum, and their replies: echo, timestamp, information, address mask
/// (RFC 792, RFC 950), domain name (RFC 1788), extended echo (RFC 8335).
const fn is_query(kind: u8) -> bool {
    matches!(kind, 0 | 8 | 13..=18 | 37 | 38 | 42 | 43)
}

/// Reads the packet that an ICMP error quotes: its header, options included, and eight bytes of its payload
/// (RFC 792). Its checksums are not verified; a router on the way may have changed it.
fn parse_embedded(bytes: &[u8]) -> Result<Embedded, Malformed> {
    let at = IP_HEADER + ICMP_HEADER;
    let quoted = bytes.get(at..).unwrap_or_default();
    let ip = Ipv4Packet::new(quoted).ok_or(Malformed::Truncated)?;
    let header_length = usize::from(ip.get_header_length()) * 4;
    if ip.get_version() != 4 || header_length < IP_HEADER {
        return Err(Malformed::BadHeader);
    }
    // The ports are in the first fragment only.
    if ip.get_fragment_offset() != 0 {
        return Err(Malformed::BadHeader);
    }
    let head = quoted.get(header_length..header_length + 8).ok_or(Malformed::Truncated)?;
    let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let protocol = Protocol(ip.get_next_level_protocol().0);
    let (source, destination) = match protocol {
        Protocol::TCP | Protocol::UDP => (word(0), word(2)),
        // Only a query has a session.
        Protocol::ICMP => match head[0] {
            kind if is_query(kind) => (word(4), word(4)),
            _ => return Err(Malformed::IcmpType),
        },
        _ => (0, 0),
    };
    Ok(Embedded {
        tuple: FiveTuple {
            protocol,
            source: Endpoint::new(ip.get_source(), source),
            destination: Endpoint::new(ip.get_destination(), destination),
        },
        transport_at: at + header_length,
    })
}

/// Bytes of a header without options.
pub(super) const IP_HEADER: usize = Ipv4Packet::minimum_packet_size();
pub(super) const TCP_HEADER: usize = TcpPacket::minimum_packet_size();
pub(super) const UDP_HEADER: usize = UdpPacket::minimum_packet_size();
pub(super) const ICMP_HEADER: usize = 8;

/// Of the three flag bits of an IPv4 header.
pub(super) const DONT_FRAGMENT: u8 = 0b010;
pub(super) const MORE_FRAGMENTS: u8 = 0b001;

/// RFC 7323 section 2.3.
const MAX_WINDOW_SCALE: u8 = 14;
