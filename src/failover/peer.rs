//! What is known of a peer, and of the own instance: life and health. Whether silence is death is voted upon.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::config::{Config, Gateway, Timing};
use super::event::{Life, OrderError, PeerStatus, Refusal};
use super::message::{Echo, Health, Heartbeat, Hello, Hosting, Role};
use crate::time::Instant;

/// The own instance.
#[derive(Debug)]
pub(super) struct Me {
    pub name: String,
    pub eni: String,
    pub timing: Timing,
    pub health: Condition,
    /// When the health was told last.
    pub told: Option<Instant>,
    pub leaving: Option<Instant>,
}

/// Health, and since when it is good or bad.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Condition {
    pub health: Option<Health>,
    well_since: Option<Instant>,
    unwell_since: Option<Instant>,
}

/// A peer.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is told by somebody else, and they are independent")]
pub(super) struct Peer {
    pub linked: bool,
    /// The last that it has told, be it taken or refused.
    pub told: Option<Hello>,
    pub refused: Option<Refusal>,
    pub is_known: bool,
    pub life: Life,
    /// An operator vouches for its death, until it is heard.
    pub is_declared_dead: bool,
    /// When it died, as seen from here.
    pub dead_since: Option<Instant>,
    /// The last that was heard of it.
    pub heard: Option<Instant>,
    /// What its silence counts from: not from before this instance was there and awake.
    silent_from: Instant,
    pub condition: Condition,
    pub leaving: bool,
    pub misses: Vec<String>,
    pub hosts: Vec<Hosting>,
    sequence: u64,
    sent: VecDeque<(u64, Instant)>,
    echo: Option<(u64, Instant)>,
    pub round_trip: Option<Duration>,
}

/// Everything but the gateways, as it is at this moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub now: Instant,
    pub me: &'a Me,
    pub peers: &'a BTreeMap<String, Peer>,
}

impl Me {
    pub fn new(config: &Config) -> Self {
        let Config { eni, home, timing } = config;
        Self {
            name: home.name.clone(),
            eni: eni.clone(),
            timing: *timing,
            health: Condition::default(),
            told: None,
            leaving: None,
        }
    }
}

impl Condition {
    /// Whether anything is different now.
    pub fn update(&mut self, now: Instant, health: Health) -> bool {
        let changed = self.health != Some(health);
        self.health = Some(health);
        self.well_since = health.is_well().then(|| self.well_since.unwrap_or(now));
        self.unwell_since = health.is_unwell().then(|| self.unwell_since.unwrap_or(now));
        changed
    }

    /// Counts how long it lasts from now on.
    pub fn restart(&mut self, now: Instant) {
        self.well_since = self.well_since.map(|_| now);
        self.unwell_since = self.unwell_since.map(|_| now);
    }

    pub fn well_for(&self, now: Instant) -> Option<Duration> {
        self.well_since.map(|since| now - since)
    }

    pub const fn unwell_since(&self) -> Option<Instant> {
        self.unwell_since
    }
}

impl Peer {
    pub fn new(now: Instant) -> Self {
        Self {
            linked: false,
            told: None,
            refused: None,
            is_known: false,
            life: Life::Suspect,
            is_declared_dead: false,
            dead_since: None,
            heard: None,
            silent_from: now,
            condition: Condition::default(),
            leaving: false,
            misses: Vec::new(),
            hosts: Vec::new(),
            sequence: 0,
            sent: VecDeque::new(),
            echo: None,
            round_trip: None,
        }
    }

    /// A new connection: sequences begin anew, and what was told by the last one may be of another life.
    pub fn up(&mut self) {
        self.linked = true;
        self.condition = Condition::default();
        self.leaving = false;
        self.sequence = 0;
        self.sent.clear();
        self.echo = None;
    }

