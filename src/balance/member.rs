//! One target: its health, its next probe, its connections, and whether it leaves.

use std::net::SocketAddr;
use std::time::Duration;

use super::config::Target;
use super::event::{CloseCause, ProbeId, Serving, State, TargetCounters, TargetSnapshot};
use super::health::Health;
use crate::time::Instant;

/// See the module.
#[derive(Debug)]
pub struct Member {
    pub weight: u16,
    pub backup: bool,
    pub health: Health,
    pub probing: Probing,
    pub leaving: Option<Leaving>,
    pub connections: u32,
    /// Its connections are to be closed, and nobody has been told yet.
    pub close: Option<CloseCause>,
    pub counters: TargetCounters,
    /// Round-robin: what it has saved up for its next turn.
    pub credit: i64,
    /// When it was last chosen, in selections.
    pub last_chosen: u64,
    since: Instant,
}

/// The probes of a target, one at a time.
#[derive(Debug)]
pub struct Probing {
    pub due: Instant,
    pub in_flight: Option<(ProbeId, Instant)>,
}

/// That a target gets no new connections, and until when it may have its old ones.
#[derive(Debug)]
pub struct Leaving {
    /// `None` once they are to be closed.
    pub until: Option<Instant>,
    /// It leaves by request, and stays known as long as it is wanted.
    pub on_request: bool,
}

impl Member {
    pub fn new(now: Instant, target: &Target, first_probe: Instant) -> Self {
        Self {
            weight: target.weight,
            backup: target.backup,
            health: Health::NEW,
            probing: Probing { due: first_probe, in_flight: None },
            leaving: None,
            connections: 0,
            close: None,
            counters: TargetCounters::default(),
            credit: 0,
            last_chosen: 0,
            since: now,
        }
    }

    pub const fn state(&self) -> State {
        match self.leaving {
            None => self.health.condition(),
            Some(Leaving { on_request: true, .. }) if self.connections == 0 => State::Drained,
            Some(_) => State::Draining,
        }
    }

    /// Notes that the state that it has now is a new one.
    pub const fn entered(&mut self, now: Instant) {
        self.since = now;
    }

    /// When it is among those that get new connections.
    pub fn serves(&self) -> Option<Serving> {
        match self.state() {
            _ if self.weight == 0 => None,
            State::Healthy if self.backup => Some(Serving::Backups),
            State::Healthy => Some(Serving::Primaries),
            State::Initial if self.backup => Some(Serving::UntriedBackups),
            State::Initial => Some(Serving::Untried),
            State::Unhealthy(_) => Some(Serving::FailOpen),
            State::Draining | State::Drained => None,
        }
    }

    /// Whether it is a target by the last word, be it out of service.
    pub fn is_wanted(&self) -> bool {
        self.leaving.as_ref().is_none_or(|leaving| leaving.on_request)
    }

    /// Whether there is nothing left of it.
    pub fn is_gone(&self) -> bool {
        !self.is_wanted() && self.connections == 0
    }

    /// Begins to leave.
    pub fn leave(&mut self, now: Instant, delay: Duration, on_request: bool) {
        self.leaving = Some(Leaving { until: Some(now + delay), on_request });
        self.probing.in_flight = None;
    }

    /// Begins anew, but for the connections that it has.
    pub fn come_back(&mut self, first_probe: Instant) {
        self.leaving = None;
        self.health = Health::NEW;
        self.probing = Probing { due: first_probe, in_flight: None };
    }

    /// Wants its connections closed, if it has any.
    pub fn ask_to_close(&mut self, cause: CloseCause) {
        self.close = (self.connections > 0).then_some(cause);
    }

    /// When something is to be done about it by itself.
    pub fn timeout(&self) -> Option<Instant> {
        match (&self.leaving, &self.probing.in_flight) {
            (Some(leaving), _) => leaving.until,
            (None, Some((_, deadline))) => Some(*deadline),
            (None, None) => Some(self.probing.due),
        }
    }

    pub fn snapshot(&self, now: Instant, address: SocketAddr) -> TargetSnapshot {
        TargetSnapshot {
            address,
            weight: self.weight,
            backup: self.backup,
            state: self.state(),
            since: now - self.since,
            connections: self.connections,
            counters: self.counters,
        }
    }
}
