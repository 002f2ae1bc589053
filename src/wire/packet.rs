//! A packet on its way through the engine, and how its headers are rewritten in place.

use std::net::Ipv4Addr;
use std::num::NonZeroU16;

use pnet_packet::ipv4::MutableIpv4Packet;
use pnet_packet::tcp::TcpFlags;
use pnet_packet::udp::UdpPacket;

use super::checksum::Adjustment;
use super::headers::{Embedded, Headers, IP_HEADER, MORE_FRAGMENTS, Transport, UDP_HEADER};
use super::{Endpoint, Protocol, checksum};

/// One IPv4 packet, borrowed from the datapath's buffer and rewritten there.
#[derive(Debug)]
pub struct Packet<'a> {
    /// The packet from the first byte of its IPv4 header. May be longer than the packet (link-layer padding)
    /// until [`super::Headers::parse`] has cut it to the header's total length.
    pub bytes: &'a mut [u8],
    /// What the sender left for the hardware to do.
    pub offload: Offload,
}

/// The part of a virtio-net header (virtio 1.2, 5.1.6) that the engine must know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The transport checksum covers the pseudo-header only and is not inverted; the sender expects the device
    /// to complete it (`VIRTIO_NET_HDR_F_NEEDS_CSUM`, Linux's `CHECKSUM_PARTIAL`).
    pub partial_checksum: bool,
    /// The packet is a super-frame that the device cuts into segments of this many bytes of payload
    /// (`gso_size`). `None`: it is one packet.
    pub segment_size: Option<NonZeroU16>,
}

impl<'a> Packet<'a> {
    /// A packet as it would be on a wire: complete checksums, no segmentation left to do.
    #[must_use]
    pub fn plain(bytes: &'a mut [u8]) -> Self {
        Self { bytes, offload: Offload::default() }
    }

    /// Puts new endpoints into the headers, takes one from the TTL, and updates the checksums incrementally.
    ///
    /// `headers` must have been parsed from this packet. Of a query, `identifier` is the new identifier and the
    /// endpoints' ports are ignored; it is ignored of all else.
    pub fn translate(&mut self, headers: &Headers, source: Endpoint, destination: Endpoint, identifier: u16) {
        let mut addresses = Adjustment::default();
        addresses.address(headers.source, source.address);
        addresses.address(headers.destination, destination.address);
        self.rewrite_ip(headers, addresses, source.address, destination.address);

        let mut change = addresses;
        match headers.transport {
            Transport::Tcp(tcp) => {
                change.word(tcp.source, source.port);
                change.word(tcp.destination, destination.port);
                put(self.bytes, IP_HEADER, source.port);
                put(self.bytes, IP_HEADER + 2, destination.port);
                let change = if self.offload.partial_checksum { addresses } else { change };
                update(self.bytes, IP_HEADER + TCP_CHECKSUM, change, self.offload.partial_checksum);
            }
            Transport::Udp { source: old_source, destination: old_destination } => {
                change.word(old_source, source.port);
                change.word(old_destination, destination.port);
                put(self.bytes, IP_HEADER, source.port);
                put(self.bytes, IP_HEADER + 2, destination.port);
                let at = IP_HEADER + UDP_CHECKSUM;
                if self.offload.partial_checksum {
                    update(self.bytes, at, addresses, true);
                } else {
                    update_udp(self.bytes, at, change);
                }
            }
            Transport::Query { identifier: old, .. } => {
                let mut change = Adjustment::default();
                change.word(old, identifier);
                put(self.bytes, IP_HEADER + ICMP_IDENTIFIER, identifier);
                update(self.bytes, IP_HEADER + ICMP_CHECKSUM, change, false);
            }
            Transport::Error(_) | Transport::Other | Transport::Later => {}
        }
    }

