//! The flows that the program carries, and the next hops that they go by.
//!
//! Owns their table and the next hops' map. Writes a flow when the engine hands a session over, reads one when the
//! engine asks for its use, and never walks them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::Ipv4Addr;

use aya::maps::{Array, Map, MapData, MapError};

use super::table::{InsertError, Table};
use crate::datapath::classifier::{BpfError, network_order};
use crate::datapath::next_hop::{Mac, NextHops};
use crate::datapath::sys::{Endpoints, FlowKey, FlowSlot, Rules};
use crate::nat::{Flow, FlowKeys, FlowPair, Side, TcpMarks, Usage};
use crate::time::Instant;
use crate::wire::{Endpoint, FiveTuple};

/// See the module.
pub struct Flows {
    table: Table,
    hops: Hops,
    /// The kernel's indices of our interfaces: one-armed one, else the external and the internal one.
    interfaces: Vec<u32>,
    /// The external addresses, as they are on the wire.
    external: BTreeSet<Ipv4Addr>,
    /// `CLOCK_MONOTONIC` at the worker's origin of time, in nanoseconds.
    origin_nanos: u64,
    count: u32,
    capacity: u32,
}

impl Flows {
    /// No flows yet. `origin_nanos` is `CLOCK_MONOTONIC` at [`Instant::ORIGIN`].
    #[must_use]
    pub fn new(table: Table, next_hops: Map, capacity: u32, origin_nanos: u64) -> Self {
        Self {
            table,
            hops: Hops::new(next_hops),
            interfaces: Vec::new(),
            external: BTreeSet::new(),
            origin_nanos,
            count: 0,
            capacity,
        }
    }

    /// How many there are, and how many there may be.
    #[must_use]
    pub const fn load(&self) -> (u32, u32) {
        (self.count, self.capacity)
    }

    /// Sets the kernel's indices of our interfaces.
    pub fn set_interfaces(&mut self, interfaces: Vec<u32>) {
        if self.interfaces != interfaces {
            self.interfaces = interfaces;
            self.hops.outdated = true;
        }
    }

    /// Sets the external addresses, for flows that are installed from now on.
    pub fn set_external(&mut self, external: &BTreeSet<Ipv4Addr>) {
        self.external.clone_from(external);
    }

    /// Has the program carry both directions, or neither.
    ///
    /// # Errors
    /// There is no route, or no room.
    pub fn install(&mut self, now: Instant, pair: &FlowPair, next_hops: &NextHops) -> Result<(), Refused> {
        if self.capacity - self.count.min(self.capacity) < 2 {
            return Err(Refused::Full);
        }
        self.install_one(now, &pair.out, next_hops)?;
        self.install_one(now, &pair.back, next_hops).inspect_err(|_| {
            self.remove_one(&pair.out.matches);
        })
    }

    /// What both flows have carried so far; `None` for one that is not carried.
    pub fn usage(&self, now: Instant, keys: &FlowKeys) -> [Option<Usage>; 2] {
        [&keys.out, &keys.back].map(|tuple| {
            let flow = self.table.get(&key_of(tuple))?;
            Some(self.usage_of(now, &flow))
        })
    }

    /// Has the program no longer carry them; gives what they have carried.
    pub fn remove(&mut self, now: Instant, keys: &FlowKeys) -> [Option<Usage>; 2] {
        [&keys.out, &keys.back].map(|tuple| {
            let flow = self.remove_one(tuple)?;
            Some(self.usage_of(now, &flow))
        })
    }

