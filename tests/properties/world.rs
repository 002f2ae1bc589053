//! A small discrete-event network: hosts on both sides of the NAT, links that lose, double and reorder.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use egret::nat::{Config, Side};
use egret::time::Instant;
use egret::wire::Protocol;

use crate::support::*;

/// What links do to packets, in percent.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub loss: u64,
    pub doubling: u64,
    pub delay: Duration,
}

/// What happens next.
pub enum Happening<T> {
    /// A whole datagram arrives at a host on this side.
    Arrival(Side, View),
    Timer(T),
}

enum Event<T> {
    ToNat(Side, Vec<u8>),
    ToHost(Side, Vec<u8>),
    Timer(T),
}

type DatagramKey = (Ipv4Addr, Ipv4Addr, Protocol, u16);

/// See the module.
pub struct World<T> {
    pub nat: Nat,
    pub random: Random,
    link: Link,
    queue: BTreeMap<(Instant, u64), Event<T>>,
    scheduled: u64,
    /// Datagrams that arrive in pieces.
    pieces: HashMap<DatagramKey, (Instant, BTreeMap<usize, Vec<u8>>)>,
}

impl<T> World<T> {
    pub fn new(config: Config, seed: u64, link: Link) -> Self {
        Self {
            nat: Nat::seeded(config, seed),
            random: Random(seed),
            link,
            queue: BTreeMap::new(),
            scheduled: 0,
            pieces: HashMap::new(),
        }
    }

    pub fn now(&self) -> Instant {
        self.nat.now
    }

    pub fn set_timer(&mut self, after: Duration, timer: T) {
        let at = self.now() + after;
        self.schedule(at, Event::Timer(timer));
    }

    /// A host on `side` sends a packet towards the NAT.
    pub fn send(&mut self, side: Side, packet: &[u8]) {
        let parts = if packet.len() > 1_500 { fragment(packet, 1_480) } else { vec![packet.to_vec()] };
        for part in parts {
            for at in self.impaired() {
                self.schedule(at, Event::ToNat(side, part.clone()));
            }
        }
    }

    /// Goes on to the next thing that concerns a host, until `end`.
    pub fn next(&mut self, end: Instant) -> Option<Happening<T>> {
        loop {
            let entry = self.queue.first_entry().filter(|entry| entry.key().0 <= end)?;
            let ((at, _), event) = entry.remove_entry();
            self.nat.advance(at - self.nat.now);
            match event {
                Event::Timer(timer) => {
                    self.carry(Vec::new());
                    return Some(Happening::Timer(timer));
                }
                Event::ToHost(side, packet) => {
                    if let Some(whole) = self.assemble(packet) {
                        return Some(Happening::Arrival(side, whole));
                    }
                }
                Event::ToNat(side, packet) => {
                    let sent = match self.nat.packet(side, &packet) {
                        Outcome::Sent(to, packet) => vec![(to, *packet)],
                        _ => Vec::new(),
                    };
                    self.carry(sent);
                }
            }
        }
    }

    /// Puts what the NAT has sent onto the links.
    fn carry(&mut self, mut sent: Vec<(Side, View)>) {
        sent.extend(self.nat.transmitted());
        for (side, packet) in sent {
            for at in self.impaired() {
                self.schedule(at, Event::ToHost(side, packet.bytes.clone()));
            }
        }
    }

    fn schedule(&mut self, at: Instant, event: Event<T>) {
        self.scheduled += 1;
        self.queue.insert((at, self.scheduled), event);
    }

    /// When a packet that is sent now arrives: never, once, or twice.
    fn impaired(&mut self) -> Vec<Instant> {
        if self.random.chance(self.link.loss) {
            return Vec::new();
        }
        let copies = 1 + usize::from(self.random.chance(self.link.doubling));
        let most = u64::try_from(self.link.delay.as_nanos()).expect("a short delay");
        (0..copies).map(|_| self.nat.now + Duration::from_nanos(self.random.below(most))).collect()
    }

    fn assemble(&mut self, packet: Vec<u8>) -> Option<View> {
        let part = view(&packet);
        if !part.more_fragments && part.fragment_offset == 0 {
            return Some(part);
        }
        let now = self.nat.now;
        self.pieces.retain(|_, (began, _)| now - *began < Duration::from_secs(30));
        let key = (part.source.address, part.destination.address, part.protocol, part.id);
        let (_, pieces) = self.pieces.entry(key).or_insert_with(|| (now, BTreeMap::new()));
        pieces.insert(part.fragment_offset, packet);
        let mut end = 0;
        for (offset, bytes) in pieces.iter() {
            if *offset != end {
                return None;
            }
            end += bytes.len() - 20;
        }
        let complete = pieces.values().next_back().is_some_and(|last| !view(last).more_fragments);
        if !complete {
            return None;
        }
        let (_, pieces) = self.pieces.remove(&key)?;
        Some(reassemble(&pieces.into_values().collect::<Vec<_>>()))
    }
}