    /// Puts new endpoints into the packet that an ICMP error quotes, and new addresses into the error itself.
    /// The quoted checksums are updated as far as they are quoted; the error's own is computed anew.
    ///
    /// Of a quoted query, `identifier` is the new identifier and the endpoints' ports are ignored.
    pub fn translate_error(
        &mut self,
        headers: &Headers,
        embedded: &Embedded,
        (source, destination): (Ipv4Addr, Ipv4Addr),
        (quoted_source, quoted_destination): (Endpoint, Endpoint),
        identifier: u16,
    ) {
        let mut addresses = Adjustment::default();
        addresses.address(headers.source, source);
        addresses.address(headers.destination, destination);
        self.rewrite_ip(headers, addresses, source, destination);

        let old = embedded.tuple;
        let mut change = Adjustment::default();
        change.address(old.source.address, quoted_source.address);
        change.address(old.destination.address, quoted_destination.address);
        let at = IP_HEADER + super::headers::ICMP_HEADER;
        if let Some(mut quoted) = MutableIpv4Packet::new(&mut self.bytes[at..]) {
            quoted.set_source(quoted_source.address);
            quoted.set_destination(quoted_destination.address);
            quoted.set_checksum(change.apply(quoted.get_checksum()));
        }
        let at = embedded.transport_at;
        match old.protocol {
            Protocol::TCP | Protocol::UDP => {
                change.word(old.source.port, quoted_source.port);
                change.word(old.destination.port, quoted_destination.port);
                put(self.bytes, at, quoted_source.port);
                put(self.bytes, at + 2, quoted_destination.port);
                if old.protocol == Protocol::UDP {
                    update_udp(self.bytes, at + UDP_CHECKSUM, change);
                } else {
                    update(self.bytes, at + TCP_CHECKSUM, change, false);
                }
            }
            Protocol::ICMP => {
                let mut change = Adjustment::default();
                change.word(old.source.port, identifier);
                put(self.bytes, at + ICMP_IDENTIFIER, identifier);
                update(self.bytes, at + ICMP_CHECKSUM, change, false);
            }
            _ => {}
        }
        put(self.bytes, IP_HEADER + ICMP_CHECKSUM, 0);
        let checksum = checksum::checksum(&self.bytes[IP_HEADER..]);
        put(self.bytes, IP_HEADER + ICMP_CHECKSUM, checksum);
    }

    /// Gives the packet a new identification (RFC 791), updating the header's checksum.
    pub fn set_identification(&mut self, identification: u16) {
        let mut change = Adjustment::default();
        change.word(get(self.bytes, IDENTIFICATION), identification);
        put(self.bytes, IDENTIFICATION, identification);
        update(self.bytes, IP_CHECKSUM, change, false);
    }

    /// Lowers the MSS option of a SYN to `most` bytes if it is larger.
    pub fn clamp_mss(&mut self, headers: &Headers, most: u16) {
        let Transport::Tcp(tcp) = headers.transport else { return };
        let Some(at) = tcp.mss_at else { return };
        let old = get(self.bytes, at);
        if old <= most {
            return;
        }
        put(self.bytes, at, most);
        // A partial checksum does not cover the options yet.
        if !self.offload.partial_checksum {
            let mut change = Adjustment::default();
            // At an odd offset the two bytes belong to two words, which is the same as one word swapped
            // (RFC 1071 section 2 (B)).
            if at % 2 == 0 {
                change.word(old, most);
            } else {
                change.word(old.swap_bytes(), most.swap_bytes());
            }
            update(self.bytes, IP_HEADER + TCP_CHECKSUM, change, false);
        }
    }

    /// Bytes of the packet before its payload: the IPv4 header and the transport header.
    #[must_use]
    pub fn headers_length(&self, headers: &Headers) -> usize {
        match headers.transport {
            Transport::Tcp(tcp) => {
                let numbers = u32::from(tcp.has(TcpFlags::SYN)) + u32::from(tcp.has(TcpFlags::FIN));
                self.bytes.len().saturating_sub((tcp.length - numbers) as usize)
            }
            Transport::Udp { .. } => IP_HEADER + UDP_HEADER,
            _ => IP_HEADER,
        }
    }

    /// Makes the segments of a TCP super-frame small enough for `mtu`.
    pub fn lower_segment_size(&mut self, headers: &Headers, mtu: u16) {
        let most = usize::from(mtu).saturating_sub(self.headers_length(headers));
        let most = u16::try_from(most).ok().and_then(NonZeroU16::new);
        self.offload.segment_size =
            self.offload.segment_size.map(|size| most.map_or(size, |most| size.min(most)));
    }

