//! The door of a listener: who may connect, how many at once, and how often.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use super::config::{ConfigError, Limits};
use super::recent::Recent;
use crate::time::Instant;

/// See the module.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    /// Sorted, and none within another.
    allow: Vec<IpNet>,
    open: u32,
    /// When the token bucket of each client would be full again (the generic cell rate algorithm, ITU-T I.371).
    full_at: Recent<IpAddr, Instant>,
    counters: AdmissionCounters,
}

impl Admission {
    /// A door that nobody has passed. `seed` keys its hash table.
    ///
    /// # Errors
    /// What is wrong with `limits`.
    pub fn new(limits: Limits, seed: [u8; 16]) -> Result<Self, ConfigError> {
        limits.validate()?;
        Ok(Self {
            allow: IpNet::aggregate(&limits.allow),
            open: 0,
            full_at: Recent::new(seed, limits.most_clients, BURST),
            counters: AdmissionCounters::default(),
            limits,
        })
    }

    /// Changes the limits. Connections stay.
    ///
    /// # Errors
    /// What is wrong with `limits`; then nothing has changed.
    pub fn reconfigure(&mut self, limits: Limits) -> Result<(), ConfigError> {
        limits.validate()?;
        self.allow = IpNet::aggregate(&limits.allow);
        self.full_at.resize(limits.most_clients, BURST);
        self.limits = limits;
        Ok(())
    }

    /// Lets a connection of `client` in; it counts as open until [`Self::release`]. One that is refused takes
    /// nothing from its rate.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn admit(&mut self, now: Instant, client: IpAddr) -> Result<(), Refusal> {
        let admitted = self.judge(now, client);
        match admitted {
            Ok(()) => {
                self.open += 1;
                self.counters.admitted += 1;
            }
            Err(refusal) => self.counters.refused[refusal as usize] += 1,
        }
        admitted
    }

    /// A connection that was let in has ended.
    pub fn release(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    /// Whether another connection would be let in as far as their number goes; if not, a listener may as well stop
    /// accepting.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.open < self.limits.connections
    }

    /// Whether a client would be let in if fewer connections were open, as far as its rate allows.
    #[must_use]
    pub fn is_full_for(&self, client: IpAddr) -> bool {
        !self.has_room() && self.allows(client.to_canonical())
    }

    /// What has been counted so far.
    #[must_use]
    pub fn counters(&self) -> AdmissionCounters {
        AdmissionCounters {
            open: self.open,
            clients: self.full_at.len(),
            clients_evicted: self.full_at.evicted(),
            ..self.counters
        }
    }

    fn judge(&mut self, now: Instant, client: IpAddr) -> Result<(), Refusal> {
        if !self.allows(client.to_canonical()) {
            return Err(Refusal::NotAllowed);
        }
        if !self.has_room() {
            return Err(Refusal::ConnectionLimit);
        }
        let Some(token) = BURST.checked_div(self.limits.new_connections_per_second) else { return Ok(()) };
        let full_at = self.full_at.entry(now, client_key(client), || now);
        let then = (*full_at).max(now) + token;
        if then - now > BURST {
            return Err(Refusal::RateLimit);
        }
        *full_at = then;
        Ok(())
    }

    fn allows(&self, client: IpAddr) -> bool {
        // Of disjoint prefixes in order only the last that does not begin after it can hold an address.
        let after = self.allow.partition_point(|prefix| prefix.network() <= client);
        after
            .checked_sub(1)
            .and_then(|last| self.allow.get(last))
            .is_some_and(|prefix| prefix.contains(&client))
    }
}

/// Why a connection was refused. Each is a label of one counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Refusal {
    /// No prefix of the allow-list holds the client.
    NotAllowed,
    /// As many connections as may be are open.
    ConnectionLimit,
    /// The client has opened too many in the last second.
    RateLimit,
}

impl Refusal {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 3] = [Self::NotAllowed, Self::ConnectionLimit, Self::RateLimit];

    /// The label, in snake case.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotAllowed => "not_allowed",
            Self::ConnectionLimit => "connection_limit",
            Self::RateLimit => "rate_limit",
        }
    }
}

/// What is counted of a door. Plain numbers that only rise, but for the gauges at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AdmissionCounters {
    pub admitted: u64,
    /// By [`Refusal`], in the order of [`Refusal::ALL`].
    pub refused: [u64; Refusal::ALL.len()],
    /// Clients whose rate was forgotten for lack of room: each may have had a burst more than it should.
    pub clients_evicted: u64,
    /// Gauges: open connections; clients whose rate is watched.
    pub open: u32,
    pub clients: usize,
}

impl AdmissionCounters {
    /// How many connections were refused for `refusal`.
    #[must_use]
    pub const fn refused(&self, refusal: Refusal) -> u64 {
        self.refused[refusal as usize]
    }
}

/// Under what a client is remembered. Of IPv6 it is the /64: an address of it costs its owner nothing.
pub fn client_key(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// How much a full bucket holds; one that rests this long is full, and need not be remembered.
const BURST: Duration = Duration::from_secs(1);