    /// Brings the next hops' words up to date, if a neighbour has changed.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn follow_neighbours(&mut self, next_hops: &NextHops) -> Result<(), BpfError> {
        self.hops.follow(next_hops, &self.interfaces)
    }

    /// Keeps the neighbours known that flows go by: their packets do not pass whoever looks neighbours up.
    pub fn keep_neighbours(&self, now: Instant, next_hops: &mut NextHops) {
        for (hop, _) in self.hops.used() {
            if let Some(&interface) = self.interfaces.get(hop.port) {
                next_hops.keep(now, interface, hop.gateway);
            }
        }
    }

    fn install_one(&mut self, now: Instant, flow: &Flow, next_hops: &NextHops) -> Result<(), Refused> {
        let port = match flow.to {
            Side::External => 0,
            Side::Internal => self.interfaces.len().saturating_sub(1),
        };
        let interface = *self.interfaces.get(port).ok_or(Refused::NoRoute)?;
        let gateway = next_hops.gateway(interface, flow.destination.address).ok_or(Refused::NoRoute)?;
        let hop = Hop { port, gateway, mtu: flow.mtu };
        let next_hop = self.hops.take(hop, next_hops.mac(interface, gateway))?;
        let inserted = self.table.insert(FlowSlot {
            last_use: self.units(now),
            end: flow.marks.end,
            acknowledged: flow.marks.acknowledged,
            window: flow.marks.window,
            ..translation_of(flow, self.roles_of(flow), next_hop)
        });
        match inserted {
            Ok(()) => {
                self.count += 1;
                Ok(())
            }
            Err(error) => {
                self.hops.give_back(next_hop);
                Err(error.into())
            }
        }
    }

    /// The interfaces that a flow may come in by: those by which the classifier takes its packets for NAT's.
    fn roles_of(&self, flow: &Flow) -> u32 {
        match (flow.from, flow.to) {
            (Side::External, _) => Rules::ROLE_EXTERNAL,
            // To the address as it is on the wire, the network may have a shorter way than by our internal interface.
            (Side::Internal, _) if self.external.contains(&flow.matches.destination.address) => {
                Rules::ROLE_INTERNAL | Rules::ROLE_EXTERNAL
            }
            (Side::Internal, _) => Rules::ROLE_INTERNAL,
        }
    }

    fn remove_one(&mut self, tuple: &FiveTuple) -> Option<FlowSlot> {
        let flow = self.table.remove(&key_of(tuple))?;
        self.count = self.count.saturating_sub(1);
        self.hops.give_back(flow.next_hop);
        Some(flow)
    }

    fn usage_of(&self, now: Instant, used: &FlowSlot) -> Usage {
        // The end of the unit, and as much more as the program's clock may be late: never before the packet, unless the host
        // has stood still.
        let end = ((u64::from(used.last_use) + 1) << UNIT_BITS) + MOST_LAG_NANOS;
        let nanos = end.saturating_sub(self.origin_nanos);
        Usage {
            packets: used.packets,
            bytes: used.bytes,
            last_use: Instant::from_nanos(nanos).min(now),
            marks: TcpMarks { end: used.end, acknowledged: used.acknowledged, window: used.window },
        }
    }

    fn units(&self, now: Instant) -> u32 {
        let nanos = self.origin_nanos.saturating_add(now.as_nanos());
        u32::try_from(nanos >> UNIT_BITS).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
impl Flows {
    /// What the table holds of a flow.
    pub fn value(&self, tuple: &FiveTuple) -> Option<FlowSlot> {
        self.table.get(&key_of(tuple))
    }

    /// Writes anything over what the table holds of a flow.
    pub fn overwrite(&mut self, tuple: &FiveTuple, flow: FlowSlot) {
        self.table.overwrite(&key_of(tuple), flow);
    }

    /// As [`Slots::smear`](crate::datapath::sys::Slots::smear), over a flow.
    pub fn smear(&mut self, tuple: &FiveTuple, flow: FlowSlot, first: usize) {
        self.table.smear(&key_of(tuple), flow, first);
    }
}

/// Why a flow is not carried.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("no route leads to its destination")]
    NoRoute,
    #[error("the table is full")]
    Full,
    #[error("too many next hops")]
    NextHops,
    #[error(transparent)]
    Table(#[from] InsertError),
    #[error("the map of next hops cannot be written")]
    Map(#[from] MapError),
}

/// The next hops of the flows: which there are, in which place, for how many flows.
struct Hops {
    map: Map,
    places: HashMap<Hop, u16>,
    list: Vec<Place>,
    free: VecDeque<u16>,
    /// What [`NextHops::neighbour_changes`] was last.
    seen: u64,
    outdated: bool,
}

/// Where to, and how long the packets may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Hop {
    port: usize,
    gateway: Ipv4Addr,
    mtu: u16,
}

#[derive(Clone, Copy)]
struct Place {
    hop: Hop,
    flows: u32,
    word: u64,
}

impl Hops {
    fn new(map: Map) -> Self {
        Self { map, places: HashMap::new(), list: Vec::new(), free: VecDeque::new(), seen: 0, outdated: false }
    }

    fn used(&self) -> impl Iterator<Item = (Hop, u16)> {
        self.places.iter().map(|(hop, place)| (*hop, *place))
    }

    /// The place of a next hop, for one more flow.
    fn take(&mut self, hop: Hop, mac: Option<Mac>) -> Result<u16, Refused> {
        if let Some(&place) = self.places.get(&hop) {
            self.list[usize::from(place)].flows += 1;
            return Ok(place);
        }
        let taken = Place { hop, flows: 1, word: word_of(&hop, mac) };
        let place = match self.free.front() {
            Some(&place) => place,
            None if self.list.len() < NEXT_HOPS => {
                u16::try_from(self.list.len()).map_err(|_| Refused::NextHops)?
            }
            None => return Err(Refused::NextHops),
        };
        self.write(place, taken.word)?;
        self.free.pop_front();
        match self.list.get_mut(usize::from(place)) {
            Some(there) => *there = taken,
            None => self.list.push(taken),
        }
        self.places.insert(hop, place);
        Ok(place)
    }

    fn give_back(&mut self, place: u16) {
        let Some(given) = self.list.get_mut(usize::from(place)) else { return };
        given.flows = given.flows.saturating_sub(1);
        if given.flows == 0 && self.places.remove(&given.hop).is_some() {
            self.free.push_back(place);
        }
    }

    fn follow(&mut self, next_hops: &NextHops, interfaces: &[u32]) -> Result<(), BpfError> {
        if self.seen == next_hops.neighbour_changes() && !self.outdated {
            return Ok(());
        }
        for (hop, place) in self.used().collect::<Vec<_>>() {
            let mac = interfaces.get(hop.port).and_then(|&interface| next_hops.mac(interface, hop.gateway));
            let word = word_of(&hop, mac);
            if self.list[usize::from(place)].word != word {
                self.write(place, word)?;
                self.list[usize::from(place)].word = word;
            }
        }
        self.seen = next_hops.neighbour_changes();
        self.outdated = false;
        Ok(())
    }

    fn write(&mut self, place: u16, word: u64) -> Result<(), MapError> {
        Array::<&mut MapData, u64>::try_from(&mut self.map)?.set(u32::from(place), word, 0)
    }
}

/// The word of a next hop: see `NEXT_HOP_WORDS` in `bpf/xdp.bpf.c`.
fn word_of(hop: &Hop, mac: Option<Mac>) -> u64 {
    let Some(mac) = mac else { return 0 };
    // As it lies in memory, whatever the byte order.
    let mut bytes = [0; 8];
    let first = if cfg!(target_endian = "little") { 0 } else { 2 };
    bytes[first..first + 6].copy_from_slice(&mac);
    let mac = u64::from_ne_bytes(bytes);
    mac | (hop.port as u64) << 48 | u64::from(hop.mtu.min(MOST_MTU)) << 49
}

fn key_of(tuple: &FiveTuple) -> FlowKey {
    FlowKey { endpoints: endpoints_of(tuple.source, tuple.destination), protocol: tuple.protocol.0 }
}

fn endpoints_of(source: Endpoint, destination: Endpoint) -> Endpoints {
    Endpoints {
        source: network_order(source.address),
        destination: network_order(destination.address),
        source_port: source.port.to_be(),
        destination_port: destination.port.to_be(),
    }
}

fn translation_of(flow: &Flow, roles: u32, next_hop: u16) -> FlowSlot {
    let direction = match (flow.from, flow.to) {
        (Side::Internal, Side::External) => OUT,
        (Side::Internal, Side::Internal) => HAIRPIN,
        (Side::External, _) => BACK,
    };
    let FlowKey { endpoints, protocol } = key_of(&flow.matches);
    FlowSlot {
        matches: endpoints,
        protocol,
        roles: u8::try_from(roles).unwrap_or(0),
        direction,
        becomes: endpoints_of(flow.source, flow.destination),
        next_hop,
        ..FlowSlot::default()
    }
}

// As in `bpf/xdp.bpf.c`: enum direction, NEXT_HOPS, the unit of `last_use`.
const OUT: u8 = 0;
const BACK: u8 = 1;
const HAIRPIN: u8 = 2;
const NEXT_HOPS: usize = 16384;
const UNIT_BITS: u32 = 30;
/// Three ticks of the slowest kernels, of 100 Hz, and one to spare: see `time_of` in `bpf/xdp.bpf.c`.
const MOST_LAG_NANOS: u64 = 40_000_000;
/// What a next hop's word has room for. Longer packets, of which XDP knows none, are the engine's.
const MOST_MTU: u16 = (1 << 15) - 1;
