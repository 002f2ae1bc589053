//! Where a packet goes next: interface and destination MAC address.
//!
//! Owns a copy of the routes and neighbours, kept by whoever reads the kernel's events; the frames that wait for
//! their neighbour; and the list of neighbours that the kernel is to be asked for. Does no I/O. Refuses destinations
//! whose best route leads nowhere.
//!
//! Our packets do not pass through the kernel's neighbour table, so it does not know that a neighbour is in use: it
//! is told now and then ([`NextHops::poll_request`]), and then confirms the entry as for its own packets (RFC 1122
//! section 2.3.2.1).

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::time::Instant;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub prefix: Ipv4Net,
    pub metric: u32,
    /// `None`: packets to it are to be dropped (blackhole, unreachable, prohibit).
    pub interface: Option<u32>,
    /// `None`: the destination is on the link.
    pub gateway: Option<Ipv4Addr>,
}

/// What the kernel says of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub interface: u32,
    pub address: Ipv4Addr,
    /// `None`: not known, or no longer.
    pub mac: Option<Mac>,
    /// It was asked for, and did not answer.
    pub failed: bool,
}

/// The answer to [`NextHops::lookup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// Send it there.
    Ready(Mac),
    /// The MAC address of this neighbour is being asked for: [`NextHops::hold`] the frame.
    Unresolved(Ipv4Addr),
    /// No route.
    Unreachable,
}

/// A frame whose neighbour has been found.
#[derive(Debug, PartialEq, Eq)]
pub struct Released {
    pub interface: u32,
    pub mac: Mac,
    pub frame: Vec<u8>,
}

/// Why packets would not flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    #[error("no default route")]
    NoDefaultRoute,
    #[error("the default route's gateway {0} does not answer")]
    Gateway(Ipv4Addr),
}

/// Routes, neighbours, and frames that wait.
pub struct NextHops {
    interfaces: Vec<u32>,
    /// Those of our interfaces, longest prefix first, then lowest metric.
    routes: Vec<Route>,
    /// The neighbours with a MAC address.
    known: HashMap<(u32, Ipv4Addr), Known>,
    /// Those that the kernel has been asked for.
    pending: HashMap<(u32, Ipv4Addr), Pending>,
    /// Direct-mapped by destination, so that the usual packet costs one comparison.
    cache: Box<[Cached]>,
    /// Changes with every route or neighbour, which empties the cache.
    generation: u32,
    requests: VecDeque<(u32, Ipv4Addr)>,
    released: VecDeque<Released>,
    held_frames: usize,
    held_bytes: usize,
    dropped: u64,
    /// How often a neighbour, and how often the routes, have changed.
    neighbour_changes: u64,
    route_changes: u64,
}

impl NextHops {
    /// Next hops over these interfaces, without any route yet.
    #[must_use]
    pub fn new(interfaces: Vec<u32>) -> Self {
        Self {
            interfaces,
            routes: Vec::new(),
            known: HashMap::new(),
            pending: HashMap::new(),
            cache: vec![Cached::default(); CACHE_SLOTS].into_boxed_slice(),
            generation: 1,
            requests: VecDeque::new(),
            released: VecDeque::new(),
            held_frames: 0,
            held_bytes: 0,
            dropped: 0,
            neighbour_changes: 0,
            route_changes: 0,
        }
    }

    /// Frames dropped because their neighbour was not found in time, or too many waited.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Replaces the interfaces; neighbours on others are forgotten.
    pub fn set_interfaces(&mut self, interfaces: Vec<u32>) {
        self.known.retain(|(interface, _), _| interfaces.contains(interface));
        self.neighbour_changes += 1;
        let gone: Vec<_> = self.pending.keys().filter(|key| !interfaces.contains(&key.0)).copied().collect();
        for key in gone {
            self.give_up(key);
        }
        self.interfaces = interfaces;
        self.invalidate();
    }

    /// Replaces all routes. Past [`ROUTES`] the most specific are kept; gives whether all were.
    pub fn set_routes(&mut self, routes: impl IntoIterator<Item = Route>) -> bool {
        let before = std::mem::take(&mut self.routes);
        self.routes.extend(
            routes
                .into_iter()
                .filter(|route| route.interface.is_none_or(|index| self.interfaces.contains(&index))),
        );
        // Stable: of several with the same metric, the kernel's first stays first.
        self.routes.sort_by_key(|route| (Reverse(route.prefix.prefix_len()), route.metric));
        let complete = self.routes.len() <= ROUTES;
        self.routes.truncate(ROUTES);
        self.route_changes += u64::from(self.routes != before);
        self.invalidate();
        complete
    }

