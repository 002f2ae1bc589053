//! A model of the links between instances: TCP, as its users see it. What is lost comes late, in order; what cannot
//! get through is held, until the connection is given up.

use std::collections::BTreeMap;
use std::time::Duration;

use egret::time::Instant;

use crate::chance::Chance;

/// From, to.
pub type Way = (usize, usize);

#[derive(Clone, Copy, Debug)]
pub struct Quality {
    pub delay: Duration,
    pub jitter: Duration,
    /// Of a thousand packets.
    pub loss: u64,
}

#[derive(Debug)]
pub struct Net {
    pub quality: Quality,
    /// Ways that let nothing through, and since when.
    cut: BTreeMap<Way, Instant>,
    links: BTreeMap<Way, Link>,
    /// When the last message of a way arrives: nothing overtakes.
    last: BTreeMap<Way, Instant>,
    pub lost: u64,
    pub latest: Duration,
}

/// A connection, named by its ends in order.
#[derive(Debug, Default)]
struct Link {
    /// Counts connections; what belongs to an earlier one is void.
    number: u64,
    is_up: bool,
}

impl Net {
    pub fn new(quality: Quality) -> Self {
        Self {
            quality,
            cut: BTreeMap::new(),
            links: BTreeMap::new(),
            last: BTreeMap::new(),
            lost: 0,
            latest: Duration::ZERO,
        }
    }

    pub fn cut(&mut self, now: Instant, way: Way) {
        self.cut.entry(way).or_insert(now);
    }

    pub fn heal(&mut self, way: Way) -> bool {
        self.cut.remove(&way).is_some()
    }

    pub fn has_cut(&self) -> bool {
        !self.cut.is_empty()
    }

    pub fn is_cut(&self, (a, b): Way) -> bool {
        self.cut.contains_key(&(a, b)) || self.cut.contains_key(&(b, a))
    }

    pub fn is_way_cut(&self, way: Way) -> bool {
        self.cut.contains_key(&way)
    }

    /// Whether the ends have given the connection up for lack of acknowledgements.
    pub fn is_given_up(&self, now: Instant, (a, b): Way) -> bool {
        let cut = |way| self.cut.get(&way).is_some_and(|since| now - *since >= GIVE_UP);
        cut((a, b)) || cut((b, a))
    }

    pub fn is_up(&self, way: Way) -> bool {
        self.links.get(&ends(way)).is_some_and(|link| link.is_up)
    }

    pub fn number(&self, way: Way) -> u64 {
        self.links.get(&ends(way)).map_or(0, |link| link.number)
    }

    pub fn connect(&mut self, way: Way) -> u64 {
        let link = self.links.entry(ends(way)).or_default();
        link.is_up = true;
        link.number += 1;
        link.number
    }

    /// Whether there was a connection.
    pub fn disconnect(&mut self, way: Way) -> bool {
        let link = self.links.entry(ends(way)).or_default();
        std::mem::take(&mut link.is_up)
    }

    /// When something that is sent now arrives, if the way is open.
    pub fn arrival(&mut self, now: Instant, way: Way, chance: &mut Chance) -> Instant {
        let mut after = self.quality.delay + chance.between(Duration::ZERO, self.quality.jitter);
        while chance.permille(self.quality.loss) && after < GIVE_UP {
            self.lost += 1;
            after += RETRANSMIT + self.quality.delay + chance.between(Duration::ZERO, self.quality.jitter);
        }
        self.latest = self.latest.max(after);
        let last = self.last.entry(way).or_default();
        *last = (*last).max(now + after);
        *last
    }
}

pub fn ends((a, b): Way) -> Way {
    (a.min(b), a.max(b))
}

/// What it takes to notice a loss: the next heartbeat, whose acknowledgement shows the gap (RFC 8985), or a linear
/// timeout (`TCP_THIN_LINEAR_TIMEOUTS`).
const RETRANSMIT: Duration = Duration::from_millis(250);
/// `TCP_USER_TIMEOUT`.
pub const GIVE_UP: Duration = Duration::from_secs(4);
