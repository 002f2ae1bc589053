//! The external address pool, and which of its ports are free.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use super::config::{Config, ExternalAddress};
use crate::wire::Protocol;

/// The external addresses in the order of the configuration.
#[derive(Debug)]
pub struct Pool {
    addresses: Vec<PoolAddress>,
    /// All private and public forms, sorted, with the place in `addresses`.
    by_address: Vec<(Ipv4Addr, usize)>,
}

/// How an external address is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressUse {
    pub private: Ipv4Addr,
    /// Ports (of ICMP, identifiers) that are taken, and those that there are.
    pub tcp: (u32, u32),
    pub udp: (u32, u32),
    pub icmp: (u32, u32),
    /// Live mappings; those that share a port are several.
    pub mappings: u32,
    /// Mappings that could not be, since no port, identifier or remote was left.
    pub failures: u64,
}

/// One external address.
#[derive(Debug)]
pub struct PoolAddress {
    pub private: Ipv4Addr,
    pub public: Option<Ipv4Addr>,
    /// Live mappings.
    pub mappings: u32,
    /// Mappings that found no port, identifier or remote left.
    pub failures: u64,
    tcp: PortMap,
    udp: PortMap,
    icmp: PortMap,
}

impl Pool {
    pub fn new(config: &Config) -> Self {
        let addresses: Vec<_> =
            config.external_addresses.iter().map(|&address| PoolAddress::new(address, config)).collect();
        let mut by_address: Vec<_> = addresses
            .iter()
            .enumerate()
            .flat_map(|(place, address)| {
                std::iter::once(address.private).chain(address.public).map(move |form| (form, place))
            })
            .collect();
        by_address.sort_unstable();
        Self { addresses, by_address }
    }

    /// The same with what `before` has counted of the addresses that both have.
    pub fn after(mut self, before: &Self) -> Self {
        for address in &mut self.addresses {
            address.failures = before.find(address.private).map_or(0, |before| before.failures);
        }
        self
    }

    /// How each address is used, in the order of the configuration.
    pub fn address_use(&self) -> Vec<AddressUse> {
        let use_of = |address: &PoolAddress| AddressUse {
            private: address.private,
            tcp: address.tcp.load(),
            udp: address.udp.load(),
            icmp: address.icmp.load(),
            mappings: address.mappings,
            failures: address.failures,
        };
        self.addresses.iter().map(use_of).collect()
    }

    /// The external address that `address` is, in its private or its public form.
    pub fn find(&self, address: Ipv4Addr) -> Option<&PoolAddress> {
        let found = self.by_address.binary_search_by_key(&address, |&(form, _)| form).ok()?;
        self.by_address.get(found).and_then(|&(_, place)| self.addresses.get(place))
    }

    /// As [`Self::find`].
    pub fn find_mut(&mut self, address: Ipv4Addr) -> Option<&mut PoolAddress> {
        let found = self.by_address.binary_search_by_key(&address, |&(form, _)| form).ok()?;
        self.by_address.get(found).and_then(|&(_, place)| self.addresses.get_mut(place))
    }

    /// The private address with the fewest mappings.
    pub fn least_used(&self) -> Option<Ipv4Addr> {
        self.addresses.iter().min_by_key(|address| address.mappings).map(|address| address.private)
    }

    /// All private addresses.
    pub fn privates(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.addresses.iter().map(|address| address.private)
    }
}

impl PoolAddress {
    fn new(address: ExternalAddress, config: &Config) -> Self {
        let excluded = |protocol| {
            let hosts =
                config.excluded_ports.iter().filter(move |&&(p, _)| p == protocol).map(|&(_, port)| port);
            let fixed = config.static_mappings.iter().filter(move |mapping| {
                mapping.protocol == protocol && mapping.external.address == address.private
            });
            let services = config.services.iter().filter(move |service| {
                protocol == Protocol::TCP && service.external.address == address.private
            });
            let fixed = fixed.map(|mapping| mapping.external.port);
            hosts.chain(fixed).chain(services.map(|service| service.external.port))
        };
        Self {
            private: address.private,
            public: address.public,
            mappings: 0,
            failures: 0,
            tcp: PortMap::new(config.port_range.clone(), excluded(Protocol::TCP)),
            udp: PortMap::new(config.port_range.clone(), excluded(Protocol::UDP)),
            icmp: PortMap::new(0..=u16::MAX, excluded(Protocol::ICMP)),
        }
    }