    /// Replaces all neighbours. Frames go on waiting for those that are still not found.
    pub fn set_neighbours(&mut self, neighbours: impl IntoIterator<Item = Neighbour>) {
        self.known.clear();
        self.neighbour_changes += 1;
        self.invalidate();
        // One that failed may have done so before we asked.
        for neighbour in neighbours.into_iter().filter(|neighbour| neighbour.mac.is_some()) {
            self.update_neighbour(neighbour);
        }
    }

    /// Takes in what the kernel says of one neighbour. What waited for it is then in [`Self::poll_released`].
    pub fn update_neighbour(&mut self, neighbour: Neighbour) {
        let key = (neighbour.interface, neighbour.address);
        if !self.interfaces.contains(&neighbour.interface) {
            return;
        }
        let Some(mac) = neighbour.mac else {
            if self.known.remove(&key).is_some() {
                self.neighbour_changes += 1;
                self.invalidate();
            }
            if neighbour.failed {
                self.give_up(key);
            }
            return;
        };
        let room = self.known.len() < NEIGHBOURS;
        match self.known.get_mut(&key) {
            Some(known) if known.mac == mac => {}
            Some(known) => {
                known.mac = mac;
                self.neighbour_changes += 1;
                self.invalidate();
            }
            None if room => {
                // Never confirmed by us: the first use is to be told.
                self.known.insert(key, Known { mac, confirm_at: Instant::ORIGIN });
                self.neighbour_changes += 1;
            }
            None => {}
        }
        if let Some(pending) = self.pending.remove(&key) {
            for frame in pending.held {
                self.held_frames -= 1;
                self.held_bytes -= frame.len();
                self.released.push_back(Released { interface: neighbour.interface, mac, frame });
            }
        }
    }

    /// The next hop of a packet to `destination` that is to leave by `interface`.
    #[inline]
    pub fn lookup(&mut self, now: Instant, interface: u32, destination: Ipv4Addr) -> Hop {
        let cached = &self.cache[slot(destination)];
        if cached.destination == destination
            && cached.generation == self.generation
            && cached.interface == interface
            && now < cached.confirm_at
        {
            return Hop::Ready(cached.mac);
        }
        self.look_up_anew(now, interface, destination)
    }

    fn look_up_anew(&mut self, now: Instant, interface: u32, destination: Ipv4Addr) -> Hop {
        let Some(route) = self.route(interface, destination) else { return Hop::Unreachable };
        let gateway = route.gateway.unwrap_or(destination);
        self.neighbour(now, interface, gateway, destination)
    }

    fn neighbour(&mut self, now: Instant, interface: u32, gateway: Ipv4Addr, destination: Ipv4Addr) -> Hop {
        let key = (interface, gateway);
        if let Some(known) = self.known.get_mut(&key) {
            if known.confirm_at <= now {
                known.confirm_at = now + CONFIRM_EVERY;
                self.requests.push_back(key);
            }
            self.cache[slot(destination)] = Cached {
                generation: self.generation,
                interface,
                destination,
                mac: known.mac,
                confirm_at: known.confirm_at,
            };
            return Hop::Ready(known.mac);
        }
        if !self.pending.contains_key(&key) {
            if self.pending.len() >= PENDING {
                return Hop::Unreachable;
            }
            self.pending.insert(key, Pending { until: now + HOLD_FOR, held: Vec::new() });
            self.requests.push_back(key);
        }
        Hop::Unresolved(gateway)
    }

    /// The neighbour that packets to `destination` are sent to when they leave by `interface`: its gateway, or itself.
    #[must_use]
    pub fn gateway(&self, interface: u32, destination: Ipv4Addr) -> Option<Ipv4Addr> {
        self.route(interface, destination).map(|route| route.gateway.unwrap_or(destination))
    }

    /// A neighbour's MAC address, if it is known.
    #[must_use]
    pub fn mac(&self, interface: u32, neighbour: Ipv4Addr) -> Option<Mac> {
        self.known.get(&(interface, neighbour)).map(|known| known.mac)
    }

    /// Says that somebody else uses a neighbour, so that it stays known: it is confirmed, or asked for, when it is time.
    pub fn keep(&mut self, now: Instant, interface: u32, neighbour: Ipv4Addr) {
        let _ = self.neighbour(now, interface, neighbour, neighbour);
    }

