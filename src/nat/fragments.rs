//! Fragments: those that come after their first follow it, those that come before wait for it.
//!
//! Nothing is reassembled. The first fragment carries the ports, so its session decides where the others go
//! (RFC 4787 REQ-14). Overlapping fragments end their datagram (RFC 1858, RFC 5722 section 4).

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::event::{DropReason, Side};
use super::hosts::Keyed;
use crate::time::Instant;
use crate::wire::{Fragment, Headers, Protocol};

/// What the fragments of one datagram have in common (RFC 791 section 2.3), and the side that they came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DatagramKey {
    side: Side,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: Protocol,
    identification: u16,
}

impl DatagramKey {
    pub const fn new(side: Side, headers: &Headers) -> Self {
        Self {
            side,
            source: headers.source,
            destination: headers.destination,
            protocol: headers.protocol,
            identification: headers.identification,
        }
    }
}

/// What became of a datagram's first fragment, and so becomes of the others.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub identification: u16,
    /// The side to send on.
    pub side: Side,
}

/// What to do with a fragment.
#[derive(Clone, Copy, Debug)]
pub enum Arrival {
    /// It is the first: translate it, then call [`Fragments::resolve`].
    First,
    /// Translate it like the first.
    Follow(Route),
    /// It waits for the first.
    Held,
}

#[derive(Debug)]
struct Datagram {
    /// The parts that have come.
    parts: Vec<(u16, u16)>,
    /// Where it ends, once its last fragment has come.
    end: Option<u16>,
    route: Option<Route>,
    held: Vec<Vec<u8>>,
    /// It had overlapping fragments.
    refused: bool,
    /// Tells it from a later datagram with the same key.
    began: Instant,
}

impl Datagram {
    fn is_complete(&self) -> bool {
        let received: u32 = self.parts.iter().map(|&(start, end)| u32::from(end - start)).sum();
        self.route.is_some() && self.end.is_some_and(|end| received == u32::from(end))
    }

    fn bytes(&self) -> usize {
        DATAGRAM_BYTES + self.held.iter().map(Vec::len).sum::<usize>()
    }
}

/// Datagrams of which a fragment has come, and not yet all, bounded in bytes and in time.
#[derive(Debug)]
pub struct Fragments {
    datagrams: HashMap<DatagramKey, Datagram, Keyed>,
    /// In the order in which they began; holds datagrams that are gone already, too.
    order: VecDeque<(Instant, DatagramKey)>,
    bytes: usize,
    evicted: u64,
}

impl Fragments {
    pub fn new(keyed: Keyed) -> Self {
        Self { datagrams: HashMap::with_hasher(keyed), order: VecDeque::new(), bytes: 0, evicted: 0 }
    }

    /// Bytes in use.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many waiting fragments had to make room for later ones.
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// A fragment has come; `packet` is copied if it has to wait. At most `limit` bytes are used: if there
    /// is no room, the oldest datagrams go. The fragments of an honest one follow each other closely, so that
    /// even under a flood it does not become the oldest (RFC 4787 REQ-14a).
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn arrive(
        &mut self,
        now: Instant,
        key: DatagramKey,
        fragment: Fragment,
        packet: &[u8],
        limit: usize,
    ) -> Result<Arrival, DropReason> {
        if !self.datagrams.contains_key(&key) {
            self.forget_order_of_complete();
            if !self.make_room(DATAGRAM_BYTES, limit, None) {
                return Err(DropReason::FragmentLimit);
            }
            self.bytes += DATAGRAM_BYTES;
            self.order.push_back((now, key));
            self.datagrams.insert(
                key,
                Datagram {
                    parts: Vec::new(),
                    end: None,
                    route: None,
                    held: Vec::new(),
                    refused: false,
                    began: now,
                },
            );
        }
        let datagram = self.datagrams.get_mut(&key).ok_or(DropReason::FragmentLimit)?;
        let part = (fragment.start, fragment.end);
        if datagram.parts.contains(&part) {
            // The network has doubled it, which is no attack.
            return Err(DropReason::FragmentOverlap);
        }
        let overlaps = datagram.parts.iter().any(|&(start, end)| part.0 < end && start < part.1);
        let beyond = match datagram.end {
            Some(end) => part.1 > end || !fragment.more,
            None => !fragment.more && datagram.parts.iter().any(|&(_, end)| end > part.1),
        };
        if datagram.refused || overlaps || beyond || datagram.parts.len() >= MOST_PARTS {
            datagram.refused = true;
            let freed: usize = datagram.held.drain(..).map(|packet| packet.len()).sum();
            self.bytes -= freed;
            return Err(DropReason::FragmentOverlap);
        }
        let hold = datagram.route.is_none() && fragment.start > 0;
        if hold && !self.make_room(packet.len(), limit, Some(&key)) {
            return Err(DropReason::FragmentLimit);
        }
        let datagram = self.datagrams.get_mut(&key).ok_or(DropReason::FragmentLimit)?;
        datagram.parts.push(part);
        if !fragment.more {
            datagram.end = Some(fragment.end);
        }
        if fragment.start == 0 {
            return Ok(Arrival::First);
        }
        if let Some(route) = datagram.route {
            if datagram.is_complete() {
                self.forget(&key);
            }
            return Ok(Arrival::Follow(route));
        }
        self.bytes += packet.len();
        datagram.held.push(packet.to_vec());
        Ok(Arrival::Held)
    }

