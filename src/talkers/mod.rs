//! Who talks most: internal addresses, and networks of remotes, over the last minute and the last hour.
//!
//! Owns the ranking, in memory that does not grow with the number of talkers: frequent-item sketches
//! (<https://datasketches.apache.org/docs/Frequency/FrequencySketches.html>), one for each ten seconds of the last minute
//! and one for each five minutes of the last hour. Whoever has more than a hundredth of the whole is found for sure, and
//! what is said of each is at least what it had, and too much by at most as much as is told. Its input is what
//! sessions have carried since they were last looked at; it sees no packet.

mod ranking;

use std::net::Ipv4Addr;

pub use ranking::{Measure, Talker, Tally, Window};

use crate::time::Instant;
use ranking::Ranking;

/// See the module.
#[derive(Debug, Default)]
pub struct Talkers {
    internal: Ranking,
    remote: Ranking,
}

/// The most talkative of both kinds, the first one first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Top {
    pub internal: Vec<Talker>,
    /// By the first address of their /24.
    pub remote: Vec<Talker>,
}

impl Talkers {
    /// Takes in what an internal address has had to do with a remote one.
    pub fn add(&mut self, now: Instant, internal: Ipv4Addr, remote: Ipv4Addr, tally: Tally) {
        self.internal.add(now, internal, tally);
        let network = Ipv4Addr::from_bits(remote.to_bits() & NETWORK);
        self.remote.add(now, network, tally);
    }

    /// Those that had most of `by` within `window`, at most `count` of each kind.
    #[must_use]
    pub fn top(&mut self, now: Instant, window: Window, by: Measure, count: usize) -> Top {
        Top {
            internal: self.internal.top(now, window, by, count),
            remote: self.remote.top(now, window, by, count),
        }
    }
}

/// Of the networks that remotes are counted by: smaller ones are hardly ever announced.
const NETWORK: u32 = 0xffff_ff00;

#[cfg(test)]
mod tests;