    /// Rises whenever a neighbour may have changed.
    #[must_use]
    pub fn neighbour_changes(&self) -> u64 {
        self.neighbour_changes
    }

    /// Rises whenever the routes have changed.
    #[must_use]
    pub fn route_changes(&self) -> u64 {
        self.route_changes
    }

    /// Keeps a copy of a frame until its neighbour is found. Past the limits, the frame is dropped and counted.
    pub fn hold(&mut self, interface: u32, gateway: Ipv4Addr, frame: &[u8]) {
        match self.pending.get_mut(&(interface, gateway)) {
            Some(pending)
                if pending.held.len() < HELD_PER_NEIGHBOUR
                    && self.held_frames < HELD_FRAMES
                    && self.held_bytes + frame.len() <= HELD_BYTES =>
            {
                pending.held.push(frame.to_vec());
                self.held_frames += 1;
                self.held_bytes += frame.len();
            }
            _ => self.dropped += 1,
        }
    }

    /// The next frame to send, since its neighbour has been found.
    pub fn poll_released(&mut self) -> Option<Released> {
        self.released.pop_front()
    }

    /// The next neighbour that the kernel is to be asked for: interface and address.
    pub fn poll_request(&mut self) -> Option<(u32, Ipv4Addr)> {
        self.requests.pop_front()
    }

    /// When [`Self::handle_timeout`] must be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.until).min()
    }

    /// Gives up on neighbours that were not found in time.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.pending.is_empty() {
            return;
        }
        let late: Vec<_> =
            self.pending.iter().filter(|(_, pending)| pending.until <= now).map(|(key, _)| *key).collect();
        for key in late {
            self.give_up(key);
        }
    }

    /// Whether packets to the default route would leave by `interface`; has the gateway asked for if it is not
    /// known, and confirmed when it is time.
    ///
    /// # Errors
    /// What is missing.
    pub fn check_default_route(&mut self, now: Instant, interface: u32) -> Result<(), NotReady> {
        let default = |route: &&Route| route.prefix.prefix_len() == 0 && route.interface == Some(interface);
        let Some(route) = self.routes.iter().find(default) else { return Err(NotReady::NoDefaultRoute) };
        let Some(gateway) = route.gateway else { return Ok(()) };
        match self.neighbour(now, interface, gateway, gateway) {
            Hop::Ready(_) => Ok(()),
            Hop::Unresolved(_) | Hop::Unreachable => Err(NotReady::Gateway(gateway)),
        }
    }

    /// The best route that leaves by `interface`. A route that leads nowhere counts for every interface.
    fn route(&self, interface: u32, destination: Ipv4Addr) -> Option<&Route> {
        self.routes
            .iter()
            .find(|route| {
                route.interface.is_none_or(|index| index == interface) && route.prefix.contains(&destination)
            })
            .filter(|route| route.interface.is_some())
    }

    fn give_up(&mut self, key: (u32, Ipv4Addr)) {
        if let Some(pending) = self.pending.remove(&key) {
            self.held_frames -= pending.held.len();
            self.held_bytes -= pending.held.iter().map(Vec::len).sum::<usize>();
            self.dropped += pending.held.len() as u64;
        }
    }

    fn invalidate(&mut self) {
        // 0 is that of an empty slot.
        self.generation = self.generation.wrapping_add(1).max(1);
    }
}

struct Known {
    mac: Mac,
    /// When the kernel is to be told next that it is in use.
    confirm_at: Instant,
}

struct Pending {
    until: Instant,
    held: Vec<Vec<u8>>,
}

#[derive(Clone, Copy)]
struct Cached {
    destination: Ipv4Addr,
    generation: u32,
    interface: u32,
    mac: Mac,
    confirm_at: Instant,
}

impl Default for Cached {
    fn default() -> Self {
        Self {
            destination: Ipv4Addr::UNSPECIFIED,
            generation: 0,
            interface: 0,
            mac: Mac::default(),
            confirm_at: Instant::ORIGIN,
        }
    }
}

fn slot(destination: Ipv4Addr) -> usize {
    // Fibonacci hashing: the high bits of the product depend on all bits of the address.
    (destination.to_bits().wrapping_mul(0x9e37_79b9) >> (32 - CACHE_BITS)) as usize
}

const CACHE_BITS: u32 = 10;
const CACHE_SLOTS: usize = 1 << CACHE_BITS;