    /// Takes a heartbeat in; whether it says something new of whom the peer hosts.
    pub fn heartbeat(&mut self, now: Instant, heartbeat: Heartbeat) -> bool {
        let Heartbeat { sequence, echo, health, leaving, misses, hosts } = heartbeat;
        self.condition.update(now, health);
        self.leaving = leaving;
        self.misses = misses;
        self.echo = Some((sequence, now));
        if let Some(Echo { sequence, held_micros }) = echo
            && let Some((_, at)) = self.sent.iter().find(|(sent, _)| *sent == sequence)
        {
            self.round_trip = Some((now - *at).saturating_sub(Duration::from_micros(held_micros)));
        }
        let is_news = self.hosts != hosts;
        self.hosts = hosts;
        is_news
    }

    pub fn heard(&mut self, now: Instant) {
        self.heard = Some(now);
        self.is_declared_dead = false;
        self.silent_from = now;
    }

    /// This instance was asleep: what it did not hear meanwhile says nothing.
    pub fn woke(&mut self, now: Instant) {
        self.silent_from = now;
        self.condition.restart(now);
        if self.life == Life::Dead {
            self.life = Life::Suspect;
            self.dead_since = None;
        }
    }

    /// The number and the echo of the next heartbeat to it.
    pub fn beat(&mut self, now: Instant) -> (u64, Option<Echo>) {
        self.sequence += 1;
        self.sent.push_back((self.sequence, now));
        if self.sent.len() > MOST_SENT {
            self.sent.pop_front();
        }
        let held = |at: Instant| u64::try_from((now - at).as_micros()).unwrap_or(u64::MAX);
        let echo = self.echo.take().map(|(sequence, at)| Echo { sequence, held_micros: held(at) });
        (self.sequence, echo)
    }

    pub fn silence(&self, now: Instant) -> Duration {
        now - self.silent_from
    }

    /// When its silence will be long enough to mean something.
    pub fn silent_at(&self, timing: &Timing) -> Instant {
        self.silent_from + timing.dead_after
    }

    pub fn is_silent(&self, now: Instant, timing: &Timing) -> bool {
        self.silent_at(timing) <= now
    }

    pub fn is_alive(&self) -> bool {
        self.life == Life::Alive
    }

    fn does_miss(&self, name: &str) -> bool {
        self.misses.iter().any(|missed| missed == name)
    }

    /// Its definition, if it is one to go by.
    pub fn definition(&self) -> Option<&Gateway> {
        self.told.as_ref().filter(|_| self.is_known).map(|hello| &hello.gateway)
    }

    pub fn role(&self, gateway: &str) -> Role {
        let hosting = self.hosts.iter().find(|hosting| hosting.gateway == gateway);
        hosting.map_or(Role::Standby, |hosting| hosting.role)
    }

    /// Whether it was heard saying that it has this association.
    pub fn was_heard_with(&self, association: &str) -> bool {
        self.hosts.iter().any(|hosting| hosting.association.as_deref() == Some(association))
    }

    pub fn status(&self, now: Instant, peer: &str) -> PeerStatus {
        PeerStatus {
            peer: peer.to_owned(),
            life: self.life,
            linked: self.linked,
            health: self.condition.health,
            leaving: self.leaving,
            silent_seconds: self.silence(now).as_secs_f64(),
            round_trip_seconds: self.round_trip.map(|trip| trip.as_secs_f64()),
            refused: self.refused.as_ref().map(ToString::to_string),
        }
    }
}

