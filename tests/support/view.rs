//! A strict reader of packets: every length must fit and every checksum is computed from scratch.

use egret::wire::{Endpoint, Protocol};
use pnet_packet::Packet as _;
use pnet_packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols};
use pnet_packet::ipv4::{self, Ipv4Packet};
use pnet_packet::tcp::TcpPacket;
use pnet_packet::udp::UdpPacket;
use pnet_packet::util;

/// A packet that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub bytes: Vec<u8>,
    pub protocol: Protocol,
    /// The port is 0 in fragments but the first, in ICMP (see `icmp`) and in other protocols.
    pub source: Endpoint,
    pub destination: Endpoint,
    pub ttl: u8,
    pub tos: u8,
    pub id: u16,
    pub df: bool,
    pub more_fragments: bool,
    /// In bytes.
    pub fragment_offset: usize,
    pub tcp: Option<Tcp>,
    pub icmp: Option<Icmp>,
    /// What follows the transport header (for later fragments and other protocols: the IP header).
    pub payload: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    pub options: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    pub rest: [u8; 4],
}

impl Icmp {
    /// The identifier of a query.
    pub fn identifier(&self) -> u16 {
        u16::from_be_bytes([self.rest[0], self.rest[1]])
    }

    /// The next hop's MTU of a "fragmentation needed".
    pub fn mtu(&self) -> u16 {
        u16::from_be_bytes([self.rest[2], self.rest[3]])
    }
}

impl View {
    /// The type and code of an ICMP message.
    pub fn icmp_kind(&self) -> (u8, u8) {
        let icmp = self.icmp.as_ref().expect("an ICMP message");
        (icmp.kind, icmp.code)
    }

    pub fn identifier(&self) -> u16 {
        self.icmp.as_ref().expect("an ICMP message").identifier()
    }

    pub fn flags(&self) -> u8 {
        self.tcp.as_ref().expect("a TCP segment").flags
    }

    /// The source and destination endpoints of the packet in an ICMP error; ICMP identifiers count as the
    /// source's port. The embedded IP header's checksum is checked.
    pub fn embedded(&self) -> (Endpoint, Endpoint) {
        assert!(self.icmp.is_some(), "an ICMP error");
        let inner = &self.payload;
        let header = Ipv4Packet::new(inner).expect("an embedded header");
        let length = usize::from(header.get_header_length()) * 4;
        assert_eq!(header.get_checksum(), util::checksum(&inner[..length], 5), "embedded IP header checksum");
        let transport = &inner[length..];
        let (source_port, destination_port) = match header.get_next_level_protocol() {
            IpNextHeaderProtocols::Tcp | IpNextHeaderProtocols::Udp => (word(transport, 0), word(transport, 2)),
            IpNextHeaderProtocols::Icmp => (word(transport, 4), 0),
            _ => (0, 0),
        };
        (
            Endpoint::new(header.get_source(), source_port),
            Endpoint::new(header.get_destination(), destination_port),
        )
    }
}

/// Reads a packet.
///
/// # Panics
/// If anything about it is wrong.
pub fn view(bytes: &[u8]) -> View {
    let view = read(bytes).unwrap_or_else(|complaint| panic!("{complaint}: {bytes:02x?}"));
    if let Some(complaint) = checksum_complaint(bytes) {
        panic!("{complaint}: {bytes:02x?}");
    }
    view
}

/// What is wrong with the packet's checksums, computed from scratch; `None` if nothing is. The transport
/// checksum of a fragment cannot be told.
pub fn checksum_complaint(bytes: &[u8]) -> Option<&'static str> {
    let packet = Ipv4Packet::new(bytes)?;
    if packet.get_checksum() != ipv4::checksum(&packet) {
        return Some("IP header checksum");
    }
    if packet.get_fragment_offset() != 0 || packet.get_flags() & 1 != 0 {
        return None;
    }
    let transport = &bytes[usize::from(packet.get_header_length()) * 4..];
    let pseudo = |protocol: IpNextHeaderProtocol, data: &[u8], skip| {
        util::ipv4_checksum(data, skip, &[], &packet.get_source(), &packet.get_destination(), protocol)
    };
    match packet.get_next_level_protocol() {
        protocol @ IpNextHeaderProtocols::Udp => {
            let length = usize::from(word(transport, 4)).min(transport.len());
            let (found, computed) = (word(transport, 6), pseudo(protocol, &transport[..length], 3));
            let computed = if computed == 0 { 0xffff } else { computed };
            (found != 0 && found != computed).then_some("UDP checksum")
        }
        protocol @ IpNextHeaderProtocols::Tcp => {
            (word(transport, 16) != pseudo(protocol, transport, 8)).then_some("TCP checksum")
        }
        IpNextHeaderProtocols::Icmp => {
            (word(transport, 2) != util::checksum(transport, 1)).then_some("ICMP checksum")
        }
        _ => None,
    }
}