/// Routes kept; they are searched one by one on a miss of the cache.
const ROUTES: usize = 4096;
/// Neighbours known; the kernel's own default limit is 1024.
const NEIGHBOURS: usize = 16384;
/// Neighbours asked for at one time.
const PENDING: usize = 256;
/// Frames that wait, for one neighbour and in all.
const HELD_PER_NEIGHBOUR: usize = 16;
const HELD_FRAMES: usize = 256;
const HELD_BYTES: usize = 1 << 20;
/// How long a frame waits: the kernel asks three times, a second apart.
const HOLD_FOR: Duration = Duration::from_secs(3);
/// How often the kernel is told that a neighbour is in use.
const CONFIRM_EVERY: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    const ETH: u32 = 2;
    const OTHER: u32 = 3;
    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1000)
    }

    fn route(prefix: &str, metric: u32, interface: u32, gateway: Option<[u8; 4]>) -> Route {
        Route {
            prefix: prefix.parse().expect("a prefix"),
            metric,
            interface: Some(interface),
            gateway: gateway.map(Ipv4Addr::from),
        }
    }

    fn neighbour(interface: u32, address: [u8; 4], mac: Option<Mac>) -> Neighbour {
        Neighbour { interface, address: address.into(), mac, failed: false }
    }

    fn hops() -> NextHops {
        let mut hops = NextHops::new(vec![ETH, OTHER]);
        hops.set_routes([
            route("0.0.0.0/0", 100, ETH, Some([192, 0, 2, 9])),
            route("0.0.0.0/0", 50, ETH, Some([192, 0, 2, 1])),
            route("192.0.2.0/24", 0, ETH, None),
            route("198.51.100.0/24", 0, OTHER, None),
        ]);
        hops
    }

    const fn address(octets: [u8; 4]) -> Ipv4Addr {
        Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3])
    }

    #[test]
    fn longest_prefix_then_lowest_metric_wins() {
        let mut hops = hops();
        assert_eq!(hops.lookup(at(0), ETH, address([192, 0, 2, 7])), Hop::Unresolved(address([192, 0, 2, 7])));
        assert_eq!(
            hops.lookup(at(0), ETH, address([203, 0, 113, 7])),
            Hop::Unresolved(address([192, 0, 2, 1]))
        );
    }

    #[test]
    fn only_routes_of_the_interface_count() {
        let mut hops = hops();
        // By ETH even the other link's own prefix goes to the default gateway; by OTHER nothing else is reachable.
        assert_eq!(
            hops.lookup(at(0), ETH, address([198, 51, 100, 7])),
            Hop::Unresolved(address([192, 0, 2, 1]))
        );
        assert_eq!(hops.lookup(at(0), OTHER, address([203, 0, 113, 7])), Hop::Unreachable);
    }

    #[test]
    fn blackhole_route_hides_the_default_route() {
        let mut hops = hops();
        hops.set_routes([
            route("0.0.0.0/0", 0, ETH, Some([192, 0, 2, 1])),
            Route {
                prefix: "203.0.113.0/24".parse().expect("a prefix"),
                metric: 0,
                interface: None,
                gateway: None,
            },
        ]);
        assert_eq!(hops.lookup(at(0), ETH, address([203, 0, 113, 7])), Hop::Unreachable);
    }

    #[test]
    fn held_frames_are_released_in_order_when_the_neighbour_is_found() {
        let mut hops = hops();
        let gateway = address([192, 0, 2, 1]);
        for frame in [&b"one"[..], b"two"] {
            assert_eq!(hops.lookup(at(0), ETH, address([203, 0, 113, 7])), Hop::Unresolved(gateway));
            hops.hold(ETH, gateway, frame);
        }
        assert_eq!(hops.poll_request(), Some((ETH, gateway)));
        assert_eq!(hops.poll_request(), None, "the kernel is asked once");
        hops.update_neighbour(neighbour(ETH, [192, 0, 2, 1], Some(MAC)));
        let frames: Vec<_> =
            std::iter::from_fn(|| hops.poll_released()).map(|released| released.frame).collect();
        assert_eq!(frames, [b"one", b"two"]);
        assert_eq!(hops.lookup(at(1), ETH, address([203, 0, 113, 7])), Hop::Ready(MAC));
        assert_eq!(hops.dropped(), 0);
        assert_eq!((hops.held_frames, hops.held_bytes), (0, 0));
    }

    #[test]
    fn held_frames_are_dropped_in_time_and_the_neighbour_is_asked_for_again() {
        let mut hops = hops();
        let gateway = address([192, 0, 2, 1]);
        hops.lookup(at(0), ETH, gateway);
        hops.hold(ETH, gateway, b"frame");
        assert_eq!(hops.poll_timeout(), Some(at(3)));
        hops.handle_timeout(at(2));
        assert_eq!(hops.dropped(), 0);
        hops.handle_timeout(at(3));
        assert_eq!((hops.dropped(), hops.held_frames, hops.held_bytes), (1, 0, 0));
        assert_eq!(hops.poll_timeout(), None);
        hops.poll_request();
        hops.lookup(at(4), ETH, gateway);
        assert_eq!(hops.poll_request(), Some((ETH, gateway)));
    }

    #[test]
    fn failed_neighbour_drops_what_waited_for_it() {
        let mut hops = hops();
        let gateway = address([192, 0, 2, 1]);
        hops.lookup(at(0), ETH, gateway);
        hops.hold(ETH, gateway, b"frame");
        hops.update_neighbour(neighbour(ETH, [192, 0, 2, 1], None));
        assert_eq!(hops.dropped(), 0, "being asked for is no failure");
        hops.update_neighbour(Neighbour { failed: true, ..neighbour(ETH, [192, 0, 2, 1], None) });
        assert_eq!(hops.dropped(), 1);
    }

    #[test]
    fn frames_that_wait_are_bounded() {
        let mut hops = hops();
        let gateway = address([192, 0, 2, 1]);
        hops.lookup(at(0), ETH, gateway);
        for _ in 0..HELD_PER_NEIGHBOUR + 5 {
            hops.hold(ETH, gateway, b"frame");
        }
        assert_eq!((hops.held_frames, hops.dropped()), (HELD_PER_NEIGHBOUR, 5));
    }

    #[test]
    fn changed_address_of_a_neighbour_is_followed_at_once() {
        let mut hops = hops();
        let moved = [2, 0, 0, 0, 0, 2];
        hops.update_neighbour(neighbour(ETH, [192, 0, 2, 1], Some(MAC)));
        assert_eq!(hops.lookup(at(0), ETH, address([203, 0, 113, 7])), Hop::Ready(MAC));
        hops.update_neighbour(neighbour(ETH, [192, 0, 2, 1], Some(moved)));
        assert_eq!(hops.lookup(at(0), ETH, address([203, 0, 113, 7])), Hop::Ready(moved));
    }

    #[test]
    fn changed_route_is_followed_at_once() {
        let mut hops = hops();
        hops.update_neighbour(neighbour(ETH, [192, 0, 2, 1], Some(MAC)));
        hops.lookup(at(0), ETH, address([203, 0, 113, 7]));
        hops.set_routes([route("0.0.0.0/0", 0, ETH, Some([192, 0, 2, 2]))]);
        assert_eq!(
            hops.lookup(at(0), ETH, address([203, 0, 113, 7])),
            Hop::Unresolved(address([192, 0, 2, 2]))
        );
    }

    #[test]
    fn neighbour_in_use_is_confirmed_now_and_then() {
        let mut hops = hops();
        hops.update_neighbour(neighbour(ETH, [192, 0, 2, 1], Some(MAC)));
        let mut asked = Vec::new();
        for second in 1..=40 {
            hops.lookup(at(second), ETH, address([203, 0, 113, 7]));
            asked.extend(hops.poll_request().map(|_| second));
        }
        assert_eq!(asked, [1, 16, 31]);
    }

    #[test]
    fn default_route_is_ready_once_its_gateway_answers() {
        let mut hops = hops();
        let gateway = address([192, 0, 2, 1]);
        assert_eq!(hops.check_default_route(at(0), ETH), Err(NotReady::Gateway(gateway)));
        assert_eq!(hops.poll_request(), Some((ETH, gateway)));
        hops.update_neighbour(neighbour(ETH, [192, 0, 2, 1], Some(MAC)));
        assert_eq!(hops.check_default_route(at(0), ETH), Ok(()));
        assert_eq!(hops.check_default_route(at(0), OTHER), Err(NotReady::NoDefaultRoute));
    }

    #[test]
    fn unanswered_questions_are_bounded() {
        let mut hops = hops();
        hops.set_routes([route("198.51.0.0/16", 0, ETH, None)]);
        for host in 0..1000_u32 {
            hops.lookup(at(0), ETH, Ipv4Addr::from_bits(0xc633_0000 + host));
        }
        assert_eq!(hops.pending.len(), PENDING);
    }
}
