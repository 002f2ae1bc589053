//! What the tests of the engine share: packets built byte by byte, a strict reader of what comes out, and a NAT
//! under virtual time. Included by each test binary with `#[path]`.
#![allow(dead_code, unused_imports, reason = "every test binary uses a different part")]

mod balancer;
mod build;
mod fast_path;
mod nat;
mod steps;
mod view;

pub use balancer::ByPort;
pub use build::{ACK, FIN, PSH, RST, SYN, URG};
pub use build::{
    Build, EndpointLike, PacketLike, ep, fragment, icmp, icmp_error, ip, other, ping, pong, tcp, udp,
};
pub use fast_path::{Carrier, FastPath};
pub use nat::{EXTERNAL, Nat, Outcome, PUBLIC, ROUTER, config, pool, service, static_mapping};
pub use steps::{Step, configuration, walk};
pub use view::{View, checksum_complaint, reassemble, view};

/// `SplitMix64` (Steele, Lea, Flood 2014): enough randomness for tests, and the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to, without, `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}