    /// The first fragment goes by `route`. Gives the fragments that waited for it.
    pub fn resolve(&mut self, key: DatagramKey, route: Route) -> Vec<Vec<u8>> {
        let Some(datagram) = self.datagrams.get_mut(&key) else { return Vec::new() };
        datagram.route = Some(route);
        let held = std::mem::take(&mut datagram.held);
        self.bytes -= held.iter().map(Vec::len).sum::<usize>();
        if datagram.is_complete() {
            self.forget(&key);
        }
        held
    }

    /// Forgets everything: the routes that were found do not hold any more.
    pub fn clear(&mut self) {
        self.evicted += self.datagrams.values().map(|datagram| datagram.held.len() as u64).sum::<u64>();
        self.datagrams.clear();
        self.order.clear();
        self.bytes = 0;
    }

    /// Forgets what began two seconds ago. Gives how many fragments waited in vain.
    pub fn handle_timeout(&mut self, now: Instant) -> u64 {
        let mut in_vain = 0;
        while let Some(&(began, key)) = self.order.front() {
            if now < began + TIMEOUT {
                break;
            }
            self.order.pop_front();
            if self.datagrams.get(&key).is_some_and(|datagram| datagram.began == began) {
                in_vain += self.forget(&key);
            }
        }
        in_vain
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.order.front().map(|&(began, _)| began + TIMEOUT)
    }

    /// Makes room for `bytes` more by forgetting the oldest datagrams, but not `keep`. Says if there is room now.
    fn make_room(&mut self, bytes: usize, limit: usize, keep: Option<&DatagramKey>) -> bool {
        while self.bytes + bytes > limit {
            let Some(&(began, key)) = self.order.front() else { return false };
            if self.datagrams.get(&key).is_some_and(|datagram| datagram.began == began) {
                if keep == Some(&key) {
                    return false;
                }
                self.evicted += self.forget(&key);
            }
            self.order.pop_front();
        }
        true
    }

    /// Completed datagrams leave their place in the order behind: they go when they have become the oldest or
    /// the most.
    fn forget_order_of_complete(&mut self) {
        if self.order.len() > 2 * self.datagrams.len() + ORDER_SLACK {
            let datagrams = &self.datagrams;
            self.order
                .retain(|(began, key)| datagrams.get(key).is_some_and(|datagram| datagram.began == *began));
        }
        while let Some((began, key)) = self.order.front()
            && self.datagrams.get(key).is_none_or(|datagram| datagram.began != *began)
        {
            self.order.pop_front();
        }
    }

    fn forget(&mut self, key: &DatagramKey) -> u64 {
        let Some(datagram) = self.datagrams.remove(key) else { return 0 };
        self.bytes -= datagram.bytes();
        datagram.held.len() as u64
    }
}

/// How long a datagram may take to arrive.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Fragments of one datagram: 64 KiB in pieces of 1 KiB.
const MOST_PARTS: usize = 64;
/// Places of completed datagrams in the order that do not matter.
const ORDER_SLACK: usize = 1024;
/// What a datagram costs beside the fragments that wait.
const DATAGRAM_BYTES: usize = 512;
