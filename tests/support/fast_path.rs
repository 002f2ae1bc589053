//! What a fast path has to do, and one as plain code: what any implementation of it has to do, packet by packet. It
//! shares nothing with the engine but the types of their interface.

use std::collections::HashMap;

use egret::nat::{Config, Flow, FlowKeys, FlowPair, Side, TcpMarks, Traffic, Usage};
use egret::time::Instant;
use egret::wire::{Endpoint, FiveTuple, Protocol};

use super::{ACK, FIN, RST, SYN};

/// Any fast path.
pub trait Carrier {
    /// The engine's configuration is this from now on.
    fn configure(&mut self, _config: &Config) {}

    /// The next packet comes in by the interface of `side`. Gives from which side an engine alone has it; `None` if it
    /// is not NAT's, and does not come to [`Self::translate`].
    fn admit(&mut self, side: Side, _packet: &[u8]) -> Option<Side> {
        Some(side)
    }

    /// The packet as it leaves, and the side; `None` if it is the engine's.
    fn translate(&mut self, now: Instant, side: Side, frame: &[u8]) -> Option<(Side, Vec<u8>)>;

    /// Says whether there was room.
    fn install(&mut self, now: Instant, pair: FlowPair) -> bool;

    fn usage(&self, keys: FlowKeys) -> (Option<Usage>, Option<Usage>);

    fn remove(&mut self, keys: FlowKeys) -> (Option<Usage>, Option<Usage>);

    /// How many flows it holds.
    fn len(&self) -> usize;

    /// How many flows it has room for from now on.
    fn set_room(&mut self, flows: usize);

    /// What it has translated: out, back, hairpinned.
    fn traffic(&self) -> [Traffic; 3];
}

/// See the module.
#[derive(Debug)]
pub struct FastPath {
    flows: HashMap<FiveTuple, (Flow, Usage)>,
    /// How many flows it holds; the engine's are refused beyond.
    pub capacity: usize,
    pub out_to_external: Traffic,
    pub out_to_internal: Traffic,
    pub hairpinned: Traffic,
    /// Pairs that it has been given and has had room for.
    pub installed: u64,
}

impl Default for FastPath {
    fn default() -> Self {
        Self {
            flows: HashMap::new(),
            capacity: usize::MAX,
            out_to_external: Traffic::default(),
            out_to_internal: Traffic::default(),
            hairpinned: Traffic::default(),
            installed: 0,
        }
    }
}

impl Carrier for FastPath {
    /// # Panics
    /// If there is such a flow already: the engine has forgotten one.
    fn install(&mut self, now: Instant, pair: FlowPair) -> bool {
        if self.flows.len() + 2 > self.capacity {
            return false;
        }
        for flow in [pair.out, pair.back] {
            let usage = Usage { last_use: now, marks: flow.marks, ..Usage::default() };
            let before = self.flows.insert(flow.matches, (flow, usage));
            assert!(before.is_none(), "{:?} is carried already", flow.matches);
        }
        self.installed += 1;
        true
    }

    fn usage(&self, keys: FlowKeys) -> (Option<Usage>, Option<Usage>) {
        let usage = |key| self.flows.get(key).map(|&(_, usage)| usage);
        (usage(&keys.out), usage(&keys.back))
    }

    fn remove(&mut self, keys: FlowKeys) -> (Option<Usage>, Option<Usage>) {
        let mut usage = |key| self.flows.remove(key).map(|(_, usage)| usage);
        (usage(&keys.out), usage(&keys.back))
    }

    fn len(&self) -> usize {
        self.flows.len()
    }

