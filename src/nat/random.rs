//! Numbers that nobody outside can foresee: a keyed hash of a counter.

use std::hash::Hasher;
use std::net::Ipv4Addr;

use siphasher::sip::SipHasher13;

use crate::wire::Protocol;

#[derive(Debug)]
pub struct Random {
    keyed: SipHasher13,
    counter: u64,
}

impl Random {
    pub const fn new(keyed: SipHasher13) -> Self {
        Self { keyed, counter: 0 }
    }

    pub fn next(&mut self) -> u64 {
        self.counter += 1;
        let mut hasher = self.keyed;
        hasher.write_u64(self.counter);
        hasher.finish()
    }

    /// A number of `range`, which must not be empty (RFC 6056 section 3.3.1).
    pub fn port(&mut self, range: &std::ops::RangeInclusive<u16>) -> u16 {
        let many = u64::from(range.end().saturating_sub(*range.start())) + 1;
        u16::try_from(self.next() % many).map_or(*range.start(), |ahead| range.start().saturating_add(ahead))
    }
}

/// IPv4 identifications of datagrams that leave in fragments. No two of the same source, destination and
/// protocol share one within 65,536 datagrams (RFC 6864 section 4.3), whichever host they come from.
#[derive(Debug)]
pub struct Identifications {
    keyed: SipHasher13,
    counters: Box<[u16; COUNTERS]>,
}

impl Identifications {
    pub fn new(keyed: SipHasher13) -> Self {
        Self { keyed, counters: Box::new([0; COUNTERS]) }
    }

    pub fn next(&mut self, source: Ipv4Addr, destination: Ipv4Addr, protocol: Protocol) -> u16 {
        let mut hasher = self.keyed;
        hasher.write_u32(source.to_bits());
        hasher.write_u32(destination.to_bits());
        hasher.write_u8(protocol.0);
        let hash = hasher.finish();
        // Two sources may share a counter; where it starts for each is anybody's guess.
        #[expect(clippy::cast_possible_truncation)]
        let (counter, offset) = (hash as usize % COUNTERS, (hash >> 48) as u16);
        self.counters[counter] = self.counters[counter].wrapping_add(1);
        self.counters[counter].wrapping_add(offset)
    }
}

const COUNTERS: usize = 1024;
