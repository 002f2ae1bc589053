//! What every datapath does with a frame: ask the engine, find the next hop, write the link-layer addresses.
//!
//! Owns the next hops and the counters. Knows nothing of where frames come from or how they are sent.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::Counters;
use super::af_packet::Port;
use super::next_hop::{Hop, Mac, NextHops};
use crate::nat::{Engine, Side, Verdict};
use crate::time::Instant;
use crate::wire::{Offload, Packet};

/// See the module.
pub struct Forwarding {
    pub next_hops: NextHops,
    pub counters: Counters,
    internal: Vec<Ipv4Net>,
}

/// What is to become of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// Send its first `length` bytes by `port`.
    Send { port: usize, length: usize, offload: Offload },
    /// The same, once the neighbour is found: [`NextHops::hold`] it.
    Hold { port: usize, gateway: Ipv4Addr, length: usize, offload: Offload },
    /// It has been dropped, or the engine has it.
    Nothing,
}

impl Forwarding {
    /// Between these interfaces, without any route yet.
    #[must_use]
    pub fn new(interfaces: Vec<u32>) -> Self {
        Self { next_hops: NextHops::new(interfaces), counters: Counters::default(), internal: Vec::new() }
    }

    /// Sets whose packets come from inside, which only the source address tells when there is one interface.
    pub fn set_internal(&mut self, internal: &[Ipv4Net]) {
        self.internal = Ipv4Net::aggregate(&internal.to_vec());
    }

    /// Passes a frame that came in by `port` to the engine, which translates it where it lies. `frame` begins with its
    /// Ethernet header.
    pub fn forward(
        &mut self,
        now: Instant,
        engine: &mut Engine,
        ports: &[Port],
        port: usize,
        frame: &mut [u8],
        offload: Offload,
    ) -> Forwarded {
        let Some((ethernet, bytes)) = frame.split_first_chunk_mut::<ETHERNET>() else {
            self.counters.receive_malformed += 1;
            return Forwarded::Nothing;
        };
        if ethernet[ETHERNET - 2..] != ETHERTYPE_IPV4 {
            self.counters.receive_malformed += 1;
            return Forwarded::Nothing;
        }
        // By the source on the external port, too: a client that hairpins to the private external address comes in
        // there, since the VPC has a route of its own to that.
        let side = if port > 0 { Side::Internal } else { side_of(&self.internal, bytes) };
        let mut packet = Packet { bytes, offload };
        let to = match engine.handle_packet(now, side, &mut packet) {
            Verdict::Forward => side.opposite(),
            Verdict::Hairpin => Side::Internal,
            Verdict::Queued | Verdict::Reply(_) | Verdict::Drop(_) => return Forwarded::Nothing,
        };
        let Some(destination) = destination_of(packet.bytes) else { return Forwarded::Nothing };
        let (length, offload) = (ETHERNET + packet.bytes.len(), packet.offload);
        let port = match to {
            Side::External => 0,
            Side::Internal => ports.len() - 1,
        };
        match self.next_hops.lookup(now, ports[port].index, destination) {
            Hop::Ready(mac) => {
                write_addresses(ethernet, mac, ports[port].mac);
                Forwarded::Send { port, length, offload }
            }
            Hop::Unresolved(gateway) => Forwarded::Hold { port, gateway, length, offload },
            Hop::Unreachable => {
                self.counters.unreachable_dropped += 1;
                Forwarded::Nothing
            }
        }
    }
}

/// The destination of an IPv4 packet.
pub fn destination_of(packet: &[u8]) -> Option<Ipv4Addr> {
    packet.get(16..20)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}

/// Writes the link-layer addresses into a frame that begins with its Ethernet header.
pub fn write_addresses(frame: &mut [u8], destination: Mac, source: Mac) {
    if let Some(head) = frame.first_chunk_mut::<ETHERNET>() {
        head[..6].copy_from_slice(&destination);
        head[6..12].copy_from_slice(&source);
    }
}

fn side_of(internal: &[Ipv4Net], packet: &[u8]) -> Side {
    let source = packet.get(12..16).and_then(|bytes| bytes.first_chunk::<4>());
    match source.map(|octets| Ipv4Addr::from(*octets)) {
        Some(source) if internal.iter().any(|prefix| prefix.contains(&source)) => Side::Internal,
        _ => Side::External,
    }
}

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
