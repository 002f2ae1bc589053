//! Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4): a table of which each target has its share, and of which few places change when targets do.
//!
//! Each target has its own order of preference of all places, which its address alone decides, and targets claim
//! places in turns. The paper leaves weights to the reader: here a target of a third of the greatest weight takes
//! a turn in every third round, as Envoy and Cilium do it.
//!
//! The table is made for the targets that there are, not for the healthy ones: whoever finds a target in its place
//! that may not serve looks in other places, in an order of its own. Ill health so moves the flows of the ill target
//! and no other.

use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

use siphasher::sip::SipHasher13;

/// See the module.
#[derive(Debug)]
pub struct Maglev {
    key: [u8; 16],
    targets: Vec<(SocketAddr, u16)>,
    /// Indices of `targets`; empty without targets.
    places: Vec<u16>,
}

impl Maglev {
    /// The table of `targets` with their weights, in the order of their addresses.
    pub fn new(key: [u8; 16], targets: Vec<(SocketAddr, u16)>) -> Self {
        let places = fill(&SipHasher13::new_with_key(&key), &targets);
        Self { key, targets, places }
    }

    /// Whether [`Self::new`] would make the same table.
    pub fn is_of(&self, key: &[u8; 16], targets: &[(SocketAddr, u16)]) -> bool {
        self.key == *key && self.targets == targets
    }

    /// The target in the place of `client`, or else in the next place that is its own choice, that is `usable`.
    pub fn find(&self, client: SocketAddr, mut usable: impl FnMut(SocketAddr) -> bool) -> Option<SocketAddr> {
        let hasher = SipHasher13::new_with_key(&self.key);
        let many = self.places.len();
        let start = reduce(hash(&hasher, Use::Client, client), many)?;
        let step = reduce(hash(&hasher, Use::Step, client), many - 1)? + 1;
        // Not the neighbour's: orders are regular, and one target would be most often beside another.
        let places = (0..many).scan(start, |place, _| Some(std::mem::replace(place, (*place + step) % many)));
        let target = |place: usize| self.targets.get(usize::from(*self.places.get(place)?));
        places.filter_map(target).map(|(address, _)| *address).find(|&target| usable(target))
    }
}

/// A target that claims places.
struct Claimant {
    target: u16,
    weight: u32,
    /// A turn is due when this reaches the greatest weight.
    credit: u32,
    /// The next place that it prefers, and how far the one after it is.
    next: usize,
    skip: usize,
}

/// Pseudocode 1 of the paper.
fn fill(hasher: &SipHasher13, targets: &[(SocketAddr, u16)]) -> Vec<u16> {
    let most = targets.iter().map(|(_, weight)| u32::from(*weight)).max().unwrap_or(0);
    let mut claimants: Vec<Claimant> = (0..)
        .zip(targets)
        .filter(|(_, (_, weight))| *weight > 0)
        .filter_map(|(target, &(address, weight))| {
            let weight = u32::from(weight);
            let next = reduce(hash(hasher, Use::Offset, address), PLACES)?;
            // A prime has no divisor among the steps, and so each order visits all places.
            let skip = reduce(hash(hasher, Use::Skip, address), PLACES - 1)? + 1;
            // In the first round everybody has a turn, however small the weight.
            Some(Claimant { target, weight, credit: most - weight, next, skip })
        })
        .collect();
    if claimants.is_empty() {
        return Vec::new();
    }
    let mut places = vec![FREE; PLACES];
    let mut free = PLACES;
    while free > 0 {
        for claimant in &mut claimants {
            claimant.credit += claimant.weight;
            if claimant.credit < most || free == 0 {
                continue;
            }
            claimant.credit -= most;
            while places[claimant.next] != FREE {
                claimant.next = (claimant.next + claimant.skip) % PLACES;
            }
            places[claimant.next] = claimant.target;
            free -= 1;
        }
    }
    places
}

/// What an endpoint is hashed for.
#[derive(Clone, Copy)]
enum Use {
    Client = 0,
    Offset = 1,
    Skip = 2,
    Step = 3,
}

/// The same on every machine, and for every build: `Hash` promises neither.
fn hash(hasher: &SipHasher13, purpose: Use, endpoint: SocketAddr) -> u64 {
    let mut hasher = *hasher;
    let octets = match endpoint.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    hasher.write(&[purpose as u8]);
    hasher.write(&octets);
    hasher.write(&endpoint.port().to_be_bytes());
    hasher.finish()
}

/// `hash` as an index below `many`.
fn reduce(hash: u64, many: usize) -> Option<usize> {
    usize::try_from(hash.checked_rem(many as u64)?).ok()
}

/// A prime. Of 256 targets, the most that there can be, each has 63 or 64 of them.
const PLACES: usize = 16_381;
const FREE: u16 = u16::MAX;