    /// The datagrams that a UDP super-frame consists of, with complete checksums.
    #[must_use]
    pub fn udp_datagrams(&self) -> Vec<Vec<u8>> {
        let Some(size) = self.offload.segment_size else { return vec![self.bytes.to_vec()] };
        let (header, payload) = self.bytes.split_at(self.bytes.len().min(IP_HEADER + UDP_HEADER));
        let datagram = |data: &[u8]| {
            let mut bytes = [header, data].concat();
            // A part of a packet whose length fits in 16 bits.
            #[expect(clippy::cast_possible_truncation)]
            let (length, udp_length) = (bytes.len() as u16, (bytes.len() - IP_HEADER) as u16);
            put(&mut bytes, TOTAL_LENGTH, length);
            put(&mut bytes, IP_CHECKSUM, 0);
            let checksum = checksum::checksum(&bytes[..IP_HEADER]);
            put(&mut bytes, IP_CHECKSUM, checksum);
            put(&mut bytes, IP_HEADER + 4, udp_length);
            put(&mut bytes, IP_HEADER + UDP_CHECKSUM, 0);
            if let Some(udp) = UdpPacket::new(&bytes[IP_HEADER..]) {
                let ip = |at: usize| Ipv4Addr::from([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
                let checksum = pnet_packet::udp::ipv4_checksum(&udp, &ip(12), &ip(16));
                put(&mut bytes, IP_HEADER + UDP_CHECKSUM, if checksum == 0 { 0xffff } else { checksum });
            }
            bytes
        };
        payload.chunks(usize::from(size.get())).map(datagram).collect()
    }

    /// Completes a partial checksum in software, for a packet that the device will not see in one piece.
    pub fn complete_checksum(&mut self, headers: &Headers) {
        if !std::mem::take(&mut self.offload.partial_checksum) {
            return;
        }
        let at = IP_HEADER
            + match headers.transport {
                Transport::Tcp(_) => TCP_CHECKSUM,
                Transport::Udp { .. } => UDP_CHECKSUM,
                _ => return,
            };
        // The field holds the pseudo-header's sum, so that it adds itself.
        let checksum = checksum::checksum(&self.bytes[IP_HEADER..]);
        let udp = matches!(headers.transport, Transport::Udp { .. });
        put(self.bytes, at, if udp && checksum == 0 { 0xffff } else { checksum });
    }

    fn rewrite_ip(
        &mut self,
        headers: &Headers,
        mut change: Adjustment,
        source: Ipv4Addr,
        destination: Ipv4Addr,
    ) {
        let ttl = headers.ttl.saturating_sub(1);
        let protocol = headers.protocol.0;
        change.word(u16::from_be_bytes([headers.ttl, protocol]), u16::from_be_bytes([ttl, protocol]));
        if let Some(mut ip) = MutableIpv4Packet::new(self.bytes) {
            ip.set_ttl(ttl);
            ip.set_source(source);
            ip.set_destination(destination);
            ip.set_checksum(change.apply(ip.get_checksum()));
        }
    }
}

/// Cuts `packet`, a whole datagram or a fragment with a complete checksum, into fragments of at most `mtu` bytes
/// (RFC 791 section 3.2). Empty if `mtu` cannot hold a header and eight bytes.
#[must_use]
pub fn fragments(packet: &[u8], mtu: u16) -> Vec<Vec<u8>> {
    let most = usize::from(mtu).saturating_sub(IP_HEADER) & !7;
    if most == 0 || packet.len() < IP_HEADER {
        return Vec::new();
    }
    let (header, payload) = packet.split_at(IP_HEADER);
    let field = get(header, FRAGMENT);
    let (offset, more) = (field & OFFSET_MASK, field & FLAG_MORE != 0);
    let last = payload.len().div_ceil(most).saturating_sub(1);
    let piece = |(index, data): (usize, &[u8])| {
        let mut bytes = [header, data].concat();
        // Both fit in 16 bits: they are parts of a packet whose length does.
        #[expect(clippy::cast_possible_truncation)]
        let (length, units) = (bytes.len() as u16, (index * most / 8) as u16);
        let flags = if more || index < last { FLAG_MORE } else { 0 };
        put(&mut bytes, TOTAL_LENGTH, length);
        put(&mut bytes, FRAGMENT, flags | (offset + units));
        put(&mut bytes, IP_CHECKSUM, 0);
        let checksum = checksum::checksum(&bytes[..IP_HEADER]);
        put(&mut bytes, IP_CHECKSUM, checksum);
        bytes
    };
    payload.chunks(most).enumerate().map(piece).collect()
}

fn get(bytes: &[u8], at: usize) -> u16 {
    match bytes.get(at..at + 2) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]),
        _ => 0,
    }
}

/// Writes where there is something to write to: a quoted header may end early.
fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

fn update(bytes: &mut [u8], at: usize, change: Adjustment, partial: bool) {
    let old = get(bytes, at);
    put(bytes, at, if partial { change.apply_to_sum(old) } else { change.apply(old) });
}

/// As [`update`], but 0 means that there is no checksum (RFC 768): it stays 0, and none becomes 0.
fn update_udp(bytes: &mut [u8], at: usize, change: Adjustment) {
    let old = get(bytes, at);
    if old != 0 {
        let new = change.apply(old);
        put(bytes, at, if new == 0 { 0xffff } else { new });
    }
}

/// Offsets of fields in the IPv4 header.
const TOTAL_LENGTH: usize = 2;
const IDENTIFICATION: usize = 4;
const FRAGMENT: usize = 6;
const IP_CHECKSUM: usize = 10;
/// Offsets of fields in the transport headers.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const ICMP_CHECKSUM: usize = 2;
const ICMP_IDENTIFIER: usize = 4;

const FLAG_MORE: u16 = (MORE_FRAGMENTS as u16) << 13;
const OFFSET_MASK: u16 = 0x1fff;
