//! A builder of packets. All checksums are right unless a test breaks them afterwards.

use std::net::Ipv4Addr;

use egret::wire::Endpoint;
use pnet_packet::ip::IpNextHeaderProtocol;
use pnet_packet::ipv4::MutableIpv4Packet;
use pnet_packet::util;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;

/// Whatever names an endpoint in a test: `"10.0.0.2:4000"`, a pair, or an [`Endpoint`].
pub trait EndpointLike {
    fn endpoint(self) -> Endpoint;
}

impl EndpointLike for Endpoint {
    fn endpoint(self) -> Endpoint {
        self
    }
}

impl EndpointLike for &str {
    fn endpoint(self) -> Endpoint {
        let (address, port) = self.split_once(':').unwrap_or((self, "0"));
        Endpoint::new(address.parse().expect("an address"), port.parse().expect("a port"))
    }
}

impl EndpointLike for (Ipv4Addr, u16) {
    fn endpoint(self) -> Endpoint {
        Endpoint::new(self.0, self.1)
    }
}

impl EndpointLike for Ipv4Addr {
    fn endpoint(self) -> Endpoint {
        Endpoint::new(self, 0)
    }
}

pub fn ep(text: impl EndpointLike) -> Endpoint {
    text.endpoint()
}

pub fn ip(text: &str) -> Ipv4Addr {
    text.parse().expect("an address")
}

/// Whatever can be handed to the NAT as a packet.
pub trait PacketLike {
    fn into_packet(self) -> Vec<u8>;
}

impl PacketLike for Build {
    fn into_packet(self) -> Vec<u8> {
        self.bytes()
    }
}

impl PacketLike for Vec<u8> {
    fn into_packet(self) -> Vec<u8> {
        self
    }
}

impl PacketLike for &Vec<u8> {
    fn into_packet(self) -> Vec<u8> {
        self.clone()
    }
}

#[derive(Clone, Debug)]
enum Body {
    Udp { zero_checksum: bool },
    Tcp { flags: u8, seq: u32, ack: u32, window: u16, options: Vec<u8> },
    Icmp { kind: u8, code: u8, rest: [u8; 4] },
    Other(u8),
}

/// A packet to be.
#[derive(Clone, Debug)]
pub struct Build {
    source: Endpoint,
    destination: Endpoint,
    body: Body,
    payload: Vec<u8>,
    ttl: u8,
    tos: u8,
    id: u16,
    df: bool,
    ip_options: Vec<u8>,
}

impl Build {
    fn new(source: Endpoint, destination: Endpoint, body: Body) -> Self {
        let (payload, ip_options) = (Vec::new(), Vec::new());
        Self { source, destination, body, payload, ttl: 64, tos: 0, id: 0x1234, df: false, ip_options }
    }

    pub fn payload(mut self, payload: impl AsRef<[u8]>) -> Self {
        self.payload = payload.as_ref().to_vec();
        self
    }

    /// A payload of `length` bytes that are not all alike.
    pub fn filled(self, length: usize) -> Self {
        self.payload((0..length).map(|i| (i * 7 + i / 251).to_le_bytes()[0]).collect::<Vec<u8>>())
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    pub fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    pub fn df(mut self) -> Self {
        self.df = true;
        self
    }

    /// Options of the IP header; a multiple of 4 bytes.
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        assert!(options.len().is_multiple_of(4) && options.len() <= 40);
        self.ip_options = options.to_vec();
        self
    }

    /// UDP without a checksum.
    pub fn no_checksum(mut self) -> Self {
        self.body = Body::Udp { zero_checksum: true };
        self
    }

    pub fn seq(mut self, value: u32) -> Self {
        if let Body::Tcp { seq, .. } = &mut self.body {
            *seq = value;
        }
        self
    }

    pub fn ack(mut self, value: u32) -> Self {
        if let Body::Tcp { ack, .. } = &mut self.body {
            *ack = value;
        }
        self
    }

    pub fn window(mut self, value: u16) -> Self {
        if let Body::Tcp { window, .. } = &mut self.body {
            *window = value;
        }
        self
    }

    /// Options of the TCP header; a multiple of 4 bytes.
    pub fn tcp_options(mut self, value: &[u8]) -> Self {
        assert!(value.len().is_multiple_of(4) && value.len() <= 40);
        if let Body::Tcp { options, .. } = &mut self.body {
            *options = value.to_vec();
        }
        self
    }

    /// The packet.
    pub fn bytes(&self) -> Vec<u8> {
        let (protocol, transport) = self.transport();
        ip_packet(self, protocol, &transport)
    }