    /// The ports of `protocol`, or the identifiers of ICMP. `None`: it has none.
    pub fn ports(&self, protocol: Protocol) -> Option<&PortMap> {
        match protocol {
            Protocol::TCP => Some(&self.tcp),
            Protocol::UDP => Some(&self.udp),
            Protocol::ICMP => Some(&self.icmp),
            _ => None,
        }
    }

    /// As [`Self::ports`].
    pub fn ports_mut(&mut self, protocol: Protocol) -> Option<&mut PortMap> {
        match protocol {
            Protocol::TCP => Some(&mut self.tcp),
            Protocol::UDP => Some(&mut self.udp),
            Protocol::ICMP => Some(&mut self.icmp),
            _ => None,
        }
    }
}

/// A set of ports, some of which are taken.
#[derive(Debug)]
pub struct PortMap {
    range: RangeInclusive<u16>,
    /// A bit for each port that may be allocated at all.
    allowed: Box<[u64; WORDS]>,
    /// A bit for each port that is allowed and not taken.
    free: Box<[u64; WORDS]>,
    taken: u32,
}

/// Which of two neighbouring ports (RFC 4787 REQ-4).
#[derive(Clone, Copy, Debug)]
pub enum Parity {
    Even,
    Odd,
    Any,
}

impl Parity {
    pub fn of(port: u16) -> Self {
        if port.is_multiple_of(2) { Self::Even } else { Self::Odd }
    }

    const fn mask(self) -> u64 {
        match self {
            Self::Even => 0x5555_5555_5555_5555,
            Self::Odd => 0xaaaa_aaaa_aaaa_aaaa,
            Self::Any => u64::MAX,
        }
    }
}

impl PortMap {
    /// Ports that are taken, and those that there are.
    fn load(&self) -> (u32, u32) {
        (self.taken, self.allowed.iter().map(|word| word.count_ones()).sum())
    }

    fn new(range: RangeInclusive<u16>, excluded: impl Iterator<Item = u16>) -> Self {
        let mut allowed = Box::new([0; WORDS]);
        for port in range.clone() {
            let (word, bit) = place(port);
            allowed[word] |= bit;
        }
        for port in excluded {
            let (word, bit) = place(port);
            allowed[word] &= !bit;
        }
        Self { range, free: allowed.clone(), allowed, taken: 0 }
    }

    pub fn is_free(&self, port: u16) -> bool {
        let (word, bit) = place(port);
        self.free[word] & bit != 0
    }

    pub fn is_allowed(&self, port: u16) -> bool {
        let (word, bit) = place(port);
        self.allowed[word] & bit != 0
    }

    pub fn range(&self) -> RangeInclusive<u16> {
        self.range.clone()
    }

    /// Marks `port` as taken.
    pub fn take(&mut self, port: u16) {
        let (word, bit) = place(port);
        self.taken += u32::from(self.free[word] & bit != 0);
        self.free[word] &= !bit;
    }

    /// Gives `port` back; one that may not be allocated stays out.
    pub fn give_back(&mut self, port: u16) {
        let (word, bit) = place(port);
        let freed = self.allowed[word] & bit & !self.free[word];
        self.taken -= u32::from(freed != 0);
        self.free[word] |= freed;
    }

    /// The first free port of `range` and `parity` from `start` on, going round at the end. Looks at 1024 words
    /// at most.
    pub fn find_free(&self, range: &RangeInclusive<u16>, start: u16, parity: Parity) -> Option<u16> {
        let (first, last) = (usize::from(*range.start()) / 64, usize::from(*range.end()) / 64);
        if range.is_empty() {
            return None;
        }
        let start = start.clamp(*range.start(), *range.end());
        let at = usize::from(start) / 64;
        let from_start = u64::MAX << (start % 64);
        // The word of `start` twice: its upper part first, its lower part last.
        let candidates = std::iter::once((at, from_start))
            .chain((at + 1..=last).map(|word| (word, u64::MAX)))
            .chain((first..at).map(|word| (word, u64::MAX)))
            .chain(std::iter::once((at, !from_start)));
        for (word, mut mask) in candidates {
            if word == first {
                mask &= u64::MAX << (range.start() % 64);
            }
            if word == last {
                mask &= u64::MAX >> (63 - range.end() % 64);
            }
            let free = self.free[word] & mask & parity.mask();
            if free != 0 {
                return u16::try_from(word * 64 + free.trailing_zeros() as usize).ok();
            }
        }
        None
    }
}

fn place(port: u16) -> (usize, u64) {
    (usize::from(port) / 64, 1 << (port % 64))
}

const WORDS: usize = 1024;