impl View<'_> {
    /// Whether a peer lives. Silence is death if most of the others miss it too: those that are neither dead nor
    /// refused. Whoever is cut off from the others has not their word for it, and takes nobody for dead. Between two
    /// there is nobody to ask.
    pub fn life(&self, name: &str) -> Life {
        let Some(peer) = self.peers.get(name) else { return Life::Suspect };
        if !peer.is_silent(self.now, &self.me.timing) {
            return if peer.heard.is_some() { Life::Alive } else { Life::Suspect };
        }
        let others: Vec<&Peer> = self.others(name).map(|(_, peer)| peer).collect();
        let missing = others.iter().filter(|peer| self.is_heard(peer) && peer.does_miss(name)).count();
        // Once dead, it is so until somebody hears it again: those who would miss it may be gone by then.
        let was_dead = peer.life == Life::Dead || peer.is_declared_dead;
        let is_missed_still = was_dead && self.who_hears(name).is_none();
        if others.is_empty() || missing * 2 > others.len() || is_missed_still {
            Life::Dead
        } else {
            Life::Suspect
        }
    }

    /// Of those whose word counts, one that does not miss this peer.
    pub fn who_hears(&self, name: &str) -> Option<&str> {
        let mut others = self.others(name);
        let found = others.find(|(_, other)| self.is_heard(other) && !other.does_miss(name));
        found.map(|(other, _)| other.as_str())
    }

    /// Those whose word counts when it is asked whether this peer lives.
    fn others(&self, name: &str) -> impl Iterator<Item = (&String, &Peer)> {
        let counts = move |(other, peer): &(&String, &Peer)| {
            *other != name && peer.life != Life::Dead && peer.refused.is_none()
        };
        self.peers.iter().filter(counts)
    }

    fn is_heard(&self, peer: &Peer) -> bool {
        peer.heard.is_some() && !peer.is_silent(self.now, &self.me.timing)
    }

    /// Whether an operator's word is enough: nobody may contradict it.
    pub fn may_be_declared_dead(&self, name: &str) -> Result<(), OrderError> {
        let peer = self.peers.get(name).ok_or_else(|| OrderError::NoPeer(name.to_owned()))?;
        if !peer.is_silent(self.now, &self.me.timing) {
            return Err(OrderError::Heard(name.to_owned()));
        }
        if let Some(by) = self.who_hears(name) {
            return Err(OrderError::HeardBy { peer: name.to_owned(), by: by.to_owned() });
        }
        if self.is_fit() { Ok(()) } else { Err(OrderError::Unfit) }
    }

    /// The instance that has this interface.
    pub fn instance(&self, eni: &str) -> Option<&str> {
        if eni == self.me.eni {
            return Some(&self.me.name);
        }
        let has = |peer: &Peer| peer.is_known && peer.told.as_ref().is_some_and(|hello| hello.eni == eni);
        self.peers.iter().find(|(_, peer)| has(peer)).map(|(name, _)| name.as_str())
    }

    /// Whether a peer could take a gateway, as far as is known.
    pub fn is_able(&self, name: &str) -> bool {
        self.peers.get(name).is_some_and(|peer| {
            let is_well = peer.condition.health.is_some_and(|health| health.is_well());
            peer.is_alive() && peer.linked && peer.refused.is_none() && is_well && !peer.leaving
        })
    }

    /// Whether this instance could: its health is known, and has been good for a while.
    pub fn is_fit(&self) -> bool {
        let is_steady = |well: Duration| well >= self.me.timing.unwell_for;
        self.me.leaving.is_none() && self.me.health.well_for(self.now).is_some_and(is_steady)
    }

    /// Whether a route table is somebody else's too, as a refused peer has it. Two that both wrote its routes would never
    /// be done.
    pub fn is_disputed(&self, table: &String) -> bool {
        let claims = |peer: &&Peer| matches!(peer.refused, Some(Refusal::Claims { .. }));
        let told = self.peers.values().filter(claims).filter_map(|peer| peer.told.as_ref());
        told.into_iter().any(|hello| hello.gateway.route_tables.contains(table))
    }

    /// Since when this instance should not host; not for a passing weakness.
    pub fn unfit_since(&self) -> Option<Instant> {
        let unwell =
            self.me.health.unwell_since().filter(|since| self.now - *since >= self.me.timing.unwell_for);
        [self.me.leaving, unwell].into_iter().flatten().min()
    }
}

/// Heartbeats whose echo is still of interest.
const MOST_SENT: usize = 64;