    fn transport(&self) -> (u8, Vec<u8>) {
        let mut out = Vec::new();
        match &self.body {
            Body::Udp { zero_checksum } => {
                out.extend(self.source.port.to_be_bytes());
                out.extend(self.destination.port.to_be_bytes());
                out.extend(u16::try_from(8 + self.payload.len()).expect("fits").to_be_bytes());
                out.extend([0, 0]);
                out.extend(&self.payload);
                if !zero_checksum {
                    let sum = match self.pseudo_checksum(17, &out, 3) {
                        0 => 0xffff,
                        sum => sum,
                    };
                    out[6..8].copy_from_slice(&sum.to_be_bytes());
                }
                (17, out)
            }
            Body::Tcp { flags, seq, ack, window, options } => {
                out.extend(self.source.port.to_be_bytes());
                out.extend(self.destination.port.to_be_bytes());
                out.extend(seq.to_be_bytes());
                out.extend(ack.to_be_bytes());
                out.push(u8::try_from((5 + options.len() / 4) << 4).expect("fits"));
                out.push(*flags);
                out.extend(window.to_be_bytes());
                out.extend([0, 0, 0, 0]);
                out.extend(options);
                out.extend(&self.payload);
                let sum = self.pseudo_checksum(6, &out, 8);
                out[16..18].copy_from_slice(&sum.to_be_bytes());
                (6, out)
            }
            Body::Icmp { kind, code, rest } => {
                out.extend([*kind, *code, 0, 0]);
                out.extend(rest);
                out.extend(&self.payload);
                let sum = util::checksum(&out, 1);
                out[2..4].copy_from_slice(&sum.to_be_bytes());
                (1, out)
            }
            Body::Other(protocol) => (*protocol, self.payload.clone()),
        }
    }

    fn pseudo_checksum(&self, protocol: u8, transport: &[u8], skip_word: usize) -> u16 {
        let protocol = IpNextHeaderProtocol::new(protocol);
        let (source, destination) = (self.source.address, self.destination.address);
        util::ipv4_checksum(transport, skip_word, &[], &source, &destination, protocol)
    }
}

/// A UDP packet with a payload of 4 bytes.
pub fn udp(source: impl EndpointLike, destination: impl EndpointLike) -> Build {
    let body = Body::Udp { zero_checksum: false };
    Build::new(source.endpoint(), destination.endpoint(), body).payload(b"data")
}

/// A TCP segment without payload; sequence number 1000, acknowledgement 2000 if ACK is set, window 8192.
pub fn tcp(source: impl EndpointLike, destination: impl EndpointLike, flags: u8) -> Build {
    let ack = if flags & ACK == 0 { 0 } else { 2000 };
    let body = Body::Tcp { flags, seq: 1000, ack, window: 8192, options: Vec::new() };
    Build::new(source.endpoint(), destination.endpoint(), body)
}

/// Any ICMP message.
pub fn icmp(
    source: impl EndpointLike,
    destination: impl EndpointLike,
    kind: u8,
    code: u8,
    rest: [u8; 4],
) -> Build {
    Build::new(source.endpoint(), destination.endpoint(), Body::Icmp { kind, code, rest })
}

/// An echo request.
pub fn ping(source: impl EndpointLike, destination: impl EndpointLike, identifier: u16) -> Build {
    let [a, b] = identifier.to_be_bytes();
    icmp(source, destination, 8, 0, [a, b, 0, 1]).payload(b"abcdefgh")
}

/// An echo reply.
pub fn pong(source: impl EndpointLike, destination: impl EndpointLike, identifier: u16) -> Build {
    let [a, b] = identifier.to_be_bytes();
    icmp(source, destination, 0, 0, [a, b, 0, 1]).payload(b"abcdefgh")
}

/// An ICMP error about `embedded` (the offending packet as its reporter saw it, all of it).
pub fn icmp_error(
    source: impl EndpointLike,
    destination: impl EndpointLike,
    (kind, code): (u8, u8),
    embedded: &[u8],
) -> Build {
    icmp(source, destination, kind, code, [0; 4]).payload(embedded)
}

/// A packet of another IP protocol.
pub fn other(source: impl EndpointLike, destination: impl EndpointLike, protocol: u8) -> Build {
    Build::new(source.endpoint(), destination.endpoint(), Body::Other(protocol)).payload(b"payload")
}

/// The fragments of `packet`, each with at most `size` bytes of payload (a multiple of 8).
pub fn fragment(packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    assert!(size.is_multiple_of(8));
    let header_length = usize::from(packet[0] & 15) * 4;
    let payload = &packet[header_length..];
    let last = payload.chunks(size).len() - 1;
    payload
        .chunks(size)
        .enumerate()
        .map(|(index, chunk)| {
            let mut bytes = packet[..header_length].to_vec();
            bytes.extend(chunk);
            let length = u16::try_from(bytes.len()).expect("fits");
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            let more = u16::from(index < last) << 13;
            let offset = u16::try_from(index * size / 8).expect("fits");
            bytes[6..8].copy_from_slice(&(more | offset).to_be_bytes());
            finish_ip(&mut bytes);
            bytes
        })
        .collect()
}

fn ip_packet(build: &Build, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let header_length = 20 + build.ip_options.len();
    let mut bytes = vec![0; header_length + transport.len()];
    let length = u16::try_from(bytes.len()).expect("an IP packet has at most 65535 bytes");
    bytes[20..header_length].copy_from_slice(&build.ip_options);
    bytes[header_length..].copy_from_slice(transport);
    let mut view = MutableIpv4Packet::new(&mut bytes).expect("a header's length");
    view.set_version(4);
    view.set_header_length(u8::try_from(header_length / 4).expect("fits"));
    view.set_total_length(length);
    view.set_identification(build.id);
    view.set_flags(if build.df { 2 } else { 0 });
    view.set_ttl(build.ttl);
    view.set_next_level_protocol(IpNextHeaderProtocol::new(protocol));
    view.set_source(build.source.address);
    view.set_destination(build.destination.address);
    bytes[1] = build.tos;
    finish_ip(&mut bytes);
    bytes
}

fn finish_ip(bytes: &mut [u8]) {
    let header_length = usize::from(bytes[0] & 15) * 4;
    let sum = util::checksum(&bytes[..header_length], 5);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
}