    fn translate(&mut self, now: Instant, side: Side, frame: &[u8]) -> Option<(Side, Vec<u8>)> {
        // IPv4 without options, whole, with a right checksum and a TTL to take from.
        if frame.len() < 20 || frame[0] != 0x45 || fold(sum(&frame[..20])) != 0xffff {
            return None;
        }
        let length = usize::from(word(frame, 2));
        if length < 20 || length > frame.len() || word(frame, 6) & 0x3fff != 0 || frame[8] <= 1 {
            return None;
        }
        let packet = &frame[..length];
        let protocol = Protocol(packet[9]);
        let sent = match protocol {
            Protocol::TCP => Some(plain_segment(packet)?),
            Protocol::UDP => {
                let claimed = usize::from(packet.get(24..26).map(|bytes| word(bytes, 0))?);
                if length < 28 || claimed < 8 || claimed > length - 20 {
                    return None;
                }
                None
            }
            _ => return None,
        };
        let matches =
            FiveTuple { protocol, source: endpoint(packet, 12, 20), destination: endpoint(packet, 16, 22) };
        let (flow, usage) = self.flows.get_mut(&matches)?;
        if flow.from != side || length > usize::from(flow.mtu) {
            return None;
        }
        if let Some(sent) = sent {
            follow(&mut usage.marks, sent);
        }
        usage.packets += 1;
        usage.bytes += length as u64;
        usage.last_use = now;
        let traffic = match (flow.from, flow.to) {
            (Side::Internal, Side::External) => &mut self.out_to_external,
            (Side::External, Side::Internal) => &mut self.out_to_internal,
            (Side::Internal, Side::Internal) => &mut self.hairpinned,
            (Side::External, Side::External) => panic!("from outside to outside"),
        };
        traffic.add(length);
        Some((flow.to, rewritten(packet, flow)))
    }

    fn set_room(&mut self, flows: usize) {
        self.capacity = flows;
    }

    fn traffic(&self) -> [Traffic; 3] {
        [self.out_to_external, self.out_to_internal, self.hairpinned]
    }
}

/// The marks of a segment that is data or an acknowledgement and nothing else.
fn plain_segment(packet: &[u8]) -> Option<TcpMarks> {
    let tcp = packet.get(20..).filter(|tcp| tcp.len() >= 20)?;
    let header = usize::from(tcp[12] >> 4) * 4;
    if header < 20 || header > tcp.len() || tcp[13] & (SYN | FIN | RST | ACK) != ACK {
        return None;
    }
    let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let end = number(4).wrapping_add((tcp.len() - header) as u32);
    Some(TcpMarks { end, acknowledged: number(8), window: word(tcp, 14) })
}

fn follow(marks: &mut TcpMarks, sent: TcpMarks) {
    if sent.end.wrapping_sub(marks.end).cast_signed() > 0 {
        marks.end = sent.end;
    }
    if sent.acknowledged.wrapping_sub(marks.acknowledged).cast_signed() >= 0 {
        (marks.acknowledged, marks.window) = (sent.acknowledged, sent.window);
    }
}

/// New endpoints, one less of the TTL, and checksums by RFC 1624 equation 3: ~(~HC + ~m + m').
fn rewritten(packet: &[u8], flow: &Flow) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    bytes[12..16].copy_from_slice(&flow.source.address.octets());
    bytes[16..20].copy_from_slice(&flow.destination.address.octets());
    bytes[20..22].copy_from_slice(&flow.source.port.to_be_bytes());
    bytes[22..24].copy_from_slice(&flow.destination.port.to_be_bytes());
    bytes[8] -= 1;
    let changed = |bytes: &[u8], ranges: &[std::ops::Range<usize>]| -> u64 {
        let of = |range: &std::ops::Range<usize>| {
            let inverted: Vec<u8> = packet[range.clone()].iter().map(|byte| !byte).collect();
            sum(&inverted) + sum(&bytes[range.clone()])
        };
        ranges.iter().map(of).sum()
    };
    let update = |old: u16, change: u64| !fold(u64::from(!old) + change);
    let ip = update(word(packet, 10), changed(&bytes, &[8..10, 12..20]));
    let transport = changed(&bytes, &[12..20, 20..24]);
    bytes[10..12].copy_from_slice(&ip.to_be_bytes());
    let at = if flow.matches.protocol == Protocol::TCP { 36 } else { 26 };
    let old = word(packet, at);
    let new = match (flow.matches.protocol, old, update(old, transport)) {
        (Protocol::UDP, 0, _) => 0,
        (Protocol::UDP, _, 0) => 0xffff,
        (_, _, new) => new,
    };
    bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
    bytes
}

fn endpoint(packet: &[u8], address: usize, port: usize) -> Endpoint {
    let octets = [packet[address], packet[address + 1], packet[address + 2], packet[address + 3]];
    Endpoint::new(octets.into(), word(packet, port))
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(2).map(|pair| u64::from(word(pair, 0))).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