/// Puts the fragments of one datagram together.
///
/// # Panics
/// If they do not fit seamlessly or are not of one datagram.
pub fn reassemble(fragments: &[Vec<u8>]) -> View {
    let mut views: Vec<View> = fragments.iter().map(|bytes| view(bytes)).collect();
    views.sort_by_key(|view| view.fragment_offset);
    let first = views.first().expect("a fragment").clone();
    let header_length = usize::from(first.bytes[0] & 15) * 4;
    let mut bytes = first.bytes[..header_length].to_vec();
    let mut end = 0;
    for (index, part) in views.iter().enumerate() {
        assert_eq!(part.fragment_offset, end, "a hole or an overlap");
        assert_eq!(part.more_fragments, index + 1 < views.len(), "more-fragments flag");
        assert_eq!((part.id, part.protocol), (first.id, first.protocol));
        assert_eq!(part.source.address, first.source.address);
        assert_eq!(part.destination.address, first.destination.address);
        bytes.extend(&part.bytes[header_length..]);
        end += part.bytes.len() - header_length;
    }
    let length = u16::try_from(bytes.len()).expect("fits");
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes[6..8].copy_from_slice(&[0, 0]);
    bytes[10..12].copy_from_slice(&[0, 0]);
    let sum = util::checksum(&bytes[..header_length], 5);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    view(&bytes)
}

fn read(bytes: &[u8]) -> Result<View, &'static str> {
    let packet = Ipv4Packet::new(bytes).ok_or("shorter than an IP header")?;
    let header_length = usize::from(packet.get_header_length()) * 4;
    if packet.get_version() != 4 || header_length < 20 || header_length > bytes.len() {
        return Err("IP version or header length");
    }
    if usize::from(packet.get_total_length()) != bytes.len() {
        return Err("IP total length is not the packet's");
    }
    let transport = &bytes[header_length..];
    let fragment_offset = usize::from(packet.get_fragment_offset()) * 8;
    let more_fragments = packet.get_flags() & 1 != 0;
    let mut view = View {
        bytes: bytes.to_vec(),
        protocol: Protocol(packet.get_next_level_protocol().0),
        source: Endpoint::new(packet.get_source(), 0),
        destination: Endpoint::new(packet.get_destination(), 0),
        ttl: packet.get_ttl(),
        tos: bytes[1],
        id: packet.get_identification(),
        df: packet.get_flags() & 2 != 0,
        more_fragments,
        fragment_offset,
        tcp: None,
        icmp: None,
        payload: transport.to_vec(),
    };
    if fragment_offset == 0 {
        read_transport(&mut view, transport)?;
    }
    Ok(view)
}

fn read_transport(view: &mut View, transport: &[u8]) -> Result<(), &'static str> {
    match view.protocol {
        Protocol::UDP => {
            let udp = UdpPacket::new(transport).ok_or("shorter than a UDP header")?;
            let length = usize::from(udp.get_length());
            if !view.more_fragments && !(8..=transport.len()).contains(&length) {
                return Err("UDP length");
            }
            view.source.port = udp.get_source();
            view.destination.port = udp.get_destination();
            view.payload = transport[8..length.min(transport.len())].to_vec();
        }
        Protocol::TCP => {
            let tcp = TcpPacket::new(transport).ok_or("shorter than a TCP header")?;
            let length = usize::from(tcp.get_data_offset()) * 4;
            if length < 20 || length > transport.len() {
                return Err("TCP data offset");
            }
            view.source.port = tcp.get_source();
            view.destination.port = tcp.get_destination();
            view.tcp = Some(Tcp {
                flags: tcp.get_flags(),
                seq: tcp.get_sequence(),
                ack: tcp.get_acknowledgement(),
                window: tcp.get_window(),
                options: tcp.get_options_raw().to_vec(),
            });
            view.payload = tcp.payload().to_vec();
        }
        Protocol::ICMP => {
            if transport.len() < 8 {
                return Err("shorter than an ICMP header");
            }
            let rest = [transport[4], transport[5], transport[6], transport[7]];
            view.icmp = Some(Icmp { kind: transport[0], code: transport[1], rest });
            view.payload = transport[8..].to_vec();
        }
        _ => {}
    }
    Ok(())
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
